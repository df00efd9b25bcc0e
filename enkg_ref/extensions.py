"""What the paper does not have: wrappers that compose around the callables of ``enkg.EnKG``, none of them on unless
asked for. `presets.plan`, which serves users, composes `survivors(guarded(correct))` and `finite(denoise)`.

    correct -> correct      survivors (failed members), guarded (collapse to rounding), lowrank (the same without J x J)
    Denoise -> Denoise      finite (names the first bad row)
    Forward -> Forward      plausible (a row that blew up without becoming infinite has failed)
    EnKG -> EnKG            StopWhenFitted (discrepancy principle), TemperedEnKG (a step that knows the noise level)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ._xp import array_namespace, finite_rows, like, member_normals, put_rows, take_rows, to_numpy
from .enkg import EnKG, Info, State
from .ensemble import Correction, anomalies, ensemble_mean
from .likelihood import predictions


# ------------------------------------------------------------------------------------------------ around the correction
def survivors(correct, failed="shift"):
    """``correct`` for the rows whose predictions are finite; the others enter no mean and no product.

    failed : "shift", failed members move by the mean displacement of the others; "keep", they stay (they lag behind at
        large guidance); "raise", FloatingPointError for the first one. Fewer than two finite rows always raise it.
    """
    if failed not in ("shift", "keep", "raise"):
        raise ValueError(f"failed: got {failed!r}, expected 'shift', 'keep' or 'raise'")

    def corrected(x, y_pred, residual, step_size):
        finite = finite_rows(y_pred)
        J, alive = len(finite), np.flatnonzero(finite)
        if len(alive) == J:
            return correct(x, y_pred, residual, step_size)
        if failed == "raise":
            raise FloatingPointError(f"forward: row {int(np.argmin(finite))} is not finite, expected finite numbers")
        if len(alive) < 2:
            raise FloatingPointError(f"forward: {len(alive)} of {J} rows are finite, expected at least 2")
        old = take_rows(x, alive)
        new, record = correct(old, take_rows(y_pred, alive), residual, step_size)
        if failed == "shift":
            x = x + array_namespace(x).mean(new - old, axis=0, keepdims=True)
        return put_rows(x, alive, new), record

    return corrected


def guarded(correct, multiple=64.0):
    """``correct`` with the step 0 where ||K||_F is rounding error, or the step rule gives no positive step.

    K = sum_a R_a B_a'/J over the observations a, and rounding leaves an error of eps ||G_a|| in the anomalies
    B_a = G_a - mean; below ``multiple`` times eps sum_a ||R_a|| ||G_a|| / J the ensemble has collapsed in observation
    space. 0: only an exact zero is skipped, as the paper would have to. The trace rule has no step where tr K is not
    positive, which a phase can bring about. Raises FloatingPointError where ||K||_F is not finite.
    """
    def corrected(x, y_pred, residual, step_size):
        xp = array_namespace(x, y_pred)
        G = xp.reshape(y_pred, (y_pred.shape[0], -1))
        R = residual(G)
        columns = xp.sqrt(xp.sum(R * R, axis=0)) * xp.sqrt(xp.sum(G * G, axis=0))
        floor = multiple * float(xp.finfo(G.dtype).eps) * xp.sum(columns) / G.shape[0]

        def safe(norm, K_trace):
            live = norm > floor
            with np.errstate(divide="ignore", invalid="ignore"):  # the trace rule divides by what may be zero
                w = step_size(xp.where(live, norm, xp.ones_like(norm)), K_trace)
            return xp.where(live & (w > 0.0) & xp.isfinite(w), w, xp.zeros_like(w))

        x_new, record = correct(x, y_pred, lambda g: R, safe)
        if not math.isfinite(float(record.norm)):
            raise FloatingPointError(f"update: ||K||_F = {float(record.norm)}, expected a finite number")
        return x_new, record

    return corrected


def lowrank(x, y_pred, residual, step_size):
    """(T6b) ``ensemble.correct`` without the J x J matrix: X <- X - w R C_yx, C_yx = B'Z/J.  Time J m (m + d).

    ||K||_F^2 = ||(P R) B'||_F^2 / J^2 + ||B rbar||^2 / J (T13), P R = R - rbar: two sums of squares, no cancellation.
    The cheaper form where J > 2 m; arguments and result as for ``ensemble.correct``.
    """
    xp = array_namespace(x, y_pred)
    J = x.shape[0]
    X, G = xp.reshape(x, (J, -1)), xp.reshape(y_pred, (J, -1))
    R, B, Z = residual(G), anomalies(G), anomalies(X)
    Bt, r_mean, PR = xp.matrix_transpose(B), ensemble_mean(R), anomalies(R)
    squares = xp.sum(xp.matmul(xp.matrix_transpose(PR), PR) * xp.matmul(Bt, B)) / J
    squares = squares + xp.sum(xp.matmul(B, xp.matrix_transpose(r_mean)) ** 2.0)
    norm = xp.sqrt(xp.where(squares > 0.0, squares, xp.zeros_like(squares)) / J)  # rounding may leave -1e-30
    K_trace = xp.sum(R * B) / J
    w = step_size(norm, K_trace)
    X = X - w * xp.matmul(R, xp.matmul(Bt, Z) / J)
    return xp.reshape(X, x.shape), Correction(w, norm, K_trace)


# --------------------------------------------------------------------------------------- around denoiser, forward model
def finite(denoise):
    """``denoise``, with a FloatingPointError that names the first row of its output that is not finite."""
    def denoised(x, sigma):
        out = denoise(x, sigma)
        rows = finite_rows(out)
        if not rows.all():
            raise FloatingPointError(f"denoise: row {int(np.argmin(rows))} is not finite at sigma = {sigma:.4g}, "
                                     "expected finite numbers")
        return out

    return denoised


ABSURD = 1e4  # a row with this many times the median misfit of its wave is a failed evaluation


def plausible(forward, likelihood, absurd=ABSURD):
    """``forward`` whose rows with over ``absurd`` times the median misfit of their wave become NaN: failed members.

    A simulation can blow up without becoming infinite: one row of 1e30 alone would decide ||K||_F and freeze the
    others. Half of the rows always stay.
    """
    def predicted(x):
        y_pred = predictions(forward(x), x, likelihood)
        with np.errstate(over="ignore", invalid="ignore"):
            misfit = to_numpy(likelihood.misfit(y_pred)).astype(np.float64)
        misfit[~finite_rows(y_pred)] = np.nan
        if not np.isfinite(misfit).any():
            return y_pred
        typical = np.median(misfit[np.isfinite(misfit)])
        lost = np.flatnonzero(~(misfit <= absurd * max(typical, likelihood.size)) & ~np.isnan(misfit))
        return put_rows(y_pred, lost, take_rows(y_pred, lost) * math.nan) if len(lost) else y_pred

    return predicted


# ---------------------------------------------------------------------------------------------------- around the method
def mean_discrepancy(misfit_of_mean, misfit_of_particles, m):
    """Stop the updates of a level when the ensemble mean fits the data to noise level: ||ebar||_Gamma^2 <= m."""
    return misfit_of_mean <= m


def particle_discrepancy(misfit_of_mean, misfit_of_particles, m):
    """Stop when the particles do on average: (1/J) sum ||e_j||_Gamma^2 = ||ebar||_Gamma^2 + tau <= m; stops later."""
    return misfit_of_particles <= m


@dataclass(frozen=True)
class StopWhenFitted:
    """``method`` that goes on to the next level, without a correction, where the data are fitted (discrepancy).

    fitted : (misfit of the mean, mean misfit of the particles, m) -> bool, one of the two rules above
    """

    method: EnKG
    fitted: Callable

    def init(self, noise):
        return self.method.init(noise)

    def ask(self, state):
        return self.method.ask(state)

    def done(self, state):
        return self.method.done(state)

    def tell(self, state, y_pred):
        """As ``EnKG.tell``; ``info.correction`` is None where the updates of the level were ended."""
        m = self.method
        g = predictions(y_pred, state.x, m.likelihood)
        alive = take_rows(g, np.flatnonzero(finite_rows(g)))
        if alive.shape[0] < 2:
            return m.tell(state, y_pred)
        of_mean = float(m.likelihood.misfit(ensemble_mean(alive))[0])
        of_particles = float(array_namespace(g).mean(m.likelihood.misfit(alive)))
        if not self.fitted(of_mean, of_particles, m.likelihood.size):
            return m.tell(state, y_pred)
        i = state.level
        info = Info(i, state.update, m.sigmas[i], m.gamma(i), state.x, g, state.x, None)
        return m.advance(State(state.x, i)), info


@dataclass(frozen=True)
class TemperedEnKG(EnKG):
    """EnKG with a noise-aware tempered step in place of (T5)-(T6). An extension, not in the paper.

    x_j <- x_j + C_xy (C_yy + Gamma/h)^-1 (y + eta_j - g_j),   eta_j ~ N(0, Gamma/h),   h = 1/number of updates

    In the frozen linear-Gaussian limit every update multiplies the density by likelihood^h: sum h = 1 gives the
    exact posterior. eta is drawn on the host from (seed, number of the update, row): a resume repeats it.
    Guidance, step rule and ``correct`` are not used. Failed members move by the mean displacement of the others.
    """

    seed: int = 0

    def tell(self, state, y_pred):
        """As ``EnKG.tell``; no K is formed, so that its norm and trace are not numbers."""
        g, (first, last), U = predictions(y_pred, state.x, self.likelihood), self.window, self.config.updates
        h = 1.0 / (U * (last - first + 1))
        number = U * (state.level - first) + state.update
        eta = like(member_normals(self.seed, 1 + number, g.shape[0], (self.likelihood.size,)), g)

        def correct(x, y_pred, residual, step_size):
            draws = take_rows(eta, np.flatnonzero(finite_rows(g)))
            return self._displaced(x, y_pred, draws, h), Correction(h, math.nan, math.nan)

        plain = EnKG(self.denoise, self.likelihood, self.sigmas, self.window, self.config, survivors(correct))
        return plain.tell(state, g)

    def _displaced(self, x, g, eta, h):
        xp, whiten = array_namespace(x), self.likelihood.whiten
        X = xp.reshape(x, (x.shape[0], -1))
        wanted = eta / math.sqrt(h) - whiten(self.likelihood.difference(g))
        return xp.reshape(X + tempered_gain(wanted, whiten(anomalies(g)), anomalies(X), h), x.shape)


def tempered_gain(v, b, z, h):
    """v (C_bb + I/h)^-1 C_bz row by row, C_bb = b'b/J, C_bz = b'z/J: the gain in whitened observation space.

    v, b : (J, m);  z : (J, d). Solves the smaller of an m x m and a J x J system.
    """
    xp = array_namespace(v, b, z)
    bt = xp.matrix_transpose(b)
    J, m = b.shape
    if m <= J:
        gram = xp.matmul(bt, b) / J + _identity(m, b) / h
        return xp.matmul(v, xp.linalg.solve(gram, xp.matmul(bt, z) / J))
    gram = xp.matmul(b, bt) / J + _identity(J, b) / h
    return xp.matmul(v, xp.matmul(bt, xp.linalg.solve(gram, z) / J))


def _identity(n, x):
    return like(np.eye(n), x)
