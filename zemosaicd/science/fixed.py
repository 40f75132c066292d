"""What stays on the sensor while the sky moves: hot pixels and dust, never stars.

They would match from frame to frame better than any star does, and pull the solution towards "nothing moved". A place
of the sensor is fixed if many frames of its camera have a detection within 0.8 px of it although the sky has moved on
there (experiments-astrometry 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from zemosaicd.science.joint import C128, F64, I64, Frames, frames_from, sky_at
from zemosaicd.science.matching import nearest
from zemosaicd.science.merging import FrameStars

RADIUS_PX = 0.8
MOVED_PX = 2.5
"""Places of the sky this far apart are different ones: farther than a place is wide, and than frames are misplaced."""
ROW = 1 << 20
"""Cells of the sensor's radius in a row: more than any sensor has."""
AROUND = np.array([y * ROW + x for y in (-1, 0, 1) for x in (-1, 0, 1)])
LEAST_SHARE = 0.2
LEAST_PLACES = 3


def without_fixed(frames: Sequence[FrameStars]) -> tuple[list[FrameStars], int]:
    """The frames without detections at fixed places of their cameras, and how many detections that took away.

    Which places are fixed is learnt from the solved frames and holds for the others as well.
    """
    cleaned, dropped = list(frames), 0
    for camera in dict.fromkeys((f.camera, f.width, f.height) for f in frames):
        mine = [i for i, f in enumerate(frames) if (f.camera, f.width, f.height) == camera]
        places = fixed_places([frames[i] for i in mine])
        if not len(places):
            continue
        known = _points(places)
        for i in mine:
            stars = frames[i].stars
            away, _ = nearest(_points(stars.x + 1j * stars.y), known, RADIUS_PX)
            cleaned[i] = replace(frames[i], stars=stars.chosen(np.isinf(away)))
            dropped += int(np.isfinite(away).sum())
    return cleaned, dropped


def fixed_pixels(suspects: Sequence[I64], frames: Sequence[FrameStars]) -> I64:
    """Flat indices of the pixels that stand out in many frames of one camera while the sky moves: hot whatever the sky.

    `suspects`: of each frame, flat indices of the pixels that stand out in it (science.frame); ascending result. As
    for detections a fifth of the frames, and three, must agree, on three different places of the sky.
    """
    solved = [(s, f) for s, f in zip(suspects, frames, strict=True) if f.wcs is not None]
    if not solved:
        return np.zeros(0, np.int64)
    frame = np.repeat(np.arange(len(solved)), [len(s) for s, _ in solved])
    pixel = np.concatenate([s for s, _ in solved]).astype(np.int64)
    need = max(LEAST_PLACES, int(np.ceil(LEAST_SHARE * len(solved))))
    order = np.argsort(pixel, kind="stable")
    known, first, count = np.unique(pixel[order], return_index=True, return_counts=True)
    sizes = [(f.width, f.height) for _, f in solved]
    place = frames_from([f.wcs for _, f in solved if f.wcs is not None], sizes, [0] * len(solved))
    many = np.flatnonzero(count >= need)
    if not len(many):
        return np.zeros(0, np.int64)
    parts = [order[first[k] : first[k] + count[k]] for k in many]
    every = np.concatenate(parts)
    row, column = np.divmod(pixel[every], sizes[0][0])
    sky = np.split(_sky_px(place, frame[every], column + 1j * row), np.cumsum(count[many])[:-1])
    return np.array([known[k] for k, seen in zip(many, sky, strict=True) if _moves(seen)], np.int64)


def fixed_places(frames: Sequence[FrameStars]) -> C128:
    """Places (n,) of the sensor that the frames of one camera share, x + iy px; frames without a solution are silent.

    A fifth of the frames, and three, must have a detection within 0.8 px, on three different places of the sky or
    more: a star stays while nothing moves, and another may pass.
    """
    solved = [f for f in frames if f.wcs is not None]
    frame = np.repeat(np.arange(len(solved)), [len(f.stars) for f in solved])
    pixel = np.concatenate([np.zeros(0, np.complex128), *(f.stars.x + 1j * f.stars.y for f in solved)])
    need = max(LEAST_PLACES, int(np.ceil(LEAST_SHARE * len(solved))))
    crowds = _crowds(pixel, need) if len(pixel) else []
    if not crowds:
        return np.zeros(0, np.complex128)
    sizes = [(f.width, f.height) for f in solved]
    place = frames_from([f.wcs for f in solved if f.wcs is not None], sizes, [0] * len(solved))
    return np.array(
        [
            np.median(pixel[crowd].real) + 1j * np.median(pixel[crowd].imag)
            for crowd in crowds
            if len(np.unique(frame[crowd])) >= need and _moves(_sky_px(place, frame[crowd], pixel[crowd]))
        ],
        np.complex128,
    )


def _sky_px(place: Frames, frame: I64, pixel: C128) -> F64:
    """(n, 3): where on the sky detections lie, directions times the px of a radian."""
    return np.asarray(sky_at(place, frame, pixel) * float(np.median(np.abs(place.z))))


def _moves(sky: F64) -> bool:
    """Whether these detections (`_sky_px`) lie all over the sky, at three different places or more, not round one with
    errors.
    """
    half = len(sky) // 2
    if np.sort(_apart(sky, np.sort(sky, axis=0)[half]))[half] < (MOVED_PX / 2) ** 2:
        return False
    for _ in range(LEAST_PLACES - 1):
        sky = sky[_apart(sky, sky[0]) > MOVED_PX**2]
        if not len(sky):
            return False
    return True


def _apart(sky: F64, place: F64) -> F64:
    """Squared distances (n,) of places (n, 3) from one."""
    away = sky - place
    return np.asarray((away * away).sum(axis=1))


def _crowds(pixel: C128, need: int) -> list[I64]:
    """Indices of the detections round each place at which at least `need` of them crowd, by cells of its radius."""
    column, row = (np.floor(c / RADIUS_PX).astype(np.int64) for c in (pixel.real, pixel.imag))
    order = np.argsort(row * ROW + column, kind="stable")
    cells, first, count = np.unique((row * ROW + column)[order], return_index=True, return_counts=True)
    crowded = np.zeros(len(cells), np.int64)
    for step in (0, 1, ROW, ROW + 1):
        at = _index_of(cells, cells + step)
        crowded += np.where(at >= 0, count[at], 0)
    crowds: dict[int, I64] = {}
    for corner in cells[crowded >= need]:
        cell = _index_of(cells, corner + np.array([0, 1, ROW, ROW + 1]))
        block = np.concatenate([order[first[i] : first[i] + count[i]] for i in cell[cell >= 0]])
        centre = complex(np.median(pixel[block].real), np.median(pixel[block].imag))
        middle = int(centre.imag // RADIUS_PX) * ROW + int(centre.real // RADIUS_PX)
        if middle not in crowds:
            cell = _index_of(cells, middle + AROUND)
            near = np.concatenate([order[first[i] : first[i] + count[i]] for i in cell[cell >= 0]])
            crowds[middle] = near[np.abs(pixel[near] - centre) <= RADIUS_PX]
    return [c for c in crowds.values() if len(c) >= need]


def _index_of(cells: I64, wanted: I64) -> I64:
    """Where the wanted cells are among the sorted ones; -1: nowhere."""
    at = np.minimum(np.searchsorted(cells, wanted), len(cells) - 1)
    return np.asarray(np.where(cells[at] == wanted, at, -1))


def _points(pixel: C128) -> F64:
    return np.stack([pixel.real, pixel.imag], axis=1)
