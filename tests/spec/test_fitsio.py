"""FITS pixels in and out (C2, section 10 `mosaic.fits`): exact values, one identity, bands, WCS cards."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import hostile
from zemosaicd.core.headers import facts
from zemosaicd.core.wcs_cards import header_wcs
from zemosaicd.model import Incomplete, Rejected, Wcs
from zemosaicd.sphere import pixel_to_sky, position
from zemosaicd.work.fitsio import (
    Budget,
    FitsImage,
    ImageSpec,
    check_complete,
    read_frame,
    read_header,
    read_image,
    write_fits,
)

TAN = Wcs(ra_deg=10.25, dec_deg=-41.5, x_px=30.25, y_px=11.5, cd=(-6.5e-4, 1.1e-5, 1.2e-5, 6.6e-4))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(40, 30), (3, 40, 30), (1, 40, 30)])
def test_pixels_are_those_that_astropy_reads(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Every kind of pixel comes out native float32, BZERO applied, planes first, a single plane without its axis."""
    pixels = np.random.default_rng(3).integers(1, 200, shape).astype(dtype)
    path = tmp_path / "a.fits"
    path.write_bytes(hostile.fits(pixels))
    frame = read_frame(path)
    assert frame.pixels.dtype == np.dtype("=f4")
    assert np.array_equal(frame.pixels, np.squeeze(fits.getdata(path).astype("f4")))


def test_scale_zero_and_blank_are_applied(tmp_path: Path) -> None:
    """Values are BZERO + BSCALE * stored; stored BLANK is NaN."""
    path = tmp_path / "a.fits"
    pixels = np.arange(3200, dtype=np.int16).reshape(40, 80)
    path.write_bytes(hostile.fits(pixels, BSCALE=0.5, BZERO=100.0, BLANK=7))
    expected = (pixels * 0.5 + 100).astype("f4")
    expected[pixels == 7] = np.nan
    assert np.array_equal(read_frame(path).pixels, expected, equal_nan=True)


@pytest.mark.parametrize("suffix", [".fit", ".FITS", ".fts", ".fits.gz", ".fits.fz"])
def test_F27_same_pixels_are_one_frame_however_they_are_packed(suffix: str, tmp_path: Path) -> None:
    """Name, header, gzip and lossless tiles do not change a frame's identity; one pixel does."""
    plain = tmp_path / "plain.fits"
    plain.write_bytes(hostile.fits(hostile.sky(), OBJECT="M 1"))
    path = tmp_path / f"packed{suffix}"
    if suffix.endswith("fz"):
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(hostile.sky())]).writeto(path)
    else:
        raw = hostile.fits(hostile.sky(), OBJECT="M 2")
        path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    check_complete(path)
    packed = read_frame(path)
    assert np.array_equal(packed.pixels, hostile.sky())
    assert packed.frame == read_frame(plain).frame
    assert len(packed.frame) == 24
    other = hostile.sky()
    other[5, 5] += 1
    plain.write_bytes(hostile.fits(other))
    assert packed.frame != read_frame(plain).frame


def test_fz_header_reads_as_that_of_the_picture(tmp_path: Path) -> None:
    """A tile-compressed file shows the picture's axes and cards, not the table's, and is held to the budget by them."""
    path = tmp_path / "a.fits.fz"
    hdu = fits.CompImageHDU(hostile.sky(), header=fits.Header({"OBJECT": "M 1", "EXPTIME": 10.0}))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    header = read_header(path)
    assert (header.shape, header.compression, header.hdu) == ((48, 64), "tiles", 1)
    known = facts(header.cards)
    assert (known.width, known.height, known.object_name, known.exposure_s) == (64, 48, "M 1", 10.0)
    with pytest.raises(Rejected):
        read_header(path, Budget(max_pixels=48 * 64 - 1))


def test_picture_in_an_extension_inherits_the_primary_cards(tmp_path: Path) -> None:
    """A picture behind an empty primary header keeps what that header says."""
    path = tmp_path / "a.fits"
    first = fits.PrimaryHDU(header=fits.Header({"OBJECT": "M 1"}))
    fits.HDUList([first, fits.ImageHDU(hostile.sky())]).writeto(path)
    assert read_header(path).cards["OBJECT"] == "M 1"
    assert np.array_equal(read_frame(path).pixels, hostile.sky())


def test_four_planes_are_refused(tmp_path: Path) -> None:
    """Only one or three planes are a picture."""
    path = tmp_path / "a.fits"
    path.write_bytes(hostile.fits(hostile.sky(planes=4)))
    with pytest.raises(Rejected):
        read_frame(path)


def test_cards_of_every_shape_are_read(tmp_path: Path) -> None:
    """Strings with quotes and slashes, long strings, HIERARCH, D exponents, logicals, undefined and repeated cards."""
    header = fits.Header()
    header["TEXT"] = "it's a / slash"
    header["LONGTEXT"] = "x" * 200
    header["HIERARCH MOUNT_MODE"] = "ALT_AZ"
    header["YES"] = True
    header["NEGATIVE"] = -3
    header["NOTHING"] = None
    path = tmp_path / "a.fits"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.PrimaryHDU(hostile.sky(), header=header).writeto(path)
    cards = read_header(path).cards
    assert cards["TEXT"] == "it's a / slash"
    assert cards["LONGTEXT"] == "x" * 200
    assert (cards["MOUNT_MODE"], cards["YES"], cards["NEGATIVE"], cards["NOTHING"]) == ("ALT_AZ", True, -3, None)
    path.write_bytes(hostile.primary(64, 48, more=(("D", b"1.5D+02 / double"), ("A", 1), ("A", 2))) + bytes(6144))
    assert (read_header(path).cards["D"], read_header(path).cards["A"]) == (150.0, 1)


@given(st.binary(max_size=400))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_F16_any_bytes_after_the_first_card_raise_only_our_errors(tmp_path: Path, noise: bytes) -> None:
    """Whatever lies in a header, reading it gives a header, Rejected or Incomplete."""
    path = tmp_path / "noise.fits"
    path.write_bytes((hostile.primary(64, 48)[: 5 * 80] + noise).ljust(2880 * 4)[: 2880 * 4])
    try:
        facts(read_header(path).cards, "noise.fits")
    except (Rejected, Incomplete):
        return


def _mosaic(path: Path) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(5).normal(1000, 30, (3, 50, 70)).astype("f4")
    pixels[:, :3] = np.nan
    coverage = (np.arange(3500) * 19 % 65536).astype("u2").reshape(50, 70)
    images = [
        ImageSpec(name="", shape=pixels.shape, wcs=TAN, cards={"OBJECT": ("M 31\x1b[2J é", "target"), "NIGHTS": 2}),
        ImageSpec(name="COVERAGE", shape=coverage.shape, dtype="uint16", wcs=TAN),
    ]
    with write_fits(path, images) as writer:
        for row in range(0, 50, 16):
            writer.write("", row, pixels[:, row : row + 16])
            writer.write("COVERAGE", row, coverage[row : row + 16])
        writer.table(
            "FRAMES", {"path": ["a.fits", "bé.fits"], "x": np.array([1.5, np.nan]), "n": [1, 2], "ok": [True, False]}
        )
    return pixels, coverage


def test_file_written_by_bands_is_what_astropy_reads(tmp_path: Path) -> None:
    """Pictures, extensions and the table come out exactly, standard-conforming, cleaned of control characters (F19)."""
    path = tmp_path / "mosaic.fits"
    pixels, coverage = _mosaic(path)
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "COVERAGE", "FRAMES"]
        assert np.array_equal(hdus[0].data, pixels, equal_nan=True)
        assert np.array_equal(hdus[1].data, coverage)
        assert hdus[0].header["OBJECT"] == "M 31[2J ?"
        frames = hdus[2].data
        assert [*frames["path"]] == ["a.fits", "b?.fits"]
        assert frames["n"].tolist() == [1, 2]
        assert frames["ok"].tolist() == [True, False]
        assert np.array_equal(frames["x"], [1.5, np.nan], equal_nan=True)
    check_complete(path)
    assert path.stat().st_size % 2880 == 0


def test_our_files_are_read_back_by_rows(tmp_path: Path) -> None:
    """Rows of any picture come back as they were written, and none beyond its edge."""
    path = tmp_path / "mosaic.fits"
    pixels, coverage = _mosaic(path)
    with FitsImage(path) as image:
        assert image.shape == (3, 50, 70)
        assert np.array_equal(image.rows(10, 23), pixels[:, 10:23])
        assert image.rows(50, 50).shape == (3, 0, 70)
        with pytest.raises(IndexError):
            image.rows(40, 51)
    assert np.array_equal(read_image(path, "COVERAGE")[1], coverage)
    with pytest.raises(Incomplete):
        read_image(path, "WEIGHT")


def test_V5_pixels_are_filled_in_place_in_every_plane_and_no_other_is_touched(tmp_path: Path) -> None:
    """Only pictures in float32 can be filled, by a mask of their own shape."""
    pixels = np.random.default_rng(5).normal(size=(3, 20, 30)).astype(np.float32)
    where = np.random.default_rng(6).random((20, 30)) > 0.6
    path = tmp_path / "a.fits"
    images = [ImageSpec(name="", shape=(3, 20, 30)), ImageSpec(name="COVERAGE", shape=(20, 30), dtype="uint16")]
    with write_fits(path, images) as writer:
        writer.write("", 0, pixels)
        writer.write("COVERAGE", 0, np.ones((20, 30), np.uint16))
        writer.fill("", where, np.nan)
        with pytest.raises(ValueError, match="cannot be filled"):
            writer.fill("COVERAGE", where, 0.0)
        with pytest.raises(ValueError, match="cannot be filled"):
            writer.fill("", where[1:], 0.0)
    assert np.array_equal(fits.getdata(path), np.where(where, np.float32(np.nan), pixels), equal_nan=True)
    assert (fits.getdata(path, "COVERAGE") == 1).all()


def test_wcs_cards_say_the_same_sky_to_astropy(tmp_path: Path) -> None:
    """Our 0-based TAN solution, written 1-based, puts a pixel where astropy puts it, and reads back unchanged."""
    path = tmp_path / "mosaic.fits"
    _mosaic(path)
    assert header_wcs(read_header(path).cards) == TAN
    sky = WCS(fits.getheader(path)).celestial.pixel_to_world(12.0, 34.0)
    ra, dec = position(pixel_to_sky(TAN, 12.0, 34.0))
    assert sky.ra.deg == pytest.approx(ra, abs=1e-10)
    assert sky.dec.deg == pytest.approx(dec, abs=1e-10)


def test_rows_left_out_are_never_published(tmp_path: Path) -> None:
    """A file with a row unwritten does not appear, and nothing is left behind."""
    with (
        pytest.raises(ValueError, match="never written"),
        write_fits(tmp_path / "a.fits", [ImageSpec(name="", shape=(4, 5))]) as writer,
    ):
        writer.write("", 0, np.zeros((3, 5), dtype="f4"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.frames
def test_real_frames_are_read_as_astropy_reads_them(frames_dir: Path) -> None:
    """One frame of every real set is whole, and its pixels are astropy's."""
    for folder in sorted(path for path in frames_dir.iterdir() if path.is_dir()):
        path = sorted(folder.glob("*.fit*"))[0]
        check_complete(path)
        frame = read_frame(path)
        known = facts(frame.cards, path.name, masters=True)  # 2MASS tiles are finished pictures
        assert frame.pixels.shape == (known.height, known.width)
        assert np.array_equal(frame.pixels, fits.getdata(path, memmap=False).astype("f4"), equal_nan=True)
