"""Temperature scaling: probabilities that mean what they say, with the same answers (Guo et al. 2017, On Calibration of
Modern Neural Networks, arXiv:1706.04599)."""

from __future__ import annotations

import math

import numpy as np

# Far outside of what trained networks need (Guo et al. found 0.9 to 3), and served logits stay finite.
LOWEST, HIGHEST = 0.05, 20.0
_ROUNDING = 1e-12  # nats per text: of float64, not of the fit


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T, from LOWEST to HIGHEST, with the smallest negative log likelihood of softmax(logits / T).

    ``logits``: [texts, classes]; ``labels``: class ids [texts] of texts that the model was not trained on. Never worse
    than 1.0 on them. It is 1.0, which changes nothing, where no temperature is best: for no texts, for logits that are
    not finite or the same for all classes, and where every text is right, since then the smaller is always the better,
    and nothing says how often the model will err. Logits that are worse than chance have HIGHEST.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if not np.isfinite(logits).all() or (logits.argmax(axis=1) == labels).all():
        return 1.0
    # Here, because importing it takes half a second, and a search's driver has no logits.
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    of_label = logits[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((logsumexp(logits * scale, axis=1) - of_label * scale).mean())

    # In the logarithm, where a model that is k times too sure is as far off as one that is k times too timid. The loss
    # is convex in 1/T, so this has one minimum too.
    found = minimize_scalar(loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return math.exp(found.x) if found.fun < loss(0.0) - _ROUNDING else 1.0
