"""Rounding by the layer's inputs: the paper's algorithm, less error of the outputs, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file
from support.laws import numbers, run, same_bits, store
from support.layer_inputs import correlated, lost, weights

import compressor
from compressor.calibration.statistics import write_statistics
from compressor.core.errors import InputError, UsageError
from compressor.core.layer_inputs import Layer
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Method
from compressor.methods.quantize.int import Int
from compressor.methods.quantize.mxfp4 import Mxfp4
from compressor.methods.quantize.mxfp8 import Mxfp8
from compressor.methods.quantize.nf4 import Nf4
from compressor.methods.quantize.nvfp4 import Nvfp4
from compressor.methods.quantize.uniform import Uniform

Array = npt.NDArray[Any]


FLOATS = [Nvfp4, Mxfp4, Mxfp8, Nf4, partial(Nf4, double_quant=True)]
NAMES = ["nvfp4", "mxfp4", "mxfp8", "nf4", "nf4 double"]


def made(
    values: Array, layer: Layer, dtype: str = "F32", *, scheme: Callable[..., Method] = Int, **options: Any
) -> Array:
    spec = TensorSpec("w", dtype, values.shape)
    return run(scheme(**options), spec, values, inputs=layer).restored


def plain(values: Array, layer: Layer, bits: int, size: int, symmetric: bool, act_order: bool) -> Array:
    """The paper's algorithm as it stands, by the Cholesky factor of the inverse; scales as searched where errors
    count by what they cost in the end."""
    rows, columns = values.shape
    assert layer.gram is not None
    gram = layer.gram + 0.01 * np.mean(np.diagonal(layer.gram)) * np.eye(columns)
    order = np.argsort(-np.diagonal(layer.gram), kind="stable") if act_order else np.arange(columns)
    upper = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    costs = np.empty(columns)
    costs[order] = np.square(1 / np.diagonal(upper))
    work = values[:, order].astype(np.float64)
    rounded = np.zeros_like(work)
    half = 2 ** (bits - 1)
    spec = TensorSpec("w", "F32", (rows, size))
    found: dict[int, tuple[Array, Array]] = {}
    for column in range(columns):
        group = int(order[column]) // size
        if group not in found:
            taken = values[:, group * size :][:, :size] if act_order else work[:, column : column + size]
            searched = Int(bits=bits, symmetric=symmetric, granularity="channel", layout="plain", informed=True)
            inputs = Layer(1, np.zeros(size), costs[group * size :][:size])
            parts = run(searched, spec, taken.astype(np.float32), inputs=inputs).parts
            assert parts is not None
            zero = np.zeros(rows) if symmetric else parts[".zero_point"][:, 0].astype(np.float64) - half
            found[group] = parts[".scale"][:, 0].astype(np.float64), zero
        scale, zero = found[group]
        code = np.clip(np.rint(work[:, column] / scale + zero), -half, half - 1)
        rounded[:, column] = (code - zero) * scale
        apart = (work[:, column] - rounded[:, column]) / upper[column, column]
        work[:, column:] -= np.outer(apart, upper[column, column:])
    back = np.empty_like(rounded)
    back[:, order] = rounded
    return back


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "columns", "size"), [(3, 96, 16), (4, 256, 128), (8, 160, 160), (4, 520, 260)])
def test_it_is_the_papers_algorithm(bits: int, columns: int, size: int, symmetric: bool, act_order: bool) -> None:
    values, layer = weights(24, columns), correlated(columns)
    options = {"symmetric": symmetric, "act_order": act_order, "group_size": size, "method": "gptq"}
    found = made(values, layer, bits=bits, **options)
    wanted = plain(values, layer, bits, size, symmetric, act_order)
    # a tie that falls the other way moves a code, and what comes after it: in one row of many
    same = np.isclose(found, wanted, rtol=1e-5, atol=1e-9).all(axis=1)
    assert same.mean() > 0.9
    assert lost(values, found, layer) == pytest.approx(lost(values, wanted, layer), rel=0.02)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (4, True), (8, True)])
def test_outputs_lose_less_than_by_the_search(bits: int, symmetric: bool, act_order: bool) -> None:
    values, layer = weights(40, 256), correlated(256)
    options: dict[str, Any] = {"bits": bits, "symmetric": symmetric, "group_size": 64}
    searched = lost(values, made(values, layer, **options), layer)
    found = lost(values, made(values, layer, **options, method="gptq", act_order=act_order), layer)
    assert found < 0.75 * searched


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("scheme", FLOATS, ids=NAMES)
def test_outputs_of_small_floats_lose_less_than_by_the_search(scheme: Any, act_order: bool) -> None:
    values, layer = weights(40, 256), correlated(256)
    searched = lost(values, made(values, layer, scheme=scheme), layer)
    found = made(values, layer, scheme=scheme, method="gptq", act_order=act_order)
    assert lost(values, found, layer) < 0.75 * searched


@pytest.mark.parametrize("scheme", FLOATS, ids=NAMES)
def test_without_correlation_small_floats_are_those_of_the_search(scheme: Any) -> None:
    values, size = weights(20, 128), np.linspace(0, 3, 128)
    layer = Layer(9, np.zeros(128), size, np.diag(size))
    for act_order in (False, True):
        found = made(values, layer, scheme=scheme, method="gptq", act_order=act_order)
        assert same_bits(found, made(values, layer, scheme=scheme))


@pytest.mark.parametrize("scheme", FLOATS, ids=NAMES)
def test_pruned_weights_of_small_floats_stay_zero(scheme: Any) -> None:
    values = weights(30, 128)
    values[np.random.default_rng(0).random(values.shape) < 0.5] = 0
    found = made(values, correlated(128), scheme=scheme, method="gptq")
    assert not found[values == 0].any()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("rounding", ["rate", "nearest"])
@pytest.mark.parametrize("bits", [2.0, 4.0, 9.0])
def test_outputs_of_an_even_step_lose_less_in_as_many_bits(bits: float, rounding: Any, act_order: bool) -> None:
    values, layer = weights(160, 256), correlated(256)
    spec = TensorSpec("w", "F32", values.shape)
    plain = run(Uniform(bits=bits, rounding=rounding, informed=True), spec, values, inputs=layer)
    method = Uniform(bits=bits, rounding=rounding, method="gptq", act_order=act_order)
    found = run(method, spec, values, inputs=layer)
    assert lost(values, found.restored, layer) < 0.75 * lost(values, plain.restored, layer)
    assert entropy(found.parts) < entropy(plain.parts) + 0.02


def entropy(parts: Any) -> float:
    """Bits a code, as an archive stores the planes."""
    counts = [np.unique(parts[name], return_counts=True)[1] for name in (".codes", ".high") if name in parts]
    return sum(float(-(one / one.sum() * np.log2(one / one.sum())).sum()) for one in counts)


def test_a_pruned_tensor_of_even_steps_keeps_its_zeros() -> None:
    values = weights(130, 128)
    values[np.random.default_rng(0).random(values.shape) < 0.5] = 0
    found = made(values, correlated(128), scheme=Uniform, method="gptq", bits=3.0)
    assert not found[values == 0].any()
    assert found.any()


@pytest.mark.parametrize("option", [{"step": 0.1}, {"step_rows": 2}, {"sparsity": 0.5}])
def test_an_even_step_that_gptq_goes_by_is_found(option: Any) -> None:
    with pytest.raises(UsageError, match="leave out step, step_rows and sparsity"):
        Uniform(method="gptq", **option)
    with pytest.raises(UsageError, match="damp and act_order hold for method gptq only"):
        Uniform(damp=0.1)


def test_blocks_of_nf4_end_with_a_row() -> None:
    with pytest.raises(UsageError, match="64 does not divide the row of 96") as caught:
        Nf4(method="gptq").check(TensorSpec("w", "F32", (8, 96)))
    assert "--method search" in caught.value.remedy
    with pytest.raises(UsageError, match="damp and act_order hold for method gptq only"):
        Nvfp4(act_order=True)


def test_a_row_is_rounded_alike_wherever_a_block_begins() -> None:
    values, layer = weights(140, 256), correlated(256)
    spec = TensorSpec("w", "F32", values.shape)
    method = Int(bits=4, group_size=128, method="gptq")
    whole = run(method, spec, values, inputs=layer).restored
    for size in (1, 77, 129):
        assert same_bits(run(method, spec, values, inputs=layer, size=size).restored, whole)


def test_pruned_weights_stay_zero_and_are_made_up_for() -> None:
    values, layer = weights(30, 128), correlated(128)
    values[np.random.default_rng(0).random(values.shape) < 0.5] = 0
    found = made(values, layer, bits=4, group_size=32, method="gptq")
    assert not found[values == 0].any()
    assert lost(values, found, layer) < lost(values, made(values, layer, bits=4, group_size=32), layer)


def test_without_correlation_the_codes_are_those_of_the_search() -> None:
    values = weights(20, 64)
    size = np.linspace(0.1, 3, 64)
    layer = Layer(9, np.zeros(64), size, np.diag(size))
    options: dict[str, Any] = {"bits": 4, "group_size": 16}
    costs = Layer(9, np.zeros(64), size + 0.01 * size.mean())  # with what is added to the diagonal
    for act_order in (False, True):
        found = made(values, layer, **options, method="gptq", act_order=act_order)
        assert same_bits(found, made(values, costs, **options, informed=True))


def test_inputs_that_were_never_active_do_no_harm() -> None:
    values, layer = weights(20, 64), correlated(64)
    assert layer.gram is not None
    for dead in (0, 17, 63):
        layer.gram[dead], layer.gram[:, dead], layer.square[dead] = 0, 0, 0
    found = made(values, layer, bits=4, group_size=16, method="gptq", damp=0.0)
    assert np.abs(found - values).max() < 0.2
    nothing = Layer(9, np.zeros(64), np.zeros(64), np.zeros((64, 64)))
    assert np.isfinite(made(values, nothing, bits=4, group_size=16, method="gptq")).all()


@pytest.mark.parametrize("top", [1e308, 1e-310])
def test_the_ends_of_float64(top: float) -> None:
    values = store(np.random.default_rng(1).uniform(-1, 1, (5, 64)) * top, "F64")
    found = made(values, correlated(64), "F64", bits=4, group_size=16, method="gptq")
    assert np.isfinite(found).all()
    assert np.abs(found / 4 - numbers(values, "F64") / 4).max() < top


def test_a_singular_gram_needs_damping() -> None:
    values, few = weights(20, 64), correlated(64, 10)
    assert np.isfinite(made(values, few, bits=4, group_size=16, method="gptq")).all()
    with pytest.raises(InputError, match="the gram of its inputs is singular at damp 0") as caught:
        made(
            values,
            Layer(1, np.ones(64), np.ones(64), np.ones((64, 64))),
            bits=4,
            group_size=16,
            method="gptq",
            damp=0,
        )
    assert caught.value.tensor == "w"
    assert "--damp 0.01" in caught.value.remedy


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"granularity": "tensor", "method": "gptq"}, "method gptq works on channels and groups"),
        ({"bits": 4, "layout": "mlx", "group_size": 32, "method": "gptq"}, "works with layouts pack-quantized"),
        ({"bits": 4, "layout": "gptq", "method": "gptq"}, "works with layouts pack-quantized"),
        ({"damp": 0.1}, "damp and act_order hold for method gptq only"),
        ({"act_order": True}, "damp and act_order hold for method gptq only"),
        ({"method": "gptq", "damp": -1.0}, "damp must be a number at least 0"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Int(**options)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_file({"a.weight": weights(12, 128), "b.weight": weights(12, 256)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_on_a_file(model: Path) -> None:
    stats, out = model.with_name("stats.safetensors"), model.with_name("out.safetensors")
    layers = {"a": correlated(128), "b": correlated(256)}
    write_statistics(stats, layers.items())
    options: dict[str, Any] = {"scheme": "int", "method": "gptq", "bits": 4, "scale_bits": 32, "stats": stats}
    compressor.quantize(model, out, **options)
    assert load_file(out)["a.weight_packed"].shape == (12, 16)
    compressor.restore(out, model.with_name("restored.safetensors"))
    restored, before = load_file(model.with_name("restored.safetensors")), load_file(model)
    for name, layer in layers.items():
        wanted = made(before[f"{name}.weight"], layer, bits=4, method="gptq")
        assert np.allclose(restored[f"{name}.weight"], wanted, atol=1e-2)
        assert lost(before[f"{name}.weight"], restored[f"{name}.weight"], layer) < lost(
            before[f"{name}.weight"], made(before[f"{name}.weight"], layer, bits=4), layer
        )


def test_what_is_wrong_with_the_statistics_is_said(model: Path) -> None:
    stats, out = model.with_name("stats.safetensors"), model.with_name("out.safetensors")
    options: dict[str, Any] = {"scheme": "int", "method": "gptq", "bits": 4}
    with pytest.raises(UsageError, match="goes by statistics of the layers' inputs"):
        compressor.quantize(model, out, **options)
    write_statistics(stats, [("a", correlated(128))])
    with pytest.raises(InputError, match="there are no statistics of its inputs"):
        compressor.quantize(model, out, **options, stats=stats)
    write_statistics(stats, [("a", correlated(128)), ("b", correlated(64))], force=True)
    with pytest.raises(InputError, match="so 256 inputs, and its statistics 64"):
        compressor.quantize(model, out, **options, stats=stats)
    whole = correlated(256)
    write_statistics(stats, [("a", correlated(128)), ("b", Layer(9, whole.mean, whole.square))], force=True)
    with pytest.raises(InputError, match="no gram of its inputs"):
        compressor.quantize(model, out, **options, stats=stats)
    assert not out.exists()
