"""The contract of a method: what one file under `methods/` provides, and what the engine gives it.

Four types, by what they know and do:

* a `Method` is what was asked for: a frozen dataclass whose fields are the options. Recipe keys, command-line
  flags and provenance all come from them. Of a `TensorMethod`, `prepare` gives what treats tensors, or the first
  pass over them that has to find out more. A `Scheme` is one whose result is stored as parts;
* a `Transform` maps numbers to numbers (prune, distill): `apply(block, out)`. It knows everything that it needs;
* an `Encoder` maps numbers to stored parts (quantize, store), knowing everything that it needs: what `encode`
  says it restored is exactly what its `decoder` gives;
* a `Decoder` maps stored parts back to numbers: `parts(spec)` declares their dtypes and shapes from the tensor's
  spec alone, `decode` restores the numbers, `bound` says how far they are from what was stored. It is all that a
  checkpoint of someone else's, or `restore`, needs.

One class may be several of these, where options are all that there is to know (`PlainTransform`, `PlainSelection`,
`PlainEncoder`). All are pure: they open no file, print nothing, read no clock and no environment.

The engine hands a tensor over as a matrix, some whole rows at a time (a `Block`), in any order and from any
thread. `elementwise` methods also accept blocks cut anywhere; one that does not say `keeps_zeros = False` maps
zero to exactly zero. `rows_alone` transforms and encoders treat a row alike whatever tensor it belongs to and
wherever it stands in it.

A method that needs to know more than a block (a threshold over the whole checkpoint, the range of a tensor)
names its `reach` and prepares a `Survey`: a pass over the same blocks (cut at the same places in every pass of a
run) that gathers mergeable statistics and concludes with what treats the tensors, or with another pass. `partners`
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
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar

from compressor.core import kernels
from compressor.core.errors import UsageError
from compressor.core.ggml_types import GgmlType
from compressor.core.layer_inputs import Layer
from compressor.core.lazy import np
from compressor.core.metrics import count_zeros, dot, is_safe
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.levels import Levels
from compressor.methods.options import SELECTOR, choices_of, describe, options_of
from compressor.methods.parts import Part

S = TypeVar("S")


class Coded(NamedTuple):
    """The rows of a block as the source stores them: `parts` by suffix, which `decoder` decodes."""

    decoder: Decoder
    parts: Mapping[str, Array]


@dataclass(slots=True)
class Block:
    """Some whole rows of one tensor: `values` [rows, columns], read-only; `start` is the first row's number.
    `inputs` is what is known of its layer's inputs [columns], for a method that asks for `statistics`. `coded` are
    the codes of a source that stores such, where no other step came before. A method adds to `remarks` what the
    user should know once it is done."""

    values: Array
    start: int
    spec: TensorSpec
    work: Workspace
    partners: Mapping[str, Array]
    inputs: Layer | None = None
    coded: Coded | None = None
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a method leaves a tensor as it is."""

    reason: str


SMALL = 1 << 17  # weights: a tensor of no more is a single block

# ---- what treats a tensor ------------------------------------------------------------------------------


class Transform(ABC):
    """Numbers to numbers of the same shape."""

    rows_alone: ClassVar[bool] = False  # a row is treated alike whatever tensor it belongs to, and wherever
    flat_alone: ClassVar[bool] = False  # a tensor may be a row of a matrix of others of the same size

    @abstractmethod
    def apply(self, block: Block, out: Array) -> None:
        """Write the new values of `block.values` to `out` [rows, columns]; they never share memory. InputError
        where there are none."""


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


class Decoder(ABC):
    """Stored parts to numbers: what is stored of a tensor, what that is called, and how it is read."""

    verb: ClassVar[str]
    id: ClassVar[str]
    members: ClassVar[Mapping[str, bytes]] = {}  # what an `.npz` says beside the parts: texts by member

    @abstractmethod
    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        """The parts that are stored for a tensor, in full. UsageError where its shape does not allow them."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        """Restore rows `start`, … into `out` [rows, columns] from those rows of `parts` (storage types, by suffix).
        InputError where they contradict each other."""

    @abstractmethod
    def bound(self, largest: float, spec: TensorSpec) -> float:
        """The largest absolute error of a restored weight, where no weight of the tensor exceeds `largest`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a record says of it, beside the verb: selector and options, from which it is made again."""

    @property
    def scheme(self) -> Scheme | None:
        """The method that stores tensors so; None where nobody does here."""
        return self if isinstance(self, Scheme) else None

    @property
    def exact(self) -> bool:
        """Whether the parts stand for the very numbers of the tensor's dtype."""
        return False

    @property
    def plain(self) -> bool:
        """Whether the one part is the tensor itself, in its dtype."""
        return False

    @property
    def on_base(self) -> bool:
        """Whether `decode` gives differences, to which a base's numbers are added (`floats.add_base`)."""
        return False

    @property
    def numbers(self) -> bool:
        """Whether the one part is the tensor itself, in a float dtype that loaders take as it is."""
        return self.plain

    @property
    def ggml(self) -> GgmlType | None:
        """The type of ggml whose blocks the one part is, under the tensor's own name; None where it is none."""
        return None

    @property
    def code_bits_used(self) -> int | None:
        """Of integer codes, one to an element: bits that tell all of them apart, if 0 always stands for zero; else
        None."""
        return None

    @property
    def zero_points(self) -> bool:
        """Whether codes are counted from a stored zero point."""
        return False

    def levels(self, spec: TensorSpec, parts: Mapping[str, Array]) -> Levels | None:
        """The numbers that the codes in `parts` (all rows, in storage types, by suffix) stand for; None where there
        are none that could be changed while the codes stay."""
        return None

    def has_levels(self, spec: TensorSpec) -> bool:
        """Whether `levels` has some for the parts of this tensor."""
        return False

    @property
    def base_name(self) -> str | None:
        """What an adapter names as the model that it is for; None: the student's folder."""
        return None

    @property
    def label(self) -> str:
        """What tables call the stored tensor, in a word: `int4`."""
        return self.id

    @property
    def stored_name(self) -> str:
        """What `inspect` calls the form that a file has the tensor in: the scheme or layout, with its width where
        it comes in many."""
        return self.id

    def config(self, spec: TensorSpec) -> dict[str, Any] | None:
        """What the config.json of the parts' dialect says of them, as JSON types: of compressed-tensors' a scheme,
        with its `format`. None when only `restore` reads them."""
        return None

    def dialect(self, spec: TensorSpec) -> str:
        """The dialect whose loaders take the parts of this tensor; "" where only `restore` reads them."""
        return "compressed-tensors" if "format" in (self.config(spec) or {}) else ""

    def remark(self, spec: TensorSpec) -> str:
        """What the user should know of the tensor's stored form before the run; "" when nothing."""
        return ""


class Indexed(ABC):
    """What reads stored parts once it knows their sizes, of which one part, the index, may have to tell."""

    @abstractmethod
    def check(self, spec: TensorSpec) -> None:
        """Raises UsageError where the tensor cannot be stored so."""

    @abstractmethod
    def index(self, spec: TensorSpec) -> Part | None:
        """The part that is read first; None where the spec tells all sizes."""

    @abstractmethod
    def indexed(self, spec: TensorSpec, content: Array | None) -> Decoder:
        """What reads the parts, for the index's `content` [shape of the part], if there is one. UsageError where
        that cannot be."""


class Encoder(ABC):
    """Numbers to the parts that its `decoder` reads."""

    rows_alone: ClassVar[bool] = False  # a row is treated alike whatever tensor it belongs to, and wherever

    @property
    @abstractmethod
    def decoder(self) -> Decoder:
        """What declares the parts, and reads them again."""

    @abstractmethod
    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        """Fill the rows of `parts` (storage types, by suffix) that belong to the block, unless None;
        write to `restored` [rows, columns] the numbers that decoding will give. InputError for weights that the
        parts cannot hold."""

    def measured(self, block: Block, parts: Mapping[str, Array]) -> tuple[float, int]:
        """Encode, and tell Σ (w − w')² and how many w' are zero. For encoders that know both without restoring."""
        restored = block.work.array("method.restored", block.values.shape, block.values.dtype.str)
        self.encode(block, parts, restored)
        counted = kernels.squared_difference(block.values, restored)
        if counted is not None and is_safe(counted[0]):
            return counted
        zeros = count_zeros(restored, block.work)
        np.subtract(block.values, restored, out=restored)
        return dot(restored, restored), zeros

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """The decoder's bound, or less where what was found out of the tensor tells more."""
        return self.decoder.bound(largest, spec)

    def leaves(self, spec: TensorSpec) -> Skip | None:
        """Why the tensor stays as it is after all, now that it was looked at; None when it does not."""
        return None

    def as_codes(self, spec: TensorSpec) -> Encoder | None:
        """This encoder with its integer codes stored one to an element, as `Scheme.codes` says; None where it has
        none."""
        return None


Treatment = Transform | Encoder


class Survey(ABC, Generic[S]):
    """One pass over blocks. Statistics must merge to the same result in any grouping of the blocks. With `sample` k
    about every k-th weight is enough, the same ones in every run."""

    sample: ClassVar[int] = 1

    @abstractmethod
    def start(self) -> S:
        """Statistics of no blocks at all."""

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
    def conclude(self, stats: S) -> Prepared:
        """The next pass, or what treats the tensors with everything it needs to know."""


class ByTensor(ABC):
    """What a survey of many tensors concludes with, where that is not the same for all of them."""

    @abstractmethod
    def of(self, spec: TensorSpec, own: Method) -> Survey[Any] | Treatment:
        """What concerns one of them, whose `own` method was equal to the one that was surveyed; or a pass over
        that tensor alone."""


Prepared = Survey[Any] | ByTensor | Treatment


# ---- what was asked for --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method(ABC):
    """What a user asked for, by its options. Those that treat tensors are of the type below; others make models,
    see `methods/model_method.py`."""

    verb: ClassVar[str]
    id: ClassVar[str]
    elementwise: ClassVar[bool] = False
    keeps_zeros: ClassVar[bool] = True
    partners: ClassVar[tuple[str, ...]] = ()
    partner_optional: ClassVar[bool] = (
        False  # tensors that a partner lacks, or has in another shape, are left alone
    )
    whole: ClassVar[bool] = False  # a block is a whole tensor
    alternatives: ClassVar[tuple[str, ...]] = ()  # options of which exactly one is given
    statistics: ClassVar[Literal["", "square", "gram"]] = ""  # of a layer's inputs: none, its vectors, its gram too
    at_once: ClassVar[int] = 0  # weights that a block has at least, if there are so many, where calls are dear
    along_inputs: ClassVar[bool] = False  # what it does to a row is for hardware that reads a neuron's inputs so
    biases: ClassVar[bool] = False  # of the layers whose weights it treats it treats the biases too
    linear_algebra: ClassVar[bool] = False  # its last bits are those of the processor's products of matrices
    inputs_by_expert: ClassVar[bool] = (
        False  # of experts in one tensor [experts, out, in] it takes each one's inputs
    )
    balances: ClassVar[bool] = False  # the model's inputs of these layers are scaled first, see `workflows/awq.py`

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

    def memory(self, spec: TensorSpec) -> int:
        """About how many bytes a worker holds of the tensor, where that is more than some blocks."""
        return 0

    def for_stored_as(self, spec: TensorSpec, decoder: Decoder | None) -> Method:
        """This method for a tensor that the source stores as `decoder` reads it, or as numbers."""
        return self

    def partial_treatment(self, spec: TensorSpec) -> str:
        """What of a tensor is treated otherwise than asked, judged from its spec; "" when nothing is."""
        return ""

    def completed_by(self, stage: Method) -> Method:
        """This method as a rule's, where `stage` is the stage's own: what the rule leaves open, that decides."""
        return self

    @property
    def named_layout(self) -> str:
        """The stored layout that the options name; "" where they leave it open, or know none."""
        return ""

    @property
    def partner_path(self) -> str | None:
        """The path of the partner, where an option names it and not the stage."""
        return None

    def without_path(self) -> Self:
        """This method without the path of its partner, which is no part of what is done."""
        return self

    @property
    def rounds(self) -> int:
        """How often the student that an adapter is for is quantized anew against it; 0: it stays as it is."""
        return 0

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


@dataclass(frozen=True)
class TensorMethod(Method):
    """A method that treats tensors, one at a time."""

    @abstractmethod
    def prepare(self, specs: Sequence[TensorSpec]) -> Prepared:
        """The first pass that is needed over these tensors, or, where a block is all it needs, what treats them."""

    @property
    def rounded_by(self) -> TensorMethod:
        """The method that rounds the numbers: of a layout that stores another's codes that other, else itself."""
        return self


@dataclass(frozen=True)
class PlainTransform(TensorMethod, Transform):
    """A method that needs to know nothing but its options: it treats tensors itself."""

    def prepare(self, specs: Sequence[TensorSpec]) -> Prepared:
        return self


@dataclass(frozen=True)
class PlainSelection(PlainTransform, Selection):
    """A selection that needs to know nothing but its options: it treats tensors itself."""


@dataclass(frozen=True)
class Scheme(TensorMethod):
    """A method whose result is stored as parts, or as the numbers that these stand for."""

    adapter: ClassVar[bool] = False  # the parts are a PEFT adapter, which is the whole output
    numbers_only: ClassVar[bool] = False  # what it restores is stored, and never its parts
    norm_partner: ClassVar[str] = ""  # the partner that the result stands for: the loss is measured by its norm

    @property
    def in_gguf(self) -> str:
        """What of llama.cpp's these options mean for a whole `.gguf` where nothing else is asked for: the name of a
        mixture, `pure` for a type that all tensors get, "" for none."""
        return ""

    @abstractmethod
    def decoder_for(self, spec: TensorSpec) -> Decoder | None:
        """What reads the tensor's parts again; None as long as a survey has to count what there is to store."""

    def check(self, spec: TensorSpec) -> None:
        """Raises UsageError when the tensor contradicts the options, judged from its spec alone."""
        decoder = self.decoder_for(spec)
        if decoder is not None:
            decoder.parts(spec)

    def settled(self, spec: TensorSpec) -> tuple[Scheme, str]:
        """This scheme with what its options leave open decided by the tensor's shape; and, in words, what its shape
        did not allow of what is usual ("" where it allows that)."""
        return self, ""

    def align(self, spec: TensorSpec) -> int:
        """Blocks begin at multiples of this many rows."""
        decoder = self.decoder_for(spec)
        return 1 if decoder is None else lcm(*(part.every or 1 for part in decoder.parts(spec)))

    def fallback(self, spec: TensorSpec) -> tuple[Scheme, str] | None:
        """Where `check` refuses a tensor: the nearest configuration that its shape allows, and what differs, in
        words. None when there is none."""
        return None

    def for_block(self, spec: TensorSpec, largest: float) -> Encoder | None:
        """What encodes a block of this tensor by itself nearly as well as with the whole tensor known, where no
        weight of the block exceeds `largest`; None where nothing does."""
        found = self.prepare([spec])
        return found if isinstance(found, Encoder) else None

    def codes(self, spec: TensorSpec) -> Scheme | None:
        """This method with its integer codes stored one to an element, for `.npz` and for sparse layouts; None
        when it has none."""
        return None

    def codes_in_bits(self, spec: TensorSpec) -> Scheme | None:
        """The same with codes of few bits packed as a stream of bits, which NumPy's `unpackbits` reads; None when
        it has no codes."""
        return self.codes(spec)


@dataclass(frozen=True)
class ReadableScheme(Scheme, Decoder):
    """A scheme whose options say all of its parts: it reads them itself, whatever surveys found when they were
    stored."""

    def decoder_for(self, spec: TensorSpec) -> Decoder | None:
        return self


@dataclass(frozen=True)
class PlainEncoder(ReadableScheme, Encoder):
    """A scheme that needs to know nothing but its options: it stores tensors itself."""

    def prepare(self, specs: Sequence[TensorSpec]) -> Prepared:
        return self

    @property
    def decoder(self) -> Self:
        return self
