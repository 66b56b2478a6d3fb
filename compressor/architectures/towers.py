"""Families of a text and a vision tower, each with a width of its own, that are compared by what they give; and
each tower alone."""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.family import Beside, Family

_BLOCK = """
layer_norm1 hidden
self_attn.q_proj q hidden
self_attn.k_proj q hidden
self_attn.v_proj q hidden
self_attn.out_proj hidden q
layer_norm2 hidden
mlp.fc1 neurons hidden
mlp.fc2 hidden neurons
"""
_FOLDS = """
layer_norm1 self_attn.q_proj self_attn.k_proj self_attn.v_proj
self_attn.v_proj self_attn.out_proj
layer_norm2 mlp.fc1
"""
_KEYS = {
    "hidden": ("hidden_size",),
    "neurons": ("intermediate_size",),
    "heads": ("num_attention_heads",),
    "layers": ("num_hidden_layers",),
}
_COMPARES = Beside(("logit_scale", "logit_bias"), {})
_TEXT = Family(
    types=("clip",),
    name="text",
    part="text_config",
    stack="encoder.layers",
    prefixes=("text_model.",),
    outer="""
    embeddings.token_embedding # hidden
    embeddings.position_embedding # hidden
    embeddings.position_ids - -
    final_layer_norm hidden
    text_projection - hidden
    """,
    block=_BLOCK,
    keys=_KEYS,
    defaults={"hidden": 512, "neurons": 2048, "heads": 8, "layers": 12},
    bound_heads=True,
    heads=(),
    last_norms=(),
    beside=(_COMPARES,),
    folds=_FOLDS,
)
_VISION = Family(
    types=("clip",),
    name="vision",
    part="vision_config",
    stack="encoder.layers",
    prefixes=("vision_model.",),
    outer="""
    embeddings.class_embedding hidden
    embeddings.patch_embedding hidden - - -
    embeddings.position_embedding # hidden
    embeddings.position_ids - -
    pre_layrnorm hidden
    post_layernorm hidden
    visual_projection - hidden
    """,
    block=_BLOCK,
    keys=_KEYS,
    defaults={"hidden": 768, "neurons": 3072, "heads": 12, "layers": 12},
    bound_heads=True,
    heads=(),
    last_norms=(),
    folds=_FOLDS,
)
_SIGLIP_TEXT = replace(
    _TEXT,
    types=("siglip",),
    outer="""
    embeddings.token_embedding # hidden
    embeddings.position_embedding # hidden
    embeddings.position_ids - -
    final_layer_norm hidden
    head - hidden
    """,
    defaults={"hidden": 768, "neurons": 3072, "heads": 12, "layers": 12},
    implied=("projection_size",),
)
_SIGLIP_VISION = replace(
    _VISION,
    types=("siglip",),
    outer="""
    embeddings.patch_embedding hidden - - -
    embeddings.position_embedding # hidden
    embeddings.position_ids - -
    post_layernorm hidden
    head.probe # - hidden
    head.attention.in_proj_weight q+q+q hidden
    head.attention.in_proj_bias q+q+q
    head.attention.out_proj hidden q
    head.layernorm hidden
    head.mlp.fc1 neurons hidden
    head.mlp.fc2 hidden neurons
    """,
)

TOWERS = (
    _TEXT,
    _VISION,
    _SIGLIP_TEXT,
    replace(
        _SIGLIP_VISION,
        refuses={
            "hidden": "what the vision tower gives is as wide, and is compared with what the text tower gives"
        },
    ),
    replace(_TEXT, types=("clip_text_model",), name="", part=""),
    replace(_VISION, types=("clip_vision_model",), name="", part=""),
    replace(_SIGLIP_TEXT, types=("siglip_text_model",), name="", part=""),
    replace(_SIGLIP_VISION, types=("siglip_vision_model",), name="", part=""),
)
