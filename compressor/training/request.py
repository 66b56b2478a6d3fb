"""What a user may say of training: the options of `distill --method soft-targets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, cast

from compressor.errors import CompressorError, UsageError, raise_all
from compressor.method import Method, option, options_of
from compressor.options import convert, flag

METHOD = "soft-targets"


@dataclass(frozen=True)
class Training:
    """How a student is trained, and from which files."""

    teacher: str
    inputs: str
    network: str | None = None
    teacher_network: str | None = None
    temperature: float = option(
        4.0, help="what outputs are divided by before the softmax", low=0, high=1000, open_low=True
    )
    epochs: int = option(20, help="times that all inputs are seen", low=1, high=100_000)
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
    respect_zeros: bool = option(True, help="zeros of the student's matrices stay zero", off="fill-zeros")
    divide: float | None = option(None, help="divide the inputs by this, such as 255", low=1e-30, high=1e30)

    def describe(self) -> dict[str, Any]:
        """The stage as it is recorded; paths are not part of what was done."""
        given = {name: getattr(self, name) for name in training_options()}
        return {"kind": "distill", "method": METHOD, **{k: v for k, v in given.items() if v is not None}}


def training_options() -> dict[str, Any]:
    """The options, as `options_of` gives those of methods."""
    return options_of(cast("type[Method]", Training))  # options of any dataclass are read alike


def make_training(
    options: Mapping[str, Any],
    *,
    teacher: str | None,
    inputs: str | None,
    network: str | None = None,
    teacher_network: str | None = None,
    text: bool = False,
) -> Training:
    """Training from a user's options; UsageError with all that is wrong at once."""
    known, problems, values = training_options(), list[CompressorError](), dict[str, Any]()
    for role, path, said in (
        ("teacher", teacher, "--teacher PATH"),
        ("file of inputs", inputs, "--inputs FILE.npy"),
    ):
        if path is None:
            problems.append(UsageError(f"method {METHOD} needs a {role}", remedy=f"Give {said}"))
    for name, value in options.items():
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"Did you mean {flag(close[0], '')}?" if close else ""
            problems.append(UsageError(f"{flag(name, '')} is no option of method {METHOD}", remedy=hint))
            continue
        try:
            values[name] = convert(known[name][0], known[name][1], value, text=text)
        except UsageError as error:
            problems.append(UsageError(f"{flag(name, '')}: {error.reason}"))
    raise_all(problems)
    assert teacher is not None  # noqa: S101 - looked at above
    assert inputs is not None  # noqa: S101
    return Training(teacher, inputs, network, teacher_network, **values)
