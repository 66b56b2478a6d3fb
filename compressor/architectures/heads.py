"""Output heads: the linear layers whose outputs are scores of a vocabulary, by the names that models give them.

Most share their weight with an embedding. Then the file has it once, under the embedding's name, and the head is a
linear layer all the same to a loader that looks for codes; so a config has to name it among what stays as it is.
"""

from __future__ import annotations

import re

# Regular expressions for the last parts of a module's name
HEADS = (
    "lm_head",
    r"lm_head\.decoder",
    "embed_out",
    r"predictions\.decoder",
    "vocab_projector",
    "generator_lm_head",
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$|^output\.weight$")


def is_head(name: str) -> bool:
    """Whether a tensor of this name is the weight of an output head."""
    return _HEAD.search(name) is not None
