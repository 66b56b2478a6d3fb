"""The model card of an output folder: its README.md, with front matter that hubs understand, a section of our own,
and below it whatever the input's README says.

The section stands between two comments, so that a later run replaces it. Of the front matter the lines that say
what the model is made of are ours; others stay as they are, and what they lack is added.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from compressor.core.text import printable, size_text, without_secrets
from compressor.engine.plan.plan import Plan

NAME = "README.md"
_BEGIN, _END = "<!-- compressor: begin -->", "<!-- compressor: end -->"
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_OWN = re.compile(rf"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", re.DOTALL)
_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_ON_HUB = re.compile(r"hf://(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)", re.ASCII)
_BY_NAME = re.compile(r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(@.*)?", re.ASCII)
_IN_CACHE = re.compile(r"/models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/", re.ASCII)
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~])")
_LOADING = {  # by dialect: packages, and the lines of Python
    "mlx": ("mlx-lm", 'from mlx_lm import load\n\nmodel, tokenizer = load("PATH")'),
    "compressed-tensors": ("transformers and compressed-tensors (or vLLM)", ""),
    "gptq": ("transformers and gptqmodel (or vLLM)", ""),
    "bitsandbytes": ("transformers and bitsandbytes", ""),
}
_TRANSFORMERS = 'from transformers import {0}\n\nmodel = {0}.from_pretrained("PATH")'


@dataclass(frozen=True)
class CardFacts:
    """What a card says that is known before anything is written, as JSON types; `before` is the README of the input
    ("" where it has none), `base` the model that the output was made of, `last` whether errors are those of the
    last of several passes."""

    before: str
    base: str
    library: str
    dialects: Sequence[str]
    language_model: bool
    stages: Sequence[Mapping[str, Any]]
    last: bool = False


@dataclass(frozen=True)
class CardFigures:
    """What a card says of the output: bytes before and after, how many of the tensors were treated, in how many
    bits a weight, and their relative error and that of all weights."""

    plan: str
    sizes: tuple[int, int]
    treated: int
    tensors: int
    bits: float
    errors: tuple[float, float]


def card_facts(
    plan: Plan,
    before: bytes,
    config: Mapping[str, Any],
    base: str,
    earlier: Sequence[Mapping[str, Any]],
    *,
    archived: bool = False,
    last: bool = False,
) -> CardFacts | None:
    """The facts of a card, where the input lies at the path `base`, its README and config.json are `before` and
    `config`, and its record names the stages `earlier`. None for outputs without a card: where nothing was done,
    unless a README tells of what is undone, and without a config.json."""
    text = before.decode(errors="surrogateescape")
    if not plan.stages and _OWN.search(text) is None:
        return None
    dialects = [""] if archived else _dialects(plan)
    named = config.get("_name_or_path")
    base = named if isinstance(named, str) and _HUB.fullmatch(named) else _name_of(base)
    library = "mlx" if dialects == ["mlx"] else "transformers" if config.get("model_type") else ""
    stages = [dict(stage) for stage in (*earlier, *plan.stages)]
    if not plan.stages:
        stages.append({"kind": "restore"})
    return CardFacts(text, base, library, dialects, plan.language_model, stages, last)


def _name_of(path: str) -> str:
    """What a model at this path is called: by its name on the hub where the path tells, else as its last part."""
    found = _ON_HUB.match(path) or _IN_CACHE.search(path)
    if found is None and not os.path.exists(path):  # nor is it read from there
        found = _BY_NAME.fullmatch(path)
    if found is not None:
        return f"{found['owner']}/{found['name']}"
    return os.path.basename(without_secrets(path).rstrip("/") if "://" in path else os.path.abspath(path))


def model_card(facts: CardFacts, figures: CardFigures) -> bytes:
    """The README of an output."""
    found = _FRONT.match(facts.before)
    front, text = (found[1], facts.before[found.end() :]) if found else ("", facts.before)
    front = _with_front(front, facts)
    text = _OWN.sub("", text).lstrip("\n")
    return f"---\n{front}---\n\n{_section(facts, figures)}\n{text}".encode(errors="surrogateescape")


def _dialects(plan: Plan) -> list[str]:
    """Whose loaders take the stored codes; "" where only `compressor restore` does."""
    treated = [(job.spec, job.encoder) for job in plan.jobs if job.treated and job.encoder is not None]
    return sorted({encoder.dialect(spec) for spec, encoder in treated if not encoder.numbers})


def _with_front(front: str, facts: CardFacts) -> str:
    kinds = [stage["kind"] for stage in facts.stages]
    relation = "quantized" if "quantize" in kinds and kinds[-1] != "restore" else "finetune"
    lines = _without(front.splitlines(), ("base_model", "base_model_relation"))
    lines += [f"base_model: {_quoted(facts.base)}", f"base_model_relation: {relation}"]
    if facts.library and not any(line.startswith("library_name:") for line in lines):
        lines.append(f"library_name: {facts.library}")
    tags = ["compressor", *filter(None, facts.dialects)]
    lines = _with_tags(lines, tags, {*_LOADING} - {*tags} if _OWN.search(facts.before) else set())
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


def _with_tags(lines: list[str], tags: Sequence[str], stale: Set[str]) -> list[str]:
    """With these tags, where they are not there, after those of a list in either style; `stale` ones are taken
    out."""
    at = next((n for n, line in enumerate(lines) if line.startswith("tags:")), None)
    if at is None:
        return [*lines, "tags:", *(f"- {tag}" for tag in tags)]
    inline = re.fullmatch(r"(tags:\s*\[)(.*)(\]\s*)", lines[at])
    if inline:
        written = [tag.strip() for tag in inline[2].split(",") if _tag(tag) and _tag(tag) not in stale]
        there = list(map(_tag, written))
        listed = ", ".join([*written, *(tag for tag in tags if tag not in there)])
        return [*lines[:at], f"{inline[1]}{listed}{inline[3]}", *lines[at + 1 :]]
    end = at + 1
    while end < len(lines) and re.match(r"\s*- ", lines[end]):
        end += 1
    if end == at + 1 and lines[at].strip() != "tags:":  # a form that we do not know stays
        return lines
    dash = lines[at + 1].split("-")[0] if end > at + 1 else ""
    written = [line for line in lines[at + 1 : end] if _tag(line.strip()[2:]) not in stale]
    there = [_tag(line.strip()[2:]) for line in written]
    return [*lines[: at + 1], *written, *(f"{dash}- {tag}" for tag in tags if tag not in there), *lines[end:]]


def _tag(text: str) -> str:
    """A tag as it is meant, without the quotes that YAML allows."""
    return text.strip().strip("'\"")


def _quoted(text: str) -> str:
    """A foreign text as YAML and JSON have it."""
    return json.dumps(text, ensure_ascii=True)


def _section(facts: CardFacts, figures: CardFigures) -> str:
    before, after = figures.sizes
    restored = facts.stages[-1]["kind"] == "restore"
    of, (treated, everything) = (" (last pass)" if facts.last else ""), figures.errors
    sizes, count = f"{size_text(before)} → {size_text(after)}", f"{figures.treated} of {figures.tensors} tensors"
    rows = [(f"stage {n}", _stage(stage)) for n, stage in enumerate(facts.stages, 1)]
    if restored:
        rows += [("weights", sizes), ("restored", count)]
    else:
        rows.append(("weights", f"{sizes} ({before / after:.3g} times smaller)"))
        rows.append(("treated", f"{count}, {figures.bits:.3g} bits a weight"))
        rows.append(("plan", f"`{figures.plan}`"))
        rows.append((f"relative error of the treated weights{of}", f"{treated:.3g}"))
        rows.append((f"relative error of all weights{of}", f"{everything:.3g}"))
    table = "".join(f"| {name} | {said} |\n" for name, said in rows)
    loading = _loading(facts.dialects, facts.language_model)
    heading = "How it was made" if restored else "How it was made smaller"
    return f"{_BEGIN}\n## {heading}\n\n| | |\n|---|---|\n{table}\n{loading}{_END}\n"


def _stage(stage: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in stage.items() if key != "kind")
    said = f"{stage['kind']}: {options}" if options else f"{stage['kind']}"
    return _MARKUP.sub(r"\\\1", printable(said, 300))


def _loading(dialects: Sequence[str], language_model: bool) -> str:
    if "" in dialects:
        return "Only `compressor restore FOLDER -o DENSE` reads it; what that writes loads as the original does.\n"
    if not dialects:
        return "It loads as the original does.\n"
    packages, code = _LOADING.get(dialects[0], (dialects[0], ""))
    code = code or _TRANSFORMERS.format("AutoModelForCausalLM" if language_model else "AutoModel")
    return f"To load it, with {packages}:\n\n```python\n{code}\n```\n"
