"""Programs of 2 to 5 processes whose threads lock files in any order: ``flock``, ``lockf``, polling, shared or not, some bytes.

What is true is known from outside: when nothing has ended for a while, those that are left wait for each other for good.  Then
a deadlock has to be told, of nobody but them, and of each at most once; where all come to their end, nothing but what the kernel
refused.

    python tests/stress/stress_files.py [seconds] [rounds] [seed]

Would catch: a hold that is noted and not real, shared locks and different bytes taken for conflicts, waits that end, rings told
by two processes, boards that are left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

if not sys.platform.startswith("linux"):
    print("skipped: who has a lock on a file can be asked on Linux only")
    sys.exit(77)

FILES = 3
QUIET_SECONDS = 2.0
TELL_SECONDS = 12.0
AT_ONCE = int(os.environ.get("AT_ONCE", "3"))


# ---------------------------------------------------------------- one program


def lock(file: Any, how: str, shared: bool, first: int) -> None:
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if how == "flock":
        fcntl.flock(file, mode)
    elif how == "poll":
        while True:
            try:
                fcntl.flock(file, mode | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
    elif first:
        fcntl.lockf(file, mode, 10, first)
    else:
        fcntl.lockf(file, mode)


class Locked:
    def __init__(self, path: str, *plan: Any) -> None:
        self.path, self.plan = path, plan

    def __enter__(self) -> None:
        self.file = open(self.path, "r+")
        lock(self.file, *self.plan)

    def __exit__(self, *_: object) -> None:
        self.file.close()


def nest(plan: list[Any], chance: random.Random) -> None:
    if not plan:
        return
    with_block, path, *how = plan[0]
    time.sleep(chance.random() * 0.05)
    if with_block:
        with Locked(path, *how):
            nest(plan[1:], chance)
    else:
        file = open(path, "r+")  # noqa: SIM115 - closed below, as in old programs
        lock(file, *how)
        nest(plan[1:], chance)
        file.close()


def work(seed: int) -> None:
    chance = random.Random(seed)
    plans = []
    for _ in range(chance.choice((1, 1, 2))):
        names = chance.sample([f"file{number}" for number in range(FILES)], chance.choice((1, 2, 2, 3)))
        kinds = chance.choice((["flock"], ["flock"], ["flock", "lockf"], ["flock", "poll"]))
        plans.append(
            [
                (chance.random() < 0.5, name, chance.choice(kinds), chance.random() < 0.3, chance.choice((0, 0, 1, 20)))
                for name in names
            ]
        )

    def run(plan: list[Any], number: int) -> None:
        try:
            for _ in range(3):
                nest(plan, random.Random(seed + number))
        except OSError as error:
            print("refused", error, flush=True)

    threads = [threading.Thread(target=run, args=(plan, number)) for number, plan in enumerate(plans[1:], 1)]
    for thread in threads:
        thread.start()
    run(plans[0], 0)
    for thread in threads:
        thread.join()


def program(seed: int) -> None:
    import concagent
    from concagent import shared, state

    concagent.install(findings="findings", log=False, stderr=False, socket=False, stall_after=1)
    chance = random.Random(seed)
    pids = []
    for number in range(chance.randrange(2, 6)):
        pid = os.fork()
        if pid == 0:
            work(seed * 100 + number)
            time.sleep(0.3)
            os._exit(1 if state.errors() else 0)
        pids.append(pid)
    left, failed = set(pids), []

    def look_who_ended() -> bool:
        for pid in sorted(left):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                left.discard(pid)
                failed.extend([pid] if status else [])
                return True
        return False

    # On a busy machine somebody may come to his end late, and whom he was in the way of after him.
    end = time.monotonic() + QUIET_SECONDS + TELL_SECONDS
    while left and time.monotonic() < end and not told():
        time.sleep(0.02)
        if look_who_ended():
            end = time.monotonic() + QUIET_SECONDS + TELL_SECONDS
    quiet_since = time.monotonic()
    while left and time.monotonic() - quiet_since < QUIET_SECONDS:
        time.sleep(0.02)
        if look_who_ended():
            quiet_since = time.monotonic()
    time.sleep(1.5 if left else 0.2)
    if left and not told():  # what they said last
        board = shared.get_board()
        with open("board", "w") as file:
            for slot in board.slots() if board is not None else ():
                print(slot.pid, slot.payload.decode(), file=file)
    for pid in left:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    with open("truth", "w") as file:
        json.dump({"left": sorted(left), "failed": failed, "errors": state.error_texts()}, file)


def told() -> list[Any]:
    try:
        with open("findings") as file:
            text = file.read()
            return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except FileNotFoundError:
        return []


# ---------------------------------------------------------------- all of them


def problems(folder: str) -> list[str]:
    """Return what is wrong with one program that has ended."""
    os.chdir(folder)
    try:
        with open("truth") as file:
            truth = json.load(file)
    except FileNotFoundError:
        return ["it did not come to its end"]
    found = [f"pid {pid} failed" for pid in truth["failed"]] + [str(error) for error in truth["errors"]]
    left, seen = set(truth["left"]), set()
    real = [finding for finding in told() if "EDEADLK" not in str(finding["reason"])]
    for finding in real:
        members = {actor["pid"] for actor in finding["actors"] if actor["role"] == "member"}
        if finding["kind"] != "deadlock":
            found.append(f"a {finding['kind']}: {finding['title']}")
        elif not members <= left:
            found.append(f"of {members - left}, who ended: {finding['title']}")
        elif members & seen:
            found.append(f"twice of {members & seen}: {finding['title']}")
        seen |= members
    if left and not real:
        found.append(f"nothing told of {left}")
    return found


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1_000_000)
    end, running, failures, counts = time.monotonic() + seconds, [], 0, [0, 0]
    here, top = os.path.abspath(__file__), os.getcwd()
    number = 0
    while running or (time.monotonic() < end and number < rounds):
        while len(running) < AT_ONCE and time.monotonic() < end and number < rounds:
            folder = tempfile.mkdtemp(prefix="stress-files-")
            for name in range(FILES):
                open(os.path.join(folder, f"file{name}"), "w").close()
            with open(os.path.join(folder, "output"), "w") as output:
                words = [sys.executable, here, "--program", str(seed + number)]
                child = subprocess.Popen(words, cwd=folder, stdout=output, stderr=output, start_new_session=True)
            running.append((child, folder, seed + number))
            number += 1
        time.sleep(0.05)
        for one in [one for one in running if one[0].poll() is not None]:
            running.remove(one)
            child, folder, its_seed = one
            wrong = problems(folder)
            if child.returncode:
                with open("output") as file:
                    wrong.append(file.read()[-2000:])
            wrong += glob.glob(f"/dev/shm/concagent-board-*-{child.pid}-*")
            if os.path.exists("truth"):
                with open("truth") as file:
                    counts[0] += bool(json.load(file)["left"])
            counts[1] += 1
            os.chdir(top)
            if wrong:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                failures += 1
                print(f"seed {its_seed} in {folder}: {wrong}", flush=True)
            else:
                shutil.rmtree(folder)
    print(f"{counts[1]} programs from seed {seed}, {counts[0]} of them deadlocked; {failures} failures", flush=True)
    return bool(failures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--program"]:
        program(int(sys.argv[2]))
    else:
        sys.exit(main())
