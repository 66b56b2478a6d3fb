"""GGUF models quantized to ggml's types: by scheme, by llama.cpp's mixtures, with statistics; read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import small_models
from support.console import compressor
from support.gguf_files import STRING, UINT32, GgufFile, Line, gguf_package, numbers, value

from compressor import api
from compressor.architectures.ggml_mixtures import FILE_TYPES
from compressor.core.errors import UsageError
from compressor.core.ggml_types import GgmlType
from compressor.files.gguf.reading import read_header
from compressor.files.input_file import InputFile
from compressor.methods.quantize.ggml.decoder import decode_blocks
from compressor.recipe.presets import MIXTURES

LAYERS = 8
SHAPES = {"attn_q": (256, 256), "attn_k": (64, 256), "attn_v": (64, 256), "attn_output": (256, 256)}


def model(place: Path, down: int = 512) -> Path:
    """A llama of 8 layers, four heads of queries for each of keys."""
    lines: list[Line] = [numbers("token_embd.weight", (40, 256)), numbers("output.weight", (40, 256))]
    for layer in range(LAYERS):
        for number, (part, shape) in enumerate((SHAPES | {"ffn_down": (256, down)}).items()):
            lines.append(numbers(f"blk.{layer}.{part}.weight", shape, 10 * layer + number))
        lines.append(numbers(f"blk.{layer}.attn_norm.weight", (256,), layer))
    said = {"block_count": LAYERS, "attention.head_count": 8, "attention.head_count_kv": 2}
    values = {"general.architecture": value(STRING, "llama")}
    path = place / "in.gguf"
    path.write_bytes(GgufFile(lines, values | {f"llama.{key}": value(UINT32, n) for key, n in said.items()}).file())
    return path


def types(path: Path) -> dict[str, GgmlType]:
    return dict(read_header(InputFile.open(path)).types)  # type: ignore[attr-defined]


def file_type(path: Path) -> object:
    return read_header(InputFile.open(path)).fields["general.file_type"].python()  # type: ignore[attr-defined]


def test_every_tensor_of_a_scheme_is_read_back_as_its_blocks_say(tmp_path: Path) -> None:
    source, out, back = model(tmp_path), tmp_path / "out.gguf", tmp_path / "back.safetensors"
    api.quantize(source, out, scheme="q4_k")
    api.restore(out, back)
    restored, raw = load_file(back), out.read_bytes()
    for tensor in read_header(InputFile.open(out)).tensors:
        kind = types(out)[tensor.spec.name]
        assert kind.name == ("F32" if "norm" in tensor.spec.name else "Q4_K")
        if kind.name == "Q4_K":
            blocks = np.frombuffer(raw, np.uint8, tensor.spec.nbytes, tensor.offset).reshape(-1, kind.nbytes)
            found = np.empty((len(blocks), kind.block), np.float32)
            decode_blocks(kind.name, blocks, found)
            assert np.array_equal(found.reshape(-1), restored[tensor.spec.name].reshape(-1))
    done = compressor("compare", source, out)
    assert done.code == 0


MEANT = [(None, "q8_0"), (8, "q8_0"), (6, "q6_k"), (5, "q5_k_m"), (4, "q4_k_m"), (3, "q3_k_m"), (2, "q2_k")]


@pytest.mark.parametrize(("bits", "preset"), MEANT)
def test_bits_alone_are_a_mixture_of_llama_cpp(tmp_path: Path, bits: int | None, preset: str) -> None:
    source = model(tmp_path)
    report = api.quantize(source, tmp_path / "out.gguf", **({} if bits is None else {"bits": bits}), dry_run=True)
    named = api.quantize(source, tmp_path / "out.gguf", preset=preset, dry_run=True)
    assert [job.dtype_after for job in report.plan.jobs] == [job.dtype_after for job in named.plan.jobs]
    assert f"no type of ggml's was named: this is llama.cpp's mixture {preset} (--preset)" in report.plan.notes


def test_a_scheme_is_for_what_llama_quantize_takes(tmp_path: Path) -> None:
    source, out = model(tmp_path), tmp_path / "out.gguf"
    report = api.quantize(source, out, scheme="q5_k", exclude=["output.weight"])
    found = {name: kind.name for name, kind in types(out).items()}
    assert (found["output.weight"], found["token_embd.weight"]) == ("F32", "Q5_K")
    assert any("`llama-quantize --pure` takes" in note for note in report.plan.notes)
    api.quantize(source, out, scheme="q5_k", include=["blk.*"], force=True)
    assert types(out)["token_embd.weight"].name == "F32"
    unnamed = tmp_path / "unnamed.gguf"
    unnamed.write_bytes(
        GgufFile([numbers("a.weight", (4, 256))], {"general.architecture": value(STRING, "x")}).file()
    )
    report = api.quantize(unnamed, out, bits=4, force=True)
    assert types(out)["a.weight"].name == "Q4_K"
    assert "no type of ggml's was named: this is q4_k (--scheme)" in report.plan.notes


def test_statistics_weigh_what_bits_alone_mean(tmp_path: Path) -> None:
    source, out, matrix = model(tmp_path), tmp_path / "out.gguf", tmp_path / "imatrix.gguf"
    lines: list[Line] = []
    for part, shape in (SHAPES | {"ffn_down": (256, 512)}).items():
        for layer in range(LAYERS):
            for end, size in ((".in_sum2", shape[1]), (".counts", 1)):
                line = numbers(f"blk.{layer}.{part}.weight{end}", (1, size))
                lines.append(replace(line, data=np.ones(size, "<f4").tobytes()))
    matrix.write_bytes(GgufFile(lines, {"general.type": value(STRING, "imatrix")}).file())
    plain = api.quantize(source, out, bits=4, dry_run=True)
    report = api.quantize(source, out, bits=4, stats=matrix, dry_run=True)
    informed = {job.spec.name for job in report.plan.jobs if any(step.inputs is not None for step in job.steps)}
    assert informed == {line.name.rpartition(".")[0] for line in lines}
    assert [job.dtype_after for job in report.plan.jobs] == [job.dtype_after for job in plain.plan.jobs]


def test_a_mixture_gives_each_tensor_its_type(tmp_path: Path) -> None:
    source, out = model(tmp_path), tmp_path / "out.gguf"
    api.quantize(source, out, preset="q4_k_m")
    found = {name: kind.name for name, kind in types(out).items()}
    more = {0, 3, 6, 7}
    for layer in range(LAYERS):
        for part in SHAPES:
            expected = "Q6_K" if part == "attn_v" and layer in more else "Q4_K"
            assert found[f"blk.{layer}.{part}.weight"] == expected
        assert found[f"blk.{layer}.ffn_down.weight"] == ("Q6_K" if layer in more else "Q4_K")
        assert found[f"blk.{layer}.attn_norm.weight"] == "F32"
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q6_K", "Q4_K")
    assert file_type(out) == 15


def test_rules_and_exclusions_come_before_a_mixture(tmp_path: Path) -> None:
    source, out = model(tmp_path), tmp_path / "out.gguf"
    rules = [("blk.1.*", {"scheme": "q8_0"})]
    api.quantize(source, out, preset="q5_k_s", rules=rules, exclude=["output.weight"])
    found = {name: kind.name for name, kind in types(out).items()}
    assert {found[f"blk.1.{part}.weight"] for part in SHAPES} == {"Q8_0"}
    assert found["blk.2.attn_q.weight"] == "Q5_K"
    assert found["output.weight"] == "F32"
    assert file_type(out) == 16  # of the small one, where most weights alone would say the medium one


def test_rows_that_no_block_divides_are_named_and_refused_by_strict(tmp_path: Path) -> None:
    source, out = model(tmp_path, down=96), tmp_path / "out.gguf"
    done = compressor("quantize", source, "-o", out, "--preset", "q4_k_m")
    assert done.code == 0
    assert "q8_0, since blocks of 256 do not divide the row of 96: blk.0.ffn_down.weight" in done.out
    assert "q5_0, since blocks of 256 do not divide the row of 96: blk.1.ffn_down.weight" in done.out
    found = {name: kind.name for name, kind in types(out).items()}
    assert (found["blk.0.ffn_down.weight"], found["blk.1.ffn_down.weight"]) == ("Q8_0", "Q5_0")
    assert compressor("quantize", source, "-o", out, "--preset", "q4_k_m", "--strict", "--force").code == 2


def test_a_mixture_needs_to_know_the_model(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    save_file({"blk.0.attn_q.weight": np.ones((2, 256), np.float32)}, source)
    with pytest.raises(UsageError, match=r"goes by what a \.gguf says of its model"):
        api.quantize(source, tmp_path / "out.safetensors", preset="q4_k_m")
    api.quantize(source, tmp_path / "out.safetensors", scheme="q4_k")  # what the message says


def test_dry_runs_tell_the_size_to_the_byte(tmp_path: Path) -> None:
    source, out = model(tmp_path), tmp_path / "out.gguf"
    told = api.quantize(source, out, preset="q3_k_l", dry_run=True)
    assert not out.exists()
    written = api.quantize(source, out, preset="q3_k_l")
    assert told.plan.size_after == written.plan.size_after == out.stat().st_size
    assert file_type(out) == 13


def test_every_mixture_has_a_file_type() -> None:
    gguf = gguf_package()
    for preset in MIXTURES:
        name = f"MOSTLY_{preset.upper()}"
        assert FILE_TYPES[preset] == gguf.LlamaFileType[name]
    assert set(FILE_TYPES) == set(MIXTURES)


@pytest.mark.parametrize(("scheme", "dtype"), [("f16", np.float16), ("f32", np.float32)])
def test_numbers_elsewhere_are_what_loaders_take(tmp_path: Path, scheme: str, dtype: Any) -> None:
    """Outside of a .gguf they are plain tensors under their own names, and nothing tells loaders of codes."""
    source = small_models.llama().write(tmp_path)
    for out in (tmp_path / "out.safetensors", tmp_path / "out"):
        report = api.quantize(source, out, scheme=scheme, include=["*"])
        assert not [note for note in report.plan.notes if "only `compressor restore` reads" in note]
        file = out if out.is_file() else out / "model.safetensors"
        held = load_file(file)
        assert held.keys() == small_models.llama().tensors.keys()
        assert {array.dtype for array in held.values() if array.ndim > 1} == {np.dtype(dtype)}
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    api.restore(tmp_path / "out", tmp_path / "back")
    assert api.compare(source, tmp_path / "back").total.error < 1e-3
