"""What the daemon answers on its control socket: plain values that JSON can hold."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import trio

from panicd.fleet import Domain
from panicd.host.config import ConfigError
from panicd.host.control import RefusedError, Request
from panicd.host.journal import JournalError
from panicd.rules.incident import Incident
from panicd.rules.plan import AnyStep, Plan
from panicd.rules.policy import EXPLANATIONS
from panicd.snapshot import budget_of, domain_status, foresee
from panicd.supervisor import Services


class Api:
    """Answers requests.

    Args:
        services: the daemon's.
        reload: reads the configuration anew; raises ConfigError and changes nothing on a bad one.
    """

    def __init__(self, services: Services, reload: Callable[[], object]) -> None:
        self._services = services
        self._reload = reload

    async def handle(self, request: Request) -> object:
        """Answer one request.

        Raises:
            RefusedError: there is no answer; its kind and message say why.
        """
        arguments = request.arguments
        match request.command:
            case "status":
                return self._status()
            case "explain":
                return self._explain(self._domain(_text(arguments, "domain")))
            case "incidents":
                return await self._incidents(arguments)
            case "reload":
                return await self._reload_config()
            case _:
                raise RefusedError("unknown-command", f"no command {request.command!r}")

    def _status(self) -> object:
        services = self._services
        now = services.clock()
        return {
            "now": now,
            "journal_fault": services.journal.fault,
            "domains": [
                asdict(domain_status(domain, services.tally, now))
                for domain in sorted(services.fleet.domains.values(), key=lambda d: d.name)
            ],
            "waiting": [incident_view(c.incident) for c in services.waiting.chronicles],
        }

    def _domain(self, name: str) -> Domain:
        domain = self._services.fleet.by_name(name)
        if domain is None:
            raise RefusedError("no-such-domain", f"no domain is called {name!r}")
        return domain

    def _explain(self, domain: Domain) -> object:
        services, session, policy = self._services, domain.session, domain.policy
        now = services.clock()
        status = asdict(domain_status(domain, services.tally, now))
        if session is None or policy is None:
            return {"status": status, "plan": None}
        plan = foresee(policy, session.capability, services.tally.restarts(domain.key), now)
        return {
            "status": status,
            "budget": asdict(budget_of(domain, services.tally, now)),
            "device_types": list(session.capability.device_types),
            "plan": plan_view(plan),
        }

    async def _incidents(self, arguments: Mapping[str, object]) -> object:
        limit = arguments.get("limit", 20)
        read = partial(
            self._services.journal.incidents,
            domain=_text(arguments, "domain") if "domain" in arguments else None,
            open_only=arguments.get("open") is True,
            limit=limit if isinstance(limit, int) else 20,
        )
        try:
            incidents = await trio.to_thread.run_sync(read)
        except JournalError as error:
            raise RefusedError("journal", str(error)) from error
        return [incident_view(incident) for incident in incidents]

    async def _reload_config(self) -> object:
        try:
            self._reload()
        except ConfigError as error:
            raise RefusedError("config", str(error)) from error
        return {}


def plan_view(plan: Plan) -> dict[str, object]:
    """Return a plan as plain values."""
    decision = plan.decision
    return {
        "on_crash": decision.wanted,
        "action": decision.effective,
        "reason": decision.reason,
        "why": EXPLANATIONS[decision.reason],
        "steps": [step_view(step) for step in plan.steps],
    }


def step_view(step: AnyStep) -> dict[str, object]:
    """Return a step as plain values."""
    return {"step": type(step).__name__, **asdict(step)}


def incident_view(incident: Incident) -> dict[str, object]:
    """Return an incident as plain values."""
    opened, closed, plan = incident.opened, incident.closed, incident.plan
    return {
        "id": incident.id,
        "domain": opened.domain,
        "uuid": opened.uuid,
        "monitor": opened.monitor,
        "opened_at": opened.at,
        "source": opened.source,
        "information": opened.information and asdict(opened.information),
        "repeats": incident.repeats,
        "state": incident.state,
        "decisions": [
            {"on_crash": d.wanted, "action": d.effective, "reason": d.reason}
            for d in incident.decisions
        ],
        "steps": [
            {"step": type(plan.steps[index]).__name__, **asdict(record)}
            for index, record in sorted(incident.steps.items())
        ]
        if plan
        else [],
        "ending": closed.ending if closed else None,
        "closed_at": closed.at if closed else None,
    }


def _text(arguments: Mapping[str, object], key: str) -> str:
    value = arguments.get(key)
    if not isinstance(value, str):
        raise RefusedError("bad-request", f"{key}: expected a text")
    return value
