"""The models that can go into a GGUF file and come back: what each tensor is called on both sides, and what is done
to it on the way.

A shape says what a tensor of the folder has along each axis, by the sizes of `hyperparameters.sizes()`:

    V vocabulary   H hidden     F inner        P positions    T token types
    Q all queries  K all keys   D one head     E experts      M inner of an expert   S inner of the shared expert
    N heads        L latent of keys and values, L + R with their rotated part, A latent of queries
    B all keys and values that come from the latent, X all queries of such a model
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

Form = Literal[
    "plain",
    "plus one",  # a norm that transformers stores without the one
    "paired",  # rows by heads, whose halves transformers rotates and llama.cpp neighbours
    "turned",  # [in, out] in the folder
    "experts",  # a matrix of each expert in the folder
    "halves",  # [expert, gate above up, in] in the folder
    "turned halves",  # [expert, in, gate and up by turns]
    "bias by turns",  # [expert, gate and up by turns]
    "latent",  # keys above values, by heads; keys are turned in the file
]
Layers = Literal["once", "all", "dense", "sparse"]
Head = Literal[
    "optional",  # the embedding where a file has no head
    "stored",  # every file has to have one
    "embedding",  # whatever a file has
]


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors of the file that a tensor `folder` makes (of experts: a tensor of each). `{n}` is a layer, `{e}` an
    expert. Names of the folder are those inside the model's body (`body` of its family), but for the head's."""

    gguf: tuple[str, ...]
    folder: str
    shape: str
    form: Form = "plain"
    optional: bool = False
    layers: Layers = "all"


def _once(gguf: str, folder: str, shape: str, form: Form = "plain", *, optional: bool = False) -> Rule:
    return Rule((f"{gguf}",), folder, shape, form, optional, "once")


def _layer(
    gguf: str, folder: str, shape: str, form: Form = "plain", *, optional: bool = False, layers: Layers = "all"
) -> Rule:
    return Rule((f"blk.{{n}}.{gguf}",), folder, shape, form, optional, layers)


def _linear(
    gguf: str, folder: str, shape: str, form: Form = "plain", *, bias: bool | None = None, layers: Layers = "all"
) -> Iterator[Rule]:
    """The weight of a layer and its bias: None where a model may have one."""
    yield _layer(f"{gguf}.weight", f"{folder}.weight", shape, form, layers=layers)
    if bias is not False:
        rows = shape.split()[-1 if form == "turned" else 0]
        plain: Form = "plain" if form == "turned" else form
        yield _layer(f"{gguf}.bias", f"{folder}.bias", rows, plain, optional=bias is None, layers=layers)


def _rules(*parts: Rule | Iterator[Rule]) -> tuple[Rule, ...]:
    return tuple(chain.from_iterable((part,) if isinstance(part, Rule) else part for part in parts))


def _norm(gguf: str, folder: str, shape: str = "H", form: Form = "plain", *, optional: bool = False) -> Rule:
    return _layer(f"{gguf}.weight", f"{folder}.weight", shape, form, optional=optional)


# ---- what many have in common --------------------------------------------------------------------------

_HEAD = _once("output.weight", "lm_head.weight", "V H", optional=True)
_EMBEDDING = _once("token_embd.weight", "embed_tokens.weight", "V H")


def _ends(form: Form = "plain") -> tuple[Rule, ...]:
    return (_EMBEDDING, _once("output_norm.weight", "norm.weight", "H", form), _HEAD)


def _attention(
    form: Form = "plain", *, bias: bool | None = False, output_bias: bool | None = False
) -> tuple[Rule, ...]:
    """`form` of queries and keys; `bias` of queries, keys and values."""
    at = "layers.{n}.self_attn"
    return _rules(
        _linear("attn_q", f"{at}.q_proj", "Q H", form, bias=bias),
        _linear("attn_k", f"{at}.k_proj", "K H", form, bias=bias),
        _linear("attn_v", f"{at}.v_proj", "K H", bias=bias),
        _linear("attn_output", f"{at}.o_proj", "H Q", bias=output_bias),
    )


def _head_norms(queries: str = "D", keys: str = "D", form: Form = "plain") -> tuple[Rule, ...]:
    return (
        _norm("attn_q_norm", "layers.{n}.self_attn.q_norm", queries, form),
        _norm("attn_k_norm", "layers.{n}.self_attn.k_norm", keys, form),
    )


def _gated(
    layers: Layers = "all",
    at: str = "layers.{n}.mlp",
    to: str = "ffn",
    inner: str = "F",
    *,
    bias: bool | None = False,
) -> tuple[Rule, ...]:
    """`to`: what stands around gate, up and down in the file's names, `ffn` or `ffn shexp`."""
    start, _, end = to.partition(" ")
    end = f"_{end}" if end else ""
    return _rules(
        _linear(f"{start}_gate{end}", f"{at}.gate_proj", f"{inner} H", bias=bias, layers=layers),
        _linear(f"{start}_up{end}", f"{at}.up_proj", f"{inner} H", bias=bias, layers=layers),
        _linear(f"{start}_down{end}", f"{at}.down_proj", f"H {inner}", bias=bias, layers=layers),
    )


def _experts(at: str, gate: str, up: str, down: str, inner: str = "M") -> tuple[Rule, ...]:
    """Experts as files have them, one by one, or as transformers computes with them, fused."""
    one = f"{at}.experts.{{e}}"
    return (
        _layer("ffn_gate_exps.weight", f"{one}.{gate}.weight", f"{inner} H", "experts", layers="sparse"),
        _layer("ffn_up_exps.weight", f"{one}.{up}.weight", f"{inner} H", "experts", layers="sparse"),
        _layer("ffn_down_exps.weight", f"{one}.{down}.weight", f"H {inner}", "experts", layers="sparse"),
        Rule(
            ("blk.{n}.ffn_gate_exps.weight", "blk.{n}.ffn_up_exps.weight"),
            f"{at}.experts.gate_up_proj",
            f"E {inner}+{inner} H",
            "halves",
            layers="sparse",
        ),
        _layer("ffn_down_exps.weight", f"{at}.experts.down_proj", f"E H {inner}", layers="sparse"),
    )


def _two_norms(form: Form = "plain") -> tuple[Rule, ...]:
    return (
        _norm("attn_norm", "layers.{n}.input_layernorm", form=form),
        _norm("ffn_norm", "layers.{n}.post_attention_layernorm", form=form),
    )


def _four_norms(form: Form) -> tuple[Rule, ...]:
    return (
        _norm("attn_norm", "layers.{n}.input_layernorm", form=form),
        _norm("post_attention_norm", "layers.{n}.post_attention_layernorm", form=form),
        _norm("ffn_norm", "layers.{n}.pre_feedforward_layernorm", form=form),
        _norm("post_ffw_norm", "layers.{n}.post_feedforward_layernorm", form=form),
    )


def _router(folder: str, *, bias: bool = False) -> Iterator[Rule]:
    return _linear("ffn_gate_inp", folder, "E H", bias=bias, layers="sparse")


# ---- the families --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model: what GGUF calls it, what transformers does, and its rules. `body`: what stands before the
    names inside the model, and `others` what may stand there instead. `architecture`: the class by which a folder
    that is made from a file is loaded. `tied`: whether the head is the embedding where the config does not say.
    `head`: what llama.cpp does about it. `renamed`: ends of names with what older checkpoints have there. `left`:
    tensors, as regular expressions, that llama.cpp has no use for, with the reason."""

    gguf: str
    model_type: str
    architecture: str
    rules: tuple[Rule, ...]
    body: str = "model."
    others: tuple[str, ...] = ("", "model.language_model.", "language_model.model.")
    tied: bool = False
    head: Head = "optional"
    embedding: str = "embed_tokens.weight"
    renamed: tuple[tuple[str, str], ...] = ()
    left: tuple[tuple[str, str], ...] = field(
        default=((r".*\.rotary_emb\.inv_freq", "is computed from the config"),)
    )


_LLAMA = (*_ends(), *_two_norms(), *_attention("paired", bias=None, output_bias=None))
_QWEN_MOE = (
    *_two_norms(),
    *_router("layers.{n}.mlp.gate"),
    *_experts("layers.{n}.mlp", "gate_proj", "up_proj", "down_proj"),
)

_BERT_LAYER = "encoder.layer.{n}"
_BERT = _rules(
    _once("token_embd.weight", "embeddings.word_embeddings.weight", "V H"),
    _once("position_embd.weight", "embeddings.position_embeddings.weight", "P H"),
    _once("token_types.weight", "embeddings.token_type_embeddings.weight", "T H"),
    _once("token_embd_norm.weight", "embeddings.LayerNorm.weight", "H"),
    _once("token_embd_norm.bias", "embeddings.LayerNorm.bias", "H"),
    _linear("attn_q", f"{_BERT_LAYER}.attention.self.query", "Q H", bias=True),
    _linear("attn_k", f"{_BERT_LAYER}.attention.self.key", "K H", bias=True),
    _linear("attn_v", f"{_BERT_LAYER}.attention.self.value", "K H", bias=True),
    _linear("attn_output", f"{_BERT_LAYER}.attention.output.dense", "H Q", bias=True),
    _linear("attn_output_norm", f"{_BERT_LAYER}.attention.output.LayerNorm", "H", bias=True),
    _linear("ffn_up", f"{_BERT_LAYER}.intermediate.dense", "F H", bias=True),
    _linear("ffn_down", f"{_BERT_LAYER}.output.dense", "H F", bias=True),
    _linear("layer_output_norm", f"{_BERT_LAYER}.output.LayerNorm", "H", bias=True),
)
_NOMIC_LAYER = "encoder.layers.{n}"
_NOMIC = _rules(
    _once("token_embd.weight", "embeddings.word_embeddings.weight", "V H"),
    _once("token_types.weight", "embeddings.token_type_embeddings.weight", "T H"),
    _once("token_embd_norm.weight", "emb_ln.weight", "H"),
    _once("token_embd_norm.bias", "emb_ln.bias", "H"),
    _linear("attn_qkv", f"{_NOMIC_LAYER}.attn.Wqkv", "Q+K+K H", bias=False),
    _linear("attn_output", f"{_NOMIC_LAYER}.attn.out_proj", "H Q", bias=False),
    _linear("attn_output_norm", f"{_NOMIC_LAYER}.norm1", "H", bias=True),
    _linear("ffn_up", f"{_NOMIC_LAYER}.mlp.fc11", "F H", bias=False),
    _linear("ffn_gate", f"{_NOMIC_LAYER}.mlp.fc12", "F H", bias=False),
    _linear("ffn_down", f"{_NOMIC_LAYER}.mlp.fc2", "H F", bias=False),
    _linear("layer_output_norm", f"{_NOMIC_LAYER}.norm2", "H", bias=True),
)
_GPT2 = _rules(
    _once("token_embd.weight", "wte.weight", "V H"),
    _once("position_embd.weight", "wpe.weight", "P H"),
    _once("output_norm.weight", "ln_f.weight", "H"),
    _once("output_norm.bias", "ln_f.bias", "H"),
    _HEAD,
    _linear("attn_norm", "h.{n}.ln_1", "H", bias=True),
    _linear("attn_qkv", "h.{n}.attn.c_attn", "H Q+K+K", "turned", bias=True),
    _linear("attn_output", "h.{n}.attn.c_proj", "Q H", "turned", bias=True),
    _linear("ffn_norm", "h.{n}.ln_2", "H", bias=True),
    _linear("ffn_up", "h.{n}.mlp.c_fc", "H F", "turned", bias=True),
    _linear("ffn_down", "h.{n}.mlp.c_proj", "F H", "turned", bias=True),
)
_STARCODER2 = _rules(
    iter(_ends()),
    _once("output_norm.bias", "norm.bias", "H"),
    _linear("attn_norm", "layers.{n}.input_layernorm", "H", bias=True),
    _linear("ffn_norm", "layers.{n}.post_attention_layernorm", "H", bias=True),
    iter(_attention(bias=True, output_bias=True)),
    _linear("ffn_up", "layers.{n}.mlp.c_fc", "F H", bias=True),
    _linear("ffn_down", "layers.{n}.mlp.c_proj", "H F", bias=True),
)
_PHI3 = _rules(
    iter(_ends()),
    iter(_two_norms()),
    _linear("attn_qkv", "layers.{n}.self_attn.qkv_proj", "Q+K+K H", bias=False),
    _linear("attn_output", "layers.{n}.self_attn.o_proj", "H Q", bias=False),
    _linear("ffn_up", "layers.{n}.mlp.gate_up_proj", "F+F H", bias=False),
    _linear("ffn_down", "layers.{n}.mlp.down_proj", "H F", bias=False),
)
_OSS = "layers.{n}.mlp.experts"
_GATE_UP = ("blk.{n}.ffn_gate_exps", "blk.{n}.ffn_up_exps")
_GPT_OSS = _rules(
    iter(_ends()),
    _norm("attn_norm", "layers.{n}.input_layernorm"),
    _norm("post_attention_norm", "layers.{n}.post_attention_layernorm"),
    iter(_attention(bias=True, output_bias=True)),
    _layer("attn_sinks.weight", "layers.{n}.self_attn.sinks", "N"),
    _router("layers.{n}.mlp.router", bias=True),
    Rule(tuple(f"{name}.weight" for name in _GATE_UP), f"{_OSS}.gate_up_proj", "E H F+F", "turned halves"),
    Rule(tuple(f"{name}.bias" for name in _GATE_UP), f"{_OSS}.gate_up_proj_bias", "E F+F", "bias by turns"),
    _layer("ffn_down_exps.weight", f"{_OSS}.down_proj", "E F H", "turned"),
    _layer("ffn_down_exps.bias", f"{_OSS}.down_proj_bias", "E H"),
)
_MLA = "layers.{n}.self_attn"
_DEEPSEEK = _rules(
    iter(_ends()),
    iter(_two_norms()),
    _layer("attn_q.weight", f"{_MLA}.q_proj.weight", "X H", optional=True),
    _layer("attn_q_a.weight", f"{_MLA}.q_a_proj.weight", "A H", optional=True),
    _norm("attn_q_a_norm", f"{_MLA}.q_a_layernorm", "A", optional=True),
    _layer("attn_q_b.weight", f"{_MLA}.q_b_proj.weight", "X A", optional=True),
    _layer("attn_kv_a_mqa.weight", f"{_MLA}.kv_a_proj_with_mqa.weight", "L+R H"),
    _norm("attn_kv_a_norm", f"{_MLA}.kv_a_layernorm", "L"),
    Rule(("blk.{n}.attn_k_b.weight", "blk.{n}.attn_v_b.weight"), f"{_MLA}.kv_b_proj.weight", "B L", "latent"),
    _layer("attn_output.weight", f"{_MLA}.o_proj.weight", "H O"),
    iter(_gated("dense")),
    _router("layers.{n}.mlp.gate"),
    _layer("exp_probs_b.bias", "layers.{n}.mlp.gate.e_score_correction_bias", "E", optional=True, layers="sparse"),
    iter(_experts("layers.{n}.mlp", "gate_proj", "up_proj", "down_proj")),
    iter(_gated("sparse", "layers.{n}.mlp.shared_experts", "ffn shexp", "S")),
)

FAMILIES: tuple[Family, ...] = (
    Family("llama", "llama", "LlamaForCausalLM", (*_LLAMA, *_gated(bias=None))),
    Family("llama", "mistral", "MistralForCausalLM", (*_LLAMA, *_gated())),
    Family(
        "llama",
        "mixtral",
        "MixtralForCausalLM",
        (
            *_LLAMA,
            *_router("layers.{n}.block_sparse_moe.gate"),
            *_experts("layers.{n}.block_sparse_moe", "w1", "w3", "w2", "F"),
        ),
    ),
    Family("qwen2", "qwen2", "Qwen2ForCausalLM", (*_ends(), *_two_norms(), *_attention(bias=None), *_gated())),
    Family(
        "qwen2moe",
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        (
            *_ends(),
            *_attention(bias=None),
            *_QWEN_MOE,
            *_gated("sparse", "layers.{n}.mlp.shared_expert", "ffn shexp", "S"),
            _layer("ffn_gate_inp_shexp.weight", "layers.{n}.mlp.shared_expert_gate.weight", "1 H", layers="sparse"),
        ),
        head="stored",
    ),
    Family(
        "qwen3", "qwen3", "Qwen3ForCausalLM", (*_ends(), *_two_norms(), *_attention(), *_head_norms(), *_gated())
    ),
    Family("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM", (*_ends(), *_attention(), *_head_norms(), *_QWEN_MOE)),
    Family(
        "gemma",
        "gemma",
        "GemmaForCausalLM",
        (*_ends("plus one"), *_two_norms("plus one"), *_attention(), *_gated()),
        tied=True,
        head="embedding",
    ),
    Family(
        "gemma2",
        "gemma2",
        "Gemma2ForCausalLM",
        (*_ends("plus one"), *_four_norms("plus one"), *_attention(), *_gated()),
        tied=True,
        head="embedding",
    ),
    Family(
        "gemma3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        (
            *_ends("plus one"),
            *_four_norms("plus one"),
            *_attention(),
            *_head_norms(form="plus one"),
            *_gated(),
        ),
        tied=True,
    ),
    Family("phi3", "phi3", "Phi3ForCausalLM", _PHI3),
    Family("gpt-oss", "gpt_oss", "GptOssForCausalLM", _GPT_OSS, head="stored"),
    Family("deepseek2", "deepseek_v2", "DeepseekV2ForCausalLM", _DEEPSEEK),
    Family("deepseek2", "deepseek_v3", "DeepseekV3ForCausalLM", _DEEPSEEK),
    Family(
        "bert",
        "bert",
        "BertModel",
        _BERT,
        body="",
        others=("bert.", "model."),
        embedding="embeddings.word_embeddings.weight",
        renamed=((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta")),
        left=(
            (r"(.*\.)?embeddings\.position_ids", "is a count"),
            (r"(.*\.)?pooler\.dense\.(weight|bias)", "llama.cpp pools without it"),
            (r"cls\.(predictions|seq_relationship)\..*", "llama.cpp gives embeddings only"),
        ),
    ),
    Family(
        "nomic-bert",
        "nomic_bert",
        "NomicBertModel",
        _NOMIC,
        body="",
        others=("bert.", "model."),
        embedding="embeddings.word_embeddings.weight",
    ),
    Family(
        "gpt2",
        "gpt2",
        "GPT2LMHeadModel",
        _GPT2,
        body="transformer.",
        others=("",),
        tied=True,
        embedding="wte.weight",
        left=((r".*\.attn\.(bias|masked_bias)", "is the causal mask"),),
    ),
    Family("starcoder2", "starcoder2", "Starcoder2ForCausalLM", _STARCODER2, tied=True),
    Family("granite", "granite", "GraniteForCausalLM", (*_LLAMA, *_gated(bias=None))),
    Family(
        "olmo2",
        "olmo2",
        "Olmo2ForCausalLM",
        (
            *_ends(),
            _norm("post_attention_norm", "layers.{n}.post_attention_layernorm"),
            _norm("post_ffw_norm", "layers.{n}.post_feedforward_layernorm"),
            *_attention(),
            *_head_norms("Q", "K"),
            *_gated(),
        ),
        head="stored",
    ),
    Family(
        "smollm3",
        "smollm3",
        "SmolLM3ForCausalLM",
        (*_ends(), *_two_norms(), *_attention("paired"), *_gated()),
        tied=True,
    ),
)
