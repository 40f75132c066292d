"""Which detections are the same star: the frames' lists become one list of stars with its sightings and anchors.

Every detection is laid on the sky by its frame's place and its camera's lens as known so far; what lies together is
one star. Pixels as x + iy, places as unit vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zemosaicd import sphere
from zemosaicd.model import Wcs
from zemosaicd.science.joint import C128, F64, I64, Anchors, Frames, Sightings, ideal_pixels, sky_at
from zemosaicd.science.matching import one_to_one
from zemosaicd.science.stars import StarList

SNR_TERM_PX = 1.2
MERGE_PX = 3.0
ANCHOR_MATCH_ARCSEC = 4.0
MIN_STARS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStars:
    """One frame of a session: its star list, its own linear solution (None: not solved), its size in pixels.

    Frames of one `camera` share a lens and a scale.
    """

    stars: StarList
    wcs: Wcs | None
    width: int
    height: int
    camera: str = ""


def detections(frame: FrameStars, limit: int) -> tuple[C128, F64]:
    """Places (n,) of a frame's well-spread stars, at most `limit`, and the variances of their SNR terms, px^2."""
    stars = frame.stars
    pick = spread(stars, frame.width, frame.height, limit)
    noise = (SNR_TERM_PX / np.maximum(stars.snr[pick].astype(np.float64), 1.0)) ** 2
    return stars.x[pick] + 1j * stars.y[pick], noise


def spread(stars: StarList, width: int, height: int, limit: int, cells: int = 5) -> I64:
    """Indices of at most `limit` stars: the brightest of each cell of the frame first, then the second of each, ..."""
    count = len(stars.x)
    if count <= limit:
        return np.arange(count)
    column = np.clip((stars.x * cells / width).astype(np.int64), 0, cells - 1)
    row = np.clip((stars.y * cells / height).astype(np.int64), 0, cells - 1)
    cell = row * cells + column
    order = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[order], cell[order])
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count) - first
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def merge(
    lists: Sequence[tuple[C128, F64]], frames: Frames, lenses: F64, catalogue: F64
) -> tuple[Sightings, F64, Anchors]:
    """Sightings of the stars that tie the frames together, those stars' directions (n, 3), and their anchors.

    `lists`: each frame's `detections`; `catalogue` (k, 3) unit vectors.
    Nearest within 3 px, one observation a frame, richest frame first. A star counts if it is seen twice or known to the
    catalogue (4 arcsec), a frame if it has four such stars.
    """
    frame = np.repeat(np.arange(len(lists)), [len(places) for places, _ in lists])
    pixel = np.concatenate([np.zeros(0, np.complex128), *(places for places, _ in lists)])
    variance = np.concatenate([np.zeros(0), *(v for _, v in lists)])
    sky = sky_at(frames, frame, ideal_pixels(frames, lenses, frame, pixel))
    star, stars = _stars_of(frame, sky, MERGE_PX / np.abs(frames.z))
    taken = star >= 0
    seen = Sightings(frame[taken], star[taken], pixel[taken], variance[taken])
    return _shared(seen, stars, catalogue, frames)


def _stars_of(frame: I64, sky: F64, radius_rad: F64) -> tuple[I64, F64]:
    """The star of each detection (-1: a nearer one of its frame took it), and the stars' mean directions."""
    first = np.searchsorted(frame, np.arange(len(radius_rad) + 1))
    star, total = np.full(len(frame), -1, np.int64), np.zeros((0, 3))
    for i in sorted(range(len(radius_rad)), key=lambda k: (first[k] - first[k + 1], k)):
        v = sky[first[i] : first[i + 1]]
        if not len(v):
            continue
        index = _assign(total, v, radius_rad[i])
        fresh = index == len(total)
        index[fresh] += np.arange(int(fresh.sum()))
        total = np.concatenate([total, np.zeros((int(fresh.sum()), 3))])
        good = index >= 0
        total[index[good]] += v[good]
        star[first[i] : first[i + 1]] = index
    return star, total / np.linalg.norm(total, axis=1, keepdims=True)


def _assign(total: F64, v: F64, radius_rad: float) -> I64:
    """The star that each direction belongs to: nearest within the radius; -1: a nearer one took it; len(total): new."""
    index = np.full(len(v), len(total), np.int64)
    known = total / np.linalg.norm(total, axis=1, keepdims=True)
    mine, partner, lost = one_to_one(v, known, radius_rad)
    index[mine], index[lost] = partner, -1
    return index


def _shared(seen: Sightings, stars: F64, catalogue: F64, frames: Frames) -> tuple[Sightings, F64, Anchors]:
    """Keep stars seen twice or known to the catalogue, in frames that have four of them; renumber."""
    anchor_of = np.full(len(stars), -1, np.int64)
    if len(frames.z):
        radius = max(ANCHOR_MATCH_ARCSEC * sphere.ARCSEC_RAD, 1 / float(np.min(np.abs(frames.z))))
        chosen, partner, _ = one_to_one(catalogue, stars, radius)
        anchor_of[partner] = chosen
    while True:
        count = np.bincount(seen.star, minlength=len(stars))
        keep = (count[seen.star] >= 2) | (anchor_of[seen.star] >= 0)
        crowd = np.bincount(seen.frame[keep], minlength=len(frames.t))
        keep &= crowd[seen.frame] >= MIN_STARS
        if keep.all():
            break
        seen = seen.take(keep)
    used, renumbered = np.unique(seen.star, return_inverse=True)
    anchor_of = anchor_of[used]
    anchor_star = np.flatnonzero(anchor_of >= 0)
    seen = replace(seen, star=renumbered.astype(np.int64).reshape(-1))
    return seen, stars[used], Anchors(anchor_star, catalogue[anchor_of[anchor_star]].reshape(-1, 3))
