"""Generation with interventions, in prefill and in every step of decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import ConfigError
from saekit.lm.edits import Positions, Window, check_positions, expand_edits, positions_from_mask
from saekit.lm.hooks import Pass

if TYPE_CHECKING:
    from saekit.lm.model import LanguageModel


@dataclass
class Generation:
    """What was generated: n_samples continuations of each prompt, side by side.

    Attributes:
        prompts: as text, one per continuation.
        texts: the continuations alone.
        tokens: their ids, up to and with the end-of-text token where one came.
        prompt_tokens: the prompts' ids, with BOS, without pads.
    """

    prompts: list[str]
    texts: list[str]
    tokens: list[list[int]]
    prompt_tokens: list[list[int]]


def generate(
    lm: LanguageModel,
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
    *,
    interventions: Any = (),
    positions: Positions = "last+generated",
    seed: int | None = None,
    max_new_tokens: int = 64,
    n_samples: int = 1,
    do_sample: bool = False,
    **hf_kwargs: Any,
) -> Generation:
    """Continue prompts with transformers' own `generate`, interventions applied in prefill and decoding.

    Args:
        prompts: texts, or rows of token ids (used as they are).
        interventions: Edits, or anything with `.edits(lm)`.
        positions: which tokens are touched, unless an edit says so itself; see :data:`saekit.lm.edits.Positions`.
        seed: of the sampling. The text of a prompt depends on it, the prompt and the sample's number alone, not on what else is
            in the batch. None draws one from torch's generator.
        max_new_tokens: at most.
        n_samples: continuations of each prompt, which differ only when sampling.
        do_sample: sample (temperature, top_k, top_p, min_p in `hf_kwargs`) instead of taking the likeliest.
        hf_kwargs: passed to transformers' generate: num_beams, eos_token_id, cache_implementation, prefill_chunk_size, ...

    Raises:
        ContextTooLong: prompt and new tokens are more than the model has positions for.
        ConfigError: no prompt, or positions that are none.
    """
    check_positions(positions)
    rows, texts = _rows(lm, prompts)
    longest = max(map(len, rows))
    lm.check_context(longest + max_new_tokens)
    samples = [(p, n) for p in range(len(rows)) for n in range(n_samples)]
    repeated = [rows[p] for p, _ in samples]
    settings = dict(hf_kwargs)
    beams = settings.get("num_beams", 1)
    if do_sample and beams == 1:
        from saekit.lm.sampling import sampling_processors

        seed = int(torch.randint(2**31, ())) if seed is None else seed
        keys = [_stream(seed, rows[p], n) for p, n in samples]
        settings["logits_processor"] = sampling_processors(lm, settings, keys)
    elif do_sample:
        settings["do_sample"] = True
    tokens_BT, mask_BT = lm.text.pad(repeated, "left")
    tokens_BT, mask_BT = tokens_BT.to(lm.device), mask_BT.to(lm.device)
    out = _generate(lm, tokens_BT, mask_BT, [p for p, _ in samples], interventions, positions, max_new_tokens, settings)
    eos = _eos(lm, settings)
    continuations = [_until(row[tokens_BT.shape[1] :].tolist(), eos) for row in out]
    decoded = [lm.text.continuation(row, ids) if lm.tokenizer is not None else "" for row, ids in zip(repeated, continuations)]
    return Generation([texts[p] for p, _ in samples], decoded, continuations, [list(row) for row in repeated])


def _generate(
    lm: LanguageModel,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    prompt_of_row: list[int],
    interventions: Any,
    positions: Positions,
    max_new_tokens: int,
    settings: dict[str, Any],
) -> Tensor:
    edits = expand_edits(lm, interventions)
    act = Pass(lm, edits=edits)
    special = torch.tensor(sorted(lm.special_ids), dtype=torch.long, device=tokens_BT.device)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())
        act.begin(ids.shape[0], ids.shape[1], _window(ids, start, mask_BT, prompt_of_row, special, positions))

    settings.setdefault("pad_token_id", lm.text.pad_token_id)
    settings.setdefault("do_sample", False)
    with ExitStack() as stack, torch.no_grad():
        if edits:
            stack.enter_context(act.hooked())
            stack.callback(lm.model.register_forward_pre_hook(before, with_kwargs=True).remove)
            # A compiled decoding step would not see hooks.
            settings.setdefault("disable_compile", True)
        lm.model.eval()
        return lm.model.generate(input_ids=tokens_BT, attention_mask=mask_BT, max_new_tokens=max_new_tokens, **settings)


def _window(ids: Tensor, start: int, mask_BT: Tensor, prompt_of_row: list[int], special: Tensor, positions: Positions) -> Window:
    """The window of a forward pass over slots start.. of sequences whose prompts are masked by `mask_BT`."""
    rows, T = ids.shape
    beams = rows // mask_BT.shape[0]
    end = start + T
    grown = torch.ones((mask_BT.shape[0], max(0, end - mask_BT.shape[1])), dtype=mask_BT.dtype, device=mask_BT.device)
    real_BT = torch.cat([mask_BT, grown], 1).bool().repeat_interleave(beams, 0)
    position_BT = positions_from_mask(real_BT)[:, start:end]
    row_B = torch.tensor(prompt_of_row, device=ids.device).repeat_interleave(beams)
    return Window(ids, real_BT[:, start:end], position_BT, mask_BT.sum(1).repeat_interleave(beams), row_B, special, positions)


def _rows(lm: LanguageModel, prompts: Any) -> tuple[list[list[int]], list[str]]:
    if isinstance(prompts, str):
        prompts = [prompts]
    prompts = list(prompts)
    if prompts and all(isinstance(prompt, str) for prompt in prompts):
        rows = lm.text.ids(prompts)
        texts = prompts
    else:
        rows = [[int(index) for index in row] for row in prompts]
        texts = [lm.decode(row) if lm.tokenizer is not None else "" for row in rows]
    if not rows or not all(rows):
        raise ConfigError("There is no prompt, or one without a token.", "Give at least one token for each.")
    return rows, texts


def _eos(lm: LanguageModel, settings: dict[str, Any]) -> set[int]:
    eos = settings.get("eos_token_id", lm.model.generation_config.eos_token_id)
    return set(eos) if isinstance(eos, list | tuple) else set() if eos is None else {int(eos)}


def _until(ids: list[int], eos: set[int]) -> list[int]:
    end = next((n + 1 for n, index in enumerate(ids) if index in eos), len(ids))
    return ids[:end]


def _stream(seed: int, prompt: Sequence[int], sample: int) -> int:
    """The seed of one continuation's noise."""
    text = f"{seed}/{sample}/{','.join(map(str, prompt))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
