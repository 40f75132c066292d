"""How a file becomes a frame: names, quiet time, verdicts (SPEC C2)."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zemosaicd.core.intake import Intake, IntakeRules, NameKind, enters_folder, name_kind, same_state
from zemosaicd.model import Fingerprint, Reason

RULES = IntakeRules(settle_s=10.0, give_up_s=100.0)
SHORT = Reason(rule="length", value=10, threshold=20, message="10 of 20 bytes")
PATH = "/in/a.fit"


def state(size: int, mtime_s: float = 0.0, inode: int = 1) -> Fingerprint:
    return Fingerprint(device=1, inode=inode, size=size, mtime_ns=int(mtime_s * 1e9))


def paths(settled: list) -> list[str]:
    return [s.path for s in settled]


@pytest.mark.parametrize(
    "name",
    [
        "a.fit",
        "a.fits",
        "a.fts",
        "A.FIT",
        "Light_M 94_10.0s.Fits",
        "a.fits.gz",
        "a.fit.fz",
        "a.FTS.GZ",
        "\udcff.fit",
        "x.part.fits",
    ],
)
def test_C2_fits_names_are_frames(name: str) -> None:
    """FITS suffixes in any case count, packed ones too, whatever bytes come before."""
    assert name_kind(name, RULES) is NameKind.FRAME


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg", "a.png", "a.mp4", "a.txt", "a_thn.jpg", "a_thn.fit", ".a.fit", ".nfs000a.fit", "a.fit~", "~a.fit",
        "a.fit.part", "a.fit.tmp", "a.fit.filepart", "a.fit.crdownload", "a.gz", "fits", "", ".fit",
    ],
)  # fmt: skip
def test_C2_F39_other_names_are_not_frames(name: str) -> None:
    """Thumbnails, pictures, videos, hidden files and everybody's half-written names are passed by."""
    assert name_kind(name, RULES) is NameKind.OTHER


def test_C2_ignore_patterns_hold_for_files_and_folders() -> None:
    """`watch.ignore` patterns match without regard to case."""
    rules = IntakeRules(ignore=("*_stacked*", "Flats"))
    assert name_kind("M94_STACKED_16.fit", rules) is NameKind.OTHER
    assert name_kind("M94.fit", rules) is NameKind.FRAME
    assert not enters_folder("flats", rules)


@pytest.mark.parametrize(
    "name", ["@eaDir", ".stfolder", "lost+found", ".Trash-1000", "#recycle", "System Volume Information"]
)
def test_C2_housekeeping_folders_are_not_entered(name: str) -> None:
    """What NAS boxes, sync programs and file systems keep for themselves is not searched."""
    assert not enters_folder(name, RULES)
    assert enters_folder("M 94", RULES)


def test_C3_marker_is_known_by_its_exact_name() -> None:
    """The marker file is recognised though it is hidden; an empty key means that there is none."""
    assert name_kind(".done", RULES) is NameKind.MARKER
    assert name_kind(".Done", RULES) is NameKind.OTHER
    assert name_kind("", IntakeRules(marker="")) is NameKind.OTHER


def test_C2_a_file_settles_when_quiet() -> None:
    """It is handed over once, after `settle_s` without a change of size or mtime."""
    intake = Intake(RULES)
    assert intake.observe({PATH: state(5)}, 0.0) == []
    assert intake.due_s(0.0) == 10.0
    assert intake.observe({PATH: state(5)}, 9.9) == []
    assert paths(intake.observe({PATH: state(5)}, 10.0)) == [PATH]
    assert intake.observe({PATH: state(5)}, 1e6) == []
    assert intake.due_s(1e6) is None


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.integers(0, 2)), min_size=1, max_size=30))
def test_C2_nothing_settles_before_it_was_quiet(steps: list[tuple[float, int]]) -> None:
    """Property: whatever the history, a hand-over comes `settle_s` after the last change, and once a state."""
    intake, now, changed_at, size, handed = Intake(RULES), 0.0, 0.0, -1, -1
    for pause, growth in steps:
        now += pause
        if growth or size < 0:
            size, changed_at = size + max(growth, 1), now
        settled = intake.observe({PATH: state(size)}, now)
        due = now - changed_at >= RULES.settle_s - 1e-9 and handed != size
        assert bool(settled) <= (now - changed_at >= RULES.settle_s - 1e-9)
        assert bool(settled) == due
        handed = size if settled else handed


def test_C2_a_changed_file_is_looked_at_again() -> None:
    """A rewrite after the hand-over, even of the same size, makes it settle anew."""
    intake = Intake(RULES)
    intake.observe({PATH: state(5)}, 0.0)
    intake.observe({PATH: state(5)}, 10.0)
    assert intake.observe({PATH: state(5, mtime_s=3.0)}, 50.0) == []
    assert paths(intake.observe({PATH: state(5, mtime_s=3.0)}, 60.0)) == [PATH]


def test_C2_a_file_that_is_gone_is_forgotten() -> None:
    """Should it come back, it settles like a new one."""
    intake = Intake(RULES)
    intake.observe({PATH: state(5)}, 0.0)
    intake.observe({PATH: state(5)}, 10.0)
    assert intake.missing({}) == [PATH]
    intake.forget([PATH])
    assert intake.observe({PATH: state(5)}, 11.0) == []
    assert paths(intake.observe({PATH: state(5)}, 21.0)) == [PATH]


def test_F6_incomplete_waits_and_is_rejected_with_figures() -> None:
    """A file that is not whole is looked at again at growing intervals, and rejected on a last look at `give_up_s`."""
    intake, now, looks = Intake(RULES), 0.0, []
    verdict = None
    while verdict is None:
        if intake.observe({PATH: state(5)}, now):
            looks.append(now)
            verdict = intake.hold(PATH, state(5), SHORT, now)
        now = intake.due_s(now) or now
    assert looks == [10.0, 20.0, 40.0, 80.0, 100.0]
    assert (verdict.rule, verdict.value, verdict.threshold) == ("incomplete", 100.0, 100.0)
    assert verdict.message.endswith(": 10 of 20 bytes (length: found 10, needed 20)")
    assert intake.observe({PATH: state(5)}, 1e5) == []


def test_F6_growth_restarts_the_patience() -> None:
    """A held file that grows settles again; `give_up_s` counts from its last change."""
    intake = Intake(RULES)
    intake.observe({PATH: state(5)}, 0.0)
    intake.observe({PATH: state(5)}, 10.0)
    assert intake.hold(PATH, state(5), SHORT, 10.0) is None
    assert intake.observe({PATH: state(6)}, 15.0) == []
    assert intake.observe({PATH: state(6)}, 24.0) == []
    assert paths(intake.observe({PATH: state(6)}, 25.0)) == [PATH]
    assert intake.hold(PATH, state(6), SHORT, 114.0) is None
    assert paths(intake.observe({PATH: state(6)}, 115.0)) == [PATH]
    assert intake.hold(PATH, state(6), SHORT, 115.0) is not None


def test_F6_a_verdict_about_an_older_state_counts_for_nothing() -> None:
    """While the check read the file it was rewritten: what the check found is void."""
    intake = Intake(RULES)
    intake.observe({PATH: state(5)}, 0.0)
    intake.observe({PATH: state(5)}, 10.0)
    intake.observe({PATH: state(6)}, 500.0)
    assert intake.hold(PATH, state(5), SHORT, 501.0) is None
    assert intake.due_s(501.0) == 510.0


def test_C2_what_is_old_counts_as_quiet_in_process() -> None:
    """With the wall clock given, a file older than `settle_s` settles at first sight; one from the future does not."""
    intake = Intake(RULES)
    old, fresh, future = state(1, mtime_s=900.0), state(1, mtime_s=995.0), state(1, mtime_s=9999.0)
    seen = {"/in/old.fit": old, "/in/fresh.fit": fresh, "/in/future.fit": future}
    assert paths(intake.observe(seen, 0.0, wall_s=1000.0)) == ["/in/old.fit"]
    assert paths(intake.observe(seen, 5.0, wall_s=1005.0)) == ["/in/fresh.fit"]
    assert paths(intake.observe(seen, 10.0, wall_s=1010.0)) == ["/in/future.fit"]


def test_C2_what_was_judged_before_the_restart_rests() -> None:
    """A recalled path is handed over only if its size or mtime is another than the one that was judged."""
    intake = Intake(RULES)
    assert intake.unknown([PATH, "/in/b.fit"]) == [PATH, "/in/b.fit"]
    intake.recall({PATH: state(5), "/in/b.fit": state(5)}, 0.0)
    seen = {PATH: state(5, inode=77), "/in/b.fit": state(6)}
    intake.observe(seen, 0.0)
    assert paths(intake.observe(seen, 10.0)) == ["/in/b.fit"]
    assert same_state(state(5), state(5, inode=77))


def test_C3_a_marker_lets_settling_frames_in_first() -> None:
    """The marker of a folder is acted on when no frame beneath it is settling, and once, until it is touched."""
    intake, marker = Intake(RULES), {"/in/m94/.done": state(0)}
    intake.observe({"/in/m94/sub/a.fit": state(5), "/in/other/b.fit": state(5)}, 0.0)
    assert intake.markers(marker | {"/in/x/.done": state(0)}) == ["/in/x/.done"]
    assert intake.markers_wait
    intake.observe({"/in/m94/sub/a.fit": state(5)}, 10.0)
    assert intake.markers(marker) == ["/in/m94/.done"]
    assert intake.markers(marker) == []
    assert intake.markers({"/in/m94/.done": state(0, mtime_s=9.0)}) == ["/in/m94/.done"]


def test_C3_a_held_frame_does_not_keep_the_marker() -> None:
    """A truncated file must not keep a session open for an hour that the user has declared complete."""
    intake = Intake(RULES)
    intake.observe({"/in/a.fit": state(5)}, 0.0)
    intake.observe({"/in/a.fit": state(5)}, 10.0)
    intake.hold("/in/a.fit", state(5), SHORT, 10.0)
    assert intake.markers({"/in/.done": state(0)}) == ["/in/.done"]


def test_C6_status_can_say_what_files_wait_for() -> None:
    """Settling and held files are listed with how long they have been quiet, and why they are held."""
    intake = Intake(RULES)
    intake.observe({"/in/a.fit": state(5)}, 0.0)
    intake.observe({"/in/a.fit": state(5), "/in/b.fit": state(5)}, 10.0)
    intake.hold("/in/a.fit", state(5), SHORT, 10.0)
    assert [(w.path, w.quiet_s, w.look_at_s, w.reason) for w in intake.waiting(12.0)] == [
        ("/in/a.fit", 12.0, 20.0, SHORT),
        ("/in/b.fit", 2.0, 20.0, None),
    ]


def test_F38_twenty_thousand_files_are_cheap() -> None:
    """One observation of 20,000 files costs dict operations: linear, and far below a second."""
    intake = Intake(RULES)
    seen = {f"/in/{i:05d}.fit": state(i) for i in range(20_000)}
    started = time.perf_counter()
    intake.observe(seen, 0.0)
    assert len(intake.observe(seen, 10.0)) == 20_000
    intake.observe(seen, 20.0)
    assert intake.markers({"/in/.done": state(0)}) == ["/in/.done"]
    assert time.perf_counter() - started < 2.0
