"""What a message tells users to do is there to be done, and does it.

`CASES` are commands that are refused (or say something in a note) and, for each option that the message names, what
the command becomes with it; each of these must succeed. Remedies of loaders' limits are run by
`engine/test_what_loaders_take.py`, those of budgets by `workflows/test_budget.py`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.console import Done, compressor

from compressor.cli.main import cli

PACKAGE = Path(__file__).parents[1] / "compressor"
OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z0-9-]*")
OTHERS = {
    "--debug",
    "--help",
    "--pure",
    "--json",
}  # the last two are llama-quantize's and sample_weights/score.py's
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4}


def options_of_commands() -> set[str]:
    """Every option of every command."""
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in cli.list_commands(context)]
    found = {
        flag for one in commands if one for field in one.params for flag in (*field.opts, *field.secondary_opts)
    }
    return found | OTHERS


def texts(module: Path) -> Iterator[str]:
    """Strings of a module that are no docstrings, with what is put into them left out."""
    tree = ast.parse(module.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_every_option_that_a_text_names_is_there() -> None:
    known = options_of_commands()
    named = {
        (found, str(module.relative_to(PACKAGE)))
        for module in PACKAGE.rglob("*.py")
        for text in texts(module)
        for found in OPTION.findall(text)
        if not re.search(rf"{found}[:)]", text)  # a style sheet's
    }
    assert len(named) > 150
    # the tail of a name that is put together
    assert {one for one in named if one[0] not in known and not one[0].endswith("-")} == set()


def matrices(place: Path, **shapes: tuple[int, ...]) -> Path:
    random = np.random.default_rng(0)
    path = place / "in.safetensors"
    save_file({f"{name}.weight": random.standard_normal(s).astype(np.float32) for name, s in shapes.items()}, path)
    return path


def one(place: Path) -> Path:
    return matrices(place, fc=(8, 64))


def odd(place: Path) -> Path:
    return matrices(place, fc=(16, 64), odd=(8, 51))


def even(place: Path) -> Path:
    return matrices(place, fc=(16, 64), even=(8, 48))


def kernels(place: Path) -> Path:
    return matrices(place, fc=(16, 64), conv=(8, 16, 2, 2))


def head(place: Path) -> Path:
    return matrices(place, fc=(16, 64), lm_head=(32, 64))


def not_finite(place: Path) -> Path:
    path = odd(place)
    tensors = load_file(path)
    tensors["odd.weight"][0, 0] = np.nan
    save_file(tensors, path)
    return path


def quantized(place: Path) -> Path:
    compressor("quantize", one(place), "-o", place / "codes.safetensors", "--bits", "8", "--granularity", "channel")
    return place / "codes.safetensors"


def folder(place: Path, prefix: str = "") -> Path:
    random = np.random.default_rng(0)
    (place / "in").mkdir()
    shapes = {"model.embed_tokens": (32, 64), **{f"model.layers.0.self_attn.{p}_proj": (64, 64) for p in "qkvo"}}
    shapes |= {"model.layers.0.mlp.gate_proj": (64, 64), "model.layers.0.mlp.up_proj": (64, 64)}
    shapes |= {"model.layers.0.mlp.down_proj": (64, 64)}
    tensors = {f"{prefix}{n}.weight": random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    tensors |= {f"{prefix}{name}.weight": np.ones(64, np.float32) for name in norms}
    save_file(tensors, place / "in" / "model.safetensors", metadata={"format": "pt"})
    sizes = {"intermediate_size": 64, "num_hidden_layers": 1, "num_key_value_heads": 4, "vocab_size": 32}
    (place / "in" / "config.json").write_text(json.dumps({**LLAMA, **sizes, "tie_word_embeddings": True}))
    return place / "in"


def wrapped(place: Path) -> Path:
    return folder(place, "_orig_mod.")


def pipeline(place: Path) -> Path:
    (place / "in" / "transformer").mkdir(parents=True)
    (place / "in" / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", "X"]}))
    part = place / "in" / "transformer"
    save_file({"fc.weight": np.eye(64, dtype=np.float32)}, part / "diffusion_pytorch_model.safetensors")
    (part / "config.json").write_text(json.dumps({"_class_name": "X"}))
    return place / "in"


def weight_norm(place: Path) -> Path:
    path = place / "in.safetensors"
    save_file({"a.weight_g": np.ones((8, 1), np.float32), "a.weight_v": np.ones((8, 64), np.float32)}, path)
    return path


Input = Callable[[Path], Path]
# What makes the input; the command; the suffix of its output; and what it becomes by each option that is named:
# more words, or (words to leave out, words in their place)
Change = str | tuple[str, str]
CASES: dict[str, tuple[Input, str, str, dict[str, Change]]] = {
    "groups": (
        odd,
        "quantize --bits 4 --group-size 64",
        ".safetensors",
        {
            "--fallback": "--fallback",
            "--granularity": ("--group-size 64", "--granularity channel"),
            "--exclude": "--exclude odd.weight",
        },
    ),
    "matrices only": (
        kernels,
        "quantize --bits 4 --layout pack-quantized --group-size 32",
        ".safetensors",
        {
            "--layout": ("pack-quantized", "compressor"),
            "--exclude": "--exclude conv.weight",
        },
    ),
    "layout gptq": (
        kernels,
        "quantize --bits 4 --layout gptq --group-size 32",
        ".safetensors",
        {
            "--layout": ("--layout gptq", "--layout compressor"),
            "--exclude": "--exclude conv.weight",
        },
    ),
    "block of mxfp4": (
        odd,
        "quantize --scheme mxfp4 --strict",
        ".safetensors",
        {"--fallback": "--fallback", "--strict": ("--strict", "")},
    ),
    "strict": (
        head,
        "prune --sparsity 0.5 --strict",
        ".safetensors",
        {"--strict": ("--strict", ""), "--include": "--include *"},
    ),
    "block of magnitudes": (
        even,
        "prune --sparsity 0.5 --granularity block --block-size 64",
        ".safetensors",
        {
            "--block-size": ("--block-size 64", "--block-size 16"),
            "--granularity": ("--granularity block --block-size 64", "--granularity row"),
            "--exclude": "--exclude even.weight",
        },
    ),
    "not finite": (
        not_finite,
        "prune --sparsity 0.5",
        ".safetensors",
        {"--exclude": "--exclude odd.weight", "--non-finite": "--non-finite keep"},
    ),
    "twice": (
        quantized,
        "quantize --bits 8 --granularity channel",
        ".safetensors",
        {"--requantize": "--requantize"},
    ),
    "pattern": (
        one,
        "prune --sparsity 0.5 --exclude nothing",
        ".safetensors",
        {"--allow-unmatched": "--allow-unmatched"},
    ),
    "packed in .npy": (
        one,
        "quantize --bits 4 --store packed --granularity channel",
        ".npy",
        {"--store": ("--store packed", "--store dense")},
    ),
    "sparse in .npy": (
        one,
        "prune --sparsity 0.5 --store bitmask",
        ".npy",
        {"--store": ("--store bitmask", "--store csr")},  # with .npz, below
    ),
    "codes that overflow": (
        one,
        "quantize --scheme factor --factor 1000000000 --code-bits 8",
        ".safetensors",
        {
            "--code-bits": ("--factor 1000000000 --code-bits 8", "--factor 1000 --code-bits 32"),
            "--store": "--store dense",
            "--scheme": ("--scheme factor --factor 1000000000 --code-bits 8", "--scheme int --granularity channel"),
        },
    ),
    "steps that overflow": (
        one,
        "quantize --scheme uniform --step 0.00001",
        ".safetensors",
        {"--step": ("--step 0.00001", "--step auto"), "--step of": ("--step 0.00001", "--step {}")},
    ),
    "prefix": (
        wrapped,
        "prune --structure neurons --fraction 0.25",
        "",
        {"--strip-prefix": "--strip-prefix _orig_mod."},
    ),
    "component": (pipeline, "prune --sparsity 0.5", "", {"--component": "--component transformer"}),
    "preset elsewhere": (
        one,
        "quantize --preset q4_k_m",
        ".safetensors",
        {"--scheme": ("--preset q4_k_m", "--scheme int --granularity channel")},
    ),
    "no 2:4": (
        one,
        "prune --sparsity 0.25 --store nm",
        ".safetensors",
        {
            "--pattern": ("--sparsity 0.25 --store nm", "--pattern 2:4 --store nm"),
            "--store": ("--store nm", "--store auto"),
        },
    ),
    "no gain": (
        one,
        "restore --fold-weight-norm",
        ".safetensors",
        {"--fold-weight-norm": ("--fold-weight-norm", "")},
    ),
}
NOTES: dict[str, tuple[Input, str, str, dict[str, Change]]] = {
    "wrapped": (wrapped, "prune --sparsity 0.5", "", {"--strip-prefix": "--strip-prefix _orig_mod."}),
    "weight norm": (
        weight_norm,
        "prune --sparsity 0.5",
        ".safetensors",
        {"--fold-weight-norm": "--fold-weight-norm"},
    ),
    "activations": (
        folder,
        "quantize --bits 8 --layout int-quantized",
        "",
        {
            "--layout": ("int-quantized", "pack-quantized"),
            "--granularity": ("--layout int-quantized", "--granularity group --group-size 32"),
        },
    ),
    "fp8 activations": (folder, "quantize --scheme fp8", "", {"--layout": "--layout naive-quantized"}),
}


def run(source: Path, words: str, output: Path) -> Done:
    verb, *rest = words.split()
    return compressor(verb, source, *rest, "-o", output)


def check(case: tuple[Input, str, str, dict[str, Change]], place: Path, said: str, source: Path) -> None:
    """Every option that was named is changed in the command, which then succeeds."""
    _, words, suffix, changes = case
    named = set(OPTION.findall(said)) - set(OPTION.findall(words)) | (set(OPTION.findall(said)) & set(changes))
    assert named <= set(changes), said
    for option, change in changes.items():
        assert option in said
        changed = f"{words} {change}" if isinstance(change, str) else words.replace(*change)
        if "{}" in changed:  # the number that the message says
            found = re.search(rf"{option} at least ([0-9.e-]+),", said)
            assert found is not None
            changed = changed.format(found[1])
        end = ".npz" if "--store csr" in changed else suffix
        done = run(source, changed, place / f"{option.strip('-')}{end}")
        assert done.code == 0, (changed, done.err)


@pytest.mark.parametrize("name", CASES)
def test_what_a_refusal_names_is_the_way_on(tmp_path: Path, name: str) -> None:
    make, words, suffix, _ = CASES[name]
    source = make(tmp_path)
    refused = run(source, words, tmp_path / f"out{suffix}")
    assert refused.code in (2, 3)
    assert not (tmp_path / f"out{suffix}").exists()
    check(CASES[name], tmp_path, refused.err, source)


@pytest.mark.parametrize("name", NOTES)
def test_what_a_note_names_is_there(tmp_path: Path, name: str) -> None:
    make, words, suffix, _ = NOTES[name]
    source = make(tmp_path)
    done = run(source, words, tmp_path / f"out{suffix}")
    assert done.code == 0, done.err
    notes = " ".join(line for line in done.out.splitlines() if line.startswith("note:"))
    check(NOTES[name], tmp_path, notes, source)


def test_what_is_kept_whatever_is_included_is_not_advised(tmp_path: Path) -> None:
    """A budget that cannot be met names tensors to include, but none that --non-finite keep leaves alone."""
    said = run(not_finite(tmp_path), "quantize --target-ratio 9 --non-finite keep", tmp_path / "out.safetensors")
    assert said.code == 1
    assert "Ask for no less" in said.err
    assert "--include" not in said.err
