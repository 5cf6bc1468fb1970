"""Which models are decoder-only language models, as their configurations say, before any weight is read."""

from __future__ import annotations

from typing import Any

from saekit.errors import ModelNotFound, UnsupportedModel

_HINT = "saekit needs a decoder-only (causal) language model."


def check_decoder(config: Any, name: str) -> None:
    """Raise unless a configuration may be that of a causal language model.

    Raises:
        UnsupportedModel: it is that of an encoder-decoder model, or of an encoder in which tokens see later ones.
    """
    kind = getattr(config, "model_type", "") or type(config).__name__
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{name} is an encoder-decoder model ({kind}).", _HINT)
    if _is_encoder(text):
        raise UnsupportedModel(f"{name} is an encoder-only model ({kind}), in which every token sees later ones.", _HINT)


def auto_class(config: Any, name: str) -> Any:
    """The class of transformers that loads a model of this configuration with its language-model head.

    Vision-language wrappers without a class for their text part alone are loaded whole.

    Raises:
        UnsupportedModel: the model is of a kind that generates no text from left to right.
        ModelNotFound: transformers does not know it as a language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    check_decoder(config, name)
    # A class that comes with the checkpoint is in the map of its configuration.
    own = getattr(config, "auto_map", None) or {}
    for each in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in each._model_mapping or each.__name__ in own:
            return each
    if _known(config, "MODEL_FOR_MASKED_LM_MAPPING"):
        raise UnsupportedModel(
            f"{name} is an encoder-only model ({config.model_type}), in which every token sees later ones.", _HINT
        )
    raise ModelNotFound(f"{name} ({config.model_type}) is not a language model with a head for the next token.", _HINT)


def _is_encoder(config: Any) -> bool:
    """Whether the model is of a family of encoders, such as BERT's, and its configuration does not make it a decoder."""
    if not _known(config, "MODEL_FOR_MASKED_LM_MAPPING"):
        return False
    decoder = getattr(config, "is_decoder", getattr(config, "causal", None))
    return not decoder and (decoder is not None or not _known(config, "MODEL_FOR_CAUSAL_LM_MAPPING"))


def _known(config: Any, mapping: str) -> bool:
    import transformers

    return type(config) in getattr(transformers, mapping)
