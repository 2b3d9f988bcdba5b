"""Shell text as a launch: parsed by tree-sitter's bash grammar, followed like bash would, never executed.

    syntax (tree, trouble) -> interpret (statements) -> words (expansion) -> commands, each with its environment

Only what decides a command line is followed: assignments, arrays, arithmetic, branches whose condition is known,
loops over known words, functions, `source`, here-documents. What depends on the machine stays unresolved.
"""
