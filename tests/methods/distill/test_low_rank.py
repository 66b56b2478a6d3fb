"""Low-rank factors and residual adapters: the best of their rank, honest sizes, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import archives
from support.console import compressor as command
from support.laws import Array, store

from compressor import api
from compressor.calibration.statistics import write_statistics
from compressor.cli.main import run
from compressor.core import cleanup
from compressor.core.errors import CompressorError, InputError, OutputError, UsageError
from compressor.core.layer_inputs import Gather
from compressor.core.tensor import TensorSpec
from compressor.engine.execution import cut as cutting
from compressor.methods.distill._factored import profitable
from compressor.methods.distill._ranks import by_energy, by_error, by_ratio
from compressor.methods.distill.low_rank import LowRank
from compressor.methods.distill.residual import Residual
from compressor.methods.numerics import svd
from compressor.recipe.budget import Budget

SHAPES = [(40, 40), (90, 30), (30, 90), (1, 7), (7, 1)]


def decaying(rows: int, columns: int, power: float = 0.7, seed: int = 0) -> Array:
    """A matrix whose singular values are k^−power."""
    random, short = np.random.default_rng(seed), min(rows, columns)
    left = np.linalg.qr(random.standard_normal((rows, short)))[0]
    right = np.linalg.qr(random.standard_normal((columns, short)))[0]
    found: Array = (left * np.arange(1.0, short + 1) ** -power) @ right.T
    return found.astype(np.float32)


def save(path: Path, dtype: str = "F32", **tensors: Array) -> Path:
    named = {name.replace("__", "."): (dtype, store(values, dtype)) for name, values in tensors.items()}
    return archives.write(path, named)


def folder(path: Path, config: Mapping[str, Any] | None, dtype: str = "F32", **tensors: Array) -> Path:
    path.mkdir()
    save(path / "model.safetensors", dtype, **tensors)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def load(path: Path) -> dict[str, Array]:
    return {
        name: np.frombuffer(data, {"F32": "<f4", "F64": "<f8"}[dtype]).reshape(shape)
        for name, (dtype, shape, data) in archives.read(path).items()
    }


# ---- decompositions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_the_best_of_their_rank(shape: tuple[int, int], wide: bool) -> None:
    matrix = decaying(*shape).astype(np.float64 if wide else np.float32)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(svd.spectrum(matrix, wide=wide), values, atol=1e-7)
    for rank in {1, min(shape) // 2 or 1}:
        left, right = svd.factors(matrix, rank, wide=wide)
        assert (left.shape, right.shape) == ((shape[0], rank), (rank, shape[1]))
        optimum = np.sqrt(np.sum(values[rank:] ** 2))
        assert np.linalg.norm(matrix - left @ right) == pytest.approx(optimum, rel=1e-6, abs=1e-7)
        sizes = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
        assert np.all(sizes[0] / sizes[1] < 2.1)
        assert np.all(sizes[1] / sizes[0] < 2.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_weighed_factors_are_the_best_for_the_inputs(shape: tuple[int, int]) -> None:
    """The same as truncating the decomposition of W·gram^½ and taking the root back; for grams of low rank too."""
    random = np.random.default_rng(3)
    matrix, columns = decaying(*shape), shape[1]
    for samples in (3 * columns, max(columns // 2, 1)):
        inputs = random.standard_normal((samples, columns)) * np.arange(1, columns + 1)
        gram = inputs.T @ inputs / samples
        values = np.linalg.svd(matrix @ inputs.T, compute_uv=False)
        rank = min(shape) // 3 or 1
        for seed in (None, b"seed"):
            left, right = svd.factors(matrix, rank, gram, seed=seed)
            lost = np.linalg.norm((matrix - left @ right) @ inputs.T)
            optimum = np.sqrt(np.sum(values[rank:] ** 2))
            assert lost == pytest.approx(optimum, rel=1e-6 if seed is None else 0.02, abs=1e-6 * values[0])
        np.testing.assert_allclose(
            svd.spectrum(matrix, gram)[:rank], values[:rank] / np.sqrt(samples), rtol=1e-5, atol=1e-5 * values[0]
        )


@pytest.mark.parametrize(("power", "bar"), [(0.0, 1.01), (0.5, 1.003), (1.0, 1.003)])
def test_randomised_factors_are_near_the_best(power: float, bar: float) -> None:
    """The figures of the docstring, where `auto` takes them."""
    random = np.random.default_rng(1)
    matrix = decaying(640, 640, power) if power else random.standard_normal((640, 640)).astype(np.float32)
    values = svd.spectrum(matrix)
    assert svd.faster(640, 640, 40)
    left, right = svd.factors(matrix, 40, seed=b"0")
    assert np.linalg.norm(matrix - left @ right) < bar * np.sqrt(np.sum(values[40:] ** 2))
    again = svd.factors(matrix, 40, seed=b"0")
    assert left.tobytes() == again[0].tobytes()
    assert left.tobytes() != svd.factors(matrix, 40, seed=b"1")[0].tobytes()


def test_small_or_high_ranks_are_exact() -> None:
    assert not svd.faster(384, 384, 2)
    assert not svd.faster(1024, 1024, 512)


# ---- ranks ---------------------------------------------------------------------------------------------


def test_ranks_by_energy_and_error() -> None:
    values = np.array([3.0, 2.0, 1.0, 0.0])
    assert [by_energy(values, share) for share in (0.1, 0.64, 0.65, 0.92, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert [by_error(values, error) for error in (0.0, 0.9, 1.0, 2.3, 3.8)] == [3, 3, 2, 1, 0]
    assert by_energy(np.zeros(3), 0.9) == 1
    assert by_error(np.zeros(3), 0.0) == 0
    huge = np.array([1e308, 1e300])
    assert by_energy(huge, 0.99) == 1
    assert by_error(huge, 1e301) == 1


def test_ranks_by_ratio_share_their_marginal_gain() -> None:
    specs = [TensorSpec(f"t{n}", "F32", (64, 32 * n)) for n in range(1, 5)] + [TensorSpec("tiny", "F32", (2, 2))]
    values = {spec.name: svd.spectrum(decaying(*spec.shape, 0.3 * n, n)) for n, spec in enumerate(specs[:4], 1)}
    for ratio in (0.2, 0.4, 0.6, 0.8):
        ranks, reached = by_ratio(values, specs, ratio)
        size = sum(ranks[spec.name] * sum(spec.shape) * 4 if ranks[spec.name] else spec.nbytes for spec in specs)
        assert reached == size / sum(spec.nbytes for spec in specs)
        assert ratio - 0.02 < reached <= ratio
        gains = {s.name: values[s.name] ** 2 / sum(s.shape) for s in specs[:4] if ranks[s.name]}
        last = [gain[ranks[name] - 1] for name, gain in gains.items() if ranks[name] > 1]
        following = [gain[ranks[name]] for name, gain in gains.items()]
        assert min(last) >= max(following)
        assert all(ranks[s.name] <= profitable(s) for s in specs)
    assert by_ratio(values, specs, 0.001)[1] > 0.001
    assert set(by_ratio(values, specs, 0.001)[0].values()) == {0, 1}


def test_ranks_by_ratio_lose_less_than_the_same_share_of_each() -> None:
    specs = [TensorSpec(f"t{n}", "F32", (96, 96)) for n in range(4)]
    values = {spec.name: svd.spectrum(decaying(96, 96, 0.2 + 0.3 * n)) for n, spec in enumerate(specs)}

    def lost(ranks: Mapping[str, int]) -> float:
        return sum(float(np.sum(values[name][rank or 96 :] ** 2)) for name, rank in ranks.items())

    assert lost(by_ratio(values, specs, 0.5)[0]) < 0.8 * lost(dict.fromkeys(values, 24))


# ---- low-rank on files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"rank": 5}, {"energy": 0.8}, {"ratio": 0.5}], ids=lambda o: next(iter(o)))
def test_low_rank_from_a_teacher(options: dict[str, Any], tmp_path: Path) -> None:
    """Sizes are those of the dry run, what comes back is what the report says, whoever made it."""
    tensors = {f"a{n}__weight": decaying(40 + 20 * n, 50, 0.5 + n / 4, n) for n in range(3)}
    source = save(tmp_path / "in.safetensors", **tensors, a__bias=np.ones(5))
    flags = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    shared = ["--from", source, "-o", tmp_path / "out.safetensors", "--method", "low-rank", *flags]
    said = json.loads(command("distill", *shared, "--dry-run", "--format", "json").out)
    done = command("distill", *shared, "--format", "json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert said["size_after"] == told["size_after"] == (tmp_path / "out.safetensors").stat().st_size
    assert said["fingerprint"] == told["fingerprint"]
    for workers in (1, 2):
        report = api.distill(
            source, tmp_path / f"w{workers}.safetensors", method="low-rank", **options, workers=workers
        )
        assert (tmp_path / f"w{workers}.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()
    api.restore(tmp_path / "out.safetensors", tmp_path / "back.safetensors")
    compared = api.compare(source, tmp_path / "back.safetensors")
    assert report.total is not None
    errors = {row.name: row.measured.error for row in compared.rows}
    for job, change in report.rows:
        assert change is not None
        assert errors[job.spec.name] == pytest.approx(change.error, rel=1e-4, abs=1e-6)
        values = np.linalg.svd(load(source)[job.spec.name], compute_uv=False)
        rank = job.parts[0].shape[1]
        optimum = np.sqrt(np.sum(values[rank:] ** 2) / np.sum(values**2))
        assert change.error == pytest.approx(optimum, rel=1e-3)
        if "energy" in options:
            assert change.error**2 <= 1 - options["energy"] < np.sum(values[rank - 1 :] ** 2) / np.sum(values**2)
    if "ratio" in options:
        before = sum(4 * tensor.size for name, tensor in tensors.items() if name.endswith("weight"))
        after = sum(job.size_after for job in report.plan.jobs if job.spec.name.endswith("weight"))
        assert 0.45 * before < after <= 0.5 * before


def test_the_product_is_stored_dense(tmp_path: Path) -> None:
    source = save(tmp_path / "in.safetensors", a=decaying(40, 50), b=decaying(50, 40, 0.1))
    api.distill(source, tmp_path / "f.safetensors", method="low-rank", rank=5)
    api.restore(tmp_path / "f.safetensors", tmp_path / "r.safetensors")
    api.distill(source, tmp_path / "d.safetensors", method="low-rank", rank=5, store="dense")
    restored, dense = load(tmp_path / "r.safetensors"), load(tmp_path / "d.safetensors")
    assert list(dense) == ["a", "b"]
    assert all(np.array_equal(dense[name], restored[name]) for name in dense)
    report = api.distill(source, tmp_path / "e.safetensors", method="low-rank", ratio=0.9, store="dense")
    if any(change is not None and change.lost == 0 for _, change in report.rows):
        assert "would be no smaller" in " ".join(report.warnings)
    np.save(tmp_path / "in.npy", decaying(40, 50))
    api.distill(tmp_path / "in.npy", tmp_path / "out.npy", method="low-rank", energy=0.9)
    assert np.linalg.matrix_rank(np.load(tmp_path / "out.npy")) < 40


def test_rows_come_back_alike_in_any_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "in.safetensors", a=decaying(301, 67))
    report = api.distill(source, tmp_path / "f.safetensors", method="low-rank", rank=9)
    api.restore(tmp_path / "f.safetensors", tmp_path / "whole.safetensors")
    for rows in (1, 7, 130):
        monkeypatch.setattr(cutting, "BLOCK", rows * 67)
        monkeypatch.setattr(cutting, "CHUNK", 2 * rows * 67)
        api.restore(tmp_path / "f.safetensors", tmp_path / f"{rows}.safetensors")
        assert (
            load(tmp_path / f"{rows}.safetensors")["a"].tobytes()
            == load(tmp_path / "whole.safetensors")["a"].tobytes()
        )
        again = api.distill(source, tmp_path / f"f{rows}.safetensors", method="low-rank", rank=9)
        assert again.changes == report.changes, "a whole method never sees a piece"


def test_tensors_that_would_grow_are_kept_and_named(tmp_path: Path) -> None:
    source = save(tmp_path / "in.safetensors", a=decaying(40, 50), tiny=decaying(3, 3))
    done = command("distill", source, "-o", tmp_path / "o.safetensors", "--method", "low-rank", "--rank", 2)
    assert done.code == 0, done.err
    assert "factors of rank 2 would be no smaller than the matrix: tiny" in done.out
    assert "a whole tensor is held at a time" in done.out
    done = command("distill", source, "-o", tmp_path / "p.safetensors", "--method", "low-rank", "--ratio", 0.01)
    assert "the ratio 0.01 cannot be reached: with rank 1 it is 0.0" in done.out
    done = command(
        *("distill", source, "-o", tmp_path / "q.safetensors", "--method", "low-rank", "--rank", 2, "--strict")
    )
    assert done.code == 2
    assert "tiny" in done.err


def test_a_convolution_is_a_matrix_of_its_filters(tmp_path: Path) -> None:
    weights = decaying(20, 54).reshape(20, 6, 3, 3)
    source = save(tmp_path / "in.safetensors", conv__weight=weights)
    api.distill(source, tmp_path / "o.safetensors", method="low-rank", rank=4)
    stored = archives.read(tmp_path / "o.safetensors")
    assert {name: shape for name, (_, shape, _) in stored.items()} == {
        "conv.weight.left": (20, 4),
        "conv.weight.right": (4, 54),
    }
    api.restore(tmp_path / "o.safetensors", tmp_path / "r.safetensors")
    assert load(tmp_path / "r.safetensors")["conv.weight"].shape == weights.shape


def test_one_option_says_how_large_the_rank_is(tmp_path: Path) -> None:
    source = save(tmp_path / "in.safetensors", a=decaying(40, 50), b=decaying(40, 50, 0.3))
    for options in ({}, {"rank": 3, "energy": 0.5}):
        with pytest.raises(UsageError, match="needs one of rank, energy, ratio"):
            api.distill(source, tmp_path / "o.safetensors", method="low-rank", **options)
    report = api.distill(
        source, tmp_path / "o.safetensors", method="low-rank", ratio=0.5, rules=[("b", {"rank": 3})]
    )
    assert {job.spec.name: job.parts[0].shape[1] for job in report.plan.jobs}["b"] == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "low-rank", "--rank", "0"], "--rank: must be an integer from 1"),
        (["--method", "low-rank", "--energy", "nan"], "--energy: must be a number"),
        (["--method", "low-rank", "--ratio", "1"], "--ratio: must be a number above 0 and below 1"),
        (["--method", "low-rank", "--rank", "2", "--teacher", "in.safetensors"], "low-rank takes no teacher"),
        (["--method", "low-rank", "--rank", "2", "--from", "in.safetensors"], "either a STUDENT or --from TEACHER"),
        (["--method", "reweight", "--teacher", "in.safetensors", "--store", "dense"], "store has no meaning"),
        (["--method", "residual", "--rank", "2"], "residual needs a teacher"),
        (["--rank", "2"], "method low-rank or method residual"),
    ],
)
def test_wrong_usage(more: list[str], said: str, tmp_path: Path) -> None:
    source = save(tmp_path / "in.safetensors", a=decaying(40, 50))
    more = [str(source) if part == "in.safetensors" else part for part in more]
    done = command("distill", source, "-o", tmp_path / "o.safetensors", *more)
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "o.safetensors").exists()


def test_in_a_pipeline(tmp_path: Path) -> None:
    source = save(tmp_path / "in.safetensors", a=decaying(40, 64))
    first = "distill:method=low-rank,energy=0.9"
    report = api.pipeline(
        source, tmp_path / "o.safetensors", stages=[f"{first},store=dense", "quantize:bits=8,granularity=channel"]
    )
    assert report.plan.jobs[0].dtype_after == "int8"
    with pytest.raises(UsageError, match="would fill what stage 0 made zero"):
        api.pipeline(source, tmp_path / "p.safetensors", stages=["prune:sparsity=0.5", first])
    with pytest.raises(UsageError, match="which stores codes"):
        api.pipeline(source, tmp_path / "p.safetensors", stages=[first, "quantize:bits=8"])


def test_factors_that_contradict_what_is_said_of_them(tmp_path: Path) -> None:
    source = save(tmp_path / "in.safetensors", a=decaying(40, 50))
    api.distill(source, tmp_path / "o.safetensors", method="low-rank", rank=3)
    metadata, parts = archives.metadata_of(tmp_path / "o.safetensors"), archives.read(tmp_path / "o.safetensors")
    tensors = {
        name: (dtype, np.frombuffer(data, "<f4").reshape(shape)) for name, (dtype, shape, data) in parts.items()
    }
    for old, new, said in (
        ('"rank":3', '"rank":4', "where F32 .* belongs"),
        ('"rank":3', '"rank":99999999', "is missing|belongs"),
        ('"rank":3', '"rank":0', "cannot be used"),
        ('"rank":3,', "", "cannot be used"),
    ):
        changed = {key: text.replace(old, new) for key, text in metadata.items()}
        archives.write(tmp_path / "bad.safetensors", tensors, changed)
        with pytest.raises(InputError, match=said):
            api.restore(tmp_path / "bad.safetensors", tmp_path / "r.safetensors")
    broken = dict(tensors)
    broken["a.right"] = ("F32", np.full((3, 50), np.nan, np.float32))
    archives.write(tmp_path / "nan.safetensors", broken, metadata)
    with pytest.raises(InputError, match="NaN"):
        api.restore(tmp_path / "nan.safetensors", tmp_path / "r.safetensors")


def test_what_lapack_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("did not converge")

    source = save(tmp_path / "in.safetensors", a=decaying(40, 50))
    monkeypatch.setattr(np.linalg, "eigh", fail)
    with pytest.raises(InputError, match="did not converge"):
        api.distill(source, tmp_path / "o.safetensors", method="low-rank", rank=3)
    monkeypatch.setattr(np.linalg, "eigvalsh", fail)
    with pytest.raises(InputError, match="did not converge"):
        api.distill(source, tmp_path / "o.safetensors", method="low-rank", energy=0.5)


# ---- residual --------------------------------------------------------------------------------------------

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A student that lost something of three tensors and nothing of another, and its teacher."""
    random = np.random.default_rng(5)
    tensors = {f"m__{n}__weight": random.standard_normal((20 + 10 * n, 30)).astype(np.float32) for n in range(4)}
    more = {"embed__weight": random.standard_normal((9, 30)).astype(np.float32), "m__0__bias": np.ones(20)}
    teacher = folder(tmp_path / "teacher", CONFIG, **tensors, **more)
    for n in range(3):
        tensors[f"m__{n}__weight"] = tensors[f"m__{n}__weight"] + decaying(20 + 10 * n, 30, n / 2, n)
    return folder(tmp_path / "student", CONFIG, **tensors, **more), teacher


@pytest.mark.parametrize("options", [{"rank": 4}, {"energy": 0.6}, {"error": 0.05}], ids=lambda o: next(iter(o)))
def test_an_adapter_gives_back_the_best_of_its_rank(
    pair: tuple[Path, Path], options: dict[str, Any], tmp_path: Path
) -> None:
    student, teacher = pair
    report = api.distill(student, tmp_path / "a", teacher=teacher, method="residual", **options)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    sides, config = (
        load(tmp_path / "a" / "adapter_model.safetensors"),
        json.loads((tmp_path / "a" / "adapter_config.json").read_text()),
    )
    ours, theirs = load(student / "model.safetensors"), load(teacher / "model.safetensors")
    ranks = {}
    for job, change in report.rows:
        module = job.spec.name.removesuffix(".weight")
        ranks[module] = len(sides[f"base_model.model.{module}.lora_A.weight"])
        product = (
            sides[f"base_model.model.{module}.lora_B.weight"] @ sides[f"base_model.model.{module}.lora_A.weight"]
        )
        wanted = theirs[job.spec.name] - ours[job.spec.name]
        left = np.linalg.norm(wanted - product)
        values = np.linalg.svd(wanted, compute_uv=False)
        assert left == pytest.approx(np.sqrt(np.sum(values[ranks[module] :] ** 2)), rel=1e-4, abs=1e-5)
        assert change is not None
        assert change.error == pytest.approx(left / np.linalg.norm(theirs[job.spec.name]), rel=1e-4, abs=1e-6)
        if "error" in options:
            assert change.error <= options["error"] * (1 + 1e-6)
    assert config["target_modules"] == sorted(ranks)
    assert "m.3" not in ranks
    assert config["r"] == config["lora_alpha"] in ranks.values()
    assert set(config["rank_pattern"].values()) == set(ranks.values()) - {config["r"]}
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", "student")
    notes = " ".join(report.plan.notes)
    assert "without the adapter the student's relative error is 0." in notes
    assert "embedding: adapters are for linear layers: embed.weight" in notes
    assert "m.3.weight" in notes


def test_adapters_are_planned_to_the_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    student, teacher = pair
    options: dict[str, Any] = {"teacher": teacher, "method": "residual", "error": 0.04, "base": "hub/name"}
    said = api.distill(student, tmp_path / "a", **options, dry_run=True).plan
    assert not (tmp_path / "a").exists()
    for name, workers in (("a", 1), ("b", 2)):
        plan = api.distill(student, tmp_path / name, **options, workers=workers).plan
        assert plan.fingerprint == said.fingerprint
    for file in (*said.to_dict()["files"],):
        assert (tmp_path / "a" / file["name"]).stat().st_size == file["bytes"]
        assert (tmp_path / "a" / file["name"]).read_bytes() == (tmp_path / "b" / file["name"]).read_bytes()
    assert '"hub/name"' in (tmp_path / "a" / "adapter_config.json").read_text()


def test_students_in_codes_and_files_without_config(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, teacher = pair
    api.quantize(teacher, tmp_path / "int3", bits=3, granularity="channel")
    report = api.distill(tmp_path / "int3", tmp_path / "a", teacher=teacher, method="residual", rank=2)
    assert len(report.rows) == 4
    api.prune(teacher / "model.safetensors", tmp_path / "pruned.safetensors", sparsity=0.5)
    report = api.distill(
        tmp_path / "pruned.safetensors", tmp_path / "b", teacher=teacher, method="residual", rank=2
    )
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["task_type"] is None
    assert "task_type is left open" in " ".join(report.plan.notes)


def test_pairs_that_are_none(pair: tuple[Path, Path], tmp_path: Path) -> None:
    student, teacher = pair
    shared: dict[str, Any] = {"method": "residual", "rank": 2}
    other = save(tmp_path / "other.safetensors", m__0__weight=np.ones((3, 3)))
    with pytest.raises(CompressorError) as caught:
        api.distill(student, tmp_path / "a", teacher=other, **shared)
    said = str(caught.value)
    assert "shape [20, 30]" in said
    assert "no tensor of that name" in said
    with pytest.raises(InputError, match="no tensor needs an adapter"):
        api.distill(teacher, tmp_path / "a", teacher=teacher, **shared)
    with pytest.raises(InputError, match=r"no tensor needs an adapter: .*its error is at most 0.9"):
        api.distill(student, tmp_path / "a", teacher=teacher, method="residual", error=0.9)
    far = save(tmp_path / "far.safetensors", m__0__weight=np.full((20, 30), 3e38))
    near = save(tmp_path / "near.safetensors", m__0__weight=np.full((20, 30), -3e38))
    with pytest.raises(InputError, match="the difference from the teacher leaves the range"):
        api.distill(near, tmp_path / "a", teacher=far, **shared)
    infinite = save(tmp_path / "inf.safetensors", m__0__weight=np.full((20, 30), np.inf))
    with pytest.raises(InputError, match="NaN or infinite"):
        api.distill(near, tmp_path / "a", teacher=infinite, **shared)
    assert not (tmp_path / "a").exists()


def test_places_and_models_that_take_no_adapter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    student, teacher = pair
    shared: dict[str, Any] = {"method": "residual", "rank": 2}
    with pytest.raises(UsageError, match="writes a folder"):
        api.distill(student, tmp_path / "a.safetensors", teacher=teacher, **shared)
    with pytest.raises(UsageError, match="no other stage may change"):
        api.pipeline(
            student,
            tmp_path / "a",
            teacher=teacher,
            stages=["distill:method=residual,rank=2", "prune:sparsity=0.5"],
        )
    for name in ("s.npy", "t.npy"):
        np.save(tmp_path / name, decaying(20, 30, seed=len(name)))
    with pytest.raises(InputError, match="names no module"):
        api.distill(tmp_path / "s.npy", tmp_path / "a", teacher=tmp_path / "t.npy", **shared)


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "inside", "no config"])
def test_adapters_of_conv1d_layers_are_for_the_weights_as_peft_sees_them(tmp_path: Path, kind: str) -> None:
    """A Conv1D's weight lies [in, out]; PEFT's factors are [out, rank] and [rank, in] all the same."""
    config = {
        "inside": {"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}},
        "no config": None,
    }
    weight, bias = decaying(20, 30), np.zeros(30, np.float32)
    square = decaying(20, 20, seed=1)
    layers = {
        "h__0__mlp__c_fc__weight": weight,
        "h__0__attn__c_proj__weight": square,
        "h__0__mlp__c_fc__bias": bias,
    }
    gpt = folder(tmp_path / "gpt", config.get(kind, {"model_type": kind}), **layers)
    api.prune(gpt, tmp_path / "pruned", sparsity=0.5)
    api.distill(tmp_path / "pruned", tmp_path / "a", teacher=gpt, method="residual", rank=20)
    made, student = (
        load(tmp_path / "a" / "adapter_model.safetensors"),
        load(tmp_path / "pruned" / "model.safetensors"),
    )
    for name, teacher in (("h.0.mlp.c_fc", weight), ("h.0.attn.c_proj", square)):
        b, a = (made[f"base_model.model.{name}.lora_{side}.weight"] for side in "BA")
        assert (b.shape[0], a.shape[1]) == teacher.shape[::-1]
        np.testing.assert_allclose(student[f"{name}.weight"] + (b @ a).T, teacher, atol=1e-5)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["fan_in_fan_out"] is True


def test_statistics_of_conv1d_layers_are_of_their_inputs(tmp_path: Path) -> None:
    """Of 20 inputs, which are the rows of the file; other methods refuse them."""
    gpt = folder(tmp_path / "gpt", {"model_type": "gpt2"}, h__0__mlp__c_fc__weight=decaying(20, 30))
    api.prune(gpt, tmp_path / "pruned", sparsity=0.5)
    gather, rows = (
        Gather(20, gram=True),
        np.random.default_rng(2).standard_normal((200, 20)) * 2.0 ** -np.arange(20),
    )
    gather.add(rows)
    write_statistics(tmp_path / "stats.safetensors", [("h.0.mlp.c_fc", gather.layer)])
    teacher = load(gpt / "model.safetensors")["h.0.mlp.c_fc.weight"]
    student = load(tmp_path / "pruned" / "model.safetensors")["h.0.mlp.c_fc.weight"]
    lost = {}
    for name, more in (("plain", {}), ("informed", {"stats": tmp_path / "stats.safetensors"})):
        api.distill(tmp_path / "pruned", tmp_path / name, teacher=gpt, method="residual", rank=4, **more)
        made = load(tmp_path / name / "adapter_model.safetensors")
        b, a = (made[f"base_model.model.h.0.mlp.c_fc.lora_{side}.weight"] for side in "BA")
        lost[name] = float(np.linalg.norm(rows @ (student + (b @ a).T - teacher)))
    assert lost["informed"] < 0.5 * lost["plain"]
    with pytest.raises(InputError, match="Conv1D"):
        api.prune(gpt, tmp_path / "o", method="wanda", sparsity=0.5, stats=tmp_path / "stats.safetensors")


def test_layers_that_are_called_like_conv1d_and_are_none(tmp_path: Path) -> None:
    gpt = folder(tmp_path / "gpt", {"model_type": "gpt_bigcode"}, h__0__mlp__c_fc__weight=decaying(30, 20))
    api.prune(gpt, tmp_path / "pruned", sparsity=0.5)
    api.distill(tmp_path / "pruned", tmp_path / "a", teacher=gpt, method="residual", rank=2)
    made = load(tmp_path / "a" / "adapter_model.safetensors")
    assert made["base_model.model.h.0.mlp.c_fc.lora_B.weight"].shape == (30, 2)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["fan_in_fan_out"] is False


def test_a_masked_conv1d_layer(tmp_path: Path) -> None:
    weight = decaying(20, 30)
    teacher = folder(tmp_path / "t", {"model_type": "gpt2"}, h__0__mlp__c_fc__weight=weight)
    mask = (np.arange(600).reshape(20, 30) % 3 > 0).astype(np.float32)
    masked = {"h__0__mlp__c_fc__weight_orig": weight, "h__0__mlp__c_fc__weight_mask": mask}
    student = folder(tmp_path / "s", {"model_type": "gpt2"}, **masked)
    api.distill(student, tmp_path / "a", teacher=teacher, method="residual", rank=20)
    made = load(tmp_path / "a" / "adapter_model.safetensors")
    b, a = (made[f"base_model.model.h.0.mlp.c_fc.lora_{side}.weight"] for side in "BA")
    np.testing.assert_allclose(weight * mask + (b @ a).T, weight, atol=1e-5)


def test_codes_of_conv1d_layers_get_no_adapter(tmp_path: Path) -> None:
    """Loaders do not take such codes; what they stand for gets one."""
    gpt = folder(tmp_path / "gpt", {"model_type": "gpt2"}, h__0__mlp__c_fc__weight=decaying(20, 32))
    api.quantize(gpt, tmp_path / "codes", bits=4, granularity="channel", layout="compressor")
    shared: dict[str, Any] = {"teacher": gpt, "method": "residual", "rank": 2}
    for more in ({}, {"alternate": 2, "save_base": tmp_path / "base"}):
        with pytest.raises(InputError, match="Conv1D") as caught:
            api.distill(tmp_path / "codes", tmp_path / "a", **shared, **more)
        assert "compressor restore" in str(caught.value)
    assert not (tmp_path / "base").exists()
    api.restore(tmp_path / "codes", tmp_path / "dense")
    api.distill(tmp_path / "dense", tmp_path / "a", **shared)


def test_statistics_lower_the_error_of_outputs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Factors and adapters that know the inputs lose less of the outputs; with few samples too."""
    student, teacher = pair
    random = np.random.default_rng(2)
    for samples in (200, 10):
        rows = {n: random.standard_normal((samples, 30)) * 2.0 ** -np.arange(30) for n in range(4)}
        gathered = {n: Gather(30, gram=True) for n in rows}
        for n, gather in gathered.items():
            gather.add(rows[n])
        stats = tmp_path / f"stats{samples}.safetensors"
        write_statistics(stats, [(f"m.{n}", gather.layer) for n, gather in gathered.items()])
        ours, theirs = load(student / "model.safetensors"), load(teacher / "model.safetensors")
        only: dict[str, Any] = {"include": ["m.*.weight"], "force": True}
        lost: dict[str, float] = {}
        for name, more in (("plain", {}), ("informed", {"stats": stats})):
            given = {**only, **more}
            api.distill(teacher, tmp_path / "d.safetensors", method="low-rank", rank=4, store="dense", **given)
            made = load(tmp_path / "d.safetensors")
            api.distill(student, tmp_path / "a", teacher=teacher, method="residual", rank=4, **given)
            sides = load(tmp_path / "a" / "adapter_model.safetensors")
            factored = adapted = 0.0
            for n in range(3):
                weight = f"m.{n}.weight"
                factored += float(np.linalg.norm((made[weight] - theirs[weight]) @ rows[n].T))
                start = f"base_model.model.m.{n}.lora_"
                sum_ = ours[weight] + sides[f"{start}B.weight"] @ sides[f"{start}A.weight"]
                adapted += float(np.linalg.norm((sum_ - theirs[weight]) @ rows[n].T))
            lost[f"{name} factors"], lost[f"{name} adapters"] = factored, adapted
        assert lost["informed factors"] < 0.5 * lost["plain factors"]
        assert lost["informed adapters"] < 0.5 * lost["plain adapters"]
        report = api.distill(
            teacher, tmp_path / "e.safetensors", method="low-rank", energy=0.99, stats=stats, **only
        )
        for job, _ in report.rows:
            n = int(job.spec.name.split(".")[1])
            values = np.linalg.svd(theirs[job.spec.name] @ rows[n].T, compute_uv=False)
            share = np.cumsum(values**2) / np.sum(values**2)
            assert job.parts[0].shape[1] == int(np.argmax(share >= 0.99)) + 1
        assert "damped by 1e-06" in " ".join(report.plan.notes)
        only["stats"] = stats
        told = api.distill(student, tmp_path / "a", teacher=teacher, method="residual", error=0.05, **only)
        sides = load(tmp_path / "a" / "adapter_model.safetensors")
        for job, _ in told.rows:
            n = int(job.spec.name.split(".")[1])
            start = f"base_model.model.m.{n}.lora_"
            left = theirs[job.spec.name] - ours[job.spec.name]
            left = left - sides[f"{start}B.weight"] @ sides[f"{start}A.weight"]
            wanted = np.linalg.norm(theirs[job.spec.name] @ rows[n].T)
            assert np.linalg.norm(left @ rows[n].T) <= 0.0501 * wanted
    with pytest.raises(InputError, match="no statistics of its inputs"):
        api.distill(teacher, tmp_path / "f.safetensors", method="low-rank", energy=0.5, stats=stats)


# ---- base and adapter in turn --------------------------------------------------------------------------------


def pair_error(base: Path, adapter: Path, teacher: Path, folder: Path) -> float:
    """Of base and adapter together, relative, over the tensors that have one."""
    api.restore(base, folder, force=True)
    ours, theirs = load(folder / "model.safetensors"), load(teacher / "model.safetensors")
    sides, lost, energy = load(adapter / "adapter_model.safetensors"), 0.0, 0.0
    for start in {key.rpartition("lora_")[0] for key in sides}:
        weight = f"{start.removeprefix('base_model.model.')}weight"
        given = sides[f"{start}lora_B.weight"] @ sides[f"{start}lora_A.weight"]
        lost += float(np.linalg.norm(ours[weight] + given - theirs[weight]) ** 2)
        energy += float(np.linalg.norm(theirs[weight]) ** 2)
    return (lost / energy) ** 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 3, "granularity": "channel"},
        {"bits": 4, "granularity": "tensor", "symmetric": False},
        {"bits": 4, "rules": [("m.0*", {"bits": 2, "granularity": "channel"})]},
        {"scheme": "codebook", "entries": 4, "exclude": ["m.1*"]},
    ],
    ids=["channel", "tensor", "mixed", "codebook"],
)
def test_alternating_is_never_worse(pair: tuple[Path, Path], options: dict[str, Any], tmp_path: Path) -> None:
    _, teacher = pair
    if options.get("bits") == 4 and "rules" in options:
        options = {**options, "granularity": "channel"}
    api.quantize(teacher, tmp_path / "s", **options)
    shared: dict[str, Any] = {"teacher": teacher, "method": "residual", "rank": 3}
    api.distill(tmp_path / "s", tmp_path / "plain", **shared)
    alone = pair_error(tmp_path / "s", tmp_path / "plain", teacher, tmp_path / "r")
    errors = []
    for rounds in (1, 4):
        report = api.distill(
            *(tmp_path / "s", tmp_path / f"a{rounds}"),
            **shared,
            alternate=rounds,
            save_base=tmp_path / f"b{rounds}",
        )
        found = pair_error(tmp_path / f"b{rounds}", tmp_path / f"a{rounds}", teacher, tmp_path / "r")
        assert report.total is not None
        assert report.total.error == pytest.approx(found, rel=1e-3)
        errors.append(found)
        config = json.loads((tmp_path / f"a{rounds}" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == f"b{rounds}"
    assert errors[1] <= errors[0] <= alone * (1 + 1e-6)
    assert errors[1] < 0.99 * alone
    forms = [
        {n: (d, s) for n, (d, s, _) in archives.read(tmp_path / f / "model.safetensors").items()}
        for f in ("s", "b4")
    ]
    assert forms[0] == forms[1], "the base is stored as the student was"
    again = api.distill(
        *(tmp_path / "s", tmp_path / "a"), **shared, alternate=4, save_base=tmp_path / "b", workers=1, base="b4"
    )
    assert again.changes == report.changes
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == (
        tmp_path / "b4" / "model.safetensors"
    ).read_bytes()


def test_a_pipeline_makes_a_base_and_its_adapter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The two are what two commands make, down to the bytes but for what they record of their source."""
    _, teacher = pair
    stages = ["quantize:bits=4,granularity=channel", "distill:method=residual,rank=3"]
    made: dict[str, Any] = {"stages": stages, "save_base": tmp_path / "base"}
    report = api.pipeline(teacher, tmp_path / "adapter", **made)
    api.quantize(teacher, tmp_path / "by-hand", bits=4, granularity="channel")
    config = {"method": "residual", "rank": 3, "base": "base"}
    api.distill(tmp_path / "by-hand", tmp_path / "adapter-by-hand", teacher=teacher, **config)
    for one, other in (("base", "by-hand"), ("adapter", "adapter-by-hand")):
        (name,) = (path.name for path in (tmp_path / one).glob("*.safetensors"))
        assert archives.read(tmp_path / one / name) == archives.read(tmp_path / other / name)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said == json.loads((tmp_path / "adapter-by-hand" / "adapter_config.json").read_text())
    assert report.plan.notes[0].startswith("base and adapter: ")
    hashes = {
        path.parent.name: json.loads(archives.metadata_of(path)["compressor"])["source"]
        for name in ("base", "adapter", "by-hand", "adapter-by-hand")
        for path in (tmp_path / name).glob("*.safetensors")
    }
    assert hashes["base"] == hashes["adapter"] == hashes["by-hand"] != hashes["adapter-by-hand"]
    planned = api.pipeline(teacher, tmp_path / "dry", stages=stages, dry_run=True)
    assert planned.plan.size_after == report.plan.size_after
    assert not list(tmp_path.glob(".*")) + list(tmp_path.glob("dry*"))


def test_a_pipeline_alternates_base_and_adapter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, teacher = pair
    errors = []
    for rounds in ("", ",alternate=4"):
        stages = ["quantize:bits=3,granularity=channel", f"distill:method=residual,rank=3{rounds}"]
        base = tmp_path / f"base{rounds}"
        report = api.pipeline(teacher, tmp_path / f"adapter{rounds}", stages=stages, save_base=base)
        assert report.total is not None
        errors.append(report.total.error)
        assert base.is_dir()
    assert errors[1] < 0.99 * errors[0]


def test_what_a_pipeline_to_an_adapter_needs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, teacher = pair
    stages = ["quantize:bits=4,granularity=channel", "distill:method=residual,rank=3"]
    with pytest.raises(UsageError, match="for a base that the stages before it make") as caught:
        api.pipeline(teacher, tmp_path / "a", stages=stages)
    assert "--save-base" in caught.value.remedy
    with pytest.raises(UsageError, match="needs a teacher"):
        api.pipeline(teacher, tmp_path / "a", stages=stages[1:])
    with pytest.raises(UsageError, match="--save-base"):
        api.pipeline(teacher, tmp_path / "a", stages=stages, save_base=teacher)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("x")
    with pytest.raises(OutputError):
        api.pipeline(teacher, tmp_path / "a", stages=stages, save_base=tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("rounds", ["", ",alternate=2"])
def test_what_cannot_end_in_an_adapter_makes_no_base(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: str
) -> None:
    _, teacher = pair
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {
        "stages": ["quantize:bits=4,granularity=channel", f"distill:method=residual,rank=3{rounds}"],
        "save_base": Path("base"),
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    for given, said in (
        ({"work": "base"}, "--work base: is the base itself"),
        ({"work": "base/x"}, "--work base/x: lies inside the base folder"),
        ({"work": "w", "save_base": Path("w/base")}, "--work w: holds the base|its folder does not exist"),
        ({"stats": "s.safetensors"}, "--stats: no stage takes it"),
        ({"budget": Budget(target_bits=4)}, "a budget is for recipes without a teacher"),
    ):
        with pytest.raises(CompressorError, match=said):
            api.pipeline(teacher, Path("a"), **{**made, **given})
        assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("rounds", ["", ",alternate=2"])
def test_who_gets_no_adapter_is_told_of_the_base(
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rounds: str,
) -> None:
    _, teacher = pair
    monkeypatch.chdir(tmp_path)
    stages = ["quantize:bits=4,granularity=channel", f"distill:method=residual,rank=3{rounds}"]
    command = ["pipeline", str(teacher), "-o", "a", *(word for one in stages for word in ("--stage", one))]
    assert run([*command, "--save-base", "base", "--max-error", "1e-6", "-q"]) == 1
    assert capsys.readouterr().err.endswith(". Only base was written\n")
    assert list(Path("base").glob("*.safetensors"))
    assert not Path("a").exists()
    assert cleanup.beside() == "only base was written"
    assert not cleanup.is_published()  # so that a signal is not taken for one that comes too late


def test_what_alternating_needs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    student, teacher = pair
    api.quantize(teacher, tmp_path / "int4", bits=4, granularity="channel")
    more: dict[str, Any] = {"teacher": teacher, "method": "residual", "alternate": 2, "save_base": tmp_path / "b"}

    def refused(kind: type[Exception], said: str, given: Path, **options: Any) -> None:
        with pytest.raises(kind, match=said):
            api.distill(given, tmp_path / "a", **{**more, **options})
        assert not (tmp_path / "a").exists()
        assert not (tmp_path / "b").exists()

    refused(UsageError, "needs --rank", tmp_path / "int4", error=0.01)
    refused(UsageError, "makes another base", tmp_path / "int4", rank=2, save_base=None)
    refused(UsageError, "is for --alternate", tmp_path / "int4", rank=2, alternate=None)
    refused(
        UsageError,
        "--save-base .* is the output or input itself",
        tmp_path / "int4",
        rank=2,
        save_base=tmp_path / "int4",
    )
    refused(InputError, "not quantized by this tool; --alternate needs", student, rank=2)
    api.pipeline(teacher, tmp_path / "both", stages=["prune:sparsity=0.5", "quantize:bits=4,granularity=channel"])
    refused(InputError, "is prune, quantize; --alternate needs", tmp_path / "both", rank=2)
    api.quantize(teacher, tmp_path / "sparse", bits=4, granularity="channel", store="bitmask")
    refused(InputError, "is stored as int4 bitmask", tmp_path / "sparse", rank=2)
    report = api.distill(tmp_path / "int4", tmp_path / "a", **more, rank=2, dry_run=True)
    assert report.changes is None
    assert not (tmp_path / "b").exists()
    done = command(
        *("distill", tmp_path / "int4", "--teacher", teacher, "-o", tmp_path / "a", "--method", "residual"),
        *("--rank", 2, "--alternate", 2, "--save-base", tmp_path / "b"),
    )
    assert done.code == 0, done.err
    assert (tmp_path / "b" / "config.json").exists()


def test_what_the_methods_say_before_a_survey() -> None:
    spec = TensorSpec("a.weight", "F32", (8, 8))
    for method in (LowRank(energy=0.5), Residual(rank=2)):
        assert method.decoder_for(spec) is None
