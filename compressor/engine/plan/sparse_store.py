"""What a stage's `store` means for one tensor where it asks for a sparse layout.

The layouts are methods of their own kind (`methods/store/`). A stage that prunes gets one as a further step; one
that quantizes has its codes stored by it. How large the parts are depends on the data: the first plan leaves them
open, the runner counts, and the plan that is carried out is made with the `sizes_known`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compressor.core.tensor import TensorSpec
from compressor.engine.plan.plan import Step
from compressor.files.layout import Container
from compressor.methods.contract import Encoder, Method
from compressor.methods.registry import methods_of

if TYPE_CHECKING:
    from compressor.recipe.model import Stage

SPARSE = ("bitmask", "csr", "nm", "smallest")
_DENSE = "stored dense: no sparse layout is smaller"
_PACKED = "codes stored packed: no sparse layout is smaller"


def with_layout(
    step: Step, stage: Stage, spec: TensorSpec, container: Container, sizes_known: Mapping[str, Method]
) -> tuple[tuple[Step, ...], int]:
    """The steps that `step` of the stage becomes, and the rows at whose multiples the tensor is cut.

    `sizes_known` are the layouts of tensors that were counted. Raises UsageError when the tensor cannot be stored
    so.
    """
    if stage.store not in SPARSE:
        return (step,), 0
    from compressor.methods.unlisted.smallest_layout import Auto

    encoder = step.method if isinstance(step.method, Encoder) else None
    name = "scipy" if container == "npz" else stage.store
    asked: Any = Auto if name == "smallest" else methods_of("store")[name]
    found = sizes_known.get(spec.name) or asked(encoder)
    assert isinstance(found, Encoder)  # noqa: S101 - it is one of `methods/store/`
    found.check(spec)
    grain = found.align(spec)
    if encoder is not None and isinstance(found, Auto):
        grain = max(grain, encoder.align(spec))
    if isinstance(found, Auto) and found.counted:
        chosen = found.choose(spec)
        if chosen is None:
            said = "; ".join(filter(None, (step.instead, _DENSE if encoder is None else _PACKED)))
            return (replace(step, method=found.inner or step.method, instead=said),), grain
        found = chosen
    if encoder is not None:
        return (replace(step, method=found),), grain
    return (step, Step(step.stage, found, {}, dense=False)), grain
