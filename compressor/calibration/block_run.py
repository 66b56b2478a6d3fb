"""A language model whose blocks run one at a time, when they are told to.

The model's own forward is called for every step, with the blocks before that step passing on what they are given:
so masks, positions and whatever else a block takes besides the hidden states are the model's own business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from compressor.calibration.meta_model import MetaModel, foreign
from compressor.core.errors import InputError
from compressor.core.text import printable

WITHOUT_A_RUN = "Leave out --text or --tokens: then no model is run"


class _Reached(Exception):
    """The step is done, and what follows needs no numbers."""


class BlockRun:
    """One model over windows of token `ids` (int64 [samples, tokens]); hidden states are float32 [samples of a
    part, tokens, width], and a `part` is a slice of the samples."""

    def __init__(self, meta: MetaModel, ids: Any) -> None:
        self.meta, self.torch = meta, meta.torch
        self.ids = self.torch.as_tensor(ids)
        self.lacking = meta.fill_outside(self.ids.tolist())
        self._rest: dict[int, tuple[Any, ...]] = {}  # what blocks give beside the hidden states
        self._step: _Step | None = None
        self._called: list[int] = []
        for number, block in enumerate(meta.blocks):
            block.forward = self._passing(number, block.forward)

    def done(self, blocks: int) -> tuple[int, int]:
        """Bytes of the numbers of so many blocks, and of all of them: for progress."""
        total = 4 * sum(parameter.numel() for block in self.meta.blocks for parameter in block.parameters())
        return total * blocks // len(self.meta.blocks), total

    @contextmanager
    def block(self, number: int) -> Iterator[None]:
        """With a block's numbers in memory."""
        prefix = self._prefix(number)
        self.meta.fill(prefix, self.meta.blocks[number])
        try:
            yield
        finally:
            self.meta.drop(prefix, self.meta.blocks[number])

    def parameters(self, number: int) -> list[str]:
        """The names of a block's parameters, in the model's order."""
        return [name for name, _ in self.meta.blocks[number].named_parameters(self._prefix(number))]

    def _prefix(self, number: int) -> str:
        return f"{self.meta.inside}.{number}"

    def embedded(self, part: slice) -> Any:
        """What enters the first block."""
        step = _Step(0, None)
        self._run(step, part)
        return step.found

    def through(self, number: int, part: slice, hidden: Any) -> Any:
        """What a block that is in memory makes of what enters it. InputError where that is not finite."""
        step = _Step(number, hidden)
        self._run(step, part)
        if not bool(self.torch.isfinite(step.found).all()):
            raise InputError(
                f"computes NaN or infinite values in block {number}", file=self.meta.path, remedy=WITHOUT_A_RUN
            )
        return step.found

    def outputs(self, part: slice, hidden: Any) -> Any:
        """What the model gives where this leaves its last block."""
        self._called.clear()
        found = self._run(_Step(len(self.meta.blocks), hidden), part)
        if self._called != list(range(len(self.meta.blocks))):
            raise InputError("runs its blocks in another order, or several times", file=self.meta.path)
        return found

    def _run(self, step: _Step, part: slice) -> Any:
        self._step = step
        try:
            with foreign("run the model on these tokens", self.meta.path), self.torch.no_grad():
                try:
                    return self.meta.model(input_ids=self.ids[part])
                except _Reached:
                    return None
        finally:
            self._step = None

    def _passing(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """In place of a block's forward: what the step at hand asks for."""

        def run(*args: Any, **kwargs: Any) -> Any:
            step, hidden = self._step, args[0] if args else kwargs["hidden_states"]
            assert step is not None  # noqa: S101 - the model is called by `_run` alone
            self._called.append(number)
            last = len(self.meta.blocks) - 1
            if step.number == number:
                step.found = hidden if step.entering is None else self._real(number, forward, step, args, kwargs)
                raise _Reached
            given = step.entering if number == last else hidden
            return (given, *self._rest[number]) if number in self._rest else given

        return run

    def _real(self, number: int, forward: Callable[..., Any], step: _Step, args: Any, kwargs: Any) -> Any:
        entering = step.entering
        result = forward(entering, *args[1:], **kwargs) if args else forward(**kwargs | {"hidden_states": entering})
        first = result[0] if isinstance(result, tuple) else result
        if isinstance(result, tuple):
            self._rest[number] = result[1:]
        if first.shape != entering.shape:
            raise InputError(
                "has blocks that change the shape of what they pass on",
                file=self.meta.path,
                remedy=self.meta.elsewhere,
            )
        return first

    def check_complete(self) -> None:
        """InputError where the checkpoint lacks layers that its outputs need."""
        if self.lacking:
            raise InputError(
                "is not in the model, which its outputs need",
                file=self.meta.path,
                tensor=f"{printable(self.lacking[0], 100)}.weight",
            )

    def pass_over_lacking(self) -> None:
        """Let layers that the checkpoint lacks pass on what they are given: nobody looks at what comes of it."""
        for name in self.lacking:
            self.meta.model.get_submodule(name).forward = lambda given: given


class _Step:
    """What a call of the model is for: to see what enters block `number`, or (with `entering`) what it makes of
    it; `found` is that."""

    def __init__(self, number: int, entering: Any) -> None:
        self.number, self.entering, self.found = number, entering, None
