"""The executable specification: every equation of Ensemble Kalman Diffusion Guidance as nested loops over scalars.

Read it with the paper (arXiv 2409.20175) beside it. It imports the ``math`` module and nothing else; an ensemble is a
list of J rows, a row is a list of floats, a matrix is a list of rows. Nothing here is fast, nothing is shared between
equations unless the equation says so. The library must equal these functions to 1e-12 in float64 on every back-end.

Letters: J particles x_j in R^d, observations y in R^m, N noise levels sigma_0 > ... > sigma_{N-1} > sigma_N = 0,
U updates per guided level, g_j = psi(x_j) = G(phi(x_j)), anomalies z_j = x_j - mean x and b_j = g_j - mean g,
residuals e_j = g_j - y, <a, b>_Gamma = a' Gamma^-1 b. Covariances carry 1/J.

Callables act on one particle: ``denoise(x, sigma) -> D(x, sigma)``, ``forward(x) -> G(x)``, ``residual(g) -> r(g)``,
lists of floats all.
"""

import math

# -------------------------------------------------------------------------------------------------------- noise levels


def edm_sigmas(n, sigma_max=80.0, sigma_min=0.002, rho=7.0):
    """(T1)  sigma_i = ( s_max^(1/rho) + i/(N-1) (s_min^(1/rho) - s_max^(1/rho)) )^rho,  i = 0..N-1;   sigma_N = 0.

    One level (N = 1) is s_max itself: the quotient i/(N-1) does not exist.
    """
    sigmas = []
    for i in range(n):
        fraction = i / (n - 1) if n > 1 else 0.0
        root = sigma_max ** (1.0 / rho) + fraction * (sigma_min ** (1.0 / rho) - sigma_max ** (1.0 / rho))
        sigmas.append(root**rho)
    sigmas.append(0.0)
    return sigmas


def initial_ensemble(noise, sigma_max):
    """(T2)  x_j = s_max * noise_j,  noise_j ~ N(0, I)."""
    ensemble = []
    for row in noise:
        ensemble.append([sigma_max * value for value in row])
    return ensemble


# ------------------------------------------------------------------------------------------------------- guided window


def is_guided_official(i, n, start, end):
    """(T3a), released code:  i > ths N  (strict, float product)  and  i < N - int(the N)."""
    return i > start * n and i < n - int(end * n)


def is_guided_nominal(i, n, start, end):
    """(T3a), nominal:  i >= ths N  and  i < N - int(the N)."""
    return i >= start * n and i < n - int(end * n)


def is_guided_inversebench(i, n, threshold):
    """(T3a), InverseBench:  i > threshold  and  i < N - int(0.5 threshold), the threshold read as a step index."""
    return i > threshold and i < n - int(0.5 * threshold)


# ----------------------------------------------------------------------------------------------------------- inner map


def inner_steps(i, n, factor=4, cap=20):
    """(T3b)  n_i = min(1 + floor((N - i) / factor), cap)."""
    steps = 1 + (n - i) // factor
    if steps > cap:
        steps = cap
    return steps


def flow_to_zero(x, sigma, denoise, steps, sigma_eps=0.002, rho=7.0):
    """(T3c)  x0 = phi(x): ``steps`` Euler steps (T7) on the grid (T1) from sigma to sigma_eps, followed by 0.

    steps = 1:  x0 = D(x, sigma).     sigma = 0:  x0 = x.
    """
    if sigma == 0.0:
        return list(x)
    if steps == 1:
        return denoise(x, sigma)
    grid = edm_sigmas(steps, sigma, sigma_eps, rho)
    for k in range(steps):
        x = euler_step(x, denoise(x, grid[k]), grid[k], grid[k + 1])
    return x


def euler_step(x, denoised, sigma, sigma_next):
    """(T7)  x <- x + (sigma' - sigma) (x - D(x, sigma)) / sigma, one Euler step of the probability-flow ODE."""
    out = []
    for a in range(len(x)):
        slope = (x[a] - denoised[a]) / sigma
        out.append(x[a] + (sigma_next - sigma) * slope)
    return out


def euler_step_convex(x, denoised, sigma, sigma_next):
    """(T7), second form:  x <- (sigma'/sigma) x + (1 - sigma'/sigma) D(x, sigma)."""
    ratio = sigma_next / sigma
    out = []
    for a in range(len(x)):
        out.append(ratio * x[a] + (1.0 - ratio) * denoised[a])
    return out


# ------------------------------------------------------------------------------------------------- ensemble statistics


def ensemble_mean(rows):
    """(T4a)  mean_a = (1/J) sum_j rows_ja."""
    mean = []
    for a in range(len(rows[0])):
        total = 0.0
        for row in rows:
            total += row[a]
        mean.append(total / len(rows))
    return mean


def anomalies(rows):
    """(T4b)  z_j = x_j - mean x."""
    mean = ensemble_mean(rows)
    out = []
    for row in rows:
        out.append([row[a] - mean[a] for a in range(len(row))])
    return out


def inner_product(a, b, gamma_inv):
    """<a, b>_Gamma = sum_pq a_p (Gamma^-1)_pq b_q."""
    total = 0.0
    for p in range(len(a)):
        for q in range(len(b)):
            total += a[p] * gamma_inv[p][q] * b[q]
    return total


def gaussian_residual(y, gamma_inv):
    """(T4c)  r(g) = Gamma^-1 (g - y), half the gradient of ||g - y||_Gamma^2. Returns the function g -> r(g)."""

    def residual(g):
        out = []
        for p in range(len(y)):
            total = 0.0
            for q in range(len(y)):
                total += gamma_inv[p][q] * (g[q] - y[q])
            out.append(total)
        return out

    return residual


def coefficients(g, y, gamma_inv):
    """(T4)  K_jk = (1/J) < g_j - y, g_k - mean g >_Gamma."""
    j_count = len(g)
    b = anomalies(g)
    k_matrix = []
    for j in range(j_count):
        e_j = [g[j][p] - y[p] for p in range(len(y))]
        k_matrix.append([inner_product(e_j, b[k], gamma_inv) / j_count for k in range(j_count)])
    return k_matrix


def coefficients_of_residual(r, b):
    """(T4d)  K_jk = (1/J) sum_p r_jp b_kp,  K = R B'/J, for any residual callback r(g) with rows r_j."""
    j_count = len(r)
    k_matrix = []
    for j in range(j_count):
        row = []
        for k in range(j_count):
            total = 0.0
            for p in range(len(r[j])):
                total += r[j][p] * b[k][p]
            row.append(total / j_count)
        k_matrix.append(row)
    return k_matrix


# ----------------------------------------------------------------------------------------------------------- step size


def frobenius_norm(matrix):
    """||K||_F = sqrt( sum_jk K_jk^2 )."""
    total = 0.0
    for row in matrix:
        for value in row:
            total += value * value
    return math.sqrt(total)


def observed_spread(g, gamma_inv):
    """tau = tr(Gamma^-1 C_yy) = (1/J) sum_k < b_k, b_k >_Gamma."""
    total = 0.0
    for b_k in anomalies(g):
        total += inner_product(b_k, b_k, gamma_inv)
    return total / len(g)


def step_frobenius(gamma, k_matrix):
    """(T5), released code:  w = gamma / ||K||_F."""
    return gamma / frobenius_norm(k_matrix)


def step_trace(gamma, g, gamma_inv):
    """(T5), paper with gamma = 1:  w = gamma / tr(Gamma^-1 C_yy)."""
    return gamma / observed_spread(g, gamma_inv)


def step_constant(w):
    """(T5), for Proposition 1:  w given."""
    return w


# ---------------------------------------------------------------------------------------------------------- correction


def update_pairwise(x, k_matrix, w):
    """(T6a)  x_j <- x_j - w sum_k K_jk (x_k - mean x)."""
    z = anomalies(x)
    out = []
    for j in range(len(x)):
        row = []
        for a in range(len(x[j])):
            move = 0.0
            for k in range(len(x)):
                move += k_matrix[j][k] * z[k][a]
            row.append(x[j][a] - w * move)
        out.append(row)
    return out


def cross_covariance(g, x):
    """C_yx = B' Z / J:  (C_yx)_pa = (1/J) sum_k b_kp z_ka."""
    b, z = anomalies(g), anomalies(x)
    c_yx = []
    for p in range(len(g[0])):
        row = []
        for a in range(len(x[0])):
            total = 0.0
            for k in range(len(x)):
                total += b[k][p] * z[k][a]
            row.append(total / len(x))
        c_yx.append(row)
    return c_yx


def update_lowrank(x, r, g, w):
    """(T6b)  x_j <- x_j - w sum_p r_jp (C_yx)_pa,  the same update without the J x J matrix."""
    c_yx = cross_covariance(g, x)
    out = []
    for j in range(len(x)):
        row = []
        for a in range(len(x[j])):
            move = 0.0
            for p in range(len(r[j])):
                move += r[j][p] * c_yx[p][a]
            row.append(x[j][a] - w * move)
        out.append(row)
    return out


def correct(x, g, y, gamma_inv, rule, scale):
    """(T4)-(T6): one correction of all particles.

    ``rule`` is "frobenius", "trace" or "constant"; ``scale`` is gamma, or w under the constant rule.
    Returns (x, w, ||K||_F).
    """
    k_matrix = coefficients(g, y, gamma_inv)
    if rule == "frobenius":
        w = step_frobenius(scale, k_matrix)
    elif rule == "trace":
        w = step_trace(scale, g, gamma_inv)
    else:
        w = step_constant(scale)
    return update_pairwise(x, k_matrix, w), w, frobenius_norm(k_matrix)


def correct_masked(x, g, y, gamma_inv, rule, scale, alive, failed):
    """Correction with survivors only (not in the paper).

    Means, anomalies, K and w are those of the sub-ensemble of survivors (divisor: their number). A failed particle
    stays where it is (``failed="keep"``) or is moved by the mean displacement of the survivors (``failed="shift"``).
    """
    rows = [j for j in range(len(x)) if alive[j]]
    moved, w, norm = correct([x[j] for j in rows], [g[j] for j in rows], y, gamma_inv, rule, scale)
    shift = []
    for a in range(len(x[0])):
        total = 0.0
        for s in range(len(rows)):
            total += moved[s][a] - x[rows[s]][a]
        shift.append(total / len(rows))
    out = []
    for j in range(len(x)):
        if alive[j]:
            out.append(moved[rows.index(j)])
        elif failed == "shift":
            out.append([x[j][a] + shift[a] for a in range(len(shift))])
        else:
            out.append(list(x[j]))
    return out, w, norm


# --------------------------------------------------------------------------------------------------- guidance schedule


def guidance_intended(i, n, gamma, r_min):
    """(T8), intended form:  gamma_i = gamma ( (1 - r_min) (N - i)/N + r_min );  r_min = 0: gamma_i = gamma."""
    if r_min == 0.0:
        return gamma
    return gamma * ((1.0 - r_min) * (n - i) / n + r_min)


def guidance_official(i, n, gamma, r_min):
    """(T8), released code:  gamma_i = gamma (1 - r_min) (N - i)/N + r_min;  r_min = 0: gamma_i = gamma."""
    if r_min == 0.0:
        return gamma
    return gamma * (1.0 - r_min) * (n - i) / n + r_min


# ----------------------------------------------------------------------------------------------------------- algorithm


def corrections_at_level(x, i, n, sigmas, denoise, forward, y, gamma_inv, guidance, updates, rule, factor, cap):
    """(T3)-(T6), U times at level i:  x0 = phi_i(x), g = G(x0), K, w, x <- x - w K Z."""
    for _ in range(updates):
        g = []
        for x_j in x:
            x0_j = flow_to_zero(x_j, sigmas[i], denoise, inner_steps(i, n, factor, cap))
            g.append(forward(x0_j))
        x, _w, _norm = correct(x, g, y, gamma_inv, rule, guidance(i))
    return x


def predict(x, i, sigmas, denoise):
    """(T7) for all particles, from level i to level i + 1."""
    out = []
    for x_j in x:
        out.append(euler_step(x_j, denoise(x_j, sigmas[i]), sigmas[i], sigmas[i + 1]))
    return out


def run_correct_then_predict(noise, denoise, forward, y, gamma_inv, n, guided, guidance, updates=1, rule="frobenius",
                             factor=4, cap=20, sigma_max=80.0, sigma_min=0.002, rho=7.0):
    """The order of the released code. Correction at level i, then the predictor from i to i + 1, i = 0..N-1.

    ``guided`` is the collection of levels at which the correction is made, ``guidance(i)`` the value gamma_i (or w_i).
    Returns the list [X at level 0, ..., X at level N].
    """
    sigmas = edm_sigmas(n, sigma_max, sigma_min, rho)
    x = initial_ensemble(noise, sigma_max)
    levels = [x]
    for i in range(n):
        if i in guided:
            x = corrections_at_level(x, i, n, sigmas, denoise, forward, y, gamma_inv, guidance, updates, rule,
                                     factor, cap)
        x = predict(x, i, sigmas, denoise)
        levels.append(x)
    return levels


def run_predict_then_correct(noise, denoise, forward, y, gamma_inv, n, guided, guidance, updates=1, rule="frobenius",
                             factor=4, cap=20, sigma_max=80.0, sigma_min=0.002, rho=7.0):
    """The order of the paper. Predictor from i to i + 1, then the correction at level i + 1, i = 0..N-1.

    ``guided`` is the collection of levels at which the correction is made, as above: level 0 is never corrected here,
    level N (sigma = 0) can be. Returns [X at level 0, ..., X at level N], each after its correction.
    """
    sigmas = edm_sigmas(n, sigma_max, sigma_min, rho)
    x = initial_ensemble(noise, sigma_max)
    levels = [x]
    for i in range(n):
        x = predict(x, i, sigmas, denoise)
        if i + 1 in guided:
            x = corrections_at_level(x, i + 1, n, sigmas, denoise, forward, y, gamma_inv, guidance, updates, rule,
                                     factor, cap)
        levels.append(x)
    return levels


def count_calls(n, guided, updates, factor=4, cap=20):
    """Sequential forward calls, U |guided|, and denoiser calls per particle, N + U sum_{i guided} n_i, by walking."""
    forward_calls, denoiser_calls = 0, 0
    for i in range(n):
        if i in guided:
            for _ in range(updates):
                forward_calls += 1
                denoiser_calls += inner_steps(i, n, factor, cap)
        denoiser_calls += 1
    return forward_calls, denoiser_calls
