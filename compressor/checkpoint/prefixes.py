"""Taking off the prefixes that a wrapper put before the names of a model, which loaders look for without."""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.wrappers import wrappers_of
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.errors import UsageError
from compressor.core.text import printable


def strip_prefix(checkpoint: Checkpoint, prefix: str | None) -> Checkpoint:
    """The checkpoint with names without `prefix`, which every name that has it loses; where None is given and names
    are wrapped, a note tells how. UsageError where no name has the prefix, a name would be empty or taken, or codes
    are stored under the names."""
    if prefix is None:
        found = wrappers_of(checkpoint.tensors)
        if not found:
            return checkpoint
        note = f"all names begin with '{found}': --strip-prefix {found} takes it away, as loaders expect"
        return replace(checkpoint, notes=(*checkpoint.notes, note))
    meant = [name for name in checkpoint.tensors if name.startswith(prefix)]
    if not prefix or not meant:
        remedy = (
            f"All names begin with '{wrappers_of(checkpoint.tensors)}'" if wrappers_of(checkpoint.tensors) else ""
        )
        raise UsageError(f"--strip-prefix '{printable(prefix, 60)}': no name begins so", remedy=remedy)
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        renamed = _renamed(tensor, name.removeprefix(prefix))
        if not renamed.spec.name or renamed.spec.name in tensors:
            raise UsageError(
                f"--strip-prefix '{printable(prefix, 60)}': the name that is left is taken, or empty", tensor=name
            )
        tensors[renamed.spec.name] = renamed
    note = f"'{printable(prefix, 60)}' was taken off {len(meant)} of {len(checkpoint.tensors)} names"
    return replace(
        checkpoint, tensors={name: tensors[name] for name in sorted(tensors)}, notes=(*checkpoint.notes, note)
    )


def _renamed(tensor: Tensor, name: str) -> Tensor:
    if name == tensor.spec.name:
        return tensor
    spec = replace(tensor.spec, name=name)
    if tensor.encoder is not None:  # its parts are found by their suffixes, and are written under the new name
        return replace(tensor, spec=spec)
    whole = replace(tensor.whole, placed=replace(tensor.whole.placed, spec=spec))
    return replace(tensor, spec=spec, parts={"": whole})
