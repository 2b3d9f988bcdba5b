"""One virtual machine: its QEMU, its agent, its states."""

import functools
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.requirements import LabError, find_program
from tests.lab.vm_agent import JsonSocket, guest_run
from tests.lab.vm_image import address, image_dir, mac

CLEAN = "clean"
"""Name of the state, disk and memory, that restore() brings back."""


@functools.cache
def accelerator() -> str:
    """``kvm`` where the processor has it, ``tcg`` (emulation) elsewhere; EPDOCTOR_LAB_ACCEL overrides.

    /dev/kvm alone proves nothing: under some hypervisors it opens and a stock kernel dies in it.
    """
    forced = os.environ.get("EPDOCTOR_LAB_ACCEL")
    if forced:
        return forced
    flags = Path("/proc/cpuinfo").read_text().split()
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and {"vmx", "svm"} & set(flags) else "tcg"


class VirtualMachine:
    """One machine. run(), write() and read() act in it as root by QEMU's agent, past network and SSH."""

    def __init__(self, index: int, folder: Path) -> None:
        self.index = index
        self.name = f"vm{index}"
        """Its host name."""
        self.address = address(index, 0)
        """On eth0, for SSH; /etc/hosts of every machine names it."""
        self.data_address = address(index, 1)
        """On eth1, which carries rxe0 (RoCE v2, GID index 1)."""
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.agent = JsonSocket(folder / f"{self.name}.agent", greeting=False)
        self._qmp = JsonSocket(folder / f"{self.name}.qmp", greeting=True)

    @property
    def console(self) -> Path:
        """Log of its serial console."""
        return self._folder / f"{self.name}.console"

    def run(
        self, argv: Sequence[str], *, text: str | None = None, timeout_s: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the machine as root. Raises LabError on a time-out, and with ``check`` for its rc."""
        done = guest_run(self.agent, argv, text=text, timeout_s=timeout_s)
        if check and done.returncode != 0:
            tail = (done.stderr or done.stdout).strip()[-500:]
            raise LabError(f"{self.name}: {' '.join(argv)[:200]} ended with {done.returncode}: {tail}")
        return done

    def sh(self, script: str, *, timeout_s: float = 60, check: bool = True) -> str:
        """Run a shell script in the machine as root; its standard output without the last newline."""
        return self.run(["sh", "-c", script], timeout_s=timeout_s, check=check).stdout.rstrip("\n")

    def write(self, path: str, text: str) -> None:
        """Write a file in the machine; parents are made."""
        self.run(["sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", path], text=text)

    def read(self, path: str) -> str:
        """The text of a file in the machine."""
        return self.run(["cat", "--", path]).stdout

    def monitor(self, line: str, *, timeout_s: float = 60) -> str:
        """A command of QEMU's monitor, as ``info network``; what it prints."""
        return str(
            self._qmp.call("human-monitor-command", {"command-line": line}, timeout_s=timeout_s)
        ).strip()

    def cable(self, network: str, *, plugged: bool) -> None:
        """Pull or plug the cable of the network card ``ssh`` (eth0) or ``data`` (eth1)."""
        self._silent(f"set_link {network} {'on' if plugged else 'off'}")

    def freeze(self) -> None:
        """Stop the whole machine: it answers nothing, its connections stay open."""
        self._qmp.call("stop")

    def thaw(self) -> None:
        """Let it go on."""
        self._qmp.call("cont")

    def save(self, tag: str = CLEAN) -> None:
        """Keep its whole state, disk and memory (half a second)."""
        self.run(["sync"])
        self._silent(f"savevm {tag}")

    def restore(self, tag: str = CLEAN) -> None:
        """Bring a saved state back, also after freeze() or a crash, and set its clock."""
        self._silent(f"loadvm {tag}")
        self._qmp.call("cont")
        for network in ("ssh", "data"):
            self.cable(network, plugged=True)
        self.set_clock()

    def set_clock(self) -> None:
        """Set the machine's clock from this machine's and wait until its chronyd is content."""
        # Under load the answer of `date` comes late: chronyd measures the rest, and makestep takes it at once.
        settle = "chronyc waitsync 300 0 0 0.1 >/dev/null && chronyc makestep >/dev/null"
        script = f'ip neigh flush all; date -s "@$1" >/dev/null; systemctl restart chrony; {settle}'
        self.run(["sh", "-c", script, "sh", f"{time.time():.3f}"])

    def wait(self, timeout_s: float = 240) -> None:
        """Wait until systemd has started everything and sshd listens. Raises LabError."""
        deadline = time.monotonic() + timeout_s
        state = "its agent does not answer"
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise LabError(f"{self.name}: QEMU ended: {self._log()}")
            try:
                state = self.run(
                    ["systemctl", "is-system-running", "--wait"], timeout_s=60, check=False
                ).stdout.strip()
                if state in ("running", "degraded"):
                    return
            except LabError:
                pass
            time.sleep(0.5)
        raise LabError(f"{self.name}: not up after {timeout_s:.0f} s ({state}); see {self.console}")

    def boot_id(self) -> str:
        """Changes with every boot."""
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    def reboot(self, timeout_s: float = 300) -> None:
        """Restart it through its own GRUB, kernel and initramfs, and wait for it. Raises LabError."""
        before = self.boot_id()
        self.run(["systemctl", "reboot"], check=False)
        self.wait_rebooted(before, timeout_s=timeout_s)

    def wait_rebooted(self, before: str, timeout_s: float = 300) -> None:
        """Wait until it runs with another boot id than ``before``. Raises LabError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if (
                    guest_run(
                        self.agent, ["cat", "/proc/sys/kernel/random/boot_id"], text=None, timeout_s=5
                    ).stdout.strip()
                    != before
                ):
                    self.wait(max(1.0, deadline - time.monotonic()))
                    return
            except LabError:
                pass
            time.sleep(0.5)
        raise LabError(f"{self.name}: not back after {timeout_s:.0f} s; see {self.console}")

    # --- inner ----------------------------------------------------------

    def _silent(self, line: str) -> None:
        printed = self.monitor(line)
        if printed:
            raise LabError(f"{self.name}: {line}: {printed}")

    def _log(self) -> str:
        return (self._folder / f"{self.name}.log").read_text(errors="replace").strip()[-800:]

    def start(self, hub: str, disk: Path, *, memory_mib: int, loadvm: bool) -> None:
        """Start QEMU in the network namespace ``hub``; it ends with the thread that calls this."""
        argv = [*qemu_argv(self.index, memory_mib), *self._own_words(disk)]
        if loadvm:
            argv += ["-loadvm", CLEAN]
        with (self._folder / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", hub, *argv],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                self._qmp.call("query-status")
                return
            except LabError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise LabError(f"{self.name}: QEMU does not start: {self._log()}") from error
                time.sleep(0.1)

    def _own_words(self, disk: Path) -> list[str]:
        return [
            "-name", self.name,
            "-drive", f"file={disk},format=qcow2,if=none,id=root,cache=unsafe,discard=unmap",
            "-serial", f"file:{self.console}",
            "-qmp", f"unix:{self._folder}/{self.name}.qmp,server=on,wait=off",
            "-chardev", f"socket,id=agent,path={self._folder}/{self.name}.agent,server=on,wait=off",
            "-kernel", str(image_dir() / "boot.lkrn"),
        ]  # fmt: skip

    def quit(self) -> None:
        """End QEMU so that its disk is complete on this machine."""
        self._qmp.call("quit")
        if self.process is not None:
            self.process.wait(60)
            self.process = None

    def end(self) -> None:
        """End QEMU at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def qemu_argv(index: int, memory_mib: int) -> list[str]:
    """The part of QEMU's command line that a saved state depends on."""
    accel = accelerator()
    return [
        find_program("qemu-system-x86_64") or "qemu-system-x86_64",
        # Nothing that a start would have to probe; q35 boots reliably where microvm sometimes hangs.
        "-M", "q35,usb=off,vmport=off,smbus=off,sata=off,graphics=off",
        "-accel", "tcg,tb-size=128" if accel == "tcg" else accel,
        "-cpu", "max" if accel == "tcg" else "host",
        "-smp", "1", "-m", str(memory_mib),
        "-nodefaults", "-no-user-config", "-display", "none",
        "-device", "virtio-blk-pci,drive=root",
        "-netdev", f"tap,id=nic0,ifname=ssh{index},script=no,downscript=no,vhost=off",
        "-device", f"virtio-net-pci,id=ssh,netdev=nic0,mac={mac(index, 0)},romfile=",
        "-netdev", f"tap,id=nic1,ifname=data{index},script=no,downscript=no,vhost=off",
        # With event_idx a flood of RoCE packets stopped the card's transmit queue for good.
        "-device", f"virtio-net-pci,id=data,netdev=nic1,mac={mac(index, 1)},romfile=,event_idx=off",
        "-device", "virtio-rng-pci",
        "-device", "virtio-serial-pci",
        "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
    ]  # fmt: skip
