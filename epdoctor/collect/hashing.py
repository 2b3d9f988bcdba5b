"""Stand-ins for what names a machine, a network or a person, so that a recording can be shown to others.

Equal things stay equal, in every file of one recording and nowhere else (the salt is drawn anew each time). Addresses
keep their structure: equal prefixes stay equal, loopback stays loopback, a link-local GID stays one. So checks on
names, subnets and GIDs judge as before.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any

from epdoctor.nodenames import NodeNamesError, expand, fold

_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_MAC = re.compile(r"(?<![0-9a-f:])(?:[0-9a-f]{2}:){5}[0-9a-f]{2}(?![0-9a-f:])", re.IGNORECASE)
_IPOIB = re.compile(
    r"(?<![0-9a-f:])((?:[0-9a-f]{2}:){12})((?:[0-9a-f]{2}:){7}[0-9a-f]{2})(?![0-9a-f:])", re.IGNORECASE
)
"""The 20 bytes of an IPoIB link: flags, queue pair, subnet prefix, port GUID (RFC 4391)."""
_MAPPED_GID = re.compile(r"(?i)(?<=ffff:)([0-9a-f]{4}):([0-9a-f]{4})(?![0-9a-f:])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,36}(?![0-9A-Za-z:.])")
_GUID = re.compile(r"(?<![0-9a-f:])(?:[0-9a-f]{4}:){3}[0-9a-f]{4}(?![0-9a-f:])", re.IGNORECASE)
_GUID_NAMED = re.compile(r"(?i)(guid[\"'\s:=]{1,8}(?:0x)?)([0-9a-f]{16})(?![0-9a-f])")
_UUID = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f-])", re.IGNORECASE)
_SOCKET = re.compile(
    r"(?m)^(\s{0,8}\d{1,9}: )([0-9A-F]{8}|[0-9A-F]{32})(:[0-9A-F]{4} )([0-9A-F]{8}|[0-9A-F]{32})(?=:[0-9A-F]{4} )"
)
"""A line of /proc/net/tcp and tcp6: addresses in hex, each word of 32 bits in the machine's order (proc_net_tcp(5))."""
_HOME = re.compile(r"(/home/)([^/\s\"':,;]{1,64})")
_SSHD = re.compile(r"(sshd(?:-session)?: )([A-Za-z_][A-Za-z0-9_.-]{0,63})(?=@|\s{1,3}\[)")
_LOGIN = re.compile(
    r"(?<![A-Za-z0-9_.@-])([A-Za-z_][A-Za-z0-9_.-]{0,63})(?=@(?:host-[0-9a-f]{8}|\d{1,3}\.\d{1,3}\.))"
)
_LIMITS = re.compile(
    r"(?m)^(\s{0,8}@?)([A-Za-z_][A-Za-z0-9_.-]{0,63})(?=\s{1,40}(?:soft|hard|-)\s{1,40}[a-z])"
)
"""limits.conf(5): a user, or a group behind "@"."""
_URL_HOST = re.compile(r"(://(?:[^\s/@\"']{1,200}@)?)([A-Za-z0-9.-]{1,253})")
_SLURM = re.compile(
    r"(?im)^(\s{0,8}(?:ClusterName|ControlMachine|ControlAddr|BackupController|BackupAddr|SlurmctldHost|SlurmctldAddr|"
    r"AccountingStorage(?:Host|BackupHost|ExternalHost|User)|DbdHost|JobCompHost|JobCompUser|NodeName|NodeSet|DownNodes|"
    r"PartitionName)=)([^\s#]{1,4000})|((?<=\s)(?:Nodes|NodeAddr|NodeHostname|AllowGroups|AllowAccounts)=)([^\s#]{1,4000})"
)
"""slurm.conf(5), gres.conf(5): settings that name machines, clusters or people."""
_HOSTLIST = re.compile(r"(?<![A-Za-z0-9_.-])[A-Za-z0-9_.-]{1,64}\[[0-9,-]{1,200}\][A-Za-z0-9_.-]{0,64}")
_PUBLIC = re.compile(
    r"(?i)(?:^|\.)(?:ubuntu\.com|debian\.org|launchpad\.net|redhat\.com|fedoraproject\.org|centos\.org|rockylinux\.org|"
    r"almalinux\.org|opensuse\.org|suse\.com|kernel\.org|freedesktop\.org|gnu\.org|github\.com|githubusercontent\.com|"
    r"gitlab\.com|nvidia\.com|nvcr\.io|docker\.io|docker\.com|quay\.io|ghcr\.io|gcr\.io|k8s\.io|kubernetes\.io|"
    r"pypi\.org|pytorch\.org|huggingface\.co|openfabrics\.org|mellanox\.com|amd\.com|intel\.com|amazon\.com|"
    r"slurm\.schedmd\.com|cri-o\.io|localhost|example\.com|w3\.org)$"
)
"""Hosts that everybody's files name."""
_SYSTEM_USERS = frozenset(
    (
        "root", "nobody", "daemon", "bin", "sys", "sync", "sshd", "syslog", "messagebus", "systemd-network", "chrony",
        "_chrony", "ntp", "munge", "slurm", "ubuntu", "debian", "admin", "ec2-user", "centos", "rocky", "opc", "user",
        "users", "vllm", "ray", "docker", "kube", "nvidia-persistenced", "ftp", "unknown", "invalid", "accepted",
    )
)  # fmt: skip
_ORDINARY = frozenset(
    (
        "address", "amd", "compute", "cpu", "cuda", "data", "default", "dev", "docker", "eth0", "gpu", "head", "host", "ib",
        "infiniband", "kernel", "link", "linux", "local", "login", "main", "master", "memory", "mlx5", "name", "net",
        "node", "nvidia", "proc", "python", "ray", "root", "route", "server", "slurm", "state", "status", "sys",
        "test", "torch", "type", "ubuntu", "user", "vllm", "vm", "worker",
    )
)  # fmt: skip
"""A machine or a person may be called so, and the word has another meaning wherever it stands."""


class HostHasher:
    """Replaces names and addresses by stand-ins.

    `names`: of machines; `users`: of people; `words` stay as they are inside of a longer text (parts of paths): a
    machine that is called "vm" must not change /proc/sys/vm."""

    def __init__(
        self, names: Iterable[str], salt: bytes, *, users: Iterable[str] = (), words: Iterable[str] = ()
    ) -> None:
        self._salt = salt
        known = {name for name in names if len(name) > 1 and name != "localhost" and not _is_address(name)}
        self._names = {name: "host-" + self._digest("name:" + name)[:8] for name in known}
        for user in set(users) - _SYSTEM_USERS:
            if len(user) > 1 and not _is_address(user):
                self._names.setdefault(user, self._user(user))
        kept = _ORDINARY | set(words)
        inside = sorted((n for n in self._names if n not in kept and len(n) > 2), key=len, reverse=True)
        # Behind a machine's name, its domain goes too.
        self._pattern = (
            re.compile(
                r"(?<![A-Za-z0-9_-])(" + "|".join(map(re.escape, inside)) + r")"
                r"((?:\.[A-Za-z][A-Za-z0-9-]{0,62}){0,6})(?![A-Za-z0-9_-])"
            )
            if inside
            else None
        )

    def _digest(self, text: str) -> str:
        return hmac.new(self._salt, text.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()

    # ------------------------------------------------------------ whole values

    def name(self, text: str) -> str:
        """The stand-in of a node name or address."""
        return self._names.get(text) or self.text(text)

    def text(self, text: str) -> str:
        bare = text.strip()
        if bare in self._names:
            return text.replace(bare, self._names[bare])
        if "[" in text:
            text = _HOSTLIST.sub(self._hostlist, text)
        if self._pattern is not None:
            text = self._pattern.sub(self._name, text)
        if "=" in text:
            text = _SLURM.sub(self._slurm, text)
        if "://" in text:
            text = _URL_HOST.sub(self._url, text)
        text = self._people(text)
        if "." in text:
            text = _IPV4.sub(lambda match: self._address(match[0]), text)
        if ":" in text:
            text = self._colons(text)
        return _UUID.sub(self._uuid, text) if "-" in text else text

    def value(self, value: Any) -> Any:
        """A JSON value with every text replaced. Keys are ours, but for those that are a name as a whole."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {
                self.text(key) if isinstance(key, str) and key not in _ORDINARY else key: self.value(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return value

    # ------------------------------------------------------------ names

    def _name(self, match: re.Match[str]) -> str:
        stand_in = self._names[match[1]]
        return stand_in if stand_in.startswith("host-") else stand_in + match[2]

    def _hostlist(self, match: re.Match[str]) -> str:
        """Slurm's short form, where a machine that is known is in it."""
        try:
            names = expand(match[0])
        except NodeNamesError:
            return match[0]
        if self._names.keys().isdisjoint(names):
            return match[0]
        return fold(self._host(name) for name in names)

    def _host(self, name: str) -> str:
        return self._names.get(name) or "host-" + self._digest("name:" + name)[:8]

    def _user(self, name: str) -> str:
        return name if name in _SYSTEM_USERS else "user-" + self._digest("user:" + name)[:8]

    def _people(self, text: str) -> str:
        def stand_in(match: re.Match[str]) -> str:
            return match[1] + (match[2] if match[2].startswith("user-") else self._user(match[2]))

        if "/home/" in text:
            text = _HOME.sub(stand_in, text)
        if "@" in text:
            text = _LOGIN.sub(lambda m: m[1] if m[1].startswith("user-") else self._user(m[1]), text)
        if "sshd" in text:
            text = _SSHD.sub(stand_in, text)
        return _LIMITS.sub(stand_in, text) if "soft" in text or "hard" in text or " - " in text else text

    def _slurm(self, match: re.Match[str]) -> str:
        key, value = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
        if value.upper() in ("ALL", "DEFAULT", "NONE", "YES", "NO"):
            return match[0]
        try:
            names = expand(value)
        except NodeNamesError:
            names = (value,)
        # What the names' own pattern has replaced already stays.
        return key + fold(n if n.startswith(("host-", "user-")) else self._host(n) for n in names)

    def _url(self, match: re.Match[str]) -> str:
        host = match[2]
        if _PUBLIC.search(host) or _IPV4.fullmatch(host) or host.startswith("host-") or host in _ORDINARY:
            return match[0]
        return match[1] + self._host(host)

    # ------------------------------------------------------------ addresses

    def _colons(self, text: str) -> str:
        text = _MAPPED_GID.sub(self._gid, text)
        text = _IPOIB.sub(lambda match: match[1] + _split(self._guid(match[2].replace(":", "")), 2), text)
        text = _MAC.sub(lambda match: self._mac(match[0]), text)
        text = _GUID.sub(lambda match: _split(self._guid(match[0].replace(":", "")), 4), text)
        text = _GUID_NAMED.sub(lambda match: match[1] + self._guid(match[2]), text)
        text = _IPV6.sub(self._ipv6, text)
        return _SOCKET.sub(
            lambda match: match[1] + self._hex(match[2]) + match[3] + self._hex(match[4]), text
        )

    def _address(self, text: str) -> str:
        octets = text.split(".")
        if any(int(octet) > 255 for octet in octets):
            return text
        address = ipaddress.ip_address(".".join(str(int(octet)) for octet in octets))
        if address.is_loopback or address.is_unspecified or address.is_multicast or octets[0] == "255":
            return text
        out = [octets[0]]
        for index in range(1, 4):
            if octets[index] in ("0", "255"):
                out.append(octets[index])  # network and broadcast addresses keep their meaning
                continue
            seed = int(self._digest("v4:" + ".".join(octets[: index + 1]))[:8], 16)
            out.append(str(1 + seed % 254))
        return ".".join(out)

    def _gid(self, match: re.Match[str]) -> str:
        high, low = int(match[1], 16), int(match[2], 16)
        octets = self._address(f"{high >> 8}.{high & 255}.{low >> 8}.{low & 255}").split(".")
        numbers = [int(octet) for octet in octets]
        return f"{numbers[0]:02x}{numbers[1]:02x}:{numbers[2]:02x}{numbers[3]:02x}"

    def _ipv6(self, match: re.Match[str]) -> str:
        text = match[0]
        if "::" not in text and text.count(":") != 7:
            return text  # a time, a PCI address
        try:
            address = ipaddress.IPv6Address(text)
        except ValueError:
            return text
        if address.is_loopback or address.is_unspecified or address.is_multicast or address.ipv4_mapped:
            return text
        whole = ipaddress.IPv6Address(self._v6(address.exploded.replace(":", "")))
        return whole.exploded if len(text) == 39 else str(whole)

    def _v6(self, digits: str) -> str:
        """Of 32 hex digits: the kind of address stays, equal prefixes stay equal, and so do equal GUIDs."""
        groups = [digits[i : i + 4] for i in range(0, 16, 4)]
        if groups[0] != "fe80":
            first = groups[0][:2] + "00" if groups[0][:2] in ("fc", "fd") else groups[0]
            rest = [self._digest("v6:" + digits[: i + 4])[:4] if digits[i : i + 4] != "0000" else "0000" for i in range(4, 16, 4)]  # fmt: skip
            if first != groups[0]:
                first = first[:2] + self._digest("v6:" + groups[0])[:2]
            groups = [first, *rest]
        return _split("".join(groups) + self._guid(digits[16:]), 4)

    def _guid(self, digits: str) -> str:
        """16 hex digits; nothing stays nothing."""
        digits = digits.lower()
        return digits if not digits.strip("0") else self._digest("guid:" + digits)[:16]

    def _hex(self, text: str) -> str:
        """An address of /proc/net/tcp or tcp6."""
        words = bytes.fromhex(text)
        plain = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
        if len(plain) == 16:
            address = ipaddress.IPv6Address(plain)
            mapped = address.ipv4_mapped
            if mapped is not None:
                plain = plain[:12] + ipaddress.IPv4Address(self._address(str(mapped))).packed
            elif not (address.is_loopback or address.is_unspecified or address.is_multicast):
                plain = ipaddress.IPv6Address(self._v6(plain.hex())).packed
        else:
            plain = ipaddress.IPv4Address(self._address(str(ipaddress.IPv4Address(plain)))).packed
        return b"".join(plain[i : i + 4][::-1] for i in range(0, len(plain), 4)).hex().upper()

    def _mac(self, text: str) -> str:
        if not text.strip("0:") or text.lower() == "ff:ff:ff:ff:ff:ff":
            return text
        digest = self._digest("mac:" + text.lower())
        return text[:8] + "".join(f":{digest[i : i + 2]}" for i in (0, 2, 4))

    def _uuid(self, match: re.Match[str]) -> str:
        text = match[0].lower()
        if not text.strip("0-"):
            return match[0]
        digest = self._digest("uuid:" + text)
        return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))


def _split(digits: str, size: int) -> str:
    return ":".join(digits[i : i + size] for i in range(0, len(digits), size))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- whom and what a record names

_USER_KEYS = frozenset(("USER", "LOGNAME", "SUDO_USER", "SLURM_JOB_USER", "SLURM_JOB_ACCOUNT", "user"))
_HOST_KEYS = frozenset(
    (
        "MASTER_ADDR", "VLLM_DP_MASTER_IP", "HOSTNAME", "HOST", "NODE_NAME", "POD_NAME", "LWS_LEADER_ADDRESS",
        "RAY_ADDRESS", "NCCL_COMM_ID", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST", "SLURM_NODELIST",
        "SLURMD_NODENAME", "SLURM_SUBMIT_HOST", "SLURM_CLUSTER_NAME", "hostname",
    )
)  # fmt: skip
_HOST_FLAGS = frozenset(
    ("--data-parallel-address", "-dpa", "--master-addr", "--master_addr", "--node-ip-address", "--address", "--host")
)  # fmt: skip
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{1,252}")


def people_and_hosts(value: Any) -> tuple[set[str], set[str]]:
    """(users, host names) that a JSON value names where it is known what stands there."""
    users: set[str] = set()
    hosts: set[str] = set()
    _walk(value, users.add, lambda text: hosts.update(_hosts(text)))
    return users, hosts


def _walk(value: Any, user: Callable[[str], None], host: Callable[[str], None]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str):
                if key in _USER_KEYS:
                    user(item)
                elif key in _HOST_KEYS:
                    host(item)
            else:
                _walk(item, user, host)
    elif isinstance(value, list):
        before = ""
        for item in value:
            if isinstance(item, str):
                flag, equals, rest = item.partition("=")
                if before in _HOST_FLAGS:
                    host(item)
                elif equals and flag in _HOST_FLAGS:
                    host(rest)
                elif before.endswith(("/kernel/hostname", "/kernel/domainname")):
                    host(item.strip())
                before = item
            else:
                _walk(item, user, host)


def _hosts(text: str) -> Iterable[str]:
    text = text.partition("://")[2] or text
    try:
        names = expand(text)
    except NodeNamesError:
        return
    for name in names:
        bare = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
        if _HOST.fullmatch(bare) and bare not in ("auto", "none") and not bare.replace(".", "").isdigit():
            yield bare


_SYSTEM_PATHS = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/")


def path_words(value: Any) -> set[str]:
    """Words of the system's own paths that a record was read from: /proc/sys/vm/overcommit_memory has proc, sys, vm."""
    found: set[str] = set()
    rows = value.get("data") if isinstance(value, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, list) and row and isinstance(row[0], str) and row[0].startswith(_SYSTEM_PATHS):
            found.update(re.split(r"[^A-Za-z0-9_-]+", row[0]))
    return found
