"""Files are there whole or not at all (section 9), and `.npy` planes are read by rows without a map (M4, M5, M10)."""

from __future__ import annotations

import io
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zemosaicd.model import Incomplete
from zemosaicd.work.store import NpyPlane, publish, write_npy

ROOT = Path(__file__).parents[2]


def test_published_file_appears_whole_and_alone(tmp_path: Path) -> None:
    """While it is written there is no file of that name; afterwards there is, with the stated mode, and no other."""
    final = tmp_path / "out.bin"
    with publish(final, 1000, mode=0o640) as file:
        file.write(b"abc")
        assert not final.exists()
        assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    assert final.read_bytes() == b"abc"
    assert stat.S_IMODE(final.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [final]


def test_error_leaves_nothing(tmp_path: Path) -> None:
    """An exception inside the block removes the temporary file and is passed on."""
    with pytest.raises(TypeError), publish(tmp_path / "out.bin") as file:
        file.writelines([b"abc", None])
    assert list(tmp_path.iterdir()) == []


def test_F26_existing_file_is_not_overwritten_in_silence(tmp_path: Path) -> None:
    """A name that is taken, by a file or a dangling link, is refused unless overwriting is asked for."""
    final = tmp_path / "out.bin"
    final.write_bytes(b"old")
    with pytest.raises(FileExistsError), publish(final) as file:
        file.write(b"new")
    assert final.read_bytes() == b"old"
    with publish(final, overwrite=True) as file:
        file.write(b"new")
    assert final.read_bytes() == b"new"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError), publish(tmp_path / "link"):
        pass


def test_F26_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """A file that someone else made under the name while ours was written is kept, and ours is not."""
    final = tmp_path / "out.bin"
    with pytest.raises(FileExistsError), publish(final):
        final.write_bytes(b"theirs")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"theirs"]


def test_F8_no_space_is_said_before_the_work(tmp_path: Path) -> None:
    """Space is reserved first; where it cannot be had, an OSError comes before the block runs, and nothing is left."""
    code = f"""
import resource
from pathlib import Path
from zemosaicd.work.store import publish
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with publish(Path({str(tmp_path)!r}) / "big", 1 << 24):
        print("ran")
except OSError as error:
    print("refused", error.errno)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.startswith("refused")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (1, 1), (0, 4)])
@pytest.mark.parametrize("dtype", ["u2", "f4", ">f4", "?"])
def test_npy_is_read_back_by_rows(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    """What is written is what numpy and NpyPlane read, in any slice of rows."""
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    path = tmp_path / "a.npy"
    write_npy(path, array)
    assert np.array_equal(np.load(path), array)
    plane = NpyPlane.at(path)
    assert (plane.shape, plane.dtype) == (shape, np.dtype(dtype))
    for first in range(shape[0] + 1):
        assert np.array_equal(plane.rows(first, shape[0]), array[first:])
    with pytest.raises(IndexError):
        plane.rows(0, shape[0] + 1)


def test_npy_of_a_strided_view_is_written_in_c_order(tmp_path: Path) -> None:
    """Transposed and sliced arrays are stored as they read."""
    array = np.arange(24.0).reshape(4, 6).T[::2]
    write_npy(tmp_path / "a.npy", array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)


def test_M10_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    """Python objects never cross the disk."""
    objects = np.array([{}, None], dtype=object)
    with pytest.raises(ValueError):
        write_npy(tmp_path / "a.npy", objects)
    np.save(tmp_path / "b.npy", objects, allow_pickle=True)
    with pytest.raises(Incomplete):
        NpyPlane.at(tmp_path / "b.npy")


def test_M10_header_is_held_against_the_length(tmp_path: Path) -> None:
    """A header that claims more than the file has, or is cut or damaged, is refused without an allocation."""
    path = tmp_path / "a.npy"
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    whole = io.BytesIO()
    np.save(whole, np.ones((5, 5)))
    fortran = io.BytesIO()
    np.save(fortran, np.asfortranarray(np.ones((5, 5))))
    cut, damaged = whole.getvalue()[:-1], b"\x93NUMPY\x01\x00v\x00{'descr': bad" + bytes(100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for raw in (b"", b"\x93NUMPY", buffer.getvalue(), cut, damaged, fortran.getvalue(), whole.getvalue() + b"x"):
        path.write_bytes(raw)
        with pytest.raises(Incomplete):
            NpyPlane.at(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_M4_plane_that_shrinks_is_an_error_not_a_crash(tmp_path: Path) -> None:
    """A cache cut short under the reader raises Incomplete."""
    path = tmp_path / "a.npy"
    write_npy(path, np.ones((100, 100)))
    plane = NpyPlane.at(path)
    os.truncate(path, 4000)
    with pytest.raises(Incomplete):
        plane.rows(90, 100)


def test_F24_planes_hold_no_file_open(tmp_path: Path) -> None:
    """A tile of ten thousand frames needs no more descriptors than one of ten."""
    path = tmp_path / "a.npy"
    write_npy(path, np.arange(12).reshape(3, 4))
    before = len(list(Path("/proc/self/fd").iterdir()))
    planes = [NpyPlane.at(path) for _ in range(100)]
    assert all(plane.rows(2, 3).tolist() == [[8, 9, 10, 11]] for plane in planes)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
