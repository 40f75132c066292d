"""Master tiles of the same sky -> one super tile: levelled samples of known noise, judged and averaged by pixels.

A window is samples float32 (n, C, R, W), NaN where a tile has no data, with their inverse variances, ADU^-2, of the
same shape, and the tiles' alpha (n, R, W). Where three tiles or more see a pixel, a sample v_i is held against the
median m of all of them and rejected where

    (v_i - m)^2 > k^2 (K (variance_i + variance_m) + (c g)^2)

with g, half of max - min of m over 3x3 pixels (science.combine: it protects star cores, where tiles differ by their
seeing), variance_m = pi / (2 n) times that of the sample in the middle (exact for equal ones), k = 3.5, c = 0.5 and
K = 1.4: WEIGHT tells the noise of samples before they are interpolated, and kriging makes 1.2 times of it. A trail that
a tile of several frames has thinned out lies below that limit pixel by pixel; so means over 5x5 pixels of a tile, less
what was rejected already, are held against their own noise too (again 3.5 sigma, three pixels counting as one: in the
red and blue of Bayer frames neighbours share their samples). WEIGHT is the noise of the sky; where frames tell how much
light adds to it (science.outliers), variances grow with m. What is rejected grows as in science.combine, and no pixel
is ever emptied: of two camps of equal size the lower is kept. What stays is averaged with inverse variance times alpha;
below three tiles nothing can be judged, and all is averaged. Alpha weighs and takes no part in the judgement. Every
pixel is the same whatever window it is made in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from zemosaicd.science import rejection
from zemosaicd.science.combine import GROW_LEAST, HALO, halo_of
from zemosaicd.science.medians import GROWN, UNSEEN, Codes, Counts, Numbers, Pixels
from zemosaicd.science.outliers import Judgement
from zemosaicd.science.rejection import MIN_JUDGED, Flags

__all__ = ["HALO", "SuperBand", "halo_of", "merge"]

K_SIGMA, GRADIENT, NOISE_GAIN = 3.5, 0.5, 1.4
MEDIAN_VARIANCE = np.pi / 2.0
NOISE_RANGE = 2.5
"""Half the range of 3x3 pixels of noise, squared, in variances: so much of a gradient says nothing."""
FAINT_SIGMA, FAINT_REACH, FAINT_LEAST, PIXELS_A_SAMPLE = 3.5, 2, 13, 3.0
"""The second test: its limit, half the box's side less a half, the fewest samples in it, and pixels that are as one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SuperBand:
    """The window's own rows. `picture` float32 (C, R, W), NaN where no tile has data; `weight` (C, R, W) its inverse
    variance, 0 there; `alpha` (R, W) the largest of the tiles'. `kept`, `rejected` bool (n, R, W): of each tile,
    whether its sample is in all channels, and whether it was rejected in any."""

    picture: Pixels
    weight: Pixels
    alpha: Pixels
    kept: Flags
    rejected: Flags


def merge(
    samples: Pixels, ivar: Pixels, alpha: Pixels, halo: tuple[int, int], light: Judgement | None = None
) -> SuperBand:
    """Judges and averages one window (shapes: see the module); `halo`: rows above and below that are there for their
    neighbours (`halo_of`), px; `light`: what noise bright sky has besides, None where nobody knows."""
    n, channels, height, width = samples.shape
    seen = np.isfinite(samples).all(axis=1) & (ivar > 0).all(axis=1) & (alpha > 0)
    codes = np.empty(seen.shape, np.uint8)
    rejection.first_codes(seen, codes)
    if n >= MIN_JUDGED:
        centre, low, spread, gradient = np.empty((4, channels, height, width), np.float32)
        count = np.empty((channels, height, width), np.int32)
        _centres(samples, ivar, codes, centre, low, spread, count)
        rejection.gradients(centre, count, gradient)
        expected = ivar
        if light is not None:
            photon, pedestal = (v[:, np.newaxis, np.newaxis] for v in (light.photon, light.pedestal))
            more = (1.0 + photon * np.maximum(np.nan_to_num(centre) - pedestal, 0.0)).astype(np.float32)
            expected, spread = ivar / more, spread * more
        _judge(samples, expected, codes, centre, low, spread, gradient)
        _judge_faint(samples, expected, codes, centre, spread, gradient)
        rejection.grow(codes, count[0] >= MIN_JUDGED, -(-GROW_LEAST * channels // 3))
        rejection.restore(codes, channels)
    own = slice(halo[0], height - halo[1])
    codes, seen = codes[:, own], seen[:, own]
    picture, weight = np.empty((2, channels, height - sum(halo), width), np.float32)
    _average(samples[:, :, own], ivar[:, :, own], alpha[:, own], codes, picture, weight)
    here = np.where(seen, alpha[:, own], np.float32(0.0)).max(axis=0)
    return SuperBand(picture=picture, weight=weight, alpha=here, kept=codes == 0, rejected=seen & (codes != 0))


@njit(cache=True, nogil=True)
def _centres(
    samples: Pixels, ivar: Pixels, codes: Codes, centre: Pixels, low: Pixels, spread: Pixels, count: Counts
) -> None:
    """Median, lower median, variance of the median (NaN: none) and number of the samples of each element, (C, R, W)."""
    n, channels, rows, width = samples.shape
    values, variances = np.empty(n, np.float64), np.empty(n, np.float64)
    for k in range(channels):
        for r in range(rows):
            for x in range(width):
                found = 0
                for i in range(n):
                    if codes[i, r, x] & UNSEEN == 0:
                        v, at = np.float64(samples[i, k, r, x]), found
                        while at > 0 and values[at - 1] > v:
                            values[at], variances[at] = values[at - 1], variances[at - 1]
                            at -= 1
                        values[at], variances[at] = v, 1.0 / np.float64(ivar[i, k, r, x])
                        found += 1
                count[k, r, x] = found
                if found == 0:
                    centre[k, r, x] = low[k, r, x] = spread[k, r, x] = np.nan
                    continue
                below, above = (found - 1) // 2, found // 2
                centre[k, r, x] = 0.5 * (values[below] + values[above])
                low[k, r, x] = values[below]
                middle = 0.5 * (variances[below] + variances[above])
                spread[k, r, x] = middle * min(1.0, MEDIAN_VARIANCE / found)


@njit(cache=True, nogil=True)
def _judge(
    samples: Pixels, ivar: Pixels, codes: Codes, centre: Pixels, low: Pixels, spread: Pixels, gradient: Pixels
) -> None:
    """Marks the samples that are out, channel by channel; where all would be, those that lie with the lower median
    stay: what is added to a sky is light, not shadow."""
    n, channels, rows, width = samples.shape
    for k in range(channels):
        bit = np.uint8(1 << k)
        for r in range(rows):
            for x in range(width):
                g = np.float64(gradient[k, r, x])
                if not g < np.inf:  # too few samples to judge by
                    continue
                floor = (GRADIENT * g) ** 2 + NOISE_GAIN * np.float64(spread[k, r, x])
                middle, kept = np.float64(centre[k, r, x]), 0
                for turn in range(2):
                    for i in range(n):
                        if codes[i, r, x] & UNSEEN != 0:
                            continue
                        d = np.float64(samples[i, k, r, x]) - middle
                        limit = K_SIGMA**2 * (NOISE_GAIN / np.float64(ivar[i, k, r, x]) + floor)
                        if d * d > limit:
                            codes[i, r, x] |= bit
                        else:
                            codes[i, r, x] &= ~bit
                            kept += 1
                    if kept > 0 or turn > 0:
                        break
                    middle = np.float64(low[k, r, x])


@njit(cache=True, nogil=True)
def _judge_faint(samples: Pixels, ivar: Pixels, codes: Codes, centre: Pixels, spread: Pixels, gradient: Pixels) -> None:
    """Marks as GROWN the seen samples whose 5x5 box is off the median as a whole, in any channel."""
    n, channels, rows, width = samples.shape
    parts, column = np.zeros((rows, 4, width)), np.empty((4, width))
    for i in range(n):
        for k in range(channels):
            _departures(samples[i, k], ivar[i, k], codes[i], np.uint8(1 << k), centre[k], spread[k], gradient[k], parts)
            for r in range(rows):
                column[:] = 0.0
                for near in range(max(0, r - FAINT_REACH), min(rows, r + FAINT_REACH + 1)):
                    column += parts[near]
                for x in range(width):
                    if codes[i, r, x] & UNSEEN != 0 or not gradient[k, r, x] < np.inf:
                        continue
                    count, off, noise, slope = 0.0, 0.0, 0.0, 0.0
                    for near in range(max(0, x - FAINT_REACH), min(width, x + FAINT_REACH + 1)):
                        count += column[0, near]
                        off += column[1, near]
                        noise += column[2, near]
                        slope += column[3, near]
                    limit = FAINT_SIGMA**2 * (noise * PIXELS_A_SAMPLE + slope * count)
                    if count >= FAINT_LEAST and off * off > limit:
                        codes[i, r, x] |= GROWN


@njit(cache=True, nogil=True)
def _departures(
    sample: Pixels, ivar: Pixels, codes: Codes, bit: np.uint8, centre: Pixels, spread: Pixels, gradient: Pixels,
    parts: Numbers,
) -> None:  # fmt: skip
    """parts (R, 4, W) of one tile's channel: 1, its departure from the median, its variance and what the gradient
    beyond that of noise allows, squared; all 0 where it is not judged, or out already."""
    rows, width = sample.shape
    for r in range(rows):
        for x in range(width):
            g = np.float64(gradient[r, x])
            judged = g < np.inf and codes[r, x] & (UNSEEN | bit) == 0
            parts[r, 0, x] = 1.0 if judged else 0.0
            parts[r, 1, x] = np.float64(sample[r, x]) - np.float64(centre[r, x]) if judged else 0.0
            parts[r, 2, x] = 1.0 / np.float64(ivar[r, x]) + np.float64(spread[r, x]) if judged else 0.0
            real = g * g - NOISE_RANGE * NOISE_GAIN * np.float64(spread[r, x])
            parts[r, 3, x] = GRADIENT**2 * max(0.0, real) if judged else 0.0


@njit(cache=True, nogil=True)
def _average(samples: Pixels, ivar: Pixels, alpha: Pixels, codes: Codes, picture: Pixels, weight: Pixels) -> None:
    """Mean of the kept samples, each by w = ivar alpha, and its inverse variance (sum w)^2 / sum(w alpha), (C, R, W);
    float64 sums in the order of the tiles."""
    n, channels, rows, width = samples.shape
    for k in range(channels):
        mask = UNSEEN | GROWN | np.uint8(1 << k)
        for r in range(rows):
            for x in range(width):
                value, total, power = 0.0, 0.0, 0.0
                for i in range(n):
                    if codes[i, r, x] & mask == 0:
                        a = np.float64(alpha[i, r, x])
                        w = np.float64(ivar[i, k, r, x]) * a
                        value += w * np.float64(samples[i, k, r, x])
                        total += w
                        power += w * a
                seen = total > 0.0
                picture[k, r, x] = value / total if seen else np.nan
                weight[k, r, x] = total * total / power if seen else 0.0
