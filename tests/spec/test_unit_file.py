"""The systemd unit that is shipped, judged by systemd's own tools where they are installed (SPEC C6; F12, M20)."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from zemosaicd.settings import Service

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "zemosaicd.service"

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def settings() -> dict[str, list[str]]:
    """Every key of the unit with its values, in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a program in the place of /opt/zemosaicd/bin/zemosaicd, so that it can be judged uninstalled."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/zemosaicd/bin/zemosaicd", shutil.which("true") or "/bin/true"))
    return unit


@needs_analyze
def test_C6_the_unit_verifies_clean(installed: Path) -> None:
    """systemd finds no unknown key, no bad value, and says nothing."""
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(installed)], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


@needs_analyze
def test_C6_the_sandbox_is_tight(installed: Path) -> None:
    """Exposure is at most 0.5 of 10; `--threshold` counts tenths."""
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=5", str(installed)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout[-200:]


def test_C6_readiness_watchdog_and_reload_are_wired() -> None:
    """systemd waits for READY, expects a beat, reloads by SIGHUP, and does not restart over a wrong configuration."""
    unit = settings()
    assert unit["Type"] == ["notify"]
    assert unit["WatchdogSec"] == ["60"]
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartSec"] == ["5"]
    assert unit["RestartPreventExitStatus"] == ["78"]
    assert unit["KillMode"] == ["mixed"]
    assert unit["OOMPolicy"] == ["continue"]


def test_F12_there_is_time_to_drain() -> None:
    """systemd kills no earlier than 10 s after the default `service.drain_s`."""
    assert float(settings()["TimeoutStopSec"][0]) >= Service().drain_s + 10.0


def test_C6_frames_are_read_only_and_scratch_is_on_disk() -> None:
    """Incoming cannot be written, output can, and neither scratch nor compiled kernels go to the temporary folder."""
    unit = settings()
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["ReadOnlyPaths"] == ["/srv/zemosaicd/incoming"]
    assert unit["ReadWritePaths"] == ["/srv/zemosaicd/output"]
    assert unit["CacheDirectory"] == ["zemosaicd"]
    environment = " ".join(unit["Environment"])
    assert "NUMBA_CACHE_DIR=/var/cache/zemosaicd/" in environment
    assert "TMPDIR=/var/cache/zemosaicd" in environment


@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("systemd-sysusers") and shutil.which("systemd-tmpfiles")),
    reason="needs root and systemd's tools",
)
def test_C6_user_and_folders_can_be_made(tmp_path: Path) -> None:
    """The sysusers and tmpfiles snippets make the user and the folders that the unit names (in a root of their own)."""
    for kind in ("sysusers", "tmpfiles"):
        folder = tmp_path / "usr/lib" / f"{kind}.d"
        folder.mkdir(parents=True)
        shutil.copy(SYSTEMD / f"zemosaicd.{kind}", folder / "zemosaicd.conf")
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], check=True, capture_output=True, timeout=60)
    assert re.search(r"^zemosaicd:", (tmp_path / "etc/passwd").read_text(), re.M)
    subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={tmp_path}", "zemosaicd.conf"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert (tmp_path / "srv/zemosaicd/incoming").stat().st_mode & 0o7777 == 0o2775
    assert (tmp_path / "srv/zemosaicd/output").is_dir()
