"""Write a Llama-like bf16 folder of random weights for the benchmarks: `make_model.py FOLDER [--layers N]`.

Hidden 2048, intermediate 8192, vocabulary 32,000, weights N(0, 0.02): 16 layers are 2.2 GB in three shards.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

HIDDEN, INTER, VOCAB = 2048, 8192, 32000


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for n in range(layers):
        layer = f"model.layers.{n}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"{layer}.self_attn.{name}.weight"] = (HIDDEN, HIDDEN)
        found[f"{layer}.mlp.gate_proj.weight"] = (INTER, HIDDEN)
        found[f"{layer}.mlp.up_proj.weight"] = (INTER, HIDDEN)
        found[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, INTER)
        found[f"{layer}.input_layernorm.weight"] = (HIDDEN,)
        found[f"{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
    found["lm_head.weight"] = (VOCAB, HIDDEN)
    return found


def write(folder: Path, layers: int, shard_bytes: int = 900_000_000) -> None:
    """Write shards, index and config; an existing folder of the same size is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pool = (rng.standard_normal(1 << 22, dtype=np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in shapes(layers).items():
        nbytes = 2 * int(np.prod(shape))
        if held + nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = shape
        held += nbytes
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        offset, header = 0, {"__metadata__": {"format": "pt"}}
        for name, shape in shard.items():
            end = offset + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}  # type: ignore[dict-item]
            weight_map[name] = file
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name, shape in shard.items():
                left = int(np.prod(shape))
                turn = sum(map(ord, name)) * 4099 % len(pool)
                while left:  # a different stretch of the pool for each tensor: real randomness would take minutes
                    piece = pool[turn : turn + left]
                    out.write(piece.tobytes())
                    left -= len(piece)
                    turn = 0
        total += offset
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": VOCAB,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    """Parse arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()
    write(args.folder, args.layers)


if __name__ == "__main__":
    main()
