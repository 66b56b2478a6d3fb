"""A GGUF file seen as the Hugging Face folder that transformers would load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compressor.architectures.gguf import hyperparameters
from compressor.architectures.gguf.families import Family
from compressor.architectures.gguf.hyperparameters import NONSENSE
from compressor.architectures.gguf.moves import Move
from compressor.architectures.gguf.naming import Mapped, from_gguf, inputs_of
from compressor.architectures.gguf.spaces import Unsupported
from compressor.architectures.gguf.tokenizer_back import special_numbers, tokenizer_files
from compressor.architectures.gguf.tokenizers import PREFIX
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.gguf.fields import plain, said
from compressor.checkpoint.gguf.moved import moved
from compressor.checkpoint.rows import read_whole
from compressor.core.text import printable
from compressor.files.folder import json_bytes

_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BIASED = ("llama", "granite", "qwen3", "qwen3_moe", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo2")


def is_file_of_a_model(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint is a GGUF file's, under its names."""
    return checkpoint.source.kind == "gguf" and checkpoint.source.config is None


def as_folder(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the names, layouts, config.json and tokenizer of transformers; as it is, with a note that
    says why, where the architecture is not known here or the tensors are not all of its."""
    fields = checkpoint.source.fields
    arch = str(said(fields, "general.architecture"))
    found = plain(fields, f"{arch}.")
    family = hyperparameters.family_of_gguf(arch, found)
    if family is None:
        return _unchanged(checkpoint, f"the architecture '{printable(arch, 60)}' is not known here")
    tensors = {name: one for name, one in checkpoint.tensors.items() if name not in _FACTORS}
    shapes = {name: tensor.spec.shape for name, tensor in tensors.items()}
    try:
        config = hyperparameters.config_of(found, family, tied="output.weight" not in tensors)
        config |= _from_tensors(shapes, fields, family)
        mapped = _mapped(shapes, config, family)
        factors, notes = _factors(checkpoint, config)
    except NONSENSE:  # metadata of strangers may say anything
        return _unchanged(checkpoint, "its metadata does not describe such a model")
    why = _why_not(mapped, family)
    if why:
        return _unchanged(checkpoint, why)
    config |= factors
    texts, more = _tokenizer(checkpoint, config)
    config |= special_numbers(plain(fields, PREFIX))
    made = {name: _moved(name, mapped, tensors) for name in mapped.shapes}
    config["dtype"] = _dtype(made)
    name = f"it is a {family.model_type} with the names of transformers"
    return replace(
        checkpoint,
        source=replace(checkpoint.source, config=config, texts=texts),
        tensors={one: made[one] for one in sorted(made)},
        notes=(*checkpoint.notes, name, *notes, *more),
        lossy=any(tensor.encoder is not None for tensor in tensors.values()),
    )


def layers_of_folder(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The matrices of a GGUF file with the layers of the folder that it would become, whose inputs each takes (see
    `inputs_of`); nothing for a file of another architecture, or one that does not say what it is."""
    fields = checkpoint.source.fields
    arch = str(said(fields, "general.architecture"))
    found = plain(fields, f"{arch}.")
    family = hyperparameters.family_of_gguf(arch, found)
    if family is None:
        return {}
    shapes = {name: one.spec.shape for name, one in checkpoint.tensors.items() if name not in _FACTORS}
    try:
        config = hyperparameters.config_of(found, family, tied="output.weight" not in shapes)
        mapped = _mapped(shapes, config | _from_tensors(shapes, fields, family), family)
    except NONSENSE:
        return {}
    into: dict[str, list[Move]] = {}
    for moves in mapped.moves.values():
        for move in moves:
            if len(shapes[move.gguf.name]) > 1:
                into.setdefault(move.gguf.name, []).append(move)
    return inputs_of(into)


def _mapped(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], family: Family) -> Mapped:
    """Where the tensors go. ValueError for sizes that no model has."""
    sizes, layers = hyperparameters.sizes(config, family), hyperparameters.layers(config)
    if not hyperparameters.possible(sizes, layers, len(shapes)):
        raise ValueError("no sizes of a model")
    return from_gguf(shapes, family, sizes, layers, hyperparameters.sparse_from(config, family))


def _unchanged(checkpoint: Checkpoint, why: str) -> Checkpoint:
    note = f"tensors keep the names of the GGUF file, and there is no config.json: {why}"
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _why_not(mapped: Mapped, family: Family) -> str:
    """Why the tensors are not those of a model of this family; "" where they are."""
    for name, wrong in mapped.misfits.items():
        return f"'{printable(name, 80)}' {wrong} by its metadata"
    if mapped.missing:
        return f"'{printable(next(iter(mapped.missing)), 80)}' is missing, which a {family.gguf} has"
    if mapped.unmapped:
        return f"a {family.gguf} has no '{printable(mapped.unmapped[0], 80)}' that is known here"
    return ""


def _moved(name: str, mapped: Mapped, tensors: Mapping[str, Tensor]) -> Tensor:
    moves = mapped.moves[name]
    dtypes = {tensors[move.gguf.name].spec.dtype for move in moves}
    return moved(name, dtypes.pop() if len(dtypes) == 1 else "F32", mapped.shapes[name], moves, tensors)


def _from_tensors(
    shapes: Mapping[str, tuple[int, ...]], fields: Mapping[str, Any], family: Family
) -> dict[str, Any]:
    """What a config says that the metadata need not, but the tensors tell."""
    found: dict[str, Any] = {}
    if "token_embd.weight" in shapes:
        found["vocab_size"] = shapes["token_embd.weight"][0]
    if "token_types.weight" in shapes:
        found["type_vocab_size"] = shapes["token_types.weight"][0]
    if family.model_type in _BIASED:
        found["attention_bias"] = "blk.0.attn_q.bias" in shapes
        if family.model_type in ("llama", "granite", "smollm3"):
            found["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    if family.model_type == "starcoder2":
        found["use_bias"] = "blk.0.attn_q.bias" in shapes
    return found


def _factors(checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the tensors of frequency factors mean in a config, with a note where that cannot be told."""
    tensors = checkpoint.tensors
    if _FACTORS[1] in tensors and _FACTORS[2] in tensors:
        long, short = ([float(one) for one in read_whole(tensors[name]).reshape(-1)] for name in _FACTORS[1:])
        prefix = "phi3.rope.scaling."
        original, factor = (
            said(checkpoint.source.fields, f"{prefix}{key}") for key in ("original_context_length", "attn_factor")
        )
        scaling = {"rope_type": "longrope", "type": "longrope", "long_factor": long, "short_factor": short}
        if factor is not None:  # else it would be told by max_position_embeddings, of which the file need not know
            scaling["attention_factor"] = factor
        return {"rope_scaling": scaling, "original_max_position_embeddings": original}, []
    if _FACTORS[0] not in tensors:
        return {}, []
    factors = [float(one) for one in read_whole(tensors[_FACTORS[0]]).reshape(-1)]
    if 2 * len(factors) == hyperparameters.head_size(config):
        rope = hyperparameters.llama3_rope(factors, float(config.get("rope_theta", 10000.0)))
        if rope is not None:
            return {"rope_scaling": rope}, []
    return {}, [
        "'rope_freqs.weight' stays behind: its factors are none of Llama 3's, and config.json cannot say them. "
        "Long texts will be computed otherwise"
    ]


def _tokenizer(checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """The tokenizer's files, or why there are none."""
    fields = checkpoint.source.fields
    known = {key: value.python() for key, value in fields.items() if key.startswith("tokenizer.")}
    context = config.get("max_position_embeddings") or config.get("n_positions")
    try:
        made = tokenizer_files(known, context if isinstance(context, int) else None)
    except (Unsupported, *NONSENSE) as error:
        return {}, [f"there is no tokenizer in the folder: {printable(str(error), 200)}"]
    return {name: json_bytes(content) for name, content in made.items()}, []


def _dtype(tensors: Mapping[str, Tensor]) -> str:
    """What most weights are stored as, as a config says it."""
    weights: dict[str, int] = {}
    for tensor in tensors.values():
        weights[tensor.spec.dtype] = weights.get(tensor.spec.dtype, 0) + tensor.spec.size
    return _DTYPES.get(max(weights, key=lambda name: weights[name]), "float32")
