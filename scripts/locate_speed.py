"""Speed and memory of the planner: residual patching, exhaustive head ablation, feature patching, and many variants.

All ratios are of process times in one run, on one thread. A section of scripts/bench_locate.py; it also runs alone.

Example:
    python scripts/locate_speed.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from saekit import LanguageModel, lab
from saekit.cli.output import table
from saekit.lm.run.planner import Planner, Replace, Variant
from saekit.names.ref import Ref
from saekit.objects import space_of, spaces_of
from saekit.sae import SAE, SAEConfig
from saekit.steer.amplitude import ablate
from saekit.tasks import Metric

LAYERS, WIDTH, HEADS, TOKENS, CHANGED = 12, 384, 6, 15, 10
ANSWER, FOIL = 5, 7


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """The result and the least process time, s."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        found = work()
        times.append(time.process_time() - started)
    return found, min(times)


# Residual patching: every layer and position, the clean value in the corrupted run.


def gpt2(seed: int = 0) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(GPT2Config(n_embd=WIDTH, n_head=HEADS, n_layer=LAYERS)).eval()


def pair() -> tuple[Tensor, Tensor]:
    """Prompts that differ in one token."""
    clean = torch.randint(0, 50000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[0, CHANGED] = 123
    return clean, corrupted


def hook_per_patch(model: Any, clean: Tensor, corrupted: Tensor) -> Tensor:
    """(layers, T) by a hook and a whole pass for each patch, on plain transformers."""
    blocks = model.transformer.h
    kept: dict[int, Tensor] = {}
    handles = [
        block.register_forward_pre_hook(lambda module, args, i=i: kept.__setitem__(i, args[0])) for i, block in enumerate(blocks)
    ]
    model(clean, use_cache=False)
    for handle in handles:
        handle.remove()
    out = torch.zeros(len(blocks), clean.shape[1])
    for layer, block in enumerate(blocks):
        for position in range(clean.shape[1]):

            def patch(module: Any, args: Any, layer: int = layer, position: int = position) -> Any:
                x = args[0].clone()
                x[:, position] = kept[layer][:, position]
                return (x, *args[1:])

            handle = block.register_forward_pre_hook(patch)
            logits = model(corrupted, use_cache=False).logits
            handle.remove()
            out[layer, position] = logits[0, -1, ANSWER] - logits[0, -1, FOIL]
    return out


def by_planner(lm: LanguageModel, clean: Tensor, corrupted: Tensor) -> Tensor:
    """The same, by the planner. The input of a block is `resid_pre`."""
    planner, source = Planner(lm, corrupted), Planner(lm, clean)
    variants = []
    for layer in range(lm.n_layers):
        space = space_of(lm, Ref.whole(f"resid_pre.{layer}"))
        values = source.act(space.site)[0]
        variants += [Variant(0, (Replace(space, [0], values[t], [t]),)) for t in range(clean.shape[1])]
    metric = Metric("logit_difference", (), (ANSWER,), (FOIL,))
    return planner.effects(variants, metric).reshape(lm.n_layers, -1)


def by_transformer_lens(clean: Tensor, corrupted: Tensor) -> float | None:
    """Process time of the same sweep in TransformerLens on a model of the same sizes; None where it is not installed."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig, patching
    except ImportError:
        return None
    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_heads=HEADS,
        d_head=WIDTH // HEADS,
        d_mlp=4 * WIDTH,
        n_ctx=1024,
        d_vocab=50257,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
    )
    model = HookedTransformer(config)
    _, cache = model.run_with_cache(clean)

    def sweep() -> Any:
        return patching.get_act_patch_resid_pre(
            model, corrupted, cache, lambda logits: (logits[:, -1, ANSWER] - logits[:, -1, FOIL]).mean()
        )

    return timed(sweep, 1)[1]


@torch.no_grad()
def residual_sweep() -> list[dict[str, Any]]:
    clean, corrupted = pair()
    model = gpt2()
    expected, naive = timed(lambda: hook_per_patch(model, clean, corrupted), 1)
    lm = LanguageModel.attach(model, None, name="gpt2 12 x 384")
    by_planner(lm, clean, corrupted)
    found, ours = timed(lambda: by_planner(lm, clean, corrupted))
    error = float((found - expected).abs().max())
    rows = [
        {"what": "180 residual patches, 12 layers", "how": "hook per patch", "s": naive, "times": naive / ours},
        {"what": "", "how": "planner", "s": ours, "times": 1.0, "largest error": error},
    ]
    if (lens := by_transformer_lens(clean, corrupted)) is not None:
        rows.insert(1, {"what": "", "how": "TransformerLens", "s": lens, "times": lens / ours})
    return rows


# Exhaustive head ablation of the laboratory's model and of one of 12 layers.


def whole_runs(lm: LanguageModel, refs: list[Ref], tokens: Tensor, mask: Tensor, metric: Metric) -> Tensor:
    """(heads,) the mean change, by a hook and a pass from the embedding to all logits for each head and prompt."""
    scores = []
    for row, real in zip(tokens, mask.bool()):
        one, own = row[real][None], metric.of_prompts([len(scores)])
        own = replace(own, positions=(int(real.sum()) - 1,))
        intact = own.per_prompt(lm.run(one).logits).double()
        changed = [own.per_prompt(lm.run(one, edits=[ablate(ref).bind(lm)]).logits).double() for ref in refs]
        scores.append(intact - torch.cat(changed))
    return torch.stack(scores).mean(0)


def loop_of_runs(lm: LanguageModel, refs: list[Ref], tokens: Tensor, mask: Tensor, metric: Metric) -> Tensor:
    """(heads,) the mean change, by one run for each head: what saekit did before it had a planner."""
    recording = lm.record(tokens, mask)
    intact = metric.per_prompt(lm.run(start_at=(recording, 0, None)).logits).double()
    scores = []
    for ref in refs:
        run = lm.run(start_at=(recording, ref.layer or 0, None), edits=[ablate(ref).bind(lm)])
        scores.append((intact - metric.per_prompt(run.logits).double()).mean())
    return torch.stack(scores)


def heads_by_planner(lm: LanguageModel, tokens: Tensor, mask: Tensor, metric: Metric) -> Tensor:
    planner, B = Planner(lm, tokens, mask), len(tokens)
    spaces = spaces_of(lm, "heads")
    zeros = {space.site: torch.zeros(space.unit_shape) for space in spaces}
    variants = [
        Variant(row, (Replace(space, [unit], zeros[space.site]),))
        for space in spaces
        for unit in range(space.n_units)
        for row in range(B)
    ]
    return (planner.metric(metric) - planner.effects(variants, metric).reshape(-1, B)).mean(1)


@torch.no_grad()
def head_ablation(lm: LanguageModel, tokens: Tensor, mask: Tensor, metric: Metric, name: str) -> list[dict[str, Any]]:
    refs = [space.ref(unit) for space in spaces_of(lm, "heads") for unit in range(space.n_units)]
    given = lm, refs, tokens, mask, metric
    expected, whole = timed(lambda: whole_runs(*given), 1)
    _, loop = timed(lambda: loop_of_runs(*given), 1)
    found, ours = timed(lambda: heads_by_planner(lm, tokens, mask, metric))
    what = f"{len(refs)} heads of {name}, {len(tokens)} prompts of up to {tokens.shape[1]} tokens"
    error = float((found - expected).abs().max())
    return [
        {"what": what, "how": "a hook and a whole pass for each head and prompt", "s": whole, "times": whole / ours},
        {"what": "", "how": "a run of all prompts for each head, from its layer on", "s": loop, "times": loop / ours},
        {"what": "", "how": "planner", "s": ours, "times": 1.0, "largest error": error},
    ]


def heads_of_lab(count: int) -> list[dict[str, Any]]:
    task = lab.task("indirect_object", n=count)
    metric = Metric.of("logit_difference", task)
    return head_ablation(LanguageModel.load("lab"), task.clean_BT, task.mask_BT, metric, "lab")


def heads_of_gpt2(count: int) -> list[dict[str, Any]]:
    lm = LanguageModel.attach(gpt2(), None, name="gpt2 12 x 384")
    tokens = torch.randint(0, 50000, (count, TOKENS), generator=torch.Generator().manual_seed(0))
    metric = Metric("logit_difference", (TOKENS - 1,) * count, (ANSWER,) * count, (FOIL,) * count)
    return head_ablation(lm, tokens, torch.ones_like(tokens), metric, lm.name)


# Memory, each figure in a process of its own.


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def peak_of(variants: int, latents: int) -> float:
    """MiB that a sweep adds to the peak: feature patches where there are latents, else residual patches."""
    lm = LanguageModel.attach(gpt2(), None, name="gpt2 12 x 384")
    clean, _ = pair()
    if latents:
        config = SAEConfig("topk", d_in=WIDTH, n_latents=latents, k=32)
        generator = torch.Generator().manual_seed(0)
        tensors = {name: torch.zeros(shape) for name, shape in config.shapes().items()}
        tensors["W_dec"] = torch.nn.functional.normalize(torch.randn(latents, WIDTH, generator=generator), dim=1)
        tensors["W_enc"] = tensors["W_dec"].T.clone()
        lm.attach_sae("resid_post.6", SAE(config, tensors))
    metric = Metric("logit_difference", (), (ANSWER,), (FOIL,))
    space = spaces_of(lm, "features" if latents else "states")[0]
    planner = Planner(lm, clean, memory=64 << 20)
    planner.act(space.site)

    def made(count: int) -> Any:
        for i in range(count):
            unit = i % space.n_units
            yield Variant(0, (Replace(space, [unit], torch.full(space.unit_shape, 1.0 + i), [i % TOKENS]),))

    planner.effects(made(8), metric)
    before = _peak()
    planner.effects(made(variants), metric)
    return _peak() - before


def memory() -> list[dict[str, Any]]:
    rows = []
    for variants, latents in ((200, 0), (1000, 0), (200, 16384), (1000, 16384)):
        command = [sys.executable, str(Path(__file__).resolve()), "--peak", str(variants), str(latents)]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        what = f"features of {latents} latents" if latents else "residual states"
        rows.append({"what": f"{variants} patches of {what}", "how": "planner, budget 64 MiB", "added MiB": peak})
    return rows


def section(prompts: int = 16) -> list[dict[str, Any]]:
    """All rows."""
    torch.set_num_threads(1)
    heads = [row for count in (1, 4, prompts) for row in heads_of_lab(count)]
    return [*residual_sweep(), *heads, *heads_of_gpt2(1), *heads_of_gpt2(4), *memory()]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""

    form = {"s": ".2f", "times": ".1f", "largest error": ".0e", "added MiB": ".0f"}
    shown = [{name: row[name] for name in ("what", "how")} for row in rows]
    for line, row in zip(shown, rows):
        line |= {name: format(row[name], how) if name in row else "" for name, how in form.items()}
    table(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16, help="most prompts of the head ablation (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        print(peak_of(*asked.peak))
        return
    rows = section(asked.prompts)
    print(json.dumps(rows, indent=1)) if asked.json else show(rows)


if __name__ == "__main__":
    main()
