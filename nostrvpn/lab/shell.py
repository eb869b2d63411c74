"""An interactive shell in the middle of a lab."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from nostrvpn.lab.node import LabNode
from nostrvpn.lab.topology import Lab

__all__ = ["open_lab_shell", "render_rcfile"]


def open_lab_shell(lab: Lab, nodes: list[LabNode]) -> int:
    """Start the nodes, give the user a shell, and return its exit code when it ends."""
    for node in nodes:
        node.init()
        node.start()
    rcfile = lab.directory / "shellrc"
    rcfile.write_text(render_rcfile(lab, nodes))
    return subprocess.run(("bash", "--rcfile", str(rcfile), "-i"), check=False).returncode


def render_rcfile(lab: Lab, nodes: list[LabNode]) -> str:
    """Return a bash start file: each machine is a function that runs a command on it."""
    commands = {node.name: node for node in nodes}
    lines = [
        "[ -f ~/.bashrc ] && . ~/.bashrc",
        f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        "PS1='(lab) \\w # '",
    ]
    for label, namespace in lab.namespaces.items():
        settings = ""
        if node := commands.get(label):
            settings = "env " + " ".join(
                f"{key}={shlex.quote(str(value))}" for key, value in node.environment.items()
            )
        lines.append(f'{label}() {{ ip netns exec {namespace.name} {settings} "$@"; }}')
    names = " ".join(lab.namespaces)
    example = nodes[0].name if nodes else "core"
    hints = [
        f"Machines: {names}",
        f"Run a command on one:  {example} ip address;  {example} nostrvpn status",
        f"Logs and captures are in {lab.directory}. Leave with exit or Ctrl-D: all goes away.",
    ]
    lines += [f"echo {shlex.quote(hint)}" for hint in hints]
    return "\n".join(lines) + "\n"
