"""Networks in NumPy: gradients by finite differences, buffers, descriptions and how they fit models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.console import STUDENT, TEACHER
from support.networks import NETWORKS, network, samples, tensors_of, toml

from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import InputError, Problems, UsageError
from compressor.networks.description import fit, load_description, parse_description, shipped
from compressor.networks.kinds import KINDS
from compressor.networks.matching import read_network
from compressor.networks.network import Network


def test_every_kind_of_layer_is_tried_here() -> None:
    tried = {layer.kind for text, _ in NETWORKS.values() for layer in parse_description(text, "").layers}
    assert tried == set(KINDS)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_finite_differences(name: str, train: bool) -> None:
    made = network(name, "<f8")
    x = samples(made, 3)
    towards = np.random.default_rng(2).normal(size=(3, *made.outputs))

    def loss() -> float:
        running = {one: array.copy() for one, array in made.tensors.items() if "running" in one}
        found = float((made.forward(x, train=train) * towards).sum())
        for one, array in running.items():
            made.tensors[one][...] = array
        return found

    running = {one: array.copy() for one, array in made.tensors.items() if "running" in one}
    made.forward(x, keep=True, train=train)
    for one, array in running.items():
        made.tensors[one][...] = array
    slope = made.backward(towards, inputs=True)
    assert slope is not None
    assert slope.shape == x.shape
    slope = slope.copy()
    found = {one: array.copy() for one, array in made.gradients.items()}
    assert found.keys() == made.parameters.keys()
    for array, gradient in [(x, slope), *((made.parameters[one], found[one]) for one in found)]:
        for at in np.ndindex(*array.shape):
            kept, step = array[at], 1e-5
            array[at] = kept + step
            above = loss()
            array[at] = kept - step
            below = loss()
            array[at] = kept
            # 1e-6: what the approximation of erf is off by, in its slope
            assert gradient[at] == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=3e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_buffers_do_not_leak_from_one_batch_into_the_next(name: str) -> None:
    made, fresh = network(name), network(name)
    x = samples(made, 9)
    first = made.forward(x, keep=True).copy()
    made.backward(np.ones_like(first))
    made.forward(samples(made, 4, seed=5), keep=True)
    made.backward(np.ones((4, *made.outputs), np.float32))
    again = made.forward(x, keep=True)
    np.testing.assert_array_equal(again, first)
    made.backward(np.ones_like(first))
    fresh.forward(x, keep=True)
    given = np.ones_like(first)
    fresh.backward(given)
    assert (given == 1).all()
    for one, gradient in fresh.gradients.items():
        np.testing.assert_array_equal(made.gradients[one], gradient)


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_are_never_written_to(name: str) -> None:
    made = network(name)
    x = samples(made, 5)
    x.flags.writeable = False
    made.forward(x, keep=True)
    made.backward(np.ones((5, *made.outputs), np.float32))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_watcher_sees_what_the_weights_are_multiplied_with(name: str) -> None:
    """W · rows + b is what the last layer gives, which are the network's own outputs."""
    made = network(name, "<f8")
    x = samples(made, 4)
    seen: dict[str, np.ndarray] = {}
    y = made.forward(x, watch=lambda layer, rows: seen.__setitem__(layer, np.array(rows))).copy()
    assert {layer: rows.shape[-1] for layer, rows in seen.items()} == made.linear
    last = list(made.linear)[-1]
    kinds = [layer.kind.kind for layer in made.layers]
    if kinds[-1] in ("dense", "conv2d"):
        weight = made.parameters[f"{last}.weight"]
        found = seen[last] @ weight.reshape(len(weight), -1).T + made.parameters.get(f"{last}.bias", 0)
        if kinds[-1] == "conv2d":
            y = y.transpose(0, 2, 3, 1).reshape(-1, len(weight))
        np.testing.assert_allclose(found, y, rtol=1e-12)


def test_padded_windows_are_in_the_order_of_the_weights() -> None:
    made = network("planes", "<f8")
    x = samples(made, 2)
    seen: dict[str, np.ndarray] = {}
    made.forward(x, watch=lambda layer, rows: seen.__setitem__(layer, np.array(rows)))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2)))
    rows = [
        padded[n, :, 2 * row : 2 * row + 3, column : column + 5].reshape(-1)
        for n in range(2)
        for row in range(5)
        for column in range(8)
    ]
    np.testing.assert_array_equal(seen["a"], rows)


def test_a_relu_before_a_pool_is_one_after_it() -> None:
    """Windows without anything above zero among them, which have no gradient, and equal numbers in a window."""
    found = []
    for layers in (("relu", "max-pool size=2"), ("max-pool size=2", "relu")):
        text = toml("[1, 6, 6]", 'conv2d name="a"', *layers, "flatten", 'dense name="b"')
        shapes = {"a.weight": (2, 1, 1, 1), "a.bias": (2,), "b.weight": (3, 18)}
        tensors = tensors_of(shapes) | {"a.bias": np.array([0.0, -0.5])}
        made = Network(fit(parse_description(text, "net"), shapes), tensors, "<f8")
        x = np.random.default_rng(0).integers(-2, 3, (4, 1, 6, 6)).astype(float)
        y = made.forward(x, keep=True).copy()
        slope = made.backward(np.ones_like(y), inputs=True)
        found.append([y, slope, *made.gradients.values()])
        assert (y == made.forward(x)).all()
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    weight = tensors_of(shapes)["a.weight"][:, 0, 0, 0]
    planes = np.maximum(x * weight[:, None, None] + np.array([0.0, -0.5])[:, None, None], 0)
    pooled = planes.reshape(4, 2, 3, 2, 3, 2).max(axis=(3, 5)).reshape(4, -1)
    np.testing.assert_allclose(found[0][0], pooled @ tensors_of(shapes)["b.weight"].T, atol=1e-12)


# ---- descriptions --------------------------------------------------------------------------------------

GOOD = toml("[4]", 'dense name="a"')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "input: must be the number of features"),
        ("input = [4", "x: "),
        ("input = 4", "has no [[layer]]"),
        ("input = true\n[[layer]]\nkind='relu'", "input: must be"),
        ("input = [1, 2]\n[[layer]]\nkind='relu'", "input: must be"),
        ("input = [1, 0, 2]\n[[layer]]\nkind='relu'", "input: must be"),
        (
            f"nam = 'x'\n{GOOD}",
            "nam: is not known; there is name, description, input, divide, layer. Did you mean name?",
        ),
        (f"name = 3\n{GOOD}", "name: must be a text"),
        (f"divide = 0\n{GOOD}", "divide: must be a positive number"),
        (f"divide = nan\n{GOOD}", "divide: must be a positive number"),
        ("input = 4\nlayer = [3]", "has no [[layer]]"),
        ("input = 4\nlayer = []", "has no [[layer]]"),
        (toml("4", *["relu"] * 1001), "has more than 1000 layers"),
        (toml("4", 'dens name="a"'), "layer[0].kind: must be one of dense, conv2d"),
        (toml("4", 'dens name="a"'), "Did you mean dense?"),
        ("input = 4\n[[layer]]\nname='a'", "layer[0].kind: must be one of"),
        ("input = 4\n[[layer]]\nkind=['a']", "layer[0].kind: must be one of"),
        (toml("4", "relu", "dense"), "layer[1].name: is missing"),
        (toml("4", 'dense name=""'), "layer[0].name: must be a tensor's or a layer's name"),
        (toml("4", 'dense name="a"; bias=true'), "layer[0].bias: must be a tensor's name, or false for none"),
        (toml("4", 'dense name="a"; out=0'), "layer[0].out: must be a whole number from 1"),
        (toml("4", 'dense name="a"; out=true'), "layer[0].out: must be a whole number from 1"),
        (toml("4", 'dense name="a"; units=3'), "layer[0].units: is not known; there is name, weight, bias, out"),
        (toml("4", "relu slope=3"), "layer[0].slope: is not known; there is output, input"),
        (toml("4", 'conv2d name="a"; stride=0'), "layer[0].stride: must be a whole number from 1, or two of them"),
        (
            toml("4", 'conv2d name="a"; padding=[1, 2, 3]'),
            "layer[0].padding: must be a whole number from 0, two",
        ),
        (toml("4", 'conv2d name="a"; padding=1.5'), "layer[0].padding: must be a whole number"),
        (toml("4", 'gelu approximate="no"'), 'layer[0].approximate: must be "none" or "tanh"'),
        (toml("4", 'batch-norm name="a"; epsilon=-1'), "layer[0].epsilon: must be a positive number"),
        (toml("4", 'batch-norm weight="w"; bias="b"'), "layer[0].name: is missing"),
        ("x" * 300 + " = 1", "x: "),
        ("input" + ".a" * 50 + " = 1", "keys of more than 32 dots"),
        ("input = " + "[" * 5000, "x: "),
    ],
)
def test_descriptions_are_read_strictly(text: str, said: str) -> None:
    with pytest.raises((UsageError, Problems)) as caught:
        parse_description(text, "x")
    assert said in str(caught.value)
    assert all(line.startswith("x: ") for line in str(caught.value).splitlines())


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(Problems) as caught:
        parse_description(toml("4", "relu a=1; b=2", "nonsense", 'dense name="a"; out=-1'), "x")
    assert len(caught.value.problems) == 4


def test_a_file_is_read_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text(GOOD)
    assert load_description(str(path)) == parse_description(GOOD, "")
    path.write_text(GOOD + "#" * 300_000)
    with pytest.raises(UsageError, match="larger than 250000 bytes"):
        load_description(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_description(str(path))
    with pytest.raises(InputError, match="cannot be opened"):
        load_description(str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match=r"there is no network 'lenet30'. Did you mean lenet300\?"):
        load_description("lenet30")


# ---- descriptions and models -----------------------------------------------------------------------------

PLANES = dict(NETWORKS["planes"][1])
DENSE = dict(NETWORKS["dense"][1])


@pytest.mark.parametrize(
    ("text", "shapes", "said"),
    [
        (
            NETWORKS["dense"][0],
            {k: v for k, v in DENSE.items() if k != "b.weight"},
            "'b.weight': is not in the model, in layer[2] (dense b)",
        ),
        (
            NETWORKS["dense"][0],
            DENSE | {"d.weight": (3, 3), "e": (1,)},
            "'d.weight': is not in the description of network (without a name) (nor are 1 more)",
        ),
        (
            NETWORKS["dense"][0],
            DENSE | {"b.weight": (5, 7)},
            "'b.weight': takes 7 features, and its inputs have 6, in layer[2]",
        ),
        (NETWORKS["dense"][0], DENSE | {"b.weight": (5, 6, 1)}, "where a dense layer has [out, in]"),
        (NETWORKS["dense"][0], DENSE | {"a.bias": (7,)}, "'a.bias': its shape is [7], where 6 outputs ask for [6]"),
        (toml("7", 'dense name="a"; out=5'), {"a.weight": (6, 7)}, "gives 6 features, and 5 are described"),
        (
            toml("7", 'dense name="a"', 'dense name="b"; weight="a.weight"'),
            {"a.weight": (7, 7)},
            "'a.weight': is taken by layer[0] too",
        ),
        (toml("[1, 7, 1]", 'dense name="a"'), {"a.weight": (6, 7)}, "flatten comes first"),
        (toml("[1, 7, 1]", "softmax"), {}, "flatten comes first"),
        (toml("[1, 7, 1]", 'layer-norm name="a"'), {"a.weight": (1,)}, "flatten comes first"),
        (toml("7", "max-pool size=2"), {}, "takes channels, rows and columns"),
        (toml("7", 'conv2d name="a"'), {"a.weight": (6, 7, 1, 1)}, "takes channels, rows and columns"),
        (
            toml("[2, 9, 8]", 'conv2d name="a"'),
            {"a.weight": (4, 2, 3)},
            "where a convolution has [out, in, rows, columns]",
        ),
        (toml("[2, 9, 8]", 'conv2d name="a"'), {"a.weight": (4, 0, 3, 3)}, "where a convolution has"),
        (
            toml("[2, 9, 8]", 'conv2d name="a"'),
            {"a.weight": (4, 1, 3, 3)},
            "takes 1 channels, and its inputs have 2",
        ),
        (
            toml("[2, 9, 8]", 'conv2d name="a"; kernel=5'),
            {"a.weight": (4, 2, 3, 3)},
            "has [3, 3] as kernel, and [5, 5] is described",
        ),
        (
            toml("[2, 9, 8]", 'conv2d name="a"; out=5'),
            {"a.weight": (4, 2, 3, 3)},
            "has 4 channels, and 5 is described",
        ),
        (
            toml("[2, 9, 8]", 'conv2d name="a"; padding=3'),
            {"a.weight": (4, 2, 3, 3)},
            "pads by [3, 3], as much as its kernel",
        ),
        (
            toml("[2, 9, 8]", 'conv2d name="a"'),
            {"a.weight": (4, 2, 10, 1)},
            "its window of [10, 1] does not fit into planes of [9, 8]",
        ),
        (toml("[2, 9, 8]", "max-pool size=2; padding=2"), {}, "more than half of its size"),
        (
            toml("[2, 9, 8]", 'batch-norm name="a"'),
            {"a.running_mean": (2,), "a.running_var": (3,)},
            "'a.running_var': its shape is [3], where 2 channels",
        ),
        (toml("[2147483647, 2, 1]", "relu"), {}, "which is too large"),
    ],
)
def test_what_does_not_fit_is_named(text: str, shapes: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(InputError) as caught:
        fit(parse_description(text, ""), shapes)
    assert said in str(caught.value)


def test_shipped_networks_are_recognised(tmp_path: Path) -> None:
    assert set(shipped()) == {"lenet300", "lenet5", "lenet5-relu"}
    for path in (TEACHER, STUDENT):
        found = read_network(open_checkpoint(path))
        assert found.description == "lenet300 (recognised by its tensors)"
        assert found.network.fitted.description.divide == 255
    shapes = {
        "conv1.weight": (20, 1, 5, 5),
        "conv1.bias": (20,),
        "conv2.weight": (50, 20, 5, 5),
        "conv2.bias": (50,),
        "fc1.weight": (500, 800),
        "fc1.bias": (500,),
        "fc2.weight": (10, 500),
        "fc2.bias": (10,),
    }
    path = tmp_path / "lenet5.safetensors"
    arrays = {name: array.astype(np.float32) for name, array in tensors_of(shapes).items()}
    save_file(arrays | {"steps": np.array([3])}, path)
    found = read_network(open_checkpoint(path))
    assert found.description.startswith("lenet5")
    assert found.alike == ("lenet5-relu",)
    assert found.network.forward(np.zeros((2, 1, 28, 28), np.float32)).shape == (2, 10)
    with pytest.raises(InputError, match=r"fc1.weight': takes 800 features.*784, in layer\[0\] \(dense fc1\)"):
        read_network(open_checkpoint(path), "lenet300")


def test_a_chain_is_recognised_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"

    def tried(**shapes: tuple[int, ...]) -> str:
        names = {name.replace("__", "."): shape for name, shape in shapes.items()}
        save_file({name: np.ones(shape, np.float32) for name, shape in names.items()}, path)
        return read_network(open_checkpoint(path)).description

    assert tried(fc1__weight=(5, 4)) == "a chain of 1 dense layers, taken to have ReLU between"
    assert "chain of 2" in tried(fc1__weight=(5, 4), fc1__bias=(5,), fc2__weight=(3, 5))
    for shapes in (
        {"fc1__weight": (5, 4), "fc3__weight": (3, 5)},
        {"fc1__weight": (5, 4, 1)},
        {"fc1__bias": (5,)},
        {"layer1__weight": (5, 4)},
    ):
        with pytest.raises(InputError, match=r"--network FILE\.toml"):
            tried(**shapes)
    with pytest.raises(InputError, match="takes 6 features, and its inputs have 5"):
        tried(fc1__weight=(5, 4), fc2__weight=(3, 6))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    weight = np.ones((5, 4), np.float32)
    weight[2, 1] = np.nan
    save_file({"fc1.weight": weight}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"fc1.weight.*NaN or infinite"):
        read_network(open_checkpoint(tmp_path / "m.safetensors"))


def test_parameters_are_the_layers_own() -> None:
    """Training changes them in place."""
    made = network("dense")
    x = samples(made, 6)
    before = made.forward(x).copy()
    for parameter in made.parameters.values():
        parameter *= 0.5
    assert not np.allclose(made.forward(x), before)
    assert isinstance(made, Network)
    assert set(made.parameters) <= set(made.tensors)
    assert all(made.parameters[name] is made.tensors[name] for name in made.parameters)


def test_the_page_of_networks_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert parse_description(text, "docs").name == "lenet5-relu"
    for kind in KINDS:
        assert f"`{kind}`" in page
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(TEACHER.read_bytes())
    found: dict[str, object] = {}
    exec(code, found)  # noqa: S102 - it is ours
    assert found["outputs"].shape == (64, 10)  # type: ignore[attr-defined]


def test_what_enters_a_convolution_in_groups_are_the_windows_of_all_of_them() -> None:
    made = network("mobile", "<f8")
    assert made.grouped == {"b", "c", "d"}
    seen: dict[str, np.ndarray] = {}
    x = samples(made, 2)
    made.forward(x, watch=lambda name, rows: seen.setdefault(name, rows.copy()))
    for name in sorted(made.grouped):
        weight = made.parameters[f"{name}.weight"]
        assert seen[name].shape[-1] == np.prod(weight.shape[1:])
        layer = next(one for one in made.layers if one.parameters.get("weight") is weight)
        groups = layer.kind.groups  # type: ignore[attr-defined]
        rows = seen[name].reshape(-1, groups, seen[name].shape[-1])
        by_group = weight.reshape(groups, -1, seen[name].shape[-1])
        expected = np.concatenate([rows[:, n] @ by_group[n].T for n in range(groups)], axis=1)
        expected += made.parameters.get(f"{name}.bias", 0)
        entering = made.entering(x, name).copy()
        np.testing.assert_array_equal(entering, seen[name])
        given = next(given for _, one, given, give in _run(made, x) if one is layer)
        np.testing.assert_allclose(layer.forward(given).reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)


def _run(made: Network, x: np.ndarray) -> Iterator[tuple[int, Any, np.ndarray, Any]]:
    """Every layer with what it is given."""
    for number, layer, given, give in made.in_order(x):
        yield number, layer, given.copy(), give
        give(layer.forward(given))
