"""The configuration as data: one frozen dataclass a table, one field a key, each with its range, unit and meaning.

Knows what may be set; knows nothing of files or environments (that is `zemosaicd.config`). The type of a field is
the type of the key: `bool`, `int`, `float`, `str`, `tuple[str, ...]`, a `Literal` of the words allowed, or
`float | None` where "auto" is a value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a key may be, beyond its type. `path`: made absolute against the current folder when not empty."""

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    pattern: str = ""
    shape: str = ""
    path: bool = False


def key(default: Any, text: str, **rule: Any) -> Any:
    """A field with its rule."""
    return field(default=default, metadata={"rule": Rule(help=text, **rule)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where things come from and go to."""

    incoming: tuple[str, ...] = key(("./incoming",), "Folders that are watched for new frames.", path=True)
    output: str = key("./output", "Where mosaics and reports go.", path=True, pattern=r".+", shape="a folder")
    state: str = key(
        "./state", "Journal, caches, master tiles; on a local disk.", path=True, pattern=r".+", shape="a folder"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How a file becomes a frame."""

    settle_s: float = key(10.0, "A file has settled when it has not changed for so long.", unit="s", low=0, high=86400)
    give_up_s: float = key(
        3600.0, "A file that is still not whole after so long is rejected.", unit="s", low=1, high=604800
    )
    scan_s: float = key(60.0, "Time between two full scans of the folders.", unit="s", low=0.1, high=86400)
    polling: Literal["auto", "always", "never"] = key(
        "auto", "Scan only (always), or listen to the kernel as well (never, auto: unless on a network share)."
    )
    ignore: tuple[str, ...] = key((), "File name patterns (* and ?) that are never looked at.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Which frames belong together, and when a session is complete."""

    mode: Literal["auto", "classic", "sds", "grid", "existing"] = key(
        "auto",
        "How the mosaic is made: from raw frames by master tiles (classic), mega tiles (sds) or cells of the sky "
        "(grid), or of tiles that exist (existing); auto: by what lies in the folder.",
    )
    quiet_min: float = key(60.0, "A session closes when no frame has come for so long.", unit="min", low=0, high=10080)
    marker: str = key(
        ".done", "A file of this name in the folder closes the session; empty: none.", pattern=r"[^/\x00]*",
        shape="a file name without a slash",
    )  # fmt: skip
    close_at: str = key(
        "", "Local time of day at which open sessions close; empty: never.", pattern=r"|([01]\d|2[0-3]):[0-5]\d",
        shape="HH:MM",
    )  # fmt: skip
    longitude_deg: float | None = key(
        None, "Longitude where frames carry none, east positive; auto: from this computer's clock.", unit="deg",
        low=-180, high=360,
    )  # fmt: skip
    mount_mode: Literal["auto", "EQ", "ALT_AZ"] = key("auto", "How the mount followed the sky; auto: from the header.")
    by_telescope: bool = key(True, "Frames of different telescopes make different sessions.")
    join: bool = key(False, "Everything in the folder is one session, whatever its nights and telescopes.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """What a frame may be."""

    pixel_scale_arcsec: float = key(0.0, "Pixel scale; 0: from the header.", unit="arcsec a pixel", low=0, high=3600)
    max_pixels: int = key(200_000_000, "Larger frames are refused unread.", unit="pixels", low=1, high=10**11)
    max_bytes: int = key(4 * 1024**3, "Larger files, unpacked, are refused.", unit="bytes", low=2880, high=10**13)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTable:
    """How frames are dealt out to master tiles."""

    batch_cap: int = key(0, "Most frames of a master tile; 0: no limit.", unit="frames", low=0, high=1_000_000)
    batch_overlap: int = key(0, "Frames that neighbouring batches share.", unit="frames", low=0, high=1_000_000)
    group_radius_fraction: float = key(
        0.35, "Pointings closer than this fraction of the field make one group.", unit="of the field", low=0.01, high=1
    )
    group_rotation_deg: float = key(
        180.0,
        "Frames turned against each other by more make separate groups; 180: none.",
        unit="deg",
        low=0.1,
        high=180,
    )
    min_frames: int = key(1, "Groups with fewer frames make no tile.", unit="frames", low=1, high=1_000_000)
    max_mosaic_pixels: int = key(1_000_000_000, "A larger mosaic is refused.", unit="pixels", low=1, high=10**12)
    cell_size: float = key(
        1.0, "Longest side of a cell in mode grid.", unit="short sides of a frame", low=0.1, high=100
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How a master tile is stacked."""

    rejection: Literal["auto", "kappa_sigma", "winsorized_sigma", "linear_fit", "none"] = key(
        "auto", "How satellites, planes and cosmic rays are found; auto: against each frame's own noise."
    )
    combine: Literal["mean", "median"] = key("mean", "How the samples that are kept become one.")
    kappa_low: float = key(3.0, "Limit below the middle.", unit="standard deviations", low=0.5, high=100)
    kappa_high: float = key(3.0, "Limit above the middle.", unit="standard deviations", low=0.5, high=100)
    normalise: Literal["stars", "linear_fit", "sky_mean", "none"] = key(
        "stars", "How frames are brought to one level: by sky and stars, by two percentiles, by the sky alone."
    )
    weights: Literal["auto", "noise_variance", "noise_fwhm", "none"] = key(
        "auto", "Whether quieter frames, sharper ones, or both (auto) count for more."
    )
    kernel: Literal["kriging", "lanczos3", "catmull_rom", "drizzle"] = key(
        "kriging",
        "How values between pixels are found: true to stars, by the textbook, smooth and quick; or not at all.",
    )
    drizzle_pixfrac: float = key(0.8, "Side of the drop of a photosite (drizzle).", unit="pixels", low=0.5, high=1)
    attempts: int = key(3, "How often a tile is tried before it becomes a hole.", unit="times", low=1, high=100)
    memory_mb: int = key(512, "Memory for the bands of one tile.", unit="MB", low=16, high=1_000_000)
    edge_trim: bool = key(False, "Cut rows and columns almost without data off the edges of tiles.")
    altaz_cleanup_enabled: bool = key(
        False,
        "Mask weakly covered edges of alt-az tiles; on by itself for a session that has some.",
    )
    altaz_min_coverage_abs: float = key(
        3.0, "Pixels seen by fewer frames are masked.", unit="frames", low=0, high=1_000_000
    )
    altaz_min_coverage_frac: float = key(
        0.4,
        "Pixels below this part of the best coverage are masked.",
        unit="of the maximum",
        low=0,
        high=1,
    )
    altaz_morph_open_px: int = key(3, "Smaller islands of the mask are removed; 0: none.", unit="px", low=0, high=1000)
    altaz_nanize_threshold: float = key(0.001, "Alpha at or below this becomes empty.", unit="alpha", low=0, high=1)
    altaz_alpha_soft_threshold: float = key(0.001, "Alpha below this counts as nothing.", unit="alpha", low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicTable:
    """How tiles become one picture."""

    two_pass_enabled: bool = key(False, "A second pass that evens out what coverage still shows.")
    merge_tiles: bool = key(False, "Tiles that overlap by much become super tiles, with rejection across them.")
    merge_overlap: float = key(
        0.6, "What two of them share, at least.", unit="of the smaller footprint", low=0.01, high=1
    )
    feather_fraction: float = key(
        0.1, "Width of the blend at a tile's edge.", unit="of the tile's short side", low=0, high=0.5
    )
    orientation: Literal["auto", "north"] = key("auto", "As the frames lie (least empty area), or north up.")
    projection: Literal["auto", "TAN", "ZEA", "CAR", "HPX"] = key(
        "auto", "The mosaic's projection; auto: TAN until it stretches areas by 10 % (28 degrees across), then ZEA."
    )
    islands: Literal["one", "several"] = key(
        "one", "Tiles that share no sky with the others: in one mosaic with them, or each part in a mosaic of its own."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What is made beside mosaic.fits."""

    preview: bool = key(True, "Make preview.png.")
    preview_max_px: int = key(2000, "Longest side of the preview.", unit="px", low=16, high=30000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleanup:
    """What is deleted when a session is complete. Mosaics, previews, logs and your frames never are."""

    cleanup_temp_artifacts: bool = key(True, "Delete temporary processing files after run.")
    cache_retention: Literal["per_tile", "run_end", "keep"] = key(
        "run_end", "When prepared frames go: after their last tile, at the end of the session, never."
    )
    coadd_use_memmap: bool = key(
        True,
        "Sums of a large mosaic lie in files. None are made now (mosaics are streamed by bands); this is for Phase 7.",
    )
    coadd_cleanup_memmap: bool = key(True, "Phase 7 deletes those files with the rest (none are made now).")
    coadd_memmap_dir: str = key(
        "", "Where Phase 7 looks for those files; empty: in the session's own folder.", path=True
    )
    failed_keep_days: float = key(7.0, "Files of a failed session are kept so long.", unit="days", low=0, high=3650)
    failed_keep_gb: float = key(20.0, "And no more than this of them.", unit="GB", low=0, high=1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is said, how, and in which language."""

    level: Literal["debug", "info", "warning", "error"] = key("info", "The least important line that is written.")
    format: Literal["auto", "json", "console"] = key(
        "auto", "One JSON object a line, or for people; auto: by terminal."
    )
    language: Literal["en", "fr", "es", "de", "pl", "nl", "is"] = key("en", "Language of the sentences.")
    file: str = key("", "Log file (JSON lines); empty: log/zemosaicd.log in the state folder.", path=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorTable:
    """Who does the heavy work."""

    kind: Literal["pool", "inline"] = key("pool", "Worker processes, or everything in this process.")
    workers: int = key(0, "Number of worker processes; 0: one a core.", unit="processes", low=0, high=1024)
    job_timeout_s: float = key(
        1800.0, "A job that takes longer is killed and tried again.", unit="s", low=1, high=604800
    )
    memory_mb: int = key(2048, "Memory of one worker beyond its libraries.", unit="MB", low=128, high=1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The daemon as a guest on its computer."""

    drain_s: float = key(60.0, "On stop, running work may take so long to finish.", unit="s", low=0, high=86400)
    min_free_gb: float = key(1.0, "Free disk space that is never used up.", unit="GB", low=0, high=1_000_000)
    min_free_factor: float = key(
        1.3, "Work waits until this times its estimate is free.", unit="times", low=1, high=100
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set; the defaults are those of the shipped zemosaicd.toml."""

    paths: Paths = field(default_factory=Paths)
    watch: Watch = field(default_factory=Watch)
    session: Session = field(default_factory=Session)
    frames: Frames = field(default_factory=Frames)
    plan: PlanTable = field(default_factory=PlanTable)
    tiles: Tiles = field(default_factory=Tiles)
    mosaic: MosaicTable = field(default_factory=MosaicTable)
    outputs: Outputs = field(default_factory=Outputs)
    cleanup: Cleanup = field(default_factory=Cleanup)
    log: Log = field(default_factory=Log)
    executor: ExecutorTable = field(default_factory=ExecutorTable)
    service: Service = field(default_factory=Service)

    @property
    def log_file(self) -> Path:
        """Where the log goes: `log.file`, else `log/zemosaicd.log` in the state folder."""
        return Path(self.log.file) if self.log.file else Path(self.paths.state) / "log" / "zemosaicd.log"
