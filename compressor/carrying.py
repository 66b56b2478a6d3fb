"""What a plan says of what is no tensor: files that go along or stay behind, and the memory that a worker takes."""

from __future__ import annotations

from collections.abc import Sequence

from compressor import dialects
from compressor.checkpoint import Checkpoint
from compressor.plan import Container, Job
from compressor.text import size_text


def others(
    checkpoint: Checkpoint, container: Container, texts: Sequence[tuple[str, bytes]]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The input's other files: those that go along, and those that stay behind with the reason."""
    carried = tuple(name for name in checkpoint.source.carried if name not in dict(texts))
    left = tuple(checkpoint.source.left.items())
    if checkpoint.compression and dialects.SIDECAR in carried:
        carried = tuple(name for name in carried if name != dialects.SIDECAR)
        left += ((dialects.SIDECAR, "says how the source's weights were quantized"),)
    if container != "folder":
        left += tuple((name, f"a single .{container} holds tensors only") for name in carried)
        carried = ()
    return carried, left


def whole_note(jobs: Sequence[Job]) -> tuple[str, ...]:
    """What methods that hold whole tensors need."""
    most = max((step.method.memory(job.spec) for job in jobs for step in job.steps), default=0)
    return (f"a whole tensor is held at a time: up to about {size_text(most)} a worker",) if most else ()
