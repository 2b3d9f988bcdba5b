"""Everything the roles must know of a node, read in one go and printed as one JSON object.

Sent on stdin to the node's Python (3.6 or newer, standard library only). Changes nothing.
Sources: os-release(5), modprobe.d(5), modules-load.d(5), limits.conf(5), systemctl(1), proc(5), sysfs.
"""

import glob
import json
import os
import re
import stat
import subprocess
import sys

HEADER = "# Written by epdoctor provision"
DRIVER_FILE = "zz-epdoctor-nvidia.conf"
LIMITS_FILE = "zz-epdoctor-limits.conf"
DROP_IN = "zz-epdoctor-memlock.conf"
OWNED = (
    "/etc/security/limits.d/*epdoctor*.conf",
    "/etc/modprobe.d/*epdoctor*.conf",
    "/etc/modules-load.d/*epdoctor*.conf",
    "/etc/systemd/system/*.service.d/zz-epdoctor-*.conf",
    "/etc/epdoctor/*",
    "/etc/profile.d/epdoctor-*.sh",
    "/etc/apt/sources.list.d/epdoctor*.list",
    "/etc/yum.repos.d/epdoctor*.repo",
    "/etc/systemd/system/epdoctor-*.service",
    "/etc/systemd/system/*.target.d/epdoctor-*.conf",
)
FOLDERS = (
    "/etc/security/limits.d", "/etc/modprobe.d", "/etc/modules-load.d", "/etc/profile.d",
    "/etc/apt/sources.list.d", "/etc/yum.repos.d", "/etc/systemd/system",
)  # fmt: skip
UNITS = (
    "docker", "containerd", "crio", "kubelet", "k3s", "k3s-agent", "rke2-server", "rke2-agent", "slurmd",
    "ray", "ssh", "sshd",
)  # fmt: skip
MODPROBE_FOLDERS = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d",
                    "/usr/lib/modprobe.d", "/lib/modprobe.d")  # fmt: skip
ENTRY = re.compile(r"[A-Za-z0-9_.-]+=[A-Za-z0-9_.-]*\Z")


def read(path, limit=262144):
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def os_release():
    found = {}
    for line in read("/etc/os-release").splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            found[key] = value.strip("\"'")
    return {"id": found.get("ID", ""), "version": found.get("VERSION_ID", ""),
            "name": found.get("PRETTY_NAME", "") or found.get("ID", "unknown")}  # fmt: skip


def owned_files():
    """(texts of files with root:root 0644, paths that exist without our header)."""
    owned, foreign = {}, []
    for pattern in OWNED:
        for path in glob.glob(pattern):
            try:
                info = os.lstat(path)
            except OSError:
                continue
            text = read(path)
            right = stat.S_ISREG(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o644
            if right and info.st_uid == 0 and info.st_gid == 0:
                owned[path] = text
            if not text.startswith(HEADER):
                foreign.append(path)
    return owned, sorted(foreign)


def pam_limits(paths=None):
    """memlock and nofile lines of other files than ours, in the order in which pam_limits reads them."""
    if paths is None:
        paths = ["/etc/security/limits.conf"] + sorted(glob.glob("/etc/security/limits.d/*.conf"))
    found = []
    for path in paths:
        if os.path.basename(path) == LIMITS_FILE:
            continue
        for number, line in enumerate(read(path).splitlines(), 1):
            words = line.partition("#")[0].split()
            if len(words) == 4 and words[2] in ("memlock", "nofile"):
                found.append({"path": path, "line": number, "domain": words[0], "type": words[1],
                              "item": words[2], "value": words[3]})  # fmt: skip
    return found


def overriding_limits(lines):
    """Lines that win over ours: of a user or group, or in a file that is read later."""
    found = []
    for line in lines:
        later = os.path.basename(line["path"]) > LIMITS_FILE and line["path"].count("/limits.d/")
        own = line["domain"] in ("*", "root")
        small = line["item"] == "memlock" and line["value"] not in ("unlimited", "infinity", "-1")
        if small and (later or not own):
            found.append("%s:%d (%s %s memlock %s)" % (line["path"], line["line"], line["domain"],
                                                       line["type"], line["value"]))  # fmt: skip
    return found


def nofile_highest(lines):
    """Highest soft and hard nofile that others give to everybody; a lower value must not replace them."""
    soft = hard = 0
    for line in lines:
        if line["item"] != "nofile" or line["domain"] not in ("*", "root"):
            continue
        value = 1 << 30 if line["value"] in ("unlimited", "infinity", "-1") else 0
        if line["value"].isdigit():
            value = int(line["value"][:12])
        if line["type"] in ("soft", "-"):
            soft = max(soft, value)
        if line["type"] in ("hard", "-"):
            hard = max(hard, value)
    return {"soft": soft, "hard": max(soft, hard)}


def nr_open():
    """Most open files that the kernel lets any process ask for (proc(5), fs/nr_open)."""
    text = read("/proc/sys/fs/nr_open").strip()
    return int(text) if text.isdigit() else 1048576


def modprobe_files():
    """Files that count, in reading order (modprobe.d(5)): a name in an earlier folder hides later ones."""
    chosen = {}
    for folder in MODPROBE_FOLDERS:
        for path in glob.glob(folder + "/*.conf"):
            chosen.setdefault(os.path.basename(path), path)
    return [chosen[name] for name in sorted(chosen)]


def split_words(line):
    """Words of an options line; a double-quoted part keeps its spaces."""
    words, word, quoted = [], "", False
    for char in line:
        if char == '"':
            quoted = not quoted
        elif char.isspace() and not quoted:
            if word:
                words.append(word)
            word = ""
        else:
            word += char
    if word:
        words.append(word)
    return words


def nvidia_options(paths):
    """[(file name, parameters)] of every `options nvidia` line, in reading order."""
    found = []
    for path in paths:
        text = read(path).replace("\\\n", " ")
        for line in text.splitlines():
            words = split_words(line) if line.lstrip().startswith("options") else []
            if len(words) > 2 and words[0] == "options" and words[1] == "nvidia":
                pairs = [word.partition("=") for word in words[2:]]
                found.append((path, dict((pair[0].replace("-", "_"), pair[2]) for pair in pairs)))
    return found


def driver_options(lines):
    """What epdoctor's file has to say so that the effective options are right.

    RegistryDwords is one string and the last line wins: the entries that are in force are kept."""
    effective, later = {}, []
    for path, parameters in lines:
        name = os.path.basename(path)
        if name == DRIVER_FILE:
            continue
        effective.update(parameters)
        wins = [key for key in parameters if key in ("NVreg_RegistryDwords", "NVreg_EnableStreamMemOPs")]
        if name > DRIVER_FILE and wins:
            later.append(path)
    kept, odd, override = [], [], ""
    for entry in effective.get("NVreg_RegistryDwords", "").split(";"):
        entry = entry.strip()
        if not entry:
            continue
        key, _, value = entry.partition("=")
        if key.strip().lower() == "peermappingoverride":
            override = value.strip()
        elif ENTRY.match(entry):
            kept.append(entry)
        else:
            odd.append(entry)
    return {
        "dwords": "".join(entry + ";" for entry in kept) + "PeerMappingOverride=1;",
        "right_without_us": override == "1" and effective.get("NVreg_EnableStreamMemOPs", "") == "1",
        "not_understood": odd,
        "read_after_us": later,
    }


def colon_lines(text):
    found = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found[key.strip()] = value.strip().strip('"')
    return found


def driver():
    text = read("/proc/driver/nvidia/version")
    first = text.splitlines()[0] if text else ""
    version = ""
    for word in first.split():
        if re.match(r"\d+(\.\d+)+\Z", word):
            version = word
            break
    release = os.uname().release
    installed = bool(text)
    for pattern in ("updates/dkms/nvidia*.ko*", "updates/nvidia*.ko*", "extra/nvidia*.ko*",
                    "extra/nvidia/nvidia*.ko*", "weak-updates/nvidia*/nvidia*.ko*",
                    "kernel/drivers/video/nvidia*.ko*", "kernel/nvidia*/nvidia*.ko*"):  # fmt: skip
        installed = installed or bool(glob.glob("/lib/modules/%s/%s" % (release, pattern)))
    params = colon_lines(read("/proc/driver/nvidia/params"))
    dwords = [entry.strip().lower() for entry in params.get("RegistryDwords", "").split(";")]
    per_device = params.get("RegistryDwordsPerDevice", "").lower()
    return {
        "operator": os.path.isdir("/run/nvidia/driver") and bool(os.listdir("/run/nvidia/driver")),
        "loaded": bool(text),
        "installed": installed,
        "version": version,
        "major": int(version.split(".")[0]) if version else 0,
        "open": "Open Kernel Module" in first,
        "options_live": params.get("EnableStreamMemOPs") == "1"
        and ("peermappingoverride=1" in dwords or "peermappingoverride=1" in per_device),
    }


def has_gpu():
    """An NVIDIA display controller (PCI class 03) on the bus."""
    for path in glob.glob("/sys/bus/pci/devices/*/vendor"):
        if read(path).strip() == "0x10de" and read(path[:-6] + "class").startswith("0x03"):
            return True
    return os.path.exists("/proc/driver/nvidia/version")


def rdma_devices():
    """Devices other than Amazon's EFA, which registers GPU memory by its own driver."""
    found = []
    for path in sorted(glob.glob("/sys/class/infiniband/*")):
        if os.path.basename(os.path.realpath(path + "/device/driver")) != "efa":
            found.append(os.path.basename(path))
    return found


def module_loaded(name):
    return os.path.isdir("/sys/module/" + name) or any(
        line.split(" ", 1)[0] == name for line in read("/proc/modules").splitlines()
    )


def rdma_modules():
    """What user space needs beside the HCA's own driver: (wanted, not loaded).

    rdma-core's udev rules load them as a rule; what they did not load here has to be named at boot."""
    layers = [read(path).strip() for path in glob.glob("/sys/class/infiniband/*/ports/*/link_layer")]
    wanted = ["ib_uverbs", "rdma_ucm"] if glob.glob("/sys/class/infiniband/*") else []
    if "InfiniBand" in layers:
        wanted.append("ib_umad")
    return {"wanted": wanted, "missing": [name for name in wanted if not module_loaded(name)]}


def shared_memory():
    """Size of /dev/shm and of the memory in MiB, and whether /etc/fstab sets it."""
    info = os.statvfs("/dev/shm") if os.path.ismount("/dev/shm") else None
    memory = re.search(r"MemTotal:\s+(\d+) kB", read("/proc/meminfo"))
    words = [line.split() for line in read("/etc/fstab").splitlines() if not line.lstrip().startswith("#")]
    return {"total_mib": info.f_blocks * info.f_frsize >> 20 if info else 0,
            "memory_mib": int(memory.group(1)) >> 10 if memory else 0,
            "fstab": any(len(line) > 1 and line[1] == "/dev/shm" for line in words)}  # fmt: skip


def kernel_release():
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return numbers.group(0) if numbers else "0.0"


def boot_time():
    for line in read("/proc/stat").splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    return 0


def started_at(pid, boot):
    """Seconds since the epoch when a process started (proc(5), field 22 of stat)."""
    fields = read("/proc/%s/stat" % pid).rpartition(")")[2].split()
    return boot + int(fields[19]) / float(os.sysconf("SC_CLK_TCK")) if len(fields) > 19 else 0.0


def weaker_drop_ins(paths):
    """Drop-ins of a service that are read later than ours and set a smaller limit (systemd.unit(5): by file name)."""
    found = []
    for path in paths:
        value = ""
        for line in read(path).splitlines():
            key, _, text = line.partition("=")
            if key.strip() == "LimitMEMLOCK":
                value = text.strip()
        if value and value != "infinity" and os.path.basename(path) > DROP_IN:
            found.append("%s (LimitMEMLOCK=%s)" % (path, value))
    return found


def units():
    """Loaded units of UNITS; `stale`: it runs since before our drop-in was written; `weaker`: weaker_drop_ins."""
    names = ["%s.service" % unit for unit in UNITS]
    argv = [
        "systemctl",
        "show",
        "--property=Id,LoadState,ActiveState,MainPID,NeedDaemonReload,DropInPaths",
    ] + names
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        output = process.communicate(timeout=20)[0].decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return {"systemd": False, "found": [], "active": [], "reload": False, "stale": [],
                "weaker": []}  # fmt: skip
    found, active, reload_needed, stale, weaker = [], [], False, [], []
    boot = boot_time()
    for block in output.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        name = values.get("Id", "")
        if values.get("LoadState") != "loaded" or not name.endswith(".service"):
            continue
        name = name[: -len(".service")]
        # An alias (sshd of ssh) shows its own unit's name.
        if name in found:
            continue
        found.append(name)
        if values.get("ActiveState") == "active":
            active.append(name)
        reload_needed = reload_needed or values.get("NeedDaemonReload") == "yes"
        weaker += weaker_drop_ins(values.get("DropInPaths", "").split())
        drop_in = "/etc/systemd/system/%s.service.d/%s" % (name, DROP_IN)
        pid = values.get("MainPID", "0")
        try:
            written = os.stat(drop_in).st_mtime
        except OSError:
            continue
        if values.get("ActiveState") == "active" and pid != "0" and started_at(pid, boot) < written - 1:
            stale.append(name)
    return {"systemd": bool(output.strip()), "found": found, "active": active,
            "reload": reload_needed, "stale": stale, "weaker": weaker}  # fmt: skip


def initramfs():
    """Which tool rebuilds it, and whether an image of an installed kernel is older than our driver file."""
    tool = ""
    for name in ("update-initramfs", "dracut"):
        for folder in ("/usr/sbin", "/sbin", "/usr/bin", "/bin"):
            if not tool and os.access(folder + "/" + name, os.X_OK):
                tool = name
    try:
        written = os.stat("/etc/modprobe.d/" + DRIVER_FILE).st_mtime
    except OSError:
        return {"tool": tool, "stale": False}
    stale = False
    for path in glob.glob("/boot/initrd.img-*") + glob.glob("/boot/initramfs-*.img"):
        name = os.path.basename(path)
        release = name[len("initrd.img-") :] if name.startswith("initrd") else name[len("initramfs-") : -4]
        if os.path.isdir("/lib/modules/" + release):
            stale = stale or os.stat(path).st_mtime < written
    return {"tool": tool, "stale": stale}


def main():
    owned, foreign = owned_files()
    lines = pam_limits()
    json.dump(
        {
            "os": os_release(),
            "arch": os.uname().machine,
            "kernel": kernel_release(),
            "root": os.geteuid() == 0,
            "owned": owned,
            "foreign": foreign,
            "folders": [path for path in FOLDERS if os.path.isdir(path)],
            "limits": {
                "overriding": overriding_limits(lines),
                "nofile": nofile_highest(lines),
                "nr_open": nr_open(),
            },
            "gpu": has_gpu(),
            "driver": driver(),
            "driver_options": driver_options(nvidia_options(modprobe_files())),
            "rdma": rdma_devices(),
            "rdma_modules": rdma_modules(),
            "shm": shared_memory(),
            "peermem": module_loaded("nvidia_peermem"),
            "units": units(),
            "initramfs": initramfs(),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
