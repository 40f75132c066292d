"""The sky's share of a night's frames: a plane a frame, and the illumination of each camera, from maps of block levels.

Knows block maps (a level and a noise for each 128-px block of a frame and colour) and where the frames lie; never
pixels. A block of frame i at sensor place x, which sees the sky at s, is modelled as

    level = black + f(x) (t_i N(s) + L_i (1 + plane_i(x))),    f = 1 + a r^2 + b r^4

N: what stays on the sky (nebula, unresolved stars), on a lattice of nodes; t_i: the frame's transparency; L_i: its sky
light; f: what stays on the sensor (vignetting), r from its middle in half diagonals. Only change tells f from N: sky
light that comes and goes, frames that are turned or moved against each other. What the data cannot tell apart shows as
a difference between halves of the session, and an illumination that the halves do not agree on is not used.

`black` is the level at which the noise's variance, extrapolated along the light, is zero (photon transfer; Janesick
2007): it contains the read noise, which is small against any sky.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zemosaicd.science.blockplanes import HUBER, LEAST_BLOCKS, ROUNDS, add_frames, fit_planes
from zemosaicd.sphere import Matrix

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

TERMS = 2
"""Powers of r^2 in the illumination."""
RIDGE = 1e-7
LEAST_FRAMES = 8  # the halves of fewer can agree by chance
SIGNIFICANT = 2.5
"""An illumination counts if it is so many times half of what the session's halves make it differ (who know less of it
than the whole session does, so that this is a cautious measure) ..."""
LEAST_DIMMING = 0.004
"""... and if it changes the light by so much (rms over the sensor)."""
DEEPEST = 0.6
"""More light than this is never lost in a corner by vignetting alone."""

_MAGIC = b"ZBM1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockMap:
    """Levels and noise of a frame's blocks, float32 (C, rows, columns), ADU a photosite; NaN: no data in the block."""

    level: F32
    noise: F32

    def to_bytes(self) -> bytes:
        """8 bytes a block and channel after a head: magic, then channels, rows and columns, little-endian."""
        head = struct.pack("<4sHHH", _MAGIC, *self.level.shape)
        return head + self.level.astype("<f4").tobytes() + self.noise.astype("<f4").tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> BlockMap:
        """The inverse of `to_bytes`; ValueError for anything else."""
        head = struct.calcsize("<4sHHH")
        if len(data) < head or data[:4] != _MAGIC:
            raise ValueError("not a block map of this version")
        shape = struct.unpack("<4sHHH", data[:head])[1:]
        if len(data) != head + 8 * math.prod(shape):
            raise ValueError("the block map is cut short or too long")
        level, noise = np.frombuffer(data, "<f4", offset=head).reshape(2, *shape).astype(np.float32)
        return BlockMap(level=level, noise=noise)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameSky:
    """One frame of a group: its blocks, the way to the group's common plane (frame px -> px there), its transparency
    (C,) float64, the size of its sensor in px, and whose sensor that is.
    """

    blocks: BlockMap
    to_common: Matrix
    transparency: F64
    width: int
    height: int
    camera: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Illumination:
    """The light that reaches a sensor: f = 1 + terms[0] r^2 + terms[1] r^4, all colours alike.

    `dimming`: rms of f over the sensor about its mean; `doubt`: rms by which the two halves of the session make it
    differ, halved, an estimate of its error; NaN where it could not be measured. `used`: significant and confirmed by
    the half that it was not measured on.
    """

    terms: tuple[float, ...]
    dimming: float
    doubt: float
    used: bool

    def at(self, r2: F64) -> F64:
        """f at squared distances from the middle, in half diagonals."""
        return np.asarray(1.0 + sum(a * r2 ** (k + 1) for k, a in enumerate(self.terms)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SkyPlane:
    """A frame's own sky, float64 (C,): `level` in the middle of the sensor (NaN: no data), slopes a px, `light`: level
    over black.

    The mean plane of a group's frames belongs to the sky that they have in common, so slopes are differences.
    """

    level: F64
    slope_x: F64
    slope_y: F64
    light: F64


UNKNOWN = Illumination(terms=(0.0,) * TERMS, dimming=math.nan, doubt=math.nan, used=False)


def solve_skies(groups: Sequence[Sequence[FrameSky]]) -> tuple[list[list[SkyPlane]], dict[str, Illumination]]:
    """The sky plane of every frame (as the groups are given), and the illumination of each camera.

    Frames of a group see the same field with the same camera, in canonical order. Blocks without data, and those that
    fit no plane (a bright star, a cloud's edge), count for little.
    """
    prepared = [_Group(frames) for frames in groups]
    light = {c: _illumination([g for g in prepared if g.camera == c]) for c in sorted({g.camera for g in prepared})}
    return [_planes(g, light[g.camera]) for g in prepared], light


class _Group:
    """A group's blocks as arrays: n frames, C channels, m blocks."""

    def __init__(self, frames: Sequence[FrameSky]) -> None:
        first = frames[0]
        self.camera = first.camera
        rows, columns = first.blocks.level.shape[1:]
        middle = (first.width - 1) / 2, (first.height - 1) / 2
        y = (np.arange(rows) + 0.5) * first.height / rows - 0.5 - middle[1]
        x = (np.arange(columns) + 0.5) * first.width / columns - 0.5 - middle[0]
        x, y = (v.reshape(-1) for v in np.meshgrid(x, y))
        self.half = math.hypot(first.width, first.height) / 2
        self.basis = np.stack([np.ones_like(x), x / self.half, y / self.half], axis=1)
        self.r2 = (x**2 + y**2) / self.half**2
        self.powers = np.stack([self.r2 ** (j + 1) for j in range(TERMS)], axis=1)
        self.level = np.array([f.blocks.level.reshape(len(f.blocks.level), -1) for f in frames], np.float64)
        noise = np.array([f.blocks.noise.reshape(len(f.blocks.noise), -1) for f in frames], np.float64)
        self.transparency = np.array([f.transparency for f in frames], np.float64)
        good = np.isfinite(self.level) & np.isfinite(noise) & (noise > 0.0)
        self.weight = np.where(good, 1.0 / np.where(good, noise, 1.0) ** 2, 0.0)
        self.black = np.array([_black(self.level[:, k], noise[:, k]) for k in range(self.level.shape[1])])
        self.light = np.zeros(self.transparency.shape)  # 0 where nothing was measured
        for i, k in np.ndindex(*self.light.shape):
            if good[i, k].any():
                self.light[i, k] = np.median(self.level[i, k, good[i, k]]) - self.black[k]
        self.common = np.array([_through(f.to_common, x + middle[0], y + middle[1]) for f in frames])
        step = max(first.width / columns, first.height / rows)
        self.places, self.node, self.share = _nodes(self.common, step)

    def brightness(self, terms: F64) -> F64:
        """(n, C, m): levels over black, the illumination divided out."""
        return np.asarray((self.level - self.black[:, np.newaxis]) / (1.0 + self.powers @ terms))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _System:
    """Normal equations of a group with every frame's own plane eliminated: a channel, those of its nodes and the
    illumination's terms; `inner` (C, nodes, TERMS + 1): what the nodes take of each term, and are without them.
    """

    normal: F64
    target: F64
    inner: F64

    def terms_alone(self) -> tuple[F64, F64]:
        """Equations of the terms, (TERMS, TERMS) and (TERMS,), all channels together."""
        n = self.inner.shape[1]
        taken = self.normal[:, n:, :n] @ self.inner
        total = self.normal[:, n:, n:] - taken[:, :, :TERMS]
        return total.sum(axis=0), (self.target[:, n:] - taken[:, :, TERMS]).sum(axis=0)

    def node_values(self, change: F64) -> F64:
        """(C, nodes) once the terms have changed by so much."""
        return np.asarray(self.inner[:, :, TERMS] - self.inner[:, :, :TERMS] @ change)


def _system(group: _Group, frames: I64, terms: F64, weight: F64) -> _System:
    """The equations of some of a group's frames, about an illumination; weight (n, C, m)."""
    channels, nodes = group.level.shape[1], len(group.places)
    normal, target = np.zeros((channels, nodes + TERMS, nodes + TERMS)), np.zeros((channels, nodes + TERMS))
    dimmed = group.powers / (1.0 + group.powers @ terms)[:, np.newaxis]
    add_frames(
        frames, group.node, group.share, group.transparency, group.light, dimmed, group.basis,
        group.brightness(terms), weight, normal, target,
    )  # fmt: skip
    highest = normal[:, np.arange(nodes), np.arange(nodes)].max(axis=1)
    ridge = np.where(highest > 0.0, RIDGE * highest, 1.0)
    normal[:, np.arange(nodes), np.arange(nodes)] += ridge[:, np.newaxis]
    wanted = np.concatenate([normal[:, :nodes, nodes:], target[:, :nodes, np.newaxis]], axis=2)
    return _System(normal=normal, target=target, inner=np.linalg.solve(normal[:, :nodes, :nodes], wanted))


def _residuals(group: _Group, terms: F64, nodes: F64) -> tuple[F64, F64]:
    """((n, C, m) residuals over a block's noise, (n, C, 3) frames' planes) under an illumination and nodes (C, N)."""
    there = np.einsum("imj,cimj->icm", group.share, nodes[:, group.node])
    value = group.brightness(terms) - group.transparency[:, :, np.newaxis] * there
    planes, off = np.zeros((*value.shape[:2], 3)), np.zeros(value.shape)
    fit_planes(value, group.weight, group.basis, planes, off)
    return off, planes


def _huber(off: F64) -> F64:
    """Weights of residuals (any shape, in sigmas), whose robust scale is taken from themselves."""
    scale = max(1.4826 * float(np.median(np.abs(off))), 1e-12) * HUBER
    return np.asarray(np.minimum(1.0, scale / np.maximum(np.abs(off), 1e-12)))


def _fit(groups: Sequence[_Group], which: Sequence[I64]) -> tuple[F64, list[F64], F64, F64]:
    """(terms, node values a group, and the equations of the terms about no illumination) from some frames of each."""
    terms, weights = np.zeros(TERMS), [g.weight for g in groups]
    nodes: list[F64] = []
    start = np.zeros((TERMS, TERMS)), np.zeros(TERMS)
    for step in range(ROUNDS):
        systems = [_system(g, f, terms, w) for g, f, w in zip(groups, which, weights, strict=True)]
        alone = [s.terms_alone() for s in systems]
        total, right = sum(a for a, _ in alone), sum(r for _, r in alone)
        change = np.linalg.lstsq(np.asarray(total), np.asarray(right), rcond=1e-10)[0]
        terms = terms + change
        start = (np.asarray(total), np.asarray(right)) if step == 0 else start
        nodes = [s.node_values(change) for s in systems]
        weights = [g.weight * _huber(_residuals(g, terms, n)[0]) for g, n in zip(groups, nodes, strict=True)]
    return terms, nodes, *start


def _illumination(groups: Sequence[_Group]) -> Illumination:
    """A camera's illumination from all groups that it took, and whether what came first agrees with what came later.

    (Every other frame would agree with the rest in its errors too: stars pass slowly from block to block.)
    """
    frames = sum(len(g.level) for g in groups)
    if frames < LEAST_FRAMES or min(g.level.shape[2] for g in groups) < LEAST_BLOCKS:
        return UNKNOWN
    everyone = [np.arange(len(g.level)) for g in groups]
    terms = _fit(groups, everyone)[0]
    halves = [_fit(groups, [np.array_split(f, 2)[side] for f in everyone]) for side in (0, 1)]
    r2 = groups[0].powers
    dimming = float(np.std(r2 @ terms))
    doubt = float(np.std(r2 @ (halves[0][0] - halves[1][0]))) / 2
    # what the terms of one half do to the squared residuals of the other, about no illumination
    confirmed = all(
        2 * a @ right - a @ total @ a > 0 for (a, *_), (*_, total, right) in zip(halves, halves[::-1], strict=True)
    )
    f = Illumination(terms=tuple(float(a) for a in terms), dimming=dimming, doubt=doubt, used=False)
    over = f.at(np.linspace(0.0, 1.0, 21))
    plausible = bool(over.max() <= 1.0 + LEAST_DIMMING and over.min() >= 1.0 - DEEPEST)
    used = confirmed and plausible and dimming >= max(LEAST_DIMMING, SIGNIFICANT * doubt)
    return Illumination(terms=f.terms, dimming=dimming, doubt=doubt, used=used)


def _planes(group: _Group, light: Illumination) -> list[SkyPlane]:
    """The frames' own skies under an illumination."""
    terms = np.array(light.terms) if light.used else np.zeros(TERMS)
    nodes = np.zeros((group.level.shape[1], len(group.places)))
    comparable = group.level.shape[2] >= LEAST_BLOCKS  # else each keeps its own level, and none has a slope
    if len(group.level) > 1 and comparable:
        weight = group.weight
        for _ in range(ROUNDS):
            nodes = _system(group, np.arange(len(group.level)), terms, weight).node_values(np.zeros(TERMS))
            weight = group.weight * _huber(_residuals(group, terms, nodes)[0])
    planes = _residuals(group, terms, nodes)[1]
    planes = _gauged(group, planes, nodes) if comparable else planes
    return [
        SkyPlane(level=p[:, 0] + group.black, slope_x=p[:, 1] / group.half, slope_y=p[:, 2] / group.half, light=p[:, 0])
        for p in planes
    ]


def _gauged(group: _Group, planes: F64, nodes: F64) -> F64:
    """Planes (n, C, 3) with their common level and slope made definite: nodes of mean 0, no mean slope on the sky.

    Adding a + b s to the nodes and taking t_i (a + b s_i(x)) from each frame changes nothing.
    """
    affine = [np.linalg.lstsq(group.basis, c.T, rcond=None)[0] for c in group.common]  # (3, 2): s of (1, x, y)
    slope = np.array([np.linalg.solve(a[1:], p[:, 1:].T).T for a, p in zip(affine, planes, strict=True)])  # (n, C, 2)
    t = group.transparency
    known = np.isfinite(planes[:, :, 0])
    b = slope.sum(axis=0) / np.maximum((t * known).sum(axis=0), 1e-12)[:, np.newaxis]
    a = -(nodes + b @ group.places.T).mean(axis=1)
    out = planes.copy()
    for i, m in enumerate(affine):
        out[i, :, 0] -= t[i] * (a + b @ m[0])
        out[i, :, 1:] -= t[i][:, np.newaxis] * (b @ m[1:].T)
    return out


def _black(level: F64, noise: F64) -> float:
    """Level without light, from the variance's rise along the light over the blocks (n, m); 0 if it cannot be told."""
    good = np.isfinite(level) & np.isfinite(noise) & (noise > 0.0)
    x, y = level[good], noise[good] ** 2
    if len(x) < LEAST_BLOCKS or not np.ptp(x) > 0.0:
        return 0.0
    weight = np.ones(len(x))
    slope = offset = 0.0
    for _ in range(2 * ROUNDS):
        w = weight / y.mean() ** 2
        xm, ym = np.average(x, weights=w), np.average(y, weights=w)
        slope = float((w * (x - xm) * (y - ym)).sum() / (w * (x - xm) ** 2).sum())
        offset = float(ym - slope * xm)
        weight = _huber(y - offset - slope * x)
    error = float(np.std(y - offset - slope * x)) / (math.sqrt(len(x)) * float(np.std(x)))
    if not slope > 5.0 * error:
        return 0.0
    return min(max(-offset / slope, 0.0), float(np.min(x)))


def _through(m: Matrix, x: F64, y: F64) -> F64:
    """(2, len) of 0-based pixels through a homography."""
    w = m[6] * x + m[7] * y + m[8]
    return np.stack([(m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w])


def _nodes(common: F64, step: float) -> tuple[F64, I64, F64]:
    """Nodes of a square lattice under the places common (n, 2, m): their places (N, 2), and for each place the four
    round it (n, m, 4) and their bilinear shares (n, m, 4). Nodes that no place touches are left out.
    """
    low = common.min(axis=(0, 2))
    u, v = ((common[:, a] - low[a]) / step for a in (0, 1))
    iu, iv = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    fu, fv = u - iu, v - iv
    across = int(iu.max()) + 2
    corners = np.stack([(iv + dv) * across + iu + du for dv in (0, 1) for du in (0, 1)], axis=-1)
    share = np.stack([(1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv], axis=-1)
    used, node = np.unique(corners, return_inverse=True)
    places = low + step * np.stack([used % across, used // across], axis=1)
    return places, node.reshape(corners.shape), share
