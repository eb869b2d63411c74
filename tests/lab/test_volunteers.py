"""A stranger's relay carries a pair that has none of its own."""

from __future__ import annotations

from nostrvpn.lab.core import Internet
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.topologies import TwoNats
from tests.lab.homes import admit, launch, ping, watched


class WithVolunteer(TwoNats):
    """Two symmetric NATs, and somebody in no network of theirs who relays for anyone."""

    def build(self) -> None:
        super().build()
        self.volunteer = self.host("volunteer")
        self.node(self.volunteer, self.server, relay={"offer": "anyone"})
        for host in (self.laptop_a, self.laptop_b):
            self.node(host, self.server, paths={"hard_nat_search": False})


def test_a_volunteer_relays_for_strangers() -> None:
    lab = WithVolunteer(NatKind.SYMMETRIC, NatKind.SYMMETRIC, Internet(delay=0.01))
    with watched(lab):
        volunteer, a, b = lab.nodes
        launch(volunteer, a, b)
        admit(a, b)
        for node, other in ((a, b), (b, a)):
            peer = node.wait_for_peer(other.npub, path="relayed", timeout=30)
            assert peer["endpoint"].startswith(f"{lab.volunteer.address}:")
        ping(a, b)
        told = volunteer.query("netcheck")["relay_service"]
        assert told["for"] == "anyone"
        assert told["pairs"] >= 1
        assert told["bytes"] > 0
        assert volunteer.status()["peers"] == []
