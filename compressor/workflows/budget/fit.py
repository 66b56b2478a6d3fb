"""From a budget to an ordinary recipe: survey what the candidates cost, choose, and check with the planner.

The planner is asked by dry runs, so that sizes are those of the files to the byte. The recipe that comes of it has
the stage's own rules first, then one for each tensor by its exact name; what stays dense is named with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from math import fsum, inf
from typing import Any

from compressor.architectures.fused_layers import experts_module
from compressor.architectures.roles import role_of
from compressor.calibration.imatrix import open_layers
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.elementary import power
from compressor.core.errors import GateFailed, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.tensor_names import layer_of
from compressor.core.text import printable, size_text
from compressor.engine.plan.plan import Plan
from compressor.files.layout import Container
from compressor.methods.contract import Method, Scheme
from compressor.methods.options import defaults_of
from compressor.methods.registry import make_method
from compressor.recipe.budget import CHOSEN, Budget
from compressor.recipe.model import Recipe, Stage
from compressor.recipe.selection import LeftAlone, matches, patterns
from compressor.workflows.budget.allocate import Option, allocate, breakpoints, smallest
from compressor.workflows.budget.candidates import (
    DENSE,
    Candidate,
    check_of_use,
    check_readable,
    make_candidates,
    narrower,
    with_nearest,
)
from compressor.workflows.budget.errand import Errand
from compressor.workflows.budget.survey import Measured, Probe, Probed, measure_of, size_of
from compressor.workflows.budget.survey_file import key_of, read_table, write_table
from compressor.workflows.budget.takers import Takers
from compressor.workflows.budget.way_on import SURE, Asked, least, way_on

_STORES = ("auto", "packed", "archive")
_CHOSEN_DENSE = LeftAlone("the budget chose to leave it as it is", asked=True)
_AS_ASKED = 1e-4  # of bits a weight, so that a codebook or a global scale beside codes of whole bits is no obstacle
_ROUNDS = 4  # in which sizes of headers settle; after that larger strides are taken


@dataclass(frozen=True)
class Unit:
    """Tensors that have one scheme, with what each candidate (by its place) would cost them."""

    specs: tuple[TensorSpec, ...]
    places: tuple[int, ...]  # of its options among the candidates
    options: tuple[Option, ...]

    def place(self, option: int) -> int:
        return self.places[option]


@dataclass(frozen=True)
class Fitting:
    """A surveyed input: everything that a choice needs, and no choice yet."""

    recipe: Recipe
    budget: Budget
    candidates: tuple[Candidate, ...]
    units: tuple[Unit, ...]
    measured: dict[str, dict[str, Measured]]
    errand: Errand
    size_before: int
    weights_before: int  # bytes of the decided tensors in the input
    alone: Mapping[str, LeftAlone]  # tensors that stay as they are, since no candidate fits or in any case, and why
    takers: Takers
    shared: Mapping[str, Any]  # options of the stage that hold for all candidates
    informed: str  # by which statistics errors are weighted: "", "square", "gram"
    archived: bool = False  # sizes are those in an archive, and estimates
    sloped: bool = False  # whether losses are weighed by what they cost the outputs
    more: float = 0.0  # bits a weight that every even step gets beyond its candidate's

    @cached_property
    def options(self) -> list[tuple[Option, ...]]:
        return [unit.options for unit in self.units]

    @property
    def by_bits(self) -> bool:
        """Whether the target is of the decided tensors, and not of the files."""
        return self.budget.target_bits is not None

    @property
    def least(self) -> int:
        """Bytes of the smallest output that the candidates allow."""
        return self.bytes_of(smallest(self.options))

    @cached_property
    def weights(self) -> int:
        """How many weights the tensors have that are decided on."""
        return sum(spec.size for unit in self.units for spec in unit.specs)

    def bytes_of(self, chosen: Sequence[int]) -> int:
        """Stored bytes of the decided tensors."""
        return sum(options[n].size for options, n in zip(self.options, chosen, strict=True))

    def loss_of(self, chosen: Sequence[int]) -> float:
        return fsum(options[n].loss for options, n in zip(self.options, chosen, strict=True))

    def candidate(self, unit: int, chosen: Sequence[int]) -> Candidate:
        return self.candidates[self.units[unit].place(chosen[unit])].moved(self.more)

    def measured_of(self, unit: int, chosen: Sequence[int], spec: TensorSpec) -> Measured:
        """What is known of a tensor's choice; of bits between two candidates, what lies between theirs."""
        one = self.candidates[self.units[unit].place(chosen[unit])]
        known = measure_of(one, spec, self.measured)
        if one.bits is None or not self.more:
            return known
        finer = [other for other in self.candidates if one.akin(other) and (other.bits or 0) > one.bits]
        after = min(finer, key=lambda other: other.bits or 0, default=None)
        way = self.more / (after.bits - one.bits) if after is not None and after.bits else 0.0
        other = known if after is None else measure_of(after, spec, self.measured)
        if not known.error or not known.loss or not other.error or not other.loss:
            return replace(known, bits=known.bits + self.more)
        return Measured(
            known.error * float(power(other.error / known.error, way)),
            known.loss * float(power(other.loss / known.loss, way)),
            bits=known.bits + (other.bits - known.bits) * way,
        )

    def choice(self) -> list[int]:
        """The options that meet the budget. GateFailed where none do."""
        if self.by_bits:
            return self._within(self.target or 0, lambda chosen: self.bytes_of(chosen))
        if self.target is None:
            return smallest(self.options)
        return self._within(self.target, lambda chosen: self.plan(chosen).size_after)

    def _within(self, target: int, measure: Callable[[Sequence[int]], int]) -> list[int]:
        """Choices are made by the parts' sizes; what else the files have depends a little on them."""
        least = smallest(self.options)
        size = measure(least)
        if size > target:
            self.refuse(size)
        limit = target - (size - self.bytes_of(least))
        for number in count():
            if limit < self.bytes_of(least):
                break
            chosen = allocate(self.options, limit)
            over = measure(chosen) - target
            if over <= 0:
                return chosen
            limit = self.bytes_of(chosen) - (over << max(number - _ROUNDS, 0))  # a header rarely jumps about
        return least

    @property
    def target(self) -> int | None:
        """Bytes at most: of the decided tensors where bits are asked for, those to a ten-thousandth; else of the
        files. None: no target."""
        if self.budget.target_bits is not None:
            return int(self.budget.target_bits * self.weights / 8 * (1 + _AS_ASKED))
        return self.budget.file_size(self.size_before)

    @property
    def note(self) -> str:
        """What is odd about the target: that the input is within it already."""
        before = self.size_before
        if self.by_bits:
            before = self.weights_before
        if self.target is None or self.target < before:
            return ""
        shown = f"{before * 8 / self.weights:.4g} bits a weight" if self.by_bits else size_text(before)
        return f"the input, of {shown}, is within {self.budget.target_words} already"

    def refuse(self, size: int) -> None:
        """GateFailed for a budget below the smallest `size`: of the decided tensors, or of the files."""
        if self.by_bits:
            shown = f"{size * 8 / max(self.weights, 1):.4g} bits a weight"
        else:
            shown = f"{size} bytes ({size_text(size)}, {self.size_before / size:.4g} times smaller)"
        raise GateFailed(
            f"{self.budget.words}: cannot be met; the smallest that the candidates allow is {shown}",
            remedy=self._way_on(size),
        )

    def _way_on(self, size: int) -> str:
        groups, rest = [unit.specs for unit in self.units], size - self.least
        left = [] if self.by_bits else self._left()
        target = (self.target or 0) - rest
        asked = Asked(self.budget, self.shared, self.takers, self.archived)
        return way_on(asked, groups, left, self.candidates, target)

    def _left(self) -> list[TensorSpec]:
        """Weights that are left alone by default, or since others are included."""
        jobs = self.plan(smallest(self.options)).jobs
        kept = [job for job in jobs if not job.steps and job.spec.name not in self.alone]
        return [
            job.spec for job in kept if len(job.spec.shape) > 1 and role_of(job.spec.name, job.spec.shape).is_weight
        ]

    def plan(self, chosen: Sequence[int]) -> Plan:
        return self.errand.dry_run(self.recipe_for(chosen)).plan

    def recipe_for(self, chosen: Sequence[int]) -> Recipe:
        """The ordinary recipe of a choice."""
        *before, stage = self.recipe.stages
        by_encoder: dict[Scheme | None, list[str]] = {}
        for number, unit in enumerate(self.units):
            names = by_encoder.setdefault(self.candidate(number, chosen).encoder, [])
            names += [spec.name for spec in unit.specs]
        kept = {**self.alone, **dict.fromkeys(by_encoder.pop(None, []), _CHOSEN_DENSE)}
        base = _base({encoder: len(names) for encoder, names in by_encoder.items() if encoder}, stage)
        rules = [
            (text, encoder)
            for encoder, names in by_encoder.items()
            if encoder is not None and encoder != base
            for text in patterns(names)
        ]
        rules.sort(key=_first)
        made = replace(stage, method=base, rules=(*stage.rules, *rules), kept=kept)
        return replace(self.recipe, stages=(*before, made), budget=None)

    def points(self) -> list[list[int]]:
        """The choices on the hull, from the smallest to the best."""
        return list(breakpoints(self.options))


def _first(pair: tuple[str, Method]) -> str:
    return pair[0]


def _base(counts: Mapping[Scheme, int], stage: Stage) -> Scheme:
    """What the stage itself says: the commonest encoder from which, read as a recipe, the others differ as they
    should (a rule inherits what it does not say)."""
    order = sorted(counts, key=lambda one: (-counts[one], str(one)))
    for base in order:
        if all(_inherits(base, other) for other in order):
            return base
    assert isinstance(stage.method, Scheme)  # noqa: S101 - it is a quantize stage
    return order[0] if order else stage.method


def _inherits(base: Scheme, other: Scheme) -> bool:
    said = other.describe()
    if type(base) is type(other):
        said = {**base.describe(), **said}
    try:
        return make_method("quantize", said).completed_by(base) == other
    except UsageError:
        return False


# ---- the survey ----------------------------------------------------------------------------------------


def fitting(
    checkpoint: Checkpoint,
    container: Container,
    recipe: Recipe,
    budget: Budget,
    errand: Errand,
    *,
    archived: bool = False,
) -> Fitting:
    """Survey an input for a budget. `errand` plans recipes for it; `checkpoint` is the input as it lies on disk;
    `archived` says that the output will be an archive.

    Raises UsageError for recipes and candidates that a budget is not for.
    """
    stage = _stage(recipe, container)
    defaults = defaults_of(type(stage.method))
    shared = {
        key: value
        for key, value in stage.method.describe().items()
        if key not in CHOSEN and value != defaults.get(key)
    }
    candidates = make_candidates(
        budget.candidates, shared, str(shared.get("layout", "auto")), container, archived=archived
    )
    scout = errand.dry_run(_probing(recipe, Probe())).plan
    decided = [
        job.spec
        for job in scout.jobs
        if job.steps
        and isinstance(job.steps[-1].method, Probe)
        and not matches(job.spec.name, map(_first, stage.rules))
    ]
    named = candidates
    experts = any(experts_module(job.spec.name) is not None for job in scout.jobs)
    takers = Takers(
        container,
        errand.options.loader,
        checkpoint.source.config,
        experts,
        _kept(scout, decided, recipe, errand),
    )
    groups = _groups(decided, candidates, takers)
    candidates = with_nearest(candidates, groups, takers.fits)
    if not budget.candidates and not archived:
        more = narrower(str(shared.get("layout", "auto")), container, shared)
        if more and not _within_reach(budget, scout, groups, candidates, takers):
            candidates = with_nearest((*candidates, *more), groups, takers.fits)
    fits = {spec.name: [one for one in candidates if takers.fits(one, spec)] for spec in decided}
    if budget.candidates and not errand.options.allow_unmatched:
        check_of_use(named, decided, container, fallback=stage.fallback)
        takers.check_taken(named, decided)
    alone = {
        spec.name: _why_alone(members, fits, candidates, takers)
        for members in groups
        if not _common(members, fits)
        for spec in members
    }
    alone |= {job.spec.name: why for job in scout.jobs for why in job.left_alone if why.held}
    decided = [spec for spec in decided if spec.name not in alone]
    if not decided:
        raise _nothing_to_decide(alone, errand.options.loader, shared)
    for spec in decided:
        for one in fits[spec.name]:
            check_readable(one, spec, archived=archived)
    _check_statistics(candidates, decided, errand.stats)
    survey = _Survey(checkpoint, recipe, budget, errand, candidates, fits, archived)
    measured, informed = survey.measured(scout, decided)
    worth = _worth(decided, informed)
    units = tuple(
        _unit(members, candidates, fits, measured, budget.limit, worth, takers)
        for members in groups
        if members[0].name not in alone
    )
    return Fitting(
        recipe,
        budget,
        candidates,
        units,
        measured,
        errand,
        scout.size_before,
        _size_before(scout, decided),
        alone,
        takers,
        shared,
        informed,
        archived,
    )


def _kept(scout: Plan, decided: Sequence[TensorSpec], recipe: Recipe, errand: Errand) -> dict[str, int]:
    """What tensors that the input stores as codes take in the output where a budget leaves them alone: of a .gguf
    those stay the blocks that they are, of others the numbers are restored."""
    if not any(job.stored_as for job in scout.jobs):
        return {}
    *before, stage = _probing(recipe, Probe()).stages
    alone = replace(stage, kept=dict.fromkeys((spec.name for spec in decided), _CHOSEN_DENSE))
    plan = errand.dry_run(replace(recipe, stages=(*before, alone), budget=None)).plan
    return {job.spec.name: job.size_after for job in plan.jobs if job.stored_as}


def _size_before(scout: Plan, decided: Sequence[TensorSpec]) -> int:
    """Bytes of these tensors in the input."""
    names = {spec.name for spec in decided}
    return sum(job.size_before for job in scout.jobs if job.spec.name in names)


def _within_reach(
    budget: Budget,
    scout: Plan,
    groups: Sequence[Sequence[TensorSpec]],
    candidates: Sequence[Candidate],
    takers: Takers,
) -> bool:
    """Whether the candidates allow what a target asks for, by their sizes alone."""
    decided = [spec for group in groups for spec in group]
    files = budget.file_size(scout.size_before)
    room = None if files is None else files - scout.size_before + _size_before(scout, decided)
    if budget.target_bits is not None:
        room = int(budget.target_bits * sum(spec.size for spec in decided) / 8)
    return room is None or least(groups, candidates, takers) <= room * SURE


def _nothing_to_decide(alone: Mapping[str, LeftAlone], loader: str | None, shared: Mapping[str, Any]) -> UsageError:
    why = next((one.reason for one in alone.values()), "")
    if loader is not None and alone:
        return UsageError(f"--for {loader}: there is nothing to decide: {why}", remedy="Leave --for out")
    return UsageError(
        "there is nothing to decide: no tensor is selected whose shape a candidate allows",
        remedy="--layout compressor holds rows of any length, and kernels" if "layout" in shared else "",
    )


def _check_statistics(candidates: Sequence[Candidate], decided: Sequence[TensorSpec], stats: str | None) -> None:
    """UsageError where a candidate goes by statistics of inputs that are not given for all decided tensors."""
    needing = next((one for one in candidates if one.encoder is not None and one.encoder.statistics), None)
    if needing is None or needing.encoder is None:
        return
    said = f"candidate {printable(needing.name, 60)} goes by statistics of layer inputs"
    if stats is None:
        raise UsageError(
            f"{said}, and none are given", remedy="Give --stats FILE, which `compressor calibrate` makes"
        )
    opened = open_layers(stats)
    grams = needing.encoder.statistics == "gram"
    known = opened.grams if grams else opened.counts
    missing = next((spec for spec in decided if layer_of(spec.name) not in known), None)
    if missing is not None:
        raise UsageError(
            f"{said}, and {printable(stats, 60)} has {'no gram' if grams else 'none'} of its layer",
            tensor=missing.name,
            remedy="Exclude it, gather statistics of that layer too, or leave the candidate out",
        )


def _stage(recipe: Recipe, container: Container) -> Stage:
    """The stage that the budget is for."""
    if not recipe.stages or recipe.stages[-1].method.verb != "quantize":
        raise UsageError("a budget is for a recipe whose last stage quantizes")
    stage = recipe.stages[-1]
    if container not in ("safetensors", "folder", "gguf") or stage.store not in _STORES:
        raise UsageError(
            "a budget is for stored codes",
            remedy="Write .safetensors, .gguf or a folder, with --store packed or archive",
        )
    if stage.preset:
        raise UsageError(f"preset {stage.preset} chooses bits, and so does a budget: give one of them")
    return stage


def _probing(recipe: Recipe, probe: Probe) -> Recipe:
    *before, stage = recipe.stages
    return replace(recipe, stages=(*before, replace(stage, method=probe, store="packed")), budget=None)


@dataclass(frozen=True)
class _Survey:
    """What is measured, of which candidates, and how: `fits` are the candidates that a tensor's shape allows."""

    checkpoint: Checkpoint
    recipe: Recipe
    budget: Budget
    errand: Errand
    candidates: Sequence[Candidate]
    fits: Mapping[str, Sequence[Candidate]]
    archived: bool

    def measured(self, scout: Plan, decided: Sequence[TensorSpec]) -> tuple[dict[str, dict[str, Measured]], str]:
        """What is known of every tensor's candidates, from the table or measured; and by which statistics."""
        informed, identity = self._informed(decided)
        budget = self.budget
        way = {
            "stages": list(scout.stages[:-1]),
            "stats": [informed and f"{informed}, by rows, weighed", identity],
            "sample": budget.sample,
        }
        key = key_of(self.checkpoint, way)
        known = read_table(budget.survey, key) if budget.survey is not None else {}
        wanted = self._wanted(decided, known)
        if wanted:
            for name, row in self._probed(informed, wanted).items():
                known.setdefault(name, {}).update(row)
            if budget.survey is not None:
                write_table(budget.survey, key, known)
        return known, informed

    def _informed(self, decided: Sequence[TensorSpec]) -> tuple[str, str]:
        """By which statistics errors are weighted, "square" or "gram", and what those are known by."""
        if self.errand.stats is None:
            return "", ""
        opened = open_layers(self.errand.stats)
        informed = "gram" if {layer_of(spec.name) for spec in decided} <= opened.grams else "square"
        return informed, opened.identity(grams=informed == "gram")

    def _wanted(
        self, decided: Sequence[TensorSpec], known: Mapping[str, Mapping[str, Measured]]
    ) -> dict[str, tuple[str, ...]]:
        """By tensor, the keys of the candidates of which nothing is known yet."""
        wanted = {}
        for spec in decided:
            keys = [one.key for one in self.fits[spec.name] if one.encoder is not None or self.archived]
            missing = tuple(key for key in keys if key not in known.get(spec.name, {}))
            if missing:
                wanted[spec.name] = missing
        return wanted

    def _probed(self, informed: str, wanted: dict[str, tuple[str, ...]]) -> dict[str, dict[str, Measured]]:
        """One pass over these tensors: what it found of each."""
        asked = {key for keys in wanted.values() for key in keys}
        encoders = tuple(
            (one.key, one.encoder) for one in self.candidates if one.encoder is not None and one.key in asked
        )
        probe = Probe(encoders, informed, self.budget.sample, wanted)  # type: ignore[arg-type]
        report = self.errand.dry_run(_probing(self.recipe, probe), only=list(wanted), looks=True)
        rows: dict[str, dict[str, Measured]] = {}
        for job in report.plan.jobs:
            found = job.steps[-1].found
            assert isinstance(found, Probed)  # noqa: S101 - the probe stood in for the candidates
            rows[job.spec.name] = dict(found.rows)
        return rows


# ---- units ---------------------------------------------------------------------------------------------


def _groups(
    decided: Sequence[TensorSpec], candidates: Sequence[Candidate], takers: Takers
) -> list[list[TensorSpec]]:
    """Tensors that must have one scheme together: what loaders fuse, where any of the candidates is theirs."""
    groups: dict[str, list[TensorSpec]] = {}
    for spec in decided:
        whole = takers.together(spec, (one.dialect(spec) for one in candidates))
        groups.setdefault(f"tensor {spec.name}" if whole is None else f"group {whole}", []).append(spec)
    return list(groups.values())


def _why_alone(
    members: Sequence[TensorSpec],
    fits: Mapping[str, Sequence[Candidate]],
    candidates: Sequence[Candidate],
    takers: Takers,
) -> LeftAlone:
    """Why these tensors, which no candidate fits together, stay as they are."""
    container = takers.container
    if container == "folder" and not all(spec.name.endswith(".weight") for spec in members):
        return LeftAlone("no module's .weight, so loaders would not look for its codes")
    for spec in members:
        refused = [takers.refusal(one, spec) for one in candidates if one.encoder and one.fits(spec, container)]
        if refused and all(refused):
            return LeftAlone(f"{refused[0]}, and none of the budget's candidates is taken")
    if all(any(one.encoder for one in fits[spec.name]) for spec in members):
        return LeftAlone("no candidate of the budget fits all that loaders fuse with it")
    return LeftAlone("no candidate of the budget fits its shape")


def _common(members: Sequence[TensorSpec], fits: Mapping[str, Sequence[Candidate]]) -> bool:
    """Whether there is a candidate beside dense that all these tensors' shapes allow."""
    return any(one.encoder and all(one in fits[spec.name] for spec in members) for one in fits[members[0].name])


def _worth(decided: Sequence[TensorSpec], informed: str) -> dict[str, float]:
    """What the relative loss of each tensor counts, together as many as there are weights. Without statistics every
    weight counts the same, so that losses of tensors add up as those of one matrix would; losses of outputs are by
    the outputs, however many inputs each has. In a network of convolutions, whose first and depthwise layers have
    few weights and pass on everything, all layers count the same."""
    weights = sum(spec.size for spec in decided)
    if 2 * sum(len(spec.shape) > 2 for spec in decided) > len(decided):
        return {spec.name: weights / len(decided) for spec in decided}
    if not informed:
        return {spec.name: float(spec.size) for spec in decided}
    each = weights / (sum(spec.matrix[0] for spec in decided) or 1)
    return {spec.name: spec.matrix[0] * each for spec in decided}


def _unit(
    members: Sequence[TensorSpec],
    candidates: Sequence[Candidate],
    fits: dict[str, list[Candidate]],
    measured: dict[str, dict[str, Measured]],
    limit: float,
    worth: Mapping[str, float],
    takers: Takers,
) -> Unit:
    """The options of a group; by tensor what its loss is `worth`. GateFailed where none is within the limit of the
    error."""
    places, options, least = [], [], inf
    for place, one in enumerate(candidates):
        if not all(one in fits[spec.name] for spec in members):
            continue
        rows = [measure_of(one, spec, measured) for spec in members]
        worst = max(row.at_most for row in rows)
        least = min(least, worst)
        if worst > limit or not all(row.loss < inf for row in rows):
            continue
        places.append(place)
        loss = fsum(row.loss * worth[spec.name] for row, spec in zip(rows, members, strict=True))
        size = sum(size_of(one, spec, row, takers) for row, spec in zip(rows, members, strict=True))
        options.append(Option(size, loss))
    if not options:  # dense is no candidate, or it would be within the limit
        raise GateFailed(
            f"no candidate keeps the relative error of '{members[0].name}' within {limit:.4g}: "
            f"the least is {least:.4g}",
            remedy=f"Add a finer candidate, such as {DENSE}",
        )
    return Unit(tuple(members), tuple(places), tuple(options))
