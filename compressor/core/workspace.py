"""Buffers that are used again for every block, so that the working set stays in the processor's cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import prod
from mmap import PAGESIZE as _PAGE
from typing import TYPE_CHECKING, Any, TypeVar

from compressor.core.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:
    Array = Any  # numpy.typing would import NumPy before it is needed


T = TypeVar("T")


class Workspace:
    """Named scratch memory of one worker. Asking for a name again gives the same memory, perhaps reshaped."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}
        self._views: dict[tuple[str, tuple[int, ...], str, int], Array] = {}
        self._made: dict[str, tuple[Any, Any]] = {}

    def array(self, key: str, shape: tuple[int, ...], dtype: str, lead: int = 0) -> Array:
        """An uninitialised C-ordered array; what was in it before is lost. It begins `lead` bytes after a page."""
        asked = (key, shape, dtype, lead)
        view = self._views.get(asked)
        if view is not None:
            return view
        kind = np.dtype(dtype)
        nbytes = lead + prod(shape) * kind.itemsize
        held = self._held.get(key)
        if held is None or held.nbytes < nbytes:
            raw = np.empty(nbytes + _PAGE, np.uint8)
            first = -raw.ctypes.data % _PAGE
            held = self._held[key] = raw[first : first + nbytes]
            self._views = {k: v for k, v in self._views.items() if k[0] != key}
        if len(self._views) > 512:  # many odd shapes: forget the views, not the memory
            self._views.clear()
        view = held[lead:nbytes].view(kind).reshape(shape)
        self._views[asked] = view
        return view

    def once(self, key: str, which: Any, make: Callable[[], T]) -> T:
        """What `make` gives, kept under `key` until another one is asked for: `which` tells them apart.

        For what all blocks of a tensor need and takes long to get; the old one goes before the new one is made.
        """
        held = self._made.get(key)
        if held is None or held[0] != which:
            self._made.pop(key, None)
            del held
            held = self._made[key] = which, make()
        found: T = held[1]
        return found


class Borrowed:
    """A workspace taken from those that are `idle`, and given back. `deque` operations are atomic.

    NumPy's warnings are off meanwhile: what is not finite is looked for, and refused by name.
    """

    def __init__(self, idle: deque[Workspace]) -> None:
        self.idle = idle

    def __enter__(self) -> Workspace:
        self.quiet = np.errstate(all="ignore")
        self.quiet.__enter__()
        try:
            self.work = self.idle.pop()
        except IndexError:
            self.work = Workspace()
        return self.work

    def __exit__(self, *_: object) -> None:
        self.quiet.__exit__(None, None, None)
        self.idle.append(self.work)
