"""Run several readers in one Python on the node and print what each found.

Sent as an argument to the node's Python (3.6 or newer, standard library only); stdin is one JSON object, a reader's
name to [its source, its arguments]. Prints one JSON object, a reader's name to what it printed. Changes nothing.
One connection and one interpreter cost a node less than three. A reader that fails is left out and tried again
by its own role, which says what is wrong; only the node's own must not fail.
"""

import contextlib
import io
import json
import sys


def answer(name, source, arguments):
    said = io.StringIO()
    sys.argv = [name] + arguments
    with contextlib.redirect_stdout(said):
        exec(compile(source, name, "exec"), {"__name__": "__main__"})
    return json.loads(said.getvalue())


def main():
    answers = {}
    for name, (source, arguments) in json.load(sys.stdin).items():
        try:
            answers[name] = answer(name, source, arguments)
        except Exception:
            if name == "node":
                raise
    json.dump(answers, sys.stdout)


main()
