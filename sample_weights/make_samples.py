"""Make the files of this folder again, byte for byte, or check that they are what this script makes.

    python sample_weights/make_samples.py                 write tiny-llama/ and matrix.npy
    python sample_weights/make_samples.py --check         compare only; exit 1 when something differs
    ... --lenet DIR                                       also the LeNet files, copied from DIR
    ... --mnist FILE                                      also the small test set, taken from the full one

The random numbers come from SHAKE-256 of "seed/name", so they depend on no library's generator. The matrix is
computed with + - * / and square roots alone, which IEEE 754 defines to the last bit; the bf16 weights keep
8 bits of a float64, far above what two versions of `log` and `cos` differ by.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SEED = 0
MATRIX_SHAPE = (256, 1024)
MATRIX_SCALE = 0.02
MNIST_STRIDE = 5  # every fifth image: the two halves of the test set come from different groups of writers

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY = 128, 256, 2, 4, 2, 256
INITIALIZER_RANGE = 0.02
SHARD_LIMIT = 400_000  # bytes of tensors; splits the second layer, as the shards of large models do

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": HIDDEN // HEADS,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": INITIALIZER_RANGE,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": 128,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",  # what transformers before 4.56 reads instead of `dtype`
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
GENERATION_CONFIG = {"bos_token_id": 1, "do_sample": False, "eos_token_id": 2}
TOKENIZER_CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 128}


def uniform(name: str, count: int) -> np.ndarray:
    """`count` float64 numbers strictly between 0 and 1, multiples of 2^-33, fixed by (SEED, name)."""
    stream = hashlib.shake_256(f"{SEED}/{name}".encode()).digest(4 * count)
    return (np.frombuffer(stream, "<u4") + 0.5) / 2.0**32


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 numbers (Box and Muller 1958)."""
    u, v = uniform(name, 2 * int(np.prod(shape))).reshape(2, *shape)
    return np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)


def student_t4(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Student-t float64 numbers with 4 degrees of freedom (Bailey 1994, polar method).

    T = U sqrt(nu (W^(-2/nu) - 1) / W) for W = U^2 + V^2 < 1; at nu = 4 the power is a square root.
    """
    count = int(np.prod(shape))
    u, v = (2.0 * uniform(name, 4 * count) - 1.0).reshape(2, 2 * count)
    w = u * u + v * v
    u, w = u[w < 1.0][:count], w[w < 1.0][:count]  # pi/4 of twice as many as needed are inside
    return (u * np.sqrt(4.0 * (1.0 / np.sqrt(w) - 1.0) / w)).reshape(shape)


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """Finite numbers rounded to bfloat16, ties to even, as little-endian uint16."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def llama_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama model in the order in which the model holds them."""
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{prefix}.self_attn.k_proj.weight"] = (kv, HIDDEN)
        shapes[f"{prefix}.self_attn.v_proj.weight"] = (kv, HIDDEN)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes[f"{prefix}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return shapes


def llama_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Norm weights are ones, matrices N(0, INITIALIZER_RANGE), as bfloat16 bits."""
    values = np.ones(shape) if len(shape) == 1 else INITIALIZER_RANGE * normal(name, shape)
    return bf16_bits(values)


def safetensors_bf16(tensors: dict[str, np.ndarray]) -> bytes:
    """A safetensors file of bfloat16 tensors sorted by name, header padded with spaces to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, bits in sorted(tensors.items()):
        begin, end = end, end + bits.nbytes
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors[name].tobytes() for name in sorted(tensors))


def json_file(value: dict[str, Any]) -> bytes:
    """JSON as transformers writes it: sorted keys, two spaces."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def tiny_llama() -> dict[str, bytes]:
    """The files of tiny-llama/, shards filled up to SHARD_LIMIT in model order."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = total = 0
    for name, shape in llama_shapes().items():
        bits = llama_tensor(name, shape)
        if size + bits.nbytes > SHARD_LIMIT:
            shards.append({})
            size = 0
        shards[-1][name] = bits
        size += bits.nbytes
        total += bits.nbytes
    files: dict[str, bytes] = {}
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files[file] = safetensors_bf16(tensors)
        weight_map |= dict.fromkeys(tensors, file)
    metadata = {"total_parameters": total // 2, "total_size": total}
    files["model.safetensors.index.json"] = json_file({"metadata": metadata, "weight_map": weight_map})
    files["config.json"] = json_file(CONFIG)
    files["generation_config.json"] = json_file(GENERATION_CONFIG)
    files["tokenizer_config.json"] = json_file(TOKENIZER_CONFIG)
    return {f"tiny-llama/{file}": data for file, data in files.items()}


def matrix() -> bytes:
    """matrix.npy: float32, Student-t with 4 degrees of freedom times MATRIX_SCALE."""
    out = io.BytesIO()
    np.save(out, (MATRIX_SCALE * student_t4("matrix", MATRIX_SHAPE)).astype("<f4"))
    return out.getvalue()


def mnist_subset(source: Path) -> bytes:
    """Images 0, 5, 10, ... 9995 of the full test set. The zip entries carry no time of day."""
    with np.load(source) as full:
        x, y = full["x"], full["y"]
    if x.shape != (10_000, 28, 28) or x.dtype != np.uint8 or y.shape != (10_000,) or y.dtype != np.uint8:
        raise ValueError("expected uint8 arrays x [10000, 28, 28] and y [10000]")
    out = io.BytesIO()
    np.savez_compressed(out, x=x[::MNIST_STRIDE], y=y[::MNIST_STRIDE])
    return out.getvalue()


def npz_equal(one: bytes, other: bytes) -> bool:
    """Same arrays: zlib versions differ in how they compress, so compressed bytes say too little."""
    try:
        with np.load(io.BytesIO(one)) as a, np.load(io.BytesIO(other)) as b:
            return sorted(a) == sorted(b) and all(
                a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key]) for key in a
            )
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def state(path: Path, wanted: bytes) -> str:
    """`same`, `missing` or `differs`."""
    if not path.is_file():
        return "missing"
    found = path.read_bytes()
    same = found == wanted or (path.suffix == ".npz" and npz_equal(found, wanted))
    return "same" if same else "differs"


def main() -> int:
    """Return the exit code: 0 fine, 1 `--check` found differences, 2 a source cannot be used."""
    parser = argparse.ArgumentParser(description="Make or check the files of sample_weights/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    parser.add_argument("--lenet", type=Path, metavar="DIR", help="folder of {teacher,student}.safetensors")
    parser.add_argument("--mnist", type=Path, metavar="FILE", help="full MNIST test set, .npz with x and y")
    options = parser.parse_args()

    files = {"matrix.npy": matrix()} | tiny_llama()
    try:
        if options.lenet is not None:
            for role in ("teacher", "student"):
                files[f"lenet300_{role}.safetensors"] = (options.lenet / f"{role}.safetensors").read_bytes()
        if options.mnist is not None:
            files["mnist_test_2000.npz"] = mnist_subset(options.mnist)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        print(f"make_samples: cannot use the source: {error}", file=sys.stderr)
        return 2

    states = {file: state(HERE / file, wanted) for file, wanted in sorted(files.items())}
    stray = sorted(
        path.relative_to(HERE).as_posix()
        for path in HERE.glob("tiny-llama/**/*")
        if path.relative_to(HERE).as_posix() not in files
    )
    if options.check:
        for file, found in states.items():
            print(f"{found:8} {file}")
        for file in stray:
            print(f"stray    {file}")
        return int(bool(stray) or set(states.values()) != {"same"})
    for file, found in states.items():
        if found != "same":
            (HERE / file).parent.mkdir(exist_ok=True)
            (HERE / file).write_bytes(files[file])
        print(f"{'kept' if found == 'same' else 'wrote':8} {file}")
    for file in stray:
        print(f"stray    {file}: not made by this script, delete it", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
