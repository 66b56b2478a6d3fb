"""Which weights lie transposed."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.architectures.conv1d import conv1d_weights, is_conv1d
from compressor.architectures.model_types import model_types


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"])
@pytest.mark.parametrize("layer", ["attn.c_attn", "crossattention.q_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
def test_layers_of_models_that_have_them(kind: str, layer: str) -> None:
    assert is_conv1d({"model_type": kind}, f"transformer.h.0.{layer}.weight")
    assert is_conv1d({"model_type": "encoder-decoder", "decoder": {"model_type": kind}}, f"h.0.{layer}.weight")
    assert not is_conv1d({"model_type": kind}, f"transformer.h.0.{layer}.bias")
    assert not is_conv1d({"model_type": kind}, "lm_head.weight")


@pytest.mark.parametrize(
    "config", [None, {}, {"model_type": "gptj"}, {"model_type": "gpt_bigcode"}, {"model_type": 3}]
)
def test_models_that_have_none(config: dict[str, Any] | None) -> None:
    assert not is_conv1d(config, "transformer.h.0.attn.c_proj.weight")


def test_shapes_tell_where_no_config_does() -> None:
    square, wide, tall = "h.0.attn.c_proj", "h.0.attn.c_attn", "h.1.mlp.c_fc"
    transposed = {
        f"{square}.weight": (8, 8),
        f"{square}.bias": (8,),
        f"{wide}.weight": (8, 24),
        f"{wide}.bias": (24,),
    }
    assert conv1d_weights(None, transposed) == {f"{square}.weight", f"{wide}.weight"}
    assert conv1d_weights({"vocab_size": 3}, transposed) == {f"{square}.weight", f"{wide}.weight"}
    assert not conv1d_weights({"model_type": "gpt_neo"}, transposed)
    assert not conv1d_weights(None, {f"{square}.weight": (8, 8), f"{square}.bias": (8,)})  # it may be either
    assert not conv1d_weights(None, {f"{tall}.weight": (32, 8), f"{tall}.bias": (32,)})


def test_the_models_inside_a_model() -> None:
    inner = {"model_type": "b", "text_config": {"model_type": "c"}, "other": [{"model_type": "no"}]}
    assert model_types({"model_type": "a", "vision_config": {"x": 1}, "thinker_config": inner}) == ("a", "b", "c")
    assert model_types(None) == model_types({"model_type": 3}) == ()
