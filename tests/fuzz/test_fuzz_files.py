"""Every other kind of file that is read: containers, archives, pickles, indexes, and what goes with a run."""

from __future__ import annotations

import io
import json
import pickletools
import random
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import gguf_files, gguf_models
from support.archives import rewritten_directory
from support.fault_injection import damaged, make_folder, mutated
from support.hostile import CHANGES, DAMAGE, HURT, NUMBERS, SIZES, STRANGE, check_command, check_file, check_model
from support.small_models import Model, llama, mlp, read_model

from compressor import api
from compressor.files.gguf import values
from compressor.files.gguf.reading import GgufHeader, read_header
from compressor.files.gguf.writing import GgufTensor, layout
from compressor.files.input_file import InputFile

READ = st.sampled_from(
    [
        ("inspect", "--stats"),
        ("restore",),
        ("prune", "--sparsity", "0.5"),
        ("quantize", "--bits", "8"),
        ("compare",),
    ]
)
SEEDS = st.integers(0, 2**32)
STATE = Path(__file__).parents[1] / "files" / "data" / "torch-state.pt"


@cache
def made(suffix: str, verb: str, **options: Any) -> bytes:
    """What this tool writes for a matrix, or for a small network."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = place / "in.npy"
        np.save(source, np.random.default_rng(1).standard_normal((12, 16), np.float32))
        if suffix != ".npz":
            source = mlp().write(place)
        out = place / f"out{suffix}"
        getattr(api, verb)(source, out, workers=1, **options)
        return out.read_bytes()


# ---- containers ------------------------------------------------------------------------------------------------


def npy(data: st.DataObject) -> None:
    """Bytes of a good file changed, or a header of strange values."""
    kind = data.draw(st.sampled_from(["<f4", ">f8", "<f2", "<i8", "|u1", "|b1", "<c8"]))
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(np.ones((6, 4), kind)))
    raw = stream.getvalue()
    if data.draw(st.booleans()):
        values = {"descr": kind, "fortran_order": False, "shape": (6, 4)}
        values[data.draw(st.sampled_from(list(values)))] = data.draw(
            st.sampled_from([*STRANGE, (2**62, 0), (6,) * 70])
        )
        text = repr(values).encode(errors="replace")[:60_000] + b"\n"
        raw = raw[:8] + len(text).to_bytes(2, "little") + text + raw[128:]
    check_file("in.npy", data.draw(DAMAGE).of(raw), data.draw(READ))


def _rezipped(raw: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """A zip archive with other members, stored as they are."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


def npz(data: st.DataObject) -> None:
    """Of this tool (codes, or SciPy's sparse arrays) and plain ones: the archive's bytes, or a member's."""
    stream = io.BytesIO()
    np.savez(stream, a=np.ones((3, 4), np.float32), b=np.arange(5))
    raw = data.draw(
        st.sampled_from(
            [
                stream.getvalue(),
                made(".npz", "quantize", bits=4, granularity="channel"),
                made(".npz", "prune", sparsity=0.8, store="csr"),
            ]
        )
    )
    chance = random.Random(data.draw(SEEDS))
    if data.draw(st.booleans()):
        victim = chance.choice(zipfile.ZipFile(io.BytesIO(raw)).namelist())
        raw = _rezipped(raw, lambda name, old: _member(old, chance) if name == victim else old)
    check_file("in.npz", data.draw(DAMAGE).of(raw), data.draw(READ))


def _member(old: bytes, chance: random.Random) -> bytes:
    try:
        return json.dumps(mutated(json.loads(old), chance)).encode()
    except ValueError:
        return damaged(old, chance)


def archive(data: st.DataObject) -> None:
    """Bytes of an archive changed, or its directory, whose checksum then fits."""
    raw = made(".safetensors", "quantize", bits=4, granularity="channel", layout="compressor", store="archive")
    if data.draw(st.booleans()):
        raw = _redirected(raw, random.Random(data.draw(SEEDS)))
        check_file("in.safetensors", raw, data.draw(READ))
    else:
        check_file("in.safetensors", data.draw(HURT).of(raw), data.draw(READ))


def _redirected(raw: bytes, chance: random.Random) -> bytes:
    def change(found: dict[str, Any]) -> None:
        other = mutated(found, chance)
        found.clear()
        found.update(other if isinstance(other, dict) else {})

    return rewritten_directory(raw, change)


def gguf(data: st.DataObject) -> None:
    """A GGUF file whose table of tensors or metadata says something else, or whose bytes are changed."""
    made = gguf_files.small_model()
    lines, values = list(made.lines), dict(made.values)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(lines) - 1))
        key = data.draw(st.sampled_from([*values, "general.alignment", "split.count", "compressor.record"]))
        how = data.draw(st.sampled_from(["number", "axes", "offset", "shape", "type", "data", "kind", "value"]))
        size = data.draw(st.sampled_from(SIZES))
        if how in ("number", "axes", "offset"):
            lines[at] = replace(lines[at], **{how: size % 2**32})
        elif how == "shape":
            shape = (*lines[at].shape[:-1], size) if size % 2 else (size, *lines[at].shape[1:])
            lines[at] = replace(lines[at], shape=shape)
        elif how == "type":
            lines[at] = replace(lines[at], type=data.draw(st.sampled_from([*gguf_files.BLOCKS])))
        elif how == "data":
            lines[at] = replace(lines[at], data=data.draw(HURT).of(lines[at].data))
        elif how == "kind":
            old = values.get(key, bytes(8))
            values[key] = size.to_bytes(8, "little")[:4] + old[4:]
        else:
            values[key] = data.draw(st.sampled_from([gguf_files.value(4, size % 2**32), gguf_files.value(8, "{}")]))
    raw = data.draw(DAMAGE).of(gguf_files.GgufFile(lines, values).file())
    check_file("in.gguf", raw, data.draw(READ))


FAMILIES = ("llama", "mixtral", "gemma3_text", "gpt_oss", "deepseek_v3", "bert", "gpt2")


def folder_as_gguf(data: st.DataObject) -> None:
    """A folder that becomes a GGUF file, with one of its descriptions changed."""
    kind, chance = data.draw(st.sampled_from(FAMILIES)), random.Random(data.draw(SEEDS))
    with tempfile.TemporaryDirectory() as name:
        folder = gguf_models.folder_named(Path(name) / "in", kind)
        changed = folder / data.draw(st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json"]))
        raw = json.dumps(mutated(json.loads(changed.read_text()), chance))
        changed.write_text(raw.encode("utf-8", "replace").decode())
        check_command(folder, ["restore"], name="out.gguf")


@cache
def gguf_of(kind: str) -> tuple[bytes, GgufHeader]:
    """A GGUF file of a folder, and its header."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "m.gguf"
        api.restore(gguf_models.folder_named(Path(name) / "in", kind), path, workers=1)
        return path.read_bytes(), read_header(InputFile.open(path))


def gguf_as_folder(data: st.DataObject) -> None:
    """A GGUF file that becomes a folder, with other values in its metadata."""
    raw, header = gguf_of(data.draw(st.sampled_from(FAMILIES)))
    fields = dict(header.fields)
    strange = [values.scalar(values.Kind.UINT32, size % 2**32) for size in SIZES]
    strange += [values.scalar(values.Kind.FLOAT32, float(number)) for number in ("nan", "inf", "-1", "0")]
    strange += [values.text(text) for text in ("", "a", "llama", "\x1b[31m")]
    strange += [values.array(values.Kind.INT32, [7, -1]), values.array(values.Kind.STRING, ["a", "", "a"])]
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(fields)))
        if data.draw(st.booleans()):
            fields[key] = data.draw(st.sampled_from(strange))
        elif len(fields) > 1:
            del fields[key]
    fields.pop("general.alignment", None)
    tensors = [GgufTensor(name, kind, header.shapes[name]) for name, kind in header.types.items()]
    made, old = layout(tensors, fields), {one.spec.name: one for one in header.tensors}
    content = bytearray(made.size)
    for place, piece in made.pieces:
        content[place : place + len(piece)] = piece
    for tensor in tensors:
        begin, at = made.offsets[tensor.name], old[tensor.name].offset
        content[begin : begin + tensor.nbytes] = raw[at : at + tensor.nbytes]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "in.gguf"
        path.write_bytes(content)
        check_command(path, ["restore"], name="out")


def torch_state(data: st.DataObject) -> None:
    """Bytes of a state dict changed, or operations of its pickle dropped, doubled and exchanged."""
    raw, chance = STATE.read_bytes(), random.Random(data.draw(SEEDS))
    how = data.draw(st.sampled_from(["bytes", "operations", "pickle"]))
    if how == "bytes":
        raw = damaged(raw, chance)
    else:
        change = _shuffled if how == "operations" else damaged
        raw = _rezipped(raw, lambda name, old: change(old, chance) if name.endswith(".pkl") else old)
    check_file("in.pt", raw, data.draw(READ))


def _shuffled(raw: bytes, chance: random.Random) -> bytes:
    places = [place for _, _, place in pickletools.genops(raw)]
    parts = [raw[begin:end] for begin, end in zip(places, [*places[1:], len(raw)], strict=True)]
    for _ in range(chance.choice((1, 2, 4))):
        at, other = chance.randrange(len(parts)), chance.randrange(len(parts))
        kind = chance.randrange(4)
        if kind == 0:
            parts[at] = parts[other]
        elif kind == 1:
            parts.insert(at, parts[other])
        elif kind == 2 and len(parts) > 1:
            del parts[at]
        else:
            parts.insert(at, chance.choice(_OPERATIONS))
    return b"".join(parts)


_OPERATIONS = (
    *(b"b", b"R", b"0", b"1", b"2", b"\x85", b"\x86", b"t", b"(", b")", b"]", b"}", b"N", b"\x88", b"Q", b"\x81"),
    *(
        b"K\x01",
        b"J\xff\xff\xff\xff",
        b"\x8a\x09\0\0\0\0\0\0\0\0\x01",
        b"G\x7f\xf0\0\0\0\0\0\0",
        b"h\x00",
        b"s",
        b"u",
    ),
)


def folder_index(data: st.DataObject) -> None:
    """A folder of a shard, an index and a config, whose JSON is changed."""
    weights = dict.fromkeys(llama().tensors, "model.safetensors")
    index = {"metadata": {"total_size": 1, "total_parameters": 2}, "weight_map": weights}
    model = Model(llama().tensors, {**llama().texts, "model.safetensors.index.json": index})
    changes = data.draw(st.lists(CHANGES, max_size=2))
    check_model(model, changes, data.draw(DAMAGE), data.draw(READ), texts=data.draw(DAMAGE))


# ---- what goes with a run --------------------------------------------------------------------------------------


@cache
def network() -> Model:
    """Two dense layers, the second of two outputs."""
    return Model({name: one for name, one in mlp().tensors.items() if name in ("0.weight", "0.bias", "1.weight")})


NETWORK = """name = "two"
input = 32
divide = 4

[[layer]]
kind = "dense"
name = "0"
out = 24

[[layer]]
kind = "relu"

[[layer]]
kind = "dense"
name = "1"
bias = false
"""
RECIPE = """name = "both"
description = "prune, then quantize"

[[stage]]
kind = "prune"
method = "magnitude"
sparsity = 0.5
scope = "global"
when = { rank = 2, min_size = 10 }

[[stage]]
kind = "quantize"
bits = 4
granularity = "channel"
exclude = ["1.*"]

[[stage.rule]]
match = "0.weight"
bits = 8

[gate]
max_error = 0.9
min_ratio = 1.0

[report]
top = 3
"""
_VALUES = (
    *(json.dumps(one) if abs(one) < 1e300 else str(one) for one in NUMBERS),
    *("1e400", "inf", "nan", "-1.5", "0x7fffffffffffffffff", "1_000", "true", "[]", "[[]]", "{}", '""', '"re:("'),
    *(
        '"*"',
        '"\\u0000"',
        "1979-05-27T07:32:00Z",
        "07:32:00",
        "[1, 2]",
        '["*"]',
        '"a" "b"',
        "{ a = 1 }",
        "[" * 2000,
    ),
    "9" * 5000,
)


def toml(text: str, data: st.DataObject) -> bytes:
    """A text of TOML with a value exchanged, lines dropped or doubled, or bytes changed."""
    lines = text.splitlines()
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["value", "value", "value", "key", "drop", "double"]))
        key, equals, _ = lines[at].partition(" = ")
        if how == "drop":
            lines[at] = ""
        elif how == "double":
            lines.insert(at, lines[data.draw(st.integers(0, len(lines) - 1))])
        elif equals and how == "key":
            lines[at] = f"{data.draw(st.sampled_from(['kind', 'method', 'store', 'stats', 'a.b', 'when']))} = 1"
        elif equals:
            lines[at] = f"{key} = {data.draw(st.sampled_from(_VALUES))}"
    raw = "\n".join(lines).encode()
    return data.draw(HURT).of(raw) if data.draw(st.integers(0, 4)) == 0 else raw


def with_file(model: Model, name: str, content: bytes, *command: str) -> None:
    """What comes of a command on a good model with another file that is not."""
    with tempfile.TemporaryDirectory() as place:
        path, beside = model.write(Path(place)), Path(place) / name
        beside.write_bytes(content)
        check_command(path, [str(beside) if word == "FILE" else word for word in command])


def recipe(data: st.DataObject) -> None:
    with_file(mlp(), "r.toml", toml(RECIPE, data), "pipeline", "--recipe", "FILE")


def network_description(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = network().write(Path(place))
        np.save(Path(place) / "x.npy", np.ones((5, 32), np.float32))
        (Path(place) / "n.toml").write_bytes(toml(NETWORK, data))
        inputs = ["--inputs", str(Path(place) / "x.npy"), "--network", str(Path(place) / "n.toml")]
        check_command(path, ["calibrate", *inputs], workers=False)


@cache
def statistics_of_network() -> Model:
    """Statistics of the inputs of both layers, with grams."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        path = network().write(place)
        np.save(place / "x.npy", np.random.default_rng(2).standard_normal((40, 32), np.float32))
        (place / "n.toml").write_text(NETWORK)
        api.calibrate(path, place / "s.safetensors", inputs=place / "x.npy", network=str(place / "n.toml"))
        return read_model(place / "s.safetensors")


def statistics(data: st.DataObject) -> None:
    model = statistics_of_network()
    for change in data.draw(st.lists(CHANGES, max_size=2)):
        model = change.of(model) if model.tensors else model
    command = data.draw(
        st.sampled_from(
            [
                ("prune", "--method", "wanda", "--sparsity", "0.5"),
                ("prune", "--method", "sparsegpt", "--sparsity", "0.5"),
                ("quantize", "--bits", "4", "--method", "gptq", "--granularity", "channel"),
            ]
        )
    )
    with_file(network(), "s.safetensors", data.draw(DAMAGE).of(model.file()), *command, "--stats", "FILE")


@cache
def survey_of_network() -> dict[str, Any]:
    """What a budget measured."""
    with tempfile.TemporaryDirectory() as name:
        path = network().write(Path(name))
        api.quantize(
            path, Path(name) / "o.safetensors", target_bits=6.0, survey=str(Path(name) / "s.json"), workers=1
        )
        found: dict[str, Any] = json.loads((Path(name) / "s.json").read_text())
        return found


def survey(data: st.DataObject) -> None:
    raw = _json(survey_of_network(), data)
    with_file(network(), "s.json", raw, "quantize", "--target-bits", "6", "--survey", "FILE")


def _json(good: Any, data: st.DataObject) -> bytes:
    raw = json.dumps(good).encode()
    chance = random.Random(data.draw(SEEDS))
    return damaged(raw, chance) if data.draw(st.booleans()) else json.dumps(mutated(good, chance)).encode()


def work_folder(data: st.DataObject) -> None:
    """A record of a shard that is there, of another plan."""
    finished = {"shard-0.safetensors": {"key": "0" * 64, "content": "0" * 64, "said": {"jobs": [], "changes": [1]}}}
    with tempfile.TemporaryDirectory() as place:
        path, work = make_folder(Path(place) / "in"), Path(place) / "w"
        work.mkdir()
        (work / "shard-0.safetensors").write_bytes(b"x")
        (work / "work.json").write_bytes(_json({"version": 1, "finished": finished}, data))
        check_command(path, ["quantize", "--bits", "8", "--work", str(work)])


TARGETS: dict[str, Callable[[st.DataObject], None]] = {
    target.__name__: target
    for target in (
        npy,
        npz,
        archive,
        gguf,
        folder_as_gguf,
        gguf_as_folder,
        torch_state,
        folder_index,
        recipe,
        network_description,
        statistics,
        survey,
        work_folder,
    )
}
EVERY = pytest.mark.parametrize("target", TARGETS)


@EVERY
@settings(max_examples=40)
@given(st.data())
def test_changed_files(target: str, data: st.DataObject) -> None:
    TARGETS[target](data)


@pytest.mark.faults
@EVERY
@settings(max_examples=2000)
@given(st.data())
def test_many_changed_files(target: str, data: st.DataObject) -> None:
    TARGETS[target](data)
