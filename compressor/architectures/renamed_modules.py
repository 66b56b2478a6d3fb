"""Modules that transformers calls otherwise than files do: a config that names which layers are codes, or dense,
has to give both names.

From the mapping of checkpoints in transformers 5.24, for families whose linear layers it renames beyond what stands
before the list of layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
_TO = ((r"self_attn\.to_([qkv])$", r"self_attn.\1_proj"), (r"self_attn\.to_out$", "self_attn.o_proj"))
_DENSE_H = (
    (r"mlp\.dense_h_to_4h$", "mlp.fc1"),
    (r"mlp\.dense_4h_to_h$", "mlp.fc2"),
    (r"^vit\.perceive\.", "model.vision_tower.patch_merger."),
    (r"^vit\.", "model.vision_tower."),
)
_RESBLOCKS = (  # open_clip's
    (r"transformer\.resblocks\.", "layers."),
    (r"\.attn\.", ".self_attn."),
    (r"self_attn\.in_proj_weight$", "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj"),
    (r"mlp\.c_fc$", "mlp.fc1"),
    (r"mlp\.c_proj$", "mlp.fc2"),
)
_INKLING = (
    (r"\.attn\.", ".self_attn."),
    (r"self_attn\.w([qkv])_d[uv]$", r"self_attn.\1_proj"),
    (r"self_attn\.wr_du$", "self_attn.r_proj"),
    (r"self_attn\.wo_ud$", "self_attn.o_proj"),
    (r"mlp\.w13_dn$", "mlp.gate_proj|mlp.up_proj"),
    (r"mlp\.w2_md$", "mlp.down_proj"),
    (r"visual\.layers\.linear_(\d+)$", r"vision_tower.encoder_layers.\1.projection"),
    (r"^model\.llm\.unembed$", "lm_head"),
)
_INKLING2 = (
    (r"\.attn\.", ".self_attn."),
    (r"self_attn\.([kv])_sconv\.weight_proj$", r"self_attn.\1_proj.sconv.weight_proj"),
    (r"self_attn\.w([qkv])_d[uv]$", r"self_attn.\1_proj.linear"),
    (r"self_attn\.gate_attn$", "self_attn.o_proj.gate_proj"),
    (r"self_attn\.wo_ud$", "self_attn.o_proj.linear"),
    (r"self_attn\.attn_sink_proj$", "self_attn.sink_proj"),
    (r"self_attn\.wr_du$", "self_attn.relative_position_bias.linear"),
    (r"visual\.backbone\.", "vision_tower."),
    (r"visual\.proj_in$", "vision_tower.merger.linear_1"),
    (r"visual\.proj_out$", "vision_tower.merger.linear_2"),
    *_RESBLOCKS[2:],
    (r"^model\.llm\.unembed$", "lm_head"),
)
_MINIMAX_M3 = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_tower\.vision_model\.encoder\.", "model.vision_tower."),
    (r"^patch_merge_mlp\.linear_", "model.multi_modal_projector.merge_linear_"),
    (r"block_sparse_moe\.", "mlp."),
    (r"self_attn\.index_([qk])_proj$", r"self_attn.indexer.\1_proj"),
)
_MISTRAL4 = (
    (r"\.w1$", ".gate_proj"),
    (r"\.w2$", ".down_proj"),
    (r"\.w3$", ".up_proj"),
    (r"attention\.w([qkvo]|kv_b|q_a|q_b)$", r"attention.\1_proj"),
    (r"attention\.wkv_a_with_mqa$", "attention.kv_a_proj_with_mqa"),
    (r"^(layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"^(layers\.\d+)\.feed_forward\.", r"\1.mlp."),
    (r"^(layers\.\d+)\.shared_experts\.", r"\1.mlp.shared_experts."),
    (r"^vision_encoder\.", "model.vision_tower."),
    (r"^vision_language_adapter\.w_in$", "model.multi_modal_projector.linear_1"),
    (r"^vision_language_adapter\.w_out$", "model.multi_modal_projector.linear_2"),
    (r"^output$", "lm_head"),
)
_MOLMO2 = (
    (r"self_attn\.att_proj$", "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj"),
    (r"self_attn\.attn_out$", "self_attn.o_proj"),
    (r"mlp\.ff_proj$", "mlp.up_proj|mlp.gate_proj"),
    (r"mlp\.ff_out$", "mlp.down_proj"),
)
_LARA = (
    r"linear_attn\.in_proj$",
    "linear_attn.in_proj_qkv|linear_attn.in_proj_z|linear_attn.in_proj_b|linear_attn.in_proj_a",
)
_FUSED_VIT = (  # timm's
    (r"attn\.qkv$", "attention.q_proj|attention.k_proj|attention.v_proj"),
    (r"attn\.proj$", "attention.o_proj"),
)
_MLP1 = (
    (r"^mlp1\.1$", "model.multi_modal_projector.linear_1"),
    (r"^mlp1\.3$", "model.multi_modal_projector.linear_2"),
)
_RADIO = (
    (r"radio_model\.model\.blocks\.", "encoder.layer."),
    (r"radio_model\.model\.patch_generator\.video_embedder$", "embeddings.video_patch_projection"),
    (r"radio_model\.model\.patch_generator\.embedder$", "embeddings.patch_projection"),
    *_FUSED_VIT,
)
_QIANFAN = (
    (r"^vision_model\.encoder\.layers\.", "model.vision_tower.layers."),
    (r"attn\.proj$", "attention.projection_layer"),
    _FUSED_VIT[0],
    (r"^language_model\.model\.", "model.language_model."),
    *_MLP1,
)
_ORDERS = (
    (r"decoder_roor_global_pointer\.", "decoder.successor_order_head.global_pointer."),
    (r"decoder_roor_order_head\.", "decoder.successor_order_head.proj."),
    (r"decoder_global_pointer\.", "decoder.relative_order_head.global_pointer."),
    (r"decoder_order_head\.", "decoder.relative_order_head.proj."),
    (r"enc_score_head$", "enc_score_head|decoder.class_embed"),
    (r"enc_bbox_head\.", "enc_bbox_head.|decoder.bbox_embed."),
)
_RF_DETR = (
    (r"^backbone\.0\.encoder\.encoder\.encoder\.", "backbone.backbone.encoder."),
    *_VIT[1:6],
    (r"transformer\.decoder\.", "decoder."),
    (r"self_attn\.in_proj_weight$", "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj"),
    (r"self_attn\.out_proj$", "self_attn.o_proj"),
    (r"layers\.(\d+)\.linear([12])$", r"layers.\1.mlp.fc\2"),
)
_SAPIENS2 = (
    (r"blocks\.", "model.layer."),
    (r"attn\.proj$", "attention.o_proj"),
    (r"attn\.w([qkv])$", r"attention.\1_proj"),
    (r"ffn\.w3$", "mlp.down_proj"),
    (r"ffn\.w12$", "mlp.gate_proj|mlp.up_proj"),
)
_SARVAM = (
    (r"\.attention\.", ".self_attn."),
    (r"self_attn\.query_key_value$", "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj"),
    (r"self_attn\.dense$", "self_attn.o_proj"),
)
_TIPS = (
    (r"blocks\.", "encoder.layer."),
    *_FUSED_VIT,
    *_RESBLOCKS[3:],
    (r"mlp\.w12$", "mlp.gate_proj|mlp.up_proj"),
    (r"mlp\.w3$", "mlp.down_proj"),
)
_UNLIMITED = (
    (r"(^|\.)blocks\.(\d+)\.(attn|mlp)\.", r"\1layers.\2.\3."),
    (r"(^|\.)sam_model\.", r"\1vision_tower.sam_encoder."),
    (r"(^|\.)vision_model\.", r"\1vision_tower.vision_encoder."),
    (r"transformer\.layers\.", "encoder.layers."),
    (r"self_attn\.qkv_proj$", "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj"),
    (r"(^|\.)projector\.layers$", r"\1multi_modal_projector"),
)
_HRM = (
    (r"\.attn\.gqkv_proj$", ".self_attn.gate_proj|.self_attn.q_proj|.self_attn.k_proj|.self_attn.v_proj"),
    (r"\.attn\.o_proj$", ".self_attn.o_proj"),
    (r"mlp\.gate_up_proj$", "mlp.gate_proj|mlp.up_proj"),
)
_DOTS_AUDIO = (
    (r"speech_encoder\.conv_out$", "speech_encoder.conv_stem.conv_out"),
    (r"self_attn\.out_proj$", "self_attn.o_proj"),
    (r"layers\.(\d+)\.fc1$", r"layers.\1.mlp.gate_up_proj"),
    (r"layers\.(\d+)\.fc2$", r"layers.\1.mlp.down_proj"),
    (r"^audio_adapter\.proj\.1$", "adapter.fc1"),
    (r"^audio_adapter\.proj\.3$", "adapter.fc2"),
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
    **dict.fromkeys(("detr", "deformable_detr", "rt_detr", "rt_detr_v2", "maskformer", "pp_doclayout_v2"), _DETR),
    **dict.fromkeys(("hy_v3", "laguna"), ((r"mlp\.(shared_mlp|shared_expert)\.", "mlp.shared_experts."),)),
    **dict.fromkeys(("hy_v4", "hy_v4_vl_text"), ((r"\.linear_gate$", ".gate_proj"),)),
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
    **dict.fromkeys(("cosmos3_edge", "cosmos3_omni"), _TO),
    "cosmos3_edge": (*_TO, (r"\.mlp\.up_proj$", ".mlp.fc1"), (r"\.mlp\.down_proj$", ".mlp.fc2")),
    "dory": ((r"self_attn\.g_proj$", "self_attn.gate_proj"),),
    "dots3_note_audio_encoder": _DOTS_AUDIO,
    "gpt_neox": ((r"^embed_out$", "lm_head"),),
    "granite_speech5_ctc": ((r"^encoder\.out$", "encoder.out|ctc_head"),),
    "hrm_text": _HRM,
    "hunyuan_vl": _DENSE_H,
    "hy_v4_vl": (*_DENSE_H, (r"\.linear_gate$", ".gate_proj")),
    "hyperclovax_vision_v2": ((r"vision_projector$", "projector"),),
    **dict.fromkeys(("inkling2", "inkling2_text", "inkling2_loop", "inkling2_loop_text"), _INKLING2),
    "inkling_mm_model": _INKLING,
    "lw_detr": (*_VIT[1:5], (r"attention\.output$", "attention.o_proj")),
    "minimax_m3_vl": _MINIMAX_M3,
    **dict.fromkeys(("mistral_large4", "mistral_large4_text"), _MISTRAL4),
    "molmo2_text": _MOLMO2,
    "lara_mini": (_LARA,),
    "radio": _RADIO,
    "nemotron_h_omni": _MLP1,
    "paddleocr_vl": ((r"^mlp_AR\.", "model.projector."),),
    "pi0": (
        (r"^paligemma_with_expert\.paligemma\.model\.(language_model\.)?(model\.)?", r"model.vlm.\1"),
        (r"^paligemma_with_expert\.gemma_expert\.model\.", "model.dit."),
    ),
    "pp_doclayout_v3": (*_DETR, *_ORDERS[-2:]),
    "pp_doclayout_v4": (*_DETR, *_ORDERS),
    "qianfan_ocr": _QIANFAN,
    "rf_detr": _RF_DETR,
    "sapiens2": _SAPIENS2,
    **dict.fromkeys(("sam3_tracker", "sam3_tracker_video", "sam3_video"), ((r"tracker_model\.", ""),)),
    "sarvam_moe": _SARVAM,
    "step3p5_vision": _RESBLOCKS,
    "step3p7": (
        (r"\.share_expert\.", ".mlp.shared_experts."),
        (r"^vit_large_projector$", "model.multi_modal_projector"),
    ),
    "tipsv2_text_model": _RESBLOCKS,
    "tipsv2_vision_model": _TIPS,
    "timesfm2_5": ((r"\.ff0$", ".fc1"), (r"\.ff1$", ".fc2")),
    "ultrabert": ((r"^cls$", "head.decoder"),),
    "ultravbert": ((r"^head\.linear", "projection_head.linear"), (r"^head\.decoder$", "lm_head")),
    **dict.fromkeys(
        (
            *("unlimited_ocr", "unlimited_ocr_vision", "unlimited_ocr_vision_encoder"),
            "unlimited_ocr_sam_vision_model",
        ),
        _UNLIMITED,
    ),
    "altclip": ((r"encoder\.layer\.", "encoder.layers."),),
}
# Of all models that hold a language model whose files call its base model so
_LANGUAGE = re.compile(r"^language_model\.model\.")
_PARAMETERS = ("in_proj_weight", "weight_proj")
# Parts of a model in which the names of another part do not hold
_OTHER_PARTS = {"vision-encoder-decoder": "decoder.", "vision-text-dual-encoder": "text_model."}


def renamed(config: Mapping[str, Any] | None, module: str) -> list[str]:
    """What transformers calls a module of a file, in the model that config.json describes."""
    names, types = [module], model_types(config)
    part = _OTHER_PARTS.get(types[0] if types else "")
    if part is not None and module.startswith(part):
        return names
    for one in types:
        for pattern, texts in _RENAMED.get(one, ()):
            names = [re.sub(pattern, text, name) for name in names for text in texts.split("|")]
    names = [_LANGUAGE.sub("model.language_model.", name) for name in names]
    return list(dict.fromkeys(names))


def split_parameters(config: Mapping[str, Any] | None, names: Iterable[str]) -> list[str]:
    """Of the names of matrices those that are no module's `weight` in a file, and of which transformers makes some
    modules' (torch's `in_proj_weight`)."""
    return [name for name in names if name.endswith(_PARAMETERS) and renamed(config, name) != [name]]
