"""The seam for methods from elsewhere: found by their name, never by what a file says, with the defaults given."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from support import archives
from support.console import compressor
from support.laws import Array, store

from compressor import api
from compressor.core.errors import InputError, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods import registry
from compressor.methods.contract import Block, PlainEncoder, PlainTransform, Skip, Survey, TensorMethod
from compressor.methods.options import option
from compressor.methods.parts import Part
from compressor.methods.registry import make_method, methods_of
from compressor.recipe.model import Recipe, Stage


@dataclass(frozen=True)
class Halves(PlainEncoder):
    """Stores halves of even-rowed tensors: the least that a method from elsewhere has to be."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "halves"

    steps: int = option(2, help="codes to a unit", low=1, high=8)

    def skip(self, spec: TensorSpec) -> Skip | None:
        return Skip("an odd number of rows") if spec.matrix[0] % 2 else None

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (Part(".halves", "I16", spec.shape),)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        np.rint(block.values * self.steps, out=restored)
        if parts is not None:
            np.copyto(parts[".halves"].reshape(restored.shape), restored, casting="unsafe")
        np.divide(restored, self.steps, out=restored)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        np.divide(parts[".halves"].reshape(out.shape), self.steps, out=out)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        return 0.5 / self.steps


METHOD = Halves


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that offers the method is installed."""
    entry = EntryPoint("halves", f"{__name__}:METHOD", "compressor.quantize")
    # a command's options are made when its module is first imported, and must not keep the plug-in's
    monkeypatch.delitem(sys.modules, "compressor.cli.quantize", raising=False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    methods_of.cache_clear()
    yield
    methods_of.cache_clear()
    sys.modules.pop("compressor.cli.quantize", None)


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    values = {"even.weight": np.arange(12).reshape(4, 3) / 3, "odd.weight": np.ones((3, 3)), "bias": np.ones(3)}
    stored = {name: ("F32", store(value, "F32")) for name, value in values.items()}
    return archives.write(tmp_path / "in.safetensors", stored)


@pytest.mark.usefixtures("installed")
def test_an_installed_method_is_used_by_its_name(tensors: Path, tmp_path: Path) -> None:
    done = compressor("quantize", tensors, "-o", tmp_path / "out.safetensors", "--scheme", "halves")
    assert done.code == 0, done.err
    assert "kept 1 (36 B): an odd number of rows: odd.weight" in done.out
    assert "F32 → halves" in done.out
    assert "only `compressor restore` reads" in done.out
    api.restore(tmp_path / "out.safetensors", tmp_path / "back.safetensors")
    found = np.frombuffer(archives.read(tmp_path / "back.safetensors")["even.weight"][2], "<f4")
    np.testing.assert_array_equal(found, np.rint(np.arange(12) * 2 / 3) / 2)
    strict = compressor("quantize", tensors, "-o", tmp_path / "o.safetensors", "--scheme", "halves", "--strict")
    assert strict.code == 2
    assert (
        "tensor 'odd.weight': would be left alone: an odd number of rows. Exclude it, or drop --strict"
        in strict.err
    )
    assert make_method("quantize", {"steps": 3}) == Halves(3)


def test_a_method_that_is_not_installed_cannot_be_named_by_a_file(tensors: Path, tmp_path: Path) -> None:
    recipe = Recipe((Stage(Halves()),))
    api.run_recipe("quantize", tensors, tmp_path / "out.safetensors", recipe)
    with pytest.raises(InputError, match="there is no quantize scheme 'halves'"):
        api.restore(tmp_path / "out.safetensors", tmp_path / "back.safetensors")


def test_a_method_without_plain_codes_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((2, 2), np.float32))
    with pytest.raises(UsageError, match="scheme halves has no integer codes"):
        api.run_recipe(
            "quantize", tmp_path / "in.npy", tmp_path / "o.npz", Recipe((Stage(Halves(), store="codes"),))
        )


def test_the_contracts_defaults() -> None:
    method = Halves()
    spec = TensorSpec("w", "F32", (2, 2))
    assert method.codes(spec) is None
    assert method.config(spec) is None
    assert method.prepare([spec]) is method
    assert method.reach == "tensor"
    assert make_method("prune", {"threshold": 1.0}).skip(spec) is None
    with pytest.raises(UsageError, match="steps must be an integer from 1 to 8, not 9"):
        Halves(9)


@dataclass(frozen=True)
class Named(PlainEncoder):
    """A class that calls itself otherwise than its entry point does."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "other"


BROKEN = {
    "nowhere": ("no_such_package:METHOD", "ModuleNotFoundError: No module named 'no_such_package'"),
    "number": ("math:pi", "math:pi is no class that derives from a Method"),
    "named": (f"{__name__}:Named", "its class says quantize other, its entry point quantize named"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_breaks_only_itself(
    name: str, tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        EntryPoint("halves", f"{__name__}:METHOD", "compressor.quantize"),
        *(EntryPoint(one, value, "compressor.quantize") for one, (value, _) in BROKEN.items()),
    ]
    monkeypatch.delitem(sys.modules, "compressor.cli.quantize", raising=False)
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == "compressor.quantize" else [])
    methods_of.cache_clear()
    try:
        assert "halves" in methods_of("quantize")
        assert not BROKEN.keys() & methods_of("quantize").keys()
        done = compressor("quantize", tensors, "-o", tmp_path / "o.safetensors", "--scheme", name)
        assert done.code == 2
        assert f"the plug-in {name} cannot be used: {BROKEN[name][1]}" in done.err
        assert compressor("quantize", "--help").code == 0
        assert compressor("quantize", tensors, "-o", tmp_path / "o.safetensors", "--scheme", "halves").code == 0
    finally:
        methods_of.cache_clear()
        sys.modules.pop("compressor.cli.quantize", None)


@dataclass(frozen=True)
class Over(PlainTransform):
    """Divides all weights."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "over"

    by: float = option(1.0, help="what weights are divided by", low=0)

    def apply(self, block: Block, out: Array) -> None:
        np.divide(block.values, self.by, out=out)


@dataclass(frozen=True)
class Largest:
    """Statistics of a class that no file of this program may name."""

    value: float = 0.0


class Looking(Survey[Largest]):
    def start(self) -> Largest:
        return Largest()

    def observe(self, block: Block, stats: Largest) -> Largest:
        return Largest(max(stats.value, float(np.abs(block.values).max(initial=0))))

    def merge(self, stats: Largest, more: Largest) -> Largest:
        return max(stats, more, key=lambda one: one.value)

    def conclude(self, stats: Largest) -> Over:
        return Over(stats.value)


@dataclass(frozen=True)
class Peak(TensorMethod):
    """Divides all weights by the largest of the model."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "peak"

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model"

    def prepare(self, specs: Sequence[TensorSpec]) -> Looking:
        return Looking()


def test_a_survey_whose_statistics_no_file_can_hold_is_left_to_the_run(
    tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("peak", f"{__name__}:Peak", "compressor.prune")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    methods_of.cache_clear()
    try:
        given: dict[str, Any] = {"method": "peak"}
        with pytest.raises(UsageError, match="a survey cannot keep a Largest") as caught:
            api.survey("prune", tensors, tmp_path / "out.safetensors", part="1/1", **given)
        assert caught.value.remedy == "Leave the survey out: runs make it themselves"
        api.prune(tensors, tmp_path / "out.safetensors", **given)
    finally:
        methods_of.cache_clear()
    found = np.frombuffer(archives.read(tmp_path / "out.safetensors")["odd.weight"][2], "<f4")
    assert found.max() == np.float32(1 / (11 / 3))
