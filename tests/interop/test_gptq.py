"""GPTQ and AWQ: what their loaders make of codes is what we restore, and what we write is what they would.

gptqmodel's own unpacking is asked (gptqmodel_reader.py says how); the formulas that it, AutoGPTQ and
AutoAWQ publish stand here once more, in torch, independent of the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")

import gptqmodel_reader
import safetensors.torch

import compressor

pytestmark = pytest.mark.interop

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SHAPE = (96, 256)  # rows, columns


def folder(path: Path, content: Mapping[str, Any], quantization: Mapping[str, Any] | None = None) -> Path:
    path.mkdir()
    content = {name: tensor.contiguous() for name, tensor in content.items()}
    safetensors.torch.save_file(content, path / "model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = {"model_type": "test"}
    if quantization:
        config["quantization_config"] = dict(quantization)
    (path / "config.json").write_text(json.dumps(config))
    return path


def load(path: Path) -> dict[str, Any]:
    return safetensors.torch.load_file(path / "model.safetensors")


def declared(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())["quantization_config"]


def assert_equal(found: Any, wanted: Any) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert torch.equal(found.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8))


# ---- the published formulas ----------------------------------------------------------------------------


def words_to_codes(words: Any, bits: int, down: bool) -> Any:
    """The codes of int32 words packed along the first axis (`down`) or the last one, low bits first."""
    words = (words if down else words.T).to(torch.int64) & 0xFFFFFFFF
    if bits == 3:  # 32 codes lie in three words, two of them across a border
        low, middle, high = words[0::3], words[1::3], words[2::3]
        wide = [(low >> shift) & 7 for shift in range(0, 30, 3)]
        wide.append((low >> 30) | ((middle & 1) << 2))
        wide += [(middle >> shift) & 7 for shift in range(1, 31, 3)]
        wide.append((middle >> 31) | ((high & 3) << 1))
        wide += [(high >> shift) & 7 for shift in range(2, 32, 3)]
    else:
        wide = [(words >> shift) & ((1 << bits) - 1) for shift in range(0, 32, bits)]
    codes = torch.stack(wide, 1).reshape(-1, words.shape[1])
    return codes if down else codes.T


def codes_to_words(codes: Any, bits: int, down: bool) -> Any:
    """What `words_to_codes` undoes, by arithmetic on one large integer a run of 32 codes."""
    codes = codes if down else codes.T
    runs = codes.reshape(-1, 32, codes.shape[1])
    rows = []
    for run in runs:
        columns = []
        for column in run.T.tolist():
            number = sum(code << (bits * place) for place, code in enumerate(column))
            columns.append([(number >> (32 * place)) & 0xFFFFFFFF for place in range(bits)])
        rows.append(torch.tensor(columns, dtype=torch.int64).T)
    words = torch.cat(rows)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return words if down else words.T


def gptq_weight(parts: Mapping[str, Any], bits: int, form: str) -> Any:
    """scales[g_idx] · (codes − zeros[g_idx]), [out, in]."""
    codes = words_to_codes(parts["qweight"], bits, down=True)
    zeros = words_to_codes(parts["qzeros"], bits, down=False) + (form == "gptq")
    index = parts["g_idx"].long()
    return (parts["scales"][index] * (codes - zeros[index]).to(parts["scales"].dtype)).T


def parts_of(content: Mapping[str, Any], module: str) -> dict[str, Any]:
    return {
        name: content[f"{module}.{name}"]
        for name in ("qweight", "qzeros", "scales", "g_idx")
        if f"{module}.{name}" in content
    }


@pytest.fixture(scope="module")
def gptqmodel() -> Iterator[Callable[..., Any]]:
    """gptqmodel's own reading of parts, [out, in]."""
    if not gptqmodel_reader.FOLDER.exists():
        pytest.skip("gptqmodel is not installed: make test-interop")
    with gptqmodel_reader.reader() as pool:

        def weight(parts: Mapping[str, Any], bits: int, group: int, form: str) -> Any:
            arrays = {name: part.numpy() for name, part in parts.items()}
            return torch.from_numpy(pool.submit(gptqmodel_reader.read, arrays, bits, group, form).result())

        yield weight


# ---- ours, read by them --------------------------------------------------------------------------------


def weights(seed: int, dtype: Any) -> Any:
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(SHAPE, generator=made) * 0.02
    weight[1], weight[2], weight[3, ::2] = 0.0, 0.5, -0.0
    weight[4] *= 1e-4
    weight[5, 7] = 3.0
    return weight.to(dtype)


def written(tmp_path: Path, dtype: str, **options: Any) -> tuple[dict[str, Any], Any]:
    """The parts of a matrix in a folder that we wrote, and the matrix that we restore."""
    source = folder(tmp_path / "source", {"model.layers.0.proj.weight": weights(1, DTYPES[dtype])})
    compressor.quantize(source, tmp_path / "packed", layout="gptq", **options)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    packed = load(tmp_path / "packed")
    assert set(packed) == {f"model.layers.0.proj.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    return parts_of(packed, "model.layers.0.proj"), load(tmp_path / "dense")["model.layers.0.proj.weight"]


GRAINS: dict[str, dict[str, Any]] = {
    "channel": {"granularity": "channel"},
    **{f"group{size}": {"group_size": size} for size in (16, 32, 64, 128)},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_published_formula_reads_what_we_wrote(tmp_path: Path, bits: int, grain: str, dtype: str) -> None:
    parts, restored = written(tmp_path, dtype, bits=bits, **GRAINS[grain])
    found = declared(tmp_path / "packed")
    assert (found["bits"], found["group_size"]) == (bits, GRAINS[grain].get("group_size", -1))
    assert found["checkpoint_format"] == "gptq"
    assert not found["desc_act"]
    assert found["sym"]
    wide = {**parts, "scales": parts["scales"].float()}
    assert_equal(restored, gptq_weight(wide, bits, "gptq").to(DTYPES[dtype]))
    if dtype == "F16":  # computing in float16 rounds the same product once
        assert_equal(restored, gptq_weight(parts, bits, "gptq"))


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("bits", [4, 8])
def test_gptqmodel_reads_what_we_wrote(
    tmp_path: Path, bits: int, grain: str, gptqmodel: Callable[..., Any]
) -> None:
    parts, restored = written(tmp_path, "F16", bits=bits, **GRAINS[grain])
    group = GRAINS[grain].get("group_size", -1)
    assert_equal(restored, gptqmodel(parts, bits, group, "gptq"))


def test_without_our_record_it_is_a_gptq_folder_like_any(tmp_path: Path) -> None:
    parts, restored = written(tmp_path, "F16", bits=4, group_size=64)
    content = {f"model.layers.0.proj.{name}": tensor for name, tensor in parts.items()}
    theirs = folder(tmp_path / "theirs", content, declared(tmp_path / "packed"))
    compressor.restore(theirs, tmp_path / "again")
    assert_equal(load(tmp_path / "again")["model.layers.0.proj.weight"], restored)


def test_transformers_takes_the_config(tmp_path: Path) -> None:
    configs = pytest.importorskip("transformers.utils.quantization_config", reason="needs transformers")
    written(tmp_path, "F16", bits=4, group_size=64)
    made = configs.GPTQConfig.from_dict(declared(tmp_path / "packed"))
    assert (made.bits, made.group_size, made.format, made.desc_act, made.sym) == (4, 64, "gptq", False, True)


# Layers that stay dense beside others in a list of layers, and models with a list of another name, or two
@pytest.mark.parametrize("name", ["llama", "qwen3.5", "qwen2-moe", "bert", "albert", "bart", "dbrx"])
def test_transformers_loads_what_we_wrote(tmp_path: Path, name: str) -> None:
    """By optimum and gptqmodel, with nothing missing: each layer's weights are those that we restore, as bfloat16
    has products of float16 scales."""
    families = pytest.importorskip("bench.loaders.families", reason="needs transformers: make test-interop")
    if not (gptqmodel_reader.FOLDER / "optimum").exists():
        pytest.skip("optimum is not installed: make test-interop")
    with families.quietly(), gptqmodel_reader.reader() as pool:
        families.FAMILIES[name].make(tmp_path / "model")
        compressor.quantize(tmp_path / "model", tmp_path / "packed", bits=4, layout="gptq", loader="transformers")
        compressor.restore(tmp_path / "packed", tmp_path / "dense")
        told = pool.submit(gptqmodel_reader.load, tmp_path / "packed", tmp_path / "dense", name).result()
    packed = load(tmp_path / "packed")
    assert told["layers"] == sum(one.endswith(".qweight") for one in packed)
    assert told["wrong"] == {}
    assert told["apart"] < 2**-8
    assert told["answers"] < 0.1


def test_a_model_of_many_blocks(tmp_path: Path) -> None:
    """Rows of several blocks and chunks, whose columns interleave in the file."""
    made = torch.Generator().manual_seed(3)
    weight = torch.randn((2072, 1024), generator=made).half()
    source = folder(tmp_path / "source", {"proj.weight": weight})
    compressor.quantize(source, tmp_path / "packed", layout="gptq", bits=4, group_size=128)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    wanted = gptq_weight(parts_of(load(tmp_path / "packed"), "proj"), 4, "gptq")
    assert_equal(load(tmp_path / "dense")["proj.weight"], wanted)
    assert (wanted - weight).norm() < 0.13 * weight.norm()


# ---- theirs, read by us --------------------------------------------------------------------------------


def gptq_parts(bits: int, groups: int, form: str, index: Any, scales: Any = torch.float16) -> dict[str, Any]:
    """A matrix as a GPTQ quantizer would leave it: any codes and zero points (the first format has no 0)."""
    made = torch.Generator().manual_seed(bits)
    rows, columns = SHAPE
    first = form == "gptq"
    codes = torch.randint(0, 1 << bits, (columns, rows), generator=made)
    zeros = torch.randint(int(first), 1 << bits, (groups, rows), generator=made)
    return {
        "qweight": codes_to_words(codes, bits, down=True),
        "qzeros": codes_to_words(zeros - int(first), bits, down=False),
        "scales": (torch.rand((groups, rows), generator=made) * 0.01 + 1e-4).to(scales),
        "g_idx": index.to(torch.int32),
    }


def restored_from(tmp_path: Path, parts: Mapping[str, Any], quantization: Mapping[str, Any]) -> Any:
    content = {f"a.proj.{name}": tensor for name, tensor in parts.items()}
    theirs = folder(tmp_path / "theirs", content, {"quant_method": "gptq", **quantization})
    compressor.restore(theirs, tmp_path / "dense")
    (restored,) = load(tmp_path / "dense").values()
    return restored


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("order", ["in order", "by activation", "by channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_we_restore_what_gptq_wrote(tmp_path: Path, bits: int, order: str, form: str) -> None:
    group = SHAPE[1] if order == "by channel" else 32
    index = torch.arange(SHAPE[1]) // group
    if order == "by activation":
        index = index[torch.randperm(SHAPE[1], generator=torch.Generator().manual_seed(1))]
    parts = gptq_parts(bits, SHAPE[1] // group, form, index)
    quantization = {
        "bits": bits,
        "group_size": -1 if order == "by channel" else group,
        "desc_act": order == "by activation",
        "sym": False,
        "checkpoint_format": form,
    }
    restored = restored_from(tmp_path, parts, quantization)
    assert_equal(restored, gptq_weight(parts, bits, form))


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("order", ["in order", "by activation"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_we_restore_what_gptqmodel_reads(
    tmp_path: Path, bits: int, order: str, form: str, gptqmodel: Callable[..., Any]
) -> None:
    """Also where columns were sorted by their inputs, so that a group's lie apart (`g_idx`)."""
    index = torch.arange(SHAPE[1]) // 32
    if order == "by activation":
        index = index[torch.randperm(SHAPE[1], generator=torch.Generator().manual_seed(1))]
    parts = gptq_parts(bits, SHAPE[1] // 32, form, index)
    quantization = {
        "bits": bits,
        "group_size": 32,
        "desc_act": order == "by activation",
        "checkpoint_format": form,
    }
    restored = restored_from(tmp_path, parts, quantization)
    assert_equal(restored, gptqmodel(parts, bits, 32, form))


def test_a_zero_point_of_zero_that_borrowed_from_its_neighbour(tmp_path: Path) -> None:
    """gptqmodel makes the first format of the second one by taking 1 from every code of a word at once."""
    index = torch.arange(SHAPE[1]) // 32
    second = gptq_parts(4, SHAPE[1] // 32, "gptq_v2", index)
    first = {**second, "qzeros": (second["qzeros"].long() - 0x11111111).to(torch.int32)}
    quantization = {"bits": 4, "group_size": 32, "desc_act": False, "checkpoint_format": "gptq"}
    restored = restored_from(tmp_path, first, quantization)
    assert_equal(restored, gptq_weight(second, 4, "gptq_v2"))


def test_other_widths_by_module(tmp_path: Path) -> None:
    index = torch.arange(SHAPE[1]) // 32
    both = {bits: gptq_parts(bits, SHAPE[1] // 32, "gptq", index) for bits in (4, 8)}
    content = {f"l{bits}.proj.{name}": part for bits, parts in both.items() for name, part in parts.items()}
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"+:l8": {"bits": 8}}}
    theirs = folder(tmp_path / "theirs", content, quantization)
    compressor.restore(theirs, tmp_path / "dense")
    for bits, parts in both.items():
        assert_equal(load(tmp_path / "dense")[f"l{bits}.proj.weight"], gptq_weight(parts, bits, "gptq"))


# ---- AWQ -----------------------------------------------------------------------------------------------

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the code that each nibble of a word holds


def awq_words(codes: Any) -> Any:
    """Codes [a, b] to AutoAWQ's words [a, b/8]."""
    eights = codes.reshape(codes.shape[0], -1, 8)[:, :, AWQ_ORDER]
    words = sum(eights[:, :, place] << (4 * place) for place in range(8))
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def awq_codes(words: Any) -> Any:
    """What AutoAWQ unpacks: nibbles from the lowest, then put into order."""
    nibbles = torch.stack([(words.long() >> shift) & 15 for shift in range(0, 32, 4)], 2)
    return nibbles[:, :, [0, 4, 1, 5, 2, 6, 3, 7]].reshape(words.shape[0], -1)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize(("rows", "columns", "group"), [(96, 256, 64), (8, 128, -1), (2072, 1024, 128)])
def test_we_restore_what_awq_wrote(tmp_path: Path, rows: int, columns: int, group: int, dtype: str) -> None:
    made = torch.Generator().manual_seed(rows)
    size = columns if group == -1 else group
    codes = torch.randint(0, 16, (columns, rows), generator=made)
    zeros = torch.randint(0, 16, (columns // size, rows), generator=made)
    scales = (torch.rand(zeros.shape, generator=made) * 0.01).to(DTYPES[dtype])
    content = {"a.proj.qweight": awq_words(codes), "a.proj.qzeros": awq_words(zeros), "a.proj.scales": scales}
    quantization = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "GEMM"}
    theirs = folder(tmp_path / "theirs", content, quantization)
    compressor.restore(theirs, tmp_path / "dense")
    assert torch.equal(awq_codes(content["a.proj.qweight"]), codes)
    spread = [part.repeat_interleave(size, 0) for part in (zeros, scales)]
    wanted = (codes - spread[0]).to(DTYPES[dtype]) * spread[1]
    assert_equal(load(tmp_path / "dense")["a.proj.weight"], wanted.T)
