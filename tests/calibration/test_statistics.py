"""Statistics of layer inputs: merging is what all samples would give; files come back, and hostile ones do not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file
from support import archives
from support.console import LLAMA, TEACHER

from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.statistics import merge_statistics, open_statistics, write_statistics
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core import layer_inputs as inputs
from compressor.core.errors import InputError, OutputError, UsageError
from compressor.core.layer_inputs import Gather, Layer
from compressor.core.tensor_names import layer_of

Array = npt.NDArray[Any]
MODEL, WEIGHTS = "ab" * 32, "cd" * 32


def gathered(rows: Array, *, gram: bool = True, pieces: int = 1, name: str = "a") -> Layer:
    gather = Gather(rows.shape[-1], gram, name)
    for piece in np.array_split(rows, pieces):
        gather.add(piece)
    return gather.layer


def exact(rows: Array) -> Layer:
    wide = rows.astype(np.float64)
    return Layer(len(rows), wide.mean(axis=0), (wide**2).mean(axis=0), wide.T @ wide / len(rows))


def close(one: Layer, other: Layer) -> bool:
    """Equal but for the rounding of float32 products."""
    assert one.gram is not None
    assert other.gram is not None
    root = np.sqrt(np.outer(other.square, other.square)) + 1e-300
    return (
        one.count == other.count
        and np.allclose(one.mean, other.mean, rtol=1e-9, atol=1e-9 * np.sqrt(other.square.max() + 1e-300))
        and np.allclose(one.square, other.square, rtol=1e-9)
        and bool((np.abs(one.gram - other.gram) <= 2e-6 * root).all())
        and np.array_equal(one.gram, one.gram.T)
    )


def sample(data: st.DataObject) -> Array:
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = data.draw(st.integers(1, 1300)), data.draw(st.integers(1, 9))
    scale = data.draw(st.sampled_from([1e-12, 1.0, 1e12]))
    return ((draw.standard_normal(shape) + draw.standard_normal(shape[1])) * scale).astype(np.float32)


@given(data=st.data())
@settings(max_examples=40)
def test_merging_gives_what_all_samples_give(data: st.DataObject) -> None:
    rows = sample(data)
    at = data.draw(st.integers(0, len(rows)))
    whole = gathered(rows)
    assert close(whole, exact(rows))
    assert close(gathered(rows[:at]).merge(gathered(rows[at:])), exact(rows))


@given(data=st.data())
@settings(max_examples=30)
def test_portions_do_not_matter(data: st.DataObject) -> None:
    """To the last bit of the gram; means are sums of the same blocks."""
    rows = sample(data)
    one, other = gathered(rows), gathered(rows, pieces=data.draw(st.integers(1, 700)))
    for part in ("mean", "square", "gram"):
        assert getattr(one, part).tobytes() == getattr(other, part).tobytes()


def test_panels_of_a_wide_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PANEL", 7)
    rows = np.random.default_rng(3).standard_normal((600, 37)).astype(np.float32)
    found = gathered(rows)
    assert close(found, exact(rows))
    assert close(gathered(rows[:99]).merge(gathered(rows[99:])), exact(rows))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int8])
def test_rows_of_any_type_and_leading_axes(kind: Any) -> None:
    rows = np.random.default_rng(0).integers(-9, 9, (3, 40, 5)).astype(kind)
    gather = Gather(5, True)
    gather.add(rows)
    before = gather.layer
    gather.add(rows[:0])
    assert close(gather.layer, exact(rows.reshape(-1, 5)))
    assert close(before, exact(rows.reshape(-1, 5)))


def test_products_beyond_float32_are_taken_in_float64() -> None:
    rows = np.full((3, 2), 3e19, np.float32)
    found = gathered(rows)
    assert close(found, exact(rows))


@pytest.mark.parametrize(("value", "count"), [(np.nan, 1), (np.inf, 2), (1e300, 1)])
def test_inputs_that_are_no_numbers(value: float, count: int) -> None:
    gather = Gather(4, name="model.layers.0.mlp.down_proj")
    rows = np.ones((5, 4))
    rows[1:3, 2].reshape(-1)[:count] = value
    with pytest.raises(InputError) as caught:
        gather.add(rows)
    assert caught.value.tensor == "model.layers.0.mlp.down_proj"
    assert f"hold {count} NaN or infinite value{'s' if count > 1 else ''}" in str(caught.value)
    with pytest.raises(InputError, match=r"shape \[3, 5\] were given, where \[.., 4\] belongs"):
        gather.add(np.ones((3, 5)))


def test_what_cannot_be_merged() -> None:
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="of 3 and of 2 features"):
        gathered(rows).merge(gathered(rows[:, :2]))
    with pytest.raises(InputError, match="with a gram and without"):
        gathered(rows).merge(gathered(rows, gram=False))
    empty = Gather(3, True).layer
    assert (empty.count, empty.mean.tolist()) == (0, [0, 0, 0])
    assert empty.merge(empty).count == 0
    assert close(empty.merge(gathered(rows)), exact(rows))


@pytest.mark.parametrize(
    ("tensor", "layer"), [("a.b.weight", "a.b"), ("weight", "weight"), ("a.weight.x", "a.weight.x")]
)
def test_layers_are_named_after_their_weights(tensor: str, layer: str) -> None:
    assert layer_of(tensor) == layer


# ---- files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layers() -> dict[str, Layer]:
    draw = np.random.default_rng(1)
    rows = [draw.standard_normal((40, width)).astype(np.float32) for width in (6, 3, 4)]
    grams = (True, False, True)
    return {
        name: gathered(r, gram=g, name=name) for name, r, g in zip(("fc.1", "fc.2", "a"), rows, grams, strict=True)
    }


@pytest.fixture
def good(tmp_path: Path, layers: dict[str, Layer]) -> Path:
    path = tmp_path / "stats.safetensors"
    write_statistics(path, layers.items(), model=MODEL, weights=WEIGHTS, source="40 rows")
    return path


def test_files_come_back(good: Path, layers: dict[str, Layer]) -> None:
    found = open_statistics(good)
    assert found.layers == ("a", "fc.1", "fc.2")
    assert dict(found.widths) == {"fc.1": 6, "fc.2": 3, "a": 4}
    assert set(found.counts.values()) == {40}
    assert (found.model, found.weights, found.source) == (MODEL, WEIGHTS, "40 rows")
    for name, layer in layers.items():
        read = found.read(name, gram=name in found.grams)
        assert read.mean.dtype == read.square.dtype == np.float64
        for part in ("mean", "square", "gram"):
            content = getattr(layer, part)
            if content is not None:
                assert np.array_equal(getattr(read, part), content.astype(np.float32))
        assert found.read(name).gram is None
    with pytest.raises(InputError, match=r"stats.safetensors: tensor 'fc.2': has no gram"):
        found.read("fc.2", gram=True)
    shapes = {name: (array.dtype.str, array.shape) for name, array in load_file(good).items()}
    assert shapes["fc.1.count"] == ("<i8", (1,))
    assert shapes["fc.1.gram"] == ("<f4", (6, 6))


def test_the_same_layers_give_the_same_bytes(good: Path, layers: dict[str, Layer], tmp_path: Path) -> None:
    declared = {name: (layer.width, layer.gram is not None) for name, layer in reversed(layers.items())}
    other = tmp_path / "other.safetensors"
    turned = reversed(list(layers.items()))
    write_statistics(other, turned, model=MODEL, weights=WEIGHTS, source="40 rows", declared=declared)
    assert other.read_bytes() == good.read_bytes()
    assert open_statistics(other).identity() == open_statistics(good).identity()
    write_statistics(tmp_path / "b", [("a", layers["a"])], model=MODEL)
    assert open_statistics(tmp_path / "b").identity() != open_statistics(good).identity()


def test_a_file_is_whole_or_absent(good: Path, layers: dict[str, Layer], tmp_path: Path) -> None:
    place = tmp_path / "new.safetensors"
    items = list(layers.items())
    declared = {name: (layer.width, layer.gram is not None) for name, layer in items}

    def interrupted() -> Any:
        yield items[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_statistics(place, interrupted(), declared=declared)
    for given_, said in (
        (items[:2], "did not come"),
        ([*items, items[0]], "comes twice"),
        ([("b", items[0][1])], "not"),
    ):
        with pytest.raises(UsageError, match=said):
            write_statistics(place, given_, declared=declared)
    huge = {"a": Layer(1, np.ones(2), np.full(2, 1e39))}
    with pytest.raises(InputError, match="tensor 'a': its inputs' squares are beyond float32"):
        write_statistics(place, huge.items())
    with pytest.raises(OutputError):
        write_statistics(good, items)
    write_statistics(good, items[:1], force=True)
    assert len(open_statistics(good).layers) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stats.safetensors"]


@given(data=st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_merged_files_are_those_of_all_samples(tmp_path: Path, data: st.DataObject) -> None:
    rows = sample(data)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=3)))
    paths = []
    for number, part in enumerate(np.split(rows, cuts)):
        layers = {"a": gathered(part), f"only.{number}": gathered(rows, gram=False)}
        paths.append(tmp_path / f"{number}")
        write_statistics(paths[-1], layers.items(), model=MODEL, source=f"part {number % 2}", force=True)
    merge_statistics(paths, tmp_path / "all", force=True)
    found = open_statistics(tmp_path / "all")
    assert found.source == "part 0; part 1"
    assert len(found.layers) == len(paths) + 1
    whole, wanted = found.read("a", gram=True), exact(rows)
    assert whole.count == len(rows)
    for part in ("square", "mean", "gram"):
        root = np.sqrt(np.outer(wanted.square, wanted.square) if part == "gram" else wanted.square)
        root = wanted.square if part == "square" else root
        assert (np.abs(getattr(whole, part) - getattr(wanted, part)) <= 3e-6 * root + 1e-45).all()


def test_files_that_cannot_be_merged(good: Path, layers: dict[str, Layer], tmp_path: Path) -> None:
    other = tmp_path / "other"

    def refused(**said: Any) -> str:
        kept = said.pop("layers", layers)
        write_statistics(other, kept.items(), **{"model": MODEL, "weights": WEIGHTS, **said}, force=True)
        with pytest.raises(InputError) as caught:
            merge_statistics([good, other], tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "was taken from another model than" in refused(model="")
    assert "was taken from other weights than" in refused(weights="")
    narrow = {"a": gathered(np.ones((2, 3), np.float32))}
    assert "tensor 'a': has 3 inputs with a gram, and another file 4 inputs with a gram" in refused(layers=narrow)
    plain = {"a": gathered(np.ones((2, 4), np.float32), gram=False)}
    assert "tensor 'a': has 4 inputs without a gram, and another file 4 inputs with a gram" in refused(layers=plain)
    with pytest.raises(UsageError, match="no statistics to merge"):
        merge_statistics([], tmp_path / "out")
    with pytest.raises(UsageError, match="is the input itself"):
        merge_statistics([good], good, force=True)


def changed(good: Path, **tensors: Any) -> Path:
    """The good file with tensors of `a` in another form, or (None) without them."""
    found = {
        name: (dtype, np.frombuffer(data, {"I64": "<i8", "F32": "<f4"}[dtype]).reshape(shape))
        for name, (dtype, shape, data) in archives.read(good).items()
    }
    for name, array in tensors.items():
        full = name if "." in name else f"a.{name}"
        found.pop(full, None)
        if array is not None:
            found[full] = (
                {"i8": "I64", "f4": "F32", "f8": "F64"}[np.asarray(array).dtype.str[1:]],
                np.asarray(array),
            )
    return archives.write(good.with_name("bad"), found, archives.metadata_of(good))


F4 = np.float32
HEADERS: dict[str, dict[str, Any]] = {
    "lacks its mean": {"mean": None},
    "is missing, where F32 [4] belongs": {"square": None},
    "is missing, where I64 [1] belongs": {"count": None},
    "is F64 [4], where F32 [4] belongs": {"square": np.ones(4)},
    "is F32 [3], where F32 [4] belongs": {"square": np.ones(3, F4)},
    "is F32 [1], where I64 [1] belongs": {"count": np.ones(1, F4)},
    "is I64 [2], where I64 [1] belongs": {"count": np.ones(2, np.int64)},
    "is F32 [4, 3], where F32 [4, 4] belongs": {"gram": np.ones((4, 3), F4)},
    "is F32 [2, 2], where F32 [4] belongs": {"mean": np.ones((2, 2), F4)},
    "a layer lacks its mean": {"mean": np.ones((0, 4), F4)},
    "is no part of statistics": {"a.bias": np.ones(4, F4)},
    "its count is negative": {"count": np.array([-1])},
    "tensor '.mean': a layer lacks its mean": {".x": np.ones(1, F4)},
}
SKEW = np.eye(4, dtype=F4)
SKEW[1, 3] = 0.5
VALUES: dict[str, dict[str, Any]] = {
    "its mean holds NaN or infinite": {"mean": np.array([1, np.nan, 1, 1], F4)},
    "its square holds NaN or infinite": {"square": np.array([1, np.inf, 1, 1], F4)},
    "its gram holds NaN or infinite": {"gram": np.full((4, 4), np.nan, F4)},
    "its mean square is negative": {"square": np.array([1, -1, 1, 1], F4)},
    "its gram is not symmetric": {"gram": SKEW, "square": np.ones(4, F4)},
    "the diagonal of its gram is not its mean square": {"gram": SKEW * 2, "square": np.ones(4, F4)},
}


@pytest.mark.parametrize("reason", HEADERS)
def test_headers_that_contradict_themselves(good: Path, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        open_statistics(changed(good, **HEADERS[reason]))
    assert reason in str(caught.value)


@pytest.mark.parametrize("reason", VALUES)
def test_values_that_cannot_be(good: Path, reason: str) -> None:
    found = open_statistics(changed(good, **VALUES[reason]))
    with pytest.raises(InputError) as caught:
        found.read("a", gram=True)
    assert reason in str(caught.value)
    assert caught.value.tensor == "a"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"format": "pt"}, "is no file of statistics"),
        ({"version": "2"}, "has version '2', not 1"),
        ({"version": "\x1b[2J"}, r"has version '\\x1b[2J', not 1"),
        ({"model": "x"}, "its model is no SHA-256"),
        ({"weights": "A" * 64}, "its weights is no SHA-256"),
    ],
)
def test_metadata_that_says_something_else(good: Path, said: dict[str, str], reason: str) -> None:
    found = archives.read(good)
    tensors = {
        n: (d, np.frombuffer(b, {"I64": "<i8", "F32": "<f4"}[d]).reshape(s)) for n, (d, s, b) in found.items()
    }
    bad = archives.write(good.with_name("bad"), tensors, {**archives.metadata_of(good), **said})
    with pytest.raises(InputError) as caught:
        open_statistics(bad)
    assert reason.replace("\\\\", "\\") in str(caught.value)


def test_other_files_are_refused(good: Path, tmp_path: Path) -> None:
    empty = archives.write(tmp_path / "empty", {}, archives.metadata_of(good))
    for path in (empty, TEACHER, LLAMA, tmp_path / "missing", tmp_path):
        with pytest.raises(InputError):
            open_statistics(path)
    whole = good.read_bytes()
    found = open_statistics(good)
    good.write_bytes(whole[:-8])
    with pytest.raises(InputError, match="changed while it was read"):
        found.read("a")
    with pytest.raises(InputError, match="truncated"):
        open_statistics(good)


def test_mutated_files_are_read_or_refused(good: Path) -> None:
    """Bits flipped, bytes cut out, put in and doubled: an answer or a refusal, and nothing else."""
    whole, refused = good.read_bytes(), 0
    for seed in range(300):
        chance = random.Random(seed)
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at, size = chance.randrange(len(content)), chance.randint(1, 9)
            change = chance.choice(["flip", "cut", "double", "digit"])
            if change == "flip":
                content[at] ^= 1 << chance.randrange(8)
            elif change == "cut":
                del content[at : at + size]
            elif change == "double":
                content[at:at] = content[at : at + size]
            else:
                content[at] = chance.choice(b"0123456789")
        good.write_bytes(content)
        try:
            found = open_statistics(good)
            assert len(found.identity()) == 64
            for layer in found.layers:
                read = found.read(layer, gram=layer in found.grams)
                assert read.count >= 0
                assert np.isfinite(read.square).all()
        except InputError as error:
            refused += error.file == str(good)
    assert 100 < refused < 300


# ---- fingerprints ----------------------------------------------------------------------------------------------


def test_fingerprints_tell_models_and_weights_apart(tmp_path: Path) -> None:
    import compressor

    model, weights = fingerprint(open_checkpoint(TEACHER))
    assert fingerprint(open_checkpoint(TEACHER)) == (model, weights)
    compressor.prune(TEACHER, tmp_path / "pruned.safetensors", sparsity=0.5)
    assert fingerprint(open_checkpoint(tmp_path / "pruned.safetensors"))[0] == model
    assert fingerprint(open_checkpoint(tmp_path / "pruned.safetensors"))[1] != weights
    compressor.quantize(TEACHER, tmp_path / "codes.safetensors", bits=8)
    assert fingerprint(open_checkpoint(tmp_path / "codes.safetensors"))[0] == model
    compressor.prune(TEACHER, tmp_path / "sparse.safetensors", sparsity=0.0, store="bitmask")
    assert fingerprint(open_checkpoint(tmp_path / "sparse.safetensors")) == (model, weights)
    compressor.prune(TEACHER, tmp_path / "cut.safetensors", structure="neurons", fraction=0.25)
    assert fingerprint(open_checkpoint(tmp_path / "cut.safetensors"))[0] != model
    assert fingerprint(open_checkpoint(LLAMA))[0] != model
