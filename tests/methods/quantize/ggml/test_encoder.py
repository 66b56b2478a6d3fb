"""Blocks of ggml's types as they are written: the same bytes compiled and in NumPy, read as promised."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gguf_files import gguf_package

from compressor.core import kernels
from compressor.core.errors import InputError, UsageError
from compressor.core.ggml_types import BY_NAME
from compressor.core.layer_inputs import Layer
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.contract import Block
from compressor.methods.quantize.ggml.decoder import decode_blocks
from compressor.methods.quantize.ggml.encoder import ENCODERS, encode_blocks
from compressor.methods.quantize.ggml.scheme import BY_ID, GgmlScheme, importance

Array = npt.NDArray[Any]
built = pytest.mark.skipif(kernels.library() is None, reason="the kernels were not built: no C compiler was found")
SCHEMES = {name: found for name, found in BY_ID.items() if issubclass(found, GgmlScheme)}
# relative Frobenius errors of ggml's own quantizers (llama.cpp's ggml-quants.c, quantize_*() without an importance
# matrix) on `normal()`, as bench/quality/ggml_types.py measures them
GGML_ERRORS = {
    "Q4_0": 0.08578,
    "Q4_1": 0.07818,
    "Q5_0": 0.04261,
    "Q5_1": 0.03783,
    "Q8_0": 0.00534,
    "Q2_K": 0.29559,
    "Q3_K": 0.15052,
    "Q4_K": 0.07131,
    "Q5_K": 0.03611,
    "Q6_K": 0.01772,
    "IQ4_NL": 0.07601,
    "IQ4_XS": 0.07659,
    "MXFP4": 0.11489,
    "TQ1_0": 0.80664,
    "TQ2_0": 0.80664,
}


def normal(rows: int = 128, columns: int = 4096) -> Array:
    return np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)


def encoded(name: str, values: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """The blocks of a type, and what they restore."""
    kind = BY_NAME[name]
    blocks = np.full((len(values), values.shape[1] // kind.block * kind.nbytes), 0xA5, np.uint8)
    restored = np.full_like(values, np.nan)
    encode_blocks(name, values, weights, blocks, restored)
    return blocks, restored


def decoded(name: str, blocks: Array) -> Array:
    kind = BY_NAME[name]
    flat = np.ascontiguousarray(blocks).reshape(-1, kind.nbytes)
    out = np.empty((len(flat), kind.block), np.float32)
    decode_blocks(name, flat, out)
    return out.reshape(len(blocks), -1)


def error(values: Array, restored: Array, weights: Array | float = 1.0) -> float:
    wide = values.astype(np.float64)
    return float(np.sqrt((weights * (wide - restored) ** 2).sum() / (weights * wide**2).sum()))


@st.composite
def matrices(draw: st.DrawFn) -> Array:
    """Weights of all kinds and sizes, in rows of one or more blocks of 256."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 5)), 256 * draw(st.integers(1, 3)))
    values = random.standard_normal(shape)
    kind = draw(st.sampled_from(["normal", "heavy", "scales", "grid", "holes", "one sign", "constant", "outlier"]))
    if kind == "heavy":
        values = random.standard_t(1.5, shape)
    elif kind == "scales":
        values *= 10.0 ** random.integers(-44, 4, shape)
    elif kind == "grid":
        values = random.integers(-9, 10, shape) * 0.25
    elif kind == "holes":
        values[:, : draw(st.integers(1, shape[1]))] = 0
    elif kind == "one sign":
        values = np.copysign(np.abs(values) + draw(st.floats(0, 9)), draw(st.sampled_from([-1, 1])))
    elif kind == "constant":
        values[...] = draw(st.floats(-9, 9))
    elif kind == "outlier":
        values[0, draw(st.integers(0, 255))] = draw(st.sampled_from([-6e4, 6e4, 1e3]))
    return np.clip(values, -6e4, 6e4).astype(np.float32)


def weights_of(random: np.random.Generator, columns: int) -> Array:
    return np.exp(random.normal(0, 2, columns)).astype(np.float32)


@built
@pytest.mark.parametrize("name", ENCODERS)
@given(values=matrices(), weighed=st.booleans())
@settings(max_examples=40)
def test_kernels_and_numpy_write_the_same_bytes(name: str, values: Array, weighed: bool) -> None:
    weights = weights_of(np.random.default_rng(1), values.shape[1]) if weighed else None
    fast = encoded(name, values, weights)
    with mock.patch.object(kernels, "library", return_value=None), np.errstate(all="ignore"):
        slow = encoded(name, values, weights)
    assert fast[0].tobytes() == slow[0].tobytes()
    assert fast[1].tobytes() == slow[1].tobytes()


@pytest.mark.parametrize("name", ENCODERS)
@given(values=matrices())
@settings(max_examples=20)
def test_blocks_are_read_as_promised_and_finite(name: str, values: Array) -> None:
    blocks, restored = encoded(name, values)
    assert np.isfinite(restored).all()
    assert decoded(name, blocks).tobytes() == restored.tobytes()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_package_of_ggml_reads_the_same(name: str) -> None:
    gguf = gguf_package()
    values = normal(8, 512)
    blocks, restored = encoded(name, values)
    kind = gguf.GGMLQuantizationType[name]
    assert np.array_equal(gguf.quants.dequantize(blocks, kind), restored)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_row_is_the_same_wherever_it_stands(name: str) -> None:
    values = normal(7, 768)
    weights = weights_of(np.random.default_rng(2), 768)
    whole = encoded(name, values, weights)[0]
    rows = [encoded(name, values[n : n + 1].copy(), weights)[0] for n in range(7)]
    assert whole.tobytes() == np.concatenate(rows).tobytes()


@pytest.mark.parametrize(("name", "least"), [*((name, 0.0) for name in ENCODERS), ("Q4_0", 0.04), ("Q5_0", 0.04)])
def test_no_more_is_lost_than_by_ggml(name: str, least: float) -> None:
    values = normal()
    assert error(values, encoded(name, values)[1]) <= (1 - least) * GGML_ERRORS[name]


def test_two_and_three_bits_lose_much_less_than_by_ggml() -> None:
    values = normal()
    assert error(values, encoded("Q2_K", values)[1]) <= 0.88 * GGML_ERRORS["Q2_K"]
    assert error(values, encoded("Q3_K", values)[1]) <= 0.952 * GGML_ERRORS["Q3_K"]


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"])
@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_no_more_is_lost_than_by_the_package_of_ggml(name: str, kind: str) -> None:
    gguf = gguf_package()
    random = np.random.default_rng(4)
    values = random.standard_t(5, (32, 2048)).astype(np.float32) if kind == "heavy" else normal(32, 2048)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]),
                                    gguf.GGMLQuantizationType[name])  # fmt: skip
    assert error(values, encoded(name, values)[1]) <= error(values, theirs)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "Q8_0"])
def test_importance_lowers_the_error_of_what_is_important(name: str) -> None:
    values = normal(16, 1024)
    weights = weights_of(np.random.default_rng(3), 1024)
    with_, without = (error(values, encoded(name, values, given)[1], weights) for given in (weights, None))
    assert with_ < without


@pytest.mark.parametrize("name", ENCODERS)
def test_importance_of_one_everywhere_loses_as_little(name: str) -> None:
    values = normal(8, 512)
    ones = np.ones(512, np.float32)
    assert error(values, encoded(name, values, ones)[1]) <= 1.001 * error(values, encoded(name, values)[1])


def test_mean_squares_become_weights_about_one() -> None:
    found = importance(np.array([0.0, 1.0, 3.0]))
    assert found is not None
    np.testing.assert_allclose(found, [1e-6, 0.75, 2.25], rtol=1e-6)
    assert importance(np.zeros(3)) is None


# ---- schemes ---------------------------------------------------------------------------------------------


def block_of(values: Array, inputs: Layer | None = None, dtype: str = "F32") -> Block:
    return Block(values, 0, TensorSpec("blk.0.attn_q.weight", dtype, values.shape), Workspace(), {}, inputs)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(scheme: str, wrong: float) -> None:
    values = normal(2, 256)
    values[1, 77] = wrong
    with pytest.raises(InputError) as caught:
        SCHEMES[scheme]().encode(block_of(values), None, np.empty_like(values))
    assert caught.value.tensor == "blk.0.attn_q.weight"


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "ggml-mxfp4"])
def test_weights_beyond_the_scales_are_refused(scheme: str) -> None:
    values = normal(2, 256)
    values[1, 77] = 1e9
    with pytest.raises(InputError, match=r"scales of .* are float16"):
        SCHEMES[scheme]().encode(block_of(values), None, np.empty_like(values))
    BY_ID["bf16"]().encode(block_of(values), None, np.empty_like(values))  # what the message says


@pytest.mark.parametrize("name", ENCODERS)
def test_the_largest_weights_that_are_taken_are_held(name: str) -> None:
    top = min(ENCODERS[name].largest, 3e38)
    values = np.tile(np.array([top, -top, 0, top / 3], np.float32), (2, 64))
    blocks, restored = encoded(name, values)
    assert np.isfinite(decoded(name, blocks)).all()
    assert error(values / top, restored / top) < 0.7


def test_inputs_of_the_layer_are_the_importance() -> None:
    values = normal(4, 512)
    square = weights_of(np.random.default_rng(5), 512).astype(np.float64)
    inputs = Layer(3, np.zeros(512), square)
    restored = np.empty_like(values)
    SCHEMES["q4_k"](informed=True).encode(block_of(values, inputs), None, restored)
    assert np.array_equal(restored, encoded("Q4_K", values, importance(square))[1])


def test_experts_have_rows_of_their_own() -> None:
    values = normal(6, 512)
    spec = TensorSpec("blk.0.ffn_down_exps.weight", "F32", (3, 2, 512))
    restored = np.empty((3, 1024), np.float32)
    SCHEMES["q4_k"]().encode(Block(values.reshape(3, 1024), 0, spec, Workspace(), {}), None, restored)
    assert np.array_equal(restored.reshape(6, 512), encoded("Q4_K", values)[1])


FALLBACKS = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
    "tq1_0": "q4_0",
    "tq2_0": "q4_0",
}


@pytest.mark.parametrize(("scheme", "other"), FALLBACKS.items())
def test_rows_that_a_block_does_not_divide_take_what_llama_cpp_takes(scheme: str, other: str) -> None:
    spec = TensorSpec("w", "F32", (4, 96))
    nearest, why = SCHEMES[scheme]().settled(spec)
    assert nearest == BY_ID[other]()
    assert why == f"{other}, since blocks of 256 do not divide the row of 96"
    with pytest.raises(UsageError, match="blocks of 256"):
        SCHEMES[scheme]().check(spec)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_that_no_block_divides_are_float16(scheme: str) -> None:
    nearest, why = SCHEMES[scheme]().settled(TensorSpec("w", "F32", (4, 13)))
    assert nearest.id == "f16"
    assert "do not divide the row of 13" in why
