"""The rules of the house. Each takes a package's folder and lists what breaks it, as `module: what`, in order.

They read the source and import nothing of it, so that a test can plant a violation in a small tree of its own.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

# A module imports from its own layer and from those before it. `architectures` and `files` lie beside each other.
LAYERS = (
    ("core",),
    ("architectures", "files"),
    ("methods",),
    ("recipe",),
    ("checkpoint",),
    ("networks",),
    ("calibration",),
    ("surgery",),
    ("engine/plan",),
    ("engine/execution",),
    ("workflows",),
    ("reports",),
    ("api.py", "__init__.py", "testing.py"),
    ("cli", "__main__.py"),
)
FOLDERS = {part.split("/")[0] for layer in LAYERS for part in layer if not part.endswith(".py")}
FILES = {"__init__.py", "__main__.py", "api.py", "py.typed", "testing.py"}
VERB_FOLDERS = ("prune", "distill", "quantize", "store")  # below methods/: the methods themselves
SAYING_NOTHING = {"utils", "helpers", "common", "base", "misc"}

# Who else may do what one folder is there for, each with its reason.
DISK = {
    "checkpoint/dialects/comfy.py: described.read_bytes",  # a tensor's, as files/ offers it
    "cli/catalogue.py: entry.read_text",  # the package's own, as the next
    "reports/html/document.py: (folder / name).read_text",  # the package's own style and script
    "cli/signals.py: os.open",  # the last line of a run that is stopped goes to the bare terminal
    "cli/signals.py: os.write",
    "cli/streams.py: open",  # /dev/null in place of a closed stream
    "cli/streams.py: os.open",
    "networks/description.py: entry.read_text",  # the package's own networks
    "networks/description.py: folder.iterdir",
    "recipe/toml_file.py: entry.read_text",  # the package's own recipes
    "recipe/toml_file.py: folder.iterdir",
}
THREADS = ("core/parallel/", "files/output.py", "files/unbuffered.py")  # an output is written to from many threads

MOST_COMPLEX, MOST_ARGUMENTS = 15, 7


@dataclass(frozen=True, eq=False)
class Module:
    """One file of a package: where it lies below the package (`files/npy.py`), its dotted name, its tree."""

    place: str
    name: str
    tree: ast.Module

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Everything in it, at every depth."""
        return tuple(ast.walk(self.tree))

    @cached_property
    def calls(self) -> tuple[str, ...]:
        """What it calls, as it is written."""
        return tuple(ast.unparse(node.func) for node in self.nodes if isinstance(node, ast.Call))

    @property
    def folder(self) -> str:
        """The dotted name of the package that it lies in; a folder's `__init__` lies in the folder."""
        return self.name if self.place.endswith("__init__.py") else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Import:
    """That `source` takes `name` from the module `target` ("" when it takes the module itself)."""

    source: Module
    target: str
    name: str


@cache
def modules_of(package: Path) -> dict[str, Module]:
    """Every module of a package by its dotted name, parsed once."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        parts = (package.name, *place.removesuffix(".py").split("/"))
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(place, name, ast.parse(path.read_text(encoding="utf-8")))
    return found


@cache
def imports_of(package: Path) -> tuple[Import, ...]:
    """What modules take from each other: at the top, in functions, for typing, relative, or named in a string."""
    return tuple(_imports_of(package))


def _imports_of(package: Path) -> Iterator[Import]:
    modules = modules_of(package)
    named = modules.keys() - {package.name}
    for module in modules.values():
        said = {id(node.value) for node in module.nodes if isinstance(node, ast.Expr)}  # docstrings
        for node in module.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == package.name:
                        yield Import(module, alias.name, "")
            elif isinstance(node, ast.ImportFrom):
                start = _absolute(module, node)
                if start.split(".")[0] == package.name:
                    for alias in node.names:
                        inner = f"{start}.{alias.name}"
                        yield Import(module, inner, "") if inner in modules else Import(module, start, alias.name)
            elif isinstance(node, ast.Constant) and node.value in named and id(node) not in said:
                yield Import(module, str(node.value), "")


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    above = module.folder.split(".")
    return ".".join([*above[: len(above) - node.level + 1], *filter(None, [node.module])])


def layer_of(place: str) -> int | None:
    """The number of the layer that a file lies in, counted from the ground; None when it lies in none."""
    for number, parts in enumerate(LAYERS):
        if any(place == part or place.startswith(f"{part}/") for part in parts):
            return number
    # The folder's own __init__ says what the two parts are and is imported with either.
    return layer_of("engine/plan/__init__.py") if place == "engine/__init__.py" else None


def imports_that_go_up(package: Path) -> list[str]:
    """Imports from a layer above, from the layer's other folder, or of what is not there; modules in no layer."""
    modules = modules_of(package)
    bad = [f"{module.place}: lies in no layer" for module in modules.values() if layer_of(module.place) is None]
    for one in imports_of(package):
        target = modules.get(one.target)
        what = f"{one.source.place}: {one.target}{f' ({one.name})' if one.name else ''}"
        if target is None:
            bad.append(f"{what} is not there")
            continue
        mine, theirs = layer_of(one.source.place), layer_of(target.place)
        beside = mine == 1 == theirs and one.source.place.split("/")[0] != target.place.split("/")[0]
        if mine is not None and theirs is not None and (theirs > mine or beside):
            bad.append(what)
    return sorted(set(bad))


def circles(package: Path) -> list[str]:
    """Sets of modules that need each other, whether at run time or for types only."""
    needs: dict[str, set[str]] = {name: set() for name in modules_of(package)}
    for one in imports_of(package):
        if one.target in needs and one.target != one.source.name:
            needs[one.source.name].add(one.target)
    reached = {name: _reached(name, needs) for name in needs}
    found = {
        tuple(sorted({name, *(other for other in reached[name] if name in reached[other])}))
        for name in needs
        if name in reached[name]
    }
    return [": ".join((circle[0], " and ".join(circle[1:]))) for circle in sorted(found)]


def _reached(start: str, needs: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(needs[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(needs[name])
    return seen


def private_taken_from_afar(package: Path) -> list[str]:
    """What begins with `_` and is imported, or taken off an imported module, from outside its own folder."""
    modules = modules_of(package)
    bad = set()
    for one in imports_of(package):
        for owner in _hidden(one.target, one.name):
            if not _within(one.source, owner, modules):
                bad.add(f"{one.source.place}: {one.target}{f' ({one.name})' if one.name else ''}")
    for module in modules.values():
        held = _modules_held(module, modules)
        for node in module.nodes:
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and _private(node.attr)):
                continue
            target = held.get(node.value.id)
            if target and not _within(module, modules[target].folder, modules):
                bad.add(f"{module.place}: {target} ({node.attr})")
    return sorted(bad)


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _hidden(target: str, name: str) -> Iterator[str]:
    """The folders within which a dotted name may be used, one for each private part of it."""
    parts = target.split(".")
    for at, part in enumerate(parts):
        if _private(part):
            yield ".".join(parts[:at])
    if _private(name):
        yield target


def _within(source: Module, owner: str, modules: dict[str, Module]) -> bool:
    folder = modules[owner].folder if owner in modules else owner
    return f"{source.folder}.".startswith(f"{folder}.")


def _modules_held(module: Module, modules: dict[str, Module]) -> dict[str, str]:
    """The names in a module that stand for other modules of the package."""
    held = {}
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{_absolute(module, node)}.{alias.name}"
                if inner in modules:
                    held[alias.asname or alias.name] = inner
    return held


def misplaced_at_the_top(package: Path) -> list[str]:
    """What lies at the top unlisted, what is listed and not there, and what hides a function of the package."""
    entries = [entry for entry in sorted(package.iterdir()) if entry.name != "__pycache__"]
    folders, files = ({entry.name for entry in entries if entry.is_dir() is kind} for kind in (True, False))
    bad = [f"{name}: is not on the list" for name in (folders - FOLDERS) | (files - FILES)]
    bad += [f"{name}: is not there" for name in (FOLDERS - folders) | (FILES - files)]
    verbs = _public_names(package)
    bad += [f"{name}: has a verb's name" for name in folders | files if name.removesuffix(".py") in verbs]
    return sorted(bad)


def _public_names(package: Path) -> set[str]:
    """What `__all__` of the package lists."""
    for node in ast.walk(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def asks_which_method(package: Path) -> list[str]:
    """Where a module outside methods/ asks which method it has: by its id, an attribute by name, or its class."""
    modules = modules_of(package)
    own = _fields_of_methods(package)
    bad = set()
    for module in modules.values():
        if module.place.startswith("methods/"):
            continue
        concrete = _methods_named(module, modules)
        for node in module.nodes:
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                if any(isinstance(side, ast.Attribute) and side.attr == "id" for side in sides) and any(
                    isinstance(inner, ast.Constant) and isinstance(inner.value, str)
                    for side in sides
                    for inner in ([side] if isinstance(side, ast.Constant) else getattr(side, "elts", []))
                ):
                    bad.add(f"{module.place}: {ast.unparse(node)}")
                if any(ast.unparse(side) in concrete for side in sides):
                    bad.add(f"{module.place}: {ast.unparse(node)}")
            elif isinstance(node, ast.match_case):
                kinds = {
                    ast.unparse(inner.cls) for inner in ast.walk(node.pattern) if isinstance(inner, ast.MatchClass)
                }
                bad |= {f"{module.place}: case {kind}" for kind in kinds if kind in concrete}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
                asked, what = node.args[:2]
                if node.func.id in ("getattr", "hasattr") and isinstance(what, ast.Constant):
                    if what.value in own or re.search(r"(method|encoder|decoder|transform)\b", ast.unparse(asked)):
                        bad.add(f"{module.place}: {node.func.id}({ast.unparse(asked)}, {what.value!r})")
                elif node.func.id in ("isinstance", "issubclass"):
                    named = {ast.unparse(inner) for inner in ast.walk(what) if isinstance(inner, ast.expr)}
                    bad |= {
                        f"{module.place}: {node.func.id}({ast.unparse(asked)}, {kind})" for kind in named & concrete
                    }
    return sorted(bad)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _method_classes(package: Path) -> Iterator[ast.ClassDef]:
    for module in modules_of(package).values():
        if module.place.startswith(tuple(f"methods/{verb}/" for verb in VERB_FOLDERS)):
            yield from (node for node in module.tree.body if isinstance(node, ast.ClassDef))


def _methods_named(module: Module, modules: dict[str, Module]) -> set[str]:
    """What a module calls the classes that it takes from the methods' own folders."""
    found = set()
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom):
            start = _absolute(module, node)
            for alias in node.names:
                inner, called = f"{start}.{alias.name}", alias.asname or alias.name
                if _is_a_method(inner) and inner in modules:
                    held = modules[inner].tree.body
                    found |= {f"{called}.{one.name}" for one in held if isinstance(one, ast.ClassDef)}
                elif _is_a_method(start):
                    found.add(called)
    return found


def _is_a_method(name: str) -> bool:
    return name.split(".")[1:2] == ["methods"] and name.split(".")[2:3] in [[verb] for verb in VERB_FOLDERS]


def _fields_of_methods(package: Path) -> set[str]:
    """What the methods' own classes call their options: asking for one by name is asking which method it is."""
    found = set()
    for node in _method_classes(package):
        for inner in node.body:
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                found.add(inner.target.id)
    return found - {"name"}


WORDS = re.compile(r"(^|[._])(reason|remedy|message)$|^str\((\w*(error|failure|problem|exc)|e)\)$|\.args\[\d+\]$")
ASKING = {"startswith", "endswith", "find", "index", "count", "partition", "split"}
FOREIGN = {"cli/main.py: 'start new thread' not in str(error)"}  # Python has no class for it


def goes_by_words(package: Path) -> list[str]:
    """Where what is done hangs on the words of a message instead of the class of an error or a value."""
    bad = set()
    for module in modules_of(package).values():
        for node in module.nodes:
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                empty = [isinstance(side, ast.Constant) and side.value in ("", None) for side in sides]
                if any(WORDS.search(ast.unparse(side)) for side in sides) and not any(empty):
                    bad.add(f"{module.place}: {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and _takes_words_apart(node):
                bad.add(f"{module.place}: {ast.unparse(node)}")
            elif isinstance(node, ast.Match) and WORDS.search(ast.unparse(node.subject)):
                bad.add(f"{module.place}: match {ast.unparse(node.subject)}")
    return sorted(bad - FOREIGN)


def _takes_words_apart(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Attribute):
        return False
    asked = ast.unparse(node.func.value)
    if asked == "re":
        return any(WORDS.search(ast.unparse(argument)) for argument in node.args)
    if node.func.attr in ("partition", "split") and asked.startswith("str("):
        return False  # a line of what another library says, to be passed on
    return node.func.attr in ASKING and bool(WORDS.search(asked))


def too_complex(package: Path) -> list[str]:
    """Functions past ruff's limits, whether or not a comment excuses them."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--ignore-noqa", "--exit-zero", "--no-cache"]
    command += ["--select", "C901,PLR0913", "--output-format", "json"]
    command += ["--config", f"lint.mccabe.max-complexity={MOST_COMPLEX}"]
    command += ["--config", f"lint.pylint.max-args={MOST_ARGUMENTS}", "--target-version", "py311", str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bad = []
    for found in json.loads(done.stdout):
        path = Path(found["filename"])
        line = path.read_text(encoding="utf-8").splitlines()[found["location"]["row"] - 1]
        match = re.search(r"def (\w+)", line)
        assert match
        bad.append(f"{path.relative_to(package.resolve()).as_posix()}: {match[1]} ({found['code']})")
    return sorted(bad)


OPENING = re.compile(
    r"^(open|.*\.open|io\.open|os\.(open|rename|replace|unlink|remove|mkdir|makedirs|rmdir|link|symlink|truncate|chmod|"
    r"pread|pwrite|preadv|write|read|scandir|listdir|fsync)|shutil\..*|.*\.(read_bytes|read_text|write_bytes|write_text|"
    r"tofile|unlink|mkdir|rename|iterdir)|np\.(load|save|savez|memmap|fromfile)|save_file|load_file|mmap\..*)$"
)
OWN = re.compile(
    r"^(InputFile\.open|.*\bwhole\.read_bytes|strict_toml\.read_(text|stream))$"
)  # as files/ offers it


def touches_the_disk(package: Path) -> list[str]:
    """Calls that open, read, write or list files outside of files/."""
    bad = {
        f"{module.place}: {called}"
        for module in modules_of(package).values()
        if not module.place.startswith("files/")
        for called in module.calls
        if OPENING.match(called) and not OWN.match(called)
    }
    return sorted(bad - DISK)


def prints(package: Path) -> list[str]:
    """Whatever outside of cli/ writes to the terminal, or brings in what does."""
    bad = set()
    for module in modules_of(package).values():
        if module.place.startswith("cli/"):
            continue
        for called in module.calls:
            if called in ("print", "input") or called.startswith("sys.std"):
                bad.add(f"{module.place}: {called}")
        for name in _imported(module) & {"rich", "click", "logging", "warnings"}:
            bad.add(f"{module.place}: {name}")
    return sorted(bad)


def makes_threads(package: Path) -> list[str]:
    """Threads, processes and locks anywhere but in core/parallel and in what it writes to."""
    bad = set()
    for module in modules_of(package).values():
        if module.place.startswith(THREADS):
            continue
        for name in _imported(module) & {"threading", "multiprocessing", "asyncio", "threadpoolctl", "_thread"}:
            bad.add(f"{module.place}: {name}")
        for made in map(_last, module.calls):
            if made in ("ThreadPoolExecutor", "ProcessPoolExecutor", "Thread", "fork"):
                bad.add(f"{module.place}: {made}")
    return sorted(bad)


def impure_methods(package: Path) -> list[str]:
    """Files, clock, environment, chance, terminal in methods/, where all hangs on what a function is given."""
    outside = {"os", "sys", "time", "random", "pathlib", "io", "socket", "subprocess", "secrets", "datetime"}
    bad = set()
    for module in modules_of(package).values():
        if module.place.startswith("methods/"):
            bad |= {f"{module.place}: {name}" for name in _imported(module) & outside}
    for one in imports_of(package):
        if one.source.place.startswith("methods/") and one.target.split(".")[1:2] == ["files"]:
            bad.add(f"{one.source.place}: {one.target}")
    return sorted(bad)


def _imported(module: Module) -> set[str]:
    """The first names of everything that a module imports, wherever it does."""
    found = set()
    for node in module.nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def ill_kept(package: Path) -> list[str]:
    """Modules that do not say what they are for, have a name that says nothing, or run what they read; folders that
    are no packages."""
    bad = set()
    for path in package.rglob("*.py"):
        for folder in path.relative_to(package).parents:
            if not (package / folder / "__init__.py").exists():
                bad.add(f"{folder.as_posix()}: has no __init__")
    for module in modules_of(package).values():
        if not ast.get_docstring(module.tree):
            bad.add(f"{module.place}: has no docstring")
        if _last(module.name) in SAYING_NOTHING:
            bad.add(f"{module.place}: has a name that says nothing")
        for called in {"eval", "exec", "pickle.load", "pickle.loads"}.intersection(module.calls):
            bad.add(f"{module.place}: {called}")
    return sorted(bad)


CLOCK = re.compile(r"\b(monotonic|process_time|perf_counter|time\.time|seconds|elapsed|duration)\b")


def judges_times(tests: Path) -> list[str]:
    """Assertions about how long something took, and deadlines of Hypothesis, in a folder of tests; but for those of
    support/clock.py, which are made in the long tests only."""
    bad = set()
    for path in sorted(set(tests.rglob("*.py")) - {tests / "support" / "clock.py"}):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = path.relative_to(tests).as_posix()
            if isinstance(node, ast.Assert) and CLOCK.search(ast.unparse(node.test)):
                bad.add(f"{place}: {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("settings"):
                bad |= {f"{place}: {ast.unparse(node)}" for word in node.keywords if word.arg == "deadline"}
    return sorted(bad)
