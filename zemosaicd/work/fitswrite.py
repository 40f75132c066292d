"""Our own FITS files: written by bands of rows into preallocated planes, read back by rows.

Memory is one band, whatever the picture's size. Pixels lie in the file as (H, W) or (C, H, W), big-endian; bands have
the same order of axes, (h, W) or (C, h, W), native. FITS 4.0 sections 4.2 (cards) and 7.3 (binary tables).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zemosaicd.core.cards import clean_text, number
from zemosaicd.core.wcs_cards import wcs_header
from zemosaicd.model import Wcs
from zemosaicd.work.fitsblocks import CARD, Budget, Cards, Chain, Hdu, Source, incomplete, padded
from zemosaicd.work.store import pread_into, publish, start_writeback

__all__ = ["FitsImage", "FitsWriter", "ImageSpec", "read_image", "write_fits"]

CardValue = bool | int | float | str | None
STORED = {"float32": (">f4", -32, 0), "uint8": ("u1", 8, 0), "int16": (">i2", 16, 0), "uint16": (">i2", 16, 32768),
          "int32": (">i4", 32, 0)}  # fmt: skip
"""numpy type -> (stored type, BITPIX, BZERO)."""
COLUMNS = {"b": "L", "i": "K", "u": "K", "f": "D"}
WHOLE_ROW_PX = 4096
"""Rows no longer than this are read whole for a window: copying what is not wanted costs less than many questions."""
OWN_BUDGET = Budget(max_pixels=10**12, max_bytes=10**14)
MAX_TABLE_TEXT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """One picture to be written. `name`: its EXTNAME, "" for the primary; `shape`: (H, W) or (C, H, W); `dtype`:
    float32, uint8, int16, uint16 or int32; `cards`: keyword -> value or (value, comment)."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    wcs: Wcs | None = None
    cards: Mapping[str, CardValue | tuple[CardValue, str]] = field(default_factory=dict)


class FitsWriter:
    """The pictures of one file while it is written; made by `write_fits`."""

    def __init__(self, file: BinaryIO, images: Sequence[ImageSpec]) -> None:
        self._file = file
        self._images = {image.name: image for image in images}
        self._offsets: dict[str, int] = {}
        self._counting = threading.Lock()
        self._missing = {image.name: image.shape[-2] * _planes(image) for image in images}
        self.end = 0
        for image in images:
            header = _image_header(image, primary=not self._offsets)
            _pwrite(file, header, self.end)
            self._offsets[image.name] = self.end + len(header)
            self.end += len(header) + padded(_image_bytes(image))

    def write(self, name: str, first_row: int, band: NDArray[Any]) -> None:
        """Put rows first_row ... of a picture: (h, W) or (C, h, W), from any thread. Each row exactly once."""
        image = self._images[name]
        stored, _, zero = STORED[image.dtype]
        planes = band[np.newaxis] if band.ndim == 2 else band
        rows, width = planes.shape[1:]
        height = image.shape[-2]
        if len(planes) != _planes(image) or width != image.shape[-1] or not 0 <= first_row <= height - rows:
            raise ValueError(f"{name or 'primary'}: rows {first_row} + {band.shape} do not fit {image.shape}")
        # float32 keeps its NaN; uint16 is stored as int16 with BZERO 32768, as everyone does.
        values = planes if not zero else planes.astype(np.int32) - zero
        row_bytes = width * np.dtype(stored).itemsize
        for plane, pixels in enumerate(values):
            place = self._offsets[name] + (plane * height + first_row) * row_bytes
            _pwrite(self._file, np.ascontiguousarray(pixels, dtype=stored).data.cast("B"), place)
            start_writeback(self._file.fileno(), place, rows * row_bytes)
        with self._counting:
            self._missing[name] -= rows * len(planes)

    def window(self, name: str, box: tuple[int, int, int, int]) -> NDArray[Any]:
        """What was written of a picture: left, top, right, bottom (excluded), (h, w) or (C, h, w), native."""
        image = self._images[name]
        left, top, right, bottom = box
        height, width = image.shape[-2:]
        if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
            raise IndexError(f"{name or 'primary'}: {box} of {image.shape}")
        stored, _, zero = STORED[image.dtype]
        out = np.empty((_planes(image), bottom - top, right - left), np.dtype(stored).newbyteorder("="))
        whole = width <= WHOLE_ROW_PX
        first, last, step = (0, width, max(1, bottom - top)) if whole else (left, right, 1)
        read = np.empty((step, last - first), stored)
        for plane, row in np.ndindex(len(out), (bottom - top) // step):
            place = self._offsets[name] + ((plane * height + top + row * step) * width + first) * read.itemsize
            pread_into(self._file.fileno(), read, place)
            out[plane, row * step : (row + 1) * step] = read[:, left - first : right - first]
        native = out.reshape(*image.shape[:-2], *out.shape[1:])
        return (native.astype(np.int32) + zero).astype(image.dtype) if zero else native

    def describe(self, name: str, cards: Mapping[str, CardValue | tuple[CardValue, str]]) -> None:
        """Give cards that a picture began with new values: what is known only when all is written."""
        image = self._images[name]
        if unknown := cards.keys() - image.cards.keys():
            raise ValueError(f"{name or 'primary'}: no place was kept for {sorted(unknown)}")
        primary = name == next(iter(self._images))
        header = _image_header(replace(image, cards={**image.cards, **cards}), primary=primary)
        _pwrite(self._file, header, self._offsets[name] - len(header))

    def fill(self, name: str, where: NDArray[np.bool_], value: float) -> None:
        """Put a value in place of pixels of a float32 picture that are written already, in all planes; where (H, W)."""
        image = self._images[name]
        if image.dtype != "float32" or where.shape != image.shape[-2:]:
            raise ValueError(f"{name or 'primary'}: {image.dtype} {image.shape} cannot be filled by {where.shape}")
        height, width = where.shape
        stored = np.dtype(STORED[image.dtype][0])
        line = np.full(width, value, stored).tobytes()
        edges = np.diff(where.astype(np.int8), axis=1, prepend=0, append=0)
        for (row, first), (_, end) in zip(
            np.argwhere(edges > 0).tolist(), np.argwhere(edges < 0).tolist(), strict=True
        ):
            for plane in range(_planes(image)):
                place = self._offsets[name] + ((plane * height + row) * width + first) * stored.itemsize
                _pwrite(self._file, line[: (end - first) * stored.itemsize], place)

    def table(self, name: str, columns: Mapping[str, ArrayLike]) -> None:
        """Append a binary table; numbers become 64-bit, texts ASCII, booleans logicals. All columns equally long."""
        stored = {key: _column(np.asarray(values)) for key, values in columns.items()}
        rows = {len(values) for values in stored.values()}
        if len(rows) != 1:
            raise ValueError(f"{name}: columns of different lengths {sorted(rows)}")
        table = np.zeros(rows.pop(), dtype=[(key, values.dtype) for key, values in stored.items()])
        for key, values in stored.items():
            table[key] = values
        header = _table_header(name, table, {key: np.asarray(values).dtype.kind for key, values in columns.items()})
        _pwrite(self._file, header, self.end)
        _pwrite(self._file, table.tobytes(), self.end + len(header))
        self.end += len(header) + padded(table.nbytes)

    def check_finished(self) -> None:
        """ValueError if a row was never written, so that a hole in the writing is never published as black sky."""
        left = {name or "primary": rows for name, rows in self._missing.items() if rows}
        if left:
            raise ValueError(f"rows never written (or twice): {left}")


@contextmanager
def write_fits(
    final: Path, images: Sequence[ImageSpec], *, overwrite: bool = False, mode: int = 0o644
) -> Iterator[FitsWriter]:
    """Publish a FITS file written by bands: the space of all pictures is reserved first, and the file appears whole.

    Raises OSError (ENOSPC before any work), FileExistsError, ValueError for rows left out.
    """
    size = sum(len(_image_header(image, primary=not i)) + padded(_image_bytes(image)) for i, image in enumerate(images))
    with publish(final, size, overwrite=overwrite, mode=mode) as file:
        writer = FitsWriter(file, images)
        yield writer
        writer.check_finished()
        # Last blocks are padded by length: what lies past the data is zero already.
        file.truncate(writer.end)
        file.seek(writer.end)


class FitsImage:
    """One picture of an uncompressed FITS file, read by rows: `shape` (H, W) or (C, H, W), `cards`.

    `name`: its EXTNAME; "" for the first picture. Raises Incomplete if it is not there or not whole.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self._source = Source(path, OWN_BUDGET)
        try:
            hdu = _named(self._source, name)
            self.cards: Cards = hdu.cards
            self.shape = hdu.shape
            self._offset = hdu.data_offset
            end = hdu.data_offset + hdu.data_bytes
            if self._source.packed or hdu.compressed or self._source.size < end:
                raise incomplete("fits.short", self._source.size, end, f"{path.name}: not whole, or compressed")
        except BaseException:
            self.close()
            raise
        bits = int(str(self.cards["BITPIX"]))
        self._stored = np.dtype({8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}[bits])
        self._zero = int(number(self.cards, "BZERO") or 0.0)

    def rows(self, first: int, last: int) -> NDArray[Any]:
        """Rows first (inclusive) to last (exclusive), (h, W) or (C, h, W), native; IndexError outside the picture."""
        height, width = self.shape[-2:]
        if not 0 <= first <= last <= height:
            raise IndexError(f"rows {first} to {last} of {height}")
        out = np.empty((*self.shape[:-2], last - first, width), dtype=self._stored)
        planes = out.reshape(math.prod(self.shape[:-2]), last - first, width)
        for plane in range(len(planes)):
            place = self._offset + (plane * height + first) * width * self._stored.itemsize
            pread_into(self._source.descriptor, planes[plane], place)
        native = out.astype(self._stored.newbyteorder("="))
        if not self._zero:
            return native
        return (native.astype(np.int32) + self._zero).astype(np.uint16)

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_image(path: Path, name: str = "") -> tuple[Cards, NDArray[Any]]:
    """(cards, pixels) of one of our own pictures, whole: (H, W) or (C, H, W), native."""
    with FitsImage(path, name) as image:
        return image.cards, image.rows(0, image.shape[-2])


def _named(source: Source, name: str) -> Hdu:
    chain = Chain(source)
    while (hdu := chain.next()) is not None:
        if hdu.is_picture and (not name or hdu.cards.get("EXTNAME") == name):
            return hdu
    raise incomplete("fits.no_picture", name, None, f"{source.path.name}: there is no picture {name}")


# --- bytes ------------------------------------------------------------------------------------------------------


def _pwrite(file: BinaryIO, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file.fileno(), view, offset)
        view, offset = view[count:], offset + count


def _planes(image: ImageSpec) -> int:
    return math.prod(image.shape[:-2])


def _image_bytes(image: ImageSpec) -> int:
    return math.prod(image.shape) * np.dtype(STORED[image.dtype][0]).itemsize


def _image_header(image: ImageSpec, *, primary: bool) -> bytes:
    _, bits, zero = STORED[image.dtype]
    cards = [_card("SIMPLE", True) if primary else _card("XTENSION", "IMAGE")]
    cards += [_card("BITPIX", bits), _card("NAXIS", len(image.shape))]
    cards += [_card(f"NAXIS{i}", side) for i, side in enumerate(reversed(image.shape), start=1)]
    cards += [_card("EXTEND", True)] if primary else [_card("PCOUNT", 0), _card("GCOUNT", 1)]
    if image.name:
        cards.append(_card("EXTNAME", image.name))
    if zero:
        cards += [_card("BZERO", zero), _card("BSCALE", 1)]
    if image.wcs:
        cards += [_card(key, value) for key, value in wcs_header(image.wcs).items()]
        # The colour axis needs its own diagonal element, or the 3x3 CD matrix is singular.
        cards += [_card("CD3_3", 1.0)] if len(image.shape) == 3 else []
    for key, value in image.cards.items():
        cards.append(_card(key, *(value if isinstance(value, tuple) else (value,))))
    return _block(cards)


def _table_header(name: str, table: NDArray[Any], kinds: Mapping[str, str]) -> bytes:
    cards = [
        _card("XTENSION", "BINTABLE"),
        _card("BITPIX", 8),
        _card("NAXIS", 2),
        _card("NAXIS1", table.dtype.itemsize),
    ]
    cards += [_card("NAXIS2", len(table)), _card("PCOUNT", 0), _card("GCOUNT", 1), _card("TFIELDS", len(kinds))]
    cards.append(_card("EXTNAME", name))
    for i, (key, kind) in enumerate(kinds.items(), start=1):
        form = f"{table.dtype[key].itemsize}A" if kind in "SU" else COLUMNS[kind]
        cards += [_card(f"TTYPE{i}", key), _card(f"TFORM{i}", form)]
    return _block(cards)


def _column(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "SU":
        texts = [_ascii(str(value))[:MAX_TABLE_TEXT].encode() for value in values]
        return np.array(texts, dtype=f"S{max([1, *map(len, texts)])}")
    if values.dtype.kind == "b":
        return np.where(values, b"T", b"F").astype("S1")
    return values.astype({"f": ">f8"}.get(values.dtype.kind, ">i8"))


def _block(cards: list[bytes]) -> bytes:
    header = b"".join(cards) + b"END".ljust(CARD)
    return header.ljust(padded(len(header)))


def _card(key: str, value: CardValue, comment: str = "") -> bytes:
    """One card of 80 bytes. Texts lose what is not printable ASCII (F19) and are cut to fit; NaN is undefined."""
    if isinstance(value, bool):
        shown = ("T" if value else "F").rjust(20)
    elif isinstance(value, str):
        shown = f"'{_quoted(value):<8}'".ljust(20)
    elif isinstance(value, float):
        shown = (repr(value).upper() if math.isfinite(value) else "").rjust(20)
    else:
        shown = ("" if value is None else str(value)).rjust(20)
    name = f"{key:<8}= " if len(key) <= 8 else f"HIERARCH {key} = "
    line = name + shown + (f" / {_ascii(comment)}" if comment else "")
    return line[:CARD].ljust(CARD).encode("ascii")


def _quoted(value: str) -> str:
    text = _ascii(value).replace("'", "''")[:60]
    return text[:-1] if (len(text) - len(text.rstrip("'"))) % 2 else text


def _ascii(value: str) -> str:
    return clean_text(value).encode("ascii", "replace").decode()
