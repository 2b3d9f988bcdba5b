"""NVIDIA drivers that DKMS has built, by kernel, from the names of its folders. Pure; used by `modules`.

Source: dkms(8): /var/lib/dkms/MODULE/VERSION/KERNEL/ARCH/module/NAME.ko, compressed or not. Ubuntu's own packages name
the module nvidia or nvidia-srv, NVIDIA's nvidia or nvidia-open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

BUILT = "/var/lib/dkms/nvidia*/*/*/*/module/nvidia.ko*"
KERNELS = "/boot/vmlinuz-*"


def built_drivers(paths: Iterable[str]) -> dict[str, frozenset[str]]:
    """Kernel release -> versions of the driver that DKMS has for it."""
    found: dict[str, set[str]] = {}
    for path in paths:
        words = path.split("/")
        if len(words) == 10 and words[3] == "dkms" and words[8] == "module":
            found.setdefault(words[6][:100], set()).add(words[5][:40])
    return {kernel: frozenset(versions) for kernel, versions in found.items()}


def _flavour(release: str) -> str:
    """ "6.8.0-90-generic" -> "generic"; "5.14.0-427.13.1.el9_4.x86_64" -> "": one line of kernels."""
    last = release.rpartition("-")[2]
    return last if last.isalpha() else ""


def _order(release: str) -> tuple[int, ...]:
    digits = "".join(letter if letter.isdigit() else " " for letter in release.partition(".el")[0])
    return tuple(int(word[:9]) for word in digits.split())


def newer_kernels(running: str, built: Mapping[str, object], installed: Iterable[str]) -> tuple[str, ...]:
    """Installed kernels of the running one's flavour that are newer than it and that DKMS has no driver for."""
    return tuple(
        sorted(
            (
                release
                for release in installed
                if _flavour(release) == _flavour(running)
                and _order(release) > _order(running)
                and release not in built
            ),
            key=_order,
        )
    )
