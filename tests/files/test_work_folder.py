"""Pipelines of several passes that are stopped and go on: same bytes, nothing done twice, nothing foreign used."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from support.clock import HANGS
from support.console import environment

from compressor import api
from compressor.cli.main import cli, run
from compressor.core import cleanup
from compressor.core.errors import CompressorError, OutputError, UsageError
from compressor.engine.execution.shards import Shards
from compressor.files import work_folder
from compressor.files.output import Output
from compressor.workflows import legs as relay

RECIPE = """
[[stage]]
kind = "prune"
sparsity = {sparsity}
[[stage]]
kind = "distill"
method = "soft-targets"
epochs = 2
[[stage]]
kind = "prune"
sparsity = 0.6
[[stage]]
kind = "distill"
method = "soft-targets"
epochs = 1
"""


@pytest.fixture(autouse=True)
def no_run_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves kept is not said of another's run."""
    cleanup.begin()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    tensors = {
        "fc1.weight": rng.normal(size=(8, 12)).astype(np.float32),
        "fc1.bias": np.zeros(8, np.float32),
        "fc2.weight": rng.normal(size=(4, 8)).astype(np.float32),
        "fc2.bias": np.zeros(4, np.float32),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    np.save(tmp_path / "x.npy", rng.normal(size=(64, 12)).astype(np.float32))
    (tmp_path / "r.toml").write_text(RECIPE.format(sparsity=0.5))
    names = ("in.safetensors", "x.npy", "r.toml", "work", "a.safetensors", "b.safetensors")
    return {name.partition(".")[0]: tmp_path / name for name in names}


def pipeline(files: dict[str, Path], output: str, **settings: Any) -> None:
    api.pipeline(files["in"], files[output], recipe=str(files["r"]), inputs=files["x"], **settings)


def stopped(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Run until so many legs are finished."""
    done, whole = 0, relay._leg

    def until(*args: Any, **settings: Any) -> Any:
        nonlocal done
        if done == after:
            raise KeyboardInterrupt
        done += 1
        return whole(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(relay, "_leg", until)
        with pytest.raises(KeyboardInterrupt):
            pipeline(files, "b", work=files["work"])
    assert not files["b"].exists()


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline(files, "a")
    stopped(files, monkeypatch, after=1)
    kept = files["work"] / "0.safetensors"
    before = kept.stat().st_mtime_ns
    pipeline(files, "b", work=files["work"], keep_work=True)
    assert kept.stat().st_mtime_ns == before
    assert files["a"].read_bytes() == files["b"].read_bytes()
    assert {path.name for path in files["work"].iterdir()} == {"0.safetensors", "1.safetensors", "work.json"}


def test_a_folder_is_an_input_and_a_teacher_too(files: dict[str, Path]) -> None:
    folder = files["in"].with_name("in")
    folder.mkdir()
    files["in"].rename(folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    files |= {"in": folder, "a": folder.with_name("a"), "b": folder.with_name("b")}
    pipeline(files, "a")
    pipeline(files, "b", work=files["work"], keep_work=True)
    pipeline(files, "b", work=files["work"], force=True)
    assert (files["a"] / "model.safetensors").read_bytes() == (files["b"] / "model.safetensors").read_bytes()


def test_it_is_gone_when_all_is_done(files: dict[str, Path]) -> None:
    pipeline(files, "a", work=files["work"])
    assert not files["work"].exists()


def test_what_was_published_and_not_noted_is_made_again(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(files, monkeypatch, after=1)
    (files["work"] / "1.safetensors").write_bytes(b"half")
    pipeline(files, "b", work=files["work"])


def another_recipe(files: dict[str, Path]) -> None:
    files["r"].write_text(RECIPE.format(sparsity=0.4))


def another_input(files: dict[str, Path]) -> None:
    np.save(files["x"], np.zeros((64, 12), np.float32))


def another_content(files: dict[str, Path]) -> None:
    with (files["work"] / "0.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")


def damaged(files: dict[str, Path]) -> None:
    (files["work"] / "work.json").write_text(json.dumps({"version": 1, "finished": {"../x": {}}}))


def newer(files: dict[str, Path]) -> None:
    (files["work"] / "work.json").write_text('{"version": 2, "finished": {}}')


def no_json(files: dict[str, Path]) -> None:
    (files["work"] / "work.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_recipe, "is of another plan"),
        (another_content, "was changed: 0.safetensors"),
        (damaged, "damaged or of another version"),
        (newer, "damaged or of another version"),
        (no_json, "work.json"),
    ],
)
def test_what_does_not_fit_is_refused(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    stopped(files, monkeypatch, after=1)
    change(files)
    with pytest.raises(CompressorError) as caught:
        pipeline(files, "b", work=files["work"])
    assert said in str(caught.value)
    assert (files["work"] / "0.safetensors").exists()


def test_other_inputs_are_another_plan(files: dict[str, Path]) -> None:
    pipeline(files, "a", work=files["work"], keep_work=True)
    another_input(files)
    with pytest.raises(UsageError, match="is of another plan"):
        pipeline(files, "b", work=files["work"])


@pytest.mark.parametrize("left", [".work.json.12.tmp", ".0.safetensors.12.1.tmp", ".shard-3.safetensors.7.tmp"])
def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path, left: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / left).write_bytes(b"half")
    work_folder.WorkFolder(str(work)).release()
    assert [path.name for path in work.iterdir()] == ["work.json"]
    (work / "0.safetensors").write_bytes(b"published, not noted")
    again = work_folder.WorkFolder(str(work))
    assert again.finished("0.safetensors", "key") is None
    again.clear()
    assert not work.exists()


def test_no_folder_is_none(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="--work names no folder"):
        api.prune(files["in"], files["work"].parent / "o.safetensors", sparsity=0.5, work="")


def test_a_folder_with_other_things_is_left_alone(files: dict[str, Path]) -> None:
    files["work"].mkdir()
    (files["work"] / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="is not empty and no work folder"):
        pipeline(files, "a", work=files["work"])


def test_an_output_that_exists_is_refused_before_anything_is_trained(files: dict[str, Path]) -> None:
    files["b"].touch()
    with pytest.raises(OutputError, match="Use --force"):
        pipeline(files, "b", work=files["work"])
    assert not files["work"].exists()
    pipeline(files, "b", force=True)


def test_without_a_folder_nothing_can_be_kept(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="--keep-work is for the folder"):
        pipeline(files, "b", keep_work=True)


@pytest.mark.parametrize(("work", "said"), [(".", "holds the input"), ("b.safetensors", "is the output itself")])
def test_it_lies_apart_from_input_and_output(files: dict[str, Path], work: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"^--work .*{said}. Name another place"):
        pipeline(files, "b", work=files["in"].parent / work)


def test_one_pass_to_one_file_has_nothing_to_keep(files: dict[str, Path]) -> None:
    command = ["pipeline", str(files["in"]), "-o", str(files["a"]), "--stage", "prune:sparsity=0.5"]
    done = CliRunner().invoke(cli, [*command, "--work", str(files["work"])], standalone_mode=False)
    assert "this run has one of each" in str(done.exception)
    assert not files["work"].exists()


# ---- shards ----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of three shards, the last of which holds a vector only."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {f"layers.{n}.fc.weight": rng.normal(size=(8, 128)).astype(np.float32) for n in range(4)}
    shards = [
        {name: tensors[name] for name in ("layers.0.fc.weight", "layers.3.fc.weight")},
        {name: tensors[name] for name in ("layers.1.fc.weight", "layers.2.fc.weight")},
        {"norm.weight": np.ones(8, np.float32)},
    ]
    names = [f"model-{n}-of-3.safetensors" for n in (1, 2, 3)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name)
    index = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text("{}")
    return folder


STAGES = ["prune:method=magnitude,sparsity=0.5,scope=global", "quantize:bits=4"]


def shards(model: Path, name: str, **settings: Any) -> Any:
    return api.pipeline(model, model.with_name(name), stages=STAGES, **settings)


def stopped_shards(model: Path, monkeypatch: pytest.MonkeyPatch, after: int, **settings: Any) -> Path:
    """A run that ends when it notes the shard after so many; the work folder."""
    work, noted, whole = model.with_name("work"), 0, Shards.note

    def note(self: Shards, *args: Any) -> None:
        nonlocal noted
        if noted == after:
            raise KeyboardInterrupt
        noted += 1
        whole(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "note", note)
        with pytest.raises(KeyboardInterrupt):
            shards(model, "b", work=work, **settings)
    assert not model.with_name("b").exists()
    return work


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("settings", [{"workers": 1}, {"workers": 2}, {"workers": 2, "store": "archive"}])
def test_finished_shards_are_not_made_again(
    model: Path, monkeypatch: pytest.MonkeyPatch, after: int, settings: dict[str, Any]
) -> None:
    whole = shards(model, "a", **settings)
    work = stopped_shards(model, monkeypatch, after, **settings)
    written: list[str] = []
    write = Output.write
    monkeypatch.setattr(Output, "write", lambda self, file, *rest: written.append(file) or write(self, file, *rest))
    report = shards(model, "b", work=work, **settings)
    assert len(set(written)) == 3 - after
    assert not work.exists()
    assert report.changes == whole.changes
    for path in model.with_name("a").iterdir():
        assert path.read_bytes() == (model.with_name("b") / path.name).read_bytes()


def test_shards_are_kept_on_request(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = model.with_name("work")
    shards(model, "a", work=work, keep_work=True)
    assert {path.name for path in work.iterdir()} == {"work.json", *(f"shard-{n}.safetensors" for n in range(3))}
    written: list[str] = []
    monkeypatch.setattr(Output, "write", lambda self, *rest: written.append("x"))
    shards(model, "b", work=work)
    assert not written
    assert not work.exists()
    assert (model.with_name("a") / "model-1-of-3.safetensors").stat().st_nlink == 2  # with that of b, not work's


def test_what_was_linked_and_not_noted_is_made_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = stopped_shards(model, monkeypatch, 0, workers=1)
    assert sorted(path.name for path in work.iterdir()) == ["shard-0.safetensors", "work.json"]
    (work / "shard-0.safetensors").write_bytes(b"half")
    (work / "work.json").write_text('{"version": 1, "finished": {}}')
    shards(model, "b", work=work)


@pytest.mark.parametrize("other", ["disk", "content", "input", "stage"])
def test_shards_elsewhere_and_of_other_things(model: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    link = os.link

    def no_link(path: str, place: str) -> None:
        if place.endswith(".safetensors"):
            raise OSError(errno.EXDEV, "another disk")
        link(path, place)

    if other == "disk":
        monkeypatch.setattr(os, "link", no_link)
    work = stopped_shards(model, monkeypatch, 1)
    if other == "disk":
        shards(model, "b", work=work)
        shards(model, "a")
        for path in model.with_name("a").iterdir():
            assert path.read_bytes() == (model.with_name("b") / path.name).read_bytes()
        return
    if other == "content":
        path = work / "shard-0.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif other == "input":
        path = model / "model-2-of-3.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    else:
        monkeypatch.setitem(globals(), "STAGES", STAGES[1:])
    with pytest.raises(UsageError, match="was changed" if other == "content" else "is of another plan"):
        shards(model, "b", work=work)
    assert not model.with_name("b").exists()


def measured(said: Any) -> Any:
    return said["layers.0.fc.weight"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry, said: entry.update(said=[1]),
        lambda entry, said: entry.update(said=None),
        lambda entry, said: entry.pop("said"),
        lambda entry, said: said.clear(),
        lambda entry, said: said.update(other=measured(said)),
        lambda entry, said: said.update({"layers.0.fc.weight": "x"}),
        lambda entry, said: measured(said).pop("notes"),
        lambda entry, said: measured(said).update(notes=[3]),
        lambda entry, said: measured(said).update(notes="x"),
        lambda entry, said: measured(said).update(energy="x"),
        lambda entry, said: measured(said).update(energy=None),
        lambda entry, said: measured(said).update(lost="-0x1p0"),
        lambda entry, said: measured(said).update(lost="nan", size=-1),
        lambda entry, said: measured(said).update(size=True),
        lambda entry, said: measured(said).update(zeros_after=10**30),
        lambda entry, said: measured(said).update(more=1),
    ],
)
def test_a_record_that_no_run_wrote_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    work = stopped_shards(model, monkeypatch, 1)
    record = json.loads((work / "work.json").read_text())
    entry = record["finished"]["shard-0.safetensors"]
    spoil(entry, entry["said"])
    (work / "work.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"work\.json is damaged"):
        shards(model, "b", work=work)
    assert sorted(path.name for path in model.parent.iterdir()) == ["model", "work"]


def test_sums_that_no_float_holds_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, index = tmp_path / "model", {}
    model.mkdir()
    for n in range(2):
        name = f"layers.{n}.fc.weight"
        save_file({name: np.linspace(1e200, 2e200, 32).reshape(4, 8)}, model / f"model-{n}.safetensors")
        index[name] = f"model-{n}.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    monkeypatch.setitem(globals(), "STAGES", STAGES[:1])
    work = stopped_shards(model, monkeypatch, 1)
    report = shards(model, "b", work=work)
    assert [change.energy for change in report.changes] == [np.inf, np.inf]


@pytest.mark.parametrize("other", ["link", "gone"])
def test_a_shard_that_is_not_there_itself_was_changed(
    model: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    work = stopped_shards(model, monkeypatch, 1)
    if other == "link":
        (work / "shard-0.safetensors").rename(model.with_name("elsewhere"))
        (work / "shard-0.safetensors").symlink_to(model.with_name("elsewhere"))
    else:
        (work / "shard-0.safetensors").unlink()
    with pytest.raises(UsageError, match=r"was changed: shard-0.safetensors.*Remove it"):
        shards(model, "b", work=work)


@pytest.mark.parametrize("force", [False, True])
def test_it_does_not_lie_in_the_output(model: Path, *, force: bool) -> None:
    with pytest.raises(UsageError, match="lies inside the output folder"):
        shards(model, "b", work=model.with_name("b") / "work", force=force)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_one_run_at_a_time(model: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    work = stopped_shards(model, monkeypatch, 1)
    holder = work_folder.WorkFolder(str(work))
    with pytest.raises(UsageError, match="another run is using it"):
        shards(model, "b", work=work)
    with pytest.raises(UsageError, match="another run is using it"):
        pipeline(files, "b", work=work)
    child = os.fork()
    if not child:  # a worker that outlives its run
        time.sleep(60)
        os._exit(0)
    try:
        holder.release()
        shards(model, "b", work=work)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_full_disk_leaves_what_is_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = work_folder.WorkFolder.keep

    def full(self: Any, name: str, path: str) -> str:
        if name == "shard-1.safetensors":
            with work_folder.reporting(self.path):
                raise OSError(errno.ENOSPC, "No space left on device")
        return keep(self, name, path)

    monkeypatch.setattr(work_folder.WorkFolder, "keep", full)
    work, command = model.with_name("work"), ["pipeline", str(model), "-o", str(model.with_name("b"))]
    code = run([*command, "--stage", STAGES[1], "--work", str(work), "--workers", "1"])
    assert code == 4
    assert capsys.readouterr().err == (
        f"error: {work}: cannot be written: No space left on device. No output was written; "
        f"1 finished shard is kept in {work}: the same command goes on from there\n"
    )


def test_the_bar_names_the_pass(files: dict[str, Path]) -> None:
    said: list[str] = []

    class Bar:
        def __call__(self, done: int, total: int) -> None: ...

        def stage(self, text: str) -> None:
            said.append(text)

    pipeline(files, "a", progress=Bar())
    assert said == [
        "pass 1 of 3: prune magnitude",
        "pass 2 of 3: distill soft-targets, prune magnitude",
        "pass 3 of 3: distill soft-targets",
    ]


# ---- what is said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [False, True])
def test_an_error_on_the_way_names_the_input_and_the_stage(files: dict[str, Path], *, work: bool) -> None:
    odd = {"fc1.weight": np.ones((8, 12), np.float32), "fc9.weight": np.ones((4, 9), np.float32)}
    save_file(odd, files["in"])
    with pytest.raises(CompressorError) as caught:
        pipeline(files, "a", **({"work": files["work"]} if work else {}))
    assert str(caught.value).startswith(f"{files['in']} after stage 1: is no network")
    assert ".tmp" not in str(caught.value)


def test_an_error_in_a_folder_on_the_way_names_the_file(files: dict[str, Path]) -> None:
    with pytest.raises(CompressorError) as caught, relay._calling("/hidden/0", "in after stage 2"):
        raise OutputError("is short", file="/hidden/0/model.safetensors")
    assert str(caught.value) == "in after stage 2: model.safetensors: is short"


def test_what_cannot_be_written_on_the_way_is_said_of_the_output(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(way: Any, number: int, taken: str, place: Any) -> Any:
        raise OutputError("cannot be written: No space left on device", file=way.path(place, number))

    monkeypatch.setattr(relay, "_leg", full)
    with pytest.raises(OutputError) as caught:
        pipeline(files, "a")
    assert str(caught.value).startswith(f"{files['a']} (what comes before stage 2): cannot be written")


@pytest.mark.parametrize("inside", ["", "x", "x/y"])
def test_a_file_in_the_way_of_the_folder_is_named(files: dict[str, Path], inside: str) -> None:
    files["work"].touch()
    with pytest.raises(OutputError) as caught:
        pipeline(files, "a", work=files["work"] / inside)
    said = f"is within {files['work']}, which is a file" if inside else "is not a folder"
    assert f"--work {said}. Give a folder" in str(caught.value)


def test_who_stops_it_is_told_what_is_kept(files: dict[str, Path]) -> None:
    files["r"].write_text(RECIPE.format(sparsity=0.5).replace("epochs = 1\n", "epochs = 100000\n"))
    command = ["pipeline", files["in"], "-o", files["a"], "--recipe", files["r"], "--inputs", files["x"]]
    with subprocess.Popen(
        [sys.executable, "-m", "compressor", *map(str, command), "--work", str(files["work"])],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        record, end = files["work"] / "work.json", time.monotonic() + HANGS
        while not (record.exists() and "1.safetensors" in record.read_text()):
            assert process.poll() is None
            if time.monotonic() > end:
                pytest.fail("it hangs")
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGINT
    assert said == (
        f"error: stopped by SIGINT; no output was written; 2 finished passes are kept in {files['work']}: "
        "the same command goes on from there\n"
    )


def test_shards_that_are_kept_are_called_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cleanup.begin()
    assert cleanup.leftovers() == ""
    work = stopped_shards(model, monkeypatch, 1)
    assert cleanup.leftovers() == (
        f"no output was written; 1 finished shard is kept in {work}: the same command goes on from there"
    )
    cleanup.as_unfinished("base")
    assert cleanup.leftovers() == (
        f"only base was written; 1 finished shard is kept in {work}: "
        "the same command with --force goes on from there"
    )


def test_a_cut_on_the_way_goes_by_statistics(files: dict[str, Path]) -> None:
    """Also where the recipe is run in several passes, of which the cut's is the first."""
    stats = files["in"].with_name("s.safetensors")
    api.calibrate(files["in"], stats, inputs=files["x"])
    stages = ["prune:structure=neurons,fraction=0.25", "distill:method=soft-targets,epochs=1"]
    more: dict[str, Any] = {"inputs": files["x"], "stats": stats}
    one = api.pipeline(files["in"], files["a"], stages=stages, **more)
    stages.insert(1, "prune:method=threshold,threshold=0")
    two = api.pipeline(files["in"], files["b"], stages=stages, **more)
    assert one.plan.stages[0] == two.plan.stages[0]
    assert "stats" in two.plan.stages[0]
    with pytest.raises(UsageError, match="no stage takes it"):
        api.pipeline(files["in"], files["b"], stages=stages[1:], **more)
