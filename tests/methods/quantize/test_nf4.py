"""NF4: what it loses, what it writes beside the codes, and what it refuses in files of strangers."""

from __future__ import annotations

import json
import math
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import archives
from support.console import LLAMA, compressor
from support.laws import Array, Outcome, decode, run, same_bits, store

from compressor import api
from compressor.core.errors import InputError, UsageError
from compressor.core.tensor import TensorSpec
from compressor.methods.quantize.nf4 import Nf4, bitsandbytes_state, levels


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def outcome(values: Array, **options: Any) -> Outcome:
    return run(Nf4(**options), TensorSpec("a.weight", "F32", values.shape), values, size=128)


def error(values: Array, found: Outcome) -> float:
    return float(np.linalg.norm(values - found.restored.reshape(values.shape)) / np.linalg.norm(values))


# ---- what is lost --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"method": "absmax"}, 0.0920),
        ({}, 0.0852),
        ({"double_quant": True}, 0.0853),
        ({"group_size": 128}, 0.0898),
        ({"group_size": 32}, 0.0794),
    ],
    ids=str,
)
def test_error_on_normal_weights(options: dict[str, Any], most: float) -> None:
    values = normal(512, 4096)
    assert error(values, outcome(values, **options)) <= most


def test_the_search_is_no_worse_in_any_block_and_near_the_best() -> None:
    values = normal(64, 64) * np.float32([[1], [1e-30], [3e4], [1e-3]] * 16)
    values[5, 7:] = 0
    values[9, 1:] *= 1e-3

    def losses(scale: Array) -> Array:
        shares = values.astype(np.float64) / scale[:, None]
        chosen = levels.levels()[np.searchsorted(levels.midpoints(), shares)]
        return ((values - chosen * scale[:, None].astype(np.float64)) ** 2).sum(axis=1)

    largest = np.abs(values).max(axis=1).astype(np.float64)
    best = np.min([losses(largest * ratio) for ratio in np.arange(0.75, 1.5, 0.002)], axis=0)
    found = ((values - outcome(values).restored.astype(np.float64)) ** 2).sum(axis=1)
    assert np.all(found <= losses(largest) * (1 + 1e-5))
    assert found[3::4].sum() <= 1.01 * best[3::4].sum()
    assert np.sqrt((found / best).mean()) < 1.02


def test_a_block_that_the_levels_hold_is_exact() -> None:
    values = np.tile(levels.levels(), 8).reshape(2, 64) * np.float32(0.37)
    assert np.array_equal(outcome(values).restored, values)


# ---- blocks and shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 32), (12, 48), (5, 7), (33, 9), (3, 2, 5, 7), (200,), (64, 3), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"double_quant": True}, {"group_size": 32}], ids=str)
def test_blocks_run_over_the_flattened_tensor(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    values = normal(*shape)
    found = outcome(values, **options)
    size = options.get("group_size", 64)
    flat = np.zeros(-(-values.size // size) * size, np.float32)
    flat[: values.size] = values.reshape(-1)
    straight = outcome(flat.reshape(-1, size), **options)
    assert same_bits(found.restored.reshape(-1), straight.restored.reshape(-1)[: values.size])
    assert found.parts is not None
    assert straight.parts is not None
    nbytes = -(-values.size // 2)
    assert same_bits(found.parts[""].reshape(-1), straight.parts[""].reshape(-1)[:nbytes])
    assert same_bits(found.parts[".absmax"], straight.parts[".absmax"])
    assert same_bits(decode(found, TensorSpec("a.weight", "F32", shape)), found.restored)


def test_the_first_weight_is_in_the_high_nibble() -> None:
    values = np.zeros((1, 64), np.float32)
    values[0, :2] = 1, -1
    parts = outcome(values, method="absmax").parts
    assert parts is not None
    assert parts[""][0, 0] == 0xF0
    assert np.all(parts[""][1:] == 0x77)  # zeros


def test_a_large_tensor_without_whole_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="no multiple of the group size 64") as caught:
        Nf4().parts(TensorSpec("a.weight", "F32", (100_001, 33)))
    assert "--exclude" in caught.value.remedy
    assert Nf4().parts(TensorSpec("a.weight", "F32", (100_000, 32)))[0].every == 2


@pytest.mark.parametrize("size", [48, 33, 4095])
def test_group_sizes_are_powers_of_two(size: int) -> None:
    with pytest.raises(UsageError, match="group_size must be 32, 64, 128"):
        Nf4(group_size=size)


@pytest.mark.parametrize("options", [{}, {"double_quant": True}], ids=str)
def test_a_float64_beyond_float32_is_refused(options: dict[str, Any]) -> None:
    values = np.full((1, 64), 1e300)
    with pytest.raises(InputError, match="beyond the range of float32"):
        run(Nf4(**options), TensorSpec("a.weight", "F64", values.shape), values)


# ---- the state, and scales in 8 bits -------------------------------------------------------------------


def test_the_state_is_what_bitsandbytes_writes() -> None:
    spec = TensorSpec("a.weight", "BF16", (3, 64))
    expected = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [3, 64]}
    assert json.loads(bitsandbytes_state.to_json(spec, 64, nested=False)) == expected
    nested = json.loads(bitsandbytes_state.to_json(spec, 64, nested=True, offset=0.25))
    assert nested == expected | {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}


@pytest.mark.parametrize("offset", [0.1, 1.0, 1e-45, 1.1754943508222875e-38, 3.4028234663852886e38])
def test_the_length_of_the_state_follows_from_the_spec(offset: float) -> None:
    offset = float(np.float32(offset))
    spec = TensorSpec("a.weight", "F32", (3, 64))
    made = bitsandbytes_state.to_json(spec, 64, nested=True, offset=offset)
    assert len(made) == len(bitsandbytes_state.to_json(spec, 64, nested=True))
    assert json.loads(made)["nested_offset"] == offset
    assert bitsandbytes_state.check(made, spec, 64, nested=True) == np.float32(offset)


def test_the_dynamic_map_is_sorted_and_has_a_zero() -> None:
    table = bitsandbytes_state.dynamic_map()
    assert table.shape == (256,)
    assert np.all(np.diff(table) > 0)
    assert table[127] == 0
    assert table[255] == 1


@pytest.mark.parametrize(
    "wanted",
    [
        np.zeros(300),
        np.full(300, 2.5),
        np.r_[np.full(299, 1e-3), 1e4],
        np.r_[np.full(299, 3.4e38), 1.0],
        np.abs(np.random.default_rng(1).standard_normal(600)),
        np.r_[np.zeros(300), np.full(300, 7.0)],
    ],
)
def test_scales_in_8_bits_are_positive_and_near(wanted: Array) -> None:
    wanted = wanted.astype(np.float32)
    made = bitsandbytes_state.Nested.of(wanted, 3.4028234663852886e38)
    found = made.decoded(0, len(wanted))
    assert np.all((found > 0) & np.isfinite(found))
    assert np.all(made.magnitudes > 0)
    some = wanted > 0
    blocks = np.arange(len(wanted)) // 256
    tolerance = 0.012 * made.magnitudes[blocks][some].astype(np.float64) + 1e-6 * wanted[some]
    assert np.all(np.abs(found[some].astype(np.float64) - wanted[some]) <= tolerance)
    assert same_bits(np.r_[made.decoded(0, 250), made.decoded(250, len(wanted) - 250)], found)


def test_zero_blocks_do_not_pull_the_offset() -> None:
    values = normal(512, 64)
    values[::2] = 0
    assert error(values, outcome(values, double_quant=True)) < 0.0855
    assert np.all(outcome(values, double_quant=True).restored[::2] == 0)


# ---- folders -------------------------------------------------------------------------------------------


def folder(path: Path, **shapes: tuple[int, ...]) -> Path:
    """A folder of one file with weights of these shapes; `__` stands for a dot."""
    path.mkdir()
    tensors = {f"{n.replace('__', '.')}.weight": ("F32", store(normal(*s), "F32")) for n, s in shapes.items()}
    archives.write(path / "model.safetensors", tensors)
    (path / "config.json").write_text('{"model_type": "test"}')
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None] = lambda tensors: None) -> Path:
    """The folder's file with changed tensors and without our record, as a stranger's."""
    file = path / "model.safetensors"
    kinds = {"U8": "|u1", "F32": "<f4", "BF16": "<u2", "I8": "|i1"}
    tensors: dict[str, Any] = {
        name: (dtype, np.frombuffer(data, kinds[dtype]).reshape(shape).copy())
        for name, (dtype, shape, data) in archives.read(file).items()
    }
    change(tensors)
    archives.write(file, tensors, {"format": "pt"})
    return path


def declared(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "config.json").read_bytes())["quantization_config"]
    return found


STATE = "a.weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize("double", [False, True])
def test_a_folder_is_read_by_its_states_alone(tmp_path: Path, double: bool) -> None:
    source = folder(tmp_path / "in", a=(8, 128), b=(6, 96))
    api.quantize(source, tmp_path / "q", scheme="nf4", double_quant=double, rules=[("b*", {"group_size": 32})])
    api.restore(tmp_path / "q", tmp_path / "ours.safetensors")
    api.restore(rewrite(tmp_path / "q"), tmp_path / "theirs.safetensors")
    assert archives.read(tmp_path / "ours.safetensors") == archives.read(tmp_path / "theirs.safetensors")
    assert "quantized (bitsandbytes)" in compressor("inspect", tmp_path / "q").out


def test_codes_may_lie_in_another_dtype(tmp_path: Path) -> None:
    api.quantize(folder(tmp_path / "in", a=(8, 128)), tmp_path / "q", scheme="nf4")
    api.restore(tmp_path / "q", tmp_path / "ours.safetensors")

    def change(tensors: dict[str, Any]) -> None:
        tensors["a.weight"] = ("BF16", tensors["a.weight"][1].reshape(-1).view("<u2")[:, None])

    api.restore(rewrite(tmp_path / "q", change), tmp_path / "theirs.safetensors")
    assert archives.read(tmp_path / "ours.safetensors") == archives.read(tmp_path / "theirs.safetensors")


def test_the_configuration(tmp_path: Path) -> None:
    report = api.quantize(LLAMA, tmp_path / "q", scheme="nf4", exclude=["*layers.0.*"])
    found = declared(tmp_path / "q")
    assert found["quant_method"] == "bitsandbytes"
    assert found["load_in_4bit"] is True
    assert found["bnb_4bit_quant_type"] == "nf4"
    assert found["bnb_4bit_use_double_quant"] is False
    assert found["bnb_4bit_compute_dtype"] == "bfloat16"
    skipped = set(found["llm_int8_skip_modules"])
    assert {"lm_head", "model.layers.0.mlp.up_proj", "layers.0.mlp.up_proj"} <= skipped
    assert not any("layers.1" in name for name in skipped)
    assert not [note for note in report.plan.notes if "vllm-bnb-plugin" not in note]
    api.quantize(LLAMA, tmp_path / "dq", scheme="nf4", double_quant=True)
    assert declared(tmp_path / "dq")["bnb_4bit_use_double_quant"] is True


def test_a_dense_module_whose_name_ends_like_a_packed_one(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", fc=(8, 64), b__fc=(8, 64), x__layers__0__fc=(8, 64), y__layers__0__fc=(8, 64))
    api.quantize(source, tmp_path / "q", scheme="nf4", exclude=["fc.weight", "x.*"])
    skipped = declared(tmp_path / "q")["llm_int8_skip_modules"]
    assert "^fc$" in skipped
    assert not {"fc", "layers.0.fc"} & set(skipped)
    assert "x.layers.0.fc" in skipped


def test_what_loaders_do_not_take_makes_the_folder_our_own(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", model__embed_tokens=(8, 64))
    (source / "config.json").write_text("{}")
    api.quantize(source, tmp_path / "q", scheme="nf4", include=["*"])
    assert declared(tmp_path / "q")["format"] == "run `compressor restore`"
    api.restore(tmp_path / "q", tmp_path / "back")


def test_what_no_loader_takes_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", h__0__attn__c_attn=(8, 64))
    (source / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UsageError, match="nf4 of transposed Conv1D layers: no loader takes such a folder"):
        api.quantize(source, tmp_path / "q", scheme="nf4", include=["*"])


def test_rows_that_blocks_cross_are_remarked(tmp_path: Path) -> None:
    report = api.quantize(folder(tmp_path / "in", a=(8, 96), b=(8, 64)), tmp_path / "q", scheme="nf4")
    assert sum("cross rows" in note for note in report.plan.notes) == 1


# ---- hostile and damaged -------------------------------------------------------------------------------


def set_(name: str, dtype: str, content: Any) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = (dtype, np.asarray(content))

    return change


def state(**changed: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the state's keys; None takes one away."""

    def change(tensors: dict[str, Any]) -> None:
        found = json.loads(tensors[STATE][1].tobytes()) | changed
        text = json.dumps({key: value for key, value in found.items() if value is not None})
        tensors[STATE] = ("U8", np.frombuffer(text.encode(), np.uint8))

    return change


def text(content: bytes) -> Callable[[dict[str, Any]], None]:
    return set_(STATE, "U8", np.frombuffer(content, np.uint8))


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        del tensors[name]

    return change


def rename(name: str, other: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[other] = tensors.pop(name)

    return change


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no JSON": (text(b"{"), "is not a JSON object"),
    "a list": (text(b"[]"), "is not a JSON object"),
    "not UTF-8": (text(b"\xff\xfe{}"), "is not a JSON object"),
    "deep": (text(b'{"shape":' + b"[" * 3000), "is not a JSON object"),
    "double keys": (text(b'{"quant_type": "nf4", "quant_type": "nf4"}'), "is not a JSON object"),
    "long": (text(b" " * 5000), "its quant_state is no text of a reasonable length"),
    "numbers": (set_(STATE, "F32", np.zeros(4, np.float32)), "its quant_state is no text"),
    "a huge integer": (text(b'{"blocksize": ' + b"9" * 4000), "is not a JSON object"),
    "fp4": (state(quant_type="fp4"), "does not say that it is of NF4"),
    "no type": (state(quant_type=None), "does not say that it is of NF4"),
    "no shape": (state(shape=None), "has no shape"),
    "negative shape": (state(shape=[-8, 128]), "has no shape"),
    "shape of truths": (state(shape=[True, 128]), "has no shape"),
    "shape of floats": (state(shape=[8.0, 128]), "has no shape"),
    "huge shape": (state(shape=[2**62, 128]), "has no shape"),
    "many axes": (state(shape=[1] * 65), "has no shape"),
    "large shape": (state(shape=[2**39, 2**39]), "its part"),
    "other shape": (state(shape=[8, 192]), "its part"),
    "no elements": (state(shape=[0, 128]), "its part"),
    "no blocksize": (state(blocksize=None), "has no blocksize"),
    "zero blocksize": (state(blocksize=0), "has no blocksize"),
    "odd blocksize": (state(blocksize=96), "has no blocksize"),
    "other blocksize": (state(blocksize=128), "its part .absmax"),
    "blocksize of text": (state(blocksize="64"), "has no blocksize"),
    "dtype": (state(dtype="float64"), "has no dtype"),
    "dtype of a list": (state(dtype=["bfloat16"]), "has no dtype"),
    "infinite offset": (state(nested_offset=float("inf")), "nested_offset that is no number"),
    "offset of text": (state(nested_offset="0"), "nested_offset that is no number"),
    "large offset": (state(nested_offset=1e300), "nested_offset that is no number"),
    "offset of many digits": (state(nested_offset=10**400), "nested_offset that is no number"),
    "other nested blocks": (state(nested_blocksize=64), "nested scales that are not float32"),
    "no offset": (state(nested_offset=None), "its part .absmax"),
    "no absmax": (drop("a.weight.absmax"), "its part .absmax is missing"),
    "no codes": (drop("a.weight"), "its codes are missing"),
    "no map": (drop("a.weight.quant_map"), "its part .quant_map is missing"),
    "no state": (drop(STATE), "has no quant_state beside it"),
    "another map": (set_("a.weight.quant_map", "F32", np.zeros(16, "<f4")), "does not hold the levels of NF4"),
    "half a map": (set_("a.weight.quant_map", "F32", np.zeros(8, "<f4")), "does not hold the levels of NF4"),
    "a lost scale": (set_("b.weight.absmax", "F32", np.zeros(4, "<f4")), "has no quant_state beside it"),
    "fp4's state": (rename(STATE, STATE.replace("nf4", "fp4")), "only nf4 is read here"),
    "any state": (rename(STATE, STATE.replace("nf4", "\x1b[31m")), "only nf4 is read here"),
    "8 bits": (set_("b.SCB", "F32", np.zeros(8, "<f4")), "has no matrix of 8-bit codes beside its SCB"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_refused(name: str, tmp_path: Path) -> None:
    change, said = DAMAGE[name]
    api.quantize(folder(tmp_path / "in", a=(8, 128)), tmp_path / "q", scheme="nf4", double_quant=True)
    rewrite(tmp_path / "q", change)
    for command in (["inspect", tmp_path / "q"], ["restore", tmp_path / "q", "-o", tmp_path / "o"]):
        done = compressor(*command)
        assert done.code == 3, done.out
        (line,) = done.err.splitlines()
        assert said in line
        assert line.isprintable()
        assert "tensor '" in line


NOT_NUMBERS = {
    "a NaN": set_("a.weight.nested_absmax", "F32", np.array([math.nan], "<f4")),
    "an infinity": set_("a.weight.nested_absmax", "F32", np.array([math.inf], "<f4")),
    "a NaN in the map": set_("a.weight.nested_quant_map", "F32", np.full(256, math.nan, "<f4")),
}


@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_scales_that_are_no_numbers_are_refused(name: str, tmp_path: Path) -> None:
    api.quantize(folder(tmp_path / "in", a=(8, 128)), tmp_path / "q", scheme="nf4", double_quant=True)
    rewrite(tmp_path / "q", NOT_NUMBERS[name])
    done = compressor("restore", tmp_path / "q", "-o", tmp_path / "o")
    assert done.code == 3
    assert "tensor 'a.weight': its absmax holds a NaN or an infinity" in done.err


def test_a_state_that_contradicts_our_own_record_is_refused(tmp_path: Path) -> None:
    api.quantize(folder(tmp_path / "in", a=(8, 128)), tmp_path / "q", scheme="nf4")
    path = tmp_path / "q" / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"blocksize": 64', b'"blocksize": 32'))
    done = compressor("restore", tmp_path / "q", "-o", tmp_path / "o")
    assert done.code == 3
    assert "its quant_state contradicts its tensors" in done.err


@pytest.mark.parametrize("config", [{"load_in_8bit": True}, {"load_in_4bit": True}])
def test_folders_of_the_8_bit_form_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    archives.write(source / "model.safetensors", {"a.weight": ("I8", np.zeros((8, 64), np.int8))})
    (source / "config.json").write_text(json.dumps({"quantization_config": config}))
    done = compressor("restore", source, "-o", tmp_path / "o")
    assert done.code == 3
    assert "has no quant_state beside it" in done.err
    shutil.rmtree(source)


def test_quantizing_the_scales_of_a_large_tensor_takes_little_beside_them() -> None:
    """Eight bytes a scale beside the scales themselves, and what one of the pieces takes."""
    random = np.random.default_rng(0)
    wanted = np.abs(random.standard_normal(1 << 21)).astype(np.float32)
    wanted[::1000] = 0
    bitsandbytes_state.dynamic_map()
    tracemalloc.start()
    try:
        nested = bitsandbytes_state.Nested.of(wanted, 3e38)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(wanted) + (10 << 20)
    # piece by piece it is what it is for all of them at once
    offset = np.float32(wanted[wanted > 0].mean(dtype=np.float64))
    difference = np.where(wanted > 0, wanted - offset, 0).reshape(-1, bitsandbytes_state.BLOCK)
    assert nested.offset == offset
    assert np.array_equal(nested.magnitudes, np.abs(difference).max(axis=1))
    error = np.abs(nested.decoded(0, len(wanted)) - np.where(wanted > 0, wanted, offset)).reshape(difference.shape)
    assert (error <= nested.magnitudes[:, None] * 0.04 + 1e-6).all()
