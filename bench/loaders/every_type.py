"""Every type of model that transformers has, as small as its config allows: `python -m bench.loaders.every_type`.

A small model of each type is made from its config class, sizes by what entries are called, and taken through the
schemes as in `matrix.py`: it loads as it is and has the restored weights, and where it can be given something it
answers as it should; or it was refused. `2:4` is pruned and stays dense: what is loaded is the model's own weights,
of each four inputs of a layer two. Types that no model can be made of in this way are named, and not tried. Each is
a process of its own, since some end badly: `--types` chooses, `--keep FILE` notes what was found, a line of JSON a
type, and does not try it again; `--count` tells what such a file holds. GPTQ's layout needs gptqmodel and optimum,
from where `make test-interop` puts them, or from `--gptqmodel FOLDER`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import resource
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto import configuration_auto

from bench.loaders.families import output_of, quietly
from bench.loaders.matrix import SCHEMES
from bench.loaders.rounded_inputs import round_inputs
from bench.loaders.small_models import inputs, make, model_class, tries, types
from compressor import api
from compressor.architectures.loaders import limits_of
from compressor.architectures.roles import Role, role_of
from compressor.core.errors import CompressorError

PRUNED = "2:4"
TRIED = ("int4", "int8 W8A8", "fp8", "nf4", "int4 gptq", PRUNED)
_IMPORTED = (  # once, and not by each process
    *("bitsandbytes", "compressed_tensors.quantization", "compressor.api"),
    *(f"transformers.models.{one}.modeling_{one}" for one in ("llama", "bert", "clip", "whisper", "qwen2_vl")),
)
_STORED = torch.bfloat16  # what small models are stored in; some layers are loaded as float32
_KERNELS = 0.05  # how far a kernel for GPTQ's codes is off that computes in float16
_IN_FLOAT32 = 1e-4  # how far answers may be off there
_LONG = 90  # seconds
_MEMORY = 3 << 30  # bytes


def reads_weights(kind: str) -> bool:
    """Whether the initialisation of a type reads weights of layers, which packed layers have not: in a model
    without data, with these weights taken away. LookupError where no model can be made of it."""
    config_class, model_type, failed = configuration_auto.CONFIG_MAPPING[kind], model_class(kind), None
    for said in (*tries(config_class), None):
        try:
            config = config_class() if said is None else config_class.from_dict(said)
            with torch.device("meta"):
                model = model_type(config)
        except Exception as error:
            failed = error
            continue
        return _fails_without_weights(model)
    raise LookupError(f"{type(failed).__name__}: {failed}")


def _fails_without_weights(model: Any) -> bool:
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and role_of(f"{name}.weight", (256, 256)) is Role.LAYER:
            del module.weight
    for one in (*model.modules(), *model.parameters()):
        one._is_hf_initialized = False
    try:
        with torch.device("meta"):
            model.initialize_weights()
    except AttributeError:
        return True
    return False


# ---- one type ------------------------------------------------------------------------------------------


def try_type(kind: str, schemes: Sequence[str] = TRIED) -> dict[str, Any]:
    """What came of a type: `found` by scheme, or why it was not made."""
    with tempfile.TemporaryDirectory() as place, quietly():
        folder = Path(place) / "model"
        try:
            model_type = make(kind, folder)
            model, usual = _load(model_type, folder)
        except Exception as error:
            return {"type": kind, "unmade": f"{type(error).__name__}: {error}"[:300]}
        given = next((one for one in inputs(model) if _finite(model, one)), None)
        del model
        found = {name: _tried(name, model_type, folder, given, usual) for name in schemes}
        return {"type": kind, "class": model_type.__name__, "answers": given is not None, "found": found}


def _finite(model: Any, given: Mapping[str, Any]) -> bool:
    with contextlib.suppress(Exception):
        return bool(torch.isfinite(output_of(model, given)).all())
    return False


def _load(model_type: Any, folder: Path) -> tuple[Any, set[str]]:
    model, info = model_type.from_pretrained(folder, output_loading_info=True)
    return model.eval(), {f"{key}: {one}" for key, found in info.items() for one in found}


def _tried(name: str, model_type: Any, folder: Path, given: Any, usual: set[str]) -> dict[str, str]:
    """With `--for`; and without, where the plan does not tell transformers apart from others."""
    if name == PRUNED:
        return {"for": _pruned(model_type, folder, given, usual)}
    told = {"for": _cell(model_type, folder, SCHEMES[name], given, usual, {"loader": "transformers"})}
    if not told["for"].startswith("right"):
        told["default"] = _cell(model_type, folder, SCHEMES[name], given, usual, {})
    return told


def _pruned(model_type: Any, folder: Path, given: Any, usual: set[str]) -> str:
    """What comes of two weights of each four."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        try:
            api.prune(folder, Path(place) / "pruned", method="nm", pattern="2:4")
        except CompressorError as error:
            return f"refused: {error}"[:300]
        try:
            wanted, _ = _load(model_type, folder)
            model, problems = _load(model_type, Path(place) / "pruned")
            if not problems <= usual:
                return f"WRONG: loads with {sorted(problems - usual)[:3]}"
            return _halved(model, wanted) or ("right: weights" if given is None else _finite_too(model, given))
        except Exception as error:
            return f"WRONG: {type(error).__name__}: {error}"[:400]


def _finite_too(model: Any, given: Any) -> str:
    return "right" if _finite(model, given) else "WRONG: answers are not finite"


def _halved(model: Any, wanted: Any) -> str:
    """What is not a weight of the model or 0, or is pruned and no layer's; "" if nothing."""
    before, said = wanted.state_dict(), set()
    modules = dict(model.named_modules())
    for name, tensor in model.state_dict().items():
        if torch.equal(tensor, before[name]):
            continue
        if not torch.equal(tensor, torch.where(tensor == 0, tensor, before[name])):
            return f"WRONG: {name} has other weights"
        module = modules[name.rpartition(".")[0]]
        if type(module) is torch.nn.Linear:
            fours = tensor[:, : tensor.shape[1] // 4 * 4].unflatten(1, (-1, 4))  # a row's tail stays
            if (fours != 0).sum(2).max() > 2:
                return f"WRONG: {name} is not 2:4"
        if not isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
            said.add(f"{type(module).__name__}.{name.rpartition('.')[2]}")
    tables = [one for one in said if "Embed" in one or "Norm" in one]
    return f"WRONG: prunes {tables}" if tables else f"right: {sorted(said)}" if said else ""


def _cell(model_type: Any, folder: Path, scheme: Any, given: Any, usual: set[str], options: Any) -> str:
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        packed, dense = Path(place) / "packed", Path(place) / "dense"
        try:
            report = api.quantize(folder, packed, **scheme, **options)
        except CompressorError as error:
            return f"refused: {error}"[:300]
        if not options and any("transformers" in note for note in report.plan.notes):
            return "right: noted"
        if not any(job.steps for job in report.plan.jobs):
            return "right: nothing to quantize"
        api.restore(packed, dense)
        try:
            wanted, before = _load(model_type, dense)
            model, problems = _load(model_type, packed)
            if not problems <= usual | before:
                return f"WRONG: loads with {sorted(problems - usual - before)[:3]}"
            found = None if given is None else _answers(model, given)
            round_inputs(wanted, packed)
            wanted.config._is_quantized = True  # by which some models choose in which order they compute
            if any(hasattr(one, "dequantize_weight") for one in model.modules()):
                model, _ = _load(model_type, packed)  # its kernels have put the codes into another order
            told = _differs(model, wanted) or _off(found, model, wanted, given)
            return _again_in_float32(model_type, packed, dense, given) or told if "answers" in told else told
        except Exception as error:
            return f"WRONG: {type(error).__name__}: {error}"[:400]


def _differs(model: Any, wanted: Any) -> str:
    """Weights of a loaded model that are not the restored ones."""
    from compressed_tensors.compressors import decompress_module

    for module in model.modules():
        if getattr(module, "quantization_status", None) == "compressed":
            decompress_module(module)
    found = model.state_dict()
    for name, module in model.named_modules():
        if hasattr(module, "dequantize_weight"):
            module.scales = module.scales.float()
            found[f"{name}.weight"] = module.dequantize_weight().T
        if hasattr(getattr(module, "weight", None), "quant_state"):
            import bitsandbytes

            state = module.weight.quant_state
            found[f"{name}.weight"] = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
    for name, tensor in wanted.state_dict().items():
        if name not in found:
            return f"WRONG: has no {name}"
        if found[name].shape != tensor.shape or not torch.equal(
            *(one.to(_STORED) for one in (found[name], tensor))
        ):
            return f"WRONG: {name} differs"
    return ""


def _answers(model: Any, given: Any) -> Any:
    for one in model.modules():
        if getattr(one, "support_avx512bf16_for_cpu", False):
            one.support_avx512bf16_for_cpu = False
    return output_of(model, given)


def _again_in_float32(model_type: Any, packed: Path, dense: Path, given: Any) -> str:
    """That the answers are right, where only what is rounded to bfloat16 is not: a loader may compute a quantized
    model in another order, or keep fewer of its layers in float32; "" where they are not right."""
    for folder in (packed, dense):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "bnb_4bit_compute_dtype" in config.get("quantization_config", {}):
            config["quantization_config"]["bnb_4bit_compute_dtype"] = "float32"
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found, wanted = (model_type.from_pretrained(one, dtype=torch.float32).eval() for one in (packed, dense))
    round_inputs(wanted, packed)
    answers = [output_of(one, given, torch.float32) for one in (found, wanted)]
    off = float((answers[0] - answers[1]).norm() / answers[1].norm())
    return f"right: {off:.2g} in float32" if off <= _IN_FLOAT32 else ""


def _off(found: Any, model: Any, wanted: Any, given: Any) -> str:
    """How far answers lie from those of the restored model, which rounds what config.json says."""
    if found is None:
        return "right: weights"
    expected = output_of(wanted, given)
    off = float((found - expected).norm() / expected.norm())
    allowed = _KERNELS if any(hasattr(one, "dequantize_weight") for one in model.modules()) else 0.002
    return f"right: {off:.2g}" if off <= allowed else f"WRONG: answers are {off:.3g} off"


def main() -> int:
    """Try what is asked for; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="*")
    parser.add_argument("--schemes", nargs="*", choices=[*SCHEMES, PRUNED], default=TRIED)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--count", action="store_true", help="only tell what is kept")
    parser.add_argument("--gptqmodel", type=Path, default=Path(sys.prefix) / "gptqmodel")
    parser.add_argument("--initialisation", action="store_true", help="look only whether it reads weights")
    parser.add_argument("--part", default="1/1", help="K/N: each Nth of them, from the Kth")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.initialisation:
        return _read_weights(asked.types or types())
    kept = {}
    if asked.keep and asked.keep.exists():
        kept = {one["type"]: one for one in map(json.loads, asked.keep.read_text(encoding="utf-8").splitlines())}
    if asked.count:
        return _count(list(kept.values()))
    sys.path.append(str(asked.gptqmodel))
    for module in _IMPORTED:  # gptqmodel is not among them: it has threads, which a fork would wait for
        importlib.import_module(module)
    torch.set_num_threads(1)
    number, of = map(int, asked.part.split("/"))
    wrong = False
    for kind in (asked.types or types())[number - 1 :: of]:
        if kind not in kept:
            kept[kind] = _apart(kind, asked.schemes)
            if asked.keep:
                with asked.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(kept[kind]) + "\n")
        said = [
            f"{one} {way} {told}" for one, ways in kept[kind].get("found", {}).items() for way, told in ways.items()
        ]
        bad = [one for one in said if "WRONG" in one]
        wrong |= bool(bad)
        sys.stdout.write(f"{kind}: {'; '.join(bad) or kept[kind].get('unmade') or 'right'}\n")
        sys.stdout.flush()
    return int(wrong)


def _read_weights(kinds: Sequence[str]) -> int:
    """Print the types whose initialisation reads weights though none of the table's says so; 1 if there are any."""
    wrong = False
    for kind in kinds:
        with contextlib.suppress(LookupError):
            if reads_weights(kind) and not packed_is_refused(kind):
                sys.stdout.write(f"{kind}: reads weights\n")
                wrong = True
    return int(wrong)


def packed_is_refused(kind: str) -> bool:
    """Whether the table of loaders says that transformers takes no packed layers of models of a type."""
    form = "pack-quantized int4 group"
    name = "encoder.layers.0.mlp.up_proj.weight"
    return any(limits_of("transformers", {"model_type": kind}, name, form))


def _count(kept: Sequence[Mapping[str, Any]]) -> int:
    """Print how many types came out how, by scheme."""
    tried = [one for one in kept if "found" in one]
    sys.stdout.write(f"{len(tried)} of {len(kept)} types were made small, {len(types())} are known\n")
    for scheme in dict.fromkeys(scheme for one in tried for scheme in one["found"]):
        ways = [one["found"][scheme] for one in tried if scheme in one["found"]]
        words = Counter(way["for"].partition(":")[0] for way in ways)
        sys.stdout.write(f"{scheme}: {', '.join(f'{count} {word}' for word, count in sorted(words.items()))}\n")
    return int(any("WRONG" in told for one in tried for ways in one["found"].values() for told in ways.values()))


def _apart(kind: str, schemes: Sequence[str]) -> dict[str, Any]:
    """A type in a process of its own, in bounded memory."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_tell, args=(kind, schemes, theirs))
    child.start()
    theirs.close()
    try:
        told: dict[str, Any] = ours.recv() if ours.poll(_LONG) else {"type": kind, "unmade": "takes too long"}
    except EOFError:
        told = {"type": kind, "unmade": "ended"}
    child.kill()
    child.join()
    return told


def _tell(kind: str, schemes: Sequence[str], pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    torch.set_num_threads(1)
    pipe.send(try_type(kind, schemes))


if __name__ == "__main__":
    sys.exit(main())
