"""What bitsandbytes keeps beside NF4 codes: the `quant_state` JSON, and scales that are quantized themselves.

A quantized scale is map[c]·a + o in float32: `map` the dynamic 8-bit type (arXiv 1511.04561), a the magnitude of
256 neighbouring scales, o the offset of the tensor. The JSON is equally long whatever o is, because its length must
follow from the tensor's spec: what is left is filled with spaces behind the object, which JSON parsers skip.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from compressor.core.errors import InputError
from compressor.core.floats import largest
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array

SUFFIX = ".quant_state.bitsandbytes__nf4"
BLOCK = 256  # scales that share a magnitude
_PIECE = 1024 * BLOCK  # scales that are quantized at once
LONGEST = 4096  # bytes of a JSON that is read
_OFFSET = 24  # characters of the longest float
# What bitsandbytes restores to. It knows three dtypes; the others come back in one that holds their numbers.
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float32"}
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def loaders_dtype(spec: TensorSpec) -> str:
    """The dtype, as torch calls it, in which loaders restore the tensor."""
    return _DTYPES.get(spec.dtype, "bfloat16")


def limit(spec: TensorSpec) -> float:
    """The largest scale: times the outermost level it must be a number of the tensor's dtype."""
    return largest("F32" if spec.dtype == "F64" else spec.dtype)


# ---- the JSON ------------------------------------------------------------------------------------------


def to_json(spec: TensorSpec, group_size: int, *, nested: bool, offset: float = 0.0) -> bytes:
    """The content of the quant_state tensor; with `nested` scales of one length for all offsets."""
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": group_size,
        "dtype": loaders_dtype(spec),
        "shape": spec.shape,
    }
    if not nested:
        return json.dumps(state).encode()
    state |= {"nested_blocksize": BLOCK, "nested_dtype": "float32", "nested_offset": 0}
    length = len(json.dumps(state)) + _OFFSET
    return json.dumps(state | {"nested_offset": offset}).ljust(length).encode()


def parse(raw: bytes, tensor: str) -> dict[str, Any]:
    """The state as it was written. InputError for what is no JSON object of what belongs there."""
    try:
        state = json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _bad("is not a JSON object", tensor) from error
    if not isinstance(state, dict):
        raise _bad("is not a JSON object", tensor)
    shape, size = state.get("shape"), state.get("blocksize")
    if state.get("quant_type") != "nf4":
        raise _bad("does not say that it is of NF4", tensor)
    if not isinstance(shape, list) or len(shape) > 64 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise _bad("has no shape", tensor)
    if type(size) is not int or not 32 <= size <= 4096 or size & (size - 1):
        raise _bad("has no blocksize from 32 to 4096", tensor)
    if state.get("dtype") not in list(DTYPES):  # it may be a thing without a hash
        raise _bad("has no dtype of float32, float16 and bfloat16", tensor)
    if "nested_offset" in state:
        offset = state["nested_offset"]
        if type(offset) not in (int, float) or not abs(offset) <= largest("F32"):
            raise _bad("has a nested_offset that is no number", tensor)
        if (state.get("nested_blocksize"), state.get("nested_dtype")) != (BLOCK, "float32"):
            raise _bad(f"has nested scales that are not float32 in blocks of {BLOCK}", tensor)
    return state


def check(raw: bytes, spec: TensorSpec, group_size: int, *, nested: bool) -> np.float32:
    """The offset of the scales (0 unless `nested`). InputError where the state contradicts what is known."""
    state = parse(raw, spec.name)
    said = state["blocksize"], tuple(state["shape"]), state["dtype"], "nested_offset" in state
    if said != (group_size, spec.shape, loaders_dtype(spec), nested):
        raise _bad("contradicts its tensors", spec.name)
    return np.float32(state.get("nested_offset", 0))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _bad(reason: str, tensor: str) -> InputError:
    return InputError(f"its quant_state {reason}", tensor=tensor, remedy="Fetch the file again")


# ---- quantized scales ----------------------------------------------------------------------------------


@cache
def dynamic_map() -> Array:
    """The signed dynamic 8-bit type, float32 [256], ascending: seven decades, each with twice the steps of the
    one below, a zero, and 1."""
    found = [0.0, 1.0]
    for decade in range(7):
        edges = _evenly(2**decade + 1)
        means = (edges[:-1] + edges[1:]) / np.float32(2)
        steps = (np.float32(10.0 ** (decade - 6)) * means).tolist()
        found += steps + [-step for step in steps]
    table = np.array(sorted(found), np.float32)
    table.setflags(write=False)
    return table


def _evenly(count: int) -> Array:
    """float32 from 0.1 to 1, counted from the nearer end with one rounding each: torch's `linspace`, to the bit."""
    low, high = float(np.float32(0.1)), 1.0
    step, place = float((np.float32(1) - np.float32(0.1)) / np.float32(count - 1)), np.arange(count)
    spaced: Array = np.where(place < count // 2, low + step * place, high - step * (count - 1 - place))
    return spaced.astype(np.float32)


def decoded(codes: Array, first: int, table: Array, magnitudes: Array, offset: np.float32) -> Array:
    """The scales that `codes` stand for, of which the first is the tensor's scale number `first`."""
    shared = magnitudes[np.arange(first, first + len(codes)) // BLOCK]
    with np.errstate(over="ignore", invalid="ignore"):  # who reads looks for what is not finite
        scales: Array = table[codes] * shared + offset
    return scales


def _quantize(wanted: Array, offset: np.float32, limit: float, codes: Array, magnitudes: Array) -> None:
    """The codes and shared magnitudes of scales that begin with a block of them."""
    difference = np.where(wanted > 0, wanted - offset, np.float32(0))
    filled = np.zeros(len(magnitudes) * BLOCK, np.float32)
    filled[: len(wanted)] = np.abs(difference)
    magnitudes[...] = filled.reshape(-1, BLOCK).max(axis=1)
    magnitudes[magnitudes == 0] = 1
    table = dynamic_map()
    middles = (table[:-1] + table[1:]) / 2
    codes[...] = np.searchsorted(middles, difference / magnitudes[np.arange(len(wanted)) // BLOCK])
    while True:  # the code for the offset itself is always fit
        scales = decoded(codes, 0, table, magnitudes, offset)
        low, high = scales <= 0, scales > limit
        if not low.any() and not high.any():
            return
        codes[low] += np.uint8(1)
        codes[high] -= np.uint8(1)


@dataclass(frozen=True)
class Nested:
    """A tensor's scales in 8 bits. Arrays are held as bytes, so that methods stay comparable values."""

    code_bytes: bytes
    magnitude_bytes: bytes
    offset: float

    @classmethod
    def of(cls, wanted: Array, limit: float) -> Nested:
        """Quantize scales; a 0 counts for nothing. What they then stand for is above 0 and at most `limit`."""
        some = wanted if (wanted > 0).all() else wanted[wanted > 0]
        offset = np.float32(some.mean(dtype=np.float64)) if some.size else np.float32(1)
        del some
        codes = np.empty(len(wanted), np.uint8)
        magnitudes = np.empty(-(-len(wanted) // BLOCK), np.float32)
        for start in range(0, len(wanted), _PIECE):
            piece = slice(start, start + _PIECE)
            shared = magnitudes[start // BLOCK : (start + _PIECE) // BLOCK]
            _quantize(wanted[piece], offset, limit, codes[piece], shared)
        return cls(codes.tobytes(), magnitudes.tobytes(), float(offset))

    def codes(self, first: int, count: int) -> Array:
        """The codes of some scales of blocks, U8."""
        found: Array = np.frombuffer(self.code_bytes, np.uint8, count, first)
        return found

    def decoded(self, first: int, count: int) -> Array:
        """The scales that codes stand for, float32."""
        return decoded(self.codes(first, count), first, dynamic_map(), self.magnitudes, np.float32(self.offset))

    @property
    def magnitudes(self) -> Array:
        """The scale of every 256 scales, float32."""
        found: Array = np.frombuffer(self.magnitude_bytes, np.float32)
        return found
