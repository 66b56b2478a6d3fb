"""The seam for methods from elsewhere, what a plan says of itself, and reports in a terminal."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import archives
from support.console import LLAMA, TEACHER, compressor
from support.laws import Array, store

from compressor import api
from compressor.cli.report import page, progress, render, table
from compressor.core.errors import InputError, UsageError
from compressor.core.parallel import threads as local
from compressor.core.selection import kept
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods import registry
from compressor.methods.contract import Block, PlainEncoder, Skip
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


# ---- what a plan says ----------------------------------------------------------------------------------


def test_equal_work_has_equal_plans(tmp_path: Path) -> None:
    plans = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        source = tmp_path / folder / "in.safetensors"
        source.write_bytes(TEACHER.read_bytes())
        plans.append(api.quantize(source, tmp_path / folder / "out.safetensors", bits=8, dry_run=True).plan)
    assert plans[0].fingerprint == plans[1].fingerprint
    other = api.quantize(TEACHER, tmp_path / "out.safetensors", bits=7, granularity="channel", dry_run=True).plan
    assert other.fingerprint != plans[0].fingerprint
    assert str(tmp_path) not in json.dumps(plans[0].to_dict())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("bert.embeddings.word_embeddings.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("shared.weight", "embedding"),
        ("lm_head.weight", "output head"),
        ("output.weight", "output head"),
        ("embed_out.weight", "output head"),
        ("model.layers.3.mlp.gate.weight", "router"),
        ("block_sparse_moe.router.weight", "router"),
        ("mlp.shared_expert_gate.weight", "router"),
        ("model.layers.0.mlp.gate_proj.weight", None),
        ("encoder.layer.0.output.dense.weight", None),
        ("mlp.shared.up_proj.weight", None),
        ("fc1.weight", None),
    ],
)
def test_what_is_left_alone_in_language_models(name: str, reason: str | None) -> None:
    spec = TensorSpec(name, "BF16", (4, 4))
    for verb in ("prune", "quantize"):
        found = kept(spec, verb, (), ())
        assert (found.reason.split(" (")[0] if found else None) == reason
        assert kept(spec, verb, ("*",), ()) is None
    assert kept(spec, "distill", (), ()) is None
    excluded = kept(spec, "prune", ("*",), ("*weight",))
    assert excluded is not None
    assert excluded.asked


def test_workers_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local.available_workers() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert local.available_workers() == 1


def test_numbers_that_are_none_are_compared(tmp_path: Path) -> None:
    a = np.array([[np.nan, np.inf, -np.inf, 1, 2]], np.float32)
    b = a.copy()
    for name, values in (("a", a), ("b", b)):
        np.save(tmp_path / f"{name}.npy", values)
    assert api.compare(tmp_path / "a.npy", tmp_path / "b.npy").rows[0].measured.error == 0
    for place, value in ((0, 1), (1, -np.inf), (3, np.nan)):
        b = a.copy()
        b[0, place] = value
        np.save(tmp_path / "b.npy", b)
        report = api.compare(tmp_path / "a.npy", tmp_path / "b.npy", max_error=1e9)
        assert report.rows[0].measured.error == np.inf
        assert report.failures
        assert "inf" in render(report, "table")


# ---- reports in a terminal -----------------------------------------------------------------------------


class Terminal(io.TextIOWrapper):
    """A stream that says that it is one."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def text(self) -> str:
        self.flush()
        return bytes(self.buffer.getvalue()).decode()  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", [1, 40, 60, 79, 80, 120, 300])
def test_tables_of_any_width(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((columns, 24)))
    monkeypatch.setenv("TERM", "dumb")
    reports: list[Any] = [
        api.quantize(LLAMA, tmp_path / "q", bits=4),
        api.inspect(LLAMA, stats=True),
        api.compare(LLAMA, tmp_path / "q"),
    ]
    for report in reports:
        lines = render(report, "table").splitlines()
        assert max(map(len, lines)) <= max(columns, 40)
        names = "".join(
            line.split()[0] for line in lines[2:] if line.startswith(("model.layers.1.mlp.up", "weight"))
        )
        assert "model.layers.1.mlp.up_proj.weight" in "".join(line.split()[0] if line else " " for line in lines)
        assert names


def test_a_terminal_of_unknown_size_has_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(fd: int) -> os.terminal_size:
        raise OSError

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(os, "get_terminal_size", unknown)
    assert table.Page().width == 80


@given(st.text(alphabet="ab._", max_size=80), st.integers(8, 40))
def test_folded_names_lose_nothing(name: str, width: int) -> None:
    lines = page._folded(name, width).split("\n")
    assert "".join(lines) == name
    assert all(len(line) <= width for line in lines)
    assert all(len(line) * 2 >= width for line in lines[:-1])


def test_progress_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(enabled=True) as advance:
        advance(500_000, 1_000_000)
        advance(1_000_000, 1_000_000)
    assert "1.0/1.0 MB" in stream.text()
