"""What tensors are by the model that they are in, where their own names are those of layers as well: heads that
give the answers of a task (`classifier`, `score`, `fc`), and layers that guess tokens ahead.

Names of a task's heads are those of all `…ForXClassification`, `…QuestionAnswering`, `…MultipleChoice` and their
like in transformers 5.24: the modules that stand outside of the base model. timm's configs name their own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from compressor.architectures.roles import Role

_TASKS = re.compile(
    r"(Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction|Regression|XVector|Reward)[a-zA-Z]*$"
)
_HEADS = (  # with all that is in them
    r"(pre_|qa_|cls_|distillation_|initial_token_|subsequent_token_)?classifier(_distill)?|classification_head|score"
    r"|v_head|head|dist_head|qa_outputs|(start|end)_logits|answer_(class|head)|logits_proj|splinter_qass|entity_linker"
    r"|sequence_summary|multiple_choice_head|cls\.seq_relationship|cls(?=\.weight)|projector|fc|dense"
)
_WRAPPED = r"((_orig_mod|module|timm_model)\.)*"
_TIMM = ("head", "head.fc", "fc", "classifier", "head_dist")  # where its config names none
_GUESSING = re.compile("eagle|medusa|hydra|speculator", re.IGNORECASE)
# Of Medusa's heads, alone: a list of lists of layers; and what EAGLE's read hidden states with
_MEDUSA = re.compile(r"(\d+\.\d+(\.linear)?|blocks\.\d+\.layers\.\d+|lm_heads\.\d+)\.weight")
_EAGLE = re.compile(r"(model\.)?fc\.weight")
_EAGLES_OWN = frozenset(("d2t", "t2d"))  # which tokens its own vocabulary has


def roles_by_model(config: Mapping[str, Any] | None, names: Collection[str]) -> dict[str, Role]:
    """The tensors of a model, by its config.json and the names of all of them, that are no plain layers though
    their names alone do not tell."""
    found: dict[str, Role] = {}
    for pattern, role in _patterns(config or {}, names):
        found |= {name: role for name in names if pattern.fullmatch(name)}
    return found


def _patterns(config: Mapping[str, Any], names: Collection[str]) -> Iterator[tuple[re.Pattern[str], Role]]:
    said = [str(one) for one in _listed(config.get("architectures"))]
    if any(map(_TASKS.search, said)):
        yield re.compile(rf"{_WRAPPED}({_HEADS})(\..*)?\.weight"), Role.HEAD
    if "architecture" in config and "num_classes" in config:  # timm's
        within = config.get("pretrained_cfg")
        own = config if not isinstance(within, dict) else {**config, **within}
        heads = [str(one) for one in _listed(own.get("classifier"))] or _TIMM
        yield re.compile(rf"{_WRAPPED}({'|'.join(map(re.escape, heads))})\.weight"), Role.HEAD
    kinds = [*said, str(config.get("model_type", "")), *(key for key in config if key.startswith("medusa_"))]
    guessing = any(map(_GUESSING.search, kinds))
    if guessing:
        yield _MEDUSA, Role.SPECULATIVE
    if guessing or not _EAGLES_OWN.isdisjoint(names):
        yield _EAGLE, Role.SPECULATIVE


def _listed(said: object) -> list[object]:
    return said if isinstance(said, list) else [] if said is None else [said]
