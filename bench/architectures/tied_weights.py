"""The tied weights of all models of the installed transformers: `python -m bench.architectures.tied_weights`.

Prints a line for each output head whose weight may be another tensor's, with the model types that have it, and
marks those that `compressor/architectures/heads.py` does not know. Needs torch and transformers; builds no model.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from compressor.architectures.heads import OUTERMOST, is_head
from compressor.architectures.roles import Role, role_of

# Tied, and no heads: layers of one another, and projections that a model shares with itself
_OTHERS = re.compile(
    r"shared_transf|embed_patches|encoder\.language_model|^(encoder\.)?layers|positional_embedding|norm\.weight$"
)


def tied_weights() -> dict[str, set[str]]:
    """The name of each tensor that transformers may tie to another one, numbers as 0, with the model types of the
    classes that say so; without embeddings, biases, and what is named by a whole pattern."""
    found: dict[str, set[str]] = defaultdict(set)
    for kind in _model_classes():
        tied = getattr(kind, "_tied_weights_keys", None)
        for name in tied if isinstance(tied, Mapping) else ():
            plain = re.sub(r"\\([.d])\+?|\(\?!\[0\]\)", lambda hit: {".": ".", "d": "0"}.get(hit[1], ""), name)
            plain = plain.removesuffix("$")
            if plain.endswith("_embed.0"):  # of detectors: the pattern is that of a module
                plain += ".weight"
            heads = plain.endswith(".weight") and not _OTHERS.search(plain)
            if heads and role_of(plain, (2, 2)) not in (Role.EMBEDDING, Role.POSITION, Role.TOKEN):
                found[plain].add(str(kind.config_class.model_type))
    return dict(sorted(found.items()))


def unknown(found: Mapping[str, set[str]]) -> list[str]:
    """Heads that the table has not, or not for one of these models."""
    outermost = {f"{name}.weight": set(types) for name, types in OUTERMOST.items()}
    return [
        f"{name} of {', '.join(sorted(types))}"
        for name, types in found.items()
        if not is_head(name) or types - outermost.get(name, types)
    ]


def _model_classes() -> Iterator[Any]:
    import transformers

    # modules are imported as their classes are asked for
    names = [name for name in dir(transformers) if re.search(r"(For[A-Z][A-Za-z]+|Model|LMHead[A-Za-z]*)$", name)]
    for name in sorted(names):
        try:
            kind = getattr(transformers, name)
            known = kind.config_class is not None
        except (AttributeError, ImportError, RuntimeError):
            continue  # needs a library that is not here
        if known:
            yield kind


def main() -> None:
    warnings.simplefilter("ignore")
    importlib.import_module("transformers").utils.logging.set_verbosity_error()
    found = tied_weights()
    for name, types in found.items():
        print(f"{name}: {', '.join(sorted(types))}")
    for line in unknown(found):
        print(f"not known: {line}")


if __name__ == "__main__":
    main()
