"""llama.cpp, in a process of its own for each comparison (`llama_cpp_reader.py`)."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.loaders import llama_cpp_reader
from bench.loaders.answers import Answers
from bench.loaders.families import IDS, Family
from bench.loaders.small_tokenizer import write_tokenizer
from compressor import api
from compressor.architectures.gguf.families import FAMILIES

SCHEMES: dict[str, Mapping[str, Any]] = {  # options of `quantize`
    **{name: {"scheme": name} for name in ("f32", "f16")},
    **{name: {"preset": name} for name in ("q8_0", "q6_k", "q4_k_m", "q4_0", "iq4_xs", "mxfp4_moe", "q2_k")},
}
_TYPES = {family.model_type for family in FAMILIES}
_WIDE = {  # rows of whole blocks of 256
    "hidden_size": 256,
    "n_embd": 256,
    "intermediate_size": 512,
    "kv_lora_rank": 256,
    "q_lora_rank": 256,
    "qk_nope_head_dim": 64,
}
_OWN: dict[str, dict[str, Any]] = {  # what llama.cpp computes with, where transformers' default is another
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32},
    "gpt-oss": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "deepseek-v2": {"topk_method": "greedy"},
    "qwen3-moe": {"norm_topk_prob": True},
    "granite": {"attention_multiplier": 0.125},  # of 1 a softmax makes steps, which amplify any rounding
}
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_PROMPTS = [IDS[0, :length].tolist() for length in (6, 11, 16)]


class LlamaCpp:
    """llama.cpp, where `make test-interop` has put it, or LLAMA_CPP_FOLDER says. It rounds what it multiplies codes
    with to 8 bits, in blocks of 32 or 256, and looks GELU up in a table of float16."""

    name = "llama.cpp"
    suffix = ".gguf"
    at_once = 1
    tolerance = 0.1
    schemes: Mapping[str, Mapping[str, Any]] = SCHEMES

    @property
    def there(self) -> bool:
        """Whether it is installed."""
        return llama_cpp_reader.FOLDER.exists()

    @property
    def versions(self) -> str:
        """What was asked, as the page says it."""
        found = importlib.metadata.distributions(path=[str(llama_cpp_reader.FOLDER)])
        return ", ".join(f"{one.name} {one.version}" for one in found if one.name == "xllamacpp")

    def takes(self, family: Family) -> bool:
        """Whether folders of the family become GGUF files."""
        return family.model.config_class.model_type in _TYPES

    @staticmethod
    def schemes_of(family: Family) -> Sequence[str]:
        """What is tried of a family."""
        return tuple(SCHEMES)

    @staticmethod
    def sized(family: Family) -> Family:
        """The family with rows of whole blocks."""
        wide = {key: _WIDE[key] for key in _WIDE if key in family.sizes}
        return replace(family, sizes={**family.sizes, **wide, **_OWN.get(family.name, {})})

    def prepare(self, folder: Path) -> None:
        """Add a tokenizer, without which llama.cpp opens no file, and let tokens go to all experts, so that no
        rounding changes which are chosen."""
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        count = next((config[key] for key in _COUNTS if config.get(key)), None)
        chosen = {"num_experts_per_tok": count} if count else {}
        path.write_text(json.dumps({**config, **chosen}), encoding="utf-8")
        write_tokenizer(folder, "wordpiece" if _embeds(config) else "gpt-2")

    def answers(self, folder: Path, family: Family) -> Any:
        """What a folder's model answers, as a file of its own numbers."""
        file = folder.with_name("as-it-is.gguf")
        api.restore(folder, file)
        return self._answers(family, file)[0]

    def compared(self, packed: Path, dense: Path, family: Family) -> Answers:
        """The file beside that of the numbers that its codes stand for."""
        loaded, restored = self._answers(family, packed, dense)
        return Answers(loaded, restored, loaded, restored)

    @staticmethod
    def _answers(family: Family, *files: Path) -> list[Any]:
        import torch

        embeds = _embeds({"model_type": family.model.config_class.model_type})
        told = llama_cpp_reader.answers(
            *({"path": str(file), "prompts": _PROMPTS, "embed": embeds} for file in files)
        )
        if embeds:
            return [torch.tensor(one["embeddings"]).flatten() for one in told]
        found = [[[row[token] for token in sorted(row, key=int)] for row in one["logprobs"]] for one in told]
        rows = [torch.tensor(one) for one in found]
        return [(one - one.mean(1, keepdim=True)).flatten() for one in rows]


def _embeds(config: Mapping[str, Any]) -> bool:
    return "bert" in str(config["model_type"])
