# SPDX-License-Identifier: GPL-2.0-only
"""Leave out of a C file the definitions that nothing uses.

A definition is a paragraph: text between blank lines, outside of braces and comments. A paragraph
stays if a paragraph that stays uses a name that it defines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"[A-Za-z_]\w*")
_DEFINES = (
    re.compile(r"^#define (\w+)", re.MULTILINE),
    re.compile(r"^(?:static )?(?:struct|enum) (\w+) \{", re.MULTILINE),
    re.compile(r"^\w[\w \t*]*?\b(\w+)\([^;]*\)\n\{", re.MULTILINE),
    re.compile(r"^static [^(=;{]*?\b(\w+)(?:\[\w*\])*(?:, \w+)*(?:;| =)", re.MULTILINE),
    re.compile(r"^\} (\w+);", re.MULTILINE),
    re.compile(r"^} \*?(\w+)(?:\[\w*\])*(?: = .*)?;", re.MULTILINE),
)
_ENUM = re.compile(r"^enum \{(.*?)\};", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"/\* -{20,}")


def paragraphs(source: str) -> list[str]:
    """Return the paragraphs of a C file."""
    found: list[str] = []
    depth, comment = 0, False
    lines: list[str] = []
    for line in source.splitlines():
        if not line.strip() and depth == 0 and not comment:
            if lines:
                found.append("\n".join(lines))
            lines = []
            continue
        lines.append(line)
        if "/*" in line:
            comment = True
        if "*/" in line:
            comment = False
        if not comment:
            depth += line.count("{") - line.count("}")
    if lines:
        found.append("\n".join(lines))
    return found


def defined(paragraph: str) -> Iterator[str]:
    """Yield the names that a paragraph defines."""
    for pattern in _DEFINES:
        yield from pattern.findall(paragraph)
    for listed in _ENUM.findall(paragraph):
        yield from re.findall(r"(\w+)(?: = [^,]*)?(?:,|$)", listed.strip())


def pruned(source: str, used: str) -> str:
    """Return ``source`` without the paragraphs that ``used`` does not need."""
    parts = [part for part in paragraphs(source) if not _HEADING.match(part)]
    names = [set() if _of_includes(part) else set(defined(part)) for part in parts]
    kept: set[int] = set()
    needed = set(_WORD.findall(_code(used)))
    while new := {i for i in _needed(names, needed) if i not in kept}:
        kept |= new
        for index in new:
            needed |= set(_WORD.findall(_code(_only_used(parts[index], needed))))
    return "\n\n".join(_only_used(parts[index], needed) for index in sorted(kept)) + "\n"


def _needed(names: Sequence[set[str]], needed: set[str]) -> Iterator[int]:
    return (index for index, defines in enumerate(names) if not defines or defines & needed)


def _of_includes(paragraph: str) -> bool:
    return "#include" in paragraph


def _only_used(paragraph: str, needed: set[str]) -> str:
    """Return a paragraph of one-line macros without those that are not needed."""
    lines = paragraph.splitlines()
    if not all(line.startswith(("#define ", "/* ")) and line[-1] != "\\" for line in lines):
        return paragraph
    macros = [line for line in lines if line.startswith("#define ")]
    return "\n".join(
        line for line in lines if line not in macros or _WORD.findall(line)[1] in needed
    )


def _code(paragraph: str) -> str:
    """Return the code that can use a name: without comments, strings and members."""
    code = re.sub(r'/\*.*?\*/|"(?:[^"\\]|\\.)*"', " ", paragraph, flags=re.DOTALL)
    if re.match(r"\s*(static )?struct \w* ?\{", code):
        code = re.sub(r"\b\w+((?:\[\w+\])*\s*[;,])", r"\1", code)
    return re.sub(r"(->|\.)\s*\w+", " ", code)
