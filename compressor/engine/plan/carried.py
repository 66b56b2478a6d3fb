"""What a plan says of what is no tensor: files that go along or stay behind, and the memory that a worker takes."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.checkpoint import dialects
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.text import size_text
from compressor.engine.plan.plan import Job
from compressor.files.layout import Container


def others(
    checkpoint: Checkpoint, container: Container, texts: Sequence[tuple[str, bytes]]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The input's other files: those that go along, and those that stay behind with the reason."""
    carried = tuple(name for name in checkpoint.source.carried if name not in dict(texts))
    left = tuple(checkpoint.source.left.items())
    if checkpoint.compression:
        said = "says how the source's weights were quantized"
        left += tuple((name, said) for name in carried if name in dialects.SIDECARS)
        carried = tuple(name for name in carried if name not in dialects.SIDECARS)
    if container != "folder":
        left += tuple((name, f"a single .{container} holds tensors only") for name in carried)
        carried = ()
    return carried, left


def whole_note(jobs: Sequence[Job]) -> tuple[str, ...]:
    """What methods need that hold whole tensors, or much beside their blocks."""
    found = []
    for whole, said in ((True, "a whole tensor is held at a time"), (False, "the method works on wide numbers")):
        steps = [(step.method, job.spec) for job in jobs for step in job.steps if step.method.whole == whole]
        most = max((method.memory(spec) for method, spec in steps), default=0)
        if most:
            found.append(f"{said}: up to about {size_text(most)} a worker")
    return tuple(found)
