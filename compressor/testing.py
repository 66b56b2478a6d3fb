"""The laws that every method obeys, for those of other packages too; needs nothing but NumPy.

    import pytest
    from compressor.testing import FLOATS, check_method

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_laws(dtype):
        check_method(MyMethod(bits=3), dtype)

A method is run as the engine runs it: surveys first, then block by block with one workspace, parts in buffers
full of garbage. The laws: decoding gives what encoding promised; how rows are cut into blocks and what memory
held before do not matter; the same again gives the same; errors are within the declared bound; zeros stay exactly
zero where the method says so; scales are positive and finite; what is finite stays finite.
"""

from __future__ import annotations

from compressor.methods.laws import FLOATS, LAWS, Outcome, check_laws, check_method, edges, random_bits, run

__all__ = ["FLOATS", "LAWS", "Outcome", "check_laws", "check_method", "edges", "random_bits", "run"]
