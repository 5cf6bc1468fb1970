"""The whole job on tiny random models of several families: fit, search, show and steer, on the command line.

The models have random weights and a real tokenizer, so what they say means nothing: the commands must work and their numbers must
be finite.

Example:
    python scripts/fit_families.py --model ../shared/models/stories260k --data ../shared/data/tinystories_800.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from scripts.tiny_families import tiny_folder

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": {},
    "qwen3_next": {},
    "deepseek_v3": {},
    "granite": {},  # with multipliers: scripts/tiny_families.py
    "falcon_h1": {},
    "mamba2": {},
    "qwen2_5_vl": {},
    "codegen": {},
}
"""Families, with settings of their configurations."""

_A_WORD = (
    "select word, ref from words where role = 'fires_word' and length(word) > 3 and word not glob '*[^a-z]*' order by value desc"
)
"""A word that a feature fires on. What a query of our own finds depends on the dictionary, and so on the machine."""

Run = Callable[..., Any]
"""Runs `saekit ARGUMENTS --json` and returns what it prints; raises RuntimeError where it fails."""


def fit_family(name: str, folder: Path, tokenizer: Path, data: Path, run: Run) -> dict[str, Any]:
    """Fit, search, show and steer one family. Returns its figures.

    Args:
        name: a family of :mod:`scripts.tiny_families`.
        folder: for the model and the workspace.
        tokenizer: a folder of Hugging Face with a tokenizer.
        data: text.

    Raises:
        RuntimeError: a command fails; the message is the command's own.
        AssertionError: a result is not what it must be.
    """
    model = tiny_folder(name, folder / "model", tokenizer, **FAMILIES.get(name, {}))
    ws, site = folder / "ws", "resid_post.1"
    options = ("--site", site, "--data", data, "--tokens", 8_000, "--train-tokens", 40_000, "--latents", 128, "--k", 8)
    fitted = run("fit", model, *options, "--context", 64, "--out", ws)
    quality = fitted["sites"][site]
    assert all(math.isfinite(value) for value in quality.values() if isinstance(value, float)), quality
    assert quality["fvu"] < 0.9, quality
    (known,) = run("sql", ws, _A_WORD, "-n", 1)
    hits = run("search", ws, known["word"])
    assert known["ref"] in [hit["ref"] for hit in hits], f"a search for {known['word']!r} does not find {known['ref']}"
    assert all(hit["ref"].startswith(f"feature:{site}/") for hit in hits), hits
    assert run("show", ws, known["ref"])["ref"] == known["ref"]
    steered = run("steer", ws, "--feature", f"{known['ref']}:2norm", "--max-new-tokens", 8, "Once upon a time")
    texts = [steered[kind][0] if isinstance(steered[kind], list) else steered[kind] for kind in ("baseline", "steered")]
    assert texts[0] != texts[1], "steering at twice the norm changes nothing"
    return {"fvu": quality["fvu"], "word": known["word"], "hits": len(hits), "steered": known["ref"]}


def in_new_process(*arguments: object) -> Any:
    """Run a command as a user does."""
    command = [sys.executable, "-m", "saekit", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"saekit {arguments[0]}: {' '.join((done.stderr or done.stdout).split())[-500:]}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder whose tokenizer the models get")
    parser.add_argument("--data", type=Path, required=True, help="text to train on")
    parser.add_argument("--family", action="append", metavar="NAME", help=f"default: {', '.join(FAMILIES)}")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from saekit.progress import track

    rows: dict[str, Any] = {}
    names = arguments.family or list(FAMILIES)
    with track("fitting", len(names), unit="families", enabled=not arguments.json) as bar:
        for n, name in enumerate(names, 1):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    rows[name] = fit_family(name, Path(folder), arguments.model, arguments.data, in_new_process)
                except Exception as error:
                    rows[name] = {"error": f"{type(error).__name__}: {error}"}
            bar.update(n)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        for name, row in rows.items():
            print(f"{name:14}", row.get("error") or "fvu {fvu:.3f}, {hits} hits for '{word}', steered {steered}".format(**row))
    sys.exit(any("error" in row for row in rows.values()))


if __name__ == "__main__":
    main()
