"""The command sql: read-only queries on the features."""

from __future__ import annotations

from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, say, table
from saekit.cli.values import count


def sql(
    workspace: options.WORKSPACE,
    query: Annotated[str, typer.Argument(help="A SELECT on the views.", metavar="SELECT")],
    limit: Annotated[int, typer.Option("-n", "--limit", help="Rows to show at most.", parser=count(1), metavar="COUNT")] = 100,
    seconds: Annotated[float, typer.Option("--seconds", help="Time after which the query is stopped.")] = 10.0,
    as_json: options.JSON = False,
) -> None:
    """Query the features with SQL. Nothing can be changed.

    Views: `features`, `labels`, `scores`, `notes`, `words`, `classes`, `examples`, `histograms`, `logit_histograms`, `partners`,
    `corpus_labels`, `failures`, `lists`, `dictionaries`. Their columns:
    `saekit sql pythia "select * from features" -n 1`. Join views on `feature_id`.

    Example: `saekit sql pythia "select ref, label, density from features where kind = 'word' order by density desc" -n 10`
    """
    from saekit.workspace.workspace import Workspace

    result = Workspace.open(workspace).database().sql(query, limit=limit, seconds=seconds)
    rows = result.to_dicts()
    if as_json:
        emit(rows)
        return
    table(rows)
    if result.more:
        say((f"There are more than {limit} rows: see --limit.", "dim"))
