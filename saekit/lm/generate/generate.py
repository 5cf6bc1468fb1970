"""Generation with interventions, which act in the prefill and in every step of decoding."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, UnsupportedModel
from saekit.lm.exclusive import is_innermost
from saekit.lm.generate.sampling import noise_seed, own_noise, sampled
from saekit.lm.generate.settings import check_number, decoding_settings
from saekit.lm.generate.tracker import Tracker
from saekit.lm.run.edits import Edit, expand_edits
from saekit.lm.run.forward import RunnableModel
from saekit.lm.run.hooks import ForwardPass
from saekit.lm.run.logits import LogitsEdit, changed, logits_edits, sites_of
from saekit.names.positions import GENERATION, Positions, check_positions, check_reached
from saekit.names.site import Site

_PROMPTS_HINT = "Give texts, one row of token ids or several, or a tensor (B, T)."


@dataclass
class Generation:
    """Continuations of prompts: the `n_samples` of the first prompt, then those of the second, and so on.

    Attributes:
        prompts: the prompt of each continuation, as text.
        texts: the continuations, without their prompts.
        tokens: their ids, up to and including an end-of-text token.
        prompt_tokens: ids of the prompt of each continuation, with BOS and without pads.
    """

    prompts: list[str]
    texts: list[str]
    tokens: list[list[int]]
    prompt_tokens: list[list[int]]


def generate(
    lm: RunnableModel,
    prompts: str | Sequence[str] | Sequence[Sequence[int]] | Tensor,
    *,
    interventions: Any = (),
    positions: Positions | None = None,
    seed: int | None = None,
    max_new_tokens: int = 64,
    n_samples: int = 1,
    do_sample: bool | None = None,
    attention_mask: Tensor | Sequence[Sequence[int]] | None = None,
    **hf_kwargs: Any,
) -> Generation:
    """Continue prompts with transformers' own `generate`, with interventions in the prefill and in every step of decoding.

    Args:
        prompts: texts, to which BOS is prepended; or token ids, which are taken as they are: one row, several rows, or a tensor
            (B, T) with pads on either side.
        interventions: Edits, or anything with `.edits(lm)` or `.logits_edits(lm)`. In `At.batch_N` an edit gets the numbers of
            prompts.
        positions: tokens touched by edits that name none; see :class:`saekit.names.positions.TokenPositions`. None is
            "last+generated", or the edit's own default: ablations touch all tokens.
        seed: of the sampling. A continuation depends on the seed, its prompt and its number among the samples, and not on the
            rest of the batch. The noise is the same with and without interventions. None draws a seed from torch's generator.
        max_new_tokens: most tokens of a continuation.
        n_samples: continuations of each prompt.
        do_sample: whether to sample or to take the likeliest tokens. None: sample if `n_samples` is more than 1 or a setting of
            sampling (temperature, top_k, top_p, ...) is given.
        attention_mask: (B, T), for a padded tensor of prompts.
        hf_kwargs: further settings of transformers' generate: temperature, num_beams, eos_token_id, cache_implementation,
            prefill_chunk_size, ... Of a `generation_config`, everything but max_length and max_new_tokens is used.

    Raises:
        ContextTooLong: a prompt and the new tokens are more than the model has positions for.
        UnsupportedModel: transformers' own decoding of this model differs from its forward pass.
        ConfigError: there is no prompt; a setting is unknown or outside its range; several samples without sampling; or
            a listed position is a token of no prompt and of nothing that may be generated.
    """
    check_positions(positions)
    n_samples = check_number("n_samples", n_samples)
    seed = seed if seed is None else check_number("seed", seed)
    sample, settings = decoding_settings(
        lm.model, n_samples, do_sample, {"pad_token_id": lm.text.pad_token_id, **hf_kwargs, "max_new_tokens": max_new_tokens}
    )
    if settings.get("stop_strings"):
        settings.setdefault("tokenizer", lm.text.tokenizer)
    rows, texts = _rows(lm, prompts, attention_mask)
    lengths = [len(row) for row in rows]
    lm.check_context(max(lengths) + settings["max_new_tokens"])
    check_reached(positions, lengths, settings["max_new_tokens"])
    which = [p for p in range(len(rows)) for _ in range(n_samples)]
    wanted = [rows[p] for p in which]

    def run(samples: Sequence[int], settings: dict[str, Any]) -> list[list[int]]:
        ids, edits, rules = [wanted[s] for s in samples], expand_edits(lm, interventions), logits_edits(lm, interventions)
        for edit in chain.from_iterable(edits.values()):
            check_reached(edit.positions, lengths, settings["max_new_tokens"])
        if not lm.exact.cache:
            if not lm.exact.decoding:
                raise UnsupportedModel(
                    f"transformers' generate gives {lm.name} other positions or masks than a forward pass over the same text.",
                    "Continue texts with lm.run, one token after the other.",
                )
            settings = {**settings, "use_cache": False}
        return _continue(lm, ids, [which[s] for s in samples], (edits, rules), positions, settings)

    with lm.lock:
        groups = _groups(lm, wanted)
        if not sample:
            parts = [run(group, settings | {"do_sample": False}) for group in groups]
        else:
            seed = int(torch.randint(2**31, ())) if seed is None else seed
            seeds = [noise_seed(seed, row, s % n_samples) for s, row in enumerate(wanted)]
            parts = [_sampled(lm, run, settings, group, seeds) for group in groups]
        by_sample = dict(zip(chain.from_iterable(groups), chain.from_iterable(parts)))
        found = [by_sample[s] for s in range(len(wanted))]
    decoded = [lm.text.continuation(*pair) if lm.tokenizer is not None else "" for pair in zip(wanted, found)]
    return Generation([texts[p] for p in which], decoded, found, [list(row) for row in wanted])


def _groups(lm: RunnableModel, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the rows that continue as one batch: all, or where pads change a model's results, those of one length."""
    by_length: dict[int, list[int]] = {}
    for s, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(s)
    if len(by_length) == 1 or lm.exact.padded_cache:
        return [list(range(len(rows)))]
    return list(by_length.values())


def _sampled(
    lm: RunnableModel,
    run: Callable[[Sequence[int], dict[str, Any]], list[list[int]]],
    settings: dict[str, Any],
    samples: Sequence[int],
    seeds: Sequence[int],
) -> list[list[int]]:
    """`samples` from `run`, each with noise from its own of `seeds`."""
    if settings.get("num_beams", 1) == 1:
        return run(samples, sampled(lm.model, settings | {"do_sample": False}, [seeds[s] for s in samples]))
    found: list[list[int]] = []
    for s in samples:  # one at a time, because beams draw from torch's generator
        with own_noise(seeds[s], lm.device):
            found += run([s], settings | {"do_sample": True})
    return found


def _continue(
    lm: RunnableModel,
    rows: list[list[int]],
    prompt_of_row: list[int],
    changes: tuple[dict[Site, list[Edit]], list[LogitsEdit]],
    positions: Positions | None,
    settings: dict[str, Any],
) -> list[list[int]]:
    """Continuations of `rows` as one batch. The caller holds the model's lock."""
    edits, rules = changes
    tokens_BT, mask_BT = (tensor.to(lm.device) for tensor in lm.text.pad(rows, "left"))
    forward_pass = ForwardPass(lm, sites_of(rules), edits)

    default = GENERATION if positions is None else positions
    tracker = Tracker(mask_BT, prompt_of_row, lm.special_tensor, default, bool(settings.get("prefill_chunk_size")))
    begun = False

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal begun
        begun = True
        first.remove()  # a compiled step of decoding is not to see it

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not is_innermost(forward_pass):
            return
        ids = kwargs["input_ids"]
        forward_pass.begin(ids.shape[0], ids.shape[1], tracker.window(ids, kwargs.get("past_key_values")))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if is_innermost(forward_pass):
            kept = output.logits.shape[1]  # transformers computes those of the last token alone
            output.logits = changed(rules, output.logits, {site: act[:, -kept:] for site, act in forward_pass.acts.items()})
        return output

    first = lm.model.register_forward_pre_hook(begin)
    with forward_pass.hooked(), ExitStack() as stack, torch.no_grad():
        stack.callback(first.remove)
        if rules:
            stack.callback(lm.model.register_forward_hook(after).remove)
        if edits or rules:
            stack.callback(lm.model.register_forward_pre_hook(before, with_kwargs=True).remove)
            # A compiled step of decoding would not call the hooks.
            settings = settings | {"disable_compile": True}
        try:
            out = lm.model.generate(input_ids=tokens_BT, attention_mask=mask_BT, **settings)
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            if begun:
                raise
            raise ConfigError(f"transformers refuses these settings of generation: {str(error).splitlines()[0]}") from error
        if edits or rules:
            forward_pass.check()
    eos = settings.get("eos_token_id", lm.model.generation_config.eos_token_id)
    ends = set(eos) if isinstance(eos, list | tuple) else {eos}
    found = [_until(row[tokens_BT.shape[1] :].tolist(), ends) for row in out]
    if settings.get("stop_strings"):
        found = [_until_string(row, ids, settings) for row, ids in zip(rows, found)]
    return found


def _rows(lm: RunnableModel, prompts: Any, attention_mask: Any) -> tuple[list[list[int]], list[str]]:
    """Token ids and text of each prompt."""
    if isinstance(prompts, Tensor):
        prompts = prompts.tolist()
    try:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if prompts and all(isinstance(prompt, str) for prompt in prompts):
            if attention_mask is not None:
                raise ConfigError("A mask was given for texts.", "Leave it out, or give token ids.")
            return _not_empty(lm.text.ids(prompts)), prompts
        if prompts and all(hasattr(prompt, "__index__") and not getattr(prompt, "ndim", 0) for prompt in prompts):
            prompts = [prompts]
        rows = [[operator.index(index) for index in row] for row in prompts]
    except TypeError as error:
        raise ConfigError(f"Prompts cannot be read: {error}.", _PROMPTS_HINT) from error
    if attention_mask is not None:
        mask = attention_mask.tolist() if isinstance(attention_mask, Tensor) else [list(row) for row in attention_mask]
        if [len(row) for row in mask] != [len(row) for row in rows]:
            raise ConfigError("The mask does not fit the prompts.", "Give a 0 or 1 for each token.")
        rows = [[index for index, real in zip(row, each) if real] for row, each in zip(rows, mask)]
    known = int(lm.embedding.num_embeddings)  # type: ignore[arg-type]
    if any(not 0 <= index < known for row in rows for index in row):
        raise ConfigError(f"Token ids must be from 0 to {known - 1}.", "Were they made by another tokenizer?")
    return _not_empty(rows), [lm.decode(row) if lm.tokenizer is not None else "" for row in rows]


def _not_empty(rows: list[list[int]]) -> list[list[int]]:
    if not rows or not all(rows):
        raise ConfigError("There is no prompt, or a prompt without a token.", "Give at least one token for each.")
    return rows


def _until(ids: list[int], ends: set[int]) -> list[int]:
    end = next((n + 1 for n, index in enumerate(ids) if index in ends), len(ids))
    return ids[:end]


def _until_string(prompt: list[int], ids: list[int], settings: dict[str, Any]) -> list[int]:
    """`ids` up to the token that completes a stop string. In a batch, a row goes on after it until all rows have stopped."""
    from transformers import StopStringCriteria

    stop = StopStringCriteria(settings["tokenizer"], settings["stop_strings"])
    whole = torch.tensor([[*prompt, *ids]])
    lengths = range(1, len(ids) + 1)
    end = next((n for n in lengths if bool(stop(whole[:, : len(prompt) + n], None)[0])), len(ids))
    return ids[:end]
