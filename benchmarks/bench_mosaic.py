"""A mosaic from master tiles: seconds, CPU, memory and quality, beside SWarp, Montage and reproject if they are there.

    python benchmarks/bench_mosaic.py [SIDE] [ROUNDS] [--only NAME,...]

SIDE x SIDE tiles of 1080 x 1920, float32, each on its own tangent plane, a fifth shared with each neighbour, with known
gains (5 %), levels (25 e) and slopes (15 e across a tile) over one true sky of stars and a nebula. All programs work on
the same files and the same grid, in turn, ROUNDS times; medians are printed. `zemosaicd, warm` is its job in a worker
that has done one before; `cold` is the command, start-up and preview and report included. SWarp runs as users run it,
with its mesh background; Montage with matched backgrounds; reproject with bilinear interpolation and matched levels,
by this Python, or by the one that REPROJECT_PYTHON names.

Quality: `seam` the step of the sky where a tile ends, rms in e; `sky` what is left of the sky without the true nebula
and a plane; `nebula` the share of it that is kept; `zp` the spread of the tiles' zero points; `stars` the scatter of
bright stars; `fwhm` their width over that in the tiles; `holes` pixels inside tiles without a value.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core.plan import PlanSettings
from zemosaicd.core.wcs_cards import header_wcs, wcs_header
from zemosaicd.model import Grid, Wcs
from zemosaicd.work.fitsblocks import Budget
from zemosaicd.work.fitswrite import ImageSpec, read_image, write_fits
from zemosaicd.work.jobs import MakeMosaic, MosaicSettings, PlanTiles
from zemosaicd.work.planfiles import TilesRequest, read_plan, write_request

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

WIDTH, HEIGHT, SCALE_DEG, OVERLAP = 1080, 1920, 2.37 / 3600, 0.2
RA, DEC = 314.75, 44.33
FWHM_PX, NOISE_E, SKY_E, NEBULA_E = 2.9, 2.2, 250.0, 60.0
STARS_PER_MPX = 900
AGE_S = 3600.0


# --- tiles -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sky:
    """The truth: stars (n,) on a tangent plane about the middle, degrees, with electrons; blobs of nebula (m, 4)."""

    x: F64
    y: F64
    flux: F64
    blobs: F64

    def nebula(self, x: F64, y: F64) -> F64:
        """Electrons a pixel at places of the plane."""
        light = np.zeros_like(x)
        for u, v, sigma, height in self.blobs:
            light += height * np.exp(-0.5 * ((x - u) ** 2 + (y - v) ** 2) / sigma**2)
        return light


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """What was made: the files, where each lies, what was done to it, and the sky."""

    paths: list[Path]
    places: list[Wcs]
    gains: list[float]
    sky: Sky
    plane: Wcs


def plane_of(x: float, y: float) -> Wcs:
    """The tangent plane of a tile `x, y` degrees from the middle."""
    dec = DEC + y
    ra = RA + x / math.cos(math.radians(dec))
    return Wcs(ra_deg=ra, dec_deg=dec, x_px=(WIDTH - 1) / 2, y_px=(HEIGHT - 1) / 2, cd=(-SCALE_DEG, 0, 0, SCALE_DEG))


def make_tiles(folder: Path, side: int, seed: int = 1) -> Tiles:
    """Writes the tiles."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    reach = side * HEIGHT * SCALE_DEG
    count = int(STARS_PER_MPX * (reach / SCALE_DEG) ** 2 / 1e6)
    x, y = rng.uniform(-reach / 2, reach / 2, (2, count))
    blobs = np.stack(
        [*rng.uniform(-reach / 3, reach / 3, (2, 8)), rng.uniform(0.08, 0.3, 8), rng.uniform(0.2, 1, 8) * NEBULA_E], 1
    )
    sky = Sky(x=x, y=y, flux=np.minimum(400 * (1 + rng.pareto(1.1, count)), 3e5), blobs=blobs)
    plane = Wcs(ra_deg=RA, dec_deg=DEC, x_px=0.0, y_px=0.0, cd=(-SCALE_DEG, 0.0, 0.0, SCALE_DEG))
    made = Tiles(paths=[], places=[], gains=[], sky=sky, plane=plane)
    for row in range(side):
        for column in range(side):
            step_x, step_y = WIDTH * (1 - OVERLAP) * SCALE_DEG, HEIGHT * (1 - OVERLAP) * SCALE_DEG
            wcs = plane_of((column - (side - 1) / 2) * step_x, (row - (side - 1) / 2) * step_y)
            turn = math.radians(rng.uniform(-0.3, 0.3))
            c, s = SCALE_DEG * math.cos(turn), SCALE_DEG * math.sin(turn)
            wcs = Wcs(ra_deg=wcs.ra_deg, dec_deg=wcs.dec_deg, x_px=wcs.x_px, y_px=wcs.y_px, cd=(-c, s, s, c))
            made.gains.append(float(1 + rng.uniform(-0.05, 0.05)))
            made.places.append(wcs)
            made.paths.append(folder / f"tile_{len(made.places):03d}.fits")
            write_tile(made.paths[-1], render(sky, plane, wcs, rng) * made.gains[-1] + tilt(rng), wcs)
    for path in made.paths:  # as if they had lain there: a file that is new has to settle first
        os.utime(path, (time.time() - AGE_S, time.time() - AGE_S))
    return made


def write_tile(path: Path, pixels: F64, wcs: Wcs) -> None:
    """One tile with nothing but its WCS."""
    with write_fits(path, [ImageSpec(name="", shape=pixels.shape, wcs=wcs)]) as writer:
        writer.write("", 0, pixels.astype(np.float32))


def tilt(rng: np.random.Generator) -> F64:
    """A level and a slope that a tile's sky had to itself."""
    level, slope_x, slope_y = rng.uniform(-25, 25), rng.uniform(-15, 15), rng.uniform(-15, 15)
    return np.asarray(
        level + slope_x * (np.arange(WIDTH) / WIDTH - 0.5) + slope_y * (np.arange(HEIGHT)[:, None] / HEIGHT - 0.5)
    )


def on_plane(plane: Wcs, wcs: Wcs, width: int, height: int) -> tuple[F64, F64]:
    """Places of an image's pixels on the sky's plane, degrees, (height, width) each."""
    m = sphere.homography(wcs, plane)
    x, y = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[:, None]
    w = m[6] * x + m[7] * y + m[8]
    u, v = (m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w
    return -u * SCALE_DEG, v * SCALE_DEG


def star_places(made_plane: Wcs, sky: Sky, wcs: Wcs) -> tuple[F64, F64]:
    """Where the stars lie in an image, px."""
    m = sphere.homography(made_plane, wcs)
    x, y = -sky.x / SCALE_DEG, sky.y / SCALE_DEG
    w = m[6] * x + m[7] * y + m[8]
    return (m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w


def render(sky: Sky, plane: Wcs, wcs: Wcs, rng: np.random.Generator) -> F64:
    """A tile of the true sky, electrons, with its noise."""
    picture = SKY_E + sky.nebula(*on_plane(plane, wcs, WIDTH, HEIGHT))
    u, v = star_places(plane, sky, wcs)
    sigma = FWHM_PX / 2.3548
    y, x = np.mgrid[-10:11, -10:11]
    for cx, cy, flux in zip(u, v, sky.flux, strict=True):
        ix, iy = round(cx), round(cy)
        if 10 <= ix < WIDTH - 11 and 10 <= iy < HEIGHT - 11:
            r2 = (x + ix - cx) ** 2 + (y + iy - cy) ** 2
            picture[iy - 10 : iy + 11, ix - 10 : ix + 11] += (
                flux * np.exp(-0.5 * r2 / sigma**2) / (2 * math.pi * sigma**2)
            )
    return picture + rng.normal(0.0, NOISE_E, picture.shape)


# --- programs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run took: seconds, CPU seconds, largest process in MB."""

    wall_s: float
    cpu_s: float
    rss_mb: float


Program = Callable[[Path, Tiles, Grid], tuple[Cost, Path]]


LAUNCHER = """
import json, os, sys
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
out = {"code": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss / 1024}
open("usage.json", "w").write(json.dumps(out))
"""
"""A child's largest size counts from that of its parent; so the parent is a small one."""


def run(commands: Sequence[Sequence[str]], folder: Path) -> Cost:
    """Runs commands one after the other."""
    wall, cpu, rss = 0.0, 0.0, 0.0
    for command in commands:
        started = time.perf_counter()
        with (folder / "log.txt").open("ab") as log:
            launched = [sys.executable, "-S", "-c", LAUNCHER, *command]
            subprocess.run(launched, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=True)
        wall += time.perf_counter() - started
        usage = json.loads((folder / "usage.json").read_text())
        if usage["code"] not in (0, 3):
            raise RuntimeError(f"{command[0]}: {usage['code']}\n{(folder / 'log.txt').read_text()[-2000:]}")
        cpu, rss = cpu + usage["cpu"], max(rss, usage["rss"])
    return Cost(wall_s=wall, cpu_s=cpu, rss_mb=rss)


def grid_cards(grid: Grid) -> str:
    """The grid as the text header that SWarp and Montage read."""
    cards: dict[str, object] = {"SIMPLE": "T", "BITPIX": -32, "NAXIS": 2, "NAXIS1": grid.width, "NAXIS2": grid.height}
    cards |= {k: f"'{v}'" if isinstance(v, str) else v for k, v in wcs_header(grid.wcs).items()}
    return "\n".join(f"{k:<8}= {v!s:>20}" for k, v in cards.items()) + "\nEND\n"


def linked(folder: Path, tiles: Tiles, name: str = "raw") -> list[str]:
    """Short names for the tiles."""
    (folder / name).mkdir()
    for path in tiles.paths:
        (folder / name / path.name).symlink_to(path)
    return [f"{name}/{path.name}" for path in tiles.paths]


def swarp(folder: Path, tiles: Tiles, grid: Grid) -> tuple[Cost, Path]:
    """Lanczos-3, mesh background off tile by tile."""
    (folder / "coadd.head").write_text(grid_cards(grid))
    options = (
        "-IMAGEOUT_NAME coadd.fits -RESAMPLING_TYPE LANCZOS3 -COMBINE_TYPE AVERAGE -SUBTRACT_BACK Y -BACK_SIZE 256"
    )
    options += f" -NTHREADS {os.cpu_count()} -WRITE_XML N -VERBOSE_TYPE QUIET"
    return run([["SWarp", *linked(folder, tiles), *options.split()]], folder), folder / "coadd.fits"


def montage(folder: Path, tiles: Tiles, grid: Grid) -> tuple[Cost, Path]:
    """Backgrounds matched by planes."""
    (folder / "t.hdr").write_text(grid_cards(grid))
    linked(folder, tiles)
    for name in ("proj", "diff", "corr"):
        (folder / name).mkdir()
    steps = """mImgtbl raw raw.tbl
        mProjExec -p raw raw.tbl t.hdr proj stats.tbl
        mImgtbl proj proj.tbl
        mOverlaps proj.tbl diffs.tbl
        mDiffExec -p proj diffs.tbl t.hdr diff
        mFitExec diffs.tbl fits.tbl diff
        mBgModel proj.tbl fits.tbl corr.tbl
        mBgExec -p proj proj.tbl corr.tbl corr
        mAdd -p corr proj.tbl t.hdr coadd.fits"""
    return run([line.split() for line in steps.splitlines()], folder), folder / "coadd.fits"


REPROJECT = """
import sys, numpy as np
from pathlib import Path
from astropy.io import fits
from astropy.wcs import WCS
from reproject import reproject_interp
from reproject.mosaicking import reproject_and_coadd
header = fits.Header.fromstring(Path("t.hdr").read_text(), sep="\\n")
tiles = [(fits.getdata(p).astype(np.float32), WCS(fits.getheader(p))) for p in sorted(Path("raw").iterdir())]
shape = header["NAXIS2"], header["NAXIS1"]
data, seen = reproject_and_coadd(tiles, WCS(header), shape_out=shape, reproject_function=reproject_interp,
                                 order="bilinear", combine_function="mean", match_background=True)
data[seen <= 0] = np.nan
fits.writeto("coadd.fits", data.astype(np.float32), header)
"""


def reproject_python() -> str:
    """The Python that has reproject."""
    return os.environ.get("REPROJECT_PYTHON", sys.executable)


def reproject(folder: Path, tiles: Tiles, grid: Grid) -> tuple[Cost, Path]:
    """Bilinear, levels matched."""
    (folder / "t.hdr").write_text(grid_cards(grid))
    linked(folder, tiles)
    (folder / "job.py").write_text(REPROJECT)
    return run([[reproject_python(), "-W", "ignore", "job.py"]], folder), folder / "coadd.fits"


def cold(folder: Path, tiles: Tiles, grid: Grid) -> tuple[Cost, Path]:
    """The command, from nothing to the published mosaic."""
    settings = [f"paths.state={folder / 'state'}", "session.mode=existing"]
    overrides = [part for text in settings for part in ("--set", text)]
    command = [sys.executable, "-m", "zemosaicd", "process", str(tiles.paths[0].parent), "--output", "out", *overrides]
    cost = run([command], folder)
    return cost, next((folder / "out").glob("*/mosaic.fits"))


def warm(folder: Path, tiles: Tiles, grid: Grid) -> tuple[Cost, Path]:
    """The jobs of Phases 4 to 6 in a worker that has done them once."""
    job = [sys.executable, str(Path(__file__).resolve()), "--job", str(tiles.paths[0].parent), str(folder)]
    run([job], folder)
    figures = json.loads((folder / "cost.json").read_text())
    return Cost(**figures), folder / "mosaic.fits"


def job(tiles: Path, folder: Path) -> None:
    """Two mosaics of the same tiles in this process; says what the second cost."""
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        plan_of(tiles, folder)
        make(folder)
        cost = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    cost["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (folder / "cost.json").write_text(json.dumps(cost))


def plan_of(tiles: Path, folder: Path) -> Grid:
    """Phase 4; returns the mosaic's grid."""
    paths = tuple(sorted(str(p) for p in tiles.iterdir()))
    write_request(TilesRequest(paths=paths, settings=PlanSettings(), budget=Budget()), folder / "tiles.json")
    PlanTiles(tiles_path=str(folder / "tiles.json"), plan_path=str(folder / "plan.json")).run()
    from zemosaicd.core.canvas import union

    plan = read_plan(folder / "plan.json")
    return union((t.grid for t in plan.tiles), plan.mosaics[0].lattice)


def make(folder: Path) -> None:
    """Phases 5 and 6."""
    plan = read_plan(folder / "plan.json")
    MakeMosaic(
        plan_path=str(folder / "plan.json"),
        name=plan.mosaics[0].name,
        tiles=tuple(plan.made.items()),
        without=(),
        mosaic=str(folder / "mosaic.fits"),
        preview=str(folder / "preview.png"),
        session="bench",
        revision=1,
        settings=MosaicSettings(threads=os.cpu_count() or 1),
    ).run()


PROGRAMS: dict[str, tuple[str, Program]] = {
    "zemosaicd, warm": ("", warm),
    "zemosaicd, cold": ("", cold),
    "SWarp": ("SWarp", swarp),
    "Montage": ("mProjExec", montage),
    "reproject": ("reproject", reproject),
}


def there(needs: str) -> bool:
    """Whether a program can be run here."""
    if needs == "reproject":
        return not subprocess.run(
            [reproject_python(), "-c", "import reproject"], capture_output=True, check=False
        ).returncode
    return not needs or shutil.which(needs) is not None


# --- quality ---------------------------------------------------------------------------------------------------------


def quality(path: Path, tiles: Tiles) -> dict[str, float]:
    """A mosaic against the truth, in electrons and magnitudes."""
    cards, picture = read_image(path)
    wcs = header_wcs(cards)
    if wcs is None:
        raise ValueError(f"{path}: no WCS")
    picture = np.where(picture == 0.0, np.nan, picture).astype(np.float64)
    height, width = picture.shape
    depth, edge = depths(tiles, wcs, width, height)
    truth = tiles.sky.nebula(*on_plane(tiles.plane, wcs, width, height))
    scale, stars = photometry(picture, depth, tiles, wcs)
    sky = background(picture / scale, truth)
    return {
        "seam": seams(picture / scale - truth, edge, depth),
        **sky,
        **stars,
        "fwhm": sharpness(picture, tiles, wcs),
        "holes": float((np.isnan(picture) & (depth > 0)).sum() / (depth > 0).sum()),
    }


def depths(tiles: Tiles, wcs: Wcs, width: int, height: int) -> tuple[NDArray[np.int64], F64]:
    """How many tiles see each pixel, and its distance to the nearest edge of a tile, px, positive inside that tile."""
    depth, edge = np.zeros((height, width), np.int64), np.full((height, width), 1e9)
    x, y = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[:, None]
    for place in tiles.places:
        m = sphere.homography(wcs, place)
        w = m[6] * x + m[7] * y + m[8]
        u, v = (m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w
        inside = np.minimum(np.minimum(u + 0.5, WIDTH - 0.5 - u), np.minimum(v + 0.5, HEIGHT - 0.5 - v))
        depth += inside > 0.01
        edge = np.where(np.abs(inside) < np.abs(edge), inside, edge)
    return depth, edge


def seams(residual: F64, edge: F64, depth: NDArray[np.int64]) -> float:
    """Rms over cells of 96 px of the step across tiles' edges where both sides are seen, less that of noise."""
    steps, noise = [], []
    for row in range(0, residual.shape[0] - 96, 96):
        for column in range(0, residual.shape[1] - 96, 96):
            cut = np.s_[row : row + 96, column : column + 96]
            near = np.isfinite(residual[cut]) & (np.abs(edge[cut]) > 2) & (np.abs(edge[cut]) < 28) & (depth[cut] > 0)
            inner, outer = (residual[cut][near & (side * edge[cut] > 0)] for side in (1, -1))
            if min(len(inner), len(outer)) > 800:
                steps.append(float(np.median(inner) - np.median(outer)))
                noise.append(1.57 * NOISE_E**2 * (1 / len(inner) + 1 / len(outer)))
    return math.sqrt(max(0.0, float(np.mean(np.square(steps)) - np.mean(noise))))


def background(picture: F64, truth: F64) -> dict[str, float]:
    """Medians of 32-px blocks against the true nebula and one plane."""
    side = 32
    h, w = (n // side * side for n in picture.shape)

    def blocks(image: F64) -> F64:
        cells = image[:h, :w].reshape(h // side, side, w // side, side).swapaxes(1, 2).reshape(-1, side * side)
        return np.where(np.isfinite(cells).all(axis=1), np.median(cells, axis=1), np.nan)

    seen, light = blocks(picture), blocks(truth)
    y, x = (v.ravel() for v in np.mgrid[0 : h // side, 0 : w // side])
    good = np.isfinite(seen)
    design = np.stack([light, np.ones(len(x)), x, y], axis=1)[good]
    fit, *_ = np.linalg.lstsq(design, seen[good], rcond=None)
    left = seen[good] - light[good]
    plane, *_ = np.linalg.lstsq(design[:, 1:], left, rcond=None)
    return {"sky": float(np.std(left - design[:, 1:] @ plane)), "nebula": float(fit[0])}


def photometry(picture: F64, depth: NDArray[np.int64], tiles: Tiles, wcs: Wcs) -> tuple[float, dict[str, float]]:
    """The scale of bright lone stars, their scatter, and the spread of the tiles' zero points, by stars of one tile."""
    x, y = star_places(tiles.plane, tiles.sky, wcs)
    homes = [star_places(tiles.plane, tiles.sky, place) for place in tiles.places]
    inside = np.stack([(u > 12) & (u < WIDTH - 13) & (v > 12) & (v < HEIGHT - 13) for u, v in homes])
    ratios, owner = [], []
    for i in np.flatnonzero((tiles.sky.flux > 8000) & inside.any(axis=0)):
        flux = lone_flux(picture, x, y, tiles.sky.flux, i)
        if math.isfinite(flux):
            ratios.append(flux / tiles.sky.flux[i])
            owner.append(int(inside[:, i].argmax()) if inside[:, i].sum() == 1 else -1)
    mag = -2.5 * np.log10(np.array(ratios))
    points = [np.median(mag[np.array(owner) == t]) for t in range(len(tiles.paths)) if owner.count(t) >= 4]
    scatter = 1.4826 * float(np.median(np.abs(mag - np.median(mag))))
    return float(np.median(ratios)), {"zp": float(np.ptp(points)), "stars": scatter}


def lone_flux(picture: F64, x: F64, y: F64, flux: F64, i: int) -> float:
    """Aperture flux of a star over the ring round it; NaN if another of some light is near, or pixels are missing."""
    cx, cy, reach = round(x[i]), round(y[i]), 14
    if not (reach <= cx < picture.shape[1] - reach and reach <= cy < picture.shape[0] - reach):
        return math.nan
    near = (np.abs(x - x[i]) < 16) & (np.abs(y - y[i]) < 16)
    if flux[near].sum() > 1.02 * flux[i]:
        return math.nan
    cut = picture[cy - reach : cy + reach + 1, cx - reach : cx + reach + 1]
    v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    away = np.hypot(u + cx - x[i], v + cy - y[i])
    return float((cut - np.median(cut[away > 10]))[away <= 7].sum())


def sharpness(picture: F64, tiles: Tiles, wcs: Wcs) -> float:
    """Windowed width of bright lone stars over that in the tile."""
    x, y = star_places(tiles.plane, tiles.sky, wcs)
    sigma, widths = FWHM_PX / 2.3548, []
    v, u = np.mgrid[-10:11, -10:11]
    for i in np.flatnonzero(tiles.sky.flux > 20000):
        cx, cy = round(x[i]), round(y[i])
        if not math.isfinite(lone_flux(picture, x, y, tiles.sky.flux, i)):
            continue
        cut = picture[cy - 10 : cy + 11, cx - 10 : cx + 11] - np.median(picture[cy - 10 : cy + 11, cx - 10 : cx + 11])
        r2 = (u + cx - x[i]) ** 2 + (v + cy - y[i]) ** 2
        w = cut * np.exp(-0.5 * r2 / sigma**2)
        widths.append(math.sqrt(float((w * r2).sum() / w.sum())) / sigma)
    return float(np.median(widths))


# --- the table -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Prints the table."""
    words = [a for a in sys.argv[1:] if not a.startswith("--")]
    if "--job" in sys.argv:
        job(Path(words[0]), Path(words[1]))
        return
    only = words.pop().split(",") if "--only" in sys.argv else list(PROGRAMS)
    side, rounds = int(words[0]) if words else 2, int(words[1]) if len(words) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tiles = make_tiles(root / "tiles", side)
        grid = plan_of(root / "tiles", root)
        print(f"{side} x {side} tiles of {WIDTH} x {HEIGHT} -> {grid.width} x {grid.height} px, {rounds} rounds")
        programs = {n: p for n, (needs, p) in PROGRAMS.items() if n.startswith(tuple(only)) and there(needs)}
        costs: dict[str, list[Cost]] = {name: [] for name in programs}
        grades: dict[str, dict[str, float]] = {}
        for _ in range(rounds):
            for label, program in programs.items():
                folder = root / "run"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                cost, path = program(folder, tiles, grid)
                costs[label].append(cost)
                grades.setdefault(label, quality(path, tiles))
        table(costs, grades)


def table(costs: dict[str, list[Cost]], grades: dict[str, dict[str, float]]) -> None:
    """Medians, and how many times as long each takes as ours."""
    middle = {
        label: {f: statistics.median(getattr(c, f) for c in runs) for f in ("wall_s", "cpu_s", "rss_mb")}
        for label, runs in costs.items()
    }
    for label, m in middle.items():
        line = f"{label:16s} {m['wall_s']:7.2f} s wall {m['cpu_s']:7.2f} s CPU {m['rss_mb']:6.0f} MB"
        for ours in ("zemosaicd, warm", "zemosaicd, cold"):
            if ours in middle and not label.startswith("zemosaicd"):
                cpu, wall = m["cpu_s"] / middle[ours]["cpu_s"], m["wall_s"] / middle[ours]["wall_s"]
                line += f"   {wall:5.1f} x the wall, {cpu:5.1f} x the CPU of {ours.partition(' ')[2]}"
        print(line)
    for label, grade in grades.items():
        print(f"{label:16s} " + "  ".join(f"{k} {v:.4f}" for k, v in grade.items()))


if __name__ == "__main__":
    main()
