"""What is built beside its place and then published: names, what may be replaced, others meanwhile, removal."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from support.fault_injection import strays, tree
from support.staged import fail, put

from compressor.core import cleanup
from compressor.core.errors import OutputError
from compressor.files import staging as atomic
from compressor.files.staging import Staging, check_place, remove, reporting, sync_folder


def _weights(metadata: dict[str, str]) -> bytes:
    return save({"a": np.zeros(3, np.float32)}, metadata=metadata)


OLD = _weights({"compressor": '{"version": 1, "stages": []}'})  # by what a run says of itself there


def old_model(path: Path) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_bytes(OLD)
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
    (path / "model.safetensors").write_bytes(OLD)


def _sharded(path: Path) -> None:
    (path / "model.safetensors.index.json").touch()
    (path / "sub").mkdir()
    (path / "sub" / "shard-1.safetensors").write_bytes(OLD)


def _archive(path: Path) -> None:
    (path / "model.safetensors").write_bytes(_weights({"compressor.archive": "1"}))


def _others_model(path: Path) -> None:
    (path / "model.safetensors").write_bytes(_weights({"format": "pt"}))
    (path / "README.md").touch()


def _damaged_model(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"<html>")


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
        (_archive, True),
        (_others_model, False),
        (_damaged_model, False),
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
    assert tree(tmp_path) == {"x": {"model.safetensors": {"": OLD}}}


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
        assert tree(tmp_path) == {"x": {"model.safetensors": {"": OLD}}}
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
    assert tree(tmp_path / f".x.{os.getpid()}.tmp.old") == {"model.safetensors": {"": OLD}}


def test_a_library_without_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.ctypes, "CDLL", fail(errno.ENOENT))
    atomic._libc_renameat2.cache_clear()
    try:
        assert atomic._libc_renameat2() is None
    finally:
        atomic._libc_renameat2.cache_clear()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_parent_that_cannot_be_synced_does_not_undo_the_result_and_is_told(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.os, "fsync", fail(number))
    staging = Staging(str(tmp_path / "x"), folder=False, replace=False)
    cleanup.doubts()
    staging.publish()
    assert os.listdir(tmp_path) == ["x"]
    doubts = cleanup.doubts()
    assert not cleanup.doubts()
    if number == errno.EINVAL:
        assert not doubts
        sync_folder(str(tmp_path))  # a file system that cannot do it
    else:
        (said,) = doubts
        assert "x is complete, but the folder that it is in could not be synced (Input/output error)" in said
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
    assert tree(tmp_path) == {"real": {"model.safetensors": {"": OLD}}}


def test_what_killed_runs_left_beside_the_output_is_named(tmp_path: Path) -> None:
    """And stays: whoever wrote it may run in another container."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [
        f".x.{ended.pid}.tmp",
        f".x.{ended.pid}.1.tmp",
        f".x.trial.{ended.pid}.tmp",
        ".x.99999999999999999999.tmp",
    ]
    others = [f".x.{os.getpid()}.tmp", f".y.{ended.pid}.tmp", ".x.tmp", f"x.{ended.pid}.tmp"]
    for name in (*left, *others):
        (tmp_path / name).touch()
    cleanup.doubts()
    staging = Staging(str(tmp_path / "x"), folder=False, replace=False)
    put(staging)
    staging.publish()
    said = cleanup.doubts()
    assert [line.split(" was left by a run that was killed")[0] for line in said] == [
        str(tmp_path / name) for name in sorted(left)
    ]
    assert sorted(os.listdir(tmp_path)) == sorted([*left, *others, "x"])
