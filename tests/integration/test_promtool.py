"""What Prometheus's own linter says about our output and our rules."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from concagent.exporters import prometheus
from concagent.model import AgentStats, ClassStatistics

PROMTOOL = shutil.which("promtool")
EXPORTERS = Path(__file__).parents[2] / "exporters"

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)"),
]


def promtool(*arguments: str, text: bytes = b"") -> tuple[int, str]:
    """Return exit status and everything that was said."""
    assert PROMTOOL
    done = subprocess.run(
        [PROMTOOL, *arguments],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=EXPORTERS,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.decode()


def test_the_metrics_of_an_empty_agent_pass_without_a_remark() -> None:
    text = prometheus.render(AgentStats, "1.0")

    assert promtool("check", "metrics", text=text) == (0, "")


def test_the_metrics_of_a_busy_agent_with_strange_names_pass_without_a_remark() -> None:
    classes = tuple(
        ClassStatistics(
            f'lock "{n}" \\ of \n{chr(0xDC80)}é',
            "lock",
            acquisitions=10 + n,
            contentions=n,
            wait_seconds=0.5,
            wait_buckets=(n, 0, 0, 0, 0, 0, 0, 0, 1),
            hold_seconds=1.5,
            hold_samples=2,
            hold_buckets=(2,),
        )
        for n in range(50)
    )
    stats = AgentStats(
        classes=classes,
        findings=((("deadlock", "mp-lock", "proven"), 3),),
        open_resources=(("socket", 4),),
        agent_errors=(("hook:files", 1),),
        dropped_events=(("events", 2),),
        agent_cpu_seconds=0.25,
    )

    assert promtool("check", "metrics", text=prometheus.render(lambda: stats, "1.0")) == (0, "")


def test_the_alert_rules_are_valid() -> None:
    status, said = promtool("check", "rules", "rules.yml")

    assert status == 0, said
    assert "7 rules found" in said


def test_the_alert_rules_fire_when_they_should_and_only_then() -> None:
    status, said = promtool("test", "rules", "rules_test.yml")

    assert status == 0, said
