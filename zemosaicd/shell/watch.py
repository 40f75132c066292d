"""The watcher: from what lies in the incoming folders to settled paths (SPEC C2).

Events are hints, the reconciling scan is the truth: at start, every `watch.scan_s`, after a hint, and a look at the
pending paths alone when one of them is due. Disk work runs in a thread, decisions in core.intake. An incoming folder
that is away is an outage (its files are not forgotten), a watchdog that will not run means polling; both are said
once, and neither ends the watcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from zemosaicd.core.intake import Intake, IntakeRules, Settled, Waiting
from zemosaicd.model import Fingerprint, Reason
from zemosaicd.shell.hints import LostEvents, RootHints
from zemosaicd.shell.log import Logger
from zemosaicd.shell.scan import Identity, Scan, network_filesystem, probe, scan_tree

HINT_PAUSE_S = 0.2  # events come in swarms
HINT_LOAD = 4.0  # scans woken by hints take at most a fifth of the time
BATCH = 256


class Clock(Protocol):
    """Time, injected: durations by `monotonic`, file ages by `wall` (F20)."""

    def monotonic(self) -> float:
        """Seconds that never jump."""

    def wall(self) -> float:
        """Unix seconds."""


class SystemClock:
    """The clocks of this computer."""

    def monotonic(self) -> float:
        """Seconds since some moment before start-up of this process."""
        return time.monotonic()

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPolicy:
    """`watch.scan_s` and `watch.polling`; `once`: take what lies there and stop (`process DIR`)."""

    scan_s: float = 60.0
    polling: str = "auto"
    once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a look brought. `markers` come with or after the last frame that had to settle beneath their folder."""

    settled: tuple[Settled, ...] = ()
    markers: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RootState:
    """For status. `away`: why the folder cannot be read, `polling`: why it gets no hints; "" when all is well."""

    path: str
    away: str = ""
    polling: str = ""


def nothing_known(paths: Sequence[str]) -> Mapping[str, Fingerprint]:
    """For a watcher without a past."""
    return {}


class Watcher:
    """Watches `roots` (absolute paths) and hands over what has settled.

    `known(paths)` says which of these paths were judged in an earlier life, and in which state; they are handed over
    only once they have changed. `prune`: folders never searched (output, state).
    """

    def __init__(
        self,
        roots: Sequence[str],
        rules: IntakeRules,
        policy: WatchPolicy,
        *,
        log: Logger,
        prune: Sequence[str] = (),
        known: Callable[[Sequence[str]], Mapping[str, Fingerprint]] = nothing_known,
        clock: Clock | None = None,
    ) -> None:
        # A look in `once` has no tomorrow: what is not whole after settling is rejected there and then.
        rules = replace(rules, give_up_s=min(rules.give_up_s, rules.settle_s)) if policy.once else rules
        self.roots = tuple(str(Path(root).absolute()) for root in roots)
        self.intake = Intake(rules)
        self._policy = policy
        self._log = log
        self._prune = tuple(prune)
        self._known = known
        self._clock = clock or SystemClock()
        self._states = {root: RootState(path=root) for root in self.roots}
        self._identities: dict[str, Identity | None] = {}
        self._identities_now: dict[str, Identity] = {}
        self._unreadable: frozenset[str] = frozenset()
        self._specials = 0
        self._hints: dict[str, RootHints] = {}
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hinted = False
        self._lost_events = False
        self._scan_took_s = 0.0
        self._looked_s = float("-inf")
        self._next_scan_s = float("-inf")

    # ---- what others ask ------------------------------------------------------------------------------------------

    def hold(self, path: str, fingerprint: Fingerprint, reason: Reason) -> Reason | None:
        """The content check raised Incomplete. Returns the reason when the file is now to be rejected (F6)."""
        verdict = self.intake.hold(path, fingerprint, reason, self._clock.monotonic())
        self._woken.set()  # its next look may be due sooner than the one that is slept for
        return verdict

    def take_over(self, path: str, fingerprint: Fingerprint) -> None:
        """A file that was held is held no longer: in this state it has been judged."""
        self.intake.forget([path])
        self.intake.recall({path: fingerprint}, self._clock.monotonic())

    def waiting(self) -> list[Waiting]:
        """Files that were seen and not taken yet."""
        return self.intake.waiting(self._clock.monotonic())

    def root_states(self) -> tuple[RootState, ...]:
        """How each watched folder fares."""
        return tuple(self._states.values())

    def rescan(self) -> None:
        """Look at everything again soon (after a reload, or when an outage is over)."""
        self._next_scan_s = float("-inf")
        self._woken.set()

    def reconfigure(self, rules: IntakeRules, policy: WatchPolicy) -> None:
        """Go on under other keys of `[watch]` (reload); what was judged stays judged. The folders stay the same."""
        if policy.polling != self._policy.polling:
            self._identities.clear()  # hints are decided on anew
        self.intake.rules, self._policy = rules, policy
        self.rescan()

    # ---- one look -------------------------------------------------------------------------------------------------

    async def look(self) -> Batch:
        """Scan all roots once, and return what has settled."""
        started_s = self._clock.monotonic()
        scan = await asyncio.to_thread(scan_tree, self.roots, self.intake.rules, self._prune)
        now_s = self._looked_s = self._clock.monotonic()
        self._scan_took_s = now_s - started_s
        self._note_outages(scan)
        if new := self.intake.unknown(scan.frames):
            self.intake.recall(self._known(new), now_s)
        wall_s = self._clock.wall() if self._policy.once else None
        settled = self.intake.observe(scan.frames, now_s, wall_s=wall_s)
        gone = [path for path in self.intake.missing({**scan.frames, **scan.markers}) if not scan.hides(path)]
        self.intake.forget(gone)
        markers = self.intake.markers(scan.markers)
        self._log.debug(
            "watch_scan", frames=len(scan.frames), settled=len(settled), seconds=round(self._scan_took_s, 3)
        )
        return Batch(settled=tuple(settled), markers=tuple(markers), gone=tuple(gone))

    async def look_at_pending(self) -> Batch:
        """Look only at the files that are settling or held: cheap on a slow share with a full tree."""
        found = await asyncio.to_thread(probe, self.intake.pending())
        self._looked_s = self._clock.monotonic()
        settled = self.intake.observe(found, self._looked_s)
        if settled and self.intake.markers_wait:
            self._next_scan_s = self._looked_s  # perhaps a marker waited for just these
        return Batch(settled=tuple(settled))

    def _note_outages(self, scan: Scan) -> None:
        """Say once what went away and what came back (F5, F39)."""
        for root in self.roots:
            state, away = self._states[root], scan.unreadable.get(root, "")
            if away and not state.away:
                self._log.warning("watch_folder_away", path=root, reason=away)
            elif state.away and not away:
                self._log.info("watch_folder_back", path=root)
            self._states[root] = replace(state, away=away)
        hidden = frozenset(scan.unreadable) - frozenset(self.roots)
        for path in sorted(hidden - self._unreadable):
            self._log.warning("watch_unreadable", path=path, reason=scan.unreadable[path])
        self._unreadable = hidden
        if scan.specials > self._specials:
            self._log.info("watch_specials_ignored", count=scan.specials)
        self._specials = scan.specials
        self._identities_now = scan.roots

    # ---- the loop -------------------------------------------------------------------------------------------------

    async def run(self, deliver: Callable[[Batch], Awaitable[None]]) -> None:
        """Watch until cancelled; with `policy.once` until all that lies there has been delivered.

        A batch holds at most 256 settled paths, so that a consumer that works one off keeps the loop breathing (F38).
        """
        self._loop = asyncio.get_running_loop()
        with LostEvents(self._events_lost):
            try:
                while True:
                    for part in _parts(await self._next_look()):
                        await deliver(part)
                    if self._policy.once and self.intake.due_s(self._looked_s) is None:
                        return
                    await self._rest()
            finally:
                await asyncio.shield(asyncio.to_thread(self._stop_hints))

    async def _next_look(self) -> Batch:
        now_s = self._clock.monotonic()
        if not (now_s >= self._next_scan_s or self._hinted or self._policy.once):
            return await self.look_at_pending()
        self._hinted = False
        self._next_scan_s = now_s + self._policy.scan_s
        batch = await self.look()
        if self._lost_events:
            self._lost_events = False
            self._log.warning("watch_events_lost", frames=len(batch.settled))
        if not self._policy.once:
            await self._tend_hints()
        return batch

    async def _rest(self) -> None:
        """Sleep until the next scan, the next file that is due, or a hint.

        What was due at the last look and is pending still was not there to be looked at: the next scan decides.
        """
        while not self._hinted:
            self._woken.clear()
            due_s = self.intake.due_s(self._looked_s)
            until_s = self._next_scan_s if due_s is None else min(due_s, self._next_scan_s)
            if self._policy.once and due_s is not None:
                until_s = due_s
            delay_s = until_s - self._clock.monotonic()
            if delay_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), timeout=delay_s)
        await asyncio.sleep(max(HINT_PAUSE_S, HINT_LOAD * self._scan_took_s))

    # ---- hints ----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Called from watchdog's threads: one wake-up of the loop for a whole swarm of events."""
        if not self._hinted and self._loop is not None:
            self._hinted = True
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._woken.set)

    def _events_lost(self) -> None:
        self._lost_events = True
        self._wake()

    async def _tend_hints(self) -> None:
        """Start, restart or give up watchdog for each folder that is there."""
        for root, state in self._states.items():
            if state.away:
                continue
            identity = self._identities_now.get(root)
            if identity != self._identities.get(root):  # mounted over, or made anew: inotify holds on to the old one
                self._identities[root] = identity
                await self._decide(root)
            hints = self._hints.get(root)
            if hints is not None:
                await self._keep_alive(root, hints)

    async def _decide(self, root: str) -> None:
        old = self._hints.pop(root, None)
        if old is not None:
            await asyncio.to_thread(old.stop)
        polling = {"always": "by configuration", "never": ""}.get(self._policy.polling)
        if polling is None:
            polling = await asyncio.to_thread(network_filesystem, root)
        if not polling:
            self._hints[root] = RootHints(root, self._wake)
        self._states[root] = replace(self._states[root], polling=polling)
        if polling:
            self._log.info("watch_folder_polling", path=root, polling=polling)
        else:
            self._log.info("watch_folder", path=root)

    async def _keep_alive(self, root: str, hints: RootHints) -> None:
        now_s, before = self._clock.monotonic(), self._states[root].polling
        if not hints.due(now_s):
            return
        if hints.started and not before:
            self._degraded(root, "the observer ended")
            before = "the observer ended"
        await asyncio.to_thread(hints.start, now_s)
        if hints.trouble and not before:
            self._degraded(root, hints.trouble)
        elif not hints.trouble:
            if before:
                self._log.info("watch_events_restored", path=root)
            self._states[root] = replace(self._states[root], polling="")
            self._hinted = True  # what came between the scan and this moment raised no event

    def _degraded(self, root: str, reason: str) -> None:
        self._log.warning("watch_degraded", path=root, reason=reason, scan_s=self._policy.scan_s)
        self._states[root] = replace(self._states[root], polling=reason)

    def _stop_hints(self) -> None:
        for hints in self._hints.values():
            hints.stop()


def _parts(batch: Batch) -> Iterable[Batch]:
    """A batch in pieces of at most `BATCH` settled paths; markers and losses come with the last."""
    settled = batch.settled
    for start in range(0, len(settled), BATCH):
        if start + BATCH < len(settled):
            yield Batch(settled=settled[start : start + BATCH])
        else:
            yield replace(batch, settled=settled[start:])
    if not settled and (batch.markers or batch.gone):
        yield batch
