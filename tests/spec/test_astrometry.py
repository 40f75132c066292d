"""Solving without the network: a star list and a catalogue give the right place, or a reason, never a wrong place."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import FK5, SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from zemosaicd.model import FrameFacts, Grid, Reason, Solution, Wcs
from zemosaicd.science.astrometry import Hint, Unsolved, check_header_wcs, locate, solve
from zemosaicd.science.pairs import log_tail
from zemosaicd.science.stars import CatalogueStars, StarList
from zemosaicd.sphere import (
    centre_of,
    pixel_to_sky,
    position,
    precess_to_j2000,
    separation_deg,
    sky_to_pixel,
    tangent_basis,
)
from zemosaicd.sphere import direction as towards
from zemosaicd.sphere import scale_arcsec as scale_of
from zemosaicd.work.catalogue import read_cone

WIDTH, HEIGHT, SCALE = 1080, 1920, 2.37


def make_wcs(ra: float, dec: float, *, angle: float = 30.0, mirrored: bool = False, scale: float = SCALE) -> Wcs:
    """The WCS of a frame that points at (ra, dec), turned by `angle`."""
    c, s = scale / 3600 * math.cos(math.radians(angle)), scale / 3600 * math.sin(math.radians(angle))
    cd = (-c, s, s, c) if mirrored else (c, -s, s, c)
    return Wcs(ra_deg=ra, dec_deg=dec, x_px=(WIDTH - 1) / 2, y_px=(HEIGHT - 1) / 2, cd=cd)


def star_list(x: np.ndarray, y: np.ndarray) -> StarList:
    """A list in the order given, of falling flux."""
    n = len(x)
    flux = np.geomspace(1e5, 1e3, n).astype(np.float32) if n else np.empty(0, np.float32)
    level = np.full(n, 3.0, np.float32)
    return StarList(x=x, y=y, flux=flux, snr=flux / 50, fwhm_px=level, ellipticity=level * 0)


def seen(
    wcs: Wcs,
    rng: np.random.Generator,
    *,
    most: int = 30,
    spurious: int = 10,
    missing: float = 0.2,
    noise_px: float = 0.2,
) -> StarList:
    """What a frame would detect: catalogue stars with gaps and scatter, and sources that no catalogue has."""
    near = read_cone(wcs.ra_deg, wcs.dec_deg, 1.0)
    places = []
    for ra, dec in zip(near.ra_deg, near.dec_deg, strict=True):
        p = sky_to_pixel(wcs, towards(ra, dec))
        if p and 0 <= p[0] < WIDTH and 0 <= p[1] < HEIGHT and rng.uniform() > missing:
            places.append(p)
    real = np.array(places[:most]).reshape(-1, 2) + rng.normal(0, noise_px, (min(most, len(places)), 2))
    wrong = rng.uniform(0, 1, (spurious, 2)) * (WIDTH, HEIGHT)
    mixed = np.concatenate([real, wrong])
    mixed = mixed[np.argsort(np.concatenate([np.arange(len(real)), rng.uniform(0, len(real), spurious)]))]
    return star_list(mixed[:, 0].copy(), mixed[:, 1].copy())


def error_px(found: Wcs, true: Wcs) -> float:
    """Largest distance in pixels between two solutions, over the corners and the centre."""
    worst = 0.0
    for x, y in ((0, 0), (WIDTH, 0), (0, HEIGHT), (WIDTH, HEIGHT), (WIDTH / 2, HEIGHT / 2)):
        p = sky_to_pixel(true, pixel_to_sky(found, x, y))
        assert p is not None
        worst = max(worst, math.hypot(p[0] - x, p[1] - y))
    return worst


def offset(ra: float, dec: float, distance: float, angle: float) -> tuple[float, float]:
    """The position `distance` degrees away in a direction."""
    e, n, c = tangent_basis(ra, dec)
    t = math.tan(math.radians(distance))
    return position(tuple(c[i] + t * (math.cos(angle) * e[i] + math.sin(angle) * n[i]) for i in range(3)))


def solved(stars: StarList, hint: Hint) -> Solution | Unsolved:
    """solve() with the shipped catalogue."""
    return solve(stars, WIDTH, HEIGHT, hint, read_cone)


class TestPrecession:
    @given(ra=st.floats(0, 359.9), dec=st.floats(-89, 89), year=st.floats(1990, 2060))
    @settings(max_examples=25)
    def test_agrees_with_astropy(self, ra: float, dec: float, year: float) -> None:
        """Coordinates of date come back to J2000 as astropy's FK5 (IAU 2006) has them, to 0.4\"."""
        of_date = SkyCoord(ra, dec, unit="deg", frame=FK5(equinox=f"J{year:.6f}"))
        j2000 = of_date.transform_to(FK5(equinox="J2000"))
        mine = precess_to_j2000(ra, dec, round(year, 6))
        assert separation_deg(towards(*mine), towards(j2000.ra.deg, j2000.dec.deg)) < 0.4 / 3600


class TestOdds:
    @given(tried=st.integers(1, 300), share=st.floats(0, 1), chance=st.floats(1e-4, 0.5))
    @settings(max_examples=100)
    def test_the_tail_is_the_binomial_one(self, tried: int, share: float, chance: float) -> None:
        """ln P(X >= h) agrees with scipy wherever scipy can say it."""
        hits = int(share * tried)
        expected = binom.logsf(hits - 1, tried, chance)
        if np.isfinite(expected) and expected > -600:
            assert log_tail(hits, tried, chance) == pytest.approx(expected, abs=1e-6, rel=1e-6)


class TestSolve:
    @pytest.mark.parametrize("mirrored", [False, True])
    @pytest.mark.parametrize("angle", [0.0, 75.0, 200.0])
    def test_any_rotation_and_parity(self, mirrored: bool, angle: float) -> None:
        """Rotation and mirror sign need no hint; the place is right to a pixel in the corners."""
        true = make_wcs(192.7, 41.1, angle=angle, mirrored=mirrored)
        found = solved(seen(true, np.random.default_rng(1)), Hint(pointings=((192.75, 41.05),), scale_arcsec=2.39))
        assert isinstance(found, Solution)
        assert error_px(found.wcs, true) < 1.0
        assert found.log_false_alarm < math.log(1e-6)
        assert found.rms_arcsec < 1.0
        assert found.solver == "catalogue"

    @pytest.mark.parametrize(("ra", "dec"), [(0.02, 20.0), (359.98, -45.0), (130.0, 89.6), (40.0, -89.9)])
    def test_the_wrap_and_the_poles(self, ra: float, dec: float) -> None:
        """RA 0 and the poles are fields like any other."""
        true = make_wcs(ra, dec)
        hint = Hint(pointings=(offset(ra, dec, 0.2, 1.0),), scale_arcsec=2.39)
        found = solved(seen(true, np.random.default_rng(2), most=60), hint)
        assert isinstance(found, Solution)
        assert error_px(found.wcs, true) < 1.0

    @pytest.mark.parametrize("distance", [0.0, 0.2, 0.55, 1.9])
    def test_pointing_errors_up_to_two_degrees(self, distance: float) -> None:
        """The search widens by itself to 2 degrees."""
        true = make_wcs(310.0, 44.0)
        hint = Hint(pointings=(offset(310.0, 44.0, distance, 2.0),), scale_arcsec=2.39)
        found = solved(seen(true, np.random.default_rng(3)), hint)
        assert isinstance(found, Solution)
        assert error_px(found.wcs, true) < 1.0

    @pytest.mark.parametrize("factor", [0.96, 1.0, 1.04])
    def test_scale_errors_up_to_five_per_cent(self, factor: float) -> None:
        """A header's FOCALLEN may be 4 % off."""
        true = make_wcs(192.7, 41.1)
        stars = seen(true, np.random.default_rng(4))
        found = solved(stars, Hint(pointings=((192.7, 41.1),), scale_arcsec=SCALE * factor))
        assert isinstance(found, Solution)
        assert scale_of(found.wcs) == pytest.approx(SCALE, rel=1e-3)

    @pytest.mark.parametrize("scale", [1.6, 2.37, 4.1])
    def test_the_scale_may_be_unknown(self, scale: float) -> None:
        """Without a scale it is searched, from 0.3 to 15\" a pixel."""
        true = make_wcs(310.0, 44.0, scale=scale)
        stars = seen(true, np.random.default_rng(5), most=40)
        found = solved(stars, Hint(pointings=((310.02, 44.05),), radius_deg=0.25))
        assert isinstance(found, Solution)
        assert scale_of(found.wcs) == pytest.approx(scale, rel=2e-3)

    def test_the_first_of_several_pointings_need_not_be_right(self) -> None:
        """Alternatives are tried in turn."""
        true = make_wcs(192.7, 41.1)
        hint = Hint(pointings=((20.0, -30.0), (192.7, 41.1)), scale_arcsec=2.37, radius_deg=0.25)
        found = solved(seen(true, np.random.default_rng(6)), hint)
        assert isinstance(found, Solution)
        assert error_px(found.wcs, true) < 1.0

    def test_wrong_fields_are_refused(self) -> None:
        """Twelve star lists, each against a place on the sky where it is not: none is solved, and the odds are told."""
        rng = np.random.default_rng(7)
        for k in range(12):
            stars = seen(make_wcs(30.0 * k, 10.0 * (k % 9) - 40), rng, most=40)
            found = solved(stars, Hint(pointings=((30.0 * k + 160, 20.0),), scale_arcsec=2.37, radius_deg=0.25))
            assert isinstance(found, Unsolved)
            assert found.reason.rule in ("no_match", "probable")
            assert isinstance(found.reason.value, float)
            assert found.reason.value > found.reason.threshold

    def test_random_points_are_refused_with_unknown_scale(self) -> None:
        """Sources that are no stars find no place on the whole ladder of scales."""
        rng = np.random.default_rng(8)
        stars = star_list(rng.uniform(0, WIDTH, 30), rng.uniform(0, HEIGHT, 30))
        found = solved(stars, Hint(pointings=((192.7, 41.1),), radius_deg=0.25))
        assert isinstance(found, Unsolved)

    def test_close_catalogue_pairs_count_one_detection_once(self) -> None:
        """A catalogue in which every star is triple gives no better odds than the plain one."""
        rng = np.random.default_rng(9)
        stars = star_list(rng.uniform(0, WIDTH, 12), rng.uniform(0, HEIGHT, 12))

        def triple(ra: float, dec: float, radius: float) -> CatalogueStars:
            near = read_cone(ra, dec, radius)
            shift = np.array([[-1.0], [0.0], [1.0]]) / 3600
            dec3 = (near.dec_deg + shift).T.ravel()
            return CatalogueStars(ra_deg=np.repeat(near.ra_deg, 3), dec_deg=dec3, mag=np.repeat(near.mag, 3))

        for k in range(10):
            hint = Hint(pointings=((20.0 + 30 * k, 30.0),), scale_arcsec=2.37, radius_deg=0.25)
            found = solve(stars, WIDTH, HEIGHT, hint, triple)
            assert isinstance(found, Unsolved)
            assert found.reason.value > math.log(1e-4)

    @pytest.mark.parametrize("count", [0, 1, 4])
    def test_too_few_stars_say_so(self, count: int) -> None:
        """Fewer than five stars are not tried."""
        found = solved(star_list(np.arange(count) * 50.0, np.arange(count) * 70.0), Hint(pointings=((10.0, 10.0),)))
        assert isinstance(found, Unsolved)
        assert (found.reason.rule, found.reason.value, found.reason.threshold) == ("too_few_stars", count, 5)

    def test_an_empty_catalogue_says_so(self) -> None:
        """A field with too few catalogue stars is told apart from one that does not fit."""
        empty = CatalogueStars(ra_deg=np.empty(0), dec_deg=np.empty(0), mag=np.empty(0, np.float32))
        stars = seen(make_wcs(192.7, 41.1), np.random.default_rng(10))
        hint = Hint(pointings=((192.7, 41.1),), scale_arcsec=2.37)
        found = solve(stars, WIDTH, HEIGHT, hint, lambda *_: empty)
        assert isinstance(found, Unsolved)
        assert found.reason.rule == "catalogue_too_thin"

    def test_few_stars_are_probable_at_most_and_never_wrong(self) -> None:
        """Six to eight stars solve, or are probable, or are not solved; what is solved is right."""
        outcomes = set()
        for seed in range(30):
            true = make_wcs(192.7, 41.1)
            stars = seen(true, np.random.default_rng(seed), most=5 + seed % 3, spurious=2, missing=0.4)
            found = solved(stars, Hint(pointings=((192.8, 41.2),), scale_arcsec=2.37, radius_deg=0.25))
            if isinstance(found, Solution):
                assert error_px(found.wcs, true) < 6.0
            elif found.probable is not None:
                assert found.reason.rule == "probable"
                assert math.log(1e-6) <= found.reason.value < math.log(1e-3)
            outcomes.add(type(found))
        assert Solution in outcomes


class TestHeaderWcs:
    TRUE = make_wcs(192.7, 41.1)

    def stars(self) -> StarList:
        """What a frame at TRUE sees."""
        return seen(self.TRUE, np.random.default_rng(11))

    def facts(self, wcs: Wcs | None, **changes: object) -> FrameFacts:
        """A frame's facts, its coordinates J2000 and right."""
        facts = FrameFacts(width=WIDTH, height=HEIGHT, ra_deg=192.7, dec_deg=41.1, scale_arcsec=2.39, wcs=wcs)
        return replace(facts, **changes)  # type: ignore[arg-type]

    def test_a_good_one_is_used_and_refined(self) -> None:
        """A header's WCS that is a pixel off is believed, and comes back better than it was."""
        header = replace(self.TRUE, x_px=self.TRUE.x_px + 1.2)
        found = locate(self.stars(), self.facts(header), 2025.2, read_cone)
        assert isinstance(found, Solution)
        assert (found.solver, found.header_wcs) == ("header+catalogue", "used")
        assert error_px(found.wcs, self.TRUE) < 0.7

    def test_a_mirrored_one_is_named_and_dropped(self) -> None:
        """The wrong mirror sign is found out; the frame is solved without it."""
        found = locate(self.stars(), self.facts(make_wcs(192.7, 41.1, mirrored=True)), None, read_cone)
        assert isinstance(found, Solution)
        assert found.solver == "catalogue"
        assert found.header_wcs.startswith("implausible: ")
        assert "mirrored" in found.header_wcs
        assert error_px(found.wcs, self.TRUE) < 1.0

    def test_a_displaced_one_still_gives_the_pointing(self) -> None:
        """Without RA and DEC cards, the place that an implausible WCS names starts the search."""
        header = make_wcs(192.9, 41.0, angle=0.0)
        found = locate(self.stars(), self.facts(header, ra_deg=None, dec_deg=None), None, read_cone)
        assert isinstance(found, Solution)
        assert found.header_wcs.startswith("implausible: ")
        assert "rotated 30" in found.header_wcs
        assert error_px(found.wcs, self.TRUE) < 1.0

    @pytest.mark.parametrize(
        "wcs",
        [
            replace(TRUE, cd=(0.0, 0.0, 0.0, 0.0)),
            replace(TRUE, cd=(1.0, 0.0, 0.0, 1.0)),
            replace(TRUE, cd=(math.nan, 0.0, 0.0, 1e-3)),
            replace(TRUE, ra_deg=math.nan),
            replace(TRUE, dec_deg=-41.1),
            replace(TRUE, x_px=1e9),
        ],
        ids=["singular", "degrees a pixel", "NaN scale", "NaN place", "other hemisphere", "far reference"],
    )
    def test_nonsense_is_a_reason(self, wcs: Wcs) -> None:
        """A WCS of no sense is implausible with a reason, and the frame is solved all the same."""
        assert isinstance(check_header_wcs(wcs, self.stars(), WIDTH, HEIGHT, read_cone), Reason)
        found = locate(self.stars(), self.facts(wcs), None, read_cone)
        assert isinstance(found, Solution)
        assert found.header_wcs.startswith("implausible: ")

    def test_no_wcs_leaves_no_word(self) -> None:
        """A frame without a WCS in its header is solved and says nothing of one."""
        found = locate(self.stars(), self.facts(None), None, read_cone)
        assert isinstance(found, Solution)
        assert found.header_wcs == ""


class TestLocate:
    def test_coordinates_of_date_are_precessed(self) -> None:
        """A pointing 15' off because it is of date is found in the narrowest search; so is one that is J2000."""
        true = make_wcs(192.7, 41.1)
        stars = seen(true, np.random.default_rng(12))
        of_date = SkyCoord(192.7, 41.1, unit="deg", frame="fk5").transform_to(FK5(equinox="J2025.2"))
        for ra, dec in ((of_date.ra.deg, of_date.dec.deg), (192.7, 41.1)):
            facts = FrameFacts(width=WIDTH, height=HEIGHT, ra_deg=ra, dec_deg=dec, scale_arcsec=2.39)
            found = locate(stars, facts, 2025.2, read_cone)
            assert isinstance(found, Solution)
            centre = centre_of(Grid(wcs=found.wcs, width=WIDTH, height=HEIGHT))
            assert separation_deg(centre, towards(192.7, 41.1)) < 1 / 3600

    def test_a_wrong_focal_length_is_survived(self) -> None:
        """A header scale 37 % off (a reducer) is searched after the header's own fails."""
        true = make_wcs(310.0, 44.0, scale=3.0)
        stars = seen(true, np.random.default_rng(13), most=40)
        facts = FrameFacts(width=WIDTH, height=HEIGHT, ra_deg=310.0, dec_deg=44.0, scale_arcsec=1.9)
        found = locate(stars, facts, None, read_cone)
        assert isinstance(found, Solution)
        assert scale_of(found.wcs) == pytest.approx(3.0, rel=1e-3)

    def test_no_pointing_is_a_reason(self) -> None:
        """Without any position the rule says so."""
        stars = seen(make_wcs(192.7, 41.1), np.random.default_rng(14))
        found = locate(stars, FrameFacts(width=WIDTH, height=HEIGHT, scale_arcsec=2.39), None, read_cone)
        assert isinstance(found, Reason)
        assert found.rule == "no_pointing"
        assert found.message

    def test_the_answer_is_a_function_of_its_input(self) -> None:
        """C7: twice the same list gives the same solution, bit for bit."""
        stars = seen(make_wcs(192.7, 41.1), np.random.default_rng(15))
        facts = FrameFacts(width=WIDTH, height=HEIGHT, ra_deg=192.7, dec_deg=41.1, scale_arcsec=2.39)
        assert locate(stars, facts, 2025.0, read_cone) == locate(stars, facts, 2025.0, read_cone)
