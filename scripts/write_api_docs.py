"""Write docs/python.md, the reference of the Python API, from the docstrings of what the packages export::

python scripts/write_api_docs.py
python scripts/write_api_docs.py --check  # fails where the file is out of date
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

PACKAGES = [
    *("saekit", "saekit.workspace", "saekit.lm", "saekit.objects", "saekit.steer", "saekit.tasks", "saekit.evaluate"),
    *("saekit.steer.weights", "saekit.locate.vocabulary"),
    *("saekit.sae", "saekit.activations", "saekit.lab", "trainers", "feature_db"),
]
PAGE = Path(__file__).parents[1] / "docs" / "python.md"
_HEAD = """# Python API

Written by `scripts/write_api_docs.py` from the docstrings. Shapes are given in the names of arrays: B batch, T tokens, D width,
F latents, N rows.
"""
_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?\.?([^`]+)`")


def page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    described: dict[int, str] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        parts.append(f"\n## {package}\n\n{_text(module.__doc__).splitlines()[0]}\n")
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if id(value) in described and callable(value):
                parts.append(f"- `{name}`: see `{described[id(value)]}.{name}`")
                continue
            described[id(value)] = package
            parts.append(_entry(name, value))
    return "\n".join(parts).rstrip() + "\n"


def _entry(name: str, value: Any) -> str:
    if inspect.isclass(value):
        methods = "".join(f"\n- `{_line(method, text)}`: {_summary(text)}" for method, text in _methods(value))
        return f"\n### {name}\n\n{_text(value.__doc__)}\n{methods}\n"
    if callable(value):
        return f"\n### {name}\n\n```text\n{name}{_signature(value)}\n```\n\n{_text(value.__doc__)}\n"
    shown = f" = {value!r}" if isinstance(value, str | int | float | tuple) and len(repr(value)) < 100 else ""
    return f"- `{name}{shown}`"


def _methods(value: type) -> list[tuple[str, Any]]:
    """Public methods and properties with a docstring that the class itself defines."""
    return [
        (name, member)
        for name, member in vars(value).items()
        if not name.startswith("_")
        and inspect.getdoc(member)
        and (callable(member) or isinstance(member, property | classmethod))
    ]


def _line(name: str, member: Any) -> str:
    if isinstance(member, property):
        return name
    function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    return name + _signature(function)


def _signature(function: Any) -> str:
    try:
        text = str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", re.sub(r" at 0x[0-9a-f]+", "", text))  # annotations are strings
    return re.sub(r"\b(self|cls)(, )?", "", text, count=1)


def _summary(member: Any) -> str:
    return " ".join(_text(inspect.getdoc(member)).split("\n\n")[0].split())


def _text(docstring: str | None) -> str:
    """A docstring in Markdown. Roles become code; literal blocks and sections of arguments keep their line breaks."""
    lines = _ROLE.sub(r"`\1`", inspect.cleandoc(docstring or "")).splitlines()
    out: list[str] = []
    block = False
    for line in lines:
        section = re.fullmatch(r"(Args|Raises|Returns|Attributes|Yields):", line)
        if block and line and not line.startswith((" ", "\t")):
            out.append("```\n")
            block = False
        if line.endswith("::") or section:
            out += [line.removesuffix("::") + (":" if line.endswith("::") and line != "::" else ""), "\n```text"]
            block = True
        else:
            out.append(line)
    return "\n".join([*out, "```"] if block else out).replace("```text\n\n", "```text\n").replace("\n\n```\n", "\n```\n")


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text() != page():
            sys.exit(f"{PAGE.name} is out of date: run python scripts/write_api_docs.py")
        return
    PAGE.write_text(page())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
