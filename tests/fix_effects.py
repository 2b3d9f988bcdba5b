"""What a fix does to a node, found out by running its commands on a copy of the node's files.

The commands run in a real bash whose PATH holds only what is named in TOOLS, and every absolute path is turned into one
below a temporary folder; modprobe, sysctl, prlimit and the like are small scripts that leave what the kernel would. What
else a command needs is not there, so it fails and the fix counts as "not run here". Then the files, limits, modules and
variables are put back into the record's probes. A reboot starts from the record's own state and applies what is on disk.
"""

from __future__ import annotations

import atexit
import fnmatch
import marshal
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from epdoctor.collect.plan import all_probes
from epdoctor.facts.base import CollectOptions, Files
from epdoctor.facts.environment import EP_ENV, FAMILIES

TOOLS = ("tee", "sed", "mkdir", "grep", "cat", "cut")
_STUBS = {
    "sudo": 'exec "$@"',
    "modprobe": 'case $1 in -*) exit 9;; esac; echo "$1" >> "$FIX_ROOT/.modules"',
    "sysctl": (
        '[ "$1" = -w ] || exit 9; shift; for one; do key=${one%%=*}; file="$FIX_ROOT/proc/sys/${key//./\\/}";'
        ' mkdir -p "${file%/*}"; echo "${one#*=}" > "$file"; done'
    ),
    "prlimit": 'echo "$*" >> "$FIX_ROOT/.prlimit"',
    "chmod": 'echo "$*" >> "$FIX_ROOT/.chmod"',
    "systemctl": 'echo "$*" >> "$FIX_ROOT/.systemctl"',
    "hostname": "echo 10.0.0.7",
    "pgrep": 'cat "$FIX_ROOT/.vllm"',
    "udevadm": "exit 0",
    "update-initramfs": "exit 0",
    "reboot": "exit 0",
}
FOLDERS = (
    "etc/sysctl.d", "etc/modules-load.d", "etc/modprobe.d", "etc/security/limits.d", "etc/tmpfiles.d", "etc/systemd/system",
    "etc/udev/rules.d",
)  # fmt: skip
"""That every distribution has."""
_PATHS = re.compile(r"(?<![\w/$}])/(?=(?:etc|proc|sys|usr|run)/)")
_ROWS = {"memlock": "Max locked memory", "nofile": "Max open files", "stack": "Max stack size"}
_VARIABLES = tuple(prefix for group in FAMILIES.values() for prefix in group)


@cache
def _files_probes() -> dict[str, tuple[str, ...]]:
    return {probe.name: probe.globs for probe in all_probes(CollectOptions()) if isinstance(probe, Files)}


@cache
def _tools() -> Path:
    """The one folder of every machine's PATH."""
    folder = Path(tempfile.mkdtemp(prefix="fix-tools-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name, body in _STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


class NotRun(Exception):  # noqa: N818 - an answer, not an error
    """A command of the fix cannot run here; `str()` is the command."""


class Machine:
    """A case's probes and options, and what commands do to them."""

    def __init__(self, probes: dict[str, Any], options: CollectOptions, folder: Path) -> None:
        # A record is JSON: marshal copies it ten times as fast as deepcopy.
        self.probes, self.options, self.folder = marshal.loads(marshal.dumps(probes)), options, folder
        self.folder.mkdir(parents=True)
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
        pids = [str(row[1].get("pid")) for row in self._rows("processes.scan") if row[0] == "process"]
        (folder / ".vllm").write_text(pids[0] if pids else "")
        self._seen: dict[str, str] = {}
        """Files as they were read back last: path on the node -> text."""
        made: set[str] = set()
        for path, text in self._texts():
            parent = path.rpartition("/")[0]
            if parent not in made:
                made.add(parent)
                (folder / parent.lstrip("/")).mkdir(parents=True, exist_ok=True)
            (folder / path.lstrip("/")).write_text(text, errors="surrogateescape")

    def copy(self, folder: Path) -> Machine:
        return Machine(self.probes, self.options, folder)

    def _texts(self) -> Iterable[tuple[str, str]]:
        for name in _files_probes():
            for row in self._rows(name):
                if (
                    len(row) > 1
                    and isinstance(row[1], str)
                    and (
                        row[0].startswith(("/etc/", "/proc/sys/", "/sys/devices"))
                        or row[0].endswith("/traffic_class")
                    )
                ):
                    yield row[0], row[1]

    def _rows(self, name: str) -> list[Any]:
        entry = self.probes.get(name)
        return entry.get("data") or [] if isinstance(entry, dict) else []

    # ------------------------------------------------------------------------------------------ variables

    def _layers(self) -> list[dict[str, str]]:
        """Where variables live, as the facts read them: workers, else the session."""
        return [
            row[1]["environ"]
            for row in self._rows("processes.scan")
            if row[0] == "process" and isinstance(row[1].get("environ"), dict)
        ]

    def variables(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for row in self._rows("processes.scan"):
            if row[0] == "session":
                found.update(row[1])
        for layer in self._layers():
            found.update(layer)
        for line in self.options.env_file_text.splitlines():
            name, equals, value = line.strip().partition("=")
            if equals:
                found[name.removeprefix("export ")] = value
        return {name: value for name, value in found.items() if re.fullmatch(r"\w+", name)}

    def _set_variables(self, wanted: dict[str, str]) -> None:
        before = self.variables()
        gone, new = before.keys() - wanted.keys(), {k: v for k, v in wanted.items() if before.get(k) != v}
        if not gone and not new:
            return
        lines = [
            line
            for line in self.options.env_file_text.splitlines()
            if line.strip().removeprefix("export ").partition("=")[0] not in gone | new.keys()
        ]
        layers = self._layers()
        if self.options.env_file_text or not layers:
            lines += [f"{name}={value}" for name, value in new.items()]
            lines = lines or ["X=1"]
        self.options = replace(self.options, env_file_text="".join(line + "\n" for line in lines))
        for layer in [*layers, *(row[1] for row in self._rows("processes.scan") if row[0] == "session")]:
            for name in gone:
                layer.pop(name, None)
        for layer in layers:
            layer.update(new)

    # ------------------------------------------------------------------------------------------ commands

    def run(self, commands: Iterable[str]) -> None:
        """Raises NotRun where one of them cannot run here."""
        wanted = self.variables()
        for command in commands:
            text = _PATHS.sub(f"{self.folder}/", command)
            script = (
                f"set -u -o pipefail\n{text}\nstatus=$?\nexport -p > {self.folder}/.exported\nexit $status\n"
            )
            done = subprocess.run(
                ["/bin/bash", "--norc", "--noprofile", "-c", script],
                env={**wanted, "PATH": str(_tools()), "FIX_ROOT": str(self.folder)},
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
            if done.returncode or "command not found" in done.stderr:
                raise NotRun(command)
            wanted = self._exported(wanted)
        self._set_variables(wanted)
        self._read_back()

    def _exported(self, before: dict[str, str]) -> dict[str, str]:
        found = {}
        for line in (self.folder / ".exported").read_text().splitlines():
            match = re.fullmatch(r'declare -x (\w+)="(.*)"', line)
            if match and (
                match[1] in before or match[1].startswith(_VARIABLES) or match[1] not in os.environ
            ):
                found[match[1]] = match[2]
        for name in ("PATH", "FIX_ROOT", "PWD", "OLDPWD", "SHLVL", "_"):
            found.pop(name, None)
        return found

    def _read_back(self) -> None:
        texts: dict[str, str] = {}
        for file in self._below():
            text = file.read_text(errors="surrogateescape")
            if str(self.folder) in text:
                text = text.replace(str(self.folder), "")
                file.write_text(text, errors="surrogateescape")
            texts["/" + str(file)[len(str(self.folder)) + 1 :]] = text
        changed = {path: text for path, text in texts.items() if self._seen.get(path) != text}
        self._seen = texts
        for name in _files_probes() if changed else ():
            rows = {row[0]: row for row in self._rows(name)}
            for path, text in changed.items():
                if path in rows or name in _readers(path):
                    rows[path] = [path, text]
            if rows and isinstance(self.probes.get(name), dict):
                self.probes[name] = {**self.probes[name], "data": list(rows.values())}
        for line in self._log(".modules"):
            self._load(line)
        for line in self._log(".prlimit"):
            self._limit(line)
        for line in self._log(".systemctl"):
            if line.startswith(("restart ", "enable --now ", "try-restart ")):
                self._restarted(line.split()[-1].removesuffix(".service"))
        for line in self._log(".chmod"):
            path = line.split()[-1].replace(str(self.folder), "")
            for name in ("devices.nodes", "rdma.uverbs"):
                for row in self._rows(name):
                    if row[0] == path:
                        row[1].update(readable=True, writable=True)

        for file in (self.folder / "etc/udev/rules.d").glob("*.rules"):
            if 'KERNEL=="uverbs*", MODE="0666"' in file.read_text():
                for row in self._rows("rdma.uverbs"):
                    row[1].update(readable=True, writable=True)

    def _restarted(self, unit: str) -> None:
        """The service's process is a new one, with the limit of its unit files."""
        texts = [
            file.read_text()
            for folder in (f"etc/systemd/system/{unit}.service.d", "etc/systemd/system.conf.d")
            for file in sorted((self.folder / folder).glob("*.conf"))
        ]
        if any("LimitMEMLOCK=infinity" in text for text in texts):
            for row in self._rows("processes.scan"):
                if row[0] in ("process", "daemon") and (
                    unit == row[1].get("comm") or f"{unit}.service" in str(row[1].get("cgroup"))
                ):
                    limits = row[1].get("limits") or {}
                    row[1]["limits"] = {**limits, "memlock": ["unlimited", "unlimited"]}

    def _below(self) -> list[Path]:
        found = []
        for folder, folders, files in os.walk(self.folder):
            if folder == str(self.folder):
                folders[:], files = [name for name in folders if not name.startswith(".")], []
            found += [Path(folder, name) for name in files]
        return sorted(found)

    def _log(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def _load(self, module: str) -> None:
        module = module.replace("-", "_")
        for row in self._rows("modules.loaded"):
            if row[0] == "/proc/modules" and f"{module} " not in row[1]:
                row[1] += f"{module} 16384 0 - Live 0x0000000000000000\n"
        rows = self._rows("modules.sysfs")
        path = f"/sys/module/{module}/initstate"
        if "modules.sysfs" in self.probes and all(row[0] != path for row in rows):
            self.probes["modules.sysfs"] = {**self.probes["modules.sysfs"], "data": [*rows, [path, "live\n"]]}

    def _limit(self, words: str) -> None:
        match = re.match(r"--(\w+)=([^: ]+)(?::(\S+))?(?: --pid (\d+))?", words)
        assert match, words
        kind, soft, hard, pid = match[1], match[2], match[3] or match[2], match[4]
        for row in self._rows("processes.scan"):
            if row[0] == "process" and str(row[1].get("pid")) == pid:
                row[1]["limits"] = {**row[1].get("limits", {}), kind: [soft, hard]}
        own = not any(
            row[0] == "process" and str(row[1].get("pid")) == pid for row in self._rows("processes.scan")
        )
        for row in self._rows("limits.files"):
            if own and row[0] == "/proc/self/limits":
                lines = row[1].splitlines()
                row[1] = "".join(
                    f"{_ROWS[kind]:<26}{soft:<21}{hard:<21}x\n"
                    if line.startswith(_ROWS[kind])
                    else line + "\n"
                    for line in lines
                )

    # ------------------------------------------------------------------------------------------ reboot

    def reboot(self, initial: Machine) -> Machine:
        """The state of `initial`, with what this machine has on disk, as a boot applies it."""
        after = Machine(initial.probes, initial.options, self.folder.with_name(self.folder.name + "-booted"))
        for file in self._below():
            if file.relative_to(self.folder).parts[0] == "etc":
                target = after.folder / file.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        commands: list[str] = []
        for file in sorted((after.folder / "etc").rglob("*")):
            folder = file.parent.name
            if not file.is_file():
                continue
            lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
            lines = [line for line in lines if line and not line.startswith("#")]
            if folder == "sysctl.d":
                commands += [f"sysctl -w {line.replace(' ', '')}" for line in lines]
            elif folder == "modules-load.d":
                commands += [f"modprobe {line}" for line in lines]
            elif folder == "tmpfiles.d":
                commands += [
                    f"echo {line.split()[6]} | tee {line.split()[1]}"
                    for line in lines
                    if line.startswith("w ")
                ]
            elif folder == "modprobe.d":
                after._driver_options(lines)
            elif folder == "limits.d":
                commands += self._pam(lines)
        after.run(commands)
        for drop_in in (after.folder / "etc/systemd/system").glob("*.service.d"):
            after._restarted(drop_in.name.removesuffix(".service.d"))
        after._started_anew()
        variables = {}
        for line in self._log_of(after.folder / EP_ENV.lstrip("/")):
            name, equals, value = line.partition("=")
            if equals:
                variables[name] = value
        after.from_disk(variables)
        return after

    def from_disk(self, variables: dict[str, str]) -> None:
        """The workers were started anew from ep.env."""
        if EP_ENV in [row[0] for row in self._rows("environment.files")] or variables:
            self._set_variables(variables)

    def _started_anew(self) -> None:
        """vLLM and Ray are started from a login, with its limits."""
        logs = [line for line in self._log(".prlimit") if "--pid" not in line]
        for row in self._rows("processes.scan"):
            if row[0] == "process" and (
                row[1].get("role") in ("serve", "worker") or row[1].get("comm") == "raylet"
            ):
                for line in logs:
                    kind, _, values = line.removeprefix("--").partition("=")
                    soft, _, hard = values.partition(":")
                    row[1]["limits"] = {**(row[1].get("limits") or {}), kind: [soft, hard or soft]}

    def _driver_options(self, lines: list[str]) -> None:
        """The NVIDIA module was loaded with its options: /proc/driver/nvidia/params shows them without NVreg_."""
        for line in lines:
            if line.startswith("options nvidia "):
                for name, value in re.findall(r"NVreg_(\w+)=(\"[^\"]*\"|\S+)", line):
                    for row in self._rows("modules.nvidia"):
                        if row[0] == "/proc/driver/nvidia/params":
                            row[1] = re.sub(rf"(?m)^{name}: .*$", f"{name}: {value}", row[1])

    @staticmethod
    def _log_of(file: Path) -> list[str]:
        return file.read_text().splitlines() if file.exists() else []

    @staticmethod
    def _pam(lines: list[str]) -> list[str]:
        limits: dict[str, dict[str, str]] = {}
        for line in lines:
            who, kind, item, value = [*line.split(), "", "", "", ""][:4]
            if who == "*" and item in _ROWS:
                limits.setdefault(item, {})[kind] = value
        return [
            f"prlimit --{item}={values.get('soft', values.get('hard'))}:{values.get('hard', values.get('soft'))}"
            for item, values in limits.items()
        ]

    def put_variables_on_disk(self) -> None:
        """As if the workers had been started from ep.env: what the case sets stands there."""
        file = self.folder / EP_ENV.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        own = {n: v for n, v in self.variables().items() if n.isupper() and n != "X"}
        file.write_text("".join(f"{name}={value}\n" for name, value in own.items()))
        self.probes.setdefault("environment.files", {"status": "ran", "rc": 0, "seconds": 0.0, "data": []})
        self._read_back()

    def state(self) -> tuple[Any, ...]:
        """Everything that a second application must leave as it is."""
        return (
            {str(file.relative_to(self.folder)): file.read_bytes() for file in self._below()},
            self.variables(),
        )


@cache
def _readers(path: str) -> frozenset[str]:
    """Names of the probes that read this file."""
    return frozenset(
        name for name, globs in _files_probes().items() if any(_matches(path, glob) for glob in globs)
    )


def _matches(path: str, glob: str) -> bool:
    parts, patterns = path.split("/"), glob.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))
