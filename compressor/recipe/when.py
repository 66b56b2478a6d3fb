"""`when` of a stage: which tensors it treats by what their headers say, beside the patterns of their names."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.recipe.selection import LeftAlone

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Factor = Annotated[int, msgspec.Meta(ge=1)]


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that are given must hold; None asks nothing. Sizes count weights, rows and columns those of the matrix
    that methods see."""

    dtype: tuple[str, ...] | None = None
    rank: _Count | None = None
    min_size: _Count | None = None
    max_size: _Count | None = None
    min_rows: _Count | None = None
    max_rows: _Count | None = None
    min_columns: _Count | None = None
    max_columns: _Count | None = None
    columns_multiple_of: _Factor | None = None

    def __post_init__(self) -> None:
        for name in self.dtype or ():
            if name not in DTYPES:
                raise ValueError(f"there is no dtype '{printable(name, 20)}'; there are {', '.join(DTYPES)}")

    def leaves(self, spec: TensorSpec) -> LeftAlone | None:
        """Why a stage with these conditions leaves the tensor alone; None where they hold."""
        if self.dtype is not None and spec.dtype not in self.dtype:
            return LeftAlone(f"its dtype is {spec.dtype}, not {' or '.join(self.dtype)} (when)", asked=True)
        if self.rank is not None and len(spec.shape) != self.rank:
            return LeftAlone(f"it has {len(spec.shape)} dimensions, not {self.rank} (when)", asked=True)
        rows, columns = spec.matrix
        for key, number in (("size", spec.size), ("rows", rows), ("columns", columns)):
            least, most = getattr(self, f"min_{key}"), getattr(self, f"max_{key}")
            if least is not None and number < least:
                return LeftAlone(f"its {key} {number} is under {least} (when)", asked=True)
            if most is not None and number > most:
                return LeftAlone(f"its {key} {number} is over {most} (when)", asked=True)
        factor = self.columns_multiple_of
        if factor is not None and columns % factor:
            return LeftAlone(f"its {columns} columns are no multiple of {factor} (when)", asked=True)
        return None

    def describe(self) -> dict[str, Any]:
        """The conditions as a recipe would give them."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {key: value for key, value in found.items() if value is not None}
