"""Folders of Hugging Face written as GGUF files and restored from them."""

from __future__ import annotations

import json
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.console import LLAMA, compressor
from support.gguf_models import NAMES, config_named, folder_named, tensors_named, tokenizer

from compressor import api
from compressor.architectures.gguf.hyperparameters import llama3_factors
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.checkpoint.gguf.to_file import layers_of_file
from compressor.core.errors import InputError, Problems, UsageError
from compressor.files.gguf.reading import GgufHeader, read_header
from compressor.files.input_file import InputFile

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4}


def header_of(path: Path) -> GgufHeader:
    return read_header(InputFile.open(path))


def said(path: Path) -> dict[str, Any]:
    return {key: value.python() for key, value in header_of(path).fields.items()}


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    folder, file, back = folder_named(tmp_path / "model", name), tmp_path / "model.gguf", tmp_path / "back"
    api.restore(folder, file)
    report = api.restore(file, back)
    assert any("with the names of transformers" in note for note in report.plan.notes)
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert set(before) == set(after)
    for one, array in before.items():
        assert np.allclose(after[one], array, rtol=0, atol=1e-6), one
    config, again = config_named(name), json.loads((back / "config.json").read_text())
    for key in ("vocab_size", "num_key_value_heads", "head_dim", "rms_norm_eps"):
        if key in again:
            assert again[key] == config[key]
    assert api.compare(folder, file).total.error < 1e-6
    second = tmp_path / "again.gguf"
    api.restore(back, second)
    first_said, second_said = said(file), said(second)
    for found in (first_said, second_said):
        del found["general.name"]
    if name != "mistral":  # which is a llama to llama.cpp
        assert first_said == second_said


def test_what_llama_cpp_reads(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    api.restore(folder_named(tmp_path / "some model", "llama", dtype=np.float16), file)
    header, found = header_of(file), said(file)
    assert {kind.name for kind in header.types.values()} == {"F32", "F16"}
    assert all(
        header.types[name].name == "F32" for name in header.types if name.endswith(("_norm.weight", ".bias"))
    )
    assert found["general.architecture"] == "llama"
    assert found["general.name"] == "some model"
    assert found["general.file_type"] == 1
    assert found["llama.attention.head_count_kv"] == 2
    assert found["llama.context_length"] == 16
    assert found["llama.rope.dimension_count"] == 4
    assert found["tokenizer.ggml.tokens"][0] == "<s>"


def test_factors_of_llama_3(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    config = config_named("llama") | {"rope_theta": 1e7, "rope_scaling": rope}
    folder = folder_named(tmp_path / "model", "llama", config=config)
    api.restore(folder, tmp_path / "m.gguf")
    assert "rope_freqs.weight" in header_of(tmp_path / "m.gguf").types
    api.restore(tmp_path / "m.gguf", tmp_path / "back")
    again = json.loads((tmp_path / "back" / "config.json").read_text())
    assert again["rope_scaling"] == rope
    assert again["rope_theta"] == 1e7
    assert llama3_factors({**rope, "rope_theta": 1e7}, 4)[0] == 1.0


def test_factors_that_no_config_can_say(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 7.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 16
    config = config_named("llama") | {"rope_scaling": rope}
    file = tmp_path / "m.gguf"
    api.restore(folder_named(tmp_path / "model", "llama", config=config), file)
    place = next(one for one in header_of(file).tensors if one.spec.name == "rope_freqs.weight")
    raw = bytearray(file.read_bytes())
    raw[place.offset : place.offset + 8] = np.array([3, 2], "<f4").tobytes()
    file.write_bytes(raw)
    report = api.restore(file, tmp_path / "back")
    assert any("'rope_freqs.weight' stays behind" in note for note in report.plan.notes)


def test_longrope_of_phi3(tmp_path: Path) -> None:
    rope = {"type": "longrope", "long_factor": [2.0], "short_factor": [1.5]}
    config = config_named("phi3") | {"rope_scaling": rope, "original_max_position_embeddings": 8}
    api.restore(folder_named(tmp_path / "model", "phi3", config=config), tmp_path / "m.gguf")
    assert said(tmp_path / "m.gguf")["phi3.rope.scaling.attn_factor"] == pytest.approx((1 + 1 / 3) ** 0.5)
    api.restore(tmp_path / "m.gguf", tmp_path / "back")
    again = json.loads((tmp_path / "back" / "config.json").read_text())
    assert again["rope_scaling"]["long_factor"] == [2.0]
    assert again["original_max_position_embeddings"] == 8


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, None),
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 0.7, "mscale_all_dim": 0.7}, 1.0),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (1 + 0.2 * log(4)) / (1 + 0.1 * log(4))),
        ({"factor": None, "attention_factor": 1.5}, 1.5),
    ],
)
def test_what_yarn_scales_attention_by(tmp_path: Path, more: dict[str, Any], wanted: float | None) -> None:
    config = config_named("llama") | {"rope_scaling": YARN | more}
    api.restore(folder_named(tmp_path / "model", "llama", config=config), tmp_path / "m.gguf")
    found = said(tmp_path / "m.gguf")
    assert found["llama.rope.scaling.factor"] == 4
    factor = found.get("llama.rope.scaling.attn_factor", 1.0)
    assert factor * (1 + 0.1 * log(4)) == pytest.approx(wanted or 1 + 0.1 * log(4))
    api.restore(tmp_path / "m.gguf", tmp_path / "back")
    again = json.loads((tmp_path / "back" / "config.json").read_text())
    assert again["rope_scaling"].get("attention_factor") == (wanted and pytest.approx(wanted))


@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss", "olmo2"])
def test_a_tied_head_is_stored_where_llama_cpp_wants_one(tmp_path: Path, name: str) -> None:
    config = config_named(name) | {"tie_word_embeddings": True}
    folder = folder_named(tmp_path / "model", name, config=config)
    api.restore(folder, tmp_path / "m.gguf")
    assert "output.weight" in header_of(tmp_path / "m.gguf").types
    api.restore(tmp_path / "m.gguf", tmp_path / "back")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert np.array_equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_old_names_of_norms(tmp_path: Path) -> None:
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): one
        for name, one in tensors_named("bert").items()
    }
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    api.restore(folder_named(tmp_path / "m1", "bert", tensors=tensors), old)
    api.restore(folder_named(tmp_path / "m2", "bert"), new)
    assert api.compare(old, new).total.error == 0


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    folder = folder_named(tmp_path / "model", "llama", files={})
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor tokenizer\.model") as caught:
        api.restore(folder, tmp_path / "m.gguf")
    assert "--no-tokenizer" in caught.value.remedy
    assert not (tmp_path / "m.gguf").exists()
    report = api.restore(folder, tmp_path / "m.gguf", no_tokenizer=True)
    assert said(tmp_path / "m.gguf")["tokenizer.ggml.model"] == "none"
    assert any("has no tokenizer" in note for note in report.plan.notes)
    report = api.restore(tmp_path / "m.gguf", tmp_path / "back")
    assert any("there is no tokenizer in the folder" in note for note in report.plan.notes)


def test_a_tokenizer_of_another_kind(tmp_path: Path) -> None:
    files = tokenizer()
    files["tokenizer.json"]["model"] = {"type": "WordLevel"}
    folder = folder_named(tmp_path / "model", "llama", files=files)
    with pytest.raises(InputError, match="its kind is 'WordLevel'"):
        api.restore(folder, tmp_path / "m.gguf")


def test_a_model_that_is_not_known(tmp_path: Path) -> None:
    folder = folder_named(tmp_path / "model", "llama")
    (folder / "config.json").write_text(json.dumps(config_named("llama") | {"model_type": "strange"}))
    with pytest.raises(InputError, match="is a strange, a model that is not known here as GGUF") as caught:
        api.restore(folder, tmp_path / "m.gguf")
    assert "qwen3_moe" in caught.value.remedy
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json that says which model it is"):
        api.restore(folder, tmp_path / "m.gguf")


def test_tensors_that_have_no_place_are_named(tmp_path: Path) -> None:
    tensors = tensors_named("llama") | {"vision_tower.patch.weight": np.zeros((3, 4), np.float32)}
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((12, 8), np.float32)  # a layer that guesses further
    folder = folder_named(tmp_path / "model", "llama", tensors=tensors)
    with pytest.raises(InputError, match="has no place for 2 of its tensors") as caught:
        api.restore(folder, tmp_path / "m.gguf")
    assert "vision_tower.patch.weight" in str(caught.value)
    assert "--leave-out" in str(caught.value)
    done = compressor(
        *("restore", folder, "-o", tmp_path / "m.gguf", "--leave-out", "vision_tower.*"),
        *("--leave-out", "model.layers.2.*"),
    )
    assert done.code == 0
    assert "2 tensors of 37 are left out" in done.out
    with pytest.raises(UsageError, match="--leave-out 'nothing' matches no tensor"):
        api.restore(folder, tmp_path / "o.gguf", leave_out=["nothing"])


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    tensors = tensors_named("llama")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = np.zeros(9, np.float32)
    folder = folder_named(tmp_path / "model", "llama", tensors=tensors)
    with pytest.raises(Problems) as caught:
        api.restore(folder, tmp_path / "m.gguf")
    assert "is [9], where [8] was expected by config.json" in str(caught.value)
    assert "'model.layers.1.mlp.up_proj.weight' would be needed" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("llama", {"hidden_act": "relu"}, "its activation is 'relu'"),
        ("qwen2", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "its rope_type is 'llama3'"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "do not say low_freq_factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "its no_rope_layers are not every fourth"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "its layer_types are not those of gemma2"),
        ("gemma2", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar is 7"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen2_moe", {"mlp_only_layers": [0]}, "some of its layers have no experts"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave is false"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit is 5.0"),
        ("qwen2", {"rope_scaling": {**YARN, "beta_fast": 16}}, "beta_fast of its YaRN is 16"),
        ("deepseek_v3", {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}}, "are not one number"),
        (
            "qwen3",
            {"head_dim": 16, "rope_scaling": {**YARN, "original_max_position_embeddings": 32, "truncate": False}},
            "truncate of its YaRN is false",
        ),
        ("smollm3", {"no_rope_layer_interval": 3}, "its no_rope_layers are not every fourth"),
        ("gemma3_text", {"sliding_window_pattern": 3}, "its sliding_window_pattern is 3"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 1}, "by the best two"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is set"),
        ("deepseek_v2", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "its rope_type is 'linear'"),
        ("qwen2", {"head_dim": 4}, "not as wide as the model"),
        ("gemma", {"tie_word_embeddings": False}, "another than its embedding"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping is None"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "has none for gemma3"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "see those that follow"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scales all layers alike"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false"),
        ("bert", {"is_decoder": True}, "is_decoder is set"),
        ("starcoder2", {"use_bias": False}, "wants biases"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise(
    tmp_path: Path, name: str, more: dict[str, Any], reason: str
) -> None:
    folder = folder_named(tmp_path / "model", name, config=config_named(name) | more)
    with pytest.raises((InputError, Problems), match=reason):
        api.restore(folder, tmp_path / "m.gguf")


def test_a_file_is_for_texts_of_which_llama_cpp_computes_the_same(tmp_path: Path) -> None:
    config = config_named("mistral") | {"sliding_window": 4}
    report = api.restore(folder_named(tmp_path / "model", "mistral", config=config), tmp_path / "m.gguf")
    wanted = "llama.context_length is 4, and max_position_embeddings 16: llama.cpp has no sliding window for llama"
    assert any(wanted in note for note in report.plan.notes)
    assert open_checkpoint(tmp_path / "m.gguf").source.fields["llama.context_length"].python() == 4


@pytest.mark.parametrize(
    "more", [{"rope_scaling": {"rope_type": "yarn", "factor": "x"}}, {"rms_norm_eps": "y"}, {"rope_theta": [1]}]
)
def test_layers_of_a_config_that_is_nonsense(tmp_path: Path, more: dict[str, Any]) -> None:
    folder = folder_named(tmp_path / "model", "llama", config=config_named("llama") | more)
    with pytest.raises(InputError, match="does not describe a llama"):
        layers_of_file(open_checkpoint(folder))


def test_factors_for_long_texts_are_for_no_text_that_a_file_takes(tmp_path: Path) -> None:
    """And a restored folder scales attention as the one that it was made of, whose texts could be longer."""
    rope = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    config = config_named("phi3") | {"rope_scaling": rope, "original_max_position_embeddings": 4}
    report = api.restore(folder_named(tmp_path / "model", "phi3", config=config), tmp_path / "m.gguf")
    assert any("phi3.context_length is 4, and max_position_embeddings 16" in note for note in report.plan.notes)
    api.restore(tmp_path / "m.gguf", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["max_position_embeddings"] == back["original_max_position_embeddings"] == 4
    assert back["rope_scaling"]["attention_factor"] == pytest.approx(np.sqrt(1 + np.log(4) / np.log(4)))


@pytest.mark.parametrize(
    ("name", "more", "slides"),
    [
        ("mistral", {"sliding_window": 16}, False),  # as long as its texts
        ("qwen2", {"sliding_window": 4}, False),  # which transformers takes where use_sliding_window is set
        ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2}, False),
        ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}, True),
        ("qwen3", {"sliding_window": 4, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, False),
        ("qwen3_moe", {"sliding_window": 4, "use_sliding_window": True}, True),
        ("starcoder2", {"sliding_window": 4}, True),
        ("gemma2", {}, False),
    ],
)
def test_windows_are_told_where_a_layer_has_one(
    tmp_path: Path, name: str, more: dict[str, Any], slides: bool
) -> None:
    folder = folder_named(tmp_path / "model", name, config=config_named(name) | more)
    notes = api.restore(folder, tmp_path / "m.gguf", dry_run=True).plan.notes
    assert any("no sliding window" in note for note in notes) == slides


def test_groups_of_which_all_are_taken_are_none(tmp_path: Path) -> None:
    more = {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 3}
    folder = folder_named(tmp_path / "model", "deepseek_v2", config=config_named("deepseek_v2") | more)
    api.restore(folder, tmp_path / "m.gguf")
    assert not [key for key in open_checkpoint(tmp_path / "m.gguf").source.fields if "expert_group" in key]


def test_bounds_that_llama_cpp_rounds_are_refused_with_what_they_cost(tmp_path: Path) -> None:
    """gpt-oss as it is published: 32 frequencies from 150000, of which those between the bounds 8.09 and 17.4 are
    scaled in part; llama.cpp takes 8 and 18. A config that rounds them, too, says what it computes."""
    rope = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
    config = config_named("gpt_oss") | {"head_dim": 64, "rope_theta": 150000.0, "rope_scaling": rope}
    apart = []
    for pair in range(32):
        ramps = [np.clip((pair - a) / (b - a), 0, 1) for a, b in ((8.0928, 17.3980), (8, 18))]
        exact, rounded = (1 - ramp + ramp / 32 for ramp in ramps)
        apart.append(abs(rounded / exact - 1))
    folder = folder_named(tmp_path / "model", "gpt_oss", config=config)
    with pytest.raises(InputError, match=f"by up to {max(apart):.1%}") as caught:
        api.restore(folder, tmp_path / "m.gguf", dry_run=True)
    assert '"truncate": true' in (caught.value.remedy or "")
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": rope | {"truncate": True}}))
    api.restore(folder, tmp_path / "m.gguf")


def test_codes_are_not_quantized_again_unasked(tmp_path: Path) -> None:
    folder = folder_named(tmp_path / "model", "llama")
    api.quantize(folder, tmp_path / "codes", bits=4, layout="compressor", group_size=4)
    report = api.restore(tmp_path / "codes", tmp_path / "m.gguf")
    assert report.plan.container == "gguf"
    with pytest.raises(InputError, match="is already"):
        api.quantize(tmp_path / "codes", tmp_path / "o.gguf", bits=8, store="dense")


def test_stages_see_the_names_of_the_file(tmp_path: Path) -> None:
    folder = folder_named(tmp_path / "model", "llama")
    api.prune(folder, tmp_path / "m.gguf", sparsity=0.5, include=["blk.*.ffn_up.weight"])
    api.restore(tmp_path / "m.gguf", tmp_path / "back")
    found = load_file(tmp_path / "back" / "model.safetensors")
    up, down = (found[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("up", "down"))
    assert np.mean(up == 0) == pytest.approx(0.5, abs=0.02)
    assert np.mean(down == 0) == 0


def test_an_architecture_that_is_not_known_keeps_its_names(tmp_path: Path) -> None:
    folder = folder_named(tmp_path / "model", "qwen2")
    api.restore(folder, tmp_path / "m.gguf")
    raw = (tmp_path / "m.gguf").read_bytes().replace(b"qwen2", b"qwenX")
    (tmp_path / "m.gguf").write_bytes(raw)
    report = api.restore(tmp_path / "m.gguf", tmp_path / "back")
    assert any("'qwenX' is not known here" in note for note in report.plan.notes)
    assert "blk.0.attn_q.weight" in load_file(tmp_path / "back" / "model.safetensors")


def test_two_shards_and_any_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 3):
        api.restore(LLAMA, tmp_path / f"{workers}.gguf", no_tokenizer=True, workers=workers)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()
    assert api.compare(LLAMA, tmp_path / "1.gguf").total.error == 0
    api.restore(tmp_path / "1.gguf", tmp_path / "back")
    before = {name: one.spec.shape for name, one in open_checkpoint(LLAMA).tensors.items()}
    after = {name: one.spec.shape for name, one in open_checkpoint(tmp_path / "back").tensors.items()}
    assert before == after
