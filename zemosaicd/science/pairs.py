"""The pair vote: which rotation, scale and shift lay a catalogue over a list of detections, and by what odds.

Knows points in two planes, as complex numbers, and nothing of the sky. A pair of detections and a pair of catalogue
points of the same length make a hypothesis; the catalogue is laid over the frame by it and counted against a bitmap
of detections; it is accepted by the expected number of chance hits as good. Recipe, constants and measured odds:
`experiments-astrometry.md` sections 2 and 7.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Complex = NDArray[np.complex128]
Float64 = NDArray[np.float64]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Frame = tuple[Int16, float, float, float, float, float]
"""owners, cells a px, width, height, log odds of a hit and of a miss: a Field as the kernels take it."""
Laid = tuple[float, float, float, float, float]
"""a, b, x0, y0, flip: one hypothesis (see `_lay`)."""
Found = tuple[Laid, float, int, int]
"""hypothesis, log_false_alarm, hits, tried: the best so far."""

ACCEPT_LOG = math.log(1e-6)
PROBABLE_LOG = math.log(1e-3)
BUDGET = 300_000
MADE_BUDGET = 30 * BUDGET
"""Hypotheses made in a rung, those included that leave the search radius and are dropped untested."""
VOTERS = 60
PAIR_DETECTIONS = 30
SHORTEST_PAIR = 0.15
"""Shortest detection pair, in frame diagonals."""
HIT_PRIOR = 0.4
ABANDON_LOG = -5.0
FEWEST_HITS = 3
LENGTH_BINS = 4096
SMALLEST_CHANCE = 1e-4
LARGEST_CHANCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Field:
    """Detections of one frame, made ready to be voted on. Positions are px from the frame's centre, x + iy.

    `owners` (rows, columns) int16, cells of `cell_px`: the brightest detection within the match radius of the cell's
    centre, counted from 1, or 0; `chance`: share of cells that have one.
    """

    detections: Complex
    width: int
    height: int
    owners: Int16
    cell_px: float
    chance: float

    @property
    def diagonal_px(self) -> float:
        """Length of the frame's diagonal."""
        return math.hypot(self.width, self.height)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """The best hypothesis: px = turn * c + shift, with c conjugated first if `mirrored`.

    `log_false_alarm` is the log of the expected number of false alarms, +inf where nothing reached three hits;
    `hits` of `tried` catalogue points inside the frame lie on a detection; `tested` counts the hypotheses so far.
    """

    turn: complex
    shift: complex
    mirrored: bool
    log_false_alarm: float
    hits: int
    tried: int
    tested: int


def make_field(x: Float64, y: Float64, width: int, height: int) -> Field:
    """The voting field of a frame from its detections (0-based px, brightest first; the first 60 count)."""
    diagonal = math.hypot(width, height)
    radius = max(3.0, 0.0025 * diagonal)
    points = (x[:VOTERS] - 0.5 * (width - 1)) + 1j * (y[:VOTERS] - 0.5 * (height - 1))
    detections = np.ascontiguousarray(points, np.complex128)
    owners = _owners(detections, width, height, radius)
    chance = min(LARGEST_CHANCE, max(SMALLEST_CHANCE, np.count_nonzero(owners) / owners.size))
    return Field(
        detections=detections, width=width, height=height, owners=owners, cell_px=0.5 * radius, chance=chance
    )  # fmt: skip


def vote(field: Field, catalogue: Complex, pair_stars: int, tolerance: float, reach_px: float, tested: int = 0) -> Vote:
    """The first hypothesis below 1e-6 expected false alarms, else the best of 300,000.

    `catalogue` complex (n,), bright first, in px of the expected scale about the expected place of the frame's
    centre; its first `pair_stars` make pairs, all of it is tested. Scales within 1 +- `tolerance`, both parities, any
    rotation; the frame's centre must land within `reach_px`. `tested` hypotheses went before and count in the odds.
    A detection counts once, and the two that made the hypothesis not at all.
    """
    shortest = SHORTEST_PAIR * field.diagonal_px / (1.0 + tolerance)
    longest = field.diagonal_px / (1.0 - tolerance)
    points = np.ascontiguousarray(np.stack([catalogue.real, catalogue.imag], axis=1))
    pairs, bins = _sorted_pairs(points, min(pair_stars, len(points)), shortest, longest)
    gain, loss = math.log(HIT_PRIOR / field.chance), math.log((1.0 - HIT_PRIOR) / (1.0 - field.chance))
    frame = (field.owners, 1.0 / field.cell_px, float(field.width), float(field.height), gain, loss)
    limits = (tolerance, reach_px, longest)
    best, count = _search(frame, field.chance, field.detections, points, pairs, bins, shortest, limits, tested)
    (a, b, x, y, flip), log_false_alarm, hits, tried = best
    return Vote(
        turn=complex(a, b), shift=complex(x, y), mirrored=flip < 0.0, log_false_alarm=float(log_false_alarm),
        hits=int(hits), tried=int(tried), tested=int(count),
    )  # fmt: skip


def count_hits(field: Field, points: Complex) -> tuple[int, int]:
    """(hits, tried): how many detections have one of the points (px from the centre, x + iy), of those in the frame."""
    x, y = points.real + 0.5 * field.width, points.imag + 0.5 * field.height
    inside = (x >= 0.0) & (y >= 0.0) & (x < field.width) & (y < field.height)
    owners = field.owners[(y[inside] / field.cell_px).astype(int), (x[inside] / field.cell_px).astype(int)]
    return len(np.unique(owners[owners > 0])), len(owners)


@njit(cache=True, nogil=True)
def log_tail(hits: int, tried: int, chance: float) -> float:
    """ln P(X >= hits), X ~ Binomial(tried, chance), 0 < chance < 1."""
    if hits <= 0:
        return 0.0
    if hits > tried:
        return -np.inf
    first = math.lgamma(tried + 1.0) - math.lgamma(hits + 1.0) - math.lgamma(tried - hits + 1.0)
    first += hits * math.log(chance) + (tried - hits) * math.log1p(-chance)
    odds = chance / (1.0 - chance)
    term = total = 1.0
    for k in range(hits, tried):
        term *= (tried - k) / (k + 1.0) * odds
        total += term
        if term < 1e-12 * total:
            break
    return min(0.0, first + math.log(total))


@njit(cache=True, nogil=True)
def _owners(detections: Complex, width: int, height: int, radius: float) -> Int16:
    """Cells of radius / 2: the first detection within `radius` of the cell's centre, from 1; 0 for none."""
    cell = 0.5 * radius
    owners = np.zeros((math.ceil(height / cell), math.ceil(width / cell)), np.int16)
    for d in range(len(detections)):
        cx, cy = (detections[d].real + 0.5 * width) / cell, (detections[d].imag + 0.5 * height) / cell
        for j in range(max(0, int(cy) - 3), min(owners.shape[0], int(cy) + 4)):
            for i in range(max(0, int(cx) - 3), min(owners.shape[1], int(cx) + 4)):
                if owners[j, i] == 0 and (i + 0.5 - cx) ** 2 + (j + 0.5 - cy) ** 2 <= 4.0:
                    owners[j, i] = d + 1
    return owners


@njit(cache=True, nogil=True)
def _length_bin(length: float, shortest: float, longest: float) -> int:
    """Which of the length bins a pair falls in."""
    return min(LENGTH_BINS - 1, max(0, int((length - shortest) / (longest - shortest) * LENGTH_BINS)))


@njit(cache=True, nogil=True)
def _sorted_pairs(points: Float64, count: int, shortest: float, longest: float) -> tuple[Int32, NDArray[np.int64]]:
    """Pairs (n, 2) of the first `count` points with a usable length, by length bin; first pair of every bin."""
    bin_of = np.empty(count * (count - 1) // 2, np.int16)
    bins = np.zeros(LENGTH_BINS + 1, np.int64)
    n = 0
    for k in range(count):
        for m in range(k + 1, count):
            r2 = (points[m, 0] - points[k, 0]) ** 2 + (points[m, 1] - points[k, 1]) ** 2
            bin_of[n] = -1
            if shortest * shortest <= r2 <= longest * longest:
                bin_of[n] = _length_bin(math.sqrt(r2), shortest, longest)
                bins[bin_of[n] + 1] += 1
            n += 1
    bins = np.cumsum(bins)
    pairs = np.empty((bins[-1], 2), np.int32)
    place = bins[:-1].copy()
    n = 0
    for k in range(count):
        for m in range(k + 1, count):
            b = bin_of[n]
            n += 1
            if b >= 0:
                pairs[place[b], 0], pairs[place[b], 1] = k, m
                place[b] += 1
    return pairs, bins


@njit(cache=True, nogil=True)
def _neighbours(points: Float64, k: int, reach: float, near: Int32) -> int:
    """Fill `near` with the points within `reach` of point k, bright first; how many."""
    n = 0
    for m in range(len(points)):
        r2 = (points[m, 0] - points[k, 0]) ** 2 + (points[m, 1] - points[k, 1]) ** 2
        if m != k and r2 <= reach * reach:
            near[n] = m
            n += 1
    return n


@njit(cache=True, nogil=True)
def _walk(frame: Frame, points: Float64, near: Int32, partner: int, laid: Laid, seen: Int32) -> tuple[int, int]:
    """(hits, tried) of the neighbours under a hypothesis, bright first; (0, 0) once the odds fall below the limit.

    seen[0] numbers the walk; seen[d] equal to it: detection d has been hit (or made the hypothesis) and counts no
    more, nor does the point: close catalogue pairs would count one detection twice.
    """
    owners, per_px, width, height, gain, loss = frame
    a, b, x0, y0, flip = laid
    x0, y0 = x0 + 0.5 * width, y0 + 0.5 * height
    odds = 0.0
    hits = tried = 0
    for m in near:
        u, v = points[m, 0], flip * points[m, 1]
        x, y = a * u - b * v + x0, a * v + b * u + y0
        if not (0.0 <= x < width and 0.0 <= y < height) or m == partner:
            continue
        owner = owners[int(y * per_px), int(x * per_px)]
        if owner == 0:
            tried += 1
            odds += loss
            if odds < ABANDON_LOG:
                return 0, 0
        elif seen[owner] != seen[0]:
            seen[owner] = seen[0]
            tried += 1
            hits += 1
            odds += gain
    return hits, tried


@njit(cache=True, nogil=True)
def _lay(points: Float64, k: int, m: int, flip: float, start: complex, step: complex) -> Laid:
    """The hypothesis that lays catalogue pair k, m on a detection pair: x + iy = (a + ib)(u + i flip v) + x0 + iy0."""
    u, v = points[k, 0], flip * points[k, 1]
    du, dv = points[m, 0] - u, flip * points[m, 1] - v
    r2 = du * du + dv * dv
    a, b = (step.real * du + step.imag * dv) / r2, (step.imag * du - step.real * dv) / r2
    return a, b, start.real - (a * u - b * v), start.imag - (a * v + b * u), flip


@njit(cache=True, nogil=True)
def _search_pair(
    frame: Frame, chance: float, detections: Complex, i: int, j: int, points: Float64, pairs: Int32,
    limits: tuple[float, float, float], near: Int32, counts: Int32, best: Found, budget: tuple[int, int, int],
) -> tuple[Found, int, int]:  # fmt: skip
    """All hypotheses of detection pair i, j, 2 orientations x 2 parities: (best so far, tested, made)."""
    start, step = detections[i], detections[j] - detections[i]
    seen = np.zeros(len(detections) + 1, np.int32)
    tolerance, reach, longest = limits
    tested, made, last = budget
    low, high = (1.0 - tolerance) ** 2, (1.0 + tolerance) ** 2
    for q in range(4 * len(pairs)):
        k, m = pairs[q // 4, q % 2], pairs[q // 4, 1 - q % 2]
        laid = _lay(points, k, m, 1.0 if q % 4 < 2 else -1.0, start, step)
        made += 1
        turn2, shift2 = laid[0] ** 2 + laid[1] ** 2, laid[2] ** 2 + laid[3] ** 2
        if not low <= turn2 <= high or shift2 > reach * reach * turn2:
            continue
        tested += 1
        if counts[k] < 0:
            counts[k] = _neighbours(points, k, longest, near[k])
        seen[0] += 1
        seen[i + 1] = seen[j + 1] = seen[0]
        hits, tried = _walk(frame, points, near[k, : counts[k]], m, laid, seen)
        if hits >= FEWEST_HITS:
            odds = math.log(tested + 1.0) + log_tail(hits, tried, chance)
            if odds < best[1]:
                best = (laid, odds, hits, tried)
        if best[1] < ACCEPT_LOG or tested >= last or made >= MADE_BUDGET:
            break
    return best, tested, made


@njit(cache=True, nogil=True)
def _search(
    frame: Frame, chance: float, detections: Complex, points: Float64, pairs: Int32, bins: NDArray[np.int64],
    shortest: float, limits: tuple[float, float, float], tested: int,
) -> tuple[Found, int]:  # fmt: skip
    """Detection pairs in order of rank sum against catalogue pairs of the same length: (best, hypotheses tested)."""
    tolerance, longest = limits[0], limits[2]
    near = np.empty((int(pairs.max()) + 1 if len(pairs) else 0, len(points)), np.int32)
    counts = np.full(len(near), -1, np.int32)
    n = min(PAIR_DETECTIONS, len(detections))
    last, made = tested + BUDGET, 0
    best = ((0.0, 0.0, 0.0, 0.0, 1.0), np.inf, 0, 0)
    for rank_sum in range(1, 2 * n - 2):
        for i in range(max(0, rank_sum - n + 1), (rank_sum + 1) // 2):
            length = abs(detections[rank_sum - i] - detections[i])
            if length < shortest * (1.0 + tolerance):
                continue
            begin = bins[_length_bin(length / (1.0 + tolerance), shortest, longest)]
            end = bins[_length_bin(length / (1.0 - tolerance), shortest, longest) + 1]
            best, tested, made = _search_pair(
                frame, chance, detections, i, rank_sum - i, points, pairs[begin:end], limits, near, counts, best,
                (tested, made, last),
            )  # fmt: skip
            if best[1] < ACCEPT_LOG or tested >= last or made >= MADE_BUDGET:
                return best, tested
    return best, tested
