"""Star lists: what is detected, where, how well, and how a list travels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import colour_mask
from zemosaicd.science.stars import StarList, find_stars, shape

SHAPE = (480, 512)


def render(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, *, fwhm: float = 2.9, beta: float = 0.0, bayer: str = "GRBG",
    noise: float = 30.0, stretch: float = 1.0, seed: int = 1,
) -> np.ndarray:  # fmt: skip
    """A frame of stars: Gaussian (`beta` 0) or Moffat, `stretch` times longer along x than along y."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(1000, noise, SHAPE)
    half = 30
    for x0, y0, f in zip(x, y, flux, strict=True):
        top, left = max(0, int(y0) - half), max(0, int(x0) - half)
        window = (slice(top, int(y0) + half), slice(left, int(x0) + half))
        yy, xx = np.mgrid[window[0].start : min(SHAPE[0], window[0].stop), left : min(SHAPE[1], window[1].stop)]
        r2 = ((xx - x0) / np.sqrt(stretch)) ** 2 + ((yy - y0) * np.sqrt(stretch)) ** 2
        if beta:
            alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
            plane[window] += f * (beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -beta
        else:
            s2 = (fwhm / 2.3548) ** 2
            plane[window] += f / (2 * np.pi * s2) * np.exp(-r2 / (2 * s2))
    if bayer:
        for colour, gain in (("R", 0.7), ("G", 1.0), ("B", 0.6)):
            plane[colour_mask(bayer, colour, SHAPE)] *= gain
    return plane.astype(np.float32)


def grid_of_stars(n: int = 6, seed: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n x n stars at fractional places, all of different flux."""
    rng = np.random.default_rng(seed)
    gx, gy = np.meshgrid(np.linspace(40, SHAPE[1] - 40, n), np.linspace(40, SHAPE[0] - 40, n))
    x, y = gx.ravel() + rng.uniform(-3, 3, n * n), gy.ravel() + rng.uniform(-3, 3, n * n)
    return x, y, np.geomspace(2e5, 8e3, n * n)[rng.permutation(n * n)]


def offsets(stars: StarList, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, 2) detection minus the nearest true star."""
    nearest = np.argmin((stars.x[:, None] - x) ** 2 + (stars.y[:, None] - y) ** 2, axis=1)
    return np.stack([stars.x - x[nearest], stars.y - y[nearest]], axis=1)


@pytest.mark.parametrize("bayer", ["GRBG", "RGGB", "BGGR", "GBRG", ""])
def test_every_star_is_found_at_its_place(bayer: str) -> None:
    """Bayer and mono: all stars, nothing else, no offset, to better than 0.1 px each, brightest first."""
    x, y, flux = grid_of_stars()
    stars = find_stars(render(x, y, flux, bayer=bayer), bayer)
    assert len(stars) == len(x)
    off = offsets(stars, x, y)
    assert np.abs(off.mean(axis=0)).max() < 0.015
    assert np.abs(off).max() < 0.12
    assert (np.diff(stars.flux) <= 0).all()
    assert (stars.snr > 5).all()


def test_bright_centroids_reach_the_floor() -> None:
    """Stars of high SNR are placed to 0.02 px, undersampled ones (FWHM 2 px) too."""
    x, y, _ = grid_of_stars()
    for fwhm in (2.0, 2.9, 5.0):
        off = offsets(find_stars(render(x, y, np.full(36, 4e5), fwhm=fwhm, noise=10), "GRBG"), x, y)
        assert np.sqrt(np.mean(off**2)) < 0.02


@pytest.mark.parametrize(("fwhm", "beta"), [(2.2, 0.0), (3.0, 0.0), (5.0, 0.0), (2.9, 3.0), (4.0, 2.5)])
@pytest.mark.parametrize("bayer", ["GRBG", ""])
def test_the_fwhm_is_the_true_one(fwhm: float, beta: float, bayer: str) -> None:
    """C9: the frame's FWHM is in full-resolution pixels, to 6 %, whatever the wings."""
    x, y, _ = grid_of_stars()
    measured, ellipticity = shape(find_stars(render(x, y, np.full(36, 3e5), fwhm=fwhm, beta=beta, bayer=bayer), bayer))
    assert measured == pytest.approx(fwhm, rel=0.06)
    assert ellipticity < 0.05


def test_trailed_frames_keep_their_stars_and_show_it() -> None:
    """C9: a frame whose stars are all three times longer than wide says so, and does not come out empty."""
    x, y, _ = grid_of_stars()
    stars = find_stars(render(x, y, np.full(36, 4e5), fwhm=4.0, stretch=3.0), "GRBG")
    assert len(stars) >= 34
    assert shape(stars)[1] == pytest.approx(2 / 3, abs=0.08)


def test_a_satellite_trail_is_no_star() -> None:
    """A line across the frame adds at most a few sources, and takes no star away from it."""
    x, y, flux = grid_of_stars()
    frame = render(x, y, flux)
    clean = len(find_stars(frame, "GRBG"))
    for column in range(SHAPE[1]):
        frame[int(70 + 0.11 * column) : int(70 + 0.11 * column) + 3, column] += 800
    assert abs(len(find_stars(frame, "GRBG")) - clean) <= 8


def test_V3_nan_neither_enters_sep_nor_a_centroid() -> None:
    """Stars away from the hole are as without it, those in it are gone, and nothing is NaN."""
    x, y, flux = grid_of_stars()
    frame = render(x, y, flux)
    whole = find_stars(frame, "GRBG")
    frame[:, :150] = np.nan
    holed = find_stars(frame, "GRBG")
    far = whole.x > 170
    assert (holed.x > 150).all()
    assert np.isfinite([holed.x, holed.y, holed.flux, holed.snr]).all()
    off = offsets(holed, whole.x[far], whole.y[far])
    assert np.abs(off[holed.x > 170]).max() < 0.02


@pytest.mark.parametrize(
    "frame",
    [
        np.full(SHAPE, np.nan, np.float32),
        np.zeros(SHAPE, np.float32),
        np.full(SHAPE, 65535, np.float32),
        np.ones((8, 8), np.float32),
        np.random.default_rng(1).normal(1000, 30, SHAPE).astype(np.float32),
    ],
    ids=["all NaN", "zero", "saturated", "tiny", "noise"],
)
@pytest.mark.parametrize("bayer", ["GRBG", ""])
def test_F30_frames_without_stars_give_empty_lists(frame: np.ndarray, bayer: str) -> None:
    """No stars is an answer: an empty list, and a shape of NaN."""
    stars = find_stars(frame, bayer)
    assert len(stars) <= 2
    assert len(stars) or np.isnan(shape(stars)).all()


def test_F30_a_frame_that_overflows_sep_still_gives_a_list() -> None:
    """A million pixels above the threshold raise the threshold, not an error."""
    rng = np.random.default_rng(3)
    frame = rng.normal(1000, 5, (1600, 1600)).astype(np.float32)
    frame += 3000 * ((np.add.outer(np.arange(1600), np.arange(1600)) // 30) % 2)
    assert isinstance(find_stars(frame, ""), StarList)


def test_the_limit_keeps_the_brightest() -> None:
    """With a limit the list is the brightest of the full one."""
    x, y, flux = grid_of_stars()
    frame = render(x, y, flux)
    few, many = find_stars(frame, "GRBG", limit=10), find_stars(frame, "GRBG")
    assert len(few) == 10
    assert np.abs(offsets(few, many.x[:13], many.y[:13])).max() < 0.05


def test_C7_the_same_frame_gives_the_same_bytes() -> None:
    """Detection is a function of the pixels, bit for bit."""
    frame = render(*grid_of_stars())
    assert find_stars(frame, "GRBG").to_bytes() == find_stars(frame.copy(), "GRBG").to_bytes()


@given(st.integers(0, 700), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_lists_come_back_from_bytes_as_they_were(count: int, seed: int) -> None:
    """to_bytes and from_bytes are inverse; 24 bytes a star (600 stars fit a small message)."""
    values = np.random.default_rng(seed).uniform(0, 5000, (6, count)).astype(np.float32)
    values[4, ::7] = np.nan
    stars = StarList(
        x=values[0].astype(float), y=values[1].astype(float), flux=values[2], snr=values[3], fwhm_px=values[4],
        ellipticity=values[5],
    )  # fmt: skip
    data = stars.to_bytes()
    back = StarList.from_bytes(data)
    assert len(data) == 8 + 24 * count
    for name in ("x", "y", "flux", "snr", "fwhm_px", "ellipticity"):
        np.testing.assert_array_equal(getattr(back, name), getattr(stars, name))
        assert getattr(back, name).dtype == getattr(stars, name).dtype


@pytest.mark.parametrize("data", [b"", b"ZSL1", b"nonsense", b"ZSL1\x05\x00\x00\x00" + b"\x00" * 24])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    """Anything but a whole list of this version is a ValueError."""
    with pytest.raises(ValueError):
        StarList.from_bytes(data)
