"""Settings of generation, checked before any work is done."""

from __future__ import annotations

import difflib
import inspect
import math
import operator
from dataclasses import dataclass
from typing import Any

from saekit.errors import ConfigError

# Settings of transformers' generate that would change its result, and what to use instead.
_OURS = {
    "num_return_sequences": "n_samples",
    "max_length": "max_new_tokens",
    "return_dict_in_generate": "lm.run for more",
    "output_scores": "lm.run for logits",
    "output_logits": "lm.run for logits",
    "output_attentions": "lm.run(read=['pattern.0'])",
    "output_hidden_states": "lm.run(read=['resid_post.0'])",
}
# Settings that have an effect with sampling only.
_SAMPLING = ("temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class _Range:
    least: float
    most: float = math.inf
    whole: bool = False
    open: bool = False
    """The least value itself is excluded."""

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a finite number"
        low = f"above {self.least:g}" if self.open else f"at least {self.least:g}"
        bounds = [low if self.least > -math.inf else "", f"at most {self.most:g}" if self.most < math.inf else ""]
        return " ".join([kind, " and ".join(filter(None, bounds))]).strip()

    def read(self, value: Any) -> float | None:
        """The value as a Python number, or None where it does not fit."""
        try:
            number = operator.index(value) if self.whole else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        too_small = number <= self.least if self.open else number < self.least
        return None if isinstance(value, str | bool) or not math.isfinite(number) or too_small or number > self.most else number


_COUNT, _NATURAL, _SHARE = _Range(1, whole=True), _Range(0, whole=True), _Range(0, 1)
_RANGES = {
    "max_new_tokens": _COUNT,
    "n_samples": _COUNT,
    "num_beams": _COUNT,
    "num_beam_groups": _COUNT,
    "prefill_chunk_size": _COUNT,
    "min_new_tokens": _NATURAL,
    "min_length": _NATURAL,
    "top_k": _NATURAL,
    "no_repeat_ngram_size": _NATURAL,
    "seed": _Range(-math.inf, whole=True),
    "temperature": _Range(0, open=True),
    "top_p": _Range(0, 1, open=True),
    "top_h": _Range(0, 1, open=True),
    "typical_p": _Range(0, 1, open=True),
    "min_p": _SHARE,
    "epsilon_cutoff": _SHARE,
    "eta_cutoff": _SHARE,
    "repetition_penalty": _Range(0, open=True),
    "length_penalty": _Range(-math.inf),
    "diversity_penalty": _Range(-math.inf),
}


def check_number(name: str, value: Any) -> Any:
    """`value` of the setting `name` as a Python number.

    Raises:
        ConfigError: it is outside the setting's range, or no number.
    """
    allowed = _RANGES[name]
    number = allowed.read(value)
    if number is None:
        zero = name == "temperature" and value in (0, 0.0)
        hint = "Use do_sample=False for the likeliest tokens." if zero else None
        raise ConfigError(f"{name}={value!r} must be {allowed}.", hint)
    return number


def decoding_settings(model: Any, n_samples: int, do_sample: bool | None, given: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether to sample, and the settings for transformers' generate.

    Args:
        model: a transformers model.
        n_samples: continuations of each prompt.
        do_sample: None: sample if there are several samples or a setting of sampling is given.
        given: settings of the caller, which override those of a `generation_config` among them.

    Raises:
        ConfigError: a setting is unknown, outside its range, or contradicts another.
    """
    given = dict(given)
    config = given.pop("generation_config", None)
    asks = next((name for name in _SAMPLING if given.get(name) is not None), None)
    if do_sample is False and asks:
        raise ConfigError(f"{asks}={given[asks]!r} has no effect without sampling.", "Leave do_sample=False out.")
    if config is not None:
        given = {**_set_in(config), **given}
        do_sample = True if do_sample is None and config.do_sample else do_sample
    if taken := sorted(_OURS.keys() & given.keys()):
        raise ConfigError(f"{taken[0]} cannot be passed on to transformers' generate.", f"Use {_OURS[taken[0]]}.")
    known = _known(model)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"There is no setting {name!r} of generation.", f"Did you mean {near[0]!r}?" if near else None)
    given = {name: check_number(name, value) if name in _RANGES and value is not None else value for name, value in given.items()}
    if do_sample not in (True, False, None):
        raise ConfigError(f"do_sample={do_sample!r} must be True, False or None.")
    if do_sample is False and n_samples > 1:
        raise ConfigError(
            f"n_samples={n_samples} without sampling would give {n_samples} equal texts.", "Set do_sample=True, or n_samples=1."
        )
    _check_together(given)
    return n_samples > 1 or asks is not None if do_sample is None else do_sample, given


def _check_together(given: dict[str, Any]) -> None:
    """Raise ConfigError if the settings do not go together."""
    from transformers import GenerationConfig

    names = vars(GenerationConfig())
    try:
        GenerationConfig(**{name: value for name, value in given.items() if name in names}, do_sample=True)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"These settings of generation are impossible: {str(error).splitlines()[0]}") from error
    if (given.get("min_new_tokens") or 0) > given["max_new_tokens"]:
        raise ConfigError(f"min_new_tokens={given['min_new_tokens']} is more than max_new_tokens={given['max_new_tokens']}.")
    if given.get("num_beam_groups", 1) > 1 and given.get("num_beams", 1) % given["num_beam_groups"]:
        raise ConfigError(f"num_beams={given.get('num_beams', 1)} is not a multiple of num_beam_groups.")


def _known(model: Any) -> set[str]:
    from transformers import GenerationConfig

    names = {*vars(GenerationConfig()), "tokenizer", "assistant_tokenizer", "use_model_defaults"}
    for function in (model.generate, model.forward):
        names |= {p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD}
    return names - {"inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids"}


def _set_in(config: Any) -> dict[str, Any]:
    """What a GenerationConfig sets, except for what arguments of `generate` decide."""
    ours = {"transformers_version", "max_length", "max_new_tokens", "do_sample"}
    return {key: value for key, value in config.to_diff_dict().items() if key not in ours and not key.startswith("_")}
