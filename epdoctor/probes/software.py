"""Helpers of the software probes, sent along as a module (Python 3.6, standard library)."""

import os
import re

VLLM_MODULES = ("vllm.entrypoints", "vllm.v1.", "vllm.benchmarks")
SECRET_WORDS = frozenset(
    [
        "key",
        "apikey",
        "keys",
        "token",
        "secret",
        "secrets",
        "password",
        "passwd",
        "credential",
        "credentials",
        "auth",
    ]
)
# Patterns stay text: compiling costs CPU on every node, and most nodes need none of them.
USER_INFO = "(?<=://)[^/@\\s'\"]{1,200}@"
JSON_HIDDEN = '(?i)("[^"]{0,40}(?:key|token|secret|password)"\\s{0,4}:\\s{0,4})"[^"]{0,4000}"'
DEFINE = "#\\s{0,4}define\\s{1,8}(\\w{0,40}(?:VERSION|MAJOR|MINOR|PATCH|SUFFIX)\\w{0,40})\\s{1,40}(\\S{1,60})"
HEADERS = {
    "libnccl.so": ("nccl.h",),
    "libnvshmem_host.so": ("non_abi/nvshmem_version.h", "nvshmem_version.h", "host/nvshmem_version.h"),
    "libucp.so": ("ucp/api/ucp_version.h",),
    "libgdrapi.so": ("gdrapi.h",),
}


def read(path, limit=65536):
    """Bytes of a file, b"" where it is empty, None where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        parts, size = [], 0
        while size < limit:
            part = os.read(fd, min(65536, limit - size))
            if not part:
                break
            parts.append(part)
            size += len(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)


def text(raw):
    return (raw or b"").decode("utf-8", "backslashreplace")


def listdir(path):
    try:
        return sorted(os.listdir(path))
    except (OSError, ValueError):
        return []


def is_secret(name):
    """Whether a variable or option of this name holds a secret. "tokens" counts tokens; "token" is one."""
    return bool(SECRET_WORDS.intersection(re.split("[-_.]", name.strip("-").lower())))


def blank_value(value):
    """A value without user:password@ and without the secrets inside JSON."""
    if "://" in value:
        value = re.sub(USER_INFO, "***@", value)
    if '"' in value:
        value = re.sub(JSON_HIDDEN, '\\1"***"', value)
    return value


def blank_argv(argv):
    """A command line without secrets: --api-key, --hf-token..., NAME_TOKEN=..., passwords in URLs."""
    cleaned, hiding = [], False
    for word in argv:
        if word.startswith("-") and len(word) > 1:
            name, equals, _ = word.partition("=")
            hiding = is_secret(name) and not equals
            cleaned.append(name + "=***" if equals and is_secret(name) else blank_value(word))
        elif hiding:
            cleaned.append("***")
        else:
            name, equals, _ = word.partition("=")
            secret = equals and re.match("\\w{1,80}$", name) and is_secret(name)
            cleaned.append(name + "=***" if secret else blank_value(word))
    return cleaned


def vllm_role(raw):
    """serve | worker | "" for the bytes of a /proc/PID/cmdline. A shell or grep that merely names vLLM is "".

    vLLM titles its processes `VLLM::EngineCore_DP0`, `VLLM::Worker_TP1_EP1` (vllm/utils/system_utils.py)."""
    if raw.startswith((b"VLLM::", b"ray::RayWorkerWrapper", b"ray::EngineCore")):
        return "worker"
    if b"vllm" not in raw:
        return ""
    argv = raw[:8192].split(b"\0")
    first = os.path.basename(argv[0])
    if first == b"vllm":
        return "serve" if b"serve" in argv[1:2] else ""
    if not first.startswith(b"python"):
        return ""
    for index, word in enumerate(argv[1:12], 1):
        if word == b"-m" and index + 1 < len(argv):
            module = text(argv[index + 1])
            return "serve" if module == "vllm" or module.startswith(VLLM_MODULES) else ""
        if word == b"-c":
            return ""
        if not word.startswith(b"-"):
            if os.path.basename(word) == b"vllm":
                return "serve" if argv[index + 1 : index + 2] == [b"serve"] else ""
            return "serve" if b"/vllm/entrypoints/" in word else ""
    return ""


def pids():
    return [name for name in listdir("/proc") if name.isdigit()]


def version_defines(library):
    """Version macros of the header beside a library: {"NCCL_MAJOR": "2", ...}; {} where there is none."""
    name = os.path.basename(library)
    headers = next((known for stem, known in HEADERS.items() if name.startswith(stem)), ())
    folder = os.path.dirname(library)
    roots = [os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))]
    for root in roots:
        for header in headers:
            raw = read(os.path.join(root, "include", header), 65536)
            if raw:
                return dict(re.findall(DEFINE, text(raw))[:40])
    return {}


def real_name(path):
    """What a library's symbolic links end at, and "" where it is not there."""
    try:
        return os.path.realpath(path) if os.path.exists(path) else ""
    except (OSError, ValueError):
        return ""
