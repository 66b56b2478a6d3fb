"""What llama.cpp has to know of a model beside its tensors: from a config.json to metadata, and back.

Most of it is a number under another name (`_SAME`); the rest depends on the kind of model. Where a config asks for
something that llama.cpp does not compute, the model is refused (`refusals`); where it computes the same up to some
length of text only, that is the context of the file, and said (`remarks`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compressor.architectures.gguf.families import FAMILIES, Family
from compressor.architectures.model_types import model_types
from compressor.core.elementary import log2, power

Config = Mapping[str, Any]
Metadata = dict[str, Any]  # ints, floats, bools, texts and lists of one of them

# A key without the architecture, and what configs call it; what a restored config calls it comes first
_SAME: Mapping[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "n_positions", "n_ctx"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "vocab_size": ("vocab_size",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_shared_count": ("n_shared_experts",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "expert_weights_norm": ("norm_topk_prob",),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "attention.q_lora_rank": ("q_lora_rank",),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling",),
}
_FLOATS = frozenset(
    (
        *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "expert_weights_scale"),
        *("attn_logit_softcapping", "final_logit_softcapping", "attention.scale", "embedding_scale"),
        *("residual_scale", "logit_scale"),
    )
)
_RMS = "attention.layer_norm_rms_epsilon"
_BASE = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
_TEXT = (*_BASE, "attention.head_count_kv", "vocab_size")
_MOE = ("expert_count", "expert_used_count")
# The keys of `_SAME` that each of GGUF's architectures has
_KEYS: Mapping[str, tuple[str, ...]] = {
    "llama": (*_TEXT, _RMS, *_MOE),
    "qwen2": (*_TEXT, _RMS),
    "qwen2moe": (*_TEXT, _RMS, *_MOE, "expert_feed_forward_length", "expert_shared_feed_forward_length"),
    "qwen3": (*_TEXT, _RMS),
    "qwen3moe": (*_TEXT, _RMS, *_MOE, "expert_feed_forward_length"),
    "gemma": (*_TEXT, _RMS),
    "gemma2": (*_TEXT, _RMS, "attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
    "gemma3": (*_TEXT, _RMS, "attention.sliding_window", "final_logit_softcapping"),
    "phi3": (*_TEXT, _RMS, "attention.sliding_window"),
    "gpt-oss": (*_TEXT, _RMS, *_MOE, "attention.sliding_window"),
    "deepseek2": (
        *(*_TEXT, _RMS, *_MOE, "expert_feed_forward_length", "expert_shared_count", "expert_weights_scale"),
        *("expert_weights_norm", "expert_group_count", "expert_group_used_count", "leading_dense_block_count"),
        *("attention.q_lora_rank", "attention.kv_lora_rank"),
    ),
    "bert": (*_BASE, "attention.layer_norm_epsilon", "vocab_size"),
    "nomic-bert": (*_BASE, "attention.layer_norm_epsilon", "vocab_size"),
    "gpt2": (*_BASE, "attention.layer_norm_epsilon", "vocab_size"),
    "starcoder2": (*_TEXT, "attention.layer_norm_epsilon"),
    "granite": (*_TEXT, _RMS, "attention.scale", "embedding_scale", "residual_scale", "logit_scale"),
    "olmo2": (*_TEXT, _RMS),
    "smollm3": (*_TEXT, _RMS),
}
# What transformers takes where a config does not say
_DEFAULTS: Mapping[str, float] = {
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": 1e-12,
    "layer_norm_epsilon": 1e-5,
    "norm_epsilon": 1e-5,
}
_GPT2_NAMES: Mapping[str, str] = {  # what a restored config of GPT-2 calls them
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "num_attention_heads": "n_head",
    "layer_norm_eps": "layer_norm_epsilon",
}
_SILU, _GELU_TANH = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh")
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "gemma": (*_GELU_TANH, "gelu"),  # by which Gemma's first config meant the other one
    "gemma2": _GELU_TANH,
    "gemma3": _GELU_TANH,
    "bert": ("gelu", *_GELU_TANH),
    "nomic-bert": (*_SILU, "swiglu"),
    "gpt2": _GELU_TANH,
    "starcoder2": _GELU_TANH,
}
_NO_ROPE = ("bert", "gpt2")
# Whose heads together are as wide as the model to llama.cpp
_SQUARE = ("qwen2", "qwen2moe", "starcoder2", "olmo2", "phi3")
_THETA: Mapping[str, float] = {  # where a config does not say rope_theta: what transformers takes, 10000 for others
    "mixtral": 1e6,
    "gemma3_text": 1e6,
    "smollm3": 2e6,
    "gpt_oss": 150000.0,
    "nomic_bert": 1000.0,
}
_LLAMA3_FACTORS = ("llama", "granite")  # whose loaders take rope_freqs.weight
_SWA_EVERY: Mapping[str, int] = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}  # each so-manieth layer sees everything
# Layers of the models whose queries are divided by the width of all heads and not by that of one
_WIDE: Mapping[str, int] = {"gemma2": 46, "gemma3": 62}
_ASKED_TO_SLIDE = ("qwen2", "qwen2moe", "qwen3", "qwen3moe", "smollm3")  # windows only with use_sliding_window
_SAME_FREQUENCY = 1e-5
SIGMOID, SOFTMAX = 2, 1
_LN2 = 0.6931471805599453
_MOST_EXPERTS, _LARGEST = 4096, 3e38
# What reading a config or metadata of strangers may end in: values of other types than models have
NONSENSE = (TypeError, ValueError, KeyError, AttributeError, ArithmeticError)


def family_of(config: Config) -> Family | None:
    """The family of the model that a config.json describes, or of a text model inside it; None for others."""
    known = {family.model_type: family for family in FAMILIES}
    return next((known[name] for name in model_types(config) if name in known), None)


def text_config(config: Config, family: Family) -> dict[str, Any]:
    """The config of the text model: the whole, or what stands inside it over what stands outside."""
    for inner in config.values():
        if isinstance(inner, dict) and inner.get("model_type") == family.model_type:
            return {**config, **inner}
    return dict(config)


def _get(config: Config, key: str) -> Any:
    return next((config[name] for name in _SAME[key] if config.get(name) is not None), None)


def _count(config: Config, key: str) -> int:
    """A count; 0 where the config does not say one, or nonsense."""
    found = _get(config, key)
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 31 else 0


def head_size(config: Config) -> int:
    """Rows of one head of queries."""
    found = config.get("head_dim")
    if isinstance(found, int) and found > 0:
        return found
    return _count(config, "embedding_length") // max(_count(config, "attention.head_count"), 1)


def layers(config: Config) -> int:
    """Layers of the model, without those that guess further tokens."""
    return _count(config, "block_count")


def sparse_from(config: Config, family: Family) -> int:
    """The first layer that has experts; those before it are dense."""
    if family.gguf != "deepseek2":
        return 0
    return min(_count(config, "leading_dense_block_count"), layers(config))


def sizes(config: Config, family: Family) -> dict[str, int]:
    """Sizes of the tensors' axes, by the letters of `families.py`; of DeepSeek also `nope` and `value`, the rows of
    a head of keys that are not rotated, and of values."""
    heads, width = _count(config, "attention.head_count"), _count(config, "embedding_length")
    head, inner = head_size(config), _count(config, "feed_forward_length")
    keys = _count(config, "attention.head_count_kv") or heads
    if family.gguf == "gpt2":
        inner = inner or 4 * width
    found = {"V": _count(config, "vocab_size"), "H": width, "F": inner, "N": heads, "D": head, "1": 1}
    found |= {"Q": heads * head, "K": keys * head, "P": _count(config, "context_length")}
    found |= {"T": int(config.get("type_vocab_size") or 2), "E": _count(config, "expert_count")}
    found |= {"M": _count(config, "expert_feed_forward_length")}
    found["S"] = _count(config, "expert_shared_feed_forward_length")
    if family.gguf == "deepseek2":
        rotated, plain, value = (
            int(config.get(key) or 0) for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        )
        found |= {"L": _count(config, "attention.kv_lora_rank"), "R": rotated, "nope": plain, "value": value}
        found |= {"A": _count(config, "attention.q_lora_rank"), "X": heads * (plain + rotated)}
        found |= {"B": heads * (plain + value), "O": heads * value}
        found["S"] = found["M"] * _count(config, "expert_shared_count")
    return found


def possible(sizes: Mapping[str, int], layers: int, tensors: int) -> bool:
    """Whether a model of these sizes and layers could have so many tensors: no more layers than tensors, and heads
    that have rows."""
    heads = min(sizes["N"], sizes["H"], sizes["D"]) > 0 and sizes["E"] <= _MOST_EXPERTS
    return heads and 0 < layers <= tensors


def metadata(config: Config, family: Family) -> Metadata:
    """The keys of GGUF that describe the model, but for the tokenizer. ValueError for numbers that no model has."""
    arch = family.gguf
    found: Metadata = {}
    for key in _KEYS[arch]:
        value = _get(config, key)
        if value is None and key == "attention.head_count_kv":
            value = _get(config, "attention.head_count")
        if value is None:
            value = next((_DEFAULTS[name] for name in _SAME[key] if name in _DEFAULTS), None)
        if value is not None:
            found[key] = float(value) if key in _FLOATS else value
    found |= _special(config, family)
    if arch not in _NO_ROPE:
        found |= _rope(config, family)
    if (limit := _same_up_to(config, family)) is not None:
        found["context_length"] = limit[0]
    for key, value in found.items():
        if value is not None and not _storable(value):
            raise ValueError(f"{key} would be {value!r}")
    return {f"{arch}.{key}": value for key, value in found.items() if value is not None}


def _storable(value: object) -> bool:
    """Whether a value is one that these keys have: a text, a truth value, a count or a finite number."""
    if isinstance(value, int):
        return 0 <= value < 1 << 32
    return isinstance(value, str) or (isinstance(value, float) and abs(value) < _LARGEST)


def _special(config: Config, family: Family) -> Metadata:
    """What is no number of the config under another name."""
    arch, head, found = family.gguf, head_size(config), Metadata()
    if arch in ("bert", "nomic-bert"):
        return {"attention.causal": False}
    if arch == "gpt2":
        return {"feed_forward_length": sizes(config, family)["F"]}
    if arch == "deepseek2":
        named = sizes(config, family)
        found |= {"attention.head_count_kv": 1, "attention.key_length": named["L"] + named["R"]}
        found |= {"attention.value_length": named["L"], "attention.key_length_mla": named["nope"] + named["R"]}
        found |= {"attention.value_length_mla": named["value"], "expert_gating_func": _gating(config, family)}
        if not _by_groups(config, family):  # among all experts, whatever groups there are
            found |= {"expert_group_count": None, "expert_group_used_count": None}
        return found | {"leading_dense_block_count": sparse_from(config, family)}
    if arch == "gpt-oss":
        found["expert_feed_forward_length"] = _count(config, "feed_forward_length")
    if arch == "phi3":
        found["attention.sliding_window"] = config.get("sliding_window") or 0
    return found | {"attention.key_length": head, "attention.value_length": head}


def _by_groups(config: Config, family: Family) -> bool:
    """Whether experts are chosen among those of the best groups only."""
    groups = _count(config, "expert_group_count")
    if family.model_type == "deepseek_v2" and config.get("topk_method") in (None, "greedy"):
        return False
    return groups > 1 and _count(config, "expert_group_used_count") < groups


def _gating(config: Config, family: Family) -> int:
    said = config.get("scoring_func")
    return SIGMOID if said == "sigmoid" or (said is None and family.model_type == "deepseek_v3") else SOFTMAX


# ---- rotated positions ---------------------------------------------------------------------------------


def rope_of(config: Config, kind: str = "full_attention") -> dict[str, Any]:
    """How positions rotate, as newer configs say it (`rope_parameters`), whichever way this one does; where there
    are two kinds of attention, for one of them."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    said = said if isinstance(said, dict) else {}
    found = dict(said.get(kind, said)) if isinstance(said.get(kind, said), dict) else {}
    if kind == "sliding_attention" and kind not in said:
        return {"rope_type": "default", "rope_theta": config.get("rope_local_base_freq", 10000.0)}
    found.setdefault("rope_type", found.get("type") or "default")
    for name in ("rope_theta", "rotary_emb_base"):
        if config.get(name) is not None:
            found.setdefault("rope_theta", config[name])
    found.setdefault("rope_theta", _THETA.get(str(config.get("model_type")), 10000.0))
    found.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if config.get("original_max_position_embeddings") is not None:
        found.setdefault("original_max_position_embeddings", config["original_max_position_embeddings"])
    return found


def _rope(config: Config, family: Family) -> Metadata:
    rope, arch = rope_of(config), family.gguf
    found: Metadata = {"rope.freq_base": float(rope["rope_theta"])}
    rotated = int(config.get("qk_rope_head_dim") or 0) if arch == "deepseek2" else head_size(config)
    found["rope.dimension_count"] = int(rotated * float(rope["partial_rotary_factor"] or 1.0))
    kind, factor = rope["rope_type"], _factor(config, rope)
    if arch == "gemma3":
        found["rope.freq_base_swa"] = float(rope_of(config, "sliding_attention")["rope_theta"])
    if kind == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor or 1.0)}
    elif kind == "yarn":
        original = rope.get("original_max_position_embeddings") or _count(config, "context_length")
        found |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(factor or 1.0)}
        found["rope.scaling.original_context_length"] = int(original)
        if arch == "deepseek2":
            found["rope.scaling.yarn_log_multiplier"] = 0.1 * float(rope["mscale_all_dim"])
        else:
            found |= _attention_factor(rope, float(factor or 1.0))
    elif kind in ("longrope", "su"):
        found |= _longrope(config, rope)
    elif arch == "phi3":
        found["rope.scaling.original_context_length"] = (
            int(rope.get("original_max_position_embeddings") or 0) or None
        )
    return found


def _factor(config: Config, rope: Config) -> Any:
    """How much longer texts may be than those that the model was trained on."""
    original = rope.get("original_max_position_embeddings")
    if rope.get("factor") is None and rope["rope_type"] == "yarn" and original:
        return _count(config, "context_length") / int(original)
    return rope.get("factor")


def _attention_factor(rope: Config, factor: float) -> Metadata:
    """What llama.cpp multiplies rotated queries and keys by, beside what YaRN says for this factor, where that is
    not all (transformers, modeling_rope_utils.py: _compute_yarn_parameters)."""
    usual, wanted = _mscale(factor, 1.0), rope.get("attention_factor")
    if wanted is None:
        both = [float(rope.get(key) or 0) for key in ("mscale", "mscale_all_dim")]
        wanted = _mscale(factor, both[0]) / _mscale(factor, both[1]) if all(both) else usual
    return {} if float(wanted) == usual else {"rope.scaling.attn_factor": float(wanted) / usual}


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * float(log2(factor)) * _LN2 + 1.0


def _longrope(config: Config, rope: Config) -> Metadata:
    most = _count(config, "context_length")
    original = int(rope.get("original_max_position_embeddings") or most)
    said = rope.get("factor")
    scale = most / max(original, 1) if said is None else float(said)
    factor = rope.get("attention_factor")
    if factor is None:
        factor = math.sqrt(1 + float(log2(scale) / log2(original))) if scale > 1 else 1.0
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(factor),
    }


def frequency_factors(config: Config, family: Family) -> dict[str, list[float]]:
    """Tensors that say what each frequency is divided by (llama3, longrope), by their names."""
    rope = rope_of(config)
    if rope["rope_type"] in ("longrope", "su"):
        named = (("rope_factors_long.weight", "long_factor"), ("rope_factors_short.weight", "short_factor"))
        return {name: [float(one) for one in rope.get(key) or ()] for name, key in named}
    if rope["rope_type"] != "llama3" or family.gguf not in _LLAMA3_FACTORS:
        return {}
    return {"rope_freqs.weight": llama3_factors(rope, head_size(config))}


def llama3_factors(rope: Config, head: int) -> list[float]:
    """What Llama 3.1 divides its frequencies by: long waves by `factor`, short ones by 1, others by what lies
    between (transformers, modeling_rope_utils.py: _compute_llama3_parameters)."""
    factor, low = float(rope["factor"]), float(rope["low_freq_factor"])
    high, original = float(rope["high_freq_factor"]), float(rope["original_max_position_embeddings"])
    found = []
    for pair in range(0, head, 2):
        wave = 2 * math.pi * float(power(float(rope["rope_theta"]), pair / head))
        if wave < original / high:
            found.append(1.0)
        elif wave > original / low:
            found.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def llama3_rope(factors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """What a config says of Llama 3's frequencies by what they are divided by, the way back from `llama3_factors`;
    None where there is no such way. Models of Meta's are known by name; of others the factors between tell where
    they begin and end, as multiples of which only the quotient counts: `low_freq_factor` is 1."""
    known = [(factor, 4.0, 8192.0) for factor in (8.0, 32.0, 16.0, 4.0, 2.0)]
    for factor, high, original in [*known, *_between(factors, theta)]:
        rope = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high}
        rope["original_max_position_embeddings"] = original
        meant = llama3_factors({**rope, "rope_theta": theta}, 2 * len(factors))
        if all(abs(a - b) <= 1e-4 * b for a, b in zip(factors, meant, strict=True)):
            whole = int(original) if original.is_integer() else original
            return {"rope_type": "llama3", **rope, "original_max_position_embeddings": whole}
    return None


def _between(factors: Sequence[float], theta: float) -> Iterator[tuple[float, float, float]]:
    """`factor`, `high_freq_factor` and `original_max_position_embeddings` by the first and last of the factors that
    lie between 1 and the largest: 1 / f is linear in the frequency there."""
    most = max(factors)
    inside = [number for number, one in enumerate(factors) if 1.0001 < one < most * 0.9999]
    points = []
    for number in inside:
        wave = 2 * math.pi * float(power(theta, number / len(factors)))
        points.append((1 / wave, (1 / factors[number] - 1 / most) / (1 - 1 / most)))
    if len(points) == 1:  # anything that goes through it
        yield most, 4.0, (3 * points[0][1] + 1) / points[0][0]
    if len(points) < 2:
        return
    (x, smooth), (other, less) = points[0], points[-1]
    slope = (smooth - less) / (x - other)  # original / (high - low)
    shift = slope * x - smooth  # low / (high - low)
    if not (slope > 0 and shift > 0):
        return
    original = slope / shift
    for guess in (float(round(original)), original):
        yield most, 1 + guess / slope, guess


# ---- what llama.cpp does not do ------------------------------------------------------------------------


def refusals(config: Config, family: Family) -> Iterator[str]:
    """What this config asks for that llama.cpp would compute otherwise."""
    arch = family.gguf
    for key in (*_BASE[1:3], "attention.head_count"):
        if not _count(config, key):
            yield f"config.json does not say {_SAME[key][0]}"
    act = config.get("hidden_activation") or config.get("hidden_act") or config.get("activation_function")
    allowed = _ACTIVATIONS.get(arch, _SILU)
    if act is not None and act not in allowed:
        yield f"its activation is {act!r}, and llama.cpp computes {allowed[0]} for {arch}"
    yield from _rope_refusals(config, family)
    yield from _layer_refusals(config, family)
    normed = config.get("norm_topk_prob")
    if arch in ("qwen2moe", "qwen3moe") and normed is not None and bool(normed) != (arch == "qwen3moe"):
        yield f"norm_topk_prob is {normed}, and llama.cpp computes {arch} otherwise"
    if arch in _WIDE:
        said, head = config.get("query_pre_attn_scalar"), head_size(config)
        wide = _count(config, "embedding_length") // max(_count(config, "attention.head_count"), 1)
        meant = wide if layers(config) == _WIDE[arch] else head
        if said is not None and said != meant:
            yield f"query_pre_attn_scalar is {said}, and llama.cpp computes with {meant}"
    if arch in _SQUARE and head_size(config) * _count(config, "attention.head_count") != _get(
        config, "embedding_length"
    ):
        yield f"its heads together are not as wide as the model, which llama.cpp wants of {arch}"
    if family.head == "embedding" and config.get("tie_word_embeddings") is False:
        yield f"its head is another than its embedding, which is what llama.cpp computes {arch} with"
    yield from _attention_refusals(config, arch)
    if arch == "gpt-oss" and config.get("swiglu_limit", 7.0) not in (7, 7.0):
        yield f"swiglu_limit is {config['swiglu_limit']}, and llama.cpp computes with 7"
    if arch == "bert" and config.get("position_embedding_type", "absolute") != "absolute":
        yield f"position_embedding_type is {config['position_embedding_type']!r}, and llama.cpp knows absolute ones"


def _attention_refusals(config: Config, arch: str) -> Iterator[str]:
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    if arch == "gemma2":
        absent = [key for key in caps if key in config and not config[key]]
        yield from (f"{key} is {config[key]}, and llama.cpp caps what it computes for gemma2" for key in absent)
    if arch == "gemma3" and config.get(caps[0]):
        yield f"{caps[0]} is {config[caps[0]]}, and llama.cpp has none for gemma3"
    if arch == "gemma3" and config.get("use_bidirectional_attention"):
        yield "use_bidirectional_attention is set: its tokens see those that follow, and in llama.cpp's gemma3 not"
    if arch == "gpt2" and config.get("scale_attn_by_inverse_layer_idx"):
        yield "scale_attn_by_inverse_layer_idx is set, and llama.cpp scales all layers alike"
    if arch == "gpt2" and config.get("scale_attn_weights") is False:
        yield "scale_attn_weights is false, and llama.cpp scales what queries and keys give"
    if arch == "bert" and config.get("is_decoder"):
        yield "is_decoder is set: its tokens see none that follow, and in llama.cpp's bert they do"
    if arch == "starcoder2" and config.get("use_bias") is False:
        yield "use_bias is false, and llama.cpp wants biases of starcoder2"


def _rope_refusals(config: Config, family: Family) -> Iterator[str]:
    arch = family.gguf
    if arch in _NO_ROPE:
        return
    rope = rope_of(config)
    kind, partial = rope["rope_type"], rope["partial_rotary_factor"]
    known = {"default", "linear", "yarn"} | ({"longrope", "su"} if arch == "phi3" else set())
    if arch == "deepseek2":  # which scales attention by the factor, whatever the kind
        known.remove("linear")
    if arch in _LLAMA3_FACTORS:
        known.add("llama3")
    if kind not in known:
        yield f"its rope_type is {kind!r}, which llama.cpp does not compute for {arch}"
    elif kind == "llama3":
        wanted = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        yield from (f"its rope_parameters do not say {name}" for name in wanted if rope.get(name) is None)
    if partial not in (None, 1, 1.0) and arch != "phi3":
        yield f"partial_rotary_factor is {partial}, and llama.cpp rotates all of a head for {arch}"
    if kind == "yarn":
        yield from _yarn_refusals(rope, arch)
    if arch == "deepseek2" and config.get("rope_interleave") is False:
        yield "rope_interleave is false, and llama.cpp rotates neighbours"


def _yarn_refusals(rope: Config, arch: str) -> Iterator[str]:
    for key, usual in (("beta_fast", 32), ("beta_slow", 1)):
        if rope.get(key) not in (None, 0, usual):
            yield f"{key} of its YaRN is {rope[key]}, and llama.cpp computes {arch} with {usual}"
    if arch != "deepseek2":
        return
    scale = rope.get("mscale_all_dim")
    if not scale or rope.get("mscale") != scale or rope.get("attention_factor") not in (None, 1, 1.0):
        yield "mscale and mscale_all_dim of its YaRN are not one number, with which llama.cpp computes deepseek2"


def _layer_refusals(config: Config, family: Family) -> Iterator[str]:
    arch, count = family.gguf, layers(config)
    every, kinds = _SWA_EVERY.get(arch), config.get("layer_types")
    if every is not None and isinstance(kinds, list):
        meant = ["full_attention" if (n + 1) % every == 0 else "sliding_attention" for n in range(count)]
        if kinds != meant:
            yield f"its layer_types are not those of {arch}: every {every}th sees everything, the others a window"
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
    if arch == "gemma3" and not isinstance(kinds, list) and pattern not in (None, every):
        yield f"its sliding_window_pattern is {pattern}, and llama.cpp lets every {every}th layer see everything"
    if family.model_type == "deepseek_v2" and _by_groups(config, family):
        yield (
            "its topk_method is group_limited_greedy: it chooses groups of experts by the best one of each, and "
            "llama.cpp by the best two"
        )
    if family.model_type == "deepseek_v2" and config.get("norm_topk_prob"):
        yield "norm_topk_prob is set, by which transformers and llama.cpp compute deepseek_v2 differently"
    if arch == "smollm3":
        said, interval = config.get("no_rope_layers"), config.get("no_rope_layer_interval", 4)
        rotated = [int((n + 1) % 4 != 0) for n in range(count)]
        if said != rotated if said is not None else interval != 4:
            yield "its no_rope_layers are not every fourth, which is what llama.cpp computes"
    if arch in ("qwen2moe", "qwen3moe") and (
        config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1
    ):
        yield "some of its layers have no experts, and llama.cpp wants them in all"
    if arch == "deepseek2" and not config.get("q_lora_rank") and count not in (26, 27):
        yield "it has no q_lora_rank, which llama.cpp wants of all but DeepSeek-V2-Lite (27 layers)"


def remarks(config: Config, family: Family) -> Iterator[str]:
    """Where llama.cpp computes the same up to some length of text only, which is then the file's."""
    limit = _same_up_to(config, family)
    if limit is not None:
        tokens, why = limit
        key = f"{family.gguf}.context_length"
        yield (
            f"{key} is {tokens}, and max_position_embeddings {_count(config, 'context_length')}: {why}, so that "
            "longer texts would be computed otherwise"
        )


def _same_up_to(config: Config, family: Family) -> tuple[int, str] | None:
    """How many tokens a text may have of which llama.cpp computes the same, and why, where that is less than the
    model reads."""
    whole = _count(config, "context_length")
    window, rope = _window(config, family), rope_of(config)
    if window:
        return window, f"llama.cpp has no sliding window for {family.gguf}"
    if rope["rope_type"] in ("longrope", "su"):
        original = rope.get("original_max_position_embeddings")
        if isinstance(original, int) and 0 < original < whole:
            return original, "llama.cpp takes the factors for long texts by its context, not by the text"
    return None


def _window(config: Config, family: Family) -> int:
    """How many tokens a layer sees that in llama.cpp sees more; 0 where all layers see as much in both."""
    if family.gguf in (*_SWA_EVERY, *_NO_ROPE, "olmo2", "nomic-bert"):
        return 0
    asked = family.gguf in _ASKED_TO_SLIDE
    if asked and not config.get("use_sliding_window"):
        return 0
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if not isinstance(window, int) or not 0 < window < _count(config, "context_length"):
        return 0
    if isinstance(kinds, list):
        return window if "sliding_attention" in kinds else 0
    first = config.get("max_window_layers", 28) if family.gguf in ("qwen2", "qwen3") else 0
    return window if not isinstance(first, int) or first < layers(config) else 0


def frequencies_apart(config: Config, family: Family) -> float:
    """The largest part by which a frequency is another in llama.cpp, which rounds the bounds between which YaRN
    scales them, where the model does not; 0 where that is nothing to speak of."""
    rope = rope_of(config)
    if family.gguf in _NO_ROPE or rope["rope_type"] != "yarn" or rope.get("truncate") is not False:
        return 0.0
    apart = _rounding(config, rope)
    return apart if apart > _SAME_FREQUENCY else 0.0


def _rounding(config: Config, rope: Config) -> float:
    """The largest part by which a frequency is another where the bounds between which YaRN scales them are rounded
    down and up (llama.cpp), or are not (transformers, modeling_rope_utils.py: _compute_yarn_parameters)."""
    width, theta = int(config.get("qk_rope_head_dim") or head_size(config)), float(rope["rope_theta"])
    factor = float(_factor(config, rope) or 1.0)
    original = float(rope.get("original_max_position_embeddings") or _count(config, "context_length"))

    def bound(turns: float) -> float:
        return width * float(log2(original / (turns * 2 * math.pi))) / (2 * float(log2(theta)))

    low, high = bound(float(rope.get("beta_fast") or 32)), bound(float(rope.get("beta_slow") or 1))
    pairs = [(low, high), (float(math.floor(low)), float(math.ceil(high)))]
    apart = 0.0
    for pair in range(width // 2):
        kept = []
        for first, last in pairs:
            first, last = max(first, 0.0), min(last, width - 1.0)
            ramp = min(max((pair - first) / max(last - first, 0.001), 0.0), 1.0)
            kept.append((1 - ramp) + ramp / factor)
        apart = max(apart, abs(kept[1] / kept[0] - 1))
    return apart


# ---- back ----------------------------------------------------------------------------------------------


def family_of_gguf(arch: str, found: Config) -> Family | None:
    """The family that a file of this `general.architecture` is read as."""
    if arch == "llama" and found.get("llama.expert_count"):
        return next(family for family in FAMILIES if family.model_type == "mixtral")
    if arch == "deepseek2" and found.get("deepseek2.expert_gating_func") == SIGMOID:
        return next(family for family in FAMILIES if family.model_type == "deepseek_v3")
    return next((family for family in FAMILIES if family.gguf == arch), None)


def config_of(found: Config, family: Family, *, tied: bool) -> dict[str, Any]:
    """A config.json for the model that metadata describes; `tied`: whether its head is the embedding."""
    arch = family.gguf
    said = {key.removeprefix(f"{arch}."): value for key, value in found.items() if key.startswith(f"{arch}.")}
    config: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    for key in _KEYS[arch]:
        if key in said:
            config[_config_name(key, family)] = said[key]
    config["tie_word_embeddings"] = tied
    heads, width = _count(config, "attention.head_count"), _count(config, "embedding_length")
    head = said.get("attention.key_length")
    if head is not None and arch not in ("deepseek2", "bert", "nomic-bert", "gpt2"):
        config["head_dim"] = head
    if arch == "deepseek2":
        config |= _latent_config(said, heads)
    if arch in _WIDE:
        wide = width // max(heads, 1) if config.get("num_hidden_layers") == _WIDE[arch] else head
        config["query_pre_attn_scalar"] = wide
    if arch in ("qwen2moe", "qwen3moe"):
        config["norm_topk_prob"] = arch == "qwen3moe"  # which llama.cpp need not be told
    if arch == "phi3" and not config.get("sliding_window"):
        config["sliding_window"] = None
    rotated = said.get("rope.dimension_count")
    if arch == "phi3" and rotated and head and rotated != head:
        config["partial_rotary_factor"] = rotated / head
    if arch not in _NO_ROPE:
        config |= _rope_config(said, arch)
    return config


def _config_name(key: str, family: Family) -> str:
    """What the config of a family calls a key."""
    name = _SAME[key][0]
    if family.gguf == "gpt2":
        return _GPT2_NAMES.get(name, name)
    if key == "attention.layer_norm_epsilon" and family.gguf == "starcoder2":
        return "norm_epsilon"
    if key == "expert_count":
        return {"qwen2moe": "num_experts", "qwen3moe": "num_experts", "deepseek2": "n_routed_experts"}.get(
            family.gguf, name
        )
    return name


def _latent_config(said: Config, heads: int) -> dict[str, Any]:
    rotated = int(said.get("rope.dimension_count") or 0)
    found = {
        "num_key_value_heads": heads,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": int(said.get("attention.key_length_mla") or 0) - rotated,
        "v_head_dim": said.get("attention.value_length_mla"),
        "q_lora_rank": said.get("attention.q_lora_rank"),
    }
    if said.get("expert_gating_func") == SIGMOID:
        return found | {"scoring_func": "sigmoid"}
    groups = int(said.get("expert_group_count") or 1)
    return found | {"topk_method": "group_limited_greedy" if groups > 1 else "greedy"}


def _rope_config(said: Config, arch: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "rope.freq_base" in said:
        found["rope_theta"] = said["rope.freq_base"]
    if arch == "gemma3":
        found["rope_local_base_freq"] = said.get("rope.freq_base_swa", 10000.0)
    kind, factor = said.get("rope.scaling.type"), said.get("rope.scaling.factor")
    if kind in ("linear", "yarn") and factor:
        scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
        named = (
            ("original_context_length", "original_max_position_embeddings"),
            ("yarn_beta_fast", "beta_fast"),
            ("yarn_beta_slow", "beta_slow"),
        )
        scaling |= {name: said[f"rope.scaling.{key}"] for key, name in named if f"rope.scaling.{key}" in said}
        if kind == "yarn" and "rope.scaling.attn_factor" in said:
            scaling["attention_factor"] = said["rope.scaling.attn_factor"] * _mscale(float(factor), 1.0)
        if "rope.scaling.yarn_log_multiplier" in said:
            both = said["rope.scaling.yarn_log_multiplier"] / 0.1
            scaling |= {"mscale": both, "mscale_all_dim": both}
        found["rope_scaling"] = scaling
    elif arch == "gpt-oss":  # whose config means YaRN where it says nothing
        found["rope_scaling"] = {"rope_type": "default"}
    return found
