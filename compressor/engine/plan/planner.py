"""Specs and a recipe in, a plan out: what happens to each tensor and why, with exact sizes.

No tensor data is read here. Everything that can be wrong with a request is found here, all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from compressor.checkpoint.checkpoint import Tensor
from compressor.core.errors import CompressorError, InputError, UsageError, problems_of, raise_all
from compressor.core.same import Same
from compressor.core.tensor import TensorSpec
from compressor.engine.plan.adapter import check_adapter, makes_adapter, with_adapters
from compressor.engine.plan.checks import check_axes, check_container, check_dialects, check_names, check_stores
from compressor.engine.plan.fused import agreed, check_fused
from compressor.engine.plan.loaders import check_loader, check_matrix, left_dense
from compressor.engine.plan.notes import is_language_model, plan_notes
from compressor.engine.plan.output_files import carried_over, fingerprinted, lay_out
from compressor.engine.plan.pairing import bias_left_alone, check_partners, has_partner, informed, partner_for
from compressor.engine.plan.patterns import check_patterns
from compressor.engine.plan.plan import Job, Plan, Step, dense_part, short_name
from compressor.engine.plan.request import PlanRequest
from compressor.engine.plan.sharding import resharded
from compressor.engine.plan.sparse_store import SPARSE, with_layout
from compressor.engine.plan.stage_records import described
from compressor.files.layout import Container
from compressor.methods.contract import Scheme, TensorMethod
from compressor.methods.declared import declared
from compressor.methods.parts import Part
from compressor.methods.unlisted.unmoved import Unmoved
from compressor.recipe.model import Stage, Store
from compressor.recipe.selection import VECTOR, LeftAlone, by_role

_DEFAULT_STORE: Mapping[Container, Store] = {
    "npy": "dense",
    "npz": "packed",
    "safetensors": "packed",
    "gguf": "packed",
    "folder": "packed",
    "file": "dense",
}


def make_plan(request: PlanRequest) -> Plan:
    """Decide everything: what happens to each tensor of the request's checkpoint, and the files that come of it.

    Raises the problems of all tensors together: UsageError, InputError (a teacher that does not match),
    OutputError (content that the container cannot hold).
    """
    checkpoint, recipe, container = request.checkpoint, request.recipe, request.container
    _check_requantized(request)
    if not checkpoint.verbatim:
        check_container(checkpoint, container)
    check_stores(recipe.stages, container)
    if makes_adapter(recipe.stages):
        check_adapter(recipe.stages, container, checkpoint, cut=bool(recipe.cuts))
    if not request.allow_unmatched:
        raise_all(check_patterns(recipe.stages, len(recipe.cuts), request.specs))
    jobs = _jobs(request)
    check_partners(request.recipe.stages, request.checkpoint, request.teachers)
    without: tuple[str, ...] = ()
    if makes_adapter(recipe.stages):
        jobs, without = with_adapters(jobs, checkpoint)
    if request.max_shard_size is not None:
        jobs = _sharded(jobs, request.max_shard_size, request)
    check_names(jobs, checkpoint)
    check_axes(jobs, checkpoint)
    if container == "gguf" and not checkpoint.verbatim:
        from compressor.engine.plan.gguf_file import check_ggml

        check_ggml(jobs, request)
    if container == "folder":
        check_dialects(jobs)
        jobs = agreed(jobs, recipe)
        check_fused(jobs, checkpoint)
    if request.strict:
        raise_all(list(_refused_by_strict(jobs, request)))
    if not makes_adapter(recipe.stages):
        check_loader(jobs, request)
    stages = tuple(described(recipe, request.statistics))
    files, texts = lay_out(request, jobs, stages)
    carried, left = carried_over(checkpoint, container, texts, recipe)
    return Plan(
        source=checkpoint.source.kind,
        size_before=checkpoint.source.nbytes,
        container=container,
        stages=stages,
        jobs=tuple(jobs),
        files=files,
        texts=texts,
        carried=carried,
        left=left,
        notes=plan_notes(request, jobs, without),
        cuts=checkpoint.cuts,
        language_model=is_language_model(checkpoint.source.config),
    )


def _sharded(jobs: Sequence[Job], size: int, request: PlanRequest) -> list[Job]:
    """The jobs in files of this size. UsageError for an output of one file, or one that takes files as they are."""
    if request.container not in ("folder", "gguf") or makes_adapter(request.recipe.stages):
        raise UsageError("--max-shard-size is for folders and .gguf, and this output is one file")
    if request.checkpoint.stored:
        raise UsageError("--max-shard-size: an archive of a folder has its files", remedy="Leave it out")
    if request.container == "folder":
        return resharded(jobs, size)
    from compressor.engine.plan.gguf_file import in_file_order
    from compressor.files.gguf.split import MOST_FILES

    files = {job.spec.name: job.file for job in resharded(in_file_order(jobs, request.checkpoint.source), size)}
    count = 1 + max(files.values(), default=0)
    if count > MOST_FILES:
        raise UsageError(
            f"--max-shard-size: there would be {count} files, and the parts of a .gguf are {MOST_FILES} at most",
            remedy="Give a larger size",
        )
    return [replace(job, file=files[job.spec.name]) for job in jobs]


def with_fingerprint(plan: Plan, request: PlanRequest) -> Plan:
    """The plan of this request with its own fingerprint in the headers of its files, where they record anything."""
    if not plan.stages:
        return plan
    fingerprint = plan.fingerprint
    if plan.container in ("safetensors", "folder") and not makes_adapter(request.recipe.stages):
        files = tuple(fingerprinted(file, fingerprint) for file in plan.files)
    else:
        files, _ = lay_out(request, plan.jobs, plan.stages, fingerprint=fingerprint)
    found = replace(plan, files=files)
    vars(found)["fingerprint"] = fingerprint  # headers are none of what it is of, but for their lengths
    return found


def stores_packed(stage: Stage, container: Container) -> bool:
    """Whether the stage stores codes in layouts that loaders or `restore` unpack."""
    store = _DEFAULT_STORE[container] if stage.store == "auto" else stage.store
    return stage.method.verb == "quantize" and store == "packed" and container != "npz"


def _check_requantized(request: PlanRequest) -> None:
    """InputError where codes that lost something would be quantized once more, and nobody asked for that."""
    checkpoint = request.checkpoint
    lossy = checkpoint.lossy or any(
        tensor.encoder is not None and not tensor.encoder.exact for tensor in checkpoint.tensors.values()
    )
    quantizes = any(stage.method.verb == "quantize" for stage in request.recipe.stages)
    if lossy and quantizes and not request.requantize:
        raise InputError(
            f"is already {checkpoint.compression}",
            file=checkpoint.path,
            remedy="Use --requantize to quantize what its codes stand for, which loses once more",
        )


# ---- one tensor ----------------------------------------------------------------------------------------


def _jobs(request: PlanRequest) -> list[Job]:
    """What happens to every tensor, in the checkpoint's order."""
    problems: list[CompressorError] = []
    jobs: list[Job] = []
    for name, tensor in request.checkpoint.tensors.items():
        if request.only is not None and name not in request.only:
            continue
        try:
            jobs.append(_job(tensor, request))
        except CompressorError as error:
            problems.extend(problems_of(error))
    raise_all(problems)
    return jobs


def _refused_by_strict(jobs: Sequence[Job], request: PlanRequest) -> Iterator[CompressorError]:
    """What --strict refuses: weights that are left alone though nobody asked for that, and those that are treated
    otherwise than asked, unless --fallback asks for what is nearest."""
    otherwise: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        for why in job.left_alone:
            if not why.asked:
                yield UsageError(
                    f"would be left alone: {why.reason}",
                    tensor=job.spec.name,
                    remedy="Exclude it, or drop --strict",
                )
        for step in job.steps:
            stage = request.recipe.stages[step.stage - len(request.recipe.cuts)] if step.instead else None
            if stage is not None and not stage.fallback:
                otherwise.setdefault((stage.method.verb, step.instead), []).append(job.spec.name)
    for (verb, instead), names in otherwise.items():
        nearest = "use --fallback, which asks for that, " if verb == "quantize" else ""
        more = f" ({len(names)} tensors)" if len(names) > 1 else ""
        yield UsageError(
            f"would be treated otherwise than asked: {instead}{more}",
            tensor=names[0],
            remedy=f"Ask for what fits, {nearest}exclude {'them' if len(names) > 1 else 'it'}, or drop --strict",
        )


def _job(tensor: Tensor, request: PlanRequest) -> Job:
    spec, grain = tensor.spec, 0
    steps: list[Step] = []
    reasons: list[LeftAlone] = []
    for number, stage in enumerate(request.recipe.stages, len(request.recipe.cuts)):
        why = _why_not(spec, stage, request)
        if why is None:
            step = _step(tensor, number, stage, request, changed=bool(steps))
            if isinstance(step, Step):
                _check_order(spec, steps, step)
                step = informed(spec, step, request.statistics, request.checkpoint)
                stored, apart = with_layout(step, stage, spec, request.container, request.sizes_known)
                grain = max(grain, apart, spec.matrix[0] if step.method.whole else 0)
                steps += stored
                continue
            why = step
        reasons.append(why)
    stays = False
    if request.container == "gguf" and tensor.encoder is not None:
        from compressor.engine.plan.gguf_file import stays_blocks, stored_again

        steps += stored_again(tensor.encoder, steps, request)
        stays = not steps and stays_blocks(tensor.encoder, request)
    if tensor.encoder is not None and not steps and (tensor.kept or stays):
        steps.append(Step(len(request.recipe.cuts), Unmoved(tensor.encoder), {}, dense=False))
    alike = request.container == "folder" and request.checkpoint.source.kind == "folder"
    file = tensor.file if alike else 0
    stored_as = "" if tensor.encoder is None else short_name(tensor.encoder)
    parts = _parts(spec, steps, request.container)
    return Job(spec, tuple(steps), parts, file, tuple(reasons), stored_as, tensor.nbytes, grain, stays=stays)


def _why_not(spec: TensorSpec, stage: Stage, request: PlanRequest) -> LeftAlone | None:
    """Why a stage does not look at a tensor at all; None where it does."""
    why = stage.leaves(spec)
    role = request.checkpoint.roles.get(spec.name)
    if why is None and role is not None and not stage.include:
        why = by_role(role, stage.method.verb)
    if stage.method_for(spec.name).biases and why in (None, VECTOR) and len(spec.shape) == 1:
        why = bias_left_alone(spec, stage, request.checkpoint)
    if why is None and request.container == "gguf" and stage.method.verb == "quantize":
        from compressor.engine.plan.gguf_file import stays_numbers

        why = stays_numbers(spec, stage, request)
    if why is None and spec.name in request.hold:
        why = LeftAlone(request.hold[spec.name], asked=True, held=True)
    return why


def _parts(spec: TensorSpec, steps: Sequence[Step], container: Container) -> tuple[Part, ...]:
    """What is stored of a tensor after these steps; nothing yet where an encoder has to count first."""
    last = steps[-1] if steps else None
    if last is not None and not last.dense and isinstance(last.method, Scheme):
        decoder = last.decoder_for(spec)
        return () if decoder is None else decoder.parts(spec)
    if container == "npz":
        raise UsageError(
            "an .npz holds integer codes, and this tensor has none",
            tensor=spec.name,
            remedy="Write .npy or .safetensors, or use a quantize stage with --store codes",
        )
    return (dense_part(spec),)


def _check_order(spec: TensorSpec, steps: Sequence[Step], step: Step) -> None:
    """Codes end the work on a tensor, and a zero that was pruned stays zero."""
    if steps and not steps[-1].dense:
        raise UsageError(
            f"stage {step.stage} cannot follow stage {steps[-1].stage}, which stores codes",
            tensor=spec.name,
            remedy="Let the earlier one store = dense, or put it last",
        )
    pruned = next((earlier.stage for earlier in steps if earlier.method.verb == "prune"), None)
    if pruned is not None and not step.method.keeps_zeros:
        raise UsageError(
            f"stage {step.stage} ({step.method.verb} {step.method.id}) would fill what stage {pruned} made zero",
            tensor=spec.name,
            remedy="Put the pruning after it",
        )


def _step(tensor: Tensor, number: int, stage: Stage, request: PlanRequest, *, changed: bool) -> Step | LeftAlone:
    """What the stage does to a tensor, which stages before have `changed`, or why nothing."""
    spec, container = tensor.spec, request.container
    method = stage.method_for(spec.name).for_stored_as(spec, None if changed else tensor.encoder)
    assert isinstance(method, TensorMethod)  # noqa: S101 - `recipe_of` keeps those apart that make models
    skip = method.skip(spec)
    if skip is not None:
        return LeftAlone(skip.reason)
    partners = {}
    if stage.teacher is not None:
        role, teacher = method.partners[0], request.teachers[stage.teacher]
        if method.partner_optional and not has_partner(spec, request.checkpoint, teacher):
            return LeftAlone(f"the {role} has no floats of that name and shape")
        partners[role] = partner_for(spec, request.checkpoint, teacher, role)
    if not isinstance(method, Scheme) or method.numbers_only:
        return Step(number, method, partners, instead=method.partial_treatment(spec))
    store = _DEFAULT_STORE[container] if stage.store == "auto" else stage.store
    settled, instead = _settled(Same[Scheme](method), spec.dtype, spec.shape)
    stored = _stored_form(settled, spec, stage, store, request)
    if isinstance(stored, LeftAlone):
        return stored
    step = _checked(Step(number, stored, partners, store == "dense", instead), stored, spec, stage)
    counted = request.sizes_known.get(spec.name)
    if isinstance(step, LeftAlone) or counted is None or counted.stage != number or store in SPARSE:
        return step
    needless = counted.encoder.leaves(spec)
    return replace(step, found=counted.encoder) if needless is None else LeftAlone(needless.reason)


@lru_cache(maxsize=4096)
def _settled(this: Same[Scheme], dtype: str, shape: tuple[int, ...]) -> tuple[Scheme, str]:
    """What a scheme's options that were left open are for tensors of this shape: one object for all of them, by
    which neighbours are known to be treated alike. Schemes that are equal may know different codes of a tensor."""
    return this.held.settled(TensorSpec("", dtype, shape))


def _stored_form(
    method: Scheme, spec: TensorSpec, stage: Stage, store: Store, request: PlanRequest
) -> Scheme | LeftAlone:
    """The scheme by which a stage stores a tensor, or why loaders would not find it."""
    if request.container == "gguf" and len(spec.shape) < 2 and store != "dense":
        return LeftAlone("vector or scalar: llama.cpp reads those as numbers only")
    in_bits = request.container == "npz" and store == "packed"
    if in_bits or store == "codes" or (store in SPARSE and store != "smallest"):
        plain = method.codes_in_bits(spec) if in_bits else method.codes(spec)
        if plain is None:
            raise UsageError(
                f"scheme {method.id} has no integer codes",
                tensor=spec.name,
                remedy="Write .safetensors, or use --scheme int"
                if request.container == "npz"
                else "Leave --store out: what it has instead is stored as it is",
            )
        return plain
    if store in ("packed", "smallest") and request.container == "folder" and method.verb == "quantize":
        if len(spec.shape) != 2 and not stage.include:
            return LeftAlone(
                "no matrix: loaders take codes of matrices only (--include with --layout compressor stores it)"
            )
        if request.checkpoint.source.config is not None:  # without one no loader takes the folder for a model
            check_matrix(method, spec)
        why = left_dense(method, spec, request.checkpoint, request.loader)
        if why:
            return LeftAlone(why)
        decoder = method.decoder_for(spec)
        if decoder is not None and declared(decoder, spec).dialect and not spec.name.endswith(".weight"):
            return LeftAlone("no module's .weight, so loaders would not look for its codes")
    return method


def _checked(step: Step, scheme: Scheme, spec: TensorSpec, stage: Stage) -> Step | LeftAlone:
    """The step, with what is nearest to its scheme where the tensor's shape contradicts the options and the stage
    allows that."""
    try:
        scheme.check(spec)  # also where numbers are stored
    except UsageError as error:
        if not stage.fallback:
            raise
        nearest = scheme.fallback(spec)
        if nearest is None:
            return LeftAlone(f"{error.reason}, and --fallback knows nothing near it")
        return replace(step, method=nearest[0], instead=nearest[1])
    return step
