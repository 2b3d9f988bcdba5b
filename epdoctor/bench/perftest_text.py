"""What ib_write_bw and ib_write_lat print. Pure.

Source: perftest 4.5 and 24.10 src/perftest_parameters.h (RESULT_FMT, RESULT_FMT_G, RESULT_FMT_LAT); recorded output
in tests/records/raw/perftest.
"""

from __future__ import annotations

from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured


@dataclass(frozen=True)
class Bandwidth:
    bytes: int
    iterations: int
    average_gbps: float
    """Gbit/s, 10^9 bits."""


@dataclass(frozen=True)
class Latency:
    bytes: int
    iterations: int
    least_us: float
    typical_us: float
    """The median, half of a round trip."""


def _row(text: str, header: str) -> list[str]:
    """The cells below a header line that begins like this. Raises Unmeasured."""
    lines = text[:65536].splitlines()
    for at, line in enumerate(lines):
        if line.split()[:1] == ["#bytes"] and header in line:
            for row in lines[at + 1 : at + 3]:
                cells = row.split()[:16]
                if cells and cells[0].isdecimal():
                    return cells
    raise Unmeasured("perftest printed no result")


def _floats(cells: list[str], least: int) -> list[float]:
    try:
        found = [float(cell[:24]) for cell in cells]
    except ValueError:
        raise Unmeasured("perftest's result has a cell that is no number") from None
    if len(found) < least or any(not 0 <= one < 1e15 for one in found):
        raise Unmeasured("perftest's result makes no sense")
    return found


def parse_bandwidth(text: str) -> Bandwidth:
    """Output of a bandwidth test with --report_gbits. Raises Unmeasured."""
    cells = _floats(_row(text, "BW average[Gb/sec]"), 4)
    return Bandwidth(int(cells[0]), int(cells[1]), cells[3])


def parse_latency(text: str) -> Latency:
    """Output of a latency test. Raises Unmeasured."""
    cells = _floats(_row(text, "t_typical[usec]"), 5)
    return Latency(int(cells[0]), int(cells[1]), cells[2], cells[4])


def lacks_cuda(text: str) -> bool:
    """Whether the program was built without CUDA: it does not know the option."""
    return "unrecognized option '--use_cuda" in text[:8192]
