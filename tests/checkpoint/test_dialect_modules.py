"""Every dialect is one module, which is asked when a checkpoint is opened."""

from __future__ import annotations

import pkgutil

from compressor.checkpoint import dialects as package
from compressor.checkpoint.dialects import dialects


def test_every_module_is_asked() -> None:
    names = {info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")}
    asked = {module.__name__.rpartition(".")[2] for module in dialects().values()}
    assert asked == names - {"unread"}  # which recognises what no dialect took


def test_every_dialect_provides_what_is_asked_of_it() -> None:
    for name, module in dialects().items():
        assert callable(module.speaks), name
        assert callable(module.stored_tensors), name
        assert hasattr(module, "configure") <= hasattr(module, "METADATA"), name
