"""The plan: everything that will be done, decided before any data is read.

Immutable and JSON-serialisable. Deciding (`planner.py`) ends in it; doing (`runner.py`) starts from it; a dry
run prints it, gates judge its sizes, and its fingerprint names what was done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm
from typing import Any, NamedTuple

from compressor.architectures.groups import Coupled
from compressor.core.ggml_types import OF_DTYPE, GgmlType
from compressor.core.tensor import TensorSpec
from compressor.files.layout import Container, FileLayout
from compressor.methods.contract import Decoder, Encoder, Scheme, TensorMethod
from compressor.methods.parts import Part
from compressor.recipe.selection import LeftAlone


@dataclass(frozen=True, slots=True)
class Step:
    """One method applied to one tensor. `stage` is its place in the recipe; `partners` the names (by the
    partner's role) of the tensors read beside it; `dense` whether an encoder's numbers or its parts go on;
    `instead` says how the method differs from what was asked, where the tensor's shape did not allow that. `inputs`
    is the layer whose statistics it goes by, if it does, and `gram` whether by their gram. `found` is what stores
    the tensor, where that had to be counted before the plan."""

    stage: int
    method: TensorMethod
    partners: Mapping[str, str]
    dense: bool = True
    instead: str = ""
    inputs: str | None = None
    gram: bool = False
    found: Encoder | None = None

    def describe(self) -> dict[str, Any]:
        """What is done, as a recipe would give it, with what was found out before the plan."""
        return self.method.describe() if self.found is None else self.found.decoder.describe()

    def decoder_for(self, spec: TensorSpec) -> Decoder | None:
        """What reads the parts of a tensor that are stored; None where there are none, or where they have to be
        counted first."""
        if self.dense or not isinstance(self.method, Scheme):
            return None
        return self.method.decoder_for(spec) if self.found is None else self.found.decoder


class Counted(NamedTuple):
    """What the last step of a tensor stores, counted before the plan: an encoder for the stage of this number."""

    stage: int
    encoder: Encoder


SizesKnown = Mapping[str, Counted]  # by tensor


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the input: what is done to it and which parts it becomes.

    Without steps it is carried over (`restored`: decoded first). `left_alone` tells for each stage that leaves it
    alone why. `file` is the output file that all its parts go to. There are no parts as long as an encoder has to
    count first what it will store; `grain` says that the tensor may be counted, and is cut by whole rows, at
    multiples of so many, then and later alike.
    """

    spec: TensorSpec
    steps: tuple[Step, ...]
    parts: tuple[Part, ...]
    file: int
    left_alone: tuple[LeftAlone, ...] = ()
    stored_as: str = ""  # what the input stores it as, where that is the parts of an encoder
    stored_bytes: int = 0
    grain: int = 0
    coded: int | None = None  # bytes of its parts in an archive
    stays: bool = False  # whether no stage treats it, and the parts of the input are stored once more

    @property
    def treated(self) -> bool:
        """Whether anything is done to it."""
        return bool(self.steps) and not self.stays

    @property
    def dtype_before(self) -> str:
        """What the table shows as the old type."""
        return self.stored_as or self.spec.dtype

    @property
    def size_before(self) -> int:
        """Bytes that the tensor takes in the input, as it is stored there."""
        return self.stored_bytes if self.stored_as else self.spec.nbytes

    @property
    def stores_parts(self) -> bool:
        """Whether parts are stored, and not numbers; they need not be known yet."""
        return bool(self.steps) and not self.steps[-1].dense and isinstance(self.steps[-1].method, Scheme)

    @property
    def encoder(self) -> Decoder | None:
        """What reads the parts that are stored; None when numbers are, or when the parts are not known yet."""
        return self.steps[-1].decoder_for(self.spec) if self.steps else None

    @property
    def norm_partner(self) -> str:
        """The partner that what is stored stands for, by whose norm the loss is measured; "" for none."""
        last = self.steps[-1].method if self.stores_parts else None
        return last.norm_partner if isinstance(last, Scheme) else ""

    @property
    def elementwise(self) -> bool:
        """Whether every step treats elements one by one, so that blocks may be cut anywhere."""
        return all(step.method.elementwise for step in self.steps)

    @property
    def at_once(self) -> int:
        """Weights that a block has at least, if there are so many."""
        return max((step.method.at_once for step in self.steps), default=0)

    @property
    def align(self) -> int:
        """Blocks begin at multiples of this many rows."""
        return lcm(*(part.every or 1 for part in self.parts))

    @property
    def sizes_known(self) -> bool:
        """Whether the tensor's parts are known, and have not to be counted first."""
        return bool(self.parts)

    def part_name(self, part: Part) -> str:
        """What a part of the tensor is called in an output file."""
        return part.name(self.spec.name)

    @property
    def part_specs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape of each part that will be stored."""
        return tuple(TensorSpec(self.part_name(part), part.dtype, part.shape) for part in self.parts)

    @property
    def ggml(self) -> GgmlType | None:
        """The type of ggml as which it is stored; None where it is none."""
        if self.encoder is None or self.encoder.plain:
            return OF_DTYPE.get(self.spec.dtype)
        return self.encoder.ggml

    @property
    def size_after(self) -> int:
        """Bytes of the parts that will be stored."""
        return sum(spec.nbytes for spec in self.part_specs) if self.coded is None else self.coded

    @property
    def dtype_after(self) -> str:
        """What the table shows as the new type: a dtype, or scheme and width of the codes."""
        if self.encoder is not None:
            return short_name(self.encoder)
        return self.steps[-1].method.id if self.stores_parts else self.spec.dtype


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A container file that will be written, with every offset."""

    name: str
    layout: FileLayout


@dataclass(frozen=True)  # no slots: the fingerprint is kept
class Plan:
    """All jobs in the order of their tensors' names, and all files, with exact sizes.

    `texts` are small files that are generated (config, index), written last and in this order; `carried` are
    copied unchanged; `left` stay behind, each with its reason. `cuts` are the structures that are left out of the
    jobs' tensors already, `language_model` whether config.json says that it is one.
    """

    source: str
    size_before: int
    container: Container
    stages: tuple[Mapping[str, Any], ...]
    jobs: tuple[Job, ...]
    files: tuple[OutputFile, ...]
    texts: tuple[tuple[str, bytes], ...] = ()
    carried: tuple[str, ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    cuts: tuple[Coupled, ...] = ()
    language_model: bool = False

    @property
    def sizes_known(self) -> bool:
        """Whether the parts of all jobs are known."""
        return all(job.sizes_known for job in self.jobs)

    @property
    def by_file(self) -> list[list[Job]]:
        """The jobs of each container file."""
        found: list[list[Job]] = [[] for _ in self.files]
        for job in self.jobs:
            found[job.file].append(job)
        return found

    @property
    def balances(self) -> bool:
        """Whether any tensor is treated by a method that has inputs scaled."""
        return any(step.method.rounded_by.balances for job in self.jobs for step in job.steps)

    @property
    def size_after(self) -> int:
        """Bytes of the container files, headers included."""
        return sum(file.layout.size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types, without paths of this machine, so that equal work has equal plans."""
        return {
            "container": self.container,
            "stages": [dict(stage) for stage in self.stages],
            "size_before": self.size_before,
            "size_after": self.size_after,
            "tensors": [self._job(job) for job in self.jobs],
            "files": [
                *({"name": file.name, "bytes": file.layout.size} for file in self.files),
                *({"name": name, "bytes": len(content)} for name, content in self.texts),
            ],
            "carried": list(self.carried),
            "left": dict(self.left),
            "notes": list(self.notes),
            **({"cuts": [cut.to_dict() for cut in self.cuts]} if self.cuts else {}),
        }

    def _job(self, job: Job) -> dict[str, Any]:
        layout = self.files[job.file].layout
        return {
            "name": job.spec.name,
            "dtype": job.spec.dtype,
            "shape": list(job.spec.shape),
            "bytes": job.spec.nbytes,
            "steps": [
                {
                    "stage": step.stage,
                    **step.describe(),
                    "dense": step.dense,
                    **({"instead": step.instead} if step.instead else {}),
                    **({"inputs": step.inputs} if step.inputs is not None else {}),
                }
                for step in job.steps
            ],
            "parts": [
                {
                    "name": spec.name,
                    "dtype": spec.dtype,
                    "shape": list(spec.shape),
                    "bytes": spec.nbytes,
                    "file": self.files[job.file].name,
                    "offset": layout.offsets[spec.name],
                }
                for spec in job.part_specs
            ],
            "kept": [why.reason for why in job.left_alone],
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical JSON of the plan but for its sentences (notes, reasons), and whatever a single
        output file is called: all but the tensors, then a line for each of them."""
        named = self
        if self.container != "folder":
            named = replace(self, files=tuple(replace(file, name=self.container) for file in self.files))
        found = replace(named, jobs=()).to_dict()
        del found["notes"], found["tensors"]
        total = hashlib.sha256(_canonical({**found, "left": sorted(found["left"])}))
        for job in self.jobs:
            tensor = named._job(job)
            total.update(_canonical({**tensor, "kept": len(tensor["kept"])}))
        return total.hexdigest()


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _canonical(found: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(found).encode() + b"\n"


def dense_part(spec: TensorSpec) -> Part:
    """The only part of a tensor that is stored as numbers."""
    return Part("", spec.dtype, spec.shape)


def short_name(encoder: Decoder) -> str:
    """`int4`, `factor`: how tables call what an encoder stores."""
    return encoder.label
