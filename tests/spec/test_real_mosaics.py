"""Real frames become mosaics: what `zemosaicd process` makes of the sets that people have."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sep
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core import headers
from zemosaicd.core.wcs_cards import header_wcs
from zemosaicd.model import Solution, Wcs
from zemosaicd.science.astrometry import locate
from zemosaicd.science.stars import find_stars, shape
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.fitsio import read_frame
from zemosaicd.work.fitswrite import read_image

pytestmark = pytest.mark.frames

F64 = NDArray[np.float64]
FULL_ADU = 58000.0
"""Above this a photosite may not have counted all its light."""


@dataclass(frozen=True, slots=True)
class Made:
    """What one run left behind."""

    folder: Path
    state: Path
    report: dict[str, Any]
    picture: NDArray[np.float32]
    coverage: NDArray[np.uint16]
    wcs: Wcs
    unchanged: bool


def command(frames: list[Path], work: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """Copies frames into one folder and runs the command on it, as a user would."""
    incoming = work / "night"
    incoming.mkdir()
    for frame in frames:
        shutil.copy(frame, incoming / frame.name)
    words = [sys.executable, "-m", "zemosaicd", "process", str(incoming), "--output", str(work / "out")]
    words += [part for text in (f"paths.state={work / 'state'}", *settings) for part in ("--set", text)]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, cwd=work)


def process(frames: list[Path], work: Path, *settings: str) -> Made:
    """What that command leaves behind when all goes well."""
    before = {frame.name: hashlib.sha256(frame.read_bytes()).hexdigest() for frame in frames}
    run = command(frames, work, *settings)
    assert run.returncode == 0, run.stderr[-3000:]
    folder = work / "out" / "night"
    cards, picture = read_image(folder / "mosaic.fits")
    wcs = header_wcs(cards)
    assert wcs is not None
    return Made(
        folder=folder,
        state=work / "state",
        report=json.loads((folder / "report.json").read_text()),
        picture=picture,
        coverage=read_image(folder / "mosaic.fits", "COVERAGE")[1],
        wcs=wcs,
        unchanged=digests(work / "night") == before,
    )


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def distance_to_catalogue_arcsec(made: Made) -> tuple[int, float]:
    """(number, median distance) of the mosaic's bright stars with a Tycho-2 star within 6 arcsec, by its own WCS."""
    green = made.picture[1]
    stars = find_stars(green, "", limit=80)
    height, width = green.shape
    centre = sphere.pixel_to_sky(made.wcs, width / 2, height / 2)
    radius = np.hypot(height, width) / 2 * sphere.scale_arcsec(made.wcs) / 3600
    near = read_cone(*sphere.position(centre), radius)
    known = np.array([sphere.direction(r, d) for r, d in zip(near.ra_deg, near.dec_deg, strict=True)])
    found = np.array([sphere.pixel_to_sky(made.wcs, x, y) for x, y in zip(stars.x, stars.y, strict=True)])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    away = np.linalg.norm(found[:, None] - known[None], axis=2).min(axis=1) / sphere.ARCSEC_RAD
    close = away[away < 6.0]
    return len(close), float(np.median(close))


@pytest.fixture(scope="module")
def m27(frames_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return process(sorted((frames_dir / "m27_osc").glob("*.fits")), tmp_path_factory.mktemp("m27"))


@pytest.fixture(scope="module")
def m94(frames_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folders = ("m94_night1", "m94_night2", "m94_other_scope")
    frames = [f for folder in folders for f in sorted((frames_dir / folder).glob("*.fit"))]
    return process(frames, tmp_path_factory.mktemp("m94"))


def test_six_frames_of_one_field_become_a_colour_picture(m27: Made) -> None:
    """M 27: one master tile of all six frames, every frame used, verdict good."""
    assert m27.report["frames"]["used"] == m27.report["frames"]["total"] == 6
    assert (m27.report["num_master_tiles"], m27.report["tiles_total"], m27.report["verdict"]) == (1, 1, "good")
    assert m27.picture.ndim == 3
    assert m27.picture.shape[0] == 3
    assert int(m27.coverage.max()) == 6


def test_two_nights_and_another_telescope_become_a_cross(m94: Made) -> None:
    """M 94: the union of two orientations, nothing cropped to either, one scale for both, seams below the noise."""
    assert m94.report["frames"]["used"] == m94.report["frames"]["total"] == 23
    assert m94.report["num_master_tiles"] == m94.report["tiles_total"] == 2
    assert int(m94.coverage.max()) == 23
    assert abs(m94.report["seams"]["worst_sigma"]) < 0.1
    seen_deg2 = np.isfinite(m94.picture[1]).sum() * (sphere.scale_arcsec(m94.wcs) / 3600) ** 2
    one_field_deg2 = 1080 * 1920 * (2.374 / 3600) ** 2
    assert 1.35 * one_field_deg2 < seen_deg2 < 1.75 * one_field_deg2
    assert m94.report["verdict"] == "good"


@pytest.mark.parametrize("name", ["m27", "m94"])
def test_the_mosaic_lies_where_the_catalogue_says(name: str, request: pytest.FixtureRequest) -> None:
    """Its bright stars lie within the catalogue's own epoch error of their places (0.3 to 0.7 arcsec)."""
    count, median_arcsec = distance_to_catalogue_arcsec(request.getfixturevalue(name))
    assert count >= 12
    assert median_arcsec < 0.8


@pytest.mark.parametrize("name", ["m27", "m94"])
def test_pixels_are_nan_exactly_where_nothing_was_seen(name: str, request: pytest.FixtureRequest) -> None:
    """No black borders, no invented sky: finite means covered."""
    made = request.getfixturevalue(name)
    assert np.array_equal(np.isfinite(made.picture).all(axis=0), made.coverage > 0)


@pytest.mark.parametrize("name", ["m27", "m94"])
def test_P9_only_results_stay_and_the_frames_are_untouched(name: str, request: pytest.FixtureRequest) -> None:
    """Temporary files are gone, the three outputs lie there, and every frame has the bytes that it had."""
    made = request.getfixturevalue(name)
    assert made.unchanged
    assert sorted(p.name for p in made.folder.iterdir()) == ["mosaic.fits", "preview.png", "report.json"]
    assert not list((made.state / "sessions").iterdir())


@pytest.fixture(scope="module")
def ngc7023(frames_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    frames = sorted((frames_dir / "ngc7023_altaz").glob("*.fit"))
    return process(frames, tmp_path_factory.mktemp("ngc7023"), "log.level=debug")


def log_lines(state: Path) -> list[dict[str, Any]]:
    """What the run said, line by line."""
    return [json.loads(line) for line in (state / "log" / "zemosaicd.log").read_text().splitlines()]


def said(state: Path, event: str) -> list[str]:
    """The sentences of one event."""
    return [line["message"] for line in log_lines(state) if line["event"] == event]


def test_field_rotation_of_an_altaz_mount_is_followed(ngc7023: Made) -> None:
    """NGC 7023: four frames that turn against each other are one tile, placed by their own header solutions."""
    assert ngc7023.report["frames"]["used"] == 4
    assert set(ngc7023.report["solver"].values()) == {"header+catalogue"}
    count, median_arcsec = distance_to_catalogue_arcsec(ngc7023)
    assert count >= 12
    assert median_arcsec < 0.8


def test_M2_the_gate_stays_shut_for_a_mount_that_nobody_named(ngc7023: Made) -> None:
    """NGC 7023 as it is: its headers name no mount, so it is UNKNOWN, and nothing is masked by itself."""
    assert said(ngc7023.state, "P3_ALTaz_GATING") == [
        "P3_ALTaz_GATING: tile_id=1 eqmode=UNKNOWN global_enabled=False => tile_enabled=False"
    ]
    assert said(ngc7023.state, "AUTO_ALTaz_cleanup") == []


def test_M2_the_gate_opens_for_a_mount_that_the_user_named(frames_dir: Path, tmp_path: Path) -> None:
    """NGC 7023 with `session.mount_mode = "ALT_AZ"`: the same frames, the gate open, both lines logged."""
    frames = sorted((frames_dir / "ngc7023_altaz").glob("*.fit"))
    made = process(frames, tmp_path, "log.level=debug", "session.mount_mode=ALT_AZ")
    assert made.report["frames"]["used"] == 4
    assert said(made.state, "P3_ALTaz_GATING") == [
        "P3_ALTaz_GATING: tile_id=1 eqmode=ALT_AZ global_enabled=True => tile_enabled=True"
    ]
    assert said(made.state, "AUTO_ALTaz_cleanup") == [
        "AUTO_ALTaz_cleanup: 4 ALT_AZ frames, so the ALT-AZ clean-up is on."
    ]


def test_finished_tiles_end_with_a_reason_each_and_not_with_a_crash(frames_dir: Path, tmp_path: Path) -> None:
    """M 42: ten calibrated tiles are no raw frames; in mode classic each is refused by name, and the exit code says no
    mosaic."""
    tiles = sorted((frames_dir / "m42_2mass_tiles").glob("*.fits"))
    assert len(tiles) == 10
    run = command(tiles, tmp_path, "session.mode=classic")
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    refused = {x["frame"]: x["reason"] for x in log_lines(tmp_path / "state") if x["event"] == "frame_rejected"}
    assert refused.keys() == {tile.name for tile in tiles}
    assert all(refused.values())
    assert not list(tmp_path.rglob("mosaic.fits"))


def test_auto_takes_a_folder_of_anybodys_tiles_as_tiles(frames_dir: Path, tmp_path: Path) -> None:
    """M 42 again, nothing asked for: all ten become one mosaic in mode existing, and the report says why."""
    run = command(sorted((frames_dir / "m42_2mass_tiles").glob("*.fits")), tmp_path)
    assert run.returncode == 0, run.stderr
    (report,) = tmp_path.rglob("report.json")
    said = json.loads(report.read_text())
    assert (said["mode"], said["mode_reason"]) == ("existing", "master tiles and no raw frame")
    assert (said["verdict"], said["frames"]["used"]) == ("good", 10)


# --- colours -------------------------------------------------------------------------------------------------------


def fluxes(plane: NDArray[np.float32], x: F64, y: F64, radius_px: float) -> tuple[F64, F64, F64]:
    """(flux, its noise, highest pixel) in a circle about each position over the median of a ring; NaN at the edge."""
    flux, noise, peak = np.full((3, len(x)), np.nan)
    outer = 2 * radius_px + 3
    reach = int(outer) + 2
    height, width = plane.shape
    for i, (x0, y0) in enumerate(zip(x, y, strict=True)):
        if not (reach <= x0 < width - reach - 1 and reach <= y0 < height - reach - 1):
            continue
        left, top = int(x0) - reach, int(y0) - reach
        cut = np.ascontiguousarray(plane[top : top + 2 * reach + 2, left : left + 2 * reach + 2])
        rows, columns = np.indices(cut.shape)
        away = np.hypot(columns - (x0 - left), rows - (y0 - top))
        ring = cut[(away > radius_px + 1) & (away < outer)]
        sky = float(np.median(ring))
        sigma = 1.4826 * float(np.median(np.abs(ring - sky)))
        total, _, _ = sep.sum_circle(cut, [x0 - left], [y0 - top], [radius_px], subpix=0)
        area = np.pi * radius_px**2
        flux[i], noise[i] = total[0] - area * sky, sigma * np.sqrt(area * (1 + 1.57 * area / len(ring)))
        peak[i] = cut[away <= radius_px + 1].max()
    return flux, noise, peak


def raw_fluxes(frame: Path, made: Made, x: F64, y: F64, apertures_px: float) -> F64:
    """R, G, B fluxes (3, n) of stars of the mosaic in one raw frame, each colour on its own photosites; NaN: unsure.

    Nothing of the pipeline but its star finder and solver has a say in them: raw numbers, no repair, no demosaic.
    """
    raw = read_frame(frame)
    facts = headers.facts(raw.cards, frame.name)
    assert facts.bayer == "RGGB"
    plane = raw.pixels.astype(np.float32)
    stars = find_stars(plane, facts.bayer)
    solution = locate(stars, facts, 2020.0, read_cone)
    assert isinstance(solution, Solution)
    places = [sphere.sky_to_pixel(solution.wcs, sphere.pixel_to_sky(made.wcs, *at)) for at in zip(x, y, strict=True)]
    away = np.array([np.hypot(at[0] - stars.x, at[1] - stars.y) for at in places if at is not None])
    assert len(away) == len(x)
    nearest = away.argmin(axis=1)
    sx, sy = stars.x[nearest], stars.y[nearest]
    result = []
    for sites in (((0, 0),), ((0, 1), (1, 0)), ((1, 1),)):
        measured = [fluxes(plane[dy::2, dx::2], (sx - dx) / 2, (sy - dy) / 2, apertures_px / 2) for dy, dx in sites]
        flux = 4 * np.mean([m[0] for m in measured], axis=0)
        result.append(np.where(np.max([m[2] for m in measured], axis=0) < FULL_ADU, flux, np.nan))
    return np.where(away.min(axis=1) < 2.0, result, np.nan)


@pytest.mark.parametrize(("blue", "red"), [(2, 0), (2, 1), (1, 0)], ids=["B-R", "B-G", "G-R"])
def test_the_stack_changes_no_stars_colour(m27: Made, frames_dir: Path, blue: int, red: int) -> None:
    """M 27: stars of SNR 30 have, relative to each other, the colours that the raw photosites gave them.

    Scatter below 0.05 mag, no star off by 0.2 mag: repair, warp, rejection and coadd take as much of one colour of a
    star as of the others, be it red or blue.
    """
    stars = find_stars(m27.picture[1], "", limit=400)
    radius_px = 1.5 * shape(stars)[0]
    flux, noise, _ = np.array([fluxes(plane, stars.x, stars.y, radius_px) for plane in m27.picture]).swapaxes(0, 1)
    frames = sorted((frames_dir / "m27_osc").glob("*.fits"))
    raw = np.mean([raw_fluxes(frame, m27, stars.x, stars.y, radius_px) for frame in frames], axis=0)
    good = (flux > 30 * noise).all(axis=0) & np.isfinite(raw).all(axis=0)
    assert good.sum() >= 40
    change = 2.5 * np.log10((flux[red] / flux[blue] * raw[blue] / raw[red])[good])
    assert abs(np.median(change)) < 0.1  # one number for all: apertures differ a little
    assert change.std() < 0.05
    assert np.abs(change - np.median(change)).max() < 0.2


TYCHO_COLOURS = np.array(
    [  # ra_deg, dec_deg, V, B-V (Johnson) of Tycho-2 (Høg et al. 2000), unsaturated stars of the field of M 27
        (299.8366, 22.6144, 9.93, 0.42),
        (299.7346, 22.7441, 10.14, 1.13),
        (300.1777, 22.5749, 10.16, 1.50),
        (299.7119, 22.7486, 10.30, 1.17),
        (299.9288, 22.8791, 10.33, 0.04),
        (299.7684, 22.7735, 10.51, 0.15),
        (299.8414, 22.9249, 10.52, 0.41),
        (299.8922, 22.5208, 10.59, 0.36),
        (300.0983, 22.6509, 10.72, 0.53),
        (300.1225, 22.5724, 10.74, 0.04),
        (300.0625, 22.8643, 10.74, 0.31),
        (300.0473, 22.8900, 10.88, 0.27),
        (300.1591, 22.7018, 10.90, 0.99),
        (300.1418, 22.6779, 10.91, 0.18),
        (300.2121, 22.6267, 10.91, 0.50),
        (300.0119, 22.5975, 10.93, 1.30),
    ]
)


@pytest.mark.parametrize(("blue", "red"), [(2, 0), (2, 1), (1, 0)], ids=["B-R", "B-G", "G-R"])
def test_star_colours_follow_the_literature(m27: Made, blue: int, red: int) -> None:
    """M 27: a star's colour in the mosaic is, relative to the others, within 0.2 mag of what its Tycho B-V asks.

    One straight line holds for all of them (the camera's passbands are not Johnson's). What a star may be off beyond
    0.2 mag is the catalogue's own doubt: Tycho-2's errors of B and V (0.06 mag at 10, 0.16 at 12), three of them.
    """
    stars = find_stars(m27.picture[1], "", limit=600)
    places = [sphere.sky_to_pixel(m27.wcs, sphere.direction(ra, dec)) for ra, dec in TYCHO_COLOURS[:, :2]]
    assert all(place is not None for place in places)
    away = np.array([np.hypot(place[0] - stars.x, place[1] - stars.y) for place in places if place is not None])
    nearest = away.argmin(axis=1)
    assert (away.min(axis=1) < 3.0).all()
    flux = np.array([fluxes(p, stars.x[nearest], stars.y[nearest], 1.5 * shape(stars)[0])[0] for p in m27.picture])
    _, _, v, colour = TYCHO_COLOURS.T
    doubt = np.hypot(0.06 * 10 ** (0.21 * (v + colour - 10.0)), 0.06 * 10 ** (0.21 * (v - 10.0)))
    seen = -2.5 * np.log10(flux[blue] / flux[red])
    slope, start = np.polyfit(colour, seen, 1, w=1.0 / np.hypot(0.1, doubt))
    off = np.abs(seen - start - slope * colour)
    assert 0.3 < slope < 1.3
    assert np.median(off) < 0.15
    assert (off < 0.2 + 3.0 * slope * doubt).all(), off
