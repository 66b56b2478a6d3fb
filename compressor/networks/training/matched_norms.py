"""Matching a student's batch norms, and the biases of its layers, with its teacher's on unlabelled inputs.

What is quantized or pruned gives outputs of other means and variances than those that the norms after it were told.
For the inputs x of a norm in the student and z in the teacher, channel by channel,

    σ' = σ √(var x / var z)        μ' = E x − σ' (E z − μ) / σ

so that (x − μ') / σ' has the mean and the variance of (z − μ) / σ; and b' = b + E z − E x for the outputs of a
layer with a bias (bias correction, Nagel et al., arXiv 1906.04721). Inputs need not be those of training, to which
μ and σ belong: taken from the student alone, they would be fitted to these inputs.

Both networks run once, side by side: in each batch every norm already has what matches that batch, so that later
ones see what they will be given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod, sqrt

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.views import holding
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.networks.layers import AddLayer, Layer
from compressor.networks.matching import read_network
from compressor.networks.network import Network
from compressor.networks.pointwise import BatchNormLayer, LayerNormLayer
from compressor.networks.samples import blocks
from compressor.networks.surest import both_surest, first_samples
from compressor.networks.training.examples import Examples, open_examples
from compressor.networks.training.means_from_norms import correct_means
from compressor.networks.training.network_ends import bare, check_same_shapes
from compressor.recipe.matched_norms import MatchedNorms

_NUMBERS = 1 << 25  # of what all layers give for a batch, about
_HELD_OUT = 8  # one of so many batches tells whether it is better
_JUDGES = 16  # batches that are held out, and in memory, at most
_FARTHEST = 10.0  # times that a deviation changes at most


def matched(
    checkpoint: Checkpoint,
    teacher: Checkpoint,
    options: MatchedNorms,
    *,
    dry: bool,
    progress: Callable[[int, int], None] | None,
) -> Checkpoint:
    """The student with its norms and biases matched, without inputs in the mean alone; `dry`: not matched, only
    looked at. InputError where the two are not of the same shapes, there is no norm and no bias, the inputs are not
    theirs, or outputs for inputs that were held out are no nearer to the teacher's than before."""
    student, mentor = read_network(checkpoint, options.network), read_network(teacher, options.network)
    codes = {name for name, tensor in checkpoint.tensors.items() if tensor.encoder is not None}
    if not options.inputs:
        ours, theirs = bare(student.network), bare(mentor.network)
        check_same_shapes(ours, theirs, checkpoint.path)
        with np.errstate(all="ignore"):
            changed = correct_means(ours, theirs, codes, checkpoint.path)
        many = f"{len(changed)} of {len(_pairs(ours, theirs, codes))} norms and biases"
        remark = (
            f"{options.label} without inputs corrects {many} in the mean, by what the teacher's norms say of what "
            "layers after them are given"
        )
        moved = {name: ours.tensors[name] for name in changed}
        return _with(checkpoint, moved, (f"network: {student.description}", remark))
    examples = open_examples(options.inputs, options.divide, bare(student.network), bare(mentor.network))
    samples = first_samples(examples.array, examples.by)
    mentor, student = both_surest(teacher, mentor, checkpoint, student, samples)
    ours, theirs = bare(student.network), bare(mentor.network)
    check_same_shapes(ours, theirs, checkpoint.path)
    pairs = _pairs(ours, theirs, codes)
    if not pairs:
        raise InputError(
            "has no batch norm and no bias that is stored as numbers",
            file=checkpoint.path,
            remedy="--method refit --sequential goes by the weights",
        )
    size = sum(array.nbytes for one in (ours, theirs) for array in one.tensors.values())
    size += 4 * _batch(ours) * (3 * _given(ours) + _JUDGES * prod(ours.input))
    notes = [
        f"network: {student.description}",
        f"inputs: {examples.count}, {examples.description}",
        f"{options.label} holds both networks and what they make of a batch: about {size / 1e6:.0f} MB",
    ]
    if not dry and not options.rehearsal:
        with np.errstate(all="ignore"):
            notes.append(_match(ours, theirs, pairs, examples, checkpoint, progress))
    return _with(checkpoint, {name: ours.tensors[name] for pair in pairs.values() for name in pair.changed}, notes)


def _with(checkpoint: Checkpoint, changed: Mapping[str, Array], notes: Sequence[str]) -> Checkpoint:
    """The checkpoint with these tensors changed; codes stay codes."""
    tensors = dict(checkpoint.tensors)
    tensors |= {name: holding(checkpoint, name, array) for name, array in changed.items()}
    tensors = {name: replace(one, kept=one.encoder is not None) for name, one in tensors.items()}
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, *notes))


@dataclass
class _Moments:
    """Sums over all rows of a batch and of all, by channel, in float64."""

    count: int = 0
    total: Array | float = 0.0
    squares: Array | float = 0.0

    def add(self, numbers: Array) -> _Moments:
        """Those of this batch alone, which are added."""
        flat = numbers.reshape(-1, numbers.shape[-1])
        one = _Moments(len(flat), flat.sum(axis=0, dtype=np.float64), np.einsum("nc,nc->c", flat, flat, dtype="f8"))
        self.count += one.count
        self.total = self.total + one.total
        self.squares = self.squares + one.squares
        return one

    @property
    def mean(self) -> Array:
        return np.asarray(self.total / self.count)

    @property
    def variance(self) -> Array:
        found: Array = np.maximum(np.asarray(self.squares / self.count) - self.mean * self.mean, 0.0)
        return found


@dataclass
class _Pair:
    """A layer of the student and the teacher's, with what was seen of both."""

    ours: Layer
    theirs: Layer
    changed: tuple[str, ...]  # tensors of the student
    seen: tuple[_Moments, _Moments] = field(default_factory=lambda: (_Moments(), _Moments()))

    def run(self, x: Array, z: Array) -> tuple[Array, Array]:
        """What both give, the student as it is once this batch is matched."""
        if isinstance(self.ours, BatchNormLayer):
            moments = self.seen[0].add(x), self.seen[1].add(z)
            kept = {role: self.ours.tensors[role].copy() for role in ("mean", "variance")}
            self.settle(*moments)
            y, given = self.ours.forward(x), self.theirs.forward(z)
            for role, array in kept.items():
                np.copyto(self.ours.tensors[role], array)
            return y, given
        y, given = self.ours.forward(x), self.theirs.forward(z)
        one, other = self.seen[0].add(y), self.seen[1].add(given)
        y += (other.mean - one.mean).astype(y.dtype)
        return y, given

    def settle(self, one: _Moments, other: _Moments) -> None:
        """Match the student's layer by moments of both."""
        if not isinstance(self.ours, BatchNormLayer):
            self.ours.tensors["bias"] += (other.mean - one.mean).astype(self.ours.dtype)
            return
        epsilon = self.ours.kind.epsilon
        mean, variance = (self.theirs.tensors[role].astype(np.float64) for role in ("mean", "variance"))
        deviation = np.sqrt(variance + epsilon)
        ratio = np.sqrt(one.variance / other.variance)
        ratio = np.clip(np.where(np.isfinite(ratio), ratio, 1.0), 1 / _FARTHEST, _FARTHEST)
        wanted = np.maximum(deviation * ratio, sqrt(epsilon))
        np.copyto(self.ours.tensors["variance"], wanted * wanted - epsilon, casting="same_kind")
        np.copyto(
            self.ours.tensors["mean"], one.mean - wanted * (other.mean - mean) / deviation, casting="same_kind"
        )


def _pairs(student: Network, teacher: Network, codes: set[str]) -> dict[int, _Pair]:
    """By their places the layers that are matched: norms, and layers with a bias, but for those that are codes."""
    found = {}
    both = zip(student.layers, teacher.layers, student.fitted.roles, strict=True)
    for number, (ours, theirs, roles) in enumerate(both):
        wanted = ("mean", "variance") if isinstance(ours, BatchNormLayer) else ("bias",)
        names = tuple(roles[role] for role in wanted if role in roles)
        if names and not isinstance(ours, LayerNormLayer) and not codes & {*names}:
            found[number] = _Pair(ours, theirs, names)
    return found


def _given(network: Network) -> int:
    """Numbers of what all layers give for a sample."""
    return sum(prod(shape) for shape in network.fitted.shapes)


def _batch(network: Network) -> int:
    return max(min(_NUMBERS // _given(network), 1024), 2)


def _match(
    student: Network,
    teacher: Network,
    pairs: dict[int, _Pair],
    examples: Examples,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None] | None,
) -> str:
    """Match all pairs, and say how much nearer the student's outputs are."""
    held_out, size, done = list[Array](), examples.array.spec.nbytes, 0
    for number, x in enumerate(_batches(examples, student)):
        if number % _HELD_OUT == _HELD_OUT - 1 and len(held_out) < _JUDGES:
            held_out.append(x.copy())
        else:
            _side_by_side(student, teacher, pairs, x)
        done += len(x)
        if progress is not None:
            progress(size * done // examples.count, size)
    examples.source.check_unchanged()
    judged = held_out or [x]
    before = _missed(student, teacher, judged)
    for pair in pairs.values():
        pair.settle(*pair.seen)
    after = _missed(student, teacher, judged)
    count = sum(map(len, judged))
    where = f"{count} inputs held out" if held_out else f"the {count} inputs"
    said = f"outputs on {where} are {after:.4g} of their size from the teacher's, before {before:.4g}"
    if not after < before:
        raise InputError(
            f"is no better with its norms matched: {said}",
            file=checkpoint.path,
            remedy="Leave it as it is, or give more inputs",
        )
    return said


def _batches(examples: Examples, network: Network) -> Iterator[Array]:
    """The inputs [n, *input] in batches of about the same size: eight, or more where memory asks for that; no batch
    is of a single input where there are more. Valid until the next."""
    many = max(-(-examples.count // _batch(network)), min(_HELD_OUT, examples.count // 2), 1)
    held, filled = np.empty((-(-examples.count // many), *network.input), np.float32), 0
    edges = iter(range(1, many + 1))
    wanted, read = examples.count * next(edges) // many, 0
    for start, block in blocks(examples.array, Workspace(), 1):
        np.multiply(block.reshape(-1, *network.input), np.float32(1 / examples.by), out=held[filled : filled + 1])
        filled, read = filled + 1, start + 1
        if read == wanted:
            yield held[:filled]
            filled, wanted = 0, examples.count * next(edges, many) // many


def _side_by_side(student: Network, teacher: Network, pairs: dict[int, _Pair], x: Array) -> None:
    """A batch through both networks, each pair matched by it before the next layer."""
    values, others = [student.turned(x)], [teacher.turned(x)]
    for number, (ours, theirs) in enumerate(zip(student.layers, teacher.layers, strict=True)):
        places = student.fitted.sources[number]
        for layer, of in ((ours, values), (theirs, others)):
            if isinstance(layer, AddLayer):
                layer.other = of[places[1]]
        given = values[places[0]], others[places[0]]
        pair = pairs.get(number)
        y, z = (ours.forward(given[0]), theirs.forward(given[1])) if pair is None else pair.run(*given)
        values.append(y)
        others.append(z)


def _missed(student: Network, teacher: Network, batches: list[Array]) -> float:
    """How far the student's outputs are from its teacher's, by the norm of these."""
    missed = whole = 0.0
    for x in batches:
        ours, theirs = student.forward(x).astype(np.float64), teacher.forward(x).astype(np.float64)
        missed += float(np.sum((ours - theirs) ** 2))
        whole += float(np.sum(theirs**2))
    return sqrt(missed / whole) if whole else float(missed > 0)
