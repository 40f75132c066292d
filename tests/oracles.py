"""Slow, plain-numpy definitions that the compiled kernels are held against. Loops and float64; small arrays only."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zemosaicd.science.frame import Colour, colour_offsets

Array = NDArray[np.float64]


def keys(a: float, t: float) -> float:
    """Keys' cubic convolution kernel at distance t (Keys 1981)."""
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def rounded(position: float, unit: int) -> float:
    """A position in px, rounded to 1/unit px as the kernels do."""
    return math.floor(position * unit + 0.5) / unit


def cubic_taps(f: float) -> dict[int, float]:
    """Weights of Catmull-Rom's taps at -1 to 2 for a position f between 0 and 1."""
    return {i: keys(-0.5, f - i) for i in range(-1, 3)}


def lanczos3(f: float) -> dict[int, float]:
    """Weights of the taps at -2 to 3, of sum 1."""
    weights = {i: float(np.sinc(f - i) * np.sinc((f - i) / 3)) if abs(f - i) < 3 else 0.0 for i in range(-2, 4)}
    return {i: w / sum(weights.values()) for i, w in weights.items()}


def kriging(fwhm: float, curvature: float) -> Callable[[float], dict[int, float]]:
    """Weights of the taps at -2 to 3: of all that keep the trend, those of least expected squared error."""
    variance = 2 * (fwhm / 2.354820045) ** 2

    def weights(f: float) -> dict[int, float]:
        d = np.arange(-2.0, 4.0) - f
        trend = np.stack([d**0, d, d**2, d**3])
        start = np.linalg.lstsq(trend, np.array([1.0, 0.0, curvature, 0.0]), rcond=None)[0]
        _, _, v = np.linalg.svd(trend)
        free = v[4:].T
        covariance = np.exp(-((d[:, None] - d) ** 2) / (2 * variance)) + 1e-3 * np.eye(6)
        pull = free.T @ (np.exp(-(d**2) / (2 * variance)) - covariance @ start)
        best = start + free @ np.linalg.solve(free.T @ covariance @ free, pull)
        return dict(zip(range(-2, 4), best.tolist(), strict=True))

    return weights


def lattice_value(
    at: dict[tuple[int, int], float], u: float, v: float, taps: Callable[[float], dict[int, float]]
) -> float:
    """Weighted sum at (u, v) on a lattice of values by integer site."""
    iu, iv = math.floor(u), math.floor(v)
    along_u, along_v = taps(u - iu), taps(v - iv)
    return sum(a * b * at[(iu + i, iv + j)] for i, a in along_u.items() for j, b in along_v.items())


TAPS = {
    "kriging": (kriging(1.45, -0.05), kriging(2.05, 0.0), kriging(2.9, 0.0)),
    "lanczos3": (lanczos3, lanczos3, lanczos3),
    "catmull_rom": (cubic_taps, cubic_taps, cubic_taps),
}
"""Of each kernel: red and blue, green, whole pixels."""


def demosaic_at(cfa: Array, bayer: str, x: float, y: float, kernel: str) -> tuple[float, float, float]:
    """(R, G, B) at source position (x, y): each colour from its own photosites, green on its quincunx."""
    sites: dict[str, dict[tuple[int, int], float]] = {"R": {}, "G": {}, "B": {}}
    first = {bayer[k]: (k % 2, k // 2) for k in range(4)}
    odd = (first["R"][0] + first["R"][1] + 1) % 2
    for row in range(cfa.shape[0]):
        for column in range(cfa.shape[1]):
            colour = bayer[2 * (row % 2) + column % 2]
            quincunx = (column + odd + row) // 2, (column + odd - row) // 2
            site = quincunx if colour == "G" else (column // 2, row // 2)
            sites[colour][site] = float(cfa[row, column])
    (rx, ry), (bx, by), x, y = first["R"], first["B"], rounded(x, 512), rounded(y, 512)
    inside = 6 <= x <= cfa.shape[1] - 7 and 6 <= y <= cfa.shape[0] - 7
    square, quincunx_taps, _ = TAPS[kernel if inside else "catmull_rom"]
    return (
        lattice_value(sites["R"], (x - rx) / 2, (y - ry) / 2, square),
        lattice_value(sites["G"], (x + odd + y) / 2, (x + odd - y) / 2, quincunx_taps),
        lattice_value(sites["B"], (x - bx) / 2, (y - by) / 2, square),
    )


def pixel_at(plane: Array, x: float, y: float, kernel: str) -> float:
    """Value of a mono plane at (x, y)."""
    at = {(c, r): float(plane[r, c]) for r in range(plane.shape[0]) for c in range(plane.shape[1])}
    x, y = rounded(x, 1024), rounded(y, 1024)
    inside = 2 <= x < plane.shape[1] - 3 and 2 <= y < plane.shape[0] - 3
    return lattice_value(at, x, y, TAPS[kernel if inside else "catmull_rom"][2])


def nan_median(values: Array) -> Array:
    """Median over the first axis, NaN left out, NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=0)


def kappa_sigma(values: Array, k_low: float, k_high: float) -> NDArray[np.bool_]:
    """SPEC M6, sample by sample: True where kept; values (n, ...), NaN where there is no sample."""
    there = ~np.isnan(values)
    found = np.maximum(there.sum(axis=0), 1)
    mean, square = np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    for v in values:
        mean += np.where(np.isnan(v), 0.0, v)
    mean /= found
    for v in values:
        square += np.where(np.isnan(v), 0.0, (v - mean) ** 2)
    std, median = np.sqrt(square / found), nan_median(values)
    return there & (values >= median - k_low * std) & (values <= median + k_high * std)


def auto_kept(
    values: Array, variance: Array, photon: Array, pedestal: Array, *, k: float, c: float, gain: float, least: int
) -> NDArray[np.bool_]:
    """The default rule, whole image at once: True where kept; values (n, H, W, C), NaN where there is no sample."""
    there = ~np.isnan(values)
    judged = there.sum(axis=0) >= 3
    m = nan_median(values).astype(np.float32).astype(np.float64)
    floor = (c * k * gradient_of(m)) ** 2
    lower = np.sort(values, axis=0)
    lower = np.take_along_axis(lower, np.maximum(there.sum(axis=0) - 1, 0)[np.newaxis] // 2, axis=0)[0]

    def within(centre: Array) -> NDArray[np.bool_]:
        signal = np.maximum(centre - pedestal, 0.0)
        limit = gain * k * k * (variance[:, None, None, :] + photon[:, None, None, :] * signal) + floor
        return there & ((values - centre) ** 2 <= limit)

    kept = within(m)
    kept |= within(lower) & ~kept.any(axis=0)
    kept |= there & ~judged
    grown = grown_from((there & ~kept).sum(axis=-1), least)[..., np.newaxis] & kept & judged
    after = kept & ~grown
    emptied = ~after.any(axis=0).all(axis=-1, keepdims=True)  # of a pixel without samples in one channel, all is kept
    return after | (grown & emptied)


def gradient_of(m: Array) -> Array:
    """Half of max - min over 3x3 pixels, cut at the image's edge, NaN left out; m (H, W, C)."""
    padded = np.pad(m, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    around = np.stack(
        [padded[1 + j : 1 + j + m.shape[0], 1 + i : 1 + i + m.shape[1]] for j in (-1, 0, 1) for i in (-1, 0, 1)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        high, low = np.nanmax(around, axis=0).astype(np.float32), np.nanmin(around, axis=0).astype(np.float32)
    return (np.float32(0.5) * (high - low)).astype(np.float64)


def grown_from(hits: NDArray[np.int64], least: int) -> NDArray[np.bool_]:
    """(n, H, W) rejected samples a pixel -> where a 5x5 box with `least` of them, widened by 1 px, reaches."""
    n, height, width = hits.shape
    grown = np.zeros(hits.shape, bool)
    for i in range(n):
        for y in range(height):
            for x in range(width):
                box = hits[i, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
                if box.sum() >= least:
                    grown[i, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
    return grown


def colour_mask(bayer: str, colour: Colour, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool: True where the photosite has that colour."""
    mask = np.zeros(shape, bool)
    for row, column in colour_offsets(bayer, colour):
        mask[row::2, column::2] = True
    return mask


# --- detection ----------------------------------------------------------------------------------------------------


def smoothed(clean: Array) -> Array:
    """The plane through [1 2 1] / 4 both ways, 0 beyond the border."""
    padded = np.pad(np.asarray(clean, np.float64), 1)
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16


def sources(clean: Array, noise: float, threshold: float, area: int, rise: float, share: float) -> Array:
    """(n, 7) sources of a plane of uniform noise: x, y, flux, area, major, minor, area above half the peak.

    Pixel by pixel: each above the threshold climbs from neighbour to highest neighbour; then, from the highest pass
    between two summits down, a summit that does not rise `rise` sigma and `share` of the pass above it goes with the
    other. Sorted by flux.
    """
    plane = smoothed(clean)
    above = {(int(y), int(x)) for y, x in zip(*np.nonzero(plane > threshold * noise), strict=True)}

    def around(at: tuple[int, int]) -> list[tuple[int, int]]:
        return [(at[0] + j, at[1] + i) for j in (-1, 0, 1) for i in (-1, 0, 1) if (at[0] + j, at[1] + i) in above]

    def summit(at: tuple[int, int]) -> tuple[int, int]:
        higher = max(around(at), key=lambda p: (plane[p], -p[0], -p[1]))
        return at if higher == at else summit(higher)

    home = {at: summit(at) for at in above}
    passes = sorted(
        ((min(plane[a], plane[b]), a, b) for a in above for b in around(a) if a < b and home[a] != home[b]),
        key=lambda p: -p[0],
    )
    for level, a, b in passes:
        low, high = sorted((home[a], home[b]), key=lambda p: plane[p])
        if plane[low] - level < max(rise * noise, share * level):
            home = {at: high if top == low else top for at, top in home.items()}
    found = []
    for top in sorted(set(home.values())):
        own = np.array([at for at, mine in home.items() if mine == top])
        if len(own) >= area:
            found.append(_described(plane, own, 0.5 * plane[top]))
    return np.array(sorted(found, key=lambda row: -row[2])).reshape(-1, 7)


def _described(plane: Array, own: NDArray[np.int64], half: float) -> list[float]:
    values = plane[own[:, 0], own[:, 1]]
    core, light = own[values >= half], values[values >= half]
    y, x = np.average(core, axis=0, weights=light)
    spread = np.cov(core.T, aweights=light, ddof=0) if len(core) > 1 else np.zeros((2, 2))
    minor, major = np.sqrt(np.linalg.eigvalsh(spread) + 1 / 12)
    return [x, y, values.sum(), len(own), major, minor, len(core)]


def lanczos(t: float) -> float:
    """Lanczos-3 at distance t."""
    return float(np.sinc(t) * np.sinc(t / 3)) if abs(t) < 3 else 0.0


def catmull_rom(t: float) -> float:
    """Keys' kernel with a = -0.5."""
    return keys(-0.5, t)


def kernel_at(plane: NDArray[np.float32], x: float, y: float, kernel: Callable[[float], float]) -> float:
    """A plane's value at (x, y): 6x6 pixels weighted by a separable kernel, the weights of each axis of sum 1."""
    ix, iy = math.floor(x), math.floor(y)
    across = [kernel(x - ix - i) for i in range(-2, 4)]
    down = [kernel(y - iy - j) for j in range(-2, 4)]
    total = sum(down[j] * across[i] * float(plane[iy + j - 2, ix + i - 2]) for j in range(6) for i in range(6))
    return total / (sum(across) * sum(down))
