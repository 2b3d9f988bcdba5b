"""Helm's and Jinja's templates in shell: found, never filled in; what stands around them is read in its place."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from epdoctor.launch.shell.text import placeholder
from epdoctor.launch.templates import as_written, fill_shell, in_command
from tests.launch.files import read

JINJA = """
#!/bin/bash
{% if head %}
export X=1
{% endif %}
vllm serve {{ model }} --data-parallel-size {{ dp }} --port={{port}} --enable-expert-parallel \\
  --tensor-parallel-size {{ tp | default(8) }} --enable-dbo
docker ps --format '{{.Names}}'
"""


def test_a_template_of_a_script(tmp_path: Path) -> None:
    found = read(tmp_path, JINJA, name="serve.sh.j2")
    (server,) = found.servers
    options = server.options
    assert list(options) == [
        "data-parallel-size", "port", "enable-expert-parallel", "tensor-parallel-size", "enable-dbo",
    ]  # fmt: skip
    assert [as_written(options[name].value.text) for name in ("data-parallel-size", "port")] == [
        "{{ dp }}",
        "{{ port }}",
    ]
    assert options["tensor-parallel-size"].value.unresolved
    assert options["enable-dbo"].location.line == 6
    (note,) = found.trouble
    assert note.found == "a template that is not filled in: {{ model }} and 4 more"


HELM = """
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - name: vllm
    image: vllm/vllm-openai:v0.33.0
    command: [/bin/sh, -c]
    args:
    - |
      vllm serve {{ .Values.model }} \\
        {{- if .Values.tp }}--tensor-parallel-size {{ .Values.tp }}{{ end }} \\
        --enable-expert-paralel
"""


def test_a_template_is_no_here_document_for_the_shell_inside(tmp_path: Path) -> None:
    found = read(tmp_path, HELM, name="chart.yaml")
    (server,) = found.servers
    assert server.model is not None
    assert as_written(server.model.text) == "{{ Values.model }}"
    assert server.options["tensor-parallel-size"].value.unresolved
    assert server.options["enable-expert-paralel"].location.line == 13
    assert [note.found for note in found.trouble] == [
        "a template that is not filled in: {{ .Values.model }} and 3 more"
    ]


def test_another_programs_format_is_no_template(tmp_path: Path) -> None:
    found = read(tmp_path, "docker ps --format '{{.Names}}'\nvllm serve m\n")
    assert (len(found.servers), found.trouble) == (1, ())


@given(st.text(alphabet="ab_ {}%<>|.-\n\\", max_size=200))
def test_places_stay_where_they_are(text: str) -> None:
    filled = fill_shell(text)
    assert len(filled) == len(text)
    assert [n for n, c in enumerate(filled) if c == "\n"] == [n for n, c in enumerate(text) if c == "\n"]
    in_command(text)
    as_written(text)


@given(st.text(alphabet="ab_. |-x$\"'", min_size=0, max_size=80))
def test_a_placeholder_has_the_length_of_its_template(inner: str) -> None:
    assert len(placeholder("{{" + inner + "}}")) == len(inner) + 4
