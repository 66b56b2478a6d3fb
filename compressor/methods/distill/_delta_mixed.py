"""Differences by their singular vectors, the larger ones in more bits (Delta-CoMe, arXiv 2406.08903).

    d ≈ Σ_k u_k v_kᵀ,   u_k and v_k of norm √σ_k as codes of 8, 4, 3 or 2 bits

Codes of b bits stand for the 2^b levels ±1/2, ±3/2, … of a step that each vector has. The right vectors are rounded
first; the left ones are then those that lose least with what became of these, min ‖d − U·V'‖, and are rounded too.
How many vectors get how many bits follows from the singular values: σ² · (1 − e)² is what a pair of vectors gives
back whose rounding loses the share e of a norm squared, (rows + columns) · b + 64 are its bits, and the best gains
for a bit are taken until the bits are used up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.core import bitpacking
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block
from compressor.methods.distill._differences import Difference, Differing
from compressor.methods.distill._factored import converging, product
from compressor.methods.numerics import svd
from compressor.methods.parts import Part

WIDTHS = (8, 4, 3, 2)  # bits, in the order in which vectors are stored
# Of normally distributed numbers: what rounding to the best even levels loses of the norm squared, and their step
_LOST = {8: 0.0001, 4: 0.0115, 3: 0.0374, 2: 0.1188}
_STEP = {8: 0.0308, 4: 0.3352, 3: 0.5860, 2: 0.9957}
_STARTS = (1.0, 1.6, 2.5)  # times that step
_ROUNDS = 4
_FIXED = 64  # bits of the steps of a pair of vectors
_DAMPING = 1e-9

Ranks = tuple[int, int, int, int]  # pairs of vectors of each width


def ranks_for(values: Array, spec: TensorSpec, bits: float) -> Ranks:
    """How many pairs of vectors get how many bits each, for singular values in descending order and so many bits a
    weight: at least one pair of two bits."""
    rows, columns = spec.matrix
    squares = np.square(values / (float(values[0]) or 1.0)) if values.size else np.zeros(0)
    gains: list[Array] = []
    costs, before = [], (0, 0.0)
    for width in reversed(WIDTHS):  # what a pair gains by more bits falls with each step, but in small matrices
        kept, cost = (1 - _LOST[width]) ** 2, (rows + columns) * width + _FIXED
        gain = squares * ((kept - before[1]) / (cost - before[0]))
        gains.append(np.minimum(gain, gains[-1]) if gains else gain)  # none before those that it builds on
        costs.append(cost - before[0])
        before = cost, kept
    every, owner = np.concatenate(gains), np.repeat(np.arange(len(WIDTHS)), len(squares))
    order = np.argsort(-every, kind="stable")[: int(np.count_nonzero(every))]
    within = np.cumsum(np.array(costs)[owner[order]]) <= bits * spec.size
    two, three, four, eight = np.bincount(owner[order][within], minlength=len(WIDTHS)).tolist()
    return (eight, four - eight, three - four, two - three) if two else (0, 0, 0, 1)


@dataclass(frozen=True)
class VectorCodes(Difference):
    """Pairs of singular vectors, `ranks` of them in 8, 4, 3 and 2 bits."""

    ranks: Ranks

    @property
    def label(self) -> str:
        return f"delta {'+'.join(map(str, self.ranks))}"

    @property
    def stored_name(self) -> str:
        return "delta mixed"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        (rows, columns), rank = spec.matrix, sum(self.ranks)
        found = [Part(f".{side}_steps", _dtype(spec), (rank,), every=0) for side in ("left", "right")]
        for width, count in zip(WIDTHS, self.ranks, strict=True):
            if count:
                found.append(Part(f".left{width}", "U8", (rows, bitpacking.row_bytes(count, width))))
                found.append(Part(f".right{width}", "U8", (count, bitpacking.row_bytes(columns, width)), every=0))
        return tuple(found)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        rank, columns = sum(self.ranks), spec.matrix[1]
        left = work.array("delta.left", (len(out), rank), "<f8")
        right = work.array("delta.right", (rank, columns), "<f8")
        done = 0
        for width, count in zip(WIDTHS, self.ranks, strict=True):
            if count:
                held = slice(done, done + count)
                _levels(parts[f".left{width}"], width, left[:, held], work)
                _levels(parts[f".right{width}"], width, right[held], work)
                done += count
        left *= parts[".left_steps"]
        right *= parts[".right_steps"][:, None]
        product(left, right, spec, out, start, work)


@dataclass(frozen=True)
class RoundingVectors(Differing):
    """Finds singular vectors, and rounds them."""

    read_by: VectorCodes
    seed: bytes | None = None

    def store(self, block: Block, difference: Array) -> Mapping[str, Array]:
        spec, ranks, work = block.spec, self.read_by.ranks, block.work
        small, exponent = svd.scaled(difference)
        with converging(spec):
            wide = DTYPES[spec.dtype].compute == "<f8"
            _, right = svd.factors(small, sum(ranks), wide=wide, seed=self.seed)
            packed, rounded = _rounded(right, ranks, ".right", work)
            gram = rounded @ rounded.T
            gram[np.diag_indices_from(gram)] += _DAMPING * (float(np.trace(gram)) / len(gram) or 1.0)
            left = np.linalg.solve(gram, rounded @ small.T.astype(np.float64))
        more, _ = _rounded(left, ranks, ".left", work)
        packed |= more
        half = exponent // 2
        for suffix, by in ((".left_steps", half), (".right_steps", exponent - half)):
            packed[suffix] = np.ldexp(packed[suffix], by).astype(DTYPES[_dtype(spec)].storage)
        return packed


def _rounded(vectors: Array, ranks: Ranks, side: str, work: Workspace) -> tuple[dict[str, Array], Array]:
    """The packed codes and steps of `vectors` [rank, size], and what they stand for."""
    packed: dict[str, Array] = {}
    restored, steps, done = np.empty_like(vectors), np.empty(len(vectors)), 0
    for width, count in zip(WIDTHS, ranks, strict=True):
        if not count:
            continue
        held = slice(done, done + count)
        levels, steps[held] = _nearest(vectors[held], width)
        restored[held] = levels * steps[held, None]
        codes = (levels + (2 ** (width - 1) - 0.5)).astype(np.uint8)
        codes = np.ascontiguousarray(codes.T if side == ".left" else codes)
        out = np.empty((len(codes), bitpacking.row_bytes(codes.shape[1], width)), np.uint8)
        bitpacking.pack(codes, width, out, work)
        packed[f"{side}{width}"] = out
        done += count
    packed[f"{side}_steps"] = steps
    return packed, restored


def _nearest(vectors: Array, width: int) -> tuple[Array, Array]:
    """For each vector [size] the levels of the step that loses least of those tried, and that step."""
    most = 2 ** (width - 1) - 0.5
    spread = np.sqrt(np.add.reduce(np.square(vectors), axis=1) / max(vectors.shape[1], 1))
    starts = [spread * _STEP[width] * factor for factor in _STARTS]
    starts.append(np.max(np.abs(vectors), axis=1, initial=0) / most)
    best, least = (np.full(vectors.shape, 0.5), np.zeros(len(vectors))), np.full(len(vectors), np.inf)
    for start in starts:
        step = start
        for _ in range(_ROUNDS):
            scale = np.where(step > 0, step, 1)[:, None]
            levels = np.clip(np.floor(vectors / scale) + 0.5, -most, most)
            step = np.add.reduce(vectors * levels, axis=1) / np.add.reduce(np.square(levels), axis=1)
            step = step.astype(np.float32).astype(np.float64)
        lost = np.add.reduce(np.square(vectors - levels * step[:, None]), axis=1)
        better = lost < least
        least = np.where(better, lost, least)
        best = np.where(better[:, None], levels, best[0]), np.where(better, step, best[1])
    return best


def _levels(packed: Array, width: int, out: Array, work: Workspace) -> None:
    """The levels that packed codes stand for."""
    codes = work.array("delta.codes", out.shape, "|u1")
    bitpacking.unpack(packed, width, codes, work)
    np.subtract(codes, 2 ** (width - 1) - 0.5, out=out)


def _dtype(spec: TensorSpec) -> str:
    """What steps are stored in."""
    return "F64" if spec.dtype == "F64" else "F32"
