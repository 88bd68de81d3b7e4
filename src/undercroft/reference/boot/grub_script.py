"""GRUB's script language: words, commands and blocks, parsed into values.

The part that boot configurations use (GRUB manual 2.06, chapter 6; grub-core/script/yylex.l and
parser.y).  Loops are refused: what they would run cannot be foretold from the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from undercroft.base import FormatError

_NAME = "GRUB script"
MAX_SCRIPT = 1 << 20
_MAX_DEPTH = 64
_VARIABLE = re.compile(r"\$(?:\{(\w+|[@#*?])\}|(\w+|[@#*?]))")
_LOOPS = frozenset({"for", "while", "until"})


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a word: text, or the name of a variable whose value stands there."""

    text: str
    quoted: bool
    variable: bool = False


Word = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """Words, and the text of a trailing ``{ block }`` with its braces, as written."""

    words: tuple[Word, ...]
    block: str | None


@dataclass(frozen=True, slots=True)
class If:
    """Conditions with what runs for the first that holds, and what runs for none."""

    arms: tuple[tuple[Script, Script], ...]
    otherwise: Script


@dataclass(frozen=True, slots=True)
class Function:
    """A definition."""

    name: str
    body: Script


Statement = Command | If | Function
Script = tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    """``kind`` is ``word``, ``end`` (of a statement), ``{``, ``}`` or ``eof``."""

    kind: str
    at: int
    word: Word = ()

    @property
    def keyword(self) -> str:
        """The token's text if it is one plain unquoted word."""
        plain = self.kind == "word" and not any(p.quoted or p.variable for p in self.word)
        return "".join(part.text for part in self.word) if plain else ""


def parse_grub_script(text: str) -> Script:
    """Parse a configuration file.  Raises FormatError for what is not understood."""
    if len(text) > MAX_SCRIPT:
        raise FormatError(_NAME, 0, "the script is too long", expected=MAX_SCRIPT, got=len(text))
    parser = _Parser(text)
    script = parser.block((), 0)
    if parser.peek().kind != "eof":
        raise FormatError(_NAME, parser.peek().at, "a brace that closes nothing")
    return script


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        char = text[at]
        if char in " \t\r":
            at += 1
        elif text.startswith("\\\n", at):
            at += 2
        elif char in "\n;":
            yield _Token("end", at)
            at += 1
        elif char == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif char in "{}":
            yield _Token(char, at)
            at += 1
        elif char in "|&<>()" and not text.startswith("(", at):
            raise FormatError(_NAME, at, "an operator that GRUB has no meaning for", got=char)
        else:
            word, end = _word(text, at)
            yield _Token("word", at, word)
            at = end
    yield _Token("eof", len(text))


def _word(text: str, at: int) -> tuple[Word, int]:
    parts: list[Part] = []
    while at < len(text) and text[at] not in " \t\r\n;{}":
        char = text[at]
        if text.startswith("\\\n", at):
            at += 2
        elif char == "\\":
            parts.append(Part(text[at + 1 : at + 2], quoted=True))
            at += 2
        elif char == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise FormatError(_NAME, at, "a quote without its end")
            parts.append(Part(text[at + 1 : end], quoted=True))
            at = end + 1
        elif char == '"':
            at = _double_quoted(text, at, parts)
        elif match := _VARIABLE.match(text, at):
            parts.append(Part(match[1] or match[2], quoted=False, variable=True))
            at = match.end()
        else:
            parts.append(Part(char, quoted=False))
            at += 1
    return tuple(parts), at


def _double_quoted(text: str, start: int, parts: list[Part]) -> int:
    """Add what stands in double quotes to ``parts``; return the offset behind them."""
    parts.append(Part("", quoted=True))  # a word even if nothing is in it
    at = start + 1
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\", "$", "\n"):
            escaped = text[at + 1]
            parts.append(Part("" if escaped == "\n" else escaped, quoted=True))
            at += 2
        elif match := _VARIABLE.match(text, at):
            parts.append(Part(match[1] or match[2], quoted=True, variable=True))
            at = match.end()
        else:
            parts.append(Part(text[at], quoted=True))
            at += 1
    if at >= len(text):
        raise FormatError(_NAME, start, "a quote without its end")
    return at + 1


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0

    def peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self.peek()
        self._at += 1
        return token

    def _expect(self, keyword: str) -> None:
        if self.peek().keyword != keyword:
            raise FormatError(_NAME, self.peek().at, "a statement breaks off", expected=keyword)
        self._next()

    def block(self, stops: tuple[str, ...], depth: int) -> Script:
        """Parse statements up to a keyword of ``stops``, a closing brace or the end."""
        if depth > _MAX_DEPTH:
            raise FormatError(_NAME, self.peek().at, "nested too deeply", expected=_MAX_DEPTH)
        found: list[Statement] = []
        while True:
            while self.peek().kind == "end":
                self._next()
            token = self.peek()
            if token.kind in ("eof", "}") or (token.keyword and token.keyword in stops):
                return tuple(found)
            found.append(self._statement(depth))

    def _statement(self, depth: int) -> Statement:
        token = self.peek()
        if token.keyword == "if":
            return self._if(depth)
        if token.keyword == "function":
            return self._function(depth)
        if token.keyword in _LOOPS:
            raise FormatError(_NAME, token.at, "a loop: what it runs cannot be foretold")
        return self._command(depth)

    def _if(self, depth: int) -> If:
        arms = []
        keyword = "if"
        while self.peek().keyword == keyword:
            self._next()
            condition = self.block(("then",), depth + 1)
            self._expect("then")
            arms.append((condition, self.block(("elif", "else", "fi"), depth + 1)))
            keyword = "elif"
        otherwise: Script = ()
        if self.peek().keyword == "else":
            self._next()
            otherwise = self.block(("fi",), depth + 1)
        self._expect("fi")
        return If(tuple(arms), otherwise)

    def _function(self, depth: int) -> Function:
        self._next()
        name = self._next().keyword
        while self.peek().kind == "end":
            self._next()
        if not name or self._next().kind != "{":
            raise FormatError(_NAME, self.peek().at, "a function without name or body")
        body = self.block((), depth + 1)
        self._close()
        return Function(name, body)

    def _close(self) -> int:
        token = self.peek()
        if token.kind != "}":
            raise FormatError(_NAME, token.at, "a block without its end")
        return self._next().at

    def _command(self, depth: int) -> Command:
        words: list[Word] = []
        while True:
            token = self.peek()
            if token.kind == "{" and words:
                start = self._next().at
                self.block((), depth + 1)
                return Command(tuple(words), self._text[start : self._close() + 1])
            if token.kind != "word":
                break
            words.append(self._next().word)
        if not words:
            raise FormatError(_NAME, self.peek().at, "a block that belongs to no command")
        return Command(tuple(words), None)
