"""Families of language models, most of which differ from Llama in a norm or two; and three encoders."""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.family import Family, Kinds
from compressor.architectures.usual_tables import ATTENTION, GATED, INTO_ATTENTION, INTO_GATED, KEYS, OUTER

_LLAMA = Family(
    types=("smollm3",),
    stack="layers",
    outer=OUTER,
    block=ATTENTION + GATED,
    keys=KEYS,
    folds=INTO_ATTENTION + INTO_GATED,
)
_AFTER = """
self_attn.q_proj q hidden
self_attn.k_proj kv hidden
self_attn.v_proj kv hidden
self_attn.o_proj hidden q
self_attn.q_norm q
self_attn.k_norm kv
post_attention_layernorm hidden
post_feedforward_layernorm hidden
"""
_OLMO2 = replace(
    _LLAMA,
    types=("olmo2",),
    block=_AFTER + GATED,
    refuses={"heads": "the queries of all heads have one norm, which fewer heads would change"},
    folds="""
    self_attn.v_proj self_attn.o_proj
    mlp.up_proj mlp.down_proj
    """,
)
_EXAONE4 = replace(
    _OLMO2,
    types=("exaone4",),
    block=_AFTER.replace("q_norm q", "q_norm -").replace("k_norm kv", "k_norm -") + GATED,
    kinds=Kinds(("sliding_window_pattern",), 4),
    refuses={},
)
_COHERE = replace(
    _LLAMA,
    types=("cohere",),
    block="""
    input_layernorm hidden
    self_attn.q_proj q hidden
    self_attn.k_proj kv hidden
    self_attn.v_proj kv hidden
    self_attn.o_proj hidden q
    """
    + GATED,
    tied=True,
    folds="""
    input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj mlp.gate_proj mlp.up_proj
    self_attn.v_proj self_attn.o_proj
    mlp.up_proj mlp.down_proj
    """,
)
_GLM = replace(
    _LLAMA,
    types=("glm",),
    block=ATTENTION
    + """
    mlp.gate_up_proj neurons+neurons hidden
    mlp.down_proj hidden neurons
    """,
    defaults={"head_dim": 128},
    folds=INTO_ATTENTION
    + """
    post_attention_layernorm mlp.gate_up_proj
    mlp.gate_up_proj:1 mlp.down_proj
    """,
)
_DENSE = """
mlp.dense_h_to_4h neurons hidden
mlp.dense_4h_to_h hidden neurons
"""
_INTO_FUSED = """
input_layernorm attention.query_key_value
post_attention_layernorm mlp.dense_h_to_4h
"""

_BY_LAYER = "what each block is given besides lies in one table, by numbers of blocks and for one width"
GEMMA4 = replace(
    _LLAMA,
    types=("gemma4_text",),
    outer=OUTER
    + """
    embed_tokens_per_layer # -
    per_layer_model_projection - hidden
    per_layer_projection_norm -
    """,
    block="""
    input_layernorm hidden
    post_attention_layernorm hidden
    pre_feedforward_layernorm hidden
    post_feedforward_layernorm hidden
    layer_scalar -
    self_attn.q_proj - hidden
    self_attn.k_proj - hidden
    self_attn.v_proj - hidden
    self_attn.o_proj hidden -
    self_attn.q_norm -
    self_attn.k_norm -
    per_layer_input_gate - hidden
    per_layer_projection hidden -
    post_per_layer_input_norm hidden
    """
    + GATED,
    refuses={"heads": "heads of blocks with full attention are wider than those of others, and are not cut"},
    only={
        "neurons": ("use_double_wide_mlp", False, "blocks without keys of their own have twice as many"),
        "layers": ("hidden_size_per_layer_input", 0, _BY_LAYER),
        "hidden": ("hidden_size_per_layer_input", 0, _BY_LAYER),
    },
    kinds=Kinds((), 6),
    tied=True,
    grows=True,
    folds="""
    input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj
    pre_feedforward_layernorm mlp.gate_proj mlp.up_proj
    mlp.up_proj mlp.down_proj
    """,
)

LANGUAGE_MODELS = (
    replace(_LLAMA, tied=True, kinds=Kinds(("no_rope_layer_interval",), 4, 1, full=0, entry="no_rope_layers")),
    replace(_LLAMA, types=("ernie4_5",), defaults={"head_dim": 128}, tied=True),
    replace(_LLAMA, types=("seed_oss",), defaults={"head_dim": 128}),
    replace(
        _LLAMA,
        types=("hunyuan_v1_dense",),
        block=_LLAMA.block
        + """
        self_attn.query_layernorm -
        self_attn.key_layernorm -
        """,
    ),
    replace(_LLAMA, types=("stablelm",), bound_heads=True),
    _OLMO2,
    replace(_OLMO2, types=("olmo3",), kinds=Kinds((), 4)),
    _EXAONE4,
    _COHERE,
    replace(_COHERE, types=("cohere2",), kinds=Kinds(("sliding_window_pattern", "_sliding_window_pattern"), 4)),
    _GLM,
    replace(
        _GLM,
        types=("glm4",),
        block=_GLM.block
        + """
        post_self_attn_layernorm hidden
        post_mlp_layernorm hidden
        """,
    ),
    replace(
        _LLAMA,
        types=("starcoder2",),
        block=ATTENTION
        + """
        mlp.c_fc neurons hidden
        mlp.c_proj hidden neurons
        """,
        tied=True,
        folds=INTO_ATTENTION + "post_attention_layernorm mlp.c_fc",
    ),
    Family(
        types=("gpt_neox",),
        stack="layers",
        outer="""
        embed_in # hidden
        final_layer_norm hidden
        embed_out - hidden
        """,
        block="""
        input_layernorm hidden
        post_attention_layernorm hidden
        attention.query_key_value 3q hidden
        attention.dense hidden q
        attention.bias - - - -
        attention.masked_bias
        attention.rotary_emb.inv_freq -
        """
        + _DENSE,
        prefixes=("gpt_neox.",),
        keys=KEYS,
        bound_heads=True,
        heads=("embed_out",),
        last_norms=("final_layer_norm",),
        folds=_INTO_FUSED,
    ),
    Family(
        types=("bloom",),
        stack="h",
        outer="""
        word_embeddings # hidden
        word_embeddings_layernorm hidden
        ln_f hidden
        lm_head - hidden
        """,
        block="""
        input_layernorm hidden
        post_attention_layernorm hidden
        self_attention.query_key_value - hidden
        self_attention.dense hidden -
        mlp.dense_h_to_4h - hidden
        mlp.dense_4h_to_h hidden -
        """,
        prefixes=("transformer.",),
        keys={
            "hidden": ("n_embed", "hidden_size"),
            "heads": ("n_head", "num_attention_heads"),
            "layers": ("n_layer", "num_hidden_layers"),
        },
        refuses={
            "neurons": "there are four times the width, and config.json cannot say otherwise",
            "heads": "what a head adds for the distance depends on how many there are",
            "hidden": "the width is that of all heads, whose number cannot change",
        },
        last_norms=("ln_f",),
        tied=True,
        folds="""
        input_layernorm self_attention.query_key_value
        post_attention_layernorm mlp.dense_h_to_4h
        """,
    ),
    Family(
        types=("falcon",),
        stack="h",
        outer="""
        word_embeddings # hidden
        ln_f hidden
        lm_head - hidden
        """,
        block="""
        input_layernorm hidden
        post_attention_layernorm hidden
        ln_attn hidden
        ln_mlp hidden
        self_attention.query_key_value - hidden
        self_attention.dense hidden -
        """
        + _DENSE,
        prefixes=("transformer.",),
        keys={
            "hidden": ("hidden_size",),
            "neurons": ("ffn_hidden_size",),
            "heads": ("num_attention_heads",),
            "layers": ("num_hidden_layers",),
        },
        times={"neurons": 4},
        refuses={
            "heads": "the width is that of all heads, and config.json cannot say otherwise",
            "hidden": "queries, keys and values of its versions lie in one matrix in different ways",
        },
        last_norms=("ln_f",),
        tied=True,
    ),
    Family(
        types=("gptj",),
        stack="h",
        outer="""
        wte # hidden
        ln_f hidden
        lm_head - hidden
        """,
        block="""
        ln_1 hidden
        attn.q_proj q hidden
        attn.k_proj q hidden
        attn.v_proj q hidden
        attn.out_proj hidden q
        attn.bias - - - -
        attn.masked_bias
        mlp.fc_in neurons hidden
        mlp.fc_out hidden neurons
        """,
        prefixes=("transformer.",),
        keys={"hidden": ("n_embd",), "neurons": ("n_inner",), "heads": ("n_head",), "layers": ("n_layer",)},
        times={"neurons": 4},
        bound_heads=True,
        last_norms=("ln_f",),
        folds="""
        ln_1 attn.q_proj attn.k_proj attn.v_proj mlp.fc_in
        attn.v_proj attn.out_proj
        """,
    ),
    Family(
        types=("opt",),
        stack="layers",
        outer="""
        embed_tokens # embed
        embed_positions # hidden
        project_in hidden embed
        project_out embed hidden
        final_layer_norm hidden
        lm_head - embed
        """,
        block="""
        self_attn_layer_norm hidden
        self_attn.q_proj q hidden
        self_attn.k_proj q hidden
        self_attn.v_proj q hidden
        self_attn.out_proj hidden q
        final_layer_norm hidden
        fc1 neurons hidden
        fc2 hidden neurons
        """,
        prefixes=("model.decoder.", "decoder."),
        keys={
            "hidden": ("hidden_size",),
            "embed": ("word_embed_proj_dim",),
            "neurons": ("ffn_dim",),
            "heads": ("num_attention_heads",),
            "layers": ("num_hidden_layers",),
        },
        defaults={"embed": "hidden_size"},
        bound_heads=True,
        last_norms=("final_layer_norm",),
        tied=True,
        folds="self_attn.v_proj self_attn.out_proj",  # whether norms come before or after is the config's to say
    ),
    Family(
        types=("electra",),
        stack="encoder.layer",
        outer="""
        embeddings.word_embeddings # embed
        embeddings.position_embeddings # embed
        embeddings.token_type_embeddings # embed
        embeddings.LayerNorm embed
        embeddings.position_ids - -
        embeddings_project hidden embed
        generator_predictions.dense embed hidden
        generator_predictions.LayerNorm embed
        generator_lm_head - embed
        discriminator_predictions.dense hidden hidden
        discriminator_predictions.dense_prediction - hidden
        classifier - hidden
        classifier.dense hidden hidden
        classifier.out_proj - hidden
        qa_outputs - hidden
        """,
        block="""
        attention.self.query q hidden
        attention.self.key q hidden
        attention.self.value q hidden
        attention.output.dense hidden q
        attention.output.LayerNorm hidden
        intermediate.dense neurons hidden
        output.dense hidden neurons
        output.LayerNorm hidden
        """,
        prefixes=("electra.",),
        keys={**KEYS, "embed": ("embedding_size",)},
        defaults={"embed": 128},
        bound_heads=True,
        heads=("generator_lm_head",),
        last_norms=("generator_predictions.LayerNorm",),
        tied=True,
        folds="attention.self.value attention.output.dense",
    ),
    Family(
        types=("mpnet",),
        stack="encoder.layer",
        outer="""
        embeddings.word_embeddings # hidden
        embeddings.position_embeddings # hidden
        embeddings.LayerNorm hidden
        embeddings.position_ids - -
        encoder.relative_attention_bias # -
        pooler.dense - hidden
        lm_head.dense hidden hidden
        lm_head.layer_norm hidden
        lm_head.decoder - hidden
        lm_head.bias -
        classifier.dense hidden hidden
        classifier.out_proj - hidden
        """,
        block="""
        attention.attn.q - hidden
        attention.attn.k - hidden
        attention.attn.v - hidden
        attention.attn.o hidden -
        attention.LayerNorm hidden
        intermediate.dense neurons hidden
        output.dense hidden neurons
        output.LayerNorm hidden
        """,
        prefixes=("mpnet.",),
        keys=KEYS,
        refuses={
            "heads": "the width is that of all heads, and config.json cannot say otherwise",
            "hidden": "the width is that of all heads, of which each has positions of its own",
        },
        heads=("lm_head.decoder",),
        last_norms=("lm_head.layer_norm",),
        tied=True,
    ),
    Family(
        types=("deberta-v2",),
        stack="encoder.layer",
        outer="""
        embeddings.word_embeddings # embed
        embeddings.position_embeddings # embed
        embeddings.token_type_embeddings # embed
        embeddings.embed_proj hidden embed
        embeddings.LayerNorm hidden
        embeddings.position_ids - -
        encoder.rel_embeddings # hidden
        encoder.LayerNorm hidden
        encoder.conv.conv hidden hidden -
        encoder.conv.LayerNorm hidden
        pooler.dense hidden hidden
        cls.predictions.transform.dense embed hidden
        cls.predictions.transform.LayerNorm embed
        cls.predictions.decoder - embed
        cls.predictions.bias -
        lm_predictions.lm_head.dense hidden hidden
        lm_predictions.lm_head.LayerNorm hidden
        lm_predictions.lm_head.bias -
        mask_predictions.dense hidden hidden
        mask_predictions.LayerNorm hidden
        mask_predictions.classifier - hidden
        classifier - hidden
        qa_outputs - hidden
        """,
        block="""
        attention.self.query_proj q hidden
        attention.self.key_proj q hidden
        attention.self.value_proj q hidden
        attention.self.pos_key_proj q hidden
        attention.self.pos_query_proj q hidden
        attention.output.dense hidden q
        attention.output.LayerNorm hidden
        intermediate.dense neurons hidden
        output.dense hidden neurons
        output.LayerNorm hidden
        """,
        prefixes=("deberta.",),
        keys={
            "hidden": ("hidden_size", "pooler_hidden_size"),
            "embed": ("embedding_size",),
            "neurons": ("intermediate_size",),
            "heads": ("num_attention_heads",),
            "layers": ("num_hidden_layers",),
        },
        defaults={"embed": "hidden_size"},
        bound_heads=True,
        only={"layers": ("conv_kernel_size", 0, "a convolution reads what the first block reads, and adds to it")},
        heads=("cls.predictions.decoder",),
        last_norms=("cls.predictions.transform.LayerNorm",),
        tied=True,
        folds="attention.self.value_proj attention.output.dense",
    ),
    GEMMA4,
)
