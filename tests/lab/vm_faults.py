"""Faults for virtual machines, one at a time: how to plant each, how to take it back, what must be found."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.lab.vm_machine import VirtualMachine
from tests.lab.vm_tools import EMPTY_GID, WRITE_BW

PREPARED = "prepared"
"""State of a machine that prepare() has put in order."""

_PREPARE = r"""set -e
printf '%s memlock unlimited\n' '* soft' '* hard' 'root soft' 'root hard' >/etc/security/limits.d/90-lab.conf
printf '%s nofile 1048576\n' '* soft' '* hard' 'root soft' 'root hard' >>/etc/security/limits.d/90-lab.conf
printf 'vm.max_map_count = 1048576\nnet.ipv4.ip_local_reserved_ports = 5600,29501,29550\n' >/etc/sysctl.d/90-lab.conf
sysctl -q -p /etc/sysctl.d/90-lab.conf
mkdir -p /etc/systemd/logind.conf.d
printf '[Login]\nRemoveIPC=no\n' >/etc/systemd/logind.conf.d/90-lab.conf
systemctl restart systemd-logind
echo 'tmpfs /dev/shm tmpfs defaults,nosuid,nodev,size=2G 0 0' >>/etc/fstab
mount -o remount,size=2G /dev/shm
modprobe nf_tables
nft 'add table inet lab; add chain inet lab input { type filter hook input priority 0; policy accept; }'
"""


def prepare(node: VirtualMachine) -> None:
    """Make a machine that a check has nothing to say of: limits, sysctls, /dev/shm, variables, an open firewall."""
    node.sh(_PREPARE)


@dataclass(frozen=True)
class Fault:
    """One fault on one machine."""

    id: str
    title: str
    """For the table in docs/detection.md."""
    apply: Callable[[VirtualMachine], None]
    undo: Callable[[VirtualMachine], None]
    found_by: tuple[str, ...] = ()
    """Checks, each of which must fail and name the machine. Empty: only ``bench`` can see it."""
    unknown: tuple[str, ...] = ()
    """Checks that must say on this machine that they could not see."""
    follows: tuple[str, ...] = ()
    """Checks that may fail as well, because what they say is true and follows from the fault."""
    tool: tuple[str, ...] = ()
    """A program that runs into the fault, started between a healthy machine and this one."""
    cause: str = ""
    """The cause that ``epdoctor explain`` must name first from what that program prints."""
    user: str = "root"
    unreachable: bool = False
    """Planted while the check runs; the machine itself must be reported as not reached."""
    everywhere: bool = False
    """Planted on all machines."""


def _sh(script: str) -> Callable[[VirtualMachine], None]:
    def act(node: VirtualMachine) -> None:
        node.sh(script)

    return act


def _cable(plugged: bool) -> Callable[[VirtualMachine], None]:
    def act(node: VirtualMachine) -> None:
        node.cable("data", plugged=plugged)
        want = "LinkUp" if plugged else "Polling"
        node.sh(
            f"for i in $(seq 50); do grep -q {want} /sys/class/infiniband/rxe0/ports/1/phys_state && break; sleep 0.1; done"
        )

    return act


_STUCK = r"""set -e
mkdir -p /mnt/lower /mnt/upper
truncate -s 64M /var/lower.img
mke2fs -q -F -t ext4 /var/lower.img
mount -o loop /var/lower.img /mnt/lower
truncate -s 16M /mnt/lower/upper.img
mke2fs -q -F -t ext4 /mnt/lower/upper.img
mount -o loop /mnt/lower/upper.img /mnt/upper
fsfreeze -f /mnt/lower
mv /usr/sbin/nft /usr/sbin/nft.real
printf '#!/bin/sh\nexec dd if=/dev/zero of=/mnt/upper/x bs=4k count=1 oflag=sync 2>/dev/null\n' >/usr/sbin/nft
chmod 755 /usr/sbin/nft
"""
"""nft writes to a disk whose own disk is frozen: it waits in the kernel (state D), and SIGKILL waits with it."""

_UNSTUCK = (
    "mv -f /usr/sbin/nft.real /usr/sbin/nft; fsfreeze -u /mnt/lower; sleep 1; umount /mnt/upper /mnt/lower"
)
_STOPPED = r"""mv /usr/sbin/nft /usr/sbin/nft.real
printf '#!/bin/sh\nkill -STOP $$\nexec nft.real "$@"\n' >/usr/sbin/nft; chmod 755 /usr/sbin/nft"""
_LIBRARY = "cd /usr/lib/x86_64-linux-gnu && {act} && ldconfig"
_ENV = "/etc/epdoctor/ep.env"
_RULE = "nft 'add rule inet lab input {rule}'"
_NO_LINK = ("rdma.roce-v2-gid-present", "rdma.same-rate-on-rails", "drift.gid-index")
_NO_RULES = "nft flush chain inet lab input"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "memlock-64",
        "locked memory 64 KiB for a user who is not root",
        _sh("printf 'tester - memlock 64\\n' >/etc/security/limits.d/95-fault.conf"),
        _sh("rm -f /etc/security/limits.d/95-fault.conf"),
        found_by=("host.memlock-unlimited", "drift.memlock"),
        user="tester",
        tool=WRITE_BW,
        cause="memlock-limit",
    ),
    Fault(
        "link-down",
        "RoCE port taken down (ip link set eth1 down)",
        _sh("ip link set eth1 down"),
        _sh("ip link set eth1 up"),
        found_by=("rdma.phys-link-up",),
        follows=_NO_LINK,
        tool=WRITE_BW,
        cause="rdma-port-down",
    ),
    Fault(
        "cable-pulled",
        "cable of the RoCE port pulled",
        _cable(False),
        _cable(True),
        found_by=("rdma.phys-link-up",),
        follows=_NO_LINK,
    ),
    Fault(
        "gid-index",
        "NCCL_IB_GID_INDEX names an empty GID",
        _sh(f"mkdir -p /etc/epdoctor; echo NCCL_IB_GID_INDEX=5 >{_ENV}"),
        _sh(f"rm {_ENV}"),
        found_by=("rdma.nccl-gid-index-valid",),
        follows=("drift.env-nccl", "nccl.gid-index-automatic"),
        tool=EMPTY_GID,
        cause="roce-wrong-gid-index",
    ),
    Fault(
        "mtu",
        "MTU 9000 on one node, 1500 on the others",
        _sh("ip link set eth1 mtu 9000"),
        _sh("ip link set eth1 mtu 1500"),
        found_by=("drift.mtu",),
    ),
    Fault(
        "mtu-path",
        "packets over 1500 bytes dropped on the way, MTU 9000 on all nodes",
        _sh("ip link set eth1 mtu 9000; " + _RULE.format(rule="iifname eth1 meta length > 1500 drop")),
        _sh("ip link set eth1 mtu 1500; " + _NO_RULES),
        everywhere=True,
    ),
    Fault(
        "loss",
        "10 % of packets lost on the RoCE port",
        _sh("tc qdisc add dev eth1 root netem loss 10%"),
        _sh("tc qdisc del dev eth1 root"),
    ),
    Fault(
        "delay",
        "20 ms of delay on the RoCE port",
        _sh("tc qdisc add dev eth1 root netem delay 20ms"),
        _sh("tc qdisc del dev eth1 root"),
    ),
    Fault(
        "udp-4791",
        "UDP 4791 (RoCE v2) dropped",
        _sh(_RULE.format(rule="udp dport 4791 drop")),
        _sh(_NO_RULES),
    ),
    Fault(
        "vllm-ports",
        "vLLM's ports 29501 and 29550 dropped",
        _sh(_RULE.format(rule="tcp dport { 29501, 29550 } drop")),
        _sh(_NO_RULES),
        found_by=("network.ports-open",),
    ),
    Fault(
        "loopback-name",
        "the node's host name resolves to 127.0.1.1",
        _sh(r"sed -i 's/^10\.78\.0\.12\tvm2$/127.0.1.1\tvm2/' /etc/hosts"),
        _sh(r"sed -i 's/^127\.0\.1\.1\tvm2$/10.78.0.12\tvm2/' /etc/hosts"),
        found_by=("names.own-name-not-loopback",),
        follows=("names.every-node-resolves-alike",),
    ),
    Fault(
        "module",
        "module rdma_rxe not loaded",
        _sh("rdma link del rxe0; modprobe -r rdma_rxe"),
        _sh("modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth1"),
        found_by=("drift.hca-count",),
        follows=("drift.hca-names", "drift.gid-index", "drift.link-rates", "drift.mtu", "drift.nic-firmware"),
        tool=WRITE_BW,
        cause="rdma-kernel-modules-not-loaded",
    ),
    Fault(
        "permission",
        "/dev/infiniband/uverbs0 for root only",
        _sh("chmod 600 /dev/infiniband/uverbs0"),
        _sh("chmod 666 /dev/infiniband/uverbs0"),
        found_by=("rdma.uverbs-accessible",),
        user="tester",
        tool=WRITE_BW,
        cause="rdma-uverbs-permission-denied",
    ),
    Fault(
        "clock",
        "clock five minutes ahead",
        _sh("date -s '+5 minutes'"),
        _sh("date -s '-5 minutes'"),
        found_by=("time.spread",),
        follows=("time.synchronised",),
    ),
    Fault(
        "package-version",
        "libibverbs of another version on one node",
        _sh(_LIBRARY.format(act="mv libibverbs.so.1.14.44.0 libibverbs.so.1.14.39.0")),
        _sh(_LIBRARY.format(act="mv libibverbs.so.1.14.39.0 libibverbs.so.1.14.44.0")),
        found_by=("drift.rdma-core",),
    ),
    Fault(
        "shm",
        "/dev/shm of 1 MiB",
        _sh("mount -o remount,size=1M /dev/shm"),
        _sh("mount -o remount,size=2G /dev/shm"),
        found_by=("host.shm-large-enough",),
        follows=("host.shm-has-space",),
    ),
    Fault(
        "sshd-stopped",
        "sshd and its sessions end during the run",
        _sh("systemctl stop ssh; pkill -KILL sshd || true"),
        _sh("systemctl start ssh"),
        unreachable=True,
    ),
    Fault(
        "probe-stuck",
        "a probe's command hangs in state D",
        _sh(_STUCK),
        _sh(_UNSTUCK),
        unknown=("network.ports-open",),
    ),
    Fault(
        "probe-stopped",
        "a probe's command is stopped (state T)",
        _sh(_STOPPED),
        _sh("mv -f /usr/sbin/nft.real /usr/sbin/nft"),
        unknown=("network.ports-open",),
    ),
)
