"""Fixtures that every room of the tests uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from zemosaicd.shell.template import kernels_of

ROOT = Path(__file__).parents[1]

# As in a worker; several tests at a time and threads of each would stand in each other's way. Before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Kernels are compiled once, for the tests and for the daemons that they start. Before numba is imported.
os.environ.setdefault("NUMBA_CACHE_DIR", str(kernels_of(ROOT / "build")))

# A busy machine makes no test fail: how long an example takes is a matter for benchmarks/. Where a change is judged
# (CI is set) the examples are always the same ones: luck is for those who look for it.
settings.register_profile(
    "zemosaicd",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("zemosaicd")


@pytest.fixture(scope="session")
def frames_dir() -> Path:
    """The folder of real frames: ZEMOSAICD_FRAMES, else ../shared/frames; skips, saying so, where it is absent."""
    folder = Path(os.environ.get("ZEMOSAICD_FRAMES", ROOT.parent / "shared" / "frames"))
    if not folder.is_dir():
        pytest.skip(f"real frames not found at {folder} (set ZEMOSAICD_FRAMES)")
    return folder
