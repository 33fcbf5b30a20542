"""The expected state of a pool after a stream of operations: a state of plain values, and the
operations on it.

A state is {"pool": name, "filesystems": {name: {"files": {name: digest}}}}. Knows nothing of D-Bus
and disks.
"""

import copy


def start(pool):
    return {"pool": pool, "filesystems": {}}


def after(state, operation):
    """The state after one operation of the form [kind, arguments...]."""
    new = copy.deepcopy(state)
    filesystems = new["filesystems"]
    kind, *arguments = operation
    if kind == "create":
        filesystems[arguments[0]] = {"files": {}}
    elif kind == "snapshot":
        origin, name = arguments
        filesystems[name] = copy.deepcopy(filesystems[origin])
    elif kind == "rename":
        old, name = arguments
        filesystems[name] = filesystems.pop(old)
    elif kind == "destroy":
        del filesystems[arguments[0]]
    elif kind == "rename-pool":
        new["pool"] = arguments[0]
    elif kind == "write":
        name, file, digest = arguments
        filesystems[name]["files"][file] = digest
    else:
        raise ValueError(operation)
    return new


def choose(state, random, counter):
    """The next operation of a stream, never one that must be refused. `write` still lacks its
    digest."""
    names = sorted(state["filesystems"])
    kinds = ["create"] * 3
    if names:
        kinds += ["snapshot"] * 3 + ["rename"] * 2 + ["rename-pool"] + ["write"] * 4
    if len(names) > 4:
        kinds += ["destroy"] * 5
    kind = random.choice(kinds)
    if kind == "create":
        return ["create", f"fs{counter}"]
    if kind == "rename-pool":
        return ["rename-pool", f"pool{counter}"]
    name = random.choice(names)
    if kind == "snapshot":
        return ["snapshot", name, f"snap{counter}"]
    if kind == "rename":
        return ["rename", name, f"renamed{counter}"]
    if kind == "write":
        return ["write", name, f"file{counter}"]
    return ["destroy", name]
