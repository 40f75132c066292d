"""Values of the model for tests: builders of whole, plausible values, of which a test names what it is about."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zemosaicd import sphere
from zemosaicd.core.plan import PlanSettings, make_plan
from zemosaicd.model import (
    Distortion,
    Fingerprint,
    FrameFacts,
    FramePlan,
    Measures,
    MountMode,
    Plan,
    PreparedFrame,
    Solution,
    Wcs,
)
from zemosaicd.science.skylight import BlockMap

WIDTH, HEIGHT = 96, 64
SCALE_ARCSEC = 2.0


def fingerprint(version: int = 1) -> Fingerprint:
    """One state of a file; another version is another state."""
    return Fingerprint(device=1, inode=2, size=2880, mtime_ns=version)


def facts(**changes: Any) -> FrameFacts:
    """What the header of a small mono frame says."""
    base = FrameFacts(width=WIDTH, height=HEIGHT, exposure_s=10.0, gain="80", camera="IMX", observed_s=1.7e9)
    return replace(base, **changes)


def wcs_at(
    ra_deg: float,
    dec_deg: float,
    *,
    turn_deg: float = 0.0,
    scale_arcsec: float = SCALE_ARCSEC,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Wcs:
    """A frame centred there, its +y axis `turn_deg` east of north, its +x axis a quarter turn west of that."""
    s, turn = scale_arcsec / 3600.0, math.radians(turn_deg)
    c, n = s * math.cos(turn), s * math.sin(turn)
    return Wcs(ra_deg=ra_deg, dec_deg=dec_deg, x_px=(width - 1) / 2, y_px=(height - 1) / 2, cd=(-c, n, n, c))


def shifted(wcs: Wcs, dx_px: float, dy_px: float) -> Wcs:
    """The same plane with the frame moved by whole or broken pixels."""
    return replace(wcs, x_px=wcs.x_px - dx_px, y_px=wcs.y_px - dy_px)


def radial(outward_px: float, width: int = WIDTH, height: int = HEIGHT) -> Distortion:
    """A lens that moves the corners of the sensor outward by so much, as the cube of the distance from the centre."""
    k = outward_px
    return Distortion(
        width=width, height=height, x_px=(0.0, 0.0, 0.0, k, 0.0, k, 0.0), y_px=(0.0, 0.0, 0.0, 0.0, k, 0.0, k)
    )


def crooked(width: int = WIDTH, height: int = HEIGHT) -> Distortion:
    """A lens with every term, up to 2 px in the corners."""
    x_px, y_px = (0.2, -0.3, 0.1, 0.6, -0.1, 0.4, 0.2), (-0.1, 0.2, 0.3, 0.1, 0.5, -0.2, 0.5)
    return Distortion(width=width, height=height, x_px=x_px, y_px=y_px)


def frame_plan(number: int, wcs: Wcs, **changes: Any) -> FramePlan:
    """Frame `number` of a session; numbers give canonical order. `facts` may be named by their fields too."""
    names = set(FrameFacts.__dataclass_fields__) - {"wcs"}
    said = {k: changes.pop(k) for k in list(changes) if k in names}
    known = changes.pop("facts", None) or facts(**{"observed_s": 1.7e9 + 10.0 * number, **said})
    channels = known.channels
    base = FramePlan(
        frame=f"{number:024x}",
        path=f"/in/{number}.fits",
        cache=f"/state/{number}.npy",
        facts=known,
        wcs=wcs,
        solver="catalogue",
        sky_adu=(1000.0,) * channels,
        noise_adu=(10.0,) * channels,
        photon_adu=(0.5,) * channels,
        transparency=(1.0,) * channels,
        fwhm_px=3.0,
        stars=100,
        residual_px=0.05,
        mount_mode=MountMode.UNKNOWN,
    )
    return replace(base, **changes)


def field(
    rows: int, columns: int, *, ra_deg: float = 83.8, dec_deg: float = -5.4, step: float = 0.7, **changes: Any
) -> list[FramePlan]:
    """Pointings `step` frame sides apart, one frame each, on one tangent plane turned as `turn_deg` says."""
    turn = math.radians(changes.pop("turn_deg", 0.0))
    base = wcs_at(ra_deg, dec_deg)
    frames: list[FramePlan] = []
    for row in range(rows):
        for column in range(columns):
            dx, dy = step * WIDTH * (column - (columns - 1) / 2), step * HEIGHT * (row - (rows - 1) / 2)
            x = math.cos(turn) * dx - math.sin(turn) * dy
            y = math.sin(turn) * dx + math.cos(turn) * dy
            v = sphere.pixel_to_sky(base, base.x_px + x, base.y_px + y)
            place = wcs_at(*sphere.position(v), turn_deg=-math.degrees(turn))
            frames.append(frame_plan(len(frames) + 1, place, **changes))
    return frames


def plan_of(frames: Iterable[FramePlan], **settings: Any) -> Plan:
    """Their tile plan."""
    return make_plan(frames, (), PlanSettings(**settings))


def prepared(number: int, **changes: Any) -> PreparedFrame:
    """Phase 1's result for frame `number`, solved."""
    where = Solution(wcs=wcs_at(10.0, 20.0), solver="catalogue", matches=30, log_false_alarm=-50.0, rms_arcsec=0.4)
    base = PreparedFrame(
        frame=f"{number:024x}",
        path=f"/in/{number}.fits",
        cache=f"/state/{number}.npy",
        facts=facts(observed_s=1.7e9 + 10.0 * number),
        measures=Measures(sky_adu=(1000.0,), noise_adu=(10.0,), fwhm_px=3.0, ellipticity=0.1, stars=100, hot_pixels=3),
        solution=where,
        unsolved=None,
        stars=b"",
        blocks=BlockMap(
            level=np.full((1, 1, 1), 1000.0, np.float32), noise=np.full((1, 1, 1), 10.0, np.float32)
        ).to_bytes(),
        seconds=0.5,
        peak_rss_mb=100.0,
    )
    return replace(base, **changes)


def centres(width: int, height: int) -> Sequence[tuple[float, float]]:
    """Centres of a frame's corner pixels and of its middle."""
    right, top = width - 1.0, height - 1.0
    return (0.0, 0.0), (right, 0.0), (right, top), (0.0, top), (right / 2, top / 2)
