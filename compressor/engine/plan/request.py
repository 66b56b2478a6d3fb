"""Everything that a plan is made from, as one value: the same request gives the same plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compressor.architectures.loaders import Loader
from compressor.calibration.statistics import Statistics
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.tensor import TensorSpec
from compressor.engine.plan.plan import SizesKnown
from compressor.files.layout import Container
from compressor.recipe.model import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A checkpoint, what to do to it, and what is known of both.

    `output_name` is the file's own name where the output is one file. `teachers` are checkpoints by path, and
    `statistics` those of layer inputs by the number of the cut or stage that goes by them. `hold` are tensors to
    leave untouched with the reason (found by an earlier scan); `sizes_known` are layouts whose sizes a survey has
    counted, by tensor: without them the plan may be one whose `sizes_known` is false; `only` these tensors are in
    the output, where given; `mixture` is the preset of llama.cpp's that rules of the recipe came from. `loader`,
    `strict`, `requantize`, `allow_unmatched` and `max_shard_size` as in `RunOptions`.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    container: Container
    output_name: str
    teachers: Mapping[str, Checkpoint] = field(default_factory=dict)
    statistics: Mapping[int, Statistics] = field(default_factory=dict)
    hold: Mapping[str, str] = field(default_factory=dict)
    sizes_known: SizesKnown = field(default_factory=dict)
    only: frozenset[str] | None = None
    mixture: str = ""
    loader: Loader | None = None
    strict: bool = False
    requantize: bool = False
    allow_unmatched: bool = False
    max_shard_size: int | None = None

    @property
    def specs(self) -> Sequence[TensorSpec]:
        """What the checkpoint holds, under the names that patterns are held against; fused experts that are treated
        one by one under their own names too."""
        specs = [tensor.spec for tensor in self.checkpoint.tensors.values()]
        fused = [name for name in self.checkpoint.fused if name not in self.checkpoint.tensors]
        return (*specs, *(TensorSpec(name, "F32", ()) for name in fused))
