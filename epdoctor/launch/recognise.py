"""What kind of launch a text is, by its content."""

from __future__ import annotations

import re

from epdoctor.launch.env_files import is_env

HEAD = 400_000
"""Characters that are looked at."""
_MANIFEST = re.compile(r"(?m)^[ ]{0,4}[\"']?apiVersion[\"']?[ ]*:")
_KIND = re.compile(r"(?m)^[ ]{0,4}[\"']?kind[\"']?[ ]*:")
_COMPOSE = re.compile(r"(?m)^[\"']?services[\"']?[ ]*:")
_UNIT = re.compile(r"(?m)^\[Service\][ \t\r]*$")
_STARTS = re.compile(
    r"vllm[\w./-]{0,40}[\"']?[\s,]{1,8}[\"'-]{0,4}\s{0,4}serve\b|vllm\.entrypoints|vllm-openai|dynamo\.vllm"
)
_SHEBANG = re.compile(r"#![ \t]*\S*(bash|sh|zsh|dash)\b|#![ \t]*/usr/bin/env[ \t]+(-S[ \t]+)?(ba|z|da)?sh\b")
_CONFIG = re.compile(
    r"(?m)^(?:tensor|data|pipeline)[-_]parallel[-_][a-z_-]{4,30}[ ]*:|^enable[-_]expert[-_]parallel[ ]*:"
)
SUFFIXES = (
    ".sh",
    ".bash",
    ".sbatch",
    ".slurm",
    ".yaml",
    ".yml",
    ".json",
    ".service",
    ".env",
    ".conf",
    ".txt",
    "",
)
"""Of files that a folder is searched for."""


def kind_of(text: str, name: str = "") -> str:
    """manifest | compose | systemd | sbatch | env | config | shell | "" (nothing that can be told)

    A file's name only says that YAML and JSON are no shell."""
    head = text[:HEAD]
    if _SHEBANG.match(head):
        return "sbatch" if "\n#SBATCH" in head else "shell"
    if _UNIT.search(head):
        return "systemd"
    manifest = _MANIFEST.search(head)
    if manifest is not None and _KIND.search(head) and not _command_before(head, manifest.start()):
        return "manifest"
    compose = _COMPOSE.search(head)
    if compose is not None and not _command_before(head, compose.start()):
        return "compose"
    if head.lstrip()[:1] == "{" and '"apiVersion"' in head and '"kind"' in head:
        return "manifest"
    if "\n#SBATCH" in "\n" + head:
        return "sbatch"
    if _CONFIG.search(head) and not _STARTS.search(head):
        return "config"
    if is_env(head):
        return "env"
    if name.lower().endswith((".yaml", ".yml", ".json")):
        return "manifest" if _STARTS.search(text) else ""
    return "shell" if _STARTS.search(head) or re.search(r"\bserve\b.{0,200}?--", head) else ""


def _command_before(head: str, offset: int) -> bool:
    """A shell script that holds a manifest in a here-document."""
    return "<<" in head[max(0, offset - 20_000) : offset] and "\n" in head[:offset]
