"""The one function that makes a foreign string safe to show, and sizes as people write them.

Tensor names, file names and dtype fields come from strangers. Terminals obey control characters, ESC
sequences, C1 codes and bidirectional overrides; a newline can forge a line of a log.
"""

from __future__ import annotations

import re
import unicodedata

# Cc control, Cf format (bidi overrides, zero-width), Cs surrogate, Co private, Cn unassigned, Zl/Zp separators
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}

_URL = re.compile(
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#\s]*@)?(?P<place>[^?#\s]*)(?:\?[^#\s]*)?(?:#\S*)?"
)

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{p}b": 1000**n for n, p in enumerate("kmgt", 1)} | {f"{p}ib": 1024**n for n, p in enumerate("kmgt", 1)}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([A-Za-z]{0,3})")


def printable(text: str, limit: int = 300) -> str:
    """Return `text` with everything that a terminal could obey written as an escape.

    Longer texts keep their beginning and end around an ellipsis, at most `limit` characters in all; URLs lose
    what may be a secret.
    """
    if "://" in text:
        text = without_secrets(text)
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    head = _escaped(text[:limit])
    if len(text) <= limit and len(head) <= limit:
        return head
    kept = limit * 2 // 3
    return f"{head[:kept]}…{_escaped(text[-limit:])[kept - limit + 1 :]}"


def without_secrets(text: str) -> str:
    """The text with every URL in it without user, password, query and fragment: queries may be signed."""
    return _URL.sub(lambda found: f"{found['scheme']}{found['place']}", text)


def _escaped(text: str) -> str:
    return "".join(
        c if unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode("ascii") for c in text
    )


def size_text(nbytes: float) -> str:
    """Bytes in the unit that keeps three or four figures: `1.07 MB`, powers of ten as disks are sold."""
    units = ["B", "kB", "MB", "GB", "TB"]
    unit = units.pop(0)
    while abs(nbytes) >= 999.5 and units:
        nbytes /= 1000
        unit = units.pop(0)
    return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:#.3g} {unit}".replace(". ", " ")


def size_of(text: str) -> int | None:
    """The bytes that `300MB` or `1.5GiB` means; None where it is no size."""
    found = _SIZE.fullmatch(text)
    if found is None or found[2].lower() not in _UNITS:
        return None
    return int(float(found[1]) * _UNITS[found[2].lower()])
