"""What a network that runs in NumPy lost against another one, on inputs that were recorded."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from compressor.calibration.loss import ModelLoss, OutputLoss, quantile_999
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.files.opening import open_source
from compressor.files.source import StoredTensor
from compressor.networks.kinds import Softmax
from compressor.networks.matching import read_network
from compressor.networks.network import Network
from compressor.networks.samples import blocks, check_samples, check_shape, is_whole, scaling
from compressor.networks.surest import both_surest, first_samples


@dataclass
class _Sums:
    """Over all inputs so far."""

    plain: float = 0.0
    lost: float = 0.0
    alike: int = 0
    right_a: int = 0
    right_b: int = 0


def network_loss(
    a: Checkpoint, b: Checkpoint, inputs: str, *, network: str | None, divide: float | None, labels: str | None
) -> ModelLoss:
    """Run inputs (.npy, samples first) through both. InputError where they are none of the networks', where the
    networks' outputs differ in number, or where an output is not finite."""
    array = _one(inputs, "inputs")
    check_samples(array, array.spec.name)
    found = [read_network(one, network) for one in (a, b)]
    one, other = (each.network for each in found)
    for made in (one, other):
        check_shape(array, made)
    if one.outputs != other.outputs:
        raise InputError(f"gives outputs of {list(other.outputs)}, and A of {list(one.outputs)}", file=b.path)
    offered = one.fitted.description.divide
    by = divide if divide is not None else offered if is_whole(array) else 1.0
    count = array.spec.shape[0]
    if not count:
        raise InputError("holds no samples", file=inputs)
    classes = one.outputs[0] if len(one.outputs) == 1 and one.outputs[0] > 1 else 0
    truth = None if labels is None else _labels(labels, count, classes)
    found = [*both_surest(a, found[0], b, found[1], first_samples(array, by))]
    one, other = (each.network for each in found)
    sums, values, work = _Sums(), np.zeros(count if classes else 0), Workspace()
    for start, block in blocks(array, work, min(one.batch, other.batch)):
        if by != 1:
            block *= block.dtype.type(1 / by)
        outputs = [_outputs(made, block, path) for made, path in ((one, a.path), (other, b.path))]
        part = slice(start, start + len(block))
        sums.plain += float(np.square(outputs[0]).sum())
        sums.lost += float(np.square(outputs[1] - outputs[0]).sum())
        if classes:
            logs = [_log_shares(made, out) for made, out in zip((one, other), outputs, strict=True)]
            values[part] = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).clip(min=0)
            best = [log.argmax(1) for log in logs]
            sums.alike += int((best[0] == best[1]).sum())
            if truth is not None:
                sums.right_a += int((best[0] == truth[part]).sum())
                sums.right_b += int((best[1] == truth[part]).sum())
    error = sqrt(sums.lost / sums.plain) if sums.plain else float(sums.lost > 0)
    notes = (
        f"network: {found[0].description}",
        f"inputs: {scaling(array, by, asked=divide is not None, offered=offered)}",
    )
    loss = OutputLoss("network", count, error=error)
    if classes:
        loss = OutputLoss(
            "network",
            count,
            kld=float(values.mean()),
            kld_999=quantile_999(np.sort(values).tolist()),
            agreement=sums.alike / count,
            accuracy=None if truth is None else (sums.right_a / count, sums.right_b / count),
            error=error,
        )
    return ModelLoss(loss, f"{count} inputs", notes=notes)


def _one(path: str, what: str) -> StoredTensor:
    source = open_source(path)
    if len(source.tensors) != 1:
        raise InputError(
            f"holds {len(source.tensors)} arrays, where one of {what} belongs",
            file=path,
            remedy=f"Save the {what} alone, as .npy",
        )
    (array,) = source.tensors.values()
    return array


def _labels(path: str, count: int, classes: int) -> Array:
    """A class for each input."""
    if not classes:
        raise InputError("is of no use: the networks tell no classes", file=path)
    array = _one(path, "labels")
    if array.spec.shape != (count,) or not is_whole(array):
        raise InputError(
            f"is {array.spec.dtype} {list(array.spec.shape)}, where whole numbers [{count}] belong", file=path
        )
    found: Array = array.read_rows(1, 0, count, Workspace(), "labels").reshape(-1).astype(np.int64)
    if found.min() < 0 or found.max() >= classes:
        raise InputError(
            f"holds labels from {found.min()} to {found.max()}, where the networks tell {classes} classes",
            file=path,
        )
    return found


def _outputs(made: Network, block: Array, path: str) -> Array:
    """Outputs in float64 [n, numbers]."""
    with np.errstate(all="ignore"):
        found: Array = made.forward(block.reshape(-1, *made.input)).astype(np.float64).reshape(len(block), -1)
    if not np.isfinite(found).all():
        raise InputError(
            "computes NaN or infinite outputs", file=path, remedy="Scale the inputs down with --divide"
        )
    return found


def _log_shares(made: Network, outputs: Array) -> Array:
    """log p of every class; outputs of a network that ends in a softmax are shares already."""
    if isinstance(made.fitted.description.layers[-1], Softmax):
        found: Array = np.log(outputs.clip(min=np.finfo(np.float64).tiny))
        return found
    shifted = outputs - outputs.max(1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs
