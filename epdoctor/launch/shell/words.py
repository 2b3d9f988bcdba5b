"""Expansion of one word, as bash does it: quotes, variables, arithmetic, splitting; nothing is executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from epdoctor.launch.shell import parameters
from epdoctor.launch.shell.arithmetic import NotArithmetic, evaluate
from epdoctor.launch.shell.scan import closing, closing_backtick, closing_quote
from epdoctor.launch.shell.scope import RUNTIME, Scope
from epdoctor.launch.shell.syntax import PLACEHOLDER
from epdoctor.launch.shell.text import SPACES, Builder, Script, Text, plain
from epdoctor.model import Location

Substitute = Callable[[str, Script, Scope], Text]
"""What $(...) comes to."""
_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "r": "\r",
    "0": "\0",
    "a": "\a",
    "e": "\x1b",
}


class _Piece(NamedTuple):
    text: Text | None
    """None: a word ends here ("${A[@]}")."""
    quoted: bool
    expansion: bool


class Words:
    """Expands words of a script in a scope."""

    def __init__(self, script: Script, scope: Scope, substitute: Substitute) -> None:
        self.script, self.scope, self._substitute = script, scope, substitute

    def fields(self, start: int, end: int) -> list[Text]:
        """A word of a command: none, one or several words after splitting."""
        return self._split(self._pieces(start, end, quoted=False), start)

    def one(self, start: int, end: int) -> Text:
        """Where bash does not split: the right side of an assignment, a redirection's target."""
        return self._join(self._pieces(start, end, quoted=False), start)

    def quoted(self, start: int, end: int) -> Text:
        """As inside double quotes: a here-document's body."""
        return self._join(self._pieces(start, end, quoted=True, body=True), start)

    def _join(self, pieces: list[_Piece], start: int) -> Text:
        builder = Builder()
        for piece in pieces:
            if piece.text is None:
                builder.add(" ", self.script.locate(start))
            else:
                builder.add_text(piece.text)
        built = builder.build(self.script.locate(start))
        if len(pieces) == 1 and pieces[0].text is not None and pieces[0].text.separable:
            return pieces[0].text
        return built

    def _split(self, pieces: list[_Piece], start: int) -> list[Text]:
        found: list[Text] = []
        place = self.script.locate(start)
        builder = Builder()

        def end_word() -> None:
            nonlocal builder
            if builder.started:
                found.append(builder.build(place))
            builder = Builder()

        for piece in pieces:
            if piece.text is None:
                end_word()
                continue
            text = piece.text
            if not piece.expansion or piece.quoted:
                builder.add_text(text)
                continue
            parts = text.split()
            if len(parts) == 1:
                # One word out of a variable: what is changed is the line that uses it.
                parts = [parts[0].at(place)]
            for number, part in enumerate(parts):
                if number or text.text[:1] in SPACES:
                    end_word()
                builder.add_text(part)
            if parts and text.text[-1:] in SPACES:
                end_word()
        end_word()
        return found

    def _pieces(self, start: int, end: int, *, quoted: bool, body: bool = False) -> list[_Piece]:
        self.scope.limits.step()
        out: list[_Piece] = []
        text, position, run = self.script.text, start, start

        def literal(until: int, *, inside: bool = quoted) -> None:
            if until > run:
                out.append(_Piece(self.written(run, until), inside, expansion=False))

        while position < end:
            char = text[position]
            if char == "\\":
                literal(position)
                follows = text[position + 1 : position + 2]
                if follows == "\n":
                    run = position = position + 2
                elif quoted and follows not in ("$", "`", "\\", *(() if body else ('"',))):
                    run, position = position, position + 2
                else:
                    run, position = position + 1, position + 2
            elif char == "'" and not quoted:
                literal(position)
                closed = text.find("'", position + 1, end)
                closed = end if closed < 0 else closed
                out.append(_Piece(self.written(position + 1, closed), True, expansion=False))
                run = position = closed + 1
            elif char == '"' and not body:
                literal(position)
                closed = closing_quote(text, position + 1, end)
                closed = end if closed < 0 else closed
                inner = self._pieces(position + 1, closed, quoted=True)
                # "" is an empty word; "${NONE[@]}" is no word at all.
                if not inner and text[position + 1 : closed].strip() in ("", "\\\n"):
                    inner = [_Piece(plain("", self.script.locate(position)), True, expansion=False)]
                out.extend(inner)
                run = position = closed + 1
            elif char == "<" and (match := PLACEHOLDER.match(text, position, end + 1)):
                literal(position)
                place = self.script.locate(position)
                out.append(_Piece(Text(match[0], ((0, place),), (match[0],)), quoted, expansion=False))
                run = position = match.end()
            elif char == "`":
                literal(position)
                closed = closing_backtick(text, position + 1, end)
                closed = end if closed < 0 else closed
                out.append(self._command(text[position + 1 : closed], position, quoted))
                run = position = closed + 1
            elif char == "$":
                length, pieces = self._dollar(position, end, quoted)
                if length:
                    literal(position)
                    out.extend(pieces)
                    run = position = position + length
                else:
                    position += 1
            else:
                position += 1
        literal(min(position, end))
        return out

    def written(self, start: int, end: int) -> Text:
        """Text as it stands, with the place of each of its lines."""
        text = self.script.text[start:end]
        anchors = [(0, self.script.locate(start))]
        newline = text.find("\n")
        while newline >= 0 and len(anchors) < 100_000:
            anchors.append((newline + 1, self.script.locate(start + newline + 1)))
            newline = text.find("\n", newline + 1)
        return Text(text, tuple(anchors))

    def _dollar(self, position: int, end: int, quoted: bool) -> tuple[int, list[_Piece]]:
        """Characters taken and what they come to; 0: a dollar sign that means itself."""
        text = self.script.text
        follows = text[position + 1 : position + 2] if position + 1 < end else ""
        if follows == "'" and not quoted:
            closed = position + 2
            while closed < end and text[closed] != "'":
                closed += 2 if text[closed] == "\\" else 1
            inner = _ansi(text[position + 2 : min(closed, end)])
            piece = _Piece(plain(inner, self.script.locate(position + 2)), True, expansion=False)
            return min(closed + 1, end) - position, [piece]
        if follows == '"' and not quoted:
            return 1, []
        if text.startswith("((", position + 1):
            closed = closing(text, position + 3, end, ")")
            if 0 <= closed < end and text[closed + 1 : closed + 2] == ")":
                return closed + 2 - position, [
                    self._arithmetic(text[position + 3 : closed], position, closed + 2)
                ]
        if follows in ("(", "{"):
            closed = closing(text, position + 2, end, ")" if follows == "(" else "}")
            if closed < 0:
                return end - position, [_Piece(self.written(position, end), quoted, expansion=False)]
            inner = text[position + 2 : closed]
            if follows == "(":
                return closed + 1 - position, [self._command(inner, position, quoted)]
            return closed + 1 - position, self._parameter(position + 2, closed, quoted)
        if follows == "[":
            closed = text.find("]", position + 2, end)
            if closed > 0:
                return closed + 1 - position, [
                    self._arithmetic(text[position + 2 : closed], position, closed + 1)
                ]
        if follows and follows in "@*#?$!-0123456789":
            return 2, self._parameter(position + 1, position + 2, quoted)
        stop = position + 1
        while stop < end and (text[stop] == "_" or (text[stop].isascii() and text[stop].isalnum())):
            stop += 1
        if stop == position + 1:
            return 0, []
        return stop - position, self._parameter(position + 1, stop, quoted)

    def _command(self, inner: str, position: int, quoted: bool) -> _Piece:
        text = self._substitute(inner, self.script, self.scope)
        return _Piece(text.at(self.script.locate(position)), quoted, expansion=True)

    def number(self, name: str) -> int:
        """A name in arithmetic. Raises NotArithmetic where it has no number."""
        value = self.scope.get(name)
        seen = 0
        while value is not None and value.known and value.text.strip().isidentifier() and seen < 8:
            value, seen = self.scope.get(value.text.strip()), seen + 1
        if value is None or not value.known:
            raise NotArithmetic(name)
        try:
            return int(value.text.strip() or "0")
        except ValueError:
            raise NotArithmetic(name) from None

    def assign(self, name: str, number: int) -> None:
        self.scope.set(name, plain(str(number), self.script.locate(0)))

    def calculate(self, inner: str, position: int) -> int:
        """Value of arithmetic text. Raises NotArithmetic."""
        expanded = Words(
            Script(inner, lambda at: self.script.locate(position), self.script.path),
            self.scope,
            self._substitute,
        ).quoted(0, len(inner))
        if not expanded.known:
            raise NotArithmetic(*(expanded.unresolved or (expanded.runtime,)))
        return evaluate(expanded.text, self.number, self.assign)

    def _arithmetic(self, inner: str, position: int, stop: int) -> _Piece:
        place = self.script.locate(position)
        try:
            return _Piece(plain(str(self.calculate(inner, position)), place), True, expansion=False)
        except NotArithmetic:
            written = self.script.text[position:stop]
        names = parameters.names_in(inner)
        missing = tuple(name for name in names if (value := self.scope.get(name)) is None or not value.known)
        runtime = next(
            (value.runtime for name in missing if (value := self.scope.get(name)) and value.runtime), ""
        ) or next((RUNTIME[name] for name in missing if name in RUNTIME), "")
        lost = () if runtime else missing or (written[:80],)
        return _Piece(Text(written, ((0, place),), lost, runtime), True, expansion=False)

    def _parameter(self, start: int, end: int, quoted: bool) -> list[_Piece]:
        place = self.script.locate(start)
        found = parameters.expand(self, start, end, quoted)
        pieces: list[_Piece] = []
        for number, text in enumerate(found.words):
            if number and found.separate:
                pieces.append(_Piece(None, quoted, expansion=True))
            elif number:
                pieces.append(_Piece(plain(" ", place), quoted, expansion=True))
            own = found.separate or found.keep_place
            pieces.append(_Piece(text if own else _moved(text, place), quoted, expansion=True))
        return pieces


def _moved(text: Text, place: Location) -> Text:
    """One word takes the place of its use; a text of several words keeps where each was written."""
    return text if len(text.text.split(None, 1)) > 1 else text.at(place)


def _ansi(text: str) -> str:
    out: list[str] = []
    position = 0
    while position < len(text):
        if text[position] == "\\" and position + 1 < len(text):
            out.append(_ESCAPES.get(text[position + 1], text[position : position + 2]))
            position += 2
        else:
            out.append(text[position])
            position += 1
    return "".join(out)
