"""What a tensor is to its model, by its name and shape: the weight of a layer, or something that is none.

Methods are made for the matrices and kernels that inputs are multiplied with. A checkpoint holds more than those:
tables whose rows are looked up, tokens that stand among the inputs, decays of a state, gains, biases of several
axes, filters and caches. They are few numbers, models are sensitive to them, and loaders read them as numbers and
never as codes. The words below are those of transformers 5.24 (`python -m bench.architectures.parameters` holds
them against every model that it can build) and of the files that people publish beside it: timm, diffusers,
open_clip, NeMo, RWKV, StripedHyena, Medusa, EAGLE, DeepSeek's extra layers, GGUF.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache

from compressor.architectures.heads import is_head


class Role(Enum):
    """What a tensor is; the value is how reports call it."""

    LAYER = "weight of a layer"
    VECTOR = "vector or scalar (biases, norms)"
    HEAD = "output head"
    EMBEDDING = "embedding"
    ROUTER = "router"
    TOWER = "vision or audio tower, or its projector"
    SPECULATIVE = "head that guesses tokens ahead"
    TOKEN = "learned token or query"  # noqa: S105 - no password
    POSITION = "position table or relative bias"
    STATE_SPACE = "state-space parameter"
    CONVOLUTION = "short convolution of a state-space layer"
    NORM = "norm of several axes"
    BIAS = "bias of several axes"
    GAIN = "scale of its layer"
    MIXING = "mixing of residual streams"
    MASK = "mask"
    COMPUTED = "parameter that a weight is computed of (torch's parametrizations)"
    BUFFER = "filter, cache or state that is no weight"

    @property
    def is_weight(self) -> bool:
        """Whether a tensor of this role is a matrix that a model has for its own sake, so that a method may well
        treat it if asked to; tensors of other roles are no weights, whatever their shapes."""
        return self in (Role.LAYER, Role.TOWER, Role.HEAD, Role.EMBEDDING, Role.ROUTER, Role.SPECULATIVE)


# Of modules, by the names of their `weight`
_TABLE = re.compile(  # rows that are looked up; and what stands right below such a module
    r"(^|\.)(embed[^.]*|[^.]*_embed(ding)?s?|text_embed_tokens|wte|wpe|relative_attention_bias)\.([^.]+\.)?weight$"
    r"|(^|\.)audio\.encoder\.weight$"  # of tokens of sound, in Inkling
    r"|(^|\.)([^.]*_)?emb(\.\d+)?\.weight$|(^|\.)[^.]*_(embeds?_layers?(\.\d+)?|embeddings?_table)\.weight$"
    r"|(^|\.)(shared|codebook|query_feat|queries_[^.]+|emb_g|emb_pitch)\.weight$|^transformer\.w\.weight$"
    r"|^(token_embd|token_types|per_layer_token_embd)\.weight$"
)
_POSITION_TABLE = re.compile(
    r"(^|[._])(pos|position|positional|rel_pos|relative_position)_(emb|embeds?|embeddings?|bias|encoding)(_table|_layer)?\.weight$"
    r"|^([va]\.)?position_embd\.weight$|(^|\.)(wpe|relative_attention_bias|bias_values|rel_pos_bias|rel_pos_[xy]_bias)\.weight$"
)
# Layers that compute such a table from coordinates
_POSITION_LAYERS = re.compile(r"(^|\.)(cpb|continuous_position_bias)_mlp\.(fc)?\d+\.weight$")
_TOKENS = re.compile(
    r"(^|\.)([^.]*_)?(?<!embed_)tokens?\.weight$|^query\.weight$|(^|\.)query_\d+_resolution\.weight$"
)
# Of detectors: tables [queries, 2 or 4], which others compute with a linear layer of that name
_POINTS = re.compile(r"(^|\.)reference_points\.weight$")
_ROUTER = re.compile(
    r"(^|\.)(gate|router|gating|ffn_gate_inp(_shexp)?|[^.]*_router|(moe|router|shared_experts?|experts?)_gate|gate\.wg|router\.[^.]+)\.weight$"
)
_SPECULATIVE = re.compile(
    r"(^|\.)((medusa|hydra|eagle|speculator|draft_head|mtp_head)[^.]*\..*|eh_proj\.|mtp\.fc\.|mtp_linear_proj\.(\d+\.)?"
    r"|mtp_layers\.\d+\.input_proj\.)weight$",
    re.IGNORECASE,
)
# Parts of models that read more than text, which the field leaves dense: they are small and sensitive
_TOWER = re.compile(
    r"(^|\.)(vision_tower|visual|audio_tower|vpm|apm|multi_modal_projector|mm_projector|embed_vision|embed_audio)\."
    r"|(^|\.)model\.(vision_model|connector)\.|^[va]\.(blk|patch_embd)\.|^mm\.[\w.]*\d"
)
_NORM = re.compile(r"(^|[._])([a-z_]*norm|ln|grn)_?\d*(\.scale|\.shift)?\.weight$", re.IGNORECASE)
_TIME_STEP = re.compile(r"(^|\.)(dt_proj|ssm_dt)\.weight$")
# Convolutions whose kernels are computed, not learned: of spectrograms, of blurring, and YOLO's expected distance
_FILTER = re.compile(r"(^|\.)(stft\.conv_(real|imag)|dfl\.conv|blur(_?pool)?(\.\w+)?)\.weight$")
# Matrices of a module of their own that scores are computed with: of CSM, of a speaker's verification
_SCORES = re.compile(r"(^|\.)(codebooks_head|objective|v_head(\.summary)?)\.weight$")
_MODULES = (
    (_FILTER, Role.BUFFER),
    (_SCORES, Role.HEAD),
    (_SPECULATIVE, Role.SPECULATIVE),
    (_POSITION_TABLE, Role.POSITION),
    (_POSITION_LAYERS, Role.POSITION),
    (_TABLE, Role.EMBEDDING),
    (_TOKENS, Role.TOKEN),
    (_ROUTER, Role.ROUTER),
    (_TIME_STEP, Role.STATE_SPACE),
    (_NORM, Role.NORM),
    (_TOWER, Role.TOWER),
)
_ANY = re.compile("|".join(f"(?{'i' if p.flags & re.IGNORECASE else ''}:{p.pattern})" for p, _ in _MODULES))
_STEPS = 8  # of a short convolution, at most
_POINT = 4  # numbers of a box
_SHORT = re.compile(r"(^|[._])(conv1d|short_conv|conv\.conv)\.weight$")
_WEIGHT = re.compile(r"(^|[._])(weight|weights|kernel)$")  # what layers call the thing itself
_NO_WEIGHT = re.compile(r"dt_.*|static_weight|short_filter_weight|(blur|resample)_?kernel|weight_integer")
# Parameters whose own names say nothing, by the modules that they are in
_WITHIN = (
    (re.compile(r"(^|\.)weight(_\w+)?_orig$"), Role.COMPUTED),  # spectral norm, as torch once spelled it
    (re.compile(r"(^|\.)parametrizations\.[^.]+\.original$"), Role.COMPUTED),  # whatever the function is
    (re.compile(r"(^|\.)parametrizations\.[^.]+\.\d+\.[^.]+$"), Role.COMPUTED),
    (re.compile(r"(^|\.)rel(ative)?_(logits|position_bias)[^.]*\.proj$"), Role.POSITION),
    (re.compile(r"(^|\.)([^.]*_)?hc(_[^.]+)?\.(hc_)?(fn|base|scale)$"), Role.MIXING),  # hyper-connections
    (re.compile(r"(^|\.)att\.[wavg][12]$"), Role.STATE_SPACE),  # RWKV-7: of low rank, beside its decays
    (re.compile(r"prompter\.pad_(up|down|left|right)$|(^|\.)const_input\.input$"), Role.TOKEN),
    (re.compile(r"(^|\.)blur[^.]*\.kernel$"), Role.BUFFER),
    (re.compile(r"(^|\.)quantizer\.vars$"), Role.EMBEDDING),  # fairseq's codebooks
)

# Parameters that belong to no layer, by words of their own name. The first that fits holds.
_PARAMETERS = (
    (r"a_log|a|d|ssm_[ad]|dt_[a-z_]+|time_(mix|decay|first|maa|faaaa)([a-z_0-9]*)", Role.STATE_SPACE),
    (
        r"(.*_)?(decay|lower_bounds)|[rk]_k|bonus|log_(dt|step|a_real)|(inv_)?a_(real|imag)|poles|residues",
        Role.STATE_SPACE,
    ),
    (r"input_matrix_continuous|init(ial)?_states?", Role.STATE_SPACE),
    (r"static_weight|short_filter_weight", Role.CONVOLUTION),
    (
        r"weight_integer|(.*_)?(state|states|cache|exp_avg|exp_avg_sq|momentum_buffer|embed_avg|embed_sum)",
        Role.BUFFER,
    ),
    (
        r"fb|melw|mel_(basis|filters?|fb)|(forward|inverse)_basis|dct_mat|f(ilter)?banks?|resample_(filter|kernel)",
        Role.BUFFER,
    ),
    (r"blur_?kernel|anchors|anchor_grid", Role.BUFFER),
    (r"(.*_)?(hc_([a-z]+_)?fn|hc_([a-z]+_)?(base|scale))", Role.MIXING),
    (
        r"(.*_)?(scale_shift_table|modulation)(_.*)?|ada_gss|alpha_(cross_attn|dense)|scaled_factor|lambdas?",
        Role.GAIN,
    ),
    (r"(.*_)?(pos|position|positions|positional|rel|relative|absolute_pos|rotary|tpos|alibi)(_.*)?", Role.POSITION),
    (r"pe|(.*_)?pos(embed|emb)|attention_biases|r_[wrs]_bias|rpb|(.*_)?ape", Role.POSITION),
    (r"inv_freq|(rope_)?freqs(_.*)?|(cos|sin)(_cached?)?|rope_cache", Role.POSITION),
    (r"(.*_)?(tokens?|registers?|latents?|query|queries|probe|prompts?|pointer)(_[a-z0-9]+)?", Role.TOKEN),
    (
        r"(cls|class|mask|segment|type|distill|distillation|separator|null|(image_)?newline)(_emb(ed(ding)?)?)?",
        Role.TOKEN,
    ),
    (r"no_[a-z_]+|(null|mem|memory|sinks?)_(kv|keys?|values?)|null_[a-z]+_feature", Role.TOKEN),
    (r"const|dummy_node|[a-z_]*feature_extensor|fake_latent", Role.TOKEN),
    (r"(.*_)?(emb|embed|embeds|embedding|embeddings)(_.*)?", Role.EMBEDDING),
    (r"(implicit_)?codebooks?|code_?vectors|label_embs_concat", Role.EMBEDDING),
    (r"(.*_)?bias(es)?(_[a-z0-9])?", Role.BIAS),
    (r"(.*_)?mask|tril|triu", Role.MASK),
    (r"(.*_)?(scale|scales|gain|gains|gamma|beta|alpha|temperature|norm)(_?\d+|_inv)?", Role.GAIN),
    (r"weight_g|original0", Role.GAIN),
)


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def without_numbers(name: str) -> str:
    """A name with 0 for the numbers of layers and experts, which are the same in all of them: a model has few such
    names, and a plan asks some forty times for each tensor."""
    return _NUMBER.sub("0", name)


def role_of(name: str, shape: tuple[int, ...]) -> Role:
    """What a tensor of this name and shape is.

    A name that says nothing is that of a layer's weight, so that files of plain arrays are treated.
    """
    if len(shape) < 2:
        return Role.VECTOR
    if name.endswith(".weight"):
        return _of_module(without_numbers(name), shape)
    return _of_parameter(name, shape)


def is_embedding(name: str) -> bool:
    """Whether a tensor's rows are looked up (a matrix, by its name)."""
    return _is_embedding(without_numbers(name) if name.endswith(".weight") else name)


@lru_cache(maxsize=1 << 12)
def _is_embedding(name: str) -> bool:
    if _POSITION_LAYERS.search(name):
        return False
    return role_of(name, (2, 2)) in (Role.EMBEDDING, Role.POSITION, Role.TOKEN)


@lru_cache(maxsize=1 << 14)
def _of_module(name: str, shape: tuple[int, ...]) -> Role:
    """What the `weight` of a module is."""
    if is_head(name):  # before embeddings: `embed_out` is a head
        return Role.HEAD
    if _ANY.search(name):  # most names fit none, and one search is quicker than eight
        return next(role for pattern, role in _MODULES if pattern.search(name))
    if _POINTS.search(name) and shape[1] <= _POINT:
        return Role.TOKEN
    return Role.CONVOLUTION if _SHORT.search(name) and _is_short(shape) else Role.LAYER


def _is_short(shape: tuple[int, ...]) -> bool:
    """Whether these are kernels over a few steps, one for each channel: [channels, 1, steps], as MLX has them
    [channels, steps, 1], or [channels, steps]."""
    if len(shape) == 3 and shape[1] == 1:
        return True
    return shape[1] <= _STEPS and shape[2:] in ((), (1,))


@lru_cache(maxsize=1 << 16)
def _of_parameter(name: str, shape: tuple[int, ...]) -> Role:
    """What a parameter is that is not called `weight`."""
    module, _, last = re.sub(r"(\.weights)?(\.\d+)+$", "", name).rpartition(".")
    for pattern, role in _WITHIN:
        if pattern.search(name):
            return role
    if _WEIGHT.search(last) and not _NO_WEIGHT.fullmatch(last):
        return Role.LAYER
    for words, role in _PARAMETERS:
        # a single letter, or a word alone, is a plain array's name as well
        if re.fullmatch(words, last.lower()) and (module or "_" in last):
            return role
    lengths = [size for size in shape if size != 1]
    alone = len(lengths) < 2 and (len(shape) > 2 or bool(module))
    return Role.VECTOR if alone else Role.LAYER
