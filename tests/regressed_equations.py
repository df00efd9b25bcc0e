"""The executable specification of EnKG-R, our extension of the paper's method: (E1)-(E6) as loops over scalars.

It imports the ``math`` module only; a vector is a list of floats, a matrix a list of rows. The random numbers
are arguments. The library must equal these functions to 1e-10 in float64 on every back-end.

Letters: J particles, d state, m observations, n rows of the history (D_i, g_i) with weights q_i, modes v_k with
variances l_k, noise level s. Covariances are plain m x m or d x d tables; nothing is whitened.
"""

import math


def conditional_variances(variances, ratios, s):
    """(E1)  c_k = r_k(s) l_k s^2/(l_k + s^2)."""
    return [r * l * s * s / (l + s * s) for r, l in zip(ratios, variances)]


def combine(modes, coefficients):
    """sum_k a_k v_k for modes v_k in R^d."""
    total = [0.0] * len(modes[0])
    for mode, a in zip(modes, coefficients):
        for i in range(len(total)):
            total[i] += a * mode[i]
    return total


def start(mean, modes, variances, noise):
    """(E2)  x0 = mu + sum_k sqrt(l_k) (v_k . noise) v_k."""
    coloured = combine(modes, [math.sqrt(l) * dot(v, noise) for v, l in zip(modes, variances)])
    return [mu + z for mu, z in zip(mean, coloured)]


def local_weights(rows, current, q, locality):
    """q_i exp(-locality max(|x_i - c|^2/v - 1, 0)), c the mean of the current rows, v their mean squared distance."""
    J, d = len(current), len(current[0])
    c = [sum(row[a] for row in current) / J for a in range(d)]
    v = sum((row[a] - c[a]) ** 2 for row in current for a in range(d)) / J
    return [q_i * math.exp(-locality * max(sum((row[a] - c[a]) ** 2 for a in range(d)) / v - 1.0, 0.0))
            for q_i, row in zip(q, rows)]


def weighted_ridge(rows_x, rows_y, q, lam):
    """(E3) in primal form: H' and the intercept minimise sum_i q_i |y_i - b - H x_i|^2 + lam |H|^2.

    -> (mean of x, mean of y, H') with H' : d x m
    """
    total = sum(q)
    d, m = len(rows_x[0]), len(rows_y[0])
    x_mean = [sum(q[i] * rows_x[i][a] for i in range(len(q))) / total for a in range(d)]
    y_mean = [sum(q[i] * rows_y[i][b] for i in range(len(q))) / total for b in range(m)]
    gram = [[sum(q[i] * (rows_x[i][a] - x_mean[a]) * (rows_x[i][b] - x_mean[b]) for i in range(len(q)))
             for b in range(d)] for a in range(d)]
    for a in range(d):
        gram[a][a] += lam
    cross = [[sum(q[i] * (rows_x[i][a] - x_mean[a]) * (rows_y[i][b] - y_mean[b]) for i in range(len(q)))
              for b in range(m)] for a in range(d)]
    return x_mean, y_mean, solve_linear(gram, cross)


def predict(fit, x):
    x_mean, y_mean, slope = fit
    return [y_mean[b] + sum((x[a] - x_mean[a]) * slope[a][b] for a in range(len(x))) for b in range(len(y_mean))]


def leave_one_out(rows_x, rows_y, q, lam):
    """(E4)  Row i: y_i minus the prediction of the fit without row i. By refitting n times."""
    errors = []
    for i in range(len(q)):
        others = [j for j in range(len(q)) if j != i]
        fit = weighted_ridge([rows_x[j] for j in others], [rows_y[j] for j in others], [q[j] for j in others], lam)
        predicted = predict(fit, rows_x[i])
        errors.append([y - p for y, p in zip(rows_y[i], predicted)])
    return errors


def model_noise(errors, q, c_r, shrink_to="isotropic"):
    """(E5)  R = c_R (.7 S + .3 T), S the weighted mean of loo loo', T = tr(S)/m I or the diagonal of S."""
    m, total = len(errors[0]), sum(q)
    S = [[sum(q[i] * errors[i][a] * errors[i][b] for i in range(len(q))) / total for b in range(m)] for a in range(m)]
    trace = sum(S[a][a] for a in range(m))
    R = [[0.7 * c_r * S[a][b] for b in range(m)] for a in range(m)]
    for a in range(m):
        R[a][a] += 0.3 * c_r * (trace / m if shrink_to == "isotropic" else S[a][a])
    return R


def conditional_update(D, zeta, g, e, y, modes, c, slope, gamma, R):
    """(E6)  x0 = D + zeta + C_s H'(H C_s H' + Gamma + R)^-1 (y + e - g - H zeta) of one particle.

    slope = H' : d x m in state space;  C_s = sum_k c_k v_k v_k'
    """
    m, d = len(y), len(D)
    along = [[sum(v[i] * slope[i][b] for i in range(d)) for b in range(m)] for v in modes]  # V'H'
    M = [[gamma[a][b] + R[a][b] + sum(c[k] * along[k][a] * along[k][b] for k in range(len(c))) for b in range(m)]
         for a in range(m)]
    wanted = [y[b] + e[b] - g[b] - sum(zeta[i] * slope[i][b] for i in range(d)) for b in range(m)]
    w = [row[0] for row in solve_linear(M, [[value] for value in wanted])]
    moved = combine(modes, [c[k] * sum(along[k][b] * w[b] for b in range(m)) for k in range(len(c))])
    return [D[i] + zeta[i] + moved[i] for i in range(d)]


def dot(a, b):
    return sum(u * v for u, v in zip(a, b))


def solve_linear(matrix, right):
    """Gauss elimination with partial pivoting; ``right`` has one row per unknown."""
    n, columns = len(matrix), len(right[0])
    a = [list(matrix[i]) + list(right[i]) for i in range(n)]
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(a[i][k]))
        a[k], a[pivot] = a[pivot], a[k]
        for i in range(k + 1, n):
            factor = a[i][k] / a[k][k]
            for j in range(k, n + columns):
                a[i][j] -= factor * a[k][j]
    x = [[0.0] * columns for _ in range(n)]
    for i in reversed(range(n)):
        for b in range(columns):
            x[i][b] = (a[i][n + b] - sum(a[i][j] * x[j][b] for j in range(i + 1, n))) / a[i][i]
    return x
