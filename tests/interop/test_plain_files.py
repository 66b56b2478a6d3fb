"""What is no Hugging Face folder: `.npy`, `.npz` and `.safetensors` in NumPy, torch and MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import compressor

pytestmark = pytest.mark.interop

FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def content(dtype: str) -> dict[str, Any]:
    """Two matrices and what lies beside them."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((48, 256)) * 0.02).astype(FLOATS[dtype])
    return {
        "a.weight": weights,
        "b.weight": np.ascontiguousarray(weights[:7, :33]),
        "a.bias": weights[0].copy(),
        "steps": np.arange(5, dtype=np.int64),
        "scalar": np.array(1.5, FLOATS[dtype]),
    }


def same(found: Any, wanted: Any) -> bool:
    found, wanted = np.asarray(found), np.asarray(wanted)
    return (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numpy_loads_a_matrix(tmp_path: Path, dtype: Any) -> None:
    matrix = np.random.default_rng(1).standard_normal((64, 256)).astype(dtype)
    np.save(tmp_path / "in.npy", matrix)
    compressor.prune(tmp_path / "in.npy", tmp_path / "pruned.npy", method="threshold", threshold=0.5)
    pruned = np.load(tmp_path / "pruned.npy", allow_pickle=False)
    assert same(pruned, np.where(np.abs(matrix) < 0.5, 0, matrix).astype(dtype))
    compressor.quantize(tmp_path / "in.npy", tmp_path / "dense.npy", bits=4)
    dense = np.load(tmp_path / "dense.npy", allow_pickle=False)
    assert (dense.dtype, dense.shape) == (matrix.dtype, matrix.shape)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_numpy_loads_codes_and_scales(tmp_path: Path, symmetric: bool, granularity: str) -> None:
    """And (code − zero point) · scale is what the same request stores as numbers."""
    matrix = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    np.save(tmp_path / "in.npy", matrix)
    request = {"bits": 6, "symmetric": symmetric, "granularity": granularity}
    compressor.quantize(tmp_path / "in.npy", tmp_path / "codes.npz", store="codes", **request)
    wide = {"scale_bits": 32}  # as NumPy's archives have them
    compressor.quantize(tmp_path / "in.npy", tmp_path / "dense.npy", **request, **wide)
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as archive:
        codes, scale = archive["codes"].astype(np.float32), archive["scale"]
        zero = archive["zero_point"].astype(np.float32) if not symmetric else np.zeros_like(scale)
    assert codes.shape == matrix.shape
    scale, zero = (np.atleast_2d(part).repeat(256 // np.atleast_2d(part).shape[1], 1) for part in (scale, zero))
    assert same((codes - zero) * scale, np.load(tmp_path / "dense.npy"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "request_", [{"bits": 4, "granularity": "channel"}, {"bits": 8}, {"bits": 3, "granularity": "tensor"}]
)
def test_torch_and_numpy_load_safetensors(tmp_path: Path, dtype: str, request_: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
    import safetensors.torch

    safetensors.numpy.save_file(content(dtype), tmp_path / "in.safetensors")
    compressor.quantize(tmp_path / "in.safetensors", tmp_path / "packed.safetensors", **request_)
    compressor.restore(tmp_path / "packed.safetensors", tmp_path / "dense.safetensors")
    for name in ("packed.safetensors", "dense.safetensors"):
        by_numpy = safetensors.numpy.load_file(tmp_path / name)
        by_torch = safetensors.torch.load_file(tmp_path / name)
        assert by_numpy.keys() == by_torch.keys()
        for key, tensor in by_torch.items():
            assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == by_numpy[key].tobytes()
            assert tuple(tensor.shape) == by_numpy[key].shape
    source, restored = content(dtype), safetensors.numpy.load_file(tmp_path / "dense.safetensors")
    assert {n: (a.dtype, a.shape) for n, a in restored.items()} == {
        n: (a.dtype, a.shape) for n, a in source.items()
    }
    assert all(same(restored[name], source[name]) for name in ("a.bias", "steps", "scalar"))


@pytest.mark.parametrize("dtype", FLOATS)
def test_mlx_loads_safetensors(tmp_path: Path, dtype: str) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs mlx[cpu]", exc_type=ImportError)
    safetensors.numpy.save_file(content(dtype), tmp_path / "in.safetensors")
    compressor.quantize(tmp_path / "in.safetensors", tmp_path / "packed.safetensors", bits=4, granularity="channel")
    compressor.restore(tmp_path / "packed.safetensors", tmp_path / "dense.safetensors")
    for name in ("packed.safetensors", "dense.safetensors"):
        by_mlx = mx.load(str(tmp_path / name))
        by_numpy = safetensors.numpy.load_file(tmp_path / name)
        assert by_mlx.keys() == by_numpy.keys()
        for key, array in by_mlx.items():
            wanted = by_numpy[key]
            assert tuple(array.shape) == wanted.shape
            if wanted.dtype == ml_dtypes.bfloat16:  # NumPy cannot take MLX's
                assert array.dtype == mx.bfloat16
                array, wanted = array.view(mx.uint16), wanted.view(np.uint16)
            assert same(array, wanted)


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (4, 128), (8, 64)])
def test_mlx_computes_with_our_words(tmp_path: Path, bits: int, size: int) -> None:
    """A packed row is a row of MLX's affine layout, with the bias −2^(b−1) · scale."""
    mx = pytest.importorskip("mlx.core", reason="needs mlx[cpu]", exc_type=ImportError)
    safetensors.numpy.save_file({"a.weight": content("F32")["a.weight"]}, tmp_path / "in.safetensors")
    compressor.quantize(tmp_path / "in.safetensors", tmp_path / "packed.safetensors", bits=bits, group_size=size)
    compressor.restore(tmp_path / "packed.safetensors", tmp_path / "dense.safetensors")
    packed = mx.load(str(tmp_path / "packed.safetensors"))
    words, scale = packed["a.weight_packed"].view(mx.uint32), packed["a.weight_scale"].astype(mx.float32)
    found = mx.dequantize(words, scale, -float(1 << (bits - 1)) * scale, group_size=size, bits=bits)
    wanted = safetensors.numpy.load_file(tmp_path / "dense.safetensors")["a.weight"]
    np.testing.assert_allclose(np.array(found), wanted, rtol=1e-5, atol=1e-7)
