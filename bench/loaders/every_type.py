"""Every type of model that transformers has, as small as its config allows: `python -m bench.loaders.every_type`.

A small model of each type is made from its config class, sizes by what entries are called, and taken through the
schemes as in `matrix.py`: it loads as it is and has the restored weights, and where it can be given something it
answers as it should; or it was refused. Types that no model can be made of in this way are named, and not tried.
Each is a process of its own, since some end badly: `--types` chooses, `--keep FILE` notes what was found, a line of
JSON a type, and does not try it again.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import multiprocessing
import re
import resource
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from bench.loaders.families import output_of, quietly, with_random_weights
from bench.loaders.matrix import SCHEMES
from bench.loaders.rounded_inputs import round_inputs
from compressor import api
from compressor.architectures.loaders import limits_of
from compressor.architectures.roles import Role, role_of
from compressor.core.errors import CompressorError

TRIED = ("int4", "int8", "int8 W8A8", "fp8", "nvfp4", "nf4")
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
    (r".*(embd_pdrop|dropout|drop_path_rate).*", 0.0),
)
_KINDS = (
    *("MODEL_FOR_IMAGE_TEXT_TO_TEXT", "MODEL_FOR_SPEECH_SEQ_2_SEQ", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM"),
    *("MODEL_FOR_CAUSAL_LM", "MODEL_FOR_MASKED_LM", "MODEL_FOR_CTC", "MODEL_FOR_IMAGE_CLASSIFICATION", "MODEL"),
)
_MOST = 40_000_000  # weights of a model that is small
_LONG = 240  # seconds
_MEMORY = 3 << 30  # bytes


def types() -> list[str]:
    """All that transformers has."""
    return sorted(configuration_auto.CONFIG_MAPPING_NAMES)


def model_class(kind: str) -> Any:
    """The class that is tried of a type: the one with a head, where there is one."""
    for mapping in _KINDS:
        name = getattr(modeling_auto, f"{mapping}_MAPPING_NAMES").get(kind)
        name = name[0] if isinstance(name, (tuple, list)) else name
        if name and hasattr(transformers, name):
            return getattr(transformers, name)
    raise LookupError(f"no model of {kind}")


def small(said: Mapping[str, Any]) -> dict[str, Any]:
    """A config with small sizes in place of its own."""
    made: dict[str, Any] = {}
    for name, value in said.items():
        if isinstance(value, Mapping) and (name.endswith("config") or "model_type" in value):
            made[name] = small(value)
        else:
            made[name] = _small(name, value)
    if "layer_types" in made and isinstance(made["layer_types"], list):
        made["layer_types"] = _ends(made["layer_types"])
    return made


def _small(name: str, value: Any) -> Any:
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


def make(kind: str, folder: Path) -> Any:
    """Write a small model of a type with random weights, and tell its class."""
    config_class = configuration_auto.CONFIG_MAPPING[kind]
    model_type, failed = model_class(kind), None
    for said in _tries(config_class):
        try:
            config = config_class.from_dict(said)
            with torch.device("meta"):
                counted = sum(one.numel() for one in model_type(config).parameters())
            if counted > _MOST:
                raise LookupError(f"still has {counted:,} weights")
            torch.manual_seed(0)
            model = with_random_weights(model_type(config))
            model.save_pretrained(folder)
        except Exception as error:
            failed = error
        else:
            return model_type
    raise LookupError(f"{type(failed).__name__}: {failed}")


def reads_weights(kind: str) -> bool:
    """Whether the initialisation of a type reads weights of layers, which packed layers have not: in a model
    without data, with these weights taken away. LookupError where no model can be made of it."""
    config_class, model_type, failed = configuration_auto.CONFIG_MAPPING[kind], model_class(kind), None
    for said in (*_tries(config_class), None):
        try:
            config = config_class() if said is None else config_class.from_dict(said)
            with torch.device("meta"):
                model = model_type(config)
        except Exception as error:
            failed = error
            continue
        return _fails_without_weights(model)
    raise LookupError(f"{type(failed).__name__}: {failed}")


def _fails_without_weights(model: Any) -> bool:
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and role_of(f"{name}.weight", (256, 256)) is Role.LAYER:
            del module.weight
    for one in (*model.modules(), *model.parameters()):
        one._is_hf_initialized = False
    try:
        with torch.device("meta"):
            model.initialize_weights()
    except AttributeError:
        return True
    return False


def _tries(config_class: Any) -> Iterator[dict[str, Any]]:
    default = config_class().to_dict()
    if default.get("use_timm_backbone") or default.get("backbone_config"):
        seen = {"model_type": "resnet", "hidden_sizes": [32, 64, 64, 128], "depths": [1, 1, 1, 1]}
        seen |= {"embedding_size": 32, "out_features": ["stage2", "stage3", "stage4"]}
        last = {**seen, "out_features": ["stage4"]}
        for one in (last, seen):
            yield {**small(default), "use_timm_backbone": False, "backbone": None, "backbone_config": one}
    yield small(default)
    fewer = {key: value for key, value in small(default).items() if not isinstance(value, list)}
    yield fewer
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


# ---- one type ------------------------------------------------------------------------------------------


def try_type(kind: str, schemes: Sequence[str] = TRIED) -> dict[str, Any]:
    """What came of a type: `found` by scheme, or why it was not made."""
    with tempfile.TemporaryDirectory() as place, quietly():
        folder = Path(place) / "model"
        try:
            model_type = make(kind, folder)
            model, usual = _load(model_type, folder)
        except Exception as error:
            return {"type": kind, "unmade": f"{type(error).__name__}: {error}"[:300]}
        given = next((one for one in inputs(model) if _finite(model, one)), None)
        del model
        found = {name: _tried(model_type, folder, SCHEMES[name], given, usual) for name in schemes}
        return {"type": kind, "class": model_type.__name__, "answers": given is not None, "found": found}


def _finite(model: Any, given: Mapping[str, Any]) -> bool:
    with contextlib.suppress(Exception):
        return bool(torch.isfinite(output_of(model, given)).all())
    return False


def _load(model_type: Any, folder: Path) -> tuple[Any, set[str]]:
    model, info = model_type.from_pretrained(folder, output_loading_info=True)
    return model.eval(), {f"{key}: {one}" for key, found in info.items() for one in found}


def _tried(model_type: Any, folder: Path, scheme: Any, given: Any, usual: set[str]) -> dict[str, str]:
    """With `--for`; and without, where the plan does not tell transformers apart from others."""
    told = {"for": _cell(model_type, folder, scheme, given, usual, {"loader": "transformers"})}
    if not told["for"].startswith("right"):
        told["default"] = _cell(model_type, folder, scheme, given, usual, {})
    return told


def _cell(model_type: Any, folder: Path, scheme: Any, given: Any, usual: set[str], options: Any) -> str:
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        packed, dense = Path(place) / "packed", Path(place) / "dense"
        try:
            report = api.quantize(folder, packed, **scheme, **options)
        except CompressorError as error:
            return f"refused: {error}"[:300]
        if not options and any("transformers" in note for note in report.plan.notes):
            return "right: noted"
        if not any(job.steps for job in report.plan.jobs):
            return "right: nothing to quantize"
        api.restore(packed, dense)
        try:
            wanted, before = _load(model_type, dense)
            model, problems = _load(model_type, packed)
            if not problems <= usual | before:
                return f"WRONG: loads with {sorted(problems - usual - before)[:3]}"
            said = _differs(model, wanted)
            if said:
                return said
            model, _ = _load(model_type, packed)
            return _answers(model, wanted, packed, given)
        except Exception as error:
            return f"WRONG: {type(error).__name__}: {error}"[:400]


def _differs(model: Any, wanted: Any) -> str:
    """Weights of a loaded model that are not the restored ones."""
    from compressed_tensors.compressors import decompress_module

    for module in model.modules():
        if getattr(module, "quantization_status", None) == "compressed":
            decompress_module(module)
    found = model.state_dict()
    for name, module in model.named_modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            import bitsandbytes

            state = module.weight.quant_state
            found[f"{name}.weight"] = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
    for name, tensor in wanted.state_dict().items():
        if name not in found:
            return f"WRONG: has no {name}"
        if found[name].shape != tensor.shape or not torch.equal(found[name].to(tensor.dtype), tensor):
            return f"WRONG: {name} differs"
    return ""


def _answers(model: Any, wanted: Any, packed: Path, given: Any) -> str:
    if given is None:
        return "right: weights"
    for one in model.modules():
        if getattr(one, "support_avx512bf16_for_cpu", False):
            one.support_avx512bf16_for_cpu = False
    round_inputs(wanted, packed)
    found, expected = output_of(model, given), output_of(wanted, given)
    off = float((found - expected).norm() / expected.norm())
    return f"right: {off:.2g}" if off <= 0.002 else f"WRONG: answers are {off:.3g} off"


def main() -> int:
    """Try what is asked for; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="*")
    parser.add_argument("--schemes", nargs="*", choices=list(SCHEMES), default=TRIED)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--initialisation", action="store_true", help="look only whether it reads weights")
    parser.add_argument("--part", default="1/1", help="K/N: each Nth of them, from the Kth")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.initialisation:
        return _read_weights(asked.types or types())
    kept = {}
    if asked.keep and asked.keep.exists():
        kept = {one["type"]: one for one in map(json.loads, asked.keep.read_text(encoding="utf-8").splitlines())}
    number, of = map(int, asked.part.split("/"))
    wrong = False
    for kind in (asked.types or types())[number - 1 :: of]:
        if kind not in kept:
            kept[kind] = _apart(kind, asked.schemes)
            if asked.keep:
                with asked.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(kept[kind]) + "\n")
        said = [
            f"{one} {way} {told}" for one, ways in kept[kind].get("found", {}).items() for way, told in ways.items()
        ]
        bad = [one for one in said if "WRONG" in one]
        wrong |= bool(bad)
        sys.stdout.write(f"{kind}: {'; '.join(bad) or kept[kind].get('unmade') or 'right'}\n")
        sys.stdout.flush()
    return int(wrong)


def _read_weights(kinds: Sequence[str]) -> int:
    """Print the types whose initialisation reads weights though none of the table's says so; 1 if there are any."""
    wrong = False
    for kind in kinds:
        with contextlib.suppress(LookupError):
            if reads_weights(kind) and not packed_is_refused(kind):
                sys.stdout.write(f"{kind}: reads weights\n")
                wrong = True
    return int(wrong)


def packed_is_refused(kind: str) -> bool:
    """Whether the table of loaders says that transformers takes no packed layers of models of a type."""
    form = "pack-quantized int4 group"
    name = "encoder.layers.0.mlp.up_proj.weight"
    return any(limits_of("transformers", {"model_type": kind}, name, form))


def _apart(kind: str, schemes: Sequence[str]) -> dict[str, Any]:
    """A type in a process of its own, in bounded memory."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_tell, args=(kind, schemes, theirs))
    child.start()
    theirs.close()
    try:
        told: dict[str, Any] = ours.recv() if ours.poll(_LONG) else {"type": kind, "unmade": "takes too long"}
    except EOFError:
        told = {"type": kind, "unmade": "ended"}
    child.kill()
    child.join()
    return told


def _tell(kind: str, schemes: Sequence[str], pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    torch.set_num_threads(1)
    pipe.send(try_type(kind, schemes))


if __name__ == "__main__":
    sys.exit(main())
