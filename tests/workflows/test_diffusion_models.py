"""Flux and SDXL, small, under the names and of the ranks of the real ones, through every verb: as ComfyUI's files,
bare and under `model.diffusion_model.`, and as components of diffusers, in its variant fp16 too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor

Shapes = dict[str, tuple[int, ...]]
WIDTH, TEXT = 64, 96


def linear(name: str, out: int, inner: int) -> Shapes:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def flux() -> Shapes:
    """As Black Forest Labs publish it (flux/model.py): one double block and one single block."""
    found = linear("img_in", WIDTH, 64) | linear("txt_in", WIDTH, TEXT)
    for name in ("time_in", "vector_in", "guidance_in"):
        found |= linear(f"{name}.in_layer", WIDTH, 256) | linear(f"{name}.out_layer", WIDTH, WIDTH)
    for side in ("img", "txt"):
        at = f"double_blocks.0.{side}_"
        found |= linear(f"{at}mod.lin", 6 * WIDTH, WIDTH) | linear(f"{at}attn.qkv", 3 * WIDTH, WIDTH)
        found |= linear(f"{at}attn.proj", WIDTH, WIDTH) | linear(f"{at}mlp.0", 4 * WIDTH, WIDTH)
        found |= linear(f"{at}mlp.2", WIDTH, 4 * WIDTH)
        found |= {f"{at}attn.norm.{one}_norm.scale": (32,) for one in ("query", "key")}
    at = "single_blocks.0."
    found |= linear(f"{at}linear1", 7 * WIDTH, WIDTH) | linear(f"{at}linear2", WIDTH, 5 * WIDTH)
    found |= linear(f"{at}modulation.lin", 3 * WIDTH, WIDTH)
    found |= {f"{at}norm.{one}_norm.scale": (32,) for one in ("query", "key")}
    return (
        found | linear("final_layer.linear", 64, WIDTH) | linear("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    )


def sdxl() -> Shapes:
    """As Stability publishes it (sgm's UNet): one block of convolutions, one with a transformer, one each way."""

    def conv(name: str, out: int, inner: int, size: int = 3) -> Shapes:
        return {f"{name}.weight": (out, inner, size, size), f"{name}.bias": (out,)}

    def norm(name: str) -> Shapes:
        return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}

    def block(at: str) -> Shapes:
        found = norm(f"{at}.in_layers.0") | conv(f"{at}.in_layers.2", WIDTH, WIDTH)
        found |= linear(f"{at}.emb_layers.1", WIDTH, 4 * WIDTH) | norm(f"{at}.out_layers.0")
        return found | conv(f"{at}.out_layers.3", WIDTH, WIDTH)

    def transformer(at: str) -> Shapes:
        inner = f"{at}.transformer_blocks.0"
        found = norm(f"{at}.norm") | linear(f"{at}.proj_in", WIDTH, WIDTH) | linear(f"{at}.proj_out", WIDTH, WIDTH)
        for number, seen in ((1, WIDTH), (2, TEXT)):
            found |= {f"{inner}.attn{number}.to_q.weight": (WIDTH, WIDTH)}
            found |= {f"{inner}.attn{number}.to_{one}.weight": (WIDTH, seen) for one in "kv"}
            found |= linear(f"{inner}.attn{number}.to_out.0", WIDTH, WIDTH)
        found |= linear(f"{inner}.ff.net.0.proj", 8 * WIDTH, WIDTH) | linear(f"{inner}.ff.net.2", WIDTH, 4 * WIDTH)
        return found | norm(f"{inner}.norm1") | norm(f"{inner}.norm2") | norm(f"{inner}.norm3")

    found = linear("time_embed.0", 4 * WIDTH, WIDTH) | linear("time_embed.2", 4 * WIDTH, 4 * WIDTH)
    found |= linear("label_emb.0.0", 4 * WIDTH, 256) | linear("label_emb.0.2", 4 * WIDTH, 4 * WIDTH)
    found |= (
        conv("input_blocks.0.0", WIDTH, 4) | block("input_blocks.1.0") | conv("input_blocks.3.0.op", WIDTH, WIDTH)
    )
    found |= block("input_blocks.4.0") | transformer("input_blocks.4.1")
    found |= block("middle_block.0") | transformer("middle_block.1") | block("middle_block.2")
    found |= block("output_blocks.0.0") | conv("output_blocks.0.0.skip_connection", WIDTH, WIDTH, 1)
    found |= conv("output_blocks.2.2.conv", WIDTH, WIDTH)
    return found | norm("out.0") | conv("out.2", 4, WIDTH)


MODELS = {"flux": flux, "sdxl": sdxl}


def tensors(model: str, prefix: str = "") -> dict[str, Any]:
    random = np.random.default_rng(11)
    return {
        prefix + name: (random.standard_normal(s) / 8).astype(np.float16) for name, s in MODELS[model]().items()
    }


def place(tmp_path: Path, model: str, container: str) -> Path:
    """The model as a file of ComfyUI's, or as the component of a folder of diffusers."""
    if container in ("bare", "comfy"):
        path = tmp_path / "in.safetensors"
        save_file(tensors(model, "model.diffusion_model." if container == "comfy" else ""), path)
        return path
    part = tmp_path / "in"
    part.mkdir()
    variant = ".fp16" if container == "variant" else ""
    save_file(tensors(model), part / f"diffusion_pytorch_model{variant}.safetensors", metadata={"format": "pt"})
    (part / "config.json").write_text(json.dumps({"_class_name": "X", "_diffusers_version": "0.35.0"}))
    return part


def weights(path: Path) -> dict[str, Any]:
    return load_file(next(path.rglob("*.safetensors")) if path.is_dir() else path)


RUNS: dict[str, tuple[str, dict[str, Any], float]] = {
    "prune": ("prune", {"sparsity": 0.3}, 0.3),
    "prune over all": ("prune", {"sparsity": 0.3, "scope": "global", "store": "bitmask"}, 0.35),
    "2:4": ("prune", {"pattern": "2:4", "include": [r"re:.*attn.*\.weight"]}, 0.6),
    "8 bits": ("quantize", {"bits": 8}, 0.02),
    "4 bits": ("quantize", {"bits": 4}, 0.2),
    "fp8": ("quantize", {"scheme": "fp8"}, 0.06),
    "nf4": ("quantize", {"scheme": "nf4"}, 0.2),
    "nvfp4": ("quantize", {"scheme": "nvfp4"}, 0.2),
    "archive": ("quantize", {"bits": 4, "store": "archive"}, 0.2),
    "budget": ("quantize", {"target_ratio": 1.3}, 0.2),
    "low rank": ("distill", {"method": "low-rank", "ratio": 0.9}, 0.9),
}


@pytest.mark.parametrize("container", ["bare", "comfy", "component", "variant"])
@pytest.mark.parametrize("model", MODELS)
def test_every_verb(tmp_path: Path, model: str, container: str) -> None:
    source = place(tmp_path, model, container)
    before = weights(source)
    assert len(compressor.inspect(source).rows) == len(before)
    for number, (verb, options, most) in enumerate(RUNS.values()):
        if container in ("comfy", "variant") and number % 3:  # names alone differ there
            continue
        out, back = tmp_path / f"o{number}{source.suffix}", tmp_path / f"r{number}{source.suffix}"
        report = getattr(compressor, verb)(source, out, **options)
        treated = {job.spec.name for job in report.plan.jobs if job.steps}
        assert treated
        compressor.restore(out, back)
        after = weights(back)
        assert {name: array.shape for name, array in after.items()} == {n: a.shape for n, a in before.items()}
        for name, array in before.items():
            if name not in treated:
                np.testing.assert_array_equal(after[name], array)
            wide = array.astype(np.float64)
            lost = np.linalg.norm(after[name] - wide) / max(np.linalg.norm(wide), 1e-12)
            assert lost <= (most if name in treated else 0), (options, name, lost)
        assert compressor.compare(source, out).total.error <= most


@pytest.mark.parametrize("model", MODELS)
def test_a_student_and_its_teacher(tmp_path: Path, model: str) -> None:
    source, pruned = place(tmp_path, model, "comfy"), tmp_path / "p.safetensors"
    compressor.prune(source, pruned, sparsity=0.6)
    compressor.distill(pruned, tmp_path / "d.safetensors", teacher=source, method="blend", alpha=0.5)
    assert (
        compressor.compare(source, tmp_path / "d.safetensors").total.error
        < compressor.compare(source, pruned).total.error
    )


def test_a_pipeline_of_several_components_in_a_variant(tmp_path: Path) -> None:
    root = tmp_path / "in"
    parts = {"transformer": "flux", "unet": "sdxl", "text_encoder": "flux"}
    for name, model in parts.items():
        (root / name).mkdir(parents=True)
        file = "model.fp16.safetensors" if name == "text_encoder" else "diffusion_pytorch_model.fp16.safetensors"
        save_file(tensors(model), root / name / file, metadata={"format": "pt"})
        (root / name / "config.json").write_text(json.dumps({"_class_name": "X"}))
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text("{}")
    index = {"_class_name": "P", **{name: ["diffusers", "X"] for name in (*parts, "scheduler")}}
    (root / "model_index.json").write_text(json.dumps(index))
    for name in parts:
        out = tmp_path / name
        compressor.quantize(root, out, bits=8, component=name)
        written = {p.relative_to(out) for p in out.rglob("*")}
        assert written == {*(p.relative_to(root) for p in root.rglob("*")), Path("README.md")}
        for path in root.rglob("*"):
            same = path.is_dir() or (out / path.relative_to(root)).read_bytes() == path.read_bytes()
            assert same == (path.is_dir() or path.parent.name != name)
    with pytest.raises(compressor.InputError, match="component text_encoder, transformer, unet"):
        compressor.quantize(root, tmp_path / "o", bits=8)
