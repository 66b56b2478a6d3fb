"""Which tensors a stage treats: the user's patterns first, then what is left alone by default and why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from functools import cache

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable

_EMBEDDING = re.compile(
    r"(^|\.)(embed[^.]*|[^.]*_embed(ding)?s?|wte|wpe|relative_attention_bias)\.([^.]+\.)?weight$|(^|\.)shared\.weight$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$|^output\.weight$")
_ROUTER = re.compile(r"(^|\.)(gate|router|[^.]*_router|shared_expert_gate|gate\.wg|router\.[^.]+)\.weight$")


@dataclass(frozen=True, slots=True)
class Kept:
    """Why a tensor is carried over as it is. `asked`: by the user's patterns, or because it is no weight matrix
    at all; `--strict` refuses the others."""

    reason: str
    asked: bool = False


VECTOR = Kept("vector or scalar (biases, norms)", asked=True)


@cache
def pattern(text: str) -> re.Pattern[str]:
    """A glob over whole tensor names, or a regular expression after `re:`; both must match the whole name."""
    if not text.startswith("re:"):
        return re.compile(translate(text))
    try:
        return re.compile(text[3:])
    except re.error as error:
        raise UsageError(f"pattern '{printable(text)}' is not a regular expression: {error}") from error


def matches(name: str, patterns: Iterable[str]) -> str | None:
    """The first of the patterns that matches the name."""
    return next((text for text in patterns if pattern(text).fullmatch(name)), None)


def kept(spec: TensorSpec, verb: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> Kept | None:
    """Why the stage leaves this tensor alone; None when it is to be treated."""
    excluded = matches(spec.name, exclude)
    if excluded is not None:
        return Kept(f"excluded by {printable(excluded, 60)}", asked=True)
    included = matches(spec.name, include)
    if include and included is None:
        return Kept("not included", asked=True)
    if not spec.is_float:
        return Kept(f"{spec.dtype} is not a float that is computed with here", asked=True)
    if spec.size == 0:
        return Kept("has no elements", asked=True)
    if included is not None:
        return None
    if len(spec.shape) < 2:
        return VECTOR
    return _language_model_default(spec.name, verb)


def _language_model_default(name: str, verb: str) -> Kept | None:
    """What hurts a language model most for the least gain, and what its loaders want dense."""
    if verb == "distill":
        return None
    if _HEAD.search(name):  # before embeddings: `embed_out` is a head
        return Kept("output head (--include treats it)")
    if _EMBEDDING.search(name):
        return Kept("embedding (--include treats it)")
    if _ROUTER.search(name):
        return Kept("router (--include treats it)")
    return None
