"""The star catalogue that ships with the package: one cone of sky from the file on disk.

Knows the layout of `data/tycho2.cat` (described in `data/README.md`, written by `scripts/build_catalogue.py`) and
reads only the cells that a cone touches, by seek and read (never a memory map, F7). It knows nothing of solving.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from importlib.resources import files
from typing import IO

import numpy as np
from numpy.typing import NDArray

from zemosaicd.model import Fatal, Reason
from zemosaicd.science.stars import CatalogueStars
from zemosaicd.sphere import direction

MAGIC = b"ZMTYCHO2"
VERSION = 1
HEADER = "<8sIIII"
"""Magic, version, declination bands, cells, stars."""
RECORD = np.dtype([("x", "<u2"), ("y", "<u2"), ("mag", "<u2")])
"""A star: place in its cell in 1/65536 of the cell's sides, magnitude in thousandths."""
STEPS = 65536.0
NAME = "tycho2.cat"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """Which cell holds what: cells a band, the first cell of each band, and where the records begin in the file."""

    bands: int
    in_band: NDArray[np.int64]
    first: NDArray[np.int64]
    records_at: int


def cells_a_band(bands: int) -> NDArray[np.int64]:
    """How many RA cells each declination band is cut into, so that no cell is wider than a band is high."""
    edges = np.linspace(-90.0, 90.0, bands + 1)
    widest = np.cos(np.radians(np.where(edges[:-1] < 0.0, edges[1:], edges[:-1])))
    return np.maximum(1, np.ceil(2 * bands * widest - 1e-9)).astype(np.int64)


def read_cone(ra_deg: float, dec_deg: float, radius_deg: float, limit: int | None = None) -> CatalogueStars:
    """The catalogue's stars within `radius_deg` of a position (degrees, J2000), brightest first, at most `limit`.

    Any RA (it wraps) and both poles are right. Raises Fatal if the catalogue is absent or damaged.
    """
    try:
        with files("zemosaicd").joinpath("data", NAME).open("rb") as file:
            parts = list(_read_cells(file, ra_deg % 360.0, dec_deg, radius_deg))
    except (OSError, ValueError, struct.error) as error:
        message = f"the star catalogue {NAME} cannot be read: {error}"
        raise Fatal(Reason(rule="catalogue_unreadable", value=str(error), message=message)) from error
    ra, dec, mag = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else ([np.empty(0)] * 3)
    near = np.flatnonzero(_separation_deg(ra, dec, ra_deg, dec_deg) <= radius_deg)
    order = near[np.argsort(mag[near], kind="stable")][:limit]
    return CatalogueStars(ra_deg=ra[order], dec_deg=dec[order], mag=mag[order].astype(np.float32))


def _separation_deg(ra: NDArray[np.float64], dec: NDArray[np.float64], ra0: float, dec0: float) -> NDArray[np.float64]:
    """Angle of each star to a position, through the chord (exact for small angles)."""
    ra_rad, dec_rad = np.radians(ra), np.radians(dec)
    x, y, z = direction(ra0, dec0)
    chord2 = (np.cos(dec_rad) * np.cos(ra_rad) - x) ** 2 + (np.cos(dec_rad) * np.sin(ra_rad) - y) ** 2
    return np.degrees(2.0 * np.arcsin(np.minimum(1.0, 0.5 * np.sqrt(chord2 + (np.sin(dec_rad) - z) ** 2))))


def _layout(file: IO[bytes]) -> _Cells:
    """The header, checked."""
    magic, version, bands, cells, _ = struct.unpack(HEADER, file.read(struct.calcsize(HEADER)))
    in_band = cells_a_band(bands) if magic == MAGIC and version == VERSION else np.empty(0, np.int64)
    if int(in_band.sum()) != cells or cells == 0:
        raise ValueError("not a catalogue of this version")
    first = np.concatenate([[0], np.cumsum(in_band)])
    return _Cells(bands=bands, in_band=in_band, first=first, records_at=struct.calcsize(HEADER) + 4 * (cells + 1))


def _read_cells(
    file: IO[bytes], ra_deg: float, dec_deg: float, radius_deg: float
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """(ra, dec, mag) of every star of the cells that the cone touches, one entry a run of neighbouring cells."""
    cells = _layout(file)
    height = 180.0 / cells.bands
    lowest = max(0, math.floor((dec_deg - radius_deg + 90.0) / height))
    highest = min(cells.bands - 1, math.floor((dec_deg + radius_deg + 90.0) / height))
    half = _ra_reach_deg(dec_deg, radius_deg)
    parts = []
    for band in range(lowest, highest + 1):
        for a, b in _columns(ra_deg, half, int(cells.in_band[band])):
            parts.append(_read_run(file, cells, band, a, b))
    return parts


def _ra_reach_deg(dec_deg: float, radius_deg: float) -> float:
    """Half the RA range of a cone; 180 where it holds a pole."""
    if abs(dec_deg) + radius_deg >= 90.0:
        return 180.0
    return math.degrees(math.asin(min(1.0, math.sin(math.radians(radius_deg)) / math.cos(math.radians(dec_deg)))))


def _columns(ra_deg: float, half_deg: float, count: int) -> list[tuple[int, int]]:
    """Runs [a, b) of RA cells of a band of `count` cells within `half_deg` of `ra_deg`: one, or two over the wrap."""
    width = 360.0 / count
    a, b = math.floor((ra_deg - half_deg) / width), math.floor((ra_deg + half_deg) / width) + 1
    if b - a >= count:
        return [(0, count)]
    a, b = a % count, (b - 1) % count + 1
    return [(a, b)] if a < b else [(a, count), (0, b)]


def _read_run(
    file: IO[bytes], cells: _Cells, band: int, a: int, b: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(ra, dec, mag) of the stars of cells a to b of a band."""
    first = int(cells.first[band])
    file.seek(struct.calcsize(HEADER) + 4 * (first + a))
    starts = np.frombuffer(file.read(4 * (b - a + 1)), "<u4").astype(np.int64)
    if len(starts) != b - a + 1:
        raise ValueError("the index ends early")
    file.seek(cells.records_at + RECORD.itemsize * int(starts[0]))
    count = int(starts[-1] - starts[0])
    records = np.frombuffer(file.read(RECORD.itemsize * count), RECORD)
    if len(records) != count:
        raise ValueError("the file ends early")
    column = np.repeat(np.arange(a, b), np.diff(starts))
    ra = (column + (records["x"] + 0.5) / STEPS) * (360.0 / int(cells.in_band[band]))
    dec = (band + (records["y"] + 0.5) / STEPS) * (180.0 / cells.bands) - 90.0
    return ra, dec, records["mag"] / 1000.0
