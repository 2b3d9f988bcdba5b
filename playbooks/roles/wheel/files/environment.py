"""What a virtual environment of a node holds, and what the node could build with. Changes nothing.

Sent on stdin to the node's Python (3.6 or newer, standard library only); argv[1] is one JSON object:
  {"venv": DIR, "cuda_home": DIR, "python": "3.10"}
Nothing is imported from the environment: names and versions are those of its *.dist-info folders
(https://packaging.python.org/en/latest/specifications/recording-installed-packages/), where a package came
from is in direct_url.json beside them (the same specification's "direct URL" page).
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys


def read(path, limit=65536):
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def ask(argv):
    """First 4 kB of a program's standard output, or "" where it fails."""
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        return process.communicate(timeout=15)[0].decode("utf-8", "replace")[:4096]
    except (OSError, subprocess.TimeoutExpired):
        return ""


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(venv):
    """Normalized name -> version, and the URL that it was installed from."""
    found = {}
    for folder in glob.glob(venv + "/lib*/python3*/site-packages/*.dist-info"):
        name = version = ""
        for line in read(folder + "/METADATA").splitlines():
            if line.startswith("Name:"):
                name = line[5:].strip()
            elif line.startswith("Version:"):
                version = line[8:].strip()
            elif not line.strip():
                break
        if not name:
            continue
        try:
            origin = json.loads(read(folder + "/direct_url.json") or "{}")
            url = origin.get("url", "") if isinstance(origin, dict) else ""
        except ValueError:
            url = ""
        found[normal(name)] = {"version": version, "url": url if isinstance(url, str) else ""}
    return found


def environment(venv):
    config = {}
    for line in read(venv + "/pyvenv.cfg").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            config[key.strip().lower()] = value.strip()
    numbers = re.match(r"\d+\.\d+", config.get("version", config.get("version_info", "")))
    system = os.path.realpath(venv) in ("/", "/usr", "/usr/local")
    return {
        "path": venv,
        "exists": os.path.isdir(venv) and bool(os.listdir(venv)),
        "is_venv": bool(config) and os.path.exists(venv + "/bin/python") and not system,
        "python": numbers.group(0) if numbers else "",
        "pip": bool(glob.glob(venv + "/lib*/python3*/site-packages/pip/__main__.py")),
        "packages": packages(venv),
    }


def interpreters(lowest):
    """Interpreters that can make an environment: path, version, and whether they bring pip. Newest first."""
    wanted = tuple(int(part) for part in lowest.split("."))
    found = []
    for minor in range(20, 5, -1):
        path = shutil.which("python3.%d" % minor)
        if path and (3, minor) >= wanted:
            libs = glob.glob("/usr/lib*/python3.%d/ensurepip" % minor)
            libs += glob.glob("/usr/local/lib*/python3.%d/ensurepip" % minor)
            found.append({"path": path, "version": "3.%d" % minor, "ensurepip": bool(libs)})
    return found


def free_gb(path):
    """Free space where a folder is, or will be."""
    while path not in ("", "/") and not os.path.isdir(path):
        path = os.path.dirname(path)
    info = os.statvfs(path or "/")
    return info.f_bavail * info.f_frsize // 1000000000


def cuda(home):
    """nvcc and its release; "" where there is none."""
    for path in (home + "/bin/nvcc", shutil.which("nvcc") or ""):
        if path and os.access(path, os.X_OK):
            release = re.search(r"release (\d+\.\d+)", ask([path, "--version"]))
            return {"nvcc": path, "version": release.group(1) if release else ""}
    return {"nvcc": "", "version": ""}


def architectures():
    """Compute capabilities of the node's GPUs. nvidia-smi could load a module, so only where the driver is."""
    if not os.path.exists("/proc/driver/nvidia/version"):
        return []
    text = ask(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    return sorted({line.strip() for line in text.splitlines() if re.match(r"\d+\.\d+\s*\Z", line)})


def main():
    wish = json.loads(sys.argv[1])
    venv = wish["venv"].rstrip("/") or "/"
    inside = environment(venv)
    json.dump(
        {
            "venv": inside,
            # Without the local part: 2.14.0+cu130 is the release 2.14.0.
            "versions": dict(
                (name, entry["version"].partition("+")[0]) for name, entry in inside["packages"].items()
            ),
            "interpreters": interpreters(wish["python"]),
            "uv": shutil.which("uv") or "",
            "git": shutil.which("git") or "",
            "cxx": shutil.which("c++") or shutil.which("g++") or "",
            "cuda": cuda(wish["cuda_home"]),
            "arch": architectures(),
            "free_gb": free_gb(venv),
            "wheels": sorted(glob.glob("/var/cache/epdoctor/built/*/*.whl")),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
