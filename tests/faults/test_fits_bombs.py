"""Files that lie (F16), files that are not whole (F6), files that change (F7), things that are not files (F17)."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests import hostile
from zemosaicd.core.headers import facts
from zemosaicd.model import Incomplete, Rejected
from zemosaicd.work.fitsblocks import Budget, Source, find_picture
from zemosaicd.work.fitsio import check_complete, read_frame, read_header

RSS_GROWTH_MIB = 64
SECONDS = 1.0  # the promise is 0.2 s; five times that is a fault even on a busy computer
NAMES = [*hostile.CORPUS, *hostile.SPARSE]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.stem: path for path in hostile.write_corpus(tmp_path_factory.mktemp("hostile"))}


def take_up(path: Path) -> None:
    """What is done with every file that arrives, in that order."""
    facts(read_header(path).cards, path.name)
    check_complete(path)
    read_frame(path)


def test_F16_corpus_is_large_enough() -> None:
    """There are at least 25 hostile files."""
    assert len(NAMES) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_F16_hostile_file_is_refused_quickly(name: str, corpus: dict[str, Path]) -> None:
    """Every hostile file is refused or held, with a rule, in bounded time and with nothing but our own exceptions."""
    started = time.perf_counter()
    with pytest.raises((Rejected, Incomplete)) as caught:
        take_up(corpus[name])
    assert time.perf_counter() - started < SECONDS
    assert caught.value.reason.rule
    assert len(str(caught.value.reason)) < 1000


def test_F16_whole_corpus_in_bounded_memory(corpus: dict[str, Path]) -> None:
    """One process reads the whole corpus and grows by no more than 64 MiB."""
    code = """
import resource, sys
from pathlib import Path
import numpy
from astropy.io import fits
from tests.faults.test_fits_bombs import take_up
from zemosaicd.model import Incomplete, Rejected
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for path in sys.argv[1:]:
    try:
        take_up(Path(path))
    except (Rejected, Incomplete):
        continue
    raise SystemExit(f"accepted {path}")
print(peak() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, corpus.values())],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= RSS_GROWTH_MIB


def test_F16_header_alone_allocates_nothing(tmp_path: Path) -> None:
    """A header that asks for what the budget allows, with no data behind it, is held before memory is taken."""
    path = tmp_path / "big.fits"
    path.write_bytes(hostile.primary(14_000, 14_000, bits=-64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Incomplete):
        read_frame(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_F6_every_truncation_is_held(packed: bool, tmp_path: Path) -> None:
    """Cut at any block, or in the middle of one, a file is held; only its final padding may be missing."""
    whole = hostile.fits(hostile.sky())
    data_end = hostile.BLOCK + 48 * 64 * 2
    path = tmp_path / "cut.fits"
    for length in [*range(0, len(whole), hostile.BLOCK), 10, 4000, data_end - 1]:
        path.write_bytes(gzip.compress(whole[:length]) if packed else whole[:length])
        with pytest.raises(Incomplete):
            check_complete(path)
        with pytest.raises(Incomplete):
            read_frame(path)
    for length in (data_end, data_end + 1, len(whole)):
        path.write_bytes(gzip.compress(whole[:length]) if packed else whole[:length])
        check_complete(path)
        assert np.array_equal(read_frame(path).pixels, hostile.sky())


def test_F6_every_truncation_of_a_gzip_file_is_held(tmp_path: Path) -> None:
    """A gzip stream must decode to its end and checksum."""
    whole = gzip.compress(hostile.fits(hostile.sky()))
    path = tmp_path / "cut.fits.gz"
    for length in [*range(1, len(whole), 101), *range(len(whole) - 12, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises((Incomplete, Rejected)):
            check_complete(path)
    path.write_bytes(whole)
    check_complete(path)


def test_F6_truncated_extension_is_held(tmp_path: Path) -> None:
    """The length is the sum over all HDUs, not that of the first."""
    cards = {"XTENSION": "IMAGE", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 100, "NAXIS2": 100, "PCOUNT": 0, "GCOUNT": 1}
    extension = hostile.header(*cards.items())
    whole = hostile.fits(hostile.sky()) + extension + b"\1" * 10_000
    path = tmp_path / "two.fits"
    path.write_bytes(whole)
    check_complete(path)
    for length in (len(whole) - 1, len(whole) - 5000, len(whole) - 10_000 - 80):
        path.write_bytes(whole[:length])
        with pytest.raises(Incomplete):
            check_complete(path)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("zeros", "held"), [(2879, False), (2880, True), (6144, True)])
def test_C2_zero_tail_of_integers_is_held(zeros: int, held: bool, packed: bool, tmp_path: Path) -> None:
    """Zero bytes over a block and 1 % of the data at the end mean that the copy has not come so far yet (M6)."""
    whole = bytearray(hostile.fits(hostile.sky(), padding=False))
    whole[len(whole) - zeros :] = bytes(zeros)
    path = tmp_path / "tail.fits"
    path.write_bytes(gzip.compress(whole) if packed else whole)
    if held:
        with pytest.raises(Incomplete) as caught:
            check_complete(path)
        assert caught.value.reason.rule == "fits.zero_tail"
    else:
        check_complete(path)


def test_C2_zero_tail_needs_one_percent(tmp_path: Path) -> None:
    """In a large picture one block of zeros at the end is not enough."""
    pixels = np.full((600, 600), 1000, dtype=np.uint16)
    whole = bytearray(hostile.fits(pixels, padding=False))
    whole[-2880:] = bytes(2880)
    path = tmp_path / "tail.fits"
    path.write_bytes(whole)
    check_complete(path)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_C2_zero_tail_of_floats_must_end_every_plane(packed: bool, tmp_path: Path) -> None:
    """A float picture with an empty last corner in one plane is whole; with one in every plane it is held."""
    pixels = np.ones((3, 60, 60), dtype=np.float32)
    pixels[2, 30:] = 0
    path = tmp_path / "float.fits"

    def put() -> None:
        path.write_bytes(gzip.compress(hostile.fits(pixels)) if packed else hostile.fits(pixels))

    put()
    check_complete(path)
    pixels[:, 30:] = 0
    put()
    with pytest.raises(Incomplete):
        check_complete(path)


def test_F7_file_that_changes_while_read_is_held(tmp_path: Path) -> None:
    """A file whose size, date or identity changed between its first and its last byte is not used."""
    path = tmp_path / "moving.fits"
    path.write_bytes(hostile.fits(hostile.sky()))
    with Source(path, Budget()) as source:
        find_picture(source)
        source.check_unchanged()
        os.utime(path, ns=(0, 0))
        with pytest.raises(Incomplete) as caught:
            source.check_unchanged()
    assert caught.value.reason.rule == "file.changed"


def test_F7_truncation_while_read_is_no_crash(tmp_path: Path) -> None:
    """A file that another process truncates and grows again and again is read or held; never a signal (M4)."""
    path = tmp_path / "shrinking.fits"
    whole = hostile.fits(hostile.sky(500, 500))
    path.write_bytes(whole)
    code = (
        "import os, sys, time\nfd = os.open(sys.argv[1], os.O_RDWR)\nwhole = os.pread(fd, 1 << 24, 0)\n"
        "while True: os.ftruncate(fd, 5000); os.pwrite(fd, whole, 0)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
        try:
            for _ in range(50):
                try:
                    read_frame(path)
                except (Incomplete, Rejected):
                    continue
        finally:
            writer.kill()


def test_F17_links_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    """A symbolic link is not followed, a pipe is not waited for, a folder or device is not a file."""
    target = tmp_path / "real.fits"
    target.write_bytes(hostile.fits(hostile.sky()))
    link, pipe = tmp_path / "link.fits", tmp_path / "pipe.fits"
    link.symlink_to(target)
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(Rejected) as caught:
            read_header(path)
        assert caught.value.reason.rule == "file.kind"


def test_F17_missing_file_is_held(tmp_path: Path) -> None:
    """A file that is gone, or not ours to read, is looked at again later."""
    with pytest.raises(Incomplete):
        read_header(tmp_path / "gone.fits")


def test_M9_gzip_is_known_by_its_magic_under_any_name(tmp_path: Path) -> None:
    """Plain names may hold gzip data, in several members and with zero padding behind."""
    whole = hostile.fits(hostile.sky())
    path = tmp_path / "plain.fits"
    path.write_bytes(gzip.compress(whole[:3000]) + gzip.compress(whole[3000:]) + bytes(600))
    check_complete(path)
    frame = read_frame(path)
    assert np.array_equal(frame.pixels, hostile.sky())
    path.write_bytes(gzip.compress(whole) + b"something else")
    with pytest.raises(Incomplete):
        check_complete(path)
    path.write_bytes(zlib.compress(whole))
    with pytest.raises(Rejected):
        check_complete(path)
