"""The shipped unit under a real systemd (SPEC C6; F12, F14, F36).

The box is a systemd as PID 1 in namespaces of its own over a throw-away overlay of this machine. The program is
installed into it where the unit looks for it, and everything else by the Makefile's own `install-service`.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from numba.core.caching import _CacheLocator

from tests.nights import ROOT, drop, night
from zemosaicd.simulate import Night

SCRIPT = Path(os.environ.get("ZEMOSAICD_SYSTEMD_BOX", ROOT.parent / "shared" / "systemd-box"))
NIGHT = Night(cols=2, frames=3)
UNIT = "zemosaicd"
CONFIG = "/etc/zemosaicd.toml"
PREFIX, KERNELS = "/opt/zemosaicd", "/var/cache/zemosaicd/numba"
QUICK = {"watch.settle_s": "0", "watch.scan_s": "1", "service.min_free_gb": "0", "executor.workers": "1"}
"""What a test cannot wait for; everything else is as shipped."""
ENTRY = """import sys

from zemosaicd.cli import main

if __name__ == "__main__":
    sys.exit(main())
"""
"""What pip makes of [project.scripts]."""

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.skipif(os.geteuid() != 0, reason="a systemd box needs root"),
    pytest.mark.skipif(not SCRIPT.is_file(), reason=f"no box at {SCRIPT} (set ZEMOSAICD_SYSTEMD_BOX)"),
    pytest.mark.skipif(shutil.which("make") is None, reason="`make install-service` needs make"),
]


PATIENCE_S = 120.0
POLL_S = 0.1

# --- the box -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A booted systemd. `home`: its folder on this machine; `since`: lines in the journal when a test began."""

    home: Path
    since: int = 0

    def command(self, *words: str) -> list[str]:
        return ["env", f"BOX={self.home}", str(SCRIPT), *words]

    def try_(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, well or not."""
        return subprocess.run(self.command("exec", *words), capture_output=True, text=True, timeout=120, cwd="/")

    def do(self, *words: str) -> str:
        """Runs a command inside, which must succeed; returns what it said."""
        done = self.try_(*words)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def path(self, inside: str) -> Path:
        """A path of the box as this machine sees it."""
        return Path(f"/proc/{(self.home / 'pid').read_text().strip()}/root{inside}")

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.do("systemctl", "show", UNIT, f"--property={name}", "--value")

    def state(self) -> tuple[str, str]:
        """Active and sub state, such as ("active", "running")."""
        return self.show("ActiveState"), self.show("SubState")

    def main_pid(self) -> int:
        """The daemon's process id inside the box; 0 when there is none."""
        return int(self.show("MainPID"))

    def processes(self) -> list[str]:
        """Every process of the service, workers too."""
        listed = self.path(f"/sys/fs/cgroup{self.show('ControlGroup') or '/none'}/cgroup.procs")
        return listed.read_text().split() if listed.exists() else []

    def said(self, since: int | None = None) -> list[str]:
        """What the service's own processes have said, line by line, after so many lines; None: since the test began.

        Not by cursor: journalctl 252 drops the first match after a cursor whose own entry does not match.
        """
        lines = self.do("journalctl", f"_SYSTEMD_UNIT={UNIT}.service", "--output=cat", "--no-pager").splitlines()
        return lines[self.since if since is None else since :]

    def now(self) -> int:
        """How many lines there are now."""
        return len(self.said(0))

    def seen(self, event: str, since: int | None = None) -> list[dict[str, Any]]:
        """The daemon's log lines of one event. Other words, such as a traceback, are passed over."""
        lines = (json.loads(line) for line in self.said(since) if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    def set(self, key: str, value: str) -> None:
        """Changes the installed configuration as its owner would."""
        self.do(f"{PREFIX}/bin/zemosaicd", "config", "set", "--config", CONFIG, key, value)

    def override(self, text: str) -> None:
        """`systemctl edit --runtime`; "" takes the edit back."""
        folder = self.path(f"/run/systemd/system/{UNIT}.service.d")
        shutil.rmtree(folder, ignore_errors=True)
        if text:
            folder.mkdir(parents=True)
            (folder / "override.conf").write_text(text)
        self.do("systemctl", "daemon-reload")

    def story(self) -> str:
        """For a failing test's message."""
        return self.try_("journalctl", "-u", UNIT, "-n", "25", "--no-pager", "--output=cat").stdout


def until(ask: Callable[[], object], what: str, story: Callable[[], str]) -> None:
    """Asks until the answer is true. Not often: each question is a process beside a daemon that compiles kernels."""
    deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while not ask():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s in vain for {what}\n{story()}"
        pause.wait(POLL_S)


def _must_be_bound(folder: Path) -> bool:
    """Whether the overlay of the root file system does not show the folder, or hides it under a fresh /tmp or /run."""
    hidden = any(folder.is_relative_to(top) for top in ("/tmp", "/run", "/dev", "/proc", "/sys"))
    return hidden or folder.stat().st_dev != Path("/").stat().st_dev


def _allow_user_namespaces(box: Box) -> None:
    """PrivateUsers= needs one, and the kernel refuses it to whoever is chrooted, as the box's systemd is.

    Its root is moved to be the root of its mount namespace too.
    """
    pid = (box.home / "pid").read_text().strip()
    root = str(box.home / "b" / "root")
    if box.try_("unshare", "--user", "true").returncode != 0:
        subprocess.run(["nsenter", "-t", pid, "-m", "mount", "--move", root, "/"], check=False, cwd="/", timeout=60)
    if box.try_("unshare", "--user", "true").returncode != 0:
        pytest.skip("the box has no user namespaces, which PrivateUsers= needs")


def _install_program(box: Box) -> None:
    """The package into /opt/zemosaicd, over this test's own interpreter and libraries.

    An interpreter that lies under somebody's home, which the sandbox hides, is shown to the box as /opt/python.
    """
    base = Path(sys.base_prefix).resolve()
    interpreter = base / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if base.is_relative_to("/root") or base.is_relative_to("/home"):
        box.do("mkdir", "-p", "/opt/python")
        box.do("mount", "--bind", str(base), "/opt/python")
        box.path("/etc/ld.so.conf.d/python.conf").write_text("/opt/python/lib\n")
        box.do("ldconfig")
        interpreter = Path("/opt/python/bin") / interpreter.name
    box.do(str(interpreter), "-m", "venv", "--without-pip", PREFIX)
    libraries = f"{PREFIX}/lib/libraries"
    box.do("mkdir", libraries)
    box.do("mount", "--bind", sysconfig.get_paths()["purelib"], libraries)
    packages = box.path(f"{PREFIX}/lib/{interpreter.name}/site-packages")
    (packages / "libraries.pth").write_text(f"{libraries}\n")
    shutil.copytree(ROOT / "zemosaicd", packages / "zemosaicd", ignore=shutil.ignore_patterns("__pycache__"))
    box.do(f"{PREFIX}/bin/python", "-m", "compileall", "-q", f"{PREFIX}/lib/{interpreter.name}/site-packages")
    script = box.path(f"{PREFIX}/bin/zemosaicd")
    script.write_text(f"#!{PREFIX}/bin/python\n{ENTRY}")
    script.chmod(0o755)


def _install_kernels(box: Box) -> None:
    """The tests' own compiled kernels into the service's cache, as if it had worked before.

    Numba keeps them in a folder that is named for that of the source, whose time and size must be the same.
    """
    source = next(box.path(f"{PREFIX}/lib").glob("python3*/site-packages/zemosaicd"))
    inside = f"/{source.relative_to(box.path('/'))}"
    for folder in (f for f in (ROOT / "zemosaicd").iterdir() if f.is_dir()):
        there, here = (
            _CacheLocator.get_suitable_cache_subpath(f"{top}/{folder.name}/any.py")
            for top in (inside, ROOT / "zemosaicd")
        )
        if (Path(os.environ["NUMBA_CACHE_DIR"]) / here).is_dir():
            shutil.copytree(Path(os.environ["NUMBA_CACHE_DIR"]) / here, box.path(f"{KERNELS}/{there}"))
    box.do("chown", "-R", "zemosaicd:zemosaicd", str(Path(KERNELS).parent))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A booted box with zemosaicd installed, not started."""
    made = Box(tmp_path_factory.mktemp("box"))
    needed = {ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    binds = [word for folder in sorted(needed) if _must_be_bound(folder) for word in ("--bind", str(folder))]
    up = subprocess.run(made.command("start", *binds), capture_output=True, text=True, timeout=60)
    try:
        if up.returncode != 0:
            pytest.skip(f"the box does not come up: {up.stderr.strip()}")
        _allow_user_namespaces(made)
        _install_program(made)
        made.do("make", "--directory", str(ROOT), "install-service")
        _install_kernels(made)
        for key, value in QUICK.items():
            made.set(key, value)
        yield made
    finally:
        subprocess.run(made.command("stop"), check=False, capture_output=True, timeout=60)


@pytest.fixture
def service(box: Box) -> Iterator[Box]:
    """The same box with the service running, as shipped."""
    fresh = replace(box, since=box.now())
    started = box.try_("systemctl", "start", UNIT)
    assert started.returncode == 0, f"{started.stderr}\n{box.story()}"
    yield fresh
    box.override("")
    box.try_("systemctl", "reset-failed", UNIT)  # no restarts, no failures, no starts counted


# --- what it promises ----------------------------------------------------------------------------------------------


def test_C6_it_is_started_when_it_is_ready_and_says_what_it_does(service: Box) -> None:
    """`systemctl start` returns with a watching daemon of its own user, whose status line is there."""
    service.do("systemctl", "restart", UNIT)
    assert service.state() == ("active", "running")
    assert service.show("Type") == "notify"
    assert service.do("ps", "-o", "user=", "-p", str(service.main_pid())) == "zemosaicd"
    assert service.seen("daemon_ready")
    until(lambda: service.show("StatusText").startswith("watching"), "the status line", service.story)
    asked = ("runuser", "-u", "zemosaicd", "--", f"{PREFIX}/bin/zemosaicd", "status", "--config", CONFIG)
    assert "folder /srv/zemosaicd/incoming: watched" in service.do(*asked)


def test_C6_F36_a_night_becomes_a_mosaic_that_everybody_can_read(service: Box) -> None:
    """Frames dropped by root end as a mosaic; it is public, the state is not; all that was said is JSON."""
    incoming, output = service.path("/srv/zemosaicd/incoming"), service.path("/srv/zemosaicd/output")
    drop(night(NIGHT), incoming)
    (incoming / ".done").touch()
    until(lambda: list(output.glob("*/mosaic.fits")), "the mosaic", service.story)
    until(lambda: service.seen("session_done"), "the end of its session", service.story)
    (mosaic,) = output.glob("*/mosaic.fits")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in mosaic.parent.iterdir()}
    assert modes == {"mosaic.fits": 0o644, "preview.png": 0o644, "report.json": 0o644}
    assert stat.S_IMODE(mosaic.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(service.path("/var/lib/zemosaicd/state").stat().st_mode) == 0o700
    service.do("runuser", "-u", "nobody", "--", "test", "-r", f"/srv/zemosaicd/output/{mosaic.parent.name}/mosaic.fits")
    assert {json.loads(line)["event"] for line in service.said()} >= {"session_closed", "mosaic_published"}
    assert (service.show("NRestarts"), service.show("Result")) == ("0", "success")


def test_C6_frames_cannot_be_touched_from_where_the_daemon_stands(service: Box) -> None:
    """Even root in the daemon's own mount namespace is refused: incoming is read-only, and so is the system."""
    stand = ("nsenter", f"--target={service.main_pid()}", "--mount")
    for place in ("/srv/zemosaicd/incoming/new.fit", "/etc/new", f"{PREFIX}/new"):
        refused = service.try_(*stand, "touch", place)
        assert "Read-only file system" in refused.stderr
    service.do(*stand, "touch", "/srv/zemosaicd/output/.test")
    assert service.do(*stand, "ls", "-A", "/root", "/home").split() == ["/home:", "/root:"]


def test_F34_reload_takes_a_good_configuration_and_refuses_a_bad_one(service: Box) -> None:
    """`systemctl reload` applies a changed file; a broken one is said in the journal, and the daemon stays."""
    pid = service.main_pid()
    service.set("session.quiet_min", "42")
    service.do("systemctl", "reload", UNIT)
    until(lambda: service.seen("config_reloaded"), "the reload", service.story)
    config = service.path(CONFIG)
    good = config.read_text()
    config.write_text(good + "\nnonsense = [\n")
    service.do("systemctl", "reload", UNIT)
    until(lambda: service.seen("config_kept"), "the refusal", service.story)
    config.write_text(good)
    until(lambda: service.state() == ("active", "running"), "READY again", service.story)
    assert service.main_pid() == pid


def test_F12_stop_ends_well_and_leaves_no_process(service: Box) -> None:
    """`systemctl stop` drains: result success, exit status 0, no worker left, far within TimeoutStopSec."""
    assert len(service.processes()) > 1
    service.do("systemctl", "stop", UNIT)
    assert service.state() == ("inactive", "dead")
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
    assert service.processes() == []
    assert service.do("ps", "-e", "-o", "user=").split().count("zemosaicd") == 0
    assert service.seen("daemon_stopped")


def test_C6_a_crash_is_restarted(service: Box) -> None:
    """kill -9 of the daemon: its workers die with it, and systemd brings up another that is ready."""
    service.override("[Service]\nRestartSec=0\n")
    before, since = service.main_pid(), service.now()
    service.do("kill", "-9", str(before))
    until(lambda: service.seen("daemon_ready", since), "another daemon", service.story)
    until(lambda: service.state() == ("active", "running"), "READY", service.story)
    assert service.main_pid() != before
    assert service.show("NRestarts") == "1"


def test_F14_a_frozen_daemon_is_restarted(service: Box) -> None:
    """The heart beats while the daemon lives; once it is frozen, the watchdog (here 2 s) ends and restarts it."""
    service.override("[Service]\nWatchdogSec=2\nRestartSec=0\n")
    service.do("systemctl", "restart", UNIT)
    before, since = service.main_pid(), service.now()
    last = service.show("WatchdogTimestampMonotonic")
    until(lambda: service.show("WatchdogTimestampMonotonic") != last, "a beat", service.story)
    service.do("kill", "-STOP", str(before))
    until(lambda: service.seen("daemon_ready", since), "another daemon", service.story)
    assert service.main_pid() != before
    assert "Watchdog timeout" in service.story()


def test_C6_a_wrong_configuration_is_not_tried_again_and_again(service: Box) -> None:
    """Exit status 78 ends it: failed, not restarted, and the reason is in the journal."""
    service.do("systemctl", "stop", UNIT)
    config = service.path(CONFIG)
    good = config.read_text()
    config.write_text(good.replace("[watch]", "[watch]\nnonsense = 1"))
    started = service.try_("systemctl", "start", UNIT)
    config.write_text(good)
    assert started.returncode != 0
    assert service.state() == ("failed", "failed")
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("78", "0")
    assert "nonsense" in service.story()
