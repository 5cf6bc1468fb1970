"""Running sums of numbers of units over the tokens of texts, by class. Memory does not grow with the number of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass
class Moments:
    """Sums over examples (tokens, or pooled texts) of K classes, for U units. float64.

    Attributes:
        text_K: number of texts that have examples of the class.
        n_K, nn_K: number of examples, and the sum over texts of the square of their number of examples.
        sum_KU, square_KU: sums over examples of x and x^2.
        texts_KU, mixed_KU: sums over texts of s^2 and s n, where a text has n examples with the sum s.
        largest_KU: the largest x; -inf where there is no example.
    """

    text_K: np.ndarray
    n_K: np.ndarray
    nn_K: np.ndarray
    sum_KU: np.ndarray
    square_KU: np.ndarray
    texts_KU: np.ndarray
    mixed_KU: np.ndarray
    largest_KU: np.ndarray

    @classmethod
    def empty(cls, K: int, U: int) -> Moments:
        """Sums of nothing."""
        one, each = np.zeros(K), np.zeros((K, U))
        return cls(one, one.copy(), one.copy(), each, each.copy(), each.copy(), each.copy(), np.full((K, U), -np.inf))

    def add(self, x_nU: np.ndarray | csr_array, text_n: np.ndarray, class_n: np.ndarray) -> None:
        """Add examples; all examples of a text are added in one call.

        Args:
            x_nU: the numbers, dense or sparse.
            text_n: the text of each example.
            class_n: the class of each example, from 0.
        """
        for k in np.unique(class_n):
            chosen = class_n == k
            x, (_, which_n, count_t) = x_nU[chosen], np.unique(text_n[chosen], return_inverse=True, return_counts=True)
            sums_tU = grouped(x, which_n, len(count_t))
            self.text_K[k] += len(count_t)
            self.n_K[k] += len(which_n)
            self.nn_K[k] += float((count_t.astype(float) ** 2).sum())
            self.sum_KU[k] += _total(sums_tU)
            self.square_KU[k] += _total(x.astype(np.float64) ** 2)
            self.texts_KU[k] += _total(sums_tU**2)
            self.mixed_KU[k] += count_t.astype(float) @ sums_tU
            largest = x.max(axis=0)
            largest = largest.toarray() if hasattr(largest, "toarray") else largest
            self.largest_KU[k] = np.maximum(self.largest_KU[k], np.asarray(largest).ravel())

    @property
    def mean_KU(self) -> np.ndarray:
        """Means over examples; NaN for a class without examples."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sum_KU / self.n_K[:, None]

    @property
    def error_KU(self) -> np.ndarray:
        """Standard errors of the means, where the texts are the independent draws (the ratio estimator of cluster sampling,
        Cochran 1977, section 6.4); inf for a single text."""
        m, n, texts = self.mean_KU, self.n_K[:, None], self.text_K[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            squares = np.maximum(self.texts_KU - 2 * m * self.mixed_KU + m**2 * self.nn_K[:, None], 0)
            error = np.sqrt(squares * texts / (texts - 1)) / n
        return np.where(texts > 1, error, np.inf)

    @property
    def variance_KU(self) -> np.ndarray:
        """Unbiased variances of single examples."""
        n = self.n_K[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.maximum(self.square_KU - self.sum_KU**2 / n, 0) / (n - 1)


def grouped(x_nU: Any, group_n: np.ndarray, G: int) -> Any:
    """(G, U) float64 sums of rows by group; sparse for a sparse `x_nU`."""
    from scipy.sparse import csr_array

    member_Gn = csr_array((np.ones(len(group_n)), (group_n, np.arange(len(group_n)))), shape=(G, len(group_n)))
    return member_Gn @ x_nU


def _total(x: Any) -> np.ndarray:
    return np.asarray(x.sum(axis=0)).ravel()
