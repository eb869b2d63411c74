"""The argument PEER: a name, an npub or the beginning of one; the daemon decides whom it means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nostrvpn.cli.choosing import with_network
from nostrvpn.config.options import DEFAULT_RUNTIME_DIR, DEFAULT_STATE_DIR, Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import NostrvpnError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["PEER"]

# A completion that takes longer than this is worse than none.
_TIMEOUT = 0.5


class _PeerArgument(click.types.StringParamType):
    name = "peer"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names and npubs of the running daemon's peers; none if it does not run."""
        from click.shell_completion import CompletionItem

        given = ctx.find_root().params
        options = Options(
            state_dir=str(given.get("state_dir") or DEFAULT_STATE_DIR),
            runtime_dir=str(given.get("runtime_dir") or DEFAULT_RUNTIME_DIR),
        )
        try:
            client = ControlClient(with_network(options, given.get("network")).control_socket)
            peers = client.call("peers", timeout=_TIMEOUT)["peers"]
        except NostrvpnError:
            return []
        words = [(peer["name"], peer["npub"]) for peer in peers if peer.get("name")]
        words += [(peer["npub"], peer.get("name") or "") for peer in peers]
        return [
            CompletionItem(word, help=about) for word, about in words if word.startswith(incomplete)
        ]


PEER = _PeerArgument()
