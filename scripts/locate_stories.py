"""A pretrained model: which heads decide pronouns and repeated objects in stories, and does ablating them do what was predicted?

Prompts are drawn from stories. One half of the stories finds the heads; the other half, which no method saw, is measured. A
section of scripts/bench_locate.py; it also runs alone.

Example:
    python scripts/locate_stories.py --model ../shared/models/stories260k --texts ../shared/data/tinystories_800.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from saekit import LanguageModel
from saekit.cli.output import table
from saekit.locate import rank
from saekit.locate.agreement import spearman
from saekit.locate.causal import set_effects
from saekit.locate.scored import bootstrap
from saekit.objects.registry import spaces_of
from saekit.tasks import Ranking, Task
from saekit.tasks.generators.texts import KINDS, drawn_from

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
MODEL, TEXTS = SHARED / "models" / "stories260k", SHARED / "data" / "tinystories_800.jsonl"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ablation": ("ablation", {"replacement": "counterfactual"}),
    "attribution_patching": ("attribution_patching", {}),
    "atp_star": ("atp_star", {}),
    "integrated_gradients": ("integrated_gradients", {"along": "activations", "steps": 10}),
    "consensus": ("consensus", {"replacement": "counterfactual", "confirm": 5, "sample": 5}),
}
"""All are about the counterfactual value: what the object does on the corrupted prompt."""
FIRST, RANDOM_SETS = 5, 20


def halves(lm: LanguageModel, kind: str, texts: list[str], n: int | None) -> tuple[Task, Task]:
    """Prompts of the even and of the odd texts."""
    made = [drawn_from(kind, half, lambda text: lm.text.ids([text])[0]) for half in (texts[::2], texts[1::2])]
    return made[0][:n], made[1][:n]


def agreement(rankings: dict[str, Ranking]) -> list[dict[str, Any]]:
    """Of each pair of methods: Spearman's correlation and the number of common heads among the first 5."""
    refs = list(next(iter(rankings.values())))
    scores = {name: torch.tensor([found[ref] for ref in refs], dtype=torch.float64) for name, found in rankings.items()}
    return [
        {
            "methods": f"{one}, {other}",
            "spearman": spearman(scores[one], scores[other]),
            "common": len(set(rankings[one].top(FIRST)) & set(rankings[other].top(FIRST))),
        }
        for one, other in combinations(rankings, 2)
    ]


def interval(values_B: torch.Tensor) -> tuple[float, float, float]:
    """The mean and its 95 % bootstrap interval."""
    low, high = bootstrap(values_B[None])
    return float(values_B.mean()), float(low), float(high)


def measure(lm: LanguageModel, kind: str, texts: list[str], n: int | None) -> dict[str, Any]:
    """One kind of prompts: the heads that methods find, and what ablating them does on the other stories."""
    found_on, other = halves(lm, kind, texts, n)
    space = spaces_of(lm, "heads")
    rankings = {
        name: rank(lm, found_on, method, spaces=space, options=options, progress=False)
        for name, (method, options) in METHODS.items()
    }
    first = list(rankings["consensus"].top(FIRST))
    heads = list(rankings["ablation"])
    random = Random(0)
    rest = [ref for ref in heads if ref not in first]
    sets = [first, *(random.sample(rest, FIRST) for _ in range(RANDOM_SETS))]
    known, new = (
        set_effects(lm, task, [*sets, *([ref] for ref in heads)], replacement="counterfactual", progress=False)  # type: ignore[arg-type]
        for task in (found_on, other)
    )
    exact = torch.tensor([each.effect for each in new[len(sets) :]], dtype=torch.float64)
    return {
        "kind": kind,
        "prompts": [len(found_on), len(other)],
        "agreement": agreement(rankings),
        "heads": [
            {
                "head": str(ref),
                **{name: found[ref] for name, found in rankings.items() if name not in ("ablation", "consensus")},
                "predicted": known[len(sets) + heads.index(ref)].effect,
                "measured": interval(new[len(sets) + heads.index(ref)].per_example),
            }
            for ref in first
        ],
        "spearman": {
            name: spearman(torch.tensor([found[ref] for ref in heads], dtype=torch.float64), exact)
            for name, found in rankings.items()
        },
        "together": {"predicted": interval(known[0].per_example), "measured": interval(new[0].per_example)},
        "random": [each.effect for each in new[1 : len(sets)]],
        "metric": [_metric(lm, task) for task in (found_on, other)],
    }


@torch.no_grad()
def _metric(lm: LanguageModel, task: Task) -> float:
    """The mean logit difference of the clean prompts."""
    logits_BTV = lm.run(task.clean_BT, attention_mask=task.mask_BT).logits
    assert logits_BTV is not None
    rows = torch.arange(len(task))
    last_BV = logits_BTV[rows, task.last_B]
    return float((last_BV[rows, task.answer_B] - last_BV[rows, task.foil_B]).mean())


def section(model: str | Path = MODEL, texts: Path = TEXTS, n: int | None = 40) -> list[dict[str, Any]]:
    """The rows of the section: one for each kind of prompts."""
    lm = LanguageModel.load(model)
    stories = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    return [measure(lm, kind, stories, n) for kind in KINDS]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the section."""
    for row in rows:
        own, new = row["prompts"]
        print(f"{row['kind']}: found on {own} prompts, measured on {new}; logit difference {row['metric'][1]:.2f}")
        table(row["agreement"], title=f"agreement of methods on all heads, and of {FIRST} first ones")
        table([{**each, "measured": _text(each["measured"])} for each in row["heads"]], title="heads that consensus puts first")
        together, random = row["together"], row["random"]
        print(f"{FIRST} heads together: predicted {_text(together['predicted'])}, measured {_text(together['measured'])}")
        print(f"{FIRST} random other heads: mean {sum(random) / len(random):.2f}, largest {max(random):.2f}")
        print("Spearman with the ablations of new prompts: " + ", ".join(f"{k} {v:.2f}" for k, v in row["spearman"].items()))


def _text(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="name or folder of a model")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="JSON Lines with a text in each line")
    parser.add_argument("--prompts", type=int, default=40, help="most prompts of each half")
    parser.add_argument("--quick", action="store_true", help="8 prompts of each half")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = section(asked.model, asked.texts, 8 if asked.quick else asked.prompts)
    print(json.dumps(rows, indent=1)) if asked.json else show(rows)


if __name__ == "__main__":
    main()
