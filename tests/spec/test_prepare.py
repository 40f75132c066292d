"""Phases 0 and 1 in a worker: what becomes of one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import hostile, scenes, values
from zemosaicd.model import PreparedFrame, Rejected
from zemosaicd.work.fitsblocks import Budget
from zemosaicd.work.jobs import PrepareFrame, ReadHeaders, RebuildCache

W, H = 160, 120
STARS = [(40.0, 30.0, 20000.0), (100.5, 80.2, 30000.0), (60.3, 90.7, 15000.0)]


def raw(bayer: str = "", seed: int = 1) -> scenes.Array:
    """uint16 pixels of a frame of three stars."""
    base = values.wcs_at(10.0, 20.0, width=W, height=H)
    light = scenes.render(base, W, H, base, STARS, bayer)
    return np.clip(light + np.random.default_rng(seed).normal(0, 12, (H, W)), 0, 65535).astype(np.uint16)


def prepare(folder: Path, pixels: scenes.Array, **cards: Any) -> PreparedFrame:
    """Phase 1 of these pixels."""
    path = folder / "Light_1.fits"
    path.write_bytes(hostile.fits(pixels, EXPTIME=10.0, **cards))
    return PrepareFrame(path=str(path), cache=str(folder / "cache.npy"), budget=Budget()).run()


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float32, np.int32])
def test_a_cache_holds_the_frames_own_pixels(tmp_path: Path, kind: type) -> None:
    """Rows as in the file, mono or CFA, in the file's own 16 bits where it has them; nothing is demosaiced or flipped
    (C7: a function of the bytes).
    """
    for bayer in ("", "GRBG"):
        pixels = raw(bayer).astype(kind)
        cards: dict[str, Any] = {"BAYERPAT": bayer} if bayer else {}
        made = prepare(tmp_path, pixels, **cards)
        cache = np.load(tmp_path / "cache.npy")
        stored = kind if kind in (np.uint16, np.int16) else np.float32
        assert (cache.shape, cache.dtype, made.facts.bayer) == ((H, W), stored, bayer)
        assert (cache != pixels).mean() < 0.002  # hot pixels at most
        assert len(made.measures.sky_adu) == len(made.measures.noise_adu) == (3 if bayer else 1)
        assert made.measures.sky_adu[0] == pytest.approx(scenes.SKY, abs=3)
        assert made.measures.noise_adu[0] == pytest.approx(12, rel=0.1)


def test_scaled_integers_are_cached_as_what_they_mean(tmp_path: Path) -> None:
    """BSCALE makes fractions of whole numbers: the cache is float32 then."""
    made = prepare(tmp_path, raw().astype(np.int32), BSCALE=0.5, BZERO=100.0)
    cache = np.load(tmp_path / "cache.npy")
    assert cache.dtype == np.float32
    assert (cache == raw() * np.float32(0.5) + 100).mean() > 0.998
    assert made.measures.sky_adu[0] == pytest.approx(scenes.SKY / 2 + 100, abs=3)


def test_colour_planes_become_channels(tmp_path: Path) -> None:
    """(3, H, W) in the file is (H, W, 3) in the cache, measured plane by plane."""
    planes = np.stack([raw(seed=i) + 100 * i for i in range(3)]).astype(np.uint16)
    made = prepare(tmp_path, planes)
    np.testing.assert_array_equal(np.load(tmp_path / "cache.npy"), np.moveaxis(planes, 0, 2))
    assert made.measures.sky_adu == pytest.approx((1000, 1100, 1200), abs=4)


@pytest.mark.parametrize("dead", [None, 0, 2])
def test_F30_a_constant_plane_is_refused(tmp_path: Path, dead: int | None) -> None:
    """A cover left on, or one plane of a colour frame without data: no noise would be infinite weight."""
    planes = np.stack([raw(seed=i) for i in range(3)])
    pixels = np.full((H, W), 500, np.uint16) if dead is None else planes
    if dead is not None:
        planes[dead] = 500
    with pytest.raises(Rejected) as error:
        prepare(tmp_path, pixels)
    assert (error.value.reason.rule, error.value.reason.value, error.value.reason.threshold) == ("no_sky", 0.0, 0.0)
    assert not (tmp_path / "cache.npy").exists()


def test_C7_the_same_bytes_give_the_same_frame_whatever_the_name(tmp_path: Path) -> None:
    """Id, measures and stars are functions of the pixels; the path is not (F27)."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (prepare(tmp_path / name, raw("GRBG"), BAYERPAT="GRBG") for name in "ab")
    assert (first.frame, first.stars, first.measures) == (second.frame, second.stars, second.measures)
    assert first.path != second.path
    assert prepare(tmp_path, raw("GRBG", seed=2), BAYERPAT="GRBG").frame != first.frame


def test_saturated_pixels_are_counted_as_they_were_read(tmp_path: Path) -> None:
    """Single hot pixels at full scale are repaired in the cache, and still counted."""
    pixels = raw()
    pixels[::20, ::20] = 65535
    made = prepare(tmp_path, pixels)
    assert made.measures.saturated_fraction == (pixels == 65535).mean()
    assert made.measures.hot_pixels >= (pixels == 65535).sum() > 40
    assert np.load(tmp_path / "cache.npy").max() < 65000


def test_an_unsolved_frame_says_why(tmp_path: Path) -> None:
    """Three stars are not enough: the frame is prepared all the same, with the rule and what was measured."""
    made = prepare(tmp_path, raw(), RA=10.0, DEC=20.0, PIXSCALE=2.0)
    assert made.solution is None
    assert made.unsolved is not None
    assert made.unsolved.rule


def test_P10_a_cache_is_rebuilt_bit_for_bit(tmp_path: Path) -> None:
    """From the user's frame, if it still is the frame that was measured; a changed one is refused."""
    made = prepare(tmp_path, raw("GRBG"), BAYERPAT="GRBG")
    cache, path = tmp_path / "cache.npy", Path(made.path)
    before = cache.read_bytes()
    cache.unlink()
    job = RebuildCache(path=made.path, cache=made.cache, frame=made.frame, budget=Budget())
    job.run()
    assert cache.read_bytes() == before
    cache.unlink()
    path.write_bytes(hostile.fits(raw("GRBG", seed=9), EXPTIME=10.0, BAYERPAT="GRBG"))
    with pytest.raises(Rejected) as error:
        job.run()
    assert (error.value.reason.rule, error.value.reason.threshold) == ("frame_changed", made.frame)
    assert not cache.exists()


def test_headers_are_read_file_by_file(tmp_path: Path) -> None:
    """Phase 0: a good frame, a half one and one that is gone: facts, look again, look again; never an exception."""
    good, half = tmp_path / "Light_1.fits", tmp_path / "Light_2.fits"
    data = hostile.fits(raw(), EXPTIME=10.0)
    good.write_bytes(data)
    half.write_bytes(data[: len(data) // 2])
    names = (str(good), str(half), os.fspath(tmp_path / "gone.fits"))
    answers = ReadHeaders(files=tuple((n, values.fingerprint()) for n in names), budget=Budget()).run()
    assert [a.path for a in answers] == list(names)
    assert [a.facts is not None for a in answers] == [True, False, False]
    assert [a.incomplete for a in answers] == [False, True, True]
    assert all(a.reason is not None and a.reason.rule for a in answers[1:])
