"""Real nights for the tests: small simulated frames, the real daemon in its own process, its log, its pixels.

Nothing here sleeps for a result: `until` asks again and again until a deadline, and the log file is the daemon's own.
`python -m tests.nights "rename mosaic.fits" ROOT run ...` is zemosaicd with a bomb in it: it kills itself right before
a step that leaves a trace on disk (a rename, an unlink, a new folder, a commit of the journal), whichever thread takes
it.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from astropy.io import fits

from zemosaicd import cli
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.shell.daemon import outcomes
from zemosaicd.shell.journal import Journal
from zemosaicd.shell.layout import Layout
from zemosaicd.simulate import Night, simulate

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60.0
POLL_S = 0.005
TINY = Night(cols=2, frames=3, width=240, height=320, scale_arcsec=8.0, dither_px=5.0)
"""Two panels of three frames: solves on the catalogue, makes two master tiles, takes a third of a second."""
POINTING = Night(cols=1, frames=4, width=240, height=320, scale_arcsec=8.0, dither_px=5.0, seed=7)
"""One pointing of four frames, for batches that share caches."""
QUICK = (
    "watch.settle_s=0",
    "watch.scan_s=0.2",
    "session.quiet_min=60",
    "service.min_free_gb=0",
    "service.drain_s=20",
    "executor.workers=1",
    "log.format=json",
)
"""Settings that make a daemon of the tests quick; nothing that bears on pixels."""

T = TypeVar("T")


# --- frames --------------------------------------------------------------------------------------------------------


@functools.cache
def night(kind: Night = TINY) -> tuple[Path, ...]:
    """The frames of a simulated night, made once a test run. Never written to: copy them with `drop`."""
    folder = Path(tempfile.mkdtemp(prefix="zemosaicd-night-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return tuple(frame.path for frame in simulate(kind, folder))


def drop(frames: Iterable[Path], folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Copies frames into a watched folder as a telescope's computer does it: whole, then renamed into place."""
    folder.mkdir(parents=True, exist_ok=True)
    dropped = []
    for frame, name in itertools.zip_longest(frames, names):
        part = folder / f".{frame.name}.part"
        shutil.copyfile(frame, part)
        dropped.append(part.rename(folder / (name or frame.name)))
    return dropped


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of what it holds; folders with "": what must not have changed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


# --- pixels --------------------------------------------------------------------------------------------------------


def pixels(mosaic: Path) -> dict[str, bytes]:
    """What mosaic.fits holds, HDU by HDU, byte for byte, with its shape."""
    with fits.open(mosaic) as hdus:
        return {
            hdu.name or "PRIMARY": str((hdu.data.shape, hdu.data.dtype)).encode() + hdu.data.tobytes() for hdu in hdus
        }


def coverage_max(mosaic: Path) -> int:
    """The largest number of frames on a pixel."""
    return int(np.max(fits.getdata(mosaic, "COVERAGE")))


@functools.cache
def undisturbed(kind: Night = TINY, *settings: str) -> dict[str, bytes]:
    """The pixels that a night gives when nothing happens to it."""
    place = Place(Path(tempfile.mkdtemp(prefix="zemosaicd-undisturbed-")))
    atexit.register(shutil.rmtree, place.root, ignore_errors=True)
    drop(night(kind), place.incoming)
    assert place.process(*settings) == 0
    return pixels(place.mosaic())


# --- one installation ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where one daemon watches, keeps its state and puts its mosaics."""

    root: Path
    settings: tuple[str, ...] = ()

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def log(self) -> Path:
        return self.state / "log" / "zemosaicd.log"

    def mosaic(self) -> Path:
        """The one mosaic that was published."""
        (found,) = self.output.glob("*/mosaic.fits")
        return found

    def report(self) -> dict[str, Any]:
        """The report beside it."""
        report: dict[str, Any] = json.loads((self.mosaic().parent / "report.json").read_text())
        return report

    def arguments(self, *settings: str) -> list[str]:
        """`--set` for every setting; later ones win."""
        paths = (f"paths.incoming={json.dumps([str(self.incoming)])}", f"paths.output={self.output}")
        every = (*QUICK, *paths, f"paths.state={self.state}", *self.settings, *settings)
        return [part for text in every for part in ("--set", text)]

    def process(self, *settings: str, folder: Path | None = None) -> int:
        """`zemosaicd process` in this very process, jobs inline; returns the exit code."""
        where = [str(folder or self.incoming), "--output", str(self.output)]
        return cli.main(["process", *where, *self.arguments("executor.kind=inline", *settings)])

    def run(self, *settings: str, bomb: str = "") -> Life:
        """`zemosaicd run` in a process of its own; with a `bomb`, the one that kills itself (jobs inline)."""
        module = ["tests.nights", bomb, str(self.root)] if bomb else ["zemosaicd"]
        inline = ("executor.kind=inline",) if bomb else ()
        return Life(self, [sys.executable, "-m", *module, "run", *self.arguments(*inline, *settings)])

    def lines(self, start: int = 0) -> list[dict[str, Any]]:
        """The whole log from a byte on, a dictionary a line (every line is JSON: C6)."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(start)
            whole = file.read().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def events(self, name: str) -> list[dict[str, Any]]:
        """All lines of one event."""
        return [line for line in self.lines() if line["event"] == name]

    def sessions(self) -> dict[str, SessionState]:
        """Every session, folded from the journal; beside a running daemon too."""
        journal = Layout(state=self.state, output=self.output).journal
        if not journal.exists():
            return {}
        reader = Journal.open_readonly(journal)
        try:
            names = [row.session for row in reader.all_sessions()]
        finally:
            reader.close()
        return outcomes(journal, set(names))

    def at_rest(self, count: int = 1) -> bool:
        """There are so many sessions, and nothing is due to any of them."""
        sessions = self.sessions()
        return len(sessions) == count and all(state.resting for state in sessions.values())

    def leftovers(self) -> list[str]:
        """What should not be there once all sessions rest: working folders, staging, temporaries."""
        doubtful = [*self.state.glob("sessions/*"), *self.output.rglob(".staging-*")]
        doubtful += [p for top in (self.state, self.output) for p in top.rglob("*.zemosaicd-tmp")]
        return [str(p.relative_to(self.root)) for p in doubtful]


class Life:
    """One life of a daemon. Ends it at the latest when the block ends."""

    def __init__(self, place: Place, command: Sequence[str]) -> None:
        self.place = place
        self._start = place.log.stat().st_size if place.log.exists() else 0
        kernels = str(Layout(state=place.state, output=place.output).kernels)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": kernels}
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=environment, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log of this life."""
        return self.place.lines(self._start)

    def seen(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Lines of this life with this event and these fields."""
        return [x for x in self.lines if x["event"] == event and all(x.get(k) == v for k, v in fields.items())]

    def wait_for(self, event: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """The `count`-th such line, as soon as it is written."""

        def there() -> dict[str, Any] | None:
            ended = self.process.poll() is not None
            found = self.seen(event, **fields)
            if ended and len(found) < count:
                raise AssertionError(f"ended with {self.process.returncode} before {event}: {self.tail()}")
            return found[count - 1] if len(found) >= count else None

        return until(there, f"{event} {fields} x{count}", self.tail)

    def rest(self, sessions: int = 1) -> None:
        """Waits until all sessions rest."""

        def resting() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.tail()}"
            return self.place.at_rest(sessions)

        until(resting, f"{sessions} sessions at rest", self.tail)

    def tail(self) -> str:
        """The last lines, for a failing test's message."""
        return "\n".join(f"{x['event']}: {x['message']}" for x in self.lines[-12:])

    def kill(self) -> None:
        """kill -9 of the daemon, and of nothing else; its children must die by themselves (M13)."""
        children = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        until(lambda: not any(map(alive, children)), f"the end of {children}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to stop; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def died(self) -> int:
        """Waits until it has ended by itself; returns its exit code."""
        return self.process.wait(PATIENCE_S)


def until(ask: Callable[[], T | None], what: str = "", story: Callable[[], str] = str) -> T:
    """The first answer that is true, asked for often, within the patience of the tests."""
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        pause.wait(POLL_S)
    raise AssertionError(f"waited {PATIENCE_S:.0f} s in vain for {what}\n{story()}")


# --- processes -----------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[tuple[int, str]]:
    """Everything that a process started, and what that started: (pid, start time), so that no pid is confused."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            parents.setdefault(int(stat[1]), []).append((int(entry.name), stat[19]))
    found, heads = [], [pid]
    while heads:
        children = parents.get(heads.pop(), [])
        found += children
        heads += [child for child, _ in children]
    return found


def alive(process: tuple[int, str]) -> bool:
    """Whether it still runs; a zombie does not (M13)."""
    stat = _stat(process[0])
    return bool(stat) and stat[19] == process[1] and stat[0] not in "ZX"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on; [] when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


# --- the bomb ------------------------------------------------------------------------------------------------------

STEPS = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir"})


@dataclass
class Bomb:
    """Kills its own process right before a step that leaves a trace on disk: the first whose text has all `words`."""

    words: tuple[str, ...]
    root: str

    def plant(self) -> None:
        """From now on every step is looked at."""
        commit = Journal._commit

        def heard(journal: Journal, group: Any) -> Any:
            self.step("commit " + " ".join(kind for entry in group for _, kind, _ in entry.rows))
            return commit(journal, group)

        Journal._commit = heard  # type: ignore[method-assign]
        sys.addaudithook(self.about_to)

    def about_to(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's own notice of what is about to be done. Folders that are there already are no step."""
        if event in STEPS:
            names = [str(a) for a in arguments if isinstance(a, str | os.PathLike)]
            ours = all(name.startswith(self.root) or not name.startswith("/") for name in names)
            if ours and not (event == "os.mkdir" and os.path.isdir(names[0])):  # noqa: PTH112 - raises no event itself
                self.step(f"{event} {' '.join(name.removeprefix(self.root) for name in names)}")

    def step(self, text: str) -> None:
        """One step, in words such as `os.rename /output/x/.staging-r1/mosaic.fits /output/x/mosaic.fits`."""
        if all(word in text for word in self.words):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Bomb(tuple(sys.argv[1].split()), sys.argv[2]).plant()
    sys.exit(cli.main(sys.argv[3:]))
