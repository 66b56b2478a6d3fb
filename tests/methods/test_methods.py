"""The founding document's checks, through the methods and through the command line; exactness of pruning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from support import archives
from support.console import TEACHER, compressor
from support.laws import FLOATS, Array, combinations, edges, largest, numbers, run, smallest, store

from compressor import api
from compressor.core.errors import InputError, UsageError
from compressor.core.metrics import Change
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.engine.execution import cut as cutting
from compressor.engine.execution import joined, units
from compressor.methods.contract import ByTensor, Encoder, Method, Survey, TensorMethod, Transform
from compressor.methods.numerics import smallest_keys
from compressor.methods.options import describe, options_of
from compressor.methods.prune import magnitude
from compressor.methods.registry import methods_of

SQUARE = [[1.0, 2.0], [3.0, 4.0]]


def made(verb: str, name: str, **options: object) -> Method:
    return methods_of(verb)[name](**options)


def treat(method: Method, values: npt.ArrayLike, dtype: str = "F32", teacher: npt.ArrayLike | None = None) -> Array:
    """The numbers that a method makes of an array."""
    raw = store(values, dtype)
    beside = None if teacher is None else numbers(store(teacher, dtype), dtype)
    return run(method, TensorSpec("w", dtype, raw.shape), raw, teacher=beside).restored.reshape(raw.shape)


def on_files(
    folder: Path, verb: str, values: npt.ArrayLike, *args: object, to: str = "out.npy", dtype: str = "F32"
) -> Mapping[str, Array] | Array:
    """What the command line makes of an `.npy`; a teacher is called `teacher.npy`."""
    np.save(folder / "in.npy", store(values, dtype))
    done = compressor(verb, folder / "in.npy", "-o", folder / to, *args)
    assert done.code == 0, done.err
    found: Array = np.load(folder / to)
    return found


# ---- pruning by a threshold ----------------------------------------------------------------------------

THRESHOLDS = [(0.5, SQUARE), (2.5, [[0, 0], [3, 4]]), (2, [[0, 2], [3, 4]])]


@pytest.mark.parametrize(("threshold", "expected"), THRESHOLDS)
def test_threshold(threshold: float, expected: npt.ArrayLike, tmp_path: Path) -> None:
    for dtype in FLOATS:
        np.testing.assert_array_equal(
            treat(made("prune", "threshold", threshold=threshold), SQUARE, dtype), expected
        )
    found = on_files(tmp_path, "prune", SQUARE, "--method", "threshold", "--threshold", threshold)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_threshold_is_strict_whatever_the_type_rounds_it_to(dtype: str) -> None:
    """0.1 is no float of any of these types: the weights on both sides of it must fall to the right side."""
    near = numbers(store(0.1, dtype), dtype)
    step = float(np.spacing(near)) if dtype in ("F64", "F32") else float(near) * 2.0**-7
    weights = numbers(store([near - step, near, near + step], dtype), dtype).astype(np.float64)
    found = treat(made("prune", "threshold", threshold=0.1), [weights], dtype)[0]
    np.testing.assert_array_equal(found != 0, np.abs(weights) >= 0.1)


def test_threshold_of_nothing_and_of_everything() -> None:
    weights = [[-0.0, 0.0, 1e-45, -3e38]]
    np.testing.assert_array_equal(treat(made("prune", "threshold", threshold=0.0), weights), np.float32(weights))
    assert not treat(made("prune", "threshold", threshold=1e300), weights).any()


def test_what_is_pruned_becomes_positive_zero() -> None:
    found = treat(made("prune", "threshold", threshold=1.0), [[-0.5, -0.0, 0.5]])
    assert found.tobytes() == bytes(12)


# ---- pruning by magnitude ------------------------------------------------------------------------------


def sorted_out(weights: Mapping[str, Array], sparsity: float) -> dict[str, Array]:
    """The k smallest magnitudes zeroed by a full stable sort over (name, row, column)."""
    names = sorted(weights)
    flat = np.concatenate([weights[name].reshape(-1).astype(np.float64) for name in names])
    flat[np.argsort(np.abs(flat), kind="stable")[: round(sparsity * flat.size)]] = 0
    ends = np.cumsum([weights[name].size for name in names])
    pieces = np.split(flat, ends[:-1])
    return {name: piece.reshape(weights[name].shape) for name, piece in zip(names, pieces, strict=True)}


TENSORS = st.lists(
    st.tuples(
        st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E5M2"]),
        st.integers(1, 12),
        st.integers(1, 12),
        st.sampled_from(["few", "many", "one", "bits"]),
    ),
    min_size=1,
    max_size=4,
)


def weights_of(kind: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    if kind == "few":  # ties everywhere, zeros of both signs
        return random.integers(-2, 3, shape) * np.float64(0.25) * random.choice([-1.0, 1.0], shape)
    if kind == "one":
        return np.full(shape, -0.5)
    found = random.standard_normal(shape)
    return found if kind == "many" else np.ldexp(found, random.integers(-40, 10, shape))


@given(
    tensors=TENSORS,
    seed=st.integers(0, 2**32),
    sparsity=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, 0.9])),
    scope=st.sampled_from(["tensor", "global"]),
    block=st.sampled_from([4, 16, 1 << 18]),
    workers=st.sampled_from([1, 2]),
    quantized=st.booleans(),
    many=st.sampled_from([1, 1 << 24]),
    few=st.sampled_from([0, 1 << 12]),
)
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_magnitude_is_exactly_a_stable_sort(
    tensors: list[tuple[str, int, int, str]],
    seed: int,
    sparsity: float,
    scope: str,
    block: int,
    workers: int,
    quantized: bool,
    many: int,
    few: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Over one tensor and over many, with ties, in mixed dtypes, cut into many chunks and blocks."""
    folder, random = tmp_path_factory.mktemp("sort"), np.random.default_rng(seed)
    stored = {
        f"t{number}": (dtype, store(weights_of(kind, (rows, columns), random), dtype))
        for number, (dtype, rows, columns, kind) in enumerate(tensors)
    }
    archives.write(folder / "in.safetensors", stored)
    # a dense quantization after it makes the engine cut by whole rows instead of anywhere
    stages = [f"prune:sparsity={sparsity!r},scope={scope}"]
    stages += ["quantize:factor=4,store=dense,include=no such tensor"] * quantized
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "BLOCK", block)
        patch.setattr(joined, "BLOCK", block)
        patch.setattr(cutting, "CHUNK", 2 * block)
        patch.setattr(units, "BATCH", 1 << 19 if block > magnitude.SMALL and few else 8)  # joined, or not
        if block < magnitude.SMALL:  # then no tensor is sure to be a single block
            patch.setattr(magnitude, "SMALL", 0)
        patch.setattr(smallest_keys, "_FEW", few)
        patch.setattr(smallest_keys, "_MANY", many)  # with 1 a sample is looked at first, which often misleads
        api.pipeline(
            folder / "in.safetensors",
            folder / "out.safetensors",
            stages=stages,
            workers=workers,
            allow_unmatched=True,
        )
    before = {name: numbers(raw, dtype) for name, (dtype, raw) in stored.items()}
    expected = sorted_out(before, sparsity)
    if scope == "tensor":
        expected = {name: sorted_out({name: weights}, sparsity)[name] for name, weights in before.items()}
    for name, (dtype, shape, data) in archives.read(folder / "out.safetensors").items():
        raw = np.frombuffer(data, DTYPES[dtype].storage).reshape(shape)
        np.testing.assert_array_equal(numbers(raw, dtype), expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", FLOATS)
def test_magnitude_on_edge_arrays(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, raw in edges(dtype).items():
        for sparsity in (0.0, 0.4, 0.99):
            spec = TensorSpec("w", dtype, raw.shape)
            for size in (1 << 30, 2):
                monkeypatch.setattr(magnitude, "SMALL", 1 << 17 if size > 2 else 0)
                found = run(made("prune", "magnitude", sparsity=sparsity), spec, raw, size=size).restored
                expected = sorted_out({"w": numbers(raw, dtype)}, sparsity)["w"]
                np.testing.assert_array_equal(found.reshape(raw.shape), expected, err_msg=f"{name} {sparsity}")


def test_magnitude_counts_zeros_that_were_there(tmp_path: Path) -> None:
    weights = np.zeros((10, 10))
    weights[0] = np.arange(1, 11)
    found = on_files(tmp_path, "prune", weights, "--sparsity", "0.95")
    assert np.count_nonzero(found) == 5


@pytest.mark.parametrize("name", dict(combinations()))
def test_what_has_to_look_at_tensors_first_treats_none_before(name: str) -> None:
    """A method that could be asked to treat what it has not looked at would have nothing to answer."""
    method = dict(combinations())[name]
    specs = [TensorSpec("a.weight", "F32", (16, 32))]
    assert isinstance(method, TensorMethod)
    if isinstance(method.prepare(specs), Survey):
        assert not isinstance(method, Transform | Encoder)
    else:
        assert isinstance(method.prepare(specs), Transform | Encoder | ByTensor)


def test_global_pruning_with_rules_counts_each_sparsity_on_its_own(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    stored = {name: ("F32", store(random.standard_normal((8, 8)), "F32")) for name in ("a", "b", "c")}
    archives.write(tmp_path / "in.safetensors", stored)
    api.prune(
        tmp_path / "in.safetensors",
        tmp_path / "out.safetensors",
        sparsity=0.5,
        scope="global",
        rules=[("b", {"sparsity": 0.25})],
    )
    found = {
        name: np.frombuffer(data, "<f4").reshape(shape)
        for name, (_, shape, data) in archives.read(tmp_path / "out.safetensors").items()
    }
    assert np.count_nonzero(found["b"]) == 48
    assert np.count_nonzero(found["a"]) + np.count_nonzero(found["c"]) == 64


# ---- distillation --------------------------------------------------------------------------------------


def test_reweight(tmp_path: Path) -> None:
    expected = [[1 / 3, 4 / 3], [9 / 7, 16 / 7]]
    np.testing.assert_allclose(treat(made("distill", "reweight"), SQUARE, "F64", SQUARE), expected, rtol=1e-15)
    np.save(tmp_path / "teacher.npy", np.float64(SQUARE))
    found = on_files(
        tmp_path, "distill", SQUARE, "--method", "reweight", "--teacher", tmp_path / "teacher.npy", dtype="F64"
    )
    np.testing.assert_allclose(found, expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        ([[1, 2], [0, 0]], "row 1 sums to zero"),
        ([[1, 2], [3, -3]], "row 1 sums to zero"),
        ([[1, 2], [1e308, 1e308]], "the sum of the teacher's row 1 leaves the range"),
        ([[1, 2], [1e10, 1e-6 - 1e10]], "row 1 leaves the range of floats when weighted"),
    ],
)
def test_reweight_has_no_answer_for_some_rows(teacher: npt.ArrayLike, reason: str) -> None:
    student = [[1.0, 2.0], [1e308, 4.0]]
    with pytest.raises(InputError, match=reason) as caught:
        treat(made("distill", "reweight"), student, "F64", teacher)
    assert caught.value.tensor == "w"
    assert "--method blend" in caught.value.remedy


@pytest.mark.parametrize(("alpha", "expected"), [(0, SQUARE), (1, [[5, 5], [5, 5]]), (0.5, [[3, 3.5], [4, 4.5]])])
def test_blend(alpha: float, expected: npt.ArrayLike, tmp_path: Path) -> None:
    teacher = np.full((2, 2), 5.0)
    np.testing.assert_array_equal(treat(made("distill", "blend", alpha=alpha), SQUARE, teacher=teacher), expected)
    np.save(tmp_path / "teacher.npy", teacher)
    found = on_files(tmp_path, "distill", SQUARE, "--alpha", alpha, "--teacher", tmp_path / "teacher.npy")
    np.testing.assert_array_equal(found, expected)


@given(
    st.floats(0, 1),
    st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False, width=32)] * 2), min_size=1, max_size=8),
)
def test_blend_lies_between_student_and_teacher(alpha: float, pairs: list[tuple[float, float]]) -> None:
    student, teacher = np.float32(pairs).T[:, None, :]
    found = treat(made("distill", "blend", alpha=alpha), student, teacher=teacher)
    assert np.all(found >= np.minimum(student, teacher))
    assert np.all(found <= np.maximum(student, teacher))


def test_a_teacher_beyond_the_students_range_is_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "teacher.npy", np.full((2, 2), 1e300))
    np.save(tmp_path / "in.npy", np.float32(SQUARE))
    with pytest.raises(InputError, match="range of F32") as caught:
        api.distill(tmp_path / "in.npy", tmp_path / "out.npy", teacher=tmp_path / "teacher.npy", alpha=0.5)
    assert caught.value.tensor == "weight"
    assert not (tmp_path / "out.npy").exists()


# ---- the document's two quantizations ------------------------------------------------------------------


def test_step(tmp_path: Path) -> None:
    found = on_files(
        tmp_path, "quantize", SQUARE, "--scheme", "step", "--bits", 3, "--store", "codes", to="out.npz"
    )
    np.testing.assert_array_equal(found["codes"], [[0, 0], [1, 1]])
    assert found["step"] == 4
    back = on_files(tmp_path, "quantize", SQUARE, "--scheme", "step", "--bits", 3)
    np.testing.assert_array_equal(back, [[0, 0], [4, 4]])


def test_factor(tmp_path: Path) -> None:
    weights = [[0.11, -0.26]]
    found = on_files(tmp_path, "quantize", weights, "--factor", 10, "--store", "codes", to="out.npz")
    np.testing.assert_array_equal(found["codes"], [[1, -3]])
    assert found["factor"] == 10
    back = on_files(tmp_path, "quantize", weights, "--factor", 10)
    np.testing.assert_array_equal(back, np.float32([[0.1, -0.3]]))


def test_halves_round_to_even() -> None:
    halves = [[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]]
    np.testing.assert_array_equal(treat(made("quantize", "factor", factor=1), halves), [[0, 2, 2, 0, -2, -2]])
    np.testing.assert_array_equal(
        treat(made("quantize", "step", bits=2), np.multiply(halves, 2)), [[0, 4, 4, 0, -4, -4]]
    )


@pytest.mark.parametrize(("code_bits", "fits", "bursts"), [(8, 127.4, 127.6), (16, 32767.4, -32767.6)])
def test_codes_that_do_not_fit_are_refused(code_bits: int, fits: float, bursts: float) -> None:
    method = made("quantize", "factor", factor=1, code_bits=code_bits)
    assert treat(method, [[fits, -fits]]).tolist() == [[int(fits), -int(fits)]]
    with pytest.raises(InputError, match=f"more than {code_bits} bits hold"):
        treat(method, [[0.0, bursts]])


@pytest.mark.parametrize(("name", "options"), [("factor", {"factor": 1}), ("step", {"bits": 4})])
def test_a_warning_when_most_weights_become_zero(name: str, options: dict[str, int], tmp_path: Path) -> None:
    report = api.quantize(TEACHER, tmp_path / "out.safetensors", scheme=name, **options)
    (warning,) = report.warnings
    assert "fc1.weight and 2 more: " in warning
    assert "became zero" in warning
    assert "--scheme int" in warning
    done = compressor("quantize", TEACHER, "-o", tmp_path / "o.safetensors", "--scheme", name, "--factor", 4096)
    assert done.code == (2 if name == "step" else 0)
    assert "warning" not in done.err


def test_no_warning_for_weights_that_were_zero_before() -> None:
    method = made("quantize", "factor", factor=10)
    assert method.warning(Change(size=100, zeros_before=90, zeros_after=94)) is None
    assert method.warning(Change(size=100, zeros_before=90, zeros_after=96)) is not None
    assert made("quantize", "int").warning(Change(size=100, zeros_after=100)) is None


# ---- scaled integers -----------------------------------------------------------------------------------


def test_symmetric_scale_is_that_of_compressed_tensors() -> None:
    """max|w| / ((2^b − 1)/2): 7.5 for 4 bits, so the largest weight has code 7 and no code is wasted."""
    outcome = run(
        made("quantize", "int", bits=4, granularity="channel", method="absmax"),
        TensorSpec("w", "F32", (1, 4)),
        np.float32([[7.5, -7.5, 1.4, 0]]),
    )
    assert outcome.restored.tolist() == [[7, -8, 1, 0]]


def test_asymmetric_codes_hold_zero_exactly() -> None:
    method = made("quantize", "int", bits=4, granularity="channel", symmetric=False)
    outcome = run(method, TensorSpec("w", "F32", (1, 4)), np.float32([[0, 5, 10, 15]]))
    assert outcome.restored.tolist() == [[0, 5, 10, 15]]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bits": 1}, "bits must be an integer from 2 to 8, not 1"),
        ({"bits": 4, "layout": "int-quantized"}, "layout int-quantized holds symmetric 8-bit codes"),
        ({"bits": 8, "symmetric": False, "layout": "int-quantized"}, "layout int-quantized"),
        ({"bits": 5, "symmetric": False, "layout": "pack-quantized"}, "zero points of 2, 4 or 8 bits here, not 5"),
        ({"bits": 4, "layout": "mlx", "scale_bits": 16}, "scale_bits has no meaning in layout mlx"),
        ({"granularity": "channel", "group_size": 8}, "group_size has no meaning with granularity channel"),
        ({"signed_scales": True, "symmetric": False}, "signed_scales holds for methods search and awq"),
        ({"signed_scales": True, "method": "absmax"}, "signed_scales holds for methods search and awq"),
        ({"granularity": "tensor", "method": "hqq"}, "method hqq works on channels and groups"),
        ({"granularity": "row"}, "granularity must be one of tensor, channel, group"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        made("quantize", "int", **options)


@pytest.mark.parametrize(
    ("dtype", "bits", "stay"), [("F32", 16, ""), ("F32", 32, ""), ("BF16", 16, ""), ("BF16", 32, "BF16")]
)
def test_bits_of_scales_that_weights_do_not_take(dtype: str, bits: int, stay: str) -> None:
    method = made("quantize", "int", bits=4, group_size=4, scale_bits=bits)
    remark = method.remark(TensorSpec("w.weight", dtype, (4, 8)))  # type: ignore[attr-defined]
    expected = f"scales of so many bits are for float32 weights: those of {dtype} weights stay {stay}"
    assert remark == (expected if stay else "")


@pytest.mark.parametrize("shape", [(4, 12), (4, 300), (3, 7)])
def test_a_group_that_does_not_divide_names_sizes_that_do(shape: tuple[int, int]) -> None:
    method = made("quantize", "int", bits=4, group_size=128)
    with pytest.raises(UsageError, match="group size 128 does not divide the row of") as caught:
        method.parts(TensorSpec("w", "F32", shape))  # type: ignore[attr-defined]
    offered = [
        int(text)
        for text in caught.value.remedy.partition(":")[2].partition(";")[0].split(",")
        if text.strip().isdigit()
    ]
    assert all(shape[1] % size == 0 for size in offered)
    assert bool(offered) == (shape[1] != 7)


def test_choices_and_ranges_are_described_in_words() -> None:
    options = options_of(methods_of("quantize")["int"])
    said = {name: describe(*option) for name, option in options.items()}
    assert said["bits"] == "an integer from 2 to 8"
    assert said["symmetric"] == "true or false"
    assert said["granularity"] == "one of tensor, channel, group"
    sparsity = options_of(methods_of("prune")["magnitude"])["sparsity"]
    assert describe(*sparsity) == "a number at least 0 and below 1"
    assert describe(*options_of(methods_of("prune")["threshold"])["threshold"]) == "a number at least 0"


def test_the_table_of_dtypes_knows_the_ends_of_each() -> None:
    assert largest("F8_E4M3") == 448
    assert largest("F16") == 65504
    assert smallest("BF16") == 2.0**-133
    assert smallest("F8_E5M2") == 2.0**-16
