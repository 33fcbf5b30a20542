"""Every write of a stream of operations is recorded, then the pool is started from disks as power cuts would have left
them: all that a flush covers is there, of what came after it a drawn part, whole, torn or not at all.

  crash_states.py SEED OPERATIONS CUTS

Uses the machine's three disks as: the disk (cut into three by dm-linear, so that one record has the order of all
writes), the record, and room for what the check of one state writes (by dm-snapshot, so that the next state begins from
the untouched disk).
"""

import json
import os
import random
import sys

import model
import stratis_bus
import stream
import system
import write_log

DISK, RECORD, ROOM = system.DISKS[:3]
PARTS = ["part0", "part1", "part2"]
SECTORS_PER_MIB = 2048


def make_parts(below):
    """Three devices on the device `below`. The first begins late, so that `below` itself has no signature."""
    sectors = int(system.run("blockdev", "--getsz", below))
    each = (sectors - SECTORS_PER_MIB) // len(PARTS)
    for number, part in enumerate(PARTS):
        start = SECTORS_PER_MIB + number * each
        system.run("dmsetup", "create", part, "--table", f"0 {each} linear {below} {start}")
    system.settle()
    # The daemon names devices by their canonical nodes.
    system.DISKS[:] = [os.path.realpath(f"/dev/mapper/{part}") for part in PARTS]


def take_down(*names):
    """Removes the pool's devices, from the top of the stack to its bottom, then those named."""
    system.unmount_all()
    system.stop_daemon()
    system.remove_mapped("stratis-")
    for name in names:
        system.run("dmsetup", "remove", "--retry", name)


def record(seed, operations):
    """Carries out the stream and gives the entries of its record."""
    sectors = system.run("blockdev", "--getsz", DISK).strip()
    system.run("dmsetup", "create", "recorded", "--table", f"0 {sectors} log-writes {DISK} {RECORD}")
    make_parts("/dev/mapper/recorded")
    system.start_daemon()
    stratis = stratis_bus.Stratis()

    def mark(**entry):
        text = json.dumps(entry, separators=(",", ":"))
        assert len(text) < 400, "a mark's text shares one sector with its head"
        system.run("dmsetup", "message", "recorded", "0", "mark", text)

    mark(begin=["create-pool"])
    stratis_bus.done(stratis.create_pool("pool", system.DISKS))
    mark(done=["create-pool"])
    generator, state = random.Random(seed), model.start("pool")
    for counter in range(operations):
        operation = model.choose(state, generator, counter)
        mark(begin=operation)
        operation = stream.carry_out(stratis, state, operation)
        state = model.after(state, operation)
        mark(done=operation)
    stratis.close()
    take_down(*PARTS, "recorded")
    return write_log.read(RECORD)


def states_at(entries):
    """For each place of the record: (states that are right there, the operation under way)."""
    found, state, under_way = [], None, None
    for entry in entries:
        # The target adds a mark of its own at its end.
        if entry.mark and entry.mark.startswith("{"):
            told = json.loads(entry.mark)
            if "begin" in told:
                under_way = told["begin"]
            else:
                operation, under_way = told["done"], None
                state = model.start("pool") if operation == ["create-pool"] else model.after(state, operation)
        found.append((state, under_way))
    return found


def right_states(state, under_way):
    if under_way is None or under_way[0] == "write":
        return [state]
    return [state, model.start("pool") if under_way == ["create-pool"] else model.after(state, under_way)]


def check(states, under_way):
    """The daemon starts on the parts and finds one of the states."""
    system.start_daemon()
    stratis = stratis_bus.Stratis()
    try:
        if None in states:  # while the pool is being made there may be none
            if not stratis.pools():
                return
            states = [state for state in states if state]
        half_written = under_way[1:3] if under_way and under_way[0] == "write" else None
        stream.compare(stratis, states, half_written)
    finally:
        stratis.close()


def flushed_before(entries, place):
    """How many entries a completed flush covers when the power is cut at `place`."""
    return max((number + 1 for number in range(place) if write_log.is_flush(entries[number])), default=0)


def draw_places(entries, generator, count):
    """Places to cut at: in a drawn stretch between two flushes, so that the many writes of a mkfs do not get them all."""
    first = next(number for number, entry in enumerate(entries) if entry.mark)
    ends = [n for n in range(first, len(entries)) if write_log.is_flush(entries[n])] + [len(entries) - 1]
    places = set()
    for end in generator.sample(ends, min(count, len(ends))):
        places.add(generator.randint(max(first, flushed_before(entries, end)), end))
    return sorted(places)


class CutDisk:
    """The disk as a power cut leaves it. What the check of one state writes goes to another disk, so the next state
    begins from the untouched one; places are asked for in rising order."""

    def __init__(self, entries):
        self.entries = entries
        self.done_to = 0
        self.sectors = system.run("blockdev", "--getsz", DISK).strip()
        system.run("blkdiscard", "--zeroout", DISK)

    def _repeat(self, entries, path, length_of):
        with open(RECORD, "rb") as log, open(path, "r+b") as disk:
            for entry in entries:
                length = length_of(entry) if entry.length else 0
                if length:
                    write_log.copy(entry, log, disk, length)
            disk.flush()
            os.fsync(disk.fileno())

    def set_up(self, flushed, unflushed, length_of):
        """All entries up to `flushed`, then of `unflushed` the part that `length_of` says."""
        self._repeat(self.entries[self.done_to : flushed], DISK, lambda entry: entry.length)
        self.done_to = max(self.done_to, flushed)
        system.run("dd", "if=/dev/zero", f"of={ROOM}", "bs=4k", "count=1", "conv=fsync", "status=none")
        system.run("dmsetup", "create", "cut", "--table", f"0 {self.sectors} snapshot {DISK} {ROOM} N 8")
        self._repeat(unflushed, "/dev/mapper/cut", length_of)
        make_parts("/dev/mapper/cut")

    def take_down(self):
        take_down(*PARTS, "cut")


def cut(disk, place, states, generator):
    """One cut: (whether the daemon copes, what was done)."""
    fates = []

    def length_of(entry):
        fates.append((write_log.fate(entry, generator), entry.length))
        return fates[-1][0]

    flushed = flushed_before(disk.entries, place)
    disk.set_up(flushed, disk.entries[flushed : place + 1], length_of)
    kept, lost = sum(got == all_ for got, all_ in fates), sum(got == 0 for got, _ in fates)
    state, under_way = states[place]
    about = f"cut at {place} during {under_way}: of {len(fates)} unflushed writes {lost} lost, {len(fates) - kept - lost} torn"
    try:
        check(right_states(state, under_way), under_way)
        return True, about
    except Exception as error:  # a state that cannot be handled is what is looked for
        return False, f"{about}: {error}\n{system.daemon_log(30)}"
    finally:
        disk.take_down()


def lying_disk_is_noticed(disk, states):
    """The check itself is checked: a disk that forgot all of the last operation although it was flushed."""
    done_at = max(n for n, (_, under_way) in enumerate(states) if under_way is None and n and states[n - 1][1])
    begun_at = max(n for n in range(done_at) if states[n][1] is None)
    disk.set_up(flushed_before(disk.entries, begun_at), [], None)
    try:
        check([states[done_at][0]], None)
        return False
    except AssertionError:
        return True
    finally:
        disk.take_down()


def main(seed, operations, cuts):
    entries = record(seed, operations)
    states = states_at(entries)
    flushes = sum(write_log.is_flush(entry) for entry in entries)
    writes = sum(entry.length > 0 for entry in entries)
    print(f"recorded {operations} operations: {writes} writes, {flushes} flushes", flush=True)
    generator = random.Random(seed)
    disk = CutDisk(entries)
    passed = failed = 0
    for place in draw_places(entries, generator, cuts):
        good, about = cut(disk, place, states, generator)
        passed, failed = passed + good, failed + (not good)
        print("PASSED" if good else "FAILED", about, flush=True)
    noticed = lying_disk_is_noticed(CutDisk(entries), states)
    print("PASSED" if noticed else "FAILED", "a disk that forgets what was flushed is noticed", flush=True)
    passed, failed = passed + noticed, failed + (not noticed)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    system.stop_daemon()
    sys.exit(main(*(int(word) for word in sys.argv[1:4])))
