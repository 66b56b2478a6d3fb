"""Parts of one output put together: all of them, of one plan and of the same inputs, checked and published."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod

from compressor.core import cleanup
from compressor.core.errors import InputError, UsageError
from compressor.core.parallel.threads import available_workers, in_order, local
from compressor.core.text import printable
from compressor.engine.execution.archive import merge_archives
from compressor.engine.execution.parts import check_covered, merged_tensors
from compressor.files.destination import check_apart, check_container
from compressor.files.layout import FileLayout
from compressor.files.output import Output
from compressor.files.part_folder import Part, PartFile, damaged, read_part
from compressor.files.removing import remove_output
from compressor.files.sending import Sending
from compressor.files.writing import check_output, open_output
from compressor.recipe.gates import Gates
from compressor.workflows.gating import judge, judge_sizes
from compressor.workflows.merge_report import MergeGateFailed, MergeReport

Path = str | os.PathLike[str]
Progress = Callable[[int, int], None]


def merge(
    parts: Sequence[Path],
    output: Path,
    *,
    force: bool = False,
    copies: bool = False,
    remove_parts: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Publish the output whose `parts` are at these paths, in any order.

    `force` replaces an existing output; `copies`: files of inputs that differ in their times are copies of the same
    ones; `remove_parts` when all is done. UsageError for parts that are missing or given twice, InputError for
    those of another plan, of other inputs or of another version, or that were changed; MergeGateFailed.
    """
    cleanup.begin()
    paths, target = [os.fspath(part) for part in parts], os.fspath(output)
    check_apart(target, *paths)
    found = [read_part(path) for path in paths]
    found = _in_order(found, copies=copies)
    record = found[0].record
    check_container(target, record.container)
    archived, recorded = (record.said.get(key) is True for key in ("archived", "recorded"))
    check_output(target, folder=record.container == "folder", replace=force, recorded=recorded)
    check_covered(found, archived=archived)
    layouts = [(name, FileLayout(0, (), {}) if archived else _layout(found, name)) for name in record.names]
    sending = Sending(record.plan[:16])
    sink = open_output(target, record.container, layouts, sending, replace=force, recorded=recorded)
    try:
        after = _write(found, sink, workers or available_workers(), progress, archived=archived)
        report = _report(found, after, sink.first or target)
        if report.failures:
            raise MergeGateFailed(report)
        for small in record.small:
            sink.copy(small.name, found[0].check(small))
        _write_card(sink, found[0], report)
        sink.publish()
    except BaseException:
        sink.discard()
        raise
    if remove_parts:
        for part in found:
            remove_output(part.path, folder=True)
    return report


# ---- what is there -------------------------------------------------------------------------------------


def _in_order(found: Sequence[Part], *, copies: bool) -> list[Part]:
    """All parts of one output by their numbers. UsageError or InputError where they are not."""
    if not found:
        raise UsageError("there are no parts to merge", remedy="compressor merge small.part-*-of-3 -o small")
    first, by_number = found[0], dict[int, Part]()
    for part in found:
        record, other = part.record, by_number.get(part.record.number)
        if record.count != first.record.count:
            counts = f"is one of {record.count} parts, and {printable(first.path)} one of {first.record.count}"
            raise InputError(counts, file=part.path, remedy="Give the parts of one output")
        if other is not None:
            raise UsageError(
                f"part {record.number}/{record.count} is given twice: "
                f"{printable(other.path)} and {printable(part.path)}",
                remedy="Give each part once",
            )
        by_number[record.number] = part
    missing = [number for number in range(1, first.record.count + 1) if number not in by_number]
    if missing:
        told = ", ".join(f"{number}/{first.record.count}" for number in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise UsageError(
            f"part{'s' if len(missing) > 1 else ''} {told}{more} {'are' if len(missing) > 1 else 'is'} missing",
            remedy=f"Run the same command with --part {missing[0]}/{first.record.count}",
        )
    parts = [by_number[number] for number in sorted(by_number)]
    for part in parts[1:]:
        _check_alike(parts[0], part, copies=copies)
    return parts


def _check_alike(first: Part, part: Part, *, copies: bool) -> None:
    """InputError unless two parts are of one plan, made of the same inputs by one version."""
    one, other, remedy = first.record, part.record, "Make all parts by the same command, of the same inputs"
    beside = printable(first.path)
    if one.tool != other.tool:
        said = f"is of compressor {printable(other.tool, 40)}, and {beside} of {printable(one.tool, 40)}"
        raise InputError(said, file=part.path, remedy="Make all parts by one version")
    alike = one.container == other.container and one.names == other.names
    if one.plan != other.plan or not alike or one.said.get("gates") != other.said.get("gates"):
        raise InputError(f"is of another plan than {beside}", file=part.path, remedy=remedy)
    if one.inputs != other.inputs:
        raise InputError(f"was made of other inputs than {beside}", file=part.path, remedy=remedy)
    if one.times != other.times and not copies:
        raise InputError(
            f"was made of files of other times than {beside}: they may have been changed in between",
            file=part.path,
            remedy="Where they are copies of the same files, say so with --copies",
        )


def _layout(parts: Sequence[Part], name: str) -> FileLayout:
    """How a container file lies, by the first part that has something of it."""
    part, file = next((part, file) for part in parts for file in part.record.files if file.name == name)
    opened = part.file(file)
    pieces = tuple((offset, opened.read(offset, length)) for offset, length in file.pieces)
    return FileLayout(file.size, pieces, {str(number): offset for number, offset in enumerate(file.offsets)})


# ---- what is written -----------------------------------------------------------------------------------


def _write(parts: Sequence[Part], sink: Output, workers: int, progress: Progress | None, *, archived: bool) -> int:
    """Write all container files from their parts, one by one where they are sent elsewhere: their bytes."""
    having = [
        [(part, file) for part in parts for file in part.record.files if file.name == name]
        for name in parts[0].record.names
    ]
    total, done, after = sum(_bytes(file) for own in having for _, file in own), 0, 0
    with local(1 if sink.sends else workers) as executor:
        tasks = [
            partial(_archive, sink, number, own) if archived else partial(_join, sink, number, own)
            for number, own in enumerate(having)
        ]
        for more, size in in_order(executor, tasks, 1 if sink.sends else 2 * workers):
            done += more
            after += size
            if progress is not None:
                progress(done, total)
    return after


def _bytes(file: PartFile) -> int:
    return sum(one.nbytes for one in file.extents) if file.extents else file.size


def _join(sink: Output, number: int, own: Sequence[tuple[Part, PartFile]]) -> tuple[int, int]:
    """Write a container file out of what the parts have of it; one that a part has by itself is linked. The bytes
    that were read, and of the file."""
    alone = len(own) == 1 and own[0][0].here
    if alone and sink.container != "npz":  # whose checksums are written last
        part, file = own[0]
        for _ in part.runs(file):
            pass  # read, to be checked
        sink.take(file.name, part.file(file).path)
    else:
        for part, file in own:
            for offset, data in part.runs(file):
                sink.write(number, offset, data)
    sink.finish_file(number)
    return sum(_bytes(file) for _, file in own), _sent(sink, number)


def _archive(sink: Output, number: int, own: Sequence[tuple[Part, PartFile]]) -> tuple[int, int]:
    """Write an archive out of the archives of its parts: the bytes of these, and of the archive."""
    merge_archives(sink, sink.layouts[number][0], [part.check(file) for part, file in own])
    return sum(_bytes(file) for _, file in own), _sent(sink, number)


def _sent(sink: Output, number: int) -> int:
    """Have a finished file sent, where the output is elsewhere: its bytes."""
    name = sink.layouts[number][0]
    with sink.reading(name) as written:
        size = written.size
    sink.send(name)
    return size


def _report(parts: Sequence[Part], after: int, output: str) -> MergeReport:
    record = parts[0].record
    before = record.said.get("size_before")
    try:
        gates = Gates(**record.said["gates"])
        if type(before) is not int:
            raise TypeError
        stages = record.said["stages"]
        if not all(isinstance(stage, dict) for stage in stages):
            raise TypeError
        report = MergeReport(output, record.count, record.plan, before, after, merged_tensors(parts), stages)
        verdicts = judge_sizes(gates, before, after)
        verdicts += judge(gates, [(one.name, one.change) for one in report.rows], report.total)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(parts[0].path) from error
    return replace(report, gates=tuple(verdicts))


def _write_card(sink: Output, first: Part, report: MergeReport) -> None:
    """The model card of a folder that has one: what it says of the run, the first part knows. InputError where that
    says what cannot be."""
    said = first.record.said.get("card")
    if said is None:
        return
    from compressor.workflows.model_card import NAME, CardFacts, CardFigures, model_card

    size = sum(prod(one.shape) for one in report.rows)
    figures = CardFigures(
        report.fingerprint,
        (report.size_before, report.size_after),
        len(report.rows),
        len(report.tensors),
        sum(one.sizes[1] for one in report.rows) * 8 / size if size else 0.0,
        (report.total.error, report.everything.error),
    )
    try:
        card = model_card(CardFacts(**said), figures)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise damaged(first.path) from error
    sink.add_text(NAME, card)
