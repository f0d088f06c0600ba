"""The options: one table, from which keywords, variables, flags and the documentation are made.

An agent with three ways of being configured soon has three sets of names, defaults and messages.
So every option is one row of ``OPTIONS``; ``install(metrics_port=0)``, ``CONCAGENT_METRICS_PORT=0``
and ``concagent run --metrics-port 0`` are three spellings of it, and ``docs/options.md`` is
generated.  To add an option, add a row and a typed field of ``Config`` with the same name; a test
fails until both are there.

Whatever is wrong is said before anything is patched, as a ``ConfigError`` that names the option,
the value and what is allowed.  That includes variables that nobody knows: a misspelt
``CONCAGENT_WEBHOK`` that is silently ignored is noticed on the night when the alert does not come.
Variables of our own, set for children, begin with ``_CONCAGENT_``, lest they be taken for options.

Assumes    nothing: this module is pure.  It reads no environment, no file and no clock; what it
           judges is passed in.
Invariants C1 ``OPTIONS`` and the fields of ``Config`` have the same names in the same order.
           C2 ``parse_text(option, format_text(option, value)) == value`` for each allowed value,
              except paths that begin or end with a blank, or are called ``none``.
           C3 a ``Config`` made by ``from_sources`` holds only values that its table allows.
Limits     that a directory exists, an address is ours or a port is free is found out by whoever
           uses it.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from concagent.errors import ConfigError
from concagent.words import KINDS

PREFIX: Final = "CONCAGENT_"
FAMILIES: Final = ("locks", "sync", "threads", "files", "asyncio")

# A century is as good as for ever, and every clock and timeout can still take it.
MAX_SECONDS: Final = 100 * 365 * 24 * 3600.0

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
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
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
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
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._:%-]+", value):
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


class Option:
    """One row of the table.

    Attributes:
        name: The keyword of ``install`` and the field of ``Config``.
        type: What its values are.
        default: The value where nothing was given.
        help: One sentence for ``--help`` and ``docs/options.md``.
    """

    __slots__ = ("default", "help", "name", "type")

    def __init__(self, name: str, type: OptionType, default: Any, help: str) -> None:  # noqa: A002  the words of the table
        """Make a row."""
        self.name = name
        self.type = type
        self.default = default
        self.help = help

    @property
    def allowed(self) -> str:
        """Return what is allowed, in words."""
        return self.type.allowed

    @property
    def flag(self) -> str:
        """Return the flag of ``concagent run``, such as ``--metrics-port``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the environment variable, such as ``CONCAGENT_METRICS_PORT``."""
        return PREFIX + self.name.upper()


OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        "core",
        Choice(("auto", "c", "python")),
        "auto",
        "Which twin of the core to use; `auto` takes C where it is built.",
    ),
    Option("findings", PathName(), None, "File to which each finding is appended as one line of JSON."),
    Option("log", Switch(), True, "Log each finding as a text report to the logger `concagent`."),
    Option("stderr", Switch(), False, "Write each finding as a text report to stderr."),
    Option(
        "recover",
        Choice(("off", "raise")),
        "off",
        "What to do about a deadlock: only report it, or raise `DeadlockError` in a victim.",
    ),
    Option(
        "fail_on",
        Choices(KINDS),
        (),
        "Kinds of findings that make `concagent run` exit with status 86.",
    ),
    Option("long_wait", Duration(), 30.0, "Report a wait that lasts longer, once; 0 is never."),
    Option("long_hold", Duration(), 60.0, "Report a hold that lasts longer, once; 0 is never."),
    Option(
        "loop_blocked",
        Duration(),
        5.0,
        "Report an asyncio event loop that one callback keeps longer, once; 0 is never.",
    ),
    Option(
        "stall_after",
        Duration(),
        5.0,
        "How long waits that seem endless, without proof, must last to be reported as suspected.",
    ),
    Option("report_signal", SignalName(), "SIGUSR1", "Signal that asks for the full live picture."),
    Option(
        "report_to",
        Choice(("stderr", "file", "both")),
        "stderr",
        "Where a report asked for by the signal goes.",
    ),
    Option(
        "report_dir",
        PathName(),
        None,
        "Directory of report files; by default one of the user's, mode 0700.",
    ),
    Option(
        "report_tree", Switch(), False, "Whether that report shows all processes of the program, children and parents."
    ),
    Option(
        "last_resort_after",
        Duration(),
        5.0,
        "How long a report asked for by the signal may take before the bare stacks are written instead; 0 is never.",
    ),
    Option("socket", Switch(), True, "Listen on a Unix socket for `concagent report PID`."),
    Option(
        "metrics_port",
        Integer(0, 65535, optional=True),
        None,
        "Port of `/metrics`, `/healthz`, `/report` and `/graph`; 0 is any free one.",
    ),
    Option("metrics_address", Address(), "127.0.0.1", "Address on which that port listens."),
    Option("suppressions", PathName(), None, "File of findings not to report."),
    Option("webhook", Urls(), (), "URLs to which each finding is sent as JSON."),
    Option(
        "alertmanager",
        Urls(),
        (),
        "Base URLs of Alertmanagers (API v2) to which each finding is sent as an alert.",
    ),
    Option(
        "alert_timeout",
        Duration(positive=True),
        5.0,
        "How long one attempt to send an alert may take.",
    ),
    Option("files", Switch(), True, "Track files that are opened and not closed."),
    Option(
        "leak_age",
        Duration(),
        300.0,
        "Age from which something still open counts towards a suspected leak.",
    ),
    Option(
        "leak_growth",
        Integer(1, 10**9),
        50,
        "How many of one creation site must be that old to be suspected as a leak.",
    ),
    Option("adopt", Switch(), True, "Track the locks that the standard library made before `install`."),
    Option("patch", Choices(FAMILIES), FAMILIES, "Families of primitives to watch."),
    Option("follow", Switch(), True, "Run Python programs that this one starts under the agent, too."),
    Option(
        "class_limit",
        Integer(1, 10**6),
        8191,
        "How many lock classes are told apart; the rest are counted as one.",
    ),
    Option(
        "stack_depth",
        Integer(1, 10**5),
        100,
        "How many frames of a stack are kept in a finding, the innermost ones.",
    ),
)

_BY_NAME: Final = {option.name: option for option in OPTIONS}
_BY_VARIABLE: Final = {option.variable: option for option in OPTIONS}


def _default(name: str) -> Any:
    """Return the default of the table, so that it stands in one place only."""
    return _BY_NAME[name].default


class Config(NamedTuple):
    """The options of one agent, validated.  Durations are seconds; the meaning of each field is in ``OPTIONS``.

    A named tuple, not a dataclass: the module ``dataclasses`` is a fifth of all the time that a program's start has for us.
    """

    core: Literal["auto", "c", "python"] = _default("core")
    findings: str | None = _default("findings")
    log: bool = _default("log")
    stderr: bool = _default("stderr")
    recover: Literal["off", "raise"] = _default("recover")
    fail_on: tuple[str, ...] = _default("fail_on")
    long_wait: float = _default("long_wait")
    long_hold: float = _default("long_hold")
    loop_blocked: float = _default("loop_blocked")
    stall_after: float = _default("stall_after")
    report_signal: str = _default("report_signal")
    report_to: Literal["stderr", "file", "both"] = _default("report_to")
    report_dir: str | None = _default("report_dir")
    report_tree: bool = _default("report_tree")
    last_resort_after: float = _default("last_resort_after")
    socket: bool = _default("socket")
    metrics_port: int | None = _default("metrics_port")
    metrics_address: str = _default("metrics_address")
    suppressions: str | None = _default("suppressions")
    webhook: tuple[str, ...] = _default("webhook")
    alertmanager: tuple[str, ...] = _default("alertmanager")
    alert_timeout: float = _default("alert_timeout")
    files: bool = _default("files")
    leak_age: float = _default("leak_age")
    leak_growth: int = _default("leak_growth")
    adopt: bool = _default("adopt")
    patch: tuple[str, ...] = _default("patch")
    follow: bool = _default("follow")
    class_limit: int = _default("class_limit")
    stack_depth: int = _default("stack_depth")

    @classmethod
    def from_sources(cls, keywords: Mapping[str, object], environ: Mapping[str, str]) -> Config:
        """Return the configuration of keywords, then variables, then defaults: the first that is given wins.

        Args:
            keywords: Keywords of ``install``, typed.  None is a value here, allowed for some options only.
            environ: Usually ``os.environ``.  An empty variable counts as not given.

        Raises:
            ConfigError: An option is unknown, or a value is not allowed, also one that a keyword overrides.
        """
        values: dict[str, Any] = {}
        for variable, text in sorted(environ.items()):
            if variable.startswith(PREFIX):
                if variable not in _BY_VARIABLE:
                    raise _unknown("environment variable", variable, _BY_VARIABLE)
                if text.strip():
                    option = _BY_VARIABLE[variable]
                    values[option.name] = parse_text(option, text)
        for name, value in keywords.items():
            if name not in _BY_NAME:
                raise _unknown("option", name, _BY_NAME)
            option = _BY_NAME[name]
            try:
                values[name] = option.type.convert(value)
            except ValueError:
                raise _not_allowed(option, name, value) from None
        return cls(**values)

    def to_environ(self) -> dict[str, str]:
        """Return the variables from which a child's ``from_sources`` makes an equal configuration.

        Options that have their default are left out.
        """
        return {
            option.variable: format_text(option, getattr(self, option.name))
            for option in OPTIONS
            if getattr(self, option.name) != option.default
        }


def option_named(name: str) -> Option:
    """Return the row of a keyword.

    Raises:
        ConfigError: There is none.
    """
    if name not in _BY_NAME:
        raise _unknown("option", name, _BY_NAME)
    return _BY_NAME[name]


def parse_text(option: Option, text: str, source: str | None = None) -> Any:
    """Return the value that a variable's or a flag's text stands for; blanks around it do not count.

    Args:
        option: A row of ``OPTIONS``.
        text: As typed.
        source: What the error message names: the variable, unless for example ``option.flag`` is given.

    Raises:
        ConfigError: The text is not allowed.
    """
    try:
        return option.type.parse(text.strip())
    except ValueError:
        raise _not_allowed(option, source or option.variable, text) from None


def format_text(option: Option, value: object) -> str:
    """Return the text that ``parse_text`` turns into this allowed value."""
    return option.type.format(value)


def options_table() -> str:
    """Return the options as a table in Markdown: the body of ``docs/options.md``."""
    lines = [
        "| Keyword | Flag | Variable | Default | Meaning | Allowed |",
        "|---|---|---|---|---|---|",
    ]
    for option in OPTIONS:
        default = format_text(option, option.default)
        lines.append(
            f"| `{option.name}` | `{option.flag}` | `{option.variable}` | `{default}` "
            f"| {option.help} | {option.allowed} |"
        )
    return "\n".join(lines) + "\n"


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

    if not re.fullmatch(r"[\x21-\x7e]+", url) or "," in url:
        raise NotAllowedError
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise NotAllowedError


def _not_allowed(option: Option, source: str, value: object) -> ConfigError:
    """Return the error for a value that the table does not allow."""
    shown = _shorten(value)
    return ConfigError(
        f"{source}: {shown} is not allowed; allowed: {option.allowed}",
        option=option.name,
        value=shown,
        allowed=option.allowed,
    )


def _shorten(value: object) -> str:
    """Return a repr of at most 200 characters; a value whose repr fails is shown by its type."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the value is the user's; its bug must not hide our message
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 200 else text[:197] + "..."


def _unknown(what: str, name: str, known: Mapping[str, Option]) -> ConfigError:
    """Return the error for a name that is not in the table, with the nearest ones that are."""
    # Imported late: only an error needs it.
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=2, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return ConfigError(f"unknown {what} {name}; {hint}", option=name, allowed=", ".join(known))
