"""Phases 0 and 1 in a worker: a file becomes facts, and a frame becomes a cache, a star list and a solution.

A frame's cache is its calibrated plane as `.npy`: the CFA (H, W), a mono plane (H, W), or colour planes (H, W, C); rows
as stored in the file. Demosaic belongs to the warp (Phase 3). What enters pixels is a function of the
frame's bytes and the configuration alone (C7).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zemosaicd.core import headers
from zemosaicd.core.cards import number
from zemosaicd.model import (
    FrameFacts,
    FrameId,
    Measures,
    PreparedFrame,
    Reason,
    Rejected,
    Solution,
)
from zemosaicd.science.astrometry import locate
from zemosaicd.science.frame import block_levels, find_hot_pixels, low_and_high, sky_and_noise
from zemosaicd.science.skylight import BlockMap
from zemosaicd.science.stars import find_stars, shape, with_colours
from zemosaicd.science.trails import find_trails
from zemosaicd.work import fitsio
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.jobs import PrepareFrame, RebuildCache
from zemosaicd.work.meter import Meter
from zemosaicd.work.store import write_npy

SATURATED = 65000.0
REHEARSED_PX, REHEARSED_STARS = 256, 40
MOST_SUSPECTS = 20_000
"""Of a frame with more pixels that stand out, its sensor is not to be judged; the first will do."""


def prepare_frame(job: PrepareFrame) -> PreparedFrame:
    """Phase 1: read, repair, measure, cache, solve. Raises Rejected for a frame without sky."""
    meter = Meter()
    frame = _calibrated(job)
    if job.scale_arcsec:
        frame = replace(frame, facts=replace(frame.facts, scale_arcsec=job.scale_arcsec))
    sky = _sky(frame)
    with ThreadPoolExecutor(1) as beside:  # a disk that takes its time is waited for while the frame is measured
        written = beside.submit(write_cache, job.cache, frame)
        measured = _measured(frame, sky)
        written.result()
    return replace(measured, path=job.path, cache=job.cache, seconds=meter.seconds, peak_rss_mb=meter.peak_rss_mb)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sky:
    """Levels of a frame's blocks, and its sky and noise a channel, ADU."""

    blocks: BlockMap
    level: tuple[float, ...]
    noise: tuple[float, ...]


def _sky(frame: _Calibrated) -> _Sky:
    """Raises Rejected where there is none."""
    blocks = _blocks(frame.pixels, frame.facts.bayer)
    level, noise = sky_and_noise(blocks.level, blocks.noise)
    if not all(np.isfinite(level)) or min(noise) <= 0.0:
        message = "a constant picture: cover closed, or no data"
        raise Rejected(Reason(rule="no_sky", value=min(noise), threshold=0.0, message=message))
    return _Sky(blocks=blocks, level=level, noise=noise)


def _measured(frame: _Calibrated, sky: _Sky) -> PreparedFrame:
    """What a frame's pixels say."""
    facts = frame.facts
    low, high = _low_and_high(frame.pixels, facts.bayer)
    plane = _mono(frame.pixels)
    stars = find_stars(plane, facts.bayer)
    fwhm_px, ellipticity = shape(stars)
    found = locate(stars, facts, _year(facts.observed_s), read_cone)
    return PreparedFrame(
        frame=frame.frame,
        path="",
        cache="",
        facts=facts,
        measures=Measures(
            sky_adu=sky.level,
            noise_adu=sky.noise,
            fwhm_px=fwhm_px,
            ellipticity=ellipticity,
            stars=len(stars),
            hot_pixels=frame.hot_pixels,
            saturated_fraction=frame.saturated_fraction,
            low_adu=low,
            high_adu=high,
        ),
        solution=found if isinstance(found, Solution) else None,
        unsolved=found if isinstance(found, Reason) else None,
        stars=with_colours(stars, frame.pixels, facts.bayer).to_bytes(),
        blocks=sky.blocks.to_bytes(),
        trails=find_trails(plane),
        suspects=frame.suspects[:MOST_SUSPECTS].astype("<u4").tobytes(),
    )


def rehearse() -> None:
    """Measures a small made-up frame: whoever has done that has compiled, or loaded, all that Phase 1 runs."""
    y, x = np.mgrid[0:REHEARSED_PX, 0:REHEARSED_PX]
    pixels = 300.0 + (y * 7919.0 + x * 104729.0) % 61.0  # noise enough for every rule
    for k in range(REHEARSED_STARS):
        across, down = 13.0 + (k * 89) % (REHEARSED_PX - 26), 13.0 + (k * 41) % (REHEARSED_PX - 26)
        pixels += (800.0 + 90.0 * k) * np.exp(-((x[:1] - across) ** 2) / 3.0) * np.exp(-((y[:, :1] - down) ** 2) / 3.0)
    facts = FrameFacts(width=REHEARSED_PX, height=REHEARSED_PX, bayer="GRBG")
    frame = _repaired(pixels.astype(np.float32), FrameId("rehearsal"), facts, None)
    _measured(frame, _sky(frame))


def rebuild_cache(job: RebuildCache) -> None:
    """The same cache again. Raises Rejected if the file no longer holds the frame that was measured."""
    frame = _calibrated(job)
    if frame.frame != job.frame:
        message = f"{job.path} has changed since it was measured"
        raise Rejected(Reason(rule="frame_changed", value=frame.frame, threshold=job.frame, message=message))
    write_cache(job.cache, frame)


def write_cache(path: str, frame: _Calibrated) -> None:
    """Publishes a frame's cache: in the file's own 16 bits where its numbers were whole (half the bytes), else float32.

    A repaired pixel is rounded to a whole number then, far below its noise.
    """
    stored = frame.pixels if frame.kind is None else np.rint(frame.pixels).astype(frame.kind)
    write_npy(Path(path), stored, overwrite=True)


def whole_numbers(cards: Mapping[str, object]) -> np.dtype[np.uint16] | np.dtype[np.int16] | None:
    """The 16-bit type that holds a file's pixels exactly, from its header; None if there is none."""
    zero, scale = number(cards, "BZERO") or 0.0, number(cards, "BSCALE")
    if scale not in (None, 1.0) or "BLANK" in cards:
        return None
    match number(cards, "BITPIX"), zero:
        case (16.0, 32768.0) | (8.0, 0.0):
            return np.dtype(np.uint16)
        case (16.0, 0.0):
            return np.dtype(np.int16)
    return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Calibrated:
    """A frame, ready to be measured: `pixels` (H, W) repaired, or planes (H, W, C); `kind`: the 16-bit type of the
    file's numbers, if they were whole; `suspects`: flat indices of pixels that stand out; `saturated_fraction` as read.
    """

    frame: FrameId
    facts: FrameFacts
    pixels: NDArray[np.float32]
    kind: np.dtype[np.uint16] | np.dtype[np.int16] | None
    hot_pixels: int
    suspects: NDArray[np.int64]
    saturated_fraction: float


def _calibrated(job: PrepareFrame | RebuildCache) -> _Calibrated:
    """The frame of a job's file."""
    raw = fitsio.read_frame(Path(job.path), job.budget)
    return _repaired(raw.pixels, raw.frame, headers.facts(raw.cards, Path(job.path).name), whole_numbers(raw.cards))


def _repaired(
    pixels: NDArray[np.float32],
    frame: FrameId,
    facts: FrameFacts,
    kind: np.dtype[np.uint16] | np.dtype[np.int16] | None,
) -> _Calibrated:
    """A frame as read, (H, W) or planes (C, H, W), without its hot pixels; the array is used up."""
    saturated = int(np.count_nonzero(pixels >= SATURATED)) / pixels.size
    hot, suspects = 0, np.empty(0, np.int64)
    if pixels.ndim == 3:
        pixels = np.ascontiguousarray(np.moveaxis(pixels, 0, 2))
    else:
        found = find_hot_pixels(pixels, bool(facts.bayer))
        pixels.reshape(-1)[found.place[found.sure]] = found.value[found.sure]
        hot, suspects = int(found.sure.sum()), found.place
    return _Calibrated(
        frame=frame, facts=facts, pixels=pixels, kind=kind, hot_pixels=hot, suspects=suspects,
        saturated_fraction=saturated,
    )  # fmt: skip


def _blocks(pixels: NDArray[np.float32], bayer: str) -> BlockMap:
    """Levels of the frame's blocks a channel: of a CFA's colours, a mono plane, or each colour plane."""
    if pixels.ndim == 2:
        level, noise = block_levels(pixels, bayer)
    else:
        each = [block_levels(np.ascontiguousarray(pixels[:, :, c]), "") for c in range(pixels.shape[2])]
        level, noise = (np.concatenate([part[k] for part in each]) for k in (0, 1))
    return BlockMap(level=level, noise=noise)


def _low_and_high(pixels: NDArray[np.float32], bayer: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Two percentiles a channel (science.frame.low_and_high)."""
    if pixels.ndim == 2:
        return low_and_high(pixels, bayer)
    each = [low_and_high(pixels[:, :, c], "") for c in range(pixels.shape[2])]
    return tuple(low[0] for low, _ in each), tuple(high[0] for _, high in each)


def _mono(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The plane that stars are found on: the frame itself, or the mean of its colour planes."""
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.mean(axis=2, dtype=np.float32))


def _year(observed_s: float | None) -> float | None:
    """Julian year of an instant, for precession; None if the header has no date."""
    if observed_s is None:
        return None
    j2000 = datetime(2000, 1, 1, 12, tzinfo=UTC).timestamp()
    return 2000.0 + (observed_s - j2000) / (365.25 * 86400.0)
