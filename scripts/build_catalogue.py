#!/usr/bin/env python3
"""Build zemosaicd/data/tycho2.cat from Debian's package astrometry-data-tycho2-07.

    build_catalogue.py [--index /usr/share/astrometry/index-tycho2-07*.fits] [--output zemosaicd/data/tycho2.cat]

The same index gives the same bytes. The layout is described in zemosaicd/data/README.md and read by
zemosaicd/work/catalogue.py.
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

import numpy as np
from astropy.io import fits

from zemosaicd.work.catalogue import HEADER, MAGIC, RECORD, VERSION, cells_a_band

ROOT = Path(__file__).parents[1]
BANDS = 180
STEPS = 65536


def read_index(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ra_deg, dec_deg, mag) float64 of every star of the index files.

    `kdtree_data_stars` holds three little-endian uint32 a star, unit vector = minimum + u / scale; minimum[3],
    maximum[3] and scale are the seven doubles of `kdtree_range_stars`; MAG_VT is in the same order.
    """
    vectors, magnitudes = [], []
    for path in paths:
        with fits.open(path) as hdus:
            tables = {hdu.columns.names[0]: hdu.data for hdu in hdus[1:] if hdu.columns.names}
            limits = np.frombuffer(tables["kdtree_range_stars"].tobytes(), "<f8")
            units = np.frombuffer(tables["kdtree_data_stars"].tobytes(), "<u4").reshape(-1, 3)
            vectors.append(limits[:3] + units / limits[6])
            magnitudes.append(np.asarray(tables["MAG_VT"]["MAG_VT"], np.float64))
    v, mag = np.concatenate(vectors), np.concatenate(magnitudes)
    if len(v) != len(mag) or not np.isfinite(mag).all():
        raise SystemExit("the index is damaged: star and magnitude tables do not agree")
    ra = np.degrees(np.arctan2(v[:, 1], v[:, 0])) % 360.0
    return ra, np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1]))), mag


def encode(ra_deg: np.ndarray, dec_deg: np.ndarray, mag: np.ndarray) -> bytes:
    """The catalogue file: header, first record of every cell (and the total), records by cell, bright first."""
    cells = cells_a_band(BANDS)
    first_cell = np.concatenate([[0], np.cumsum(cells)])
    band_position = (dec_deg + 90.0) * BANDS / 180.0
    band = np.clip(np.floor(band_position).astype(np.int64), 0, BANDS - 1)
    cell_position = ra_deg / 360.0 * cells[band]
    column = np.minimum(np.floor(cell_position).astype(np.int64), cells[band] - 1)
    records = np.empty(len(ra_deg), RECORD)
    records["x"] = np.clip(np.floor((cell_position - column) * STEPS), 0, STEPS - 1)
    records["y"] = np.clip(np.floor((band_position - band) * STEPS), 0, STEPS - 1)
    records["mag"] = np.clip(np.round(mag * 1000.0), 0, STEPS - 1)
    cell = first_cell[band] + column
    order = np.lexsort((records["y"], records["x"], records["mag"], cell))
    starts = np.searchsorted(cell[order], np.arange(first_cell[-1] + 1)).astype("<u4")
    header = struct.pack(HEADER, MAGIC, VERSION, BANDS, int(first_cell[-1]), len(records))
    return header + starts.tobytes() + records[order].tobytes()


def main() -> None:
    """Read the index, write the catalogue, say what was done."""
    parser = argparse.ArgumentParser(description="Build the star catalogue that ships with zemosaicd.")
    parser.add_argument("--index", type=Path, nargs="*")
    parser.add_argument("--output", type=Path, default=ROOT / "zemosaicd" / "data" / "tycho2.cat")
    options = parser.parse_args()
    index = options.index or sorted(Path("/usr/share/astrometry").glob("index-tycho2-07*.fits"))
    if not index:
        raise SystemExit("no index found: install Debian's astrometry-data-tycho2-07, or give --index")
    ra, dec, mag = read_index(index)
    data = encode(ra, dec, mag)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(data)
    print(f"{options.output}: {len(ra)} stars, {len(data) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
