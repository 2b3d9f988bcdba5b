"""What is installed on a node: system packages of the RDMA stack, and the wheels of one Python environment.

Sent on stdin to the node's Python (3.6 or newer, standard library only); argv[1] is the environment's
interpreter or folder, argv[2] further package names, argv[3] the cache folder. Changes nothing, starts no
interpreter of the environment. Prints one JSON object.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys

# Packages that the roles ask for, or that show that OFED or DOCA manages RDMA here.
NAMES = re.compile(
    r"(rdma-core|libibverbs|ibverbs-|librdmacm|perftest|infiniband-diags|libibumad|mlnx-|ofed-scripts|doca-|libgdrapi"
    r"|gdrdrv|gdrcopy|dkms|libucx|ucx)"
)
OFED = re.compile(r"(mlnx-ofed|ofed-scripts|doca-ofed|doca-all|doca-roce)")
DISTS = re.compile(r"(nvidia_|nixl|torch-|vllm-|deep)")


def read(path, limit=1 << 26):
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def debian(further):
    found = {}
    for block in read("/var/lib/dpkg/status").split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in block.splitlines()
            if line[:8] in ("Package:", "Status: ", "Version:")
        )
        name = fields.get("Package", "")
        if fields.get("Status", "").endswith(" ok installed") and (NAMES.match(name) or name in further):
            found[name] = fields.get("Version", "")
    return found


def redhat(further):
    found = {}
    try:
        argv = ["rpm", "-qa", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\\n"]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        output = process.communicate(timeout=60)[0].decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return found
    for line in output.splitlines():
        name, _, version = line.partition(" ")
        if NAMES.match(name) or name in further:
            found[name] = version
    return found


def system(further):
    manager = "apt" if os.path.exists("/var/lib/dpkg/status") else "dnf" if shutil.which("dnf") else ""
    installed = debian(further) if manager == "apt" else redhat(further) if manager == "dnf" else {}
    ofed = sorted(name for name in installed if OFED.match(name))
    verbs = installed.get("libibverbs1", installed.get("libibverbs", ""))
    # Packages of OFED and DOCA carry their release in the version: 2410mlnx54-1.2410068.
    if not ofed and "mlnx" in verbs:
        ofed = ["libibverbs " + verbs]
    return {"manager": manager, "installed": installed, "ofed": ofed}


def programs(prefix):
    """How wheels get into the environment: its own pip, uv, or the system's pip."""
    python = os.path.join(prefix, "bin", "python")
    if glob.glob(prefix + "/lib*/python3*/site-packages/pip/__main__.py"):
        return "pip", [python, "-m", "pip"]
    places = [
        os.path.join(prefix, "bin", "uv"),
        shutil.which("uv") or "",
        "/usr/local/bin/uv",
        "/root/.local/bin/uv",
    ]
    for place in places:
        if place and os.access(place, os.X_OK):
            return "uv", [place, "pip"]
    for packages in ("/usr/lib/python3/dist-packages", "/usr/lib/python3*/site-packages"):
        for metadata in glob.glob(packages + "/pip-*.dist-info"):
            major = os.path.basename(metadata)[4:].split(".")[0]
            # pip --python came with 22.3.
            if major.isdigit() and int(major) >= 23:
                return "pip", ["/usr/bin/python3", "-m", "pip", "--python", python]
    return "", []


def environment(path):
    prefix = path if os.path.isdir(path) else os.path.dirname(os.path.dirname(os.path.abspath(path)))
    dists, requires = {}, []
    for metadata in glob.glob(prefix + "/lib*/python3*/site-packages/*.dist-info"):
        # lib64 of a virtual environment is a link to lib.
        name = os.path.basename(metadata)[: -len(".dist-info")]
        if DISTS.match(name.lower()):
            dist, _, version = name.partition("-")
            dists[dist.lower().replace("_", "-")] = version
        if name.startswith("torch-"):
            for line in read(metadata + "/METADATA", 262144).splitlines():
                if line.startswith("Requires-Dist: nvidia-"):
                    requires.append(line.split()[1])
    version = ""
    for line in read(prefix + "/pyvenv.cfg").splitlines():
        key, _, value = line.partition("=")
        if key.strip() in ("version", "version_info"):
            version = value.strip()
    kind, installer = programs(prefix)
    return {
        "prefix": prefix,
        "there": os.access(os.path.join(prefix, "bin", "python"), os.X_OK),
        "venv": os.path.isfile(prefix + "/pyvenv.cfg"),
        "version": version,
        "dists": dists,
        "cuda": cuda(dists, requires),
        "installer": installer,
        "installer_kind": kind,
        "pip_conf": read(prefix + "/pip.conf", 65536),
        "pip_conf_there": os.path.lexists(prefix + "/pip.conf"),
    }


def cuda(dists, requires):
    """Major version of CUDA that torch wants: "12", "13", or "" where nothing says it."""
    local = dists.get("torch", "").partition("+")[2]
    if re.match(r"cu1[0-9][0-9]\Z", local):
        return local[2:4]
    for name in requires:
        match = re.search(r"-cu(1[0-9])\b", name)
        if match:
            return match.group(1)
    return ""


def gdrcopy():
    """GDRCopy's library, its module for the running kernel, and what building it takes."""
    release = "/lib/modules/" + os.uname().release
    # Not a recursive search: DKMS, make install and kmod packages put it here.
    places = ["updates", "updates/dkms", "extra", "extra/gdrdrv", "weak-updates", "weak-updates/gdrdrv",
              "kernel/drivers/misc"]  # fmt: skip
    libraries = []
    for folder in ("/usr/local/lib", "/usr/local/lib64", "/usr/lib", "/usr/lib64", "/usr/lib/*-linux-gnu"):
        libraries += glob.glob(folder + "/libgdrapi.so.2")
    sources = glob.glob("/usr/src/nvidia-*/*/nv-p2p.*") + glob.glob("/usr/src/nvidia-*/nv-p2p.*")
    needs = (("gcc", shutil.which("gcc")), ("make", shutil.which("make")),
             ("the kernel's headers (" + release + "/build)", os.path.isdir(release + "/build")),
             ("the NVIDIA driver's sources (/usr/src/nvidia-*)", sources))  # fmt: skip
    return {
        "library": sorted(libraries)[0] if libraries else "",
        "module": any(glob.glob("%s/%s/gdrdrv.ko*" % (release, place)) for place in places),
        "loaded": os.path.isdir("/sys/module/gdrdrv"),
        "sanity": shutil.which("gdrcopy_sanity") or "",
        "lacks": [name for name, there in needs if not there],
    }


def free_mib(path):
    while path != "/" and not os.path.isdir(path):
        path = os.path.dirname(path)
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize >> 20


def main():
    further = sys.argv[2].split(",")
    venv = environment(sys.argv[1])
    space = {"/": free_mib("/"), "cache": free_mib(sys.argv[3]), "venv": free_mib(venv["prefix"])}
    found = {"system": system(further), "python": venv, "gdrcopy": gdrcopy(), "free_mib": space}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
