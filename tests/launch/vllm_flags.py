"""Writes checks/compat/vllm_flags.yaml from vLLM's source, without importing vLLM.

    python -m tests.launch.vllm_flags 0.33.0=/path/to/vllm-0.33.0 0.20.0=/path/to/vllm-0.20.0 > checks/compat/vllm_flags.yaml

Each folder is an unpacked sdist. Read are `add_argument` calls of vllm/engine/arg_utils.py, the fields of the
config classes that they name (vllm/config/*.py), and the front end's own arguments. How an annotation becomes an
argparse action follows _compute_kwargs in arg_utils.py: bool is a pair of switches, Literal a choice, a list takes
several words, a dict or a config class is JSON.
"""

from __future__ import annotations

import ast
import datetime
import re
import sys
from pathlib import Path
from typing import Any

FRONT_ENDS = (
    "vllm/entrypoints/common/cli_args.py",
    "vllm/entrypoints/openai/cli_args.py",
    "vllm/entrypoints/cli/serve.py",
)


def _classes(root: Path) -> dict[str, ast.ClassDef]:
    found: dict[str, ast.ClassDef] = {}
    for path in sorted((root / "vllm" / "config").glob("**/*.py")) + [root / name for name in FRONT_ENDS]:
        if path.is_file():
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, node)
    return found


def _aliases(root: Path) -> dict[str, str]:
    """Names of Literal and other types: ALL2ALL = Literal[...]."""
    found: dict[str, str] = {}
    for path in (
        sorted((root / "vllm").glob("config/**/*.py"))
        + [root / name for name in FRONT_ENDS]
        + [
            root / "vllm/engine/arg_utils.py",
            *sorted((root / "vllm").glob("model_executor/layers/quantization/__init__.py")),
            *sorted((root / "vllm").glob("v1/attention/backends/registry.py")),
        ]
    ):
        if not path.is_file():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            target: ast.expr | None = None
            value: ast.expr | None = None
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target, value = node.targets[0], node.value
            elif isinstance(node, ast.AnnAssign):
                target, value = node.target, node.value
            if isinstance(target, ast.Name) and value is not None and target.id[:1].isupper():
                found.setdefault(target.id, ast.unparse(value))
    return found


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, str]:
    node = classes.get(name)
    if node is None:
        return {}
    found: dict[str, str] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            found.update(_fields(base.id, classes))
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found[item.target.id] = ast.unparse(item.annotation)
    return found


def _kind(
    annotation: str, aliases: dict[str, str], classes: dict[str, ast.ClassDef]
) -> tuple[str, list[str]]:
    for _ in range(6):
        before = annotation
        annotation = re.sub(
            r"\b[A-Z][A-Za-z0-9_]*\b",
            lambda m: (
                aliases[m[0]]
                if re.match(r"Literal|Union|Optional|str|list|\(", aliases.get(m[0], ""))
                else m[0]
            ),
            annotation,
        )
        if annotation == before:
            break
    annotation = re.sub(r"SkipValidation\[(.*)\]", r"\1", annotation)
    types = _members(ast.parse(annotation, mode="eval").body)
    if "MultiModalDummyOptions" in types or any(
        name in classes and name.endswith("Config") and name != "PretrainedConfig" for name in types
    ):
        return "json", []
    types -= {"None", "Any"}
    if types == {"bool", "str"}:
        return "optional", []
    if "bool" in types:
        return "switch", []
    if "Literal" in types and not {"list", "tuple", "set"} & types:
        inner = ast.parse(annotation, mode="eval").body
        choices = [
            str(node.value)
            for node in ast.walk(inner)
            if isinstance(node, ast.Constant) and node.value is not None
        ]
        return ("choice", choices) if "str" not in types else ("str", [])
    if {"list", "tuple", "set"} & types:
        return "list", []
    for kind in ("int", "float"):
        if kind in types:
            return kind, []
    return ("json" if {"dict", "Mapping"} & types else "str"), []


def _members(node: ast.expr) -> set[str]:
    """Names of a union's members, without what they hold."""
    if isinstance(node, ast.BinOp):
        return _members(node.left) | _members(node.right)
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value).rpartition(".")[2]
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name in ("Optional", "Union"):
            return set().union(*(_members(item) for item in inner))
        if name in ("Annotated", "SkipValidation"):
            return _members(inner[0])
        return {name.lower() if name in ("List", "Dict", "Tuple", "Set") else name}
    if isinstance(node, ast.Constant):
        return {"None"} if node.value is None else _members(ast.parse(str(node.value), mode="eval").body)
    return {ast.unparse(node).rpartition(".")[2]}


def _explicit(call: ast.Call) -> tuple[str, list[str], bool]:
    """Kind of an add_argument that is written out."""
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
    action = keywords.get("action", "")
    if "store_true" in action or "store_false" in action:
        return "switch", [], False
    if "BooleanOptionalAction" in action:
        return "switch", [], True
    if "choices" in keywords:
        choices = re.findall(r"'([^']*)'", keywords["choices"])
        if choices:
            return "choice", choices, False
    if keywords.get("nargs", "") in ("'+'", "'*'"):
        return "list", [], False
    if keywords.get("nargs", "") == "'?'":
        return "optional", [], False
    kind = keywords.get("type", "str")
    return ("json" if "json" in kind else kind if kind in ("int", "float") else "str"), [], False


def _calls(path: Path) -> list[tuple[ast.Call, dict[str, str]]]:
    """add_argument calls, with which variable holds which class's fields."""
    tree = ast.parse(path.read_text())
    found: list[tuple[ast.Call, dict[str, str]]] = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or not (
            "cli_args" in function.name or "parser" in function.name
        ):
            continue
        kwargs: dict[str, str] = {}
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and isinstance(node.value, ast.Call)
                and ast.unparse(node.value.func).endswith("get_kwargs")
                and node.value.args
            ):
                kwargs[node.targets[0].id] = ast.unparse(node.value.args[0])
        found += [
            (node, kwargs)
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "add_argument"
        ]
    return found


def flags(root: Path) -> dict[str, dict[str, Any]]:
    """Every flag of `vllm serve` in one release's source."""
    classes, aliases = _classes(root), _aliases(root)
    found: dict[str, dict[str, Any]] = {}

    def put(names: list[str], kind: str, choices: list[str], paired: bool) -> None:
        longs = [name[2:].replace("_", "-") for name in names if name.startswith("--")]
        shorts = [name for name in names if not name.startswith("--")]
        for position, long in enumerate(longs):
            entry: dict[str, Any] = {"kind": kind}
            if shorts and not position:
                entry["shorts"] = shorts
            if choices:
                entry["choices"] = choices
            if paired:
                entry["paired"] = True
            found.setdefault(long, entry)

    for path in [root / "vllm/engine/arg_utils.py", *(root / name for name in FRONT_ENDS)]:
        if not path.is_file():
            continue
        for call, kwargs in _calls(path):
            names = [str(arg.value) for arg in call.args if isinstance(arg, ast.Constant)]
            if not any(name.startswith("--") for name in names):
                continue
            spread = next((keyword.value for keyword in call.keywords if keyword.arg is None), None)
            inner = (
                re.search(r"(\w+)\[['\"](\w+)['\"]\]", ast.unparse(spread)) if spread is not None else None
            )
            annotation = _fields(kwargs.get(inner[1], ""), classes).get(inner[2]) if inner else None
            if annotation is not None:
                kind, choices = _kind(annotation, aliases, classes)
                put(names, kind, choices, kind == "switch")
            else:
                put(names, *_explicit(call))
    put(["--help", "-h"], "optional", [], False)
    for front in ("BaseFrontendArgs", "FrontendArgs"):
        for field, annotation in _fields(front, classes).items():
            kind, choices = _kind(annotation, aliases, classes)
            if field in ("allowed_origins", "allowed_methods", "allowed_headers"):
                kind = "json"
            elif field in ("middleware", "disable_access_log_for_endpoints"):
                kind = "str"
            elif field == "lora_modules":
                kind = "list"
            put([f"--{field}"], kind, choices, kind == "switch")
    return found


def main(arguments: list[str]) -> None:
    releases = [argument.partition("=") for argument in arguments]
    releases.sort(key=lambda item: tuple(int(part) for part in item[0].split(".")))
    tables = [(version, flags(Path(folder))) for version, _, folder in releases]
    versions = [version for version, _ in tables]
    out = [
        "# Written by `python -m tests.launch.vllm_flags VERSION=SOURCE...`; not by hand.",
        "# kind: switch | int | float | str | json | choice | list (takes words up to the next option) | optional",
        "# paired: also --no-NAME. first, last: oldest and newest of `versions` that has it (left out: all, newest).",
        f"as_of: {datetime.datetime.now(datetime.timezone.utc).date()}",
        f"source: vLLM sdists {', '.join(versions)}, vllm/engine/arg_utils.py, vllm/config/, vllm/entrypoints/*/cli_args.py, cli/serve.py",
        f"versions: [{', '.join(repr(version) for version in versions)}]",
        "flags:",
    ]
    for name in sorted({name for _, table in tables for name in table}):
        having = [version for version, table in tables if name in table]
        entry = next(table[name] for _, table in reversed(tables) if name in table)
        parts = [f"kind: {entry['kind']}"]
        if "shorts" in entry:
            parts.append("shorts: [" + ", ".join(f'"{short}"' for short in entry["shorts"]) + "]")
        if "choices" in entry:
            parts.append("choices: [" + ", ".join(f'"{choice}"' for choice in entry["choices"]) + "]")
        if entry.get("paired"):
            parts.append("paired: true")
        if having[0] != versions[0]:
            parts.append(f'first: "{having[0]}"')
        if having[-1] != versions[-1]:
            parts.append(f'last: "{having[-1]}"')
        out.append(f"  {name}: {{{', '.join(parts)}}}")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
