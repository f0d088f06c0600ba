"""The nouns, and the errors that carry them."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError

import pytest
from factories import actor, resource, ring_of, site, snapshot

from concagent import errors
from concagent.detectors import deadlock
from concagent.model import SCHEMA, FindingResource, Holder, Resource


def test_a_call_site_reads_as_in_all_reports():
    assert str(site(12, "take")) == "/srv/shop/bank.py:12 in take"


def test_ids_are_serials():
    assert (actor(3).id, resource(4).id) == ("4711/t3", "r4")


@pytest.mark.parametrize(
    ("lock", "lock_class"),
    [
        (Resource(1, "lock", "orders", site(12)), "orders"),
        (Resource(1, "lock", None, site(12)), "/srv/shop/bank.py:12"),
        (Resource(1, "lock", None, None), "unknown"),
    ],
)
def test_a_lock_class_is_the_name_else_the_place(lock, lock_class):
    assert lock.lock_class == lock_class


def test_a_snapshot_finds_its_actors_and_resources():
    picture = ring_of(1, 2)

    assert picture.actor(2).name == "worker-2"
    assert picture.resource(20).kind == "lock"


@pytest.mark.parametrize("look", ["actor", "resource"])
def test_a_serial_that_is_not_listed_is_an_error(look):
    with pytest.raises(KeyError):
        getattr(ring_of(1, 2), look)(99)


def test_wall_and_monotonic_clock_convert_into_each_other():
    picture = snapshot(monotonic_ns=5 * 10**9, wall_seconds=100.0)

    assert picture.wall(3 * 10**9) == 98.0


def test_a_finding_is_one_json_object_of_the_wire_format():
    finding = deadlock.ring_finding(ring_of(1, 2), (1, 2))

    written = json.loads(json.dumps(finding.to_dict()))

    assert written["schema"] == SCHEMA
    assert [(a["id"], a["waits_for"], a["holds"], a["role"]) for a in written["actors"]] == [
        ("4711/t1", "r20", ["r10"], "member"),
        ("4711/t2", "r10", ["r20"], "member"),
    ]
    assert written["actors"][0]["stack"][0]["source"] == "step()"
    assert written["resources"][0]["holders"][0]["acquired"]["line"] == 301
    assert written["edges"][0] == ["4711/t1", "waits", "r20"]
    assert "suppressed" not in written


def test_what_is_not_known_is_null():
    written = FindingResource("r1", "lock", holders=(Holder("4711/t1", None, None),)).to_dict()

    assert written["created"] is None
    assert written["holders"] == [{"actor": "4711/t1", "acquired": None, "since": None}]


def test_a_finding_is_a_value():
    finding = deadlock.ring_finding(ring_of(1, 2), (1, 2))

    changed = finding.with_changes(count=2)

    assert (finding.count, changed.count) == (1, 2)
    assert pickle.loads(pickle.dumps(finding)) == finding
    with pytest.raises(FrozenInstanceError):
        finding.count = 3


def test_a_config_error_is_a_value_error_that_keeps_its_parts():
    error = errors.ConfigError("bad", option="core", value="'x'", allowed="c, python")

    assert isinstance(error, ValueError)
    assert (str(error), error.option, error.value, error.allowed) == ("bad", "core", "'x'", "c, python")


def test_a_deadlock_error_is_a_runtime_error_that_keeps_its_finding():
    finding = deadlock.ring_finding(ring_of(1, 2), (1, 2))

    error = errors.DeadlockError("stuck", finding)

    assert isinstance(error, RuntimeError)
    assert error.finding is finding


def test_every_error_has_a_slug_of_its_own():
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.ConcagentError)]

    assert len({kind.slug for kind in kinds}) == len(kinds)
