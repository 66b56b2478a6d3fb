"""Presets become rules: which layers get more bits, in which projections, and what the report shows of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressor import api
from compressor.cli.report import render
from compressor.core.errors import Problems, UsageError
from compressor.core.tensor import TensorSpec
from compressor.recipe.presets import rules
from compressor.recipe.selection import pattern
from compressor.recipe.stages import make_stage, parse_stage
from compressor.recipe.toml_file import parse_recipe

LLAMA = Path(__file__).parents[2] / "sample_weights" / "tiny-llama"
PARTS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


def names(layers: int) -> list[str]:
    return [f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in PARTS]


def specs(named: Iterable[str]) -> list[TensorSpec]:
    return [TensorSpec(name, "F32", (64, 64)) for name in named]


def chosen(layers: int, layout: str = "auto") -> set[str]:
    ((text, options),) = rules("q4_mixed", specs(names(layers)), layout)
    assert options == {"bits": 6 if layout == "mlx" else 8}
    return {name.removeprefix("model.layers.") for name in names(layers) if pattern(text).fullmatch(name)}


def test_first_and_last_eighth_and_every_third_between() -> None:
    layers = {int(name.partition(".")[0]) for name in chosen(16)}
    assert layers == {0, 1, 4, 7, 10, 13, 14, 15}


def test_value_and_down_projections_get_more_and_with_value_what_loaders_fuse_with_it() -> None:
    assert {name.partition(".")[2] for name in chosen(32, "mlx")} == {
        "self_attn.v_proj.weight",
        "mlp.down_proj.weight",
    }
    assert {name.partition(".")[2] for name in chosen(32)} == {
        "self_attn.q_proj.weight",
        "self_attn.v_proj.weight",
        "mlp.down_proj.weight",
    }


def test_names_of_other_models() -> None:
    found = rules("q4_mixed", specs(f"h.{n}.attn.wv.weight" for n in range(8)), "auto")
    assert pattern(found[0][0]).fullmatch("h.0.attn.wv.weight")
    assert not pattern(found[0][0]).fullmatch("h.1.attn.wv.weight")
    assert pattern(found[0][0]).fullmatch("h.7.mlp.shared_experts.w2.weight")
    assert not pattern(found[0][0]).fullmatch("h.7.mlp.experts.3.w2.weight")
    assert not rules("q4_mixed", specs(["fc1.weight", "fc2.weight"]), "auto")
    assert not rules("q4_mixed", specs(f"backbone.layers.{n}.mixer.in_proj.weight" for n in range(8)), "auto")


def test_a_preset_is_done_and_recorded_as_rules(tmp_path: Path) -> None:
    report = api.quantize(LLAMA, tmp_path / "out", preset="q4_mixed", group_size=64)
    bits = {job.spec.name: job.dtype_after for job, _ in report.rows}
    assert set(bits.values()) == {"int4", "int8"}
    assert bits["model.layers.1.mlp.down_proj.weight"] == "int8"
    assert bits["model.layers.1.mlp.up_proj.weight"] == "int4"
    assert report.plan.stages[0]["rule"][0]["bits"] == 8
    api.restore(tmp_path / "out", tmp_path / "back")


def test_the_users_own_rules_and_options_come_first(tmp_path: Path) -> None:
    report = api.quantize(
        LLAMA, tmp_path / "out", preset="q4_mixed", bits=8, group_size=64, rules=[("*.down_proj.*", {"bits": 4})]
    )
    assert {job.dtype_after for job, _ in report.rows if "down_proj" in job.spec.name} == {"int4"}
    assert {job.dtype_after for job, _ in report.rows if "gate_proj" in job.spec.name} == {"int8"}


def test_a_preset_that_says_nothing_of_the_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"layers.0.mixer.in_proj.weight": np.ones((64, 128), np.float32)}, path)
    with pytest.raises(UsageError, match="preset q4_mixed: by their names none of the tensors is a value or down"):
        api.quantize(path, tmp_path / "o.safetensors", preset="q4_mixed")
    report = api.quantize(path, tmp_path / "o.safetensors", preset="q4_mixed", allow_unmatched=True)
    assert [job.dtype_after for job, _ in report.rows] == ["int4"]


def test_depthwise_kernels_and_the_ends_of_a_network_of_convolutions_get_8_bits(tmp_path: Path) -> None:
    shapes = {"stem.weight": (8, 3, 3, 3), "deep.weight": (8, 1, 3, 3), "wide.weight": (16, 8, 1, 1)}
    shapes |= {"fc2.weight": (16, 16), "fc10.weight": (4, 16), "norm.weight": (16,)}
    random = np.random.default_rng(0)
    path = tmp_path / "in.safetensors"
    save_file({name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, path)
    eight = {"stem.weight", "deep.weight", "fc10.weight"}
    for bits in (4, 5):
        report = api.quantize(path, tmp_path / f"{bits}.safetensors", preset="edge-conv", bits=bits)
        found = {job.spec.name: job.dtype_after for job, _ in report.rows if job.treated}
        assert found == {name: f"int{8 if name in eight else bits}" for name in shapes if name != "norm.weight"}
    save_file({"fc.weight": np.ones((8, 8), np.float32)}, path)
    with pytest.raises(UsageError, match="no network of convolutions"):
        api.quantize(path, tmp_path / "o.safetensors", preset="edge-conv")


def test_recipes_and_stage_texts_take_presets() -> None:
    assert parse_stage("quantize:preset=q4_mixed").preset == "q4_mixed"
    recipe = parse_recipe('[[stage]]\nkind = "quantize"\npreset = "q4_mixed"\nfallback = true', "here")
    assert recipe.stages[0].preset == "q4_mixed"
    assert recipe.stages[0].fallback


@pytest.mark.parametrize("verb", ["prune", "quantize"])
def test_an_unknown_preset_is_refused(verb: str) -> None:
    with pytest.raises(UsageError, match=f"there is no {verb} preset 'q4_mix'") as caught:
        make_stage(verb, {"threshold": 1} if verb == "prune" else {}, preset="q4_mix")
    assert "q4_mixed" in str(caught.value)


def test_fallback_is_for_codes() -> None:
    with pytest.raises(UsageError, match="fallback has no meaning for prune"):
        make_stage("prune", {"threshold": 1}, fallback=True)


# ---- --fallback ------------------------------------------------------------------------------------------------


def odd(path: Path) -> Path:
    """Rows that no group of 128 divides, some of which smaller groups do."""
    random = np.random.default_rng(0)
    shapes = {"a.weight": (8, 128), "b.weight": (8, 192), "c.weight": (8, 13), "d.weight": (8, 48)}
    save_file({name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}, path)
    return path


def test_without_fallback_all_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(Problems) as caught:
        api.quantize(odd(tmp_path / "in.safetensors"), tmp_path / "out.safetensors", bits=4, group_size=128)
    assert [problem.tensor for problem in caught.value.problems] == ["b.weight", "c.weight", "d.weight"]
    assert not (tmp_path / "out.safetensors").exists()


def test_fallback_takes_what_is_nearest_and_says_so(tmp_path: Path) -> None:
    source = odd(tmp_path / "in.safetensors")
    report = api.quantize(source, tmp_path / "out.safetensors", bits=4, group_size=128, fallback=True)
    said = {job.spec.name: job.steps[0].instead for job, _ in report.rows}
    assert said == {
        "a.weight": "",
        "b.weight": "groups of 96, since groups of 128 do not divide the row of 192",
        "c.weight": "one scale a row, since groups of 128 do not divide the row of 13",
        "d.weight": "one scale a row, since groups of 128 do not divide the row of 48",
    }
    assert api.compare(source, tmp_path / "out.safetensors").total.error < 0.2
    text = render(report, "table")
    assert "instead 1: groups of 96, since groups of 128 do not divide the row of 192: b.weight" in text
    assert '"instead": "one scale a row' in render(report, "json")


def test_what_no_fallback_helps_is_kept_with_its_reason(tmp_path: Path) -> None:
    source = odd(tmp_path / "in.safetensors")
    report = api.quantize(source, tmp_path / "out.safetensors", bits=4, layout="mlx", fallback=True)
    kept = {job.spec.name: job.left_alone[0].reason for job in report.plan.jobs if not job.steps}
    assert list(kept) == ["c.weight", "d.weight"]
    assert all(reason.endswith("--fallback knows nothing near it") for reason in kept.values())


# ---- rows that the usual does not fit, where nobody named a size ------------------------------------------------


def test_without_a_named_size_the_nearest_that_fits_is_taken_and_said(tmp_path: Path) -> None:
    source = odd(tmp_path / "in.safetensors")
    report = api.quantize(source, tmp_path / "out.safetensors", bits=4)
    assert {job.spec.name: job.steps[0].instead for job, _ in report.rows} == {
        "a.weight": "",
        "b.weight": "groups of 64, since groups of 128 do not divide the row of 192",
        "c.weight": "one scale a row, since groups of 128 do not divide the row of 13",
        "d.weight": "one scale a row, since groups of 128 do not divide the row of 48",
    }
    assert api.compare(source, tmp_path / "out.safetensors").total.error < 0.2


@pytest.mark.parametrize("recipe", ["w4a16", "w8a16", "nvfp4"])
def test_ready_recipes_take_any_rows(recipe: str, tmp_path: Path) -> None:
    source = odd(tmp_path / "in.safetensors")
    report = api.pipeline(source, tmp_path / "out.safetensors", recipe=recipe)
    assert all(job.steps for job in report.plan.jobs)
    api.restore(tmp_path / "out.safetensors", tmp_path / "back.safetensors")


def test_integers_stand_in_where_blocks_do_not_divide_the_row(tmp_path: Path) -> None:
    source = odd(tmp_path / "in.safetensors")
    for scheme, bits in (("nvfp4", 4), ("mxfp4", 4), ("mxfp8", 8)):
        report = api.quantize(source, tmp_path / "out.safetensors", scheme=scheme, force=True)
        (made,) = [job for job, _ in report.rows if job.spec.name == "c.weight"]
        assert made.dtype_after == f"int{bits}"
        assert made.steps[0].instead.startswith(f"int{bits} with one scale a row, since blocks of ")


def test_eight_bits_leave_activations_alone_unless_asked(tmp_path: Path) -> None:
    source = odd(tmp_path / "in.safetensors")

    def made(**options: Any) -> dict[str, tuple[str, Any]]:
        report = api.quantize(source, tmp_path / "out.safetensors", force=True, **options)
        configs = {job.spec.name: job.encoder.config(job.spec) for job, _ in report.rows if job.encoder}
        weights = {name: one["weights"] for name, one in configs.items() if one}
        assert {one["input_activations"] is None for one in configs.values() if one} == {"layout" not in options}
        return {name: (one["strategy"], one["group_size"]) for name, one in weights.items()}

    assert (
        made()
        == made(bits=8)
        == {
            "a.weight": ("group", 128),
            **dict.fromkeys(("b.weight", "c.weight", "d.weight"), ("channel", None)),
        }
    )
    assert set(made(layout="int-quantized").values()) == {("channel", None)}


def test_a_rule_that_changes_the_bits_alone_leaves_the_rows_to_decide(tmp_path: Path) -> None:
    source = odd(tmp_path / "in.safetensors")
    report = api.quantize(source, tmp_path / "out.safetensors", rules=[("b.weight", {"bits": 4})])
    (made,) = [job for job, _ in report.rows if job.spec.name == "b.weight"]
    assert made.steps[0].instead.startswith("groups of 64")
