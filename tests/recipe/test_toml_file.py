"""Recipes as files: what they extend, what they repeat, on which tensors stages work, limits, and the way back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from safetensors.numpy import load_file, save_file

from compressor import api
from compressor.cli.main import cli
from compressor.core.errors import Problems, UsageError
from compressor.files import strict_toml
from compressor.recipe.gates import Gates
from compressor.recipe.model import Recipe, Stage
from compressor.recipe.toml_file import effective, load_recipe, parse_recipe, ready_recipes, recipe_for
from compressor.workflows.results import ReportedGateFailed


def stage(recipe: Recipe, number: int = 0) -> dict[str, Any]:
    return recipe.stages[number].to_table()


def written(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def refused(folder: Path, name: str = "a") -> str:
    with pytest.raises(UsageError) as caught:
        load_recipe(str(folder / f"{name}.toml"))
    return str(caught.value)


# ---- extends -------------------------------------------------------------------------------------------


def test_a_ready_recipe_is_changed_by_the_name_of_its_stage(tmp_path: Path) -> None:
    written(tmp_path, a='extends = "w4a16"\n[[stage]]\nname = "quantize"\ngroup_size = 32')
    found = load_recipe(str(tmp_path / "a.toml"))
    assert stage(found) == {**stage(load_recipe("w4a16")), "group_size": 32}
    assert found.name == ""


def test_what_a_recipe_says_itself_goes_before_what_it_extends(tmp_path: Path) -> None:
    written(
        tmp_path,
        base='name = "base"\ndescription = "of the base"\nstats = "base.safetensors"\n[budget]\ntarget_bits = 5\n'
        'max_error = 0.2\n[[stage]]\nkind = "quantize"',
        a='extends = "base.toml"\nname = "own"\nstats = "own.safetensors"\n[budget]\ntarget_bits = 4',
        b='extends = "base.toml"',
    )
    own, bare = (load_recipe(str(tmp_path / f"{name}.toml")) for name in "ab")
    assert (own.name, own.description, own.stats) == ("own", "", "own.safetensors")
    assert (bare.name, bare.description, bare.stats) == ("", "", "base.safetensors")
    for recipe, bits in ((own, 4), (bare, 5)):
        assert recipe.budget is not None
        assert (recipe.budget.target_bits, recipe.budget.max_error) == (bits, 0.2)


def test_what_has_no_stage_of_that_name_follows(tmp_path: Path) -> None:
    written(
        tmp_path,
        base='[gate]\nmax_error = 0.5\nmin_ratio = 2\n[[stage]]\nname = "half"\nkind = "prune"\nsparsity = 0.5',
        a='extends = "base.toml"\n[gate]\nmin_ratio = 3\n[[stage]]\nkind = "quantize"\nbits = 4',
    )
    found = load_recipe(str(tmp_path / "a.toml"))
    assert [one.method.verb for one in found.stages] == ["prune", "quantize"]
    assert found.gates == Gates(max_error=0.5, min_ratio=3)


def test_stages_inside_a_repetition_are_changed_too(tmp_path: Path) -> None:
    inner = '[[stage.stage]]\nkind = "prune"\nsparsity = {from = 0.5, to = 0.75}'
    written(
        tmp_path,
        base=f'[[stage]]\nname = "loop"\nrepeat = 2\n{inner}',
        a='extends = "base.toml"\n[[stage]]\nname = "loop"\n[[stage.stage]]\nname = "prune"\nscope = "global"',
    )
    found = load_recipe(str(tmp_path / "a.toml"))
    assert [(one["sparsity"], one["scope"]) for one in map(Stage.to_table, found.stages)] == [
        (0.5, "global"),
        (0.75, "global"),
    ]


def test_what_cannot_be_extended_is_named(tmp_path: Path) -> None:
    quantize = '[[stage]]\nkind = "quantize"\nbits = 4'
    written(tmp_path, a='extends = "b.toml"\n', b=f'extends = "a.toml"\n{quantize}')
    assert "goes in a circle at" in refused(tmp_path)
    written(tmp_path, a='extends = "w4a17"')
    assert "there is no recipe 'w4a17'" in refused(tmp_path)
    written(tmp_path, a='extends = "none.toml"')
    assert re.search("recipe .*none.toml: cannot be read", refused(tmp_path))
    written(tmp_path, a='extends = "w4a16"\n[[stage]]\nname = "quantise"\nbits = 8')
    assert "no stage that it extends is named 'quantise'. Did you mean quantize?" in refused(tmp_path)
    written(tmp_path, a="extends = 3")
    assert "extends: must be a recipe's file or name" in refused(tmp_path)
    written(tmp_path, a='extends = "w4a16"\nstage = 3')
    assert "stage: must be [[stage]] tables" in refused(tmp_path)
    written(tmp_path, a='extends = "w4a16"\nstructure = 3')
    assert "structure: must be [[structure]] tables" in refused(tmp_path)
    written(
        tmp_path, a='extends = "b.toml"\n[[stage]]\nname = "x"\nstage = 3', b='[[stage]]\nname = "x"\nrepeat = 2'
    )
    assert "stage: must be [[stage]] tables" in refused(tmp_path)
    written(tmp_path, a='extends = "b.toml"\n[[stage]]\nname = "4"', b=f"{quantize}\nname = 44")
    assert "no stage that it extends is named '4'" in refused(tmp_path)
    written(tmp_path, **{f"r{n}": f'extends = "r{n + 1}.toml"' for n in range(12)})
    assert "through more than 8 recipes" in refused(tmp_path, "r0")


# ---- repeat and schedules ------------------------------------------------------------------------------

LOOP = '[[stage]]\nrepeat = {rounds}\n[[stage.stage]]\nkind = "prune"\nsparsity = {schedule}'


def test_a_schedule_moves_from_round_to_round() -> None:
    def sparsities(rounds: int, schedule: str) -> list[float]:
        recipe = parse_recipe(LOOP.format(rounds=rounds, schedule=schedule), "r")
        return [one.to_table()["sparsity"] for one in recipe.stages]

    assert sparsities(3, "{from = 0.5, to = 0.9}") == pytest.approx([0.5, 0.7, 0.9])
    assert sparsities(3, '{from = 0.5, to = 0.9, shape = "cubic"}') == pytest.approx([0.5, 0.85, 0.9])
    assert sparsities(4, "{from = 0.5, to = 0.9, steps = 2}") == [0.5, 0.9, 0.9, 0.9]
    assert sparsities(1, "{from = 0.5, to = 0.9}") == [0.9]
    assert sparsities(2, "0.3") == [0.3, 0.3]


def test_between_integers_it_stays_with_integers() -> None:
    text = '[[stage]]\nrepeat = 3\n[[stage.stage]]\nkind = "quantize"\nstore = "dense"\nbits = {from = 8, to = 4}'
    assert [one.to_table()["bits"] for one in parse_recipe(text, "r").stages] == [8, 6, 4]


@given(st.integers(1, 30), st.floats(0.01, 0.98), st.floats(0.01, 0.98), st.sampled_from(["linear", "cubic"]))
def test_a_schedule_ends_where_it_says_and_never_turns_back(
    rounds: int, start: float, end: float, shape: str
) -> None:
    text = LOOP.format(rounds=rounds, schedule=f'{{from = {start!r}, to = {end!r}, shape = "{shape}"}}')
    found = [one.to_table()["sparsity"] for one in parse_recipe(text, "r").stages]
    assert len(found) == rounds
    assert found[-1] == end
    assert found[0] == (start if rounds > 1 else end)
    steps = np.diff(found) * np.sign(end - start)
    assert (steps >= -1e-12).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[stage]]\nrepeat = 2", "stage[0].repeat: has nothing to repeat"),
        ('[[stage]]\nrepeat = 0\n[[stage.stage]]\nkind = "prune"', "repeat: must be an integer from 1 to 1000"),
        ('[[stage]]\nrepeat = 2\nkind = "prune"\n[[stage.stage]]\n', "kind: has no meaning beside repeat"),
        ("[[stage]]\nrepeat = 2\n[[stage.stage]]\nrepeat = 2\n", "stage[0].repeat: a repetition has none inside"),
        ('[[stage]]\nkind = "prune"\nsparsity = {from = 0, to = 1}', "stage[0].sparsity: a schedule belongs into"),
        (LOOP.format(rounds=2, schedule="{from = 0.1}"), "stage[0].stage[0].sparsity: Object missing required"),
        (LOOP.format(rounds=2, schedule='{from = 0.1, to = 0.2, shape = "s"}'), "sparsity: shape: Invalid enum"),
        (LOOP.format(rounds=2, schedule="{from = 0.1, to = 0.2, steps = 3}"), "steps: must be from 1 to the 2"),
        (LOOP.format(rounds=2, schedule=f"{{from = {'9' * 400}, to = 0.1}}"), "sparsity: goes beyond any number"),
        (LOOP.format(rounds=2, schedule="9" * 5000), "r: Exceeds the limit"),
        ("[[stage]]\nrepeat = 1000\n" + 11 * "[[stage.stage]]\nkind = 1\n", "repeat: makes more than 10000 stages"),
        (LOOP.format(rounds=2, schedule="{from = 0.1, to = 2}"), "stage[0].stage[0].sparsity: must be a number"),
    ],
)
def test_a_wrong_repetition_names_its_place(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(text, "r")
    assert said in str(caught.value)


def test_what_is_wrong_in_every_round_is_said_once() -> None:
    more = '\n[[stage.stage]]\nkind = "quantize"\nbitz = 8\n'
    with pytest.raises(Problems) as caught:
        parse_recipe(LOOP.format(rounds=5, schedule="{from = 1.5, to = 9}") + more, "r")
    first, second = map(str, caught.value.problems)
    assert "stage[0].stage[0].sparsity: must be a number at least 0 and below 1, not '1.5'" in first
    assert "stage[0].stage[1].bitz: is not known" in second


# ---- when ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "treated"),
    [
        ("{}", {"wide", "tall", "half", "cube"}),
        ("{dtype = ['F16']}", {"half"}),
        ("{rank = 3}", {"cube"}),
        ("{min_size = 513}", {"tall"}),
        ("{max_size = 512, min_columns = 9}", {"wide", "half", "cube"}),
        ("{min_rows = 5, max_rows = 100}", {"tall"}),
        ("{max_columns = 8}", {"tall"}),
        ("{columns_multiple_of = 32}", {"wide", "half"}),
    ],
)
def test_conditions_choose_by_what_headers_say(tmp_path: Path, when: str, treated: set[str]) -> None:
    ones = {"wide": (4, 128), "tall": (100, 8), "cube": (4, 4, 12)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in ones.items()}
    tensors["half"] = np.ones((4, 32), np.float16)
    save_file(tensors, tmp_path / "in.safetensors")
    text = f'[[stage]]\nkind = "prune"\nthreshold = 2.0\nwhen = {when}'
    report = api.pipeline(tmp_path / "in.safetensors", tmp_path / "out.safetensors", recipe=parse_recipe(text, "r"))
    found = load_file(tmp_path / "out.safetensors")
    assert {name for name, tensor in found.items() if not tensor.any()} == treated
    assert all("(when)" in reason for reason, _ in report.kept)


def test_conditions_are_strict() -> None:
    for when, said in (
        ("{size = 3}", "unknown field `size`"),
        ("{min_size = -1}", "Expected `int` >= 0"),
        ("{dtype = ['float32']}", "there is no dtype 'float32'"),
        ("3", "Expected `object | null`"),
    ):
        with pytest.raises(UsageError) as caught:
            parse_recipe(f'[[stage]]\nkind = "prune"\nthreshold = 2.0\nwhen = {when}', "r")
        assert said in str(caught.value)
        assert "stage[0].when" in str(caught.value)


# ---- gate and report -----------------------------------------------------------------------------------


def test_gates_of_the_recipe_hold_where_none_are_given(tmp_path: Path) -> None:
    save_file({"w": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)}, tmp_path / "in.safetensors")
    recipe = parse_recipe('[gate]\nmax_error = 0.1\n[[stage]]\nkind = "prune"\nsparsity = 0.5', "r")
    with pytest.raises(ReportedGateFailed, match=r"--max-error 0\.1"):
        api.pipeline(tmp_path / "in.safetensors", tmp_path / "out.safetensors", recipe=recipe)
    api.pipeline(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", recipe=recipe, gates=Gates(max_error=0.9)
    )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[gate]\nmax_eror = 1", "gate: Object contains unknown field `max_eror`"),
        ("[gate]\nmax_error = -1.0", "gate.max_error: must be at least 0"),
        ("[gate]\nmin_ratio = inf", "gate.min_ratio: must be at least 0 and finite"),
        ("[gate]\nmin_sparsity = 1.5", "gate.min_sparsity: must be at least 0 and at most 1"),
        ("[gate]\nmax_size = '3 cows'", "gate.max_size: must be a size such as 300MB"),
        ("[report]\nformat = 'pdf'", "report.format: must be table or json"),
        ("[report]\ntop = true", "report.top: must be an integer"),
        ("[report]\nquiet = 1", "report.quiet: must be true or false"),
        ("[report]\ncolour = 1", "report.colour: is not known; there are format, top, quiet"),
    ],
)
def test_wrong_limits_name_their_place(table: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(f'{table}\n[[stage]]\nkind = "prune"\nsparsity = 0.5', "r")
    assert said in str(caught.value)


def test_the_report_is_printed_as_the_recipe_says(tmp_path: Path) -> None:
    save_file({"w": np.ones((8, 8), np.float32)}, tmp_path / "in.safetensors")
    (tmp_path / "r.toml").write_text('[report]\nformat = "json"\n[[stage]]\nkind = "prune"\nsparsity = 0.5')
    command = ["pipeline", str(tmp_path / "in.safetensors"), "--recipe", str(tmp_path / "r.toml")]
    said = CliRunner().invoke(cli, [*command, "-o", str(tmp_path / "a.safetensors")], standalone_mode=False)
    assert said.output.startswith("{")
    other = [*command, "-o", str(tmp_path / "b.safetensors"), "--format", "table"]
    assert not CliRunner().invoke(cli, other, standalone_mode=False).output.startswith("{")


# ---- the way back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ready_recipes())
def test_what_is_shown_is_the_same_recipe(name: str) -> None:
    recipe = load_recipe(name)
    assert parse_recipe(effective(recipe), "shown") == recipe


COMMANDS = [
    ["distill", "--method", "soft-targets", "--teacher", "t.npy", "--inputs", "i.npy", "--epochs", "3"],
    ["prune", "--sparsity", "0.5", "--scope", "global", "--exclude", "*é\"'\\*", "--max-error", "2"],
    ["prune", "--mask", "mask.safetensors"],
    ["prune", "--sparsity", "0.5", "--scores", "s.safetensors"],
    ["prune", "--method", "wanda", "--sparsity", "0.5", "--stats", "s.safetensors"],
    ["prune", "--structure", "neurons", "--fraction", "0.25", "--multiple-of", "8"],
    ["distill", "--method", "blend", "--alpha", "0.5", "--teacher", "t.safetensors", "--max-size", "3MB"],
    ["distill", "--method", "depth", "--every", "2"],
    ["quantize", "--bits", "4", "--set", "*v*:bits=8", "--preset", "q4_mixed", "--fallback"],
    ["quantize", "--scheme", "codebook", "--store", "dense"],
    ["pipeline", "--stage", "prune:sparsity=0.5", "--store", "archive"],
    ["pipeline", "--stage", "prune:sparsity=0.5", "--stage", "quantize:bits=8", "--min-sparsity", "0.4"],
    ["pipeline", "--recipe", "w4a16", "--target-bits", "4.5", "--candidate", "int4g64", "--candidate", "dense"],
    ["quantize", "--target-size", "3MB", "--min-sqnr", "20", "--survey", "s.json", "--sample", "0"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_a_command_shows_is_shown_again_by_itself(tmp_path: Path, command: list[str]) -> None:
    verb, *options = command
    shown = CliRunner().invoke(cli, [verb, "in", "-o", "out", *options, "--show-recipe"], standalone_mode=False)
    assert shown.exception is None
    (tmp_path / "r.toml").write_text(shown.output)
    again = ["pipeline", "in", "-o", "out", "--recipe", str(tmp_path / "r.toml"), "--show-recipe"]
    assert CliRunner().invoke(cli, again, standalone_mode=False).output == shown.output


def test_a_budget_and_an_archive_are_shown() -> None:
    def shown(*options: str) -> str:
        command = ["pipeline", "in", "-o", "out", *options, "--show-recipe"]
        found = CliRunner().invoke(cli, command, standalone_mode=False)
        if found.exception is not None:
            raise found.exception
        return found.output

    assert "[budget]\ntarget_bits = 4.5\n" in shown("--recipe", "w4a16", "--target-bits", "4.5")
    assert 'store = "archive"' in shown("--recipe", "w4a16", "--store", "archive")
    with pytest.raises(UsageError, match="no recipe's own"):
        shown("--store", "archive")


def test_what_is_shown_makes_the_same_bytes(tmp_path: Path) -> None:
    tensors = {f"layers.{n}.w.weight": np.random.default_rng(n).normal(size=(8, 64)) for n in range(3)}
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, tmp_path / "in.safetensors")
    first = [
        "quantize",
        str(tmp_path / "in.safetensors"),
        "--bits",
        "4",
        "--group-size",
        "32",
        "--set",
        "*1*:bits=8",
    ]
    shown = CliRunner().invoke(cli, [*first, "-o", "x", "--show-recipe"], standalone_mode=False)
    (tmp_path / "r.toml").write_text(shown.output)
    CliRunner().invoke(cli, [*first, "-o", str(tmp_path / "a.safetensors")], standalone_mode=False)
    again = ["pipeline", first[1], "--recipe", str(tmp_path / "r.toml"), "-o", str(tmp_path / "b.safetensors")]
    CliRunner().invoke(cli, again, standalone_mode=False)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = (
    TEXTS | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3)
KEYS = st.from_regex("[a-z_]{1,8}", fullmatch=True)
FLAT = st.dictionaries(KEYS, VALUES, max_size=4)


@given(st.dictionaries(KEYS, VALUES | st.lists(FLAT, min_size=1, max_size=2) | FLAT, max_size=4))
def test_toml_is_read_as_it_was_written(tables: dict[str, Any]) -> None:
    assert strict_toml.parse(strict_toml.text_of(tables), "here") == tables


def test_training_between_other_stages_is_shown() -> None:
    train = '[[stage]]\nkind = "distill"\nmethod = "soft-targets"\ninputs = "i.npy"\n'
    loop = '[[stage]]\nrepeat = 2\n[[stage.stage]]\nkind = "prune"\nsparsity = {from = 0.5, to = 0.8}\n'
    recipe = parse_recipe(loop + train.replace("[[stage]]", "[[stage.stage]]"), "r")
    shown = effective(recipe)
    assert [table["kind"] for table in strict_toml.parse(shown, "r")["stage"]] == ["prune", "distill"] * 2
    assert effective(parse_recipe(shown, "r")) == shown


def test_inputs_serve_the_stages_that_name_none(tmp_path: Path) -> None:
    train = '[[stage]]\nkind = "distill"\nmethod = "soft-targets"\n'
    recipe = parse_recipe(f'{train}inputs = "own.npy"\n{train}', "r")
    found = recipe_for(recipe, inputs="common.npy")
    assert [leg.training.inputs for leg in found.legs if leg.training] == ["own.npy", "common.npy"]
    with pytest.raises(UsageError, match="soft-targets needs example inputs"):
        api.pipeline(tmp_path / "in.npy", tmp_path / "out.npy", recipe=recipe)
    with pytest.raises(UsageError, match="--inputs: no stage takes them"):
        recipe_for(found, inputs="more.npy")
