"""The kinds of layers that a network is described by: their options, their tensors and what they do to a shape.

Nothing here has data. A sample's shape is (features,) or (channels, rows, columns), as in PyTorch; so are tensors:
a dense weight is [out, in], a convolution's [out, in, rows, columns].
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, ClassVar

from compressor.core.plain_number import is_number

Shape = tuple[int, ...]
Tensors = Mapping[str, Shape]  # shapes by role
Pads = tuple[tuple[int, int], tuple[int, int]]  # before and after the rows, before and after the columns
_MOST = 2**31


class Misfit(ValueError):
    """What a layer cannot do: a sentence, and the tensor that it is about, if any."""

    def __init__(self, reason: str, tensor: str | None = None) -> None:
        super().__init__(reason)
        self.tensor = tensor


# ---- options: readers give the value, or raise a ValueError that says what it must be ------------------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 500:
        raise ValueError("must be a tensor's or a layer's name")
    return value


def _text_or_false(value: Any) -> str | None:
    if value is False:
        return None
    if isinstance(value, bool):
        raise ValueError("must be a tensor's name, or false for none")
    return _text(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 1 <= value < _MOST:
        raise ValueError("must be a whole number from 1")
    return value


def _pair(least: int) -> Callable[[Any], tuple[int, int]]:
    def read(value: Any) -> tuple[int, int]:
        both = [value, value] if type(value) is int else value
        if (
            not isinstance(both, list)
            or len(both) != 2
            or not all(type(n) is int and least <= n < _MOST for n in both)
        ):
            raise ValueError(f"must be a whole number from {least}, or two of them for rows and columns")
        return both[0], both[1]

    return read


def _padding(value: Any) -> tuple[int, int] | str:
    if value == "same":
        return "same"
    try:
        return _pair(0)(value)
    except ValueError:
        raise ValueError('must be a whole number from 0, two of them for rows and columns, or "same"') from None


def _positive(value: Any) -> float:
    if not is_number(value) or value <= 0:
        raise ValueError("must be a positive number")
    return float(value)


def _tanh_or_none(value: Any) -> str:
    if value not in ("none", "tanh"):
        raise ValueError('must be "none" or "tanh"')
    return str(value)


def _read(reader: Callable[[Any], Any], default: Any) -> Any:
    return field(default=default, metadata={"read": reader})


def readers(kind: type[Kind]) -> dict[str, Callable[[Any], Any]]:
    """The options of a kind, each with its reader."""
    own = sorted(fields(kind), key=lambda one: bool(one.kw_only))
    return {one.name: one.metadata["read"] for one in own}


# ---- kinds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One layer as it is described."""

    kind: ClassVar[str]
    own: ClassVar[tuple[str, ...]] = ()  # roles of tensors that it cannot be without
    output: str = field(default="", kw_only=True, metadata={"read": _text})  # what others call what it gives
    input: str = field(default="", kw_only=True, metadata={"read": _text})  # whose; unset: of the layer before

    def roles(self, names: Container[str]) -> dict[str, str]:
        """The names of its tensors, by what they are; one that may be left out is there if it is in `names`."""
        return {}

    def result(self, shape: Shape, tensors: Tensors) -> Shape:
        """The shape that a sample of `shape` becomes. Misfit when it cannot be."""
        return shape


def _parts(kind: Any, names: Container[str], parts: Mapping[str, str], optional: Container[str]) -> dict[str, str]:
    """A layer's tensors: as its options name them, or after its own name."""
    found = {}
    for role, suffix in parts.items():
        given = getattr(kind, role)
        if given is None:  # said to have none
            continue
        name = given or f"{kind.name}.{suffix}"
        if given or role not in optional or (kind.name and name in names):
            found[role] = name
    return found


def _vectors(tensors: Tensors, size: int, what: str) -> None:
    """Misfit where a tensor beside the weights of outputs is not one number for each."""
    for role, shape in tensors.items():
        if shape != (size,) and (role != "weight" or what != "outputs"):
            raise Misfit(f"its shape is {list(shape)}, where {size} {what} ask for {[size]}", role)


@dataclass(frozen=True)
class Dense(Kind):
    """`y = W x + b`."""

    kind = "dense"
    own = ("weight",)
    name: str = _read(_text, "")
    weight: str = _read(_text, "")
    bias: str | None = _read(_text_or_false, "")
    out: int = _read(_count, 0)

    def roles(self, names: Container[str]) -> dict[str, str]:
        return _parts(self, names, {"weight": "weight", "bias": "bias"}, ("bias",))

    def result(self, shape: Shape, tensors: Tensors) -> Shape:
        weight = tensors["weight"]
        if len(weight) != 2:
            raise Misfit(f"its shape is {list(weight)}, where a dense layer has [out, in]", "weight")
        if len(shape) != 1:
            raise Misfit(f"takes features, and its inputs are {list(shape)}: flatten comes first")
        if weight[1] != shape[0]:
            raise Misfit(f"takes {weight[1]} features, and its inputs have {shape[0]}", "weight")
        if self.out and weight[0] != self.out:
            raise Misfit(f"gives {weight[0]} features, and {self.out} are described", "weight")
        _vectors(tensors, weight[0], "outputs")
        return (weight[0],)


@dataclass(frozen=True)
class Conv2d(Kind):
    """A convolution (cross-correlation, as frameworks have it) over rows and columns."""

    kind = "conv2d"
    own = ("weight",)
    name: str = _read(_text, "")
    weight: str = _read(_text, "")
    bias: str | None = _read(_text_or_false, "")
    stride: tuple[int, int] = _read(_pair(1), (1, 1))
    padding: tuple[int, int] | str = _read(_padding, (0, 0))
    groups: int = _read(_count, 1)
    kernel: tuple[int, int] | None = _read(_pair(1), None)
    out: int = _read(_count, 0)

    def roles(self, names: Container[str]) -> dict[str, str]:
        return _parts(self, names, {"weight": "weight", "bias": "bias"}, ("bias",))

    def result(self, shape: Shape, tensors: Tensors) -> Shape:
        weight = tensors["weight"]
        if len(weight) != 4 or 0 in weight:
            raise Misfit(f"its shape is {list(weight)}, where a convolution has [out, in, rows, columns]", "weight")
        _planes(shape)
        if weight[1] * self.groups != shape[0] or weight[0] % self.groups:
            many = f" in each of {self.groups} groups" * (self.groups > 1)
            raise Misfit(f"takes {weight[1]} channels{many}, and its inputs have {shape[0]}", "weight")
        for said, found, what in (
            (self.out, weight[0], "channels"),
            (self.kernel and list(self.kernel), list(weight[2:]), "as kernel"),
        ):
            if said and said != found:
                raise Misfit(f"has {found} {what}, and {said} is described", "weight")
        pads = self.pads(shape, weight[2:])
        if any(max(pad) >= edge for pad, edge in zip(pads, weight[2:], strict=True) if max(pad)):
            said = [pad[0] for pad in pads]
            raise Misfit(f"pads by {said}, as much as its kernel {list(weight[2:])} or more")
        _vectors(tensors, weight[0], "outputs")
        return (weight[0], *_slid(shape, weight[2:], self.stride, pads))

    def pads(self, shape: Shape, kernel: Shape) -> Pads:
        """Zeros before and after the rows and the columns of planes of this shape. "same" is TensorFlow's: as many
        windows as strides begin within the plane, an odd zero behind."""
        if not isinstance(self.padding, str):
            high, wide = self.padding
            return (high, high), (wide, wide)
        found = []
        for edge, window, step in zip(shape[1:], kernel, self.stride, strict=True):
            lacks = max((-(-edge // step) - 1) * step + window - edge, 0)
            found.append((lacks // 2, lacks - lacks // 2))
        return found[0], found[1]


@dataclass(frozen=True)
class Pool(Kind):
    """What a window over rows and columns holds at most, or on average; without a size the whole plane."""

    size: tuple[int, int] | None = _read(_pair(1), None)
    stride: tuple[int, int] | None = _read(_pair(1), None)  # the size, unless given
    padding: tuple[int, int] = _read(_pair(0), (0, 0))

    def result(self, shape: Shape, tensors: Tensors) -> Shape:
        _planes(shape)
        size, stride = self.window(shape)
        if any(2 * pad > edge for pad, edge in zip(self.padding, size, strict=True)):
            raise Misfit(f"pads by {list(self.padding)}, more than half of its size {list(size)}")
        return (shape[0], *_slid(shape, size, stride, self.pads))

    @property
    def pads(self) -> Pads:
        """What is padded before and after the rows and the columns."""
        high, wide = self.padding
        return (high, high), (wide, wide)

    def window(self, shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
        """Its size and its stride on planes of this shape."""
        size = self.size or (shape[1], shape[2])
        return size, self.stride or size


@dataclass(frozen=True)
class MaxPool(Pool):
    """The largest of a window; what is padded never is."""

    kind = "max-pool"


@dataclass(frozen=True)
class AveragePool(Pool):
    """The mean of a window, padded zeros included, as PyTorch counts them."""

    kind = "average-pool"


@dataclass(frozen=True)
class BatchNorm(Kind):
    """`(x − mean) / √(variance + epsilon) · weight + bias`, channel by channel or feature by feature."""

    kind = "batch-norm"
    own = ("mean", "variance")
    name: str = _read(_text, "")
    weight: str | None = _read(_text_or_false, "")
    bias: str | None = _read(_text_or_false, "")
    mean: str = _read(_text, "")
    variance: str = _read(_text, "")
    epsilon: float = _read(_positive, 1e-5)

    def roles(self, names: Container[str]) -> dict[str, str]:
        parts = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
        return _parts(self, names, parts, ("weight", "bias"))

    def result(self, shape: Shape, tensors: Tensors) -> Shape:
        _vectors(tensors, shape[0], "channels" if len(shape) == 3 else "features")
        return shape


@dataclass(frozen=True)
class LayerNorm(Kind):
    """Each sample's features to mean 0 and variance 1, then `· weight + bias`."""

    kind = "layer-norm"
    own = ("weight",)
    name: str = _read(_text, "")
    weight: str | None = _read(_text_or_false, "")
    bias: str | None = _read(_text_or_false, "")
    epsilon: float = _read(_positive, 1e-5)

    def roles(self, names: Container[str]) -> dict[str, str]:
        return _parts(self, names, {"weight": "weight", "bias": "bias"}, ("weight", "bias"))

    def result(self, shape: Shape, tensors: Tensors) -> Shape:
        if len(shape) != 1:
            raise Misfit(f"takes features, and its inputs are {list(shape)}: flatten comes first")
        _vectors(tensors, shape[0], "features")
        return shape


@dataclass(frozen=True)
class Flatten(Kind):
    """Channels, rows and columns in this order as features."""

    kind = "flatten"

    def result(self, shape: Shape, tensors: Tensors) -> Shape:
        return (prod(shape),)


@dataclass(frozen=True)
class Relu(Kind):
    """`max(x, 0)`."""

    kind = "relu"


@dataclass(frozen=True)
class Relu6(Kind):
    """`min(max(x, 0), 6)`."""

    kind = "relu6"


@dataclass(frozen=True)
class Swish(Kind):
    """`x / (1 + e^−x)`, which is called SiLU too."""

    kind = "swish"


@dataclass(frozen=True)
class Add(Kind):
    """What it is given plus what the layer gives whose `output` is called `other`: a residual connection."""

    kind = "add"
    other: str = _read(_text, "")


@dataclass(frozen=True)
class Gelu(Kind):
    """`x · Φ(x)`, Φ the normal distribution; or its approximation by tanh."""

    kind = "gelu"
    approximate: str = _read(_tanh_or_none, "none")


@dataclass(frozen=True)
class Tanh(Kind):
    """`tanh(x)`."""

    kind = "tanh"


@dataclass(frozen=True)
class Sigmoid(Kind):
    """`1 / (1 + e^−x)`."""

    kind = "sigmoid"


@dataclass(frozen=True)
class Softmax(Kind):
    """`e^x / Σ e^x` over the features."""

    kind = "softmax"

    def result(self, shape: Shape, tensors: Tensors) -> Shape:
        if len(shape) != 1:
            raise Misfit(f"takes features, and its inputs are {list(shape)}: flatten comes first")
        return shape


KINDS: Mapping[str, type[Kind]] = {
    kind.kind: kind
    for kind in (
        Dense,
        Conv2d,
        MaxPool,
        AveragePool,
        BatchNorm,
        LayerNorm,
        Flatten,
        Relu,
        Relu6,
        Swish,
        Add,
        Gelu,
        Tanh,
        Sigmoid,
        Softmax,
    )
}


def _planes(shape: Shape) -> None:
    if len(shape) != 3:
        raise Misfit(f"takes channels, rows and columns, and its inputs are {list(shape)}")


def _slid(shape: Shape, size: Shape, stride: Shape, pads: Pads) -> tuple[int, int]:
    """How often a window fits into rows and columns."""
    found = [
        (edge + sum(pad) - window) // step + 1
        for edge, window, step, pad in zip(shape[1:], size, stride, pads, strict=True)
    ]
    if min(found) < 1:
        raise Misfit(f"its window of {list(size)} does not fit into planes of {list(shape[1:])}")
    return found[0], found[1]
