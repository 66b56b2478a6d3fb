"""An output wherever it goes, on a disk or elsewhere; for one on a disk nothing of the others is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from compressor.files.addresses import is_address
from compressor.files.layout import FileLayout
from compressor.files.output import Output
from compressor.files.sending import Sending
from compressor.files.staging import check_place

if TYPE_CHECKING:
    from compressor.files.part_folder import PartOutput


def check_output(target: str, *, folder: bool, replace: bool, recorded: bool = True) -> None:
    """OutputError unless an output may be written to its place, or replace what is there; UsageError for an address
    to which nothing is written. `recorded`: what will be written carries a record of the run."""
    if not is_address(target):
        check_place(target, folder=folder, replace=replace, recorded=recorded)
        return
    from compressor.files.remote.output import check_destination

    check_destination(target, folder=folder, replace=replace, recorded=recorded)


def open_output(
    target: str,
    container: str,
    layouts: Sequence[tuple[str, FileLayout]],
    sending: Sending,
    *,
    replace: bool,
    recorded: bool = True,
) -> Output:
    """The output under construction. OutputError where it cannot be begun."""
    if not is_address(target):
        return Output(target, container, layouts, replace=replace, recorded=recorded)
    from compressor.files.remote.output import RemoteOutput

    return RemoteOutput(target, container, layouts, sending)


def open_part(
    target: str, layouts: Sequence[tuple[str, FileLayout]], own: Iterable[int], sending: Sending, *, replace: bool
) -> PartOutput:
    """A part of an output under construction, of whose files it writes the numbers `own`. OutputError where it
    cannot be begun."""
    check_output(target, folder=True, replace=replace)
    if not is_address(target):
        from compressor.files.part_folder import PartOutput

        return PartOutput(target, layouts, own, replace=replace)
    from compressor.files.remote.output import RemotePart

    return RemotePart(target, layouts, own, sending)


def place_beside(output: str, suffix: str) -> str:
    """What a folder may be called that is needed until an output is there: beside it; for an output elsewhere among
    the temporary files of this machine."""
    place = output.rstrip("/")
    if not is_address(place):
        return f"{place}.{suffix}"
    from tempfile import gettempdir

    return os.path.join(gettempdir(), f"{os.path.basename(place) or 'output'}.{suffix}")
