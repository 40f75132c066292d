"""What a header says about a frame (C2, C3, section 10): every spelling, no exception but Rejected."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import FK5, SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.core.cards import clean_text, sexagesimal, slug
from zemosaicd.core.headers import facts, observed
from zemosaicd.core.wcs_cards import header_wcs
from zemosaicd.model import Rejected
from zemosaicd.sphere import precess_to_j2000

FRAME = {"BITPIX": 16, "NAXIS": 2, "NAXIS1": 1080, "NAXIS2": 1920}
TAN = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 1.0, "CRPIX2": 1.0}


def said(**cards: object):  # type: ignore[no-untyped-def]
    return facts({**FRAME, **{key.replace("_DASH_", "-"): value for key, value in cards.items()}})


# --- what a light frame is not


@pytest.mark.parametrize(
    "kind", ["Dark", "DARK FRAME", "Flat Field", "bias", "Offset", "Master Dark", "dark flat", "zero"]
)
@pytest.mark.parametrize("card", ["IMAGETYP", "FRAME", "OBSTYPE"])
def test_C2_calibration_frames_are_rejected(card: str, kind: str) -> None:
    """Darks, flats and bias frames are no light frames, whatever card says so."""
    with pytest.raises(Rejected) as caught:
        said(**{card: kind})
    assert caught.value.reason.rule == "header.frame_type"


@pytest.mark.parametrize("kind", ["Light", "LIGHT", "Light Frame", "object", "science", "", None, 3])
def test_C2_light_frames_are_taken(kind: object) -> None:
    """Light frames, and frames that do not say, are taken."""
    assert said(IMAGETYP=kind).width == 1080


@pytest.mark.parametrize(
    "cards",
    [{"STACKCNT": 55}, {"NCOMBINE": 2}, {"IMAGETYP": "Master Light"}, {"BITPIX": -32, "CREATOR": "ZWO Seestar S50"}],
)
def test_C2_stacks_of_the_telescope_are_rejected(cards: dict[str, object]) -> None:
    """A stack count, a master, floats from a smart telescope: never stacked again, but perhaps master tiles (D4)."""
    with pytest.raises(Rejected) as caught:
        said(**cards)
    assert caught.value.reason.rule == "header.stacked"
    assert facts({**FRAME, **cards}, masters=True).width == 1080


@pytest.mark.parametrize(
    "name", ["Stacked_63_M 94_10.0s.fit", "DSO_Stacked_12_x.fit", "a/b/Stacked_2.fit", "img_stacked-7.fits"]
)
def test_C2_stacks_are_known_by_name(name: str) -> None:
    """The maker's file names give a stack away."""
    with pytest.raises(Rejected) as caught:
        facts(FRAME, name)
    assert caught.value.reason.rule == "name.stacked"


def test_C2_single_frames_with_counters_and_plain_floats_are_taken() -> None:
    """A stack count of 1 is a single frame, and other makers' floats are calibrated frames."""
    assert said(STACKCNT=1, BITPIX=-32, INSTRUME="ASI224MC", EXPTIME=30.0).width == 1080


def test_C2_a_finished_picture_is_no_frame() -> None:
    """Floats without an exposure time are a survey's or a program's result, not raw data (2MASS tiles, coadds)."""
    with pytest.raises(Rejected) as refused:
        said(BITPIX=-32, INSTRUME="", EXPTIME=None, EXPOSURE=None)
    assert refused.value.reason.rule == "header.finished"


@pytest.mark.parametrize(
    "cards",
    [
        {"NAXIS": 1}, {"NAXIS": 4, "NAXIS3": 1, "NAXIS4": 1}, {"NAXIS": 3, "NAXIS3": 4}, {"NAXIS": 3}, {"NAXIS": "x"},
        {"NAXIS1": 3}, {"NAXIS2": 0}, {"NAXIS1": -5}, {"BITPIX": 12}, {"BITPIX": None}, {"NAXIS": math.nan},
    ],
)  # fmt: skip
def test_C2_wrong_dimensions_are_rejected(cards: dict[str, object]) -> None:
    """What is not a picture of one or three planes is rejected."""
    with pytest.raises(Rejected):
        said(**cards)


# --- colour


def test_mono_and_colour_planes() -> None:
    """No BAYERPAT is mono; three planes are colour and have no pattern any more."""
    assert (said().bayer, said().channels) == ("", 1)
    cube = said(NAXIS=3, NAXIS3=3, BAYERPAT="RGGB")
    assert (cube.bayer, cube.planes, cube.channels) == ("", 3, 3)
    assert said(NAXIS=3, NAXIS3=1, BAYERPAT="RGGB").channels == 3
    assert said(BAYERPAT="MONO").bayer == ""
    with pytest.raises(Rejected):
        said(BAYERPAT="CMYG")


def test_luminance_filter_on_a_colour_camera_is_bayer() -> None:
    """FILTER = Luminance does not make a Bayer camera mono."""
    known = said(FILTER="Luminance", COLORTYP="RGGB")
    assert (known.bayer, known.filter_name) == ("RGGB", "Luminance")


@given(
    pattern=st.sampled_from(["RGGB", "BGGR", "GRBG", "GBRG"]),
    height=st.integers(16, 21),
    x_offset=st.integers(0, 3),
    y_offset=st.integers(0, 3),
    bottom_up=st.booleans(),
)
def test_pattern_is_that_of_the_stored_rows(
    pattern: str, height: int, x_offset: int, y_offset: int, bottom_up: bool
) -> None:
    """Paint a picture by pattern and offsets, store it in the stated order: the answer is its first 2x2 block."""
    rows = [
        [pattern[2 * ((y + y_offset) % 2) + (x + x_offset) % 2] for x in range(16)] for y in range(height)
    ]  # the picture, top row first
    stored = rows[::-1] if bottom_up else rows
    order = "BOTTOM-UP" if bottom_up else "TOP-DOWN"
    known = said(NAXIS1=16, NAXIS2=height, BAYERPAT=pattern, XBAYROFF=x_offset, YBAYROFF=y_offset, ROWORDER=order)
    assert known.bayer == stored[0][0] + stored[0][1] + stored[1][0] + stored[1][1]


# --- scale, camera


@pytest.mark.parametrize(
    ("cards", "scale"),
    [
        ({"FOCALLEN": 250, "XPIXSZ": 2.9}, 2.3927),
        ({"FOCALLEN": "250 mm", "XPIXSZ": "2.9"}, 2.3927),
        ({"FOCALLEN": 510.0, "PIXSIZE1": 3.75, "SECPIX1": 9.0}, 1.5167),
        ({"FOCALLEN": 510.0, "PIXSIZE1": 3.75, "XBINNING": 2}, 3.0333),
        ({"FOCALLEN": 510.0, "XPIXSZ": 7.5, "XBINNING": 2}, 3.0333),
        ({"FOCALLEN": 510.0, "XPIXSZ": 3.75, "PIXSIZE1": 3.75, "XBINNING": 2}, 3.0333),
        ({"FOCALLEN": 510.0, "XPIXSZ": 3.75, "SECPIX": 3.0, "XBINNING": 2}, 3.0333),
        ({"FOCALLEN": 0, "XPIXSZ": 2.9, "PIXSCALE": 1.5}, 1.5),
        ({"SECPIX": 1.6, "SCALE": 2.0}, 1.6),
        ({"SECPIX1": 1.7}, 1.7),
        ({"SCALE": 1.8, "IM_SCALE": 3.0}, 1.8),
        ({"IM_SCALE": 1.9}, 1.9),
        ({**TAN, "CDELT1": -0.001, "CDELT2": 0.001}, 3.6),
        ({"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "CDELT2": 0.001}, 3.6),
        ({"PIXSCALE": -1.0}, 0.0),
        ({"PIXSCALE": math.nan}, 0.0),
        ({"PIXSCALE": 1e9}, 0.0),
        ({}, 0.0),
    ],
)
def test_scale_is_found(cards: dict[str, object], scale: float) -> None:
    """The optics come first, with binning minded, then the scale cards in SPEC's order, then the header's WCS."""
    assert said(**cards).scale_arcsec == pytest.approx(scale, abs=1e-3)


def test_camera_cards_are_read() -> None:
    """Exposure, gain, temperature, binning and names come out as numbers and clean text."""
    known = said(
        EXPOSURE="10.5", GAIN=80.0, EGAIN=0.25, CCD_DASH_TEMP=-9.9, XBINNING=2, YBINNING=2,
        INSTRUME=" ASI\x1b[31m 294 ", TELESCOP="S50\n_1", FILTER="", OBJECT="M 94", EQMODE=True, MOUNT_MODE="alt-az",
    )  # fmt: skip
    assert (known.exposure_s, known.gain, known.electrons_per_adu, known.temperature_c) == (10.5, "80", 0.25, -9.9)
    assert (known.binning, known.camera, known.telescope) == ("2x2", "ASI[31m 294", "S50 _1")
    assert (known.filter_name, known.eqmode_card, known.mount_mode_card) == ("", "1", "alt-az")
    assert said(EXPTIME=-1, GAIN="High", EGAIN=0, EQMODE=0.0).gain == "High"
    assert said(EQMODE=0.0).eqmode_card == "0"


# --- time and place


@pytest.mark.parametrize(
    ("cards", "iso"),
    [
        ({"DATE-OBS": "2025-03-27T01:20:32.955368"}, "2025-03-27T01:20:32.955368"),
        ({"DATE-OBS": "2025-03-27T01:20:32Z"}, "2025-03-27T01:20:32"),
        ({"DATE-OBS": "2025-03-27 01:20:32.1234567"}, "2025-03-27T01:20:32.123457"),
        ({"DATE-OBS": "2025-03-27T01:20"}, "2025-03-27T01:20:00"),
        ({"DATE-OBS": "2025-03-27T03:20:32+02:00"}, "2025-03-27T01:20:32"),
        ({"DATE-OBS": "2025-03-27", "TIME-OBS": "01:20:32.5"}, "2025-03-27T01:20:32.5"),
        ({"DATE-OBS": "27/03/98", "TIME-OBS": "01:20:32"}, "1998-03-27T01:20:32"),
        ({"DATE-OBS": "2025-03-27"}, "2025-03-27T00:00:00"),
        ({"DATE-OBS": "2016-12-31T23:59:60"}, "2017-01-01T00:00:00"),
        ({"DATE-OBS": "", "DATE-BEG": "2025-03-27T01:20:32"}, "2025-03-27T01:20:32"),
        ({"MJD-OBS": 60522.5}, "2024-07-31T12:00:00"),
        ({"DATE-OBS": "soon", "MJD-OBS": 60522.5}, "2024-07-31T12:00:00"),
    ],
)
def test_C3_start_of_exposure(cards: dict[str, object], iso: str) -> None:
    """Dates of every shape give the start in UTC."""
    expected = datetime.fromisoformat(iso).replace(tzinfo=UTC).timestamp()
    assert observed(cards) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "date", ["2025-13-01T00:00:00", "2025-02-30", "0000-00-00", "2025-01-01T25:00:00", "yesterday", 5]
)
def test_C3_impossible_dates_say_nothing(date: object) -> None:
    """A date that cannot be is no date."""
    assert observed({"DATE-OBS": date}) is None


@pytest.mark.parametrize(
    ("cards", "longitude"),
    [
        ({"SITELONG": -110.9}, -110.9),
        ({"SITELONG": "-110 53 05"}, -110.884722),
        ({"SITELONG": "-00 30 00"}, -0.5),
        ({"SITELONG": "110:53:05 W"}, -110.884722),
        ({"SITELONG": "E 8.5"}, 8.5),
        ({"SITELONG": 249.1}, -110.9),
        ({"LONG-OBS": "8.5"}, 8.5),
        ({"SITELONG": 0.0, "SITELAT": 0.0}, None),
        ({"SITELONG": 0.0, "SITELAT": 51.5}, 0.0),
        ({"SITELONG": "home"}, None),
        ({"SITELONG": 1e6}, None),
    ],
)
def test_C3_longitude_of_the_site(cards: dict[str, object], longitude: float | None) -> None:
    """Degrees or sexagesimal, signed or with a letter, east positive; a site at 0, 0 was never set."""
    known = facts({**FRAME, **cards}).site_longitude_deg
    assert known == (None if longitude is None else pytest.approx(longitude, abs=1e-5))


@pytest.mark.parametrize(
    ("cards", "ra_dec"),
    [
        ({"RA": 193.04, "DEC": 40.97}, (193.04, 40.97)),
        ({"RA": "193.04", "DEC": "+40.97"}, (193.04, 40.97)),
        ({"RA": "12:52:09.6", "DEC": "+40:58:12"}, (193.04, 40.97)),
        ({"OBJCTRA": "12 52 09.6", "OBJCTDEC": "-00 58 12"}, (193.04, -0.97)),
        ({"RA": "12h52m09.6s", "DEC": "40d58'12"}, (193.04, 40.97)),
        ({"RA": None, "DEC": "", "OBJCTRA": "12 52 09.6", "OBJCTDEC": "40 58 12"}, (193.04, 40.97)),
        (TAN, (10.0, 20.0)),
        ({"RA": math.nan, "DEC": 0.0}, None),
        ({"RA": 400.0, "DEC": 0.0}, None),
        ({"RA": 10.0, "DEC": 91.0}, None),
        ({"RA": 10.0}, None),
        ({"CRVAL1": 10.0, "CRVAL2": 20.0}, None),
    ],
)
def test_pointing_is_found(cards: dict[str, object], ra_dec: tuple[float, float] | None) -> None:
    """Degrees or sexagesimal (hours), RA/DEC first, OBJCTRA/OBJCTDEC next, CRVAL of a celestial header last."""
    known = facts({**FRAME, **cards})
    if ra_dec is None:
        assert known.ra_deg is None
        assert known.dec_deg is None
    else:
        assert (known.ra_deg, known.dec_deg) == (pytest.approx(ra_dec[0]), pytest.approx(ra_dec[1]))


@pytest.mark.parametrize(("ra", "dec"), [(193.04, 40.97), (0.01, -89.9), (315.5, 68.2), (80.0, 0.0)])
def test_coordinates_of_date_are_precessed(ra: float, dec: float) -> None:
    """To within an arcsecond of astropy's precession."""
    there = SkyCoord(ra * u.deg, dec * u.deg, frame=FK5(equinox="J2025.23"))
    ours = SkyCoord(*precess_to_j2000(ra, dec, 2025.23), unit="deg", frame=FK5(equinox="J2000"))
    assert there.transform_to(FK5(equinox="J2000")).separation(ours).arcsec < 1.0


def test_seestar_pointing_is_of_date() -> None:
    """Seestar writes coordinates of date: M 94 lies at 12 50 53 +41 07 14, and that is what comes out."""
    cards = {"CREATOR": "ZWO Seestar S50", "RA": 193.04166, "DEC": 40.970556, "DATE-OBS": "2025-03-27T01:20:32"}
    known = facts({**FRAME, **cards})
    assert known.ra_deg == pytest.approx(192.72, abs=0.05)
    assert known.dec_deg == pytest.approx(41.12, abs=0.03)
    assert facts({**FRAME, **cards, "EQUINOX": 2000.0}).ra_deg == known.ra_deg


# --- WCS cards


def test_three_ways_to_write_a_matrix_are_one() -> None:
    """CD, PC with CDELT, and CDELT with CROTA2 give the same solution, 0-based."""
    turn = math.radians(30.0)
    c, s = math.cos(turn), math.sin(turn)
    cd = (-0.001 * c, -0.001 * s, -0.001 * s, 0.001 * c)
    names = ("1_1", "1_2", "2_1", "2_2")
    by_cd = header_wcs({**TAN, **{f"CD{n}": v for n, v in zip(names, cd, strict=True)}})
    pc = (c, s, -s, c)
    by_pc = header_wcs(
        {**TAN, "CDELT1": -0.001, "CDELT2": 0.001, **{f"PC{n}": v for n, v in zip(names, pc, strict=True)}}
    )
    by_angle = header_wcs({**TAN, "CDELT1": -0.001, "CDELT2": 0.001, "CROTA2": 30.0})
    assert by_cd is not None
    assert by_pc is not None
    assert by_angle is not None
    assert (by_cd.x_px, by_cd.y_px, by_cd.ra_deg, by_cd.dec_deg) == (0.0, 0.0, 10.0, 20.0)
    assert by_pc.cd == pytest.approx(cd)
    assert by_angle.cd == pytest.approx(cd)


@pytest.mark.parametrize(
    "cards",
    [
        {"CTYPE1": "RA---SIN"}, {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}, {"A_ORDER": 2}, {"PV1_5": 0.1},
        {"CRVAL1": None}, {"CRPIX2": ""}, {"CRVAL2": math.nan}, {"CRVAL2": 95.0}, {"CDELT1": None}, {"CDELT1": 0.0},
        {"LONPOLE": 90.0}, {"CUNIT1": "rad"}, {"EQUINOX": 1950.0}, {"RADESYS": "FK4"},
        {"CDELT1": 1e300, "CDELT2": 1e300},
    ],
)  # fmt: skip
def test_other_solutions_are_not_taken(cards: dict[str, object]) -> None:
    """Other projections, distortions, missing or absurd cards: no solution rather than a wrong one."""
    plain = {**TAN, "CDELT1": -0.001, "CDELT2": 0.001}
    assert header_wcs(plain) is not None
    assert header_wcs({**plain, **cards}) is None


# --- texts (F19)


WEIRD = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40), st.binary(max_size=4))
KNOWN_CARDS = [
    "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "IMAGETYP", "STACKCNT", "BAYERPAT", "XBAYROFF", "YBAYROFF",
    "ROWORDER", "FOCALLEN", "XPIXSZ", "XBINNING", "PIXSCALE", "RA", "DEC", "OBJCTRA", "OBJCTDEC", "CRVAL1", "CRVAL2",
    "CRPIX1", "CRPIX2", "CTYPE1", "CTYPE2", "CD1_1", "CD1_2", "CD2_1", "CD2_2", "PC1_1", "CDELT1", "CDELT2", "CROTA2",
    "EQUINOX", "DATE-OBS", "TIME-OBS", "MJD-OBS", "EXPTIME", "GAIN", "EGAIN", "SITELONG", "SITELAT", "EQMODE",
    "MOUNT_MODE", "CREATOR", "OBJECT",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(KNOWN_CARDS), WEIRD, max_size=20))
@settings(max_examples=300)
def test_F16_weird_values_raise_only_rejected(cards: dict[str, object]) -> None:
    """Whatever the cards hold, facts() answers or raises Rejected, and every number in the answer is finite."""
    try:
        known = facts({**FRAME, **TAN, "CREATOR": "Seestar", **cards}, "x")
    except Rejected:
        return
    numbers = [known.exposure_s, known.observed_s, known.ra_deg, known.dec_deg, known.scale_arcsec, known.temperature_c]
    assert all(np.isfinite(n) for n in numbers if n is not None)


@given(st.text(max_size=300))
def test_F19_texts_hold_nothing_but_printable_characters(raw: str) -> None:
    """Control, bidirectional, surrogate and line-breaking characters never come through, nor 10 kB of anything."""
    clean = clean_text(raw)
    assert clean.isprintable()
    assert len(clean) <= 200


@given(st.text(max_size=300))
def test_F19_slugs_are_file_names(raw: str) -> None:
    """A slug is 1 to 100 of [A-Za-z0-9._+-], never a path, a dot file or an option, and slugs of slugs are slugs."""
    name = slug(raw)
    assert re.fullmatch(r"[A-Za-z0-9+][A-Za-z0-9._+-]{0,99}", name)
    assert slug(name) == name


def test_F19_slugs_of_known_names() -> None:
    """Accents are folded, everything else becomes one underscore."""
    assert slug("Nébuleuse d'Orion / M 42") == "Nebuleuse_d_Orion_M_42"
    assert slug("../../etc/passwd") == "etc_passwd"
    assert slug("\x1b\u202e") == "unnamed"


@pytest.mark.parametrize("value", ["", "12", "1 2 3 4", "12 61 00", "12:xx:00", "twelve"])
def test_sexagesimal_refuses_what_is_none(value: str) -> None:
    """Two or three numbers, minutes and seconds up to 60, and nothing else."""
    assert sexagesimal(value) is None
