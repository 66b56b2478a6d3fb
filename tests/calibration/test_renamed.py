"""Statistics under the names of the other side: of a folder for a GGUF file, and of a file for a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.gguf_models import config_named, folder_named

from compressor import api
from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.imatrix import write_imatrix
from compressor.calibration.statistics import write_statistics
from compressor.checkpoint.checkpoint import Checkpoint, open_checkpoint
from compressor.checkpoint.gguf.to_file import layers_of_file
from compressor.core.errors import InputError
from compressor.core.layer_inputs import Layer
from compressor.core.tensor_names import layer_of

# A row of every matrix is some blocks of 32
WIDE = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "moe_intermediate_size": 32, "kv_lora_rank": 32}
WIDE |= {"q_lora_rank": 32, "qk_nope_head_dim": 32, "v_head_dim": 8, "shared_expert_intermediate_size": 32}


def folder_of(place: Path, name: str) -> Path:
    config = config_named(name)
    config |= {key: size for key, size in WIDE.items() if key in config}
    return folder_named(place, name, config=config)


def layers_of(checkpoint: Checkpoint, name: str) -> dict[str, Layer]:
    """Inputs of every matrix but the embedding and the head."""
    random, found = np.random.default_rng(1), {}
    for one, tensor in checkpoint.tensors.items():
        if len(tensor.spec.shape) < 2 or any(part in one for part in ("embed", "lm_head", "wte", "wpe")):
            continue
        turned = name == "gpt2" or (name == "gpt_oss" and "experts" in one)
        width = tensor.spec.shape[-2 if turned else -1]
        square = random.uniform(0.2, 5, width).astype("<f4").astype(np.float64)
        found[layer_of(one)] = Layer(64, np.zeros(width), square)
    return found


def statistics_of(folder: Path, name: str, place: Path) -> dict[str, Layer]:
    checkpoint = open_checkpoint(folder)
    model, weights = fingerprint(checkpoint)
    layers = layers_of(checkpoint, name)
    write_statistics(place, layers.items(), model=model, weights=weights)
    return layers


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen2_moe", "phi3", "gpt_oss", "deepseek_v3", "gpt2"])
def test_of_a_folder_for_its_file(tmp_path: Path, name: str) -> None:
    folder, stats = folder_of(tmp_path / "model", name), tmp_path / "s.safetensors"
    made, plain, again, dense = (tmp_path / f"{one}.gguf" for one in ("made", "plain", "again", "dense"))
    statistics_of(folder, name, stats)
    report = api.quantize(folder, made, scheme="q4_0", stats=stats)
    without = [job.spec.name for job in report.plan.jobs if job.treated and job.steps[0].inputs is None]
    assert without == ["output.weight", "token_embd.weight"]
    api.quantize(folder, plain, scheme="q4_0")
    assert api.compare(made, plain).total.error > 0.01
    api.restore(folder, dense)
    api.quantize(dense, again, scheme="q4_0", stats=stats)
    assert api.compare(made, again).total.error == 0


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3"])
def test_of_a_file_for_its_folder(tmp_path: Path, name: str) -> None:
    folder, stats, matrix = folder_of(tmp_path / "model", name), tmp_path / "s.safetensors", tmp_path / "i.gguf"
    layers = statistics_of(folder, name, stats)
    weights = layers_of_file(open_checkpoint(folder))
    write_imatrix(str(matrix), layers, weights, source="test", force=False)
    pruned = []
    for given, out in ((stats, "by stats"), (matrix, "by matrix")):
        api.prune(folder, tmp_path / out, method="wanda", sparsity=0.5, stats=given)
        pruned.append(load_file(tmp_path / out / "model.safetensors"))
    assert all(np.array_equal(pruned[0][one], pruned[1][one]) for one in pruned[0])
    dense = tmp_path / "dense.gguf"
    api.restore(folder, dense)
    api.prune(dense, tmp_path / "from file", method="wanda", sparsity=0.5, stats=matrix)
    found = load_file(tmp_path / "from file" / "model.safetensors")
    assert all(np.allclose(found[one], pruned[0][one], rtol=0, atol=1e-6) for one in pruned[0])


def test_of_another_model(tmp_path: Path) -> None:
    folder, stats, dense = folder_of(tmp_path / "model", "llama"), tmp_path / "s.safetensors", tmp_path / "d.gguf"
    api.restore(folder, dense)
    width = WIDE["hidden_size"]
    layer = Layer(3, np.zeros(width), np.ones(width))
    known = "model.layers.0.self_attn.q_proj"
    write_statistics(stats, {known: layer, "model.layers.7.self_attn.q_proj": layer}.items(), model="0" * 64)
    for source in (folder, dense):
        with pytest.raises(InputError, match="are of another model"):
            api.quantize(source, tmp_path / "out.gguf", scheme="q4_0", stats=stats)
