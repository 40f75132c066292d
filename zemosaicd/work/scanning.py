"""Phase 0 in a worker: what lies in a file, by its header alone, and whether it is whole. It imports no science."""

from __future__ import annotations

from pathlib import Path

from zemosaicd.core import headers
from zemosaicd.model import Incomplete, Reason, Rejected, ZemosaicdError
from zemosaicd.work import fitsio
from zemosaicd.work.jobs import HeaderRead, ReadHeaders


def read_headers(job: ReadHeaders) -> tuple[HeaderRead, ...]:
    """Each file is whole and a light frame (or the picture that is asked for), not whole yet, or refused, and why."""
    answers = []
    for path, fingerprint in job.files:
        try:
            header = fitsio.read_header(Path(path), job.budget)
            tile = None if job.pictures else _tile(path, header, job)
            if tile is not None:
                answers.append(tile)
                continue
            facts = headers.facts(header.cards, Path(path).name, masters=job.pictures)
            fitsio.check_complete(Path(path), job.budget, zero_tail=not job.pictures)
            answers.append(HeaderRead(path=path, fingerprint=header.fingerprint, facts=facts))
        except ZemosaicdError as error:
            held = isinstance(error, Incomplete)
            answers.append(HeaderRead(path=path, fingerprint=fingerprint, reason=error.reason, incomplete=held))
        except OSError as error:
            reason = Reason(rule="unreadable", value=error.strerror or "", message=f"{path}: {error.strerror}")
            answers.append(HeaderRead(path=path, fingerprint=fingerprint, reason=reason, incomplete=True))
    return tuple(answers)


def _tile(path: str, header: fitsio.RawHeader, job: ReadHeaders) -> HeaderRead | None:
    """The answer for what is refused as a frame and is a master tile; None for all else. Raises Incomplete."""
    name = Path(path).name
    try:
        headers.facts(header.cards, name)
    except Rejected as error:
        if not headers.is_master_tile(header.cards, name):
            return None
        facts = headers.facts(header.cards, name, masters=True)
        fitsio.check_complete(Path(path), job.budget, zero_tail=False)
        return HeaderRead(path=path, fingerprint=header.fingerprint, reason=error.reason, tile=facts)
    return None
