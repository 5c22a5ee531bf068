"""What the daemon answers on its control socket: plain values that JSON can hold."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Final, TypeVar

import trio

from panicd.answers.audit import exposed_domains, unwatched
from panicd.answers.operators import Operators
from panicd.answers.snapshot import budget_of, domain_status, foresee_domain
from panicd.fleet import Domain
from panicd.host.config import ConfigError
from panicd.host.control import RefusedError, Request
from panicd.host.journal import JournalError
from panicd.records import incident_view, plan_view, read_panics, read_record
from panicd.rules.exposure import REMEDIES, Exposure
from panicd.rules.incident import OWN_TIME_OVER
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.operation import EVERY_DOMAIN, Operation, OperationKind
from panicd.rules.plan import Plan
from panicd.services import Services

T = TypeVar("T")

SHOWN_AT_ONCE: Final = 8  # domains; each takes some 70 µs, in which nobody is responded to


class Api:
    """Answers requests.

    Args:
        services: the daemon's.
        operators: carries out what operators ask.
        reload: reads the configuration anew; raises ConfigError and changes nothing on a bad one.
    """

    def __init__(
        self, services: Services, operators: Operators, reload: Callable[[], Awaitable[None]]
    ) -> None:
        self._services = services
        self._keeping = services.keeping
        self._operators = operators
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
            case "audit":
                return await self._audit()
            case "explain":
                return self._explain(self._domain(_text(arguments, "domain")))
            case "incidents":
                return await self._incidents(arguments)
            case "panics":
                return await self._panics(arguments)
            case "incident":
                return await self._incident(_text(arguments, "incident"))
            case "hold" | "unhold":
                return await self._hold(request)
            case "release" | "act":
                return await self._act(request)
            case "ack":
                return await self._acknowledge(request)
            case "reload":
                return await self._reload_config()
            case _:
                raise RefusedError("unknown-command", f"no command {request.command!r}")

    def _status(self) -> object:
        services = self._services
        now = self._keeping.clock()
        return {
            "now": now,
            "journal_fault": self._keeping.journal.fault,
            "journal_damaged": services.unrecorded(),
            "storm": services.storm.rages(now),
            "dry_run": services.dry_run,
            "libvirt_problem": services.libvirt.problem,
            "domains": self._domain_views(now),
            "waiting": [incident_view(c.incident) for c in services.waiting.chronicles],
        }

    async def _domain_views(self, now: float) -> AsyncIterator[object]:
        services = self._services
        by_name = sorted(services.fleet.domains.values(), key=lambda d: d.name)
        for number, domain in enumerate(by_name, 1):
            yield asdict(domain_status(domain, self._keeping.tally, services.holds, now))
            if number % SHOWN_AT_ONCE == 0:
                await services.way.give_way_async()

    async def _audit(self) -> object:
        services, now = self._services, self._keeping.clock()
        domains = services.way.in_turn(tuple(services.fleet.domains.values()))
        look = partial(exposed_domains, domains, self._keeping.tally, services.holds, now)
        found = await trio.to_thread.run_sync(look)
        without = await trio.to_thread.run_sync(unwatched, services.fleet)
        no_monitor = {Exposure.NO_MONITOR: REMEDIES[Exposure.NO_MONITOR]}
        return {
            "domains": len(services.fleet.domains),
            "exposed": [
                {
                    "domain": domain.name,
                    "monitor": domain.address,
                    "on_crash": domain.policy.on_crash if domain.policy else "",
                    "reasons": {reason: REMEDIES[reason] for reason in reasons},
                }
                for domain, reasons in sorted(found, key=lambda each: each[0].name)
            ]
            + [
                {
                    "domain": qemu.name or f"process {qemu.pid}",
                    "monitor": "",
                    "on_crash": "",
                    "reasons": no_monitor,
                }
                for qemu in without
            ],
        }

    def _domain(self, name: str) -> Domain:
        domain = self._services.fleet.by_name(name)
        if domain is None:
            raise RefusedError("no-such-domain", f"no domain is called {name!r}")
        return domain

    def _explain(self, domain: Domain) -> object:
        services, session, policy = self._services, domain.session, domain.policy
        now = self._keeping.clock()
        status = asdict(domain_status(domain, self._keeping.tally, services.holds, now))
        if session is None or policy is None:
            return {"status": status, "plan": None}
        plan = foresee_domain(domain, self._keeping.tally, services.holds, now)
        return {
            "status": status,
            "budget": asdict(budget_of(domain, self._keeping.tally, now)),
            "device_types": list(session.capability.device_types),
            "plan": plan_view(plan),
            "then": plan_view(after) if (after := self._after_grace(domain, plan)) else None,
        }

    def _after_grace(self, domain: Domain, plan: Plan) -> Plan | None:
        """Return what follows where the guest may handle its panic itself, and does not."""
        if plan.decision.action is not Action.GRACE:
            return None
        services, now = self._services, self._keeping.clock()
        over = OWN_TIME_OVER[plan.decision.reason]
        return foresee_domain(domain, self._keeping.tally, services.holds, now, own_time=over)

    async def _incidents(self, arguments: Mapping[str, object]) -> object:
        same_as = _text(arguments, "same_as") if "same_as" in arguments else None
        signature = await self._signature(same_as) if same_as is not None else None
        read = partial(
            self._keeping.journal.incidents,
            domain=_text(arguments, "domain") if "domain" in arguments else None,
            open_only=arguments.get("open") is True,
            unacknowledged=arguments.get("unacknowledged") is True,
            since=_seconds(arguments, "since", "seconds since the epoch"),
            until=_seconds(arguments, "until", "seconds since the epoch"),
            limit=_limit(arguments),
            signature=signature,
        )
        return [incident_view(incident) for incident in await _read(read)]

    async def _signature(self, incident_id: str) -> str:
        """Return what an incident's panic is compared by."""
        incident = await _read(partial(self._keeping.journal.incident, incident_id))
        if incident is None:
            raise _no_such_incident(incident_id)
        if incident.signature is None or not incident.signature.hash:
            why = "too little is known of its panic to say that another is the same"
            raise RefusedError("no-signature", f"incident {incident_id}: {why}")
        return incident.signature.hash

    async def _panics(self, arguments: Mapping[str, object]) -> object:
        since = _seconds(arguments, "since", "seconds since the epoch") or 0.0
        journal = self._keeping.journal.path
        groups = await _read(partial(read_panics, journal, since, _limit(arguments)))
        return [
            {**asdict(group), "title": known.title, "frames": known.frames}
            for group, known in groups
        ]

    async def _incident(self, incident_id: str) -> object:
        state_directory = self._services.config().state_directory
        journal = self._keeping.journal.path
        record = await _read(partial(read_record, journal, state_directory, incident_id))
        if record is None:
            raise _no_such_incident(incident_id)
        return record

    async def _hold(self, request: Request) -> object:
        name = _text(request.arguments, "domain")
        seconds = _seconds(request.arguments, "for", "a number of seconds")
        until = self._keeping.clock() + seconds if seconds is not None else None
        await self._operators.hold(self._operation(request, self._key(name), until))
        return {"domain": name, "until": until}

    async def _act(self, request: Request) -> object:
        domain = self._domain(_text(request.arguments, "domain"))
        action = None
        detail = ""
        if request.command == "act":
            detail = _text(request.arguments, "action")
            try:
                action = OnCrash(detail)
            except ValueError:
                allowed = ", ".join(OnCrash)
                raise RefusedError("bad-request", f"action: expected one of {allowed}") from None
        operation = self._operation(request, domain.key, detail=detail)
        done = await self._operators.act(domain, operation, action)
        return {"domain": domain.name, "done": done}

    async def _acknowledge(self, request: Request) -> object:
        incident_id = _text(request.arguments, "incident")
        operation = self._operation(request, "", detail=incident_id)
        await self._operators.acknowledge(incident_id, operation)
        return {"incident": incident_id}

    def _key(self, name: str) -> str:
        if name == EVERY_DOMAIN:
            return name
        domain = self._services.fleet.by_name(name)
        return domain.key if domain is not None else name

    def _operation(
        self, request: Request, key: str, until: float | None = None, detail: str = ""
    ) -> Operation:
        return Operation(
            at=self._keeping.clock(),
            uid=request.peer.uid,
            kind=OperationKind(request.command),
            domain=key,
            why=_text(request.arguments, "why"),
            until=until,
            detail=detail,
        )

    async def _reload_config(self) -> object:
        try:
            await self._reload()
        except ConfigError as error:
            raise RefusedError("config", str(error)) from error
        return {}


async def _read(read: Callable[[], T]) -> T:
    """Return what is read from the journal, in a thread."""
    try:
        return await trio.to_thread.run_sync(read)
    except JournalError as error:
        raise RefusedError("journal", str(error)) from error


def _no_such_incident(incident_id: str) -> RefusedError:
    return RefusedError("no-such-incident", f"no incident is called {incident_id!r}")


def _limit(arguments: Mapping[str, object]) -> int:
    limit = arguments.get("limit", 20)
    return limit if isinstance(limit, int) else 20


def _seconds(arguments: Mapping[str, object], key: str, expected: str) -> float | None:
    value = arguments.get(key)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise RefusedError("bad-request", f"{key}: expected {expected}")


def _text(arguments: Mapping[str, object], key: str) -> str:
    value = arguments.get(key)
    if not isinstance(value, str):
        raise RefusedError("bad-request", f"{key}: expected a text")
    return value
