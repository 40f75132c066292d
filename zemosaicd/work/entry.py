"""How a worker process begins, and how it runs one job: the far side of `shell.executors.Pool`."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import io
import os
import pickle
import resource
import signal
import struct
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, ClassVar, Protocol

STARTED = struct.Struct("<qq")
"""A worker's report that it begins a job: (token of the job, its process id); far below PIPE_BUF, so it is atomic."""

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
DAEMON, TEMPLATE, WARM_UP = "ZEMOSAICD_DAEMON", "ZEMOSAICD_TEMPLATE", "ZEMOSAICD_WARM_UP"
"""Environment: process ids of the daemon and of the process that workers are forked from; what that one loads."""
WORKER_NAME = "zemosaicd-work"
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
KEPT_BYTES = 64 * 1024**2
LARGEST_KEPT_BYTES = 32 * 1024**2
"""What of freed memory a worker keeps for its next frame: a page given back costs more, when it is asked for again,
than most of what is done with it. Larger pieces go back at once."""
_NOT_TRANSPORTABLE = (pickle.PickleError, TypeError, AttributeError, ValueError, ImportError, RecursionError)


class Job(Protocol):
    """A picklable value with one function; paths in, a small picklable result out. It may raise any Exception."""

    def run(self) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginnings:
    """What a worker needs to know at its start. `warm_up`: "package.module:function", skipped if there is no module."""

    memory_bytes: int | None = None
    warm_up: str = ""


@dataclass(frozen=True, slots=True)
class Nothing:
    """The job that only brings a worker up."""

    def run(self) -> None:
        """Does nothing."""


class _Reports:
    """The pipe to the daemon: the one thing a pool's initializer must leave behind for the jobs of its process."""

    pipe: ClassVar[Connection | None] = None


def begin(beginnings: Beginnings, reports: Connection) -> None:
    """Initializer: deaf to the terminal's and systemd's signals, bound to the parent's life, warm, and capped."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)  # a SIGTERM to the whole group must not lose the running jobs (M14)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    follow(int(os.environ[TEMPLATE]), WORKER_NAME)
    keep_freed_memory()
    warm(beginnings.warm_up)
    if beginnings.memory_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = address_space_bytes() + beginnings.memory_bytes  # F10: MemoryError instead of an OOM kill (M15)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    _Reports.pipe = reports
    # A worker that is asked to leave holds nothing: taking its imports apart would only take time.
    Finalize(None, os._exit, args=(0,), exitpriority=-1000)


def follow(parent: int, name: str) -> None:
    """Binds this process's life to its parent's, of this process id (M13); `name` is what `ps` and `top` show."""
    system = ctypes.CDLL(None)
    system.prctl(_PR_SET_NAME, name.encode())
    system.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # without it workers outlive a killed daemon
    if os.getppid() != parent:  # it died before we had asked
        os._exit(1)


def work(token: int, payload: bytes) -> bytes:
    """Run one pickled job in this worker, having reported who runs it first (F11); returns the pickled result."""
    if _Reports.pipe is not None:
        os.write(_Reports.pipe.fileno(), STARTED.pack(token, os.getpid()))
    return run_pickled(payload)


def run_pickled(payload: bytes) -> bytes:
    """Run a pickled job. Whatever it raises leaves here as an Exception that survives pickling; numpy's numbers leave
    as Python's, or the daemon would have to import numpy to read them.
    """
    try:
        result = io.BytesIO()
        _Plainly(result).dump(pickle.loads(payload).run())
        return result.getvalue()
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration) and _travels(error):
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


class _Plainly(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """What pickle asks for a value that is none of Python's own."""
        if type(value).__module__ != "numpy" or getattr(value, "shape", None) != ():
            return NotImplemented
        own = value.item()
        return type(own), (own,)


def address_space_bytes() -> int:
    """The virtual size of this process, which RLIMIT_AS counts."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _travels(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except _NOT_TRANSPORTABLE:
        return False


def keep_freed_memory() -> None:
    """Tell malloc, and that all threads share what is kept; another C library than glibc may not know the call, and
    then decides for itself.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 1)


def warm(name: str) -> None:
    """Runs "module:function", if there is such a module."""
    module, _, function = name.partition(":")
    if module and _exists(module):
        getattr(importlib.import_module(module), function)()


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package is there
        return False
