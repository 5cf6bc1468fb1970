"""The quality of dictionaries trained by saekit and by other libraries with default settings, at equal tokens and equal L0.

All libraries train on the same batches in the same order. All dictionaries are stored in one format and measured by one program.
The other libraries run their own trainers with their own defaults. Defaults in steps that are too long for short runs become
shares of the run: sae-lens counts a latent as dead after 5 %, and dictionary_learning uses the warm-ups and the decay of its
demonstration. "sae-lens, higher lr" is sae-lens with half the learning rate of saekit, since its default of 3e-4 suits longer
runs than most of these; on the lab model, still higher rates make sae-lens worse.

Equal L0: k sets the L0 of the TopK family. A target sets the L0 of saekit's penalised architectures (jumprelu, gated, standard)
and of dictionary_learning's JumpReLU. For the others, a search (secants of log L0 against the log of the penalty coefficient)
runs up to seven whole trainings, until the L0 is within 3 % of the target. The nearest dictionary counts.

`bench_objectives.py` compares the objectives that other libraries lack with those that they extend.

    synthetic   sae_lens.synthetic: known features in superposition, measured by sae-lens: MCC (similarity of decoder rows and
                features) and F1 (whether latents fire where features do).
    models      activations of a language model: FVU and cross-entropy recovered on held-out text.
    l0          how close the penalised architectures come to their target L0.
    dead        share of latents that never fire on 200,000 tokens, at 16 latents per dimension.

The verdict of a row compares it with saekit, seed by seed. The mean difference and its 95 % interval (Student's t) decide whether
saekit is ahead, behind or level (the interval contains 0).

Examples:
    python scripts/bench_quality.py --only synthetic --seeds 3
    python scripts/bench_quality.py --only models --model lab --site resid_post.3 --arch topk jumprelu
    python scripts/bench_quality.py --only l0 dead --quick
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from torch import Tensor

from saekit import LanguageModel
from saekit.activations import Corpus, LiveActivations, token_batches
from saekit.evaluate.dictionary.cross_entropy import ce_recovered
from saekit.sae import SAE, SAEConfig
from saekit.sae.kernels.threads import only_blocks
from saekit.sae.metrics import Firings, reconstruction
from trainers import TrainConfig
from trainers.loop.data_scaling import DataScaling
from trainers.loop.state import TrainState

PENALISED = ("jumprelu", "gated", "standard")
ARCHITECTURES = ("topk", "abstopk", "batchtopk", "matryoshka", *PENALISED)
T95 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantile of Student's t by degrees of freedom."""


@dataclass
class Task:
    """The training data of a task, and the measurement of its dictionaries.

    Attributes:
        x_ND: training rows, in order. They repeat from the start if the run has more tokens than rows.
        better: metrics of the verdict, and whether a higher value is better.
    """

    name: str
    x_ND: Tensor
    n_latents: int
    l0: int
    tokens: int
    batch_size: int
    seed: int
    measure: Callable[[SAE], dict[str, float]]
    better: dict[str, bool] = field(default_factory=dict)

    def batches(self) -> Iterator[Tensor]:
        """The batches of the run. After the end of the data, they continue at its start in another order."""
        generator = torch.Generator().manual_seed(self.seed)
        orders = chain([torch.arange(len(self.x_ND))], (torch.randperm(len(self.x_ND), generator=generator) for _ in repeat(0)))
        parts = (part for order in orders for part in order.split(self.batch_size) if len(part) == self.batch_size)
        return (self.x_ND[part] for part in islice(parts, self.steps))

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_size

    @property
    def config(self) -> TrainConfig:
        tokens = self.steps * self.batch_size
        return TrainConfig(self.n_latents, l0=self.l0, tokens=tokens, batch_size=self.batch_size, seed=self.seed)


# The libraries. Each trains an architecture on a task; the penalty strength is given if there is no target L0.


def saekit(task: Task, arch: str, strength: float | None = None, **settings: Any) -> SAE:
    config = replace(task.config, arch=arch, **settings).resolve(task.x_ND.shape[1])
    with only_blocks():
        training = TrainState(config, DataScaling.of(task.x_ND[: config.sample_tokens], config.b_dec))
        for x_BD in task.batches():
            training.step(x_BD)
    return training.sae()


def sae_lens(task: Task, arch: str, strength: float | None = None, lr: float = 3e-4) -> SAE:
    import sae_lens as theirs
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    F, k = task.n_latents, {"k": task.l0}
    names = {"topk": "TopK", "abstopk": "AbsTopK", "batchtopk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK"}
    names |= {"jumprelu": "JumpReLU", "gated": "Gated", "standard": "Standard"}
    own: dict[str, Any] = {
        "topk": k,
        "abstopk": k,
        "batchtopk": k,
        "matryoshka": k | {"matryoshka_widths": [F // 32, F // 32 * 3, F // 32 * 7, F // 32 * 15, F]},
        "jumprelu": {"l0_coefficient": strength},
        "gated": {"l1_coefficient": strength},
        "standard": {"l1_coefficient": strength},
    }
    config = getattr(theirs, f"{names[arch]}TrainingSAEConfig")(
        d_in=task.x_ND.shape[1], d_sae=F, device="cpu", normalize_activations="expected_average_only_in", **own[arch]
    )
    torch.manual_seed(task.seed)
    sae = getattr(theirs, f"{names[arch]}TrainingSAE")(config)
    settings = SAETrainerConfig(
        total_training_samples=task.steps * task.batch_size,
        train_batch_size_samples=task.batch_size,
        lr=lr,
        lr_end=lr / 10,
        dead_feature_window=min(1000, max(1, task.steps // 20)),
        n_batches_for_norm_estimate=16,
    )
    # sae-lens reads batches to estimate the scale of the data before it trains.
    SAETrainer(settings, sae, chain(islice(task.batches(), 16), task.batches())).fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load(folder)


def dictionary_learning(task: Task, arch: str, strength: float | None = None) -> SAE:
    if "nnsight" not in sys.modules:  # required by its model buffers; a training step does not use it
        stand_in = types.ModuleType("nnsight")
        stand_in.LanguageModel = object  # type: ignore[attr-defined]
        sys.modules["nnsight"] = stand_in
    from dictionary_learning import trainers as theirs
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    D, F, steps = task.x_ND.shape[1], task.n_latents, task.steps
    # The demonstration has 244,140 steps: 1000 of warm-up, 5000 of penalty warm-up, and decay after 80 %.
    common: dict[str, Any] = {"steps": steps, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "none"}
    common |= {"seed": task.seed, "device": "cpu"}
    common |= {"warmup_steps": min(1000, max(1, steps // 50)), "decay_start": int(0.8 * steps)}
    penalty = common | {"sparsity_warmup_steps": min(5000, max(1, steps // 20))}
    groups = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32]
    make: dict[str, Callable[[], Any]] = {
        "topk": lambda: theirs.TopKTrainer(k=task.l0, **common),
        "batchtopk": lambda: theirs.BatchTopKTrainer(k=task.l0, threshold_start_step=steps // 50, **common),
        "matryoshka": lambda: MatryoshkaBatchTopKTrainer(
            k=task.l0, threshold_start_step=steps // 50, group_fractions=groups, **common
        ),
        "jumprelu": lambda: theirs.JumpReluTrainer(target_l0=task.l0, **penalty),
        "gated": lambda: theirs.GatedSAETrainer(l1_penalty=strength, **penalty),
        "standard": lambda: theirs.StandardTrainer(l1_penalty=strength, **penalty),
    }
    torch.manual_seed(task.seed)
    trainer = make[arch]()
    size = float(torch.cat(list(islice(task.batches(), 16))).square().sum(1).mean() ** 0.5)  # its normalize_activations
    for step, x_BD in enumerate(task.batches()):
        trainer.update(step, x_BD / size)
    ae = trainer.ae
    ae.scale_biases(size)
    tensors = {name: tensor.detach() for name, tensor in ae.state_dict().items()}
    new = {"encoder.bias": "b_enc", "bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag"}
    renamed = {new.get(name, name): tensor for name, tensor in tensors.items()}
    if "encoder.weight" in tensors:
        renamed |= {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T}
    cfg = SAEConfig(arch, D, F, k=task.l0, apply_b_dec_to_input=arch != "jumprelu")
    wanted = {name: renamed[name].expand(shape) for name, shape in cfg.shapes().items()}
    return SAE(cfg, wanted)


def at_l0(task: Task, train: Callable[[float], SAE], guess: float) -> tuple[SAE, float]:
    """Search the penalty strength that gives the target L0. Returns the dictionary and the strength."""
    tried: list[tuple[float, float, SAE]] = []  # log strength, log (L0 / target), the dictionary
    at = math.log(guess)
    for _ in range(7):
        sae = train(math.exp(at))
        l0 = Firings.of(sae, task.x_ND[-16384:].split(4096)).l0
        tried.append((at, math.log(max(l0, 1e-3) / task.l0), sae))
        if abs(tried[-1][1]) < 0.03:
            break
        above = [row[:2] for row in tried if row[1] > 0]
        below = [row[:2] for row in tried if row[1] < 0]
        if above and below:
            (a, fa), (b, fb) = max(above), min(below)
            at = a + (b - a) * min(0.9, max(0.1, fa / (fa - fb)))
        else:
            at += math.copysign(min(1.5, max(0.2, abs(tried[-1][1]))), tried[-1][1])
    at, _, sae = min(tried, key=lambda row: abs(row[1]))
    return sae, math.exp(at)


# The tasks


def synthetic(seed: int, options: argparse.Namespace) -> Task:
    """A small SynthSAEBench (arXiv 2602.14687): Zipfian frequencies, correlated features, varying magnitudes."""
    import sae_lens
    from sae_lens.synthetic import (
        LowRankCorrelationConfig,
        SyntheticModel,
        SyntheticModelConfig,
        ZipfianFiringProbabilityConfig,
        eval_sae_on_synthetic_data,
    )

    model = SyntheticModel(
        SyntheticModelConfig(
            num_features=options.features,
            hidden_dim=options.features // 4,
            firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.3, min_prob=0.01),
            correlation=LowRankCorrelationConfig(rank=8, correlation_scale=0.1),
            std_firing_magnitudes=0.3,
            seed=seed,
        )
    )
    l0 = round(float(model.activation_generator.firing_probabilities.sum()))
    torch.manual_seed(seed)
    x_ND = torch.cat([model.sample(4096) for _ in range(-(-options.tokens // 4096))])

    def measure(sae: SAE) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            sae.save(folder)
            theirs = sae_lens.SAE.load_from_disk(folder)
        torch.manual_seed(12345)
        found = eval_sae_on_synthetic_data(theirs, model.feature_dict, model.activation_generator, 32_768, 8192)
        dead = found.dead_latents / sae.cfg.n_latents
        own = {"mcc": found.mcc, "f1": found.classification.f1_score, "fvu": 1 - found.explained_variance}
        return own | {"l0": found.sae_l0, "dead": dead}

    name = f"{options.features} synthetic features in {options.features // 4} dimensions"
    task = Task(name, x_ND, options.features, l0, options.tokens, options.batch, seed, measure)
    task.better = {"mcc": True, "f1": True}
    return task


@dataclass
class Acts:
    """Activations of a model, in memory."""

    lm: LanguageModel
    site: str
    train_ND: Tensor
    heldout_ND: Tensor
    tokens: list[Any]

    @classmethod
    def of(cls, model: str, site: str, texts: str | None, rows: int) -> Acts:
        lm = LanguageModel.load(model)
        if texts is None:
            train, heldout = Corpus.open("lab"), Corpus.open("lab", split="heldout")
        else:
            records = [json.loads(line)["text"] for line in Path(texts).read_text().splitlines()]
            train, heldout = Corpus.open(records[: len(records) * 9 // 10]), Corpus.open(records[len(records) * 9 // 10 :])
        live = {"sites": [site], "batch_size": 4096, "heldout": 0.0, "epochs": 1}
        sides = [
            torch.cat([batch[lm.site(site)].float() for batch in LiveActivations(lm, corpus=corpus, n_tokens=n, **live)])
            for corpus, n in ((train, rows), (heldout, min(rows, 32_768)))
        ]
        tokens = list(token_batches(lm, heldout, context=min(128, lm.max_context), n_tokens=8192))
        return cls(lm, site, *sides, tokens)

    def task(self, n_latents: int, l0: int, seed: int, options: argparse.Namespace) -> Task:
        order = torch.randperm(len(self.train_ND), generator=torch.Generator().manual_seed(seed))

        def measure(sae: SAE) -> dict[str, float]:
            found = reconstruction(sae, self.heldout_ND.split(4096))
            recovered = ce_recovered(self.lm, sae, self.site, self.tokens)["ce_recovered"]
            return {"fvu": found["fvu"], "ce": recovered, "l0": found["l0"], "dead": found["dead_fraction"]}

        name = f"{self.lm.name} {self.site}, {n_latents} latents"
        x_ND = self.train_ND[order]
        return Task(name, x_ND, n_latents, l0, options.tokens, options.batch, seed, measure, {"fvu": False, "ce": True})


# The comparison


def compare(make: Callable[[int], Task], archs: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and measure with all libraries. Prints a table for each architecture."""
    results: list[dict[str, Any]] = []
    guesses: dict[tuple[str, str], float] = {}
    tasks = [make(seed) for seed in range(options.seeds)]
    lr = tasks[0].config.resolve(tasks[0].x_ND.shape[1]).lr
    contestants: dict[str, Callable[..., SAE]] = {
        "saekit": saekit,
        "sae-lens": sae_lens,
        "sae-lens, higher lr": partial(sae_lens, lr=lr / 2),
        "dictionary_learning": dictionary_learning,
    }
    contestants = {name: train for name, train in contestants.items() if not options.who or name in options.who}
    print(f"\n{tasks[0].name}, L0 {tasks[0].l0}, {tasks[0].steps} steps of {tasks[0].batch_size}; mean and 95 % interval of")
    print(f"{len(tasks)} seeds; verdicts by saekit's differences seed by seed")
    for arch in archs:
        rows: dict[str, list[dict[str, float]]] = {}
        for name, train in contestants.items():
            if (name, arch) == ("dictionary_learning", "abstopk"):
                continue  # it has none
            rows[name] = []
            for task in tasks:
                searched = arch in PENALISED and not name.startswith("saekit")
                searched &= (name, arch) != ("dictionary_learning", "jumprelu")
                if searched:
                    sae, found = at_l0(task, partial(train, task, arch), guesses.get((name, arch), 1.0))
                    guesses[name, arch] = found
                else:
                    sae = train(task, arch)
                rows[name].append(task.measure(sae))
                results.append({"task": task.name, "arch": arch, "who": name, "seed": task.seed, **rows[name][-1]})
        _print(arch, rows, tasks[0].better)
    return results


def _print(arch: str, rows: dict[str, list[dict[str, float]]], better: dict[str, bool]) -> None:
    names = list(next(iter(rows.values()))[0])
    print(f"\n{arch:24}" + "".join(f"{name:>18}" for name in names))
    for who, runs in rows.items():
        cells = [interval([run[name] for run in runs]) for name in names]
        line = "".join(f"{f'{mean:.4g} ± {half:.2g}':>18}" for mean, half in cells)
        if who != "saekit" and "saekit" in rows:
            for name, more in better.items():
                sign = 1 if more else -1
                mean, half = interval([sign * (ours[name] - run[name]) for ours, run in zip(rows["saekit"], runs)])
                verdict = "ahead" if mean > half else "behind" if mean < -half else "level"
                line += f"   {name}: {verdict} ({mean:+.4f} ± {half:.4f})"
        print(f"  {who:22}{line}", flush=True)


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval."""
    n = len(values)
    half = T95[min(n, len(T95)) - 1] * statistics.stdev(values) / n**0.5 if n > 1 else math.nan
    return statistics.mean(values), half


def targets(acts: list[Acts], archs: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The target L0, and the L0 of the finished dictionary on held-out data."""
    results: list[dict[str, Any]] = []
    print("\nL0 on held-out data, for targets of 8, 32 and 128")
    for each in acts:
        for arch in archs:
            for l0 in (8, 32, 128):
                task = each.task(options.latents, l0, 0, options)
                found = Firings.of(saekit(task, arch), each.heldout_ND.split(4096)).l0
                verdict = "met" if abs(found / l0 - 1) <= 0.1 else "MISSED"
                results.append({"task": task.name, "arch": arch, "asked": l0, "found": found})
                print(f"  {task.name:48} {arch:12}{l0:6}{found:9.2f}  {found / l0 - 1:+7.1%}  {verdict}", flush=True)
    return results


def dead(acts: Acts, archs: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Share of dead latents at 16 latents per dimension."""
    results: list[dict[str, Any]] = []
    print("\nLatents that never fire on 200,000 tokens")
    for arch in archs:
        for seed in range(options.seeds):
            task = acts.task(16 * acts.train_ND.shape[1], 32, seed, options)
            sae = saekit(task, arch)
            found = Firings.of(sae, acts.train_ND[:200_000].split(4096))
            held = reconstruction(sae, acts.heldout_ND.split(4096))
            row = {"dead": found.dead_fraction, "l0": found.l0, "fvu": held["fvu"], "dense": held["dense_fraction"]}
            results.append({"task": task.name, "arch": arch, "seed": seed, **row})
            verdict = "under 1 %" if found.dead_fraction < 0.01 else "MISSED"
            text = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
            print(f"  {task.name:40} {arch:12} seed {seed}  {text}  {verdict}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("synthetic", "models", "l0", "dead")
    add = parser.add_argument
    add("--only", nargs="*", choices=parts, default=list(parts))
    add("--arch", nargs="*", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    add("--who", nargs="*", default=[], help="only these: saekit, 'sae-lens, higher lr', ...")
    add("--seeds", type=int, default=3)
    add("--tokens", type=int, default=500_000, help="tokens to train on")
    add("--batch", type=int, default=512)
    add("--features", type=int, default=256, help="features of the synthetic task, and latents of its dictionaries")
    add("--model", default="lab", help="model; all but lab need --texts")
    add("--texts", help="a JSON Lines file with the field text")
    add(
        "--site",
        nargs="*",
        default=["resid_post.3", "mlp_out.2"],
        help="sites of the model; only the part l0 uses more than the first",
    )
    add("--latents", type=int, default=768, help="latents of the parts models and l0")
    add("--l0", type=int, default=16, help="L0 of the part models")
    add("--rows", type=int, default=300_000, help="number of distinct activations; they repeat if the run has more tokens")
    add("--quick", action="store_true", help="a quick check: one seed, a tenth of the tokens")
    add("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.tokens, options.rows = 1, options.tokens // 10, options.rows // 10
    warnings.filterwarnings("ignore")
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__} on {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    results: list[dict[str, Any]] = []
    penalised = [arch for arch in options.arch if arch in PENALISED]
    if "synthetic" in options.only:
        results += compare(lambda seed: synthetic(seed, options), options.arch, options)
    if set(options.only) & {"models", "dead", "l0"}:
        sites = options.site if "l0" in options.only else options.site[:1]
        acts = [Acts.of(options.model, site, options.texts, options.rows) for site in sites]
    if "models" in options.only:
        results += compare(lambda seed: acts[0].task(options.latents, options.l0, seed, options), options.arch, options)
    if "l0" in options.only:
        results += targets(acts, penalised, options)
    if "dead" in options.only:
        results += dead(acts[0], options.arch, options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
