"""What a FITS header says about a frame, in our own words.

Knows the many spellings that cameras and capture programs use; never the disk. Whatever the cards hold, the answer is
a clean `FrameFacts` or `Rejected`: an empty, absent, non-finite or absurd card simply does not say anything.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from zemosaicd.core.cards import Cards, clean_text, number, positive, sexagesimal, slug, text
from zemosaicd.core.wcs_cards import header_wcs
from zemosaicd.model import FrameFacts, Reason, Rejected, Wcs
from zemosaicd.sphere import precess_to_j2000, scale_arcsec

__all__ = ["clean_text", "facts", "observed", "slug"]

MIN_SIDE_PX = 16
BITPIX = (8, 16, 32, 64, -32, -64)
BAYER_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")
NO_BAYER = ("", "NONE", "MONO", "MONOCHROME", "FALSE", "NO")
CALIBRATION_WORDS = ("dark", "flat", "bias", "offset", "zero")
STACK_COUNTS = ("STACKCNT", "NCOMBINE", "NSTACKED", "NSTACK")
SMART_TELESCOPES = ("seestar", "dwarf", "vespera", "stellina", "evscope", "hestia")
"""Their raw frames are integers; what they write as floats are their own stacks."""
STACKED_NAME = re.compile(r"(dso_|img_|mosaic_)?stacked[ _-]", re.IGNORECASE)
SCALE_CARDS = ("PIXSCALE", "SECPIX", "SECPIX1", "SCALE", "IM_SCALE")
LONGITUDE_CARDS = ("SITELONG", "LONG-OBS", "OBSGEO-L", "OBSLONG")
SCALE_LIMITS_ARCSEC = (0.01, 3600.0)

_DATE = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})(?:[T ]+(\S+?))?(?:\s*(?:Z|UTC?))?", re.IGNORECASE)
_OLD_DATE = re.compile(r"(\d{2})/(\d{2})/(\d{2})")
_TIME = re.compile(r"(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:\.\d*)?))?(?:([+-])(\d{2}):?(\d{2}))?Z?", re.IGNORECASE)


def facts(cards: Cards, name: str = "", *, masters: bool = False) -> FrameFacts:
    """The facts of a light frame. `name`: its file name, if known; `masters`: stacks and floats are welcome (D4).

    Raises Rejected for what cannot be a light frame: calibration frames, stacks, wrong dimensions, unknown mosaics of
    filters. Never anything else.
    """
    width, height, planes = _shape(cards)
    _refuse_calibration(cards)
    if not masters:
        _refuse_stack(cards, name)
    observed_s = observed(cards)
    wcs = header_wcs(cards)
    ra_deg, dec_deg = _pointing(cards, observed_s) or (None, None)
    return FrameFacts(
        width=width,
        height=height,
        planes=planes,
        bayer=_bayer(cards, height) if planes == 1 and not masters else "",
        exposure_s=max(0.0, number(cards, "EXPTIME", "EXPOSURE") or 0.0),
        gain=_gain(cards),
        electrons_per_adu=positive(cards, "EGAIN"),
        filter_name=text(cards, "FILTER"),
        camera=text(cards, "INSTRUME", "CAMERA"),
        telescope=text(cards, "TELESCOP"),
        binning=f"{_binning(cards, 'X')}x{_binning(cards, 'Y')}",
        object_name=text(cards, "OBJECT"),
        observed_s=observed_s,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        scale_arcsec=_scale(cards, wcs),
        site_longitude_deg=_longitude(cards),
        temperature_c=number(cards, "CCD-TEMP", "CCDTEMP", "SET-TEMP"),
        mount_mode_card=text(cards, "MOUNT_MODE"),
        eqmode_card=_eqmode(cards),
        wcs=wcs,
    )


def _rejected(rule: str, value: float | str | None, threshold: float | str | None, message: str) -> Rejected:
    return Rejected(Reason(rule=rule, value=value, threshold=threshold, message=message))


def is_master_tile(cards: Cards, name: str) -> bool:
    """Whether a finished picture is a master tile that may be joined with others without being asked for (D4).

    It must say where it lies, and that it is a stack: by our own cards, by its name, by a count, or by floating-point
    data without an exposure time. A smart telescope's own stacks, which lie among its frames, are none (C2).
    """
    axes = [text(cards, card).upper() for card in ("CTYPE1", "CTYPE2")]
    if not (axes[0].startswith("RA--") and axes[1].startswith("DEC-")):
        return False
    base = re.split(r"[/\\]", name)[-1]
    ours = {"TILE", "GROUP", "NCOMBINE"} <= cards.keys()
    if ours or base.lower().startswith("master_tile_"):
        return True
    counted = any((number(cards, card) or 0.0) > 1 for card in STACK_COUNTS)
    return (counted or _no_exposure(cards)) and not STACKED_NAME.match(base) and not _made_by(cards, SMART_TELESCOPES)


# --- what a light frame is not ----------------------------------------------------------------------------------


def _shape(cards: Cards) -> tuple[int, int, int]:
    """(width, height, planes): planes first when there are three axes, 1 or 3 of them."""
    bitpix = number(cards, "BITPIX")
    if bitpix not in BITPIX:
        raise _rejected("header.bitpix", bitpix, "8, 16, 32, 64, -32, -64", "unknown kind of pixel")
    axes = number(cards, "NAXIS") or 0.0
    sides = [number(cards, f"NAXIS{i}") or 0.0 for i in range(1, int(axes) + 1)] if 0 <= axes <= 4 else []
    shown = "x".join(f"{side:.0f}" for side in sides)
    planes = sides[2] if len(sides) == 3 else 1.0
    if len(sides) not in (2, 3) or planes not in (1.0, 3.0):
        raise _rejected("header.dimensions", shown or f"{axes:.0f} axes", "2 axes, or 3 colour planes", "not a picture")
    if min(sides[:2]) < MIN_SIDE_PX:
        raise _rejected("header.size", shown, MIN_SIDE_PX, "too small to be a frame")
    return int(sides[0]), int(sides[1]), int(planes)


def _refuse_calibration(cards: Cards) -> None:
    for card in ("IMAGETYP", "FRAME", "OBSTYPE"):
        kind = text(cards, card)
        if any(word in kind.lower() for word in CALIBRATION_WORDS):
            raise _rejected("header.frame_type", kind, "light", f"a calibration frame ({card} = {kind})")


def _refuse_stack(cards: Cards, name: str) -> None:
    """C2: a telescope's own stacked pictures are never stacked again."""
    for card in STACK_COUNTS:
        count = number(cards, card)
        if count is not None and count > 1:
            raise _rejected("header.stacked", count, 1, f"already a stack ({card} = {count:g})")
    kind = text(cards, "IMAGETYP", "FRAME")
    if re.search(r"master|stack", kind, re.IGNORECASE):
        raise _rejected("header.stacked", kind, "light", f"already a stack ({kind})")
    base = re.split(r"[/\\]", name)[-1]
    if STACKED_NAME.match(base):
        raise _rejected("name.stacked", clean_text(base), "Stacked_*", "a stacked picture by its name")
    if (number(cards, "BITPIX") or 0) < 0 and _made_by(cards, SMART_TELESCOPES):
        raise _rejected("header.stacked", "float", "integer", "raw frames of this telescope are integers")
    if _no_exposure(cards):
        message = "a finished picture, not a raw frame: floating-point data without an exposure time"
        raise _rejected("header.finished", "float", "integer, or EXPTIME", message)


def _no_exposure(cards: Cards) -> bool:
    """Floating-point data that do not say how long they were exposed: no raw frame."""
    return (number(cards, "BITPIX") or 0) < 0 and positive(cards, "EXPTIME", "EXPOSURE") is None


def _made_by(cards: Cards, makers: tuple[str, ...]) -> bool:
    who = " ".join(text(cards, card) for card in ("CREATOR", "INSTRUME", "TELESCOP", "PRODUCER")).lower()
    return any(maker in who for maker in makers)


# --- colour, optics, camera -------------------------------------------------------------------------------------


def _bayer(cards: Cards, height: int) -> str:
    """The pattern of the array's own first two rows and columns.

    BAYERPAT names the colours as the sensor's picture is read, top row first, and XBAYROFF/YBAYROFF say where in the
    pattern the picture's top left corner lies. ROWORDER = BOTTOM-UP: the file's first row is the picture's last, so
    the array's row r is the picture's row height - 1 - r (RGGB becomes GBRG where the height is even). We keep rows
    as stored and turn the pattern instead. A FILTER of "Luminance" on a Bayer camera changes nothing.
    """
    pattern = text(cards, "BAYERPAT", "COLORTYP").upper()
    if pattern in NO_BAYER:
        return ""
    if pattern not in BAYER_PATTERNS:
        raise _rejected("header.bayer", pattern, ", ".join(BAYER_PATTERNS), "a colour pattern that we cannot read")
    x0, y0 = (int(number(cards, card) or 0.0) for card in ("XBAYROFF", "YBAYROFF"))
    bottom_up = text(cards, "ROWORDER").upper().replace("_", "-") == "BOTTOM-UP"

    def colour(column: int, row: int) -> str:
        picture_row = height - 1 - row if bottom_up else row
        return pattern[2 * ((picture_row + y0) % 2) + (column + x0) % 2]

    return colour(0, 0) + colour(1, 0) + colour(0, 1) + colour(1, 1)


def _binning(cards: Cards, axis: str) -> int:
    value = number(cards, f"{axis}BINNING", f"CCD{axis}BIN") or 1.0
    return int(value) if 1.0 <= value <= 64.0 else 1


def _scale(cards: Cards, wcs: Wcs | None) -> float:
    """Arcseconds a pixel: from the optics, else from a scale card, else from the header's WCS; 0 if unknown."""
    stated = positive(cards, *SCALE_CARDS)
    scale = _optical_scale(cards, stated) or stated or (scale_arcsec(wcs) if wcs else 0.0)
    if not scale:
        step = number(cards, "CDELT2") if text(cards, "CTYPE2").upper().startswith("DEC") else None
        scale = 3600.0 * abs(step or 0.0)
    return scale if SCALE_LIMITS_ARCSEC[0] <= scale <= SCALE_LIMITS_ARCSEC[1] else 0.0


def _optical_scale(cards: Cards, stated: float | None) -> float | None:
    """Pixel size over focal length. PIXSIZE1 is the sensor's pixel. XPIXSZ is, as nearly all write it, the pixel
    after binning; it is the sensor's where it equals PIXSIZE1 or where a scale card says so."""
    focal_mm = positive(cards, "FOCALLEN")
    binned_um, sensor_um = positive(cards, "XPIXSZ"), positive(cards, "PIXSIZE1", "PIXSIZE")
    binning = _binning(cards, "X")
    if focal_mm is None or (binned_um is None and sensor_um is None):
        return None
    to_arcsec = 206.264806247 / focal_mm
    if binned_um is None:
        return (sensor_um or 0.0) * binning * to_arcsec
    scale = binned_um * to_arcsec
    if binning > 1 and stated is not None:
        return min(scale, scale * binning, key=lambda s: abs(math.log(s / stated)))
    return scale * binning if binned_um == sensor_um else scale


def _gain(cards: Cards) -> str:
    value = number(cards, "GAIN", "ISOSPEED")
    return text(cards, "GAIN") if value is None else f"{value:g}"


def _eqmode(cards: Cards) -> str:
    """EQMODE as text; Seestar writes a number, others a logical."""
    value = cards.get("EQMODE")
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        return clean_text(value)
    plain = number(cards, "EQMODE")
    return "" if plain is None else f"{plain:g}"


# --- time and place ---------------------------------------------------------------------------------------------


def observed(cards: Cards) -> float | None:
    """Start of the exposure, Unix seconds UTC: DATE-OBS (with TIME-OBS where it has no time), DATE-BEG, MJD-OBS."""
    for card in ("DATE-OBS", "DATE-BEG"):
        seconds = _moment(text(cards, card), text(cards, "TIME-OBS", "UT", "TIME-BEG"))
        if seconds is not None:
            return seconds
    mjd = number(cards, "MJD-OBS", "MJD-BEG")
    return (mjd - 40587.0) * 86400.0 if mjd is not None and 0.0 < mjd < 200000.0 else None


def _moment(date: str, time: str) -> float | None:
    found = _DATE.fullmatch(date)
    old = _OLD_DATE.fullmatch(date)
    if found:
        year, month, day, clock = int(found[1]), int(found[2]), int(found[3]), found[4] or time
    elif old:
        year, month, day, clock = 1900 + int(old[3]), int(old[2]), int(old[1]), time
    else:
        return None
    try:
        midnight = datetime(year, month, day, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None
    parts = _TIME.fullmatch(clock.strip()) if clock else None
    if parts is None:
        return None if clock else midnight
    hours, minutes, seconds = int(parts[1]), int(parts[2]), float(parts[3] or 0.0)
    if hours > 24 or minutes > 59 or seconds > 61.0:
        return None
    zone_s = (int(parts[5]) * 60 + int(parts[6])) * 60 if parts[4] else 0
    return midnight + hours * 3600 + minutes * 60 + seconds - (zone_s if parts[4] == "+" else -zone_s)


def _longitude(cards: Cards) -> float | None:
    """East positive, in (-180, 180]. Latitude and longitude both exactly 0 mean that the site was never set."""
    if number(cards, "SITELONG") == 0.0 and number(cards, "SITELAT") == 0.0:
        return None
    for card in LONGITUDE_CARDS:
        raw = text(cards, card).upper()
        side = -1.0 if "W" in raw else 1.0
        bare = re.sub(r"[EW]", "", raw).strip()
        value = sexagesimal(bare) if bare else None
        value = number({card: bare} if bare else cards, card) if value is None else value
        if value is not None and abs(value) <= 360.0:
            return 180.0 - (180.0 - side * value) % 360.0
    return None


def _pointing(cards: Cards, observed_s: float | None) -> tuple[float, float] | None:
    """(ra, dec) J2000 in degrees: RA/DEC, else OBJCTRA/OBJCTDEC, else CRVAL; coordinates of date are precessed."""
    equinox = number(cards, "EQUINOX") or 2000.0
    spoken = _equatorial(cards, "RA", "DEC")
    if spoken is not None and _made_by(cards, ("seestar",)) and observed_s is not None:
        # Seestar writes RA/DEC of date without saying so: 15' off when read as J2000. An EQUINOX there is the WCS's.
        equinox = 1970.0 + observed_s / 86400.0 / 365.25
    spoken = spoken or _equatorial(cards, "OBJCTRA", "OBJCTDEC")
    if spoken is None and text(cards, "CTYPE1").upper().startswith("RA"):
        spoken = _in_range(number(cards, "CRVAL1"), number(cards, "CRVAL2"))
    if spoken is None or not 1900.0 < equinox < 2100.0 or abs(equinox - 2000.0) < 0.01:
        return spoken
    return precess_to_j2000(*spoken, equinox)


def _equatorial(cards: Cards, ra_card: str, dec_card: str) -> tuple[float, float] | None:
    """Right ascension counts hours when it is sexagesimal, and degrees when it is a plain number."""
    ra, dec = (sexagesimal(text(cards, card)) for card in (ra_card, dec_card))
    ra_deg = number(cards, ra_card) if ra is None else 15.0 * ra
    if ra is None and ra_deg is not None and ra_card == "OBJCTRA" and ra_deg < 24.0:
        ra_deg *= 15.0
    return _in_range(ra_deg, number(cards, dec_card) if dec is None else dec)


def _in_range(ra_deg: float | None, dec_deg: float | None) -> tuple[float, float] | None:
    if ra_deg is None or dec_deg is None or not -180.0 <= ra_deg <= 360.0 or not -90.0 <= dec_deg <= 90.0:
        return None
    return ra_deg % 360.0, dec_deg
