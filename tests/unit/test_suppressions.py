"""Suppressions: what a line means, what is wrong with one, and that none hides more than it says."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concagent.errors import ConfigError
from concagent.model import KINDS, CallSite, Finding, FindingActor, FindingResource, Holder, StackFrame
from concagent.suppressions import Suppression, Verdict, judge, line_for, matches, parse

TODAY = date(2026, 7, 1)


def actor(
    name: str, *functions: str, role: str = "member", holds: str = "", waits_for: str | None = None
) -> FindingActor:
    stack = tuple(
        StackFrame(f"/srv/app/{function.partition('.')[0].lower()}.py", 7, function) for function in functions
    )
    return FindingActor(
        id=f"1/{name}",
        type="thread",
        pid=1,
        native_id=None,
        name=name,
        daemon=False,
        holds=(holds,) if holds else (),
        waits_for=waits_for,
        role=role,
        stack=stack,
    )


def finding(kind: str = "deadlock", **changes: object) -> Finding:
    """Return a ring of two with a third thread behind it."""
    made = CallSite("/srv/app/locks.py", 3, "make_locks")
    whole = Finding(
        kind=kind,
        resource_kind="lock",
        confidence="proven",
        id="f1",
        fingerprint="abc123",
        time=1.0,
        pid=1,
        title="a ring",
        actors=(
            actor("t1", "main", "Bank.transfer", holds="r1", waits_for="r2"),
            actor("t2", "worker", "Bank.audit", role="victim", holds="r2", waits_for="r1"),
            actor("t3", "Report.run", role="behind", holds="r3", waits_for="r1"),
        ),
        resources=(
            FindingResource(
                "r1", "lock", "orders", made, (Holder("1/t1", CallSite("/srv/app/take.py", 9, "take"), 1.0),)
            ),
            FindingResource("r2", "lock", None, made, (Holder("1/t2", None, None),)),
            FindingResource("r3", "lock", "printer", CallSite("/srv/app/printer.py", 1, "<module>")),
        ),
    )
    return whole.with_changes(**changes)


def one(line: str) -> Suppression:
    (suppression,) = parse(line, "known.txt", TODAY)
    return suppression


def hides(words: str, subject: Finding | None = None, kind: str = "deadlock") -> bool:
    return matches(one(f"{kind}: {words} reason=x"), subject or finding())


def test_a_line_with_everything_is_read() -> None:
    line = 'deadlock: lock=orders  file=*/bank.py  frame=Bank.transfer*  reason="known, #123"  expires=2027-01-31'

    assert one(line) == Suppression(
        filename="known.txt",
        line=1,
        kind="deadlock",
        reason="known, #123",
        frames=("Bank.transfer*",),
        locks=("orders",),
        files=("*/bank.py",),
        expires=date(2027, 1, 31),
    )


def test_comments_and_blank_lines_do_not_count_but_their_lines_are_numbered() -> None:
    text = "\ufeff# known\r\n\r\n  deadlock: lock=a#b reason=x  # why not\r\n\t\n*: fingerprint=ff reason=y # z"

    first, second = parse(text, "known.txt", TODAY)

    assert (first.line, first.locks, first.reason) == (3, ("a#b",), "x")
    assert (second.line, second.kind, second.fingerprint, second.reason) == (5, "*", "ff", "y")


def test_an_empty_file_has_no_suppressions() -> None:
    assert parse("", "known.txt", TODAY) == ()


def test_quoted_values_may_have_quotes_and_backslashes() -> None:
    suppression = one(r'deadlock: frame="a \"b\" \\ c\d" reason="say \"no\""')

    assert suppression.frames == (r'a "b" \ c\d',)
    assert suppression.reason == 'say "no"'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("frame=a reason=x", "no kind at the beginning"),
        ("deadlock frame=a reason=x", "no kind at the beginning"),
        (": frame=a reason=x", "no kind at the beginning"),
        ("deadlok: frame=a reason=x", "unknown kind 'deadlok', did you mean deadlock?"),
        ("qqqq: frame=a reason=x", "unknown kind 'qqqq'; allowed: "),
        ("deadlock: frame=a", "there is no reason"),
        ('deadlock: frame=a reason=""', "reason= is empty"),
        ('deadlock: frame=a reason="  "', "reason= is empty"),
        ("deadlock: frame= reason=x", "frame= is empty"),
        ("deadlock: reason=x", "nothing says which findings are meant"),
        ("deadlock: expires=2027-01-01 reason=x", "nothing says which findings are meant"),
        ("deadlock: frmae=a reason=x", "unknown word 'frmae', did you mean frame?"),
        ("deadlock: thread=a reason=x", "unknown word 'thread'"),
        ("deadlock: frame=a reason=x reason=y", "reason= is given twice"),
        ("deadlock: fingerprint=a fingerprint=b reason=x", "fingerprint= is given twice"),
        ("deadlock: frame=a known reason=x", "cannot read 'known reason=x'"),
        ('deadlock: frame=a reason="no end', "cannot read"),
        ('deadlock: frame=a reason="x"y', "cannot read"),
        ("deadlock: frame=a reason=x expires=soon", "expires=soon is not a date"),
        ("deadlock: frame=a reason=x expires=2027-02-30", "expires=2027-02-30 is not a date"),
        ("deadlock: frame=a reason=x expires=20270131", "expires=20270131 is not a date"),
        ("deadlock: frame=a reason=x expires=2207-01-31", "expires=2207-01-31 is not a date"),
    ],
)
def test_what_is_not_understood_is_an_error_with_its_line_number(line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"# header\n\n{line}\n", "known.txt", TODAY)

    error = caught.value
    assert str(error).startswith(f"known.txt:3: {problem}")
    assert (error.option, error.value) == ("suppressions", line)
    assert error.allowed


@given(
    st.text(max_size=60) | st.from_regex(r'(deadlock|\*): ((frame|reason|lock)=("[^"]*"|\w+) ?){0,3}', fullmatch=True)
)
def test_any_text_is_read_or_is_a_config_error_with_a_line_number(text: str) -> None:
    try:
        message = f"known.txt:{len(parse(text, 'known.txt', TODAY))}"
    except ConfigError as error:
        message = str(error)

    assert message.startswith("known.txt:")


@pytest.mark.parametrize(
    "pattern", ["Bank.transfer", "transfer", "Bank.*", "*/bank.py:Bank.transfer", "*/bank.py:transfer"]
)
def test_M02_a_function_anywhere_in_a_stack_of_the_cycle_suppresses(pattern: str) -> None:  # noqa: N802
    assert hides(f"frame={pattern}")


@pytest.mark.parametrize(
    "pattern", ["Bank.close", "BANK.TRANSFER", "trans", "*/other.py:transfer", "Report.run", "run"]
)
def test_M02_another_function_does_not(pattern: str) -> None:  # noqa: N802
    assert not hides(f"frame={pattern}")


def test_the_victims_stack_counts_too() -> None:
    assert hides("frame=worker")


def test_a_frame_of_a_thread_behind_the_cycle_does_not_count() -> None:
    assert not hides("frame=Report.run")
    assert not hides("lock=printer")
    assert not hides("file=*/printer.py")


def test_a_lock_shared_with_a_thread_behind_counts() -> None:
    assert hides("lock=orders")


def test_a_lock_is_known_by_its_name_or_its_class() -> None:
    assert hides("lock=ord*")
    assert hides("lock=*/locks.py:3")
    assert not hides("lock=*/locks.py:4")


def test_the_sites_where_locks_were_made_and_taken_count_as_frames() -> None:
    assert hides("frame=make_locks")
    assert hides("frame=take file=*/take.py")


def test_the_site_where_a_thread_behind_took_a_lock_does_not_count() -> None:
    behind = CallSite("/srv/app/behind.py", 1, "behind")
    resource = FindingResource("r1", "semaphore", "s", None, (Holder("1/t3", behind, 1.0),))

    assert not hides("frame=behind", finding(resources=(resource,)))


def test_all_that_a_line_names_must_match() -> None:
    assert hides("frame=transfer frame=audit lock=orders file=*/bank.py fingerprint=abc123")
    assert not hides("frame=transfer frame=nothing")
    assert not hides("frame=transfer lock=nothing")
    assert not hides("frame=transfer file=nothing")
    assert not hides("frame=transfer fingerprint=abc12")


def test_M03_a_line_for_deadlocks_does_not_hide_a_leak() -> None:  # noqa: N802
    assert not hides("frame=transfer fingerprint=abc123", finding("leak"))


def test_a_line_for_all_kinds_hides_any() -> None:
    assert all(hides("frame=transfer", finding(kind), kind="*") for kind in KINDS)


def test_a_leak_without_actors_is_known_by_its_creation_site() -> None:
    made = CallSite("/srv/app/files.py", 5, "load")
    leak = finding("leak", actors=(), resources=(FindingResource("r9", "file", "/tmp/x", made),))

    assert hides("file=*/files.py frame=load lock=/tmp/*", leak, kind="leak")


def test_a_thread_that_holds_and_does_not_wait_is_a_member_too() -> None:
    subject = finding("long-hold", actors=(actor("t1", "slow", holds="r1"),))

    assert hides("frame=slow lock=orders", subject, kind="long-hold")


def test_the_stacks_of_a_prediction_count() -> None:
    edge = {
        "from": "a",
        "times": 3,
        "site": {"file": "a.py", "line": 1},
        "stacks": [[{"file": "p.py", "function": "plan"}]],
    }
    predicted = finding("lock-order-inversion", actors=(), order=(edge,))

    assert hides("frame=p.py:plan", predicted, kind="lock-order-inversion")
    assert not hides("file=a.py", predicted, kind="lock-order-inversion")


def test_a_finding_that_no_line_matches_is_reported_as_it_is() -> None:
    verdict = judge(parse("deadlock: frame=nothing reason=x", "known.txt", TODAY), finding(), TODAY)

    assert verdict == Verdict(suppressed=False)
    assert verdict.apply(finding()) == finding()


def test_a_suppressed_finding_is_marked_and_names_the_line() -> None:
    verdict = judge(parse("\ndeadlock: frame=transfer reason=x", "known.txt", TODAY), finding(), TODAY)

    assert verdict.suppressed
    assert verdict.by is not None
    assert verdict.by.line == 2
    assert verdict.apply(finding()) == finding(suppressed=True)


def test_M06_an_expired_line_hides_nothing_and_is_named() -> None:  # noqa: N802
    lines = parse('deadlock: frame=transfer reason="known, #123" expires=2026-06-30', "known.txt", TODAY)

    verdict = judge(lines, finding(reason="because"), TODAY)

    note = "the suppression in known.txt:1 (known, #123) has expired: its last day was 2026-06-30"
    assert verdict == Verdict(suppressed=False, by=lines[0], note=note)
    assert verdict.apply(finding(reason="because")).reason == f"because; {note}"
    assert verdict.apply(finding()).reason == note


def test_on_its_last_day_a_line_still_hides() -> None:
    lines = parse("deadlock: frame=transfer reason=x expires=2026-07-01", "known.txt", TODAY)

    assert judge(lines, finding(), TODAY).suppressed
    assert not judge(lines, finding(), TODAY + timedelta(days=1)).suppressed


def test_a_line_in_force_wins_over_expired_ones_before_it() -> None:
    text = "deadlock: frame=transfer reason=old expires=2020-01-01\ndeadlock: frame=audit reason=new"

    verdict = judge(parse(text, "known.txt", TODAY), finding(), TODAY)

    assert verdict.suppressed
    assert verdict.by is not None
    assert verdict.by.reason == "new"


def test_of_two_expired_lines_the_first_is_named() -> None:
    text = "deadlock: frame=audit reason=a expires=2020-01-01\ndeadlock: frame=audit reason=b expires=2020-01-01"

    verdict = judge(parse(text, "known.txt", TODAY), finding(), TODAY)

    assert verdict.by is not None
    assert verdict.by.line == 1


printable = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1)
fingerprints = st.from_regex(r"[0-9a-f]{16}", fullmatch=True) | printable.filter(str.strip)


@given(kind=st.sampled_from(KINDS), fingerprint=fingerprints)
def test_the_line_for_a_finding_suppresses_it_as_it_stands(kind: str, fingerprint: str) -> None:
    subject = finding(kind, fingerprint=fingerprint)

    assert judge(parse(line_for(subject), "known.txt", TODAY), subject, TODAY).suppressed


@given(kinds=st.permutations(KINDS), prints=st.lists(fingerprints, min_size=2, max_size=2, unique=True))
def test_the_line_for_a_finding_suppresses_no_other(kinds: list[str], prints: list[str]) -> None:
    subject = finding(kinds[0], fingerprint=prints[0])

    lines = parse(line_for(subject), "known.txt", TODAY)

    assert not judge(lines, finding(kinds[1], fingerprint=prints[0]), TODAY).suppressed
    assert not judge(lines, finding(kinds[0], fingerprint=prints[1]), TODAY).suppressed


def test_the_line_for_a_finding_is_still_good_when_its_reason_is_filled_in() -> None:
    line = line_for(finding())

    assert line == 'deadlock: fingerprint=abc123  reason="..."'
    assert one(line.replace("...", "known, #123")).reason == "known, #123"
