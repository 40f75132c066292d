"""Jobs for the tests of executors: small picklable values that do to their worker what real jobs must not."""

from __future__ import annotations

import os
import resource
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zemosaicd.model import Reason, TileFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """Returns what it was given."""

    value: Any = None

    def run(self) -> Any:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Appends a line to a file, so that a test can read in which order jobs ran; returns its worker's pid."""

    path: str
    line: str

    def run(self) -> int:
        with Path(self.path).open("a") as notes:
            notes.write(self.line + "\n")
        return os.getpid()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Says through the FIFO `begun` that it runs, then waits for a line in the FIFO `go`; returns its worker's pid."""

    begun: str
    go: str

    def run(self) -> int:
        Path(self.begun).write_text(f"{os.getpid()}\n")
        Path(self.go).read_text()
        return os.getpid()


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """Fills and frees eight arrays of 3 MB together, twice; returns how many pages the second time had to ask for."""

    def run(self) -> int:
        before = 0
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            arrays = [np.ones(3 << 18, np.float32) for _ in range(8)]
            del arrays
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@dataclass(frozen=True, slots=True, kw_only=True)
class Die:
    """Kills its own worker; with `lives`, only until that many lines of the file say that it did."""

    notes: str
    lives: int = 10**9

    def run(self) -> str:
        notes = Path(self.notes)
        died = len(notes.read_text().splitlines()) if notes.exists() else 0
        if died >= self.lives:
            return "survived"
        with notes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)
        return "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Never ends; writes a line first."""

    notes: str

    def run(self) -> None:
        with Path(self.notes).open("a") as file:
            file.write(f"{os.getpid()}\n")
        threading.Event().wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Raises the project's own kind of error."""

    def run(self) -> None:
        raise TileFailed(Reason(rule="no_sky", value=3, threshold=5, message="not enough sky"))


class Awkward(Exception):
    """Cannot be unpickled: it takes two arguments and keeps one."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(left + right)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Raises what its name says."""

    kind: str

    def run(self) -> None:
        errors: dict[str, BaseException] = {
            "awkward": Awkward("a", "b"),
            "exit": SystemExit(3),
            "stop": StopIteration(),
            "disk": OSError(28, "No space left on device"),
        }
        raise errors[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocate:
    """Allocates, and returns how many bytes."""

    size: int

    def run(self) -> int:
        return int(np.ones(self.size, np.uint8).nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the worker finds: environment, parent, and how signals stand."""

    names: tuple[str, ...] = ()

    def run(self) -> dict[str, Any]:
        return {
            "env": {name: os.environ.get(name) for name in self.names},
            "ignored": [s.name for s in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(s) is signal.SIG_IGN],
            "blocked": sorted(s.name for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "ppid": os.getppid(),
        }


def imported() -> None:
    """A warm-up that only imports this module, and numpy with it."""


def warm_up() -> None:
    """A warm-up that can be seen: leaves a file in the working directory of the worker."""
    seen = Path(os.environ["FAKEJOBS_WARM"])
    own = seen.with_name(f"{seen.name}.{os.getpid()}")
    own.write_text(str(os.getpid()))
    own.replace(seen)  # several workers do it at once, and it is read whole


def slow_warm_up() -> None:
    """A warm-up that nobody waits for to the end."""
    threading.Event().wait(60.0)


def broken_warm_up() -> None:
    """A warm-up that fails as an unwritable kernel cache would."""
    raise RuntimeError("cannot cache kernels")
