"""llama.cpp computes with blocks of every type of ggml's as with the numbers that we restore of them.

Each type is that of all matrices of a small random language model. What is left are the roundings of activations to
8 bits in llama.cpp's own products.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.gguf_files import ARRAY, STRING, UINT32, GgufFile, Line, numbers, value

from bench.loaders.llama_cpp_reader import answers
from compressor import api
from compressor.core.ggml_types import BY_NAME
from compressor.methods.quantize.ggml.decoder import DECODE

pytestmark = pytest.mark.interop
WIDTH, TOKENS = 256, 64
# Where the float16 scales of a block lie, and the float16 of its least values
SCALES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "Q1_0", "Q2_0"), (0,)),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
MIDDLES = {"Q4_1": 7.5, "Q5_1": 15.5}  # codes that are to stand for zero
# Of activations, which llama.cpp makes itself and no file has
NO_WEIGHTS = {"Q8_1", "Q8_K"}


def random_blocks(name: str, rows: int, seed: int) -> bytes:
    """Random blocks that stand for weights of about 0.06."""
    kind = BY_NAME[name]
    raw = np.random.default_rng(seed).integers(0, 256, (rows * WIDTH // kind.block, kind.nbytes), np.uint8)
    if name == "MXFP4":
        raw[:, 0] = 122
    elif name == "NVFP4":
        raw[:, :4] = 24
    elif name == "IQ1_M":  # a float16 of 0.0078 in the high halves of four bytes
        for at, nibble in enumerate((0x0, 0x0, 0x0, 0x2)):
            raw[:, 49 + 2 * at] = raw[:, 49 + 2 * at] & 15 | nibble << 4
    else:
        for scale in (1.0, None):
            found = scale if scale is not None else 0.06 / _spread(name, raw)
            for at in SCALES[name]:
                least = -MIDDLES[name] if at and name in MIDDLES else 1
                raw[:, at : at + 2] = np.array([found * least], np.float16).view(np.uint8)
    return raw.tobytes()


def _spread(name: str, raw: np.ndarray) -> float:
    out = np.empty((len(raw), BY_NAME[name].block), np.float32)
    DECODE[name](raw, out)
    return float(np.sqrt(np.mean(out**2)))


def model(name: str) -> GgufFile:
    """One layer of llama's, all of whose matrices are of a type."""
    matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    lines = [
        Line(f"blk.0.{one}.weight", "F32", (WIDTH, WIDTH), random_blocks(name, WIDTH, at), BY_NAME[name].number)
        for at, one in enumerate(matrices)
    ]
    ones = np.ones(WIDTH, np.float32).tobytes()
    lines += [Line(f"{one}.weight", "F32", (WIDTH,), ones) for one in ("blk.0.attn_norm", "blk.0.ffn_norm")]
    lines += [
        Line("output_norm.weight", "F32", (WIDTH,), ones),
        numbers("token_embd.weight", (TOKENS, WIDTH), 20),
        Line("output.weight", "F32", (TOKENS, WIDTH), random_blocks(name, TOKENS, 30), BY_NAME[name].number),
    ]
    sizes = {
        "block_count": 1,
        "context_length": 128,
        "embedding_length": WIDTH,
        "feed_forward_length": WIDTH,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "vocab_size": TOKENS,
    }
    letters = [chr(33 + number) for number in range(TOKENS)]
    return GgufFile(
        lines,
        {
            "general.architecture": value(STRING, "llama"),
            "general.quantization_version": value(UINT32, 2),
            **{f"llama.{key}": value(UINT32, number) for key, number in sizes.items()},
            "llama.attention.layer_norm_rms_epsilon": value(6, 1e-5),
            "tokenizer.ggml.model": value(STRING, "gpt2"),
            "tokenizer.ggml.pre": value(STRING, "default"),
            "tokenizer.ggml.tokens": value(ARRAY, (STRING, letters)),
            "tokenizer.ggml.token_type": value(ARRAY, (5, [1] * TOKENS)),
            "tokenizer.ggml.merges": value(ARRAY, (STRING, ["! !"])),
        },
    )


@pytest.mark.parametrize("name", sorted({*DECODE} - NO_WEIGHTS))
def test_llama_cpp_computes_with_what_is_restored(tmp_path: Path, name: str) -> None:
    blocks, dense = tmp_path / "blocks.gguf", tmp_path / "dense.gguf"
    blocks.write_bytes(model(name).file())
    api.restore(blocks, dense)
    asked = {"prompts": [[3, 17, 40, 8], [60, 1, 2, 33, 9, 25]]}
    ours, theirs = answers({"path": str(dense), **asked}, {"path": str(blocks), **asked})
    for one, other in zip(ours["logprobs"], theirs["logprobs"], strict=True):
        assert one.keys() == other.keys()
        expected = np.array([one[token] for token in one])
        apart = np.array([other[token] for token in one]) - expected
        print(name, "spread", expected.std(), "mean distance", np.abs(apart).mean())
        assert np.abs(apart).mean() <= 0.05 * expected.std()
