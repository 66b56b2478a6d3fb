"""llama.cpp's importance matrices as statistics: both forms, experts, and files that are none."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.console import compressor
from support.gguf_files import STRING, UINT32, GgufFile, Line, numbers, value

from compressor import api
from compressor.calibration.imatrix import Imatrix, open_layers, write_imatrix
from compressor.core.errors import InputError, UsageError
from compressor.core.layer_inputs import Layer
from compressor.files.gguf.reading import read_header
from compressor.files.input_file import InputFile
from compressor.methods.quantize.ggml.decoder import decode_blocks

Array = npt.NDArray[Any]


def gguf(path: Path, entries: Mapping[str, tuple[Array, Array]]) -> Path:
    """An importance matrix of sums [experts, in] and counts [experts] by name."""
    lines = []
    for name, (sums, counts) in entries.items():
        lines.append(Line(f"{name}.in_sum2", "F32", sums.shape, sums.astype("<f4").tobytes()))
        lines.append(Line(f"{name}.counts", "F32", (len(counts), 1), counts.astype("<f4").tobytes()))
    said = {"general.type": value(STRING, "imatrix"), "imatrix.chunk_count": value(UINT32, 2)}
    path.write_bytes(GgufFile(lines, said).file())
    return path


def dat(path: Path, entries: Mapping[str, tuple[Array, int]], tail: bytes = b"") -> Path:
    out = struct.pack("<i", len(entries))
    for name, (sums, calls) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, sums.size)
        out += sums.astype("<f4").tobytes()
    path.write_bytes(out + tail)
    return path


def test_both_forms_are_means_of_squares(tmp_path: Path) -> None:
    sums = np.array([[2.0, 8.0, 0.0, 6.0]])
    new = open_layers(gguf(tmp_path / "a.gguf", {"blk.0.attn_q.weight": (sums, np.array([4.0]))}))
    tail = struct.pack("<ii", 3, 4) + b"text"
    for end in (b"", tail):
        old = open_layers(dat(tmp_path / "a.dat", {"blk.0.attn_q.weight": (sums, 4)}, end))
        for one in (new, old):
            assert isinstance(one, Imatrix)
            assert one.layers == ("blk.0.attn_q",)
            assert one.counts == {"blk.0.attn_q": 4}
            np.testing.assert_array_equal(one.read("blk.0.attn_q").square, [0.5, 2.0, 0.0, 1.5])
        assert new.identity() == old.identity()


def test_experts_that_saw_nothing_weigh_all_alike(tmp_path: Path) -> None:
    sums = np.array([[2.0, 8.0], [0.0, 0.0], [3.0, 6.0]])
    path = gguf(tmp_path / "a.gguf", {"blk.0.ffn_up_exps.weight": (sums, np.array([2.0, 0.0, 3.0]))})
    opened = open_layers(path)
    np.testing.assert_array_equal(opened.read("blk.0.ffn_up_exps").square, [1, 4, 1, 1, 1, 2])
    assert opened.counts == {"blk.0.ffn_up_exps": 3}


def model(place: Path) -> Path:
    lines = [numbers("blk.0.attn_q.weight", (64, 256)), numbers("blk.0.ffn_up_exps.weight", (3, 8, 256), 2)]
    path = place / "in.gguf"
    path.write_bytes(GgufFile(lines, {"general.architecture": value(STRING, "llama")}).file())
    return path


def restored(path: Path, name: str) -> Array:
    header = read_header(InputFile.open(path))
    kind = header.types[name]
    (tensor,) = (one for one in header.tensors if one.spec.name == name)
    raw = np.frombuffer(path.read_bytes(), np.uint8, tensor.spec.nbytes, tensor.offset).reshape(-1, kind.nbytes)
    out = np.empty((len(raw), kind.block), np.float32)
    decode_blocks(kind.name, raw, out)
    return out.reshape(header.shapes[name])


def test_they_weigh_the_errors_of_columns_and_of_each_expert(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    squares = {
        "blk.0.attn_q.weight": (np.exp(random.normal(0, 2, (1, 256))), np.array([5.0])),
        "blk.0.ffn_up_exps.weight": (np.exp(random.normal(0, 2, (3, 256))), np.array([5.0, 5.0, 5.0])),
    }
    source, stats = model(tmp_path), gguf(tmp_path / "imatrix.gguf", squares)
    plain, weighed = tmp_path / "plain.gguf", tmp_path / "weighed.gguf"
    api.quantize(source, plain, scheme="q4_k")
    api.quantize(source, weighed, scheme="q4_k", stats=stats)
    for line in (numbers("blk.0.attn_q.weight", (64, 256)), numbers("blk.0.ffn_up_exps.weight", (3, 8, 256), 2)):
        weights = np.frombuffer(line.data, "<f4").reshape(line.shape)
        importance = squares[str(line.name)][0]
        importance = importance[0] if len(line.shape) == 2 else importance[:, None, :]
        lost = [(importance * (weights - restored(path, str(line.name))) ** 2).sum() for path in (weighed, plain)]
        assert lost[0] < 0.95 * lost[1]


def test_a_weight_that_it_does_not_know_is_refused(tmp_path: Path) -> None:
    stats = gguf(tmp_path / "i.gguf", {"blk.0.attn_q.weight": (np.ones((1, 256)), np.array([5.0]))})
    done = compressor("quantize", model(tmp_path), "-o", tmp_path / "o.gguf", "--scheme", "q4_k", "--stats", stats)
    assert done.code == 3
    assert "tensor 'blk.0.ffn_up_exps.weight': there are no statistics of its inputs" in done.err
    out = tmp_path / "o.gguf"
    more = ("--exclude", "blk.0.ffn_up_exps.weight")
    assert compressor("quantize", model(tmp_path), "-o", out, "--scheme", "q4_k", "--stats", stats, *more).code == 0


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"a.weight": (np.array([[1.0, np.nan]]), np.array([1.0]))}, "NaN, infinite or negative"),
        ({"a.weight": (np.array([[1.0, -1.0]]), np.array([1.0]))}, "NaN, infinite or negative"),
        ({"a.weight": (np.array([[1.0, 1.0]]), np.array([np.inf]))}, "NaN, infinite or negative"),
        ({"a.weight": (np.array([[1.0, 1.0, 1.0]]), np.array([1.0, 1.0]))}, "do not go by its counts"),
        ({}, "no importance matrix"),
    ],
)
def test_numbers_that_are_no_sums_of_squares(tmp_path: Path, entries: Any, said: str) -> None:
    path = gguf(tmp_path / "a.gguf", entries)
    with pytest.raises(InputError, match=said):
        open_layers(path).read("a")


@pytest.mark.parametrize("cut", [0, 3, 4, 7, 9, 14, 20, 30])
def test_a_list_that_ends_too_early(tmp_path: Path, cut: int) -> None:
    path = dat(tmp_path / "a.dat", {"a.weight": (np.ones(4), 1)})
    raw = path.read_bytes()
    path.write_bytes(raw[:cut])
    with pytest.raises(InputError, match="no importance matrix"):
        open_layers(path)


@pytest.mark.parametrize("at", [0, 4, 16, 20])
@pytest.mark.parametrize("wrong", [-1, 2**31 - 1])
def test_a_list_whose_counts_lie(tmp_path: Path, at: int, wrong: int) -> None:
    path = dat(tmp_path / "a.dat", {"a.weight": (np.ones(4), 1)})
    raw = bytearray(path.read_bytes())
    raw[at : at + 4] = struct.pack("<i", wrong)
    path.write_bytes(raw)
    if (at, wrong) == (16, 2**31 - 1):  # so many calls there may have been
        assert open_layers(path).counts == {"a": wrong}
        return
    with pytest.raises(InputError, match="no importance matrix"):
        open_layers(path)


# ---- written ---------------------------------------------------------------------------------------------

LLAMA = Path(__file__).parents[2] / "sample_weights" / "tiny-llama"


def test_calibrate_writes_one_under_the_names_of_a_gguf_file(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    recorded = {
        "model.layers.0.self_attn.q_proj": random.standard_normal((20, 128)),
        "model.layers.1.mlp.down_proj": random.standard_normal((20, 256)),
    }
    (tmp_path / "rows").mkdir()
    for name, rows in recorded.items():
        np.save(tmp_path / "rows" / f"{name}.npy", rows.astype(np.float32))
    out = tmp_path / "imatrix.gguf"
    done = compressor("calibrate", LLAMA, "--activations", tmp_path / "rows", "-o", out)
    assert done.code == 0, done.err
    opened = open_layers(out)
    assert opened.layers == ("blk.0.attn_q", "blk.1.ffn_down")
    for layer, rows in zip(opened.layers, recorded.values(), strict=True):
        assert opened.counts[layer] == 20
        np.testing.assert_allclose(opened.read(layer).square, np.square(rows).mean(axis=0), rtol=1e-5)
    fields = read_header(InputFile.open(out)).fields
    assert fields["general.type"].python() == "imatrix"
    assert fields["imatrix.chunk_size"].python() == 20
    assert {"imatrix.datasets", "imatrix.chunk_count"} <= set(fields)  # llama-quantize asks for all three


def test_what_was_written_is_taken_by_a_folder_that_becomes_a_file(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    rows = random.standard_normal((20, 128)).astype(np.float32)
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "model.layers.0.self_attn.q_proj.npy", rows)
    stats, out = tmp_path / "imatrix.gguf", tmp_path / "out.gguf"
    assert compressor("calibrate", LLAMA, "--activations", tmp_path / "rows", "-o", stats).code == 0
    options = ("--scheme", "q4_0", "--include", "blk.0.attn_q.weight", "--stats", stats, "--no-tokenizer")
    done = compressor("quantize", LLAMA, "-o", out, *options)
    assert done.code == 0, done.err
    assert read_header(InputFile.open(out)).types["blk.0.attn_q.weight"].name == "Q4_0"


def test_experts_of_a_stack_are_written_together(tmp_path: Path) -> None:
    layers = {f"e.{n}": Layer(n + 1, np.zeros(4), np.full(4, n + 0.5)) for n in range(3)}
    out = tmp_path / "imatrix.gguf"
    named = {"blk.0.ffn_up_exps.weight": tuple(layers), "blk.0.attn_q.weight": ("unknown",)}
    write_imatrix(str(out), layers, named, source="text", force=False)
    opened = open_layers(out)
    assert opened.layers == ("blk.0.ffn_up_exps",)
    np.testing.assert_allclose(opened.read("blk.0.ffn_up_exps").square, np.repeat([0.5, 1.5, 2.5], 4))
    with pytest.raises(UsageError, match="nothing that was gathered"):
        write_imatrix(str(tmp_path / "no.gguf"), layers, {"a.weight": ("unknown",)}, source="", force=False)
