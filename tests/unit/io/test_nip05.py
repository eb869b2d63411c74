"""A name at a domain (NIP-05), from a real HTTPS server on loopback."""

from __future__ import annotations

import datetime
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nostrvpn.errors import NostrvpnError, PeerMisbehaved, SystemRefused, UsageError
from nostrvpn.io.nip05 import ask_domain
from nostrvpn.nostr.nip05 import MAX_DOCUMENT, parse_identifier, read_document

KEY = "ab" * 32
ALICE = parse_identifier("Alice@Example.org")


@pytest.mark.parametrize("text", ["alice@example.org", " ALICE@EXAMPLE.ORG ", "a.b_c-1@x.co.uk"])
def test_identifiers(text):
    found = parse_identifier(text)
    assert found.url == f"https://{found.domain}/.well-known/nostr.json?name={found.local}"
    assert parse_identifier("example.org").local == "_"


NOT_IDENTIFIERS = ["@", "alice@", "@example.org", "alice@localhost", "alice@127.0.0.1", "é@a.b"]
NOT_IDENTIFIERS += [f"alice@example.org{end}" for end in ("/x", ":80", "#", "?")]
NOT_IDENTIFIERS += ["a?x@example.org", "a@-x.org"]
TOO_LONG = ["x" * 65 + "@example.org", "alice@" + "a." * 130 + "org"]


@pytest.mark.parametrize(
    "text", ["", "a b@example.org", "a@exa mple.org", *NOT_IDENTIFIERS, *TOO_LONG]
)
def test_what_is_no_identifier(text):
    with pytest.raises(UsageError):
        parse_identifier(text)


DOCUMENTS = ["", "[]", "{", '{"names":[]}', '{"names":null}', '{"names":{"alice":1}}', "[" * 50_000]
OTHERS = ['{"names":{"alice":"npub1x"}}', f'{{"names":{{"bob":"{KEY}"}}}}']


@pytest.mark.parametrize("text", [b"\xff", *(text.encode() for text in DOCUMENTS + OTHERS)])
def test_a_document_that_names_nobody(text):
    with pytest.raises(PeerMisbehaved):
        read_document(text, ALICE)


class _Loopback(AbstractResolver):
    """Every domain is this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(self, host: str, port: int = 0, family: int = 2) -> list[Any]:
        return [
            {"hostname": host, "host": "127.0.0.1", "port": self._port}
            | {"family": 2, "proto": 0, "flags": 0}
        ]

    async def close(self) -> None:
        pass


class Domain:
    """example.org: what it answers is ``answer``; the requests it saw."""

    def __init__(self, certificate: Path) -> None:
        self.answer: web.Response = web.json_response({"names": {"alice": KEY}})
        self.asked: list[str] = []
        self._certificate = certificate
        application = web.Application()
        application.router.add_get("/{path:.*}", self._serve)
        self._server = TestServer(application, scheme="https")

    async def start(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._certificate)
        await self._server.start_server(ssl=context)

    async def stop(self) -> None:
        await self._server.close()

    def connector(self, *, trusted: bool = True) -> aiohttp.TCPConnector:
        context = ssl.create_default_context(cafile=self._certificate if trusted else None)
        assert self._server.port is not None
        return aiohttp.TCPConnector(ssl=context, resolver=_Loopback(self._server.port))

    async def _serve(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        return self.answer


@pytest.fixture
async def domain(tmp_path) -> AsyncIterator[Domain]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "example.org")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("example.org")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + private)
    server = Domain(path)
    await server.start()
    yield server
    await server.stop()


async def test_a_domain_says_whose_a_name_is(domain):
    assert await ask_domain(ALICE, domain.connector()) == KEY
    assert domain.asked == ["/.well-known/nostr.json?name=alice"]


async def test_a_redirect_is_not_followed(domain):
    domain.answer = web.Response(status=302, headers={"Location": "https://other.example/x"})
    with pytest.raises(SystemRefused, match="status 302"):
        await ask_domain(ALICE, domain.connector())
    assert len(domain.asked) == 1


async def test_a_long_answer_is_not_read(domain):
    names = {f"user{number}": KEY for number in range(2000)} | {"alice": KEY}
    text = json.dumps({"names": names})
    assert len(text) > MAX_DOCUMENT
    domain.answer = web.Response(text=text)
    with pytest.raises(SystemRefused, match="more than"):
        await ask_domain(ALICE, domain.connector())


async def test_a_certificate_of_nobody_is_refused(domain):
    with pytest.raises(NostrvpnError, match=r"example\.org cannot be asked"):
        await ask_domain(ALICE, domain.connector(trusted=False))
    assert domain.asked == []
