"""What files say of themselves: our own record and compressed-tensors' config, honest, damaged and hostile."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import archives
from support.console import LLAMA, TEACHER, compressor
from support.laws import store

from compressor import api
from compressor.checkpoint import record as provenance
from compressor.cli.report import render
from compressor.core.errors import InputError
from compressor.files import identity


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher with codes of two kinds."""
    path = tmp_path_factory.mktemp("packed") / "packed.safetensors"
    rules = [("fc1*", {"bits": 3, "granularity": "channel", "layout": "compressor"})]
    api.quantize(TEACHER, path, bits=8, layout="int-quantized", rules=rules)
    return path


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy whose record was changed."""
    tensors = {n: (d, np.frombuffer(b, np.uint8)) for n, (d, _, b) in archives.read(source).items()}
    header = archives.header_of(source)
    metadata = header.pop("__metadata__")
    record = json.loads(metadata["compressor"])
    found = change(record)
    metadata["compressor"] = found if isinstance(found, str) else json.dumps(record)
    data = b""
    for name, entry in header.items():
        content = tensors[name][1].tobytes()
        entry["data_offsets"] = [len(data), len(data) + len(content)]
        data += content
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    target.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return target


# ---- our own record ------------------------------------------------------------------------------------


def test_the_record_names_what_was_done_and_how_it_is_stored(packed: Path) -> None:
    record = json.loads(archives.metadata_of(packed)["compressor"])
    assert set(record) == {"version", "tool", "plan", "source", "stages", "methods", "tensors"}
    assert record["tensors"]["fc1.weight"][:2] == ["F32", [300, 784]]
    assert [method["bits"] for method in record["methods"]] == [3, 8]
    assert record["stages"][0]["rule"][0]["match"] == "fc1*"


def test_the_record_says_of_what_and_by_which_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(path: Path) -> Any:
        return json.loads(archives.metadata_of(path)["compressor"])

    report = api.quantize(TEACHER, tmp_path / "a.safetensors", granularity="channel", bits=4)
    api.quantize(TEACHER, tmp_path / "b.safetensors", granularity="channel", bits=4)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    record = said(tmp_path / "a.safetensors")
    assert record["plan"] == report.plan.fingerprint
    same, other = (
        api.quantize(TEACHER, tmp_path / "c.safetensors", granularity="channel", bits=bits, dry_run=True)
        for bits in (4, 3)
    )
    assert record["plan"] == same.plan.fingerprint != other.plan.fingerprint
    assert record["source"] == {"sha256": hashlib.sha256(TEACHER.read_bytes()).hexdigest()}
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("y.safetensors", "x.safetensors"):
        archives.write(folder / name, {f"{name[0]}.weight": ("F32", np.ones((4, 8), "<f4"))})
    index = {"weight_map": {"x.weight": "x.safetensors", "y.weight": "y.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    api.prune(folder, tmp_path / "out", sparsity=0.5)
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("x.safetensors", "y.safetensors")
    ]
    expected = {"sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
    assert said(tmp_path / "out" / "x.safetensors")["source"] == expected
    monkeypatch.setattr(identity, "_WHOLE", 1000)
    api.quantize(TEACHER, tmp_path / "large.safetensors", granularity="channel", bits=4)
    raw = TEACHER.read_bytes()
    places = (len(raw) * place // 1024 for place in range(1024))
    pieces = [f"{len(raw)}\0".encode(), raw[:65536], *(raw[place : place + 4096] for place in places)]
    expected = {"sampled": hashlib.sha256(b"".join(pieces)).hexdigest()}
    assert said(tmp_path / "large.safetensors")["source"] == expected


def test_metadata_that_looks_like_a_fingerprint_stays(tmp_path: Path) -> None:
    tensors = {"a.weight": ("F32", np.ones((4, 8), "<f4"))}
    source = archives.write(tmp_path / "in.safetensors", tensors, {"mine": provenance.NO_PLAN})
    report = api.prune(source, tmp_path / "out.safetensors", sparsity=0.5)
    found = archives.metadata_of(tmp_path / "out.safetensors")
    assert found["mine"] == provenance.NO_PLAN
    assert json.loads(found["compressor"])["plan"] == report.plan.fingerprint != provenance.NO_PLAN


def test_what_is_not_recorded_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api.quantize(TEACHER, tmp_path / "a.safetensors", granularity="channel", bits=4)
    np.save(tmp_path / "in.npy", np.ones((4, 8), "<f4"))
    monkeypatch.setattr("compressor.workflows.one_pass.identity_of", None)
    api.restore(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    api.prune(tmp_path / "in.npy", tmp_path / "out.npy", sparsity=0.5)
    with pytest.raises(TypeError):
        api.prune(tmp_path / "in.npy", tmp_path / "out.safetensors", sparsity=0.5)


def set_(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one place in the record."""

    def change(record: Any) -> None:
        *way, last = path
        for key in way:
            record = record[key]
        record[last] = to

    return change


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no JSON": (lambda record: "{", "is not a valid JSON object"),
    "a list": (lambda record: "[]", "is not a valid JSON object"),
    "nothing": (lambda record: "{}", "its `compressor` metadata cannot be used: it lacks what it should say"),
    "newer": (set_("version", to=2), "version '2' is not 1: written by a newer compressor?"),
    "other version": (set_("version", to="\x1b[31m"), "version '\\x1b[31m' is not 1"),
    "stages": (set_("stages", to=[1]), "it lacks what it should say"),
    "a stage of no kind": (set_("stages", to=[{"sparsity": 0.5}]), "it lacks what it should say"),
    "no list of stages": (set_("stages", to=3), "it lacks what it should say"),
    "tensors": (set_("tensors", to=["fc1.weight"]), "it lacks what it should say"),
    "entry": (set_("tensors", "fc1.weight", to=["F32"]), "it lacks what it should say"),
    "dtype": (set_("tensors", "fc1.weight", 0, to="F33"), "it lacks what it should say"),
    "a dtype that is none": (set_("tensors", "fc1.weight", 0, to=["F32"]), "it lacks what it should say"),
    "integers": (set_("tensors", "fc1.weight", 0, to="I32"), "it lacks what it should say"),
    "negative shape": (set_("tensors", "fc1.weight", 1, to=[-300, 784]), "it lacks what it should say"),
    "shape of floats": (set_("tensors", "fc1.weight", 1, to=[300.0, 784]), "it lacks what it should say"),
    "shape of truths": (set_("tensors", "fc1.weight", 1, to=[True, 784]), "it lacks what it should say"),
    "wide shape": (set_("tensors", "fc1.weight", 1, to=[1] * 65), "it lacks what it should say"),
    "other shape": (set_("tensors", "fc1.weight", 1, to=[300, 785]), "tensor 'fc1.weight': its part"),
    "huge shape": (set_("tensors", "fc1.weight", 1, to=[2**62, 2**62]), "tensor 'fc1.weight': its part"),
    "index": (set_("tensors", "fc1.weight", 2, to=7), "it lacks what it should say"),
    "negative index": (set_("tensors", "fc1.weight", 2, to=-1), "it lacks what it should say"),
    "method": (set_("methods", 0, to="int"), "it lacks what it should say"),
    "kind": (set_("methods", 0, "kind", to="os.system"), "it lacks what it should say"),
    "kind of a list": (set_("methods", 0, "kind", to=[]), "it lacks what it should say"),
    "prune": (set_("methods", 0, to={"kind": "prune", "threshold": 1}), "it lacks what it should say"),
    "bits": (set_("methods", 0, "bits", to=10**30), "method bits: must be an integer from 2 to 8"),
    "scheme": (set_("methods", 0, "scheme", to="../../x"), "there is no quantize scheme '../../x'"),
    "option": (set_("methods", 0, "import", to="os"), "method import: is not known"),
    "group": (set_("methods", 0, to={"kind": "quantize", "group_size": 5}), "group size 5 does not divide"),
    "not counted": (
        set_("methods", 0, to={"kind": "quantize", "scheme": "uniform"}),
        "it lacks what it should say",
    ),
    "without a rank": (
        set_("methods", 0, to={"kind": "distill", "method": "low-rank", "energy": 0.9}),
        "it lacks what",
    ),
    "another tensor": (set_("tensors", "fc9.weight", to=["F32", [2, 2], 0]), "tensor 'fc9.weight': its part"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_records_are_refused(name: str, packed: Path, tmp_path: Path) -> None:
    change, said = DAMAGE[name]
    path = rewritten(packed, tmp_path / "in.safetensors", change)
    for command in (["inspect", path], ["restore", path, "-o", tmp_path / "o.safetensors"]):
        done = compressor(*command)
        assert done.code == 3
        (line,) = done.err.splitlines()
        assert said in line
        assert line.isprintable()
    assert not (tmp_path / "o.safetensors").exists()


def test_an_undamaged_copy_is_restored(packed: Path, tmp_path: Path) -> None:
    path = rewritten(packed, tmp_path / "in.safetensors", lambda record: None)
    api.restore(path, tmp_path / "a.safetensors")
    api.restore(packed, tmp_path / "b.safetensors")
    assert archives.read(tmp_path / "a.safetensors") == archives.read(tmp_path / "b.safetensors")


def test_a_missing_part_is_named(packed: Path, tmp_path: Path) -> None:
    tensors = {}
    for name, (dtype, shape, data) in archives.read(packed).items():
        storage = {"F32": "<f4", "BF16": "<u2", "I8": "i1", "U8": "u1"}[dtype]
        tensors[name] = (dtype, np.frombuffer(data, storage).reshape(shape))
    del tensors["fc1.weight.scale"]
    path = archives.write(tmp_path / "in.safetensors", tensors, archives.metadata_of(packed))
    with pytest.raises(InputError, match=r"fc1.weight.*its part \.scale is missing"):
        api.inspect(path)
    assert "its part" in compressor("compare", path, path).err


def test_a_tensor_stored_twice_is_refused(tmp_path: Path) -> None:
    """Both `w` as numbers and `w` as parts: one of them would be lost."""
    archives.write(tmp_path / "in.safetensors", {"w": ("F32", np.eye(8, dtype="<f4"))})
    options = {"bits": 3, "granularity": "channel", "scale_bits": 32}
    api.quantize(tmp_path / "in.safetensors", tmp_path / "q.safetensors", **options)
    tensors = {"w": ("F32", np.eye(8, dtype="<f4"))}
    for name, (dtype, shape, data) in archives.read(tmp_path / "q.safetensors").items():
        tensors[name] = (dtype, np.frombuffer(data, "<f4" if dtype == "F32" else "u1").reshape(shape))
    both = archives.write(tmp_path / "both.safetensors", tensors, archives.metadata_of(tmp_path / "q.safetensors"))
    with pytest.raises(InputError):
        api.inspect(both)


def test_a_file_without_a_record_has_none() -> None:
    assert provenance.from_metadata({"format": "pt"}, "x") == provenance.Record()


# ---- compressed-tensors' config ------------------------------------------------------------------------


def without_records(folder: Path) -> None:
    """Take our own record out of every shard: what other tools write has none."""
    for shard in folder.glob("*.safetensors"):
        header = archives.header_of(shard)
        raw = shard.read_bytes()
        data = raw[8 + int.from_bytes(raw[:8], "little") :]
        del header["__metadata__"]["compressor"]
        text = json.dumps(header).encode()
        shard.write_bytes(len(text).to_bytes(8, "little") + text + data)


def quantized(folder: Path, **options: Any) -> dict[str, Any]:
    """The sample folder quantized, as another tool would leave it; its quantization_config."""
    api.quantize(LLAMA, folder, **options)
    without_records(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    return config


CONFIGS: dict[str, dict[str, Any]] = {
    "w8a8": {"bits": 8},
    "w8a8 tensor": {"bits": 8, "granularity": "tensor"},
    "w4a16": {"bits": 4, "group_size": 32},
    "w4a16 asymmetric": {"bits": 4, "group_size": 64, "symmetric": False},
    "w4a16 channel": {"bits": 4, "granularity": "channel"},
    "w4a16 asymmetric tensor": {"bits": 4, "granularity": "tensor", "symmetric": False},
    "w8a16": {"bits": 8, "group_size": 128},
    "mixed": {
        "bits": 4,
        "group_size": 32,
        "rules": [("*down_proj*", {"bits": 8}), ("*.1.*", {"symmetric": False})],
    },
    "embeddings": {"bits": 8, "group_size": 128, "include": ["*.weight"], "exclude": ["*norm*"]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_are_restored_by_their_config_alone(name: str, tmp_path: Path) -> None:
    config = quantized(tmp_path / "q", **CONFIGS[name])
    assert config["quant_method"] == "compressed-tensors"
    assert config["quantization_status"] == "compressed"
    api.restore(tmp_path / "q", tmp_path / "back.safetensors")
    api.quantize(LLAMA, tmp_path / "dense.safetensors", store="dense", **CONFIGS[name])
    found, expected = (archives.read(tmp_path / f"{stem}.safetensors") for stem in ("back", "dense"))
    assert found == expected
    table = render(api.inspect(tmp_path / "q"), "table")
    assert "folder, quantized (compressed-tensors), 21 tensors" in table


def test_the_config_is_what_loaders_expect(tmp_path: Path) -> None:
    config = quantized(tmp_path / "q", bits=4, group_size=32)
    (group,) = config["config_groups"].values()
    assert config["format"] == group["format"] == "pack-quantized"
    assert group["targets"] == ["Linear"]
    assert group["input_activations"] is None
    assert group["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "group_size": 32,
        "strategy": "group",
        "dynamic": False,
    }
    assert {"lm_head", "model.embed_tokens"} <= set(config["ignore"])
    eight = quantized(tmp_path / "q8", bits=8)
    assert eight["config_groups"]["group_0"]["input_activations"] is None
    rounded = quantized(tmp_path / "q8r", bits=8, layout="int-quantized")
    assert rounded["config_groups"]["group_0"]["input_activations"]["strategy"] == "token"
    mixed = quantized(tmp_path / "qm", **CONFIGS["mixed"])
    assert len(mixed["config_groups"]) == 3
    assert mixed["format"] == "pack-quantized"


def test_what_no_loader_could_read_is_made_unreadable_for_them(tmp_path: Path) -> None:
    report = api.quantize(LLAMA, tmp_path / "q", bits=3)
    config = json.loads((tmp_path / "q" / "config.json").read_bytes())["quantization_config"]
    assert "restore" in json.dumps(config)
    assert any("own layout" in note for note in report.plan.notes)
    api.restore(tmp_path / "q", tmp_path / "back")
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_bytes())


def test_a_folder_without_config_is_said_to_lack_it(tmp_path: Path) -> None:
    archives.write(tmp_path / "in.safetensors", {"a.weight": ("F32", store(np.eye(8), "F32"))})
    report = api.quantize(tmp_path / "in.safetensors", tmp_path / "out", bits=8)
    assert any("without a config.json" in note for note in report.plan.notes)
    api.restore(tmp_path / "out", tmp_path / "back.safetensors")


def damaged(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    change(config)
    path.write_text(json.dumps(config))
    return folder


GROUP = ("quantization_config", "config_groups", "group_0")
BAD_CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no object": (set_("quantization_config", to=[1]), "quantization_config is not an object"),
    "aqlm": (
        set_("quantization_config", "quant_method", to="aqlm"),
        "is quantized by 'aqlm', which is not read here",
    ),
    "escape": (set_("quantization_config", "quant_method", to="\x1b[31m"), "is quantized by '\\"),
    "no groups": (set_("quantization_config", "config_groups", to=None), "has no config_groups"),
    "empty groups": (set_("quantization_config", "config_groups", to={}), "has no config_groups"),
    "a group of text": (set_(*GROUP, to="x"), "has no config_groups"),
    "float": (set_(*GROUP, "weights", "type", to="float"), "its scheme is not of scaled integers"),
    "no weights": (set_(*GROUP, "weights", to=None), "its scheme is not of scaled integers"),
    "no bits": (set_(*GROUP, "weights", to={}), "its scheme is not of scaled integers"),
    "bits": (set_(*GROUP, "weights", "num_bits", to=99), "must be an integer from 2 to 8"),
    "bits of text": (set_(*GROUP, "weights", "num_bits", to="4"), "must be an integer from 2 to 8"),
    "group size": (set_(*GROUP, "weights", "group_size", to=[128]), "group_size"),
    "strategy": (set_(*GROUP, "weights", "strategy", to="block"), "granularity"),
    "format": (set_(*GROUP, "format", to="marlin-24"), "its format is 'marlin-24'"),
    "wrong size": (set_(*GROUP, "weights", "group_size", to=64), "_scale"),
    "wrong bits": (set_(*GROUP, "weights", "num_bits", to=8), "_packed"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_configs_that_are_not_read_here_are_refused(name: str, tmp_path: Path) -> None:
    quantized(tmp_path / "q", bits=4, group_size=32)
    change, said = BAD_CONFIGS[name]
    done = compressor("restore", damaged(tmp_path / "q", change), "-o", tmp_path / "o")
    assert done.code == 3
    assert len(done.err.splitlines()) == 1
    assert said in done.err
    assert not (tmp_path / "o").exists()


def shard_with(folder: Path, changed: Callable[[dict[str, tuple[str, Any]]], None]) -> None:
    """Change the tensors of a folder of one file."""
    path = folder / "model.safetensors"
    storage = {"F32": "<f4", "I32": "<i4", "I64": "<i8", "BF16": "<u2", "I8": "i1"}
    tensors: dict[str, tuple[str, Any]] = {
        name: (dtype, np.frombuffer(data, storage[dtype]).reshape(shape))
        for name, (dtype, shape, data) in archives.read(path).items()
    }
    changed(tensors)
    archives.write(path, tensors)


def delete(name: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        del tensors[name]

    return change


BAD_TENSORS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no scale": (delete("a.weight_scale"), "has no float scale beside it"),
    "an integer scale": (
        set_("a.weight_scale", to=("I32", np.ones((8, 2), "<i4"))),
        "has no float scale beside it",
    ),
    "no shape": (delete("a.weight_shape"), "has no weight_shape beside it"),
    "a long shape": (set_("a.weight_shape", to=("I64", np.ones(3, "<i8"))), "its weight_shape is not two integers"),
    "a float shape": (
        set_("a.weight_shape", to=("F32", np.ones(2, "<f4"))),
        "its weight_shape is not two integers",
    ),
    "a negative shape": (
        set_("a.weight_shape", to=("I64", np.array([-8, 16], "<i8"))),
        "its weight_shape makes no sense",
    ),
    "a huge shape": (
        set_("a.weight_shape", to=("I64", np.array([2**62, 16], "<i8"))),
        "its weight_shape makes no sense",
    ),
    "another shape": (set_("a.weight_shape", to=("I64", np.array([8, 24], "<i8"))), "its part"),
    "order": (
        set_("a.weight_g_idx", to=("I32", np.zeros(16, "<i4"))),
        "its g_idx does not name each of 2 groups for 8",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_parts_that_contradict_the_config_are_refused(name: str, tmp_path: Path) -> None:
    archives.write(tmp_path / "model.safetensors", {"a.weight": ("F32", store(np.ones((8, 16)), "F32"))})
    (tmp_path / "config.json").write_text("{}")
    api.quantize(tmp_path, tmp_path.parent / f"{tmp_path.name}-q", bits=4, group_size=8)
    folder = Path(shutil.move(tmp_path.parent / f"{tmp_path.name}-q", tmp_path / "q"))
    without_records(folder)
    change, said = BAD_TENSORS[name]
    shard_with(folder, change)
    done = compressor("inspect", folder)
    assert done.code == 3, done.out
    assert said in done.err
    assert "tensor 'a.weight'" in done.err


def small_folder(folder: Path, **shapes: tuple[int, int]) -> Path:
    """A folder of one file with matrices of these shapes; `__` stands for a dot."""
    folder.mkdir()
    tensors = {
        f"{name.replace('__', '.')}.weight": ("F32", store(np.random.default_rng(5).standard_normal(shape), "F32"))
        for name, shape in shapes.items()
    }
    archives.write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text("{}")
    return folder


def test_modules_whose_names_end_alike_are_told_apart(tmp_path: Path) -> None:
    source = small_folder(tmp_path / "in", a=(8, 16), b__a=(8, 16), layers__0__a=(8, 16), layers__1__a=(8, 16))
    rules = [("a.weight", {"bits": 4}), ("layers.1*", {"bits": 4})]
    api.quantize(source, tmp_path / "q", bits=8, group_size=8, rules=rules, scale_bits=32)
    without_records(tmp_path / "q")
    groups = json.loads((tmp_path / "q" / "config.json").read_bytes())["quantization_config"]["config_groups"]
    four, eight = (
        next(g for g in groups.values() if g["weights"]["num_bits"] == bits)["targets"] for bits in (4, 8)
    )
    assert "a" in four
    assert not set(four) & set(eight)
    api.restore(tmp_path / "q", tmp_path / "back.safetensors")
    api.quantize(source, tmp_path / "dense", bits=8, group_size=8, rules=rules, store="dense", scale_bits=32)
    expected = archives.read(tmp_path / "dense" / "model.safetensors")
    assert archives.read(tmp_path / "back.safetensors") == expected


def test_parts_that_fit_two_groups_are_refused(tmp_path: Path) -> None:
    """A row of four codes fills one word with 4 bits and with 8."""
    source = small_folder(tmp_path / "in", a=(8, 4), b=(8, 64))
    rules = [("a.weight", {"bits": 4, "granularity": "channel", "layout": "pack-quantized"})]
    api.quantize(source, tmp_path / "q", bits=8, layout="pack-quantized", rules=rules)
    without_records(tmp_path / "q")
    done = compressor("restore", tmp_path / "q", "-o", tmp_path / "o")
    assert done.code == 3
    assert "tensor 'a.weight': is so narrow that it fits groups of 4 and of 8 bits" in done.err


def test_parts_that_fit_no_group_are_refused(tmp_path: Path) -> None:
    source = small_folder(tmp_path / "in", a=(8, 24), b=(8, 64))
    rules = [("a.weight", {"bits": 4, "group_size": 8})]
    api.quantize(source, tmp_path / "q", bits=8, group_size=64, rules=rules)
    without_records(tmp_path / "q")

    def change(config: dict[str, Any]) -> None:
        for group in config["quantization_config"]["config_groups"].values():
            group["weights"]["num_bits"] = 8

    done = compressor("restore", damaged(tmp_path / "q", change), "-o", tmp_path / "o")
    assert done.code == 3
    assert "tensor 'a.weight': fits no config group" in done.err
