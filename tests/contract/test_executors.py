"""What every executor promises, and what a pool promises beside it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.fakejobs import Allocate, Churn, Echo, Fail, Hold, Note, Refuse, Surroundings
from zemosaicd.model import TileFailed
from zemosaicd.shell.executors import Executor, ExecutorClosed, Inline, Pool, WorkersCannotStart
from zemosaicd.shell.template import Template

MAKERS: dict[str, Callable[[], Executor]] = {"inline": Inline, "pool": lambda: Pool(1)}


def using(make: Callable[[], Executor], body: Callable[[Executor], Awaitable[None]]) -> None:
    """Run a test body with a started executor, and close it."""

    async def whole() -> None:
        executor = make()
        await executor.start()
        try:
            await body(executor)
        finally:
            await executor.aclose()

    asyncio.run(whole())
    assert multiprocessing.active_children() == []


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[], Executor]:
    return MAKERS[request.param]


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    for name in ("begun", "go"):
        os.mkfifo(tmp_path / name)
    return Hold(begun=str(tmp_path / "begun"), go=str(tmp_path / "go"))


async def begun(hold: Hold) -> int:
    """Wait until the job runs; returns its pid."""
    return int(await asyncio.to_thread(Path(hold.begun).read_text))


async def let_go(hold: Hold) -> None:
    await asyncio.to_thread(Path(hold.go).write_text, "go\n")


def test_run_returns_what_the_job_returned(make: Callable[[], Executor]) -> None:
    """A job's result comes back as it was."""

    async def body(executor: Executor) -> None:
        assert await executor.run(Echo(value={"rows": (1, 2)})) == {"rows": (1, 2)}
        assert executor.capacity == 1

    using(make, body)


def test_errors_travel_and_the_executor_goes_on(make: Callable[[], Executor]) -> None:
    """A refusal keeps its Reason, an OSError its errno, and the next job runs as if nothing had been."""

    async def body(executor: Executor) -> None:
        with pytest.raises(TileFailed) as refusal:
            await executor.run(Refuse())
        assert (refusal.value.reason.rule, refusal.value.reason.threshold) == ("no_sky", 5)
        with pytest.raises(OSError, match="No space") as full:
            await executor.run(Fail(kind="disk"))
        assert full.value.errno == 28
        assert await executor.run(Echo(value=1)) == 1

    using(make, body)


@pytest.mark.parametrize("kind", ["awkward", "exit", "stop"])
def test_an_error_that_cannot_travel_becomes_one_that_can(make: Callable[[], Executor], kind: str) -> None:
    """Neither an unpicklable exception nor SystemExit or StopIteration breaks the executor; the text survives."""

    async def body(executor: Executor) -> None:
        with pytest.raises(RuntimeError, match=r"Awkward|SystemExit|StopIteration"):
            await executor.run(Fail(kind=kind))
        assert await executor.run(Echo(value=1)) == 1

    using(make, body)


def test_a_job_that_carries_arrays_is_refused(make: Callable[[], Executor]) -> None:
    """Arrays cross as files: a job of 64 KiB or more is a ValueError that says so, before it is queued."""

    async def body(executor: Executor) -> None:
        with pytest.raises(ValueError, match=r"Echo pickles to 65\d+ bytes"):
            await executor.run(Echo(value=bytes(64 * 1024)))

    using(make, body)


def test_lower_priority_numbers_go_first(make: Callable[[], Executor], hold: Hold, tmp_path: Path) -> None:
    """Among the jobs that wait, those of a lower priority run first, then in order of arrival."""

    async def body(executor: Executor) -> None:
        notes = tmp_path / "notes"
        first = asyncio.create_task(executor.run(hold))
        await begun(hold)
        # The pool holds one more job than it has workers: give it that one, so that the others wait here.
        ahead = asyncio.create_task(executor.run(Echo(), priority=-1))
        await asyncio.sleep(0)
        order = [("late", 9), ("frame 1", 0), ("tile", 5), ("frame 2", 0)]
        rest = [
            asyncio.create_task(executor.run(Note(path=str(notes), line=line), priority=priority))
            for line, priority in order
        ]
        await asyncio.sleep(0)
        await let_go(hold)
        await asyncio.gather(first, ahead, *rest)
        assert notes.read_text().splitlines() == ["frame 1", "frame 2", "tile", "late"]

    using(make, body)


def test_a_job_that_waits_can_be_cancelled(make: Callable[[], Executor], hold: Hold, tmp_path: Path) -> None:
    """Cancelling whoever awaits a job that has not begun means that it never runs."""

    async def body(executor: Executor) -> None:
        notes = tmp_path / "notes"
        first = asyncio.create_task(executor.run(hold))
        await begun(hold)
        rest = [asyncio.create_task(executor.run(Note(path=str(notes), line=str(i)))) for i in range(3)]
        await asyncio.sleep(0)
        rest[2].cancel()
        await let_go(hold)
        await asyncio.gather(first, *rest, return_exceptions=True)
        assert rest[2].cancelled()
        assert notes.read_text().splitlines() == ["0", "1"]

    using(make, body)


def test_F12_closing_refuses_what_waits_and_lets_what_runs_end(make: Callable[[], Executor], hold: Hold) -> None:
    """With patience: the running job's result arrives; those that wait, and new ones, get ExecutorClosed."""

    async def body(executor: Executor) -> None:
        running = asyncio.create_task(executor.run(hold))
        pid = await begun(hold)
        waiting = [asyncio.create_task(executor.run(Echo(value=i), priority=1)) for i in range(4)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(executor.aclose(30.0))
        await asyncio.sleep(0)
        await let_go(hold)
        assert await running == pid
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, ExecutorClosed) for end in ends[1:])
        await closing
        with pytest.raises(ExecutorClosed):
            await executor.run(Echo())

    using(make, body)


def test_F13_a_second_close_has_less_patience(hold: Hold) -> None:
    """aclose(0) while aclose(600) waits: the running job is abandoned at once, and both calls return."""

    async def body(executor: Executor) -> None:
        running = asyncio.create_task(executor.run(hold))
        await begun(hold)
        patient = asyncio.create_task(executor.aclose(600.0))
        await asyncio.sleep(0)
        await executor.aclose(0.0)
        await patient
        with pytest.raises(ExecutorClosed):
            await running

    using(lambda: Pool(1), body)


def test_a_worker_is_single_threaded_and_deaf(tmp_path: Path) -> None:
    """One BLAS, OpenMP and OpenCV thread, SIGTERM and SIGINT ignored but not blocked; the parent's own is as it was."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "NUMBA_CACHE_DIR")

    async def body(executor: Executor) -> None:
        before = dict(os.environ)
        found = await executor.run(Surroundings(names=names))
        assert found["env"] == dict(zip(names, ("1", "1", "1", str(tmp_path)), strict=True))
        assert found["ignored"] == ["SIGTERM", "SIGINT"]
        assert found["blocked"] == []
        assert found["ppid"] not in (1, os.getpid())
        assert dict(os.environ) == before

    using(lambda: Pool(1, template=Template(numba_cache_dir=str(tmp_path))), body)


def test_F10_a_worker_out_of_memory_raises_and_lives_on() -> None:
    """Beyond its budget an allocation is a MemoryError for the caller, not a kill, and the worker is still usable."""

    async def body(executor: Executor) -> None:
        assert isinstance(executor, Pool)
        pids = executor.pids()
        with pytest.raises(MemoryError):
            await executor.run(Allocate(size=400 << 20))
        assert await executor.run(Allocate(size=20 << 20)) == 20 << 20
        assert executor.pids() == pids

    using(lambda: Pool(1, memory_bytes=200 << 20, template=Template(warm_up="tests.fakejobs:imported")), body)


def test_workers_are_warm_before_the_first_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """start() returns when every worker is up and has run the warm-up function; a module that is absent is no error."""
    monkeypatch.setenv("FAKEJOBS_WARM", str(tmp_path / "warm"))

    async def body(executor: Executor) -> None:
        assert isinstance(executor, Pool)
        assert len(executor.pids()) == 2
        assert int((tmp_path / "warm").read_text()) in executor.pids()

    using(lambda: Pool(2, template=Template(warm_up="tests.fakejobs:warm_up")), body)

    async def nothing(executor: Executor) -> None:
        assert await executor.run(Echo(value=1)) == 1

    using(lambda: Pool(1, template=Template(warm_up="no_such_package.jobs:warm_up")), nothing)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_an_executor_that_never_started_can_be_closed(make: Callable[[], Executor]) -> None:
    """A daemon that fails before it has workers closes what it has."""
    asyncio.run(make().aclose())


def test_a_pool_that_is_closed_while_it_warms_up_leaves_nothing() -> None:
    """Closed at once, or while its template still imports: it is closed in a moment, and no process is left."""

    async def whole(warming: bool) -> None:
        pool = Pool(1, hasty=True, template=Template(warm_up="tests.fakejobs:slow_warm_up"))
        await pool.start()
        if warming:
            await asyncio.sleep(0)  # the template is begun
            assert children()
        await asyncio.wait_for(pool.aclose(), 10.0)

    def children() -> set[str]:
        mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return {pid for pid in mine if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()}

    for warming in (False, True):
        asyncio.run(whole(warming))
        assert not children()


FIRST_AND_SECOND = """
import os
from multiprocessing import forkserver
from zemosaicd.shell.template import Template

def started(template):
    template.start()
    template.wait()
    pid = forkserver._forkserver._forkserver_pid
    same = open(f"/proc/{pid}/cmdline").read() == open("/proc/self/cmdline").read()
    return same, mine.name in [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]

template = Template()
with open(__file__) as mine:
    print(*started(template))
    template.stop()
    import numpy
    print(*started(template))
    template.stop()
"""


def test_the_first_template_of_a_program_is_a_fork_of_it(tmp_path: Path) -> None:
    """It begins with what the program has imported, and without its files; once numpy is there, which has read its
    settings, a new one is a program of its own."""
    script = tmp_path / "program.py"
    script.write_text(FIRST_AND_SECOND)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    made = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert made.stdout.split("\n")[:2] == ["True False", "False False"], made.stderr


def test_F8_a_template_without_room_is_tried_again(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder for the template's socket: the job that waits is told, and once there is room the next one runs."""
    place = short / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    async def whole() -> None:
        pool = Pool(1, hasty=True)
        await pool.start()
        with pytest.raises(FileNotFoundError):
            await pool.run(Echo(value=1))
        place.mkdir()
        assert await pool.run(Echo(value=2)) == 2
        await pool.aclose()

    asyncio.run(whole())


def test_a_long_TMPDIR_is_no_obstacle(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the path of a socket would be too long, it lies in /tmp, and goes again."""
    place = short / ("long" * 25)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    async def body(executor: Executor) -> None:
        assert await executor.run(Echo(value=1)) == 1
        assert list(place.iterdir()) == []

    using(lambda: Pool(1), body)


def test_workers_that_cannot_start_are_fatal() -> None:
    """A warm-up that fails each time ends start() with one clear error instead of a storm of new workers."""

    async def whole() -> None:
        pool = Pool(1, template=Template(warm_up="tests.fakejobs:broken_warm_up"))
        with pytest.raises(WorkersCannotStart, match="died before one of them could begin"):
            await pool.start()
        await pool.aclose()

    asyncio.run(whole())


def test_a_worker_keeps_memory_for_its_next_frame() -> None:
    """What a job frees is there for the next without being asked for page by page (6,100 pages otherwise)."""

    async def body(executor: Executor) -> None:
        await executor.run(Churn())
        assert await executor.run(Churn()) < 500

    using(lambda: Pool(1), body)
