"""What a window of a tile is made from: its frames as the tile sees them, their weights, noise and rule.

For each window of the output every frame gives just the box that falls there, is levelled to the reference's sky and
flux and warped (and demosaiced) onto the window; then the samples are judged and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import Distortion, FramePlan, Plan, TileSpec, Trail
from zemosaicd.science import combine
from zemosaicd.science.frame import repair_pixels
from zemosaicd.science.injection import Light, with_star
from zemosaicd.science.kernels import Box
from zemosaicd.science.lattices import Levels
from zemosaicd.science.normalise import Normalise, Weights, levels_of, weights_of
from zemosaicd.science.resample import NOISE_GAIN, NOTHING, Kernel, Source, resample, source_box
from zemosaicd.work.jobs import StackSettings
from zemosaicd.work.store import NpyPlane

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """A frame as the tile sees it: its cache, the way from the grid to its pixels, and its levels.

    `fixed`: flat indices of its sensor's hot pixels, ascending. `star`: light that is added to it (work.witness).
    """

    plane: NpyPlane
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

    def into(self, window: Box, kernel: Kernel, values: NDArray[np.float32], seen: NDArray[np.bool_]) -> None:
        """Fills values (C, h, w) and seen (h, w) with what this frame saw of a window of the grid."""
        box = source_box(
            self.matrix, window, self.width, self.height, bayer=bool(self.bayer), distortion=self.distortion
        )
        if box == NOTHING:
            values[...], seen[...] = 0.0, False
            return
        pixels = self._repaired(box)
        source = Source(
            pixels=pixels if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0), bayer=self.bayer, corner=box[:2],
            width=self.width, height=self.height, levels=self.levels, distortion=self.distortion,
        )  # fmt: skip
        resample(source, self.matrix, window, kernel=kernel, into=(values, seen))

    def _repaired(self, box: Box) -> NDArray[Any]:
        """A box of the cache, (h, w) or (h, w, C), its sensor's hot pixels replaced by what is round them."""
        left, top, right, bottom = box
        pixels = np.ascontiguousarray(self.plane.rows(top, bottom)[:, left:right])
        if self.star is not None:
            pixels = with_star(pixels, (left, top), self.bayer, self.star)
        rows, columns = np.divmod(self.fixed, self.width)
        here = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        if here.any():
            places = (rows[here] - top) * (right - left) + columns[here] - left
            repair_pixels(pixels, places, bool(self.bayer))
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
    """All that a window of a tile is made from; n frames, C channels. `weights` (n, C) float64."""

    spec: TileSpec
    members: Sequence[Member]
    weights: F64
    noise: combine.NoiseModel
    rule: combine.Rule
    kernel: Kernel

    def window(self, rows: tuple[int, int], columns: tuple[int, int], room: Room | None = None) -> combine.Combined:
        """One window (first, count), made with the neighbours' rows and columns that its judgement needs."""
        halo = combine.halo_of(*rows, self.spec.grid.height)
        side = combine.halo_of(*columns, self.spec.grid.width)
        top, left = rows[0] - halo[0], columns[0] - side[0]
        height, width = rows[1] + sum(halo), columns[1] + sum(side)
        samples, seen, codes = (room or Room()).of(len(self.members), self.spec.channels, height, width)
        for i, member in enumerate(self.members):
            member.into((left, top, left + width, top + height), self.kernel, samples[i], seen[i])
        lines = [(i, line) for i, member in enumerate(self.members) for line in member.lines(left, top)]
        return combine.combine(
            samples, seen, self.weights, self.rule, self.noise, halo=halo, side=side, lines=lines, scratch=codes
        )


def stack_of(plan: Plan, spec: TileSpec, frames: Sequence[FramePlan], settings: StackSettings) -> Stack:
    """What each frame needs to come to the tile."""
    reference, kernel = plan.frames[spec.reference], Kernel(settings.kernel)
    levels = [levels_of(frame, reference, Normalise(settings.normalise)) for frame in frames]
    gain = np.array([level.gain for level in levels])
    variance = (np.array([f.noise_adu for f in frames], np.float64) * gain) ** 2
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
        weights=weights_of(Weights(settings.weights), variance, np.array([f.fwhm_px for f in frames])),
        noise=combine.NoiseModel(variance=variance, photon=photon, pedestal=np.array(reference.sky_adu, np.float64)),
        rule=combine.Rule(
            method=combine.Method(settings.rejection),
            average=combine.Average(settings.combine),
            k_low=settings.kappa_low,
            k_high=settings.kappa_high,
            kernel_gain=NOISE_GAIN[kernel],
        ),
        kernel=kernel,
    )
