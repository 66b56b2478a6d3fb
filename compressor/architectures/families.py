"""The families that are known, each a table in the language of `family.py`."""

from __future__ import annotations

from compressor.architectures.encoder_decoders import ENCODER_DECODERS
from compressor.architectures.family import Beside, Family, Kinds
from compressor.architectures.language_models import LANGUAGE_MODELS
from compressor.architectures.towers import TOWERS
from compressor.architectures.usual_tables import (
    ATTENTION,
    EXPERTS,
    GATED,
    INTO_ATTENTION,
    INTO_EXPERTS,
    INTO_GATED,
    KEYS,
    MOE,
    OUTER,
    SEES,
)
from compressor.architectures.with_vision import WITH_VISION

_BERT = """
attention.self.query q hidden
attention.self.key q hidden
attention.self.value q hidden
attention.output.dense hidden q
attention.output.LayerNorm hidden
intermediate.dense neurons hidden
output.dense hidden neurons
output.LayerNorm hidden
"""

_GEMMA = (
    ATTENTION
    + GATED
    + """
pre_feedforward_layernorm hidden
post_feedforward_layernorm hidden
"""
)
# gemma has no norm of that name, and in the others the one after attention goes into the residual stream
_INTO_GEMMA = "pre_feedforward_layernorm mlp.gate_proj mlp.up_proj" + INTO_ATTENTION + INTO_GATED
_GEMMA3 = {"heads": 8, "kv_heads": 4, "head_dim": 256}
_GEMMA3_KINDS = Kinds(("sliding_window_pattern", "_sliding_window_pattern"), 6)
_AHEAD = Beside(
    ("mtp.",),
    dict.fromkeys(
        ("neurons", "heads", "hidden"), "layers that guess tokens ahead have the same size, and are not cut"
    ),
)
_QWEN3_5 = (
    ATTENTION.replace("self_attn.q_proj q hidden", "self_attn.q_proj 2q hidden")
    + GATED
    + """
linear_attn.A_log -
linear_attn.dt_bias -
linear_attn.conv1d - - -
linear_attn.in_proj_qkv - hidden
linear_attn.in_proj_z - hidden
linear_attn.in_proj_a - hidden
linear_attn.in_proj_b - hidden
linear_attn.norm -
linear_attn.out_proj hidden -
"""
)
_QWEN3_5_KINDS = Kinds(("full_attention_interval",), 4, "linear_attention")
_INTO_QWEN3_5 = """
input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj linear_attn.in_proj_qkv linear_attn.in_proj_z \
 linear_attn.in_proj_a linear_attn.in_proj_b
self_attn.v_proj self_attn.o_proj
post_attention_layernorm mlp.gate_proj mlp.up_proj
mlp.up_proj mlp.down_proj
"""

FAMILIES = (
    Family(
        types=("llama", "mistral", "qwen2", "qwen3", "granite"),
        stack="layers",
        outer=OUTER,
        block=ATTENTION + GATED,
        keys=KEYS,
        divisible=("llama",),
        folds=INTO_ATTENTION + INTO_GATED,
    ),
    Family(
        types=("gemma", "gemma2"),
        stack="layers",
        outer=OUTER,
        block=_GEMMA,
        keys=KEYS,
        divisible=("gemma2",),
        tied=True,
        grows=True,
        one_plus=True,
        folds=_INTO_GEMMA,
    ),
    Family(
        types=("gemma3_text",),
        stack="layers",
        outer=OUTER,
        block=_GEMMA,
        keys=KEYS,
        defaults=_GEMMA3,
        divisible=("gemma3_text",),
        kinds=_GEMMA3_KINDS,
        tied=True,
        grows=True,
        one_plus=True,
        folds=_INTO_GEMMA,
    ),
    Family(
        types=("gemma3",),
        stack="layers",
        outer=OUTER,
        block=_GEMMA,
        prefixes=("language_model.model.", "model.language_model.", "language_model."),
        keys=KEYS,
        defaults=_GEMMA3,
        divisible=("gemma3",),
        part="text_config",
        beside=(
            Beside(
                ("vision_tower.", "model.vision_tower.", "multi_modal_projector.", "model.multi_modal_projector."),
                {"hidden": SEES},
            ),
        ),
        kinds=_GEMMA3_KINDS,
        tied=True,
        grows=True,
        one_plus=True,
        folds=_INTO_GEMMA,
    ),
    Family(
        types=("qwen3_vl",),
        stack="layers",
        outer=OUTER,
        block=ATTENTION + GATED,
        prefixes=("model.language_model.",),
        keys=KEYS,
        part="text_config",
        beside=(Beside(("model.visual.", "visual."), {"hidden": SEES}),),
        fixed_blocks=(("vision_config", "deepstack_visual_indexes"), "the vision tower adds to what it gives"),
        folds=INTO_ATTENTION + INTO_GATED,
    ),
    Family(
        types=("qwen3_5_text",),
        stack="layers",
        outer=OUTER,
        block=_QWEN3_5,
        keys=KEYS,
        defaults={"head_dim": 256},
        beside=(_AHEAD,),
        kinds=_QWEN3_5_KINDS,
        one_plus=True,
        folds=_INTO_QWEN3_5,
    ),
    Family(
        types=("qwen3_5",),
        stack="layers",
        outer=OUTER,
        block=_QWEN3_5,
        prefixes=("model.language_model.",),
        keys=KEYS,
        defaults={"head_dim": 256},
        part="text_config",
        beside=(Beside(("model.visual.", "visual."), {"hidden": SEES}), _AHEAD),
        kinds=_QWEN3_5_KINDS,
        one_plus=True,
        folds=_INTO_QWEN3_5,
    ),
    Family(
        types=("gpt_oss",),
        stack="layers",
        outer=OUTER,
        block=ATTENTION
        + """
        self_attn.sinks heads
        mlp.router experts hidden
        mlp.experts.gate_up_proj experts hidden > 2moe
        mlp.experts.gate_up_proj_bias experts 2moe
        mlp.experts.down_proj experts moe > hidden
        mlp.experts.down_proj_bias experts hidden
        """,
        keys={**MOE, "moe": ("intermediate_size",), "experts": ("num_local_experts",)},
        defaults={"head_dim": 64},
        kinds=Kinds((), 2),
        folds=INTO_ATTENTION,
    ),
    Family(
        types=("deepseek_v3",),
        stack="layers",
        outer=OUTER,
        block=GATED
        + EXPERTS
        + """
        input_layernorm hidden
        post_attention_layernorm hidden
        self_attn.q_proj - hidden
        self_attn.q_a_proj - hidden
        self_attn.q_a_layernorm -
        self_attn.q_b_proj - -
        self_attn.kv_a_proj_with_mqa - hidden
        self_attn.kv_a_layernorm -
        self_attn.kv_b_proj - -
        self_attn.o_proj hidden -
        self_attn.rotary_emb.inv_freq -
        mlp.gate.e_score_correction_bias experts
        mlp.shared_experts.gate_proj shared hidden
        mlp.shared_experts.up_proj shared hidden
        mlp.shared_experts.down_proj hidden shared
        """,
        keys={
            **{symbol: names for symbol, names in MOE.items() if symbol != "head_dim"},
            "shared": ("moe_intermediate_size",),
            "experts": ("n_routed_experts", "num_local_experts"),
        },
        many={"shared": "n_shared_experts"},
        refuses={"heads": "keys and values of all heads come out of one small matrix, and are not cut"},
        only={"experts": ("n_group", 1, "experts are chosen group by group (n_group), and groups are not cut")},
        first_blocks={"first_k_dense_replace": 3},
        folds="""
        input_layernorm self_attn.q_proj self_attn.q_a_proj self_attn.kv_a_proj_with_mqa
        post_attention_layernorm mlp.gate_proj mlp.up_proj mlp.gate mlp.experts.*.gate_proj mlp.experts.*.up_proj \
         mlp.experts.gate_up_proj mlp.shared_experts.gate_proj mlp.shared_experts.up_proj \
         mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert_gate
        mlp.up_proj mlp.down_proj
        mlp.experts.*.up_proj mlp.experts.*.down_proj
        mlp.shared_experts.up_proj mlp.shared_experts.down_proj
        """,
    ),
    Family(
        types=("modernbert",),
        stack="layers",
        outer="""
        embeddings.tok_embeddings # hidden
        embeddings.norm hidden
        final_norm hidden
        head.dense hidden hidden
        head.norm hidden
        decoder - hidden
        classifier - hidden
        """,
        block="""
        attn_norm hidden
        attn.Wqkv q+q+q hidden
        attn.Wo hidden q
        mlp_norm hidden
        mlp.Wi neurons+neurons hidden
        mlp.Wo hidden neurons
        """,
        keys=KEYS,
        bound_heads=True,
        heads=("decoder",),
        last_norms=("head.norm",),
        tied=True,
        fixed_blocks=(1, "it has no norm before its attention, and the others have one"),
        kinds=Kinds(("global_attn_every_n_layers",), 3, first=True),
        folds="""
        attn_norm attn.Wqkv
        attn.Wqkv:2 attn.Wo
        mlp_norm mlp.Wi
        mlp.Wi:1 mlp.Wo
        """,
    ),
    Family(
        types=("phi3",),
        stack="layers",
        outer=OUTER,
        block="""
        input_layernorm hidden
        post_attention_layernorm hidden
        self_attn.qkv_proj q+kv+kv hidden
        self_attn.o_proj hidden q
        mlp.gate_up_proj neurons+neurons hidden
        mlp.down_proj hidden neurons
        """,
        keys=KEYS,
        folds="""
        input_layernorm self_attn.qkv_proj
        self_attn.qkv_proj:2 self_attn.o_proj
        post_attention_layernorm mlp.gate_up_proj
        mlp.gate_up_proj:1 mlp.down_proj
        """,
    ),
    Family(
        types=("phi",),
        stack="layers",
        outer=OUTER + "final_layernorm hidden",
        block="""
        input_layernorm hidden
        self_attn.q_proj q hidden
        self_attn.k_proj kv hidden
        self_attn.v_proj kv hidden
        self_attn.dense hidden q
        mlp.fc1 neurons hidden
        mlp.fc2 hidden neurons
        """,
        keys=KEYS,
        last_norms=("final_layernorm",),
        folds="""
        input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj mlp.fc1
        self_attn.v_proj self_attn.dense
        """,
    ),
    Family(
        types=("mixtral",),
        stack="layers",
        outer=OUTER,
        block=ATTENTION
        + """
        block_sparse_moe.gate experts hidden
        block_sparse_moe.experts.*.w1 moe hidden
        block_sparse_moe.experts.*.w3 moe hidden
        block_sparse_moe.experts.*.w2 hidden moe
        mlp.gate experts hidden
        mlp.experts.gate_up_proj experts moe+moe hidden
        mlp.experts.down_proj experts hidden moe
        """,
        keys={**MOE, "moe": ("intermediate_size",), "experts": ("num_local_experts",)},
        folds=INTO_ATTENTION
        + """
        post_attention_layernorm block_sparse_moe.gate block_sparse_moe.experts.*.w1 block_sparse_moe.experts.*.w3 \
         mlp.gate mlp.experts.gate_up_proj
        block_sparse_moe.experts.*.w3 block_sparse_moe.experts.*.w2
        """,
    ),
    Family(
        types=("qwen2_moe", "qwen3_moe"),
        stack="layers",
        outer=OUTER,
        block=ATTENTION + GATED + EXPERTS,
        keys=MOE,
        folds=INTO_ATTENTION + INTO_EXPERTS,
    ),
    Family(
        types=("gpt2",),
        stack="h",
        outer="""
        wte # hidden
        wpe # hidden
        ln_f hidden
        lm_head - hidden
        score - hidden
        """,
        block="""
        ln_1 hidden
        ln_2 hidden
        attn.c_attn hidden > q+q+q
        attn.c_proj q > hidden
        attn.bias - - - -
        attn.masked_bias -
        mlp.c_fc hidden > neurons
        mlp.c_proj neurons > hidden
        """,
        prefixes=("transformer.",),
        keys={
            "hidden": ("n_embd",),
            "neurons": ("n_inner",),
            "heads": ("n_head",),
            "layers": ("n_layer",),
        },
        times={"neurons": 4},
        bound_heads=True,
        last_norms=("ln_f",),
        tied=True,
    ),
    Family(
        types=("bert", "roberta", "xlm-roberta", "camembert"),
        stack="encoder.layer",
        outer="""
        embeddings.word_embeddings # hidden
        embeddings.position_embeddings # hidden
        embeddings.token_type_embeddings # hidden
        embeddings.LayerNorm hidden
        embeddings.position_ids - -
        embeddings.token_type_ids - -
        pooler.dense hidden hidden
        cls.predictions.transform.dense hidden hidden
        cls.predictions.transform.LayerNorm hidden
        cls.predictions.decoder - hidden
        cls.predictions.bias -
        cls.seq_relationship - hidden
        lm_head.dense hidden hidden
        lm_head.layer_norm hidden
        lm_head.decoder - hidden
        lm_head.bias -
        classifier - hidden
        classifier.dense hidden hidden
        classifier.out_proj - hidden
        qa_outputs - hidden
        """,
        block=_BERT,
        prefixes=("bert.", "roberta."),
        keys=KEYS,
        bound_heads=True,
        heads=("cls.predictions.decoder", "lm_head.decoder"),
        last_norms=("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
        tied=True,
        folds="attention.self.value attention.output.dense",  # all norms go into the residual stream
    ),
    Family(
        types=("distilbert",),
        stack="transformer.layer",
        outer="""
        embeddings.word_embeddings # hidden
        embeddings.position_embeddings # hidden
        embeddings.LayerNorm hidden
        vocab_transform hidden hidden
        vocab_layer_norm hidden
        vocab_projector - hidden
        pre_classifier hidden hidden
        classifier - hidden
        qa_outputs - hidden
        """,
        block="""
        attention.q_lin q hidden
        attention.k_lin q hidden
        attention.v_lin q hidden
        attention.out_lin hidden q
        sa_layer_norm hidden
        ffn.lin1 neurons hidden
        ffn.lin2 hidden neurons
        output_layer_norm hidden
        """,
        prefixes=("distilbert.",),
        keys={"hidden": ("dim",), "neurons": ("hidden_dim",), "heads": ("n_heads",), "layers": ("n_layers",)},
        bound_heads=True,
        heads=("vocab_projector",),
        last_norms=("vocab_layer_norm",),
        tied=True,
        folds="attention.v_lin attention.out_lin",
    ),
    Family(
        types=("vit",),
        stack="encoder.layer",
        outer="""
        embeddings.cls_token # - hidden
        embeddings.mask_token # - hidden
        embeddings.position_embeddings # - hidden
        embeddings.patch_embeddings.projection hidden - - -
        layernorm hidden
        pooler.dense - hidden
        classifier - hidden
        """,
        block="""
        attention.attention.query q hidden
        attention.attention.key q hidden
        attention.attention.value q hidden
        attention.output.dense hidden q
        intermediate.dense neurons hidden
        output.dense hidden neurons
        layernorm_before hidden
        layernorm_after hidden
        """,
        prefixes=("vit.",),
        keys=KEYS,
        implied=("pooler_output_size",),
        heads=(),
        last_norms=(),
        folds="""
        layernorm_before attention.attention.query attention.attention.key attention.attention.value
        attention.attention.value attention.output.dense
        layernorm_after intermediate.dense
        """,
    ),
    Family(
        types=("dinov2", "dinov2_with_registers"),
        stack="encoder.layer",
        outer="""
        embeddings.cls_token # - hidden
        embeddings.mask_token # hidden
        embeddings.register_tokens # - hidden
        embeddings.position_embeddings # - hidden
        embeddings.patch_embeddings.projection hidden - - -
        layernorm hidden
        classifier - hidden+hidden
        """,
        block="""
        norm1 hidden
        attention.attention.query q hidden
        attention.attention.key q hidden
        attention.attention.value q hidden
        attention.output.dense hidden q
        layer_scale1.lambda1 hidden
        norm2 hidden
        mlp.fc1 - hidden
        mlp.fc2 hidden -
        mlp.weights_in - hidden
        mlp.weights_out hidden -
        layer_scale2.lambda1 hidden
        """,
        prefixes=("dinov2.", "dinov2_with_registers."),
        keys={symbol: names for symbol, names in KEYS.items() if symbol not in ("neurons", "kv_heads")},
        refuses=dict.fromkeys(
            ("neurons", "hidden"), "there are mlp_ratio times the width, and config.json cannot say otherwise"
        ),
        heads=(),
        last_norms=(),
        folds="""
        norm1 attention.attention.query attention.attention.key attention.attention.value
        attention.attention.value attention.output.dense
        norm2 mlp.fc1 mlp.weights_in
        """,
    ),
    *LANGUAGE_MODELS,
    *WITH_VISION,
    *ENCODER_DECODERS,
    *TOWERS,
)
