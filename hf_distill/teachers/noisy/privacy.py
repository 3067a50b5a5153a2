"""What asking private teachers costs: epsilon of noisy votes, by the package `dp-accounting`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from hf_distill.errors import UserError

PACKAGE = "dp_accounting"

Mechanism = Literal["laplace", "gnmax", "confident"]


@dataclass(frozen=True)
class Accountant:
    """Privacy of a number of queries, whatever the teachers vote (data-independent bounds).

    A row that is replaced by another one changes the vote of one teacher: one count falls by one, another rises by one.
    An answer is therefore no more than two counts with noise. With Gaussian noise that has a Rényi divergence of
    `alpha / sigma^2` (Papernot et al. 2018, arXiv 1802.08908, proposition 8); with Laplace noise of scale `1 / gamma`
    it is `(2 gamma, 0)`-private (Papernot et al. 2017, arXiv 1610.05755, section 3.1). The threshold of Confident-GNMax
    looks at the highest count, which changes by one: `alpha / (2 sigma_1^2)` for every query, answered or not.

    Attributes:
        mechanism: How votes are made noisy.
        noise: Standard deviation of the Gaussian noise, or scale of the Laplace noise, of each count.
        threshold_noise: Standard deviation of the noise on the highest count; None without a threshold.
        delta: Probability with which the bound on epsilon may fail.
    """

    mechanism: Mechanism
    noise: float
    threshold_noise: float | None
    delta: float

    def epsilon(self, asked: int, answered: int, order: float | None = None) -> float:
        """Return epsilon of a number of queries.

        Args:
            asked: Number of queries.
            answered: How many of them were answered; without a threshold, all.
            order: The only Rényi order to use. Default: the best of those that `dp-accounting` tries.
        """
        return self._spent(asked, answered, None if order is None else [order])[0]

    def fitting(self, budget: float, most: int) -> int:
        """Return how many queries fit into a budget, all of them answered.

        Args:
            budget: Highest epsilon.
            most: Highest number to return.
        """
        low, high = 0, most
        while low < high:  # epsilon grows with the number of queries
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.epsilon(middle, middle) <= budget else (low, middle - 1)
        return low

    def order(self, queries: int) -> float:
        """Return the Rényi order that gives the lowest epsilon for this number of answered queries."""
        return self._spent(queries, queries, None)[1]

    def _spent(self, asked: int, answered: int, orders: list[float] | None) -> tuple[float, float]:
        from dp_accounting.rdp import RdpAccountant

        if not asked:
            return 0.0, 2.0
        accountant = RdpAccountant(orders)
        # Two counts change by one, so the sensitivity of each is 1, and the noise multiplier is the noise itself.
        if answered:
            accountant.compose(self._of_a_count, 2 * answered)
        if self._of_the_threshold is not None:
            accountant.compose(self._of_the_threshold, asked)
        epsilon, order = accountant.get_epsilon_and_optimal_order(self.delta)
        if self.mechanism == "laplace":  # pure epsilon adds up, and is lower for a few queries
            epsilon = min(epsilon, 2 * answered / self.noise)
        return float(epsilon), float(order)

    @cached_property
    def _of_a_count(self) -> Any:
        import dp_accounting

        event = dp_accounting.LaplaceDpEvent if self.mechanism == "laplace" else dp_accounting.GaussianDpEvent
        return event(self.noise)

    @cached_property
    def _of_the_threshold(self) -> Any:
        import dp_accounting

        return None if self.threshold_noise is None else dp_accounting.GaussianDpEvent(self.threshold_noise)


@dataclass(frozen=True)
class PrivacyTerms:
    """How private teachers are asked.

    Attributes:
        accountant: What a query costs.
        budget: Highest epsilon of all answers together.
        count: Number of teachers.
        threshold: Votes, after noise, from which a row is answered; None without.
        soft: Whether answers are distributions.
        queries: How many rows to ask at most; None for all.
        seed: Seed of the order of the rows.
        words: The mechanism and its settings, for the user.
    """

    accountant: Accountant
    budget: float
    count: int
    threshold: float | None
    soft: bool
    queries: int | None
    seed: int
    words: str


@dataclass
class PrivacyBudget:
    """Decides, query by query, whether another one fits into a budget.

    Which queries are answered depends on the private rows, and so does the epsilon of a number of answers. A bound that
    holds all the same is fixed before: all queries answered, if that fits; else the budget, and every query is charged
    at one Rényi order until it is used up (a Rényi filter: Feldman and Zrnic 2021, arXiv 2008.11193, theorem 4.3).

    Args:
        accountant: What queries cost.
        budget: Highest epsilon.
        queries: Number of queries that are wanted.

    Attributes:
        epsilon: The bound, which holds whatever is answered.
        asked: Number of queries so far.
        answered: How many of them were answered.

    Raises:
        UserError: No query fits.
    """

    accountant: Accountant
    budget: float
    queries: int
    asked: int = 0
    answered: int = 0

    def __post_init__(self) -> None:
        """Fix the bound and the order."""
        self.most = self.accountant.fitting(self.budget, self.queries)
        check_fits(self.accountant, self.budget, self.most)
        self.order = self.accountant.order(self.most)
        self._filters = self.accountant.threshold_noise is not None and self.most < self.queries
        self.epsilon = self.budget if self._filters else self.accountant.epsilon(self.most, self.most)

    @property
    def reach(self) -> int:
        """How many queries there can be: more than fit if all are answered, where some may not be."""
        return self.queries if self._filters else self.most

    def has_room(self) -> bool:
        """Return whether another query may be asked and answered."""
        if self._filters:
            next_one = self.accountant.epsilon(self.asked + 1, self.answered + 1, self.order)
            return self.asked < self.reach and next_one <= self.budget
        return self.asked < self.reach

    def charge(self, *, answered: bool) -> None:
        """Count a query."""
        self.asked += 1
        self.answered += answered


def check_fits(accountant: Accountant, budget: float, fitting: int) -> None:
    """Refuse a budget that no query fits.

    Raises:
        UserError: None fits; the message says what one costs.
    """
    if not fitting:
        one = accountant.epsilon(1, 1)
        raise UserError(
            f"no query fits: a single one costs epsilon {one:.3g} (delta {accountant.delta:g}), and the budget is "
            f"{budget:.3g}. Take more noise, or a larger budget.",
            key="budget",
        )
