"""The kernel's hints that something happened in a folder: watchdog, kept at arm's length.

An event never carries news, it only wakes the scan early. So an observer that dies, overflows or cannot start costs
nothing but time; it is started again with growing pauses (F4, F5).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

from watchdog.events import DirCreatedEvent, DirMovedEvent, FileClosedEvent, FileCreatedEvent, FileMovedEvent
from watchdog.observers import Observer

PAUSE_MIN_S = 5.0
PAUSE_MAX_S = 300.0
# Reading must never wake us, or our own work would (FileOpened, FileClosedNoWrite); nor each write of a slow copy.
EVENTS = [FileCreatedEvent, FileClosedEvent, FileMovedEvent, DirCreatedEvent, DirMovedEvent]
LIMITS = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}


class RootHints:
    """watchdog on one folder. `wake` is called from watchdog's threads, for every event."""

    def __init__(self, root: str, wake: Callable[[], None]) -> None:
        self.root = root
        self.trouble = ""
        self._wake = wake
        self._observer: Any = None
        self._retry_at_s = float("-inf")
        self._pause_s = PAUSE_MIN_S

    def dispatch(self, event: object) -> None:
        """What watchdog calls for an event: something happened, somewhere below."""
        self._wake()

    @property
    def started(self) -> bool:
        """Whether an observer was started, dead or alive."""
        return self._observer is not None

    def alive(self) -> bool:
        """Whether the observer and its emitters still run."""
        observer = self._observer
        return observer is not None and observer.is_alive() and all(e.is_alive() for e in observer.emitters)

    def due(self, now_s: float) -> bool:
        """Whether the observer should be (re)started now."""
        if self.alive():
            if now_s >= self._retry_at_s:
                self._pause_s = PAUSE_MIN_S  # it has run well: the next trouble starts from the shortest pause
            return False
        return now_s >= self._retry_at_s

    def start(self, now_s: float) -> None:
        """(Re)start the observer. It walks the tree, so call it in a thread. Sets `trouble` ("": all is well)."""
        self.stop()
        self._retry_at_s = now_s + self._pause_s
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
        observer = None
        try:
            observer = Observer()
            observer.schedule(self, self.root, recursive=True, event_filter=EVENTS)
            observer.start()
        except OSError as error:  # limits of inotify, or the folder is away
            limit = LIMITS.get(error.errno or 0)
            self.trouble = f"{error.strerror or error}" + (f" (raise {limit})" if limit else "")
            if observer is not None:
                observer.stop()
            return
        self._observer = observer
        self.trouble = ""

    def stop(self) -> None:
        """Stop the observer and wait for its threads."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join(timeout=5.0)


class LostEvents(logging.Handler):
    """Listens to watchdog's own log, the only place where it tells of an overflow; keeps those lines out of stderr."""

    def __init__(self, lost: Callable[[], None]) -> None:
        super().__init__(level=logging.WARNING)
        self._lost = lost
        self._logger = logging.getLogger("watchdog")

    def emit(self, record: logging.LogRecord) -> None:
        """An overflow means that events are lost: whoever cares rescans."""
        if "overflow" in record.getMessage().casefold():
            self._lost()

    def __enter__(self) -> LostEvents:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._logger.removeHandler(self)
