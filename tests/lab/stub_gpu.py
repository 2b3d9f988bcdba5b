"""Make a netns node look like a recorded GPU machine: nvidia-smi, /proc, /dev and /sys.

Only recorded text is shown; nothing here can compute. An nvidia-smi call that was not
recorded ends with status 64 and says so, so that a test never takes a gap for an answer.
"""

import re
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab.node import Content, NetnsNode
from tests.lab.requirements import LabError

MACHINES = Path(__file__).parents[1] / "records" / "raw" / "machines"
HCA_ARCHIVE = MACHINES / "public" / "h100-8hca-sys-class-infiniband.tar.gz"
REPLAY_DIR = "/usr/share/epdlab/nvidia-smi"
_DEVICE = re.compile(r"^c[-rwx]{9} \d+ root root +(\d+), +(\d+) .* (\S+)$")


@dataclass(frozen=True)
class Machine:
    """The recording of one GPU machine."""

    smi: Mapping[str, str]
    """nvidia-smi's stdout by its arguments, joined with one space."""
    proc: Mapping[str, str]
    """Files below /proc/driver/nvidia."""
    modules: str
    """/proc/modules."""
    devices: Mapping[str, tuple[int, int]]
    """Character devices, path -> (major, minor)."""
    pci: Mapping[str, str]
    """Files below /sys/bus/pci/devices."""


def recorded(path: Path) -> tuple[str, str]:
    """Split a recording into its command line and what that printed, without ``$`` and ``rc=``.

    Raises LabError when the file is not of this form.
    """
    command, _, rest = path.read_text().partition("\n")
    body, mark, status = rest.rpartition("rc=")
    if not command.startswith("$ ") or not mark or not status.strip().isdigit():
        raise LabError(f"{path}: not a recording ($ command ... rc=N)")
    return command[2:], body


def split_at(text: str, head: str) -> list[str]:
    """Cut a text before every line that starts with ``head``."""
    parts: list[list[str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith(head) or not parts:
            parts.append([])
        parts[-1].append(line)
    return ["".join(part) for part in parts]


def _smi(folder: Path) -> dict[str, str]:
    answers: dict[str, str] = {}
    for name in ("smi", "smi_q", "topo", "query"):
        command, text = recorded(folder / f"{name}.txt")
        answers[" ".join(shlex.split(command)[1:])] = text
    _, text = recorded(folder / "topo_p2p.txt")
    matrices = split_at(text, " \t\x1b[4mGPU0")
    if len(matrices) != 3:
        raise LabError(f"{folder}: topo_p2p.txt must hold the matrices r, w and n")
    answers.update({f"topo -p2p {kind}": matrix for kind, matrix in zip("rwn", matrices, strict=True)})
    _, text = recorded(folder / "nvlink.txt")
    # `nvlink -s` and `nvlink -c` stand one after the other, each from GPU 0 on; empty without NVLink.
    status, capabilities = split_at(text, "GPU 0:") if text else ("", "")
    answers["nvlink -s"] = answers["nvlink --status"] = status
    answers["nvlink -c"] = capabilities
    return answers


def _proc(folder: Path) -> dict[str, str]:
    _, text = recorded(folder / "proc_nv.txt")
    files = {}
    for part in split_at(text, "== /proc/driver/nvidia/"):
        head, _, body = part.partition("\n")
        files[head.removeprefix("== /proc/driver/nvidia/")] = body
    return files


def _pci(folder: Path) -> dict[str, str]:
    _, text = recorded(folder / "lspci.txt")
    files = {}
    for line in text.splitlines():
        words = line.split()
        if not line.startswith("/sys/bus/pci/devices/"):
            continue
        slot = words[0].rpartition("/")[2]
        for key, value in zip(("vendor", "device", "class"), words[1:4], strict=True):
            files[f"{slot}/{key}"] = f"{value}\n"
        files[f"{slot}/numa_node"] = words[4].removeprefix("numa=") + "\n"
        if len(words) > 6:
            files[f"{slot}/current_link_speed"] = " ".join(words[5:-1]) + "\n"
            files[f"{slot}/current_link_width"] = words[-1].removeprefix("x") + "\n"
    return files


def load(name: str) -> Machine:
    """The recording ``tests/records/raw/machines/<name>``. Raises LabError, OSError."""
    folder = MACHINES / name
    _, text = recorded(folder / "modules_and_devices.txt")
    devices = {}
    for line in text.splitlines():
        if (found := _DEVICE.match(line)) and found[3].startswith("/dev/"):
            devices[found[3]] = (int(found[1]), int(found[2]))
    return Machine(
        smi=_smi(folder),
        proc=_proc(folder),
        modules=text.partition("Linux ")[0],
        devices=devices,
        pci=_pci(folder),
    )


def install_nvidia_smi(
    node: NetnsNode, answers: Mapping[str, str], *, path: str = "/usr/bin/nvidia-smi"
) -> None:
    """Put a replaying nvidia-smi on the node; ``answers`` maps joined arguments to stdout."""
    cases = []
    for number, (arguments, text) in enumerate(answers.items()):
        node.write(f"{REPLAY_DIR}/{number}", text)
        cases.append(f"  {shlex.quote(arguments)}) exec cat {REPLAY_DIR}/{number} ;;")
    lines = [
        "#!/bin/sh",
        'case "$*" in',
        *cases,
        '  *) echo "epdlab: not recorded: nvidia-smi $*" >&2; exit 64 ;;',
        "esac",
    ]
    node.install_script(path, "\n".join(lines) + "\n")


def install_gpus(node: NetnsNode, machine: Machine) -> None:
    """Show a recorded machine's GPUs on the node: nvidia-smi, /proc, /dev, /sys/bus/pci/devices.

    The devices cannot be opened (no driver answers): what asks NVML or CUDA fails honestly.
    """
    install_nvidia_smi(node, machine.smi)
    files: dict[str, Content] = dict(machine.proc)
    node.fake_tree("/proc/driver/nvidia", files)
    if node.exists("/proc/modules"):  # absent where the kernel was built without modules
        node.fake_file("/proc/modules", machine.modules)
    loaded = [line.split()[0] for line in machine.modules.splitlines()]
    modules: dict[str, Content] = {f"{name}/initstate": "live\n" for name in loaded}
    if found := re.search(r"  ([0-9][0-9.]+)  ", machine.proc["version"]):
        modules["nvidia/version"] = f"{found[1]}\n"
    node.fake_tree("/sys/module", modules, keep=True)
    if machine.pci:
        node.fake_tree("/sys/bus/pci/devices", dict(machine.pci))
    for path, (major, minor) in machine.devices.items():
        node.device(path, major, minor)


def hca_files(archive: Path = HCA_ARCHIVE) -> dict[str, Content]:
    """Files below /sys/class/infiniband of the recorded node with eight ConnectX-7 and a bond."""
    files: dict[str, Content] = {}
    with tarfile.open(archive) as tree:
        for entry in tree:
            stream = tree.extractfile(entry) if entry.isfile() else None
            if stream is not None:
                files[entry.name.partition("/")[2]] = stream.read()
    return files


def install_hcas(node: NetnsNode, files: Mapping[str, Content] | None = None) -> None:
    """Show RDMA devices on the node: a tree at /sys/class/infiniband and /dev/infiniband/uverbsN."""
    tree = dict(hca_files() if files is None else files)
    node.fake_tree("/sys/class/infiniband", tree)
    devices = sorted({path.partition("/")[0] for path in tree})
    verbs: dict[str, Content] = {}
    for number, name in enumerate(devices):
        # 231:192 is where the kernel's first uverbs device lies (drivers/infiniband/core/uverbs_main.c).
        node.device(f"/dev/infiniband/uverbs{number}", 231, 192 + number)
        verbs[f"uverbs{number}/ibdev"] = f"{name}\n"
    node.fake_tree("/sys/class/infiniband_verbs", verbs)
    node.device("/dev/infiniband/rdma_cm", 10, 258)
