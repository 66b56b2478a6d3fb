"""What loaders of a folder take as codes: the rest stays dense with its reason, or is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.console import compressor
from support.gguf_files import small_model
from support.moe_folders import moe_folder

from compressor import api
from compressor.architectures.fused_layers import experts_module
from compressor.architectures.loaders import READERS, Layer, limits_of
from compressor.core.errors import CompressorError, UsageError, problems_of
from compressor.engine.plan.plan import Job
from compressor.workflows.results import Report

BITS: dict[str, Any] = {"bits": 4, "group_size": 32}
MULTIMODAL = {
    "score.weight": (2, 64),
    "model.vision_tower.encoder.layers.0.fc1.weight": (64, 64),
    "model.multi_modal_projector.linear_1.weight": (64, 64),
}


def declared(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "config.json").read_text())["quantization_config"]
    return found


@pytest.mark.parametrize("include", [[], ["*"]])
def test_gptq_leaves_dense_what_its_loaders_take_no_codes_of(tmp_path: Path, include: list[str]) -> None:
    """A head of two rows fills no words of codes, and does not make the command refuse."""
    model = moe_folder(tmp_path / "model", more=MULTIMODAL)
    options: dict[str, Any] = {"include": include, "exclude": ["*norm*"] if include else []}
    report = api.quantize(model, tmp_path / "out", layout="gptq", **BITS, **options)
    packed = {job.spec.name for job in report.plan.jobs if job.stores_parts}
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    names = {f"model.layers.{layer}.self_attn.{part}.weight" for layer in range(2) for part in parts}
    assert packed == names
    reasons = {job.spec.name: job.left_alone[0].reason for job in report.plan.jobs if job.left_alone}
    assert "an expert" in reasons["model.layers.0.mlp.experts.1.up_proj.weight"]
    assert "outside of the list of layers" in reasons["score.weight"]
    assert "projector" in reasons["model.multi_modal_projector.linear_1.weight"]
    left = [key[2:] for key in declared(tmp_path / "out")["dynamic"] if key.startswith("-:")]
    for module in ("model.layers.1.mlp.experts", "model.layers.1.mlp.experts.2.down_proj", "score"):
        assert any(re.match(text, module) for text in left), module
    assert not any(re.match(text, "model.layers.0.self_attn.qkv_proj") for text in left)
    api.restore(tmp_path / "out", tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (model, tmp_path / "back"))
    assert all(np.array_equal(before[name], after[name]) for name in before.keys() - packed)


def test_optimum_is_told_of_what_stays_dense_in_a_list_of_layers(tmp_path: Path) -> None:
    """A layer of four rows fills no words; one that is left out in one block only is named with its number."""
    narrow = {f"model.layers.{layer}.linear_attn.in_proj_a.weight": (4, 64) for layer in range(2)}
    model = moe_folder(tmp_path / "model", more=narrow)
    options: dict[str, Any] = {"exclude": ["*.1.self_attn.o_proj.weight"], **BITS}
    report = api.quantize(model, tmp_path / "out", layout="gptq", **options)
    (left,) = {job.left_alone[0].reason for job in report.plan.jobs if job.spec.name in narrow}
    assert left == "GPTQ's words hold 8 codes, not a part of [4, 64]"
    found = declared(tmp_path / "out")
    others = [f"self_attn.{part}" for part in ("k_proj", "q_proj", "v_proj")]
    assert found["modules_in_block_to_quantize"] == [["layers.0.self_attn.o_proj", *others]]
    assert "block_name_to_quantize" not in found
    assert any(re.match(text[2:], "model.layers.0.linear_attn.in_proj_a") for text in found["dynamic"])


def test_optimum_is_told_of_lists_of_layers_that_it_does_not_look_for(tmp_path: Path) -> None:
    at = "bert.encoder.layer.0.attention.self"
    tensors = {f"{at}.{part}.weight": np.eye(64, dtype=np.float32) for part in ("query", "key", "value")}
    tensors["cls.predictions.transform.dense.weight"] = np.eye(64, dtype=np.float32)
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    api.quantize(tmp_path / "in", tmp_path / "out", layout="gptq", loader="transformers", **BITS)
    found = declared(tmp_path / "out")
    assert found["block_name_to_quantize"] == ""
    parts = [f"attention.self.{part}" for part in ("key", "query", "value")]
    assert found["modules_in_block_to_quantize"] == [parts]
    (tmp_path / "in" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UsageError, match="list of blocks of another name only"):
        api.quantize(tmp_path / "in", tmp_path / "vit", layout="gptq", loader="transformers", **BITS)


@pytest.mark.parametrize("verb", ["quantize", "prune"])
def test_towers_stay_dense_unless_included(tmp_path: Path, verb: str) -> None:
    model = moe_folder(tmp_path / "model", more=MULTIMODAL)
    run, options = getattr(api, verb), BITS if verb == "quantize" else {"sparsity": 0.5}
    tower = "model.vision_tower.encoder.layers.0.fc1.weight"
    jobs = {job.spec.name: job for job in run(model, tmp_path / "a", **options, dry_run=True).plan.jobs}
    assert bool(jobs[tower].steps) == (verb == "prune")
    if verb == "quantize":
        assert "--include treats it" in jobs[tower].left_alone[0].reason
    jobs = {job.spec.name: job for job in run(model, tmp_path / "b", **options, include=[tower]).plan.jobs}
    assert jobs[tower].steps


@pytest.mark.parametrize("options", [BITS, {"scheme": "nf4"}, {"scheme": "fp8"}, {**BITS, "layout": "gptq"}])
def test_an_included_vector_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """It would make the folder one that no loader takes; each way on that the message names goes through."""
    model = moe_folder(tmp_path / "model", more={"model.layers.0.conv.weight": (64, 64, 3)})
    include = ["model.layers.0.conv.weight", "*self_attn*_proj.weight"]
    with pytest.raises(UsageError, match="loaders take codes of matrices only") as caught:
        api.quantize(model, tmp_path / "out", include=include, **options)
    assert "--layout compressor" in caught.value.remedy
    assert not (tmp_path / "out").exists()
    api.quantize(model, tmp_path / "excluded", include=include, exclude=include[:1], **options)
    assert "restore" not in declared(tmp_path / "excluded").get("format", "")
    rules = [(include[0], {"scheme": "int", "layout": "compressor", "bits": 8})]
    api.quantize(model, tmp_path / "own", include=include, rules=rules, **options)
    assert declared(tmp_path / "own")["format"] == "run `compressor restore`"


@pytest.mark.parametrize("options", [BITS, {"scheme": "fp8"}, {**BITS, "layout": "gptq"}, {"scheme": "mxfp4"}])
def test_codes_beside_the_experts_of_gpt_oss_are_refused_for_vllm(tmp_path: Path, options: dict[str, Any]) -> None:
    """Seen in vLLM 0.32: experts in codes are left out without a word, dense ones fail to load."""
    model = moe_folder(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "gpt_oss"}))
    for more in ({}, {"exclude": ["*.experts.*"]}):
        with pytest.raises(UsageError, match="leaves experts out that are codes") as caught:
            api.quantize(model, tmp_path / "out", loader="vllm", **options, **more)
        assert "--store dense" in caught.value.remedy
    api.quantize(model, tmp_path / "dense", loader="vllm", store="dense", **options)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"model_type": "granitemoehybrid", "num_local_experts": 4}, "leaves the experts out"),
        ({"model_type": "granitemoehybrid", "num_local_experts": 0}, ""),
        ({"model_type": "bloom"}, "fails with packed codes"),
    ],
)
def test_what_vllm_loads_wrong_is_refused_for_it(tmp_path: Path, said: dict[str, Any], why: str) -> None:
    """Seen in vLLM 0.32, whose answers were those of random experts, or which failed."""
    (tmp_path / "in").mkdir()
    save_file({"layers.0.fc1.weight": np.eye(64, dtype=np.float32)}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps(said))
    if why:
        with pytest.raises(UsageError, match=why) as caught:
            api.quantize(tmp_path / "in", tmp_path / "o", loader="vllm", **BITS)
        said_to = {"--store dense": {**BITS, "store": "dense"}, "--scheme fp8": {"scheme": "fp8"}}
        (remedy,) = (one for one in said_to if one in caught.value.remedy)
        api.quantize(tmp_path / "in", tmp_path / "dense", loader="vllm", **said_to[remedy])
    else:
        api.quantize(tmp_path / "in", tmp_path / "o", loader="vllm", **BITS)


QUERIES = "model.layers.0.self_attn.q_proj.weight"
LATENT = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
MIXER = "backbone.layers.0.mixer.in_proj.weight"
UP = "model.layers.0.mlp.gate_up_proj.weight"
STATES = "model.layers.0.linear_attn.in_proj_ba.weight"
BLOCKS: dict[str, Any] = {"scheme": "fp8", "granularity": "block"}
GPTQ: dict[str, Any] = {**BITS, "layout": "gptq"}


@pytest.mark.parametrize(
    ("kind", "name", "rows", "options", "instead"),
    [
        ("llama4", QUERIES, 128, GPTQ, {**BITS, "layout": "pack-quantized"}),
        ("llama4", QUERIES, 128, {**BITS, "symmetric": False}, {**BITS, "symmetric": True}),
        ("llama4", QUERIES, 128, BLOCKS, {**BLOCKS, "granularity": "channel"}),
        ("glm4", UP, 128, GPTQ, {**BITS, "layout": "pack-quantized"}),
        ("mamba2", MIXER, 128, GPTQ, {**BITS, "layout": "pack-quantized"}),
        ("whisper", QUERIES, 128, GPTQ, {**BITS, "layout": "pack-quantized"}),
        ("roberta", QUERIES, 128, GPTQ, {**BITS, "layout": "pack-quantized"}),
        ("mamba2", MIXER, 192, BLOCKS, {**BLOCKS, "granularity": "channel"}),
        ("llama", QUERIES, 64, BLOCKS, {**BLOCKS, "granularity": "channel"}),
        ("glm4", UP, 128, BLOCKS, {**BLOCKS, "granularity": "channel"}),
    ],
)
def test_what_vllm_takes_apart_or_joins_is_refused(
    tmp_path: Path, kind: str, name: str, rows: int, options: dict[str, Any], instead: dict[str, Any]
) -> None:
    """Seen in vLLM 0.32: wrong answers of Llama 4, NaN of Whisper, errors of the others."""
    one_layer(tmp_path / "in", kind, name, rows)
    with pytest.raises(UsageError) as caught:
        api.quantize(tmp_path / "in", tmp_path / "o", loader="vllm", **options)
    ((key, value),) = set(instead.items()) - set(options.items())
    assert ("--symmetric" if value is True else f"--{key} {value}") in caught.value.remedy
    assert job_of(api.quantize(tmp_path / "in", tmp_path / "o", loader="vllm", **instead), name).steps


@pytest.mark.parametrize(("keys", "taken"), [(64, False), (128, True)])
def test_parts_of_a_fused_layer_are_of_whole_blocks(tmp_path: Path, keys: int, taken: bool) -> None:
    """vLLM wants each part's rows divided, not only those of all: queries of 256 rows, keys and values."""
    name, folder = "model.layers.0.self_attn.qkv_proj.weight", tmp_path / "in"
    one_layer(folder, "phi3", name, 256 + 2 * keys)
    heads = {"num_attention_heads": 4, "num_key_value_heads": keys // 64, "hidden_size": 256}
    (folder / "config.json").write_text(json.dumps({"model_type": "phi3", **heads}))
    if taken:
        assert job_of(api.quantize(folder, tmp_path / "o", loader="vllm", **BLOCKS), name).steps
        return
    with pytest.raises(UsageError, match="its rows would have to be whole blocks") as caught:
        api.quantize(folder, tmp_path / "o", loader="vllm", **BLOCKS)
    assert "--granularity channel" in caught.value.remedy
    assert job_of(api.quantize(folder, tmp_path / "o", loader="vllm", **{**BLOCKS, "granularity": "channel"}), name)


@pytest.mark.parametrize(
    ("kind", "name", "rows", "options"),
    [
        ("glm4", UP, 256, BLOCKS),
        ("deepseek_v3", LATENT, 192, BLOCKS),
        ("llama4", QUERIES, 128, BITS),
        ("qwen3_next", STATES, 64, {**BLOCKS, "granularity": "channel"}),
        ("clip_text_model", "text_projection.weight", 128, BITS),
    ],
)
def test_what_vllm_joins_in_whole_blocks_is_taken(
    tmp_path: Path, kind: str, name: str, rows: int, options: dict[str, Any]
) -> None:
    """The last of several layers in one may end in a part of a block, as DeepSeek's own files have it."""
    one_layer(tmp_path / "in", kind, name, rows)
    assert job_of(api.quantize(tmp_path / "in", tmp_path / "o", loader="vllm", **options), name).steps


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("clip", "text_projection.weight", BITS),
        ("siglip", "text_model.head.weight", BITS),
        ("bert", "bert.pooler.dense.weight", BITS),
        ("blip-2", "qformer.encoder.layer.0.attention.attention.query.weight", BITS),
        ("qwen3_next", STATES, BLOCKS),
    ],
)
def test_layers_of_which_vllm_takes_no_codes_stay_dense(
    tmp_path: Path, kind: str, name: str, options: dict[str, Any]
) -> None:
    one_layer(tmp_path / "in", kind, name, 64)
    job = job_of(api.quantize(tmp_path / "in", tmp_path / "o", loader="vllm", **options), name)
    assert not job.steps
    assert any("vLLM" in str(one) for one in job.left_alone)


def job_of(report: Report, name: str) -> Job:
    """What is planned for the tensor of this name."""
    (job,) = (one for one in report.plan.jobs if one.spec.name == name)
    return job


def one_layer(folder: Path, kind: str, name: str, rows: int) -> None:
    """Write a model of that type with this layer and one that every loader takes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = {name: (rows, 128), "model.layers.0.fc1.weight": (128, 128)}
    weights = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))


@pytest.mark.parametrize("kind", ["t5", "gpt_neo", "layoutlmv2", "deberta", "longformer", "visual_bert"])
def test_types_that_vllm_lacks_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    save_file({"layers.0.fc1.weight": np.eye(64, dtype=np.float32)}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UsageError, match=f"--for vllm: vLLM [0-9.]+ has no {kind}") as caught:
        api.quantize(tmp_path / "in", tmp_path / "o", bits=8, group_size=32, loader="vllm")
    assert "Use --for transformers, which has it" in caught.value.remedy


def test_our_own_layout_is_marked_by_a_scheme_that_loaders_can_parse(tmp_path: Path) -> None:
    """So that their messages end in the format, which says what to do."""
    api.quantize(moe_folder(tmp_path / "model"), tmp_path / "out", bits=3, group_size=32)
    group = declared(tmp_path / "out")["config_groups"]["compressor"]
    assert group["format"] == "run `compressor restore`"
    assert group["weights"] == {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "tensor",
        "dynamic": False,
    }


def test_a_quantized_head_is_named_in_the_targets(tmp_path: Path) -> None:
    """vLLM's head is no Linear."""
    model = moe_folder(tmp_path / "model")
    api.quantize(model, tmp_path / "out", include=["*_proj.weight", "lm_head.weight"], **BITS)
    (group,) = declared(tmp_path / "out")["config_groups"].values()
    assert group["targets"] == ["Linear", r"re:(.*\.)?lm_head$"]
    assert experts_module("lm_head.weight") is None


W8A8: dict[str, Any] = {"bits": 8, "layout": "int-quantized"}


@pytest.mark.parametrize(
    ("options", "said", "better"),
    [
        (W8A8, "int8 of experts and linear layers: transformers 5.24 fails to join experts", "--bits 8"),
        ({"scheme": "nvfp4"}, "fails to join dense ones; vLLM 0.32 takes it", "--scheme mxfp4"),
        ({"scheme": "mxfp8"}, "fails to join their codes; vLLM 0.32 takes it", "--scheme mxfp4"),
        (
            {"scheme": "fp8", "granularity": "tensor"},
            "vLLM 0.32 has no scheme for them; transformers",
            "--granularity channel",
        ),
        ({**BITS, "rules": [("*.1.mlp.experts.*", {"bits": 8})]}, "experts of some layers have another scheme", ""),
        (BITS, "", ""),
        ({"bits": 8, "granularity": "group", "group_size": 32}, "", ""),
        ({"scheme": "mxfp4"}, "", ""),
        ({"scheme": "fp8", "granularity": "channel"}, "", ""),
    ],
)
def test_who_takes_experts_is_said(tmp_path: Path, options: dict[str, Any], said: str, better: str) -> None:
    report = api.quantize(moe_folder(tmp_path / "model"), tmp_path / "out", dry_run=True, **options)
    notes = [note for note in report.plan.notes if "experts" in note]
    assert any(said in note and better in note for note in notes) if said else not notes


@pytest.mark.parametrize("loader", [None, "vllm", "transformers"])
def test_what_no_loader_takes_is_refused(tmp_path: Path, loader: Any) -> None:
    """nf4 of experts; each way on that the message names goes through, and is taken by somebody."""
    model = moe_folder(tmp_path / "model")
    with pytest.raises(CompressorError) as caught:
        api.quantize(model, tmp_path / "out", scheme="nf4", loader=loader)
    assert not (tmp_path / "out").exists()
    (found,) = (one for one in problems_of(caught.value) if "nf4 of experts" in str(one))
    assert found.remedy == "Use --scheme int --bits 4, or leave them dense by --exclude '*.experts.*'"
    api.quantize(model, tmp_path / "other", **BITS, loader=loader)
    if loader != "vllm":
        api.quantize(model, tmp_path / "dense", scheme="nf4", exclude=["*.experts.*"], loader=loader)


@pytest.mark.parametrize(
    ("loader", "options", "said"),
    [
        ("transformers", W8A8, "transformers 5.24 fails to join experts"),
        ("transformers", {**W8A8, "exclude": ["*.experts.*"]}, "transformers 5.24 fails to join experts"),
        ("transformers", {"scheme": "nvfp4"}, "off by orders of magnitude"),
        ("transformers", {**BITS, "symmetric": False}, "transformers 5.24 fails to join experts"),
        ("transformers", {**BITS, "rules": [("*.1.mlp.experts.*", {"bits": 8})]}, "experts of some layers"),
        ("transformers", {"bits": 3, "group_size": 32}, "reads no int3 as it would be stored here"),
        ("transformers", {**BITS, "layout": "mlx"}, "reads no int4 as it would be stored here"),
        ("vllm", {"bits": 4, "granularity": "tensor"}, "no scheme for one scale a tensor"),
        ("vllm", {"scheme": "fp8", "granularity": "block", "layout": "float-quantized"}, "blocks that divide"),
        ("vllm", {"scheme": "fp8", "granularity": "block", "layout": "naive-quantized"}, "has no scheme for them"),
        ("vllm", {"scheme": "nf4", "exclude": ["*.experts.*"]}, "needs vllm-bnb-plugin"),
        ("vllm", {**BITS, "include": ["model.embed_tokens.weight"]}, "takes no codes of them"),
        ("vllm", {"scheme": "binary"}, "reads no binary as it would be stored here"),
        ("mlx", {"scheme": "nvfp4"}, "reads no nvfp4 as it would be stored here"),
        ("mlx", {"bits": 7}, "layout mlx holds 2, 3, 4, 5, 6 or 8 bits"),
    ],
)
def test_a_loader_that_is_named_takes_it_or_it_is_refused(
    tmp_path: Path, loader: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(CompressorError) as caught:
        api.quantize(moe_folder(tmp_path / "model"), tmp_path / "out", **options, loader=loader)
    assert any(re.search(said, str(problem)) for problem in problems_of(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("loader", "options"),
    [
        ("transformers", "--bits 8 --layout int-quantized"),
        ("transformers", "--scheme nvfp4"),
        ("transformers", "--scheme mxfp8"),
        ("transformers", "--scheme nf4"),
        ("transformers", "--scheme fp8 --granularity block"),
        ("transformers", "--bits 4 --group-size 32 --asymmetric"),
        ("transformers", "--bits 4 --group-size 32 --layout mlx"),
        ("vllm", "--scheme nf4"),
        ("vllm", "--bits 4 --granularity tensor"),
        ("vllm", "--bits 8 --granularity tensor"),
        ("vllm", "--scheme fp8 --granularity tensor"),
        ("vllm", "--scheme fp8 --layout naive-quantized"),
        ("vllm", "--scheme fp8 --granularity block --layout float-quantized"),
        ("vllm", "--scheme fp8 --granularity block --layout naive-quantized"),
        ("vllm", "--scheme binary"),
    ],
)
def test_what_a_refusal_says_to_use_is_taken(tmp_path: Path, loader: str, options: str) -> None:
    """Added to the options; another scheme in place of all of them."""
    model = moe_folder(tmp_path / "model")
    given = ["--for", loader, *options.split()]
    refused = compressor("quantize", model, "-o", tmp_path / "out", *given)
    assert refused.code == 2
    for said in set(re.findall(r"\. Use (--.*?)(?:, or|$)", refused.err, re.MULTILINE)):
        place = tmp_path / said.replace(" ", "")
        before = given[:2] if "--scheme" in said else given
        done = compressor("quantize", model, "-o", place, *before, *said.split())
        assert done.code == 0, (said, done.err)
    assert "Use --" in refused.err


def test_the_layout_is_the_loaders(tmp_path: Path) -> None:
    model = moe_folder(tmp_path / "model")
    for loader in ("vllm", "transformers"):
        api.quantize(model, tmp_path / loader, **BITS, loader=loader)
        assert declared(tmp_path / loader)["quant_method"] == "compressed-tensors"
    dense: dict[str, Any] = {"exclude": ["*.experts.*"], "loader": "mlx"}
    api.quantize(model, tmp_path / "mlx", **BITS, rules=[("*q_proj*", {"bits": 6})], **dense)
    said = json.loads((tmp_path / "mlx" / "config.json").read_text())["quantization"]
    assert (said["bits"], said["group_size"], said["mode"]) == (4, 32, "affine")
    assert said["model.layers.0.self_attn.q_proj"]["bits"] == 6
    report = api.quantize(model, tmp_path / "budget", target_bits=5, **dense)
    assert "quantization" in json.loads((tmp_path / "budget" / "config.json").read_text())
    assert report.total.error > 0


def test_what_is_stored_for_restore_alone_is_for_no_loader(tmp_path: Path) -> None:
    """The way on of each message goes through."""
    model = moe_folder(tmp_path / "model")
    with pytest.raises(UsageError, match="reads no bitmask") as caught:
        api.prune(model, tmp_path / "out", sparsity=0.5, store="bitmask", loader="vllm")
    assert caught.value.remedy == "Use --store dense"
    api.prune(model, tmp_path / "pruned", sparsity=0.5, store="dense", loader="vllm")
    with pytest.raises(UsageError, match="reads no int4 bitmask") as caught:
        api.quantize(model, tmp_path / "out", **BITS, store="bitmask", loader="vllm")
    assert caught.value.remedy == "Use --store packed"
    api.quantize(model, tmp_path / "packed", **BITS, store="packed", loader="vllm")
    with pytest.raises(UsageError, match="it loads no archives") as caught:
        api.quantize(model, tmp_path / "out", **BITS, store="archive", loader="vllm")
    with pytest.raises(UsageError, match=r"it loads no \.safetensors") as caught:
        api.quantize(model / "model.safetensors", tmp_path / "out.safetensors", **BITS, loader="transformers")
    assert "end OUTPUT without a suffix" in caught.value.remedy
    (model / "config.json").unlink()
    with pytest.raises(UsageError, match=r"config\.json, and the input has none"):
        api.quantize(model, tmp_path / "out", **BITS, loader="transformers")


def test_a_conv1d_is_refused_for_loaders(tmp_path: Path) -> None:
    model = tmp_path / "gpt2"
    model.mkdir()
    weight = np.random.default_rng(0).standard_normal((64, 192)).astype(np.float32)
    save_file({"transformer.h.0.attn.c_attn.weight": weight}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UsageError, match="transposed Conv1D layers") as caught:
        api.quantize(model, tmp_path / "out", **BITS)
    assert caught.value.remedy == (
        "Use --store dense, or, without --for, --scheme int --layout compressor, which `restore` reads"
    )
    api.quantize(model, tmp_path / "own", **BITS, layout="compressor")
    api.quantize(model, tmp_path / "dense", **BITS, store="dense")
    api.quantize(model, tmp_path / "dense too", **BITS, store="dense", loader="transformers")


def test_strict_refuses_what_is_treated_otherwise(tmp_path: Path) -> None:
    """One scale a row in the place of groups of 128; each way on goes through."""
    model = moe_folder(tmp_path / "model")
    weights = {"include": ["*_proj.weight"], "strict": True}
    said = r"otherwise than asked: one scale a row, since groups of 128 .* row of 64 \(26 tensors\)"
    with pytest.raises(UsageError, match=said):
        api.quantize(model, tmp_path / "out", bits=4, **weights)
    assert not (tmp_path / "out").exists()
    api.quantize(model, tmp_path / "asked", bits=4, group_size=64, **weights)
    api.quantize(model, tmp_path / "fallback", bits=4, fallback=True, **weights)
    api.quantize(model, tmp_path / "lax", bits=4, include=weights["include"])


def test_llama_cpp_takes_gguf_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--for llama\.cpp: it loads no folder") as caught:
        api.prune(moe_folder(tmp_path / "model"), tmp_path / "out", sparsity=0.5, loader="llama.cpp")
    assert "End OUTPUT in .gguf, for which quantize has --preset" in caught.value.remedy
    (tmp_path / "in.gguf").write_bytes(small_model().file())
    api.prune(tmp_path / "in.gguf", tmp_path / "out.gguf", sparsity=0.5, loader="llama.cpp")
    with pytest.raises(UsageError, match=r"--for vllm: it loads no \.gguf"):
        api.prune(tmp_path / "in.gguf", tmp_path / "again.gguf", sparsity=0.5, loader="vllm")


def test_a_diffusion_models_state_dict_is_for_no_loader_here(tmp_path: Path) -> None:
    """Flux's and SDXL's names, in a file without a config: treated, and restored; --for refuses."""
    names = {
        "double_blocks.0.img_attn.qkv.weight": (192, 64),
        "single_blocks.0.linear1.weight": (64, 64),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (64, 64),
        "model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3),
    }
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in names.items()}
    save_file(weights, tmp_path / "in.safetensors")
    with pytest.raises(UsageError, match=r"it loads no \.safetensors"):
        api.quantize(tmp_path / "in.safetensors", tmp_path / "out.safetensors", bits=8, loader="transformers")
    api.quantize(tmp_path / "in.safetensors", tmp_path / "out.safetensors", bits=8)
    api.restore(tmp_path / "out.safetensors", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert {name: value.shape for name, value in back.items()} == names
    assert all(np.linalg.norm(back[name] - weights[name]) < 0.02 * np.linalg.norm(weights[name]) for name in names)


@pytest.mark.parametrize("options", [BITS, {"scheme": "nf4"}, {**BITS, "loader": "transformers"}])
def test_experts_in_one_tensor_that_stay_dense_are_told(tmp_path: Path, options: dict[str, Any]) -> None:
    """Granite's mixtures have a matrix [experts, out, in] under names of their own."""
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    model = moe_folder(tmp_path / "model", more={name: (5, 64, 64)})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_local_experts": 5}))
    report = api.quantize(model, tmp_path / "out", **options, exclude=["*.experts.*"])
    (note,) = (note for note in report.plan.notes if "hold all experts of a layer" in note)
    assert re.fullmatch(rf"tensors that .* stay dense, \d+% of the weights \({name}\): loaders .*", note)


PACKED = "pack-quantized int4 group"


@pytest.mark.parametrize(
    ("kind", "name", "form", "taken"),
    [
        # whose initialisation reads weights: not packed, and not those of a model beside it that is no tower
        ("ijepa", "ijepa.encoder.layer.0.attention.query.weight", PACKED, False),
        ("seamless_m4t", "text_encoder.layers.0.ffn.fc1.weight", PACKED, False),
        ("ijepa", "ijepa.encoder.layer.0.attention.query.weight", "int-quantized int8 channel", True),
        ("vit", "vit.encoder.layer.0.attention.query.weight", PACKED, True),
        # what transformers keeps in float32, and attention that torch computes
        ("blip-2", "qformer.encoder.layer.0.attention.attention.query.weight", "nf4", False),
        ("blip-2", "language_model.model.decoder.layers.0.fc1.weight", "nf4", True),
        ("deepseek_v32", "model.layers.0.self_attn.indexer.weights_proj.weight", "nf4", False),
        ("udop", "encoder.block.0.layer.1.DenseReluDense.wo.weight", "nf4", False),
        ("udop", "encoder.block.0.layer.1.DenseReluDense.wi.weight", "nf4", True),
        ("mask2former", "transformer_module.decoder.layers.0.cross_attn.out_proj.weight", "nf4", False),
        # layers of a kind of their own, shared ones, and those that are rounded again
        ("ibert", "ibert.encoder.layer.0.output.dense.weight", "int-quantized int8 channel", False),
        ("zamba", "model.layers.0.mamba.in_proj.weight", "nf4", False),
        ("rwkv", "rwkv.blocks.0.attention.key.weight", "nf4", False),
        ("rwkv", "rwkv.blocks.0.attention.key.weight", "int-quantized int8 channel", True),
        # what does not load right, found by loading codes
        ("pi0", "model.vlm.language_model.layers.0.mlp.up_proj.weight", PACKED, True),
        ("hy_v4", "model.layers.0.self_attn.q_a_proj.weight", "naive-quantized float8 channel", False),
        ("falcon_mamba", "backbone.layers.0.mixer.in_proj.weight", "naive-quantized float8 channel", True),
        ("falcon_mamba", "backbone.layers.0.mixer.in_proj.weight", PACKED, False),
        ("inkling_text", "model.llm.layers.0.attn.wq_du.weight", "nf4", False),
        ("glm5_next", "model.layers.0.self_attn.q_proj.weight", "float-quantized float8 channel", False),
        ("inkling2_text", "model.llm.layers.0.attn.wq_du.weight", PACKED, False),
        ("inkling2_text", "model.llm.layers.0.attn.wq_du.weight", "float-quantized float8 channel", True),
        # layers that it divides, or calls otherwise where it looks for weights
        ("lara_mini", "model.layers.0.linear_attn.in_proj.weight", "nf4", False),
        ("lara_mini", "model.layers.0.mlp.up_proj.weight", "nf4", True),
        ("radio", "radio_model.model.blocks.0.attn.qkv.weight", PACKED, False),
        ("radio", "radio_model.model.blocks.0.attn.qkv.weight", "int-quantized int8 channel", True),
        ("radio", "radio_model.model.blocks.0.mlp.fc1.weight", "int-quantized int8 channel", True),
        ("unlimited_ocr", "model.projector.layers.weight", "float-quantized float8 channel", False),
        ("slanext", "head.structure_generator.fc2.weight", "float-quantized float8 channel", False),
        ("phi4_multimodal_vision", "head.attention.out_proj.weight", "nf4", False),
    ],
)
def test_what_transformers_takes_by_kind(kind: str, name: str, form: str, taken: bool) -> None:
    """Found in transformers 5.24 by looking at models of all types, without data."""
    assert (next(limits_of("transformers", {"model_type": kind}, name, form), None) is None) == taken


OTHER_FORMS = {  # of codes, by options that messages name
    "--scheme fp8": "float-quantized float8 channel",
    "--scheme fp8 --layout naive-quantized": "naive-quantized float8 channel",
    "--scheme fp8 --granularity channel": "float-quantized float8 channel",
    "--granularity channel": "float-quantized float8 channel",
    "--scheme int --bits 4": PACKED,
    "--layout pack-quantized": PACKED,
    "--bits 8 --layout pack-quantized": "pack-quantized int8 group",
    "--symmetric": PACKED,
    "--scheme int --layout int-quantized": "int-quantized int8 channel",
    "--scheme nf4": "nf4",
    "--scheme mxfp4": "mxfp4-pack-quantized float4 group",
}


def test_no_refusal_leads_to_another() -> None:
    """What is named instead of codes that transformers does not take of a family is taken of it."""
    layers = ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.experts.0.up_proj.weight")
    for limit in READERS["transformers"].limits:
        form = OTHER_FORMS.get(limit.instead)
        assert form is not None or limit.instead in ("", "--store dense") or "--store dense" in limit.instead
        for kind in limit.families if form is not None else ():
            name = layers[Layer.EXPERT in limit.layers]
            found = limits_of("transformers", {"model_type": kind}, name, str(form), experts=True)
            met = [one.why for one in found if not one.dense and one.where is None]
            assert not met, (kind, limit.instead, met)


def test_experts_and_embeddings_have_a_way_on_in_common(tmp_path: Path) -> None:
    model = moe_folder(tmp_path / "model")
    asked: dict[str, Any] = {"include": ["*embed*", "*proj*"], "loader": "transformers"}
    for how in ({"scheme": "nf4"}, {"layout": "int-quantized"}, {"scheme": "mxfp8"}):
        with pytest.raises(CompressorError) as caught:
            api.quantize(model, tmp_path / "out", **how, **asked)
        for problem in problems_of(caught.value):
            assert (problem.remedy or "").startswith("Use --scheme fp8"), problem
    api.quantize(model, tmp_path / "out", scheme="fp8", **asked)
