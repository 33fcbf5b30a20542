"""Boots from pools: makes a root file system on a pool, with initial ramdisks that start it, and
checks a machine that has booted from them.

  boots.py make plain|clevis|network INITRD...     leaves the initial ramdisks on the last disk
  boots.py mark                                    marks the thin pools `needs_check`
  boots.py ruin                                    destroys the metadata of the thin pool of `aux`
  boots.py check EXPECTED...                       after a boot from a pool

The pools: `sys` with the root file system, `aux` for an entry of /etc/fstab.
"""

import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import time

import notes
import stratis_client as client
import system
import tang
from stratis_bus import Stratis, done

GIB = 1 << 30
# What the host types (vm/scenarios.py).
PASSPHRASE = "the passphrase of this machine"
ROOT = pathlib.Path("/mnt/root")
# What the copy of the root file system does not need.
LEFT_OUT = ["host/*", "mnt/*", "opt/*", "root/*", "tmp/*", "usr/lib/modules/*", "usr/share/doc/*", "usr/share/locale/*",
            "usr/share/man/*", "var/cache/*", "var/lib/apt/*", "var/log/journal/*"]  # fmt: skip
DRACUT_MODULES = "bash systemd systemd-initrd dracut-systemd udev-rules rootfs-block fs-lib base shutdown stratis"


def run(*command):
    done_ = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           check=False)  # fmt: skip
    if done_.returncode:
        print(done_.stdout, flush=True)
        raise AssertionError(f"{command[0]} ended with status {done_.returncode}")
    return done_.stdout


# ---- make ----


def copy_root(to):
    excluded = [f"--exclude=./{pattern}" for pattern in LEFT_OUT]
    reader = subprocess.Popen(["tar", "-C", "/", "--one-file-system", *excluded, "-cf", "-", "."], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-C", to, "-xf", "-"], stdin=reader.stdout, check=True)
    assert reader.wait() == 0


def initrd_of_dracut(to, modules=DRACUT_MODULES):
    return run("dracut", "--force", "--no-hostonly", "--no-kernel", "--no-compress", "--modules", modules,
               to, os.uname().release)  # fmt: skip


def initrd_of_initramfs_tools(to):
    # User-mode Linux has no modules.
    modules = pathlib.Path("/lib/modules") / os.uname().release
    modules.mkdir(parents=True, exist_ok=True)
    for name in ("modules.builtin", "modules.order"):
        (modules / name).touch()
    run("depmod", os.uname().release)
    # mkinitramfs reads there what the kernel can decompress.
    pathlib.Path("/boot").mkdir(exist_ok=True)
    pathlib.Path(f"/boot/config-{os.uname().release}").write_text("CONFIG_RD_GZIP=y\n")
    pathlib.Path("/etc/initramfs-tools/conf.d").mkdir(parents=True, exist_ok=True)
    pathlib.Path("/etc/initramfs-tools/conf.d/machine").write_text("MODULES=list\nCOMPRESS=gzip\n")
    return run("mkinitramfs", "-o", to, os.uname().release)


# A Tang server, for `machine.tang=up` on the kernel command line: in the initial ramdisk, or beside the
# root file system, where it stands for the network.
TANG_PORT = 7500
TANG_KEYS = "etc/machine-tang"
TANG_MODULE = {
    "module-setup.sh": f"""#!/bin/bash
check() {{ return 255; }}
install() {{
    inst_multiple {tang.PROGRAM} jose
    for file in {notes.TANG_KEYS}/*; do inst_simple "$file" "/{TANG_KEYS}/${{file##*/}}"; done
    inst_simple "$moddir/machine-tang.socket" "$systemdsystemunitdir/machine-tang.socket"
    inst_simple "$moddir/machine-tang@.service" "$systemdsystemunitdir/machine-tang@.service"
    mkdir -p "$initdir$systemdsystemunitdir/initrd.target.wants"
    ln -s ../machine-tang.socket "$initdir$systemdsystemunitdir/initrd.target.wants/machine-tang.socket"
}}
""",
    "machine-tang.socket": f"""[Unit]
DefaultDependencies=no
Before=network-online.target
ConditionKernelCommandLine=machine.tang=up
[Socket]
ListenStream=127.0.0.1:{TANG_PORT}
Accept=yes
""",
    "machine-tang@.service": f"""[Unit]
DefaultDependencies=no
[Service]
ExecStart=-{tang.PROGRAM} /{TANG_KEYS}
StandardInput=socket
StandardOutput=socket
# Not the socket, which it would be otherwise.
StandardError=journal
""",
}


def install_tang_module():
    folder = pathlib.Path("/usr/lib/dracut/modules.d/99machine-tang")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in TANG_MODULE.items():
        (folder / name).write_text(text)
    (folder / "module-setup.sh").chmod(0o755)


def initrd_of_dracut_with_tang(to):
    install_tang_module()
    return initrd_of_dracut(to, DRACUT_MODULES + " stratis-clevis machine-tang")


MAKERS = {"dracut": initrd_of_dracut, "dracut-clevis": initrd_of_dracut_with_tang,
          "initramfs-tools": initrd_of_initramfs_tools}  # fmt: skip


def install_tang_server(root):
    """A server in the root file system, which is up when the network is."""
    shutil.copytree(notes.TANG_KEYS, root / TANG_KEYS)
    units = root / "etc/systemd/system"
    for name in ("machine-tang.socket", "machine-tang@.service"):
        (units / name).write_text(TANG_MODULE[name])
    wants = units / "network-online.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "machine-tang.socket").symlink_to("../machine-tang.socket")


def make_pools(stratis, kind):
    """`sys` with a passphrase and a Tang server if the kind is `clevis`, and `aux` with a Tang server
    alone if it is `network`; else they are not encrypted."""
    keys, clevis = [], []
    if kind != "plain":
        server = tang.Tang(notes.TANG_KEYS, TANG_PORT).start()
        clevis = [("tang", {"url": server.url, "stratis:tang:trust_url": True})]
    if kind == "clevis":
        client.set_key("k", PASSPHRASE)
        keys = ["k"]
    pool, _ = done(stratis.create_pool("sys", [system.DISKS[0]], keys=keys, clevis=clevis if kind == "clevis" else []))
    aux, _ = done(stratis.create_pool("aux", [system.DISKS[1]], clevis=clevis if kind == "network" else []))
    return pool, aux


def make(kind, *generators):
    started = time.monotonic()

    def say(what):
        print(f"{time.monotonic() - started:5.1f} s  {what}", flush=True)

    stratis = Stratis()
    pool, aux = make_pools(stratis, kind)
    done(stratis.create_filesystem(pool, "root", 4 * GIB))
    done(stratis.create_filesystem(pool, "data", GIB))
    done(stratis.create_filesystem(aux, "f", GIB))
    system.mount("/dev/stratis/aux/f", "/mnt/aux")
    system.put("/mnt/aux", "file")
    system.unmount("/mnt/aux")
    uuid, aux_uuid = stratis.pool("sys").uuid, stratis.pool("aux").uuid
    # /etc/fstab has to start it.
    done(stratis.stop_pool(aux_uuid))
    say("made the pools")
    system.mount("/dev/stratis/sys/root", ROOT)
    copy_root(ROOT)
    say("copied the root file system")
    network, setup = ("_netdev,", "stratis-fstab-setup-with-network") if kind == "network" else ("", "stratis-fstab-setup")
    (ROOT / "etc/fstab").write_text(
        "/dev/stratis/sys/root / xfs defaults 0 1\n"
        "/dev/stratis/sys/data /data xfs defaults 0 2\n"
        f"/dev/stratis/aux/f /aux xfs nofail,{network}x-systemd.requires={setup}@{aux_uuid}.service 0 2\n"
    )
    for folder in ("data", "aux", "mnt/root"):
        (ROOT / folder).mkdir(exist_ok=True)
    run("systemctl", f"--root={ROOT}", "enable", "stratisd.service")
    if kind == "network":
        install_tang_server(ROOT)
    notes.FOLDER.mkdir(exist_ok=True)
    for name in generators:
        print(MAKERS[name](notes.FOLDER / f"initrd-{name}"))
        say(f"made the initial ramdisk of {name}: {(notes.FOLDER / f'initrd-{name}').stat().st_size >> 20} MiB")
    os.sync()
    system.unmount(ROOT)
    words = ["root=/dev/stratis/sys/root", "rootfstype=xfs", f"stratis.rootfs.pool_uuid={uuid}"]
    notes.keep(words=words, pools={"sys": uuid, "aux": aux_uuid})
    say("done")
    pathlib.Path("/run/machine-orderly-end").touch()


# ---- mark and ruin ----


def place_of(device):
    """The disk, and the byte on it, where a stack of linear devices begins."""
    start = 0
    while device:
        _, _, target, below, offset = run("dmsetup", "table", device).splitlines()[0].split()
        assert target == "linear", device
        start += int(offset)
        node = pathlib.Path(os.path.realpath(f"/dev/block/{below}"))
        name = pathlib.Path(f"/sys/dev/block/{below}/dm/name")
        device = name.read_text().strip() if name.exists() else None
    return node, start * 512


def metadata_of_thin_pool(uuid):
    return place_of(f"stratis-1-private-{uuid}-flex-thinmeta")


# The superblock of a thin pool's metadata: the checksum, which begins with this seed, the flags.
SUPERBLOCK_BYTES = 4096
SUPERBLOCK_SEED = 160774
NEEDS_CHECK = 1


def crc32c(data):
    """As the kernel computes it: without the inversion at the end."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


def change_stopped(pools, change):
    """Stops these pools and changes the first blocks of their thin pools' metadata: 1 MiB."""
    stratis = Stratis()
    if "aux" not in [pool.name for pool in stratis.pools().values()]:
        done(stratis.start_pool(notes.found()["pools"]["aux"]))
    for name in pools:
        uuid = stratis.pool(name).uuid
        disk, start = metadata_of_thin_pool(uuid)
        done(stratis.stop_pool(uuid))
        with open(disk, "r+b") as file:
            file.seek(start)
            blocks = file.read(1 << 20)
            file.seek(start)
            file.write(change(blocks))
            file.flush()
            os.fsync(file.fileno())
    pathlib.Path("/run/machine-orderly-end").touch()


def marked(blocks):
    found, flags = struct.unpack_from("<II", blocks)
    assert found == crc32c(blocks[4:SUPERBLOCK_BYTES]) ^ SUPERBLOCK_SEED, "this is no superblock"
    assert not flags & NEEDS_CHECK
    changed = struct.pack("<I", flags | NEEDS_CHECK) + blocks[8:SUPERBLOCK_BYTES]
    return struct.pack("<I", crc32c(changed) ^ SUPERBLOCK_SEED) + changed + blocks[SUPERBLOCK_BYTES:]


def mark():
    change_stopped(["sys", "aux"], marked)


def ruin():
    change_stopped(["aux"], lambda blocks: b"\xff" * len(blocks))


# ---- check ----


def is_mounted(place, link):
    for line in open("/proc/self/mountinfo"):
        words = line.split()
        if words[4] == place:
            node = os.stat(link).st_rdev
            assert words[2] == f"{os.major(node)}:{os.minor(node)}", f"{place} is not {link}: {line}"
            return
    raise AssertionError(f"{place} is not mounted")


def links():
    return sorted(str(path) for path in pathlib.Path("/dev/stratis").glob("*/*"))


def expected_links():
    pools = Stratis().pools().items()
    return sorted(f"/dev/stratis/{name}/{fs}" for name, pool in pools for fs in pool.filesystems)


def root_is_on_the_pool():
    is_mounted("/", "/dev/stratis/sys/root")
    is_mounted("/data", "/dev/stratis/sys/data")


def wait_for_the_boot():
    """This program runs when the system is up, which waits neither for stratisd nor for an entry of
    /etc/fstab with `nofail`."""
    while any(word in run("systemctl", "list-jobs", "--no-legend") for word in ("aux.mount", "stratis")):
        time.sleep(0.2)


def fstab_is_mounted():
    is_mounted("/aux", "/dev/stratis/aux/f")
    assert pathlib.Path("/aux/file").stat().st_size == 1 << 20


def setup_unit():
    """The unit that starts the pool of the entry of /etc/fstab."""
    units = run("systemctl", "list-units", "--all", "--plain", "--no-legend", "stratis-fstab-setup*").splitlines()
    return units[0].split()[0]


def log_of_the_boot(*selection):
    return run("journalctl", "--no-pager", "-b", "-o", "cat", *selection)


def aux_has_failed(*reasons):
    """The mount has failed when its pool was given up, and the log says why."""
    unit = setup_unit()
    assert system.run("systemctl", "show", "-P", "Result", unit).strip() == "exit-code"
    log = log_of_the_boot("-u", unit)
    assert all(reason in log for reason in reasons), log
    assert not os.path.ismount("/aux")


def the_missing_pool_is_named():
    aux_has_failed("none of its devices has been found", "is not started after 15 s")


def the_damage_is_named():
    aux_has_failed("is not started after 15 s", "thin_repair")


def the_server_that_is_down_is_named():
    aux_has_failed("not unlocked without a passphrase", "Error communicating with server", "has no passphrase; trying Clevis")


def the_network_came_first():
    log = log_of_the_boot()
    reached, begun = log.find("Reached target network-online.target"), log.find(f"Starting {setup_unit()}")
    assert 0 <= reached < begun, (reached, begun)


def the_metadata_was_checked():
    """Both thin pools were marked; a check has removed the mark, and they take writes."""
    for name in ("sys", "aux"):
        status = run("dmsetup", "status", f"stratis-1-private-{Stratis().pool(name).uuid}-thinpool-pool")
        assert " rw " in status and "needs_check" not in status, status
    system.put("/aux", "written")
    os.sync()


def the_mistyped_passphrase_is_explained():
    assert "the passphrase does not open pool sys; give the right one" in log_of_the_boot()


def no_unit_has_failed():
    failed = run("systemctl", "list-units", "--failed", "--no-legend", "--plain").splitlines()
    assert not failed, failed


def all_links_are_there():
    assert links() == expected_links() != [], links()


def links_survive_a_coldplug():
    run("udevadm", "trigger", "--settle", "--action=add", "--subsystem-match=block")
    all_links_are_there()


def links_survive_a_restart_of_udevd():
    run("systemctl", "restart", "systemd-udevd.service")
    links_survive_a_coldplug()


def links_survive_a_new_daemon():
    system.stop_daemon()
    assert links() != []
    system.start_daemon()
    all_links_are_there()


def stratisd_has_taken_over():
    """The daemon of the initrd has left, and stratisd holds the pools."""
    assert subprocess.run(["pgrep", "-x", "stratisd-min"], check=False).returncode == 1, run("pgrep", "-a", "stratis")
    assert Stratis().pool("sys").filesystems


STARTS = re.compile(r"(stratisd|stratisd-min) \S+ \(interface level .*\) starts on this machine")
TAKES_OVER = re.compile(r"stratisd-min, process (\d+), has ended; this daemon takes over its pools")


def watched_all_the_time():
    """No moment without a daemon, from the initrd to stratisd: each daemon but the first says that its
    predecessor has ended, so it ran before that, and has looked at the pools after that."""
    entries = [json.loads(line) for line in run("journalctl", "--no-pager", "-b", "-o", "json").splitlines()]
    entries = [entry for entry in entries if isinstance(entry["MESSAGE"], str)]
    started = [entry for entry in entries if STARTS.search(entry["MESSAGE"])]
    owners = [entry.get("_PID") for entry in started]
    gone = [(entry.get("_PID"), found[1]) for entry in entries if (found := TAKES_OVER.search(entry["MESSAGE"]))]
    story = "\n".join(entry["MESSAGE"] for entry in entries if "tratis" in entry["MESSAGE"])
    # The daemon of an initrd without systemd writes to the kernel's log, which knows no process IDs.
    assert owners[0] in (gone[0][1], None), story
    if started[0]["_TRANSPORT"] != "kernel":
        assert entries.index(started[0]) < [entry["MESSAGE"] for entry in entries].index("Switching root."), story
    assert len(owners) > 1 and owners[-1] == system.unit("MainPID"), story
    # An unbroken chain.
    assert [owner for owner, _ in gone] == owners[1:], story
    assert [before for _, before in gone[1:]] == owners[1:-1], story
    for owner in owners[1:]:
        assert any(re.search(r"pool sys \(.* is set up", entry["MESSAGE"]) for entry in entries if entry.get("_PID") == owner), story
    assert "cannot send" not in story, story


ALWAYS = [root_is_on_the_pool, all_links_are_there, stratisd_has_taken_over, links_survive_a_coldplug,
          links_survive_a_restart_of_udevd, links_survive_a_new_daemon]  # fmt: skip
# The others, by their names.
CHECKS = {"fstab": fstab_is_mounted, "aux-missing": the_missing_pool_is_named, "aux-ruined": the_damage_is_named,
          "network": the_network_came_first, "network-down": the_server_that_is_down_is_named,
          "checked": the_metadata_was_checked, "explained": the_mistyped_passphrase_is_explained,
          "healthy": no_unit_has_failed, "watched": watched_all_the_time}  # fmt: skip


def check(*names):
    print(f"booted in {float(open('/proc/uptime').read().split()[0]):.1f} s", flush=True)
    wait_for_the_boot()
    passed = failed = 0
    for test in [CHECKS[name] for name in names] + ALWAYS:
        try:
            test()
        except Exception as error:
            failed += 1
            print(f"FAILED {test.__name__}: {error}", flush=True)
        else:
            passed += 1
    if failed:
        print(subprocess.run("systemctl --failed; ls -lR /dev/stratis; cat /proc/cmdline; journalctl -b --no-pager -o short-monotonic"
                             " | grep -v systemd-journald | tail -n 150", shell=True, stdout=subprocess.PIPE, text=True,
                             check=False).stdout)  # fmt: skip
    print(f"{passed} passed, {failed} failed", flush=True)
    pathlib.Path("/run/machine-orderly-end").touch()
    return 1 if failed else 0


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    sys.exit({"make": make, "mark": mark, "ruin": ruin, "check": check}[what](*words))
