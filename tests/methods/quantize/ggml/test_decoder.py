"""What ggml's blocks stand for: the package `gguf`, bit for bit, and for what it has not, a loop over the bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.gguf_files import gguf_package

from compressor.core import kernels
from compressor.core.errors import InputError, UsageError
from compressor.core.ggml_types import BY_NAME
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.quantize.ggml.decoder import DECODE, GgmlBlocks
from compressor.methods.quantize.ggml.grids import grid, signs

Array = np.ndarray[Any, Any]
built = pytest.mark.skipif(kernels.library() is None, reason="the kernels were not built: no C compiler was found")


def random_blocks(name: str, count: int = 500, seed: int = 1) -> Array:
    """Any bytes at all."""
    return np.random.default_rng(seed).integers(0, 256, (count, BY_NAME[name].nbytes), np.uint8)


def decoded(name: str, raw: Array) -> Array:
    out = np.empty((len(raw), BY_NAME[name].block), np.float32)
    with np.errstate(all="ignore"):
        DECODE[name](raw, out)
    return out


@built
@pytest.mark.parametrize("name", kernels.GGML_TYPES)
def test_kernels_and_numpy_read_the_same(name: str) -> None:
    raw = random_blocks(name.upper())
    out = np.empty((len(raw), BY_NAME[name.upper()].block), np.float32)
    expected = decoded(name.upper(), raw)
    finite = kernels.ggml_numbers(name, raw, out)
    assert finite == np.isfinite(expected).all()
    numbers = np.isfinite(expected)
    assert np.array_equal(out[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.array_equal(out[~numbers], expected[~numbers], equal_nan=True)


@built
@pytest.mark.parametrize("name", kernels.GGML_TYPES)
def test_kernels_see_each_block_that_is_no_number(name: str) -> None:
    raw = random_blocks(name.upper(), 3000)
    expected = decoded(name.upper(), raw)
    out = np.empty((1, expected.shape[1]), np.float32)
    found = [kernels.ggml_numbers(name, raw[n : n + 1], out) for n in range(len(raw))]
    assert np.array_equal(found, np.isfinite(expected).all(axis=1))


def test_every_type_of_blocks_is_decoded() -> None:
    assert set(DECODE) == {one.name for one in BY_NAME.values() if not one.dtype}


@pytest.mark.parametrize("name", [name for name in DECODE if name not in ("Q8_1", "Q8_K", "Q1_0", "Q2_0")])
def test_bit_for_bit_as_the_package(name: str) -> None:
    gguf = gguf_package()
    raw = random_blocks(name)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    assert np.array_equal(decoded(name, raw).view(np.uint32), expected.view(np.uint32))


def half(raw: Array, at: int) -> float:
    return float(raw[at : at + 2].view("<f2")[0])


def test_what_the_package_does_not_decode() -> None:
    for raw in random_blocks("Q8_1", 20):
        expected = np.float32(half(raw, 0)) * raw[4:].view(np.int8).astype(np.float32)
        assert np.array_equal(decoded("Q8_1", raw[None])[0], expected, equal_nan=True)
    for raw in random_blocks("Q8_K", 20):
        with np.errstate(all="ignore"):
            expected = raw[:4].view("<f4") * raw[4:260].view(np.int8).astype(np.float32)
        assert np.array_equal(decoded("Q8_K", raw[None])[0], expected, equal_nan=True)
    for raw in random_blocks("Q1_0", 20):
        d = half(raw, 0)
        expected = np.array([d if raw[2 + j // 8] >> j % 8 & 1 else -d for j in range(128)], np.float32)
        assert np.array_equal(decoded("Q1_0", raw[None])[0], expected, equal_nan=True)
    for raw in random_blocks("Q2_0", 20):
        d = np.float32(half(raw, 0))
        expected = np.array([d * (int(raw[2 + j // 4] >> 2 * (j % 4) & 3) - 1) for j in range(64)], np.float32)
        assert np.array_equal(decoded("Q2_0", raw[None])[0], expected, equal_nan=True)


def test_grids_are_sets_in_ascending_order() -> None:
    for name, entries in (("IQ1_S", 2048), ("IQ2_XXS", 256), ("IQ2_XS", 512), ("IQ2_S", 1024)):
        found = grid(name)
        assert found.shape == (entries, 8)
        assert len(np.unique(found, axis=0)) == entries
    assert grid("IQ3_XXS").shape == (256, 4)
    assert grid("IQ3_S").shape == (512, 4)
    assert (signs().prod(axis=1) == 1).all()
    assert not grid("IQ3_S").flags.writeable


def test_a_tensor_is_decoded_by_any_rows() -> None:
    decoder = GgmlBlocks("Q4_K")
    spec = TensorSpec("w", "F32", (700, 512))
    (part,) = decoder.parts(spec)
    assert (part.suffix, part.dtype, part.shape) == ("", "U8", (700, 288))
    raw = random_blocks("Q4_K", 1400)
    raw[:, 1] &= 0x3B  # finite float16
    raw[:, 3] &= 0x3B
    whole = decoded("Q4_K", raw).reshape(700, 512)
    for start, stop in ((0, 700), (3, 4), (500, 700)):
        out = np.empty((stop - start, 512), np.float32)
        decoder.decode({"": raw.reshape(700, 288)[start:stop]}, spec, out, start, Workspace())
        assert np.array_equal(out, whole[start:stop])


@pytest.mark.parametrize("name", DECODE)
def test_a_scale_that_is_no_number_is_refused(name: str) -> None:
    nbytes = BY_NAME[name].nbytes
    raw = np.full((1, nbytes), 0xFF, np.uint8)
    spec = TensorSpec("w", "F32", (1, BY_NAME[name].block))
    if name == "NVFP4":  # no byte of its scales is read as NaN
        return
    with pytest.raises(InputError, match=f"a scale of its {name} blocks is NaN or infinite") as caught:
        GgmlBlocks(name).decode({"": raw}, spec, np.empty((1, BY_NAME[name].block), np.float32), 0, Workspace())
    assert caught.value.tensor == "w"


def test_rows_that_are_no_blocks() -> None:
    with pytest.raises(UsageError, match="no whole blocks of 32 weights"):
        GgmlBlocks("Q8_0").parts(TensorSpec("w", "F32", (4, 33)))
