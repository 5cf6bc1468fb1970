"""Prompts as text files. The packaged ones are defaults; a copy of one, edited, takes its place.

A line of three dashes separates the system prompt, above, from what the user says, below. Names in braces, such as
`{examples}`, are replaced; other braces stay as they are.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from feature_db.chat.model import Messages
from saekit.errors import ConfigError

_CUT = re.compile(r"^---[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """The text of a prompt."""

    text: str

    @classmethod
    def packaged(cls, name: str) -> Prompt:
        """The prompt of this name that comes with saekit: label, detection, fuzzing, simulation or intruder."""
        return cls(resources.files("feature_db.chat").joinpath("prompts", f"{name}.txt").read_text("utf-8"))

    @classmethod
    def load(cls, path: str | Path, *needed: str) -> Prompt:
        """The prompt in a file.

        Args:
            path: the file.
            needed: texts that must be in it.

        Raises:
            ConfigError: the file cannot be read, or lacks one of them.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The prompt {path} cannot be read: {error}.", "Give a text file in UTF-8.") from error
        user = _CUT.split(text, maxsplit=1)[-1]
        for each in needed:
            if each not in (user if each.startswith("{") else text):  # names above the dashes are sent as they are
                where = " below the dashes" if each in text else ""
                raise ConfigError(
                    f"The prompt {path} has no {each!r}{where}.", "Begin with a copy of the packaged one: --show-prompt."
                )
        return cls(text)

    @cached_property
    def sha256(self) -> str:
        """Hash of the text, without differences in line ends and white space at the ends of lines: 16 hexadecimal digits."""
        lines = "\n".join(line.rstrip() for line in self.text.strip().splitlines())
        return hashlib.sha256(lines.encode()).hexdigest()[:16]

    @cached_property
    def system(self) -> str:
        """What stands above the line of dashes; empty without such a line."""
        above, *below = _CUT.split(self.text, maxsplit=1)
        return above.strip() if below else ""

    def messages(self, **values: str) -> Messages:
        """The prompt as a chat, with the values in place of their names in braces."""
        user = _CUT.split(self.text, maxsplit=1)[-1].strip()
        names = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
        user = names.sub(lambda match: values[match[0][1:-1]], user)  # in one pass: a value may hold the name of another
        system: list[dict[str, str]] = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": user}]
