"""``service``: nostrvpn as a service of systemd, for those who installed it with pip."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from nostrvpn.cli.output import json_option, shown_as_json
from nostrvpn.errors import SystemRefused, UsageError

__all__ = ["service_command"]


@click.group("service")
def service_command() -> None:
    """Run nostrvpn as a service of systemd: unprivileged, in a sandbox, started at boot."""


_root_option = click.option(
    "--root",
    default="/",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
    help="Of an image or a chroot, not of this host.",
)


@service_command.command("install")
@_root_option
@click.option("--command", "command", metavar="PATH", help="What it runs.  [default: this one]")
@json_option
def install(root: str, command: str | None, as_json: bool) -> None:
    """Put the units in place and start them; they begin with an identity (nostrvpn init)."""
    from nostrvpn.io.service_files import install_service

    _require_root()
    written = install_service(Path(root).resolve(), _command(command))
    if shown_as_json({"written": written}, as_json):
        return
    for path in written:
        click.echo(f"Wrote {path}")
    click.echo("The service is installed." if written else "The service was installed already.")
    click.echo(
        "Next: sudo nostrvpn init, if there is no identity; then sudo systemctl start nostrvpn"
    )


@service_command.command("uninstall")
@_root_option
@json_option
def uninstall(root: str, as_json: bool) -> None:
    """Stop it and remove all that install made; identity and memberships stay."""
    from nostrvpn.io.service_files import uninstall_service

    _require_root()
    removed = uninstall_service(Path(root).resolve())
    if shown_as_json({"removed": removed}, as_json):
        return
    for path in removed:
        click.echo(f"Removed {path}")
    click.echo("The service is removed." if removed else "There was no service.")


@service_command.command("status")
@json_option
def status(as_json: bool) -> None:
    """Show what systemd says of the units."""
    from nostrvpn.io.service_files import service_state

    state = service_state()
    if shown_as_json(state, as_json):
        return
    for unit, said in state.items():
        click.echo(f"{unit}: {said['enabled']}, {said['active']}")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise SystemRefused("a service is installed by root", "run it again with sudo")


def _command(given: str | None) -> str:
    """Return the absolute path of the command; it must be one that the service's user can run."""
    path = given or shutil.which(sys.argv[0]) or shutil.which("nostrvpn")
    if path is None or not Path(path).is_absolute() or any(c in path for c in " \t\n%\"'\\"):
        raise UsageError(
            "the path of the command nostrvpn is not known, or holds a space or a quote",
            "name it: nostrvpn service install --command /usr/local/bin/nostrvpn",
        )
    closed = [p for p in Path(path).resolve().parents if not p.stat().st_mode & 0o001]
    if given is None and closed:
        raise UsageError(
            f"the service's user could not read {closed[-1]}, where nostrvpn is installed",
            "install it for all: sudo PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install …",
        )
    return path
