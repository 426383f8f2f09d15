# SPDX-License-Identifier: GPL-2.0-only
"""The classic mutation operators, on the text of a C function.

    relational      <  to  <=, >=          >  to  >=, <=          ==  to  !=, and back
    logical         &&  to  ||, and back
    negation        a ! removed
    condition       the condition of an if or a while is negated, or is 0; of an if, is 1
    arithmetic      +  to  -, *  to  /, ++  to  --, +=  to  -=, and back; %  to  /
    bitwise         &  to  |, |=  to  &=, and back; ^  to  |; a ~ removed
    shift           <<  to  >>, and back
    constant        a number or a constant's name is one more, one less, or 0
    statement       an expression statement is removed
    return          an early return is removed; a returned value is 0, 1, -1, or !value
    argument        an argument of a call is 0
    jump            a break or continue is removed, or becomes the other

A change stays on its lines, since __LINE__ is part of the code. Left out are declarations, labels,
preprocessor lines, and statements that only trace, print or assert.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""(?P<skip>\s+ | /\*.*?\*/ | //[^\n]* | ^[ \t]*\#(?:[^\n\\]|\\\n|\\.)*)
      | (?P<string>"(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])+')
      | (?P<number>\d\w*)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<sign><<= | >>= | -> | \+\+ | -- | << | >> | <= | >= | == | != | && | \|\|
          | [-+*/%&|^]= | \.\.\. | .)""",
    re.X | re.S | re.M,
)
_OPENING = {"(": ")", "[": "]", "{": "}"}
_HEADERS = {"if", "while", "for", "switch"}
_TYPES = {"struct", "union", "enum", "const", "static", "unsigned", "bool", "int", "long", "char"}
_TYPES |= {"void", "u8", "u16", "u32", "u64", "s16", "s64", "ulong", "gpa_t"}
_DIAGNOSTIC = re.compile(r"trace_|pr_|printk|ASSERT|BUILD_BUG|BUG_ON|WARN|lockdep_|DECLARE_")
_NO_CONSTANT = re.compile(r"NULL$|GFP_|READ_ONCE|WRITE_ONCE")
_SWAPS: dict[str, dict[str, tuple[str, ...]]] = {
    "relational": {
        **{"<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<")},
        **{"==": ("!=",), "!=": ("==",)},
    },
    "logical": {"&&": ("||",), "||": ("&&",)},
    "arithmetic": {
        **{"+": ("-",), "-": ("+",), "*": ("/",), "/": ("*",), "%": ("/",)},
        **{"++": ("--",), "--": ("++",), "+=": ("-=",), "-=": ("+=",)},
    },
    "bitwise": {"&": ("|",), "|": ("&",), "^": ("|",), "|=": ("&=",), "&=": ("|=",)},
    "shift": {"<<": (">>",), ">>": ("<<",)},
}


@dataclass(frozen=True, slots=True)
class Change:
    """Replace ``text[start:end]`` of a function by ``new``."""

    operator: str
    start: int
    end: int
    new: str


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


@dataclass
class _Statement:
    """Tokens ``first`` to ``last`` of a statement, or of an if's parenthesis: ``keyword`` is if."""

    keyword: str
    first: int
    last: int


@dataclass
class _Function:
    """The tokens of a function, and for each bracket the index of its partner."""

    text: str
    tokens: Sequence[_Token] = ()
    partner: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = [match for match in _TOKEN.finditer(self.text) if match.lastgroup != "skip"]
        self.tokens = [_Token(m.lastgroup or "", m[0], *m.span()) for m in found]
        opened = []
        for place, token in enumerate(self.tokens):
            if token.text in _OPENING:
                opened.append(place)
            elif token.text in _OPENING.values():
                self.partner[place] = opened.pop()
                self.partner[self.partner[place]] = place

    def at(self, place: int) -> str:
        """Return the text of a token; "" outside of the function."""
        return self.tokens[place].text if 0 <= place < len(self.tokens) else ""

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the place in the text of tokens ``first`` to ``last``."""
        return self.tokens[first].start, self.tokens[last].end

    def change(self, operator: str, first: int, last: int, new: str) -> Change:
        """Replace tokens ``first`` to ``last``; keep the number of lines."""
        start, end = self.span(first, last)
        lines = self.text.count("\n", start, end) - new.count("\n")
        return Change(operator, start, end, new + "\n" * lines)

    def end_of_statement(self, place: int) -> int:
        """Return the index of the semicolon that ends the statement at ``place``."""
        while self.at(place) != ";":
            place = self.partner[place] + 1 if self.at(place) in _OPENING else place + 1
        return place

    def depth(self, opening: int, place: int) -> int:
        """Return the number of brackets open at ``place``, from the one at ``opening`` on."""
        return sum(self.partner.get(each, -1) >= place for each in range(opening, place))

    def is_cast(self, closing: int) -> bool:
        """Return whether a closing parenthesis ends a cast."""
        words = [token.text for token in self.tokens[self.partner[closing] + 1 : closing]]
        return bool(words) and (words[-1] == "*" or words[0] in _TYPES)

    def follows_operand(self, place: int) -> bool:
        """Return whether the operator at ``place`` has a left operand."""
        before = self.tokens[place - 1]
        if before.text == ")":
            return not self.is_cast(place - 1)
        return before.text == "]" or before.kind == "number" or self.is_name(place - 1)

    def is_name(self, place: int) -> bool:
        """Return whether a token is a word that can be an operand or be called."""
        words = _HEADERS | _TYPES | {"return", "case", "sizeof", "else", "do"}
        return self.tokens[place].kind == "word" and self.at(place) not in words

    def statements(self) -> Iterator[_Statement]:
        """Return the statements, and the parentheses of if, while, for, switch and macro loops."""
        place = self.at_body() + 1
        while place < len(self.tokens) - 1:
            word = self.at(place)
            if word in {"{", "}", ";", "else", "do"}:
                place += 1
            elif word in {"case", "default"}:
                while self.at(place) != ":":
                    place += 1
            elif self.at(place + 1) == ":" or word == ":":
                place += 1
            elif word in _HEADERS or self.is_macro_loop(place):
                closing = self.partner[place + 1]
                yield _Statement(word if word in _HEADERS else "for", place + 1, closing)
                place = closing + 1
            else:
                last = self.end_of_statement(place)
                yield _Statement(word, place, last)
                place = last + 1

    def at_body(self) -> int:
        return next(place for place, token in enumerate(self.tokens) if token.text == "{")

    def is_macro_loop(self, place: int) -> bool:
        """Return whether a macro such as kvm_for_each_vcpu() begins at ``place``."""
        if self.at(place + 1) != "(":
            return False
        after = self.partner[place + 1] + 1
        return self.tokens[after].kind == "word" or self.at(after) == "{"

    def is_declaration(self, place: int) -> bool:
        if self.tokens[place].kind != "word" or self.at(place) in {"return", "goto"}:
            return False
        return self.at(place) in _TYPES or self.tokens[place + 1].kind == "word"


def changes(function: str) -> list[Change]:
    """Return all changes of a function's definition, in order of their places."""
    parsed = _Function(function)
    found = [
        change for statement in parsed.statements() for change in _of_statement(parsed, statement)
    ]
    unique = {(each.start, each.end, each.new): each for each in reversed(found)}
    return sorted(unique.values(), key=lambda each: (each.start, each.end, each.new))


def _of_statement(function: _Function, statement: _Statement) -> Iterator[Change]:
    first, last = statement.first, statement.last
    if _DIAGNOSTIC.match(statement.keyword):
        return
    if statement.keyword in _HEADERS:
        if statement.keyword in {"if", "while"}:
            yield from _condition(function, statement)
    elif statement.keyword in {"break", "continue"}:
        other = {"break": "continue", "continue": "break"}[statement.keyword]
        yield function.change("jump", first, last, f"{other};")
        yield function.change("jump", first, last, ";")
    elif statement.keyword == "return":
        yield from _return(function, statement)
    elif function.is_declaration(first):
        while first < last and function.at(first) != "=":
            first += 1
    elif statement.keyword != "goto":
        yield function.change("statement", first, last, ";")
    for place in range(first, last):
        for each in (_operator, _constant, _arguments):
            yield from each(function, place)


def _condition(function: _Function, statement: _Statement) -> Iterator[Change]:
    inside = statement.first + 1, statement.last - 1
    start, end = function.span(*inside)
    yield function.change("condition", *inside, f"!({function.text[start:end]})")
    yield function.change("condition", *inside, "0")
    if statement.keyword == "if":
        yield function.change("condition", *inside, "1")


def _return(function: _Function, statement: _Statement) -> Iterator[Change]:
    first, last = statement.first, statement.last
    if last < len(function.tokens) - 2:
        yield function.change("return", first, last, ";")
    if first + 1 == last:
        return
    start, end = function.span(first + 1, last - 1)
    value = function.text[start:end]
    opposites = {"true": ["false"], "false": ["true"]}
    for new in opposites.get(value, ["0", "1", "-1", f"!({value})"]):
        if new != value:
            yield function.change("return", first + 1, last - 1, new)


def _operator(function: _Function, place: int) -> Iterator[Change]:
    text = function.at(place)
    if text in "!~":
        yield function.change("negation" if text == "!" else "bitwise", place, place, "")
    is_binary = function.follows_operand(place) and function.at(place + 1) != ")"
    if not (is_binary or text in {"++", "--"}):
        return
    for operator, swaps in _SWAPS.items():
        yield from (function.change(operator, place, place, new) for new in swaps.get(text, ()))


def _constant(function: _Function, place: int) -> Iterator[Change]:
    token = function.tokens[place]
    if token.kind == "number" and token.text.isdigit():
        value = int(token.text)
        new = [str(value + 1), str(value - 1) if value else "(-1)", "0"]
    elif token.kind == "number" or _is_constant_name(function, place):
        new = [f"({token.text} + 1)", f"({token.text} - 1)", "0"]
    else:
        return
    for text in dict.fromkeys(new):
        if text != token.text:
            yield function.change("constant", place, place, text)


def _is_constant_name(function: _Function, place: int) -> bool:
    text = function.at(place)
    return (
        bool(re.fullmatch(r"[A-Z][A-Z0-9_]+", text))
        and function.at(place + 1) != "("
        and not _NO_CONSTANT.match(text)
    )


def _arguments(function: _Function, place: int) -> Iterator[Change]:
    if function.at(place) != "(" or not _is_call(function, place):
        return
    first, closing = place + 1, function.partner[place]
    for each in range(first, closing + 1):
        is_end = each == closing or (function.at(each) == "," and function.depth(place, each) == 1)
        if is_end and each > first:
            start, end = function.span(first, each - 1)
            if function.text[start:end] not in {"0", "NULL", "false"}:
                yield function.change("argument", first, each - 1, "0")
            first = each + 1


def _is_call(function: _Function, place: int) -> bool:
    if function.at(place - 1) == ")":
        return not function.is_cast(place - 1)
    return function.is_name(place - 1)
