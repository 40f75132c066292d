"""The nouns of zemosaicd: what a frame, a plan, a tile, a session *is*.

Knows values only: no disk, no clock, no loop, no numpy. Every type is frozen, slotted and keyword-only; units are in
the names. Pixel coordinates are 0-based everywhere (pixel (0, 0) is the *centre* of the first pixel of the file);
FITS 1-based coordinates exist only at the edge, in `work.fitsio`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

FrameId = str
"""First 24 hex digits of the SHA-256 of a frame's shape and raw data unit: same pixels, same frame (F27)."""

DISTORTION_TERMS = 7
DISTORTION_BORDER = 0.05
"""Width of the border on which a `Distortion` holds, in shorter sides of the sensor."""


class MountMode(StrEnum):
    """How the mount followed the sky (SPEC M1)."""

    EQ = "EQ"
    ALT_AZ = "ALT_AZ"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something was left out: the rule, what was measured, and the limit it was held against."""

    rule: str
    value: float | str | None = None
    threshold: float | str | None = None
    message: str = ""


class ZemosaicdError(Exception):
    """Something went wrong that zemosaicd can explain."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.message or reason.rule)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ZemosaicdError], tuple[Reason]]:
        return type(self), (self.reason,)


class Rejected(ZemosaicdError):
    """This frame cannot be used; the session goes on without it."""


class Incomplete(ZemosaicdError):
    """This file is not whole yet; look again later (C2, F6)."""


class TileFailed(ZemosaicdError):
    """This tile could not be made; the mosaic is made of the rest, and the hole is reported."""


class SessionFailed(ZemosaicdError):
    """This session cannot give a mosaic; the daemon goes on with the others."""


class Fatal(ZemosaicdError):
    """The daemon must stop: configuration, journal or lock are not usable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What identifies one state of a file on disk without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wcs:
    """A plain world coordinate system (Calabretta & Greisen 2002), ICRS: TAN (gnomonic) for all but wide mosaics.

    `ra_deg, dec_deg`: the reference (tangent) point; `x_px, y_px`: its 0-based pixel position; `cd`: (CD1_1, CD1_2,
    CD2_1, CD2_2) in degrees a pixel, from pixel offsets to (xi east, eta north). `projection`: TAN, ZEA, CAR or HPX;
    the last two have their native equator through the reference point, eastwards (zemosaicd.sphere).
    """

    ra_deg: float
    dec_deg: float
    x_px: float
    y_px: float
    cd: tuple[float, float, float, float]
    projection: str = "TAN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distortion:
    """How a camera bends a plain TAN image: **ideal (TAN) pixel -> recorded pixel**, the way that the warp goes.

    With u = (x - cx) / R and v = (y - cy) / R (centre and half diagonal of the `width` x `height` sensor), the recorded
    x is the ideal x plus the sum of `x_px[k]` times term k of (u^2, u v, v^2, u^3, u^2 v, u v^2, v^3), and so for y;
    px. Degrees 0 and 1 belong to each frame's `Wcs`. `sphere.recorded_pixel` and `sphere.ideal_pixel` apply it.
    """

    width: int
    height: int
    x_px: tuple[float, ...]
    y_px: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.x_px) != DISTORTION_TERMS or len(self.y_px) != DISTORTION_TERMS:
            raise ValueError(f"{DISTORTION_TERMS} coefficients an axis, not {len(self.x_px)} and {len(self.y_px)}")
        if not self.reach_px <= self.border_px:
            raise ValueError(f"a distortion of up to {self.reach_px:.3g} px: {self.border_px:.3g} is the most")

    @property
    def border_px(self) -> float:
        """How far round the sensor the polynomial holds, px; farther out it may fold back and means nothing."""
        return DISTORTION_BORDER * min(self.width, self.height)

    @property
    def reach_px(self) -> float:
        """Bound of the shift in x and in y on the sensor and its border (there u and v are at most 1.1), px."""
        return 1.1**3 * max(sum(map(abs, self.x_px)), sum(map(abs, self.y_px)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A WCS and a shape: where pixels of an output lie on the sky. `width` columns (x), `height` rows (y)."""

    wcs: Wcs
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFacts:
    """What a frame's header says, cleaned (core.headers). NaN or None: the header does not say.

    `bayer` is the colour of the 2x2 block that starts at row 0, column 0 *of the array as stored in the file* ("GRBG",
    ...), with BAYERPAT, XBAYROFF, YBAYROFF and ROWORDER already taken into account; "" is a mono frame. `ra_deg,
    dec_deg` are J2000. `observed_s` is the start of the exposure as Unix seconds UTC. `scale_arcsec` 0: unknown.
    `wcs` is the header's own solution when it has a plain celestial one.
    """

    width: int
    height: int
    bayer: str = ""
    planes: int = 1
    exposure_s: float = 0.0
    gain: str = ""
    electrons_per_adu: float | None = None
    filter_name: str = ""
    camera: str = ""
    telescope: str = ""
    binning: str = "1x1"
    object_name: str = ""
    observed_s: float | None = None
    ra_deg: float | None = None
    dec_deg: float | None = None
    scale_arcsec: float = 0.0
    site_longitude_deg: float | None = None
    temperature_c: float | None = None
    mount_mode_card: str = ""
    eqmode_card: str = ""
    wcs: Wcs | None = None

    @property
    def channels(self) -> int:
        """3 for a Bayer frame, else the number of planes."""
        return 3 if self.bayer else self.planes

    @property
    def sensor(self) -> str:
        """Whose pixels these are: frames of one sensor share its faults, its lens and its illumination."""
        return f"{self.telescope}/{self.camera}/{self.binning}/{self.width}x{self.height}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What was measured on a prepared frame. Per-channel tuples are in R, G, B order, or one value for mono. ADU, px.

    `noise_adu` is the standard deviation of one photosite of that colour on empty sky; `low_adu`, `high_adu` are the
    25th and 90th percentile of a colour's photosites.
    """

    sky_adu: tuple[float, ...]
    noise_adu: tuple[float, ...]
    fwhm_px: float
    ellipticity: float
    stars: int
    hot_pixels: int
    saturated_fraction: float = 0.0
    low_adu: tuple[float, ...] = ()
    high_adu: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """A straight trail: pixels with |a x + b y + c| <= half_width_px belong to it; a^2 + b^2 = 1, 0-based sensor px.

    `peak_adu`: its mean height on the axis, `sigma`: how far the line stands out.
    """

    a: float
    b: float
    c: float
    half_width_px: float
    peak_adu: float
    sigma: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Where a frame lies on the sky and how that is known.

    `solver`: catalogue, header+catalogue, neighbour, pointing. `log_false_alarm`: natural log of the expected number
    of false alarms (experiments-astrometry section 2). `rms_arcsec`: 2-D residual of the matched stars.
    """

    wcs: Wcs
    solver: str
    matches: int
    log_false_alarm: float
    rms_arcsec: float
    header_wcs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFrame:
    """Phase 1's result for one frame.

    `stars` is `science.stars.StarList.to_bytes()`, `blocks` `science.skylight.BlockMap.to_bytes()`, `suspects` flat
    indices of pixels that stand out, little-endian uint32; `solution` None: unsolved, and `unsolved` says why.
    """

    frame: FrameId
    path: str
    cache: str
    facts: FrameFacts
    measures: Measures
    solution: Solution | None
    unsolved: Reason | None
    stars: bytes
    blocks: bytes
    trails: tuple[Trail, ...] = ()
    suspects: bytes = b""
    seconds: float = 0.0
    peak_rss_mb: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSky:
    """What Phase 3 takes from a frame besides its level. Per-channel tuples as in Measures.

    `slope_x, slope_y`: ADU a px, against the mean of the frame's group. `light`: sky light in ADU, `illumination`: the
    terms of f = 1 + t0 r^2 + t1 r^4 (science.skylight); empty: the sensor is taken as evenly lit.
    """

    slope_x: tuple[float, ...]
    slope_y: tuple[float, ...]
    light: tuple[float, ...] = ()
    illumination: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePlan:
    """All that Phases 3 to 5 need to know of one frame. Per-channel tuples as in Measures.

    `wcs`: the session's final solution of the frame, `distortion` what its camera does on top of it (None: nothing).
    `transparency`: its flux scale against its group's reference, per channel. `photon_adu`: variance in ADU^2 per ADU
    of signal above the sky, per channel. `mount_mode` follows SPEC M1. `low_adu`, `high_adu`: as measured. `trails`:
    those that no other frame shares.
    """

    frame: FrameId
    path: str
    cache: str
    facts: FrameFacts
    wcs: Wcs
    solver: str
    sky_adu: tuple[float, ...]
    noise_adu: tuple[float, ...]
    photon_adu: tuple[float, ...]
    transparency: tuple[float, ...]
    fwhm_px: float
    stars: int
    residual_px: float
    mount_mode: MountMode
    low_adu: tuple[float, ...] = ()
    high_adu: tuple[float, ...] = ()
    sky: FrameSky | None = None
    trails: tuple[Trail, ...] = ()
    distortion: Distortion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSpec:
    """One master tile to be made: which frames, in canonical order, on which grid."""

    tile: int
    mosaic: str
    group: str
    frames: tuple[FrameId, ...]
    reference: FrameId
    grid: Grid
    channels: int
    mount_mode: MountMode


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicSpec:
    """One mosaic to be made: its lattice and its tiles.

    On a TAN lattice every tile's grid is a window of it; on another each tile has a tangent plane of its own, and Phase
    5 interpolates it. `projection_reason`: why it is this one. `parts`: of how many islands it is made, which share no
    sky.
    """

    name: str
    filter_name: str
    channels: int
    lattice: Wcs
    tiles: tuple[int, ...]
    projection_reason: str = ""
    parts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A frame that takes no part, and why."""

    frame: FrameId
    path: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Phase 2's result: a pure function of the closed set of frames and the configuration.

    `fixed_pixels`: flat indices of the pixels of a sensor (FrameFacts.sensor) that are hot whatever the sky.
    `mode`: a row of core.modes. `made`: tiles that lie there already, number -> path; they are the user's. `supers`:
    the tiles that each super tile is made of (Phase 4.5), number -> their numbers.
    """

    frames: dict[FrameId, FramePlan]
    tiles: tuple[TileSpec, ...]
    mosaics: tuple[MosaicSpec, ...]
    left_out: tuple[LeftOut, ...] = ()
    mount_modes: dict[MountMode, int] = field(default_factory=dict)
    contains_altaz: bool = False
    altaz_cleanup: bool = False
    altaz_decision: str = ""
    fixed_pixels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    disk_bytes: int = 0
    memory_bytes: int = 0
    figures: dict[str, float | None] = field(default_factory=dict)
    mode: str = "classic"
    made: dict[int, str] = field(default_factory=dict)
    supers: dict[int, tuple[int, ...]] = field(default_factory=dict)


class ArtefactKind(StrEnum):
    """Every kind of thing that a session makes (SPEC section 4). OUTPUT and LOG are never removed (P9)."""

    CACHE = "cache"
    MASTER_TILE = "master_tile"
    SUPER_TILE = "super_tile"
    MEGA_TILE = "mega_tile"
    SDS_TILES = "sds_tiles"
    COADD_MEMMAP = "coadd_memmap"
    MOSAIC_FIRST = "mosaic_first"
    GLOBAL_WCS = "global_wcs"
    SCRATCH = "scratch"
    OUTPUT = "output"
    LOG = "log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """One line of a session's manifest: a file or directory that this session itself created.

    `device, inode` pin what was made; they are required for anything outside the session's own state folder (F18).
    """

    path: str
    kind: ArtefactKind
    device: int = 0
    inode: int = 0
    directory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNote:
    """One log line made where there is no logger (worker, core): emitted by the shell under its catalogue key."""

    level: str
    event: str
    fields: dict[str, object] = field(default_factory=dict)
