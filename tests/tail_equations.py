"""The executable specification of the Metropolis tail: (X1)-(X5) and its surrogate as loops over scalars.

It imports the ``math`` module only; a vector is a list of floats, a matrix a list of rows. The random numbers are
arguments. The library must equal these functions in float64 on every back-end.

Letters: d state, m observations, n evaluations (z_i, d_i) of the whitened differences, noise level s.
"""

import math


def ancestral_draw(x, levels, denoise, noise_of_level, residual, order):
    """x <- D* + (b/a)^2 (x - D*) + b sqrt(1 - (b/a)^2) eps,  D* = D + (D - D_before) log(a/b)/(2 log(a_before/a)).

    At the last level D + r. Order 1: D* = D, as at the first level.  noise_of_level[i] = eps of the step from level i
    """
    before = None
    for i, a in enumerate(levels[:-1]):
        b, D = levels[i + 1], denoise(x, a)
        ahead = D
        if order == 2 and before is not None:
            weight = math.log(a / b) / (2 * math.log(levels[i - 1] / a))
            ahead = [now + weight * (now - then) for now, then in zip(D, before)]
        x = [p + (b / a) ** 2 * (v - p) + b * math.sqrt(1 - (b / a) ** 2) * e
             for p, v, e in zip(ahead, x, noise_of_level[i])]
        before = D
    return [D + r for D, r in zip(denoise(x, levels[-1]), residual)]


def noising_log_ratio(x_s, x, nu, x_new, nu_new, s):
    """(X2) without likelihoods: log N(x_s; x' + nu', s^2) N(x_s; x, s^2)/(N(x_s; x + nu, s^2) N(x_s; x', s^2))."""
    def log_normal(mean):
        return -sum((a - b) ** 2 for a, b in zip(x_s, mean)) / (2 * s * s)
    return (log_normal([a + b for a, b in zip(x_new, nu_new)]) + log_normal(x)
            - log_normal([a + b for a, b in zip(x, nu)]) - log_normal(x_new))


def chosen(log_weights, uniform):
    """(X4) The index of the largest log w - log(-log u): index i with probability w_i/sum w."""
    scores = [w - math.log(-math.log(u)) for w, u in zip(log_weights, uniform)]
    return scores.index(max(scores))


def warp(d):
    return 3.0 * math.asinh(d / 3.0)


def kernel(a, b, length):
    squares = sum((u - v) ** 2 for u, v in zip(a, b))
    return math.exp(-squares / (2 * length**2)) + 0.3 * (sum(u * v for u, v in zip(a, b)) + 1.0)


def gaussian_process(z, d, length):
    """-> (K, inverse, means, v): the regression of u = warp(d) at one length, and what chooses it."""
    n, m = len(z), len(d[0])
    u = [[warp(value) for value in row] for row in d]
    means = [sum(u[i][k] for i in range(n)) / n for k in range(m)]
    K = [[kernel(z[i], z[j], length) + (1e-5 if i == j else 0.0) for j in range(n)] for i in range(n)]
    inverse = invert(K)
    centred = [[u[i][k] - means[k] for k in range(m)] for i in range(n)]
    v = [sum(centred[i][k] * inverse[i][j] * centred[j][k] for i in range(n) for j in range(n)) / n for k in range(m)]
    return K, inverse, means, v, centred


def cost(z, d, length):
    """n/2 sum_k log v_k + m/2 log det K"""
    K, _, _, v, _ = gaussian_process(z, d, length)
    return 0.5 * len(z) * sum(math.log(value) for value in v) + 0.5 * len(v) * log_det(K)


def log_likelihood(z, d, length, point, optimistic):
    """log l~ = -1/2 sum_k (d_k^2/V_k + log V_k), V = 1 + variance of u times (dd/du)^2."""
    _, inverse, means, v, centred = gaussian_process(z, d, length)
    n = len(z)
    k = [kernel(point, row, length) for row in z]
    left = kernel(point, point, length) + 1e-5 - sum(k[i] * inverse[i][j] * k[j] for i in range(n) for j in range(n))
    total = 0.0
    for o, mean in enumerate(means):
        u = mean + sum(k[i] * inverse[i][j] * centred[j][o] for i in range(n) for j in range(n))
        predicted = 3.0 * math.sinh(u / 3.0)
        V = 1.0 + left * v[o] * math.cosh(u / 3.0) ** 2
        total += predicted**2 / V + (0.0 if optimistic else math.log(V))
    return -0.5 * total


def delayed_log_ratio(misfit, misfit_new, surrogate, surrogate_new):
    """(X3), (X5) log [L(x') l~(x)/(L(x) l~(x'))], L = exp(-misfit/2), log l~ given."""
    return -0.5 * misfit_new + surrogate + 0.5 * misfit - surrogate_new


def potential_scale(chains):
    """R-hat: chains[t][c], t the step.  ((n - 1)/n W + B)/W under the root."""
    n, count = len(chains), len(chains[0])
    means = [sum(chains[t][c] for t in range(n)) / n for c in range(count)]
    W = sum(sum((chains[t][c] - means[c]) ** 2 for t in range(n)) / (n - 1) for c in range(count)) / count
    overall = sum(means) / count
    B = sum((mean - overall) ** 2 for mean in means) / (count - 1)
    return math.sqrt(((n - 1) / n * W + B) / W)


def invert(matrix):
    """Gauss-Jordan elimination with partial pivoting."""
    n = len(matrix)
    a = [list(row) + [1.0 if i == j else 0.0 for j in range(n)] for i, row in enumerate(matrix)]
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(a[i][k]))
        a[k], a[pivot] = a[pivot], a[k]
        a[k] = [value / a[k][k] for value in a[k]]
        for i in range(n):
            if i != k:
                a[i] = [x - a[i][k] * y for x, y in zip(a[i], a[k])]
    return [row[n:] for row in a]


def log_det(matrix):
    """Sum of log pivots of a positive definite matrix."""
    a, total = [list(row) for row in matrix], 0.0
    for k in range(len(a)):
        total += math.log(a[k][k])
        for i in range(k + 1, len(a)):
            factor = a[i][k] / a[k][k]
            a[i] = [x - factor * y for x, y in zip(a[i], a[k])]
    return total
