"""Disks that fail, signals, kills, inputs that change, memory that ends, and damaged files by the thousand.

Each has a short form that always runs and a long one behind the marker `faults` (`make test-faults`).
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save
from support import gguf_files
from support.clock import HANGS, at_most
from support.fault_injection import (
    KINDS,
    FaultyOs,
    Server,
    damaged,
    invoke,
    is_one_line,
    make_file,
    make_folder,
    make_npy,
    mutated,
    numbers,
    strays,
    tree,
)
from support.staged import Stage, fail_every_call

from compressor.core.tensor import TensorSpec
from compressor.files import npy

SECOND = "model-00002-of-00002.safetensors"
LINUX = sys.platform == "linux"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    serving = Server()
    yield serving
    serving.close()


EVERY = pytest.mark.parametrize("name", KINDS)
FORCE = pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
LONG = pytest.mark.faults

# ---- rows 78, 79: every call to the kernel fails once ----------------------------------------------------------


@EVERY
@FORCE
def test_every_call_fails_once(tmp_path: Path, name: str, force: bool) -> None:
    stage = Stage(tmp_path, name, force)
    every = 3 if "folder" in name else 1
    outcomes = fail_every_call(stage, (errno.EIO, errno.ENOSPC), lasting=False, every=every)
    assert sum(outcomes.values()) >= 45
    assert {code for _, code in outcomes} >= {3, 4}


@LONG
@EVERY
@FORCE
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EACCES])
def test_every_call_fails_with_every_error(
    tmp_path: Path, name: str, force: bool, lasting: bool, number: int
) -> None:
    outcomes = fail_every_call(Stage(tmp_path, name, force), (number,), lasting=lasting)
    print(name, force, lasting, errno.errorcode[number], sum(outcomes.values()), "faults")


# ---- row 78: disks that are full -------------------------------------------------------------------------------


@EVERY
@FORCE
@pytest.mark.parametrize("limit", [0, 700])
def test_a_limit_of_file_sizes(tmp_path: Path, name: str, force: bool, limit: int, server: Server) -> None:
    stage = Stage(tmp_path, name, force)
    stage.set_up()
    run = server.run(stage.arguments(), limits={"RLIMIT_FSIZE": limit})
    assert (run.code, stage.state, strays(tmp_path)) == (4, "old", [])
    assert is_one_line(run.lines)
    assert "File too large" in run.lines[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not LINUX or shutil.which("mount") is None:
        pytest.skip("cannot mount here")
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("may not mount here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S607


@EVERY
def test_a_full_disk(small_disk: Path, tmp_path: Path, name: str, server: Server) -> None:
    kind = KINDS[name]
    kind.make(tmp_path / kind.source, rows=20_000)
    free = os.statvfs(small_disk).f_bavail
    arguments = [*kind.options, str(tmp_path / kind.source), "-o", str(small_disk / kind.output), "-q"]
    run = server.run(arguments)
    assert run.code == 4
    assert is_one_line(run.lines)
    assert "No space left on device" in run.lines[0]
    assert os.listdir(small_disk) == []
    assert os.statvfs(small_disk).f_bavail == free


def test_a_full_disk_keeps_the_old_output(small_disk: Path, tmp_path: Path, server: Server) -> None:
    make_npy(small_disk / "out.npy", rows=1000)
    old = tree(small_disk)
    make_npy(tmp_path / "in.npy", rows=1500)
    run = server.run(
        [*KINDS["npy"].options, str(tmp_path / "in.npy"), "-o", str(small_disk / "out.npy"), "--force"]
    )
    assert run.code == 4
    assert tree(small_disk) == old


# ---- row 80: signals -------------------------------------------------------------------------------------------

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def end_of(stage: Stage, run: Any, number: int) -> str:
    """What a signal led to: `stopped` with nothing written, or too late."""
    told = (run, stage.state, strays(stage.place))
    assert not strays(stage.place), told
    if run.code == 0:
        assert stage.state == "new", told
        return "too late"
    assert run.code in (128 + number, -number), told  # -N: before the tool could take the signal over
    assert stage.state == "old", told
    if run.code > 0:
        assert run.lines == [f"error: stopped by {signal.Signals(number).name}; nothing was written"], told
    return "stopped"


def calls_of(stage: Stage) -> int:
    """How many calls to the kernel a run makes with the workers that it has by default."""
    stage.set_up()
    with FaultyOs(0).installed() as faulty:
        assert invoke(stage.arguments())[0] == 0
    return faulty.count


def stop_at_calls(stage: Stage, server: Server, calls: list[int], chance: random.Random) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for at in calls:
        stage.set_up()
        number = chance.choice(SIGNALS)
        run = server.run(stage.arguments(), stop_at=at, stop_with=number)
        at_most(run.seconds, 2)
        outcomes[end_of(stage, run, number)] += 1
    return outcomes


@EVERY
@FORCE
def test_signals_at_any_call(tmp_path: Path, name: str, force: bool, server: Server) -> None:
    chance = random.Random(f"{name} {force}")
    stage = Stage(tmp_path, name, force)
    count = calls_of(stage)
    last = list(range(count - 8, count + 1))  # publishing
    outcomes = stop_at_calls(stage, server, [*chance.sample(range(1, count - 8), 6), *last], chance)
    assert min(outcomes["stopped"], outcomes["too late"]) > 0


@LONG
@EVERY
@FORCE
def test_signals_at_every_call(tmp_path: Path, name: str, force: bool, server: Server) -> None:
    stage = Stage(tmp_path, name, force)
    outcomes = stop_at_calls(stage, server, list(range(1, calls_of(stage) + 5)), random.Random(name))
    print(name, force, dict(outcomes))


def stop_at_moments(stage: Stage, server: Server, moments: int, chance: random.Random) -> Counter[str]:
    """Signals from outside, up to three of them in a row."""
    outcomes: Counter[str] = Counter()
    stage.set_up()
    length = server.run(stage.arguments()).seconds
    assert stage.state == "new"
    for _ in range(moments):
        stage.set_up()
        number = chance.choice(SIGNALS)
        delays = [chance.uniform(0, length), *(chance.uniform(0, 0.003) for _ in range(chance.randrange(3)))]
        began = time.monotonic()
        run = server.run(stage.arguments(), signals=[(delay, int(number)) for delay in delays])
        at_most(time.monotonic() - began, length + 2)
        outcomes[end_of(stage, run, number)] += 1
    return outcomes


@pytest.mark.parametrize("name", ["file", "folder"])
def test_signals_at_random_moments(tmp_path: Path, name: str, server: Server) -> None:
    stop_at_moments(Stage(tmp_path, name, force=True), server, 10, random.Random(name))


@LONG
@EVERY
@FORCE
def test_signals_at_many_random_moments(tmp_path: Path, name: str, force: bool, server: Server) -> None:
    outcomes = stop_at_moments(Stage(tmp_path, name, force), server, 50, random.Random(f"{name}{force}"))
    print(name, force, dict(outcomes))


def started(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "compressor", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal, by what Linux tells of it."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def stop_imports(stage: Stage, rounds: int, chance: random.Random) -> None:
    """From the moment when the handlers are there, which is before anything slow is imported."""
    for _ in range(rounds):
        stage.set_up()
        number = chance.choice(SIGNALS)
        running = started(stage.arguments())
        try:
            while not catches(running.pid, signal.SIGTERM):
                time.sleep(0.001)
            time.sleep(chance.uniform(0.002, 0.35))
            began = time.monotonic()
            running.send_signal(number)
            _, said = running.communicate(timeout=HANGS)
            seconds = time.monotonic() - began
        finally:
            running.kill()
        lines = said.decode().splitlines()
        at_most(seconds, 2)
        end_of(stage, SimpleNamespace(code=running.returncode, lines=lines), number)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_signals_during_imports(tmp_path: Path) -> None:
    stop_imports(Stage(tmp_path, "file", force=True), 4, random.Random(4))


@LONG
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@EVERY
def test_many_signals_during_imports(tmp_path: Path, name: str) -> None:
    stop_imports(Stage(tmp_path, name, force=True), 40, random.Random(name))


# ---- rows 81, 82: SIGKILL --------------------------------------------------------------------------------------


def check_killed(stage: Stage, run: Any, outcomes: Counter[str]) -> None:
    told = (run, stage.state, strays(stage.place))
    assert stage.state in ("old", "new"), told
    assert run.code in (0, -9), told
    for name in strays(stage.place):
        assert name.startswith(f".{stage.kind.output}."), told
    outcomes["finished" if run.code == 0 else stage.state] += 1


def kill_at_calls(stage: Stage, server: Server, calls: list[int]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for at in calls:
        stage.set_up()
        check_killed(stage, server.run(stage.arguments(), die_at=at), outcomes)
        # a second run succeeds beside what the first has left
        if stage.state == "new" and not stage.force:
            stage.clear(stage.out)
        assert server.run(stage.arguments()).code == 0
        assert stage.state == "new"
    return outcomes


def kill_at_moments(stage: Stage, server: Server, moments: int, chance: random.Random) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    stage.set_up()
    length = server.run(stage.arguments()).seconds
    for _ in range(moments):
        stage.set_up()
        run = server.run(stage.arguments(), signals=[(chance.uniform(0, length), int(signal.SIGKILL))])
        check_killed(stage, run, outcomes)
    return outcomes


@EVERY
@FORCE
def test_kills_leave_the_old_or_the_new(tmp_path: Path, name: str, force: bool, server: Server) -> None:
    chance = random.Random(f"{name}{force}")
    stage = Stage(tmp_path, name, force)
    count = calls_of(stage)
    calls = [*chance.sample(range(1, count - 6), 4), *range(count - 6, count + 1)]
    outcomes = kill_at_calls(stage, server, calls)
    assert min(outcomes["old"], outcomes["new"]) > 0
    kill_at_moments(stage, server, 4, chance)


@LONG
@EVERY
@FORCE
def test_many_kills_leave_the_old_or_the_new(tmp_path: Path, name: str, force: bool, server: Server) -> None:
    stage = Stage(tmp_path, name, force)
    at_calls = kill_at_calls(stage, server, list(range(1, calls_of(stage) + 3)))
    at_moments = kill_at_moments(stage, server, 50, random.Random(f"{name}{force}"))
    print(name, force, "at every call", dict(at_calls), "at random moments", dict(at_moments))


def test_temporaries_of_killed_runs_are_recognised(tmp_path: Path, server: Server) -> None:
    """`.NAME.PID.tmp` beside the output; a folder that is read does not take them for its own."""
    stage = Stage(tmp_path, "folder", force=False)
    stage.set_up()
    count = calls_of(stage)
    stage.clear(stage.out)
    arguments = [*stage.kind.options, str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-q"]
    assert server.run(arguments, die_at=count - 12).code == -9
    (stray,) = strays(tmp_path)
    assert stray.startswith(".out.")
    assert stray.split(".")[2].isdigit()
    shutil.move(tmp_path / stray, tmp_path / "in" / stray)
    assert invoke(arguments)[0] == 0
    assert stray not in os.listdir(tmp_path / "out")


# ---- row 84: two runs, one output ------------------------------------------------------------------------------


@EVERY
def test_an_output_that_appears_at_the_last_moment(tmp_path: Path, name: str) -> None:
    """Whatever the call at which it appears, it stays; only a run that had finished before may have won."""
    stage = Stage(tmp_path, name, force=False)
    folder = KINDS[name].output == "out"
    count = calls_of(stage)
    theirs = {"x": {"": b"theirs"}} if folder else {"": b"theirs"}

    def appear(_: str) -> None:
        if os.path.lexists(stage.out):
            return
        if folder:
            stage.out.mkdir()
            (stage.out / "x").write_bytes(b"theirs")
        else:
            stage.out.write_bytes(b"theirs")

    for at in [*range(2, count, 9), *range(count - 6, count + 1)]:
        stage.set_up()
        with FaultyOs(at, act=appear).installed():
            code, lines = invoke(stage.arguments("--workers", "1"))
        if code == 0:
            assert stage.state == "new"
            continue
        assert code == 4, lines
        assert is_one_line(lines)
        assert "created by somebody else meanwhile" in lines[0] or "exists already" in lines[0]
        assert tree(stage.out) == theirs
        assert not strays(tmp_path)


def race(stage: Stage, servers: list[Server], rounds: int) -> Counter[Any]:
    outcomes: Counter[Any] = Counter()
    with ThreadPoolExecutor(len(servers)) as pool:
        for _ in range(rounds):
            stage.set_up()
            runs = list(pool.map(lambda server: server.run(stage.arguments()), servers))
            assert stage.state == "new"
            assert not strays(stage.place)
            codes = sorted(run.code for run in runs)
            outcomes[tuple(codes)] += 1
            if stage.force:
                assert codes == [0] * len(servers), runs
            else:
                assert codes == [0, *[4] * (len(servers) - 1)], runs
            for run in runs:
                assert run.code == 0 or is_one_line(run.lines)
    return outcomes


@EVERY
@FORCE
def test_two_runs_race_for_one_output(tmp_path: Path, name: str, force: bool, server: Server) -> None:
    other = Server()
    try:
        race(Stage(tmp_path, name, force), [server, other], 4)
    finally:
        other.close()


@LONG
@EVERY
@FORCE
def test_many_runs_race_for_one_output(tmp_path: Path, name: str, force: bool, server: Server) -> None:
    others = [Server(), Server()]
    try:
        print(name, force, dict(race(Stage(tmp_path, name, force), [server, *others], 40)))
    finally:
        for other in others:
            other.close()


# ---- row 85: inputs that change while they are read ------------------------------------------------------------


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * 64)


def _rewrite(path: Path) -> None:
    """Other bytes in the same place and number."""
    with path.open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(b"\1" * 16)


def _replace(path: Path) -> None:
    """As an atomic writer does it."""
    shutil.copyfile(path, f"{path}.new")
    os.replace(f"{path}.new", path)


def _unlink(path: Path) -> None:
    path.unlink()


def _become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = [_truncate, _empty, _grow, _rewrite, _replace, _unlink]
VICTIMS = [
    (name, file, change) for name, file in (("npy", ""), ("file", ""), ("folder", SECOND)) for change in CHANGES
]


def change_at_calls(
    place: Path, name: str, change: Callable[[Path], None], file: str, chance: random.Random, rounds: int
) -> Counter[int]:
    kind = KINDS[name]
    outcomes: Counter[int] = Counter()
    stage = Stage(place, name, force=False)
    count = calls_of(stage)
    kept = place / "input"
    os.rename(place / kind.source, kept)
    for at in sorted({chance.randrange(1, count) for _ in range(rounds)}):
        for path in (place / kind.source, stage.out):
            stage.clear(path)
        if kept.is_dir():
            shutil.copytree(kept, place / kind.source)
        else:
            shutil.copyfile(kept, place / kind.source)
        victim = place / kind.source / file if file else place / kind.source
        os.utime(victim, (1, 1))
        with FaultyOs(at, act=lambda _, victim=victim: change(victim)).installed():  # type: ignore[misc]
            code, lines = invoke(stage.arguments("--workers", "1"))
        outcomes[code] += 1
        if code == 0:  # changed before it was first looked at, or after the last look
            changed = kind.arguments(place)[: len(kind.options)]
            assert stage.out.exists(), changed
            continue
        assert code == 3, (at, lines)
        assert is_one_line(lines)
        assert not stage.out.exists()
        assert not strays(place)
    return outcomes


@pytest.mark.parametrize(("name", "file", "change"), [*VICTIMS, ("npy", "", _become_a_fifo)])
def test_inputs_that_change_while_they_are_read(
    tmp_path: Path, name: str, file: str, change: Callable[[Path], None]
) -> None:
    outcomes = change_at_calls(tmp_path, name, change, file, random.Random(f"{name}{change}"), 6)
    assert outcomes[3] > 0


@LONG
@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        *VICTIMS,
        ("npy", "", _become_a_fifo),
        *(("npz", "", change) for change in [*CHANGES, _become_a_fifo]),
        *(
            ("folder", file, change)
            for file in ("config.json", "1_Pooling/config.json", "model.safetensors.index.json")
            for change in [*CHANGES, _become_a_fifo]
        ),
    ],
)
def test_inputs_that_change_at_any_call(
    tmp_path: Path, name: str, file: str, change: Callable[[Path], None]
) -> None:
    print(name, file, dict(change_at_calls(tmp_path, name, change, file, random.Random(1), 60)))


def test_what_is_said_of_an_input_that_changed(tmp_path: Path) -> None:
    """The very sentence, for a change after the header was read."""
    make_npy(tmp_path / "in.npy")
    os.utime(tmp_path / "in.npy", (1, 1))
    reads = [0]

    def at_data(call: str) -> None:
        reads[0] += 1
        if call == "pwrite" and reads[0]:
            os.utime(tmp_path / "in.npy")

    with FaultyOs(1, lasting=True, act=at_data).installed():
        code, lines = invoke([*KINDS["npy"].arguments(tmp_path)])
    assert code == 3
    assert lines == [f"error: {tmp_path}/in.npy: changed while it was read. Run again when nothing writes to it"]


# ---- row 86: memory --------------------------------------------------------------------------------------------


def sparse_npy(path: Path, shape: tuple[int, ...]) -> str:
    """A matrix of zeros that takes no room on the disk."""
    spec = TensorSpec("weight", "F32", shape)
    header = npy.header_bytes(spec)
    path.write_bytes(header)
    os.truncate(path, len(header) + spec.nbytes)
    return str(path)


def claim(path: Path, shape: list[int], size: int, dtype: str = "F32", count: int = 1) -> str:
    """A safetensors file whose header claims `count` tensors of this shape and whose data is sparse."""
    nbytes = int(np.prod([float(n) for n in shape])) * 4
    header = {
        f"t{number}": {"dtype": dtype, "shape": shape, "data_offsets": [number * nbytes, (number + 1) * nbytes]}
        for number in range(count)
    }
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    os.truncate(path, 8 + len(raw) + size)
    return str(path)


def test_claims_are_refused_by_arithmetic(tmp_path: Path, server: Server) -> None:
    """No allocation by the header's word: each is refused at once, within a gigabyte of address space."""
    files = [
        claim(tmp_path / "a.safetensors", [2**40], 1000),
        claim(tmp_path / "b.safetensors", [2**20, 2**20], 10**6),
        claim(tmp_path / "c.safetensors", [2**62], 1000),
        claim(tmp_path / "d.safetensors", [2**31], 1000, count=1000),
    ]
    (tmp_path / "e.npy").write_bytes(npy.header_bytes(TensorSpec("w", "F32", (2**40,))) + b"\0" * 100)
    (tmp_path / "f.npy").write_bytes(b"\x93NUMPY\x02\x00\xf0\xff\xff\xff{'descr'")
    (tmp_path / "g.safetensors").write_bytes((10**8).to_bytes(8, "little") + b"{" + b" " * 1000)
    os.truncate(tmp_path / "g.safetensors", 10**8 + 7)
    os.truncate(tmp_path / "f.npy", 5 * 10**9)
    lying = {
        "h": gguf_files.GgufFile((gguf_files.Line("w", "F32", (2**40,)),)),
        "i": gguf_files.GgufFile(tensors=2**62),
        "j": gguf_files.GgufFile(values={"a": gguf_files.value(9, (8, []))[:8] + (2**29).to_bytes(8, "little")}),
        "k": gguf_files.GgufFile(values={"a": gguf_files.value(8, "")[:4] + (2**34).to_bytes(8, "little")}),
    }
    for name, made in lying.items():
        (tmp_path / f"{name}.gguf").write_bytes(made.file())
        os.truncate(tmp_path / f"{name}.gguf", 10**9 if name in "ijk" else 10**6)
    files += [str(tmp_path / name) for name in ("e.npy", "f.npy", "g.safetensors")]
    files += [str(tmp_path / f"{name}.gguf") for name in lying]
    for file in files:
        run = server.run(
            ["prune", "--sparsity", "0.5", file, "-o", f"{file}.safetensors"], limits={"RLIMIT_AS": 1 << 30}
        )
        assert run.code == 3, run
        assert is_one_line(run.lines)
        at_most(run.seconds, 2)
        assert not os.path.exists(f"{file}.safetensors")


def test_a_memory_limit_ends_in_one_line_or_in_success(tmp_path: Path, server: Server) -> None:
    """Headers of any size of file can be looked at; what does not fit is `out of memory`, not a traceback."""
    huge = sparse_npy(tmp_path / "huge.npy", (2_000_000, 10_000))  # 80 GB
    limits = {"RLIMIT_AS": 1 << 30}
    assert server.run(["inspect", huge], limits=limits).code == 0
    row = sparse_npy(tmp_path / "row.npy", (1, 3 * 10**8))
    run = server.run(["quantize", "--bits", "8", row, "-o", str(tmp_path / "out.safetensors")], limits=limits)
    assert run.code in (0, 4)
    assert run.code == 0 or (is_one_line(run.lines) and "out of memory" in run.lines[0])
    mapped = claim(tmp_path / "mapped.safetensors", [10**9], 4 * 10**9)
    run = server.run(["inspect", mapped], limits=limits)  # the library maps it
    assert run.code in (0, 3)
    assert run.code == 0 or is_one_line(run.lines)
    assert not strays(tmp_path)


def test_no_more_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    make_npy(tmp_path / "in.npy")
    monkeypatch.setattr(threading.Thread, "start", none)
    code, lines = invoke([*KINDS["npy"].arguments(tmp_path), "--workers", "2"])
    assert code == 4
    assert is_one_line(lines)
    assert os.listdir(tmp_path) == ["in.npy"]


# ---- row 87: bounds --------------------------------------------------------------------------------------------

_MEASURED = """
import os, sys, time
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy, ml_dtypes, safetensors.numpy
from compressor.__main__ import main
from support.fault_injection import peak_memory
memory, seconds = peak_memory(), time.process_time()
try:
    main()
except SystemExit as end:
    code = end.code
print("FIGURES", code, (peak_memory() - memory) / (1 << 20), time.process_time() - seconds)
"""


def measured(*arguments: str) -> tuple[int, float, float]:
    """Exit code, peak memory over that of the start in MiB, and seconds of processor time."""
    command = [sys.executable, "-c", _MEASURED, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    figures = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES")).split()
    return int(figures[1]), float(figures[2]), float(figures[3])


WORK = [
    ("quantize", "--bits", "8"),
    ("quantize", "--bits", "4", "--granularity", "group"),
    ("prune", "--threshold", "0.01"),
    ("prune", "--sparsity", "0.5", "--scope", "global"),
]


@pytest.mark.parametrize("work", WORK[:2], ids=" ".join)
def test_memory_does_not_follow_the_file(tmp_path: Path, work: tuple[str, ...]) -> None:
    """Six tensors of 64 MiB, row by row."""
    source = claim(tmp_path / "in.safetensors", [4096, 4096], 6 << 26, count=6)
    code, peak, _ = measured(*work, source, "-o", str(tmp_path / "out.safetensors"), "-q")
    print(*work, f"{peak:.0f} MiB over start-up")
    assert code == 0
    assert peak < 400


def test_memory_of_an_update_does_not_follow_the_file(tmp_path: Path) -> None:
    """Two tensors of 64 MiB, each MiB of which differs from the base's."""
    base, model = (claim(tmp_path / f"{name}.safetensors", [4096, 4096], 2 << 26, count=2) for name in ("a", "b"))
    with open(model, "r+b") as file:
        for place in range(1 << 20, 2 << 26, 1 << 20):
            file.seek(place)
            file.write(b"\1")
    update, back = str(tmp_path / "u.safetensors"), str(tmp_path / "c.safetensors")
    for work in (("pipeline", model, "-o", update), ("restore", update, "-o", back)):
        code, peak, _ = measured(*work, "--base", base, "-q")
        print(work[0], f"{peak:.0f} MiB over start-up")
        assert code == 0
        assert peak < 250


@LONG
@pytest.mark.parametrize("work", [*WORK, ("prune", "--sparsity", "0.5")], ids=" ".join)
def test_a_tensor_of_more_than_two_gigabytes(tmp_path: Path, work: tuple[str, ...]) -> None:
    rows = 70_000
    source = claim(tmp_path / "in.safetensors", [rows, 8192], rows * 8192 * 4)
    out = tmp_path / "out.safetensors"
    code, peak, seconds = measured(*work, source, "-o", str(out), "-q")
    print(*work, f"{peak:.0f} MiB over start-up, {seconds:.1f} s of processor time")
    assert code == 0
    assert peak < 400
    with safe_open(out, framework="np") as file:
        name = next(key for key in file.keys() if key.startswith("t0"))  # noqa: SIM118 - not a dict
        assert file.get_slice(name).get_shape()[0] == rows
    out.unlink()


@LONG
@pytest.mark.parametrize(
    "work",
    [
        ("quantize", "--bits", "8"),
        ("prune", "--sparsity", "0.5"),
        ("prune", "--threshold", "0.1"),
        ("prune", "--method", "random", "--sparsity", "0.5"),
        ("prune", "--method", "layer-adaptive", "--sparsity", "0.5"),
        ("prune", "--scope", "global", "--sparsity", "0.5", "--min-keep", "0.01"),
    ],
    ids=" ".join,
)
def test_a_hundred_thousand_tiny_tensors(tmp_path: Path, work: tuple[str, ...]) -> None:
    values = numbers(200_000, 8)
    tensors = {f"layers.{number:06}.weight": values[2 * number : 2 * number + 2] for number in range(100_000)}
    source = tmp_path / "in.safetensors"
    source.write_bytes(save(tensors))
    code, peak, seconds = measured(*work, str(source), "-o", str(tmp_path / "out.safetensors"), "-q")
    print(*work, f"{peak:.0f} MiB over start-up, {seconds:.1f} s of processor time")
    assert code == 0
    at_most(seconds, 60)  # four times the target: this is a test, not a benchmark


@LONG
def test_two_hundred_thousand_names_on_one_range(tmp_path: Path) -> None:
    header = {f"n{n}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in range(200_000)}
    raw = json.dumps(header).encode()
    (tmp_path / "in.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 4)
    code, peak, seconds = measured("inspect", str(tmp_path / "in.safetensors"))
    print(f"{peak:.0f} MiB over start-up, {seconds:.1f} s of processor time")
    assert code == 3
    assert peak < 256
    at_most(seconds, 10)


# ---- mutated files ---------------------------------------------------------------------------------------------

VERBS = [
    ("quantize", "--bits", "8"),
    ("quantize", "--bits", "3", "--asymmetric", "--granularity", "tensor"),
    ("prune", "--sparsity", "0.5"),
    ("prune", "--threshold", "0.1", "--non-finite", "keep"),
    ("restore",),
    ("inspect", "--stats"),
    ("inspect", "--format", "json"),
]
PACKED = [("restore",), ("restore",), ("inspect", "--stats"), ("inspect", "--format", "json")]
WHAT = ["file", "header", "packed", "packed header", "record", "npy", "npz", "index", "config", "packed config"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good inputs and outputs of every kind, to be damaged."""
    place = tmp_path_factory.mktemp("good")
    make_file(place / "in.safetensors")
    make_npy(place / "in.npy")
    make_folder(place / "in")
    for arguments in (
        ["quantize", "--bits", "4", "--granularity", "channel", "in.safetensors", "packed.safetensors"],
        ["quantize", "--bits", "8", "in", "packed"],
        ["quantize", "--bits", "4", "--granularity", "channel", "in.npy", "codes.npz"],
    ):
        *options, source, target = arguments
        code, lines = invoke([*options, str(place / source), "-o", str(place / target), "-q"])
        assert code == 0, lines
    return place


def _with_header(raw: bytes, change: Callable[[Any], Any]) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    text = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def _with_record(header: Any, chance: random.Random) -> Any:
    record = json.loads(header["__metadata__"]["compressor"])
    header["__metadata__"]["compressor"] = json.dumps(mutated(record, chance))
    return header


def injure(good: Path, place: Path, what: str, chance: random.Random) -> Path:
    """A damaged copy of something good."""
    single = {"file": "in.safetensors", "npy": "in.npy", "npz": "codes.npz", "packed": "packed.safetensors"}
    if what in single:
        path = place / f"x{Path(single[what]).suffix}"
        path.write_bytes(damaged((good / single[what]).read_bytes(), chance))
    elif what in ("header", "packed header", "record"):
        path = place / "x.safetensors"
        raw = (good / ("in.safetensors" if what == "header" else "packed.safetensors")).read_bytes()
        change = _with_record if what == "record" else mutated
        path.write_bytes(_with_header(raw, lambda header: change(header, chance)))
    else:
        path = place / "x"
        shutil.copytree(good / ("packed" if what.startswith("packed") else "in"), path)
        file = path / ("model.safetensors.index.json" if what == "index" else "config.json")
        if chance.random() < 0.3:
            file.write_bytes(damaged(file.read_bytes(), chance))
        else:
            file.write_text(json.dumps(mutated(json.loads(file.read_text()), chance)))
    return path


def run_mutations(good: Path, place: Path, seeds: range) -> Counter[Any]:
    """Each is processed to a valid output, or refused in one line; nothing else."""
    outcomes: Counter[Any] = Counter()
    for seed in seeds:
        chance = random.Random(seed)
        what = WHAT[seed % len(WHAT)]
        here = place / "here"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        source = injure(good, here, what, chance)
        before = tree(source)
        verb = chance.choice(PACKED if what.startswith(("packed", "record", "npz")) else VERBS)
        suffix = chance.choice((".npy", ".safetensors") if what in ("npy", "npz") else (".safetensors", ""))
        out = here / f"out{suffix}"
        writes = verb[0] != "inspect"
        began = time.monotonic()
        arguments = [*verb, str(source), *(["-o", str(out), "-q"] if writes else []), "--workers", "1"]
        code, lines = invoke(arguments)
        told = (seed, what, verb, code, lines)
        at_most(time.monotonic() - began, 5, told)
        assert code in (0, 3, 4), told
        assert tree(source) == before, told
        assert not strays(here), told
        if code == 0:
            assert not any(line.startswith("error") for line in lines), told
            if writes:
                assert invoke(["inspect", "--stats", str(out)]) == (0, []), told
        else:
            assert is_one_line(lines), told
            assert not os.path.lexists(out), told
        outcomes[what, code] += 1
    return outcomes


def test_mutated_files_are_processed_or_refused(good: Path, tmp_path: Path) -> None:
    outcomes = run_mutations(good, tmp_path, range(300))
    assert {code for _, code in outcomes} == {0, 3}


@LONG
@pytest.mark.parametrize("part", range(20))
def test_many_mutated_files_are_processed_or_refused(good: Path, tmp_path: Path, part: int) -> None:
    outcomes = run_mutations(good, tmp_path, range(1000 + 500 * part, 1500 + 500 * part))
    codes = Counter({code: 0 for _, code in outcomes})
    for (_, code), count in outcomes.items():
        codes[code] += count
    print(sum(codes.values()), dict(codes))


def test_damage_is_seeded_and_harms(good: Path) -> None:
    raw = (good / "in.safetensors").read_bytes()
    first = [damaged(raw, random.Random(seed)) for seed in range(50)]
    assert first == [damaged(raw, random.Random(seed)) for seed in range(50)]
    assert sum(copy != raw for copy in first) > 40
    tensors = load_file(good / "in.safetensors")
    assert len(tensors) == 6


# ---- the machinery itself --------------------------------------------------------------------------------------


def test_the_faulty_kernel_is_taken_out_again(tmp_path: Path) -> None:
    from compressor.files import staging as atomic

    with pytest.raises(RuntimeError), FaultyOs(1).installed():
        raise RuntimeError
    assert atomic.os is os
