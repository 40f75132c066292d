"""`stack_plan.csv` (D3): whatever its dialect, good rows are read, bad ones refused with their line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import values
from zemosaicd.core.stackplan import ALIASES, DELIMITERS, folders_of, parse, resolve, with_row
from zemosaicd.model import MountMode, Reason

NAMES = st.text("abcXYZ019_-. é", min_size=1, max_size=12).map(lambda s: f"f{s.strip()}.fit")


def rows_of(text: str, encoding: str = "utf-8") -> list[tuple[int, str]]:
    return [(r.line, r.file) for r in parse(text.encode(encoding)).rows]


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, str, float]]]:
    """A plan in some dialect, and what it says: line, file, exposure."""
    delimiter, end = draw(st.sampled_from(DELIMITERS)), draw(st.sampled_from(["\n", "\r\n"]))
    quote = draw(st.sampled_from(["", '"']))
    head = [draw(st.sampled_from(ALIASES["file"])), draw(st.sampled_from(ALIASES["exposure"])), "remarks"]
    lines, told = [delimiter.join(f"{quote}{h.upper()}{quote}" for h in head)], []
    for name, exposure in draw(st.lists(st.tuples(NAMES, st.integers(1, 600)), min_size=1, max_size=8)):
        lines += draw(st.sampled_from([[], [""], ["# a note"]]))
        lines.append(delimiter.join(f"{quote}{v}{quote}" for v in (name, exposure, "ok")))
        told.append((len(lines), name, float(exposure)))
    mark = draw(st.sampled_from(["", "\ufeff"]))
    return (mark + end.join(lines) + draw(st.sampled_from(["", end]))).encode(), told


@given(tables())
def test_D3_every_dialect_says_the_same(table: tuple[bytes, list[tuple[int, str, float]]]) -> None:
    """Comma, semicolon, tab or bar, quoted or not, with blank lines, notes and a mark: the same rows and lines."""
    data, told = table
    plan = parse(data)
    assert [(r.line, r.file, r.exposure_s) for r in plan.rows] == told
    assert plan.refused == ()


@pytest.mark.parametrize(("column", "alias"), [(c, a) for c, names in ALIASES.items() for a in names])
def test_D3_every_alias_is_known(column: str, alias: str) -> None:
    """Each column under each of its names, whatever the case, spaces or dashes."""
    said = {"exposure": "12,5", "filter": "Ha", "batch": "n1", "order": "7", "mount": "AltAz", "bortle": "4"}
    spoken = alias.upper().replace("_", " ")
    head, row = (f"{spoken};note", "a.fit;x") if column == "file" else (f"file;{spoken}", f"a.fit;{said[column]}")
    (found,) = parse(f"{head}\n{row}\n".encode()).rows
    told = {
        "file": found.file, "exposure": found.exposure_s, "filter": found.filter_name, "batch": found.batch,
        "order": found.order, "mount": found.mount, "bortle": found.bortle,
    }  # fmt: skip
    expected = {"file": "a.fit", "exposure": 12.5, "filter": "Ha", "batch": "n1", "order": 7.0,
                "mount": MountMode.ALT_AZ, "bortle": 4.0}  # fmt: skip
    assert told[column] == expected[column]


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (",10,EQ,3", "stack_plan.file"),
        ("b.fit,long,EQ,3", "stack_plan.exposure"),
        ("b.fit,-1,EQ,3", "stack_plan.exposure"),
        ("b.fit,nan,EQ,3", "stack_plan.exposure"),
        ("b.fit,10,dobson,3", "stack_plan.mount"),
        ("b.fit,10,EQ,12", "stack_plan.bortle"),
        ("b.fit,10,EQ,3,more", "stack_plan.fields"),
        ('"b.fit,10,EQ,3', "stack_plan.quotes"),
        ("b\0.fit,10,EQ,3", "stack_plan.file"),
    ],
)
def test_D3_a_bad_row_costs_itself_alone(row: str, rule: str) -> None:
    """It is refused by rule, with its line; the rows before and after go on."""
    plan = parse(f"file,exposure,mount,bortle\na.fit,10,GEM,3\n{row}\nc.fit,10,german,\n".encode())
    assert [(r.line, r.file) for r in plan.rows] == [(2, "a.fit"), (4, "c.fit")]
    (bad,) = plan.refused
    assert (bad.line, bad.reason.rule) == (3, rule)
    assert bad.reason.message.startswith("line 3: ")


@pytest.mark.parametrize("text", ["", "\n\n", "exposure,filter\n10,L\n", "a.fit\nb.fit\n"])
def test_D3_a_plan_without_a_column_of_files_is_refused_whole(text: str) -> None:
    """There is a reason, and it names what the column may be called or that there is nothing."""
    plan = parse(text.encode())
    assert plan.rows == ()
    assert plan.refused[0].reason.rule == "stack_plan.head"


@given(st.binary(max_size=300))
def test_D3_no_bytes_are_too_strange(data: bytes) -> None:
    """Whatever lies there: rows and refusals, never an exception."""
    plan = parse(b"file,exp\n" + data)
    assert all(r.line > 1 for r in (*plan.rows, *plan.refused))


def test_D3_windows_writes_other_letters_and_slashes() -> None:
    """A plan in code page 1252 with backslashes names files below the folder."""
    assert rows_of("file;exp\nété\\a.fit;10\n", "cp1252") == [(2, "été/a.fit")]


def test_D3_names_are_held_against_the_session() -> None:
    """Missing, named twice, outside the folder, refused before: each by its rule and line; the rest have their rows."""
    plan = parse(b"file\na.fit\n./a.fit\nsub/b.fit\n../c.fit\n/etc/passwd\ngone.fit\ndark.fit\n/in/d.fit\n")
    dark = Reason(rule="header.frame_type", message="a calibration frame")
    known = {"/in/a.fit": None, "/in/sub/b.fit": None, "/in/dark.fit": dark, "/in/d.fit": None, "/c.fit": None}
    rows, refused = resolve(plan, "/in", known)
    assert {path: row.line for path, row in rows.items()} == {"/in/a.fit": 2, "/in/sub/b.fit": 4, "/in/d.fit": 9}
    assert [(r.line, r.reason.rule) for r in refused] == [
        (3, "stack_plan.twice"), (5, "stack_plan.outside"), (6, "stack_plan.outside"), (7, "stack_plan.missing"),
        (8, "stack_plan.refused"),
    ]  # fmt: skip
    assert "a calibration frame" in refused[-1].reason.message


def test_D3_the_plan_goes_before_the_header() -> None:
    """Exposure, filter and mount as the row has them; its order stands in only for a time that is missing."""
    (row,) = parse(b"file,exp,filter,mount,order\na.fit,20,Ha,EQ,5\n").rows
    told = with_row(values.facts(observed_s=None, exposure_s=10.0), row)
    assert (told.exposure_s, told.filter_name, told.mount_mode_card, told.observed_s) == (20.0, "Ha", "EQ", 5.0)
    assert with_row(values.facts(observed_s=9.0), row).observed_s == 9.0
    (silent,) = parse(b"file\na.fit\n").rows
    assert with_row(values.facts(), silent) == values.facts()


def test_D3_a_plan_lies_beside_the_frames_or_in_the_sessions_folder() -> None:
    """Every folder that holds a frame of the session, and the folder that the session is."""
    assert folders_of(["/in/a/1.fit", "/in/b/2.fit", "/in/a/3.fit"], "") == ("/in/a", "/in/b")
    assert folders_of(["/in/a/1.fit"], "/in") == ("/in", "/in/a")
