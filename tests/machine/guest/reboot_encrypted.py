"""Encrypted pools before and after a reboot, started by each unlock method; and power cuts during
re-encryption jobs.

Each test runs in its own life with the same disks. The keyring is empty after a boot; the keys of
the tang server are on the disk for notes.
"""

import os
import pathlib
import random
import subprocess
import threading

import luks_dump
import notes
import stratis_client as client
import system
from stratis_bus import ANY_SLOT, Stratis, done
from tang import Tang

GIB = 1 << 30
PASSPHRASE = "the passphrase of this machine"
DONE = "has completed its re-encryption job"


def server():
    return Tang(notes.TANG_KEYS, 7500)


def trusted(tang):
    return [("tang", {"url": tang.url, "stratis:tang:trust_url": True})]


def orderly_end():
    system.unmount_all()
    pathlib.Path("/run/machine-orderly-end").touch()
    os.sync()


# ---- a reboot ----


def test_before_reboot():
    tang = server().start()
    stratis = Stratis()
    client.set_key("k1", PASSPHRASE)
    written = {}
    for name, disk, keys, clevis in (
        ("net", notes.OTHERS[0], (), trusted(tang)),
        ("both", notes.OTHERS[1], ["k1"], trusted(tang)),
    ):
        pool, _ = done(stratis.create_pool(name, [disk], keys=keys, clevis=clevis))
        done(stratis.create_filesystem(pool, "f", GIB))
        system.mount(f"/dev/stratis/{name}/f", f"/mnt/{name}")
        written[name] = {"file": system.put(f"/mnt/{name}", "file", 8 << 20)}
    notes.keep(written=written)
    orderly_end()


def test_after_reboot():
    written = notes.found()["written"]
    tang = server()

    def start(name, *arguments, stdin=None):
        client.ok("pool", "start", "--name", name, *arguments, stdin=stdin)
        system.settle()
        system.mount(f"/dev/stratis/{name}/f", f"/mnt/{name}")
        assert system.contents(f"/mnt/{name}") == written[name]

    def stop(name):
        system.unmount_all()
        client.ok("pool", "stop", "--name", name)

    def refused(name, *arguments):
        said = client.refused("pool", "start", "--name", name, *arguments)
        assert system.mapped_devices() == []
        return said

    stopped = client.ok("pool", "list", "--stopped")
    assert all(name in stopped for name in written) and Stratis().pools() == {}
    # Keys do not survive a boot, and the server does not run yet.
    assert tang.url in refused("net", "--unlock-method=any")
    said = refused("both", "--unlock-method=any")
    assert "k1" in said and tang.url in said
    tang.start()
    start("net", "--unlock-method=any")
    stop("net")
    start("both", "--token-slot=1")
    stop("both")
    client.set_key("k1", PASSPHRASE)
    start("both", "--token-slot=0")
    stop("both")
    client.unset_keys()
    start("both", "--capture-key", stdin=PASSPHRASE + "\n")
    start("net", "--token-slot=0")
    orderly_end()


# ---- power cuts ----

# The name of each mode, and the method that starts it.
WORKS = {
    "encrypt": lambda stratis, path, tang: stratis.encrypt_pool(path, clevis=trusted(tang)),
    "reencrypt": lambda stratis, path, _: stratis.reencrypt_pool(path),
    "decrypt": lambda stratis, path, _: stratis.decrypt_pool(path),
}


def cut_in_the_middle_of(work, stratis, tang, files):
    """Starts the job on the pool; the power is cut at a random point of it."""
    log = system.Log()
    path = stratis.pool("p").path
    writer = system.Writer("/mnt/f")

    def ask():
        try:
            WORKS[work](Stratis(), path, tang)
        except Exception:  # the power is cut before it ends
            pass

    threading.Thread(target=ask, daemon=True).start()
    tenth = random.Random(f"{os.environ['SEED']} {work}").randrange(0, 10) * 10
    log.wait_for(f" {tenth} % ")
    notes.keep(work=work, files=files | writer.end())
    print(f"cutting the power with the {work} job at {tenth} %", flush=True)
    subprocess.run(["machine-power-cut"], check=False)


def finished():
    """After a power cut: starts the pool if the daemon has not done so itself, waits until the job
    has resumed and ended on its own, and checks all data."""
    tang = server().start()
    stratis = Stratis()
    found = notes.found()
    log = system.Log()
    for uuid in stratis.stopped_pools():
        done(stratis.start_pool(uuid, slot=ANY_SLOT))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    writer = system.Writer("/mnt/f")
    (pool,) = stratis.report()["pools"]
    if "work" in pool:
        log.wait_for(DONE)
    files = found["files"] | writer.end()
    system.unmount_all()
    system.run("sysctl", "-q", "vm.drop_caches=3")
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == files
    pool = stratis.pool("p")
    encrypted = found["work"] != "decrypt"
    assert stratis.get(pool.path, "pool", "Encrypted") is encrypted
    assert stratis.get(pool.path, "pool", "AvailableActions") == "fully_operational"
    if encrypted:
        header = luks_dump.header(luks_dump.node_of(pool.uuid))
        (token,) = header["tokens"].values()
        assert list(header["keyslots"]) == token["keyslots"]
        assert [segment["type"] for segment in header["segments"].values()] == ["crypt"]
    else:
        assert not luks_dump.is_left_on(notes.OTHERS[0])
    return stratis, tang, files


def test_cut_encrypting():
    tang = server().start()
    stratis = Stratis()
    path, _ = done(stratis.create_pool("p", notes.OTHERS[:1]))
    done(stratis.create_filesystem(path, "f", GIB))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    cut_in_the_middle_of("encrypt", stratis, tang, {"first": system.put("/mnt/f", "first", 8 << 20)})


def test_cut_reencrypting():
    stratis, tang, files = finished()
    cut_in_the_middle_of("reencrypt", stratis, tang, files)


def test_cut_decrypting():
    stratis, tang, files = finished()
    cut_in_the_middle_of("decrypt", stratis, tang, files)


def test_after_all_cuts():
    finished()
    orderly_end()
