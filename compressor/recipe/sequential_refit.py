"""What a user may say of layers that are refit one after the other: the options of `distill --method refit
--sequential`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core.errors import CompressorError, UsageError
from compressor.methods.options import flag, option, options_of, parse_options

METHOD = "refit"
FILES = ("inputs", "network")  # that options name, beside the teacher


@dataclass(frozen=True)
class ByInputs:
    """What is done to a whole student by a teacher and inputs, which have no labels, and by which files."""

    method: ClassVar[str]
    linear_algebra: ClassVar[bool] = True  # as in `methods/contract.py`
    needs_inputs: ClassVar[bool] = True

    teacher: str  # empty in a recipe: what the whole pipeline begins with
    inputs: str  # empty in a recipe: what is given for all of its stages
    network: str | None = None
    rehearsal: bool = False  # all but the work itself

    @property
    def label(self) -> str:
        """What notes and errors call the method."""
        return self.method

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads, as far as they are known."""
        return tuple(path for path in (self.teacher, self.inputs) if path)

    def to_table(self) -> dict[str, Any]:
        """The stage as a recipe gives it, with the paths of other files."""
        paths = {key: getattr(self, key) for key in ("teacher", *FILES)}
        return self.describe() | {key: path for key, path in paths.items() if path}

    def describe(self) -> dict[str, Any]:
        """The stage as it is recorded; paths are not part of what was done."""
        kind: Any = type(self)  # by which what is known of a class is cached
        given = {name: getattr(self, name) for name in options_of(kind)}
        return {"kind": "distill", "method": self.method, **{k: v for k, v in given.items() if v is not None}}


@dataclass(frozen=True)
class Sequential(ByInputs):
    """How a student's layers are refit in their order."""

    method: ClassVar[str] = METHOD

    sequential: bool = option(True, help="layer after layer, by the inputs that those before leave it")
    damp: float | None = option(
        None, help="added to the gram, in mean diagonals; unset: 0.01, more where that is too little", low=0
    )
    divide: float | None = option(None, help="divide the inputs by this, such as 255", low=1e-30, high=1e30)

    @property
    def label(self) -> str:
        return f"{METHOD} --sequential"


def is_sequential(options: Mapping[str, Any]) -> bool:
    """Whether options of `distill` ask for this."""
    return options.get("method") == METHOD and "sequential" in options


def make_sequential(
    options: Mapping[str, Any], paths: Mapping[str, str | None], *, text: bool = False, where: str = ""
) -> Sequential:
    """The refitting in order that a user's options ask for, with the `paths` of `teacher`, `inputs` and `network`;
    UsageError with all that is wrong at once, each with `where` in front."""
    problems = list[CompressorError]()
    owner = f"method {METHOD} with {flag('sequential', where)}"
    problems += lacking(paths, f"{where}{owner}", where)
    if "stats" in options:
        problems.append(
            UsageError(
                f"{where}{owner} takes no {flag('stats', where)}: a layer's inputs change as those before it do",
                remedy=f"Give {flag('inputs', where)}, or leave out {flag('sequential', where)}",
            )
        )
    rest = {key: value for key, value in options.items() if key not in ("method", "stats")}
    made = parse_options(Sequential, rest, where, owner=owner, text=text, wrong=problems, **dict[str, Any](paths))
    if not made.sequential:
        raise UsageError(f"{where}{flag('sequential', where)}: must be true, or left out")
    return made


def lacking(paths: Mapping[str, str | None], owner: str, where: str) -> Iterator[CompressorError]:
    """What is wrong where no teacher or no inputs are given (None) to a training."""
    yield from without_teacher(paths, owner, where)
    if paths.get("inputs") is None:
        yield _lacks("file of inputs", "inputs", "FILE.npy", owner, where)


def without_teacher(paths: Mapping[str, str | None], owner: str, where: str) -> Iterator[CompressorError]:
    """What is wrong where no teacher is given (None)."""
    if paths.get("teacher") is None:
        yield _lacks("teacher", "teacher", "PATH", owner, where)


def _lacks(role: str, key: str, what: str, owner: str, where: str) -> UsageError:
    how = flag(key, where) if where else f"{flag(key, where)} {what}"
    return UsageError(f"{owner} needs a {role}", remedy=f"Give {how}")
