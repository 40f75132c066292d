"""zemosaicd.toml, environment and --set -> one checked, frozen `Config`.

Later layers win: defaults, file, environment (`ZEMOSAICD_<TABLE>__<KEY>`), `--set table.key=value`, `session.toml`.
Nothing is guessed and nothing is skipped: an unknown key, a wrong type or a value out of range is a `ConfigError`
that names the place (with its line), the key, the value, what is allowed, and a likely correction (F34).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path

from zemosaicd.checks import RENAMED, ConfigError, Problem, Setting, apply, checked, error_of, find, keys, resolved
from zemosaicd.model import Reason
from zemosaicd.settings import Config
from zemosaicd.work.store import publish

__all__ = ["Config", "ConfigError", "get_value", "keys", "load", "overlay", "overlay_text", "set_value"]

ENVIRONMENT_PREFIX = "ZEMOSAICD_"


def load(path: Path | str | None, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> Config:
    """The configuration of a file (None: the defaults), the environment and `table.key=value` overrides.

    Relative folders count from the current folder. Raises ConfigError.
    """
    settings: list[Setting] = []
    if path is not None:
        settings += _from_text(_read(Path(path)), str(path))
    settings += _from_environment(os.environ if environ is None else environ)
    settings += [_from_override(text) for text in overrides]
    return _absolute(checked(apply(Config(), settings)))


def overlay(config: Config, tables: Mapping[str, object], source: str) -> Config:
    """`config` with the keys of `tables` (table -> key -> value) put over it; `source` is named in errors."""
    return _absolute(checked(apply(config, _from_tables(tables, "", source))))


def overlay_text(config: Config, text: str, source: str) -> Config:
    """`config` with a TOML text (a session.toml) put over it; errors name `source` and the line."""
    return _absolute(checked(apply(config, _from_text(text, source))))


def get_value(config: Config, name: str) -> object:
    """The value of "table.key"; ConfigError for a name that does not exist."""
    table, _, key = name.partition(".")
    entry = find(Setting(table=table, key=key, value=None, place="config get"))
    if isinstance(entry, Problem):
        raise error_of([entry])
    return getattr(getattr(config, table), entry.name)


def set_value(path: Path, name: str, text: str) -> None:
    """Write one key into the file, keeping comments, order and everything else; "null" puts the default back.

    The file is replaced whole or not at all, and only by one that loads. Raises ConfigError.
    """
    import tomlkit  # only here: every command waits for what a module imports
    import tomlkit.exceptions
    from tomlkit.container import Container
    from tomlkit.items import Table

    setting = _from_override(f"{name}={text}", "config set")
    value = get_value(apply(Config(), [setting]), name)
    table, _, key = name.partition(".")
    key = RENAMED.get((table, key), key)
    before = _read(path) if path.exists() else ""
    try:
        document = tomlkit.parse(before)
    except tomlkit.exceptions.ParseError as error:
        raise _syntax_error(str(path), before, error) from None
    if table not in document:
        document[table] = tomlkit.table()
    section = document[table]
    if not isinstance(section, (Table, Container)):
        raise error_of([Problem(rule="config.table", place=str(path), name=table, value=None, allowed="is no table")])
    for old, new in RENAMED.items():
        if old[0] == table and new == key:
            section.pop(old[1], None)
    section[key] = _to_toml(value)
    after = tomlkit.dumps(document)
    checked(apply(Config(), _from_text(after, str(path))))
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    with publish(path.resolve(), overwrite=True, mode=mode) as file:
        file.write(after.encode())


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        allowed = f"is not UTF-8 text (byte {error.start})"
        raise ConfigError(Reason(rule="config.encoding", message=f"{path}: {allowed}")) from None
    except OSError as error:
        raise ConfigError(Reason(rule="config.file", message=f"{path}: {error.strerror or error}")) from None


def _from_text(text: str, source: str) -> list[Setting]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(source, text, error) from None
    return _from_tables(tables, text, source)


def _from_tables(tables: Mapping[str, object], text: str, source: str) -> list[Setting]:
    settings, known = [], {f.name for f in fields(Config)}
    for table, content in tables.items():
        if not isinstance(content, Mapping):
            place = _place(source, text, "", table)
            settings.append(Setting(table="", key=table, value=content, place=place))
            continue
        if not content and table not in known:
            settings.append(Setting(table=table, key="", value=None, place=_place(source, text, table, "")))
        for key, value in content.items():
            settings.append(Setting(table=table, key=key, value=value, place=_place(source, text, table, key)))
    return settings


def _from_environment(environ: Mapping[str, str]) -> list[Setting]:
    """Only names with a double underscore are ours: ZEMOSAICD_FRAMES and the like mean something else."""
    settings = []
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name:
            table, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
            place = f"environment {name}"
            settings.append(Setting(table=table, key=key, value=environ[name], place=place, text=True))
    return settings


def _from_override(text: str, place: str = "--set") -> Setting:
    name, equals, value = text.partition("=")
    table, dot, key = name.strip().partition(".")
    if not equals or not dot:
        problem = Problem(rule="config.override", place=place, name=text, value=None, allowed="must be table.key=value")
        raise error_of([problem])
    return Setting(table=table, key=key, value=value.strip(), place=f"{place} {name.strip()}", text=True)


def _place(source: str, text: str, table: str, key: str) -> str:
    """ "source:line" of a key in a TOML text (tomllib keeps no positions); just the source where it is not found."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\[?\s*\"?([^\]\"]+?)\"?\s*\]", line)
        if header:
            current = header[1]
            if current == table and not key:
                return f"{source}:{number}"
            continue
        entry = re.match(r"\s*([^=#]+?)\s*=", line)
        if not entry:
            continue
        name = re.sub(r"[\s\"']", "", entry[1])
        if (f"{current}.{name}" if current else name) in (f"{table}.{key}" if table else key, table):
            return f"{source}:{number}"
    return source


def _syntax_error(source: str, text: str, error: Exception) -> ConfigError:
    """tomllib and tomlkit say where in words: "(at line 3, column 5)", "at line 3 col 5", "(at end of document)"."""
    found = re.search(r"\s*\(?at (?:line (\d+),? col(?:umn)? \d+|end of document)\)?", str(error))
    sentence = str(error).replace(found[0], "") if found else str(error)
    line = (found[1] if found else None) or str(max(1, len(text.splitlines())))
    return ConfigError(Reason(rule="config.syntax", message=f"{source}:{line}: not valid TOML: {sentence}"))


def _absolute(config: Config) -> Config:
    """Every folder as an absolute path with its links resolved, so that "lies inside" is a comparison of text."""
    changes: dict[str, dict[str, object]] = {}
    for table, name, rule, _ in keys():
        value = getattr(getattr(config, table), name)
        if rule.path and value:
            many = isinstance(value, tuple)
            paths = tuple(str(resolved(v)) for v in (value if many else (value,)))
            changes.setdefault(table, {})[name] = paths if many else paths[0]
    return replace(config, **{t: replace(getattr(config, t), **change) for t, change in changes.items()})


def _to_toml(value: object) -> object:
    """None is written "auto"; tomlkit writes everything else as it is."""
    if value is None:
        return "auto"
    return list(value) if isinstance(value, tuple) else value
