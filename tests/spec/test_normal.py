"""The step of the joint solution against plain dense least squares."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaicd.science import normal
from zemosaicd.science.normal import Equations, solve


def problem(frames: int, stars: int, lens: int, seed: int) -> Equations:
    """Every frame sees two thirds of the stars; random derivatives, priors on some unknowns, ties on some stars."""
    rng = np.random.default_rng(seed)
    pairs = np.argwhere(rng.random((frames, stars)) < 0.67)
    m = len(pairs)
    return Equations(
        frame_of=pairs[:, 0], star_of=pairs[:, 1],
        frame=rng.normal(size=(m, 2, 6)), star=np.eye(2) + 0.3 * rng.normal(size=(m, 2, 2)),
        lens=rng.normal(size=(2 * m, lens)), residual=rng.normal(size=2 * m),
        prior=rng.uniform(0, 3, (frames, 6)) * (rng.random((frames, 6)) < 0.5), prior_step=rng.normal(size=(frames, 6)),
        tie=rng.uniform(0, 3, stars) * (rng.random(stars) < 0.3), tie_step=rng.normal(size=(stars, 2)),
    )  # fmt: skip


def dense(e: Equations) -> np.ndarray:
    """All steps in one row: frames, stars, lenses."""
    frames, stars, m = len(e.prior), len(e.tie), len(e.frame_of)
    rows = np.zeros((2 * m, 6 * frames + 2 * stars + e.lens.shape[1]))
    for i in range(m):
        rows[2 * i : 2 * i + 2, 6 * e.frame_of[i] : 6 * e.frame_of[i] + 6] = e.frame[i]
        at = 6 * frames + 2 * e.star_of[i]
        rows[2 * i : 2 * i + 2, at : at + 2] = e.star[i]
    rows[:, 6 * frames + 2 * stars :] = e.lens
    weight = np.concatenate([e.prior.ravel(), np.repeat(e.tie, 2)])
    held = np.eye(len(weight), rows.shape[1]) * np.sqrt(weight)[:, np.newaxis]
    wanted = np.sqrt(weight) * np.concatenate([e.prior_step.ravel(), e.tie_step.ravel()])
    return np.linalg.lstsq(np.vstack([rows, held]), np.concatenate([e.residual, wanted]), rcond=None)[0]


@pytest.mark.parametrize(("frames", "stars"), [(12, 9), (3, 40), (40, 12)])
@pytest.mark.parametrize("lens", [0, 5])
@pytest.mark.parametrize("whole", [normal.WHOLE, 0], ids=["whole", "sparse"])
def test_a_step_is_the_least_squares_solution(
    frames: int, stars: int, lens: int, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many frames of few stars or few of many, with lenses and without, coupled by a matrix with its zeros or without
    them: the dense answer, whichever side goes first."""
    monkeypatch.setattr(normal, "WHOLE", whole)
    e = problem(frames, stars, lens, seed=frames + lens)
    found = np.concatenate([part.ravel() for part in solve(e)])
    np.testing.assert_allclose(found, dense(e), rtol=1e-5, atol=1e-6)


def test_what_nothing_holds_stays() -> None:
    """A frame and a star that no observation mentions do not move, and spoil nothing."""
    e = problem(10, 8, 0, seed=3)
    seen = (e.frame_of != 4) & (e.star_of != 5)
    prior, tie = e.prior.copy(), e.tie.copy()
    prior[4], tie[5] = 0.0, 0.0
    both = np.repeat(seen, 2)
    less = Equations(
        frame_of=e.frame_of[seen], star_of=e.star_of[seen], frame=e.frame[seen], star=e.star[seen], lens=e.lens[both],
        residual=e.residual[both], prior=prior, prior_step=e.prior_step, tie=tie, tie_step=e.tie_step,
    )  # fmt: skip
    frames, stars, _ = solve(less)
    assert not frames[4].any()
    assert not stars[5].any()
    assert np.isfinite(frames).all()
    assert np.abs(frames).sum() > 0
