"""Worker processes that are killed, hang, or outlive their parent."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from tests.fakejobs import Die, Echo, Hang, Hold
from zemosaicd.shell.executors import Death, Job, Pool, Quarantined
from zemosaicd.shell.template import FOLDER

ROOT = Path(__file__).parents[2]


def with_pool(body: Callable[[Pool, list[tuple[Job, Death]]], Awaitable[None]], workers: int = 2) -> None:
    """Run a test body with a started pool and the list of deaths that it tells of."""

    async def whole() -> None:
        deaths: list[tuple[Job, Death]] = []
        pool = Pool(workers, on_death=lambda job, death: deaths.append((job, death)))
        await pool.start()
        try:
            await body(pool, deaths)
        finally:
            await pool.aclose()

    asyncio.run(whole())
    assert multiprocessing.active_children() == []


def holds(tmp_path: Path, count: int) -> list[Hold]:
    jobs = []
    for index in range(count):
        job = Hold(begun=str(tmp_path / f"begun{index}"), go=str(tmp_path / f"go{index}"))
        os.mkfifo(job.begun)
        os.mkfifo(job.go)
        jobs.append(job)
    return jobs


async def begun(job: Hold) -> int:
    return int((await asyncio.to_thread(Path(job.begun).read_text)).split()[0])


async def let_go(job: Hold) -> None:
    await asyncio.to_thread(Path(job.go).write_text, "go\n")


def test_F9_a_killed_worker_costs_no_other_job_its_result(tmp_path: Path) -> None:
    """kill -9 of one of two busy workers: every job's result arrives, and the killed one's comes from a run alone."""

    async def body(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
        first, second = holds(tmp_path, 2)
        running = [asyncio.create_task(pool.run(job)) for job in (first, second)]
        victim, bystander = await asyncio.gather(begun(first), begun(second))
        waiting = [asyncio.create_task(pool.run(Echo(value=i))) for i in range(6)]
        await asyncio.sleep(0)
        os.kill(victim, signal.SIGKILL)
        alone = await begun(first)  # it is run first, and with nothing beside it
        assert pool.pids() == (alone,)
        await let_go(first)
        again = await begun(second)
        await let_go(second)
        assert await asyncio.gather(*running) == [alone, again]
        assert await asyncio.gather(*waiting) == list(range(6))
        assert {victim, bystander}.isdisjoint({alone, again})
        ((job, death),) = deaths
        assert job == first
        assert death == Death(pid=victim, signal=signal.SIGKILL, hung=False, alone=False, deaths=0)

    with_pool(body)


def test_F9_a_poison_job_is_quarantined_after_three_deaths_alone(tmp_path: Path) -> None:
    """A job that kills its worker each time is given up with its reason; all the others are done (M12)."""

    async def body(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
        notes = tmp_path / "notes"
        good = [asyncio.create_task(pool.run(Echo(value=i))) for i in range(5)]
        poison = asyncio.create_task(pool.run(Die(notes=str(notes))))
        more = [asyncio.create_task(pool.run(Echo(value=i))) for i in range(5, 10)]
        with pytest.raises(Quarantined, match="SIGKILL") as given_up:
            await poison
        assert given_up.value.reason.rule == "worker_died"
        assert given_up.value.reason.value == 3
        assert await asyncio.gather(*good, *more) == list(range(10))
        assert [death.alone for _, death in deaths] == [False, True, True, True]
        assert len(notes.read_text().splitlines()) == 4

    with_pool(body)


def test_F9_a_job_that_dies_once_is_done_at_its_second_try(tmp_path: Path) -> None:
    """Bad luck is not poison: after one death the job runs alone and its result counts."""

    async def body(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
        assert await pool.run(Die(notes=str(tmp_path / "notes"), lives=1)) == "survived"
        assert len(deaths) == 1

    with_pool(body)


def test_F11_a_hung_job_is_killed_and_counted(tmp_path: Path) -> None:
    """At its time limit a job's worker is killed and the job blamed; the jobs beside it are done."""

    async def body(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
        hung = asyncio.create_task(pool.run(Hang(notes=str(tmp_path / "notes")), timeout_s=0.3))
        good = [asyncio.create_task(pool.run(Echo(value=i), timeout_s=60.0)) for i in range(6)]
        with pytest.raises(Quarantined, match="hung"):
            await hung
        assert await asyncio.gather(*good) == list(range(6))
        assert [(death.hung, death.deaths) for _, death in deaths] == [(True, 1), (True, 2), (True, 3)]

    with_pool(body)


def test_F9_workers_killed_while_idle_are_replaced() -> None:
    """A pool whose workers were all killed between jobs does the next job and blames nobody."""

    async def body(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
        before = pool.pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert await asyncio.gather(*(pool.run(Echo(value=i)) for i in range(4))) == list(range(4))
        assert set(before).isdisjoint(pool.pids())
        assert deaths == []

    with_pool(body)


def test_F9_a_cancelled_job_is_not_run_again(tmp_path: Path) -> None:
    """When the worker of a job dies for which nobody waits any more, the job is dropped."""

    async def body(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
        (job,) = holds(tmp_path, 1)
        task = asyncio.create_task(pool.run(job))
        pid = await begun(job)
        task.cancel()
        os.kill(pid, signal.SIGKILL)
        assert await pool.run(Echo(value=1)) == 1
        assert task.cancelled()
        assert deaths == []

    with_pool(body)


def test_F12_closing_abandons_a_hung_job_at_once(tmp_path: Path) -> None:
    """aclose(0) kills what runs: no child is left, within seconds."""

    async def body(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
        (job,) = holds(tmp_path, 1)
        task = asyncio.create_task(pool.run(job))
        await begun(job)
        started = time.monotonic()
        await pool.aclose(0.0)
        assert time.monotonic() - started < 5.0
        assert task.done() or (await asyncio.wait([task]))
        assert task.exception() is not None

    with_pool(body)


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.fakejobs import Hold
from zemosaicd.shell.executors import Pool

async def main():
    folder = Path(sys.argv[1])
    pool = Pool(2)
    await pool.start()
    jobs = [Hold(begun=str(folder / f"begun{i}"), go=str(folder / f"go{i}")) for i in range(2)]
    results = await asyncio.gather(*(pool.run(job) for job in jobs))
    (folder / "results").write_text(" ".join(map(str, results)))
    await pool.aclose()

if __name__ == "__main__":
    import signal
    signal.signal(signal.SIGTERM, lambda *_: None)
    asyncio.run(main())
"""


def start_parent(tmp_path: Path) -> tuple[subprocess.Popen[bytes], list[Hold], list[int]]:
    """A process group of its own: a daemon in small, and its two busy workers' pids."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    jobs = holds(tmp_path, 2)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path], start_new_session=True, env=environment, stderr=subprocess.PIPE
    )
    return parent, jobs, [int(Path(job.begun).read_text().split()[0]) for job in jobs]


def test_M13_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 of the daemon: no worker is left (a zombie counts as gone)."""
    parent, _, pids = start_parent(tmp_path)
    watches = [os.pidfd_open(pid) for pid in pids]
    parent.kill()
    parent.communicate(timeout=30)
    for watch in watches:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        assert poll.poll(10_000), "a worker lives on"
        os.close(watch)


def test_F9_a_killed_template_is_made_anew(tmp_path: Path) -> None:
    """The process that workers are forked from is killed: they die with it, and every job is run to its end all the
    same, by workers of another one."""

    async def body(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
        (job,) = holds(tmp_path, 1)
        held = asyncio.create_task(pool.run(job))
        pid = await begun(job)
        template = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        watch = os.pidfd_open(pid)
        os.kill(template, signal.SIGKILL)
        echo = asyncio.create_task(pool.run(Echo(value=1)))
        assert await asyncio.to_thread(select.select, [watch], [], [], 10.0) == ([watch], [], [])
        os.close(watch)
        again = await begun(job)
        await let_go(job)
        assert await held == again != pid
        assert await echo == 1

    with_pool(body)


def test_F9_a_template_that_is_dying_is_made_anew(tmp_path: Path) -> None:
    """The socket of the process that workers are forked from has gone already, its end cannot be seen yet: a job that
    needs a worker then has one from another template."""

    async def body(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
        (job,) = holds(tmp_path, 1)
        held = asyncio.create_task(pool.run(job))
        pid = await begun(job)
        server: Any = forkserver._forkserver  # type: ignore[attr-defined]
        dying = server._forkserver_pid
        gone = tempfile.mktemp(dir=Path(server._forkserver_address).parent)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(gone)
        Path(server._forkserver_address).unlink()
        server._forkserver_address = gone
        os.kill(pid, signal.SIGKILL)
        again = await begun(job)
        await let_go(job)
        assert await held == again != pid
        assert server._forkserver_pid != dying

    with_pool(body)


def test_M13_what_a_killed_parent_leaves_goes_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 leaves the folder of the template's socket; a later daemon takes it away, a living one's never."""
    temporary = Path(tempfile.mkdtemp())  # a socket's path is short
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "killed").mkdir()
    (tmp_path / "living").mkdir()
    killed, _, _ = start_parent(tmp_path / "killed")
    killed.kill()
    killed.communicate(timeout=30)
    (left,) = temporary.glob(f"{FOLDER}*")
    living, jobs, _ = start_parent(tmp_path / "living")
    (own,) = set(temporary.glob(f"{FOLDER}*")) - {left}
    for folder in (left, own):
        os.utime(folder, (0, 0))
    with_pool(let_be)
    assert list(temporary.iterdir()) == [own]
    for job in jobs:
        Path(job.go).write_text("go\n")
    _, errors = living.communicate(timeout=30)
    assert living.returncode == 0, errors.decode()
    temporary.rmdir()  # there is nothing left


async def let_be(pool: Pool, deaths: list[tuple[Job, Death]]) -> None:
    """A pool that has nothing to do."""


def test_M14_SIGTERM_to_the_group_leaves_running_jobs_alone(tmp_path: Path) -> None:
    """systemd's or a shell's SIGTERM to everybody: both jobs end as if nothing had been, on the same workers."""
    parent, jobs, pids = start_parent(tmp_path)
    os.killpg(parent.pid, signal.SIGTERM)
    for job in jobs:
        Path(job.go).write_text("go\n")
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode == 0, errors.decode()
    assert (tmp_path / "results").read_text().split() == [str(pid) for pid in pids]
