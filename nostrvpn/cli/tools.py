"""``export``, ``relay``, ``cleanup``, ``lab``, ``completion`` and ``version``."""

from __future__ import annotations

from typing import Any

import click

from nostrvpn.cli.output import console, json_option, show_json, version_spelled
from nostrvpn.config.options import NETWORKS, Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import SystemRefused, UsageError

__all__ = [
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
    if as_json:
        show_json({"config": text})
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
    """Remove everything that carries nostrvpn's mark.

    It needs no saved state. With --interface, only that interface.
    """
    if options.interface is None:
        _refuse_running()
    removed = remove_leftovers(options.interface)
    if as_json:
        show_json({"removed": removed})
        return
    for item in removed:
        click.echo(f"Removed {item}.")
    if not removed:
        click.echo("Nothing here carries our mark.")


def remove_leftovers(interface: str | None) -> list[str]:
    """Remove an interface that a killed daemon left (None: all with our mark); return names."""
    from nostrvpn.io.cleanup import remove_marked

    return list(remove_marked(interface=interface))


def _refuse_running() -> None:
    """Raise SystemRefused if a marked interface belongs to a living daemon; its alias says whose."""
    from nostrvpn.host.state import ALIAS_MARK
    from nostrvpn.io.lock import lock_holder
    from nostrvpn.io.netlink import marked_interfaces

    for link in marked_interfaces():
        state_dir = link.alias.removeprefix(ALIAS_MARK).strip()
        holder = lock_holder(Options(state_dir=state_dir).lock_path) if state_dir else None
        if holder is not None:
            raise SystemRefused(
                f"a daemon runs on {link.name} (pid {holder})",
                f"stop it with: nostrvpn --state-dir {_base(state_dir)} down; or name one --interface",
            )


def _base(home: str) -> str:
    """Return the state directory of the node whose network lives in ``home``."""
    above, _, profile = home.rpartition(f"/{NETWORKS}/")
    return above if above and "/" not in profile else home


@click.group("lab")
def lab_command() -> None:
    """Try nostrvpn in network namespaces; needs root."""


@lab_command.command("demo")
@json_option
def demo(as_json: bool) -> int:
    """Two laptops behind two NATs meet; watch how."""
    from nostrvpn.lab.scenarios import run_demo

    return run_demo(console(), as_json)


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
