"""The contract of a method: what one file under `methods/` provides, and what the engine gives it.

A method is a frozen dataclass. Its fields are the options: recipe keys, command-line flags and provenance
all come from them. It is pure: it opens no file, prints nothing, reads no clock and no environment.

There are two kinds here, by what they do to the rows of a tensor (a third, for whole models, is in `reshape.py`):

* a `Transform` maps numbers to numbers (prune, distill): `apply(block, out)`;
* an `Encoder` maps numbers to stored parts and back (quantize): `parts(spec)` declares the parts' dtypes and
  shapes from the tensor's spec alone, `encode` fills them, `decode` restores the numbers. What `encode` says
  it restored is exactly what `decode` gives.

The engine hands a tensor over as a matrix, some whole rows at a time (a `Block`), in any order and from any
thread. `elementwise` methods also accept blocks cut anywhere; `nameless` ones treat a row alike whatever tensor
it belongs to and wherever it stands; a method that does not say `keeps_zeros = False` maps zero to exactly zero.

A method that needs to know more than a block (a threshold over the whole checkpoint, the range of a tensor)
names its `reach` and returns a `Survey`: a pass over the same blocks (cut at the same places in every pass of a
run) that gathers mergeable statistics and concludes with the method to run, or with another pass. `partners`
names further tensors of the same shape that are read together with the block. A `whole` method has the tensor as
one block: it says how much `memory` that takes.

A method whose `statistics` is not "" goes by what is known of the inputs of the layer whose weight the tensor is:
`block.inputs`, with the gram where it says so. It gets whole rows [rows, in], of a tensor with a layer of that many
inputs; what it derives from the gram alone it keeps by `block.work.once`. `at_once` asks for larger blocks.

What a method stores is the same on every processor: it adds up by `core/sums.py` and takes logarithms and powers
from `core/elementary.py`, never from BLAS or NumPy. Only one that says `linear_algebra` may depend on the processor
in what lies within rounding (docs/formats.md has how far).

A method says no in two ways. `Skip` is an expected "not for this tensor" and is reported; a raised
`UsageError` means that the request itself is at odds with the tensor, and names what would work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from compressor.core.errors import UsageError
from compressor.core.layer_inputs import Layer
from compressor.core.lazy import np
from compressor.core.metrics import count_zeros, dot
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.options import SELECTOR, choices_of, describe, options_of
from compressor.methods.parts import Part

S = TypeVar("S")


class Coded(NamedTuple):
    """The rows of a block as the source stores them: `parts` by suffix, which `encoder` decodes."""

    encoder: Encoder
    parts: Mapping[str, Array]


@dataclass(slots=True)
class Block:
    """Some whole rows of one tensor: `values` [rows, columns], read-only; `start` is the first row's number.
    `inputs` is what is known of its layer's inputs [columns], for a method that asks for `statistics`. `coded` are
    the codes of a source that stores such, where no other step came before. A method adds to `said` what the user
    should know once it is done."""

    values: Array
    start: int
    spec: TensorSpec
    work: Workspace
    partners: Mapping[str, Array]
    inputs: Layer | None = None
    coded: Coded | None = None
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a method leaves a tensor as it is."""

    reason: str


@dataclass(frozen=True)
class Method(ABC):
    """What all methods have in common."""

    verb: ClassVar[str]
    id: ClassVar[str]
    elementwise: ClassVar[bool] = False
    nameless: ClassVar[bool] = False
    keeps_zeros: ClassVar[bool] = True
    partners: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = False  # a block is a whole tensor
    alternatives: ClassVar[tuple[str, ...]] = ()  # options of which exactly one is given
    statistics: ClassVar[Literal["", "square", "gram"]] = ""  # of a layer's inputs: none, its vectors, its gram too
    at_once: ClassVar[int] = 0  # weights that a block has at least, if there are so many, where calls are dear
    biases: ClassVar[bool] = False  # of the layers whose weights it treats it treats the biases too
    linear_algebra: ClassVar[bool] = False  # its last bits are those of the processor's products of matrices
    balances: ClassVar[bool] = False  # the model's inputs of these layers are scaled first, see `balancing.py`

    def __post_init__(self) -> None:
        for name, (hint, declared) in options_of(type(self)).items():
            value = getattr(self, name)
            choices = choices_of(hint)
            wrong = (value not in choices) if choices else False
            if isinstance(value, int | float) and not isinstance(value, bool):
                wrong = wrong or not declared.holds(value)
            if wrong:
                raise UsageError(f"{name} must be {describe(hint, declared)}, not {value!r}")
        if self.alternatives and sum(getattr(self, name) is not None for name in self.alternatives) != 1:
            raise UsageError(f"{SELECTOR[self.verb]} {self.id} needs one of {', '.join(self.alternatives)}")

    def skip(self, spec: TensorSpec) -> Skip | None:
        """Why this tensor cannot be treated, judged from its spec alone; None when it can.

        Raises UsageError when the options contradict the tensor.
        """
        return None

    @property
    def reach(self) -> Literal["tensor", "model"]:
        """Whether a survey looks at one tensor at a time or at all that the stage treats."""
        return "tensor"

    def survey(self, specs: Sequence[TensorSpec]) -> Survey[Any] | None:
        """The first pass that this method needs over these tensors; None when a block is all it needs."""
        return None

    def joins(self, spec: TensorSpec) -> bool:
        """Whether such a tensor may be treated in one block with its neighbours, by what `jointly` gives."""
        return self.nameless

    def jointly(self, specs: Sequence[TensorSpec]) -> Method:
        """The method that treats these whole tensors, one below the other, each as this one treats it alone."""
        return self

    def memory(self, spec: TensorSpec) -> int:
        """About how many bytes a worker holds of the tensor, where that is more than some blocks."""
        return 0

    def upon(self, spec: TensorSpec, encoder: Encoder | None) -> Method:
        """This method for a tensor that the source stores by `encoder`, or as numbers."""
        return self

    def for_tensor(self, name: str, own: Method) -> Method:
        """Of a method that a survey of many tensors concluded with: what concerns one of them, whose `own` method
        was equal to the one that was surveyed."""
        return self

    def shortfall(self, spec: TensorSpec) -> str:
        """What of a tensor is treated otherwise than asked, judged from its spec; "" when nothing is."""
        return ""

    def within(self, stage: Method) -> Method:
        """This method as a rule's, where `stage` is the stage's own: what the rule leaves open, that decides."""
        return self

    def with_scores(self) -> Method | None:
        """This method, going by given scores of inputs (as the roots of `inputs.square`); None where it cannot.

        Raises UsageError when the options forbid it.
        """
        return None

    def with_statistics(self) -> Method | None:
        """This method, going by `statistics` where it does not need them; None where it has no use for any."""
        return None

    def warning(self, change: Any) -> str | None:
        """What the user should know about the measured `metrics.Change` of one tensor; None when nothing."""
        return None

    def describe(self) -> dict[str, Any]:
        """The method as a recipe would give it: selector and options, without the unset ones."""
        given = {name: getattr(self, name) for name in options_of(type(self))}
        return {SELECTOR[self.verb]: self.id, **{k: v for k, v in given.items() if v is not None}}


class Transform(Method):
    """Numbers to numbers of the same shape."""

    @abstractmethod
    def apply(self, block: Block, out: Array) -> None:
        """Write the new values of `block.values` to `out` [rows, columns]; they never share memory."""


class Selection(Transform):
    """A transform whose new numbers are each the old one or +0, so that it works on stored bits as well."""

    @abstractmethod
    def keep(self, block: Block, out: Array) -> None:
        """Write to `out` [rows, columns], bool, which weights stay."""

    def apply(self, block: Block, out: Array) -> None:
        mask = block.work.array("method.keep", out.shape, "|b1")
        self.keep(block, mask)
        select(block.values, mask, out)


def select(values: Array, keep: Array, out: Array) -> None:
    """`values` (numbers, or their stored bits) where `keep` [same shape, bool], else +0.

    Multiplying bit patterns touches no bit of a kept weight, leaves no −0 behind, and is as fast as numbers are.
    """
    bits = f"<u{values.itemsize}"
    np.multiply(values.view(bits), keep, out=out.view(bits), casting="same_kind")


class Encoder(Method):
    """Numbers to stored parts and back."""

    adapter: ClassVar[bool] = False  # the parts are a PEFT adapter, which is the whole output
    numbers_only: ClassVar[bool] = False  # what it restores is stored, and never its parts
    towards: ClassVar[str] = ""  # the partner that the result stands for: the loss is measured against its norm
    members: ClassVar[Mapping[str, bytes]] = {}  # what an `.npz` says beside the parts: texts by member

    @abstractmethod
    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        """The parts that are stored for a tensor, in full, before anyone has read it (or, of an encoder that is
        not yet `counted`, after its survey)."""

    @abstractmethod
    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        """Fill the rows of `parts` (storage types, by suffix) that belong to the block, unless None;
        write to `restored` [rows, columns] the numbers that `decode` will give."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        """Restore rows `start`, … into `out` from those rows of `parts`."""

    @abstractmethod
    def bound(self, largest: float, spec: TensorSpec) -> float:
        """The largest absolute error of a restored weight, where no weight of the tensor exceeds `largest`."""

    @property
    def counted(self) -> bool:
        """Whether the parts follow from the spec; else a survey has to count first what there is to store."""
        return True

    @property
    def written(self) -> Encoder:
        """The encoder whose parts these are, by which they are read again."""
        return self

    @property
    def exact(self) -> bool:
        """Whether the parts stand for the very numbers of the tensor's dtype."""
        return False

    def check(self, spec: TensorSpec) -> None:
        """Raises UsageError when the tensor contradicts the options, judged from its spec alone."""
        self.parts(spec)

    def align(self, spec: TensorSpec) -> int:
        """Blocks begin at multiples of this many rows."""
        return lcm(*(part.every or 1 for part in self.parts(spec)))

    def counts_part(self, spec: TensorSpec) -> Part | None:
        """The part without whose content the others cannot be declared; None where the spec tells them."""
        return None

    def counted_by(self, spec: TensorSpec, content: Array) -> Encoder:
        """This encoder with what is stored as its `counts_part`. Raises UsageError when that cannot be."""
        raise TypeError(f"{self.id} counts nothing")

    def config(self, spec: TensorSpec) -> dict[str, Any] | None:
        """The compressed-tensors scheme under which loaders take the parts; None when only `restore` reads them."""
        return None

    def dialect(self, spec: TensorSpec) -> str:
        """The dialect whose loaders take the parts of this tensor; "" where only `restore` reads them."""
        return "compressed-tensors" if self.config(spec) is not None else ""

    def remark(self, spec: TensorSpec) -> str:
        """What the user should know of the tensor's stored form before the run; "" when nothing."""
        return ""

    @property
    def label(self) -> str:
        """What tables call the stored tensor, in a word: `int4`."""
        return self.id

    def measured(self, block: Block, parts: Mapping[str, Array]) -> tuple[float, int]:
        """Encode, and tell Σ (w − w')² and how many w' are zero. For encoders that know both without restoring."""
        restored = block.work.array("method.restored", block.values.shape, block.values.dtype.str)
        self.encode(block, parts, restored)
        zeros = count_zeros(restored, block.work)
        np.subtract(block.values, restored, out=restored)
        return dot(restored, restored), zeros

    def fallback(self, spec: TensorSpec) -> tuple[Encoder, str] | None:
        """Where `parts` refuses a tensor: the nearest configuration that its shape allows, and what differs, in
        words. None when there is none."""
        return None

    def codes(self, spec: TensorSpec) -> Encoder | None:
        """This method with its integer codes stored one to an element, for `.npz` and for sparse layouts; None
        when it has none."""
        return None

    @property
    def code_bits_used(self) -> int | None:
        """Of `codes`: bits that tell all elements apart, if element 0 always stands for zero; else None."""
        return None


class Survey(ABC, Generic[S]):
    """One pass over blocks. Statistics must merge to the same result in any grouping of the blocks. With `sample` k
    about every k-th weight is enough, the same ones in every run."""

    sample: ClassVar[int] = 1

    @abstractmethod
    def start(self) -> S:
        """Empty statistics."""

    def wants(self, spec: TensorSpec) -> bool:
        """Whether this pass must see the tensor at all."""
        return True

    @abstractmethod
    def observe(self, block: Block, stats: S) -> S:
        """`stats` with the block added; may change it in place. Blocks of a chunk come in order."""

    @abstractmethod
    def merge(self, stats: S, more: S) -> S:
        """Both together; may change `stats` in place."""

    @abstractmethod
    def conclude(self, stats: S) -> Survey[Any] | Method:
        """The next pass, or the method with everything it needs to know."""


# ---- options: the fields of a method as users give them ------------------------------------------------


# ---- discovery -----------------------------------------------------------------------------------------
