"""The sentences (L1): every key that can appear is there in every language, with the same fields."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from zemosaicd.shell.language import LANGUAGES, load_catalogue, placeholders, read_sentences

PACKAGE = Path(__file__).parents[2] / "zemosaicd"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
NAMED_KEY = re.compile(r"(run|mastertile)_(info|warn|error|success)_\w+")

VERBATIM = {
    "phase3_refcount_enabled": "Phase3: per_tile cache retention uses refcount; safe deletion enabled "
    "({tracked} unique cache files tracked).",
    "phase3_refcount_complete": "Phase3: refcount cleanup complete; removed {removed} files; remaining {remaining} "
    "(if any).",
    "ALTAZ_CLEANUP_DISABLED": "ALTaz cleanup requested but no ALT_AZ frames detected -> disabled (EQ-only run).",
    "P3_ALTaz_GATING": "P3_ALTaz_GATING: tile_id={tile_id} eqmode={eqmode} global_enabled={global_enabled} => "
    "tile_enabled={tile_enabled}",
    "PHASE_UPDATE": "PHASE_UPDATE:{phase}",
    "sds_phase5_polish": "[SDS] Phase 5 polish ... (skipping master tiles)",
    "grid_mode_invoked": "[GRID] Invoking grid_mode.run_grid_mode(...)",
}
"""R6, M2, M3, section 2, D2, D3: sentences that SPEC gives word for word."""


def log_calls() -> list[tuple[str, str, set[str] | None]]:
    """(where, key, names of the fields or None if they cannot be told) of every line that the source can log."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED_KEY.fullmatch(node.value):
                found.append((where, node.value, None))
            if not isinstance(node, ast.Call):
                continue
            fields = {word.arg for word in node.keywords}
            known = None if None in fields else {name for name in fields if name}
            if isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS and node.args:
                found += [(where, key, known) for key in _texts(node.args[0])]
            if isinstance(node.func, ast.Name) and node.func.id == "LogNote":
                events = [word.value for word in node.keywords if word.arg == "event"]
                found += [(where, key, None) for event in events for key in _texts(event)]
    return found


def _texts(node: ast.expr) -> list[str]:
    """The literal texts that an expression can be: itself, or either side of `x if y else z`."""
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


SENTENCES = {language: read_sentences(language) for language in LANGUAGES}
CALLS = log_calls()


def test_L1_languages_are_the_seven() -> None:
    """en, fr, es, de, pl, nl, is, each with a file, and no other file beside them."""
    assert set(LANGUAGES) == {"en", "fr", "es", "de", "pl", "nl", "is"}
    assert {path.stem for path in (PACKAGE / "locales").glob("*.json")} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_L1_every_logged_key_has_a_sentence(language: str) -> None:
    """Every key in the source is in every language."""
    missing = sorted({f"{key} ({where})" for where, key, _ in CALLS if key not in SENTENCES[language]})
    assert not missing


@pytest.mark.parametrize("language", LANGUAGES)
def test_L1_languages_have_the_same_keys_and_fields(language: str) -> None:
    """No language lacks a key or has one too many, and each sentence uses the same fields as the English one."""
    ours, english = SENTENCES[language], SENTENCES["en"]
    assert ours.keys() == english.keys()
    assert [key for key in english if placeholders(ours[key]) != placeholders(english[key])] == []
    assert all(text.strip() for text in ours.values())


def test_L1_sentences_use_only_fields_that_are_given() -> None:
    """A sentence never asks for a field that its line does not carry (`session` may come from the context)."""
    wrong = [
        f"{where}: {key} lacks {sorted(lacking)}"
        for where, key, fields in CALLS
        if fields is not None and (lacking := placeholders(SENTENCES["en"].get(key, "")) - fields - {"session"})
    ]
    assert not wrong


def test_L1_placeholders_are_plain_names() -> None:
    """No positional, indexed or attribute placeholders: nothing of a value but its text can be reached."""
    for language, sentences in SENTENCES.items():
        for key, sentence in sentences.items():
            assert all(name.isidentifier() for name in placeholders(sentence)), f"{language}: {key}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_locale_files_are_sorted(language: str) -> None:
    """Sorted keys make two people's additions merge."""
    raw = json.loads((PACKAGE / "locales" / f"{language}.json").read_text(encoding="utf-8"))
    assert list(raw) == sorted(raw)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("key", sorted(VERBATIM))
def test_C6_given_sentences_are_word_for_word(key: str, language: str) -> None:
    """Where SPEC gives a sentence it is the same in every language, because scripts look for it."""
    assert SENTENCES[language][key] == VERBATIM[key]


def test_R6_shared_cache_line_says_so() -> None:
    """The line about shared caches holds the words that R6 asks for."""
    assert all("shared cache detected" in sentences["phase3_shared_cache"] for sentences in SENTENCES.values())


def test_P11_label_of_the_cleanup_switch() -> None:
    """The setting's label, in English and French as SPEC gives it."""
    key = "qt_field_cleanup_temp_artifacts"
    assert SENTENCES["en"][key] == "Delete temporary processing files after run"
    assert SENTENCES["fr"][key] == "Supprimer les fichiers temporaires de traitement après l’exécution"


def test_sentence_survives_missing_and_odd_fields() -> None:
    """A missing field shows as its placeholder, an unknown key as itself; nothing raises."""
    catalogue = load_catalogue("fr")
    assert catalogue.sentence("daemon_ready", {"incoming": ["a"]}).endswith("{output}.")
    assert catalogue.sentence("no_such_key", {}) == "no_such_key"
    with pytest.raises(KeyError):
        load_catalogue("xx")
