"""Tiles on disk, read by rows: within the budget, as they were when they were opened, and without many descriptors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaicd.model import Incomplete, Rejected
from zemosaicd.work.fitsblocks import Budget
from zemosaicd.work.tilefiles import ALPHA, SlidingRows, TileFile

H, W = 50, 40
CUBE = np.random.default_rng(1).normal(100, 5, (3, H, W)).astype(np.float32)


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    path = tmp_path / "tile.fits"
    fits.writeto(path, CUBE)
    return path


def descriptors() -> set[str]:
    """What this process holds open, by what it is."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(link.readlink()))
        except FileNotFoundError:
            continue
    return found


def test_rows_are_those_of_the_file(tile: Path, tmp_path: Path) -> None:
    """Any range of rows, all channels, native float32; IndexError outside."""
    with TileFile(tile, Budget(), tmp_path) as file:
        assert file.shape == (3, H, W)
        np.testing.assert_array_equal(file.rows(7, 31), CUBE[:, 7:31])
        assert file.rows(0, 1).dtype == np.float32
        with pytest.raises(IndexError):
            file.rows(40, H + 1)


def test_a_tile_holds_no_descriptor_between_bands(tile: Path, tmp_path: Path) -> None:
    """Hundreds of tiles may wait: a file is open only from its first rows to its release."""
    with TileFile(tile, Budget(), tmp_path) as file:
        assert str(tile) not in descriptors()
        file.rows(0, 5)
        assert str(tile) in descriptors()
        file.release()
        assert str(tile) not in descriptors()
        np.testing.assert_array_equal(file.rows(3, 9), CUBE[:, 3:9])


def test_F7_a_tile_that_changes_meanwhile_is_not_mixed(tile: Path, tmp_path: Path) -> None:
    """Another file under the same name is noticed when it is opened again."""
    with TileFile(tile, Budget(), tmp_path) as file:
        file.rows(0, 5)
        file.release()
        fits.writeto(tile, CUBE + 1, overwrite=True)
        with pytest.raises(Incomplete) as caught:
            file.rows(0, 5)
    assert caught.value.reason.rule == "file.changed"


def test_F16_a_header_that_asks_for_too_much_is_refused_unread(tile: Path, tmp_path: Path) -> None:
    """The budget holds for tiles as for frames."""
    with pytest.raises(Rejected) as caught:
        TileFile(tile, Budget(max_pixels=1000), tmp_path)
    assert caught.value.reason.rule == "fits.pixels"


def test_a_tile_that_is_cut_short_is_refused(tile: Path, tmp_path: Path) -> None:
    """Before anything is made of it."""
    tile.write_bytes(tile.read_bytes()[:-8000])
    with pytest.raises(Incomplete):
        TileFile(tile, Budget(), tmp_path)


def test_what_is_put_aside_leaves_no_file(tile: Path, tmp_path: Path) -> None:
    """A feather that was worked out is read back as the tile's own, and nothing of it lies in the folder."""
    before = set(tmp_path.iterdir())
    alpha = np.random.default_rng(2).uniform(0, 1, (H, W)).astype(np.float32)
    with TileFile(tile, Budget(), tmp_path) as file:
        assert not file.has(ALPHA)
        for first in range(0, H, 20):
            file.keep_alpha(first, alpha[first : first + 20])
        assert file.has(ALPHA)
        np.testing.assert_array_equal(file.rows(11, 43, ALPHA)[0], alpha[11:43])
        assert set(tmp_path.iterdir()) == before
    assert set(tmp_path.iterdir()) == before


def test_sliding_rows_are_the_same_rows(tile: Path, tmp_path: Path) -> None:
    """Bands that go down, up, overlap, leap or repeat: always the rows that were asked for."""
    with TileFile(tile, Budget(), tmp_path) as file:
        rows = SlidingRows(file)
        for first, last in ((0, 10), (5, 20), (5, 20), (18, 22), (40, 50), (30, 45), (0, 50), (12, 13)):
            np.testing.assert_array_equal(rows.get(first, last), CUBE[:, first:last])
