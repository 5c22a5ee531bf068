"""The section ``notify`` of the configuration: who is told of incidents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from panicd.config.section import Value
from panicd.config.values import (
    WrongValueError,
    absolute_path,
    positive_duration,
    program,
    text,
)
from panicd.config.yaml_document import Scalar

RETRY_FOR: Final = 86400.0
"""Seconds: a receiver may be away for a night."""

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where notifications are sent.

    Attributes:
        url: of http or https, without user, password and fragment.
        timeout: seconds for one try.
        ca_file: certificates that the receiver's is verified with; None: the system's.
        credentials_file: has a bearer token (RFC 6750); None: none is sent.
    """

    url: str
    timeout: float = 10.0
    ca_file: Path | None = None
    credentials_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Hook:
    """A command that gets notifications.

    Attributes:
        command: the program's absolute path, and its arguments.
        timeout: seconds for one run.
    """

    command: tuple[str, ...]
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Notify:
    """Who is told of incidents.

    Attributes:
        retry_for: seconds for which panicd tries to deliver a notification.
        webhook: gets each as an HTTP request.
        hook: runs for each.
    """

    retry_for: float = RETRY_FOR
    webhook: Webhook | None = None
    hook: Hook | None = None


def read_notify(value: Value) -> Notify:
    """Read the section."""
    with value.section() as keys:
        return Notify(
            retry_for=keys["retry_for"].read(positive_duration, RETRY_FOR),
            webhook=_webhook(keys["webhook"]),
            hook=_hook(keys["hook"]),
        )


def _webhook(value: Value) -> Webhook | None:
    builtin = Webhook(url="")
    with value.section() as keys:
        url = keys["url"]
        webhook = Webhook(
            url=url.read(_http_url, ""),
            timeout=keys["timeout"].read(positive_duration, builtin.timeout),
            ca_file=keys["ca_file"].read(absolute_path, None),
            credentials_file=keys["credentials_file"].read(absolute_path, None),
        )
        if keys.sound:
            _check_secrets(url)
            if value.given and not url.given:
                url.wrong("the address of the receiver")
    return webhook if webhook.url else None


def _hook(value: Value) -> Hook | None:
    builtin = Hook(command=())
    with value.section() as keys:
        command = keys["command"]
        words = [
            item.read(text if index else program, "") for index, item in enumerate(command.items())
        ]
        hook = Hook(tuple(words), keys["timeout"].read(positive_duration, builtin.timeout))
        if value.given and keys.sound and not words:
            command.wrong("the program to run and its arguments")
    return hook if hook.command else None


def _http_url(scalar: Scalar) -> str:
    wrong = WrongValueError("an http or https address, such as https://ops.example/panicd")
    if not scalar.text.isascii() or not scalar.text.isprintable() or " " in scalar.text:
        raise wrong
    try:
        url = urlsplit(scalar.text)
        port = url.port
    except ValueError:  # brackets that don't match, a port that is no number
        raise wrong from None
    if url.scheme not in DEFAULT_PORTS or not url.hostname or port == 0:
        raise wrong
    return scalar.text


def _check_secrets(url: Value) -> None:
    """Note an address that would send something over the network in an unintended way."""
    address = urlsplit(url.read(_http_url, ""))
    if "@" in address.netloc or address.fragment:
        # It may contain a password, and is not repeated.
        url.wrong("an address without user, password and fragment", "one with them")
