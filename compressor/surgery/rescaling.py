"""Sums over fewer inputs keep their spread.

A unit that adds d inputs of like spread, each by a weight of like size, has a spread that grows with √d. Where
only d′ of the inputs are left, its weights are multiplied by √(d / d′). What is summed over nothing (embeddings,
biases, norms) stays as it is, and so do the rows of an attention head, whose width is kept. There are two
exceptions: where the output head is the embedding itself, which must not be scaled, the norm before it is scaled
in its place; and where a model multiplies its embeddings by √width (Gemma), they make up for that, and serve such
a head as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt

from compressor.architectures.chain import Chain
from compressor.architectures.model import Model
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.views import ScaledTensor
from compressor.core.lazy import np
from compressor.core.workspace import Array

_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForPreTraining", "DoubleHeadsModel")


@dataclass(frozen=True, eq=False)
class Scaled(ScaledTensor):
    """A tensor of which every number is read times `factor`."""

    factor: float

    def multiply(self, held: Array, start: int, out: Array) -> None:
        np.multiply(held, held.dtype.type(self.factor), out=out)

    def refusal(self) -> tuple[str, str]:
        return f"when scaled by {self.factor:.4g}, as fewer inputs want it", "Use --rescale none"


def factors(before: Model | Chain, after: Model | Chain, hidden_only: bool) -> dict[str, float]:
    """What tensors of `after` are multiplied by, where it is not 1; with `hidden_only` only readers of the residual
    width are."""
    found: dict[str, float] = {}
    if isinstance(before, Chain) and isinstance(after, Chain):
        for spec, was, now in zip(after.weights, before.widths, after.widths, strict=False):
            found[spec.name] = 1.0 if hidden_only else sqrt(was / now)
    elif isinstance(before, Model) and isinstance(after, Model):
        sizes = {**after.sizes, "hidden": before.sizes["hidden"]} if hidden_only else before.sizes
        found = _factors(sizes, after)
    return {name: factor for name, factor in found.items() if factor != 1}


def _factors(sizes: Mapping[str, int], model: Model) -> dict[str, float]:
    found: dict[str, float] = {}
    family = model.family
    width = sqrt(sizes["hidden"] / model.sizes["hidden"])
    tied = _tied(model)
    for one in model.known:
        module = one.line.rpartition(".")[0]
        if one.reads is not None and not (tied and module in family.heads):
            read = one.axes[one.reads]
            found[one.spec.name] = sqrt(sum(sizes[x] for x in read) / sum(model.sizes[x] for x in read))
        elif (module == "embed_tokens") if family.grows else (tied and module in family.last_norms):
            found[one.spec.name] = width
    return found


def _tied(model: Model) -> bool:
    """Whether an output head reads with the embedding's weights."""
    said = model.config.get("tie_word_embeddings")
    named = model.config.get("architectures")
    headed = isinstance(named, list) and any(str(name).endswith(_WITH_HEAD) for name in named)
    headed = headed or any(one.line.rpartition(".")[0] in model.family.heads for one in model.known)
    return headed and bool(model.family.heads) and (model.family.tied if said is None else said is True)


def rescaled(checkpoint: Checkpoint, found: Mapping[str, float]) -> Checkpoint:
    """The checkpoint with these tensors scaled, and a note that says so."""
    if not found:
        return checkpoint
    tensors = {name: _scaled(tensor, found.get(name, 1.0)) for name, tensor in checkpoint.tensors.items()}
    counted: dict[str, int] = {}
    for factor in sorted(found.values()):
        said = f"{factor:.4g}"
        counted[said] = counted.get(said, 0) + 1
    listed = ", ".join(f"by {said} in {count} tensor{'s' * (count > 1)}" for said, count in counted.items())
    note = f"rescaled by the root of inputs before over inputs after, so that sums keep their spread: {listed}"
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return tensor
    assert tensor.encoder is None  # noqa: S101 - what is scaled was cut, and a cut leaves numbers
    whole = tensor.whole
    return replace(tensor, parts={"": Scaled(whole.file, whole.placed, whole, factor)})
