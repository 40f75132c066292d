"""The watcher on real folders: the scan is the truth, events are hints (SPEC C2; F4, F5, F6, F17, F38, F39)."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from zemosaicd.core.intake import IntakeRules
from zemosaicd.model import Fingerprint, Reason
from zemosaicd.shell import hints as hints_module
from zemosaicd.shell.hints import RootHints
from zemosaicd.shell.scan import filesystem_of, scan_tree
from zemosaicd.shell.watch import Batch, Watcher, WatchPolicy

RULES = IntakeRules(settle_s=10.0, give_up_s=100.0)
SHORT = Reason(rule="length", value=1, threshold=2, message="short")


class FakeClock:
    """Time that stands until it is told."""

    def __init__(self, wall_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.offset_s = wall_s

    def monotonic(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return self.offset_s + self.now_s


class Desk:
    """A watcher with a fake clock and a log to read; `look` and `after` make single looks."""

    def __init__(self, *roots: Path, policy: WatchPolicy | None = None, **more: object) -> None:
        self.capture = LogCapture()
        self.clock = FakeClock()
        self.watcher = Watcher(
            [str(r) for r in roots],
            RULES,
            policy or WatchPolicy(),
            log=structlog.wrap_logger(structlog.PrintLogger(sys.stderr), processors=[self.capture]),
            clock=self.clock,
            **more,  # type: ignore[arg-type]
        )

    def look(self, after_s: float = 0.0) -> Batch:
        self.clock.now_s += after_s
        return asyncio.run(self.watcher.look())

    def settled(self, after_s: float = 0.0) -> list[str]:
        return [s.path for s in self.look(after_s).settled]

    def events(self, level: str = "warning") -> list[str]:
        return [e["event"] for e in self.capture.entries if e["log_level"] == level]


def frame(path: Path, size: int = 10) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return str(path)


# ---- single looks -----------------------------------------------------------------------------------------------


def test_C2_takes_up_what_already_lies_there(tmp_path: Path) -> None:
    """Frames in subfolders are found at start, and settle once they have been quiet."""
    expected = sorted([frame(tmp_path / "a.fit"), frame(tmp_path / "M 94" / "lights" / "b.fits.gz")])
    frame(tmp_path / "M 94" / "b_thn.jpg")
    frame(tmp_path / "@eaDir" / "c.fit")
    desk = Desk(tmp_path)
    assert desk.settled() == []
    assert desk.settled(after_s=10.0) == expected
    assert desk.settled(after_s=10.0) == []


def test_C2_renamed_copies_settle_under_their_new_name(tmp_path: Path) -> None:
    """rsync and browsers write under a hidden or `.part` name; the frame appears with the rename."""
    part = tmp_path / ".a.fit.Xy12Zz"
    frame(part)
    desk = Desk(tmp_path)
    desk.look()
    assert desk.settled(after_s=60.0) == []
    part.rename(tmp_path / "a.fit")
    assert desk.settled(after_s=60.0) == []
    assert desk.settled(after_s=10.0) == [str(tmp_path / "a.fit")]


def test_F6_a_dripping_file_waits(tmp_path: Path) -> None:
    """A file that grows between looks does not settle, however long that takes."""
    path = tmp_path / "a.fit"
    frame(path, 1)
    desk = Desk(tmp_path)
    desk.look()
    for size in range(2, 30):
        frame(path, size)
        assert desk.settled(after_s=9.0) == []
    assert desk.settled(after_s=10.0) == [str(path)]


def test_F6_a_held_file_comes_back_and_is_rejected(tmp_path: Path) -> None:
    """What the content check finds incomplete is handed over again, and given up after `watch.give_up_s`."""
    frame(tmp_path / "a.fit")
    desk = Desk(tmp_path)
    desk.look()
    verdict, looks = None, 0
    while verdict is None:
        for settled in desk.look(after_s=10.0).settled:
            looks += 1
            verdict = desk.watcher.hold(settled.path, settled.fingerprint, SHORT)
    assert looks > 2
    assert (verdict.value, verdict.threshold) == (100.0, 100.0)
    assert desk.watcher.waiting() == []


def test_C2_what_the_journal_knows_is_not_handed_over_again(tmp_path: Path) -> None:
    """After a restart only new and changed files come."""
    known, changed = frame(tmp_path / "known.fit"), frame(tmp_path / "changed.fit")
    past = {
        p: Fingerprint(device=0, inode=0, size=s.st_size, mtime_ns=s.st_mtime_ns)
        for p in (known, changed)
        for s in [Path(p).stat()]
    }
    frame(Path(changed), 99)
    desk = Desk(tmp_path, known=lambda paths: {p: past[p] for p in paths if p in past})
    desk.look()
    assert desk.settled(after_s=10.0) == [changed]


def test_C3_a_marker_comes_after_the_frames_of_its_folder(tmp_path: Path) -> None:
    """The marker that a user drops with the last frame closes the session with that frame in it."""
    frame(tmp_path / "n" / "a.fit")
    marker = tmp_path / "n" / ".done"
    marker.touch()
    desk = Desk(tmp_path)
    assert desk.look() == Batch()
    batch = desk.look(after_s=10.0)
    assert ([s.path for s in batch.settled], batch.markers) == ([str(tmp_path / "n" / "a.fit")], (str(marker),))


def test_M2_a_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    """A byte 0xFF in a filename neither hides the file nor stops the scan."""
    raw = os.fsencode(tmp_path) + b"/\xff.fit"
    with open(raw, "wb") as file:
        file.write(b"x")
    desk = Desk(tmp_path)
    desk.look()
    assert [os.fsencode(p) for p in desk.settled(after_s=10.0)] == [raw]


def test_F17_only_regular_files_count(tmp_path: Path) -> None:
    """Links, FIFOs, sockets and folders that look like frames are passed by and counted; links are not followed."""
    outside = tmp_path / "outside"
    frame(outside / "secret.fit")
    root = tmp_path / "in"
    good = frame(root / "good.fit")
    (root / "link.fit").symlink_to(outside / "secret.fit")
    (root / "linked").symlink_to(outside)
    (root / "dir.fit").mkdir()
    os.mkfifo(root / "pipe.fit")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)  # a socket's path may have 107 bytes only
        server.bind("socket.fit")
        os.chdir(here)
        desk = Desk(root)
        desk.look()
        assert desk.settled(after_s=10.0) == [good]
    assert [e["count"] for e in desk.capture.entries if e["event"] == "watch_specials_ignored"] == [3]


def test_F18_output_and_state_are_not_searched(tmp_path: Path) -> None:
    """Folders of our own inside an incoming folder are pruned, by identity, however they are spelled."""
    frame(tmp_path / "out" / "s" / "mosaic.fits")
    good = frame(tmp_path / "outer" / "a.fit")
    alias = tmp_path / "alias"
    alias.symlink_to(tmp_path / "out")
    scan = scan_tree([str(tmp_path)], RULES, prune=[str(alias), str(tmp_path / "not yet made")])
    assert list(scan.frames) == [good]


def test_F39_a_folder_that_is_away_is_an_outage_not_a_deletion(tmp_path: Path) -> None:
    """Its files are not forgotten, the outage is said once, and what was judged is not handed over again."""
    share = tmp_path / "share"
    frame(share / "a.fit")
    desk = Desk(share)
    desk.look()
    assert len(desk.settled(after_s=10.0)) == 1
    share.rename(tmp_path / "unplugged")
    assert desk.look(after_s=10.0) == desk.look(after_s=10.0) == Batch()
    assert desk.events() == ["watch_folder_away"]
    assert desk.watcher.root_states()[0].away
    (tmp_path / "unplugged").rename(share)
    assert desk.settled(after_s=60.0) == []
    assert desk.events("info") == ["watch_folder_back"]


def test_F39_a_deleted_file_is_reported_gone(tmp_path: Path) -> None:
    """A file missing from a folder that can be read is gone, and forgotten."""
    path = frame(tmp_path / "a.fit")
    desk = Desk(tmp_path)
    desk.look()
    Path(path).unlink()
    assert desk.look(after_s=1.0).gone == (path,)
    assert desk.watcher.waiting() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_F36_an_unreadable_subfolder_is_said_once(tmp_path: Path) -> None:
    """The rest of the tree is watched all the same, and nothing in that folder is taken for gone."""
    closed = tmp_path / "closed"
    frame(closed / "b.fit")
    desk = Desk(tmp_path)
    desk.look()
    closed.chmod(0)
    try:
        assert desk.look().gone == desk.look().gone == ()
    finally:
        closed.chmod(0o700)
    assert desk.events() == ["watch_unreadable"]


def test_F17_a_tree_without_end_is_cut_off(tmp_path: Path) -> None:
    """Folders nested beyond reason are reported, and cost no descriptors beyond the limit."""
    deep = tmp_path.joinpath(*["d"] * 30)
    frame(deep / "a.fit")
    desk = Desk(tmp_path)
    desk.look()
    assert desk.watcher.waiting() == []
    assert desk.events() == ["watch_unreadable"]


MOUNTS = """/dev/sda1 / ext4 rw 0 0
tmpfs /srv tmpfs rw 0 0
//nas/astro /srv/my\\040share cifs rw 0 0
nas:/x /home/me/nas nfs4 rw 0 0
/dev/sdb1 /home/me/nas ext4 rw 0 0
sshfs /mnt/pi fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x", "ext4"),
        ("/srv/a", "tmpfs"),
        ("/srv/my share/a", "cifs"),
        ("/srv/my shared", "tmpfs"),
        ("/home/me/nas", "ext4"),
        ("/mnt/pi/x", "fuse.sshfs"),
    ],
)
def test_F39_the_file_system_of_a_path_is_known(path: str, kind: str) -> None:
    """The longest mount point wins, the later of two on one point, and escapes are read."""
    assert filesystem_of(path, MOUNTS) == kind


# ---- the loop ---------------------------------------------------------------------------------------------------


class Run:
    """A watcher running for real, with small times; `until` waits for a condition, never for a time."""

    def __init__(self, root: Path, rules: IntakeRules, policy: WatchPolicy, prune: tuple[str, ...] = ()) -> None:
        self.capture = LogCapture()
        self.taken: list[str] = []
        self.markers: list[str] = []
        self.news = asyncio.Event()
        log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr), processors=[self.capture])
        self.watcher = Watcher([str(root)], rules, policy, log=log, prune=prune)

    async def deliver(self, batch: Batch) -> None:
        self.taken += [s.path for s in batch.settled]
        self.markers += batch.markers
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20.0):
            while not condition():
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), timeout=0.02)

    def saw(self, event: str) -> bool:
        return any(e["event"] == event for e in self.capture.entries)


def watching(
    root: Path,
    scenario: Callable[[Run], Awaitable[None]],
    settle_s: float = 0.05,
    scan_s: float = 600.0,
    polling: str = "never",
) -> Run:
    """Run a watcher beside `scenario`, and cancel it at the end."""

    async def main() -> Run:
        run = Run(root, IntakeRules(settle_s=settle_s, give_up_s=100.0), WatchPolicy(scan_s=scan_s, polling=polling))
        task = asyncio.create_task(run.watcher.run(run.deliver))
        try:
            await scenario(run)
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled(), task.exception()
        return run

    return asyncio.run(main())


def test_C2_a_hint_brings_a_frame_long_before_the_next_scan(tmp_path: Path) -> None:
    """With ten minutes between scans, a new frame in a new subfolder still comes at once."""

    async def scenario(run: Run) -> None:
        await run.until(lambda: run.saw("watch_folder"))
        path = frame(tmp_path / "new" / "a.fit")
        await run.until(lambda: path in run.taken)

    watching(tmp_path, scenario)


def test_F39_polling_is_right_without_a_single_event(tmp_path: Path) -> None:
    """With watchdog off, scans alone find frames and markers."""

    async def scenario(run: Run) -> None:
        path = frame(tmp_path / "a.fit")
        await run.until(lambda: path in run.taken)
        (tmp_path / ".done").touch()
        await run.until(lambda: run.markers == [str(tmp_path / ".done")])

    run = watching(tmp_path, scenario, scan_s=0.05, polling="always")
    assert run.watcher.root_states()[0].polling == "by configuration"


def test_F34_a_reload_changes_the_rules_under_way(tmp_path: Path) -> None:
    """New `[watch]` keys hold from the next look on: here hints are turned off, and another name is ignored."""

    async def scenario(run: Run) -> None:
        await run.until(lambda: run.saw("watch_folder"))
        rules = IntakeRules(settle_s=0.05, ignore=("b*",))
        run.watcher.reconfigure(rules, WatchPolicy(scan_s=0.05, polling="always"))
        await run.until(lambda: bool(run.watcher.root_states()[0].polling))
        ignored, path = frame(tmp_path / "b.fit"), frame(tmp_path / "c.fit")
        await run.until(lambda: path in run.taken)
        assert ignored not in run.taken

    watching(tmp_path, scenario)


def test_F5_a_folder_made_anew_is_watched_again(tmp_path: Path) -> None:
    """Deleted and created again, the folder gets hints again; the watcher never ends."""
    root = tmp_path / "in"
    root.mkdir()

    async def scenario(run: Run) -> None:
        await run.until(lambda: run.saw("watch_folder"))
        root.rename(tmp_path / "old")
        run.watcher.rescan()
        await run.until(lambda: run.saw("watch_folder_away"))
        root.mkdir()
        run.watcher.rescan()
        await run.until(lambda: [e["event"] for e in run.capture.entries].count("watch_folder") == 2)
        path = frame(root / "a.fit")
        await run.until(lambda: path in run.taken)

    watching(root, scenario)


def test_F5_a_dead_observer_means_polling_and_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While watchdog cannot run (limits, a bad name) frames still come; it is said once, and so is its return."""
    monkeypatch.setattr(hints_module, "PAUSE_MIN_S", 0.01)

    async def scenario(run: Run) -> None:
        await run.until(lambda: run.saw("watch_folder") and all(h.alive() for h in run.watcher._hints.values()))
        run.watcher._hints[str(tmp_path)]._observer.stop()
        path = frame(tmp_path / "a.fit")
        await run.until(lambda: path in run.taken and run.saw("watch_events_restored"))

    run = watching(tmp_path, scenario, scan_s=0.05)
    assert [e["event"] for e in run.capture.entries].count("watch_degraded") == 1


def test_F5_limits_of_inotify_are_named(tmp_path: Path) -> None:
    """An observer that cannot start says why, waits longer each time, and leaves no threads behind."""
    hints = RootHints(str(tmp_path / "absent"), lambda: None)
    hints.start(0.0)
    assert "No such file" in hints.trouble
    assert [hints.due(4.9), hints.due(5.0)] == [False, True]
    hints.start(5.0)
    assert [hints.due(14.9), hints.due(15.0)] == [False, True]
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert limited.stdout.strip() == "Too many open files", limited.stderr


LIMITED = """
import resource, sys
from zemosaicd.shell.hints import RootHints
hints = RootHints(sys.argv[1], lambda: None)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
hints.start(0.0)
print(hints.trouble.split(" (")[0].replace("inotify instance limit reached", "Too many open files"))
"""


def test_C2_process_takes_what_lies_there_and_ends(tmp_path: Path) -> None:
    """`once`: old files at once, fresh ones after settling; what is not whole is rejected, not waited for."""
    old, fresh, cut = (frame(tmp_path / name) for name in ("old.fit", "fresh.fit", "cut.fit"))
    os.utime(old, (1e9, 1e9))
    os.utime(cut, (1e9, 1e9))
    rules = IntakeRules(settle_s=0.2, give_up_s=3600.0)
    verdicts: list[Reason | None] = []

    async def main() -> list[list[str]]:
        run = Run(tmp_path, rules, WatchPolicy(once=True))
        rounds: list[list[str]] = []

        async def deliver(batch: Batch) -> None:
            rounds.append([s.path for s in batch.settled])
            verdicts.extend(run.watcher.hold(s.path, s.fingerprint, SHORT) for s in batch.settled if s.path == cut)

        async with asyncio.timeout(20.0):
            await run.watcher.run(deliver)
        return rounds

    assert asyncio.run(main()) == [[cut, old], [fresh]]
    assert [v.rule for v in verdicts if v] == ["incomplete"]


def test_C2_process_of_a_missing_folder_ends(tmp_path: Path) -> None:
    """Nothing to wait for, nothing to hang on."""

    async def main() -> Run:
        run = Run(tmp_path / "absent", RULES, WatchPolicy(once=True))
        async with asyncio.timeout(20.0):
            await run.watcher.run(run.deliver)
        return run

    assert asyncio.run(main()).saw("watch_folder_away")


STORM = """
import asyncio, json, sys
import structlog
from zemosaicd.core.intake import IntakeRules
from zemosaicd.shell.watch import Watcher, WatchPolicy

async def main(root, expected):
    log = structlog.wrap_logger(structlog.PrintLogger(sys.stdout), processors=[structlog.processors.JSONRenderer()])
    watcher = Watcher([root], IntakeRules(settle_s=0.3), WatchPolicy(scan_s=2.0, polling="never"), log=log)
    seen, done, gap = set(), asyncio.Event(), 0.0
    async def deliver(batch):
        seen.update(s.path for s in batch.settled)
        if len(seen) >= expected:
            done.set()
    async def pulse():
        nonlocal gap
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            gap = max(gap, loop.time() - before - 0.01)
    task = asyncio.create_task(watcher.run(deliver))
    beat = asyncio.create_task(pulse())
    while not all(h.alive() for h in watcher._hints.values()) or not watcher._hints:
        await asyncio.sleep(0.01)
    print(json.dumps({"event": "up"}), flush=True)
    await done.wait()
    beat.cancel()
    task.cancel()
    await asyncio.wait([task, beat])
    print(json.dumps({"event": "done", "seen": len(seen), "gap_s": gap}), flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def storm(root: Path, count: int, *, stop: bool) -> list[dict[str, object]]:
    """Make `count` files, before a watcher starts or while it is stopped; return its lines after that."""

    def make() -> None:
        for i in range(count):
            os.close(os.open(root / f"{i:05d}.fit", os.O_CREAT | os.O_WRONLY))

    if not stop:
        make()
    command = [sys.executable, "-c", STORM, str(root), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            while json.loads(child.stdout.readline())["event"] != "up":
                pass
            if stop:
                child.send_signal(signal.SIGSTOP)
                make()
                child.send_signal(signal.SIGCONT)
            return [json.loads(line) for line in child.stdout]
        finally:
            child.kill()


def test_F4_an_overflow_loses_no_frame(tmp_path: Path) -> None:
    """Stopped while 20,000 names are made, beyond the kernel's event queue: all come, with at most one warning."""
    lines = storm(tmp_path, 20_000, stop=True)
    assert lines[-1]["seen"] == 20_000
    assert sum(line["event"] == "watch_events_lost" for line in lines) <= 1


def test_F38_a_full_folder_does_not_stop_the_heart(tmp_path: Path) -> None:
    """20,000 frames at once: all settle, and the loop never pauses for a noticeable part of a watchdog interval."""
    lines = storm(tmp_path, 20_000, stop=False)
    assert lines[-1]["seen"] == 20_000
    assert float(str(lines[-1]["gap_s"])) < 5.0
