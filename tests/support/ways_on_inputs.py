"""What the commands of `ways_on.txt` take: small models, sound and broken ones, files of other tools, recipes."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from support.console import SAMPLES, STUDENT, TEACHER, compressor
from support.gguf_files import GgufFile, numbers
from support.moe_folders import moe_folder

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
    save_file({"fc.weight": floats(16, 64), "fifty.weight": floats(8, 50)}, "fifty.safetensors")
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
    Path("slow.sh").write_text("sleep 0.5\necho 1\n")
    more_inputs()
    inputs_of_rare_ways()
    families()
    networks()
    extremes()
    save_file(chain(2), "tiny.safetensors")
    for command in (
        "quantize llama -o llama.gguf --no-tokenizer --bits 8",
        "calibrate tiny.safetensors --inputs e.npy -o tiny-stats.safetensors",
        "prune tiny.safetensors -o pruned-tiny.safetensors --sparsity 0.5",
        "quantize one.safetensors -o codes.safetensors --bits 8",
        "prune one.safetensors -o half.safetensors --sparsity 0.5",
        "pipeline one.safetensors -o archive.safetensors --store archive",
        "calibrate teacher.safetensors --inputs x.npy -o stats.safetensors",
        "calibrate teacher.safetensors --inputs x.npy -o diagonal.safetensors --diagonal",
    ):
        assert compressor(*shlex.split(command)).code == 0, command
    for name in ("archive", "stats"):
        data = Path(f"{name}.safetensors").read_bytes()
        Path(f"cut-{name}.safetensors").write_bytes(data[:-40])
    with safe_open("stats.safetensors", "np") as file:
        unseen = load_file("stats.safetensors") | {"fc2.count": np.zeros(1, np.int64)}
        save_file(unseen, "unseen.safetensors", file.metadata())
    Path("broken-stats.safetensors").write_bytes(data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2))


CHAIN = """
[[structure]]
name = "units"
axes = ["fc1.weight:0", "fc1.bias:0", "fc2.weight:1"]
"""
CUT = """
[[stage]]
kind = "prune"
structure = "units"
fraction = 0.5
"""
SCHEDULE = """
[[stage]]
kind = "prune"
sparsity = %s
"""


def more_inputs() -> None:
    """Inputs of other tools, odd ones, and recipes."""
    folder(Path("wrapped"), {f"_orig_mod.{name}": values for name, values in llama().items()}, LLAMA)
    codes = {
        "a.qweight": np.ones((8, 64), np.int32),
        "a.qzeros": np.ones((2, 8), np.int32),
        "a.scales": np.ones((2, 64), np.float16),
        "a.g_idx": (np.arange(64) // 32).astype(np.int32),
    }
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    save_file(codes, "gptq.safetensors")
    folder(Path("gptq"), codes, {"quantization_config": gptq})
    folder(Path("gptq-bare"), codes, {})
    folder(Path("by-aqlm"), codes, {"quantization_config": {"quant_method": "aqlm"}})
    turned = {"config_groups": {"u": {"apply": [{"location": "input"}]}}}
    fp8 = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"g": {}}}
    folder(
        Path("transformed"), {"a.weight": floats(8, 8)}, {"quantization_config": fp8 | {"transform_config": turned}}
    )
    eight = {"a.weight": np.ones((8, 64), np.float32)}
    for name, algorithm in (("modelopt", "FP8"), ("modelopt-odd", "W2A8")):
        folder(Path(name), eight, {"quantization_config": {"quant_method": "modelopt", "quant_algo": algorithm}})
    save_file({"a.weight_orig": floats(8, 64), "a.weight_mask": floats(8, 64)}, "mask.safetensors")
    save_file({"odd.weight": floats(8, 51), "odd2.weight": floats(8, 51)}, "odd2.safetensors")
    save_file({"fc.weight": floats(8, 32)}, "other-shape.safetensors")
    save_file({"short.weight": floats(64, 96)}, "short.safetensors")
    save_file({"fc.weight": floats(16, 64), "huge.weight": floats(16, 64) * np.float32(1e37)}, "huge.safetensors")
    conv1d = {"h.0.attn.c_attn.weight": floats(64, 192), "h.0.mlp.c_fc.weight": floats(64, 128)}
    folder(Path("gpt2"), conv1d, {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    save_file(
        {"a.weight": floats(8, 64), "a.weight_scale": floats(8), "b.weight": floats(8, 64)},
        "named-alike.safetensors",
    )
    inner = Path("pipe/transformer")
    inner.mkdir(parents=True)
    Path("pipe/model_index.json").write_text(json.dumps({"transformer": ["diffusers", "X"]}))
    save_file({"fc.weight": floats(16, 64)}, inner / "diffusion_pytorch_model.safetensors")
    (inner / "config.json").write_text(json.dumps({"_class_name": "X"}))
    for name, files in {
        "lone": ["other"],
        "pair": ["a", "b"],
        "numbered": ["w.fp16-00001-of-00002", "w.fp16-00002-of-00002"],
    }.items():
        Path(name).mkdir()
        for file in files:
            save_file({f"{file}.weight": floats(8, 64)}, Path(name, f"{file}.safetensors"))
    Path("held").mkdir()
    np.save("held/m.npy", floats(8, 64))
    folder(Path("gpt-neo"), {"transformer.h.0.mlp.c_fc.weight": floats(64, 64)}, {"model_type": "gpt_neo"})
    indexed = {
        "a.weight": floats(16, 64),
        "a.weight_g_idx": np.arange(64, dtype=np.int32),
        "b.weight": floats(16, 64),
    }
    folder(Path("indexed"), indexed, {"model_type": "llama"})
    for name in ("outer", "outermost/a", "outermost/b"):
        Path(name).mkdir(parents=True)
        folder(Path(name, "inner"), {"fc.weight": floats(8, 64)}, {})
    Path("pickled").mkdir()
    Path("pickled/weights.msgpack").write_bytes(b"x")
    folder(Path("bad-index"), llama(), LLAMA)
    Path("bad-index/model.safetensors").unlink()
    Path("bad-index/model.safetensors.index.json").write_text("{}")
    for name, places in {"overlap": ((0, 4), (2, 6)), "hole": ((0, 4), (6, 10))}.items():
        header = {n: {"dtype": "U8", "shape": [4], "data_offsets": at} for n, at in zip("ab", places, strict=True)}
        text = json.dumps(header).encode()
        Path(f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(places[-1][1]))
    Path("described.toml").write_text(CHAIN + CUT)
    Path("misdescribed.toml").write_text(CHAIN.replace("fc1.bias", "fc1.bais") + CUT)
    Path("axis.toml").write_text(CHAIN.replace("fc1.bias:0", "fc1.bias") + CUT)
    Path("twice.toml").write_text(SCHEDULE % 0.5 + '[[stage]]\nkind = "quantize"\nbits = 8\n')
    Path("schedule.toml").write_text(SCHEDULE % '{from = 0.5, to = 0.9, steps = 4, shape = "cubic"}')
    Path("schedule-bad.toml").write_text(SCHEDULE % "{from = 0.5, until = 0.9}")
    Path("two-targets.toml").write_text("[budget]\ntarget_ratio = 2\ntarget_bits = 3\n")
    wrong = np.load("x.npy").astype(np.float32)
    wrong[3, 3] = np.nan
    np.save("x-nan.npy", wrong)
    for name, layer in {"recorded": "fc9", "recorded-well": "fc1"}.items():
        Path(name).mkdir()
        np.save(f"{name}/{layer}.npy", floats(4, 784))
    save_file({"fc": np.ones(64, np.float32)}, "scores.safetensors")
    save_file({"fc": -np.ones(64, np.float32)}, "scores-bad.safetensors")


def inputs_of_rare_ways() -> None:
    """What only one or two runs take."""
    folder(Path("llama-more"), llama() | {"more.weight": floats(16, 64)}, LLAMA)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    for name, rounded in {"llama-yarn": False, "llama-yarn-rounded": True}.items():
        folder(Path(name), llama(), LLAMA | {"rope_scaling": yarn | {"truncate": rounded}})
    huge = llama()
    huge["model.layers.0.mlp.up_proj.weight"] *= np.float32(1e37)
    folder(Path("llama-huge"), huge, LLAMA)
    halves = {name: values.astype(np.float16) for name, values in load_file("student.safetensors").items()}
    save_file(halves, "student16.safetensors")
    save_file(load_file("teacher.safetensors") | {"more.weight": floats(16, 64)}, "more.safetensors")
    save_file(
        {"a.weight_g": np.ones((8, 1), np.float32), "a.weight_v": np.zeros((8, 64), np.float32)},
        "no-direction.safetensors",
    )
    save_file({"fc.weight": floats(16, 64).astype(bfloat16)}, "bf16.safetensors")
    save_file({"fc.weight": floats(16, 64), "odd.weight": floats(12, 64)}, "rows.safetensors")
    save_file({"fc.weight": floats(16, 64), "wide.weight": floats(16, 64) * np.float64(1e200)}, "wide.safetensors")
    save_file({"conv.weight": floats(8, 16, 3, 3)}, "kernels.safetensors")
    Path("other.json").write_text(json.dumps(LLAMA | {"vocab_size": 48}))
    Path("smaller.json").write_text(json.dumps(LLAMA | {"intermediate_size": 64}))
    Path("described-wanda.toml").write_text(f'{CHAIN}{CUT}{SCHEDULE % 0.5}method = "wanda"\n')
    budget = '[budget]\n%s[[stage]]\nkind = "quantize"\n'
    Path("no-target.toml").write_text(budget % "")
    Path("target.toml").write_text(budget % "target_ratio = 2\n")
    for name, key in {"repeat": "to", "repeat-bad": "until"}.items():
        stage = SCHEDULE.replace("stage", "stage.stage") % f"{{from = 0.5, {key} = 0.9}}"
        Path(f"{name}.toml").write_text(f"[[stage]]\nrepeat = 2\n{stage}")
    np.save("y-wrong.npy", 9 - np.load("y.npy"))
    Path("one.sh").write_text("echo 1\n")
    save_file({"a.fc.weight": floats(16, 64)}, "prefixed.safetensors")
    Path("recorded-llama").mkdir()
    np.save("recorded-llama/model.layers.0.mlp.down_proj.npy", floats(8, 128))
    Path("adapter-budget.toml").write_text(
        '[budget]\ntarget_ratio = 2\n[[stage]]\nkind = "prune"\nsparsity = 0.5\n'
        '[[stage]]\nkind = "distill"\nmethod = "residual"\nrank = 2\n'
    )


def t5() -> dict[str, np.ndarray]:
    found = {"shared.weight": floats(32, 64)}
    for part, blocks in {"encoder": ("SelfAttention",), "decoder": ("SelfAttention", "EncDecAttention")}.items():
        at, last = f"{part}.block.0.layer", len(blocks)
        shapes = {f"{number}.{kind}.{name}": (64, 64) for number, kind in enumerate(blocks) for name in "qkvo"}
        shapes |= {"0.SelfAttention.relative_attention_bias": (32, 4)}
        shapes |= {f"{last}.DenseReluDense.wi": (128, 64), f"{last}.DenseReluDense.wo": (64, 128)}
        found |= {f"{at}.{name}.weight": floats(*shape) for name, shape in shapes.items()}
        norms = [f"{part}.final_layer_norm", *(f"{at}.{number}.layer_norm" for number in range(last + 1))]
        found |= {f"{name}.weight": np.ones(64, np.float32) for name in norms}
    return found


def families() -> None:
    """Models of other kinds than a llama's."""
    folder(Path("stablelm"), llama(), LLAMA | {"model_type": "stablelm", "architectures": ["StableLmForCausalLM"]})
    normed = {name: values for name, values in llama().items() if "input_layernorm" not in name}
    for layer in range(2):
        widths = {"self_attn.q_norm": 64, "self_attn.k_norm": 32, "post_feedforward_layernorm": 64}
        normed |= {f"model.layers.{layer}.{n}.weight": np.ones(w, np.float32) for n, w in widths.items()}
    folder(Path("olmo2"), normed, LLAMA | {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]})
    sizes = {"d_model": 64, "d_ff": 128, "num_heads": 4, "d_kv": 16, "num_layers": 1, "vocab_size": 32}
    folder(Path("t5"), t5(), {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], **sizes})
    moe_folder(Path("moe"))
    at = "model.layers.0.mlp"
    fused = {f"{at}.experts.gate_up_proj": floats(3, 64, 64), f"{at}.experts.down_proj": floats(3, 64, 32)}
    folder(Path("fused"), fused | {f"{at}.gate.weight": floats(3, 64)}, {"model_type": "qwen3_moe"})
    flux = {"double_blocks.0.img_attn.proj.weight": floats(64, 64)}
    save_file(flux | {f"double_blocks.0.{'x' * 60}.weight": floats(64, 64)}, "long-name.safetensors")
    save_file(flux | {"double_blocks.0.mask": np.ones((64, 64), bool)}, "truths.safetensors")
    save_file(flux | {"img_in.weight": floats(64, 64)}, "flux.safetensors")
    kernels = {"conv.weight": floats(8, 16, 3, 3), "fc.weight": floats(16, 64)}
    folder(Path("convolutions"), kernels, {"model_type": "made-up"})
    save_file({"a.weight_g": floats(8, 1), "a.weight_v": floats(8, 64)}, "with-norm.safetensors")
    inside = {f"model.diffusion_model.{name}": values for name, values in flux.items()}
    save_file(inside | {"first_stage_model.x.weight": floats(64, 64)}, "with-vae.safetensors")
    for name, layer, width in (("more", "more", 64), ("neurons", "model.layers.0.mlp.down_proj", 128)):
        Path(f"recorded-{name}").mkdir()
        np.save(f"recorded-{name}/{layer}.npy", floats(8, width))


def chain(depth: int, last: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Dense layers of eight inputs that leave numbers about as large, without a bias to begin with."""
    random = np.random.default_rng(seed)
    widths = dict.fromkeys(range(1, depth), 8) | {depth: last}
    found = {
        f"fc{n}.weight": random.standard_normal((w, 8), np.float32) * np.float32(0.35) for n, w in widths.items()
    }
    return found | {f"fc{number}.bias": np.zeros(width, np.float32) for number, width in widths.items()}


def networks() -> None:
    """Networks whose training goes wrong where steps are large, and statistics of what saw nothing."""
    np.save("e.npy", floats(40, 8))
    np.save("bytes.npy", RANDOM.integers(0, 255, (40, 8), np.uint8))
    np.save("ids.npy", np.arange(32).reshape(1, 32))
    save_file(chain(40), "deep.safetensors")
    save_file(chain(40, seed=1), "deep-teacher.safetensors")
    bare = {name: array for name, array in chain(2).items() if "bias" not in name}
    save_file(bare, "bare.safetensors")
    save_file({name: array * (array > 0) for name, array in bare.items()}, "half-bare.safetensors")
    joined = '[[layer]]\nkind = "dense"\nname = "fc1"\n{}[[layer]]\nkind = "relu"\n'
    joined += '[[layer]]\nkind = "add"\nother = "x"\n'
    for name, said in (("unnamed", ""), ("named", 'output = "x"\n')):
        Path(f"{name}.toml").write_text(f"input = 8\n{joined.format(said)}")
    save_file({name: array for name, array in bare.items() if "fc1" in name}, "joined.safetensors")
    save_file(
        {name: array * (array > 0) for name, array in bare.items() if "fc1" in name}, "half-joined.safetensors"
    )
    layers = "".join(f'[[layer]]\nkind = "dense"\nname = "fc{number}"\n' for number in range(1, 41))
    Path("linear.toml").write_text(f'name = "linear"\ninput = 8\n{layers}')
    end = chain(2, 2)
    end["fc2.bias"][:] = 65500
    save_file({name: values.astype(np.float16) for name, values in end.items()}, "end16.safetensors")
    end["fc2.bias"][:] = 20, -20
    save_file(end, "end-teacher.safetensors")
    for name, importance in {"inputs": "inputs", "squares": "l2"}.items():
        cut = CUT + f'importance = "{importance}"\n'
        Path(f"by-{name}.toml").write_text(CHAIN + cut)
        Path(f"unread-by-{name}.toml").write_text(CHAIN.replace(', "fc2.weight:1"', "").replace("fc1", "fc3") + cut)
    Path("kernels.toml").write_text('[[structure]]\nname = "units"\naxes = ["conv.weight:0"]\n' + CUT)
    wild = load_file("student.safetensors")
    wild["fc1.weight"] *= np.float32(1e37)
    save_file(wild, "wild.safetensors")


def extremes() -> None:
    """Numbers at the ends of their ranges."""
    one = load_file("one.safetensors")["fc.weight"]
    end = one * np.float32(3e38 / np.abs(one).max())
    save_file({"fc.weight": one, "end.weight": end}, "ends.safetensors")
    save_file({"fc.weight": one + 1, "end.weight": -end}, "other-ends.safetensors")
    cancels = one.copy()
    cancels[3] = 0
    cancels[3, :2] = 1, -1
    save_file({"fc.weight": one, "more.weight": one}, "two.safetensors")
    save_file({"fc.weight": cancels, "more.weight": one + 3}, "two-cancelling.safetensors")
    high, shares = np.full((8, 64), 6e4, np.float16), np.ones((8, 64), np.float32)
    shares[:, 0] = -62.9
    save_file({"fc.weight": high, "more.weight": np.ones((8, 64), np.float16)}, "high16.safetensors")
    save_file({"fc.weight": shares, "more.weight": np.ones((8, 64), np.float32)}, "shares.safetensors")
    signs = np.tile(np.array([65504, -65504], np.float16), (8, 32))
    save_file({"fc.weight": floats(8, 64).astype(np.float16), "end.weight": signs}, "end-of-16.safetensors")
    halves = {name: values.astype(np.float16) for name, values in llama().items()}
    halves["model.layers.0.mlp.up_proj.weight"][:, ::7] = 6e4
    folder(Path("llama-high16"), halves, LLAMA)
    Path("recorded-all").mkdir()
    for name, values in llama().items():
        if name.endswith("_proj.weight"):
            inputs = floats(8, values.shape[1])
            inputs[:, ::7] *= 100
            np.save(f"recorded-all/{name.removesuffix('.weight')}.npy", inputs)
    old = replace(numbers("w", (2, 32)), number=4)
    Path("old-type.gguf").write_bytes(GgufFile([old]).file())
