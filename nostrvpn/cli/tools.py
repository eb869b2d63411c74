"""``export``, ``relay``, ``cleanup``, ``lab``, ``completion`` and ``version``."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from nostrvpn.cli.output import console, json_option, show_json, shown_as_json, version_spelled
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import SystemRefused, UsageError

__all__ = [
    "check_privilege",
    "cleanup_command",
    "completion_command",
    "export_command",
    "lab_command",
    "relay_command",
    "remove_leftovers",
    "version_command",
]


@click.group("export")
def export_command() -> None:
    """Write the tunnel for other programs."""


@export_command.command("wg-quick")
@click.option("--output", "-o", metavar="F", help="Write a new file (0600), not to the terminal.")
@json_option
@click.pass_obj
def wg_quick(options: Options, output: str | None, as_json: bool) -> None:
    """Print the tunnel as a wg-quick file; it holds the private key."""
    from nostrvpn.cli.export import quick_text

    data = ControlClient(options.control_socket).call("export")
    text = quick_text(data)
    if output:
        from nostrvpn.io.durable_file import write_durably

        write_durably(output, text.encode(), mode=0o600, replace=False)
        if as_json:
            show_json({"file": output})
        return
    if shown_as_json({"config": text}, as_json):
        return
    click.echo(text, nl=not text.endswith("\n"))


@click.command("relay")
@click.option("--listen", default="127.0.0.1:7777", show_default=True, metavar="HOST:PORT")
def relay_command(listen: str) -> None:
    """Run a small Nostr relay in memory, for a LAN or a trial."""
    import asyncio
    import signal

    from nostrvpn.config.addresses import check_host_port
    from nostrvpn.io.embedded_relay import EmbeddedRelay

    try:
        host, port = check_host_port(listen)
    except ValueError as error:
        raise UsageError(f"--listen: {error}", "for example: --listen 0.0.0.0:7777") from error

    async def serve() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        relay = EmbeddedRelay(host, port)
        await relay.start()
        try:
            click.echo(f"Relay on {relay.url}; Ctrl-C stops it.")
            await stopped.wait()
        finally:
            await relay.stop()

    asyncio.run(serve())


@click.command("cleanup")
@json_option
@click.pass_obj
def cleanup_command(options: Options, as_json: bool) -> None:
    """Remove everything that carries nostrvpn's mark, once no daemon runs.

    It needs no saved state. With --interface, only that interface.
    """
    holder = None if options.interface else _daemon_of_any_network(options)
    if holder is not None:  # it may hold everything back without an interface of its own
        raise SystemRefused(
            f"a daemon runs (pid {holder}) and would put back what is removed",
            "stop it first: nostrvpn down",
        )
    check_privilege(for_packets=False)
    # All: nobody's may be at work. One: it may be this node's own.
    home = options.home if options.interface else None
    removed = remove_leftovers(options.interface, home, state_dir=options.state_dir)
    if shown_as_json({"removed": removed}, as_json):
        return
    for item in removed:
        click.echo(f"Removed {item}.")
    if not removed:
        click.echo("Nothing here carries our mark.")


def _daemon_of_any_network(options: Options) -> int | None:
    from nostrvpn.io.lock import lock_holder
    from nostrvpn.io.profiles import profiles

    # A state directory that cannot be read keeps nobody from a clean-up.
    with suppress(SystemRefused):
        for profile in profiles(options):
            with suppress(SystemRefused):
                holder = lock_holder(options.of_network(profile).lock_path)
                if holder is not None:
                    return holder
    return None


def remove_leftovers(
    interface: str | None,
    home: str | None,
    *,
    keep_shield: bool = False,
    state_dir: str | None = None,
) -> list[str]:
    """Remove an interface that a killed daemon left (None: all with our mark); return names.

    ``state_dir``: with what lockdown holds back at the next start, of the networks there.
    SystemRefused if a daemon of another home than this one lives on it, or if not all could go: what
    went is told before.
    """
    from nostrvpn.io.boot_block import remove_boot_blocks
    from nostrvpn.io.cleanup import NotAllRemoved, remove_marked
    from nostrvpn.io.wireguard_claim import require_no_other_node

    require_no_other_node(interface, home)
    removed = [] if state_dir is None else remove_boot_blocks(state_dir, interface)
    try:
        return [*removed, *remove_marked(interface=interface, keep_shield=keep_shield)]
    except NotAllRemoved as exc:
        for item in (*removed, *exc.removed):
            click.echo(f"Removed {item}.", err=True)
        raise


def check_privilege(*, for_packets: bool = True) -> None:
    """Raise SystemRefused unless this process may change interfaces, and make raw sockets."""
    from nostrvpn.io.privilege import has_net_admin, has_net_raw

    held = {"CAP_NET_ADMIN": has_net_admin(), "CAP_NET_RAW": has_net_raw()}
    missing = [name for name, has in held.items() if not has and (for_packets or "RAW" not in name)]
    if missing:
        raise SystemRefused(
            f"no permission to change the network ({' and '.join(missing)} missing)",
            "run it as root (sudo)",
        )


@click.group("lab")
def lab_command() -> None:
    """Try nostrvpn in network namespaces; needs root."""


@lab_command.command("demo")
@json_option
def demo(as_json: bool) -> int:
    """Two laptops behind two NATs meet; watch how."""
    from nostrvpn.lab.scenarios import run_demo

    return run_demo(console(), as_json)


@lab_command.command("market")
@json_option
def market(as_json: bool) -> int:
    """A laptop buys its way out through a stranger's VPS, by the megabyte; watch how."""
    from nostrvpn.lab.market_demo import run_market_demo

    return run_market_demo(console(), as_json)


@lab_command.command("shell")
@click.argument("scenario", default="two-nats")
def shell(scenario: str) -> int:
    """Open a shell inside SCENARIO."""
    from nostrvpn.lab.scenarios import SCENARIOS, open_shell

    _known(scenario, SCENARIOS)
    return open_shell(scenario)


@lab_command.command("run")
@click.argument("scenario")
@json_option
def run(scenario: str, as_json: bool) -> int:
    """Run SCENARIO once and tell the result; ``list`` names them all."""
    from nostrvpn.lab.scenarios import SCENARIOS, run_scenario

    if scenario == "list":
        names = sorted(SCENARIOS)
        if as_json:
            show_json(names)
        else:
            click.echo("\n".join(names))
        return 0
    _known(scenario, SCENARIOS)
    return run_scenario(scenario, console(), as_json)


@lab_command.command("matrix")
@json_option
def matrix(as_json: bool) -> None:
    """Let every kind of network meet every other; print a page of the paths found.

    It takes several minutes.
    """
    from nostrvpn.lab.matrix import measure_matrix, render_page

    measured = measure_matrix(tell=lambda text: click.echo(text, err=True))
    if as_json:
        show_json(measured)
    else:
        click.echo(render_page(measured["pairs"]), nl=False)


def _known(scenario: str, scenarios: Any) -> None:
    if scenario not in scenarios:
        names = ", ".join(sorted(scenarios))
        raise UsageError(f"there is no scenario {scenario[:40]!r}", f"there are: {names}")


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: nostrvpn completion bash > /etc/bash_completion.d/nostrvpn
    zsh:  nostrvpn completion zsh > "${fpath[1]}/_nostrvpn"
    fish: nostrvpn completion fish > ~/.config/fish/completions/nostrvpn.fish
    """
    from click.shell_completion import get_completion_class

    from nostrvpn.cli.entry import group

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(group, {}, "nostrvpn", "_NOSTRVPN_COMPLETE").source())


@click.command("version")
@json_option
def version_command(as_json: bool) -> None:
    """Show the version."""
    if not as_json:
        click.echo(version_spelled())
        return
    import platform

    from nostrvpn import __version__

    show_json(
        {
            "version": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
        }
    )
