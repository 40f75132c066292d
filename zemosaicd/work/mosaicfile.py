"""What mosaic.fits says of itself: its pictures with their cards, and the table FRAMES."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from zemosaicd import __version__, sphere
from zemosaicd.core.cards import number, text
from zemosaicd.core.modes import Mode
from zemosaicd.core.plan import kind_of
from zemosaicd.model import FramePlan, Grid, MosaicSpec
from zemosaicd.work.coadding import Coadd
from zemosaicd.work.fitswrite import ImageSpec
from zemosaicd.work.jobs import MakeMosaic
from zemosaicd.work.measuring import Tile
from zemosaicd.work.seams import seam_cards


def images_of(job: MakeMosaic, spec: MosaicSpec, coadd: Coadd) -> list[ImageSpec]:
    """The pictures of mosaic.fits."""
    grid, mode = coadd.grid, coadd.mode
    shape = (grid.height, grid.width)
    cube = (spec.channels, *shape) if spec.channels > 1 else shape
    cards = _cards(job, spec, coadd.frames, coadd.tiles, mode)
    if spec.channels == 3:
        cards["CTYPE3"] = ("RGB", "planes are red, green, blue")
    images = [
        ImageSpec(name="", shape=cube, wcs=grid.wcs, cards=cards),
        ImageSpec(name="WEIGHT", shape=cube, wcs=grid.wcs, cards={"BUNIT": ("ADU-2", "inverse variance")}),
    ]
    if mode.counts_frames:
        images += [
            ImageSpec(name=name, shape=shape, dtype="uint16", wcs=grid.wcs, cards={"BUNIT": "frames"})
            for name in ("COVERAGE", "REJECTED")
        ]
    return [*images, ImageSpec(name="ALPHA", shape=shape, wcs=grid.wcs)]


def _cards(
    job: MakeMosaic, spec: MosaicSpec, frames: Sequence[FramePlan], tiles: Sequence[Tile], mode: Mode
) -> dict[str, Any]:
    first, lead = frames[0].facts, _leading(frames, mode).facts
    cards: dict[str, Any] = {
        "OBJECT": lead.object_name,
        "FILTER": spec.filter_name,
        "INSTRUME": lead.camera,
        "TELESCOP": lead.telescope,
        "NTILES": (len(tiles) - len(job.supers) + sum(len(members) for _, members in job.supers), "master tiles"),
        "NSUPER": (len(job.supers), "super tiles made of some of them"),
        "CREATOR": f"zemosaicd {__version__}",
        "SESSION": job.session,
        "REVISION": job.revision,
    }
    if (unit := _unit(tiles, mode)) is not None:
        cards["BUNIT"] = unit
    if mode.counts_frames:
        cards["NCOMBINE"] = (len(frames), "distinct frames")
        cards["EXPTIME"] = (lead.exposure_s, "[s] of one frame")
        cards["EXPTOTAL"] = (sum(f.facts.exposure_s for f in frames), "[s] of all frames together")
    if first.observed_s is not None:
        cards["DATE-OBS"] = datetime.fromtimestamp(first.observed_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        cards["MJD-OBS"] = math.floor(first.observed_s) / 86400.0 + 40587.0  # without it, readers warn and add it
    return cards | certificate_cards({}, {}, [])


def _leading(frames: Sequence[FramePlan], mode: Mode) -> FramePlan:
    """The first frame of the camera that took most of them, as whose the mosaic is given (science.tilesolve)."""
    kinds = Counter(kind_of(f) for f in frames)
    most = max(sorted(kinds), key=lambda kind: kinds[kind])
    return frames[0] if mode.takes_pictures else next(f for f in frames if kind_of(f) == most)


def certificate_cards(figures: Mapping[str, Any], seams: Mapping[str, Any], tiles: Sequence[Tile]) -> dict[str, Any]:
    """The certificate (work.certificate) as cards, undefined for what was not measured."""
    noise, stars, seen = (figures.get(part) or {} for part in ("noise", "astrometry", "coverage"))
    flux = [float(v) for t in tiles if (v := number(t.file.cards, "INJFLUX")) is not None]
    offset = [float(v) for t in tiles if (v := number(t.file.cards, "INJPOS")) is not None]
    ratio = noise.get("ratio") or [None]
    values = {
        "ASTRRMS": (stars.get("rms_arcsec"), "[arcsec] rms of stars against the catalogue"),
        "ASTRMAX": (stars.get("max_arcsec"), "[arcsec] largest of these"),
        "ASTRNUM": (stars.get("stars"), "stars that these are of"),
        "INJFLUX": (
            max(flux, key=lambda v: abs(v - 1.0), default=None),
            "recovered flux of injected stars, worst tile",
        ),
        "INJPOS": (max(offset, default=None), "[pix] misplacement of injected stars, worst tile"),
        "SEENFRAC": (seen.get("seen"), "share of the picture that was seen"),
        "NOISERAT": (max(ratio, key=lambda v: abs((v or 1.0) - 1.0)), "measured noise over what WEIGHT says"),
    }
    return seam_cards(seams) | {
        key: (v if isinstance(v, int) or v is None else float(f"{v:.6g}"), what) for key, (v, what) in values.items()
    }


def _unit(tiles: Sequence[Tile], mode: Mode) -> Any:
    """What the numbers are: of tiles from elsewhere, what all of them say, else nothing."""
    if mode.counts_frames:
        return "ADU", "of one frame, at the reference's sky"
    units = {text(t.file.cards, "BUNIT") for t in tiles}
    return (units.pop() or None) if len(units) == 1 else None


def frames_table(frames: Sequence[FramePlan], tiles: Sequence[Tile]) -> dict[str, Any]:
    """One row a frame (or tile from elsewhere): where it is from, where it went, and what it was worth."""
    home = {f: t.spec.tile for t in reversed(tiles) for f in t.spec.frames}
    centres = [sphere.position(sphere.centre_of(Grid(wcs=f.wcs, width=f.facts.width, height=f.facts.height)))
               for f in frames]  # fmt: skip
    return {
        "NAME": [Path(f.path).name for f in frames],
        "FRAME": [f.frame for f in frames],
        "TILE": [home[f.frame] for f in frames],
        "OBSERVED": [f.facts.observed_s if f.facts.observed_s is not None else math.nan for f in frames],
        "EXPTIME": [f.facts.exposure_s for f in frames],
        "RA": [c[0] for c in centres],
        "DEC": [c[1] for c in centres],
        "TRANSPARENCY": [_mean(f.transparency) for f in frames],
        "SKY": [_mean(f.sky_adu) for f in frames],
        "NOISE": [_mean(f.noise_adu) for f in frames],
        "FWHM": [f.fwhm_px for f in frames],
        "STARS": [f.stars for f in frames],
        "RESIDUAL": [f.residual_px for f in frames],
        "SOLVER": [f.solver for f in frames],
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
