"""The README of an output folder: front matter, our section, and the user's own text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml  # as gguf, of the tests, needs it too
from support.console import LLAMA, MATRIX, compressor

from compressor import api
from compressor.core.text import size_text
from compressor.workflows.model_card import card_facts

TEXT = "# My model\n\nIt says *hello*.\n\n---\n\nand more\n"


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter of a README, as YAML reads it, and what follows it."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def model(tmp_path: Path, readme: str | None) -> Path:
    shutil.copytree(LLAMA, tmp_path / "model")
    if readme is not None:
        (tmp_path / "model" / "README.md").write_text(readme, encoding="utf-8")
    else:
        (tmp_path / "model" / "README.md").unlink(missing_ok=True)
    return tmp_path / "model"


def test_a_folder_without_one_gets_one(tmp_path: Path) -> None:
    report = api.quantize(model(tmp_path, None), tmp_path / "q", bits=4)
    front, text = card(tmp_path / "q")
    assert front == {
        "base_model": "model",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "tags": ["compressor", "compressed-tensors"],
    }
    assert report.total is not None
    assert f"| relative error of the treated weights | {report.total.error:.3g} |" in text
    assert "quantize: scheme int, bits 4" in text
    assert 'AutoModelForCausalLM.from_pretrained("PATH")' in text
    assert report.plan.fingerprint in text


@pytest.mark.parametrize(
    ("front", "tags"),
    [
        ("license: mit\ntags: [a, 'compressor']\n", ["a", "compressor", "compressed-tensors"]),
        ("tags:\n  - a\n  - b\nlicense: mit\n", ["a", "b", "compressor", "compressed-tensors"]),
        ("license: mit\nbase_model:\n- x/y\n- x/z\ntags:\n- a\n", ["a", "compressor", "compressed-tensors"]),
        ("license: mit\n", ["compressor", "compressed-tensors"]),
    ],
)
def test_what_the_user_wrote_stays(front: str, tags: list[str], tmp_path: Path) -> None:
    api.quantize(model(tmp_path, f"---\n{front}---\n{TEXT}"), tmp_path / "q", bits=4)
    found, text = card(tmp_path / "q")
    assert found["tags"] == tags
    assert found["license"] == "mit"
    assert found["base_model"] == "model"
    assert text.endswith(TEXT)


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("hf://org/a-model@0123abc", "org/a-model"),
        ("/c/models--org--a--model/snapshots/0123/", "org/a--model"),
        ("s3://bucket/model/", "model"),
        ("https://user:secret@host/model/?signature=secret", "model"),
        ("models/mine", "mine"),
        (".", "here"),
        ("org/a-model@main", "org/a-model"),
    ],
)
def test_what_a_base_is_called(path: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    plan = api.quantize(LLAMA, tmp_path / "q", bits=4, dry_run=True).plan
    facts = card_facts(plan, b"", {}, path, ())
    assert facts is not None
    assert facts.base == base
    assert card_facts(plan, b"", {"_name_or_path": "x/y"}, path, ()).base == "x/y"  # type: ignore[union-attr]


def test_a_later_run_replaces_the_section(tmp_path: Path) -> None:
    api.prune(model(tmp_path, TEXT), tmp_path / "p", sparsity=0.3)
    front, text = card(tmp_path / "p")
    assert front["base_model_relation"] == "finetune"
    assert "It loads as the original does." in text
    api.quantize(tmp_path / "p", tmp_path / "q", bits=8)
    front, text = card(tmp_path / "q")
    assert front["base_model_relation"] == "quantized"
    assert text.count("How it was made smaller") == 1
    assert "bits 8" in text
    assert text.endswith(TEXT)


def test_what_is_no_text_stays_too(tmp_path: Path) -> None:
    folder = model(tmp_path, None)
    (folder / "README.md").write_bytes(b"caf\xe9 \xff\n")
    api.quantize(folder, tmp_path / "q", bits=4)
    assert (tmp_path / "q" / "README.md").read_bytes().endswith(b"caf\xe9 \xff\n")


def test_it_is_for_folders_of_models(tmp_path: Path) -> None:
    api.prune(MATRIX, tmp_path / "q.npy", sparsity=0.5)
    assert [one.name for one in tmp_path.iterdir()] == ["q.npy"]


def test_without_one_the_readme_is_carried_over(tmp_path: Path) -> None:
    folder = model(tmp_path, TEXT)
    for number, given in enumerate((("--no-card",), ("--no-card", "--force"))):
        done = compressor("quantize", folder, "-o", tmp_path / "q", "--bits", "4", *given)
        assert done.code == 0, (number, done.err)
    assert (tmp_path / "q" / "README.md").read_text(encoding="utf-8") == TEXT
    api.quantize(folder, tmp_path / "p", bits=4, card=False)
    assert (tmp_path / "p" / "README.md").read_text(encoding="utf-8") == TEXT


def test_where_nothing_is_done_it_stays(tmp_path: Path) -> None:
    """A folder that is stored otherwise, and what comes back of it."""
    folder = model(tmp_path, TEXT)
    api.pipeline(folder, tmp_path / "archive", store="archive")
    api.restore(tmp_path / "archive", tmp_path / "back")
    for one in ("archive", "back"):
        assert (tmp_path / one / "README.md").read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize("store", ["packed", "archive"])
def test_restoring_tells_that_it_is_undone(store: str, tmp_path: Path) -> None:
    api.quantize(model(tmp_path, f"---\nlicense: mit\n---\n{TEXT}"), tmp_path / "q", bits=4, store=store)
    front, text = card(tmp_path / "q")
    assert ("Only `compressor restore" in text) == (store == "archive")
    api.restore(tmp_path / "q", tmp_path / "back")
    front, text = card(tmp_path / "back")
    assert front["base_model_relation"] == "finetune"
    assert front["tags"] == ["compressor"]
    assert "| stage 2 | restore |" in text
    assert "| restored | 14 of 21 tensors |" in text
    assert "It loads as the original does." in text
    assert text.endswith(TEXT)


def test_several_passes_name_what_the_first_began_with(tmp_path: Path) -> None:
    """The base of an adapter is made on the way; the adapter is no model and has no card."""
    folder = model(tmp_path, TEXT)
    before = sum(one.stat().st_size for one in folder.glob("*.safetensors"))
    stages = ["prune:sparsity=0.3", "quantize:bits=4", f"distill:method=residual,rank=2,teacher={folder}"]
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    api.pipeline(folder, adapter, stages=stages, save_base=base)
    assert not (adapter / "README.md").exists()
    front, text = card(base)
    assert (front["base_model"], front["base_model_relation"]) == ("model", "quantized")
    after = sum(one.stat().st_size for one in base.glob("*.safetensors"))
    assert f"| weights | {size_text(before)} → {size_text(after)} (" in text
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("| stage")] == [
        "| stage 1 | prune",
        "| stage 2 | quantize",
    ]
    assert "relative error of all weights (last pass)" in text


def test_parts_make_the_card_of_one_run(tmp_path: Path) -> None:
    folder = model(tmp_path, TEXT)
    for store in ("auto", "archive"):
        whole, merged = tmp_path / f"{store}-whole", tmp_path / f"{store}-merged"
        api.quantize(folder, whole, bits=4, store=store)
        parts = [api.quantize(folder, merged, bits=4, store=store, part=f"{n}/3").output for n in (1, 2, 3)]
        api.merge(parts, merged)
        assert (merged / "README.md").read_bytes() == (whole / "README.md").read_bytes()
