"""What the documentation shows is what happens: its commands are run and their output compared."""

from __future__ import annotations

import ast
import importlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from compressor.calibration.statistics import open_statistics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLES = ROOT / "sample_weights"


def bench(name: str) -> ModuleType:
    """A script of bench/quality as a module."""
    return importlib.import_module(f"bench.quality.{name}")


def blocks(kind: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the sample weights, and a copy of the teacher under the name that the examples use."""
    (tmp_path / "sample_weights").symlink_to(SAMPLES)
    (tmp_path / "model.safetensors").write_bytes((SAMPLES / "lenet300_teacher.safetensors").read_bytes())
    return tmp_path


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],  # noqa: S607
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.split("\n")[0][2:60])
def test_readme_output_is_real(block: str, workplace: Path) -> None:
    command, _, expected = block.partition("\n")
    done = shell(command.removeprefix("$ "), workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected


def test_readme_makefile_rule(workplace: Path) -> None:
    (rule,) = blocks("make")
    (workplace / "Makefile").write_text(rule)
    done = shell("make small.safetensors", workplace)
    assert done.returncode == 0, done.stderr
    assert (workplace / "small.safetensors").stat().st_size < 300_000
    assert "up to date" in shell("make small.safetensors", workplace).stdout
    (workplace / "small.safetensors").unlink()
    (workplace / "Makefile").write_text(rule.replace("0.02", "0.0001"))
    assert shell("make small.safetensors", workplace).returncode == 2
    assert not (workplace / "small.safetensors").exists()


CLUSTER = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def cluster(kind: str, place: int = 0) -> str:
    """A fenced block of a language in docs/cluster.md."""
    return re.findall(rf"^```{kind}\n(.*?)^```", CLUSTER, re.MULTILINE | re.DOTALL)[place]


@pytest.fixture
def one_run(workplace: Path) -> dict[str, bytes]:
    """What one run makes of the folder `model`, which is there too."""
    (workplace / "model").symlink_to(SAMPLES / "tiny-llama")
    done = shell("compressor quantize model -o one --bits 4 -q", workplace)
    assert done.returncode == 0, done.stderr
    return {file.name: file.read_bytes() for file in (workplace / "one").iterdir()}


@pytest.mark.parametrize("way", ["commands", "make", "slurm", "ci"])
def test_ways_to_make_parts(way: str, workplace: Path, one_run: dict[str, bytes]) -> None:
    if way == "commands":
        script = cluster("bash")
    elif way == "make":
        (workplace / "Makefile").write_text(cluster("make"))
        script = "make -j 2 small"
    elif way == "slurm":
        (workplace / "job.sh").write_text(cluster("bash", 2).replace("16", "2"))
        script = "for k in 1 2; do SLURM_ARRAY_TASK_ID=$k bash job.sh; done\n"
        script += "compressor merge small.part-*-of-2 -o small --remove-parts"
    else:
        steps = re.findall(r"- run: (.*)", cluster("yaml"))
        *jobs, last, merge = steps
        parts = [step.replace("${{ matrix.part }}", str(part)) for part in (1, 2, 3) for step in jobs]
        script = "\n".join([*parts, "rm -r small.part-*", last, merge])
    done = shell(script, workplace)
    assert done.returncode == 0, done.stderr
    assert {file.name: file.read_bytes() for file in (workplace / "small").iterdir()} == one_run


def test_a_cluster_in_three_lines(workplace: Path, one_run: dict[str, bytes]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    lines = cluster("bash", 3).replace("8786", port).replace("dask scheduler", "dask scheduler --no-dashboard")
    done = shell(f"trap 'kill $(jobs -p)' EXIT\n{lines}", workplace)
    assert done.returncode == 0, done.stderr
    assert {file.name: file.read_bytes() for file in (workplace / "small").iterdir()} == one_run


def test_surveys_that_are_merged(workplace: Path) -> None:
    (workplace / "model").symlink_to(SAMPLES / "tiny-llama")
    done = shell("compressor prune model -o one --sparsity 0.5 --scope global -q\n" + cluster("bash", 1), workplace)
    assert done.returncode == 0, done.stderr
    one, small = (
        {file.name: file.read_bytes() for file in (workplace / name).iterdir()} for name in ("one", "small")
    )
    assert one == small


def test_readme_ci_job(workplace: Path) -> None:
    (job,) = blocks("yaml")
    steps = yaml.safe_load(job)["jobs"]["compress"]["steps"]
    runs = [step["run"] for step in steps if "run" in step]
    assert runs[0] == "pip install ."
    page = workplace / "page.md"
    done = shell("\n".join([f"export GITHUB_STEP_SUMMARY={page}", *runs[1:]]), workplace)
    assert done.returncode == 0, done.stderr
    assert "small.safetensors" in page.read_text(encoding="utf-8")


def test_readme_python(workplace: Path) -> None:
    (code,) = blocks("python")
    done = shell(f"python - <<'END'\n{code}\nEND", workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "7.76 times smaller, relative error 0.125\n"


def test_one_line_of_numpy_unpacks_codes(workplace: Path) -> None:
    """The page's example, of any width and with the same numbers as `restore`."""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").split("### Codes in an `.npz`")[1]
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[:1]
    for bits, more in ((4, ""), (3, " --granularity channel")):
        done = shell(
            f"compressor quantize sample_weights/matrix.npy -o matrix.npz --bits {bits}{more} --force -q\n"
            "compressor restore matrix.npz -o back.npy --force -q\n"
            f"python - <<'END'\nimport numpy as np\n{code.replace('4, 1024', f'{bits}, 1024')}\n"
            "assert np.allclose(weights, np.load('back.npy'), rtol=1e-6, atol=0)\nEND",
            workplace,
        )
        assert done.returncode == 0, done.stderr
        assert (workplace / "matrix.npz").stat().st_size * 8 / (256 * 1024) < bits + 0.35


def test_an_npy_is_said_to_be_no_smaller(workplace: Path) -> None:
    made = "compressor quantize sample_weights/matrix.npy --bits 4 -o small"
    said = shell(f"{made}.npy", workplace).stdout
    assert "note: an .npy holds plain floats and cannot be smaller" in said
    for end in ("npz", "safetensors"):  # what the note says would be
        assert "cannot be smaller" not in shell(f"{made}.{end}", workplace).stdout
        assert (workplace / f"small.{end}").stat().st_size < 200_000


def test_the_page_of_statistics(workplace: Path) -> None:
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (code,) = [block for block in blocks if "torch" not in block]  # the other one is run by an interop test
    done = shell(f"python - <<'END'\n{code}\nEND", workplace)
    assert done.returncode == 0, done.stderr
    (command,) = re.findall(r"^compressor calibrate --merge .*$", page, re.MULTILINE)
    shell("cp stats.safetensors part1.safetensors; mv stats.safetensors part2.safetensors", workplace)
    assert shell(command, workplace).returncode == 0
    shell("cp part1.safetensors one.safetensors", workplace)
    for name, count in (("one", 1024), ("stats", 2048)):
        assert open_statistics(workplace / f"{name}.safetensors").counts["fc1"] == count
    command = "prune model.safetensors -o o.safetensors --method wanda --sparsity 0.5 --stats one.safetensors"
    assert shell(f"compressor {command} --include 'fc1.*' --exclude '*bias'", workplace).returncode == 0


GUIDES = ("first-ten-minutes", *(path.stem for path in sorted((ROOT / "docs").glob("for-*.md"))))


@pytest.mark.parametrize("name", GUIDES)
def test_the_commands_of_a_guide_run(name: str, workplace: Path) -> None:
    """Blocks of bash, in their order, in one folder. What needs hardware or another program is a block of sh that
    says so."""
    (workplace / "model").symlink_to(SAMPLES / "tiny-llama")
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    scripts = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert scripts
    done = shell("\n".join(scripts), workplace)
    assert done.returncode == 0, done.stderr
    for other in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        assert other.startswith("# needs ")
    for text in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        assert yaml.safe_load(text)


def test_every_page_is_on_the_site_and_nothing_is_loaded_from_elsewhere() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert site["strict"]
    assert site["theme"]["highlightjs"] is False
    listed = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_every_command_is_documented() -> None:
    from compressor.cli.main import _COMMANDS

    for name in _COMMANDS:
        assert f"`compressor {name}`" in README


def test_the_table_of_errors_has_every_scheme() -> None:
    """Rows of bench/quality/errors.py, and no others, with a figure in every column."""
    script = bench("errors")
    page = script.PAGE.read_text(encoding="utf-8")
    rows = page.split(script.BEGIN)[1].split(script.END)[0].strip().splitlines()
    assert [row.split("|")[1].strip(" `") for row in rows[2:]] == [script.name(row) for row in script.SCHEMES]
    for row in rows[2:]:
        assert all(0 < float(cell) < 9 for cell in row.split("|")[2:-1])


def test_deep_compressions_page_has_what_was_measured_of_every_network() -> None:
    """And the tables of it are those that `inspect --coding` prints: they sum up."""
    script = bench("deep_compression")
    page = script.PAGE.read_text(encoding="utf-8")
    for name in script.ROWS:
        begin, end = (mark.format(name) for mark in script.MARKS)
        measured = page.split(begin)[1].split(end)[0]
        before, after = (int(size.replace(",", "")) for size in re.findall(r"([0-9,]+) (?:to|bytes)", measured)[:2])
        assert f"| {before / after:.1f} times smaller |" in measured
        rows = measured.split("```")[1].splitlines()
        counts = [int(re.split(r" {2,}", row)[1].replace(",", "")) for row in rows if re.match(r"(fc|conv)", row)]
        (total,) = [row for row in rows if row.startswith("all ")]
        assert sum(counts) == int(re.split(r" {2,}", total)[1].replace(",", ""))


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


PLACEHOLDERS = ("NAME", "VERB", "…")


def definitions() -> dict[str, set[str]]:
    """What the package defines: its classes and functions, and of each class by its name what it defines."""
    found: dict[str, set[str]] = {"": set()}
    for path in (ROOT / "compressor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[""].add(node.name)
            if isinstance(node, ast.ClassDef):
                mine = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
                found[node.name] = found.get(node.name, set()) | mine
            if isinstance(node, ast.Assign):  # a type by another name
                found[""] |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def misnamed(page: str) -> list[str]:
    """Files and folders, classes and functions that a page has in backquotes and that are not there."""
    known, bad = definitions(), []
    for word in re.findall(r"`([^`\n]+)`", page.replace("```", "")):
        if any(holder in word for holder in PLACEHOLDERS):
            continue
        if re.fullmatch(r"[\w./-]+(\.py|/)", word):
            if not any((root / word).exists() for root in (ROOT, ROOT / "compressor")):
                bad.append(word)
        elif called := re.fullmatch(r"(?:(\w+)\.)?(\w+)\(\)", word):
            if called[2] not in known.get(called[1] or "", set()):
                bad.append(word)
        elif re.fullmatch(r"[A-Z][a-z]+\w*", word) and word not in known[""]:
            bad.append(word)
    return bad


def test_the_page_of_architecture_names_what_there_is() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert misnamed(page) == []
    folders = re.findall(r"^  ([a-z]+)/ ", page, re.MULTILINE)
    assert set(folders) == {entry.parent.name for entry in (ROOT / "compressor").glob("*/__init__.py")}


@pytest.mark.parametrize("word", ["files/sink.py", "nowhere/", "run_nothing()", "Output.run()", "Nothing"])
def test_a_name_that_is_gone_is_found(word: str) -> None:
    assert misnamed(f"As `{word}` says, and `Output.write()` in `files/output.py`.") == [word]


def test_recipe_page_example_is_valid() -> None:
    from compressor.recipe.toml_file import parse_recipe

    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for text in re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        recipe = parse_recipe(text, "docs")
        assert recipe.stages or recipe.cuts


def test_what_is_written_by_a_benchmark_names_it() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for script in re.findall(r"<!-- [\w-]+: written by (\S+) -->", page.read_text(encoding="utf-8")):
            code = (ROOT / script).read_text(encoding="utf-8")
            assert script in code or f'"{script.removeprefix("bench/")}"' in code, (page.name, script)
