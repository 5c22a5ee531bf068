"""The verdict on one case: what was seen against what was to come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from panicd.dumps.directory import PARTIAL
from panicd.rules.incident import Incident
from panicd.rules.plan import AnyStep, RunRelaunch
from panicd.rules.policy import Reason
from tests.kill.scenarios import DUMP, UNKNOWN_WHETHER_RELAUNCHED, Result, Scenario
from tests.parts.recorded import FOLLOWS


@dataclass(frozen=True)
class Counters:
    """What the metrics of the last daemon say.

    Attributes:
        panics: ``panicd_panics_total``, over its sources.
        domain_panics: ``panicd_domain_panics_total``.
        restarts: ``panicd_domain_restarts_total``.
        failures: ``panicd_domain_action_failures_total``.
        actions: ``panicd_actions_total``, those above 0.
    """

    panics: int
    domain_panics: int | None
    restarts: int | None
    failures: int | None
    actions: Mapping[str, int]


@dataclass
class Evidence:
    """What was seen of one case.

    Attributes:
        guest: QEMU's run state at the end.
        commands: Those that QEMU carried out and that do more than ask, over all daemons.
        journal: The incidents at the end.
        struck: The blow fell.
        libvirtd_died: It was libvirtd that was killed.
        at_blow: The incidents that were durable when panicd was killed; None: it was not.
        dumped_at_blow: A complete dump lay there already when the blow fell.
        relaunches: How often the relaunch command was run.
        files: What lies below the directory of dumps at the end.
        counters: Of the last daemon; the domain's are None where it is connected no longer.
        unseen_end: QEMU had ended, unseen and unidentified, before the last daemon began: through
            a proxy nobody can tell such an end from a lost connection, so the incident waits on.
    """

    guest: str = ""
    commands: list[str] = field(default_factory=list)
    journal: list[Incident] = field(default_factory=list)
    struck: bool = False
    libvirtd_died: bool = False
    at_blow: list[Incident] | None = None
    dumped_at_blow: bool = False
    relaunches: int = 0
    files: list[Path] = field(default_factory=list)
    counters: Counters | None = None
    unseen_end: bool = False


PREPARING = frozenset(
    {
        "set-action",
        FOLLOWS,
        "getfd",
        "closefd",
        "add-fd",
        "remove-fd",
        "screendump",
        f"{DUMP} of a range",
        "x-query-ramblock",
    }
)
"""Commands that change what may become of a guest later, or only look at it, and nothing now."""


def wanted(scenario: Scenario, evidence: Evidence) -> Result | None:
    """Return what is to have come of a case; None: it was over before anything was durable."""
    if scenario.runs_on and evidence.at_blow == []:
        return None
    result = scenario.result
    asked = any(map(_was_asked, evidence.journal))
    if evidence.struck and scenario.unasked is not None and not asked:
        result = scenario.unasked
    if scenario.relaunch and not evidence.relaunches and _has_begun(evidence, RunRelaunch):
        return UNKNOWN_WHETHER_RELAUNCHED
    if evidence.unseen_end and any(incident.is_open for incident in evidence.at_blow or ()):
        actions = {name: n for name, n in result.actions.items() if name == "preserve"}
        result = replace(result, became="acting", actions=actions)
    return result


def judge(scenario: Scenario, evidence: Evidence) -> list[str]:
    """Return what is wrong with a case; nothing, where nothing is."""
    result = wanted(scenario, evidence)
    if result is None:
        done = _needed(scenario, evidence)
        lost = not evidence.journal and not done
        return [] if lost else [f"nothing was known, and yet {done} was done"]
    found: dict[str, object] = {
        "became": [became(incident) for incident in evidence.journal],
        "guest": evidence.guest,
        "commands": _needed(scenario, evidence),
        "dumps": [path.name for path in evidence.files],
    }
    expected: dict[str, object] = {
        "became": [result.became],
        "guest": result.guest,
        "commands": found["commands"] if result.commands is None else list(result.commands),
        "dumps": [f"{incident.id}.elf" for incident in evidence.journal][: result.dumps],
    }
    if scenario.relaunch:
        found["relaunches"] = evidence.relaunches
        expected["relaunches"] = result is not UNKNOWN_WHETHER_RELAUNCHED
    if (counters := evidence.counters) is not None:
        found |= {"panics": counters.panics, "actions": dict(counters.actions)}
        expected |= {"panics": 1, "actions": dict(result.actions)}
        for name, count in (
            ("domain_panics", 1),
            ("restarts", result.restarts),
            ("failures", result.failures),
        ):
            found[name] = getattr(counters, name)
            expected[name] = None if found[name] is None else count
    return [
        f"{what}: {found[what]}, and not {expected[what]}"
        for what in expected
        if found[what] != expected[what]
    ]


def judge_dead_qemu(scenario: Scenario, evidence: Evidence) -> list[str]:
    """Return what is wrong with a case in which QEMU was killed, which ends every plan.

    Whether it was killed or had just done as it was told may be impossible to tell; what may not be
    is an incident that is lost, doubled or open for ever, a command that was not in the plan, or a
    restart that is counted and did not happen.
    """
    endings = [became(incident) for incident in evidence.journal]
    commands = _needed(scenario, evidence)
    violations = []
    if len(endings) != 1 or evidence.journal[0].is_open:
        violations.append(f"became: {endings}, and not one that has ended")
    if commands != list(scenario.result.commands or ("quit",))[: len(commands)]:
        violations.append(f"commands: {commands}, and not as in {scenario.result.commands}")
    if "restarted" in endings and "cont" not in commands:
        violations.append("a restart is counted that did not happen")
    if any(file.suffix == PARTIAL for file in evidence.files):
        violations.append("an incomplete dump was left")
    return violations


def became(incident: Incident) -> str:
    """Return an incident's ending, or its state where it goes on; a guest is ``watched``."""
    if incident.watched_until is not None:
        return "watched"
    return str(incident.closed.ending if incident.closed else incident.state)


def _was_asked(incident: Incident) -> bool:
    return any(decision.reason is Reason.OPERATOR for decision in incident.decisions)


def _has_begun(evidence: Evidence, kind: type[AnyStep]) -> bool:
    """Whether it was durable, when panicd was killed, that a step of that kind had begun."""
    return any(has_begun(incident, kind) for incident in evidence.at_blow or ())


def has_begun(incident: Incident, kind: type[AnyStep]) -> bool:
    """Tell whether a step of that kind was begun."""
    plan = incident.plan
    return plan is not None and any(isinstance(plan.steps[i], kind) for i in incident.steps)


def _needed(scenario: Scenario, evidence: Evidence) -> list[str]:
    """Return the commands, without those that were given twice and had to be.

    A dump that was not complete is begun anew. A reset that leaves no trace is made again where its
    result was not recorded: that is right whether it had been made or not, for the guest has not
    run since, and a ``cont`` alone would be right in one case only. So is one of a guest that
    libvirt goes on to call crashed, because libvirtd has not lived to see it reset.
    """
    no_trace = scenario.reset_leaves_no_trace or evidence.libvirtd_died
    commands = [name for name in evidence.commands if name not in PREPARING]
    if commands.count(DUMP) == 2 and evidence.struck and not evidence.dumped_at_blow:
        commands.remove(DUMP)
    if commands.count("system_reset") == 2 and evidence.struck and no_trace:
        commands.remove("system_reset")
    return commands
