"""Reference counts as a pure fold over (plan, finished tiles)."""

from __future__ import annotations

from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from zemosaicd.core.refs import keys, refs, shared

PATHS = st.sampled_from([f"/c/{i}.npy" for i in range(6)])
USERS = st.dictionaries(st.integers(0, 5), st.frozensets(PATHS), max_size=6)
FINISHED = st.sets(st.integers(0, 6))


def test_R2_a_path_is_counted_under_its_normal_name_and_once_a_tile() -> None:
    """Repeats, dots and double slashes are one file; a Path counts as its text."""
    assert keys(["/c/a.npy", "/c//a.npy", "/c/./x/../a.npy", PurePosixPath("/c/b.npy")]) == {"/c/a.npy", "/c/b.npy"}


def test_R4_a_path_may_go_when_its_last_tile_has_ended() -> None:
    """Two tiles share a file: it stays after the first, and may go after the second."""
    users = {1: frozenset({"a", "b"}), 2: frozenset({"b"})}
    assert refs(users, set()) == {"a": 1, "b": 2}
    assert refs(users, {1}) == {"a": 0, "b": 1}
    assert refs(users, {1, 2}) == {"a": 0, "b": 0}
    assert shared(users) == {"b"}


def test_R8_what_no_tile_uses_is_not_tracked() -> None:
    """Only files of planned tiles are counted."""
    assert refs({1: frozenset()}, set()) == {}
    assert refs({}, {7}) == {}


@given(USERS, FINISHED)
def test_R7_what_may_go_is_exactly_what_no_unfinished_tile_needs(users: dict[int, frozenset[str]], finished: set[int]):
    """Slow definition against the fold: nothing needed may go, and nothing unneeded stays; no count is negative."""
    needed = {path for tile, paths in users.items() if tile not in finished for path in paths}
    tracked = {path for paths in users.values() for path in paths}
    counts = refs(users, finished)
    assert {path for path, count in counts.items() if count == 0} == tracked - needed
    assert all(count >= 0 for count in counts.values())


@given(USERS, FINISHED, st.integers(0, 5))
def test_R7_one_more_finished_tile_never_brings_a_file_back(
    users: dict[int, frozenset[str]], finished: set[int], tile: int
):
    """No count ever rises while tiles end."""
    before, after = refs(users, finished), refs(users, finished | {tile})
    assert all(after[path] <= count for path, count in before.items())
