"""What a stranger could do to a file, and what must then happen: the property of all fuzz targets.

A model is changed in its structure (dtypes, shapes, names, numbers of its JSON) and then perhaps in its bytes. A
command that is given it ends with 0, 1, 2, 3 or 4, says why in lines of its own, takes memory in proportion to the
file, leaves nothing beside its output, and what it writes can be read again.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from support.fault_injection import damaged, invoke, is_one_line, strays
from support.small_models import BITS, Model, Stored

# ---- changes ---------------------------------------------------------------------------------------------------

NUMBERS: tuple[Any, ...] = (0, 1, -1, 2, 3, 5, 31, 64, 4096, 2**31, 2**40, 2**62, 2**63, 2**64, 10**400)
STRANGE: tuple[Any, ...] = (
    *NUMBERS,
    *(None, True, False, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "a", "4", "int", "\ud800", "\x1b[31m"),
    *([], {}, [[]], [None], [2**62, 2**62], [0, 2**40], [1, "a"], {"a": 1}, [1] * 70, "F32", "nf4", "channel"),
)
SIZES = (0, 1, 2, 3, 7, 16, 32, 33, 64, 2**20, 2**31, 2**40, 2**62)


@dataclass(frozen=True)
class Retype:
    """Another dtype, its bytes as they are or as many as the dtype takes."""

    tensor: int
    dtype: str
    fill: bool

    def of(self, model: Model) -> Model:
        return _with(model, self.tensor, lambda one: replace(one, dtype=self.dtype), fill=self.fill)


@dataclass(frozen=True)
class Reshape:
    """Another shape: one axis changed, an axis more or fewer, or none at all."""

    tensor: int
    how: str
    axis: int
    size: int
    fill: bool

    def of(self, model: Model) -> Model:
        return _with(model, self.tensor, self._reshaped, fill=self.fill)

    def _reshaped(self, one: Stored) -> Stored:
        shape = list(one.shape)
        axis = self.axis % max(len(shape), 1)
        if self.how == "more" or not shape:
            shape.insert(axis, self.size)
        elif self.how == "fewer":
            del shape[axis]
        elif self.how == "turned":
            shape.reverse()
        elif self.how == "flat":
            shape = [len(one.data) * 8 // BITS.get(one.dtype, 8)]
        else:
            shape[axis] = self.size
        return replace(one, shape=tuple(shape))


@dataclass(frozen=True)
class Rename:
    """A name dropped, doubled under another suffix, or moved there."""

    tensor: int
    how: str
    suffix: str

    def of(self, model: Model) -> Model:
        name = _name(model, self.tensor)
        tensors = dict(model.tensors)
        one = tensors[name] if self.how == "doubled" else tensors.pop(name)
        if self.how != "dropped":
            tensors[f"{name.rpartition('.')[0]}{self.suffix}"] = one
        return replace(model, tensors=tensors)


@dataclass(frozen=True)
class Refill:
    """Other bytes: all the same, or some of them."""

    tensor: int
    byte: int
    step: int

    def of(self, model: Model) -> Model:
        def filled(one: Stored) -> Stored:
            raw = bytearray(one.data)
            raw[:: self.step] = bytes([self.byte]) * len(raw[:: self.step])
            return replace(one, data=bytes(raw))

        return _with(model, self.tensor, filled)


@dataclass(frozen=True)
class Rewrite:
    """A value of the JSON that describes it (config.json and its like, our own record) exchanged or dropped."""

    place: int
    value: Any = field(hash=False)
    drop: bool

    def of(self, model: Model) -> Model:
        texts = copy.deepcopy(dict(model.texts))
        record = json.loads(model.metadata["compressor"]) if "compressor" in model.metadata else None
        places = list(_places(texts))[len(texts) :] + list(_places({"": record}))[1:]
        if not places:
            return model
        holder, key = places[self.place % len(places)]
        if self.drop:
            del holder[key]
        else:
            holder[key] = self.value
        metadata = dict(model.metadata)
        if record is not None:
            metadata["compressor"] = json.dumps(record)
        return replace(model, texts=texts, metadata=metadata)


def _places(found: Any) -> Iterator[tuple[Any, Any]]:
    """Every place within JSON, the outer ones first."""
    keys = list(found) if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ()
    yield from ((found, key) for key in keys)
    for key in keys:
        yield from _places(found[key])


def _name(model: Model, number: int) -> str:
    names = list(model.tensors)
    return names[number % len(names)]


def _with(model: Model, number: int, change: Callable[[Stored], Stored], *, fill: bool = False) -> Model:
    if not model.tensors:
        return model
    name = _name(model, number)
    one = change(model.tensors[name])
    return replace(model, tensors={**model.tensors, name: one.filled if fill else one})


_SUFFIXES = (
    *(".weight", ".weight_scale", ".weight_packed", ".weight_zero_point", ".weight_shape", ".weight_global_scale"),
    *(".scales", ".biases", ".qweight", ".qzeros", ".g_idx", ".weight_scale_inv", ".weight_scale_2", ".scale"),
    *(".weight.codes", ".weight.scale", ".weight.left", ".weight.right", ".SCB", ".weight.absmax", ".bias", ""),
    *(".weight.bitmask", ".weight.compressed", ".weight.rows", "_blocks", "_scales", ".comfy_quant"),
)
_tensors = st.integers(0, 30)
CHANGES = st.one_of(
    st.builds(Retype, _tensors, st.sampled_from([*BITS]), st.booleans()),
    st.builds(Retype, _tensors, st.sampled_from([*BITS]), st.just(True)),
    st.builds(
        Reshape,
        _tensors,
        st.sampled_from(["size", "more", "fewer", "turned", "flat"]),
        st.integers(0, 3),
        st.sampled_from(SIZES),
        st.sampled_from([True, True, False]),
    ),
    st.builds(Rename, _tensors, st.sampled_from(["dropped", "doubled", "moved"]), st.sampled_from(_SUFFIXES)),
    st.builds(Refill, _tensors, st.sampled_from([0, 1, 127, 128, 255]), st.sampled_from([1, 2, 7])),
    st.builds(Rewrite, st.integers(0, 200), st.sampled_from(STRANGE), st.booleans()),
    st.builds(Rewrite, st.integers(0, 200), st.sampled_from(STRANGE), st.just(False)),
)


@dataclass(frozen=True)
class Damage:
    """Bytes flipped, cut, spliced or exchanged, by a seed; None: none."""

    seed: int | None

    def of(self, raw: bytes) -> bytes:
        return raw if self.seed is None else damaged(raw, random.Random(self.seed))


DAMAGE = st.builds(Damage, st.one_of(st.none(), st.none(), st.integers(0, 2**32)))
HURT = st.builds(Damage, st.integers(0, 2**32))

# ---- what must happen ------------------------------------------------------------------------------------------

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("restore",),
    ("inspect", "--stats"),
    ("inspect", "--format", "json"),
    ("prune", "--sparsity", "0.5"),
    ("prune", "--sparsity", "0.5", "--scope", "global", "--non-finite", "keep"),
    ("quantize", "--bits", "8", "--requantize"),
    ("quantize", "--bits", "4", "--group-size", "32", "--fallback", "--requantize"),
    ("compare",),
)
STRUCTURES: tuple[tuple[str, ...], ...] = (
    *(("prune", "--structure", kind, "--fraction", "0.5") for kind in ("neurons", "heads", "hidden")),
    ("distill", "--method", "depth", "--count", "1"),
    ("distill", "--method", "subclone", "--shape", "hidden=16,intermediate=32"),
)
LINUX = sys.platform == "linux"
MEMORY = 192 << 20  # bytes that a run may take beyond what the process has, whatever the file
GROWTH = 40  # and for each byte of the file
SECONDS = 60  # of processor time that a run of a small file may take: beyond it hangs


class Hangs(BaseException):
    """A run that does not end; no `Exception`, so that nobody takes it for a bug that is answered."""


def _hangs(*_: Any) -> None:
    raise Hangs


def _held() -> int:
    """Bytes of address space that this process has; 0 where nothing tells."""
    if not LINUX:
        return 0
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def bounded(size: int) -> Iterator[None]:
    """Room for a run on a file of this many bytes, and so much time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _held() + MEMORY + GROWTH * size
    least = [one for one in (soft, hard) if one != resource.RLIM_INFINITY]
    before = signal.signal(signal.SIGPROF, _hangs)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    if LINUX:
        resource.setrlimit(resource.RLIMIT_AS, (min([most, *least]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def size_of(path: Path) -> int:
    """The bytes of a file or of a folder's files."""
    return sum(one.stat().st_size for one in path.rglob("*")) if path.is_dir() else path.stat().st_size


def check_command(path: Path, command: Sequence[str], *, workers: bool = True, name: str = "") -> int:
    """Run a command on an input, which may be anything; its exit code. An AssertionError tells what went wrong.
    `name`: what the output is called, if not as the input's kind suggests."""
    before = sorted(os.listdir(path.parent))
    out = path.parent / (name or ("out.safetensors" if path.is_file() else "out"))
    writes = command[0] not in ("inspect", "compare")
    target = ["-o", str(out), "-q"] if writes else [str(path)] if command[0] == "compare" else []
    alone = ["--workers", "1"] if workers and command[0] != "inspect" else []
    with bounded(size_of(path)):
        code, lines = invoke([*command, str(path), *target, *alone])
    told = (*command, code, lines)
    assert code in (0, 1, 2, 3, 4), told
    assert not any("out of memory" in line or "a bug in compressor" in line for line in lines), told
    if code != 0:
        assert lines, told
        assert all(line.isprintable() and len(line) < 2500 for line in lines), told
        assert code == 1 or all(line.startswith("error: ") for line in lines), told
    assert not strays(path.parent), told
    if not (code == 0 and writes):
        assert sorted(os.listdir(path.parent)) == before, told
        return code
    again, said = invoke(["inspect", str(out)])
    assert (again, said) == (0, []) or (again == 3 and is_one_line(said)), (*told, said)
    if out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink()
    return code


def check_model(
    model: Model, changes: Sequence[Any], damage: Damage, command: Sequence[str], *, texts: Damage = Damage(None)
) -> int:
    """What comes of a command on a changed model; `texts` is the damage to what stands beside it."""
    for change in changes:
        if model.tensors:
            model = change.of(model)
    with tempfile.TemporaryDirectory() as name:
        path = model.write(Path(name))
        file = path / "model.safetensors" if path.is_dir() else path
        file.write_bytes(damage.of(file.read_bytes()))
        for text in sorted(model.texts) if path.is_dir() else ():
            (path / text).write_bytes(texts.of((path / text).read_bytes()))
        return check_command(path, command)


def check_file(name: str, content: bytes, command: Sequence[str]) -> int:
    """What comes of a command on a file of this name."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / name
        path.write_bytes(content)
        return check_command(path, command)
