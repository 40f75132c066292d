"""Master tiles as anybody may have made them: one true sky, each with its own WCS, gain, level and slope."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from zemosaicd.core.plan import PlanSettings
from zemosaicd.model import Plan
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.fitsblocks import Budget
from zemosaicd.work.jobs import MakeMosaic, MosaicSettings, PhaseMade, PlanTiles
from zemosaicd.work.planfiles import TilesRequest, read_plan, write_request

F32 = NDArray[np.float32]

RA, DEC, SCALE_ARCSEC = 190.0, 25.4, 5.0
W, H = 240, 200
SKY, NOISE, FWHM_PX = 1000.0, 2.0, 3.0
STEP_DEG = 0.22
"""From one tile's middle to the next: neighbours share a third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """One tile: where it looks, and what its maker did to it. Slopes in ADU from edge to edge."""

    ra_deg: float = RA
    dec_deg: float = DEC
    turn_deg: float = 0.0
    kind: str = "TAN"
    gain: float = 1.0
    offset: float = 0.0
    slope: tuple[float, float] = (0.0, 0.0)
    cards: dict[str, object] = field(default_factory=dict)


def stars(count: int = 260, seed: int = 3, radius_deg: float = 0.6) -> NDArray[np.float64]:
    """(n, 3): RA, Dec and flux of the sky's stars: those of the catalogue, and `count` that it does not know."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-radius_deg, radius_deg, (2, count))
    known = read_cone(RA, DEC, 1.5 * radius_deg)
    bright = np.stack([known.ra_deg, known.dec_deg, np.full(len(known.ra_deg), 6000.0)], axis=1)
    faint = np.stack([RA + x / math.cos(math.radians(DEC)), DEC + y, 1500 * (1 + rng.pareto(1.2, count))], axis=1)
    return np.concatenate([bright, faint])


SKY_STARS = stars()


def header_of(tile: Stranger) -> fits.Header:
    """The WCS that the tile says it has."""
    s, a = SCALE_ARCSEC / 3600, math.radians(tile.turn_deg)
    cards: dict[str, object] = {
        "CTYPE1": f"RA---{tile.kind}", "CTYPE2": f"DEC--{tile.kind}", "CRVAL1": tile.ra_deg, "CRVAL2": tile.dec_deg,
        "CRPIX1": (W + 1) / 2, "CRPIX2": (H + 1) / 2, "CD1_1": -s * math.cos(a), "CD1_2": s * math.sin(a),
        "CD2_1": s * math.sin(a), "CD2_2": s * math.cos(a), "RADESYS": "ICRS",
    }  # fmt: skip
    return fits.Header(cards | tile.cards)


def pixels_of(tile: Stranger, seed: int, sky: NDArray[np.float64] = SKY_STARS) -> F32:
    """(H, W) float32: the true sky as this tile has it."""
    wcs = WCS(header_of(tile), naxis=2)
    y, x = np.mgrid[0:H, 0:W].astype(np.float64)
    light = np.zeros((H, W))
    sigma = FWHM_PX / 2.3548
    at_x, at_y = wcs.all_world2pix(sky[:, 0], sky[:, 1], 0)
    for u, v, flux in zip(at_x, at_y, sky[:, 2], strict=True):
        if -20 < u < W + 20 and -20 < v < H + 20:
            x0, y0 = max(0, int(u) - 12), max(0, int(v) - 12)
            cut = np.s_[y0 : int(v) + 13, x0 : int(u) + 13]
            r2 = (x[cut] - u) ** 2 + (y[cut] - v) ** 2
            light[cut] += flux * np.exp(-0.5 * r2 / sigma**2) / (2 * math.pi * sigma**2)
    plane = tile.offset + tile.slope[0] * (x / W - 0.5) + tile.slope[1] * (y / H - 0.5)
    noise = np.random.default_rng(seed).normal(0.0, NOISE, (H, W))
    return (tile.gain * (SKY + light) + plane + noise).astype(np.float32)


def write(folder: Path, tiles: Sequence[Stranger], *, packed: bool = False) -> list[Path]:
    """The tiles as FITS files, `packed` with gzip under a plain name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, tile in enumerate(tiles):
        paths.append(folder / f"tile_{i + 1}.fits")
        fits.writeto(paths[-1], pixels_of(tile, i), header_of(tile), overwrite=True)
        if packed:
            paths[-1].write_bytes(gzip.compress(paths[-1].read_bytes()))
    return paths


def square(kind: str = "TAN", **changes: object) -> list[Stranger]:
    """Two by two tiles, each with a gain, a level, a slope and a turn of its own."""
    step = STEP_DEG / 2
    places = [(sx * step / math.cos(math.radians(DEC)), sy * step) for sy in (-1, 1) for sx in (-1, 1)]
    made = zip(places, (1.05, 0.96, 1.02, 0.98), (0.0, 30.0, -20.0, 10.0), (0.4, -0.7, 1.5, 0.0), strict=True)
    return [
        Stranger(
            ra_deg=RA + dx, dec_deg=DEC + dy, kind=kind, gain=gain, offset=offset, turn_deg=turn,
            slope=(12.0 * gain, -8.0), **changes,  # type: ignore[arg-type]
        )
        for (dx, dy), gain, offset, turn in made
    ]  # fmt: skip


def plan(folder: Path, paths: Sequence[Path], **settings: object) -> Plan:
    """Phase 4: the plan of these tiles."""
    folder.mkdir(parents=True, exist_ok=True)
    request = TilesRequest(
        paths=tuple(str(p) for p in paths),
        settings=PlanSettings(**settings),
        budget=Budget(),  # type: ignore[arg-type]
    )
    write_request(request, folder / "tiles.json")
    PlanTiles(tiles_path=str(folder / "tiles.json"), plan_path=str(folder / "plan.json")).run()
    return read_plan(folder / "plan.json")


def mosaic(folder: Path, made: Plan, **settings: object) -> tuple[Path, PhaseMade]:
    """Phases 5 and 6 of the plan's first mosaic."""
    spec = made.mosaics[0]
    job = MakeMosaic(
        plan_path=str(folder / "plan.json"),
        name=spec.name,
        tiles=tuple((t, made.made[t]) for t in spec.tiles),
        without=(),
        mosaic=str(folder / "mosaic.fits"),
        preview=str(folder / "preview.png"),
        session="tiles",
        revision=1,
        settings=MosaicSettings(**settings),  # type: ignore[arg-type]
    )
    return folder / "mosaic.fits", job.run()
