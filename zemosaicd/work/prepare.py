"""Phases 0 and 1 in a worker: a file becomes facts, and a frame becomes a cache, a star list and a solution.

A frame's cache is its calibrated plane as float32 `.npy`: the CFA (H, W), a mono plane (H, W), or colour planes
(H, W, C); rows as stored in the file. Demosaic belongs to the warp (Phase 3). What enters pixels is a function of the
frame's bytes and the configuration alone (C7).
"""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zemosaicd.core import headers
from zemosaicd.model import (
    FrameFacts,
    Measures,
    PreparedFrame,
    Reason,
    Rejected,
    Solution,
)
from zemosaicd.science.astrometry import locate
from zemosaicd.science.frame import repair_hot_pixels, sky_and_noise
from zemosaicd.science.stars import find_stars, shape
from zemosaicd.work import fitsio
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.jobs import PrepareFrame, RebuildCache
from zemosaicd.work.store import write_npy

SATURATED = 65000.0


def prepare_frame(job: PrepareFrame) -> PreparedFrame:
    """Phase 1: read, repair, measure, cache, solve. Raises Rejected for a frame without sky."""
    started = time.perf_counter()
    raw, facts, pixels, hot = _calibrated(job)
    if job.scale_arcsec:
        facts = replace(facts, scale_arcsec=job.scale_arcsec)
    measured = _mono(pixels)
    sky, noise = _sky_and_noise(pixels, facts.bayer)
    if not all(np.isfinite(sky)) or min(noise) <= 0.0:
        message = "a constant picture: cover closed, or no data"
        raise Rejected(Reason(rule="no_sky", value=min(noise), threshold=0.0, message=message))
    stars = find_stars(measured, facts.bayer)
    fwhm_px, ellipticity = shape(stars)
    found = locate(stars, facts, _year(facts.observed_s), read_cone)
    write_npy(Path(job.cache), pixels, overwrite=True)
    return PreparedFrame(
        frame=raw.frame,
        path=job.path,
        cache=job.cache,
        facts=facts,
        measures=Measures(
            sky_adu=sky,
            noise_adu=noise,
            fwhm_px=fwhm_px,
            ellipticity=ellipticity,
            stars=len(stars),
            hot_pixels=hot,
            saturated_fraction=float(np.mean(raw.pixels >= SATURATED)),
        ),
        solution=found if isinstance(found, Solution) else None,
        unsolved=found if isinstance(found, Reason) else None,
        stars=stars.to_bytes(),
        seconds=time.perf_counter() - started,
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def rebuild_cache(job: RebuildCache) -> None:
    """The same cache again. Raises Rejected if the file no longer holds the frame that was measured."""
    raw, _, pixels, _ = _calibrated(job)
    if raw.frame != job.frame:
        message = f"{job.path} has changed since it was measured"
        raise Rejected(Reason(rule="frame_changed", value=raw.frame, threshold=job.frame, message=message))
    write_npy(Path(job.cache), pixels, overwrite=True)


def _calibrated(
    job: PrepareFrame | RebuildCache,
) -> tuple[fitsio.RawFrame, FrameFacts, NDArray[np.float32], int]:
    """The frame as read, its facts, its repaired plane (H, W) or planes (H, W, C), and how many hot pixels it had."""
    raw = fitsio.read_frame(Path(job.path), job.budget)
    facts = headers.facts(raw.cards, Path(job.path).name)
    if raw.pixels.ndim == 3:
        return raw, facts, np.ascontiguousarray(np.moveaxis(raw.pixels, 0, 2)), 0
    pixels, hot = repair_hot_pixels(raw.pixels, bool(facts.bayer))
    return raw, facts, pixels, hot


def _sky_and_noise(pixels: NDArray[np.float32], bayer: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sky and noise a channel: of a CFA's colours, a mono plane, or each colour plane."""
    if pixels.ndim == 2:
        return sky_and_noise(pixels, bayer)
    per_plane = [sky_and_noise(np.ascontiguousarray(pixels[:, :, c]), "") for c in range(pixels.shape[2])]
    return tuple(s[0] for s, _ in per_plane), tuple(n[0] for _, n in per_plane)


def _mono(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The plane that stars are found on: the frame itself, or the mean of its colour planes."""
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.mean(axis=2, dtype=np.float32))


def _year(observed_s: float | None) -> float | None:
    """Julian year of an instant, for precession; None if the header has no date."""
    if observed_s is None:
        return None
    j2000 = datetime(2000, 1, 1, 12, tzinfo=UTC).timestamp()
    return 2000.0 + (observed_s - j2000) / (365.25 * 86400.0)
