"""Refitting a network's layers in their order, each by the inputs that the refit ones before it leave.

For a layer whose inputs are x in the teacher and y in the student, and the teacher's weight T and bias t,

    W', b' = argmin E ‖(T x + t) − (W y + b)‖² + λ ‖W − T‖²     under the student's mask, or its codes

With H = E[y yᵀ] + λ I and V H = T E[x yᵀ] + λ T that is (W − V) H (W − V)ᵀ and what no W changes, so that V takes
the place of the weights that `refit` wants elsewhere; of the layer that first differs x is y, and V is T. With a
bias all inputs are less their means, and b' = t + T E[x] − W' E[y]. λ is `damp` mean diagonals of E[y yᵀ].

Only layers with a weight matrix are refit; norms, and convolutions in groups, whose rows each have inputs of their
own, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from typing import TypeVar

from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.rows import Rows, read_whole
from compressor.checkpoint.views import ReplacedTensor, holding
from compressor.core.errors import InputError
from compressor.core.floats import largest
from compressor.core.layer_inputs import Gather, Layer
from compressor.core.lazy import np
from compressor.core.parallel.threads import local
from compressor.core.tensor_names import layer_of
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Coded
from compressor.methods.numerics.hessian import ROWS, Conditioned, conditioned, conditioned_memory
from compressor.methods.numerics.masked_least_squares import masked
from compressor.methods.unlisted import refit_codes
from compressor.networks.matching import read_network
from compressor.networks.network import Network
from compressor.networks.samples import blocks
from compressor.networks.surest import both_surest, first_samples
from compressor.networks.training.examples import Examples, open_examples
from compressor.networks.training.network_ends import bare, check_same_shapes
from compressor.recipe.sequential_refit import Sequential

_DEAD = 1e-6  # what an input that is never active weighs in mean diagonals, beside the damping
T = TypeVar("T")


def refitted(
    checkpoint: Checkpoint,
    teacher: Checkpoint,
    options: Sequential,
    *,
    workers: int,
    dry: bool,
    progress: Callable[[int, int], None] | None,
) -> Checkpoint:
    """The student with its linear layers refit; `dry`: not refit, only looked at. InputError where the two are not
    of the same shapes, or the inputs are not theirs."""
    wide = any(tensor.spec.dtype == "F64" for tensor in checkpoint.tensors.values())
    student = read_network(checkpoint, options.network, "<f8" if wide else "<f4")
    mentor = read_network(teacher, options.network, student.network.dtype)
    examples = open_examples(options.inputs, options.divide, bare(student.network), bare(mentor.network))
    samples = first_samples(examples.array, examples.by)
    mentor, student = both_surest(teacher, mentor, checkpoint, student, samples)
    run = _Run(checkpoint, bare(student.network), bare(mentor.network), examples, options.damp)
    notes = [f"network: {student.description}", f"inputs: {run.examples.count}, {run.examples.description}"]
    notes.append(
        f"{options.label} holds both networks and products of a layer's inputs: about {run.nbytes / 1e6:.0f} MB"
    )
    if not run.bounded:
        notes.append("no weight of the student is zero or a code, so all are free, and become the teacher's")
    if not dry and not options.rehearsal:
        try:
            with local(workers) as executor:
                notes += _quietly(run.all, executor, progress)
        except InputError as error:
            error.file = error.file or checkpoint.path
            raise
    tensors = {name: replace(one, kept=one.encoder is not None) for name, one in run.tensors.items()}
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, *notes))


@dataclass(frozen=True)
class _Seen:
    """Of a layer: the student's inputs y; the teacher's mean E[x], and E[(x − y) yᵀ], None where all x are y."""

    layer: Layer
    mean: Array
    apart: Array | None


class _Run:
    """A student on its way to its teacher: `student` and `tensors` change layer by layer."""

    def __init__(
        self, checkpoint: Checkpoint, student: Network, teacher: Network, examples: Examples, damp: float | None
    ) -> None:
        self.checkpoint, self.student, self.teacher = checkpoint, student, teacher
        self.examples, self.damp = examples, damp
        self.tensors = dict(checkpoint.tensors)
        check_same_shapes(student, teacher, checkpoint.path)
        for name, array in student.tensors.items():
            if self.tensors[name].encoder is not None and not _coded(self.tensors[name]):
                self.tensors[name] = holding(checkpoint, name, array)
        self.roles = {layer_of(one["weight"]): one for one in student.fitted.roles if "weight" in one}
        self.linear = {layer: width for layer, width in student.linear.items() if layer not in student.grouped}
        for layer in self.linear:
            tensor = self.tensors[self.roles[layer]["weight"]]
            if tensor.encoder is not None and _coded(tensor) and not tensor.encoder.has_levels(tensor.spec):
                raise InputError(
                    f"is stored as {tensor.encoder.label}, whose parts cannot be refit in order",
                    file=checkpoint.path,
                    tensor=tensor.spec.name,
                    remedy="Restore it first; plain integers and codebooks can",
                )

    @property
    def nbytes(self) -> int:
        """Bytes that it takes: both networks; of the widest layer its products, which are gathered and copied."""
        networks = sum(array.nbytes for one in (self.student, self.teacher) for array in one.tensors.values())
        width = max(self.linear.values(), default=0)
        return networks + 2 * 8 * (2 * width) ** 2 + conditioned_memory(width)

    @property
    def bounded(self) -> bool:
        """Whether any weight is held by a mask or by codes."""
        names = [self.roles[layer]["weight"] for layer in self.linear]
        return any(_coded(self.tensors[name]) or not self.student.tensors[name].all() for name in names)

    def all(self, executor: Executor, progress: Callable[[int, int], None] | None) -> list[str]:
        """Refit every layer; what the user should know."""
        passes, size = len(self.linear) + 2, self.examples.array.spec.nbytes
        done = 0

        def advance(samples: int) -> None:
            nonlocal done
            done += samples
            if progress is not None:
                progress(size * done // self.examples.count, size * passes)

        before = self._missed(executor, advance)
        notes = list[str]()
        for layer in self.linear:
            seen = self._observe(layer, executor, advance)
            notes += [f"{layer}: {remark}" for remark in self._solve(layer, seen, executor)]
        after = self._missed(executor, advance)
        self.examples.source.check_unchanged()
        return [
            *notes,
            f"outputs on the inputs are {after:.4g} of their size from the teacher's, before {before:.4g}",
        ]

    # ---- what the networks make of the inputs ----------------------------------------------------------

    def _pairs(
        self, look: Callable[[Array, Network], Array], executor: Executor, advance: Callable[[int], None]
    ) -> Iterator[tuple[Array, Array]]:
        """What is seen in student and teacher [.., width] for a batch of inputs after the other; valid until the
        next. The two run side by side where there are two workers."""
        for _, block in blocks(self.examples.array, Workspace(), self.student.batch):
            if self.examples.by != 1:
                block *= block.dtype.type(1 / self.examples.by)
            x = block.reshape(-1, *self.student.input)
            ours, theirs = executor.map(partial(_quietly, look, x), (self.student, self.teacher))
            yield ours, theirs
            advance(len(block))

    def _missed(self, executor: Executor, advance: Callable[[int], None]) -> float:
        """How far the student's outputs are from its teacher's, by the norm of these."""
        missed = whole = 0.0
        for ours, theirs in self._pairs(lambda x, network: network.forward(x), executor, advance):
            wide = theirs.astype(np.float64)
            missed += float(np.sum((ours - wide) ** 2))
            whole += float(np.sum(wide**2))
        return sqrt(missed / whole) if whole else float(missed > 0)

    def _observe(self, layer: str, executor: Executor, advance: Callable[[int], None]) -> _Seen:
        width = self.linear[layer]
        alike = self._alike(layer)
        both = Gather(width if alike else 2 * width, gram=True, name=layer)
        for ours, theirs in self._pairs(lambda x, network: network.entering(x, layer), executor, advance):
            both.add(ours if alike else np.concatenate([ours, theirs], axis=-1))
        joint = both.layer
        assert joint.gram is not None  # noqa: S101 - it was asked for
        if alike:
            return _Seen(joint, joint.mean, None)
        mine = Layer(joint.count, joint.mean[:width], joint.square[:width], joint.gram[:width, :width].copy())
        apart = joint.gram[width:, :width] - joint.gram[:width, :width]
        return _Seen(mine, joint.mean[width:], apart)

    def _alike(self, layer: str) -> bool:
        """Whether the layer's inputs are the teacher's: all before it is."""
        for roles in self.student.fitted.roles:
            if "weight" in roles and layer_of(roles["weight"]) == layer:
                break
            if not all(np.array_equal(self.student.tensors[n], self.teacher.tensors[n]) for n in roles.values()):
                return False
        return True

    # ---- solving ---------------------------------------------------------------------------------------

    def _solve(self, layer: str, seen: _Seen, executor: Executor) -> list[str]:
        """The weight and bias of a layer; what there is to say of its gram."""
        roles = self.roles[layer]
        name, bias = roles["weight"], roles.get("bias")
        if bias is not None and _coded(self.tensors[bias]):
            bias = None  # it stays
        of = conditioned(seen.layer, self.damp, name, centred=bias is not None, dead=_DEAD)
        teacher = self.teacher.tensors[name].reshape(len(self.teacher.tensors[name]), -1).astype(np.float64)
        power = np.frexp(np.abs(teacher).max(axis=1, keepdims=True))[1]
        wanted = np.ldexp(teacher, -power)
        if seen.apart is not None:
            wanted += _toward(wanted, seen, of, centred=bias is not None)
        tensor = self.tensors[name]
        if _coded(tensor):
            self._put(name, _recoded(tensor, np.ldexp(wanted, power), of))
        else:
            keep = self.student.tensors[name].reshape(teacher.shape) != 0
            rows = [slice(first, first + ROWS) for first in range(0, len(teacher), ROWS)]
            solved = executor.map(lambda here: _quietly(masked, wanted[here], keep[here], of.gram), rows)
            self._settle(name, np.ldexp(np.concatenate(list(solved)), power))
        if bias is not None:
            held = self.student.tensors[name].reshape(teacher.shape).astype(np.float64)
            shift = teacher @ seen.mean - held @ seen.layer.mean
            self._settle(bias, self.teacher.tensors[bias] + shift)
        return of.remarks()

    def _settle(self, name: str, numbers: Array) -> None:
        """Numbers of the tensor's dtype, which the layers after it then see; +0 for −0."""
        top = largest(self.tensors[name].spec.dtype)
        numbers = np.clip(numbers, -top, top) + 0.0
        self._put(name, holding(self.checkpoint, name, numbers.reshape(self.student.tensors[name].shape)))

    def _put(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor
        np.copyto(self.student.tensors[name], read_whole(tensor), casting="same_kind")


def _coded(tensor: Tensor) -> bool:
    """Whether it is stored as codes; a sparse layout of floats is refit as numbers."""
    return tensor.encoder is not None and not tensor.encoder.exact


def _toward(teacher: Array, seen: _Seen, of: Conditioned, *, centred: bool) -> Array:
    """V − T [out, in], in the units of the conditioned gram: T E[(x − y) yᵀ] H⁻¹."""
    layer = seen.layer
    assert seen.apart is not None  # noqa: S101 - who calls looked
    assert layer.gram is not None  # noqa: S101
    apart, size = seen.apart.copy(), layer.gram.diagonal()
    if centred:
        apart -= np.outer(seen.mean - layer.mean, layer.mean)
        size = size - layer.mean * layer.mean
    apart[:, size <= 0] = 0
    apart /= np.maximum(size, 0).mean() or 1.0
    shift: Array = np.linalg.solve(of.gram, (teacher @ apart).T).T
    return shift


def _recoded(tensor: Tensor, wanted: Array, of: Conditioned) -> Tensor:
    """The tensor with the same codes and other scales or entries."""
    spec, encoder, work = tensor.spec, tensor.encoder, Workspace()
    assert encoder is not None  # noqa: S101 - it has codes
    rows, columns = spec.matrix
    read = Rows(tensor, columns, 0, rows, work, "refit")
    values = np.array(read.block(0, rows))
    made = {suffix: array.copy() for suffix, array in read.read.items()}
    parts = {part.suffix: part.view(made[part.suffix], 0, rows, 0) for part in encoder.parts(spec)}
    block = Block(values, 0, spec, work, {}, of.layer, Coded(encoder, read.views(0, rows)))
    refit_codes.refit(block, wanted, of.gram, encoder, parts, np.empty_like(values), zero_points=False)
    stored = {}
    for suffix, numbers in made.items():
        part = tensor.parts[suffix]
        placed = replace(part.placed, fortran=False, big_endian=False, strides=None)
        stored[suffix] = ReplacedTensor(part.file, placed, numbers.reshape(part.spec.shape))
    return replace(tensor, parts={**tensor.parts, **stored})


def _quietly(work: Callable[..., T], *given: object) -> T:
    with np.errstate(all="ignore"):  # of this thread; what goes wrong is seen in the results
        return work(*given)
