"""Real raw frames are solved from their pixels and headers alone, quickly, and never in the wrong place."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tests.scenes import repair_hot_pixels
from zemosaicd.model import FrameFacts, Solution, Wcs
from zemosaicd.science.astrometry import Hint, Unsolved, locate, solve
from zemosaicd.science.frame import block_levels, sky_and_noise
from zemosaicd.science.stars import StarList, find_stars, shape
from zemosaicd.sphere import (
    direction,
    position_angle_deg,
    precess_to_j2000,
    scale_arcsec,
    separation_deg,
    tangent_basis,
)
from zemosaicd.sphere import position as position_of
from zemosaicd.work.catalogue import read_cone

pytestmark = pytest.mark.frames

# set: frames, scale found, limit of the 2-D rms (arcsec), place (J2000) of the target
SETS = {
    "m94_night1": (16, 2.3757, 0.9, (192.721, 41.120)),
    "m94_night2": (3, 2.3757, 0.9, (192.721, 41.120)),
    "m94_other_scope": (4, 2.3727, 1.0, (192.721, 41.120)),
    "ngc7023_altaz": (4, 2.374, 0.7, (315.404, 68.163)),
    "m27_osc": (6, 1.4815, 0.4, (299.902, 22.721)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One real frame, detected."""

    folder: str
    facts: FrameFacts
    year: float
    stars: StarList
    hot_pixels: int
    sky: tuple[float, ...]
    noise: tuple[float, ...]


def sexagesimal(text: str) -> float:
    """Degrees (or hours) of "dd mm ss.s"."""
    a, b, c = (float(word) for word in text.split())
    return a + b / 60 + c / 3600


def wcs_of(header: fits.Header) -> Wcs | None:
    """The header's own WCS, from PC + CDELT or CDELT + CROTA2."""
    if "CRVAL1" not in header:
        return None
    sx, sy, turn = header["CDELT1"], header["CDELT2"], math.radians(header.get("CROTA2", 0.0))
    if "PC1_1" in header:
        cd = (sx * header["PC1_1"], sx * header["PC1_2"], sy * header["PC2_1"], sy * header["PC2_2"])
    else:
        cd = (sx * math.cos(turn), -sy * math.sin(turn), sx * math.sin(turn), sy * math.cos(turn))
    x, y = header["CRPIX1"] - 1.0, header["CRPIX2"] - 1.0
    return Wcs(ra_deg=header["CRVAL1"], dec_deg=header["CRVAL2"], x_px=x, y_px=y, cd=cd)


def read(path: Path) -> Frame:
    """A frame and the facts of its header, read by astropy alone."""
    with fits.open(path, memmap=False) as hdus:
        header, data = hdus[0].header, np.asarray(hdus[0].data)
    pixel = header["XPIXSZ"] if "XPIXSZ" in header else header["PIXSIZE1"]
    named = "RA" in header
    ra = header["RA"] if named else 15 * sexagesimal(header["OBJCTRA"])
    dec = header["DEC"] if named else sexagesimal(header["OBJCTDEC"])
    observed = datetime.fromisoformat(header["DATE-OBS"]).replace(tzinfo=UTC)
    facts = FrameFacts(
        width=data.shape[1], height=data.shape[0], bayer=header["BAYERPAT"].strip(), ra_deg=ra, dec_deg=dec,
        observed_s=observed.timestamp(), scale_arcsec=206.264806 * pixel / header["FOCALLEN"], wcs=wcs_of(header),
    )  # fmt: skip
    plane, count = repair_hot_pixels(data, bool(facts.bayer))
    sky, noise = sky_and_noise(*block_levels(plane, facts.bayer))
    return Frame(
        folder=path.parent.name, facts=facts, year=2000.0 + (observed.timestamp() - 946728000.0) / 31557600.0,
        stars=find_stars(plane, facts.bayer), hot_pixels=count, sky=sky, noise=noise,
    )  # fmt: skip


@pytest.fixture(scope="module")
def frames(frames_dir: Path) -> list[Frame]:
    """Every raw frame of every set, detected once."""
    return [read(p) for name in SETS for p in sorted((frames_dir / name).glob("*.fit*"))]


@pytest.fixture(scope="module")
def solutions(frames: list[Frame]) -> list[Solution]:
    """What locate() says of each, which must be a solution."""
    found = [locate(f.stars, f.facts, f.year, read_cone) for f in frames]
    assert [(f.folder, s) for f, s in zip(frames, found, strict=True) if not isinstance(s, Solution)] == []
    return [s for s in found if isinstance(s, Solution)]


def true_pointing(frame: Frame) -> tuple[float, float]:
    """The header's pointing, taken out of date where the maker writes it so."""
    ra, dec = frame.facts.ra_deg, frame.facts.dec_deg
    assert ra is not None
    assert dec is not None
    return (ra, dec) if frame.folder == "m27_osc" else precess_to_j2000(ra, dec, frame.year)


def test_every_frame_solves_where_its_target_is(frames: list[Frame], solutions: list[Solution]) -> None:
    """All 33 frames: target in the field, known scale, fitted as well as the catalogue allows, odds beyond doubt."""
    assert len(solutions) == sum(s[0] for s in SETS.values()) == 33
    for frame, found in zip(frames, solutions, strict=True):
        _, scale, rms, target = SETS[frame.folder]
        wcs = found.wcs
        assert separation_deg(direction(wcs.ra_deg, wcs.dec_deg), direction(*target)) < 0.3
        assert scale_arcsec(wcs) == pytest.approx(scale, rel=1e-3)
        assert found.rms_arcsec < rms
        assert found.matches >= 12
        assert found.log_false_alarm < -30


def test_header_solutions_are_believed_only_if_the_stars_agree(frames: list[Frame], solutions: list[Solution]) -> None:
    """NGC 7023's PC + CDELT solution is used; M 27's approximate one is named implausible; Seestars have none."""
    for frame, found in zip(frames, solutions, strict=True):
        if frame.folder == "ngc7023_altaz":
            assert (found.solver, found.header_wcs) == ("header+catalogue", "used")
        elif frame.folder == "m27_osc":
            assert found.solver == "catalogue"
            assert found.header_wcs.startswith("implausible: ")
        else:
            assert (found.solver, found.header_wcs) == ("catalogue", "")


def test_rotations_between_nights_and_scopes_come_out(frames: list[Frame], solutions: list[Solution]) -> None:
    """The second scope is turned by 69.5 degrees, the second night by 0.3; the alt-az field turns 0.3 deg/min."""
    angle = {
        name: [position_angle_deg(s.wcs) for f, s in zip(frames, solutions, strict=True) if f.folder == name]
        for name in SETS
    }
    first = float(np.median(angle["m94_night1"]))
    other, second = float(np.median(angle["m94_other_scope"])), float(np.median(angle["m94_night2"]))
    assert abs((other - first + 180) % 360 - 180) == pytest.approx(69.5, abs=0.3)
    assert abs(second - first) == pytest.approx(0.3, abs=0.15)
    assert abs(angle["ngc7023_altaz"][-1] - angle["ngc7023_altaz"][0]) > 0.1


def test_wrong_fields_are_refused(frames: list[Frame]) -> None:
    """Each of 33 star lists against 20 fields all over the sky where it was not taken: 660 times no."""
    rng = np.random.default_rng(1)
    wrong = 0
    for frame in frames:
        for _ in range(20):
            away = position_of(tuple(rng.normal(size=3)))
            while separation_deg(direction(*away), direction(*true_pointing(frame))) < 10:
                away = position_of(tuple(rng.normal(size=3)))
            hint = Hint(pointings=(away,), scale_arcsec=frame.facts.scale_arcsec, radius_deg=0.1)
            found = solve(frame.stars, frame.facts.width, frame.facts.height, hint, read_cone)
            wrong += not isinstance(found, Unsolved)
    assert wrong == 0


def test_a_wrong_field_is_refused_to_the_last_rung(frames: list[Frame]) -> None:
    """Wide search and scale search included, a frame pointed at the wrong sky ends with its reason."""
    frame = next(f for f in frames if f.folder == "m94_night2")
    found = locate(frame.stars, replace(frame.facts, ra_deg=40.0, dec_deg=10.0), frame.year, read_cone)
    assert not isinstance(found, Solution)
    assert found.rule == "no_match"
    assert found.value > found.threshold


def test_pointing_two_degrees_off_still_solves(frames: list[Frame], solutions: list[Solution]) -> None:
    """One frame of each set, pointed 1.9 degrees away in some direction, comes out where it was."""
    rng = np.random.default_rng(2)
    for name in SETS:
        k = next(i for i, f in enumerate(frames) if f.folder == name)
        e, n, c = tangent_basis(*true_pointing(frames[k]))
        angle, t = rng.uniform(0, 2 * math.pi), math.tan(math.radians(1.9))
        away = position_of(tuple(c[i] + t * (math.cos(angle) * e[i] + math.sin(angle) * n[i]) for i in range(3)))
        hint = Hint(pointings=(away,), scale_arcsec=frames[k].facts.scale_arcsec)
        found = solve(frames[k].stars, frames[k].facts.width, frames[k].facts.height, hint, read_cone)
        assert isinstance(found, Solution)
        centres = [direction(s.wcs.ra_deg, s.wcs.dec_deg) for s in (found, solutions[k])]
        assert separation_deg(*centres) < 1 / 3600


def test_no_scale_in_the_header_still_solves(frames: list[Frame], solutions: list[Solution]) -> None:
    """One frame of each set without FOCALLEN comes out at the same place and scale."""
    for name in SETS:
        k = next(i for i, f in enumerate(frames) if f.folder == name)
        facts = replace(frames[k].facts, scale_arcsec=0.0, wcs=None)
        found = locate(frames[k].stars, facts, frames[k].year, read_cone)
        assert isinstance(found, Solution)
        assert scale_arcsec(found.wcs) == pytest.approx(scale_arcsec(solutions[k].wcs), rel=1e-3)


def test_star_lists_are_sane(frames: list[Frame]) -> None:
    """C9: star counts, FWHM, sky and noise of real frames lie where the eye puts them; few hot pixels are touched."""
    for frame in frames:
        fwhm, ellipticity = shape(frame.stars)
        assert 19 <= len(frame.stars) <= 200
        assert 1.8 < fwhm < 3.6
        assert 0.0 <= ellipticity < 0.45
        assert frame.hot_pixels < 300
        assert all(50 < s < 2000 for s in frame.sky)
        assert all(20 < n < 150 for n in frame.noise)
