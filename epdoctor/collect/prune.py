"""Send only what a script uses of a Python module.

pynvml is one file of 330 kB with some 900 functions and ctypes structures; compiling and running it whole takes
80 ms of a node's CPU, half of what the rest of the agent takes. What a script names, and what that names in
turn, is a tenth of it.
"""

from __future__ import annotations

import ast


def names_used(script: str, module: str) -> set[str]:
    """Attributes of `module` that a script reads: `import pynvml as nv` and `nv.nvmlInit()` gives nvmlInit."""
    tree = ast.parse(script)
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == module
    }
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
    } | {
        # hasattr(nv, "name"), getattr(nv, "name")
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and len(node.args) >= 2
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id in aliases
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    }


def _reads(node: ast.AST) -> set[str]:
    return {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}


def prune(source: str, wanted: set[str]) -> str:
    """The module without top-level functions, classes and assignments that nothing wanted reaches.

    Statements of other kinds (imports, if, try, calls) stay, and so does what they name: they may have effects.
    """
    tree = ast.parse(source)
    defined: dict[str, list[ast.stmt]] = {}
    always: list[ast.stmt] = []
    for statement in tree.body:
        names = _defines(statement)
        if not names:
            always.append(statement)
        for name in names:
            defined.setdefault(name, []).append(statement)
    keep: set[int] = set()
    queue = set(wanted)
    for statement in always:
        keep.add(id(statement))
        queue |= _reads(statement)
    seen: set[str] = set()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        for statement in defined.get(name, ()):
            if id(statement) not in keep:
                keep.add(id(statement))
                queue |= _reads(statement) - seen
    kept = [statement for statement in tree.body if id(statement) in keep]
    for statement in kept:
        _drop_docstring(statement)
    return ast.unparse(ast.Module(body=kept, type_ignores=[])) + "\n"


def _defines(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.Assign) and all(
        isinstance(target, ast.Name) for target in statement.targets
    ):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return []


def _drop_docstring(statement: ast.stmt) -> None:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and len(statement.body) > 1:
        first = statement.body[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            del statement.body[0]
