"""`extends`: a recipe that is another one, changed.

The other recipe is a file, found from the folder of the one that names it, or a ready recipe's name. What the
recipe says itself goes before what the other says: single keys one by one, also those of `gate`, `report` and
`budget`. A stage with the `name` of one of the other's stages changes that stage, key by key; other stages follow
the other's. A stage that is given no name goes by its kind, if it is the only one of its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from compressor.core.errors import UsageError
from compressor.core.text import printable

_DEPTH = 8  # of recipes that extend each other
_LISTS = ("stage", "structure")
Tables = dict[str, Any]
Reader = Callable[[str, str], tuple[Tables, str]]


def extended(tables: Tables, name: str, where: str, read: Reader) -> Tables:
    """The recipe `name` with what it extends filled in; `read(base, name)` is the tables and the name of what
    recipe `name` calls `base`. UsageError that starts with `where`."""
    chain, seen = [tables], [name]
    while "extends" in chain[-1]:
        base = chain[-1].pop("extends")
        if not isinstance(base, str) or not base:
            raise UsageError(f"{where}: extends: must be a recipe's file or name")
        found, name = read(base, name)
        if name in seen or len(chain) == _DEPTH:
            said = "goes in a circle" if name in seen else f"goes through more than {_DEPTH} recipes"
            raise UsageError(f"{where}: extends: {said} at {printable(name)}")
        chain.append(found)
        seen.append(name)
    whole = chain.pop()
    while chain:
        whole = _merged(whole, chain.pop(), where)
    return whole


def _merged(base: Mapping[str, Any], more: Mapping[str, Any], where: str) -> Tables:
    base = {
        key: value for key, value in base.items() if key not in ("name", "description")
    }  # which this one is not
    whole = {**base, **{key: value for key, value in more.items() if key not in _LISTS}}
    for key in ("gate", "report", "budget"):
        if isinstance(base.get(key), dict) and isinstance(more.get(key), dict):
            whole[key] = {**base[key], **more[key]}
    whole["structure"] = [*_listed(base, "structure", where), *_listed(more, "structure", where)]
    whole["stage"] = _stages(_listed(base, "stage", where), _listed(more, "stage", where), where)
    return whole


def _listed(tables: Mapping[str, Any], key: str, where: str) -> list[Tables]:
    """The tables `[[key]]`. UsageError where they are something else."""
    found = tables.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UsageError(f"{where}: {key}: must be [[{key}]] tables")
    return found


def _stages(base: list[Tables], more: list[Tables], where: str) -> list[Tables]:
    stages = [dict(stage) for stage in base]
    names = _names(stages)
    for number, stage in enumerate(more):
        name = stage.get("name")
        if name is not None and name in names:
            changed = stages[names.index(name)]
            if "repeat" in changed and "stage" in stage:
                inner = _stages(_listed(changed, "stage", where), _listed(stage, "stage", where), where)
                stage = {**stage, "stage": inner}
            changed |= stage
        elif "kind" not in stage and "repeat" not in stage:
            close = get_close_matches(str(name), [str(known) for known in names if known], 1)
            raise UsageError(
                f"{where}: stage[{number}]: has no kind, and no stage that it extends is named "
                f"'{printable(str(name), 40)}'",
                remedy=f"Did you mean {close[0]}?" if close else "",
            )
        else:
            stages.append(dict(stage))
    return stages


def _names(stages: list[Tables]) -> list[Any]:
    kinds = Counter(str(stage.get("kind")) for stage in stages)
    return [
        stage.get("name", stage.get("kind") if kinds[str(stage.get("kind"))] == 1 else None) for stage in stages
    ]
