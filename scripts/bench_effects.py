"""Speed of measuring what clamps cause: features a second, on a small model, for a random dictionary.

python scripts/bench_effects.py MODEL --site resid_post.2 --features 4096
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch


def main() -> None:
    from feature_db.effects.neighbours import nearest
    from feature_db.index.projection import countable, promoted
    from saekit.evaluate.steering.clamp_effects import ClampMeasurement
    from saekit.lm import LanguageModel
    from saekit.names.address import Address
    from saekit.names.site import Site
    from saekit.sae import SAE, SAEConfig

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--site", default="resid_post.2")
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--architecture", default="topk")
    asked = parser.parse_args()
    lm = LanguageModel.load(asked.model)
    site = Site.parse(asked.site)
    width, count = lm.width(site), asked.features
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, width), dim=1)
    settings = {"k": 32} if asked.architecture == "topk" else {}
    config = SAEConfig(asked.architecture, d_in=width, n_latents=count, site_map=site, **settings)
    tensors = {name: torch.zeros(shape) for name, shape in config.shapes().items()}
    sae = SAE(config, tensors | {"W_dec": directions, "W_enc": directions.T.clone()})
    lm.attach_sae(site, sae)
    tops = [[stat.item for stat in row if stat.role == "promotes"][:20] for row in promoted(lm, directions)]
    measurement = ClampMeasurement(lm, Address.parse(site), norms={site: 10.0}, allowed_V=countable(lm))
    begun, begun_cpu = time.perf_counter(), time.process_time()
    for start in range(0, count, measurement.together):
        units = list(range(start, min(start + measurement.together, count)))
        measurement.measure(units, np.array([tops[unit] for unit in units]))
    seconds, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    print(
        f"{lm!r} {site}: {count / seconds:,.0f} features/s, {count / cpu:,.0f} a CPU second, "
        f"with {measurement.n_prompts} prompts, {measurement.together} in a pass"
    )
    begun = time.perf_counter()
    nearest(directions.numpy(), np.ones(count, bool))
    print(f"neighbours of {count:,} directions: {time.perf_counter() - begun:.2f} s")


if __name__ == "__main__":
    main()
