"""What the loaders of a folder take as codes of a tensor, beside what its layout holds: the table in
`architectures/loaders.py`, held against a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from compressor.architectures.decoder_layers import has_layers, not_in_a_layer
from compressor.architectures.fused_layers import experts_module, rows_of_parts
from compressor.architectures.loaders import READERS, Layer, Limit, Loader, layer_of, limits_of, readers_of
from compressor.architectures.model_types import model_types
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import CompressorError, UsageError, raise_all
from compressor.core.same import Same
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.engine.plan.plan import Job, dense_part
from compressor.engine.plan.request import PlanRequest
from compressor.files.layout import Container
from compressor.methods.contract import Decoder, Scheme
from compressor.methods.declared import declared

Config = Mapping[str, Any] | None
Stored = Sequence[tuple[TensorSpec, Decoder]]
_OWN = "compressor"
_BNB_ROWS, _BNB_COLUMNS = 32, 64  # what bitsandbytes' kernels for processors work on


def check_matrix(scheme: Scheme, spec: TensorSpec) -> None:
    """UsageError for a tensor that is no matrix, where the scheme stores matrices for loaders: in a layout of our
    own it would make the whole folder one that none of them takes."""
    if len(spec.shape) == 2 or scheme.named_layout == _OWN:
        return
    as_matrix = TensorSpec(spec.name, spec.dtype, spec.matrix)
    decoder = scheme.decoder_for(as_matrix)
    if decoder is not None and decoder.dialect(as_matrix):
        raise UsageError(
            f"has shape {list(spec.shape)}: loaders take codes of matrices only, and would refuse the folder",
            tensor=spec.name,
            remedy="Leave it out of --include or --exclude it, or use --layout compressor, which `restore` reads",
        )


def left_dense(scheme: Scheme, spec: TensorSpec, checkpoint: Checkpoint, loader: Loader | None) -> str:
    """Why a matrix stays dense, since the loader that is named, or else every one, makes no module for its codes
    and takes the rest of the model; "" where that is not so. A file without any list of layers is no model of
    GPTQ's, and is not judged."""
    decoder = scheme.decoder_for(spec)
    dialect = "" if decoder is None else declared(decoder, spec).dialect
    if decoder is None or not dialect:
        return ""
    if dialect == "gptq" and has_layers(checkpoint.tensors):
        return not_in_a_layer(spec.name) or _of_part_words(spec, decoder)
    config = checkpoint.source.config
    if config is None:
        return ""
    readers = (loader,) if loader is not None else tuple(readers_of(dialect, config))
    reasons, form = [], form_of(spec, decoder, config)
    for reader in readers:
        limits = limits_of(reader, config, spec.name, form)
        dense = (one for one in limits if one.dense and (loader is not None or not one.hint))
        limit = next(dense, None)
        reasons.append("" if limit is None else f"{READERS[reader].name} {limit.why}")
    return reasons[0] if reasons and all(reasons) else ""


def _of_part_words(spec: TensorSpec, decoder: Decoder) -> str:
    """Why a layer is too narrow for GPTQ's words of 32 bits, "" where it fills whole ones both ways. Such layers
    are a model's smallest, a row or four for each head."""
    codes = 32 // int((decoder.config(spec) or {})["bits"])
    shape = list(spec.matrix)
    return (
        "" if not any(size % codes for size in shape) else f"GPTQ's words hold {codes} codes, not a part of {shape}"
    )


def not_taken(loader: Loader | None, spec: TensorSpec, decoder: Decoder, config: Config, *, experts: bool) -> str:
    """Why the loader that is named, or else any that reads such codes, takes none of a tensor in a folder; "" where
    one does. Of a model with `experts` some are not taken beside these."""
    dialect, form = declared(decoder, spec).dialect, form_of(spec, decoder, config)
    if loader is not None and dialect not in READERS[loader].dialects:
        return f"{READERS[loader].name} reads no {decoder.label} as it would be stored here"
    reasons = []
    for reader in (loader,) if loader is not None else tuple(readers_of(dialect, config)):
        limits = limits_of(reader, config, spec.name, form, experts=experts)
        limit = next((one for one in limits if loader is not None or not one.hint), None)
        reasons.append("" if limit is None else f"{READERS[reader].name} {limit.why}")
    return reasons[0] if reasons and all(reasons) else ""


def form_of(spec: TensorSpec, decoder: Decoder, config: Config) -> str:
    """What the table calls the form of a tensor's codes: `pack-quantized int4 group asymmetric`; the dialect alone
    where one form is all that it has, "" for a layout of our own."""
    form = _form_of(Same(decoder), spec.dtype, spec.shape)
    if " block" in form and " rows" not in form:
        high = _block_rows(declared(decoder, spec).config or {})
        if any(rows % high for rows in rows_of_parts(config, spec.name, spec.matrix[0])):
            return f"{form} uneven parts"
    return form


def _block_rows(said: Mapping[str, Any]) -> int:
    return int((said["weights"].get("block_structure") or (1, 1))[0])


@lru_cache(maxsize=1024)  # a model has few kinds of layers
def _form_of(this: Same[Decoder], dtype: str, shape: tuple[int, ...]) -> str:
    spec = TensorSpec("", dtype, shape)
    config, _, dialect = declared(this.held, spec)
    said, (rows, columns) = config or {}, spec.matrix
    if dialect == "bitsandbytes":
        return "nf4 odd" if rows % _BNB_ROWS or columns % _BNB_COLUMNS else "nf4"
    if dialect != "compressed-tensors":
        return dialect
    weights = said["weights"]
    high, wide = weights.get("block_structure") or (1, 1)
    words = [said["format"], f"{weights['type']}{weights['num_bits']}", weights["strategy"]]
    words += ["asymmetric"] if not weights["symmetric"] else []
    uneven = [axis for axis, left in (("rows", rows % high), ("columns", columns % wide)) if left]
    words += ["uneven", *uneven] if uneven else []
    return " ".join(words)


# ---- a plan --------------------------------------------------------------------------------------------


_PLAIN = "--scheme int --layout auto --bits 4, or --bits 8"  # which every loader of folders reads


@dataclass(frozen=True)
class _Model:
    """What is stored of a model as codes, its config.json, and whether it has experts, dense ones too."""

    stored: Stored
    config: Config
    experts: bool
    types: tuple[str, ...]
    readers: dict[str, tuple[Loader, ...]] = field(default_factory=dict)  # of dialects, as far as asked for

    def limit(self, loader: Loader, spec: TensorSpec, decoder: Decoder) -> Limit | None:
        """The first thing that keeps a loader from taking a tensor; None where it takes it."""
        form = form_of(spec, decoder, self.config)
        found = limits_of(loader, self.config, spec.name, form, experts=self.experts, types=self.types)
        return next(found, None)

    def said(self, spec: TensorSpec, decoder: Decoder) -> Iterator[tuple[Loader, Limit | None]]:
        """What each loader that reads the dialect says of a tensor."""
        dialect = declared(decoder, spec).dialect
        if dialect not in self.readers:
            self.readers[dialect] = tuple(readers_of(dialect, self.config))
        for loader in self.readers[dialect]:
            yield loader, self.limit(loader, spec, decoder)

    def what(self, tensors: Stored) -> str:
        """`int8 of experts`: what codes of which layers they are."""
        labels = sorted({decoder.label for _, decoder in tensors})
        layers = sorted({layer_of(self.config, spec.name).value for spec, _ in tensors})
        return f"{', '.join(labels)} of {' and '.join(layers)}"

    def way_on(self, limit: Limit, tensors: Stored) -> str:
        """What to do about codes that are not taken."""
        instead = limit.both if limit.both and self.both else limit.instead
        ways = [f"Use {instead}"] if instead else []
        layers = {layer_of(self.config, spec.name) for spec, _ in tensors}
        if layers == {Layer.EXPERT} and not limit.beside:
            pattern = "*.experts.*" if "." in tensors[0][0].name.split("experts.")[0] else "experts.*"
            ways.append(f"leave them dense by --exclude '{pattern}'")
        plain = "Leave them out of --include, or use --store dense"
        return (", or ".join(ways) or plain).replace("leave", "Leave", not instead)

    @property
    def both(self) -> bool:
        """Whether embeddings have codes in a model with experts."""
        return self.experts and any(layer_of(self.config, spec.name) is Layer.EMBEDDING for spec, _ in self.stored)

    @property
    def schemes_of_experts(self) -> int:
        """In how many schemes experts are stored."""
        experts = (one for one in self.stored if experts_module(one[0].name))
        return len({declared(decoder, spec).text for spec, decoder in experts})


def _model(jobs: Sequence[Job], config: Config) -> _Model:
    stored = [(job.spec, job.encoder) for job in jobs if job.encoder is not None]
    experts = any(experts_module(job.spec.name) is not None for job in jobs)
    return _Model(stored, config, experts, model_types(config))


def check_loader(jobs: Sequence[Job], request: PlanRequest) -> None:
    """What these jobs store must be something that the loader takes that the user names, or, of a model's folder,
    any of them. UsageError with the nearest thing that it takes."""
    config = request.checkpoint.source.config
    model = _model(jobs, config)
    if request.loader is not None:
        _check_container(request.loader, request.container, config)
        raise_all([*_foreign(jobs, request), *_refusals(model, request.loader)])
    elif request.container == "folder" and config is not None:
        raise_all(list(_taken_by_none(model)))


def _check_container(loader: Loader, container: Container, config: Config) -> None:
    reader = READERS[loader]
    if container != reader.container:
        remedies = {
            "folder": "Write a folder: end OUTPUT without a suffix",
            "gguf": "End OUTPUT in .gguf, for which quantize has --preset q4_k_m and schemes of ggml's",
        }
        raise UsageError(
            f"--for {loader}: it loads no {'folder' if container == 'folder' else f'.{container}'}",
            remedy=remedies[reader.container],
        )
    lacking = set(reader.lacks).intersection(model_types(config)[:1])
    if lacking:
        raise UsageError(
            f"--for {loader}: {reader.name} has no {printable(lacking.pop(), 40)}",
            remedy="Use --for transformers, which has it, or leave --for out",
        )
    if reader.container == "folder" and config is None:
        raise UsageError(
            f"--for {loader}: it loads folders with a config.json, and the input has none",
            remedy="Give the model's folder, or leave --for out",
        )


def _foreign(jobs: Sequence[Job], request: PlanRequest) -> Iterator[CompressorError]:
    """Codes in layouts that the loader does not read."""
    assert request.loader is not None  # noqa: S101 - who calls looked
    reader = READERS[request.loader]
    found: dict[str, list[tuple[TensorSpec, Decoder]]] = {}
    for job in jobs:
        encoder = job.encoder
        if (
            encoder is None
            or declared(encoder, job.spec).dialect in reader.dialects
            or job.parts == (dense_part(job.spec),)
        ):
            continue
        if encoder.ggml is not None and reader.container == "gguf":
            continue
        asked = request.recipe.stages[job.steps[-1].stage - len(request.recipe.cuts)].method.verb
        sparse = job.steps[-1].method.verb == "store"
        way_on = "--store dense" if asked != "quantize" else "--store packed" if sparse else _PLAIN
        found.setdefault(way_on, []).append((job.spec, encoder))
    for way_on, tensors in found.items():
        yield UsageError(
            f"--for {request.loader}: {reader.name} reads no {tensors[0][1].label} as it would be stored here: "
            f"{_named(tensors)}",
            remedy=f"Use {way_on}",
        )


def _refusals(model: _Model, loader: Loader) -> Iterator[CompressorError]:
    """What keeps a loader from taking codes that lie in layouts of its own, a problem for each reason."""
    reader = READERS[loader]
    limited: dict[Limit, list[tuple[TensorSpec, Decoder]]] = {}
    for spec, decoder in model.stored:
        limit = model.limit(loader, spec, decoder) if declared(decoder, spec).dialect in reader.dialects else None
        if limit is not None:
            limited.setdefault(limit, []).append((spec, decoder))
    for limit, tensors in limited.items():
        yield UsageError(
            f"--for {loader}: {model.what(tensors)}: {reader.name} {limit.why}: {_named(tensors)}",
            remedy=model.way_on(limit, tensors),
        )
    if reader.alike and model.schemes_of_experts > 1:
        yield UsageError(
            f"--for {loader}: experts of some layers have another scheme than those of others, and {reader.name} "
            "computes with other weights then",
            remedy="Give them one scheme, by --set '*.experts.*:…'",
        )


def _taken_by_none(model: _Model) -> Iterator[CompressorError]:
    """Codes for loaders that none of them takes."""
    found: dict[Limit, list[tuple[TensorSpec, Decoder]]] = {}
    for spec, decoder in model.stored:
        limits = [limit for _, limit in model.said(spec, decoder)]
        if limits and all(limit is not None and not limit.hint for limit in limits):
            found.setdefault(next(filter(None, limits)), []).append((spec, decoder))
    for limit, tensors in found.items():
        yield UsageError(
            f"{model.what(tensors)}: no loader takes such a folder: {_named(tensors)}",
            remedy=model.way_on(limit, tensors),
        )


def loader_notes(jobs: Sequence[Job], config: Config) -> Iterator[str]:
    """Which loaders do not take some of the codes, what they do with them, and who takes them."""
    model = _model(jobs, config)
    found: dict[tuple[Loader, Limit], list[tuple[TensorSpec, Decoder]]] = {}
    takers: dict[Limit, list[str]] = {}
    for spec, decoder in model.stored:
        said = list(model.said(spec, decoder))
        for loader, limit in said:
            if limit is not None:
                found.setdefault((loader, limit), []).append((spec, decoder))
                takers[limit] = [READERS[one].name for one, other in said if other is None]
    for (loader, limit), tensors in found.items():
        also = f"; {' and '.join(takers[limit])} takes it" if takers[limit] else ""
        better = f"; for {loader}: {limit.instead}" if limit.instead else ""
        yield f"{model.what(tensors)}: {READERS[loader].name} {limit.why}{also}{better}"
    if model.schemes_of_experts > 1:
        yield (
            "experts of some layers have another scheme than those of others: vLLM loads that, and "
            f"{READERS['transformers'].name} computes with other weights; one scheme for all is right in both"
        )


def _named(tensors: Stored) -> str:
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return f"'{printable(tensors[0][0].name, 100)}'{more}"
