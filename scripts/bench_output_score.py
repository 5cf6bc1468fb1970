"""Whether scores of features predict what steering with them does: rank correlation of each score with the share of generated
tokens that are among the feature's 20 most promoted tokens, minus that share without steering.

python scripts/bench_output_score.py WORKSPACE --features 48
"""

from __future__ import annotations

import argparse
import json

import numpy as np

PROMPTS = (
    "Once upon a time",
    "One day, a girl",
    "The old man",
    "They saw",
)  # none of them is a neutral prompt of the measurement
SCORES = ("output_score", "effect", "input_score", "density")


def main() -> None:
    from scipy.stats import spearmanr

    from saekit import Workspace
    from saekit.progress import track

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace")
    parser.add_argument("--features", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--strength", default="0.5norm")
    asked = parser.parse_args()
    ws = Workspace.open(asked.workspace)
    settings = {"max_new_tokens": asked.tokens, "do_sample": True, "top_k": 0, "n_samples": asked.samples, "seed": 0}
    with ws.database() as database:
        rows = database.sql(
            f"select ref, {', '.join(SCORES)} from features where output_score is not null order by output_score", limit=1 << 20
        ).rows
        rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, asked.features).astype(int))]
        base = [token for row in ws.lm.generate(list(PROMPTS), **settings).tokens for token in row]
        gains = []
        with track("steering", total=len(rows), unit="features") as bar:
            for i, (ref, *_) in enumerate(rows):
                promoted = [each.token_id for each in database.feature(ref).promoted[:20]]
                made = ws.lm.generate(list(PROMPTS), interventions=ws.intervention([f"{ref}:{asked.strength}"]), **settings)
                tokens = [token for row in made.tokens for token in row]
                gains.append(float(np.isin(tokens, promoted).mean() - np.isin(base, promoted).mean()))
                bar.update(i + 1)
    found = {name: float(spearmanr([row[1 + i] for row in rows], gains).statistic) for i, name in enumerate(SCORES)}
    quarter = max(1, len(rows) // 4)
    parts = {"lowest quarter by output score": gains[:quarter], "highest quarter": gains[-quarter:], "all": gains}
    means = {name: float(np.mean(part)) for name, part in parts.items()}
    print(
        json.dumps({"features": len(rows), "rank correlation with steering": found, "gain of promoted tokens": means}, indent=1)
    )


if __name__ == "__main__":
    main()
