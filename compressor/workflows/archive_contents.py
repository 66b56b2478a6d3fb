"""What an archive codes of each tensor, in the columns of Deep Compression's tables (arXiv 1510.00149).

For every weight that is not zero there are bits of its value and bits that say where it stands, each before coding,
at the fixed width of the archive's own symbols, and coded; what else belongs to a tensor (a codebook or scales, the
models of its streams, checksums) is told beside them, so that all of it sums to its bytes in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.errors import InputError

# Parts that say where weights stand, by how their names end.
_PLACES = (".mask", ".bitmask", ".columns", ".indices", ".rows", ".indptr", ".row_offsets", ".positions")


@dataclass(frozen=True)
class CodingGain:
    """What an archive holds of a tensor: weights, those that are not zero, and bytes as numbers and coded. In bits,
    before coding and coded: values, positions, and what else there is (`beside`), which together are `coded`."""

    name: str
    weights: int
    kept: int
    original: int
    coded: int
    values: tuple[int, float]
    positions: tuple[int, float]
    beside: tuple[int, float]

    @property
    def plain(self) -> float:
        """Bytes of the tensor's parts before coding."""
        return (self.values[0] + self.positions[0] + self.beside[0]) / 8

    def each(self, bits: float) -> float | None:
        """Bits for each weight that is kept."""
        return bits / self.kept if self.kept else None


def summed(codings: Sequence[CodingGain]) -> CodingGain:
    """The coding gains of all tensors, added up as one."""

    def pairs(of: Callable[[CodingGain], tuple[int, float]]) -> tuple[int, float]:
        found = [of(one) for one in codings]
        return sum(plain for plain, _ in found), sum(coded for _, coded in found)

    return CodingGain(
        "",
        sum(one.weights for one in codings),
        sum(one.kept for one in codings),
        sum(one.original for one in codings),
        sum(one.coded for one in codings),
        pairs(lambda one: one.values),
        pairs(lambda one: one.positions),
        pairs(lambda one: one.beside),
    )


def check_archive(checkpoint: Checkpoint) -> None:
    """InputError where anything of a checkpoint lies in no archive."""
    from compressor.files.archive import ArchivedFile

    for tensor in checkpoint.tensors.values():
        for part in tensor.parts.values():
            if not isinstance(part.file, ArchivedFile):
                raise InputError(
                    "is no archive, and nothing in it is entropy-coded",
                    file=part.file.path,
                    remedy="Make one: compressor pipeline INPUT -o OUTPUT --store archive",
                )


def code(tensor: Tensor, kept: int) -> CodingGain:
    """What the streams of a tensor of an archive take; they are decoded for that. `kept`: weights that
    are not zero."""
    from compressor.files.archive import ArchivedFile
    from compressor.files.entropy.account import Account

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
    return CodingGain(
        tensor.spec.name,
        tensor.spec.size,
        kept,
        tensor.spec.nbytes,
        coded,
        (found.plain_values, found.values),
        (found.plain_positions, found.positions),
        (plain_beside, beside),
    )
