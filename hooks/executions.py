"""Programs that are executed: each is given an environment that takes the agent along (see ``following``).

``subprocess``, ``multiprocessing`` and ``asyncio`` start processes by ``_posixsubprocess.fork_exec``, everybody else by
``os.posix_spawn`` or the two functions that all others of ``os.exec*`` and ``os.spawn*`` are made of.  These are replaced,
and only an argument is: the environment.  What is not as we expect it goes through as it came, for the original to judge.

Invariants E1 a replacement calls its original exactly once, but for an ``execv`` that fails: it is asked again for its words.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from concagent import core, following, state
from concagent.hooks.patching import Patch

if TYPE_CHECKING:
    from collections.abc import Callable

    from concagent.hooks.patching import PatchSet

_ENVIRONMENT_AT = 5  # among the arguments of fork_exec, in all versions


def _fork_exec(original: Callable[..., int]) -> Callable[..., int]:
    def fork_exec(*arguments: Any) -> int:
        try:
            words, programs, given = arguments[0], arguments[1], arguments[_ENVIRONMENT_AT]
            if following.wants(programs, words, inherited=given is None):
                at = next((at for at, value in enumerate(arguments) if at > _ENVIRONMENT_AT and callable(value)), 0)
                if given is None and at:
                    arguments = _with(arguments, at, _then_tell(arguments[at]))
                else:
                    environment = following.told(core.environment() if given is None else given)
                    if environment is not None:
                        arguments = _with(arguments, _ENVIRONMENT_AT, environment)
        except Exception as error:  # noqa: BLE001 - border: wrong arguments are for the original to refuse
            _note(error)
        return original(*arguments)

    return fork_exec


def _with(arguments: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*arguments[:at], value, *arguments[at + 1 :])


def _then_tell(function: Callable[[], object]) -> Callable[[], object]:
    """Return a ``preexec_fn`` that calls the program's, which may change what the child inherits, and then adds ours."""

    def preexec_fn() -> None:
        function()
        for pair in following.told(core.environment()) or ():
            name, _, value = pair.partition(b"=")
            if name in following.NAMES:
                os.putenv(name, value)

    return preexec_fn


def _spawn(original: Callable[..., int]) -> Callable[..., int]:
    def posix_spawn(*arguments: Any, **options: Any) -> int:
        if len(arguments) == 3:
            arguments = (*arguments[:2], _mapping(*arguments))
        return original(*arguments, **options)

    return posix_spawn


def _execve(original: Callable[..., Any]) -> Callable[..., Any]:
    def execve(*arguments: Any, **named: Any) -> Any:
        if len(arguments) == 3 and not named:
            arguments = (*arguments[:2], _mapping(*arguments))
        elif "env" in named:
            given = dict(zip(("path", "argv"), arguments, strict=False)) | named
            named["env"] = _mapping(given.get("path"), given.get("argv"), given["env"])
        return original(*arguments, **named)

    return execve


def _execv(original: Callable[..., Any], execve: Callable[..., Any]) -> Callable[..., Any]:
    def execv(*arguments: Any) -> Any:
        try:
            if len(arguments) == 2 and following.wants(arguments[:1], arguments[1], inherited=True):
                environment = _inherited()
                if environment is not None:
                    execve(*arguments, environment)
        except Exception as error:  # noqa: BLE001 - border: the original says what is wrong
            _note(error)
        return original(*arguments)

    return execv


def _mapping(path: Any, argv: Any, given: Any) -> Any:
    """Return the environment to execute with: ``given``, or a copy that says more."""
    try:
        if following.wants([path], argv, inherited=given is None or given is os.environ):
            environment = _inherited() if given is None else following.told_mapping(given)
            if environment is not None:
                return environment
    except Exception as error:  # noqa: BLE001 - border: wrong arguments are for the original to refuse
        _note(error)
    return given


def _inherited() -> dict[bytes, bytes] | None:
    """Return this process's environment, as C code has it, with what a child is told."""
    environment = following.told(core.environment())
    return None if environment is None else dict(pair.split(b"=", 1) for pair in environment if b"=" in pair)


def _note(error: Exception) -> None:
    """Count what is not the program's own mistake."""
    if not isinstance(error, (TypeError, ValueError, OSError, IndexError, AttributeError)):
        state.count_error("hook", error)


def _named(replacement: Any, original: Any) -> Any:
    """Return the replacement with the names that people see."""
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__text_signature__"):
        try:
            setattr(replacement, name, getattr(original, name))
        except (AttributeError, TypeError):
            pass
    return replacement


def add_patches(patches: PatchSet) -> None:
    """Append the patches of this family; none where there is no ``fork``."""
    try:
        import _posixsubprocess
    except ImportError:
        return
    original: Any = _posixsubprocess.fork_exec
    replacement = _named(_fork_exec(original), original)
    patches.add(Patch(_posixsubprocess, "fork_exec", replacement, "_posixsubprocess.fork_exec"))
    patches.add_alias_scan(original, replacement, ["_posixsubprocess"], "copies of _posixsubprocess.fork_exec")
    for name in ("posix_spawn", "posix_spawnp"):
        if hasattr(os, name):
            patches.add(Patch(os, name, _named(_spawn(getattr(os, name)), getattr(os, name)), f"os.{name}"))
    patches.add(Patch(os, "execv", _named(_execv(os.execv, os.execve), os.execv), "os.execv"))
    patches.add(Patch(os, "execve", _named(_execve(os.execve), os.execve), "os.execve"))
