"""What the user should know of a plan before it is run: sentences, in a stable order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compressor.architectures.fused_experts import holds_experts
from compressor.calibration.statistics import Statistics
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable, size_text
from compressor.engine.plan.adapter import adapter_notes, makes_adapter
from compressor.engine.plan.loaders import loader_notes
from compressor.engine.plan.patterns import pattern_notes
from compressor.engine.plan.plan import Job
from compressor.engine.plan.request import PlanRequest
from compressor.files.layout import Container
from compressor.methods.contract import Decoder
from compressor.methods.declared import declared
from compressor.recipe.model import Recipe

Stored = Sequence[tuple[TensorSpec, Decoder]]
_NAMED = 2  # tensors that a note names


def plan_notes(request: PlanRequest, jobs: Sequence[Job], without_adapter: Sequence[str]) -> tuple[str, ...]:
    """What the user should know of a plan, in sentences; `without_adapter` are those on tensors that an adapter
    leaves out."""
    checkpoint = request.checkpoint
    if makes_adapter(request.recipe.stages):
        notes = [*adapter_notes(jobs, checkpoint), *without_adapter]
    else:
        stored = [(job.spec, job.encoder) for job in jobs if job.encoder is not None]
        notes = [
            *checkpoint.notes,
            *_loading(jobs, stored, request.container, checkpoint),
            *_input(checkpoint, request.recipe),
            *_carried(checkpoint, request.container),
            *pattern_notes(request.recipe.stages, len(request.recipe.cuts), request.specs),
            *_of_gguf(jobs, request.container),
            *_no_smaller(jobs, request.container),
            *_idle(jobs, request.recipe, checkpoint),
        ]
    return (*notes, *_unpaired(request), *_wide_memory(jobs), *_statistics_memory(jobs, request.statistics))


def _no_smaller(jobs: Sequence[Job], container: Container) -> Iterator[str]:
    """Where what was rounded to few bits is stored as whole numbers again."""
    if container == "npy" and any(step.method.verb == "quantize" for job in jobs for step in job.steps):
        yield "an .npy holds plain floats and cannot be smaller: end the output in .npz or .safetensors for codes"


def _of_gguf(jobs: Sequence[Job], container: Container) -> Iterator[str]:
    if container == "gguf":
        from compressor.engine.plan.gguf_file import gguf_notes

        yield from gguf_notes(jobs)


def is_language_model(config: Mapping[str, Any] | None) -> bool:
    """Whether a config.json says that the model is one."""
    named = (config or {}).get("architectures")
    return isinstance(named, list) and any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in named)


def _loading(jobs: Sequence[Job], stored: Stored, container: Container, checkpoint: Checkpoint) -> Iterator[str]:
    """What loaders do with the codes."""
    layouts = {(declared(encoder, spec).config or {}).get("format") for spec, encoder in stored}
    spoken = {declared(encoder, spec).dialect for spec, encoder in stored}
    if container == "folder":
        if "int-quantized" in layouts:
            yield (
                "int-quantized: loaders also quantize activations to 8 bits, token by token; "
                "--layout pack-quantized or --granularity group keeps activations as they are"
            )
        if "float-quantized" in layouts:
            yield (
                "float-quantized: loaders also quantize activations to 8-bit floats; "
                "--layout naive-quantized keeps activations as they are"
            )
        if spoken - {""} and checkpoint.source.config is None:
            yield "without a config.json nothing tells loaders that weights are quantized; `restore` knows"
    if container == "folder" and spoken - {""}:
        yield from loader_notes(jobs, checkpoint.source.config)
        yield from _dense_experts(jobs, checkpoint.source.config or {})
    yield from sorted({encoder.remark(spec) for spec, encoder in stored} - {""})
    own = any(declared(encoder, spec).dialect == "" and not encoder.numbers for spec, encoder in stored)
    if own and container not in ("npz", "gguf"):
        yield "part of it is in this project's own layout, which only `compressor restore` reads"


def _dense_experts(jobs: Sequence[Job], config: Mapping[str, Any]) -> Iterator[str]:
    """How much of a model stays dense, since all experts of a layer lie in one tensor."""
    held = [job.spec for job in jobs if not job.steps and holds_experts(config, job.spec.shape)]
    if held:
        share = sum(spec.size for spec in held) / max(sum(job.spec.size for job in jobs), 1)
        yield (
            f"tensors that hold all experts of a layer stay dense, {share:.0%} of the weights "
            f"({_named([spec.name for spec in held])}): loaders take codes of matrices only"
        )


def _named(names: Sequence[str]) -> str:
    """The first of these tensors, and how many more there are."""
    shown = ", ".join(printable(name, 100) for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def _carried(checkpoint: Checkpoint, container: Container) -> Iterator[str]:
    """What of the folder holds weights of its own, which nothing is done to: adapters, modules in sub-folders."""
    held = [name for name in checkpoint.source.carried if name.endswith((".safetensors", ".bin"))]
    if held and container == "folder":
        yield f"carried as they are, with weights of their own: {_named(held)}"


def _input(checkpoint: Checkpoint, recipe: Recipe) -> Iterator[str]:
    """How the input was stored, and what of it serves nobody any more."""
    coded = checkpoint.lossy or any(tensor.encoder is not None for tensor in checkpoint.tensors.values())
    if checkpoint.compression and not coded:
        yield f"the input calls itself {checkpoint.compression}, and none of its tensors are codes"
    elif checkpoint.compression and (recipe.stages or checkpoint.cuts):
        yield f"the input is {checkpoint.compression}: what its codes stand for was taken as the weights"
    if checkpoint.dropped:
        yield f"dropped, because it serves loaders of quantized weights only: {_named(checkpoint.dropped)}"


def _unpaired(request: PlanRequest) -> Iterator[str]:
    """What a student has and its teacher has not, of what is left alone; else it would be an error."""
    student = request.checkpoint.tensors
    for stage in request.recipe.stages:
        taught = stage.teacher is not None and stage.method.verb == "distill" and not stage.method.partner_optional
        if stage.teacher is None or not taught or len(student) == 1:
            continue
        shapes = {name: tensor.spec.shape for name, tensor in request.teachers[stage.teacher].tensors.items()}
        alone = [
            name
            for name, tensor in student.items()
            if shapes.get(name) != tensor.spec.shape
            and (why := stage.leaves(tensor.spec)) is not None
            and why.role is not None
        ]
        if alone:
            stays = "of that shape, which stays" if len(alone) == 1 else "of those shapes, which stay"
            yield f"the teacher is of another structure: it has no {_named(alone)} {stays} as in the student"


def _idle(jobs: Sequence[Job], recipe: Recipe, checkpoint: Checkpoint) -> Iterator[str]:
    """Where nothing is done to any tensor."""
    if recipe.stages and not any(job.treated for job in jobs):
        those = "what the cut left" if checkpoint.cuts else "those of the input"
        yield f"no tensor was selected: the output's tensors are {those}"
    changed = recipe.stages or recipe.training or checkpoint.compression or checkpoint.cuts or checkpoint.stored
    changed = changed or any(part.file.stands_for for part in checkpoint.source.files)  # an archive is decoded
    if not changed and checkpoint.tensors.keys() <= checkpoint.source.tensors.keys():  # none is folded or joined
        yield "it stores no codes: the output's tensors are those of the input"


def _wide_memory(jobs: Sequence[Job]) -> Iterator[str]:
    """What methods need that hold whole tensors, or much beside their blocks."""
    for whole, why in ((True, "a whole tensor is held at a time"), (False, "the method works on wide numbers")):
        steps = [(step.method, job.spec) for job in jobs for step in job.steps if step.method.whole == whole]
        most = max((method.memory(spec) for method, spec in steps), default=0)
        if most:
            yield f"{why}: up to about {size_text(most)} a worker"


def _statistics_memory(jobs: Sequence[Job], statistics: Mapping[int, Statistics]) -> Iterator[str]:
    """What a worker holds of statistics: two vectors of float64 and, of a gram, a matrix of them."""
    widths = [
        (statistics[step.stage].widths[step.inputs], step.gram)
        for job in jobs
        for step in job.steps
        if step.inputs is not None
    ]
    most = max((16 * width + (8 * width * width if gram else 0) for width, gram in widths), default=0)
    if most:
        yield f"a worker holds the statistics of one layer at a time, at most {size_text(most)}"
