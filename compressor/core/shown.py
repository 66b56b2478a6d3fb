"""Results that show themselves. What makes documents of them lies in layers above and cannot be imported from here,
so it gives itself by `documents_by` when the functions that return results are imported."""

from __future__ import annotations

from typing import Any, Protocol


class Documents(Protocol):
    """What makes documents of results of any kind."""

    def to_dict(self, result: Any, /) -> dict[str, Any]:
        """What the command line prints with `--format json`."""

    def to_html(self, result: Any, /) -> str:
        """A whole document to look at."""

    def fragment(self, result: Any, /) -> str:
        """A few lines and a table, for notebooks."""

    def line(self, result: Any, /) -> str:
        """A result in one line."""


_DOCUMENTS: list[Documents] = []


def documents_by(documents: Documents) -> None:
    """From now on these are made."""
    _DOCUMENTS[:] = [documents]


def document_of(result: Any) -> str:
    """A whole document to look at."""
    return _DOCUMENTS[0].to_html(result)


class Shown:
    """A result that can be looked at: in one line, as JSON types, in a notebook."""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types, by the schema of `docs/report-schema.json`, as `--format json` prints it."""
        return _DOCUMENTS[0].to_dict(self)

    def __repr__(self) -> str:
        return f"<{_DOCUMENTS[0].line(self)}>" if _DOCUMENTS else f"<{type(self).__name__}>"

    def _repr_html_(self) -> str:
        return _DOCUMENTS[0].fragment(self)
