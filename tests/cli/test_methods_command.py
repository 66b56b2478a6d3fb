"""`compressor methods` and `compressor recipes`: nothing is missing, and figures are what is measured."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.console import compressor

from bench.quality import catalogue as measuring
from bench.quality.errors import name, weights
from compressor.cli.catalogue import Entry, entries
from compressor.methods.options import VERBS, choices_of, options_of
from compressor.methods.quantize.int.layouts import LAYOUTS
from compressor.methods.registry import methods_of
from compressor.recipe.presets import PRESETS
from compressor.recipe.toml_file import parse_recipe, ready_recipes


def names(kind: str) -> set[str]:
    return {one.name for one in entries() if one.kind == kind}


def choices(key: str) -> set[str]:
    """What some scheme allows for an option."""
    found = [options_of(method)[key][0] for method in methods_of("quantize").values() if key in options_of(method)]
    return {str(choice) for hint in found for choice in choices_of(hint) if choice is not None}


def test_nothing_is_missing_and_nothing_else_is_there() -> None:
    assert names("prune") == set(methods_of("prune"))
    assert names("distill") == {*methods_of("distill"), "soft-targets", "batch-norm"}
    assert names("quantize") == set(methods_of("quantize"))
    assert names("way") == choices("method")
    assert names("layout") == choices("layout") >= set(LAYOUTS)
    assert names("preset") == set(PRESETS)
    told = compressor("quantize", "--help-all").out + compressor("prune", "--help-all").out
    assert all(one in told for one in names("store") - {"stages"})
    assert all(one.loads and one.when for one in entries())
    assert {one.name for one in entries() if one.figures} == set(methods_of("quantize"))


@pytest.mark.parametrize("setting", ["int --bits 4 --group-size 128", "nvfp4", "q4_k", "uniform --bits 4.5"])
def test_figures_are_what_is_measured(setting: str) -> None:
    said = {row[0]: row[1:] for one in entries() for row in one.figures}
    options = next(o for o in (*measuring.SETTINGS, *measuring.IN_AN_ARCHIVE) if name(o) == setting)
    error, bits = measuring.measured(options, weights()["normal"])
    assert said[setting] == (pytest.approx(bits, abs=0.011), pytest.approx(error, abs=1.5e-4))


def test_the_figures_are_of_the_settings_of_the_script() -> None:
    settings = [name(options) for options in (*measuring.SETTINGS, *measuring.IN_AN_ARCHIVE)]
    assert sorted(settings) == sorted(row[0] for one in entries() for row in one.figures)


@pytest.mark.parametrize("topic", [[], ["quantize"], ["prune"], ["layouts"], ["int"], ["gptq"], ["soft-targets"]])
def test_what_is_told_fits_80_columns(topic: list[str]) -> None:
    done = compressor("methods", *topic, encoding="utf-8")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    for one in entries():
        if one.name in topic:
            assert one.given in done.out


def test_all_that_is_known_of_a_method() -> None:
    told = compressor("methods", "int").out
    assert "--symmetric / --asymmetric" in told
    assert "4.12   0.101  int --bits 4 --group-size 128\n" in told
    assert "vLLM, transformers" in told
    rows: list[dict[str, Any]] = json.loads(compressor("methods", "gptq", "--format", "json").out)
    assert [row["kind"] for row in rows] == ["way", "layout"]
    assert len(json.loads(compressor("methods", "--format", "json").out)) == len(entries())


def test_what_is_not_there_is_guessed() -> None:
    done = compressor("methods", "npf4")
    assert done.code == 2
    assert "Did you mean nf4?" in done.err or "Did you mean nvfp4?" in done.err
    done = compressor("recipes", "show", "w4a61")
    assert (done.code, "Did you mean w4a16?" in done.err) == (2, True)


def test_recipes() -> None:
    listed = compressor("recipes", "list").out
    assert listed == compressor("pipeline", "--list").out
    for known, text in ready_recipes().items():
        assert f"\n{known}\n" in f"\n{listed}"
        shown = compressor("recipes", "show", known).out
        assert shown == text
        assert parse_recipe(shown, known).description


def test_what_another_package_brings_is_listed() -> None:
    foreign = Entry("quantize", "theirs", "quantize --scheme theirs", "A summary.", "", "")
    assert list(foreign.options) == []
    assert VERBS == ("prune", "distill", "quantize")
