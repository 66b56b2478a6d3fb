"""Half-quadratic quantization: scales and zero points under which a few weights may be far off, if most are near.

What is minimised is not the squared error but φ(u − f·c) + β/2·‖u − f·c − e‖² over the factor, the zero point and
auxiliary errors e, where φ is the l_p norm with p = 0.7 (Badri and Shaji, "Half-Quadratic Quantization of Large
Machine Learning Models", 2023). In turns:

    e = sign(r)·max(|r| − |r|^(p−1)/β, 0),   r = u − f·c
    f, z = the best for u − e:  symmetric f = Σc(u − e)/Σc²;  asymmetric z = round(mean(q − (u − e)/f)), then f

with β growing by a hundredth each turn. The errors are counted in units of the group's absmax scale, so nothing
depends on the scale of the weights. Each group keeps the turn in which Σ|r|^p was least; zero points are whole, as
the layouts store them, so that pruned weights stay zero.
"""

from __future__ import annotations

from compressor.core.elementary import power_into
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block
from compressor.methods.numerics import scales
from compressor.methods.numerics.scales import Chosen
from compressor.methods.quantize.int.group_units import Units
from compressor.methods.quantize.int.ways.contract import Grid
from compressor.methods.quantize.int.ways.search import choose as choose_searched

_P, _BETA, _GROWTH, _TURNS = 0.7, 10.0, 1.01, 20


class HalfQuadratic(Units):
    """Half-quadratic descent over the groups that a `Units` holds."""

    def run(self) -> tuple[Array, Array | None]:
        """Stored scales [groups] and unsigned zero points."""
        factor, zero = np.ones(len(self.units)), self.first_zero
        best_factor, best_zero = factor.copy(), None if zero is None else zero.copy()
        least = np.full(len(self.units), np.inf)
        beta = _BETA
        for _ in range(_TURNS):
            lost, codes, target = self._shrunk(factor, zero, beta)
            better = lost < least
            least[better], best_factor[better] = lost[better], factor[better]
            if best_zero is not None and zero is not None:
                best_zero[better] = zero[better]
            if zero is not None:  # mean(q − (u − e)/f), where q = c + z
                mean = (self._sum(codes) - self._sum(target) / factor) / self.units.shape[1]
                zero = np.minimum(np.maximum(np.rint(zero + mean), 0), self.rule.steps)
                codes = self.ratio(self.units, factor)
                self.clip(codes, codes, zero)
            cc = self.dot(codes, codes)
            factor = np.where(cc > 0, self.dot(codes, target) / cc, factor)
            _, factor = self.settle(factor, zero, ...)
            beta *= _GROWTH
        return self.settle(best_factor, best_zero, ...)[0], best_zero

    def _shrunk(self, factor: Array, zero: Array | None, beta: float) -> tuple[Array, Array, Array]:
        """Σ|r|^p of each group, its codes, and its weights less the errors that are let be."""
        units, work = self.units, self.work
        codes = self.ratio(units, factor)
        self.clip(codes, codes, zero)
        apart = work.array("hqq.apart", units.shape, units.dtype.str)
        scales.apply(np.multiply, codes, self.column(factor), apart)
        np.subtract(units, apart, out=apart)
        size = np.abs(apart, out=work.array("hqq.size", units.shape, units.dtype.str))
        np.maximum(size, self.kind(1e-6), out=size)  # 0 has no negative power
        power = power_into(size, _P - 1, work.array("hqq.power", units.shape, units.dtype.str))
        lost = self.dot(power, size)
        np.multiply(power, self.kind(-1 / beta), out=power)
        np.add(size, power, out=size)
        np.maximum(size, 0, out=size)
        np.copysign(size, apart, out=size)
        return lost, codes, np.subtract(units, size, out=size)

    def _sum(self, numbers: Array) -> Array:
        total: Array = np.add.reduce(numbers, axis=1, dtype=np.float64)
        return total


def choose(grouped: Array, block: Block, grid: Grid, scratch: Array) -> Chosen:
    """Scales and zero points [rows, groups] of half-quadratic descent."""
    return choose_searched(grouped, block, grid, scratch, search=HalfQuadratic)
