"""Small honest FITS files, and files that lie: the corpus of F16, made from scratch byte by byte.

`fits(...)` and `cards(...)` are for any test that wants a file without asking astropy. `CORPUS` maps a name to a
function that makes the file's bytes; sparse ones are given a length and cost no disk.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

BLOCK = 2880


def card(key: str, value: object) -> bytes:
    """One 80-byte card; bytes as a value go in raw."""
    if isinstance(value, bytes):
        return (f"{key:<8}= ".encode() + value)[:80].ljust(80)
    if isinstance(value, bool):
        shown = ("T" if value else "F").rjust(20)
    elif isinstance(value, str):
        shown = f"'{value:<8}'"
    else:
        shown = str(value).rjust(20)
    return f"{key:<8}= {shown}".encode("latin-1")[:80].ljust(80)


def header(*pairs: tuple[str, object], end: bool = True) -> bytes:
    """Cards padded to whole blocks with spaces."""
    raw = b"".join(card(key, value) for key, value in pairs) + (b"END".ljust(80) if end else b"")
    return raw.ljust(-(-len(raw) // BLOCK) * BLOCK)


def primary(*axes: int, bits: int = 16, more: tuple[tuple[str, object], ...] = ()) -> bytes:
    """A primary header with the given axes (NAXIS1 first)."""
    sides = [(f"NAXIS{i}", side) for i, side in enumerate(axes, start=1)]
    return header(("SIMPLE", True), ("BITPIX", bits), ("NAXIS", len(axes)), *sides, *more)


def fits(pixels: np.ndarray, padding: bool = True, **cards: object) -> bytes:
    """A whole file of uint16 (BZERO 32768), int16, uint8, int32, float32 or float64 pixels."""
    stored = {"u2": ">i2", "u1": "u1", "i2": ">i2", "i4": ">i4", "f4": ">f4", "f8": ">f8"}[pixels.dtype.str[1:]]
    more: dict[str, object] = {}
    if pixels.dtype == np.uint16:
        pixels, more = (pixels.astype(np.int32) - 32768), {"BZERO": 32768, "BSCALE": 1}
    bits = int(stored[-1]) * (-8 if "f" in stored else 8)
    data = pixels.astype(stored).tobytes()
    head = primary(*reversed(pixels.shape), bits=bits, more=tuple({**more, **cards}.items()))
    return head + (data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0") if padding else data)


def sky(height: int = 48, width: int = 64, planes: int = 0, seed: int = 1) -> np.ndarray:
    """Plausible uint16 pixels."""
    shape = (planes, height, width) if planes else (height, width)
    return np.random.default_rng(seed).integers(900, 1400, shape).astype(np.uint16)


def _table(*pairs: tuple[str, object]) -> bytes:
    given = dict(pairs)
    base = {"XTENSION": "BINTABLE", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 1, "PCOUNT": 0, "GCOUNT": 1}
    return header(*{**base, "TFIELDS": 1, "TTYPE1": "COMPRESSED_DATA", "TFORM1": "1PB(8)", **given}.items())


def _tiles(*pairs: tuple[str, object], data: bytes = b"\1" * BLOCK) -> bytes:
    good = {"ZIMAGE": True, "ZCMPTYPE": "RICE_1", "ZBITPIX": 16, "ZNAXIS": 2, "ZNAXIS1": 64, "ZNAXIS2": 48}
    return header(("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)) + _table(*{**good, **dict(pairs)}.items()) + data


def _gzip_bomb() -> bytes:
    """An honest little header, then 256 MiB of zeros: 250 kB on disk."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [squeeze.compress(primary(16384, 8192, more=(("BZERO", 32768),)))]
    parts += [squeeze.compress(bytes(1 << 20)) for _ in range(256)]
    return b"".join([*parts, squeeze.flush()])


def _gzip_tail_bomb() -> bytes:
    """A small honest picture in front of 64 MiB that no header speaks of."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [squeeze.compress(fits(sky()))] + [squeeze.compress(bytes(1 << 20)) for _ in range(64)]
    return b"".join([*parts, squeeze.flush()])


def _many_hdus(count: int) -> bytes:
    extension = header(("XTENSION", "IMAGE"), ("BITPIX", 8), ("NAXIS", 0), ("PCOUNT", 0), ("GCOUNT", 1))
    return header(("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)) + extension * count


def _endless(count: int, line: bytes) -> bytes:
    return primary(64, 48)[: 5 * 80] + line.ljust(80) * count


GIB = 1024**3

CORPUS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one_byte": lambda: b"S",
    "text": lambda: b"this is not a picture\n" * 200,
    "jpeg": lambda: b"\xff\xd8\xff\xe0" + bytes(8000),
    "zeros": lambda: bytes(4 * BLOCK),
    "simple_false_sign": lambda: fits(sky()).replace(b"SIMPLE  =", b"SIMPLE   ", 1),
    "huge_square": lambda: primary(100_000, 100_000),
    "huge_by_axis_1": lambda: primary(2**31 - 1, 1),
    "naxis_999": lambda: header(("SIMPLE", True), ("BITPIX", 16), ("NAXIS", 999)),
    "naxis_5": lambda: primary(8, 8, 8, 8, 8),
    "naxis_negative": lambda: primary(-64, 48),
    "naxis_text": lambda: header(("SIMPLE", True), ("BITPIX", 16), ("NAXIS", "two")),
    "naxis_float": lambda: header(("SIMPLE", True), ("BITPIX", 16), ("NAXIS", 2), ("NAXIS1", 64.5), ("NAXIS2", 48)),
    "naxis_missing": lambda: header(("SIMPLE", True), ("BITPIX", 16)),
    "axis_missing": lambda: header(("SIMPLE", True), ("BITPIX", 16), ("NAXIS", 2), ("NAXIS1", 64)),
    "axis_of_70_digits": lambda: header(("SIMPLE", True), ("BITPIX", 16), ("NAXIS", 2), ("NAXIS1", b"9" * 70)),
    "product_overflows": lambda: primary(2**40, 2**40, 2**40),
    "bitpix_17": lambda: primary(64, 48, bits=17) + bytes(BLOCK),
    "bitpix_text": lambda: header(("SIMPLE", True), ("BITPIX", "x"), ("NAXIS", 0)),
    "no_pixels": lambda: primary(0, 0),
    "spectrum": lambda: primary(1440) + b"\1" * BLOCK,
    "groups": lambda: primary(0, 48, more=(("GROUPS", True), ("PCOUNT", 2**40), ("GCOUNT", 2**40))),
    "pcount_huge": lambda: header(("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)) + _table(("PCOUNT", 2**50)),
    "pcount_negative": lambda: header(("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)) + _table(("PCOUNT", -8)),
    "gcount_huge": lambda: header(("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)) + _table(("GCOUNT", 2**50)),
    "endless_header": lambda: _endless(40_000, b"COMMENT and so on"),
    "endless_keywords": lambda: _endless(40_000, b"KEYWORD =                    1"),
    "endless_continue": lambda: _endless(40_000, b"CONTINUE  'more and more &'"),
    "header_without_end": lambda: primary(64, 48)[: 5 * 80].ljust(BLOCK),
    "binary_header": lambda: b"SIMPLE  =                    T".ljust(80) + bytes(range(256)) * 30,
    "million_hdus": lambda: _many_hdus(3000),
    "table_only": lambda: header(("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)) + _table() + bytes(BLOCK) * 2,
    "tiles_huge": lambda: _tiles(("ZNAXIS1", 100_000), ("ZNAXIS2", 100_000)),
    "tiles_ratio": lambda: _tiles(("ZNAXIS1", 10_000), ("ZNAXIS2", 10_000)),
    "tiles_axes": lambda: _tiles(("ZNAXIS", 900)),
    "tiles_tile_huge": lambda: _tiles(("ZTILE1", 2**31)),
    "tiles_negative": lambda: _tiles(("ZNAXIS2", -48)),
    "tiles_of_nothing": lambda: _tiles(("ZBITPIX", "what")),
    "tiles_garbage": lambda: _tiles(),
    "gzip_bomb": _gzip_bomb,
    "gzip_tail_bomb": _gzip_tail_bomb,
    "gzip_header_bomb": lambda: gzip.compress(_endless(40_000, b"COMMENT")),
    "gzip_of_gzip": lambda: gzip.compress(gzip.compress(fits(sky()))),
    "gzip_cut": lambda: gzip.compress(fits(sky()))[:-400],
    "gzip_damaged": lambda: gzip.compress(fits(sky()), mtime=0).replace(b"\x9b", b"\x00"),
    "gzip_magic_only": lambda: b"\x1f\x8b",
}
"""Each of these must be refused (Rejected) or held (Incomplete); none may crash, hang or eat memory."""

SPARSE: dict[str, tuple[Callable[[], bytes], int]] = {
    "preallocated": (lambda: primary(4096, 4096), BLOCK + 2 * 4096 * 4096),
    "sparse_16_gib": (lambda: primary(80_000, 100_000), 16 * GIB),
    "sparse_behind_honest": (lambda: _many_hdus(1), 8 * GIB),
}
"""(start of the file, its full length): the rest is a hole."""


def write_corpus(folder: Path) -> list[Path]:
    """Every file of the corpus in `folder`; their paths."""
    paths = []
    for name, make in CORPUS.items():
        paths.append(folder / f"{name}.fits")
        paths[-1].write_bytes(make())
    for name, (start, length) in SPARSE.items():
        paths.append(folder / f"{name}.fits")
        with paths[-1].open("wb") as file:
            file.write(start())
            file.truncate(length)
    return paths
