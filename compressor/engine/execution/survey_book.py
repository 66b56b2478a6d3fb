"""What passes over a whole model gathered, kept from one run to the next: their statistics, share by share.

`compressor survey` has each of several jobs look at its share of the tensors. What all of them gathered in a pass
is merged by the pass itself, in the run that goes by it, so that the sums are those of one run.
"""

from __future__ import annotations

import base64
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from compressor.core.errors import InputError, UsageError
from compressor.core.lazy import np
from compressor.engine.execution.units import Share
from compressor.engine.plan.plan import Plan
from compressor.methods.contract import Survey

_LARGEST = 1 << 28  # bytes of an array
_taken: ContextVar[set[str]] = ContextVar("_taken")  # see `passes_taken`


class Paused(Exception):
    """A survey has done its share of the pass `key`: what that gathered, and the plan that it is for."""

    def __init__(self, plan: Plan, key: str, stats: Any) -> None:
        self.plan, self.key, self.stats = plan, key, stats
        super().__init__(key)


@dataclass(frozen=True)
class SurveyBook:
    """The passes that are finished, by key: what each share gathered, as `to_json` gives it. `share` is given where
    the run is there to survey: then it does that much of the next pass and no more. `path` is for messages."""

    passes: Mapping[str, Sequence[Any]]
    share: Share | None
    path: str

    def known(self, key: str, survey: Survey[Any]) -> Any:
        """What the pass gathered; None where it is not finished. InputError where the book is damaged."""
        if key not in self.passes:
            return None
        try:
            stats = survey.start()
            for more in self.passes[key]:
                stats = survey.merge(stats, from_json(more))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, zlib.error) as error:
            raise InputError("is damaged", file=self.path, remedy="Make the survey again") from error
        _taken.get(set()).add(key)
        return stats


@contextmanager
def passes_taken() -> Iterator[set[str]]:
    """The keys of the finished passes by which runs within the block go, as they do."""
    taken: set[str] = set()
    before = _taken.set(taken)
    try:
        yield taken
    finally:
        _taken.reset(before)


def to_json(value: Any) -> Any:
    """Statistics as JSON types: numbers, texts, arrays, and what is made of these by lists, tuples, dictionaries
    and dataclasses of this program. UsageError for anything else."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"f": value.hex()}
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        content = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()
        return {"a" if isinstance(value, np.ndarray) else "n": [array.dtype.str, list(array.shape), content]}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return {"l" if isinstance(value, list) else "t": [to_json(item) for item in value]}
    if isinstance(value, dict):
        return {"d": [[to_json(key), to_json(item)] for key, item in value.items()]}
    kind = type(value)
    if is_dataclass(value) and _is_ours(kind.__module__):
        values = {one.name: to_json(getattr(value, one.name)) for one in fields(value)}
        return {"c": [kind.__module__, kind.__qualname__, values]}
    raise UsageError(
        f"a survey cannot keep a {kind.__qualname__}", remedy="Leave the survey out: runs make it themselves"
    )


def from_json(said: Any) -> Any:
    """The statistics that were written. KeyError, TypeError, ValueError and others where they are none."""
    if said is None or isinstance(said, bool | int | str):
        return said
    ((kind, content),) = said.items()
    if kind == "f":
        return float.fromhex(content)
    if kind in ("a", "n"):
        return _array(*content, scalar=kind == "n")
    if kind in ("l", "t"):
        items = [from_json(item) for item in content]
        return items if kind == "l" else tuple(items)
    if kind == "d":
        return {from_json(key): from_json(item) for key, item in content}
    if kind != "c":
        raise ValueError(kind)
    module, name, values = content
    found = getattr(sys.modules[module], name) if _is_ours(module) else None  # who surveys has imported it
    if (
        not isinstance(found, type)
        or not is_dataclass(found)
        or values.keys() != {one.name for one in fields(found)}
    ):
        raise ValueError(name)
    return found(**{key: from_json(value) for key, value in values.items()})


def _array(dtype: str, shape: Sequence[int], content: str, *, scalar: bool) -> Any:
    inflater = zlib.decompressobj()
    raw = inflater.decompress(base64.b64decode(content, validate=True), _LARGEST)
    if np.dtype(dtype).hasobject or not inflater.eof:
        raise ValueError(dtype)
    array = np.frombuffer(raw, dtype).reshape(shape).copy()
    return array[()] if scalar else array


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]
