"""Writing a copy of the pages of a workspace as files: whole, or not at all."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.files import document, is_leftover, remove, replace, temporary_folder, unwritable
from saekit.plugins import resolve
from saekit.progress import track
from saekit.serve.rendering import rendered
from saekit.serve.routers import ROUTERS
from saekit.serve.site.pages import Copied, SitePage, plain
from saekit.serve.site.places import INDEX, Places
from saekit.serve.state import Opened, address_name
from saekit.serve.static_files import static_files
from saekit.terminal import json_safe
from saekit.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saekit.workspace.workspace import Workspace

MARK = "saekit-site.json"
"""A file of every copy. A folder that has it may be replaced by a newer copy."""
LEFT_OUT = {
    "compare": "It takes any choice of features.",
    "inspect": "It needs the model.",
    "heads": "It needs the model.",
    "bench": "It needs the model.",
}
"""Pages of the server that a copy lacks, with reasons."""
_WORDS = 8


def write_site(
    workspace: Workspace,
    out: str | Path,
    *,
    refs: Sequence[tuple[str, int]] | None = None,
    most: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the pages that need no model and no server as files with relative links.

    The folder is written beside `out` and takes its place at the end. An earlier copy there is replaced; anything else is not.

    Args:
        workspace: what is copied. Nothing in it changes.
        out: the folder.
        refs: features that get a page, as (address of the dictionary, number); None: all that fired.
        most: most pages of features of each dictionary, the most frequent ones; None: no limit.
        progress: whether a bar is shown.

    Returns:
        site (the first page), pages, features (with a page), bytes (all files), bytes_per_feature, files, and left_out: pages of
        the server that the copy lacks, with reasons.

    Raises:
        ConfigError: `out` exists and is not a copy.
        StorageFull, Unwritable: it cannot be written.
    """
    out = Path(out).absolute()
    _check(out)
    opened = Opened(address_name(workspace.path.absolute().name), workspace)
    try:
        with temporary_folder(out.parent) as folder:
            facts = _Writer(Copied(opened, refs, most), folder).write(progress)
            if out.exists():
                remove(out)
            (folder / "site").chmod(0o777 & ~_umask())
            replace(folder / "site", out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        opened.close()
    return {"site": str(out / INDEX), **facts, "left_out": LEFT_OUT}


def _umask() -> int:
    import os

    found = os.umask(0)
    os.umask(found)
    return found


def _check(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"{out} is not a folder.", "Give a new folder.")
    if out.exists() and not (out / MARK).exists() and any(not is_leftover(each.name) for each in out.iterdir()):
        raise ConfigError(f"{out} holds files that are not such pages.", "Give a new folder.")


class _Writer:
    """Writes the files of one copy."""

    def __init__(self, copied: Copied, folder: Path) -> None:
        self._copied, self._folder = copied, folder / "site"
        self._date = datetime.now(UTC).date().isoformat()
        self._rows: list[list[Any]] = []
        self._bytes = self._feature_bytes = self._files = 0

    def write(self, progress: bool) -> dict[str, Any]:
        """Write all files; returns what was written."""
        pages = list(self._pages())
        self._navigated = {page.url.partition("?")[0] for page in pages}
        places = Places(
            {page.url: page.file for page in pages}
            | {"/": INDEX}
            | {f"/static/{name}": f"static/{name}" for name in static_files()},
            {"dictionary": self._copied.saes[0].dictionary, "page": "1"} if self._copied.saes else {"page": "1"},
        )
        self._folder.mkdir()
        with track("writing", len(pages), unit="pages", subject="the pages", enabled=progress) as bar:
            for done, page in enumerate(pages, 1):
                self._page(page, places)
                bar.update(done)
        for name, content in static_files().items():
            if f"static/{name}" in places.linked:
                self._put(f"static/{name}", content)
        self._put("site_index.js", self._index().encode())
        features = len(self._rows)
        per_feature = round(self._feature_bytes / features) if features else None
        facts = {"pages": len(pages), "features": features, "files": self._files + 1, "bytes_per_feature": per_feature}
        self._put(MARK, document({"saekit": VERSION, "date": self._date, **facts}).encode())
        return facts | {"bytes": self._bytes}

    def _pages(self) -> Iterator[SitePage]:
        for row in ROUTERS.values():
            if row.copies:
                yield from resolve(row.copies)(self._copied)

    def _page(self, page: SitePage, places: Places) -> None:
        view = page.view()
        twin = f"{page.file.removesuffix('.html')}.json"
        here = {
            "ws": self._copied.opened.name,
            "path": page.url.partition("?")[0],
            "json": posixpath.basename(twin),
            "read_only": True,
            "copied": self._date,
            "copied_pages": self._navigated,
        }
        html = places.html(
            rendered(page.template, places.view(view, page.file, charts_only=True), here, [self._copied.opened.name]), page.file
        )
        data = json_safe(
            json.dumps(json.loads(document(places.view(view, page.file))), ensure_ascii=False, separators=(",", ":"))
        )
        size = self._put(page.file, html.encode("utf-8", "replace")) + self._put(twin, data.encode("utf-8", "replace"))
        if page.template == "feature.html":
            self._feature_bytes += size
            self._rows.append(self._row(view))

    def _row(self, view: dict[str, Any]) -> list[Any]:
        """What the search knows of a feature."""
        addresses = [sae.dictionary for sae in self._copied.saes]
        words = " ".join(each["text"].strip() for each in view["fires_on"]["words"][:_WORDS])
        promoted = " ".join(each["token"].strip() for each in view["causes"]["promoted"][:_WORDS])
        density = float(f"{view['density']:.3g}")
        return [addresses.index(view["dictionary"]), view["feature"], view["label"] or "", view["kind"], density, words, promoted]

    def _index(self) -> str:
        """The rows as a script: a page that was opened from a disk may load scripts, and no data."""
        names = [{"address": sae.dictionary, "folder": plain(sae.dictionary)} for sae in self._copied.saes]
        data = json.dumps({"dictionaries": names, "rows": self._rows}, ensure_ascii=True, separators=(",", ":"))
        return f'"use strict";\nwindow.saekitIndex = {data};\n'

    def _put(self, file: str, content: bytes) -> int:
        path = self._folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._bytes += len(content)
        self._files += 1
        return len(content)
