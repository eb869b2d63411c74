"""Port mapping on a lab router: the real miniupnpd, which speaks PCP, NAT-PMP and UPnP-IGD.

::

    gateway = Gateway(lab, home, upnp=False)
    gateway.restart()        # forgets its mappings, as a router that was switched off and on

Its translations are rules in the router's own nftables table. A packet to a mapped port passes the
router's firewall because it was translated (``ct status dnat``).
"""

from __future__ import annotations

import re
import signal
import uuid
from ipaddress import IPv6Address

from nostrvpn.endpoint import Endpoint, parse_endpoint
from nostrvpn.lab.processes import Process
from nostrvpn.lab.topology import Lab, Router

__all__ = ["Gateway"]

PROGRAM = "/usr/sbin/miniupnpd"
HTTP_PORT = 5000
CONTROL_PORT = 5351

# miniupnpd's chains are in the router's own table, as a jump cannot leave a table and a packet that
# one table accepts is still judged by the next. Its PCP and NAT-PMP have one switch for both, so the
# firewall takes one away: the first byte of a message is its version, 0 for NAT-PMP and 2 for PCP.
_CHAINS = {
    "forward": "miniupnpd",
    "prerouting": "prerouting_miniupnpd",
    "postrouting": "postrouting_miniupnpd",
}
_DIALECTS = """\
table inet lab_gateway {{
    chain input {{
        type filter hook input priority filter - 10;
        {silenced}
    }}
}}
"""
_CONFIGURATION = """\
ext_ifname=wan
listening_ip=lan
http_port={http_port}
enable_natpmp={natpmp}
enable_upnp={upnp}
upnp_table_name=lab_nat
upnp_nat_table_name=lab_nat
min_lifetime={min_lease_s}
max_lifetime=86400
secure_mode=yes
system_uptime=no
notify_interval=900
uuid={uuid}
serial=1
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""
# As nft lists what miniupnpd wrote: the protocol and an IPv6 destination as raw header fields.
_MAPPING = re.compile(r"@nh,72,8 0x11 th dport (\d+) dnat ip to ([0-9.]+:\d+)")
_HOLE = re.compile(r"th dport (\d+) @nh,192,128 (0x[0-9a-f]+) @nh,48,8 0x11 accept")


class Gateway:
    """miniupnpd on ``router``; ends with the lab. Needs the Debian package miniupnpd-nftables.

    ``min_lease_s`` is the shortest lease it gives; a shorter one is lengthened.
    """

    def __init__(
        self,
        lab: Lab,
        router: Router,
        *,
        pcp: bool = True,
        natpmp: bool = True,
        upnp: bool = True,
        min_lease_s: int = 120,
    ) -> None:
        self._namespace = router.namespace
        self._log = lab.directory / f"miniupnpd-{router.name}.log"
        self._configuration = lab.directory / f"miniupnpd-{router.name}.conf"
        self._pid_file = lab.directory / f"miniupnpd-{router.name}.pid"
        silenced = [2] * (not pcp) + [0] * (not natpmp)
        rules = "\n".join(f"udp dport {CONTROL_PORT} @th,64,8 {v} drop" for v in silenced)
        self._namespace.nft(_DIALECTS.format(silenced=rules))
        for chain, ours in _CHAINS.items():
            self._namespace.nft(
                f"add chain inet lab_nat {ours}\ninsert rule inet lab_nat {chain} jump {ours}\n"
            )
        # The last of its services to come up, of those that are wanted.
        control = pcp or natpmp
        self._ready = "Listening for NAT-PMP/PCP" if control else "HTTP listening on port"
        self._configuration.write_text(
            _CONFIGURATION.format(
                http_port=HTTP_PORT,
                natpmp="yes" if control else "no",
                upnp="yes" if upnp else "no",
                min_lease_s=min_lease_s,
                uuid=uuid.uuid5(uuid.NAMESPACE_DNS, router.name),
            )
        )
        self.process = self._start()
        lab.stack.callback(lambda: self.process.stop())

    def _start(self) -> Process:
        process = Process(
            self._namespace,
            (PROGRAM, "-d", "-f", str(self._configuration), "-P", str(self._pid_file)),
            log=self._log,
        )
        process.wait_for_text(self._ready)
        return process

    def restart(self) -> None:
        """Crash it, forget its mappings, and start it; it announces that."""
        self.process.kill()
        for chain in _CHAINS.values():
            self._namespace.nft(f"flush chain inet lab_nat {chain}\n")
        self.process = self._start()

    def silence(self, on: bool = True) -> None:
        """Stop the process where it is, as a router that hangs; False: let it go on."""
        self.process.signal(signal.SIGSTOP if on else signal.SIGCONT)

    def mappings(self) -> dict[int, Endpoint]:
        """Return the UDP mappings: to whom each external port leads."""
        listed = self._list(_CHAINS["prerouting"])
        return {int(port): parse_endpoint(inner) for port, inner in _MAPPING.findall(listed)}

    def holes(self) -> set[Endpoint]:
        """Return the IPv6 endpoints that the firewall lets UDP through to."""
        found = _HOLE.findall(self._list(_CHAINS["forward"]))
        return {Endpoint(IPv6Address(int(ip, 16)), int(port)) for port, ip in found}

    def _list(self, chain: str) -> str:
        return self._namespace.run("nft", "-n", "list", "chain", "inet", "lab_nat", chain).stdout
