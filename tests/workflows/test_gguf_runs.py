"""Whole runs on GGUF files: read, restored, compared, and written again with their metadata."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.console import compressor
from support.gguf_files import STRING, UINT32, GgufFile, Line, blocks, numbers, small_model, value

from compressor import api
from compressor.core.errors import InputError, UsageError
from compressor.core.ggml_types import BY_NAME
from compressor.files.gguf.reading import RECORD, GgufHeader, read_header
from compressor.files.input_file import InputFile
from compressor.methods.quantize.ggml.decoder import decode_blocks


def write(place: Path, made: GgufFile, name: str = "in.gguf") -> Path:
    path = place / name
    path.write_bytes(made.file())
    return path


def header_of(path: Path) -> GgufHeader:
    return read_header(InputFile.open(path))


def decoded(line: Line) -> np.ndarray[Any, Any]:
    kind = BY_NAME[line.type]
    if kind.dtype:
        return np.frombuffer(line.data, {"F32": "<f4", "I32": "<i4"}[line.type]).reshape(line.shape)
    raw = np.frombuffer(line.data, np.uint8).reshape(-1, kind.nbytes)
    out = np.empty((len(raw), kind.block), np.float32)
    decode_blocks(line.type, raw, out)
    return out.reshape(line.shape)


def data_of(path: Path) -> dict[str, bytes]:
    """The bytes of each tensor of a file."""
    raw = path.read_bytes()
    return {one.spec.name: raw[one.offset : one.offset + one.spec.nbytes] for one in header_of(path).tensors}


def test_inspect_shows_types_and_sizes(tmp_path: Path) -> None:
    done = compressor("inspect", write(tmp_path, small_model()), "--format", "json")
    assert done.code == 0
    found = {one["name"]: one for one in json.loads(done.out)["tensors"]}
    assert found["blk.0.attn_q.weight"]["stored_as"]["scheme"] == "q4_k"
    assert found["blk.0.attn_q.weight"]["size"] == 8 * 144
    metadata = json.loads(done.out)["metadata"]
    assert metadata["general.architecture"] == "llama"
    assert metadata["tokenizer.ggml.tokens"] == "['a', 'Ġb', '']"


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_restored_are_the_numbers_that_ggml_computes_with(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    api.restore(write(tmp_path, small_model()), out)
    found = load_file(out if suffix else out / "model.safetensors")
    assert {name: array.dtype.str for name, array in found.items()} == {
        line.name: "<i4" if line.type == "I32" else "<f4" for line in small_model().lines
    }
    for line in small_model().lines:
        assert np.array_equal(found[str(line.name)], decoded(line))


def test_compare_reads_blocks_as_numbers(tmp_path: Path) -> None:
    source = write(tmp_path, small_model())
    api.restore(source, tmp_path / "out.safetensors")
    report = api.compare(source, tmp_path / "out.safetensors")
    assert [row.problem for row in report.rows] == [""] * 5
    assert report.total.error == 0


def test_parts_are_restored_as_one(tmp_path: Path) -> None:
    first, second = small_model().lines[:2], small_model().lines[2:]
    for number, lines in enumerate((first, second)):
        split = {"split.no": value(2, number), "split.count": value(2, 2), "split.tensors.count": value(5, 5)}
        values = {**small_model().values, **split} if number == 0 else split
        write(tmp_path, GgufFile(lines, values), f"m-0000{number + 1}-of-00002.gguf")
    whole = write(tmp_path, small_model())
    for out in ("out.safetensors", "out.gguf", "folder"):
        api.restore(tmp_path / "m-00002-of-00002.gguf", tmp_path / out)
        api.restore(whole, tmp_path / f"whole-{out}")
        made, expected = (tmp_path / name for name in (out, f"whole-{out}"))
        if out == "folder":
            made, expected = made / "model.safetensors", expected / "model.safetensors"
        assert made.read_bytes() == expected.read_bytes()


def test_a_transformed_model_keeps_its_metadata_and_all_other_blocks(tmp_path: Path) -> None:
    source, out = write(tmp_path, small_model()), tmp_path / "out.gguf"
    report = api.prune(source, out, sparsity=0.5, include=["*ffn_up*"], store="dense")
    before, after = header_of(source), header_of(out)
    assert list(after.types) == list(before.types)
    assert {name: kind.name for name, kind in after.types.items()} == {
        **{line.name: line.type for line in small_model().lines},
        "blk.0.ffn_up.weight": "F32",
    }
    said = {key: one for key, one in after.fields.items() if key != RECORD}
    assert said == before.fields
    old, new = data_of(source), data_of(out)
    assert [name for name in old if old[name] != new[name]] == ["blk.0.ffn_up.weight"]
    pruned = np.frombuffer(new["blk.0.ffn_up.weight"], "<f4")
    assert np.count_nonzero(pruned == 0) == pruned.size // 2
    record = json.loads(after.fields[RECORD].python())
    assert record["stages"][0]["kind"] == "prune"
    assert len(record["plan"]) == 64
    assert report.plan.size_after == out.stat().st_size


def test_stages_add_up_in_the_record(tmp_path: Path) -> None:
    source = write(
        tmp_path, GgufFile((numbers("a.weight", (8, 32)),), {"general.architecture": value(STRING, "x")})
    )
    api.prune(source, tmp_path / "one.gguf", sparsity=0.5)
    api.distill(tmp_path / "one.gguf", tmp_path / "two.gguf", teacher=source, method="blend", alpha=0.5)
    record = json.loads(header_of(tmp_path / "two.gguf").fields[RECORD].python())
    assert [stage["kind"] for stage in record["stages"]] == ["prune", "distill"]


def test_restored_to_gguf_is_numbers_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    api.restore(write(tmp_path, small_model()), out)
    header = header_of(out)
    assert {kind.name for kind in header.types.values()} == {"F32", "I32"}
    assert header.fields["general.file_type"].python() == 0
    assert "general.quantization_version" not in header.fields
    assert np.array_equal(
        np.frombuffer(data_of(out)["token_embd.weight"], "<f4"), decoded(small_model().lines[2]).reshape(-1)
    )


@pytest.mark.parametrize(
    ("dtype", "number", "expected"), [("F16", 7, 1), ("BF16", 7, 32), ("F32", 7, 0), ("F64", None, 0)]
)
def test_the_file_type_is_that_of_most_weights(
    tmp_path: Path, dtype: str, number: int | None, expected: int
) -> None:
    itemsize = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}[dtype]
    values = {"general.architecture": value(STRING, "x")}
    if number is not None:
        values["general.file_type"] = value(UINT32, number)
    lines = (Line("a.weight", dtype, (64, 64), bytes(64 * 64 * itemsize)), blocks("b.weight", "Q8_0", (2, 32)))
    source = write(tmp_path, GgufFile(lines, values))
    api.prune(source, tmp_path / "out.gguf", sparsity=0.5, include=["b.weight"], store="dense")
    assert header_of(tmp_path / "out.gguf").fields["general.file_type"].python() == expected


def test_the_same_bytes_by_any_workers_and_again(tmp_path: Path) -> None:
    source = write(tmp_path, small_model())
    made = []
    for number, workers in enumerate((1, 3, 3)):
        api.prune(source, tmp_path / f"{number}.gguf", sparsity=0.3, workers=workers)
        made.append((tmp_path / f"{number}.gguf").read_bytes())
    assert len(set(made)) == 1


def test_a_recipe_of_legs_ends_in_a_gguf(tmp_path: Path) -> None:
    source = write(tmp_path, small_model())
    recipe = tmp_path / "r.toml"
    stage = '[[stage]]\nkind = "prune"\nsparsity = {}\nstore = "dense"\ninclude = ["*ffn_up*"]\n'
    recipe.write_text(stage.format(0.25) + stage.format(0.5))
    api.pipeline(source, tmp_path / "out.gguf", recipe=str(recipe))
    pruned = np.frombuffer(data_of(tmp_path / "out.gguf")["blk.0.ffn_up.weight"], "<f4")
    assert np.count_nonzero(pruned == 0) == pruned.size // 2


@pytest.mark.parametrize(
    ("verb", "options", "error", "reason"),
    [
        ("quantize", {"bits": 8}, InputError, "is already quantized .ggml's types.. Use --requantize"),
        (
            "quantize",
            {"bits": 8, "requantize": True, "granularity": "channel"},
            UsageError,
            "would be stored as int8, and a .gguf holds ggml's types. Name a scheme of ggml's, such as q4_k",
        ),
        ("prune", {"sparsity": 0.5, "store": "csr"}, UsageError, "a .gguf holds no sparse layout"),
        ("prune", {"sparsity": 0.5, "store": "archive"}, UsageError, "an .gguf holds no archive"),
        ("pipeline", {"store": "archive"}, UsageError, "an .gguf holds no archive"),
    ],
)
def test_what_a_gguf_does_not_hold(
    tmp_path: Path, verb: str, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        getattr(api, verb)(write(tmp_path, small_model()), tmp_path / "out.gguf", **options)
    assert not (tmp_path / "out.gguf").exists()


def test_an_archive_of_a_gguf_is_read_like_it(tmp_path: Path) -> None:
    source = write(tmp_path, small_model())
    with pytest.raises(UsageError, match=r"one file, of one file\. Let the output end in \.safetensors"):
        api.pipeline(source, tmp_path / "out", store="archive")
    api.pipeline(source, tmp_path / "small.safetensors", store="archive")
    for name in (source, tmp_path / "small.safetensors"):
        api.prune(name, tmp_path / f"{name.stem}.pruned.gguf", sparsity=0.5)
    pruned = [(tmp_path / f"{stem}.pruned.gguf").stat().st_size for stem in (source.stem, "small")]
    assert pruned[0] == pruned[1]


def test_other_inputs_do_not_say_what_model_they_are(tmp_path: Path) -> None:
    api.restore(write(tmp_path, small_model()), tmp_path / "out.safetensors")
    with pytest.raises(InputError, match=r"has no config\.json that says which model it is"):
        api.prune(tmp_path / "out.safetensors", tmp_path / "out.gguf", sparsity=0.5)


def test_a_scale_that_is_nan_is_an_error_with_names(tmp_path: Path) -> None:
    line = blocks("blk.0.ffn_up.weight", "Q8_0", (4, 64))
    broken = Line(line.name, line.type, line.shape, line.data[:34] + b"\xff\xff" + line.data[36:])
    source = write(tmp_path, GgufFile((broken,), {"general.architecture": value(STRING, "x")}))
    done = compressor("restore", source, "-o", tmp_path / "out.safetensors")
    assert done.code == 3
    assert "tensor 'blk.0.ffn_up.weight': a scale of its Q8_0 blocks is NaN or infinite. Download it" in done.err
    assert not (tmp_path / "out.safetensors").exists()


def test_quantized_blocks_become_codes_of_others_where_asked(tmp_path: Path) -> None:
    source, out = write(tmp_path, small_model()), tmp_path / "out.safetensors"
    api.quantize(source, out, bits=8, requantize=True, granularity="channel", layout="compressor")
    api.restore(out, tmp_path / "back.safetensors")
    found = load_file(tmp_path / "back.safetensors")
    want = decoded(small_model().lines[1])
    assert np.abs(found["blk.0.ffn_up.weight"] - want).max() <= np.abs(want).max() / 100


def test_experts_are_read_by_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = blocks("blk.0.ffn_up_exps.weight", "Q8_0", (2, 600, 512))
    named = {"general.architecture": value(STRING, "x")}
    source = write(tmp_path, GgufFile((line, numbers("blk.0.w.weight", (4, 32))), named))
    most = 0

    def watched(name: str, raw: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
        nonlocal most
        most = max(most, raw.base.size if raw.base is not None else raw.size)
        decode_blocks(name, raw, out)

    monkeypatch.setattr("compressor.methods.quantize.ggml.decoder.decode_blocks", watched)
    monkeypatch.setattr("compressor.engine.execution.cut.CHUNK", 1 << 16)
    monkeypatch.setattr("compressor.engine.execution.cut.BLOCK", 1 << 15)
    api.restore(source, tmp_path / "out.safetensors", workers=1)
    assert np.array_equal(load_file(tmp_path / "out.safetensors")[str(line.name)], decoded(line))
    assert most <= 1 << 17
    api.prune(source, tmp_path / "out.gguf", sparsity=0.5, include=["blk.0.w*"], workers=1)
    assert data_of(tmp_path / "out.gguf")[str(line.name)] == line.data
    assert most <= 1 << 17


@pytest.mark.parametrize(
    ("before", "after"), [("Q4_0", "Q4_0"), ("Q8_0", "Q8_0"), ("Q6_K", "Q6_K"), ("Q4_1", "Q8_0"), ("Q4_K", "Q8_0")]
)
def test_pruned_blocks_become_blocks_that_have_a_zero(tmp_path: Path, before: str, after: str) -> None:
    line = blocks("blk.0.w.weight", before, (16, 512))
    source = write(tmp_path, GgufFile((line,), {"general.architecture": value(STRING, "x")}))
    report = api.prune(source, tmp_path / "out.gguf", sparsity=0.5)
    assert header_of(tmp_path / "out.gguf").types["blk.0.w.weight"].name == after
    api.restore(tmp_path / "out.gguf", tmp_path / "out.safetensors")
    api.prune(source, tmp_path / "expected.safetensors", sparsity=0.5)
    found = load_file(tmp_path / "out.safetensors")["blk.0.w.weight"]
    expected = load_file(tmp_path / "expected.safetensors")["blk.0.w.weight"]
    assert not found[expected == 0].any()
    said = "is rounded to Q4_0 again; --store dense" if before == "Q4_0" else f"is changed is .* {after}"
    assert any(re.search(said, note) for note in report.plan.notes)
    small, large = np.linalg.norm(found - expected), np.linalg.norm(expected)
    assert small <= large * (0.12 if after == "Q4_0" else 0.03)


def test_distilled_blocks_keep_their_type(tmp_path: Path) -> None:
    named = {"general.architecture": value(STRING, "x")}
    source = write(tmp_path, GgufFile((blocks("blk.0.w.weight", "Q4_K", (4, 512)),), named))
    api.restore(source, tmp_path / "teacher.safetensors")
    options = {"teacher": tmp_path / "teacher.safetensors", "method": "blend", "alpha": 0.5}
    report = api.distill(source, tmp_path / "out.gguf", **options)
    assert "what was Q4_K and is changed is rounded to Q4_K again" in report.plan.notes
    assert header_of(tmp_path / "out.gguf").types["blk.0.w.weight"].name == "Q4_K"


def test_names_that_llama_cpp_does_not_read_are_told(tmp_path: Path) -> None:
    name = "x" * 57 + ".weight"
    named = {"general.architecture": value(STRING, "x")}
    source = write(tmp_path, GgufFile((numbers(name, (4, 32)), numbers("y" * 63, (4, 32))), named))
    report = api.prune(source, tmp_path / "out.gguf", sparsity=0.5)
    told = [note for note in report.plan.notes if note.startswith("llama.cpp reads no names of more than 63 bytes")]
    assert len(told) == 1
    assert told[0].endswith(f"'{name}'")


def test_names_that_llama_cpp_does_not_read_are_refused_for_it(tmp_path: Path) -> None:
    named = {"general.architecture": value(STRING, "x")}
    source = write(tmp_path, GgufFile((numbers("x" * 57 + ".weight", (4, 32)),), named))
    with pytest.raises(UsageError, match="1 names have more than the 63 bytes"):
        api.prune(source, tmp_path / "out.gguf", sparsity=0.5, loader="llama.cpp")
    assert not (tmp_path / "out.gguf").exists()
    api.prune(source, tmp_path / "out.gguf", sparsity=0.5)  # what the message says
