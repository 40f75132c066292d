"""How alike the frames of a camera are: one scale and no stretch, unless the session shows otherwise.

A frame of few stars tells its own scale badly, and its stretch (differential refraction, a flexing mount: up to some
1e-4) worse. What the atmosphere and the cold do to them they do slowly: each is held to a curve through the session's
frames, in their order, of as many terms as pay (Schwarz 1978, Annals of Statistics 6, 461), and to that by as much as
the frames' own values scatter about it beyond their errors: random effects with the variance estimated from the session
(DerSimonian & Laird 1986, Controlled Clinical Trials 7, 177). Nothing to see: held fast, to one scale and no stretch. A
change of scale in mid-session, or what no curve follows: left as free as that asks for.
"""

from __future__ import annotations

import math

import numpy as np

from zemosaicd.science.joint import F64, HELD, I64, SHAPE, Fit, Frames, Shapes, Sightings, by_frame, project, shape_of
from zemosaicd.science.normal import FRAME_UNKNOWNS, squares

LOUD_SIGMA = 2.0
"""Standard deviations of chi^2 above its mean from which a scatter is real."""
GAP_SIGMA = 5.0
MOST_TERMS = 5
"""Of a curve, beside its mean: a stretch turns twice as fast as the vertical does against the sky."""
FRAMES_A_TERM, PRICE = 5, 3.0
"""Frames that a term of the curve needs, and its price in those of Schwarz: frames of many panels, each bent a little
by the lens, are no drift."""
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
        for column, centred in enumerate((False, True, True)):
            for group in _alike(value[mine, column], variance[mine, column]):
                chosen = mine[np.sort(group)]
                mean[chosen, column], weight[chosen, column] = _held(
                    chosen, value[chosen, column], variance[chosen, column], centred
                )
    return Shapes(mean, weight)


def _alike(value: F64, variance: F64) -> list[I64]:
    """Indices in groups that nothing lies between: a scale that was changed in mid-session makes two."""
    order = np.argsort(value, kind="stable")
    gap = np.diff(value[order]) > GAP_SIGMA * np.sqrt(variance[order][:-1] + variance[order][1:])
    return np.split(order, np.flatnonzero(gap) + 1)


def _held(frame: I64, value: F64, variance: F64, centred: bool) -> tuple[F64, float]:
    """The curve (n,) that some frames' values follow, and the weight, px^-2, that holds each of them to it.

    `frame` (n,): their numbers, ascending, by which the curve goes; `centred`: it has no mean of its own, but 0.
    """
    told = np.isfinite(variance) & (variance > 0)
    count, fewest = int(told.sum()), 0 if centred else 1
    if count <= fewest:
        return np.zeros(len(value), np.float64), HELD if centred else 0.0
    first, last = frame[told][[0, -1]]
    place = np.clip(2.0 * (frame - first) / max(last - first, 1) - 1.0, -1.0, 1.0)  # no curve says what lies beyond
    terms: F64 = np.polynomial.legendre.legvander(place, MOST_TERMS)[:, 1 - fewest :]
    w, v = 1 / variance[told], value[told]
    most = max(fewest, min(fewest + MOST_TERMS, count // FRAMES_A_TERM))
    fits = {q: _fitted(terms[told, :q], w, v) for q in range(fewest, most + 1)}
    best = min(fits, key=lambda q: fits[q][1] + q * PRICE * math.log(count))
    coefficients, misfit = fits[best]
    mean, excess = terms[:, :best] @ coefficients, misfit - (count - best)
    if excess < LOUD_SIGMA * math.sqrt(2 * (count - best)):
        return mean, HELD
    design = terms[told, :best]
    once, twice = (design.T @ (design * power[:, None]) for power in (w, w**2))
    used = float(np.trace(np.linalg.solve(once, twice)))
    return mean, (float(w.sum()) - used) / excess


def _fitted(design: F64, w: F64, v: F64) -> tuple[F64, float]:
    """Coefficients of a weighted fit, and its chi^2."""
    root = np.sqrt(w)
    coefficients = np.asarray(np.linalg.lstsq(design * root[:, None], v * root, rcond=None)[0], np.float64)
    return coefficients, float((w * (v - design @ coefficients) ** 2).sum())


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
