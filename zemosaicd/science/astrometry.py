"""Where on the sky a frame lies: a star list, a header's hints and a catalogue give a WCS, or a reason.

Knows star lists and a function that gives catalogue stars round a position; never files, network or other frames.
A header's own WCS is believed only if the catalogue lands on detections through it; else the pair vote searches round
the pointing. Recipe, constants and odds: `experiments-astrometry.md` sections 2, 6 and 7.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.model import FrameFacts, Grid, Reason, Solution, Wcs
from zemosaicd.science.pairs import ACCEPT_LOG, PROBABLE_LOG, Field, Vote, count_hits, log_tail, make_field, vote
from zemosaicd.science.stars import CatalogueStars, StarList
from zemosaicd.sphere import (
    ARCSEC_RAD,
    centre_of,
    direction,
    position,
    position_angle_deg,
    precess_to_j2000,
    scale_arcsec,
    separation_deg,
    tangent_basis,
)

Float64 = NDArray[np.float64]
Complex = NDArray[np.complex128]
Catalogue = Callable[[float, float, float], CatalogueStars]
"""(ra_deg, dec_deg, radius_deg) -> the catalogue's stars in that cone, brightest first."""

FEWEST_STARS = 5
SEARCH_RADII_DEG = (0.25, 0.6, 2.0)
LADDER_ARCSEC = (0.3, 15.0)
LADDER_RUNGS = 18
LADDER_TOLERANCE = 0.125
LADDER_FIRST_ARCSEC = 2.0
PAIR_STARS_A_FRAME, TEST_STARS_A_FRAME, EXTRA_STARS, MOST_STARS = 45, 78, 10, 3000
MATCH_RADII_PX = (6.0, 4.0, 2.5, 2.0)
MATCH_FLOOR_ARCSEC = 2.0
CATALOGUE_SIGMA_ARCSEC = 0.5
FEWEST_MATCHES = 5
SCALE_TOLERANCE = 0.05
SHAPE_LIMIT = 0.01
RMS_LIMIT_ARCSEC = 3.0
WIDEST_CONE_DEG = 45.0
SANE_SCALE_ARCSEC = (0.02, 300.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """What is known before solving: where the frame's centre may be, and its scale.

    `pointings`: (ra_deg, dec_deg) ICRS, likeliest first. `scale_arcsec` 0: unknown, searched from 0.3 to 15".
    `radius_deg`: the widest search round a pointing.
    """

    pointings: tuple[tuple[float, float], ...]
    scale_arcsec: float = 0.0
    scale_tolerance: float = SCALE_TOLERANCE
    radius_deg: float = SEARCH_RADII_DEG[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsolved:
    """Why a frame could not be placed; `probable`: a solution at odds between 1e-6 and 1e-3, not to be used alone."""

    reason: Reason
    probable: Solution | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rung:
    """One search: round a position, within a radius, at a scale and its tolerance."""

    ra_deg: float
    dec_deg: float
    radius_deg: float
    scale_arcsec: float
    tolerance: float


def locate(stars: StarList, facts: FrameFacts, observed_year: float | None, catalogue: Catalogue) -> Solution | Reason:
    """Place a frame: by its header's WCS if the stars agree, else by a pair vote round its pointing, else say why not.

    The pointing is tried as J2000 first (core.headers precesses what is known to be of date), then as of date, for
    makers who do not say so (`observed_year`: decimal year), then the place its WCS names. `Solution.header_wcs`: ""
    (none), "used" or "implausible: ...", which also names what was wrong with it.
    """
    verdict = ""
    if facts.wcs is not None:
        checked = check_header_wcs(facts.wcs, stars, facts.width, facts.height, catalogue)
        if isinstance(checked, Solution):
            return checked
        verdict = f"implausible: {checked.message}"
    hint = _hint(facts, observed_year)
    if not hint.pointings:
        message = "; ".join(["the header names no usable position", *([verdict] if verdict else [])])
        return Reason(rule="no_pointing", message=message)
    found = solve(stars, facts.width, facts.height, hint, catalogue)
    if isinstance(found, Unsolved) and hint.scale_arcsec > 0.0 and found.reason.rule == "no_match":
        # FOCALLEN without the reducer or with another lens: search the scale near the pointing before giving up.
        unknown = replace(hint, scale_arcsec=0.0, radius_deg=SEARCH_RADII_DEG[0])
        again = solve(stars, facts.width, facts.height, unknown, catalogue)
        found = again if isinstance(again, Solution) else found
    if isinstance(found, Unsolved):
        note = f"; header WCS {verdict}" if verdict else ""
        return replace(found.reason, message=found.reason.message + note)
    if facts.wcs is not None:
        verdict += _difference(facts.wcs, found.wcs, facts.width, facts.height)
    return replace(found, header_wcs=verdict)


def solve(stars: StarList, width: int, height: int, hint: Hint, catalogue: Catalogue) -> Solution | Unsolved:
    """Solve a star list by pair vote from a hint: any rotation, both parities, both ends of every rung.

    Accepted below 1e-6 expected false alarms over all hypotheses of all rungs, and only if the refined fit has at
    least 5 matches, a scale within the tolerance, square pixels to 1 % and a 2-D rms below 3\".
    """
    if len(stars) < FEWEST_STARS:
        message = f"{len(stars)} stars found, {FEWEST_STARS} needed"
        reason = Reason(rule="too_few_stars", value=float(len(stars)), threshold=float(FEWEST_STARS), message=message)
        return Unsolved(reason=reason)
    field = make_field(stars.x, stars.y, width, height)
    tested, most = 0, 0
    best: Unsolved | None = None
    lowest = math.inf
    for rung in _rungs(hint):
        near = _cone(rung, width, height, catalogue)
        most = max(most, len(near))
        if len(near) < FEWEST_STARS:
            continue
        found = _vote_rung(field, rung, near, tested)
        tested = found.tested
        if found.log_false_alarm < PROBABLE_LOG:
            refined = _refine(_wcs_of(found, rung, width, height), stars, width, height, near, rung)
            if isinstance(refined, Solution):
                refined = replace(refined, log_false_alarm=found.log_false_alarm)
                if found.log_false_alarm < ACCEPT_LOG:
                    return refined
            if found.log_false_alarm < lowest and (isinstance(refined, Solution) or found.log_false_alarm < ACCEPT_LOG):
                best = _unaccepted(refined, found.log_false_alarm)
        lowest = min(lowest, found.log_false_alarm)
    return best or Unsolved(reason=_no_match(lowest, tested, most))


def check_header_wcs(wcs: Wcs, stars: StarList, width: int, height: int, catalogue: Catalogue) -> Solution | Reason:
    """Whether the stars agree with a header's WCS: the refined Solution, else the Reason it is implausible.

    The catalogue projected through it must land on detections with less than 1e-6 expected false alarms.
    """
    scale = scale_arcsec(wcs) if all(map(math.isfinite, (wcs.ra_deg, wcs.dec_deg, *wcs.cd))) else 0.0
    if not SANE_SCALE_ARCSEC[0] < scale < SANE_SCALE_ARCSEC[1]:
        return Reason(rule="header_wcs", value=scale, threshold=SANE_SCALE_ARCSEC[0], message="not a scale of a sky")
    ra, dec = position(centre_of(Grid(wcs=wcs, width=width, height=height)))
    rung = _Rung(ra_deg=ra, dec_deg=dec, radius_deg=0.0, scale_arcsec=scale, tolerance=SCALE_TOLERANCE)
    near = _cone(rung, width, height, catalogue)
    field = make_field(stars.x, stars.y, width, height)
    brightest = _project(near, wcs.ra_deg, wcs.dec_deg)[: _stars_for(rung, width, height, TEST_STARS_A_FRAME)]
    hits, tried = count_hits(field, _to_pixels(wcs, brightest) - complex(0.5 * (width - 1), 0.5 * (height - 1)))
    odds = log_tail(hits, tried, field.chance)
    if not odds < ACCEPT_LOG:
        message = f"{hits} of {tried} catalogue stars lie on stars of the frame"
        return Reason(rule="header_wcs", value=round(odds, 2), threshold=round(ACCEPT_LOG, 2), message=message)
    refined = _refine(wcs, stars, width, height, near, rung)
    if isinstance(refined, Reason):
        return refined
    return replace(refined, solver="header+catalogue", log_false_alarm=odds, header_wcs="used")


def _hint(facts: FrameFacts, observed_year: float | None) -> Hint:
    """Pointings and scale from a frame's facts."""
    pointings: list[tuple[float, float]] = []
    if facts.ra_deg is not None and facts.dec_deg is not None:
        pointings.append((facts.ra_deg, facts.dec_deg))
        if observed_year is not None:
            pointings.append(precess_to_j2000(facts.ra_deg, facts.dec_deg, observed_year))
    if facts.wcs is not None and all(map(math.isfinite, (facts.wcs.ra_deg, facts.wcs.dec_deg))):
        pointings.append((facts.wcs.ra_deg % 360.0, max(-90.0, min(90.0, facts.wcs.dec_deg))))
    radius = SEARCH_RADII_DEG[-1] if facts.scale_arcsec > 0.0 else SEARCH_RADII_DEG[1]
    return Hint(pointings=tuple(pointings), scale_arcsec=facts.scale_arcsec, radius_deg=radius)


def _difference(header: Wcs, found: Wcs, width: int, height: int) -> str:
    """What was wrong with a header's WCS, for the record: mirrored, how far off, what scale."""
    (a, b, c, d), (e, f, g, h) = header.cd, found.cd
    mirrored = (a * d - b * c) * (e * h - f * g) < 0.0
    turn = (position_angle_deg(header) - position_angle_deg(found) + 180.0) % 360.0 - 180.0
    notes = ["mirrored" if mirrored else f"rotated {abs(turn):.1f} deg"]
    shape = {"width": width, "height": height}
    off = separation_deg(centre_of(Grid(wcs=header, **shape)), centre_of(Grid(wcs=found, **shape)))
    notes.append(f"{60.0 * off:.1f}' off")
    notes.append(f'scale {scale_arcsec(header):.4g}" for {scale_arcsec(found):.4g}"')
    return "; " + ", ".join(notes)


def _rungs(hint: Hint) -> Iterator[_Rung]:
    """The searches of a hint, cheapest first; a wider radius is not tried round a pointing that another covers."""
    scales = [(hint.scale_arcsec, hint.scale_tolerance)] if hint.scale_arcsec > 0.0 else _ladder()
    radii = [r for r in SEARCH_RADII_DEG if r < hint.radius_deg] + [hint.radius_deg]
    for radius in radii:
        centres: list[tuple[float, float]] = []
        for ra, dec in hint.pointings:
            # Half the radius covers a pointing's own error; the first radius is for telling of-date from J2000.
            reach = 0.5 * radius if radius > SEARCH_RADII_DEG[0] else 0.02
            if any(separation_deg(direction(ra, dec), direction(*c)) < reach for c in centres):
                continue
            centres.append((ra, dec))
            for scale, tolerance in scales:
                yield _Rung(ra_deg=ra, dec_deg=dec, radius_deg=radius, scale_arcsec=scale, tolerance=tolerance)


def _ladder() -> list[tuple[float, float]]:
    """(scale, tolerance) of the rungs that cover every scale, nearest to 2\" first."""
    low, high = math.log(LADDER_ARCSEC[0]), math.log(LADDER_ARCSEC[1])
    scales = [math.exp(low + (high - low) * (k + 0.5) / LADDER_RUNGS) for k in range(LADDER_RUNGS)]
    return [(s, LADDER_TOLERANCE) for s in sorted(scales, key=lambda s: abs(math.log(s / LADDER_FIRST_ARCSEC)))]


def _cone_deg(rung: _Rung, width: int, height: int) -> float:
    """Radius of the sky that a frame may touch in this search."""
    half = 0.5 * math.hypot(width, height) * rung.scale_arcsec * (1.0 + rung.tolerance) * ARCSEC_RAD
    return min(WIDEST_CONE_DEG, math.degrees(math.atan(half)) + rung.radius_deg)


def _cone(rung: _Rung, width: int, height: int, catalogue: Catalogue) -> CatalogueStars:
    """The catalogue's stars that the frame may hold in this search."""
    return catalogue(rung.ra_deg, rung.dec_deg, _cone_deg(rung, width, height))


def _stars_for(rung: _Rung, width: int, height: int, a_frame: int) -> int:
    """How many of the cone's brightest stars to use, from how many a frame area should have."""
    frame_deg2 = width * height * (rung.scale_arcsec / 3600.0) ** 2
    q = math.pi * _cone_deg(rung, width, height) ** 2 / frame_deg2
    return min(MOST_STARS, int(a_frame * q) + EXTRA_STARS)


def _vote_rung(field: Field, rung: _Rung, near: CatalogueStars, tested: int) -> Vote:
    """The pair vote of one search."""
    scale = rung.scale_arcsec * ARCSEC_RAD
    points = _project(near, rung.ra_deg, rung.dec_deg)[
        : _stars_for(rung, field.width, field.height, TEST_STARS_A_FRAME)
    ]
    pair_stars = _stars_for(rung, field.width, field.height, PAIR_STARS_A_FRAME)
    reach = math.tan(math.radians(rung.radius_deg)) / scale
    return vote(field, points / scale, pair_stars, rung.tolerance, reach, tested)


def _wcs_of(found: Vote, rung: _Rung, width: int, height: int) -> Wcs:
    """The WCS of a hypothesis, tangent at the search's centre."""
    g = math.degrees(rung.scale_arcsec * ARCSEC_RAD) / found.turn
    sign = -1.0 if found.mirrored else 1.0
    x, y = 0.5 * (width - 1) + found.shift.real, 0.5 * (height - 1) + found.shift.imag
    cd = (g.real, -g.imag, sign * g.imag, sign * g.real)
    return Wcs(ra_deg=rung.ra_deg, dec_deg=rung.dec_deg, x_px=x, y_px=y, cd=cd)


def _project(stars: CatalogueStars, ra_deg: float, dec_deg: float) -> Complex:
    """xi + i eta (radians) of stars in the tangent plane of a position; NaN on the far side."""
    ra, dec = np.radians(stars.ra_deg), np.radians(stars.dec_deg)
    v = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    xi, eta, depth = np.array(tangent_basis(ra_deg, dec_deg)) @ v
    depth = np.where(depth > 1e-6, depth, np.nan)
    return np.asarray(xi / depth + 1j * (eta / depth), np.complex128)


def _to_pixels(wcs: Wcs, plane: Complex) -> Complex:
    """x + iy (0-based px) of points xi + i eta (radians) in a WCS's own tangent plane."""
    c11, c12, c21, c22 = (math.radians(c) for c in wcs.cd)
    det = c11 * c22 - c12 * c21
    x = wcs.x_px + (c22 * plane.real - c12 * plane.imag) / det
    y = wcs.y_px + (c11 * plane.imag - c21 * plane.real) / det
    return np.asarray(x + 1j * y, np.complex128)


def _refine(wcs: Wcs, stars: StarList, width: int, height: int, near: CatalogueStars, rung: _Rung) -> Solution | Reason:
    """Least squares over all one-to-one matches, tangent point at the frame's centre, degree 1 only."""
    detected = np.asarray(stars.x + 1j * stars.y, np.complex128)
    sigma_px = np.sqrt(
        0.1**2 + (1.2 / np.maximum(stars.snr, 1.0)) ** 2 + (CATALOGUE_SIGMA_ARCSEC / rung.scale_arcsec) ** 2
    )
    kept, rms = np.empty(0, np.int64), math.inf
    for radius in MATCH_RADII_PX:
        expected = _to_pixels(wcs, _project(near, wcs.ra_deg, wcs.dec_deg))
        inside = np.flatnonzero(
            (np.abs(expected.real - 0.5 * width) < 0.6 * width) & (np.abs(expected.imag - 0.5 * height) < 0.6 * height)
        )
        mine, theirs = _match(detected, expected[inside], max(radius, MATCH_FLOOR_ARCSEC / rung.scale_arcsec))
        if len(mine) < FEWEST_MATCHES:
            return _poor("matches", float(len(mine)), float(FEWEST_MATCHES))
        ra, dec = position(centre_of(Grid(wcs=wcs, width=width, height=height)))
        plane = _project(near, ra, dec)[inside[theirs]]
        kept, wcs, rms = _fit(detected[mine], plane, 1.0 / sigma_px[mine] ** 2, (ra, dec), (width, height))
    return _judge(wcs, len(kept), rms, rung)


def _fit(
    detected: Complex, plane: Complex, weight: Float64, tangent: tuple[float, float], shape: tuple[int, int]
) -> tuple[NDArray[np.int64], Wcs, float]:
    """(indices kept, WCS, 2-D rms in arcsec) of a weighted linear fit px -> tangent plane with 3-sigma rounds."""
    x0, y0 = 0.5 * (shape[0] - 1), 0.5 * (shape[1] - 1)
    design = np.stack([detected.real - x0, detected.imag - y0, np.ones(len(detected))], axis=1)
    target = np.stack([plane.real, plane.imag], axis=1)
    kept = np.arange(len(detected))
    for _ in range(4):
        root = np.sqrt(weight[kept])[:, None]
        solution = np.linalg.lstsq(design[kept] * root, target[kept] * root, rcond=None)[0]
        residual = np.hypot(*(target - design @ solution).T)
        spread = math.sqrt(float(np.mean(residual[kept] ** 2)))
        # 3 sigma a side of a 2-D Gaussian; the median keeps one wrong match from setting the limit.
        limit = 3.0 * max(float(np.median(residual[kept])) / 1.1774, 1e-12) * math.sqrt(2.0)
        again = np.flatnonzero(residual <= limit)
        if len(again) < FEWEST_MATCHES or np.array_equal(again, kept):
            break
        kept = again
    cd = np.degrees(solution[:2].T)
    shift = np.linalg.solve(cd, np.degrees(solution[2]))
    wcs = Wcs(
        ra_deg=tangent[0], dec_deg=tangent[1], x_px=x0 - float(shift[0]), y_px=y0 - float(shift[1]),
        cd=(float(cd[0, 0]), float(cd[0, 1]), float(cd[1, 0]), float(cd[1, 1])),
    )  # fmt: skip
    return kept, wcs, spread / ARCSEC_RAD


def _judge(wcs: Wcs, matches: int, rms_arcsec: float, rung: _Rung) -> Solution | Reason:
    """The refined fit as a Solution, or the first limit that it breaks."""
    c11, c12, c21, c22 = wcs.cd
    column_x, column_y = math.hypot(c11, c21), math.hypot(c12, c22)
    off = abs(scale_arcsec(wcs) / rung.scale_arcsec - 1.0)
    measured = (
        ("scale", off, max(rung.tolerance, 0.0)),
        ("aspect", abs(column_x / column_y - 1.0), SHAPE_LIMIT),
        ("shear", abs(c11 * c12 + c21 * c22) / (column_x * column_y), SHAPE_LIMIT),
        ("rms", rms_arcsec, RMS_LIMIT_ARCSEC),
    )
    for name, value, limit in measured:
        if not value <= limit:
            return _poor(name, value, limit)
    return Solution(wcs=wcs, solver="catalogue", matches=matches, log_false_alarm=0.0, rms_arcsec=rms_arcsec)


def _poor(what: str, value: float, limit: float) -> Reason:
    """A fit that breaks a limit."""
    message = f"the stars agree, but the fit's {what} is {value:.4g} (limit {limit:.4g})"
    return Reason(rule=f"poor_fit_{what}", value=value, threshold=limit, message=message)


def _unaccepted(refined: Solution | Reason, log_false_alarm: float) -> Unsolved:
    """What became of a hypothesis that was good but is not accepted: a poor fit, or probable only."""
    if isinstance(refined, Reason):
        return Unsolved(reason=refined)
    message = f"probable place only: expected false alarms e^{log_false_alarm:.1f}, e^{ACCEPT_LOG:.1f} needed"
    reason = Reason(rule="probable", value=round(log_false_alarm, 2), threshold=round(ACCEPT_LOG, 2), message=message)
    return Unsolved(reason=reason, probable=refined)


def _no_match(lowest: float, tested: int, catalogue_stars: int) -> Reason:
    """Nothing fitted: the best odds there were, or a catalogue too thin to tell."""
    if catalogue_stars < FEWEST_STARS:
        message = f"{catalogue_stars} catalogue stars near the pointing, {FEWEST_STARS} needed"
        value, limit = float(catalogue_stars), float(FEWEST_STARS)
        return Reason(rule="catalogue_too_thin", value=value, threshold=limit, message=message)
    odds = min(lowest, math.log(tested + 1.0))
    message = f"no place fits: best of {tested} hypotheses e^{odds:.1f} false alarms, e^{ACCEPT_LOG:.1f} needed"
    return Reason(rule="no_match", value=round(odds, 2), threshold=round(ACCEPT_LOG, 2), message=message)


@njit(cache=True, nogil=True)
def _match(detected: Complex, expected: Complex, radius: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One-to-one matches: indices of pairs that are each other's nearest within `radius` px."""
    mine = np.full(len(expected), -1, np.int64)
    nearest = np.full(len(expected), radius * radius)
    chosen = np.full(len(detected), -1, np.int64)
    for d in range(len(detected)):
        best = radius * radius
        for e in range(len(expected)):
            dx, dy = detected[d].real - expected[e].real, detected[d].imag - expected[e].imag
            r2 = dx * dx + dy * dy
            if r2 < best:
                best, chosen[d] = r2, e
            if r2 < nearest[e]:
                nearest[e], mine[e] = r2, d
    ours = np.array([d for d in range(len(detected)) if chosen[d] >= 0 and mine[chosen[d]] == d], np.int64)
    return ours, chosen[ours]
