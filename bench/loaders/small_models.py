"""Small models of any type that transformers has: sizes by what the entries of its config are called."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from bench.loaders.families import with_random_weights

# What entries of configs are made, by what they are called: the first that fits
_SIZES: tuple[tuple[str, Any], ...] = (
    (r"vocab(ulary)?_size.*|n_words|.*_vocab_size|num_embeddings|codebook_size", 256),
    (r"(global_)?head_dim|d_kv|.*qk_(nope|rope)_head_dim|v_head_dim|attention_head_dim|.*head_dim|d_head", 32),
    (r"(num_key_value_heads|num_kv_heads|multi_query_group_num|n_head_kv|.*num_key_value_heads)", 2),
    (r"(.*num_attention_heads|n_heads?|num_heads|.*_attention_heads|nhead|num_.*_heads|.*_heads)", 4),
    (r"(shared_|moe_|expert_)?(intermediate_size|ffn_hidden_size|ffn_dim|d_ff|inner_dim|n_inner|hidden_dim)", 256),
    (r".*(intermediate_size|ffn_dim|ffn_hidden_size|inner_dim|mlp_dim|feedforward_dim).*", 256),
    (r"(.*_)?(num|n)_(local_|routed_)?experts|moe_num_experts|num_experts", 4),
    (r".*experts_per_tok(en)?|moe_k|moe_topk|top_?k|moe_top_k|num_experts_per_tok|num_selected_experts", 2),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts|n_group|topk_group|first_k_dense_replace", 1),
    (r".*lora_rank", 128),
    (r"max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|seq_length|max_seq_len.*", 128),
    (r"(num_hidden_layers|num_layers|n_layers?|depth|.*_layers|num_.*_layers|num_blocks)", 2),
    (r"image_size|img_size|input_size", 32),
    (r"(.*hidden_size|.*hidden_dim|d_model|n_embd|.*embed_dim|dim|width|.*embedding_size|projection_dim)", 128),
    (r"condition_dim|codebook_dim|adapter_input_size|upsample_groups", 128),
    (r"(base|hidden|upsample_initial|.*conv)_channels?|upsample_initial_channel|n_filters", 32),
    (r"(width|depth)_coefficient", 1.0),
    (r".*(embd_pdrop|dropout|drop_path_rate).*", 0.0),
)
_KINDS = (
    *("MODEL_FOR_IMAGE_TEXT_TO_TEXT", "MODEL_FOR_SPEECH_SEQ_2_SEQ", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM"),
    *("MODEL_FOR_CAUSAL_LM", "MODEL_FOR_MASKED_LM", "MODEL_FOR_CTC", "MODEL_FOR_IMAGE_CLASSIFICATION", "MODEL"),
)
_LAYERS = r"num_hidden_layers|num_layers|n_layers?|.*_layers|depth"
_OPEN = {"head_dim": 32, "prediction_length": 4, "vocabulary_map": {"<image>": 4}}  # where a config says nothing
_OWN: dict[str, dict[str, Any]] = {  # of types whose entries hang together in ways of their own
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "reformer": {"is_decoder": True},
}
_CLASSES = {"shieldgemma2": "ShieldGemma2ForImageClassification"}  # of which tables name others, that load it wrong
_MOST = 40_000_000  # weights of a model that is small


def types() -> list[str]:
    """All that transformers has."""
    return sorted(configuration_auto.CONFIG_MAPPING_NAMES)


def model_class(kind: str) -> Any:
    """The class that is tried of a type: the one with a head, where there is one. LookupError where there is a
    config of that type only."""
    if kind in _CLASSES:
        return getattr(transformers, _CLASSES[kind])
    rest = (name.removesuffix("_MAPPING_NAMES") for name in vars(modeling_auto) if name.endswith("_MAPPING_NAMES"))
    for mapping in (*_KINDS, *sorted(name for name in rest if name.startswith("MODEL"))):
        name = getattr(modeling_auto, f"{mapping}_MAPPING_NAMES").get(kind)
        name = name[0] if isinstance(name, (tuple, list)) else name
        if name and hasattr(transformers, name):
            return getattr(transformers, name)
    return _of_config(configuration_auto.CONFIG_MAPPING[kind])


def _of_config(config_class: Any) -> Any:
    """A class that is made of such a config, though no table of transformers has it: part of a larger model."""
    module = importlib.import_module(config_class.__module__.replace(".configuration_", ".modeling_"))
    for one in vars(module).values():
        model = isinstance(one, type) and issubclass(one, transformers.PreTrainedModel)
        if model and one.config_class is config_class and "PreTrained" not in one.__name__:
            return one
    raise LookupError(f"no model of {config_class.__name__}")


def small(said: Mapping[str, Any], *, lists: bool = True) -> dict[str, Any]:
    """A config with small sizes in place of its own; with `lists`, those of layers and stages cut as well."""
    made: dict[str, Any] = {}
    layers = {
        value for name, value in said.items() if re.fullmatch(_LAYERS, name) and type(value) is int and value > 2
    }
    for name, value in said.items():
        if isinstance(value, Mapping) and value and all(str(key).isdigit() for key in value):
            made[name] = {key: one for key, one in value.items() if int(key) < 2}  # by numbers of layers
        elif isinstance(value, Mapping) and (name.endswith("config") or "model_type" in value):
            made[name] = small(value, lists=lists)
        elif lists and isinstance(value, list):
            made[name] = _ends(value) if len(value) in layers else _few(name, value)
        else:
            made[name] = _small(name, value)
    if isinstance(made.get("layer_types"), list):
        made["layer_types"] = _ends(made["layer_types"])
    return made


def _small(name: str, value: Any) -> Any:
    if value is None:
        return _OPEN.get(name)
    if name == "mrope_section" or isinstance(value, dict):
        return {key: _small(key, one) for key, one in value.items()} if isinstance(value, dict) else [4, 6, 6]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if re.fullmatch(r".*_(token_)?(id|index)", name):
        return value if value < 200 else 200 + value % 50
    for called, size in _SIZES:
        if re.fullmatch(called, name):
            return size if isinstance(size, float) or value > size else value
    return value


def _ends(kinds: list[Any]) -> list[Any]:
    """Two of a list of layers' kinds, different ones if there are."""
    return [kinds[0], next((kind for kind in kinds if kind != kinds[0]), kinds[-1])] if kinds else kinds


def _few(name: str, values: list[Any]) -> list[Any]:
    """What stands for each stage: one layer, and widths of 256 at most."""
    if not values or any(type(value) is not int for value in values):
        return values
    if re.fullmatch(r"(.*_)?(depths|layers|layer_repeats|num_blocks)", name):
        return [1] * len(values)
    if re.fullmatch(r"(.*_)?(hidden_sizes|embed_dims?|dims|channels|num_features|widths?)", name):
        by = -(-max(values) // 256)
        return [max(value // by, 8) for value in values]
    return values


def make(kind: str, folder: Path) -> Any:
    """Write a small model of a type with random weights, and tell its class."""
    config_class = configuration_auto.CONFIG_MAPPING[kind]
    model_type, failed = model_class(kind), None
    for said in tries(config_class):
        try:
            config = config_class.from_dict(said)
            counted = _weights(model_type, config)
            if counted > _MOST:
                raise LookupError(f"still has {counted:,} weights")
            torch.manual_seed(0)
            model = with_random_weights(model_type(config))
            model.save_pretrained(folder)
        except Exception as error:
            failed = failed or error
        else:
            return model_type
    raise LookupError(f"{type(failed).__name__}: {failed}")


def _weights(model_type: Any, config: Any) -> int:
    """How many a model has; 0 of one that cannot be made without data."""
    try:
        with torch.device("meta"):
            return sum(one.numel() for one in model_type(config).parameters())
    except TypeError:
        return 0


def _alike(said: Mapping[str, Any]) -> dict[str, Any]:
    """A config with as many heads of keys and values as of queries."""
    heads = {"num_key_value_heads": said.get("num_attention_heads", 4)} if "num_key_value_heads" in said else {}
    parts = {key: _alike(value) for key, value in said.items() if isinstance(value, Mapping)}
    return {**said, **parts, **heads}


def _whole(config_class: Any) -> dict[str, Any]:
    """The default config, with those of parts where it leaves them open."""
    said: dict[str, Any] = config_class().to_dict()
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if hasattr(part, "to_dict") and said.get(name) is None:
            said[name] = part().to_dict()
    return said


def tries(config_class: Any) -> Iterator[dict[str, Any]]:
    default = _whole(config_class)
    if default.get("use_timm_backbone") or default.get("backbone_config"):
        seen = {"model_type": "resnet", "hidden_sizes": [32, 64, 64, 128], "depths": [1, 1, 1, 1]}
        seen |= {"embedding_size": 32, "out_features": ["stage2", "stage3", "stage4"]}
        last = {**seen, "out_features": ["stage4"]}
        for one in (last, seen):
            yield {**small(default), "use_timm_backbone": False, "backbone": None, "backbone_config": one}
    own = _OWN.get(default.get("model_type", ""), {})
    for lists in (True, False):
        yield {**small(default, lists=lists), **own}
    yield {**_alike(small(default)), **own}
    yield {key: value for key, value in small(default).items() if not isinstance(value, list)}
    few = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 256}
    yield {**few, "num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0}


def inputs(model: Any) -> Iterator[dict[str, Any]]:
    """What a model may take, by what its forward is said to: the first that it answers is right."""
    names = set(inspect.signature(model.forward).parameters)
    ids = torch.arange(16).reshape(1, 16) * 7 % 190 + 3
    size = getattr(getattr(model.config, "vision_config", model.config), "image_size", 32)
    size = size if isinstance(size, int) else 32
    wave = torch.sin(torch.arange(3 * size * size).reshape(1, 3, size, size) * 0.1)
    options: list[dict[str, Any]] = []
    if "decoder_input_ids" in names and "input_ids" in names:
        options.append({"input_ids": ids, "decoder_input_ids": ids})
    if "input_ids" in names:
        options.append({"input_ids": ids})
    if {"input_ids", "pixel_values"} <= names:
        options.append({"input_ids": ids, "pixel_values": wave})
    if "pixel_values" in names:
        options.append({"pixel_values": wave})
    sound = torch.sin(torch.arange(4000).reshape(1, 4000) * 0.1)
    options += [{"input_values": sound}] if "input_values" in names else []
    yield from options
