"""What the parts of a plan must be together: a container that holds them, names that do not meet, one loader's
layouts in a folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from compressor.architectures.conv1d import conv1d_weights
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import CompressorError, InputError, OutputError, UsageError, raise_all
from compressor.core.text import printable
from compressor.engine.plan.plan import Job
from compressor.engine.plan.sparse_store import SPARSE
from compressor.files.layout import Container
from compressor.methods.declared import declared
from compressor.recipe.model import Stage

# What compressed-tensors reads beside codes, whether a layout has it or not
_READ_BESIDE = ("_g_idx", "_zero_point", "_scale", "_global_scale")


def check_container(checkpoint: Checkpoint, container: Container) -> None:
    """OutputError where the container holds one tensor, and the checkpoint has another number of them."""
    if container in ("npy", "npz") and len(checkpoint.tensors) != 1:
        raise OutputError(
            f"holds {len(checkpoint.tensors)} tensors, and an .{container} holds one",
            file=checkpoint.path,
            remedy="Write .safetensors, or a folder",
        )


def check_stores(stages: Sequence[Stage], container: Container) -> None:
    """What a stage asks to be stored must be something that the container holds."""
    stores = {stage.store for stage in stages}
    if "codes" in stores and container != "npz":
        raise UsageError("--store codes writes an .npz", remedy="End the output in .npz")
    if "packed" in stores and container == "npy":
        raise UsageError("an .npy holds no packed codes", remedy="Use --store dense, or write .npz or .safetensors")
    sparse = [stage for stage in stages if stage.store in SPARSE]
    if sparse and container == "gguf":
        raise UsageError("a .gguf holds no sparse layout", remedy="Leave --store out, or write .safetensors")
    if sparse and container == "npy":
        raise UsageError(
            "an .npy holds no sparse layout",
            remedy="Write .safetensors, or an .npz in SciPy's format with --store csr",
        )
    if container == "npz" and any(stage.store != "csr" or stage.method.verb != "prune" for stage in sparse):
        raise UsageError(
            "an .npz holds floats as SciPy's csr, and no other sparse layout",
            remedy="Use prune with --store csr, or write .safetensors",
        )


def check_axes(jobs: Sequence[Job], checkpoint: Checkpoint) -> None:
    """A pattern along the inputs of a layer must not be put along the outputs of one that lies transposed."""
    along = [job.spec for job in jobs if any(step.method.along_inputs for step in job.steps)]
    if not along:
        return
    shapes = {name: tensor.spec.shape for name, tensor in checkpoint.tensors.items()}
    turned = conv1d_weights(checkpoint.source.config, shapes) - checkpoint.upright
    raise_all(
        [
            UsageError(
                "is stored transposed (Conv1D), so that a pattern along its rows would be one of outputs, which no "
                "hardware reads",
                tensor=spec.name,
                remedy="Exclude it, or prune it with --sparsity",
            )
            for spec in along
            if spec.name in turned
        ]
    )


def check_names(jobs: Sequence[Job], checkpoint: Checkpoint) -> None:
    """A generated name must not meet one that is there, nor that of a tensor which is stored under other names: a
    reader would take the part for that tensor."""
    owner: dict[str, str] = {}
    gone = {job.spec.name for job in jobs if job.spec.name not in map(job.part_name, job.parts)}
    problems: list[CompressorError] = []
    for job in jobs:
        for part in job.parts:
            name = job.part_name(part)
            if name in gone:
                owner.setdefault(name, name)
            if name in owner:
                problems.append(
                    InputError(
                        f"its part '{printable(name)}' would have the name of one of '{printable(owner[name])}'",
                        file=checkpoint.path,
                        tensor=job.spec.name,
                        remedy="Exclude one of them",
                    )
                )
            owner[name] = job.spec.name
    problems += _taken_for_parts(jobs, checkpoint, owner)
    raise_all(problems)


def _taken_for_parts(
    jobs: Sequence[Job], checkpoint: Checkpoint, names: Collection[str]
) -> Iterator[CompressorError]:
    """Codes beside which loaders would find more than belongs to them, among the `names` of an output."""
    for job in jobs:
        if job.encoder is None or declared(job.encoder, job.spec).dialect != "compressed-tensors":
            continue
        own = {job.part_name(part) for part in job.parts}
        for name in (f"{job.spec.name}{suffix}" for suffix in _READ_BESIDE):
            if name in own or name not in names:  # a set's intersection would go through all of them
                continue
            yield InputError(
                f"loaders would take '{printable(name)}', which is there already, for a part of its codes",
                file=checkpoint.path,
                tensor=job.spec.name,
                remedy="Exclude the weight that it belongs to",
            )


def check_dialects(jobs: Sequence[Job]) -> None:
    """A folder's config can speak to the loaders of one kind only."""
    spoken: dict[str, str] = {}
    for job in jobs:
        if job.encoder is not None:
            spoken.setdefault(declared(job.encoder, job.spec).dialect, job.spec.name)
    spoken.pop("", None)
    if len(spoken) > 1:
        named = ", ".join(f"'{printable(name)}' would be {dialect}'s" for dialect, name in sorted(spoken.items()))
        raise UsageError(
            f"one folder cannot hold layouts of several loaders: {named}", remedy="Give all tensors one --layout"
        )
