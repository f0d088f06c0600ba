"""Promises of ``hooks.patching``: all or nothing, everything comes back, strangers are left alone."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from functools import partial

import pytest

from concagent.errors import PatchError
from concagent.hooks import patching
from concagent.hooks.patching import Patch, PatchSet, Switch


class Base:
    """A class whose attributes the tests replace."""

    def inherited(self) -> str:
        """Return who was called."""
        return "base"


class Target(Base):
    """Own attributes of every kind that reads back bound."""

    __slots__ = ("slot",)

    def method(self) -> str:
        """Return who was called."""
        return "original"

    @staticmethod
    def static() -> str:
        """Return who was called."""
        return "original"

    @classmethod
    def of_class(cls) -> str:
        """Return who was called."""
        return "original"


class Stubborn(types.ModuleType):
    """A module that lets its attributes be set only while ``open`` is true."""

    def __setattr__(self, name: str, value: object) -> None:
        if not self.__dict__.get("gate", True):
            raise RuntimeError("no")
        super().__setattr__(name, value)


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    made = types.ModuleType("patching_example")
    made.value = "original"  # type: ignore[attr-defined]
    sys.modules["patching_example"] = made
    yield made
    del sys.modules["patching_example"]


@pytest.fixture
def stubborn() -> Stubborn:
    made = Stubborn("stubborn")
    made.value = "original"
    return made


def test_patch_replaces_and_restores_a_module_attribute(module: types.ModuleType) -> None:
    patch = Patch(module, "value", "ours", "example.value")

    patch.apply()
    during = module.value
    patch.restore()

    assert (during, module.value) == ("ours", "original")


def test_patch_applied_twice_still_knows_the_original(module: types.ModuleType) -> None:
    patch = Patch(module, "value", "ours", "example.value")

    patch.apply()
    patch.apply()
    original = patch.original
    patch.restore()
    patch.restore()

    assert original == "original"
    assert module.value == "original"
    assert patch.original is None


@pytest.mark.parametrize("name", ["method", "static", "of_class", "slot"])
def test_class_attribute_comes_back_as_the_very_same_object(name: str) -> None:
    before = Target.__dict__[name]
    patch = Patch(Target, name, lambda *_: "ours", f"Target.{name}")

    patch.apply()
    during = Target.__dict__[name]
    patch.restore()

    assert during is not before
    assert Target.__dict__[name] is before


def test_inherited_attribute_is_deleted_again() -> None:
    patch = Patch(Target, "inherited", lambda _: "ours", "Target.inherited")

    patch.apply()
    during = Target().inherited()
    patch.restore()

    assert during == "ours"
    assert "inherited" not in Target.__dict__
    assert Target().inherited() == "base"


def test_instance_with_dict_can_be_patched() -> None:
    instance = Base()
    patch = Patch(instance, "inherited", lambda: "ours", "instance.inherited")

    patch.apply()
    during = instance.inherited()
    patch.restore()

    assert during == "ours"
    assert vars(instance) == {}


def test_missing_attribute_is_refused_with_its_label(module: types.ModuleType) -> None:
    patch = Patch(module, "nothing", "ours", "example.nothing")

    with pytest.raises(PatchError, match=r"cannot patch example\.nothing: AttributeError.*; install concagent"):
        patch.apply()

    assert not hasattr(module, "nothing")


def test_owner_without_dict_is_refused() -> None:
    with pytest.raises(PatchError, match="has no __dict__"):
        Patch(1, "real", 2, "int.real").apply()


def test_immutable_type_is_refused() -> None:
    with pytest.raises(PatchError, match=r"cannot patch int\.real"):
        Patch(int, "real", 2, "int.real").apply()


def test_owner_that_swallows_assignments_is_refused() -> None:
    class Swallows(types.ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            self.__dict__[name] = (value,)

    owner = Swallows("swallows")
    owner.__dict__["value"] = "original"

    with pytest.raises(PatchError, match="does not keep"):
        Patch(owner, "value", "ours", "swallows.value").apply()


def test_set_is_rolled_back_in_reverse_when_one_patch_fails(module: types.ModuleType) -> None:
    log: list[str] = []
    patches = PatchSet()
    for name in "ab":
        patches.add(Switch(name, partial(log.append, "+" + name), partial(log.append, "-" + name)))
    patches.add(
        Patch(module, "value", "ours", "example.value"),
        Patch(module, "nothing", 1, "example.nothing"),
    )

    with pytest.raises(PatchError, match=r"example\.nothing"):
        patches.apply()

    assert log == ["+a", "+b", "-b", "-a"]
    assert module.value == "original"
    assert not patches.applied


def test_set_can_be_applied_again_after_restore(module: types.ModuleType) -> None:
    patches = PatchSet()
    patches.add(Patch(module, "value", "ours", "example.value"))

    patches.apply()
    patches.restore()
    patches.apply()
    during = module.value
    patches.restore()

    assert during == "ours"
    assert module.value == "original"


def test_applying_a_set_twice_applies_only_what_is_new(module: types.ModuleType) -> None:
    patches = PatchSet()
    patches.add(Patch(module, "value", "ours", "example.value"))
    patches.apply()
    module.other = "original"  # type: ignore[attr-defined]
    patches.add(Patch(module, "other", "ours", "example.other"))

    patches.apply()
    labels = patches.labels()
    patches.restore()

    assert labels == ("example.value", "example.other")
    assert (module.value, module.other) == ("original", "original")


def test_interrupt_while_applying_rolls_back_and_stays_an_interrupt(
    module: types.ModuleType,
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    patches = PatchSet()
    patches.add(Patch(module, "value", "ours", "example.value"), Switch("signal", interrupted, lambda: None))

    with pytest.raises(KeyboardInterrupt):
        patches.apply()

    assert module.value == "original"


def test_failing_switch_names_itself() -> None:
    patches = PatchSet()
    patches.add(Switch("the switch", lambda: 1 / 0, lambda: None))

    with pytest.raises(PatchError, match="cannot patch the switch: ZeroDivisionError"):
        patches.apply()


def test_failing_rollback_is_part_of_the_message(module: types.ModuleType) -> None:
    patches = PatchSet()
    patches.add(
        Switch("one way", lambda: None, lambda: 1 / 0),
        Patch(module, "nothing", 1, "example.nothing"),
    )

    with pytest.raises(PatchError, match=r"example\.nothing.*and undoing failed: cannot restore one way"):
        patches.apply()


def test_failing_restore_does_not_stop_the_others(module: types.ModuleType, stubborn: Stubborn) -> None:
    patches = PatchSet()
    patches.add(
        Patch(module, "value", "ours", "example.value"),
        Patch(stubborn, "value", "ours", "stubborn.value"),
        Switch("one way", lambda: None, lambda: 1 / 0),
    )
    patches.apply()
    stubborn.__dict__["gate"] = False

    with pytest.raises(PatchError) as caught:
        patches.restore()

    assert module.value == "original"
    assert "2 of 3 patches" in str(caught.value)
    assert "cannot restore stubborn.value: RuntimeError: no" in str(caught.value)
    assert "cannot restore one way: ZeroDivisionError" in str(caught.value)


def test_failed_restore_is_tried_again_by_the_next_call(stubborn: Stubborn) -> None:
    patches = PatchSet()
    patches.add(Patch(stubborn, "value", "ours", "stubborn.value"))
    patches.apply()
    stubborn.__dict__["gate"] = False
    with pytest.raises(PatchError):
        patches.restore()
    stubborn.__dict__["gate"] = True

    patches.restore()

    assert stubborn.value == "original"
    assert not patches.applied


def test_stranger_that_patched_over_us_is_left_alone_and_reported(module: types.ModuleType) -> None:
    patches = PatchSet()
    patches.add(Patch(module, "value", "ours", "example.value"))
    patches.apply()
    module.value = "theirs"  # type: ignore[attr-defined]

    patches.restore()

    assert module.value == "theirs"
    assert patches.foreign == ("example.value",)


def test_attribute_deleted_by_a_stranger_stays_deleted(module: types.ModuleType) -> None:
    patches = PatchSet()
    patches.add(Patch(module, "value", "ours", "example.value"))
    patches.apply()
    del module.value

    patches.restore()

    assert not hasattr(module, "value")
    assert patches.foreign == ("example.value",)


def test_alias_scan_patches_copies_taken_before(module: types.ModuleType) -> None:
    original, ours = object(), object()
    module.copied = original  # type: ignore[attr-defined]
    patches = PatchSet()
    patches.add_alias_scan(original, ours)

    patches.apply()
    during, labels = module.copied, patches.labels()
    patches.restore()

    assert during is ours
    assert labels == ("patching_example.copied",)
    assert module.copied is original


def test_alias_scan_also_undoes_copies_taken_meanwhile(module: types.ModuleType) -> None:
    original, ours = object(), object()
    patches = PatchSet()
    patches.add_alias_scan(original, ours)
    patches.apply()
    module.late = ours  # type: ignore[attr-defined]

    patches.restore()

    assert module.late is original


def test_all_scans_go_through_the_modules_once(module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, looks = object(), object(), []
    module.one, module.two, module.three = first, second, first  # type: ignore[attr-defined]
    monkeypatch.setattr(patching, "_copies", lambda wanted, look=patching._copies: looks.append(1) or look(wanted))
    patches = PatchSet()
    patches.add_alias_scan(first, "ours")
    patches.add(Patch(module, "made_later", "x", "later"))
    patches.add_alias_scan(second, "ours, too")
    module.made_later = second  # type: ignore[attr-defined]

    patches.apply()
    applied = vars(module).copy()
    patches.restore()

    assert [applied[name] for name in ("one", "two", "three", "made_later")] == ["ours", "ours, too", "ours", "x"]
    assert (module.one, module.two, module.three, module.made_later) == (first, second, first, second)
    assert len(looks) == 2


def test_a_scan_that_cannot_replace_a_copy_undoes_those_before(module: types.ModuleType) -> None:
    class Fails:
        label = "fails"

        def apply(self) -> None:
            raise RuntimeError("no")

        def restore(self) -> None:
            raise AssertionError

    original = object()
    module.one = original  # type: ignore[attr-defined]
    patches = PatchSet()
    patches.add_alias_scan(original, "ours")
    patches.add(Fails())

    with pytest.raises(PatchError):
        patches.apply()

    assert module.one is original
    assert not patches.applied


def test_alias_scan_skips_named_modules_and_our_own(module: types.ModuleType) -> None:
    original, ours = object(), object()
    own = types.ModuleType("concagent.patching_example")
    own.copied = module.copied = original  # type: ignore[attr-defined]
    sys.modules[own.__name__] = own
    patches = PatchSet()
    patches.add_alias_scan(original, ours, skip_modules={"patching_example"})

    patches.apply()
    del sys.modules[own.__name__]
    during = (module.copied, own.copied)
    patches.restore()

    assert during == (original, original)


def test_alias_scan_never_wakes_a_lazy_module() -> None:
    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> object:
            raise AssertionError(f"the scan asked for {name}")

    original = object()
    sys.modules["patching_lazy"] = Lazy("patching_lazy")
    patches = PatchSet()
    patches.add_alias_scan(original, object())

    try:
        patches.apply()
        labels = patches.labels()
        patches.restore()
    finally:
        del sys.modules["patching_lazy"]

    assert labels == ()


def test_alias_that_a_stranger_replaced_is_reported(module: types.ModuleType) -> None:
    original, ours = object(), object()
    module.copied = original  # type: ignore[attr-defined]
    patches = PatchSet()
    patches.add_alias_scan(original, ours)
    patches.apply()
    module.copied = "theirs"  # type: ignore[attr-defined]

    patches.restore()

    assert module.copied == "theirs"
    assert patches.foreign == ("patching_example.copied",)


def test_restore_without_apply_does_nothing() -> None:
    patches = PatchSet()
    patches.add_alias_scan(object(), object())
    patches.add(Switch("never", lambda: None, lambda: 1 / 0))

    patches.restore()

    assert patches.foreign == ()
