"""How a run is carried out, whatever it does: one frozen value that every workflow takes and hands on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from compressor.architectures.loaders import READERS, Loader
from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.files.addresses import absolute
from compressor.files.destination import check_apart
from compressor.recipe.archive_store import Effort, StoreAs
from compressor.recipe.gates import Gates
from compressor.workflows.part import numbers_of

Path = str | os.PathLike[str]
NonFinite = Literal["error", "keep"]
Progress = Callable[[int, int], None]  # bytes that are read, and of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Everything that a caller may say of a run beside its recipe.

    `force` replaces an existing output; `dry_run` ends with the plan; `strict` refuses to leave weight matrices
    alone by default; `requantize` quantizes a source that is quantized already; `allow_unmatched`
    takes patterns that match no tensor, with a note; `non_finite="keep"` carries tensors
    with NaN or Inf over; `gates` are limits that the result must keep.

    `loader` is who is to load the output: it chooses the layout, what is left dense and how experts are called, and
    what that loader is known not to take is an error.

    `strip_prefix` is taken off the names of tensors that begin with it; `fold_weight_norm` makes one weight of each
    gain and direction; `component` is the sub-folder of a pipeline
    of diffusers that is treated; `max_shard_size` is how many bytes of tensors a file of an output folder may hold.
    Of a folder that becomes a GGUF file, `no_tokenizer` leaves its tokenizer out, and `leave_out` are patterns of
    tensors that the file has no place for.

    `workers` is how many there are (one a processor where None), and at most as many as methods have room for in
    `memory`, bytes; `processes` allows them to be forked for large models, which a program with threads of its own
    had better not; `progress(done, total)` is called in bytes read, and its `stage(text)`, if it has one, before
    each pass of several.

    `store="archive"` entropy-codes all of the output, `effort="small"` slower and smaller. `stats` are statistics
    of layer inputs, for stages that go by some and name none. `base` is the path of a checkpoint: an archive of
    files as they are is coded against it, and an input that was coded so is read with it. `save_mask` is a
    .safetensors for the bits of which pruned weights stay, written when the output is complete; `save_base` is
    where the base goes that an adapter is
    for. `work` is a folder that keeps finished passes and shards when the run is stopped, and `keep_work` also when
    it is not. With `histograms` the report has one of every tensor that was treated, before and after; with `card`
    an output folder's README.md is a model card, above what the input's says. `part` is "K/N": the run is job K of
    N that write an output together, each a part of it beside its place, which `merge` puts together. `surveyed` is
    the file of what `survey` found of the whole model; with `surveys_only` the run looks at the whole model
    and nothing else. `scheduler` is the address of a Dask scheduler, whose workers then read, treat and write all
    that is large.
    """

    force: bool = False
    dry_run: bool = False
    loader: Loader | None = None
    strict: bool = False
    requantize: bool = False
    allow_unmatched: bool = False
    strip_prefix: str | None = None
    fold_weight_norm: bool = False
    component: str = ""
    max_shard_size: int | None = None
    no_tokenizer: bool = False
    leave_out: tuple[str, ...] = ()
    non_finite: NonFinite = "error"
    gates: Gates = field(default_factory=Gates)
    workers: int | None = None
    memory: int | None = None
    processes: bool = False
    progress: Progress | None = None
    store: StoreAs = "stages"
    effort: Effort = "fast"
    stats: str | None = None
    base: str | None = None
    save_mask: str | None = None
    save_base: str | None = None
    work: str | None = None
    keep_work: bool = False
    histograms: bool = False
    card: bool = True
    part: str | None = None
    surveyed: str | None = None
    surveys_only: bool = False
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.loader not in (None, *READERS):
            raise UsageError(f"--for must be one of {', '.join(READERS)}, not '{printable(str(self.loader), 40)}'")
        for name, choices in (("non_finite", NonFinite), ("store", StoreAs), ("effort", Effort)):
            value = getattr(self, name)
            if value not in get_args(choices):
                said = f"--{name.replace('_', '-')} must be one of {', '.join(get_args(choices))}"
                raise UsageError(f"{said}, not '{printable(str(value), 40)}'")
        if self.part is not None:
            numbers_of(self.part)
        if self.memory is not None and self.scheduler is not None:
            raise UsageError(
                "--memory is for the workers of this machine, and those of a --scheduler are others",
                remedy="Leave it out",
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunOptions:
        """The options among a caller's keywords, paths as texts; None leaves one as it is by default."""
        own = {one.name: given[one.name] for one in fields(cls) if given.get(one.name) is not None}
        own |= {key: os.fspath(own[key]) for key in _PATHS if key in own}
        return cls(**own | {key: tuple(own[key]) for key in _LISTS if key in own})

    def absolute(self) -> RunOptions:
        """These options with paths from the root on."""
        given = {key: value for key in _PATHS if (value := getattr(self, key)) is not None}
        paths: dict[str, Any] = {key: absolute(value) for key, value in given.items()}
        return replace(self, **paths)

    def announce(self, text: str) -> None:
        """Tell `progress` of a pass, where it has a `stage` to be told by."""
        stage: Callable[[str], None] | None = getattr(self.progress, "stage", None)
        if stage is not None:
            stage(text)

    def check_part(self, *, trained: bool) -> None:
        """UsageError where a run is one of several jobs, and does what cannot be divided among them; `trained`: in
        several passes, or with a training."""
        if self.part is None:
            return
        undivided = {"--save-mask": self.save_mask, "--save-base": self.save_base, "--work": self.work}
        option = next((name for name, value in undivided.items() if value is not None), None)
        if option is not None:
            remedy = {"--save-mask": "The merged output itself does as a --mask"}.get(option, "Leave it out")
            raise UsageError(f"{option} is for a run by itself, not for a --part of one", remedy=remedy)
        if trained:
            raise UsageError(
                "--part divides one pass over the weights, and this recipe has a training, or several passes",
                remedy="Run what comes first by itself, and the stages after it with --part",
            )

    def check_work(self, source: str, output: str) -> None:
        """UsageError where the work folder is the input or the output, or is to be kept and none is given."""
        if self.keep_work and self.work is None:
            raise UsageError("--keep-work is for the folder that --work names, and none is given")
        if self.work == "":
            raise UsageError("--work names no folder", remedy="Give the path of one, or leave it out")
        if self.work is not None:
            check_apart(self.work, source, option="--work")
            check_apart(self.work, output, option="--work", of="output")


_PATHS = ("stats", "base", "save_mask", "save_base", "work", "surveyed")
_LISTS = ("leave_out",)
