"""A run that fails at every one of its calls, and what must then be at its places; calls that fail."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.files.staging import Staging
from support.fault_injection import KINDS, FaultyOs, invoke, is_one_line, strays, tree


class Stage:
    """An input, perhaps an older output, and what the output must be afterwards: that, or the new one."""

    def __init__(self, place: Path, name: str, force: bool) -> None:
        self.place, self.kind, self.force = place, KINDS[name], force
        self.kind.make(place / self.kind.source)
        self.out = place / self.kind.output
        code, lines = invoke(self.arguments())
        assert code == 0, lines
        self.new, self.old = tree(self.out), None
        self.source = tree(place / self.kind.source)
        self.clear(self.out)
        if force:
            self.kind.make_old(place)
            self.old = tree(self.out)
            assert self.old != self.new
            os.rename(self.out, place / "kept")

    def arguments(self, *more: str) -> list[str]:
        return self.kind.arguments(self.place, *["--force"] * self.force, *more)

    def set_up(self) -> None:
        for name in (*strays(self.place), self.kind.output):
            self.clear(self.place / name)
        if self.force:
            copy = shutil.copytree if (self.place / "kept").is_dir() else shutil.copyfile
            copy(self.place / "kept", self.out)  # type: ignore[operator]

    def clear(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @property
    def state(self) -> str:
        """What is at the output's place: `new`, `old` (perhaps nothing), or something that must not be."""
        assert tree(self.place / self.kind.source) == self.source, "the input was changed"
        found = tree(self.out)
        return "new" if found == self.new else "old" if found == self.old else "broken"


def fail_every_call(stage: Stage, numbers: tuple[int, ...], *, lasting: bool, every: int = 1) -> Counter[Any]:
    """Fail the Nth call, look at what is left, N += 1, until a run meets no fault (SQLite's anomaly test)."""
    outcomes: Counter[Any] = Counter()
    at = 1
    while True:
        stage.set_up()
        number = numbers[at % len(numbers)]
        with FaultyOs(at, number, lasting=lasting).installed() as faulty:
            code, lines = invoke(stage.arguments("--workers", "1"))
        if not faulty.victims:
            assert (code, stage.state) == (0, "new")
            return outcomes
        told = (at, faulty.victims[0], code, lines, stage.state, strays(stage.place))
        if code == 0:  # nothing that matters failed: a name after publishing, a sync of the folder around it
            assert stage.state == "new", told
        else:
            assert code in (3, 4), told
            assert is_one_line(lines), told
            assert stage.state == "old", told
            subject = faulty.victims[0][1]
            if subject and not lasting:
                assert (code == 3) == subject.startswith(str(stage.place / stage.kind.source)), told
        if not lasting:
            assert not strays(stage.place), told
        outcomes[faulty.victims[0][0], code] += 1
        at += every


def fail(number: int) -> Callable[..., Any]:
    """A call to the kernel that fails with this error."""

    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def put(staging: Staging, content: bytes = b"new") -> None:
    """Something in what is being built."""
    if staging.folder:
        Path(staging.path, "model.safetensors").write_bytes(content)
    else:
        Path(staging.path).write_bytes(content)
