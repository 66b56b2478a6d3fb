"""With what a budget that cannot be met becomes possible, by sizes that are known before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.recipe.budget import Budget
from compressor.workflows.budget.candidates import Candidate, make_candidates, narrower
from compressor.workflows.budget.takers import Takers

SURE = 0.99  # of a target, within which headers that another layout makes longer are too
_OWN = "--layout compressor (widths from 2 bits up, for `compressor restore`)"
_ARCHIVE = "--store archive (steps down to half a bit, for `compressor restore`)"
_LEAST_OF_ARCHIVE = 0.55  # bits of a weight there, with what is beside the codes

Groups = Sequence[Sequence[TensorSpec]]


@dataclass(frozen=True)
class Asked:
    """A budget with what else decides its candidates: options of the stage that are `shared` by all, and who takes
    them; `archived`: sizes are those in an archive."""

    budget: Budget
    shared: Mapping[str, Any]
    takers: Takers
    archived: bool


def way_on(
    asked: Asked, groups: Groups, left: Sequence[TensorSpec], candidates: Sequence[Candidate], target: int
) -> str:
    """What to do about a budget that may take `target` bytes for these tensors (of each group all in one scheme),
    and that no choice of the `candidates` meets. `left` are weights that stay dense, beside the target."""
    takers, archived = asked.takers, asked.archived
    all_of_them, room = [*groups, *([spec] for spec in left)], target + sum(map(takers.size_untreated, left))
    ways = [] if archived else list(_wider(asked, candidates))
    for way, wider, by_whom in ways:
        if least(groups, wider, by_whom) <= target * SURE:
            return _possible(way)
    in_archive = archived or _has_archive(asked)
    if in_archive and not archived and _in_archive(groups) <= target:
        return _possible(f"give {_ARCHIVE}")
    if left:
        if not archived and takers.container != "folder":  # whose loaders take no codes of vectors
            ways = [("", candidates, takers), *ways]
        for way, wider, by_whom in ways:
            own = takers.container != "folder" or _OWN in way
            if own and least(all_of_them, wider, by_whom) <= room * SURE:
                return _possible(f"{way} and --include '*'" if way else "give --include '*'")
        if in_archive and _in_archive(all_of_them) <= room:
            return _possible("give --include '*'" if archived else f"give {_ARCHIVE} and --include '*'")
    return "Ask for no less"


def _possible(way: str) -> str:
    return f"Ask for no less, or {way}, which makes it possible"


def _wider(asked: Asked, candidates: Sequence[Candidate]) -> Iterator[tuple[str, Sequence[Candidate], Takers]]:
    """More candidates than there were, with what gives them and who takes them."""
    budget, shared, takers = asked.budget, asked.shared, asked.takers
    if budget.limit_words:
        yield f"leave out {budget.limit_words}", candidates, takers
    with suppress(UsageError):  # an option of the stage that none of them has
        if budget.candidates:
            layout = str(shared.get("layout", "auto"))
            yield "leave out --candidate", make_candidates((), shared, layout, takers.container), takers
    if takers.loader is not None and takers.container == "folder":
        with suppress(UsageError):
            layout = str(shared.get("layout", "auto"))
            found = make_candidates((), shared, layout, "folder")
            yield "leave out --for", (*found, *narrower(layout, "folder", shared)), replace(takers, loader=None)
    if shared.get("layout") != "compressor" and takers.container != "gguf" and takers.loader != "llama.cpp":
        with suppress(UsageError):
            rest = {**shared, "layout": "compressor"}
            found = make_candidates((), rest, "compressor", takers.container)
            if takers.loader is None:
                yield f"give {_OWN}", found, takers
            else:
                yield f"leave out --for, and give {_OWN}", found, replace(takers, loader=None)


def _has_archive(asked: Asked) -> bool:
    """Whether an archive is a way: not for loaders, and not where candidates or options leave no even steps."""
    budget, shared, takers = asked.budget, asked.shared, asked.takers
    if takers.container == "gguf" or takers.loader is not None or budget.candidates or budget.limit_words:
        return False
    with suppress(UsageError):
        return bool(make_candidates((), shared, str(shared.get("layout", "auto")), takers.container, archived=True))
    return False


def _in_archive(groups: Groups) -> float:
    return _LEAST_OF_ARCHIVE / 8 * sum(spec.size for group in groups for spec in group)


def least(groups: Groups, candidates: Sequence[Candidate], takers: Takers) -> int:
    """Bytes of the smallest choice among these, of tensors that lie dense where none fits."""
    return sum(
        min(
            sum(takers.size(one, spec) if takers.fits(one, spec) else takers.size_untreated(spec) for spec in group)
            for one in candidates
        )
        for group in groups
    )
