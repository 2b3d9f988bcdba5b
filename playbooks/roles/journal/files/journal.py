"""The journal of changed files on a node: save before a change, list, restore byte for byte.

Sent on stdin to the node's Python (3.6 or newer, standard library only); argv[1] is one JSON object:
  {"do": "save", "base": DIR, "run": RUN, "component": NAME, "files": {PATH: SHA256 AFTER}, "notes": [TEXT]}
  {"do": "list", "base": DIR}
  {"do": "restore", "base": DIR, "run": RUN, "force": false, "dry": false}
  {"do": "mark", "base": DIR, "run": RUN}
Prints one JSON object. Layout: DIR/RUN/NNN.json beside NNN.before (the file as it was, with owner, mode,
times and extended attributes).
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import time


def digest(path):
    """SHA-256 of a file, or "" where there is none."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                found.update(block)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return ""
        raise
    return found.hexdigest()


def write(path, data):
    """Replace a file at once or not at all."""
    part = path + ".part"
    with open(part, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, path)


def copy(source, target):
    """Copy with owner, mode, times and extended attributes (SELinux labels), replacing at once."""
    part = os.path.join(os.path.dirname(target), ".epdoctor-%d.part" % os.getpid())
    try:
        shutil.copyfile(source, part)
        info = os.stat(source)
        os.chown(part, info.st_uid, info.st_gid)
        shutil.copystat(source, part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.rename(part, target)
    finally:
        if os.path.exists(part):
            os.unlink(part)


def entries(folder):
    found = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json") and name[:-5].isdigit():
            with open(os.path.join(folder, name)) as file:
                entry = json.load(file)
            entry["number"] = name[:-5]
            found.append(entry)
    return found


def missing_folders(path):
    """Parents that do not exist yet, innermost first."""
    found = []
    folder = os.path.dirname(path)
    while folder not in ("", "/") and not os.path.isdir(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found


def save(wish):
    folder = os.path.join(wish["base"], wish["run"])
    if not os.path.isdir(folder):
        os.makedirs(folder, 0o700)
    have = entries(folder)
    known = dict((entry["path"], entry) for entry in have if "path" in entry)
    number = len(have)
    saved = []
    for path, after in sorted(wish.get("files", {}).items()):
        if path in known:
            # Resumed under the same name: the first copy is the one to go back to.
            entry = known[path]
            if after not in entry["after"]:
                number_text = entry.pop("number")
                entry["after"].append(after)
                write(os.path.join(folder, number_text + ".json"), json.dumps(entry).encode())
            continue
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise SystemExit("%s is not a plain file; epdoctor does not replace it" % path)
        number += 1
        stem = os.path.join(folder, "%03d" % number)
        existed = os.path.exists(path)
        if existed:
            copy(path, stem + ".before")
        entry = {"path": path, "component": wish["component"], "existed": existed, "before": digest(path),
                 "after": [after], "folders": missing_folders(path), "at": int(time.time())}  # fmt: skip
        write(stem + ".json", json.dumps(entry).encode())
        saved.append(path)
    for note in wish.get("notes", []):
        if note not in [entry.get("note") for entry in have]:
            number += 1
            entry = {"note": note, "component": wish["component"], "at": int(time.time())}
            write(os.path.join(folder, "%03d.json" % number), json.dumps(entry).encode())
    return {"saved": saved}


def list_runs(wish):
    runs = []
    try:
        names = sorted(os.listdir(wish["base"]))
    except OSError:
        names = []
    for name in names:
        folder = os.path.join(wish["base"], name)
        if os.path.isdir(folder):
            found = entries(folder)
            runs.append({"run": name, "undone": os.path.exists(os.path.join(folder, "undone")),
                         "at": max([entry["at"] for entry in found] or [0]),
                         "files": [entry["path"] for entry in found if "path" in entry],
                         "notes": [entry["note"] for entry in found if "note" in entry]})  # fmt: skip
    return {"runs": runs}


def same_kind(path, entry, stem):
    """Whether a file is what it was before: bytes, mode and owner."""
    if not entry["existed"]:
        return not os.path.lexists(path)
    if digest(path) != entry["before"]:
        return False
    now, then = os.lstat(path), os.lstat(stem + ".before")
    return (now.st_mode, now.st_uid, now.st_gid) == (then.st_mode, then.st_uid, then.st_gid)


def restore(wish):
    folder = os.path.join(wish["base"], wish["run"])
    if not os.path.isdir(folder):
        return {"run": wish["run"], "here": False, "files": [], "notes": []}
    dry, results, notes = wish.get("dry", False), [], []
    for entry in reversed(entries(folder)):
        if "note" in entry:
            notes.append(entry["note"])
            continue
        path, stem = entry["path"], os.path.join(folder, entry["number"])
        if entry["existed"] and digest(stem + ".before") != entry["before"]:
            results.append({"path": path, "did": "damaged"})
            continue
        if same_kind(path, entry, stem):
            results.append({"path": path, "did": "already"})
        elif digest(path) not in entry["after"] + [entry["before"]] and not wish.get("force", False):
            results.append({"path": path, "did": "changed-since"})
            continue
        elif entry["existed"]:
            if not dry:
                if not os.path.isdir(os.path.dirname(path)):
                    os.makedirs(os.path.dirname(path), 0o755)
                copy(stem + ".before", path)
            results.append({"path": path, "did": "restored"})
        else:
            if not dry:
                os.unlink(path)
            results.append({"path": path, "did": "removed"})
        for parent in entry["folders"]:
            try:
                if not dry:
                    os.rmdir(parent)
            except OSError:
                break  # somebody else's file is in it, or it is gone
    return {"run": wish["run"], "here": True, "files": results, "notes": notes}


def mark(wish):
    """The run is undone, with all that had to follow (unit files read again, initramfs rebuilt)."""
    write(os.path.join(wish["base"], wish["run"], "undone"), b"")
    return {"run": wish["run"]}


def main():
    wish = json.loads(sys.argv[1])
    run = wish.get("run", "")
    if run and (not run.replace("-", "").replace("_", "").isalnum()):
        raise SystemExit("run %r is not a name" % run)
    done = {"save": save, "list": list_runs, "restore": restore, "mark": mark}[wish["do"]](wish)
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
