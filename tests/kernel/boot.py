"""Boot a kernel that has WireGuard, and run tests in it: ``python tests/kernel/boot.py [ARG...]``.

The machine at hand may lack the ``wireguard`` module (containers and CI machines do). So the kernel that
the distribution packages is booted under qemu by virtme-ng, on this machine's own files, read-only but
for ``build/kernel``. Without arguments it runs the tests of ``TARGETS``; the results are in
``build/kernel/junit.xml``, everything printed in ``build/kernel/console.log``. ``NOSTRVPN_TEST_KERNEL``
names another kernel image, ``NOSTRVPN_KVM=1`` uses hardware virtualization.

Exit code: pytest's own, or 3 if the kernel could not be booted; that is never taken for a pass.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build" / "kernel"

# What runs by default: the backend suite on both backends, and whatever in the lab asks for this
# kernel. Python is an order of magnitude slower under emulation, so keep it to those.
TARGETS = ("-m", "kernel or not lab", "tests/contract/test_wireguard_backend.py", "tests/lab")

# A whole run takes one to two minutes under emulation.
TIMEOUT_S = 300.0

CANNOT_BOOT = 3

# Without these nothing can be tested; without the others only what needs them fails.
MODULES = ("wireguard", "veth", "tun", "nf_tables")
MORE_MODULES = (
    "nf_conntrack",
    "nft_ct",
    "nft_masq",
    "nft_chain_nat",
    "nft_nat",
    "sch_netem",
    "dummy",
    "bridge",
)

# The marks by which the host knows how far the guest came.
READY = "nostrvpn-guest-ready"

# The name under which the guest mounts this machine's files a second time.
EXPORT = "fastroot"

# virtme-ng mounts this machine's files without a cache, so that each import of Python asks the host
# for each file. So they are mounted once more, with one, and the tests run in a chroot there.
GUEST_SCRIPT = """#!/bin/sh
# Runs as root inside the booted kernel. Written by tests/kernel/boot.py.
set -e
export PATH={path}
for module in {modules}; do modprobe "$module"; done
for module in {more_modules}; do
    modprobe "$module" 2>/dev/null || echo "note: this kernel has no $module"
done
mount -t tmpfs tmpfs /run
root=/run/root
mkdir -p $root /run/new
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=524288 {export} $root
for name in etc var tmp; do
    mkdir -p /run/new/$name /run/new/$name.work
    mount -t overlay -o lowerdir=$root/$name,upperdir=/run/new/$name,workdir=/run/new/$name.work \\
        overlay $root/$name
done
mount --bind {build} $root{build}
mount -t tmpfs tmpfs $root/run
for name in dev sys proc; do mount --rbind /$name $root/$name; done
mkdir -p $root/run/netns $root/run/wireguard $root/run/lock $root/run/home
ip link set lo up
exec chroot $root sh {build}/tests.sh
"""

TEST_SCRIPT = """#!/bin/sh
# Runs as root in the guest's chroot. Written by tests/kernel/boot.py.
export PATH={path} HOME=/run/home LC_ALL=C.UTF-8
export PYTHONDONTWRITEBYTECODE=1 NOSTRVPN_STRICT=1
cd {repository} || exit 1
echo {ready} "$(uname -r)"
{python} -m pytest {arguments}
echo $? > {status}
sync
"""


class CannotBootError(Exception):
    """The reason, in words for the person who ran this."""


def main(arguments: list[str]) -> int:
    """Boot, run, report; return the exit code."""
    started = time.monotonic()
    try:
        kernel = find_kernel()
        command = vng_command(kernel)
        prepare(arguments or list(TARGETS))
        print(f"booting {kernel}: {shlex.join(command)}", flush=True)
        status = boot(command)
    except CannotBootError as exc:
        print(f"\nTHE KERNEL TESTS DID NOT RUN: {exc}\n", file=sys.stderr, flush=True)
        return CANNOT_BOOT
    print(f"kernel tests: exit code {status}, {time.monotonic() - started:.0f} s", flush=True)
    return status


def find_kernel() -> Path:
    """Return the newest installed kernel that has the wireguard module."""
    named = os.environ.get("NOSTRVPN_TEST_KERNEL")
    if named:
        if not Path(named).is_file():
            raise CannotBootError(f"NOSTRVPN_TEST_KERNEL names no file: {named}")
        return Path(named)
    images = [
        image
        for image in Path("/boot").glob("vmlinuz-*")
        if any(modules_of(image).glob("kernel/drivers/net/wireguard/wireguard.ko*"))
    ]
    if not images:
        raise CannotBootError(
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
        raise CannotBootError(f"{vng} is missing (pip install virtme-ng)")
    for program, package in (
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("modprobe", "kmod"),
    ):
        if shutil.which(program, path=guest_path()) is None:
            raise CannotBootError(f"{program} is missing (apt install {package})")
    # virtiofs needs a helper program that not every distribution has; 9p is in qemu itself.
    # Emulation is slower than KVM, but works everywhere, also where KVM is only half there.
    kvm = [] if os.environ.get("NOSTRVPN_KVM") else ["--disable-kvm"]
    command = [str(vng), *kvm, "--force-9p", "--run", str(kernel)]
    command += ["--cpus", "2", "--memory", "1G", "--user", "root", "--rwdir", str(BUILD)]
    export = f"-fsdev local,id={EXPORT},path=/,security_model=none,readonly=on,multidevs=remap"
    command.append(f"--qemu-opts={export} -device virtio-9p-pci,fsdev={EXPORT},mount_tag={EXPORT}")
    return [*command, "--exec", f"sh {shlex.quote(str(BUILD / 'guest.sh'))}"]


def guest_path() -> str:
    """Return a PATH with this virtual environment first and the system's programs of root."""
    system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return f"{Path(sys.executable).parent}:{system}"


def prepare(arguments: list[str]) -> None:
    """Write the guest's script, and compile on this machine what the guest will import."""
    # Only files of ours are removed: the guest can write in this directory and nowhere else.
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("junit.xml", "status", "console.log"):
        (BUILD / name).unlink(missing_ok=True)
    options = ["-p", "no:cacheprovider", "-o", "timeout=120", "--durations=5"]
    options += [f"--junitxml={BUILD / 'junit.xml'}", *arguments]
    guest = GUEST_SCRIPT.format(
        path=shlex.quote(guest_path()),
        modules=" ".join(MODULES),
        more_modules=" ".join(MORE_MODULES),
        export=EXPORT,
        build=shlex.quote(str(BUILD)),
    )
    tests = TEST_SCRIPT.format(
        path=shlex.quote(guest_path()),
        repository=shlex.quote(str(REPOSITORY)),
        python=shlex.quote(sys.executable),
        arguments=shlex.join(options),
        ready=READY,
        status=shlex.quote(str(BUILD / "status")),
    )
    (BUILD / "guest.sh").write_text(guest)
    (BUILD / "tests.sh").write_text(tests)
    # Collecting writes the compiled files, pytest's rewritten ones too; the guest cannot write them.
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if collected.returncode != 0:
        raise CannotBootError(f"nothing to run there:\n{collected.stdout}{collected.stderr}")


def boot(command: list[str]) -> int:
    """Run the guest, copying its output as it comes; return pytest's exit code."""
    environment = {**os.environ, "PATH": f"{guest_path()}:{os.environ.get('PATH', '')}"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=REPOSITORY,
        env=environment,
        start_new_session=True,
    )
    too_late = threading.Event()

    def end() -> None:
        too_late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(TIMEOUT_S, end)
    timer.start()
    is_ready = False
    try:
        assert process.stdout is not None
        with process.stdout, (BUILD / "console.log").open("wb") as log:
            for line in process.stdout:
                is_ready |= READY.encode() in line
                log.write(line)
                sys.stdout.write(line.decode(errors="replace").replace("\r", ""))
                sys.stdout.flush()
        process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return read_status(is_ready, too_late.is_set())


def read_status(is_ready: bool, was_ended: bool) -> int:
    """Return the exit code that the guest left behind, or raise with what went wrong."""
    log = BUILD / "console.log"
    if was_ended:
        where = "running tests" if is_ready else "booting"
        raise CannotBootError(f"still {where} after {TIMEOUT_S:.0f} s, ended (see {log})")
    if not is_ready:
        raise CannotBootError(f"it did not come up (see {log})")
    try:
        return int((BUILD / "status").read_text())
    except (OSError, ValueError) as exc:
        raise CannotBootError(f"the guest died while running tests (see {log})") from exc


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
