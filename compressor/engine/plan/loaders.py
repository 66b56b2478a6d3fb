"""What the loaders of a folder take as codes of a tensor, beside what its layout holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from compressor.architectures.decoder_layers import has_layers, not_in_a_layer
from compressor.architectures.fused_layers import experts_module
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Decoder, Scheme

_OWN = "compressor"
# Of experts: formats of compressed-tensors that transformers 5.24 refuses, or loads as other numbers
_REFUSED = ("int-quantized", "naive-quantized", "mxfp8-quantized")
_MISREAD = ("nvfp4-pack-quantized",)


def check_matrix(scheme: Scheme, spec: TensorSpec) -> None:
    """UsageError for a tensor that is no matrix, where the scheme stores matrices for loaders: in a layout of our
    own it would make the whole folder one that none of them takes."""
    if len(spec.shape) == 2 or scheme.named_layout == _OWN:
        return
    as_matrix = TensorSpec(spec.name, spec.dtype, spec.matrix)
    decoder = scheme.decoder_for(as_matrix)
    if decoder is not None and decoder.dialect(as_matrix):
        raise UsageError(
            f"has shape {list(spec.shape)}: loaders take codes of matrices only, and would refuse the folder",
            tensor=spec.name,
            remedy="Leave it out of --include or --exclude it, or use --layout compressor, which `restore` reads",
        )


def left_dense(scheme: Scheme, spec: TensorSpec, checkpoint: Checkpoint) -> str:
    """Why a matrix stays dense, since the loaders of the scheme's layout make no module for its codes; "" where
    they do. A file without any list of layers is no model of theirs, and is not judged."""
    decoder = scheme.decoder_for(spec)
    if decoder is None or decoder.dialect(spec) != "gptq" or not has_layers(checkpoint.tensors):
        return ""
    return not_in_a_layer(spec.name)


def expert_notes(stored: Sequence[tuple[TensorSpec, Decoder]]) -> Iterator[str]:
    """What transformers does with codes of experts that it does not load as they are, and what it does load."""
    experts = [(spec, decoder) for spec, decoder in stored if experts_module(spec.name) is not None]
    said = [decoder.config(spec) or {} for spec, decoder in experts]
    formats = {one.get("format") for one in said}
    blocks = any((one.get("weights") or {}).get("strategy") == "block" for one in said)
    better = "it loads int with groups (--granularity group), mxfp4, and fp8 by channel"
    if formats & {*_REFUSED} or blocks:
        yield f"experts as these codes: transformers 5.24 refuses to load them; {better}"
    if formats & {*_MISREAD}:
        yield (
            "experts as nvfp4: transformers 5.24 takes no account of their global scale and computes with weights "
            f"that are off by orders of magnitude; {better}"
        )
    if len({json.dumps(one, sort_keys=True) for one in said}) > 1:
        yield (
            "experts of some layers have another scheme than those of others: vLLM loads that, transformers 5.24 "
            "computes with other weights; one scheme for all experts is right in both"
        )
