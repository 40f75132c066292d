"""Mode existing (D4): a folder of master tiles, ours or anybody's, becomes a plan whose tiles are made.

Each tile's header says where it lies; the grid is the union of their footprints on one plane (core.canvas), at the
scale of the finest, turned to the rectangle of least area (Phase 4). Tiles that already lie on one lattice keep it, so
that their pixels pass unchanged. Tiles stand in the plan as frames do elsewhere: each is used, or left out with its
reason.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zemosaicd.core import headers
from zemosaicd.core.canvas import AUTO, Box, cut
from zemosaicd.core.plan import PlanSettings, Share, canonical, disk_bytes, divided, mosaic_key, spec_of
from zemosaicd.core.supertiles import with_supers
from zemosaicd.model import (
    FramePlan,
    Grid,
    LeftOut,
    MosaicSpec,
    MountMode,
    Plan,
    Reason,
    TileSpec,
    Wcs,
    ZemosaicdError,
)
from zemosaicd.work import fitsio
from zemosaicd.work.jobs import PhaseMade, PlanTiles
from zemosaicd.work.meter import Meter
from zemosaicd.work.planfiles import read_tiles, write_plan
from zemosaicd.work.skymaps import SkyMap, image_to_grid, sky_map, tangent_wcs

MODE = "existing"
OUTLINE_PX = 32
"""A tile's outline is followed in steps of this on its way to the grid."""
SAMPLE_BYTES = 1 << 16
SAMPLES = 3
SAME_SCALE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A tile and where it lies."""

    frame: FramePlan
    sky: SkyMap


def plan_tiles(job: PlanTiles) -> PhaseMade:
    """Reads the tiles' headers and writes the plan."""
    meter = Meter()
    request = read_tiles(Path(job.tiles_path))
    found: dict[str, _Found] = {}
    left_out: list[LeftOut] = []
    for path in sorted(request.paths):
        try:
            tile = _read(Path(path), request.budget)
        except ZemosaicdError as error:
            left_out.append(LeftOut(frame="", path=path, reason=error.reason))
        except OSError as error:
            reason = Reason(rule="unreadable", value=error.strerror or "", message=f"{path}: {error.strerror}")
            left_out.append(LeftOut(frame="", path=path, reason=reason))
        else:
            first = found.setdefault(tile.frame.frame, tile)
            if first is not tile:
                reason = Reason(rule="duplicate", value=first.frame.path, message="the same tile under another name")
                left_out.append(LeftOut(frame=tile.frame.frame, path=path, reason=reason))
    plan = with_supers(make_plan(list(found.values()), left_out, request.settings), request.settings.merge_overlap)
    seconds, peak = meter.seconds, meter.peak_rss_mb
    write_plan(replace(plan, figures={"seconds": seconds, "peak_rss_mb": peak}), Path(job.plan_path))
    return PhaseMade(seconds=seconds, peak_rss_mb=peak)


def make_plan(found: Sequence[_Found], left_out: Sequence[LeftOut], settings: PlanSettings) -> Plan:
    """The plan of these tiles: one mosaic a filter and colour, its lattice, and each tile's window of it."""
    by_id = {t.frame.frame: t for t in found}
    ordered = canonical(t.frame for t in found)
    tiles: list[TileSpec] = []
    mosaics: list[MosaicSpec] = []
    dropped = list(left_out)
    for name in sorted({mosaic_key(f) for f in ordered}):
        shares, far = divided(name, [[f] for f in ordered if mosaic_key(f) == name], settings, 1)
        dropped += far
        for share in shares:
            on = _on_their_own(share, settings.projection)
            made, beyond = _deal(on, by_id, len(tiles))
            dropped += beyond
            tiles += made
            mosaics += [spec_of(on, made)] if made else []
    frames = {t.reference: by_id[t.reference].frame for t in tiles}
    return Plan(
        frames=frames,
        tiles=tuple(tiles),
        mosaics=tuple(mosaics),
        left_out=tuple(dropped),
        mount_modes={MountMode.EQ: 0, MountMode.ALT_AZ: 0, MountMode.UNKNOWN: len(tiles)},
        disk_bytes=disk_bytes(tiles, mosaics),
        mode=MODE,
        made={t.tile: frames[t.reference].path for t in tiles},
    )


def _on_their_own(share: Share, projection: str) -> Share:
    """The same on the lattice that the tiles have already, if they have one and no other projection is asked for."""
    own = common_lattice([f.wcs for g in share.groups for f in g])
    if own is None or projection not in (AUTO, own.projection):
        return share
    return replace(share, base=own, why="the tiles lie on one tangent plane")


def _deal(share: Share, by_id: dict[str, _Found], first: int) -> tuple[list[TileSpec], list[LeftOut]]:
    """Each tile's window of the mosaic's lattice; numbers go on from `first`."""
    made: list[TileSpec] = []
    beyond: list[LeftOut] = []
    for frame in (f for group in share.groups for f in group):
        box = window_of(by_id[frame.frame].sky, frame.facts.width, frame.facts.height, share.base)
        if box is None:
            reason = Reason(rule="far_from_target", message="it does not lie on one plane with the others")
            beyond.append(LeftOut(frame=frame.frame, path=frame.path, reason=reason))
        else:
            made.append(_spec(first + len(made) + 1, share.name, frame, cut(share.base, box)))
    return made, beyond


def _spec(number: int, mosaic: str, frame: FramePlan, grid: Grid) -> TileSpec:
    return TileSpec(
        tile=number,
        mosaic=mosaic,
        group=f"{mosaic}-{number}",
        frames=(frame.frame,),
        reference=frame.frame,
        grid=grid,
        channels=frame.facts.channels,
        mount_mode=MountMode.UNKNOWN,
    )


# --- one tile ------------------------------------------------------------------------------------------------------


def _read(path: Path, budget: fitsio.Budget) -> _Found:
    header = fitsio.read_header(path, budget)
    facts = headers.facts(header.cards, path.name, masters=True)
    sky = sky_map(header.cards, facts.width, facts.height)
    frame = FramePlan(
        frame=_identity(path, header),
        path=str(path),
        cache="",
        facts=facts,
        wcs=tangent_wcs(sky, facts.width, facts.height),
        solver="header",
        sky_adu=(),
        noise_adu=(),
        photon_adu=(),
        transparency=(1.0,),
        fwhm_px=math.nan,
        stars=0,
        residual_px=math.nan,
        mount_mode=MountMode.UNKNOWN,
    )
    return _Found(frame=frame, sky=sky)


def _identity(path: Path, header: fitsio.RawHeader) -> str:
    """Names a tile by its header and some of its bytes, so that a twin under another name is known (F27)."""
    digest = hashlib.sha256(repr(sorted((k, repr(v)) for k, v in header.cards.items())).encode())
    size = header.fingerprint.size
    with path.open("rb") as file:
        for i in range(SAMPLES):
            digest.update(os.pread(file.fileno(), SAMPLE_BYTES, size * (i + 1) // (SAMPLES + 1)))
    digest.update(str(size).encode())
    return digest.hexdigest()[:24]


# --- the grid ------------------------------------------------------------------------------------------------------


def window_of(sky: SkyMap, width: int, height: int, base: Wcs) -> Box | None:
    """The whole-pixel box of a lattice that holds an image's outline; None if some of it is on the far side."""
    across = np.append(np.arange(-0.5, width - 0.5, OUTLINE_PX), width - 0.5)
    down = np.append(np.arange(-0.5, height - 0.5, OUTLINE_PX), height - 0.5)
    low, left = np.full_like(across, -0.5), np.full_like(down, -0.5)
    x = np.concatenate([across, across, left, left + width])
    y = np.concatenate([low, low + height, down, down])
    u, v = image_to_grid(sky, Grid(wcs=base, width=1, height=1))(x, y)
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return None
    # Half a pixel outside the outermost centres; rounding must not lose a tile that lies on the lattice.
    edges = math.ceil(u.min() - 1e-6), math.ceil(v.min() - 1e-6), math.floor(u.max() + 1e-6), math.floor(v.max() + 1e-6)
    return edges[0], edges[1], edges[2] + 1, edges[3] + 1


def common_lattice(places: Sequence[Wcs]) -> Wcs | None:
    """The lattice that all images lie on by whole pixels, as this program's own tiles do; None if they do not."""
    first = places[0]
    for wcs in places:
        same = (wcs.ra_deg, wcs.dec_deg) == (first.ra_deg, first.dec_deg)
        same = same and all(abs(a - b) <= SAME_SCALE for a, b in zip(wcs.cd, first.cd, strict=True))
        away = wcs.x_px - first.x_px, wcs.y_px - first.y_px
        if not same or any(abs(d - round(d)) > 1e-6 for d in away):
            return None
    return first
