"""Run the tests of the kernel's own WireGuard: ``python tests/kernel/boot.py [ARG...]``.

If this machine's kernel has the ``wireguard`` module, they run here. Containers and CI machines often
lack it; then the kernel that the distribution packages is booted under qemu by virtme-ng, on this
machine's own files, read-only but for ``build/kernel``. Without arguments the tests of ``TARGETS``
run; results are in ``build/kernel/junit.xml``, all that was printed in ``build/kernel/console.log``.
``--needed`` runs nothing: its exit code is 0 if a kernel has to be booted, 1 if not.

``NOSTRVPN_TEST_KERNEL`` names a kernel image, which is then booted in any case; ``NOSTRVPN_KVM=1``
uses hardware virtualization. Exit code: pytest's own, or 3 if the tests could not run, which is said
loudly and never taken for a pass.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build" / "kernel"

# What runs by default. Python is an order of magnitude slower under emulation: nothing but what
# needs this kernel belongs here.
TARGETS = (
    "-m",
    "kernel",
    "tests/contract/test_wireguard_backend.py",
    "tests/contract/test_doorbell.py",
    "tests/contract/test_channels.py",
    "tests/contract/test_shield.py",
    "tests/contract/test_exit_way.py",
    "tests/contract/test_exit_provider.py",
    "tests/kernel",
)

# A whole run takes two minutes under emulation on an idle machine.
TIMEOUT_S = 900.0
# Whoever kills this program kills no qemu; then the guest itself is the one to end it.
GUEST_TIMEOUT_S = TIMEOUT_S + 30
# Every wait of the lab is as many times longer in the guest.
PATIENCE = 10

CANNOT_RUN = 3

# Without these nothing can be tested; without the others only what needs them fails.
MODULES = (
    "wireguard",
    "veth",
    "tun",
    "nf_tables",
    "sch_netem",
    "nft_masq",
    "nft_ct",
    "nft_chain_nat",
)
MORE_MODULES = (
    "nf_conntrack",
    "nft_nat",
    "nft_fib_inet",
    "nft_limit",
    "nft_objref",
    "nft_reject_inet",
    "nft_quota",
    "nft_socket",
    "bridge",
    "dummy",
)

# Older than what qemu can emulate at most: the vector instructions of newer processors are what
# programs then choose, and what emulation is slowest at. Guarding it against side channels is vain.
CPU = "Nehalem"
BOOT_OPTIONS = ("mitigations=off", "nokaslr", "audit=0")

# pytest finds plugins by reading the metadata of every package; the two that are used are named.
PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout")

# What the tests import late, or in programs of their own.
IMPORTS = (
    "nostrvpn.daemon.main",
    "nostrvpn.daemon.relay_service",
    "nostrvpn.lab.relay",
    "nostrvpn.lab.stun",
    "nostrvpn.cli.exit_offer",
    "nostrvpn.cli.exits",
    "nostrvpn.cli.joining",
    "nostrvpn.cli.members",
    "nostrvpn.cli.permissions",
    "nostrvpn.cli.running",
    "nostrvpn.cli.setup",
    "nostrvpn.cli.status",
    "nostr_sdk",
    "nostrvpn.io.pyroute",
    *PLUGINS,
)

# The mark by which the host knows how far the guest came.
READY = "nostrvpn-guest-ready"

# The names under which the guest mounts this machine's files, and the directory for its results.
EXPORT = "nvpnroot"
RESULTS = "nvpnresults"

# virtme-ng mounts this machine's files without a cache, so that each import of Python asks the host
# for each file, and covers /tmp, /home and others. So they are mounted once more, as they are and
# with a cache, and the tests run in a chroot there. Only /run can be written, and is new.
GUEST_SCRIPT = """#!/bin/sh
# Runs as root inside the booted kernel. Written by tests/kernel/boot.py.
set -e
export PATH={path}
(sleep {limit}; echo o >/proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &
for module in {modules}; do modprobe "$module"; done
for module in {more_modules}; do
    modprobe "$module" 2>/dev/null || echo "note: this kernel has no $module"
done
root=/run/nvpn-root
mkdir -p $root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=524288 {export} $root
mount -t tmpfs tmpfs $root/run
for name in dev sys proc; do mount --rbind /$name $root/$name; done
mkdir -p $root/run/netns $root/run/wireguard $root/run/lock $root/run/home $root/run/tmp
mkdir -p $root/run/results
mount --bind /run/results $root/run/results
ip link set lo up
exec chroot $root sh /run/results/tests.sh
"""

TEST_SCRIPT = """#!/bin/sh
# Runs as root in the guest's chroot. Written by tests/kernel/boot.py.
export PATH={path} HOME=/run/home TMPDIR=/run/tmp LC_ALL=C.UTF-8
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
export NOSTRVPN_STRICT=1 NOSTRVPN_LAB_PATIENCE={patience} NOSTRVPN_LAB_LOGS=/run/results/logs
cd {repository} || exit 1
echo {ready} "$(uname -r)" after "$(cut -d ' ' -f 1 /proc/uptime)" s
{python} -m pytest {arguments}
echo $? >/run/results/status
sync
"""


class CannotRunError(Exception):
    """The reason, in words for the person who ran this."""


def main(arguments: list[str]) -> int:
    """Run the tests here or boot and run them there, and report; return the exit code."""
    if arguments == ["--needed"]:
        return 1 if is_wireguard_here() else 0
    started = time.monotonic()
    arguments = arguments or list(TARGETS)
    try:
        if is_wireguard_here():
            print("this machine's kernel has WireGuard: no other one is booted", flush=True)
            status = run_here(arguments)
        else:
            status = run_there(arguments)
    except CannotRunError as exc:
        print(f"\n{'=' * 80}\nTHE KERNEL TESTS DID NOT RUN: {exc}\n{'=' * 80}", flush=True)
        return CANNOT_RUN
    verdict = "passed" if status == 0 else f"FAILED (exit code {status})"
    print(f"kernel tests {verdict}, {time.monotonic() - started:.0f} s", flush=True)
    return status


def is_wireguard_here() -> bool:
    """Say whether this machine's kernel has the module, and no other kernel is asked for."""
    if os.environ.get("NOSTRVPN_TEST_KERNEL"):
        return False
    from nostrvpn.io.wireguard_kernel import KernelBackend

    return not KernelBackend().unavailable()


def run_here(arguments: list[str]) -> int:
    """Run the tests under this machine's kernel; return pytest's exit code."""
    if os.geteuid() != 0:
        raise CannotRunError("they need root (they make network namespaces)")
    environment = {**os.environ, "NOSTRVPN_STRICT": "1"}
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode


def run_there(arguments: list[str]) -> int:
    """Run the tests in a booted kernel; return pytest's exit code."""
    kernel = find_kernel()
    command = vng_command(kernel)
    prepare(arguments)
    print(f"booting {kernel}: {shlex.join(command)}", flush=True)
    return boot(command)


def find_kernel() -> Path:
    """Return the newest installed kernel that has the wireguard module."""
    named = os.environ.get("NOSTRVPN_TEST_KERNEL")
    if named:
        if not Path(named).is_file():
            raise CannotRunError(f"NOSTRVPN_TEST_KERNEL names no file: {named}")
        return Path(named)
    images = [
        image
        for image in Path("/boot").glob("vmlinuz-*")
        if any(modules_of(image).glob("kernel/drivers/net/wireguard/wireguard.ko*"))
    ]
    if not images:
        raise CannotRunError(
            "no kernel with the wireguard module in /boot (apt install linux-image-amd64)"
        )
    return max(images, key=lambda image: [int(n) for n in re.findall(r"\d+", image.name)])


def modules_of(image: Path) -> Path:
    """Return the directory of a kernel image's modules."""
    return Path("/lib/modules") / image.name.removeprefix("vmlinuz-")


def vng_command(kernel: Path) -> list[str]:
    """Return the command that boots the kernel and runs the guest script."""
    vng = Path(sys.executable).parent / "vng"
    if not vng.exists():
        raise CannotRunError(f"{vng} is missing (pip install virtme-ng)")
    for program, package in (
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("modprobe", "kmod"),
    ):
        if shutil.which(program, path=guest_path()) is None:
            raise CannotRunError(f"{program} is missing (apt install {package})")
    # virtiofs needs a helper program that not every distribution has; 9p is in qemu itself.
    command = [str(vng), "--force-9p", "--run", str(kernel), "--cwd", "/"]
    command += ["--cpus", "2", "--memory", "1G", "--user", "root"]
    options = [share(EXPORT, Path("/"), readonly=True), share(RESULTS, BUILD, readonly=False)]
    # Emulation is slower than KVM, but works everywhere, also where KVM is only half there.
    if not os.environ.get("NOSTRVPN_KVM"):
        command.append("--disable-kvm")
        options.append(f"-cpu {CPU}")
    command += [f"--append={option}" for option in BOOT_OPTIONS]
    command.append(f"--qemu-opts={' '.join(options)}")
    mount = f"mount -t 9p -o trans=virtio,version=9p2000.L {RESULTS} /run/results"
    return [*command, "--exec", f"mkdir -p /run/results && {mount} && sh /run/results/guest.sh"]


def share(tag: str, directory: Path, *, readonly: bool) -> str:
    """Return qemu's options that let the guest mount a directory of this machine as ``tag``."""
    if re.search(r"""[\s,'"\\$]""", str(directory)):
        raise CannotRunError(f"qemu cannot be given this path, move the repository: {directory}")
    mode = ",readonly=on" if readonly else ""
    return (
        f"-fsdev local,id={tag},path={directory},security_model=none,multidevs=remap{mode} "
        f"-device virtio-9p-pci,fsdev={tag},mount_tag={tag}"
    )


def guest_path() -> str:
    """Return a PATH with this virtual environment first and the system's programs of root."""
    system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return f"{Path(sys.executable).parent}:{system}"


def prepare(arguments: list[str]) -> None:
    """Write the guest's scripts, and compile on this machine what the guest will import."""
    hidden = [root for root in ("/run", "/dev", "/proc", "/sys") if REPOSITORY.is_relative_to(root)]
    if hidden:
        raise CannotRunError(f"the guest has a {hidden[0]} of its own, move the repository")
    # Only files of ours are removed: the guest can write in this directory and nowhere else.
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("junit.xml", "status", "console.log"):
        (BUILD / name).unlink(missing_ok=True)
    shutil.rmtree(BUILD / "logs", ignore_errors=True)
    options = [f"-p{plugin}" for plugin in PLUGINS]
    options += ["-p", "no:cacheprovider", "-o", "timeout=120", "--durations=5"]
    options += ["--junitxml=/run/results/junit.xml", *arguments]
    guest = GUEST_SCRIPT.format(
        path=shlex.quote(guest_path()),
        limit=int(GUEST_TIMEOUT_S),
        modules=" ".join(MODULES),
        more_modules=" ".join(MORE_MODULES),
        export=EXPORT,
    )
    tests = TEST_SCRIPT.format(
        path=shlex.quote(guest_path()),
        repository=shlex.quote(str(REPOSITORY)),
        python=shlex.quote(sys.executable),
        arguments=shlex.join(options),
        patience=PATIENCE,
        ready=READY,
    )
    (BUILD / "guest.sh").write_text(guest)
    (BUILD / "tests.sh").write_text(tests)
    compile_all(arguments)


def compile_all(arguments: list[str]) -> None:
    """Write the compiled files of all that the guest will import: it cannot write them itself."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for name in ("nostrvpn", "tests"):
        compileall.compile_dir(REPOSITORY / name, quiet=2)
    # Collecting writes pytest's rewritten ones, and shows early when there is nothing to run.
    collect = [f"-p{plugin}" for plugin in PLUGINS]
    collect += ["-p", "no:cacheprovider", "-q", "--collect-only", *arguments]
    for command in (
        [sys.executable, "-c", f"import {', '.join(IMPORTS)}"],
        [sys.executable, "-m", "pytest", *collect],
    ):
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise CannotRunError(f"nothing to run there:\n{done.stdout}{done.stderr}")


def boot(command: list[str]) -> int:
    """Run the guest, copying its output as it comes; return pytest's exit code."""
    too_late = threading.Event()
    is_ready = False
    with guest(command) as process:

        def end() -> None:
            too_late.set()
            kill_group(process.pid)

        timer = threading.Timer(TIMEOUT_S, end)
        timer.daemon = True
        timer.start()
        assert process.stdout is not None
        with (BUILD / "console.log").open("wb") as log:
            for line in process.stdout:
                is_ready |= READY.encode() in line
                log.write(line)
                sys.stdout.write(line.decode(errors="replace").replace("\r", ""))
                sys.stdout.flush()
        timer.cancel()
    return read_status(is_ready, too_late.is_set())


@contextlib.contextmanager
def guest(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the guest; in the end, also by a signal to this program, nothing of it is left."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    # virtme-ng leaves a file behind when it is killed.
    with tempfile.TemporaryDirectory(prefix="nostrvpn-kernel-") as temporary:
        environment = {
            **os.environ,
            "PATH": f"{guest_path()}:{os.environ.get('PATH', '')}",
            "TMPDIR": temporary,
        }
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill_group(process.pid)
            process.wait()


def kill_group(leader: int) -> None:
    """End a process and all that it started; nothing happens when they have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def read_status(is_ready: bool, was_ended: bool) -> int:
    """Return the exit code that the guest left behind, or raise with what went wrong."""
    log = BUILD / "console.log"
    if was_ended:
        where = "running tests" if is_ready else "booting"
        raise CannotRunError(f"still {where} after {TIMEOUT_S:.0f} s, ended (see {log})")
    if not is_ready:
        raise CannotRunError(f"it did not come up (see {log})")
    try:
        status = int((BUILD / "status").read_text())
        # Whatever a test may have made of pytest's process, it writes no report.
        if status == 0 and not (BUILD / "junit.xml").exists():
            raise CannotRunError(f"the tests ended without a report (see {log})")
        return status
    except (OSError, ValueError) as exc:
        raise CannotRunError(f"the guest died while running tests (see {log})") from exc


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
