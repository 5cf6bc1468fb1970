"""Published SAEs, by sae-lens's names for them."""

from __future__ import annotations

import difflib
import importlib.util
from functools import cache
from pathlib import Path

from saekit.errors import SAENotFound
from saekit.sae.files import Content


def fetch(source: str | Path, dtype: str) -> Content:
    """Fetch `release/sae_id` through sae-lens, from the Hugging Face hub or its cache on disk.

    The release ends at the first slash, since ids contain slashes. `owner/repository/folder` of a repository that sae-lens does
    not list works too, if it is in sae-lens's layout.

    Raises:
        SAENotFound: no such folder, release or id (the message has the nearest), or it cannot be fetched.
    """
    release, sae_id = _split(source)
    try:
        import sae_lens

        theirs = sae_lens.SAE.from_pretrained(release, sae_id, dtype=dtype)
    except Exception as error:  # loaders of two dozen file formats and an HTTP client: anything may come
        reason = (str(error).strip().splitlines() or [""])[0]
        raise SAENotFound(
            f"The published SAE {sae_id!r} of {release!r} could not be fetched: {type(error).__name__}: {reason}",
            "Check the network, or fetch it elsewhere, save it with sae_lens and load the folder.",
        ) from error
    tensors = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    return Content(theirs.cfg.to_dict(), tensors)


def _split(source: str | Path) -> tuple[str, str]:
    text = str(source)
    nothing = f"There is no folder {text!r}"
    parts = text.split("/")
    if isinstance(source, Path) or len(parts) < 2 or parts[0] in ("", ".", "..", "~"):
        raise SAENotFound(f"{nothing}.", "Give a folder that holds an SAE, or 'release/sae_id' of a published one.")
    release, sae_id = text.split("/", 1)
    ids = _directory().get(release)
    if ids is None:
        if len(parts) > 2 and not Path(parts[0]).exists():
            return "/".join(parts[:2]), "/".join(parts[2:])
        raise SAENotFound(f"{nothing} and sae-lens lists no release {release!r}.", _nearest(release, list(_directory())))
    if sae_id not in ids:
        raise SAENotFound(f"{nothing}, and the release {release!r} has no SAE {sae_id!r}.", _nearest(sae_id, ids))
    return release, sae_id


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"There are {len(known)} others, such as {known[0]}."


@cache
def _directory() -> dict[str, list[str]]:
    """Release -> ids. Read from the file itself: importing sae_lens takes ten seconds, too long for an error message."""
    import yaml

    spec = importlib.util.find_spec("sae_lens")
    assert spec is not None and spec.origin is not None
    with (Path(spec.origin).parent / "pretrained_saes.yaml").open() as file:
        listed = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {release: [str(sae["id"]) for sae in facts["saes"]] for release, facts in listed.items()}
