"""The neighbour rung: frames that no catalogue could solve are tied to frames that are solved, by star lists.

`astroalign.find_transform` (Beroiz et al. 2020) on our own star lists proposes; it shuffles with a generator that
cannot be seeded, so its answer is only a start: all stars are matched again and fitted until the set of pairs stands
still, which takes every good start to the same transform. A tie counts only if its pairs cannot be chance: ln of the
expected false alarms below ln 1e-6, the odds of the built-in solver (experiments-astrometry, words and 7.2).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import Reason, Solution, Wcs
from zemosaicd.science.matching import one_to_one
from zemosaicd.science.merging import FrameStars
from zemosaicd.science.pairs import log_tail
from zemosaicd.science.stars import StarList

F64 = NDArray[np.float64]
C128 = NDArray[np.complex128]

POINTS = 30
TEST_STARS = 60
ATTEMPTS = 3
TRIED_NEIGHBOURS = 4
MOST_TRIES = 8
"""Neighbours tried in all for one frame; a rich list that fits nowhere costs up to half a second a try."""
MATCH_PX = 3.0
SCALE_TOLERANCE = 0.05
HYPOTHESES = 1e4
LOG_FALSE_ALARM_LIMIT = math.log(1e-6)
MIN_POINTS = 4
ROUNDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """Pixels of one frame to pixels of another: `q = shift + turn * p` with p = x + iy. `rms_px`: 2-D."""

    turn: complex
    shift: complex
    matches: int
    log_false_alarm: float
    rms_px: float


def tie(source: FrameStars, target: FrameStars) -> Tie | Reason:
    """The similarity from `source` pixels to `target` pixels, or why there is none.

    Frames of one camera must agree in scale within 5 %. Mirrored pairs cannot be tied.
    """
    few = min(len(source.stars.x), len(target.stars.x))
    if few < MIN_POINTS:
        return Reason(rule="tie.min_stars", value=few, threshold=MIN_POINTS, message="too few stars to tie frames")
    best: Tie | None = None
    for _ in range(ATTEMPTS):
        found = _proposal(source.stars, target.stars)
        if found is None:
            break
        refined = _refined(source, target, *found)
        if refined is not None and (best is None or refined.log_false_alarm < best.log_false_alarm):
            best = refined
        if best is not None and best.log_false_alarm < LOG_FALSE_ALARM_LIMIT:
            break
    if best is None:
        return Reason(rule="tie.no_transform", message="no common pattern of stars with this neighbour")
    if best.log_false_alarm >= LOG_FALSE_ALARM_LIMIT:
        return Reason(
            rule="tie.log_false_alarm", value=best.log_false_alarm, threshold=LOG_FALSE_ALARM_LIMIT,
            message="the stars in common with this neighbour may be chance",
        )  # fmt: skip
    if source.camera == target.camera and abs(abs(best.turn) - 1) > SCALE_TOLERANCE:
        return Reason(
            rule="tie.scale", value=abs(best.turn), threshold=SCALE_TOLERANCE, message="same camera, different scale"
        )
    return best


def tie_session(
    frames: Sequence[FrameStars], *, pointing_deg: tuple[float, float] | None = None, scale_arcsec: float = 0.0
) -> tuple[Solution | Reason | None, ...]:
    """Solutions for the frames of a session that have none, in canonical order (SPEC phase 1, neighbour rung).

    None for frames that are solved already. If no frame is solved, the one with most stars is placed at
    `pointing_deg` (None: ra = dec = 0) with `scale_arcsec` (0: 1 arcsec a pixel), +y north, unmirrored, under the
    solver name "pointing" (all that hangs on it is right among itself only); the others are tied to it. Frames tied
    in one pass are neighbours for the next.
    """
    placed: dict[int, Wcs] = {i: f.wcs for i, f in enumerate(frames) if f.wcs is not None}
    result: list[Solution | Reason | None] = [None] * len(frames)
    solver = "neighbour"
    if not placed and frames:
        reference = max(range(len(frames)), key=lambda i: (len(frames[i].stars.x), -i))
        first = _placed_by_pointing(frames[reference], pointing_deg, scale_arcsec)
        if isinstance(first, Reason):
            return tuple(first for _ in frames)
        placed[reference], result[reference], solver = first.wcs, first, "pointing"
    open_frames = [i for i in range(len(frames)) if i not in placed]
    tried: set[tuple[int, int]] = set()
    while open_frames:
        fresh: dict[int, Wcs] = {}
        for i in open_frames:
            found = _tie_to_any(frames, i, placed, tried, solver)
            if isinstance(found, Solution):
                fresh[i] = found.wcs
            result[i] = found or result[i]
        if not fresh:
            break
        placed.update(fresh)
        open_frames = [i for i in open_frames if i not in fresh]
    return tuple(result)


def _tie_to_any(
    frames: Sequence[FrameStars], i: int, placed: dict[int, Wcs], tried: set[tuple[int, int]], solver: str
) -> Solution | Reason | None:
    """Try the nearest solved frames in canonical order and the richest one; None if all were tried before."""
    near = sorted(placed, key=lambda k: (abs(k - i), k))[: TRIED_NEIGHBOURS - 1]
    rich = max(placed, key=lambda k: (len(frames[k].stars.x), -k))
    reason: Reason | None = None
    for k in dict.fromkeys([*near, rich]):
        if (i, k) in tried or sum(f == i for f, _ in tried) >= MOST_TRIES:
            continue
        tried.add((i, k))
        found = tie(frames[i], frames[k])
        if isinstance(found, Tie):
            wcs = transferred(placed[k], found, frames[i].width, frames[i].height)
            return Solution(
                wcs=wcs, solver=solver, matches=found.matches, log_false_alarm=found.log_false_alarm,
                rms_arcsec=found.rms_px * sphere.scale_arcsec(placed[k]),
            )  # fmt: skip
        reason = reason or found
    return reason


def transferred(target: Wcs, tie: Tie, width: int, height: int) -> Wcs:
    """The solution of a frame whose pixels map to those of `target` by `tie`, tangent at the frame's own centre."""
    a, b = tie.turn.real, tie.turn.imag
    map_: sphere.Matrix = (a, -b, tie.shift.real, b, a, tie.shift.imag, 0.0, 0.0, 1.0)
    m = sphere.multiply(sphere.sky_matrix(target), map_)
    x, y = (width - 1) / 2, (height - 1) / 2
    v = sphere.apply(m, x, y)
    ra, dec = sphere.position(v)
    east, north, _ = sphere.tangent_basis(ra, dec)
    norm = math.hypot(*v)
    cd = [
        math.degrees(sum(axis[r] * m[3 * r + column] for r in range(3)) / norm)
        for axis in (east, north)
        for column in (0, 1)
    ]
    return Wcs(ra_deg=ra, dec_deg=dec, x_px=x, y_px=y, cd=(cd[0], cd[1], cd[2], cd[3]))


def _placed_by_pointing(
    frame: FrameStars, pointing_deg: tuple[float, float] | None, scale_arcsec: float
) -> Solution | Reason:
    count = len(frame.stars.x)
    if count < MIN_POINTS:
        return Reason(
            rule="tie.min_stars", value=count, threshold=MIN_POINTS, message="no frame of the session has enough stars"
        )
    ra, dec = pointing_deg or (0.0, 0.0)
    s = (scale_arcsec or 1.0) / 3600.0
    # Unmirrored in file rows, as every real camera but one was found to be (experiments-astrometry section 2).
    wcs = Wcs(ra_deg=ra, dec_deg=dec, x_px=(frame.width - 1) / 2, y_px=(frame.height - 1) / 2, cd=(s, 0.0, 0.0, s))
    return Solution(wcs=wcs, solver="pointing", matches=0, log_false_alarm=0.0, rms_arcsec=math.nan)


def _proposal(source: StarList, target: StarList) -> tuple[complex, complex] | None:
    """astroalign's transform of the brightest points as (turn, shift), or None."""
    import astroalign  # a third of a second with what it imports, and few nights have a frame that needs it

    points = [np.stack([s.x[:POINTS], s.y[:POINTS]], axis=1) for s in (source, target)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # degenerate triangles divide by zero inside
            transform, _ = astroalign.find_transform(points[0], points[1], max_control_points=POINTS)
    except (astroalign.MaxIterError, ValueError, TypeError, IndexError, np.linalg.LinAlgError):
        return None
    p = np.asarray(transform.params, np.float64)
    turn, shift = complex(p[0, 0], p[1, 0]), complex(p[0, 2], p[1, 2])
    return (turn, shift) if math.isfinite(abs(turn)) and abs(turn) > 1e-6 else None


def _points(p: C128) -> F64:
    return np.stack([p.real, p.imag], axis=1)


def _fit(p: C128, q: C128) -> tuple[complex, complex]:
    """Least-squares similarity, with points more than 3 robust sigma off left out once."""
    keep = np.ones(len(p), bool)
    turn, shift = 1 + 0j, 0j
    for _ in range(2):
        a, b = p[keep] - p[keep].mean(), q[keep] - q[keep].mean()
        turn = complex((np.conj(a) * b).sum() / (np.abs(a) ** 2).sum())
        shift = complex(q[keep].mean() - turn * p[keep].mean())
        off = np.abs(q - shift - turn * p)
        keep = off <= max(3 * float(np.median(off)), 0.05)
    return turn, shift


def _refined(source: FrameStars, target: FrameStars, turn: complex, shift: complex) -> Tie | None:
    """Match all stars and fit, until the pairs stand still; None if fewer than 4 remain."""
    p, q = (f.stars.x.astype(np.float64) + 1j * f.stars.y for f in (source, target))
    last: tuple[NDArray[np.int64], ...] | None = None
    for step in range(ROUNDS):
        radius = MATCH_PX * (2.0 if step == 0 else 1.0)
        pairs = one_to_one(_points(shift + turn * p), _points(q), radius)[:2]
        if len(pairs[0]) < MIN_POINTS:
            return None
        turn, shift = _fit(p[pairs[0]], q[pairs[1]])
        if step and last is not None and all(np.array_equal(a, b) for a, b in zip(pairs, last, strict=True)):
            break
        last = pairs
    off = np.abs(q[pairs[1]] - shift - turn * p[pairs[0]])
    made = Tie(turn=turn, shift=shift, matches=len(off), log_false_alarm=0.0, rms_px=math.sqrt(float((off**2).mean())))
    return replace(made, log_false_alarm=_log_false_alarm(p, q, made, target))


def _log_false_alarm(p: C128, q: C128, made: Tie, target: FrameStars) -> float:
    """ln of the expected number of chance agreements as good as this one; three stars made the hypothesis."""
    moved = made.shift + made.turn * p[:TEST_STARS]
    inside = (moved.real > 0) & (moved.real < target.width) & (moved.imag > 0) & (moved.imag < target.height)
    tested = moved[inside]
    if len(tested) <= 3:
        return 0.0
    hits = len(one_to_one(_points(tested), _points(q), MATCH_PX)[0])
    share = min(0.5, len(q) * math.pi * MATCH_PX**2 / (target.width * target.height))
    return math.log(HYPOTHESES) + log_tail(hits - 3, len(tested) - 3, share)
