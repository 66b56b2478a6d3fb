"""Begin a smaller student with the most important parts of a bigger teacher.

After Weight subcloning (Samragh et al. 2023, arXiv 2312.09299). The student's sizes are given: as its
`config.json`, as a list of sizes, or as the widths of a plain chain of layers. Of each kind of unit as many stay
as the student has, the same ones in every tensor that they run through: layers, experts, heads (with shared keys
and values: whole groups), neurons of each MLP, channels of the residual width. Each kind is measured on what the
earlier left.

The paper ranks units by the magnitude of their activations on data. From weights alone (`importance = "auto"`) a
channel counts by what the norms make of it, the mean over all norms of their squared gains, each over its own
mean: that is about the energy of a norm's output. Other units count by the l2 norm of the coupled weights. Layers
are spread evenly from the first to the last (`blocks`), as `depth` does.

A sum over d′ of d inputs has a smaller spread than the teacher's, by √(d′/d) if inputs and weights are alike and
independent. So that the student's activations have the teacher's spread (`rescale = "width"`), every matrix that
sums over a dimension that was cut is multiplied by its inverse:

    W' = W[kept rows, kept columns] · √(d / d′)

Embeddings, biases and norms sum over nothing and stay as they are; norms see to the residual stream itself. Where
the output head is the embedding, the last norm is scaled in its place; where a model multiplies its embedding by
√width, the embedding makes up for that. Heads keep their width, and so attention scores their scale.
Stored: the same dtypes, smaller shapes; what is scaled is rounded to its dtype once more.

    hidden = 256 of 384, heads = 8 of 12: q, k, v and the MLP's first matrix weigh √1.5 = 1.22 times as much
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from compressor.architectures.chain import Chain
from compressor.core.errors import UsageError
from compressor.methods.distill._student_sizes import (
    parse_shape,
    parse_widths,
    shape_of,
    smaller_chain,
    smaller_model,
)
from compressor.methods.distill.depth import spread, without
from compressor.methods.model_method import Reshape
from compressor.methods.options import option
from compressor.methods.structured_cut import StructuredCut

if TYPE_CHECKING:
    from compressor.architectures.model import Model


@dataclass(frozen=True)
class Subclone(Reshape):
    """The most important layers, heads, neurons and channels of a teacher, in a student of given sizes."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "subclone"

    config: str | None = option(None, help="the student's config.json, or a folder that has it", free=True)
    shape: str | None = option(
        None, help="the student's sizes, such as hidden=256,neurons=1024,heads=8,layers=6", free=True
    )
    widths: str | None = option(None, help="the sizes of a plain chain of layers, such as 784,100,50,10", free=True)
    importance: Literal["auto", "l2", "l1", "random", "index"] = option(
        "auto",
        help="which units stay: by norm of the coupled weights (auto: l2, but channels by the gains of norms), at "
        "random, or the first",
    )
    blocks: Literal["spread", "ends", "importance"] = option(
        "spread", help="which layers stay: evenly spread, the first and the last, or as other units"
    )
    rescale: Literal["width", "hidden", "none"] = option(
        "width",
        help="weights grow by the root of inputs before over inputs after: where any inputs were cut, where "
        "channels of the residual width were, or nowhere",
    )
    seed: int = option(0, help="of the random numbers", low=0, high=2**63)
    implied: bool = False  # the shape came from a config

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("config", "shape", "widths") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"method subclone needs one of config, shape or widths, and got {' and '.join(given) or 'none'}"
            )
        if self.shape is not None:
            parse_shape(self.shape)
        if self.widths is not None:
            parse_widths(self.widths)

    @property
    def reads(self) -> str | None:
        return self.config

    @property
    def rescales(self) -> str:
        return self.rescale

    def expanded(
        self, read: Callable[[str], Mapping[str, Any]], teacher: Mapping[str, Any] | None
    ) -> tuple[Reshape, tuple[str, ...]]:
        if self.config is None:
            return self, ()
        shape, notes = shape_of(read(self.config), self.config, teacher)
        return replace(self, config=None, shape=shape, implied=True), notes

    def cuts(self, teacher: Model | Chain) -> tuple[StructuredCut, ...]:
        if isinstance(teacher, Chain):
            if self.widths is None:
                raise UsageError(
                    "method subclone: the teacher is a plain chain of layers, whose sizes are widths",
                    remedy=f"Give widths, here of {','.join(map(str, teacher.widths))}",
                )
            return (self._request("neurons", smaller_chain(teacher, parse_widths(self.widths))),)
        if self.shape is None:
            raise UsageError(
                f"method subclone: widths are for plain chains of layers, and the teacher is a "
                f"{teacher.config['model_type']} model",
                remedy="Give shape or config",
            )
        wanted = smaller_model(teacher, parse_shape(self.shape), implied=self.implied)
        sizes, found = teacher.sizes, list[StructuredCut]()
        if wanted["layers"] < sizes["layers"]:
            found += self._layers(wanted["layers"], sizes["layers"], teacher.key("layers"))
        bound = teacher.family.bound_heads  # heads then go with the width
        for kind, symbols in (
            ("experts", ("experts",)),
            ("heads", () if bound else ("heads",)),
            ("neurons", ("neurons", "moe", "shared")),
            ("hidden", ("hidden",)),
        ):
            less = {teacher.key(one): wanted[one] for one in symbols if one in wanted and wanted[one] < sizes[one]}
            if less:
                found.append(self._request(kind, less))
        return tuple(found)

    def _request(self, kind: str, keep: Mapping[str, int]) -> StructuredCut:
        automatic: Literal["gains", "l2"] = "gains" if kind == "hidden" else "l2"
        return StructuredCut(
            kind, keep=keep, importance=automatic if self.importance == "auto" else self.importance, seed=self.seed
        )

    def _layers(self, some: int, count: int, key: str) -> tuple[StructuredCut, ...]:
        if self.blocks == "importance":
            return (self._request("layers", {key: some}),)
        first = -(-some // 2)
        ends = (*range(first), *range(count - some + first, count))
        return without(spread(some, count) if self.blocks == "spread" else ends, count)


METHOD = Subclone
