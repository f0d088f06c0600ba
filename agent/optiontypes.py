"""What the values of an option can be: each type converts a keyword, reads and writes a text, and says what it allows.

A value has one canonical form, whichever way it came; `format` writes the text from which `parse` makes it again.

Assumes    nothing: this module is pure.
Limits     that a directory exists or an address is ours is found out by whoever uses it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Final

# A century is as good as for ever, and every clock and timeout can still take it.
MAX_SECONDS: Final = 100 * 365 * 24 * 3600.0
MAX_DIGITS: Final = 18
_ADDRESS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:%-"

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
# `re` is imported where text is parsed: most programs give none.
_DURATION: Final = r"((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*(ms|s|m|h|d)?"
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# Signals that no handler gets, and those that faulthandler keeps for crashes and will not register.
_UNUSABLE_SIGNALS: Final = frozenset({"SIGKILL", "SIGSTOP", "SIGSEGV", "SIGFPE", "SIGABRT", "SIGBUS", "SIGILL"})
# The text of None and of an empty tuple, beside the empty text.
_NONE: Final = "none"


class NotAllowedError(ValueError):
    """A value that its type does not allow; ``ConfigError`` says the rest, this one is never seen outside."""


if TYPE_CHECKING:
    from typing import Protocol

    class OptionType(Protocol):
        """What an option's values are.  Each raises a ValueError for what is not allowed.

        The types are plain classes, not dataclasses, which would take half a millisecond each of every program's start.
        """

        @property
        def allowed(self) -> str:
            """Return what is allowed, in words that follow ``allowed:``."""

        def convert(self, value: object) -> object:
            """Return the value of a keyword in its one canonical form."""

        def parse(self, text: str) -> object:
            """Return the value of a variable's or a flag's text."""

        def format(self, value: Any) -> str:
            """Return the text that ``parse`` turns into this value."""


class Switch:
    """True or False."""

    __slots__ = ()

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        return "True or False; as text 1/0, true/false, yes/no, on/off"

    def convert(self, value: object) -> bool:
        """Return the bool; 0 and 1 are refused, since a number here is mostly a slip."""
        if not isinstance(value, bool):
            raise NotAllowedError
        return value

    def parse(self, text: str) -> bool:
        """Return the bool of one of eight words, in any case."""
        word = text.lower()
        if word not in _TRUE | _FALSE:
            raise NotAllowedError
        return word in _TRUE

    def format(self, value: Any) -> str:
        """Return ``on`` or ``off``."""
        return "on" if value else "off"


class Integer:
    """A whole number in a closed range, or None where ``optional``."""

    __slots__ = ("high", "low", "optional")

    def __init__(self, low: int, high: int, *, optional: bool = False) -> None:
        """Keep the bounds, both allowed."""
        self.low = low
        self.high = high
        self.optional = optional

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        words = f"a whole number from {self.low} to {self.high}"
        return words + (', or None; as text "none"' if self.optional else "")

    def convert(self, value: object) -> int | None:
        """Return the number; a bool is not one."""
        if value is None and self.optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise NotAllowedError
        return int(value)

    def parse(self, text: str) -> int | None:
        """Return the number of decimal digits, or None where that is allowed."""
        if text.lower() in {"", _NONE} and self.optional:
            return None
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS):
            raise NotAllowedError
        return self.convert(int(text))

    def format(self, value: Any) -> str:
        """Return decimal digits, or ``none``."""
        return _NONE if value is None else str(value)


class Duration:
    """Seconds as a float; zero is allowed unless ``positive``."""

    __slots__ = ("positive",)

    def __init__(self, *, positive: bool = False) -> None:
        """Keep whether zero is too short."""
        self.positive = positive

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        bound = "above 0" if self.positive else "not below 0"
        return f'seconds, {bound}; as text also with a unit: "1.5", "500ms", "30s", "2m", "1h", "1d"'

    def convert(self, value: object) -> float:
        """Return the seconds; neither a bool nor an infinite number is a duration."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NotAllowedError
        if not 0 <= value <= MAX_SECONDS or (self.positive and value == 0):
            raise NotAllowedError
        return float(value)

    def parse(self, text: str) -> float:
        """Return the seconds of a number with an optional unit."""
        import re

        match = re.fullmatch(_DURATION, text.lower())
        if match is None:
            raise NotAllowedError
        return self.convert(float(match[1]) * _UNIT_SECONDS[match[2] or "s"])

    def format(self, value: Any) -> str:
        """Return the seconds as digits without unit."""
        return repr(float(value)).removesuffix(".0")


class Choice:
    """One of a few words."""

    __slots__ = ("words",)

    def __init__(self, words: tuple[str, ...]) -> None:
        """Keep the words, in lower case."""
        self.words = words

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        return "one of " + ", ".join(self.words)

    def convert(self, value: object) -> str:
        """Return the word."""
        if not isinstance(value, str) or value not in self.words:
            raise NotAllowedError
        return value

    def parse(self, text: str) -> str:
        """Return the word, given in any case."""
        return self.convert(text.lower())

    def format(self, value: Any) -> str:
        """Return the word."""
        return str(value)


class Choices:
    """Any number of a few words, without repetition, in the order of the table."""

    __slots__ = ("words",)

    def __init__(self, words: tuple[str, ...]) -> None:
        """Keep the words, in lower case."""
        self.words = words

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        return "any of " + ", ".join(self.words) + '; as text separated by commas, or "none"'

    def convert(self, value: object) -> tuple[str, ...]:
        """Return the words of a collection, or of one string with commas."""
        given = _strings(value)
        if not given <= set(self.words):
            raise NotAllowedError
        return tuple(word for word in self.words if word in given)

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the words between the commas, given in any case."""
        return self.convert("" if text.lower() == _NONE else text.lower())

    def format(self, value: Any) -> str:
        """Return the words with commas, or ``none``."""
        return ",".join(value) or _NONE


class PathName:
    """A path, kept as the string that was given, or None."""

    __slots__ = ()

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        return 'a path, or None; as text "none"'

    def convert(self, value: object) -> str | None:
        """Return the path as a string; the working directory may change later, that is the caller's business."""
        if value is None:
            return None
        if not isinstance(value, str | os.PathLike):
            raise NotAllowedError
        text = os.fspath(value)
        if not isinstance(text, str) or not text or "\0" in text:
            raise NotAllowedError
        return text

    def parse(self, text: str) -> str | None:
        """Return the path; a file that is really called ``none`` is ``./none``."""
        return self.convert(None if text in {"", _NONE} else text)

    def format(self, value: Any) -> str:
        """Return the path, or ``none``."""
        if value is None:
            return _NONE
        return "./none" if value == _NONE else str(value)


class Address:
    """A host name or an address to listen on."""

    __slots__ = ()

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        return 'a host name or an IP address, without port, such as "127.0.0.1", "::1" or "0.0.0.0"'

    def convert(self, value: object) -> str:
        """Return the address; its form is checked roughly, since only the system can say which ones are ours."""
        if not isinstance(value, str) or not value or value.strip(_ADDRESS):
            raise NotAllowedError
        # One colon is a port; an IPv6 address has two at least.
        if value.count(":") == 1:
            raise NotAllowedError
        return value

    def parse(self, text: str) -> str:
        """Return the address."""
        return self.convert(text)

    def format(self, value: Any) -> str:
        """Return the address."""
        return str(value)


class Urls:
    """Any number of http or https URLs."""

    __slots__ = ()

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        return (
            "URLs that begin with http:// or https:// and name a host; "
            'as text separated by commas (a comma in a URL: %2C), or "none"'
        )

    def convert(self, value: object) -> tuple[str, ...]:
        """Return the URLs of a collection, or of one string with commas, sorted and without repetition."""
        urls = _strings(value)
        for url in urls:
            _check_url(url)
        return tuple(sorted(urls))

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the URLs between the commas."""
        return self.convert("" if text.lower() == _NONE else text)

    def format(self, value: Any) -> str:
        """Return the URLs with commas, or ``none``."""
        return ",".join(value) or _NONE


class SignalName:
    """The name of a signal that can be handled, or ``off``."""

    __slots__ = ()

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        return '"off", or the name of a signal that a program can handle, such as SIGUSR1, USR2 or SIGQUIT'

    def convert(self, value: object) -> str:
        """Return the full name of the signal, or ``off``."""
        if isinstance(value, signal.Signals):
            value = value.name
        if not isinstance(value, str):
            raise NotAllowedError
        if value.lower() == "off":
            return "off"
        name = value.upper()
        name = name if name.startswith("SIG") else "SIG" + name
        if name not in signal.Signals.__members__ or name in _UNUSABLE_SIGNALS:
            raise NotAllowedError
        return name

    def parse(self, text: str) -> str:
        """Return the full name of the signal, or ``off``."""
        return self.convert(text)

    def format(self, value: Any) -> str:
        """Return the name."""
        return str(value)


def _strings(value: object) -> set[str]:
    """Return the strings of a collection, or between the commas of one string; blanks around them do not count."""
    if isinstance(value, str):
        value = value.split(",")
    elif not isinstance(value, list | tuple | set | frozenset):
        raise NotAllowedError
    words: set[str] = set()
    for word in value:
        if not isinstance(word, str):
            raise NotAllowedError
        if word.strip():
            words.add(word.strip())
    return words


def _check_url(url: str) -> None:
    """Raise ValueError unless this is an http or https URL with a host and, if any, a valid port."""
    # Imported late: most programs give no URL, and the import costs a tenth of our budget.
    from urllib.parse import urlsplit

    if not all("!" <= letter <= "~" for letter in url) or not url or "," in url:
        raise NotAllowedError
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise NotAllowedError
