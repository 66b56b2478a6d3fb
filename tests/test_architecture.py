"""The project's habits as tests: who may touch the disk, the terminal and threads; how modules look."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType

import pytest

import compressor
from compressor.core.tensor import DTYPES
from compressor.methods.contract import Encoder, Method, Transform
from compressor.methods.options import SELECTOR, VERBS
from compressor.methods.registry import methods_of
from compressor.recipe.model_method import Reshape

PACKAGE = Path(compressor.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]

# What each of these may do that others may not. Streams are opened where they are mended; `--list` of recipes and
# their files are the package's own and the user's, and never weights.
DISK = ("files/",)
TERMINAL = ("report/", "cli/")
THREADS = ("engines/",)  # and the sink has a lock, because it is written to from many
EXCEPTIONS = {
    "recipe_file.py": {"open"},  # the user's TOML, read within a limit
    "cli/streams.py": {"open", "os.open"},  # /dev/null in place of a closed stream
    "cli/signals.py": set(),
}


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Everything that a module calls, as it is written, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def imports(path: Path) -> set[str]:
    """The modules that a module imports, wherever it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


OPENING = re.compile(
    r"^(open|.*\.open|io\.open|os\.(open|rename|replace|unlink|remove|mkdir|makedirs|rmdir|link|symlink|truncate|chmod|"
    r"pread|pwrite|preadv|write|read|scandir|listdir|fsync)|shutil\..*|.*\.(read_bytes|write_bytes|write_text|"
    r"tofile|unlink|mkdir|rename)|np\.(load|save|savez|memmap|fromfile)|save_file|load_file|mmap\..*)$"
)
OWN = re.compile(
    r"^(InputFile\.open|.*\.whole\.read_bytes|tensor\.whole\.read_bytes)$"
)  # reading, as files/ offers it


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(DISK)])
def test_only_files_touches_the_disk(name: str) -> None:
    allowed = EXCEPTIONS.get(name, set())
    bad = [
        f"{call} in line {line}"
        for call, line in calls(PACKAGE / name)
        if OPENING.match(call)
        and not OWN.match(call)
        and call.removeprefix("path.") not in allowed
        # signals and streams write a last line to the raw stderr
        and not (name.startswith("cli/") and call in ("os.write", "os.open"))
    ]
    assert not bad


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(TERMINAL)])
def test_only_reports_and_commands_print(name: str) -> None:
    bad = [call for call, _ in calls(PACKAGE / name) if call in ("print", "input") or call.startswith("sys.std")]
    assert not bad
    assert not {module.partition(".")[0] for module in imports(PACKAGE / name)} & {
        "rich",
        "click",
        "logging",
        "warnings",
    }


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not name.startswith((*THREADS, "files/sink.py", "files/direct.py"))]
)
def test_only_engines_know_threads(name: str) -> None:
    assert not imports(PACKAGE / name) & {"threading", "multiprocessing", "asyncio", "threadpoolctl", "_thread"}
    made = {call for call, _ in calls(PACKAGE / name)}
    assert not made & {"ThreadPoolExecutor", "ProcessPoolExecutor", "Thread"}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("methods/")])
def test_methods_are_pure(name: str) -> None:
    """No files, no clock, no environment, no randomness, nothing printed."""
    found = imports(PACKAGE / name)
    assert not {module.partition(".")[0] for module in found} & {
        "os",
        "sys",
        "time",
        "random",
        "pathlib",
        "io",
        "socket",
    }
    assert not any(
        module.startswith(("compressor.files", "compressor.cli", "compressor.cli.report")) for module in found
    )


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_short_and_say_what_they_are_for(name: str) -> None:
    text = (PACKAGE / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert Path(name).stem not in ("utils", "helpers", "common", "base", "misc")
    assert "pickle.load" not in text
    assert not re.search(r"\b(eval|exec)\(", text)


@pytest.mark.parametrize("name", NAMES)
def test_layers_know_only_what_lies_below(name: str) -> None:
    """Containers know no methods, methods no engine, nothing but the command line knows the command line."""
    below = {
        "files/": ("methods", "engines", "report", "cli", "planner", "runner", "api", "recipe", "method"),
        "methods/": ("engines", "files", "planner", "runner", "api", "recipe"),
        "engines/": ("files", "methods", "planner", "runner", "api", "recipe", "method"),
        "report/": ("files", "methods", "engines", "planner", "runner", "api", "cli"),
    }
    forbidden = next((names for folder, names in below.items() if name.startswith(folder)), ())
    if not name.startswith(("cli/", "__main__")):
        forbidden += ("cli",)
    for module in imports(PACKAGE / name):
        if module.startswith("compressor."):
            assert module.split(".")[1] not in forbidden, module


def method_modules() -> list[tuple[str, str]]:
    return [
        (verb, info.name)
        for verb in VERBS
        for info in pkgutil.iter_modules([str(PACKAGE / "methods" / verb)])
        if not info.name.startswith("_")
    ]


@pytest.mark.parametrize(("verb", "name"), method_modules())
def test_a_method_is_a_file(verb: str, name: str) -> None:
    module: ModuleType = importlib.import_module(f"compressor.methods.{verb}.{name}")
    method: type[Method] = module.METHOD
    assert (method.verb, method.id) == (verb, name.replace("_", "-"))
    assert is_dataclass(method)
    assert method.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert issubclass(method, Transform | Encoder | Reshape)
    assert methods_of(verb)[method.id] is method
    assert module.__doc__
    assert len(module.__doc__) > 200
    for word in (
        ("Stored:",) if verb == "distill" else ("Stored:", "Error:") if verb == "prune" else ("Stored", "Error:")
    ):
        assert word in module.__doc__


def test_every_verb_has_a_command_a_function_and_methods() -> None:
    for verb in VERBS:
        assert callable(getattr(compressor, verb))
        assert (PACKAGE / "cli" / f"{verb}.py").exists()
        assert methods_of(verb)
        assert SELECTOR[verb] in ("method", "scheme")


def test_the_python_api_is_flat_and_lazy() -> None:
    for name in compressor.__all__:
        assert getattr(compressor, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        compressor.nonsense  # noqa: B018
    assert (
        compressor.__version__
        == tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["version"]
    )


@pytest.mark.parametrize(
    "module", ["compressor", "compressor.cli.main", "compressor.cli.quantize", "compressor.recipe.model"]
)
def test_importing_does_not_load_numpy(module: str) -> None:
    heavy = "{'numpy._core', 'ml_dtypes', 'rich.table'}"
    code = f"import sys, {module}; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_table_of_dtypes_is_sound() -> None:
    for name, dtype in DTYPES.items():
        assert dtype.name == name
        assert dtype.itemsize == dtype.bits / 8
        assert bool(dtype.storage) == (dtype.bits >= 8)
        if dtype.storage:
            assert int(dtype.storage[2:]) * 8 == dtype.bits
        assert dtype.compute in ("", "<f4", "<f8")
