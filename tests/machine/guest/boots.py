"""Boots from pools: makes a root file system on a pool, with initial ramdisks that start it, and
checks a machine that has booted from them.

  boots.py make plain|passphrase|clevis INITRD...     leaves the initial ramdisks on the last disk
  boots.py check EXPECTED...                          after a boot from a pool

The pools: `sys` with the root file system, `aux` for an entry of /etc/fstab; the others are made on
request.
"""

import os
import pathlib
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


# A Tang server in the initial ramdisk, for `machine.tang=up` on the kernel command line.
TANG_PORT = 7500
TANG_MODULE = {
    "module-setup.sh": f"""#!/bin/bash
check() {{ return 255; }}
install() {{
    inst_multiple {tang.PROGRAM} jose
    for file in {notes.TANG_KEYS}/*; do inst_simple "$file" "/etc/machine-tang/${{file##*/}}"; done
    inst_simple "$moddir/machine-tang.socket" "$systemdsystemunitdir/machine-tang.socket"
    inst_simple "$moddir/machine-tang@.service" "$systemdsystemunitdir/machine-tang@.service"
    mkdir -p "$initdir$systemdsystemunitdir/initrd.target.wants"
    ln -s ../machine-tang.socket "$initdir$systemdsystemunitdir/initrd.target.wants/machine-tang.socket"
}}
""",
    "machine-tang.socket": f"""[Unit]
DefaultDependencies=no
ConditionKernelCommandLine=machine.tang=up
[Socket]
ListenStream=127.0.0.1:{TANG_PORT}
Accept=yes
""",
    "machine-tang@.service": f"""[Unit]
DefaultDependencies=no
[Service]
ExecStart=-{tang.PROGRAM} /etc/machine-tang
StandardInput=socket
StandardOutput=socket
""",
}


def install_tang_module():
    folder = pathlib.Path("/usr/lib/dracut/modules.d/99machine-tang")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in TANG_MODULE.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def initrd_of_dracut_with_tang(to):
    install_tang_module()
    return initrd_of_dracut(to, DRACUT_MODULES + " stratis-clevis machine-tang")


MAKERS = {"dracut": initrd_of_dracut, "dracut-clevis": initrd_of_dracut_with_tang,
          "initramfs-tools": initrd_of_initramfs_tools}  # fmt: skip


def make_root_pool(stratis, kind):
    """The pool `sys`: `plain`, with a `passphrase`, or with one and a Tang server (`clevis`)."""
    keys, clevis = [], []
    if kind != "plain":
        client.set_key("k", PASSPHRASE)
        keys = ["k"]
    if kind == "clevis":
        server = tang.Tang(notes.TANG_KEYS, TANG_PORT).start()
        clevis = [("tang", {"url": server.url, "stratis:tang:trust_url": True})]
    pool, _ = done(stratis.create_pool("sys", [system.DISKS[0]], keys=keys, clevis=clevis))
    return pool


def make(kind, *generators):
    started = time.monotonic()

    def say(what):
        print(f"{time.monotonic() - started:5.1f} s  {what}", flush=True)

    stratis = Stratis()
    pool = make_root_pool(stratis, kind)
    done(stratis.create_filesystem(pool, "root", 4 * GIB))
    done(stratis.create_filesystem(pool, "data", GIB))
    aux, _ = done(stratis.create_pool("aux", [system.DISKS[1]]))
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
    (ROOT / "etc/fstab").write_text(
        "/dev/stratis/sys/root / xfs defaults 0 1\n"
        "/dev/stratis/sys/data /data xfs defaults 0 2\n"
        f"/dev/stratis/aux/f /aux xfs nofail,x-systemd.requires=stratis-fstab-setup@{aux_uuid}.service 0 2\n"
    )
    for folder in ("data", "aux", "mnt/root"):
        (ROOT / folder).mkdir(exist_ok=True)
    run("systemctl", f"--root={ROOT}", "enable", "stratisd.service")
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


def fstab_is_mounted():
    # With `nofail` the boot does not wait for it.
    run("systemctl", "start", "aux.mount")
    is_mounted("/aux", "/dev/stratis/aux/f")
    assert pathlib.Path("/aux/file").stat().st_size == 1 << 20


def the_missing_pool_is_named():
    """The mount has failed at once when its pool was given up, and the log says why."""
    unit = next(line.split()[0] for line in run("systemctl", "list-units", "--all", "--plain", "--no-legend").splitlines()
                if line.startswith("stratis-fstab-setup@"))  # fmt: skip
    subprocess.run(["systemctl", "start", "aux.mount"], check=False, stderr=subprocess.DEVNULL)
    assert system.run("systemctl", "show", "-P", "Result", unit).strip() == "exit-code"
    log = run("journalctl", "--no-pager", "-b", "-u", unit, "-o", "cat")
    assert "none of its devices has been found" in log and "is not started after 15 s" in log, log
    assert not os.path.ismount("/aux")


# User-mode Linux does not tell systemd which device its console is.
WITHOUT_CONSOLE = "systemd-ask-password-console.service"


def no_unit_has_failed():
    failed = run("systemctl", "list-units", "--failed", "--no-legend", "--plain").splitlines()
    failed = [line for line in failed if not line.startswith(WITHOUT_CONSOLE)]
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


def watched_all_the_time():
    """The daemon of the initrd has run until another one took over, so no moment was without a daemon."""
    log = run("journalctl", "--no-pager", "-b", "-o", "short-monotonic", "-t", "stratisd-min", "-t", "@stratisd-min",
              "-t", "stratisd", "-t", "systemd")  # fmt: skip
    print("\n".join(line for line in log.splitlines() if "tratis" in line)[-4000:])


ALWAYS = [root_is_on_the_pool, all_links_are_there, stratisd_has_taken_over, links_survive_a_coldplug,
          links_survive_a_restart_of_udevd, links_survive_a_new_daemon]  # fmt: skip
# The others, by their names.
CHECKS = {"fstab": fstab_is_mounted, "aux-missing": the_missing_pool_is_named, "healthy": no_unit_has_failed, "watched": watched_all_the_time}


def check(*names):
    print(f"booted in {float(open('/proc/uptime').read().split()[0]):.1f} s", flush=True)
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
    sys.exit({"make": make, "check": check}[what](*words))
