"""Messages of shells, compilers and linkers in another language: read as English, shown as printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.explain.answer import explain_text
from epdoctor.explain.languages import _SAID, in_english

KNOWN = [
    (
        """/usr/bin/ld: kann -lcuda nicht finden: Datei oder Verzeichnis nicht gefunden
collect2: Fehler: ld gab 1 als Ende-Status zurück""",
        "libcuda-stub-missing-at-link",
    ),
    (
        """ibgda.cpp:41:10: erreur fatale\u00a0: infiniband/mlx5dv.h\u00a0: Aucun fichier ou dossier de ce type
compilation terminée.""",
        "rdma-dev-headers-missing",
    ),
    ("bash: nvcc: Kommando nicht gefunden.", "nvcc-not-found"),
    (
        "OSError: libcudart.so.13: no se puede abrir el fichero del objeto compartido: No existe el fichero o el directorio",
        "cuda-variant-wheel-mismatch",
    ),
    ("/usr/bin/ld: 找不到 -lcuda: 没有那个文件或目录", "libcuda-stub-missing-at-link"),
]


@pytest.mark.parametrize(("text", "cause"), KNOWN, ids=[cause + str(n) for n, (_, cause) in enumerate(KNOWN)])
def test_is_read_as_english_and_shown_as_printed(text: str, cause: str) -> None:
    assert "\n" not in text or in_english(text).count("\n") == text.count("\n")
    answer = explain_text(text.encode())
    assert answer.results[0].cause.id == cause
    for item in answer.results[0].evidence:
        assert item.text in text


@pytest.mark.parametrize("english", _SAID)
def test_each_message_becomes_its_english(english: str) -> None:
    for said in _SAID[english]:
        assert in_english(f"ls: {said}") == f"ls: {english}"


def test_a_text_in_plain_words_stays_as_it_is() -> None:
    text = "Bei uns läuft nichts mehr: keine Ahnung, ob es die Rechte sind. Impossible de dire pourquoi."
    assert in_english(text) == text


@given(st.text(max_size=400), st.sampled_from([said for many in _SAID.values() for said in many]))
def test_no_text_loses_a_line(text: str, said: str) -> None:
    mixed = f"{text}\n{said} kann {text} nicht finden"
    assert in_english(mixed).count("\n") == mixed.count("\n")
