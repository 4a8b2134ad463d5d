"""SEPFL's density and network by definition, one face and one link at a time."""

import numpy as np
from scipy.special import erf


def density(sims, rho):
    """(c1 / max c1 + c2 / max c2) / 2: c1 summed in float64 and kept in float32, c2 the number of sims >= rho."""
    c1 = [np.float32(sum(float(sim) for sim in row)) for row in sims]
    c2 = [sum(float(sim) >= rho for sim in row) for row in sims]
    return [(float(np.float32(a / max(c1))) + b / max(c2)) / 2 for a, b in zip(c1, c2, strict=True)]


def logits(state, face, denser):
    """The network's two logits for a link, in float64.

    state: the authors' state_dict as arrays; face, denser: each a pair of x (d,) and the features xk (k, d) of its
    neighbors, itself included.
    """
    return head(state, np.hstack([branch(state, *face), branch(state, *denser)]))


def branch(state, x, xk):
    """A face with what it attends to among its neighbors, (2d,)."""
    p = _Weights(state)
    z = np.stack([np.hstack([x, other]) for other in xk.astype(np.float64)])  # (k, 2d)
    z = z + p.norm("channel_bn", p.linear("channel_mix.3", _gelu(p.linear("channel_mix.0", z))))
    zt = z.T + p.norm("token_bn", p.linear("token_mix.3", _gelu(p.linear("token_mix.0", z.T))).T).T
    w = p.linear("attention_layer.3", _gelu(p.linear("attention_layer.0", p.norm("attention_bn", zt.T))))
    return np.hstack([x, sum(weight * other for weight, other in zip(w[:, 0], xk, strict=True))])


def head(state, pair):
    """Logits (2,) of f_b and f_c side by side, (4d,)."""
    p = _Weights(state)
    y = p.linear("classifier.1", p.norm("classifier.0", pair))
    y = p.linear("classifier.5", _gelu(p.norm("classifier.2", y)))
    return p.linear("classifier.9", _gelu(p.norm("classifier.6", y)))


class _Weights:
    def __init__(self, state):
        self.state = {name: np.asarray(value, dtype=np.float64) for name, value in state.items()}

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x):
        mean, variance, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def _gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2
