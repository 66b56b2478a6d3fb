"""An adapter as an output: a folder that PEFT loads on top of the model that it is for, and nothing else.

`adapter_model.safetensors` holds the factors under the names that PEFT gives its LoRA layers, and
`adapter_config.json` says which modules have one, of which rank. The scaling, lora_alpha / r, is 1 throughout.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compressor.checkpoint import record
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import InputError, UsageError
from compressor.core.text import printable
from compressor.engine.plan.plan import Job, OutputFile
from compressor.files import safetensors
from compressor.files.folder import json_bytes
from compressor.files.layout import Container
from compressor.methods.contract import Scheme
from compressor.recipe.model import Stage

_FILE, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NAMED = 2  # tensors without an adapter that a note names
_TASKS = (
    (r"For(CausalLM)$|LMHeadModel$", "CAUSAL_LM"),
    (r"ForSequenceClassification$", "SEQ_CLS"),
    (r"ForTokenClassification$", "TOKEN_CLS"),
    (r"ForQuestionAnswering$", "QUESTION_ANS"),
    (r"ForConditionalGeneration$", "SEQ_2_SEQ_LM"),
    (r"Model$", "FEATURE_EXTRACTION"),
)


def makes_adapter(stages: Sequence[Stage]) -> bool:
    """Whether a stage of these stores an adapter."""
    return any(isinstance(stage.method, Scheme) and stage.method.adapter for stage in stages)


def check_adapter(stages: Sequence[Stage], container: Container, checkpoint: Checkpoint, *, cut: bool) -> None:
    """UsageError where an adapter would not be the whole output, or would be for a model that is nowhere."""
    (method,) = {stage.method.id for stage in stages if isinstance(stage.method, Scheme) and stage.method.adapter}
    if len(stages) > 1 or cut:
        raise UsageError(
            f"distill {method} makes an adapter for its input, which no other stage may change",
            remedy="Run the other stages first, and give their output as the student",
        )
    if container != "folder":
        raise UsageError(
            f"distill {method} writes a folder, {_FILE} and {_CONFIG}", remedy="Name the output without a suffix"
        )
    if checkpoint.source.kind in ("npy", "npz"):
        raise InputError(
            f"an .{checkpoint.source.kind} names no module that an adapter could be for",
            file=checkpoint.path,
            remedy="Give a folder or a .safetensors",
        )


def with_adapters(jobs: Sequence[Job], checkpoint: Checkpoint) -> tuple[list[Job], tuple[str, ...]]:
    """The jobs that have an adapter, and a note for each reason why others have none. InputError when none has."""
    made = [replace(job, file=0) for job in jobs if job.steps]
    reasons: dict[str, list[str]] = {}
    for job in jobs:
        if not job.steps:
            reasons.setdefault("; ".join(why.reason for why in job.left_alone), []).append(job.spec.name)
    if not made:
        raise InputError(
            f"no tensor needs an adapter: {'; '.join(map(printable, reasons)) or 'it holds none'}",
            file=checkpoint.path,
            remedy="Give what was pruned or quantized as the student, and what it was made from as the teacher",
        )
    return made, tuple(
        f"no adapter for {len(names)}: {reason}: "
        + ", ".join(printable(name, 60) for name in names[:_NAMED])
        + (", …" if len(names) > _NAMED else "")
        for reason, names in reasons.items()
    )


def adapter_files(
    jobs: Sequence[Job], checkpoint: Checkpoint, stages: Sequence[Mapping[str, Any]], fingerprint: str
) -> tuple[tuple[OutputFile, ...], tuple[tuple[str, bytes], ...]]:
    """The file of the factors, which records the plan's `fingerprint`, and what stands beside it."""
    metadata = {"format": "pt", **record.to_metadata(stages, (), checkpoint.identity, fingerprint)}
    layout = safetensors.layout([spec for job in jobs for spec in job.part_specs], metadata)
    if not all(job.sizes_known for job in jobs):
        return (OutputFile(_FILE, layout),), ()
    return (OutputFile(_FILE, layout),), ((_CONFIG, json_bytes(_config(jobs, checkpoint))),)


def adapter_notes(jobs: Sequence[Job], checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the user should know of an adapter: what its base is, and where it can be loaded."""
    notes = {job.encoder.remark(job.spec) for job in jobs if job.encoder is not None} - {""}
    if checkpoint.source.config is None:
        notes.add("without a config.json the adapter's task_type is left open: load it on the model that you build")
    return ("it goes on top of the student, which it does not hold", *checkpoint.notes, *sorted(notes))


def _config(jobs: Sequence[Job], checkpoint: Checkpoint) -> dict[str, Any]:
    ranks = {job.spec.name.removesuffix(".weight"): min(min(part.shape) for part in job.parts) for job in jobs}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(module)}": rank for module, rank in sorted(ranks.items()) if rank != usual}
    base = None if jobs[0].encoder is None else jobs[0].encoder.base_name
    return {
        "alpha_pattern": others,
        "base_model_name_or_path": base or os.path.basename(os.path.realpath(checkpoint.path)),
        "bias": "none",
        "fan_in_fan_out": any(job.spec.name in checkpoint.upright for job in jobs),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": others,
        "target_modules": sorted(ranks),
        "task_type": _task(checkpoint),
    }


def _task(checkpoint: Checkpoint) -> str | None:
    """What PEFT should take the model for; None where the config does not tell."""
    named = (checkpoint.source.config or {}).get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    return next((task for suffix, task in _TASKS if re.search(suffix, name)), None)
