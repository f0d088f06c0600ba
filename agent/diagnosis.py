"""What the agent would do here, and what it cannot: for ``concagent doctor``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from concagent.config import FAMILIES, OPTIONS, Config, format_text
from concagent.errors import ConcagentError, ConfigError
from concagent.exporters import control


def installed_version() -> str:
    """Return the version of the distribution, in words where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("concagent")
    except PackageNotFoundError:
        return "unknown (not installed)"


def diagnosis() -> Iterator[tuple[str, str, bool]]:
    """Yield what is to be said: a name, a value, and whether that is as it should be."""
    import platform
    import signal

    from concagent import core
    from concagent.reportsignal import ReportSignal

    yield "concagent", f"{installed_version()} in {os.path.dirname(os.path.abspath(__file__))}", True
    yield "interpreter", f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}", True
    try:
        config = Config.from_sources({}, os.environ)
    except ConfigError as error:
        yield "configuration", str(error), False
        config = Config()
    else:
        changed = {
            option.name: format_text(option, getattr(config, option.name))
            for option in OPTIONS
            if getattr(config, option.name) != option.default
        }
        told = ", ".join(f"{name}={value}" for name, value in changed.items()) or "all defaults"
        yield "configuration", told, True
    try:
        twin, reason = core.choose(config.core)
        yield "core", f"{twin.NAME} ({reason})", True
    except ConfigError as error:
        yield "core", str(error), False
    missing = [family for family in FAMILIES if family not in config.patch]
    watched = ", ".join(config.patch) or "none"
    yield "watched", watched + (f" (not watched: {', '.join(missing)})" if missing else ""), True
    for tool in ("gevent", "eventlet"):
        if tool in sys.modules:
            yield "conflict", f"{tool} is already imported; start concagent first", False
    if config.socket:
        try:
            yield "control socket", f"in {control.runtime_directory()}", True
        except ConfigError as error:
            yield "control socket", str(error), False
    else:
        yield "control socket", "off", True
    if config.report_signal == "off":
        yield "report signal", "off", True
        return
    try:
        ReportSignal(signal.Signals[config.report_signal]).close()
    except ConcagentError as error:
        yield "report signal", str(error), False
    else:
        yield "report signal", f"{config.report_signal}: kill -{config.report_signal.removeprefix('SIG')} PID", True
