"""Files that are there whole or not at all, and `.npy` planes read by rows.

`publish` is the one door through which zemosaicd makes a file that anyone may rely on: temporary name in the same
folder, preallocated, written, fsynced, renamed, folder fsynced (the order of restic's local backend). Nothing here
maps files into memory: a map of a file that shrinks, or of a hole on a full disk, is SIGBUS (faults M4, M5). The
daemon publishes text only, so numpy is imported where arrays are.
"""

from __future__ import annotations

import errno
import io
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from zemosaicd.model import Incomplete, Reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEMPORARY_SUFFIX = ".zemosaicd-tmp"
"""Ends the name of every file that is still being written; the name also starts with a dot, so scanners skip it."""

MAX_NPY_HEADER = 4096


@contextmanager
def publish(final: Path, size_hint: int = 0, *, overwrite: bool = False, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A binary file that appears as `final` when the block ends well, and leaves nothing behind when it does not.

    `size_hint` bytes are reserved first, so that a full disk says so (ENOSPC) before any work is written. The file
    ends where the position stands when the block ends. FileExistsError if `final` exists, unless `overwrite`.
    """
    _refuse_existing(final, overwrite)
    descriptor, name = tempfile.mkstemp(prefix=f".{final.name[:100]}.", suffix=TEMPORARY_SUFFIX, dir=final.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "w+b") as file:
            if size_hint > 0:
                preallocate(descriptor, size_hint)
            yield file
            file.flush()
            file.truncate(file.tell())
            set_mode(descriptor, mode)
            # F25: an fsync that fails is never tried again on the same file; the temporary goes.
            os.fsync(descriptor)
        _refuse_existing(final, overwrite)
        temporary.rename(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(final.parent)


def _refuse_existing(final: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, "already there, and not to be overwritten", str(final))


def preallocate(descriptor: int, size: int) -> None:
    """Reserve `size` bytes on disk, or raise OSError (ENOSPC). File systems that cannot reserve are left alone."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Lets the kernel begin to write this part of a file now, while the next is made, so that the fsync at the end has
    little left to wait for. A file system that will not be told is left alone."""
    with suppress(OSError):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def set_mode(target: int | Path, mode: int) -> None:
    """Give a file or folder these permissions, whatever the umask (F36). A share whose mount decides is left alone."""
    try:
        os.chmod(target, mode)  # noqa: PTH101 - descriptors too
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut. Network file systems that cannot are left alone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def write_npy(path: Path, array: NDArray[Any], *, overwrite: bool = False, mode: int = 0o600) -> None:
    """Publish an array of numbers as `.npy`, rows in C order. ValueError for Python objects (never pickled)."""
    if array.dtype.hasobject:
        raise ValueError("arrays of Python objects are never stored")
    import numpy as np
    from numpy.lib import format as npy

    rows = np.ascontiguousarray(array)
    header = io.BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(rows))
    with publish(path, len(header.getvalue()) + rows.nbytes, overwrite=overwrite, mode=mode) as file:
        file.write(header.getvalue())
        file.write(rows.data if rows.size else b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyPlane:
    """A `.npy` array read by rows with pread: `shape` (rows first: (H, W) or (H, W, C)), `dtype`.

    It holds no open file: a tile of thousands of frames would run out of them (F24).
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def at(cls, path: Path) -> Self:
        """The header is checked against the file's length before anything is allocated; pickles are never read (M10).

        Raises OSError if it cannot be opened, Incomplete if it is not a whole, plain array of numbers.
        """
        with _opened(path) as descriptor:
            shape, dtype, offset = _npy_header(descriptor, path)
        return cls(path=path, shape=shape, dtype=dtype, offset=offset)

    def rows(self, first: int, last: int) -> NDArray[Any]:
        """A new array of rows first (inclusive) to last (exclusive); IndexError outside the array."""
        if not 0 <= first <= last <= self.shape[0]:
            raise IndexError(f"rows {first} to {last} of {self.shape[0]}")
        import numpy as np

        out = np.empty((last - first, *self.shape[1:]), dtype=self.dtype)
        with _opened(self.path) as descriptor:
            pread_into(descriptor, out, self.offset + first * self.dtype.itemsize * math.prod(self.shape[1:]))
        return out


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def pread_into(descriptor: int, out: NDArray[Any], offset: int) -> None:
    """Fill a C-contiguous array from a file at `offset` (raw bytes); Incomplete if the file ends before it is full."""
    view = memoryview(out.reshape(-1).view("u1").data) if out.size else memoryview(b"")
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise Incomplete(Reason(rule="file.short", value=offset + done, message="the file ended while it was read"))
        done += count


def _npy_header(descriptor: int, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    from numpy.lib import format as npy

    start = io.BytesIO(os.pread(descriptor, MAX_NPY_HEADER, 0))
    try:
        version = npy.read_magic(start)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(start, max_header_size=MAX_NPY_HEADER)
    except (ValueError, KeyError, TypeError) as error:
        raise _not_npy("npy.header", path, str(error)) from None
    if fortran or dtype.hasobject or not shape or min(shape) < 0:
        raise _not_npy("npy.kind", path, f"shape {shape}, dtype {dtype}, fortran {fortran}")
    expected = start.tell() + dtype.itemsize * math.prod(shape)
    size = os.fstat(descriptor).st_size
    if size != expected:
        message = f"{path.name}: {size} bytes where the header asks for {expected}"
        raise Incomplete(Reason(rule="npy.size", value=size, threshold=expected, message=message))
    return shape, dtype, start.tell()


def _not_npy(rule: str, path: Path, what: str) -> Incomplete:
    return Incomplete(Reason(rule=rule, value=what[:200], message=f"{path.name} is not a plain array: {what[:200]}"))
