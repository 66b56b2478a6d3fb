"""Matrices of single experts seen as the tensors of all experts of a layer, as models hold them that transformers
loads in no other form: Llama 4, Qwen3-VL-MoE, gpt-oss.

Codes are stored of single matrices (`experts.py`); dense, these would be names that transformers knows nothing of,
and it would fill its own tensors with random numbers. Here

    experts.gate_up_proj [E, H, 2·I], experts.down_proj [E, I, H]

and their biases are read from the matrices. Rows of a transposed matrix are columns of what is decoded, of which
any row needs all; who copies the tensor reads its columns instead (`outputs`), and decodes each matrix once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from compressor.architectures.fused_experts import FusedExperts, fused_experts
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.rows import BLOCK, Rows
from compressor.core.floats import narrow
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.files.source import StoredTensor

_SINGLE = re.compile(r"(?P<module>(?:.*\.)?experts)\.(?P<expert>[0-9]{1,4})\.(?P<name>\w+)\.(?P<kind>weight|bias)")


def join_experts(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the experts of each layer as the tensors that its model holds, where that is one whose
    experts transformers does not join itself, and all of a layer are there."""
    family = fused_experts(checkpoint.source.config or {})
    if family is None or family.merges:
        return checkpoint
    found: dict[tuple[str, str], dict[tuple[int, str], Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        single = _SINGLE.fullmatch(name)
        if single is not None:
            place = (int(single["expert"]), single["name"])
            found.setdefault((single["module"], single["kind"]), {})[place] = tensor
    tensors, count = dict(checkpoint.tensors), 0
    for (module, kind), singles in found.items():
        made = list(_joined(module, kind, singles, family))
        if made:
            for tensor in singles.values():
                del tensors[tensor.spec.name]
            tensors |= {tensor.spec.name: tensor for tensor in made}
            count += len(singles)
    if not count:
        return checkpoint
    note = f"{count} tensors of single experts are written as their layers' own, which transformers looks for"
    ordered = {name: tensors[name] for name in sorted(tensors)}
    return replace(checkpoint, tensors=ordered, notes=(*checkpoint.notes, note))


def _joined(
    module: str, kind: str, singles: Mapping[tuple[int, str], Tensor], family: FusedExperts
) -> Iterator[Tensor]:
    """The tensors of a layer; none where some of the matrices are missing, or differ in shape or dtype."""
    experts = 1 + max(number for number, _ in singles)
    wanted = ((family.gate, family.up), (family.down,))
    if {(e, name) for e in range(experts) for names in wanted for name in names} != singles.keys():
        return
    made = []
    for called, names in (("gate_up_proj", wanted[0]), ("down_proj", wanted[1])):
        parts = tuple(tuple(singles[e, name] for name in names) for e in range(experts))
        specs = {(part.spec.shape, part.spec.dtype) for expert in parts for part in expert}
        if len(specs) != 1:
            return
        ((shape, dtype),) = specs
        rows = len(names) * shape[0]
        full = (experts, shape[1], rows) if kind == "weight" else (experts, rows)
        spec = TensorSpec(f"{module}.{called}{'' if kind == 'weight' else '_bias'}", dtype, full)
        first = parts[0][0]
        stored = next(iter(first.parts.values()))
        placed = replace(stored.placed, spec=spec, fortran=False, big_endian=False, strides=None)
        whole = JoinedExperts(stored.file, placed, parts, family.interleaved and len(names) > 1)
        made.append(Tensor(spec, {"": whole}, first.file))
    yield from made


@dataclass(frozen=True, eq=False)
class JoinedExperts(StoredTensor):
    """`experts`, of each the matrices [out, in] (or vectors [out]) whose outputs follow each other, or take turns
    where they are `interleaved`, as one tensor [E, in, out] (or [E, out])."""

    experts: Sequence[Sequence[Tensor]]
    interleaved: bool

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        out = work.array(key, (stop - start, columns), np.dtype(DTYPES[self.spec.dtype].storage).str)
        width = self.spec.shape[-1]
        inner = self.spec.shape[1] if len(self.spec.shape) == 3 else 1  # rows of one expert
        flat = out.reshape(-1, width)
        first = start * (columns // width)
        for expert in range(first // inner, -(-(first + len(flat)) // inner)):
            low = max(expert * inner - first, 0)
            high = min((expert + 1) * inner - first, len(flat))
            skipped = first + low - expert * inner
            self._fill(expert, flat[low:high], skipped, work, key)
        return out

    @property
    def turned(self) -> tuple[int, int, int]:
        """All outputs of all experts, the inputs of each, and what multiples of outputs reading begins at."""
        experts, inputs, outputs = self.spec.shape
        align = max(part.align for expert in self.experts for part in expert)
        return experts * outputs, inputs, align * (len(self.experts[0]) if self.interleaved else 1)

    def outputs(self, start: int, stop: int, work: Workspace, key: str) -> Iterator[tuple[int, int, Array]]:
        """Outputs [start, stop) of all, counted through: those of each expert as its number, the first of them, and
        their weights [outputs, inputs]."""
        _, inputs, each = self.spec.shape
        storage = np.dtype(DTYPES[self.spec.dtype].storage).str
        for expert in range(start // each, -(-stop // each)):
            first, last = max(start - expert * each, 0), min(stop - expert * each, each)
            found = work.array(key, (last - first, inputs), storage)
            for number, part in enumerate(self.experts[expert]):
                self._take(number, part, first, found, work, key)
            yield expert, first, found

    def _take(self, number: int, part: Tensor, first: int, found: Array, work: Workspace, key: str) -> None:
        """What one matrix of an expert has of its outputs from `first` on."""
        rows, inputs = part.spec.shape
        last, count = first + len(found), len(self.experts[0]) if self.interleaved else 1
        before = number if self.interleaved else number * rows  # outputs before its first
        begin = min(max(-((before - first) // count), 0), rows)
        end = min(max(-((before - last) // count), 0), rows)
        step = max(BLOCK // max(inputs, 1) // part.align, 1) * part.align
        for low in range(begin // part.align * part.align, end, step):
            high = min(low + step, -(-end // part.align) * part.align, rows)
            held = _stored(part, inputs, low, high, work, f"{key}.expert")
            skipped, taken = max(begin - low, 0), min(end, high) - low
            place = before + (low + skipped) * count - first
            target = found[place : place + (taken - skipped - 1) * count + 1 : count]
            np.copyto(target, held[skipped:taken])

    def _fill(self, expert: int, target: Array, first: int, work: Workspace, key: str) -> None:
        """Rows of one expert from `first` on, which are columns of its matrices."""
        parts, outputs = self.experts[expert], target.T
        for number, part in enumerate(parts):
            rows, columns = part.spec.matrix if len(part.spec.shape) == 2 else (part.spec.shape[0], 1)
            own = (
                outputs[number :: len(parts)] if self.interleaved else outputs[number * rows : (number + 1) * rows]
            )
            step = max(BLOCK // max(columns, 1) // part.align, 1) * part.align
            for begin in range(0, rows, step):
                end = min(begin + step, rows)
                held = _stored(part, columns, begin, end, work, f"{key}.expert")
                np.copyto(own[begin:end], held[:, first : first + len(target)])

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # it is no part of an encoder


def _stored(tensor: Tensor, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
    """Rows of a tensor in its storage type, decoded where it is stored as parts."""
    if tensor.encoder is None:
        return tensor.whole.read_rows(columns, start, stop, work, key)
    numbers = Rows(tensor, columns, start, stop, work, f"{key}.codes").block(start, stop)
    out = work.array(key, numbers.shape, np.dtype(DTYPES[tensor.spec.dtype].storage).str)
    narrow(numbers, tensor.spec.dtype, out)
    return out
