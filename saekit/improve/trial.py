"""A run of a recipe: its model, its data in two halves, and the report that it ends with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from saekit.errors import SaekitError
from saekit.evaluate import capabilities
from saekit.evaluate.changed import Change
from saekit.improve import effects
from saekit.improve.data import Halves
from saekit.improve.recipes import RECIPES
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, Target
from saekit.locate.scored import bootstrap

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.tasks import Ranking

_LEAST = 0.01
"""A gain below this share of the larger of the two values is none that anybody would notice."""
_WORTH = 0.8
"""A control that reaches this share of the gain makes locating not worth it."""


@dataclass
class Trial:
    """What a recipe works with.

    Attributes:
        lm: the model, unchanged at the beginning and at the end.
        name: SCENARIO.PARADIGM.RECIPE.
        data: the data of each input, in two halves.
        neutral: neutral texts as rows of token ids, for side effects.
        seed: of everything that is drawn.
        quick: measure less, to see whether the recipe runs.
        progress: show progress bars.
        baseline: values of the laboratory's tasks on the unchanged model; shared by the recipes of one run.
        kept: what is saved beside the report, by name: rankings and the change.
        started: when the recipe began.
        seconds: time by part.
    """

    lm: LanguageModel
    name: str
    data: Mapping[str, Halves]
    neutral: Sequence[Sequence[int]]
    seed: int = 0
    quick: bool = False
    progress: bool = True
    baseline: dict[str, float] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def fit(self, name: str) -> Any:
        """The examples of an input that may be used to locate and to fit."""
        return self.data[name].fit

    def held_out(self, name: str) -> Any:
        """The examples of an input on which alone results are measured."""
        return self.data[name].held_out

    @property
    def random(self) -> Random:
        """A generator of this recipe."""
        return Random(f"{self.name}/{self.seed}")

    def rank(self, method: str, data: Any, **settings: Any) -> Ranking:
        """Run a locating method: :func:`saekit.locate.rank`. Its time is recorded, and its ranking is kept."""
        from saekit.locate import rank

        start = time.perf_counter()
        found = rank(self.lm, data, method, progress=self.progress, **settings)
        self.seconds["locate"] = self.seconds.get("locate", 0.0) + time.perf_counter() - start
        self.kept[f"ranking-{method}" if f"ranking-{method}" not in self.kept else f"ranking-{method}-{len(self.kept)}"] = found
        return found

    def measure(self, target: Target, change: Change | None = None) -> torch.Tensor:
        """(B,) the target's numbers with a change on; without one, of the unchanged model."""
        start = time.perf_counter()
        with (change or Change()).on(self.lm) as changed:
            found = target.score(changed)
        self.seconds["measure"] = self.seconds.get("measure", 0.0) + time.perf_counter() - start
        return found.double()

    def report(
        self,
        target: Target,
        change: Change,
        *,
        located: Ranking | None = None,
        controls: Mapping[str, Change] | None = None,
        changed: Mapping[str, Any] | None = None,
        aimed: Sequence[str] = (),
        before: Change | None = None,
        figures: Sequence[Mapping[str, Any]] = (),
        verdict: str | None = None,
    ) -> Report:
        """Measure the target without and with the change and each control, the side effects, and say whether it is worth it.

        Args:
            target: what is to be improved, on held-out examples.
            change: the change. It is kept beside the report.
            located: the objects that are changed.
            controls: other changes of equal size or cost: random objects, a random direction, prompting, full fine-tuning.
            changed: what the change is: "what" (a phrase), and "parameters" where weights are changed.
            aimed: tasks of the laboratory that the change is meant to change.
            before: the state that the change repairs, where that is another than the unchanged model, such as a weakened model.
            figures: further results.
            verdict: a sentence; None: made from the gain, the controls and the side effects.
        """
        first, after = self.measure(target, before), self.measure(target, change)
        facts = self._target_facts(target, first, after)
        rows = {name: self._control(target, first, each) for name, each in (controls or {}).items()}
        start = time.perf_counter()
        side = self._side_effects(change, aimed, before)
        self.seconds["side effects"] = time.perf_counter() - start
        self.kept["change"] = change
        ranked = {} if located is None else _located(located)
        sizes = {"what": "nothing"} | dict(changed or {})
        if "parameters" in sizes:
            sizes["share"] = sizes["parameters"] / sum(p.numel() for p in self.lm.model.parameters())
        return self._made(facts, rows, side, ranked, sizes, figures, verdict or verdict_of(facts, rows, side))

    def _made(
        self,
        target: Mapping[str, Any],
        controls: Mapping[str, Mapping[str, Any]],
        side: Mapping[str, Any],
        located: Mapping[str, Any],
        changed: Mapping[str, Any],
        figures: Sequence[Mapping[str, Any]],
        verdict: str,
    ) -> Report:
        """The report, with cost and origin."""
        scenario, paradigm, recipe = self.name.split(".")
        about = {
            "model": self.lm.name,
            "fingerprint": self.lm.fingerprint()["model"],
            "seed": self.seed,
            "quick": self.quick,
            "papers": list(RECIPES[self.name].papers),
        }
        cost = {"seconds": {**self.seconds, "all": time.perf_counter() - self.started}}
        return Report(scenario, paradigm, recipe, target, controls, side, located, changed, cost, verdict, list(figures), about)

    def readout(
        self,
        name: str,
        before: torch.Tensor,
        after: torch.Tensor,
        controls: Mapping[str, torch.Tensor],
        *,
        what: str,
        figures: Sequence[Mapping[str, Any]] = (),
        wanted: str | float = HIGHER,
        unit: str = "share",
    ) -> Report:
        """A report of what is read and not changed, such as a probe: numbers (B,) for each held-out example.

        Args:
            name: what the numbers are.
            before: without the method, such as always guessing the frequent class.
            after: with it.
            controls: of other methods.
            what: the method as a phrase.
            figures: further results.
        """
        target = Target(name, lambda changed: after, wanted, unit)
        rows = {}
        for key, each in controls.items():
            low, high = _interval(each)
            rows[key.replace(" ", "_")] = {"after": float(each.mean()), "low": low, "high": high, **_gains(target, before, each)}
        facts = self._target_facts(target, before, after)
        return self._made(facts, rows, {}, {}, {"what": what}, figures, verdict_of(facts, rows, {}))

    def _target_facts(self, target: Target, before: torch.Tensor, after: torch.Tensor) -> dict[str, Any]:
        low, high = _interval(after)
        gains = _gains(target, before, after)
        return {
            "name": target.name,
            "unit": target.unit,
            "wanted": target.wanted,
            "n": len(after),
            "before": float(before.mean()),
            "after": float(after.mean()),
            "low": low,
            "high": high,
            **gains,
        }

    def _control(self, target: Target, before: torch.Tensor, change: Change) -> dict[str, Any]:
        try:
            after = self.measure(target, change)
        except SaekitError as error:
            return {"after": None, "why": error.what}
        low, high = _interval(after)
        return {"after": float(after.mean()), "low": low, "high": high, **_gains(target, before, after)}

    def _side_effects(self, change: Change, aimed: Sequence[str], before: Change | None) -> dict[str, Any]:
        """What the change costs, relative to the state before it."""
        rows = self.neutral[:4] if self.quick else self.neutral
        found: dict[str, Any] = dict(effects.on_neutral_text(self.lm, change, rows, before))
        if capabilities.has_lab_tasks(self.lm):
            n = 4 if self.quick else 100
            names = capabilities.lab_tasks()[:1] if self.quick else capabilities.lab_tasks()
            if before is None and not self.baseline:
                self.baseline |= capabilities.measured_tasks(self.lm, Change(), names, n, self.seed)
            start = self.baseline if before is None else capabilities.measured_tasks(self.lm, before, names, n, self.seed)
            after = capabilities.measured_tasks(self.lm, change, names, n, self.seed)
            found["tasks"] = capabilities.lost_tasks(start, after, aimed)
        return found


def verdict_of(target: Mapping[str, Any], controls: Mapping[str, Mapping[str, Any]], side: Mapping[str, Any]) -> str:
    """One sentence whether the change is worth it: against its interval, its controls, and the tasks that it costs."""
    if target["gain_low"] <= 0:
        return "Not shown to work: the interval of the gain contains 0."
    if target["gain"] < _LEAST * max(abs(target["before"]), abs(target["after"])):
        return f"It makes no difference that matters: {target['before']:.4g} to {target['after']:.4g}."
    gains = {name: each["gain"] for name, each in controls.items() if each.get("gain") is not None}
    rivals = [name.replace("_", " ") for name, gain in gains.items() if gain >= _WORTH * target["gain"]]
    moved = f"{target['before']:.3g} to {target['after']:.3g}"
    lost = [each["task"] for each in side.get("tasks", {}).get("lost", [])]
    price = f", at the price of {', '.join(lost[:3])}" if lost else ""
    if rivals:
        return f"It works ({moved}){price}, but {' and '.join(rivals)} does as well."
    ahead = ", further than every control" if gains else ""
    return f"It works: {moved}{ahead}{price}."


def _finite(value: Any) -> Any:
    """None in place of a number that JSON does not have."""
    return None if isinstance(value, float) and not isfinite(value) else value


def _interval(scores_B: torch.Tensor) -> tuple[float, float]:
    low, high = bootstrap(scores_B[None])
    return float(low[0]), float(high[0])


def _gains(target: Target, before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """The gain and its 95 % interval, by a bootstrap over examples where both are of the same ones."""
    gain = target.gain(float(before.mean()), float(after.mean()))
    if not isinstance(target.wanted, str):
        low, high = _interval(after)
        start = float(before.mean())
        ends = [target.gain(start, low), target.gain(start, high)]
        if low <= target.wanted <= high:
            ends.append(gain)
        return {"gain": gain, "gain_low": min(ends), "gain_high": max([*ends, gain])}
    difference = after - before if target.wanted == HIGHER else before - after
    low, high = _interval(difference)
    return {"gain": gain, "gain_low": low, "gain_high": high}


def _located(ranking: Ranking, shown: int = 20) -> dict[str, Any]:
    top = ranking.top(shown)
    return {
        "method": str(ranking.obtained.get("method", "")),
        "objects": [[str(ref), score] for ref, score in top.items()],
        "of": len(ranking),
    }
