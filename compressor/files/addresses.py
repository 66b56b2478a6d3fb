"""What a path is by its looks: an address to fetch from, a repository of the hub, or a place on a disk."""

from __future__ import annotations

import os
import re

from compressor.core.errors import UsageError
from compressor.core.text import printable, without_secrets

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,250}}))?")


def is_address(path: str) -> bool:
    """Whether the path begins with a scheme, as `s3://` or `https://`."""
    return _ADDRESS.match(path) is not None


def is_repository(path: str) -> bool:
    """Whether the path could be `org/name` or `org/name@revision`, a repository of the hub."""
    found = REPOSITORY.fullmatch(path)
    return found is not None and "--" not in path and ".." not in path


def absolute(path: str) -> str:
    """The path from the root on; an address as it is."""
    return path if is_address(path) else os.path.abspath(path)


def from_the_root(path: str) -> str:
    """The path from the root on, as a process elsewhere needs it; what is on no disk as it is. UsageError for an
    address that holds what may be a secret."""
    if is_address(path) and without_secrets(path) != path:
        raise UsageError(
            f"{printable(path)}: its address holds a secret, which is sent to no other machine",
            remedy="Leave --scheduler out",
        )
    if is_address(path) or (is_repository(path) and not os.path.lexists(path)):
        return path
    return os.path.abspath(path)
