"""Families of an encoder and a decoder, which have one width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compressor.architectures.family import Family

_SINES = "positions are sines that the library computes for the width, and others for another one"
_GROWS = "embeddings are multiplied by the root of the width (scale_embedding)"
_ATTENTION = """
self_attn.q_proj q hidden
self_attn.k_proj q hidden
self_attn.v_proj q hidden
self_attn.out_proj hidden q
self_attn_layer_norm hidden
fc1 neurons hidden
fc2 hidden neurons
final_layer_norm hidden
"""
_TO_ENCODER = """
encoder_attn.q_proj cross hidden
encoder_attn.k_proj cross encoded
encoder_attn.v_proj cross encoded
encoder_attn.out_proj hidden cross
encoder_attn_layer_norm hidden
"""
_NORMS = """
embed_tokens # hidden
embed_positions # hidden
layernorm_embedding hidden
layer_norm hidden
"""
_SHARED = """
shared # hidden
model.shared # hidden
lm_head - hidden
final_logits_bias - -
classification_head.dense hidden hidden
classification_head.out_proj - hidden
qa_outputs - hidden
"""
_INTO_VALUES = "self_attn.v_proj self_attn.out_proj"
_INTO_CROSS = "encoder_attn.v_proj encoder_attn.out_proj"
_INTO_BOTH = """
self_attn_layer_norm self_attn.q_proj self_attn.k_proj self_attn.v_proj
self_attn.v_proj self_attn.out_proj
final_layer_norm fc1
"""


def _keys(stack: str) -> Mapping[str, tuple[str, ...]]:
    more = stack == "encoder"  # what the library calls the encoder's sizes too
    return {
        "hidden": ("d_model", "hidden_size"),
        "neurons": (f"{stack}_ffn_dim",),
        "heads": (f"{stack}_attention_heads", *(("num_attention_heads", "num_key_value_heads") if more else ())),
        "layers": (f"{stack}_layers", *(("num_hidden_layers",) if more else ())),
    }


_BART = (
    Family(
        types=("bart",),
        name="encoder",
        stack="layers",
        prefixes=("model.encoder.", "encoder."),
        outer=_NORMS + _SHARED,
        block=_ATTENTION,
        keys=_keys("encoder"),
        bound_heads=True,
        last_norms=(),
        tied=True,
        only={"hidden": ("scale_embedding", False, _GROWS)},
        folds=_INTO_VALUES,  # all norms go into the residual stream
    ),
    Family(
        types=("bart",),
        name="decoder",
        stack="layers",
        prefixes=("model.decoder.", "decoder."),
        outer=_NORMS,
        block=_ATTENTION + _TO_ENCODER,
        keys=_keys("decoder"),
        bound_heads=True,
        heads=(),
        last_norms=(),
        only={"hidden": ("scale_embedding", False, _GROWS)},
        folds=f"{_INTO_VALUES}\n{_INTO_CROSS}",
    ),
)
_WHISPER = """
conv1 hidden - -
conv2 hidden hidden -
proj_out - hidden
projector - hidden
classifier - -
layer_weights -
"""
_T5_SELF = """
layer.0.layer_norm hidden
layer.0.SelfAttention.q q hidden
layer.0.SelfAttention.k q hidden
layer.0.SelfAttention.v q hidden
layer.0.SelfAttention.o hidden q
layer.0.SelfAttention.relative_attention_bias # heads
"""
_T5_CROSS = """
layer.1.layer_norm hidden
layer.1.EncDecAttention.q cross hidden
layer.1.EncDecAttention.k cross encoded
layer.1.EncDecAttention.v cross encoded
layer.1.EncDecAttention.o hidden cross
layer.1.EncDecAttention.relative_attention_bias - -
"""
_T5_MLP = """
layer.{0}.layer_norm hidden
layer.{0}.DenseReluDense.wi neurons hidden
layer.{0}.DenseReluDense.wi_0 neurons hidden
layer.{0}.DenseReluDense.wi_1 neurons hidden
layer.{0}.DenseReluDense.wo hidden neurons
"""
_T5_KEYS: Mapping[str, tuple[str, ...]] = {
    "hidden": ("d_model", "hidden_size"),
    "neurons": ("d_ff",),
    "heads": ("num_heads", "num_attention_heads"),
    "head_dim": ("d_kv",),
    "layers": ("num_layers", "num_hidden_layers"),
}
_T5_OUTER = """
embed_tokens # hidden
final_layer_norm hidden
"""
_INTO_T5 = """
layer.0.layer_norm layer.0.SelfAttention.q layer.0.SelfAttention.k layer.0.SelfAttention.v
layer.0.SelfAttention.v layer.0.SelfAttention.o
layer.{0}.layer_norm layer.{0}.DenseReluDense.wi layer.{0}.DenseReluDense.wi_0 layer.{0}.DenseReluDense.wi_1
layer.{0}.DenseReluDense.wi_1 layer.{0}.DenseReluDense.wo
"""
_POSITIONS = (1, "what it knows of positions serves all blocks")
_T5 = (
    Family(
        types=("t5", "mt5"),
        name="encoder",
        stack="block",
        prefixes=("encoder.",),
        outer=_T5_OUTER
        + """
        shared # hidden
        lm_head - hidden
        """,
        block=_T5_SELF + _T5_MLP.format(1),
        keys=_T5_KEYS,
        defaults={"head_dim": 64},
        same_heads=True,
        fixed_blocks=_POSITIONS,
        last_norms=(),
        tied=True,
        folds=_INTO_T5.format(1),
    ),
    Family(
        types=("t5", "mt5"),
        name="decoder",
        stack="block",
        prefixes=("decoder.",),
        outer=_T5_OUTER,
        block=_T5_SELF + _T5_CROSS + _T5_MLP.format(2),
        keys={**_T5_KEYS, "layers": ("num_decoder_layers",)},
        defaults={"head_dim": 64, "layers": "num_layers"},
        same_heads=True,
        fixed_blocks=_POSITIONS,
        heads=(),
        last_norms=(),
        folds=_INTO_T5.format(2)
        + """
        layer.1.layer_norm layer.1.EncDecAttention.q
        layer.1.EncDecAttention.v layer.1.EncDecAttention.o
        """,
    ),
)

ENCODER_DECODERS = (
    *_BART,
    *(replace(one, types=("mbart",), folds=_INTO_BOTH + ("" if one is _BART[0] else _INTO_CROSS)) for one in _BART),
    *(
        replace(
            one,
            types=("pegasus",),
            refuses={"hidden": _SINES},
            folds=_INTO_BOTH + ("" if one is _BART[0] else _INTO_CROSS),
        )
        for one in _BART
    ),
    *(replace(one, types=("marian",), refuses={"hidden": _SINES}) for one in _BART),
    *(
        replace(
            one,
            types=("whisper",),
            outer=one.outer + (_WHISPER if one is _BART[0] else ""),
            heads=("proj_out",) if one is _BART[0] else (),
            folds=_INTO_BOTH + ("" if one is _BART[0] else _INTO_CROSS),
        )
        for one in _BART
    ),
    *_T5,
    *(replace(one, types=("umt5",), same_heads=False, fixed_blocks=(0, "")) for one in _T5),
)
