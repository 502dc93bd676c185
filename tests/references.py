"""Plain float64 versions of the update rules, written from the formulas, one tensor at a time."""

import numpy as np


def msign(matrix):
    """U V^T over the nonzero singular values."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    keep = s > max(matrix.shape) * np.finfo(np.float64).eps * (s[0] if len(s) else 0)
    return u[:, keep] @ vt[keep]


def keller5(matrix, steps=5):
    """Keller Jordan's quintic iteration, one matrix, no transposing."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def per_matrix(function, tensor):
    """Apply to each matrix of a tensor: 2-D itself, 3-D a stack, 4-D (out, rest)."""
    if tensor.ndim == 3:
        return np.stack([function(matrix) for matrix in tensor])
    return function(tensor.reshape(len(tensor), -1)).reshape(tensor.shape)


class Adam:
    """Moments of one tensor and Adam's direction."""

    def __init__(self, betas=(0.9, 0.999), eps=1e-8):
        self.betas, self.eps, self.t, self.m, self.v = betas, eps, 0, 0.0, 0.0

    def direction(self, grad, squared=None, t=None):
        """Advance by `grad` (v by `squared` if another) and return m_hat / (sqrt(v_hat) + eps)."""
        squared = grad if squared is None else squared
        b1, b2 = self.betas
        self.t += 1
        t = t or self.t
        self.m = b1 * self.m + (1 - b1) * grad
        self.v = b2 * self.v + (1 - b2) * squared**2
        return (self.m / (1 - b1**t)) / (np.sqrt(self.v / (1 - b2**t)) + self.eps)


def rmsuon_update(adam, grad):
    """E O / ||O|| of each matrix, O from the momentum itself."""
    u = adam.direction(grad)
    if grad.ndim == 3:
        return np.stack([np.linalg.norm(ui) * (o := keller5(mi)) / np.linalg.norm(o)
                         for ui, mi in zip(u, adam.m, strict=True)])
    o = per_matrix(keller5, adam.m)
    return np.linalg.norm(u) * o / np.linalg.norm(o)


def ars_update(direction):
    """E O of each matrix, literal energy."""
    return per_matrix(lambda u: np.linalg.norm(u) * keller5(u), direction)


class Muon:
    """Keller's Muon of one tensor: lerp momentum, Nesterov, 5 steps, sqrt(max(1, m/n))."""

    def __init__(self, momentum=0.95):
        self.momentum, self.buffer = momentum, 0.0

    def update(self, grad):
        """c O for this gradient."""
        mu = self.momentum
        self.buffer = mu * self.buffer + (1 - mu) * grad
        u = (1 - mu) * grad + mu * self.buffer
        m, n = u.shape[-2:] if u.ndim == 3 else u.reshape(len(u), -1).shape
        return max(1, m / n) ** 0.5 * per_matrix(keller5, u)


class ARS2Neo:
    """All modes over named tensors; `gradient(weights) -> {name: grad}` stands for the closure."""

    def __init__(self, weights, matrices, lr, wd, betas, adamw_betas, rho, k, alpha,
                 aga=None, eps=1e-8):
        self.w, self.matrices, self.lr, self.wd = weights, matrices, lr, wd
        self.rho, self.k, self.alpha, self.aga, self.eps = rho, k, alpha, aga, eps
        self.adam = {n: Adam(betas if n in matrices else adamw_betas, eps) for n in weights}
        self.shear, self.t, self.last_sync, self.var, self.syncs = {}, 0, 0, 0.0, []

    def step(self, gradient):
        """One step, in the order of the released code."""
        self.t += 1
        g = gradient(self.w)
        alpha, sync = self.alpha, False
        if self.aga:
            beta, lam, gamma = self.aga
            phi = self._phi(g)
            gap = self.t - self.last_sync
            if self.t == 1:
                self.var = phi**2
            elif gap > 1:
                self.var = beta * self.var + (1 - beta) * phi**2
            sync = self.t == 1 or phi < -lam * self.var**0.5 or (self.k > 1 and gap >= self.k)
            alpha *= (1 + max(0, phi)) ** gamma
        elif self.k:
            sync = self.k == 1 or self.t % self.k == 1
        if sync:
            self.last_sync = self.t
            self.syncs.append(self.t)
            g = self._adversarial(g, gradient)
        elif self.k or self.aga:
            for n, f in self.shear.items():
                g[n] = g[n] + alpha * np.linalg.norm(g[n]) / np.linalg.norm(f) * f
        for n, w in self.w.items():
            u = self.adam[n].direction(g[n])
            self.w[n] = w * (1 - self.lr * self.wd) - self.lr * (
                ars_update(u) if n in self.matrices else u)

    def _phi(self, g):
        if not self.shear:
            return 0.0
        dot = sum((g[n] * f).sum() for n, f in self.shear.items())
        gg = sum((g[n] ** 2).sum() for n in self.shear)
        ff = sum((f**2).sum() for f in self.shear.values())
        return dot / np.sqrt(gg * ff)

    def _adversarial(self, g, gradient):
        moved = {}
        for n, w in self.w.items():
            correction = 1 - self.adam[n].betas[1] ** max(1, self.t - 1)
            q = g[n] / (np.sqrt(self.adam[n].v / correction) + self.eps) * np.abs(w)
            moved[n] = w + self.rho * q / np.linalg.norm(q)
        g2 = gradient(moved)
        self.shear = {n: g2[n] - (g2[n] * g[n]).sum() / (g[n] ** 2).sum() * g[n] for n in g}
        return g2
