"""Mixture-of-experts checkpoints that hold all experts of a layer as one tensor, seen as one matrix an expert.

Loaders of codes know experts as linear layers, `experts.7.gate_proj.weight` [out, in]. Files may hold them fused:

    experts.gate_up_proj [E, 2·I, H], experts.down_proj [E, H, I]    Qwen3.5, and what transformers computes with
    experts.gate_up_proj [E, H, 2·I], experts.down_proj [E, I, H]    Llama 4, Qwen3-VL; gpt-oss, gate and up in turn

with H the hidden and I the inner size; which of the two it is follows from the shapes. The matrices are parts of
the fused tensors where these lie in the file: nothing is read or copied here, only offsets and strides are told.

Which half is the gate, and what loaders call the parts, cannot be seen in a file: a model has to be known by the
`model_type` in its config.json (`architectures/fused_experts.py`), or be unmistakable by names and shapes. Others
are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from compressor.architectures.fused_experts import GPT_OSS, LLAMA4, FusedExperts, fused_experts
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.files.source import StoredTensor

_FUSED = re.compile(r"(?P<module>(?:.*\.)?experts)\.(?P<name>gate_up_proj|down_proj)(?P<bias>_bias)?")
_MOST = 4096  # experts of a layer; a file that claims more is not believed


@dataclass(frozen=True)
class _Layer:
    """The fused tensors of one module of experts, by their names within it; `transposed`: experts are [in, out]."""

    module: str
    tensors: Mapping[str, Tensor]
    transposed: bool


def split_experts(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a matrix for each expert in place of fused tensors; all of them or none.

    `fused` then tells the names, and `notes` what was done or why nothing was.
    """
    found = _fused_modules(checkpoint)
    if not found:
        return checkpoint
    layers = [_layer(module, tensors) for module, tensors in found.items()]
    family = _family(checkpoint, [layer for layer in layers if layer is not None])
    some = next(iter(found))
    if family is None or None in layers:
        why = "is of no model that is known here" if family is None else "has shapes that do not fit each other"
        return replace(checkpoint, notes=(*checkpoint.notes, f"experts stay fused: '{printable(some, 100)}' {why}"))
    whole: dict[str, tuple[str, ...]] = {}
    made: dict[str, Tensor] = {}
    for layer in layers:
        assert layer is not None  # noqa: S101 - looked for above
        for name, tensor in layer.tensors.items():
            parts = list(_parts(layer, name, tensor, family))
            whole[tensor.spec.name] = tuple(part.spec.name for part in parts)
            made |= {part.spec.name: part for part in parts}
    others = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in whole}
    if family.block:
        others = {tensor.spec.name: tensor for tensor in _renamed(others, list(found), family)}
    if made.keys() & others.keys() or len(made) != sum(map(len, whole.values())):
        return replace(
            checkpoint,
            notes=(*checkpoint.notes, f"experts stay fused: their names as '{next(iter(made))}' are taken"),
        )
    tensors = made | others
    loaders = "transformers and vLLM" if family.codes else "vLLM, and not transformers,"
    note = (
        f"{len(whole)} fused expert tensors are stored as {len(made)}, one for each expert and projection, "
        f"as '{printable(next(iter(made)), 100)}': {loaders} look{'' if family.codes else 's'} for these names; "
        "`restore` gives them back so"
    )
    return replace(
        checkpoint,
        tensors={name: tensors[name] for name in sorted(tensors)},
        fused=whole,
        notes=(*checkpoint.notes, note),
    )


def split_like(checkpoint: Checkpoint, other: Checkpoint) -> Checkpoint:
    """The checkpoint with its experts split where those of `other` are."""
    split = split_experts(checkpoint)
    apart = any(name in other.tensors for names in split.fused.values() for name in names)
    return split if apart else checkpoint


# ---- which model it is ---------------------------------------------------------------------------------


def _fused_modules(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """The fused tensors of every module of experts."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        found = _FUSED.fullmatch(name)
        if found is not None and len(tensor.spec.shape) == (2 if found["bias"] else 3):
            modules.setdefault(found["module"], {})[found["name"] + (found["bias"] or "")] = tensor
    return modules


def _layer(module: str, tensors: Mapping[str, Tensor]) -> _Layer | None:
    """What the shapes say; None when they do not say it."""
    usable = all(t.encoder is None and t.whole.contiguous and t.spec.is_float for t in tensors.values())
    if not usable or not {"gate_up_proj", "down_proj"} <= set(tensors):
        return None
    (experts, a, b), (same, c, d) = tensors["gate_up_proj"].spec.shape, tensors["down_proj"].spec.shape
    straight, transposed = (a, b) == (2 * d, c), (a, b) == (d, 2 * c)
    if experts != same or not 0 < experts <= _MOST or not min(a, b, c, d) or straight == transposed:
        return None
    hidden, inner = (d, c) if transposed else (c, d)
    for name, size in (("gate_up_proj_bias", 2 * inner), ("down_proj_bias", hidden)):
        if name in tensors and tensors[name].spec.shape != (experts, size):
            return None
    return _Layer(module, tensors, transposed)


def _family(checkpoint: Checkpoint, layers: Sequence[_Layer]) -> FusedExperts | None:
    if checkpoint.source.config is not None:
        return fused_experts(checkpoint.source.config)
    if layers and all(layer.transposed and "gate_up_proj_bias" in layer.tensors for layer in layers):
        return GPT_OSS
    if layers and all(layer.transposed and "feed_forward.experts" in layer.module for layer in layers):
        return LLAMA4
    return None


# ---- the matrices --------------------------------------------------------------------------------------


def _parts(layer: _Layer, name: str, tensor: Tensor, family: FusedExperts) -> Iterator[Tensor]:
    """What becomes of one fused tensor, expert by expert."""
    experts, *shape = tensor.spec.shape
    module, kind = _outside(layer.module, family), "bias" if name.endswith("_bias") else "weight"
    if len(shape) == 1:
        shape = [shape[0], 1]  # a bias is a matrix of one column, whose rows are the outputs
    elif layer.transposed:
        shape.reverse()
    rows, columns = shape
    strides = (1, rows) if layer.transposed and kind == "weight" else (columns, 1)
    if name.startswith("down"):
        pieces = [(family.down, 0, 1)]
    elif family.interleaved:
        pieces = [(family.gate, 0, 2), (family.up, 1, 2)]
    else:
        pieces = [(family.gate, 0, 1), (family.up, rows // 2, 1)]
    for expert in range(experts):
        for called, first, step in pieces:
            count = rows // len(pieces)
            spec = TensorSpec(
                f"{module}.{expert}.{called}.{kind}",
                tensor.spec.dtype,
                (count,) if kind == "bias" else (count, columns),
            )
            start = expert * rows * columns + first * strides[0]
            yield _placed(tensor, spec, start, (strides[0] * step, strides[1]))


def _placed(tensor: Tensor, spec: TensorSpec, start: int, strides: tuple[int, int]) -> Tensor:
    """Elements of a fused tensor from number `start` on as a tensor of its own."""
    if len(spec.shape) == 1:
        strides = (spec.size * strides[0], strides[0])
    whole = tensor.whole
    placed = replace(
        whole.placed,
        spec=spec,
        offset=whole.placed.offset + start * DTYPES[spec.dtype].bits // 8,
        strides=None if strides == (spec.matrix[1], 1) else strides,
    )
    return Tensor(spec, {"": StoredTensor(whole.file, placed)}, tensor.file)


def _outside(module: str, family: FusedExperts) -> str:
    """What a module of experts is called in files."""
    return re.sub(r"(^|\.)mlp\.experts$", rf"\1{family.block}.experts", module) if family.block else module


def _renamed(tensors: Mapping[str, Tensor], modules: Sequence[str], family: FusedExperts) -> Iterator[Tensor]:
    """The other tensors, those beside the experts (a router) by their names in files."""
    beside = {module.removesuffix("experts") for module in modules if module.endswith("mlp.experts")}
    for name, tensor in tensors.items():
        around = next((name[: end + 4] for end in _ends(name, "mlp.") if name[: end + 4] in beside), None)
        if around is None or tensor.encoder is not None:
            yield tensor
            continue
        spec = replace(tensor.spec, name=f"{around.removesuffix('mlp.')}{family.block}.{name[len(around) :]}")
        yield replace(
            tensor, spec=spec, parts={"": replace(tensor.whole, placed=replace(tensor.whole.placed, spec=spec))}
        )


def _ends(name: str, word: str) -> Iterator[int]:
    """Where `word` begins in a name."""
    return (found.start() for found in re.finditer(re.escape(word), name))
