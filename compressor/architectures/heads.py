"""Output heads: the linear layers whose outputs are scores of a vocabulary, by the names that models give them.

Most share their weight with an embedding. Then the file has it once, under the embedding's name, and the head is a
linear layer all the same to a loader that looks for codes; so a config has to name it among what stays as it is.

From `_tied_weights_keys` of every model class of transformers 5.24: `python -m bench.architectures.tied_weights`
prints those of the transformers that is installed, and `tests/interop/test_roles.py` compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from compressor.architectures.model_types import model_types

# Heads that are called so in no other place: regular expressions, of the last parts of a module's name
HEADS = (
    "lm_head",
    r"lm_head\.decoder",
    r"lm_head\.out_proj",
    r"lm_head\.additional_fc",
    r"lm_heads\.\d+",
    "embed_out",
    r"predictions\.decoder",
    "vocab_projector",
    "generator_lm_head",
    "lm_loss",
    "output_projection",
    r"pred_layer\.proj",
    r"mlm_score\.decoder",
    r"(mlm|mim|mmm_text|mmm_image)_head\.decoder",
    r"entity_predictions\.decoder",
    "unembedding_projection",
    "unembed",  # of Inkling
    "ctc_head",
    r"shared_head(\.(head|output))?",  # of layers that guess the next but one token
    r"(bbox|class)_embed(\.\d+)?(\.layers\.\d+)?",  # of detectors, which share them between layers
    r"enc_(bbox|score)_head(\.layers\.\d+)?",
    r"log_softmax\.mlp\.layer0",  # what the files of Cohere's speech models call their proj_out
)
# Heads whose names are other layers' names too; they are heads where nothing stands before them. The model types
# whose heads share the embedding's weight under such a name
OUTERMOST: Mapping[str, tuple[str, ...]] = {
    "proj_out": ("whisper", "moonshine", "moonshine_streaming", "canary", "cohere_asr"),
    "decoder": ("modernbert", "modernbert-decoder"),
    "head": ("rwkv",),
    r"head\.decoder": ("ultrabert",),
    "cls": ("ultrabert",),
    "output": ("git",),
    r"(model\.)?encoder\.out": ("granite_speech5_ctc",),  # is its ctc_head too
}
_ANYWHERE = re.compile(rf"(^|\.)({'|'.join(HEADS)})\.weight$")
_FIRST = re.compile(rf"^((_orig_mod|module)\.)*({'|'.join(OUTERMOST)}|head\.\d+)\.weight$")


def is_head(name: str) -> bool:
    """Whether a tensor of this name is the weight of an output head."""
    return _ANYWHERE.search(name) is not None or _FIRST.search(name) is not None


def heads_of(config: Mapping[str, Any] | None) -> Iterator[str]:
    """What heads may be called in the model that config.json describes, as regular expressions for the last parts
    of their modules' names, also those that the file has no weight for."""
    yield from HEADS
    types = set(model_types(config))
    yield from (name for name, owners in OUTERMOST.items() if types.intersection(owners))
