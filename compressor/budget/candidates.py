"""What a tensor may become: an encoder, or nothing at all (`dense`).

A candidate is given by a short name, or as a stage would be:

    dense                          stays as it is
    int4g64, int8c, int4ag32       integers: bits, then groups of so many or `c` for one scale a row; `a` asymmetric
    mxfp4, nvfp4, fp8, nf4, …      any other scheme, with its defaults
    int:bits=4,group_size=48       any scheme with its options

Options that the user gives for the stage (`--method`, `--layout`, …) hold for every candidate that has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from compressor.errors import UsageError
from compressor.method import Encoder, methods_of, options_of
from compressor.options import make_method
from compressor.plan import Container
from compressor.tensor import TensorSpec
from compressor.text import printable

DENSE = "dense"
_INT = re.compile(r"int([2-8])(a?)(c|g[1-9][0-9]{0,6})")
_GROUPS = (128, 64, 32)
_BITS: Mapping[str, Sequence[int]] = {"mlx": (2, 3, 4, 5, 6, 8), "gptq": (4, 8), "pack-quantized": (4, 8)}
_LOADED = ("mxfp4", "int4g128", "nvfp4", "int4g64", "int4g32", "int8g128")  # by compressed-tensors' loaders, mixed


@dataclass(frozen=True)
class Candidate:
    """`name` is how the user calls it; without an encoder the tensor stays dense."""

    name: str
    encoder: Encoder | None = None

    @cached_property
    def key(self) -> str:
        """The same for the same numbers, however it was called: scheme and all options."""
        if self.encoder is None:
            return DENSE
        said = {**self.encoder.describe()}
        scheme = said.pop("scheme")
        return f"{scheme}:" + ",".join(f"{name}={said[name]}" for name in sorted(said))

    def size(self, spec: TensorSpec) -> int | None:
        """Stored bytes of a tensor; None where its shape does not allow the candidate."""
        if self.encoder is None:
            return spec.nbytes
        try:
            if self.encoder.skip(spec) is not None:
                return None
            parts = self.encoder.parts(spec)
        except UsageError:
            return None
        return sum(TensorSpec("", part.dtype, part.shape).nbytes for part in parts)

    def fits(self, spec: TensorSpec, container: Container) -> bool:
        """Whether the tensor's shape allows it, and loaders of a folder would look for codes there."""
        looked_for = spec.name.endswith(".weight") or container != "folder"
        if self.encoder is not None and not looked_for and self.encoder.dialect(spec):
            return False
        return self.size(spec) is not None

    def shared(self, spec: TensorSpec) -> bool:
        """Whether loaders want one scheme for what they fuse with this tensor, if it is stored so."""
        return self.encoder is not None and self.encoder.dialect(spec) == "compressed-tensors"


def make_candidates(
    names: Iterable[str], shared: Mapping[str, Any], layout: str, container: Container, where: str = ""
) -> tuple[Candidate, ...]:
    """The candidates of these names, or without names the default ones for a layout and a container.

    `shared` are options for all that have them. UsageError names what is none.
    """
    names = tuple(names) or _default(layout, container)
    found: dict[str, Candidate] = {}
    for name in names:
        made = _made(name.strip(), shared, where)
        found.setdefault(made.key, made)
    if set(found) <= {DENSE}:
        raise UsageError(f"{where}a budget needs candidates that are smaller than dense")
    return tuple(found.values())


def _default(layout: str, container: Container) -> tuple[str, ...]:
    """Every width that the layout's readers take; in a folder those of compressed-tensors' loaders."""
    if layout == "auto" and container == "folder":
        return (*_LOADED, DENSE)
    widths = _BITS.get(layout, range(2, 9))
    return (*(f"int{bits}g{group}" for bits in widths for group in _GROUPS), DENSE)


def _made(name: str, shared: Mapping[str, Any], where: str) -> Candidate:
    if name == DENSE:
        return Candidate(name)
    short = _INT.fullmatch(name)
    if short is not None:
        bits, asymmetric, grain = short.groups()
        options: dict[str, Any] = {"scheme": "int", "bits": int(bits)}
        options |= {"symmetric": False} if asymmetric else {}
        options |= (
            {"granularity": "channel"} if grain == "c" else {"granularity": "group", "group_size": int(grain[1:])}
        )
        text = False
    else:
        scheme, _, rest = name.partition(":")
        pairs = [item.partition("=") for item in rest.split(",") if item]
        if scheme not in methods_of("quantize") or not all(key and equals for key, equals, _ in pairs):
            raise UsageError(
                f"{where}there is no candidate '{printable(name, 60)}'",
                remedy="There are dense, int2g128 to int8g32, int8c (a scale a row), int4ag32 (asymmetric), "
                f"SCHEME:KEY=VALUE,... of {', '.join(methods_of('quantize'))}",
            )
        options, text = {"scheme": scheme, **{key.strip(): value.strip() for key, _, value in pairs}}, True
    mine = options_of(methods_of("quantize")[options["scheme"]])
    more = {key: value for key, value in shared.items() if key in mine and key not in options}
    if text:
        more = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in more.items()}
    method = make_method(
        "quantize", {**more, **options}, text=text, where=f"{where}candidate {printable(name, 60)}: "
    )
    assert isinstance(method, Encoder)  # noqa: S101 - quantize has no other kinds
    return Candidate(name, method)


def check_readable(candidate: Candidate, spec: TensorSpec) -> None:
    """UsageError where a candidate cannot be measured block by block, in one pass."""
    encoder = candidate.encoder
    if encoder is not None and for_block(encoder, spec, 1.0).survey([spec]) is not None:
        raise UsageError(
            f"candidate {printable(candidate.name, 60)} looks at a whole tensor before it can encode any of it, "
            "and a survey reads each tensor once",
            remedy="Leave it out, or take one with a scale a group or row",
        )


def for_block(encoder: Encoder, spec: TensorSpec, largest: float) -> Encoder:
    """The encoder for a block whose largest magnitude is this. nvfp4's scale for the whole tensor is only the unit
    of its block scales, floats themselves: that of the block's largest weight gives nearly the same error."""
    if encoder.id == "nvfp4" and getattr(encoder, "found", "") is None:
        return replace(encoder, found=((spec.name, largest),))  # type: ignore[call-arg]
    return encoder
