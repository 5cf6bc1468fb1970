"""Fields of HTML forms, without a further library: forms here have no files."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, HTTPException, Request

KIND = "application/x-www-form-urlencoded"
_MOST_FIELDS = 1000


async def _fields(request: Request) -> dict[str, list[str]]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != KIND:
        raise HTTPException(415, f"A form is sent as {KIND}.")
    try:
        text = (await request.body()).decode()
        return parse_qs(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except ValueError as error:
        raise HTTPException(400, "The form cannot be read.") from error


class Form:
    """The fields of a form that was sent."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self._fields = fields

    def text(self, name: str) -> str:
        """A field without white space around it; empty where it is missing."""
        return self._fields.get(name, [""])[-1].strip()

    def texts(self, name: str) -> list[str]:
        """All values of a field."""
        return self._fields.get(name, [])


async def _form(fields: Annotated[dict[str, list[str]], Depends(_fields)]) -> Form:
    return Form(fields)


Sent = Annotated[Form, Depends(_form)]
