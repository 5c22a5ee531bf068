"""One request to a receiver of webhooks, over TLS and in vain."""

import ssl
import sys
from pathlib import Path

import pytest

from panicd.config.notify import Webhook
from panicd.notify.delivery import DeliveryError
from panicd.notify.webhook import post
from tests.parts.patience import fail_after
from tests.parts.receiver import Receiver, status

TLS = Path(__file__).parents[1] / "parts/tls"


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.crt", TLS / "server.key")
    return context


async def send(webhook: Webhook) -> None:
    with fail_after(10):
        await post(webhook, {"ce-id": "1"}, b"{}")


async def test_over_tls() -> None:
    async with Receiver.start(tls=server_context()) as receiver:
        await send(Webhook(f"https://localhost:{receiver.port}", ca_file=TLS / "ca.crt"))
        (told,) = receiver.requests
    assert (told.target, told.body) == ("/", {})
    assert told.headers["host"] == f"localhost:{receiver.port}"


async def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    async with Receiver.start(tls=server_context()) as receiver:
        with pytest.raises(DeliveryError, match="certificate verify failed"):
            await send(Webhook(f"https://localhost:{receiver.port}"))
        assert receiver.requests == []


async def test_an_authority_without_key_usage() -> None:
    """Python holds authorities to RFC 5280, 4.2.1.3, from 3.13 on (``VERIFY_X509_STRICT``)."""
    async with Receiver.start(tls=server_context()) as receiver:
        lax = Webhook(
            f"https://localhost:{receiver.port}", ca_file=TLS / "ca_without_key_usage.crt"
        )
        if sys.version_info >= (3, 13):
            with pytest.raises(DeliveryError, match="CA cert does not include key usage extension"):
                await send(lax)
        else:
            await send(lax)


async def test_a_certificate_of_another_name_is_refused() -> None:
    async with Receiver.start(tls=server_context()) as receiver:
        webhook = Webhook(f"https://127.1:{receiver.port}", ca_file=TLS / "ca.crt")
        with pytest.raises(DeliveryError, match="Hostname mismatch"):
            await send(webhook)
        assert receiver.requests == []


async def test_a_receiver_that_says_nothing_has_its_time() -> None:
    async with Receiver.start() as receiver:
        receiver.answer = lambda _number, _told: None
        with pytest.raises(DeliveryError, match=r"^no answer within 0\.05 s$"):
            await send(Webhook(receiver.url, timeout=0.05))


async def test_what_comes_before_the_answer_is_none() -> None:
    async with Receiver.start() as receiver:
        early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
        receiver.answer = lambda _number, _told: early + status(202)
        await send(Webhook(receiver.url))
        receiver.answer = lambda _number, _told: early * 3
        with pytest.raises(DeliveryError):
            await send(Webhook(receiver.url))


@pytest.mark.parametrize("name", ["missing.invalid", "x" * 64 + ".example"])
async def test_a_name_that_there_is_none_of(name: str) -> None:
    with pytest.raises(DeliveryError):
        await send(Webhook(f"http://{name}/", timeout=1.0))


@pytest.mark.parametrize("file", [TLS / "none.crt", TLS / "server.key"])
async def test_a_file_that_is_no_authority(file: Path) -> None:
    async with Receiver.start(tls=server_context()) as receiver:
        with pytest.raises(DeliveryError):
            await send(Webhook(f"https://localhost:{receiver.port}", ca_file=file))
