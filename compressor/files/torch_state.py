"""State dicts as `torch.save` writes them since PyTorch 1.6: a zip archive of a pickle and the raw storages.

    ARCHIVE/data.pkl          the state dict; each tensor names a storage, an offset, a shape and strides
    ARCHIVE/data/KEY          the bytes of a storage
    ARCHIVE/byteorder         "little" or "big"; older files have none and are little-endian

A pickle is a program. This one is run by an unpickler that knows nothing but ordered dicts, tensors, storages
and dtypes, and builds descriptions of them: no code of the file is ever called, and no byte of a storage is read
for it. What it knows is what `torch.load(weights_only=True)` allows for tensors (torch/_weights_only_unpickler.py).
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from compressor.core.errors import InputError
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.files import pickle_bounds
from compressor.files.input_file import InputFile
from compressor.files.layout import Header, Placed
from compressor.files.safetensors import IN_PYTORCH
from compressor.files.zip_directory import Member, read_members, stored

_MAX_PICKLE = 100_000_000
_BOUND = 2**63
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": "",
}
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
_NESTED = ("state_dict", "model_state_dict", "model", "module", "params", "params_ema")  # where trainers put it


def read_header(file: InputFile) -> Header:
    """The tensors of a state dict, in the order of their names. InputError where it is another kind of file, holds
    what is no state dict, or a tensor cannot be read by rows; nothing of the file is executed."""
    start = file.read(0, min(file.size, 16))
    if start[:4] != b"PK\3\4":
        what = (
            "is a pickle of PyTorch before 1.6, or no PyTorch file"
            if start[:1] == b"\x80"
            else "is no PyTorch file"
        )
        raise InputError(what, file=file.path, remedy=IN_PYTORCH)
    members = read_members(file)
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in members):
        raise InputError("is no state dict of PyTorch", file=file.path, remedy=IN_PYTORCH)
    root = pickles[0].removesuffix("data.pkl")
    order = members.get(f"{root}byteorder")
    if order is not None and file.read(stored(file, order).begin, min(order.size, 16)) != b"little":
        raise InputError("is stored with the bytes of its numbers reversed", file=file.path, remedy=IN_PYTORCH)
    tensors = _state_dict(_unpickled(file, members[pickles[0]]), file)
    storages = {
        name[len(root) + 5 :]: stored(file, one) for name, one in members.items() if name.startswith(f"{root}data/")
    }
    placed = [_place(name, tensor, storages, file) for name, tensor in sorted(tensors.items())]
    return Header(tuple(placed))


def _unpickled(file: InputFile, member: Member) -> Any:
    stored(file, member)
    if member.size > _MAX_PICKLE:
        raise InputError(f"has a pickle of {member.size} bytes; the limit is {_MAX_PICKLE}", file=file.path)
    raw = file.read(member.begin, member.size)
    try:
        pickle_bounds.check(raw)
        return _Unpickler(io.BytesIO(raw)).load()
    except _Unknown as error:
        raise InputError(
            f"holds {printable(str(error), 100)}, which is no tensor and is never loaded",
            file=file.path,
            remedy=IN_PYTORCH,
        ) from error
    except (MemoryError, RecursionError) as error:
        raise InputError("has a pickle that takes too much memory", file=file.path, remedy=IN_PYTORCH) from error
    except Exception as error:  # a damaged pickle fails in any way
        raise InputError("has a damaged pickle", file=file.path, remedy="Download it again") from error


def _state_dict(found: Any, file: InputFile) -> dict[str, _Tensor]:
    """The tensors of a dict of tensors, or of the one that a trainer's checkpoint has under a usual name."""
    for _ in range(3):
        if not isinstance(found, Mapping):
            break
        tensors = {name: one for name, one in found.items() if isinstance(one, _Tensor)}
        if tensors:
            if not all(isinstance(name, str) and name for name in tensors):
                raise InputError("has tensors whose names are no texts", file=file.path, remedy=IN_PYTORCH)
            return tensors
        nested = [name for name in found if isinstance(name, str) and _has_weights(found[name])]
        if len(nested) > 1:
            raise InputError(
                f"holds {len(nested)} state dicts: {', '.join(printable(name, 40) for name in nested[:4])}",
                file=file.path,
                remedy=IN_PYTORCH.replace("its state dict", "the one that is wanted"),
            )
        found = next((found[name] for name in _NESTED if isinstance(found.get(name), Mapping)), None)
    raise InputError("holds no state dict, a dict of tensors by name", file=file.path, remedy=IN_PYTORCH)


def _has_weights(found: Any, deepest: int = 3) -> bool:
    """Whether it is a dict with matrices, or one that has such a dict; optimizers have other names."""
    if not deepest or not isinstance(found, Mapping):  # a dict may hold itself
        return False
    direct = any(isinstance(one, _Tensor) and len(one.shape) > 1 for one in found.values())
    return direct or any(_has_weights(found.get(name), deepest - 1) for name in _NESTED)


def _place(name: str, tensor: _Tensor, storages: Mapping[str, Member], file: InputFile) -> Placed:
    """Where a tensor lies in the file. InputError where its storage does not hold it."""
    storage = storages.get(tensor.storage.key)
    shape, strides, size = tensor.shape, tensor.strides, DTYPES[tensor.dtype].bits // 8
    sizes = (tensor.start, *shape, *strides)
    if storage is None or not all(type(one) is int and 0 <= one < _BOUND for one in sizes):
        raise InputError("has no place in the file", file=file.path, tensor=name, remedy="Download it again")
    if len(shape) != len(strides) or len(shape) > 32 or prod(filter(None, shape)) * size >= _BOUND:
        raise InputError("has a shape that is none", file=file.path, tensor=name, remedy="Download it again")
    last = tensor.start + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
    if prod(shape) and (last + 1) * size > storage.size:
        raise InputError("is larger than its storage", file=file.path, tensor=name, remedy="Download it again")
    spec = TensorSpec(name, tensor.dtype, shape)
    begin = storage.begin + tensor.start * size
    plain, expected = True, 1
    for count, stride in zip(reversed(shape), reversed(strides), strict=True):
        plain = plain and (count <= 1 or stride == expected)
        expected *= count
    if plain:
        return Placed(spec, begin)
    if len(shape) == 2 and all(strides):
        return Placed(spec, begin, strides=(strides[0], strides[1]))
    raise InputError(
        "is a view whose numbers do not lie in order",
        file=file.path,
        tensor=name,
        remedy="Save a .contiguous() copy",
    )


class _Unknown(Exception):
    """A name that the pickle asks for and that is no part of a state dict."""


class _Sealed:
    """What a pickle gets in place of PyTorch's things, and may not set the state of (BUILD). Not frozen: such data
    classes get a `__setstate__` of their own."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise _Unknown("a state of what has none")


@dataclass(slots=True)
class _Storage(_Sealed):
    dtype: str  # "" where only the tensor knows
    key: str


@dataclass(slots=True)
class _Tensor(_Sealed):
    """A tensor of the pickle; `start`, `strides` in elements of the storage."""

    storage: _Storage
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class _Kind(_Sealed):
    """A dtype, in the place of PyTorch's own object or of its type of storages."""

    name: str


@dataclass(slots=True)
class _Maker(_Sealed):
    """A function that a pickle may call."""

    make: Callable[..., Any]

    def __call__(self, *given: Any) -> Any:
        return self.make(*given)


class _Unpickler(pickle.Unpickler):
    """Builds dicts and descriptions of tensors; finds nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the pickle."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils":
            makers: dict[str, Callable[..., Any]] = {
                "_rebuild_tensor_v2": _tensor,
                "_rebuild_tensor_v3": _tensor_v3,
                "_rebuild_parameter": _parameter,
            }
            if name in makers:
                return _Maker(makers[name])
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Kind(_STORAGES[name])
        if module == "torch" and name in _DTYPES:
            return _Kind(_DTYPES[name])
        if (module, name) == ("torch", "Size"):
            return _Maker(tuple)
        raise _Unknown(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: `("storage", type, key, device, elements)`."""
        kind, dtype, key = pid[0], pid[1], pid[2]
        if kind != "storage" or not isinstance(dtype, _Kind) or not isinstance(key, str):
            raise _Unknown("a storage of an unknown kind")
        return _Storage(dtype.name, key)


def _tensor(storage: Any, start: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or not storage.dtype:
        raise _Unknown("a tensor without a storage of one dtype")
    return _Tensor(storage, storage.dtype, start, tuple(shape), tuple(strides))


def _tensor_v3(
    storage: Any, start: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> _Tensor:
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Kind) or not dtype.name:
        raise _Unknown("a tensor without a dtype")
    return _Tensor(storage, dtype.name, start, tuple(shape), tuple(strides))


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, _Tensor):
        raise _Unknown("a parameter that is no tensor")
    return data
