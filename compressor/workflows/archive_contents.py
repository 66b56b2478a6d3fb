"""What an archive codes of each tensor, in the columns of Deep Compression's tables (arXiv 1510.00149).

For every weight that is not zero there are bits of its value and bits that say where it stands, each before coding,
at the fixed width of the archive's own symbols, and coded; what else belongs to a tensor (a codebook or scales, the
models of its streams, checksums) is told beside them, so that all of it sums to its bytes in the file.
"""

from __future__ import annotations

from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.errors import InputError
from compressor.files.archive import ArchivedFile
from compressor.files.entropy.account import Account
from compressor.workflows.results import Coding

# Parts that say where weights stand, by how their names end.
_PLACES = (".mask", ".bitmask", ".columns", ".indices", ".rows", ".indptr", ".row_offsets", ".positions")


def check_archive(checkpoint: Checkpoint) -> None:
    """InputError where anything of a checkpoint lies in no archive."""
    for tensor in checkpoint.tensors.values():
        for part in tensor.parts.values():
            if not isinstance(part.file, ArchivedFile):
                raise InputError(
                    "is no archive, and nothing in it is entropy-coded",
                    file=part.file.path,
                    remedy="Make one: compressor pipeline INPUT -o OUTPUT --store archive",
                )


def code(tensor: Tensor, kept: int) -> Coding:
    """What the streams of a tensor of an archive take; they are decoded for that. `kept`: weights that
    are not zero."""
    found, beside, plain_beside, coded = Account(), 0.0, 0, 0
    others = [suffix for suffix in tensor.parts if not suffix.endswith(_PLACES)]
    main = max(others, key=lambda suffix: tensor.parts[suffix].spec.nbytes, default="")
    for suffix, part in tensor.parts.items():
        assert isinstance(part.file, ArchivedFile)  # noqa: S101 - who calls looked
        account, nbytes = part.file.account(part.spec.name)
        coded += nbytes
        streams = account.values + account.positions
        beside += 8 * nbytes - streams
        if suffix.endswith(_PLACES):
            found.add("positions", account.plain_values + account.plain_positions, streams)
        elif suffix == main:
            found.add("values", account.plain_values, account.values)
            found.add("positions", account.plain_positions, account.positions)
        else:
            plain_beside += 8 * part.spec.nbytes
            beside += streams
    return Coding(
        tensor.spec.name,
        tensor.spec.size,
        kept,
        tensor.spec.nbytes,
        coded,
        (found.plain_values, found.values),
        (found.plain_positions, found.positions),
        (plain_beside, beside),
    )
