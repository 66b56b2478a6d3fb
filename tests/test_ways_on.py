"""No remedy of a message is false: a command reaches it, and what it says is done then, with success.

`support/ways_on.txt` has for each its words, a command that is refused with it, and the command that does what it says.
`test_remedies.py` does so for messages of several options, and for notes.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.console import SAMPLES, STUDENT, TEACHER, compressor
from support.ways_on import pattern_of

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 32,
    "tie_word_embeddings": True,
}
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def llama() -> dict[str, np.ndarray]:
    found = {"model.embed_tokens.weight": floats(32, 64), "model.norm.weight": np.ones(64, np.float32)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        sizes = {"self_attn.q": (64, 64), "self_attn.k": (32, 64), "self_attn.v": (32, 64), "self_attn.o": (64, 64)}
        sizes |= {"mlp.gate": (128, 64), "mlp.up": (128, 64), "mlp.down": (64, 128)}
        found |= {f"{at}.{name}_proj.weight": floats(*shape) for name, shape in sizes.items()}
        found |= {
            f"{at}.{name}.weight": np.ones(64, np.float32)
            for name in ("input_layernorm", "post_attention_layernorm")
        }
    return found


def folder(place: Path, tensors: dict[str, np.ndarray], config: object = None) -> None:
    place.mkdir()
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (place / "config.json").write_text(json.dumps(config))


def make_inputs() -> None:
    """What the commands take, in the working directory."""
    shutil.copy(TEACHER, "teacher.safetensors")
    shutil.copy(STUDENT, "student.safetensors")
    shutil.copy(SAMPLES / "score.py", "score.py")
    images = np.load(SAMPLES / "mnist_test_2000.npz")
    np.save("x.npy", images["x"][:40].reshape(40, 784))
    np.save("y.npy", images["y"][:40])
    np.savez("xy.npz", x=images["x"][:40], y=images["y"][:40])
    np.save("m.npy", floats(16, 64))
    np.save("v.npy", floats(16))
    np.save("words.npy", np.array(["a", "b"]))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez_compressed("packed.npz", w=floats(16, 64))
    np.savez("plain.npz", w=floats(16, 64))
    save_file({"fc.weight": floats(8, 64)}, "one.safetensors")
    save_file({"fc.weight": floats(16, 64), "odd.weight": floats(8, 51)}, "odd.safetensors")
    save_file({"fc.weight": floats(16, 64), "lm_head.weight": floats(32, 64)}, "head.safetensors")
    save_file({"fc.weight": floats(16, 64), "conv.weight": floats(8, 16, 2, 2)}, "conv.safetensors")
    broken = floats(16, 64)
    broken[0, 0] = np.nan
    save_file({"fc.weight": floats(16, 64), "bad.weight": broken}, "nan.safetensors")
    folder(Path("llama"), llama(), LLAMA)
    folder(Path("bare"), llama())
    folder(Path("made-up"), {"a.weight": floats(16, 64)}, {"model_type": "made-up"})
    with_nan = llama()
    with_nan["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    folder(Path("llama-nan"), with_nan, LLAMA)
    folder(Path("cut-short"), {k: v for k, v in llama().items() if "1.mlp.up" not in k}, LLAMA)
    folder(Path("other-width"), llama(), LLAMA | {"hidden_size": 32})
    for name in ("one.safetensors", "m.npy", "plain.npz"):
        data = Path(name).read_bytes()
        Path(f"cut-{name}").write_bytes(data[: len(data) - 40])
    Path("text.txt").write_text("hello world " * 50)
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("a-file").write_text("mine")
    Path("scored.sh").write_text("#!/bin/sh\\nsleep 5\\n")
    said(compressor("quantize", "one.safetensors", "-o", "codes.safetensors", "--bits", "8"))
    said(compressor("prune", "one.safetensors", "-o", "half.safetensors", "--sparsity", "0.5"))
    said(compressor("pipeline", "one.safetensors", "-o", "archive.safetensors", "--store", "archive"))
    said(compressor("calibrate", "teacher.safetensors", "--inputs", "x.npy", "-o", "stats.safetensors"))
    said(
        compressor("quantize", "teacher.safetensors", "-o", "teacher-int8.safetensors", "--granularity", "channel")
    )


def said(done: object) -> None:
    assert done.code == 0, done  # type: ignore[attr-defined]


def runs() -> list[tuple[str, str, str]]:
    """Words of a remedy, the command that is refused with it, and the one that does what it says."""
    text = (Path(__file__).parent / "support" / "ways_on.txt").read_text()
    blocks = [block.splitlines() for block in text.split("\n\n") if block.strip() and not block.startswith("#")]
    assert all(len(block) == 3 for block in blocks), [block for block in blocks if len(block) != 3]
    return [(says, refused.strip(), does.strip()) for says, refused, does in blocks]


RUNS = runs()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        make_inputs()
    return place


def run(commands: str) -> tuple[int, str]:
    """The first that fails, or the last one's end and what it said."""
    code, text = 0, ""
    for command in commands.split("; "):
        done = compressor(*shlex.split(command))
        code, text = done.code, done.out + done.err
        if code:
            break
    return code, text


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_what_a_remedy_says_is_done(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    words, refused, does = RUNS[number]
    shutil.copytree(inputs, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    code, text = run(refused)
    assert code
    assert pattern_of(words).search(" ".join(text.split())), text
    code, text = run(does)
    assert code == 0, text
