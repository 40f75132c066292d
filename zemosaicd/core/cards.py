"""Reading one card of a FITS header, whatever it holds.

An empty, absent, non-finite or absurd value says nothing: readers answer None or "", and never raise.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

Cards = Mapping[str, object]

MAX_TEXT = 200
MAX_SLUG = 100

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eEdD][+-]?\d+)?")
_SEXAGESIMAL = re.compile(r"""[\d\s:.+\-hmsdHMSD°'"′″]+""")


def number(cards: Cards, *names: str) -> float | None:
    """The first of the cards that holds a finite number, as a number or as text ("250.0 mm")."""
    for name in names:
        value = cards.get(name)
        if isinstance(value, str):
            found = _NUMBER.match(value.strip())
            value = float(found[0].lower().replace("d", "e")) if found else None
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            return float(value)
    return None


def text(cards: Cards, *names: str) -> str:
    """The first of the cards that holds any text, cleaned (F19); "" if none does."""
    for name in names:
        value = cards.get(name)
        if isinstance(value, str) and (clean := clean_text(value)):
            return clean
    return ""


def clean_text(raw: str) -> str:
    """Printable text on one line: no control, formatting (bidi) or surrogate characters, single spaces (F19)."""
    kept = "".join(" " if c.isspace() else c for c in raw if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(kept.split())[:MAX_TEXT].strip()


def slug(raw: str) -> str:
    """A file name made of any text: only [A-Za-z0-9._+-], 1 to 100 characters, no leading dot or dash (F19)."""
    plain = unicodedata.normalize("NFKD", raw).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", plain).lstrip("._-")[:MAX_SLUG].rstrip("_") or "unnamed"


def sexagesimal(value: str) -> float | None:
    """ "-0 15 30", "12:34:56.7", "12h34m", "+40d58'12" as a number of its first unit; None if it is not that."""
    if not _SEXAGESIMAL.fullmatch(value.strip()):
        return None
    parts = [float(p) for p in re.findall(r"\d+(?:\.\d*)?", value)]
    if not 2 <= len(parts) <= 3 or any(p > 60.0 for p in parts[1:]):
        return None
    size = sum(p / 60.0**i for i, p in enumerate(parts))
    return -size if value.strip().startswith("-") else size


def positive(cards: Cards, *names: str) -> float | None:
    """As `number`, where only a value above 0 makes sense."""
    value = number(cards, *names)
    return value if value is not None and value > 0.0 else None
