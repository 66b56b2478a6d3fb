"""The mixtures of ggml's types that llama.cpp knows: which tensor of a GGUF model gets which type.

The rules are those of llama-quantize (llama.cpp, src/llama-quant.cpp: `tensor_allows_quantization`,
`llama_tensor_get_type_impl`), as data: a mixture has a type for most tensors, and for kinds of tensors cases of
which the first that holds says another. What is done where a block does not divide a row the schemes say. Mixtures
whose types nobody writes here (IQ1, IQ2, IQ3) are not offered; the exceptions for `glm5-next` are not made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from compressor.core.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class GgmlModel:
    """What of a GGUF model's metadata the rules ask for. `queries`: heads of queries for each of keys and values in
    the first layer, 0 where that has none of these. `images`: it makes images, and has rules of its own."""

    architecture: str
    layers: int
    experts: int = 0
    queries: int = 1
    images: bool = False


class Kind(Enum):
    """What a tensor is to the rules."""

    OUTPUT = auto()
    EMBEDDING = auto()
    VALUE = auto()
    KEY = auto()
    ATTENTION_OUTPUT = auto()
    DOWN = auto()
    OTHER = auto()


_EXACT = {
    "output.weight": Kind.OUTPUT,
    "token_embd.weight": Kind.EMBEDDING,
    "per_layer_token_embd.weight": Kind.EMBEDDING,
}
_CONTAINS = (  # the first that a name contains
    ("attn_qkv.weight", Kind.VALUE),
    ("attn_kv_b.weight", Kind.VALUE),
    ("attn_v.weight", Kind.VALUE),
    ("attn_k.weight", Kind.KEY),
    ("attn_output.weight", Kind.ATTENTION_OUTPUT),
    ("ffn_down", Kind.DOWN),
)

# What stays as it is: norms, routers, and what is small
_LEFT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight"),
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
    *("attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd"),
    *(".patch_merger", "a.rvq.codebook", "mm.a.code_embd"),
)
_LEFT_EXACTLY = ("position_embd.weight", "token_types.weight")

_SEVENTY = {"deci": 80, "jais2": 68, "llama": 80, "olmo": 80, "qwen2": 80}  # layers of models that count as 70B


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor's place among those of its kind, of which there are so many (of down projections as many as layers),
    in a model; and whether an importance matrix is given."""

    number: int
    count: int
    model: GgmlModel
    informed: bool

    @property
    def more(self) -> bool:
        """In the first or the last eighth, or the third of three between."""
        first, last = self.count // 8, 7 * self.count // 8
        return self.number < first or self.number >= last or (self.number - first) % 3 == 2

    @property
    def falcon(self) -> bool:
        return self.model.architecture == "falcon"

    def holds(self, case: str) -> bool:
        """Whether a case of the table is this one's."""
        word, _, number = case.partition(" ")
        if word == "not":
            return not self.holds(number)
        if word == "first":
            return self.number < int(number)
        if word == "share":  # the first n-th
            return self.number < self.count // int(number)
        found: bool = {
            "always": True,
            "more": self.more,
            "grouped": self.model.queries >= 4,
            "eight": self.model.experts == 8,
            "falcon": self.falcon,
            "informed": self.informed,
        }[word]
        return found


# Of each kind and mixture: cases, all of whose words hold, and the type that they get
_Cases = Sequence[tuple[tuple[str, ...], str]]
_ALWAYS = ("always",)
_CASES: Mapping[Kind, Mapping[str, _Cases]] = {
    Kind.EMBEDDING: {"tq1_0": ((_ALWAYS, "q4_k"),), "tq2_0": ((_ALWAYS, "q4_k"),)},
    Kind.VALUE: {
        "q2_k": ((("grouped",), "q4_k"), (_ALWAYS, "q3_k")),
        "q2_k_s": ((("grouped",), "q4_k"),),
        "q3_k_m": ((("first 2",), "q5_k"), (_ALWAYS, "q4_k")),
        "q3_k_l": ((_ALWAYS, "q5_k"),),
        "q4_k_s": ((("first 4",), "q5_k"),),
        "q4_k_m": ((("more",), "q6_k"),),
        "q5_k_m": ((("more",), "q6_k"),),
        "iq4_nl": ((("grouped",), "q5_k"),),
        "iq4_xs": ((("grouped",), "q5_k"),),
    },
    Kind.DOWN: {
        "q2_k": ((_ALWAYS, "q3_k"),),
        "q2_k_s": ((("share 8",), "q4_k"),),
        "q3_k_m": ((("share 16",), "q5_k"), (("not falcon",), "q4_k"), (("more",), "q4_k")),
        "q3_k_l": ((("falcon",), "q4_k"), (_ALWAYS, "q5_k")),
        "q4_k_s": ((("not falcon", "share 8"), "q5_k"),),
        "q4_k_m": (
            (("falcon", "share 16"), "q6_k"),
            (("falcon", "more"), "q5_k"),
            (("not falcon", "more"), "q6_k"),
        ),
        "q5_k_m": ((("more",), "q6_k"),),
        "iq4_nl": ((("share 8", "not informed"), "q5_k"),),
        "iq4_xs": ((("share 8", "not informed"), "q5_k"),),
        "q4_0": ((("share 8", "informed"), "q4_1"),),
        "q5_0": ((("share 8", "informed"), "q5_1"),),
    },
    Kind.ATTENTION_OUTPUT: {
        **dict.fromkeys(("q3_k_s", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"), ((("not falcon", "eight"), "q5_k"),)),
        "q2_k": ((("not falcon", "eight"), "q5_k"), (("not falcon",), "q3_k")),
        "q3_k_m": ((("not falcon", "eight"), "q5_k"), (("not falcon",), "q4_k")),
        "q3_k_l": ((("falcon",), "q4_k"), (("not eight",), "q5_k")),
    },
}

FILE_TYPES: Mapping[str, int] = {  # what a file of each mixture calls itself (llama.h: enum llama_ftype)
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "q2_k_s": 21,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "tq1_0": 36,
    "tq2_0": 37,
    "mxfp4_moe": 38,
}

_LAYER = re.compile(r"blk\.(\d{1,6})\.")


def kind_of(name: str) -> Kind:
    """What a tensor of this name is to the rules."""
    return _EXACT.get(name) or next((kind for text, kind in _CONTAINS if text in name), Kind.OTHER)


def is_quantized(spec: TensorSpec) -> bool:
    """Whether llama.cpp quantizes this tensor at all."""
    matrix = any(size > 1 for size in spec.shape[:-1])
    left = spec.name in _LEFT_EXACTLY or any(text in spec.name for text in _LEFT)
    return matrix and spec.name.endswith("weight") and not left


def _order(spec: TensorSpec) -> tuple[int, str]:
    """llama.cpp's order of tensors: by layer, then by name."""
    found = _LAYER.match(spec.name)
    return (-1 if found is None else int(found[1])), spec.name


def mixture(
    preset: str, usual: str, specs: Iterable[TensorSpec], model: GgmlModel, *, informed: bool
) -> dict[str, str]:
    """The scheme of each tensor that llama.cpp quantizes, by its name; of most it is the `usual` one of the preset.
    `informed`: an importance matrix is given."""
    ordered = sorted(specs, key=_order)
    kinds = {spec.name: kind_of(spec.name) for spec in ordered}
    tied = Kind.OUTPUT not in kinds.values()
    counts = {Kind.VALUE: sum(kind is Kind.VALUE for kind in kinds.values()), Kind.DOWN: model.layers}
    numbers = dict.fromkeys(Kind, 0)
    found = {}
    for spec in filter(is_quantized, ordered):
        kind = kinds[spec.name]
        number = numbers[kind]
        numbers[kind] += 1
        if kind is Kind.DOWN and model.experts > 1:  # several of one layer
            number = max(_order(spec)[0], 0)
        place = _Place(number, counts.get(kind, 0), model, informed)
        is_head = kind is Kind.OUTPUT or (tied and kind is Kind.EMBEDDING)
        found[spec.name] = _head(usual, spec, place) if is_head else _layer(preset, usual, spec, kind, place)
    return found


def _head(usual: str, spec: TensorSpec, place: _Place) -> str:
    """Of the output head, and of an embedding that is one too."""
    if usual in ("f16", "bf16"):
        return usual
    block = 32 if usual in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "ggml-mxfp4") else 256
    if usual in ("q8_0", "ggml-mxfp4") or place.falcon or spec.shape[-1] % block:
        return "q8_0"
    return "q6_k"


def _layer(preset: str, usual: str, spec: TensorSpec, kind: Kind, place: _Place) -> str:
    model = place.model
    if preset == "mxfp4_moe":
        return "ggml-mxfp4" if len(spec.shape) > 2 and spec.shape[-3] > 1 else "q8_0"
    cases = _CASES.get(kind, {}).get(preset, ())
    scheme = next((other for words, other in cases if all(map(place.holds, words))), usual)
    if usual in ("f16", "bf16"):
        return usual
    if kind is Kind.VALUE and scheme in ("q3_k", "q4_k") and _is_seventy(model):
        scheme = "q5_k"
    return "q8_0" if kind in (Kind.VALUE, Kind.KEY) and model.experts == 8 else scheme


def _is_seventy(model: GgmlModel) -> bool:
    """Whether llama.cpp takes a model for one of 70 billion weights, whose value projections are small."""
    apart = model.architecture != "llama" or model.queries != 1
    return _SEVENTY.get(model.architecture) == model.layers and apart
