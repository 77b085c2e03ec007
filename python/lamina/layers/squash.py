"""squash: a vector's direction with a length between 0 and 1.

    v = f(q) s,  q = |s|^2 over the last dimension,  n = |s|
    exact     f = n / (1 + q)                       (Sabour, Frosst, Hinton 2017, eq. 1)
    sqrt_eps  f = q / (1 + q) / sqrt(q + eps)
    norm_eps  f = q / (1 + q) / (n + eps)
    exp       f = (1 - e^-n) / (n + eps)

`eps` is not neutral: with norm_eps at n = 1e-5, eps = 1e-5 halves the result. "exact" needs none: at
s = 0 value and gradient are 0 here, where plain autograd gives NaN.
"""

from torch import Tensor, where, zeros_like

KINDS = ("exact", "sqrt_eps", "norm_eps", "exp")


def reference(input: Tensor, kind: str = "exact", eps: float = 0.0) -> Tensor:
    q = input.square().sum(-1, keepdim=True)
    at_zero = q == 0
    # The norm's derivative is infinite at 0: keep that branch out of the graph.
    q = where(at_zero, 1.0, q)
    n = q.sqrt()
    if kind == "exact":
        f = n / (1 + q)
    elif kind == "sqrt_eps":
        f = q / (1 + q) / (q + eps).sqrt()
    elif kind == "norm_eps":
        f = q / (1 + q) / (n + eps)
    else:
        f = -(-n).expm1() / (n + eps)
    limit = 1.0 if kind == "exp" and eps == 0 else 0.0
    return where(at_zero, zeros_like(f) + limit, f) * input
