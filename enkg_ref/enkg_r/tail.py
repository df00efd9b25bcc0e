"""A Metropolis tail: the last part of the forward calls of any method goes to chains that sample the exact posterior.

    run the method with its share of the calls; every (D, G(D)) it asked for is remembered
    chains start at its answer; for each wave, one forward call per chain:
        surrogate likelihood l~ from all evaluations          refitted during the burn-in, then fixed
        x' = n moves (X4) from x, reversible for p l~         denoiser calls only
        accept x' with min(1, w(x')/w(x)), w = L/l~           (X5), (X3)

Our extension; not in the EnKG paper. p is the prior as the denoiser draws it: see `metropolis.ancestral_draw`. While l~
is refitted the chains are not exact; from then on they are, whatever l~, and the certificate (acceptance, R-hat,
effective size) is of that part alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import metropolis
from .._xp import array_namespace, finite_rows, like, take_rows, to_numpy
from ..likelihood import predictions
from ..protocol import as_line
from .method import condition, isotropic, model_noise
from .reference import Reference
from .regression import ridge_regression
from .surrogate import kernel_regression, representative

FIRST_STREAM = 10**6  # of the tail's random numbers: methods count theirs from 0
EXPLORED = 0.7  # share of the burn-in in which every other wave explores
REFITTED = 4  # the surrogate is refitted at each of the first few waves, then at every third of the burn-in
FEWEST_CHAINS, MOST_CHAINS = 16, 64  # beside the particles of the method
FAILED = 1e30  # misfit of an evaluation that is not finite
SCALES = 6  # equal parts of log s whose use is adapted in the burn-in
TRACED = 16  # leading modes that the certificate judges
MANY_MODES = 20
SMALLEST, LARGEST, SMALLEST_LINEAR, LARGEST_LINEAR = 0.05, 3.0, 0.03, 0.15  # of s, in the prior's standard deviations
LEAST_ACCEPTANCE, MOST_R_HAT, LEAST_EFFECTIVE = 0.2, 1.5, 40.0  # without doubts; chosen on the exact toys' good runs
OF = "of_"  # prefix of the wrapped method's fields in the state


def kernel_moves(tail, state, x, streams, optimistic):
    """(X4), (X5) n moves on the surrogate `kernel_regression`; s anew and for all chains at every move.

    -> x', log l~(x') - log l~(x), share of moves that left their point, (SCALES, 2) squared distances by s and counts
    """
    c = tail.config
    xp = array_namespace(x)
    model = tail.model(state, tail.inputs, kernel_regression)

    def log_likelihood(rows):
        return model.log_likelihood(tail.inputs(rows), optimistic)

    scales = np.random.default_rng([c.seed, FIRST_STREAM + state.wave])
    chances = scale_chances(to_numpy(state.jumps))
    here = start = log_likelihood(x)
    moved, jumps = 0.0, np.zeros((SCALES, 2))
    for _ in range(c.moves):
        part = int(scales.choice(SCALES, p=chances))
        s = c.smallest * (c.largest / c.smallest) ** ((part + scales.random()) / SCALES)
        before, (x, here, chosen) = x, _move(tail, x, here, s, streams, log_likelihood)
        moved += 1.0 - float(xp.mean(chosen[:, 0]))
        jumps[part] += float(xp.mean((tail.inputs(x) - tail.inputs(before)) ** 2)), 1.0
    return x, here - start, moved / c.moves, jumps


def _move(tail, x, here, s, streams, log_likelihood):
    """(X4) at level s from x, whose log l~ is ``here``.  -> the new x, its log l~, which was chosen (J, M + 1)"""
    c, J = tail.config, x.shape[0]
    xp = array_namespace(x)
    x_s = x + s * streams.normals(x.shape[1:], x)
    drawn = _every(metropolis.ancestral_draw(
        _repeat(x_s, c.draws), metropolis.ancestral_levels(s, c.calls, least=c.least), tail.denoise,
        lambda: _flat(streams.normals((c.draws, *x.shape[1:]), x)), tail.residual), J)
    weights = xp.concat([here[:, None], _every(log_likelihood(_flat(drawn)), J)], axis=1)
    chosen = metropolis.choose(weights, streams.uniforms((c.draws + 1,)))
    points = xp.concat([x[:, None, ...], drawn], axis=1)
    picked = xp.sum(points * xp.reshape(chosen, (J, c.draws + 1) + (1,) * (x.ndim - 1)), axis=1)
    return picked, xp.sum(weights * chosen, axis=1), chosen


def scale_chances(jumps):
    """How often each of the SCALES equal parts of log s is drawn: half evenly, half by its mean squared distance moved.

    jumps : (SCALES, 2) sums of squared distances, and counts, of the burn-in;  -> (SCALES,), sum 1
    """
    mean = jumps[:, 0] / np.maximum(jumps[:, 1], 1.0)
    even = np.full(SCALES, 1.0 / SCALES)
    return even if not mean.sum() > 0 else 0.5 * even + 0.5 * mean / mean.sum()


def linear_moves(tail, state, x, streams, optimistic):
    """(X3) One draw of the linear model's posterior given x_s, EnKG-R's update (E6): for many dimensions.

    Reversible for p l~ as far as p(x0 | x_s) = N(D, C_s): for Gaussian priors, and to first order in s for others.
    """
    c, r = tail.config, tail.reference
    model = tail.model(state, r.coordinates, lambda a, d: ridge_regression(a, d, like(np.ones(a.shape[0]), a)))
    s = c.smallest * (c.largest / c.smallest) ** np.random.default_rng([c.seed, FIRST_STREAM + state.wave]).random()
    x_s = x + s * streams.normals(x.shape[1:], x)
    D = tail.denoise(x_s, s)
    conditional = r.conditional(s)
    zeta, zeta_a = r.coloured(streams.normals(x.shape[1:], x), *conditional)
    xi = streams.normals((tail.likelihood.size + model.errors.shape[0],), x)
    R, e = model_noise(model.errors, xi, 1.0, isotropic, centred=False)
    predicted = model.predict(r.coordinates(D))
    moved = condition(predicted, zeta_a, e, model.slope, like(conditional[0][:, None], x), R)
    proposal = D + zeta + r.along_modes(moved, x.shape)
    before, after = (model.predict(r.coordinates(rows)) for rows in (x, proposal))
    xp = array_namespace(x)
    covariance = R + like(np.eye(R.shape[0]), R)

    def log_likelihood(d):
        return -0.5 * xp.sum(xp.linalg.solve(covariance, d.T).T * d, axis=1)

    return proposal, log_likelihood(after) - log_likelihood(before), 1.0, np.zeros((SCALES, 2))


@dataclass(frozen=True)
class Config:
    """Settings of a tail; ``settings_by_rule`` chooses them.

    chains : J, started from the method's particles in turn;  waves : forward calls of every chain, the first of which
        evaluates the start;  burn_in : waves with a surrogate that is still refitted
    propose : ``kernel_moves`` or ``linear_moves``
    smallest, largest : noise levels s between these, `scale_chances`;  least : the smallest level of the denoiser
    moves, draws, calls : n and M of (X5), levels of every draw; a wave costs moves x calls sequential denoiser calls,
        draws times as many rows as chains
    rows : evaluations in the surrogate
    """

    chains: int = 32
    waves: int = 24
    burn_in: int = 12
    propose: Callable = kernel_moves
    smallest: float = 0.05
    largest: float = 3.0
    least: float = 0.0
    moves: int = 10
    draws: int = 8
    calls: int = 8
    rows: int = 300
    seed: int = 0

    def __post_init__(self):
        for name in ("chains", "moves", "draws", "calls"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 1 <= self.burn_in < self.waves:
            raise ValueError(f"burn_in, waves: got {self.burn_in}, {self.waves}, expected 1 <= burn_in < waves")
        if not 0 < self.smallest <= self.largest < math.inf:
            raise ValueError(f"smallest, largest: got {self.smallest}, {self.largest}, expected "
                             "0 < smallest <= largest")

    def describe(self):
        """The settings as plain values (functions by name): what a summary prints and a checkpoint compares."""
        return {f.name: getattr(value, "__name__", value)
                for f in dataclasses.fields(self) for value in [getattr(self, f.name)]}


@dataclass(frozen=True)
class Info:
    """Diagnostics of one wave of the chains. Plain Python numbers.

    misfit, mean_misfit : ||.||_Gamma^2/m of the mean of g at the points evaluated, and averaged over them
    acceptance : share of the chains that moved;  moved : share of moves (X4) that left their point
    exact : the surrogate was fixed before this wave;  optimistic : a wave of the burn-in that explores
    r_hat, effective, drift : the largest R-hat, the smallest effective size and the largest Student's t of the chains'
        change over the leading modes, of the exact part; nan before its second wave
    mean_acceptance : of the exact part
    """

    level: int
    misfit: float
    mean_misfit: float
    acceptance: float
    moved: float
    exact: bool
    optimistic: bool
    mean_acceptance: float
    r_hat: float
    effective: float
    drift: float
    failed_rows: tuple[int, ...]


@functools.lru_cache
def state_class(kind):
    """The state of a tail behind a method with states of class ``kind``: all that a resume needs.

    of_... : the fields of ``kind``;  x : (J, *event), the answer once done;  proposal : the points to simulate
    misfit (J,) of x;  balance (J,) = log l~(proposal) - log l~(x);  moved : see `Info`
    history_x (n, r), history_d (n, m) : coordinates and whitened differences of all evaluations of the burn-in
    basis : (at most ``rows``) numbers of the evaluations in the surrogate, floats
    jumps : (SCALES, 2) what `scale_chances` adapts the levels to, fixed with the surrogate
    trace : (exact waves, J, k) leading coordinates of the chains;  accepted : sum of their acceptances
    wave : -1 while the method runs
    """
    fields = [(OF + f.name, Any, None) for f in dataclasses.fields(kind)]
    own = [(name, Any, None) for name in ("x", "proposal", "misfit", "balance", "history_x", "history_d", "basis",
                                          "jumps", "trace")]
    numbers = [("moved", float, 0.0), ("accepted", float, 0.0), ("wave", int, -1)]
    return dataclasses.make_dataclass("State", [*own, *numbers, *fields], frozen=True, namespace={"__doc__": __doc__})


@dataclass(frozen=True)
class Tail:
    """``method``, whatever it is, and then the chains; with the verbs init, ask, tell, done of all methods.

    kind : the class of the method's states (``protocol.Plan.state``);  reference : of the prior
    Every prediction that the method is told is remembered as an evaluation of G at what it asked for.
    """

    method: Any
    kind: type
    denoise: Callable
    likelihood: Any
    reference: Reference
    config: Config = Config()
    _fitted: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    # ---- the verbs
    def init(self, noise):
        return self._begin_when_done(self._wrap(self.method.init(noise), self._empty(noise)))

    def done(self, state):
        return state.wave >= self.config.waves

    def ask(self, state):
        """The method's own points, then the proposals of the chains.  (J, *event)"""
        return self.method.ask(self._inner(state)) if state.wave < 0 else state.proposal

    def tell(self, state, y_pred):
        """The method's own step, or one wave of the chains.  -> (state, the method's info or `Info`)

        A row that is not finite is never accepted. Raises ValueError for a wrong number of rows.
        """
        if state.wave < 0:
            inner = self._inner(state)
            points = self.method.ask(inner)
            following, info = self.method.tell(inner, y_pred)
            g = predictions(y_pred, points, self.likelihood)
            remembered = self._remember(state, points, self.likelihood.whiten(self.likelihood.difference(g)))
            return self._begin_when_done(self._wrap(following, remembered)), info
        return self._wave(state, y_pred)

    # ---- the method's part
    def _empty(self, noise):
        shapes = {"x": (0,), "proposal": (0,), "misfit": (0,), "balance": (0,), "basis": (0,), "jumps": (SCALES, 2),
                  "history_x": (0, self.reference.variances.size), "history_d": (0, self.likelihood.size),
                  "trace": (0, self.config.chains, self._traced)}
        return {name: like(np.zeros(shape), noise) for name, shape in shapes.items()}

    @property
    def _traced(self):
        return min(TRACED, self.reference.variances.size)

    def _wrap(self, inner, own):
        return state_class(self.kind)(**own, **{OF + f.name: getattr(inner, f.name) for f in dataclasses.fields(inner)})

    def _inner(self, state):
        return self.kind(**{f.name: getattr(state, OF + f.name) for f in dataclasses.fields(self.kind)})

    def _begin_when_done(self, state):
        inner = self._inner(state)
        if not self.method.done(inner):
            return state
        rows = np.arange(self.config.chains) % inner.x.shape[0]
        x = take_rows(inner.x, rows)
        zero = x[(slice(None),) + (0,) * (x.ndim - 1)] * 0.0
        return dataclasses.replace(state, x=x, proposal=x, misfit=zero + FAILED, balance=zero, wave=0)

    def _remember(self, state, points, d):
        """{field: value} of the state's own fields with the finite rows of d added to the history."""
        xp = array_namespace(points, d)
        own = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if not f.name.startswith(OF)}
        rows = np.flatnonzero(finite_rows(d))
        if len(rows):
            a = self.reference.coordinates(points)
            own["history_x"] = xp.concat([state.history_x, take_rows(a, rows)])
            own["history_d"] = xp.concat([state.history_d, take_rows(d, rows)])
        return own

    # ---- the chains' part
    def _wave(self, state, y_pred):
        c, J = self.config, self.config.chains
        g = predictions(y_pred, state.x, self.likelihood)
        d = self.likelihood.whiten(self.likelihood.difference(g))
        xp, finite = array_namespace(d), finite_rows(d)
        misfit = self.likelihood.misfit(g)
        misfit = xp.where(xp.isfinite(misfit), misfit, FAILED * xp.ones_like(misfit))
        log_ratio = 0.5 * (state.misfit - misfit) - state.balance
        uniforms = metropolis.Streams(c.seed, FIRST_STREAM + c.waves + state.wave, J).uniforms()
        exact, optimistic = state.wave > c.burn_in, self._explores(state.wave)
        moves = metropolis.accept(log_ratio, uniforms)
        if state.wave == 0:
            moves = xp.ones_like(moves)
        x = metropolis.where_rows(moves, state.proposal, state.x)
        share = float(xp.mean(xp.astype(moves, x.dtype)))
        following = dataclasses.replace(state, x=x, misfit=xp.where(moves, misfit, state.misfit), wave=state.wave + 1)
        if exact:
            trace = self.reference.coordinates(x)[:, : self._traced]
            following = dataclasses.replace(following, trace=xp.concat([state.trace, trace[None, ...]]),
                                            accepted=state.accepted + share)
        else:
            own = self._remember(following, state.proposal, d)
            following = dataclasses.replace(following, history_x=own["history_x"], history_d=own["history_d"])
        info = self._report(state, following, d, finite, share, optimistic)
        return (following if self.done(following) else self._propose(following)), info

    def _explores(self, wave):
        return wave % 2 == 1 and wave <= EXPLORED * self.config.burn_in

    def _propose(self, state):
        """The next points to simulate; the surrogate is refitted first while the burn-in lasts."""
        c, w = self.config, state.wave
        if w <= c.burn_in and (w <= REFITTED or w % 3 == 0 or w == c.burn_in):
            basis = representative(state.history_d, c.rows)
            state = dataclasses.replace(state, basis=like(basis, state.x))
        streams = metropolis.Streams(c.seed, FIRST_STREAM + 2 * c.waves + w, c.chains)
        proposal, balance, moved, jumps = c.propose(self, state, state.x, streams, self._explores(w))
        if w < c.burn_in and not self._explores(w):
            state = dataclasses.replace(state, jumps=state.jumps + like(jumps, state.x))
        return dataclasses.replace(state, proposal=proposal, balance=balance, moved=moved)

    def model(self, state, inputs_of, fit):
        """The surrogate of the state's basis, kept for as long as the basis is."""
        if self._fitted.get("basis") is not state.basis:
            rows = to_numpy(state.basis).astype(int)
            a, d = take_rows(state.history_x, rows), take_rows(state.history_d, rows)
            self._fitted.update(basis=state.basis, model=fit(self._scaled(a) if inputs_of == self.inputs else a, d))
        return self._fitted["model"]

    def inputs(self, x):
        """Coordinates in the modes of the reference, in units of their standard deviation.  (rows, *event) -> (., r)"""
        return self._scaled(self.reference.coordinates(x))

    def _scaled(self, a):
        return a / like(np.sqrt(np.maximum(self.reference.variances, 1e-300))[None, :], a)

    def residual(self, noise, sigma):
        """A draw of N(0, C_s) from standard normal noise (E1)."""
        return self.reference.coloured(noise, *self.reference.conditional(sigma))[0]

    def _report(self, state, following, d, finite, share, optimistic):
        m, rows = self.likelihood.size, to_numpy(d)[finite]
        n = following.trace.shape[0]
        r_hat = effective = drift = math.nan
        if n > 1 and self.config.chains > 1:
            trace = to_numpy(following.trace)
            r_hat = float(np.max(metropolis.potential_scale(trace)))
            effective = float(np.min(metropolis.effective_size(trace)))
            drift = float(np.max(np.abs(metropolis.drift(trace))))
        return Info(
            level=state.wave, misfit=float(np.sum(rows.mean(axis=0) ** 2)) / m if len(rows) else math.inf,
            mean_misfit=float(np.mean(rows**2)) if len(rows) else math.inf, acceptance=share, moved=state.moved,
            exact=state.wave > self.config.burn_in, optimistic=optimistic,
            mean_acceptance=following.accepted / n if n else math.nan, r_hat=r_hat, effective=effective, drift=drift,
            failed_rows=tuple(int(j) for j in np.flatnonzero(~finite)))


def doubts(mean_acceptance, r_hat, effective):
    """Why the chains' ensemble is not to be trusted: a list of sentences, empty if nothing speaks against it.

    A mode that no evaluation has ever come near leaves no trace in these numbers.
    """
    found = []
    if not mean_acceptance >= LEAST_ACCEPTANCE:
        found.append(f"the chains accepted {100 * mean_acceptance:.0f} % of the proposals: the surrogate is poor")
    if not r_hat <= MOST_R_HAT:
        found.append(f"R-hat is {r_hat:.2f}: the chains have not mixed")
    if not effective >= LEAST_EFFECTIVE:
        found.append(f"the chains are worth {effective:.0f} independent draws")
    return found


def certificate(line):
    """`doubts` about the last history line {name: number} of chains, where what is not known is None."""
    return doubts(*(math.nan if line[name] is None else line[name] for name in ("mean_acceptance", "r_hat",
                                                                                "effective")))


def settings_by_rule(reference, chains, budget, sigma_range=(0.0, math.inf), seed=0):
    """Settings of a tail of ``budget`` forward calls: half of the waves are burn-in.

    Up to MANY_MODES modes hold 95 % of the prior's variance: ``kernel_moves``, s in [0.05, 3] x the prior's std. With
    more no chain finds its way by draws of the prior: ``linear_moves``, s in [0.03, 0.15] x std.

    Raises ValueError if the budget is below four waves.
    """
    waves = budget // chains
    if waves < 4:
        raise ValueError(f"tail: got {budget} forward calls for {chains} chains, expected at least {4 * chains}")
    low, high = sigma_range
    modes = reference.active_modes(0.95)
    many = modes > MANY_MODES
    smallest = max((SMALLEST_LINEAR if many else SMALLEST) * reference.std, low)
    largest = max(min((LARGEST_LINEAR if many else LARGEST) * reference.std, high), smallest)
    return Config(chains=chains, waves=waves, burn_in=waves // 2, smallest=smallest, largest=largest, least=low,
                  seed=seed, propose=linear_moves if many else kernel_moves, rows=200 if modes <= 4 else 300)


def _repeat(x, n):
    """(rows, *event) -> (rows n, *event), every row n times."""
    return _flat(array_namespace(x).broadcast_to(x[:, None, ...], (x.shape[0], n, *x.shape[1:])))


def _flat(x):
    return array_namespace(x).reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def _every(x, rows):
    """(rows n, ...) -> (rows, n, ...)"""
    return array_namespace(x).reshape(x, (rows, x.shape[0] // rows, *x.shape[1:]))


def offered(method):
    """The `protocol.Method` with a setting more, "tail": the share of the budget that goes to chains after it.

    The method is planned with the rest. Raises ValueError for a share outside (0, 1), without a budget or a reference.
    """
    def plan(item, budget, c_vjp, seed, settings):
        settings = dict(settings)
        share = settings.pop("tail", 0.0)
        if share == 0.0:
            return method.plan(item, budget, c_vjp, seed, settings)
        if not 0.0 < share < 1.0:
            raise ValueError(f"tail: got {share}, expected a share of the forward calls, at least 0 and below 1")
        if budget is None or item.reference is None:
            raise ValueError(f"tail: got {share} without {'a budget' if budget is None else 'a reference of the prior'}"
                             ", expected none")
        own = method.plan(item, int(budget * (1.0 - share)), c_vjp, seed, settings)
        chains = min(max(own.rows, FEWEST_CHAINS), MOST_CHAINS)
        config = settings_by_rule(item.reference, chains, budget - int(budget * (1.0 - share)), item.sigma_range, seed)
        whole = Tail(own.method, own.state, item.denoise, item.likelihood, item.reference, config)
        return dataclasses.replace(
            own, method=whole, settings={**own.settings, **{f"tail_{k}": v for k, v in config.describe().items()}},
            waves=own.waves + config.waves, state=state_class(own.state),
            why=f"{own.why}; then {chains} Metropolis chains of {config.waves} forward calls each".removeprefix("; "))

    def observe(memory, info, likelihood):
        return as_line(memory, info, likelihood) if isinstance(info, Info) else method.observe(memory, info, likelihood)

    return dataclasses.replace(method, plan=plan, observe=observe, options=(*method.options, "tail"))
