"""Reachability: each way to wait, and each way to refer to what is awaited, as "reached" and as its unreachable twin."""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import contextvars
import ctypes
import functools
import gc
import itertools
import os
import queue
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from concagent import _pyreach, _real, core, reach
from concagent.model import Actor, RequestEdge, Resource, Snapshot

C = core._load_c()[0] if os.environ.get("CONCAGENT_CORE") != "python" else None
needs_c = pytest.mark.skipif(C is None, reason="the C core is not built")
TWINS = [pytest.param(_pyreach, id="python"), pytest.param(C, id="c", marks=needs_c)]
BOX: list[Any] = []  # what a module global holds


@pytest.fixture(autouse=True)
def _empty_box() -> Iterator[None]:
    """Forget what a test has put into the box."""
    yield
    BOX.clear()


Publish = Callable[[Any], None]


class Stuck:
    """A thread that runs ``body(publish)`` and blocks; ``publish(target)`` tells the test what it is going to wait for."""

    def __init__(self, body: Callable[[Publish], object], release: Callable[[Any], None], **started: Any) -> None:
        self.targets: dict[int, tuple[object, ...]] = {}
        self.release = release
        self.thread = threading.Thread(target=body, args=(self.publish,), daemon=True, **started)

    def publish(self, target: object) -> None:
        self.targets[1] = reach.signal_objects(target)

    def __enter__(self) -> Stuck:
        if self.thread.ident is None:
            self.thread.start()
        assert self.thread.ident is not None
        before, same = None, 0
        while same < 20:  # blocked: at one instruction for a while, with the target told
            now = C.reach_frames(self.thread.ident)
            same = same + 1 if now == before and self.targets else 0
            before = now
            _real.sleep(0.001)
        return self

    def ask(self, *more: Any, **limits: Any) -> reach.Reach:
        return reach.reached(self.targets, [self.thread.ident, *more], twin=C, **limits)

    def __exit__(self, *_: object) -> None:
        self.release(self.targets[1][0])
        self.thread.join(10)
        assert not self.thread.is_alive()


def _notify(condition: Any) -> None:
    with condition:
        condition.notify_all()


def _event(publish: Publish) -> None:
    event = threading.Event()
    publish(event)
    event.wait()


def _condition(publish: Publish) -> None:
    condition = threading.Condition()
    publish(condition)
    with condition:
        condition.wait()


def _condition_for(publish: Publish) -> None:
    condition = threading.Condition()
    publish(condition)
    done: list[int] = []
    with condition:
        condition.wait_for(lambda: done or done.append(1))


def _get(publish: Publish) -> None:
    jobs: queue.Queue[int] = queue.Queue()
    publish(jobs)
    jobs.get()


def _iterated(publish: Publish) -> None:
    jobs: queue.Queue[int] = queue.Queue()
    publish(jobs)
    for _ in iter(jobs.get, 1):
        pass


def _put(publish: Publish) -> None:
    jobs: queue.Queue[int] = queue.Queue(1)
    publish(jobs)
    jobs.put(1)
    jobs.put(2)


def _simple(publish: Publish) -> None:
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    publish(jobs)
    jobs.get()


def _lock(publish: Publish) -> None:
    lock = _real.allocate_lock()
    publish(lock)
    lock.acquire()
    lock.acquire()


def _semaphore(publish: Publish) -> None:
    semaphore = threading.Semaphore(0)
    publish(semaphore)
    semaphore.acquire()


def _future(publish: Publish) -> None:
    from concurrent.futures import Future

    future: Future[int] = Future()
    publish(future)
    future.result()


def _closure(publish: Publish) -> None:
    event = threading.Event()
    publish(event)

    def inner() -> None:
        event.wait()

    inner()


def _method(publish: Publish) -> None:
    class Worker:
        def __init__(self) -> None:
            self.event = threading.Event()
            publish(self.event)

        def run(self) -> None:
            self.event.wait()

    Worker().run()


def _expression(publish: Publish) -> None:
    event = threading.Event()
    publish(event)
    print([event], {"event": event}, (event, [event.wait()]), file=None, sep=str(event.wait()))


def _starred(publish: Publish) -> None:
    def inner(*args: Any, **named: Any) -> None:
        deeper(*args, **named)

    def deeper(event: Any) -> None:
        event.wait()

    event = threading.Event()
    publish(event)
    inner(event)


def _named(publish: Publish) -> None:
    def inner(**named: Any) -> None:
        deeper(**named)

    def deeper(event: Any) -> None:
        event.wait()

    event = threading.Event()
    publish(event)
    inner(event=event)


def _with(publish: Publish) -> None:
    @contextlib.contextmanager
    def waiting(event: Any) -> Iterator[Any]:
        yield event

    event = threading.Event()
    publish(event)
    with waiting(event) as one, contextlib.closing(open(os.devnull)), contextlib.suppress(ValueError):
        one.wait()


def _generator(publish: Publish) -> None:
    def steps(event: Any) -> Iterator[Any]:
        yield 1
        yield event.wait()

    event = threading.Event()
    publish(event)
    for _ in steps(event):
        pass


def _comprehension(publish: Publish) -> None:
    event = threading.Event()
    publish(event)
    _ = [one.wait() for one in (event,) for _ in range(2)]


def _released(target: Any) -> None:
    for name in ("set", "release"):
        if hasattr(target, name) and not hasattr(target, "notify"):
            getattr(target, name)()
            return
    if hasattr(target, "notify"):
        _notify(target)
    elif hasattr(target, "set_result"):
        target.set_result(1)
    elif getattr(target, "maxsize", 0) == 1:
        target.get()
    else:
        target.put(1)


WAYS = [
    _event, _condition, _condition_for, _get, _iterated, _put, _simple, _lock, _semaphore, _future, _closure, _method,
    _expression, _starred, _with, _generator, _comprehension,
]  # fmt: skip
if sys.version_info >= (3, 12):
    WAYS.append(_named)  # before, C code copies named arguments to where nobody sees them


@needs_c
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__[1:])
def test_what_only_the_stuck_thread_refers_to_is_out_of_reach(way: Callable[[Publish], None]) -> None:
    with Stuck(way, _released) as stuck:
        answer = stuck.ask()

    assert (answer.resources, answer.complete) == (frozenset(), True)


@needs_c
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__[1:])
def test_what_a_global_refers_to_as_well_is_reached_whatever_way_it_is_awaited(way: Callable[[Publish], None]) -> None:
    def both(publish: Publish) -> None:
        def publish_and_keep(target: Any) -> None:
            BOX.append({"it": target})
            publish(target)

        way(publish_and_keep)

    with Stuck(both, _released) as stuck:
        answer = stuck.ask()

    assert answer.resources == {1}
    assert f"module global {__name__}.BOX" in answer.paths[1]


@needs_c
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__[1:])
def test_a_thread_that_is_not_stuck_reaches_what_it_has(way: Callable[[Publish], None]) -> None:
    with Stuck(way, _released) as stuck:
        answer = reach.reached(stuck.targets, [], twin=C)

    assert answer.resources == {1}


# ---------------------------------------------------------------- whoever refers to it, it is found


class _Slots:
    __slots__ = ("it",)


class _Plain:
    it: Any = None

    def method(self) -> None: ...


class _Dying:
    def __init__(self, event: Any) -> None:
        self.event = event

    def __del__(self) -> None:
        self.event.set()


VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("VARIABLE")


def _keep_slot(event: Any) -> None:
    one = _Slots()
    one.it = event
    BOX.append(one)


def _keep_attribute(event: Any) -> None:
    one = _Plain()
    one.it = event
    BOX.append(one)


def _keep_class_attribute(event: Any) -> None:
    BOX.append(type("Holder", (), {"it": event}))


def _keep_default(event: Any) -> None:
    def function(it: Any = event) -> Any:
        return it

    BOX.append(function)


def _keep_named_default(event: Any) -> None:
    BOX.append(lambda *, it=event: it)


def _keep_closure(event: Any) -> None:
    BOX.append(lambda: event)


def _keep_generator(event: Any) -> None:
    def steps() -> Iterator[Any]:
        mine = event
        yield 1
        yield mine

    one = steps()
    next(one)
    BOX.append(one)


def _keep_generator_stack(event: Any) -> None:
    def steps(it: Any) -> Iterator[Any]:
        print([it], (yield 1), file=None)

    one = steps(event)
    next(one)
    BOX.append(one)


def _keep_coroutine(event: Any) -> None:
    @types.coroutine
    def pause() -> Iterator[Any]:
        yield

    async def steps(it: Any) -> Any:
        await pause()
        return it

    one = steps(event)
    one.send(None)
    BOX.append(one)


def _keep_cached(event: Any) -> None:
    @functools.lru_cache
    def cached(number: int) -> Any:
        return event if number else None

    cached(1)
    BOX.append(cached)


def _keep_traceback(event: Any) -> None:
    def fails(it: Any) -> None:
        raise ValueError(id(it))

    try:
        fails(event)
    except ValueError as error:
        BOX.append(error)


def _keep_context(event: Any) -> None:
    def run() -> None:
        VARIABLE.set(event)

    context = contextvars.copy_context()
    context.run(run)
    BOX.append(context)


def _keep_at_exit(event: Any) -> None:
    atexit.register(event.set)
    BOX.append(_Finally(atexit.unregister, event.set))


class _Finally:
    """Calls a function when the box is emptied."""

    def __init__(self, function: Callable[..., object], *args: Any) -> None:
        self.call = weakref.finalize(self, function, *args)


def _keep_finalizer(event: Any) -> None:
    class Owner:
        pass

    one = Owner()
    weakref.finalize(one, event.set)
    BOX.append(one)


def _keep_callback(event: Any) -> None:
    class Owner:
        pass

    one = Owner()
    BOX.append(one)
    BOX.append(weakref.ref(one, lambda _: event.set()))


def _keep_c_reference(event: Any) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(event))
    BOX.append(_Finally(ctypes.pythonapi.Py_DecRef, ctypes.py_object(event)))


def _keep_unstarted_thread(event: Any) -> None:
    BOX.append(threading.Thread(target=print, args=(event,)))


def _keep_started_attribute(event: Any) -> None:
    threading.current_thread().it = event  # type: ignore[attr-defined]


def _keep_tuple_of_atoms(event: Any) -> None:
    BOX.append(((event._cond._waiters,),))


def _keep_garbage_with_finalizer(event: Any) -> None:
    one = _Dying(event)
    one.event, one.me = event, one  # type: ignore[attr-defined]


def _keep_garbage_generator(event: Any) -> None:
    def steps(me: list[Any]) -> Iterator[Any]:
        try:
            yield me
        finally:
            event.set()

    me: list[Any] = []
    me.append(steps(me))
    next(me[0])


def _keep_hook(event: Any) -> None:
    BOX.append(threading.excepthook)
    threading.excepthook = functools.partial(print, event)
    BOX.append(_Finally(setattr, threading, "excepthook", threading.__excepthook__))


KEEPERS: dict[str, Callable[[Any], object]] = {
    "list": BOX.append,
    "tuple": lambda event: BOX.append((event,)),
    "dictionary": lambda event: BOX.append({"it": event}),
    "key": lambda event: BOX.append({event: 1}),
    "set": lambda event: BOX.append({event}),
    "deque": lambda event: BOX.append(collections.deque([event])),
    "ordered dictionary": lambda event: BOX.append(collections.OrderedDict(it=event)),
    "chain map": lambda event: BOX.append(collections.ChainMap({"it": event})),
    "read-only mapping": lambda event: BOX.append(types.MappingProxyType({"it": event})),
    "named space": lambda event: BOX.append(types.SimpleNamespace(it=event)),
    "partial": lambda event: BOX.append(functools.partial(print, event)),
    "method": lambda event: BOX.append(event.set),
    "method of a part": lambda event: BOX.append(event._cond.notify_all),
    "slot wrapper": lambda event: BOX.append(event.__repr__),
    "chain": lambda event: BOX.append(itertools.chain([1], [event])),
    "repeat": lambda event: BOX.append(itertools.repeat(event)),
    "tee": lambda event: BOX.append(itertools.tee(iter([event]))),
    "iterator": lambda event: BOX.append(iter([event])),
    "map": lambda event: BOX.append(map(print, [event])),
    "reversed": lambda event: BOX.append(reversed([event])),
    "staticmethod": lambda event: BOX.append(staticmethod(event.set)),
    "property": lambda event: BOX.append(property(event.set)),
    "queue": lambda event: [BOX.append(queue.SimpleQueue()), BOX[0].put(event)],
    "ctypes object": lambda event: BOX.append(ctypes.py_object(event)),
    "ctypes array": lambda event: BOX.append((ctypes.py_object * 1)(event)),
    "weak reference": lambda event: BOX.append(weakref.ref(event)),
    "weak proxy": lambda event: BOX.append(weakref.proxy(event)),
    "weak set": lambda event: BOX.append(weakref.WeakSet([event])),
    "weak values": lambda event: BOX.append(weakref.WeakValueDictionary(it=event)),
    "weak keys": lambda event: BOX.append(weakref.WeakKeyDictionary({event: 1})),
    "weak method": lambda event: BOX.append(weakref.WeakMethod(event.set)),
    "weak reference to a part": lambda event: BOX.append(weakref.ref(event._cond)),
    **{name[6:]: function for name, function in list(globals().items()) if name.startswith("_keep_")},
}


LASTING = {"started_attribute"}  # stays when the box is emptied


def _event_kept_by(keep: Callable[[Any], object]) -> Callable[[Publish], None]:
    def way(publish: Publish) -> None:
        event = threading.Event()
        keep(event)
        publish(event)
        event.wait()

    return way


@needs_c
@pytest.mark.parametrize("keeper", KEEPERS)
def test_whatever_leads_to_an_awaited_object_is_found(keeper: str) -> None:
    gc.collect()
    gc.disable()  # what is garbage is still garbage when it is asked about
    try:
        with Stuck(_event_kept_by(KEEPERS[keeper]), _released) as stuck:
            answer = stuck.ask()
    finally:
        gc.enable()

    assert answer.resources == {1}
    assert answer.paths[1]


@needs_c
@pytest.mark.parametrize("keeper", [name for name in KEEPERS if "garbage" not in name and name not in LASTING], ids=str)
def test_what_was_kept_and_is_no_longer_is_out_of_reach(keeper: str) -> None:
    def keep_and_drop(event: Any) -> None:
        KEEPERS[keeper](event)
        BOX.clear()

    with Stuck(_event_kept_by(keep_and_drop), _released) as stuck:
        gc.collect()
        answer = stuck.ask()

    assert answer.resources == frozenset()


# ---------------------------------------------------------------- frames of other threads


@needs_c
def test_a_local_variable_of_a_live_thread_is_found_and_named() -> None:
    handed: list[Any] = []
    gate, inside = _real.allocate_lock(), _real.allocate_lock()
    gate.acquire()
    inside.acquire()

    def serve() -> None:
        mine = handed.pop()
        inside.release()
        with gate:
            del mine

    with Stuck(_event_kept_by(handed.append), _released) as stuck:
        other = threading.Thread(target=serve, name="server")
        other.start()
        with inside:
            answer = stuck.ask()
        gate.release()
        other.join()
        gc.collect()
        later = stuck.ask()

    assert answer.paths == {1: "local variable 'mine' of serve() in thread server"}
    assert later.resources == frozenset()


@needs_c
def test_two_threads_that_have_each_other_s_event_are_out_of_reach_only_together() -> None:
    events: list[Any] = [threading.Event(), threading.Event()]
    start = events.copy()

    def body(number: int) -> Callable[[Publish], None]:
        def run(publish: Publish) -> None:
            mine, others = events[number], events[1 - number]
            publish(mine)
            gate.wait()
            mine.wait()
            others.set()

        return run

    gate = threading.Barrier(3)
    with contextlib.ExitStack() as stack:
        one, two = (Stuck(body(number), _released) for number in range(2))
        for stuck in (one, two):
            stuck.thread.start()
        gate.wait()
        del start
        events.clear()
        stack.enter_context(one)
        stack.enter_context(two)
        targets = {1: one.targets[1], 2: two.targets[1]}
        both = reach.reached(targets, [one.thread.ident, two.thread.ident], twin=C)
        alone = reach.reached(targets, [one.thread.ident], twin=C)
        del targets

    assert both.resources == frozenset()
    assert alone.resources == {1, 2}


@needs_c
def test_a_thread_local_of_a_live_thread_is_found() -> None:
    local = threading.local()
    handed: list[Any] = []
    gate, inside = _real.allocate_lock(), _real.allocate_lock()
    gate.acquire()
    inside.acquire()

    def serve() -> None:
        local.it = handed.pop()
        inside.release()
        with gate:
            pass

    with Stuck(_event_kept_by(handed.append), _released) as stuck:
        other = threading.Thread(target=serve)
        other.start()
        with inside:
            answer = stuck.ask()
        gate.release()
        other.join()
        later = stuck.ask()

    assert answer.resources == {1}
    assert later.resources == frozenset()


@needs_c
@pytest.mark.parametrize("named", [False, True])
def test_what_a_thread_was_started_with_belongs_to_its_frames(named: bool) -> None:
    if named and sys.version_info < (3, 12):
        pytest.skip("C code copies named arguments to where nobody sees them")

    def work(publish: Publish, event: Any) -> None:
        publish(event)
        event.wait()

    class Started(Stuck):
        def __init__(self) -> None:
            self.targets = {}
            self.release = _released
            event = threading.Event()
            if named:
                self.thread = threading.Thread(target=work, args=(self.publish,), kwargs={"event": event}, daemon=True)
            else:
                self.thread = threading.Thread(target=work, args=(self.publish, event), daemon=True)

    with Started() as stuck:
        answer = stuck.ask()
        running = reach.reached(stuck.targets, [], twin=C)

    assert answer.resources == frozenset()
    assert running.resources == {1}


@needs_c
def test_a_traceback_through_a_stuck_frame_reaches_its_variables() -> None:
    def way(publish: Publish) -> None:
        event = threading.Event()
        publish(event)
        try:
            _ = 1 / len(publish.__name__[:0])
        except ZeroDivisionError as error:
            BOX.append(error)
        event.wait()

    with Stuck(way, _released) as stuck:
        answer = stuck.ask()
        BOX.clear()
        gc.collect()
        later = stuck.ask()

    assert answer.resources == {1}
    assert later.resources == frozenset()


@needs_c
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "keeper", ["weak reference", "weak set", "weak proxy", "closure", "partial", "class_attribute"]
)
def test_what_is_hidden_from_the_collector_is_not_overlooked(keeper: str, frozen: bool) -> None:
    def way(publish: Publish) -> None:
        lock = _real.allocate_lock()
        KEEPERS[keeper](lock)
        publish(lock)
        lock.acquire()
        lock.acquire()

    with Stuck(way, _released) as stuck:
        if frozen:
            gc.freeze()
        try:
            answer = stuck.ask()
        finally:
            gc.unfreeze()

    assert answer.resources == {1}


@needs_c
def test_limits_make_everything_count_as_reached() -> None:
    with Stuck(_event, _released) as stuck:
        by_number = stuck.ask(node_limit=10)
        by_time = stuck.ask(seconds=0.0)

    assert (by_number.resources, by_number.complete) == ({1}, False)
    assert (by_time.resources, by_time.complete) == ({1}, False)


@needs_c
def test_a_thread_that_is_gone_or_unknown_changes_nothing() -> None:
    with Stuck(_event, _released) as stuck:
        answer = stuck.ask(12345)

    assert answer.resources == frozenset()


# ---------------------------------------------------------------- tasks


def _loop_with_task(keep: Callable[[Any], object], targets: dict[int, Any], tasks: list[Any]) -> Any:
    loop = asyncio.new_event_loop()

    async def awaits() -> None:
        future = loop.create_future()
        keep(future)
        targets[1] = reach.signal_objects(future)
        await future

    async def outer() -> None:
        await awaits()

    tasks.append(loop.create_task(outer()))
    loop.run_until_complete(asyncio.sleep(0))
    return loop


# Since 3.14 a suspended frame has borrowed references that Python cannot tell from others, so its twin counts none of them.
EXACT = [TWINS[1]] if sys.version_info >= (3, 14) else TWINS


@pytest.mark.parametrize("twin", EXACT)
def test_a_future_that_only_its_stuck_task_refers_to_is_out_of_reach(twin: Any) -> None:
    targets: dict[int, Any] = {}
    tasks: list[Any] = []
    loop = _loop_with_task(lambda _: None, targets, tasks)
    BOX.append(tuple(tasks))  # as whoever awaits it does

    stuck = reach.reached(targets, tasks, twin=twin, seconds=60)
    running = reach.reached(targets, [], twin=twin, seconds=60)

    targets[1][0].set_result(None)
    loop.run_until_complete(tasks[0])
    loop.close()
    assert (stuck.resources, stuck.complete) == (frozenset(), True)
    assert running.resources == {1}


@pytest.mark.parametrize("twin", TWINS)
def test_a_stuck_task_that_nobody_keeps_will_be_destroyed_and_runs_what_is_in_its_finally(twin: Any) -> None:
    targets: dict[int, Any] = {}
    tasks: list[Any] = []
    loop = _loop_with_task(lambda _: None, targets, tasks)

    answer = reach.reached(targets, tasks, twin=twin, seconds=60)

    targets[1][0].set_result(None)
    loop.run_until_complete(tasks[0])
    loop.close()
    assert answer.resources == {1}


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("keep", ["global", "callback", "timer"])
def test_a_future_that_somebody_can_complete_is_reached(twin: Any, keep: str) -> None:
    targets: dict[int, Any] = {}
    tasks: list[Any] = []
    ways: dict[str, Callable[[Any], object]] = {
        "global": BOX.append,
        "callback": lambda future: BOX.append(future.set_result),
        "timer": lambda future: BOX.append(future.get_loop().call_later(1000, future.set_result, None)),
    }
    loop = _loop_with_task(ways[keep], targets, tasks)

    answer = reach.reached(targets, tasks, twin=twin, seconds=60)

    targets[1][0].set_result(None)
    loop.run_until_complete(tasks[0])
    loop.close()
    assert answer.resources == {1}


# ---------------------------------------------------------------- the fixpoint


def _picture(*waits: tuple[int, int], live: tuple[int, ...] = ()) -> Snapshot:
    """Return a snapshot in which actor waits for resource, untimed; ``live`` actors wait for nothing."""
    return Snapshot(
        pid=1,
        monotonic_ns=0,
        wall_seconds=0.0,
        actors=tuple(
            Actor(serial, "thread", 1, serial, f"thread-{serial}", False, "live" if serial in live else "blocked", ())
            for serial in sorted({actor for actor, _ in waits} | set(live))
        ),
        resources=tuple(
            Resource(serial, "event", None, None) for serial in sorted({resource for _, resource in waits})
        ),
        requests=tuple(RequestEdge(actor, resource, 0, 1, False, None) for actor, resource in sorted(waits)),
    )


@needs_c
def test_the_fixpoint_leaves_those_whose_events_nobody_alive_can_set() -> None:
    with Stuck(_event, _released) as lost, Stuck(_event_kept_by(BOX.append), _released) as known:
        targets = {1: lost.targets[1], 2: known.targets[1]}
        idents = {1: lost.thread.ident, 2: known.thread.ident}
        proven, answer = reach.close(
            _picture((1, 1), (2, 2), live=(3,)), lambda serial: targets.get(serial, ()), idents.get, own=[targets]
        )
        targets.clear()

    assert proven == {1}
    assert answer.resources == {2}


@needs_c
def test_the_fixpoint_reaches_what_a_thread_has_that_is_freed_by_another_round() -> None:
    second: list[Any] = []

    def first_way(publish: Publish) -> None:
        event, mine = threading.Event(), threading.Event()
        second.append(event)
        BOX.append(mine)
        publish(mine)
        mine.wait()
        event.set()

    def second_way(publish: Publish) -> None:
        event = second.pop()
        publish(event)
        event.wait()

    with Stuck(first_way, _released) as one, Stuck(second_way, _released) as two:
        targets = {1: one.targets[1], 2: two.targets[1]}
        idents = {1: one.thread.ident, 2: two.thread.ident}
        proven, answer = reach.close(
            _picture((1, 1), (2, 2), live=(3,)), lambda serial: targets.get(serial, ()), idents.get, own=[targets]
        )
        targets.clear()

    assert proven == frozenset()
    assert answer.resources == {1, 2}


@needs_c
def test_the_fixpoint_counts_what_it_has_no_objects_of_as_reached() -> None:
    with Stuck(_event, _released) as lost:
        proven, answer = reach.close(_picture((1, 1), live=(2,)), lambda _: (), {1: lost.thread.ident}.get)

    assert proven == frozenset()
    assert answer.looks == 0


# ---------------------------------------------------------------- random graphs, against a naive oracle


class _Node:
    def __init__(self) -> None:
        self.out: list[Any] = []


class _Dict(dict):  # type: ignore[type-arg]  # with references in two places
    pass


def _linked(kinds: list[int], edges: list[tuple[int, int]], roots: list[int], target: int) -> tuple[list[Any], Any]:
    made: list[Any] = [(_Node, _Dict, list, dict, collections.deque)[kind % 5]() for kind in kinds]
    for number, (source, to) in enumerate(edges):
        one = made[source]
        if isinstance(one, _Node):
            one.out.append(made[to])
        elif isinstance(one, dict):
            one[number] = made[to] if number % 3 else (made[to], [made[to]])
        else:
            one.append(made[to] if number % 2 else functools.partial(print, made[to]))
    return [made[number] for number in roots], made[target]


@pytest.mark.parametrize("twin", TWINS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_graphs_are_judged_as_a_naive_search_does(twin: Any, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 9))
    number = st.integers(0, size - 1)
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    edges = data.draw(st.lists(st.tuples(number, number), max_size=14))
    roots = data.draw(st.lists(number, max_size=3))
    target = data.draw(number)
    found = set(roots)
    while (more := found | {to for source, to in edges if source in found}) != found:
        found = more
    gc.freeze()  # a small heap makes looks quick, and what is frozen must not mislead

    BOX[:], targets = [[]], {}
    BOX[0], targets[1] = (lambda made: (made[0], (made[1],)))(_linked(kinds, edges, roots, target))
    answer = reach.reached(targets, [], twin=twin, seconds=60)

    gc.unfreeze()
    BOX.clear()
    assert answer.complete
    assert answer.resources == ({1} if target in found else frozenset())
