"""The scene that findings are made from, and fingerprints."""

from __future__ import annotations

from dataclasses import replace

import pytest
from factories import holds, resource, site, snapshot, waits

from concagent.detectors.evidence import Scene, common_kind, names, short
from concagent.detectors.fingerprint import fingerprint, place, short_file
from concagent.model import CallSite


def test_an_actor_of_a_finding_says_what_it_holds_and_since_when_it_waits():
    picture = snapshot(waits(1, 10, since_ns=0), holds(1, 20), holds(1, 30))

    found = Scene(picture).finding_actor(1, "member")

    assert (found.waits_for, found.holds, found.timed) == ("r10", ("r20", "r30"), False)
    assert found.waiting_since == picture.wall_seconds - 1.0


def test_an_actor_that_does_not_wait_waits_for_nothing():
    found = Scene(snapshot(holds(1, 20))).finding_actor(1, "bystander")

    assert (found.waits_for, found.waiting_since) == (None, None)


def test_a_resource_of_a_finding_lists_every_holder():
    picture = snapshot(holds(1, 10, since_ns=0), holds(2, 10, since_ns=None, site=None), kinds={10: "semaphore"})

    found = Scene(picture).finding_resource(10)

    assert [(one.actor, one.since) for one in found.holders] == [("4711/t1", None), ("4711/t2", None)]


def test_sites_of_who_does_not_wait_are_none():
    assert Scene(snapshot(holds(1, 10))).sites([1]) == []


def test_labels_prefer_the_name_then_the_place_then_the_kind():
    picture = snapshot(resources=(resource(1, name="orders"), resource(2, "event"), resource(3, "queue", created=None)))

    labels = [Scene(picture).label(serial) for serial in (1, 2, 3)]

    assert labels == ['lock "orders"', "event made at bank.py:2 in __init__", "queue"]


def test_a_short_site_has_no_folders_of_any_system():
    assert short(CallSite(r"C:\shop\bank.py", 3, "f")) == "bank.py:3 in f"


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [
        (["lock", "lock"], "lock"),
        (["thread", "rlock"], "rlock"),
        (["thread", "thread"], "thread"),
        (["event", "lock"], "event"),
        ([], "lock"),
    ],
)
def test_the_common_kind_is_the_first_that_is_no_thread(kinds, kind):
    assert common_kind(kinds) == kind


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "nobody"),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_names_are_listed_as_people_list_them(values, text):
    assert names(values) == text


# ---------------------------------------------------------------- fingerprints


def test_a_fingerprint_ignores_order_repetition_and_leading_folders():
    here, there = site(1), site(2)
    elsewhere = replace(here, file="C:\\venv\\shop\\bank.py")

    one = fingerprint("deadlock", "lock", None, [here, there])

    assert one == fingerprint("deadlock", "lock", None, [there, elsewhere, there])
    assert len(one) == 16


@pytest.mark.parametrize(
    "other",
    [
        ("stall", "lock", None, [site(1)]),
        ("deadlock", "rlock", None, [site(1)]),
        ("deadlock", "lock", "detail", [site(1)]),
        ("deadlock", "lock", None, [site(2)]),
        ("deadlock", "lock", None, [site(1), None]),
        ("deadlock", "lock", None, [site(1, "other")]),
    ],
)
def test_a_fingerprint_tells_defects_apart(other):
    assert fingerprint("deadlock", "lock", None, [site(1)]) != fingerprint(*other)


def test_places_are_the_same_on_all_machines():
    assert place(site(7, "f")) == "shop/bank.py:7:f"
    assert place(None) == "unknown"
    assert short_file("bank.py") == "bank.py"
