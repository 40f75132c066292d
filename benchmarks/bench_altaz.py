"""What the mask of alt-az tiles does to the edges of a mosaic, against truth: figures, and a pair of pictures.

    python benchmarks/bench_altaz.py [PICTURE.png]

A simulated night of two pointings whose fields turn by 60 degrees under a sky that tilts and drifts. Its sky has no
nebula, so that every colour beside the stars is an error. It is made twice, with the mask and with one that hides
nothing. `edge`: how far R-G and B-G of the outermost 8 px are off those 24 to 64 px further in, by patches of 48 px
along the edge; `weak` the same for all pixels that 5 to 40 % of the deepest coverage saw, against neighbours that more
than 50 % did. Both in sigma of one well covered pixel; of both colours the worse. `grain` is the noise of the edge in
that unit. Then the same frames as an equatorial mount's, the mask asked for and not, and a session of one equatorial
and one alt-az pointing: they may lose no tile, and no pixel that an equatorial frame saw.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from zemosaicd.science.preview import stretch
from zemosaicd.simulate import Night, simulate

F32 = NDArray[np.float32]
Flags = NDArray[np.bool_]

NIGHT = Night(
    cols=2, overlap=0.3, frames=24, width=540, height=960, scale_arcsec=4.74, dither_px=8.0, rotation_deg_min=14.0,
    gradient=0.25, sky_drift=0.4, nebula_e=0.0, mag10_e=10000.0, eqmode=0,
)  # fmt: skip
NOTHING_HIDDEN = (
    "tiles.altaz_min_coverage_abs=0",
    "tiles.altaz_min_coverage_frac=0",
    "tiles.altaz_morph_open_px=0",
    "tiles.altaz_nanize_threshold=0",
    "tiles.altaz_alpha_soft_threshold=0",
)
PATCH_PX, AROUND_PX = 48, 48
EDGE_PX, INNER_PX = 8, (24, 64)
CROP_PX, GAP_PX, GREYS, BRIGHTER = (440, 300), 6, 4, 2
AGE_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """A mosaic: `picture` (3, H, W) ADU, NaN where nothing is; `coverage` (H, W) frames; how many tiles it has,
    and where it lies."""

    picture: F32
    coverage: F32
    tiles: int
    wcs: WCS

    @property
    def shown(self) -> Flags:
        """Pixels (H, W) with data in all colours."""
        return np.asarray(np.isfinite(self.picture).all(axis=0))


def frames_of(folder: Path, *nights: Night) -> Path:
    """The frames of some nights in one folder, as one session that is old enough to be taken at once."""
    for number, night in enumerate(nights):
        part = folder / str(number)
        part.mkdir(parents=True)
        simulate(night, part)
        for path in part.iterdir():
            os.utime(path, (time.time() - AGE_S, time.time() - AGE_S))
    (folder / "session.toml").write_text("[session]\njoin = true\n")
    return folder


def processed(frames: Path, folder: Path, *settings: str) -> Made:
    """The mosaic that `zemosaicd process` makes of them."""
    command = [sys.executable, "-m", "zemosaicd", "process", str(frames), "--output", str(folder / "out")]
    for setting in (f"paths.state={folder / 'state'}", "session.mode=classic", "outputs.preview=false", *settings):
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (path,) = folder.glob("out/*/mosaic.fits")
    report = json.loads((path.parent / "report.json").read_text())
    return Made(
        picture=np.asarray(fits.getdata(path), np.float32),
        coverage=np.asarray(fits.getdata(path, "COVERAGE"), np.float32),
        tiles=int(report["num_master_tiles"]),
        wcs=WCS(fits.getheader(path)).celestial,
    )


def patches(edge: Flags, inner: Flags) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Patches that hold enough of an edge, each with its surroundings that hold enough of what lies inside."""
    for y in range(0, edge.shape[0], PATCH_PX):
        for x in range(0, edge.shape[1], PATCH_PX):
            near = np.s_[y : y + PATCH_PX, x : x + PATCH_PX]
            rows = slice(max(0, y - AROUND_PX), y + PATCH_PX + AROUND_PX)
            wide = rows, slice(max(0, x - AROUND_PX), x + PATCH_PX + AROUND_PX)
            if np.count_nonzero(edge[near]) >= 150 and np.count_nonzero(inner[wide]) >= 300:
                yield near, wide


def figures(made: Made) -> dict[str, float]:
    """The steps of colour, in sigma of a well covered pixel; stars are left out."""
    depth = cv2.distanceTransform(np.pad(made.shown, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    deepest = made.coverage.max()
    core = made.shown & (made.coverage >= 0.9 * deepest)
    low, middle, high = np.percentile(made.picture[1][core], [16, 50, 84])
    stars = np.nan_to_num(made.picture[1]) > middle + 2 * (high - low)
    sky = made.shown & (cv2.dilate(stars.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0)
    pairs = {
        "edge": (sky & (depth <= EDGE_PX), sky & (depth >= INNER_PX[0]) & (depth <= INNER_PX[1])),
        "weak": (
            sky & (made.coverage >= 0.05 * deepest) & (made.coverage <= 0.4 * deepest),
            sky & (made.coverage > 0.5 * deepest),
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in pairs}
    grain = []
    for colour in (made.picture[0] - made.picture[1], made.picture[2] - made.picture[1]):
        sigma = float(np.diff(np.percentile(colour[core & sky], [16, 84]))[0]) / 2
        grain.append(float(np.diff(np.percentile(colour[pairs["edge"][0]], [16, 84]))[0]) / 2 / sigma)
        for name, (edge, inner) in pairs.items():
            for near, wide in patches(edge, inner):
                step = np.median(colour[near][edge[near]]) - np.median(colour[wide][inner[wide]])
                found[name].append(float(abs(step)) / sigma)
    answer = {"tiles": float(made.tiles), "pixels": float(np.count_nonzero(made.shown))}
    for name, steps in found.items():
        if steps:
            answer |= {f"{name} median": float(np.median(steps)), f"{name} worst": max(steps)}
    return answer | {"grain": max(grain)}


def lost_of(part: Made, whole: Made) -> tuple[int, int]:
    """How many pixels `part` shows, less a margin of 2 px for the turned lattice, and how many `whole` has not."""
    inside = cv2.erode(np.pad(part.shown, 1).astype(np.uint8), np.ones((5, 5), np.uint8))[1:-1, 1:-1]
    y, x = np.nonzero(inside)
    x, y = (np.rint(v).astype(int) for v in whole.wcs.world_to_pixel_values(*part.wcs.pixel_to_world_values(x, y)))
    return len(x), int(np.count_nonzero(~whole.shown[y, x]))


def weakest_corner(made: Made, kept: Flags) -> tuple[int, int]:
    """Where the crop begins (row, column): about half of it was hidden, the rest lies inside."""
    width, height = CROP_PX
    hidden = (made.shown & ~kept).astype(np.float32)
    size = width, height
    share = cv2.boxFilter(hidden, -1, size) - np.abs(cv2.boxFilter(kept.astype(np.float32), -1, size) - 0.45)
    inside = share[height // 2 : -height // 2, width // 2 : -width // 2]
    row, column = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return int(row), int(column)


def picture_of(without: Made, with_mask: Made) -> NDArray[np.uint8]:
    """Left without, right with: the whole and a corner pixel by pixel, by one and the same stretch."""
    both = np.concatenate([without.picture, with_mask.picture], axis=2)
    width, height = CROP_PX
    row, column = weakest_corner(without, with_mask.shown)
    large = stretch(both, 1_000_000)[::-1]
    parts = np.split(large, 2, axis=1)
    corners = [part[row : row + height, column : column + width][::-1] for part in parts]
    small = [cv2.resize(part[::-1], (width, part.shape[0] * width // part.shape[1]), interpolation=cv2.INTER_AREA)
             for part in parts]  # fmt: skip
    columns = [
        np.concatenate([s, np.full((GAP_PX, width, 3), 255, np.uint8), c]) for s, c in zip(small, corners, strict=True)
    ]
    gap = np.full((len(columns[0]), GAP_PX, 3), 255, np.uint8)
    pair = np.concatenate([columns[0], gap, columns[1]], axis=1)
    pair = np.minimum(pair.astype(np.uint16) * BRIGHTER, 255)
    return np.asarray(pair // GREYS * GREYS, np.uint8)  # fewer greys, which makes grain pack better


def table(rows: dict[str, dict[str, float]]) -> None:
    """Prints it."""
    for name, row in rows.items():
        print(f"{name:<24}", "  ".join(f"{k} {v:.0f}" if k in ("tiles", "pixels") else f"{k} {v:.2f}"
                                       for k, v in row.items()))  # fmt: skip


def main(arguments: list[str]) -> None:
    """Makes the nights, prints, draws."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        night = frames_of(root / "night", NIGHT)
        without = processed(night, root / "without", *NOTHING_HIDDEN)
        with_mask = processed(night, root / "with")
        table({"alt-az, without a mask": figures(without), "alt-az, with": figures(with_mask)})
        eq = [
            processed(night, root / f"eq{asked}", "session.mount_mode=EQ", f"tiles.altaz_cleanup_enabled={asked}")
            for asked in ("false", "true")
        ]
        for words, made in zip(("equatorial, not asked for", "equatorial, asked for"), eq, strict=True):
            print(f"{words:<26} tiles {made.tiles}  pixels {np.count_nonzero(made.shown)}")
        step = NIGHT.width * (1 - NIGHT.overlap) * NIGHT.scale_arcsec / 3600 / np.cos(np.radians(NIGHT.dec_deg))
        still = replace(NIGHT, cols=1, rotation_deg_min=0.0, eqmode=1, ra_deg=NIGHT.ra_deg + float(step))
        turning = replace(NIGHT, cols=1, rotation_deg_min=2 * NIGHT.rotation_deg_min, start="2025-08-14T22:30:00")
        mixed = frames_of(root / "mixed", still, turning)
        alone = frames_of(root / "still", still)
        plain = processed(mixed, root / "mixed off", *NOTHING_HIDDEN)
        masked = processed(mixed, root / "mixed on")
        for words, made in (("mixed, without a mask", plain), ("mixed, with", masked)):
            print(f"{words:<26} tiles {made.tiles}  pixels {np.count_nonzero(made.shown)}")
        seen, lost = lost_of(processed(alone, root / "alone"), masked)
        print(f"{'of its equatorial frames':<26} pixels {seen}  lost {lost}")
        if arguments:
            Path(arguments[0]).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(arguments[0], picture_of(without, with_mask)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main(sys.argv[1:])
