"""Only what a script uses of a module travels, and it works as before."""

from __future__ import annotations

import ast
from pathlib import Path

import pynvml

from epdoctor.collect.prune import names_used, prune

SCRIPT = (Path(__file__).parent.parent / "epdoctor" / "probes" / "nvml.py").read_text()


def test_names_through_an_alias_and_hasattr() -> None:
    script = "import thing as t\nt.a()\nif hasattr(t, 'b'): pass\nother.c\n"
    assert names_used(script, "thing") == {"a", "b"}


def test_what_is_reached_stays_and_the_rest_goes() -> None:
    source = (
        "import os\nA = 1\nB = A\nC = 3\ndef f():\n    'doc'\n    return B\ndef g():\n    return C\nprint\n"
    )
    kept = prune(source, {"f"})
    assert "A = 1" in kept
    assert "import os" in kept
    assert "doc" not in kept
    assert "C = 3" not in kept
    assert "def g" not in kept


def test_pruned_pynvml_has_every_name_that_the_script_wants() -> None:
    source = Path(pynvml.__file__).read_text()
    wanted = names_used(SCRIPT, "pynvml")
    pruned = prune(source, wanted)
    assert len(pruned) < len(source) / 5
    ast.parse(pruned, feature_version=(3, 6))
    space: dict[str, object] = {"__name__": "pynvml"}
    exec(compile(pruned, "pynvml", "exec"), space)
    optional = {"nvmlDeviceGetCurrentClocksEventReasons"}
    missing = {name for name in wanted if name not in space} - optional
    assert not missing
    error = space["NVMLError"]
    assert isinstance(error, type)
    assert issubclass(error, Exception)
