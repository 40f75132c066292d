"""One source to one band of a grid: exact, in bands, and deaf to NaN (SPEC M5, V2, V3)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles, values
from zemosaicd.model import Distortion
from zemosaicd.science.distortion import ideal, recorded
from zemosaicd.science.resample import RED_SITE, Source, resample_band, source_rows_needed
from zemosaicd.sphere import Matrix, apply_plane, ideal_pixel, inverse, recorded_pixel

IDENTITY: Matrix = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
TILT: Matrix = (0.999, -0.02, 1.3, 0.021, 1.001, -0.8, 1e-5, -2e-5, 1.0)


def turn(degrees: float, dx: float, dy: float) -> Matrix:
    a = math.radians(degrees)
    return math.cos(a), -math.sin(a), dx, math.sin(a), math.cos(a), dy, 1e-6, -1e-6, 1.0


def noise_plane(height: int, width: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(500.0, 30.0, (height, width)).astype(np.float32)


@pytest.mark.parametrize("bayer", sorted(RED_SITE))
def test_every_bayer_order_equals_its_definition(bayer: str) -> None:
    """Each colour is the cubic convolution of its own photosites alone, for each of the four patterns."""
    cfa = noise_plane(26, 30)
    values, seen = resample_band(Source(pixels=cfa, bayer=bayer), TILT, 0, 26, 30)
    assert seen.sum() > 200
    for y, x in list(zip(*np.nonzero(seen), strict=True))[::23]:
        expected = oracles.demosaic_at(cfa, bayer, *apply_plane(TILT, float(x), float(y)))
        assert values[y, x] == pytest.approx(expected, abs=2e-3)


def test_mono_equals_its_definition() -> None:
    """A mono plane is Catmull-Rom on whole pixels; a cube of planes is the same plane by plane."""
    plane = noise_plane(20, 24)
    values, seen = resample_band(Source(pixels=plane), TILT, 0, 20, 24)
    for y, x in list(zip(*np.nonzero(seen), strict=True))[::7]:
        assert values[y, x, 0] == pytest.approx(
            oracles.pixel_at(plane, *apply_plane(TILT, float(x), float(y))), abs=2e-3
        )
    cube, _ = resample_band(Source(pixels=np.stack([plane, 2 * plane], axis=2)), TILT, 0, 20, 24)
    assert np.array_equal(cube[:, :, :1], values)
    assert np.array_equal(cube[:, :, 1:], 2 * values)


@given(dx=st.integers(-30, 30), dy=st.integers(-30, 30), rounding=st.floats(-1e-10, 1e-10))
@settings(max_examples=30)
def test_whole_pixel_shift_passes_values_through(dx: int, dy: int, rounding: float) -> None:
    """Images on one lattice are placed exactly, up to their borders, whatever rounding the matrix carries."""
    plane = noise_plane(18, 22)
    matrix = (1.0, 0.0, dx + rounding, 0.0, 1.0, dy - rounding, 0.0, 0.0, 1.0)
    values, seen = resample_band(Source(pixels=plane), matrix, 0, 18, 22)
    y, x = np.mgrid[0:18, 0:22]
    inside = (y >= -dy) & (y < 18 - dy) & (x >= -dx) & (x < 22 - dx)
    assert np.array_equal(seen, inside)
    assert np.array_equal(values[inside, 0], plane[y[inside] + dy, x[inside] + dx])


LENSES = [None, values.crooked(83, 70), values.radial(-1.3, 83, 70)]


@pytest.mark.parametrize("bayer", ["", "GRBG", "RGGB"])
@given(
    angle=st.floats(-180.0, 180.0), dx=st.floats(-20.0, 60.0), dy=st.floats(-20.0, 60.0),
    step=st.sampled_from([1, 7, 64, 97]), lens=st.sampled_from(LENSES),
)  # fmt: skip
@settings(max_examples=40)
def test_M5_bands_and_slabs_have_the_bits_of_the_whole(
    bayer: str, angle: float, dx: float, dy: float, step: int, lens: Distortion | None
) -> None:
    """Bands of any height, each from no more than the source rows it asks for, equal the whole image bit by bit."""
    plane, matrix = noise_plane(70, 83), turn(angle, dx, dy)
    whole, seen = resample_band(Source(pixels=plane, bayer=bayer, distortion=lens), matrix, 0, 97, 75)
    for row0 in range(0, 97, step):
        rows = min(step, 97 - row0)
        first, last = source_rows_needed(matrix, row0, rows, 75, 70, 83, bayer=bayer, distortion=lens)
        if first == last:
            assert not seen[row0 : row0 + rows].any()
            continue
        slab = Source(pixels=plane[first:last].copy(), bayer=bayer, row0=first, height=70, distortion=lens)
        band, band_seen = resample_band(slab, matrix, row0, rows, 75)
        assert np.array_equal(band.view(np.uint32), whole[row0 : row0 + rows].view(np.uint32))
        assert np.array_equal(band_seen, seen[row0 : row0 + rows])


@pytest.mark.parametrize("lens", [None, values.crooked(70, 60)])
@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_M5_a_window_has_the_bits_of_the_whole(bayer: str, lens: Distortion | None) -> None:
    """Columns cut anywhere from a wide grid, one or many, equal the same columns of the whole grid."""
    source = Source(pixels=noise_plane(60, 70), bayer=bayer, distortion=lens)
    whole, seen = resample_band(source, TILT, 0, 50, 64)
    for first in range(0, 64, 3):
        for count in (1, 2, 5, 13, 64 - first):
            count = min(count, 64 - first)
            window, window_seen = resample_band(source, TILT, 11, 20, count, col0=first)
            assert np.array_equal(window.view(np.uint32), whole[11:31, first : first + count].view(np.uint32))
            assert np.array_equal(window_seen, seen[11:31, first : first + count])


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_a_bent_source_is_read_where_its_camera_recorded(bayer: str) -> None:
    """Grid, homography, distortion: each value is the kernel's at the recorded place, if that lies inside."""
    cfa, lens = noise_plane(64, 80), values.crooked(80, 64)
    found, seen = resample_band(Source(pixels=cfa, bayer=bayer, distortion=lens), TILT, 0, 64, 80)
    edge = 4.0 if bayer else 1.0
    for y, x in np.ndindex(64, 80):
        u, v = recorded_pixel(lens, *apply_plane(TILT, float(x), float(y)))
        room = min(u, v, 79 - u, 63 - v) - edge
        assert seen[y, x] == (room > 0) or abs(room) < 1e-3
        if seen[y, x] and (x + 80 * y) % 31 == 0:
            at = oracles.demosaic_at(cfa, bayer, u, v) if bayer else oracles.pixel_at(cfa, u, v)
            assert found[y, x] == pytest.approx(at, abs=2e-3)


def test_V2_nothing_is_seen_where_the_polynomial_folds_back() -> None:
    """Far outside the sensor a cubic comes back into it; there is no sky of this source there."""
    lens = values.radial(-1.2, 80, 64)
    shrink = (30.0, 0.0, -1200.0, 0.0, 30.0, -960.0, 0.0, 0.0, 1.0)
    grid = [(x, y) for x in range(80) for y in range(64)]
    folded = [
        p
        for p in grid
        if max(map(abs, apply_plane(shrink, *p))) > 200 and _inside(recorded_pixel(lens, *apply_plane(shrink, *p)))
    ]
    assert len(folded) > 3
    _, seen = resample_band(Source(pixels=noise_plane(64, 80), distortion=lens), shrink, 0, 64, 80)
    assert seen.any()
    assert not any(seen[y, x] for x, y in folded)


def _inside(place: tuple[float, float]) -> bool:
    return 4 < place[0] < 75 and 4 < place[1] < 59


def test_arrays_and_numbers_bend_alike() -> None:
    """The compiled polynomial is the plain one, and so are the inverses."""
    lens = values.crooked(640, 480)
    x, y = np.meshgrid(np.linspace(0, 639, 9), np.linspace(0, 479, 7))
    for arrays, numbers in ((recorded, recorded_pixel), (ideal, ideal_pixel)):
        u, v = arrays(lens, x, y)
        expected = [numbers(lens, *p) for p in zip(x.ravel().tolist(), y.ravel().tolist(), strict=True)]
        assert np.stack([u.ravel(), v.ravel()], axis=1) == pytest.approx(np.array(expected), abs=1e-9)
    assert np.isnan(recorded(lens, np.array([700.0]), np.array([100.0]))[0]).all()


def test_rows_needed_are_few() -> None:
    """A level band asks for its own rows and a small halo, a wide grid for no more than the source's tilt makes."""
    first, last = source_rows_needed(IDENTITY, 100, 10, 500, 1080, 1920, bayer="GRBG")
    assert (first % 2, last % 2) == (0, 0)
    assert 88 <= first <= 96
    assert 114 <= last <= 122
    assert source_rows_needed(turn(0.0, 0.0, 5000.0), 0, 10, 500, 1080, 1920) == (0, 0)
    assert source_rows_needed(turn(0.0, 5000.0, 0.0), 0, 10, 500, 1080, 1920) == (0, 0)
    first, last = source_rows_needed(turn(10.0, -20000.0, -3300.0), 0, 1, 40000, 1080, 1920)
    assert last - first < 1920 * math.tan(math.radians(10.0)) + 20


def test_a_slab_that_lacks_rows_is_refused() -> None:
    """Rows that a band needs and does not have are an error, not a hole."""
    slab = Source(pixels=noise_plane(20, 40), row0=10, height=200)
    with pytest.raises(ValueError, match="needs source rows"):
        resample_band(slab, TILT, 100, 8, 40)


@pytest.mark.parametrize("hostile", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_V3_what_is_not_finite_never_enters(bayer: str, hostile: float) -> None:
    """One bad photosite unsees only samples within the kernel's reach; every other sample keeps its bits."""
    plane = noise_plane(40, 44)
    clean, clean_seen = resample_band(Source(pixels=plane, bayer=bayer), TILT, 0, 40, 44)
    plane[20, 21] = hostile
    values, seen = resample_band(Source(pixels=plane, bayer=bayer), TILT, 0, 40, 44)
    assert np.isfinite(values).all()
    assert (seen <= clean_seen).all()
    assert np.array_equal(values[seen], clean[seen])
    y, x = np.nonzero(clean_seen & ~seen)
    assert 9 <= len(y) <= 81
    assert max(abs(apply_plane(TILT, float(a), float(b))[0] - 21) for a, b in zip(x, y, strict=True)) < 4


def test_V2_an_invalid_pixel_is_a_bad_pixel() -> None:
    """The validity mask takes pixels out exactly as NaN does, though their values are finite."""
    plane = noise_plane(40, 44)
    valid = np.ones(plane.shape, bool)
    valid[7:12, 20:30] = False
    masked = resample_band(Source(pixels=plane, valid=valid), TILT, 0, 40, 44)
    hurt = resample_band(Source(pixels=np.where(valid, plane, np.float32(np.nan))), TILT, 0, 40, 44)
    assert np.array_equal(masked[0], hurt[0])
    assert np.array_equal(masked[1], hurt[1])


def test_V2_zero_is_a_value() -> None:
    """A black source is seen: validity is geometry, never "is it zero"."""
    values, seen = resample_band(Source(pixels=np.zeros((30, 30), np.float32), bayer="RGGB"), IDENTITY, 0, 30, 30)
    assert not values.any()
    assert seen[4:26, 4:26].all()
    assert seen.sum() == 22 * 22


def test_V2_nothing_is_seen_behind_the_tangent_plane() -> None:
    """Where the homography's w is not positive there is no sky of this source."""
    matrix = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, -0.1, 0.0, 1.0)
    _, seen = resample_band(Source(pixels=noise_plane(30, 30)), matrix, 0, 30, 30)
    assert seen[:, :5].any()
    assert not seen[:, 10:].any()


def test_F30_a_constant_source_stays_constant() -> None:
    """The kernels' weights sum to one at every phase."""
    values, seen = resample_band(
        Source(pixels=np.full((50, 50), 1234.5, np.float32), bayer="BGGR"), turn(33, 9, -9), 0, 50, 50
    )
    assert seen.any()
    assert np.abs(values[seen] - 1234.5).max() < 1e-3


def star_field(height: int, width: int, stars: list[tuple[float, float]], fwhm: float) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    core = fwhm / (2.0 * math.sqrt(2.0 ** (1 / 3.5) - 1.0))
    return sum((1.0 + ((x - sx) ** 2 + (y - sy) ** 2) / core**2) ** -3.5 for sx, sy in stars)  # Moffat, beta 3.5


STARS = [
    (20.0 + 32.0 * (k % 6) + dx, 20.0 + 32.0 * (k // 6) + dy)
    for k, (dx, dy) in enumerate(np.random.default_rng(6).uniform(-1.0, 1.0, (24, 2)).tolist())
]


@pytest.mark.parametrize("angle", [0.4, 17.0])
def test_stars_keep_place_and_flux(angle: float) -> None:
    """Through CFA and warp no colour is displaced by 0.02 px nor changed by 2 % in flux.

    Green holds for each star. A red or blue star of FWHM 2.9 px is undersampled by its 2-px lattice, so single stars
    scatter by 0.05 px with their place on it, and their mean is what the kernel answers for.
    """
    matrix = turn(angle, 3.37, -2.81)
    cfa = (10000.0 * star_field(136, 212, STARS, 2.9)).astype(np.float32)
    values, seen = resample_band(Source(pixels=cfa, bayer="GRBG"), matrix, 0, 150, 200)
    y, x = np.mgrid[0:150, 0:200]
    moved, kept = [], []
    for sx, sy in (apply_plane(inverse(matrix), *star) for star in STARS):
        if not (12 < sx < 187 and 12 < sy < 137 and seen[int(sy) - 9 : int(sy) + 11, int(sx) - 9 : int(sx) + 11].all()):
            continue
        window = values * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * 2.0**2))[:, :, np.newaxis]
        total = window.sum(axis=(0, 1)) / 1.4  # a 2-px window shows a shift 1.4 times too small
        moved.append(
            [(window * (grid - at)[:, :, np.newaxis]).sum(axis=(0, 1)) / total for grid, at in ((x, sx), (y, sy))]
        )
        inside = np.hypot(x - sx, y - sy) < 6.0
        kept.append(values[inside].sum(axis=0) / (10000.0 * star_field(150, 200, [(sx, sy)], 2.9)[inside].sum()))
    assert len(moved) >= 8
    assert np.abs(np.array(moved)[:, :, 1]).max() < 0.02
    assert np.abs(np.mean(moved, axis=0)).max() < 0.02
    assert np.std(moved, axis=0).max() < 0.06
    assert np.abs(np.array(kept)[:, 1] - 1.0).max() < 0.02
    assert np.abs(np.mean(kept, axis=0) - 1.0).max() < 0.02


def test_colours_do_not_mix() -> None:
    """A star that shines in red only leaves green and blue at exactly the sky."""
    cfa = np.full((136, 212), 100.0, np.float32)
    red = star_field(136, 212, STARS, 2.9) * 5000.0
    cfa[0::2, 1::2] += red[0::2, 1::2].astype(np.float32)
    values, seen = resample_band(Source(pixels=cfa, bayer="GRBG"), turn(0.4, 3.37, -2.81), 0, 136, 212)
    assert values[:, :, 0].max() > 3000.0
    assert np.abs(values[seen][:, 1:] - 100.0).max() < 1e-3
