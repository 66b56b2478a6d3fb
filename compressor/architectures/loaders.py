"""What the loaders of folders make of codes: which dialects they read, and which codes of these they do not take.

One table, by kinds: what codes lie in (`forms`), of which layers, in which families. A line is what was seen with
the version that stands beside the loader's name; `python -m bench.loaders.matrix` tries it again and writes
docs/loaders.md.

A form is a text made of what a config says of the codes of a tensor, such as `pack-quantized int4 group asymmetric`
(`form_of()` in `engine/plan/loaders.py`); `block uneven rows columns` are blocks that divide neither a matrix's
rows nor its columns, `block uneven parts` those that do not divide the rows of the layers in it; `nf4 odd` is a
matrix whose rows are no multiple of 32 or whose columns are none of 64.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

from compressor.architectures.conv1d import is_conv1d
from compressor.architectures.decoder_layers import KNOWN_LIST
from compressor.architectures.fused_layers import experts_module
from compressor.architectures.heads import is_head
from compressor.architectures.model_types import each_model_type, model_types
from compressor.architectures.roles import Role, is_embedding, role_of, without_numbers

Loader = Literal["vllm", "transformers", "mlx", "llama.cpp"]


class Layer(Enum):
    """What a matrix is to a loader; the value is how messages call several of them."""

    LINEAR = "linear layers"
    EXPERT = "experts"
    CONV1D = "transposed Conv1D layers"

    EMBEDDING = "embeddings"
    HEAD = "output heads"
    TOWER = "towers"


@dataclass(frozen=True)
class Limit:
    """Codes that a loader does not take as they are.

    `forms` and `names` (of tensors) are regular expressions for what they hold of; without `layers` or `families`
    for all of them; it holds of no family that is among `unless`. `why` is what the loader does then. `dense`: they
    are few layers, which stay dense for that loader. `instead`: options with which it takes such a model. `hint`:
    it takes them, if told how to load. `beside`: of experts, which it does not take either, dense or not, beside
    other layers in such codes. `where`: an entry of config.json, and what it has to be, or a range that it is in.
    `both`: what to use instead where experts and embeddings have codes, of which many take one and not the other.
    """

    forms: str
    why: str
    layers: tuple[Layer, ...] = ()
    families: tuple[str, ...] = ()
    names: str = ""
    unless: tuple[str, ...] = ()
    beside: bool = False
    instead: str = ""
    dense: bool = False
    hint: bool = False
    where: tuple[str, Any] | None = None
    both: str = ""

    def holds(self, form: str, layer: Layer, types: Sequence[str]) -> bool:
        """Whether it holds of this form of some tensor, in a model of these types, the outermost first."""
        of_family = not self.families or any(one in self.families for one in types)
        of_family = of_family and not any(one in self.unless for one in types)
        of_layer = not self.layers or layer in self.layers
        return of_family and of_layer and re.fullmatch(self.forms, form) is not None


@dataclass(frozen=True)
class Reader:
    """A loader: its `name` with the version that was seen, the dialects whose codes it reads, and what of these it
    does not take. `lacks` are types of models that it has not; `container` is what it loads; `splits`: it knows
    experts as single matrices in every family; `alike`: experts of all layers have one scheme. `options` are those
    of methods that it needs, where they are left as they are by default."""

    name: str
    dialects: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    lacks: tuple[str, ...] = ()
    container: str = "folder"
    splits: bool = True
    alike: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


_SIGLIP = (
    *("siglip", "siglip_text_model", "siglip_vision_model"),
    *("siglip2", "siglip2_text_model", "siglip2_vision_model"),
)
# Whose initialisation in transformers reads the weight of a layer, which packed layers have not: found by taking
# the weights of all layers from a model of each type (`python -m bench.loaders.every_type`)
_READS_WEIGHTS = (
    *("mamba", "mamba2", "falcon_mamba", "rwkv", "falcon", "gpt_bigcode", "modernbert", "modernbert-decoder"),
    *("modernvbert", "nanochat", "recurrent_gemma", "xlstm", "blt", "neomme", "phi4_multimodal", "kosmos-2"),
    *("nemotron_h_omni", "t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "pix2struct", "udop"),
    *("wav2vec2-bert", "seamless_m4t", "seamless_m4t_v2", "fastspeech2_conformer", "clap", "clvp", "pe_audio"),
    *("fastspeech2_conformer_with_hifigan", "neucodec", "xcodec2"),
    *_SIGLIP,
    *("align", "altclip", "bridgetower", "chinese_clip", "chinese_clip_vision_model", "clipseg"),
    *("clipseg_text_model", "owlvit", "owlvit_text_model", "owlv2", "groupvit", "groupvit_text_model", "xclip"),
    *("xclip_text_model", "mlcd", "mlcd_vision_model", "tipsv2", "tipsv2_vision_model", "videoprism"),
    *("videoprism_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit", "ijepa", "vjepa2", "radio"),
    *("vitdet", "hiera", "cvt", "pvt", "pvt_v2", "swiftformer", "swin2sr", "seggpt", "sapiens2", "timesformer"),
    *("mgp-str", "depth_pro", "bit", "resnet", "regnet", "efficientnet", "mask2former", "oneformer"),
    *("deformable_detr", "d_fine", "deimv2", "lw_detr", "rf_detr", "rt_detr", "rt_detr_v2", "grounding-dino"),
    *("mm-grounding-dino", "omdet-turbo", "pp_doclayout_v3", "pp_doclayout_v4", "sam3_lite_text"),
    "sam3_lite_text_text_model",
    # of parts of models by themselves, and others that the walk through the schemes found
    *("emu3", "emu3_vqgan", "altclip_vision_model", "blt_global_transformer", "blt_local_decoder"),
    *("blt_local_encoder", "blt_patcher", "bridgetower_text_model", "clap_audio_model", "clap_text_model"),
    *("clipseg_vision_model", "clvp_encoder", "colmodernvbert", "eomt", "groupvit_vision_model"),
    *("kosmos_2_text_model", "kosmos_2_vision_model", "lw_detr_vit", "owlv2_text_model", "owlv2_vision_model"),
    *("rf_detr_dinov2", "slanet", "slanext", "videomt", "videoprism_text_model", "vitpose_backbone"),
    *("vitpose", "xclip_vision_model", "chmv2", "clvp_decoder", "esmfold2"),
    *("owlvit_vision_model", "phi4_multimodal_vision", "pix2struct_vision_model", "pp_doclayout_v2"),
)
# The same, and weight norm keeps transformers from dequantizing while it loads
_WEIGHT_NORM = (
    *("wav2vec2", "wav2vec2-conformer", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio", "speecht5"),
    *("speech-encoder-decoder", "xcodec"),
)
# Layers that it divides as it loads them, by their names in files
_DIVIDED: Mapping[tuple[str, ...], str] = {
    ("dinov2", "dinov2_with_registers", "nomic_bert", "gte", "jina_embeddings_v3", "hrm_text"): (
        r"\.(weights_in|Wqkv|qkv_proj|gqkv_proj|up_gate_proj|gate_up_proj)\.weight$"
    ),
    ("radio", "qianfan_ocr", "nemotron_h_omni", "tipsv2_vision_model"): r"\.(attn\.qkv|mlp\.w12)\.weight$",
    ("sapiens2",): r"\.ffn\.w12\.weight$",
    ("sarvam_moe",): r"\.query_key_value\.weight$",
    ("unlimited_ocr", "unlimited_ocr_vision", "unlimited_ocr_vision_encoder"): r"\.self_attn\.qkv_proj\.weight$",
    ("molmo2_text",): r"\.(att_proj|ff_proj)\.weight$",
    ("lara_mini",): r"\.linear_attn\.in_proj\.weight$",
}
# Models that do not tell vLLM's loading how they are quantized, so that it leaves GPTQ's `g_idx` among the weights
_NO_GROUPS_IN_VLLM = ("mamba2", "falcon_h1", "zamba2", "bert", "roberta", "xlm-roberta")
_LLAMA4 = ("llama4", "llama4_text")
_REORDERED = "changes the order of rows of queries and keys as it loads them, which goes wrong with such codes"
# Whose experts transformers does not join: with codes they are linear layers, or in files one tensor
_APART = ("llama4", "llama4_text", "gpt_oss", "qwen3_vl_moe")
# That transformers has; others of them vLLM runs by transformers' own code
_NOT_IN_VLLM = (
    *("t5", "mt5", "umt5", "longt5", "switch_transformers", "bart", "marian", "t5gemma", "speecht5"),
    *("wav2vec2", "hubert", "wavlm", "unispeech", "wav2vec2-conformer", "wav2vec2-bert", "data2vec-audio"),
    *("distilbert", "deberta-v2", "electra", "albert", "xlnet", "funnel", "rwkv", "chinese_clip"),
    *("vit", "deit", "beit", "swin", "swinv2", "dinov2", "dinov2_with_registers", "dinov3_vit", "convnext"),
    *("segformer", "siglip_text_model", "siglip2_text_model", "clipseg_text_model", "owlvit_text_model"),
    *("siglip_vision_model", "siglip2", "siglip2_vision_model", "align", "altclip", "bridgetower", "clipseg"),
    *("chinese_clip_vision_model", "owlvit", "owlv2", "groupvit", "xclip", "mlcd", "mlcd_vision_model", "tipsv2"),
    *("tipsv2_vision_model", "videoprism", "videoprism_vision_model", "ijepa", "vjepa2", "vitdet", "hiera", "cvt"),
    *("pvt", "pvt_v2", "swiftformer", "swin2sr", "seggpt", "sapiens2", "timesformer", "mgp-str", "depth_pro"),
    *("bit", "resnet", "regnet", "efficientnet", "mask2former", "oneformer", "detr", "deformable_detr", "d_fine"),
    *("deimv2", "lw_detr", "rf_detr", "rt_detr", "rt_detr_v2", "grounding-dino", "mm-grounding-dino"),
    *("omdet-turbo", "pp_doclayout_v3", "pp_doclayout_v4", "sam", "sam2", "sam3", "sam3_lite_text"),
    *("pop2piano", "pix2struct", "udop", "seamless_m4t", "seamless_m4t_v2", "fastspeech2_conformer", "clap"),
    *("fastspeech2_conformer_with_hifigan", "clvp", "pe_audio", "neucodec", "xcodec", "xcodec2", "unispeech-sat"),
    *("speech-encoder-decoder", "flaubert", "recurrent_gemma", "xlstm", "neomme", "phi4_multimodal"),
    *("kosmos-2", "mbart", "pegasus", "m2m_100"),
    # in its registry under none of their classes, nor can it run transformers' own: `bench.loaders.vllm_types`
    *("bark", "big_bird", "blip", "bros", "canine", "convbert", "cpmant", "dab-detr", "data2vec-vision"),
    *("deberta", "dinat", "donut-swin", "fsmt", "glpn", "gpt_neo", "gpt_neox_japanese", "ibert", "imagegpt"),
    *("layoutlmv2", "led", "levit", "lilt", "longformer", "luke", "lxmert", "megatron-bert", "mobilevit"),
    *("mobilevitv2", "mpnet", "mpt", "mra", "mvp", "nystromformer", "openai-gpt", "perceiver", "prophetnet"),
    *("reformer", "rembert", "roformer", "sew-d", "slanet", "slanext", "squeezebert", "superglue"),
    *(
        "table-transformer",
        "tapas",
        "trocr",
        "vilt",
        "vits",
        "xglm",
        "xlm",
        "yoso",
        "zoedepth",
        "flava",
        "visual_bert",
        "maskformer-swin",
    ),
)
# Layers that transformers keeps in float32 (`_keep_in_fp32_modules`), where bitsandbytes leaves them alone
_IN_FLOAT32 = {
    ("t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop"): r"\.wo\.weight$",
    ("blip-2",): r"^(model\.)?qformer\.",
    ("deepseek_v4",): r"self_attn\.compressor\.(indexer\.)?(kv_proj|gate_proj|scorer\.weights_proj)\.weight$",
    (
        *("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4", "hy_v4_vl", "hy_v4_vl_text"),
        *("mistral_large4", "mistral_large4_text"),
    ): r"indexer\.weights_proj\.weight$",
}
# Layers that vLLM makes as torch's own, which take no codes, where a model's other layers do: by its source, and
# tried of the first three
_PLAIN_IN_VLLM: Mapping[tuple[str, ...], str] = {
    ("clip",): r"(^|\.)(text|visual)_projection\.weight$",
    ("siglip",): r"(^|\.)(text_model\.head|head\.attention\.out_proj)\.weight$",
    ("bert",): r"(^|\.)(pooler|predictions\.transform)\.dense\.weight$",
    ("blip-2",): r"^(model\.)?(qformer|language_projection)\.",
    ("granite_speech",): r"^(model\.)?(encoder\.(input_linear|layers\.\d+\.attn)|projector)\.",
    ("cohere_asr",): r"^(model\.)?encoder\.",
    ("paddleocr_vl",): r"^mlp_AR\.",
}
_NO_BLOCKS_OF_OPTIMUM = rf"^(?!{KNOWN_LIST})"
# Of texts, with lists of other names, or two of them, which the folder's config.json tells optimum of
_TOLD_TO_OPTIMUM = (
    *("bert", "roberta", "xlm-roberta", "distilbert", "electra", "deberta-v2", "albert", "mpnet", "bart", "marian"),
    *("biogpt", "flaubert", "dbrx"),
)
_CONVOLUTIONS = (
    "loads short convolutions, which it keeps in float32 otherwise, in the dtype of the model beside such codes, "
    "and answers otherwise"
)
_OTHER_BLOCKS = "looks for such codes in a list of blocks of another name only"
_PACKED = r"(pack-quantized|nvfp4-pack-quantized|mxfp4-pack-quantized) .*"
_NO_CONV1D = Limit(
    ".*",
    "takes no codes of them",
    (Layer.CONV1D,),
    instead="--store dense, or, without --for, --scheme int --layout compressor, which `restore` reads",
)

_TRANSFORMERS = (
    _NO_CONV1D,
    Limit(".*", _CONVOLUTIONS, families=("glm5_next", "glm5_next_text"), instead="--store dense"),
    Limit("nf4.*", _CONVOLUTIONS, families=("inkling_mm_model",), instead="--store dense"),
    Limit(
        "(?!nf4|gptq).*",
        "fails over the layers of a dense first block, which it means to divide, unless they are codes too",
        families=("inkling_mm_model",),
        instead="--store dense",
    ),
    Limit(
        "nf4.*",
        "takes no codes of them",
        (Layer.EMBEDDING,),
        instead="--scheme int --layout int-quantized",
        both="--scheme fp8",
    ),
    Limit(_PACKED, "takes packed codes of them when told to dequantize only", (Layer.EMBEDDING,), hint=True),
    # GPTQ's layout, which optimum reads for it: in the one list of blocks that it knows, under one of these names
    Limit(
        "gptq",
        "takes no codes of them: they are one tensor",
        (Layer.EXPERT,),
        instead="--layout pack-quantized",
    ),
    *(
        Limit(
            *("gptq", _OTHER_BLOCKS),
            families=families,
            names=_NO_BLOCKS_OF_OPTIMUM,
            unless=_TOLD_TO_OPTIMUM,
            instead=instead,
        )
        for families, instead in (
            (("dinov2", "dinov2_with_registers"), "--scheme nf4"),
            ((*_READS_WEIGHTS, *_WEIGHT_NORM), "--scheme fp8 --layout naive-quantized"),
            ((), "--layout pack-quantized"),
        )
    ),
    Limit("gptq", "makes layers of other sizes for them", families=("bloom",), instead="--layout pack-quantized"),
    # experts, which it joins while it loads
    Limit(
        "int-quantized .*",
        "fails to join experts in a model with such codes",
        (Layer.EXPERT,),
        unless=_APART,
        instead="--bits 8 --layout pack-quantized",
        beside=True,
        both="--scheme fp8",
    ),
    Limit(
        "pack-quantized .* asymmetric",
        "fails to join experts in a model with such codes",
        (Layer.EXPERT,),
        unless=_APART,
        instead="--symmetric",
        beside=True,
    ),
    Limit(
        ".* block.*", "fails to join their codes", (Layer.EXPERT,), unless=_APART, instead="--granularity channel"
    ),
    Limit(
        "mxfp8-quantized .*",
        "fails to join their codes",
        (Layer.EXPERT,),
        unless=_APART,
        instead="--scheme mxfp4",
        beside=True,
        both="--scheme fp8",
    ),
    Limit(
        "nf4.*",
        "takes no codes of them",
        (Layer.EXPERT,),
        unless=_APART,
        instead="--scheme int --bits 4",
        both="--scheme fp8",
    ),
    Limit(
        "nvfp4-pack-quantized .*",
        "leaves the global scale of experts out, which are off by orders of magnitude, or fails to join dense ones",
        (Layer.EXPERT,),
        unless=_APART,
        instead="--scheme mxfp4",
        beside=True,
    ),
    # whatever the layer
    Limit(
        ".*",
        "keeps what is called `scale` or `k_norm` in float32, the scales of codes too, and does not multiply that "
        "with the model's dtype",
        families=("hy_v4", "hy_v4_vl", "hy_v4_vl_text"),
        instead="--store dense",
    ),
    Limit("nf4.*", _CONVOLUTIONS, families=("inkling_text",), instead="--scheme int --bits 4"),
    Limit(
        "(?!nf4|gptq).*",
        "fails over gated layers, which it means to divide and this model has not",
        families=("dinov2", "dinov2_with_registers", "tipsv2_vision_model"),
        instead="--scheme nf4",
        where=("use_swiglu_ffn", False),
    ),
    Limit(
        _PACKED,
        "fails to join the short convolutions, dense as they are, beside such codes",
        families=(*("kimi_linear", "bailing_hybrid", "olmo_hybrid", "mistral_large4"),),
        instead="--scheme fp8",
    ),
    Limit(
        "int-quantized .*",
        "fails to join the short convolutions, dense as they are, beside such codes",
        families=("olmo_hybrid",),
        instead="--scheme fp8",
    ),
    Limit(
        "(pack|int)-quantized .*",
        "fails to convert experts or the head, dense as they are, beside such codes",
        families=("step3p7", "inkling2", "inkling2_text", "inkling2_loop", "inkling2_loop_text"),
        instead="--scheme fp8",
    ),
    Limit(
        "nf4.*",
        "reads routers in the dtype of the model beside such codes, and multiplies them with float32",
        families=("inkling2", "inkling2_text", "inkling2_loop", "inkling2_loop_text"),
        instead="--scheme fp8",
    ),
    Limit(
        ".*",
        "keeps this layer in float32",
        families=("slanet", "slanext"),
        names=r"head\.structure_(attention_cell|generator)\.",
        dense=True,
    ),
    Limit(
        _PACKED,
        "joins gate and up of shared experts, which goes wrong with such codes",
        families=("minimax_m3_vl",),
        names=r"\.shared_experts\.(gate|up)_proj\.weight$",
        instead="--scheme fp8",
    ),
    Limit(
        ".*",
        "looks for a weight where it calls this layer otherwise, not for codes",
        families=("unlimited_ocr",),
        names=r"(^|\.)projector\.layers\.weight$",
        dense=True,
    ),
    Limit(
        "(?!nf4|gptq).*",
        "computes positions in float32 beside such codes, which norms in another dtype do not take",
        families=("ctrl",),
        instead="--scheme nf4",
    ),
    Limit(
        _PACKED,
        "fails where its own initialisation reads a weight that is packed",
        families=_WEIGHT_NORM,
        instead="--scheme fp8 --layout naive-quantized",
    ),
    Limit(
        _PACKED,
        "fails where its own initialisation reads a weight that is packed, unless it is loaded with "
        "CompressedTensorsConfig(dequantize=True)",
        families=_READS_WEIGHTS,
        instead="--scheme fp8 --layout naive-quantized",
        hint=True,
    ),
    *(
        Limit(
            "(?!(int-quantized|float-quantized|naive-quantized) .* (channel|tensor)).*",
            "divides the layer, which goes wrong with such codes",
            families=families,
            names=names,
            instead="--scheme fp8 --granularity channel",
        )
        for families, names in _DIVIDED.items()
    ),
    Limit("nf4.*", "takes no codes of its layers", families=("falcon",), instead="--scheme fp8"),
    Limit("nf4.*", "rounds them once more where it rescales layers", families=("rwkv",), instead="--scheme fp8"),
    Limit(
        "nf4.*",
        "takes no codes of a model with shared blocks",
        families=("zamba", "zamba2"),
        instead="--scheme int --bits 4",
    ),
    Limit(
        "nf4.*",
        "takes no codes of an attention's output that torch computes",
        families=(*_SIGLIP, "phi4_multimodal", "phi4_multimodal_vision", "colmodernvbert", "modernvbert"),
        names=r"head\.attention\.out_proj\.weight$",
        dense=True,
    ),
    Limit(
        "nf4.*",
        "takes no codes of an attention's output that torch computes",
        families=("mask2former", "oneformer"),
        names=r"(cross_attn|self_attn|multihead_attn)\.out_proj\.weight$",
        dense=True,
    ),
    Limit(
        "nf4.*",
        "takes no codes of an attention that torch computes",
        families=("wavlm",),
        names=r"\.attention\.(q|k|v|out)_proj\.weight$",
        dense=True,
    ),
    Limit(
        ".*",
        "ties the weights of shared blocks, and not their codes",
        families=("zamba", "zamba2"),
        names=r"\.shared_transf(ormer)?\.",
        dense=True,
    ),
    *(
        Limit("nf4.*", "keeps this layer in float32", families=families, names=names, dense=True)
        for families, names in _IN_FLOAT32.items()
    ),
    Limit(
        ".*",
        "makes its own layers of them, which take no codes",
        families=("ibert",),
        names=r"^(ibert\.)?encoder\.",
        instead="--store dense",
    ),
    Limit(
        "nf4 odd",
        "computes on a CPU with rows in multiples of 32 and columns in multiples of 64 only (bitsandbytes 0.50)",
        dense=True,
        hint=True,
    ),
    Limit(
        "nf4.*",
        "computes on a CPU as if the layer's inputs lay in order, which they do not here (bitsandbytes 0.50)",
        families=("segformer", "detr", "table-transformer", "conditional_detr"),
        names=r"(\.mlp\.dense2|\.linear_c\.\d+\.proj|encoder\.layers\.0\.self_attn\.[qkv]_proj)\.weight$",
        dense=True,
        hint=True,
    ),
    Limit(
        "pack-quantized .* asymmetric",
        "loads asymmetric codes with CompressedTensorsConfig(dequantize=True) only",
        instead="--symmetric",
        hint=True,
    ),
)
_VLLM = (
    _NO_CONV1D,
    *(
        Limit(".*", "makes a plain layer of it", families=families, names=names, dense=True)
        for families, names in _PLAIN_IN_VLLM.items()
    ),
    Limit("nf4.*", "takes no codes of them", (Layer.EXPERT,), instead="--scheme int --bits 4"),
    Limit(
        "nf4.*",
        "needs vllm-bnb-plugin for them, which quantizes layers that are dense in the file too",
        instead="--scheme int --bits 4",
        hint=True,
    ),
    Limit(".*", "takes no codes of them", (Layer.EMBEDDING,)),
    Limit(
        ".*",
        "leaves experts out that are codes, and fails over dense ones beside other layers in codes",
        families=("gpt_oss",),
        instead="--store dense",
    ),
    Limit(
        ".*",
        "leaves the experts out, which are one tensor here, beside other layers in codes",
        families=("granitemoehybrid", "granitemoe", "granitemoeshared"),
        instead="--store dense",
        where=("num_local_experts", range(1, 1 << 16)),
    ),
    Limit(
        r"(pack-quantized|nvfp4-pack-quantized) .*|gptq|.* block.*",
        "takes queries, keys and values of such a model apart, which fails with packed codes and their scales",
        families=("bloom",),
        instead="--scheme fp8 --granularity channel",
    ),
    Limit(
        "gptq",
        "looks for gate_proj and up_proj among its codes, which are one layer here",
        families=("glm", "glm4"),
        instead="--layout pack-quantized",
    ),
    Limit(
        "gptq",
        "fails over this layout's `g_idx` in layers that it joins, in such a model",
        families=_NO_GROUPS_IN_VLLM,
        instead="--layout pack-quantized",
    ),
    Limit(
        "gptq",
        "leaves biases of keys as they lie in memory beside such codes, which answers NaN",
        families=("whisper",),
        instead="--layout pack-quantized",
    ),
    *(
        Limit(forms, _REORDERED, families=_LLAMA4, names=r"\.self_attn\.[qk]_proj\.weight$", instead=instead)
        for forms, instead in (
            ("gptq", "--layout pack-quantized"),
            (".* asymmetric", "--symmetric"),
            (".* block.*", "--granularity channel"),
        )
    ),
    Limit(
        "pack-quantized int[23567] .*",
        "has kernels for these widths on CUDA only, with the package humming, which was not tried",
        instead="--bits 4",
        hint=True,
    ),
    Limit("pack-quantized int4 tensor.*", "has no scheme for one scale a tensor", instead="--granularity channel"),
    Limit(
        "naive-quantized .* block.*",
        "has no scheme for them",
        instead="--granularity channel --layout float-quantized",
    ),
    # of a layer that it joins with others, all but the last have to be of whole blocks; and a part of a matrix that
    # holds several
    Limit(
        ".* block uneven rows.*",
        "joins this layer with others, for which its rows would have to be whole blocks",
        names=r"\.in_proj_(ba|b|a)\.weight$",
        dense=True,
    ),
    *(
        Limit(
            ".* block uneven.* (rows|parts).*",
            "joins this layer with others, for which its rows would have to be whole blocks",
            (Layer.LINEAR, Layer.TOWER),
            names=names,
            instead="--granularity channel",
        )
        for names in (
            r"\.(q_proj|k_proj|query|key|gate_proj|w1|in_proj_qkv|q_a_proj)\.weight$",
            r"\.(qkv_proj|query_key_value|Wqkv|c_attn|gate_up_proj|in_proj_qkvz|(mamba|mixer)\.in_proj)\.weight$",
        )
    ),
    Limit(
        ".* block uneven.*",
        "takes blocks that divide their matrices only",
        (Layer.EXPERT,),
        instead="--granularity channel",
    ),
    Limit(
        "(pack|int)-quantized int8 tensor",
        "has no scheme for them",
        (Layer.EXPERT,),
        instead="--granularity channel",
    ),
    Limit("float-quantized .* tensor", "has no scheme for them", (Layer.EXPERT,), instead="--granularity channel"),
    Limit(
        "naive-quantized .*",
        "has no scheme for them",
        (Layer.EXPERT,),
        instead="--granularity channel --layout float-quantized",
    ),
)
_MLX = (
    _NO_CONV1D,
    Limit(
        "mlx",
        "joins their weights without their scales",
        (Layer.EXPERT,),
        families=("qwen3_moe", "qwen3_next", "ernie4_5_moe", "lfm2_moe", "minimax"),
    ),
    Limit("mlx", "multiplies its weights by factors while it loads them", families=("falcon_h1",)),
    Limit(
        "mlx",
        "divides this layer by heads, which its groups need not divide",
        families=("deepseek_v2", "deepseek_v3", "deepseek_v32"),
        names=r"\.kv_b_proj\.weight$",
        dense=True,
    ),
)
READERS: Mapping[Loader, Reader] = {
    "vllm": Reader("vLLM 0.32", ("compressed-tensors", "gptq", "bitsandbytes"), _VLLM, _NOT_IN_VLLM),
    "transformers": Reader(
        "transformers 5.24", ("compressed-tensors", "bitsandbytes", "gptq"), _TRANSFORMERS, splits=False, alike=True
    ),
    "mlx": Reader("mlx-lm 0.32", ("mlx",), _MLX, splits=False, options={"layout": "mlx"}),
    "llama.cpp": Reader("llama.cpp", (), container="gguf"),
}


def layer_of(config: Mapping[str, Any] | None, name: str) -> Layer:
    """What the matrix of this name is to loaders, in the model that config.json describes."""
    found = _layer_of(without_numbers(name))
    return Layer.CONV1D if found is not Layer.EXPERT and is_conv1d(config, name) else found


@lru_cache(maxsize=1 << 12)
def _layer_of(name: str) -> Layer:
    """What it is but for the model."""
    if experts_module(name) is not None:
        return Layer.EXPERT
    if is_head(name):
        return Layer.HEAD
    if is_embedding(name):
        return Layer.EMBEDDING
    return Layer.TOWER if role_of(name, (2, 2)) is Role.TOWER else Layer.LINEAR


def readers_of(dialect: str, config: Mapping[str, Any] | None) -> Iterator[Loader]:
    """The loaders that read a dialect, and have the model that config.json describes."""
    types = tuple(islice(each_model_type(config), 1))
    for loader, reader in READERS.items():
        if dialect in reader.dialects and not set(reader.lacks).intersection(types):
            yield loader


def limits_of(
    loader: Loader,
    config: Mapping[str, Any] | None,
    name: str,
    form: str,
    *,
    experts: bool = False,
    types: tuple[str, ...] | None = None,
) -> Iterator[Limit]:
    """What keeps a loader from taking the tensor of this name in this form; `experts`: the model has some; `types`:
    its `model_types`, where they are known."""
    layer = layer_of(config, name)
    for limit in _limits(loader, model_types(config) if types is None else types, layer, form, experts):
        if limit.where is not None and not _is(config or {}, *limit.where):
            continue
        if not limit.names or re.search(limit.names, name):
            yield limit


def _is(config: Mapping[str, Any], key: str, wanted: Any) -> bool:
    """Whether an entry is what a limit is about: that value, or one of a range of numbers."""
    return config.get(key) in (wanted if isinstance(wanted, range) else (wanted,))


@lru_cache(maxsize=256)  # a model has few kinds of layers and forms
def _limits(loader: Loader, types: tuple[str, ...], layer: Layer, form: str, experts: bool) -> tuple[Limit, ...]:
    concerned = types if layer is Layer.TOWER else types[:1]  # what a tower is does not concern other layers
    return tuple(
        limit
        for limit in READERS[loader].limits
        if limit.holds(form, layer, concerned)
        or (experts and limit.beside and limit.holds(form, Layer.EXPERT, types))
    )
