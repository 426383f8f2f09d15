# SPDX-License-Identifier: GPL-2.0-only
"""Edits of C and C++ functions: a mutant of KVM, or a defect of an emulator mended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


class EditError(Exception):
    """An edit that does not fit the source. The message is one line."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace ``old`` by ``new`` in ``function``, or else do what ``older`` says.

    ``old`` occurs exactly once in ``function``; white space between tokens does not matter.
    Without ``new``, ``old`` is deleted. A function that has other names in other sources is
    "one|other".
    """

    function: str
    old: str
    new: str = ""
    older: Edit | None = None

    def apply(self, sources: Mapping[str, str]) -> tuple[str, str]:
        """Return the path of the edited file and its new text; ``sources`` is {path: text}.

        Raises EditError unless ``old`` occurs exactly once, here or in ``older``.
        """
        try:
            file, start, end = self.place(sources)
        except EditError:
            if self.older is None:
                raise
            return self.older.apply(sources)
        return file, sources[file][:start] + self.new + sources[file][end:]

    def place(self, sources: Mapping[str, str]) -> tuple[str, int, int]:
        """Return the path of the file, and the start and end of ``old``. Raises EditError."""
        found = definitions(self.function, sources)
        places = [
            (file, *place.span())
            for file, definition in found
            for place in _token_pattern(self.old).finditer(sources[file], *definition.span())
        ]
        if not found:
            raise EditError(f"no function {self.function}")
        if len(places) != 1:
            raise EditError(f"{len(places)} places in {self.function}, not 1: {self.old}")
        return places[0]


def definitions(function: str, sources: Mapping[str, str]) -> list[tuple[str, re.Match[str]]]:
    """Return the path and text of each definition of a function; ``sources`` is {path: text}."""
    pattern = _definition_pattern(function)
    return [(file, match) for file, text in sources.items() for match in pattern.finditer(text)]


def _definition_pattern(function: str) -> re.Pattern[str]:
    """Return a pattern of a definition, from its first line to the closing brace."""
    return re.compile(
        rf"^(?:[A-Za-z][^\n;#]*)?\b(?:{function})\([^;{{]*\)\s*\{{.*?^\}}", re.M | re.S
    )


def _token_pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of the same tokens with any white space between them."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    words = [rf"\b{token}\b" if token.isidentifier() else re.escape(token) for token in tokens]
    return re.compile(r"\s*".join(words))
