"""Every text in the package that tells users what to do: remedies of errors, read out of the source.

A remedy may be put together; what stands in its braces becomes `{}`, and each branch is a text of its own. What an
error takes from another (`error.remedy`) is that one's.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "compressor"
_DEEPEST = 6
_remedies: set[int] = set()  # what is part of one, by id


@dataclass(frozen=True)
class _Module:
    """What is read of a module: calls, with the function that each is in, and what is given to `error.remedy`."""

    tree: ast.Module
    calls: list[tuple[ast.FunctionDef | None, ast.Call]]
    functions: list[ast.FunctionDef]
    assigned: list[tuple[ast.FunctionDef | None, ast.expr]]


@cache
def _modules() -> dict[Path, _Module]:
    found = {path: _Module(ast.parse(path.read_text()), [], [], []) for path in sorted(PACKAGE.rglob("*.py"))}
    for module in found.values():
        pending: list[tuple[ast.AST, ast.FunctionDef | None]] = [(module.tree, None)]
        while pending:
            node, function = pending.pop()
            if isinstance(node, ast.FunctionDef):
                function = node
                module.functions.append(node)
            elif isinstance(node, ast.Call):
                module.calls.append((function, node))
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "attr", "") == "remedy":
                module.assigned.append((function, node.value))
            pending += [(child, function) for child in ast.iter_child_nodes(node)]
    return found


@cache
def _functions() -> dict[str, list[tuple[Path, ast.FunctionDef]]]:
    found = defaultdict(list)
    for path, module in _modules().items():
        for node in module.functions:
            found[node.name].append((path, node))
    return found


@cache
def _calls_of(path: Path) -> dict[str, list[ast.Call]]:
    """The calls in a module, by what is called."""
    found = defaultdict(list)
    for _, call in _modules()[path].calls:
        found[getattr(call.func, "id", getattr(call.func, "attr", ""))].append(call)
    return found


@cache
def _keywords() -> dict[str, list[tuple[Path, ast.expr]]]:
    """What calls give by keyword, by its name."""
    found = defaultdict(list)
    for path, module in _modules().items():
        for _, call in module.calls:
            for one in call.keywords:
                found[one.arg or ""].append((path, one.value))
    return found


@cache
def _constants(path: Path) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in _modules()[path].tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def ways_on() -> dict[str, str]:
    """Every remedy with `{}` for what is put into it, and where it is said first; one that ends in a space goes on
    with what is not read here."""
    found: dict[str, str] = {}
    for path, module in _modules().items():
        given = [(f, one.value) for f, call in module.calls for one in call.keywords if one.arg == "remedy"]
        given += module.assigned
        for function, value in given:
            for text in _texts(path, function, value, 0):
                found.setdefault(text, f"{path.relative_to(PACKAGE)}:{value.lineno}")
    return {text: place for text, place in found.items() if text.replace("{}", "") and text[-1] != " "}


_ADVICE = re.compile(r"(?<![\w`-])--[a-z][a-z0-9-]*|`compressor ")
_LABEL = re.compile(r"[({ ]*--[a-z0-9-]+[:{}) ]*")
# of cli/ only its tables are read; what limits of loaders say is run by engine/test_what_loaders_take.py
_NO_NOTES = ("architectures", "cli", "recipe/toml_file.py", "reports/curve.py")


def advice() -> dict[str, str]:
    """Every other text that names an option or a command, such as a note's, and where it is: no documentation, no
    reason of an error, and not only an option's name."""
    ways_on()  # which tells what is a remedy
    found: dict[str, str] = {}
    for path, module in _modules().items():
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith(_NO_NOTES) and not place.startswith("cli/report/"):
            continue
        for node in _sentences(module.tree):
            text = _with_braces(node)
            if _ADVICE.search(text) and not _LABEL.fullmatch(text) and id(node) not in _remedies:
                found.setdefault(" ".join(text.split()), f"{place}:{node.lineno}")
    return found


def _sentences(tree: ast.AST) -> Iterator[ast.expr]:
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield node
            continue
        named = "" if not isinstance(node, ast.Call) else getattr(node.func, "id", getattr(node.func, "attr", ""))
        documents = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            documents = getattr(target, "id", "").endswith("HELP")
        if documents or named == "option" or (isinstance(node, ast.keyword) and node.arg in ("help", "off")):
            continue
        refused = named.endswith(("Error", "Failed")) or named in ("refused", "_wrong")
        pending += node.keywords if refused else ast.iter_child_nodes(node)


def _with_braces(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr)
    return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)


def lines_of(name: str) -> list[str]:
    """The lines of a list beside this module, without its remarks."""
    lines = (Path(__file__).parent / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@cache
def pattern_of(text: str) -> re.Pattern[str]:
    """What matches the text with anything in its braces."""
    return re.compile(".*".join(map(re.escape, text.split("{}"))), re.DOTALL)


def _texts(path: Path, function: ast.FunctionDef | None, node: ast.expr, deep: int) -> list[str]:
    if deep > _DEEPEST:
        return ["{}"]
    _remedies.add(id(node))

    def inner(*nodes: ast.expr) -> list[str]:
        return [text for one in nodes for text in _texts(path, function, one, deep + 1)]

    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return _joined([inner(part) for part in parts])
        case ast.FormattedValue(value=ast.Name() | ast.IfExp()):
            return inner(node.value)
        case ast.IfExp(body=one, orelse=other) | ast.BoolOp(values=[one, other]):
            return inner(one, other)
        case ast.BinOp(left=left, right=right):
            return _joined([inner(left), inner(right)])
        case ast.Name(id=name):
            given = [*_assigned(function, name), *_given(path, function, name)]
            return inner(*given) or _constant(path, name, deep) or ["{}"]
        case ast.Subscript(value=found, slice=ast.Constant(value=int(place))):
            return [text for at, one in _places(path, found, place) for text in _texts(at, None, one, deep + 1)]
        case ast.Subscript(value=found):
            return inner(found)
        case ast.Dict(values=values):
            return inner(*values)
        case ast.Call(func=ast.Attribute(value=found, attr="get"), args=[_, *rest]):
            return inner(found, *rest)
        case ast.Attribute(attr=name) if name != "remedy":
            return [text for at, one in _held(name) for text in _texts(at, None, one, deep + 1)] or ["{}"]
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            return [text for at, one in _functions().get(name, ()) for text in _returned(at, one, deep)] or ["{}"]
    return ["{}"]


def _joined(parts: Sequence[Sequence[str]]) -> list[str]:
    whole = [""]
    for part in parts:
        whole = [before + after for before in whole for after in part]
    return whole


def _assigned(function: ast.FunctionDef | None, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(function) if function is not None else ():
        if isinstance(node, ast.Assign) and any(
            isinstance(one, ast.Name) and one.id == name for one in node.targets
        ):
            yield node.value
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            yield node.value
        if isinstance(node, ast.Assign | ast.For):
            (target, value) = (
                (node.target, node.iter) if isinstance(node, ast.For) else (node.targets[0], node.value)
            )
            names = [getattr(one, "id", "") for one in target.elts] if isinstance(target, ast.Tuple) else []
            if name in names:
                yield ast.Subscript(value, ast.Constant(names.index(name)))


def _given(path: Path, function: ast.FunctionDef | None, name: str) -> Iterator[ast.expr]:
    """What a parameter of a function is in calls within its module, and where it is left out."""
    if function is None:
        return
    plain = [*function.args.posonlyargs, *function.args.args]
    names = [one.arg for one in plain]
    if name in names[-len(function.args.defaults) :] and function.args.defaults:
        yield function.args.defaults[names.index(name) - len(names)]
    for parameter, value in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if parameter.arg == name and value is not None:
            yield value
    place = names.index(name) - (names[:1] == ["self"]) if name in names else _DEEPEST * _DEEPEST
    for call in _calls_of(path)[function.name]:
        yield from call.args[place : place + 1]
        yield from (keyword.value for keyword in call.keywords if keyword.arg == name)


def _held(name: str) -> Iterator[tuple[Path, ast.expr]]:
    """What an attribute of an object is made with: what calls give by its name, and what is given otherwise."""
    yield from _keywords()[name]
    for path, function in _functions()["__init__"]:
        yield from ((path, one) for one in _given(path, function, name))


def _constant(path: Path, name: str, deep: int) -> list[str]:
    if name in _constants(path):
        return _texts(path, None, _constants(path)[name], deep + 1)
    for node in _modules()[path].tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and any(one.name == name for one in node.names):
            other = PACKAGE.parent / f"{node.module.replace('.', '/')}.py"
            if other in _modules():
                return _constant(other, name, deep + 1)
    return []


def _places(path: Path, node: ast.expr, place: int) -> Iterator[tuple[Path, ast.expr]]:
    """What stands at a place of each tuple that a value may be, or may be made of."""
    match node:
        case ast.Name(id=name) if name in _constants(path):
            yield from _places(path, _constants(path)[name], place)
        case ast.Tuple(elts=values) if all(isinstance(one, ast.Tuple) for one in values):
            for one in values:
                yield from _places(path, one, place)
        case ast.Tuple(elts=values) if place < len(values):
            yield path, values[place]
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            for at, function in _functions().get(name, ()):
                for one in ast.walk(function):
                    if isinstance(one, ast.Return) and isinstance(one.value, ast.Tuple):
                        yield from _places(at, one.value, place)


def _returned(path: Path, function: ast.FunctionDef, deep: int) -> list[str]:
    return [
        text
        for node in ast.walk(function)
        if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Tuple)
        for text in _texts(path, function, node.value, deep + 1)
    ]
