"""`inspect --coding`: what an archive's streams take sums to its bytes, and is what entropy asks for."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import archives
from support.console import compressor

from compressor import api
from compressor.files.entropy.account import Account
from compressor.files.entropy.chunk import decode_chunk, encode_chunk
from compressor.files.entropy.elements import Form
from compressor.workflows.archive_contents import CodingGain, summed


def binary(share: float) -> float:
    return -share * log2(share) - (1 - share) * log2(1 - share)


def network(path: Path, dtype: str = "F32") -> Path:
    """A pruned matrix with a vector beside it."""
    chance = np.random.default_rng(0)
    weights = chance.standard_normal((200, 300)).astype(np.float32)
    weights[np.abs(weights) < 1.5] = 0
    weights[chance.random(weights.shape) < 0.05] = 0  # so that kept weights and their number are not symmetric
    return archives.write(path, {"a.weight": (dtype, weights), "b.bias": ("F32", weights[0] + 1)})


def codings(path: Path) -> dict[str, CodingGain]:
    return {one.name: one for one in api.inspect(path, coding=True).codings}


def check_sums(found: CodingGain) -> None:
    """All of it is the tensor's bytes, and no stream takes less than nothing."""
    assert found.values[1] + found.positions[1] + found.beside[1] == pytest.approx(8 * found.coded)
    assert min(*found.values, *found.positions, *found.beside) >= 0


def test_a_codebook_of_a_pruned_matrix(tmp_path: Path) -> None:
    source, small = network(tmp_path / "a.safetensors"), tmp_path / "small.safetensors"
    api.quantize(source, small, scheme="codebook", entries=16, store="archive", include=["*.weight"])
    found = codings(small)["a.weight"]
    check_sums(found)
    weights = archives.read(source)["a.weight"][2]
    kept = int(np.count_nonzero(np.frombuffer(weights, np.float32)))
    assert (found.weights, found.kept, found.original) == (60_000, kept, 240_000)
    assert found.values[0] == 4 * kept
    assert found.positions[0] in (60_000, 8 * kept)  # a bit for each weight, or a gap before each kept one
    assert found.beside[0] == 16 * 32
    # random places and values have no structure: the coder comes near their entropy, and not below
    assert 0.99 < found.positions[1] / (60_000 * binary(kept / 60_000)) < 1.02
    api.restore(small, tmp_path / "back.safetensors")
    back = np.frombuffer(archives.read(tmp_path / "back.safetensors")["a.weight"][2], np.float32)
    _, counts = np.unique(back[back != 0], return_counts=True)
    entropy = float(-(counts * np.log2(counts / kept)).sum())
    assert 0.99 < found.values[1] / entropy < 1.02


def test_one_stream_of_both_is_told_apart() -> None:
    """Where zeros and codes are one stream, its table gives the bits of both, which sum to what it takes."""
    chance = np.random.default_rng(0)
    dense = chance.random((1, 40)) < 0.5  # columns of different density, so that one stream with classes is smaller
    codes = np.where(
        chance.random((2000, 40)) < np.where(dense, 0.6, 0.01), chance.integers(1, 16, (2000, 40)), 0
    ).astype(np.uint8)
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    chunk = encode_chunk(packed, Form("codes", 4), "small")
    account = Account()
    assert (decode_chunk(memoryview(chunk), packed.shape, Form("codes", 4), account) == packed).all()
    kept, columns = int(np.count_nonzero(codes)), (codes != 0).mean(axis=0)
    assert account.plain_values == 4 * kept
    assert account.positions == pytest.approx(2000 * sum(map(binary, columns)), rel=0.02)
    assert account.values == pytest.approx(kept * log2(15), rel=0.01)
    assert 0 <= 8 * len(chunk) - account.values - account.positions < 0.03 * 8 * len(chunk)


@pytest.mark.parametrize(
    "options",
    [
        {"verb": "prune", "sparsity": 0.9},
        {"verb": "prune", "sparsity": 0.9, "store": "csr"},
        {"verb": "prune", "sparsity": 0.9, "store": "bitmask"},
        {"verb": "quantize", "bits": 4, "group_size": 100},
        {"verb": "quantize", "bits": 8},
        {"verb": "quantize", "scheme": "binary"},
    ],
    ids=str,
)
def test_whatever_is_archived_sums_up(tmp_path: Path, options: dict[str, Any]) -> None:
    given = {**options}
    run = getattr(api, given.pop("verb"))
    run(network(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", **given)
    api.pipeline(tmp_path / "b.safetensors", tmp_path / "c.safetensors", store="archive")
    found = codings(tmp_path / "c.safetensors")
    assert found.keys() == {"a.weight", "b.bias"}
    for one in found.values():
        check_sums(one)
    weight = found["a.weight"]
    if options["verb"] == "prune":
        assert weight.kept == 6000
        assert weight.positions[1] > 0
        assert weight.values[0] == 32 * 6000
    else:
        assert weight.values[0] + weight.positions[0] > 0
    total = summed(list(found.values()))
    check_sums(total)
    assert total.weights == 60_300


def test_the_report(tmp_path: Path) -> None:
    source, small = network(tmp_path / "a.safetensors"), tmp_path / "small.safetensors"
    api.quantize(source, small, scheme="codebook", entries=16, store="archive")
    done = compressor("inspect", small, "--coding")
    assert done.code == 0
    (row,) = [line for line in done.out.splitlines() if line.startswith("a.weight") and "60,000" in line]
    found = codings(small)["a.weight"]
    assert f"4 → {found.values[1] / found.kept:.3g}" in row
    assert f"{found.positions[0] / found.kept:.3g} → {found.positions[1] / found.kept:.3g}" in row
    content = json.loads(compressor("inspect", small, "--coding", "--format", "json").out)
    (said,) = [one for one in content["coding"] if one["name"] == "a.weight"]
    assert said["values"] == {"bits_before_coding": found.values[0], "bits_coded": found.values[1]}
    assert said["coded"] == found.coded
    assert "coding" not in json.loads(compressor("inspect", small, "--format", "json").out)


def test_empty_tensors_and_other_dtypes(tmp_path: Path) -> None:
    tensors = {
        "e": ("F32", np.zeros((0, 5), np.float32)),
        "i": ("I64", np.arange(4)),
        "z": ("F32", np.zeros((9, 9), "f4")),
    }
    source = archives.write(tmp_path / "a.safetensors", tensors)
    api.pipeline(source, tmp_path / "b.safetensors", store="archive")
    found = codings(tmp_path / "b.safetensors")
    assert (found["e"].weights, found["e"].coded) == (0, 0)
    assert (found["i"].kept, found["z"].kept) == (3, 0)
    assert compressor("inspect", tmp_path / "b.safetensors", "--coding").code == 0


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    done = compressor("inspect", network(tmp_path / "a.safetensors"), "--coding")
    assert done.code == 3
    assert "is no archive" in done.err
    assert "--store archive" in done.err
