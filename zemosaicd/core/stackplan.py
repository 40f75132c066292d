"""`stack_plan.csv` (D3): the text of one -> rows that name a frame, and rows refused with their line and reason.

Knows text only, never the disk. Every physical line is read by itself, so that an open quote or a cut-off line costs
that line and no other, and line numbers are those of an editor. A row that is refused never stops the others.
"""

from __future__ import annotations

import contextlib
import csv
import math
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from zemosaicd.core.mount import read_mode
from zemosaicd.model import FrameFacts, MountMode, Reason

NAME = "stack_plan.csv"
ALIASES: dict[str, tuple[str, ...]] = {
    "file": ("file_path", "filepath", "file", "path", "filename", "fits", "raw"),
    "exposure": ("exposure", "exp", "exptime", "exposure_s"),
    "bortle": ("bortle", "bortle_class", "bortle_scale", "sky_bortle"),
    "filter": ("filter", "band", "channel"),
    "batch": ("batch_id", "batch", "session", "night"),
    "order": ("order", "seq", "sequence", "index"),
    "mount": ("mount", "eqmode", "mount_mode"),
}
"""Column names, without regard to case, spaces and dashes; of two names for one column the earlier counts."""
DELIMITERS = ",;\t|"
MOUNT_WORDS = {
    "GEM": MountMode.EQ,
    "GERMAN": MountMode.EQ,
    "GERMANEQUATORIAL": MountMode.EQ,
    "ALTZ": MountMode.ALT_AZ,
}
LONGEST_EXPOSURE_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line that names a frame. `file` as written, with forward slashes. None or "": the plan does not say.

    `batch` and `bortle` are checked and change no pixel: a cell takes all its frames, weights follow measured noise.
    """

    line: int
    file: str
    exposure_s: float | None = None
    filter_name: str = ""
    batch: str = ""
    order: float | None = None
    mount: MountMode | None = None
    bortle: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRow:
    """A line that cannot be used, counted from 1, and why."""

    line: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """All lines of a plan but the head, the blank ones and those that begin with #."""

    rows: tuple[Row, ...] = ()
    refused: tuple[RefusedRow, ...] = ()


def parse(data: bytes) -> StackPlan:
    """Reads a plan. UTF-8 with or without its mark, else Windows' own; never raises."""
    lines = [(number, line) for number, line in enumerate(_text(data).splitlines(), 1) if not _blank(line)]
    if not lines:
        return StackPlan(refused=(_refused(1, "stack_plan.head", "", "an empty plan"),))
    number, head = lines[0]
    delimiter = _delimiter(head, [line for _, line in lines[:50]])
    columns = _columns(_fields(head, delimiter) or [])
    if "file" not in columns:
        known = ", ".join(ALIASES["file"])
        return StackPlan(refused=(_refused(number, "stack_plan.head", head[:80], f"no column of files: {known}"),))
    width = len(_fields(head, delimiter) or [])
    rows: list[Row] = []
    refused: list[RefusedRow] = []
    for number, line in lines[1:]:
        answer = _row(number, _fields(line, delimiter), columns, width)
        if isinstance(answer, Row):
            rows.append(answer)
        else:
            refused.append(answer)
    return StackPlan(rows=tuple(rows), refused=tuple(refused))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _blank(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _delimiter(head: str, lines: Sequence[str]) -> str:
    """As sniffed, if the head then has a column of files; else the first that gives it one."""
    candidates: list[str] = list(DELIMITERS)
    with contextlib.suppress(csv.Error):  # nothing regular in it
        candidates.insert(0, csv.Sniffer().sniff("\n".join(lines), delimiters=DELIMITERS).delimiter)
    named = (d for d in candidates if "file" in _columns(_fields(head, d) or []))
    return next(named, DELIMITERS[0])


def _fields(line: str, delimiter: str) -> list[str] | None:
    """The fields of one line; None if its quotes do not close."""
    try:
        (fields,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        return None
    return [field.strip() for field in fields]


def _columns(head: Sequence[str]) -> dict[str, int]:
    """Where each column stands."""
    names = ["_".join(name.casefold().replace("-", " ").split()) for name in head]
    found = ((column, alias) for column, aliases in ALIASES.items() for alias in reversed(aliases) if alias in names)
    return {column: names.index(alias) for column, alias in found}


def _row(line: int, fields: Sequence[str] | None, columns: Mapping[str, int], width: int) -> Row | RefusedRow:
    if fields is None:
        return _refused(line, "stack_plan.quotes", "", "its quotes do not close")
    if any(fields[width:]):
        return _refused(line, "stack_plan.fields", len(fields), "more fields than the head has", width)
    told = {column: fields[i] if i < len(fields) else "" for column, i in columns.items()}
    file = told["file"].replace("\\", "/")
    if not file or any(ord(c) < 32 for c in file):
        return _refused(line, "stack_plan.file", file.encode("unicode_escape").decode()[:80], "it names no file")
    numbers: dict[str, float | None] = {}
    for column, low, high in (("exposure", 0.0, LONGEST_EXPOSURE_S), ("order", -1e15, 1e15), ("bortle", 1.0, 9.0)):
        text = told.get(column, "")
        numbers[column] = _number(text) if text else None
        value = numbers[column]
        if text and (value is None or not low <= value <= high):
            return _refused(
                line, f"stack_plan.{column}", text[:80], f"{column} is no such number", f"{low:g}..{high:g}"
            )
    mount = _mount(told.get("mount", ""))
    if told.get("mount") and mount is None:
        return _refused(line, "stack_plan.mount", told["mount"][:80], "a mount that is not known", "EQ or ALTAZ")
    return Row(
        line=line,
        file=file,
        exposure_s=numbers["exposure"],
        filter_name=told.get("filter", ""),
        batch=told.get("batch", ""),
        order=numbers["order"],
        mount=mount,
        bortle=numbers["bortle"],
    )


def _number(text: str) -> float | None:
    """A finite number, with a decimal point or comma."""
    try:
        value = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _mount(text: str) -> MountMode | None:
    return read_mode(text) or MOUNT_WORDS.get("".join(c for c in text.upper() if c.isalnum()))


def _refused(
    line: int, rule: str, value: float | str, message: str, threshold: float | str | None = None
) -> RefusedRow:
    reason = Reason(rule=rule, value=value, threshold=threshold, message=f"line {line}: {message}")
    return RefusedRow(line=line, reason=reason)


# --- what the rows mean in a session -------------------------------------------------------------------------------


def resolve(
    plan: StackPlan, folder: str, known: Mapping[str, Reason | None]
) -> tuple[dict[str, Row], tuple[RefusedRow, ...]]:
    """(frame's path -> its row, refused rows by line) of a plan that lies in `folder` (absolute).

    `known`: the session's files by path, with why a file was refused. Refused here: what lies outside the folder, is
    not there, was refused, or was named before.
    """
    rows: dict[str, Row] = {}
    refused = list(plan.refused)
    for row in plan.rows:
        path = posixpath.normpath(posixpath.join(folder, row.file))
        if not path.startswith(folder.rstrip("/") + "/"):
            refused.append(_refused(row.line, "stack_plan.outside", row.file, "it lies outside the plan's folder"))
        elif path in rows:
            first = f"line {rows[path].line}"
            refused.append(_refused(row.line, "stack_plan.twice", row.file, f"already named in {first}", first))
        elif path not in known:
            refused.append(_refused(row.line, "stack_plan.missing", row.file, "no frame of the session has this name"))
        elif (reason := known[path]) is not None:
            why = f"the frame was refused: {reason.message or reason.rule}"
            refused.append(_refused(row.line, "stack_plan.refused", row.file, why, reason.rule))
        else:
            rows[path] = row
    return rows, tuple(sorted(refused, key=lambda r: r.line))


def with_row(facts: FrameFacts, row: Row) -> FrameFacts:
    """A frame's facts as its row has them: what the plan says goes before what the header says.

    `order` stands in for the time of a frame whose header has none.
    """
    return replace(
        facts,
        exposure_s=facts.exposure_s if row.exposure_s is None else row.exposure_s,
        filter_name=row.filter_name or facts.filter_name,
        observed_s=row.order if facts.observed_s is None else facts.observed_s,
        mount_mode_card=facts.mount_mode_card if row.mount is None else row.mount.value,
    )


def folders_of(paths: Iterable[str], whole_folder: str) -> tuple[str, ...]:
    """Where a session's plan may lie: its own folder, or those that hold its frames."""
    return tuple(sorted({posixpath.dirname(p) for p in paths} | ({whole_folder} if whole_folder else set())))
