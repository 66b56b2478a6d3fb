"""Every text in the package that tells users what to do: remedies of errors, read out of the source.

A remedy may be put together; what stands in its braces becomes `{}`, and each branch is a text of its own. What an
error takes from another (`error.remedy`) is that one's.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "compressor"
_DEEPEST = 6


@cache
def _modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def _functions() -> dict[str, list[tuple[Path, ast.FunctionDef]]]:
    found = defaultdict(list)
    for path, tree in _modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                found[node.name].append((path, node))
    return found


@cache
def _constants(path: Path) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in _modules()[path].body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def ways_on() -> dict[str, str]:
    """Every remedy with `{}` for what is put into it, and where it is said first; one that ends in a space goes on
    with what is not read here."""
    found: dict[str, str] = {}
    for path, tree in _modules().items():
        for function, call in _calls(tree, None):
            for keyword in call.keywords:
                if keyword.arg == "remedy":
                    for text in _texts(path, function, keyword.value, 0):
                        found.setdefault(text, f"{path.relative_to(PACKAGE)}:{call.lineno}")
    return {text: place for text, place in found.items() if text.replace("{}", "") and text[-1] != " "}


def pattern_of(text: str) -> re.Pattern[str]:
    """What matches the text with anything in its braces."""
    return re.compile(".*".join(map(re.escape, text.split("{}"))), re.DOTALL)


def _calls(node: ast.AST, function: ast.FunctionDef | None) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        yield from _calls(child, child if isinstance(child, ast.FunctionDef) else function)


def _texts(path: Path, function: ast.FunctionDef | None, node: ast.expr, deep: int) -> list[str]:
    if deep > _DEEPEST:
        return ["{}"]

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
            return inner(*_assigned(function, name)) or _constant(path, name, deep) or ["{}"]
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


def _constant(path: Path, name: str, deep: int) -> list[str]:
    if name in _constants(path):
        return _texts(path, None, _constants(path)[name], deep + 1)
    for node in _modules()[path].body:
        if isinstance(node, ast.ImportFrom) and node.module and any(one.name == name for one in node.names):
            other = PACKAGE.parent / f"{node.module.replace('.', '/')}.py"
            if other in _modules():
                return _constant(other, name, deep + 1)
    return []


def _returned(path: Path, function: ast.FunctionDef, deep: int) -> list[str]:
    return [
        text
        for node in ast.walk(function)
        if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Tuple)
        for text in _texts(path, function, node.value, deep + 1)
    ]
