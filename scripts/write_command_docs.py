"""Write docs/commands.md, the reference of the command line, from the commands themselves::

python scripts/write_command_docs.py
python scripts/write_command_docs.py --check  # fails where the file is out of date
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from saekit.cli.app import build
from saekit.cli.commands import COMMANDS

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
_HEAD = """# Commands

Written by `scripts/write_command_docs.py` from the commands. `saekit COMMAND --help` shows the same. Counts are written as
100000, 1e5, 100k or 2M. With `--json`, a command prints one JSON document, also when it fails.

The exit status is 0; 1 after an unexpected error, whose trace goes to a file; 2 after an error in the input; 130 after Ctrl-C;
141 if the reader of the output has gone; 143 after SIGTERM. `saekit fit`, `cache`, `train`, `index` and `demo` go on from where
they were stopped when they are run again.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD, "| command | what it does |\n|---|---|"]
    parts += [f"| [`saekit {name}`](#saekit-{name.replace(' ', '-')}) | {row.summary} |" for name, row in COMMANDS.items()]
    return "\n".join(parts) + "\n" + "".join(map(_section, COMMANDS)) if parts else ""


def _section(name: str) -> str:
    command = build(name)
    shown = [each for each in command.params if not each.hidden]
    arguments = [each for each in shown if not each.opts[0].startswith("-")]
    panels: dict[str, list[Any]] = {}
    for each in shown:
        if each.opts[0].startswith("-"):
            panels.setdefault(each.rich_help_panel or "Options", []).append(each)
    words = [each.metavar + ("..." if each.nargs == -1 else "") for each in arguments]
    lines = [f"\n## saekit {name}\n", f"```text\nsaekit {' '.join([name, *words, '[OPTIONS]'])}\n```\n"]
    lines.append(inspect.cleandoc(COMMANDS[name].function.__doc__ or ""))
    if arguments:
        lines.append("\n" + "\n".join(f"- `{each.metavar}`: {_text(each.help)}" for each in arguments))
    for panel, options in panels.items():
        lines += [f"\n### {panel}\n" if len(panels) > 1 else "", *map(_option, options)]
    return "\n".join(lines).rstrip() + "\n"


def _option(option: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f" `{option.metavar}`"
    default = "" if option.default in (None, False, "") or not option.show_default else f" [default: {option.default}]"
    return f"- {flags}{value}: {_text(option.help)}{default}"


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description="Write docs/commands.md, the reference of the command line.")
    parser.add_argument("--check", action="store_true", help="only fail where the file is out of date")
    if parser.parse_args().check:
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == page() else "docs/commands.md is out of date")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
