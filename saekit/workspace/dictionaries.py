"""The dictionaries in a workspace: where they are kept, and which one a user means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saekit.errors import ConfigError, SaekitError, WorkspaceError
from saekit.json_files import read_json
from saekit.names.address import Address, AddressLike
from saekit.names.dictionary import check_name, folder_name, place_of, stem
from saekit.names.site import Site
from saekit.names.site_map import SiteMap

__all__ = ["Dictionaries", "stem"]

_DONE = "cfg.json"  # written last: a folder without it holds no finished dictionary
_TRAINED = "train.json"


@dataclass(frozen=True)
class Dictionaries:
    """A folder of dictionaries: one default dictionary for each site map, and others with names, for comparison.

    ::

        resid_post.3/               the default dictionary of a site
        resid_post.3/<name>/        another dictionary of that site
        mlp_in.3--mlp_out.3/        a transcoder
        resid_post.1..2/            a crosscoder

    Earlier versions kept a transcoder in a folder named after its input site alone; such folders are still found. Folders whose
    name is not a site map are ignored.

    Args:
        root: the folder.
    """

    root: Path

    def folder(self, place: str | Site | SiteMap, name: str = "") -> Path:
        """The folder of a dictionary, whether it exists or not.

        Args:
            place: its site map.
            name: empty for the default dictionary.
        """
        new = self.root / folder_name(str(place)) / name
        old = self.root / str(place).split("->")[0] / name
        if old != new and not _begun(new) and _begun(old) and str(_recorded_place(old)) == str(place):
            return old
        return new

    def all(self) -> list[tuple[str, str]]:
        """(site map, name) of every finished dictionary; the name of a default dictionary is empty."""
        return [(str(place), name) for place, name in self._with(_DONE)]

    def begun(self) -> list[tuple[str, str]]:
        """(site map, name) of every dictionary whose training has begun."""
        return [(str(place), name) for place, name in self._with(_TRAINED)]

    def names(self, place: str | Site | SiteMap) -> list[str]:
        """Names of the dictionaries with this site map, finished or not."""
        return [name for found, name in {*self.all(), *self.begun()} if name and found == str(place)]

    def _with(self, file: str) -> list[tuple[SiteMap, str]]:
        folders = {path.parent for pattern in ("*", "*/*") for path in self.root.glob(f"{pattern}/{file}")}
        found = []
        for folder in folders:
            top, *names = folder.relative_to(self.root).parts
            hidden = any(part.startswith(".") for part in (top, *names))
            if not hidden and (place := _place(self.root / top, folder)) is not None:
                found.append((place, "/".join(names)))
        return sorted(found, key=lambda each: (str(each[0]), each[1]))

    def _single(self, name: str) -> list[SiteMap]:
        """Site maps of the dictionaries called `name` that read one site."""
        return [place for place, each in self._with(_DONE) if each == name and not place.crosses]

    def sites(self, name: str = "") -> list[Site]:
        """Sites that a dictionary of one site reads, in the order of computation.

        Args:
            name: of the dictionary; empty for a default one.
        """
        return sorted({place.site for place in self._single(name)})

    def folders(self, address: str | Address) -> list[Path]:
        """The folder of the dictionary with exactly this address, whether it exists or not, as a list."""
        wanted = Address.parse(address)
        return [self.folder(wanted.place, wanted.name)]

    def find(self, place: AddressLike | None = None, name: str = "") -> tuple[str, str]:
        """(site map, name) of the dictionary meant.

        Args:
            place: its address (`resid_post.3@gemma`), its site map, or only what it reads. A dictionary with exactly this site
                map is preferred. None: the only dictionary of that name; default dictionaries of one site are preferred to those
                of several.
            name: empty for the default dictionary, or where `place` has the name.

        Raises:
            WorkspaceError: there is no such dictionary, or there are several.
            UnknownSite, ConfigError: `place` is no address, or has another name than `name`.
        """
        known = self._with(_DONE)
        wanted, name = _wanted(place, name, known)
        named = [found for found, each in known if each == name]
        found = named
        if wanted is not None:
            found = [each for each in named if each == wanted]
            if not found and not wanted.transcodes:
                found = [each for each in named if each.reads == wanted.reads]
        single = [each for each in found if not each.crosses]
        if not name and wanted is None:
            found = single or found
        if len(found) == 1:
            return str(found[0]), name
        if found:
            places = ", ".join(map(str, found))
            what = f"There are dictionaries called {name!r}" if name else "There are dictionaries"
            first = str(found[0])
            option = f"--site '{first}'" if "->" in first else f"--site {first}"
            feature = f", or {Address(found[0], name)}/7 for a feature" if single and "->" not in first else ""
            raise WorkspaceError(f"{what} at {places} in {self.root}.", f"Say which: {option}{feature}.")
        what = " ".join(filter(None, (f"called {name!r}" if name else "", f"at {wanted}" if wanted else "")))
        raise WorkspaceError(f"{self.root} has no dictionary{' ' if what else ''}{what}.", self._instead(known))

    def _instead(self, known: list[tuple[SiteMap, str]]) -> str:
        if not known:
            return "Run `saekit train`, `saekit fit` or `saekit add` first."
        has = f"It has {', '.join(str(Address(place, name)) for place, name in known)}."
        if named := [name for _, name in known if name]:
            choose = f"saekit choose {self.root.parent} {named[0]}"
            return f"{has} Give its name, as `--name {named[0]}`, or make one with a name the default: `{choose}`."
        return has

    def address(self, place: AddressLike | None = None, name: str = "") -> Address:
        """The dictionary of one site that is meant: at `place`, or the only one of that name; see :meth:`find`.

        Where an SAE and transcoders of that name read one site, the site alone means the SAE.

        Raises:
            WorkspaceError: there is no such dictionary, there are several and `place` is None, or it reads several sites.
        """
        if place is None:
            chosen = [each for each in self._single(name) if not each.transcodes]
            chosen += [each for each in self._single(name) if each.transcodes and each.site not in {one.site for one in chosen}]
            if len(chosen) == 1:
                return Address(chosen[0], name)
            if not chosen and (others := [str(other) for other, each in self._with(_DONE) if each == name]):
                place = others[0]
        found, name = self.find(place, name)
        _check_single(SiteMap.parse(found))
        return Address(SiteMap.parse(found), name)

    def short(self, address: Address) -> Address:
        """The shortest address that means the same dictionary: a transcoder that alone reads its site needs only that site."""
        alone = sum(place.site == address.site for place in self._single(address.name)) == 1
        return Address(SiteMap.parse(address.site), address.name) if alone else address

    def site(self, text: str | None = None, name: str = "") -> Site:
        """The site that a dictionary reads; arguments and errors as for :meth:`address`."""
        return self.address(text, name).site

    def chosen(self, places: Sequence[str] | None, name: str = "") -> list[tuple[str, str]]:
        """(site map, name) of dictionaries of one site: those at `places`, or all that are called `name`.

        Where an SAE and a transcoder of that name read one site, the site means the SAE; the site map `mlp_in.3->mlp_out.3` means
        the transcoder.

        Raises:
            WorkspaceError: no dictionary is found, or none at one of `places`, or one that is found reads several sites.
        """
        if places:
            addresses = [self.address(place, name) for place in places]
            return [(str(each.place), each.name) for each in addresses]
        found = sorted(self._single(name), key=lambda place: (place.site, place))
        if not found:
            self.address(None, name)  # raises
        return [(str(place), name) for place in found]

    def searchable(self) -> list[tuple[str, str]]:
        """(site map, name) of every finished dictionary of one site."""
        return [(place, name) for place, name in self.all() if not SiteMap.parse(place).crosses]

    def choose(self, name: str, place: str | None = None, *, keep: str | None = None) -> str:
        """Make the dictionary called `name` the default of its site map, as a copy; returns the site map.

        When it is interrupted, the site map has no default dictionary at worst; doing it again completes it.

        Args:
            name: of the dictionary, or its address (`resid_post.3@gemma`).
            place: the site map; needed where several have a dictionary of that name.
            keep: the name under which the previous default dictionary is kept.

        Raises:
            WorkspaceError: there is no dictionary of that name, the previous default needs a free name to be kept under, or it is
                being trained.
            ConfigError: `keep` cannot be the name of a dictionary.
            StorageFull: the disk is full.
        """
        place, name = self.find(name) if "@" in name and place is None else self.find(place, name)
        if not name:
            return place
        own, chosen = self.folder(place), self.folder(place, name)
        _check_idle(own)
        if (own / _DONE).exists() and not _same(own, chosen):
            kept = None if keep is None else own / check_name(keep, self.names(place))
            if kept is None or (kept / _DONE).exists():
                what = f"{place} has a default dictionary" + (f", and another called {keep!r}." if keep else ".")
                raise WorkspaceError(what, f"Keep it under a free name: `saekit choose {self.root.parent} {name} --keep NAME`.")
            _check_idle(kept)
            _copy(own, kept)
        _copy(chosen, own)
        return place


def _wanted(place: AddressLike | None, name: str, known: Sequence[tuple[SiteMap, str]]) -> tuple[SiteMap | None, str]:
    """The site map and the name that are meant. What follows ``@`` is the name of another model if a dictionary has that site."""
    if place is None or isinstance(place, Site | SiteMap):
        return None if place is None else SiteMap.parse(place), name
    if isinstance(place, str):
        try:
            sites = SiteMap.parse(place_of(place))
        except SaekitError:
            if "@" not in place:
                raise
        else:
            if "@" not in place or sites.crosses or (sites, name) in known:
                return sites, name
    address = Address.parse(place)
    if name and address.name and name != address.name:
        raise ConfigError(f"{address} names {address.name!r}, and the name given is {name!r}.", "Give one of them.")
    return address.place, address.name or name


def _check_single(place: SiteMap) -> None:
    if place.crosses:
        hint = "`saekit eval` measures it; features are searched and steered in dictionaries of one site."
        raise WorkspaceError(f"{place} is a dictionary of several sites.", hint)


def _begun(folder: Path) -> bool:
    return (folder / _DONE).exists() or (folder / _TRAINED).exists()


def _place(top: Path, folder: Path) -> SiteMap | None:
    """The site map of the dictionary in `folder`, which lies in `top` or is it; None where `top` is not named after one."""
    try:
        place = SiteMap.parse(place_of(top.name))
    except SaekitError:
        return None
    recorded = None if place.transcodes else _recorded_place(folder)
    return recorded if recorded is not None and recorded.reads == place.reads else place


def _recorded_place(folder: Path) -> SiteMap | None:
    """The site map in the files of a dictionary; None where they have none, or are damaged."""
    try:
        if (folder / _TRAINED).exists():
            data = read_json(folder / _TRAINED)["data"]
            return SiteMap.parse(data["site"], data.get("site_out"))
        config = read_json(folder / _DONE)
        metadata = config.get("metadata", {})
        reads = config.get("sites") or [metadata["hook_name"]]
        writes = config.get("sites_out") or [metadata.get("hook_name_out") or metadata["hook_name"]]
        return SiteMap.parse("+".join(reads), None if reads == writes else "+".join(writes))
    except (SaekitError, KeyError, TypeError, AttributeError, ValueError):  # `verify` names the damage
        return None


def _check_idle(folder: Path) -> None:
    """Raise while a training run in `folder` is unfinished."""
    if any((folder / "checkpoints").glob("step-*")) and not (folder / _DONE).exists():
        raise WorkspaceError(
            f"{folder} is being trained.", "Let the run end: the same `saekit train` command completes an interrupted one."
        )


def _same(one: Path, other: Path) -> bool:
    from saekit.sae import SAE

    return SAE.load(one).fingerprint() == SAE.load(other).fingerprint()


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a dictionary; the configuration is removed first and written last, so that no mixture can be loaded."""
    import shutil

    from saekit.files import remove, whole

    remove(target / _DONE)
    files = [file for file in source.iterdir() if file.is_file()]
    for old in target.iterdir() if target.exists() else ():
        if old.is_file() and old.name not in {file.name for file in files}:
            remove(old)
    for file in sorted(files, key=lambda file: file.name == _DONE):
        with file.open("rb") as data, whole(target / file.name) as copy:
            shutil.copyfileobj(data, copy)
