"""Logarithms and powers from the four operations alone, so that every processor gives the same bits.

What a processor's vector instructions or its C library give for these differs in the last place from one to the
next (NumPy's with and without AVX-512, glibc's with and without fused multiply-add). Here every step is an IEEE
operation, which has one right answer. The error is a few units in the last place of float64.
"""

from __future__ import annotations

from functools import cache
from math import factorial

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array

LN2 = 0.6931471805599453
_ROOT_HALF = 0.7071067811865476
_ODD = tuple(2 / (2 * n + 1) / LN2 for n in range(12))  # log2 m = Σ odd · s^(2n+1), s = (m − 1)/(m + 1)
_EXP = tuple(1 / factorial(n) for n in range(14))


def log2(numbers: Array | float) -> Array:
    """The binary logarithm of positive finite numbers, float64; exact for powers of two."""
    numbers = np.asarray(numbers, np.float64)
    fast = kernels.logarithms(numbers, _odd())
    if fast is not None:
        return fast
    mantissa, exponent = np.frexp(numbers)
    low = mantissa < _ROOT_HALF
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    share = (mantissa - 1) / (mantissa + 1)
    found: Array = exponent + share * _horner(_ODD, share * share)
    return found


def exp2(numbers: Array | float) -> Array:
    """2^x of finite numbers, float64; exact for whole ones, 0 or infinite beyond the range."""
    numbers = np.clip(np.asarray(numbers, np.float64), -1100, 1100)
    whole = np.rint(numbers)
    with np.errstate(over="ignore", under="ignore"):
        found: Array = np.ldexp(_horner(_EXP, (numbers - whole) * LN2), whole.astype(np.int32))
    return found


def power(base: Array | float, exponent: float) -> Array:
    """base^exponent of positive finite numbers, float64."""
    return exp2(exponent * log2(base))


def power_into(base: Array, exponent: float, out: Array) -> Array:
    """base^exponent of positive normal floats into `out` of their type, float32 ones good to 2^-33 before it."""
    if base.dtype != np.float32:
        np.copyto(out, power(base, exponent))
        return out
    table, terms = _prepared(exponent)
    if kernels.powers(base, table, terms, out):
        return out
    bits = base.view(np.uint32)
    near = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    apart = (base - near) / near
    series = terms[3] * apart
    for term in terms[2::-1]:
        series = (series + term) * apart
    np.copyto(out, (series + 1) * table[bits >> np.uint32(16)], casting="same_kind")
    return out


def _horner(terms: tuple[float, ...], x: Array) -> Array:
    """Σ terms[n] · x^n."""
    found = np.full_like(x, terms[-1])
    for term in terms[-2::-1]:
        found *= x
        found += term
    return found


@cache
def _odd() -> Array:
    return np.array(_ODD)


@cache
def _prepared(exponent: float) -> tuple[Array, Array]:
    """Powers of all positive normal float32 of 16 significant bits, by their pattern, float64 [2^15]; and the four
    terms of (1 + d)^exponent after the 1."""
    numbers = (np.arange(1 << 15, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    table = power(np.where(np.isfinite(numbers) & (numbers > 0), numbers, 1), exponent)
    terms = [exponent]
    for n in range(2, 5):
        terms.append(terms[-1] * (exponent - n + 1) / n)
    return table, np.array(terms)
