"""Structured logs (C6, F19, F35): one JSON object a line, a stable key, a sentence, and nothing that can do harm."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.config import load
from zemosaicd.model import LogNote, MountMode
from zemosaicd.shell.language import load_catalogue
from zemosaicd.shell.log import Pipe, RotatingFile, emit, make_logger, open_log


class Lines:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.raw.append(line)

    @property
    def last(self) -> dict[str, object]:
        loaded: dict[str, object] = json.loads(self.raw[-1])
        return loaded


def logger_to(lines: Lines, language: str = "en", level: str = "debug", *, for_people: bool = False):  # type: ignore[no-untyped-def]
    return make_logger(load_catalogue(language), level, lines, for_people=for_people)


def test_C6_line_has_key_sentence_and_fields() -> None:
    """timestamp (UTC), level, event, message come first, then the fields with their types."""
    lines = Lines()
    logger_to(lines).info("daemon_draining", in_flight=3, drain_s=60.0)
    assert list(lines.last) == ["timestamp", "level", "event", "message", "in_flight", "drain_s"]
    assert lines.last["message"] == "Stopping: 3 running jobs may finish within 60.0 s."
    assert (lines.last["event"], lines.last["level"], lines.last["in_flight"]) == ("daemon_draining", "info", 3)
    stamp = datetime.fromisoformat(str(lines.last["timestamp"]))
    assert stamp.utcoffset() is not None
    assert abs(stamp.timestamp() - time.time()) < 60


def test_L1_key_and_values_stay_while_the_sentence_follows_the_language() -> None:
    """In French the sentence changes and nothing else does."""
    english, french = Lines(), Lines()
    for lines, language in ((english, "en"), (french, "fr")):
        logger_to(lines, language).warning("disk_low_paused", session="s1", reason="1 GB")
    assert french.last["message"] == "s1 est en pause, faute de place : 1 GB"
    same = {"event", "level", "session", "reason"}
    assert {key: english.last[key] for key in same} == {key: french.last[key] for key in same}
    assert "faute de place" in french.raw[0].decode()


def test_level_holds_back_what_is_less_important() -> None:
    """At warning, neither debug nor info lines are written."""
    lines = Lines()
    log = logger_to(lines, level="warning")
    log.debug("config_reloaded")
    log.info("config_reloaded")
    log.warning("config_reloaded")
    assert len(lines.raw) == 1


def test_exception_is_told_on_one_line() -> None:
    """A traceback is a field of the line, not more lines."""
    lines = Lines()
    try:
        raise ValueError("bad\x1b[31m header\u2028value")
    except ValueError:
        logger_to(lines).exception("internal_error", subject="x")
    assert lines.raw[0].count(b"\n") == 1
    assert "\x1b" not in str(lines.last["exception"])
    assert "ValueError" in str(lines.last["exception"])


HOSTILE = [
    "a\nb",
    "\x1b[31mred",
    "a\u202eb",
    "a\u2028b",
    "nul\x00",
    "\ud800",
    "x" * 10_000,
    "{0.__class__}",
    "\udcff",
    "é",
    "\x85",
]


@pytest.mark.parametrize("for_people", [False, True], ids=["json", "people"])
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_F19_hostile_texts_make_one_harmless_line(value: str, for_people: bool) -> None:
    """Newlines, escapes, direction marks, NUL and lone surrogates from headers and names come out visible and inert."""
    lines = Lines()
    logger_to(lines, for_people=for_people).info("frame_settled", frame=value, session={"deep": [value]})
    text = lines.raw[0].decode("utf-8")
    assert text.endswith("\n")
    body = text[:-1].replace("\x1b[0m", "") if for_people else text[:-1]
    assert len(body.splitlines()) == 1
    assert len(body) < 10_000
    if not for_people:
        assert body.isprintable()
        assert json.loads(body)["event"] == "frame_settled"
    else:
        assert "\x1b[31mred" not in body
        assert "\u202e" not in body


@given(st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=20,
))  # fmt: skip
@settings(max_examples=200)
def test_F19_any_value_is_one_line_of_strict_json(value: object) -> None:
    """Whatever a field holds, the line is one JSON object in printable UTF-8, without NaN."""

    def no_constants(name: str) -> None:
        raise AssertionError(name)

    lines = Lines()
    logger_to(lines).info("frame_settled", frame=value)
    assert lines.raw[0].decode().rstrip("\n").isprintable()
    json.loads(lines.raw[0], parse_constant=no_constants)


def test_values_of_our_own_types_are_plain() -> None:
    """Numpy numbers, enums, paths, sets, bytes and nested too deep or too long come out as JSON values."""
    lines = Lines()
    deep: object = "end"
    for _ in range(20):
        deep = [deep]
    logger_to(lines).info(
        "x", a=np.float32(1.5), b=np.int64(3), c=MountMode.EQ, d=Path("/a"), e={"b", "a"}, f=b"\xff", g=float("inf"),
        h=10**5000, i=deep, j=list(range(1000)), message="mine",
    )  # fmt: skip
    last = lines.last
    assert (last["a"], last["b"], last["c"], last["d"], last["e"]) == (1.5, 3, "EQ", "/a", ["a", "b"])
    assert (last["f"], last["g"], len(str(last["h"])) <= 2100) == ("\\udcff", None, True)
    assert (len(str(last["i"])) < 100, len(last["j"]), last["detail"], last["message"]) == (True, 200, "mine", "x")  # type: ignore[arg-type]


def test_notes_of_workers_are_emitted_under_their_key() -> None:
    """A LogNote becomes a line of its level, with the context of who passes it on."""
    lines = Lines()
    emit(logger_to(lines), LogNote(level="warning", event="x", fields={"a": 1}), session="s")
    assert (lines.last["level"], lines.last["event"], lines.last["a"], lines.last["session"]) == (
        "warning",
        "x",
        1,
        "s",
    )


def test_bound_fields_are_on_every_line() -> None:
    """What is bound to a logger is a field of each of its lines, and of its sentences."""
    lines = Lines()
    logger_to(lines).bind(session="s9").info("disk_resumed")
    assert lines.last["message"] == "s9 goes on, there is room again."


def test_people_get_sentences_and_machines_get_json(tmp_path: Path) -> None:
    """With format console stdout shows sentences while the file has JSON; with json both have the same lines."""
    for form, is_json in (("console", False), ("json", True), ("auto", True)):
        reader, writer = os.pipe()
        file = tmp_path / form / "z.log"
        config = load(None, [f"log.format={form}", f"log.file={file}"], {})
        with open_log(config, writer) as log:
            log.info("config_reloaded")
        os.close(writer)
        with open(reader, "rb") as pipe:
            shown = pipe.read()
        assert b"The configuration was read again." in shown
        assert (shown == file.read_bytes()) is is_json
        assert json.loads(file.read_bytes())["event"] == "config_reloaded"


def test_log_file_rotates(tmp_path: Path) -> None:
    """A full file becomes .1, that .2, and no more than the stated number are kept; no line is cut."""
    file = RotatingFile(tmp_path / "z.log", max_bytes=100, kept=2)
    for number in range(20):
        file.write(f"{number:029d}\n".encode())
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["z.log", "z.log.1", "z.log.2"]
    kept = "".join((tmp_path / name).read_text() for name in ("z.log.2", "z.log.1", "z.log"))
    assert [int(line) for line in kept.splitlines()] == list(range(12, 20))
    assert all(len(line) == 29 for line in kept.splitlines())


def test_F8_log_on_a_full_disk_loses_lines_and_nothing_else() -> None:
    """A file that takes no more bytes costs lines, and they are counted."""
    file = RotatingFile(Path("/dev/full"))
    file.write(b"line\n")
    file.close()
    assert file.lost == 1


def test_F35_blocked_reader_does_not_block_the_daemon() -> None:
    """A pipe that nobody reads takes what it can; the rest is dropped and counted, and closing does not hang."""
    reader, writer = os.pipe()
    pipe = Pipe(writer, queued=100)
    started = time.perf_counter()
    for _ in range(5000):
        pipe.write(b"x" * 1000)
    pipe.close(wait_s=0.1)
    assert time.perf_counter() - started < 1.0
    assert pipe.lost > 1000
    os.close(reader)
    pipe.close()
    os.close(writer)


def test_F35_reader_that_went_away_is_tolerated() -> None:
    """EPIPE is no error."""
    reader, writer = os.pipe()
    os.close(reader)
    pipe = Pipe(writer)
    pipe.write(b"line\n")
    pipe.close()
    os.close(writer)
    assert pipe.lost == 1
