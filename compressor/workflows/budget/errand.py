"""What a budget is for, before a recipe is chosen for it: the same input planned, tried and carried out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compressor.files.staging import Staging
from compressor.files.writing import place_beside
from compressor.recipe.gates import Gates
from compressor.recipe.model import Recipe
from compressor.workflows.one_pass import Origin, run_one_pass
from compressor.workflows.results import Report
from compressor.workflows.run_options import RunOptions


@dataclass(frozen=True)
class Errand:
    """Something to do from `source` to `output`, by recipes without a budget. `stats` is the file of statistics for
    the stages that take some; `origin` as in `run_one_pass`."""

    verb: str
    source: str
    output: str
    options: RunOptions
    stats: str | None
    origin: Origin | None = None

    @property
    def place(self) -> str:
        """The output's path without a trailing slash."""
        return self.output.rstrip("/")

    def dry_run(self, recipe: Recipe, only: Sequence[str] | None = None, *, looks: bool = False) -> Report:
        """What the recipe comes to, before any entropy coding; of `only` these tensors, where given. `looks`: it is
        there to look at the whole model, so that a survey of the run's passes has this one."""
        options = self.options
        planning = RunOptions(
            dry_run=True,
            loader=options.loader,
            strict=options.strict,
            requantize=options.requantize,
            allow_unmatched=options.allow_unmatched,
            strip_prefix=options.strip_prefix,
            fold_weight_norm=options.fold_weight_norm,
            component=options.component,
            max_shard_size=options.max_shard_size,
            no_tokenizer=options.no_tokenizer,
            leave_out=options.leave_out,
            non_finite=options.non_finite,
            workers=options.workers,
            memory=options.memory,
            processes=options.processes,
            stats=self._taken(recipe),
            part=options.part,
            surveys_only=options.surveys_only and looks,
            scheduler=options.scheduler,
            surveyed=options.surveyed,
        )
        return run_one_pass(self.verb, self.source, self.output, recipe, planning, only=only)

    def trial(self, recipe: Recipe, path: str) -> Report:
        """Write the recipe's output to another path, to see what it becomes: no gate holds, and nobody is told. A
        .gguf is one file there, which that path names."""
        whole = os.path.splitext(path)[1].lower() == ".gguf"
        quiet = replace(
            self.options,
            max_shard_size=None if whole else self.options.max_shard_size,
            force=False,
            progress=None,
            save_mask=None,
            work=None,
            keep_work=False,
            part=None,
            gates=Gates(),
            stats=self._taken(recipe),
        )
        return run_one_pass(self.verb, self.source, path, recipe, quiet, origin=self.origin)

    def restore(self, path: str, to: str) -> None:
        """Write a dense copy of a trial; of a `.gguf` the folder that transformers loads."""
        run_one_pass("restore", path, to, Recipe(()), RunOptions(workers=self.options.workers))

    def hidden_trial(self, recipe: Recipe) -> Report:
        """Write the recipe's output beside its place, under a hidden name, and remove it again."""
        staging = Staging(place_beside(self.place, "trial"), folder=True, replace=False)
        try:
            return self.trial(recipe, os.path.join(staging.path, os.path.basename(self.place)))
        finally:
            staging.discard()

    def carry_out(self, recipe: Recipe) -> Report:
        """Run the chosen recipe and write the output."""
        options = replace(self.options, stats=self._taken(recipe))
        return run_one_pass(self.verb, self.source, self.output, recipe, options, origin=self.origin)

    def _taken(self, recipe: Recipe) -> str | None:
        """The statistics, where a stage takes them."""
        takes = any(
            stage.stats is None and any(one.statistics or one.with_statistics() for one in stage.methods)
            for stage in recipe.stages
        )
        return self.stats if takes else None
