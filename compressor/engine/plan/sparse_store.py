"""What a stage's `store` means for one tensor where it asks for a sparse layout.

The layouts are methods of their own kind (`methods/store/`). A stage that prunes gets one as a further step; one
that quantizes has its codes stored by it. How large the parts are depends on the data: the first plan leaves them
open, the runner counts, and the plan that is carried out is made with the `sizes_known` then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compressor.core.tensor import TensorSpec
from compressor.engine.plan.plan import SizesKnown, Step
from compressor.files.layout import Container
from compressor.methods.contract import Scheme
from compressor.methods.registry import methods_of
from compressor.methods.unlisted.smallest_layout import Smallest, is_sparse

if TYPE_CHECKING:
    from compressor.recipe.model import Stage

SPARSE = ("bitmask", "csr", "nm", "smallest")
_DENSE = "stored dense: no sparse layout is smaller"
_PACKED = "codes stored packed: no sparse layout is smaller"


def with_layout(
    step: Step, stage: Stage, spec: TensorSpec, container: Container, sizes_known: SizesKnown
) -> tuple[tuple[Step, ...], int]:
    """The steps that `step` of the stage becomes, and the rows at whose multiples the tensor is cut.

    `sizes_known` is what was counted of tensors. Raises UsageError when the tensor cannot be stored so.
    """
    scheme = step.method if isinstance(step.method, Scheme) else None
    if stage.store not in SPARSE:
        rows = 1 if scheme is None else scheme.align(spec)  # also where it is counted first, or stored dense
        return (step,), rows if rows > 1 else 0
    name = "scipy" if container == "npz" else stage.store
    smallest = name == "smallest"
    made: Any = Smallest if smallest else methods_of("store")[name]
    layout = made(scheme)
    assert isinstance(layout, Scheme)  # noqa: S101 - it is one of `methods/store/`
    layout.check(spec)
    grain = layout.align(spec)
    if scheme is not None and smallest:
        grain = max(grain, scheme.align(spec))
    counted = sizes_known.get(spec.name)
    found = counted.encoder if counted is not None and counted.stage == step.stage else None
    if found is not None and not is_sparse(found.decoder):
        said = "; ".join(filter(None, (step.instead, _DENSE if scheme is None else _PACKED)))
        return (replace(step, instead=said, found=None if scheme is None else found),), grain
    if scheme is not None:
        return (replace(step, method=layout, found=found),), grain
    return (step, Step(step.stage, layout, {}, dense=False, found=found)), grain
