"""Types of models that transformers has and vLLM does not, for the table in `compressor/architectures/loaders.py`:
`python -m bench.loaders.vllm_types SITE_PACKAGES`, where the folder is one that holds a vLLM (it is not imported).

Such are types none of whose classes for a task is in vLLM's registry, or can be run by it as transformers' own code
(which asks that its attention can be exchanged). Printed are those that the table has not. Needs transformers.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from compressor.architectures.loaders import READERS

_GONE = ("_PREVIOUSLY_SUPPORTED_MODELS", "_OOT_SUPPORTED_MODELS")  # of older versions, and of plug-ins


def registered(registry: Path) -> Iterator[str]:
    """The classes that vLLM's registry names."""
    for node in ast.parse(registry.read_text()).body:
        place = (
            node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        )  # the tables are plain or annotated assignments
        if isinstance(place, ast.Name) and place.id.endswith("_MODELS") and place.id not in _GONE:
            table = getattr(node, "value", None)
            for key in table.keys if isinstance(table, ast.Dict) else ():
                if isinstance(key, ast.Constant):
                    yield str(key.value)


def lacking(registry: Path) -> list[str]:
    """Types of transformers that vLLM cannot load."""
    import transformers
    from transformers.models.auto import modeling_auto

    classes: dict[str, set[str]] = defaultdict(set)
    for name, table in vars(modeling_auto).items():
        if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING_NAMES"):
            for kind, named in table.items():
                classes[kind] |= {named} if isinstance(named, str) else set(named)
    known = set(registered(registry))
    return sorted(
        kind
        for kind, named in classes.items()
        if not named & known and not any(_exchangeable(getattr(transformers, one, None)) for one in named)
    )


def _exchangeable(model: object) -> bool:
    asked = (getattr(model, name, None) for name in ("is_backend_compatible", "_can_set_attn_implementation"))
    return any(one is not None and one() for one in asked)


def main() -> None:
    listed = set(READERS["vllm"].lacks)
    registry = Path(sys.argv[1], "vllm", "model_executor", "models", "registry.py")
    print("\n".join(one for one in lacking(registry) if one not in listed))


if __name__ == "__main__":
    main()
