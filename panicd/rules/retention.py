"""Which bundles of evidence panicd may remove."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from panicd.rules.settings import Policy
from panicd.rules.shares import Kept, make_room


@dataclass(frozen=True, slots=True)
class Summary:
    """The part of an incident that decides whether panicd keeps its evidence.

    Attributes:
        id: it sorts by time, to a second.
        domain: its domain's key (``identity.Vouched.key``; ``identity.owner_of`` reads the user
            from it).
        opened_at: in seconds since the epoch.
        closed_at: the same; None: it is open.
        restarted: it ended with panicd restarting the guest.
        acknowledged: somebody has looked at it.
        owner: the domain's user, as the host vouches for him; None: unknown.
    """

    id: str
    domain: str
    opened_at: float
    closed_at: float | None
    restarted: bool
    acknowledged: bool
    owner: int | None = None


class Bundles:
    """All bundles, and the incidents that decide which panicd may remove.

    These bundles stay: those of open incidents; each domain's newest until somebody acknowledges
    it; of a domain that panicked always the newest, and the first of its crash loop, which tells
    more than the later ones. No bundle goes because of another user's (``shares``).

    What concerns all domains is worked out once: when many panic together, each asks.

    Args:
        incidents: all known incidents.
        sizes: the bundles' sizes in bytes, by their incident's id. An unknown incident is from a
            lost journal, or, if it is newer than all others, not yet written to the journal.
    """

    def __init__(self, incidents: Sequence[Summary], sizes: Mapping[str, int]) -> None:
        self._incidents = sorted(incidents, key=_age)
        self._sizes = dict(sizes)
        self._total = sum(sizes.values())
        self._of_domain: dict[str, list[Summary]] = {}
        for one in self._incidents:
            self._of_domain.setdefault(one.domain, []).append(one)
        self._kept = frozenset(_open_or_unseen(self._of_domain.values()))

    def expendable(self, domain: str, policy: Policy, newest: str = "") -> dict[str, str]:
        """Return which bundles to remove after a panic, and why, the oldest first.

        Args:
            domain: the domain that has panicked.
            policy: that domain's policy.
            newest: its incident whose evidence was just kept; the clock may have been set back
                since the other incidents.
        """
        settings = policy.evidence
        if settings is None or not self._incidents:
            return {}
        own = self._of_domain.get(domain, [])
        kept = {newest, *self._kept.intersection(one.id for one in own)}
        if own:
            kept.add(own[-1].id)
        if settings.keep > 1:
            kept.update(_first_of_loop(own, policy.restart.min_uptime))
        removed: dict[str, str] = {}
        bundles = [one.id for one in own if one.id in self._sizes]
        excess = len(bundles) - settings.keep
        for name in [name for name in bundles if name not in kept][: max(0, excess)]:
            removed[name] = f"more than {settings.keep} bundles of this domain (evidence.keep)"
        if self._total - sum(self._sizes[name] for name in removed) > settings.max_total:
            owner = own[-1].owner if own else None
            for name in self._beyond(settings.max_total, owner, kept, removed.keys()):
                removed[name] = (
                    f"all bundles together took more than {settings.max_total} bytes "
                    "(evidence.max_total)"
                )
        return removed

    def removed(self, name: str) -> None:
        """Note that a bundle is gone."""
        self._total -= self._sizes.pop(name)

    def _beyond(
        self, limit: int, owner: int | None, kept: AbstractSet[str], removed: AbstractSet[str]
    ) -> Iterator[str]:
        """Yield the bundles to remove because all together take too much."""
        sizes = self._sizes
        owners = {one.id: one.owner for one in self._incidents}
        latest = max(_second(one.id) for one in self._incidents)
        unknown = sizes.keys() - owners.keys()
        of_no_journal = sorted(name for name in unknown if _second(name) < latest)
        oldest_first = [*of_no_journal, *(one.id for one in self._incidents)]
        stay = kept | self._kept | removed
        may_go = [
            Kept(name, sizes[name], owners.get(name))
            for name in oldest_first
            if name in sizes and name not in stay
        ]
        stays: dict[int | None, int] = {}
        for name in sizes.keys() - removed - {one.thing for one in may_go}:
            stays[owners.get(name)] = stays.get(owners.get(name), 0) + sizes[name]
        return make_room(may_go, stays, owner, limit)


def _age(incident: Summary) -> tuple[float, str]:
    """Return the key that sorts incidents, oldest first: their ids are exact only to a second."""
    return incident.opened_at, incident.id


def _second(incident_id: str) -> str:
    return incident_id.partition("-")[0]


def _open_or_unseen(domains: Iterable[Sequence[Summary]]) -> Iterator[str]:
    """Yield the open incidents, and each domain's newest that nobody has looked at."""
    for same in domains:
        yield from (one.id for one in same if one.closed_at is None)
        if not same[-1].acknowledged:
            yield same[-1].id


def _first_of_loop(own: Sequence[Summary], min_uptime: float) -> Iterator[str]:
    """Yield the incident that a domain's newest ones follow from, each soon after a restart."""
    for before, after in zip(reversed(own[:-1]), reversed(own), strict=False):
        restarted_at = before.closed_at if before.restarted else None
        if restarted_at is None or after.opened_at - restarted_at >= min_uptime:
            yield after.id
            return
    if own:
        yield own[0].id
