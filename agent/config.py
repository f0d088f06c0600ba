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

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from concagent.errors import ConfigError
from concagent.optiontypes import MAX_SECONDS as MAX_SECONDS
from concagent.optiontypes import Address, Choice, Choices, Duration, Integer, PathName, SignalName, Switch, Urls
from concagent.optiontypes import NotAllowedError as NotAllowedError
from concagent.tuples import NamedTuple
from concagent.words import KINDS

if TYPE_CHECKING:
    from concagent.optiontypes import OptionType

PREFIX: Final = "CONCAGENT_"
FAMILIES: Final = ("locks", "sync", "threads", "files", "asyncio")


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
