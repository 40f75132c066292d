"""How well, and how fast, frames are tied together: residuals of frame-to-frame transforms against truth.

    python benchmarks/bench_registration.py [SEEDS]

Made-up star lists (starlists.py) of 50 frames go through the joint solution; every frame's transform to every fifth
frame is held against the truth on a 9 x 15 grid of the common area. Figures in px: median over pairs of the median, its
95th percentile, median of the worst point, worst point of all; in brackets those to the first frame alone; CPU ms a
frame; coefficients of the lenses that were admitted. "Allowed by the noise": what the centroids leave of a pair's
transform at best, if the stars' places are known. Then the time against the number of frames.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from starlists import ListNight, MadeLists, Place, make, pair_errors

from zemosaicd.science.registration import JointSolution, solve_session

CASES: dict[str, dict[str, Any]] = {
    "shifts": {},
    "rotation, 60 deg": {"turn_deg": 60.0},
    "rotation, 350 deg": {"turn_deg": 350.0},
    "meridian flip": {"flip": True},
    "1 % of scale": {"scale_step": 0.01},
    "1.5 px distortion": {"corner_px": 1.5},
    "distortion, flip": {"corner_px": 1.5, "flip": True},
    "distortion, 60 deg": {"corner_px": 1.5, "turn_deg": 60.0},
    "all of these": {"corner_px": 1.5, "turn_deg": 60.0, "flip": True, "scale_step": 0.01},
    "3 x 3 panels, distortion": {"corner_px": 1.5, "panels": 9},
    "refraction, z 20 to 50": {"zenith_deg": (20.0, 50.0)},
    "refraction, z 50 to 65": {"zenith_deg": (50.0, 65.0)},
    "20 hot pixels": {"hot": 20},
}
LISTS = ({"stars": 200}, {"stars": 25, "rough": True}, {"stars": 8, "rough": True})


def places(solution: JointSolution) -> list[Place | None]:
    """What was found, to be held against the truth."""
    return [Place(wcs=f.wcs, distortion=f.distortion) if f.wcs is not None else None for f in solution.frames]


def solved(made: MadeLists, **options: Any) -> tuple[JointSolution, float]:
    """The solution and its CPU ms a frame."""
    start = time.process_time()
    solution = solve_session(made.frames, made.anchor_ra_deg, made.anchor_dec_deg, **options)
    return solution, 1e3 * (time.process_time() - start) / len(made.frames)


def accuracy(seeds: range) -> None:
    """One row a case and kind of list."""
    for lists in LISTS:
        print(f"\n{lists}, {len(seeds)} nights: median, 95 %, median worst, worst")
        for name, case in CASES.items():
            errors, first, cost, lenses = [], [], [], set()
            for seed in seeds:
                made = make(ListNight(**lists, **case, seed=seed, field=seed))
                solution, ms = solved(made)
                found = places(solution)
                errors.append(pair_errors(made, found, range(0, len(found), 5)))
                first.append(pair_errors(made, found))
                cost.append(ms)
                lenses |= {lens.coefficients if lens.distortion else 0 for lens in solution.lenses}
            print(
                f"{name:26s} {figures(errors)}   ({figures(first)})   {np.median(cost):5.1f} ms   lens {sorted(lenses)}"
            )


def figures(errors: list[Any]) -> str:
    """Median, 95 % of the medians, median of the worst, worst."""
    medians, worst = np.concatenate(errors).T
    return " ".join(f"{v:.4f}" for v in (np.median(medians), np.percentile(medians, 95), np.median(worst), worst.max()))


def allowed(stars: int) -> None:
    """The noise's own floor for rough lists that cover the frame evenly: both frames of a pair fitted to the truth."""
    rng, night = np.random.default_rng(0), ListNight()
    sigma = np.hypot(0.1, 7.2 / (15 * (200 * 0.9 / (np.arange(stars) + 0.5)) ** 1.14 * 0.8))
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 9) * night.width, np.linspace(-0.5, 0.5, 15) * night.height)
    for name, unknowns in (("similarity", 4), ("shift and turn", 3)):
        errors = []
        for _ in range(400):
            error = np.zeros(x.size, np.complex128)
            for _frame in range(2):
                at = (rng.uniform(-0.5, 0.5, (stars, 2)) * (night.width, night.height)) @ (1, 1j)
                design = np.concatenate([f(_columns(at, unknowns)) for f in (np.real, np.imag)])
                weight = 1 / np.tile(sigma, 2)
                fit = np.linalg.lstsq(design * weight[:, None], rng.normal(0, 1, 2 * stars), rcond=None)[0]
                error += _columns((x + 1j * y).ravel(), unknowns) @ fit
            errors.append((np.median(np.abs(error)), np.abs(error).max()))
        print(f"allowed by the noise of {stars} rough stars, {name:14s} {figures([np.array(errors)])} (400 pairs)")


def _columns(at: Any, unknowns: int) -> Any:
    """What shift x, shift y, turn and scale do to places."""
    return np.stack([np.ones_like(at), 1j * np.ones_like(at), 1j * at, at][:unknowns], axis=1)


def speed() -> None:
    """CPU ms a frame against the number of frames, with a lens to be found."""
    print()
    for panels, frames in ((1, 50), (1, 200), (1, 1000), (1, 2000), (16, 2000)):
        made = make(ListNight(frames=frames, panels=panels, corner_px=1.5, turn_deg=60.0 if panels == 1 else 0.0))
        row = [f"{count} stars {solved(made, stars_per_frame=count)[1]:5.1f}" for count in (60, 120)]
        print(f"{frames:5d} frames of {panels:2d} panels, ms a frame: {', '.join(row)}")


def main() -> None:
    """Print the figures."""
    seeds = range(1, 1 + (int(sys.argv[1]) if len(sys.argv) > 1 else 4))
    accuracy(seeds)
    for stars in (25, 8):
        allowed(stars)
    speed()


if __name__ == "__main__":
    main()
