"""What the node has to say, gathered during one step and sent at its end.

A step may change a peer's description several times and admit the peer as well; it shall cost one
message. So join requests, welcomes and descriptions gather here and leave together, each with what
the recipient should know of this node: WireGuard key, relays, roster sample, candidates.
"""

from __future__ import annotations

from collections.abc import Callable

from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import (
    JoinState,
    RequestJoin,
    SendRefusal,
    SendRoster,
    Welcome,
)
from nostrvpn.mesh.invites import Link
from nostrvpn.mesh.log_text import pack_operations
from nostrvpn.mesh.membership import Membership
from nostrvpn.mesh.tokens import TokenLink, token_mailbox
from nostrvpn.node.events import NodeEffect
from nostrvpn.node.peers import MAX_PEER_RELAYS
from nostrvpn.node.post import Post
from nostrvpn.node.relaying import MeshRelays
from nostrvpn.paths.description import Description, description_to_json
from nostrvpn.paths.relay_offers import offer_to_json
from nostrvpn.signaling.messages import MessageType

__all__ = ["Outbox"]

# Joins, welcomes and rosters wait on the relays so long for whoever is offline.
STORED_S = 7 * 86_400


class Outbox:
    """The messages of one node that wait for the end of the step."""

    def __init__(
        self,
        membership: Membership,
        post: Post,
        wireguard_key: str,
        relays: MeshRelays,
    ) -> None:
        self._membership = membership
        self._post = post
        self._wireguard_key = wireguard_key
        self._relays = relays
        self.advertised: tuple[str, ...] = ()
        """The networks behind this node that it offers to carry packets to."""
        self.exit_for: Callable[[str], dict[str, object] | None] = lambda _peer: None
        """What a peer is told of this node as an exit; None: it offers it nothing."""
        self._descriptions: dict[str, Description] = {}
        self._to_tell: dict[str, None] = {}
        self._to_describe: dict[str, None] = {}
        self._welcomes: list[Welcome] = []
        self._request: RequestJoin | None = None

    def describe(self, peer: str, description: Description) -> None:
        """Tell ``peer`` how this node can be reached."""
        self._descriptions[peer] = description
        self._to_describe[peer] = None

    def tell(self, peer: str) -> None:
        """Tell ``peer`` what this node says of itself, beside how it can be reached."""
        self._to_tell[peer] = None

    def welcome(self, effect: Welcome) -> None:
        """Tell an applicant that it was admitted."""
        self._welcomes.append(effect)

    def request_join(self, effect: RequestJoin) -> None:
        """Ask the inviter to be admitted."""
        self._request = effect

    def forget(self, peer: str) -> None:
        """Drop what was to be said to ``peer``."""
        self._descriptions.pop(peer, None)
        self._to_describe.pop(peer, None)
        self._to_tell.pop(peer, None)

    def send(self, effect: SendRefusal | SendRoster, moment: Moment) -> list[NodeEffect]:
        """Send at once what needs nothing of this step's outcome."""
        if isinstance(effect, SendRefusal):
            body: dict[str, object] = {"invite": effect.invite_id, "reason": effect.reason}
            return self._publish(effect.applicant, MessageType.REFUSED, body, moment, STORED_S)
        body = {"ops": pack_operations(effect.operations)}
        return self._publish(effect.recipient, MessageType.ROSTER, body, moment, STORED_S)

    def flush(self, moment: Moment) -> list[NodeEffect]:
        """Send everything that gathered."""
        effects = self._flush_request(moment)
        for peer in self._to_describe:
            # Who may have lost its welcome cannot read a description; the welcome holds it too.
            if not any(welcome.applicant == peer for welcome in self._welcomes):
                self._welcomes += self._membership.welcome_again(peer, moment.now)
        for welcome in self._welcomes:
            self._to_describe.pop(welcome.applicant, None)
            body = self._about_us(welcome.applicant) | {
                "ops": welcome.text,
                "part": welcome.part,
                "total": welcome.total,
            }
            kind = MessageType.WELCOME
            effects += self._publish(welcome.applicant, kind, body, moment, STORED_S)
        self._welcomes.clear()
        for peer in list(self._to_describe):
            effects += self._publish(peer, MessageType.DESCRIBE, self._about_us(peer), moment)
            self._to_tell.pop(peer, None)
        self._to_describe.clear()
        for peer in self._to_tell:
            body = self._about_us(peer) | {"desc": None}
            effects += self._publish(peer, MessageType.DESCRIBE, body, moment)
        self._to_tell.clear()
        return effects

    def _flush_request(self, moment: Moment) -> list[NodeEffect]:
        joining, request = self._membership.joining, self._request
        self._request = None
        if joining is None or not joining.is_open:
            return []
        link, inviter = joining.link, joining.inviter
        if inviter in self._to_describe and joining.state is JoinState.ASKING:
            # News for the inviter travels in the request until we are admitted.
            del self._to_describe[inviter]
            request = request or RequestJoin(joining, stored=False)
        if request is None:
            return []
        asked = self._membership.join_request(moment.entropy.take(32))
        # By a token whoever of the members reads it first answers: nobody yet to describe a path to.
        body = (self.about_us() if inviter is None else self._about_us(inviter)) | asked
        return self._post.send(
            inviter or "",
            MessageType.JOIN,
            link.network_id,
            body,
            moment,
            expires_s=STORED_S if request.stored else None,
            invite=link.secret if isinstance(link, Link) else None,
            token=token_mailbox(link.secret) if isinstance(link, TokenLink) else None,
        )

    def about_us(self) -> dict[str, object]:
        """Return what this node says of itself to everybody."""
        relays = [r.url for r in self._post.pool.snapshot() if r.state == "connected"]
        return {
            "wg": self._wireguard_key,
            "relays": relays[:MAX_PEER_RELAYS],
            "routes": list(self.advertised),
        }

    def _about_us(self, peer: str) -> dict[str, object]:
        description, roster = self._descriptions.get(peer), self._membership.roster
        offer, key = self._relays.offer_for(peer), self._post.keyring.current
        return self.about_us() | {
            "digest": roster.digest if roster is not None else "",
            "sample": list(roster.sample()) if roster is not None else [],
            "key": key.id if key is not None and not key.told_by else "",
            "relay": None if offer is None else offer_to_json(offer),
            "exit": self.exit_for(peer),
            "desc": description_to_json(description) if description is not None else None,
        }

    def _publish(
        self,
        recipient: str,
        kind: MessageType,
        body: dict[str, object],
        moment: Moment,
        expires_s: int | None = None,
    ) -> list[NodeEffect]:
        roster = self._membership.roster
        if roster is None:
            return []
        network = roster.network_id
        return self._post.send(recipient, kind, network, body, moment, expires_s=expires_s)
