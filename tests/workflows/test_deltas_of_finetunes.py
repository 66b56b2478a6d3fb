"""Fine-tunes as differences from their base: made, restored, compared, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import archives
from support.console import compressor
from support.fault_injection import invoke, is_one_line

from compressor import api
from compressor.core.errors import InputError, UsageError

BF16 = ml_dtypes.bfloat16


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """A base, and a fine-tune with a longer embedding, a tensor of its own and one that did not change."""
    random = np.random.default_rng(3)
    base = {f"layers.{one}.weight": random.standard_normal((24, 40)).astype(BF16) for one in range(3)}
    base |= {"norm.weight": np.ones(24, BF16), "embed.weight": random.standard_normal((10, 24)).astype(BF16)}
    tuned = {
        name: (array.astype("<f4") + 0.01 * random.standard_normal(array.shape).astype("<f4")).astype(BF16)
        for name, array in base.items()
    }
    tuned["layers.2.weight"] = base["layers.2.weight"]
    tuned["embed.weight"] = random.standard_normal((12, 24)).astype(BF16)
    tuned["head.weight"] = random.standard_normal((4, 24)).astype("<f4")
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in ("base", "tuned", "delta", "back")}


def bits_of(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(path).items()}


@pytest.mark.parametrize("bits", [1, 2])
def test_base_and_delta_are_the_model(models: dict[str, Path], bits: int) -> None:
    base, tuned, delta, back = models.values()
    report = api.distill(tuned, delta, method="delta", base=base, bits=bits)
    assert any(
        "the base has no floats of that name and shape" in why.reason
        for job in report.plan.jobs
        for why in job.left_alone
    )
    api.restore(delta, back, base=base)
    found, expected, under = load_file(back), load_file(tuned), load_file(base)
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
        name: (array.dtype, array.shape) for name, array in expected.items()
    }
    for name in ("norm.weight", "embed.weight", "head.weight", "layers.2.weight"):
        assert found[name].tobytes() == expected[name].tobytes(), name
    for name in ("layers.0.weight", "layers.1.weight"):
        after, wanted, before = (one[name].astype("<f4") for one in (found, expected, under))
        lost = np.linalg.norm(after - wanted) / np.linalg.norm(wanted - before)
        assert 0.2 < lost < {1: 0.7, 2: 0.45}[bits]
    # what was told of the run is what can be measured
    measured = api.compare(tuned, delta, base=base)
    assert measured.total.error == pytest.approx(api.compare(tuned, back).total.error, rel=1e-6)
    assert report.everything.error == pytest.approx(measured.total.error, rel=1e-6)


def test_sizes_are_those_of_the_plan(models: dict[str, Path]) -> None:
    base, tuned, delta, _ = models.values()
    dry = api.distill(tuned, delta, method="delta", base=base, dry_run=True)
    assert not delta.exists()
    done = api.distill(tuned, delta, method="delta", base=base)
    assert dry.plan.size_after == done.plan.size_after == delta.stat().st_size
    rows = {job.spec.name: job.size_after for job, _ in done.rows}
    assert rows == {"layers.0.weight": 24 * (5 + 2), "layers.1.weight": 24 * (5 + 2), "layers.2.weight": 1}


@pytest.mark.parametrize("bits", [0.7, 2.5])
def test_singular_vectors_come_back(models: dict[str, Path], bits: float) -> None:
    base, tuned, delta, back = models.values()
    dry = api.distill(tuned, delta, method="delta", base=base, form="mixed", bits=bits, dry_run=True)
    done = api.distill(tuned, delta, method="delta", base=base, form="mixed", bits=bits)
    assert dry.plan.size_after == done.plan.size_after == delta.stat().st_size
    assert any("without them the base's relative error is" in note for note in done.plan.notes)
    api.restore(delta, back, base=base)
    assert done.everything.error == pytest.approx(api.compare(tuned, back).total.error, rel=1e-6)


def test_forms_by_pattern_and_dense_output(models: dict[str, Path]) -> None:
    base, tuned, delta, back = models.values()
    rules = [("layers.0.*", {"form": "base"}), ("layers.1.*", {"bits": 2})]
    api.distill(tuned, delta, method="delta", base=base, rules=rules)
    api.restore(delta, back, base=base)
    assert bits_of(back)["layers.0.weight"] == bits_of(base)["layers.0.weight"]
    api.distill(tuned, delta, method="delta", base=base, rules=rules, store="dense", force=True)
    assert bits_of(delta) == bits_of(back)


def test_the_same_whoever_works(models: dict[str, Path]) -> None:
    base, tuned, delta, back = models.values()
    api.distill(tuned, delta, method="delta", base=base, workers=1)
    api.distill(tuned, back, method="delta", base=base, workers=3)
    assert delta.read_bytes() == back.read_bytes()
    stages = ["distill:method=delta,base=" + str(base)]
    api.pipeline(tuned, back, stages=stages, force=True)
    assert delta.read_bytes() == back.read_bytes()
    assert str(base.parent).encode() not in delta.read_bytes()


def test_a_base_in_other_files_is_the_same_base(models: dict[str, Path], tmp_path: Path) -> None:
    base, tuned, delta, back = models.values()
    api.distill(tuned, delta, method="delta", base=base)
    api.restore(delta, back, base=base)
    api.pipeline(base, tmp_path / "archived.safetensors", store="archive")
    folder = tmp_path / "folder"
    folder.mkdir()
    tensors = load_file(base)
    tensors["layers.1.weight"] = tensors["layers.1.weight"].astype("<f4")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for number, same in enumerate((tmp_path / "archived.safetensors", folder)):
        api.restore(delta, tmp_path / f"{number}.safetensors", base=same)
        assert bits_of(tmp_path / f"{number}.safetensors") == bits_of(back)


def test_a_folder_keeps_its_files_and_an_archive_of_it_is_read(models: dict[str, Path], tmp_path: Path) -> None:
    base, tuned, *_ = models.values()
    folder, delta = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    shutil.copy(tuned, folder / "model.safetensors")
    api.distill(folder, delta, method="delta", base=base)
    api.pipeline(delta, tmp_path / "small", store="archive")
    api.restore(tmp_path / "small", tmp_path / "again", base=base)
    api.restore(delta, tmp_path / "back", base=base)
    assert bits_of(tmp_path / "back" / "model.safetensors") == bits_of(tmp_path / "again" / "model.safetensors")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {"architectures": ["LlamaForCausalLM"]}


def test_parts_make_the_same(models: dict[str, Path], tmp_path: Path) -> None:
    base, tuned, delta, _ = models.values()
    api.distill(tuned, delta, method="delta", base=base)
    out = tmp_path / "parts.safetensors"
    for number in (1, 2):
        api.distill(tuned, out, method="delta", base=base, part=f"{number}/2")
    api.merge([Path(f"{out}.part-{number}-of-2") for number in (1, 2)], out)
    assert out.read_bytes() == delta.read_bytes()


def test_the_command_line_shows_it(models: dict[str, Path]) -> None:
    base, tuned, delta, back = models.values()
    done = compressor("distill", tuned, "-o", delta, "--method", "delta", "--base", base, "--format", "json")
    assert done.code == 0
    said = json.loads(done.out)
    assert said["size_after"] == delta.stat().st_size
    shown = compressor("inspect", delta)
    assert (shown.code, "coded against the base " in shown.out, "delta 1" in shown.out) == (0, True, True)
    assert compressor("inspect", delta, "--stats", "--base", base).code == 0
    assert compressor("restore", delta, "-o", back, "--base", base, "--dry-run").code == 0
    assert compressor("compare", tuned, delta, "--base", base, "--max-error", "0.02").code == 0
    assert compressor("distill", tuned, "-o", back, "--method", "delta", "--base", base, "--strict").code == 2
    shown = compressor("distill", tuned, "-o", back, "--method", "delta", "--base", base, "--show-recipe")
    assert f'base = "{base}"' in shown.out


def test_restoring_an_update_or_an_archive_says_nothing_of_codes(models: dict[str, Path], tmp_path: Path) -> None:
    base, tuned, _, back = models.values()
    api.pipeline(tuned, tmp_path / "update.safetensors", base=base)
    api.pipeline(tuned, tmp_path / "archive.safetensors", store="archive")
    for source, more in (("update", {"base": base}), ("archive", {})):
        report = api.restore(tmp_path / f"{source}.safetensors", back, force=True, **more)
        assert not any("no codes" in note for note in report.plan.notes)
    assert any("no codes" in note for note in api.restore(tuned, tmp_path / "o.safetensors").plan.notes)


def test_what_makes_no_sense_is_refused_before_anything_is_written(models: dict[str, Path], tmp_path: Path) -> None:
    base, tuned, delta, back = models.values()
    with pytest.raises(UsageError, match=r"needs a base.*Give base PATH|needs a base"):
        api.distill(tuned, delta, method="delta")
    with pytest.raises(UsageError, match="takes no teacher beside its base"):
        api.distill(tuned, delta, method="delta", base=base, teacher=base)
    with pytest.raises(UsageError, match="stats"):
        api.distill(tuned, delta, method="delta", base=base, stats=base)
    archives.write(tmp_path / "else.safetensors", {"c.weight": ("F32", np.ones((5, 4), "<f4"))})
    with pytest.raises(InputError, match="name and shape of any tensor"):
        api.distill(tuned, delta, method="delta", base=tmp_path / "else.safetensors")
    with pytest.raises(UsageError, match="is the input itself"):
        api.distill(tuned, base, method="delta", base=base, force=True)
    api.distill(tuned, delta, method="delta", base=base)
    for run, words in (
        (lambda: api.restore(delta, back), "is a difference from a base, which is not given"),
        (lambda: api.restore(delta, back, base=tuned), "is a difference from another base"),
        (lambda: api.restore(delta, back, base=tmp_path / "else.safetensors"), "has none of that name"),
        (lambda: api.restore(delta, back, base=delta), "is coded against a base itself"),
        (lambda: api.distill(tuned, back, method="delta", base=delta), "which is not given"),
        (lambda: api.quantize(delta, back, bits=8, requantize=True), "which is not given"),
    ):
        with pytest.raises(InputError, match=words):
            run()
        assert not back.exists()
    with pytest.raises(UsageError, match="not coded against a base"):
        api.restore(tuned, back, base=base)


def test_a_base_that_changes_meanwhile_is_noticed(models: dict[str, Path]) -> None:
    base, tuned, delta, back = models.values()
    api.distill(tuned, delta, method="delta", base=base)
    raw = base.read_bytes()

    def spoil(*_: Any) -> None:
        base.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))

    with pytest.raises(InputError, match="changed while it was read"):
        api.restore(delta, back, base=base, progress=spoil)
    assert not back.exists()


# ---- strangers' files ----------------------------------------------------------------------------------


def without(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, record: tensors.__delitem__(name)


def said(**more: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, record: record.update(more)


def reshaped(tensors: dict[str, Any], record: dict[str, Any]) -> None:
    tensors["layers.0.weight.signs"] = tensors["layers.0.weight.signs"][:, :4].copy()


def of_method(**more: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(tensors: dict[str, Any], record: dict[str, Any]) -> None:
        found = record["methods"][0] | more
        record["methods"][0] = {key: value for key, value in found.items() if value is not None}

    return change


def not_finite(tensors: dict[str, Any], record: dict[str, Any]) -> None:
    tensors["layers.0.weight.magnitudes"][0] = np.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("layers.0.weight.magnitudes"), "its part .magnitudes is missing"),
        (without("layers.2.weight.unchanged"), "its part .unchanged is missing"),
        (reshaped, "its part .signs is U8"),
        (said(base="0" * 64), "another base"),
        (said(base=5), "metadata cannot be used"),
        (said(tensors={"layers.0.weight": ["BF16", [24, 41], 0]}), "belongs"),
        (of_method(bits=3), "metadata cannot be used"),
        (of_method(form="auto"), "metadata cannot be used"),
        (of_method(form="mixed", bits=None, ranks="9,9,9"), "metadata cannot be used"),
        (of_method(form="mixed", bits=None, ranks="1,1,1,1"), "is missing"),
        (not_finite, "NaN or infinite values"),
    ],
)
def test_damaged_deltas_are_refused(
    models: dict[str, Path], change: Callable[[dict[str, Any], dict[str, Any]], None], words: str
) -> None:
    base, tuned, delta, back = models.values()
    api.distill(tuned, delta, method="delta", base=base)
    raw = delta.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    tensors, record = load_file(delta), json.loads(header["__metadata__"]["compressor"])
    change(tensors, record)
    save_file(tensors, delta, {**header["__metadata__"], "compressor": json.dumps(record)})
    code, lines = invoke(["restore", str(delta), "-o", str(back), "--base", str(base), "-q"])
    assert (code, is_one_line(lines), words in lines[0]) == (3, True, True), lines
    assert not back.exists()


def test_a_cut_delta_is_refused(models: dict[str, Path]) -> None:
    base, tuned, delta, back = models.values()
    api.distill(tuned, delta, method="delta", base=base)
    delta.write_bytes(delta.read_bytes()[:-3])
    code, lines = invoke(["restore", str(delta), "-o", str(back), "--base", str(base), "-q"])
    assert (code, is_one_line(lines)) == (3, True), lines
    assert not back.exists()
