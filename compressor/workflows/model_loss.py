"""What a model lost by its outputs: two models opened, given the same input, and measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from compressor.calibration.loss import ModelLoss, OutputLoss
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import InputError, UsageError
from compressor.core.lazy import np
from compressor.core.text import printable
from compressor.core.workspace import Workspace
from compressor.recipe.loss_gates import LossGates

Path = str | os.PathLike[str]
SAMPLES, LENGTH = 32, 512
_ELSEWHERE = "compressor compare without --text and --tokens compares its tensors"
_OWN = {  # options that only some inputs have
    "samples": ("text", "tokens"),
    "length": ("text",),
    "seed": ("text", "tokens"),
    "per_tensor": ("text", "tokens"),
    "labels": ("inputs",),
    "network": ("inputs",),
    "divide": ("inputs",),
}


@dataclass(frozen=True, kw_only=True)
class LossInput:
    """What runs through both models: a `text`, or `tokens` (.npy, whole numbers [samples, length]), through models
    of transformers; `inputs` (.npy) through networks in NumPy, with `labels` to score by, and `network` and
    `divide` as for `calibrate`. Of a text `samples` windows of `length` tokens are chosen by `seed` (32 of 512);
    of tokens all, or so many. `per_tensor`: also what each tensor alone costs."""

    text: Path | None = None
    tokens: Path | None = None
    inputs: Path | None = None
    labels: Path | None = None
    network: str | None = None
    divide: float | None = None
    samples: int | None = None
    length: int | None = None
    seed: int | None = None
    per_tensor: bool = False

    @property
    def way(self) -> str | None:
        """Which of the three; None where nothing is to run. UsageError for several, or an option of another one."""
        ways = [way for way in ("text", "tokens", "inputs") if getattr(self, way) is not None]
        if len(ways) > 1:
            raise UsageError(f"--{ways[0]} and --{ways[1]} are two inputs; give one")
        for key, owners in _OWN.items():
            if getattr(self, key) not in (None, False) and not set(owners) & set(ways):
                raise UsageError(
                    f"--{key.replace('_', '-')} is for {' and '.join(f'--{one}' for one in owners)}, "
                    f"{'not for --' + ways[0] if ways else 'and none is given'}"
                )
        return ways[0] if ways else None


def measure_loss(
    a: Checkpoint,
    b: Checkpoint,
    what: LossInput,
    gates: LossGates,
    progress: Callable[[int, int], None] | None = None,
) -> ModelLoss:
    """What B's outputs lost against A's. UsageError for gates that such models have nothing for; InputError for
    models that cannot be compared, and for an input that is none of theirs."""
    if what.way == "inputs":
        from compressor.calibration.network_loss import network_loss

        inputs, labels = os.fspath(what.inputs or ""), None if what.labels is None else os.fspath(what.labels)
        found = network_loss(a, b, inputs, network=what.network, divide=what.divide, labels=labels)
        gates.failures(values_of(found.outputs))
        return replace(found, source=f"{found.source} of {printable(os.path.basename(inputs), 100)}")
    from compressor.calibration.meta_model import libraries, quiet

    libraries()
    with quiet():
        return _through_models(as_model(a), as_model(b), what, gates, progress or (lambda done, total: None))


def _through_models(
    a: Checkpoint, b: Checkpoint, what: LossInput, gates: LossGates, progress: Callable[[int, int], None]
) -> ModelLoss:
    from compressor.calibration.meta_model import MetaModel
    from compressor.calibration.side_by_side import SideBySide

    one, other = MetaModel(a, elsewhere=_ELSEWHERE), MetaModel(b, a.source, _ELSEWHERE)
    ids, source, notes = _ids(one, other, what)
    pair = SideBySide(one, other, ids)
    _check(pair.kind, ids, what, gates)
    outputs, blocks = pair.run(progress)
    if not blocks:
        notes.append("the models differ in their blocks, so that these are not compared one by one")
    found = ModelLoss(outputs, source, tuple(blocks), notes=tuple(notes))
    if what.per_tensor:
        from compressor.calibration.tensor_losses import tensor_losses

        tensors, sample = tensor_losses(pair, progress)
        found = replace(found, tensors=tuple(tensors), sample=sample)
    return found


def check_measurable(a: Checkpoint, what: LossInput, gates: LossGates) -> None:
    """Before there is anything to measure against A: the errors of `measure_loss` that A and the input alone are
    the reason for."""
    if what.way == "inputs":
        measure_loss(a, a, what, gates)
        return
    from compressor.calibration.meta_model import MetaModel, libraries, quiet
    from compressor.calibration.model_outputs import kind_of

    libraries()
    with quiet():
        meta = MetaModel(as_model(a), elsewhere=_ELSEWHERE)
        _check(kind_of(meta), _ids(meta, meta, what)[0], what, gates)


def _check(kind: str, ids: Any, what: LossInput, gates: LossGates) -> None:
    """Errors for an input that tells nothing of models of a kind, and for gates that they have nothing for."""
    if kind == "language model" and ids.shape[1] < 2:
        raise InputError(
            "holds one token, and what comes next is asked", file=os.fspath(what.text or what.tokens or "")
        )
    gates.failures(_possible(kind))


def as_model(checkpoint: Checkpoint) -> Checkpoint:
    """A GGUF file as the folder that transformers would load. InputError where it is of no model that is known."""
    if checkpoint.source.kind != "gguf":
        return checkpoint
    from compressor.checkpoint.gguf.from_file import as_folder, is_file_of_a_model

    if not is_file_of_a_model(checkpoint):
        return checkpoint
    folder = as_folder(checkpoint)
    if folder.source.config is None:
        raise InputError(f"cannot be run: {folder.notes[-1]}", file=checkpoint.path)
    return folder


def values_of(outputs: OutputLoss) -> dict[str, float | None]:
    """What was measured, by the names of the gates."""
    return {
        "max_kld": outputs.kld,
        "min_agreement": outputs.agreement,
        "max_perplexity_ratio": outputs.perplexity_ratio,
        "min_cosine": outputs.cosine,
    }


def _possible(kind: str) -> dict[str, float | None]:
    """Values that pass all gates that models of a kind have, so that the others are refused before the run."""
    least, most = -float("inf"), float("inf")
    if kind == "encoder":
        return {"max_kld": None, "min_agreement": None, "max_perplexity_ratio": None, "min_cosine": most}
    perplexity = least if kind == "language model" else None
    return {"max_kld": least, "min_agreement": most, "max_perplexity_ratio": perplexity, "min_cosine": None}


# ---- tokens --------------------------------------------------------------------------------------------


def _ids(a: Any, b: Any, what: LossInput) -> tuple[Any, str, list[str]]:
    """Windows of token ids [samples, length], what they are in words, and notes on how they were made."""
    limits = [getattr(meta.config, "max_position_embeddings", None) or LENGTH for meta in (a, b)]
    longest = min(limits)
    if what.tokens is not None:
        return _given(os.fspath(what.tokens), longest, what)
    if what.length is not None and what.length > longest:
        raise UsageError(f"--length {what.length}: the models take {longest} tokens at most")
    return _read(a, b, what, min(LENGTH, longest) if what.length is None else what.length)


def _read(a: Any, b: Any, what: LossInput, length: int) -> tuple[Any, str, list[str]]:
    """Of a text, by A's tokenizer, or B's where A has none."""
    from compressor.calibration.tokenizers import check_alike, tokenizer_of
    from compressor.calibration.tokens import read_text, read_windows

    text, seed = os.fspath(what.text or ""), what.seed or 0
    mine, theirs = tokenizer_of(a.checkpoint.source), tokenizer_of(b.checkpoint.source)
    if mine is None and theirs is None:
        raise InputError(
            "has no tokenizer, and neither has B",
            file=a.path,
            remedy="Copy its tokenizer.json into the folder, or give token ids with --tokens FILE.npy",
        )
    if mine is not None and theirs is not None:
        check_alike(mine, theirs, read_text(text)[0], b.path)
    windows = read_windows(text, theirs if mine is None else mine, what.samples or SAMPLES, length, seed)
    notes = list(windows.notes)
    if mine is None:
        notes.append("the tokenizer is B's: A has none")
    name = printable(os.path.basename(text), 100)
    said = f"{len(windows.ids)} samples of {windows.length} tokens of {name} (seed {seed})"
    return np.array(windows.ids, np.int64), said, notes


def _given(path: str, longest: int, what: LossInput) -> tuple[Any, str, list[str]]:
    """Token ids of a file. InputError where it holds none, or longer windows than the models take."""
    from compressor.files.opening import open_source
    from compressor.networks.samples import choose, is_whole

    arrays = list(open_source(path).tensors.values())
    shape = arrays[0].spec.shape if arrays else ()
    if len(arrays) != 1 or not is_whole(arrays[0]) or len(shape) != 2 or 0 in shape:
        raise InputError("holds no token ids: whole numbers [samples, length], as .npy", file=path)
    if shape[1] > longest:
        raise InputError(f"has windows of {shape[1]} tokens, and the models take {longest} at most", file=path)
    ids = arrays[0].read_rows(shape[1], 0, shape[0], Workspace(), "tokens").astype(np.int64)
    chosen = choose(shape[0], what.samples, what.seed or 0)
    name = printable(os.path.basename(path), 100)
    return ids[chosen], f"{len(chosen)} samples of {shape[1]} tokens of {name}", []
