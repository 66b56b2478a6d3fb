"""What is common to the codes of other tools, which nobody writes here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, ClassVar

from compressor.core.errors import InputError
from compressor.core.floats import largest
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array
from compressor.files.source import Source
from compressor.methods.contract import Decoder


@dataclass(frozen=True)
class StoredCodes(Decoder):
    """Codes of so many `bits` as another tool chose them."""

    verb: ClassVar[str] = "quantize"

    bits: int

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Nobody knows what they stand for."""
        return inf

    def describe(self) -> dict[str, Any]:
        return {"scheme": self.id, **{one.name: getattr(self, one.name) for one in fields(self)}}

    @property
    def label(self) -> str:
        return f"int{self.bits}"


def integer(declared: Mapping[str, Any], key: str, allowed: tuple[int, ...], where: str, source: Source) -> int:
    """An integer of a config.json; InputError when it is anything else."""
    value = declared.get(key)
    if type(value) is not int or value not in allowed:
        listed = ", ".join(map(str, allowed))
        raise InputError(
            f"config.json: {where}{key} is {printable(repr(value), 40)}, and {listed} are read here",
            file=source.path,
        )
    return value


def shape_of(source: Source, name: str, dtypes: tuple[str, ...], owner: str) -> tuple[int, ...]:
    """The shape of a part that must be there, with at least two axes and elements, in one of these dtypes."""
    stored = source.tensors.get(name)
    part = name.rpartition(".")[2]
    if stored is None:
        raise InputError(f"has no {part} beside its codes", file=source.path, tensor=owner)
    spec = stored.spec
    if spec.dtype not in dtypes or len(spec.shape) < 2 or not spec.size:
        raise InputError(
            f"its {part} are {spec.dtype} {list(spec.shape)}, where a matrix of {' or '.join(dtypes)} belongs",
            file=source.path,
            tensor=owner,
        )
    return spec.shape


def multiply(centred: Array, scale: Array, dtype: str, bits: int) -> None:
    """s·(q − z) in place. What a loader's product in `dtype` would lose to infinity is infinite here too, so
    that it is found and refused."""
    np.multiply(centred, scale, out=centred)
    if dtype == "F16" and float(np.abs(scale).max()) * (1 << bits) > largest(dtype):
        centred[np.abs(centred) > largest(dtype)] = inf
