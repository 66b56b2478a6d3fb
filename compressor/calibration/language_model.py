"""Statistics through a Hugging Face language model, with torch and transformers, one layer's weights at a time.

The model's own forward runs once, on all samples; each of its blocks reads its weights when it is its turn, passes
the samples on in portions, and lets go of them. What is kept are the hidden states of all samples, twice: as a
block gets them and as it leaves them.

Where each block is compressed before the next one runs, the samples go through it twice: with its own weights, to
see what its layers are given, and with those that the compression leaves. Layers are then given what they will be
given in the compressed model, as GPTQ (arXiv 2210.17323) and SparseGPT (arXiv 2301.00774) do it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from compressor.calibration.meta_model import ELSEWHERE, MetaModel, foreign, libraries, quiet
from compressor.calibration.result import Add, Task
from compressor.calibration.statistics import influence_of
from compressor.calibration.tokenizers import tokenizer_of
from compressor.calibration.tokens import read_windows
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.errors import InputError, UsageError
from compressor.core.layer_inputs import Gather, Layer
from compressor.core.tensor_names import layer_of
from compressor.core.text import printable

SAMPLES, LENGTH = 128, 512
_TOKENS = 2048  # that a block works on at a time, about

# From the names of a block's tensors and the statistics of its layers: the tensors that a compression leaves.
Compress = Callable[[Sequence[str], Mapping[str, Layer]], AbstractContextManager[Mapping[str, Tensor]]]


class _Enough(Exception):
    """What follows needs no numbers."""


def through_model(
    task: Task,
    checkpoint: Checkpoint,
    text: str,
    *,
    samples: int | None,
    length: int | None,
    seed: int,
    compress: Compress | None = None,
) -> None:
    """Run a text through the model in a folder, and gather what enters its linear layers; with `compress` each
    block is passed on to the next one as that leaves it."""
    libraries()
    with quiet():
        meta = MetaModel(checkpoint)
        longest = getattr(meta.config, "max_position_embeddings", None) or LENGTH
        if length is not None and length > longest:
            raise UsageError(f"--length {length}: the model takes {longest} tokens at most")
        wanted = min(LENGTH, longest) if length is None else length
        windows = read_windows(text, _tokenizer(checkpoint), samples or SAMPLES, wanted, seed)
        for note in windows.notes:
            task.note(note)
        name = printable(os.path.basename(text), 100)
        task.source = f"{len(windows.ids)} samples of {windows.length} tokens of {name} (seed {seed})"
        _Run(task, meta, compress).run(windows.ids)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    found = tokenizer_of(checkpoint.source)
    if found is None:
        raise InputError("has no tokenizer, which --text needs", file=checkpoint.path, remedy=ELSEWHERE)
    return found


class _Run:
    """One pass of all samples through the model."""

    def __init__(self, task: Task, meta: MetaModel, compress: Compress | None = None) -> None:
        self.task, self.meta, self.torch, self.compress = task, meta, meta.torch, compress
        self.layers: dict[str, str] = {}  # a linear module's name → the layer's, for those that the checkpoint has
        self.widths: dict[str, int] = {}
        for name, module in meta.model.named_modules():
            called = meta.stored(f"{name}.weight") if isinstance(module, meta.linear) else None
            if called is not None:
                self.layers[name] = layer_of(called)
                self.widths[layer_of(called)] = _width(module)
        self.influences = [self._influence(number, block) for number, block in enumerate(meta.blocks)]
        self.done: set[int] = set()
        self.written: set[str] = set()
        self.buffer: Any = None
        sizes = [sum(p.numel() for p in block.parameters()) for block in meta.blocks]
        self.total, self.before = sum(sizes), [sum(sizes[:at]) for at in range(len(sizes) + 1)]

    def run(self, ids: list[list[int]]) -> None:
        """Run all samples; every layer's statistics are written as soon as they are complete."""
        meta, task = self.meta, self.task
        absent = meta.fill_outside(ids)
        if absent:
            task.note(f"what comes after {printable(absent[0], 100)} did not run: the checkpoint lacks its weights")
        with task.writing(self.widths, [one for one in self.influences if one]) as add:
            outside = self._watch_outside(absent)
            for number, block in enumerate(meta.blocks):
                block.forward = self._stage(number, block, add)
            with foreign("run the model on this text", meta.path), self.torch.no_grad(), suppress(_Enough):
                meta.model(input_ids=self.torch.tensor(ids))
            for layer, gather in outside.items():
                self._write(add, layer, gather.layer)
            for layer in sorted(set(self.widths) - self.written):
                self._write(
                    add, layer, Gather(self.widths[layer], task.wants_gram(self.widths[layer]), layer).layer
                )
            for name in self.influences:
                if name and name not in self.written:
                    self._write(add, name, Gather(1, name=name).layer)

    def _influence(self, number: int, block: Any) -> str:
        """Under what the influence of a block is kept; "" where the checkpoint calls none of its tensors alike."""
        for name, _ in block.named_parameters():
            called = self.meta.stored(f"{self.meta.inside}.{number}.{name}") or ""
            if called.endswith(f".{name}"):
                return influence_of(called.removesuffix(f".{name}"))
        return ""

    def _write(self, add: Add, layer: str, found: Layer) -> None:
        add(layer, found)
        self.written.add(layer)

    def _gather(self, layer: str) -> Gather:
        width = self.widths[layer]
        return Gather(width, self.task.wants_gram(width), layer)

    def _watch_outside(self, absent: list[str]) -> dict[str, Gather]:
        """Hooks on linear layers outside the blocks; at the output head, or where weights are absent, it ends."""
        gathers: dict[str, Gather] = {}

        def watch(layer: str, *, last: bool) -> Callable[..., None]:
            def hook(_: Any, args: Any) -> None:
                if layer:
                    gathers.setdefault(layer, self._gather(layer)).add(args[0].float().numpy())
                if last:
                    raise _Enough

            return hook

        for name, module in self.meta.model.named_modules():
            inside = f"{name}.".startswith(f"{self.meta.inside}.")
            if isinstance(module, self.meta.linear) and not inside:
                last = module is self.meta.head or name in absent
                module.register_forward_pre_hook(watch(self.layers.get(name, ""), last=last))
        return gathers

    def _stage(self, number: int, block: Any, add: Add) -> Callable[..., Any]:
        """A block's forward for all samples: read, run in portions, write statistics, forget."""
        prefix, forward = f"{self.meta.inside}.{number}", block.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            if number in self.done:
                raise InputError("runs one block's weights several times", file=self.meta.path, remedy=ELSEWHERE)
            self.done.add(number)
            hidden = args[0] if args else kwargs["hidden_states"]
            self.meta.fill(prefix, block)
            watcher = _Watcher(self, prefix, block)
            influence = Gather(1, name=self.influences[number])

            def seen(given: Any, left: Any) -> None:
                turned = self.torch.cosine_similarity(given.float(), left.float(), dim=-1)
                influence.add((1 - turned).clamp(min=0).unsqueeze(-1).numpy())
                watcher.settle()

            if self.buffer is None or self.buffer.shape != hidden.shape:
                self.buffer = self.torch.empty_like(hidden, memory_format=self.torch.contiguous_format)
            first, last = self.before[number], self.before[number + 1]
            halves = [first, last] if self.compress is None else [first, (first + last) // 2, last]
            result = self._portions(forward, args, kwargs, halves[:2], seen, kept=self.compress is None)
            self.meta.drop(prefix, block)
            found = dict(watcher.finish())
            for layer, statistics in found.items():
                self._write(add, layer, statistics)
            if self.influences[number]:
                self._write(add, self.influences[number], influence.layer)
            if self.compress is not None:
                names = [self.meta.stored(name) for name, _ in block.named_parameters(prefix)]
                with self.compress([name for name in names if name is not None], found) as tensors:
                    self.meta.fill(prefix, block, tensors)
                result = self._portions(forward, args, kwargs, halves[1:], lambda given, left: None, kept=True)
                self.meta.drop(prefix, block)
            return (self.buffer, *result[1:]) if isinstance(result, tuple) else self.buffer

        return run

    def _portions(
        self,
        forward: Callable[..., Any],
        args: Any,
        kwargs: Any,
        halves: Sequence[int],
        seen: Callable[[Any, Any], None],
        *,
        kept: bool,
    ) -> Any:
        """All samples through a block whose weights are there, in portions; `seen` is given what enters and what
        leaves it, which is `kept` in the buffer or not. What it gave of the last portion."""
        hidden = args[0] if args else kwargs["hidden_states"]
        count, result = hidden.shape[0], None
        step = max(1, _TOKENS // max(1, hidden.shape[1]))
        for start in range(0, count, step):
            stop = min(start + step, count)
            given = [_part(value, start, stop, count) for value in (args, kwargs)]
            result = forward(*given[0], **given[1])
            first = result[0] if isinstance(result, tuple) else result
            if first.shape != hidden[start:stop].shape:
                raise InputError("has blocks that change the shape of what they pass on", file=self.meta.path)
            seen(hidden[start:stop], first)
            if kept:
                self.buffer[start:stop] = first
            self.task.progress(4 * (halves[0] + (halves[1] - halves[0]) * stop // count), 4 * self.total)
        return result


class _Watcher:
    """Gathers the inputs of a block's linear layers; layers that are given the same tensor share one gathering."""

    def __init__(self, run: _Run, prefix: str, block: Any) -> None:
        self.run = run
        self.gathers: dict[tuple[str, ...], Gather] = {}
        self.seen: dict[tuple[int, int], tuple[Any, Any, list[str]]] = {}
        self.layers: list[str] = []
        self.hooks = []
        for name, module in block.named_modules(prefix=prefix):
            layer = run.layers.get(name)
            if layer is not None and isinstance(module, run.meta.linear):
                self.layers.append(layer)
                self.hooks.append(module.register_forward_pre_hook(self._hook(layer)))

    def _hook(self, layer: str) -> Callable[..., None]:
        def hook(_: Any, args: Any) -> None:
            given = args[0]
            key = (id(given), given._version)  # the same tensor, and nothing was written into it meanwhile
            if key not in self.seen:
                self.seen[key] = given, given.float().clone().numpy(), []
            self.seen[key][2].append(layer)

        return hook

    def settle(self) -> None:
        """Take in what a portion of the samples gave."""
        for _, rows, layers in self.seen.values():
            key = tuple(layers)
            if key not in self.gathers:
                self.gathers[key] = self.run._gather(layers[0])
            self.gathers[key].add(rows)
        self.seen.clear()

    def finish(self) -> Iterator[tuple[str, Layer]]:
        """Each layer's statistics."""
        for hook in self.hooks:
            hook.remove()
        found = {key: gather.layer for key, gather in self.gathers.items()}
        self.gathers.clear()
        for layer in self.layers:
            total: Layer | None = None
            for key, more in found.items():
                for _ in range(key.count(layer)):
                    total = more if total is None else total.merge(more)
            yield layer, self.run._gather(layer).layer if total is None else total


def _width(module: Any) -> int:
    """How many features a linear layer takes; GPT-2's have their weight as [in, out]."""
    return int(getattr(module, "in_features", 0) or module.weight.shape[0])


def _part(value: Any, start: int, stop: int, count: int) -> Any:
    """What some of the samples need of a block's arguments."""
    if isinstance(value, tuple | list):
        return type(value)(_part(one, start, stop, count) for one in value)
    if isinstance(value, dict):
        return {key: _part(one, start, stop, count) for key, one in value.items()}
    if getattr(value, "ndim", 0) >= 2 and value.shape[0] == count:
        return value[start:stop]
    return value
