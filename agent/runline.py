"""What a command line of ``concagent run`` asks for: options of ours, then a program and its arguments.

Our options end at the first argument that is none, as the interpreter's do: whatever follows is the program's.  The flags are
those of the table in ``config``, and so are the words about what is allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from concagent.config import OPTIONS, Option, parse_text

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE: Final = "concagent run [OPTIONS] SCRIPT [ARGS] | -m MODULE [ARGS] | -c CODE [ARGS] | - [ARGS]"
BY_FLAG: Final = {option.flag: option for option in OPTIONS}


class UsageError(Exception):
    """The command line of ``run`` is wrong; the message is the one line to show."""


class Plan:
    """A parsed command line.

    Attributes:
        options: Keywords for ``install``.
        mode: ``script``, ``module``, ``code``; standard input is the script ``-``.
        target: Path, module name or source.
        arguments: What follows, for ``sys.argv[1:]``.
    """

    __slots__ = ("arguments", "mode", "options", "target")

    def __init__(self, options: dict[str, Any], mode: str, target: str, arguments: list[str]) -> None:
        """Keep the four parts."""
        self.options = options
        self.mode = mode
        self.target = target
        self.arguments = arguments

    @property
    def command(self) -> list[str]:
        """Return the arguments with which the plain interpreter runs the same program."""
        switch = {"script": [], "module": ["-m"], "code": ["-c"]}[self.mode]
        return [*switch, self.target, *self.arguments]


def parse(arguments: Sequence[str]) -> Plan:
    """Return what a command line after ``run`` asks for.

    Our options end at the first argument that is none, as the interpreter's do: whatever follows is the program's.

    Raises:
        UsageError: An option is unknown, lacks its value or has one too many, or there is no program.
        ConfigError: A value is not allowed.
    """
    options: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            if not rest:
                break
            return Plan(options, "script", rest[0], rest[1:])
        if argument[:2] in {"-m", "-c"} and not argument.startswith("--"):
            mode = "module" if argument[1] == "m" else "code"
            if argument[2:]:
                return Plan(options, mode, argument[2:], rest)
            if not rest:
                raise UsageError(f"argument expected for the {argument} option")
            return Plan(options, mode, rest[0], rest[1:])
        if argument == "-" or not argument.startswith("-"):
            return Plan(options, "script", argument, rest)
        _take_option(argument, rest, options)
    raise UsageError(f"no program given; usage: {USAGE}")


def _take_option(argument: str, rest: list[str], options: dict[str, Any]) -> None:
    """Parse one flag into ``options``, with its value from ``rest`` where it is not joined by ``=``."""
    flag, joined, text = argument.partition("=")
    option = BY_FLAG.get(flag)
    if option is None and flag.startswith("--no-"):
        option = BY_FLAG.get("--" + flag[5:])
        if option is not None and _is_switch(option):
            if joined:
                raise UsageError(f"{flag} takes no value")
            options[option.name] = False
            return
        option = None
    if option is None:
        raise UsageError(f"unknown option {flag}; {_hint(flag)}")
    if not joined:
        if _is_switch(option):
            options[option.name] = True
            return
        if not rest:
            raise UsageError(f"{flag} needs a value; allowed: {option.allowed}")
        text = rest.pop(0)
    options[option.name] = parse_text(option, text, option.flag)


def _is_switch(option: Option) -> bool:
    """Return whether the option is on or off, and so needs no value."""
    return isinstance(option.default, bool)


def _hint(flag: str) -> str:
    """Return the flags that are spelt alike, or where to read all of them."""
    # Imported late: only an error needs it.
    from difflib import get_close_matches

    near = get_close_matches(flag, BY_FLAG, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else "see concagent run --help"


def help_text() -> str:
    """Return what ``concagent run --help`` prints."""
    lines = [f"Usage: {USAGE}", "", "Run a Python program under the agent.  Options end where the program begins.", ""]
    for option in OPTIONS:
        form = f"{option.flag} / --no-{option.flag[2:]}" if _is_switch(option) else f"{option.flag} VALUE"
        lines += [f"  {form}", f"      {option.help}"]
        if not _is_switch(option):
            lines.append(f"      {option.allowed[:1].upper()}{option.allowed[1:]}.")
    lines += [
        "",
        "Each option can also be given as an environment variable: --long-wait 5 is CONCAGENT_LONG_WAIT=5.",
        "The exit status is the program's own; with --fail-on KIND,... it is 86 if such a finding was made.",
    ]
    return "\n".join(lines) + "\n"
