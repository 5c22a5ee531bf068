"""What README and docs list is what there is."""

import re
from pathlib import Path

import click
import pytest
from prometheus_client import CollectorRegistry

from panicd.cli import main
from panicd.host.metrics import Metrics
from panicd.rules.ending import Cause
from panicd.rules.exposure import Exposure
from panicd.rules.incident import State
from panicd.rules.on_crash import OnCrash
from panicd.rules.plan import AnyStep
from panicd.rules.policy import Reason

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
POLICIES = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
MACHINE = (ROOT / "docs/machine.md").read_text(encoding="utf-8")


def metric_names() -> set[str]:
    registry = CollectorRegistry()
    Metrics(
        registry,
        version="1",
        sources=(),
        actions=(),
        reasons=(),
        foreign_actions=(),
        dump_failure_reasons=(),
        domains=lambda: (),
        coredump_free_bytes=lambda: None,
    )
    suffix = {"counter": "_total", "info": "_info"}
    return {family.name + suffix.get(family.type, "") for family in registry.collect()}


def test_readme_lists_every_metric_and_no_other() -> None:
    table = README[README.index("## Metrics") : README.index("## What panicd does not do")]
    assert set(re.findall(r"`(panicd_\w+)", table)) == metric_names()


def test_readme_lists_every_command_and_no_other() -> None:
    table = README[README.index("| command | |") : README.index("An ID is an incident")]
    listed = set(re.findall(r"`(?:panicd )?([a-z][a-z-]*)[^`]*`", table))
    assert isinstance(main, click.Group)
    assert listed == set(main.commands)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_explained(reason: Reason) -> None:
    assert f"`{reason}`" in POLICIES


def test_no_other_reason_is_explained() -> None:
    table = POLICIES[POLICIES.index("## Reasons") : POLICIES.index("A fallback that can't")]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {word for cell in cells for word in re.findall(r"`([a-z-]+)`", cell)} == set(Reason)


@pytest.mark.parametrize("step", AnyStep.__args__)
def test_every_step_stands_in_a_plan(step: type) -> None:
    assert step.__name__ in POLICIES


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_of_an_end_is_listed(cause: Cause) -> None:
    assert f"`{cause}`" in OPERATIONS


@pytest.mark.parametrize("state", State)
def test_every_state_of_an_incident_is_listed(state: State) -> None:
    assert f"| {state} |" in MACHINE


@pytest.mark.parametrize("on_crash", OnCrash)
def test_every_policy_is_listed(on_crash: OnCrash) -> None:
    assert f"`{on_crash}`" in README or ("`coredump-…`" in README and on_crash.coredump)


@pytest.mark.parametrize("exposure", Exposure)
def test_every_exposure_is_listed(exposure: Exposure) -> None:
    assert f"| `{exposure}` |" in OPERATIONS
