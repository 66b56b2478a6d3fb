"""NumPy and ml_dtypes, imported when first used.

Options come from the methods' dataclasses, and the modules of the methods compute with NumPy; help pages must
not wait for it. (The standard library's LazyLoader loads on the second `import` of a module, so it does not serve.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["ml_dtypes", "np"]

if TYPE_CHECKING:
    import ml_dtypes
    import numpy as np
else:

    class _Deferred:
        """Stands for a module; attributes are kept once found, so that later access is as fast as a module's."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            value = getattr(importlib.import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    np = _Deferred("numpy")
    ml_dtypes = _Deferred("ml_dtypes")
