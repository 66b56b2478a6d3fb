"""Which tensor gets which of ggml's types: what llama-quantize gave (its functions, called on the same tensors)."""

from __future__ import annotations

import random

import pytest

from compressor.architectures.ggml_mixtures import GgmlModel, is_quantized, mixture
from compressor.core.tensor import TensorSpec
from compressor.methods.registry import methods_of
from compressor.recipe.presets import MIXTURES


def model(layers: int, *, tied: bool = False, experts: int = 0, width: int = 256) -> list[TensorSpec]:
    shapes = {"token_embd.weight": (320, width), "output_norm.weight": (width,)}
    if not tied:
        shapes["output.weight"] = (320, width)
    for layer in range(layers):
        own = {"attn_norm": (width,), "attn_q": (width, width), "attn_k": (64, width), "attn_v": (64, width)}
        own |= {"attn_output": (width, width)}
        if experts:
            own |= {"ffn_gate_inp": (experts, width), "ffn_down_exps": (experts, width, 512)}
        else:
            own |= {"ffn_up": (512, width), "ffn_down": (width, 512)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in own.items()}
    specs = [TensorSpec(name, "F32", shape) for name, shape in shapes.items()]
    random.Random(layers).shuffle(specs)  # the order of a file does not matter
    return specs


def chosen(preset: str, specs: list[TensorSpec], found: GgmlModel, *, informed: bool = False) -> dict[str, str]:
    return mixture(preset, MIXTURES[preset], specs, found, informed=informed)


def of_layers(schemes: dict[str, str], part: str) -> dict[str, list[int]]:
    """The layers in which a part has each scheme."""
    told: dict[str, list[int]] = {}
    for name, scheme in schemes.items():
        if name.endswith(f".{part}.weight"):
            told.setdefault(scheme, []).append(int(name.split(".")[1]))
    return {scheme: sorted(layers) for scheme, layers in told.items()}


GROUPED, ALONE = GgmlModel("llama", 16, 0, 4), GgmlModel("llama", 16, 0, 1)
MORE = [0, 1, 4, 7, 10, 13, 14, 15]  # first and last eighth, and of the others every third
REST = [layer for layer in range(16) if layer not in MORE]
ALL = list(range(16))


@pytest.mark.parametrize(
    ("preset", "part", "expected"),
    [
        ("q4_k_m", "attn_v", {"q6_k": MORE, "q4_k": REST}),
        ("q4_k_m", "ffn_down", {"q6_k": MORE, "q4_k": REST}),
        ("q4_k_m", "attn_output", {"q4_k": ALL}),
        ("q5_k_m", "ffn_down", {"q6_k": MORE, "q5_k": REST}),
        ("q4_k_s", "attn_v", {"q5_k": [0, 1, 2, 3], "q4_k": ALL[4:]}),
        ("q4_k_s", "ffn_down", {"q5_k": [0, 1], "q4_k": ALL[2:]}),
        ("q3_k_m", "attn_v", {"q5_k": [0, 1], "q4_k": ALL[2:]}),
        ("q3_k_m", "ffn_down", {"q5_k": [0], "q4_k": ALL[1:]}),
        ("q3_k_m", "attn_output", {"q4_k": ALL}),
        ("q3_k_l", "attn_v", {"q5_k": ALL}),
        ("q3_k_s", "ffn_down", {"q3_k": ALL}),
        ("q2_k", "attn_v", {"q4_k": ALL}),
        ("q2_k", "ffn_down", {"q3_k": ALL}),
        ("q2_k", "attn_output", {"q3_k": ALL}),
        ("q2_k_s", "ffn_down", {"q4_k": [0, 1], "q2_k": ALL[2:]}),
        ("iq4_xs", "attn_v", {"q5_k": ALL}),
        ("iq4_xs", "ffn_down", {"q5_k": [0, 1], "iq4_xs": ALL[2:]}),
        ("q6_k", "attn_v", {"q6_k": ALL}),
        ("q8_0", "ffn_down", {"q8_0": ALL}),
        ("q4_0", "ffn_down", {"q4_0": ALL}),
    ],
)
def test_layers_of_a_model_with_grouped_queries(preset: str, part: str, expected: dict[str, list[int]]) -> None:
    assert of_layers(chosen(preset, model(16), GROUPED), part) == expected


def test_value_projections_without_groups_get_less() -> None:
    assert of_layers(chosen("q2_k", model(16), ALONE), "attn_v") == {"q3_k": ALL}
    assert of_layers(chosen("iq4_xs", model(16), ALONE), "attn_v") == {"iq4_xs": ALL}


def test_an_importance_matrix_changes_the_first_down_projections() -> None:
    found = chosen("q4_0", model(16), GROUPED, informed=True)
    assert of_layers(found, "ffn_down") == {"q4_1": [0, 1], "q4_0": ALL[2:]}
    assert of_layers(chosen("iq4_xs", model(16), GROUPED, informed=True), "ffn_down") == {"iq4_xs": ALL}


def test_seventy_billion_weights_have_small_value_projections() -> None:
    found = chosen("q4_k_m", model(80), GgmlModel("llama", 80, 0, 8))
    assert set(of_layers(found, "attn_v")) == {"q5_k", "q6_k"}
    assert set(of_layers(chosen("q4_k_m", model(80), GgmlModel("llama", 80, 0, 1)), "attn_v")) == {"q4_k", "q6_k"}


def test_eight_experts() -> None:
    found = chosen("q4_k_m", model(16, experts=8), GgmlModel("llama", 16, 8, 4))
    assert of_layers(found, "attn_v") == of_layers(found, "attn_k") == {"q8_0": ALL}
    assert of_layers(found, "attn_output") == {"q5_k": ALL}
    assert of_layers(found, "ffn_down_exps") == {"q6_k": MORE, "q4_k": REST}
    assert "blk.0.ffn_gate_inp.weight" not in found


def test_experts_in_4_bit_floats_and_the_rest_in_8_bits() -> None:
    found = chosen("mxfp4_moe", model(4, experts=32), GgmlModel("qwen3moe", 4, 32, 4))
    assert {name for name, scheme in found.items() if scheme == "ggml-mxfp4"} == {
        f"blk.{layer}.ffn_down_exps.weight" for layer in range(4)
    }
    assert set(found.values()) == {"ggml-mxfp4", "q8_0"}


def test_falcon_has_rules_of_its_own() -> None:
    found = chosen("q4_k_m", model(16), GgmlModel("falcon", 16, 0, 16))
    assert of_layers(found, "ffn_down") == {"q6_k": [0], "q5_k": MORE[1:], "q4_k": REST}
    assert found["output.weight"] == "q8_0"


@pytest.mark.parametrize(
    ("preset", "head", "embedding"),
    [("q4_k_m", "q6_k", "q4_k"), ("q8_0", "q8_0", "q8_0"), ("q4_0", "q6_k", "q4_0"), ("tq1_0", "q6_k", "q4_k")],
)
def test_heads_and_embeddings(preset: str, head: str, embedding: str) -> None:
    apart, tied = (chosen(preset, model(2, tied=tied), GgmlModel("llama", 2)) for tied in (False, True))
    assert (apart["output.weight"], apart["token_embd.weight"]) == (head, embedding)
    assert tied["token_embd.weight"] == head


def test_a_head_whose_rows_no_block_divides_has_8_bits() -> None:
    assert chosen("q4_k_m", model(2, width=96), GgmlModel("llama", 2))["output.weight"] == "q8_0"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (8, 8), True),
        ("blk.0.attn_q.bias", (8,), False),
        ("blk.0.attn_norm.weight", (8, 8), False),
        ("blk.0.ffn_gate_inp.weight", (8, 8), False),
        ("blk.0.ffn_down_exps.weight", (4, 8, 8), True),
        ("blk.0.one_row.weight", (1, 8), False),
        ("position_embd.weight", (8, 8), False),
        ("token_types.weight", (2, 8), False),
        ("blk.0.ssm_conv1d.weight", (8, 4), False),
        ("v.patch_embd.weight", (8, 3, 4, 4), False),
        ("blk.0.scales", (8, 8), False),
    ],
)
def test_what_is_left_as_it_is(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_quantized(TensorSpec(name, "F32", shape)) is expected


@pytest.mark.parametrize("preset", MIXTURES)
def test_all_schemes_exist(preset: str) -> None:
    found = {
        scheme
        for experts in (0, 8, 16)
        for informed in (False, True)
        for scheme in chosen(
            preset, model(16, experts=experts), GgmlModel("llama", 16, experts, 4), informed=informed
        ).values()
    }
    assert found | {MIXTURES[preset]} <= set(methods_of("quantize"))
