"""GGUF files beside one another: parts of a model, importance matrices, and shapes that metadata gives back."""

from __future__ import annotations

import itertools
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fault_injection import damaged
from support.gguf_files import ARRAY, STRING, UINT32, GgufFile, Line, blocks, numbers, value
from support.hostile import DAMAGE, SIZES, check_command

UINT16, INT32, FLOAT32, UINT64 = 2, 5, 6, 10
COUNTS = (0, 1, 2, 3, 4, 7, 999, 65535)
READ = st.sampled_from(
    [
        ("inspect", "--stats"),
        ("restore",),
        ("restore", "--max-shard-size", "4KB"),
        ("quantize", "--scheme", "q4_k", "--requantize"),
        ("prune", "--sparsity", "0.5"),
        ("compare",),
    ]
)


def run(place: Path, path: Path, command: Sequence[str], data: st.DataObject) -> None:
    """What comes of a command on a file of a folder; what it writes is a `.gguf` or a `.safetensors`."""
    shards = "--max-shard-size" in command
    name = "out.gguf" if shards or "q4_k" in command or data.draw(st.booleans()) else "out.safetensors"
    check_command(path, command, name="out" if shards else name)
    assert place.exists()


# ---- parts of a model ------------------------------------------------------------------------------------------

TENSORS = (
    blocks("blk.0.attn_q.weight", "Q4_K", (4, 256)),
    blocks("blk.0.ffn_up.weight", "Q8_0", (4, 64), 2),
    numbers("token_embd.weight", (3, 256), 3),
)


def split_values(number: int, count: int) -> dict[str | bytes, bytes]:
    """What the part of this number says of the split, and the first of the model."""
    model = {"general.architecture": value(STRING, "llama"), "llama.block_count": value(UINT32, 1)}
    return {
        **(model if number == 0 else {}),
        "split.no": value(UINT16, number),
        "split.count": value(UINT16, count),
        "split.tensors.count": value(INT32, len(TENSORS)),
    }


def parts(data: st.DataObject) -> None:
    """Three parts, some of which say something else, hold other tensors, are renamed, damaged or gone."""
    made = [GgufFile((), split_values(0, 3)), GgufFile(TENSORS[:2], split_values(1, 3))]
    made.append(GgufFile(TENSORS[2:], split_values(2, 3)))
    names = [f"in-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    contents: list[bytes | None] = [one.file() for one in made]
    for _ in range(data.draw(st.integers(0, 3))):
        at, other = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
        how = data.draw(st.sampled_from(["says", "says", "tensors", "copy", "name", "damage", "gone"]))
        if how == "says":
            key = data.draw(st.sampled_from(sorted(map(str, split_values(0, 3)))))
            values = {**made[at].values, key: data.draw(SAID)}
            if data.draw(st.integers(0, 4)) == 0:
                del values[key]
            made[at] = made[at].but(values=values)
        elif how == "tensors":
            made[at] = made[at].but(lines=(*made[at].lines, *made[other].lines))
        elif how == "name":
            names[at] = data.draw(st.sampled_from(NAMES))
        if how in ("says", "tensors"):
            contents[at] = made[at].file()
        elif how == "copy":
            contents[at] = contents[other]
        elif how == "damage" and contents[at] is not None:
            contents[at] = damaged(contents[at] or b"", random.Random(data.draw(SEEDS)))
        elif how == "gone":
            contents[at] = None
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for one, content in zip(names, contents, strict=True):
            if content is not None:
                (place / one).write_bytes(content)
        there = sorted(place.iterdir())
        if there:
            run(place, data.draw(st.sampled_from(there)), data.draw(READ), data)


SEEDS = st.integers(0, 2**32)
SAID = st.one_of(
    st.sampled_from(COUNTS).map(lambda count: value(UINT16, count)),
    st.sampled_from([*SIZES, 2**64 - 1]).map(lambda size: value(UINT64, size)),
    st.sampled_from([-1, -(2**31), 2**31 - 1]).map(lambda count: value(INT32, count)),
    st.sampled_from(
        [value(FLOAT32, float("nan")), value(STRING, "3"), value(ARRAY, (UINT16, [3])), value(7, True)]
    ),
)
NAMES = (
    *("in-00000-of-00003.gguf", "in-00004-of-00003.gguf", "in-00001-of-99999.gguf", "in-00002-of-00002.gguf"),
    *("other-00002-of-00003.gguf", "in.gguf", "in-00001-of-00000.gguf", "-00001-of-00003.gguf"),
)


# ---- importance matrices ---------------------------------------------------------------------------------------

WEIGHED = {"blk.0.attn_q.weight": (1, 256), "blk.0.ffn_up_exps.weight": (3, 256), "token_embd.weight": (1, 256)}
ODD = (0.0, -0.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"))


def sums(data: st.DataObject, size: int) -> bytes:
    """Sums of squares, some of them strange."""
    found = np.random.default_rng(3).random(size, np.float32)
    if data.draw(st.integers(0, 9)) == 0:
        found[data.draw(st.integers(0, size - 1)) :: data.draw(st.sampled_from([1, 2, 2**20]))] = np.float32(
            data.draw(st.sampled_from(ODD))
        )
    return found.astype("<f4").tobytes()


def with_matrix(name: str, content: bytes, data: st.DataObject) -> None:
    """What comes of quantizing a model by an importance matrix."""
    lines = [numbers("blk.0.attn_q.weight", (8, 256)), numbers("blk.0.ffn_up_exps.weight", (3, 4, 256), 2)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "in.gguf").write_bytes(GgufFile(lines, {"general.architecture": value(STRING, "llama")}).file())
        (place / name).write_bytes(content)
        command = data.draw(
            st.sampled_from(
                [
                    ("quantize", "--scheme", "q4_k"),
                    ("quantize", "--preset", "q2_k"),
                    ("quantize", "--target-bits", "5"),
                    ("prune", "--method", "wanda", "--sparsity", "0.5"),
                ]
            )
        )
        check_command(place / "in.gguf", [*command, "--stats", str(place / name)], name="out.gguf")


def imatrix(data: st.DataObject) -> None:
    """Sums and counts in a GGUF file, of other types and shapes, missing, doubled or strange."""
    lines: list[Line] = []
    for name, shape in WEIGHED.items():
        lines.append(Line(f"{name}.in_sum2", "F32", shape, sums(data, shape[0] * shape[1])))
        counts = np.full(shape[0], data.draw(st.sampled_from([*ODD, *[7.0] * 60])), "<f4")
        lines.append(Line(f"{name}.counts", "F32", (shape[0], 1), counts.tobytes()))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["shape", "cut", "type", "number", "offset", "name", "drop", "double"]))
        size, one = data.draw(st.sampled_from(SIZES)), lines[at]
        if how == "shape":
            lines[at] = replace(one, shape=(*one.shape[:-1], size) if size % 2 else (size, *one.shape[1:]))
        elif how == "cut":
            lines[at] = replace(one, shape=(1, min(size, 64)), data=one.data[: 4 * min(size, 64)])
        elif how == "type":
            lines[at] = replace(one, type=data.draw(st.sampled_from(["F16", "I32", "BF16", "Q8_0", "F64"])))
        elif how in ("number", "offset"):
            lines[at] = replace(one, **{how: size % 2**32})
        elif how == "name":
            names = ("", ".in_sum2", ".counts", "a.in_sum2", "blk.0.attn_q.weight.counts", "\x1b[31m.in_sum2")
            lines[at] = replace(one, name=data.draw(st.sampled_from(names)))
        elif how == "double":
            lines.append(one)
        elif len(lines) > 1:
            del lines[at]
    said = {"general.type": value(STRING, "imatrix"), "imatrix.chunk_count": data.draw(SAID)}
    with_matrix("i.gguf", data.draw(DAMAGE).of(GgufFile(lines, said).file()), data)


def old_imatrix(data: st.DataObject) -> None:
    """The older list of entries, of which a number before names and values may be another."""
    victim, places = data.draw(st.integers(-6, 9)), itertools.count()
    other = data.draw(st.sampled_from([-(2**31), -1, 0, 1, 2, 255, 2**20, 2**31 - 1]))

    def number(true: int) -> bytes:
        return struct.pack("<i", other if next(places) == victim else true)

    content = number(len(WEIGHED))
    for name, shape in WEIGHED.items():
        odd = data.draw(st.sampled_from([name] * 9 + ["", "blk.0.attn_q.weight", "\x1b[31m", "é" * 600]))
        size = shape[0] * shape[1]
        content += number(len(odd.encode())) + odd.encode() + number(5) + number(size) + sums(data, size)
    content += data.draw(st.sampled_from([b"", b"\0", struct.pack("<ii", 3, 4) + b"text", bytes(4096)]))
    with_matrix("i.dat", data.draw(DAMAGE).of(content), data)


# ---- shapes that metadata gives back ---------------------------------------------------------------------------

SHAPE = "comfy.gguf.orig_shape."
RESHAPED = (
    Line("patch_embedding.weight", "F32", (48, 4), np.arange(192, dtype="<f4").tobytes()),
    blocks("blocks.0.self_attn.q.weight", "Q4_K", (6, 256)),
    numbers("blocks.0.self_attn.norm_q.weight", (32,)),
    numbers("head.modulation", (1, 2, 64)),
)
AXES = st.sampled_from([1, 1, 2, 2, 3, 4, 6, 16, 32, 48, 192, 0, -1, 2**31 - 1])
# all have as many numbers as a tensor
TRUE = (
    [6, 2, 4, 2, 2],
    [192],
    [1, 1, 1, 1, 1, 1, 1, 192],
    [3, 512],
    [1536],
    [2, 3, 4, 64],
    [32, 1],
    [1] * 8 + [32],
)


def original_shapes(data: st.DataObject) -> None:
    """Shapes that fit and shapes that do not, of tensors that are there and others, and what are no shapes."""
    said: dict[str | bytes, bytes] = {
        "general.architecture": value(
            STRING, data.draw(st.sampled_from(["wan", "wan", "flux", "sdxl", "llama", ""]))
        )
    }
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from([*(str(line.name) for line in RESHAPED), "", "blocks", "é"]))
        shape = data.draw(st.one_of(st.sampled_from(TRUE), st.lists(AXES, max_size=9)))
        told = st.sampled_from(
            [value(ARRAY, (INT32, shape))] * 8
            + [
                value(ARRAY, (11, [one << 31 for one in shape])),
                value(ARRAY, (FLOAT32, [float(one) for one in shape])),
                value(ARRAY, (STRING, [str(one) for one in shape])),
                value(ARRAY, (ARRAY, [(INT32, shape)])),
                value(ARRAY, (INT32, [1] * 20_000)),
                value(ARRAY, (7, [True] * len(shape))),
                value(INT32, 192),
                value(STRING, "[6, 2, 4, 2, 2]"),
            ]
        )
        said[SHAPE + name] = data.draw(told)
    content = data.draw(DAMAGE).of(GgufFile(RESHAPED, said).file())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "in.gguf").write_bytes(content)
        run(place, place / "in.gguf", data.draw(READ), data)


TARGETS: dict[str, Callable[[st.DataObject], None]] = {
    target.__name__: target for target in (parts, imatrix, old_imatrix, original_shapes)
}
EVERY = pytest.mark.parametrize("target", TARGETS)


@EVERY
@settings(max_examples=25)
@given(st.data())
def test_changed_gguf(target: str, data: st.DataObject) -> None:
    TARGETS[target](data)


@pytest.mark.faults
@EVERY
@settings(max_examples=2000)
@given(st.data())
def test_many_changed_gguf(target: str, data: st.DataObject) -> None:
    TARGETS[target](data)
