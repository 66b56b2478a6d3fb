"""A .gguf in several files: as llama-gguf-split makes them, read as one, whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.console import compressor
from support.gguf_files import small_model

from compressor import api
from compressor.core.errors import OutputError, UsageError
from compressor.files.gguf.reading import RECORD, GgufHeader, read_header
from compressor.files.input_file import InputFile
from compressor.files.opening import open_source

SIZE = 2000  # bytes of tensors to a file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.gguf"
    path.write_bytes(small_model().file())
    return path


def header_of(path: Path) -> GgufHeader:
    return read_header(InputFile.open(path))


def parts(place: Path, stem: str = "out") -> list[Path]:
    return sorted(place.glob(f"{stem}-*.gguf"))


def split(source: Path, out: Path, **more: Any) -> Any:
    return api.quantize(source, out, scheme="q8_0", requantize=True, max_shard_size=SIZE, **more)


def test_parts_say_which_they_are_and_the_first_has_the_metadata(source: Path, tmp_path: Path) -> None:
    report = split(source, tmp_path / "out.gguf")
    found = parts(tmp_path)
    assert len(found) > 2
    assert [one.name for one in found] == [
        f"out-{number:05d}-of-{len(found):05d}.gguf" for number in range(1, len(found) + 1)
    ]
    assert report.output == str(found[0])
    assert sorted(tmp_path.iterdir()) == [source, *found]  # and nothing that is hidden
    headers = [header_of(one) for one in found]
    tensors = sum(len(one.tensors) for one in headers)
    for number, header in enumerate(headers):
        own = [(key, value.kind, value.python()) for key, value in header.fields.items() if key.startswith("split")]
        assert own == [
            ("split.no", 2, number),
            ("split.count", 2, len(found)),
            ("split.tensors.count", 5, tensors),
        ]  # the kinds are those of llama-gguf-split: uint16 and int32
        assert len(header.fields) == 3 or number == 0
        assert sum(one.spec.nbytes for one in header.tensors) <= SIZE or len(header.tensors) == 1
    assert RECORD in headers[0].fields


def test_parts_are_the_model_that_one_file_is(source: Path, tmp_path: Path) -> None:
    split(source, tmp_path / "out.gguf")
    api.quantize(source, tmp_path / "one.gguf", scheme="q8_0", requantize=True)
    report = api.compare(tmp_path / "one.gguf", parts(tmp_path)[1])
    assert not any(row.problem for row in report.rows)
    assert report.total.error == 0
    one, many = open_source(tmp_path / "one.gguf"), open_source(parts(tmp_path)[0])
    assert one.fields.keys() == many.fields.keys()
    for suffix in ("", ".safetensors", ".gguf"):
        api.restore(parts(tmp_path)[-1], tmp_path / f"back{suffix}")
        assert api.compare(tmp_path / "one.gguf", tmp_path / f"back{suffix}").total.error == 0


def test_what_fits_into_one_file_is_one(source: Path, tmp_path: Path) -> None:
    report = api.restore(source, tmp_path / "out.gguf", max_shard_size=1 << 30)
    assert report.output == str(tmp_path / "out.gguf")
    assert not parts(tmp_path)
    assert "split.no" not in header_of(tmp_path / "out.gguf").fields


def test_a_dry_run_tells_every_byte_of_all_parts(source: Path, tmp_path: Path) -> None:
    planned = split(source, tmp_path / "out.gguf", dry_run=True)
    assert not parts(tmp_path)
    split(source, tmp_path / "out.gguf")
    sizes = {one.name: one.stat().st_size for one in parts(tmp_path)}
    assert {file.name: file.layout.size for file in planned.plan.files} == sizes
    assert planned.plan.size_after == sum(sizes.values())


def test_nothing_is_replaced_unasked_and_no_input_ever(source: Path, tmp_path: Path) -> None:
    split(source, tmp_path / "out.gguf")
    before = {one: one.read_bytes() for one in parts(tmp_path)}
    with pytest.raises(OutputError, match="exists already"):
        split(source, tmp_path / "out.gguf")
    with pytest.raises(UsageError, match="is the input itself"):
        split(parts(tmp_path)[0], tmp_path / "out.gguf", force=True)
    parts(tmp_path)[1].write_bytes(b"other")
    split(source, tmp_path / "out.gguf", force=True)
    assert {one: one.read_bytes() for one in parts(tmp_path)} == before


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_all_parts_are_published_or_none(source: Path, tmp_path: Path, fails: int) -> None:
    linked, link = [0], os.link

    def failing(path: str, place: str) -> None:
        linked[0] += 1
        if linked[0] > fails:
            raise OSError(5, "no")
        link(path, place)

    with mock.patch("os.link", failing), pytest.raises(OutputError):
        split(source, tmp_path / "out.gguf")
    assert sorted(tmp_path.iterdir()) == [source]


def test_jobs_that_share_the_work_and_merge(source: Path, tmp_path: Path) -> None:
    split(source, tmp_path / "out.gguf")
    for number in (1, 2):
        split(source, tmp_path / "p.gguf", part=f"{number}/2")
    report = api.merge([tmp_path / f"p.gguf.part-{number}-of-2" for number in (1, 2)], tmp_path / "q.gguf")
    found = parts(tmp_path, "q")
    assert report.output == str(found[0])
    assert [one.read_bytes() for one in found] == [one.read_bytes() for one in parts(tmp_path)]


def test_a_budget_counts_every_header(source: Path, tmp_path: Path) -> None:
    limit = 9000
    done = compressor(
        *("quantize", source, "-o", tmp_path / "out.gguf", "--requantize", "--include", "*"),
        *("--target-size", str(limit), "--max-shard-size", str(SIZE)),
    )
    assert done.code == 0, done.err
    assert len(parts(tmp_path)) > 1
    assert sum(one.stat().st_size for one in parts(tmp_path)) <= limit


def test_too_many_parts_are_refused(source: Path, tmp_path: Path) -> None:
    with (
        mock.patch("compressor.files.gguf.split.MOST_FILES", 2),
        pytest.raises(UsageError, match=r"there would be \d+ files"),
    ):
        split(source, tmp_path / "out.gguf")


def test_in_an_object_store_it_is_one_file(source: Path) -> None:
    with pytest.raises(UsageError, match="is one file"):
        split(source, "s3://bucket/out.gguf")  # type: ignore[arg-type]
