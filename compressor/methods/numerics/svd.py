"""Truncated singular value decompositions of one matrix, in float64.

Three ways to the leading r singular triples of W [m, n], each with its error:

* LAPACK's (`gesdd`), for float64 weights: singular values to 1e-16 of the largest one;
* the eigenvectors of the smaller Gram matrix, WWᵀ or WᵀW, for weights that came from float32 or less: these lose
  what is below 1e-8 of the largest singular value, and float32 itself holds no more than 6e-8 of it;
* randomised subspace iteration (Halko, Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4), 3 rounds with a
  quarter more vectors than asked for, where r is so small that it takes half the time (`faster`). Its Frobenius
  error is above the optimum's by less than 1 % even where singular values hardly fall (a random matrix), by less
  than 0.3 % where they fall as 1/√k or faster; these were the largest of what was measured.

`gram` [n, n], the mean of x xᵀ over a layer's inputs, weighs the error: ‖(W − W')·gram^½‖ is minimised. The best W'
of rank r is then U Uᵀ W with the leading left singular vectors U of W·gram^½, for which neither the root nor an
inverse is needed: U are the leading eigenvectors of W·gram·Wᵀ. A gram of any rank will do.
"""

from __future__ import annotations

from hashlib import blake2b

from compressor.core.lazy import np
from compressor.core.workspace import Array

_ROUNDS = 3
_PANEL = 1024  # rows or columns that are widened to float64 at a time
_NOISE = 2.0**-44  # entries of a vector this small beside its largest, where float32 is all that went in
_TIE = 1 - 1e-6  # entries of a vector this near to its largest count as equal to it


def faster(rows: int, columns: int, rank: int) -> bool:
    """Whether subspace iteration takes less than half the time of the exact way, by what was measured."""
    short, long = sorted((rows, columns))
    return short >= 512 and 160 * long * _width(rank) < short * (long + 25 * short)


def scaled(matrix: Array) -> tuple[Array, int]:
    """The matrix with numbers below 1 by a power of two, and its exponent, so that no square leaves the range."""
    exponent = int(np.frexp(np.max(np.abs(matrix)))[1]) if matrix.size else 0
    return np.ldexp(matrix, -exponent), exponent


def spectrum(matrix: Array, gram: Array | None = None, *, wide: bool = False) -> Array:
    """The singular values of a matrix [m, n], or those of `matrix · gram^½`, descending; `wide`: not by way of the
    Gram matrix."""
    if gram is None and wide:
        found: Array = np.linalg.svd(matrix, compute_uv=False)
        return found
    core, _ = _core(matrix, gram)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(core)[::-1], 0))


def factors(
    matrix: Array, rank: int, gram: Array | None = None, *, wide: bool = False, seed: bytes | None = None
) -> tuple[Array, Array]:
    """The best `left` [m, rank] and `right` [rank, n]; float64, of like magnitude, their signs settled.

    With a `seed` by subspace iteration, from vectors that it draws; else exactly.
    """
    if seed is not None:
        left, right = _iterated(matrix, rank, gram, seed, wide=wide)
    elif gram is None and wide:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        left, right = left[:, :rank], right[:rank] * values[:rank, None]
    else:
        core, basis = _core(matrix, gram)
        vectors = np.linalg.eigh(core)[1][:, : -rank - 1 : -1]
        if basis is not None:
            left = basis @ vectors
            right = _times(left.T, matrix)
        elif matrix.shape[0] <= matrix.shape[1]:
            left, right = vectors, _times(vectors.T, matrix)
        else:
            left, right = _times(matrix, vectors), vectors.T
    return _balanced(left, right, wide=wide)


def _core(matrix: Array, gram: Array | None) -> tuple[Array, Array | None]:
    """The symmetric matrix whose eigenvalues are the squared singular values; and where its eigenvectors are not
    yet singular vectors, the basis that makes left ones of them."""
    rows, columns = matrix.shape
    if gram is None:
        core = np.zeros((min(rows, columns),) * 2)
        for start in range(0, max(rows, columns), _PANEL):
            held = slice(start, start + _PANEL)
            panel = (matrix[:, held] if rows <= columns else matrix[held].T).astype(np.float64)
            core += panel @ panel.T
        return core, None
    basis, inner = None, matrix.astype(np.float64)
    if rows > columns:
        basis, inner = np.linalg.qr(inner)
    core = inner @ gram @ inner.T
    return (core + core.T) / 2, basis


def _iterated(matrix: Array, rank: int, gram: Array | None, seed: bytes, *, wide: bool) -> tuple[Array, Array]:
    rows, columns = matrix.shape
    width = min(_width(rank), rows, columns)
    basis = _orthonormal(_times(matrix, _drawn((columns, width), seed)))
    for _ in range(_ROUNDS):
        across = _times(basis.T, matrix).T
        across = _orthonormal(across) if gram is None else gram @ across
        basis = _orthonormal(_times(matrix, across))
    inner = _times(basis.T, matrix)
    if gram is None and wide:
        left, values, right = np.linalg.svd(inner, full_matrices=False)
        return basis @ left[:, :rank], right[:rank] * values[:rank, None]
    core = inner @ inner.T if gram is None else inner @ gram @ inner.T
    vectors = np.linalg.eigh((core + core.T) / 2)[1][:, : -rank - 1 : -1]
    return basis @ vectors, vectors.T @ inner


def _width(rank: int) -> int:
    """Vectors that are iterated for so many that are wanted."""
    return rank + max(16, rank // 4)


def _orthonormal(vectors: Array) -> Array:
    found: Array = np.linalg.qr(vectors)[0]
    return found


def _drawn(shape: tuple[int, int], seed: bytes) -> Array:
    """Uniform in [−1, 1), from a stream (Philox) whose numbers are the same whatever the version or machine."""
    stream = np.random.Philox(key=int.from_bytes(blake2b(seed, digest_size=16).digest(), "little"))
    found: Array = (stream.random_raw(shape[0] * shape[1]) >> np.uint64(11)).reshape(shape) * 2.0**-52 - 1
    return found


def _times(one: Array, other: Array) -> Array:
    """The product in float64; whichever of them is not yet that is widened by panels of its longer side."""
    if one.dtype == other.dtype == np.float64:
        product: Array = one @ other
        return product
    if one.dtype != np.float64:
        out = np.empty((one.shape[0], other.shape[1]))
        for start in range(0, one.shape[0], _PANEL):
            held = slice(start, start + _PANEL)
            np.matmul(one[held].astype(np.float64), other, out=out[held])
        return out
    out = np.empty((one.shape[0], other.shape[1]))
    for start in range(0, other.shape[1], _PANEL):
        held = slice(start, start + _PANEL)
        out[:, held] = one @ other[:, held].astype(np.float64)
    return out


def _balanced(left: Array, right: Array, *, wide: bool) -> tuple[Array, Array]:
    """Both of the norm √σ each but for a power of two, so that neither overflows where the weights do not; the
    largest entry of each column of `left` positive. What is rounding noise (of a row of zeros, say) is zero, so
    that bytes do not depend on how a processor adds up."""
    if not wide:
        left = np.where(np.abs(left) < np.max(np.abs(left), axis=0) * _NOISE, 0, left)
        right = np.where(np.abs(right) < np.max(np.abs(right), axis=1, keepdims=True) * _NOISE, 0, right)
    places = np.argmax(np.abs(left) >= np.max(np.abs(left), axis=0) * _TIE, axis=0)
    signs = np.where(np.take_along_axis(left, places[None], 0)[0] < 0, -1.0, 1.0)
    norms = [np.sqrt(np.einsum("ij,ij->j", side, side)) for side in (left, right.T)]
    ratio = np.where((norms[0] > 0) & (norms[1] > 0), norms[1], 1) / np.where(norms[0] > 0, norms[0], 1)
    steps = np.round(np.log2(ratio) / 2).astype(np.int32)
    return np.ldexp(left * signs, steps), np.ldexp(right * signs[:, None], -steps[:, None])
