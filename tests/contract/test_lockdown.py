"""What a killed daemon left goes by ``down``, but for what lockdown holds back; all by ``cleanup``."""

from __future__ import annotations

from typing import Any

from nostrvpn.host.inbound import inbound_table
from nostrvpn.host.shield import Shield, ShieldKind, shield_table
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.shield import apply_shield


def test_in_lockdown_down_removes_everything_but_the_block(netns: Any) -> None:
    netns.run("nft", "add", "table", "inet", inbound_table("nv0"))
    netns.call(apply_shield, Shield(ShieldKind.BLOCKED), "nv0")
    removed = netns.call(remove_marked, interface="nv0", keep_shield=True)
    assert [word for word in removed if "table" in word] == [f"table inet {inbound_table('nv0')}"]
    assert netns.run("nft", "list", "tables").split() == ["table", "inet", shield_table("nv0")]
    netns.call(remove_marked, interface="nv0")
    assert netns.run("nft", "list", "tables").strip() == ""
