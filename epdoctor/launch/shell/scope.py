"""What a shell knows at one point: variables, functions, arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from epdoctor.launch.shell.text import Budget, Script, Text, Variable
from epdoctor.model import Location

RUNTIME = {
    "HOSTNAME": "hostname", "HOST": "hostname", "USER": "the user's name", "HOME": "the user's home",
    "PWD": "the working directory", "RANDOM": "a random number", "UID": "the user's number",
    "SLURM_JOB_ID": "Slurm's job number", "SLURM_JOBID": "Slurm's job number",
    "SLURM_JOB_NODELIST": "the job's nodes", "SLURM_NODELIST": "the job's nodes",
    "SLURMD_NODENAME": "the node's name", "SLURM_SUBMIT_DIR": "the folder of sbatch",
    "SLURM_LAUNCH_NODE_IPADDR": "address of the node that runs srun", "SLURM_TOPOLOGY_ADDR": "the node's place",
    "OLDPWD": "the working directory", "PPID": "a process number", "SECONDS": "a time", "LINENO": "a line",
    "BASH_SOURCE": "the script's path", "TMPDIR": "a folder of the node", "SLURM_TMPDIR": "a folder of the node",
}  # fmt: skip
"""Set by the shell, login or scheduler on every machine, with another value on each."""
MAX_STEPS = 25_000
MAX_DEPTH = 24


@dataclass
class Limits:
    """Steps that the whole read may still take."""

    steps: int = MAX_STEPS
    forced: dict[int, int] = field(default_factory=dict)
    """Branches to take: offset of the statement -> which of its ways."""
    differing: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Variables that a branch by node sets differently: name -> (offset of the statement, number of its ways)."""

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Budget


@dataclass
class Scope:
    variables: dict[str, Variable] = field(default_factory=dict)
    functions: dict[str, tuple[Script, Any]] = field(default_factory=dict)
    """Name -> the script it stands in and the body's node."""
    arguments: tuple[Text, ...] | None = None
    """$1, $2...; None: nobody says what the script is called with."""
    name: Text | None = None
    """$0"""
    export_all: bool = False
    local: dict[str, Variable | None] | None = None
    """What a function's `local` hides, to be put back at its end; None: not in a function."""
    depth: int = 0
    limits: Limits = field(default_factory=Limits)

    def copy(self) -> Scope:
        return replace(self, variables=dict(self.variables), functions=dict(self.functions))

    def inner(self) -> Scope:
        """For text that a shell of its own reads: exported variables only."""
        if self.depth >= MAX_DEPTH:
            raise Budget
        kept = {name: var for name, var in self.variables.items() if var.exported}
        return replace(
            self, variables=kept, functions=dict(self.functions), depth=self.depth + 1, export_all=False
        )

    def deeper(self) -> Scope:
        """The same shell, one call down."""
        if self.depth >= MAX_DEPTH:
            raise Budget
        return replace(self, depth=self.depth + 1)

    def get(self, name: str) -> Text | None:
        variable = self.variables.get(name)
        return None if variable is None else variable.scalar

    def set(self, name: str, value: Text, *, exported: bool | None = None, source: str = "export") -> None:
        """Assign a scalar; an exported variable stays exported."""
        before = self.variables.get(name)
        kept = before is not None and before.exported
        self.variables[name] = Variable(
            {**before.values, "0": value} if before is not None and before.array else {"0": value},
            before is not None and before.array,
            kept or self.export_all if exported is None else exported,
            before.source if before is not None and kept and source == "export" else source,
        )

    def set_array(self, name: str, values: dict[str, Text]) -> None:
        before = self.variables.get(name)
        self.variables[name] = Variable(values, True, before is not None and before.exported)

    def set_element(self, name: str, key: str, value: Text) -> None:
        before = self.variables.get(name)
        values = dict(before.values) if before is not None else {}
        values[key] = value
        self.variables[name] = Variable(values, True, before is not None and before.exported)

    def export(self, name: str, *, exported: bool = True) -> None:
        before = self.variables.get(name)
        if before is not None:
            self.variables[name] = replace(before, exported=exported)

    def hide(self, name: str) -> None:
        """`local NAME`"""
        if self.local is not None and name.isidentifier():
            self.local.setdefault(name, self.variables.get(name))

    def unhide(self) -> None:
        """The end of a function."""
        for name, before in (self.local or {}).items():
            if before is None:
                self.variables.pop(name, None)
            else:
                self.variables[name] = before

    def unset(self, name: str) -> None:
        self.variables.pop(name, None)

    def environment(self) -> dict[str, tuple[Text, str]]:
        """What a child process gets: name -> (value, source)."""
        return {
            name: (var.scalar, var.source)
            for name, var in self.variables.items()
            if var.exported and var.scalar is not None
        }

    def merge(self, branches: list[Scope], location: Location) -> list[str]:
        """Take over what all possible branches agree on; where they differ, the value is not known.

        Gives the names on which they differ."""
        different: list[str] = []
        names = {name for branch in branches for name in branch.variables}
        for name in names:
            states = [branch.variables.get(name) for branch in branches]
            defined = [state for state in states if state is not None]
            first = defined[0]
            same = all(state is first or _same(state, first) for state in defined)
            if same:
                # Set on one way only reads as a default: `[ -z "$X" ] && X=1`.
                self.variables[name] = first
            else:
                different.append(name)
                text = Text(f"${{{name}}}", ((0, location),), (name,))
                self.variables[name] = Variable({"0": text}, False, any(s.exported for s in defined))
        for branch in branches:
            self.functions.update(branch.functions)
        return different


def _same(one: Variable, other: Variable) -> bool:
    return one.exported == other.exported and {k: v.text for k, v in one.values.items()} == {
        k: v.text for k, v in other.values.items()
    }


def environment_scope(env: Mapping[str, tuple[Text, str]], limits: Limits) -> Scope:
    """A fresh shell that was started with these variables."""
    scope = Scope(limits=limits)
    for name, (text, source) in env.items():
        scope.set(name, text, exported=True, source=source)
    return scope
