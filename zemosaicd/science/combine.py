"""Many samples a pixel -> one: reject, average; window by window, the same bits for every cut into windows (M5).

A window is samples float32 (n, C, R, W) with seen bool (n, R, W): a frame is seen at a pixel in all its channels or not
at all, and so no edge has a colour of its own (V8). Validity travels as that mask; where it is True the samples are
finite, which the resampler sees to (V3). R and W count the window's own rows and columns and, on each side, up to HALO
of its neighbours', fewer only at the grid's edges; only the window's own pixels come out.

The default rule, `auto`, judges a sample v_i against the median m of all frames by a noise model:

    sigma_i^2 = K (variance_i + photon_i s) + (c g)^2 + (d s)^2,    s = max(m - pedestal, 0)

with g, the local gradient: half of max - min of m over 3x3 pixels (it protects star cores, where seeing and resampling
differ from frame to frame), K the kernel's noise gain, k = 3.5, c = 0.5, d = 0, K = 0.7. What is rejected then grows:
per frame a 5x5 box with 8 rejected samples of its 75 (three channels; in proportion for others) marks its centre, marks
widen by one pixel and take all channels. Trails that are known beforehand (`lines`) are out from the start. It works
from three samples a pixel on; at fewer nothing can be judged and nothing is rejected. It never empties a pixel: of two
camps of equal size the lower is kept, and lines and growth that would leave nothing are taken back. kappa_sigma, by
name, is SPEC M6's definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from zemosaicd.science import clipping, medians, rejection
from zemosaicd.science.medians import MOST_CHANNELS, Codes, Integers, Numbers, Pixels
from zemosaicd.science.rejection import Flags

HALO = 4
"""Rows and columns of its neighbours that a window carries: 1 for the gradient, 2 for the box of grow, 1 for its
widening."""
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Combined:
    """The window's own pixels. Where weight is 0 there is no sample, and mean is 0 and means nothing.

    `mean` float32 (C, rows, width): the chosen average. `weight`, `inverse_variance` float32 (C, rows, width): sum of
    the weights of what was kept, and what they make of the frames' variances (1 each without a noise model). `count`
    uint16 (rows, width): frames kept in all channels (V1); `lost` uint16 (rows, width): frames rejected in any.
    `rejected`, `samples` int64 (n,): of each frame, samples rejected and samples there were, channels counted one by
    one.
    """

    mean: Pixels
    weight: Pixels
    inverse_variance: Pixels
    count: NDArray[np.uint16]
    lost: NDArray[np.uint16]
    rejected: Integers
    samples: Integers

    @property
    def rejected_pct(self) -> float:
        """Share of the samples that was rejected (M6)."""
        return 100.0 * float(self.rejected.sum()) / max(1, int(self.samples.sum()))


def halo_of(first: int, count: int, total: int, border: int = 0) -> tuple[int, int]:
    """Halo (before, after) that a window of rows (or columns) `first` to `first + count` of `total` must carry.

    `border`: how many of its neighbours have to be right as well.
    """
    return min(HALO + border, first), min(HALO + border, total - first - count)


def combine(
    samples: Pixels,
    seen: Flags,
    weights: Numbers,
    rule: Rule,
    noise: NoiseModel | None = None,
    *,
    halo: tuple[int, int] = (0, 0),
    side: tuple[int, int] = (0, 0),
    weight_maps: Pixels | None = None,
    lines: Sequence[tuple[int, Numbers]] = (),
    scratch: Codes | None = None,
) -> Combined:
    """Reject and average one window: samples float32 (n, C, R, W), seen bool (n, R, W), frames in canonical order.

    `weights` (n,) or (n, C) are a frame's, `weight_maps` float32 (n, R, W) multiply them pixel by pixel (0 adds
    nothing, but takes part in judging). `halo`: rows above and below that are there for the neighbours, `side`:
    columns left and right, likewise (both by `halo_of`). `lines`: (frame, its trail as `rejection.mark_line` has it),
    which `auto` takes out beforehand. Deterministic; beside the samples it needs a byte a frame and pixel: the codes,
    in `scratch` uint8 (n, R, W) if that is given. ValueError: shapes that do not fit, more than 65535 frames or 6
    channels, `auto` without a noise model.
    """
    n, channels, height, width = samples.shape
    if seen.shape != (n, height, width):
        raise ValueError(f"masks {seen.shape} do not fit samples {samples.shape}")
    if n > np.iinfo(np.uint16).max or channels > MOST_CHANNELS:
        raise ValueError(f"{n} frames of {channels} channels cannot be combined")
    cube, codes = np.ascontiguousarray(samples), np.empty(seen.shape, np.uint8) if scratch is None else scratch
    rejection.first_codes(seen, codes)
    if n >= rejection.MIN_JUDGED:
        _reject(cube, codes, rule, noise, lines)
    return merge(cube, codes, weights, rule, noise, halo=halo, side=side, weight_maps=weight_maps)


def merge(
    samples: Pixels,
    codes: Codes,
    weights: Numbers,
    rule: Rule,
    noise: NoiseModel | None = None,
    *,
    halo: tuple[int, int] = (0, 0),
    side: tuple[int, int] = (0, 0),
    weight_maps: Pixels | None = None,
) -> Combined:
    """What is made of the samples that `codes` uint8 (n, R, W) keep; everything else as `combine` has it."""
    n, channels, height, width = samples.shape
    maps = np.empty((0, 0, 0), np.float32) if weight_maps is None else weight_maps
    if maps.shape[0] not in (0, n) or (maps.size and maps.shape != codes.shape):
        raise ValueError(f"weight maps {maps.shape} do not fit samples {samples.shape}")
    if min(*halo, *side) < 0 or height < sum(halo) or width < sum(side):
        raise ValueError(f"{height} x {width} px with halo {halo}, {side} cannot be combined")
    frame_weights = np.ascontiguousarray(np.broadcast_to(weights.reshape(n, -1), (n, channels)), np.float64)
    cube = np.ascontiguousarray(samples)
    corner, shape = (halo[0], side[0]), (height - sum(halo), width - sum(side))
    variance = np.ones((n, channels)) if noise is None else np.ascontiguousarray(noise.variance, np.float64)
    mean, weight, inverse = np.empty((3, channels, *shape), np.float32)
    rejection.average(cube, codes, frame_weights, variance, maps, corner, mean, weight, inverse)
    if rule.average is Average.MEDIAN:
        own = (slice(corner[0], corner[0] + shape[0]), slice(corner[1], corner[1] + shape[1]))
        mean = np.where(weight > 0.0, _medians(cube, codes)[0][:, *own], np.float32(0.0))
    count, lost = np.empty((2, *shape), np.uint16)
    rejected, found = np.zeros(n, np.int64), np.zeros(n, np.int64)
    rejection.tally(codes, corner, channels, count, lost, rejected, found)
    return Combined(
        mean=mean, weight=weight, inverse_variance=inverse, count=count, lost=lost, rejected=rejected, samples=found
    )


def _medians(cube: Pixels, codes: Codes) -> tuple[Pixels, Pixels, NDArray[np.int32]]:
    """Median, lower median (NaN: none) and number of the kept samples of each element, (C, R, W)."""
    centre, low = np.empty((2, *cube.shape[1:]), np.float32)
    count = np.empty(cube.shape[1:], np.int32)
    medians.medians(cube, codes, medians.median_network(cube.shape[0]), centre, low, count)
    return centre, low, count


def _reject(
    cube: Pixels, codes: Codes, rule: Rule, noise: NoiseModel | None, lines: Sequence[tuple[int, Numbers]]
) -> None:
    """Mark what the rule rejects."""
    match rule.method:
        case Method.KAPPA_SIGMA:
            clipping.kappa_sigma(cube, codes, medians.median_network(cube.shape[0]), rule.k_low, rule.k_high)
        case Method.WINSORIZED_SIGMA:
            clipping.clip_sorted(cube, codes, False, rule.k_low, rule.k_high)
        case Method.LINEAR_FIT:
            clipping.clip_sorted(cube, codes, True, rule.k_low, rule.k_high)
        case Method.AUTO:
            _reject_by_noise(cube, codes, rule, noise, lines)
        case Method.NONE:
            pass


def _reject_by_noise(
    cube: Pixels, codes: Codes, rule: Rule, noise: NoiseModel | None, lines: Sequence[tuple[int, Numbers]]
) -> None:
    n, channels = cube.shape[:2]
    if noise is None or noise.variance.shape != (n, channels) or noise.photon.shape != (n, channels):
        raise ValueError(f"the rule 'auto' needs a noise model of {n} frames and {channels} channels")
    for frame, line in lines:
        rejection.mark_line(codes[frame], line)
    centre, low, count = _medians(cube, codes)
    gradient = np.empty_like(centre)
    rejection.gradients(centre, count, gradient)
    scale = rule.kernel_gain * rule.k**2
    rejection.reject_by_model(
        cube, codes, centre, low, gradient, scale * noise.variance, scale * noise.photon,
        np.asarray(noise.pedestal, np.float64), rule.k * rule.gradient, rule.k * rule.signal,
    )  # fmt: skip
    if rule.grow:
        judged = count[0] >= rejection.MIN_JUDGED
        rejection.grow(codes, judged, -(-GROW_LEAST * channels // 3))
    rejection.restore(codes, channels)
