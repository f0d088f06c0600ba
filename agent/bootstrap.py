"""The composition root: what `install` puts together and `uninstall` takes apart.

Everything that can be refused is tried before the first patch: options, the suppressions file, the findings file, the
port, the socket.  What was opened is on a stack of undo steps; if a later step fails they are undone in reverse order,
and the caller gets the first error and a program as it was.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import IO, TYPE_CHECKING, Any, Final

from concagent import _real, core, filewaits, following, forks, halfloaded, state
from concagent.config import Config
from concagent.delivery import CALLBACK, Delivery
from concagent.errors import ConcagentError, ConfigError, PatchError
from concagent.monitor import Monitor, wait_until_gone
from concagent.openings import Openings
from concagent.reporting import write_stderr
from concagent.tasksource import Tasks
from concagent.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from logging import Logger

    from concagent.exporters.control import ControlServer
    from concagent.exporters.http import Endpoint
    from concagent.exporters.log import LogSink
    from concagent.lastresort import LastResort
    from concagent.model import AgentStats, Finding, Report
    from concagent.picture import Picture
    from concagent.reportsignal import ReportSignal
    from concagent.suppressions import Suppression

# A child that calls exec has done so by then, and callbacks of `os.register_at_fork` that come after ours have run.
FORK_SETTLE_NS: Final = 250_000_000
LATE_NS: Final = 100_000_000  # how long a child that was executed goes without descriptors of the agent

_agent: Agent | None = None
_early_callbacks: list[Callable[[Finding], object]] = []

REPORT_CHECK_SECONDS: Final = 2.5  # a report on a signal waits no longer for the answer whether waits are endless


def _logger() -> Logger:
    """Return our logger; a program that never logs, and about which there is nothing to say, does not load ``logging``."""
    import logging

    return logging.getLogger("concagent")


def install(**options: Any) -> Agent:
    """Start the agent; see `concagent.install`."""
    if _agent is not None:
        wanted = _agent.other_than_inherited(options)
        if wanted is None:
            if options and _agent.inherited is None:
                _logger().info("concagent is already installed; the options of the first install stay in force")
            return _agent
        uninstall()
        return _install(wanted)
    return _install(Config.from_sources(options, os.environ))


def install_in_child(variables: Mapping[str, str]) -> None:
    """Start the agent in a child that was executed, with its parent's options; the parent's port stays the parent's.

    Args:
        variables: As in an environment.
    """
    inherited = following.settled(Config.from_sources({}, variables))
    _install(inherited._replace(metrics_port=None), (inherited, variables))


def _install(config: Config, inherited: tuple[Config, Mapping[str, str]] | None = None) -> Agent:
    global _agent
    if config.core != "auto" and core.choose(config.core)[0] is not core.implementation:
        message = (
            f"option core is {config.core!r}, but the {core.NAME} core is loaded already; set CONCAGENT_CORE before"
        )
        raise ConfigError(message, option="core", value=repr(config.core), allowed=core.NAME)
    agent = Agent(config, inherited)
    agent.start()
    _agent = agent
    for callback in _early_callbacks:
        agent.on_finding(callback)
    _early_callbacks.clear()
    return agent


def uninstall() -> None:
    """Stop the agent; see `concagent.uninstall`."""
    global _agent
    agent, _agent = _agent, None
    if agent is not None:
        agent.stop()


def running() -> Agent:
    """Return the running agent.

    Raises:
        ConcagentError: There is none.
    """
    if _agent is None:
        raise ConcagentError("concagent is not installed in this process; call concagent.install() first")
    return _agent


def findings() -> tuple[Finding, ...]:
    """Return the findings so far, () without an agent."""
    return _agent.findings() if _agent is not None else ()


def on_finding(callback: Callable[[Finding], object]) -> None:
    """Subscribe now, or as soon as there is an agent."""
    if _agent is not None:
        _agent.on_finding(callback)
    if _agent is None or _agent.inherited is not None:  # the program may yet install one with other options
        _early_callbacks.append(callback)


def report(file: IO[str] | None, format: str) -> None:  # noqa: A002 - the contract's name
    """Write the full live picture as text, json or dot."""
    text = running().render(format)
    print(text, file=file if file is not None else sys.stderr)


def name(lock: object, name: str) -> None:
    """Name a lock; see `concagent.name`."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a lock's name must be a non-empty string, not {name!r}", option="name", value=repr(name))
    cell = state.existing_cell(lock)
    if cell is None and hasattr(lock, "__dict__"):
        cell = state.sync_cell(lock, type(lock).__name__.lower())
    if cell is None:
        message = f"cannot name {lock!r}: it was made before install, or is not a lock; create it after install"
        raise ConfigError(message, option="name", value=repr(lock))
    cell.name = name


class Agent:
    """A running agent; made by `install` only.

    Attributes:
        config: The options in force.
        inherited: In a child that was executed: its parent's options, and the variables that say so; else None.
    """

    def __init__(self, config: Config, inherited: tuple[Config, Mapping[str, str]] | None = None) -> None:
        """Prepare everything that touches nothing outside of the agent."""
        self.config = config
        self.inherited = inherited
        # Most children that are executed end soon, and the lowest descriptors are theirs.
        self._late = inherited is not None and core.NAME == "c"
        self.openings = Openings(on_unclosed=self._wake)
        self.monitor = Monitor(config, _read_suppressions(config.suppressions), late=self._late)
        self._callbacks = Delivery(core.mark_agent_thread, state.count_drop, self._subscriber_failed)
        self._tasks = Tasks()
        self._log_sink: LogSink | None = None
        self._failed_sinks: set[str] = set()
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._at_fork: list[Any] = []
        self._watches = Watches(config, self.monitor, self.openings, self._undo, self._at_fork)
        self._endpoint: Endpoint | None = None
        self._control: ControlServer | None = None
        self._last_resort: LastResort | None = None
        self._adoption: Any = None
        self._paused = False
        self._installed = False

    # ------------------------------------------------------------ what users ask

    def findings(self) -> tuple[Finding, ...]:
        """Return what was found in this process so far, oldest first."""
        self.monitor.flush()
        return self.monitor.ledger.findings()

    def on_finding(self, callback: Callable[[Finding], object]) -> None:
        """Call ``callback`` with each new finding, on a thread of the agent; one that raises is removed."""
        self._callbacks.add_callback(callback)

    def remove_callback(self, callback: Callable[[Finding], object]) -> bool:
        """Stop calling ``callback``; False if it was not subscribed."""
        return self._callbacks.remove_callback(callback)

    def _subscriber_failed(self, name: str, error: BaseException) -> None:
        """Count a delivery that failed; log it once: for each callback, which is removed, and for the first failure of a sink."""
        state.count_error(name, error)
        if name == CALLBACK:
            _logger().error("a callback of on_finding raised and is removed", exc_info=error)
        elif name not in self._failed_sinks:
            self._failed_sinks.add(name)
            _logger().error("findings do not arrive at %s: %s: %s", name, type(error).__name__, error)

    def snapshot(self) -> Picture:
        """Return who holds what and who waits for what, now, with every stack."""
        from concagent import snapshots
        from concagent.picture import Picture

        return Picture.of(snapshots.take(stacks=True, stack_limit=self.config.stack_depth))

    def check(self) -> tuple[Finding, ...]:
        """Look now for waits that nobody can end, suspicions included; return what has been found in this process so far."""
        self.monitor.check()
        return self.findings()

    def statistics(self) -> AgentStats:
        """Return the agent's counters, frozen."""
        from concagent.statistics import Statistics

        return Statistics(self.monitor, self.openings).read()

    def report(self, trigger: str = "request") -> Report:
        """Return the full live picture."""
        picture, rings = self.monitor.report()
        from concagent import __version__
        from concagent.model import Report

        return Report(
            snapshot=picture,
            rings=rings,
            findings=self.monitor.ledger.findings(),
            stats=self.statistics(),
            trigger=trigger,
            python=sys.version.split()[0],
            command=" ".join(sys.orig_argv),
            version=__version__,
        )

    def render(self, format: str = "text", trigger: str = "request") -> str:  # noqa: A002 - the contract's name
        """Return the full live picture as ``text``, ``json`` or ``dot``.

        Raises:
            ConfigError: The format is another one.
        """
        made = self.report(trigger)
        if format == "text":
            from concagent.exporters.text import render_report

            return render_report(made)
        if format == "json":
            from concagent.exporters.json import report_to_json

            return report_to_json(made)
        if format == "dot":
            from concagent.exporters.dot import snapshot_dot

            return snapshot_dot(made.snapshot, rings=made.rings)
        message = f"format is {format!r}; allowed are text, json, dot"
        raise ConfigError(message, option="format", value=repr(format), allowed="text, json, dot")

    @property
    def metrics_port(self) -> int | None:
        """Return the port that is listened on, None without an endpoint."""
        return self._endpoint.port if self._endpoint is not None else None

    @property
    def patched(self) -> tuple[str, ...]:
        """Return the labels of what is replaced, in order."""
        return self._patches.labels()

    def other_than_inherited(self, options: Mapping[str, Any]) -> Config | None:
        """Return what a child's own ``install`` asks for; None if that is what it has, or it is no child's.

        Raises:
            ConfigError: An option is wrong.
        """
        if self.inherited is None or not options:
            return None
        inherited, variables = self.inherited
        wanted = Config.from_sources(options, variables)
        return None if following.settled(wanted) in {inherited, self.config} else wanted

    # ------------------------------------------------------------ start

    def start(self) -> None:
        """Do everything, or raise with the program as it was; `install` calls this."""
        self._undo.append(("monitor", self.monitor.close))  # its pipe is open from the beginning
        try:
            self._refuse_foreign_patches()
            self._open_sinks()
            self._open_listeners()
            self._apply_patches()
            self._listen_to_signal()
            self._start_thread()
        except BaseException:
            self._undo_all()
            raise
        self._installed = True

    def _refuse_foreign_patches(self) -> None:
        from concagent.hooks import locks

        who = locks.foreign_patch()
        if who is not None:
            raise PatchError(
                f"cannot patch threading.Lock: already replaced by {who}; start concagent first, before {who} patches, or "
                "leave it out: a lock that is not an operating system lock is not one that this agent can watch"
            )

    def _open_sinks(self) -> None:
        config, monitor = self.config, self.monitor
        if config.findings is not None:
            from concagent.exporters.findings_file import FindingsFile

            file = FindingsFile(config.findings, late=self._late)
            self._undo.append(("findings file", file.close))
            monitor.sinks.append(("findings", file.write))
        if config.stderr:
            monitor.sinks.append(("stderr", lambda finding: write_stderr(_render_finding(finding) + "\n")))
        if config.log:
            self._callbacks.add_sink("log", self._log)
        for url in config.webhook:
            from concagent.exporters.alerts import Webhook

            self._callbacks.add_sink("webhook", Webhook(url, config.alert_timeout))
        for url in config.alertmanager:
            from concagent.exporters.alerts import Alertmanager

            self._callbacks.add_sink("alertmanager", Alertmanager(url, config.alert_timeout))
        monitor.sinks.append(("delivery", self._callbacks.put))

    def _log(self, finding: Finding) -> None:
        if self._log_sink is None:
            from concagent.exporters.log import STUCK_KINDS, LogSink
            from concagent.model import KINDS

            kinds = STUCK_KINDS if following.has_stderr_of_its_own else KINDS
            self._log_sink = LogSink(_render_finding, write_stderr=write_stderr, stderr_kinds=kinds)
        self._log_sink(finding)

    def _open_listeners(self) -> None:
        def count_error(error: Exception) -> None:
            state.count_error("listener", error)

        if self.config.metrics_port is not None:
            from concagent.exporters.http import Endpoint
            from concagent.pages import pages

            address, port = self.config.metrics_address, self.config.metrics_port
            routes, collector = pages(self)
            self._at_fork.append(collector)
            endpoint = Endpoint(address, port, routes, on_thread=core.mark_agent_thread, on_error=count_error)
            self._endpoint = endpoint
            self._add_service("endpoint", endpoint)
        if self.config.socket and hasattr(os, "fork"):
            from concagent.exporters.control import ControlServer, report_commands, runtime_directory

            try:
                self._control = ControlServer(
                    runtime_directory(),
                    os.getpid(),
                    {**report_commands(lambda: self.report("concagent report")), "statistics": self._statistics_json},
                    on_thread=core.mark_agent_thread,
                    on_error=count_error,
                    late=self._late,
                )
            except ConfigError as error:  # a read-only system must not keep the agent from its work
                _logger().info("`concagent report PID` will not work: %s", error)
            else:
                self._add_service("control socket", self._control)

    def _add_service(self, label: str, service: Any) -> None:
        self.monitor.services.append(service)
        self._undo.append((label, service.close))
        self._at_fork.append(service)

    def _statistics_json(self) -> bytes:
        from concagent.exporters.json import statistics_to_json

        return statistics_to_json(self.statistics()).encode("ascii")

    def _apply_patches(self) -> None:
        from concagent import exporters, hooks
        from concagent.hooks import (
            children,
            conditions,
            executions,
            filelocks,
            files,
            fork,
            frames,
            futures,
            imports,
            locks,
            pools,
            processes,
            simplequeue,
            sync,
            threads,
        )
        from concagent.hooks.patching import PatchSet

        state.set_own_folders([*hooks.__path__, *exporters.__path__])
        self._patches = PatchSet()
        following.begin_program()
        families = self.config.patch
        if "locks" in families:
            limit = self.config.class_limit
            locks.add_patches(self._patches, lambda: core.start(self.monitor, class_limit=limit), core.stop)
            if self.config.adopt:
                self._adoption = locks.Adoption()
                self._patches.add(self._adoption)
        if "sync" in families:
            sync.add_patches(self._patches)
            conditions.add_patches(self._patches)
            self._patches.add(simplequeue.Replacement())
            futures.add_patches(self._patches)
            imports.add_patches(self._patches)
        if "threads" in families:
            threads.add_patches(self._patches)
            frames.add_patches(self._patches)
            self._watches.children = children.add_patches(self._patches)
            self._watches.processes = processes.add_patches(self._patches, self._watches.watch_processes)
            pools.add_patches(self._patches)
            self._watches.polls = filelocks.add_patches(self._patches)
            if self._watches.polls is not None:
                self.monitor.tick_hooks += [self._watches.look_at_polls, self._watches.look_at_files]
                filewaits.on_refused = self._watches.note_refused
        if "files" in families and self.config.files:
            self._patches.add(*files.patches(self.openings, state.count_error, core.is_agent_thread))
            self.monitor.tick_hooks.append(self._watches.look_for_leaks)
        if self.config.follow:
            executions.add_patches(self._patches)
        self._patches.apply()
        self._undo.append(("patches", self._patches.restore))
        if self.config.follow:
            following.start(self.config)
            self._undo.append(("following", following.stop))
        if "asyncio" in families:
            state.add_source(self._tasks)
            self._undo.append(("tasks", lambda: state.remove_source(self._tasks)))
            if self.config.loop_blocked:
                self.monitor.tick_hooks.append(self._watches.look_at_loops)
        if self._adoption is not None:
            state.untracked_locks = self._adoption.untracked
        fork.listen(self, state.count_error)
        self._undo.append(("fork hooks", lambda: fork.listen(None, state.count_error)))

    def _listen_to_signal(self) -> None:
        if self.config.report_signal == "off":
            return
        from concagent.lastresort import LastResort
        from concagent.reporting import SignalReports
        from concagent.reportsignal import ReportSignal

        number = getattr(signal, self.config.report_signal, None)
        problem = f"this system has no signal {self.config.report_signal}" if number is None else ""
        if number is not None:
            try:
                listener = ReportSignal(int(number), late=self._late)
            except PatchError as error:
                problem = str(error)
        if problem:
            _logger().info("no report on a signal: %s; `concagent report %d` still works", problem, os.getpid())
            return
        directory = None
        if self.config.report_to != "stderr":
            from concagent.exporters.control import runtime_directory
            from concagent.exporters.report_file import ReportDirectory

            path = self.config.report_dir or os.path.join(runtime_directory(), "reports")
            directory = ReportDirectory(path)
        to_stderr = self.config.report_to != "file"
        self._last_resort = LastResort(
            self.config.last_resort_after,
            self.config.report_signal,
            directory.path if directory is not None else None,
            to_stderr=to_stderr,
        )

        def own() -> str:
            self.monitor.check(REPORT_CHECK_SECONDS)
            return self.render("text", self.config.report_signal)

        def text() -> str:
            if not self.config.report_tree:
                return own()
            from concagent import family

            return family.report_text(os.getpid(), own=own, on_thread=core.mark_agent_thread)

        self.monitor.services.append(SignalReports(listener, text, directory, to_stderr, self._last_resort))
        if self._late:
            self.monitor.at_begin.append(lambda: self._begin_to_listen(listener))
        self._undo.append(("report signal", listener.close))
        self._at_fork.append(listener)

    def _begin_to_listen(self, listener: ReportSignal) -> None:
        listener.reopen()
        if self._last_resort is not None and self._last_resort.requests():
            listener.ask()

    def _start_thread(self) -> None:
        if self._late:
            self.monitor.start_without_descriptors(LATE_NS)
        else:
            self.monitor.start()
        self._undo.append(("monitor thread", self.monitor.stop))
        if self._last_resort is not None:
            self._last_resort.start()
            self._undo.append(("last resort", self._last_resort.stop))
        atexit.register(self._at_exit)
        self._undo.append(("exit hook", lambda: atexit.unregister(self._at_exit)))

    # ------------------------------------------------------------ stop

    def stop(self) -> None:
        """Undo everything; `uninstall` calls this.

        Raises:
            PatchError: Some originals could not be restored; all others were.
        """
        self.monitor.flush()
        failures = self._undo_all()
        self._installed = False
        self._callbacks.drain(1.0)
        if failures:
            raise PatchError(f"uninstalled, but: {'; '.join(failures)}")

    def _undo_all(self) -> list[str]:
        failures = []
        while self._undo:
            label, step = self._undo.pop()
            try:
                step()
            except Exception as error:  # noqa: BLE001 - border: one failure must not keep the rest from being undone
                failures.append(f"{label}: {error}")
        self.monitor.services.clear()
        return failures

    def _at_exit(self) -> None:
        """Say what is left to say, then fall silent: what finalization does to locks and files is nobody's bug."""
        services = [service.close for service in (self._control, self._endpoint) if service is not None]
        for step in (
            self.monitor.flush,
            self.monitor.tell_the_end,
            self._look_for_leaks_at_exit,
            core.stop,
            self._watches.end_boards,
            self.openings.stop,
            lambda: self._callbacks.drain(2.0),
            *services,
        ):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - border: the program's end is not ours to disturb
                state.count_error("exit", error)

    def _look_for_leaks_at_exit(self) -> None:
        if self.monitor.stop() and self._may_have_leaked():
            self._watches.leak_watch().look_at_exit()

    def _may_have_leaked(self) -> bool:
        """Return whether anything is open or was collected unclosed: most programs end without, and look no further."""
        return any(count for _, count in (*self.openings.open_counts(), *self.openings.collected_counts()))

    # ------------------------------------------------------------ fork

    def before_fork(self) -> None:
        """Let a program with one thread have one thread while it forks."""
        if self._adoption is not None:
            self._adoption.before_fork()
        from concagent.hooks import fork

        forks.before(fork.caller())
        others = set(_real.current_frames()) - self.monitor.idents - {_real.get_ident()}
        if self.monitor.hold_still() and fork.WARNS_ABOUT_THREADS and not others:
            self._paused = True
            if self.monitor.pause(0.5):
                wait_until_gone(self.monitor.native_id)
            if self._last_resort is not None:
                wait_until_gone(self._last_resort.stop())

    def after_fork_in_parent(self) -> None:
        """Bring the thread back, after CPython has counted threads."""
        self.monitor.go_on()
        forks.in_parent()
        filewaits.forked(child=False)
        following.had_children = True
        if self._adoption is not None:
            self._adoption.after_fork_in_parent()
        if self._paused:
            from concagent.hooks import fork

            self._paused = False
            fork.call_soon(self._resume)

    def _resume(self) -> None:
        if self._installed and _agent is self:
            self.monitor.pause()  # if it has not ended yet
            self.monitor.start()
            if self._last_resort is not None:
                self._last_resort.start()

    def after_fork_in_child(self) -> None:
        """Begin anew: no findings, no threads but the caller's, sockets and pipes of our own."""
        self._paused = False
        gone = _real.forget_agent_threads()
        try:
            halfloaded.forget(gone)
        except Exception as error:  # noqa: BLE001 - border: importlib's own affairs differ from version to version
            state.count_error("fork", error)
        core.after_fork_in_child()
        state.after_fork_in_child()
        filewaits.forked(child=True)
        following.had_children = False
        if self._adoption is not None:
            self._adoption.after_fork_in_child()
        self.openings.after_fork_in_child()
        self._callbacks.after_fork_in_child()
        self.monitor.after_fork_in_child()
        for part in self._at_fork:
            part.after_fork_in_child()
        forked = forks.in_child()
        if forked is not None:
            self.monitor.judge_later(FORK_SETTLE_NS, state.ForkEvent(forked))
        self.monitor.start_late()
        if self._last_resort is not None:
            self._last_resort.after_fork_in_child()

    def _wake(self) -> None:
        self.monitor.wake()


def _render_finding(finding: Finding) -> str:
    from concagent.exporters.text import render_finding

    return render_finding(finding)


def _read_suppressions(path: str | None) -> tuple[Suppression, ...]:
    if path is None:
        return ()
    from datetime import date

    from concagent.suppressions import parse

    try:
        with _real.open_file(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        message = f"option suppressions is {path!r}, which cannot be read: {error}"
        raise ConfigError(message, option="suppressions", value=repr(path), allowed="a readable file") from error
    return parse(text, path, date.today())
