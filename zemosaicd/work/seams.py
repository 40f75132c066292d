"""How well the tiles of a mosaic, or of a super tile, agree: figures for the report and the header."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from zemosaicd.core.cards import number
from zemosaicd.science.tilesolve import TileSolution
from zemosaicd.work.measuring import Tile


def seam_figures(solution: TileSolution, tiles: Sequence[Tile], supers: Container[int] = ()) -> dict[str, Any]:
    """The step across every overlap before and after, ADU and in sigmas of the pixel noise; the worst of them.

    `supers`: the tiles that are super tiles. What their headers say of the seams inside them counts too.
    """
    pairs = [
        {
            "tiles": [tiles[s.first].spec.tile, tiles[s.second].spec.tile],
            "blocks": s.blocks,
            "before_adu": s.before_adu,
            "after_adu": s.after_adu,
            "after_sigma": s.after_sigma,
            "uneven_adu": s.uneven_adu,
            "stars": s.stars,
            "gain_off_mag": s.gain_off_mag,
            "scatter_mag": s.scatter_mag,
            "shift_px": s.shift_px,
        }
        for s in solution.seams
    ]
    inside = [t.file.cards for t in tiles if t.spec.tile in supers]

    def told(key: str) -> list[float]:
        return [float(v) for cards in inside if (v := number(cards, key)) is not None]

    sigmas = [abs(v) for s in solution.seams for v in s.after_sigma if math.isfinite(v)]
    scatters = [v for s in solution.seams for v in s.scatter_mag if math.isfinite(v)]
    gains = [abs(v) for s in solution.seams for v in s.gain_off_mag if math.isfinite(v)]
    return {
        "pairs": pairs,
        "worst_sigma": max(sigmas + told("SEAMSIG"), default=None),
        "parts": solution.components,
        "gain_off_mag": _median(gains + told("PHOTOFF")),
        "scatter_mag": _median(scatters + told("PHOTSCAT")),
    }


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def seam_cards(seams: Mapping[str, Any]) -> dict[str, tuple[float | None, str]]:
    """The same as cards, undefined for what was not measured."""
    return {
        "SEAMSIG": (_short(seams.get("worst_sigma")), "largest step across an overlap, in sigmas of a pixel"),
        "PHOTOFF": (_short(seams.get("gain_off_mag")), "[mag] star fluxes in overlaps, median difference"),
        "PHOTSCAT": (_short(seams.get("scatter_mag")), "[mag] star fluxes in overlaps, scatter"),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
