"""What transformers calls modules otherwise than files do: by kind of name, and in the configs that are written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressor import api
from compressor.architectures.renamed_modules import renamed, split_parameters


@pytest.mark.parametrize(
    ("kind", "file", "modules"),
    [
        ("llama", "model.layers.0.mlp.up_proj", ["model.layers.0.mlp.up_proj"]),
        ("llava", "language_model.model.layers.0.q", ["model.language_model.layers.0.q"]),
        ("cosmos3_edge", "layers.0.self_attn.to_out", ["layers.0.self_attn.o_proj"]),
        ("cosmos3_omni", "layers.0.mlp.up_proj", ["layers.0.mlp.up_proj"]),
        ("inkling2_text", "model.llm.layers.1.attn.wk_dv", ["model.llm.layers.1.self_attn.k_proj.linear"]),
        ("inkling_mm_model", "model.visual.layers.linear_3", ["model.vision_tower.encoder_layers.3.projection"]),
        ("mistral_large4", "layers.0.attention.wkv_b", ["layers.0.self_attn.kv_b_proj"]),
        ("mistral_large4", "vision_encoder.transformer.layers.0.feed_forward.w2", None),
        ("pi0", "paligemma_with_expert.paligemma.model.language_model.model.layers.0.x", None),
        ("sapiens2", "blocks.2.ffn.w12", ["model.layer.2.mlp.gate_proj", "model.layer.2.mlp.up_proj"]),
        ("sam3_video", "tracker_model.tracker_model.proj", ["proj"]),
        ("gpt_neox", "embed_out", ["lm_head"]),
    ],
)
def test_names_of_modules(kind: str, file: str, modules: list[str] | None) -> None:
    expected = {
        "mistral_large4": ["model.vision_tower.transformer.layers.0.feed_forward.down_proj"],
        "pi0": ["model.vlm.language_model.layers.0.x"],
    }
    assert renamed({"model_type": kind}, file) == (modules or expected[kind])


def test_a_part_has_no_names_of_another() -> None:
    """Of the encoder's names none hold in the decoder."""
    config = {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}}
    name = "encoder.layer.0.attention.attention.query"
    assert renamed(config, f"encoder.{name}") == ["encoder.layers.0.attention.q_proj"]
    assert renamed(config, f"decoder.bert.{name}") == [f"decoder.bert.{name}"]


def test_parameters_that_become_modules() -> None:
    names = ["transformer.resblocks.0.attn.in_proj_weight", "text.in_proj_bias", "fc.weight"]
    assert split_parameters({"model_type": "step3p5_vision"}, names) == names[:1]
    assert not split_parameters({"model_type": "clip"}, names)


@pytest.mark.parametrize("scheme", [{"scheme": "nf4"}, {"scheme": "fp8"}])
def test_dense_layers_are_named_as_loaders_know_them(tmp_path: Path, scheme: dict[str, str]) -> None:
    """`out` is also how `to_out` ends, which has codes; q, k and v are one parameter in the file."""
    weights = {"transformer.resblocks.0.attn.to_out.weight": (64, 64), "out.weight": (64, 64)}
    weights["transformer.resblocks.0.attn.in_proj_weight"] = (192, 64)
    (tmp_path / "in").mkdir()
    tensors = {name: np.ones(shape, np.float32) for name, shape in weights.items()}
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps({"model_type": "step3p5_vision"}))
    api.quantize(tmp_path / "in", tmp_path / "out", exclude=["out.weight", "*in_proj_weight"], **scheme)  # type: ignore[arg-type]
    declared = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    entries = declared.get("ignore") or declared["llm_int8_skip_modules"]
    ends = "ignore" not in declared  # to bitsandbytes any end of a name is an entry

    def left(module: str) -> bool:
        return any(
            re.match(rf"(?:{one.removeprefix('re:')})$", module) or (ends and module.endswith(one))
            for one in entries
        )

    assert left("out")
    assert left("layers.0.self_attn.q_proj")
    assert left("layers.0.self_attn.v_proj")
    assert not left("layers.0.self_attn.to_out")
    assert not left("transformer.resblocks.0.attn.to_out")
