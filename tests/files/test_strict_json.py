"""JSON from strangers: what is refused, and what reading it may cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import InputError
from compressor.files.input_file import InputFile
from compressor.files.strict_json import parse_object, read_object


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


_BOMBS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b'{"a":[' + b"[]," * 7_900_000 + b"1]}",
    "objects": lambda: b'{"a":[' + b"{}," * 1_300_000 + b"1]}",
    "texts": lambda: b'{"a":{' + b",".join(b'"%06x":"%02x"' % (n, n % 256) for n in range(700_000)) + b"}}",
    "wide": lambda: ('{"a":"' + "x" * 23_900_000 + '\U0001f600"}').encode(),
    "floats": lambda: b'{"a":[' + b"1.1," * 2_800_000 + b"1]}",
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
    path.write_bytes(_BOMBS[bomb]())
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
