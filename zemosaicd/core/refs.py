"""Who still needs which cache: reference counts as a pure fold over (plan, finished tiles).

There is no counter to get out of step: the counts are computed from what the journal knows, so an early delete cannot
be expressed and a crash cannot lose the table (R7, R9). The locked table of the shell (shell.caches) keeps the same
fold incrementally; its tests hold it against `refs` after every step.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Set


def key(path: object) -> str:
    """The name that a path is counted under (R2): normalised, never resolved."""
    return posixpath.normpath(str(path))


def keys(paths: Iterable[object]) -> frozenset[str]:
    """What one tile counts: each path once, however often its group repeats it (R2)."""
    return frozenset(key(path) for path in paths)


def refs(users: Mapping[int, frozenset[str]], finished: Set[int]) -> Counter[str]:
    """How many unfinished tiles still need each path that any tile uses; a path that none needs any more counts 0."""
    counts: Counter[str] = Counter()
    for tile, paths in users.items():
        for path in paths:
            counts[path] += 0 if tile in finished else 1
    return counts


def shared(users: Mapping[int, frozenset[str]]) -> frozenset[str]:
    """The paths that two or more tiles use (R6, R8)."""
    return frozenset(path for path, count in refs(users, frozenset()).items() if count > 1)
