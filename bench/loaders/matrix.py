"""Every family in every scheme, loaded by everybody who is there: `python -m bench.loaders.matrix` writes
docs/loaders.md.

A cell is what `--for LOADER` makes of a family and a scheme: it loads as it is, with nothing missing, and answers
what its codes and its config.json say; or it is refused at plan time. `--families` chooses some, and prints
instead; with `--write` the page gets what the file of `--keep` holds, in which finds are noted, and not tried
again. vLLM is asked where VLLM_PYTHON names a Python that has it, mlx-lm and llama.cpp where they are installed.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import re
import string
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.loaders.answers import Answers
from bench.loaders.cpu_kernels import check_kernels
from bench.loaders.families import FAMILIES, Family, output_of, quietly
from bench.loaders.llama_cpp import LlamaCpp
from bench.loaders.rounded_inputs import round_inputs
from bench.loaders.vllm_loader import Vllm
from bench.page import put
from compressor import api
from compressor.core.errors import CompressorError, problems_of

_LETTERS = string.ascii_lowercase + string.ascii_uppercase
PAGE = Path(__file__).parents[2] / "docs" / "loaders.md"


SCHEMES: dict[str, Mapping[str, Any]] = {  # options of `quantize`
    "int4": {"bits": 4},
    "int4 channel": {"bits": 4, "granularity": "channel"},
    "int4 asymmetric": {"bits": 4, "symmetric": False},
    "int4 gptq": {"bits": 4, "layout": "gptq"},
    "int8": {"bits": 8},
    "int8 W8A8": {"bits": 8, "layout": "int-quantized"},
    "fp8": {"scheme": "fp8"},
    "fp8 weights": {"scheme": "fp8", "layout": "naive-quantized"},
    "fp8 block": {"scheme": "fp8", "granularity": "block"},
    "nvfp4": {"scheme": "nvfp4"},
    "mxfp4": {"scheme": "mxfp4"},
    "mxfp8": {"scheme": "mxfp8"},
    "nf4": {"scheme": "nf4"},
}


@dataclass(frozen=True)
class Cell:
    """What came of a family and a scheme for a loader: `off` is how far answers lie from what the codes and the
    config say, relative to their length, None where the plan was `refused`, with the way on, or `wrong`; no more
    than the order of sums may make it, which is `tolerance`. `apart` is how far the answers lie from those of the
    restored model, as the loader gives them. `treated` counts matrices that became codes. `alone`: the loader does
    not take the model as it was, for this reason. `aside`: it has no kernel for some of the codes, which were
    multiplied out as it had loaded them."""

    off: float | None = None
    apart: float = 0.0
    tolerance: float = 0.0
    treated: int = 0
    refused: str = ""
    way_on: str = ""
    wrong: str = ""
    alone: str = ""
    aside: bool = False

    @property
    def right(self) -> bool:
        """Whether it loads and answers as it should, or was refused."""
        return bool(self.refused or self.alone) or (self.off is not None and self.off <= self.tolerance)


class Transformers:
    """transformers, in this process."""

    name = "transformers"
    versions = property(lambda self: _versions("transformers", "compressed-tensors", "bitsandbytes", "torch"))
    tolerance = 0.0
    at_once = 1

    @staticmethod
    def schemes_of(family: Family) -> Sequence[str]:
        """What is tried of a family."""
        return [name for name in SCHEMES if name not in ("int4 channel", "int4 gptq")]

    def takes(self, family: Family) -> bool:
        """Whether it has models of the family."""
        return True

    def sized(self, family: Family) -> Family:
        """As it is."""
        return family

    def prepare(self, folder: Path) -> None:
        """Nothing has to be done to what transformers saved."""

    def load(self, folder: Path, family: Family) -> Any:
        """A folder's model. RuntimeError where something of it is missing, or left over."""
        model, info = family.model.from_pretrained(folder, output_loading_info=True)
        problems = {key: sorted(map(str, found))[:3] for key, found in info.items() if found}
        if problems:
            raise RuntimeError(f"loads with {problems}")
        return model.eval()

    def answers(self, folder: Path, family: Family) -> Any:
        """What a folder's model answers."""
        return output_of(self.load(folder, family), family.given)

    def compared(self, packed: Path, dense: Path, family: Family) -> Answers:
        """Codes of bitsandbytes are multiplied as on any processor: where it has AVX-512 with bfloat16 it has a
        kernel that rounds otherwise."""
        model, restored = self.load(packed, family), self.load(dense, family)
        wanted = output_of(restored, family.given)
        kernels = [one for one in model.modules() if getattr(one, "support_avx512bf16_for_cpu", False)]
        for one in kernels:
            one.support_avx512bf16_for_cpu = False
        found = output_of(model, family.given)
        check_kernels(kernels)
        for one in kernels:
            one.support_avx512bf16_for_cpu = True
        loaded = output_of(model, family.given) if kernels else found
        rounds = round_inputs(restored, packed)
        return Answers(loaded, wanted, found, output_of(restored, family.given) if rounds else wanted)


class Mlx:
    """mlx-lm, in this process."""

    name = "mlx"
    versions = property(lambda self: _versions("mlx-lm", "mlx"))
    at_once = 1
    tolerance = 1e-4  # float32, in another order

    @staticmethod
    def schemes_of(family: Family) -> Sequence[str]:
        """What is tried of a family."""
        return ("int4", "int4 asymmetric", "int8")

    def takes(self, family: Family) -> bool:
        """Whether it has models of the family."""
        kind = family.model.config_class.model_type
        found = importlib.util.find_spec("mlx_lm") and importlib.util.find_spec(f"mlx_lm.models.{kind}")
        return found is not None and "input_ids" in family.given

    def sized(self, family: Family) -> Family:
        """As it is."""
        return family

    def prepare(self, folder: Path) -> None:
        """Say in config.json what transformers says otherwise since its version 5, as published models have it."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        theta = (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
        more = {"rope_theta": theta, "num_experts": config.get("num_local_experts")}
        (folder / "config.json").write_text(json.dumps({**more, **config}), encoding="utf-8")

    def load(self, folder: Path) -> Any:
        """A folder's model."""
        from mlx_lm.utils import load_model

        return load_model(folder, strict=True)[0]

    def logits(self, model: Any, family: Family) -> Any:
        """What a model answers."""
        import mlx.core as mx
        import torch

        model.set_dtype(mx.float32)  # on a processor experts are multiplied in that only
        found = model(mx.array(family.given["input_ids"].tolist())).astype(mx.float32)
        return torch.tensor(found.tolist()).flatten()

    def answers(self, folder: Path, family: Family) -> Any:
        """The logits of a folder's model."""
        return self.logits(self.load(folder), family)

    def compared(self, packed: Path, dense: Path, family: Family) -> Answers:
        """What is restored is rounded to bfloat16, and codes are multiplied in float32: what they stand for in the
        one has to be what is restored, and the answers those of the other."""
        import mlx.core as mx

        model, exact = self.load(packed), self.load(dense)
        restored, layers = self.answers(dense, family), dict(exact.named_modules())
        for path, layer in model.named_modules():
            if not hasattr(layer, "scales"):
                continue
            how = {"group_size": layer.group_size, "bits": layer.bits}
            rounded = mx.dequantize(layer.weight, layer.scales, layer.biases, **how)
            if not mx.array_equal(rounded, layers[path].weight):
                raise RuntimeError(f"{path} stands for other numbers than are restored")
            scales, biases = (one.astype(mx.float32) for one in (layer.scales, layer.biases))
            layers[path].weight = mx.dequantize(layer.weight, scales, biases, **how)
        found = self.logits(model, family)
        return Answers(found, restored, found, self.logits(exact, family))


LOADERS: dict[str, Any] = {one.name: one for one in (Transformers(), Mlx(), Vllm(), LlamaCpp())}
_MAKING = threading.Lock()  # of models, by the one generator that torch has


def _versions(*packages: str) -> str:
    return ", ".join(f"{one} {importlib.metadata.version(one)}" for one in packages)


def cells(
    family: Family, loader: Any, names: Iterable[str], options: Mapping[str, Any]
) -> Iterator[tuple[str, Cell]]:
    """Each scheme's cell, the model made once. `options` are more of `quantize`, such as `loader`."""
    family = loader.sized(family)
    with tempfile.TemporaryDirectory() as place, quietly():
        model = Path(place) / "model"
        with _MAKING:
            family.make(model)
        loader.prepare(model)
        try:
            loader.answers(model, family)
        except CompressorError as error:  # where a file is made for it
            yield from ((name, Cell(refused=_plain(error), way_on=error.remedy)) for name in names)
            return
        except Exception as error:
            yield from ((name, Cell(alone=f"{type(error).__name__}: {error}")) for name in names)
            return
        for name in names:
            yield name, _cell(family, loader, _schemes(loader)[name], model, options)
            gc.collect()


def _schemes(loader: Any) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = getattr(loader, "schemes", SCHEMES)
    return found


def _cell(family: Family, loader: Any, scheme: Mapping[str, Any], model: Path, options: Mapping[str, Any]) -> Cell:
    with tempfile.TemporaryDirectory(dir=model.parent) as place:
        suffix = getattr(loader, "suffix", "")
        packed, dense = Path(place) / f"packed{suffix}", Path(place) / f"dense{suffix}"
        try:
            report = api.quantize(model, packed, **scheme, **options)
        except CompressorError as error:
            return Cell(refused=_plain(error), way_on=error.remedy)
        treated = sum(bool(job.steps) for job in report.plan.jobs)
        api.restore(packed, dense)
        try:
            got = loader.compared(packed, dense, family)
        except Exception as error:
            return Cell(wrong=f"{type(error).__name__}: {error}", treated=treated)
        aside = getattr(loader, "aside", False)
        return Cell(got.off, got.apart, loader.tolerance, treated, aside=aside)


def _plain(error: CompressorError) -> str:
    """Why a plan was refused, without the names of its tensors."""
    said = [
        (one.reason.partition(": '")[0].partition(": ")[2] or one.reason, one.remedy) for one in problems_of(error)
    ]
    return "; ".join(f"{why}. {way_on}" if len(said) > 1 else why for why, way_on in said)


# ---- the page ------------------------------------------------------------------------------------------


def table(found: Mapping[str, Mapping[str, Cell]], tried: Sequence[str]) -> str:
    """A table of families by schemes, with what the letters of refusals stand for."""
    reasons: dict[str, str] = {}
    lines = [f"| family | {' | '.join(tried)} |", f"|---|{'---|' * len(tried)}"]
    for family, row in found.items():
        shown = [_shown(row[name], reasons) if name in row else "" for name in tried]
        lines.append(f"| {family} | {' | '.join(shown)} |")
    lines += ["", *(f"- {letter}: {reason}" for reason, letter in reasons.items())]
    alone = {family: next((cell.alone for cell in row.values() if cell.alone), "") for family, row in found.items()}
    said = [f"{family} (`{' '.join(why.replace('`', '').split())[:110]}`)" for family, why in alone.items() if why]
    lines += [f"- –: the loader does not run the model before it is quantized either: {', '.join(said)}"] * bool(
        said
    )
    return "\n".join(lines)


def _shown(cell: Cell, reasons: dict[str, str]) -> str:
    if cell.alone:
        return "–"
    if cell.refused:  # which codes they are, the column tells
        reason = re.sub(r"(^|; )[^:;]*? of (?=[^:;]+: )", r"\1", cell.refused)
        reason = f"{reason}. {cell.way_on}" if cell.way_on else reason
        return reasons.setdefault(reason, _LETTERS[len(reasons)])
    if not cell.right or cell.off is None:
        return f"**wrong** ({cell.wrong or f'{cell.off:.2g}'})"
    before, after = "" if cell.treated else "=", "\\*" if cell.aside else ""
    return f"{before}{cell.apart:.1g}{after}" if cell.apart else f"{before}0{after}"


@dataclass
class Kept:
    """Cells that were found, by loader, family and scheme, in a file where one is given."""

    path: Path | None
    cells: dict[tuple[str, str, str], Cell] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                loader, family, scheme, cell = json.loads(line)
                self.cells[loader, family, scheme] = Cell(**cell)

    def rows(self, loader: str) -> dict[str, dict[str, Cell]]:
        """All that is kept of a loader, in the order of families."""
        rows: dict[str, dict[str, Cell]] = {name: {} for name in FAMILIES}
        for (by, family, scheme), cell in self.cells.items():
            if by == loader:
                rows[family][scheme] = cell
        return {name: row for name, row in rows.items() if row}

    def add(self, loader: str, family: str, scheme: str, cell: Cell) -> None:
        """Note a cell."""
        with self.lock:
            self.cells[loader, family, scheme] = cell
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([loader, family, scheme, asdict(cell)]) + "\n")


def _rows(loader: Any, families: Sequence[Family], kept: Kept, chosen: Sequence[str]) -> dict[str, dict[str, Cell]]:
    """The cells of these families in the schemes that were chosen, as many families at once as the loader can."""

    def row(family: Family) -> dict[str, Cell]:
        tried = [name for name in _schemes(loader) if name in loader.schemes_of(family) and name in chosen]
        missing = [name for name in tried if (loader.name, family.name, name) not in kept.cells]
        for name, cell in cells(family, loader, missing, {"loader": loader.name}) if missing else ():
            kept.add(loader.name, family.name, name, cell)
        return {name: kept.cells[loader.name, family.name, name] for name in tried}

    with ThreadPoolExecutor(loader.at_once) as pool:
        return {family.name: found for family, found in zip(families, pool.map(row, families), strict=True)}


def main() -> int:
    """Try what is asked for; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES))
    parser.add_argument("--loaders", nargs="*", choices=list(LOADERS))
    parser.add_argument("--schemes", nargs="*", help="by default all that are tried of a family")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    kept, right = Kept(asked.keep), True
    for name in asked.loaders or (one for one, loader in LOADERS.items() if getattr(loader, "there", True)):
        loader = LOADERS[name]
        families = [FAMILIES[one] for one in asked.families or FAMILIES if loader.takes(FAMILIES[one])]
        found = _rows(loader, families, kept, asked.schemes or tuple(_schemes(loader)))
        right &= all(cell.right for row in found.values() for cell in row.values())
        if asked.write:
            found = kept.rows(name)
        tried = [scheme for scheme in _schemes(loader) if any(scheme in row for row in found.values())]
        most = max((cell.off or 0.0 for row in found.values() for cell in row.values()), default=0.0)
        said = f"With {loader.versions}. The farthest from what codes and config say: {most:.1g}."
        text = f"{said} {getattr(loader, 'left_out', '')}".rstrip() + f"\n\n{table(found, tried)}"
        if (asked.families or asked.schemes) and not asked.write:
            sys.stdout.write(f"{text}\n")
        else:
            put(f"loaders, {name}", "loaders/matrix.py", text, PAGE)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
