"""What the metadata of a GGUF model say of it, for the rules of llama.cpp's mixtures."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.architectures.ggml_mixtures import GgmlModel
from compressor.files.gguf.values import Value


def ggml_model(fields: Mapping[str, Value]) -> GgmlModel | None:
    """The model of these metadata; None where they do not name its architecture and count its layers, unless it is
    one that makes images."""
    named = fields.get("general.architecture")
    architecture = None if named is None else named.python()
    if not isinstance(architecture, str):
        return None
    from compressor.architectures.gguf.diffusion import KINDS as DIFFUSION

    if architecture in DIFFUSION:
        return GgmlModel(architecture, 0, images=True)
    layers = _number(fields, f"{architecture}.block_count")
    if not layers:
        return None
    heads = _number(fields, f"{architecture}.attention.head_count")
    pairs = _number(fields, f"{architecture}.attention.head_count_kv")
    pairs = heads if pairs is None else pairs
    experts = _number(fields, f"{architecture}.expert_count") or 0
    return GgmlModel(architecture, layers, experts, heads // pairs if heads and pairs else 0)


def _number(fields: Mapping[str, Value], key: str) -> int | None:
    """The value of a key, of a list its first one; None where there is none."""
    value = fields.get(key)
    found = None if value is None else value.python()
    if isinstance(found, list):
        found = found[0] if found else None
    return found if isinstance(found, int) else None
