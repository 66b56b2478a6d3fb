"""What a way of choosing scales provides: one function of one signature each, in the files beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from compressor.core.workspace import Array
from compressor.methods.contract import Block
from compressor.methods.numerics.scales import Chosen
from compressor.methods.quantize.int.group_units import Rule
from compressor.methods.quantize.int.layouts import CodeLayout


@dataclass(frozen=True, slots=True)
class Grid:
    """What was asked for, and what the layout allows: the `rule` of codes and scales, where they will lie, and the
    options of gptq."""

    rule: Rule
    form: CodeLayout
    damp: float | None = None
    act_order: bool = False

    def settled(self, grouped: Array, stored: Array, zero: Array | None) -> Chosen:
        """Stored scales and zero points [rows or 1, groups] for weights [rows, groups, size], as far as the
        layout's arithmetic allows them; and what they stand for."""
        stored, zero = self.form.settle(grouped, stored, zero, self.rule.dtype)
        numbers = self.rule.numbers(stored).astype(grouped.dtype, copy=False)
        return Chosen(stored, zero, numbers[..., None])


class Way(Protocol):
    """How scales and zero points are chosen for weights [rows, groups, size], one for each group of a row.

    `scratch` is overwritten; a way that chooses codes too leaves them there, as whole numbers q − z.
    """

    def __call__(self, grouped: Array, block: Block, grid: Grid, scratch: Array) -> Chosen: ...
