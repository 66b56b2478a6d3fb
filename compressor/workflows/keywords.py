"""The keywords of the verbs in Python, typed for editors and type checkers, and looked at when a verb is called.

The options of methods are those of their dataclasses; a test holds the two together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import Parameter, Signature
from typing import Any, Literal, TypedDict

from compressor.architectures.loaders import Loader
from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.methods.options import flag, options_of
from compressor.methods.registry import methods_of
from compressor.recipe.archive_store import Effort, StoreAs
from compressor.recipe.budget import Budget
from compressor.recipe.gates import Gates
from compressor.recipe.model import Recipe, Store
from compressor.workflows.budget.choice import Allocation, Evaluation
from compressor.workflows.run_options import NonFinite, Progress

Path = str | os.PathLike[str]
Rules = Iterable[tuple[str, Mapping[str, Any]]]


class RunKeywords(TypedDict, total=False):
    """How a run is carried out: the fields of `RunOptions` but `store`, which is a stage's own in some verbs; and
    the limits of `Gates`, as keywords or as one `gates`. Sizes are bytes, or texts such as "300MB"."""

    max_error: float | None
    min_ratio: float | None
    max_size: int | str | None
    min_sparsity: float | None
    gates: Gates | None

    force: bool
    dry_run: bool
    loader: Loader | None
    strict: bool
    requantize: bool
    allow_unmatched: bool
    strip_prefix: str | None
    fold_weight_norm: bool
    component: str
    max_shard_size: int | str | None
    no_tokenizer: bool
    leave_out: Iterable[str]
    non_finite: NonFinite
    workers: int | None
    memory: int | str | None
    processes: bool
    progress: Progress | None
    effort: Effort
    stats: Path | None
    save_mask: Path | None
    save_base: Path | None
    work: Path | None
    keep_work: bool
    histograms: bool
    card: bool
    part: str | None
    surveyed: Path | None
    surveys_only: bool
    scheduler: str | None


class RestoreKeywords(RunKeywords, total=False):
    """`restore`: how it is carried out, and the base that an update was coded against."""

    store: StoreAs
    base: Path | None


class RecipeKeywords(RestoreKeywords, total=False):
    """`run_recipe`; `only` these tensors are put into the output."""

    only: Iterable[str] | None
    tell: Callable[[Allocation], None] | None


class PipelineKeywords(RestoreKeywords, total=False):
    """`pipeline`: a `recipe` (a `Recipe`, a TOML file, a ready recipe's name) or `stages` as texts; a `budget` in
    place of the recipe's own."""

    recipe: Recipe | Path | None
    stages: Iterable[str]
    teacher: Path | None
    inputs: Path | None
    budget: Budget | None
    tell: Callable[[Allocation], None] | None


class StageKeywords(RunKeywords, total=False):
    """What a stage says beside the options of its method."""

    include: Iterable[str]
    exclude: Iterable[str]
    rules: Rules
    store: Store | None


class PruneKeywords(StageKeywords, total=False):
    """`prune`: options of its methods and of structured cuts."""

    method: str
    mask: Path | None
    scores: Path | None
    sparsity: float
    threshold: float
    min_keep: float | None
    scope: Literal["tensor", "global"]
    granularity: Literal["tensor", "row", "block"] | None
    block_size: int | None
    pattern: str | None
    seed: int
    respect_zeros: bool
    damp: float | None
    structure: str
    fraction: float | None
    count: int | None
    layers: str | None
    stack: str
    multiple_of: int
    importance: Literal["auto", "l2", "l1", "gains", "inputs", "influence", "middle", "random", "index"]


class DistillKeywords(StageKeywords, total=False):
    """`distill`: options of its methods, of training and of refitting in order."""

    method: str
    teacher: Path | None
    alpha: float
    rank: int | None
    energy: float | None
    ratio: float | None
    svd: Literal["auto", "exact", "randomized"]
    seed: int
    damp: float | None
    zero_points: bool
    error: float | None
    base: str | None
    form: Literal["auto", "sign", "mixed", "base"]
    bits: float | None
    ranks: str | None
    alternate: int | None
    layers: str | None
    every: int | None
    count: int | None
    config: Path | None
    shape: str | None
    widths: str | None
    importance: Literal["auto", "l2", "l1", "random", "index"]
    blocks: Literal["spread", "ends", "importance"]
    rescale: Literal["width", "hidden", "none"]
    inputs: Path | None
    labels: Path | None
    network: Path | None
    teacher_network: Path | None
    sequential: bool
    temperature: float
    epochs: int
    label_weight: float
    min_accuracy: float
    batch_size: int
    learning_rate: float
    init: Literal["student", "random"]
    holdout: float
    shift: int
    patience: int | None
    sparsity: float | None
    prune_over: float
    prune_by: Literal["magnitude", "lamp"]
    tie: Literal["none", "shared"]
    codes: Literal["numbers", "fixed", "scales"]
    respect_zeros: bool
    divide: float | None


class _CodingKeywords(StageKeywords, total=False):
    """What `quantize` and `tune` share: options of the methods that quantize, and limits of a budget."""

    scheme: str
    bits: float | None
    symmetric: bool
    granularity: Literal["tensor", "channel", "group", "block"] | None
    group_size: int | None
    method: Literal["absmax", "search", "hqq", "gptq", "awq"]
    layout: str
    damp: float | None
    act_order: bool
    signed_scales: bool
    scale_bits: Literal[16, 32] | None
    double_quant: bool
    element: Literal["e4m3", "e5m2"]
    entries: int
    rows: int | None
    init: Literal["optimal", "linear", "kmeans++", "density"]
    seed: int
    factor: int
    code_bits: Literal[8, 16, 32]
    code_bytes: Literal[1, 2] | None
    step: float | None
    step_rows: int | None
    factors: Literal["both", "none"] | None
    rounding: Literal["rate", "nearest"]
    scope: Literal["tensor", "model"]
    sparsity: float
    fallback: bool
    preset: str
    target_size: int | str | None
    target_ratio: float | None
    target_bits: float | None
    min_sqnr: float | None
    candidates: Iterable[str]
    survey: str | None
    sample: int
    text: str | None


class QuantizeKeywords(_CodingKeywords, total=False):
    """`quantize`: options of its methods, or a budget."""

    tell: Callable[[Allocation], None] | None


class TuneKeywords(_CodingKeywords, total=False):
    """`tune`: the measure (a command with its limit, or what runs through the models and gates of that), and what
    `quantize` takes, or a `recipe`."""

    evaluate: str | Callable[[str], float | Mapping[str, float]]
    restored: bool
    min_metric: float
    metric: str
    tokens: Path | None
    inputs: Path | None
    labels: Path | None
    network: str | None
    divide: float | None
    samples: int | None
    length: int | None
    max_kld: float | None
    min_agreement: float | None
    max_perplexity_ratio: float | None
    min_cosine: float | None
    evaluations: int
    timeout: float
    log: Path | None
    recipe: Recipe | None
    tell: Callable[[Evaluation], None] | None


class CalibrateKeywords(TypedDict, total=False):
    """`calibrate`: the fields of `calibration.run.Calibration`."""

    inputs: Path | None
    activations: Path | None
    text: Path | None
    network: str | None
    divide: float | None
    samples: int | None
    length: int | None
    seed: int | None
    gram: bool | None
    recipe: Recipe | Path | None
    stages: Sequence[str]
    force: bool
    progress: Progress | None


class MergeKeywords(TypedDict, total=False):
    """`merge_statistics`."""

    force: bool


class PartKeywords(TypedDict, total=False):
    """`merge`."""

    force: bool
    copies: bool
    remove_parts: bool
    workers: int | None
    progress: Progress | None


class InspectKeywords(TypedDict, total=False):
    """`inspect`: whether data are read too."""

    stats: bool
    coding: bool
    base: Path | None
    workers: int | None


class LossKeywords(TypedDict, total=False):
    """The fields of a `LossInput` and of `LossGates`."""

    text: Path | None
    tokens: Path | None
    inputs: Path | None
    labels: Path | None
    network: str | None
    divide: float | None
    samples: int | None
    length: int | None
    seed: int | None
    per_tensor: bool
    max_kld: float | None
    min_agreement: float | None
    max_perplexity_ratio: float | None
    min_cosine: float | None


class CompareKeywords(LossKeywords, total=False):
    """`compare`: gates, and how many workers; or what runs through both, and gates of the outputs."""

    max_error: float | None
    min_sqnr: float | None
    workers: int | None
    progress: Progress | None
    histograms: bool
    base: Path | None


class ReportKeywords(TypedDict, total=False):
    """`report`: what the output was made of, and how many workers."""

    source: Path | None
    workers: int | None
    progress: Progress | None


def spell_out(verb: Callable[..., Any], table: type[Any]) -> None:
    """Give a function that takes `**keywords` of a table the signature that has them one by one, its own before
    those of every run. `...` stands for a keyword that is left out."""
    common = RunKeywords.__annotations__
    names = sorted(table.__annotations__, key=lambda key: key in common)
    types = {key: getattr(said, "__forward_arg__", said) for key, said in table.__annotations__.items()}
    own = Signature.from_callable(verb)
    places = [one for one in own.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
    keywords = [Parameter(key, Parameter.KEYWORD_ONLY, default=..., annotation=types[key]) for key in names]
    verb.__signature__ = own.replace(parameters=[*places, *keywords])  # type: ignore[attr-defined]


def check_keywords(verb: str, given: Mapping[str, Any], table: type[Any]) -> None:
    """UsageError for keywords that the verb does not take, all at once, each with the nearest one that it takes,
    and for those that it lacks. The options of installed methods are taken too."""
    known = dict.fromkeys(table.__annotations__)
    if verb in ("prune", "distill", "quantize"):
        known |= dict.fromkeys(key for method in methods_of(verb).values() for key in options_of(method))
    problems: list[UsageError] = []
    for key in given:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"Did you mean {flag(close[0], '')}?" if close else ""
            problems.append(UsageError(f"{printable(flag(key, ''), 60)}: is no option of {verb}", remedy=hint))
    lacking = [key for key in sorted(table.__required_keys__) if given.get(key) is None]
    problems += [UsageError(f"{verb} needs {flag(key, '')}") for key in lacking]
    if problems:
        raise problems[0] if len(problems) == 1 else UsageError("; ".join(map(str, problems)))
