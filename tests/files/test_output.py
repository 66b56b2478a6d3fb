"""An output by itself: written in pieces, read back before it is published, or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fault_injection import make_folder, tree
from support.staged import fail

from compressor.core.errors import InputError, OutputError
from compressor.core.tensor import TensorSpec
from compressor.files import npy, npz, safetensors
from compressor.files.input_file import InputFile
from compressor.files.output import Output

SPEC = TensorSpec("weight", "F32", (2, 3))
DATA = np.arange(6, dtype=np.float32).reshape(2, 3)


def one_file(target: Path, container: str = "npy", **more: Any) -> Output:
    layouts = {"npy": npy.layout(SPEC), "safetensors": safetensors.layout([SPEC], {})}
    layouts["npz"] = npz.layout([("weight", SPEC)])
    return Output(str(target), container, [(target.name, layouts[container])], replace=False, **more)


def write(sink: Output, data: np.ndarray = DATA) -> None:
    sink.write(0, sink.layouts[0][1].offsets["weight"], data)


@pytest.mark.parametrize("container", ["npy", "safetensors", "npz"])
def test_a_sink_writes_checks_and_publishes(tmp_path: Path, container: str) -> None:
    sink = one_file(tmp_path / f"x.{container}", container)
    write(sink)
    sink.finish_file(0)
    sink.publish()
    assert os.listdir(tmp_path) == [f"x.{container}"]
    assert (tmp_path / f"x.{container}").stat().st_size == sink.layouts[0][1].size


def test_a_sink_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    sink = one_file(tmp_path / "x.npy")
    write(sink)
    sink.discard()
    sink.discard()
    assert os.listdir(tmp_path) == []
    assert sink.idle == []


def test_a_file_that_is_not_as_long_as_planned_is_refused(tmp_path: Path) -> None:
    sink = one_file(tmp_path / "x.npy")
    with pytest.raises(OutputError, match="128 bytes were written, 152 planned"):
        sink.finish_file(0)
    write(sink)
    sink.write(0, 152, DATA)
    with pytest.raises(OutputError, match="176 bytes were written, 152 planned"):
        sink.finish_file(0)
    sink.discard()


def test_a_file_that_does_not_read_back_is_refused(tmp_path: Path) -> None:
    sink = one_file(tmp_path / "x.npy")
    write(sink)
    sink.write(0, 0, DATA)  # over the header
    with pytest.raises(OutputError, match=r"does not read back: is no \.npy file"):
        sink.finish_file(0)
    sink.discard()


def test_a_file_that_reads_back_as_another_is_refused(tmp_path: Path) -> None:
    planned = safetensors.layout([SPEC], {})
    sink = Output(str(tmp_path / "x.safetensors"), "safetensors", [("x", planned)], replace=False)
    write(sink, DATA[:, :])
    with open(sink.path("x"), "r+b") as file:  # a valid header, of a tensor with another name
        file.write(planned.pieces[0][1].replace(b"weight", b"waiter"))
    with pytest.raises(OutputError, match="its header is not the one that was written"):
        sink.finish_file(0)
    sink.discard()


def test_metadata_of_the_same_length_are_put_in_their_place() -> None:
    planned = safetensors.layout([SPEC], {"plan": "000", "format": "pt"})
    assert safetensors.relabelled(planned, {"plan": "123", "format": "pt"}) == safetensors.layout(
        [SPEC], {"plan": "123", "format": "pt"}
    )
    with pytest.raises(ValueError, match="another length"):
        safetensors.relabelled(planned, {"plan": "1", "format": "pt"})


def test_a_header_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.files.output.os.pwrite", fail(errno.ENOSPC))
    with pytest.raises(OutputError, match="No space left on device"):
        one_file(tmp_path / "x.npy")
    assert os.listdir(tmp_path) == []


def test_short_writes_are_continued_and_empty_ones_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr("compressor.files.output.os.pwrite", lambda fd, data, at: pwrite(fd, data[:5], at))
    sink = one_file(tmp_path / "x.npy")
    write(sink)
    sink.finish_file(0)
    monkeypatch.setattr("compressor.files.output.os.pwrite", lambda *_: 0)
    with pytest.raises(OutputError, match="nothing more is taken"):
        write(sink)
    sink.publish()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), DATA)


def test_a_temporary_that_became_a_link_is_not_written_through(tmp_path: Path) -> None:
    """In a folder where others may write, somebody may put a link to a file of ours in its place."""
    (tmp_path / "precious").write_bytes(b"mine")
    sink = one_file(tmp_path / "x.npy")
    with sink._open("x.npy"):
        pass
    sink._close(None)
    os.unlink(sink.path("x.npy"))
    os.symlink("precious", sink.path("x.npy"))
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        write(sink)
    sink.discard()
    assert tree(tmp_path) == {"precious": {"": b"mine"}}


def test_few_descriptors_are_kept_open(tmp_path: Path) -> None:
    plan = safetensors.layout([SPEC], {})
    sink = Output(str(tmp_path / "x"), "folder", [(f"{n}.safetensors", plan) for n in range(30)], replace=False)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(30):
        sink.write(number, plan.offsets["weight"], DATA)
    assert len(sink.idle) <= 8
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before + 8
    for number in range(30):
        sink.finish_file(number)
    assert sink.idle == []
    sink.discard()


@pytest.mark.parametrize("how", ["write", "many", "finish", "publish"])
def test_a_descriptor_that_cannot_be_closed_is_an_error(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = safetensors.layout([SPEC], {})
    sink = Output(str(tmp_path / "x"), "folder", [(f"{n}.safetensors", plan) for n in range(9)], replace=False)
    close = os.close

    def failing(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "Input/output error")

    def work() -> None:
        if how == "write":
            sink.add_text("config.json", b"{}")
        elif how == "many":
            for number in range(9):
                sink.write(number, plan.offsets["weight"], DATA)
        elif how == "finish":
            sink.finish_file(3)
        else:
            sink.publish()

    with monkeypatch.context() as patch:
        patch.setattr("compressor.files.output.os.close", failing)
        with pytest.raises(OutputError, match="Input/output error"):
            work()
    sink.discard()
    assert os.listdir(tmp_path) == []


def test_carried_files_and_folders_are_copied_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folder(tmp_path / "in")
    deep = source / "a" / "b" / "c.bin"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"deep")
    synced: list[str] = []
    monkeypatch.setattr("compressor.files.output.sync_folder", lambda path: synced.append(Path(path).name))
    monkeypatch.setattr("compressor.files.output._CHUNK", 7)
    sink = Output(str(tmp_path / "out"), "folder", [], replace=False)
    for name in ("a/b/c.bin", "1_Pooling/config.json", "tokenizer.json"):
        sink.copy(name, InputFile.open(source / name))
    sink.copy("a/b/again", InputFile.open(deep))
    sink.add_text("model.safetensors.index.json", b"{}")
    sink.publish()
    assert synced == ["b", "a", "1_Pooling"]  # inner ones first
    assert (tmp_path / "out/a/b/c.bin").read_bytes() == b"deep"
    assert (tmp_path / "out/1_Pooling/config.json").read_bytes() == (source / "1_Pooling/config.json").read_bytes()


def test_a_carried_file_that_changed_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one")
    os.utime(tmp_path / "a.txt", (1, 1))
    source = InputFile.open(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"two")
    sink = Output(str(tmp_path / "out"), "folder", [], replace=False)
    with pytest.raises(InputError, match="changed while it was read"):
        sink.copy("a.txt", source)
    sink.discard()
    assert os.listdir(tmp_path) == ["a.txt"]
