"""The command search: features by concept, by example texts or by likeness."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from saekit.cli import completion, options
from saekit.cli.output import console, emit, quiet_libraries, say, text
from saekit.errors import ConfigError


def search(
    workspace: options.WORKSPACE,
    query: Annotated[
        str | None,
        typer.Argument(help="A concept, in plain words. Not needed with --text.", metavar="[QUERY]", show_default=False),
    ] = None,
    k: options.TOP = 10,
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            help="Search the dictionaries of this site only, or one dictionary: resid_post.3@NAME. [default: all]",
            show_default=False,
            autocompletion=completion.sites,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            "--name",
            help="Search the dictionary of this name only.",
            show_default=False,
            autocompletion=completion.names,
        ),
    ] = "",
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by", help="Search by this signal only: promotes, fires_word, label, ... May be repeated.", show_default=False
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also run the words through the model and the dictionary. This loads both.")
    ] = False,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="Find features that fire on this text, instead of a query. [[ and ]] mark what matters in it. A JSON list of "
            "messages is a chat. May be repeated. This loads the model.",
            show_default=False,
        ),
    ] = None,
    contrast: Annotated[
        list[str] | None,
        typer.Option("--contrast", help="With --text: a text on which not to fire. May be repeated.", show_default=False),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            help="Find features like this one: 1042, resid_post.3/1042, ... --by words compares the words that they fire on, "
            "--by coactivation the tokens, not the decoder directions.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where", help="Only features that fulfil a condition: \"density < .01 and kind = 'word'\".", show_default=False
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", help="Order by this column, not by the score: density, 'max desc', ...", show_default=False),
    ] = None,
    offset: Annotated[int, typer.Option("--offset", help="Leave out this number of features before the first.")] = 0,
    as_json: options.JSON = False,
    *,
    load: options.PlaceOptions,
) -> None:
    """Find features by concept: by their labels, the words and classes of tokens they fire on, and the tokens they promote.

    All indexed dictionaries are searched, except those that were replaced since; a warning names these. `--site` and `--name`
    restrict the search to dictionaries that read the site, or have the name.

    To steer towards a concept, look for features that promote its words: `--by promotes`.

    Without a query, `--where` and `--sort` list features.

    With `--text`, features are found that fire on example texts, and not on those of `--contrast`; with `--like`, features that
    are like a given one.

    Example: `saekit search pythia "happy"`

    Example: `saekit search pythia --text "My [[dog]] barks." --text "A [[puppy]] sleeps." --contrast "My car is loud."`

    Example: `saekit search pythia --like resid_post.3/1042`

    Example: `saekit search pythia "happy" --where "density < .01" --sort "max desc"`

    Example: `saekit search pythia --where "output_score > .5" --sort "output_score desc"`
    """
    from saekit.names.address import Address
    from saekit.workspace.workspace import Workspace

    asked = sum((query is not None, bool(texts), like is not None))
    if asked > 1 or not (asked or where or sort):
        raise ConfigError(
            "A search needs a query, example texts or a feature.",
            'Give one: words, --text "...", or --like FEATURE; or list features by --where and --sort.',
        )
    if (by and not asked) or (texts and by) or (deep and query is None) or (like is not None and len(by or ()) > 1):
        raise ConfigError(
            "--by and --deep choose signals of a query.", "Leave them out; --like takes one --by: decoder, words or coactivation."
        )
    if contrast and not texts:
        raise ConfigError("--contrast is given without --text.", "Add the texts on which features should fire.")
    ws = Workspace.open(workspace, **load.changes())
    wanted = None if site is None else Address.parse(site)
    page: dict[str, Any] = {"k": k, "where": where, "sort": sort, "offset": offset}
    if texts:
        quiet_libraries()
        address = ws.dictionaries.address(site, name)
        negatives = [_example(each) for each in contrast] if contrast else None
        hits: Any = ws.database().search_texts(ws.lm, ws.sae(address), [_example(each) for each in texts], negatives, **page)
    elif like is not None:
        within = ws.dictionaries.address(site, name) if site or name else None
        hits = ws.database().like(ws.ref(like), by=by[0] if by else "decoder", dictionary=within, **page)
    else:
        extra: dict[str, Any] = page | ({"by": by} if by else {})
        if deep or name or (wanted is not None and (wanted.name or wanted.site_out)):  # one dictionary
            extra["dictionary"] = address = ws.dictionaries.address(site, name)
            if deep:
                quiet_libraries()
                extra |= {"lm": ws.lm, "sae": ws.sae(address)}
        elif wanted is not None:
            extra["site"] = wanted.site
        hits = ws.database().browse(**extra) if query is None else ws.database().search(query, **extra)
    show([hit.to_dict() for hit in hits], "nothing found" if query is None else f"nothing found for {query!r}", as_json)


def _example(given: str) -> Any:
    """A text, or a chat where it is a JSON list of messages."""
    if given.lstrip().startswith("[{"):
        try:
            return json.loads(given)
        except ValueError:
            pass
        except RecursionError as error:
            raise ConfigError(f"The JSON {given!r:.60} is nested too deeply to be read.", "Give a list of messages.") from error
    return given


def show(rows: list[dict[str, Any]], nothing: str, as_json: bool) -> None:
    """Print features that were found."""
    from rich.padding import Padding

    if as_json:
        emit(rows)
        return
    if not rows:
        say(nothing)
    for row in rows:
        feature = row["ref"].removeprefix("feature:")
        density = f"  {row['density']:.2%} of tokens"
        say((f"{row['score']:.2f}  ", "cyan"), (feature, "bold"), "  ", (row["label"], "green"), (density, "dim"))
        facts = [row["why"], *(f"{name} {row[name]:.2f}" for name in ("f1", "auc", "difference") if row.get(name) is not None)]
        console().print(Padding(text(("; ".join(facts), "dim")), (0, 0, 0, 6)))
