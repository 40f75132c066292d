"""Master tiles on disk, ours or anybody's, read by rows as often as bands need them.

A tile's headers are read once, within the budget; its file is open only while a band needs it, so hundreds of tiles
cost no descriptors. What cannot be read by rows (gzip, tile-compressed) is unpacked once into a file without a name,
which is gone when this process is. A stranger's tile brings a picture and a WCS and nothing else: blank pixels are NaN,
BLANK, or, in floating-point pictures that have many, exact zeros.
"""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from zemosaicd.core.cards import Cards, number, text
from zemosaicd.model import Incomplete, Reason, Rejected
from zemosaicd.work.fitsblocks import Budget, Chain, Hdu, Source, fingerprint, incomplete, rejected
from zemosaicd.work.fitsio import read_frame, scaled
from zemosaicd.work.store import pread_into

F32 = NDArray[np.float32]

PICTURE, WEIGHT, COVERAGE, REJECTED, ALPHA = "", "WEIGHT", "COVERAGE", "REJECTED", "ALPHA"
UNMASKED = "UNMASKED"
"""The picture without its alt-az mask: to measure by, never to be shown."""
INVERSE_VARIANCE = "ADU-2"
"""BUNIT of a WEIGHT that is one: other weights say nothing about noise."""
ZEROS = 1e-3
"""Share of exact zeros in a floating-point picture from which they mean that nothing is there."""
STORED = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
CHUNK_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Where a picture lies in a file: `shape` (C, H, W), first byte, kind of number, and the cards that scale it."""

    shape: tuple[int, int, int]
    offset: int
    stored: np.dtype[np.generic]
    cards: Cards

    @property
    def plain(self) -> bool:
        """The numbers are the pixels: float32, or integers without a scale."""
        return (
            self.stored.str == ">f4"
            and (number(self.cards, "BSCALE") or 1.0) == 1.0
            and not number(self.cards, "BZERO")
        )


class TileFile:
    """A tile: `cards` of its picture, `shape` (C, H, W), and its rows. Raises Rejected or Incomplete for a bad file.

    `scratch`: a folder for what has to be unpacked.
    """

    def __init__(self, path: Path, budget: Budget, scratch: Path) -> None:
        self.path = path
        self.zero_is_empty = False
        self._budget = budget
        self._descriptor = -1
        self._unpacked: BinaryIO | None = None
        self._alpha: BinaryIO | None = None
        self._scratch = scratch
        with Source(path, budget) as source:
            self._fingerprint = source.fingerprint
            self.cards, self._planes, packed = _planes(source)
        self._floating = self._planes[PICTURE].stored.kind == "f"
        if packed:
            self._unpack()
        self.shape = self._planes[PICTURE].shape

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def height(self) -> int:
        """Rows."""
        return self.shape[1]

    @property
    def width(self) -> int:
        """Columns."""
        return self.shape[2]

    @property
    def floating(self) -> bool:
        """The picture's numbers are floating-point ones."""
        return self._floating

    def has(self, name: str) -> bool:
        """Whether the tile brings this companion, of the picture's size."""
        return name in self._planes or (name == ALPHA and self._alpha is not None)

    def rows(self, first: int, last: int, name: str = PICTURE) -> F32:
        """Rows first (inclusive) to last (exclusive), float32 (C, h, W), NaN without data."""
        if name == ALPHA and self._alpha is not None:
            return self._read(self._alpha.fileno(), _stored_alpha(self.shape), first, last)
        pixels = self._read(self._open(), self._planes[name], first, last)
        if self.zero_is_empty and name == PICTURE:
            pixels[pixels == 0.0] = np.nan
        return pixels

    def again(self) -> TileFile:
        """The same tile for another reader, which may release it and must not close it."""
        other = copy.copy(self)
        other._descriptor = -1
        return other

    def release(self) -> None:
        """Closes the file until it is asked for again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        """Closes everything."""
        self.release()
        for file in (self._unpacked, self._alpha):
            if file is not None:
                file.close()

    def keep_alpha(self, first: int, alpha: F32) -> None:
        """Puts rows of a feather (h, W) aside, to be read back as the tile's ALPHA."""
        if self._alpha is None:
            self._alpha = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - closed by `close`
        _pwrite(self._alpha.fileno(), np.ascontiguousarray(alpha, ">f4"), first * self.width * 4)

    def _open(self) -> int:
        if self._unpacked is not None:
            return self._unpacked.fileno()
        if self._descriptor < 0:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if fingerprint(descriptor) != self._fingerprint:
                os.close(descriptor)
                raise incomplete("file.changed", str(self.path), None, f"{self.path.name} changed while it was used")
            self._descriptor = descriptor
        return self._descriptor

    def _read(self, descriptor: int, plane: Plane, first: int, last: int) -> F32:
        channels, height, width = plane.shape
        if not 0 <= first <= last <= height:
            raise IndexError(f"rows {first} to {last} of {height}")
        raw = np.empty((channels, last - first, width), plane.stored)
        for k in range(channels):
            pread_into(descriptor, raw[k], plane.offset + (k * height + first) * width * plane.stored.itemsize)
        if plane.plain:
            return raw.astype(np.float32)
        return scaled(raw.reshape(-1), plane.cards).reshape(raw.shape)

    def _unpack(self) -> None:
        """Unpacks the picture into a file without a name."""
        frame = read_frame(self.path, self._budget)
        pixels = frame.pixels if frame.pixels.ndim == 3 else frame.pixels[np.newaxis]
        self._unpacked = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - closed by `close`
        plane_bytes = pixels[0].size * 4
        for k, part in enumerate(pixels):
            for first in range(0, len(part), CHUNK_ROWS):
                rows = np.ascontiguousarray(part[first : first + CHUNK_ROWS], ">f4")
                _pwrite(self._unpacked.fileno(), rows, k * plane_bytes + first * part.shape[1] * 4)
        self._planes = {PICTURE: Plane(shape=pixels.shape, offset=0, stored=np.dtype(">f4"), cards={})}


def tile_cards(path: Path, budget: Budget) -> tuple[Cards, tuple[int, int, int]]:
    """The cards of a tile's picture, and its shape (C, H, W). Raises Rejected or Incomplete."""
    with Source(path, budget) as source:
        cards, planes, _ = _planes(source)
    return cards, planes[PICTURE].shape


def _planes(source: Source) -> tuple[Cards, dict[str, Plane], bool]:
    """The picture's cards, where the pictures lie that the tile brings, and whether they have to be unpacked first."""
    chain = Chain(source)
    cards: Cards = {}
    planes: dict[str, Plane] = {}
    packed = source.packed
    while (hdu := chain.next()) is not None:
        if not hdu.is_picture:
            cards = hdu.cards if hdu.index == 0 else cards
            continue
        if not planes:
            cards = {**cards, **hdu.cards}
            packed = packed or hdu.compressed
            planes[PICTURE] = _plane(hdu)
            if packed:
                break  # companions of packed tiles would have to be unpacked too, and nobody writes them
        else:
            _add_companion(planes, hdu)
        end = hdu.data_offset + hdu.data_bytes
        if source.size < end:
            raise incomplete("fits.short", source.size, end, f"{source.path.name}: not whole")
    if not planes:
        raise rejected("fits.no_picture", None, None, "there is no picture in this file")
    return cards, planes, packed


def _plane(hdu: Hdu) -> Plane:
    shape = hdu.shape if len(hdu.shape) == 3 else (1, *hdu.shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        shown = "x".join(map(str, reversed(hdu.shape)))
        raise rejected("header.dimensions", shown, "2 axes, or 3 colour planes", "not a picture")
    bits = hdu.cards.get("ZBITPIX" if hdu.compressed else "BITPIX")
    return Plane(
        shape=(shape[0], shape[1], shape[2]),
        offset=hdu.data_offset,
        stored=np.dtype(STORED[int(str(bits))]),
        cards=hdu.cards,
    )


def _add_companion(planes: dict[str, Plane], hdu: Hdu) -> None:
    """Takes note of WEIGHT, COVERAGE, REJECTED, ALPHA or UNMASKED as this program writes them."""
    name = text(hdu.cards, "EXTNAME")
    if name not in (WEIGHT, COVERAGE, REJECTED, ALPHA, UNMASKED) or hdu.compressed:
        return
    plane = _plane(hdu)
    channels, height, width = planes[PICTURE].shape
    if plane.shape != (channels if name in (WEIGHT, UNMASKED) else 1, height, width):
        return
    if name != WEIGHT or text(hdu.cards, "BUNIT") == INVERSE_VARIANCE:
        planes[name] = plane


def _stored_alpha(shape: tuple[int, int, int]) -> Plane:
    return Plane(shape=(1, shape[1], shape[2]), offset=0, stored=np.dtype(">f4"), cards={})


def _pwrite(descriptor: int, rows: NDArray[np.generic], offset: int) -> None:
    view = memoryview(rows.reshape(-1).view(np.uint8).data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


class SlidingRows:
    """The rows of a tile that the bands of a mosaic need one after the other: what two bands share is read once."""

    def __init__(self, tile: TileFile, name: str = PICTURE) -> None:
        self._tile, self._name = tile, name
        self._first = 0
        self._rows: F32 = np.empty((0, 0, 0), np.float32)

    def get(self, first: int, last: int) -> F32:
        """Rows first to last, float32 (C, h, W)."""
        old_first, old_last = self._first, self._first + self._rows.shape[1]
        low, high = max(first, old_first), min(last, old_last)
        if low >= high:
            self._rows = self._tile.rows(first, last, self._name)
        elif (low, high) != (first, last) or (first, last) != (old_first, old_last):
            parts = [self._rows[:, low - old_first : high - old_first]]
            if first < low:
                parts.insert(0, self._tile.rows(first, low, self._name))
            if high < last:
                parts.append(self._tile.rows(high, last, self._name))
            self._rows = np.ascontiguousarray(np.concatenate(parts, axis=1))
        self._first = first
        return self._rows


def refuse_blank(path: Path) -> Rejected:
    """What to say of a tile without a pixel."""
    return Rejected(Reason(rule="tile.blank", value=0, threshold=1, message=f"{path.name}: not a pixel has data"))


__all__ = [
    "ALPHA",
    "COVERAGE",
    "PICTURE",
    "REJECTED",
    "UNMASKED",
    "WEIGHT",
    "Incomplete",
    "SlidingRows",
    "TileFile",
    "tile_cards",
]
