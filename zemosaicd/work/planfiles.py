"""What Phase 2 reads and what it writes: JSON files of the session, the one place that knows their form.

Light on purpose: the daemon reads plans and imports no science for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zemosaicd import codec
from zemosaicd.core.plan import PlanSettings
from zemosaicd.model import Plan, PreparedFrame, Reason
from zemosaicd.work.fitsblocks import Budget
from zemosaicd.work.store import publish


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """All that Phase 2 works from."""

    frames: tuple[PreparedFrame, ...]
    settings: PlanSettings
    mount_mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRequest:
    """All that Phase 2 of mode grid works from: frames, folders where a stack_plan.csv may lie, and the files of the
    session that were refused, by path.
    """

    frames: PlanRequest
    folders: tuple[str, ...]
    refused: dict[str, Reason]


@dataclass(frozen=True, slots=True, kw_only=True)
class TilesRequest:
    """All that Phase 4 of mode existing works from: tiles that lie somewhere."""

    paths: tuple[str, ...]
    settings: PlanSettings
    budget: Budget


def write_request(request: PlanRequest | GridRequest | TilesRequest, path: Path) -> None:
    """Writes the request where the job will find it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish(path, overwrite=True, mode=0o600) as file:
        file.write(codec.dumps(request).encode())


def read_plan(path: Path) -> Plan:
    """The plan that the job wrote."""
    return codec.loads(Plan, path.read_text())


def read_request(path: Path) -> PlanRequest:
    """What the daemon asked for."""
    return codec.loads(PlanRequest, path.read_text())


def read_grid(path: Path) -> GridRequest:
    """The same of a session with a stack_plan.csv."""
    return codec.loads(GridRequest, path.read_text())


def read_tiles(path: Path) -> TilesRequest:
    """The same of a session of tiles."""
    return codec.loads(TilesRequest, path.read_text())


def write_plan(plan: Plan, path: Path) -> None:
    """Writes the plan where Phases 3 to 6 will find it."""
    with publish(path, overwrite=True, mode=0o600) as file:
        file.write(codec.dumps(plan).encode())
