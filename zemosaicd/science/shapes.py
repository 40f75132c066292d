"""How alike the frames of a camera are: one scale and no stretch, unless the session shows otherwise.

A frame of few stars tells its own scale badly, and its stretch (differential refraction, a flexing mount: up to some
1e-4) worse. Each is therefore held to the camera's by as much as the frames' own values scatter beyond their errors:
random effects with the variance estimated from the session (DerSimonian & Laird 1986, Controlled Clinical Trials 7,
177). Nothing to see: held fast. A drift, or a change of scale in mid-session: left as free as that asks for.
"""

from __future__ import annotations

import math

import numpy as np

from zemosaicd.science.joint import F64, HELD, I64, SHAPE, Fit, Frames, Shapes, Sightings, by_frame, project, shape_of
from zemosaicd.science.normal import FRAME_UNKNOWNS, squares

LOUD_SIGMA = 2.0
"""Standard deviations of chi^2 above its mean from which a scatter is real."""
GAP_SIGMA = 5.0
MIN_STARS = 4


def free_scale(frames: Frames) -> Shapes:
    """Every frame with a scale of its own, and no stretch: what a fit starts with."""
    return Shapes(shape_of(frames), np.tile([0.0, HELD, HELD], (len(frames.t), 1)))


def shapes_seen(fit: Fit, seen: Sightings) -> Shapes:
    """How firmly to hold each frame's scale and stretch after a fit with free scales."""
    value, variance = _told(fit, seen)
    mean, weight = np.zeros_like(value), np.zeros_like(value)
    for camera in np.unique(fit.frames.camera):
        mine = np.flatnonzero(fit.frames.camera == camera)
        for column, known in enumerate((None, 0.0, 0.0)):
            for group in _alike(value[mine, column], variance[mine, column]):
                chosen = mine[group]
                mean[chosen, column], weight[chosen, column] = _held(
                    value[chosen, column], variance[chosen, column], known
                )
    return Shapes(mean, weight)


def _alike(value: F64, variance: F64) -> list[I64]:
    """Indices in groups that nothing lies between: a scale that was changed in mid-session makes two."""
    order = np.argsort(value, kind="stable")
    gap = np.diff(value[order]) > GAP_SIGMA * np.sqrt(variance[order][:-1] + variance[order][1:])
    return np.split(order, np.flatnonzero(gap) + 1)


def _held(value: F64, variance: F64, known: float | None) -> tuple[float, float]:
    """Mean of some frames (unless it is known), and the weight, px^-2, that holds each of them to it."""
    told = np.isfinite(variance) & (variance > 0)
    expected = int(told.sum()) - (known is None)
    if expected < 1:
        return (known, HELD) if known is not None else (0.0, 0.0)
    w, v = 1 / variance[told], value[told]
    mean = known if known is not None else float((w * v).sum() / w.sum())
    excess = float((w * (v - mean) ** 2).sum()) - expected
    if excess < LOUD_SIGMA * math.sqrt(2 * expected):
        return mean, HELD
    return mean, float(w.sum() - ((w**2).sum() / w.sum() if known is None else 0.0)) / excess


def _told(fit: Fit, seen: Sightings) -> tuple[F64, F64]:
    """Each frame's shape (F, 3) as its own stars alone would have it, and the variance of that (inf: they cannot say).

    The stars of the session are taken as they are; px at the half diagonal.
    """
    f = fit.frames
    offset, *_ = project(f, seen.frame, fit.stars[seen.star])
    root = np.sqrt(fit.weight / (fit.floor**2 + seen.snr_var))
    derivatives = by_frame(f, seen, offset) * root[:, None, None]
    residual = np.stack([fit.residual.real * root, fit.residual.imag * root], axis=1)
    pull = np.zeros((len(f.t), FRAME_UNKNOWNS))
    np.add.at(pull, seen.frame, np.einsum("mkj,mk->mj", derivatives, residual))
    own = squares(derivatives, seen.frame, len(f.t))
    shape, variance = shape_of(f), np.full((len(f.t), 3), np.inf)
    told = np.flatnonzero(np.bincount(seen.frame, minlength=len(f.t)) >= MIN_STARS)
    for unknowns, columns in ((4, [0]), (6, [1, 2])):  # the stretch is told from the scale, not the scale from it
        inverse = np.linalg.pinv(own[told, :unknowns, :unknowns], hermitian=True)
        step = np.einsum("fij,fj->fi", inverse, pull[told, :unknowns])
        for column in columns:
            shape[told, column] += step[:, SHAPE[column]]
            variance[told, column] = inverse[:, SHAPE[column], SHAPE[column]]
    return shape, variance
