"""Opening what is no file, and files that change between looking at them and reading them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from compressor.core.errors import InputError
from compressor.files import input_file as handle
from compressor.files.input_file import InputFile

CONTENT = b"0123456789"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "w.bin"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(1, 1))  # so that any later write shows in the time
    return path


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        act()
    assert str(caught.value).isprintable()
    assert caught.value.exit_code == 3
    return str(caught.value)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- 61, 73: what cannot be opened ------------------------------------------------------------------------


def missing(folder: Path) -> str:
    return str(folder / "missing")


def empty_name(_: Path) -> str:
    return ""


def a_folder(folder: Path) -> str:
    return str(folder)


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "fifo")
    return str(folder / "fifo")


def zeros(_: Path) -> str:
    return "/dev/zero"


def nul_in_the_name(folder: Path) -> str:
    return str(folder / "a\0b")


def dangling_link(folder: Path) -> str:
    (folder / "link").symlink_to("nowhere")
    return str(folder / "link")


def looping_link(folder: Path) -> str:
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    return str(folder / "one")


def link_to_a_fifo(folder: Path) -> str:
    (folder / "link").symlink_to(fifo(folder))
    return str(folder / "link")


def a_file_as_folder(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file" / "w.npy")


def long_name(folder: Path) -> str:
    return str(folder / ("x" * 300))


def escapes(folder: Path) -> str:
    return str(folder / "\x1b[31m\nerror: forged \udcff")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(missing, "cannot be opened: No such file or directory", id="73-missing"),
        pytest.param(empty_name, "cannot be opened: No such file or directory", id="73-empty-name"),
        pytest.param(a_folder, "is not a regular file", id="61-folder"),
        pytest.param(fifo, "is not a regular file", id="61-fifo"),
        pytest.param(zeros, "is not a regular file", id="73-dev-zero"),
        pytest.param(nul_in_the_name, "cannot be opened: embedded null", id="73-nul"),
        pytest.param(dangling_link, "cannot be opened: No such file or directory", id="61-dangling-link"),
        pytest.param(looping_link, "cannot be opened: Too many levels of symbolic links", id="61-looping-link"),
        pytest.param(link_to_a_fifo, "is not a regular file", id="61-link-to-a-fifo"),
        pytest.param(a_file_as_folder, "cannot be opened: Not a directory", id="73-file-as-folder"),
        pytest.param(long_name, "cannot be opened: File name too long", id="73-long-name"),
        pytest.param(escapes, "\\x1b[31m\\nerror: forged \\udcff: cannot be opened", id="76-escapes"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], str], says: str) -> None:
    name = make(tmp_path)
    before = descriptors()
    assert says in refusal(lambda: InputFile.open(name))
    assert descriptors() == before


# ---- reading ----------------------------------------------------------------------------------------------


def test_reads_anywhere_and_closes_its_descriptor(path: Path) -> None:
    file = InputFile.open(path)
    before = descriptors()
    assert (file.path, file.size) == (str(path), 10)
    assert file.read(0, 10) == CONTENT
    assert file.read(7, 3) == b"789"
    assert file.read(10, 0) == b""
    first, second = bytearray(2), bytearray(3)
    file.read_runs([(memoryview(first), 8), (memoryview(second), 0)])
    assert (first, second) == (b"89", b"012")
    file.check_unchanged()
    assert descriptors() == before


def test_links_are_followed(path: Path, tmp_path: Path) -> None:
    """62: as in a Hugging Face cache."""
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "link").symlink_to("../w.bin")
    assert InputFile.open(tmp_path / "snapshot" / "link").read(0, 10) == CONTENT


def test_read_only_files_are_read(path: Path) -> None:
    """74."""
    path.chmod(0o400)
    assert InputFile.open(path).read(0, 10) == CONTENT


def test_short_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may return less than was asked for, and large reads are asked for in pieces."""
    asked: list[tuple[int, int]] = []
    real = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        asked.append((offset, len(buffers[0])))
        return real(fd, [buffers[0][:2]], offset)

    monkeypatch.setattr(handle, "_CHUNK", 3)
    monkeypatch.setattr(os, "preadv", short)
    assert InputFile.open(path).read(1, 6) == b"123456"
    assert asked == [(1, 3), (3, 3), (5, 2)]


# ---- 85: changes --------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, 5)


def grow(path: Path) -> None:
    with path.open("ab") as out:
        out.write(b"more")


def rewrite(path: Path) -> None:
    path.write_bytes(CONTENT[::-1])


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(CONTENT)
    os.utime(other, ns=(1, 1))
    other.rename(path)


@pytest.mark.parametrize("change", [truncate, grow, rewrite, replace])
def test_a_changed_file_is_refused(path: Path, change: Callable[[Path], None]) -> None:
    file = InputFile.open(path)
    change(path)
    for act in (lambda: file.read(0, 2), file.check_unchanged):
        assert refusal(act) == f"{path}: changed while it was read. Run again when nothing writes to it"


def test_a_removed_file_is_refused(path: Path) -> None:
    file = InputFile.open(path)
    path.unlink()
    assert "No such file" in refusal(lambda: file.read(0, 2))
    assert "No such file" in refusal(file.check_unchanged)


def test_a_file_that_becomes_a_fifo_does_not_hang(path: Path) -> None:
    file = InputFile.open(path)
    path.unlink()
    os.mkfifo(path)
    assert "is not a regular file" in refusal(lambda: file.read(0, 2))


def test_a_file_that_shrinks_while_it_is_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the descriptor was looked at: a memory map would end in SIGBUS here."""
    file = InputFile.open(path)
    real = os.preadv

    def shrink_first(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        truncate(path)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrink_first)
    before = descriptors()
    assert "changed while it was read" in refusal(lambda: file.read(0, 10))
    assert descriptors() == before


def test_reading_past_the_end_is_refused(path: Path) -> None:
    assert "changed while it was read" in refusal(lambda: InputFile.open(path).read(8, 3))


def test_an_error_of_the_disk_is_a_plain_refusal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = InputFile.open(path)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    before = descriptors()
    assert refusal(lambda: file.read(0, 10)) == f"{path}: cannot be read: Input/output error"
    assert descriptors() == before
