"""Where elements go is what llama.cpp's converter does with NumPy's words for it; and every way leads back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.gguf_models import EXPERTS, NAMES, Array, config_named, family_named, tensors_named

from compressor.architectures.gguf import hyperparameters
from compressor.architectures.gguf.moves import Move, Side
from compressor.architectures.gguf.naming import Mapped, from_gguf, stays_f32, to_gguf


def strided(flat: Array, side: Side, sizes: tuple[int, ...]) -> Array:
    steps = tuple(stride * flat.itemsize for stride in side.strides)
    return np.lib.stride_tricks.as_strided(flat.reshape(-1)[side.offset :], sizes, steps)


def carried_out(mapped: Mapped, tensors: dict[str, Array], *, back: bool = False) -> dict[str, Array]:
    """What the moves make; every element of it is moved there once."""
    made = {name: np.full(shape, np.nan, np.float32) for name, shape in mapped.shapes.items()}
    counts = {name: np.zeros(shape, np.int64) for name, shape in mapped.shapes.items()}
    for name, moves in mapped.moves.items():
        for move in moves:
            here, there = (move.folder, move.gguf) if back else (move.gguf, move.folder)
            sign = -1 if back else 1
            strided(made[name], here, move.sizes)[...] = (
                strided(tensors[there.name], there, move.sizes) + sign * move.added
            )
            strided(counts[name], here, move.sizes)[...] += 1
    assert all((count == 1).all() for count in counts.values())
    return made


def mapped_of(name: str, tensors: dict[str, Array], **more: Any) -> Mapped:
    config, family = config_named(name) | more, family_named(name)
    return to_gguf(
        {one: array.shape for one, array in tensors.items()},
        family,
        hyperparameters.sizes(config, family),
        hyperparameters.layers(config),
        hyperparameters.sparse_from(config, family),
        tied=config.get("tie_word_embeddings"),
    )


def back_of(name: str, made: dict[str, Array]) -> Mapped:
    config, family = config_named(name), family_named(name)
    return from_gguf(
        {one: array.shape for one, array in made.items()},
        family,
        hyperparameters.sizes(config, family),
        hyperparameters.layers(config),
        hyperparameters.sparse_from(config, family),
    )


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name: str) -> None:
    tensors = tensors_named(name)
    mapped = mapped_of(name, tensors)
    assert not mapped.missing
    assert not mapped.misfits
    assert not mapped.unmapped
    assert not mapped.left
    made = carried_out(mapped, tensors)
    back = back_of(name, made)
    assert not back.missing
    assert not back.misfits
    assert not back.unmapped
    found = carried_out(back, made, back=True)
    assert set(found) == set(tensors)
    for one, array in tensors.items():
        assert np.allclose(found[one], array, rtol=0, atol=1e-6), one


def permuted(array: Array, heads: int) -> Array:
    """convert_hf_to_gguf.py: LlamaModel.permute."""
    shaped = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return shaped.swapaxes(1, 2).reshape(array.shape)


def made_of(name: str) -> tuple[dict[str, Array], dict[str, Array]]:
    tensors = tensors_named(name)
    return tensors, carried_out(mapped_of(name, tensors), tensors)


@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "granite", "smollm3"])
def test_queries_and_keys_are_permuted(name: str) -> None:
    tensors, made = made_of(name)
    at = "model.layers.1.self_attn"
    for kind, heads in (("q", 4), ("k", 2)):
        for part in ("weight", "bias") if name != "smollm3" else ("weight",):
            expected = permuted(tensors[f"{at}.{kind}_proj.{part}"], heads)
            assert np.array_equal(made[f"blk.1.attn_{kind}.{part}"], expected)
    assert np.array_equal(made["blk.1.attn_v.weight"], tensors[f"{at}.v_proj.weight"])


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "olmo2", "starcoder2"])
def test_others_are_not(name: str) -> None:
    tensors, made = made_of(name)
    expected = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(made["blk.0.attn_q.weight"], expected)


def test_experts_are_stacked() -> None:
    tensors, made = made_of("mixtral")
    one = "model.layers.0.block_sparse_moe.experts"
    for called, there in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
        expected = np.stack([tensors[f"{one}.{expert}.{called}.weight"] for expert in range(EXPERTS)])
        assert np.array_equal(made[f"blk.0.ffn_{there}_exps.weight"], expected)


def test_fused_experts_are_divided() -> None:
    tensors, apart = made_of("qwen3_moe")
    fused = dict(tensors)
    for layer in range(2):
        at = f"model.layers.{layer}.mlp.experts"
        gates, ups, downs = (
            np.stack([fused.pop(f"{at}.{expert}.{kind}_proj.weight") for expert in range(EXPERTS)])
            for kind in ("gate", "up", "down")
        )
        fused[f"{at}.gate_up_proj"] = np.concatenate([gates, ups], axis=1)
        fused[f"{at}.down_proj"] = downs
    mapped = mapped_of("qwen3_moe", fused)
    assert not mapped.missing
    assert not mapped.unmapped
    made = carried_out(mapped, fused)
    assert set(made) == set(apart)
    assert all(np.array_equal(made[one], apart[one]) for one in made)


def test_gpt_oss_is_turned_and_divided_by_turns() -> None:
    tensors, made = made_of("gpt_oss")
    at = "model.layers.0.mlp.experts"
    turned = tensors[f"{at}.gate_up_proj"].swapaxes(1, 2)
    assert np.array_equal(made["blk.0.ffn_gate_exps.weight"], turned[:, ::2])
    assert np.array_equal(made["blk.0.ffn_up_exps.weight"], turned[:, 1::2])
    assert np.array_equal(made["blk.0.ffn_down_exps.weight"], tensors[f"{at}.down_proj"].swapaxes(1, 2))
    assert np.array_equal(made["blk.0.ffn_gate_exps.bias"], tensors[f"{at}.gate_up_proj_bias"][:, ::2])
    assert np.array_equal(made["blk.0.ffn_up_exps.bias"], tensors[f"{at}.gate_up_proj_bias"][:, 1::2])


def test_keys_and_values_come_out_of_the_latent() -> None:
    tensors, made = made_of("deepseek_v3")
    both = tensors["model.layers.0.self_attn.kv_b_proj.weight"].reshape(4, 4 + 3, 6)
    assert np.array_equal(made["blk.0.attn_k_b.weight"], both[:, :4].swapaxes(1, 2))
    assert np.array_equal(made["blk.0.attn_v_b.weight"], both[:, 4:])


def test_conv1d_is_turned() -> None:
    tensors, made = made_of("gpt2")
    assert np.array_equal(made["blk.0.attn_qkv.weight"], tensors["transformer.h.0.attn.c_attn.weight"].T)
    assert np.array_equal(made["blk.0.ffn_down.weight"], tensors["transformer.h.0.mlp.c_proj.weight"].T)


def test_norms_of_gemma_have_their_one() -> None:
    tensors, made = made_of("gemma3_text")
    assert np.array_equal(made["output_norm.weight"], tensors["model.norm.weight"] + np.float32(1))
    q_norm = tensors["model.layers.0.self_attn.q_norm.weight"]
    assert np.array_equal(made["blk.0.attn_q_norm.weight"], q_norm + np.float32(1))


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("", "lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
    ],
)
def test_names_of_models_inside_others(body: str, head: str) -> None:
    tensors = tensors_named("llama")
    renamed = {
        head if name == "lm_head.weight" else f"{body}{name.removeprefix('model.')}": array
        for name, array in tensors.items()
    }
    mapped = mapped_of("llama", renamed)
    assert not mapped.missing
    assert not mapped.unmapped
    assert set(mapped.shapes) == set(mapped_of("llama", tensors).shapes)


def test_a_tied_head_is_not_stored_twice() -> None:
    tensors = tensors_named("llama")
    mapped = mapped_of("llama", tensors, tie_word_embeddings=True)
    assert "output.weight" not in mapped.shapes
    assert list(mapped.left) == ["lm_head.weight"]
    del tensors["lm_head.weight"]
    assert mapped_of("llama", tensors).missing == {"output.weight": "lm_head.weight"}
    assert not mapped_of("llama", tensors, tie_word_embeddings=True).missing


def test_what_is_missing_does_not_fit_or_has_no_place() -> None:
    tensors = tensors_named("llama")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((8, 13), np.float32)
    tensors["model.layers.2.input_layernorm.weight"] = np.zeros(8, np.float32)
    mapped = mapped_of("llama", tensors)
    assert mapped.missing["blk.1.ffn_up.weight"] == "model.layers.1.mlp.up_proj.weight"
    assert mapped.misfits == {"model.layers.0.mlp.down_proj.weight": "is [8, 13], where [8, 12] was expected"}
    assert mapped.unmapped == ("model.layers.2.input_layernorm.weight",)


def test_what_stays_float32() -> None:
    for name, shape in [
        ("blk.0.attn_norm.weight", (8,)),
        ("blk.3.ffn_gate_inp.weight", (3, 8)),
        ("position_embd.weight", (16, 8)),
        ("blk.0.ffn_down_exps.bias", (3, 8)),
    ]:
        assert stays_f32(name, shape)
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "output.weight"):
        assert not stays_f32(name, (8, 8))


def test_moves_say_both_sides() -> None:
    move = Move((2, 3), Side("a", 0, (3, 1)), Side("b", 0, (1, 2)))
    assert move.added == 0


@pytest.mark.parametrize("head", [16, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("said", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (3.0, 0.5, 6.0, 1000)])
def test_what_a_config_says_of_llama_3_by_its_factors(
    head: int, theta: float, said: tuple[float, float, float, int]
) -> None:
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factors = hyperparameters.llama3_factors({**dict(zip(names, said, strict=True)), "rope_theta": theta}, head)
    found = hyperparameters.llama3_rope([float(np.float32(one)) for one in factors], theta)
    assert found is not None
    again = hyperparameters.llama3_factors({**found, "rope_theta": theta}, head)
    assert np.allclose(again, factors, rtol=1e-4, atol=0)
    if said[1] == 1.0 and head > 16:
        assert [found[name] for name in names] == pytest.approx(said)
