"""What the daemon answers on its control socket: plain values that JSON can hold."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Final, TypeVar

import trio

from panicd.config.config import Config, ConfigError
from panicd.config.mistakes import did_you_mean
from panicd.dumps.queue import dump_status
from panicd.fleet.audit import exposed_domains, unwatched
from panicd.fleet.snapshot import (
    Outlook,
    budget_of,
    domain_status,
    foresee_domain,
    waiting_status,
)
from panicd.incident.domains import Domain
from panicd.incident.records import (
    NoSuchIncidentError,
    incident_called,
    incident_view,
    plan_view,
    read_panics,
    read_record,
)
from panicd.incident.services import Services, bundle_directory
from panicd.journal.journal import JournalError
from panicd.qemu.threads import needing_a_thread
from panicd.rules.incident import OWN_TIME_OVER
from panicd.rules.machine.work import known
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.operation import EVERY_DOMAIN, LONGEST_HOLD, Operation, OperationKind
from panicd.rules.plan import Plan
from panicd.rules.plugging import CONSEQUENCES, DEVICE
from panicd.rules.printable import escape
from panicd.service.control import Request
from panicd.service.control_client import RefusedError
from panicd.service.holding import held_under, matched, placed
from panicd.service.operators import Operators

T = TypeVar("T")

WRITTEN_WITHIN: Final = 2.0  # seconds; a bundle of evidence takes some milliseconds
SHOWN_AT_ONCE: Final = 8  # domains; each takes some 70 µs, in which nobody gets a response

PATTERN: Final = frozenset("*?[")


class Api:
    """Answers requests.

    Args:
        services: the daemon's.
        operators: carries out what operators ask for.
        reload: reads the configuration again, and returns the changed keys that only take effect
            at the next start; for a bad one it raises ConfigError and changes nothing.
    """

    def __init__(
        self,
        services: Services,
        operators: Operators,
        reload: Callable[[], Awaitable[Sequence[str]]],
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
        try:
            with needing_a_thread():
                return await self._answer(request)
        except OSError as error:  # the host has no thread or file descriptor left
            raise RefusedError("host", str(error)) from error

    async def _answer(self, request: Request) -> object:
        arguments = request.arguments
        match request.command:
            case "status":
                return self._status()
            case "audit":
                return await self._audit()
            case "explain":
                return self._explain(await self._domain(_text(arguments, "domain")))
            case "incidents":
                return await self._incidents(arguments)
            case "panics":
                return await self._panics(arguments)
            case "incident":
                return await self._incident(_text(arguments, "incident"))
            case "hold":
                return await self._hold(request)
            case "unhold":
                return await self._unhold(request)
            case "release" | "act":
                return await self._act(request)
            case "arm" | "disarm":
                return await self._plug(request)
            case "ack":
                return await self._acknowledge(request)
            case "reload":
                return await self._reload_config()
            case _:
                raise RefusedError("unknown-command", f"no command {request.command!r}")

    def _status(self) -> object:
        services = self._services
        outlook = Outlook.of(services)
        now = outlook.now
        return {
            "now": now,
            "journal_fault": self._keeping.journal.fault,
            "journal_damaged": services.unrecorded(),
            "storm": services.storm.rages(now),
            "dry_run": services.dry_run,
            "libvirt_problem": services.libvirt.problem,
            "problems": services.problems.current,
            "passed_over": services.problems.passed_over,
            "domains": self._domain_views(),
            "waiting": [
                asdict(waiting_status(chronicle.incident, outlook))
                for chronicle in services.waiting.chronicles
            ],
        }

    async def _domain_views(self) -> AsyncIterator[object]:
        services, outlook = self._services, Outlook.of(self._services)
        by_name = sorted(services.fleet.domains.values(), key=lambda d: d.name)
        for number, domain in enumerate(by_name, 1):
            yield asdict(domain_status(domain, outlook))
            if number % SHOWN_AT_ONCE == 0:
                await services.priority.give_way_async()

    async def _audit(self) -> object:
        services, now = self._services, self._keeping.clock()
        domains = services.priority.in_turn(tuple(services.fleet.domains.values()))
        look = partial(exposed_domains, domains, self._keeping.counters, services.holds, now)
        found = await trio.to_thread.run_sync(look)
        without = await unwatched(services.fleet)
        return {
            "domains": len(services.fleet.domains),
            "exposed": [
                {
                    "domain": domain.name,
                    "monitor": domain.address,
                    "pid": None,
                    "on_crash": domain.policy.on_crash if domain.policy else "",
                    "reasons": reasons,
                }
                for domain, reasons in sorted(found, key=lambda each: each[0].name)
            ]
            + [
                {
                    "domain": qemu.name,
                    "monitor": qemu.monitor.path if qemu.monitor else "",
                    "pid": qemu.pid,
                    "on_crash": "",
                    "reasons": reasons,
                }
                for qemu, reasons in without
            ],
        }

    async def _domain(self, name: str) -> Domain:
        called = self._services.fleet.called(name)
        if not called:
            raise await self._no_such_domain(name)
        # A monitor that is left over from before does not count.
        found = [domain for domain in called if domain.session is not None] or called
        if len(found) > 1:
            which = "\n".join(f"  {_told_apart(domain)}" for domain in found)
            message = f"{len(found)} domains are called {name!r}. Which one? Give its monitor:"
            raise RefusedError("ambiguous", f"{message}\n{which}")
        return found[0]

    async def _no_such_domain(self, name: str, hint: str = "") -> RefusedError:
        names = [domain.name for domain in self._services.fleet.domains.values()]
        nearest = await trio.to_thread.run_sync(did_you_mean, name, names)  # slow with many domains
        return RefusedError("no-such-domain", f"no domain is called {name!r}{nearest}{hint}")

    def _explain(self, domain: Domain) -> object:
        session, policy, outlook = domain.session, domain.policy, Outlook.of(self._services)
        status = asdict(domain_status(domain, outlook))
        if session is None or policy is None:
            return {"status": status, "plan": None}
        plan = foresee_domain(domain, outlook)
        return {
            "status": status,
            "budget": asdict(budget_of(domain, outlook)),
            "device_types": list(session.capability.device_types),
            "plugged": session.capability.plugged,
            "work": known(session.vm.work),
            "plan": plan_view(plan),
            "then": plan_view(after) if (after := _after_grace(domain, plan, outlook)) else None,
        }

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
        incident_id = await self._called(incident_id)
        incident = await _read(partial(self._keeping.journal.incident, incident_id))
        if incident is None:  # removed at this moment
            raise _no_such_incident(incident_id)
        if incident.signature is None or not incident.signature.hash:
            why = "panicd knows too little of its panic to compare it"
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
        incident_id = await self._called(incident_id)
        with trio.move_on_after(WRITTEN_WITHIN):
            directory = bundle_directory(self._services.config(), incident_id)
            await self._services.bundle_writer.written(directory)
        record = await _read(partial(read_record, journal, state_directory, incident_id))
        if record is None:
            raise _no_such_incident(incident_id)
        return record | {"dump": self._dump_of(incident_id)}

    def _dump_of(self, incident_id: str) -> object:
        """Return how far an incident's running dump is; None if there is none."""
        for domain in self._services.fleet.domains.values():
            chronicle, dump = domain.chronicle, domain.dump
            if dump is not None and chronicle is not None and chronicle.incident.id == incident_id:
                return asdict(dump_status(dump, self._keeping.clock()))
        return None

    async def _called(self, text: str) -> str:
        """Return the full id of an incident; a current one may not be in the journal yet."""
        domains = self._services.fleet.domains.values()
        if any(d.chronicle is not None and d.chronicle.incident.id == text for d in domains):
            return text
        if any(c.incident.id == text for c in self._services.waiting.chronicles):
            return text
        try:
            return await _read(partial(incident_called, self._keeping.journal.path, text))
        except NoSuchIncidentError as error:
            raise RefusedError("no-such-incident", str(error)) from error

    async def _hold(self, request: Request) -> object:
        asked, services = _text(request.arguments, "domain"), self._services
        seconds = _seconds(request.arguments, "for", "a number of seconds")
        if seconds is not None and not 0 < seconds <= LONGEST_HOLD:
            message = f"for: expected more than 0 seconds, and at most {LONGEST_HOLD:.0f}"
            raise RefusedError("bad-request", message)
        until = self._keeping.clock() + seconds if seconds is not None else None
        places = placed(services.fleet, asked)
        domains = matched(services, places)
        if not domains and asked != EVERY_DOMAIN:
            if set(asked) & PATTERN:
                message = (
                    "a hold is on one domain, by its name or UUID, or on the whole host (--all)"
                )
                raise RefusedError("bad-request", message)
            if request.arguments.get("future") is not True:
                hint = "\nAdd --future to hold it once it exists."
                raise await self._no_such_domain(asked, hint)
        for place in places:
            await self._operators.hold(self._operation(request, place, until))
        why = self._operation(request, "").why
        return {"domain": asked, "until": until, "why": why, "domains": domains}

    async def _unhold(self, request: Request) -> object:
        asked, services = _text(request.arguments, "domain"), self._services
        now = self._keeping.clock()
        places = held_under(services, asked)
        held = [place for place in places if services.holds.at(place, now) is not None]
        if not held:
            message = f"there is no hold on {asked!r}{self._held_with_others(asked, now)}"
            raise RefusedError("not-held", message)
        for place in held:
            await self._operators.hold(self._operation(request, place))
        domains = matched(services, held)
        outlook = Outlook.of(services)
        every = services.fleet.domains.values()
        still = sorted(d.name for d in every if d.name in domains and outlook.hold_on(d))
        return {"domain": asked, "domains": domains, "still_held": still}

    def _held_with_others(self, asked: str, now: float) -> str:
        """Return which wider hold holds a domain that has no hold of its own."""
        holds = self._services.holds
        names = (name for domain in self._services.fleet.called(asked) for name in domain.names)
        if held := next((name for name in names if holds.at(name, now) is not None), None):
            return f" alone; it is held with others, as {held!r}"
        return "; the whole host is held" if holds.at(EVERY_DOMAIN, now) is not None else ""

    async def _act(self, request: Request) -> object:
        domain = await self._domain(_text(request.arguments, "domain"))
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
        about = _text(request.arguments, "about") if "about" in request.arguments else ""
        done, incident = await self._operators.act(domain, operation, action, about)
        return {
            "domain": domain.name,
            "done": done,
            "incident": incident.id if incident else "",
            "state": incident.state if incident else "",
            "ending": incident.closed.ending if incident and incident.closed else "",
        }

    async def _plug(self, request: Request) -> object:
        domain = await self._domain(_text(request.arguments, "domain"))
        operation = self._operation(request, domain.key, detail=DEVICE)
        if request.command == "disarm":
            await self._operators.disarm(domain, operation)
            return {"domain": domain.name}
        if request.arguments.get("yes") is not True:
            raise RefusedError("not-confirmed", f"--yes is missing. {CONSEQUENCES}")
        found = await self._operators.arm(domain, operation)
        return {"domain": domain.name, "argument": found.argument, "taken": found.is_taken}

    async def _acknowledge(self, request: Request) -> object:
        incident_id = await self._called(_text(request.arguments, "incident"))
        operation = self._operation(request, "", detail=incident_id)
        domain = await self._operators.acknowledge(incident_id, operation)
        return {"incident": incident_id, "domain": domain}

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
            user=request.user,
        )

    async def _reload_config(self) -> object:
        before = self._services.config()
        try:
            at_next_start = await self._reload()
        except ConfigError as error:
            raise RefusedError("config", str(error)) from error
        config = self._services.config()
        return {
            "monitors": len(config.monitors),
            "rules": len(config.domains),
            "domains": await self._with_another_policy(before, config),
            "at_next_start": list(at_next_start),
        }

    async def _with_another_policy(self, before: Config, after: Config) -> list[str]:
        """Return the names of the domains to which another policy now applies."""
        changed = []
        for number, domain in enumerate(tuple(self._services.fleet.domains.values()), 1):
            known = domain.claim.name, domain.uuid or None
            if before.policy_for(*known) != after.policy_for(*known):
                changed.append(domain.name)
            if number % SHOWN_AT_ONCE == 0:
                await self._services.priority.give_way_async()
        return sorted(changed)


def _told_apart(domain: Domain) -> str:
    """Return what distinguishes a domain from others of its name, on one line."""
    claimed = f", UUID {domain.uuid}" if domain.uuid else ""
    return escape(f"{domain.address}  ({domain.name}{claimed})")


def _after_grace(domain: Domain, plan: Plan, outlook: Outlook) -> Plan | None:
    """Return what follows if the guest may handle its panic itself, and does not."""
    if plan.decision.action is not Action.GRACE:
        return None
    return foresee_domain(domain, outlook, own_time=OWN_TIME_OVER[plan.decision.reason])


async def _read(read: Callable[[], T]) -> T:
    """Return what a function reads from the journal, in a thread."""
    try:
        return await trio.to_thread.run_sync(read)
    except JournalError as error:
        raise RefusedError("journal", str(error)) from error


def _no_such_incident(incident_id: str) -> RefusedError:
    return RefusedError("no-such-incident", f"no incident is called {incident_id!r}")


def _limit(arguments: Mapping[str, object]) -> int:
    limit = arguments.get("limit", 20)
    if not isinstance(limit, int) or limit < 1:
        raise RefusedError("bad-request", "limit: expected a number from 1 on")
    return limit


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
