"""Prefixes that wrappers put before a model's names: torch.compile (`_orig_mod.`), DataParallel (`module.`)."""

from __future__ import annotations

from collections.abc import Collection

WRAPPERS = ("_orig_mod.", "module.")


def wrappers_of(names: Collection[str]) -> str:
    """The wrappers' prefixes that stand before every one of the tensors' names; "" where there are none."""
    found = ""
    while names:
        more = next((one for one in WRAPPERS if all(name.startswith(found + one) for name in names)), "")
        if not more:
            break
        found += more
    return found
