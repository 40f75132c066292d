"""Which of n things hang together by chains of links. Pure; for every storey."""

from __future__ import annotations


class Parts:
    """Links come in one by one; the first thing of each part stands for it (union-find with path halving, Tarjan 1975).

    In which order they come leaves no trace.
    """

    def __init__(self, count: int) -> None:
        self._home = list(range(count))

    def first(self, i: int) -> int:
        """The first thing of the part that `i` is in."""
        home = self._home
        while home[i] != i:
            home[i] = home[home[i]]
            i = home[i]
        return i

    def join(self, a: int, b: int) -> None:
        """A link between two things."""
        low, high = sorted((self.first(a), self.first(b)))
        self._home[high] = low

    def joined(self, a: int, b: int) -> bool:
        """Whether links so far make one part of them."""
        return self.first(a) == self.first(b)

    def members(self) -> list[list[int]]:
        """The parts, in the order of their first things; each ascending."""
        found: dict[int, list[int]] = {}
        for i in range(len(self._home)):
            found.setdefault(self.first(i), []).append(i)
        return list(found.values())
