"""Children are followed, by all ways in which a program starts them, and see nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from concagent import core

pytestmark = pytest.mark.skipif(os.name != "posix", reason="children are followed where there is fork")

SECONDS = 40.0
# Prints whether the agent is there, on one line, and on the next what a program sees of how it was started.
CHILD = """
import json, os, sys
agent = sys.modules.get("concagent.bootstrap")
print(json.dumps(agent is not None and agent._agent is not None))
keys = [key for key in os.environ if key not in ("LC_CTYPE", "_", "SHLVL", "PWD")]
print(json.dumps([sys.path, sys.argv, sys.flags, sys.meta_path[1:] == [], sorted((k, os.environ[k]) for k in keys),
    "sitecustomize" in sys.modules, getattr(sys.modules.get("sitecustomize"), "MARK", None)]))
"""
WAYS = {
    "run": "subprocess.run([sys.executable, *FLAGS, CHILD], env=ENV)",
    "shell": "subprocess.run(f'{sys.executable} {CHILD}', shell=True, env=ENV)",
    "preexec": "subprocess.run([sys.executable, CHILD], env=ENV, preexec_fn=lambda: os.putenv('A', '1'))",
    "spawn": "os.waitpid(os.posix_spawn(sys.executable, [sys.executable, CHILD], os.environ if ENV is None else ENV), 0)",
    "spawnp": "os.waitpid(os.posix_spawnp(sys.executable, [sys.executable, CHILD], os.environ if ENV is None else ENV), 0)",
    "execv": "in_child(lambda: os.execv(sys.executable, [sys.executable, CHILD]))",
    "execve": "in_child(lambda: os.execve(sys.executable, [sys.executable, CHILD], ENV or os.environ))",
    "execlp": "in_child(lambda: os.execlp(sys.executable, sys.executable, CHILD))",
    "spawnv": "os.spawnv(os.P_WAIT, sys.executable, [sys.executable, CHILD])",
    "asyncio": "asyncio.run(start_async())",
}
NO_MAPPING = "os.waitpid(os.posix_spawn(sys.executable, [sys.executable, CHILD], None), 0)"
PARENT = """
import asyncio, os, subprocess, sys
CHILD, ENV, FLAGS = {child!r}, {env}, {flags}

def in_child(function):
    pid = os.fork()
    if pid == 0:
        function()
    os.waitpid(pid, 0)

async def start_async():
    await (await asyncio.create_subprocess_exec(sys.executable, CHILD, env=ENV)).wait()

{before}
{way}
"""


class Family:
    """Runs a parent bare or under the agent, and returns what its one child printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.child = folder / "child.py"
        self.child.write_text(CHILD, encoding="utf-8")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("CONCAGENT", "PYTHON", "_CONC"))}

    def start(self, launch: tuple[str, ...], way: str, **more: Any) -> subprocess.CompletedProcess[str]:
        parts = {"env": None, "flags": [], "before": "", **more}
        parent = self.folder / "parent.py"
        parent.write_text(PARENT.format(child=str(self.child), way=way, **parts), encoding="utf-8")
        return subprocess.run(
            [sys.executable, *launch, str(parent)],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )

    def seen(self, launch: tuple[str, ...], way: str, **more: Any) -> tuple[bool, str, str]:
        """Return whether the child has the agent, what it sees, and what is on stderr."""
        done = self.start(launch, way, **more)
        agent, seen = done.stdout.splitlines()
        return json.loads(agent), seen, done.stderr

    def compare(self, way: str, **more: Any) -> bool:
        """Return whether the child has the agent; it must see what it sees without."""
        bare, agent = self.seen((), way, **more), self.seen(AGENT, way, **more)
        assert not bare[0]
        assert agent[1:] == bare[1:]
        return agent[0]


AGENT = ("-m", "concagent", "run", "--no-socket")


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_a_child_has_the_agent_and_sees_nothing_of_it(family: Family, way: str) -> None:
    assert family.compare(WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_a_child_has_no_agent_if_children_are_not_followed(family: Family, way: str) -> None:
    agent, _, _ = family.seen((*AGENT, "--no-follow"), WAYS[way])

    assert not agent


@pytest.mark.parametrize(
    "env",
    ["{}", "{'PYTHONPATH': ''}", "{'PYTHONPATH': '/nowhere'}", "{'PYTHONPATH': '/a::/b:'}", "dict(os.environ, A='1')"],
)
@pytest.mark.parametrize("way", ["run", "spawn", "execve"])
def test_a_child_with_an_environment_of_its_own_sees_just_that(family: Family, way: str, env: str) -> None:
    assert family.compare(WAYS[way], env=env)


@pytest.mark.parametrize("flag", ["-I", "-S", "-E"])
def test_a_child_that_reads_no_environment_or_no_site_runs_bare(family: Family, flag: str) -> None:
    assert not family.compare(WAYS["run"], flags=[flag])


def test_a_child_of_another_virtual_environment_runs_bare(family: Family) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "other"], cwd=family.folder, check=True)

    assert not family.compare("subprocess.run(['other/bin/python', CHILD])")


def test_a_child_of_another_version_runs_bare_and_learns_nothing(family: Family) -> None:
    before = """
    if "concagent.following" in sys.modules:
        following = sys.modules["concagent.following"]
        following._said = following._said.replace(sys.implementation.cache_tag.encode(), b"cpython-27")
    """

    assert not family.compare(WAYS["run"], before=textwrap.dedent(before))


def test_a_program_sees_no_variable_of_ours_in_its_own_environment(family: Family) -> None:
    done = family.start(AGENT, "print('HERE', [k for k in os.environ if 'CONCAGENT' in k or k == 'PYTHONPATH'])")

    assert done.stdout == "HERE []\n"


def test_another_program_with_an_environment_of_its_own_gets_just_that(family: Family) -> None:
    done = family.start(AGENT, "subprocess.run(['/usr/bin/env'], env={'A': '1'})")

    assert done.stdout == "A=1\n"


def test_variables_that_only_c_code_knows_are_inherited(family: Family) -> None:
    family.child.write_text("import os; print('true'); print(os.environ['SET_BY_C'])", encoding="utf-8")

    for launch in ((), AGENT):
        ways = [WAYS["run"], WAYS["execv"], *([NO_MAPPING] if sys.version_info >= (3, 13) else [])]
        for way in ways:
            assert family.seen(launch, way, before="os.putenv('SET_BY_C', 'yes')")[1] == "yes"


@pytest.mark.parametrize(
    "text",
    ["MARK = 1", "1 / 0", "import not_there", "raise ImportError(name='sitecustomize')", "syntax error"],
)
def test_the_next_sitecustomize_is_run_and_fails_as_ever(family: Family, text: str) -> None:
    folder = family.folder / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    way = f"print(subprocess.run([sys.executable, CHILD], env={{'PYTHONPATH': {str(folder)!r}}}).returncode)"

    bare, agent = (family.start(launch, way) for launch in ((), AGENT))

    assert agent.stderr == bare.stderr
    assert agent.stdout == bare.stdout.replace("false\n", "true\n", 1)


LEAKS = "import gc; kept = open(__file__); del kept; gc.collect()"
HANGS = """
import _thread, threading, time
a, b = threading.Lock(), threading.Lock()
def take(one, other):
    with one:
        time.sleep(0.3)
        with other:
            pass
for pair in ((a, b), (b, a)):
    threading.Thread(target=take, args=pair, daemon=True).start()
time.sleep(2)
"""


@pytest.mark.parametrize(("child", "word"), [(LEAKS, "leak"), (HANGS, "deadlock")])
@pytest.mark.parametrize("captured", [True, False])
def test_a_child_whose_stderr_its_parent_reads_has_there_only_who_is_stuck(
    family: Family, child: str, word: str, captured: bool
) -> None:
    family.child.write_text(child, encoding="utf-8")
    how = "stderr=subprocess.PIPE" if captured else ""

    done = family.start(AGENT, f"print((subprocess.run([sys.executable, CHILD], {how}).stderr or b'').decode())")

    assert (word in done.stdout) == (captured and word == "deadlock")
    assert (word in done.stderr) == (not captured)


def test_an_option_that_the_child_cannot_have_leaves_it_bare_and_quiet(family: Family) -> None:
    env = "dict(os.environ, CONCAGENT_LONG_WAIT='for ever')"

    agent, _, stderr = family.seen(AGENT, WAYS["run"], env=env)

    assert (agent, stderr) == (False, "")


def test_a_variable_that_is_set_for_the_child_counts(family: Family) -> None:
    assert not family.seen(AGENT, WAYS["run"], env="dict(os.environ, CONCAGENT_FOLLOW='0')")[0]


def test_children_are_followed_whatever_families_are_watched(family: Family) -> None:
    assert family.seen((*AGENT, "--patch", "locks"), WAYS["run"])[0]


def test_errors_of_execution_are_the_originals(family: Family) -> None:
    way = """
    for call in (
        lambda: os.execv("/not/there", ["x"]), lambda: os.execve("/not/there", ["x"], {}), lambda: os.execv("x", []),
        lambda: os.execve("x", ["x"], {"A=B": "1"}), lambda: os.execve("x", ["x"], 3), lambda: os.execv(1.5, ["x"]),
        lambda: os.posix_spawn("/not/there", ["x"], {}), lambda: os.posix_spawn("x", ["x"]), lambda: os.execv("x"),
        lambda: subprocess.run(["/not/there"]), lambda: subprocess.run(["x"], env={"A": 1}),
        lambda: subprocess.run([sys.executable], env={"A=B": "1"}), lambda: subprocess.run([sys.executable, "a\\0b"]),
    ):
        try:
            call()
        except Exception as error:
            print(type(error), error)
    """

    bare, agent = (family.start(launch, textwrap.dedent(way)).stdout for launch in ((), AGENT))

    assert bare.count("\n") == 13
    assert agent == bare


# ---------------------------------------------------------------- what a followed child finds


DEADLOCK = """
    import os, sys, threading
    import concagent
    {install}
    lock = threading.Lock()
    def stuck():
        with lock, lock:
            pass
    threading.Thread(target=stuck, daemon=True).start()
    while not concagent.findings():
        pass
    print(os.getpid(), flush=True)
    """


def in_subprocess(text: str) -> str:
    return f"import subprocess, sys; subprocess.run([sys.executable, '-c', {textwrap.dedent(text)!r}])"


@pytest.mark.parametrize("install", ["", "concagent.install()", "concagent.install(long_wait=3)"])
def test_the_findings_of_a_child_go_to_the_same_file_under_its_own_pid(runner: Any, install: str) -> None:
    runner.limit_seconds = SECONDS

    outcome = runner.ends(in_subprocess(DEADLOCK.format(install=install)))

    assert outcome.only["pid"] == int(outcome.stdout)
    assert outcome.only["kind"] == "deadlock"


def test_findings_of_a_child_in_another_directory_go_to_the_same_file(runner: Any) -> None:
    runner.limit_seconds = SECONDS

    outcome = runner.ends(
        "import os; os.chdir('/')\n" + in_subprocess(DEADLOCK.format(install="")), findings="findings.jsonl"
    )

    assert outcome.only["pid"] == int(outcome.stdout)


def test_what_a_child_asks_for_itself_wins(runner: Any, tmp_path: Path) -> None:
    runner.limit_seconds = SECONDS
    own = tmp_path / "own.jsonl"

    outcome = runner.ends(in_subprocess(DEADLOCK.format(install=f"concagent.install(findings={str(own)!r})")))

    assert outcome.findings == []
    assert json.loads(own.read_text(encoding="utf-8"))["pid"] == int(outcome.stdout)


def test_the_parents_port_stays_the_parents(runner: Any) -> None:
    runner.limit_seconds = SECONDS
    child = "import concagent; print(concagent.install().metrics_port)"

    outcome = runner.ends(in_subprocess(child), metrics_port=0)

    assert outcome.stdout == "None\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("followed", [True, False])
def test_children_of_multiprocessing_are_instrumented_from_their_first_import_on(
    runner: Any, method: str, followed: bool
) -> None:
    runner.limit_seconds = SECONDS
    program = f"""
    import multiprocessing, sys, threading

    AT_IMPORT = "concagent.bootstrap" in sys.modules

    def child():
        print(AT_IMPORT, flush=True)

    if __name__ == "__main__":
        process = multiprocessing.get_context("{method}").Process(target=child)
        process.start()
        process.join()
        sys.exit(process.exitcode)
    """

    outcome = runner.silent(program, follow=followed)

    assert outcome.stdout == f"{followed}\n"


# ---------------------------------------------------------------- the first moments of a child


@pytest.mark.skipif(core.NAME == "python", reason="the Python core opens its descriptors at once")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are listed by /proc")
def test_a_child_begins_without_descriptors_of_the_agent(family: Family) -> None:
    family.child.write_text("import os; print('true'); print(os.listdir('/proc/self/fd'))", encoding="utf-8")
    options = ("--findings", str(family.folder / "findings.jsonl"))

    bare, agent = (family.seen(launch, WAYS["run"])[1] for launch in ((), (*AGENT[:-1], *options)))

    assert agent == bare


def test_a_report_that_is_asked_for_in_the_first_moment_is_made(runner: Any) -> None:
    runner.limit_seconds = SECONDS
    code = "import os, signal, threading; os.kill(os.getpid(), signal.SIGUSR1); print(os.getpid(), flush=True)"
    program = in_subprocess(f"{code}; threading.Event().wait(30)").replace("subprocess.run", "subprocess.Popen")

    child = runner.start(program + ".wait()")

    assert child.until(lambda: "asked for by SIGUSR1" in child.stderr()), child.stderr()
    assert f" {child.stdout().strip()}" in child.stderr()


@pytest.mark.parametrize("moment", [0, 0.5])
def test_a_child_that_forks_at_once_or_later_is_whole_and_so_is_its_child(runner: Any, moment: float) -> None:
    runner.limit_seconds = SECONDS
    text = f"""
    import os, sys, threading, time
    time.sleep({moment})
    pid = os.fork()
    lock = threading.Lock()
    def stuck():
        with lock, lock:
            pass
    threading.Thread(target=stuck, daemon=True).start()
    import concagent
    while not concagent.findings():
        time.sleep(0.01)
    if pid:
        os._exit(os.waitpid(pid, 0)[1])
    """

    outcome = runner.ends(in_subprocess(text).replace("subprocess.run", "sys.exit(subprocess.run") + ".returncode)")

    assert outcome.returncode == 0
    assert outcome.kinds == ["deadlock", "deadlock"]
    assert len({finding["pid"] for finding in outcome.findings}) == 2


# ---------------------------------------------------------------- E09


RING = """
    import multiprocessing, sys
    from scaffold import finish, pause, until

    CTX = multiprocessing.get_context("{method}")

    def meet(here, me, number):
        here[me] = 1
        until(lambda: sum(here) >= number)

    def nest(outer, inner, here, me, number):
        with outer:
            meet(here, me, number)
            if inner.acquire({limit}):
                inner.release()

    if __name__ == "__main__":
        number = 8
        locks, here = [CTX.Lock() for _ in range(number)], CTX.RawArray("i", number)
        pairs = [(locks[i], locks[(i + 1) % number]) for i in range(number)]
        ring = [CTX.Process(target=nest, args=(*pair, here, i, number)) for i, pair in enumerate(pairs)]
        for process in ring:
            process.start()
        if "{limit}":
            for process in ring:
                process.join()
            finish()
        else:
            print(*(process.pid for process in ring), flush=True)
            pause(600)
    """


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_e09_eight_processes_in_a_ring_are_one_deadlock_told_by_one_of_them(runner: Any, method: str) -> None:
    runner.limit_seconds = 2 * SECONDS

    child = runner.start(RING.format(method=method, limit=""))
    child.wait_for_findings(1)
    child.linger(1.5)
    outcome = child.end()

    finding = outcome.only
    pids = {int(word) for word in outcome.stdout.split()}
    assert (finding["kind"], finding["confidence"], finding["resource_kind"]) == ("deadlock", "proven", "mp-lock")
    assert {actor["pid"] for actor in finding["actors"] if actor["role"] == "member"} == pids
    assert finding["pid"] in pids


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_e09_silent_twin_all_give_up_after_a_while(runner: Any, method: str) -> None:
    runner.limit_seconds = 2 * SECONDS

    outcome = runner.silent(RING.format(method=method, limit="True, 2.5"))

    assert outcome.stdout == "DONE\n"


@pytest.mark.parametrize("call", ["[sys.executable, 'own/main.py']", "[sys.executable, '-c', 'import main']"])
def test_a_child_with_a_module_called_like_one_of_the_library_has_its_own(
    runner: Any, tmp_path: Path, call: str
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "queue.py").write_text("OWN = 1\n", encoding="utf-8")
    (folder / "main.py").write_text("import queue\nprint(hasattr(queue, 'OWN'))\n", encoding="utf-8")
    place = repr(str(tmp_path if "own/" in call else folder))

    outcome = runner.silent(f"import subprocess, sys\nsubprocess.run({call}, cwd={place}, check=True)\n")

    assert outcome.stdout == "True\n"
