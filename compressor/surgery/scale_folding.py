"""Scales of single inputs that a model does not notice: what reads them is multiplied, what writes them divided.

For a matrix W that reads x, (W diag(s)) (x / s) = W x. The division goes into what makes x: the weight (and bias)
of a norm, or the rows of a linear layer between which and W nothing stands that would not pass a factor on (values
of attention, the factor beside the gate of a gated MLP). All that reads x is multiplied, whether treated or not.
Where x goes anywhere else, as the outputs of BERT's norms go on in the residual stream, nothing can be done.

A product is rounded to the tensor's dtype. What rounding a norm's weight has changed is put right in its readers:
they are multiplied by what the norm was really divided by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from compressor.architectures.model import Known, Model
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.views import ScaledTensor, SelectedTensor
from compressor.core.floats import widen
from compressor.core.lazy import np
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace

WIDE = ("F64", "F32", "F16", "BF16")  # of narrower ones a product is rounded so that as much is lost as by codes


@dataclass(frozen=True, slots=True)
class Written:
    """Where a factor of channels goes in a tensor: its rows from `offset`, or its elements, where it is a vector.
    `plus` is what a norm adds to its weight before it multiplies by it."""

    tensor: str
    offset: int = 0
    plus: float = 0.0


@dataclass(frozen=True)
class Fold:
    """A place for a scale of `channels` numbers: what `writers` give them is divided, the columns of the `readers`
    multiplied. Channels come in heads of `width`, and `each` heads of the readers' inputs are copies of one.

    `exact` is the norm's weight among the writers, if a norm it is."""

    name: str
    writers: tuple[Written, ...]
    readers: tuple[str, ...]
    channels: int
    width: int = 1
    each: int = 1
    exact: str = ""

    def spread(self, scale: Array) -> Array:
        """By channel [channels] to by input of the readers [in]."""
        heads = scale.reshape(-1, self.width)
        return np.repeat(heads, self.each, axis=0).reshape(-1)

    def gathered(self, inputs: Array) -> Array:
        """By input of the readers [in] to the sum by channel [channels]."""
        found: Array = inputs.reshape(-1, self.each, self.width).sum(axis=1).reshape(-1)
        return found


def folds_of(models: Sequence[Model], checkpoint: Checkpoint) -> tuple[tuple[Fold, ...], dict[str, str]]:
    """The places for scales in the stacks of a model, and of every other matrix in it why it has none, by name."""
    found: list[Fold] = []
    why: dict[str, str] = {}
    for model in models:
        for held in _by_layer(model):
            taken: set[str] = set()
            for line in filter(str.strip, model.family.folds.splitlines()):
                writer, *readers = line.split()
                for fold, reason in _folds(model, held, writer, readers, checkpoint):
                    if not taken & set(fold.readers):
                        taken |= set(fold.readers)
                        if reason:
                            why |= dict.fromkeys(fold.readers, reason)
                        else:
                            found.append(fold)
    folded = {name for fold in found for name in fold.readers}
    for one in (known for model in models for known in model.known):
        if one.spec.name not in folded and len(one.spec.shape) > 1:
            why.setdefault(one.spec.name, _reason(one))
    return tuple(found), why


def _by_layer(model: Model) -> Iterator[dict[str, list[Known]]]:
    """The tensors of each block, by line."""
    layers: dict[int, dict[str, list[Known]]] = {}
    for one in model.known:
        if one.layer is not None:
            layers.setdefault(one.layer, {}).setdefault(one.line, []).append(one)
    yield from (held for _, held in sorted(layers.items()))


def _reason(one: Known) -> str:
    read = one.axes[one.reads] if one.reads is not None else ()
    if one.layer is None or not read:
        return "no place for a scale before it"
    if "hidden" in read:
        return "inputs that also go on in the residual stream"
    return "inputs out of an activation function"


def _folds(
    model: Model, held: Mapping[str, list[Known]], writer: str, readers: Sequence[str], checkpoint: Checkpoint
) -> Iterator[tuple[Fold, str]]:
    """The folds of one line in one block, one for each expert where experts write; and why one cannot be."""
    module, _, section = writer.partition(":")
    for weight in held.get(f"{module}.weight", []):
        matrices = [
            one
            for reader in readers
            for one in held.get(f"{reader}.weight", [])
            if weight.expert is None or one.expert == weight.expert
        ]
        if not matrices:
            continue
        biases = [one for one in held.get(f"{module}.bias", []) if one.expert == weight.expert]
        norm = len(weight.axes) == 1
        sections = weight.axes[0]
        place = int(section or 0)
        offset = sum(model.sizes[symbol] for symbol in sections[:place])
        channels, heads = model.sizes[sections[place]], sections[place] in ("q", "kv", "cross")
        plus = float(norm and model.family.one_plus)
        fold = Fold(
            weight.spec.name.removesuffix(".weight"),
            (
                Written(weight.spec.name, offset, plus),
                *(Written(one.spec.name, offset) for one in biases),
            ),
            tuple(one.spec.name for one in matrices),
            channels,
            model.sizes["head_dim"] if heads else 1,
            matrices[0].spec.shape[-1] // channels,
            weight.spec.name if norm else "",
        )
        yield fold, _obstacle([weight, *biases, *matrices], checkpoint)


def _obstacle(tensors: Sequence[Known], checkpoint: Checkpoint) -> str:
    for one in tensors:
        spec, name = checkpoint.tensors[one.spec.name].spec, printable(one.spec.name, 100)
        if len(spec.shape) > 2:
            return f"all experts in one tensor, '{name}'"
        if spec.dtype not in WIDE:
            return f"scaling would round the {spec.dtype} of '{name}' anew"
    return ""


# ---- tensors as they are with scales in them -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Balanced(ScaledTensor):
    """Every row times a factor and every column times one (float64, None for ones). `plus` is added before and
    taken off after."""

    rows: Array | None = None
    columns: Array | None = None
    plus: float = 0.0

    def multiply(self, held: Array, start: int, out: Array) -> None:
        np.add(held, held.dtype.type(self.plus), out=out)
        if self.rows is not None:
            np.multiply(out, self.rows[start : start + len(held), None].astype(held.dtype), out=out)
        if self.columns is not None:
            np.multiply(out, self.columns.astype(held.dtype), out=out)
        np.subtract(out, held.dtype.type(self.plus), out=out)

    def refusal(self) -> tuple[str, str]:
        return "with the scales of method awq in it", "Use --method search or gptq"


def folded(checkpoint: Checkpoint, chosen: Sequence[tuple[Fold, Array]]) -> tuple[Checkpoint, dict[str, Array]]:
    """The checkpoint with these scales in it, each float64 [channels], positive; and what the columns of each
    reader were multiplied by. A tensor may have one for its rows and one for its columns."""
    rows: dict[str, Array] = {}
    columns: dict[str, Array] = {}
    vectors: dict[str, tuple[Array, float]] = {}
    for fold, scale in chosen:
        if fold.exact:
            plus = next(one.plus for one in fold.writers if one.tensor == fold.exact)
            scale = _really(checkpoint.tensors[fold.exact], scale, plus)
        for one in fold.writers:
            spec = checkpoint.tensors[one.tensor].spec
            factor = np.ones(spec.shape[0])
            factor[one.offset : one.offset + fold.channels] /= scale
            if len(spec.shape) == 1:
                vectors[one.tensor] = factor, one.plus
            else:
                rows[one.tensor] = factor
        columns |= dict.fromkeys(fold.readers, fold.spread(scale))
    tensors = dict(checkpoint.tensors)
    for name in {*rows, *columns}:
        tensors[name] = _balanced(tensors[name], rows.get(name), columns.get(name))
    for name, (factor, plus) in vectors.items():
        tensors[name] = _balanced(tensors[name], None, factor, plus)
    return replace(checkpoint, tensors=tensors), columns


def _balanced(tensor: Tensor, rows: Array | None, columns: Array | None, plus: float = 0.0) -> Tensor:
    first = next(iter(tensor.parts.values()))
    placed = replace(first.placed, spec=tensor.spec, fortran=False, big_endian=False, strides=None)
    origin = tensor.whole if tensor.encoder is None else SelectedTensor(first.file, placed, tensor, {})
    parts = {"": Balanced(first.file, placed, origin, rows, columns, plus)}
    return Tensor(tensor.spec, parts, tensor.file)


def _really(norm: Tensor, scale: Array, plus: float) -> Array:
    """What a norm's weight is divided by when it was rounded afterwards; `scale` where that is nothing."""
    work, dtype, size = Workspace(), norm.spec.dtype, norm.spec.size
    before, after = (
        widen(one.whole.read_rows(size, 0, 1, work, key), dtype, work, f"{key}.read")[0].astype(np.float64) + plus
        for key, one in (("before", norm), ("after", _balanced(norm, None, 1 / scale, plus)))
    )
    with np.errstate(all="ignore"):
        found = before / after
    return np.where(np.isfinite(found) & (found > 0), found, scale)
