"""What a tensor may become: an encoder, or nothing at all (`dense`).

A candidate is given by a short name, or as a stage would be:

    dense                          stays as it is
    int4g64, int8c, int4ag32       integers: bits, then groups of so many or `c` for one scale a row; `a` asymmetric
    mxfp4, nvfp4, fp8, nf4, …      any other scheme, with its defaults
    int:bits=4,group_size=48       any scheme with its options
    uniform4.5, uniform3s50        an even step whose codes take so many bits in an archive, which is needed for it;
                                   50 % of the weights at least become zero

Options that the user gives for the stage (`--method`, `--layout`, …) hold for every candidate that has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import floor
from typing import Any

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.files.layout import Container
from compressor.methods.contract import Scheme
from compressor.methods.counted_scheme import CountedScheme
from compressor.methods.options import options_of
from compressor.methods.registry import make_method, methods_of

DENSE = "dense"
_INT = re.compile(r"int([2-8])(a?)(c|g[1-9][0-9]{0,6})")
_EVEN = re.compile(r"uniform([0-9]{1,2}(?:\.[0-9]{1,4})?)(?:s([0-9]{1,2}))?")
# Bits of even steps for an archive; between them the bits of all that have one are moved together
_LADDER = (*(n / 4 for n in range(2, 24)), *(n / 2 for n in range(12, 20)), 10.0, 12.0)
_GROUPS = (128, 64, 32)
_BITS: Mapping[str, Sequence[int]] = {"mlx": (2, 3, 4, 5, 6, 8), "gptq": (4, 8)}
_INT8C = "int:bits=8,granularity=channel,layout=pack-quantized"  # `int8c` is W8A8 for loaders
# Of ggml's types those that give most for their bytes; blocks of 32 for rows that 256 does not divide
_GGML = ("q2_k", "q3_k", "iq4_xs", "q4_k", "iq4_nl", "q5_k", "q5_0", "q6_k", "q8_0")
# Beside symmetric integers, where `restore` is what reads the output: of few bits zero points and shared values pay
_OWN = (*(f"int{bits}ag{group}" for bits in (2, 3, 4) for group in _GROUPS), "codebook:entries=8")
# By compressed-tensors' loaders, mixed; and what only some of them take, for what the others do not allow
_LOADED = ("mxfp4", "int4g128", "nvfp4", "int4g64", "int4g32", "int8g128", "int4c", _INT8C)
_NARROW = ("int3g64", "int3g128", "int3c", "int2g64", "int2g128", "int2c")


@dataclass(frozen=True)
class Candidate:
    """`name` is how the user calls it; without an encoder the tensor stays dense."""

    name: str
    encoder: Scheme | None = None

    @cached_property
    def key(self) -> str:
        """The scheme with all its options, as a text: the same for candidates that store the same, however they are
        called."""
        if self.encoder is None:
            return DENSE
        said = {**self.encoder.describe()}
        scheme = said.pop("scheme")
        return f"{scheme}:" + ",".join(f"{name}={said[name]}" for name in sorted(said))

    @property
    def even(self) -> CountedScheme | None:
        """The encoder, where it is an even step, whose bits are chosen by counts."""
        return self.encoder if isinstance(self.encoder, CountedScheme) else None

    @property
    def bits(self) -> float | None:
        """What an even step that is found aims at; None of anything else."""
        return None if self.even is None else self.even.aimed_bits

    def moved(self, more: float) -> Candidate:
        """With so many more bits a weight, where it can be."""
        if self.bits is None or self.even is None or not more:
            return self
        bits = floor((self.bits + more) * 1e4) / 1e4
        zeros = f"s{self.even.sparsity * 100:.3g}" if self.even.sparsity else ""
        return Candidate(f"uniform{bits:g}{zeros}", self.even.aiming_at(bits))

    def akin(self, other: Candidate) -> bool:
        """Whether both are even steps that differ in their bits only."""
        if self.even is None or other.even is None or self.bits is None or other.bits is None:
            return False
        return self.even.aiming_at(None) == other.even.aiming_at(None)

    def size(self, spec: TensorSpec) -> int | None:
        """Stored bytes of a tensor before an archive; None where its shape does not allow the candidate."""
        if self.encoder is None:
            return spec.nbytes
        try:
            if self.encoder.skip(spec) is not None:
                return None
            scheme = self.encoder if self.even is None else self.even.in_bytes()
            decoder = scheme.decoder_for(spec)
            parts = () if decoder is None else decoder.parts(spec)
        except UsageError:
            return None
        return None if decoder is None else sum(TensorSpec("", part.dtype, part.shape).nbytes for part in parts)

    def fits(self, spec: TensorSpec, container: Container) -> bool:
        """Whether the tensor's shape allows it, and loaders of a folder would look for codes there."""
        looked_for = spec.name.endswith(".weight") or container != "folder"
        if not looked_for and self.dialect(spec):
            return False
        return self.size(spec) is not None

    def dialect(self, spec: TensorSpec) -> str:
        """The dialect whose loaders take the tensor, if it is stored so."""
        decoder = None if self.encoder is None else self.encoder.decoder_for(spec)
        return "" if decoder is None else decoder.dialect(spec)


def make_candidates(
    names: Iterable[str],
    shared: Mapping[str, Any],
    layout: str,
    container: Container,
    where: str = "",
    *,
    archived: bool = False,
) -> tuple[Candidate, ...]:
    """The candidates of these names, or without names the default ones for a layout and a container.

    `shared` are options for all that have them; a default candidate that has one without this value is left out.
    UsageError names what is none.
    """
    given, refused = tuple(names), list[UsageError]()
    found: dict[str, Candidate] = {}
    for name in given or (_even() if archived else _default(layout, container)):
        try:
            made = _made(name.strip(), shared, where, container)
        except UsageError as error:
            if given:
                raise
            refused.append(error)
            continue
        found.setdefault(made.key, made)
    if refused and set(found) <= {DENSE}:
        raise refused[-1]
    if set(found) <= {DENSE}:
        raise UsageError(f"{where}a budget needs candidates that are smaller than dense")
    return tuple(found.values())


def narrower(layout: str, container: Container, shared: Mapping[str, Any]) -> tuple[Candidate, ...]:
    """Of a folder candidates of fewer bits than the default ones, which fewer loaders take; else none."""
    if layout != "auto" or container != "folder":
        return ()
    with suppress(UsageError):  # an option of the stage that none of them has
        return make_candidates(_NARROW, shared, layout, container)
    return ()


def _default(layout: str, container: Container) -> tuple[str, ...]:
    """Every width that the layout's readers take; in a folder those of compressed-tensors' loaders."""
    if container == "gguf":
        return (*_GGML, DENSE)
    if layout == "auto" and container == "folder":
        return (*_LOADED, DENSE)
    widths = _BITS.get(layout, range(2, 9))
    rows = () if layout == "mlx" else tuple(f"int{bits}c" for bits in widths)
    more = _OWN if layout in ("auto", "compressor") else ()
    floats = ("nvfp4",) if layout == "auto" else ()
    return (*(f"int{bits}g{group}" for bits in widths for group in _GROUPS), *rows, *more, *floats, DENSE)


def _even() -> tuple[str, ...]:
    """What an archive holds best: even steps of every width, and what is left as it is."""
    return (*(f"uniform{bits:g}" for bits in _LADDER), DENSE)


def _made(name: str, shared: Mapping[str, Any], where: str, container: Container) -> Candidate:
    if name == DENSE:
        return Candidate(name)
    short, even = _INT.fullmatch(name), _EVEN.fullmatch(name)
    options: dict[str, Any]
    if even is not None:
        options, text = {"scheme": "uniform", "bits": float(even[1])}, False
        options |= {"sparsity": int(even[2]) / 100} if even[2] else {}
    elif short is not None:
        bits, asymmetric, grain = short.groups()
        options = {"scheme": "int", "bits": int(bits)}
        options |= {"symmetric": False} if asymmetric else {}
        options |= (
            {"granularity": "channel"} if grain == "c" else {"granularity": "group", "group_size": int(grain[1:])}
        )
        if container == "folder" and int(bits) not in (4, 8):  # whose `auto` is for `restore`
            options |= {"layout": shared.get("layout", "pack-quantized")}
        text = False
    else:
        scheme, _, rest = name.partition(":")
        pairs = [item.partition("=") for item in rest.split(",") if item]
        if scheme not in methods_of("quantize") or not all(key and equals for key, equals, _ in pairs):
            raise UsageError(
                f"{where}there is no candidate '{printable(name, 60)}'",
                remedy="There are dense, int2g128 to int8g32, int8c (a scale a row), int4ag32 (asymmetric), "
                "uniform4.5 and uniform3s50 (for --store archive: bits, share of zeros), "
                f"SCHEME:KEY=VALUE,... of {', '.join(methods_of('quantize'))}",
            )
        options, text = {"scheme": scheme, **{key.strip(): value.strip() for key, _, value in pairs}}, True
    mine = options_of(methods_of("quantize")[options["scheme"]])
    more = {key: value for key, value in shared.items() if key in mine and key not in options}
    if "scale_bits" in mine and {**options, **more}.get("layout") not in ("mlx", "gptq"):
        more.setdefault("scale_bits", 16)  # as a plan settles it
    if text:
        more = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in more.items()}
    method = make_method(
        "quantize", {**more, **options}, text=text, where=f"{where}candidate {printable(name, 60)}: "
    )
    assert isinstance(method, Scheme)  # noqa: S101 - quantize has no other kinds
    return Candidate(name, method)


def with_nearest(
    candidates: Sequence[Candidate],
    groups: Iterable[Sequence[TensorSpec]],
    fits: Callable[[Candidate, TensorSpec], bool],
) -> tuple[Candidate, ...]:
    """The candidates, with what is nearest to each of them in shape for tensors (of each group all in one scheme)
    that none of them `fits`."""
    found = {one.key: one for one in candidates}
    for group in groups:
        if any(one.encoder is not None and all(fits(one, spec) for spec in group) for one in candidates):
            continue
        for one in candidates:
            for spec in group:
                near = _nearest(one, spec)
                if near is not None and all(fits(near, other) for other in group):
                    found.setdefault(near.key, near)
    return tuple(found.values())


def _nearest(one: Candidate, spec: TensorSpec) -> Candidate | None:
    """What the scheme of a candidate takes for a tensor whose shape contradicts its options."""
    near = None if one.encoder is None else one.encoder.fallback(spec)
    if near is None or one.encoder is None:
        return None
    before = one.encoder.describe()
    said = ",".join(f"{key}={value}" for key, value in near[0].describe().items() if before.get(key) != value)
    return Candidate(f"{one.name} with {said}", near[0])


def check_of_use(
    candidates: Iterable[Candidate], specs: Sequence[TensorSpec], container: Container, *, fallback: bool
) -> None:
    """UsageError where the shape of no tensor allows a candidate that the user named or, with `fallback`, what is
    nearest to it."""
    for one in candidates:
        if one.encoder is None or not specs or any(one.fits(spec, container) for spec in specs):
            continue
        nearest = [(near, spec) for spec in specs if (near := _nearest(one, spec)) is not None]
        helps = any(near.fits(spec, container) for near, spec in nearest)
        if helps and fallback:
            continue
        largest = max(specs, key=lambda spec: spec.size)
        raise UsageError(
            f"candidate {printable(one.name, 60)} fits none of the tensors that are decided on; "
            f"'{printable(largest.name, 60)}' is {'×'.join(map(str, largest.shape))}",
            remedy="Leave it out"
            + (", or give --fallback, which takes the nearest that fits" if helps else "")
            + ", or --allow-unmatched",
        )


def check_readable(candidate: Candidate, spec: TensorSpec, *, archived: bool = False) -> None:
    """UsageError where a candidate cannot be measured block by block, in one pass."""
    encoder, even = candidate.encoder, candidate.even
    if even is not None:
        if not archived:
            raise UsageError(
                f"candidate {printable(candidate.name, 60)} takes a byte or two a weight unless it is coded",
                remedy="Give --store archive, or leave it out",
            )
        if candidate.bits is None or not even.one_step_each:
            raise UsageError(
                f"candidate {printable(candidate.name, 60)}: a budget finds one step for each tensor by its bits",
                remedy="Leave out step, step_rows and scope",
            )
    elif encoder is not None and encoder.for_block(spec, 1.0) is None:
        raise UsageError(
            f"candidate {printable(candidate.name, 60)} looks at a whole tensor before it can encode any of it, "
            "and a survey reads each tensor once",
            remedy="Leave it out, or take one with a scale a group or row",
        )
