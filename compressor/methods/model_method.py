"""Methods that make the student: files under `methods/distill/` that treat whole models instead of rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from compressor.methods.contract import Method

if TYPE_CHECKING:
    from compressor.architectures.chain import Chain
    from compressor.architectures.model import Model
    from compressor.methods.structured_cut import StructuredCut


class Reshape(Method):
    """A whole model to a smaller one, by structured cuts before anything is planned: the student is made here."""

    @abstractmethod
    def cuts(self, teacher: Model | Chain) -> tuple[StructuredCut, ...]:
        """What is cut out of the teacher, in order. Raises UsageError for what it does not have."""

    def expanded(
        self, read: Callable[[str], Mapping[str, Any]], teacher: Mapping[str, Any] | None
    ) -> tuple[Reshape, tuple[str, ...]]:
        """This method without reference to other files, which `read` gives as JSON objects, and what the user
        should know of them; `teacher` is the teacher's config."""
        return self, ()

    @property
    def reads(self) -> str | None:
        """The JSON file, or a folder with a config.json, that `expanded` needs."""
        return None

    @property
    def rescales(self) -> str:
        """Which sums over fewer inputs are to keep their spread: those over any dimension (`width`), over the
        residual width (`hidden`), or `none`."""
        return "none"

    def describe(self) -> dict[str, Any]:
        """The stage as a recipe would give it."""
        return {"kind": self.verb, **super().describe()}
