"""What a model lost by its outputs, as JSON has it."""

from __future__ import annotations

from typing import Any

from compressor.calibration.loss import ModelLoss, OutputLoss


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
