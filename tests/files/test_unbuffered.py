"""Writing past the page cache: the same bytes wherever runs begin and end, and the errors of all other writing."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from support.fault_injection import KINDS, Kind, make_folder, tree
from support.staged import Stage, fail_every_call

from compressor import api
from compressor.core.workspace import Array
from compressor.files import output as sink
from compressor.files import unbuffered as direct
from compressor.files.unbuffered import Direct

PAGE = direct._PAGE
ODD = [
    (0, 8 * PAGE),
    (5, 8 * PAGE),
    (PAGE, PAGE),
    (PAGE - 1, 3),
    (5, 100),
    (7, 2 * PAGE - 7),
    (2 * PAGE + 1, 3 * PAGE - 2),
]


@pytest.fixture
def unbuffered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Even the small files of the tests are written so."""
    if not direct.FLAG:
        pytest.skip("no unbuffered writes here")
    monkeypatch.setattr(sink, "_LARGE", 0)
    monkeypatch.setattr(direct, "LEAST", 1)
    return


class Recorder:
    """Writes a file and keeps what it was asked for; flags may be refused with an error number."""

    def __init__(self, path: Path, refuse: int = 0) -> None:
        self.path, self.refuse, self.calls = path, refuse, list[tuple[int, int, int]]()

    def __call__(self, name: str, data: memoryview, offset: int, flags: int) -> None:
        self.calls.append((len(data), offset, flags))
        if flags and self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | flags, 0o600)
        try:
            assert os.pwrite(fd, data, offset) == len(data)
        finally:
            os.close(fd)


def test_places_are_taken_once_and_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a").open("wb") as file:
        direct.reserve(file.fileno(), 1 << 20)
        if direct._fallocate() is not None:
            assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
    for number, fails in ((errno.ENOSPC, True), (errno.EOPNOTSUPP, False)):

        def refuse(*_: int, number: int = number) -> int:
            ctypes.set_errno(number)
            return -1

        monkeypatch.setattr(direct, "_fallocate", lambda refuse=refuse: refuse)
        with pytest.raises(OSError, match="No space left") if fails else nullcontext():
            direct.reserve(0, 1)


@pytest.mark.parametrize("part", [False, True])
def test_what_is_written_whole_is_reserved(
    unbuffered: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: bool
) -> None:
    """A part has holes where the others write."""
    seen: list[int] = []
    monkeypatch.setattr(direct, "reserve", lambda fd, size: seen.append(size))
    model = make_folder(tmp_path / "in")
    more = {"part": "1/2"} if part else {}
    api.prune(model, tmp_path / "out", threshold=0.1, workers=1, **more)  # type: ignore[arg-type]
    shards = sorted(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert sorted(seen) == ([] if part else shards)


def noise(size: int) -> Array:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


@pytest.mark.parametrize(("offset", "size"), ODD)
def test_runs_lie_where_they_belong(offset: int, size: int, tmp_path: Path) -> None:
    write = Recorder(tmp_path / "file")
    Direct(write).write("file", noise(size), offset)
    assert (tmp_path / "file").read_bytes()[offset:] == noise(size).tobytes()
    for length, at, flags in write.calls:
        if flags:
            assert (length % PAGE, at % PAGE) == (0, 0)


def test_long_runs_go_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_PIECE", 2 * PAGE)
    write = Recorder(tmp_path / "file")
    Direct(write).write("file", noise(7 * PAGE + 5), 3)
    assert (tmp_path / "file").read_bytes()[3:] == noise(7 * PAGE + 5).tobytes()
    assert [length for length, _, flags in write.calls if flags] == [2 * PAGE, 2 * PAGE, 2 * PAGE]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_where_it_is_not_known_all_is_buffered(number: int, tmp_path: Path) -> None:
    write = Recorder(tmp_path / "file", refuse=number)
    writer = Direct(write)
    for turn in range(2):
        writer.write("file", noise(3 * PAGE), 3 * turn * PAGE)
    assert (tmp_path / "file").read_bytes() == noise(3 * PAGE).tobytes() * 2
    assert sum(flags != 0 for _, _, flags in write.calls) == 1  # it is asked once


def test_other_errors_are_errors(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        Direct(Recorder(tmp_path / "file", refuse=errno.ENOSPC)).write("file", noise(2 * PAGE), 0)


@pytest.mark.usefixtures("unbuffered")
@pytest.mark.parametrize("stage", ["quantize:bits=4,group_size=32", "prune:threshold=0.01"])
def test_models_are_the_same_as_through_the_cache(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(tmp_path / "in", 640)
    api.pipeline(source, tmp_path / "direct", stages=[stage])
    monkeypatch.setattr(sink.unbuffered, "FLAG", 0)
    api.pipeline(source, tmp_path / "cached", stages=[stage])
    assert tree(tmp_path / "direct") == tree(tmp_path / "cached")


@pytest.mark.usefixtures("unbuffered")
def test_every_call_fails_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind(lambda path: make_folder(path, 640), "in", "out", "prune", "--threshold", "0.1")
    monkeypatch.setitem(KINDS, "large", kind)
    outcomes = fail_every_call(Stage(tmp_path, "large", False), (errno.EIO, errno.ENOSPC), lasting=False)
    assert sum(outcomes.values()) >= 45
    assert {code for _, code in outcomes} >= {3, 4}
