"""Memory is told of the job that took it (M5)."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaicd.work.meter import Meter

BYTES = 300 << 20


def test_M5_a_job_is_not_charged_with_the_peak_of_one_before_it() -> None:
    """A worker's peak begins anew with every job."""
    before = Meter()
    np.ones(BYTES, np.uint8).sum()
    peak_mb = before.peak_rss_mb
    assert peak_mb > before.base_mb + 290
    after = Meter()
    assert after.peak_rss_mb < peak_mb - 200
    assert after.seconds <= before.seconds


def test_M5_what_was_predicted_is_what_is_measured() -> None:
    """What the process holds and what the job asks for."""
    meter = Meter()
    predicted = meter.predicted_mb(BYTES)
    np.ones(BYTES, np.uint8).sum()
    assert meter.peak_rss_mb == pytest.approx(predicted, rel=0.1)
