"""JSON documents that say what their own content is known by, so that a figure that was changed is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

_KEY = "content"


def sealed(said: Mapping[str, Any]) -> bytes:
    """The document, in ASCII, with the SHA-256 of all that it says at its end."""
    text = _text(said)
    return _text({**said, _KEY: sha256(text).hexdigest()})


def is_as_sealed(found: Mapping[str, Any]) -> bool:
    """Whether a document that was read says what it said when it was written."""
    rest = {key: value for key, value in found.items() if key != _KEY}
    try:
        return bool(found.get(_KEY) == sha256(_text(rest)).hexdigest())
    except ValueError:  # NaN, which none has
        return False


def _text(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
