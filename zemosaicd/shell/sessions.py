"""What the configuration means for each session: the daemon's, with the session's own session.toml over it (C3)."""

from __future__ import annotations

import os
import time
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiofiles

from zemosaicd import config as configuration
from zemosaicd.checks import ConfigError
from zemosaicd.core.cleaning import CleanupPolicy
from zemosaicd.core.events import SessionOpened
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.core.modes import AUTO, MODES, Mode, mode_named
from zemosaicd.core.plan import PlanSettings
from zemosaicd.core.sessions import ClosingPolicy, SessionPolicy, SessionScope
from zemosaicd.model import Reason
from zemosaicd.settings import Config
from zemosaicd.work.fitsblocks import Budget
from zemosaicd.work.jobs import MaskSettings, MosaicSettings, StackSettings

SESSION_FILE = "session.toml"

NO_PIXELS = frozenset({"band_budget_bytes", "budget", "threads"})
"""Settings of jobs that no pixel depends on."""

SESSION_TABLES = frozenset({"session", "frames", "plan", "tiles", "mosaic", "outputs", "cleanup"})
"""What a session.toml may set; the other tables are the daemon's own."""


class SessionConfigs:
    """The configuration in force, session by session. `base` may be replaced on reload; sessions follow it."""

    def __init__(self, base: Config) -> None:
        self.base = base

    def of(self, state: SessionState) -> Config:
        """The configuration of a session."""
        return self.with_settings(state.opened.settings if state.opened else {})

    def with_settings(self, settings: dict[str, Any]) -> Config:
        """The daemon's configuration with these tables over it. Raises ConfigError."""
        return configuration.overlay(self.base, settings, SESSION_FILE) if settings else self.base

    def mode(self, settings: dict[str, Any], found: str = "") -> Mode:
        """How a session with these tables becomes a mosaic; `found`: what "auto" has found out. Raises ConfigError."""
        return MODES[found] if found and self.auto(settings) else mode_named(self.with_settings(settings).session.mode)

    def auto(self, settings: dict[str, Any]) -> bool:
        """Whether a session with these tables shall find out its mode. Raises ConfigError."""
        return self.with_settings(settings).session.mode == AUTO

    @staticmethod
    def budget(config: Config) -> Budget:
        """What a frame may cost."""
        return Budget(max_pixels=config.frames.max_pixels, max_bytes=config.frames.max_bytes)

    @staticmethod
    def plan_settings(config: Config, mode: Mode) -> PlanSettings:
        """Phase 2's settings."""
        return PlanSettings(
            batch_cap=config.plan.batch_cap,
            batch_overlap=config.plan.batch_overlap,
            group_radius_fraction=config.plan.group_radius_fraction,
            group_rotation_deg=config.plan.group_rotation_deg,
            min_frames=config.plan.min_frames,
            max_mosaic_pixels=config.plan.max_mosaic_pixels,
            orientation=config.mosaic.orientation,
            projection=config.mosaic.projection,
            islands=config.mosaic.islands,
            altaz_cleanup_requested=config.tiles.altaz_cleanup_enabled,
            band_budget_bytes=config.tiles.memory_mb * 1_000_000,
            cell_size=config.plan.cell_size,
            merge_overlap=config.mosaic.merge_overlap if config.mosaic.merge_tiles and mode.merges else 0.0,
        )

    @staticmethod
    def stack_settings(config: Config, mode: Mode) -> StackSettings:
        """Phase 3's settings. Butted tiles have no edges that fade."""
        tiles = config.tiles
        return StackSettings(
            rejection=tiles.rejection,
            combine=tiles.combine,
            kappa_low=tiles.kappa_low,
            kappa_high=tiles.kappa_high,
            normalise=tiles.normalise,
            weights=tiles.weights,
            kernel=tiles.kernel,
            drizzle_pixfrac=tiles.drizzle_pixfrac,
            feather_fraction=config.mosaic.feather_fraction if mode.feathers else 0.0,
            mask=MaskSettings(
                min_coverage_abs=tiles.altaz_min_coverage_abs,
                min_coverage_frac=tiles.altaz_min_coverage_frac,
                morph_open_px=tiles.altaz_morph_open_px,
                nanize_threshold=tiles.altaz_nanize_threshold,
                alpha_soft_threshold=tiles.altaz_alpha_soft_threshold,
                edge_trim=tiles.edge_trim,
            ),
            band_budget_bytes=tiles.memory_mb * 1_000_000,
        )

    @staticmethod
    def mosaic_settings(config: Config) -> MosaicSettings:
        """Phases 4 to 6."""
        return MosaicSettings(
            preview=config.outputs.preview,
            preview_max_px=config.outputs.preview_max_px,
            feather_fraction=config.mosaic.feather_fraction,
            two_pass=config.mosaic.two_pass_enabled,
            threads=config.executor.workers or os.cpu_count() or 1,
            band_budget_bytes=config.tiles.memory_mb * 1_000_000,
            budget=SessionConfigs.budget(config),
        )

    @staticmethod
    def cleanup_policy(config: Config) -> CleanupPolicy:
        """Phase 7's switches."""
        table = config.cleanup
        return CleanupPolicy(
            cleanup_temp_artifacts=table.cleanup_temp_artifacts,
            cache_retention=table.cache_retention,
            coadd_use_memmap=table.coadd_use_memmap,
            coadd_cleanup_memmap=table.coadd_cleanup_memmap,
            coadd_memmap_dir=table.coadd_memmap_dir,
        )

    @staticmethod
    def session_policy(config: Config) -> SessionPolicy:
        """How frames are told apart into sessions."""
        return SessionPolicy(
            longitude_deg=config.session.longitude_deg,
            host_offset_h=host_offset_s() / 3600.0,
            by_telescope=config.session.by_telescope,
            join=config.session.join,
        )

    @staticmethod
    def closing_policy(config: Config) -> ClosingPolicy:
        """When a session closes."""
        return ClosingPolicy(quiet_s=60.0 * config.session.quiet_min, close_at=config.session.close_at)

    @staticmethod
    def content(config: Config, mode: Mode) -> dict[str, Any]:
        """The settings that pixels depend on, for the content key. Budgets and threads do not (M5)."""
        stack = asdict(SessionConfigs.stack_settings(config, mode))
        mosaic = asdict(SessionConfigs.mosaic_settings(config))
        return {
            name: {k: v for k, v in table.items() if k not in NO_PIXELS}
            for name, table in (("tiles", stack), ("mosaic", mosaic))
        }


def host_offset_s() -> float:
    """Seconds that this computer's local time is ahead of UTC now."""
    return float(time.localtime().tm_gmtoff)


def scope_of(opened: SessionOpened) -> SessionScope:
    """The scope that an opened session takes in."""
    return SessionScope(
        id=opened.session,
        night=opened.night,
        target=opened.target,
        telescope=opened.telescope,
        ra_deg=opened.ra_deg,
        dec_deg=opened.dec_deg,
        field_radius_deg=opened.field_radius_deg,
        whole_folder=opened.whole_folder,
    )


async def folder_settings(path: str, roots: tuple[str, ...], config: Config) -> dict[str, Any]:
    """The tables of the session.toml nearest above a frame, within its watched root; {} if there is none.

    Raises ConfigError, with the line, for one that cannot be used.
    """
    folder = Path(path).parent
    while True:
        file = folder / SESSION_FILE
        try:
            async with aiofiles.open(file, encoding="utf-8") as stream:
                text = await stream.read()
        except (FileNotFoundError, NotADirectoryError):
            text = ""
        if text:
            configuration.overlay_text(config, text, str(file))
            tables = tomllib.loads(text)
            if foreign := sorted(set(tables) - SESSION_TABLES):
                message = f"{file}: [{foreign[0]}] belongs to the daemon, not to a session"
                raise ConfigError(Reason(rule="config.session_table", value=foreign[0], message=message))
            return tables
        if str(folder) in roots or folder.parent == folder:
            return {}
        folder = folder.parent
