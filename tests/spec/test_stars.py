"""Star lists: what is detected, where, how well, and how a list travels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import colour_mask
from tests.scenes import repair_hot_pixels
from zemosaicd.science.stars import StarList, find_stars, shape, with_colours

SHAPE = (480, 512)


def render(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, *, fwhm: float = 2.9, beta: float = 0.0, bayer: str = "GRBG",
    noise: float = 30.0, stretch: float = 1.0, seed: int = 1, gains: tuple[float, float, float] = (0.7, 1.0, 0.6),
) -> np.ndarray:  # fmt: skip
    """A frame of stars: Gaussian (`beta` 0) or Moffat, `stretch` times longer along x than y; gains of R, G, B."""
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
        for colour, gain in zip("RGB", gains, strict=True):
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
    """A line across the frame adds no source, and takes none but the star it runs over."""
    x, y, flux = grid_of_stars()
    frame = render(x, y, flux)
    clean = find_stars(frame, "GRBG")
    for column in range(SHAPE[1]):
        frame[int(70 + 0.11 * column) : int(70 + 0.11 * column) + 3, column] += 800
    crossed = find_stars(frame, "GRBG")
    assert len(clean) - 1 <= len(crossed) <= len(clean)
    assert np.abs(offsets(crossed, clean.x, clean.y)).max() < 1.0


def test_hot_pixels_are_no_stars_even_unrepaired() -> None:
    """A frame of strong hot pixels without any star gives none; among stars they add nothing and take nothing."""
    rng = np.random.default_rng(5)
    places = rng.choice(SHAPE[0] * SHAPE[1], 60, replace=False)
    x, y, flux = grid_of_stars()
    frame = render(x, y, flux)
    frame.reshape(-1)[places] += rng.uniform(500, 20000, 60).astype(np.float32)
    dark = rng.normal(1000, 30, SHAPE).astype(np.float32)
    dark.reshape(-1)[places] += 5000
    for repair in (True, False):
        stars = find_stars(repair_hot_pixels(frame, True)[0] if repair else frame, "GRBG")
        assert 34 <= len(stars) <= 36
        assert np.abs(offsets(stars, x, y)).max() < 1.0
    assert len(find_stars(repair_hot_pixels(dark, True)[0], "GRBG")) == 0


def test_cosmic_rays_are_no_stars() -> None:
    """Tracks of one to six pixels in any direction, ten a frame: next to none ends up in the list."""
    rng = np.random.default_rng(6)
    x, y, flux = grid_of_stars()
    added = 0
    for seed in range(10):
        frame = render(x, y, flux, seed=seed)
        for _ in range(10):
            angle, length = rng.uniform(0, 2 * np.pi), rng.integers(1, 7)
            at = rng.uniform(10, min(SHAPE) - 10, 2)[:, None] + np.arange(length) * [[np.sin(angle)], [np.cos(angle)]]
            frame[tuple(np.unique(at.astype(int), axis=1))] += rng.uniform(1000, 10000)
        stars = find_stars(repair_hot_pixels(frame, True)[0], "GRBG")
        added += int((np.abs(offsets(stars, x, y)).max(axis=1) > 2).sum())
        assert len(stars) >= 34
    assert added <= 3


def test_stars_out_of_focus_are_found() -> None:
    """Three times the usual width: all of the stars whose light stands out, at their places."""
    x, y, _ = grid_of_stars()
    stars = find_stars(render(x, y, np.full(36, 2e5), fwhm=9.0), "GRBG")
    assert len(stars) == 36
    assert np.abs(offsets(stars, x, y)).max() < 0.3
    assert shape(stars)[0] == pytest.approx(9.0, rel=0.06)


@pytest.mark.parametrize("transmission", [0.3, 0.1, 0.02])
def test_a_clouded_frame_has_fewer_stars_and_no_false_ones(transmission: float) -> None:
    """What is left in the list is true, and the brightest are there."""
    x, y, flux = grid_of_stars()
    frame = render(x, y, 10 * flux * transmission)
    stars = find_stars(frame, "GRBG")
    assert (np.abs(offsets(stars, x, y)) < 1.0).all()
    assert len(stars) >= (10 * flux * transmission > 8e3).sum()


@pytest.mark.parametrize("fwhm", [1.6, 2.2, 3.0])
def test_a_globular_cluster_on_a_mono_sensor_resolves(fwhm: float) -> None:
    """Three thousand stars, most of them in a tenth of the frame: hundreds are found, nearly all of them true."""
    rng = np.random.default_rng(7)
    share = 0.95 * rng.random(3000)
    r, angle = 40 * np.sqrt(share / (1 - share)), rng.uniform(0, 2 * np.pi, 3000)
    x, y = SHAPE[1] / 2 + r * np.cos(angle), SHAPE[0] / 2 + r * np.sin(angle)
    seen = (x > 0) & (x < SHAPE[1]) & (y > 0) & (y < SHAPE[0])
    x, y, flux = x[seen], y[seen], (2e5 * 10 ** (-0.4 * 7 * rng.random(3000) ** 0.4))[seen]
    frame = render(x, y, flux, fwhm=fwhm, bayer="", noise=10)
    stars = find_stars(repair_hot_pixels(frame, False)[0], "")
    near = (stars.x[:, None] - x) ** 2 + (stars.y[:, None] - y) ** 2 < 1.5**2
    assert len(stars) > 250
    assert np.mean(near.any(axis=1)) > 0.95
    outside = (np.hypot(x - SHAPE[1] / 2, y - SHAPE[0] / 2) > 60) & (flux > 8000)
    assert outside.sum() > 15
    assert near[:, outside].any(axis=0).mean() > 0.75


def test_a_nebula_keeps_its_stars_and_lends_none() -> None:
    """Knots and noise of a nebula thirty times as bright as the sky's noise are no stars; the stars in it are found."""
    rng = np.random.default_rng(8)
    x, y, flux = grid_of_stars()
    rows, columns = np.indices(SHAPE)
    glow = np.zeros(SHAPE)
    for _ in range(40):
        at, width = rng.uniform(100, 400, 2), rng.uniform(12, 60)
        glow += rng.uniform(100, 500) * np.exp(-((columns - at[0]) ** 2 + (rows - at[1]) ** 2) / (2 * width**2))
    frame = render(x, y, np.maximum(flux, 3e4)) + glow + np.sqrt(glow) * rng.normal(0, 1, SHAPE)
    stars = find_stars(frame.astype(np.float32), "GRBG")
    assert glow.max() > 900
    assert 34 <= len(stars) <= 38
    assert (np.abs(offsets(stars, x, y)).max(axis=1) < 1.0).sum() >= 34


def test_a_saturated_star_stays_one_star_at_its_place() -> None:
    """A star fifty times over the full scale keeps its place, has no shape, and hides no other."""
    x, y, flux = grid_of_stars()
    flux[14] = 5e7
    for bayer in ("GRBG", ""):
        frame = np.minimum(render(x, y, flux, fwhm=4.0, beta=3.0, bayer=bayer), 6e4).astype(np.float32)
        stars = find_stars(frame, bayer)
        assert len(stars) >= 34
        assert (stars.x[0], stars.y[0]) == pytest.approx((x[14], y[14]), abs=0.3)
        assert (np.abs(offsets(stars, x, y)).max(axis=1) < 1.0).all()


def test_a_stars_colour_does_not_move_it() -> None:
    """A red frame and a blue one have the same stars at the same places, to 0.04 px."""
    x, y, _ = grid_of_stars()
    red, blue = (
        find_stars(render(x, y, np.full(36, 4e5), noise=10, gains=gains), "GRBG")
        for gains in ((3.0, 1.0, 0.2), (0.2, 1.0, 3.0))
    )
    assert len(red) == len(blue) == 36
    assert np.abs(offsets(red, blue.x, blue.y)).max() < 0.04


@given(st.floats(1e-3, 50.0), st.floats(-500, 500))
@settings(max_examples=12)
def test_units_and_pedestal_do_not_matter(factor: float, pedestal: float) -> None:
    """Electrons as float or ADU: the same stars at the same places, fluxes in the frame's own unit."""
    x, y, flux = grid_of_stars()
    frame = render(x, y, flux)
    other = ((frame.astype(np.float64) + pedestal) * factor).astype(np.float32)
    first, second = find_stars(frame, "GRBG"), find_stars(other, "GRBG")
    assert len(first) == len(second)
    assert np.abs(offsets(second, first.x, first.y)).max() < 0.01
    np.testing.assert_allclose(second.flux, factor * first.flux, rtol=5e-3)
    np.testing.assert_allclose(second.snr, first.snr, rtol=2e-2)


def test_a_frame_upside_down_has_the_same_stars() -> None:
    """No direction of the sensor is special: turned by 180 degrees, every star is where it turns to."""
    x, y, flux = grid_of_stars()
    frame = render(x, y, flux, bayer="")
    first, second = find_stars(frame, ""), find_stars(np.ascontiguousarray(frame[::-1, ::-1]), "")
    assert len(first) == len(second)
    assert np.abs(offsets(second, SHAPE[1] - 1 - first.x, SHAPE[0] - 1 - first.y)).max() < 0.05


def test_fluxes_are_true_to_each_other() -> None:
    """Ratios of bright stars' fluxes are those of their light, to 3 %, and the noise is as the SNR says."""
    x, y, flux = grid_of_stars()
    bright = np.maximum(flux, 5e4)
    stars = find_stars(render(x, y, bright), "GRBG")
    nearest = np.argmin((stars.x[:, None] - x) ** 2 + (stars.y[:, None] - y) ** 2, axis=1)
    ratio = stars.flux / bright[nearest]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=0.03)
    many = [find_stars(render(x, y, flux, seed=seed), "GRBG", 40).flux for seed in range(12)]
    assert all(len(m) == 36 for m in many)
    scatter = np.std(many, axis=0) / np.mean(many, axis=0)
    assert np.median(scatter * find_stars(render(x, y, flux), "GRBG").snr) == pytest.approx(1.0, abs=0.25)


def test_V3_nan_enters_no_centroid() -> None:
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


def test_F30_a_frame_full_of_light_still_gives_a_list() -> None:
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
    """to_bytes and from_bytes are inverse; 24 bytes a star and 4 a colour (600 stars fit a small message)."""
    values = np.random.default_rng(seed).uniform(0, 5000, (9, count)).astype(np.float32)
    values[4, ::7] = np.nan
    stars = StarList(
        x=values[0].astype(float), y=values[1].astype(float), flux=values[2], snr=values[3], fwhm_px=values[4],
        ellipticity=values[5], colours=values[6:].T,
    )  # fmt: skip
    data = stars.to_bytes()
    back = StarList.from_bytes(data)
    assert len(data) == 12 + 36 * count
    for name in ("x", "y", "flux", "snr", "fwhm_px", "ellipticity", "colours"):
        np.testing.assert_array_equal(getattr(back, name), getattr(stars, name))
        assert getattr(back, name).dtype == getattr(stars, name).dtype


@pytest.mark.parametrize("data", [b"", b"ZSL2", b"nonsense", b"ZSL2\x05\x00\x00\x00" + b"\x00" * 28])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    """Anything but a whole list of this version is a ValueError."""
    with pytest.raises(ValueError):
        StarList.from_bytes(data)


@pytest.mark.parametrize("bayer", ["GRBG", "RGGB", "BGGR", "GBRG"])
def test_a_stars_colours_are_those_of_its_light(bayer: str) -> None:
    """Red and blue flux over green's is the star's own ratio, in the median to 1 %, wherever the photosites lie."""
    x, y, flux = grid_of_stars()
    frame = render(x, y, np.maximum(flux, 5e4), bayer=bayer, gains=(0.8, 1.0, 0.5))
    stars = with_colours(find_stars(frame, bayer), frame, bayer)
    assert stars.colours is not None
    assert stars.colours.shape == (len(x), 3)
    ratio = np.median(stars.colours / stars.colours[:, 1:2], axis=0)
    np.testing.assert_allclose(ratio, (0.8, 1.0, 0.5), rtol=0.01)


def test_seeing_does_not_tint_a_frame() -> None:
    """The share of light within the aperture is the same in all colours, whatever the FWHM: ratios stay to 0.5 %."""
    x, y, flux = grid_of_stars(10)
    ratios = []
    for fwhm in (2.6, 3.4):
        frame = render(x, y, np.maximum(flux, 5e4), fwhm=fwhm, gains=(0.8, 1.0, 0.5))
        colours = with_colours(find_stars(frame, "GRBG"), frame, "GRBG").colours
        assert colours is not None
        ratios.append(np.median(colours / colours[:, 1:2], axis=0))
    np.testing.assert_allclose(ratios[0], ratios[1], rtol=0.005)


def test_colour_planes_have_a_flux_each() -> None:
    """Of a picture in colour every plane is measured; a mono frame has no colours, and says so."""
    x, y, flux = grid_of_stars()
    plane = render(x, y, np.maximum(flux, 5e4), bayer="")
    stars = find_stars(plane, "")
    cube = np.stack([plane, 0.5 * plane, 0.25 * plane], axis=2)
    colours = with_colours(stars, cube, "").colours
    assert colours is not None
    np.testing.assert_allclose(colours / colours[:, :1], np.broadcast_to((1.0, 0.5, 0.25), colours.shape), rtol=1e-4)
    assert with_colours(stars, plane, "").colours is None
