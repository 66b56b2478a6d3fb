"""With what a budget that cannot be met becomes possible, by sizes that are known before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.recipe.budget import Budget
from compressor.workflows.budget.candidates import Candidate, make_candidates
from compressor.workflows.budget.takers import Takers

_SURE = 0.99  # of a target, within which headers that another layout makes longer are too


def way_on(
    budget: Budget,
    groups: Sequence[Sequence[TensorSpec]],
    candidates: Sequence[Candidate],
    shared: Mapping[str, Any],
    takers: Takers,
    target: int,
    more: str,
) -> str:
    """What to do about a budget that may take `target` bytes for these tensors (of each group all in one scheme),
    and that no choice of the `candidates` meets. `shared` are options of the stage;
    `more` is how weights that stay dense would be decided too, "" where there are none."""
    for way, wider in _wider(budget, candidates, shared, takers).items():
        if wider and _least(groups, wider, takers) <= target * _SURE:
            return f"Ask for no less, or {way}, which makes it possible"
    ways = [more] if more else []
    if takers.container != "gguf" and takers.loader is None:  # of which none takes an archive
        ways.append("give --store archive, whose steps go down to half a bit")
    return ", or ".join(["Ask for no less", *ways])


def _wider(
    budget: Budget, candidates: Sequence[Candidate], shared: Mapping[str, Any], takers: Takers
) -> dict[str, Sequence[Candidate]]:
    """More candidates than there were, by what gives them."""
    found: dict[str, Sequence[Candidate]] = {}
    if budget.limit_words:
        found[f"leave out {budget.limit_words}"] = candidates
    with suppress(UsageError):  # an option of the stage that none of them has
        if budget.candidates:
            layout = str(shared.get("layout", "auto"))
            found["leave out --candidate"] = make_candidates((), shared, layout, takers.container)
    with suppress(UsageError):
        if shared.get("layout") != "compressor" and takers.container != "gguf" and takers.loader is None:
            rest = {**shared, "layout": "compressor"}
            way = "give --layout compressor (widths from 2 bits up, for `compressor restore`)"
            found[way] = make_candidates((), rest, "compressor", takers.container)
    return found


def _least(groups: Sequence[Sequence[TensorSpec]], candidates: Sequence[Candidate], takers: Takers) -> int:
    """Bytes of the smallest choice among these, of tensors that lie dense where none fits."""
    return sum(
        min(
            sum(one.size(spec) or 0 if takers.fits(one, spec) else spec.nbytes for spec in group)
            for one in candidates
        )
        for group in groups
    )
