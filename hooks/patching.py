"""Replacing attributes of other people's modules, and putting every one of them back.

Patching is the agent's most dangerous act: half a set of patches is worse than none, because ``threading.Lock`` would be
ours while ``Condition`` still trusts the original.  So a set of patches is all or nothing: if one cannot be applied,
those before it are undone in reverse order and the caller gets one error that says which and what to do.  Undoing is the
opposite: nothing may stop it.  A restore that fails is remembered, all others are still done, and the error that comes
at the end lists every failure; a program that asked us to leave must not keep half of us because one module refused.

Two things make "put back the original" harder than it sounds.  ``getattr`` on a class binds what it finds, so a
staticmethod would come back as a function, and a method that was only inherited would come back as the class's own; we
read and compare the raw entry of ``__dict__`` instead and delete what was not there before.  And somebody may have
patched over us.  If the attribute is no longer our replacement, it is theirs: putting the original back would silently
remove *their* patch.  We leave it, and say so in ``PatchSet.foreign``.  Their wrapper probably goes on calling our
replacement for ever, so every replacement has to be plain once it is switched off: see ``Switch``.

Modules that said ``from threading import Lock`` before we came hold a copy of the original; an alias scan finds such
copies.  It reads the ``__dict__`` of plain modules only: ``getattr`` on a lazy module would import half the program.
The same scan, backwards, runs at restore, for modules that copied our replacement while it was in place.

Invariants P1 after ``apply`` raised, every attribute is the object that it was before.
           P2 after ``restore``, every attribute which was still ours is the object that it was before, or absent if it was.
           P3 both are idempotent, and the order is that of ``add``, with the scans last, so that the modules are gone
              through once for all of them; in a scan, it is that of ``sys.modules``, then of names.
Not done   copies held elsewhere than in module globals (default arguments, closures, class bodies, containers).
Cost       the scans look at each global of each module: about 1 ms for a program with 300 modules.  Not thread-safe: one
           thread installs.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from concagent.errors import PatchError

# The raw ``__dict__`` of a class, whatever its metaclass makes of the name.
_class_dict: Final[Any] = type.__dict__["__dict__"]
_OURS: Final = "concagent"


class _Absent:
    """The value of an attribute that its owner did not have itself."""


_ABSENT: Final = _Absent()


if TYPE_CHECKING:
    from typing import Protocol

    class Step(Protocol):
        """Anything that a `PatchSet` can do and undo."""

        label: str

        def apply(self) -> None:
            """Do it, once however often called; raise and leave nothing behind if it cannot be done."""

        def restore(self) -> None:
            """Undo it, once however often called."""


def own_dict(owner: object) -> Mapping[str, Any]:
    """Return the owner's own attributes, unbound and without inherited ones.

    Raises:
        TypeError: The owner has no ``__dict__``.
    """
    if isinstance(owner, type):
        attributes: Mapping[str, Any] = _class_dict.__get__(owner)
        return attributes
    try:
        attributes = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        raise TypeError(f"{type(owner).__name__!r} object has no __dict__") from None
    return attributes


class Patch:
    """The replacement of one attribute of a module, a class, or an object with a ``__dict__``.

    Attributes:
        label: What messages call it, such as ``threading.Lock``.
        applied: Whether the replacement was put in place and not yet restored.
        foreign: What stood in the attribute's place at restore, if it was not ours; None otherwise.
    """

    def __init__(self, owner: object, name: str, replacement: object, label: str) -> None:
        """Remember what to replace; nothing is touched before `apply`."""
        self.owner = owner
        self.name = name
        self.replacement = replacement
        self.label = label
        self.applied = False
        self.foreign: object | None = None
        self._original: Any = _ABSENT

    @property
    def original(self) -> Any:
        """Return the raw object that was replaced; None if it was inherited or nothing is applied."""
        return None if self._original is _ABSENT else self._original

    def apply(self) -> None:
        """Put the replacement in place; nothing happens if it is there already.

        Raises:
            PatchError: The owner has no such attribute, or does not let it be set.
        """
        if self.applied:
            return
        try:
            original = own_dict(self.owner).get(self.name, _ABSENT)
            if original is _ABSENT:
                getattr(self.owner, self.name)  # inherited, or there is nothing to replace
            self._replace(original)
        except Exception as error:
            raise PatchError(
                f"cannot patch {self.label}: {type(error).__name__}: {error}; "
                "install concagent before other tools that replace it, or leave this hook out"
            ) from error
        self._original = original
        self.foreign = None
        self.applied = True

    def restore(self) -> None:
        """Put the original back if the attribute is still ours, else note the stranger in `foreign`.

        Raises:
            PatchError: The owner does not let the attribute be set; the patch stays applied.
        """
        if not self.applied:
            return
        try:
            present = own_dict(self.owner).get(self.name, _ABSENT)
            if present is self.replacement:
                self._put(self._original)
            else:
                self.foreign = present
        except Exception as error:
            raise PatchError(
                f"cannot restore {self.label}: {type(error).__name__}: {error}; it stays replaced, and behaves as plain"
            ) from error
        self._original = _ABSENT
        self.applied = False

    def _replace(self, original: object) -> None:
        setattr(self.owner, self.name, self.replacement)
        if own_dict(self.owner).get(self.name, _ABSENT) is not self.replacement:
            self._put(original)
            raise TypeError("it does not keep what is assigned to it")

    def _put(self, value: object) -> None:
        if value is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


class Switch:
    """A step that turns something on and off, such as the bookkeeping of replacements which others may keep calling."""

    def __init__(self, label: str, turn_on: Callable[[], object], turn_off: Callable[[], object]) -> None:
        """Remember both actions; neither is called before `apply`."""
        self.label = label
        self.applied = False
        self._turn_on = turn_on
        self._turn_off = turn_off

    def apply(self) -> None:
        """Turn it on, unless it is."""
        if not self.applied:
            self._turn_on()
            self.applied = True

    def restore(self) -> None:
        """Turn it off, unless it is."""
        if self.applied:
            self._turn_off()
            self.applied = False


class AliasScan:
    """A step that replaces the copies of one object in module globals; they are searched for when it is applied."""

    def __init__(
        self, original: object, replacement: object, skip_modules: Collection[str] = (), label: str = "alias"
    ) -> None:
        """Remember what to look for; see `PatchSet.add_alias_scan`."""
        self.label = label
        self.found: list[Patch] = []
        self._original = original
        self._replacement = replacement
        self._skip = frozenset(skip_modules)
        self._applied = False
        self._seen: Copies | None = None

    @staticmethod
    def look(scans: Sequence[AliasScan]) -> None:
        """Look for the copies of several scans at once: with many modules, looking is what costs."""
        seen = _copies([scan._original for scan in scans])
        for scan in scans:
            scan._seen = seen

    @staticmethod
    def look_back(scans: Sequence[AliasScan]) -> Copies:
        """Look for copies of what several scans put in place, for `sweep`."""
        return _copies([scan._replacement for scan in scans])

    def apply(self) -> None:
        """Find all copies and replace them, or none."""
        if self._applied:
            return
        done: list[Patch] = []
        seen, self._seen = self._seen, None
        try:
            for patch in self._copies_of(self._original, self._replacement, seen):
                patch.apply()
                done.append(patch)
        except PatchError:
            _restore_reversed(done)
            raise
        self.found = done
        self._applied = True

    def restore(self) -> None:
        """Put the original back in the copies that were found."""
        if not self._applied:
            return
        failures = _restore_reversed(self.found)
        if failures:
            raise PatchError("; ".join(failures))
        self._applied = False

    def sweep(self, seen: Copies | None = None) -> None:
        """Put the original where modules copied our replacement meanwhile; call it when all patches are restored."""
        failures = []
        for copy in self._copies_of(self._replacement, self._original, seen):
            try:
                copy.apply()  # the reverse patch: the original takes the place of a copy made of our replacement
            except PatchError as error:
                failures.append(str(error))
        if failures:
            raise PatchError("; ".join(failures))

    def _copies_of(self, wanted: object, substitute: object, seen: Copies | None) -> list[Patch]:
        found = (_copies([wanted]) if seen is None else seen)[id(wanted)]
        return [
            Patch(module, name, substitute, f"{module_name}.{name}")
            for module_name, module, name in found
            if module_name not in self._skip and module.__dict__.get(name) is wanted
        ]


# id of what was looked for -> where it was found: the module's name, the module, the attribute
Copies = dict[int, list[tuple[str, types.ModuleType, str]]]


def _copies(wanted: Iterable[object]) -> Copies:
    """Return where modules have these objects among their globals, in the order of the modules, then of the names."""
    found: Copies = {id(one): [] for one in wanted}
    for module_name, module in list(sys.modules.items()):
        if type(module) is not types.ModuleType or module_name == _OURS or module_name.startswith(_OURS + "."):
            continue
        for name, value in list(module.__dict__.items()):
            if id(value) in found:
                found[id(value)].append((module_name, module, name))
    return found


def _restore_reversed(steps: list[Patch]) -> list[str]:
    failures: list[str] = []
    for step in reversed(steps):
        try:
            step.restore()
        except PatchError as error:
            failures.append(str(error))
    return failures


class PatchSet:
    """Steps that are applied together or not at all, and undone in reverse order.

    Attributes:
        foreign: After `restore`, labels of attributes that somebody else had replaced after us; they were left alone.
    """

    def __init__(self) -> None:
        """Make an empty set."""
        self.foreign: tuple[str, ...] = ()
        self._steps: list[Step] = []
        self._done: list[Step] = []

    def add(self, *steps: Step) -> None:
        """Append patches or switches; those added after `apply` are done by the next one."""
        self._steps.extend(steps)

    def add_alias_scan(
        self,
        original: object,
        replacement: object,
        skip_modules: Collection[str] = (),
        label: str = "alias",
    ) -> None:
        """Append a search for module globals that are the original; all of them run when the patches are in place.

        Modules of concagent, and objects in ``sys.modules`` that are not plain modules, are never touched.

        Args:
            original: Looked for by identity.
            replacement: Put in place of each copy.
            skip_modules: Names of modules to leave alone, such as those that define the original.
            label: Name of the scan in error messages; a found copy is called ``module.name``.
        """
        self._steps.append(AliasScan(original, replacement, skip_modules, label))

    @property
    def applied(self) -> bool:
        """Return whether anything is applied."""
        return bool(self._done)

    def labels(self) -> tuple[str, ...]:
        """Return the labels of what is applied, in order, found aliases included."""
        found: list[str] = []
        for step in self._done:
            found += [patch.label for patch in step.found] if isinstance(step, AliasScan) else [step.label]
        return tuple(found)

    def apply(self) -> None:
        """Apply all steps in order, the searches for copies last, or none.

        Raises:
            PatchError: One step failed; those before it were undone in reverse order.
        """
        applied_now: list[Step] = []
        coming = [step for step in self._steps if step not in self._done]
        scans = [step for step in coming if isinstance(step, AliasScan)]
        for step in [*(step for step in coming if not isinstance(step, AliasScan)), *scans]:
            try:
                if scans and step is scans[0]:
                    AliasScan.look(scans)
                step.apply()
            except BaseException as error:  # also a KeyboardInterrupt must not leave half a set
                failures = self._undo(applied_now)
                message = (
                    str(error)
                    if isinstance(error, PatchError)
                    else (f"cannot patch {step.label}: {type(error).__name__}: {error}; nothing was patched")
                )
                if failures:
                    message += "; and undoing failed: " + "; ".join(failures)
                if not isinstance(error, Exception):
                    raise
                raise PatchError(message) from error
            applied_now.append(step)
        self._done += coming

    def restore(self) -> None:
        """Undo every step in reverse order; what fails does not stop the others.

        Raises:
            PatchError: Lists every step that could not be undone.  Those stay applied and are tried by the next call.
        """
        done, self._done = self._done, []
        failures = self._undo(done)
        scans = [step for step in done if isinstance(step, AliasScan)]
        seen = AliasScan.look_back(scans)
        for scan in scans:
            try:
                scan.sweep(seen)
            except PatchError as error:
                failures.append(str(error))
        self.foreign = tuple(self._foreign_of(done))
        if failures:
            count = f"{len(failures)} of {len(done)} patches could not be restored"
            raise PatchError(f"{count}: " + "; ".join(failures))

    def _undo(self, steps: list[Step]) -> list[str]:
        failures: list[str] = []
        kept: list[Step] = []
        for step in reversed(steps):
            try:
                step.restore()
            except PatchError as error:
                failures.append(str(error))
                kept.append(step)
            except Exception as error:  # noqa: BLE001  a border: nothing may stop the restore of the others
                failures.append(f"cannot restore {step.label}: {type(error).__name__}: {error}")
                kept.append(step)
        self._done += reversed(kept)
        return failures

    def _foreign_of(self, steps: list[Step]) -> list[str]:
        patches: list[Step] = []
        for step in steps:
            patches += step.found if isinstance(step, AliasScan) else [step]
        return [patch.label for patch in patches if isinstance(patch, Patch) and patch.foreign is not None]
