"""The shipped star catalogue: a cone of sky is exactly the stars in it, read from its own cells only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.model import Fatal
from zemosaicd.sphere import direction
from zemosaicd.work import catalogue
from zemosaicd.work.catalogue import RECORD, cells_a_band, read_cone

ROOT = Path(__file__).parents[2]
INDEX = Path("/usr/share/astrometry/index-tycho2-07.littleendian.fits")


@pytest.fixture(scope="module")
def sky() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (n, 3) and magnitudes of the whole catalogue, read at once."""
    whole = read_cone(0.0, 0.0, 180.0)
    ra, dec = np.radians(whole.ra_deg), np.radians(whole.dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1), whole.mag


def test_the_whole_sky_is_there(sky: tuple[np.ndarray, np.ndarray]) -> None:
    """All 1,871,011 stars, in at most 20 MB."""
    assert len(sky[1]) == 1_871_011
    assert (ROOT / "zemosaicd" / "data" / "tycho2.cat").stat().st_size < 20e6


@given(ra=st.floats(-400, 400), dec=st.floats(-90, 90), radius=st.floats(0.01, 4.0))
@settings(max_examples=40)
def test_a_cone_is_every_star_within_the_radius(
    sky: tuple[np.ndarray, np.ndarray], ra: float, dec: float, radius: float
) -> None:
    """For any place and radius the cone holds as many stars, of the same brightness, as a search of the whole sky."""
    cone = read_cone(ra, dec, radius)
    chord = np.linalg.norm(sky[0] - direction(ra, dec), axis=1)
    limit = 2 * np.sin(np.radians(radius) / 2)
    certain, possible = sky[1][chord < limit - 1e-9], sky[1][chord < limit + 1e-9]
    assert len(certain) <= len(cone) <= len(possible)
    assert float(cone.mag.sum()) == pytest.approx(float(certain.sum()), abs=20.0 * (len(possible) - len(certain)) + 0.1)
    assert (np.diff(cone.mag) >= 0).all()


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 10.0), (359.99, -35.0), (120.0, 89.9), (300.0, -90.0), (45.0, 90.0)])
def test_wrap_and_poles_are_no_edges(ra: float, dec: float) -> None:
    """Over RA 0 and at the poles the density is that of the sky around."""
    cone = read_cone(ra, dec, 2.0)
    assert 25 < len(cone) / (np.pi * 4.0) < 90
    quarter = np.floor(((cone.ra_deg - ra + 45.0) % 360.0) / 90.0) if abs(dec) > 80 else cone.ra_deg > 180
    assert len(np.unique(quarter)) == (4 if abs(dec) > 80 else 2)


def test_the_limit_keeps_the_brightest() -> None:
    """With a limit the cone is the head of the full one."""
    few, many = read_cone(83.8, -5.4, 2.0, limit=20), read_cone(83.8, -5.4, 2.0)
    assert len(few) == 20
    np.testing.assert_array_equal(few.ra_deg, many.ra_deg[:20])
    assert many.ra_deg.dtype == many.dec_deg.dtype == np.float64
    assert many.mag.dtype == np.float32


def test_a_known_star_is_in_its_place() -> None:
    """HD 200775, the star of NGC 7023, stands at 21 01 36.92 +68 09 47.8 (J2000) to 0.3\", V about 7.4."""
    near = read_cone(315.40383, 68.16327, 0.3 / 3600.0)
    assert len(near) == 1
    assert near.mag[0] == pytest.approx(7.4, abs=0.2)


def test_cells_are_no_wider_than_a_band_is_high() -> None:
    """Quantisation to 1/65536 of a cell is at most 0.03\" anywhere."""
    cells = cells_a_band(180)
    edges = np.radians(np.linspace(-90, 90, 181))
    widest = np.maximum(np.cos(edges[:-1]), np.cos(edges[1:])) * 360.0 / cells
    assert (widest <= 1.0 + 1e-9).all()
    assert RECORD.itemsize == 6
    assert 0.5 * 3600.0 / 65536 < 0.03


@pytest.mark.parametrize("content", [b"", b"nonsense" * 20, b"ZMTYCHO2" + b"\x02" + b"\x00" * 200])
def test_a_damaged_catalogue_says_so(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent, foreign or cut file is a Fatal with its reason, not a wrong sky."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tycho2.cat").write_bytes(content)
    monkeypatch.setattr(catalogue, "files", lambda _: tmp_path)
    with pytest.raises(Fatal) as caught:
        read_cone(10.0, 10.0, 1.0)
    assert caught.value.reason.rule == "catalogue_unreadable"


def test_a_cut_catalogue_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the file gives the southern sky and refuses the northern."""
    whole = (ROOT / "zemosaicd" / "data" / "tycho2.cat").read_bytes()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tycho2.cat").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(catalogue, "files", lambda _: tmp_path)
    assert len(read_cone(10.0, -60.0, 1.0)) > 50
    with pytest.raises(Fatal):
        read_cone(10.0, 60.0, 1.0)


@pytest.mark.skipif(not INDEX.exists(), reason="Debian's astrometry-data-tycho2-07 is not installed")
def test_the_build_script_gives_the_shipped_bytes(tmp_path: Path) -> None:
    """C7: the catalogue is reproducible, byte for byte, from the Debian package."""
    output = tmp_path / "tycho2.cat"
    command = [sys.executable, str(ROOT / "scripts" / "build_catalogue.py"), "--output", str(output)]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True)
    assert output.read_bytes() == (ROOT / "zemosaicd" / "data" / "tycho2.cat").read_bytes()
