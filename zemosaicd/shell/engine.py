"""Sessions and the work that is due to them: the one loop of journal, fold and effects.

`record` is the only door: events are journalled first, applied second, and then whatever the new state says is due is
started. A restart folds the journal and asks the same question, so there is no resume code (DESIGN, "State").
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from zemosaicd.core import lifecycle
from zemosaicd.core.events import Event, FrameAssigned
from zemosaicd.core.lifecycle import Instruction, Prepare, SessionState
from zemosaicd.shell.journal import Journal
from zemosaicd.shell.space import DiskGate


class Effects(Protocol):
    """What the engine needs of `shell.effects`: carry an instruction out, recording its events."""

    async def perform(self, instruction: Instruction) -> None:
        """Carry out one instruction; its result is journalled through the engine before this returns."""


class Engine:
    """All open sessions of one journal, and the tasks that work for them."""

    def __init__(self, journal: Journal, gate: DiskGate, effects: Callable[[Engine], Effects]) -> None:
        self.journal = journal
        self.states: dict[str, SessionState] = {}
        self.draining = False
        self.changed = asyncio.Condition()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gate = gate
        self._running: dict[Instruction, asyncio.Task[None]] = {}
        self._recording: Counter[str] = Counter()
        self._effects = effects(self)

    @property
    def in_flight(self) -> int:
        """Instructions that are being carried out."""
        return len(self._running)

    def running(self) -> tuple[Instruction, ...]:
        """What is being carried out, for the status."""
        return tuple(self._running)

    def at_rest(self, session: str) -> bool:
        """Nothing is done for this session and nothing is due to it."""
        idle = not any(i.session == session for i in self._running)
        return idle and not self._recording[session] and (session not in self.states or self.states[session].resting)

    def forget(self, session: str) -> None:
        """Drops a resting session from memory; the journal keeps it, and a late frame brings it back (F37)."""
        if self.at_rest(session):
            self.states.pop(session, None)

    def trouble(self) -> str:
        """ "" while the engine lives; else why it does not (F14)."""
        error = self.failure.exception() if self.failure.done() and not self.failure.cancelled() else None
        return "" if error is None else f"{type(error).__name__}: {error}"

    def fail(self, error: Exception) -> None:
        """Nothing can be done any more: the daemon ends with this error."""
        if not self.failure.done():
            self.failure.set_exception(error)

    def recover(self) -> int:
        """Folds the open sessions from the journal and starts what is due to them; returns how many they are."""
        for session in self.journal.open_sessions():
            self.load(session)
        for state in list(self.states.values()):
            self._start_all(state)
        return len(self.states)

    def load(self, session: str) -> SessionState:
        """The state of a session, folded from the journal if it is not in memory (a closed one is a row there)."""
        if session not in self.states:
            self.states[session] = lifecycle.fold(session, self.journal.events_of(session))
        return self.states[session]

    async def record(self, *events: Event) -> None:
        """Journals events, then applies them, then starts what became due. The order is the promise (R9, F1)."""
        touched = {event.session: self.load(event.session) for event in events if event.session}
        self._recording.update(touched.keys())  # nobody forgets them meanwhile
        try:
            # A full disk pauses: no result is lost, and none counts before it is written (F8).
            await self._gate.retrying("", lambda: self.journal.append(*events))
            for event in events:
                if event.session:
                    lifecycle.apply(touched[event.session], event)
        finally:
            self._recording -= Counter(touched.keys())
        for event in events:
            if isinstance(event, FrameAssigned):
                self._start(lifecycle.frame_due(self.states[event.session], event.path))
        for state in touched.values():
            self._start_due(state)
        async with self.changed:
            self.changed.notify_all()

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Returns when the predicate holds after some event; at once if it holds now. Raises if the engine failed."""
        async with self.changed:
            while not predicate():
                if self.failure.done():
                    self.failure.result()
                await self.changed.wait()

    async def drain(self, stop_executor: Callable[[], Awaitable[None]]) -> None:
        """Starts nothing more, lets running jobs end as `stop_executor` allows, and gathers what is left (F12)."""
        self.draining = True
        await stop_executor()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_due(self, state: SessionState) -> None:
        for instruction in lifecycle.due(state):
            self._start(instruction)

    def _start_all(self, state: SessionState) -> None:
        self._start_many(lifecycle.frames_due(state))
        self._start_due(state)

    def _start_many(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            self._start(instruction)

    def _start(self, instruction: Instruction | None) -> None:
        if instruction is None or self.draining or instruction in self._running:
            return
        task = asyncio.create_task(self._perform(instruction), name=type(instruction).__name__)
        self._running[instruction] = task

    async def _perform(self, instruction: Instruction) -> None:
        """One effect, and what became due when it ended. An error that no effect expects stops the daemon loudly."""
        state = self.states[instruction.session]
        try:
            await self._effects.perform(instruction)
        except asyncio.CancelledError:
            if not self.draining:
                raise
            return
        except Exception as error:  # noqa: BLE001 - the shell's boundary: handed to the daemon, which exits non-zero
            self.fail(error)
            return
        finally:
            del self._running[instruction]
            async with self.changed:
                self.changed.notify_all()
        if isinstance(instruction, Prepare):  # one of thousands: asking for all frames each time would be quadratic
            self._start_due(state)
        else:
            self._start_all(state)
