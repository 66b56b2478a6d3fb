"""What a model lost by its outputs, in words and as JSON has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compressor.calibration.loss import ModelLoss, OutputLoss
from compressor.reports.figures import error_text


def to_json(loss: ModelLoss) -> dict[str, Any]:
    """The fields of a report."""
    outputs = loss.outputs
    pairs = {"perplexity": outputs.perplexity, "accuracy": outputs.accuracy}
    measured = {
        "kld_mean": outputs.kld,
        "kld_999": outputs.kld_999,
        "agreement": outputs.agreement,
        **{
            f"{name}_{side}": value
            for name, pair in pairs.items()
            if pair
            for side, value in zip("ab", pair, strict=True)
        },
        "perplexity_ratio": outputs.perplexity_ratio,
        "cosine_mean": outputs.cosine,
        "output_error": outputs.error,
    }
    return {
        "loss": {
            "kind": outputs.kind,
            "count": outputs.count,
            "source": loss.source,
            **{name: value for name, value in measured.items() if value is not None},
        },
        "blocks": [{"number": one.number, "added": one.added, "total": one.total} for one in loss.blocks],
        **(
            {"sample": loss.sample, "tensors": [_tensor(one, outputs) for one in loss.tensors]}
            if loss.sample
            else {}
        ),
        "notes": list(loss.notes),
    }


def _tensor(one: Any, outputs: OutputLoss) -> dict[str, Any]:
    lost = {"kld": one.lost} if outputs.kld is not None else {"one_minus_cosine": one.lost}
    return {"name": one.name, "relative_error": one.error, **lost}


def _arrow(before: str, after: str) -> str:
    return f"{before} → {after}"


def figures_of(outputs: OutputLoss, pair: Callable[[str, str], str] = _arrow) -> list[tuple[str, str]]:
    """What was measured, each figure by its name; `pair` writes what A and B have."""
    said = []
    if outputs.kld is not None and outputs.kld_999 is not None:
        said.append(("KL divergence", f"{outputs.kld:.4g} (99.9 %: {outputs.kld_999:.4g})"))
    if outputs.agreement is not None:
        said.append(("same top-1", f"{100 * outputs.agreement:.4g} %"))
    if outputs.perplexity is not None:
        a, b = outputs.perplexity
        said.append(("perplexity", pair(f"{a:.5g}", f"{b:.5g}")))
    if outputs.accuracy is not None:
        a, b = outputs.accuracy
        said.append(("accuracy", pair(f"{100 * a:.4g} %", f"{100 * b:.4g} %")))
    if outputs.cosine is not None:
        said.append(("cosine of embeddings", f"{outputs.cosine:.6f}"))
    if outputs.error is not None:
        said.append(("relative error of outputs", error_text(outputs.error)))
    return said


def words_of(outputs: OutputLoss, pair: Callable[[str, str], str] = _arrow) -> str:
    """What was measured, in one line."""
    return ", ".join(f"{name} {value}" for name, value in figures_of(outputs, pair))
