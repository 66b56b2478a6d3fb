"""Where inputs and outputs may lie, and what they may be called: row by row of the trust table, end to end."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clock import HANGS
from support.console import compressor as in_process
from support.fault_injection import Server, invoke, is_one_line, make_file, make_folder, make_npy, strays, tree

PRUNE = ("prune", "--sparsity", "0.5")
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    serving = Server()
    yield serving
    serving.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an input of every kind."""
    make_file(tmp_path / "in.safetensors")
    make_npy(tmp_path / "in.npy")
    make_folder(tmp_path / "in")
    return tmp_path


def refused(place: Path, code: int, source: str | Path, output: str | Path, *more: str) -> str:
    """The line of a refusal that leaves everything as it was."""
    before = tree(place)
    found, lines = invoke([*PRUNE, str(source), "-o", str(output), *more])
    assert found == code, lines
    assert is_one_line(lines), lines
    assert tree(place) == before
    return lines[0]


def accepted(source: str | Path, output: str | Path, *more: str) -> None:
    code, lines = invoke([*PRUNE, str(source), "-o", str(output), "-q", *more])
    assert code == 0, lines


def compressor(*arguments: str | bytes | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The tool as a shell starts it."""
    command = [sys.executable, "-m", "compressor", *arguments]
    return subprocess.run(command, capture_output="stdout" not in options, check=False, timeout=HANGS, **options)


# ---- row 67: the output is the input ---------------------------------------------------------------------------


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("name", ["in.npy", "in.safetensors", "in"])
def test_the_output_is_the_input(
    place: Path, name: str, force: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "in")
    for output in (place / name, f"../{name}", f"{place}/in/../{name}", f"{place}//./{name}"):
        assert "is the input itself" in refused(place, 2, place / name, output, *force)
    if name == "in":
        for output in (".", "./", f"{place}/in/", f"{place}/in/."):
            assert "is the input itself" in refused(place, 2, place / name, output, *force)


def test_the_output_is_the_teacher(place: Path) -> None:
    shutil.copy(place / "in.npy", place / "student.npy")
    before = tree(place)
    arguments = ["distill", "--teacher", str(place / "in.npy"), str(place / "student.npy")]
    code, lines = invoke([*arguments, "-o", str(place / "in.npy"), "--force"])
    assert code == 2
    assert is_one_line(lines)
    assert tree(place) == before


# ---- row 68: links between output and input --------------------------------------------------------------------


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_output_is_a_link_to_the_input(
    place: Path, link: Callable[[Any, Any], None], force: tuple[str, ...]
) -> None:
    link(place / "in.npy", place / "out.npy")
    assert "is the input itself" in refused(place, 2, place / "in.npy", place / "out.npy", *force)


def test_the_output_is_in_a_linked_folder(place: Path) -> None:
    (place / "alias").symlink_to(".")
    assert "is the input itself" in refused(place, 2, place / "in.npy", place / "alias" / "in.npy", "--force")
    (place / "alias2").symlink_to("in")
    assert "lies inside" in refused(place, 2, place / "in", place / "alias2" / "out.safetensors", "--force")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_output_is_what_a_shard_of_the_input_is(place: Path, link: Callable[[Any, Any], None]) -> None:
    """A folder's shards may be links, or have further names: replacing what they are would change the input."""
    shard = place / "in" / "model-00002-of-00002.safetensors"
    (place / "elsewhere").mkdir()
    shutil.move(shard, place / "elsewhere" / "w.safetensors")
    link(place / "elsewhere" / "w.safetensors", shard)
    target = place / "elsewhere" / "w.safetensors"
    assert "is the input itself" in refused(place, 2, place / "in", target, "--force")


def test_the_output_would_replace_the_folder_that_a_link_of_the_input_leads_to(place: Path) -> None:
    accepted(place / "in", place / "base")
    (place / "in" / "tokenizer.json").unlink()
    (place / "in" / "tokenizer.json").symlink_to("../base/tokenizer.json")
    assert "holds the input" in refused(place, 2, place / "in", place / "base", "--force")


def test_a_link_as_input_is_followed(place: Path) -> None:
    (place / "link.npy").symlink_to("in.npy")
    (place / "link").symlink_to("in")
    accepted(place / "link.npy", place / "out.npy")
    accepted(place / "link", place / "out")
    assert (place / "link.npy").is_symlink()


# ---- row 69: the output inside or around the input -------------------------------------------------------------


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_the_output_lies_inside_the_input(place: Path, force: tuple[str, ...]) -> None:
    for output in ("in/out", "in/1_Pooling", "in/out.safetensors", "in/model-00001-of-00002.safetensors", "in/a/b"):
        assert "lies inside the input folder" in refused(place, 2, place / "in", place / output, *force)


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_the_output_holds_the_input(place: Path, force: tuple[str, ...]) -> None:
    for output in (place, place.parent, "/"):
        assert "holds the input" in refused(place, 2, place / "in", output, *force)
        assert "holds the input" in refused(place, 2, place / "in.npy", output, *force)


# ---- row 70: existing outputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "output"), [("in.npy", "out.npy"), ("in", "out"), ("in", "out.npz")])
def test_an_existing_output_stays_without_force(place: Path, source: str, output: str) -> None:
    if source == "in" and output == "out":
        shutil.copytree(place / "in", place / "out")
    else:
        (place / output).write_bytes(b"old")
    if output == "out.npz":
        source = "in.npy"
        code, lines = invoke(["quantize", "--bits", "4", str(place / source), "-o", str(place / output)])
        assert code == 4
    else:
        lines = [refused(place, 4, place / source, place / output)]
    assert is_one_line(lines)
    assert "exists already. Use --force to replace it" in lines[0]


def test_force_replaces_whole(place: Path) -> None:
    (place / "out.npy").write_bytes(b"old")
    accepted(place / "in.npy", place / "out.npy", "--force")
    assert np.count_nonzero(np.load(place / "out.npy")) == 24 * 16
    accepted(place / "in", place / "out")
    (place / "out" / "leftover.txt").write_bytes(b"of the old one")
    accepted(place / "in", place / "out", "--force")
    assert not (place / "out" / "leftover.txt").exists()
    assert set(os.listdir(place / "out")) == {*os.listdir(place / "in"), "README.md"}
    assert not strays(place)


@pytest.mark.parametrize("gate", ["--max-error", "--min-sparsity", "--max-size"])
def test_a_failed_gate_keeps_the_old_output(place: Path, gate: str) -> None:
    accepted(place / "in.npy", place / "out.npy")
    before = tree(place)
    value = {"--max-error": "0.001", "--min-sparsity": "0.9", "--max-size": "1"}[gate]
    code, lines = invoke(
        [*PRUNE, str(place / "in.npy"), "-o", str(place / "out.npy"), "--force", gate, value, "-q"]
    )
    assert code == 1
    assert is_one_line(lines)
    assert tree(place) == before


def test_a_refused_input_keeps_the_old_output(place: Path) -> None:
    bad = np.load(place / "in.npy")
    bad[3, 4] = np.inf
    np.save(place / "bad.npy", bad)
    accepted(place / "in.npy", place / "out.npy")
    assert "holds 1 NaN or infinite value" in refused(place, 3, place / "bad.npy", place / "out.npy", "--force")


def test_a_folder_that_is_no_model_is_not_replaced(place: Path) -> None:
    """With --force too: replacing it would delete somebody's work."""
    (place / "thesis").mkdir()
    (place / "thesis" / "config.json").write_text("{}")
    (place / "thesis" / "chapter1.tex").write_text("x")
    assert "exists already" in refused(place, 4, place / "in", place / "thesis")
    assert "no run of this tool has written" in refused(place, 4, place / "in", place / "thesis", "--force")


def test_a_model_of_somebody_else_is_not_replaced(place: Path) -> None:
    """By what its files say, not by their names."""
    shutil.copytree(place / "in", place / "downloaded")
    before = tree(place / "downloaded")
    assert "by what its files say" in refused(place, 4, place / "in", place / "downloaded", "--force")
    assert tree(place / "downloaded") == before


def test_what_restore_wrote_is_replaced_by_what_restore_writes(place: Path) -> None:
    """It carries no record, so it is known by having no other files than the new one has."""
    accepted(place / "in", place / "pruned", "--store", "bitmask")
    for force in ((), ("--force",)):
        code, lines = invoke(["restore", str(place / "pruned"), "-o", str(place / "dense"), "--quiet", *force])
        assert code == 0, lines
    (place / "dense" / "notes.txt").touch()
    command = ["restore", str(place / "pruned"), "-o", str(place / "dense"), "--quiet", "--force"]
    before = tree(place)
    code, lines = invoke(command)
    assert code == 4
    assert "notes.txt in it would be lost. Name another, or delete it yourself" in lines[0]
    assert tree(place) == before


def test_an_empty_folder_needs_force_and_is_replaced(place: Path) -> None:
    (place / "out").mkdir()
    refused(place, 4, place / "in", place / "out")
    accepted(place / "in", place / "out", "--force")


# ---- row 71: outputs that are something else -------------------------------------------------------------------


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_output_that_is_no_file(place: Path, force: tuple[str, ...]) -> None:
    (place / "folder.npy").mkdir()
    os.mkfifo(place / "fifo.npy")
    (place / "link.npy").symlink_to("/dev/null")
    (place / "nowhere.npy").symlink_to("missing")
    for name in ("folder.npy", "fifo.npy", "link.npy", "nowhere.npy"):
        line = refused(place, 4, place / "in.npy", place / name, *force)
        assert "would be a file, but what is there is not a regular file" in line


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_device_is_not_replaced(place: Path, force: tuple[str, ...]) -> None:
    """A rename as root would replace it, for the whole system."""
    before = os.stat("/dev/null")
    refused(place, 4, place / "in.npy", "/dev/null", *force)
    refused(place, 4, place / "in", "/dev/null", *force)
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode)
    assert (before.st_ino, before.st_rdev) == (after.st_ino, after.st_rdev)


@pytest.mark.skipif(not ROOT, reason="only root makes devices")
def test_a_device_with_a_fitting_name_is_not_replaced(place: Path) -> None:
    try:
        os.mknod(place / "out.npy", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("no devices here")
    code, lines = invoke([*PRUNE, str(place / "in.npy"), "-o", str(place / "out.npy"), "--force"])
    assert code == 4
    assert is_one_line(lines)
    assert stat.S_ISCHR(os.stat(place / "out.npy").st_mode)


# ---- row 72: places where nothing can be -----------------------------------------------------------------------


def test_parents_that_do_not_serve(place: Path) -> None:
    (place / "file").write_bytes(b"x")
    assert "does not exist. Create it first" in refused(place, 4, place / "in.npy", place / "no" / "out.npy")
    assert "is not a folder" in refused(place, 4, place / "in.npy", place / "file" / "out.npy")
    assert "cannot be written" in refused(place, 4, place / "in.npy", place / "file" / "a" / "out.npy")
    (place / "nowhere").symlink_to("missing")
    assert "does not exist" in refused(place, 4, place / "in.npy", place / "nowhere" / "out.npy")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
@pytest.mark.parametrize("output", ["/proc/out.npy", "/proc/self/out.npy", "/proc/self/fd/out.npy", "/proc/out"])
def test_nothing_is_written_to_proc(place: Path, output: str) -> None:
    assert "cannot be written" in refused(place, 4, place / "in.npy", output)


def test_long_names(place: Path) -> None:
    for name in ("n" * 246 + ".npy", "ö" * 123 + ".npy", "n" * 250):
        accepted(place / "in.npy", place / name)
        assert (place / name).exists()
    assert "File name too long" in refused(place, 4, place / "in.npy", place / ("n" * 300 + ".npy"))
    assert "File name too long" in refused(place, 4, place / "in", place / ("n" * 300))
    deep = "/".join(["d" * 200] * 30)
    assert is_one_line([refused(place, 4, place / "in.npy", f"{place}/{deep}/out.npy")])


@pytest.mark.parametrize("output", ["", "/", ".", ".."])
def test_outputs_that_name_nothing(place: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(place / "work" / "here")
    for force in ((), ("--force",)):
        code, lines = invoke([*PRUNE, str(place / "in.npy"), "-o", output, *force])
        assert code in (2, 4)
        assert is_one_line(lines)
        assert os.listdir(place / "work") == ["here"]
        assert os.listdir(place / "work" / "here") == []


def test_a_slash_at_the_end_means_a_folder(place: Path) -> None:
    accepted(place / "in.npy", f"{place}/out/")
    assert os.listdir(place / "out") == ["model.safetensors"]
    refused(place, 4, place / "in.npy", f"{place}/out//")
    (place / "file").write_bytes(b"x")
    assert "would be a folder" in refused(place, 4, place / "in.npy", f"{place}/file/", "--force")
    refused(place, 2, place / "in.npy", f"{place}/file.npy/", "--force")


def test_the_parent_is_a_link(place: Path) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    accepted(place / "in.npy", place / "link" / "out.npy")
    accepted(place / "in", place / "link" / "out")
    assert sorted(os.listdir(place / "real")) == ["out", "out.npy"]


def _without_privileges() -> None:
    """Give up what lets root write anywhere, for this process and those it starts."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(sys.platform != "linux", reason="drops Linux's capabilities")
def test_folders_that_may_not_be_written(place: Path) -> None:
    (place / "locked").mkdir()
    (place / "locked").chmod(0o555)
    for source, output in (("in.npy", "out.npy"), ("in", "out")):
        done = compressor(*PRUNE, place / source, "-o", place / "locked" / output, preexec_fn=_without_privileges)
        assert done.returncode == 4, done.stderr
        assert done.stderr.decode().splitlines() == [
            f"error: {place}/locked/{output}: cannot be written: Permission denied"
        ]
    (place / "secret.npy").touch(0o000)
    done = compressor("inspect", place / "secret.npy", preexec_fn=_without_privileges)
    assert done.returncode == 3
    assert done.stderr.decode() == f"error: {place}/secret.npy: cannot be opened: Permission denied\n"


# ---- row 73: inputs that are none ------------------------------------------------------------------------------


def test_inputs_that_are_no_files(place: Path) -> None:
    os.mkfifo(place / "fifo.npy")
    os.mkfifo(place / "fifo")
    (place / "loop.npy").symlink_to("loop.npy")
    (place / "nowhere.npy").symlink_to("missing.npy")
    (place / "zero.npy").symlink_to("/dev/zero")
    assert "is not a regular file" in refused(place, 3, place / "fifo.npy", place / "out.npy")
    assert "is not a regular file" in refused(place, 3, place / "fifo", place / "out.npy")
    assert "is not a regular file" in refused(place, 3, place / "zero.npy", place / "out.npy")
    assert "is not a regular file" in refused(place, 3, "/dev/zero", place / "out.npy")
    assert "Too many levels of symbolic links" in refused(place, 3, place / "loop.npy", place / "out.npy")
    assert "No such file" in refused(place, 3, place / "nowhere.npy", place / "out.npy")
    assert "No such file" in refused(place, 3, place / "missing.npy", place / "out.npy")
    assert "No such file" in refused(place, 3, "-", place / "out.npy")
    assert "No such file" in refused(place, 3, "", place / "out.npy")
    assert "File name too long" in refused(place, 3, place / ("n" * 300), place / "out.npy")
    assert "Not a directory" in refused(place, 3, place / "in.npy" / "x.npy", place / "out.npy")


@pytest.mark.parametrize("command", [["inspect"], ["compare", "x.npy"], ["restore", "-o", "y.npy"]])
def test_other_commands_refuse_them_too(place: Path, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shutil.copy("in.npy", "x.npy")
    os.mkfifo("fifo.npy")
    for name in ("fifo.npy", "missing.npy", "-", ""):
        code, lines = invoke([*command, name])
        assert code == 3 or (code == 2 and name == "" and command[0] == "restore")  # the folder that holds y.npy
        assert is_one_line(lines)
    assert not os.path.exists("y.npy")


# ---- row 74: read-only inputs ----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="drops Linux's capabilities")
def test_read_only_inputs(place: Path) -> None:
    folder = place / "in"
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        done = compressor(*PRUNE, folder, "-o", place / "out", "-q", preexec_fn=_without_privileges)
        assert done.returncode == 0, done.stderr
        assert stat.S_IMODE((place / "out" / "tokenizer.json").stat().st_mode) & 0o200  # ours is an ordinary file
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


# ---- row 75: modes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_new_outputs_follow_the_umask(place: Path, umask: int, server: Server) -> None:
    (place / "in" / "tokenizer.json").chmod(0o600)
    for source, output in (("in.npy", "out.npy"), ("in", "out"), ("in.safetensors", "out.safetensors")):
        arguments = [*PRUNE, str(place / source), "-o", str(place / output)]
        assert server.run(arguments, umask=umask).code == 0
    for path in (place / "out.npy", place / "out.safetensors", *(place / "out").rglob("*"), place / "out"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_replaced_outputs_keep_their_mode(place: Path, server: Server) -> None:
    (place / "out.npy").write_bytes(b"old")
    (place / "out.npy").chmod(0o604)
    (place / "out").mkdir()
    (place / "out").chmod(0o701)
    for source, output in (("in.npy", "out.npy"), ("in", "out")):
        arguments = [*PRUNE, str(place / source), "-o", str(place / output), "--force"]
        assert server.run(arguments, umask=0o022).code == 0
    assert stat.S_IMODE((place / "out.npy").stat().st_mode) == 0o604
    assert stat.S_IMODE((place / "out").stat().st_mode) == 0o701


# ---- row 76: strange names -------------------------------------------------------------------------------------

NAMES = [
    b"\x1b[31mred\x1b]0;title\x07.npy",
    b"[bold]markup[nope] :skull: %s {0}.npy",
    b"not utf-8 \xff\xfe.npy",
    b"quotes ' \" ` $HOME \\.npy",
    b"line\nerror: forged.npy",
    "bidi \u202e \u2028 zero\u200bwidth é \U0001f600.npy".encode(),
]


@pytest.mark.parametrize("raw", NAMES)
def test_strange_file_names_work_and_are_shown_escaped(tmp_path: Path, raw: bytes) -> None:
    name = os.fsdecode(raw)
    try:
        source = make_npy(tmp_path / name)
    except OSError:
        pytest.skip("not every file system takes such names")
    out = tmp_path / f"out {name}"
    shown = []
    # one of each as a shell starts it
    for arguments in ([*PRUNE, source, "-o", out], ["inspect", out, "--format", "json"]):
        done = compressor(*arguments)
        assert done.returncode == 0, done.stderr
        shown.append((done.stdout + done.stderr).decode())  # valid UTF-8
    found = json.loads(done.stdout)
    assert os.fsencode(found["input"]) == os.fsencode(out)
    for arguments in ([*PRUNE, source, "-o", out, "--force", "--format", "json"], ["inspect", out]):
        here = in_process(*arguments)
        assert here.code == 0, here.err
        shown.append(here.out + here.err)
    for text in shown:
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "\nerror:" not in text
    code, lines = invoke(["inspect", str(tmp_path / f"missing {name}")])
    assert code == 3
    assert is_one_line(lines)


def test_strange_names_inside_a_folder_go_along(place: Path) -> None:
    names = [os.fsdecode(raw) for raw in NAMES]
    for name in names:
        (place / "in" / name.removesuffix(".npy")).write_bytes(b"x")
    done = compressor(*PRUNE, place / "in", "-o", place / "out", "--format", "json")
    assert done.returncode == 0, done.stderr
    for name in names:
        assert (place / "out" / name.removesuffix(".npy")).read_bytes() == b"x"


# ---- row 77: surroundings --------------------------------------------------------------------------------------

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    "environment",
    [{}, ASCII, {"LC_ALL": "POSIX"}, {"COLUMNS": "10"}, {"COLUMNS": "0"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}],
    ids=lambda given: ",".join(given) or "empty",
)
def test_poor_surroundings(place: Path, environment: dict[str, str]) -> None:
    """No HOME, no TMPDIR, no PATH; an ASCII locale; ten columns."""
    done = compressor(*PRUNE, place / "in.npy", "-o", place / "out.npy", env=environment)
    assert done.returncode == 0, done.stderr
    assert b"0.5" in done.stdout or b"50" in done.stdout
    if environment is ASCII:
        assert done.stdout.isascii()
    assert done.stderr == b""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_closed_streams(place: Path, closed: tuple[int, ...]) -> None:
    """Files of ours must not get the numbers of the streams: messages would be written into them."""
    redirections = " ".join(f"{number}>&-" if number else "<&-" for number in closed)
    script = f'exec "$0" -m compressor "$@" {redirections}'
    command = [sys.executable, *PRUNE, str(place / "in.npy"), "-o", str(place / "out.npy")]
    done = subprocess.run(["/bin/sh", "-c", script, *command], capture_output=True, check=False, timeout=HANGS)
    assert done.returncode == 0
    assert np.count_nonzero(np.load(place / "out.npy")) == 24 * 16
    done = subprocess.run(["/bin/sh", "-c", script, *command], capture_output=True, check=False, timeout=HANGS)
    assert done.returncode == 4
    assert (2 in closed) == (not done.stderr)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_stdout_does_not_undo_the_result(place: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = compressor(*PRUNE, place / "in.npy", "-o", place / "out.npy", stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 0
        assert b"warning: the report could not be printed: No space left" in done.stderr
        assert (place / "out.npy").exists()
        done = compressor("inspect", place / "in.npy", stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 4
        assert is_one_line(done.stderr.decode().splitlines())
        done = compressor("--help", stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 4
        assert b"Traceback" not in done.stderr
        done = compressor("inspect", place / "missing.npy", stdout=subprocess.PIPE, stderr=full)
        assert done.returncode == 3


def test_a_reader_that_is_gone(place: Path) -> None:
    for arguments, code in (
        ([*PRUNE, place / "in.npy", "-o", place / "out.npy"], 0),
        (["inspect", place / "in.npy"], 4),
        (["--help"], 4),
    ):
        read, write = os.pipe()
        os.close(read)
        try:
            done = compressor(*arguments, stdout=write, stderr=subprocess.PIPE)
        finally:
            os.close(write)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's pseudo-terminals")
def test_a_terminal_that_goes_away(place: Path) -> None:
    """Its progress bar has nowhere to go; the run that it showed goes on (nohup keeps the signal away)."""
    import pty
    import signal

    np.save(place / "large.npy", np.ones((2000, 2000), np.float32))
    for delay in (0.0, 0.3, 0.5):
        out = place / f"{delay}.npy"
        master, slave = pty.openpty()
        running = subprocess.Popen(
            [sys.executable, "-m", "compressor", *PRUNE, place / "large.npy", "-o", out],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )
        os.close(slave)
        time.sleep(delay)
        os.close(master)
        assert running.wait(HANGS) == 0
        assert out.exists()


def test_a_working_folder_that_was_removed(place: Path) -> None:
    script = 'mkdir gone; cd gone; rmdir ../gone; exec "$0" -m compressor "$@"'
    for output, code in ((place / "out.npy", 0), ("out.npy", 4)):
        command = [sys.executable, *PRUNE, str(place / "in.npy"), "-o", str(output)]
        done = subprocess.run(
            ["/bin/sh", "-c", script, *command], cwd=place, capture_output=True, check=False, timeout=HANGS
        )
        assert done.returncode == code, done.stderr
