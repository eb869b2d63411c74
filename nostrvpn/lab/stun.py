"""A STUN server (RFC 8489 Binding, UDP) for the lab; every socket answers from itself.

``python -m nostrvpn.lab.stun --listen 192.0.2.1:3478 --listen 192.0.2.2:3478``
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import socket
import sys

from aioice import stun

from nostrvpn.endpoint import Endpoint, parse_endpoint

__all__ = ["answer", "main"]

DATAGRAM_LIMIT = 2048


def answer(data: bytes, source: tuple[str, int]) -> bytes | None:
    """Return the Binding response for a request from ``source``, None for anything else."""
    try:
        request = stun.parse_message(data)
    except ValueError:
        return None
    if (request.message_method, request.message_class) != (stun.Method.BINDING, stun.Class.REQUEST):
        return None
    response = stun.Message(
        message_method=stun.Method.BINDING,
        message_class=stun.Class.RESPONSE,
        transaction_id=request.transaction_id,
    )
    response.attributes["XOR-MAPPED-ADDRESS"] = source
    response.add_fingerprint()
    return bytes(response)


def _listen(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET if endpoint.ip.version == 4 else socket.AF_INET6
    listener = socket.socket(family, socket.SOCK_DGRAM)
    listener.bind((str(endpoint.ip), endpoint.port))
    return listener


def main() -> None:
    """Listen everywhere, say ``ready`` on standard output, and answer until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", action="append", required=True, type=parse_endpoint)
    selector = selectors.DefaultSelector()
    for endpoint in parser.parse_args().listen:
        selector.register(_listen(endpoint), selectors.EVENT_READ)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for key, _ in selector.select():
            listener = key.fileobj
            assert isinstance(listener, socket.socket)
            data, source = listener.recvfrom(DATAGRAM_LIMIT)
            response = answer(data, (source[0], source[1]))
            if response:
                # The requester may be unreachable by now (its network was cut): not our concern.
                with contextlib.suppress(OSError):
                    listener.sendto(response, source)


if __name__ == "__main__":
    main()
