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
    """(E5)  R = c_R (0.7 S + 0.3 T), S the weighted mean of loo loo', T = tr(S)/m I or the diagonal of S."""
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

# ------------------------------------------------------------------------------------------------- a whole run
def ratios_at(s, sigmas, table):
    """(E1)  r_k(s), linear in log s between the levels of the table, constant beyond them; the last is the rest's."""
    if s <= sigmas[0]:
        return list(table[0])
    for i in range(1, len(sigmas)):
        if s <= sigmas[i]:
            t = (math.log(s) - math.log(sigmas[i - 1])) / (math.log(sigmas[i]) - math.log(sigmas[i - 1]))
            return [(1 - t) * low + t * high for low, high in zip(table[i - 1], table[i])]
    return list(table[-1])


def coloured(modes, c, c_rest, noise):
    """zeta ~ N(0, C): sqrt(c_k) along mode k, sqrt(c_rest) in every direction outside the modes."""
    along = [dot(v, noise) for v in modes]
    inside = combine(modes, along)
    zeta = combine(modes, [math.sqrt(c_k) * a for c_k, a in zip(c, along)])
    return [z + math.sqrt(c_rest) * (n - i) for z, n, i in zip(zeta, noise, inside)]


def largest_eigenvalue(matrix):
    """Of a symmetric matrix with entries >= 0 on the diagonal, by squaring it twelve times."""
    n, power = len(matrix), [list(row) for row in matrix]
    for _ in range(12):
        size = max(abs(value) for row in power for value in row)
        power = [[value / size for value in row] for row in power]
        power = [[sum(power[i][k] * power[k][j] for k in range(n)) for j in range(n)] for i in range(n)]
    v = [row[max(range(n), key=lambda j: power[j][j])] for row in power]
    image = [dot(row, v) for row in matrix]
    return dot(v, image) / dot(v, v)


def chosen_ridge(rows_x, rows_y, q, candidates):
    """(E3) The lam, as a share of the largest eigenvalue of the weighted Gram matrix, with the least sum q |loo|^2.

    -> (share, lam, leave-one-out errors)
    """
    total, d = sum(q), len(rows_x[0])
    mean = [sum(q[i] * rows_x[i][a] for i in range(len(q))) / total for a in range(d)]
    gram = [[sum(q[i] * (rows_x[i][a] - mean[a]) * (rows_x[i][b] - mean[b]) for i in range(len(q)))
             for b in range(d)] for a in range(d)]
    largest, best = largest_eigenvalue(gram), None
    for share in candidates:
        errors = leave_one_out(rows_x, rows_y, q, share * largest)
        cost = sum(q[i] * dot(errors[i], errors[i]) for i in range(len(q)))
        if best is None or cost < best[0]:
            best = cost, share, share * largest, errors
    return best[1:]


def next_sigma(s, left, gain, settings):
    """Geometric towards s_L = max(noise_floor/gain, sigma_end) over the ``left`` levels after this; not too steep."""
    end = min(max(settings["noise_floor"] / gain, settings["sigma_end"]), s)
    return s * max((end / s) ** (1.0 / left), settings["steepest"]) if left > 0 else s


def run(denoise, forward, y, sd, prior, start_noise, normals, settings):
    """EnKG-R from the start to the last level. Noise Gamma = diag(sd^2), data of one kind, no outliers, no failures.

    denoise : (x, s) -> list;  forward : x -> list;  prior : (mean, modes, variances, rest, table sigmas, table)
    normals : (level, kind, J, length) -> J rows of standard normal numbers, kind 0: zeta, 1: e, 2: eps
    settings : dict of the fields of ``Config`` used here;  -> one dict per level
    """
    mean, modes, variances, rest, sigmas, table = prior
    J, d, m, s = len(start_noise), len(mean), len(y), settings["sigma_start"]
    metric = [(l / variances[0]) ** settings["metric"] for l in variances]
    x0 = [[mu + z for mu, z in zip(mean, coloured(modes, variances, rest, row))] for row in start_noise]
    history, levels = [], []  # (coordinates of D, whitened g - y, weight)
    for level in range(settings["levels"]):
        eps = normals(level, 2, J, d)
        D = [denoise([a + s * b for a, b in zip(x0[j], eps[j])], s) for j in range(J)]
        diff = [[(g - y[b]) / sd[b] for b, g in enumerate(forward(D[j]))] for j in range(J)]
        now = [[dot(v, [a - mu for a, mu in zip(D[j], mean)]) for v in modes] for j in range(J)]

        aged = [(a, g, settings["memory"] * q) for a, g, q in history] + [(a, g, 1.0) for a, g in zip(now, diff)]
        history = [row for row in aged if row[2] >= settings["min_weight"]]
        scaled = [[a * f for a, f in zip(row[0], metric)] for row in history]
        near = local_weights(scaled, [[a * f for a, f in zip(row, metric)] for row in now],
                             [row[2] for row in history], settings["locality"])
        used = [i for i in range(len(history)) if near[i] > settings["smallest_local_weight"]]
        rows_x, rows_y, q = [scaled[i] for i in used], [history[i][1] for i in used], [near[i] for i in used]
        share, lam, loo = chosen_ridge(rows_x, rows_y, q, settings["ridges"])
        slope = [[f * value for value in row] for f, row in zip(metric, weighted_ridge(rows_x, rows_y, q, lam)[2])]
        R = model_noise(loo, q, settings["model_noise"])

        r = ratios_at(s, sigmas, table)
        c = conditional_variances(variances, r[:-1], s)
        c_rest = conditional_variances([rest], r[-1:], s)[0]
        zeta = [coloured(modes, c, c_rest, row) for row in normals(level, 0, J, d)]
        xi, c_r = normals(level, 1, J, m + len(q)), settings["model_noise"]
        trace = sum(q[i] * loo[i][b] ** 2 for i in range(len(q)) for b in range(m)) / sum(q)
        e = [[xi[j][b] * math.sqrt(1.0 + 0.3 * c_r * trace / m)
              + sum(math.sqrt(0.7 * c_r * q[i] / sum(q)) * loo[i][b] * xi[j][m + i] for i in range(len(q)))
              for b in range(m)] for j in range(J)]
        centre = [sum(row[b] for row in e) / J for b in range(m)]
        unit = [[1.0 if a == b else 0.0 for b in range(m)] for a in range(m)]
        state_slope = [combine(modes, [row[b] for row in slope]) for b in range(m)]
        state_slope = [[state_slope[b][i] for b in range(m)] for i in range(d)]
        x0 = [conditional_update(D[j], zeta[j], diff[j], [a - b for a, b in zip(e[j], centre)], [0.0] * m, modes, c,
                                 state_slope, unit, R) for j in range(J)]

        noise_ratio = sum(R[b][b] for b in range(m)) / m
        response = sum(c[k] * slope[k][b] ** 2 for k in range(len(c)) for b in range(m)) / m
        kappa = sum(v * v for row in diff for v in row) / (J * m) / (response + noise_ratio + 1.0)
        gain = math.sqrt(response * d / (sum(c) + c_rest * (d - len(c))))
        levels.append({"x": x0, "sigma": s, "kappa": kappa, "gain": gain, "noise_ratio": noise_ratio, "ridge": share,
                       "rows": len(history)})
        if not (settings["hold"] and kappa > 4.0):
            s = next_sigma(s, settings["levels"] - level - 1, gain, settings)
    return levels
