"""Processes that hold a GPU's device node: one "pid name" a line. Standard library only, changes nothing."""

import glob
import os

for folder in sorted(glob.glob("/proc/[0-9]*")):
    try:
        links = [os.readlink(path) for path in glob.glob(folder + "/fd/*")]
        name = open(folder + "/comm").read().strip()
    except OSError:
        continue
    # nvidiactl alone is also held by monitoring; a numbered device or uvm is held by what computes.
    if any(
        link.startswith("/dev/nvidia") and (link[11:].isdigit() or link == "/dev/nvidia-uvm")
        for link in links
    ):
        if name not in ("nvidia-persiste", "nv-fabricmanage", "dcgm-exporter", "nv-hostengine"):
            print(os.path.basename(folder), name)
