"""Putting what a benchmark printed between its marks on a page of docs/."""

from __future__ import annotations

from pathlib import Path

METHODS = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


def put(name: str, script: str, made: str, page: Path = METHODS) -> None:
    """Replace what stands between the two marks of `name`, indented as they are."""
    begin, end = f"<!-- {name}: written by bench/{script} -->", f"<!-- {name}: end -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    indent = before[before.rindex("\n") + 1 :]
    lines = "".join(f"{indent}{line}".rstrip() + "\n" for line in made.splitlines())
    page.write_text(f"{before}{begin}\n\n{lines}\n{indent}{end}{after}", encoding="utf-8")
