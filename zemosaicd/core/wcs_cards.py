"""A plain solution between header cards and `model.Wcs`: any that this program writes, and TAN back.

The one place where FITS pixel numbers (first pixel = 1) meet ours (first pixel = 0). References: Greisen & Calabretta
2002 (paper I, CDi_j, PCi_j, CDELT), Calabretta & Greisen 2002 (paper II, TAN, CROTA2).
"""

from __future__ import annotations

import math
import re

from zemosaicd.core.cards import Cards, number, text
from zemosaicd.model import Wcs
from zemosaicd.sphere import TAN, ZEA

SCALE_LIMITS_DEG = (0.01 / 3600.0, 1.0)
_DISTORTION = re.compile(r"[AB]_ORDER|PV\d+_\d+|CPDIS|D2IM")


def header_wcs(cards: Cards) -> Wcs | None:
    """The header's own solution if it is a plain gnomonic one in J2000 or ICRS, else None (SIP, SIN, of date, ...)."""
    axes = [text(cards, card).upper() for card in ("CTYPE1", "CTYPE2")]
    units = {text(cards, card).lower() for card in ("CUNIT1", "CUNIT2")}
    if axes != ["RA---TAN", "DEC--TAN"] or not units <= {"", "deg", "degree", "degrees"} or not _plain(cards):
        return None
    spots = [number(cards, card) for card in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")]
    cd = _cd(cards)
    if None in spots or cd is None:
        return None
    ra, dec, x, y = (spot or 0.0 for spot in spots)
    pixel = math.sqrt(abs(cd[0] * cd[3] - cd[1] * cd[2]))
    if abs(dec) > 90.0 or abs(ra) > 360.0 or not SCALE_LIMITS_DEG[0] <= pixel <= SCALE_LIMITS_DEG[1]:
        return None
    return Wcs(ra_deg=ra % 360.0, dec_deg=dec, x_px=x - 1.0, y_px=y - 1.0, cd=cd)


def wcs_header(wcs: Wcs) -> dict[str, str | float]:
    """The cards that say `wcs`, in the order in which they are written."""
    return {
        "CTYPE1": f"RA---{wcs.projection}",
        "CTYPE2": f"DEC--{wcs.projection}",
        "CUNIT1": "deg",
        "CUNIT2": "deg",
        "CRVAL1": wcs.ra_deg,
        "CRVAL2": wcs.dec_deg,
        "CRPIX1": wcs.x_px + 1.0,
        "CRPIX2": wcs.y_px + 1.0,
        "CD1_1": wcs.cd[0],
        "CD1_2": wcs.cd[1],
        "CD2_1": wcs.cd[2],
        "CD2_2": wcs.cd[3],
        **_native_pole(wcs),
        "RADESYS": "ICRS",
        "EQUINOX": 2000.0,
    }


def _native_pole(wcs: Wcs) -> dict[str, float]:
    """Where the native pole is: for zenithal projections at the reference point (LONPOLE's default is 0 for one at the
    pole itself, paper II, 2.2), for CAR and HPX 90 degrees north of it.

    With a reference point at the north pole, paper II's native pole has the right ascension of CRVAL1 itself, not the
    opposite one.
    """
    if wcs.projection in (TAN, ZEA):
        return {"LONPOLE": 180.0}
    pole = {"LONPOLE": 0.0 if wcs.dec_deg >= 0.0 else 180.0, "LATPOLE": 90.0 - abs(wcs.dec_deg)}
    return pole | ({"CRVAL1": (wcs.ra_deg + 180.0) % 360.0} if wcs.dec_deg == 90.0 else {})


def _plain(cards: Cards) -> bool:
    """No distortion terms, the usual native pole, and J2000 (FK5 and ICRS differ by 0.03")."""
    distorted = any(_DISTORTION.match(str(name)) for name in cards)
    pole, equinox = number(cards, "LONPOLE"), number(cards, "EQUINOX")
    frame = text(cards, "RADESYS", "RADECSYS").upper()
    return (
        not distorted
        and (pole is None or pole == 180.0)
        and (equinox is None or abs(equinox - 2000.0) < 0.01)
        and frame in ("", "FK5", "ICRS")
    )


def _cd(cards: Cards) -> tuple[float, float, float, float] | None:
    """CDi_j, else CDELTi * PCi_j, else CDELTi turned by CROTA2; None when the header has none of them."""
    keys = ("1_1", "1_2", "2_1", "2_2")
    cd = [number(cards, f"CD{key}") for key in keys]
    if any(value is not None for value in cd):
        return cd[0] or 0.0, cd[1] or 0.0, cd[2] or 0.0, cd[3] or 0.0
    pc = [number(cards, f"PC{key}") for key in keys]
    has_pc = any(value is not None for value in pc)
    x_step, y_step = number(cards, "CDELT1"), number(cards, "CDELT2")
    if has_pc:
        x_step, y_step = (1.0 if step is None else step for step in (x_step, y_step))
        values = [
            identity if value is None else value for value, identity in zip(pc, (1.0, 0.0, 0.0, 1.0), strict=True)
        ]
        return x_step * values[0], x_step * values[1], y_step * values[2], y_step * values[3]
    if x_step is None or y_step is None:
        return None
    turn = math.radians(number(cards, "CROTA2", "CROTA1") or 0.0)
    return x_step * math.cos(turn), -y_step * math.sin(turn), x_step * math.sin(turn), y_step * math.cos(turn)
