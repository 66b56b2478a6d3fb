"""The README of an output folder: front matter, our section, and the user's own text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml  # as gguf, of the tests, needs it too
from support.console import LLAMA, MATRIX, compressor

from compressor import api
from compressor.core.errors import UsageError

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
    report = api.quantize(model(tmp_path, None), tmp_path / "q", bits=4, card=True)
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
    api.quantize(model(tmp_path, f"---\n{front}---\n{TEXT}"), tmp_path / "q", bits=4, card=True)
    found, text = card(tmp_path / "q")
    assert found["tags"] == tags
    assert found["license"] == "mit"
    assert found["base_model"] == "model"
    assert text.endswith(TEXT)


def test_a_later_run_replaces_the_section(tmp_path: Path) -> None:
    api.prune(model(tmp_path, TEXT), tmp_path / "p", sparsity=0.3, card=True)
    front, text = card(tmp_path / "p")
    assert front["base_model_relation"] == "finetune"
    assert "It loads as the original does." in text
    api.quantize(tmp_path / "p", tmp_path / "q", bits=8, card=True)
    front, text = card(tmp_path / "q")
    assert front["base_model_relation"] == "quantized"
    assert text.count("How it was made smaller") == 1
    assert "bits 8" in text
    assert text.endswith(TEXT)


def test_what_is_no_text_stays_too(tmp_path: Path) -> None:
    folder = model(tmp_path, None)
    (folder / "README.md").write_bytes(b"caf\xe9 \xff\n")
    api.quantize(folder, tmp_path / "q", bits=4, card=True)
    assert (tmp_path / "q" / "README.md").read_bytes().endswith(b"caf\xe9 \xff\n")


def test_it_is_for_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--card is for a folder"):
        api.prune(MATRIX, tmp_path / "q.npy", sparsity=0.5, card=True)
    done = compressor("quantize", LLAMA, "-o", tmp_path / "q", "--bits", "4", "--card", "--part", "1/2")
    assert done.code == 2
    assert "--card" in done.err


def test_without_being_asked_the_readme_is_carried_over(tmp_path: Path) -> None:
    api.quantize(model(tmp_path, TEXT), tmp_path / "q", bits=4)
    assert (tmp_path / "q" / "README.md").read_text(encoding="utf-8") == TEXT
