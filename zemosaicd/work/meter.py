"""What a job costs: seconds, and its own peak of memory in a worker that has done others before."""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from pathlib import Path

RESET_PEAK = "5"
"""What tells Linux to forget a process's peak (proc(5), clear_refs)."""


class Meter:
    """Begins to count when it is made."""

    def __init__(self) -> None:
        # Where the kernel will not, the peak is the worker's so far: too high, never too low.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        self._started = time.perf_counter()
        self.base_mb = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def seconds(self) -> float:
        """Since then."""
        return time.perf_counter() - self._started

    @property
    def peak_rss_mb(self) -> float:
        """Largest resident memory since then, MiB, what the process held before included."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def predicted_mb(self, planned_bytes: int) -> float:
        """What the peak should be if the job takes `planned_bytes` on top of what the process held, MiB (M5)."""
        return round(self.base_mb + planned_bytes / 2**20, 1)
