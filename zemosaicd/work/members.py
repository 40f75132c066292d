"""What a window of a tile is made from: its frames as the tile sees them, their weights, noise and rule.

For each window of the output every frame gives just the box that falls there, is levelled to the reference's sky and
flux and warped (and demosaiced) onto the window; then the samples are judged and averaged. Drizzle is a second pass:
what was judged good falls onto the window once more, by photosites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import Distortion, FramePlan, LogNote, Plan, TileSpec, Trail
from zemosaicd.science import combine
from zemosaicd.science.drizzle import GRADIENT, LEAST_EVEN, LEAST_FRAMES, Drops, View, evenness
from zemosaicd.science.frame import repair_pixels
from zemosaicd.science.injection import Light, with_star
from zemosaicd.science.kernels import Box
from zemosaicd.science.lattices import Levels
from zemosaicd.science.normalise import Normalise, Weights, levels_of, weights_of
from zemosaicd.science.resample import (
    NOISE_GAIN,
    NOTHING,
    USUAL_CURVATURE,
    Kernel,
    Source,
    curvature_of,
    resample,
    source_box,
)
from zemosaicd.work.jobs import StackSettings
from zemosaicd.work.store import NpyPlane

F64 = NDArray[np.float64]
DRIZZLE = "drizzle"
"""A kernel of its own kind: a second pass over the windows of an ordinary stack."""


class Rows(Protocol):
    """A picture that is read by rows: store.NpyPlane."""

    def rows(self, top: int, bottom: int) -> NDArray[Any]:
        """Rows `top` to `bottom` of (H, W) or (H, W, C)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """A frame as the tile sees it: its cache, the way from the grid to its pixels, and its levels.

    `fixed`: flat indices of its sensor's hot pixels, ascending. `star`: light that is added to it (work.witness).
    """

    plane: Rows
    matrix: sphere.Matrix
    levels: Levels
    fixed: NDArray[np.int64]
    trails: tuple[Trail, ...]
    distortion: Distortion | None
    bayer: str
    width: int
    height: int
    star: Light | None = None

    def lines(self, left: int, top: int) -> list[F64]:
        """The frame's trails as bands of a window that begins at (left, top) of the grid (rejection.mark_line)."""
        m = np.array(self.matrix).reshape(3, 3) @ np.array([[1.0, 0.0, left], [0.0, 1.0, top], [0.0, 0.0, 1.0]])
        return [np.concatenate([np.array([t.a, t.b, t.c]) @ m, [t.half_width_px], m[2]]) for t in self.trails]

    def into(
        self, window: Box, kernel: Kernel, curvature: float, values: NDArray[np.float32], seen: NDArray[np.bool_]
    ) -> None:
        """Fills values (C, h, w) and seen (h, w) with what this frame saw of a window of the grid (resample)."""
        source = self._source(window, self._repaired)
        if source is None:
            values[...], seen[...] = 0.0, False
        else:
            resample(source, self.matrix, window, kernel=kernel, curvature=curvature, into=(values, seen))

    def onto(self, window: Box, drops: Drops, codes: NDArray[np.uint8], weights: F64, variance: F64) -> None:
        """Drops what this frame saw of a window of the grid onto it, hot pixels left out (Drops.add)."""
        source = self._source(window, self._blanked)
        if source is not None:
            drops.add(source, self.matrix, window, codes, weights, variance)

    @property
    def view(self) -> View:
        """Where it looks, without what it saw."""
        return View(
            matrix=self.matrix, width=self.width, height=self.height, bayer=self.bayer, distortion=self.distortion
        )

    def _source(self, window: Box, pixels_of: Callable[[Box], NDArray[Any]]) -> Source | None:
        """The box that a window of the grid needs; None where the frame does not reach."""
        box = source_box(
            self.matrix, window, self.width, self.height, bayer=bool(self.bayer), distortion=self.distortion
        )
        if box == NOTHING:
            return None
        pixels = pixels_of(box)
        return Source(
            pixels=pixels if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0), bayer=self.bayer, corner=box[:2],
            width=self.width, height=self.height, levels=self.levels, distortion=self.distortion,
        )  # fmt: skip

    def _recorded(self, box: Box) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """A box of the cache, (h, w) or (h, w, C), and the flat indices there of its sensor's hot pixels."""
        left, top, right, bottom = box
        pixels = np.ascontiguousarray(self.plane.rows(top, bottom)[:, left:right])
        if self.star is not None:
            pixels = with_star(pixels, (left, top), self.bayer, self.star)
        first, last = self.fixed.searchsorted((top * self.width, bottom * self.width))
        if first == last:
            return pixels, self.fixed[:0]
        rows, columns = np.divmod(self.fixed[first:last], self.width)
        here = (columns >= left) & (columns < right)
        return pixels, (rows[here] - top) * (right - left) + columns[here] - left

    def _repaired(self, box: Box) -> NDArray[Any]:
        """A box of the cache, its sensor's hot pixels replaced by what is round them."""
        pixels, hot = self._recorded(box)
        if len(hot):
            repair_pixels(pixels, hot, bool(self.bayer))
        return pixels

    def _blanked(self, box: Box) -> NDArray[Any]:
        """A box of the cache, its sensor's hot pixels NaN: a photosite without light of its own has none to drop."""
        recorded, hot = self._recorded(box)
        pixels = recorded.astype(np.float32)
        pixels.reshape(recorded.shape[0] * recorded.shape[1], -1)[hot] = np.nan
        return pixels


class Room:
    """Memory for one window's samples, used again by the next: fresh pages cost as much as judging them does."""

    def __init__(self) -> None:
        self._samples, self._seen, self._codes = np.empty(0, np.float32), np.empty(0, np.bool_), np.empty(0, np.uint8)

    def of(
        self, frames: int, channels: int, height: int, width: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.uint8]]:
        """Samples (n, C, h, w), seen and codes (n, h, w) of a window; what is in them means nothing."""
        size, shape = frames * height * width, (frames, height, width)
        if size * channels > self._samples.size or size > self._seen.size:
            self._samples, self._seen = np.empty(size * channels, np.float32), np.empty(size, np.bool_)
            self._codes = np.empty(size, np.uint8)
        samples = self._samples[: size * channels].reshape(frames, channels, height, width)
        return samples, self._seen[:size].reshape(shape), self._codes[:size].reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """All that a window of a tile is made from; n frames, C channels. `weights` (n, C) float64; `curvature`: of
    the kernel (resample); `pixfrac`: side of a drop in grid pixels, 0 for no drizzle.
    """

    spec: TileSpec
    members: Sequence[Member]
    weights: F64
    noise: combine.NoiseModel
    rule: combine.Rule
    kernel: Kernel
    curvature: float = USUAL_CURVATURE
    pixfrac: float = 0.0

    def window(self, rows: tuple[int, int], columns: tuple[int, int], room: Room | None = None) -> combine.Combined:
        """One window (first, count), made with the neighbours' rows and columns that its judgement needs."""
        grid, border = self.spec.grid, 1 if self.pixfrac else 0
        halo, side = combine.halo_of(*rows, grid.height, border), combine.halo_of(*columns, grid.width, border)
        top, left = rows[0] - halo[0], columns[0] - side[0]
        height, width = rows[1] + sum(halo), columns[1] + sum(side)
        samples, seen, codes = (room or Room()).of(len(self.members), self.spec.channels, height, width)
        for i, member in enumerate(self.members):
            member.into((left, top, left + width, top + height), self.kernel, self.curvature, samples[i], seen[i])
        lines = [(i, line) for i, member in enumerate(self.members) for line in member.lines(left, top)]
        made = combine.combine(
            samples, seen, self.weights, self.rule, self.noise, halo=halo, side=side, lines=lines, scratch=codes
        )
        if not self.pixfrac:
            return made
        drops = Drops(self._bordered(samples, codes, halo, side), self.pixfrac, memory=samples)
        box = columns[0], rows[0], columns[0] + columns[1], rows[0] + rows[1]
        own = codes[:, halo[0] : halo[0] + rows[1], side[0] : side[0] + columns[1]]
        for i, member in enumerate(self.members):
            member.onto(box, drops, own[i], self.weights[i], self.noise.variance[i])
        drops.onto(made, self.members[0].bayer)
        return made

    def _bordered(
        self, samples: NDArray[np.float32], codes: NDArray[np.uint8], halo: tuple[int, int], side: tuple[int, int]
    ) -> NDArray[np.float32]:
        """The window's mean with a pixel more on every side, NaN where there is none, or beyond the grid."""
        border = [min(1, reach) for reach in (*halo, *side)]
        inner = [reach - ring for reach, ring in zip((*halo, *side), border, strict=True)]
        wide = combine.merge(
            samples, codes, self.weights, self.rule, halo=(inner[0], inner[1]), side=(inner[2], inner[3])
        )
        missing = [1 - ring for ring in border]
        return np.pad(
            np.where(wide.weight > 0, wide.mean, np.float32(np.nan)),
            ((0, 0), (missing[0], missing[1]), (missing[2], missing[3])),
            constant_values=np.nan,
        )


def stack_of(plan: Plan, spec: TileSpec, frames: Sequence[FramePlan], settings: StackSettings) -> Stack:
    """What each frame needs to come to the tile."""
    reference = plan.frames[spec.reference]
    kernel = Kernel.KRIGING if settings.kernel == DRIZZLE else Kernel(settings.kernel)
    levels = [levels_of(frame, reference, Normalise(settings.normalise)) for frame in frames]
    gain = np.array([level.gain for level in levels])
    variance = (np.array([f.noise_adu for f in frames], np.float64) * gain) ** 2
    fwhm_px = np.array([f.fwhm_px for f in frames], np.float64)
    photon = np.array([f.photon_adu for f in frames], np.float64) * gain
    members = [
        Member(
            plane=NpyPlane.at(Path(frame.cache)),
            matrix=sphere.homography(spec.grid.wcs, frame.wcs),
            levels=level,
            fixed=np.array(plan.fixed_pixels.get(frame.facts.sensor, ()), np.int64),
            trails=frame.trails,
            distortion=frame.distortion,
            bayer=frame.facts.bayer,
            width=frame.facts.width,
            height=frame.facts.height,
        )
        for frame, level in zip(frames, levels, strict=True)
    ]
    return Stack(
        spec=spec,
        members=members,
        weights=weights_of(Weights(settings.weights), variance, fwhm_px),
        noise=combine.NoiseModel(variance=variance, photon=photon, pedestal=np.array(reference.sky_adu, np.float64)),
        rule=combine.Rule(
            method=combine.Method(settings.rejection),
            average=combine.Average(settings.combine),
            k_low=settings.kappa_low,
            k_high=settings.kappa_high,
            kernel_gain=NOISE_GAIN[kernel],
        ),
        kernel=kernel,
        curvature=curvature_of(fwhm_px),
    )


def drizzled(stack: Stack, settings: StackSettings) -> tuple[Stack, list[LogNote]]:
    """The stack as a drizzled one, where that is asked for and its frames are many and well spread; or why it is not.

    Drops that would leave many pixels without light of a colour make a worse picture than interpolation (F31).
    """
    if settings.kernel != DRIZZLE:
        return stack, []
    grid, side = stack.spec.grid, settings.drizzle_pixfrac
    frames, share = evenness([m.view for m in stack.members], grid.width, grid.height, side)
    if frames >= LEAST_FRAMES and share >= LEAST_EVEN:
        return replace(stack, pixfrac=side, rule=replace(stack.rule, gradient=GRADIENT)), []
    few = frames < LEAST_FRAMES
    fields: dict[str, object] = {
        "tile": stack.spec.tile,
        "value": frames if few else round(share, 3),
        "threshold": LEAST_FRAMES if few else LEAST_EVEN,
        "kernel": str(stack.kernel),
    }
    return stack, [LogNote(level="warning", event="drizzle_few_frames" if few else "drizzle_uneven", fields=fields)]


@dataclass(frozen=True, slots=True, eq=False)
class _MadeUp:
    """A picture that no file holds."""

    pixels: NDArray[np.uint16]

    def rows(self, top: int, bottom: int) -> NDArray[np.uint16]:
        return self.pixels[top:bottom]


def rehearse() -> None:
    """Stacks small made-up frames: whoever has done that has compiled, or loaded, what an ordinary tile runs."""
    side, n = 40, 3
    trail = Trail(a=1.0, b=0.0, c=-20.0, half_width_px=2.0, peak_adu=9.0, sigma=9.0)
    frame = Member(
        plane=_MadeUp(np.full((side, side), 500, np.uint16)), matrix=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        levels=Levels.plain(3), fixed=np.array([side + 1]), trails=(trail,), distortion=None, bayer="GRBG",
        width=side, height=side,
    )  # fmt: skip
    samples, seen, codes = Room().of(n, 3, side, side)
    for i in range(n):
        frame.into((0, 0, side, side), Kernel.KRIGING, USUAL_CURVATURE, samples[i], seen[i])
    noise = combine.NoiseModel(variance=np.ones((n, 3)), photon=np.ones((n, 3)), pedestal=np.zeros(3))
    lines = [(0, line) for line in frame.lines(0, 0)]
    combine.combine(samples, seen, np.ones((n, 3)), combine.Rule(), noise, lines=lines, scratch=codes)
