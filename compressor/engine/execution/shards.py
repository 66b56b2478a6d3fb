"""Finished shards of a run that may be stopped: kept in its work folder, whence the run that goes on takes them.

A shard is linked there when it is written, synced and read back; its record has what was measured of its tensors,
so that the report of the second run is that of one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import UsageError
from compressor.core.histogram import BINS, Histogram
from compressor.core.metrics import Change
from compressor.engine.plan.plan import Plan
from compressor.files.output import Output
from compressor.files.work_folder import WorkFolder


@dataclass(frozen=True)
class Shards:
    """The files of one output, kept under the `key` of what makes them."""

    folder: WorkFolder
    key: str
    sink: Output
    plan: Plan

    @classmethod
    def of(
        cls, work: str, sink: Output, plan: Plan, checkpoint: Checkpoint, mentors: Iterable[Checkpoint]
    ) -> Shards:
        """UsageError where the folder holds anything else, or where there is nothing to keep on the way."""
        if len(plan.files) < 2 or checkpoint.stored:
            raise UsageError("--work keeps finished passes and shards, and this run has one of each")
        # a sample of the content tells little of one shard, the times of its files the rest
        files = [file for one in (checkpoint, *mentors) for file in one.source.opened]
        read = sha256(repr([file.identity for file in files]).encode()).hexdigest()
        return cls(WorkFolder(work), f"{plan.fingerprint}:{':'.join(checkpoint.identity)}:{read}", sink, plan)

    def taken(self) -> dict[int, dict[str, Change]]:
        """Put every shard that is finished into the output: what happened to its tensors, by its number."""
        found = {}
        for number, file in enumerate(self.plan.files):
            if self.sink.taken(self.folder, _name(number), self.key, file.name):
                found[number] = self._changes(number)
        return found

    def _changes(self, number: int) -> dict[str, Change]:
        """What was measured of the tensors of a shard. UsageError where the record says anything else."""
        said, own = self.folder.said(_name(number)), {job.spec.name for job in self.plan.jobs if job.file == number}
        try:
            if said.keys() != own:
                raise ValueError("its tensors are others")
            return {name: change_of(change) for name, change in said.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self.folder.damaged() from error

    def keep(self, number: int) -> str:
        """Keep a finished shard, by any worker: what its content is known by."""
        return self.sink.kept(self.folder, _name(number), self.plan.files[number].name)

    def note(self, number: int, content: str, changes: Mapping[str, Change]) -> None:
        """The shard is finished, and this is what happened to its tensors."""
        said = {name: said_of(change) for name, change in changes.items()}
        self.folder.note(_name(number), self.key, content=content, said=said)


def _name(number: int) -> str:
    return f"shard-{number}.safetensors"


def said_of(change: Change) -> dict[str, Any]:
    """A change as it is written: sums in hexadecimal, which holds infinite ones too."""
    return asdict(change) | {"energy": change.energy.hex(), "lost": change.lost.hex()}


def change_of(said: Mapping[str, Any]) -> Change:
    """The change that was written. KeyError, TypeError or ValueError where it is none that `said_of` wrote."""
    if said.keys() != {field.name for field in fields(Change)}:
        raise ValueError("its fields are others")
    counts = [said[name] for name in ("size", "zeros_before", "zeros_after")]
    sums = [float.fromhex(said[name]) for name in ("energy", "lost")]
    notes = said["notes"]
    if not all(type(count) is int and 0 <= count < 2**63 for count in counts) or any(one < 0 for one in sums):
        raise ValueError("it counts what cannot be")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError("its notes are none")
    return Change(*counts, *sums, notes=tuple(notes), histogram=_histogram(said["histogram"]))


def _histogram(said: Any) -> Histogram | None:
    """KeyError, TypeError or ValueError where it is none that `_said` wrote."""
    if said is None:
        return None
    found = Histogram(said["power"], said["before"], said["after"])
    for counts in (found.before, found.after):
        if len(counts) != BINS or not all(type(count) is int and 0 <= count < 2**63 for count in counts):
            raise ValueError("it counts what cannot be")
    if type(found.power) is not int or abs(found.power) > 2000:
        raise ValueError("its bins are none")
    return found
