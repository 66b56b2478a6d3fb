"""What the fault tests are made of: good inputs, a kernel that fails on demand, and a server that runs the tool
in processes of their own.

Run as a program this module is the server: it imports the tool once and forks for every run that it is asked for,
so that a run costs milliseconds and hundreds of them can be killed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save, save_file

from compressor.core import cleanup
from compressor.files import folder, npz, ours, source
from compressor.files import input_file as handle
from compressor.files import output as sink
from compressor.files import staging as atomic
from support import gguf_files
from support.clock import HANGS

TESTS = Path(__file__).parents[1]

# ---- good inputs ---------------------------------------------------------------------------------------------


def numbers(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def make_file(path: Path, rows: int = 24) -> Path:
    """A safetensors file with a tensor of most kinds."""
    tensors = {
        "a.weight": numbers(rows, 32),
        "b.weight": numbers(16, 64, 1).astype(ml_dtypes.bfloat16),
        "b.bias": numbers(1, 16, 2)[0],
        "ids": np.array([2**53 + 1, -1, 0]),
        "mask": np.array([True, False, True]),
        "scalar": np.array(2.5, np.float32),
    }
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # the library makes it private
    return path


def make_npy(path: Path, rows: int = 24) -> Path:
    """One matrix."""
    np.save(path, numbers(rows, 32))
    return path


def make_gguf(path: Path, rows: int = 24) -> Path:
    """A GGUF file of numbers, of blocks, and of a value."""
    lines = (gguf_files.numbers("a.weight", (rows, 32)), gguf_files.blocks("b.weight", "Q8_0", (rows, 64)))
    named = {"general.architecture": gguf_files.value(gguf_files.STRING, "none")}
    path.write_bytes(gguf_files.GgufFile(lines, named).file())
    return path


def make_folder(path: Path, rows: int = 24) -> Path:
    """Two shards, their index, a configuration, and files that go along."""
    path.mkdir()
    shards = {
        "model-00001-of-00002.safetensors": {"model.layers.0.mlp.up_proj.weight": numbers(rows, 32)},
        "model-00002-of-00002.safetensors": {
            "model.layers.1.mlp.up_proj.weight": numbers(rows, 32, 1),
            "model.norm.weight": numbers(1, 32, 2)[0],
        },
    }
    for name, tensors in shards.items():
        (path / name).write_bytes(save(tensors, {"format": "pt"}))
    write_index(path, {tensor: name for name, tensors in shards.items() for tensor in tensors})
    (path / "config.json").write_text('{"architectures": ["Tiny"], "hidden_size": 32}\n')
    (path / "tokenizer.json").write_text('{"version": "1.0"}\n')
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}\n')
    return path


def write_index(path: Path, weight_map: Any, **more: Any) -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map, **more}
    (path / "model.safetensors.index.json").write_text(json.dumps(content))


class Kind:
    """A run that the fault tests do to everything: what it reads, what it writes, with which options."""

    def __init__(self, make: Callable[..., Path], source: str, output: str, *options: str) -> None:
        self.make, self.source, self.output, self.options = make, source, output, options

    def arguments(self, place: Path, *more: str) -> list[str]:
        return [*self.options, str(place / self.source), "-o", str(place / self.output), "-q", *more]

    def make_old(self, place: Path) -> None:
        """An earlier output where this one goes."""
        options = {
            ".npz": ["quantize", "--scheme", "int", "--bits", "2", "--granularity", "tensor", "--store", "codes"]
        }
        verb = options.get(Path(self.output).suffix, ["prune", "--threshold", "0.1"])
        code, lines = invoke([*verb, str(place / self.source), "-o", str(place / self.output), "-q"])
        assert code == 0, lines


KINDS = {
    "file": Kind(make_file, "in.safetensors", "out.safetensors", "quantize", "--bits", "8"),
    "npy": Kind(make_npy, "in.npy", "out.npy", "prune", "--sparsity", "0.5"),
    "npz": Kind(make_npy, "in.npy", "out.npz", "quantize", "--bits", "4", "--granularity", "channel"),
    "folder": Kind(make_folder, "in", "out", "quantize", "--bits", "8"),
    "gguf": Kind(make_gguf, "in.gguf", "out.gguf", "prune", "--sparsity", "0.5", "--include", "a.*"),
    "archive": Kind(
        make_file, "in.safetensors", "out.safetensors", "quantize", "--bits", "8", "--store", "archive"
    ),
    "archived folder": Kind(make_folder, "in", "out", "quantize", "--bits", "8", "--store", "archive"),
}


def tree(path: Path) -> dict[str, Any] | None:
    """Everything that a path holds, to be compared; None for nothing."""
    if not os.path.lexists(path):
        return None
    if path.is_symlink():
        return {"": f"-> {path.readlink()}"}
    if path.is_file():
        return {"": path.read_bytes()}
    if not path.is_dir():
        return {"": path.stat().st_mode}
    return {entry.name: tree(entry) for entry in path.iterdir()}


def strays(place: Path) -> list[str]:
    """Temporary files that were left behind."""
    return [entry.name for entry in place.iterdir() if entry.name.endswith((".tmp", ".old"))]


def peak_memory() -> int:
    """The most bytes that this process has held at a time; `ru_maxrss` would count its parent too, before exec."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


# ---- running in this process ---------------------------------------------------------------------------------


def invoke(arguments: list[str]) -> tuple[int, list[str]]:
    """The exit code and the lines on stderr."""
    from compressor.cli.main import run

    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = run(arguments)
    return code, err.getvalue().splitlines()


def is_one_line(lines: list[str]) -> bool:
    """Whether a refusal reads as promised."""
    return (
        len(lines) == 1
        and lines[0].startswith("error: ")
        and lines[0].isprintable()
        and len(lines[0]) < 2500
        and "a bug in compressor" not in lines[0]
        and "input or output failed" not in lines[0]
    )


# ---- a kernel that fails on demand ---------------------------------------------------------------------------

_WATCHED = {
    *("open", "close", "pread", "preadv", "pwrite", "fsync", "fstat", "stat", "lstat", "listdir", "scandir"),
    *("rename", "link", "unlink", "mkdir", "makedirs", "chmod"),
}
_MODULES = (atomic, folder, handle, npz, ours, sink, source)


class FaultyOs:
    """Stands for the module `os` in `compressor.files`. At the call number `at` (or from it on, if `lasting`)
    `act` is called, which by default fails the call with `number`."""

    def __init__(
        self, at: int, number: int = errno.EIO, *, lasting: bool = False, act: Callable[[str], None] | None = None
    ) -> None:
        self.at, self.number, self.lasting, self.act = at, number, lasting, act
        self.count = 0
        self.victims: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _WATCHED:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.count += 1
                hit = self.count == self.at or (self.lasting and self.count > self.at)
            if hit:
                subject = self._paths.get(args[0], "") if isinstance(args[0], int) else os.fsdecode(args[0])
                self.victims.append((name, subject))
                if name == "close":  # it fails, but the descriptor is gone
                    real(*args, **kwargs)
                    return self._strike(name)
                self._strike(name)
            found = real(*args, **kwargs)
            if name == "open":
                self._paths[found] = os.fsdecode(args[0])
            return found

        return call

    def _strike(self, name: str) -> None:
        if self.act is not None:
            self.act(name)
        else:
            raise OSError(self.number, os.strerror(self.number))

    def renameat2(self, path: str, place: str, flags: int) -> bool:
        """Linux's rename with flags, which is not in `os`."""
        with self._lock:
            self.count += 1
            hit = self.count == self.at or (self.lasting and self.count > self.at)
        if hit:
            self.victims.append(("renameat2", path))
            self._strike("renameat2")
        return _renameat2(path, place, flags)

    def install(self) -> None:
        for module in _MODULES:
            module.os = self
        atomic._renameat2 = self.renameat2

    @contextlib.contextmanager
    def installed(self) -> Iterator[FaultyOs]:
        try:
            self.install()
            yield self
        finally:
            for module in _MODULES:
                module.os = os
            atomic._renameat2 = _renameat2


_renameat2 = atomic._renameat2


# ---- running in processes of their own -----------------------------------------------------------------------


class Server:
    """Forks a prepared process for every run."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.fault_injection"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == {"ready": True}

    def run(self, arguments: list[str], **options: Any) -> SimpleNamespace:
        """The end of a run: `code` (negative for a signal that killed it), `lines` on stderr, `seconds`.

        `signals`: pairs of a delay in seconds and a signal; `die_at`: SIGKILL at that call to the kernel;
        `stop_at`: a signal of `stop_with` to itself there; `limits`: resource limits by name; `umask`.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"arguments": arguments, **options}) + "\n")
        self.process.stdin.flush()
        return SimpleNamespace(**self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(HANGS)
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer


def _serve() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        kind = KINDS["folder"]
        make_folder(Path(place) / "in")
        assert invoke(kind.arguments(Path(place)))[0] == 0  # everything is imported now
    answers = os.fdopen(os.dup(1), "w")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as for a process that has not begun to run Python
    _reply(answers, {"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        read, write = os.pipe()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(read)
            _become_a_run(asked, write)
        os.close(write)
        for delay, number in asked.get("signals", ()):
            time.sleep(delay)
            os.kill(child, number)  # it is not yet waited for, so the number is still its own
        with os.fdopen(read, "rb") as stream:
            text = stream.read().decode(errors="backslashreplace")
        _, status = os.waitpid(child, 0)
        end = {"code": os.waitstatus_to_exitcode(status), "lines": text.splitlines()}
        _reply(answers, {**end, "seconds": time.monotonic() - began})


def _reply(stream: Any, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def _become_a_run(asked: dict[str, Any], write: int) -> None:
    """The forked child: the command line with its own streams, as if it had been started from a shell."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(write, 2)
    if write > 2:
        os.close(write)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    for name, amount in asked.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (amount, amount))
    if "umask" in asked:
        os.umask(asked["umask"])
    at, number = asked.get("die_at"), signal.SIGKILL
    if "stop_at" in asked:
        at, number = asked["stop_at"], asked["stop_with"]
    if at is not None:
        FaultyOs(at, act=lambda _: os.kill(os.getpid(), number)).install()
    cleanup.begin()  # nothing is published: it was, by the run that prepared the server
    code = 70
    try:
        from compressor.__main__ import main

        sys.argv = ["compressor", *asked["arguments"]]
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---- damage --------------------------------------------------------------------------------------------------


def damaged(good: bytes, chance: random.Random) -> bytes:
    """A copy with one to four seeded injuries: flipped bits, changed numbers, cuts, splices, strange bytes."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        # most of it where the header is
        reach = min(len(data), chance.choice((16, 200, 1000, len(data))))
        at = chance.randrange(reach) if reach else 0
        kind = chance.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[at] = chance.choice(b'\x00\xff"{}[]:,\\0129-ecTN\n\xef')
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + chance.randrange(1, 40)]
        elif kind == 4:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 5:
            begin = chance.randrange(len(data) + 1)
            data[at:at] = data[begin : begin + chance.randrange(1, 100)]
        elif kind == 6:
            data[at : at + 8] = chance.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, len(data))).to_bytes(8, "little")
        else:
            digits = [place for place, byte in enumerate(data[:2000]) if 48 <= byte < 58]
            if digits:
                place = chance.choice(digits)
                data[place : place + 1] = chance.choice(
                    (b"0", b"9", b"-1", b"1e3", b"99999999999999999999", b"true")
                )
    return bytes(data)


_STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, 2**64, 10**30, 1e308, "", "x", "int", "\x1b[31m", "\u202e"),
    *([], {}, [[]], [None], [1, "a"], {"a": 1}, {"": None}, "../../x", "/etc/passwd", "a\x00b", "re:(", "re:.*"),
    *("Linear", "group", "channel", "pack-quantized", "int-quantized", "\U0001f4a9", "x" * 5000),
]


def mutated(good: Any, chance: random.Random) -> Any:
    """JSON with one to three of its parts exchanged, dropped or doubled."""
    found = json.loads(json.dumps(good))
    for _ in range(chance.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        pending = [found]
        while pending:
            here = pending.pop()
            keys = here if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
            places += [(here, key) for key in keys]
            pending += [here[key] for key in keys]
        if not places:
            return chance.choice(_STRANGE)
        holder, key = chance.choice(places)
        kind = chance.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, its = chance.choice(places)
            with contextlib.suppress(LookupError):
                holder[key] = json.loads(json.dumps(other[its]))
        elif kind == 2 and isinstance(holder, dict):
            holder[str(chance.choice(_STRANGE))] = holder.pop(key)
        else:
            holder[key] = chance.choice(_STRANGE)
    return found


if __name__ == "__main__":
    _serve()
