"""``nostrvpn lab shell``: every machine of the lab is a command in it."""

import subprocess

import pytest

from nostrvpn.lab.patience import patient
from nostrvpn.lab.shell import render_rcfile
from nostrvpn.lab.topologies import TwoNats

pytestmark = pytest.mark.lab


def test_each_machine_is_a_command_that_runs_there_as_its_node() -> None:
    with TwoNats(relay=False) as lab:
        node = lab.node(lab.laptop_a, lab.server)
        rcfile = lab.directory / "shellrc"
        rcfile.write_text(render_rcfile(lab, [node]))
        typed = "nat-a ip -brief address\nlaptop-a env\nlaptop-b env\nexit 3\n"
        done = subprocess.run(
            ("bash", "--rcfile", str(rcfile), "-i"),
            input=typed,
            capture_output=True,
            text=True,
            timeout=patient(10),
        )
        assert done.returncode == 3
        assert f"{lab.nat_a.address}/24" in done.stdout
        assert done.stdout.count(f"NOSTRVPN_INTERFACE={node.interface}") == 1
        assert str(lab.directory) in done.stdout
