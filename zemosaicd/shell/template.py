"""The process that workers are forked from: what they need is loaded once, and a new one is there in 50 ms.

It is multiprocessing's fork server, which has one thread and no locks to inherit, taught four things: it warms up
before it forks (work.preload), it dies with the daemon and its workers die with it (M13), signals to the whole group
pass it by (M14), and the first of a process begins with what that has imported. A process has one of them at a time.
"""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, context, forkserver, popen_forkserver, resource_tracker, util
from multiprocessing.process import BaseProcess, current_process
from pathlib import Path
from typing import Any

from zemosaicd.core.modes import mode_named
from zemosaicd.settings import Config
from zemosaicd.work.entry import DAEMON, IGNORED, WARM_UP

PRELOAD = "zemosaicd.work.preload"
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)


FOLDER, STALE_S = "zemosaicd-fork-", 60.0
"""Where the socket lies, below TMPDIR. A folder of this age that nobody has locked is what a killed daemon left."""
LONGEST_BYTES = 60
"""Of TMPDIR, or /tmp is taken: a socket's path has 107 at most, of which names take 41."""


class Template:
    """`warm_up`: "module:function" that it runs before it forks; `numba_cache_dir`: where kernels are kept."""

    def __init__(self, *, warm_up: str = "", numba_cache_dir: str = "") -> None:
        self.context, self.warm_up = _Context(), warm_up
        kernels = {"NUMBA_CACHE_DIR": numba_cache_dir} if numba_cache_dir else {}
        self._folder: _Folder | None = None
        self._environment = _ONE_THREAD | kernels | {DAEMON: str(os.getpid()), WARM_UP: warm_up}

    def start(self) -> None:
        """Lets it begin, if it has not, and returns at once. From the main thread: its life follows this thread's.

        OSError if there is no room for it, or no process.
        """
        if self._folder is None:
            self._folder = _Folder()
        with self.forking(), _forked():
            forkserver.ensure_running()

    def wait(self) -> None:
        """Returns when it is warm, which is when it forks; in any thread. OSError or EOFError if it died."""
        try:
            with _nameless():
                self.context.Process(target=os.getpid).start()  # anything short; nobody waits for its end
        except TypeError as error:  # stopped while it was asked: its descriptors are None
            raise EOFError from error

    def stop(self) -> None:
        """Ends it, and any worker that is left; at once, whatever it does."""
        server: Any = forkserver._forkserver  # it has no other name
        if (pid := server._forkserver_pid) is not None:
            os.kill(pid, signal.SIGKILL)
            with suppress(FileNotFoundError):
                server._stop()
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    @contextmanager
    def forking(self) -> Iterator[None]:
        """What the template inherits, should it have to be made (anew): one thread a library, no signal."""
        saved = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        resource_tracker.ensure_running()  # to start it unblocks the signals
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        forkserver.set_forkserver_preload([PRELOAD])
        try:
            with _nameless():
                yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name, value in saved.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextmanager
def _forked() -> Iterator[None]:
    """A process that multiprocessing starts is a fork of this one, which takes 50 ms less than a new interpreter that
    imports it all again: while there is no second thread, whose locks it would inherit for ever, and no numpy, which
    has read its settings already.
    """
    if len(list(Path("/proc/self/task").iterdir())) > 1 or "numpy" in sys.modules:
        yield
        return
    spawn = util.spawnv_passfds
    util.spawnv_passfds = _fork  # type: ignore[assignment]
    try:
        yield
    finally:
        util.spawnv_passfds = spawn


def _fork(_path: bytes, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """The process id of what runs `python ... -c "...; main(...)"` with these descriptors and no others."""
    if (pid := os.fork()) != 0:
        return pid
    code = 1
    try:
        for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if number > 2 and number not in descriptors:
                with suppress(OSError):  # the one that listed them
                    os.close(number)
        given, named = _call_of(arguments[-1])
        forkserver.main(*given, **named)
    except SystemExit:
        code = 0
    except BaseException:  # noqa: BLE001 - as an interpreter would end
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _call_of(code: str) -> tuple[list[Any], dict[str, Any]]:
    """What the fork server's program calls its `main` with."""
    last = ast.parse(code).body[-1]
    if not (isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)):
        raise ValueError(f"no call at the end of {code!r}")
    named: dict[str, Any] = {}
    for word in last.value.keywords:
        value = ast.literal_eval(word.value)
        named |= value if word.arg is None else {word.arg: value}
    return [ast.literal_eval(argument) for argument in last.value.args], named


@contextmanager
def _nameless() -> Iterator[None]:
    """A child shall not import the program that asked for it: that is the whole command line."""
    own = vars(sys.modules["__main__"])
    identity: dict[str, Any] = {name: own[name] for name in ("__spec__", "__file__") if name in own}
    own.update(dict.fromkeys(identity))
    try:
        yield
    finally:
        own.update(identity)


class _Folder:
    """A folder for the socket, locked for as long as its daemon lives. multiprocessing would make one that stays behind
    when a daemon is killed.
    """

    def __init__(self) -> None:
        below = Path(tempfile.gettempdir())
        if len(os.fsencode(below)) > LONGEST_BYTES:
            below = Path("/tmp")
        for left in below.glob(f"{FOLDER}*"):
            with suppress(OSError):  # somebody else's, or gone already
                if time.time() - left.stat().st_mtime > STALE_S:
                    os.close(_Folder._locked(left))
                    shutil.rmtree(left)
        self._path = Path(tempfile.mkdtemp(prefix=FOLDER, dir=below))
        self._lock = _Folder._locked(self._path)
        current_process()._config["tempdir"] = str(self._path)  # type: ignore[attr-defined]

    @staticmethod
    def _locked(folder: Path) -> int:
        """The folder's descriptor, locked. BlockingIOError if another process has locked it."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def close(self) -> None:
        """Takes the folder away."""
        current_process()._config.pop("tempdir")  # type: ignore[attr-defined]
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)


class _Popen(popen_forkserver.Popen):
    """An exit code can be read once, and both the pool's thread and the loop ask for it."""

    def __init__(self, process: BaseProcess) -> None:
        self._reading = threading.Lock()
        try:
            super().__init__(process)
        except ConnectionRefusedError as error:  # it is dying, its socket went first: the next one asks a new one
            forkserver._forkserver._stop()  # type: ignore[attr-defined]
            raise EOFError from error

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, or None if there is none yet."""
        if self.returncode is None and flag != os.WNOHANG:
            connection.wait([self.sentinel])
        with self._reading:
            return super().poll()


class _Process(context.ForkServerProcess):
    @staticmethod
    def _Popen(process: BaseProcess) -> _Popen:  # noqa: N802 - the name that multiprocessing looks for
        return _Popen(process)


class _Context(context.ForkServerContext):
    Process = _Process


def template_of(config: Config) -> Template | None:
    """The template of a daemon with this configuration; None if it works without worker processes."""
    if config.executor.kind == "inline":
        return None
    warm_up = f"zemosaicd.work.jobs:{mode_named(config.session.mode).warm_up}"
    return Template(warm_up=warm_up, numba_cache_dir=str(kernels_of(Path(config.paths.state))))


def kernels_of(state: Path) -> Path:
    """Compiled kernels, shared by all workers and runs: where the user or systemd keeps caches, else in the state.

    numba fails at import if its cache cannot be written (no HOME, package read-only), so the place is tried.
    """
    named = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("CACHE_DIRECTORY")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - "~" without HOME
    for folder in (Path(named) if named else Path(home) / "zemosaicd", state / "kernels"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    return state / "kernels"
