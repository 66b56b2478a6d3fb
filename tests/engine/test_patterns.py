"""Patterns that match nothing are refused with what was likely meant, in every place where one can be given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.console import LLAMA
from support.fault_injection import invoke, is_one_line

from compressor import api
from compressor.core.errors import Problems, UsageError
from compressor.recipe.selection import matches, meant, unmatched

NAMES = [f"model.layers.{n}.mlp.{name}_proj.weight" for n in (0, 1) for name in ("up", "down")] + ["lm_head.weight"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*down_porj*", "*down_proj*"),
        ("down_proj", "*down_proj*"),
        ("model.layers.*.mlp.up_proj", "model.layers.*.mlp.up_proj*"),
        ("model.layer.0.*", "model.layers.0.*"),
        ("lm_head", "lm_head*"),
        ("lm_heads.weight", "lm_head.weight"),
        ("re:.*donw_proj.*", "re:.*down_proj.*"),
        ("re:model", "re:model.*"),
        ("*DOWN_PROJ*", "*down_proj*"),
        (r"model\.layers\.0\..*", r"re:model\.layers\.0\..*"),
        ("zzz", None),
        ("", "*"),
    ],
)
def test_what_was_meant(text: str, expected: str | None) -> None:
    assert unmatched([text], NAMES) == [text]
    assert meant(text, NAMES) == expected
    assert expected is None or not unmatched([expected], NAMES)


def test_a_name_with_brackets_selects_itself() -> None:
    for name in ("blocks[0].weight", "a*b", "layer?.weight", "[x].weight", "re:weight"):
        assert matches(name, (name,)) == name
    assert matches("blocks0.weight", ("blocks[0].weight",))  # as a glob it still means this
    assert not matches("blocks1.weight", ("blocks[0].weight",))


def test_a_tensor_with_brackets_is_excluded_by_its_name(tmp_path: Path) -> None:
    save_file(
        {"a[0].weight": np.ones((4, 4), "f4"), "a1.weight": np.ones((4, 4), "f4")}, tmp_path / "m.safetensors"
    )
    api.prune(tmp_path / "m.safetensors", tmp_path / "o.safetensors", threshold=2.0, exclude=["a[0].weight"])
    assert {name: bool(array.any()) for name, array in load_file(tmp_path / "o.safetensors").items()} == {
        "a[0].weight": True,
        "a1.weight": False,
    }


@pytest.mark.parametrize("option", ["--include", "--exclude", "--set"])
@pytest.mark.parametrize("verb", [("prune", "--sparsity", "0.5"), ("quantize", "--bits", "8")], ids=lambda v: v[0])
def test_nothing_is_written(tmp_path: Path, option: str, verb: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    wrong = "*down_porj*" + (f":{'sparsity=0.1' if verb[0] == 'prune' else 'bits=4'}" if option == "--set" else "")
    code, lines = invoke([*verb, str(LLAMA), "-o", str(out), option, wrong])
    assert code == 2
    assert is_one_line(lines)
    assert f"{option} '*down_porj*' matches no tensor" in lines[0]
    assert "Did you mean '*down_proj*' (model.layers.0.mlp.down_proj.weight and 1 more)?" in lines[0]
    assert not out.exists()
    code, lines = invoke(
        [*verb, str(LLAMA), "-o", str(out), option, wrong, "--exclude", "lm_head*", "--allow-unmatched"]
    )
    assert code == 0, lines


def test_recipes_name_the_stage_and_conditions_count(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        """
[[stage]]
kind = "prune"
sparsity = 0.5
exclude = ["*up_porj*", "lm_head*"]

[[stage]]
kind = "quantize"
bits = 8
when = { dtype = ["F16"] }
rule = [{ match = "*.donw_proj.*", bits = 4 }]
"""
    )
    with pytest.raises(Problems) as caught:
        api.pipeline(LLAMA, tmp_path / "out", recipe=str(recipe))
    said = [str(problem) for problem in caught.value.problems]
    assert said[0].startswith("stage 0: --exclude '*up_porj*' matches no tensor. Did you mean '*up_proj*'")
    assert said[1].startswith("stage 1: --set '*.donw_proj.*' matches no tensor. Did you mean '*.down_proj.*'")
    assert said[2].startswith("stage 1: when: no tensor has dtype F16")
    assert not (tmp_path / "out").exists()
    report = api.pipeline(LLAMA, tmp_path / "out", recipe=str(recipe), allow_unmatched=True)
    assert sum("matches no tensor" in note or "no tensor has" in note for note in report.plan.notes) == 3


def test_budgets_and_python_refuse_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="matches no tensor"):
        api.quantize(LLAMA, tmp_path / "o", target_bits=4.5, exclude=["*q_porj*"])
    with pytest.raises(UsageError, match=r"Did you mean '\*q_proj\*'"):
        api.distill(LLAMA, tmp_path / "o", teacher=LLAMA, alpha=0.5, include=["*q_porj*"])
