"""The examples in the docstrings of the functions are run, and the page that is made of them is current."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
from support.console import TEACHER

import compressor
from compressor import api


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.safetensors").write_bytes(TEACHER.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("verb", sorted(set(api.__all__) - {"run_recipe"}))
def test_the_example_of_a_verb_does_what_it_says(verb: str) -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(api, verb), verb, module=api)
    assert test.examples, "give it an example"
    said: list[str] = []
    runner = doctest.DocTestRunner()
    assert runner.run(test, out=said.append).failed == 0, "".join(said)


def test_the_page_is_what_the_functions_say() -> None:
    """Mended by `python -m bench.pages.python`."""
    script = importlib.import_module("bench.pages.python")
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.page()
    assert "|  |\n" not in page, "a keyword that nothing is said of"


def test_what_there_is_can_be_listed() -> None:
    assert set(compressor.__all__) <= set(dir(compressor))
    for name in compressor.__all__:
        assert getattr(compressor, name) is not None


@pytest.mark.parametrize("verb", sorted(set(api.__all__) - {"survey"}))
def test_signatures_are_those_of_the_tables(verb: str) -> None:
    """What `inspect.signature`, and with it help() and notebooks, show: every keyword by its name and type."""
    signature = inspect.signature(getattr(api, verb))
    named = [one for one in signature.parameters.values() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    assert named
    assert all(one.annotation not in (inspect.Parameter.empty, "Any") for one in named)
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters.values())
