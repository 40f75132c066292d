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
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core.wcs_cards import header_wcs
from zemosaicd.model import Wcs
from zemosaicd.science.stars import find_stars
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.fitswrite import read_image

pytestmark = pytest.mark.frames


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


def process(frames: list[Path], work: Path) -> Made:
    """Copies frames into one folder and runs the command on it, as a user would."""
    incoming = work / "night"
    incoming.mkdir()
    for frame in frames:
        shutil.copy(frame, incoming / frame.name)
    before = digests(incoming)
    command = [sys.executable, "-m", "zemosaicd", "process", str(incoming), "--output", str(work / "out")]
    run = subprocess.run(
        [*command, "--set", f"paths.state={work / 'state'}"], capture_output=True, text=True, timeout=240, cwd=work
    )
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
        unchanged=digests(incoming) == before,
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


def test_field_rotation_of_an_altaz_mount_is_followed(frames_dir: Path, tmp_path: Path) -> None:
    """NGC 7023: four frames that turn against each other are one tile, placed by their own header solutions."""
    made = process(sorted((frames_dir / "ngc7023_altaz").glob("*.fit")), tmp_path)
    assert made.report["frames"]["used"] == 4
    assert set(made.report["solver"].values()) == {"header+catalogue"}
    count, median_arcsec = distance_to_catalogue_arcsec(made)
    assert count >= 12
    assert median_arcsec < 0.8
