"""Faults between panicd and libvirt.

They say whether the call reached libvirt, and so whether libvirt may have acted::

    LibvirtError
    ├── LibvirtAwayError      libvirt was told nothing: it is not there, silent, or busy with others
    │   └── LibvirtNoRoomError    the call could not wait, and there was no room
    ├── LibvirtRefusedError   libvirt answered no
    └── LibvirtSilentError    libvirt was told, and gave no answer: ask for the domain's state
        └── LibvirtLostError      the connection has ended
"""

from enum import IntEnum


class ErrorCode(IntEnum):
    """The libvirt errors that panicd knows (``virErrorNumber``, virterror.h)."""

    INTERNAL_ERROR = 1
    NO_SUPPORT = 3
    OPERATION_FAILED = 9
    XML_ERROR = 27
    RPC = 39
    NO_DOMAIN = 42
    AUTH_FAILED = 45
    OPERATION_INVALID = 55  # not in this state
    NO_DOMAIN_METADATA = 80
    ACCESS_DENIED = 88


class LibvirtError(Exception):
    """libvirt did not do what panicd asked for."""


class LibvirtAwayError(LibvirtError):
    """libvirt was told nothing."""


class LibvirtNoRoomError(LibvirtAwayError):
    """The call could not wait in line, and there was no room."""


class LibvirtSilentError(LibvirtError):
    """There is no answer; libvirt may still act, or may have acted."""


class LibvirtLostError(LibvirtSilentError):
    """The connection ended before an answer came."""


class LibvirtRefusedError(LibvirtError):
    """libvirt said no.

    Attributes:
        code: why, ``ErrorCode`` or another of libvirt's numbers.
        message: libvirt's text, for people; bounded, on one line.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def no_domain(self) -> bool:
        """Whether libvirt knows no such domain."""
        return self.code == ErrorCode.NO_DOMAIN
