"""Which tensors a stage treats: the user's patterns first, then what is left alone by default and why."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import translate
from functools import cache

from compressor.architectures.roles import Role, role_of
from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Why a tensor is carried over as it is, in a sentence for reports; `role` is what the tensor is to its model,
    where that is why. `asked`: by the user's patterns, or because it is no weight at all; `--strict` refuses the
    others. `held`: whatever is included, for what its numbers or its container are."""

    reason: str
    role: Role | None = None
    asked: bool = False
    held: bool = False


_MANY = 256  # names of tensors that get a pattern each
VECTOR = LeftAlone(Role.VECTOR.value, Role.VECTOR, asked=True)


@cache
def pattern(text: str) -> re.Pattern[str]:
    """A glob over whole tensor names, or a regular expression after `re:`; both must match the whole name.
    UsageError for what is no regular expression."""
    if not text.startswith("re:"):
        return re.compile(translate(text))
    try:
        return re.compile(text[3:])
    except re.error as error:
        raise UsageError(f"pattern '{printable(text)}' is not a regular expression: {error}") from error


def matches(name: str, patterns: Iterable[str]) -> str | None:
    """The first of the patterns that matches the name. A name with brackets in it, written out, matches itself."""
    return next((text for text in patterns if text == name or pattern(text).fullmatch(name)), None)


def exact(name: str) -> str:
    """The pattern that matches this name alone."""
    return f"re:{re.escape(name)}" if name.startswith("re:") or re.search(r"[*?\[]", name) else name


def patterns(names: Sequence[str]) -> list[str]:
    """Patterns that match these names alone: one each, or one for all where they are so many that every tensor
    would be held against too many patterns."""
    if len(names) <= _MANY:
        return sorted(map(exact, names))
    return ["re:" + "|".join(map(re.escape, sorted(names)))]


def unmatched(patterns: Iterable[str], names: Collection[str]) -> list[str]:
    """Those of the patterns that match none of the names, in their order."""
    return [text for text in dict.fromkeys(patterns) if not any(matches(name, (text,)) for name in names)]


def meant(text: str, names: Collection[str]) -> str | None:
    """The pattern that was likely meant by one that matches none of the names: with its pieces spelt as the likest
    components of names, or with more before or after it. It matches some; None where nothing is near."""
    parts = {part.lower(): part for name in names for part in name.split(".")}

    def mended(piece: re.Match[str]) -> str:
        close = get_close_matches(piece[0].lower(), parts, 1, cutoff=0.6)
        return parts[close[0]] if close else piece[0]

    sign = "re:" if text.startswith("re:") else ""
    mend, anything = re.sub(r"[A-Za-z_]\w+", mended, text.removeprefix("re:")), ".*" if sign else "*"
    longer = [sign + one for one in (mend, f"{mend}{anything}", f"{anything}{mend}", f"{anything}{mend}{anything}")]
    for one in dict.fromkeys((*longer, f"re:{text}")):
        try:
            if any(matches(name, (one,)) for name in names):
                return one
        except UsageError:  # what was mended is no expression any more
            continue
    return None


def left_alone(spec: TensorSpec, verb: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> LeftAlone | None:
    """Why a stage of this verb with these patterns leaves a tensor alone; None when it is to be treated."""
    excluded = matches(spec.name, exclude)
    if excluded is not None:
        return LeftAlone(f"excluded by {printable(excluded, 60)}", asked=True)
    included = matches(spec.name, include)
    if include and included is None:
        return LeftAlone("not included", asked=True)
    if not spec.is_float:
        return LeftAlone(f"{spec.dtype} is not a float that is computed with here", asked=True)
    if spec.size == 0:
        return LeftAlone("has no elements", asked=True)
    return None if included is not None else by_role(role_of(spec.name, spec.shape), verb)


def by_role(role: Role, verb: str) -> LeftAlone | None:
    """Why a stage of this verb leaves tensors of this role alone, where no pattern asks for them: what is no
    weight; and of the weights those that hurt a model most for the least gain, and that its loaders want dense."""
    if role is Role.VECTOR:
        return VECTOR
    if verb == "distill" or role is Role.LAYER or (role is Role.TOWER and verb != "quantize"):
        return None
    return LeftAlone(f"{role.value} (--include treats it)", role, asked=not role.is_weight)
