"""The alert rules: in the shape of a mixin's, tested, each with its runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from panicd.rules.exposure import Exposure
from panicd.rules.policy import FALLBACK_REASONS
from tests.parts.patience import patience

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "config/prometheus"
TESTS = (DIRECTORY / "panicd.rules.test.yaml").read_text(encoding="utf-8")
BASE = "https://runbooks.example/panicd/"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")


def rules() -> list[dict[str, Any]]:
    text = (DIRECTORY / "panicd.rules.yaml").read_text(encoding="utf-8")
    (group,) = yaml.safe_load(text)["groups"]
    return [rule for rule in group["rules"] if "alert" in rule]


def alert(rule: dict[str, Any]) -> str:
    return str(rule["alert"])


@needs_promtool
@pytest.mark.parametrize("arguments", [["check", "rules", "panicd.rules.yaml"],
                                       ["test", "rules", "panicd.rules.test.yaml"]])  # fmt: skip
def test_promtool_is_content(arguments: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=DIRECTORY, capture_output=True, text=True,
        check=False, timeout=patience(120),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", rules(), ids=alert)
def test_an_alert_says_what_whoever_is_woken_needs(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Panicd[A-Z]\w+", rule["alert"])
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"{BASE}{rule['alert']}.md"


@pytest.mark.parametrize("rule", rules(), ids=alert)
def test_an_alert_is_seen_to_fire_in_a_test(rule: dict[str, Any]) -> None:
    assert re.search(rf'alertname(="|: ){rule["alert"]}\b', TESTS)


def test_no_name_is_used_twice() -> None:
    names = [alert(rule) for rule in rules()]
    assert len(set(names)) == len(names)


def test_each_reason_for_a_fallback_is_somebody_s() -> None:
    (fell_back,) = [rule for rule in rules() if rule["alert"] == "PanicdFellBack"]
    excluded = re.search(r'reason!~"([^"]+)"', fell_back["expr"])
    assert excluded is not None
    # PanicdActionFailed, PanicdCoredumpFailed, PanicdRestartBudgetSpent, PanicdManyDomainsPanicked
    others = {"action-failed", "dump-failed", "budget-spent", "crash-loop", "storm"}
    assert set(excluded[1].split("|")) == others
    assert others <= set(FALLBACK_REASONS)


@pytest.mark.skipif(shutil.which("amtool") is None, reason="needs amtool")
@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "on-call"), ("warning", "tickets"), ("info", "nobody")]
)
def test_the_example_leads_each_severity_to_its_receiver(severity: str, receiver: str) -> None:
    config = DIRECTORY / "alertmanager.example.yml"
    done = subprocess.run(
        ["amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}"],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, receiver), done.stderr


def test_the_example_names_alerts_that_there_are() -> None:
    text = (DIRECTORY / "alertmanager.example.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"\bPanicd\w+", text)) <= {alert(rule) for rule in rules()}


def test_each_reason_of_an_exposure_is_somebody_s() -> None:
    (exposed,) = [rule for rule in rules() if rule["alert"] == "PanicdDomainsExposed"]
    (left_out,) = re.findall(r'reason!~"([^"]+)"', exposed["expr"])
    others = set(left_out.split("|"))
    assert others <= {reason.value for reason in Exposure}
    told_by = {
        "no-monitor": "PanicdMonitorUnreachable",
        "silent": "PanicdDomainSilent",
        "no-device": "PanicdDomainWithoutPanicDevice",
        "not-armed": "PanicdDomainNotArmed",
        "budget-spent": "PanicdRestartBudgetSpent",
        "held": "PanicdHoldForgotten",
    }
    assert told_by.keys() == others
    assert set(told_by.values()) <= {alert(rule) for rule in rules()}
