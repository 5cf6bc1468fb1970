"""The quality of the newer objectives beside those that they extend, at equal tokens, latents and L0, on the same text.

    abstopk      AbsTopK beside TopK
    quadratic    JumpReLU with the quadratic penalty beside the adjusted one: how close L0 comes to its target
    whitening    TopK in whitened coordinates beside TopK
    tsae         T-SAE beside Matryoshka: smoothness of the first fifth of the latents between neighbouring tokens
    end_to_end   TopK, fine-tuned on KL or cross-entropy for a tenth of the tokens, beside TopK and TopK trained on for as long

Columns, on held-out text: FVU, cross-entropy recovered, KL of the spliced model, L0, share of dead latents, and smoothness: the
mean cosine of the codes of the first fifth of the latents at neighbouring tokens.

Examples:
    python scripts/bench_objectives.py --model lab --site resid_post.3
    python scripts/bench_objectives.py --model ../shared/models/stories260k --texts stories.jsonl --site resid_post.2 --only tsae
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.nn.functional import normalize

from saekit import LanguageModel
from saekit.activations import Corpus, LiveActivations, token_batches
from saekit.activations.loader.contexts import LiveContexts
from saekit.evaluate.dictionary.cross_entropy import ce_recovered
from saekit.sae import SAE
from saekit.sae.metrics import reconstruction
from trainers import TrainConfig, train

PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "abstopk": {"topk": {}, "abstopk": {"arch": "abstopk"}},
    "quadratic": {"jumprelu": {"arch": "jumprelu"}, "jumprelu, quadratic": {"arch": "jumprelu", "penalty": "quadratic"}},
    "whitening": {"topk": {}, "topk, whitening": {"scaling": "whitening"}},
    "tsae": {"matryoshka": {"arch": "matryoshka"}, "tsae": {"arch": "tsae"}},
    "end_to_end": {
        "topk": {},
        "topk, trained on": {"tuned": "no"},
        "topk, end to end (kl)": {"tuned": "kl"},
        "topk, end to end (ce)": {"tuned": "ce"},
    },
}


class Bench:
    """A model, its text, and the dictionaries that were trained so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.lm = LanguageModel.load(options.model)
        if options.texts is None:
            self.corpus, self.heldout = Corpus.open("lab"), Corpus.open("lab", split="heldout")
        else:
            texts = [json.loads(line)["text"] for line in Path(options.texts).read_text().splitlines()]
            cut = len(texts) * 9 // 10
            self.corpus, self.heldout = Corpus.open(texts[:cut]), Corpus.open(texts[cut:])
        self.context = min(128, self.lm.max_context)
        self.tokens = list(token_batches(self.lm, self.heldout, context=self.context, n_tokens=options.heldout))

    def train(self, name: str, tuned: str | None = None, **settings: Any) -> SAE:
        """The dictionary of a name, trained once."""
        o, out, start = self.options, self.folder / name, None
        config: dict[str, Any] = {"n_latents": o.latents, "l0": o.l0, "tokens": o.tokens, "batch_size": o.batch, "seed": o.seed}
        config |= settings
        if tuned is not None:
            start, config["tokens"] = self.train("topk"), o.tokens // 10
            config |= {"end_to_end": tuned} if tuned != "no" else {"lr": 1e-4}
        how = {"context": self.context, "heldout": 0.0, "batch_size": o.batch, "pairs": config.get("arch") == "tsae"}
        if tuned in ("kl", "ce"):
            source: Any = LiveContexts(self.lm, [o.site], self.corpus, contexts=max(1, o.batch // self.context), **how)
        else:
            source = LiveActivations(self.lm, [o.site], self.corpus, buffer_tokens=1 << 14, **how)
        return train(source, TrainConfig(**config), out, site=o.site, lm=self.lm, start=start, progress=False)

    @torch.no_grad()
    def measure(self, sae: SAE) -> dict[str, float]:
        rows = list(self._rows())
        found = reconstruction(sae, [acts for acts, _ in rows])
        fifth, cosines = round(0.2 * sae.cfg.n_latents), []
        for acts, linked in rows:
            z = normalize(sae.encode_dense(acts)[:, :fifth], dim=1)
            cosines.append((z[1:] * z[:-1]).sum(1)[linked[1:]])
        spliced = ce_recovered(self.lm, sae, self.options.site, self.tokens)
        names = {"fvu": "fvu", "l0": "l0", "dead_fraction": "dead"}
        measured = {short: found[name] for name, short in names.items()}
        return measured | {"ce": spliced["ce_recovered"], "kl": spliced["kl"], "smooth": float(torch.cat(cosines).mean())}

    def _rows(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Held-out rows in the order of the text, and whether the row before each is of the token before it."""
        site = self.lm.site(self.options.site)
        for batch in self.tokens:
            kept = self.lm.ordinary(batch.tokens_BT, batch.mask_BT)
            acts = self.lm.run(batch.tokens_BT, read=[site], logits=None)[site][kept].float()
            linked = torch.zeros_like(kept)
            same = batch.document_BT[:, 1:] == batch.document_BT[:, :-1]
            linked[:, 1:] = kept[:, 1:] & kept[:, :-1] & same
            yield acts, linked[kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="*", choices=tuple(PARTS), default=list(PARTS))
    add("--model", default="lab", help="model; all but lab need --texts")
    add("--texts", help="a JSON Lines file with the field text")
    add("--site", default="resid_post.3")
    add("--latents", type=int, default=768)
    add("--l0", type=int, default=16)
    add("--tokens", type=int, default=200_000, help="tokens to train on")
    add("--heldout", type=int, default=8192, help="held-out tokens to measure on")
    add("--batch", type=int, default=512)
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}")
    print(f"{options.model} {options.site}, {options.latents} latents, L0 {options.l0}, {options.tokens} tokens")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        columns = ("fvu", "ce", "kl", "l0", "dead", "smooth")
        for part in options.only:
            print(f"\n{part:24}" + "".join(f"{name:>9}" for name in columns), flush=True)
            for name, settings in PARTS[part].items():
                began = time.process_time()
                found = bench.measure(bench.train(name, **settings))
                cells = "".join(f"{found[column]:9.4f}" for column in columns)
                print(f"  {name:22}{cells}   {time.process_time() - began:.0f} core-s", flush=True)


if __name__ == "__main__":
    main()
