"""The smallest output that keeps limits of what its model lost, measured here and by no command of the user's."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import UsageError
from compressor.files.input_file import InputFile
from compressor.files.work_folder import content_hash
from compressor.recipe.loss_gates import LossGates, flag_of
from compressor.workflows.budget.choice import Evaluation
from compressor.workflows.model_loss import LossInput, check_measurable, measure_loss, values_of

_CALLED = {
    "max_kld": "KL divergence",
    "min_agreement": "agreement",
    "max_perplexity_ratio": "perplexity ratio",
    "min_cosine": "cosine",
}


@dataclass(frozen=True)
class LossSearch:
    """What is asked: what runs through the input and through each output, the limits, how many outputs may be
    tried, and the log."""

    what: LossInput
    gates: LossGates
    evaluations: int = 10
    log: str = ""

    @property
    def metric(self) -> str:
        """What the first limit is of, in words."""
        return _CALLED[next(iter(self.gates.given))]

    @property
    def limit(self) -> str:
        """The limits as the command line has them."""
        return ", ".join(f"{flag_of(name)} {value:g}" for name, value in self.gates.given.items())

    @property
    def wants_restored(self) -> bool:
        """No: codes are read here."""
        return False

    def check(self) -> None:
        """UsageError where there is nothing to run, or no limit."""
        if self.what.way is None:
            raise UsageError(
                "nothing is given to measure by", remedy="Give --text, --tokens, --inputs or --evaluate"
            )
        if not self.gates.given:
            raise UsageError(
                f"--{self.what.way} measures what is lost, and no limit is given",
                remedy=f"Give one of {', '.join(flag_of(one.name) for one in fields(LossGates))}",
            )

    def check_input(self, source: str) -> None:
        """UsageError or InputError where the input, or what runs through it, cannot be measured."""
        check_measurable(open_checkpoint(source), self.what, self.gates)

    def identity(self) -> list[str]:
        """What the numbers of a log hold for, beside the input: the SHA-256 of what runs, and how it is cut."""
        said = []
        for one in fields(self.what):
            value = getattr(self.what, one.name)
            is_path = value is not None and one.name in ("text", "tokens", "inputs", "labels")
            said.append(f"{one.name} {content_hash([InputFile.open(os.fspath(value))]) if is_path else value}")
        return said

    def measure(self, source: str, path: str, _: str) -> dict[str, float]:
        """What the output at `path` lost against the input, by the gates' names."""
        loss = measure_loss(open_checkpoint(source), open_checkpoint(path), self.what, self.gates)
        return {name: value for name, value in values_of(loss.outputs).items() if value is not None}

    def metric_of(self, values: dict[str, float]) -> float:
        """The number that is told of an output."""
        return values[next(iter(self.gates.given))]

    def holds(self, one: Evaluation) -> bool:
        """Whether an output keeps the limits."""
        return not self.gates.failures({name: one.values.get(name) for name in self.gates.given})
