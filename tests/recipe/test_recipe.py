"""Recipes are strict: what is wrong is named with its place, and the three ways of writing one mean the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import archives
from support.console import LLAMA, STUDENT, TEACHER, Done, compressor, spawn
from support.laws import store

from compressor import api
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import CompressorError, Problems, UsageError
from compressor.files.identity import unknown
from compressor.files.input_file import InputFile
from compressor.methods.registry import make_method, methods_of
from compressor.recipe.model import Recipe
from compressor.recipe.stages import make_stage, parse_stage
from compressor.recipe.toml_file import load_recipe, parse_recipe, ready_recipes

BAD_BITS = ["0", "1", "1.5", "-8", "33", "nan", "inf", "", "٤", "1" * 30, "8x", "0x8", "True"]
BAD_SHARES = ["-0.1", "1", "1.0001", "50", "nan", "inf", "-inf", "1e400", "50%", "", "½", "0,5"]


def refused(done: Done, *said: str) -> None:
    """Exit 2, one line that says all of this, nothing on stdout."""
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    for text in said:
        assert text in line


def toml(text: str) -> Recipe:
    return parse_recipe(text, "recipe x.toml")


# ---- values out of range -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", BAD_BITS)
def test_bits_out_of_range(value: str, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    refused(compressor("quantize", TEACHER, "-o", output, f"--bits={value}"), "--bits", "from 2 to 8")
    wide = "64" if value in ("1", "33") else value
    step = compressor("quantize", TEACHER, "-o", output, "--scheme=step", f"--bits={wide}")
    refused(step, "--bits", "from 1 to 32")
    stage = compressor("pipeline", TEACHER, "-o", output, "--stage", f"quantize:bits={value}")
    refused(stage, "bits: must be an integer from 2 to 8")
    rule = f"fc1.weight:bits={value}"
    refused(
        compressor("quantize", TEACHER, "-o", output, "--set", rule),
        "--set fc1.weight: bits: must be",
        "from 2 to 8",
    )
    assert not output.exists()


@pytest.mark.parametrize("value", BAD_SHARES)
def test_sparsity_out_of_range(value: str, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    said = ("sparsity", "at least 0 and below 1")
    refused(compressor("prune", TEACHER, "-o", output, f"--sparsity={value}"), *said)
    if "," not in value:
        refused(compressor("pipeline", TEACHER, "-o", output, "--stage", f"prune:sparsity={value}"), *said)
    assert not output.exists()


@pytest.mark.parametrize("value", ["0", "1.5", '"4"', "true", "nan", "[4]", "{}", "1111111111111111111111111"])
def test_bits_of_a_wrong_kind_in_a_file(value: str) -> None:
    with pytest.raises(UsageError, match=r"^recipe x.toml: stage\[0\]\.bits: must be an integer from 2 to 8, not "):
        toml(f'[[stage]]\nkind = "quantize"\nbits = {value}')


@pytest.mark.parametrize("value", ["-0.1", "1", "50", "nan", "-inf", '"0.5"', "true", "1e400"])
def test_sparsity_of_a_wrong_kind_in_a_file(value: str) -> None:
    with pytest.raises(UsageError, match=r"stage\[0\]\.sparsity: must be a number at least 0 and below 1, not "):
        toml(f'[[stage]]\nkind = "prune"\nsparsity = {value}')


def test_a_refusal_of_a_long_number_is_immediate_and_short(tmp_path: Path) -> None:
    done = spawn("quantize", TEACHER, "-o", tmp_path / "o.safetensors", "--scheme", "step", "--bits", "9" * 5000)
    assert done.returncode == 2
    assert len(done.stderr) < 300
    assert "…" in done.stderr


def test_numbers_as_people_write_them() -> None:
    assert make_method("prune", {"sparsity": ".5"}, text=True) == make_method("prune", {"sparsity": 0.5})
    assert make_method("prune", {"threshold": "1e-3"}, text=True) == make_method("prune", {"threshold": 0.001})
    assert make_method("prune", {"threshold": 1}).describe() == {"method": "threshold", "threshold": 1}


# ---- unknown keys and wrong types ----------------------------------------------------------------------

MISTAKES = [
    ("", "has no [[stage]]"),
    ("stage = []", "has no [[stage]]"),
    ("stage = 3", "stage: Expected `array`"),
    ("[stage]\nkind = 'prune'", "stage: Expected `array`"),
    ("stages = []", "unknown field `stages`"),
    ("[[stage]]", "stage[0].kind: is missing; give one of prune, distill, quantize"),
    (
        "[[stage]]\nkind = 'prun'",
        "stage[0].kind: must be one of prune, distill, quantize, not 'prun'. Did you mean prune?",
    ),
    ("[[stage]]\nkind = 7", "kind: Expected `str`, got `int`"),
    ("[[stage]]\nkind = 'prune'\nsparsty = 0.5", "stage[0].sparsty: is not known. Did you mean sparsity?"),
    ("[[stage]]\nkind = 'quantize'\nqqq = 1", "stage[0].qqq: is not known"),
    ("[[stage]]\nkind = 'quantize'\nincluded = 1", "stage[0].included: is not known. Did you mean include?"),
    (
        "[[stage]]\nkind = 'quantize'\nscheme = 'itn'",
        "stage[0].scheme: there is no quantize scheme 'itn'. Did you mean int?",
    ),
    ("[[stage]]\nkind = 'quantize'\nscheme = ['int']", "stage[0].scheme: there is no quantize scheme '['int']'"),
    (
        "[[stage]]\nkind = 'prune'\nmethod = 'treshold'",
        "Did you mean threshold? There are alps, layer-adaptive, magnitude, mask, nm, random, sparsegpt, "
        "threshold, wanda",
    ),
    (
        "[[stage]]\nkind = 'prune'",
        "stage[0].method magnitude needs sparsity (a number at least 0 and below 1; share of",
    ),
    ("[[stage]]\nkind = 'quantize'\nscheme = 'step'", "stage[0].scheme step needs bits (an integer from 1 to 32;"),
    ("[[stage]]\nkind = 'quantize'\nsymmetric = 'no'", "stage[0].symmetric: must be true or false, not 'no'"),
    (
        "[[stage]]\nkind = 'quantize'\ngranularity = 'row'",
        "stage[0].granularity: must be one of tensor, channel, group",
    ),
    (
        "[[stage]]\nkind = 'quantize'\nfactor = 3\nbits = 4",
        "stage[0].factor: is no option of scheme int. Give scheme factor",
    ),
    ("[[stage]]\nkind = 'quantize'\ninclude = 'fc1'", "stage[0].include: Expected `array`, got `str`"),
    ("[[stage]]\nkind = 'quantize'\ninclude = [1]", "stage[0].include[0]: Expected `str`, got `int`"),
    ("[[stage]]\nkind = 'quantize'\ninclude = ['re:(']", "stage[0]: pattern 're:(' is not a regular expression"),
    (
        "[[stage]]\nkind = 'quantize'\nstore = 'both'",
        "store: must be one of auto, dense, packed, codes, bitmask, csr, nm, smallest, archive, not 'both'",
    ),
    (
        "[[stage]]\nkind = 'prune'\nsparsity = 0.5\nstore = 'packed'",
        "stage[0].store of prune must be one of dense, bitmask, csr, nm, auto, smallest, archive, not 'packed'",
    ),
    ("[[stage]]\nkind = 'distill'\nteacher = 't'\nstore = 'dense'", "stage[0].store has no meaning for distill"),
    ("[[stage]]\nkind = 'prune'\nsparsity = 0.5\nteacher = 'x'", "stage[0].method magnitude takes no teacher"),
    ("[[stage]]\nkind = 'distill'", "stage[0].method blend needs a teacher. Give --teacher PATH"),
    (
        "[[stage]]\nkind = 'quantize'\nrule = [{bits = 3}]",
        "stage[0].rule[0].match: must be a pattern of tensor names",
    ),
    (
        "[[stage]]\nkind = 'quantize'\nrule = [{match = 'a'}, {match = 'b', bits = 99}]",
        "stage[0].rule[1].bits: must be",
    ),
    (
        "[[stage]]\nkind = 'quantize'\nrule = [{match = 'b', bitts = 4}]",
        "stage[0].rule[0].bitts: is not known. Did you mean bits?",
    ),
    ("[[stage]]\nkind = 'quantize'\nrule = {match = 'b'}", "stage[0].rule: Expected `array`, got `object`"),
    ("[[stage]]\nkind = 'quantize'\n[[stage]]\nkind = 'prune'\nsparsity = 2", "stage[1].sparsity: must be"),
    ("[[stage]]\nkind = 'quantize'\nbits = 4\nbits = 8", "Cannot overwrite a value"),
    ("name = 3\n[[stage]]\nkind = 'quantize'", "name: Expected `str`, got `int`"),
    ("[[stage]\n", "Expected ']]'"),
    ("\x00", "Invalid statement"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[repr(text)[1:40] for text, _ in MISTAKES])
def test_mistakes_are_named_with_their_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        toml(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(("recipe x.toml: ", "pattern "))
    (tmp_path / "r.toml").write_text(text)
    refused(compressor("pipeline", TEACHER, "-o", tmp_path / "o.safetensors", "--recipe", tmp_path / "r.toml"))


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(Problems) as caught:
        toml("[[stage]]\nkind = 'quantize'\nbits = 1\nfoo = 2\n[[stage]]\nkind = 'prune'\nsparsity = 7")
    assert [str(problem).split(": ")[1] for problem in caught.value.problems] == [
        "stage[0].bits",
        "stage[0].foo",
        "stage[1].sparsity",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe[\x00[\x00",
        b"\x80\x02}q\x00.",
        b"a=" + b"[" * 100_000,
        b"a." * 60_000 + b"a=1",
        b"[" + b"a." * 60_000 + b"a]",
        b"x=['''\n",
        b"# " + b"x" * 250_000,
        b"'x'=[{" + b"'a' . " * 50_000 + b"a=1}]",
        b"!!python/object/apply:os.system ['true']",
    ],
    ids=range(9),
)
def test_hostile_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(content)
    done = compressor("pipeline", TEACHER, "-o", tmp_path / "o.safetensors", "--recipe", tmp_path / "r.toml")
    refused(done, "recipe")
    assert len(done.err) < 700


def test_dots_in_strings_and_comments_are_harmless() -> None:
    dots = "." * 100
    found = toml(f"""
# {dots} ' "
name = "{dots} \\" {dots}"
description = '''{dots}
 " {dots}'''
[[stage]]
kind = "quantize"
exclude = ['{dots}', "a.b.c", \"\"\"{dots}\"\"\"]
""")
    assert found.stages[0].exclude == (dots, "a.b.c", dots)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "w4a17",
            "there is no recipe 'w4a17'. Did you mean w4a16? `compressor pipeline --list` shows the ready ones",
        ),
        ("nonsense", "there is no recipe 'nonsense'. `compressor pipeline"),
        ("missing.toml", "recipe missing.toml: cannot be read: No such file or directory"),
        ("./w4a16", "recipe ./w4a16: cannot be read: No such file"),
        ("/", "recipe /: cannot be read: Is a directory"),
        ("a\0b.toml", "cannot be read: embedded null byte"),
        ("\x1b[31m", "there is no recipe '\\x1b[31m'"),
    ],
)
def test_recipes_that_are_not_there(name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(name)
    assert said in str(caught.value)


def test_either_a_recipe_or_stages(tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    refused(compressor("pipeline", TEACHER, "-o", output), "give either a recipe or stages")
    both = ("--recipe", "w8a8", "--stage", "quantize:")
    refused(compressor("pipeline", TEACHER, "-o", output, *both), "give either a recipe or stages")


# ---- texts ---------------------------------------------------------------------------------------------

PAIRS = [
    ("quantize", "[[stage]]\nkind='quantize'"),
    ("prune:sparsity=0.5", "[[stage]]\nkind='prune'\nsparsity=0.5"),
    ("prune:method=magnitude, sparsity=0.5 ,scope=global", "[[stage]]\nkind='prune'\nsparsity=0.5\nscope='global'"),
    ("prune:threshold=1", "[[stage]]\nkind='prune'\nmethod='threshold'\nthreshold=1.0"),
    (
        "quantize:bits=4,group-size=16,symmetric=false",
        "[[stage]]\nkind='quantize'\nbits=4\ngroup_size=16\nsymmetric=false",
    ),
    ("quantize:factor=64,store=dense", "[[stage]]\nkind='quantize'\nfactor=64\nstore='dense'"),
    ("quantize:include=a*|b,exclude=re:x.*", "[[stage]]\nkind='quantize'\ninclude=['a*','b']\nexclude=['re:x.*']"),
    ("distill:teacher=t.npy,alpha=0.25", "[[stage]]\nkind='distill'\nteacher='t.npy'\nalpha=0.25"),
]


@pytest.mark.parametrize(("text", "table"), PAIRS)
def test_texts_equal_tables(text: str, table: str) -> None:
    stage = parse_stage(text)
    assert toml(table) == Recipe((stage,))
    assert stage.describe() == toml(table).stages[0].describe()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "kind: must be one of prune, distill, quantize, not ''"),
        ("quantise:bits=4", "Did you mean quantize?"),
        ("prune:sparsity", "expected key=value, each key once, got 'sparsity'"),
        ("prune:sparsity=0.5,sparsity=0.6", "each key once, got 'sparsity=0.6'"),
        ("prune:kind=prune,sparsity=0.5", "kind: is not known"),
        ("prune:sparsity=0.5,scope=globl", "scope: must be one of tensor, global, not 'globl'"),
        ("quantize:symmetric=maybe", "symmetric: must be true or false"),
        (
            "quantize:store=no",
            "store: must be one of auto, dense, packed, codes, bitmask, csr, nm, smallest, archive, not 'no'",
        ),
        ("prune:\x1b]0;x\x07=1", "--stage prune:\\x1b]0;x\\x07=1: "),
        (
            "distill:method=reweight,alpha=0.5,teacher=x",
            "alpha: is no option of method reweight. Give method blend",
        ),
    ],
)
def test_texts_with_mistakes(text: str, said: str) -> None:
    with pytest.raises(CompressorError) as caught:
        parse_stage(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--stage ")


def test_a_recipe_and_its_texts_write_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        "name = 'mine'\n[[stage]]\nkind = 'prune'\nsparsity = 0.5\n"
        "[[stage]]\nkind = 'quantize'\nbits = 3\ngranularity = 'channel'"
    )
    texts = ["--stage", "prune:sparsity=0.5", "--stage", "quantize:bits=3,granularity=channel"]
    for name, how in (("a", ["--recipe", tmp_path / "r.toml"]), ("b", texts)):
        assert compressor("pipeline", STUDENT, "-o", tmp_path / f"{name}.safetensors", *how).code == 0
    api.pipeline(STUDENT, tmp_path / "c.safetensors", recipe=load_recipe(str(tmp_path / "r.toml")))
    found = {(tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"}
    assert len(found) == 1


def test_a_verb_and_a_stage_write_the_same_bytes(tmp_path: Path) -> None:
    api.quantize(
        STUDENT, tmp_path / "a.safetensors", bits=8, rules=[("fc1*", {"bits": 4, "granularity": "channel"})]
    )
    rule = ("--set", "fc1*:bits=4,granularity=channel")
    assert compressor("quantize", STUDENT, "-o", tmp_path / "b.safetensors", "--bits", "8", *rule).code == 0
    text = '[[stage]]\nkind="quantize"\nbits=8\nrule=[{match="fc1*",bits=4,granularity="channel"}]'
    api.pipeline(STUDENT, tmp_path / "c.safetensors", recipe=toml(text))
    found = {(tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"}
    assert len(found) == 1


# ---- which method --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "options", "expected"),
    [
        ("prune", {"sparsity": 0.5}, "magnitude"),
        ("prune", {"threshold": 0.5}, "threshold"),
        ("quantize", {}, "int"),
        ("quantize", {"bits": 4}, "int"),
        ("quantize", {"factor": 4}, "factor"),
        ("quantize", {"code_bits": 8, "bits": 4}, "step"),
        ("quantize", {"scheme": "step", "bits": 4}, "step"),
        ("distill", {}, "blend"),
        ("distill", {"alpha": 0.1}, "blend"),
    ],
)
def test_the_method_is_inferred_from_the_options(verb: str, options: dict[str, Any], expected: str) -> None:
    assert make_method(verb, options).id == expected


def test_options_of_two_methods_fit_neither() -> None:
    with pytest.raises(UsageError) as caught:
        make_method("prune", {"threshold": "1", "sparsity": "0.5"}, text=True)
    assert (
        str(caught.value) == "--threshold: is no option of method magnitude. Give method threshold, or leave it out"
    )


def test_a_rule_may_change_the_method() -> None:
    stage = make_stage(
        "quantize",
        {"bits": 4, "group_size": 16},
        rules=[("a", {"scheme": "factor", "factor": 8}), ("b", {"bits": 8})],
    )
    assert stage.method_for("a") == methods_of("quantize")["factor"](factor=8)
    assert stage.method_for("b") == methods_of("quantize")["int"](bits=8, group_size=16)
    assert stage.method_for("c") == methods_of("quantize")["int"](bits=4, group_size=16)


def test_the_first_rule_that_matches_wins() -> None:
    stage = make_stage("quantize", {}, rules=[("re:.*q_proj.*", {"bits": 4}), ("*", {"bits": 2})])
    assert [stage.method_for(name).describe()["bits"] for name in ("x.q_proj.weight", "y")] == [4, 2]


def test_what_was_done_is_described_without_the_teachers_path() -> None:
    stage = make_stage("distill", {"alpha": 0.5}, teacher="/secret/path", exclude=["x"])
    assert stage.describe() == {"kind": "distill", "method": "blend", "alpha": 0.5, "exclude": ["x"]}
    packed = make_stage("quantize", {"bits": 4}, rules=[("a", {"bits": 8})], store="dense")
    assert packed.describe()["store"] == "dense"
    assert packed.describe()["rule"][0]["match"] == "a"
    assert replace(packed, store="auto") == make_stage("quantize", {"bits": 4}, rules=[("a", {"bits": 8})])


# ---- stages together -----------------------------------------------------------------------------------


def test_stages_are_fused_every_tensor_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = InputFile.read_runs

    def counting(self: InputFile, runs: Any) -> None:
        runs = list(runs)
        read.extend(len(buffer) for buffer, _ in runs)
        original(self, runs)

    stages = ["prune:threshold=0.01", "quantize:factor=512,store=dense", "prune:threshold=0.02", "quantize:bits=8"]
    checkpoint = open_checkpoint(TEACHER)
    tensors = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    monkeypatch.setattr(InputFile, "read_runs", counting)
    monkeypatch.setattr(
        "compressor.workflows.one_pass.identity_of", unknown
    )  # hashing a small input reads it once more
    api.pipeline(TEACHER, tmp_path / "out.safetensors", stages=stages)
    assert tensors <= sum(read) < tensors + 50_000
    monkeypatch.undo()
    path = TEACHER
    for number, text in enumerate(stages):
        api.pipeline(path, path := tmp_path / f"{number}.safetensors", stages=[text])
    one, other = (archives.read(tmp_path / name) for name in ("out.safetensors", "3.safetensors"))
    assert one == other


def test_codes_end_the_work_on_a_tensor(tmp_path: Path) -> None:
    done = compressor(
        "pipeline",
        STUDENT,
        "-o",
        tmp_path / "o.safetensors",
        "--stage",
        "quantize:bits=8",
        "--stage",
        "prune:sparsity=0.5",
    )
    assert done.code == 2
    assert len(done.err.splitlines()) == 3
    assert (
        "error: tensor 'fc1.weight': stage 1 cannot follow stage 0, which stores codes. "
        "Let the earlier one store = dense, or put it last\n"
    ) in done.err
    stages = ["quantize:bits=8,include=fc1*,granularity=tensor", "prune:sparsity=0.5,exclude=fc1*"]
    api.pipeline(STUDENT, tmp_path / "o.safetensors", stages=stages)
    api.pipeline(
        STUDENT, tmp_path / "o.npz.safetensors", stages=["quantize:bits=8,store=dense", "prune:sparsity=0.5"]
    )


@pytest.mark.parametrize(
    ("output", "stage", "said"),
    [
        ("o.safetensors", "quantize:bits=8,store=codes", "--store codes writes an .npz. End the output in .npz"),
        ("o.npy", "quantize:bits=8,store=packed", "an .npy holds no packed codes. Use --store dense"),
        ("o.npz", "quantize:bits=8,store=dense", "an .npz output holds codes. Leave --store out"),
    ],
)
def test_stores_that_the_container_does_not_hold(output: str, stage: str, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((4, 4), np.float32))
    refused(compressor("pipeline", tmp_path / "in.npy", "-o", tmp_path / output, "--stage", stage), said)


def test_containers_of_one_tensor(tmp_path: Path) -> None:
    for name in ("o.npy", "o.npz"):
        done = compressor("quantize", TEACHER, "-o", tmp_path / name, "--bits", "8")
        assert done.code == 4
        assert f"holds 6 tensors, and an {name[1:]} holds one. Write .safetensors, or a folder\n" in done.err
        assert len(done.err.splitlines()) == 1
    np.save(tmp_path / "in.npy", np.ones((4, 4), np.float32))
    done = compressor("prune", tmp_path / "in.npy", "-o", tmp_path / "o.npz", "--sparsity", "0.5")
    refused(done, "an .npz holds integer codes, and this tensor has none")


def test_a_group_size_that_does_not_divide_names_sizes_that_would(tmp_path: Path) -> None:
    done = compressor("quantize", TEACHER, "-o", tmp_path / "o.safetensors", "--bits", "4", "--group-size", "128")
    assert done.code == 2
    first, second, third = done.err.splitlines()
    assert first == (
        "error: tensor 'fc1.weight': group size 128 does not divide the row of 784. These would: 392, 196, 112, "
        "98, 56, 49, 28, 16; or use --fallback for the nearest, or --granularity channel, or --exclude it"
    )
    assert "fc2.weight" in second
    assert "fc3.weight" in third


def test_generated_names_must_not_meet_names_that_are_there(tmp_path: Path) -> None:
    """`w.weight_scale` exists already beside `w.weight`, whose scale would be called so."""
    tensors = {name: ("F32", store(np.ones((4, 4)), "F32")) for name in ("w.weight", "w.weight_scale")}
    archives.write(tmp_path / "in.safetensors", tensors)
    done = compressor(
        "quantize", tmp_path / "in.safetensors", "-o", tmp_path / "o.safetensors", "--exclude", "*scale"
    )
    assert done.code == 3
    assert "its part 'w.weight_scale' would have the name of one of 'w.weight'" in done.err


def test_parts_must_not_have_the_name_of_a_tensor_that_is_stored_as_others(tmp_path: Path) -> None:
    """Both are stored as codes, and a reader would take the scale of one for the other."""
    tensors = {name: ("F32", store(np.ones((4, 4)), "F32")) for name in ("w.weight", "w.weight_scale")}
    archives.write(tmp_path / "in.safetensors", tensors)
    done = compressor("quantize", tmp_path / "in.safetensors", "-o", tmp_path / "o.safetensors", "--include", "*")
    assert done.code == 3
    assert "its part 'w.weight_scale' would have the name of one of 'w.weight_scale'" in done.err
    assert not (tmp_path / "o.safetensors").exists()


def test_a_mask_in_the_place_of_the_output_is_called_so(tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    done = compressor("prune", TEACHER, "-o", out, "--sparsity", "0.5", "--save-mask", out)
    assert done.code == 2
    assert f"--save-mask {out}: is the output itself" in done.err


# ---- ready recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ready_recipes())
def test_ready_recipes_are_whole(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    if name == "lenet5":
        pytest.skip("no such network is at hand; tests/test_deep_compression.py makes a small one")
    source = TEACHER if name in ("mlp-edge", "lenet300") else LLAMA
    inputs = []
    if name == "lenet300":
        np.save(tmp_path / "x.npy", np.zeros((40, 28, 28), np.uint8))
        inputs = ["--inputs", tmp_path / "x.npy"]
    done = compressor("pipeline", source, "-o", tmp_path / "out", "--recipe", name, "--dry-run", *inputs)
    assert done.code == 0, done.err
    assert "would write" in done.out


def test_ready_recipes_are_listed() -> None:
    done = compressor("pipeline", "--list")
    assert done.code == 0
    for name in ready_recipes():
        assert f"\n{name}\n  " in f"\n{done.out}"
    assert max(map(len, done.out.splitlines())) < 110
