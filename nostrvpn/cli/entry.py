"""The command group, its table of commands, and what becomes of errors.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Errors are one or two lines on stderr,
or JSON with ``--json``; an expected failure never shows a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from nostrvpn import __version__
from nostrvpn.cli.choosing import with_network
from nostrvpn.cli.output import show_error
from nostrvpn.config.options import (
    DEFAULT_CONFIG,
    DEFAULT_RUNTIME_DIR,
    DEFAULT_STATE_DIR,
    Options,
)
from nostrvpn.errors import NostrvpnError, UsageError

__all__ = ["group", "main"]

# Command -> module; the object there has the command's name (``export`` -> ``export_command`` …).
_COMMANDS = {
    "init": "setup",
    "id": "setup",
    "up": "running",
    "down": "running",
    "status": "status",
    "network": "network",
    "invite": "members",
    "join": "joining",
    "peers": "members",
    "peer": "members",
    "token": "tokens",
    "rotate": "rotating",
    "allow": "permissions",
    "deny": "permissions",
    "rules": "permissions",
    "shields-up": "permissions",
    "routes": "routes",
    "exit": "exits",
    "wallet": "wallet",
    "exec": "exec",
    "market": "market",
    "policy": "permissions",
    "resolve": "names",
    "nip05": "names",
    "ping": "probes",
    "why": "why",
    "netcheck": "netcheck",
    "doctor": "doctor",
    "export": "tools",
    "relay": "tools",
    "daemon": "running",
    "service": "service",
    "cleanup": "tools",
    "lab": "tools",
    "completion": "tools",
    "version": "tools",
}


# Wide enough for one line per command; a narrower terminal still wraps.
_CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        attribute = f"{cmd_name.replace('-', '_')}_command"
        command = getattr(import_module(f"nostrvpn.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, n=1)
            hint = f"did you mean: nostrvpn {near[0]}?" if near else "see: nostrvpn --help"
            raise UsageError(f"there is no command {args[0][:40]!r}", hint) from error


@click.command(cls=_LazyGroup, context_settings=_CONTEXT)
@click.option(
    "--state-dir",
    envvar="NOSTRVPN_STATE_DIR",
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="Where identity and memory are kept.",
)
@click.option(
    "--runtime-dir",
    envvar="NOSTRVPN_RUNTIME_DIR",
    default=DEFAULT_RUNTIME_DIR,
    show_default=True,
    help="Where the control socket is.",
)
@click.option(
    "--config",
    envvar="NOSTRVPN_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file (YAML).",
)
@click.option(
    "--interface",
    envvar="NOSTRVPN_INTERFACE",
    help="The network interface.  [default: nvpn0, or the configuration's]",
)
@click.option(
    "--network",
    envvar="NOSTRVPN_NETWORK",
    help="Which network is meant.  [default: as nostrvpn network switch said]",
)
@click.version_option(__version__, message="nostrvpn %(version)s")
@click.pass_context
def group(
    ctx: click.Context,
    state_dir: str,
    runtime_dir: str,
    config: str,
    interface: str | None,
    network: str | None,
) -> None:
    """A WireGuard mesh VPN that needs no server of its own.

    Start here: nostrvpn up, then nostrvpn invite, or nostrvpn join. Each option can be given as an
    environment variable too: NOSTRVPN_STATE_DIR, NOSTRVPN_RUNTIME_DIR, NOSTRVPN_CONFIG,
    NOSTRVPN_INTERFACE, NOSTRVPN_NETWORK. A node can be in several networks, see nostrvpn network.
    Several nodes can run on one host by differing in all the others.
    """
    if interface is not None:
        _check_interface(interface)
    options = Options(
        state_dir=os.path.abspath(state_dir),
        runtime_dir=os.path.abspath(runtime_dir),
        config=os.path.abspath(config),
        interface=interface,
    )
    ctx.obj = with_network(options, network)


def _check_interface(name: str) -> None:
    import re

    # The same rule as config.model.INTERFACE_PATTERN, which would cost msgspec's import here.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", name):
        raise UsageError(
            f"{name[:40]!r} is not a name for an interface",
            "use 1 to 15 letters, digits, '_', '.' or '-', and a letter or digit first",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        result: Any = group.main(given, prog_name="nostrvpn", standalone_mode=False)
        sys.stdout.flush()
    except NostrvpnError as error:
        show_error(error.code, str(error), error.hint, as_json=as_json)
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "nostrvpn"
        text = " ".join(error.format_message().split())
        show_error("usage_error", text, f"see: {command} --help", as_json=as_json)
        return 2
    except click.ClickException as error:
        show_error("error", error.format_message(), "", as_json=as_json)
        return 1
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return result if isinstance(result, int) else 0
