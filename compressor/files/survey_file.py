"""What `compressor survey` writes: of one job, or of all of them merged.

    {"format": "compressor-survey-part", "version": 2, "tool": …, "inputs": …, "times": …, "part": [K, N],
     "stages": […],                                          what is done, as a file's record of it says
     "passes": {KEY: [what each share gathered, …], …},      passes that are finished
     "key": KEY or null, "stats": …,                         of one job: what its share of the next pass gathered
     "content": …}                                           SHA-256 of all that

`key` is null where no pass is left; in a merged file `part` is [0, 0], and `stats` null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from compressor.core.errors import InputError
from compressor.core.version import __version__
from compressor.files.opening import open_file
from compressor.files.ours import MOST_PARTS
from compressor.files.sealed_json import is_as_sealed, sealed
from compressor.files.strict_json import parse_object
from compressor.files.text_files import write_document

FORMAT, VERSION = "compressor-survey-part", 2
_LARGEST = 1 << 30


@dataclass(frozen=True)
class SurveyFile:
    """What a survey knows: `inputs` and `times` as of a part (`part_folder.PartRecord`), the `stages` of the run
    that its first pass was for, finished `passes` by key, and of one job the `stats` of its share of the pass `key`
    ("" where none is left)."""

    inputs: str
    times: str
    part: tuple[int, int]
    stages: Sequence[Mapping[str, Any]]
    passes: Mapping[str, Sequence[Any]]
    key: str
    stats: Any
    tool: str = __version__


def is_survey(path: str) -> bool:
    """Whether a file says that it is one of these."""
    try:
        file = open_file(path)
        head = file.read(0, min(file.size, 64))
    except InputError:
        return False
    return head.startswith(b'{"format":"' + FORMAT.encode())


def read_survey(path: str) -> SurveyFile:
    """InputError where there is none, or one of another version."""
    file = open_file(path)
    if not is_survey(path) or file.size > _LARGEST:
        raise InputError("is nothing that compressor survey has written", file=path)
    found = parse_object(file.read(0, file.size), path, large=True)
    if (found.get("version"), found.get("tool")) != (VERSION, __version__):
        raise InputError("is of another version of compressor", file=path, remedy="Make the survey again")
    try:
        number, count = found["part"]
        values = {one.name: found[one.name] for one in fields(SurveyFile)} | {"part": (number, count)}
        survey = SurveyFile(**values)
        texts = all(isinstance(text, str) for text in (survey.inputs, survey.times, survey.key))
        numbers = all(type(size) is int for size in (number, count))
        if not (texts and numbers and is_as_sealed(found)) or not 0 <= number <= count <= MOST_PARTS:
            raise ValueError
        lists = (survey.stages, *dict(survey.passes).values())
        if not all(isinstance(one, list) for one in lists) or not all(
            isinstance(one, dict) for one in survey.stages
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("is damaged", file=path, remedy="Make the survey again") from error
    return survey


def write_survey(path: str, survey: SurveyFile, *, replace: bool) -> None:
    """Write it, whole. OutputError where that cannot be."""
    content = {"format": FORMAT, "version": VERSION, **asdict(survey)}
    write_document(path, sealed(content), replace=replace)
