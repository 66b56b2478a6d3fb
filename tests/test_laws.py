"""Every method obeys every law, and none is without laws, documentation or golden bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations as combinations_of
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from support.laws import FLOATS, LAWS, OPTIONS, check_laws, combinations, edges, every_method, fitting, numbers

from compressor.core.floats import largest
from compressor.core.tensor import DTYPES
from compressor.methods.contract import Method
from compressor.methods.options import options_of

ROOT = Path(__file__).parent.parent
COMBINATIONS = dict(combinations())
# Coverage doubles what the others take. What it should see, it sees with these.
COUNTED = ("F32", "BF16")
# Where a dtype may matter: of the others' edges those that are made of its extremes, and one of each usual kind.
EXTREMES = ("largest", "both ends", "tiny", "subnormal", "outlier", "ends in")
USUAL = (
    "zeros among weights",
    "constant",
    "only positive",
    "rows of 32",
    "blocks of 128",
    "one zero",
    "wide",
    "two of four",
    "odd columns",
)


def cases() -> Iterator[Any]:
    """Methods with their options, and dtypes: F32 with everything; every other with every pair of values that two
    options have in one method, not with every combination of them."""
    seen: set[Any] = set()
    for name, method in COMBINATIONS.items():
        said = [(type(method), key, str(value)) for key, value in vars(method).items()]
        for dtype in FLOATS:
            met = {(dtype, *pair) for pair in combinations_of(said, 2)} or {(dtype, name)}
            if dtype == "F32" or not met <= seen:
                yield pytest.param(name, dtype, marks=[] if dtype in COUNTED else [pytest.mark.no_cover])
            seen |= met


def test_there_are_laws() -> None:
    assert len(LAWS) == 7


@pytest.mark.parametrize("key", every_method(), ids="-".join)
def test_method_has_laws_documentation_and_golden_bytes(key: tuple[str, str]) -> None:
    verb, name = key
    assert key in OPTIONS, f"give {key} option combinations in laws.OPTIONS"
    documented = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert re.search(rf"^### `{verb} {name}`$", documented, re.MULTILINE), f"docs/methods.md lacks {verb} {name}"
    assert list((ROOT / "tests" / "golden").glob(f"{verb}-{name}-*")), f"tests/golden lacks {verb}-{name}-*"


@pytest.mark.parametrize("key", every_method(), ids="-".join)
def test_options_and_the_method_itself_are_described(key: tuple[str, str]) -> None:
    method = every_method()[key]
    assert method.__doc__
    assert not method.__doc__.startswith(f"{method.__name__}("), "the dataclass's own signature is no description"
    for name, (_, declared) in options_of(method).items():
        assert declared.help, name


def test_the_table_names_no_method_that_is_gone() -> None:
    assert set(OPTIONS) == set(every_method())


@pytest.mark.parametrize(("name", "dtype"), list(cases()))
def test_laws_hold_on_edge_arrays(name: str, dtype: str) -> None:
    method = COMBINATIONS[name]
    held = [
        check_laws(method, edge, dtype, fitting(method, raw))
        for edge, raw in edges(dtype).items()
        if dtype in COUNTED or edge in USUAL or any(part in edge for part in EXTREMES)
    ]
    # SciPy holds two dtypes only
    least = 7 if dtype in COUNTED else 3
    assert sum(held) >= (0 if method.id == "scipy" and dtype not in ("F32", "F64") else least)


@given(data=st.data())
@settings(max_examples=150)
def test_laws_hold_on_any_finite_bits(data: st.DataObject) -> None:
    """Any bit pattern of any dtype, so that no range of numbers is overlooked."""
    method: Method = data.draw(st.sampled_from(list(COMBINATIONS.values())))
    dtype = data.draw(st.sampled_from(FLOATS))
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.sampled_from([1, 2, 7, 8, 16, 32]))
    storage = np.dtype(DTYPES[dtype].storage)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    raw = np.frombuffer(random.bytes(rows * columns * storage.itemsize), storage).reshape(rows, columns).copy()
    found = numbers(raw, dtype)
    with np.errstate(invalid="ignore"):
        wild = ~(np.abs(found) <= largest(dtype) / (4 if method.id == "int" else 1))
    raw[wild] = 0
    check_laws(method, "bits", dtype, fitting(method, raw))
