"""Structured logs: one event, one line, in a file and on stdout (C6).

A line is a JSON object: `timestamp` (UTC), `level`, `event` (the stable key), `message` (the sentence in the user's
language), then the event's fields. On a terminal, people get the sentence and the fields instead. Whatever comes from
headers and file names is made harmless here once more (F19), and neither a full disk nor a reader that has stopped
reading can stop the daemon (F8, F35).
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from zemosaicd.model import LogNote
from zemosaicd.settings import Config
from zemosaicd.shell.language import Catalogue, load_catalogue

MAX_TEXT = 2000
MAX_ITEMS = 200
MAX_DEPTH = 6
MAX_FILE_BYTES = 20_000_000
KEPT_FILES = 5
QUEUED_LINES = 10_000
CLOSE_WAIT_S = 1.0
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FIRST_KEYS = ("timestamp", "level", "event", "message")


Logger = FilteringBoundLogger
"""What the shell asks of a logger: a stable event key and its fields; the sentence comes from the catalogue."""


@contextmanager
def open_log(config: Config, descriptor: int = 1) -> Iterator[Logger]:
    """A logger as `[log]` wants it, open until the block ends. `descriptor`: where lines go beside the file.

    OSError if the log file's folder cannot be made or the file not opened at the start.
    """
    for_people = config.log.format == "console" or (config.log.format == "auto" and os.isatty(descriptor))
    file = RotatingFile(config.log_file)
    pipe = Pipe(descriptor)
    try:
        yield make_logger(load_catalogue(config.log.language), config.log.level, file, pipe, for_people=for_people)
    finally:
        pipe.close()
        file.close()


def make_logger(catalogue: Catalogue, level: str, *sinks: Sink, for_people: bool = False) -> Logger:
    """A logger that writes JSON lines to every sink; to the last one lines for people, if `for_people`."""
    people = structlog.dev.ConsoleRenderer(
        colors=for_people, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )

    def render(_: Any, name: str, line: EventDict) -> tuple[tuple[bytes, bytes], dict[str, Any]]:
        as_json = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if not for_people:
            return (as_json, as_json), {}
        shown = {**line, "event": line["message"]}
        del shown["message"]
        return (as_json, (str(people(None, name, shown)) + "\n").encode()), {}

    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        lambda _logger, _name, line: finish(line, catalogue),
        render,
    ]
    wrapper = structlog.make_filtering_bound_logger(LEVELS[level])
    logger: Logger = structlog.wrap_logger(Fanout(sinks), processors=processors, wrapper_class=wrapper).bind()
    return logger


def emit(log: Logger, note: LogNote, **context: object) -> None:
    """A line that was made where there is no logger (a worker, the core), with the context of who passes it on."""
    fields = {**context, **note.fields}
    write = {"debug": log.debug, "info": log.info, "warning": log.warning, "error": log.error}[note.level]
    write(note.event, **fields)


def finish(line: EventDict, catalogue: Catalogue) -> EventDict:
    """The line in its final order: cleaned fields, and the sentence made of the cleaned fields."""
    event = clean(line.pop("event", ""))
    given = line.pop("message", None)
    if given is not None:
        line["detail"] = given
    fields = {clean(key): harmless(value) for key, value in line.items()}
    if isinstance(line.get("exception"), str):
        fields["exception"] = "\n".join(clean(row) for row in line["exception"].splitlines()[-100:])
    fields |= {"event": event, "message": catalogue.sentence(event, fields)}
    return {key: fields.pop(key) for key in FIRST_KEYS if key in fields} | fields


# --- making values harmless (F19, M18) --------------------------------------------------------------------------


def clean(value: object) -> str:
    """Text on one line: control, bidirectional, surrogate and line-breaking characters shown as \\x1b, \\u202e, ..."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def harmless(value: object, depth: int = 0) -> object:
    """Any value as JSON can hold it: texts cleaned, numbers plain, NaN and infinities None, depth and size bounded."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return harmless(value.value, depth)
    if isinstance(value, Integral):
        whole = int(value)
        return whole if abs(whole) < 2**63 else hex(whole)[:MAX_TEXT]
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bytes):
        return clean(os.fsdecode(value))
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return {clean(key): harmless(item, depth + 1) for key, item in list(value.items())[:MAX_ITEMS]}
    if depth < MAX_DEPTH and isinstance(value, list | tuple | Set):
        items = sorted(value, key=str) if isinstance(value, Set) else value
        return [harmless(item, depth + 1) for item in list(items)[:MAX_ITEMS]]
    return clean(value)


# --- where lines go ---------------------------------------------------------------------------------------------


class Sink(Protocol):
    """Takes whole lines; never raises and never waits long."""

    def write(self, line: bytes) -> None: ...


class Fanout:
    """The logger under structlog: JSON lines to all sinks but the last, the last one's own lines to the last."""

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks

    def msg(self, as_json: bytes, shown: bytes) -> None:
        for sink in self._sinks[:-1]:
            sink.write(as_json)
        for sink in self._sinks[-1:]:
            sink.write(shown)

    debug = info = warning = error = critical = exception = msg


class RotatingFile:
    """A log file that is renamed to .1, .2, ... when it is full. A full disk costs lines, not the daemon (F8).

    `lost` counts the lines that could not be written.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES, kept: int = KEPT_FILES) -> None:
        self._path, self._max_bytes, self._kept = path, max_bytes, kept
        self._lock = threading.Lock()
        self.lost = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor, self._size = self._open()

    def write(self, line: bytes) -> None:
        with self._lock:
            try:
                if self._size and self._size + len(line) > self._max_bytes:
                    self._rotate()
                self._size += os.write(self._descriptor, line)
            except OSError:
                self.lost += 1

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _open(self) -> tuple[int, int]:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o640)
        return descriptor, os.fstat(descriptor).st_size

    def _rotate(self) -> None:
        for number in range(self._kept, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            if newer.exists():
                newer.rename(older)
        before = self._descriptor
        self._descriptor, self._size = self._open()
        os.close(before)


class Pipe:
    """A descriptor (stdout) written by its own thread: a reader who stops reading stops nobody else (F35).

    Lines wait in a bounded queue; when it is full, or the reader has gone (EPIPE), they are dropped and counted in
    `lost`. The log file has them all.
    """

    def __init__(self, descriptor: int, queued: int = QUEUED_LINES) -> None:
        self._descriptor = descriptor
        self._queue: queue.Queue[bytes | None] = queue.Queue(queued)
        self._thread = threading.Thread(target=self._run, name="log-stream", daemon=True)
        self.lost = 0
        self._thread.start()

    def write(self, line: bytes) -> None:
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Write what waits, but for no longer than `wait_s`."""
        try:
            self._queue.put(None, timeout=wait_s)
        except queue.Full:
            return
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                self.lost += 1
