"""Keep some of the teacher's layers: a shallower student of the same width.

Layers that stay keep their order, their bits and everything around them, and are numbered anew; `config.json` then
counts them, with every list that has an entry for each layer. So DistilBERT was begun (Sanh et al. 2019, arXiv
1910.01108): six of BERT's twelve layers, 0, 2, 4, 7, 9 and 11, which is `count = 6`. What is left computes what the
teacher does when the other layers are stepped over, and is a start for training.

Of n layers, `count` = m keeps ⌊i·(n − 1) / (m − 1) + ½⌋ for i = 0 … m − 1, the first alone where m is 1; `every` =
k keeps 0, k, 2k, …; `layers` names those that stay.
Stored: the tensors of those layers and of what is around them, same dtype and shape.

    a teacher of 6 layers, every = 2: layers 0, 2 and 4 become 0, 1 and 2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.core.errors import UsageError
from compressor.methods.model_method import Reshape
from compressor.methods.options import option
from compressor.methods.structured_cut import StructuredCut, numbered_layers

if TYPE_CHECKING:
    from compressor.architectures.chain import Chain
    from compressor.architectures.model import Model


@dataclass(frozen=True)
class Depth(Reshape):
    """Fewer layers, chosen by number."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "depth"

    layers: str | None = option(None, help="layers that stay, such as 0,2,4 or 0-3,10", free=True)
    every: int | None = option(None, help="keep every so many layers, from the first on", low=2, high=100_000)
    count: int | None = option(
        None, help="keep so many layers, evenly spread from the first to the last", low=1, high=100_000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("layers", "every", "count") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"method depth needs one of layers, every or count, and got {' and '.join(given) or 'none'}"
            )
        if self.layers is not None:
            numbered_layers(self.layers)

    def cuts(self, teacher: Model | Chain) -> tuple[StructuredCut, ...]:
        return without(self._kept(teacher.sizes["layers"]), teacher.sizes["layers"])

    def _kept(self, count: int) -> tuple[int, ...]:
        if self.layers is not None:
            kept = numbered_layers(self.layers)
        elif self.every is not None:
            kept = tuple(range(0, count, self.every))
        else:
            assert self.count is not None  # noqa: S101 - one of them was given
            if self.count > count:
                raise UsageError(f"method depth: count {self.count} is larger than the teacher's {count} layers")
            kept = spread(self.count, count)
        if kept[-1] >= count:
            raise UsageError(
                f"method depth: the teacher has {count} layers (0 to {count - 1}), and layers names {kept[-1]}"
            )
        if len(kept) == count:
            raise UsageError(f"method depth: all {count} layers of the teacher would stay", remedy="Keep fewer")
        return kept


def spread(some: int, count: int) -> tuple[int, ...]:
    """So many of `count` numbers, evenly spread, from the first to the last."""
    if some == 1:
        return (0,)
    return tuple((2 * place * (count - 1) + some - 1) // (2 * (some - 1)) for place in range(some))


def without(kept: tuple[int, ...], count: int) -> tuple[StructuredCut, ...]:
    """The cut that leaves these layers of so many."""
    gone = sorted(set(range(count)) - set(kept))
    return (StructuredCut("layers", layers=",".join(map(str, gone))),) if gone else ()


METHOD = Depth
