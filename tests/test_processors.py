"""The same bytes as if on other processors: with other kernels of OpenBLAS, without vector instructions of NumPy's
and of the C library's, without our own kernels. Each is a process, for all of this is chosen when one starts."""

from __future__ import annotations

import ast
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from golden import make_golden
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from support import outputs

ROOT = Path(__file__).parent.parent
# Instructions that OpenBLAS's kernels for a processor use without asking whether they are there
NEEDS = {"Prescott": "SSE3", "Haswell": "AVX2", "Zen": "AVX2", "SkylakeX": "AVX512F"}
# NumPy's names of what a dispatched loop may use, in its versions up to 2.3 and since
AVX512 = ("AVX512", "X86_V4")
AVX2 = (*AVX512, "AVX2", "FMA3", "X86_V3")


VARIABLES = ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "GLIBC_TUNABLES", "COMPRESSOR_KERNELS")


def without(*names: str) -> dict[str, str]:
    """NumPy's loops without those for such instructions, of which it may be told only what this processor has."""
    there = [name for name in __cpu_dispatch__ if __cpu_features__.get(name) and name.startswith(names)]
    return {"NPY_DISABLE_CPU_FEATURES": " ".join(there)}


GOLDEN, WIDE = ("golden",), ("golden", "wide")
# What is set before the process starts, and what is compared
ENVIRONMENTS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "Prescott": ({"OPENBLAS_CORETYPE": "Prescott"}, WIDE),
    "Haswell": ({"OPENBLAS_CORETYPE": "Haswell"}, GOLDEN),
    "SkylakeX": ({"OPENBLAS_CORETYPE": "SkylakeX"}, WIDE),
    "Zen": ({"OPENBLAS_CORETYPE": "Zen"}, GOLDEN),
    "no AVX-512": (without(*AVX512), GOLDEN),
    "no AVX2": (without(*AVX2), GOLDEN),
    "nothing but NumPy's baseline": (without(""), WIDE),
    "an old C library": ({"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX512F"}, WIDE),
    "no kernels": ({"COMPRESSOR_KERNELS": "0"}, WIDE),
}


@cache
def here() -> dict[str, Any]:
    return outputs.everything(["wide"])


def there(variables: Mapping[str, str], kinds: tuple[str, ...]) -> dict[str, Any]:
    """What a process with these variables writes."""
    own = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    own |= {"PYTHONPATH": str(ROOT / "tests"), **variables}
    command = [sys.executable, "-W", "ignore", "-m", "support.outputs", *kinds]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


@pytest.mark.processors
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_bytes_are_the_same(environment: str) -> None:
    variables, kinds = ENVIRONMENTS[environment]
    needed = NEEDS.get(environment)
    if needed is not None and not __cpu_features__.get(needed):
        pytest.skip(f"this processor has no {needed}, which OpenBLAS's kernels for {environment} would run into")
    found = there(variables, kinds)
    _check_it_was_so(variables, found["processor"])
    exact = [name for name in make_golden.CASES if not make_golden.needs_linear_algebra(name)]
    golden = {name: sha256((make_golden.HERE / name).read_bytes()).hexdigest() for name in exact}
    assert differing(golden, {name: found["golden"][name] for name in exact}) == []
    for kind in ("methods", "runs") if kinds == WIDE else ():
        assert differing(here()[kind], found[kind]) == [], kind


def _check_it_was_so(asked: Mapping[str, str], processor: Mapping[str, Any]) -> None:
    """That the variables did what they are for."""
    core = asked.get("OPENBLAS_CORETYPE")
    if core in ("Prescott", "Haswell", "SkylakeX") and platform.machine() == "x86_64" and processor["cores"]:
        assert {"Prescott": "Katmai"}.get(core, core) in processor[
            "cores"
        ]  # NumPy's wheels have no kernels for Zen
    assert not set(asked.get("NPY_DISABLE_CPU_FEATURES", "").split()) & set(processor["features"])
    if asked.get("COMPRESSOR_KERNELS") == "0":
        assert not processor["kernels"]


# ---- the rule, in the text of the package ----------------------------------------------------------------

# Modules of linear algebra: what they make is within a tolerance only, or decides no byte.
FREE = {
    "calibration",  # statistics are made by running networks
    "networks",  # trainings
    "core/layer_inputs.py",  # grams
    "methods/distill",  # but for those in STRICT
    "methods/prune/alps.py",
    "methods/numerics/hessian.py",
    "methods/numerics/masked_least_squares.py",
    "methods/numerics/svd.py",
    "methods/unlisted/alternating.py",
    "methods/unlisted/refit_codes.py",
    "files/entropy/account.py",  # what `inspect --coding` tells
    "methods/numerics/awq_search.py",
    "workflows/awq.py",
    "workflows/budget/survey.py",  # by grams
}
STRICT = {f"methods/distill/{name}.py" for name in ("blend", "reweight", "_differences", "_delta_signs")}
MODULES = ("np", "math")
BY_PROCESSOR = {
    *("dot", "vdot", "vecdot", "matvec", "vecmat", "inner", "outer", "matmul", "einsum", "tensordot", "linalg"),
    *("log", "log2", "log10", "log1p", "exp", "exp2", "expm1", "power", "float_power", "cbrt", "interp", "polyval"),
    *(
        "sin",
        "cos",
        "tan",
        "tanh",
        "sinh",
        "cosh",
        "arctan",
        "arctan2",
        "arctanh",
        "hypot",
        "logaddexp",
        "longdouble",
    ),
    *("correlate", "convolve", "cov", "corrcoef", "average"),
}


def calls_by_processor(tree: ast.AST) -> list[int]:
    """Lines with a product of matrices, or with a function of NumPy's or the C library's that no two processors
    need to agree on."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            found.append(node.lineno)
        if (
            isinstance(node, ast.Attribute)
            and node.attr in BY_PROCESSOR
            and ast.unparse(node.value) in ("np", "math")
        ):
            found.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "math":
            found += [node.lineno] * bool({alias.name for alias in node.names} & (BY_PROCESSOR | {"pow"}))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not _exact_power(node):
            found.append(node.lineno)
    return found


def _exact_power(node: ast.BinOp) -> bool:
    """A square, or a whole power of a number that the code names: of two, or of ten as float32."""
    base, exponent = node.left, node.right
    if isinstance(exponent, ast.Constant) and (exponent.value == 2 or isinstance(exponent.value, int)):
        return exponent.value == 2 or isinstance(base, ast.Constant)
    return isinstance(base, ast.Constant) and not (
        isinstance(exponent, ast.BinOp) and isinstance(exponent.op, ast.Div)
    )


def test_nothing_that_decides_bytes_asks_the_processor() -> None:
    package = ROOT / "compressor"
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        if place not in STRICT and any(place == free or place.startswith(f"{free}/") for free in FREE):
            continue
        found += [f"{place}:{line}" for line in calls_by_processor(ast.parse(path.read_text(encoding="utf-8")))]
    told = [place.partition(":")[0] for place in found if not place.startswith("methods/laws.py")]  # for tests
    shown = ["reports/curve.py", *["reports/html/bars.py"] * 2]
    assert told == ["core/metrics.py", *shown], found  # logarithms of figures that are only told


def test_the_rule_sees_what_it_is_for() -> None:
    for line in (
        "a @ b",
        "np.log2(x)",
        "np.linalg.svd(x)",
        "from math import exp",
        "math.log(x)",
        "x ** 0.3",
        "2 ** (k / 8)",
    ):
        assert calls_by_processor(ast.parse(line)), line
    for line in ("np.sqrt(x)", "x**2", "2.0**-8", "np.add.reduce(x)", "log2(x)"):
        assert not calls_by_processor(ast.parse(line)), line
