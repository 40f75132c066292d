"""How a session becomes a mosaic, as data: one row a mode (D5).

A mode is a planner and a few facts about what comes before and after it; the life cycle, the engine that adds sources
by bands, reports and cleanup are the same for all and ask this table instead of a name.
"""

from __future__ import annotations

from dataclasses import dataclass

from zemosaicd.core.course import Course
from zemosaicd.model import ArtefactKind

PHASES = ("0", "1", "2", "3", "4", "4.5", "5", "6", "7")
"""What PHASE_UPDATE may name (SPEC section 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way to a mosaic. `phases`: those it goes through. `planner`: what makes its plan (shell.planners).

    `takes_pictures`: its input are finished pictures with a WCS, not raw frames. `counts_frames`: its tiles know how
    many frames each of their pixels has seen. `masks_tiles`: its tiles get what SPEC's section 6 says (V8). `feathers`:
    its tiles overlap and fade into each other; else they are butted. `one_sky`: its planner brings all frames of a
    group of tiles to one scale and sky, so Phase 5 corrects them as one. `judges_tiles`: each of them has seen a pixel
    too seldom to tell what is no sky, so Phase 5 judges them against each other.
    `steps_back`: if none of its tiles could be made, its planner is asked for another plan.
    `plans_by_pixels`: its planner reads prepared frames, not only what was measured on them. `warm_up`: what a worker
    of it imports at once (a function of work.jobs); `many_jobs`: there is work for several of them. `tile_kind`: what
    its tiles are to Phase 7. `success`: what is logged when its mosaic is published.
    """

    name: str
    phases: tuple[str, ...]
    planner: str
    takes_pictures: bool = False
    counts_frames: bool = True
    masks_tiles: bool = False
    feathers: bool = True
    one_sky: bool = False
    judges_tiles: bool = False
    steps_back: bool = False
    plans_by_pixels: bool = False
    tile_kind: ArtefactKind = ArtefactKind.MASTER_TILE
    success: str = ""
    warm_up: str = "warm_up"
    many_jobs: bool = True

    @property
    def prepares(self) -> bool:
        """What arrives is measured, solved and cached before it is planned with."""
        return "1" in self.phases

    @property
    def merges(self) -> bool:
        """Tiles that overlap by much may become super tiles; butted cells never overlap."""
        return "4.5" in self.phases

    @property
    def plan_phase(self) -> str:
        """The phase that the plan is made in: 2, or 4 where there are no tiles to plan, only a grid."""
        return "2" if "2" in self.phases else "4"


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(
            name="classic",
            phases=("0", "1", "2", "3", "4", "4.5", "5", "6", "7"),
            planner="frames",
            masks_tiles=True,
        ),
        Mode(
            name="grid",
            phases=("0", "1", "2", "3", "4", "5", "6", "7"),
            planner="cells",
            feathers=False,
            one_sky=True,
            plans_by_pixels=True,
        ),
        Mode(
            name="sds",
            phases=("0", "1", "2", "3", "4", "4.5", "5", "6", "7"),
            planner="sweeps",
            feathers=False,
            judges_tiles=True,
            steps_back=True,
            plans_by_pixels=True,
            tile_kind=ArtefactKind.MEGA_TILE,
            success="sds_phase5_polish",
        ),
        Mode(
            name="existing",
            phases=("0", "4", "4.5", "5", "6", "7"),
            planner="tiles",
            takes_pictures=True,
            counts_frames=False,
            warm_up="warm_up_tiles",
            many_jobs=False,
        ),
    )
}
DEFAULT = "classic"


AUTO = "auto"
LEAST_TILES = 2
"""One finished picture alone is somebody's result that lies about, not a folder of tiles."""


def mode_named(setting: str) -> Mode:
    """The mode of `session.mode`; of "auto" the default one, until it is known what there is."""
    return MODES[DEFAULT if setting == AUTO else setting]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What "auto" chose, and why, for the log and the report."""

    mode: str
    why: str


def choose(
    *, tiles: int = 0, frames: int = 0, stack_plans: tuple[str, ...] = (), course: Course | None = None
) -> Choice:
    """The mode of a session that shall find it out: of master tiles alone, of raw frames with a plan, or without one by
    how the telescope went.

    Raw frames outweigh tiles: a stack that lies beside the frames that it was made of is not stacked again (C2). A plan
    outweighs the course: somebody wrote it.
    """
    if tiles >= LEAST_TILES and not frames:
        return Choice(mode="existing", why="master tiles and no raw frame")
    if stack_plans:
        return Choice(mode="grid", why=f"there is a plan: {', '.join(stack_plans)}")
    if course is None:
        return Choice(mode=DEFAULT, why="raw frames without a plan")
    if course.sweeps:
        return Choice(mode="sds", why=f"the telescope swept: {course}")
    return Choice(mode=DEFAULT, why=f"raw frames without a plan, no sweep: {course}")
