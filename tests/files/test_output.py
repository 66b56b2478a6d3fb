"""The parts that make an output whole or absent, each by itself: staging, writing, strict JSON, sources, streams,
signals. What they promise together is in test_faults.py and test_paths.py."""

from __future__ import annotations

import errno
import io
import json
import os
import runpy
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fault_injection import FaultyOs, invoke, make_file, make_folder, make_npy, strays, tree

from compressor import __main__ as entry
from compressor.cli import main as command_line
from compressor.cli import signals, streams
from compressor.core import cleanup
from compressor.core.errors import InputError, OutputError, Problems, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.files import npy, npz, safetensors
from compressor.files import staging as atomic
from compressor.files.input_file import InputFile
from compressor.files.layout import FileLayout
from compressor.files.opening import open_source
from compressor.files.output import Sink
from compressor.files.staging import Staging, check_place, remove, reporting, sync_folder
from compressor.files.strict_json import parse_object, read_object

SPEC = TensorSpec("weight", "F32", (2, 3))
DATA = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def _unpublished() -> Iterator[None]:
    """Earlier runs in this process must not look like the one under test."""
    cleanup.begin()
    yield
    cleanup.begin()
    assert not cleanup._entries


def fail(number: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def put(staging: Staging, content: bytes = b"new") -> None:
    if staging.folder:
        Path(staging.path, "model.safetensors").write_bytes(content)
    else:
        Path(staging.path).write_bytes(content)


def old_model(path: Path) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"old")
    return path


# ---- staging: names and places ---------------------------------------------------------------------------------


def test_a_staged_file_is_hidden_until_it_is_published(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path / "a.npy"), folder=False, replace=False)
    assert os.listdir(tmp_path) == [f".a.npy.{os.getpid()}.tmp"]
    put(staging)
    staging.publish()
    assert os.listdir(tmp_path) == ["a.npy"]
    staging.discard()  # too late: nothing happens
    assert (tmp_path / "a.npy").read_bytes() == b"new"


def test_a_staged_folder_is_hidden_until_it_is_published(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path / "model/"), folder=True, replace=False)
    assert os.listdir(tmp_path) == [f".model.{os.getpid()}.tmp"]
    put(staging)
    staging.publish()
    assert tree(tmp_path) == {"model": {"model.safetensors": {"": b"new"}}}


@pytest.mark.parametrize("folder", [False, True])
def test_discarding_leaves_nothing(tmp_path: Path, folder: bool) -> None:
    staging = Staging(str(tmp_path / "x"), folder=folder, replace=False)
    put(staging)
    staging.discard()
    staging.discard()
    assert os.listdir(tmp_path) == []


def test_names_of_killed_runs_with_our_process_id_are_stepped_over(tmp_path: Path) -> None:
    stale = tmp_path / f".x.{os.getpid()}.tmp"
    stale.write_bytes(b"stale")
    staging = Staging(str(tmp_path / "x"), folder=False, replace=False)
    assert staging.path == str(tmp_path / f".x.{os.getpid()}.1.tmp")
    staging.discard()
    assert stale.read_bytes() == b"stale"
    for number in range(1, 100):
        (tmp_path / f".x.{os.getpid()}.{number}.tmp").touch()
    with pytest.raises(OutputError, match="too many stale temporary names"):
        Staging(str(tmp_path / "x"), folder=False, replace=False)


def test_a_temporary_that_appears_at_the_last_moment_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / f".x.{os.getpid()}.tmp"
    stale.write_bytes(b"not ours")
    lexists = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: False if path == str(stale) else lexists(path))
    staging = Staging(str(tmp_path / "x"), folder=False, replace=False)
    assert staging.path.endswith(".1.tmp")
    staging.discard()
    assert stale.read_bytes() == b"not ours"


@pytest.mark.parametrize("name", ["n" * 250, "ö" * 120, "\udcff" * 250, "-", "--help", "a b", ".x", "...", "x.tmp"])
def test_odd_and_long_names(tmp_path: Path, name: str) -> None:
    staging = Staging(str(tmp_path / name), folder=False, replace=False)
    assert len(os.fsencode(os.path.basename(staging.path))) < 130
    put(staging)
    staging.publish()
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("target", ["", ".", "..", "/", "//", "./", "x/.", "x/..", "../"])
def test_targets_that_name_nothing_new(target: str) -> None:
    with pytest.raises(OutputError, match="is not the name of something new"):
        check_place(target, folder=True, replace=True)


@pytest.mark.parametrize("target", ["nul\0.npy", "half\ud800.npy", "nul\0/a.npy", "half\ud800/a.npy"])
def test_targets_that_no_file_can_have(target: str) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        check_place(target, folder=False, replace=False)


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for inside in ("file/x.npy", "file/sub/x.npy"):
        with pytest.raises(OutputError, match=r"its parent is not a folder|Not a directory"):
            check_place(str(tmp_path / inside), folder=False, replace=False)


def test_a_place_is_absolute_and_keeps_links_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`link/../x` is where the kernel finds it, which is not beside the link."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    monkeypatch.chdir(tmp_path)
    assert check_place("x.npy", folder=False, replace=False) == str(tmp_path / "x.npy")
    staging = Staging("link/../x.npy", folder=False, replace=False)
    put(staging)
    monkeypatch.chdir("/")  # the place was settled before
    staging.publish()
    assert os.listdir(tmp_path / "far") == ["away", "x.npy"] or os.listdir(tmp_path / "far") == ["x.npy", "away"]


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "getcwd", fail(errno.ENOENT))
    with pytest.raises(OutputError, match="its folder does not exist"):
        check_place("x.npy", folder=False, replace=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("folder", [False, True])
def test_a_place_where_nothing_can_be_created(
    tmp_path: Path, number: int, folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.os, "mkdir" if folder else "open", fail(number))
    with pytest.raises(OutputError, match=os.strerror(number)):
        Staging(str(tmp_path / "x"), folder=folder, replace=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["stat", "lstat"])
def test_a_place_that_cannot_be_looked_at(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, call, fail(errno.EACCES))
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        check_place(str(tmp_path / "x"), folder=False, replace=False)


# ---- staging: what may be replaced -----------------------------------------------------------------------------


def test_existing_outputs_need_leave(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"old")
    old_model(tmp_path / "model")
    for name, folder in (("x.npy", False), ("model", True)):
        with pytest.raises(OutputError, match=r"exists already\. Use --force"):
            Staging(str(tmp_path / name), folder=folder, replace=False)


@pytest.mark.parametrize("folder", [False, True])
def test_the_old_mode_is_kept_and_what_is_built_is_private(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "x"
    if folder:
        old_model(target)
    else:
        target.write_bytes(b"old")
    target.chmod(0o710 if folder else 0o640)
    staging = Staging(str(target), folder=folder, replace=True)
    assert stat.S_IMODE(os.stat(staging.path).st_mode) == (0o700 if folder else 0o600)
    put(staging)
    staging.publish()
    assert stat.S_IMODE(target.stat().st_mode) == (0o710 if folder else 0o640)
    assert (target / "model.safetensors" if folder else target).read_bytes() == b"new"
    assert strays(tmp_path) == []


def test_dangerous_mode_bits_are_not_kept(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    target.chmod(0o4755)
    staging = Staging(str(target), folder=False, replace=True)
    staging.publish()
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def _model(path: Path) -> None:
    (path / "model.safetensors").touch()


def _sharded(path: Path) -> None:
    (path / "model.safetensors.index.json").touch()
    (path / "sub").mkdir()


def _empty(path: Path) -> None:
    pass


def _git(path: Path) -> None:
    _model(path)
    (path / ".git").mkdir()


def _other_weights(path: Path) -> None:
    _model(path)
    (path / "model.gguf").touch()


def _only_config(path: Path) -> None:
    (path / "config.json").touch()
    (path / "main.py").touch()


def _only_lora(path: Path) -> None:
    (path / "lora.safetensors").touch()


@pytest.mark.parametrize(
    ("fill", "ours"),
    [
        (_model, True),
        (_sharded, True),
        (_empty, True),
        (_git, False),
        (_other_weights, False),
        (_only_config, False),
        (_only_lora, False),
    ],
)
def test_which_folders_may_be_replaced(tmp_path: Path, fill: Callable[[Path], None], ours: bool) -> None:
    """Replacing a folder deletes what is in it, so only what a run could have written is replaced."""
    target = tmp_path / "x"
    target.mkdir()
    fill(target)
    if ours:
        assert check_place(str(target), folder=True, replace=True) == str(target)
    else:
        before = tree(target)
        with pytest.raises(OutputError, match="no run of this tool has written"):
            check_place(str(target), folder=True, replace=True)
        assert tree(target) == before


@pytest.mark.parametrize("slash", ["", "/", "//"])
def test_a_link_to_a_folder_is_not_replaced(tmp_path: Path, slash: str) -> None:
    old_model(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OutputError, match="no run of this tool has written"):
        check_place(str(tmp_path / "link") + slash, folder=True, replace=True)


def test_a_link_to_a_file_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    staging = Staging(str(tmp_path / "link"), folder=False, replace=True)
    put(staging)
    staging.publish()
    assert (tmp_path / "real").read_bytes() == b"old"
    assert not (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "link").stat().st_mode) == 0o640


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_links_that_lead_nowhere_are_refused(tmp_path: Path, replace: bool, folder: bool) -> None:
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("nowhere", "loop"):
        with pytest.raises(OutputError, match=r"what is there is|Too many levels"):
            check_place(str(tmp_path / name), folder=folder, replace=replace)


# ---- publishing against others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [False, True])
def test_what_somebody_else_created_meanwhile_stays(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "x"
    staging = Staging(str(target), folder=folder, replace=False)
    put(staging)
    if folder:
        target.mkdir()  # even an empty one, which rename() would replace
    else:
        target.write_bytes(b"theirs")
    before = tree(target)
    with pytest.raises(OutputError, match="was created by somebody else meanwhile"):
        staging.publish()
    staging.discard()
    assert tree(tmp_path) == {"x": before}


def test_a_file_where_the_folder_should_go(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path / "x"), folder=True, replace=False)
    (tmp_path / "x").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="was created by somebody else meanwhile"):
        staging.publish()
    staging.discard()
    assert (tmp_path / "x").read_bytes() == b"theirs"


@pytest.mark.parametrize("folder", [False, True])
def test_a_target_that_became_something_else_is_not_replaced(tmp_path: Path, folder: bool) -> None:
    """Checked again before the name is given: at the start the place was free, now it holds a stranger's work."""
    target = tmp_path / "x"
    staging = Staging(str(target), folder=folder, replace=True)
    put(staging)
    target.mkdir()
    (target / "thesis.tex").write_bytes(b"years")
    with pytest.raises(OutputError):
        staging.publish()
    staging.discard()
    assert tree(tmp_path) == {"x": {"thesis.tex": {"": b"years"}}}


@pytest.mark.parametrize("folder", [False, True])
def test_an_old_output_that_vanished_meanwhile(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "x"
    if folder:
        old_model(target)
    else:
        target.write_bytes(b"old")
    staging = Staging(str(target), folder=folder, replace=True)
    put(staging)
    remove(str(target))
    staging.publish()
    assert (target / "model.safetensors" if folder else target).read_bytes() == b"new"
    assert strays(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
@pytest.mark.parametrize("modern", [True, False])
def test_file_systems_without_hard_links(
    tmp_path: Path, number: int, modern: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.os, "link", fail(number))
    if not modern:
        monkeypatch.setattr(atomic, "_libc_renameat2", lambda: None)
    staging = Staging(str(tmp_path / "x"), folder=False, replace=False)
    put(staging)
    staging.publish()
    assert tree(tmp_path) == {"x": {"": b"new"}}
    staging = Staging(str(tmp_path / "y"), folder=False, replace=False)
    (tmp_path / "y").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="was created by somebody else meanwhile"):
        staging.publish()
    staging.discard()
    assert (tmp_path / "y").read_bytes() == b"theirs"


def test_a_link_that_fails_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "link", fail(errno.EIO))
    staging = Staging(str(tmp_path / "x"), folder=False, replace=False)
    with pytest.raises(OutputError, match=r"Input/output error\. Nothing was left behind"):
        staging.publish()
    staging.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_kernels_without_an_exchange(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def old_kernel(*_: Any) -> int:
        atomic.ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(atomic, "_libc_renameat2", lambda: old_kernel)
    target = old_model(tmp_path / "x")
    staging = Staging(str(target), folder=True, replace=True)
    put(staging)
    staging.publish()
    assert tree(tmp_path) == {"x": {"model.safetensors": {"": b"new"}}}


def test_an_exchange_that_fails_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        atomic.ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(atomic, "_libc_renameat2", lambda: broken)
    target = old_model(tmp_path / "x")
    staging = Staging(str(target), folder=True, replace=True)
    with pytest.raises(OutputError, match="Input/output error"):
        staging.publish()
    staging.discard()
    assert tree(tmp_path) == {"x": {"model.safetensors": {"": b"old"}}}


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_exchange_in_steps_goes_back_where_it_can(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1: the old does not move; 2: the new does not, the old goes back; 3: the old keeps its hidden name."""
    monkeypatch.setattr(atomic, "_libc_renameat2", lambda: None)
    target = old_model(tmp_path / "x")
    staging = Staging(str(target), folder=True, replace=True)
    put(staging)
    real, calls = os.rename, []

    def rename(a: str, b: str) -> None:
        calls.append(a)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        real(a, b)

    monkeypatch.setattr(atomic.os, "rename", rename)
    if failing < 3:
        with pytest.raises(OutputError, match="Input/output error"):
            staging.publish()
        staging.discard()
        assert tree(tmp_path) == {"x": {"model.safetensors": {"": b"old"}}}
    else:
        staging.publish()
        assert tree(target) == {"model.safetensors": {"": b"new"}}
        assert strays(tmp_path) == [f".x.{os.getpid()}.tmp.old"]


def test_an_exchange_that_cannot_go_back_says_where_the_old_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_libc_renameat2", lambda: None)
    target = old_model(tmp_path / "x")
    staging = Staging(str(target), folder=True, replace=True)
    real, calls = os.rename, []

    def rename(a: str, b: str) -> None:
        calls.append(a)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        real(a, b)

    monkeypatch.setattr(atomic.os, "rename", rename)
    with pytest.raises(OutputError, match=r"what it was is now .*\.tmp\.old"):
        staging.publish()
    monkeypatch.undo()
    staging.discard()
    assert tree(tmp_path / f".x.{os.getpid()}.tmp.old") == {"model.safetensors": {"": b"old"}}


def test_a_library_without_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.ctypes, "CDLL", fail(errno.ENOENT))
    atomic._libc_renameat2.cache_clear()
    try:
        assert atomic._libc_renameat2() is None
    finally:
        atomic._libc_renameat2.cache_clear()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_parent_that_cannot_be_synced_does_not_undo_the_result(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.os, "fsync", fail(number))
    staging = Staging(str(tmp_path / "x"), folder=False, replace=False)
    staging.publish()
    assert os.listdir(tmp_path) == ["x"]
    if number == errno.EINVAL:
        sync_folder(str(tmp_path))  # a file system that cannot do it
    else:
        with pytest.raises(OSError, match="Input/output"):
            sync_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EEXIST, "was created by somebody else"),
        (errno.ENOTEMPTY, "was created by somebody else"),
        (errno.EISDIR, "was created by somebody else"),
        (errno.ENOTDIR, "was created by somebody else"),
        (errno.ENOSPC, "No space left on device"),
        (errno.EFBIG, "File too large"),
    ],
)
def test_how_errors_of_writing_read(number: int, says: str) -> None:
    with pytest.raises(OutputError, match=says) as caught, reporting("x"):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 4
    with pytest.raises(OutputError, match="odd"), reporting("x"):
        raise OSError("odd")


# ---- removing --------------------------------------------------------------------------------------------------


def test_removal_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, left = os.unlink, [2]

    def stubborn(path: str) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        unlink(path)

    (tmp_path / "x").touch()
    monkeypatch.setattr(atomic.os, "unlink", stubborn)
    remove(str(tmp_path / "x"))
    assert os.listdir(tmp_path) == []
    (tmp_path / "y").touch()
    left[0] = 5
    remove(str(tmp_path / "y"))  # gives up
    assert os.listdir(tmp_path) == ["y"]


def test_removal_of_a_folder_that_resists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_model(tmp_path / ".x.1.tmp")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.shutil, "rmtree", lambda *_, **__: None)
        remove(str(tmp_path / ".x.1.tmp"))
    assert os.listdir(tmp_path) == [".x.1.gone.tmp"]
    old_model(tmp_path / ".x.1.tmp")  # and the name that it would get is taken
    remove(str(tmp_path / ".x.1.tmp"))
    assert os.listdir(tmp_path) == [".x.1.gone.tmp"]
    remove(str(tmp_path / ".x.1.gone.tmp"))
    assert os.listdir(tmp_path) == []


def test_removal_of_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    old_model(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    remove(str(tmp_path / "link"))
    assert tree(tmp_path) == {"real": {"model.safetensors": {"": b"old"}}}


# ---- the sink --------------------------------------------------------------------------------------------------


def one_file(target: Path, container: str = "npy", **more: Any) -> Sink:
    layouts = {"npy": npy.layout(SPEC), "safetensors": safetensors.layout([SPEC], {})}
    layouts["npz"] = npz.layout([("weight", SPEC)])
    return Sink(str(target), container, [(target.name, layouts[container])], replace=False, **more)


def write(sink: Sink, data: np.ndarray = DATA) -> None:
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
    other = FileLayout(planned.size, planned.pieces, {"weight": planned.offsets["weight"] + 1})
    sink = Sink(str(tmp_path / "x.safetensors"), "safetensors", [("x", other)], replace=False)
    write(sink, DATA[:, :])
    sink.write(0, planned.offsets["weight"], DATA)
    os.truncate(sink.path("x"), planned.size)
    with pytest.raises(OutputError, match="does not read back as planned"):
        sink.finish_file(0)
    sink.discard()


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
    sink = Sink(str(tmp_path / "x"), "folder", [(f"{n}.safetensors", plan) for n in range(30)], replace=False)
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
    sink = Sink(str(tmp_path / "x"), "folder", [(f"{n}.safetensors", plan) for n in range(9)], replace=False)
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
    sink = Sink(str(tmp_path / "out"), "folder", [], replace=False)
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
    sink = Sink(str(tmp_path / "out"), "folder", [], replace=False)
    with pytest.raises(InputError, match="changed while it was read"):
        sink.copy("a.txt", source)
    sink.discard()
    assert os.listdir(tmp_path) == ["a.txt"]


# ---- strict JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "Expecting value"),
        (b"[1]", "not an object"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": 1, "a": 1}', "a key occurs twice"),
        (b'{"b": {"a": 1, "a": 2}}', "a key occurs twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": "\\ud800"}', "is not valid UTF-8 JSON"),
        (b'{"\\uDFFF": 1}', "is not valid UTF-8 JSON"),
        (b'{"a": "\xff"}', "is not valid UTF-8 JSON"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"{}".decode().encode("utf-16"), "is not valid UTF-8 JSON"),
        (b'{"a":' * 200_000, "too deeply nested"),
        (b'{"a":' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": "x\ny"}', "Invalid control character"),
    ],
)
def test_json_that_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse_object(raw, "x.json")
    assert "\n" not in str(caught.value)


def test_json_that_is_accepted() -> None:
    content = {
        "a": [1, 2.5, None, True, "é\U0001f600"],
        "": {"b": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")},
    }
    assert parse_object(json.dumps(content).encode(), "x") == content
    assert parse_object(json.dumps(content, ensure_ascii=False).encode(), "x") == content


def test_json_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("compressor.files.strict_json.json.loads", greedy)
    with pytest.raises(InputError, match="out of memory"):
        parse_object(b"{}", "x")


_BOMBS = {
    "lists": b'{"a":[' + b"[]," * 7_900_000 + b"1]}",
    "objects": b'{"a":[' + b"{}," * 1_300_000 + b"1]}",
    "texts": b'{"a":{' + b",".join(b'"%06x":"%02x"' % (n, n % 256) for n in range(700_000)) + b"}}",
    "wide": ('{"a":"' + "x" * 23_900_000 + '\U0001f600"}').encode(),
    "floats": b'{"a":[' + b"1.1," * 2_800_000 + b"1]}",
}
_MEASURE = """
import sys
from compressor.core.errors import InputError
from compressor.files.input_file import InputFile
from compressor.files.strict_json import read_object
from support.fault_injection import peak_memory
before = peak_memory()
try:
    read_object(InputFile.open(sys.argv[1]))
except InputError:
    pass
print(peak_memory() - before)
"""


@pytest.mark.parametrize("bomb", _BOMBS)
def test_json_costs_bounded_memory(tmp_path: Path, bomb: str) -> None:
    """A byte of JSON can become thirty in memory; the whole costs at most 256 MiB, accepted or not."""
    path = tmp_path / "x.json"
    path.write_bytes(_BOMBS[bomb])
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", _MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < 256 << 20


def test_json_of_too_many_items() -> None:
    with pytest.raises(InputError, match="it has too many items"):
        parse_object(b'{"a":[' + b"[]," * 2_000_000 + b"1]}", "x.json")


def test_json_files_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(InputError, match="has 100000000 bytes; the limit is 24000000"):
        read_object(InputFile.open(path))


# ---- sources ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "nul\0.npy", "half\ud800.npy", "missing.npy", "n" * 300, "missing/a.npy"])
def test_inputs_that_cannot_be_opened(name: str) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        open_source(name)


def test_a_suffix_is_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "x.\x1b[31mred").touch()
    with pytest.raises(InputError, match=r"\\x1b\[31mred"):
        open_source(tmp_path / "x.\x1b[31mred")


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("fortran", [False, True])
def test_rows_of_every_order_and_endianness(tmp_path: Path, fortran: bool, big_endian: bool) -> None:
    array = np.arange(60, dtype=">f4" if big_endian else "<f4").reshape(5, 4, 3)
    np.save(tmp_path / "x.npy", np.asfortranarray(array) if fortran else array)
    tensor = open_source(tmp_path / "x.npy").tensors["weight"]
    assert tensor.contiguous == (not fortran and not big_endian)
    for start, stop in ((0, 5), (1, 3), (4, 5), (2, 2)):
        rows = tensor.read_rows(12, start, stop, Workspace(), "x")
        np.testing.assert_array_equal(rows, array.reshape(5, 12)[start:stop].astype("<f4"))


def test_bytes_of_a_tensor_that_is_only_copied(tmp_path: Path) -> None:
    source = open_source(make_file(tmp_path / "x.safetensors"))
    assert bytes(source.tensors["ids"].read_bytes(0, 8, Workspace(), "x")) == (2**53 + 1).to_bytes(8, "little")
    assert source.nbytes == (tmp_path / "x.safetensors").stat().st_size


def test_every_file_of_a_source_is_watched(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in")
    source = open_source(folder)
    assert len(source.opened) == 5
    source.check_unchanged()
    os.utime(folder / "tokenizer.json", (1, 1))
    with pytest.raises(InputError, match=r"tokenizer\.json: changed while it was read"):
        source.check_unchanged()


@pytest.mark.parametrize(("at", "call"), [(2, "fstat"), (3, "close")])
def test_errors_of_looking_at_a_file_are_refusals(tmp_path: Path, at: int, call: str) -> None:
    path = make_npy(tmp_path / "x.npy")
    with FaultyOs(at).installed() as faulty, pytest.raises(InputError, match="cannot be read: Input/output error"):
        InputFile.open(path)
    assert faulty.victims == [(call, str(path))]


# ---- streams ---------------------------------------------------------------------------------------------------


class Broken(io.StringIO):
    """A stream whose other end is gone."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("essential", [True, False])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_results_that_cannot_be_printed(
    number: int, essential: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(number))
    assert not streams.emit("x", essential=essential)
    said = capsys.readouterr().err
    if essential:
        assert said.startswith("error: the report could not be printed")
    else:
        assert said.startswith("warning: ") == (number == errno.ENOSPC)


def test_messages_that_cannot_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(errno.EIO))
    streams.say("error", "x")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    streams.say("error", "x")


def test_messages_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    streams.say("error", "a\nb\r\nc\u2028d \x1b[31m\u202e\udcff\x85e")
    assert capsys.readouterr().err == "error: a b c d \\x1b[31m\\u202e\\udcff e\n"


def test_streams_that_the_caller_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    streams.prepare_streams()
    with sys.stdout, sys.stderr:
        assert sys.stdout.write("x") == sys.stderr.write("x") == 1


def test_the_numbers_of_closed_streams_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, closed = iter([0, 2, 7]), []
    monkeypatch.setattr(streams.os, "open", lambda *_: next(numbers))
    monkeypatch.setattr(streams.os, "close", closed.append)
    streams.prepare_streams()
    monkeypatch.undo()
    assert closed == [7]


def test_a_silenced_stream_writes_nowhere(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as stream:
        stream.write("before ")
        streams.silence(stream)
        stream.write("after")
    assert (tmp_path / "x").read_bytes() == b""


def test_a_terminal_that_goes_away_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[Any] = []
    monkeypatch.setattr(streams, "silence", lost.append)
    broken = Broken(errno.EIO)
    monkeypatch.setattr(sys, "__stderr__", broken)
    monkeypatch.setattr(sys, "stderr", broken)
    streams.prepare_streams()
    assert sys.stderr.write("bar") == 3
    sys.stderr.flush()
    assert not sys.stderr.isatty()
    assert lost == [broken]


# ---- the command line's own errors -----------------------------------------------------------------------------


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[str]]:
    def work(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(command_line.cli, "main", work)
    return invoke(list(arguments))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("x", remedy="y"), 2, "error: x. y"),
        (InputError("x", file="f\x1b", tensor="t\n"), 3, "error: f\\x1b: tensor 't\\n': x"),
        (OutputError("x"), 4, "error: x"),
        (MemoryError(), 4, "error: out of memory; --workers 1 needs less"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            4,
            "error: input or output failed: No space left on device",
        ),
        (OSError("odd"), 4, "error: input or output failed: odd"),
        (
            RuntimeError("can't start new thread"),
            4,
            "error: no more threads can be started; --workers 1 needs none",
        ),
        (RuntimeError("odd"), 70, "error: a bug in compressor: RuntimeError: odd. Run with --debug and report it"),
        (KeyError("k\n"), 70, "error: a bug in compressor: KeyError: 'k\\n'. Run with --debug and report it"),
        (
            RecursionError("deep"),
            70,
            "error: a bug in compressor: RecursionError: deep. Run with --debug and report it",
        ),
    ],
)
def test_every_error_has_its_code_and_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert raising(error, monkeypatch) == (code, [line])


@pytest.mark.parametrize("error", [KeyError("k"), OSError("odd"), RuntimeError("can't start new thread")])
def test_tracebacks_are_for_debugging(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        raising(error, monkeypatch, "--debug")


def test_many_problems_are_shown_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = Problems([InputError("bad", tensor=f"t{number}") for number in range(100_000)])
    code, lines = raising(problems, monkeypatch)
    assert code == 3
    assert len(lines) == 21
    assert lines[0] == "error: tensor 't0': bad"
    assert lines[-1] == "error: and 99980 more"


def test_ways_out_of_click(monkeypatch: pytest.MonkeyPatch) -> None:
    assert raising(SystemExit(1), monkeypatch) == (4, [])  # a closed pipe
    monkeypatch.setenv("_COMPRESSOR_COMPLETE", "bash_source")
    assert raising(SystemExit(0), monkeypatch) == (0, [])


# ---- signals ---------------------------------------------------------------------------------------------------


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def leaving(code: int) -> None:
        codes.append(code)
        raise Left

    monkeypatch.setattr(signals.os, "_exit", leaving)
    monkeypatch.setattr(signals, "_stopping", False)
    monkeypatch.setattr(signals, "_ignored", 0)
    return codes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_what_is_half_written(
    tmp_path: Path, leave: list[int], number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in (False, True):
        put(Staging(str(tmp_path / f"x{folder}"), folder=folder, replace=False))
    with pytest.raises(Left):
        signals._stop(number, None)
    assert leave == [128 + number]
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr().err == f"error: stopped by {signal.Signals(number).name}; nothing was written\n"


def test_a_signal_before_anything_is_imported(leave: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "compressor.files.staging")
    with pytest.raises(Left):
        signals._stop(signal.SIGTERM, None)
    assert leave == [143]


def test_a_signal_during_publishing_comes_too_late(tmp_path: Path, leave: list[int]) -> None:
    staging = Staging(str(tmp_path / "x"), folder=False, replace=False)
    staging.settled = True
    signals._stop(signal.SIGTERM, None)
    signals._stop(signal.SIGTERM, None)  # not yet published: it may still fail
    assert leave == []
    assert not cleanup.run()
    staging.settled = False
    staging.publish()
    with pytest.raises(Left):
        signals._stop(signal.SIGTERM, None)
    assert leave == [0]
    assert os.listdir(tmp_path) == ["x"]


def test_after_publishing_a_second_signal_cuts_the_report_short(
    tmp_path: Path, leave: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    Staging(str(tmp_path / "x"), folder=False, replace=False).publish()
    signals._stop(signal.SIGINT, None)
    assert leave == []
    with pytest.raises(Left):
        signals._stop(signal.SIGINT, None)
    assert leave == [0]
    assert capfd.readouterr().err == "warning: the report was cut short; the output is complete\n"


def test_a_signal_during_the_removal_waits_for_it(
    tmp_path: Path, leave: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = atomic.remove

    def interrupted(path: str) -> None:
        signals._stop(signal.SIGINT, None)
        real(path)

    monkeypatch.setattr(atomic, "remove", interrupted)
    put(Staging(str(tmp_path / "x"), folder=True, replace=False))
    with pytest.raises(Left):
        signals._stop(signal.SIGTERM, None)
    assert leave == [143]
    assert os.listdir(tmp_path) == []


def test_the_cursor_that_a_progress_bar_hid_comes_back(leave: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.progress  # noqa: F401 - a bar was shown

    written: list[bytes] = []
    monkeypatch.setattr(signals.os, "isatty", lambda fd: True)
    monkeypatch.setattr(signals.os, "write", lambda fd, data: written.append(data))
    with pytest.raises(Left):
        signals._stop(signal.SIGINT, None)
    assert b"\x1b[?25h" in written[0]
    assert written[1].startswith(b"error: ")


def test_a_stderr_that_is_gone_does_not_keep_a_signal(leave: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals.os, "write", fail(errno.EPIPE))
    with pytest.raises(Left):
        signals._stop(signal.SIGINT, None)
    assert leave == [130]


def test_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(signals.signal, "getsignal", lambda n: signal.SIG_IGN if n == signal.SIGHUP else None)
    monkeypatch.setattr(signals.signal, "signal", lambda number, handler: taken.append(number))
    signals.install()
    assert taken == [signal.SIGINT, signal.SIGTERM]


def test_the_module_runs_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    seen: list[Any] = []
    monkeypatch.setattr(command_line, "run", lambda arguments: seen.append(arguments) or 3)
    monkeypatch.setattr(sys, "argv", ["compressor", "x"])
    for module in (signals, entry):
        monkeypatch.setattr(module, "install", lambda: seen.append("signals"))
        monkeypatch.setattr(module, "ignore", lambda: seen.append("ignored"))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert (end.value.code, seen) == (3, ["signals", ["x"], "ignored"])
    monkeypatch.delitem(sys.modules, "compressor.__main__")
    with pytest.raises(SystemExit):
        runpy.run_module("compressor", run_name="__main__")
    assert len(seen) == 6


def test_at_the_end_signals_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: dict[int, Any] = {}
    monkeypatch.setattr(signals.signal, "signal", set_to.__setitem__)
    signals.ignore()
    assert set_to == dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)
