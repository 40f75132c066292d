"""A simulated night: raw frames of a real patch of sky, as a smart telescope would have written them.

Catalogue stars stand where they stand (`work.catalogue`), fainter ones and a nebula are made up from the seed; every
frame is a function of the `Night` and its number alone. The truth (each frame's exact WCS, transparency, seeing, the
stars) is kept, so that astrometry and photometry can be measured against it. Serves `zemosaicd simulate`, `demo` and
the tests. Simple where it can be: point-sampled Moffat stars, Gaussian photon noise, no refraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import Wcs
from zemosaicd.work.catalogue import read_cone

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]

MOFFAT_BETA = 3.0
COARSE_PX = 16
COLOURS = "RGB"
SKY_COLOUR = (0.85, 1.0, 0.75)
NEBULA_COLOUR = (1.0, 0.45, 0.35)
FULL_WELL_E = 60000.0
PIXEL_UM = 2.9
HEADER_SCALE_FACTOR = 1.008
"""FOCALLEN and XPIXSZ of real Seestar frames give a scale 0.8 % too large; so do ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """Everything that makes a simulated night. Angles in degrees, lengths in px, light in electrons a frame.

    `rows` x `cols` panels round (`ra_deg`, `dec_deg`, J2000), neighbours sharing `overlap` of their side, each with
    `frames` frames. `bayer` "" is a mono camera. `position_angle_deg`: of +y, east of north; `rotation_deg_min`: field
    rotation of an alt-az mount; `mirrored`: file rows show the sky mirrored (a Seestar's do not). `mag10_e`: electrons
    of a V = 10 star. `sky_drift`: relative change of the sky over the night; `gradient`: that across a frame; `cloud`:
    largest loss of transparency of a frame; `vignetting`: loss in the corners; `trail_every`: a satellite crosses every
    so many frames (0: never). `eqmode`: the EQMODE card (None: absent).
    """

    ra_deg: float = 305.5
    dec_deg: float = 40.5
    object_name: str = "Sadr"
    rows: int = 1
    cols: int = 1
    overlap: float = 0.25
    frames: int = 10
    width: int = 480
    height: int = 640
    scale_arcsec: float = 5.0
    bayer: str = "GRBG"
    position_angle_deg: float = 12.0
    rotation_deg_min: float = 0.0
    mirrored: bool = False
    dither_px: float = 8.0
    pointing_error_deg: float = 0.03
    fwhm_px: float = 2.9
    fwhm_spread: float = 0.1
    mag10_e: float = 20000.0
    faintest_mag: float = 15.0
    sky_e: float = 250.0
    sky_drift: float = 0.15
    gradient: float = 0.08
    nebula_e: float = 60.0
    cloud: float = 0.1
    vignetting: float = 0.0
    read_noise_e: float = 2.0
    electrons_per_adu: float = 0.5
    bias_adu: float = 400.0
    hot_pixels_ppm: float = 80.0
    trail_every: int = 0
    exposure_s: float = 10.0
    start: str = "2025-08-14T21:30:00"
    filter_name: str = "IRCUT"
    instrument: str = "Seestar S50"
    telescope: str = "S50_simulated"
    site_longitude_deg: float = 2.35
    eqmode: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.frames) < 1 or min(self.width, self.height) < 32:
            raise ValueError("a night needs at least one panel, one frame and 32 x 32 pixels")
        if self.bayer and (
            len(self.bayer) != 4 or set(self.bayer) != set(COLOURS) or self.width % 2 or self.height % 2
        ):
            raise ValueError("bayer must be four of R, G, B (or empty) and the sides even")
        if not 0.0 <= self.overlap < 1.0 or self.scale_arcsec <= 0 or self.electrons_per_adu <= 0:
            raise ValueError("overlap must be in [0, 1), scale and gain positive")

    @property
    def count(self) -> int:
        """How many frames the night has."""
        return self.rows * self.cols * self.frames


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sky:
    """The true sky of a night: stars (n,), ICRS degrees, V magnitude, electrons a frame in R, G, B (n, 3), and the
    nebula's blobs (m, 4): tangent-plane x, y and sigma in radians about the target, relative height."""

    ra_deg: F64
    dec_deg: F64
    mag: F64
    electrons: F64
    blobs: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFrame:
    """One frame and its truth. `fwhm_px` of its stars; `transparency` 1 is a clear sky; `sky_e` mean green sky."""

    path: Path
    panel: int
    wcs: Wcs
    date_obs: str
    transparency: float
    fwhm_px: float
    sky_e: float
    trail: bool


def simulate(
    night: Night, folder: Path, progress: Callable[[int, int], None] | None = None, sky: Sky | None = None
) -> list[SimulatedFrame]:
    """Write the night's frames into `folder` (made if need be) as uint16 FITS; `progress(done, total)` after each.

    A frame appears under its final name only when it is whole. Existing files of the same names are replaced. `sky`:
    that of another night, which another camera has seen too; None: the night's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sky = sky or sky_of(night)
    done = []
    for index in range(night.count):
        truth = plan_frame(night, index, folder)
        pixels = render(night, sky, truth, index)
        hdu = fits.PrimaryHDU(pixels, header=_header(night, truth))
        part = truth.path.with_name(f".{truth.path.name}.part")
        hdu.writeto(part, overwrite=True)
        part.replace(truth.path)
        done.append(truth)
        if progress is not None:
            progress(index + 1, night.count)
    return done


def sky_of(night: Night) -> Sky:
    """The stars and the nebula of a night: the shipped catalogue, then a power law of made-up stars below its limit."""
    rng = np.random.default_rng([night.seed, 1])
    across = math.hypot(night.width * night.cols, night.height * night.rows)
    radius = 0.5 * across * night.scale_arcsec / 3600 + night.pointing_error_deg + 0.1
    known = read_cone(night.ra_deg, night.dec_deg, radius)
    limit = float(np.percentile(known.mag, 90)) if len(known.mag) else 11.5
    slope = 0.35
    top = 10 ** (slope * (night.faintest_mag - limit))
    density = max(len(known.mag), 20) / (math.pi * radius**2)
    count = max(0, round(density * math.pi * radius**2 * (top - 1)))
    faint = limit + np.log10(1 + rng.random(count) * (top - 1)) / slope
    r, angle = np.radians(radius) * np.sqrt(rng.random(count)), 2 * math.pi * rng.random(count)
    ra, dec = _from_plane(night.ra_deg, night.dec_deg, r * np.cos(angle), r * np.sin(angle))
    mag = np.concatenate([known.mag.astype(np.float64), faint])
    colour = rng.normal(0.0, 0.25, len(mag))
    electrons = night.mag10_e * 10 ** (-0.4 * (mag - 10))
    rgb = np.stack([0.75 * electrons * np.exp(colour), electrons, 0.6 * electrons * np.exp(-colour)], axis=1)
    return Sky(
        ra_deg=np.concatenate([known.ra_deg, ra]), dec_deg=np.concatenate([known.dec_deg, dec]), mag=mag,
        electrons=rgb, blobs=_blobs(rng, math.radians(radius)),
    )  # fmt: skip


def plan_frame(night: Night, index: int, folder: Path) -> SimulatedFrame:
    """The truth of frame `index`, a function of the night and the number alone."""
    rng = np.random.default_rng([night.seed, 2, index])
    panel, within = divmod(index, night.frames)
    row, column = divmod(panel, night.cols)
    hours = index / max(1, night.count - 1) if night.count > 1 else 0.0
    started = datetime.fromisoformat(night.start).replace(tzinfo=UTC) + timedelta(
        seconds=index * (night.exposure_s + 1)
    )
    minutes = index * (night.exposure_s + 1) / 60
    target = _wcs(night, night.ra_deg, night.dec_deg, night.position_angle_deg)
    dither = rng.normal(0.0, night.dither_px, 2) if within else np.zeros(2)
    x = (night.width - 1) / 2 + (column - (night.cols - 1) / 2) * (1 - night.overlap) * night.width + dither[0]
    y = (night.height - 1) / 2 + (row - (night.rows - 1) / 2) * (1 - night.overlap) * night.height + dither[1]
    ra, dec = sphere.position(sphere.pixel_to_sky(target, x, y))
    name = f"Light_{night.object_name}_{night.exposure_s:.1f}s_{night.filter_name}_{started:%Y%m%d-%H%M%S}.fit"
    return SimulatedFrame(
        path=folder / name, panel=panel,
        wcs=_wcs(night, ra, dec, night.position_angle_deg + night.rotation_deg_min * minutes),
        date_obs=started.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3],
        transparency=1 - night.cloud * float(rng.random()),
        fwhm_px=night.fwhm_px * (1 + night.fwhm_spread * float(np.clip(rng.normal(), -2, 2))),
        sky_e=night.sky_e * (1 + night.sky_drift * hours),
        trail=night.trail_every > 0 and index % night.trail_every == night.trail_every - 1,
    )  # fmt: skip


def render(night: Night, sky: Sky, truth: SimulatedFrame, index: int) -> U16:
    """Pixels (height, width) uint16 ADU of one frame."""
    rng = np.random.default_rng([night.seed, 3, index])
    pattern = np.array([[COLOURS.index(c) for c in night.bayer[:2]], [COLOURS.index(c) for c in night.bayer[2:]]]) \
        if night.bayer else np.ones((2, 2), np.int64)  # fmt: skip
    image = np.empty((night.height, night.width), np.float32)
    _fill(image, _background(night, sky, truth), pattern.astype(np.int64), COARSE_PX)
    x, y = pixel_positions(truth.wcs, sky.ra_deg, sky.dec_deg)
    with np.errstate(invalid="ignore"):
        seen = (x > -30) & (x < night.width + 30) & (y > -30) & (y < night.height + 30)
    light = sky.electrons[seen] * (truth.transparency * _flat(night, x[seen], y[seen]))[:, None]
    _add_stars(image, x[seen], y[seen], light, pattern.astype(np.int64), truth.fwhm_px)
    if truth.trail:
        _add_trail(image, float(rng.random() * math.pi), float(rng.normal(0, 0.15)), 8 * math.sqrt(truth.sky_e), 1.5)
    image += np.sqrt(np.maximum(image, 0) + np.float32(night.read_noise_e**2)) * rng.standard_normal(
        image.shape, np.float32
    )
    hot = np.random.default_rng([night.seed, 4])
    count = round(night.hot_pixels_ppm * 1e-6 * image.size)
    places = hot.integers(0, image.size, count)
    image.reshape(-1)[places] += hot.exponential(20 * math.sqrt(night.sky_e), count).astype(np.float32) + 100
    np.minimum(image, np.float32(FULL_WELL_E), out=image)
    image *= np.float32(1 / night.electrons_per_adu)
    image += np.float32(night.bias_adu + 0.5)
    return np.asarray(np.clip(image, 0, 65535).astype(np.uint16))


def pixel_positions(wcs: Wcs, ra_deg: F64, dec_deg: F64) -> tuple[F64, F64]:
    """0-based pixel positions (n,) of ICRS positions; NaN on the far side of the sphere."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    v = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    east, north, centre = (np.array(b) @ v for b in sphere.tangent_basis(wcs.ra_deg, wcs.dec_deg))
    with np.errstate(divide="ignore", invalid="ignore"):
        xi, eta = np.degrees(np.where(centre > 0, east / centre, np.nan)), np.degrees(north / centre)
    c11, c12, c21, c22 = wcs.cd
    det = c11 * c22 - c12 * c21
    return wcs.x_px + (c22 * xi - c12 * eta) / det, wcs.y_px + (c11 * eta - c21 * xi) / det


def _wcs(night: Night, ra_deg: float, dec_deg: float, position_angle_deg: float) -> Wcs:
    s, a = night.scale_arcsec / 3600, math.radians(position_angle_deg)
    side = -1.0 if night.mirrored else 1.0
    cd = (side * s * math.cos(a), s * math.sin(a), -side * s * math.sin(a), s * math.cos(a))
    return Wcs(ra_deg=ra_deg, dec_deg=dec_deg, x_px=(night.width - 1) / 2, y_px=(night.height - 1) / 2, cd=cd)


def _from_plane(ra_deg: float, dec_deg: float, xi: F64, eta: F64) -> tuple[F64, F64]:
    east, north, centre = (np.array(b)[:, None] for b in sphere.tangent_basis(ra_deg, dec_deg))
    v = centre + east * xi + north * eta
    return np.degrees(np.arctan2(v[1], v[0])) % 360, np.degrees(np.arctan2(v[2], np.hypot(v[0], v[1])))


def _blobs(rng: np.random.Generator, radius_rad: float) -> F64:
    """A nebula: a dozen Gaussians near the target."""
    n = 12
    place = rng.normal(0.0, 0.3 * radius_rad, (n, 2))
    return np.column_stack([place, radius_rad * rng.uniform(0.06, 0.3, n), rng.uniform(0.2, 1.0, n)])


def _flat(night: Night, x: F64, y: F64) -> F64:
    r2 = (x - (night.width - 1) / 2) ** 2 + (y - (night.height - 1) / 2) ** 2
    return np.asarray(1 - night.vignetting * r2 / ((night.width / 2) ** 2 + (night.height / 2) ** 2))


def _background(night: Night, sky: Sky, truth: SimulatedFrame) -> F32:
    """Expected sky and nebula (3, h, w) on every COARSE_PX-th pixel, through the optics."""
    x = np.arange(-(-night.width // COARSE_PX) + 1) * float(COARSE_PX)
    y = np.arange(-(-night.height // COARSE_PX) + 1) * float(COARSE_PX)
    gx, gy = np.meshgrid(x, y)
    flat = _flat(night, gx, gy)
    turn = 2 * math.pi * (truth.sky_e / night.sky_e - 1)
    slope = (gx / night.width - 0.5) * math.cos(turn) + (gy / night.height - 0.5) * math.sin(turn)
    level = truth.sky_e * (1 + night.gradient * slope)
    matrix = np.array(sphere.sky_matrix(truth.wcs)).reshape(3, 3)
    v = matrix @ np.stack([gx.ravel(), gy.ravel(), np.ones(gx.size)])
    east, north, centre = (np.array(b) @ v for b in sphere.tangent_basis(night.ra_deg, night.dec_deg))
    xi, eta = east / centre, north / centre
    nebula = np.zeros(gx.size)
    for bx, by, sigma, height in sky.blobs:
        nebula += height * np.exp(-((xi - bx) ** 2 + (eta - by) ** 2) / (2 * sigma**2))
    nebula = (night.nebula_e * truth.transparency) * nebula.reshape(gx.shape)
    planes = [flat * (level * s + nebula * n) for s, n in zip(SKY_COLOUR, NEBULA_COLOUR, strict=True)]
    return np.stack(planes).astype(np.float32)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _fill(image: F32, coarse: F32, pattern: NDArray[np.int64], step: int) -> None:
    """Bilinear interpolation of each pixel's own colour."""
    height, width = image.shape
    for y in range(height):
        j, fy = y // step, np.float32(y % step) / np.float32(step)
        for x in range(width):
            i, fx = x // step, np.float32(x % step) / np.float32(step)
            c = coarse[pattern[y % 2, x % 2]]
            low = c[j, i] + fx * (c[j, i + 1] - c[j, i])
            high = c[j + 1, i] + fx * (c[j + 1, i + 1] - c[j + 1, i])
            image[y, x] = low + fy * (high - low)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add_stars(image: F32, x: F64, y: F64, light: F64, pattern: NDArray[np.int64], fwhm: float) -> None:
    """Moffat stars (beta 3) out to where they sink below 0.05 electrons, at most 40 px."""
    height, width = image.shape
    alpha2 = (fwhm / 2) ** 2 / (2.0 ** (1.0 / MOFFAT_BETA) - 1.0)
    for s in range(len(x)):
        peak = light[s].max() * (MOFFAT_BETA - 1.0) / (math.pi * alpha2)
        reach = math.sqrt(alpha2 * max((peak / 0.05) ** (1.0 / MOFFAT_BETA) - 1.0, 1.0))
        reach = min(reach, 40.0)
        for row in range(max(0, math.ceil(y[s] - reach)), min(height, int(y[s] + reach) + 1)):
            for column in range(max(0, math.ceil(x[s] - reach)), min(width, int(x[s] + reach) + 1)):
                u = 1.0 + ((column - x[s]) ** 2 + (row - y[s]) ** 2) / alpha2
                flux = light[s, pattern[row % 2, column % 2]] * (MOFFAT_BETA - 1.0) / (math.pi * alpha2)
                image[row, column] += np.float32(flux / (u * u * u))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add_trail(image: F32, angle: float, offset: float, peak: float, sigma: float) -> None:
    """A satellite: a straight line of Gaussian profile through the frame, `offset` of its size from the centre."""
    height, width = image.shape
    nx, ny = math.cos(angle), math.sin(angle)
    at = nx * width / 2 + ny * height / 2 + offset * min(width, height)
    for row in range(height):
        for column in range(width):
            d = nx * column + ny * row - at
            if abs(d) < 5 * sigma:
                image[row, column] += np.float32(peak * math.exp(-d * d / (2 * sigma * sigma)))


def _header(night: Night, truth: SimulatedFrame) -> fits.Header:
    """The cards a Seestar writes; the pointing is off by `pointing_error_deg` and of date, as on the real thing."""
    rng = np.random.default_rng([night.seed, 5, truth.panel])
    angle = 2 * math.pi * rng.random()
    off = math.radians(night.pointing_error_deg)
    at = np.array([off * math.cos(angle)]), np.array([off * math.sin(angle)])
    ra, dec = (float(v[0]) for v in _from_plane(truth.wcs.ra_deg, truth.wcs.dec_deg, *at))
    when = datetime.fromisoformat(truth.date_obs)
    if night.instrument.startswith("Seestar"):
        ra, dec = sphere.precess_from_j2000(ra, dec, when.year + (when.timetuple().tm_yday - 1) / 365.25)
    focal = 206.264806 * PIXEL_UM / (night.scale_arcsec * HEADER_SCALE_FACTOR)
    cards: list[tuple[str, object, str]] = [
        ("CREATOR", "zemosaicd simulate", "Simulated frame, no sky was harmed"),
        ("FOCALLEN", round(focal, 3), "Focal length of telescope in mm"),
        ("XBINNING", 1, "Camera X Bin"),
        ("YBINNING", 1, "Camera Y Bin"),
        ("XPIXSZ", PIXEL_UM, "pixel size in microns (with binning)"),
        ("YPIXSZ", PIXEL_UM, "pixel size in microns (with binning)"),
        ("IMAGETYP", "Light", "Type of image"),
        ("EXPOSURE", night.exposure_s, "Exposure time in seconds"),
        ("EXPTIME", night.exposure_s, "Exposure time in seconds"),
        ("CCD-TEMP", 25.0, "sensor temperature in C"),
        ("RA", round(ra, 6), "Object Right Ascension in degrees"),
        ("DEC", round(dec, 6), "Object Declination in degrees"),
        ("SITELONG", night.site_longitude_deg, "Site longitude in degrees, east positive"),
        ("DATE-OBS", truth.date_obs, "Image created time"),
        ("FILTER", night.filter_name, "Filter used when taking image"),
        ("INSTRUME", night.instrument, "Camera model"),
        ("GAIN", 80, "Gain Value"),
        ("TELESCOP", night.telescope, "Telescope name"),
        ("OBJECT", night.object_name, "name or catalog number of object being imaged"),
    ]
    if night.bayer:
        cards.append(("BAYERPAT", night.bayer, "Bayer pattern"))
    if night.eqmode is not None:
        cards.append(("EQMODE", night.eqmode, "Equatorial mode"))
    return fits.Header(cards)
