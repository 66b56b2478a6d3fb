"""An output that is a GGUF file, or the parts of one: what of a model may be in it, and what its metadata says.

What the input's metadata said is kept. `general.file_type` is that of the mixture that was asked for; without one
the type that most weights of matrices have, unless every tensor has the type that it had.
`general.quantization_version` is there where blocks are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from compressor.architectures.ggml_mixtures import FILE_TYPES as MIXED_FILE_TYPES
from compressor.architectures.gguf.diffusion import KINDS as DIFFUSION
from compressor.architectures.gguf.naming import stays_f32
from compressor.core.errors import CompressorError, OutputError, UsageError, raise_all
from compressor.core.ggml_types import FILE_TYPES, QUANTIZATION_VERSION, GgmlType
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.engine.plan.plan import Job, OutputFile, Step
from compressor.engine.plan.request import PlanRequest
from compressor.files.gguf import values
from compressor.files.gguf.agreement import ARCHITECTURE
from compressor.files.gguf.reading import RECORD, GgufHeader
from compressor.files.gguf.split import part_names, split_fields
from compressor.files.gguf.values import Kind, Value
from compressor.files.gguf.writing import GgufTensor, layout
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.quantize.ggml.scheme import scheme_again
from compressor.recipe.model import Stage
from compressor.recipe.selection import LeftAlone, matches

LLAMA_CPP_NAME = 63  # bytes of a name that llama.cpp reads (GGML_MAX_NAME)
FILE_TYPE, VERSION = "general.file_type", "general.quantization_version"


def stays_numbers(spec: TensorSpec, stage: Stage, request: PlanRequest) -> LeftAlone | None:
    """Why a tensor is not quantized, since it is no weight of a layer to those who read GGUF files, or at the ends
    of a model that makes images; None where it may be."""
    if len(spec.shape) > 1 and stays_f32(spec.name, spec.shape):
        return LeftAlone("llama.cpp takes it in F32 only", asked=True, held=True)
    named = request.checkpoint.source.fields.get(ARCHITECTURE)
    kind = None if named is None else DIFFUSION.get(str(named.python()))
    if kind is None or not kind.stays_numbers(spec.name) or matches(spec.name, stage.include) is not None:
        return None
    return LeftAlone(f"at the ends of a {kind.gguf} (--include treats it)", asked=True)


def stays_blocks(decoder: Decoder, request: PlanRequest) -> bool:
    """Whether a tensor to which nothing is done stays the blocks that it was: of a run that changes others, and not
    where all are restored."""
    recipe = request.recipe
    return decoder.ggml is not None and bool(recipe.stages or recipe.cuts or recipe.training)


def stored_again(decoder: Decoder, steps: Sequence[Step], request: PlanRequest) -> tuple[Step, ...]:
    """The step by which a tensor of blocks that earlier ones changed becomes blocks again; none where there were
    none, or the stage says that numbers are stored."""
    if decoder.ggml is None or not steps or not steps[-1].dense:
        return ()
    last = steps[-1].stage
    if request.recipe.stages[last - len(request.recipe.cuts)].store == "dense":
        return ()
    scheme = scheme_again(decoder.ggml, zeros=any(step.method.verb == "prune" for step in steps))
    return (Step(last, scheme, {}, dense=False),)


def _unread(jobs: Sequence[Job]) -> list[str]:
    """Names that llama.cpp refuses a file for."""
    names = [job.spec.name for job in jobs]
    return [name for name in names if len(name.encode("utf-8", "surrogateescape")) > LLAMA_CPP_NAME]


def gguf_notes(jobs: Sequence[Job]) -> Iterator[str]:
    """As what changed tensors of blocks are stored, and what names llama.cpp does not read."""
    long = _unread(jobs)
    if long:
        more = f" and {len(long) - 1} more" if len(long) > 1 else ""
        yield f"llama.cpp reads no names of more than {LLAMA_CPP_NAME} bytes: '{printable(long[0], 100)}'{more}"
    found = {
        (job.dtype_before, job.dtype_after, job.steps[0].method.verb)
        for job in jobs
        if job.stored_as and job.treated and job.stores_parts
    }
    for before, after, verb in sorted(found):
        if verb == "quantize":
            continue
        how = f"is rounded to {after} again" if before == after else f"is stored as {after}"
        more = "; --store dense stores numbers" if verb == "prune" else ""
        yield f"what was {before} and is changed {how}{more}"


def check_ggml(jobs: Sequence[Job], request: PlanRequest) -> None:
    """UsageError or OutputError for tensors that would be stored as what is no type of ggml's, of those that would
    be so alike the first, and for names that llama.cpp does not read where the file is for it."""
    problems: dict[str, CompressorError] = {}
    long = _unread(jobs) if request.loader == "llama.cpp" else []
    if long:
        problems[""] = UsageError(
            f"{len(long)} names have more than the {LLAMA_CPP_NAME} bytes that llama.cpp reads",
            tensor=long[0],
            remedy="Rename them in the input, or leave out --for",
        )
    for job in jobs:
        if job.ggml is not None or job.dtype_after in problems:
            continue
        if job.stores_parts:
            problems[job.dtype_after] = UsageError(
                f"would be stored as {job.dtype_after}, and a .gguf holds ggml's types",
                tensor=job.spec.name,
                remedy="Name a scheme of ggml's, such as q4_k, or bits alone, or write .safetensors",
            )
        else:
            problems[job.dtype_after] = OutputError(
                f"is {job.spec.dtype}, which is no type of ggml's",
                tensor=job.spec.name,
                remedy="Write .safetensors",
            )
    raise_all(list(problems.values()))


def in_file_order(jobs: Sequence[Job], source: Source) -> list[Job]:
    """The jobs as a file has their tensors: those of the input in the order of its data, then others by name."""
    places = {tensor: number for number, tensor in enumerate(_in_order(source))}
    return sorted(jobs, key=lambda job: (places.get(job.spec.name, len(places)), job.spec.name))


def gguf_files(request: PlanRequest, jobs: Sequence[Job], record: str | None) -> tuple[OutputFile, ...]:
    """The file of these jobs, or its parts, with the metadata of the input and the `record` of what was done, which
    the first part has.

    OutputError where nothing says what model it is, or for what the format does not hold.
    """
    source = request.checkpoint.source
    if not source.fields:
        raise OutputError(
            "a .gguf has to say what model it is, and the input does not",
            file=source.path,
            remedy="Give a .gguf or the model's folder, or write .safetensors",
        )
    ordered = [
        (job.file, GgufTensor(job.spec.name, job.ggml, job.spec.shape))
        for job in in_file_order(jobs, source)
        if job.ggml is not None
    ]
    tensors = [tensor for _, tensor in ordered]
    fields = {key: value for key, value in source.fields.items() if key not in (RECORD, VERSION)}
    number = MIXED_FILE_TYPES.get(request.mixture)
    fields[FILE_TYPE] = _file_type(tensors, source) if number is None else values.scalar(Kind.UINT32, number)
    if any(not tensor.type.dtype for tensor in tensors):
        fields[VERSION] = values.scalar(Kind.UINT32, QUANTIZATION_VERSION)
    if record is not None:
        fields[RECORD] = values.text(record)
    count = 1 + max((file for file, _ in ordered), default=0)
    if count == 1:
        return (OutputFile(request.output_name, layout(tensors, fields)),)
    own = [[tensor for file, tensor in ordered if file == number] for number in range(count)]
    said = [split_fields(number, count, len(tensors)) for number in range(count)]
    said[0] = fields | said[0]
    names = part_names(request.output_name, count)
    return tuple(OutputFile(names[number], layout(own[number], said[number])) for number in range(count))


def _types(source: Source) -> Mapping[str, GgmlType]:
    """What the tensors of a GGUF input are, in the order of its data."""
    headers = [file.header for file in source.files]
    return {
        name: kind for header in headers if isinstance(header, GgufHeader) for name, kind in header.types.items()
    }


def _in_order(source: Source) -> Sequence[str]:
    return list(_types(source))


def _file_type(tensors: Sequence[GgufTensor], source: Source) -> Value:
    """What the file is called by the types of its tensors: as before, where these are."""
    said = source.fields.get(FILE_TYPE)
    if said is not None and _types(source) == {tensor.name: tensor.type for tensor in tensors}:
        return said
    weights: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1 and tensor.type.name in FILE_TYPES:
            size = tensor.nbytes // tensor.type.nbytes * tensor.type.block
            weights[tensor.type.name] = weights.get(tensor.type.name, 0) + size
    most = max(weights, key=lambda name: (weights[name], -FILE_TYPES[name]), default="F32")
    return values.scalar(Kind.UINT32, FILE_TYPES[most])
