"""What of a file is coded as which tensor, where an archive is of that very file: runs of bytes, none twice.

That is its tensors where each lies by itself. Of tensors that share their bytes, as tied ones of a pickle do, it is
the first; of one that lies with gaps all from its first element to its last; and what is large between tensors,
such as an optimizer's state, is a vector of bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from compressor.core.tensor import DTYPES, TensorSpec
from compressor.files.layout import Placed

_LARGE = 1 << 16  # bytes between tensors that are a region of their own


@dataclass(frozen=True)
class Regions:
    """The regions of a file, in their order, called as the tensors are that they are of; `shared`: of tensors that
    are the same bytes as one before, by name, that one's; `unnamed`: the regions that are of no tensor."""

    placed: tuple[Placed, ...]
    shared: Mapping[str, str]
    unnamed: frozenset[str]


def regions_of(tensors: Iterable[Placed], size: int) -> Regions:
    """The regions of a file of `size` bytes in which these tensors lie."""
    ordered = sorted(tensors, key=lambda one: (one.offset, -_span(one), one.spec.name))
    names = {one.spec.name for one in ordered}
    found: list[Placed] = []
    shared: dict[str, str] = {}
    unnamed: set[str] = set()
    by_run: dict[tuple[int, int, str], str] = {}
    reached = 0

    def pass_to(begin: int) -> Iterator[Placed]:
        if begin - reached >= _LARGE:
            name = f"bytes from {reached}"
            while name in names:
                name += "'"
            unnamed.add(name)
            yield Placed(TensorSpec(name, "U8", (begin - reached,)), reached)

    for one in ordered:
        spec, span = one.spec, _span(one)
        if not span:
            found.append(Placed(spec, one.offset))
            continue
        if one.offset < reached:
            run = one.offset, span, spec.dtype
            if run in by_run:
                shared[spec.name] = by_run[run]
            continue
        found += pass_to(one.offset)
        whole = spec if span == spec.nbytes else TensorSpec(spec.name, spec.dtype, (_elements(one),))
        found.append(Placed(whole, one.offset))
        by_run[one.offset, span, spec.dtype] = spec.name
        reached = one.offset + span
    found += pass_to(size)
    return Regions(tuple(found), shared, frozenset(unnamed))


def _elements(one: Placed) -> int:
    """Elements from a tensor's first to its last as they lie in the file."""
    rows, columns = one.spec.matrix
    if one.strides is None or not one.spec.size:
        return one.spec.size
    return (rows - 1) * one.strides[0] + (columns - 1) * one.strides[1] + 1


def _span(one: Placed) -> int:
    return _elements(one) * DTYPES[one.spec.dtype].bits // 8
