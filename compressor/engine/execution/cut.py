"""How tensors are cut: into chunks that are read and written at once, and blocks that are computed on in cache.

The cuts depend on the job alone, never on the number of workers: every pass of a run sees the same blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from mmap import PAGESIZE

from compressor.checkpoint.checkpoint import Tensor
from compressor.checkpoint.joined_experts import JoinedExperts
from compressor.checkpoint.rows import BLOCK, CHUNK
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.engine.plan.plan import Job
from compressor.methods.contract import Encoder, Transform
from compressor.methods.parts import Part


@dataclass(frozen=True, slots=True)
class Slice:
    """How a tensor is cut: as a matrix [rows, columns], by chunks and blocks of whole rows.

    `bytes`: the rows are single bytes, for tensors that are only copied. `turned`: they are columns of the matrices
    that the tensor has along its first axis.
    """

    rows: int
    columns: int
    chunk: int
    block: int
    bytes: bool = False
    turned: bool = False

    @property
    def chunks(self) -> Iterator[tuple[int, int]]:
        """Row ranges; one empty range for a tensor without elements, so that it is written too."""
        if self.rows == 0 or self.columns == 0:
            yield 0, self.rows
            return
        for start in range(0, self.rows, self.chunk):
            yield start, min(start + self.chunk, self.rows)

    def sampled(self, every: int) -> Iterator[tuple[int, int]]:
        """The chunks, or of each its first rows, about one in `every`."""
        for start, stop in self.chunks:
            yield start, stop if every == 1 else min(start + -(-(stop - start) // every), stop)


def slice_tensor(job: Job, tensor: Tensor, partners: Sequence[Tensor]) -> Slice:
    """The one way in which this job cuts its tensor, and those that are read beside it."""
    spec = job.spec
    if not job.steps and tensor.seekable:
        nbytes = spec.nbytes
        return Slice(nbytes, 1, 1 << 22, 1 << 22, bytes=True)
    if (
        not job.steps
        and tensor.encoder is None
        and isinstance(tensor.whole, JoinedExperts)
        and len(spec.shape) == 3
    ):
        rows, columns, align = tensor.whole.turned
        return Slice(rows, columns, max(CHUNK // max(columns, 1) // align, 1) * align, align, turned=True)
    if not job.stores_parts and job.elementwise and tensor.seekable and not partners and not job.grain:
        return Slice(spec.size, 1, CHUNK, BLOCK)
    rows, columns = spec.lines if _by_lines(job, tensor) else spec.matrix
    align = max(job.align, job.grain, tensor.align, *(partner.align for partner in partners))
    block = max(max(BLOCK, job.at_once) // max(columns, 1) // align, 1) * align
    return Slice(rows, columns, max(CHUNK // max(columns, 1) // block, 1) * block, block)


def _by_lines(job: Job, tensor: Tensor) -> bool:
    """Whether rows are lines of the last axis, and not whole experts: of more than two axes, where what reads the
    tensor can read such, and it is only copied or restored, or it is large and stored by such lines too."""
    read = not tensor.whole.placed.fortran if tensor.encoder is None else tensor.encoder.ggml is not None
    if len(job.spec.shape) < 3 or not read:
        return False
    if not job.steps:
        return True
    free = all(
        isinstance(step.method, Encoder | Transform) and step.method.rows_alone and not step.partners
        for step in job.steps
    )
    stored = job.encoder is not None and job.encoder.ggml is not None
    return free and stored and job.spec.matrix[1] > BLOCK


def part_buffer(part: Part, job: Job, cut: Slice, start: int, stop: int, offset: int, work: Workspace) -> Array:
    """Memory for what the rows [start, stop) have of a part, which begins at `offset` of its file; it lies to pages
    as the file does, so that it can be written unbuffered."""
    storage, lead = DTYPES[part.dtype].storage, offset % PAGESIZE
    if lead % np.dtype(storage).itemsize:
        lead = 0  # NumPy is slow where numbers do not lie as they should
    return work.array(f"part{part.suffix}", part_shape(part, job, cut, start, stop), storage, lead)


def part_shape(part: Part, job: Job, cut: Slice, start: int, stop: int) -> tuple[int, ...]:
    """The shape of what the rows [start, stop) have of a part."""
    if not job.stores_parts:
        return stop - start, cut.columns
    return part.held(TensorSpec(job.spec.name, job.spec.dtype, (cut.rows, cut.columns)), start, stop)


def part_offset(part: Part, job: Job, cut: Slice, start: int, stop: int, origin: int) -> int:
    """Where in the file that begins, if the part begins at `origin`."""
    if part.every == 0:
        return origin
    size = np.dtype(DTYPES[part.dtype].storage).itemsize
    first, _ = part.rows(start, stop)
    if part.bounds is not None:
        return origin + int(part.bounds[first]) * size
    if part.across:
        return origin + first * size
    return origin + first * prod(part_shape(part, job, cut, start, stop)[1:]) * size


def part_views(parts: Mapping[str, Array], job: Job, rows: slice, origin: int) -> dict[str, Array]:
    """What each part's buffer, which begins with row `origin`, has of the rows after that."""
    return {part.suffix: part.view(parts[part.suffix], rows.start, rows.stop, origin) for part in job.parts}
