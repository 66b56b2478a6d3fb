"""A Hugging Face folder seen as the GGUF file that llama.cpp would want of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compressor.architectures.gguf import hyperparameters, tokenizers
from compressor.architectures.gguf.diffusion import BODY, KINDS, MOST_AXES, Diffusion, diffusion_of, prefix_of
from compressor.architectures.gguf.families import FAMILIES, Family
from compressor.architectures.gguf.moves import plain
from compressor.architectures.gguf.naming import Mapped, inputs_of, stays_f32, to_gguf
from compressor.architectures.gguf.spaces import Unsupported
from compressor.architectures.model_types import model_types
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.gguf.fields import fields_of
from compressor.checkpoint.gguf.moved import constant, moved
from compressor.checkpoint.gguf.pooling import pooling_type
from compressor.checkpoint.gguf.reshaped import SHAPE, reshaped
from compressor.checkpoint.gguf.tokenizer_files import READ, read_tokenizer
from compressor.core.errors import CompressorError, InputError, UsageError, raise_all
from compressor.core.text import printable
from compressor.recipe.selection import matches, unmatched

_FLOATS = ("F32", "F16", "BF16")
_FEW = 6  # names that a message lists


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user says of the file: whether it is to have the `tokenizer`, and patterns of tensors of the folder
    that are to be left out."""

    tokenizer: bool = True
    leave_out: tuple[str, ...] = ()


def becomes_file(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint is none of a GGUF file, and of a container whose tensors have names."""
    return not checkpoint.source.fields and checkpoint.source.kind not in ("npy", "npz")


def as_file(checkpoint: Checkpoint, wishes: Wishes = Wishes()) -> Checkpoint:
    """The checkpoint with GGUF's names, layouts and metadata.

    InputError for a model that is not known, that llama.cpp would compute otherwise, whose tensors are not those
    that its config says, or whose tokenizer no file can hold; UsageError for patterns that match nothing. All at
    once.
    """
    if not model_types(checkpoint.source.config):
        return _as_diffusion(checkpoint, wishes)
    family = _family(checkpoint)
    config = hyperparameters.text_config(checkpoint.source.config or {}, family)
    checkpoint = _without(checkpoint, wishes.leave_out)
    mapped, found, factors, remarks = _described(checkpoint, config, family)
    metadata = _general(checkpoint, family) | found
    vocabulary, notes = _tokenizer(checkpoint, family, config, wishes)
    metadata |= vocabulary | pooling_type(checkpoint.source, family)
    tensors = _tensors(checkpoint, mapped)
    like = next(iter(checkpoint.tensors.values()))
    tensors |= {name: constant(name, numbers, like) for name, numbers in factors.items()}
    notes += [*remarks, *_left(mapped)]
    source = replace(
        checkpoint.source,
        fields=fields_of(metadata),
        carried={
            name: file for name, file in checkpoint.source.carried.items() if os.path.basename(name) not in READ
        },
    )
    return replace(
        checkpoint,
        source=source,
        tensors={name: tensors[name] for name in sorted(tensors)},
        notes=(*checkpoint.notes, *notes),
        lossy=any(
            tensor.encoder is not None and not tensor.encoder.exact for tensor in checkpoint.tensors.values()
        ),
    )


def layers_of_file(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The matrices of the GGUF file that a folder would become, with the layers whose inputs each takes (see
    `inputs_of`). InputError as for `as_file`, but no tokenizer is needed, and there may be tensors that have no
    place in it; nothing for a checkpoint that has no config."""
    if not model_types(checkpoint.source.config):
        return {}
    family = _family(checkpoint)
    config = hyperparameters.text_config(checkpoint.source.config or {}, family)
    mapped = _described(checkpoint, config, family, whole=False)[0]
    return inputs_of({name: move for name, move in mapped.moves.items() if len(mapped.shapes[name]) > 1})


def _described(
    checkpoint: Checkpoint, config: dict[str, Any], family: Family, *, whole: bool = True
) -> tuple[Mapped, dict[str, Any], dict[str, list[float]], list[str]]:
    """Where tensors go, the model's metadata, tensors of frequency factors and remarks. InputError for all that
    keeps it from being a GGUF file, and where the config is nonsense; if it has to be the `whole` checkpoint, for
    tensors that have no place too."""
    try:
        mapped = _mapped(checkpoint, config, family, whole=whole)
        found = hyperparameters.metadata(config, family)
        factors = hyperparameters.frequency_factors(config, family)
        return mapped, found, factors, list(hyperparameters.remarks(config, family))
    except hyperparameters.NONSENSE as error:
        raise InputError(
            f"its config.json does not describe a {family.model_type}: {printable(str(error), 100)}",
            file=checkpoint.path,
            remedy="Download it again",
        ) from error


def _mapped(checkpoint: Checkpoint, config: dict[str, Any], family: Family, *, whole: bool) -> Mapped:
    """Where tensors go. InputError for all that keeps the model from being a GGUF file."""
    reasons = list(hyperparameters.refusals(config, family))
    sizes, layers = hyperparameters.sizes(config, family), hyperparameters.layers(config)
    if not reasons and not hyperparameters.possible(sizes, layers, len(checkpoint.tensors)):
        reasons = [f"config.json tells of {layers} layers, and there are {len(checkpoint.tensors)} tensors"]
    problems: list[CompressorError] = [
        InputError(reason, file=checkpoint.path, remedy="No GGUF file of it would give the same results")
        for reason in reasons
    ]
    if not hyperparameters.possible(sizes, layers, len(checkpoint.tensors)):
        raise_all(problems)
    apart = hyperparameters.frequencies_apart(config, family)
    if apart:
        problems.append(
            InputError(
                "truncate of its YaRN is false, and llama.cpp rounds the bounds between which it scales: some "
                f"frequencies would differ by up to {apart:.1%}",
                file=checkpoint.path,
                remedy='With "truncate": true in its config.json it becomes the model that llama.cpp computes',
            )
        )
    mapped = to_gguf(
        {name: tensor.spec.shape for name, tensor in checkpoint.tensors.items()},
        family,
        sizes,
        layers,
        hyperparameters.sparse_from(config, family),
        tied=config.get("tie_word_embeddings"),
    )
    raise_all(problems + list(_problems(mapped, checkpoint, family, whole=whole)))
    return mapped


def _as_diffusion(checkpoint: Checkpoint, wishes: Wishes) -> Checkpoint:
    """A model that makes images, whose names tell what it is, under its own names."""
    checkpoint = _without(checkpoint, wishes.leave_out)
    kind, diffusers = diffusion_of(checkpoint.tensors)
    if kind is None:
        raise InputError(
            "has no config.json that says which model it is, and its names are of no diffusion model that is known "
            f"({', '.join(sorted(KINDS))}): there is no '{KINDS['flux'].told[0][0]}', for one",
            file=checkpoint.path,
            remedy="Names and layouts of a GGUF file go by the model: give its folder, or write .safetensors",
        )
    if diffusers:
        raise InputError(
            f"is a {kind.gguf} with the names of diffusers, which no loader of GGUF files reads",
            file=checkpoint.path,
            remedy="Give the model in its makers' form, as ComfyUI has it",
        )
    inside = [name for name in checkpoint.tensors if name.startswith(BODY)]
    others = [name for name in checkpoint.tensors if inside and not name.startswith(BODY)]
    if others:
        raise InputError(
            f"holds {len(others)} tensors beside the diffusion model: {_some(others)}",
            file=checkpoint.path,
            remedy="Leave them out with --leave-out PATTERN, and give text encoders and VAE as files of their own",
        )
    metadata: dict[str, Any] = {"general.architecture": kind.gguf, "general.type": "model"}
    bare, unused, tensors = without_prefix(checkpoint), list[str](), {}
    for name, tensor in bare.tensors.items():
        if any(part in name for part in kind.unused):
            unused.append(name)
            continue
        axes, shape = len(tensor.spec.shape), kind.stored_shape(tensor.spec.shape)
        if shape != tensor.spec.shape:
            metadata[f"{SHAPE}{name}"] = list(tensor.spec.shape)
            tensor = reshaped(tensor, shape)
        tensors[name] = _in_file(tensor, kind, moved_axes=axes > MOST_AXES)
    gone = "" if bare is checkpoint else f" without '{prefix_of(checkpoint.tensors)}'"
    notes = [f"it is a {kind.gguf}, and keeps its names{gone}"]
    if unused:
        notes.append(f"{len(unused)} tensors of its training stay behind: {_some(unused)}")
    source = replace(checkpoint.source, fields=fields_of(metadata))
    return replace(checkpoint, source=source, tensors=tensors, notes=(*checkpoint.notes, *notes))


def without_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """A model that makes images under the names that its file has: without what stands before all of them where it
    was saved as a part of another; other checkpoints as they are."""
    before = prefix_of(checkpoint.tensors)
    if before in ("", BODY) or diffusion_of(checkpoint.tensors)[0] is None:
        return checkpoint
    tensors = {}
    for old, tensor in checkpoint.tensors.items():
        name = old.removeprefix(before)
        tensors[name] = replace(tensor, spec=replace(tensor.spec, name=name))
    return replace(checkpoint, tensors=tensors)


def _in_file(tensor: Tensor, kind: Diffusion, *, moved_axes: bool) -> Tensor:
    """A tensor as it is, but for vectors, small ones and what is no weight of a layer, which are F32 in files, and
    FP8, which is F16."""
    spec = tensor.spec
    exact = moved_axes or stays_f32(spec.name, spec.shape) or kind.is_exact(spec.name, spec.size)
    dtype = "F32" if exact else "F16" if spec.dtype.startswith("F8_") else spec.dtype
    if dtype == spec.dtype or not spec.is_float:
        return tensor
    return moved(spec.name, dtype, spec.shape, [plain(spec.name, spec.name, spec.shape)], {spec.name: tensor})


def _family(checkpoint: Checkpoint) -> Family:
    config = checkpoint.source.config or {}
    family = hyperparameters.family_of(config)
    if family is None:
        known = ", ".join(sorted(family.model_type for family in FAMILIES))
        raise InputError(
            f"is a {printable(model_types(config)[0], 60)}, a model that is not known here as GGUF",
            file=checkpoint.path,
            remedy=f"Known are {known}",
        )
    return family


def _without(checkpoint: Checkpoint, patterns: Sequence[str]) -> Checkpoint:
    """The checkpoint without the tensors that the user leaves out."""
    lost = unmatched(patterns, list(checkpoint.tensors))
    if lost:
        raise UsageError(f"--leave-out '{printable(lost[0], 60)}' matches no tensor")
    kept = {name: one for name, one in checkpoint.tensors.items() if matches(name, patterns) is None}
    gone = len(checkpoint.tensors) - len(kept)
    note = (f"{gone} tensors of {len(checkpoint.tensors)} are left out, as asked",) if gone else ()
    return replace(checkpoint, tensors=kept, notes=(*checkpoint.notes, *note))


def _problems(mapped: Mapped, checkpoint: Checkpoint, family: Family, *, whole: bool) -> Iterator[CompressorError]:
    """What keeps the tensors from being the model that the config describes."""
    for name, wrong in mapped.misfits.items():
        yield InputError(f"{wrong} by config.json", file=checkpoint.path, tensor=name)
    if mapped.missing:
        some = _some(list(mapped.missing.values()))
        yield InputError(f"is no complete {family.model_type}: {some} would be needed", file=checkpoint.path)
    if whole and mapped.unmapped and not mapped.missing:
        some = _some(mapped.unmapped)
        yield InputError(
            f"llama.cpp's {family.gguf} has no place for {len(mapped.unmapped)} of its tensors: {some}",
            file=checkpoint.path,
            remedy="Leave them out with --leave-out PATTERN, if the model is to be used without",
        )


def _some(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(f"'{printable(name, 80)}'" for name in names[:_FEW]) + more


def _general(checkpoint: Checkpoint, family: Family) -> dict[str, Any]:
    name = os.path.basename(os.path.abspath(checkpoint.path))
    return {"general.architecture": family.gguf, "general.type": "model", "general.name": name}


def _tokenizer(
    checkpoint: Checkpoint, family: Family, config: dict[str, Any], wishes: Wishes
) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer's metadata and what is to be said of it. InputError where a file cannot hold it."""
    if not wishes.tokenizer:
        return dict(tokenizers.NONE), ["the file has no tokenizer: whoever loads it has to give numbers of tokens"]
    files = read_tokenizer(checkpoint.source)
    size = hyperparameters.sizes(config, family)["V"]
    wordpiece = family.gguf in ("bert", "nomic-bert")
    try:
        found = tokenizers.tokenizer_metadata(files, vocabulary=size, wordpiece=wordpiece)
        remarks = [*tokenizers.remarks(files), *tokenizers.absent_tokens(files, found)]
    except (Unsupported, *hyperparameters.NONSENSE) as error:
        raise InputError(
            f"its tokenizer cannot go into a GGUF file: {printable(str(error), 300)}",
            file=checkpoint.path,
            remedy="With --no-tokenizer the file has none, so that texts have to be turned into numbers elsewhere",
        ) from error
    return found, remarks


def _tensors(checkpoint: Checkpoint, mapped: Mapped) -> dict[str, Tensor]:
    found = {}
    for name, shape in mapped.shapes.items():
        moves = mapped.moves[name]
        stored = {checkpoint.tensors[move.folder.name].spec.dtype for move in moves}
        dtype = stored.pop() if len(stored) == 1 else "F32"
        dtype = "F32" if stays_f32(name, shape) or dtype not in _FLOATS else dtype
        found[name] = moved(name, dtype, shape, moves, checkpoint.tensors)
    return found


def _left(mapped: Mapped) -> Iterator[str]:
    """Why tensors of the folder are not in the file."""
    reasons: dict[str, list[str]] = {}
    for name, why in mapped.left.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"'{printable(names[0], 80)}'{more} stays behind: {why}"
