"""Arguments for SAE configurations in tests."""

from __future__ import annotations

from typing import Any

from saekit.names.site import Site
from saekit.names.site_map import SiteMap


def placed(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of SAEConfig with `site` and `site_out`, where they are given, as one site map.

    With `site_out` alone the input is unknown: then the file names the output in its metadata.
    """
    rest = {key: value for key, value in settings.items() if key not in ("site", "site_out")}
    site, site_out = settings.get("site"), settings.get("site_out")
    if site is not None:
        rest["site_map"] = SiteMap.parse(site, site_out)
    elif site_out is not None:
        rest["metadata"] = {**rest.get("metadata", {}), "hook_name_out": Site.parse(site_out).hook_name}
    return rest
