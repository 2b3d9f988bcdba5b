"""The machine under everything else: OS, kernel, boot command line, virtualization, memory, clock.

Sources: proc(5), os-release(5), sysctl documentation of the Linux kernel, adjtimex(2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, FileSet, Probe, Script, Source, require

if TYPE_CHECKING:
    from epdoctor.facts import Node

SYSCTLS = {
    "vm.max_map_count": "/proc/sys/vm/max_map_count",
    "vm.nr_hugepages": "/proc/sys/vm/nr_hugepages",
    "vm.overcommit_memory": "/proc/sys/vm/overcommit_memory",
    "kernel.numa_balancing": "/proc/sys/kernel/numa_balancing",
    "kernel.yama.ptrace_scope": "/proc/sys/kernel/yama/ptrace_scope",
    "kernel.dmesg_restrict": "/proc/sys/kernel/dmesg_restrict",
    "kernel.unprivileged_userns_clone": "/proc/sys/kernel/unprivileged_userns_clone",
}
SESSION_VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")
SESSION_PREFIXES = ("SLURM_JOB", "SLURM_STEP", "SLURM_NODE", "SLURM_NNODES", "SLURM_GPUS", "SLURMD_")


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Files(
            "system.files",
            globs=(
                "/proc/cmdline",
                "/proc/cpuinfo",
                "/proc/meminfo",
                "/proc/uptime",
                "/proc/sys/kernel/hostname",
                "/proc/sys/kernel/osrelease",
                "/proc/sys/kernel/random/boot_id",
                *SYSCTLS.values(),
                "/etc/os-release",
                "/sys/class/dmi/id/sys_vendor",
                "/sys/class/dmi/id/product_name",
                "/sys/hypervisor/type",
                "/sys/kernel/mm/transparent_hugepage/enabled",
                "/sys/devices/system/node/online",
                # Ten policies are a sample; one file a core would cost a large node hundreds of reads.
                "/sys/devices/system/cpu/cpufreq/policy?/scaling_governor",
                "/etc/systemd/logind.conf",
                "/etc/systemd/logind.conf.d/*.conf",
                "/usr/lib/systemd/logind.conf",
                "/usr/lib/systemd/logind.conf.d/*.conf",
            ),
            # The first processor's block of /proc/cpuinfo is all that is used.
            max_file_bytes=8192,
            timeout_s=5.0,
        ),
        Script(
            "system.session",
            script="session.py",
            params={"env": list(SESSION_VARIABLES), "env_prefixes": list(SESSION_PREFIXES)},
            timeout_s=5.0,
        ),
    )


@dataclass(frozen=True)
class Clock:
    """The kernel's view of its clock (adjtimex(2), modes 0)."""

    synchronised: bool
    """False: STA_UNSYNC is set, nothing disciplines the clock."""
    max_error_s: float
    """The kernel's own bound on the error; 16 s when nothing disciplines it."""


@dataclass(frozen=True)
class System:
    hostname: str | Unmeasured
    kernel_release: str | Unmeasured
    """"6.8.0-45-generic", from /proc/sys/kernel/osrelease."""
    kernel_version: tuple[int, int, int] | Unmeasured
    cmdline_words: tuple[str, ...] | Unmeasured
    """Words of /proc/cmdline: what this boot was given, not what grub would give the next one."""
    arch: str | Unmeasured
    """"x86_64" | "aarch64" (uname)."""
    os_id: str
    """ID of os-release, e.g. "ubuntu"; empty where it has none."""
    os_version: str
    os_pretty: str
    libc_version: str | Unmeasured
    """"2.36" (confstr CS_GNU_LIBC_VERSION of the node's Python)."""
    virtualization: str | Unmeasured
    """"none" | "kvm" | "vmware" | "hyper-v" | "xen" | "amazon" | "google" | "firecracker" | "vm" (other)."""
    is_grace: bool | Unmeasured
    """NVIDIA Grace CPU: Arm Neoverse V2 (implementer 0x41, part 0xd4f) on a machine of NVIDIA's name."""
    uptime_seconds: float | Unmeasured
    boot_id: str | Unmeasured
    memory_total_bytes: int | Unmeasured
    memory_available_bytes: int | Unmeasured
    numa_nodes: int | Unmeasured
    governors: tuple[str, ...]
    """Scaling governors of the first ten cpufreq policies; empty where the kernel scales nothing (VMs)."""
    transparent_hugepages: str | Unmeasured
    """"always" | "madvise" | "never"."""
    sysctls: dict[str, int]
    """Value by name for those of SYSCTLS that the kernel has; yama is absent where it is not built in."""
    sysctl_errors: dict[str, str]
    """Those that exist but could not be read."""
    remove_ipc: bool | Unmeasured | None
    """logind's RemoveIPC; None: no logind here, or neither set nor documented in its file."""
    clock: Clock | Unmeasured
    session_env: dict[str, str]
    """SLURM_*, KUBERNETES_SERVICE_HOST and `container` of the agent's own session."""

    def sysctl(self, name: str) -> int | None:
        """Value; None where this kernel has no such key. Unmeasured where it could not be read."""
        if name in self.sysctl_errors:
            raise Unmeasured(f"{name}: {self.sysctl_errors[name]}")
        return self.sysctls.get(name)


def version_numbers(text: str, parts: int = 3) -> tuple[int, ...]:
    """Leading numbers of a version: "6.8.0-45-generic" -> (6, 8, 0). Missing parts are 0; () for none."""
    numbers: list[int] = []
    for word in text.strip().lstrip("vV").split(".")[:parts]:
        digits = ""
        for char in word[:9]:
            if char not in "0123456789":
                break
            digits += char
        if not digits:
            break
        numbers.append(int(digits))
        if len(digits) != len(word):
            break
    return tuple((numbers + [0] * parts)[:parts]) if numbers else ()


def _read(files: FileSet, path: str) -> str | Unmeasured:
    try:
        return files.require(path).strip()
    except Unmeasured as reason:
        return reason


def _mapped(value: str | Unmeasured, convert: Callable[[str], Any]) -> Any:
    if isinstance(value, Unmeasured):
        return value
    try:
        return convert(value)
    except (ValueError, IndexError, KeyError):
        return Unmeasured(f"not understood: {value[:80]!r}")


def _kernel(release: str) -> tuple[int, int, int]:
    numbers = version_numbers(release)
    if len(numbers) != 3:
        raise ValueError(release)
    return numbers[0], numbers[1], numbers[2]


def key_values(text: str, separator: str = "=") -> dict[str, str]:
    """KEY=VALUE lines, last one wins; comments and quotes dropped."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition(separator)
        if equals and key and not key.startswith("#"):
            found[key.strip()] = value.strip().strip("\"'")
    return found


def count_range(text: str) -> int:
    """Members of a kernel list: "0-1,4" -> 3."""
    total = 0
    for part in text.split(","):
        first, dash, last = part.partition("-")
        total += int(last if dash else first) - int(first) + 1
    if not 0 < total < 1 << 20:
        raise ValueError(text)
    return total


_VENDORS = (
    ("vmware", "vmware"),
    ("microsoft corporation virtual", "hyper-v"),
    ("xen", "xen"),
    ("qemu", "kvm"),
    ("kvm", "kvm"),
    ("red hat", "kvm"),
    ("google", "google"),
    ("amazon ec2", "amazon"),
    ("openstack", "kvm"),
    ("firecracker", "firecracker"),
    ("virtualbox", "vm"),
    ("bochs", "kvm"),
    ("virtual machine", "vm"),
    ("standard pc", "kvm"),
    ("cloud hypervisor", "vm"),
)


def _virtualization(files: FileSet) -> str | Unmeasured:
    dmi = " ".join(
        files.get(f"/sys/class/dmi/id/{name}", "").strip() for name in ("sys_vendor", "product_name")
    )
    known = next((name for text, name in _VENDORS if text in dmi.lower()), "")
    cpuinfo = files.get("/proc/cpuinfo", "")
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), None)
    if flags is not None:
        # The hypervisor bit decides on x86: Amazon's and Google's DMI names are on bare metal too.
        return (known or "vm") if "hypervisor" in flags.split() else "none"
    if "/sys/hypervisor/type" in files:
        return files["/sys/hypervisor/type"].strip() or "xen"
    if not dmi.strip():
        return Unmeasured("no DMI and no CPU flags to tell a virtual machine by")
    return known or "none"


def _is_grace(files: FileSet) -> bool | Unmeasured:
    cpu = key_values(files.get("/proc/cpuinfo", ""), ":")
    if not cpu:
        return Unmeasured("/proc/cpuinfo: " + files.errors.get("/proc/cpuinfo", "not there"))
    return (
        cpu.get("CPU implementer") == "0x41"
        and cpu.get("CPU part") == "0xd4f"
        and (
            "nvidia" in files.get("/sys/class/dmi/id/sys_vendor", "nvidia").lower()
            or "grace" in files.get("/sys/class/dmi/id/product_name", "").lower()
        )
    )


def _remove_ipc(files: FileSet) -> bool | Unmeasured | None:
    main = [path for path in ("/usr/lib/systemd/logind.conf", "/etc/systemd/logind.conf") if path in files]
    drop_ins = sorted(
        (path for path in files if "/logind.conf.d/" in path), key=lambda path: path.rpartition("/")[2]
    )
    value = ""
    for path in main + drop_ins:
        value = key_values(files[path]).get("RemoveIPC", value)
    if not value:
        unread = [path for path in files.errors if "logind" in path]
        if unread:
            return Unmeasured(f"{unread[0]}: {files.errors[unread[0]]}")
        # systemd ships its file with every compiled-in default as a comment: Debian "yes", Red Hat "no".
        for path in main:
            for line in files[path].splitlines():
                if line.strip().startswith("#RemoveIPC="):
                    value = line.strip().partition("=")[2].strip()
    if not value:
        return None
    return value.lower() in ("yes", "true", "1", "on")


def _clock(values: dict[str, Any]) -> Clock | Unmeasured:
    synchronised, error_us = values.get("clock_synchronised"), values.get("clock_max_error_us")
    if not isinstance(synchronised, bool) or not isinstance(error_us, int):
        return Unmeasured(f"adjtimex: {values.get('clock_error', 'no answer')}")
    return Clock(synchronised, error_us / 1e6)


def _memory(text: str, key: str) -> int:
    return int(key_values(text, ":")[key].split()[0]) * 1024


def parse(source: Source) -> System:
    """Facts of `system.files` and `system.session`; Unmeasured if neither is there."""
    try:
        files = source.files("system.files")
        missing: Unmeasured | None = None
    except Unmeasured as reason:
        files, missing = FileSet({}, {}), reason
    try:
        session = source.values("system.session")
        session_missing = Unmeasured("system.session: no answer")
    except Unmeasured as reason:
        session, session_missing = {}, reason
        if missing is not None:
            raise missing from reason
    release = _read(files, "/proc/sys/kernel/osrelease")
    os_release = key_values(files.get("/etc/os-release", ""))
    sysctls: dict[str, int] = {}
    sysctl_errors = {name: str(missing) for name in SYSCTLS} if missing else {}
    for name, path in SYSCTLS.items():
        if path in files:
            try:
                sysctls[name] = int(files[path])
            except ValueError:
                sysctl_errors[name] = f"not a number: {files[path].strip()[:40]!r}"
        elif path in files.errors:
            sysctl_errors[name] = files.errors[path]
    meminfo = _read(files, "/proc/meminfo")
    pages = files.get("/sys/kernel/mm/transparent_hugepage/enabled", "")
    machine, libc, env = session.get("machine"), session.get("libc"), session.get("env")
    return System(
        hostname=_read(files, "/proc/sys/kernel/hostname"),
        kernel_release=release,
        kernel_version=_mapped(release, _kernel),
        cmdline_words=_mapped(_read(files, "/proc/cmdline"), lambda text: tuple(text.split())),
        arch=machine if isinstance(machine, str) else session_missing,
        os_id=os_release.get("ID", ""),
        os_version=os_release.get("VERSION_ID", ""),
        os_pretty=os_release.get("PRETTY_NAME", ""),
        libc_version=libc.split()[-1] if isinstance(libc, str) and libc.split() else session_missing,
        virtualization=_virtualization(files) if missing is None else missing,
        is_grace=_is_grace(files) if missing is None else missing,
        uptime_seconds=_mapped(_read(files, "/proc/uptime"), lambda text: float(text.split()[0])),
        boot_id=_read(files, "/proc/sys/kernel/random/boot_id"),
        memory_total_bytes=_mapped(meminfo, lambda text: _memory(text, "MemTotal")),
        memory_available_bytes=_mapped(meminfo, lambda text: _memory(text, "MemAvailable")),
        numa_nodes=_mapped(_read(files, "/sys/devices/system/node/online"), count_range),
        governors=tuple(
            text.strip() for path, text in sorted(files.items()) if path.endswith("scaling_governor")
        ),
        transparent_hugepages=(
            pages.partition("[")[2].partition("]")[0] or Unmeasured("transparent_hugepage: not there")
        ),
        sysctls=sysctls,
        sysctl_errors=sysctl_errors,
        remove_ipc=_remove_ipc(files) if missing is None else missing,
        clock=_clock(session) if session else session_missing,
        session_env={str(name): str(value) for name, value in env.items()} if isinstance(env, dict) else {},
    )


def _boot_options(node: Node) -> str:
    """Boot options without what differs by nature: image, root device, and network boot addresses."""
    own = (
        "BOOT_IMAGE=",
        "root=",
        "resume=",
        "ip=",
        "initrd=",
        "rd.luks",
        "rd.lvm",
        "BOOTIF=",
        "hostname=",
        "nfsroot=",
        "rd.md",
        "systemd.machine_id=",
    )
    return " ".join(sorted(word for word in require(node.system.cmdline_words) if not word.startswith(own)))


def _offset(node: Node) -> list[float]:
    """[offset_s, uncertainty_s] of the node's clock against the controller's."""
    values = node.source.values("controller.clock")
    try:
        return [float(values["offset_s"]), abs(float(values["uncertainty_s"]))]
    except (KeyError, TypeError, ValueError) as error:
        raise Unmeasured("controller.clock: malformed") from error


def _os_name(node: Node) -> str:
    system = node.system
    name = system.os_pretty or f"{system.os_id} {system.os_version}".strip()
    if not name:
        raise Unmeasured("/etc/os-release: not there")
    return name


DIGEST: dict[str, Callable[[Node], Any]] = {
    "system.kernel": lambda node: require(node.system.kernel_release),
    "system.os": _os_name,
    "system.cmdline": _boot_options,
    "system.thp": lambda node: require(node.system.transparent_hugepages),
    "time.offset": _offset,
}
