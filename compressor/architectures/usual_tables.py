"""Tables that most language models share, in the language of `family.py`."""

from __future__ import annotations

KEYS = {
    "hidden": ("hidden_size",),
    "neurons": ("intermediate_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "layers": ("num_hidden_layers",),
}
MOE = {
    **KEYS,
    "moe": ("moe_intermediate_size",),
    "shared": ("shared_expert_intermediate_size",),
    "experts": ("num_experts", "num_local_experts"),
}
OUTER = """
embed_tokens # hidden
norm hidden
lm_head - hidden
score - hidden
rotary_emb.inv_freq -
"""
ATTENTION = """
input_layernorm hidden
post_attention_layernorm hidden
self_attn.q_proj q hidden
self_attn.k_proj kv hidden
self_attn.v_proj kv hidden
self_attn.o_proj hidden q
self_attn.q_norm -
self_attn.k_norm -
self_attn.rotary_emb.inv_freq -
"""
GATED = """
mlp.gate_proj neurons hidden
mlp.up_proj neurons hidden
mlp.down_proj hidden neurons
"""
EXPERTS = """
mlp.gate experts hidden
mlp.experts.*.gate_proj moe hidden
mlp.experts.*.up_proj moe hidden
mlp.experts.*.down_proj hidden moe
mlp.experts.gate_up_proj experts moe+moe hidden
mlp.experts.down_proj experts hidden moe
mlp.shared_expert.gate_proj shared hidden
mlp.shared_expert.up_proj shared hidden
mlp.shared_expert.down_proj hidden shared
mlp.shared_expert_gate - hidden
"""
INTO_ATTENTION = """
input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj
self_attn.v_proj self_attn.o_proj
"""
INTO_GATED = """
post_attention_layernorm mlp.gate_proj mlp.up_proj
mlp.up_proj mlp.down_proj
"""
INTO_EXPERTS = """
post_attention_layernorm mlp.gate_proj mlp.up_proj mlp.gate mlp.experts.*.gate_proj mlp.experts.*.up_proj \
 mlp.experts.gate_up_proj mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert_gate
mlp.up_proj mlp.down_proj
mlp.experts.*.up_proj mlp.experts.*.down_proj
mlp.shared_expert.up_proj mlp.shared_expert.down_proj
"""
SEES = "what sees writes into the width of the text model, and is not cut"
