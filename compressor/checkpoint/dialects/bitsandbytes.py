"""bitsandbytes' NF4 in a folder: its `quantization_config` written for loaders, its tensors read for `restore`.

What is read does not hang on the config but on the `quant_state` beside each weight, as in the library itself; so
lone files are read too. The 8-bit form, `P.weight` I8 with `P.SCB` F32 [rows], is read; FP4 is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.architectures.conv1d import is_conv1d
from compressor.architectures.heads import heads_of
from compressor.architectures.renamed_modules import renamed, split_parameters
from compressor.architectures.roles import is_embedding
from compressor.checkpoint.dialects import KEYS
from compressor.checkpoint.dialects._scales import model_dtype
from compressor.checkpoint.dialects._stored import StoredCodes
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source, StoredTensor
from compressor.methods.contract import Decoder
from compressor.methods.parts import Part
from compressor.methods.quantize.nf4 import Nf4, bitsandbytes_state, levels

NAME = "bitsandbytes"
METADATA = "pt"
KEY = KEYS[0]

_BESIDE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_REMEDY = "Give the model before it was quantized"


def found_in(source: Source) -> bool:
    """Whether a state beside its codes says all that there is to know; what is merely called SCB is no scale."""
    return any(".quant_state.bitsandbytes__" in name or _scales_codes(source, name) for name in source.tensors)


def _scales_codes(source: Source, name: str) -> bool:
    """Whether this is the SCB of 8-bit codes."""
    codes = source.tensors.get(f"{name.removesuffix('.SCB')}.weight") if name.endswith(".SCB") else None
    return codes is not None and codes.spec.dtype == "I8"


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may declare no quantization, is in this dialect."""
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
        if is_embedding(spec.name) or is_conv1d(config, spec.name):
            return None  # loaders expect the codes of a Conv1D's transpose
    modules = {_module(spec.name) for spec, _ in packed}
    untouched = {_module(spec.name) for spec in dense if len(spec.shape) == 2 and spec.name.endswith(".weight")}
    untouched |= set(split_parameters(config, (spec.name for spec in dense)))
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
        "llm_int8_skip_modules": _skipped(config, untouched, modules),
        "llm_int8_threshold": 6.0,
    }
    return {**config, KEY: declared}


def _skipped(config: Mapping[str, Any], untouched: Iterable[str], packed: Iterable[str]) -> list[str]:
    """Names by which loaders know the modules that stay dense: whole, and from the list of layers on, because a
    loader's modules may have another prefix than the file's tensors; and output heads, which may share the
    embedding's weight or be called otherwise in the file. Loaders also take an entry for the end or the beginning
    of a name, of `to_out` for `out`; where it is that of a packed module, only a pattern will do."""
    names = [name for one in packed for name in (one, *renamed(config, one))]
    taken = {part for module in names for part in _ends_and_beginnings(module)}
    shapes = "".join(f"{one}\n" for one in {_zeros(name) for name in names})  # few, however many layers there are
    found = set()
    for head in heads_of(config):
        plain = head.replace("\\.", ".")
        literal = plain == re.sub(r"[^\w.]", "", plain)
        if literal and not any(name.endswith(plain) or name.startswith(f"{plain}.") for name in names):
            found.add(plain)
        elif not any(re.fullmatch(rf"(.*\.)?{head}", name) for name in names):
            found.add(rf"^(.*\.)?{head}$")
    for module in dict.fromkeys(name for one in untouched for name in (one, *renamed(config, one))):
        tail = re.search(r"[^.]+\.\d+\..*", module)
        within = re.search(rf"[^.\n]{re.escape(_zeros(module))}\n", shapes) is not None
        found.add(f"^{re.escape(module)}$" if module in taken or within else module)
        if tail and tail[0] not in taken:
            found.add(rf"^(.*\.)?{re.escape(tail[0])}$" if within else tail[0])
    return sorted(found)


def _zeros(name: str) -> str:
    """A name with every number as 0."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "0", name)


def _ends_and_beginnings(module: str) -> Iterator[str]:
    """All that a module's name ends with, from a dot on, and begins with, up to one."""
    parts = module.split(".")
    for place in range(len(parts)):
        yield ".".join(parts[place:])
        yield ".".join(parts[: place + 1])


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
        elif name.endswith(".SCB"):
            found.append(_eight_bits(name.removesuffix(".SCB"), tensor, source))
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


def _eight_bits(module: str, scales: StoredTensor, source: Source) -> tuple[TensorSpec, Decoder]:
    """Rows of 8-bit codes as LLM.int8() saves them."""
    name = f"{module}.weight"
    codes = source.tensors.get(name)
    if codes is None or codes.spec.dtype != "I8" or len(codes.spec.shape) != 2:
        raise _refused("has no matrix of 8-bit codes beside its SCB", name, source)
    if (scales.spec.dtype, scales.spec.shape) != ("F32", codes.spec.shape[:1]):
        raise _refused("its SCB does not have a float for each row", name, source)
    form = source.tensors.get(f"{module}.weight_format")
    if form is not None and (form.spec.dtype not in ("U8", "I8") or _read(form, form.spec.size).any()):
        raise _refused("its 8-bit codes are not in the order of rows", name, source)
    dtype = model_dtype(source.config or {}) or "F16"
    return TensorSpec(name, dtype, codes.spec.shape), EightBits(8)


@dataclass(frozen=True)
class EightBits(StoredCodes):
    """LLM.int8(): w = q · SCB / 127, SCB the largest magnitude of the row (bitsandbytes, functional.py)."""

    id: ClassVar[str] = "bitsandbytes-8bit"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return Part("", "I8", spec.shape), Part(".SCB", "F32", spec.shape[:1], stem=True)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        np.copyto(out, parts[""])
        np.multiply(out, (parts[".SCB"].reshape(-1, 1) / np.float32(127)).astype(out.dtype), out=out)


def leftovers(source: Source, stored: Sequence[tuple[TensorSpec, Decoder]]) -> set[str]:
    """In which order 8-bit codes lie; read above."""
    return {name for name in source.tensors if name.endswith(".weight_format")}


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
