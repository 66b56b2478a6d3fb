"""Builds the compiled kernels into the package, where a C compiler is at hand; without one the package is pure."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).parent / "compressor" / "core" / "kernels"
# No contraction: a product and a sum are rounded one after the other, as NumPy does.
FLAGS = ["-O3", "-std=c11", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


def platform_of(library: Path) -> str:
    """The platform of a wheel with this library: of glibc, which versions of its symbols say how old it may be, the
    oldest that takes them (PEP 600)."""
    found = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    needed = [tuple(map(int, one)) for one in re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes())]
    if not found.startswith("linux_") or not needed:
        return found
    return "manylinux_{}_{}_{}".format(*max((2, 17), *needed), found.removeprefix("linux_"))


class Kernels(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the C files with `$CC`, or `cc`. No flag names a processor: what some have that others lack is in
    versions of functions, of which one is chosen at run time (`target_clones` and the like in the C files)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or platform.system() not in ("Linux", "Darwin"):
            return
        library = FOLDER / "_kernels.so"
        number = re.search(r"^VERSION = (\d+)", (FOLDER / "__init__.py").read_text(), re.MULTILINE)
        if number is None:
            raise RuntimeError("the kernels have no version")
        built = library.with_suffix(f".{os.getpid()}")  # who has the old one open keeps it
        command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, f"-DKERNELS_VERSION={number[1]}"]
        try:
            subprocess.run(
                [*command, "-o", built, *sorted(FOLDER.glob("*.c"))], check=True, capture_output=True, text=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            library.unlink(missing_ok=True)
            reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
            self.app.display_warning(f"no compiled kernels, everything works but more slowly: {reason}")
            return
        built.replace(library)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_of(library)}"
