"""Python environments that could serve vLLM, and what is installed there. Nothing is imported.

PARAMS: python (--python, may be empty), distributions (canonical names), libraries (file name prefixes).
"""

import os
import re
import sys

software = sys.modules["software.py"]
read, text, listdir = software.read, software.text, software.listdir

WANTED = frozenset(PARAMS["distributions"])
MAX_CANDIDATES = 24


def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()


def sites_of(prefix):
    """[site-packages folder, python version] of a prefix, e.g. /opt/venv."""
    found = []
    for lib in ("lib", "lib64"):
        base = os.path.join(prefix, lib)
        if os.path.islink(base):
            continue
        for name in listdir(base):
            if not name.startswith("python3"):
                continue
            for packages in ("site-packages", "dist-packages"):
                site = os.path.join(base, name, packages)
                if os.path.isdir(site):
                    found.append([site, name[6:]])
    return found


def metadata_version(path):
    for line in text(read(path, 8192)).splitlines():
        if line.startswith("Version:"):
            return line[8:].strip()
        if not line:
            break
    return ""


def distributions(site):
    """{canonical name: [version, folder of its metadata]} for the wanted distributions."""
    found = {}
    for name in listdir(site):
        path = os.path.join(site, name)
        if name.endswith((".dist-info", ".egg-info")):
            stem = name[:-10] if name.endswith(".dist-info") else name[:-9]
            dist, _, version = stem.partition("-")
            dist = canonical(dist)
            if dist in WANTED:
                version = version.partition("-py3")[0]
                if not version:
                    version = metadata_version(os.path.join(path, "PKG-INFO"))
                found[dist] = [version, path]
        elif name.endswith(".egg"):
            dist, _, version = name[:-4].partition("-")
            if canonical(dist) in WANTED:
                found[canonical(dist)] = [version.partition("-py3")[0], path]
        elif name.endswith(".egg-link"):
            dist = canonical(name[:-9])
            if dist in WANTED:
                source = text(read(path, 4096)).splitlines()[:1] or [""]
                info = os.path.join(source[0], name[:-9].replace("-", "_") + ".egg-info")
                found[dist] = [metadata_version(os.path.join(info, "PKG-INFO")), info]
    return found


def owners_of(module, found):
    """Distributions whose own file list says that they install `module`."""
    owners = []
    for dist, (version, path) in sorted(found.items()):
        if "ep" not in dist.split("-") and "deepep" not in dist:
            continue
        if os.path.isdir(os.path.join(path, module)):
            owners.append([dist, version])
            continue
        record = text(read(os.path.join(path, "RECORD"), 1 << 20)) or text(
            read(os.path.join(path, "SOURCES.txt"), 1 << 18)
        )
        top = text(read(os.path.join(path, "top_level.txt"), 4096)).split()
        if module in top or ("\n" + record).find("\n" + module + "/") >= 0:
            owners.append([dist, version])
    return owners


def deepep_module(site, found):
    """What the files of the package deep_ep say: its classes (text search, no import) and its version."""
    folders = [os.path.join(site, "deep_ep")]
    folders += [os.path.join(path, "deep_ep") for _, path in found.values() if path.endswith(".egg")]
    for folder in folders:
        init = os.path.join(folder, "__init__.py")
        raw = read(init, 65536)
        if raw is None:
            continue
        source = text(raw)
        names = []
        for line in source.splitlines():
            if "import" in line and not line.lstrip().startswith("#"):
                for word in re.split("[^A-Za-z_]+", line):
                    if word in ("Buffer", "ElasticBuffer", "EPBuffer") and word not in names:
                        names.append(word)
        version = re.search("__version__\\s{0,4}=\\s{0,4}['\"]([^'\"]{1,40})", source)
        return {
            "path": folder,
            "classes": names,
            "version": version.group(1) if version else "",
            "empty": not source.strip() and len(listdir(folder)) < 3,
        }
    return None


def pip_libraries(site):
    """Libraries under nvidia/*/lib and in wheels' *.libs: [path, version macros of the header beside it]."""
    found = []
    prefixes = tuple(PARAMS["libraries"])
    folders = [os.path.join(site, "nvidia", name, "lib") for name in listdir(os.path.join(site, "nvidia"))]
    folders += [
        os.path.join(site, name)
        for name in listdir(site)
        if "nixl" in name and name.endswith((".libs", ".mesonpy.libs"))
    ]
    for folder in folders:
        for name in listdir(folder):
            if name.startswith(prefixes) and ".so" in name:
                path = os.path.join(folder, name)
                found.append([path, software.version_defines(path)])
    return found[:64]


def inspect(prefix, why, root="", sites=None):
    """Emit one candidate if it holds vLLM, DeepEP or torch (or was asked for)."""
    # lib64 is a link to lib in a venv, and a folder of its own under /usr.
    places = sites if sites is not None else sites_of(root + prefix)
    entry = {
        "prefix": prefix,
        "why": why,
        "packages": {},
        "sites": [],
        "version": "",
        "owners": [],
        "deep_ep": None,
        "libraries": [],
    }
    for site, version in places:
        if root and not site.startswith(root):
            site = root + site
        found = distributions(site)
        module = deepep_module(site, found)
        if not found and module is None and why != "--python":
            continue
        entry["sites"].append(site[len(root) :])
        entry["version"] = entry["version"] or version
        for name, (number, _) in found.items():
            entry["packages"].setdefault(name, number)
        entry["owners"] += owners_of("deep_ep", found)
        entry["deep_ep"] = entry["deep_ep"] or module
        entry["libraries"] += [[path[len(root) :], macros] for path, macros in pip_libraries(site)]
    config = text(read(os.path.join(root + prefix, "pyvenv.cfg"), 8192))
    for line in config.splitlines():
        name, _, value = line.partition("=")
        if name.strip() in ("version", "version_info"):
            entry["version"] = value.strip()
    known = entry["packages"]
    if why == "--python" or "vllm" in known or "torch" in known or entry["deep_ep"] or entry["owners"]:
        emit("candidate", entry)
        return True
    return False


def prefix_of(python):
    """The prefix of an interpreter's path, not following the venv's link to its base; of a folder: itself."""
    if os.path.isdir(python):
        return python.rstrip("/")
    if not os.path.exists(os.path.join(os.path.dirname(os.path.dirname(python)), "pyvenv.cfg")):
        resolved = os.path.realpath(python)
        if not sites_of(os.path.dirname(os.path.dirname(python))):
            python = resolved
    return os.path.dirname(os.path.dirname(os.path.abspath(python)))


def site_prefix(pid):
    """The environment whose torch a process has mapped; its title may have replaced its command line."""
    try:
        with open("/proc/" + pid + "/maps", "rb") as handle:
            for line in handle:
                if b"-packages/torch/lib/" in line:
                    site = text(line[line.find(b"/") :].partition(b"/torch/lib/")[0])
                    return [site.rpartition("/lib/python3")[0]]
    except OSError:
        pass
    return []


def of_workers():
    """Environments of running vLLM processes: [pid, prefix, root of its mount namespace]."""
    found, seen = [], set()
    own = ""
    try:
        own = os.readlink("/proc/self/ns/mnt")
    except OSError:
        pass
    for pid in software.pids():
        raw = read("/proc/" + pid + "/cmdline", 8192)
        if not raw or not software.vllm_role(raw):
            continue
        root, namespace = "", ""
        try:
            namespace = os.readlink("/proc/" + pid + "/ns/mnt")
            if namespace != own:
                root = "/proc/" + pid + "/root"
        except OSError:
            pass
        # The script's place first: python itself may be a link to another environment's.
        words = [word for word in raw.split(b"\0")[2::-1] if word.startswith(b"/") and b"/bin/" in word]
        prefixes = [os.path.dirname(os.path.dirname(text(word))) for word in words] or site_prefix(pid)
        for prefix in prefixes:
            if (prefix, namespace) not in seen:
                seen.add((prefix, namespace))
                found.append([pid, prefix, root])
        if len(found) >= 4:
            break
    return found


def guesses():
    """Prefixes where people put vLLM, most specific first: [prefix, why]."""
    if os.environ.get("VIRTUAL_ENV"):
        yield os.environ["VIRTUAL_ENV"], "$VIRTUAL_ENV"
    homes = [os.environ.get("HOME", "")] if os.environ.get("HOME") else []
    if os.environ.get("SUDO_USER", "").isalnum():
        homes.append("/home/" + os.environ["SUDO_USER"])
    for home in homes:
        for name in (".venv", "venv", "vllm", ".venvs"):
            yield os.path.join(home, name), "home"
        for name in listdir(os.path.join(home, ".venvs"))[:16]:
            yield os.path.join(home, ".venvs", name), "home"
    for name in listdir("/opt"):
        base = os.path.join("/opt", name)
        yield base, "/opt"
        yield os.path.join(base, ".venv"), "/opt"
        yield os.path.join(base, "venv"), "/opt"
        for env in listdir(os.path.join(base, "envs"))[:16] if "conda" in name else ():
            yield os.path.join(base, "envs", env), "/opt"
    for prefix in ("/venv", "/workspace/.venv", "/vllm-workspace/.venv", "/usr/local", "/usr"):
        yield prefix, "usual place"
    for folder in os.environ.get("PATH", "").split(":"):
        if folder.startswith("/") and folder.endswith("/bin"):
            yield folder[:-4], "$PATH"


def main():
    python = PARAMS.get("python", "")
    if python:
        python = os.path.expanduser(python)
        if not os.path.exists(python):
            emit("missing", python)
            return
        inspect(prefix_of(python), "--python")
        return
    count, served = 0, set()
    for pid, prefix, root in of_workers():
        if pid in served:
            continue
        if inspect(prefix, "running vLLM (pid %s)" % pid, root):
            count += 1
            served.add(pid)
    if count:
        return
    seen = set()
    for prefix, why in guesses():
        real = os.path.realpath(prefix)
        if real in seen or count >= MAX_CANDIDATES:
            continue
        seen.add(real)
        if inspect(prefix, why):
            count += 1
    emit("searched", sorted(seen)[:60])


main()
