"""Several jobs that write one output, each a part of it: the bytes of one run, or a refusal that says why."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.console import compressor as command
from support.fault_injection import Server, invoke, make_folder, strays, tree
from support.layer_inputs import correlated

from compressor import api
from compressor.calibration.statistics import write_statistics
from compressor.core.errors import CompressorError, GateFailed, InputError, OutputError, UsageError
from compressor.engine.execution import cut, parts, runner, units
from compressor.engine.execution.units import Share
from compressor.engine.plan import planner
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.request import PlanRequest
from compressor.files.identity import identity_of
from compressor.files.sealed_json import sealed
from compressor.recipe.gates import Gates
from compressor.workflows import one_pass

N = 3
SHAPES = {
    "model.embed_tokens.weight": (96, 64),
    **{f"model.layers.{n}.mlp.{name}_proj.weight": (64, 64) for n in range(2) for name in ("up", "gate", "down")},
    "model.layers.0.self_attn.q_proj.weight": (512, 64),
    **{f"model.layers.{n}.input_layernorm.weight": (64,) for n in range(2)},
}


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of some thousand weights are divided as those of many millions are."""
    monkeypatch.setattr(cut, "CHUNK", 1 << 12)
    monkeypatch.setattr(cut, "BLOCK", 1 << 11)
    for module in (units, runner):
        monkeypatch.setattr(module, "SMALL", 1 << 11)
    monkeypatch.setattr(units, "BATCH", 1 << 11)


def tensors(dtype: Any = ml_dtypes.bfloat16) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def make_model(place: Path) -> Path:
    """A folder of two shards, and what stands beside them."""
    model, found, of = place / "model", tensors(), dict[str, str]()
    model.mkdir()
    for number in range(2):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        own = {name: found[name] for name in sorted(found)[number::2]}
        save_file(own, model / file, {"format": "pt"})
        of |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": of}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "config.json").write_text('{"architectures": ["Tiny"], "hidden_size": 64}')
    (model / "tokenizer.json").write_text('{"version": "1.0"}')
    return model


def make_file(place: Path) -> Path:
    save_file(tensors(np.float32), place / "in.safetensors")
    return place / "in.safetensors"


def make_array(place: Path) -> Path:
    np.save(place / "in.npy", tensors(np.float32)["model.layers.0.self_attn.q_proj.weight"])
    return place / "in.npy"


MAKE: dict[str, Callable[[Path], Path]] = {"model": make_model, "file": make_file, "array": make_array}

# What is read, what the output is called, and what is done.
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "int4": ("model", "out", {"bits": 4}),
    "int8 of a file": ("file", "out.safetensors", {"bits": 8}),
    "gptq's layout": ("model", "out", {"bits": 4, "layout": "gptq", "group_size": 32}),
    "gptq's layout of a file": ("file", "out.safetensors", {"bits": 4, "layout": "gptq", "group_size": 32}),
    "mlx's layout": ("model", "out", {"bits": 4, "layout": "mlx", "group_size": 32}),
    "by gptq": ("model", "out", {"bits": 4, "method": "gptq", "group_size": 32, "stats": "stats"}),
    "a scale for a tensor": ("model", "out", {"bits": 8, "granularity": "tensor"}),
    "nvfp4": ("model", "out", {"scheme": "nvfp4"}),
    "one file of shards": ("model", "out.safetensors", {"scheme": "fp8"}),
    "a budget": ("model", "out", {"target_bits": 5.0}),
    "codes": ("array", "out.npz", {"bits": 8}),
    "an array": ("array", "out.npy", {"sparsity": 0.5, "scope": "global"}),
    "pruned over all": ("model", "out", {"sparsity": 0.5, "scope": "global"}),
    "pruned over all of a file": ("file", "out.safetensors", {"sparsity": 0.7, "scope": "global"}),
    "pruned and stored sparse": ("model", "out", {"sparsity": 0.6, "scope": "global", "store": "bitmask"}),
    "rows of unequal length": ("file", "out.safetensors", {"sparsity": 0.6, "scope": "global", "store": "csr"}),
    "an archive": ("model", "out", {"bits": 4, "store": "archive"}),
    "an archive of numbers": ("file", "out.safetensors", {"archived": True}),
    "restored": ("model", "out", {}),
}


def run(source: Path, output: Path, options: dict[str, Any], **more: Any) -> Any:
    """The verb that the options are of."""
    options = dict(options)
    if "stats" in options:
        options["stats"] = source.parent / "stats.safetensors"
    if options.pop("archived", False):
        return api.pipeline(source, output, store="archive", **more)
    verb = api.restore if not options else api.prune if "sparsity" in options else api.quantize
    return verb(source, output, **options, **more)


def parts_of(output: Path, count: int = N) -> list[Path]:
    return [output.with_name(f"{output.name}.part-{number}-of-{count}") for number in range(1, count + 1)]


# What another run here shows for another container.
AGAIN = ("int8 of a file", "gptq's layout of a file", "pruned over all of a file", "an archive of numbers")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.faults if name in AGAIN else ()) for name in RUNS]
)
@pytest.mark.usefixtures("fine")
def test_parts_make_the_bytes_of_one_run(tmp_path: Path, name: str) -> None:
    check_parts(tmp_path, *RUNS[name])


@pytest.mark.faults  # each part tries several sizes
@pytest.mark.usefixtures("fine")
def test_what_an_input_is_known_by_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads some hundred megabytes of a large model; and so is the plan's fingerprint."""
    seen: list[str] = []
    for module in (one_pass, parts):
        monkeypatch.setattr(module, "identity_of", lambda source: seen.append("identity") or identity_of(source))
    plain = planner.with_fingerprint

    def with_fingerprint(plan: Plan, request: PlanRequest) -> Plan:
        found = plain(plan, request)
        assert vars(found)["fingerprint"] == replace(found).fingerprint
        seen.append("fingerprint")
        return found

    monkeypatch.setattr(one_pass, "with_fingerprint", with_fingerprint)
    api.quantize(make_model(tmp_path), tmp_path / "out", bits=4, part="1/2")
    assert sorted(seen) == ["fingerprint", "identity"]


def test_parts_of_an_archive_under_a_budget(tmp_path: Path) -> None:
    check_parts(tmp_path, "file", "out.safetensors", {"target_bits": 5.0, "store": "archive"})


def check_parts(tmp_path: Path, kind: str, called: str, options: dict[str, Any]) -> None:
    source = MAKE[kind](tmp_path)
    if "stats" in options:
        layers = {name.removesuffix(".weight"): correlated(64) for name in SHAPES if "_proj" in name}
        write_statistics(str(tmp_path / "stats.safetensors"), layers.items())
    (tmp_path / "one").mkdir()
    one, out = tmp_path / "one" / called, tmp_path / called
    whole = run(source, one, options, workers=2)
    for number in (2, 1, 3):
        report = run(source, out, options, part=f"{number}/{N}", workers=1 + number % 2)
        assert report.part is not None
    parts = parts_of(out)
    assert not out.exists()
    assert [part.name for part in parts] == sorted(set(os.listdir(tmp_path)) & {part.name for part in parts})
    merged = api.merge([parts[1], parts[2], parts[0]], out)
    assert tree(out) == tree(one)
    assert merged.size_after == sum(file.layout.size for file in whole.plan.files)
    changes = {job.spec.name: change for job, change in zip(whole.plan.jobs, whole.changes, strict=True)}
    assert {one.name: one.change for one in merged.tensors} == changes  # to the last bit of each sum
    assert [one.name for one in merged.rows] == [job.spec.name for job, _ in whole.rows]
    assert strays(tmp_path) == []


@pytest.mark.usefixtures("fine")
def test_no_part_does_more_than_its_share(tmp_path: Path) -> None:
    source = make_model(tmp_path)
    done = []
    for number in range(1, N + 1):
        report = api.quantize(source, tmp_path / "out", bits=4, part=f"{number}/{N}")
        done.append(sum(change.size for change in report.changes))
    assert sum(done) == sum(np.prod(shape) for shape in SHAPES.values())
    assert max(done) - min(done) <= 2 * (1 << 12)  # a chunk at either end


def test_shares_are_all_of_it_once() -> None:
    chance = random.Random(0)
    for count in (1, 2, 3, 7, 40):
        every: Any = [SimpleNamespace(nbytes=chance.randrange(1, 1 << 40)) for _ in range(chance.randrange(1, 30))]
        shares = [Share(number, count).of(every) for number in range(1, count + 1)]
        assert [unit for share in shares for unit in share] == every


@pytest.mark.usefixtures("fine")
def test_a_part_that_has_whole_files_gives_them_by_name(tmp_path: Path) -> None:
    """Nothing is copied of a shard that one part has made by itself."""
    source, out = make_model(tmp_path), tmp_path / "out"
    for number in (1, 2):
        api.prune(source, out, sparsity=0.5, scope="global", part=f"{number}/2")
    files = [entry for part in parts_of(out, 2) for entry in part.glob("*.safetensors.part")]
    names = [entry.name for entry in files]
    lone = {entry.name: entry.stat().st_ino for entry in files if names.count(entry.name) == 1}
    api.merge(parts_of(out, 2), out)
    assert lone
    for name, number in lone.items():
        assert (out / name.removesuffix(".part")).stat().st_ino == number


# ---- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "1/0", "-1/3", "1/3/5", "a/b", "", "1/100001", "１/３"])
def test_what_is_no_part(tmp_path: Path, part: str) -> None:
    source = make_array(tmp_path)
    with pytest.raises(UsageError, match="is not K/N with K from 1 to N"):
        api.prune(source, tmp_path / "out.npy", sparsity=0.5, part=part)
    assert os.listdir(tmp_path) == ["in.npy"]


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("prune", {"sparsity": 0.5, "save_mask": "mask.safetensors"}, "--save-mask is for a run by itself"),
        ("pipeline", {"stages": ["prune:sparsity=.5"], "work": "work"}, "--work is for a run by itself"),
        (
            "distill",
            {"method": "soft-targets", "teacher": "in.safetensors", "inputs": "x.npy"},
            "has a training, or several passes",
        ),
        ("tune", {"evaluate": "true", "min_metric": 0.5}, "a search goes by whole outputs"),
    ],
)
def test_what_has_no_parts(
    tmp_path: Path, verb: str, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        getattr(api, verb)("in.safetensors", "out.safetensors", part="1/2", **options)
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_the_merged_output_does_as_a_mask(tmp_path: Path) -> None:
    """As is said of --save-mask."""
    source, out = make_array(tmp_path), tmp_path / "out.npy"
    for number in (1, 2):
        api.prune(source, out, sparsity=0.5, part=f"{number}/2")
    api.merge(parts_of(out, 2), out)
    api.prune(source, tmp_path / "again.npy", mask=out)
    assert tree(tmp_path / "again.npy") == tree(out)


@pytest.fixture
def made(tmp_path: Path, fine: None) -> tuple[Path, Path]:
    """A model, and the place of an output of which all three parts are there."""
    source, out = make_model(tmp_path), tmp_path / "out"
    for number in range(1, N + 1):
        api.quantize(source, out, bits=4, part=f"{number}/{N}")
    return source, out


def refused(parts: list[Path], out: Path, error: type[CompressorError], said: str, **options: Any) -> None:
    there = sorted(os.listdir(out.parent))
    with pytest.raises(error, match=said):
        api.merge(parts, out, **options)
    assert sorted(os.listdir(out.parent)) == there


def rewrite(place: Path, **changed: Any) -> None:
    """Have its record say something else, as one that was written so."""
    said = json.loads((place / "part.json").read_text())
    del said["content"]
    (place / "part.json").write_bytes(sealed(said | changed))


def test_an_output_of_another_container(made: tuple[Path, Path]) -> None:
    """Nothing is called what it is not."""
    _, out = made
    refused(parts_of(out), out.with_name("out.npy"), UsageError, "the parts are of a folder. Name a folder")
    for part in parts_of(out):
        rewrite(part, container="zip")
    refused(parts_of(out), out, InputError, "is damaged")


def test_parts_that_do_not_make_an_output(made: tuple[Path, Path]) -> None:
    source, out = made
    first, second, third = parts = parts_of(out)
    refused([], out, UsageError, "there are no parts to merge")
    refused([first, third], out, UsageError, "part 2/3 is missing")
    refused([second], out, UsageError, "parts 1/3, 3/3 are missing")
    refused([first, second, first, third], out, UsageError, "part 1/3 is given twice")
    refused([first, second, source], out, InputError, "is no part that a run with --part has written")
    refused([first, second, out.with_name("none")], out, InputError, "is no part")
    api.quantize(source, out, bits=4, part="2/2")
    refused([first, second, parts_of(out, 2)[1]], out, InputError, "is one of 2 parts")
    api.quantize(source, out, bits=8, part="3/3", force=True)
    refused(parts, out, InputError, "is of another plan")
    api.quantize(source, out, bits=4, part="3/3", force=True, gates=Gates(max_error=0.9))
    refused(parts, out, InputError, "is of another plan")


def test_an_output_or_a_part_that_is_there(made: tuple[Path, Path]) -> None:
    source, out = made
    parts = parts_of(out)
    old = tree(parts[0])
    with pytest.raises(OutputError, match="exists already"):
        api.quantize(source, out, bits=4, part="1/3")
    api.quantize(source, out, bits=4, part="1/3", force=True)
    assert tree(parts[0]) == old
    api.merge(parts, out)
    with pytest.raises(OutputError, match="exists already"):
        api.quantize(source, out, bits=4, part="1/3")
    refused(parts, out, OutputError, "exists already")
    whole = tree(out)
    api.merge(parts, out, force=True, remove_parts=True)
    assert tree(out) == whole
    assert not any(part.exists() for part in parts)


def test_parts_of_other_versions(made: tuple[Path, Path]) -> None:
    _, out = made
    parts = parts_of(out)
    rewrite(parts[1], tool="0.0.1")
    refused(parts, out, InputError, "is of compressor 0.0.1, and")
    rewrite(parts[1], version=2)
    refused(parts, out, InputError, "is a part of another version of parts")


def test_inputs_that_change_between_parts(made: tuple[Path, Path]) -> None:
    source, out = made
    parts = parts_of(out)
    shard = source / "model-00002-of-00002.safetensors"
    later = shard.stat().st_mtime_ns + 1
    os.utime(shard, ns=(later, later))
    api.quantize(source, out, bits=4, part="3/3", force=True)
    refused(parts, out, InputError, "was made of files of other times .* say so with --copies|other times")
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x3f")
    api.quantize(source, out, bits=4, part="3/3", force=True)
    refused(parts, out, InputError, "was made of other inputs", copies=True)


def test_copies_of_an_input_are_the_same_input(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = made
    other = tmp_path / "elsewhere" / "model"
    shutil.copytree(source, other, copy_function=shutil.copyfile)
    api.quantize(other, out, bits=4, part="3/3", force=True)
    parts = parts_of(out)
    refused(parts, out, InputError, "other times")
    api.merge(parts, out, copies=True)
    api.quantize(source, tmp_path / "one", bits=4)
    assert tree(out) == tree(tmp_path / "one")


def test_gates_are_judged_of_all_parts_together(tmp_path: Path) -> None:
    source, out = make_model(tmp_path), tmp_path / "out"
    gates = Gates(max_error=0.01)
    for number in (1, 2):
        api.quantize(source, out, bits=4, gates=gates, part=f"{number}/2")
    with pytest.raises(GateFailed, match=r"--max-error 0\.01: the relative error of"):
        api.merge(parts_of(out, 2), out)
    assert not out.exists()
    with pytest.raises(GateFailed, match=r"--max-error 0\.01: the relative error of") as failed:
        api.quantize(source, out, bits=4, gates=gates)
    code, lines = invoke(["merge", *map(str, parts_of(out, 2)), "-o", str(out), "-q"])
    assert code == 1
    assert str(failed.value) in lines[-1]


def test_parts_that_were_changed(made: tuple[Path, Path]) -> None:
    _, out = made
    parts = parts_of(out)
    chance = random.Random(0)
    for _ in range(6):
        part = chance.choice(parts)
        file = chance.choice([entry for entry in sorted(part.iterdir()) if entry.name != "part.json"])
        whole = file.read_bytes()
        file.write_bytes(whole[: chance.randrange(len(whole))])
        refused(parts, out, InputError, "was changed since it was written")
        file.unlink()
        refused(parts, out, InputError, "cannot be opened")
        file.write_bytes(whole)
    shard = parts[0] / "model-00001-of-00002.safetensors.part"
    data = bytearray(shard.read_bytes())
    data[-200] ^= 1
    content = bytes(data)
    own = json.loads((parts[0] / "part.json").read_text())["files"][0][5]
    if any(begin <= len(data) - 200 < begin + size for begin, size, _, _ in own):
        shard.write_bytes(content)
        refused(parts, out, InputError, "was changed since it was written")


def test_a_record_that_was_changed(made: tuple[Path, Path]) -> None:
    """Whatever becomes of part.json: an output of the very bytes, or an error of one line, and no other trace."""
    source, out = made
    parts = parts_of(out)
    one = out.with_name("one")
    api.quantize(source, one, bits=4)
    whole, record = tree(one), parts[1] / "part.json"
    good, chance = record.read_bytes(), random.Random(1)
    said = json.loads(good)
    for key in said.keys() - {"content"}:
        for value in (None, 7, "x", [], [[]], {"a": 1}):
            rewrite(parts[1], **{key: value})
            _check(parts, out, whole)
            record.write_bytes(good)
    file = next(file for file in said["files"] if file[5])
    for extent in ([0, 0, 0, 1 << 61], [0, 0, 1, 1], [0, 1, 0, 1 << 40]):  # nothing, or the same again and again
        rewrite(parts[1], files=[[*file[:5], [*file[5], extent]]])
        refused(parts, out, InputError, "is damaged")
    rewrite(parts[1], part=[2, 1 << 62])
    refused(parts[1:2], out, InputError, "is damaged")
    record.write_text(json.dumps(said | {"said": {**said["said"], "gates": {}}}))
    refused(parts, out, InputError, "is damaged")
    for _ in range(12):
        at = chance.randrange(len(good))
        record.write_bytes(good[:at] + bytes([chance.randrange(256)]) + good[at + 1 :])
        _check(parts, out, whole)


def _check(parts: list[Path], out: Path, whole: Any) -> None:
    try:
        api.merge(parts, out)
    except CompressorError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it need not fail
        assert not out.exists()
    else:
        assert tree(out) == whole
        shutil.rmtree(out)
    assert strays(out.parent) == []


# ---- kills ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    serving = Server()
    yield serving
    serving.close()


def kill_parts(place: Path, server: Server, times: int, source: Path, options: list[str]) -> dict[str, int]:
    """Jobs that are killed at random calls to the kernel, and begun again; what they led to."""
    whole, out, chance = place / "whole", place / "out", random.Random(times)
    command_of = [*options, str(source), "-q", "-o"]
    assert server.run([*command_of, str(whole)]).code == 0
    outcomes = {"nothing": 0, "a part": 0}
    good = None
    for round_ in range(times):
        number = round_ % 2 + 1
        part = parts_of(out, 2)[number - 1]
        shutil.rmtree(part, ignore_errors=True)
        arguments = [*command_of, str(out), "--part", f"{number}/2"]
        killed = server.run(arguments, die_at=chance.randrange(1, 60))
        assert killed.code in (0, -9), killed
        outcomes["a part" if part.exists() else "nothing"] += 1
        if not part.exists():
            assert server.run(arguments).code == 0
        for stray in strays(place):
            shutil.rmtree(place / stray)
        other = parts_of(out, 2)[2 - number]
        if not other.exists():
            continue
        assert server.run(["merge", str(part), str(other), "-o", str(out), "-q"]).code == 0
        assert tree(out) == tree(whole)
        good = tree(out)
        shutil.rmtree(out)
    assert good is not None
    return outcomes


def test_killed_parts_leave_nothing_half_written(tmp_path: Path, server: Server) -> None:
    source = make_folder(tmp_path / "in")
    outcomes = kill_parts(tmp_path, server, 2, source, ["quantize", "--bits", "8"])
    assert outcomes["nothing"] > 0


@pytest.mark.faults
@pytest.mark.parametrize(
    "options", [["quantize", "--bits", "4"], ["prune", "--sparsity", ".5", "--scope", "global"]]
)
def test_parts_killed_fifty_times(tmp_path: Path, server: Server, options: list[str]) -> None:
    make_model(tmp_path)
    big = np.random.default_rng(1).standard_normal((5000, 1000)).astype(np.float32)
    source = tmp_path / "big.safetensors"
    save_file({**tensors(np.float32), "big.weight": big}, source)
    print(options, kill_parts(tmp_path, server, 50, source, options))


# ---- the command line ----------------------------------------------------------------------------------


def test_the_command_line(made: tuple[Path, Path]) -> None:
    _, out = made
    told = command("merge", *parts_of(out), "-o", out, "--format", "json", "--remove-parts")
    assert told.code == 0
    said = json.loads(told.out)
    assert (said["verb"], said["parts"]) == ("merge", N)
    assert sorted(os.listdir(out.parent)) == ["model", "out"]


def test_a_log_spoils_no_file_and_lies_at_no_place_of_the_run(made: tuple[Path, Path]) -> None:
    source, out = made
    run = ["quantize", source, "-o", out, "--bits", "4", "--part", "1/3", "--max-error", "1", "-q", "--force"]
    array = source.parent / "other.npy"
    np.save(array, np.zeros(3))
    before = array.read_bytes()
    for place, code, said in (
        (array, 4, "is there, and is no log"),
        (out.parent / "model", 2, "is the input itself"),
        (parts_of(out)[0] / "log", 2, "lies inside the output folder"),
    ):
        told = command(*run, "--log-file", place)
        assert (told.code, said in told.err) == (code, True), told.err
    assert array.read_bytes() == before
    told = command(*[one for one in run if one != "-q"], "--log-file", os.devnull)
    assert told.code == 0
    assert "makes the output of all parts, and judges the gates" in told.err + told.out
