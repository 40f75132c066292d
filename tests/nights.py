"""Real nights for the tests: small simulated frames, the real daemon in its own process, its log, its pixels.

Nothing here sleeps for a result: `until` asks again and again until a deadline, and the log file is the daemon's own.
`python -m tests.nights` is the nursery: it has imported everything once, and forks daemons without the second that the
imports take. Some of them carry a bomb: they kill themselves right before a step that leaves a trace on disk (a rename,
an unlink, a new folder, a commit of the journal), whichever thread takes it.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import json
import os
import select
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
from typing import Any, Protocol, TypeVar

import numpy as np
from astropy.io import fits

from zemosaicd import cli
from zemosaicd.core import lifecycle
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.shell.journal import Journal
from zemosaicd.shell.layout import Layout
from zemosaicd.shell.template import kernels_of
from zemosaicd.simulate import Night, simulate
from zemosaicd.work.jobs import warm_up

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
INLINE = "executor.kind=inline"

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
        named = [text.partition("=")[2] for text in self.settings if text.startswith("log.file=")]
        return Path(named[-1]) if named else self.state / "log" / "zemosaicd.log"

    @property
    def log_bytes(self) -> int:
        """How long the log is."""
        return self.log.stat().st_size if self.log.exists() else 0

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
        return cli.main(["process", *where, *self.arguments(INLINE, *settings)])

    def run(self, *settings: str, config: Path | None = None) -> Life:
        """`zemosaicd run` in a process of its own; jobs inline: out of the nursery."""
        file = [] if config is None else ["--config", str(config)]
        arguments = ["run", *file, *self.arguments(*settings)]
        start = self.log_bytes
        born = nursery().bear(arguments) if INLINE in (*self.settings, *settings) else _start(arguments, self)
        return Life(self, born, start)

    def process_apart(self, *settings: str) -> Life:
        """`zemosaicd process` in a process of its own, which can be waited for with an end."""
        arguments = ["process", str(self.incoming), "--output", str(self.output), *self.arguments(INLINE, *settings)]
        return Life(self, nursery().bear(arguments), self.log_bytes)

    def cut_off(self, before: str, *command: str) -> None:
        """A life of `zemosaicd run` (or another command), jobs inline, that ends by kill -9 before such a step."""
        arguments = [*(command or ("run",)), *self.arguments(INLINE)]
        with Life(self, nursery().bear(arguments, before, self.root), self.log_bytes) as life:
            try:
                assert life.process.wait(PATIENCE_S) == -signal.SIGKILL, f"{before!r} never came: {life.tail()}"
            except TimeoutError:
                raise AssertionError(f"{before!r} never came: {life.tail()}") from None

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
            names = sorted(row.session for row in reader.all_sessions())
            return {name: lifecycle.fold(name, reader.events_of(name)) for name in names}
        finally:
            reader.close()

    def at_rest(self, count: int = 1) -> bool:
        """There are so many sessions, and nothing is due to any of them."""
        sessions = self.sessions()
        return len(sessions) == count and all(state.resting for state in sessions.values())

    def leftovers(self) -> list[str]:
        """What should not be there once all sessions rest: working folders, staging, temporaries."""
        doubtful = [*self.state.glob("sessions/*"), *self.output.rglob(".staging-*")]
        doubtful += [p for top in (self.state, self.output) for p in top.rglob("*.zemosaicd-tmp")]
        return [str(p.relative_to(self.root)) for p in doubtful]


class Process(Protocol):
    """What a life asks of its process, born here or in the nursery."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...
    def send_signal(self, sig: int) -> None: ...


def _start(arguments: Sequence[str], place: Place) -> subprocess.Popen[bytes]:
    """`python -m zemosaicd ...`, in a session of its own."""
    kernels = str(kernels_of(place.state))
    with (place.root / "stderr.txt").open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "zemosaicd", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": kernels},
        )


class Life:
    """One life of a daemon. Ends it at the latest when the block ends."""

    def __init__(self, place: Place, process: Process, log_start: int) -> None:
        self.place = place
        self.process = process
        self._start = log_start

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)

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
                raise AssertionError(f"ended with {self.process.poll()} before {event}: {self.tail()}")
            return found[count - 1] if len(found) >= count else None

        return until(there, f"{event} {fields} x{count}", self.tail)

    def rest(self, sessions: int = 1) -> None:
        """Waits until all sessions rest."""

        def resting() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.poll()}: {self.tail()}"
            return self.place.at_rest(sessions)

        until(resting, f"{sessions} sessions at rest", self.tail)

    def tail(self) -> str:
        """The last lines, for a failing test's message."""
        errors = self.place.root / "stderr.txt"
        said = errors.read_text(errors="replace")[-2000:] if errors.exists() else ""
        return "\n".join(f"{x['event']}: {x['message']}" for x in self.lines[-12:]) + "\n" + said

    def kill(self) -> None:
        """kill -9 of the daemon, and of nothing else; its children must die by themselves (M13)."""
        children = descendants(self.process.pid)
        self.process.kill()
        self.process.wait(PATIENCE_S)
        until(lambda: not any(map(alive, children)), f"the end of {children}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to stop; returns its exit code."""
        self.process.send_signal(number)
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


# --- lives with a bomb ---------------------------------------------------------------------------------------------

STEPS = frozenset({"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"})
ONE_THREAD = {"OPENCV_FOR_THREADS_NUM": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


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


class Nursery:
    """The process that forks lives: without the second that the imports take, and with a bomb in it if wanted."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nights"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}, text=True,
        )  # fmt: skip

    def bear(self, arguments: Sequence[str], bomb: str = "", root: Path = Path("/")) -> Process:
        """A new life of the command line."""
        return Forked(self.ask([list(arguments), bomb, str(root)]), self)

    def ask(self, request: list[Any]) -> int:
        """One line there, one number back: a new life's pid for its arguments, the exit status for [pid]."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """No more lives."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(PATIENCE_S)


@functools.cache
def nursery() -> Nursery:
    """The one nursery of this test run."""
    made = Nursery()
    atexit.register(made.close)
    return made


class Forked:
    """A life out of the nursery, as its grandparent sees it: it ends, then the nursery is asked how."""

    def __init__(self, pid: int, nursery: Nursery) -> None:
        self.pid = pid
        self._nursery = nursery
        self._ended = os.pidfd_open(pid)
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it lives."""
        if self._status is None and select.select([self._ended], [], [], 0)[0]:
            os.close(self._ended)
            self._status = self._nursery.ask([self.pid])
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """As poll, when it has ended. Raises TimeoutError."""
        if self._status is None and not select.select([self._ended], [], [], timeout)[0]:
            raise TimeoutError(f"{self.pid} still lives")
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, sig: int) -> None:
        """To this very process, while it is there."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)


def _live(arguments: list[str], bomb: str, root: str) -> None:
    """The child's side of the fork; never returns."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    if bomb:
        Bomb(tuple(bomb.split()), root).plant()
    code = 1
    try:
        code = cli.main(arguments)
    finally:
        os._exit(code)


def _nurse() -> None:
    """Forks a life for every line of arguments and says its pid; says how it ended when asked for it."""
    warm_up()
    for line in sys.stdin:
        request = json.loads(line)
        if len(request) == 1:
            print(os.waitstatus_to_exitcode(os.waitpid(request[0], 0)[1]), flush=True)
        elif child := os.fork():
            print(child, flush=True)
        else:
            _live(*request)


if __name__ == "__main__":
    _nurse()
