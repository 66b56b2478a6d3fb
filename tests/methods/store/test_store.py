"""Sparse layouts in files: sizes, exact round trips, what contradicts itself, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from support import archives
from support.console import LLAMA, MATRIX, compressor
from support.laws import FLOATS, store

from compressor import api
from compressor.core.errors import InputError, UsageError
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.engine.execution import cut as cutting
from compressor.methods.numerics.smallest_keys import Smallest
from compressor.methods.quantize.int import Int
from compressor.methods.registry import methods_of
from compressor.methods.store.csr import CsrParts
from compressor.recipe.model import Recipe, Stage
from compressor.workflows import one_pass as execution

if TYPE_CHECKING:
    from support.archives import Tensors

LAYOUTS = ("bitmask", "csr", "nm")


def written(path: Path, **arrays: tuple[str, Any]) -> Path:
    """A safetensors file; `a_weight=("BF16", numbers)` is the tensor `a.weight`."""
    return archives.write(
        path, {name.replace("_", "."): (dtype, store(values, dtype)) for name, (dtype, values) in arrays.items()}
    )


def gaussian(rows: int, columns: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 MB of bfloat16 in two matrices."""
    return written(
        tmp_path_factory.mktemp("large") / "in.safetensors",
        a_weight=("BF16", gaussian(1024, 1024)),
        b_weight=("BF16", gaussian(512, 2048, 1)),
    )


# ---- sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "layout", "share"),
    [
        ({"sparsity": 0.9, "scope": "global"}, "bitmask", 0.17),
        ({"sparsity": 0.97}, "csr", 0.063),
        ({"pattern": "2:4"}, "nm", 0.63),
        ({"sparsity": 0.01}, "BF16", 1.001),
    ],
)
def test_auto_is_small(options: Any, layout: str, share: float, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    planned = api.prune(large, out, store="auto", dry_run=True, **options)
    report = api.prune(large, out, store="auto", **options)
    dense = tmp_path / "dense.safetensors"
    api.prune(large, dense, **options)
    assert {job.dtype_after for job in report.plan.jobs} == {layout}
    assert out.stat().st_size <= share * dense.stat().st_size
    assert out.stat().st_size == planned.plan.size_after == report.plan.size_after
    assert planned.plan.to_dict() == report.plan.to_dict()
    api.restore(out, tmp_path / "back.safetensors")
    assert archives.read(tmp_path / "back.safetensors") == archives.read(dense)


def test_sparse_codes_are_smaller_still(large: Path, tmp_path: Path) -> None:
    out, packed = tmp_path / "out.safetensors", tmp_path / "packed.safetensors"
    stages = ["prune:sparsity=0.9,scope=global", "quantize:bits=4,group_size=128"]
    report = api.pipeline(large, out, stages=[stages[0], f"{stages[1]},store=smallest"])
    api.pipeline(large, packed, stages=stages)
    assert {job.dtype_after for job in report.plan.jobs} == {"int4 bitmask"}
    assert out.stat().st_size <= 0.1 * large.stat().st_size
    assert 2.6 * out.stat().st_size <= packed.stat().st_size
    for name in ("out", "packed"):
        api.restore(tmp_path / f"{name}.safetensors", tmp_path / f"{name}.back.safetensors")
    assert archives.read(tmp_path / "out.back.safetensors") == archives.read(tmp_path / "packed.back.safetensors")
    assert "zeros" in compressor("inspect", out, "--stats").out


def test_where_dense_is_smaller_the_report_says_so(tmp_path: Path) -> None:
    source = written(
        tmp_path / "in.safetensors", a_weight=("F32", gaussian(8, 8)), b_weight=("F32", np.zeros((64, 64)))
    )
    done = compressor("prune", source, "-o", tmp_path / "o.safetensors", "--sparsity", "0.01", "--store", "auto")
    assert "instead 1: stored dense: no sparse layout is smaller: a.weight" in done.out
    done = compressor("quantize", source, "-o", tmp_path / "q.safetensors", "--bits", 4, "--group-size", 8,
                      "--store", "smallest")  # fmt: skip
    assert "instead 1: codes stored packed: no sparse layout is smaller: a.weight" in done.out
    assert "F32 → int4 csr" in done.out or "F32 → int4 nm" in done.out or "F32 → int4 bitmask" in done.out


# ---- round trips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["bitmask", "csr", "nm", "auto"])
def test_what_comes_back_is_what_dense_would_hold(layout: str, dtype: str, tmp_path: Path) -> None:
    values = gaussian(37, 23)
    values[3], values[5, :7] = 0, -0.0
    full = np.ones((4, 9))
    how = {"pattern": "2:4"} if layout == "nm" else {"sparsity": 0.6}
    source = written(
        tmp_path / "in.safetensors",
        a_weight=(dtype, values),
        b_weight=(dtype, np.zeros((5, 8))),
        c_weight=(dtype, full),
        d_weight=(dtype, values[:, :1]),
        e_weight=(dtype, values.reshape(23, 37)[:, :36].reshape(23, 4, 9)),
        empty_weight=(dtype, np.zeros((3, 0))),
        none_weight=(dtype, np.zeros((0, 4))),
        f_bias=(dtype, values[0]),
    )
    api.prune(source, tmp_path / "dense.safetensors", **how)
    report = api.prune(source, tmp_path / "out.safetensors", store=layout, **how)
    assert report.plan.size_after == (tmp_path / "out.safetensors").stat().st_size
    api.restore(tmp_path / "out.safetensors", tmp_path / "back.safetensors")
    assert archives.read(tmp_path / "back.safetensors") == archives.read(tmp_path / "dense.safetensors")
    compared = api.compare(tmp_path / "dense.safetensors", tmp_path / "out.safetensors", max_error=0)
    assert not compared.failures


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_any_zeros_come_back(data: st.DataObject, tmp_path: Path) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    layout = data.draw(st.sampled_from(["bitmask", "csr", "auto"]))
    rows, columns = data.draw(st.integers(1, 30)), data.draw(st.sampled_from([1, 2, 7, 8, 9, 64, 257, 300]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = np.where(
        random.random((rows, columns)) < data.draw(st.floats(0, 1)), 0, random.random((rows, columns)) + 0.1
    )
    values[random.random(rows) < 0.2] = data.draw(st.sampled_from([0.0, -0.0, 1.0]))
    source = written(tmp_path / "in.safetensors", a_weight=(dtype, values))
    out = tmp_path / "out.safetensors"
    inner = data.draw(st.sampled_from([None, *range(2, 9)]))
    if inner is None:
        api.prune(source, out, threshold=0.0, store=layout, force=True)
        before = archives.read(source)
    else:
        how = {"bits": inner, "granularity": data.draw(st.sampled_from(["tensor", "channel"]))}
        if dtype == "F32" and how["granularity"] == "channel":
            how["scale_bits"] = 32  # as these archives have them
        api.quantize(source, out, store="smallest" if layout == "auto" else layout, force=True, **how)
        api.quantize(source, tmp_path / "dense.safetensors", store="dense", force=True, **how)
        before = archives.read(tmp_path / "dense.safetensors")
    api.restore(out, tmp_path / "back.safetensors", force=True)
    assert archives.read(tmp_path / "back.safetensors") == before


@pytest.mark.parametrize(
    "scheme", ["factor=64", "factor=3,code_bits=8", "step", "bits=4,group_size=64,scale_bits=32"]
)
@pytest.mark.parametrize("layout", ["bitmask", "csr", "smallest"])
def test_codes_of_every_scheme_that_has_a_zero(scheme: str, layout: str, tmp_path: Path) -> None:
    scheme = "scheme=step,bits=1" if scheme == "step" else scheme
    source = written(tmp_path / "in.safetensors", a_weight=("F32", 9 * gaussian(70, 64)))
    api.pipeline(source, tmp_path / "out.safetensors", stages=[f"quantize:{scheme},store={layout}"])
    api.pipeline(source, tmp_path / "dense.safetensors", stages=[f"quantize:{scheme},store=dense"])
    api.restore(tmp_path / "out.safetensors", tmp_path / "back.safetensors")
    assert archives.read(tmp_path / "back.safetensors") == archives.read(tmp_path / "dense.safetensors")


def test_cuts_and_workers_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of many chunks, with ties that a global cut leaves in the order of blocks."""
    random = np.random.default_rng(3)
    source = written(
        tmp_path / "in.safetensors",
        a_weight=("BF16", np.rint(gaussian(900, 300) * 100)),
        b_weight=("F32", np.rint(random.standard_normal((500, 513)) * 2)),
    )
    stages = ["prune:sparsity=0.8,scope=global", "quantize:bits=3,granularity=channel"]
    for chunk, workers in ((1 << 21, 1), (1 << 14, 1), (1 << 14, 4)):
        monkeypatch.setattr(cutting, "CHUNK", chunk)
        monkeypatch.setattr(cutting, "BLOCK", chunk // 4)
        for layout in ("bitmask", "csr", "smallest"):
            name = f"{layout}-{chunk}-{workers}"
            api.pipeline(
                source, tmp_path / f"{name}.p.safetensors", stages=[f"{stages[0]},store={layout}"], workers=workers
            )
            api.pipeline(
                source,
                tmp_path / f"{name}.q.safetensors",
                stages=[stages[0], f"{stages[1]},store={layout}"],
                workers=workers,
            )
    for layout in ("bitmask", "csr", "smallest"):
        for kind in "pq":
            found = {path.read_bytes() for path in tmp_path.glob(f"{layout}-*.{kind}.safetensors")}
            assert len(found) == 1
    api.pipeline(source, tmp_path / "dense.safetensors", stages=[stages[0]])
    api.restore(tmp_path / "csr-16384-4.p.safetensors", tmp_path / "back.safetensors")
    assert archives.read(tmp_path / "back.safetensors") == archives.read(tmp_path / "dense.safetensors")


def test_processes_give_the_same_bytes(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_LARGE", 0)
    for processes in (False, True):
        api.prune(large, tmp_path / f"{processes}.safetensors", sparsity=0.9, scope="global", store="auto",
                  processes=processes, workers=2)  # fmt: skip
    assert (tmp_path / "True.safetensors").read_bytes() == (tmp_path / "False.safetensors").read_bytes()


def test_surveys_are_made_once(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    keys = Smallest.prepare
    monkeypatch.setattr(Smallest, "prepare", lambda self, specs: seen.append(len(specs)) or keys(self, specs))
    for scope, expected in (("global", [2]), ("tensor", [1, 1])):
        seen.clear()
        api.prune(large, tmp_path / f"{scope}.safetensors", sparsity=0.9, scope=scope, store="bitmask")
        assert seen == expected


def test_a_tensor_scale_is_found_once_and_counted_with(tmp_path: Path) -> None:
    source = written(tmp_path / "in.safetensors", a_weight=("F32", gaussian(100, 500)))
    for store_, expected in (("bitmask", "int2 bitmask"), ("smallest", "int2 bitmask")):
        report = api.quantize(
            source, tmp_path / f"{store_}.safetensors", bits=2, granularity="tensor", method="absmax", store=store_
        )
        assert [job.dtype_after for job in report.plan.jobs] == [expected]
        assert report.plan.size_after == (tmp_path / f"{store_}.safetensors").stat().st_size


@dataclass(frozen=True)
class OneScale(Int):
    """One scale for all tensors of the stage."""

    @property
    def reach(self) -> Any:
        return "model"


@pytest.mark.parametrize("layout", ["bitmask", "nm", "smallest"])
def test_what_a_whole_model_tells_is_known_when_counting(layout: Any, tmp_path: Path) -> None:
    values = np.where(np.arange(96) % 4 < 2, gaussian(20, 96), 0)
    source = written(tmp_path / "in.safetensors", a_weight=("F32", values), b_weight=("F32", values[:, ::-1] * 3))
    method = OneScale(bits=4, granularity="tensor", method="absmax")
    for name, stage in (("out", Stage(method, store=layout)), ("dense", Stage(method, store="dense"))):
        api.run_recipe("quantize", source, tmp_path / f"{name}.safetensors", Recipe((stage,)))
    api.restore(tmp_path / "out.safetensors", tmp_path / "back.safetensors")
    assert archives.read(tmp_path / "back.safetensors") == archives.read(tmp_path / "dense.safetensors")


# ---- containers ----------------------------------------------------------------------------------------


def test_a_folder_is_refused_by_loaders_and_comes_back(tmp_path: Path) -> None:
    api.prune(LLAMA, tmp_path / "out", sparsity=0.9, store="auto")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "run `compressor restore`"
    api.prune(LLAMA, tmp_path / "dense", sparsity=0.9)
    api.restore(tmp_path / "out", tmp_path / "back")
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())
    for name in ("out", "back"):
        assert not api.compare(tmp_path / "dense", tmp_path / name, max_error=0).failures


def test_what_structured_cuts_leave_is_stored_small(tmp_path: Path) -> None:
    stages = ["prune:structure=neurons,fraction=0.25", "prune:sparsity=0.9,scope=global"]
    report = api.pipeline(LLAMA, tmp_path / "out", stages=[stages[0], f"{stages[1]},store=auto"])
    assert {job.encoder.verb for job in report.plan.jobs if job.encoder is not None} == {"store"}
    api.pipeline(LLAMA, tmp_path / "dense", stages=stages)
    assert not api.compare(tmp_path / "dense", tmp_path / "out", max_error=0).failures
    done = compressor("prune", LLAMA, "-o", tmp_path / "o", "--structure", "neurons", "--fraction", "0.25",
                      "--store", "auto")  # fmt: skip
    assert done.code == 2
    assert "store" in done.err


def test_what_is_stored_sparse_can_be_worked_on(large: Path, tmp_path: Path) -> None:
    api.prune(large, tmp_path / "sparse.safetensors", sparsity=0.5, store="bitmask")
    api.prune(large, tmp_path / "dense.safetensors", sparsity=0.5)
    for name in ("sparse", "dense"):  # numbers are no codes: nothing has to be quantized twice
        api.quantize(tmp_path / f"{name}.safetensors", tmp_path / f"{name}.q.safetensors", bits=4)
    assert archives.read(tmp_path / "sparse.q.safetensors") == archives.read(tmp_path / "dense.q.safetensors")


def test_scipys_archive_comes_back(tmp_path: Path) -> None:
    api.prune(MATRIX, tmp_path / "dense.npy", sparsity=0.9)
    report = api.prune(MATRIX, tmp_path / "out.npz", sparsity=0.9, store="csr")
    assert report.plan.size_after == (tmp_path / "out.npz").stat().st_size
    with np.load(tmp_path / "out.npz") as archive:
        assert set(archive.files) == {"compressor", "format", "indices", "data", "indptr", "shape"}
        assert archive["format"].item() == b"csr"
    api.restore(tmp_path / "out.npz", tmp_path / "back.npy")
    assert (tmp_path / "back.npy").read_bytes() == (tmp_path / "dense.npy").read_bytes()
    shown = compressor("inspect", tmp_path / "out.npz").out
    assert "F32 as scipy" in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("prune", "--sparsity", 0.5, "--store", "nm"), "'a.weight': has more than two values in a group of four"),
        (("quantize", "--bits", 4, "--store", "bitmask", "--asymmetric"), "has no code that always means zero"),
        (("quantize", "--bits", 4, "--store", "smallest", "--asymmetric"), "has no code that always means zero"),
        (("prune", "--sparsity", 0.5, "--store", "packed"), "Invalid value for '--store'"),
        (
            ("pipeline", "--stage", "prune:sparsity=0.5,store=csr", "--stage", "quantize:bits=8"),
            "stage 1 cannot follow stage 0",
        ),
        (("pipeline", "--stage", "prune:sparsity=0.5,store=codes"), "store of prune must be one of"),
    ],
)
def test_refusals(args: tuple[Any, ...], said: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in.safetensors", a_weight=("F32", gaussian(16, 128)))
    done = compressor(args[0], source, "-o", tmp_path / "out.safetensors", *args[1:])
    assert done.code in (2, 3)
    assert said in done.err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("output", "store_", "said"),
    [
        ("o.npy", "csr", "an .npy holds no sparse layout"),
        ("o.npz", "bitmask", "an .npz holds floats as SciPy's csr"),
        ("o.npz", "auto", "an .npz holds floats as SciPy's csr"),
    ],
)
def test_containers_that_do_not_hold_it(output: str, store_: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        api.prune(MATRIX, tmp_path / output, sparsity=0.5, store=store_)


def test_scipy_holds_no_float16(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", gaussian(4, 4).astype(np.float16))
    with pytest.raises(UsageError, match="SciPy's sparse matrices hold F32 and F64, not F16"):
        api.prune(tmp_path / "in.npy", tmp_path / "o.npz", sparsity=0.5, store="csr")


def test_no_number_is_refused_by_name_also_while_counting(tmp_path: Path) -> None:
    values = gaussian(8, 8)
    values[3, 3] = np.nan
    source = written(tmp_path / "in.safetensors", a_weight=("F32", values), b_weight=("F32", gaussian(8, 8)))
    with pytest.raises(InputError, match=r"'a\.weight': holds 1 NaN"):
        api.prune(source, tmp_path / "out.safetensors", sparsity=0.5, store="bitmask")
    report = api.prune(source, tmp_path / "out.safetensors", sparsity=0.5, store="bitmask", non_finite="keep")
    assert [job.dtype_after for job in report.plan.jobs] == ["F32", "bitmask"]


# ---- damaged files -------------------------------------------------------------------------------------

Damage = Callable[[dict[str, Any]], None]


def put(name: str, *changes: tuple[Any, int]) -> Damage:
    """Overwrite elements of a stored part."""

    def change(parts: dict[str, Any]) -> None:
        for place, value in changes:
            parts[name].reshape(-1)[place] = value

    return change


@pytest.mark.parametrize(
    ("layout", "damage", "said"),
    [
        ("bitmask", put(".rows", (2, 99)), "tells no numbers of values"),
        ("bitmask", put(".rows", (0, 1)), "tells no numbers of values"),
        ("bitmask", put(".rows", (2, -1)), "tells no numbers of values"),
        ("bitmask", put(".rows", (-1, 3)), "tells no numbers of values|its part .values is"),
        ("bitmask", put(".mask", (0, 0)), "mask marks other numbers of values"),
        ("bitmask", put(".mask", (slice(None), 255)), "mask marks other numbers of values"),
        ("bitmask", lambda parts: parts.pop(".mask"), "its part .mask is missing"),
        ("bitmask", lambda parts: parts.pop(".rows"), "its part .rows is missing"),
        ("bitmask", lambda parts: parts.update({".values": parts[".values"][1:]}), "its part .values is F32"),
        ("csr", put(".columns", (0, 255)), "columns do not ascend"),
        ("csr", put(".columns", (1, 0)), "columns do not ascend"),
        ("csr", put(".rows", (2, 99)), "tells no numbers of values"),
        ("nm", put(".positions", (0, 0)), "not two different ones"),
        ("nm", put(".positions", (0, 0b0001)), "not two different ones"),
        ("nm", put(".positions", (1, 0x44)), "positions do not end with zeros"),
    ],
)
def test_damaged_parts_are_refused(layout: str, damage: Damage, said: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in.safetensors", a_weight=("F32", gaussian(6, 13)))
    out = tmp_path / "out.safetensors"
    how: dict[str, Any] = {"pattern": "2:4"} if layout == "nm" else {"sparsity": 0.5}
    api.prune(source, out, store=layout, **how)
    found = archives.read(out)
    parts = {
        name.removeprefix("a.weight"): np.frombuffer(data, DTYPES[dtype].storage).reshape(shape).copy()
        for name, (dtype, shape, data) in found.items()
    }
    damage(parts)
    changed: Tensors = {f"a.weight{suffix}": (found[f"a.weight{suffix}"][0], raw) for suffix, raw in parts.items()}
    bad = archives.write(tmp_path / "bad.safetensors", changed, archives.metadata_of(out))
    with pytest.raises(InputError, match=said) as caught:
        api.restore(bad, tmp_path / "back.safetensors")
    assert caught.value.file == str(bad)
    assert caught.value.tensor == "a.weight"
    with pytest.raises(InputError, match=said):
        api.compare(out, bad)


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "store", "layout": "no such"},
        {"kind": "store"},
        {"kind": "store", "layout": "bitmask", "of": {"kind": "store", "layout": "csr"}},
        {"kind": "store", "layout": "bitmask", "of": {"kind": "prune", "method": "random", "sparsity": 0.5}},
        {"kind": "store", "layout": "bitmask", "of": {}},
        {"kind": "store", "layout": "bitmask", "of": 3},
        {"kind": "store", "layout": ["bitmask"]},
        {"kind": "store", "layout": "bitmask", "more": 1},
        {"kind": "store", "layout": "mask", "of": {"kind": "quantize", "scheme": "int"}},
        {"kind": "store", "layout": "bitmask", "of": {"kind": "quantize", "scheme": "int", "symmetric": False}},
        {"kind": "store", "layout": "bitmask", "of": {"kind": "quantize", "scheme": "int", "bits": 4}},
    ],
)
def test_damaged_records_are_refused(method: Any, tmp_path: Path) -> None:
    source = written(tmp_path / "in.safetensors", a_weight=("F32", gaussian(6, 128)))
    out = tmp_path / "out.safetensors"
    api.prune(source, out, sparsity=0.5, store="bitmask")
    record = json.loads(archives.metadata_of(out)["compressor"])
    record["methods"] = [method]
    parts = {
        name: (dtype, np.frombuffer(data, DTYPES[dtype].storage).reshape(shape))
        for name, (dtype, shape, data) in archives.read(out).items()
    }
    bad = archives.write(tmp_path / "bad.safetensors", parts, {"compressor": json.dumps(record)})
    with pytest.raises(InputError):
        api.restore(bad, tmp_path / "back.safetensors")


# ---- bytes ---------------------------------------------------------------------------------------------


def test_the_bytes_are_those_that_the_documents_say(tmp_path: Path) -> None:
    matrix = np.array([[0, 3, 0, 0], [1, 0, 0, 2]])
    source = written(tmp_path / "in.safetensors", a_weight=("F32", matrix))
    expected = {
        "bitmask": {".mask": [[2], [9]], ".values": [3, 1, 2], ".rows": [0, 1, 3]},
        "csr": {".columns": [1, 0, 3], ".values": [3, 1, 2], ".rows": [0, 1, 3]},
        "nm": {".values": [[0, 3], [1, 2]], ".positions": [[0b0100], [0b1100]]},
    }
    for layout, parts in expected.items():
        out = tmp_path / f"{layout}.safetensors"
        api.prune(source, out, threshold=0.0, store=layout)
        found = {
            name.removeprefix("a.weight"): np.frombuffer(data, DTYPES[dtype].storage).reshape(shape).tolist()
            for name, (dtype, shape, data) in archives.read(out).items()
        }
        assert found == parts
        record = json.loads(archives.metadata_of(out)["compressor"])
        assert record["methods"] == [{"kind": "store", "layout": layout}]


def test_signed_codes_are_their_lowest_bits(tmp_path: Path) -> None:
    source = written(tmp_path / "in.safetensors", a_weight=("F32", [[-3.5, 0, 1, 0], [0, 3.5, 0, -1]]))
    api.quantize(source, tmp_path / "o.safetensors", bits=3, granularity="channel", store="bitmask")
    parts = archives.read(tmp_path / "o.safetensors")
    assert list(parts["a.weight.values"][2]) == [0b001_100, 0b111_011]  # -4 and 1, 3 and -1
    record = json.loads(archives.metadata_of(tmp_path / "o.safetensors")["compressor"])
    of = record["methods"][0]["of"]
    assert (of["kind"], of["scheme"], of["bits"], of["layout"]) == ("quantize", "int", 3, "plain")


def test_indices_are_as_narrow_as_they_can_be() -> None:
    csr: Any = methods_of("store")["csr"]
    offsets = np.zeros(2, np.int64)
    for columns, dtype in ((256, "U8"), (257, "U16"), (1 << 16, "U16"), ((1 << 16) + 1, "U32")):
        parts = CsrParts(None, offsets).parts(TensorSpec("w", "F32", (1, columns)))
        assert parts[0].dtype == dtype
    assert CsrParts(None, offsets).parts(TensorSpec("w", "F32", (1, 1 << 25)))[2].dtype == "I32"
    assert CsrParts(None, offsets).parts(TensorSpec("w", "F32", (64, 1 << 25)))[2].dtype == "I64"
    with pytest.raises(UsageError, match=r"up to 2\^26 columns"):
        csr().check(TensorSpec("w", "F32", (1, (1 << 26) + 1)))


def test_a_method_without_counts_has_no_parts() -> None:
    spec = TensorSpec("w", "F32", (4, 4))
    for layout in ("bitmask", "csr"):
        made: Any = methods_of("store")[layout](Int(bits=4, granularity="channel", layout="plain"))
        assert made.decoder_for(spec) is None


# ---- masks ---------------------------------------------------------------------------------------------


def test_a_saved_mask_is_bits_and_prunes_again(tmp_path: Path) -> None:
    values = gaussian(30, 21)
    source = written(tmp_path / "in.safetensors", a_weight=("BF16", values), b_bias=("F32", values[0]))
    other = written(tmp_path / "other.safetensors", a_weight=("F32", values + 5), b_bias=("F32", values[0]))
    mask = tmp_path / "mask.safetensors"
    for store_ in ("dense", "auto"):
        given_ = ("--sparsity", 0.7, "--save-mask", mask, "--store", store_, "--force")
        done = compressor("prune", source, "-o", tmp_path / "out.safetensors", *given_)
        assert done.code == 0, done.err
        ((name, (dtype, shape, data)),) = archives.read(mask).items()
        assert (name, dtype, shape) == ("a.weight.mask", "U8", (30, 3))
    api.restore(tmp_path / "out.safetensors", tmp_path / "dense.safetensors")
    kept = np.frombuffer(archives.read(tmp_path / "dense.safetensors")["a.weight"][2], "<u2").reshape(30, 21) != 0
    bits = np.unpackbits(np.frombuffer(data, np.uint8).reshape(30, 3), axis=1, count=21, bitorder="little")
    assert np.array_equal(bits, kept)
    assert kept.sum() == 630 - 441
    for number, by in enumerate((mask, tmp_path / "out.safetensors")):  # a mask, or whatever has the same zeros
        to = tmp_path / f"masked{number}.safetensors"
        assert compressor("prune", other, "-o", to, "--mask", by).code == 0
        found = np.frombuffer(archives.read(to)["a.weight"][2], "<f4").reshape(30, 21)
        assert np.array_equal(found, np.where(kept, store(values + 5, "F32"), 0))
    stage = f"prune:mask={mask},store=bitmask"
    report = api.pipeline(other, tmp_path / "p.safetensors", stages=[stage])
    assert [job.dtype_after for job in report.plan.jobs] == ["bitmask", "F32"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--mask", "{mask}"), "'b.weight': the mask {mask} has no tensor of that name"),
        (("--mask", "{mask}", "--exclude", "b.*"), "'a.weight': the input has shape [4, 6], the mask [4, 5]"),
        (("--mask", "{mask}", "--sparsity", "0.5"), "sparsity"),
        (("--method", "mask"), "method mask needs a mask. Give --mask PATH"),
        (("--mask", "{mask}", "--method", "nm", "--pattern", "2:4"), "method nm takes no mask"),
        (("--mask", "nowhere.safetensors"), "cannot be opened"),
        (("--sparsity", "0.5", "--save-mask", "m.npy"), "--save-mask writes a .safetensors"),
        (("--sparsity", "0.5", "--save-mask", "{mask}"), "exists"),
        (("--sparsity", "0.5", "--save-mask", "{out}"), "is the output itself|Name another place"),
    ],
)
def test_masks_that_do_not_match(args: tuple[str, ...], said: str, tmp_path: Path) -> None:
    source = written(
        tmp_path / "in.safetensors", a_weight=("F32", gaussian(4, 6)), b_weight=("F32", gaussian(4, 6))
    )
    mask = written(tmp_path / "mask.safetensors", a_weight=("F32", gaussian(4, 5)))
    out = tmp_path / "out.safetensors"
    given = [text.format(mask=mask, out=out) for text in args]
    done = compressor("prune", source, "-o", out, *given)
    assert done.code in (2, 3, 4)
    assert any(text.format(mask=mask) in done.err for text in said.split("|")), done.err
    assert not out.exists()
