"""Which candidates a tensor may become, by its shape and by who is to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compressor.architectures.fused_layers import experts_module, one_scheme
from compressor.architectures.loaders import READERS, Loader
from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.engine.plan.loaders import not_taken
from compressor.files.layout import Container
from compressor.workflows.budget.candidates import Candidate


@dataclass(frozen=True)
class Takers:
    """What loads the output: a container's readers, of a folder the `loader` that is named, or else any of those of
    the model that `config` describes; `experts`: it has some. `kept`: bytes of tensors to which nothing is done, of
    those that the input stores as codes."""

    container: Container
    loader: Loader | None = None
    config: Mapping[str, Any] | None = None
    experts: bool = False
    kept: Mapping[str, int] = field(default_factory=dict)

    def size(self, one: Candidate, spec: TensorSpec) -> int:
        """Stored bytes of a tensor that fits the candidate, before an archive."""
        return self.size_untreated(spec) if one.encoder is None else one.size(spec) or 0

    def size_untreated(self, spec: TensorSpec) -> int:
        """Stored bytes of a tensor to which nothing is done."""
        return self.kept.get(spec.name, spec.nbytes)

    def fits(self, one: Candidate, spec: TensorSpec) -> bool:
        """Whether the tensor may become this: its shape allows it, and what is to load it takes it."""
        return one.fits(spec, self.container) and not self.refusal(one, spec)

    def refusal(self, one: Candidate, spec: TensorSpec) -> str:
        """Why what is to load the tensor does not take it so; "" where it does."""
        decoder = None if one.encoder is None or self.container != "folder" else one.encoder.decoder_for(spec)
        return "" if decoder is None else not_taken(self.loader, spec, decoder, self.config, experts=self.experts)

    def together(self, spec: TensorSpec, spoken: Iterable[str]) -> str | None:
        """What the tensors are called that must have one scheme with this one, where any of them is stored for
        loaders of these dialects; None where it may have a scheme of its own."""
        if self.container != "folder" or len(spec.shape) != 2:
            return None
        if self.loader is not None and READERS[self.loader].alike and experts_module(spec.name) is not None:
            return "experts"
        return one_scheme(spec.name, set(spoken))

    def check_taken(self, named: Iterable[Candidate], specs: Sequence[TensorSpec]) -> None:
        """UsageError for a candidate that the user named and that nobody takes of any tensor that it fits."""
        for one in named:
            shaped = [spec for spec in specs if one.encoder is not None and one.fits(spec, self.container)]
            if shaped and not any(self.fits(one, spec) for spec in shaped):
                largest = max(shaped, key=lambda spec: spec.size)
                whom = f"--for {self.loader}: " if self.loader is not None else ""
                raise UsageError(
                    f"{whom}candidate {printable(one.name, 60)}: {self.refusal(one, largest)}",
                    tensor=largest.name,
                    remedy="Leave it out, or give --allow-unmatched",
                )
