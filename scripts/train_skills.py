"""Train the laboratory's second model, `lab:skills`, from the first one on the corpus of `saekit.lab.skills`.

The result is a Hugging Face folder like that of `train_lab.py`: the same tokenizer and architecture, bfloat16 weights, and
`training.json`. To resume a stopped run, give the same command again. The defaults make the model that saekit ships.

Example:
    python scripts/train_skills.py --out skills
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import train_lab
from transformers import LlamaForCausalLM

from saekit import lab
from saekit.builtin import model_folder
from saekit.errors import SaekitError
from saekit.lab.skills import skill_documents


class SkillBatches(train_lab.Batches):
    """Batches of the second corpus."""

    def documents(self) -> list[lab.Document]:
        """The documents of the current pool."""
        start = self.pool * train_lab.POOL_DOCUMENTS
        return list(islice(skill_documents(seed=self._plan.seed, start=start), train_lab.POOL_DOCUMENTS))


class SkillRun(train_lab.Run):
    """A training run that begins with the weights and the tokenizer of a model."""

    batches_of = SkillBatches

    def begin(self) -> None:
        """Begin with the weights of the first model."""
        folder = model_folder()
        self.tokenizer = train_lab.wrapped((folder / "tokenizer.json").read_text(), self.plan)
        self.model = train_lab.new_model(self.plan, self.tokenizer)
        self.model.load_state_dict(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())

    def corpus(self) -> dict[str, str]:
        """What is trained on, for the record."""
        return {"lab": "skills", "split": "train", "seed": str(self.plan.seed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2_400_000, help="tokens to train on")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="learning rate of AdamW, for embeddings and norms")
    parser.add_argument("--muon-lr", type=float, default=2.0e-3, help="learning rate of Muon, for matrices")
    parser.add_argument("--checkpoints", type=int, default=0, help="number of intermediate models to keep, at growing intervals")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    first = train_lab.Plan(**json.loads((model_folder() / "training.json").read_text())["plan"])
    changed = {"seed": options.seed, "tokens": options.tokens, "lr": options.lr, "muon_lr": options.muon_lr}
    try:
        plan = replace(first, **changed)
        if train_lab.is_finished(options.out, plan):
            print(f"{options.out}: finished already")
            return
        options.out.mkdir(parents=True, exist_ok=True)
        run = SkillRun(plan, options.out, torch.device("cpu"))
        run.train(options.checkpoints, progress=not options.quiet)
    except SaekitError as error:
        sys.exit(str(error))
    print(f"{options.out}: {run.seen:,} tokens in {run.seconds / 60:.0f} minutes")


if __name__ == "__main__":
    main()
