"""What one call of the readers gathers, and what a command inherits from where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from epdoctor.launch.model import Pod, Resource, Server
from epdoctor.launch.shell.scope import Limits
from epdoctor.launch.shell.text import Script, Text
from epdoctor.model import Location, Problem, Severity

MAX_SERVERS = 2048
MAX_TROUBLE = 200


@dataclass
class Reading:
    """Servers and trouble, in the order in which they were met."""

    vllm_version: str = ""
    servers: list[Server] = field(default_factory=list)
    resources: list[Resource] = field(default_factory=list)
    trouble: list[Problem] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    written: dict[str, Text] = field(default_factory=dict)
    """Files that a script writes with a here-document: path -> text."""
    used: set[str] = field(default_factory=set)
    """Paths that another file starts, sources or writes: not read once more by themselves."""
    stopped: int = 0
    """How often a script waited for or killed what it had started: what comes after is not beside it."""
    limits: Limits = field(default_factory=Limits)
    at: tuple[Script, int] | None = None
    """The statement that is followed now: where reading stops when it comes to its limits."""

    def report(
        self,
        found: str,
        expected: str,
        location: Location,
        *,
        severity: Severity | None = None,
        line: str = "",
    ) -> None:
        problem = Problem(
            found, expected, (line.strip()[:200],) if line else (), severity=severity, location=location
        )
        if len(self.trouble) < MAX_TROUBLE and problem not in self.trouble:
            self.trouble.append(problem)

    def add(self, server: Server) -> None:
        if len(self.servers) < MAX_SERVERS:
            self.servers.append(server)
        elif len(self.servers) == MAX_SERVERS:
            self.report(f"more than {MAX_SERVERS} servers", "fewer", server.location)


@dataclass(frozen=True)
class Setting:
    """Where a command stands."""

    kind: str
    name: str
    """For people; of the file or object."""
    node: str = ""
    machine: str = ""
    """Of what one shell starts side by side."""
    index: int | None = None
    group: str = ""
    pod: Pod | None = None
    vllm_version: str = ""
    visible_gpus: int | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)
    """Slurm: what #SBATCH asks for, by long option name."""
    folder: str = ""
    """Where files that it names are looked for."""
    in_image: bool = False
    """Inside a container image: files that it names are not on this machine."""
