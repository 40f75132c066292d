"""Reading other people's FITS files: header first, whole or not at all, never mapped into memory.

`read_header` believes nothing, `check_complete` says whether a file has been written to its end (C2), `read_frame`
gives pixels. Writing and re-reading our own files is `work.fitswrite`.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zemosaicd.core.cards import number
from zemosaicd.model import Fingerprint, FrameId
from zemosaicd.work.fitsblocks import (
    BLOCK,
    Budget,
    Cards,
    Chain,
    Hdu,
    Source,
    find_picture,
    incomplete,
    no_picture,
    rejected,
)
from zemosaicd.work.fitswrite import FitsImage, FitsWriter, ImageSpec, read_image, write_fits

__all__ = [
    "Budget",
    "FitsImage",
    "FitsWriter",
    "ImageSpec",
    "RawFrame",
    "RawHeader",
    "check_complete",
    "read_frame",
    "read_header",
    "read_image",
    "write_fits",
]

ZERO_TAIL_FRACTION = 0.01
MAX_TRAILING_BYTES = 1 << 20
CHUNK = 1 << 20
SCALE_CHUNK = 1 << 15
"""Pixels scaled at a time: few enough to stay in the processor's cache, and off the pages of fresh memory."""
DECODE_ERRORS = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError, ArithmeticError,
    zlib.error,
)  # fmt: skip
"""What astropy raises for a damaged tile-compressed picture; any of them means the same to us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawHeader:
    """The header of a file's picture. `cards`: as of an uncompressed picture, primary header below; `shape`: slowest
    axis first; `data_offset, data_bytes`: in the unpacked file; `compression`: "", "gzip", "tiles" or "gzip tiles"."""

    cards: Cards
    hdu: int
    shape: tuple[int, ...]
    data_offset: int
    data_bytes: int
    compression: str
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFrame:
    """A frame as read. `pixels`: native float32 ADU, (H, W) or (3, H, W), rows as stored, BZERO and BSCALE applied;
    NaN where the file says BLANK or NaN. `frame` names the raw pixels, whatever the file is called or packed with."""

    cards: Cards
    pixels: NDArray[np.float32]
    frame: FrameId
    fingerprint: Fingerprint


def read_header(path: Path, budget: Budget | None = None) -> RawHeader:
    """The picture's header, read from the front of the file and checked against the budget; no pixel is touched.

    Raises Rejected (cannot be a frame), Incomplete (not yet), OSError (the disk fails).
    """
    with Source(path, budget or Budget()) as source:
        hdu, cards = find_picture(source)
        return _raw_header(source, hdu, cards)


def check_complete(path: Path, budget: Budget | None = None, *, zero_tail: bool = True) -> None:
    """Returns if the file is whole (C2); raises Incomplete with what is missing, or Rejected as `read_header` does.

    Whole: as long as the sum over its HDUs (final padding may be missing), a gzip stream decodes to its end, and the
    picture has no zero tail (a finished picture may have one: `zero_tail` false). Zero bytes at the end of integer
    pixels are never sky; of float pixels only if they end every plane.
    """
    with Source(path, budget or Budget()) as source:
        chain = Chain(source)
        picture_seen = False
        while (hdu := chain.next()) is not None:
            is_picture = hdu.is_picture and not picture_seen
            picture_seen = picture_seen or is_picture
            if is_picture and source.packed:
                tails = _tails_forward(source, hdu)
            else:
                end = hdu.data_offset + hdu.data_bytes
                if not source.skip_to(end):
                    raise incomplete("fits.short", source.position, end, "the file is shorter than its header says")
                tails = _tails_backward(source, hdu) if is_picture else []
            if zero_tail:
                _refuse_zero_tail(tails)
        if not picture_seen:
            raise no_picture(chain)
        if source.packed:
            _read_out(source)
        source.check_unchanged()


def read_frame(path: Path, budget: Budget | None = None) -> RawFrame:
    """The picture of a file. Raises Rejected, Incomplete (also when the file changes meanwhile, F7), OSError."""
    with Source(path, budget or Budget()) as source:
        hdu, cards = find_picture(source)
        header = _raw_header(source, hdu, cards)
        axes = header.shape[1:] if len(header.shape) == 3 and header.shape[0] == 1 else header.shape
        if len(axes) not in (2, 3) or (len(axes) == 3 and axes[0] != 3):
            shown = "x".join(map(str, reversed(header.shape)))
            raise rejected("header.dimensions", shown, "2 axes, or 3 colour planes", "not a picture")
        raw = _unpack_tiles(source, hdu) if hdu.compressed else _read_raw(source, hdu, cards)
        source.check_unchanged()
    frame = _frame_id(raw, header.shape)
    return RawFrame(cards=cards, pixels=scaled(raw, cards).reshape(axes), frame=frame, fingerprint=header.fingerprint)


def _read_out(source: Source) -> None:
    """The rest of a gzip stream, which proves that it decodes to its end; there must not be much of it."""
    end = source.position
    while source.read(CHUNK):
        if source.position - end > MAX_TRAILING_BYTES:
            raise rejected(
                "gzip.trailing", source.position - end, MAX_TRAILING_BYTES, "more follows than the headers say"
            )


def _raw_header(source: Source, hdu: Hdu, cards: Cards) -> RawHeader:
    kinds = (["gzip"] if source.packed else []) + (["tiles"] if hdu.compressed else [])
    return RawHeader(
        cards=cards,
        hdu=hdu.index,
        shape=hdu.shape,
        data_offset=hdu.data_offset,
        data_bytes=hdu.data_bytes,
        compression=" ".join(kinds),
        fingerprint=source.fingerprint,
    )


# --- zero tails -------------------------------------------------------------------------------------------------


def _planes(hdu: Hdu) -> list[tuple[int, int]]:
    """(first byte, length) of what must not end in zeros: the whole data, or each plane of float data."""
    bits = hdu.cards.get("BITPIX")
    planes = hdu.shape[0] if not hdu.compressed and len(hdu.shape) == 3 and isinstance(bits, int) and bits < 0 else 1
    length = hdu.data_bytes // planes
    return [(hdu.data_offset + i * length, length) for i in range(planes)]


def _tails_backward(source: Source, hdu: Hdu) -> list[tuple[int, int]]:
    """(trailing zero bytes, length) a plane, reading only as far back as the zeros go."""
    tails = []
    for start, length in _planes(hdu):
        zeros = 0
        while zeros < length:
            size = min(CHUNK, length - zeros) if zeros else min(2 * BLOCK, length)
            part = os.pread(source.descriptor, size, start + length - zeros - size)
            if len(part) < size:
                raise incomplete("fits.short", None, None, "the file became shorter")
            kept = len(part.rstrip(b"\0"))
            zeros += size - kept
            if kept:
                break
        tails.append((zeros, length))
    return tails


def _tails_forward(source: Source, hdu: Hdu) -> list[tuple[int, int]]:
    """The same for a stream that only runs forward."""
    tails = []
    for start, length in _planes(hdu):
        zeros = 0
        while source.position < start + length:
            part = source.read(min(CHUNK, start + length - source.position))
            if not part:
                raise incomplete("fits.short", source.position, start + length, "the stream ends inside the picture")
            kept = len(part.rstrip(b"\0"))
            zeros = len(part) - kept if kept else zeros + len(part)
        tails.append((zeros, length))
    return tails


def _refuse_zero_tail(tails: list[tuple[int, int]]) -> None:
    if tails and all(zeros >= max(BLOCK, ZERO_TAIL_FRACTION * length) for zeros, length in tails):
        zeros, length = tails[-1]
        limit = max(BLOCK, math.ceil(ZERO_TAIL_FRACTION * length))
        raise incomplete("fits.zero_tail", zeros, limit, "the picture ends in zero bytes: not written to its end yet")


# --- pixels -----------------------------------------------------------------------------------------------------


def _read_raw(source: Source, hdu: Hdu, cards: Cards) -> NDArray[Any]:
    """The stored numbers, big-endian, one axis. A plain file is measured first, so a bare header allocates nothing."""
    size = math.prod(hdu.shape) * abs(int(str(cards["BITPIX"]))) // 8
    if not source.packed and source.size < hdu.data_offset + size:
        raise incomplete("fits.short", source.size, hdu.data_offset + size, "the file is shorter than its header says")
    raw = np.empty(size, np.uint8)
    done = source.read_into(raw.data)
    if done < size:
        raise incomplete("fits.short", source.position, hdu.data_offset + size, "the file ended while it was read")
    return raw.view(_stored_dtype(cards))


def _stored_dtype(cards: Cards) -> np.dtype[Any]:
    kinds = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
    return np.dtype(kinds[int(str(cards["BITPIX"]))])


def _unpack_tiles(source: Source, hdu: Hdu) -> NDArray[Any]:
    """Tile-compressed pixels (.fz) as they were stored before, one axis. The header has been held to the budget."""
    from astropy.io import fits  # 0.5 s to import, and few files need it (M24)

    whole_file = _whole_file(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with fits.open(
                io.BytesIO(whole_file), memmap=False, lazy_load_hdus=True, do_not_scale_image_data=True
            ) as hdus:
                data = hdus[hdu.index].data
        except MemoryError:
            raise
        except DECODE_ERRORS as error:
            raise rejected("fits.decode", str(error)[:200], None, "the compressed picture does not decode") from None
    if not isinstance(data, np.ndarray) or data.shape != hdu.shape:
        raise rejected("fits.decode", None, None, "the compressed picture is not what its header says")
    return np.ascontiguousarray(data).reshape(-1).astype(data.dtype.newbyteorder(">"), copy=False)


def _whole_file(source: Source) -> bytes:
    if source.packed:
        with Source(source.path, source.budget) as again:
            return again.read(source.budget.max_bytes)
    source.position = 0
    return source.read(source.size)


def _frame_id(raw: NDArray[Any], shape: tuple[int, ...]) -> FrameId:
    digest = hashlib.sha256(f"{raw.dtype.str[1:]} {'x'.join(map(str, shape))} ".encode())
    digest.update(raw.data)
    return digest.hexdigest()[:24]


def scaled(raw: NDArray[Any], cards: Mapping[str, object]) -> NDArray[np.float32]:
    """BZERO + BSCALE * stored, by chunks, in float64 unless float32 is exact, kept as float32; BLANK becomes NaN."""
    scale, zero = (number(cards, "BSCALE") or 1.0), (number(cards, "BZERO") or 0.0)
    blank = number(cards, "BLANK") if raw.dtype.kind in "iu" else None
    small = raw.dtype.itemsize <= 2 or (raw.dtype.str == ">f4" and not zero)
    exact = small and scale == 1.0 and zero.is_integer() and abs(zero) < 2**23
    out = np.empty(raw.size, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, raw.size, SCALE_CHUNK):
            part = raw[first : first + SCALE_CHUNK]
            values: NDArray[np.floating] = out[first : first + SCALE_CHUNK] if exact else np.empty(part.size)
            values[...] = part
            if scale != 1.0:
                values *= values.dtype.type(scale)
            values += values.dtype.type(zero)
            if blank is not None:
                values[part == blank] = np.nan
            if not exact:
                out[first : first + SCALE_CHUNK] = values
    return out
