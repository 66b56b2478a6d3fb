"""A search that goes by statistics: errors count by their column's mean squared inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file
from support.laws import run, same_bits
from support.layer_inputs import weights

import compressor
from compressor.calibration.statistics import write_statistics
from compressor.core.errors import UsageError
from compressor.core.layer_inputs import Layer
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Method
from compressor.methods.quantize.int import Int
from compressor.methods.quantize.mxfp4 import Mxfp4
from compressor.methods.quantize.nf4 import Nf4
from compressor.methods.quantize.nvfp4 import Nvfp4

Array = npt.NDArray[Any]

SCHEMES: dict[str, Callable[..., Method]] = {
    "int4": partial(Int, bits=4, granularity="group", layout="compressor"),
    "int3 asymmetric": partial(Int, bits=3, symmetric=False, granularity="group", group_size=64),
    "int4 signed": partial(Int, bits=4, granularity="group", signed_scales=True),
    "int4 by channel": partial(Int, bits=4, granularity="channel"),
    "nvfp4": Nvfp4,
    "nf4": Nf4,
    "nf4 double": partial(Nf4, double_quant=True),
}
each = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def skewed(width: int) -> Layer:
    square = np.exp(2 * np.random.default_rng(7).standard_normal(width))
    square[3] = 0
    return Layer(1000, np.zeros(width), square)


def restored(scheme: Method, values: Array, layer: Layer | None) -> Array:
    return run(scheme, TensorSpec("w", "F32", values.shape), values, inputs=layer).restored


@each
def test_outputs_lose_less(scheme: Callable[..., Method]) -> None:
    values, layer = weights(48, 256), skewed(256)
    weighed, plain = (restored(scheme(informed=informed), values, layer) for informed in (True, False))

    def lost(found: Array) -> float:
        return float((np.square(found - values, dtype=np.float64) * layer.square).sum())

    assert lost(weighed) < 0.93 * lost(plain)


@each
@pytest.mark.parametrize("informed", [False, True])
def test_alike_inputs_change_nothing(scheme: Callable[..., Method], informed: bool) -> None:
    """As far as NF4's other arithmetic goes; without asking for it statistics change nothing at all."""
    values = weights(32, 256)
    alike = Layer(10, np.zeros(256), np.full(256, 3.0)) if informed else skewed(256)
    found, plain = restored(scheme(informed=informed), values, alike), restored(scheme(), values, None)
    if informed and scheme().id == "nf4":
        assert np.square(found - values).sum() == pytest.approx(np.square(plain - values).sum(), rel=1e-3)
    else:
        assert same_bits(found, plain)


def test_blocks_that_cross_rows() -> None:
    """NF4's go over the flattened tensor: each weight counts by its own column."""
    values, layer = weights(8, 96), skewed(96)
    found, plain = (restored(Nf4(informed=informed), values, layer) for informed in (True, False))
    assert (np.square(found - values) * layer.square).sum() < (np.square(plain - values) * layer.square).sum()
    odd, few = weights(3, 50), skewed(50)
    assert np.isfinite(restored(Nf4(informed=True), odd, few)).all()


@each
def test_the_same_without_kernels(scheme: Callable[..., Method], monkeypatch: pytest.MonkeyPatch) -> None:
    values, layer = weights(16, 256), skewed(256)
    compiled = restored(scheme(informed=True), values, layer)
    monkeypatch.setattr("compressor.core.kernels.library", lambda: None)
    assert same_bits(restored(scheme(informed=True), values, layer), compiled)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    path, stats = tmp_path / "in.safetensors", tmp_path / "stats.safetensors"
    save_file({"a.weight": weights(64, 256)}, path)
    write_statistics(stats, [("a", skewed(256))])
    return path, stats


def test_stats_go_with_a_search(model: tuple[Path, Path], tmp_path: Path) -> None:
    """And the record says which; a file restores without them."""
    path, stats = model
    for name, options in {"int": {"bits": 4}, "nvfp4": {"scheme": "nvfp4"}, "nf4": {"scheme": "nf4"}}.items():
        plain = compressor.quantize(path, tmp_path / f"{name}.safetensors", **options)
        weighed = compressor.quantize(path, tmp_path / f"{name}w.safetensors", stats=stats, **options)
        assert "stats" in weighed.plan.stages[0]
        assert "stats" not in plain.plan.stages[0]
        assert weighed.plan.size_after == pytest.approx(plain.plan.size_after, abs=200)  # the record is longer
        compressor.restore(tmp_path / f"{name}w.safetensors", tmp_path / f"{name}d.safetensors")


@pytest.mark.parametrize(
    "options", [{"scheme": "mxfp4"}, {"bits": 4, "method": "absmax"}, {"bits": 8, "granularity": "tensor"}]
)
def test_what_has_no_use_for_them(options: dict[str, Any], model: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no stage takes it"):
        compressor.quantize(model[0], tmp_path / "out.safetensors", stats=model[1], **options)
    assert Mxfp4().with_statistics() is None


def test_cuts_come_first(tmp_path: Path) -> None:
    """Statistics of layers that a cut makes narrower are the cut's: the search after it goes without."""
    random = np.random.default_rng(0)
    names = {"fc1": (32, 16), "fc2": (8, 32)}
    path, stats = tmp_path / "in.safetensors", tmp_path / "stats.safetensors"
    tensors = {f"{name}.weight": random.standard_normal(shape) for name, shape in names.items()}
    tensors |= {f"{name}.bias": np.zeros(shape[0]) for name, shape in names.items()}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, path)
    write_statistics(stats, [(name, skewed(shape[1])) for name, shape in names.items()])
    report = compressor.pipeline(
        path,
        tmp_path / "out.safetensors",
        stages=["prune:structure=neurons,fraction=0.5", "quantize:bits=4,group_size=8"],
        stats=stats,
    )
    assert ["stats" in stage for stage in report.plan.stages] == [True, False]
