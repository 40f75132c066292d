"""Fixtures that every room of the tests uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def frames_dir() -> Path:
    """The folder of real frames: ZEMOSAICD_FRAMES, else ../shared/frames; skips, saying so, where it is absent."""
    folder = Path(os.environ.get("ZEMOSAICD_FRAMES", ROOT.parent / "shared" / "frames"))
    if not folder.is_dir():
        pytest.skip(f"real frames not found at {folder} (set ZEMOSAICD_FRAMES)")
    return folder
