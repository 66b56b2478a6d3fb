"""Models in several GGUF files, as llama-gguf-split makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import GgufFile, blocks, numbers, value

from compressor.core.errors import InputError
from compressor.files.opening import open_source

UINT16, INT32, STRING = 2, 5, 8
TENSORS = (numbers("a", (4, 32)), blocks("b", "Q8_0", (2, 64)), numbers("c", (3,)))


def part(number: int, count: int, lines: tuple[Any, ...], total: int = 3, **more: bytes) -> GgufFile:
    """A part as the tool writes it: the model's metadata in the first."""
    said = {"general.architecture": value(STRING, "llama")} if number == 0 else {}
    split = {
        "split.no": value(UINT16, number),
        "split.count": value(UINT16, count),
        "split.tensors.count": value(INT32, total),
    }
    return GgufFile(lines, {**said, **split, **more})


def write(place: Path, *parts: GgufFile) -> list[Path]:
    found = []
    for number, one in enumerate(parts, 1):
        found.append(place / f"m-{number:05d}-of-{len(parts):05d}.gguf")
        found[-1].write_bytes(one.file())
    return found


def whole(place: Path) -> list[Path]:
    return write(place, part(0, 3, ()), part(1, 3, TENSORS[:2]), part(2, 3, TENSORS[2:]))


def test_parts_are_one_checkpoint_whichever_is_named(tmp_path: Path) -> None:
    for path in whole(tmp_path):
        source = open_source(path)
        assert list(source.tensors) == ["a", "b", "c"]
        assert [one.name for one in source.files] == [one.name for one in sorted(tmp_path.iterdir())]
        assert list(source.fields) == ["general.architecture"]
        assert source.file_of == {"a": 1, "b": 1, "c": 2}
        assert source.nbytes == sum(one.stat().st_size for one in tmp_path.iterdir())


def refused(path: Path, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        open_source(path)


def test_a_missing_part(tmp_path: Path) -> None:
    first, second, third = whole(tmp_path)
    third.unlink()
    refused(first, "is one of 3 parts; m-00003-of-00003.gguf is missing. Give the model with all of its parts")
    second.unlink()
    refused(first, "m-00002-of-00003.gguf and 1 more are missing")


def test_names_and_numbers_that_do_not_fit(tmp_path: Path) -> None:
    first, second, third = whole(tmp_path)
    renamed = tmp_path / "model.gguf"
    renamed.write_bytes(second.read_bytes())
    refused(renamed, "is one of 3 parts of a model, and its name does not say which. Call the parts NAME-00001")
    third.write_bytes(second.read_bytes())
    refused(first, "00003.gguf: says split.no 1 and split.count 3, where 2 and 3 belong")
    third.write_bytes(part(2, 3, TENSORS[1:]).file())
    refused(first, "its parts hold 4 tensors, and split.tensors.count says 3")
    write(tmp_path, part(0, 3, (), 4), part(1, 3, TENSORS[:2]), part(2, 3, TENSORS[1:]))
    refused(first, "tensor 'b': is in two shards, m-00002-of-00003.gguf and m-00003-of-00003.gguf")


def test_a_name_like_a_part_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(GgufFile(TENSORS, {"split.count": value(UINT16, 1)}).file())
    assert list(open_source(path).tensors) == ["a", "b", "c"]
