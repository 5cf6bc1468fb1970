"""What the page and the table of a sweep show: a comparison of its dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saekit.evaluate.dictionary.remarks import overfitted, useless
from saekit.progress import track
from saekit.views.training import page_name

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace
    from trainers import Plan

_SPARSITY = ("l0", "sparsity", "k_start", "seed", "data_seed")
"""Settings that can differ between the points of one curve."""


@dataclass(frozen=True)
class Compared:
    """One dictionary among others.

    Attributes:
        route: the sites that it reads and writes.
        name: its name among the dictionaries of its site.
        series: the settings in which it differs from the others, except sparsity and seeds.
        metrics: of :func:`saekit.evaluate.dictionary.quality.quality`, on held-out documents where there are any.
        best: no other sound dictionary at its route is better in FVU or in L0 and as good in the other. A dictionary that is
            overfitted or useless is never best (:mod:`saekit.evaluate.dictionary.remarks`).
    """

    route: str
    name: str
    series: str
    metrics: dict[str, Any]
    best: bool

    @property
    def verdict(self) -> str:
        """ "on the front", "overfitted", "no better than chance" or ""."""
        if useless(self.metrics):
            return "no better than chance"
        return "overfitted" if overfitted(self.metrics) else "on the front" if self.best else ""

    @property
    def page(self) -> str:
        """Name of the page on its training."""
        return page_name(self.route, self.name)

    def row(self) -> dict[str, Any]:
        """A row of the table."""
        keys = ("l0", "fvu", "ce_recovered", "dead_fraction")
        numbers = {key: self.metrics[key] for key in keys}
        return {"site": self.route, "name": self.name, **numbers, "best": self.best, "verdict": self.verdict}


def compare(ws: Workspace, plans: Sequence[Plan], *, progress: bool = True) -> list[Compared]:
    """Measure the dictionaries that plans have made, the sparsest first. Plans that made none are left out.

    What was measured of the same weights before, with the same baseline, is not measured again.
    """
    done = [plan for plan in plans if (plan.out / "cfg.json").exists()]
    metrics = []
    with track("measuring", len(done), unit="dictionaries", enabled=progress) as bar:
        for plan in done:
            metrics.append(ws.evaluate(plan.route, plan.name, again=False, baseline="zero", progress=False))
            bar.update(len(metrics), plan.name)
    return rank(done, metrics)


def rank(plans: Sequence[Plan], metrics: Sequence[dict[str, Any]]) -> list[Compared]:
    """Compare dictionaries that have been measured.

    Args:
        metrics: for each plan, at least fvu, l0, ce_recovered, kl and dead_fraction.
    """
    found = []
    for plan, own in zip(plans, metrics, strict=True):
        rivals = [other for plan2, other in zip(plans, metrics) if plan2.route == plan.route]
        best = _sound(own) and not any(_sound(other) and _beats(other, own) for other in rivals)
        found.append(Compared(str(plan.route), plan.name, _series(plan, plans), own, best))
    return sorted(found, key=lambda each: (each.route, each.metrics["l0"]))


def _sound(metrics: dict[str, Any]) -> bool:
    return not overfitted(metrics) and not useless(metrics)


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    no_worse = one["fvu"] <= other["fvu"] and one["l0"] <= other["l0"]
    return bool(no_worse and (one["fvu"], one["l0"]) != (other["fvu"], other["l0"]))


def _series(plan: Plan, plans: Sequence[Plan]) -> str:
    settings = [each.config.to_dict() for each in plans if each.route == plan.route]
    own = plan.config.to_dict()
    telling = [key for key in own if key not in _SPARSITY and any(each[key] != own[key] for each in settings)]
    return ", ".join(str(own[key]) if key == "arch" else f"{key} {own[key]}" for key in telling)
