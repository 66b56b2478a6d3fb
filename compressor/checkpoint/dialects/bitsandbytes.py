"""bitsandbytes' NF4 in a folder: its `quantization_config` written for loaders, its tensors read for `restore`.

What is read does not hang on the config but on the `quant_state` beside each weight, as in the library itself.
FP4 and the 8-bit form are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compressor.checkpoint.dialects import KEYS
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.selection import kept
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source, StoredTensor
from compressor.methods.contract import Decoder
from compressor.methods.quantize.nf4 import Nf4, bitsandbytes_state, levels

NAME = "bitsandbytes"
METADATA = "pt"
KEY = KEYS[0]

_BESIDE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_REMEDY = "Give the unquantized model"
# Output heads that share the embedding's weight or are called otherwise in the file; loaders compare ends of names
_HEADS = ("lm_head", "lm_head.decoder", "embed_out", "predictions.decoder", "vocab_projector", "generator_lm_head")
# transformers' Conv1D keeps [in, out]; loaders expect the codes of its transpose
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = re.compile(r"\.(c_attn|q_attn|c_proj|c_fc)\.weight$")


def speaks(config: Mapping[str, Any]) -> bool:
    declared = config.get(KEY)
    if not isinstance(declared, dict):
        return False
    # the first files said nothing but how to load them
    loaded = "load_in_4bit" in declared or "load_in_8bit" in declared
    return bool(declared.get("quant_method", NAME if loaded else "") == NAME)


# ---- writing -------------------------------------------------------------------------------------------


def configure(
    config: Mapping[str, Any], packed: Sequence[tuple[TensorSpec, Decoder]], dense: Sequence[TensorSpec]
) -> dict[str, Any] | None:
    """config.json with the quantization_config of a folder with these packed and these dense tensors; None where
    a loader would not take one of them."""
    for spec, _ in packed:
        default = kept(spec, "quantize", (), ())
        embedding = default is not None and default.reason.startswith("embedding")
        transposed = config.get("model_type") in _TRANSPOSED and _CONV1D.search(spec.name)
        if embedding or transposed:
            return None
    modules = {_module(spec.name) for spec, _ in packed}
    untouched = {_module(spec.name) for spec in dense if len(spec.shape) == 2 and spec.name.endswith(".weight")}
    declared = {
        "quant_method": NAME,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": any(
            (one.config(spec) or {})["bnb_4bit_use_double_quant"] for spec, one in packed
        ),
        "bnb_4bit_compute_dtype": bitsandbytes_state.loaders_dtype(packed[0][0]),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": _skipped(untouched, modules),
        "llm_int8_threshold": 6.0,
    }
    return {**config, KEY: declared}


def _skipped(untouched: Iterable[str], packed: Iterable[str]) -> list[str]:
    """Names by which loaders know the modules that stay dense: whole, and from the list of layers on, because a
    loader's modules may have another prefix than the file's tensors. Loaders also take an entry for the end of a
    name; where it is that of a packed module, only a pattern will do."""
    ends = {end for module in packed for end in _ends(module)}
    found = {head for head in _HEADS if head not in ends}
    for module in untouched:
        tail = re.search(r"[^.]+\.\d+\..*", module)
        found.add(f"^{re.escape(module)}$" if module in ends else module)
        if tail and tail[0] not in ends:
            found.add(tail[0])
    return sorted(found)


def _ends(module: str) -> Iterable[str]:
    """All that a module's name ends with, from a dot on."""
    parts = module.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _module(name: str) -> str:
    return name.removesuffix(".weight")


# ---- reading -------------------------------------------------------------------------------------------


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The tensors that a bitsandbytes folder stores as NF4. InputError for what is not read here."""
    found: list[tuple[TensorSpec, Decoder]] = []
    for name, tensor in source.tensors.items():
        base, mark, kind = name.partition(".quant_state.bitsandbytes__")
        if mark and kind == "nf4":
            found.append(_stored(base, tensor, source))
        elif mark:
            raise _refused(f"is stored as {printable(kind, 20)!r}, and only nf4 is read here", base, source)
        elif name.endswith((".SCB", ".weight_format")):
            raise _refused("is stored in bitsandbytes' 8-bit form, which is not read here", name, source)
    whole = {spec.name for spec, _ in found}
    for name, tensor in source.tensors.items():
        owner = next((name.removesuffix(end) for end in _BESIDE if name.endswith(end)), None)
        codes = name.endswith(".weight") and tensor.spec.dtype in ("U8", "I8") and name not in whole
        if codes or (owner is not None and owner not in whole):
            raise _refused("has no quant_state beside it", name if owner is None else owner, source)
    return found


def _stored(name: str, state_of: StoredTensor, source: Source) -> tuple[TensorSpec, Decoder]:
    length = state_of.spec.size
    if state_of.spec.dtype != "U8" or len(state_of.spec.shape) != 1 or length > bitsandbytes_state.LONGEST:
        raise _refused("its quant_state is no text of a reasonable length", name, source)
    try:
        state = bitsandbytes_state.parse(_read(state_of, length).tobytes(), name)
    except InputError as error:
        error.file = source.path
        raise
    spec = TensorSpec(name, bitsandbytes_state.DTYPES[state["dtype"]], tuple(state["shape"]))
    codes, levels = source.tensors.get(name), source.tensors.get(f"{name}.quant_map")
    if codes is None:
        raise _refused("its codes are missing", name, source)
    if not DTYPES[codes.spec.dtype].storage:
        raise _refused(f"its codes are {codes.spec.dtype}", name, source)
    if levels is not None and not _are_levels(levels):
        raise _refused("its quant_map does not hold the levels of NF4", name, source)
    decoder = Nf4(
        group_size=state["blocksize"],
        double_quant="nested_offset" in state,
        storage=codes.spec.dtype,
        state_bytes=length,
    )
    return spec, decoder


def _are_levels(tensor: StoredTensor) -> bool:
    """Whether a quant_map holds what loaders compute with, whatever the file says."""
    count = len(levels.LEVELS)
    if (tensor.spec.dtype, tensor.spec.shape) != ("F32", (count,)):
        return False
    return bool(np.allclose(_read(tensor, count), levels.levels(), rtol=0, atol=1e-6))


def _read(tensor: StoredTensor, size: int) -> Array:
    return tensor.read_rows(size, 0, 1, Workspace(), "state").reshape(-1)


def _refused(reason: str, tensor: str, source: Source) -> InputError:
    return InputError(reason, file=source.path, tensor=tensor, remedy=_REMEDY)
