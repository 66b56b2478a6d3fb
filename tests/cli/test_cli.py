"""The command line as its users meet it: tables at any width, JSON, messages, exit codes, broken streams."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from support import archives
from support.clock import HANGS
from support.console import LLAMA, MATRIX, STUDENT, TEACHER, compressor, environment, spawn, terminal
from support.laws import FLOATS, store

from compressor import api
from compressor.cli import options
from compressor.cli.main import run
from compressor.cli.report import progress
from compressor.core.errors import UsageError
from compressor.files.destination import check_apart, container_of
from compressor.files.source import Source
from compressor.methods.options import SHARED_HELP, VERBS, options_of
from compressor.methods.registry import methods_of

COMMANDS = ("prune", "distill", "quantize", "pipeline", "calibrate", "inspect", "compare", "restore")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HOSTILE = [
    "[bold]x[/]",
    "[/nope]",
    "[link=http://evil]y[/link]",
    ":skull:",
    "%s %n {0} {x!r}",
    "<script>&amp;",
    "a\x1b[31mred\x1b[0m",
    "b\x1b]0;title\x07",
    "c\x1b]8;;http://evil\x1b\\link",
    "d\x9b31m\x84",
    "e\nforged line of a log",
    "f\rwrote",
    "g\b\b\b\x7f",
    "h\u2028i\u2029j",
    "k\u202egnp\u2066l\u200b",
    "../../etc/passwd",
    "/etc/passwd",
    "",
    "nul\0",
    "long." * 2000,
    "e\u0301",
    "\u00e9",
    "w",
    "W",
    "w.scale",
    "\ue000\ufeff\U000e0001",
]


def model(folder: Path, **tensors: Any) -> Path:
    """A safetensors file of float32 tensors."""
    content = {name: ("F32", store(values, "F32")) for name, values in tensors.items()}
    return archives.write(folder / "in.safetensors", content)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    tensors = {name: ("F32", store(np.eye(4) + number, "F32")) for number, name in enumerate(HOSTILE)}
    return archives.write(tmp_path / "hostile.safetensors", tensors, {"\x1b[31m": "\x1b]0;x\x07"})


def requests(folder: Path) -> dict[str, list[object]]:
    """A request for every command, on the sample weights."""
    packed = folder / "packed.safetensors"
    api.quantize(TEACHER, packed, bits=8)
    np.save(folder / "inputs.npy", np.ones((5, 784), np.float32))
    calibrate = ["calibrate", TEACHER, "--inputs", folder / "inputs.npy", "-o", folder / "statistics.safetensors"]
    return {
        "prune": ["prune", LLAMA, "-o", folder / "pruned", "--sparsity", "0.5"],
        "distill": ["distill", STUDENT, "-o", folder / "d.safetensors", "--teacher", STUDENT],
        "quantize": ["quantize", LLAMA, "-o", folder / "quantized", "--bits", "4"],
        "pipeline": ["pipeline", LLAMA, "-o", folder / "piped", "--recipe", "w8a16"],
        "calibrate": calibrate,
        "inspect": ["inspect", LLAMA, "--stats"],
        "compare": ["compare", TEACHER, packed],
        "restore": ["restore", packed, "-o", folder / "restored.safetensors"],
    }


# ---- tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_fit_a_terminal_of_80_columns(command: str, tmp_path: Path) -> None:
    done = terminal(80, *requests(tmp_path)[command])
    assert done.code == 0, done.out
    assert "\x1b[1m" in done.out
    lines = ANSI.sub("", done.out).splitlines()
    assert max(map(len, lines)) <= 80
    if command != "restore":
        assert lines[0].startswith(("tensor ", "layer "))
        assert set(lines[1]) == {"─"}
    if command in ("quantize", "inspect"):
        names = [line.split()[0] for line in lines[2:-1] if re.match(r"(model|lm_head)\S+   ", line)]
        assert all(name.endswith("weight") for name in names)


@pytest.mark.parametrize("columns", [None, 80, 50, 10])
def test_tables_in_a_log_are_as_wide_as_it_says_or_80(
    columns: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = [*requests(tmp_path)["quantize"], "--dry-run"]
    whole = compressor(*request, "--wide").out
    monkeypatch.setenv("COLUMNS", "wide" if columns is None else str(columns))
    narrow = compressor(*request).out
    table = narrow.split("\n\n")[0].splitlines()
    assert max(map(len, whole.split("\n\n")[0].splitlines())) > 80
    assert max(map(len, table)) <= max(columns or 80, 40)
    if columns is not None:
        assert max(map(len, narrow.splitlines())) <= max(columns, 40)
    titles, shown = whole.split("\n")[0].split(), table[0].split()
    dropped = [title for title in titles if title not in shown]
    assert f"not shown: {', '.join(dropped)}; --wide shows all columns" in " ".join(narrow.split())
    if columns in (None, 80):
        assert {"tensor", "dtype", "size", "error"} <= set(shown)
        names = [re.split(" {3,}", line)[0] for line in table[2:9]]
        long = [re.split(" {3,}", line)[0] for line in whole.split("\n")[2:9]]
        for name, full in zip(names, long, strict=True):
            first, _, last = name.partition("…")
            assert full.startswith(first)
            assert full.endswith(last)
            assert first.startswith("model.layers.")


def test_quiet_is_one_line(tmp_path: Path) -> None:
    for request in requests(tmp_path).values():
        done = compressor(*request, "-q")
        assert (done.code, len(done.out.splitlines())) == (0, 1), request
        assert "progress" not in done.err
    budget = compressor("quantize", LLAMA, "-o", tmp_path / "budget", "--target-bits", "4.5", "-q")
    assert (budget.code, len(budget.out.splitlines())) == (0, 1)


def test_one_run_has_one_style(tmp_path: Path) -> None:
    """While a bar is on the terminal, rich puts a stream of its own in the place of stdout."""
    request = ("quantize", LLAMA, "-o", tmp_path / "out", "--target-bits", "4.5")
    shown = ANSI.sub("", terminal(80, *request, errors=True).out)
    rules = [line.strip() for line in shown.splitlines() if line.strip() and set(line.strip()) <= set("─-+ ")]
    assert len(rules) >= 3
    assert all(set(rule) == {"─"} for rule in rules)
    assert max(map(len, shown.splitlines())) <= 80
    log = tmp_path / "log"
    with open(log, "w") as file:
        terminal_stderr = spawn(*request, "--force", stdout=file, env=environment())
    assert terminal_stderr.returncode == 0
    assert "budget --target-bits 4.5" in log.read_text()


def test_verbose_tells_what_is_done(tmp_path: Path) -> None:
    request = ("prune", TEACHER, "-o", tmp_path / "o.safetensors", "--sparsity", "0.5", "--scope", "global", "-v")
    done = compressor(*request)
    assert done.code == 0
    assert done.err.startswith("progress: ")


def test_tables_are_readable_in_ten_columns(tmp_path: Path) -> None:
    request = requests(tmp_path)
    done = terminal(10, *request["quantize"])
    assert done.code == 0
    lines = ANSI.sub("", done.out).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0].split() == ["tensor", "size", "error"]
    assert re.match(r"mode…\S+t +65\.5 kB", lines[2])
    with_progress = terminal(10, *request["prune"], errors=True)
    assert with_progress.code == 0


def test_a_wide_terminal_shows_every_column() -> None:
    done = terminal(200, "inspect", MATRIX, "--stats", "--top", "1")
    assert "tensor      shape   dtype      size   zeros" in ANSI.sub("", done.out)


def test_nothing_is_coloured_or_cut_where_there_is_no_terminal(tmp_path: Path) -> None:
    done = spawn(*requests(tmp_path)["quantize"], env=environment())
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    header = done.stdout.splitlines()[0].split()
    assert header == ["tensor", "dtype", "size", "error"]
    assert re.search(r"^model\.layers\.0\.self_attn\.k_proj\.weight +BF16 → int4 +16", done.stdout, re.MULTILINE)


def test_colour_is_the_users_choice() -> None:
    forced = spawn("inspect", MATRIX, env=environment(FORCE_COLOR="1"))
    assert "\x1b[1m" in forced.stdout
    bare = terminal(80, "inspect", MATRIX, env=environment(NO_COLOR="1", TERM="xterm"))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", bare.out)
    dumb = terminal(80, "inspect", MATRIX, env=environment(TERM="dumb"))
    assert "\x1b" not in dumb.out


@pytest.mark.parametrize("command", ["quantize", "compare", "inspect"])
def test_an_ascii_locale_gets_ascii(command: str, tmp_path: Path) -> None:
    ascii_only = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    done = spawn(*requests(tmp_path)[command], env=ascii_only)
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "\\u" not in done.stdout
    assert " | " in done.stdout
    if command == "quantize":
        assert "| BF16 -> int4 |" in done.stdout
        assert "..." in done.stdout
        assert ", ...\n" in done.stdout


def test_help_is_ascii_and_fits(tmp_path: Path) -> None:
    for command in ([], *([name] for name in COMMANDS)):
        done = compressor(*command, "--help", encoding="ascii")
        assert done.code == 0
        assert done.out.startswith(f"Usage: compressor {' '.join(command)}".rstrip())
        assert max(map(len, done.out.splitlines())) <= 80
        assert "\\u" not in done.out


def test_help_tells_defaults_and_what_must_be_given() -> None:
    text = " ".join(compressor("quantize", "--help-all").out.split())
    assert "[int: 8; step: required; trellis: 4.5; uniform]" in text
    assert "[factor, step: 16]" in text
    assert "[int: symmetric]" in text
    assert "[factor: required]" in text


@pytest.mark.parametrize(("arguments", "shown"), [([], 60), (["--top", "0"], 70), (["--top", "2"], 2), (["-q"], 0)])
def test_long_tables_are_shortened(arguments: list[str], shown: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {f"t{number:02}": random.standard_normal((4, 4)) for number in range(70)}
    done = compressor(
        "prune", model(tmp_path, **tensors), "-o", tmp_path / "o.safetensors", "--sparsity", ".4", *arguments
    )
    rows = [line.split() for line in done.out.splitlines() if re.match(r"t\d\d ", line)]
    assert len(rows) == shown
    assert (f"{70 - shown} more tensors; --top 0 shows all" in done.out) == (0 < shown < 70)
    if 0 < shown < 70:
        errors = [float(row[-1]) for row in rows]
        assert errors == sorted(errors, reverse=True)
    assert "wrote " in done.out
    for command in (
        ["inspect", tmp_path / "in.safetensors"],
        ["compare", tmp_path / "in.safetensors", tmp_path / "o.safetensors"],
    ):
        found = compressor(*command, *[a for a in arguments if a != "-q"])
        assert len(re.findall(r"^t\d\d ", found.out, re.MULTILINE)) == (shown or 60)


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = compressor("quantize", TEACHER, "-o", tmp_path / "o.safetensors", "--dry-run")
    assert done.code == 0
    assert "would write" in done.out
    assert "941 kB → 236 kB" in done.out
    assert sorted(tmp_path.iterdir()) == before
    report = json.loads(compressor("quantize", TEACHER, "-o", tmp_path / "o", "--dry-run", "--format", "json").out)
    assert report["dry_run"] is True
    assert report["treated"] is None


def test_figures_are_never_rounded_to_all_or_nothing(tmp_path: Path) -> None:
    values = np.ones(200_000)
    values[0] = 0
    done = compressor("inspect", model(tmp_path, a=values, b=1 - values, c=np.ones(3)), "--stats")
    cells = {line.split()[0]: line for line in done.out.splitlines() if line}
    assert "<0.01 %" in cells["a"]
    assert ">99.9 %" in cells["b"]
    assert " 0 %" in cells["c"]


# ---- inspect, compare, restore -------------------------------------------------------------------------


def test_inspect_names_what_is_stored_and_what_is_odd(tmp_path: Path) -> None:
    tensors = {
        "nan.weight": ("F32", np.array([[1, np.nan, np.inf, 0]], "<f4")),
        "all.nan": ("F16", np.full((2,), np.nan, "<f2")),
        "nothing": ("BF16", np.zeros((0, 3), "<u2")),
        "scalar": ("F64", np.float64(2.5)),
        "codes": ("I8", np.array([[-3, 0, 5]], "i1")),
        "narrow": ("F4", np.zeros(2, np.uint8)),
        "complex": ("C64", np.zeros(2, "<c8")),
    }
    path = archives.write(tmp_path / "in.safetensors", tensors)
    done = compressor("inspect", path, "--stats")
    assert done.code == 0
    lines = {line.split()[0]: line.split() for line in done.out.splitlines() if line}
    assert lines["nan.weight"][4:] == ["25", "%", "0", "1", "0.5", "0.5"] or "holds" in lines["nan.weight"]
    assert "nan.weight holds 2 NaN or infinite values\n" in done.out
    assert lines["scalar"][1:3] == ["scalar", "F64"]
    assert lines["codes"][-4:] == ["-3", "5", "0.6667", "3.3"]
    assert "7 tensors, 16 elements" in done.out
    found = {
        t["name"]: t for t in json.loads(compressor("inspect", path, "--stats", "--format", "json").out)["tensors"]
    }
    assert found["nan.weight"]["non_finite"] == 2
    assert found["all.nan"]["min"] is None
    assert "min" not in found["narrow"]
    api.quantize(TEACHER, tmp_path / "q.safetensors", bits=8, exclude=["fc3*"])
    done = compressor("inspect", tmp_path / "q.safetensors", "--stats")
    assert re.search(r"fc1\.weight +300×784 +F32 as int8 +236 kB", done.out)
    assert "safetensors, packed by compressor, 6 tensors" in done.out
    stored = json.loads(compressor("inspect", tmp_path / "q.safetensors", "--format", "json").out)["tensors"][1]
    assert stored["stored_as"]["parts"] == ["fc1.weight_packed", "fc1.weight_scale", "fc1.weight_shape"]


def test_inspect_tells_what_else_lies_in_a_folder(tmp_path: Path) -> None:
    archives.write(tmp_path / "model.safetensors", {"w": ("F32", np.ones((2, 2), "<f4"))})
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    done = compressor("inspect", tmp_path)
    assert "not weights of it: pytorch_model.bin: " in done.out
    assert "1 tensor, 4 elements" in done.out


def test_compare_sorts_the_worst_first_and_names_what_does_not_match(tmp_path: Path) -> None:
    one = model(
        tmp_path, same=[[1.0]], near=[[1.0, 2]], far=[[1.0, 2]], gone=[[1.0]], shape=[[1.0, 2]], zero=[[0.0]]
    )
    other = tmp_path / "other.safetensors"
    values = {
        "same": [[1.0]],
        "near": [[1, 2.01]],
        "far": [[2.0, 1]],
        "new": [[1.0]],
        "shape": [[1.0]],
        "zero": [[1.0]],
    }
    archives.write(other, {name: ("F32", store(value, "F32")) for name, value in values.items()})
    done = compressor("compare", one, other)
    assert done.code == 0
    table = done.out.split("\nnot shown")[0]
    order = [line.split()[0] for line in table.splitlines()[2:]]
    assert order == ["gone", "new", "shape", "zero", "far", "near", "same"]
    for text in ("only in A", "only in B", "shape [1, 2] in A, [1, 1] in B"):
        assert text in done.out
    found = {
        row["name"]: row for row in json.loads(compressor("compare", one, other, "--format", "json").out)["tensors"]
    }
    assert found["gone"]["problem"] == "only in A"
    assert found["same"]["sqnr_db"] is None
    assert found["zero"]["relative_error"] is None
    assert found["far"]["max_abs_error"] == 1
    assert compressor("compare", one, one, "--max-error", "0", "--min-sqnr", "100").code == 0
    failed = compressor("compare", one, other, "--max-error", "0.1")
    assert failed.code == 1
    assert "'gone': only in A" in failed.err


def test_compare_gates(tmp_path: Path) -> None:
    api.quantize(TEACHER, tmp_path / "q.safetensors", bits=8)
    assert compressor("compare", TEACHER, tmp_path / "q.safetensors", "--max-error", "0.01").code == 0
    done = compressor("compare", TEACHER, tmp_path / "q.safetensors", "--max-error", "1e-4", "--min-sqnr", "90")
    assert done.code == 1
    assert done.out.startswith("tensor")
    assert re.fullmatch(
        r"error: --max-error 0.0001: the relative error of 'fc\d.weight' is 0\.00\d+; "
        r"--min-sqnr 90: the SQNR of 'fc\d.weight' is 4\d\.\d+ dB\n",
        done.err,
    )


def test_two_files_of_one_tensor_are_compared_whatever_they_call_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3, dtype=np.float32))
    done = compressor("compare", tmp_path / "a.npy", model(tmp_path, other=np.eye(3)))
    assert done.code == 0
    assert "relative error 0" in done.out


# ---- JSON and hostile names ----------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["table", "json"])
@pytest.mark.parametrize("command", ["inspect", "quantize", "compare", "dry"])
def test_names_are_shown_escaped(command: str, style: str, hostile: Path, tmp_path: Path) -> None:
    requests = {
        "inspect": ["inspect", hostile],
        "quantize": ["quantize", hostile, "-o", tmp_path / "[red]o\x1b[31m.safetensors"],
        "compare": ["compare", hostile, hostile],
        "dry": [
            "prune",
            hostile,
            "-o",
            tmp_path / "o.safetensors",
            "--exclude",
            "[!w]*",
            "--sparsity",
            "0.5",
            "--dry-run",
        ],
    }
    done = compressor(*requests[command], "--format", style)
    assert done.code == 0, done.err
    for text in (done.out, done.err):
        assert all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Zl", "Zp") for c in text)
    if style == "json":
        assert done.out.isascii()
        assert {tensor["name"] for tensor in json.loads(done.out)["tensors"]} == set(HOSTILE)
        return
    for name in (
        "[bold]x[/]",
        "[/nope]",
        "[link=http://evil]y[/link]",
        ":skull:",
        "%s %n {0} {x!r}",
        "a\\x1b[31mred",
    ):
        assert name in done.out or command == "dry"
    assert max(map(len, done.out.splitlines())) < 500
    assert not re.search(r"^(forged|wrote\b(?! /))", done.out, re.MULTILINE)


def test_names_are_escaped_in_errors(tmp_path: Path) -> None:
    name = "x\x1b[31m\n[bold]error: forged\u202e"
    archives.write(tmp_path / "in.safetensors", {name: ("F32", np.full((2, 2), np.nan, "<f4"))})
    done = compressor("prune", tmp_path / "in.safetensors", "-o", tmp_path / "o.safetensors", "--sparsity", "0.5")
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert line.isprintable()
    assert "tensor 'x\\x1b[31m\\n[bold]error: forged\\u202e': holds 4 NaN" in line


@pytest.mark.parametrize(
    "name", ["[bold]\x1b[31m.safetensors", "a\nb.safetensors", "'\"$(x).safetensors", b"\xff\xfe.safetensors"]
)
def test_hostile_file_names_work(name: str | bytes, tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(name)
    model(tmp_path, w=np.eye(4)).rename(source)
    output = tmp_path / f"out {os.fsdecode(name)}"
    done = compressor("quantize", source, "-o", output, "--bits", "8")
    assert done.code == 0
    assert output.exists()
    assert done.out.replace("\n", "").isprintable()
    assert json.loads(compressor("inspect", output, "--format", "json").out)["input"] == str(output)
    missing = compressor("inspect", f"{source}x")
    assert missing.code == 3
    assert len(missing.err.splitlines()) == 1


def test_json_reports_are_whole(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = compressor("quantize", LLAMA, "-o", output, "--format", "json", "--top", "1", "--bits", "4")
    report = json.loads(done.out)
    assert report["schema"] == 2
    assert report["tool"].startswith("compressor ")
    assert len(report["tensors"]) == 21
    assert {file["name"]: file["bytes"] for file in report["files"]} == {
        file.name: file.stat().st_size for file in output.iterdir() if file.name not in report["carried"]
    }
    assert report["size_after"] < report["size_before"]
    (stage,) = report["stages"]
    assert stage == {
        "kind": "quantize",
        "scheme": "int",
        "bits": 4,
        "symmetric": True,
        "method": "search",
        "layout": "auto",
    }
    treated = [tensor for tensor in report["tensors"] if tensor["steps"]]
    assert len(treated) == 14
    assert sum(tensor["weights"] for tensor in treated) == report["treated"]["weights"]
    quiet = json.loads(
        compressor("prune", MATRIX, "-o", tmp_path / "m.npy", "--sparsity", "0", "--format", "json", "-q").out
    )
    assert "tensors" not in quiet
    assert quiet["treated"]["relative_error"] == 0


# ---- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantize", "x", "-o", "y", "--bit", "4"], "'--bits'"),
        (["prune", "x", "-o", "y", "--sparcity", "4"], "Did you mean"),
        (["inspect", "x", "--stat"], "Did you mean '--stats'?"),
        (["quantize"], "Missing argument 'INPUT'. (see compressor quantize --help)"),
        (["quantize", "x"], "Missing option '-o' / '--output'."),
        (["compare", "x"], "Missing argument 'B'."),
        (["inspect", "x", "--format", "xml"], "is not one of 'table', 'json'"),
        (["inspect", "x", "--workers", "0"], "0 is not in the range 1<=x<=256"),
        (["inspect", "x", "--top", "-1"], "-1 is not in the range x>=0"),
        (["prune", "x", "-o", "y", "--max-error", "nan"], "'nan' is not a number of at least 0"),
        (["prune", "x", "-o", "y", "--max-error", "٣"], "is not a number of at least 0"),
        (["prune", "x", "-o", "y", "--max-error", "z"], "'z' is not a number of at least 0"),
        (["prune", "x", "-o", "y", "--min-sparsity", "1.5"], "'1.5' is not a number of at least 0 and at most 1"),
        (["prune", "x", "-o", "y", "--min-ratio", "1e400"], "'1e400' is not a number"),
        (["prune", "x", "-o", "y", "--max-size", "3 apples"], "'3 apples' is not a size such as 300MB or 1.5GiB"),
        (["quantize", "x", "-o", "y", "--set", "fc1"], "--set 'fc1' is not GLOB:KEY=VALUE. For example --set"),
        (["quantize", "x", "-o", "y", "--set", ":bits=3"], "is not GLOB:KEY=VALUE"),
        (["quantize", "x", "-o", "y", "--set", "a:bits"], "is not GLOB:KEY=VALUE"),
        (["quantize", "x", "-o", "y", "--set", "a:bitts=3"], "--set a: bitts: is not known. Did you mean bits?"),
        (["quantize", "x", "-o", "y", "--include", "re:["], "pattern 're:[' is not a regular expression"),
        (["distill", "x", "-o", "y"], "method blend needs a teacher. Give --teacher PATH"),
    ],
)
def test_mistakes_of_usage(arguments: list[str], said: str) -> None:
    done = compressor(*arguments)
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize(("typed", "meant"), [("prun", "prune"), ("quantise", "quantize"), ("inspct", "inspect")])
def test_a_mistyped_command_is_guessed(typed: str, meant: str) -> None:
    done = compressor(typed, "x")
    assert done.code == 2
    assert f"Did you mean {meant}?" in done.err.replace("'", "")


def test_no_command_shows_the_help() -> None:
    done = compressor()
    assert "\n  quantize " in done.out + done.err


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("300MB", 300_000_000), ("1.5GiB", 1610612736), ("7 kb", 7000), ("2TiB", 2 << 40), ("12b", 12)],
)
def test_sizes(text: str, size: int) -> None:
    assert options.Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e9", "1.MB", "inf", "1" * 16, "٣MB", "1 MiBs"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.Size().convert(text, None, None)


# ---- where the output goes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("o.safetensor", "Did you mean .safetensors?"),
        ("o.npyy", "Did you mean .npy?"),
        ("o.bin", "End it in .safetensors, .gguf, .npy or .npz, or name a folder"),
        ("o.onnx", ".onnx is not a container that is written here"),
        ("o.v2", "End it in .safetensors"),
    ],
)
def test_suffixes_that_mean_something_else(name: str, said: str, tmp_path: Path) -> None:
    done = compressor("quantize", MATRIX, "-o", tmp_path / name)
    assert done.code == 2
    assert said in done.err


def test_suffixes_decide_the_container() -> None:
    lone, folder = (Source("x", kind, (), {}, {}) for kind in ("npy", "folder"))
    assert container_of("a/b.NPY", lone) == "npy"
    assert container_of("x.safetensors", folder) == "safetensors"
    with pytest.raises(UsageError, match="is a folder with the suffix of a file"):
        container_of("x.safetensors/", folder)
    assert container_of("model-v1.5", folder) == "folder"
    assert container_of("model.d/", lone) == "folder"
    assert container_of("out", lone) == "folder"


def test_an_output_that_meets_an_input_is_refused(tmp_path: Path) -> None:
    source = model(tmp_path, w=np.eye(4))
    (tmp_path / "folder").mkdir()
    archives.write(tmp_path / "folder" / "model.safetensors", {"w": ("F32", np.eye(4, dtype="<f4"))})
    os.link(source, tmp_path / "hard.safetensors")
    (tmp_path / "soft.safetensors").symlink_to(source)
    (tmp_path / "alias").symlink_to(tmp_path / "folder")
    content = source.read_bytes()
    cases = [
        (source, source, "is the input itself"),
        (source, tmp_path / "folder" / ".." / "in.safetensors", "is the input itself"),
        (source, tmp_path / "hard.safetensors", "is the input itself"),
        (source, tmp_path / "soft.safetensors", "is the input itself"),
        (tmp_path / "folder", tmp_path / "alias", "is the input itself"),
        (tmp_path / "folder", tmp_path / "alias" / "out", "lies inside the input folder"),
        (tmp_path / "folder", tmp_path, "holds the input"),
    ]
    for given, output, said in cases:
        done = compressor("prune", given, "-o", output, "--sparsity", "0.5", "--force")
        assert done.code == 2, said
        assert said in done.err
    assert source.read_bytes() == content
    with pytest.raises(UsageError, match="is not a file name"):
        check_apart("new\0name", str(source))
    check_apart("new", "in\0valid")
    teacher = compressor(
        "distill", source, "-o", tmp_path / "hard.safetensors", "--teacher", tmp_path / "folder", "--force"
    )
    assert teacher.code == 2


# ---- gates ---------------------------------------------------------------------------------------------

GATES = [
    (
        ["quantize", "--bits", "4", "--granularity", "channel", "--max-error", "0.01"],
        "--max-error 0.01: the relative error of 'fc",
    ),
    (["quantize", "--bits", "8", "--min-ratio", "7"], "--min-ratio 7: the output is 3.9"),
    (["quantize", "--bits", "8", "--max-size", "100kB"], "--max-size 100 kB: the output has 27"),
    (
        ["prune", "--sparsity", "0.5", "--min-sparsity", "0.75"],
        "--min-sparsity 0.75: 0.5 of the treated weights are zero",
    ),
]


@pytest.mark.parametrize(("request_", "said"), GATES)
def test_a_failed_gate_leaves_nothing(request_: list[str], said: str, tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    verb, *arguments = request_
    done = compressor(verb, TEACHER, "-o", output, *arguments)
    assert done.code == 1
    assert f"error: {said}" in done.err
    assert done.err.endswith("Nothing was written\n")
    assert f"not written {output}" in done.out
    assert list(tmp_path.iterdir()) == []
    output.write_bytes(TEACHER.read_bytes())
    done = compressor(verb, TEACHER, "-o", output, *arguments, "--force", "--format", "json")
    assert done.code == 1
    assert json.loads(done.out)["failed_gates"][0].startswith(said)
    assert list(tmp_path.iterdir()) == [output]
    assert output.read_bytes() == TEACHER.read_bytes()


def test_gates_that_hold(tmp_path: Path) -> None:
    gates = ("--max-error", "0.02", "--min-ratio", "3.5", "--max-size", "300kB", "--min-sparsity", "0.001")
    done = compressor("quantize", TEACHER, "-o", tmp_path / "o.safetensors", "--bits", "8", *gates)
    assert done.code == 0, done.err
    assert done.err == ""


def test_size_gates_are_judged_before_any_data_is_read(tmp_path: Path) -> None:
    source = model(tmp_path, w=np.full((8, 8), np.nan))
    done = compressor("quantize", source, "-o", tmp_path / "o.safetensors", "--max-size", "10B")
    assert done.code == 1
    dry = compressor("quantize", source, "-o", tmp_path / "o.safetensors", "--min-ratio", "100", "--dry-run")
    assert dry.code == 1


# ---- streams -------------------------------------------------------------------------------------------


def without(stream: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run with a stream closed, as `>&-` does."""
    command = [sys.executable, "-m", "compressor", *map(str, args)]
    shell = ["sh", "-c", f'exec "$@" {stream}&-', "sh", *command]
    return subprocess.run(shell, capture_output=True, text=True, check=False, env=environment(), timeout=HANGS)


def test_a_report_that_cannot_be_printed_does_not_undo_the_result(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = spawn("prune", MATRIX, "-o", tmp_path / "a.npy", "--sparsity", "0.5", stdout=full)
    assert done.returncode == 0
    assert done.stderr == "warning: the report could not be printed: No space left on device\n"
    assert np.load(tmp_path / "a.npy").shape == (256, 1024)
    done = without(">", "prune", MATRIX, "-o", tmp_path / "b.npy", "--sparsity", "0.5")
    assert done.returncode == 0
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()
    done = without("2>", "prune", MATRIX, "-o", tmp_path / "c.npy", "--sparsity", "0.5")
    assert done.returncode == 0
    assert done.stdout.startswith("tensor")


def test_a_report_that_is_the_result_must_be_printed() -> None:
    with open("/dev/full", "w") as full:
        done = spawn("inspect", MATRIX, stdout=full)
    assert done.returncode == 4
    assert done.stderr == "error: the report could not be printed: No space left on device\n"


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    for arguments, code in (
        (["inspect", MATRIX], 4),
        (["prune", MATRIX, "-o", tmp_path / "a.npy", "--sparsity", "0"], 0),
    ):
        ours, theirs = os.pipe()
        os.close(ours)
        with os.fdopen(theirs, "wb") as gone:
            done = spawn(*arguments, stdout=gone)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_messages_survive_a_closed_stderr() -> None:
    done = without("2>", "inspect", "/nowhere.npy")
    assert done.returncode == 3


def test_progress_is_for_those_who_watch(tmp_path: Path) -> None:
    shown = terminal(80, "prune", LLAMA, "-o", tmp_path / "a", "--sparsity", "0.5", errors=True)
    assert "kB" in ANSI.sub("", shown.out).split("tensor")[0]
    quiet = terminal(80, "prune", LLAMA, "-o", tmp_path / "b", "--sparsity", "0.5", "-q", errors=True)
    assert "\x1b[?25l" not in quiet.out
    with progress.bar(enabled=True) as advance:
        assert advance(1, 2) is None
    with progress.bar(enabled=False) as advance:
        assert advance(1, 2) is None


# ---- weights and teachers that are refused -------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_non_finite_weights_are_refused_by_name_and_count(dtype: str, tmp_path: Path) -> None:
    values = np.ones((6, 8))
    values[2, 3] = values[4, 5] = np.nan
    raw = store(values, dtype)
    other = store(np.ones((4, 4)) / 2, dtype)
    tensors = {"good": (dtype, other), "bad": (dtype, raw), "bias": (dtype, store([np.nan], dtype))}
    source, output = archives.write(tmp_path / "in.safetensors", tensors), tmp_path / "o.safetensors"
    for verb, arguments in (("prune", ["--threshold", "0.75"]), ("quantize", ["--bits", "8"])):
        done = compressor(verb, source, "-o", output, *arguments)
        assert done.code == 3
        assert done.err == (
            f"error: {source}: tensor 'bad': holds 2 NaN or infinite values. "
            "Mend it, --exclude it, or carry such tensors over with --non-finite keep\n"
        )
        assert not output.exists()
    done = compressor("prune", source, "-o", output, "--threshold", "0.75", "--non-finite", "keep")
    assert done.code == 0
    assert "kept 1 " in done.out
    assert "holds 2 NaN or infinite values (--non-finite keep): bad" in done.out
    found = archives.read(output)
    assert found["bad"][2] == raw.tobytes()
    assert not any(found["good"][2])
    assert compressor("prune", source, "-o", output, "--threshold", "0.75", "--exclude", "bad", "--force").code == 0


def test_infinities_count_too(tmp_path: Path) -> None:
    source = model(tmp_path, w=[[1.0, np.inf]], v=[[np.inf, 1], [-np.inf, 0]])
    done = compressor("quantize", source, "-o", tmp_path / "o.safetensors")
    assert "tensor 'w': holds 1 NaN or infinite value." in done.err
    done = compressor("quantize", source, "-o", tmp_path / "o.safetensors", "--non-finite", "keep")
    assert done.code == 0
    assert "no tensor was selected" in done.out


TEACHERS = [
    ({"v": np.ones((4, 4))}, "has no tensor of that name", {}),
    ({"w": np.ones((1, 4))}, "the student has shape [4, 4], the teacher [1, 4]", {}),
    ({"w": np.ones((4, 1))}, "the teacher [4, 1]", {}),
    ({"w": np.ones((2, 4, 4))}, "the teacher [2, 4, 4]", {}),
    ({"w": np.ones(16)}, "the teacher [16]", {}),
    ({"w": np.full((4, 4), np.nan)}, "holds 16 NaN or infinite values", {}),
    ({"w": np.zeros((4, 4))}, "row 0 sums to zero", {"method": "reweight"}),
    ({"w": np.vstack([np.ones((3, 4)), [[1, -1, 2, -2]]])}, "row 3 sums to zero", {"method": "reweight"}),
]


@pytest.mark.parametrize(("tensors", "said", "options_"), TEACHERS)
def test_teachers_that_do_not_fit(
    tensors: dict[str, Any], said: str, options_: dict[str, str], tmp_path: Path
) -> None:
    student = model(tmp_path, w=np.ones((4, 4)), extra=[1.0])
    teacher = tmp_path / "teacher.safetensors"
    content = {name: ("F32", store(values, "F32")) for name, values in tensors.items()}
    archives.write(teacher, content)
    arguments = [f"--{name}={value}" for name, value in options_.items()]
    done = compressor("distill", student, "-o", tmp_path / "o.safetensors", "--teacher", teacher, *arguments)
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert "tensor 'w': " in line
    assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "teacher.safetensors"]


def test_teachers_that_are_no_floats_or_transposed(tmp_path: Path) -> None:
    student = model(tmp_path, w=np.ones((2, 4)), extra=[1.0])
    cases = [
        ("I32", np.ones((2, 4), "<i4"), "the teacher's is I32, not a float"),
        ("F32", np.ones((4, 2), "<f4"), "[4, 2]"),
    ]
    for dtype, raw, said in cases:
        teacher = archives.write(
            tmp_path / "teacher.safetensors", {"w": (dtype, raw), "extra": ("F32", np.ones(1, "<f4"))}
        )
        done = compressor("distill", student, "-o", tmp_path / "o.safetensors", "--teacher", teacher)
        assert done.code == 3
        assert said in done.err


def test_a_teachers_sums_do_not_overflow_in_narrow_types(tmp_path: Path) -> None:
    raw = store(np.full((2, 64), 60000.0), "F16")
    for name in ("student", "teacher"):
        archives.write(tmp_path / f"{name}.safetensors", {"w": ("F16", raw)})
    arguments = ("--teacher", tmp_path / "teacher.safetensors", "--method", "reweight")
    done = compressor("distill", tmp_path / "student.safetensors", "-o", tmp_path / "o.safetensors", *arguments)
    assert done.code == 0
    found = np.frombuffer(archives.read(tmp_path / "o.safetensors")["w"][2], "<f2")
    assert np.all(found == np.float16(60000 / 64))


def test_a_teacher_of_one_tensor_needs_no_name(tmp_path: Path) -> None:
    np.save(tmp_path / "student.npy", np.ones((2, 2), np.float32))
    teacher = model(tmp_path, whatever=np.zeros((2, 2)))
    done = compressor(
        "distill", tmp_path / "student.npy", "-o", tmp_path / "o.npy", "--teacher", teacher, "--alpha", ".25"
    )
    assert done.code == 0, done.err
    assert np.load(tmp_path / "o.npy").tolist() == [[0.75, 0.75], [0.75, 0.75]]


# ---- our own bugs, and starting up ---------------------------------------------------------------------


def test_what_methods_describe_differently_is_said_in_one_text() -> None:
    differing = set()
    for verb in VERBS:
        texts: dict[str, set[str]] = {}
        for method in methods_of(verb).values():
            for key, (_, declared) in options_of(method).items():
                texts.setdefault(key, set()).add(declared.help)
        differing |= {(verb, key) for key, said in texts.items() if len(said) > 1}
    assert set(SHARED_HELP) == differing
    said = " ".join(compressor("quantize", "--help-all").out.split())
    for (verb, _), text in SHARED_HELP.items():
        assert verb != "quantize" or text.replace("- ", "-")[:60] in said


def test_tune_says_what_its_command_gets_and_prints() -> None:
    said = compressor("tune", "--help-all").out
    for text in ("{path} it gets the path", "a JSON object", "score.py --json {restored}' \\\n", "exit code 0"):
        assert text in said or text in " ".join(said.split())


def test_a_bug_is_one_line_unless_debugged(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("broken\x1b[31m")

    monkeypatch.setattr(api, "inspect", broken)
    done = compressor("inspect", MATRIX)
    assert done.code == 70
    assert done.err == "error: a bug in compressor: RuntimeError: broken\\x1b[31m. Run with --debug and report it\n"
    with pytest.raises(RuntimeError):
        run(["inspect", str(MATRIX), "--debug"])


def test_no_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(api, "inspect", greedy)
    done = compressor("inspect", MATRIX)
    assert (done.code, done.err) == (4, "error: out of memory; --workers 1 needs less\n")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["quantize", "--help"], ["methods", "quantize"]])
def test_help_does_not_wait_for_numpy(arguments: list[str]) -> None:
    code = (
        "import sys; from compressor.cli.main import run; run(sys.argv[1:]); "
        "heavy = {'numpy._core', 'numpy.linalg', 'ml_dtypes._ml_dtypes_ext', 'safetensors', 'rich.table'}; "
        "sys.exit(','.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=HANGS,
    )
    assert done.stderr.strip() == ""
    assert done.stdout


def test_a_plain_run_does_not_wait_for_what_it_does_not_use(tmp_path: Path) -> None:
    unused = [
        *(
            "architectures.gguf",
            "architectures.recognise",
            "calibration.imatrix",
            "checkpoint.gguf",
            "files.archive",
        ),
        *("files.entropy", "files.gguf.reading", "files.npz", "files.torch_state", "networks", "surgery"),
        *("methods.quantize.ggml.encoder", "methods.quantize.ggml.decoder", "workflows.awq", "workflows.budget"),
    ]
    code = (
        "import sys; from compressor.cli.main import run; run(sys.argv[1:]); "
        f"sys.exit(','.join({{'compressor.' + name for name in {unused}}} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "quantize", LLAMA, "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=HANGS,
    )
    assert done.stderr.strip() == ""
    assert done.stdout


def test_python_dash_m() -> None:
    done = spawn("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"compressor \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("verb", ["prune", "distill", "quantize", "tune", "pipeline"])
def test_no_option_has_an_underscore(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help-all"]) == 0
    assert not re.findall(r"--[a-z-]*_[a-z_-]*", capsys.readouterr().out)
