"""One look through /proc: vLLM's processes, the daemons that launch them, and who holds the GPUs.

PARAMS: prefixes, names (of environment variables to keep), daemons (comm), libraries (name prefixes).
"""

import os
import sys
import time

software = sys.modules["software.py"]
read, text = software.read, software.text

MAX_WORKERS = 64
MAX_MAPS = 4
MAX_FD_LINKS = 60000
CPU_LIMIT_S = 0.12


def keep(name):
    lowered = name.lower()
    return name.startswith(tuple(PARAMS["prefixes"])) or name in PARAMS["names"] or lowered.endswith("_proxy")


def clean(pairs):
    kept = {}
    for name, value in pairs:
        if keep(name):
            kept[name[:120]] = (
                "***" if software.is_secret(name) and value else software.blank_value(value[:4096])
            )
    return kept


def environ_of(pid):
    """(state, kept variables). setproctitle, which vLLM uses, writes its title over the environment area
    unless SPT_NOENV is set: then nothing is left to read and the launcher's environment must stand in."""
    try:
        with open("/proc/%s/environ" % pid, "rb") as handle:
            raw = handle.read(1 << 20)
    except PermissionError:
        return "denied", {}
    except OSError:
        return "gone", {}
    pairs = [entry.partition(b"=")[::2] for entry in raw.split(b"\0") if b"=" in entry]
    named = [(text(name), text(value)) for name, value in pairs]
    usual = ("PATH", "HOME", "PWD", "LANG", "USER")
    if not any(name in usual or keep(name) for name, _ in named):
        return ("overwritten" if raw else "empty"), {}
    return "read", clean(named)


def status_of(pid):
    wanted = ("PPid", "Uid", "CapEff", "CapBnd", "Seccomp", "NoNewPrivs")
    found = {}
    for line in text(read("/proc/%s/status" % pid, 16384)).splitlines():
        name, _, value = line.partition(":")
        if name in wanted:
            found[name] = value.split()[0] if value.split() else ""
    return found


def link(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


def start_time(pid):
    """Seconds since 1970, from field 22 of /proc/PID/stat and btime (proc(5))."""
    fields = text(read("/proc/%s/stat" % pid, 4096)).rpartition(")")[2].split()
    for line in text(read("/proc/stat", 1 << 18)).splitlines():
        if line.startswith("btime ") and len(fields) > 19:
            return int(line.split()[1]) + int(int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    return None


def with_psutil(pid):
    """What psutil tells about a process; {} where it is not there or not allowed. Same values as /proc."""
    try:
        import psutil
    except Exception:
        return {}
    try:
        process = psutil.Process(int(pid))
        with process.oneshot():
            return {
                "ppid": process.ppid(),
                "uid": process.uids().effective,
                "exe": process.exe(),
                "started_s": int(process.create_time()),
            }
    except Exception:
        return {}


def limits_of(pid):
    """Lines of /proc/PID/limits that matter; "unlimited" or a number of bytes or files."""
    found = {}
    names = (("Max locked memory", "memlock"), ("Max open files", "nofile"), ("Max stack size", "stack"))
    for line in text(read("/proc/%s/limits" % pid, 8192)).splitlines():
        for title, name in names:
            if line.startswith(title):
                words = line[len(title) :].split()
                if len(words) >= 2:
                    found[name] = words[:2]
    return found


def libraries_of(pid):
    """Mapped libraries: [path, version macros of the header beside it]."""
    root = "/proc/%s/root" % pid
    seen = {}
    try:
        with open("/proc/%s/maps" % pid, "rb") as handle:
            for line in handle:
                slash = line.find(b"/")
                if slash < 0:
                    continue
                name = line.rpartition(b"/")[2]
                if name.startswith(PREFIXES):
                    seen[text(line[slash:].strip())] = None
    except OSError as error:
        return None, type(error).__name__
    found = [[path, software.version_defines(root + path)] for path in sorted(seen)[:64]]
    return found, ""


def describe(pid, role, raw, use_psutil):
    status = status_of(pid)
    known = with_psutil(pid) if use_psutil else {}
    state, environ = environ_of(pid)
    argv = [text(word)[:8192] for word in raw.rstrip(b"\0").split(b"\0")][:400]
    uid = known.get("uid", int(status["Uid"]) if status.get("Uid", "").isdigit() else None)
    return {
        "pid": int(pid),
        "ppid": known.get("ppid", int(status.get("PPid", "0") or 0)),
        "uid": uid,
        "role": role,
        "comm": text(read("/proc/%s/comm" % pid, 64)).strip(),
        "cmdline": software.blank_argv(argv),
        "environ": environ,
        "environ_state": state,
        "limits": limits_of(pid),
        "cap_eff": status.get("CapEff", ""),
        "cap_bnd": status.get("CapBnd", ""),
        "seccomp": status.get("Seccomp", ""),
        "no_new_privs": status.get("NoNewPrivs", ""),
        "cgroup": text(read("/proc/%s/cgroup" % pid, 4096)).strip(),
        "exe": known.get("exe") or link("/proc/%s/exe" % pid),
        "mount_ns": link("/proc/%s/ns/mnt" % pid),
        "started_s": known.get("started_s", None) or start_time(pid),
    }


def gpu_holders(ordered):
    """Processes with an open /dev/nvidiaN. Bounded in links and in CPU time."""
    holders, links, denied = [], 0, 0
    begin = time.process_time()
    for pid in ordered:
        folder = "/proc/%s/fd" % pid
        try:
            names = os.listdir(folder)
        except PermissionError:
            denied += 1
            continue
        except OSError:
            continue
        gpus = set()
        for name in names[:4096]:
            links += 1
            target = link(folder + "/" + name)
            if target.startswith("/dev/nvidia") and target[11:].isdigit():
                gpus.add(int(target[11:]))
        if gpus:
            status = status_of(pid)
            holders.append(
                {
                    "pid": int(pid),
                    "uid": int(status["Uid"]) if status.get("Uid", "").isdigit() else None,
                    "comm": text(read("/proc/%s/comm" % pid, 64)).strip(),
                    "gpus": sorted(gpus),
                }
            )
        if links > MAX_FD_LINKS or time.process_time() - begin > CPU_LIMIT_S:
            return holders, denied, "stopped after %d open files" % links
    return holders, denied, ""


PREFIXES = tuple(name.encode() for name in PARAMS["libraries"])
DAEMONS = {name.encode(): name for name in PARAMS["daemons"]}

emit("session", clean(os.environ.items()))
emit("self_mount_ns", link("/proc/self/ns/mnt"))

lines, matched, launchers = {}, [], []
for pid in software.pids():
    raw = read("/proc/" + pid + "/cmdline", 65536)
    if not raw:
        continue
    lines[pid] = raw
    role = software.vllm_role(raw)
    if role:
        matched.append((pid, role))
        continue
    for name in DAEMONS:
        if name in raw:
            comm = (read("/proc/" + pid + "/comm", 64) or b"").strip()
            if comm in DAEMONS:
                launchers.append((pid, comm))
            break

emit("scanned", len(lines))
matched.sort(key=lambda item: (item[1] != "serve", int(item[0])))
emit("vllm_count", len(matched))
done, described = set(), []
mapped = 0
for pid, role in matched[:MAX_WORKERS]:
    entry = describe(pid, role, lines[pid], True)
    done.add(pid)
    if (role == "worker" or len(matched) == 1) and mapped < MAX_MAPS:
        mapped += 1
        entry["libraries"], entry["maps_error"] = libraries_of(pid)
    described.append((pid, entry))
    emit("process", entry)

# Ancestors whose environment stands in for one that a title overwrote. Of other programs' command lines
# only the first word is kept.
for _pid, entry in described:
    while entry["environ_state"] in ("overwritten", "empty"):
        parent = str(entry["ppid"])
        if parent in done or parent in ("0", "1") or parent not in lines:
            break
        done.add(parent)
        entry = describe(parent, "ancestor", lines[parent].split(b"\0")[0], False)
        emit("process", entry)

# One sshd or containerd-shim a session would be many: the first of each name is the service itself.
seen_daemons = {}
for pid, comm in sorted(launchers, key=lambda item: int(item[0])):
    seen_daemons[comm] = seen_daemons.get(comm, 0) + 1
    if seen_daemons[comm] <= 2 and pid not in done:
        entry = describe(pid, "daemon", lines[pid].split(b"\0")[0], False)
        entry["environ"], entry["environ_state"] = {}, "not kept"
        emit("process", entry)

if os.path.exists("/dev/nvidiactl"):
    first = [pid for pid, _ in matched]
    holders, denied, why = gpu_holders(first + [pid for pid in lines if pid not in set(first)])
    emit("gpu_holders", holders)
    emit("gpu_holders_denied", denied)
    emit("gpu_holders_stopped", why)
else:
    emit("gpu_holders", [])
