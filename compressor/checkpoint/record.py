"""What we write about ourselves into a file's `__metadata__`, and how `restore` reads it back.

Key `compressor`, a JSON object:

    {"version": 1, "tool": "0.1.0",
     "plan": HEX, "source": {"sha256": HEX},                     the plan's fingerprint, the input's hash
     "stages": [{…}, …],                                         what was done, in order
     "base": HEX,                                                only where tensors are differences from a base's
     "methods": [{"kind": "quantize", "scheme": "int", …}, …],   only where parts are stored; a sparse layout is
                                                                 {"kind": "store", "layout": …, "of": {…}}:
     "tensors": {NAME: [DTYPE, SHAPE, index into methods], …}}   the original tensors

It holds no clock, host or path, so equal work gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.core.errors import CompressorError, InputError
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.version import __version__
from compressor.files.identity import Identity
from compressor.files.ours import RECORD
from compressor.files.strict_json import parse_object
from compressor.methods.contract import Decoder, Indexed, Scheme
from compressor.methods.registry import make_method, methods_of

VERSION = 1
NO_PLAN = "0" * 64  # as long as a fingerprint, which is of all offsets and so comes after the header's length
_NO_BASE = "0" * 64  # likewise of the base, which a run reads


@dataclass(frozen=True, slots=True)
class Record:
    """What a file says of itself: earlier stages, and the tensors it stores as parts with what reads these; the
    fingerprint of the `plan` that made it ("" where nothing was done), and what its source is known by; and by what
    the `base` is known that tensors are differences from ("" where none is; see `checkpoint/delta_base.py`)."""

    stages: tuple[Mapping[str, Any], ...] = ()
    tensors: tuple[tuple[TensorSpec, Decoder | Indexed], ...] = ()
    plan: str = ""
    made_of: Identity | None = None
    base: str = ""


def to_metadata(
    stages: Sequence[Mapping[str, Any]],
    stored: Sequence[tuple[TensorSpec, Decoder]],
    source: Identity | None = None,
    plan: str = NO_PLAN,
    **more: Any,
) -> dict[str, str]:
    """The metadata entry for a file whose tensors went through `stages` and that stores these as parts. `source` is
    what the input is known by, where this run changed something, and `plan` the fingerprint of what it did; `more`
    are entries for containers that need them."""
    record: dict[str, Any] = {"version": VERSION, "tool": __version__}
    if source is not None:
        record |= {"plan": plan, "source": dict([source])}
    record |= {"stages": [dict(stage) for stage in stages], **more}
    if any(decoder.on_base for _, decoder in stored):
        record["base"] = _NO_BASE
    if stored:
        methods: list[dict[str, Any]] = []
        index: dict[Decoder, int] = {}
        for _, decoder in stored:
            if decoder not in index:
                index[decoder] = len(methods)
                methods.append({"kind": decoder.verb, **decoder.describe()})
        record["methods"] = methods
        record["tensors"] = {spec.name: [spec.dtype, list(spec.shape), index[one]] for spec, one in stored}
    return {RECORD: json.dumps(record, separators=(",", ":"), ensure_ascii=False)}


def with_plan(metadata: Mapping[str, str], fingerprint: str) -> dict[str, str]:
    """A file's metadata whose record has this fingerprint where there was none yet."""
    before, after = (f'"plan":"{digits}"' for digits in (NO_PLAN, fingerprint))
    return {key: text.replace(before, after, 1) if key == RECORD else text for key, text in metadata.items()}


def with_base(metadata: Mapping[str, str], fingerprint: str) -> dict[str, str]:
    """A file's metadata whose record says by what the base is known, where it has one."""
    before, after = (f'"base":"{digits}"' for digits in (_NO_BASE, fingerprint))
    return {key: text.replace(before, after, 1) if key == RECORD else text for key, text in metadata.items()}


def from_metadata(metadata: Mapping[str, str], path: str) -> Record:
    """Read the entry back; InputError when it is damaged or of a newer version. No entry: an empty record."""
    if RECORD not in metadata:
        return Record()
    try:
        return _parse(parse_object(metadata[RECORD].encode(), path))
    except InputError:
        raise
    except CompressorError as error:
        raise _damaged(path, error.reason) from error
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise _damaged(path, "it lacks what it should say") from error


def _parse(record: dict[str, Any]) -> Record:
    if record["version"] != VERSION:
        raise CompressorError(
            f"version {str(record['version'])[:20]!r} is not {VERSION}: written by a newer compressor?"
        )
    schemes = [_scheme(method) for method in record.get("methods", [])]
    stored = []
    for name, (dtype, shape, index) in record.get("tensors", {}).items():
        if dtype not in DTYPES or not DTYPES[dtype].compute or type(index) is not int or index < 0:
            raise ValueError(name)
        if len(shape) > 64 or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
            raise ValueError(name)
        if 0 in shape and max(shape) >= 2**31:  # rows without end that take no byte
            raise ValueError(name)
        spec = TensorSpec(name, dtype, tuple(shape))
        stored.append((spec, _reader(schemes[index], spec)))
    stages = record.get("stages", [])
    if not all(isinstance(stage, dict) and isinstance(stage.get("kind"), str) for stage in stages):
        raise ValueError("stages")
    plan, source, base = record.get("plan", ""), record.get("source", {}), record.get("base", "")
    if not all(isinstance(text, str) for text in (plan, base, *source, *source.values())) or len(source) > 1:
        raise ValueError("source")
    return Record(tuple(stages), tuple(stored), plan, next(iter(source.items()), None), base)


def _reader(scheme: Scheme, spec: TensorSpec) -> Decoder | Indexed:
    """What reads a tensor that was stored by this scheme. ValueError where it does not say all that it takes."""
    if isinstance(scheme, Indexed):
        return scheme
    decoder = scheme.decoder_for(spec)
    if decoder is None:  # what is stored was counted when it was written
        raise ValueError(scheme.id)
    return decoder


def _scheme(described: dict[str, Any]) -> Scheme:
    if described["kind"] == "store":
        return _sparse(**{key: value for key, value in described.items() if key != "kind"})
    options = {key: value for key, value in described.items() if key != "kind"}
    method = make_method(described["kind"], options, where="method ")
    if not isinstance(method, Scheme):
        raise ValueError(described["kind"])
    return method


def _sparse(layout: str, of: dict[str, Any] | None = None) -> Scheme:
    """A sparse layout of floats, or of a scheme's codes."""
    if of is not None and of["kind"] == "store":
        raise ValueError(layout)
    made = methods_of("store")[layout](*(() if of is None else (_scheme(of),)))
    if not isinstance(made, Scheme):
        raise ValueError(layout)
    return made


def _damaged(path: str, reason: str) -> InputError:
    return InputError(f"its `{RECORD}` metadata cannot be used: {reason}", file=path)
