"""Supervised pinpoint tuning (SPT): Chen et al. 2024, "From Yes-Men to Truth-Tellers", arXiv 2409.01658.

The paper finds heads by path patching and trains the q, k, v and output weights of the first ones. The heads are given here: by a
ranking of `saekit locate`, whatever its method, or by name.
"""

from __future__ import annotations

from saekit.errors import ConfigError
from saekit.names.edge import parse_object
from saekit.names.ref import Ref
from saekit.steer.optimise.masks import WeightMask
from saekit.steer.optimise.tuning import Problem, Tuned, tune_weights
from saekit.tasks import Ranking


def pinpoint(problem: Problem) -> Tuned:
    """Train the weights of heads.

    Raises:
        ConfigError: an object is no head.
    """
    objects = problem.objects
    assert objects is not None, "tune"
    listed = [objects] if isinstance(objects, str | Ref) else list(objects)
    for name in listed:
        ref = parse_object(name) if isinstance(name, str) else name
        if not isinstance(ref, Ref) or ref.kind != "head":
            raise ConfigError(f"{ref} is no head; pinpoint tuning trains heads.", "Use --method masked for other objects.")
    heads = objects if isinstance(objects, Ranking) else listed
    return tune_weights(problem, WeightMask.of(problem.lm, heads, fraction=problem.fraction), "pinpoint")
