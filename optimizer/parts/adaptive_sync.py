"""AGA, the adaptive sync of ARS2-Neo (dmf-archive/ARS): when to renew the shear force."""


def decide_sync(
    scalars: dict[str, float], phi: float, k: int, alpha: float, decay: float, scale: float,
    gamma: float,
) -> bool:
    """Whether to sync, given phi = cos(gradient, shear force); updates `scalars` in place.

    In the order of the released code: variance of phi (an average of phi^2 with `decay`), threshold
    -scale sqrt(variance), decision, alpha_t = alpha (1 + max(0, phi))^gamma. k > 1: at least
    every k steps.
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
