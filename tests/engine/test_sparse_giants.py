"""Checkpoints of 70 and of 1,000 billion weights as files with holes: plans go by headers, and what one of many
jobs treats by its share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MEASURED = """
import json, resource, sys
from compressor.__main__ import main
sys.argv = ["compressor", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("\\n" + json.dumps([used.ru_utime + used.ru_stime, peak]))
"""
SHARD = 5 << 30
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80}
LLAMA |= {"num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256}
EXPERTS = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168}
EXPERTS |= {"num_hidden_layers": 60, "n_routed_experts": 384, "moe_intermediate_size": 2048, "vocab_size": 163840}


def tensors(billions: int) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of the model of so many billions of weights."""
    config = LLAMA if billions == 70 else EXPERTS
    hidden = int(str(config["hidden_size"]))
    yield "model.embed_tokens.weight", [int(str(config["vocab_size"])), hidden]
    for layer in range(int(str(config["num_hidden_layers"]))):
        place = f"model.layers.{layer}"
        yield f"{place}.input_layernorm.weight", [hidden]
        yield f"{place}.self_attn.q_proj.weight", [hidden, hidden]
        yield f"{place}.self_attn.o_proj.weight", [hidden, hidden]
        inside = [f"{place}.mlp.experts.{number}" for number in range(384)] if billions > 70 else [f"{place}.mlp"]
        wide = 2048 if billions > 70 else 28672
        for one in inside:
            yield f"{one}.gate_proj.weight", [wide, hidden]
            yield f"{one}.up_proj.weight", [wide, hidden]
            yield f"{one}.down_proj.weight", [hidden, wide]
    yield "lm_head.weight", [int(str(config["vocab_size"])), hidden]


def make_giant(place: Path, billions: int) -> int:
    """A folder of the model's shards, which are holes but for their headers: how many bytes they have."""
    place.mkdir()
    shards: list[dict[str, object]] = [{}]
    held, total, of = 0, 0, {}
    for name, shape in tensors(billions):
        nbytes = 2 * (shape[0] if len(shape) == 1 else shape[0] * shape[1])
        if held + nbytes > SHARD:
            shards.append({})
            held = 0
        shards[-1][name] = {"dtype": "BF16", "shape": shape, "data_offsets": [held, held + nbytes]}
        of[name] = len(shards)
        held, total = held + nbytes, total + nbytes
    names = [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    for name, header in zip(names, shards, strict=True):
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (place / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + max(one["data_offsets"][1] for one in header.values()))  # type: ignore[index]
    index = {"metadata": {"total_size": total}, "weight_map": {name: names[at - 1] for name, at in of.items()}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "config.json").write_text(json.dumps(LLAMA if billions == 70 else EXPERTS))
    return total


def test_a_giant_is_planned_and_a_share_of_it_treated(tmp_path: Path) -> None:
    total = make_giant(tmp_path / "giant", 70)
    assert total > 1.9e9 * 70
    count = total // (300 << 20)  # so that a job has some 300 MB
    quantize = ["quantize", str(tmp_path / "giant"), "-o", str(tmp_path / "out"), "--bits", "4"]
    commands = {
        "inspect": ["inspect", str(tmp_path / "giant")],
        "plan": [*quantize, "--dry-run"],
        "share": [*quantize, "--method", "absmax", "--part", f"{count // 2}/{count}"],
    }
    for name, command in commands.items():
        assert measured(command)[1] < 400e6, name
    written = sum(path.stat().st_blocks * 512 for path in tmp_path.glob("out.part-*/*"))
    assert 0 < written < 400e6


@pytest.mark.faults
def test_a_larger_one_is_looked_at_and_planned(tmp_path: Path) -> None:
    """69,000 matrices of experts."""
    assert make_giant(tmp_path / "giant", 1000) > 1.9e12
    assert measured(["inspect", str(tmp_path / "giant")])[1] < 400e6
    plan = ["quantize", str(tmp_path / "giant"), "-o", str(tmp_path / "out"), "--bits", "4", "--dry-run", "-q"]
    assert measured(plan)[1] < 400e6


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds of CPU that a command takes, and bytes of memory at its peak."""
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return cpu, peak
