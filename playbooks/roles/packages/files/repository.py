"""Check a folder of packages against its SHA256SUMS and make it a repository that apt or dnf can read.

Sent on stdin to the node's Python (3.6 or newer, standard library only); argv[1] is the folder, argv[2] the
package manager. A file with a wrong sum is removed, so that the next run copies it anew.
"""

import glob
import hashlib
import os
import subprocess
import sys


def sums(path):
    found = {}
    with open(path) as file:
        for line in file:
            words = line.split(None, 1)
            if len(words) == 2:
                found[os.path.basename(words[1].strip().lstrip("*"))] = words[0].lower()
    return found


def digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def check(folder, names):
    try:
        wanted = sums(os.path.join(folder, "SHA256SUMS"))
    except OSError:
        raise SystemExit("there is no SHA256SUMS. Make it with: sha256sum * > SHA256SUMS") from None
    kept = []
    for path in names:
        name = os.path.basename(path)
        if name not in wanted:
            os.unlink(path)  # of an earlier run with another folder; the folder itself was compared before
            continue
        if digest(path) != wanted[name]:
            os.unlink(path)
            raise SystemExit("%s has a wrong checksum (SHA256SUMS says %s...)" % (name, wanted[name][:12]))
        kept.append(path)
    return kept


def index_debs(folder, names):
    """The Packages file of a flat repository (sources.list(5), deb-control(5))."""
    out = []
    for path in names:
        argv = ["dpkg-deb", "-f", path]
        fields = subprocess.check_output(argv).decode("utf-8", "replace").strip()
        out.append("%s\nFilename: ./%s\nSize: %d\nSHA256: %s\n" % (
            fields, os.path.basename(path), os.path.getsize(path), digest(path)))  # fmt: skip
    part = os.path.join(folder, "Packages.part")
    with open(part, "w") as file:
        file.write("\n".join(out))
    os.rename(part, os.path.join(folder, "Packages"))


def main():
    folder, manager = sys.argv[1:3]
    kind = {"apt": "deb", "dnf": "rpm"}[manager]
    names = sorted(glob.glob(os.path.join(glob.escape(folder), "*." + kind)))
    if not names:
        raise SystemExit("there is no .%s file" % kind)
    names = check(folder, names)
    if kind == "deb":
        index_debs(folder, names)
    elif not os.path.isdir(os.path.join(folder, "repodata")):
        raise SystemExit("there is no repodata beside the .rpm files. Make it with: createrepo_c .")


if __name__ == "__main__":
    main()
