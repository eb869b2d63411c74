"""``doctor``: what is wrong on this host, and what would help; with the daemon or without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from nostrvpn.cli.output import count, json_option, show_json
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient, DaemonNotRunning
from nostrvpn.errors import NostrvpnError

__all__ = ["doctor_command"]

# What a finding is called, with the sign it has for people.
_SIGNS = {"ok": "ok", "info": "note", "warning": "warning", "error": "ERROR"}


@click.command("doctor")
@json_option
@click.pass_obj
def doctor_command(options: Options, as_json: bool) -> None:
    """Look for what is wrong here, and say what would help.

    Checks this host, and asks the daemon if it runs. Exit code 1 if something does not work.
    """
    found = [*_host(options), *_daemon(options)]
    if as_json:
        show_json({"findings": found})
    else:
        for finding in found:
            click.echo(f"{_SIGNS[finding['severity']]:<9}{finding['text']}")
            if finding["hint"]:
                click.echo(f"{'':<9}{finding['hint']}")
    if any(finding["severity"] == "error" for finding in found):
        click.get_current_context().exit(1)


def _finding(severity: str, code: str, text: str, hint: str = "") -> dict[str, str]:
    return {"severity": severity, "code": code, "text": text, "hint": hint}


def _host(options: Options) -> Iterator[dict[str, str]]:
    """Yield what can be seen without the daemon."""
    from nostrvpn.io.config_file import load_config
    from nostrvpn.io.privilege import has_net_admin, has_net_raw

    try:
        config = load_config(options.config, options.overlay)
    except NostrvpnError as error:
        yield _finding("error", "configuration", str(error), error.hint)
        return
    yield _finding("ok", "configuration", f"the configuration {options.config} is valid")
    if has_net_admin() and has_net_raw():
        yield _finding("ok", "privilege", "this user may configure the network")
        yield from _kernel(options.interface_name(config))
    else:
        text = "this user may not configure the network: the host was not looked at"
        yield _finding("info", "privilege", text, "run it as root: sudo nostrvpn doctor")


def _kernel(interface: str) -> Iterator[dict[str, str]]:
    from nostrvpn.io.forward_policy import input_obstacle
    from nostrvpn.io.nftables import list_objects
    from nostrvpn.io.wireguard_kernel import KernelBackend
    from nostrvpn.io.wireguard_userspace import UserspaceBackend

    kernel, userspace = KernelBackend().unavailable(), UserspaceBackend().unavailable()
    if not kernel:
        yield _finding("ok", "wireguard", "the kernel has WireGuard")
    elif not userspace:
        text = f"{kernel}: a userspace WireGuard is used, which is slower"
        yield _finding("info", "wireguard", text)
    else:
        hint = "install the kernel module, or wireguard-go: sudo apt install wireguard-go"
        yield _finding("error", "wireguard", f"no WireGuard: {kernel}, and {userspace}", hint)
    try:
        list_objects("tables")
    except NostrvpnError as error:
        hint = error.hint or "install it: sudo apt install nftables"
        yield _finding("error", "nftables", str(error), hint)
        return
    yield _finding("ok", "nftables", "nftables works")
    obstacle = input_obstacle(interface)
    if obstacle is not None:
        text = f"the firewall chain {obstacle.where} drops what members send to this host"
        yield _finding("warning", "firewall_drops", text, obstacle.remedy)


def _daemon(options: Options) -> Iterator[dict[str, str]]:
    """Yield the daemon's own problems."""
    try:
        status: Any = ControlClient(options.control_socket).call("status")
    except DaemonNotRunning as error:
        yield _finding("warning", error.code, str(error), error.hint)
        return
    except NostrvpnError as error:
        yield _finding("error", error.code, str(error), error.hint)
        return
    yield _finding("ok", "daemon", f"the daemon runs; interface {status['interface']}")
    for problem in status["problems"]:
        if problem["code"] != "firewall_drops":  # seen above
            yield _finding(
                problem["severity"], problem["code"], problem["text"], problem.get("hint") or ""
            )
    peers = status["peers"]
    reached = sum(peer["path"] != "none" or bool(peer.get("asleep")) for peer in peers)
    if peers:
        severity = "ok" if reached == len(peers) else "warning"
        hint = "" if severity == "ok" else "see: nostrvpn why PEER"
        text = f"{reached} of {count(len(peers), 'peer')} can be reached, or sleep"
        yield _finding(severity, "peers", text, hint)
