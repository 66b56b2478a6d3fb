"""What it costs that one tensor alone is that of the compressed model, for each tensor.

Of a tensor in a block a stream of hidden states leaves that block, in which this tensor was B's, and goes on
through A's later blocks with all the others: so a block's weights are read once for as many tensors as there is
memory for streams, and no more than half of all blocks run for a tensor, on average. For a tensor outside of the
blocks (an embedding, an output head) A runs once with it exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from compressor.calibration.block_run import BlockRun
from compressor.calibration.loss import TensorLoss
from compressor.calibration.meta_model import MetaModel
from compressor.calibration.model_outputs import compared, compared_all
from compressor.calibration.side_by_side import Progress, SideBySide, advance, parts, start
from compressor.checkpoint.checkpoint import Tensor
from compressor.checkpoint.finite import blocks_of
from compressor.core.lazy import np
from compressor.core.workspace import Workspace

SAMPLE = 1024  # tokens that they are measured on, about
_MEMORY = 1 << 28  # bytes of streams at a time


@dataclass
class _Stream:
    """Hidden states behind a block in which one tensor was B's."""

    name: str
    error: float
    hidden: Any


def tensor_losses(pair: SideBySide, progress: Progress = lambda done, total: None) -> tuple[list[TensorLoss], int]:
    """The tensors that differ, the costliest first, and on how many tokens they were measured."""
    a, b = pair.a, pair.b
    samples = max(1, SAMPLE // a.ids.shape[1])
    with _sampled(a, samples), _sampled(b, samples):
        found = _Walk(pair, progress).run()
        return sorted(found, key=lambda one: (-one.lost, one.name)), a.ids.numel()


@contextmanager
def _sampled(run: BlockRun, samples: int) -> Iterator[None]:
    whole = run.ids
    run.ids = whole[:samples]
    try:
        yield
    finally:
        run.ids = whole


class _Walk:
    """Through A's blocks, as often as streams need."""

    def __init__(self, pair: SideBySide, progress: Progress) -> None:
        self.pair, self.a, self.b, self.progress = pair, pair.a, pair.b, progress
        self.base = start(self.a)  # what enters the block at which the next streams begin
        self.place: tuple[int, int] | None = (0, 0)  # that block, and the first of its parameters that is left
        self.last: Any = None  # what leaves A's last block
        self.most = max(1, _MEMORY // (self.base.numel() * 4))

    def run(self) -> list[TensorLoss]:
        found = []
        while self.place is not None:
            streams = self._pass(*self.place)
            losses = compared_all(self.a, self.last, [(self.a, one.hidden) for one in streams], self.pair.kind)
            found += [
                TensorLoss(self._stored(one.name), loss.lost, one.error)
                for one, loss in zip(streams, losses, strict=True)
            ]
        return found + list(self._outside())

    def _stored(self, name: str) -> str:
        return self.a.meta.stored(name) or name

    def _pass(self, first: int, skipped: int) -> list[_Stream]:
        """Streams of the tensors from a place on, as they leave the last block; `place` and `base` are moved to
        the first tensor for which there was no memory left."""
        streams: list[_Stream] = []
        hidden, blocks = self.base.clone(), len(self.a.meta.blocks)
        self.place = None
        for number in range(first, blocks):
            with self.a.block(number):
                for one in streams:
                    self._through(number, one.hidden, one.hidden)
                if self.place is None:
                    names = self.a.parameters(number)
                    for at in range(skipped if number == first else 0, len(names)):
                        if len(streams) == self.most:
                            self.place, self.base = (number, at), hidden.clone()
                            break
                        streams += self._begun(number, names[at], hidden)
                if self.place is None or self.last is None:
                    self._through(number, hidden, hidden)
            if self.place is None:
                self.progress(*self.a.done(number + 1))
        if self.last is None:
            self.last = hidden
        return streams

    def _through(self, number: int, hidden: Any, out: Any) -> Any:
        for part in parts(self.a):
            out[part] = self.a.through(number, part, hidden[part])
        return out

    def _begun(self, number: int, name: str, hidden: Any) -> list[_Stream]:
        """The stream of a tensor of the block in memory; none where it is the same in both models."""
        meta = self.a.meta
        own = meta.model.get_parameter(name)
        theirs = self.b.meta.numbers(name, own.shape)
        difference = float((theirs - own).double().norm())
        if not difference:
            return []
        meta.put(name, theirs)
        made = self._through(number, hidden, hidden.clone())
        meta.put(name, own)
        return [_Stream(name, difference / (float(own.double().norm()) or 1.0), made)]

    def _outside(self) -> Iterator[TensorLoss]:
        """The tensors outside of the blocks, each exchanged in a run of its own."""
        a, b = self.a.meta, self.b.meta
        seen = set()
        for name, _ in a.model.named_parameters():
            called, theirs = a.stored(name), b.stored(name)
            if name.startswith(f"{a.inside}.") or called is None or theirs is None or called in seen:
                continue
            seen.add(called)
            one, other = a.checkpoint.tensors[called], b.checkpoint.tensors[theirs]
            error = _relative_error(one, other)
            if not error:
                continue
            exchanged = replace(a.checkpoint, tensors={**a.checkpoint.tensors, called: other})
            run = BlockRun(MetaModel(exchanged, a.described), self.a.ids)
            run.pass_over_lacking()
            hidden = start(run)
            for number in range(len(a.blocks)):
                advance(run, number, hidden)
            yield TensorLoss(called, compared(self.a, run, self.last, hidden, self.pair.kind).lost, error)


def _relative_error(one: Tensor, other: Tensor) -> float:
    """‖other − one‖ / ‖one‖ of two tensors of one shape."""
    plain = lost = 0.0
    align = max(one.align, other.align)
    beside = blocks_of(other, Workspace(), align)
    for mine, theirs in zip(blocks_of(one, Workspace(), align), beside, strict=True):
        wide = mine.astype(np.float64)
        plain += float(np.square(wide).sum())
        lost += float(np.square(wide - theirs).sum())
    return sqrt(lost / plain) if plain else float(lost > 0)
