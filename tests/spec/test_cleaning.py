"""What Phase 7 may remove: the decision alone (SPEC section 4)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zemosaicd.core.cleaning import CleanupPolicy, FailedSession, doomed, expired
from zemosaicd.model import Artefact, ArtefactKind

RUNTIME = "/state/sessions/n/runtime"
MEMMAPS = "/scratch/memmaps"
ON = CleanupPolicy()
OFF = CleanupPolicy(cleanup_temp_artifacts=False)
FLAGS = [(use, clean) for use in (True, False) for clean in (True, False)]

CACHE = Artefact(path="/state/sessions/n/caches/a.npy", kind=ArtefactKind.CACHE)
TILES = [
    Artefact(path=f"/state/sessions/n/master_tiles/{kind.value}_1.fits", kind=kind)
    for kind in (ArtefactKind.MASTER_TILE, ArtefactKind.SUPER_TILE, ArtefactKind.MEGA_TILE)
]
SDS = Artefact(path=f"{RUNTIME}/sds_tiles_1", kind=ArtefactKind.SDS_TILES, directory=True)
FIRST = Artefact(path=f"{RUNTIME}/mosaic_first_1", kind=ArtefactKind.MOSAIC_FIRST, directory=True)
WCS = Artefact(path="/out/n/global_mosaic_wcs.fits", kind=ArtefactKind.GLOBAL_WCS)
SCRATCH = Artefact(path=f"{RUNTIME}/plan.json", kind=ArtefactKind.SCRATCH)
MEMMAP = Artefact(path=f"{RUNTIME}/mosaic_10x20x3.dat", kind=ArtefactKind.COADD_MEMMAP)
OUTPUT = Artefact(path="/out/n/mosaic.fits", kind=ArtefactKind.OUTPUT)
LOG = Artefact(path="/state/logs/n.log", kind=ArtefactKind.LOG)
EVERYTHING = [CACHE, *TILES, SDS, FIRST, WCS, SCRATCH, MEMMAP, OUTPUT, LOG]


def goes(artefact: Artefact, policy: CleanupPolicy) -> bool:
    remove, keep = doomed([artefact], policy)
    assert len(remove) + len(keep) == 1
    return bool(remove)


def test_P1_absent_or_null_means_on() -> None:
    """None, the default, and true are the same policy."""
    unset = CleanupPolicy(cleanup_temp_artifacts=None)
    assert doomed(EVERYTHING, unset) == doomed(EVERYTHING, ON) == doomed(EVERYTHING, CleanupPolicy())


def test_P2_off_keeps_everything_but_the_caches() -> None:
    """The switch off: nothing of P3 to P7 goes, the global WCS included; the caches follow their own key."""
    remove, keep = doomed(EVERYTHING, OFF)
    assert remove == (CACHE,)
    assert set(keep) == set(EVERYTHING) - {CACHE}


def test_P2_on_removes_every_temporary_kind() -> None:
    """On, all defaults: all goes but outputs and logs; an accumulator in the runtime folder is no exception."""
    remove, keep = doomed(EVERYTHING, ON)
    assert set(keep) == {OUTPUT, LOG}
    assert len(remove) == len(EVERYTHING) - 2


@pytest.mark.parametrize(("use", "clean"), FLAGS)
@pytest.mark.parametrize("folder", ["", MEMMAPS])
@pytest.mark.parametrize("on", [True, False])
def test_P3_accumulators_go_only_with_switch_and_flags(use: bool, clean: bool, folder: str, on: bool) -> None:
    """In their own folder or in the runtime folder: with either flag false, or the switch off, they stay."""
    policy = CleanupPolicy(
        cleanup_temp_artifacts=on, coadd_use_memmap=use, coadd_cleanup_memmap=clean, coadd_memmap_dir=folder
    )
    for name in ("mosaic_10x20x3.dat", "coverage_10x20.dat", "zemosaic_sum.dat"):
        memmap = Artefact(path=f"{folder or RUNTIME}/{name}", kind=ArtefactKind.COADD_MEMMAP, device=1, inode=2)
        assert goes(memmap, policy) is (on and use and clean)


@pytest.mark.parametrize(("use", "clean"), FLAGS)
def test_P3_mosaic_first_in_the_memmap_folder_follows_its_flags(use: bool, clean: bool) -> None:
    """Directories mosaic_first_* directly in coadd_memmap_dir, and its dat files of any kind, need all three flags."""
    policy = CleanupPolicy(coadd_use_memmap=use, coadd_cleanup_memmap=clean, coadd_memmap_dir=MEMMAPS + "/")
    first = replace(FIRST, path=f"{MEMMAPS}/mosaic_first_1")
    scratch = replace(SCRATCH, path=f"{MEMMAPS}//zemosaic_x.dat")
    assert goes(first, policy) is goes(scratch, policy) is (use and clean)
    assert goes(replace(SCRATCH, path=f"{MEMMAPS}/other.tmp"), policy)


@pytest.mark.parametrize(("use", "clean"), FLAGS)
def test_P4_mosaic_first_in_the_runtime_folder_goes_whatever_the_memmap_flags(use: bool, clean: bool) -> None:
    """Memmap need not be on."""
    policy = CleanupPolicy(coadd_use_memmap=use, coadd_cleanup_memmap=clean, coadd_memmap_dir=MEMMAPS)
    assert goes(FIRST, policy)
    assert not goes(FIRST, replace(policy, cleanup_temp_artifacts=False))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("global_mosaic_wcs.fits", True),
        ("my_global_mosaic_wcs_v2.json", True),
        ("global_mosaic_wcs", True),
        ("wcs_of_choice.fits", False),
        ("global_wcs.fits", False),
    ],
)
def test_P5_only_the_known_name_of_a_global_wcs_goes(name: str, ours: bool) -> None:
    """Any extension; memmap or not; a WCS under any other name is the user's, though we wrote it."""
    wcs = replace(WCS, path=f"/out/global_mosaic_wcs_folder/{name}")
    assert goes(wcs, replace(ON, coadd_use_memmap=False)) is ours
    assert not goes(wcs, OFF)


@pytest.mark.parametrize("two_pass", [True, False])
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.kind.value)
def test_P6_two_pass_has_no_say_over_tiles(tile: Artefact, two_pass: bool) -> None:
    """On: master, super and mega tiles go even with two_pass; off: they stay even without."""
    assert goes(tile, replace(ON, two_pass_enabled=two_pass))
    assert not goes(tile, replace(OFF, two_pass_enabled=two_pass))


def test_P7_the_sds_folder_follows_the_switch() -> None:
    """On: it goes; off: it stays."""
    assert goes(SDS, ON)
    assert not goes(SDS, OFF)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize(("retention", "removed"), [("keep", False), ("run_end", True), ("per_tile", True)])
def test_P8_cache_retention_alone_decides_over_caches(on: bool, retention: str, removed: bool) -> None:
    """keep keeps and the others remove, whatever the switch says."""
    assert goes(CACHE, CleanupPolicy(cleanup_temp_artifacts=on, cache_retention=retention)) is removed


POLICIES = st.builds(
    CleanupPolicy,
    cleanup_temp_artifacts=st.sampled_from([True, False, None]),
    cache_retention=st.sampled_from(["per_tile", "run_end", "keep"]),
    coadd_use_memmap=st.booleans(),
    coadd_cleanup_memmap=st.booleans(),
    coadd_memmap_dir=st.sampled_from(["", MEMMAPS, "/out"]),
    two_pass_enabled=st.booleans(),
)
ARTEFACTS = st.builds(
    Artefact,
    path=st.builds(
        "/".join,
        st.tuples(
            st.sampled_from([RUNTIME, MEMMAPS, "/out"]),
            st.sampled_from(["mosaic_1.dat", "mosaic_first_1", "global_mosaic_wcs.fits", "mosaic.fits", "x.npy"]),
        ),
    ),
    kind=st.sampled_from(ArtefactKind),
    directory=st.booleans(),
)


@given(st.lists(ARTEFACTS, max_size=12), POLICIES)
def test_P9_outputs_and_logs_never_go_and_nothing_is_lost_or_invented(
    manifest: list[Artefact], policy: CleanupPolicy
) -> None:
    """Under every policy: the two halves are the manifest, and no output or log is in the first."""
    remove, keep = doomed(manifest, policy)
    assert sorted(map(repr, remove + keep)) == sorted(map(repr, manifest))
    assert all(line.kind not in (ArtefactKind.OUTPUT, ArtefactKind.LOG) for line in remove)


def failed(*facts: tuple[str, float, int]) -> list[FailedSession]:
    return [FailedSession(session=name, age_days=age, size_bytes=size * 10**9) for name, age, size in facts]


def test_P10_failed_sessions_are_kept_for_their_days() -> None:
    """Past `failed_keep_days` they are dropped, oldest first."""
    assert expired(failed(("a", 7.5, 1), ("b", 6.9, 1), ("c", 30, 1)), 7, 20) == ("c", "a")


def test_P10_failed_sessions_are_kept_within_their_gigabytes() -> None:
    """Over `failed_keep_gb` the oldest go until the rest fits."""
    assert expired(failed(("young", 1, 9), ("old", 3, 9), ("mid", 2, 9)), 7, 20) == ("old",)
    assert expired(failed(("huge", 1, 25)), 7, 20) == ("huge",)
    assert expired([], 7, 20) == ()


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 15)), max_size=8))
def test_P10_what_is_kept_fits_both_limits_and_nothing_younger_is_dropped(facts: list[tuple[float, int]]) -> None:
    """The kept ones are the youngest, are within days and size, and one more would break a limit."""
    sessions = failed(*((str(i), age, size) for i, (age, size) in enumerate(facts)))
    drop = expired(sessions, 7, 20)
    kept = [one for one in sessions if one.session not in drop]
    dropped = [one for one in sessions if one.session in drop]
    assert all(one.age_days <= 7 for one in kept)
    assert sum(one.size_bytes for one in kept) <= 20 * 10**9
    assert all(old.age_days >= young.age_days for old in dropped for young in kept)
