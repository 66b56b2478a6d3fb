"""A small valid model in every way of storing one: where the fuzz targets begin.

What this tool writes it writes here too; what it only reads is laid out by hand, by each format's description.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from compressor import api
from support import archives

BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "C64": 64,
    **{f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its `data` need not fit its dtype and shape."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def filled(self) -> Stored:
        """With as many bytes as dtype and shape say, up to a bound beyond which the claim stays one."""
        wanted = min(prod(self.shape) * BITS.get(self.dtype, 8) // 8, 1 << 20)
        return Stored(self.dtype, self.shape, (self.data * (wanted // max(len(self.data), 1) + 1))[:wanted])


@dataclass(frozen=True)
class Model:
    """A file of tensors, and what stands beside it in a folder; without `texts` it is a file alone."""

    tensors: Mapping[str, Stored]
    texts: Mapping[str, Any] = field(default_factory=dict)  # JSON by the file's name
    metadata: Mapping[str, str] = field(default_factory=dict)

    def file(self) -> bytes:
        """The bytes of the safetensors file."""
        header: dict[str, Any] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        data = b""
        for name, one in self.tensors.items():
            place = [len(data), len(data) + len(one.data)]
            header[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": place}
            data += one.data
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    def write(self, place: Path) -> Path:
        """A folder, or a file where nothing stands beside it."""
        if not self.texts:
            path = place / "model.safetensors"
            path.write_bytes(self.file())
            return path
        path = place / "model"
        path.mkdir()
        (path / "model.safetensors").write_bytes(self.file())
        for name, content in self.texts.items():
            (path / name).write_text(json.dumps(content))
        return path


def read_model(path: Path) -> Model:
    """What was written to a path."""
    file = path / "model.safetensors" if path.is_dir() else path
    tensors = {name: Stored(*found) for name, found in archives.read(file).items()}
    texts = {one.name: json.loads(one.read_text()) for one in path.glob("*.json")} if path.is_dir() else {}
    return Model(tensors, texts, archives.metadata_of(file))


def _random(*shape: int) -> np.random.Generator:
    """The same numbers for a shape in every run, whatever was made before."""
    return np.random.default_rng([8, *shape])


def array(dtype: str, values: Any) -> Stored:
    """An array in the dtype of its name, or of the bytes that it has."""
    values = np.asarray(values)
    return Stored(dtype, values.shape, values.tobytes())


def bf16(*shape: int) -> Stored:
    return array("BF16", _random(*shape).standard_normal(shape).astype(ml_dtypes.bfloat16))


def f32(*shape: int) -> Stored:
    return array("F32", _random(*shape).random(shape).astype(np.float32) + np.float32(0.5))


def f16(*shape: int) -> Stored:
    return array("F16", _random(*shape).random(shape).astype(np.float16))


def e4m3(*shape: int) -> Stored:
    return array("F8_E4M3", _random(*shape).standard_normal(shape).astype(ml_dtypes.float8_e4m3fn))


def integers(dtype: str, *shape: int, high: int = 4) -> Stored:
    kind = {"I": "<i", "U": "<u"}[dtype[0]] + str(BITS[dtype] // 8)
    return array(dtype, _random(*shape).integers(0, high, shape).astype(kind))


# ---- models that nobody compressed ---------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@cache
def llama() -> Model:
    """One layer of a language model, in bfloat16."""
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (64, 32),
        "mlp.up_proj": (64, 32),
        "mlp.down_proj": (32, 64),
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
    }
    tensors = {f"model.layers.0.{name}.weight": bf16(*shape) for name, shape in shapes.items()}
    tensors |= {"model.embed_tokens.weight": bf16(16, 32), "lm_head.weight": bf16(16, 32)}
    return Model(tensors | {"model.norm.weight": bf16(32)}, {"config.json": LLAMA})


@cache
def mlp() -> Model:
    """Two layers in float32, and what else files hold."""
    return Model(
        {
            "0.weight": f32(24, 32),
            "0.bias": f32(24),
            "1.weight": f32(8, 24),
            "ids": integers("I64", 3),
            "mask": array("BOOL", np.array([True, False])),
            "scalar": array("F32", np.float32(2)),
        }
    )


# ---- written by this tool ------------------------------------------------------------------------------------

WRITTEN: dict[str, tuple[Callable[[], Model], str, dict[str, Any]]] = {
    "pack-quantized": (llama, "quantize", {"bits": 4, "group_size": 32}),
    "pack-quantized asymmetric": (llama, "quantize", {"bits": 4, "group_size": 32, "symmetric": False}),
    "int-quantized": (llama, "quantize", {"bits": 8, "layout": "int-quantized"}),
    "float-quantized": (llama, "quantize", {"scheme": "fp8"}),
    "float-quantized tensor": (llama, "quantize", {"scheme": "fp8", "granularity": "tensor"}),
    "float-quantized block": (llama, "quantize", {"scheme": "fp8", "granularity": "block"}),
    "nvfp4": (llama, "quantize", {"scheme": "nvfp4"}),
    "mxfp4 packed": (llama, "quantize", {"scheme": "mxfp4"}),
    "mxfp8": (llama, "quantize", {"scheme": "mxfp8"}),
    "bitsandbytes nf4": (llama, "quantize", {"scheme": "nf4", "double_quant": True}),
    "mlx": (llama, "quantize", {"bits": 4, "group_size": 32, "layout": "mlx"}),
    "gptq": (llama, "quantize", {"bits": 4, "group_size": 32, "layout": "gptq"}),
    "own int": (mlp, "quantize", {"bits": 3, "granularity": "channel", "layout": "compressor"}),
    "own group": (mlp, "quantize", {"bits": 4, "group_size": 8, "symmetric": False, "layout": "compressor"}),
    "own codebook": (mlp, "quantize", {"scheme": "codebook", "entries": 16, "rows": 8}),
    "own ternary": (mlp, "quantize", {"scheme": "ternary"}),
    "own binary": (mlp, "quantize", {"scheme": "binary"}),
    "own factor": (mlp, "quantize", {"scheme": "factor", "factor": 100}),
    "own step": (mlp, "quantize", {"scheme": "step", "bits": 8}),
    "own uniform": (mlp, "quantize", {"scheme": "uniform", "bits": 4}),
    "own nf4": (mlp, "quantize", {"scheme": "nf4", "group_size": 32}),
    "own fp8": (mlp, "quantize", {"scheme": "fp8", "element": "e5m2"}),
    "own csr": (mlp, "prune", {"sparsity": 0.9, "store": "csr"}),
    "own bitmask": (mlp, "prune", {"sparsity": 0.9, "store": "bitmask"}),
    "own nm": (mlp, "prune", {"pattern": "2:4", "method": "nm", "store": "nm"}),
    "own csr codes": (mlp, "quantize", {"bits": 4, "granularity": "channel", "store": "csr"}),
    "own low-rank": (mlp, "distill", {"method": "low-rank", "rank": 2}),
}


@cache
def written(kind: str) -> Model:
    """A model as this tool stores it."""
    make, verb, options = WRITTEN[kind]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = make().write(place)
        out = place / ("out" if source.is_dir() else "out.safetensors")
        getattr(api, verb)(source, out, workers=1, **options)
        return read_model(out)


# ---- written by others ---------------------------------------------------------------------------------------


def _declaring(method: str, tensors: Mapping[str, Stored], **said: Any) -> Model:
    declared = {"quant_method": method, **said}
    dense = {"norm.weight": bf16(32)}
    return Model({**tensors, **dense}, {"config.json": {"model_type": "llama", "quantization_config": declared}})


def _gptq_tensors() -> dict[str, Stored]:
    return {
        "a.qweight": integers("I32", 4, 64, high=2**31),
        "a.qzeros": integers("I32", 2, 8, high=2**31),
        "a.scales": f16(2, 64),
    }


def _awq() -> Model:
    tensors = {
        "a.qweight": integers("I32", 32, 2, high=2**31),
        "a.qzeros": integers("I32", 2, 2, high=2**31),
        "a.scales": f16(2, 16),
    }
    return _declaring("awq", tensors, bits=4, group_size=16, version="gemm")


def _gptq_sorted() -> Model:
    index = array("I32", np.arange(32, dtype="<i4") % 2)
    return _declaring("gptq", {**_gptq_tensors(), "a.g_idx": index}, bits=4, group_size=16, desc_act=True)


def _auto_round() -> Model:
    packing = "auto_round:auto_gptq"
    return _declaring("auto-round", _gptq_tensors(), bits=4, group_size=16, packing_format=packing, sym=False)


def _sidecar() -> Model:
    said = {"bits": 4, "group_size": 16, "desc_act": False, "sym": False}
    return Model(_gptq_tensors(), {"config.json": {"model_type": "llama"}, "quantize_config.json": said})


def _fp8_blocks() -> Model:
    tensors = {"a.weight": e4m3(130, 140), "a.weight_scale_inv": f32(2, 2), "a.activation_scale": f32(1)}
    return _declaring("fp8", tensors, weight_block_size=[128, 128])


def _fp8_tensor() -> Model:
    return _declaring("fp8", {"a.weight": e4m3(8, 16), "a.weight_scale_inv": f32()})


def _modelopt() -> Model:
    tensors = {
        "a.weight": integers("U8", 4, 16, high=256),
        "a.weight_scale": e4m3(4, 2),
        "a.weight_scale_2": f32(),
        "b.weight": e4m3(4, 8),
        "b.weight_scale": f32(),
        "b.input_scale": f32(),
    }
    return _declaring("modelopt", tensors, quant_algo="MIXED_PRECISION", kv_cache_quant_algo=None)


def _modelopt_awq() -> Model:
    tensors = {
        "a.weight": integers("U8", 2, 16, high=256),
        "a.weight_scale": f32(4, 2),
        "a.pre_quant_scale": bf16(16),
        "b.weight": integers("U8", 4, 16, high=256),
        "b.weight_scale": e4m3(4, 2),
        "b.weight_scale_2": f32(),
        "b.pre_quant_scale": bf16(32),
    }
    return _declaring("modelopt", tensors, quant_algo="MIXED_PRECISION")


def _modelopt_rest() -> Model:
    tensors = {
        "a.weight": integers("U8", 2, 16, high=256),
        "a.weight_scale": f32(4, 2),
        "a.weight_scale_2": f32(),
        "b.weight": integers("U8", 4, 16, high=256),
        "b.weight_scale": integers("U8", 4, 1, high=256),
        "c.weight": e4m3(4, 32),
        "c.weight_scale": integers("U8", 4, 1, high=256),
        "d.weight": e4m3(4, 8),
        "d.weight_scale": f32(4),
        "e.weight": integers("I8", 4, 8),
        "e.weight_scale": f32(4),
        "f.weight": e4m3(130, 8),
        "f.weight_scale": f32(2, 1, 1, 1),
    }
    return _declaring("modelopt", tensors, quant_algo="MIXED_PRECISION")


def _activation_order() -> Model:
    said = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 16}
    tensors = {
        "a.weight_packed": integers("I32", 8, 4, high=2**31),
        "a.weight_scale": bf16(8, 2),
        "a.weight_zero_point": integers("I32", 1, 2, high=2**31),
        "a.weight_shape": array("I64", np.array([8, 32])),
        "a.weight_g_idx": array("I32", np.arange(32, dtype="<i4") % 2),
    }
    group = {"targets": ["Linear"], "weights": said | {"actorder": "group"}}
    return _declaring("compressed-tensors", tensors, format="pack-quantized", config_groups={"group_0": group})


def _gpt_oss() -> Model:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    blocks, scales = integers("U8", 3, 10, 2, 16, high=256), integers("U8", 3, 10, 2, high=130)
    return _declaring("mxfp4", {f"{name}_blocks": blocks, f"{name}_scales": scales})


def _mlx_floats(mode: str, words: int, groups: int) -> Model:
    said = {"bits": 8 if mode == "mxfp8" else 4, "group_size": 64 // groups, "mode": mode}
    tensors = {"a.weight": integers("U32", 8, words, high=100), "a.scales": integers("U8", 8, groups, high=130)}
    return Model(tensors, {"config.json": {"model_type": "llama", "quantization": said}})


def _bitsandbytes_8() -> Model:
    said = {"load_in_8bit": True}
    tensors = {"a.weight": integers("I8", 4, 8), "a.SCB": f32(4), "a.weight_format": integers("U8", high=1)}
    return _declaring("bitsandbytes", tensors, **said)


def _comfy() -> Model:
    text = b'{"format": "float8_e4m3fn"}'
    return Model(
        {
            "d.a.weight": e4m3(4, 8),
            "d.a.scale_weight": f32(),
            "d.a.scale_input": f32(),
            "d.b.weight": e4m3(4, 8),
            "d.b.weight_scale": f32(),
            "d.b.comfy_quant": Stored("U8", (len(text),), text),
            "d.scaled_fp8": Stored("F8_E4M3", (0,), b""),
        }
    )


def _deepseek() -> Model:
    return Model(
        {
            "a.weight": e4m3(130, 20),
            "a.scale": array("F8_E8M0", np.full((2, 1), 127, np.uint8)),
            "b.weight": integers("I8", 4, 32, high=127),
            "b.scale": array("F8_E8M0", np.full((4, 2), 127, np.uint8)),
        }
    )


def _sparse(form: str) -> Model:
    dense = np.zeros((6, 16), np.float32)
    dense.reshape(6, 4, 4)[..., :2] = _random().standard_normal((6, 4, 2)) + 3
    mask = dense != 0
    tensors = {"a.weight.bitmask": array("U8", np.packbits(mask, axis=1, bitorder="little"))}
    if form == "sparse-bitmask":
        tensors["a.weight.shape"] = array("I64", np.array(dense.shape))
        tensors["a.weight.compressed"] = array("F32", dense[mask])
        tensors["a.weight.row_offsets"] = array("I64", np.arange(6) * 8)
    else:
        tensors["a.weight.shape"] = array("I64", np.array(dense.shape)[:, None])
        tensors["a.weight.compressed"] = array("F32", dense[mask].reshape(6, 8))
    said = {"format": form, "targets": ["Linear"], "ignore": [], "sparsity_structure": "2:4"}
    return Model(tensors, {"config.json": {"model_type": "llama", "sparsity_config": said}})


FOREIGN: dict[str, Callable[[], Model]] = {
    "awq": _awq,
    "gptq sorted": _gptq_sorted,
    "auto-round": _auto_round,
    "quantize_config.json": _sidecar,
    "fp8 of blocks": _fp8_blocks,
    "fp8": _fp8_tensor,
    "modelopt": _modelopt,
    "modelopt awq": _modelopt_awq,
    "modelopt rest": _modelopt_rest,
    "activation order": _activation_order,
    "gpt-oss": _gpt_oss,
    "mlx mxfp4": lambda: _mlx_floats("mxfp4", 8, 2),
    "mlx mxfp8": lambda: _mlx_floats("mxfp8", 16, 2),
    "mlx nvfp4": lambda: _mlx_floats("nvfp4", 8, 4),
    "bitsandbytes 8": _bitsandbytes_8,
    "comfy": _comfy,
    "deepseek": _deepseek,
    "sparse-bitmask": lambda: _sparse("sparse-bitmask"),
    "sparse-24-bitmask": lambda: _sparse("sparse-24-bitmask"),
}


def model_of(kind: str) -> Model:
    """The valid model of a kind: of `WRITTEN`, `FOREIGN`, or dense."""
    if kind in WRITTEN:
        return written(kind)
    return FOREIGN[kind]() if kind in FOREIGN else {"llama": llama, "mlp": mlp}[kind]()


KINDS = ("llama", "mlp", *WRITTEN, *FOREIGN)
