"""The daemon and its keeper: sd_notify over real sockets, heartbeat, status file (SPEC C6; F8, F12, F14, F19)."""

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from zemosaicd.shell.supervisor import (
    DaemonStatus,
    Notifier,
    RootStatus,
    SessionStatus,
    WaitingFile,
    beat,
    keep_status,
    patiently,
    read_status,
    side_task,
    write_status,
)

STATUS = DaemonStatus(
    version="0.1.0",
    pid=42,
    state="running",
    line="1 session, 3 frames",
    roots=(RootStatus(path="/in/\udcff", polling="cifs"),),
    sessions=(SessionStatus(id="2025-03-26_M-94", phase="1", frames=3, waits_for="quiet", until_s=1743060000.0),),
    held=(WaitingFile(path="/in/a.fit", quiet_s=12.5, reason="10 of 20 bytes"),),
)


class Keeper:
    """What systemd is to the daemon: a datagram socket that is read."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(20.0)

    def read(self) -> list[str]:
        return self._socket.recv(65536).decode().split("\n")

    async def next(self) -> list[str]:
        return await asyncio.to_thread(self.read)

    def drain(self) -> list[list[str]]:
        self._socket.setblocking(False)
        messages: list[list[str]] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(self.read())
        return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def keeper(request: pytest.FixtureRequest) -> Iterator[Keeper]:
    """A keeper at a path, and one in the abstract name space."""
    folder = tempfile.mkdtemp(prefix="zm")  # a socket's path may have 107 bytes only
    keeper = Keeper(f"{folder}/notify" if request.param == "path" else f"@zemosaicd-test{folder}")
    yield keeper
    keeper.close()
    shutil.rmtree(folder)


def notifier_for(keeper: Keeper, watchdog_usec: int = 400_000) -> Notifier:
    return Notifier.from_environment({"NOTIFY_SOCKET": keeper.address, "WATCHDOG_USEC": str(watchdog_usec)})


def logger() -> tuple[LogCapture, structlog.typing.FilteringBoundLogger]:
    capture = LogCapture()
    return capture, structlog.wrap_logger(structlog.PrintLogger(sys.stderr), processors=[capture])


def test_C6_life_of_a_service(keeper: Keeper) -> None:
    """READY, then beats, a reload, beats again, STOPPING: in that order, each in systemd's words."""
    notifier = notifier_for(keeper, watchdog_usec=40_000)
    _, log = logger()

    async def main() -> list[list[str]]:
        notifier.ready("watching")
        heart = asyncio.create_task(beat(notifier, lambda: "", log))
        heard = [await keeper.next() for _ in range(4)]
        heart.cancel()
        await asyncio.wait([heart])
        heard += keeper.drain()
        notifier.reloading()
        notifier.ready()
        notifier.extend_timeout(30.0)
        notifier.stopping("draining")
        return heard + keeper.drain()

    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    heard = asyncio.run(main())
    notifier.close()
    assert heard[0] == ["READY=1", "STATUS=watching"]
    beats = heard[1:-4]
    assert len(beats) >= 3
    assert all(b == ["WATCHDOG=1"] for b in beats)
    reload_line, usec = heard[-4]
    assert reload_line == "RELOADING=1"
    assert int(usec.removeprefix("MONOTONIC_USEC=")) >= before_us
    assert heard[-3:] == [["READY=1"], ["EXTEND_TIMEOUT_USEC=30000000"], ["STOPPING=1", "STATUS=draining"]]


def test_C6_a_start_that_compiles_is_waited_for(keeper: Keeper) -> None:
    """As long as the workers are not up the keeper is asked for more time, again and again, and told why; then no
    more.
    """

    async def live() -> list[list[str]]:
        up = asyncio.Event()
        notifier = Notifier(keeper.address)
        start = asyncio.create_task(patiently(notifier, _none(up.wait()), step_s=0.01))
        heard = [await keeper.next() for _ in range(4)]
        up.set()
        await start
        keeper.drain()
        notifier.ready()
        heard.append(await keeper.next())
        notifier.close()
        return heard

    heard = asyncio.run(live())
    assert heard[0] == heard[2] == ["EXTEND_TIMEOUT_USEC=30000"]
    assert heard[1] == heard[3]
    assert "compiled" in heard[1][0]
    assert heard[4] == ["READY=1"]


def test_C6_a_start_that_fails_fails(keeper: Keeper) -> None:
    """What the workers' start raises is raised, at once."""

    async def broken() -> None:
        raise OSError("no processes left")

    notifier = Notifier(keeper.address)
    with pytest.raises(OSError, match="no processes left"):
        asyncio.run(patiently(notifier, broken()))
    notifier.close()
    assert keeper.drain() == []


async def _none(work: Awaitable[object]) -> None:
    await work


def test_C6_without_a_keeper_nothing_happens() -> None:
    """No NOTIFY_SOCKET, one that is gone, or one of a kind that we do not speak: no error, and False."""
    for environ in ({}, {"NOTIFY_SOCKET": "/nonexistent/notify"}, {"NOTIFY_SOCKET": "vsock:2:1234"}):
        notifier = Notifier.from_environment(environ)
        assert not notifier.ready("x")
        notifier.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_C6_the_watchdog_interval_is_read_as_systemd_means_it(environ: dict[str, str], seconds: float) -> None:
    """WATCHDOG_USEC counts when WATCHDOG_PID is absent or our own."""
    assert Notifier.from_environment(environ, pid=7).watchdog_s == seconds


def test_F19_a_status_line_cannot_smuggle_a_message(keeper: Keeper) -> None:
    """A target called `M94<newline>STOPPING=1` stays one line; a lone surrogate does not break the datagram."""
    notifier = notifier_for(keeper)
    assert notifier.status("M94\nSTOPPING=1\x1b[0m\u2028x \udcff")
    notifier.close()
    assert keeper.read() == ["STATUS=M94 STOPPING=1 [0m x \\udcff"]


def test_F14_a_blocked_loop_stops_the_beat(keeper: Keeper) -> None:
    """While the loop is blocked for longer than the watchdog interval, nothing is heard; then the heart goes on."""
    notifier = notifier_for(keeper, watchdog_usec=100_000)
    _, log = logger()

    async def main() -> tuple[int, list[str]]:
        heart = asyncio.create_task(beat(notifier, lambda: "", log))
        await keeper.next()
        keeper.drain()
        time.sleep(0.3)  # the fault itself: three watchdog intervals without the loop
        during = len(keeper.drain())
        keeper._socket.setblocking(True)
        after = await keeper.next()
        heart.cancel()
        await asyncio.wait([heart])
        return during, after

    assert asyncio.run(main()) == (0, ["WATCHDOG=1"])
    notifier.close()


def test_F14_a_failing_probe_withholds_the_beat(keeper: Keeper) -> None:
    """The beat means that the daemon lives, not that a timer runs; why it is withheld is said once."""
    notifier = notifier_for(keeper, watchdog_usec=8_000)
    capture, log = logger()
    answers = iter(["", "journal writer stuck", "journal writer stuck", "", "journal writer stuck"])
    asked = asyncio.Event()

    def probe() -> str:
        answer = next(answers, None)
        if answer is None:
            asked.set()
        return answer or ""

    async def main() -> None:
        heart = asyncio.create_task(beat(notifier, probe, log))
        await asked.wait()
        heart.cancel()
        await asyncio.wait([heart])

    asyncio.run(main())
    notifier.close()
    assert keeper.drain()[:2] == [["WATCHDOG=1"]] * 2
    assert [(e["event"], e["reason"]) for e in capture.entries] == [("heartbeat_withheld", "journal writer stuck")] * 2


@pytest.mark.parametrize("ending", ["returns", "raises"])
def test_F14_the_death_of_a_side_task_is_loud(ending: str) -> None:
    """A task that must run for ever takes the daemon with it, by error or by returning quietly."""
    capture, log = logger()

    async def work() -> None:
        if ending == "raises":
            raise ValueError("broken")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(side_task("watch", work(), log))
            group.create_task(asyncio.Event().wait())

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert isinstance(caught.value.exceptions[0], ValueError if ending == "raises" else RuntimeError)
    assert [(e["event"], e["task"]) for e in capture.entries] == [("side_task_died", "watch")]


def test_F12_cancelling_a_side_task_is_no_death() -> None:
    """Shutdown is quiet."""
    capture, log = logger()

    async def main() -> None:
        task = asyncio.create_task(side_task("watch", asyncio.Event().wait(), log))
        await asyncio.wait([task], timeout=0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    assert capture.entries == []


def test_C6_status_survives_the_file(tmp_path: Path) -> None:
    """What was written is what is read, names that are not UTF-8 included, and no temporary file stays."""
    path = tmp_path / "status.json"
    asyncio.run(write_status(path, STATUS))
    assert read_status(path) == STATUS
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"version": "1"}', '{"version": 1, "pid": "x", "state": "y"}']
)
def test_C6_a_broken_status_file_is_no_status(tmp_path: Path, text: str) -> None:
    """Absent, cut off or foreign: None, never an error."""
    path = tmp_path / "status.json"
    assert read_status(path) is None
    path.write_text(text)
    assert read_status(path) is None


def test_C6_status_is_written_when_it_changes(keeper: Keeper, tmp_path: Path) -> None:
    """The file and systemd's line follow what the daemon says; an unchanged status is not written again."""
    notifier = notifier_for(keeper)
    _, log = logger()
    path = tmp_path / "status.json"
    current, asked = [STATUS], asyncio.Event()
    times = iter(float(t) for t in range(10**6))

    def make() -> DaemonStatus:
        asked.set()
        return replace(current[0], written_at_s=next(times))

    async def until_line(line: str) -> None:
        while (found := read_status(path)) is None or found.line != line:
            asked.clear()
            await asked.wait()

    async def main() -> None:
        task = asyncio.create_task(keep_status(path, make, notifier, log, every_s=0.001))
        async with asyncio.timeout(20.0):
            await until_line("1 session, 3 frames")
            first = path.stat().st_mtime_ns
            for _ in range(5):
                asked.clear()
                await asked.wait()
            assert path.stat().st_mtime_ns == first
            current[0] = replace(STATUS, line="4 frames")
            await until_line("4 frames")
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    notifier.close()
    assert keeper.drain() == [["STATUS=1 session, 3 frames"], ["STATUS=4 frames"]]


def test_F8_a_status_that_cannot_be_written_does_not_stop_the_daemon(tmp_path: Path) -> None:
    """No folder, full disk: one warning, tried again, and nothing partial is left."""
    capture, log = logger()
    folder = tmp_path / "state"
    numbers = iter(range(10**6))

    def make() -> DaemonStatus:
        if (number := next(numbers)) == 5:
            folder.mkdir()
        return replace(STATUS, settling=number)

    async def main() -> None:
        task = asyncio.create_task(keep_status(folder / "status.json", make, Notifier(), log, every_s=0.0))
        async with asyncio.timeout(20.0):
            while read_status(folder / "status.json") is None:
                await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert [e["event"] for e in capture.entries] == ["status_not_written"]
