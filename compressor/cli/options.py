"""Every option that commands share, once; and the options of methods, made from their dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any, get_args

import click

from compressor.architectures.loaders import READERS
from compressor.cli import documents
from compressor.cli.streams import emit, say
from compressor.core.errors import UsageError
from compressor.core.text import size_of
from compressor.methods.contract import Method
from compressor.methods.options import (
    SELECTOR,
    SHARED_HELP,
    Option,
    choices_of,
    describe,
    options_of,
    required_options,
)
from compressor.methods.registry import methods_of
from compressor.methods.structured_cut import cut_options
from compressor.recipe.gates import Gates
from compressor.recipe.matched_norms import METHOD as MATCHED
from compressor.recipe.model import Recipe
from compressor.recipe.presets import PRESETS
from compressor.recipe.sequential_refit import METHOD as REFIT
from compressor.recipe.training import FILES, OfNetworks, Training, is_training, training_of, training_options
from compressor.recipe.training import METHOD as TRAINED

if TYPE_CHECKING:
    from compressor.workflows.budget.choice import Allocation
    from compressor.workflows.results import Report
    from compressor.workflows.run_options import RunOptions

SURVEY = "survey"  # in a command's context: that it is to survey, and not to run
# What the option that names a method says first
_CHOICE = {
    "prune": "Which weights go: by default those of smallest magnitude",
    "distill": "How the teacher is used: by default blend, a mean of both",
    "quantize": "What weights become: by default int (integers)",
}
_WIDE = 60  # of what stands for the value of an option in help; longer lists are told in words
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Size(click.ParamType[int]):
    """A number of bytes, `300MB` or `1.5GiB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = size_of(str(value))
        if found is None:
            self.fail(f"{value!r} is not a size such as 300MB or 1.5GiB", param, ctx)
        return found


class Finite(click.ParamType[float]):
    """A finite number in [low, high]; Click's own FloatRange lets NaN through."""

    name = "number"

    def __init__(self, low: float, high: float = sys.float_info.max) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value) if str(value).isascii() else float("nan")
        except ValueError:
            number = float("nan")
        if not isfinite(number) or not self.low <= number <= self.high:
            top = "" if self.high == sys.float_info.max else f" and at most {self.high:g}"
            self.fail(f"{value!r} is not a number of at least {self.low:g}{top}", param, ctx)
        return number


def chain(*decorators: Decorator) -> Decorator:
    """Several decorators as one; the first named comes first in the help."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


input_argument = click.argument("input_path", metavar="INPUT")
debug = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show a traceback when something is our bug."
)
workers = click.option(
    "--workers", type=click.IntRange(1, 256), help="How many work at once; by default one a processor."
)
output_format = click.option(
    "--format",
    "style",
    type=click.Choice(["table", "json"]),
    help="How results are printed; by default as a table.",
)
top = click.option(
    "--top", type=click.IntRange(0), help="Rows to show, the worst first; by default 60, and 0 shows all."
)
wide = click.option("--wide", is_flag=True, help="All columns and whole names, however wide.")
verbose = click.option("-v", "--verbose", is_flag=True, help="Tell on stderr what is done, and how far it is.")
quiet = click.option("-q", "--quiet", is_flag=True, help="One line, and no progress.")

output_option = click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUTPUT",
    help="A file (.safetensors, .npy, .npz, .gguf) or folder. Its suffix decides which.",
)
writing = chain(input_argument, output_option)
running = chain(
    click.option(
        "--component", metavar="NAME", default="", help="Of a pipeline of diffusers: which folder to treat."
    ),
    click.option("--strip-prefix", metavar="TEXT", help="Take this off the names of tensors, as in _orig_mod."),
    click.option("--fold-weight-norm", is_flag=True, help="Make one weight of each gain and direction."),
    click.option(
        "--max-shard-size", type=Size(), help="Of an output folder or .gguf: largest file of weights, such as 5GB."
    ),
    click.option(
        "--no-tokenizer", is_flag=True, help="Of a folder that becomes a .gguf: without the folder's tokenizer."
    ),
    click.option(
        "--leave-out",
        multiple=True,
        metavar="PATTERN",
        help="Of a folder that becomes a .gguf: tensors that are not to be in it.",
    ),
    click.option("--force", is_flag=True, help="Replace what is at OUTPUT. Whole, and at the end."),
    click.option("--dry-run", is_flag=True, help="Show what would be done, and exact sizes. Nothing is written."),
    click.option("--strict", is_flag=True, help="Leaving a weight matrix alone by default is an error."),
    click.option(
        "--non-finite",
        type=click.Choice(["error", "keep"]),
        default="error",
        help="Tensors with NaN or Inf: refuse, or carry over untouched.",
    ),
    click.option("--max-error", type=Finite(0), help="Largest relative error of a tensor; 0.1 is 10 %."),
    click.option("--min-ratio", type=Finite(0), help="How many times smaller at least."),
    click.option("--max-size", type=Size(), help="Largest output, such as 300MB."),
    click.option("--min-sparsity", type=Finite(0, 1), help="Smallest share of zeros in the treated tensors."),
    documents.report_option,
    documents.junit_option,
    documents.summary_option,
    click.option(
        "--log-file", metavar="FILE", help="Add lines about the progress to this file, every ten seconds."
    ),
    documents.card_option,
    workers,
    click.option(
        "--memory", type=Size(), help="Fewer workers where methods would take more than this, such as 8GB."
    ),
    output_format,
    top,
    wide,
    quiet,
    verbose,
    debug,
)
for_loader = click.option(
    "--for",
    "loader",
    type=click.Choice(list(READERS)),
    help="Write what this loader takes, or refuse. Its layout, its names, and dense what it wants so.",
)
part = chain(
    click.option(
        "--part",
        metavar="K/N",
        help="Be job K of N that write OUTPUT together: write a part beside it, which `compressor merge` takes.",
    ),
    click.option(
        "--surveyed",
        metavar="FILE",
        help="What `compressor survey` found of the whole model, in place of looking at all of it again.",
    ),
    click.option(
        "--scheduler", metavar="ADDRESS", help="Work on the Dask cluster of this scheduler, as tcp://host:8786."
    ),
)
show_recipe = click.option(
    "--show-recipe", is_flag=True, help="Print the recipe that does this, with all that was left open; run nothing."
)
allow_unmatched = click.option(
    "--allow-unmatched",
    is_flag=True,
    help="Patterns that match no tensor are noted, not refused: for shared recipes.",
)
selecting = chain(
    click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Only these, also what is left alone by default. Repeatable.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="Leave these tensors alone. GLOB as in *.mlp.*, or a regular expression after re:",
    ),
    click.option(
        "--set",
        "rules",
        multiple=True,
        metavar="GLOB:KEY=VALUE,...",
        help="Other options for these tensors. The first match wins.",
    ),
    allow_unmatched,
)
teacher = click.option("--teacher", metavar="PATH", help="The teacher: any container, tensors paired by name.")
requantize = click.option(
    "--requantize", is_flag=True, help="Quantize also what is quantized already: its codes are decoded first."
)
fallback = click.option(
    "--fallback", is_flag=True, help="Where a shape does not allow what is asked, take what is nearest, and say so."
)
preset = click.option(
    "--preset",
    default="",
    metavar="NAME",
    help=f"Ready bits for each tensor, such as q4_k_m. One of {', '.join(PRESETS)}.",
)
store = click.option(
    "--store",
    type=click.Choice(["auto", "dense", "packed", "codes", "bitmask", "csr", "nm", "smallest", "archive"]),
    default="auto",
    help="How codes are stored; by default packed. In a .npy as floats. Else restored floats (dense), plain "
    "integers (.npz; codes), or the non-zero codes only; smallest: of packed and the sparse layouts, tensor by "
    "tensor; archive: packed, then the whole file entropy-coded.",
)
store_distilled = click.option(
    "--store",
    type=click.Choice(["auto", "dense", "packed"]),
    help="Of low-rank and delta: dense, the numbers in the tensor's own shape; packed, factors or differences, for "
    "`restore`. auto: packed, dense for .npy.",
)
stats = click.option(
    "--stats", metavar="FILE", help="What `compressor calibrate` found of the inputs. For methods that go by it."
)
scores = click.option(
    "--scores", metavar="FILE", help="Weigh magnitudes by these scores of inputs, a vector a layer, row by row."
)
mask = click.option("--mask", metavar="PATH", help="Zero what is zero there: a saved mask, or a pruned checkpoint.")
save_mask = click.option(
    "--save-mask", metavar="FILE", help="Write which weights stay too, a bit each, as .safetensors."
)
store_pruned = click.option(
    "--store",
    type=click.Choice(["dense", "bitmask", "csr", "nm", "auto", "archive"]),
    help="How zeros are stored; by default as they are. That is dense, which all loaders take. Or the non-zero "
    "weights only, for `restore`: a bit a weight, column indices (.npz: SciPy's), two of four, or the smallest of "
    "all these tensor by tensor; archive: the whole file entropy-coded.",
)
store_archive = click.option(
    "--store",
    type=click.Choice(["stages", "archive"]),
    default="stages",
    help="What the stages say, or all of it as an archive, entropy-coded without loss; also without any stage.",
)
coded_against = click.option(
    "--base",
    metavar="PATH",
    help="Code the input, as it is, against the checkpoint that it was trained from: an archive that takes it to "
    "`restore`.",
)
read_with_base = click.option("--base", metavar="PATH", help="The checkpoint that an update or a delta is against.")
effort = click.option(
    "--effort",
    type=click.Choice(["fast", "small"]),
    default="fast",
    help="Of an archive: coded fast, or as small as it can be.",
)


def structure(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of structured cuts that no method of the verb has too."""
    taken = {key for method in methods_of("prune").values() for key in options_of(method)}
    made = []
    for key, (hint, declared) in cut_options().items():
        if key not in taken:
            choices = [str(choice) for choice in choices_of(hint) if choice is not None]
            metavar = "|".join(choices) if choices else describe(hint, declared).split()[1].upper()
            text = f"{declared.help[0].upper()}{declared.help[1:]}{'' if key == 'structure' else ' [--structure]'}."
            made.append(click.option("--" + key.replace("_", "-"), key, metavar=metavar, help=text))
    return chain(*made)(function)


def given_structure(values: dict[str, Any]) -> dict[str, Any]:
    """Where --structure is given, take every option of the stage that the user gave out of `values`, as texts."""
    shared = {key for method in methods_of("prune").values() for key in options_of(method)}
    own = {key: values.pop(key, None) for key in cut_options() if key not in shared}
    found = {key: value for key, value in own.items() if value is not None}
    if "structure" in found:
        return given("prune", values) | found
    if found:
        raise UsageError(f"--{next(iter(found)).replace('_', '-')} is for --structure, which is not given")
    return {}


def _own_training() -> dict[str, Any]:
    """The options of training that no method of the verb has too."""
    taken = {key for method in methods_of("distill").values() for key in options_of(method)}
    return {key: said for key, said in training_options().items() if key not in taken}


def training(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of training on a teacher's outputs that no method has too."""
    every = f"{TRAINED}, {REFIT}, {MATCHED}"
    made = [
        click.option(
            "--sequential",
            is_flag=True,
            help=f"Layer after layer, by the --inputs that those before leave it, in place of --stats [{REFIT}].",
        ),
        click.option("--inputs", metavar="FILE", help=f"Train on these inputs, or go by them (.npy) [{every}]."),
        click.option("--labels", metavar="FILE", help=f"Classes of the inputs (.npy), if known [{TRAINED}]."),
        click.option(
            "--network", metavar="NAME|FILE", help=f"What both networks are, where tensors do not tell [{every}]."
        ),
        click.option(
            "--teacher-network", metavar="NAME|FILE", help=f"What the teacher is, if not --network [{TRAINED}]."
        ),
    ]
    for key, (hint, declared) in _own_training().items():
        name, default = "--" + key.replace("_", "-"), Training.__dataclass_fields__[key].default
        said = "" if default is None or isinstance(default, bool) else f": {default}"
        text = f"{declared.help[0].upper()}{declared.help[1:]} [{TRAINED}{said}]."
        if hint is bool:
            made.append(click.option(f"{name}/--{declared.off}", key, default=None, help=text))
        else:
            metavar = "|".join(choice for choice in get_args(hint) if isinstance(choice, str)) or "NUMBER"
            made.append(click.option(name, key, metavar=metavar, help=text))
    return chain(*made)(function)


def given_training(values: dict[str, Any]) -> OfNetworks | None:
    """Take what is said of training, or of refitting in order, out of `values`, as texts; None where another method
    is asked for."""
    files = {key: path for key in FILES if (path := values.pop(key)) is not None}
    found = {key: values.pop(key) for key in _own_training()}
    found = {
        key: str(value).lower() if value in (True, False) else value
        for key, value in found.items()
        if value is not None
    }
    if values.pop("sequential"):
        found["sequential"] = "true"
    if is_training("distill", {"method": values.get("method"), **found}):
        if "sequential" in found and values.get("stats") is not None:
            found["stats"] = values["stats"]  # of which it says why not
        paths = {"teacher": values.pop("teacher"), **files}
        return training_of(found | given("distill", values), paths, text=True)
    first = next(iter({**files, **found}), None)
    if first is not None:
        owner = {"sequential": REFIT}.get(first, TRAINED)
        either = values.get("method") == REFIT and first in ("inputs", "network", "divide")
        remedy = "Refit goes by --stats, or with --sequential by --inputs" if either else ""
        raise UsageError(f"--{first.replace('_', '-')} is for --method {owner}", remedy=remedy)
    return None


def method_options(verb: str, *others: str) -> Decorator:
    """An option for every field of every method of a verb, and the one that selects the method (or `others`).

    Values arrive as text or None and are converted where recipes are, so that all errors read alike.
    """
    known = methods_of(verb)
    selector = SELECTOR[verb]
    fields: dict[str, list[tuple[str, Any, Option, bool]]] = {}
    for name, method in known.items():
        for key, (hint, declared) in options_of(method).items():
            fields.setdefault(key, []).append((name, hint, declared, key in required_options(method)))
    told = f"{_CHOICE[verb]}. May be left out where the other options tell. One of {', '.join((*known, *others))}."
    names = selector.upper()
    made = [click.option(f"--{selector}", selector, metavar=names, help=told)]
    for key, uses in fields.items():
        flag = "--" + key.replace("_", "-")
        _, hint, declared, _ = uses[0]
        texts = {option.help for _, _, option, _ in uses}
        text = texts.pop() if len(texts) == 1 else SHARED_HELP.get((verb, key), declared.help)
        text = f"{text[0].upper()}{text[1:]} [{_owners(known, key, uses, declared)}]."
        if bool in (hint, *get_args(hint)):
            made.append(click.option(f"{flag}/--{declared.off or f'no-{flag[2:]}'}", key, default=None, help=text))
        else:
            allowed = (choice for _, theirs, _, _ in uses for choice in choices_of(theirs) if choice is not None)
            choices = [str(choice) for choice in dict.fromkeys(allowed)]
            nouns = {describe(theirs, said).split()[1].upper() for _, theirs, said, _ in uses}
            metavar = "|".join(choices) or ("NUMBER" if "NUMBER" in nouns else min(nouns))
            if len(metavar) > _WIDE:
                metavar, text = key.upper(), f"{text[:-1]}: {', '.join(choices)}."
            made.append(click.option(flag, key, metavar=metavar, help=text))
    return chain(*made)


def _owners(
    known: Mapping[str, type[Method]], key: str, uses: Sequence[tuple[str, Any, Option, bool]], declared: Option
) -> str:
    """The methods that an option belongs to, with its default in each: `int: 8; step: required`."""
    said: dict[str, list[str]] = {}
    for name, _, _, required in uses:
        default = getattr(known[name], key, None)
        if isinstance(default, bool):
            default = key if default else declared.off or f"no-{key.replace('_', '-')}"
        said.setdefault("required" if required else "" if default is None else str(default), []).append(name)
    return "; ".join(", ".join(names) + (f": {value}" if value else "") for value, names in said.items())


def given(verb: str, values: dict[str, Any]) -> dict[str, Any]:
    """Take the method options of a verb that the user gave out of `values`, as texts."""
    keys = {SELECTOR[verb]} | {key for method in methods_of(verb).values() for key in options_of(method)}
    taken = {key: values.pop(key) for key in keys if key in values}
    return {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in taken.items()
        if value is not None
    }


def parse_rules(texts: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """`--set 'GLOB:bits=8,granularity=channel'`, repeatedly."""
    rules = []
    for text in texts:
        glob, colon, rest = text.rpartition(":")
        pairs = [item.partition("=") for item in rest.split(",")]
        if not colon or not glob or not all(key and equals for key, equals, _ in pairs):
            raise UsageError(
                f"--set {text!r} is not GLOB:KEY=VALUE",
                remedy="For example --set '*.down_proj.weight:bits=8'",
            )
        rules.append((glob, {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}))
    return rules


class Session:
    """One run of a verb: how it is to be carried out, and the `report` that whoever runs it puts here."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.report: Report | None = None


@contextmanager
def session(values: dict[str, Any], recipe: Recipe, places: tuple[str, str] | None = None) -> Iterator[Session]:
    """Run a verb that makes an output inside, with the shared options among `values`, and print its report. What
    the `recipe` that it runs says of gates and report holds where the options say nothing. `places` are the paths
    of its input and its output.

    A failed gate prints the report too. A report that cannot be printed does not undo the result.
    """
    from compressor.cli.report import progress, render
    from compressor.workflows.results import ReportedGateFailed
    from compressor.workflows.run_options import RunOptions

    beside = documents.Documents.taken(values)
    if places is not None:
        beside.check_apart(places[0], output=places[1])
    style, rows, hush, wider = (values.pop(key) for key in ("style", "top", "quiet", "wide"))
    style = style or recipe.report.get("format", "table")
    rows = recipe.report.get("top") if rows is None else rows
    hush = hush or recipe.report.get("quiet", False)
    failed: ReportedGateFailed | None = None
    log = values.pop("log_file", None)
    with progress.bar(enabled=not hush, log=log, verbose=values.pop("verbose")) as bar:
        gates = gates_of(values).within(recipe.gates)
        told = {"gates": gates, "progress": bar, "processes": True, "histograms": beside.report is not None}
        run = Session(RunOptions.of({**values, **told}))
        try:
            yield run
        except ReportedGateFailed as error:
            run.report, failed = error.report, error
    assert run.report is not None  # noqa: S101 - whoever ran it gave one
    emit(render(run.report, style, top=rows, quiet=hush, wide=wider), essential=False)
    for sentence in run.report.warnings:
        say("warning", sentence)
    beside.conclude(run.report, failed)


def execute(
    verb: str,
    source: str,
    output: str,
    recipe: Recipe,
    values: dict[str, Any],
    tell: Callable[[Allocation], None] | None = None,
) -> int:
    """Run a recipe with the shared options among `values` and print its report; the exit code. --show-recipe prints
    the recipe, and that is all. `tell` is given what a budget chose."""
    if values.pop("show_recipe", False):
        return _show(recipe, values)
    from compressor.workflows.legs import run_legs

    if values.get("log_file") is not None:
        from compressor.files.destination import check_apart

        read = [source, *_teachers_of(recipe), *filter(None, (values.get("stats"), values.get("surveyed")))]
        check_apart(values["log_file"], *read, option="--log-file")
        check_apart(values["log_file"], *_made(output, values.get("part")), option="--log-file", of="output")
    if click.get_current_context().obj == SURVEY:
        return _survey(verb, source, output, recipe, values)
    with session(values, recipe, (source, output)) as run:
        run.report = run_legs(verb, source, output, recipe, run.options, tell=tell)
    return 0


def _teachers_of(recipe: Recipe) -> list[str]:
    """The paths of the stages' teachers."""
    return sorted({stage.teacher for stage in recipe.stages if stage.teacher is not None})


def _made(output: str, part: str | None) -> list[str]:
    """The places that a run writes at: of its output, and of its part of that."""
    if part is None:
        return [output]
    from compressor.workflows.part import part_path, share_of
    from compressor.workflows.survey import survey_path

    return [output, part_path(output, share_of(part, whole=False)), survey_path(output, part)]


def _survey(verb: str, source: str, output: str, recipe: Recipe, values: dict[str, Any]) -> int:
    """Make one job's share of the next pass over the whole model that the recipe takes, and tell of it."""
    from compressor.cli.report import progress
    from compressor.cli.report.survey import render_survey
    from compressor.workflows.legs import run_legs
    from compressor.workflows.run_options import RunOptions
    from compressor.workflows.survey import run_survey

    for name, flag in (
        ("dry_run", "dry-run"),
        ("report_file", "report"),
        ("junit", "junit"),
        ("summary", "summary"),
    ):
        if values.get(name):
            said = f"--{flag} is for the run itself, and a survey makes no output"
            raise UsageError(said, remedy="Leave it out")
    style, hush, told_more = values.pop("style"), values.pop("quiet"), values.pop("verbose")
    teachers = _teachers_of(recipe)
    with progress.bar(enabled=not hush, log=values.pop("log_file", None), verbose=told_more) as bar:
        told = RunOptions.of({**values, "processes": True, "progress": bar})
        report = run_survey(source, output, told, lambda one: run_legs(verb, source, output, recipe, one), teachers)
    emit(render_survey(report, style or "table"), essential=False)
    return 0


def gates_of(values: Mapping[str, Any]) -> Gates:
    """The limits among the options that the user gave."""
    return Gates(*(values[key] for key in ("max_error", "min_ratio", "max_size", "min_sparsity")))


def _show(recipe: Recipe, values: Mapping[str, Any]) -> int:
    from compressor.recipe.for_loader import for_loader as recipe_for_loader
    from compressor.recipe.statistics_files import with_statistics
    from compressor.recipe.toml_file import effective

    gates = gates_of(values).within(recipe.gates)
    chosen = recipe_for_loader(recipe, values["loader"])
    shown = replace(with_statistics(chosen, values["stats"]), gates=gates)
    return 0 if emit(effective(shown), essential=True) else 4
