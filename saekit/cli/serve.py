"""The command serve: the local web application."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import completion, options
from saekit.cli.output import emit, say, say_line
from saekit.cli.values import count


def serve(
    workspaces: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that `saekit fit` or `saekit demo` made.",
            metavar="WORKSPACE...",
            show_default=False,
            autocompletion=completion.workspaces,
        ),
    ],
    port: Annotated[
        int, typer.Option("--port", help="Port to listen on; 0 takes a free one.", parser=count(0), metavar="NUMBER")
    ] = 8391,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. Any but that of this machine alone needs --token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            help="What clients have to know, 16 characters or more: in the address once, or as Authorization: Bearer TOKEN.",
            envvar="SAEKIT_TOKEN",
            show_envvar=True,
            show_default=False,
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse new labels, notes and lists.")] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
    as_json: options.JSON = False,
) -> None:
    """Open workspaces in the browser: their dictionaries, features and searches. Only this machine can reach the pages.

    The server runs until Ctrl-C. The model is loaded when something first needs it.

    Example: `saekit serve pythia`

    Example: `saekit serve pythia gemma --port 9000 --no-open`
    """
    from saekit.errors import ConfigError
    from saekit.serve import server
    from saekit.serve.app import create_app
    from saekit.serve.settings import ServeSettings

    if port > 65535:
        raise ConfigError(f"There is no port {port}.", "Ports are 1 to 65535; 0 takes a free one.")
    settings = ServeSettings(host=host, port=port, token=token, read_only=read_only)
    app = create_app(workspaces, settings)
    listening = server.listen(settings)
    address = server.address(settings, listening)

    def ready() -> None:
        if as_json:
            folders = {name: str(each.workspace.path) for name, each in app.state.served.workspaces.items()}
            emit({"url": address, "workspaces": folders})
        else:
            say_line(("serving  ", "dim"), (address, "bold"))
            say(("Ctrl-C ends it", "dim"))
        if not no_open and not as_json:
            threading.Thread(target=_open, args=(address,), daemon=True).start()

    server.run(app, listening, ready)


def _open(address: str) -> None:
    """Open a page in the browser of a desktop. Browsers inside a terminal would take it over."""
    import webbrowser

    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    if not isinstance(browser, webbrowser.GenericBrowser) or isinstance(browser, webbrowser.BackgroundBrowser):
        browser.open(address)
