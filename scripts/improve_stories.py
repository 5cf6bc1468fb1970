"""The recipes of saekit improve on a real model and real text: sad against happy stories, from files.

Example:
    python scripts/improve_stories.py ../shared/models/stories260k ../shared/data/tinystories_800.jsonl --out improved-stories

Writes the data files of the recipes from the stories, and runs the recipes as `saekit improve NAME MODEL --data ...` does.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saekit.errors import SaekitError
from saekit.improve.run import Settings, improve
from saekit.lm import LanguageModel

HAPPY = frozenset(["happy", "happily", "smiled", "smile", "laughed", "fun", "joy", "glad", "excited", "love", "loved"])
SAD = frozenset(["sad", "sadly", "cried", "cry", "crying", "scared", "afraid", "hurt", "sorry", "angry", "lost"])


def sentences(stories: Sequence[str]) -> list[str]:
    """The sentences of stories, of 5 to 30 words."""
    parts = [part.strip() for story in stories for part in re.split(r'(?<=[.!?])["”]?\s+', story)]
    return [part for part in dict.fromkeys(parts) if 5 <= len(part.split()) <= 30]


def of_words(texts: Sequence[str], words: frozenset[str], without: frozenset[str]) -> list[str]:
    """Texts with one of the words and none of the others."""
    found = []
    for text in texts:
        heard = set(re.findall(r"[a-z]+", text.lower()))
        if heard & words and not heard & without:
            found.append(text)
    return found


def write_files(stories: Sequence[str], folder: Path) -> dict[str, Path]:
    """The data files by kind: pairs (sad against happy, which is frequent), prompts (openings), texts (labelled happy or sad)."""
    folder.mkdir(parents=True, exist_ok=True)
    every = sentences(stories)
    happy, sad = of_words(every, HAPPY, SAD), of_words(every, SAD, HAPPY)
    n = min(len(happy), len(sad), 300)
    openings = [" ".join(story.split()[:8]) for story in stories[:120]]
    records: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"positive": a, "negative": b} for a, b in zip(sad[:n], happy[:n])],
        "prompts": [{"text": text} for text in dict.fromkeys(openings)],
        "texts": [{"text": text, "label": "happy"} for text in happy[:n]] + [{"text": text, "label": "sad"} for text in sad[:n]],
    }
    files = {}
    for name, rows in records.items():
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return files


RUNS = {
    "persona.vectors.add": {"pairs": "pairs", "prompts": "prompts"},
    "persona.components.trait_neurons": {"pairs": "pairs", "prompts": "prompts"},
    "safety.directions.truthfulness": {"statements": "pairs"},
    "multilingual.components.language_neurons": {"texts": "texts"},
    "multilingual.residual.confusion": {"texts": "texts"},
}
"""Recipe -> which file each input is given."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of stories260k, or another model of children's stories")
    parser.add_argument("stories", type=Path, help="stories in JSON Lines, with the field text")
    parser.add_argument("--out", type=Path, default=Path("improved-stories"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    stories = [json.loads(line)["text"] for line in options.stories.read_text("utf-8").splitlines() if line.strip()]
    files = write_files(stories, options.out / "data")
    lm = LanguageModel.load(options.model, dtype="float32")
    neutral = [row[:64] for row in lm.text.ids(stories[-32:])]
    for name, inputs in RUNS.items():
        data = {key: files[kind] for key, kind in inputs.items()}
        try:
            (report,) = improve(lm, name, Settings(data, options.out, neutral, quick=options.quick, progress=False))
        except SaekitError as error:
            print(f"{name}: {error}", end="\n\n", flush=True)
            continue
        print(report.table(), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
