"""What a process that has rehearsed need not load: workers are forked from one, idle ones rehearse what comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.nights import night

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from numba.core.dispatcher import Dispatcher
from zemosaicd.work import jobs
from zemosaicd.work.fitsio import Budget

def loaded():
    science = [m for name, m in sys.modules.items() if name.startswith("zemosaicd.science.")]
    kernels = {v for m in science for v in vars(m).values() if isinstance(v, Dispatcher) and v.signatures}
    return {k.py_func.__module__.rpartition(".")[2] + "." + k.__name__ for k in kernels}

jobs.warm_up()
warm = loaded()
jobs.PrepareFrame(path=sys.argv[1], cache=sys.argv[2], budget=Budget()).run()
frame = loaded() - warm
before = loaded()
jobs.GetReady(phase=3).run()
tile = loaded() - before
jobs.GetReady(phase=5).run()
mosaic = loaded() - tile - before
told = {"warm": warm, "frame": frame, "tile": tile, "mosaic": mosaic}
print(json.dumps({name: sorted(kernels) for name, kernels in told.items()}))
"""


def test_a_rehearsal_loads_what_the_work_will_run(tmp_path: Path) -> None:
    """After the warm-up a frame needs no other kernels than the plate solver's; GetReady loads what an ordinary tile is
    made with, from the raw numbers to the tally, and what a mosaic is, from the survey of its tiles to the preview."""
    script = tmp_path / "rehearse.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(night()[0]), str(tmp_path / "cache.npy")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert {"frame._hot_pixels", "detection._watershed", "centroids._measure", "stars._ring_flux"} <= set(told["warm"])
    assert {name.partition(".")[0] for name in told["frame"]} <= {"pairs", "astrometry"}, told["frame"]
    assert {
        "lattices.level_bayer",
        "kernels.warp_bayer",
        "medians.medians",
        "rejection.average",
        "rejection.tally",
    } <= (set(told["tile"]))
    assert {
        "tilestars.gaps",
        "tilestars._peaks",
        "placement._spans",
        "coadd._add_shifted",
        "coadd._finish",
        "preview._block_mean",
        "preview._paint",
    } <= (set(told["mosaic"]))
