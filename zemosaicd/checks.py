"""One setting -> one checked value, and all of them together.

Every problem is found and worded here: what was given, where, what is allowed, and what was probably meant (F34).
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zemosaicd.model import Fatal, Reason
from zemosaicd.settings import Config, Rule

RENAMED = {("cleanup", "cache_retention_mode"): "cache_retention"}
TRUE = {"true", "yes", "on", "1"}
FALSE = {"false", "no", "off", "0"}
BAND_OVERHEAD = 1.5
"""Memory that a worker needs, in units of that of its bands: they are not alone in it."""


class ConfigError(Fatal):
    """The configuration cannot be used; the message says where and why, one line a problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value as someone gave it. `text`: it came as text and is still to be parsed by the key's type."""

    table: str
    key: str
    value: object
    place: str
    text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, where, and what would be right."""

    rule: str
    place: str
    name: str
    value: object
    allowed: str

    def sentence(self) -> str:
        given = "" if self.value is None else f" = {shown(self.value)}"
        return f"{self.place}: {self.name}{given}: {self.allowed}"


def keys() -> Iterator[tuple[str, str, Rule, object]]:
    """(table, key, rule, default) of every key, in the order of the tables."""
    default = Config()
    for table in fields(Config):
        for entry in fields(getattr(default, table.name)):
            yield table.name, entry.name, entry.metadata["rule"], getattr(getattr(default, table.name), entry.name)


def apply(config: Config, settings: Iterable[Setting]) -> Config:
    """The settings put over the configuration, each checked on its own; every problem is reported at once."""
    problems: list[Problem] = []
    changes: dict[str, dict[str, object]] = {}
    given: dict[tuple[str, str], Setting] = {}
    for setting in settings:
        entry = find(setting)
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        other = given.setdefault((setting.table, entry.name), setting)
        if other.key != setting.key and other.place.split(":")[0] == setting.place.split(":")[0]:
            problems.append(problem("config.twice", setting, f"means the same as {other.key}; give one of them"))
        try:
            changes.setdefault(setting.table, {})[entry.name] = _value(entry, setting)
        except ValueError as error:
            problems.append(problem("config.value", setting, str(error)))
    if problems:
        raise error_of(problems)
    return replace(config, **{t: replace(getattr(config, t), **change) for t, change in changes.items()})


def find(setting: Setting) -> Field[Any] | Problem:
    """The field that a setting means, or what is wrong with its name."""
    tables = {f.name: f for f in fields(Config)}
    if not setting.table:
        return problem("config.no_table", setting, "stands outside any table" + _table_of(setting.key, list(tables)))
    if setting.table not in tables:
        return problem("config.unknown_table", setting, "no such table" + _did_you_mean(setting.table, list(tables)))
    table = type(getattr(Config(), setting.table))
    entries = {f.name: f for f in fields(table)}
    name = RENAMED.get((setting.table, setting.key), setting.key)
    if name in entries:
        return entries[name]
    elsewhere = [f"{t}.{k}" for t, k, _, _ in keys() if k == name]
    hint = f"; did you mean {elsewhere[0]}?" if elsewhere else _did_you_mean(name, list(entries))
    return problem("config.unknown_key", setting, "no such key" + hint)


def _table_of(key: str, tables: list[str]) -> str:
    """The hint for a key that stands in no table."""
    homes = [f"[{t}]" for t, k, _, _ in keys() if key == k or RENAMED.get((t, key)) == k]
    homes = homes or [f"[{t}]" for t in difflib.get_close_matches(key, tables, n=1)]
    return f"; did you mean {' or '.join(homes)}?" if homes else ""


def _value(entry: Field[Any], setting: Setting) -> object:
    """The checked value of a setting; ValueError says what is allowed. None and "null" mean the default (P1)."""
    if setting.value is None or (setting.text and setting.value == "null"):
        return entry.default
    rule: Rule = entry.metadata["rule"]
    kind = get_type_hints(type(getattr(Config(), setting.table)))[entry.name]
    given = _unquoted(str(setting.value)) if setting.text else setting.value
    if get_origin(kind) is Literal:
        return _word(given, get_args(kind))
    if kind == tuple[str, ...]:
        return _words(given, setting.text)
    if NoneType in get_args(kind):
        if given in ("auto", ""):
            return None
        return _number(setting.value, float, rule, setting.text, ' or "auto"')
    convert: dict[object, Callable[[], object]] = {
        bool: lambda: _switch(setting.value, setting.text),
        int: lambda: _number(setting.value, int, rule, setting.text),
        float: lambda: _number(setting.value, float, rule, setting.text),
        str: lambda: _text(given, rule),
    }
    return convert[kind]()


def _unquoted(text: str) -> str:
    """A text in quotes as TOML reads it; a bare word as it is."""
    if len(text) < 2 or text[0] not in "\"'" or text[-1] != text[0]:
        return text
    try:
        value = tomllib.loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        value = {}
    if list(value) != ["v"]:
        raise ValueError('must be a text, bare or quoted as in TOML, such as "one"')
    return str(value["v"])


def _switch(value: object, text: bool) -> bool:
    if text and str(value).lower() in TRUE | FALSE:
        return str(value).lower() in TRUE
    if isinstance(value, bool):
        return value
    raise ValueError("must be true or false")


def _number(value: object, kind: type[int] | type[float], rule: Rule, text: bool, more: str = "") -> int | float:
    whole = "a whole number" if kind is int else "a number"
    low, high = (f"{bound:,.12g}".replace(",", "_") for bound in (rule.low or 0, rule.high or 0))
    allowed = f"must be {whole} from {low} to {high}" + (f" ({rule.unit})" if rule.unit else "") + more
    if text:
        try:
            value = kind(str(value))
        except ValueError:
            raise ValueError(allowed) from None
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise ValueError(allowed)
    # A NaN fails the comparison, as it should.
    if not (rule.low or 0) <= value <= (rule.high or 0):
        raise ValueError(allowed)
    return kind(value)


def _word(value: object, words: tuple[str, ...]) -> str:
    if value in words:
        return str(value)
    by_case = {word.lower(): word for word in words}
    hint = _did_you_mean(by_case.get(str(value).lower(), str(value)), list(words))
    raise ValueError("must be one of " + ", ".join(words) + hint)


def _words(value: object, text: bool) -> tuple[str, ...]:
    if text:
        try:
            value = tomllib.loads(f"v = {value}")["v"] if str(value).startswith("[") else [value] if value else []
        except tomllib.TOMLDecodeError:
            value = None
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v and "\0" not in v for v in value):
        raise ValueError('must be a list of texts, such as ["one", "two"]')
    return tuple(value)


def _text(value: object, rule: Rule) -> str:
    if not isinstance(value, str) or "\0" in value or (rule.pattern and not re.fullmatch(rule.pattern, value)):
        raise ValueError(f"must be {rule.shape or 'a text'}")
    return value


def _did_you_mean(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def shown(value: object) -> str:
    """A value as a person would write it, short and on one line."""
    text = str(value).lower() if isinstance(value, bool) else ascii(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def problem(rule: str, setting: Setting, allowed: str) -> Problem:
    """A problem with one setting."""
    name = ".".join(part for part in (setting.table, setting.key) if part)
    return Problem(rule=rule, place=setting.place, name=name, value=setting.value, allowed=allowed)


def error_of(problems: list[Problem]) -> ConfigError:
    """All problems as one error; its reason is the first one's."""
    first = problems[0]
    value = None if first.value is None else shown(first.value)
    message = "\n".join(problem.sentence() for problem in problems)
    return ConfigError(Reason(rule=first.rule, value=value, threshold=first.allowed, message=message))


def checked(config: Config) -> Config:
    """What no key can know alone."""
    problems = [*_overlaps(config)]
    tiles, plan = config.tiles, config.plan
    if tiles.altaz_nanize_threshold > tiles.altaz_alpha_soft_threshold:
        allowed = f"must not exceed tiles.altaz_alpha_soft_threshold = {tiles.altaz_alpha_soft_threshold:g} (V8)"
        problems.append(_together("tiles.altaz_nanize_threshold", tiles.altaz_nanize_threshold, allowed))
    if plan.batch_cap and plan.batch_overlap >= plan.batch_cap:
        allowed = f"must be smaller than plan.batch_cap = {plan.batch_cap}"
        problems.append(_together("plan.batch_overlap", plan.batch_overlap, allowed))
    room_mb = int(config.executor.memory_mb / BAND_OVERHEAD)
    if tiles.memory_mb > room_mb:
        allowed = f"must leave room in executor.memory_mb = {config.executor.memory_mb}: at most {room_mb}"
        problems.append(_together("tiles.memory_mb", tiles.memory_mb, allowed))
    if not config.paths.incoming:
        problems.append(_together("paths.incoming", None, "must name at least one folder"))
    if problems:
        raise error_of(problems)
    return config


def _together(name: str, value: object, allowed: str) -> Problem:
    return Problem(rule="config.together", place="configuration", name=name, value=value, allowed=allowed)


def _overlaps(config: Config) -> Iterator[Problem]:
    """F18: frames must not lie where zemosaicd writes. Output and state inside incoming are pruned by the scan."""
    output, state = resolved(config.paths.output), resolved(config.paths.state)
    for folder in config.paths.incoming:
        incoming = resolved(folder)
        for name, own in (("output", output), ("state", state)):
            if incoming == own or own in incoming.parents:
                yield _together("paths.incoming", folder, f"must not be, or lie in, paths.{name} = {own}")
    if output == state:
        yield _together("paths.output", config.paths.output, "must not be the same folder as paths.state")


def resolved(folder: str) -> Path:
    """An absolute path with `~` and links followed; never raises, whatever the text."""
    return Path(os.path.realpath(os.path.expanduser(folder)))  # noqa: PTH111  (Path.expanduser raises for "~nobody")
