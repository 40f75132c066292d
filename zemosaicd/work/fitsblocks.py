"""FITS structure under guard: blocks, cards and the chain of HDUs, read before anything is believed or allocated.

Anyone on the network may have written these bytes (faults B7), so every length is held against a limit while it is
still a number in a header, files are read as bytes and never mapped (M4), and a gzip stream is only unpacked as far
as the header asks (M9). FITS 4.0 (Pence et al.) sections 3 and 4.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from zemosaicd.model import Fingerprint, Incomplete, Reason, Rejected

BLOCK = 2880
CARD = 80
MAX_CARDS = 36_000
MAX_HDUS = 64
MAX_AXES = 4
RATIO_FREE_BYTES = 64 * 1024**2
MAX_RATIO = 100
"""Above RATIO_FREE_BYTES, what unpacks to more than 100 times its size is not a picture of the sky (B7)."""
CHUNK = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
END = b"END" + b" " * 77

_NUMBER = re.compile(rb"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][+-]?\d+)?)\s*(?:/|$)")
_STRING = re.compile(rb"\s*'((?:[^']|'')*)'")
_LOGICAL = re.compile(rb"\s*([TF])\s*(?:/|$)")

Cards = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How large a picture may be (configuration `frames.max_pixels`, `frames.max_bytes`)."""

    max_pixels: int = 200_000_000
    max_bytes: int = 4 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdu:
    """One header and the place of its data in the (unpacked) file. `data_bytes` is without padding."""

    index: int
    cards: Cards
    data_offset: int
    data_bytes: int

    @property
    def next_offset(self) -> int:
        return self.data_offset + padded(self.data_bytes)

    @property
    def compressed(self) -> bool:
        """A tile-compressed picture (.fz): a binary table that stands for an image."""
        return self.cards.get("ZIMAGE") is True

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of the picture as numpy counts them, slowest first; () without data."""
        prefix = "ZNAXIS" if self.compressed else "NAXIS"
        count = whole(self.cards, prefix, 0, MAX_AXES)
        return tuple(whole(self.cards, f"{prefix}{i}", 0) for i in range(count, 0, -1))

    @property
    def is_picture(self) -> bool:
        kind = str(self.cards.get("XTENSION", "IMAGE")).strip()
        return (kind in ("IMAGE", "IUEIMAGE") or self.compressed) and len(self.shape) >= 2 and math.prod(self.shape) > 0


def padded(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def rejected(rule: str, value: float | str | None, threshold: float | str | None, message: str) -> Rejected:
    """A file that can never be used, and why."""
    return Rejected(Reason(rule=rule, value=value, threshold=threshold, message=message))


def incomplete(rule: str, value: float | str | None, threshold: float | str | None, message: str) -> Incomplete:
    """A file that is not whole yet, and how one can tell."""
    return Incomplete(Reason(rule=rule, value=value, threshold=threshold, message=message))


# --- the file ---------------------------------------------------------------------------------------------------


class Source:
    """A regular file, opened without following a link or waiting for a pipe (F17), read forward from its start.

    A gzip stream, known by its magic under any name, is unpacked on the way; `packed` says so. `position` counts
    unpacked bytes. Raises Rejected for what is not a regular file, Incomplete for what cannot be opened now.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        self.path, self.budget = path, budget
        self.descriptor = _open_regular(path)
        self.fingerprint = fingerprint(self.descriptor)
        self.packed = os.pread(self.descriptor, 2, 0) == GZIP_MAGIC
        self.position = 0
        self._raw_position = 0
        self._unpack = zlib.decompressobj(wbits=31)
        self._input = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when it is closed already."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    @property
    def size(self) -> int:
        """Bytes on disk, as packed as they lie there."""
        return self.fingerprint.size

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or what is left."""
        parts, left = [], size
        while left > 0 and (part := self._some(min(left, CHUNK))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def read_into(self, target: memoryview) -> int:
        """Fills `target` (bytes) with what comes next; how many there were. A plain file is not copied on the way."""
        done, count = 0, 1
        while count and (rest := target[done : done + CHUNK]):
            if self.packed:
                part = self._unpacked(len(rest))
                rest[: len(part)] = part
            count = len(part) if self.packed else os.preadv(self.descriptor, [rest], self.position)
            self._advance(count)
            done += count
        return done

    def skip_to(self, offset: int) -> bool:
        """Go forward to `offset`; False if the file ends before it."""
        if not self.packed:
            self.position = min(offset, self.size)
            return offset <= self.size
        while self.position < offset and self._some(min(offset - self.position, CHUNK)):
            pass
        return self.position == offset

    def check_unchanged(self) -> None:
        """F7: Incomplete if the file is not what it was when it was opened."""
        if fingerprint(self.descriptor) != self.fingerprint:
            raise incomplete("file.changed", None, None, "the file changed while it was read")

    def _some(self, size: int) -> bytes:
        part = self._unpacked(size) if self.packed else os.pread(self.descriptor, size, self.position)
        self._advance(len(part))
        return part

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > self.budget.max_bytes:
            raise rejected("file.bytes", self.position, self.budget.max_bytes, "more bytes than frames.max_bytes")

    def _unpacked(self, size: int) -> bytes:
        """Up to `size` bytes; b"" only at the proper end of the last gzip member."""
        while True:
            if self._unpack.eof:
                if not self._next_member():
                    return b""
                self._unpack = zlib.decompressobj(wbits=31)
            packed = self._input or self._raw()
            try:
                part = self._unpack.decompress(packed, size)
            except zlib.error as error:
                raise incomplete("gzip.damaged", str(error), None, "the gzip stream does not decode") from None
            self._input = self._unpack.unused_data if self._unpack.eof else self._unpack.unconsumed_tail
            if not part and not packed and not self._unpack.eof:
                raise incomplete("gzip.short", self.size, None, "the gzip stream is cut short")
            if part:
                return part

    def _next_member(self) -> bool:
        """Whether another gzip member follows; zero padding may, anything else may not."""
        while True:
            self._input = self._input.lstrip(b"\0") or self._raw()
            if not self._input:
                return False
            start = self._input.lstrip(b"\0")
            if start:
                if not GZIP_MAGIC.startswith(start[:2]):
                    raise incomplete("gzip.damaged", None, None, "something else follows the gzip stream")
                self._input = start
                return True

    def _raw(self) -> bytes:
        part = os.pread(self.descriptor, 1 << 16, self._raw_position)
        self._raw_position += len(part)
        return part


def fingerprint(descriptor: int) -> Fingerprint:
    """What an open file is now."""
    now = os.fstat(descriptor)
    return Fingerprint(device=now.st_dev, inode=now.st_ino, size=now.st_size, mtime_ns=now.st_mtime_ns)


def _open_regular(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise rejected("file.kind", None, "a regular file", "a link or a socket, not a file") from None
        raise incomplete("file.unreadable", error.errno, None, error.strerror or str(error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise rejected("file.kind", None, "a regular file", "a folder, pipe or device, not a file")
    return descriptor


# --- the chain of HDUs ------------------------------------------------------------------------------------------


class Chain:
    """The HDUs of a source, one after the other, each within the budget before the next is looked at."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._cards = 0
        self.count = 0
        self.offset = 0
        self.has_data = False

    def next(self) -> Hdu | None:
        """The next HDU; None at the end of the file. Raises Rejected or Incomplete."""
        if not self.source.skip_to(self.offset):
            return None
        first = self.source.read(BLOCK)
        if self.count and not first.startswith(b"XTENSION"):
            if first and b"XTENSION".startswith(first):
                raise incomplete("fits.header_short", len(first), BLOCK, "the file ends inside a header")
            return None
        if self.count >= MAX_HDUS:
            raise rejected("fits.hdus", f"more than {MAX_HDUS}", MAX_HDUS, "too many extensions")
        if not self.count:
            _check_signature(first)
        cards = parse_cards(self._header(first))
        hdu = Hdu(index=self.count, cards=cards, data_offset=self.source.position, data_bytes=_data_bytes(cards))
        check_budget(hdu, self.source)
        self.count += 1
        self.offset = hdu.next_offset
        self.has_data = self.has_data or hdu.data_bytes > 0
        return hdu

    def _header(self, block: bytes) -> bytes:
        """The cards before END. The search for END is cheap, so an endless header is refused before it is parsed."""
        blocks = [block]
        while True:
            if len(block) < BLOCK:
                raise incomplete("fits.header_short", len(block), BLOCK, "the file ends inside a header")
            for place in range(0, BLOCK, CARD):
                if block.startswith(END[:8], place):
                    return b"".join(blocks)[: (len(blocks) - 1) * BLOCK + place]
            self._cards += BLOCK // CARD
            if self._cards >= MAX_CARDS:
                raise rejected("fits.cards", f"more than {MAX_CARDS}", MAX_CARDS, "the header does not end")
            block = self.source.read(BLOCK)
            blocks.append(block)


def find_picture(source: Source) -> tuple[Hdu, Cards]:
    """The first HDU that holds a picture, and its cards over those of the primary header. Rejected if there is none."""
    chain = Chain(source)
    primary: Cards = {}
    while (hdu := chain.next()) is not None:
        if hdu.is_picture:
            return hdu, {**primary, **_logical(hdu)}
        if hdu.index == 0:
            primary = {key: value for key, value in hdu.cards.items() if not _STRUCTURE.fullmatch(key)}
    raise no_picture(chain)


def no_picture(chain: Chain) -> Rejected | Incomplete:
    """What to say of a file that ended without a picture: perhaps it is still growing, perhaps it never will."""
    if not chain.source.skip_to(chain.offset):
        return incomplete("fits.short", chain.source.size, chain.offset, "the file ends before its picture")
    if chain.count == 1 and not chain.has_data and chain.source.size <= chain.offset:
        return incomplete("fits.no_picture", None, None, "there is no picture in this file yet")
    return rejected("fits.no_picture", None, None, "there is no picture in this file")


_STRUCTURE = re.compile(r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|CHECKSUM|DATASUM|BZERO|BSCALE|BLANK")
_TABLE = re.compile(r"TFIELDS|THEAP|T(FORM|TYPE|UNIT|DIM)\d+|Z(IMAGE|TENSION|SIMPLE|EXTEND|PCOUNT|GCOUNT|BLANK)|PCOUNT")


def _logical(hdu: Hdu) -> Cards:
    """The cards as an uncompressed picture would have them."""
    if not hdu.compressed:
        return hdu.cards
    plain = {key: value for key, value in hdu.cards.items() if not _TABLE.fullmatch(key) and key != "XTENSION"}
    plain["BITPIX"] = hdu.cards.get("ZBITPIX")
    plain["NAXIS"] = len(hdu.shape)
    plain.update({f"NAXIS{i}": side for i, side in enumerate(reversed(hdu.shape), start=1)})
    return plain


def _check_signature(first: bytes) -> None:
    if first.startswith(b"SIMPLE  ="):
        return
    if not first.strip(b"\0") or b"SIMPLE  =".startswith(first[:9]):
        raise incomplete("fits.empty", len(first), None, "nothing written yet")
    raise rejected("fits.signature", repr(first[:9])[2:-1], "SIMPLE  =", "not a FITS file")


def whole(cards: Cards, key: str, low: int, high: int = 2**62, default: int | None = None) -> int:
    """A structural card as a whole number within limits; Rejected otherwise, before anyone multiplies with it."""
    value = cards.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = str(value)[:40]
        raise rejected(f"fits.{re.sub('[0-9]', 'n', key.lower())}", shown, f"{low} to {high}", f"{key} = {shown}")
    return value


def _data_bytes(cards: Cards) -> int:
    bits = whole(cards, "BITPIX", -64, 64)
    axes = whole(cards, "NAXIS", 0, MAX_AXES)
    if bits not in (8, 16, 32, 64, -32, -64):
        raise rejected("fits.bitpix", bits, "8, 16, 32, 64, -32, -64", "unknown kind of pixel")
    if axes == 0:
        return 0
    if cards.get("GROUPS") is True:
        raise rejected("fits.groups", None, None, "random groups are not pictures")
    pixels = math.prod(whole(cards, f"NAXIS{i}", 0) for i in range(1, axes + 1))
    extra = whole(cards, "PCOUNT", 0, default=0) if "XTENSION" in cards else 0
    groups = whole(cards, "GCOUNT", 1, default=1) if "XTENSION" in cards else 1
    return abs(bits) // 8 * groups * (extra + pixels)


def check_budget(hdu: Hdu, source: Source) -> None:
    """Rejected when the header asks for more pixels or bytes than allowed, or unpacks beyond reason (F16)."""
    budget = source.budget
    if hdu.data_offset + hdu.data_bytes > budget.max_bytes:
        raise rejected("fits.bytes", hdu.data_bytes, budget.max_bytes, "more bytes than frames.max_bytes")
    _check_ratio(hdu.data_bytes, source.size if source.packed else hdu.data_bytes)
    if not hdu.is_picture:
        return
    pixels = math.prod(hdu.shape)
    if pixels > budget.max_pixels:
        raise rejected("fits.pixels", pixels, budget.max_pixels, "more pixels than frames.max_pixels")
    if hdu.compressed:
        bits = whole(hdu.cards, "ZBITPIX", -64, 64)
        unpacked = pixels * abs(bits) // 8
        if unpacked > budget.max_bytes:
            raise rejected("fits.bytes", unpacked, budget.max_bytes, "unpacks to more than frames.max_bytes")
        for i, side in enumerate(reversed(hdu.shape), start=1):
            whole(hdu.cards, f"ZTILE{i}", 1, side, default=side if i == 1 else 1)
        _check_ratio(unpacked, hdu.data_bytes)


def _check_ratio(unpacked: int, packed: int) -> None:
    if unpacked > RATIO_FREE_BYTES and unpacked > MAX_RATIO * max(1, packed):
        raise rejected("file.ratio", round(unpacked / max(1, packed)), MAX_RATIO, "unpacks beyond reason")


# --- cards ------------------------------------------------------------------------------------------------------


def parse_cards(header: bytes) -> Cards:
    """keyword -> bool, int, float, str, or None for an undefined value. The first of a repeated keyword counts.

    Comments are left out; long strings (CONTINUE) are joined; HIERARCH keywords lose that word. Bytes above ASCII
    come through as Latin-1, control characters as they are: cleaning is core.cards' business.
    """
    cards: Cards = {}
    last = ""
    for place in range(0, len(header), CARD):
        card = header[place : place + CARD]
        if card[8:10] == b"= ":
            key, field = card[:8].rstrip().decode("latin-1"), card[10:]
        elif card.startswith(b"HIERARCH ") and b"=" in card:
            name, field = card[9:].split(b"=", 1)
            key = name.strip().decode("latin-1")
        else:
            _continue(cards, last, card)
            continue
        last = key if key not in cards else ""
        if key and key not in ("COMMENT", "HISTORY"):
            cards.setdefault(key, _value(field))
    return cards


def _continue(cards: Cards, last: str, card: bytes) -> None:
    before = cards.get(last)
    if card.startswith(b"CONTINUE") and isinstance(before, str) and before.endswith("&") and len(before) < 10_000:
        more = _value(card[8:])
        cards[last] = before[:-1] + (more if isinstance(more, str) else "")


def _value(field: bytes) -> object:
    if found := _STRING.match(field):
        return found[1].replace(b"''", b"'").rstrip().decode("latin-1")
    if found := _LOGICAL.match(field):
        return found[1] == b"T"
    if found := _NUMBER.match(field):
        digits = found[1].decode()
        return int(digits) if digits.lstrip("+-").isdigit() else float(digits.lower().replace("d", "e"))
    return None
