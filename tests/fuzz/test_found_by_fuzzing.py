"""What fuzzing has found, each as small as it can be: refused in one line, or right, where it was a bug."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.archives import rewritten_directory
from support.fault_injection import invoke, is_one_line
from support.gguf_models import config_named, folder_named, tensors_named
from support.hostile import Damage, Rename, Retype, bounded, check_command, check_model
from support.small_models import BITS, Model, Stored, array, llama, mlp, model_of

FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
SCALES = [
    ("modelopt", "b.weight_scale"),
    ("fp8", "a.weight_scale_inv"),
    ("comfy", "d.a.scale_weight"),
    ("float-quantized", "model.layers.0.mlp.up_proj.weight_scale"),
    ("float-quantized tensor", "model.layers.0.mlp.up_proj.weight_scale"),
    ("deepseek", "a.scale"),
]


@pytest.mark.parametrize("dtype", [dtype for dtype in BITS if BITS[dtype] % 8 == 0])
@pytest.mark.parametrize(("kind", "scale"), SCALES)
def test_scales_of_every_dtype(kind: str, scale: str, dtype: str) -> None:
    """U16 and I8 were a KeyError, I64 and C64 a table of 2^64 numbers, U32 one of 16 GiB."""
    model = model_of(kind)
    code = check_model(model, [Retype(list(model.tensors).index(scale), dtype, True)], Damage(None), ("restore",))
    assert code == 3 or dtype in FLOATS


def refused(path: Path, *command: str) -> str:
    """The line with which a command refuses an input; it leaves nothing."""
    out = path.parent / "refused.safetensors"
    with bounded(path.stat().st_size):
        code, lines = invoke([*command, str(path), *(["-o", str(out), "-q"] if command[0] != "inspect" else [])])
    assert code == 3, lines
    assert is_one_line(lines)
    assert not out.exists()
    return lines[0]


# ---- shapes that a file only claims ----------------------------------------------------------------------------


def factors(place: Path, rows: int, columns: int) -> Path:
    """Two vectors that say they are a matrix."""
    method = {"kind": "distill", "method": "low-rank", "rank": 1}
    record = {"version": 1, "tool": "0", "stages": [], "methods": [method]}
    record["tensors"] = {"a.weight": ["F32", [rows, columns], 0]}
    parts = {"a.weight.left": (rows, 1), "a.weight.right": (1, columns)}
    tensors = {name: Stored("F32", shape, bytes(4 * max(shape))) for name, shape in parts.items()}
    return Model(tensors, metadata={"compressor": json.dumps(record)}).write(place)


def test_factors_that_claim_a_matrix_of_any_size(tmp_path: Path) -> None:
    """525 kB stood for 17 GB."""
    path = factors(tmp_path, 65536, 65536)
    assert path.stat().st_size < 525_000
    for command in (["restore"], ["inspect", "--stats"]):
        assert "no file stands for more than 64 MiB and 4096 times its own size" in refused(path, *command)


def test_factors_of_a_reasonable_size_are_read(tmp_path: Path) -> None:
    assert check_command(factors(tmp_path, 300, 200), ("restore",)) == 0


def test_what_no_reader_would_believe_is_not_written(tmp_path: Path) -> None:
    """Nothing but zeros, stored by their row offsets alone."""
    np.save(tmp_path / "in.npy", np.zeros((2, 19 << 19), np.float32))
    command = ["prune", "--sparsity", "0.5", "--store", "csr", str(tmp_path / "in.npy"), "-q"]
    code, lines = invoke([*command, "-o", str(tmp_path / "out.safetensors")])
    assert code == 4
    assert is_one_line(lines)
    assert "would stand for more than 64 MiB and 4096 times its own size" in lines[0]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in.npy"]


# ---- dtypes where others belong --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "C64"])
def test_a_file_compared_with_itself(tmp_path: Path, dtype: str) -> None:
    model = Model({"a.weight": Stored(dtype, (4, 8), bytes(range(1, 5)) * (BITS[dtype]))})
    assert check_command(model.write(tmp_path), ("compare",)) == 0


def test_imaginary_parts_are_compared(tmp_path: Path) -> None:
    for name, value in (("a", 1 + 1j), ("b", 1 - 1j)):
        model = Model({"w": array("C64", np.full((2, 2), value, np.complex64))})
        model.write(tmp_path).rename(tmp_path / f"{name}.safetensors")
    command = ["compare", *(str(tmp_path / f"{name}.safetensors") for name in "ab"), "--max-error", "0.1"]
    assert invoke(command)[0] == 1


@pytest.mark.parametrize("dtype", ["U32", "I8", "I64", "BOOL", "C64", "F4", "F8_E8M0"])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
@pytest.mark.parametrize("how", ["subclone", "neurons", "hidden"])
def test_structures_cut_out_of_what_is_no_float(how: str, name: str, dtype: str) -> None:
    command: tuple[str, ...] = ("distill", "--method", "subclone", "--shape", "hidden=16,intermediate=32")
    if how != "subclone":
        command = ("prune", "--structure", how, "--fraction", "0.5")
    model = llama()
    check_model(model, [Retype(list(model.tensors).index(name), dtype, True)], Damage(None), command)


def test_codes_that_our_own_record_forgot(tmp_path: Path) -> None:
    """They were carried along as numbers, under a config that no longer told of them."""
    model = model_of("float-quantized")
    record = json.loads(model.metadata["compressor"])
    del record["tensors"]["model.layers.0.mlp.down_proj.weight"]
    config = {key: value for key, value in model.texts["config.json"].items() if key != "quantization_config"}
    path = replace(model, metadata={"compressor": json.dumps(record)}, texts={"config.json": config}).write(
        tmp_path
    )
    code, lines = invoke(["restore", str(path), "-o", str(tmp_path / "out"), "-q"])
    assert code == 3
    assert "looks quantized" in lines[0]


# ---- archives of others ----------------------------------------------------------------------------------------


def test_an_extra_field_that_is_longer_than_what_is_there(tmp_path: Path) -> None:
    """It says 16 bytes and has 5."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.npy", b"x")
    raw = bytearray(stream.getvalue())
    at = raw.index(b"PK\1\2")
    raw[at + 20 : at + 24] = b"\xff" * 4  # as large as it is, it says, the extra field tells
    struct.pack_into("<H", raw, at + 30, 9)
    raw[at + 46 + 5 : at + 46 + 5] = struct.pack("<2H", 1, 16) + b"12345"
    end = raw.index(b"PK\5\6")
    struct.pack_into("<L", raw, end + 12, end - at)
    (tmp_path / "in.npz").write_bytes(raw)
    assert "is a damaged zip archive" in refused(tmp_path / "in.npz", "inspect")


def state(content: bytes, place: Path) -> Path:
    with zipfile.ZipFile(place / "in.pt", "w") as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/data/0", bytes(64))
    return place / "in.pt"


KIND = b"ctorch\nFloatStorage\n"
STORAGE = b"(X\x07\x00\x00\x00storage" + KIND + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89Nt"
PICKLES = {
    "a key that takes 2^60 steps to hash": b"}" + b")" + b"2\x86" * 60 + b"K\x01s.",
    "a key that is nested too deep to hash": b"}" + b")" + b"\x85" * 200_000 + b"K\x01s.",
    "the same, by the memo": b"}" + b")q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",
    "a text that is copied again and again": b"](X" + struct.pack("<L", 300_000) + b"x" * 300_000 + b"q\x00"
    b"0" + b"ctorch\nSize\nh\x00\x85R" * 2000 + b"e.",
    "a tensor whose fields are set": b"}X\x01\x00\x00\x00w" + TENSOR + b"R(K\x01K\x02K\x03K\x04K\x05tbs.",
    "a dtype whose name is set": b"}X\x01\x00\x00\x00w" + KIND + b"(X\x01\x00\x00\x00xtbs.",
    "a function whose defaults are set": b"}X\x01\x00\x00\x00w"
    b"ctorch._utils\n_rebuild_parameter\nN}X\x0c\x00\x00\x00__defaults__)s\x86bs.",
    "a list that holds itself": b"}X\x01\x00\x00\x00w]q\x00h\x00aq\x01h\x01as.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles(tmp_path: Path, kind: str) -> None:
    line = refused(state(b"\x80\x02" + PICKLES[kind], tmp_path), "inspect")
    assert "pickle" in line or "no state dict" in line or "never loaded" in line


def test_the_good_pickle_among_them_is_read(tmp_path: Path) -> None:
    path = state(b"\x80\x02}X\x01\x00\x00\x00w" + TENSOR + b"Rs.", tmp_path)
    assert invoke(["inspect", str(path)]) == (0, [])
    shared: Any = (1, 2)
    path = state(pickle.dumps({"a": [shared] * 1000}, 2), tmp_path)
    assert "holds no state dict" in refused(path, "inspect")


# ---- numbers that no float holds -------------------------------------------------------------------------------


def test_integers_of_four_hundred_digits(tmp_path: Path) -> None:
    path = mlp().write(tmp_path)
    survey, network = tmp_path / "s.json", tmp_path / "n.toml"
    command = ["quantize", str(path), "--target-bits", "6", "--survey", str(survey), "-q"]
    assert invoke([*command, "-o", str(tmp_path / "a.safetensors")])[0] == 0
    found = json.loads(survey.read_text())
    found["tensors"]["0.weight"] = {name: [10**400, 0, 0] for name in found["tensors"]["0.weight"]}
    survey.write_text(json.dumps(found))
    code, lines = invoke([*command, "-o", str(tmp_path / "b.safetensors")])
    assert code == 3, lines
    assert is_one_line(lines)
    network.write_text(f"name = 'a'\ninput = 32\ndivide = 1{'0' * 400}\n[[layer]]\nkind = 'dense'\nname = '0'\n")
    np.save(tmp_path / "x.npy", np.ones((2, 32), np.float32))
    given = ["--inputs", str(tmp_path / "x.npy"), "--network", str(network), "-o", str(tmp_path / "c.safetensors")]
    code, lines = invoke(["calibrate", str(path), *given])
    assert code == 2, lines
    assert is_one_line(lines)


def test_an_archive_of_two_hundred_thousand_dimensions(tmp_path: Path) -> None:
    """Their product was taken before anybody looked at their number."""
    path = mlp().write(tmp_path)
    packed = tmp_path / "in.safetensors"
    assert invoke(["prune", "--sparsity", "0.5", "--store", "archive", str(path), "-o", str(packed), "-q"])[0] == 0

    def claim(found: dict[str, Any]) -> None:
        found["tensors"]["0.weight"][1] = [2**62] * 200_000

    packed.write_bytes(rewritten_directory(packed.read_bytes(), claim))
    assert "its directory does not say what it should" in refused(packed, "inspect")


def test_a_name_that_only_looks_like_a_scale() -> None:
    model = model_of("pack-quantized")
    check_model(model, [Rename(14, "moved", ".SCB")], Damage(None), ("restore",))


@pytest.mark.parametrize("dense", [1e308, 2**62, -1, "all"])
def test_layers_that_no_model_has(tmp_path: Path, dense: Any) -> None:
    """1e308 dense layers of a DeepSeek that becomes a GGUF file were counted one by one."""
    config = config_named("deepseek_v3") | {"first_k_dense_replace": dense}
    folder = folder_named(tmp_path / "in", "deepseek_v3", config=config, tensors=tensors_named("deepseek_v3"))
    assert check_command(folder, ["restore"], name="out.gguf") == 3
