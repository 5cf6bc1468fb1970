"""The command index: the features of a dictionary in the database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say, table

if TYPE_CHECKING:
    from saekit.evaluate.steering.clamp_effects import ClampSettings


@dataclass(frozen=True)
class EffectOptions:
    """What of the effects of features is measured, and how."""

    effects: Annotated[
        bool | None,
        typer.Option(
            "--effects/--no-effects",
            help="Measure what a clamp of each feature causes on neutral prompts. [default: if it takes at most 15 minutes]",
            show_default=False,
        ),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file with the neutral prompts, one a line. [default: eight openings, listed in the documentation]",
            show_default=False,
        ),
    ] = None
    clamp: Annotated[
        str | None,
        typer.Option("--clamp", help="Strength of the clamp, as `saekit steer` takes it. [default: 0.5norm]", show_default=False),
    ] = None

    def settings(self) -> ClampSettings | None:
        """The settings that are given; None where all have their defaults.

        Raises:
            ConfigError: the file cannot be read, or holds no prompt.
            InterventionError: the strength cannot be read.
        """
        from saekit.errors import ConfigError
        from saekit.evaluate.steering.clamp_effects import ClampSettings

        given: dict[str, Any] = {} if self.clamp is None else {"strength": self.clamp}
        if self.prompts is not None:
            try:
                lines = self.prompts.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{self.prompts} cannot be read: {error}.", "Give a text file with a prompt in each line."
                ) from error
            given["prompts"] = tuple(line for line in lines if line.strip())
        return ClampSettings(**given) if given else None


def index(
    workspace: options.WORKSPACE,
    site: options.TRAINED_SITES = None,
    name: options.NAME = "",
    every: Annotated[bool, typer.Option("--all", help="Index every dictionary of the workspace, those with names too.")] = False,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", help="Make labels by this method only: words, pieces, promotes, ... May be repeated.", show_default=False
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Compute the activations with the model. They need not be cached.")
    ] = False,
    heldout: Annotated[
        float | None,
        typer.Option(
            "--heldout",
            help="Share of the documents that are not counted, so that `saekit score` can score labels on them; 0 counts all. "
            "[default: 0.05, those that training holds out]",
            show_default=False,
        ),
    ] = None,
    as_json: options.JSON = False,
    *,
    measured: EffectOptions,
    load: options.PlaceOptions,
) -> None:
    """Put the features of each site's default dictionary, or of those called NAME, into the searchable database.

    The features get labels made by rules, and their statistics, examples and partners: the features that fire on the same tokens.
    All dictionaries are indexed in one pass over the activations. The database holds any number of them, also several of one
    site.

    `torchrun --nproc-per-node 4 -m saekit index ...` shares the pass between processes; the rows are those of one process.

    Then what each feature causes is measured: the feature is clamped once on neutral prompts, and the tokens that gain are kept
    beside the tokens that it fires on. Where a database lacks this, the same command measures it, and does nothing else again.

    Example: `saekit index pythia`

    Example: `saekit index pythia --site resid_post.3 --name wide`

    Example: `saekit index pythia --all --live`

    Example: `saekit index pythia --no-effects`
    """
    quiet_libraries()
    from saekit.collective import joined
    from saekit.errors import ConfigError
    from saekit.processes import leads
    from saekit.workspace.workspace import Workspace

    if every and (site or name):
        raise ConfigError("--all is given together with --site or --name.", "Give one of them.")
    clamps = measured.settings()
    settings: dict[str, Any] = {"labels": labels, "live": live, "effects": measured.effects, "clamps": clamps, "heldout": heldout}
    with joined():  # before the model is loaded, so that each process loads it to its own GPU
        ws = Workspace.open(workspace, **load.changes())
        chosen = ws.dictionaries.searchable() if every else ws.dictionaries.chosen(site, name)
        with ws.writing(together=True):
            ws.index_all(chosen, **settings, progress=leads()).close()
    if not leads():
        return
    rows = [{"site": place, "name": own, "features": ws.sae(place, own).cfg.n_latents} for place, own in chosen]
    if as_json:
        emit(rows)
        return
    table(rows)
    with ws.database() as database:
        waiting = sum(database.set_aside().values())
    if waiting:
        say((f"{waiting} labels, notes and list entries by people belong to dictionaries that are not indexed now.", "dim"))
        say(("They are kept in features.sqlite and return when their dictionary is indexed again.", "dim"))
