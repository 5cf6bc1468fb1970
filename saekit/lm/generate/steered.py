"""Steering of the user's own calls: `with lm.steered(intervention): model.generate(...)`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saekit.errors import InterventionError
from saekit.lm.exclusive import innermost_pass
from saekit.lm.generate.tracker import Tracker, cached
from saekit.lm.run.edits import expand_edits
from saekit.lm.run.forward import RunnableModel
from saekit.lm.run.hooks import ForwardPass
from saekit.lm.run.logits import changed, logits_edits, sites_of
from saekit.names.positions import GENERATION, Positions, check_positions

_NO_TOKEN = -1
"""Stands for a token whose id is unknown, because the caller gave its embedding."""


@contextmanager
def steered(lm: RunnableModel, interventions: Any, positions: Positions | None = None) -> Iterator[Any]:
    """See :meth:`saekit.lm.model.LanguageModel.steered`."""
    check_positions(positions)
    with lm.lock:
        if innermost_pass() is not None:
            raise InterventionError(
                "The model runs or is steered already.", "Give all interventions to one lm.steered: [first, second]."
            )
        edits, rules = expand_edits(lm, interventions), logits_edits(lm, interventions)
        forward_pass = ForwardPass(lm, sites_of(rules), edits, anywhere=True)
        calls = _Calls(lm, forward_pass, GENERATION if positions is None else positions)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if forward_pass.acts_now():
                kept = output.logits.shape[1]
                output.logits = changed(rules, output.logits, {site: act[:, -kept:] for site, act in forward_pass.acts.items()})
            return output

        with forward_pass.hooked(), ExitStack() as stack:
            stack.callback(lm.model.register_forward_pre_hook(calls.before, with_kwargs=True).remove)
            if rules:
                stack.callback(lm.model.register_forward_hook(after).remove)
            original = lm.model.generate
            lm.model.generate = calls.generate(original)
            stack.callback(lm.model.__dict__.pop, "generate")
            yield lm


class _Calls:
    """Follows the calls of a model, so that each pass knows where prompts end. One generation runs at a time."""

    def __init__(self, lm: RunnableModel, forward_pass: ForwardPass, default: Any) -> None:
        self._lm, self._pass, self._default = lm, forward_pass, default
        self._lock = threading.RLock()
        self._generation: Tracker | None = None
        self._last: Tracker | None = None

    def generate(self, original: Any) -> Any:
        """transformers' `generate`, which notes where the prompts are."""

        def generate(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                before = self._generation
                ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
                if kwargs.get("attention_mask") is None and isinstance(ids, Tensor):
                    kwargs["attention_mask"] = self._mask(ids, kwargs)
                config = kwargs.get("generation_config") or self._lm.model.generation_config
                chunk = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
                mask = kwargs.get("attention_mask")
                self._generation = None if mask is None else self._tracker(mask, bool(chunk))
                if mask is not None:
                    kwargs.setdefault("disable_compile", True)  # a compiled step of decoding would not call the hooks
                try:
                    return original(*args, **kwargs)
                finally:
                    self._generation = before

        return generate

    def _mask(self, ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """The mask that transformers assumes: pads, unless the pad token ends texts too, are left out."""
        config = kwargs.get("generation_config") or self._lm.model.generation_config
        pad, eos = (kwargs.get(name, getattr(config, name, None)) for name in ("pad_token_id", "eos_token_id"))
        ends = eos if isinstance(eos, list | tuple) else [eos]
        if pad is None or pad in ends:
            return torch.ones_like(ids)
        return (ids != pad).long()

    def _tracker(self, mask_BT: Tensor, chunked: bool = False) -> Tracker:
        return Tracker(mask_BT.to(self._lm.device).long(), range(len(mask_BT)), self._lm.special_tensor, self._default, chunked)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each pass of the model."""
        if not self._pass.acts_now():
            return
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            ids = torch.full(kwargs["inputs_embeds"].shape[:2], _NO_TOKEN, device=self._lm.device)
        cache = kwargs.get("past_key_values")
        tracker = self._generation or self._continued(ids, cache, kwargs.get("attention_mask"))
        self._last = tracker
        self._pass.begin(ids.shape[0], ids.shape[1], tracker.window(ids, cache))

    def _continued(self, ids: Tensor, cache: Any, mask: Any) -> Tracker:
        """The tracker of a pass outside of `generate`: it goes on with the pass before where the cache holds that one's tokens.

        Everything else is prompt: the tokens of this pass, and what the cache holds.
        """
        start = cached(cache)
        if start and self._last is not None and self._last.continues(len(ids), start):
            return self._last
        if not (isinstance(mask, Tensor) and mask.ndim == 2):
            mask = torch.ones(len(ids), start + ids.shape[1], dtype=torch.long, device=ids.device)
        return self._tracker(mask)
