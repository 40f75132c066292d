"""Detection on one plane: what is a source, what is part of one, and what the sky is."""

import numpy as np
import pytest
import sep
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from zemosaicd.science.detection import (
    MINIMUM_AREA,
    RISE_SHARE,
    RISE_SIGMA,
    THRESHOLD_SIGMA,
    Mesh,
    Sources,
    find_sources,
    measure_mesh,
    subtract_level,
)

NOISE = 10.0
KERNEL = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], np.float32)


def flat_mesh(noise: float = NOISE) -> Mesh:
    """No sky and the same noise everywhere."""
    return Mesh(level=np.zeros((1, 1), np.float32), noise=np.full((1, 1), noise, np.float32))


def star(shape: tuple[int, int], x: float, y: float, peak: float, sigma: float = 1.5, beta: float = 0.0) -> np.ndarray:
    """A Gaussian star, or one with the wings of a Moffat profile."""
    rows, columns = np.indices(shape)
    r2 = (columns - x) ** 2 + (rows - y) ** 2
    return peak * ((1 + r2 / (2 * beta * sigma**2)) ** -beta if beta else np.exp(-0.5 * r2 / sigma**2))


def field(seed: int, shape: tuple[int, int] = (100, 120), stars: int = 20) -> np.ndarray:
    """Noise and stars of all sorts, some of them close to each other, some cut off at the top."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(0, NOISE, shape)
    for _ in range(stars):
        x, y = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        plane += star(shape, x, y, NOISE * 10 ** rng.uniform(0.5, 3), rng.uniform(0.8, 4.0))
    return np.minimum(plane, 400 * NOISE).astype(np.float32)


def table(found: Sources) -> np.ndarray:
    """(n, 7) in the order of the oracle."""
    columns = (found.x, found.y, found.flux, found.area, found.major, found.minor, found.half_area)
    rows = np.stack(columns, axis=1)
    return rows[np.argsort(-rows[:, 2])]


class TestSources:
    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=25)
    def test_the_kernel_is_the_slow_definition(self, seed: int) -> None:
        """Every source, its place, flux, areas and widths, on planes with blends, plateaus and stars on the border."""
        plane = field(seed)
        expected = oracles.sources(plane, NOISE, THRESHOLD_SIGMA, MINIMUM_AREA, RISE_SIGMA, RISE_SHARE)
        found = table(find_sources(plane, flat_mesh()))
        assert len(found) == len(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)

    def test_it_goes_as_deep_as_sextractor_at_four_sigma(self) -> None:
        """Nothing that sep finds at 4 sigma of the same plane is missing."""
        rng = np.random.default_rng(1)
        plane = rng.normal(0, NOISE, (400, 400))
        for k in range(81):
            x, y = 40 * np.array(divmod(k, 9)) + rng.uniform(30, 50, 2)
            plane += star(plane.shape, x, y, NOISE * rng.uniform(4, 12))
        plane = plane.astype(np.float32)
        theirs = sep.extract(plane, 4.0 * NOISE, minarea=4, filter_kernel=KERNEL)
        ours = find_sources(plane, flat_mesh())
        away = np.hypot(theirs["x"][:, None] - ours.x, theirs["y"][:, None] - ours.y)
        assert len(theirs) > 40
        assert (away.min(axis=1) < 1.0).all()

    @pytest.mark.parametrize("seed", range(5))
    def test_noise_alone_is_nothing(self, seed: int) -> None:
        """A quarter of a million pixels of noise hold no source."""
        plane = np.random.default_rng(seed).normal(0, NOISE, (500, 500)).astype(np.float32)
        assert len(find_sources(plane, flat_mesh())) == 0

    def test_a_saturated_star_is_one_source_at_its_centre(self) -> None:
        """A plateau of 20 px across, equal values all over, with photon noise on its flanks."""
        rng = np.random.default_rng(2)
        plane = star((120, 120), 61.3, 57.8, 1e6, 4.0, beta=2.5)
        plane = np.minimum(plane + rng.normal(0, 1, plane.shape) * np.sqrt(NOISE**2 + plane), 2e4).astype(np.float32)
        found = find_sources(plane, flat_mesh())
        assert (plane == 2e4).sum() > 300
        assert len(found) == 1
        assert (found.x[0], found.y[0]) == pytest.approx((61.3, 57.8), abs=0.1)

    @pytest.mark.parametrize("peak", [1e3, 1e5, 1e7])
    def test_noise_in_the_wings_of_a_star_is_no_star(self, peak: float) -> None:
        """Photon noise of the star itself, ten of them: ten sources."""
        rng = np.random.default_rng(3)
        plane = np.zeros((400, 800))
        for k in range(10):
            plane += star(plane.shape, 80 + 160 * (k % 5) + rng.random(), 100 + 200 * (k // 5), peak, 1.6, beta=3.0)
        plane += rng.normal(0, 1, plane.shape) * np.sqrt(NOISE**2 + plane)
        assert len(find_sources(plane.astype(np.float32), flat_mesh())) == 10

    @given(st.floats(0, np.pi), st.floats(0.2, 1.0), st.floats(1.3, 2.2), st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_two_stars_are_two(self, angle: float, ratio: float, sigma: float, seed: int) -> None:
        """Stars of up to 1 : 5, two widths (FWHM) apart in any direction."""
        apart = 2.0 * 2.355 * np.hypot(sigma, 0.7)
        x, y = 40 + apart * np.cos(angle), 40 + apart * np.sin(angle)
        plane = star((80, 80), 40, 40, 200 * NOISE, sigma) + star((80, 80), x, y, ratio * 200 * NOISE, sigma)
        plane += np.random.default_rng(seed).normal(0, NOISE, plane.shape)
        assert len(find_sources(plane.astype(np.float32), flat_mesh())) == 2

    def test_a_satellite_is_long_and_no_row_of_stars(self) -> None:
        """Whatever its direction, noise breaks a trail into a few long pieces at most; a star on it stands out."""
        rng = np.random.default_rng(4)
        rows, columns = np.indices((300, 300))
        for angle in np.linspace(0, np.pi, 9):
            away = (columns - 150) * np.cos(angle) + (rows - 150) * np.sin(angle)
            plane = 20 * NOISE * np.exp(-0.5 * (away / 1.5) ** 2)
            plane += rng.normal(0, 1, plane.shape) * np.sqrt(NOISE**2 + plane)
            found = find_sources(plane.astype(np.float32), flat_mesh())
            assert len(found) <= 5
            assert (found.major > 5 * found.minor).all()
            with_star = find_sources((plane + star(plane.shape, 150, 150, 60 * NOISE)).astype(np.float32), flat_mesh())
            round_one = with_star.major < 2.5 * with_star.minor
            assert (with_star.x[round_one], with_star.y[round_one]) == (
                pytest.approx([150], abs=0.3),
                pytest.approx([150], abs=0.3),
            )

    def test_F30_a_plane_full_of_light_raises_the_threshold(self) -> None:
        """Where more than half of all pixels stand out, what stands out of them is found."""
        plane = np.random.default_rng(5).normal(0, NOISE, (200, 200))
        plane[:, :120] += 6 * NOISE
        plane += star(plane.shape, 150, 90, 300 * NOISE)
        found = find_sources(plane.astype(np.float32), flat_mesh())
        assert np.hypot(found.x - 150, found.y - 90).min() < 0.2
        assert len(found) < 20


class TestMesh:
    def test_sky_and_noise_under_stars(self) -> None:
        """A sloping sky with a star every 32 px: level within 0.15 sigma on the whole, noise within 12 %."""
        rng = np.random.default_rng(6)
        rows, columns = np.indices((480, 640))
        sky = 500 + 0.2 * columns - 0.1 * rows
        plane = sky + rng.normal(0, NOISE, sky.shape)
        for _ in range(300):
            x, y = rng.uniform(0, 640), rng.uniform(0, 480)
            top, left = max(0, int(y) - 12), max(0, int(x) - 12)
            window = plane[top : int(y) + 13, left : int(x) + 13]
            window += star(window.shape, x - left, y - top, NOISE * 10 ** rng.uniform(0, 3))
        clean = plane.astype(np.float32)
        mesh = measure_mesh(clean)
        assert mesh is not None
        np.testing.assert_allclose(mesh.noise, NOISE, rtol=0.12)
        subtract_level(clean, mesh)
        left_over = (plane - clean - sky)[32:-32, 32:-32]
        assert np.abs(left_over).max() < 0.3 * NOISE
        assert abs(left_over.mean()) < 0.15 * NOISE

    def test_noise_is_local(self) -> None:
        """A third of the plane thrice as noisy, as in a bright nebula: the mesh says so, and no noise is a source."""
        plane = np.random.default_rng(7).normal(0, NOISE, (512, 768)).astype(np.float32)
        plane[:, 512:] *= 3
        mesh = measure_mesh(plane)
        assert mesh is not None
        assert mesh.noise[:, 0] == pytest.approx(NOISE, rel=0.1)
        assert mesh.noise[:, -1] == pytest.approx(3 * NOISE, rel=0.1)
        subtract_level(plane, mesh)
        assert len(find_sources(plane, mesh)) == 0

    def test_V3_no_data_is_no_sky(self) -> None:
        """Holes change nothing next to them, become sky themselves, and a plane of holes has no mesh."""
        plane = np.random.default_rng(8).normal(1000, NOISE, (256, 256)).astype(np.float32)
        plane[60:130, :140] = np.nan
        plane[200, 200] = np.inf
        mesh = measure_mesh(plane)
        assert mesh is not None
        np.testing.assert_allclose(mesh.level, 1000, atol=0.3 * NOISE)
        subtract_level(plane, mesh)
        assert (plane[60:130, :140] == 0).all()
        assert plane[200, 200] == 0
        assert abs(plane.mean()) < 0.1 * NOISE
        assert measure_mesh(np.full((256, 256), np.nan, np.float32)) is None

    def test_F30_padding_is_not_quiet(self) -> None:
        """A constant half has no noise; it does not lower that of its border to nothing."""
        plane = np.random.default_rng(9).normal(1000, NOISE, (256, 512)).astype(np.float32)
        plane[:, 256:] = 0
        mesh = measure_mesh(plane)
        assert mesh is not None
        assert mesh.noise.min() >= 0.45 * NOISE
        assert measure_mesh(np.full((256, 256), 7, np.float32)) is None
