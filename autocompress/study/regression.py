"""A Gaussian process on standardised features (Rasmussen and Williams 2006), small enough to be fitted anew before every proposal.

Its kernel is a line in the features, a smooth bend of them, and a line in the single choices, which is what tells layers apart.
"""

import itertools

import numpy as np

from autocompress.study.forecast import Floats

BENDS, LENGTHS, SINGLES, NOISES = (0.1, 1.0), (0.7, 1.5), (0.1, 1.0), (0.02, 0.1, 0.4)
MOST = 200  # observations; of more, the latest
JUDGED = 80  # of them, the latest, by which the kernel is chosen
SPREAD = 3.0  # of a choice scaled to 0..1, which makes its variance about 1
JITTER = 1e-6


class Regression:
    """y ~ features (n, f) and single choices (n, d).

    ``floor``: the least spread that y is scaled by, so that equal values teach little. ``scale`` (f,): the spread of each feature in the
    space at large, which a few observations do not show.
    """

    def __init__(self, features: Floats, singles: Floats, y: Floats, floor: float, scale: Floats) -> None:
        features, singles, y = features[-MOST:], singles[-MOST:], y[-MOST:]
        self._mean, self._scale = features.mean(0), scale
        self._middle = singles.mean(0)
        self._f, self._s = self._scaled(features, singles)
        self._centre, self._spread = float(y.mean()), max(float(y.std()), floor)
        self._y = (y - self._centre) / self._spread
        parts = self._parts(self._f, self._s)
        latest = tuple(part[-JUDGED:, -JUDGED:] for part in parts)
        options = itertools.product(BENDS, LENGTHS, SINGLES, NOISES)
        self._option = max((evidence(latest, self._y[-JUDGED:], option), option) for option in options)[1]
        gram = _mixed(parts, self._option) + (self._option[3] + JITTER) * np.eye(len(y))
        self._factor = np.linalg.cholesky(gram)
        self._weights = np.linalg.solve(gram, self._y)

    def predict(self, features: Floats, singles: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of what lies behind y, without the noise of a measurement: luck is nothing to hope for."""
        f, s = self._scaled(features, singles)
        across = _mixed(self._parts(f, s), self._option)
        mean = across @ self._weights
        bend, _, single, _ = self._option
        own = 1 + (f**2).mean(1) + bend + single * (s**2).sum(1)
        variance = own - (np.linalg.solve(self._factor, across.T) ** 2).sum(0)
        return self._centre + self._spread * mean, self._spread * np.sqrt(np.maximum(variance, JITTER))

    def _scaled(self, features: Floats, singles: Floats) -> tuple[Floats, Floats]:
        return (features - self._mean) / self._scale, SPREAD * (singles - self._middle) / np.sqrt(max(singles.shape[1], 1))

    def _parts(self, f: Floats, s: Floats) -> tuple[Floats, Floats, Floats]:
        """Products of features, squared distances of features, products of single choices: each (n, observations)."""
        products, count = f @ self._f.T / f.shape[1], f.shape[1]
        distances = ((f**2).sum(1)[:, None] + (self._f**2).sum(1)[None] - 2 * count * products) / count
        return products, np.maximum(distances, 0.0), s @ self._s.T


def evidence(parts: tuple[Floats, ...], y: Floats, option: tuple[float, float, float, float]) -> float:
    """Log marginal likelihood, up to a constant."""
    gram = _mixed(parts, option) + (option[3] + JITTER) * np.eye(len(y))
    factor = np.linalg.cholesky(gram)
    alpha = np.linalg.solve(factor, y)
    return float(-0.5 * (alpha**2).sum() - np.log(np.diag(factor)).sum())


def _mixed(parts: tuple[Floats, ...], option: tuple[float, float, float, float]) -> Floats:
    products, distances, singles = parts
    bend, length, single, _ = option
    return np.asarray(1 + products + bend * np.exp(-distances / (2 * length**2)) + single * singles)
