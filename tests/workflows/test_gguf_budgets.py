"""Budgets of a GGUF file: ggml's types, tensor by tensor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.console import compressor
from support.gguf_files import STRING, UINT32, GgufFile, numbers, value

from compressor import api
from compressor.core.errors import GateFailed
from compressor.files.gguf.reading import read_header
from compressor.files.input_file import InputFile

WIDE, NARROW, EMBEDDING = "blk.0.ffn_up.weight", "blk.0.attn_q.weight", "token_embd.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = GgufFile(
        (
            *(numbers(f"blk.{number}.ffn_up.weight", (32, 256), seed=9 + number) for number in range(12)),
            numbers(NARROW, (64, 96), seed=2),
            numbers(EMBEDDING, (32, 256), seed=3),
            numbers("output_norm.weight", (256,), seed=4),
        ),
        {"general.architecture": value(STRING, "llama"), "llama.block_count": value(UINT32, 12)},
    )
    path = tmp_path / "in.gguf"
    path.write_bytes(made.file())
    return path


def types(path: Path) -> dict[str, str]:
    return {name: kind.name for name, kind in read_header(InputFile.open(path)).types.items()}


@pytest.mark.parametrize("size", [95_000, 100_000, 120_000])
def test_the_size_is_met_from_below(size: int, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    report = api.quantize(model, out, target_size=size)
    assert report.plan.size_after == out.stat().st_size <= size
    assert out.stat().st_size > size - 4_000  # a matrix of the next type takes less more
    found = types(out)
    assert found["output_norm.weight"] == found[EMBEDDING] == "F32"
    assert found[NARROW] in ("IQ4_NL", "Q5_0", "Q8_0", "F32")  # 256 does not divide its rows


def test_embeddings_are_decided_where_they_are_included_and_vectors_never(model: Path, tmp_path: Path) -> None:
    report = api.quantize(model, tmp_path / "out.gguf", target_bits=4.5, include=["*"])
    decided = [job for job in report.plan.jobs if job.steps]
    assert 4 < 8 * sum(job.size_after for job in decided) / sum(job.spec.size for job in decided) <= 4.5
    found = types(tmp_path / "out.gguf")
    assert found[EMBEDDING] != "F32"
    assert found["output_norm.weight"] == "F32"
    (norm,) = (job for job in report.plan.jobs if job.spec.name == "output_norm.weight")
    assert [why.reason for why in norm.left_alone] == ["vector or scalar: llama.cpp reads those as numbers only"]


def test_candidates_that_a_user_names(model: Path, tmp_path: Path) -> None:
    api.quantize(model, tmp_path / "out.gguf", target_bits=5.6, candidates=["q5_0", "q8_0"])
    assert {types(tmp_path / "out.gguf")[name] for name in (WIDE, NARROW)} == {"Q5_0"}


def test_tune_of_codes_gives_nothing_larger_than_what_held(model: Path, tmp_path: Path) -> None:
    """Codes that are kept lose nothing, and take less than wider ones: they are the best point of the curve."""
    codes, out = tmp_path / "codes.gguf", tmp_path / "out.gguf"
    api.quantize(model, codes, scheme="q4_1")
    report = api.tune(
        codes,
        out,
        evaluate=f'{sys.executable} -c "print(1)" {{path}}',
        min_metric=1,
        candidates=["dense", "q5_0", "q8_0"],
        evaluations=4,
        requantize=True,
    )
    assert report.allocation is not None
    sizes = [one.size for one in report.allocation.tried]
    assert out.stat().st_size == min(sizes)
    assert set(types(out).values()) == {"Q4_1", "F32"}


def test_codes_that_stay_count_with_the_bytes_they_have(model: Path, tmp_path: Path) -> None:
    codes, out = tmp_path / "codes.gguf", tmp_path / "out.gguf"
    api.quantize(model, codes, scheme="q4_0", include=["*ffn*"])
    asked = {"candidates": ["dense", "q2_k", "q8_0"], "requantize": True, "include": ["*ffn*"]}
    report = api.quantize(codes, out, target_bits=4.5, **asked)
    assert report.allocation is not None
    assert {(row.choice, row.bits, row.error) for row in report.allocation.chosen} == {("dense", 4.5, 0.0)}
    assert types(out)[WIDE] == "Q4_0"
    size = codes.stat().st_size - 6_000  # less than four of twelve matrices give up as Q2_K
    report = api.quantize(codes, out, target_size=size, force=True, **asked)
    assert size - 2_000 < report.plan.size_after == out.stat().st_size <= size
    assert set(types(out).values()) == {"Q4_0", "Q2_K", "F32"}
    with pytest.raises(GateFailed) as caught:
        api.quantize(codes, out, target_size=5_000, force=True, **asked)
    assert caught.value.remedy == "Ask for no less"


def test_codes_that_are_restored_count_as_numbers(model: Path, tmp_path: Path) -> None:
    """A file of safetensors has no blocks of ggml's: what stays is F32 there."""
    codes, out = tmp_path / "codes.gguf", tmp_path / "out.safetensors"
    api.quantize(model, codes, scheme="q4_0", include=["*ffn*"])
    asked = {"candidates": ["dense", "int4g32"], "requantize": True, "include": ["*ffn*"]}
    report = api.quantize(codes, out, target_bits=12, **asked)
    assert report.allocation is not None
    assert {row.bits for row in report.allocation.chosen if row.choice == "dense"} == {32.0}
    assert {row.choice for row in report.allocation.chosen} == {"dense", "int4g32"}
    size = 130_000  # of which an archive of the input's numbers would leave nothing for the codes
    report = api.quantize(codes, out, target_size=size, store="archive", requantize=True, force=True)
    assert 0.95 * size < out.stat().st_size <= size


def test_what_cannot_be_met(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="the smallest that the candidates allow is") as caught:
        api.quantize(model, tmp_path / "out.gguf", target_size=60_000)
    assert caught.value.remedy == "Ask for no less, or give --include '*', which makes it possible"
    assert not (tmp_path / "out.gguf").exists()
    with pytest.raises(GateFailed) as caught:
        api.quantize(model, tmp_path / "out.gguf", target_size=10_000, include=["*"])
    assert caught.value.remedy == "Ask for no less"  # all that a file may hold as codes is decided already
    with pytest.raises(GateFailed) as caught:
        api.quantize(model, tmp_path / "out.gguf", target_bits=1)
    assert caught.value.remedy == "Ask for no less"  # more tensors are no fewer bits a weight
    done = compressor("quantize", model, "-o", tmp_path / "out.gguf", "--target-size", "60kB", "--include", "*")
    assert done.code == 0
