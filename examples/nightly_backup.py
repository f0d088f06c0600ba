"""A small program as one would write it with rich: jobs in a thread pool, a live progress bar, a panel for each finished job.

It hangs, nearly always at volume 3, and there is nothing to be seen in it: it does not use one lock.

A line that is printed while a progress bar is on the screen goes through rich, which moves the bar out of the way.  The
thread that renders a panel has the Console's lock and, to print, wants the lock of the Live display; the thread that
refreshes the bar has the lock of the Live display and, to draw, wants the Console's (rich issue 4158, in rich 15.0.0
as well).  Whoever renders something that prints - a warning, a debug line in a ``__rich_console__`` - can meet it.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from rich.panel import Panel
from rich.progress import Progress

JOBS = 8
FULL = {3, 7}


class Summary:
    """What a job has copied; the figures are fetched when they are shown."""

    def __init__(self, job: int) -> None:
        self.job = job

    def __rich_console__(self, console, options):
        time.sleep(0.12)  # asks the storage
        if self.job in FULL:
            print(f"warning: volume {self.job} is 93 % full")
        yield f"volume {self.job}: {self.job * 411 + 1207} files copied"


def back_up(job: int, progress: Progress, task) -> None:
    time.sleep(0.4)  # copies
    progress.console.print(Panel(Summary(job), title=f"job {job}"))
    progress.advance(task)


def main() -> int:
    failed = []
    with Progress() as progress, ThreadPoolExecutor(2, thread_name_prefix="copier") as pool:
        task = progress.add_task("backup", total=JOBS)
        jobs = [pool.submit(back_up, job, progress, task) for job in range(1, JOBS + 1)]
        for number, job in enumerate(jobs, 1):
            try:
                job.result()
            except Exception as error:  # noqa: BLE001 - a job that failed must not end the others
                failed.append(f"job {number}: {type(error).__name__}: {error}")
    sys.stdout.write(f"backup ended: {JOBS - len(failed)} jobs done, {len(failed)} failed\n")
    for line in failed:
        sys.stdout.write(f"  {line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
