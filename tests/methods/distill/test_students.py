"""`distill --method depth` and `subclone`: students against slices taken with NumPy, and every refusal."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file
from support.tiny_llama import (
    ATTENTION,
    CONFIG,
    GROUPS,
    HEADS,
    HIDDEN,
    INNER,
    LAYERS,
    MLP,
    WIDTH,
    chain,
    folder,
    largest,
    llama,
    weight,
)

import compressor
from compressor.architectures.families import FAMILIES
from compressor.architectures.recognise import lines
from compressor.cli.main import run
from compressor.core.errors import CompressorError, InputError, UsageError
from compressor.methods.distill.depth import Depth, spread
from compressor.methods.distill.subclone import Subclone
from compressor.recipe.model import recipe_of
from compressor.recipe.stages import parse_stage
from compressor.recipe.toml_file import load_recipe

Array = Any
NORMS = ("input_layernorm", "post_attention_layernorm")


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    tensors = llama()
    for name in tensors:
        if "norm" in name:
            tensors[name] = random.uniform(0.2, 2, HIDDEN).astype(np.float32)
    return folder(tmp_path / "teacher", tensors, CONFIG, shards=3)


def read(path: Path) -> dict[str, Array]:
    return {name: array for file in sorted(path.glob("*.safetensors")) for name, array in load_file(file).items()}


def student(teacher: Path, **options: Any) -> tuple[dict[str, Array], dict[str, Any]]:
    out = teacher.parent / "student"
    compressor.distill(teacher, out, force=True, **options)
    return read(out), json.loads((out / "config.json").read_text())


# ---- depth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"layers": "0,2"}, [0, 2]),
        ({"layers": "3|0-1"}, [0, 1, 3]),
        ({"every": 2}, [0, 2]),
        ({"every": 3}, [0, 3]),
        ({"every": 100}, [0]),
        ({"count": 1}, [0]),
        ({"count": 2}, [0, 3]),
        ({"count": 3}, [0, 2, 3]),
    ],
)
def test_depth_keeps_these_layers(teacher: Path, options: dict[str, Any], kept: list[int]) -> None:
    before = read(teacher)
    after, config = student(teacher, method="depth", **options)
    expected = {name: array for name, array in before.items() if ".layers." not in name}
    for new, old in enumerate(kept):
        stem = f"model.layers.{old}."
        named = {name: array for name, array in before.items() if name.startswith(stem)}
        expected |= {f"model.layers.{new}.{name.removeprefix(stem)}": array for name, array in named.items()}
    assert set(after) == set(expected)
    assert all(after[name].tobytes() == expected[name].tobytes() for name in expected)
    assert config["num_hidden_layers"] == len(kept)
    assert config["layer_types"] == [CONFIG["layer_types"][old] for old in kept]


@given(count=st.integers(2, 200), data=st.data())
@settings(max_examples=200)
def test_layers_are_evenly_spread(count: int, data: st.DataObject) -> None:
    some = data.draw(st.integers(2, count))
    kept = spread(some, count)
    assert (len(kept), kept[0], kept[-1]) == (some, 0, count - 1)
    gaps = {after - before for before, after in pairwise(kept)}
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_distilbert_began_with_these_layers() -> None:
    assert spread(6, 12) == (0, 2, 4, 7, 9, 11)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs one of layers, every or count, and got none"),
        ({"every": 2, "count": 2}, "got every and count"),
        ({"every": 1}, "every: must be an integer from 2"),
        ({"count": 0}, "count: must be an integer from 1"),
        ({"count": 5}, "count 5 is larger than the teacher's 4 layers"),
        ({"count": 4}, "all 4 layers of the teacher would stay"),
        ({"layers": "0-3"}, "all 4 layers"),
        ({"layers": "1,4"}, r"has 4 layers \(0 to 3\), and layers names 4"),
        ({"layers": "a"}, "must be numbers and ranges"),
        ({"layers": ""}, "must be numbers and ranges"),
        ({"layers": "2-1"}, "must be numbers and ranges"),
        ({"every": 2, "include": ["*"]}, "cuts whole models, so include has no meaning"),
        ({"every": 2, "teacher": "x"}, "method depth takes no teacher"),
        ({"every": 2, "alpha": 0.5}, "is no option of method depth"),
    ],
)
def test_depths_that_cannot_be(teacher: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compressor.distill(teacher, teacher.parent / "out", method="depth", **options)
    assert not (teacher.parent / "out").exists()


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["fc1", "fc2", "fc10", "fc11"], ["fc1", "fc10", "fc11"]),
        (["n.0", "n.2", "n.5", "head"], ["n.0", "n.5", "head"]),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_chain_without_a_square_layer(
    tmp_path: Path, names: list[str], left: list[str], transposed: bool
) -> None:
    sizes = [6, 9, 9, 4, 3]
    before = chain(names, sizes, transposed)
    save_file(before, tmp_path / "a.safetensors")
    compressor.distill(tmp_path / "a.safetensors", tmp_path / "b.safetensors", method="depth", layers="0,2,3")
    after = load_file(tmp_path / "b.safetensors")
    # the layers that stay are numbered as the first of the teacher's were
    new = [name if name == "head" else names[place] for place, name in enumerate([names[0], names[2], names[3]])]
    assert len(after) == 6
    for called, old in zip(new, [names[0], names[2], names[3]], strict=True):
        for part in ("weight", "bias"):
            assert np.array_equal(after[f"{called}.{part}"], before[f"{old}.{part}"])
    assert len(left) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"layers": "0,1,3"},
            "number 2 of 4 cannot go: 'fc3' takes 9 and gives 4, so its neighbours would not fit",
        ),
        ({"layers": "0,1,2"}, "number 3 of 4 cannot go: 'fc4' gives the outputs"),
        ({"layers": "1-3"}, "number 0 of 4 cannot go: 'fc1' takes 6 and gives 9"),
    ],
)
def test_layers_of_a_chain_that_cannot_go(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    save_file(chain(["fc1", "fc2", "fc3", "fc4"], [6, 9, 9, 4, 3]), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=said):
        compressor.distill(tmp_path / "a.safetensors", tmp_path / "b.safetensors", method="depth", **options)


def test_pruning_knows_which_layers_of_a_chain_can_go(tmp_path: Path) -> None:
    before = chain(["fc1", "fc2", "fc3", "fc4"], [6, 9, 9, 4, 3])
    save_file(before, tmp_path / "a.safetensors")
    compressor.prune(tmp_path / "a.safetensors", tmp_path / "b.safetensors", structure="layers", count=1)
    after = load_file(tmp_path / "b.safetensors")
    assert np.array_equal(after["fc2.weight"], before["fc3.weight"])
    with pytest.raises(UsageError, match="cannot go"):
        compressor.prune(tmp_path / "a.safetensors", tmp_path / "c.safetensors", structure="layers", count=2)


# ---- subclone: plain chains ----------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", ["width", "hidden", "none"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_smaller_chain(tmp_path: Path, rescale: str, transposed: bool) -> None:
    names = ["fc1", "fc2", "fc3"]
    before = chain(names, [6, 9, 7, 3], transposed)
    save_file(before, tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    report = compressor.distill(
        tmp_path / "a.safetensors", out, method="subclone", widths="6,5,7,3", rescale=rescale
    )
    after = load_file(out)
    makes, reads = before["fc1.weight"], before["fc2.weight"]
    keep = largest(weight([makes.T, reads] if transposed else [makes, reads.T], 2), 5)
    factor = np.float32(np.sqrt(9 / 5) if rescale == "width" else 1)
    rows, columns = (np.s_[:, keep], keep) if transposed else (keep, np.s_[:, keep])
    assert np.array_equal(after["fc1.weight"], makes[rows])
    assert np.array_equal(after["fc1.bias"], before["fc1.bias"][keep])
    assert np.array_equal(after["fc2.weight"], reads[columns] * factor)
    for name in ("fc2.bias", "fc3.weight", "fc3.bias"):
        assert np.array_equal(after[name], before[name])
    assert [(cut.name, cut.before, cut.after) for cut in report.plan.cuts] == [("fc1", 9, 5)]
    assert any("by 1.342 in 1 tensor" in note for note in report.plan.notes) == (rescale == "width")


def test_sums_over_fewer_inputs_keep_their_spread(tmp_path: Path) -> None:
    """What the scaling is for: of random weights and inputs, each layer's outputs spread as the teacher's."""
    random = np.random.default_rng(7)
    sizes = [64, 800, 600, 50]
    tensors = {
        f"fc{n}.weight": random.normal(0, 1 / np.sqrt(a), (b, a)).astype(np.float32)
        for n, (a, b) in enumerate(pairwise(sizes), 1)
    }
    save_file(tensors, tmp_path / "a.safetensors")
    options = {"method": "subclone", "widths": "64,200,100,50", "importance": "random"}
    compressor.distill(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **options)

    def spreads(tensors: dict[str, Array]) -> Array:
        x, found = random.standard_normal((500, 64)), []
        for number in (1, 2, 3):
            x = x @ tensors[f"fc{number}.weight"].T
            found.append(x.std())
        return np.array(found)

    np.testing.assert_allclose(spreads(load_file(tmp_path / "b.safetensors")), spreads(tensors), rtol=0.08)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widths": "6,10,7,3"}, r"width 10 is larger than the teacher's 9 \(6,9,7,3\)"),
        ({"widths": "6,9,8,3"}, "width 8 is larger than the teacher's 7"),
        ({"widths": "5,9,7,3"}, "has 6 inputs, which stay, and widths says 5"),
        ({"widths": "6,9,7,2"}, "has 3 outputs, which stay, and widths says 2"),
        ({"widths": "6,9,3"}, "3 widths are given, and the teacher has 4: 6,9,7,3"),
        ({"widths": "6,9,7,3"}, "as large as the teacher"),
        ({"widths": "6,0,7,3"}, "must be numbers such as"),
        ({"widths": "6,x,7,3"}, "must be numbers such as"),
        ({"widths": "٣"}, "must be numbers such as"),
        ({"shape": "hidden=3"}, "sizes are widths. Give widths, here of 6,9,7,3"),
    ],
)
def test_chains_that_cannot_be(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    save_file(chain(["fc1", "fc2", "fc3"], [6, 9, 7, 3]), tmp_path / "a.safetensors")
    with pytest.raises(UsageError) as caught:
        compressor.distill(tmp_path / "a.safetensors", tmp_path / "b.safetensors", method="subclone", **options)
    assert np.char.find(str(caught.value), said.replace("\\", "")) >= 0


def test_all_of_a_chain_that_is_too_wide_is_said_at_once(tmp_path: Path) -> None:
    save_file(chain(["fc1", "fc2", "fc3"], [6, 9, 7, 3]), tmp_path / "a.safetensors")
    with pytest.raises(CompressorError, match=r"width 10 is larger.*\n.*width 8 is larger"):
        compressor.distill(tmp_path / "a.safetensors", tmp_path / "b.safetensors", widths="6,10,8,3")


def test_what_leaves_the_range_is_refused_by_name(tmp_path: Path) -> None:
    tensors = chain(["fc1", "fc2"], [4, 8, 3])
    tensors["fc2.weight"][1] = 60000
    save_file({name: array.astype(np.float16) for name, array in tensors.items()}, tmp_path / "a.safetensors")
    options = {"method": "subclone", "widths": "4,2,3"}
    with pytest.raises(InputError, match=r"'fc2.weight': leaves the range of F16 when scaled by 2.*rescale=.none."):
        compressor.distill(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **options)
    assert not (tmp_path / "b.safetensors").exists()
    compressor.distill(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rescale="none", **options)


def test_zeros_stay_zero_and_later_stages_read_what_was_scaled(tmp_path: Path) -> None:
    tensors = chain(["fc1", "fc2"], [16, 32, 16])
    tensors["fc2.weight"][:, ::2] = 0
    save_file(tensors, tmp_path / "a.safetensors")
    stages = ["distill:method=subclone,widths=16|16|16,importance=index", "prune:sparsity=0.75,include=fc2.weight"]
    compressor.pipeline(tmp_path / "a.safetensors", tmp_path / "b.safetensors", stages=stages)
    after = load_file(tmp_path / "b.safetensors")["fc2.weight"]
    scaled = tensors["fc2.weight"][:, :16] * np.float32(np.sqrt(2))
    assert np.count_nonzero(after) == 64
    assert np.isin(after[after != 0], scaled).all()
    assert not after[:, ::2].any()


# ---- subclone: recognised models -----------------------------------------------------------------------


def transcribed(
    before: dict[str, Array], layers: list[int], heads: int, inner: int, hidden: int
) -> dict[str, Array]:
    """A smaller Llama in plain NumPy, without scaling: layers, then groups of heads, neurons, channels by gains."""
    after = {name: array for name, array in before.items() if ".layers." not in name}
    for new, old in enumerate(layers):
        q, k, v, o = (before[ATTENTION.format(old, name)] for name in "qkvo")
        keep = largest(
            weight([matrix.reshape(GROUPS, -1) for matrix in (q, k, v, o.T)], 2), heads * GROUPS // HEADS
        )
        units = np.zeros(GROUPS, bool)
        units[keep] = True
        many, few = np.repeat(units, HEADS // GROUPS * WIDTH), np.repeat(units, WIDTH)
        gate, up, down = (before[MLP.format(old, name)] for name in ("gate", "up", "down"))
        rows = largest(weight([gate, up, down.T], 2), inner)
        after |= {ATTENTION.format(new, "q"): q[many], ATTENTION.format(new, "o"): o[:, many]}
        after |= {ATTENTION.format(new, "k"): k[few], ATTENTION.format(new, "v"): v[few]}
        after |= {MLP.format(new, "gate"): gate[rows], MLP.format(new, "up"): up[rows]}
        after[MLP.format(new, "down")] = down[:, rows]
        after |= {f"model.layers.{new}.{n}.weight": before[f"model.layers.{old}.{n}.weight"] for n in NORMS}
    gains = [array.astype(np.float64) ** 2 for name, array in after.items() if "norm" in name]
    keep = largest(np.sum([gain / gain.mean() for gain in gains], axis=0), hidden)
    writes = ("o_proj.weight", "down_proj.weight")
    return {
        name: array[keep] if array.ndim == 1 or name.endswith(writes) else array[:, keep]
        for name, array in after.items()
    }


SMALLER = "hidden=8,neurons=12,heads=2,layers=2"


@pytest.mark.parametrize("rescale", ["width", "hidden", "none"])
def test_everything_smaller_at_once(teacher: Path, rescale: str) -> None:
    after, config = student(teacher, method="subclone", shape=SMALLER, rescale=rescale)
    expected = transcribed(read(teacher), [0, 3], 2, 12, 8)
    root = np.float32(np.sqrt(2))
    for name in expected:
        reads_width = "_proj" in name and not name.endswith(("o_proj.weight", "down_proj.weight"))
        scaled = {"none": False, "hidden": reads_width or name == "lm_head.weight"}
        if scaled.get(rescale, "_proj" in name or name == "lm_head.weight"):
            expected[name] = expected[name] * root
    assert set(after) == set(expected)
    for name, array in expected.items():
        assert np.array_equal(after[name], array), name
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    lists = {"layer_types": ["a", "d"], "max_window_layers": 1}
    assert config == {**CONFIG, **sizes, **lists, "num_hidden_layers": 2, "head_dim": WIDTH}


@pytest.mark.parametrize(("blocks", "kept"), [("spread", [0, 2, 3]), ("ends", [0, 1, 3])])
def test_which_layers_stay(teacher: Path, blocks: str, kept: list[int]) -> None:
    after, _ = student(teacher, method="subclone", shape="layers=3", blocks=blocks)
    by_depth, _ = student(teacher, method="depth", layers=",".join(map(str, kept)))
    assert set(after) == set(by_depth)
    assert all(np.array_equal(after[name], by_depth[name]) for name in after)


def test_layers_by_importance(teacher: Path) -> None:
    by_prune = teacher.parent / "pruned"
    compressor.prune(teacher, by_prune, structure="layers", count=2, importance="l2")
    after, _ = student(teacher, method="subclone", shape="layers=2", blocks="importance")
    assert all(np.array_equal(after[name], array) for name, array in read(by_prune).items())


def test_a_target_config_is_a_shape(teacher: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    target = teacher.parent / ("long name é " * 12)
    target.mkdir()
    wanted = {**CONFIG, **sizes, "num_hidden_layers": 2, "layer_types": ["a", "b"], "max_window_layers": 7}
    (target / "config.json").write_text(json.dumps(wanted))
    by_shape, one = student(teacher, method="subclone", shape=SMALLER)
    for path in (target, target / "config.json"):
        by_config, two = student(teacher, method="subclone", config=path)
        assert one == two
        assert all(np.array_equal(by_config[name], array) for name, array in by_shape.items())
    report = compressor.distill(teacher, teacher.parent / "again", method="subclone", config=target)
    (stage,) = report.plan.stages
    shape = f"hidden=8,neurons=12,heads=2,kv_heads=1,head_dim={WIDTH},layers=2"
    assert stage == {
        "kind": "distill",
        "method": "subclone",
        "shape": shape,
        "importance": "auto",
        "blocks": "spread",
        "rescale": "width",
        "seed": 0,
    }
    assert any("max_window_layers" in note for note in report.plan.notes)
    with pytest.raises(UsageError, match="holds the input"):
        compressor.distill(teacher, target, method="subclone", config=target, force=True)
    assert b"long name" not in b"".join(file.read_bytes() for file in (teacher.parent / "again").glob("*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mistral"}, "says model_type 'mistral', and the teacher's config.json says 'llama'"),
        ({"vocab_size": 9}, "says vocab_size 9, and the teacher's config.json says None"),
        ({"hidden_size": "8"}, "says hidden_size '8', which is no size"),
        ({"num_attention_heads": None}, "lacks num_attention_heads"),
        ({"model_type": "x"}, "method subclone: model_type 'x' is not known"),
        ({"head_dim": 4}, f"heads keep their width, which is {WIDTH}, and 4 is asked for"),
        ({"head_dim": None}, f"heads keep their width, which is {WIDTH}, and 2 is asked for"),
        ({"intermediate_size": 25}, "neurons 25 is larger than the teacher's 24"),
        ({"hidden_size": HIDDEN}, None),
    ],
)
def test_a_target_config_that_does_not_fit(teacher: Path, change: dict[str, Any], said: str | None) -> None:
    target = teacher.parent / "t.json"
    target.write_text(json.dumps({**CONFIG, "hidden_size": 8, "intermediate_size": 12, **change}))
    if said is None:
        student(teacher, method="subclone", config=target)
        return
    with pytest.raises(CompressorError, match=said):
        student(teacher, method="subclone", config=target)


@pytest.mark.parametrize("content", ["", "[]", '{"a": NaN}', '{"a": 1, "a": 2}', "\xff", "[" * 5000])
def test_a_target_that_is_no_config(teacher: Path, content: str) -> None:
    target = teacher.parent / "t.json"
    target.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.json: is not a? ?valid"):
        student(teacher, method="subclone", config=target)
    with pytest.raises(InputError, match=r"none\.json: cannot be opened"):
        student(teacher, method="subclone", config=teacher.parent / "none.json")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs one of config, shape or widths, and got none"),
        ({"shape": "hidden=8", "widths": "1,2"}, "got shape and widths"),
        ({"widths": "16,8,4"}, "widths are for plain chains of layers, and the teacher is a llama model"),
        ({"shape": f"hidden={HIDDEN + 1}"}, f"hidden {HIDDEN + 1} is larger than the teacher's {HIDDEN}"),
        ({"shape": f"intermediate={INNER + 1}"}, f"intermediate {INNER + 1} is larger than the teacher's {INNER}"),
        ({"shape": "num_hidden_layers=5"}, f"num_hidden_layers 5 is larger than the teacher's {LAYERS}"),
        ({"shape": "heads=6"}, "heads 6 is larger than the teacher's 4"),
        ({"shape": "heads=3"}, "2 heads of the teacher share keys and values; 3 heads do not fit"),
        (
            {"shape": "heads=2,kv_heads=2"},
            "2 heads and 2 of keys and values do not fit. For example heads=2,kv_heads=1",
        ),
        ({"shape": "head_dim=4"}, "heads keep their width, which is 8, and 4 is asked for"),
        ({"shape": "experts=2"}, "a llama model has no experts. It has hidden, neurons, heads, kv_heads, layers"),
        ({"shape": "wings=2"}, "a llama model has no wings"),
        ({"shape": f"hidden={HIDDEN}"}, "as large as the teacher"),
        ({"shape": "head_dim=8"}, "as large as the teacher"),
        ({"shape": "hidden"}, "shape must be sizes such as"),
        ({"shape": "hidden=0"}, "shape must be sizes such as"),
        ({"shape": "hidden=8,hidden=8"}, "each once"),
        ({"shape": "hidden=-8"}, "shape must be sizes"),
        ({"shape": "hidden=9999999999999"}, "shape must be sizes"),
        ({"shape": "hidden=8", "blocks": "odd"}, "blocks: must be one of spread, ends, importance"),
        ({"shape": "hidden=8", "exclude": ["*"]}, "exclude has no meaning"),
        ({"shape": "hidden=8", "rules": [("*", {"seed": 2})]}, "rule has no meaning"),
    ],
)
def test_students_that_cannot_be(teacher: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        compressor.distill(teacher, teacher.parent / "out", method="subclone", **options)
    assert said in str(caught.value)
    assert not (teacher.parent / "out").exists()


def test_all_that_is_too_large_is_said_at_once(teacher: Path) -> None:
    with pytest.raises(CompressorError, match=r"hidden 99 is larger.*\n.*layers 9 is larger"):
        compressor.distill(teacher, teacher.parent / "out", shape="hidden=99,layers=9")


def test_numbers_of_keys_and_values_tell_the_heads(teacher: Path) -> None:
    _, config = student(teacher, method="subclone", shape="kv_heads=1")
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)


def test_a_model_that_is_not_known(tmp_path: Path) -> None:
    save_file({"w": np.ones((4, 4), np.float32)}, tmp_path / "a.safetensors")
    for options in ({"method": "depth", "every": 2}, {"method": "subclone", "shape": "hidden=2"}):
        with pytest.raises(InputError, match=rf"method {options['method']}: the architecture cannot be recognised"):
            compressor.distill(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **options)


# ---- what is scaled ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "scaled"),
    [
        ({}, {"lm_head.weight"}),
        ({"tie_word_embeddings": True}, {"model.norm.weight"}),
        ({"model_type": "gemma", "tie_word_embeddings": True}, {"model.embed_tokens.weight"}),
        ({"model_type": "gemma"}, {"model.embed_tokens.weight"}),
        ({"model_type": "gemma", "tie_word_embeddings": False}, {"model.embed_tokens.weight", "lm_head.weight"}),
    ],
)
@pytest.mark.parametrize("head", [True, False])
def test_the_scale_of_the_outputs(tmp_path: Path, change: dict[str, Any], scaled: set[str], head: bool) -> None:
    tensors = llama()
    if not head:
        del tensors["lm_head.weight"]
        scaled = scaled - {"lm_head.weight"}
    path = folder(tmp_path / "teacher", tensors, {**CONFIG, **change})
    kept = {"method": "subclone", "shape": "hidden=4", "importance": "index"}
    plain, _ = student(path, rescale="none", **kept)
    after, _ = student(path, **kept)
    changed = {name for name in after if not np.array_equal(after[name], plain[name])}
    assert {name for name in changed if ".layers." not in name} == scaled
    for name in changed:
        np.testing.assert_allclose(after[name], plain[name] * 2, rtol=1e-6)
    reads = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    assert {name.split(".")[-2] for name in changed if ".layers." in name} == reads


def test_a_headless_model_keeps_its_last_norm(tmp_path: Path) -> None:
    tensors = llama()
    del tensors["lm_head.weight"]
    config = {**CONFIG, "architectures": ["LlamaModel"], "tie_word_embeddings": True}
    path = folder(tmp_path / "teacher", tensors, config)
    after, _ = student(path, method="subclone", shape="hidden=4", importance="index")
    assert np.array_equal(after["model.norm.weight"], tensors["model.norm.weight"][:4])


def test_gains_of_gemma_are_one_more(tmp_path: Path) -> None:
    tensors = llama()
    for name in tensors:
        if "norm" in name:
            tensors[name] = np.linspace(-1.5, 1, HIDDEN).astype(np.float32)
    kept = {}
    for kind in ("llama", "gemma"):
        path = folder(tmp_path / kind, tensors, {**CONFIG, "model_type": kind})
        kept[kind], _ = student(path, method="subclone", shape="hidden=4", rescale="none")
    gains = tensors["model.norm.weight"]
    assert np.array_equal(kept["llama"]["model.norm.weight"], gains[largest(gains**2, 4)])
    assert np.array_equal(kept["gemma"]["model.norm.weight"], gains[-4:])


def test_gains_are_an_importance_of_pruning_too(teacher: Path) -> None:
    out = teacher.parent / "pruned"
    compressor.prune(teacher, out, structure="hidden", count=8, importance="gains")
    after, _ = student(teacher, method="subclone", shape="hidden=8", rescale="none")
    assert all(np.array_equal(after[name], array) for name, array in read(out).items())
    with pytest.raises(UsageError, match="importance gains is for structure hidden, not neurons"):
        compressor.prune(teacher, out, structure="neurons", count=8, importance="gains", force=True)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.types[0])
def test_what_the_tables_say_of_heads_is_there(family: Any) -> None:
    modules = {line.module: line for line in lines(family.outer)}
    named = {name: line for name, line in modules.items() if "proj" not in name and name not in family.heads}
    tables = {name: line for name, line in named.items() if "embed" in name or name in ("wte", "wpe")}
    assert set(family.last_norms) <= set(modules)
    assert set(family.heads) <= set(modules)
    assert all(modules[name].reads == 1 for name in family.heads)
    assert all(line.reads is None for name, line in tables.items())
    for line in lines(family.block):
        if line.reads is not None:
            assert line.axes[line.reads] in (
                ("hidden",),
                ("encoded",),
                ("embed",),
                ("q",),
                ("cross",),
                ("neurons",),
                ("moe",),
                ("shared",),
            )
    summed = [line for line in lines(family.block) if len(line.axes) in (2, 3) and ("-",) not in line.axes]
    assert all(line.reads is not None for line in summed if not line.module.endswith("bias"))


# ---- recipes and the command line ----------------------------------------------------------------------

RECIPE = """
[[stage]]
kind = "distill"
method = "depth"
every = 2

[[stage]]
kind = "distill"
method = "subclone"
shape = "hidden=8,neurons=16"

[[stage]]
kind = "prune"
structure = "heads"
count = 1

[[stage]]
kind = "quantize"
bits = 8
store = "dense"
"""


def test_students_in_a_recipe(teacher: Path) -> None:
    path = teacher.parent / "r.toml"
    path.write_text(RECIPE)
    report = compressor.pipeline(teacher, teacher.parent / "out", recipe=str(path))
    assert [cut.structure for cut in report.plan.cuts] == ["layers", *["neurons"] * 2, "hidden", *["heads"] * 2]
    assert [(stage["kind"], stage.get("method")) for stage in report.plan.stages][:2] == [
        ("distill", "depth"),
        ("distill", "subclone"),
    ]
    config = json.loads((teacher.parent / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]) == (2, 8, 16)
    assert read(teacher.parent / "out")[MLP.format(1, "down")].shape == (8, 16)


def test_a_student_comes_first(tmp_path: Path) -> None:
    stages = [parse_stage("prune:sparsity=0.5"), parse_stage("distill:method=depth,every=2")]
    with pytest.raises(UsageError, match=r"stage\[1\]: a structured cut must come before"):
        recipe_of(stages)
    (tmp_path / "r.toml").write_text('[[stage]]\nkind = "distill"\nmethod = "subclone"\n')
    with pytest.raises(UsageError, match=r"stage\[0\]\.method subclone needs one of config, shape or widths"):
        load_recipe(str(tmp_path / "r.toml"))


def test_stage_texts_and_teachers_of_other_stages(teacher: Path) -> None:
    out = teacher.parent / "student"
    student(teacher, method="subclone", shape="hidden=8,layers=2")
    stages = ["distill:shape=hidden=8|layers=2", "distill:alpha=0"]
    compressor.pipeline(teacher, teacher.parent / "out", stages=stages, teacher=out)
    assert all(np.array_equal(read(out)[name], array) for name, array in read(teacher.parent / "out").items())


def test_methods_without_their_options_say_what_they_need() -> None:
    assert isinstance(Depth(every=2), Depth)
    assert Subclone(widths="1|2").rescales == "width"
    with pytest.raises(UsageError, match="rescale must be one of"):
        Subclone(widths="1,2", rescale="half")  # type: ignore[arg-type]


def test_the_command_line(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(teacher.parent / "out")
    arguments = ["--from", str(teacher), "-o", out, "--method", "subclone", "--shape", SMALLER]
    assert run(["distill", *arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "rescaled by the root of inputs" in shown
    assert "would write" in shown
    assert not Path(out).exists()
    assert run(["distill", *arguments]) == 0
    assert run(["distill", str(teacher), "-o", out, "--every", "2", "--force"]) == 0  # the options tell the method
    assert json.loads((Path(out) / "config.json").read_text())["num_hidden_layers"] == 2
    capsys.readouterr()
    for wrong, said in (
        (["distill", "-o", out], "give either a STUDENT or --from TEACHER"),
        (["distill", "x", "--from", "y", "-o", out], "give either a STUDENT or --from TEACHER"),
        (["distill", *arguments, "--teacher", "x", "--force"], "method subclone takes no teacher"),
        (["distill", *arguments, "--include", "x", "--force"], "so include has no meaning"),
    ):
        assert run(wrong) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(teacher: Path, workers: int) -> None:
    for name, many in (("one", 1), ("more", workers)):
        options: dict[str, Any] = {"importance": "random", "seed": 4, "workers": many, "force": True}
        compressor.distill(teacher, teacher.parent / name, method="subclone", shape=SMALLER, **options)
    one, more = (
        {file.name: file.read_bytes() for file in (teacher.parent / name).iterdir()} for name in ("one", "more")
    )
    assert one == more


def test_a_width_that_transformers_refuses_is_an_error(teacher: Path) -> None:
    shape = f"hidden={HIDDEN - 1}"
    with pytest.raises(UsageError, match=r"only where the number of heads divides the width") as caught:
        compressor.distill(teacher, teacher.parent / "out", method="subclone", shape=shape)
    assert caught.value.remedy == f"For example hidden={HIDDEN - HEADS}"


@given(
    hidden=st.integers(1, HIDDEN),
    neurons=st.integers(1, INNER),
    groups=st.integers(1, GROUPS),
    layers=st.integers(1, LAYERS),
    importance=st.sampled_from(["auto", "l2", "l1", "random", "index"]),
    blocks=st.sampled_from(["spread", "ends", "importance"]),
)
@settings(max_examples=25)
def test_any_smaller_shape_is_what_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory,
    hidden: int,
    neurons: int,
    groups: int,
    layers: int,
    importance: str,
    blocks: str,
) -> None:
    """A law of all students: the shapes and the config are the target's, and every number is finite and one of the
    teacher's, times the factor."""
    if (hidden, neurons, groups, layers) == (HIDDEN, INNER, GROUPS, LAYERS):
        return
    path = tmp_path_factory.mktemp("law")
    before = llama()
    folder(path / "teacher", before, {**CONFIG, "model_type": "mistral"})  # which takes any width
    shape = f"hidden={hidden},neurons={neurons},kv_heads={groups},layers={layers}"
    after, config = student(path / "teacher", method="subclone", shape=shape, importance=importance, blocks=blocks)
    assert (config["hidden_size"], config["intermediate_size"]) == (hidden, neurons)
    assert (config["num_key_value_heads"], config["num_hidden_layers"]) == (groups, layers)
    assert config["num_attention_heads"] == groups * HEADS // GROUPS
    queries = groups * HEADS // GROUPS * WIDTH
    shapes = {"q": (queries, hidden), "k": (groups * WIDTH, hidden), "o": (hidden, queries)}
    factors = {"q": HIDDEN / hidden, "k": HIDDEN / hidden, "o": GROUPS / groups}
    everything = {
        name: np.concatenate([before[ATTENTION.format(n, name)].ravel() for n in range(LAYERS)]) for name in shapes
    }
    for layer in range(layers):
        assert after[MLP.format(layer, "down")].shape == (hidden, neurons)
        assert after[MLP.format(layer, "gate")].shape == (neurons, hidden)
        for name, wanted in shapes.items():
            found = after[ATTENTION.format(layer, name)]
            assert found.shape == wanted
            assert np.isin(found, everything[name] * np.float32(np.sqrt(factors[name]))).all()
    assert len(after) == 3 + 9 * layers
