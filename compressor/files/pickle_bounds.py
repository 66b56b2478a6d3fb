"""What running a pickle would take, told from its operations before any of them is run.

A short pickle can stand for much: a tuple of the same tuple twice, forty levels deep, is a trillion to whoever
hashes it, and a long list can be copied anew by every few bytes. So each thing is given the weight of all that it
holds, as often as it holds it; what is put into others must stay in proportion to the file, and nesting is bounded,
because Python hashes tuples by recursion in C that nothing stops.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_INTO = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_FREE, _GROWTH = 1 << 20, 64  # things that any pickle may take, and more for each of its bytes
_DEEPEST = 1000


def check(raw: bytes) -> None:
    """ValueError (IndexError, KeyError) where a pickle would take more than its length can mean, or is damaged."""
    machine = _Machine(_FREE + _GROWTH * len(raw))
    for operation, argument, _ in pickletools.genops(raw):
        machine.run(operation, argument)


@dataclass(slots=True)
class _Thing:
    """One on the stack or in the memo: how much it holds, itself included, and how deep that is nested. Shared, so
    that what is put into a container later counts wherever it is noted."""

    weight: int = 1
    depth: int = 0


class _Machine:
    """The pickle's stack and memo."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.stack: list[_Thing | None] = []  # None: a mark
        self.memo: dict[int, _Thing] = {}

    def run(self, operation: pickletools.OpcodeInfo, argument: object) -> None:
        """One operation."""
        name = operation.name
        if name in _PUTS:
            self._note(len(self.memo) if name == "MEMOIZE" else int(str(argument)))
        elif name in _GETS:
            self.stack.append(self.memo[int(str(argument))])
        elif name == "MARK":
            self.stack.append(None)
        elif name == "POP":
            self.stack.pop()
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        else:
            self._make(operation, argument)

    def _note(self, place: int) -> None:
        thing = self.stack[-1]
        if thing is None or place > max(len(self.memo), 1):  # the unpickler makes room for all places up to it
            raise ValueError("no place of the memo")
        self.memo[place] = thing

    def _make(self, operation: pickletools.OpcodeInfo, argument: object) -> None:
        """What an operation leaves on the stack: a new thing, or the container that it puts others into."""
        things = self._taken(operation)
        found = things.pop(0) if operation.name in _INTO else _Thing()
        if isinstance(argument, str | bytes | bytearray):
            found.weight += len(argument)
        if things:
            held = sum(one.weight for one in things)
            self.left -= held
            found.weight += held
            found.depth = max(found.depth, 1 + max(one.depth for one in things))
        if self.left < 0 or found.depth > _DEEPEST:
            raise ValueError("more things than it has room for")
        if operation.stack_after:
            self.stack.append(found)

    def _taken(self, operation: pickletools.OpcodeInfo) -> list[_Thing]:
        """What an operation takes off the stack, the lowest first."""
        names = [one.name for one in operation.stack_before]
        taken: list[_Thing] = []
        if "mark" in names:
            while (top := self.stack.pop()) is not None:
                taken.append(top)
            names = names[: names.index("mark")]
        for _ in names:
            one = self.stack.pop()
            if one is None:
                raise ValueError("a mark where a thing belongs")
            taken.append(one)
        return taken[::-1]
