"""Loading the model of a workspace again, as it was loaded when its activations were cached."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saekit import trust
from saekit.errors import UntrustedCode
from saekit.hub import Repository
from saekit.workspace.study import Study

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_log = logging.getLogger(__name__)


def load_model(study: Study, commit: str | None, placing: Mapping[str, Any]) -> LanguageModel:
    """Load the model of a study.

    Args:
        study: says which model it is, and how it is loaded.
        commit: of the model that the activations are from. This commit is loaded, wherever the hub's branch has moved.
        placing: options in place of those of the study: `device`, `device_map`, `trust_remote_code`.

    Raises:
        As :meth:`saekit.lm.LanguageModel.load` does.
    """
    from saekit.lm import LanguageModel

    options = dataclasses.replace(study.model_options(), **_exclusive(placing))
    if commit is not None:
        _say_if_moved(study, commit)
        options = dataclasses.replace(options, revision=commit)
    if options.trust_remote_code and not placing.get("trust_remote_code"):
        options = dataclasses.replace(options, trust_remote_code=trust.allowed(study.model, commit or ""))
    try:
        lm = LanguageModel.load(study.model, options)
    except UntrustedCode as error:
        if not trust.changed(study.model, commit or ""):
            raise
        raise UntrustedCode(
            f"The Python code in {study.model} has changed since you allowed it to run.",
            "Read it again; if you trust it, give --trust-remote-code again (in Python: trust_remote_code=True).",
        ) from error
    if placing.get("trust_remote_code"):
        trust.allow(study.model, lm.revision)
    return lm


def _exclusive(placing: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the recorded device removed where a device map is given, and the other way round."""
    removed = {"device": "device_map", "device_map": "device"}
    return {**{removed[name]: None for name in placing if name in removed}, **placing}


def _say_if_moved(study: Study, commit: str) -> None:
    now = Repository(study.model, revision=study.revision).commit(patient=False)
    if isinstance(now, str) and now != commit:
        _log.warning(
            "%s has moved on the hub to commit %s; this workspace keeps commit %s, which its activations are from.",
            study.model,
            now[:8],
            commit[:8],
        )
