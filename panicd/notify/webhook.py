"""Sends one HTTP request to a receiver of notifications: h11 on a trio stream.

All of it has one time limit, from the look-up of the name to the status of the response. So a
receiver that is silent, slow or endless costs that time at most. Certificates are verified.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import h11
import trio

from panicd.config.notify import DEFAULT_PORTS, Webhook
from panicd.notify.delivery import DeliveryError

HEADER_LIMIT: Final = 16 * 1024
"""Bytes of a response's headers; its body is not read."""

CREDENTIALS_LIMIT: Final = 8 * 1024  # bytes


async def post(webhook: Webhook, headers: Mapping[str, str], body: bytes) -> None:
    """Send a POST request, and check that the response has a status of 2xx.

    Raises:
        DeliveryError: it has not, or that is not known.
    """
    try:
        with trio.fail_after(webhook.timeout):
            status = await _exchange(webhook, headers, body)
    except trio.TooSlowError:
        raise DeliveryError(f"no answer within {webhook.timeout:g} s") from None
    except (OSError, ValueError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        raise DeliveryError(_reason(error)) from error
    if not 200 <= status < 300:
        raise DeliveryError(f"answered with status {status}")


async def _exchange(webhook: Webhook, headers: Mapping[str, str], body: bytes) -> int:
    url = urlsplit(webhook.url)
    assert url.hostname is not None
    port = url.port or DEFAULT_PORTS[url.scheme]
    sent = {
        "Host": url.netloc,
        "User-Agent": "panicd",
        "Connection": "close",
        "Content-Length": str(len(body)),
        **headers,
    }
    if webhook.credentials_file is not None:
        token = await trio.to_thread.run_sync(_credentials, webhook.credentials_file)
        sent["Authorization"] = f"Bearer {token}"
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    stream = await trio.open_tcp_stream(url.hostname, port)
    try:
        if url.scheme == "https":
            context = await trio.to_thread.run_sync(_context, webhook.ca_file)
            stream = trio.SSLStream(
                stream, context, server_hostname=url.hostname, https_compatible=True
            )
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_LIMIT)
        request = h11.Request(method="POST", target=target, headers=list(sent.items()))
        parts = (request, h11.Data(data=body), h11.EndOfMessage())
        await stream.send_all(b"".join(parser.send(part) or b"" for part in parts))
        while not isinstance(event := parser.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                parser.receive_data(bytes(await stream.receive_some(HEADER_LIMIT)))
        return event.status_code
    finally:
        await trio.aclose_forcefully(stream)


def _reason(error: BaseException) -> str:
    """Return the root cause of an error: trio wraps those of TLS and of connecting."""
    while isinstance(error, BaseExceptionGroup) or error.__cause__ is not None:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[-1]
        elif error.__cause__ is not None:
            error = error.__cause__
    return str(error) or type(error).__name__


def _context(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def _credentials(path: Path) -> str:
    with path.open("rb") as file:
        token = file.read(CREDENTIALS_LIMIT).decode("ascii").strip()
    if not token or not token.isprintable():
        raise ValueError(f"{path}: expected a token on one line")
    return token
