"""How large a curvature may be before steps on a quadratic grow."""


def stability_limit(rate: float, momentum: float, nesterov: bool) -> float:
    """Largest stable curvature of gradient descent with momentum on a quadratic.

    Heavy-ball: 2(1+μ)/η (Polyak, 1964). Nesterov's momentum: 2(1+μ)/((1+2μ)η) (Cohen et al., arXiv 2103.00065).

    Args:
        rate: η.
        momentum: μ.
        nesterov: Whether the momentum is Nesterov's.

    Returns:
        The limit of λ̃ = λ + δ.
    """
    return 2 * (1 + momentum) / rate / (1 + 2 * momentum if nesterov else 1)
