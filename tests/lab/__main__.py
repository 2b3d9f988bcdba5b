"""``python -m tests.lab fleet|containers|slurm|vm``: start a lab, run one command or a shell in it, end it.

``up``, ``down``, ``status``, ``restore`` and ``ssh`` are those of ``vm``.
"""

import argparse
import os
import subprocess
import sys
import time

from tests.lab import eight_gpus, stub_gpu, vm_cli
from tests.lab.containers import PodmanFleet
from tests.lab.netns import NetnsFleet
from tests.lab.requirements import LabError
from tests.lab.slurm import SlurmCluster


def _fleet(options: argparse.Namespace) -> int:
    with NetnsFleet(options.nodes) as fleet:
        for node in fleet.nodes:
            if options.gpus == "eight":
                eight_gpus.install(node)
            elif options.gpus:
                stub_gpu.install_gpus(node, stub_gpu.load(options.gpus))
        env = {**os.environ, "EPDOCTOR_INVENTORY": str(fleet.inventory), "LAB": str(fleet.dir)}
        words = f"inventory {fleet.inventory}; ssh -F {fleet.ssh_config} {fleet.nodes[0].name}"
        return _command(options, fleet.exec_prefix, env, words)


def _containers(options: argparse.Namespace) -> int:
    with PodmanFleet(options.nodes) as fleet:
        env = {**fleet.env, "EPDOCTOR_INVENTORY": str(fleet.inventory), "LAB": str(fleet.dir)}
        words = f"inventory {fleet.inventory}; podman exec -i {fleet.nodes[0].name} COMMAND"
        return _command(options, fleet.exec_prefix, env, words)


def _slurm(options: argparse.Namespace) -> int:
    with SlurmCluster(options.nodes) as cluster:
        return _command(options, [], cluster.env, f"srun -N1 -w {cluster.names[0]} COMMAND")


def _command(options: argparse.Namespace, prefix: list[str], env: dict[str, str], words: str) -> int:
    print(f"up in {time.monotonic() - options.began:.1f} s: {words}", file=sys.stderr)
    argv = options.command or [os.environ.get("SHELL", "/bin/sh")]
    return subprocess.run([*prefix, *argv], env=env).returncode


def main() -> int:
    """Start a lab, run the command, end the lab; returns the command's status."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="LAB")
    for name, call in (("fleet", _fleet), ("containers", _containers), ("slurm", _slurm)):
        kind = kinds.add_parser(name)
        kind.add_argument("--nodes", type=int, default=2)
        kind.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND...; default: a shell")
        kind.set_defaults(call=call)
        if name == "fleet":
            kind.add_argument("--gpus", choices=("h200x2", "h100x1", "eight"), help="what the nodes imitate")
    vm_cli.add_commands(kinds.add_parser("vm", help="virtual machines with Soft-RoCE"))
    # The virtual machines are what "the lab" means without a name.
    words = ["vm", *sys.argv[1:]] if sys.argv[1:2] and sys.argv[1] in vm_cli.SHORT else sys.argv[1:]
    options = parser.parse_args(words)
    options.began = time.monotonic()
    options.command = getattr(options, "command", [])
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        status: int = options.call(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
