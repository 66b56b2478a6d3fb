"""Archives: everything comes back to the bit, sizes are near the entropy, and damage is refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import archives
from support.console import compressor
from support.fault_injection import damaged, invoke, is_one_line

from compressor import api
from compressor.core import kernels
from compressor.core.errors import InputError, OutputError, UsageError
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Workspace
from compressor.files import archive as format_of
from compressor.files.archive_regions import regions_of
from compressor.files.entropy import ans, elements, planes, rans
from compressor.files.entropy.bitio import BitReader, BitWriter
from compressor.files.entropy.chunk import decode_chunk, encode_chunk
from compressor.files.entropy.damage import Damaged, NeedsPackage
from compressor.files.entropy.elements import likely_form, possible
from compressor.files.entropy.tables import Table, read_tables, table_of, write_tables
from compressor.files.layout import Placed
from compressor.recipe.gates import Gates
from compressor.workflows.results import ReportedGateFailed

TORCH = Path(__file__).parent / "data" / "torch-state.pt"
STORAGES = {name: dtype.storage for name, dtype in DTYPES.items() if dtype.storage}


def bits_of(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Any patterns, NaN payloads and booleans of 2 among them."""
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(STORAGES[dtype]).itemsize), np.uint8)
    return raw.view("|u1" if dtype == "BOOL" else STORAGES[dtype])[..., 0]


def everything() -> dict[str, tuple[str, np.ndarray]]:
    found = {}
    chance = np.random.default_rng(1)
    for dtype, storage in STORAGES.items():
        found[f"{dtype}.noise"] = dtype, bits_of(dtype, (7, 33))
        found[f"{dtype}.scalar"] = dtype, bits_of(dtype, ())
        found[f"{dtype}.none"] = dtype, bits_of(dtype, (0, 5))
        found[f"{dtype}.cube"] = dtype, bits_of(dtype, (3, 2, 5), 2)
        few = bits_of(dtype, (5,), 3)[chance.integers(0, 5, (40, 9))]
        found[f"{dtype}.few"] = dtype, few
        found[f"{dtype}.sparse"] = dtype, np.where(chance.random((40, 9)) < 0.9, np.zeros(1, few.dtype), few)
        found[f"{dtype}.zero"] = dtype, np.zeros((4, 100), few.dtype)
        assert storage
    normal = (chance.standard_normal((64, 50)) * 0.02).astype(np.float32)
    found["normal.f32"] = "F32", normal
    found["normal.bf16"] = "BF16", (normal.view(np.uint32) >> 16).astype(np.uint16)
    found["normal.f16"] = "F16", normal.astype(np.float16)
    found["F4.odd rows"] = "F4", chance.integers(0, 256, 60, np.uint8)
    return found


def archived(folder: Path, tensors: archives.Tensors, effort: str = "fast", **metadata: str) -> tuple[Path, Path]:
    source = archives.write(folder / "source.safetensors", tensors, {"format": "pt", **metadata})
    output = folder / "archive.safetensors"
    api.pipeline(source, output, store="archive", effort=effort)
    return source, output


@pytest.mark.parametrize("effort", ["fast", "small"])
def test_everything_comes_back(tmp_path: Path, effort: str) -> None:
    source, output = archived(tmp_path, everything(), effort, note="mine")
    api.restore(output, tmp_path / "back.safetensors")
    assert archives.read(tmp_path / "back.safetensors") == archives.read(source)
    assert archives.header_of(tmp_path / "back.safetensors")["__metadata__"]["note"] == "mine"
    ((name, (dtype, shape, _)),) = archives.read(output).items()
    assert (name, dtype, len(shape)) == ("archive", "U8", 1)


# What version 1 wrote, and the SHA-256 of what comes back: the larger one has frames of zstd.
VERSION_1 = {
    "fast": "4a95e787c0c280957677d3c382074d9e01f5b47276bb6d6a5e2c13718d6dad2d",
    "small": "3dbe7c0302930d6c662c33a40bb9294d6b3744e2231df9fcd71144d3079cf0ed",
}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("effort", VERSION_1)
def test_archives_of_version_1_come_back(
    effort: str, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    path = Path(__file__).parent / "data" / f"version-1-{effort}.safetensors"
    api.restore(path, tmp_path / "back.safetensors")
    assert hashlib.sha256((tmp_path / "back.safetensors").read_bytes()).hexdigest() == VERSION_1[effort]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 4
    (tmp_path / "bad.safetensors").write_bytes(raw)
    with pytest.raises(InputError, match="is damaged in the archive"):
        api.restore(tmp_path / "bad.safetensors", tmp_path / "other.safetensors")


# ---- files as they are ---------------------------------------------------------------------------------


def odd_file(path: Path, tensors: archives.Tensors, metadata: dict[str, str]) -> None:
    """A safetensors file as no program here lays it out: in the given order, with an indented header."""
    header: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"data_offsets": [len(body), len(body) + len(raw)], "shape": array.shape, "dtype": dtype}
        body += raw
    text = json.dumps(header, indent=1).encode() + b"   "
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def normal(*shape: int) -> np.ndarray:
    return (np.random.default_rng(len(shape)).standard_normal(shape) * 0.02).astype(np.float32)


def files(folder: Path) -> list[Path]:
    """One of each container that comes back byte for byte."""
    odd_file(
        folder / "a.safetensors",
        {"z.weight": ("F32", normal(70, 50)), "a": ("U8", np.arange(5, dtype=np.uint8))},
        {"b": "c"},
    )
    odd_file(folder / "none.safetensors", {"e": ("F32", np.zeros((0, 3), np.float32))}, {})
    np.save(folder / "b.npy", normal(70, 50))
    np.save(folder / "fortran.npy", np.asfortranarray(normal(70, 50)))
    np.save(folder / "big.npy", normal(7, 5).astype(">f4"))
    shutil.copy(Path(__file__).parents[1] / "golden" / "ggml-types.gguf", folder / "c.gguf")
    np.savez(folder / "one.npz", normal(70, 50))
    odd = {"fortran": np.asfortranarray(normal(70, 50)), "big": normal(7, 5).astype(">f4"), "none": normal(0, 3)}
    np.savez(folder / "many.npz", **odd, a=normal(70, 50), scalar=np.float32(3))
    api.quantize(folder / "b.npy", folder / "codes.npz", bits=4)
    for suffix in ("pt", "bin"):
        shutil.copy(TORCH, folder / f"state.{suffix}")  # with views, tied parameters, and more than a state dict
    return [path for path in folder.iterdir() if path.is_file()]


def test_files_come_back_byte_for_byte(tmp_path: Path) -> None:
    for path in files(tmp_path):
        archive = tmp_path / "archive" / f"{path.name}.safetensors"
        archive.parent.mkdir(exist_ok=True)
        api.pipeline(path, archive, store="archive")
        back = archive.parent / f"back.{path.name}"
        api.restore(archive, back)
        assert back.read_bytes() == path.read_bytes(), path.name
        again = archive.parent / f"again.{path.name}.safetensors"  # the archive of an archive is that of the file
        api.pipeline(archive, again, store="archive")
        assert again.read_bytes() == archive.read_bytes()
        numbers, expected = tmp_path / "archive" / "n.safetensors", tmp_path / "archive" / "e.safetensors"
        api.restore(archive, numbers, force=True)
        api.restore(path, expected, force=True)
        assert archives.read(numbers) == archives.read(expected)
        for number in (1, 2):
            api.restore(archive, archive.parent / f"parts.{path.name}", part=f"{number}/2")
        api.merge(sorted(archive.parent.glob(f"parts.{path.name}.part-*")), archive.parent / f"merged.{path.name}")
        assert (archive.parent / f"merged.{path.name}").read_bytes() == path.read_bytes()


def test_pickles_whose_tensors_share_storages_code_them_once(tmp_path: Path) -> None:
    """A large rest that is no tensor's, such as an optimizer's state, is coded too, in one of the parts."""
    noise = normal(100, 1000)
    shared = [Placed(TensorSpec(name, "F32", (40, 100)), at) for name, at in (("b", 64), ("a", 64), ("c", 4064))]
    turned = Placed(TensorSpec("d", "F32", (10, 20)), 100_000, strides=(1, 10))
    gaps = Placed(TensorSpec("e", "F32", (3, 2)), 200_000, strides=(10, 2))
    found = regions_of([*shared, turned, gaps], noise.nbytes)
    assert [(one.spec.name, one.spec.shape, one.offset) for one in found.placed] == [
        ("a", (40, 100), 64),
        ("bytes from 16064", (83_936,), 16064),
        ("d", (10, 20), 100_000),
        ("bytes from 100800", (99_200,), 100_800),
        ("e", (23,), 200_000),
        ("bytes from 200092", (199_908,), 200_092),
    ]
    assert found.shared == {"b": "a"}
    source, archive = tmp_path / "state.pt", tmp_path / "archive.safetensors"
    with zipfile.ZipFile(TORCH) as old, zipfile.ZipFile(source, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr(f"{old.namelist()[0].partition('/')[0]}/data/optimizer", noise.tobytes())
    report = api.pipeline(source, archive, store="archive")
    assert report.plan.size_after < source.stat().st_size - 20_000
    for number in (1, 2, 3):
        api.pipeline(source, tmp_path / "p.safetensors", store="archive", part=f"{number}/3")
    api.merge(sorted(tmp_path.glob("p.*.part-*")), tmp_path / "p.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == archive.read_bytes()
    api.restore(archive, tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == source.read_bytes()


def test_what_comes_back_as_it_was_has_its_own_suffix(tmp_path: Path) -> None:
    for suffix, other in ((".pt", ".npz"), (".npz", ".pt")):
        source, archive = tmp_path / f"a{suffix}", tmp_path / f"a{suffix}.safetensors"
        if suffix == ".pt":
            shutil.copy(TORCH, source)
        else:
            np.savez(source, a=normal(7, 5), b=normal(7))
        api.pipeline(source, archive, store="archive")
        for wrong in (f"b{other}", "b.onnx"):
            with pytest.raises((UsageError, OutputError)):
                api.restore(archive, tmp_path / wrong)
        with pytest.raises((UsageError, OutputError)):
            api.prune(archive, tmp_path / f"b{suffix}", sparsity=0.5)
        with pytest.raises((UsageError, OutputError)):
            api.restore(source, tmp_path / f"b{suffix}")
        for number in (1, 2):
            api.restore(archive, tmp_path / f"c{suffix}", part=f"{number}/2")
        parts = sorted(tmp_path.glob(f"c{suffix}.part-*"))
        with pytest.raises(UsageError, match="Let it end as that file did"):
            api.merge(parts, tmp_path / "c.safetensors")
        api.merge(parts, tmp_path / f"d{suffix}")
        assert (tmp_path / f"d{suffix}").read_bytes() == source.read_bytes()
    np.savez_compressed(tmp_path / "z.npz", a=normal(7, 5))
    with pytest.raises(InputError, match="Save it without compression"):
        api.pipeline(tmp_path / "z.npz", tmp_path / "z.safetensors", store="archive")


def test_names_of_originals_are_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(TORCH, tmp_path / "in" / "pytorch_model.bin")
    api.pipeline(tmp_path / "in", tmp_path / "archive", store="archive")
    for name in ("../evil.bin", ".hidden.bin", "a/b.bin", "no-suffix", "x" * 300 + ".bin", 3):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(
            rebuilt(
                (tmp_path / "archive" / "model.safetensors").read_bytes(),
                lambda said, name=name: said["original"].update(name=name),
            )
        )
        with pytest.raises(InputError, match="is a damaged archive"):
            api.restore(path, tmp_path / "out.bin")


def test_folders_of_pickles_come_back_with_all_that_is_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    shard = "pytorch_model-00001-of-00001.bin"
    shutil.copy(TORCH, folder / shard)
    index = dict.fromkeys(np.load(TORCH.parent / "torch-state-values.npz").files, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}, indent=3))
    for name in ("config.json", "tf_model.h5", "onnx/model.onnx", "adapter_config.json", ".gitattributes"):
        (folder / name).write_text("{} ")
    api.pipeline(folder, tmp_path / "archive", store="archive")
    report = api.restore(tmp_path / "archive", tmp_path / "back")
    assert not report.plan.left
    assert listed(tmp_path / "back") == listed(folder)
    again = tmp_path / "again"
    api.pipeline(tmp_path / "archive", again, store="archive")
    assert listed(again) == listed(tmp_path / "archive")
    api.prune(folder, tmp_path / "pruned", sparsity=0.5)  # what is no archive leaves them behind as ever
    assert "tf_model.h5" not in listed(tmp_path / "pruned")


def listed(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_folders_come_back_file_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        odd_file(folder / name, {f"b{number}": ("F32", normal(9)), f"a{number}": ("F32", normal(8, 9))}, {})
    index = {f"{tensor}{number}": name for tensor in "ba" for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}, indent=5))
    (folder / "config.json").write_text('{"model_type":  "bert"}')
    (folder / "tokenizer.json").write_text("{}  ")
    api.pipeline(folder, tmp_path / "archive", store="archive")
    api.restore(tmp_path / "archive", tmp_path / "back")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    for number in (1, 2, 3):
        api.pipeline(folder, tmp_path / "parts", store="archive", part=f"{number}/3")
    api.merge(sorted(tmp_path.glob("parts.part-*")), tmp_path / "merged")
    for path in (tmp_path / "archive").iterdir():
        assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()


def test_frames_of_version_1_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise NeedsPackage("zstandard")

    monkeypatch.setattr(planes, "_zstandard", missing)
    path = Path(__file__).parent / "data" / "version-1-fast.safetensors"
    with pytest.raises(InputError, match=r"takes the package zstandard. Install it with pip install"):
        api.restore(path, tmp_path / "back.safetensors")


def test_decoders_of_version_1_agree_on_noise() -> None:
    """Also where the words run out."""
    table = table_of(np.array([5, 0, 900, 3, 41]), 16)
    words = np.random.default_rng(0).integers(1, 2**32, 40).astype("<u4").tobytes()
    compiled = ans.AnsReader(memoryview(words)).take(table, 2000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "library", lambda: None)
        assert np.array_equal(compiled, ans.AnsReader(memoryview(words)).take(table, 2000))


# ---- the coder -----------------------------------------------------------------------------------------


def runs_of(seed: int) -> list[tuple[np.ndarray, Table]]:
    """Runs of symbols that begin anywhere in a round: of few and many symbols, rare ones, a single one, none."""
    chance = np.random.default_rng(seed)
    found = []
    for alphabet, count, bits in [(2, 70_000, 12), (30, 5000, 12), (30, 33, 15), (256, 9000, 12), (1000, 700, 13)]:
        shares = chance.random(alphabet) ** 9 + 1e-9
        symbols = chance.choice(alphabet, count, p=shares / shares.sum())
        table = table_of(np.bincount(symbols, minlength=alphabet), 16)
        found.append((symbols, replace(table, bits=bits)))
    found.append((np.full(50, 3), table_of(np.eye(9, dtype=np.int64)[3], 4)))
    found.append((np.zeros(0, np.int64), found[0][1]))
    order = chance.permutation(len(found))
    return [found[place] for place in order]


def coded(runs: list[tuple[np.ndarray, Table]], expected: float) -> bytes:
    out = rans.RansWriter()
    for symbols, table in runs:
        out.put(symbols, table)
    out.expected = expected
    return b"".join(part.tobytes() for part in out.to_bytes())


def decoded(raw: bytes, lanes: int, runs: list[tuple[np.ndarray, Table]]) -> list[np.ndarray]:
    source = rans.RansReader(memoryview(raw), lanes)
    found = [source.take(table, len(symbols)) for symbols, table in runs]
    source.finish()
    return found


@pytest.mark.parametrize("expected", [0, 60_000, 10**6])
def test_the_coder_is_the_same_with_any_vectors_and_without_kernels(expected: float) -> None:
    runs = runs_of(int(expected))
    first = None
    for vectors in (2, 1, 0, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "VECTORS", vectors)
            if vectors is None:
                patch.setattr(kernels, "library", lambda: None)
            raw = coded(runs, expected)
            first = first or raw
            assert raw == first
            lanes = {0: 0, 60_000: 1, 10**6: 5}[int(expected)]
            for found, (symbols, _) in zip(decoded(raw, lanes, runs), runs, strict=True):
                assert np.array_equal(found, symbols)
            for cut in (raw[:-2], raw[: len(raw) // 2 & ~1], raw[: 4 << lanes], raw[:-1], b""):
                with pytest.raises(Damaged):
                    decoded(cut, lanes, runs)
    lengths = sum(table.cost(np.bincount(symbols, minlength=len(table.levels))) for symbols, table in runs)
    assert first is not None
    assert len(first) * 8 <= 1.001 * lengths + (32 << lanes)


def test_states_that_are_none_and_symbols_that_are_left_are_refused() -> None:
    runs = runs_of(1)
    raw = bytearray(coded(runs, 10**6))
    raw[4:8] = (65535).to_bytes(4, "little")
    with pytest.raises(Damaged, match="out of range"):
        rans.RansReader(memoryview(raw), 5)
    with pytest.raises(Damaged, match="too short"):
        rans.RansReader(memoryview(bytes(1000)), 6)
    with pytest.raises(Damaged, match="do not end"):
        rans.RansReader(memoryview(coded(runs, 10**6)), 5).finish()


def test_floats_are_taken_apart_the_same_without_kernels() -> None:
    chance = np.random.default_rng(0)
    for size, exponent in ((2, 8), (2, 5), (4, 8), (8, 11)):
        raw = chance.integers(0, 256, (9, 31 * size), np.uint8).view(f"<u{size}")
        for lead in range(2 if size == 8 else 4):
            low = 8 * size - 1 - exponent - lead
            found = elements._split(raw, low, exponent + lead, Workspace())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kernels, "library", lambda: None)
                twin = elements._split(raw, low, exponent + lead, Workspace())
                back = elements._joined(twin[0], list(twin[1]), low, raw.dtype)
            assert all(map(np.array_equal, found, twin))
            assert np.array_equal(back, raw)
            assert np.array_equal(elements._joined(found[0], list(found[1]), low, raw.dtype), raw)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I16", "I8"])
def test_chunks_are_decoded_into_memory_that_is_there(dtype: str) -> None:
    """Several at a time keep nothing of each other, however they are stored."""
    chance, shape = np.random.default_rng(0), (33, 640)
    (form, *_) = possible(dtype)
    for data in (
        (chance.standard_normal((33, 160)) * 0.02).astype(np.float32).view(np.uint8),  # coded
        chance.integers(0, 256, shape, np.uint8),  # as it is
        chance.integers(0, 3, shape, np.uint8),  # a palette, or few codes
        np.zeros(shape, np.uint8),
    ):
        for start in (0, 1):  # at an odd address too
            chunk = encode_chunk(data, form, "fast")
            out = np.full(shape[0] * shape[1] + 1, 7, np.uint8)[start:][: data.size].reshape(shape)
            decode_chunk(memoryview(chunk), shape, form, out=out)
            assert np.array_equal(out, data)
            alone = decode_chunk(memoryview(chunk), shape, form)
            decode_chunk(memoryview(encode_chunk(data[::-1].copy(), form, "fast")), shape, form)
            assert np.array_equal(alone, data)
            assert chunk == encode_chunk(data, form, "fast")


# ---- size ----------------------------------------------------------------------------------------------


def entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97, 0.99])
def test_codes_come_within_one_percent_of_their_entropy(share: float) -> None:
    chance = np.random.default_rng(0)
    codes = np.where(chance.random((256, 4096)) < share, 0, chance.integers(0, 200, (256, 4096))).astype(np.uint8)
    (form,) = (form for form in possible("U8") if form.text == "c8")
    size = len(encode_chunk(codes, form, "small")) * 8 / codes.size
    assert size < 1.01 * entropy(np.bincount(codes.reshape(-1)))


def test_bfloat16_is_as_small_as_promised() -> None:
    weights = (np.random.default_rng(0).standard_normal((512, 2048)) * 0.02).astype(np.float32)
    data = (weights.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    (form,) = possible("BF16")
    assert len(encode_chunk(data, form, "fast")) <= 0.66 * data.size
    assert len(encode_chunk(data, form, "small")) <= 0.655 * data.size


def test_packed_codes_are_found_to_be_codes() -> None:
    chance = np.random.default_rng(0)
    for width in (2, 3, 4, 5, 6):
        codes = np.minimum(np.abs(chance.normal(0, 0.6, (50, 160))), (1 << width) - 1).astype(np.uint8)
        bits = (codes[:, :, None] >> np.arange(width)) & 1
        packed = np.packbits(bits.reshape(50, -1).astype(np.uint8), axis=1, bitorder="little")
        form = likely_form(packed, "U8")
        assert form.text == f"c{width}"
        chunk = encode_chunk(packed, form, "fast")
        assert np.array_equal(decode_chunk(memoryview(chunk), packed.shape, form), packed)


def test_densities_and_neighbours_make_it_smaller_than_order_zero() -> None:
    """What is denser in some rows and columns, and clustered."""
    chance = np.random.default_rng(0)
    shares = np.outer(chance.random(200) ** 3, chance.random(300) ** 3)
    there = (chance.random(shares.shape) < shares).astype(np.uint8)
    (form,) = (form for form in possible("U8") if form.text == "c8")
    simple = entropy(np.bincount(there.reshape(-1))) * there.size / 8
    assert len(encode_chunk(there, form, "fast")) < 0.8 * simple
    runs = np.repeat(chance.random((200, 30)) < 0.2, 10, axis=1).astype(np.uint8)
    simple = entropy(np.bincount(runs.reshape(-1))) * runs.size / 8
    assert len(encode_chunk(runs, form, "fast")) < 0.4 * simple


def test_a_pruned_network_with_a_codebook_takes_what_its_positions_and_codes_take(tmp_path: Path) -> None:
    teacher = Path(__file__).parents[2] / "sample_weights" / "lenet300_teacher.safetensors"
    stages = ["prune:method=magnitude,sparsity=0.97", "quantize:scheme=codebook,entries=32,include=*"]
    api.pipeline(teacher, tmp_path / "plain.safetensors", stages=stages)
    api.pipeline(teacher, tmp_path / "small.safetensors", stages=[*stages[:-1], f"{stages[-1]},store=archive"])
    ideal = 0.0
    api.restore(tmp_path / "plain.safetensors", tmp_path / "expected.safetensors")
    for _, _, data in archives.read(tmp_path / "expected.safetensors").values():
        values = np.frombuffer(data, np.float32)
        books, codes = np.unique(values, return_inverse=True)
        ideal += entropy(np.bincount(codes)) * values.size / 8 + 4 * len(books)
    size = (tmp_path / "small.safetensors").stat().st_size
    assert size < ideal + 700  # headers, directory, tables; models that look at rows and columns win that back
    assert teacher.stat().st_size > 90 * size
    api.restore(tmp_path / "small.safetensors", tmp_path / "back.safetensors")
    assert archives.read(tmp_path / "back.safetensors") == archives.read(tmp_path / "expected.safetensors")


# ---- commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 3}, {"scheme": "nf4"}, {"scheme": "nvfp4"}], ids=str)
def test_what_is_quantized_restores_as_without(tmp_path: Path, options: dict[str, Any]) -> None:
    weights = (np.random.default_rng(0).standard_normal((64, 256)) * 0.02).astype(np.float32)
    source = archives.write(tmp_path / "source.safetensors", {"a.weight": ("F32", weights)})
    api.quantize(source, tmp_path / "plain.safetensors", **options)
    api.quantize(source, tmp_path / "packed.safetensors", **options, store="archive")
    api.pipeline(tmp_path / "plain.safetensors", tmp_path / "later.safetensors", store="archive")
    api.restore(tmp_path / "plain.safetensors", tmp_path / "expected.safetensors")
    api.restore(tmp_path / "packed.safetensors", tmp_path / "back.safetensors")
    assert archives.read(tmp_path / "back.safetensors") == archives.read(tmp_path / "expected.safetensors")
    api.restore(tmp_path / "later.safetensors", tmp_path / "codes.safetensors")  # that very file
    assert (tmp_path / "codes.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    assert compressor("compare", tmp_path / "later.safetensors", tmp_path / "expected.safetensors").code == 0


def test_every_command_reads_it_and_workers_change_no_byte(tmp_path: Path) -> None:
    weights = (np.random.default_rng(0).standard_normal((3000, 500)) * 0.02).astype(np.float32)
    source, output = archived(tmp_path, {"a.weight": ("F32", weights), "a.bias": ("F32", weights[0])})
    api.pipeline(source, tmp_path / "one.safetensors", store="archive", workers=1)
    assert (tmp_path / "one.safetensors").read_bytes() == output.read_bytes()
    assert compressor("compare", source, output, "--max-error", 0).code == 0
    assert compressor("inspect", output, "--stats").code == 0
    for name in (source, output):
        api.prune(name, tmp_path / f"{name.stem}.pruned.safetensors", sparsity=0.5)
    pruned = [archives.read(tmp_path / f"{stem}.pruned.safetensors") for stem in ("source", "archive")]
    assert pruned[0] == pruned[1]


def test_gates_judge_the_coded_size(tmp_path: Path) -> None:
    source = archives.write(tmp_path / "source.safetensors", {"w": ("F32", np.zeros((300, 300), np.float32))})
    report = api.pipeline(source, tmp_path / "a.safetensors", store="archive", gates=Gates(max_size=1000))
    assert report.plan.size_after == (tmp_path / "a.safetensors").stat().st_size
    with pytest.raises(ReportedGateFailed):
        api.pipeline(source, tmp_path / "b.safetensors", store="archive", gates=Gates(max_size=100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "source.safetensors"]
    report = api.pipeline(source, tmp_path / "c.safetensors", store="archive", dry_run=True)
    assert any("before entropy coding" in note for note in report.plan.notes)


def test_an_archive_of_almost_nothing_is_readable(tmp_path: Path) -> None:
    source, output = archived(tmp_path, {"w": ("F32", np.zeros((40, 1 << 20), np.float32))})
    assert 100 < output.stat().st_size < 50_000
    api.restore(output, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes()[-1000:] == source.read_bytes()[-1000:]


def test_refused_requests(tmp_path: Path) -> None:
    matrix = np.ones((4, 4), np.float32)
    source = archives.write(tmp_path / "source.safetensors", {"a.weight": ("F32", matrix)})
    with pytest.raises(UsageError, match="holds no archive"):
        api.prune(source, tmp_path / "out.npy", sparsity=0.5, store="archive")
    stages = ["prune:sparsity=0.5,store=archive", "quantize:bits=4"]
    with pytest.raises(UsageError, match="Put it on the last stage"):
        api.pipeline(source, tmp_path / "out.safetensors", stages=stages)
    with pytest.raises(UsageError, match="give either a recipe or stages"):
        api.pipeline(source, tmp_path / "out.safetensors")


# ---- hostile files -------------------------------------------------------------------------------------


def rebuilt(good: bytes, change: Any) -> bytes:
    """An archive whose directory was changed, with the right checksum and header."""
    data = bytearray(good[128:])
    length = int.from_bytes(data[-8:-4], "little")
    found = json.loads(zlib.decompress(data[-8 - length : -8], -15))
    change(found)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = deflater.compress(json.dumps(found).encode()) + deflater.flush()
    data[-8 - length :] = raw + len(raw).to_bytes(4, "little") + zlib.crc32(raw).to_bytes(4, "little")
    header = {
        "__metadata__": {"compressor.archive": "2"},
        "archive": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]},
    }
    text = json.dumps(header).encode().ljust(160)
    return len(text).to_bytes(8, "little") + text + bytes(data)


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    weights = (np.random.default_rng(0).standard_normal((20, 30)) * 0.02).astype(np.float32)
    tensors: archives.Tensors = {"w": ("F32", weights), "i": ("U8", np.arange(90, dtype=np.uint8) % 7)}
    return archived(tmp_path, tensors)[1].read_bytes()


@pytest.fixture
def parts(good: bytes) -> bytes:
    """An archive that says nothing of the file that it was."""

    def forget(found: Any) -> None:
        del found["original"]
        for entry in found["tensors"].values():
            entry.pop()

    return rebuilt(good, forget)


def refused(folder: Path, raw: bytes) -> str:
    (folder / "bad.safetensors").write_bytes(raw)
    code, lines = invoke(["restore", str(folder / "bad.safetensors"), "-o", str(folder / "out.safetensors")])
    assert code == 3, lines
    assert is_one_line(lines)
    assert not (folder / "out.safetensors").exists()
    return lines[0]


HUGE = {
    "sizes without end": lambda found: found["tensors"].update(w=["F32", [2**62, 2**62], "f32.8", [5]]),
    "more than it can hold": lambda found: found["tensors"].update(w=["F32", [1 << 20, 20], "f32.8", [5] * 20]),
    "too few chunks": lambda found: found["tensors"]["w"].__setitem__(3, []),
    "negative": lambda found: found["tensors"]["w"].__setitem__(3, [-5]),
    "longer than the file": lambda found: found["tensors"]["w"].__setitem__(3, [2**40]),
    "unknown dtype": lambda found: found["tensors"]["w"].__setitem__(0, "F99"),
    "foreign form": lambda found: found["tensors"]["w"].__setitem__(2, "c8"),
    "no list": lambda found: found["tensors"].update(w=7),
    "no tensors": lambda found: found.pop("tensors"),
    "metadata of numbers": lambda found: found["metadata"].update(a=1),
    "bool": lambda found: found["tensors"]["w"].__setitem__(1, [True, 30]),
    "other shape": lambda found: found["tensors"]["w"].__setitem__(1, [30, 21]),
}


@pytest.mark.parametrize("what", HUGE)
def test_directories_that_lie(tmp_path: Path, parts: bytes, what: str) -> None:
    assert "archive" in refused(tmp_path, rebuilt(parts, HUGE[what]))


def test_one_large_claim_is_refused_at_once(tmp_path: Path, parts: bytes, good: bytes) -> None:
    def claim(found: Any) -> None:
        found["tensors"]["w"] = ["F32", [1 << 14, 1 << 14], "f32.8", [5] * 256]

    assert "can hold" in refused(tmp_path, rebuilt(parts, claim))

    def of_a_file(found: Any) -> None:
        found["original"].update(size=1 << 40, plain=["c8", [5] * ((1 << 20) - 1)])

    assert "damaged archive" in refused(tmp_path, rebuilt(good, of_a_file))


def original(**changes: Any) -> Any:
    return lambda found: found["original"].update(changes)


LIES_OF_FILES = {
    "less than its tensors": original(size=100),
    "another size": original(size=4000),
    "a negative one": original(size=-1),
    "no number": original(size=2.5),
    "another container": original(suffix=".bin"),
    "one that it is not": original(suffix=".npy"),
    "none": original(suffix=7),
    "no hash": original(sha256="x" * 64),
    "a hash of bytes": original(sha256=[1]),
    "no plain bytes": original(plain=["c8", []]),
    "plain bytes in another form": original(plain=["f32.8", [50]]),
    "plain bytes that end too late": original(plain=["c8", [1 << 40]]),
    "something else": original(more=1),
    "nothing": lambda found: found.update(original={}),
    "no object": lambda found: found.update(original=[1]),
    "tensors over one another": lambda found: found["tensors"]["i"].__setitem__(4, found["tensors"]["w"][4]),
    "a tensor before the file": lambda found: found["tensors"]["w"].__setitem__(4, -8),
    "a tensor behind it": lambda found: found["tensors"]["w"].__setitem__(4, 10**15),
    "a place that is no number": lambda found: found["tensors"]["w"].__setitem__(4, True),
    "tensors without places": lambda found: [entry.pop() for entry in found["tensors"].values()],
}


@pytest.mark.parametrize("what", LIES_OF_FILES)
def test_what_is_said_of_the_file_that_it_was_is_not_believed(tmp_path: Path, good: bytes, what: str) -> None:
    assert "archive" in refused(tmp_path, rebuilt(good, LIES_OF_FILES[what]))


def test_another_sha256_leaves_no_output(tmp_path: Path, good: bytes) -> None:
    said = refused(tmp_path, rebuilt(good, original(sha256="0" * 64)))
    assert "another SHA-256" in said
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_other_versions_and_shapes(tmp_path: Path, good: bytes) -> None:
    newer = good.replace(b'"compressor.archive":"2"', b'"compressor.archive":"4"')
    assert "Use a newer compressor" in refused(tmp_path, newer)
    content = np.zeros(40, np.uint8)
    for name, tensors in {
        "name": {"x": ("U8", content)},
        "dtype": {"archive": ("I8", content)},
        "empty": {},
    }.items():
        path = archives.write(tmp_path / f"{name}.safetensors", tensors, {"compressor.archive": "2"})
        assert "damaged archive" in refused(tmp_path, path.read_bytes())
    short = archives.write(
        tmp_path / "s.safetensors", {"archive": ("U8", content[:3])}, {"compressor.archive": "2"}
    )
    assert "too short" in refused(tmp_path, short.read_bytes())


def test_any_flipped_bit_is_noticed(tmp_path: Path, good: bytes) -> None:
    chance = random.Random(0)
    directory = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for place in chance.sample(range(128, directory), 60):
        changed = bytearray(good)
        changed[place] ^= 1 << chance.randrange(8)
        assert "damaged in the archive" in refused(tmp_path, bytes(changed))
    for place in chance.sample(range(directory, len(good)), 20):
        changed = bytearray(good)
        changed[place] ^= 1 << chance.randrange(8)
        assert "damaged archive" in refused(tmp_path, bytes(changed))


def test_damaged_files_by_the_hundred(tmp_path: Path, good: bytes) -> None:
    for seed in range(150):
        raw = damaged(good, random.Random(seed))
        (tmp_path / "bad.safetensors").write_bytes(raw)
        output = tmp_path / "out.safetensors"
        code, lines = invoke(["restore", str(tmp_path / "bad.safetensors"), "-o", str(output), "--force", "-q"])
        assert code in (0, 3), (seed, lines)
        assert code == 0 or is_one_line(lines)


def test_chunks_with_a_right_checksum_and_a_wrong_inside() -> None:
    """Nothing but Damaged, whatever a chunk says: the checksum is no protection against its author."""
    chance = random.Random(0)
    tensors = [raw for raw in everything().values() if raw[1].size]
    for dtype, array in chance.sample(tensors, 30):
        data = np.ascontiguousarray(array).reshape(len(array) if array.ndim > 1 else 1, -1).view(np.uint8)
        form = likely_form(data, dtype)
        chunk = encode_chunk(data, form, "small")
        for _ in range(20):
            changed = bytearray(chunk)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(4, len(changed))] = chance.randrange(256)
            raw = bytes(changed[: chance.randrange(4, len(changed) + 1)])
            try:
                found = decode_chunk(memoryview(raw), data.shape, form)
            except Damaged:
                continue
            assert np.array_equal(found, data)


# ---- small parts ---------------------------------------------------------------------------------------


def test_numbers_of_a_head_come_back() -> None:
    out = BitWriter()
    values = [*range(-70, 70), 10**6, -(10**9)]
    for order in range(6):
        for value in values:
            out.signed(value, order)
    source = BitReader(out.to_bytes())
    assert [source.signed(order) for order in range(6) for _ in values] == values * 6
    with pytest.raises(Damaged):
        BitReader(b"").bits(1)
    with pytest.raises(Damaged):
        BitReader(bytes(9)).number()


def test_tables_come_back_and_sum_up() -> None:
    chance = np.random.default_rng(0)
    for alphabet in (2, 5, 256, 4096):
        counts = chance.integers(0, 50, (3, alphabet)) ** 3
        counts[1] = 0
        counts[0, 0] = 1
        tables = [table_of(row, 16) for row in counts]
        out = BitWriter()
        write_tables(out, tables, alphabet)
        found = read_tables(BitReader(out.to_bytes()), 3, alphabet)
        for table, back in zip(tables, found, strict=True):
            assert np.array_equal(table.symbols, back.symbols)
            if len(table.symbols):
                assert np.array_equal(table.frequencies, back.frequencies)
                assert table.frequencies.sum() == 1 << 12
                assert table.frequencies.min() >= 1


def test_rows_are_cut_as_the_format_says() -> None:
    from compressor.core.tensor import TensorSpec

    for shape in ((), (0,), (3,), (1 << 21,), (3, (1 << 20) + 1), (5, 7), (0, 9), (9, 0), (2000, 1000), (5, 4, 3)):
        for dtype in ("F32", "U8", "F64"):
            spec = TensorSpec("w", dtype, shape)
            sizes = [format_of.chunk_shape(spec, number) for number in range(format_of.chunks_of(spec))]
            assert sum(rows * width for rows, width in sizes) == spec.nbytes
