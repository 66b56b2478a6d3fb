"""Archives against a base: files come back byte for byte, updates take little, and no other base is believed."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import archives
from support.console import compressor
from support.fault_injection import KINDS, Kind, Server, invoke, is_one_line, make_folder, tree
from support.range_server import served
from support.staged import Stage, fail_every_call

from compressor import api
from compressor.core import kernels
from compressor.core.errors import InputError, UsageError
from compressor.core.tensor import DTYPES
from compressor.files.entropy.account import Account
from compressor.files.entropy.damage import Damaged
from compressor.files.entropy.deltas import decode_delta, encode_delta
from compressor.files.entropy.elements import delta_form, possible

Array = np.ndarray[Any, Any]
WIDTHS = {name: dtype.bits for name, dtype in DTYPES.items() if dtype.storage}


def bfloat16(values: Array) -> Array:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def updated(share: float, shape: tuple[int, int], seed: int = 0) -> tuple[Array, Array]:
    """bfloat16 weights of N(0, 0.02), and these after an update of this share of their deviation."""
    chance = np.random.default_rng(seed)
    base = bfloat16(chance.normal(0, 0.02, shape))
    before = (base.astype(np.uint32) << 16).view(np.float32)
    return base, bfloat16(before + chance.normal(0, 0.02 * share, shape))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def coded(now: Array, base: Array, dtype: str, effort: Any = "fast") -> bytes:
    return encode_delta(now, base, delta_form(dtype), possible(dtype)[0], effort)


def decoded(chunk: bytes, base: Array, dtype: str) -> Array:
    return decode_delta(memoryview(chunk), base, delta_form(dtype), possible(dtype)[0])


# ---- what an update takes ------------------------------------------------------------------------------

BITS = {0.0003: 0.306, 0.001: 0.965, 0.003: 2.22}


@pytest.mark.parametrize("share", BITS)
def test_an_update_takes_what_was_promised_and_half_of_zstd(share: float) -> None:
    zstandard = pytest.importorskip("zstandard")
    base, now = updated(share, (1024, 2048))
    chunk = coded(now.view(np.uint8), base.view(np.uint8), "BF16")
    assert len(chunk) * 8 / now.size < BITS[share]
    if share <= 0.001:
        assert len(chunk) <= len(zstandard.ZstdCompressor(3).compress((base ^ now).tobytes())) / 2


def test_equal_tensors_take_five_bytes_a_chunk(tmp_path: Path) -> None:
    base, _ = updated(0.001, (300, 1000))
    assert len(coded(base.view(np.uint8), base.view(np.uint8), "BF16")) == 5
    source = archives.write(tmp_path / "m.safetensors", {"w": ("BF16", base)})
    api.pipeline(source, tmp_path / "u.safetensors", base=source)
    assert (tmp_path / "u.safetensors").stat().st_size < 500


def test_an_unlike_tensor_takes_no_more_than_without_a_base() -> None:
    base, now = (updated(0.001, (64, 4096), seed)[0].view(np.uint8) for seed in (1, 2))
    chunk = coded(now, base, "BF16")
    assert chunk[4] == 0  # whole
    assert len(chunk) < 0.7 * now.size
    assert (decoded(chunk, base, "BF16") == now).all()


# ---- any bits ------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from(sorted(WIDTHS)), st.sampled_from(["fast", "small"]))
@settings(max_examples=60)
def test_any_patterns_come_back_and_kernels_change_no_byte(data: st.DataObject, dtype: str, effort: str) -> None:
    width = WIDTHS[dtype] // 8
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40)) * width
    chance = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    base = chance.integers(0, 256, (rows, columns), np.uint8)
    now = base.copy()
    kind = data.draw(st.sampled_from(["noise", "steps", "few", "special"]))
    if kind == "noise":
        now = chance.integers(0, 256, (rows, columns), np.uint8)
    elif kind == "steps":
        now[:, ::width] += chance.integers(0, 3, now[:, ::width].shape, np.uint8)
    elif kind == "few":
        now.reshape(-1)[chance.integers(0, now.size)] ^= 0x80
    else:  # infinities, NaN payloads, zeros of both signs, subnormals
        patterns = [b"\0" * width, b"\xff" * width, b"\0" * (width - 1) + b"\x80", b"\x01" + b"\0" * (width - 1)]
        for array in (base, now):
            flat = array.reshape(-1, width)
            for place in range(len(flat)):
                flat[place] = np.frombuffer(patterns[int(chance.integers(0, 4))], np.uint8)
    chunk = coded(now, base, dtype, effort)
    with mock.patch.object(kernels, "library", return_value=None):
        assert coded(now, base, dtype, effort) == chunk
        assert (decoded(chunk, base, dtype) == now).all()
    assert (decoded(chunk, base, dtype) == now).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3", "I16", "I64", "U8"])
def test_large_chunks_of_every_width_are_the_same_without_kernels(dtype: str) -> None:
    width, chance = WIDTHS[dtype] // 8, np.random.default_rng(5)
    base = chance.normal(0, 30, (40, 1000)).astype(f"<f{max(width, 2)}" if dtype != "U8" else "u1")
    numbers = (
        base.view(f"<u{base.itemsize}") if dtype != "F8_E4M3" else chance.integers(0, 256, base.shape, np.uint8)
    )
    now = numbers + chance.geometric(0.01, numbers.shape).astype(numbers.dtype) ** 2
    sides = [one.view(np.uint8).reshape(40, -1) for one in (now, numbers)]
    chunk = coded(sides[0], sides[1], dtype)
    with mock.patch.object(kernels, "library", return_value=None):
        assert coded(sides[0], sides[1], dtype) == chunk
        assert (decoded(chunk, sides[1], dtype) == sides[0]).all()
    account = Account()
    decode_delta(memoryview(chunk), sides[1], delta_form(dtype), possible(dtype)[0], account)
    assert account.values + account.positions <= 8 * len(chunk)


# ---- files ---------------------------------------------------------------------------------------------


def everything(seed: int) -> dict[str, tuple[str, Array]]:
    found: dict[str, tuple[str, Array]] = {}
    for dtype, width in WIDTHS.items():
        for name, shape in (("matrix", (7, 33)), ("scalar", ()), ("none", (0, 5)), ("cube", (3, 2, 5))):
            raw = np.random.default_rng(len(name)).integers(0, 256, (*shape, width // 8), np.uint8)
            if name == "matrix":
                raw[seed, 3] ^= 9
            storage = "|u1" if dtype == "BOOL" else DTYPES[dtype].storage
            found[f"{dtype}.{name}"] = dtype, raw.view(storage)[..., 0]
    found["narrow"] = "F4", np.random.default_rng(seed).integers(0, 256, 60, np.uint8)
    return found


def test_every_dtype_comes_back_byte_for_byte(tmp_path: Path) -> None:
    base = archives.write(tmp_path / "base.safetensors", everything(1))
    for effort in ("fast", "small"):
        source = archives.write(tmp_path / "m.safetensors", {**everything(2), "more": ("F32", np.ones(3, "<f4"))})
        update, back = tmp_path / f"{effort}.safetensors", tmp_path / f"{effort}-back.safetensors"
        report = api.pipeline(source, update, base=base, effort=effort)
        assert "stored whole, since the base has none of that name, dtype and shape: more" in report.plan.notes
        api.restore(update, back, base=base)
        assert sha256(back) == sha256(source)
        assert archives.metadata_of(update) == {"compressor.archive": "3"}


def folder_of(place: Path, tensors: archives.Tensors, shards: int) -> Path:
    place.mkdir()
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    weight_map = {}
    for number, name in enumerate(names):
        own = dict(list(tensors.items())[number::shards])
        archives.write(place / name, own, {"format": "pt"})
        weight_map |= dict.fromkeys(own, name)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (place / "config.json").write_text(f'{{"architectures": ["Tiny"],\n "shards": {shards}}}\n')
    return place


def test_folders_come_back_whatever_shards_the_base_has(tmp_path: Path) -> None:
    pairs = {f"l{number}.weight": updated(0.001, (33, 64), number) for number in range(5)}
    base = folder_of(tmp_path / "base", {name: ("BF16", one) for name, (one, _) in pairs.items()}, 2)
    model = folder_of(tmp_path / "model", {name: ("BF16", one) for name, (_, one) in pairs.items()}, 3)
    api.pipeline(model, tmp_path / "update", base=base)
    api.restore(tmp_path / "update", tmp_path / "back", base=base)
    assert tree(tmp_path / "back") == tree(model)
    found = api.compare(model, tmp_path / "update", base=base, max_error=0.0)
    assert not found.failures
    assert len(api.inspect(tmp_path / "update").rows) == 5
    assert "coded against the base" in api.inspect(tmp_path / "update").compression
    assert api.inspect(tmp_path / "update", stats=True, coding=True, base=base).codings


def test_quantized_files_come_back_as_they_were(tmp_path: Path) -> None:
    sides = [
        archives.write(tmp_path / f"{n}.safetensors", {"w": ("F32", np.full((8, 32), n, "<f4"))}) for n in (1, 2)
    ]
    for side in sides:
        api.quantize(side, tmp_path / f"q{side.name}", bits=8)
    api.pipeline(tmp_path / "q2.safetensors", tmp_path / "u.safetensors", base=tmp_path / "q1.safetensors")
    api.restore(tmp_path / "u.safetensors", tmp_path / "back.safetensors", base=tmp_path / "q1.safetensors")
    assert sha256(tmp_path / "back.safetensors") == sha256(tmp_path / "q2.safetensors")


def test_a_base_may_be_on_a_server(tmp_path: Path) -> None:
    base, now = updated(0.001, (300, 700))
    local = archives.write(tmp_path / "base.safetensors", {"w": ("BF16", base)})
    model = archives.write(tmp_path / "model.safetensors", {"w": ("BF16", now)})
    with served() as files:
        files.put("/base.safetensors", local.read_bytes())
        away = f"{files.url}/base.safetensors"
        api.pipeline(model, tmp_path / "update.safetensors", base=away)
        api.restore(tmp_path / "update.safetensors", tmp_path / "back.safetensors", base=away)
    assert sha256(tmp_path / "back.safetensors") == sha256(model)


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Path]:
    """A base, a model trained from it, and the update."""
    base, now = updated(0.001, (60, 70))
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", "model", "update")}
    for path, one in ((paths["base"], base), (paths["model"], now)):
        archives.write(path, {"w": ("BF16", one), "b": ("F32", np.ones(5, "<f4"))})
    api.pipeline(paths["model"], paths["update"], base=paths["base"])
    return paths


def test_a_base_that_is_missing_or_another_is_refused_before_anything_is_written(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    out, update = tmp_path / "out.safetensors", trained["update"]
    with pytest.raises(InputError, match="'w': is coded against a base, which is not given"):
        api.restore(update, out)
    with pytest.raises(InputError, match=r"'w': is coded against another base: .* has other numbers there"):
        api.restore(update, out, base=trained["model"], dry_run=True)
    lacking = archives.write(tmp_path / "lacking.safetensors", {"b": ("F32", np.ones(5, "<f4"))})
    with pytest.raises(InputError, match="has none of that name, where BF16"):
        api.restore(update, out, base=lacking)
    other = archives.write(tmp_path / "other.safetensors", {"w": ("BF16", np.zeros((70, 60), "<u2"))})
    with pytest.raises(InputError, match=r"has BF16 \[70, 60\] of that name"):
        api.restore(update, out, base=other)
    assert not out.exists()


def test_what_makes_no_sense_is_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    base, model, update = trained.values()
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match="not coded against a base"):
        api.restore(model, out, base=base)
    with pytest.raises(InputError, match="is coded against a base itself"):
        api.pipeline(model, out, base=update)
    with pytest.raises(UsageError, match="stages change it"):
        api.pipeline(model, out, base=base, stages=["prune:sparsity=0.5"])
    with pytest.raises(UsageError, match="written by one job"):
        api.pipeline(model, out, base=base, part="1/2")
    with pytest.raises(UsageError, match="is the input itself"):
        api.pipeline(model, base, base=base, force=True)
    archives.write(tmp_path / "else.safetensors", {"c": ("F32", np.ones(5, "<f4"))})
    with pytest.raises(UsageError, match="has no tensor of the name"):
        api.pipeline(model, out, base=tmp_path / "else.safetensors")
    done = compressor("quantize", update, "-o", out, "--bits", "8")
    assert done.code == 3
    assert "restore UPDATE --base BASE" in done.err
    assert not out.exists()


def test_a_base_that_changes_meanwhile_is_noticed(trained: dict[str, Path], tmp_path: Path) -> None:
    base, model, update = trained.values()
    raw = base.read_bytes()

    def spoil(*_: Any) -> None:
        base.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))

    for run in (
        lambda: api.pipeline(model, tmp_path / "o.safetensors", base=base, progress=spoil),
        lambda: api.restore(update, tmp_path / "o.safetensors", base=base, progress=spoil),
    ):
        base.write_bytes(raw)
        with pytest.raises(InputError, match="changed while it was read"):
            run()
        assert not (tmp_path / "o.safetensors").exists()


def test_the_command_line_does_it(trained: dict[str, Path], tmp_path: Path) -> None:
    base, model, update = trained.values()
    again = tmp_path / "again.safetensors"
    assert compressor("pipeline", model, "-o", again, "--base", base, "--workers", "1").code == 0
    assert again.read_bytes() == update.read_bytes()
    done = compressor("restore", again, "-o", tmp_path / "back.safetensors", "--base", base)
    assert (done.code, sha256(tmp_path / "back.safetensors")) == (0, sha256(model))
    assert compressor("compare", model, again, "--base", base, "--max-error", "0").code == 0
    assert compressor("inspect", again, "--coding", "--base", base).code == 0


# What was written once, of numbers that nothing but whole numbers goes into, and the SHA-256 of what comes back
GOLDEN = Path(__file__).parent / "data" / "update.safetensors"
BACK = "44c6b3f18d41ad9689faedbfda70a7ff819a8c6b51d1cb9cf260a155f8756458"


def whole_numbers(folder: Path, step: int) -> Path:
    """A file of several dtypes, and one that an update of it could be."""
    place = np.arange(6000, dtype=np.uint64)
    noise = (place * 2654435761 % 4294967296 >> 7) % 5000
    moved = noise + (noise % 7 == 0) * step * (place % 40)
    tensors = {
        "bf16": ("BF16", (0x3C00 + moved).astype("<u2").reshape(60, 100)),
        "f32": ("F32", (0x3D000000 + moved * 1000).astype("<u4").view("<f4").reshape(6, 1000)),
        "i64": ("I64", moved.astype("<i8")),
        "u8": ("U8", (moved % 256).astype("u1")),
        "same": ("F16", noise.astype("<u2").view("<f2")),
    }
    return archives.write(folder / f"step-{step}.safetensors", tensors, {"format": "pt"})


def test_what_was_written_once_is_written_and_read_today(tmp_path: Path) -> None:
    base, now = whole_numbers(tmp_path, 0), whole_numbers(tmp_path, 3)
    api.pipeline(now, tmp_path / "update.safetensors", base=base)
    assert (tmp_path / "update.safetensors").read_bytes() == GOLDEN.read_bytes()
    api.restore(GOLDEN, tmp_path / "back.safetensors", base=base)
    assert sha256(tmp_path / "back.safetensors") == sha256(now) == BACK


# ---- strangers' files ----------------------------------------------------------------------------------


def refused(folder: Path, raw: bytes, base: Path) -> str:
    bad = folder / "bad.safetensors"
    bad.write_bytes(raw)
    code, lines = invoke(["restore", str(bad), "-o", str(folder / "o.safetensors"), "--base", str(base), "-q"])
    shutil.rmtree(folder / "o.safetensors", ignore_errors=True)
    assert (code, is_one_line(lines)) == (3, True), lines
    assert not (folder / "o.safetensors").exists()
    return lines[0]


def rebuilt(good: bytes, change: Callable[[Any], None]) -> bytes:
    """The archive with another directory."""
    start = 8 + int.from_bytes(good[:8], "little")
    length = int.from_bytes(good[-8:-4], "little")
    said = json.loads(zlib.decompressobj(-15).decompress(good[-8 - length : -8]))
    change(said)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    text = deflater.compress(json.dumps(said).encode()) + deflater.flush()
    data = (
        good[start : -8 - length] + text + len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little")
    )
    header = json.loads(good[8:start])
    header["archive"] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    head = json.dumps(header).encode().ljust(start - 8)
    return len(head).to_bytes(8, "little") + head + data


def entry(**changes: Any) -> Callable[[Any], None]:
    places = {"dtype": 0, "shape": 1, "form": 2, "sizes": 3, "where": 4, "mark": 5}

    def change(said: Any) -> None:
        for key, value in changes.items():
            said["tensors"]["w"][places[key]] = value

    return change


LIES: dict[str, Callable[[Any], None]] = {
    "another form": entry(form="d32.8"),
    "no delta but a mark": entry(form="f16.8"),
    "a mark that is none": entry(mark=-1),
    "a mark of another base": entry(mark=7),
    "a huge tensor": entry(shape=[1 << 40, 1 << 20]),
    "sizes of nothing": entry(sizes=[]),
    "tensors that overlap": lambda said: said["tensors"]["b"].__setitem__(4, said["tensors"]["w"][4]),
    "no mark": lambda said: said["tensors"]["w"].pop(),
    "a mark too many": lambda said: said["tensors"]["w"].append(1),
    "no base": lambda said: said.pop("base"),
    "another base": lambda said: said.__setitem__("base", "0" * 64),
    "a base that is no text": lambda said: said.__setitem__("base", [1]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_directory_that_lies_is_refused(trained: dict[str, Path], tmp_path: Path, lie: str) -> None:
    good = trained["update"].read_bytes()
    same = rebuilt(good, lambda said: None)
    (tmp_path / "same.safetensors").write_bytes(same)
    api.restore(tmp_path / "same.safetensors", tmp_path / "back.safetensors", base=trained["base"])
    assert "damaged archive" in refused(tmp_path, rebuilt(good, LIES[lie]), trained["base"])


def test_damage_is_noticed(trained: dict[str, Path], tmp_path: Path) -> None:
    good = trained["update"].read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    chance = np.random.default_rng(3)
    for place in chance.integers(start, len(good), 12).tolist():
        refused(
            tmp_path, good[:place] + bytes([good[place] ^ 1 << int(place) % 8]) + good[place + 1 :], trained["base"]
        )
    for cut in (len(good) - 3, len(good) // 2, start + 1):
        refused(tmp_path, good[:cut], trained["base"])


def test_chunks_with_a_right_checksum_and_a_wrong_inside() -> None:
    base, now = (one.view(np.uint8) for one in updated(0.01, (20, 40)))
    good = coded(now, base, "BF16")
    chance = np.random.default_rng(4)
    for _ in range(80):
        bad = bytearray(good)
        for place in chance.integers(4, len(bad), 1 + int(chance.integers(0, 3))).tolist():
            bad[place] = int(chance.integers(0, 256))
        bad = bad[: int(chance.integers(4, len(bad) + 1))] if chance.random() < 0.3 else bad
        answers = []
        for library in (kernels.library(), None):
            with mock.patch.object(kernels, "library", return_value=library):
                try:
                    answers.append(decoded(bytes(bad), base, "BF16").tobytes())
                except Damaged:
                    answers.append(b"")
        assert answers[0] == answers[1]
        assert answers[0] in (b"", now.tobytes())
    with pytest.raises(Damaged):
        decoded(good, now, "BF16")


# ---- disks, kills, memory ------------------------------------------------------------------------------


@pytest.fixture(params=["pipeline", "restore"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A run with a base; its files count as the input's, by how their paths begin."""
    base = make_folder(tmp_path / "in-base")

    def make(path: Path) -> Path:
        if request.param == "pipeline":
            return make_folder(path)
        api.pipeline(base, path, base=base)
        return path

    monkeypatch.setitem(KINDS, "update", Kind(make, "in", "out", request.param, "--base", str(base)))
    return Stage(tmp_path, "update", False)


def test_every_call_fails_once(stage: Stage) -> None:
    outcomes = fail_every_call(stage, (errno.EIO,), lasting=False, every=5)
    assert {code for _, code in outcomes} >= {3, 4}


def test_kills_leave_nothing_or_all(stage: Stage) -> None:
    server = Server()
    try:
        for at in (3, 60, 90, 120, 150, 10_000):
            stage.set_up()
            run = server.run(stage.arguments(), die_at=at)
            assert (run.code, stage.state) in ((-9, "old"), (-9, "new"), (0, "new"))
    finally:
        server.close()
    assert stage.state == "new"
