"""Run RDMA tools between two virtual machines and keep what they print."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.lab.vm_machine import VirtualMachine

EMPTY_GID = ("ib_write_bw", "-d", "rxe0", "-x", "5", "-n", "20", "-s", "65536", "-F")
PINGPONG = ("ibv_rc_pingpong", "-d", "rxe0", "-g", "1", "-n", "5", "-s", "262144")
WRITE_BW = ("ib_write_bw", "-d", "rxe0", "-x", "1", "-n", "20", "-s", "65536", "-F", "--report_gbits")
CLIENT_LIMIT_S, SERVER_LIMIT_S = 15, 60
"""Soft-RoCE repeats for ever where hardware gives up, so every tool runs under ``timeout``."""


def printed(
    node: VirtualMachine, argv: Sequence[str], *, user: str = "root", limit_s: int = CLIENT_LIMIT_S
) -> str:
    """Both streams of a program in a login session of ``user``, as an admin would see them."""
    # su goes through PAM, so that the session has the limits of limits.d.
    command = f"timeout -s INT {limit_s} {' '.join(argv)}"
    script = 'su -l "$1" -c "$2" 2>&1'
    return node.run(["sh", "-c", script, "sh", user, command], timeout_s=limit_s + 30, check=False).stdout


def between(
    server: VirtualMachine, client: VirtualMachine, argv: Sequence[str], *, user: str = "root"
) -> tuple[str, str]:
    """Run ``argv`` as a server on one machine and towards it on the other; what each printed."""
    port = "sport = :18515"
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(printed, server, argv, user=user, limit_s=SERVER_LIMIT_S)
        # An emulated processor needs seconds until the server listens.
        server.sh(f"for i in $(seq 200); do ss -Hltn '{port}' | grep -q . && break; sleep 0.1; done")
        said = printed(client, [*argv, server.data_address], user=user)
        # A server whose client has failed waits for ever; one that was served ends by itself.
        name = argv[0][:15]
        server.sh(
            f"for i in $(seq 30); do pgrep -x {name} >/dev/null || exit 0; sleep 0.1; done; pkill -INT -x {name} || true"
        )
        return serving.result(), said
