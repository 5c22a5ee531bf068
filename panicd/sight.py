"""Whether all that happened to a panicked guest was seen; else nobody knows whether it still is.

A RESET is told once, to whoever listens, and nothing in QEMU tells of it afterwards.
"""

from panicd.qemu.session import Session
from panicd.rules.recovery import Found


class Sight:
    """What is seen of one guest through one session.

    Args:
        session: the session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._from_the_panic_on = True
        self._overflows_before = 0

    def begin(self, found: Found | None) -> None:
        """See from here on.

        Args:
            found: how the guest was found by one who had been away; None: its panic was heard.
        """
        self._from_the_panic_on = found is None or found.proves_panic
        self._overflows_before = self._session.seen.overflows

    @property
    def is_unbroken(self) -> bool:
        """Whether nothing can have gone unseen since the guest was known to be panicked."""
        return self._from_the_panic_on and self._session.seen.overflows == self._overflows_before
