"""AGA, the adaptive sync of ARS2-Neo (dmf-archive/ARS): when to recompute the shear force."""


def decide_sync(
    scalars: dict[str, float], phi: float, k: int, alpha: float, decay: float, scale: float,
    gamma: float,
) -> bool:
    """Whether to sync, given phi = cos(gradient, shear force); updates `scalars` in place.

    As in the released code: variance of phi (a moving average of phi^2 with `decay`; unchanged in
    the first step after a sync), threshold -scale sqrt(variance), alpha_t = alpha (1 +
    max(0, phi))^gamma. Sync in step 1, where phi < threshold, and for k > 1 k steps after the last.
    """
    since_sync = scalars["step"] - scalars["last_sync_step"]
    if scalars["step"] == 1:
        scalars["phi_var"] = phi**2
    elif since_sync > 1:
        scalars["phi_var"] = decay * scalars["phi_var"] + (1 - decay) * phi**2
    scalars["phi"] = phi
    scalars["threshold"] = -scale * scalars["phi_var"] ** 0.5
    scalars["alpha_t"] = alpha * (1 + max(0.0, phi)) ** gamma
    overdue = k > 1 and since_sync >= k
    return scalars["step"] == 1 or phi < scalars["threshold"] or overdue
