"""The packages that addresses need, imported where one is met; said by name where they are missing."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from compressor.core.errors import InputError
from compressor.core.text import printable

# What fsspec takes for a scheme, beside itself
_FOR = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
}
_EXTRA = "pip install 'compressor[remote]'"


def hub(path: str, module: str = "") -> Any:
    """The package huggingface_hub, or a module of it; InputError where it is missing."""
    try:
        return import_module(f"huggingface_hub.{module}" if module else "huggingface_hub")
    except ImportError as error:
        raise _missing(path, "huggingface_hub", _EXTRA) from error


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and what the URL is called in it; InputError where a package is missing or
    nobody knows the scheme."""
    try:
        core = import_module("fsspec.core")
    except ImportError as error:
        raise _missing(url, "fsspec", _EXTRA) from error
    scheme = url.partition("://")[0].lower()
    if _FOR.get(scheme) == "gcsfs":
        # What it does for zonal buckets alone takes gRPC, whose threads no worker survives that is forked, and a
        # right to ask for a bucket's layout
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        logging = import_module("logging")
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # what fails is said once, by us
    try:
        found: tuple[Any, str] = core.url_to_fs(url)
    except ImportError as error:
        package = _FOR.get(scheme)
        if package is None:
            raise InputError(f"cannot be opened: {printable(str(error), 200)}", file=url) from error
        raise _missing(url, package, f"pip install {package}") from error
    except ValueError as error:
        raise InputError(f"{scheme}:// is an address that nothing here knows", file=url) from error
    except Exception as error:  # some connect at once
        raise InputError(f"cannot be reached ({type(error).__name__})", file=url) from error
    return found


def _missing(path: str, package: str, command: str) -> InputError:
    return InputError(f"takes the package {package}", file=path, remedy=f"Install it with {command}")
