"""Modules that transformers calls otherwise than files do: a config that names which layers are codes, or dense,
has to give both names.

From the mapping of checkpoints in transformers 5.24, for families whose linear layers it renames beyond what stands
before the list of layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.architectures.model_types import model_types

_VIT = (
    (r"encoder\.layer\.", "layers."),
    (r"attention\.attention\.(query|key|value)$", r"attention.\1"),
    (r"attention\.query$", "attention.q_proj"),
    (r"attention\.key$", "attention.k_proj"),
    (r"attention\.value$", "attention.v_proj"),
    (r"attention\.output\.dense$", "attention.o_proj"),
    (r"intermediate\.dense$", "mlp.fc1"),
    (r"output\.dense$", "mlp.fc2"),
)
_SWIN = ((r"attention\.self\.(query|key|value)$", r"attention.\1"), *_VIT[2:])
_DINOV2 = (*_VIT[1:6], (r"mlp\.weights_in$", "mlp.gate_proj|mlp.up_proj"), (r"mlp\.weights_out$", "mlp.down_proj"))
_NOMIC = (
    (r"encoder\.layers\.", "layers."),
    (r"attn\.Wqkv$", "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj"),
    (r"attn\.out_proj$", "self_attn.o_proj"),
    (r"mlp\.fc11$", "mlp.up_proj"),
    (r"mlp\.fc12$", "mlp.gate_proj"),
    (r"mlp\.fc2$", "mlp.down_proj"),
)
_JINA = (
    (r"encoder\.layers\.", "layers."),
    (r"mixer\.Wqkv$", "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj"),
    (r"mixer\.out_proj$", "self_attn.o_proj"),
)
_GTE = (
    (r"encoder\.layer\.", "layers."),
    (r"attention\.qkv_proj$", "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj"),
    (r"attention\.o_proj$", "self_attn.o_proj"),
    (r"mlp\.up_gate_proj$", "mlp.up_proj|mlp.gate_proj"),
)
_DEEPSEEK_V4 = (
    (r"\.attn\.", ".self_attn."),
    (r"\.ffn\.", ".mlp."),
    (r"indexer\.compressor\.", "compressor.indexer."),
    (r"self_attn\.indexer\.weights_proj$", "self_attn.compressor.indexer.scorer.weights_proj"),
    (r"self_attn\.indexer\.wq_b$", "self_attn.compressor.indexer.q_b_proj"),
    (r"\.w(q_a|q_b|kv|o_a|o_b)$", r".\1_proj"),
    (r"\.wgate$", ".gate_proj"),
    (r"shared_experts\.w1$", "shared_experts.gate_proj"),
    (r"shared_experts\.w2$", "shared_experts.down_proj"),
    (r"shared_experts\.w3$", "shared_experts.up_proj"),
    (r"^head$", "lm_head"),
)
_FORGETS = (r"self_attn\.(f_a_proj|f_b_proj)$", r"self_attn.forget_gate.\1")
_DETR = (
    (r"(self_attn|encoder_attn)\.out_proj$", r"\1.o_proj"),
    (r"layers\.(\d+)\.(fc[12])$", r"layers.\1.mlp.\2"),
    (r"encoder\.encoder\.", "encoder.aifi."),  # of RT-DETR
)
_CONDITIONAL = (
    (r"\.sa_v_proj$", ".self_attn.v_proj"),
    (r"\.sa_([qk])(content|pos)_proj$", r".self_attn.\1_\2_proj"),
    (r"\.ca_v_proj$", ".encoder_attn.v_proj"),
    (r"\.ca_([qk])(content|pos)_proj$", r".encoder_attn.\1_\2_proj"),
    (r"\.ca_qpos_sine_proj$", ".encoder_attn.q_pos_sine_proj"),
)
_NORM_MLP = (
    (r"layernorm\.W_down$", "layernorm.mlp.fc1"),
    (r"layernorm\.W_up$", "layernorm.mlp.fc2"),
    (r"self_attn\.q_b_proj$", "self_attn.q_b_proj|self_attn.q_gate_proj"),
)
_BAILING = (
    (r"attention\.dense$", "self_attn.o_proj"),
    (r"attention\.f_proj$", "self_attn.forget_gate.f_proj"),
    (r"\.attention\.", ".self_attn."),
)
_EXAONE = (
    (r"^transformer\.h\.", "model.layers."),
    (r"attn\.attention\.out_proj$", "self_attn.o_proj"),
    (r"attn\.attention\.", "self_attn."),
    (r"mlp\.c_fc_0$", "mlp.gate_proj"),
    (r"mlp\.c_fc_1$", "mlp.up_proj"),
    (r"mlp\.c_proj$", "mlp.down_proj"),
)
_COHERE_ASR = (
    (r"pre_encode\.out$", "subsampling.linear"),
    (r"self_attn\.linear_([qkv])$", r"self_attn.\1_proj"),
    (r"self_attn\.linear_out$", "self_attn.o_proj"),
    (r"self_attn\.linear_pos$", "self_attn.relative_k_proj"),
    (r"transf_decoder\._decoder\.", "decoder."),
    (r"first_sub_layer\.", "self_attn."),
    (r"second_sub_layer\.", "encoder_attn."),
    (r"third_sub_layer\.dense_in$", "mlp.fc1"),
    (r"third_sub_layer\.dense_out$", "mlp.fc2"),
    (r"^model\.encoder_decoder_proj$", "model.decoder.proj"),
    (r"\.(query|key|value)_net$", r".\1_proj"),
    (r"\.query_proj$", ".q_proj"),
    (r"\.key_proj$", ".k_proj"),
    (r"\.value_proj$", ".v_proj"),
    (r"\.out_projection$", ".o_proj"),
)
_GATE = (r"self_attn\.gate_proj$", "self_attn.g_proj")
_KIMI = (
    (r"^language_model\.model\.(layers|blocks)\.", "model.language_model.layers."),
    (r"^language_model\.lm_head$", "lm_head"),
    (r"^vision_tower\.encoder\.blocks\.", "model.vision_tower.layers."),
    (r"^(model\.vision_tower\..*)\.mlp\.fc1$", r"\1.mlp.fc2"),
    (r"^(model\.vision_tower\..*)\.mlp\.fc0$", r"\1.mlp.fc1"),
    (r"\.wo$", ".attn.proj"),
    (r"\.wqkv$", ".attn.q_proj|.attn.k_proj|.attn.v_proj"),
    (r"^mm_projector\.proj\.0$", "model.mm_projector.in_proj"),
    (r"^mm_projector\.proj\.2$", "model.mm_projector.out_proj"),
)
# By model_type: regular expressions of the end or the middle of a module's name, and what stands there instead, of
# a module that becomes two both
_RENAMED: Mapping[str, Sequence[tuple[str, str]]] = {
    **dict.fromkeys(
        ("vit", "deit", "beit", "ijepa", "vit_mae", "vit_msn", "vivit", "audio-spectrogram-transformer"), _VIT
    ),
    "swin": _SWIN,
    "segformer": (
        *_SWIN[:5],
        (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
        (r"attention\.self\.sr$", "attention.sequence_reduction.sequence_reduction"),
        (r"mlp\.dense1$", "mlp.fc1"),
        (r"mlp\.dense2$", "mlp.fc2"),
        (r"decode_head\.linear_c\.", "decode_head.linear_projections."),
    ),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _DINOV2),
    "phimoe": ((r"block_sparse_moe\.", "mlp."), (r"mlp\.gate$", "mlp.router")),
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), ((r"block_sparse_moe\.", "mlp."),)),
    "kimi_linear": ((r"block_sparse_moe\.", "mlp."), _FORGETS),
    **dict.fromkeys(("glm5_next", "glm5_next_text"), (_FORGETS,)),
    "nomic_bert": _NOMIC,
    "jina_embeddings_v3": _JINA,
    "gte": _GTE,
    "deepseek_v4": _DEEPSEEK_V4,
    **dict.fromkeys(("detr", "deformable_detr", "rt_detr", "rt_detr_v2", "table-transformer", "maskformer"), _DETR),
    **dict.fromkeys(("pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4"), _DETR),
    **dict.fromkeys(("hy_v3", "laguna"), ((r"mlp\.(shared_mlp|shared_expert)\.", "mlp.shared_experts."),)),
    **dict.fromkeys(("hy_v4", "hy_v4_vl", "hy_v4_vl_text"), ((r"\.linear_gate$", ".gate_proj"),)),
    "pixio": _VIT,
    "d_fine": (*_DETR, (r"\.mlp\.fc1$", ".mlp.layers.0"), (r"\.mlp\.fc2$", ".mlp.layers.1")),
    "conditional_detr": (*_DETR, *_CONDITIONAL),
    "axk2": _NORM_MLP,
    "bailing_hybrid": _BAILING,
    "exaone": _EXAONE,
    "cohere_asr": _COHERE_ASR,
    "gemma4_unified": (
        (r"embed_(vision|audio)\.embedding_projection$", r"embed_\1.multimodal_embedder.embedding_projection"),
        (r"vision_embedder\.patch_dense$", "embed_vision.patch_dense"),
    ),
    **dict.fromkeys(("lfm3_vl", "lfm3_vl_vision"), ((r"patchifier$", "patch_embed"), _GATE)),
    **dict.fromkeys(("lfm3", "lfm3_text", "lfm3_vl_text"), (_GATE,)),
    "kimi_k25": _KIMI,
}


def renamed(config: Mapping[str, Any] | None, module: str) -> list[str]:
    """What transformers calls a module of a file, in the model that config.json describes."""
    names = [module]
    for one in model_types(config):
        for pattern, texts in _RENAMED.get(one, ()):
            names = [re.sub(pattern, text, name) for name in names for text in texts.split("|")]
    return list(dict.fromkeys(names))
