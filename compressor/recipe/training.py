"""What a user may say of training: the options of `distill --method soft-targets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from compressor.core.errors import UsageError
from compressor.methods.options import flag, option, options_of, parse_options
from compressor.recipe.matched_norms import METHOD as MATCHED
from compressor.recipe.matched_norms import MatchedNorms, make_matched_norms
from compressor.recipe.sequential_refit import Sequential, is_sequential, lacking, make_sequential

METHOD = "soft-targets"
FILES = ("inputs", "labels", "network", "teacher_network")  # that options name, beside the teacher


@dataclass(frozen=True)
class Training:
    """How a student is trained, and from which files."""

    linear_algebra: ClassVar[bool] = True  # as in `methods/contract.py`
    needs_inputs: ClassVar[bool] = True

    teacher: str  # empty in a recipe: what the whole pipeline begins with
    inputs: str  # empty in a recipe: what is given for all of its stages
    network: str | None = None
    teacher_network: str | None = None
    labels: str | None = None
    rehearsal: bool = False  # all but the training itself
    temperature: float = option(4.0, help="what outputs are divided by before the softmax", low=1e-6, high=1000)
    epochs: int = option(20, help="times that all inputs are seen", low=1, high=100_000)
    label_weight: float = option(0.1, help="share of the labels in the loss, if there are any", low=0, high=1)
    min_accuracy: float | None = option(
        None,
        help="least share of the labels that the teacher must have right before anything is trained",
        low=0,
        high=1,
    )
    batch_size: int = option(128, help="inputs of a step", low=1, high=1 << 20)
    learning_rate: float = option(
        1e-3, help="Adam's at the start, falls as a cosine", low=0, high=10, open_low=True
    )
    seed: int = option(0, help="of the order of inputs and of a random start", low=0, high=2**63 - 1)
    init: Literal["student", "random"] = option("student", help="start from the student's weights or its shapes")
    holdout: float = option(
        0.05, help="share of the inputs by which the best epoch is chosen; 0 keeps the last", low=0, high=0.5
    )
    shift: int = option(0, help="move images at random by up to so many pixels", low=0, high=1000)
    patience: int | None = option(
        None, help="stop after so many epochs that were not better; left out: never", low=1, high=100_000
    )
    sparsity: float | None = option(
        None,
        help="prune while training, up to this share of zeros in all matrices together",
        low=0,
        high=1,
        open_high=True,
    )
    prune_over: float = option(0.5, help="part of the epochs over which pruning goes on", low=0, high=1)
    prune_by: Literal["magnitude", "lamp"] = option(
        "magnitude", help="which weights go: the least of all matrices, or lamp, the least beside others of theirs"
    )
    tie: Literal["none", "shared"] = option(
        "none", help="shared: weights of a matrix that are equal, as in a codebook, move as one"
    )
    codes: Literal["numbers", "fixed", "scales"] = option(
        "numbers",
        help="of a student stored as codes: they become numbers, stay as they are, or stay while their scales, or "
        "entries, are trained",
    )
    respect_zeros: bool = option(True, help="zeros of the student's matrices stay zero", off="fill-zeros")
    divide: float | None = option(None, help="divide the inputs by this, such as 255", low=1e-30, high=1e30)

    @property
    def label(self) -> str:
        """What notes and errors call the method."""
        return METHOD

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads, as far as they are known."""
        return tuple(path for path in (self.teacher, self.inputs, self.labels) if path)

    def to_table(self) -> dict[str, Any]:
        """The stage as a recipe gives it, with the paths of other files."""
        paths = {key: getattr(self, key) for key in ("teacher", *FILES)}
        return self.describe() | {key: path for key, path in paths.items() if path}

    def describe(self) -> dict[str, Any]:
        """The stage as it is recorded; paths are not part of what was done."""
        given = {name: getattr(self, name) for name in training_options()}
        return {"kind": "distill", "method": METHOD, **{k: v for k, v in given.items() if v is not None}}


OfNetworks = Training | Sequential | MatchedNorms  # what changes a network as a whole


def training_options() -> dict[str, Any]:
    """The options, as `options_of` gives those of methods."""
    return options_of(Training)


def is_training(kind: Any, options: Mapping[str, Any]) -> bool:
    """Whether a stage is one for a whole network, which a training or a refit of its layers in order is."""
    return kind == "distill" and (options.get("method") in (METHOD, MATCHED) or is_sequential(options))


def training_stage(
    table: Mapping[str, Any], teacher: str | None, *, text: bool = False, where: str = ""
) -> OfNetworks:
    """The training that a stage of a recipe asks for. Its teacher is the stage's, else `teacher`, else what the
    pipeline begins with."""
    options = dict(table)
    paths = {key: options.pop(key) for key in ("teacher", *FILES) if key in options}
    for key, path in paths.items():
        if path is not None and not isinstance(path, str):
            raise UsageError(f"{where}{key}: must be a path")
    paths["teacher"] = paths.get("teacher") or teacher or ""
    paths["inputs"] = paths.get("inputs") or ""  # which whoever runs the recipe gives
    return training_of(options, paths, text=text, where=where)


def training_of(
    options: Mapping[str, Any], paths: Mapping[str, str | None], *, text: bool = False, where: str = ""
) -> OfNetworks:
    """What a user's options ask for, their method among them, with the `paths` that were given; UsageError with all
    that is wrong at once."""
    given = {"teacher": None, "inputs": None, **paths}
    rest = {key: value for key, value in options.items() if key != "method"}
    if not is_sequential(options) and options.get("method") != MATCHED:
        return make_training(rest, given, text=text, where=where)
    unfit: dict[str, Any] = {key: given.pop(key) for key in ("labels", "teacher_network") if key in given}
    if not is_sequential(options):
        return make_matched_norms({**rest, **unfit}, given, text=text, where=where)
    return make_sequential({**options, **unfit}, given, text=text, where=where)


def make_training(
    options: Mapping[str, Any], paths: Mapping[str, str | None], *, text: bool = False, where: str = ""
) -> Training:
    """Training from a user's options and the `paths` of `teacher` and `FILES`; UsageError with all that is wrong at
    once, each with `where` in front."""
    owner = f"method {METHOD}"
    problems = list(lacking(paths, f"{where}{owner}", where))
    made = parse_options(Training, options, where, owner=owner, text=text, wrong=problems, **dict[str, Any](paths))
    if made.tie == "shared" and made.sparsity is not None:
        raise UsageError(
            f"{where}{flag('sparsity', where)} would part weights that {flag('tie', where)} holds together"
        )
    if made.tie == "shared" and made.init == "random":
        raise UsageError(f"{where}a random start has no equal weights for {flag('tie', where)}")
    if made.codes != "numbers":
        moving = (("tie", made.tie == "shared"), ("init", made.init == "random"), ("sparsity", made.sparsity))
        for name, moves in moving:
            if moves is not None and moves is not False:
                raise UsageError(
                    f"{where}{flag(name, where)} would move weights off the codes that {flag('codes', where)} keeps"
                )
    if made.min_accuracy is not None and made.labels is None:
        raise UsageError(f"{where}{flag('min_accuracy', where)} goes by {flag('labels', where)}")
    if made.patience is not None and made.holdout == 0:
        raise UsageError(
            f"{where}{flag('patience', where)} goes by inputs held out", remedy="Leave out holdout = 0"
        )
    return made
