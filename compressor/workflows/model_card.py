"""The model card of an output folder: its README.md, with front matter that hubs understand, a section of our own,
and below it whatever the input's README says.

The section stands between two comments, so that a later run replaces it. Of the front matter the lines that say
what the model is made of are ours; others stay as they are, and what they lack is added.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.core.text import printable, size_text
from compressor.engine.plan.plan import Plan
from compressor.workflows.results import Report

NAME = "README.md"
_BEGIN, _END = "<!-- compressor: begin -->", "<!-- compressor: end -->"
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_OWN = re.compile(rf"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", re.DOTALL)
_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~])")
_LOADING = {  # by dialect: packages, and the lines of Python
    "mlx": ("mlx-lm", 'from mlx_lm import load\n\nmodel, tokenizer = load("PATH")'),
    "compressed-tensors": ("transformers and compressed-tensors (or vLLM)", ""),
    "gptq": ("transformers and gptqmodel (or vLLM)", ""),
    "bitsandbytes": ("transformers and bitsandbytes", ""),
}
_TRANSFORMERS = 'from transformers import {0}\n\nmodel = {0}.from_pretrained("PATH")'


def model_card(report: Report, before: str, config: Mapping[str, Any]) -> str:
    """The README of the output that `report` tells of, where the input's is `before` ("" where it has none) and its
    config.json `config`."""
    found = _FRONT.match(before)
    front, text = (found[1], before[found.end() :]) if found else ("", before)
    front = _with_front(front, report, config)
    text = _OWN.sub("", text).lstrip("\n")
    return f"---\n{front}---\n\n{_section(report)}\n{text}"


def _dialects(plan: Plan) -> list[str]:
    """Whose loaders take the stored codes; "" where only `compressor restore` does."""
    treated = [(job.spec, job.encoder) for job in plan.jobs if job.treated and job.encoder is not None]
    return sorted({encoder.dialect(spec) for spec, encoder in treated if not encoder.numbers})


def _with_front(front: str, report: Report, config: Mapping[str, Any]) -> str:
    plan, dialects = report.plan, _dialects(report.plan)
    named = config.get("_name_or_path")
    base = named if isinstance(named, str) and _HUB.fullmatch(named) else os.path.basename(report.input.rstrip("/"))
    relation = "quantized" if any(stage["kind"] == "quantize" for stage in plan.stages) else "finetune"
    lines = _without(front.splitlines(), ("base_model", "base_model_relation"))
    lines += [f"base_model: {_quoted(base)}", f"base_model_relation: {relation}"]
    library = "mlx" if dialects == ["mlx"] else "transformers" if config.get("model_type") else ""
    if library and not any(line.startswith("library_name:") for line in lines):
        lines.append(f"library_name: {library}")
    lines = _with_tags(lines, ["compressor", *filter(None, dialects)])
    return "".join(f"{line}\n" for line in lines)


def _without(lines: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The lines of YAML but for those of these keys, with what is indented below them."""
    kept, dropping = [], False
    for line in lines:
        if re.match(r"[^\s#-]", line):
            dropping = line.split(":")[0].strip() in keys
        if not dropping:
            kept.append(line)
    return kept


def _with_tags(lines: list[str], tags: Sequence[str]) -> list[str]:
    """With these tags, where they are not there: after those of a list in either style."""
    at = next((n for n, line in enumerate(lines) if line.startswith("tags:")), None)
    if at is None:
        return [*lines, "tags:", *(f"- {tag}" for tag in tags)]
    inline = re.fullmatch(r"(tags:\s*\[)(.*)(\]\s*)", lines[at])
    if inline:
        there = [tag.strip().strip("'\"") for tag in inline[2].split(",") if tag.strip()]
        listed = ", ".join([*filter(None, [inline[2].strip()]), *(tag for tag in tags if tag not in there)])
        return [*lines[:at], f"{inline[1]}{listed}{inline[3]}", *lines[at + 1 :]]
    end = at + 1
    while end < len(lines) and re.match(r"\s*- ", lines[end]):
        end += 1
    if end == at + 1 and lines[at].strip() != "tags:":  # a form that we do not know stays
        return lines
    there = [line.strip()[2:].strip().strip("'\"") for line in lines[at + 1 : end]]
    dash = lines[at + 1].split("-")[0] if end > at + 1 else ""
    return [*lines[:end], *(f"{dash}- {tag}" for tag in tags if tag not in there), *lines[end:]]


def _quoted(text: str) -> str:
    """A foreign text as YAML and JSON have it."""
    return json.dumps(text, ensure_ascii=True)


def _section(report: Report) -> str:
    plan, dialects = report.plan, _dialects(report.plan)
    rows = [
        *((f"stage {n}", _stage(stage)) for n, stage in enumerate(plan.stages, 1)),
        (
            "weights",
            f"{size_text(plan.size_before)} → {size_text(plan.size_after)} ({report.ratio:.3g} times smaller)",
        ),
        ("treated", f"{len(report.rows)} of {len(plan.jobs)} tensors, {report.bits_per_weight:.3g} bits a weight"),
    ]
    rows.append(("plan", f"`{plan.fingerprint}`"))
    if report.total is not None and report.everything is not None:
        rows.append(("relative error of the treated weights", f"{report.total.error:.3g}"))
        rows.append(("relative error of all weights", f"{report.everything.error:.3g}"))
    table = "".join(f"| {name} | {said} |\n" for name, said in rows)
    loading = _loading(dialects, plan.language_model)
    return f"{_BEGIN}\n## How it was made smaller\n\n| | |\n|---|---|\n{table}\n{loading}{_END}\n"


def _stage(stage: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in stage.items() if key != "kind")
    return _MARKUP.sub(r"\\\1", printable(f"{stage['kind']}: {options}", 300))


def _loading(dialects: Sequence[str], language_model: bool) -> str:
    if "" in dialects:
        return "Only `compressor restore FOLDER -o DENSE` reads it; what that writes loads as the original does.\n"
    if not dialects:
        return "It loads as the original does.\n"
    packages, code = _LOADING.get(dialects[0], (dialects[0], ""))
    code = code or _TRANSFORMERS.format("AutoModelForCausalLM" if language_model else "AutoModel")
    return f"To load it, with {packages}:\n\n```python\n{code}\n```\n"
