"""Bits of a chunk's head: small numbers, the first one in the lowest bits of the first byte."""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.files.entropy.damage import Damaged

_LONGEST = 40  # leading zeros of a number: none that a chunk holds is larger


class BitWriter:
    """Collects numbers as a stream of bits."""

    def __init__(self) -> None:
        self.done = bytearray()
        self.held, self.count = 0, 0

    def bits(self, value: int, count: int) -> None:
        """Append a number below 2^count as `count` bits."""
        self.held |= value << self.count
        self.count += count
        while self.count >= 8:
            self.done.append(self.held & 255)
            self.held >>= 8
            self.count -= 8

    def number(self, value: int, order: int = 0) -> None:
        """A number of any size in the exponential Golomb code of an order: short if it is below 2^order."""
        value += 1 << order
        length = value.bit_length()
        self.bits(0, length - 1 - order)
        self.bits(1, 1)
        self.bits(value ^ (1 << (length - 1)), length - 1)

    def signed(self, value: int, order: int = 0) -> None:
        """A number that may be negative: 0, −1, 1, −2, … as 0, 1, 2, 3, …"""
        self.number(2 * value if value >= 0 else -2 * value - 1, order)

    def extend(self, other: BitWriter) -> None:
        """Append all bits of another writer."""
        for value in other.done:
            self.bits(value, 8)
        self.bits(other.held, other.count)

    def to_bytes(self) -> bytes:
        """The bits that were collected, the last byte filled with zeros."""
        return bytes(self.done) + (bytes([self.held]) if self.count else b"")


class BitReader:
    """Reads what a `BitWriter` collected; Damaged where it ends too early."""

    def __init__(self, raw: bytes) -> None:
        self.raw = int.from_bytes(raw, "little")
        self.left = 8 * len(raw)

    def bits(self, count: int) -> int:
        """The next `count` bits as a number. Damaged where there are fewer."""
        if count > self.left:
            raise Damaged("its head is too short")
        value = self.raw & ((1 << count) - 1)
        self.raw >>= count
        self.left -= count
        return value

    def number(self, order: int = 0) -> int:
        """The next number of any size, as `BitWriter` writes it."""
        zeros = (self.raw & -self.raw).bit_length() - 1
        if zeros > _LONGEST:
            raise Damaged("a number of its head is too large")
        length = 2 * zeros + 1 + order
        if zeros < 0 or length > self.left:
            raise Damaged("its head is too short")
        found = self.raw >> zeros + 1 & ((1 << zeros + order) - 1)
        self.raw >>= length
        self.left -= length
        return (found | 1 << zeros + order) - (1 << order)

    def signed(self, order: int = 0) -> int:
        """The next number with a sign."""
        value = self.number(order)
        return -(value + 1) // 2 if value & 1 else value // 2


def shortest(values: Array) -> int:
    """The order, 0 to 7, of the code in which signed numbers take the fewest bits."""
    folded = np.where(values >= 0, 2 * values, -2 * values - 1)
    lengths = [2 * int(np.frexp(folded + (1 << order))[1].sum()) - order * folded.size for order in range(8)]
    return lengths.index(min(lengths))
