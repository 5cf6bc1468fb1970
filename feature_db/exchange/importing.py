"""Imports features and labels that another tool wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from feature_db.exchange.formats import FORMATS, Import, Imports
from saekit.errors import ConfigError, ExchangeError, shown_path


def import_features(
    database: str | Path,
    source: str | Path,
    format: str | None = None,
    *,
    site: str | None = None,
    name: str = "",
    lm: Any = None,
    progress: bool = True,
) -> list[Imports]:
    """Import what another tool wrote into a database, which is made if it does not exist.

    Where the database holds the dictionary that the files are of, their labels are added to it: nothing is replaced. Else the
    dictionary is added with its statistics, examples and labels, and is searched like others.

    Args:
        database: the SQLite file.
        source: folder that the other tool wrote.
        format: name of a format of :data:`feature_db.exchange.FORMATS`; None: found by the content.
        site: site map of the dictionary, where the files do not say it.
        name: of the dictionary among those of its sites.
        lm: returns the model, for formats that hold token ids.
        progress: show a progress bar.

    Returns:
        What was done, for each dictionary in the source.

    Raises:
        ConfigError: there is no such format, or it is only written.
        ExchangeError: the files are damaged or of another dictionary.
        DatabaseError, StorageFull, Unwritable: the database cannot be written.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise ExchangeError(f"{shown_path(folder)} is not a folder.", "Give the folder that the other tool wrote.")
    if format is None:
        found = [each for each, row in FORMATS.items() if row.fits(folder)]
        if not found:
            known = ", ".join(each for each, row in FORMATS.items() if row.read is not None)
            raise ExchangeError(f"{shown_path(folder)} holds nothing that can be imported.", f"Formats: {known}.")
        format = found[0]
    read = FORMATS.find(format).reader()
    if read is None:
        raise ConfigError(f"The format {format!r} is only written.", "See `saekit import --help`.")
    return read(Import(Path(database), folder, site, name, lm, progress))
