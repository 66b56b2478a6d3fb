"""What is known of architectures, as data: which dimension of each tensor is which dimension of the model.

A line is a module (or a parameter) and the dimensions of its weight, as the file orders them:

* `hidden` the residual width; `q`, `kv` heads of queries, and of keys and values; `neurons` of an MLP, `moe` those
  of an expert, `shared` those of a shared expert; `experts`; `-` what is never cut;
* `#` what is looked up and not summed over, nor ever cut: an embedding's rows;
* `a+b` are sections one after the other in a fused projection; `a > b` is a weight [in, out], as GPT-2 has them.

A `*` in a name is a number, the expert's. A bias has the weight's output dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """Models of one wiring. Names are given without `prefixes`; blocks are numbered after `stack`.

    `keys`: what config.json calls the sizes, several names where versions differ. `bound_heads`: the width of a
    head is the hidden size over the number of heads, and no entry of the config can say otherwise.

    `heads`: modules that give logits and whose weight may be that of the embedding; it is where the config says
    `tie_word_embeddings`, or is silent and `tied`. `last_norms`: norms whose outputs these heads read.
    `grows`: embeddings are multiplied by the root of the width; `one_plus`: norms multiply by 1 + weight.

    `folds`: where a scale of single inputs can go without changing what the model computes: a line is a module
    whose outputs go nowhere but into the modules after it, with nothing between that would not pass a factor on.
    `:2` is the third section of a fused projection. Of two lines for the same readers the first one that a block
    has holds.
    """

    types: tuple[str, ...]
    stack: str
    outer: str
    block: str
    prefixes: tuple[str, ...] = ("model.",)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bound_heads: bool = False
    heads: tuple[str, ...] = ("lm_head",)
    last_norms: tuple[str, ...] = ("norm",)
    tied: bool = False
    grows: bool = False
    one_plus: bool = False
    folds: str = ""


_KEYS = {
    "hidden": ("hidden_size",),
    "neurons": ("intermediate_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "layers": ("num_hidden_layers",),
}
_MOE = {
    **_KEYS,
    "moe": ("moe_intermediate_size",),
    "shared": ("shared_expert_intermediate_size",),
    "experts": ("num_experts", "num_local_experts"),
}
_OUTER = """
embed_tokens # hidden
norm hidden
lm_head - hidden
score - hidden
rotary_emb.inv_freq -
"""
_ATTENTION = """
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
_GATED = """
mlp.gate_proj neurons hidden
mlp.up_proj neurons hidden
mlp.down_proj hidden neurons
"""
_EXPERTS = """
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
_INTO_ATTENTION = """
input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj
self_attn.v_proj self_attn.o_proj
"""
_INTO_GATED = """
post_attention_layernorm mlp.gate_proj mlp.up_proj
mlp.up_proj mlp.down_proj
"""
_INTO_EXPERTS = """
post_attention_layernorm mlp.gate_proj mlp.up_proj mlp.gate mlp.experts.*.gate_proj mlp.experts.*.up_proj \
 mlp.experts.gate_up_proj mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert_gate
mlp.up_proj mlp.down_proj
mlp.experts.*.up_proj mlp.experts.*.down_proj
mlp.shared_expert.up_proj mlp.shared_expert.down_proj
"""
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

FAMILIES = (
    Family(
        types=("llama", "mistral", "qwen2", "qwen3"),
        stack="layers",
        outer=_OUTER,
        block=_ATTENTION + _GATED,
        keys=_KEYS,
        folds=_INTO_ATTENTION + _INTO_GATED,
    ),
    Family(
        types=("gemma", "gemma2", "gemma3_text"),
        stack="layers",
        outer=_OUTER,
        block=_ATTENTION
        + _GATED
        + """
        pre_feedforward_layernorm hidden
        post_feedforward_layernorm hidden
        """,
        keys=_KEYS,
        tied=True,
        grows=True,
        one_plus=True,
        # gemma has no norm of that name, and in the others the one after attention goes into the residual stream
        folds="pre_feedforward_layernorm mlp.gate_proj mlp.up_proj" + _INTO_ATTENTION + _INTO_GATED,
    ),
    Family(
        types=("phi3",),
        stack="layers",
        outer=_OUTER,
        block="""
        input_layernorm hidden
        post_attention_layernorm hidden
        self_attn.qkv_proj q+kv+kv hidden
        self_attn.o_proj hidden q
        mlp.gate_up_proj neurons+neurons hidden
        mlp.down_proj hidden neurons
        """,
        keys=_KEYS,
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
        outer=_OUTER + "final_layernorm hidden",
        block="""
        input_layernorm hidden
        self_attn.q_proj q hidden
        self_attn.k_proj kv hidden
        self_attn.v_proj kv hidden
        self_attn.dense hidden q
        mlp.fc1 neurons hidden
        mlp.fc2 hidden neurons
        """,
        keys=_KEYS,
        last_norms=("final_layernorm",),
        folds="""
        input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj mlp.fc1
        self_attn.v_proj self_attn.dense
        """,
    ),
    Family(
        types=("mixtral",),
        stack="layers",
        outer=_OUTER,
        block=_ATTENTION
        + """
        block_sparse_moe.gate experts hidden
        block_sparse_moe.experts.*.w1 moe hidden
        block_sparse_moe.experts.*.w3 moe hidden
        block_sparse_moe.experts.*.w2 hidden moe
        mlp.gate experts hidden
        mlp.experts.gate_up_proj experts moe+moe hidden
        mlp.experts.down_proj experts hidden moe
        """,
        keys={**_MOE, "moe": ("intermediate_size",), "experts": ("num_local_experts",)},
        folds=_INTO_ATTENTION
        + """
        post_attention_layernorm block_sparse_moe.gate block_sparse_moe.experts.*.w1 block_sparse_moe.experts.*.w3 \
         mlp.gate mlp.experts.gate_up_proj
        block_sparse_moe.experts.*.w3 block_sparse_moe.experts.*.w2
        """,
    ),
    Family(
        types=("qwen2_moe", "qwen3_moe"),
        stack="layers",
        outer=_OUTER,
        block=_ATTENTION + _GATED + _EXPERTS,
        keys=_MOE,
        folds=_INTO_ATTENTION + _INTO_EXPERTS,
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
        keys=_KEYS,
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
        keys=_KEYS,
        heads=(),
        last_norms=(),
        folds="""
        layernorm_before attention.attention.query attention.attention.key attention.attention.value
        attention.attention.value attention.output.dense
        layernorm_after intermediate.dense
        """,
    ),
)
