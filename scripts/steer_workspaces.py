"""The workspaces that sections of scripts/bench_steer.py steer: built once, in BENCH_STEER or in the folder bench-steer.

BENCH_STEER may hold ready workspaces `lab` and `stories` with dictionaries that are indexed; what is missing is made.
"""

from __future__ import annotations

import os
from pathlib import Path

from saekit.workspace import Workspace
from saekit.workspace.workspace import study_of
from trainers import TrainConfig

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
STORIES, TEXTS = SHARED / "models" / "stories260k", SHARED / "data" / "tinystories_800.jsonl"
_TOKENS, _TRAIN = 400_000, 2_500_000


def workspace(name: str, model: str | Path, data: str | Path, site: str) -> Workspace:
    """The workspace of a model with a dictionary of 4096 features at a site that can be searched."""
    from saekit.lm import LanguageModel

    folder = Path(os.environ.get("BENCH_STEER", "bench-steer")) / name
    if (folder / "saekit.toml").is_file():
        ws = Workspace.open(folder)
    else:
        ws = Workspace.plan(folder, study_of(str(model), (site,), str(data), tokens=_TOKENS), LanguageModel.load(model))
    if not (ws.path / "features.sqlite").is_file():
        with ws.writing():
            ws.cache()
            ws.train(ws.lm.site(site), TrainConfig(n_latents=4096, l0=32, tokens=_TRAIN))
            ws.index(ws.lm.site(site)).close()
    ws.attach(site)
    return ws


def lab(site: str = "resid_post.3") -> Workspace:
    """The laboratory's."""
    return workspace("lab", "lab", "lab", site)


def stories(site: str = "resid_post.3") -> Workspace:
    """That of stories260k."""
    return workspace("stories", STORIES, TEXTS, site)
