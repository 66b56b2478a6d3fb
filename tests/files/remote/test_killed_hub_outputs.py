"""Runs that write to the hub and are killed: at every request that changes something, and at random moments."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.hub_server import Hub

pytestmark = pytest.mark.faults
TINY = Path(__file__).parents[3] / "sample_weights" / "tiny-llama"
OUT = "some-org/small"
STAGE = ["--stage", "quantize:bits=4"]
Files = dict[str, str]


class Victim:
    """A run that writes to the hub, in a process that is killed; with an `old` output where its own goes, and with
    a work folder if it `works`."""

    def __init__(self, server: Hub, place: Path, *, old: bool, works: bool) -> None:
        self.server, self.place = server, place
        self.command = [sys.executable, "-m", "compressor", "pipeline", str(TINY), "-q"]
        self.force = ["--force"] if old else []
        self.work = ["--work", str(place / "work")] if works else []
        # requests that change something, and what is to be done before and after one of them
        self.count, self.under_way, self.lock = 0, 0, threading.Lock()
        self.before: Callable[[int], None] = lambda number: None
        self.after: Callable[[int], None] = lambda number: None
        (place / "scratch").mkdir()
        self.empty = {".gitattributes": b"*.safetensors filter=lfs"}
        self.start: Files = {}
        self.whole = self.written("here", STAGE)
        if old:
            other = self.written("other", ["--stage", "quantize:bits=8"])
            files = {path.name: path.read_bytes() for path in (place / "other").iterdir()}
            self.empty |= files
            self.start = other
        plain = server.front.change

        def change(handler: Any, method: str, path: str, body: bytes) -> None:
            with self.lock:
                self.count += 1
                number = self.count
                self.under_way += 1
            try:
                self.before(number)
                with self.lock:  # one commit after the other
                    plain(handler, method, path, body)
                self.after(number)
            finally:
                with self.lock:
                    self.under_way -= 1

        server.front.change = change

    def written(self, name: str, stage: list[str]) -> Files:
        """The files that a run leaves on a disk."""
        subprocess.run([*self.command, *stage, "-o", str(self.place / name)], check=True)
        files = sorted((self.place / name).iterdir())
        return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in files}

    def reset(self) -> None:
        """As if nothing had run."""
        for repository, revision in list(self.server.revisions):
            if repository == OUT:
                del self.server.revisions[repository, revision]
        self.server.large.clear()
        self.server.commit(OUT, self.empty)
        for name in ("work", "scratch"):
            shutil.rmtree(self.place / name, ignore_errors=True)
        (self.place / "scratch").mkdir()
        self.count = 0

    def begun(self) -> subprocess.Popen[bytes]:
        """The run, which looks for the hub and for its temporary files where they are here."""
        away = {
            "HF_ENDPOINT": self.server.front.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "TMPDIR": str(self.place / "scratch"),
        }
        command = [*self.command, *STAGE, "-o", f"hf://{OUT}", *self.work, *self.force]
        return subprocess.Popen(command, env={**os.environ, **away}, stderr=subprocess.PIPE)

    def settled(self) -> None:
        """Wait for what was asked for before the kill."""
        still = 0
        while still < 3:
            time.sleep(0.01)
            still = 0 if self.under_way else still + 1

    @property
    def visible(self) -> Files:
        """What a loader sees."""
        files = self.server.commits[OUT, self.server.revisions[OUT, "main"]]
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != ".gitattributes"}

    def check(self, code: int) -> str:
        """What the killed run left: the old output or the new; and the next run, which leaves the new and nothing
        beside it."""
        self.settled()
        seen = self.visible
        assert seen in (self.start, self.whole)
        state = "new" if seen == self.whole else "old"
        assert code != 0 or state == "new"
        run = self.begun()
        said = run.communicate(timeout=120)[1]
        if run.returncode:  # it was whole before
            assert state == "new"
            assert not self.force
            assert b"exists already" in said
        else:
            left = [name for repository, name in self.server.revisions if repository == OUT and "upload" in name]
            assert left == []
        assert self.visible == self.whole
        return state if code else "ended"


@pytest.fixture(params=["plain", "work", "old", "old, work"])
def victim(request: pytest.FixtureRequest, server: Hub, tmp_path: Path) -> Victim:
    found = Victim(server, tmp_path, old="old" in request.param, works="work" in request.param)
    found.reset()
    return found


@pytest.mark.parametrize("victim", ["plain", "old, work"], indirect=True)
def test_kills_at_every_request_leave_the_old_or_the_new(victim: Victim) -> None:
    """Before the hub does what is asked for, and after it did, before anybody is told."""
    run = victim.begun()
    run.communicate(timeout=120)
    assert run.returncode == 0
    requests = victim.count
    assert requests > 10
    found: Counter[str] = Counter()
    for when in ("before", "after"):
        for at in range(1, requests + 1):
            victim.reset()
            run = victim.begun()

            def kill(number: int, at: int = at, run: subprocess.Popen[bytes] = run) -> None:
                if number == at:
                    run.kill()
                    run.wait()

            setattr(victim, when, kill)
            run.communicate(timeout=120)
            setattr(victim, when, lambda number: None)
            assert run.returncode
            found[victim.check(run.returncode)] += 1
    print(requests, "requests", dict(found))
    assert found["old"] > requests
    assert found["new"]


def test_kills_at_random_moments_leave_the_old_or_the_new(victim: Victim, request: pytest.FixtureRequest) -> None:
    victim.begun().communicate(timeout=120)
    chance, found = random.Random(request.node.name), Counter[str]()
    victim.reset()
    run, first = victim.begun(), threading.Event()
    victim.before = lambda number: first.set()
    first.wait(120)
    begun = time.monotonic()
    run.communicate(timeout=120)
    took = time.monotonic() - begun  # from the first request to the end
    for _ in range(50):
        victim.reset()
        first.clear()
        run = victim.begun()
        first.wait(120)
        time.sleep(chance.uniform(0, 1.1 * took))
        run.kill()
        run.communicate(timeout=120)
        found[victim.check(run.returncode)] += 1
    print(f"{took:.2f} s", dict(found))
    assert found["old"] > 5
