"""The work that leaves the daemon: one picklable value and one small result each.

A job names paths and settings, never arrays (they cross as files); it pickles to less than 64 KiB. The science is
imported when a job runs, so that the daemon, which only makes and sends these values, starts fast and stays small.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache

from zemosaicd.model import Fingerprint, FrameFacts, FrameId, LogNote, PreparedFrame, Reason
from zemosaicd.work.fitsblocks import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderRead:
    """What Phase 0 found in one file: facts, or why not (`incomplete`: look again later).

    `tile`: the facts of what is refused as a frame and is a whole master tile.
    """

    path: str
    fingerprint: Fingerprint
    facts: FrameFacts | None = None
    reason: Reason | None = None
    incomplete: bool = False
    tile: FrameFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadHeaders:
    """Phase 0 for a handful of settled files. `pictures`: finished pictures are welcome, not only raw frames (D4)."""

    files: tuple[tuple[str, Fingerprint], ...]
    budget: Budget
    pictures: bool = False

    def run(self) -> tuple[HeaderRead, ...]:
        """Headers read, completeness checked; one answer a file, never an exception for a bad one."""
        from zemosaicd.work import scanning

        return scanning.read_headers(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareFrame:
    """Phase 1 for one frame: read, repair, measure, solve, cache. `scale_arcsec` 0: from the header."""

    path: str
    cache: str
    budget: Budget
    scale_arcsec: float = 0.0

    def run(self) -> PreparedFrame:
        """Raises Rejected or Incomplete."""
        from zemosaicd.work import prepare

        return prepare.prepare_frame(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildCache:
    """Makes a cache again that has gone; what was measured and solved is in the journal (P10)."""

    path: str
    cache: str
    frame: FrameId
    budget: Budget

    def run(self) -> None:
        """Raises Rejected if the frame is not the one that was measured."""
        from zemosaicd.work import prepare

        prepare.rebuild_cache(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMade:
    """What a job of Phases 2 to 6 reports: figures for report.json, lines for the log, and its cost."""

    figures: dict[str, object] = field(default_factory=dict)
    notes: tuple[LogNote, ...] = ()
    seconds: float = 0.0
    peak_rss_mb: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSession:
    """Phase 2: the joint solution of the closed set and its tile plan. Both paths are JSON files (work.planning)."""

    frames_path: str
    plan_path: str

    def run(self) -> PhaseMade:
        """Writes the plan. Raises SessionFailed."""
        from zemosaicd.work import planning

        return planning.plan_session(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTiles:
    """Phase 4 of mode existing: where tiles of anybody's lie, as a plan whose tiles are made (work.existing)."""

    tiles_path: str
    plan_path: str

    def run(self) -> PhaseMade:
        """Writes the plan. Raises SessionFailed."""
        from zemosaicd.work import existing

        return existing.plan_tiles(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanGrid:
    """Phase 2 of mode grid: the frames that a stack_plan.csv names, on cells of the sky (work.gridding)."""

    frames_path: str
    plan_path: str

    def run(self) -> PhaseMade:
        """Writes the plan. Raises SessionFailed."""
        from zemosaicd.work import gridding

        return gridding.plan_grid(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSweep:
    """Phase 2 of mode SDS: batches that each cover the field, as mega tiles (work.sweeping).

    `rung`: of its way back; 1 is one mega tile of all frames, 2 classic.
    """

    frames_path: str
    plan_path: str
    rung: int = 0

    def run(self) -> PhaseMade:
        """Writes the plan. Raises SessionFailed."""
        from zemosaicd.work import sweeping

        return sweeping.plan_sweep(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSettings:
    """Keys altaz_* of table [tiles]: the mask of alt-az tiles; and whether any tile's empty margins are cut off
    (work.masking)."""

    min_coverage_abs: float = 3.0
    min_coverage_frac: float = 0.4
    morph_open_px: int = 3
    nanize_threshold: float = 0.001
    alpha_soft_threshold: float = 0.001
    edge_trim: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSettings:
    """Table [tiles] as far as the stack needs it, and the width of the blend at a tile's edge.

    Budget and threads leave no trace in the pixels.
    """

    rejection: str = "auto"
    combine: str = "mean"
    kappa_low: float = 3.0
    kappa_high: float = 3.0
    normalise: str = "stars"
    weights: str = "auto"
    kernel: str = "kriging"
    drizzle_pixfrac: float = 0.8
    feather_fraction: float = 0.1
    mask: MaskSettings = field(default_factory=MaskSettings)
    band_budget_bytes: int = 512 << 20
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StackTile:
    """Phase 3 for one tile: its frames, but for `without` (gone from disk for good), become the file `output`."""

    plan_path: str
    tile: int
    without: tuple[FrameId, ...]
    output: str
    settings: StackSettings

    def run(self) -> PhaseMade:
        """Publishes the master tile. Raises TileFailed."""
        from zemosaicd.work import stacking

        return stacking.stack_tile(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicSettings:
    """Tables [mosaic] and [outputs] as far as assembly needs them."""

    preview: bool = True
    preview_max_px: int = 2000
    feather_fraction: float = 0.1
    two_pass: bool = False
    threads: int = 1
    band_budget_bytes: int = 512 << 20
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTiles:
    """Phase 4.5 for one super tile: its members (number and path) become the file `output`."""

    plan_path: str
    tile: int
    members: tuple[tuple[int, str], ...]
    without: tuple[FrameId, ...]
    output: str
    settings: MosaicSettings

    def run(self) -> PhaseMade:
        """Publishes the super tile. Raises TileFailed."""
        from zemosaicd.work import supertiles

        return supertiles.merge_tiles(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeMosaic:
    """Phases 4 to 6 for one mosaic: tiles (number and path) become the staged files `mosaic` and `preview`.

    `supers`: those of the tiles that are super tiles, and of which tiles they are.
    """

    plan_path: str
    name: str
    tiles: tuple[tuple[int, str], ...]
    without: tuple[FrameId, ...]
    mosaic: str
    preview: str
    session: str
    revision: int
    settings: MosaicSettings
    supers: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def run(self) -> PhaseMade:
        """Writes the staged files. Raises SessionFailed."""
        from zemosaicd.work import assembly

        return assembly.make_mosaic(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GetReady:
    """For a worker that has nothing to do: loads what tiles are stacked with (`phase` 3), or mosaics made with (5)."""

    phase: int

    def run(self) -> None:
        """Nothing comes of it but a quicker start."""
        if self.phase == 3:
            from zemosaicd.work import members, stacking  # noqa: F401

            members.rehearse()
        else:
            from zemosaicd.work import assembly

            assembly.rehearse()


Job = (
    ReadHeaders
    | PrepareFrame
    | RebuildCache
    | PlanSession
    | PlanTiles
    | PlanGrid
    | PlanSweep
    | StackTile
    | MergeTiles
    | MakeMosaic
    | GetReady
)


@cache
def warm_up() -> None:
    """Imports what every worker's first job needs, and loads its kernels, so that frames do not wait; the rest comes
    when it is asked for. Once a process, and what a process was forked from counts.
    """
    _enter("scanning")
    from zemosaicd.work import prepare

    prepare.rehearse()


@cache
def warm_up_tiles() -> None:
    """The same for mosaics of tiles that exist."""
    _enter("scanning", "existing", "assembly")


def start_kernels() -> None:
    """Starts numba without its question for scipy's linear algebra, which takes a quarter of a second: no kernel has
    any (tests/spec/test_modules.py)."""
    absent = "scipy" not in sys.modules
    if absent:
        sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        if absent:
            del sys.modules["scipy"]


def _enter(*rooms: str) -> None:
    import importlib

    start_kernels()
    for room in rooms:
        importlib.import_module(f"zemosaicd.work.{room}")
