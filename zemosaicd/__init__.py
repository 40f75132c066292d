"""zemosaicd: nightly FITS frames in, a clean mosaic out, by dawn, unattended."""

__version__ = "0.1.0"
