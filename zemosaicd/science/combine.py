"""Many samples a pixel -> one: normalise, reject, average; band by band, the same bits for every band height (M5).

A band is samples float32 (n, R, w, c) with seen bool (n, R, w): a frame is seen at a pixel in all its channels or not
at all, and so no edge has a colour of its own (V8). Validity travels as that mask; a value that is not finite takes
itself out, no more (V3). R counts the band's own rows and, above and below, up to HALO_ROWS of its neighbours', fewer
only at the grid's edges; only the band's own rows come out.

The default rule, `auto`, judges a sample v_i against the median m of all frames by a noise model:

    sigma_i^2 = K (variance_i + photon_i s) + (c g)^2 + (d s)^2,    s = max(m - pedestal, 0)

with g, the local gradient: half of max - min of m over 3x3 pixels (it protects star cores, where seeing and resampling
differ from frame to frame), K the kernel's noise gain, k = 3.5, c = 0.5, d = 0, K = 0.7. What is rejected then grows:
per frame a 5x5 box with 8 rejected samples of its 75 (three channels; in proportion for others) marks its centre, marks
widen by one pixel and take all channels. It works from three samples a pixel on; at fewer nothing can be judged and
nothing is rejected. It never empties a pixel: of two camps of equal size the lower is kept, and growth that would leave
nothing is taken back. kappa_sigma, by name, is SPEC M6's definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science import clipping, rejection
from zemosaicd.science.rejection import Codes, Flags, Integers, Numbers, Pixels

HALO_ROWS = 4
"""1 for the gradient, 2 for the box of grow, 1 for its widening."""
GROW_LEAST = 8
"""Rejected samples of the 75 in a 5x5 box of three channels that make it grow."""


class Method(StrEnum):
    """Rejection rules by name (M6)."""

    AUTO = "auto"
    KAPPA_SIGMA = "kappa_sigma"
    WINSORIZED_SIGMA = "winsorized_sigma"
    LINEAR_FIT = "linear_fit"
    NONE = "none"


class Average(StrEnum):
    """What is made of the samples that are kept. MEDIAN does not weigh them."""

    MEAN = "mean"
    MEDIAN = "median"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How to reject and combine. `k_low, k_high` are of the rules by name; the others of `auto` (module docstring).

    `k_low` and `k_high` below 1 could leave a pixel without any sample.
    """

    method: Method = Method.AUTO
    average: Average = Average.MEAN
    k_low: float = 3.0
    k_high: float = 3.0
    k: float = 3.5
    gradient: float = 0.5
    signal: float = 0.0
    kernel_gain: float = 0.7
    grow: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoiseModel:
    """Expected noise of the normalised samples of n frames in c channels.

    `variance` float64 (n, c): read and sky noise of one photosite, squared, in the normalised ADU^2. `photon` (n, c):
    further variance a normalised ADU of signal above the sky. `pedestal` (c,): the normalised samples' sky level.
    """

    variance: Numbers
    photon: Numbers
    pedestal: Numbers

    @classmethod
    def measured(cls, noise_adu: Numbers, gain: Numbers, electrons_per_adu: float, pedestal: Numbers) -> NoiseModel:
        """From each frame's sky noise (n, c), ADU a photosite, and the gain (n, c) that `normalise_band` gives it."""
        return cls(variance=(noise_adu * gain) ** 2, photon=gain / electrons_per_adu, pedestal=pedestal)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Combined:
    """The band's own rows. Where weight is 0 there is no sample, and mean is 0 and means nothing.

    `mean` float32 (rows, w, c): the chosen average. `weight` float32 (rows, w, c): sum of the weights of what was kept.
    `count` uint16 (rows, w): frames kept in all channels (V1). `rejected`, `samples` int64 (n,): of each frame, samples
    rejected and samples there were, channels counted one by one.
    """

    mean: Pixels
    weight: Pixels
    count: NDArray[np.uint16]
    rejected: Integers
    samples: Integers

    @property
    def rejected_pct(self) -> float:
        """Share of the finite samples that was rejected (M6)."""
        return 100.0 * float(self.rejected.sum()) / max(1, int(self.samples.sum()))


def halo_of(row0: int, rows: int, height: int) -> tuple[int, int]:
    """Halo rows (above, below) that the band of rows `row0` to `row0 + rows` of a grid of `height` rows must carry."""
    return min(HALO_ROWS, row0), min(HALO_ROWS, height - row0 - rows)


def combine_band(
    samples: Pixels,
    seen: Flags,
    weights: Numbers,
    rule: Rule,
    noise: NoiseModel | None = None,
    *,
    halo: tuple[int, int] = (0, 0),
    side: tuple[int, int] = (0, 0),
    weight_maps: Pixels | None = None,
) -> Combined:
    """Reject and combine one band: samples float32 (n, R, w, c), seen bool (n, R, w), frames in canonical order.

    `weights` (n,) or (n, c) are a frame's, `weight_maps` float32 (n, R, w) multiply them pixel by pixel (0 adds
    nothing, but takes part in judging). `halo`: rows above and below that are there for the neighbours, `side`:
    columns left and right of a window, likewise (both by `halo_of`).
    Deterministic; the only array as deep as the samples is one byte each. ValueError: shapes that do not fit, more than
    65535 frames, `auto` without a noise model.
    """
    n, height, width, channels = samples.shape
    maps = np.empty((0, 0, 0), np.float32) if weight_maps is None else weight_maps
    if seen.shape != (n, height, width) or maps.shape[0] not in (0, n) or (maps.size and maps.shape != seen.shape):
        raise ValueError(f"masks {seen.shape}, {maps.shape} do not fit samples {samples.shape}")
    if n > np.iinfo(np.uint16).max or min(*halo, *side) < 0 or height < sum(halo) or width < sum(side):
        raise ValueError(f"{n} frames, {height} x {width} px with halo {halo}, {side} cannot be combined")
    top, rows = halo[0], height - sum(halo)
    frame_weights = np.broadcast_to(weights.reshape(n, -1), (n, channels)).astype(np.float64)
    cube = np.ascontiguousarray(samples)
    codes = np.empty(cube.shape, np.uint8)
    rejection.first_codes(cube, cube.view(np.uint32), seen, codes)
    flat, flat_codes = cube.reshape(n, height, -1), codes.reshape(n, height, -1)
    if n >= rejection.MIN_JUDGED:
        _reject(flat, codes, rule, noise)
    mean, weight = np.empty((2, rows, width * channels), np.float32)
    rejection.average(flat, flat_codes, frame_weights, maps, top, mean, weight)
    if rule.average is Average.MEDIAN:
        middle = _medians(flat[:, top : top + rows], flat_codes[:, top : top + rows])[0]
        mean = np.where(weight > 0.0, middle, np.float32(0.0))
    own = slice(side[0], width - side[1])
    count = np.empty((rows, own.stop - own.start), np.uint16)
    rejected, found = np.zeros(n, np.int64), np.zeros(n, np.int64)
    rejection.tally(np.ascontiguousarray(codes[:, :, own]), top, count, rejected, found)
    shape = (rows, width, channels)
    return Combined(
        mean=mean.reshape(shape)[:, own],
        weight=weight.reshape(shape)[:, own],
        count=count,
        rejected=rejected,
        samples=found,
    )


def _medians(flat: Pixels, codes: Codes) -> tuple[Pixels, Pixels, NDArray[np.int32]]:
    """Median, lower median (NaN: none) and number of the kept samples of each element."""
    centre, low = np.empty((2, *flat.shape[1:]), np.float32)
    count = np.empty(flat.shape[1:], np.int32)
    rejection.medians(flat, codes, rejection.median_network(flat.shape[0]), centre, low, count)
    return centre, low, count


def _reject(flat: Pixels, codes: Codes, rule: Rule, noise: NoiseModel | None) -> None:
    """Turn codes (n, R, w, c) of samples that the rule rejects."""
    flat_codes = codes.reshape(flat.shape)
    match rule.method:
        case Method.KAPPA_SIGMA:
            network = rejection.median_network(flat.shape[0])
            clipping.kappa_sigma(flat, flat_codes, network, rule.k_low, rule.k_high)
        case Method.WINSORIZED_SIGMA:
            clipping.clip_sorted(flat, flat_codes, False, rule.k_low, rule.k_high)
        case Method.LINEAR_FIT:
            clipping.clip_sorted(flat, flat_codes, True, rule.k_low, rule.k_high)
        case Method.AUTO:
            _reject_by_noise(flat, codes, rule, noise)
        case Method.NONE:
            pass


def _reject_by_noise(flat: Pixels, codes: Codes, rule: Rule, noise: NoiseModel | None) -> None:
    n, _, _, channels = codes.shape
    if noise is None or noise.variance.shape != (n, channels) or noise.photon.shape != (n, channels):
        raise ValueError(f"the rule 'auto' needs a noise model of {n} frames and {channels} channels")
    flat_codes = codes.reshape(flat.shape)
    centre, low, count = _medians(flat, flat_codes)
    gradient = np.empty_like(centre)
    rejection.gradients(centre, count, channels, gradient)
    scale = rule.kernel_gain * rule.k**2
    rejection.reject_by_model(
        flat, flat_codes, centre, low, gradient, scale * noise.variance, scale * noise.photon,
        np.asarray(noise.pedestal, np.float64), rule.k * rule.gradient, rule.k * rule.signal,
    )  # fmt: skip
    if rule.grow:
        rejection.grow(codes, gradient, -(-GROW_LEAST * channels // 3))
        rejection.restore(flat_codes)


def normalise_band(values: Pixels, offset: Numbers, gain: Numbers) -> None:
    """values float32 (rows, w, c) = values * gain + offset (both (c,)), in place, seen or not.

    A frame of sky s and transparency t comes to a reference sky z by gain = 1 / t, offset = z - s / t.
    """
    _scale(values, np.asarray(offset, np.float64), np.asarray(gain, np.float64))


@njit(cache=True, nogil=True)
def _scale(values: Pixels, offset: Numbers, gain: Numbers) -> None:
    rows, width, channels = values.shape
    for r in range(rows):
        for x in range(width):
            for k in range(channels):
                values[r, x, k] = np.float64(values[r, x, k]) * gain[k] + offset[k]
