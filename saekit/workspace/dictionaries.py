"""The finished dictionaries of a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saekit.errors import WorkspaceError

if TYPE_CHECKING:
    from saekit.names.site import Site

_DONE = "cfg.json"  # which no dictionary has before it is finished


def stem(site: str | Site, name: str = "") -> str:
    """What files about a dictionary are called after."""
    return "-".join(filter(None, (str(site), name)))


@dataclass(frozen=True)
class Dictionaries:
    """A folder of dictionaries: each site's own, which is searched and steered, and others of it by their names, to compare.

    ::

        resid_post.3/           the site's own
        resid_post.3/<name>/    another
        resid_post.1..2/        one that reads several sites

    Args:
        root: the folder.
    """

    root: Path

    def folder(self, site: str | Site, name: str = "") -> Path:
        """Where a dictionary is kept, or will be."""
        return self.root / str(site) / name

    def all(self) -> list[tuple[str, str]]:
        """(what it reads, name) of each; a site's own has no name."""
        return self._with(_DONE)

    def begun(self) -> list[tuple[str, str]]:
        """The same of all that have been trained or are being trained."""
        return self._with("train.json")

    def _with(self, file: str) -> list[tuple[str, str]]:
        files = [*self.root.glob(f"*/{file}"), *self.root.glob(f"*/*/{file}")]
        folders = sorted(file.parent.relative_to(self.root).parts for file in files)
        return [(site, "/".join(name)) for site, *name in folders]

    def sites(self) -> list[Site]:
        """Sites that have a dictionary of their own, in the order of computation."""
        from trainers import Route

        routes = [Route.parse(site) for site, name in self.all() if not name]
        return sorted(route.site for route in routes if not route.crosses)

    def find(self, site: str | None = None, name: str = "") -> tuple[str, str]:
        """(what it reads, name) of the dictionary meant.

        Args:
            site: what it reads; needed where several have that name. Of those without a name, one of a single site goes before
                those of several sites.

        Raises:
            WorkspaceError: there is none, or there are several.
        """
        from trainers import Route

        known = self.all()
        start = None if site is None else Route.parse(site).start
        found = [each for each in known if each[1] == name and start in (None, each[0])]
        single = [each for each in found if not Route.parse(each[0]).crosses]
        if not name and start is None:
            found = single or found
        if len(found) == 1:
            return found[0]
        if found:
            places = ", ".join(place for place, _ in found)
            what = f"There are dictionaries called {name!r}" if name else "There are dictionaries"
            first = found[0][0]
            hint = f"Say which: --site {first}{f', or {first}/7 for a feature' if single and not name else ''}."
            raise WorkspaceError(f"{what} at {places} in {self.root}.", hint)
        what = " ".join(filter(None, (f"called {name!r}" if name else "", f"at {start}" if start else "")))
        raise WorkspaceError(f"{self.root} has no dictionary{' ' if what else ''}{what}.", self._instead(known))

    def _instead(self, known: list[tuple[str, str]]) -> str:
        if not known:
            return "Run `saekit train` or `saekit fit` first."
        has = f"It has {', '.join('/'.join(filter(None, each)) for each in known)}."
        if named := [name for _, name in known if name]:
            return f"{has} To search or steer with one that has a name: `saekit choose WORKSPACE {named[0]}`."
        return has

    def site(self, text: str | None = None) -> Site:
        """The site whose own dictionary is meant: `text`, or the only one that has any.

        Raises:
            WorkspaceError: there is none, there are several and `text` is None, or it is one of several sites.
        """
        from trainers import Route

        if text is None and not self.sites() and (others := [place for place, name in self.all() if not name]):
            text = others[0]
        route = Route.parse(self.find(text)[0])
        if route.crosses:
            hint = "`saekit eval` measures it; features are searched and steered in dictionaries of one."
            raise WorkspaceError(f"{route.start} is a dictionary of several sites.", hint)
        return route.site

    def chosen(self, texts: Sequence[str] | None) -> list[Site]:
        """The sites of `texts`, or all that have a dictionary of their own.

        Raises:
            WorkspaceError: there is none, or not at one of `texts`.
        """
        return [self.site(text) for text in texts] if texts else self.sites() or [self.site()]

    def choose(self, name: str, site: str | None = None, *, keep: str | None = None) -> str:
        """Make the dictionary called `name` its site's own, as a copy; returns the site.

        Interrupted, it leaves the site without a dictionary of its own at worst, and done again it ends as it would have.

        Args:
            keep: the name under which the one before is kept.

        Raises:
            WorkspaceError: there is none of that name, the one before has no name to be kept under, or is being trained.
            StorageFull: there is no room.
        """
        site, name = self.find(site, name)
        own, chosen = self.folder(site), self.folder(site, name)
        if any((own / "checkpoints").glob("step-*")) and not (own / _DONE).exists():
            raise WorkspaceError(f"{own} is being trained.", "Let it end, or remove it.")
        if (own / _DONE).exists() and not _same(own, chosen):
            if keep is None or (self.folder(site, keep) / _DONE).exists():
                what = f"{site} has a dictionary of its own" + (f", and another called {keep!r}." if keep else ".")
                raise WorkspaceError(what, f"Keep it under a free name: `saekit choose WORKSPACE {name} --keep NAME`.")
            _copy(own, self.folder(site, keep))
        _copy(chosen, own)
        return site


def _same(one: Path, other: Path) -> bool:
    from saekit.sae import SAE

    return SAE.load(one).fingerprint() == SAE.load(other).fingerprint()


def _copy(source: Path, target: Path) -> None:
    """The files of a dictionary, so that it is finished there when they are all there."""
    import shutil

    from saekit.files import whole

    (target / _DONE).unlink(missing_ok=True)
    files = [file for file in source.iterdir() if file.is_file()]
    for old in target.iterdir() if target.exists() else ():
        if old.is_file() and old.name not in {file.name for file in files}:
            old.unlink()
    for file in sorted(files, key=lambda file: file.name == _DONE):
        with file.open("rb") as data, whole(target / file.name) as copy:
            shutil.copyfileobj(data, copy)
