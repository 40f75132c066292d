"""The sentences: one flat JSON file a language, key -> template for `str.format`.

A key is stable and never translated; its sentence follows `log.language`. Sentences that SPEC gives word for word are
the same in every language, because scripts look for them.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, get_args, get_type_hints

from zemosaicd.settings import Log

LANGUAGES: tuple[str, ...] = get_args(get_type_hints(Log)["language"])
FALLBACK = "en"


class _Missing:
    """Stands for an argument that the caller forgot: shows as its own placeholder, whatever the format."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __format__(self, _: str) -> str:
        return "{" + self._name + "}"


class _Formatter(string.Formatter):
    """`str.format` that never raises for a missing or an odd argument: a log line must always come out."""

    def get_value(self, key: int | str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        return kwargs[str(key)] if str(key) in kwargs else _Missing(str(key))

    def format_field(self, value: Any, format_spec: str) -> str:
        try:
            return format(value, format_spec)
        except (TypeError, ValueError):
            return str(value)


_FORMATTER = _Formatter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The sentences of one language, with English behind them."""

    language: str
    sentences: Mapping[str, str]
    fallback: Mapping[str, str]

    def sentence(self, key: str, fields: Mapping[str, object]) -> str:
        """The sentence of an event, or of a label, with its fields in place; the key itself if nobody knows it."""
        template = self.sentences.get(key) or self.fallback.get(key)
        return key if template is None else _FORMATTER.vformat(template, (), fields)


def load_catalogue(language: str) -> Catalogue:
    """The catalogue of one of LANGUAGES; KeyError for any other. ValueError if a file is not what it should be."""
    if language not in LANGUAGES:
        raise KeyError(language)
    return Catalogue(language=language, sentences=read_sentences(language), fallback=read_sentences(FALLBACK))


def read_sentences(language: str) -> dict[str, str]:
    """One locale file as it is. ValueError for a repeated key or anything but texts."""
    raw = resources.files("zemosaicd").joinpath("locales", f"{language}.json").read_text(encoding="utf-8")
    sentences = json.loads(raw, object_pairs_hook=_no_repeats)
    if not isinstance(sentences, dict) or not all(isinstance(text, str) for text in sentences.values()):
        raise ValueError(f"locales/{language}.json must hold key -> sentence")
    return sentences


def placeholders(template: str) -> set[str]:
    """The names of the fields that a sentence uses."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) != len(pairs):
        repeated = sorted({key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1})
        raise ValueError(f"repeated keys: {', '.join(repeated)}")
    return dict(pairs)
