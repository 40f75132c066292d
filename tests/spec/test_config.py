"""The configuration (section 10, F34, F18, P1, V8): one source of truth, and errors that tell where and what."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from zemosaicd.config import Config, ConfigError, get_value, keys, load, overlay, overlay_text, set_value

SHIPPED = Path(__file__).parents[2] / "zemosaicd.toml"


def refused(text: str, path: Path, *overrides: str, environ: dict[str, str] | None = None) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, environ or {})
    assert caught.value.reason.rule.startswith("config.")
    return str(caught.value)


def test_shipped_file_is_the_defaults() -> None:
    """zemosaicd.toml holds every key with its default value, and nothing else."""
    written = tomllib.loads(SHIPPED.read_text())
    assert {(table, key) for table, section in written.items() for key in section} == {(t, k) for t, k, _, _ in keys()}
    assert load(SHIPPED, environ={}) == load(None, environ={})


def test_shipped_file_explains_every_key() -> None:
    """Above every key (or the group it stands in) there is a comment."""
    before = ""
    for line in SHIPPED.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            assert before.startswith("#") or "=" in before, f"no comment above {line}"
        before = line


def test_every_key_has_help_and_a_range() -> None:
    """Numbers have limits; everything has a sentence."""
    for table, key, rule, default in keys():
        assert rule.help.endswith("."), f"{table}.{key}"
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert rule.low is not None, f"{table}.{key}"
            assert rule.high is not None, f"{table}.{key}"
            assert rule.low <= default <= rule.high


def test_section_10_defaults() -> None:
    """The names and defaults that others rely on."""
    config = Config()
    assert config.cleanup.cleanup_temp_artifacts is True
    assert config.cleanup.cache_retention == "run_end"
    assert config.cleanup.coadd_use_memmap is True
    assert config.cleanup.coadd_cleanup_memmap is True
    assert config.cleanup.coadd_memmap_dir == ""
    assert config.mosaic.two_pass_enabled is False
    assert config.tiles.altaz_cleanup_enabled is False
    assert config.plan.batch_cap == 0
    assert (config.cleanup.failed_keep_days, config.cleanup.failed_keep_gb) == (7.0, 20.0)
    assert (config.tiles.altaz_min_coverage_abs, config.tiles.altaz_min_coverage_frac) == (3, 0.4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[tiles]\nkapa_low = 3", ":2: tiles.kapa_low = 3: no such key; did you mean kappa_low?"),
        ("[tile]\n\nkappa_low = 3", ":3: tile.kappa_low = 3: no such table; did you mean tiles?"),
        ("[tile]", ":1: tile: no such table; did you mean tiles?"),
        ("x = 1", ":1: x = 1: stands outside any table"),
        ("kappa_low = 3", ":1: kappa_low = 3: stands outside any table; did you mean [tiles]?"),
        ("memory_mb = 3", ":1: memory_mb = 3: stands outside any table; did you mean [tiles] or [executor]?"),
        ("cache_retention_mode = 'keep'", "stands outside any table; did you mean [cleanup]?"),
        ("tile = 3", ":1: tile = 3: stands outside any table; did you mean [tiles]?"),
        ("[session]\nkappa_low = 3", ":2: session.kappa_low = 3: no such key; did you mean tiles.kappa_low?"),
        ("# c\n[tiles]\nkappa_low = 900 # x", ":3: tiles.kappa_low = 900: must be a number from 0.5 to 100 (stand"),
        ("[tiles]\nkappa_low = nan", ":2: tiles.kappa_low = nan: must be a number"),
        ("[tiles]\nkappa_low = '3'", ":2: tiles.kappa_low = '3': must be a number"),
        ("[tiles]\nattempts = 2.5", ":2: tiles.attempts = 2.5: must be a whole number from 1 to 100"),
        ("[tiles]\nattempts = true", ":2: tiles.attempts = true: must be a whole number"),
        ("[cleanup]\ncleanup_temp_artifacts = 1", ":2: cleanup.cleanup_temp_artifacts = 1: must be true or false"),
        ("[tiles]\nrejection = 'kappa_sigm'", "one of auto, kappa_sigma, winsorized_sigma, linear_fit, none; did you"),
        ("[session]\nclose_at = '25:00'", ":2: session.close_at = '25:00': must be HH:MM"),
        ("[session]\nmarker = 'a/b'", "must be a file name without a slash"),
        ("[session]\nlongitude_deg = 400", 'must be a number from -180 to 360 (deg) or "auto"'),
        ("[paths]\nincoming = 'here'", ":2: paths.incoming = 'here': must be a list of texts"),
        ("[paths]\nincoming = []", "paths.incoming: must name at least one folder"),
        ("[paths]\noutput = ''", "must be a folder"),
        ("tiles.kappa_low = 0", ":1: tiles.kappa_low = 0: must be"),
        ("[tiles\nkappa_low = 3", ":1: not valid TOML"),
        ("[tiles]\nkappa_low = 3\nkappa_low = 4", ":3: not valid TOML"),
        ("[tiles]\nkappa_low = \n", ":2: not valid TOML"),
        ("[tiles]\naltaz_nanize_threshold = 0.01", "must not exceed tiles.altaz_alpha_soft_threshold = 0.001"),
        ("[plan]\nbatch_cap = 5\nbatch_overlap = 5", "must be smaller than plan.batch_cap = 5"),
        ("[tiles]\nmemory_mb = 2000", "tiles.memory_mb = 2000: must leave room in executor.memory_mb = 2048: at"),
        ("[executor]\nmemory_mb = 767", "tiles.memory_mb = 512: must leave room in executor.memory_mb = 767: at"),
    ],
)  # fmt: skip
def test_F34_error_names_line_key_value_and_range(text: str, expected: str, tmp_path: Path) -> None:
    """Every mistake is told with its line, what was found, what is allowed, and what was probably meant."""
    path = tmp_path / "z.toml"
    message = refused(text, path)
    assert expected in message
    assert str(path) in message or "configuration:" in message


def test_F34_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """One line a problem, each with its source."""
    text = "[tiles]\nkapa = 1\nattempts = 0"
    message = refused(text, tmp_path / "z.toml", "log.level=loud", environ={"ZEMOSAICD_PLAN__BATCH_CAP": "-1"})
    lines = message.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("environment ZEMOSAICD_PLAN__BATCH_CAP: plan.batch_cap = '-1'")
    assert lines[3].startswith("--set log.level: log.level = 'loud': must be one of debug, info, warning, error")


def test_F34_missing_and_unreadable_files(tmp_path: Path) -> None:
    """A file that is not there, is a folder, or is not text is a configuration error too."""
    (tmp_path / "latin.toml").write_bytes(b"[log]\nfile = '\xe9'")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(ConfigError):
            load(path, environ={})


def test_layers_win_in_order(tmp_path: Path) -> None:
    """--set beats the environment, that the file, that the defaults; other variables are let be."""
    path = tmp_path / "z.toml"
    path.write_text("[tiles]\nkappa_low = 2\nkappa_high = 2\nattempts = 2")
    environ = {
        "ZEMOSAICD_TILES__KAPPA_HIGH": "4",
        "ZEMOSAICD_TILES__ATTEMPTS": "4",
        "ZEMOSAICD_FRAMES": "x",
        "HOME": "/",
    }
    tiles = load(path, ["tiles.attempts=5"], environ).tiles
    assert (tiles.kappa_low, tiles.kappa_high, tiles.attempts, tiles.combine) == (2.0, 4.0, 5, "mean")
    assert isinstance(tiles.kappa_low, float)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("cleanup.cleanup_temp_artifacts=off", False),
        ("cleanup.cleanup_temp_artifacts=True", True),
        ("cleanup.cleanup_temp_artifacts=null", True),
        ("cleanup.cache_retention_mode=keep", "keep"),
        ("session.longitude_deg=auto", None),
        ("session.longitude_deg=-110.5", -110.5),
        ("watch.ignore=*.tmp", ("*.tmp",)),
        ('watch.ignore=["a", "b"]', ("a", "b")),
        ("watch.ignore=", ()),
        ("frames.max_pixels=1_000", 1000),
        ("tiles.rejection=none", "none"),
        ("session.mount_mode=ALT_AZ", "ALT_AZ"),
        ('session.mount_mode="ALT_AZ"', "ALT_AZ"),
        ('session.longitude_deg="auto"', None),
        ('session.marker=""', ""),
        ("session.marker='a\\b'", "a\\b"),
        ('session.marker="a\\u00e9"', "a\u00e9"),
        ('session.marker="', '"'),
        ('session.marker=it"s', 'it"s'),
        ('watch.ignore="*.tmp"', ("*.tmp",)),
        ('paths.output="/x"', "/x"),
    ],
)
def test_override_texts_are_read_by_type(override: str, value: object) -> None:
    """--set and the environment give texts; the key's type decides what they mean."""
    assert get_value(load(None, [override], {}), override.partition("=")[0]) == value


def test_quotes_are_the_same_wherever_a_text_is_given(tmp_path: Path) -> None:
    """--set, the environment and `config set` read a quoted text as the file does; bad quoting is refused."""
    path = tmp_path / "z.toml"
    set_value(path, "paths.output", '"/x y"')
    assert tomllib.loads(path.read_text()) == {"paths": {"output": "/x y"}}
    assert load(None, environ={"ZEMOSAICD_PATHS__OUTPUT": "'/x y'"}).paths.output == "/x y"
    with pytest.raises(ConfigError, match="quoted as in TOML"):
        load(None, ['session.marker="a"b"'], {})


def test_memory_of_tiles_and_workers_fits_to_the_megabyte() -> None:
    """A worker with half as much again as its bands is enough."""
    assert load(None, ["tiles.memory_mb=1365", "executor.memory_mb=2048"], {}).tiles.memory_mb == 1365
    with pytest.raises(ConfigError, match=r"tiles.memory_mb = 1366: .* executor.memory_mb = 2048"):
        load(None, ["tiles.memory_mb=1366"], {})


def test_P1_master_switch_absent_or_null_is_true(tmp_path: Path) -> None:
    """cleanup_temp_artifacts is on unless it is turned off."""
    path = tmp_path / "z.toml"
    path.write_text("[cleanup]\n")
    assert load(path, environ={}).cleanup.cleanup_temp_artifacts is True
    assert overlay(Config(), {"cleanup": {"cleanup_temp_artifacts": None}}, "x").cleanup.cleanup_temp_artifacts is True
    path.write_text("[cleanup]\ncleanup_temp_artifacts = false")
    assert load(path, environ={}).cleanup.cleanup_temp_artifacts is False


def test_old_name_of_cache_retention_is_accepted(tmp_path: Path) -> None:
    """cache_retention_mode means cache_retention; both in one file is a mistake."""
    path = tmp_path / "z.toml"
    path.write_text("[cleanup]\ncache_retention_mode = 'per_tile'")
    assert load(path, environ={}).cleanup.cache_retention == "per_tile"
    both = "[cleanup]\ncache_retention_mode = 'per_tile'\ncache_retention = 'keep'"
    assert "means the same as" in refused(both, path)


def test_C3_session_toml_overrides_any_key() -> None:
    """A session.toml is put over the daemon's configuration, with the same checks and its own lines."""
    config = load(None, ["tiles.kappa_low=2"], {})
    session = overlay_text(config, "[session]\njoin = true\n[tiles]\nkappa_high = 5", "night/session.toml")
    assert (session.session.join, session.tiles.kappa_low, session.tiles.kappa_high) == (True, 2.0, 5.0)
    assert config.session.join is False
    with pytest.raises(
        ConfigError, match=r"night/session.toml:2: session.joint = true: no such key; did you mean join"
    ):
        overlay_text(config, "[session]\njoint = true", "night/session.toml")


@pytest.mark.parametrize(
    ("incoming", "output", "state", "good"),
    [
        ("in", "out", "state", True),
        ("in", "in/out", "in/state", True),
        ("in", "in", "state", False),
        ("in", "out", "in", False),
        ("out/in", "out", "state", False),
        ("state/x/in", "out", "state", False),
        ("in", "same", "same", False),
        ("in", "a/../in", "state", False),
        ("in", "link", "state", False),
        ("inner", "in", "state", True),
    ],
)
def test_F18_overlapping_folders_are_an_error(
    incoming: str, output: str, state: str, good: bool, tmp_path: Path
) -> None:
    """Frames must not lie where zemosaicd writes, nor results in the state folder, links and dots followed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    sets = [f"paths.{k}={tmp_path / v}" for k, v in (("incoming", incoming), ("output", output), ("state", state))]
    if good:
        load(None, sets, {})
    else:
        with pytest.raises(ConfigError):
            load(None, sets, {})


def test_relative_folders_count_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths come out absolute; the log lies in the state folder unless it is put elsewhere."""
    monkeypatch.chdir(tmp_path)
    config = load(None, ["paths.state=s"], {})
    assert config.paths.incoming == (str(tmp_path.resolve() / "incoming"),)
    assert config.log_file == tmp_path.resolve() / "s" / "log" / "zemosaicd.log"
    assert load(None, ["log.file=x.log"], {}).log_file == tmp_path.resolve() / "x.log"


def test_config_set_keeps_comments_order_and_other_keys(tmp_path: Path) -> None:
    """One key changes; comments, order and everything else stay; the change can be taken back."""
    path = tmp_path / "z.toml"
    path.write_text(SHIPPED.read_text())
    path.chmod(0o600)
    set_value(path, "tiles.kappa_low", "2.5")
    assert path.read_text() == SHIPPED.read_text().replace("kappa_low = 3.0", "kappa_low = 2.5")
    assert path.stat().st_mode & 0o777 == 0o600
    set_value(path, "tiles.kappa_low", "null")
    assert load(path, environ={}) == load(SHIPPED, environ={})


def test_P1_config_set_keeps_the_master_switch(tmp_path: Path) -> None:
    """Saving another key keeps cleanup_temp_artifacts as it was: false, true, or absent."""
    path = tmp_path / "z.toml"
    for text, value in (("false", False), ("true", True), (None, True)):
        path.write_text(f"[cleanup]\ncleanup_temp_artifacts = {text}\n" if text else "[cleanup]\n")
        set_value(path, "cleanup.cache_retention", "keep")
        assert load(path, environ={}).cleanup.cleanup_temp_artifacts is value
        assert ("cleanup_temp_artifacts" in path.read_text()) is (text is not None)


def test_config_set_makes_what_is_missing_and_renames_the_old(tmp_path: Path) -> None:
    """A missing file, a missing table, an old name: after `config set` the file loads with the value."""
    path = tmp_path / "z.toml"
    set_value(path, "session.longitude_deg", "auto")
    set_value(path, "session.longitude_deg", "8.5")
    path.write_text(path.read_text() + "[cleanup]\ncache_retention_mode = 'keep'\n")
    set_value(path, "cleanup.cache_retention", "run_end")
    set_value(path, "watch.ignore", '["a", "b"]')
    config = load(path, environ={})
    assert (config.session.longitude_deg, config.cleanup.cache_retention) == (8.5, "run_end")
    assert config.watch.ignore == ("a", "b")
    assert "cache_retention_mode" not in path.read_text()


@pytest.mark.parametrize(
    ("name", "text"), [("tiles.kappa_low", "900"), ("tiles.x", "1"), ("x", "1"), ("plan.batch_cap", "x")]
)
def test_config_set_refuses_what_would_not_load(name: str, text: str, tmp_path: Path) -> None:
    """A bad value changes nothing."""
    path = tmp_path / "z.toml"
    path.write_text("[plan]\nbatch_cap = 4\n")
    with pytest.raises(ConfigError):
        set_value(path, name, text)
    with pytest.raises(ConfigError):
        set_value(path, "plan.batch_overlap", "4")
    assert path.read_text() == "[plan]\nbatch_cap = 4\n"
    assert list(tmp_path.iterdir()) == [path]


def test_config_get_of_an_unknown_key_is_an_error() -> None:
    """`config get` says when a key does not exist."""
    with pytest.raises(ConfigError, match="did you mean kappa_low"):
        get_value(Config(), "tiles.kapa_low")
