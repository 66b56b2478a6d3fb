"""Specs and a recipe in, a plan out: what happens to each tensor and why, with exact sizes.

No tensor data is read here. Everything that can be wrong with a request is found here, all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compressor.architectures.conv1d import is_conv1d
from compressor.architectures.roles import is_embedding
from compressor.calibration.statistics import Statistics
from compressor.checkpoint import dialects
from compressor.checkpoint import record as provenance
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.errors import CompressorError, InputError, UsageError, raise_all
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.engine.plan.adapter import adapter_files, adapter_notes, check_adapter, makes_adapter, with_adapters
from compressor.engine.plan.carried import others, whole_note
from compressor.engine.plan.checks import check_container, check_dialects, check_fused, check_names, check_stores
from compressor.engine.plan.pairing import bias_left_alone, described, informed, memory_note, partner_for
from compressor.engine.plan.plan import Counted, Job, Known, OutputFile, Plan, Step, dense_part, short_name
from compressor.engine.plan.sparse_store import SPARSE, with_layout
from compressor.files import npy, npz, safetensors
from compressor.files.folder import CONFIG, SINGLE, index_bytes, json_bytes
from compressor.files.identity import Identity
from compressor.files.layout import Container, FileLayout
from compressor.methods.contract import Scheme, TensorMethod
from compressor.methods.unlisted.unmoved import Unmoved
from compressor.recipe.model import Recipe, Stage, Store
from compressor.recipe.selection import VECTOR, LeftAlone

_DEFAULT_STORE: Mapping[Container, Store] = {
    "npy": "dense",
    "npz": "codes",
    "safetensors": "packed",
    "folder": "packed",
}


def make_plan(
    checkpoint: Checkpoint,
    recipe: Recipe,
    container: Container,
    output_name: str,
    *,
    teachers: Mapping[str, Checkpoint] | None = None,
    statistics: Mapping[int, Statistics] | None = None,
    hold: Mapping[str, str] | None = None,
    known: Known | None = None,
    only: Sequence[str] | None = None,
    strict: bool = False,
    requantize: bool = False,
) -> Plan:
    """Decide everything. `statistics` are those of layer inputs by stage; `hold` tensors to leave untouched with
    the reason (found by an earlier scan); `known` is what was counted of tensors before: without it the plan may be
    one that is not `counted`; `only` these tensors are in the output, where given.

    `output_name` is the file's own name where the output is one file.
    Raises the problems of all tensors together: UsageError, InputError (a teacher that does not match),
    OutputError (content that the container cannot hold).
    """
    lossy = any(tensor.encoder is not None and not tensor.encoder.exact for tensor in checkpoint.tensors.values())
    if lossy and not requantize and any(stage.method.verb == "quantize" for stage in recipe.stages):
        raise InputError(
            f"is already {checkpoint.compression}",
            file=checkpoint.path,
            remedy="Use --requantize to quantize what its codes stand for, which loses once more",
        )
    check_container(checkpoint, container)
    check_stores(recipe.stages, container)
    adapter = makes_adapter(recipe.stages)
    if adapter:
        check_adapter(recipe.stages, container, checkpoint, cut=bool(recipe.cuts))
    problems: list[CompressorError] = []
    jobs: list[Job] = []
    wanted = set(checkpoint.tensors if only is None else only)
    for tensor in checkpoint.tensors.values():
        if tensor.spec.name not in wanted:
            continue
        try:
            jobs.append(
                _job(
                    tensor, recipe, container, teachers or {}, statistics or {}, hold or {}, known or {}, checkpoint
                )
            )
        except CompressorError as error:
            problems.extend(getattr(error, "problems", [error]))
    if strict:
        problems += [
            UsageError(
                f"would be left alone: {why.reason}",
                tensor=job.spec.name,
                remedy="Exclude it, or drop --strict",
            )
            for job in jobs
            for why in job.left_alone
            if not why.asked
        ]
    raise_all(problems)
    without: tuple[str, ...] = ()
    if adapter:
        jobs, without = with_adapters(jobs, checkpoint)
    check_names(jobs, checkpoint)
    if container == "folder":
        check_dialects(jobs)
        check_fused(jobs, checkpoint)
    stages = tuple(described(recipe, statistics or {}))
    if adapter:
        files, texts = adapter_files(jobs, checkpoint, stages)
        carried: tuple[str, ...] = ()
        left: tuple[tuple[str, str], ...] = ()
        notes = (*adapter_notes(jobs, checkpoint), *without)
    else:
        files, texts = _files(jobs, checkpoint, container, output_name, stages)
        carried, left = others(checkpoint, container, texts)
        notes = _notes(jobs, container, recipe, checkpoint)
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
        notes=(*notes, *whole_note(jobs), *memory_note(jobs, statistics or {})),
        cuts=checkpoint.cuts,
        language_model=_is_language_model(checkpoint.source.config),
    )


def stores_packed(stage: Stage, container: Container) -> bool:
    """Whether the stage stores codes in layouts that loaders or `restore` unpack."""
    store = _DEFAULT_STORE[container] if stage.store == "auto" else stage.store
    return stage.method.verb == "quantize" and store == "packed"


# ---- one tensor ----------------------------------------------------------------------------------------


def _job(
    tensor: Tensor,
    recipe: Recipe,
    container: Container,
    teachers: Mapping[str, Checkpoint],
    statistics: Mapping[int, Statistics],
    hold: Mapping[str, str],
    known: Known,
    checkpoint: Checkpoint,
) -> Job:
    spec, grain = tensor.spec, 0
    steps: list[Step] = []
    reasons: list[LeftAlone] = []
    for number, stage in enumerate(recipe.stages, len(recipe.cuts)):
        why = stage.leaves(spec)
        if stage.method_for(spec.name).biases and why in (None, VECTOR) and len(spec.shape) == 1:
            why = bias_left_alone(spec, stage, checkpoint)
        if why is None and spec.name in hold:
            why = LeftAlone(hold[spec.name], asked=True)
        if why is None:
            step = _step(tensor, number, stage, container, teachers, checkpoint, known.get(spec.name), bool(steps))
            if isinstance(step, Step):
                _check_order(spec, steps, step)
                step = informed(spec, step, statistics, checkpoint)
                stored, apart = with_layout(step, stage, spec, container, known)
                grain = max(grain, apart, spec.matrix[0] if step.method.whole else 0)
                steps += stored
                continue
            why = step
        reasons.append(why)
    if tensor.kept and tensor.encoder is not None and not steps:
        steps.append(Step(len(recipe.cuts), Unmoved(tensor.encoder), {}, dense=False))
    last = steps[-1] if steps else None
    if last is not None and not last.dense and isinstance(last.method, Scheme):
        decoder = last.decoder_for(spec)
        parts = () if decoder is None else decoder.parts(spec)
    elif container == "npz":
        raise UsageError(
            "an .npz holds integer codes, and this tensor has none",
            tensor=spec.name,
            remedy="Write .npy or .safetensors, or use a quantize stage with --store codes",
        )
    else:
        parts = (dense_part(spec),)
    file = tensor.file if container == "folder" else 0
    stored_as = "" if tensor.encoder is None else short_name(tensor.encoder)
    return Job(spec, tuple(steps), parts, file, tuple(reasons), stored_as, tensor.nbytes, grain)


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


def _step(
    tensor: Tensor,
    number: int,
    stage: Stage,
    container: Container,
    teachers: Mapping[str, Checkpoint],
    checkpoint: Checkpoint,
    found: Counted | None,
    changed: bool,
) -> Step | LeftAlone:
    """What the stage does to a tensor, which stages before have `changed`, or why nothing."""
    spec = tensor.spec
    method = stage.method_for(spec.name).for_stored_as(spec, None if changed else tensor.encoder)
    assert isinstance(method, TensorMethod)  # noqa: S101 - `recipe_of` keeps those apart that make models
    skip = method.skip(spec)
    if skip is not None:
        return LeftAlone(skip.reason)
    partners = {}
    if stage.teacher is not None:
        role = method.partners[0]
        partners[role] = partner_for(spec, checkpoint, teachers[stage.teacher], role)
    if not isinstance(method, Scheme) or method.numbers_only:
        return Step(number, method, partners, instead=method.partial_treatment(spec))
    store = _DEFAULT_STORE[container] if stage.store == "auto" else stage.store
    if store == "codes" or (store in SPARSE and store != "smallest"):
        plain = method.codes(spec)
        if plain is None:
            raise UsageError(f"scheme {method.id} has no integer codes", tensor=spec.name)
        method = plain
    elif store in ("packed", "smallest") and container == "folder" and method.verb == "quantize":
        if len(spec.shape) != 2 and not stage.include:
            return LeftAlone(
                "no matrix: loaders take codes of matrices only (--include stores it in our own layout)"
            )
        decoder = method.decoder_for(spec)
        if decoder is not None and decoder.dialect(spec) and not spec.name.endswith(".weight"):
            return LeftAlone("no module's .weight, so loaders would not look for its codes")
    instead = ""
    try:
        method.check(spec)  # the tensor's shape may contradict the options also where numbers are stored
    except UsageError as error:
        if not stage.fallback:
            raise
        nearest = method.fallback(spec)
        if nearest is None:
            return LeftAlone(f"{error.reason}, and --fallback knows nothing near it")
        method, instead = nearest
    encoder = None
    if found is not None and found.stage == number and store not in SPARSE:
        encoder = found.encoder
        needless = encoder.leaves(spec)
        if needless is not None:
            return LeftAlone(needless.reason)
    return Step(number, method, partners, dense=store == "dense", instead=instead, found=encoder)


# ---- all tensors together ------------------------------------------------------------------------------


def _files(
    jobs: Sequence[Job],
    checkpoint: Checkpoint,
    container: Container,
    output_name: str,
    stages: Sequence[Mapping[str, Any]],
) -> tuple[tuple[OutputFile, ...], tuple[tuple[str, bytes], ...]]:
    """Every container file with its layout, and the texts that go with a folder."""
    source = checkpoint.source
    if container == "npy":
        return (OutputFile(output_name, npy.layout(jobs[0].part_specs()[0])),), ()
    if container == "npz":
        return (OutputFile(output_name, _npz_layout(jobs[0], stages, checkpoint.identity)),), ()
    grouped: dict[int, list[Job]] = {
        number: [] for number in range(len(source.files) if container == "folder" else 1)
    }
    for job in jobs:
        grouped[job.file].append(job)
    files = []
    form = dialects.metadata_format([(job.spec, job.encoder) for job in jobs if job.encoder is not None])
    for number, members in grouped.items():
        origin = source.files if container != "folder" else (source.files[number],)
        records = [checkpoint.records[source.files.index(part)] for part in origin]
        metadata = {key: value for part in origin for key, value in part.header.metadata.items()}
        if checkpoint.stored:
            specs = [spec for job in members for spec in job.part_specs()]
            name = origin[0].name if container == "folder" and source.kind == "folder" else output_name
            name = SINGLE if container == "folder" and source.kind != "folder" else name
            files.append(OutputFile(name, safetensors.layout(specs, metadata)))
            continue
        metadata.pop(provenance.KEY, None)
        metadata.setdefault("format", "pt")
        metadata["format"] = form or metadata["format"]
        earlier = next((record.stages for record in records if record.stages), ())
        stored = [(job.spec, job.encoder) for job in members if job.encoder is not None]
        if stages:
            metadata |= provenance.to_metadata([*earlier, *stages], stored, checkpoint.identity)
        elif earlier and not checkpoint.compression:
            metadata |= provenance.to_metadata(earlier, ())
        specs = [spec for job in members for spec in job.part_specs()]
        if container == "folder":
            output_name = source.files[number].name if source.kind == "folder" else SINGLE
        files.append(OutputFile(output_name, safetensors.layout(specs, metadata)))
    if container != "folder":
        return tuple(files), ()
    return tuple(files), _texts(jobs, files, checkpoint)


def _npz_layout(job: Job, stages: Sequence[Mapping[str, Any]], identity: Identity) -> FileLayout:
    members = [
        (part.suffix.lstrip(".") or "weight", spec) for part, spec in zip(job.parts, job.part_specs(), strict=True)
    ]
    listed = [[member, spec.name, spec.dtype, spec.shape] for member, spec in members]
    stored = [(job.spec, job.encoder)] if job.encoder is not None else []
    texts = {} if job.encoder is None else {name: text.decode() for name, text in job.encoder.members.items()}
    more = {"texts": texts} if texts else {}
    record = provenance.to_metadata(stages, stored, identity, members=listed, **more)[provenance.KEY]
    return npz.layout(members, record.encode(), texts)


def _texts(
    jobs: Sequence[Job], files: Sequence[OutputFile], checkpoint: Checkpoint
) -> tuple[tuple[str, bytes], ...]:
    """config.json where it changes, then the index."""
    source = checkpoint.source
    texts = list(source.texts.items())
    packed = [(job.spec, job.encoder) for job in jobs if job.encoder is not None]
    changed = CONFIG not in source.carried  # by a structured cut
    if source.config is not None and (packed or checkpoint.compression or changed):
        dense = [job.spec for job in jobs if job.encoder is None]
        config = dialects.configure(source.config, packed, dense) if packed else dialects.without(source.config)
        texts.append((CONFIG, json_bytes(config)))
    if source.index:
        names = {spec.name: files[job.file].name for job in jobs for spec in job.part_specs()}
        said = {
            key: value
            for key, value in source.index_metadata.items()
            if key != "total_parameters" or not checkpoint.cuts
        }
        texts.append((source.index, index_bytes(names, sum(job.size_after for job in jobs), said)))
    return tuple(texts)


def _is_language_model(config: Mapping[str, Any] | None) -> bool:
    named = (config or {}).get("architectures")
    return isinstance(named, list) and any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in named)


def _hardly_loaded(config: Mapping[str, Any] | None, packed: Sequence[str], spoken: Iterable[str]) -> list[str]:
    """What to know of packed tensors in layouts of `spoken` loaders that few of these take, or none."""
    notes = []
    if "compressed-tensors" in spoken and any(map(is_embedding, packed)):
        notes.append(
            "embeddings are stored as codes: transformers loads those of int-quantized and float-quantized, packed "
            "ones with CompressedTensorsConfig(dequantize=True); vLLM loads none"
        )
    if any(is_conv1d(config, name) for name in packed):
        notes.append(
            "Conv1D weights lie transposed, and no loader takes codes of them: only `compressor restore` reads the "
            "folder"
        )
    return notes


def _notes(jobs: Sequence[Job], container: Container, recipe: Recipe, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the user should know before running."""
    notes = list(checkpoint.notes)
    encoders = [(job.spec, job.encoder) for job in jobs if job.encoder is not None]
    layouts = {(encoder.config(spec) or {}).get("format") for spec, encoder in encoders}
    if "int-quantized" in layouts and container == "folder":
        notes.append(
            "int-quantized: loaders also quantize activations to 8 bits, token by token; "
            "--layout pack-quantized or --granularity group keeps activations as they are"
        )
    if "float-quantized" in layouts and container == "folder":
        notes.append(
            "float-quantized: loaders also quantize activations to 8-bit floats; "
            "--layout naive-quantized keeps activations as they are"
        )
    spoken = {encoder.dialect(spec) for spec, encoder in encoders}
    if spoken - {""} and container == "folder" and checkpoint.source.config is None:
        notes.append("without a config.json nothing tells loaders that weights are quantized; `restore` knows")
    asymmetric = any(encoder.zero_points for _, encoder in encoders)
    if "pack-quantized" in layouts and asymmetric and container == "folder":
        notes.append(
            "asymmetric: transformers loads it with CompressedTensorsConfig(dequantize=True) only "
            "(seen with 5.23 and compressed-tensors 0.20)"
        )
    if container == "folder" and spoken - {""}:
        notes += _hardly_loaded(checkpoint.source.config, [spec.name for spec, _ in encoders], spoken)
    notes += sorted({encoder.remark(spec) for spec, encoder in encoders} - {""})
    if "" in spoken and container != "npz":
        notes.append("part of it is in this project's own layout, which only `compressor restore` reads")
    if checkpoint.compression and (recipe.stages or checkpoint.cuts):
        notes.append(f"the input is {checkpoint.compression}: what its codes stand for was taken as the weights")
    if checkpoint.dropped:
        shown = ", ".join(printable(name, 100) for name in checkpoint.dropped[:2])
        more = f" and {len(checkpoint.dropped) - 2} more" if len(checkpoint.dropped) > 2 else ""
        notes.append(f"dropped, because it serves loaders of quantized weights only: {shown}{more}")
    if recipe.stages and not any(job.steps for job in jobs):
        those = "what the cut left" if checkpoint.cuts else "those of the input"
        notes.append(f"no tensor was selected: the output's tensors are {those}")
    changed = recipe.stages or recipe.training or checkpoint.compression or checkpoint.cuts or checkpoint.stored
    if not changed:
        notes.append("it stores no codes: the output's tensors are those of the input")
    return tuple(notes)
