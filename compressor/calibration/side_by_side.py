"""Two models over the same tokens, a block of each in memory at a time.

What is kept are the hidden states of all samples for both, and no logits: what leaves the last blocks is enough to
compute these again slice by slice (`model_outputs.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from compressor.calibration.block_run import BlockRun
from compressor.calibration.loss import BlockLoss, Kind, OutputLoss
from compressor.calibration.meta_model import MetaModel
from compressor.calibration.model_outputs import compared, kind_of
from compressor.core.errors import InputError
from compressor.core.lazy import np

_TOKENS = 2048  # that a block works on at a time, about

Progress = Callable[[int, int], None]


class SideBySide:
    """Models A and B over windows of tokens (int64 [samples, tokens]). InputError where their outputs cannot be
    compared: other kinds, other vocabularies or classes."""

    def __init__(self, a: MetaModel, b: MetaModel, ids: Any) -> None:
        self.kind: Kind = kind_of(a)
        _check_alike(a, b, self.kind)
        self.a, self.b = BlockRun(a, ids), BlockRun(b, ids)
        for run in (self.a, self.b):
            run.pass_over_lacking() if self.kind == "encoder" else run.check_complete()

    @property
    def in_step(self) -> bool:
        """Whether there is a block of B for each of A, of hidden states of one width."""
        return len(self.a.meta.blocks) == len(self.b.meta.blocks)

    def run(self, progress: Progress = lambda done, total: None) -> tuple[OutputLoss, list[BlockLoss]]:
        """The loss of the outputs, and of every block where the models have as many. `progress` is in bytes."""
        last_a, last_b = start(self.a), start(self.b)
        if self.in_step and last_a.shape == last_b.shape:
            blocks = self._together(last_a, last_b, progress)
        else:
            blocks = []
            for run, hidden in ((self.a, last_a), (self.b, last_b)):
                for number in range(len(run.meta.blocks)):
                    advance(run, number, hidden)
        return compared(self.a, self.b, last_a, last_b, self.kind), blocks

    def _together(self, last_a: Any, last_b: Any, progress: Progress) -> list[BlockLoss]:
        """Both through their blocks, in place; of each block what it adds to the error, and what that comes to."""
        found = []
        a, b = self.a, self.b
        for number in range(len(a.meta.blocks)):
            sums = np.zeros(3)
            with ExitStack() as stack:
                stack.enter_context(a.block(number))
                stack.enter_context(b.block(number))
                for part in parts(a):
                    after = a.through(number, part, last_a[part])
                    alone = b.through(number, part, last_a[part])
                    both = b.through(number, part, last_b[part])
                    last_a[part], last_b[part] = after, both
                    sums += [_squares(after), _squares(alone - after), _squares(both - after)]
            base = sums[0] or 1.0
            found.append(BlockLoss(number, float(np.sqrt(sums[1] / base)), float(np.sqrt(sums[2] / base))))
            progress(*a.done(number + 1))
        return found


def parts(run: BlockRun) -> Iterator[slice]:
    """Slices of the samples that a block works on at a time."""
    samples, length = run.ids.shape
    step = max(1, _TOKENS // length)
    for start in range(0, samples, step):
        yield slice(start, min(start + step, samples))


def start(run: BlockRun) -> Any:
    """What enters the first block, of all samples: float32 [samples, tokens, width]."""
    return run.torch.cat([run.embedded(part) for part in parts(run)])


def advance(run: BlockRun, number: int, hidden: Any) -> None:
    """All samples through one block, in place."""
    with run.block(number):
        for part in parts(run):
            hidden[part] = run.through(number, part, hidden[part])


def _squares(values: Any) -> float:
    return float(values.double().square().sum())


def _check_alike(a: MetaModel, b: MetaModel, kind: Kind) -> None:
    """InputError where outputs of the two are not of the same things; what does not match is said."""
    other = kind_of(b)
    if other != kind:
        raise InputError(f"is a {other}, and A is a {kind}", file=b.path)
    if kind in ("language model", "masked language model"):
        if a.head is None or b.head is None:
            raise InputError("has no output head", file=a.path if a.head is None else b.path)
        _same(b, "a vocabulary of {} tokens", b.vocabulary, a.vocabulary)
    elif kind == "classifier":
        _same(b, "{} classes", b.config.num_labels, a.config.num_labels)
        names = [getattr(meta.config, "id2label", None) or {} for meta in (a, b)]
        if names[0] != names[1]:
            at = next(key for key in names[0] if names[0][key] != names[1].get(key))
            raise InputError(f"class {at} is {names[1].get(at)!r}, and {names[0][at]!r} in A", file=b.path)
    else:
        _same(b, "embeddings of {} numbers", b.config.hidden_size, a.config.hidden_size)


def _same(b: MetaModel, said: str, mine: int, wanted: int) -> None:
    if mine != wanted:
        raise InputError(
            f"has {said.format(mine)}, and A has {wanted}: their outputs cannot be compared", file=b.path
        )
