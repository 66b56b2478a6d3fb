"""One tree of exceptions. Each is a sentence: file, tensor, reason, remedy, and knows its exit code."""

from __future__ import annotations

from collections.abc import Iterable

from compressor.core.text import printable, without_secrets


class CompressorError(Exception):
    """Base of everything that the tool refuses on purpose.

    The parts are kept apart so that a report can show them; `str()` joins them into one printable line.
    """

    exit_code = 70

    def __init__(self, reason: str, *, file: object = None, tensor: str | None = None, remedy: str = "") -> None:
        self.reason = reason
        self.file = None if file is None else without_secrets(str(file))
        self.tensor = tensor
        self.remedy = remedy
        super().__init__(reason)

    def __str__(self) -> str:
        where = "" if self.file is None else f"{printable(self.file)}: "
        which = "" if self.tensor is None else f"tensor '{printable(self.tensor)}': "
        end = "" if not self.remedy else f". {self.remedy}"
        return f"{where}{which}{self.reason}{end}"


class GateFailed(CompressorError):
    """The work could be done, but the result misses a limit that the user set."""

    exit_code = 1


class NothingWritten(GateFailed):
    """A limit was missed after all the work: there is no output, but there may be what it was to go with."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, remedy="Nothing was written")


class UsageError(CompressorError):
    """An option, a recipe or a combination of them makes no sense."""

    exit_code = 2


class CommandFailed(UsageError):
    """A command of the user's could not be started, failed, or took too long."""


class InputError(CompressorError):
    """A file that was given is damaged, hostile, unsupported, or changed while it was read."""

    exit_code = 3


class MissingDescription(InputError):
    """A model whose architecture is not known, which a description of its structures would make known."""


class UnreadCodes(InputError):
    """An input that stores codes which nobody here decodes."""


class OutputError(CompressorError):
    """The output cannot be written, or writing it failed."""

    exit_code = 4


class NothingLeft(OutputError):
    """Writing failed half-way, and what there was of it is removed."""

    def __init__(self, reason: str, *, file: object = None) -> None:
        super().__init__(reason, file=file, remedy="Nothing was left behind")


class Problems(CompressorError):
    """Several refusals found at once, so that the user can mend all of them before the next run."""

    def __init__(self, problems: Iterable[CompressorError]) -> None:
        self.problems = tuple(problems)
        self.exit_code = max(problem.exit_code for problem in self.problems)
        super().__init__(f"{len(self.problems)} problems")

    def __reduce__(self) -> tuple[type[Problems], tuple[tuple[CompressorError, ...]]]:
        return Problems, (self.problems,)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def problems_of(error: CompressorError) -> tuple[CompressorError, ...]:
    """Each of the refusals that an error stands for."""
    return error.problems if isinstance(error, Problems) else (error,)


def raise_all(problems: list[CompressorError]) -> None:
    """Raise the one problem, or all of them together; return when there are none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)
