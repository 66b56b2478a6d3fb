"""What a model gives for text, by its class, and how that of two models is compared.

A language model, causal or masked, gives logits of its vocabulary for each token; a classifier gives logits of its
classes for each text or token; a bare model gives hidden states, of which an embedding of the text is pooled as
the folder's 1_Pooling/config.json says: of the first token, of the last, or the mean.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from compressor.calibration.block_run import WITHOUT_A_RUN, BlockRun
from compressor.calibration.divergence import Divergence
from compressor.calibration.loss import Kind, OutputLoss
from compressor.calibration.meta_model import MetaModel
from compressor.core.errors import InputError
from compressor.core.text import printable
from compressor.files.source import Source
from compressor.files.strict_json import read_object

_LOGITS = 1 << 24  # logits, or numbers of an output head, that are in memory at a time
_MAPPINGS: dict[Kind, tuple[str, ...]] = {
    "language model": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    "masked language model": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES",),
    "classifier": (
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    ),
    "encoder": ("MODEL_MAPPING_NAMES",),
}
_POOLINGS = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
}


def kind_of(meta: MetaModel) -> Kind:
    """What the model is. InputError where its outputs are of a kind that is not compared here."""
    mappings = importlib.import_module("transformers.models.auto.modeling_auto")
    called = type(meta.model).__name__
    for kind, names in _MAPPINGS.items():
        classes: set[str] = set()
        for name in names:
            for value in getattr(mappings, name).values():
                classes |= {value} if isinstance(value, str) else set(value)
        if called in classes:
            _check_classes(meta, kind)
            return kind
    raise InputError(
        f"is a {printable(called, 80)}: outputs are compared of language models, classifiers and encoders",
        file=meta.path,
    )


def _check_classes(meta: MetaModel, kind: Kind) -> None:
    several = getattr(meta.config, "problem_type", None) in ("regression", "multi_label_classification")
    if kind == "classifier" and (several or meta.config.num_labels < 2):
        raise InputError("gives numbers or several labels for a text, not one of some classes", file=meta.path)


def pooling_of(source: Source) -> str:
    """Of which hidden states an embedding is made: first, last or mean."""
    file = source.carried.get(f"{source.inside}1_Pooling/config.json")
    said = {} if file is None else read_object(file, lenient=True)
    return next((how for key, how in _POOLINGS.items() if said.get(key) is True), "mean")


def compared(a: BlockRun, b: BlockRun, last_a: Any, last_b: Any, kind: Kind) -> OutputLoss:
    """The loss of B's outputs against A's, from what leaves the last blocks (float32 [samples, tokens, width])."""
    (found,) = compared_all(a, last_a, [(b, last_b)], kind)
    return found


def compared_all(a: BlockRun, last_a: Any, others: Sequence[tuple[BlockRun, Any]], kind: Kind) -> list[OutputLoss]:
    """The same for several others against one A, whose outputs are computed once."""
    if kind == "encoder":
        return _embeddings(a, last_a, others)
    divergences = _classes(a, last_a, others) if kind == "classifier" else _tokens(a, last_a, others, kind)
    for found, (run, _) in zip(divergences, others, strict=True):
        if not bool(found.values().isfinite().all()):
            path = a.meta.path if not bool(found.a.log_sum.isfinite().all()) else run.meta.path
            raise InputError("gives NaN or infinite logits", file=path, remedy=WITHOUT_A_RUN)
    return [found.loss(kind) for found in divergences]


def _classes(a: BlockRun, last_a: Any, others: Sequence[tuple[BlockRun, Any]]) -> list[Divergence]:
    """Of logits of classes, for every text or token."""
    parts = list(_parts(len(a.ids), a.ids.shape[1], a.meta.config.num_labels))

    def logits(run: BlockRun, last: Any) -> Any:
        return a.torch.cat([run.outputs(part, last[part]).logits for part in parts]).flatten(0, -2)

    own, found = logits(a, last_a), []
    for run, last in others:
        found.append(Divergence(a.torch, len(own)))
        found[-1].add(0, own, logits(run, last))
    return found


def _tokens(a: BlockRun, last_a: Any, others: Sequence[tuple[BlockRun, Any]], kind: Kind) -> list[Divergence]:
    """Of logits of the vocabulary, for every token."""
    samples, length = a.ids.shape
    ahead = kind == "language model"  # what a causal model says after the last token of a window is of nothing
    rows = length - ahead
    targets = a.ids[:, 1:].reshape(-1) if ahead else None
    found = [Divergence(a.torch, samples * rows, targets) for _ in others]
    heads = list({id(run): run for run in (a, *(run for run, _ in others))}.values())
    width = max(run.meta.head.weight.shape[1] for run in heads)
    for start, stop in _vocabulary(a.meta.vocabulary, max(width, length)):
        for run in heads:
            run.meta.fill_head(start, stop)
        for part in _parts(samples, length, stop - start):
            own = a.outputs(part, last_a[part]).logits[:, :rows].flatten(0, 1)
            for one, (run, last) in zip(found, others, strict=True):
                theirs = run.outputs(part, last[part]).logits[:, :rows].flatten(0, 1)
                one.add(part.start * rows, own, theirs, start)
    return found


def _vocabulary(tokens: int, each: int) -> Iterator[tuple[int, int]]:
    """Slices of the vocabulary of as many tokens as may be in memory, where each takes `each` numbers."""
    step = max(1, _LOGITS // each)
    for start in range(0, tokens, step):
        yield start, min(start + step, tokens)


def _parts(samples: int, length: int, each: int) -> Iterator[slice]:
    """Slices of the samples whose outputs, of `each` numbers a token, may be in memory."""
    step = max(1, _LOGITS // (length * each))
    for start in range(0, samples, step):
        yield slice(start, min(start + step, samples))


def _embeddings(a: BlockRun, last_a: Any, others: Sequence[tuple[BlockRun, Any]]) -> list[OutputLoss]:
    sums = [0.0 for _ in others]
    samples = len(a.ids)
    for part in _parts(samples, a.ids.shape[1], last_a.shape[-1]):
        own = embeddings(a, part, last_a).double()
        for place, (run, last) in enumerate(others):
            theirs = embeddings(run, part, last).double()
            for path, found in ((a.meta.path, own), (run.meta.path, theirs)):
                if not bool(found.isfinite().all()):
                    raise InputError("gives NaN or infinite embeddings", file=path, remedy=WITHOUT_A_RUN)
            sums[place] += float(a.torch.nn.functional.cosine_similarity(own, theirs, dim=1).sum())
    return [OutputLoss("encoder", samples, cosine=total / samples) for total in sums]


def embeddings(run: BlockRun, part: slice, last: Any) -> Any:
    """An embedding for each window of a part, [samples, width]."""
    states = run.outputs(part, last[part]).last_hidden_state
    how = pooling_of(run.meta.described)
    return states.mean(1) if how == "mean" else states[:, 0 if how == "first" else -1]
