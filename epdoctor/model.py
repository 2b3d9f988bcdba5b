"""The nouns that every part shares: checks, problems, findings, and what a run is judged for.

Status, severity and action are separate fields (docs/design.md section 3). Nothing here touches a machine.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Status(str, enum.Enum):
    """What judging a check on a node came to."""

    PASS = "pass"  # noqa: S105 - a status, not a password
    FAIL = "fail"
    SKIP = "skip"
    """Does not apply; `reason` names the absent need."""
    UNKNOWN = "unknown"
    """A needed fact was not measured; `reason` says why. Never green."""
    ERROR = "error"
    """Our own bug; `traceback` is in the JSON."""


class Severity(str, enum.Enum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        return ("info", "warning", "error").index(self.value)


class Action(str, enum.Enum):
    """What a fix does to the node or the launch; a closed list."""

    NONE = "none"
    CHANGE_LAUNCH = "change-launch"
    CHANGE_ENV = "change-env"
    LOAD_MODULE = "load-module"
    RESTART_SERVICE = "restart-service"
    INSTALL = "install"
    REBOOT = "reboot"
    FABRIC_ADMIN = "fabric-admin"
    REPLACE_HARDWARE = "replace-hardware"


class Disruption(str, enum.Enum):
    NONE = "none"
    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """Where in a file the user wrote it: a script, a manifest, an environment file."""

    path: str
    """As the user named the file; "--" for a command on our own command line."""
    line: int
    """From 1; 0: the file as a whole."""
    column: int = 0
    """From 1; 0: not known."""

    def __str__(self) -> str:
        parts = [self.path] + [str(n) for n in (self.line, self.column) if n]
        return ":".join(parts)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that a rule found wrong. Rules yield these; no problem means pass."""

    found: str
    """What is there, with its source: "8 MiB in containerd.service (LimitMEMLOCK)"."""
    expected: str
    evidence: tuple[str, ...] = ()
    """Raw lines or path=value pairs that prove it (shown with -v)."""
    severity: Severity | None = None
    """Overrides the check's severity for this problem, e.g. info where the kernel does not count the limit."""
    now: tuple[str, ...] = ()
    """Commands for tonight with this node's own names in them; overrides the check's `fix.now`."""
    permanent: tuple[str, ...] = ()
    """Likewise for `fix.permanent`: where what the node has already must be kept."""
    subject: str = ""
    """What it is about: "mlx5_3", "GPU 2", "containerd.service"."""
    odd_nodes: tuple[str, ...] = ()
    """Cluster rules only: the nodes that are wrong."""
    location: Location | None = None
    """Launch rules only: the line to change."""


@dataclass(frozen=True, slots=True)
class Waiver:
    """A finding that somebody knows of and accepts for a time; an entry of the waiver file (epdoctor/waivers.py)."""

    check: str
    """Id of a check, or a prefix of ids ("rdma")."""
    reason: str
    nodes: str = ""
    """Node patterns as in the file ("gpu03,gpu[05-07]"); empty: every node."""
    expires: str = ""
    """Last day on which it counts, YYYY-MM-DD; empty: for ever."""
    owner: str = ""
    location: Location | None = None
    expired: bool = False
    """On the day of the run."""


@dataclass(frozen=True)
class Fix:
    now: tuple[str, ...] = ()
    permanent: tuple[str, ...] = ()
    workaround: str = ""
    """What serves tonight without the fix, e.g. another --all2all-backend."""
    playbook: str = ""
    tags: tuple[str, ...] = ()
    action: Action = Action.NONE
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True)
class Check:
    """One check file. Field reference: checks/README.md."""

    id: str
    title: str
    severity: Mapping[str, Severity]
    """By back end; the key "default" is for all others and for runs without --backend."""
    scope: str
    """node | cluster | launch"""
    rule: str
    params: Mapping[str, Any]
    why: str
    by_hand: str
    fix: Fix
    needs: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    """Back ends it applies to; empty: all."""
    multinode: bool | None = None
    """True: only across nodes; False: only on a single node; None: both."""
    causes: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    since: str = "0.1"

    @property
    def category(self) -> str:
        """First part of the id: "gpu", "rdma", ..."""
        return self.id.partition(".")[0]

    def severity_for(self, backend: str) -> Severity:
        return self.severity.get(backend, self.severity["default"])


@dataclass(frozen=True)
class Goal:
    """What the run is judged for."""

    backend: str = ""
    """Canonical name of vLLM's all2all back end; empty: judge for all and say which are ready."""
    requested_backend: str = ""
    """As the user typed it (an alias or a removed one)."""
    multinode: bool = False
    multinode_reason: str = ""
    """How it was decided: "--multinode", "16 nodes", "RDMA HCAs found"."""
    vllm_version: str = ""
    max_num_batched_tokens: int | None = None
    """Token limit from the command line or the launch; None: vLLM's default for the back end."""
    token_limit_source: str = ""
    compute_hcas: str = ""
    """Site's choice ([rdma] compute_hcas in epdoctor.toml), NCCL_IB_HCA syntax; empty: from facts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A check judged on one node (scope node) or on the fleet (scope cluster)."""

    check: str
    status: Status
    severity: Severity
    """For the run's back end, or the default one. For status fail: the worst of its problems."""
    node: str = ""
    """Empty for cluster checks."""
    problems: tuple[Problem, ...] = ()
    reason: str = ""
    """Why skip or unknown."""
    needs_root: bool = False
    """Unknown only because the agent was not root."""
    traceback: str = ""
    blocks: tuple[str, ...] = ()
    """Back ends for which this status is of severity error."""
    waived: str = ""
    """Reason of the waiver; empty: not waived."""
    seconds: float = 0.0
    waiver: Waiver | None = None
    """The waiver that fits; where it has expired, `waived` is empty and the finding counts."""


@dataclass(frozen=True, slots=True)
class NodeOutcome:
    """How a node was reached; `error` is empty when it was."""

    node: str
    error: str = ""
    """One clean sentence: "connection refused (10.0.0.3:22)"."""
    kind: str = ""
    """unreachable | refused | auth | host-key | no-python | sudo | garbage | timeout | interrupted | ..."""
    hint: str = ""
    """Command that shows it by hand."""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    slowest_probe: str = ""
    slowest_probe_s: float = 0.0


@dataclass
class Report:
    """One run's result; every output format is written from this one model."""

    goal: Goal
    outcomes: list[NodeOutcome]
    findings: list[Finding]
    checks: dict[str, Check]
    seconds: float = 0.0
    source: str = ""
    """"inventory.ini", "this machine", "recording demo.tar.gz"."""
    interrupted: bool = False
    warnings: list[str] = field(default_factory=list)
    readiness: list[Readiness] = field(default_factory=list)
    fail_on: Severity = Severity.ERROR
    collected_at: str = ""
    catalogue_date: str = ""
    vllm_versions: dict[str, list[str]] = field(default_factory=dict)
    hca_sets: dict[str, list[str]] = field(default_factory=dict)
    """How each node's compute HCAs were chosen -> nodes."""
    selected: bool = False
    """--select or --ignore: the checks are a part of the catalogue, so nothing is said about readiness."""
    expired_waivers: list[Waiver] = field(default_factory=list)
    """Of the waiver file, whether or not they fit a finding."""
    fail_on_expired_waiver: bool = False
    tool_version: str = ""
    """Of the epdoctor that judged; empty: this one."""
    topologies: list[SharedTopology] = field(default_factory=list)
    """How the nodes hang together, equal ones as one. Only where a form that draws it was asked for."""


@dataclass(frozen=True, slots=True)
class SharedTopology:
    """The topology that some nodes have in common."""

    nodes: tuple[str, ...]
    shape: Mapping[str, Any]
    """JSON values; epdoctor/node_shape.py makes them, report_schema.json tells them."""


@dataclass(frozen=True)
class Readiness:
    """One back end over the judged nodes."""

    backend: str
    ready: tuple[str, ...]
    not_ready: tuple[str, ...]
    unknown: tuple[str, ...]
    because: tuple[str, ...] = ()
    """Ids of the checks that stop it, most nodes first."""
    waived: tuple[str, ...] = ()
    """Ids of the checks that would stop it, or leave it unknown, were they not waived."""
