"""The refcount table on real files: SPEC section 3."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zemosaicd.core.refs import keys, refs
from zemosaicd.shell.caches import CacheTable


class Lines:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:
        self.lines.append(("debug", event, fields))

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, fields))

    def of(self, level: str) -> list[tuple[str, dict[str, Any]]]:
        return [(event, fields) for lvl, event, fields in self.lines if lvl == level]


@pytest.fixture
def log() -> Lines:
    return Lines()


def caches(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).write_bytes(b"x")
    return [str(folder / name) for name in names]


def table(folder: Path, users: dict[int, list[str]], log: Lines, **options: Any) -> CacheTable:
    options = {"retention": "per_tile", "strict": True} | options
    return CacheTable(users, root=str(folder), log=log, **options)


def test_R4_a_shared_cache_outlives_its_first_tile(tmp_path: Path, log: Lines) -> None:
    """It goes with its last tile, and a private one with its own."""
    a, b = caches(tmp_path, "a.npy", "b.npy")

    async def body() -> None:
        counted = table(tmp_path, {1: [a, b], 2: [b]}, log)
        await counted.start()
        await counted.release(1)
        assert (Path(a).exists(), Path(b).exists(), counted.count(b)) == (False, True, 1)
        await counted.release(2)
        assert not Path(b).exists()

    asyncio.run(body())


def test_R2_a_repeated_frame_counts_once(tmp_path: Path, log: Lines) -> None:
    """A group that repeats a frame under two spellings of its path holds one reference."""
    (a,) = caches(tmp_path, "a.npy")
    counted = table(tmp_path, {1: [a, f"{tmp_path}/./a.npy", f"{tmp_path}//a.npy"]}, log)
    assert (counted.tracked, counted.count(a)) == (1, 1)


@pytest.mark.parametrize("retention", ["run_end", "keep"])
def test_R1_other_retentions_behave_as_if_there_were_no_table(tmp_path: Path, log: Lines, retention: str) -> None:
    """Nothing is removed, nothing is logged, and nothing is refused."""
    (a,) = caches(tmp_path, "a.npy")

    async def body() -> None:
        counted = table(tmp_path, {1: [a]}, log, retention=retention)
        await counted.start()
        assert await counted.register(2, ["/elsewhere/b.npy"]) == frozenset()
        await counted.release(1)
        await counted.release(99)
        await counted.finish()

    asyncio.run(body())
    assert Path(a).exists()
    assert log.lines == []


def test_R3_a_late_tile_keeps_the_files_of_the_one_it_came_from(tmp_path: Path, log: Lines) -> None:
    """A split registers its parts before the parent is released: the files stay for them."""
    a, b = caches(tmp_path, "a.npy", "b.npy")

    async def body() -> None:
        counted = table(tmp_path, {1: [a, b]}, log)
        await counted.start()
        assert await counted.register(2, [b]) == frozenset()
        await counted.release(1)
        assert (Path(a).exists(), Path(b).exists()) == (False, True)

    asyncio.run(body())


def test_P10_a_late_tile_is_told_which_of_its_files_are_gone(tmp_path: Path, log: Lines) -> None:
    """Registering on a removed file names it, and counts it again: to be prepared anew, not turned into a hole."""
    a, b = caches(tmp_path, "a.npy", "b.npy")

    async def body() -> None:
        counted = table(tmp_path, {1: [a], 2: [b]}, log)
        await counted.start()
        await counted.release(1)
        assert await counted.register(3, [a, b]) == {a}
        assert (counted.tracked, counted.removed, counted.count(a), counted.count(b)) == (2, 0, 1, 2)

    asyncio.run(body())


def test_R5_releasing_twice_changes_nothing(tmp_path: Path, log: Lines) -> None:
    """A tile gives its references back once, however often it is said to have ended."""
    (a,) = caches(tmp_path, "a.npy")

    async def body() -> None:
        counted = table(tmp_path, {1: [a], 2: [a]}, log)
        await counted.start()
        await counted.release(1)
        await counted.release(1)
        assert (Path(a).exists(), counted.count(a)) == (True, 1)

    asyncio.run(body())


def test_R5_a_release_below_zero_asserts_under_test(tmp_path: Path, log: Lines) -> None:
    """A tile that was never registered has nothing to give back."""
    with pytest.raises(AssertionError, match="tile 9"):
        asyncio.run(table(tmp_path, {}, log).release(9))


def test_R5_a_release_below_zero_is_one_debug_line_in_production(tmp_path: Path, log: Lines) -> None:
    """Not strict: nothing happens, and it is said once."""
    (a,) = caches(tmp_path, "a.npy")

    async def body() -> None:
        counted = table(tmp_path, {1: [a]}, log, strict=False)
        await counted.release(9)
        await counted.release(9)
        assert counted.count(a) == 1

    asyncio.run(body())
    assert log.of("debug") == [("phase3_refcount_underflow", {"tile_id": 9})]


def test_R5_missing_and_locked_files_are_debug_and_the_run_goes_on(tmp_path: Path, log: Lines) -> None:
    """A file that went by itself counts as removed; one that cannot be unlinked stays, and remains."""
    a, c = caches(tmp_path, "a.npy", "c.npy")
    locked = tmp_path / "locked.npy"
    locked.mkdir()  # unlink refuses it, whoever runs this test

    async def body() -> None:
        counted = table(tmp_path, {1: [a, str(locked), c]}, log)
        Path(a).unlink()
        await counted.start()
        await counted.release(1)
        await counted.finish()

    asyncio.run(body())
    assert not Path(c).exists()
    assert {event for event, _ in log.of("debug")} == {"phase3_refcount_unlink"}
    assert log.of("info")[-1] == ("phase3_refcount_complete", {"removed": 2, "remaining": 1})


def test_R6_the_lines_of_a_run(tmp_path: Path, log: Lines) -> None:
    """Start, shared, end at INFO with their numbers, each once; single files at DEBUG only."""
    a, b, c = caches(tmp_path, "a.npy", "b.npy", "c.npy")

    async def body() -> None:
        counted = table(tmp_path, {1: [a, b], 2: [b, c], 3: [c]}, log)
        await counted.start()
        for tile in (1, 2):
            await counted.release(tile)
        await counted.finish()
        await counted.finish()

    asyncio.run(body())
    assert log.of("info") == [
        ("phase3_refcount_enabled", {"tracked": 3}),
        ("phase3_shared_cache", {"shared": 2, "tracked": 3}),
        ("phase3_refcount_complete", {"removed": 2, "remaining": 1}),
    ]


def test_R6_zero_files_still_print_the_start_line(tmp_path: Path, log: Lines) -> None:
    """A session without caches says that it tracks none, and nothing of shared ones."""
    asyncio.run(table(tmp_path, {}, log).start())
    assert log.of("info") == [("phase3_refcount_enabled", {"tracked": 0})]


def test_R9_a_restart_applies_the_releases_that_the_journal_knows(tmp_path: Path, log: Lines) -> None:
    """Killed between journal and unlink: the new table removes what no unfinished tile needs, and nothing else."""
    a, b, c = caches(tmp_path, "a.npy", "b.npy", "c.npy")

    async def body() -> None:
        counted = table(tmp_path, {1: [a, b], 2: [b, c], 3: [c]}, log, finished={1, 7})
        await counted.start()
        assert [Path(p).exists() for p in (a, b, c)] == [False, True, True]
        await counted.release(1)
        assert (counted.removed, counted.remaining) == (1, 2)

    asyncio.run(body())


def test_P9_a_plan_that_names_a_users_frame_is_refused(tmp_path: Path, log: Lines) -> None:
    """Only what lies in the session's cache folder is ever tracked, and so ever unlinked."""
    with pytest.raises(ValueError, match="outside"):
        table(tmp_path / "caches", {1: [str(tmp_path / "caches/../Light_001.npy")]}, log)


def test_R4_a_cancelled_release_is_finished(tmp_path: Path, log: Lines) -> None:
    """Cancelling whoever waits for a release does not leave a file half-way between kept and gone."""
    (a,) = caches(tmp_path, "a.npy")

    async def body() -> None:
        counted = table(tmp_path, {1: [a]}, log)
        await counted.start()
        task = asyncio.create_task(counted.release(1))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await counted.release(1)  # waits for the lock, so for the first one's end
        assert (Path(a).exists(), counted.removed) == (False, 1)

    asyncio.run(body())


# --- R10: the hole, with and without the table


class Naive:
    """The deleter that the bug came from: a finished tile unlinks its own caches."""

    def __init__(self, users: dict[int, list[str]]) -> None:
        self._users = users

    async def release(self, tile: int) -> None:
        for path in self._users[tile]:
            Path(path).unlink(missing_ok=True)


async def stack_all(users: dict[int, list[str]], deleter: Naive | CacheTable, log: Lines) -> int:
    """A Phase 3 in small, one tile after the other; returns num_master_tiles."""
    made = 0
    for tile, paths in users.items():
        found = 0
        for path in paths:
            if Path(path).exists():
                found += 1
            else:
                log.warning("mastertile_warn_cache_file_missing", tile_id=tile, cache_path=path)
        if found:
            made += 1
        else:
            log.warning("mastertile_error_no_valid_images_from_cache", tile_id=tile)
            log.warning("run_warn_phase3_master_tile_creation_failed_thread", stack_num=tile)
        await deleter.release(tile)
    return made


def test_R10_naive_deletion_makes_the_hole_and_the_table_does_not(tmp_path: Path) -> None:
    """One plan, two runs: the naive one logs the three keys and loses a tile; the counted one does neither."""
    names = ("a.npy", "b.npy", "c.npy")
    paths = caches(tmp_path, *names)
    users = {1: paths[:2], 2: paths[1:2], 3: paths[1:]}

    naive = Lines()
    assert asyncio.run(stack_all(users, Naive(users), naive)) == 2
    assert {event for event, _ in naive.of("warning")} == {
        "mastertile_warn_cache_file_missing",
        "mastertile_error_no_valid_images_from_cache",
        "run_warn_phase3_master_tile_creation_failed_thread",
    }

    caches(tmp_path, *names)
    counted = Lines()
    assert asyncio.run(stack_all(users, table(tmp_path, users, counted), counted)) == len(users)
    assert counted.of("warning") == []
    assert list(tmp_path.iterdir()) == []


# --- R7: every interleaving


class Interleavings(RuleBasedStateMachine):
    """Random shared plans; tiles start, end, are tried again, split, and the daemon is killed, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.holder = tempfile.TemporaryDirectory(prefix="caches-")
        self.folder = Path(self.holder.name)

    @initialize(plan=st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=6))
    def begin(self, plan: list[set[int]]) -> None:
        names = [f"{index}.npy" for index in range(8)]
        every = caches(self.folder, *names)
        self.users = {tile: [every[i] for i in sorted(wanted)] for tile, wanted in enumerate(plan)}
        self.running: set[int] = set()
        self.finished: set[int] = set()
        self.rebuild()

    def rebuild(self) -> None:
        self.table = table(self.folder, self.users, Lines(), finished=frozenset(self.finished))
        self.runner.run(self.table.start())

    def pick(self, data: st.DataObject, tiles: set[int]) -> int:
        return data.draw(st.sampled_from(sorted(tiles)))

    def pending(self) -> set[int]:
        return self.users.keys() - self.running - self.finished

    @precondition(lambda self: self.pending())
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.running.add(self.pick(data, self.pending()))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Well or badly: for the caches it is the same."""
        tile = self.pick(data, self.running)
        self.running.remove(tile)
        self.finished.add(tile)
        self.runner.run(self.table.release(tile))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail_and_try_again(self, data: st.DataObject) -> None:
        self.running.remove(self.pick(data, self.running))

    @precondition(lambda self: self.running and len(self.users) < 12)
    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        tile = self.pick(data, self.running)
        part = data.draw(st.lists(st.sampled_from(self.users[tile]), min_size=1))
        late = len(self.users)
        self.users[late] = part
        assert self.runner.run(self.table.register(late, part)) == frozenset()
        self.end(data)

    @precondition(lambda self: len(self.running) > 1)
    @rule()
    def end_all_at_once(self) -> None:
        async def together() -> None:
            await asyncio.gather(*(self.table.release(tile) for tile in self.running))

        self.finished |= self.running
        self.runner.run(together())
        self.running.clear()

    @rule()
    def crash(self) -> None:
        self.running.clear()
        self.rebuild()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def crash_between_journal_and_release(self, data: st.DataObject) -> None:
        self.finished.add(self.pick(data, self.running))
        self.crash()

    @invariant()
    def R7_no_tile_lacks_a_file(self) -> None:
        if not hasattr(self, "table"):
            return
        for tile in self.users.keys() - self.finished:
            assert all(Path(path).exists() for path in self.users[tile])

    @invariant()
    def R7_the_table_is_the_fold_and_its_numbers_add_up(self) -> None:
        if not hasattr(self, "table"):
            return
        counts = refs({tile: keys(paths) for tile, paths in self.users.items()}, self.finished)
        assert {path: self.table.count(path) for path in counts} == counts
        assert self.table.removed + self.table.remaining == self.table.tracked == len(counts)
        assert {path for path in counts if Path(path).exists()} == {path for path, count in counts.items() if count}

    def teardown(self) -> None:
        self.runner.close()
        self.holder.cleanup()


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=200, stateful_step_count=25)
