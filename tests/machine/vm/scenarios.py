"""The machine tests: the lives of a machine in each, and what one life passes to the next.

The tests themselves are in ../guest. Knows nothing of how a machine runs.
"""

import dataclasses
import json
import math
import os
import tarfile

import facts
import session
from kernels import Boot
from shell import Failure

# Room for filesystems besides the 0.6 GiB that a pool needs for itself; sparse.
DISKS = ("3G", "3G", "3G")
LARGE_DISKS = ("100G", "20G", "20G")
# All data is encrypted several times, so the disk is about as small as a pool allows.
SMALL_DISKS = ("1100M",)
# The last disk, where the guest uses notes.py.
NOTES = "16M"
JOURNAL_PREFIX = "JOURNAL "
# The checks of the platform use the disks directly.
PLATFORM = "systemctl stop stratisd && STRATISD_MACHINE=1 RUST_BACKTRACE=0 ./platform_machine"
# Prefixes of the checks of LUKS2 and Clevis to run. The others rewrite all data without a fault, or
# stop and resume a job, which online-encryption does with the daemon; EVERY_CHECK=1 adds them.
LUKS_CHECKS = "" if os.environ.get("EVERY_CHECK") else (
    "'a LUKS device' 'a failed open' 'volume keys' eight 'a killed re-encryption' 'a re-encryption job ends'"
    " 'a re-encryption job meets' clevis")  # fmt: skip
# A TPM in software, and its address for the programs that use it.
TPM = ("mkdir -p /run/tpm && swtpm socket --tpm2 --daemon --tpmstate dir=/run/tpm --flags startup-clear"
       " --server type=tcp,port=2321 --ctrl type=tcp,port=2322 && export TPM2TOOLS_TCTI=swtpm:host=127.0.0.1,port=2321")  # fmt: skip


@dataclasses.dataclass
class Life:
    """A machine from power-on to its end."""

    command: str
    cut_within_seconds: float | None = None
    # Boots from a pool, with the initial ramdisk of this name that an earlier life has made.
    initrd: str | None = None
    words: tuple = ()
    typed: tuple = ()
    # Disks that are not connected, at first.
    absent: tuple = ()


@dataclasses.dataclass
class Scenario:
    """Lives of a machine with the same disks."""

    name: str
    about: str
    lives: list
    seed: int = 0
    disks: tuple = DISKS
    # Time limit of a life, if it needs more than the others.
    seconds: float = 0
    # Runs only if requested by name.
    longer: bool = False
    # Each life begins with the root file system that the previous life left.
    keep_root: bool = False
    guest: facts.Guest = facts.DEFAULT_GUEST
    memory_mib: int = 2048
    # Failed lives are counted; the next life follows nevertheless.
    counts_failures: bool = False

    def job(self, life, share, disks_folder):
        cut = None if life.cut_within_seconds is None else session.PowerCut(self.seed, life.cut_within_seconds)
        boot = None if life.initrd is None else self._boot(life, disks_folder)
        return session.Job(life.command, share, self.disks, disks_folder, self.memory_mib, self.seconds, cut, self.keep_root,
                           boot=boot, typed=life.typed, absent=life.absent)  # fmt: skip

    def _boot(self, life, disks_folder):
        """Takes the initial ramdisk, and the words that name the root file system, off the last disk
        (guest/notes.py)."""
        with tarfile.open(disks_folder / f"disk{len(self.disks) - 1}") as notes:
            try:
                notes.extract(f"./initrd-{life.initrd}", disks_folder, filter="data")
                values = json.load(notes.extractfile("./values"))
            except KeyError as missing:
                raise Failure(f"the life before has left no initial ramdisk: {missing}") from missing
        return Boot(disks_folder / f"initrd-{life.initrd}", (*values["words"], *life.words))


def keep_journal(lines, share):
    """Puts the complete journal lines that a life printed into the next life's share."""
    complete = []
    for line in lines:
        if line.startswith(JOURNAL_PREFIX):
            try:
                json.loads(line.removeprefix(JOURNAL_PREFIX))
            except ValueError:  # the power was cut within the line
                continue
            complete.append(line)
    (share / "journal").write_text("".join(line + "\n" for line in complete))


def _pytest(*files):
    # The host can set the number of random attempts, and the number of objects in tests of many.
    given = (name for name in ("LINK_TRIES", "FILESYSTEMS", "ENCRYPTED_POOLS") if os.environ.get(name))
    tries = "".join(f"{name}={int(os.environ[name])} " for name in given)
    # The width leaves room for the reason in the summary of what failed.
    return f"{tries}COLUMNS=200 python3 -B -m pytest -v --no-header -p no:cacheprovider -W ignore --durations=5 {' '.join(files)}"


def power_cuts(seeds):
    return [
        Scenario(
            f"power-cut-{seed}",
            "a power cut in a stream of operations leaves the pool as before or after the last one",
            [Life(f"python3 -B stream.py begin {seed}", cut_within_seconds=12),
             Life("python3 -B stream.py check journal continue")],
            seed,
        )
        for seed in seeds
    ]  # fmt: skip


def encryption_cuts(seeds):
    def life(test, seed, is_cut=True):
        # The guest triggers the power cut at a random point of the job; the host's limit is never
        # reached.
        return Life(f"SEED={seed} {_pytest('-s', f'reboot_encrypted.py::{test}')}", math.inf if is_cut else None)

    return [
        Scenario(
            f"cut-encryption-{seed}",
            "a power cut during encryption, re-encryption, decryption; each job is finished afterwards",
            [life("test_cut_encrypting", seed), life("test_cut_reencrypting", seed), life("test_cut_decrypting", seed),
             life("test_after_all_cuts", seed, is_cut=False)],
            seed,
            disks=(*SMALL_DISKS, NOTES),
            longer=True,
        )
        for seed in seeds
    ]  # fmt: skip


# Disks for boots: those of pools, and room for initial ramdisks.
BOOT_DISKS = ("6G", "2G", "1200M", "1200M", "512M")


def _made(*what):
    return Life(f"python3 -B boots.py make {' '.join(what)}")


def _booted(initrd, *expected, words=(), **more):
    return Life(f"python3 -B boots.py check {' '.join(expected)}", initrd=initrd, words=words, **more)


# With the first two, scripts give up early; the console shows their messages.
IMPATIENT = ("systemd.setenv=STRATIS_WAIT_SECONDS=15", "systemd.setenv=STRATIS_CLEVIS_ONLY_SECONDS=10",
             "systemd.journald.forward_to_console=1")  # fmt: skip
PATIENT = ("systemd.journald.forward_to_console=1",)
WAITS = "waiting for pool"


# The prompt, and what is typed there (guest/boots.py).
PROMPT = "Enter password for Stratis pool"
WRONG = (PROMPT, "a mistyped passphrase")
RIGHT = (PROMPT, "the passphrase of this machine")
EXPLAINED = ("the passphrase does not open pool sys", None)
EMERGENCY = ("Reached target emergency.target", session.END)


def boots():
    """Boots from pools; each scenario makes its root file system first."""
    return [
        Scenario("boot-dracut", "root file system and fstab on pools, with an initrd of dracut",
                 [_made("plain", "dracut"), _booted("dracut", "fstab", "healthy", "watched")], disks=BOOT_DISKS,
                 longer=True),
        Scenario("boot-initramfs-tools", "root file system on a pool, with an initrd of initramfs-tools",
                 [_made("plain", "initramfs-tools"), _booted("initramfs-tools", "fstab", "healthy", "watched")],
                 disks=BOOT_DISKS, longer=True),
        Scenario("boot-count", "many boots from a pool, the failed ones counted",
                 [_made("plain", "dracut"),
                  *[_booted("dracut", "fstab", "healthy")] * int(os.environ.get("BOOTS", "3"))],
                 disks=BOOT_DISKS, longer=True, counts_failures=True),
        Scenario("boot-degraded", "devices are missing or come late; thin pools that need a check, or are damaged",
                 [_made("plain", "dracut", "initramfs-tools"),
                  _booted("dracut", "fstab", words=PATIENT, absent=(0,), typed=((WAITS, session.Plug(0)),)),
                  _booted("initramfs-tools", "fstab", absent=(0,), typed=((WAITS, session.Plug(0)),)),
                  _booted("dracut", "fstab", words=PATIENT, absent=(1,), typed=((WAITS, session.Plug(1)),)),
                  _booted("dracut", "aux-missing", words=IMPATIENT, absent=(1,)),
                  _booted("dracut", words=IMPATIENT, absent=(0,), typed=(EMERGENCY,)),
                  Life("python3 -B boots.py mark"),
                  _booted("dracut", "fstab", "checked", "healthy"),
                  Life("python3 -B boots.py ruin"),
                  _booted("dracut", "aux-ruined", words=IMPATIENT)],
                 disks=BOOT_DISKS, longer=True),
        Scenario("boot-clevis", "root file system on an encrypted pool: a Tang server that answers, one that is down, the prompt",
                 [_made("clevis", "dracut-clevis", "initramfs-tools"),
                  _booted("dracut-clevis", "fstab", "healthy", "watched", words=("machine.tang=up",)),
                  _booted("dracut-clevis", "fstab", "explained", "healthy", typed=(WRONG, RIGHT)),
                  _booted("initramfs-tools", "fstab", "healthy", typed=(WRONG, EXPLAINED, RIGHT)),
                  _booted("dracut-clevis", words=PATIENT, typed=(WRONG, WRONG, WRONG, EMERGENCY))],
                 disks=BOOT_DISKS, longer=True),
        Scenario("boot-network", "fstab with _netdev on a pool that only a Tang server opens, which answers or is down",
                 [_made("network", "dracut"),
                  _booted("dracut", "network", "fstab", "healthy", "watched", words=("machine.tang=up",)),
                  _booted("dracut", "network-down", words=IMPATIENT)],
                 disks=BOOT_DISKS, longer=True),
    ]  # fmt: skip


def crash_states(seeds):
    return [
        Scenario(
            f"crash-states-{seed}",
            "the pool starts from recorded disks with lost, reordered and torn writes",
            [Life(f"python3 -B crash_states.py {seed} 12 {int(os.environ.get('CRASH_CUTS', '25'))}")],
            seed,
            # The first disk is divided into three of at least 1 GiB.
            disks=("4G", "4G", "4G"),
        )
        for seed in seeds
    ]


def clients():
    """Programs that use the daemon, unchanged from their packages."""

    def scenario(name, about, disks=DISKS):
        file = f"client_{name}.py"
        return Scenario(f"clients-{name}", about, [Life(f"PICTURES=1 {_pytest('-s', file)}")], disks=disks, seconds=1800,
                        longer=True, guest=facts.CLIENTS_GUEST, memory_mib=3072)  # fmt: skip

    return [
        scenario("stratis", "every subcommand of three versions of stratis-cli", ("40G", "8G", "8G")),
        scenario("cockpit", "Cockpit's storage page in a browser", ("8G", "8G", "8G")),
        scenario("blivet", "pools and filesystems by blivet, as Anaconda and the storage role drive it", ("8G", "8G", "8G")),
        scenario("snapm", "sets of snapshots by snapm"),
    ]


def all_scenarios(seeds, seconds):
    """All scenarios, with these seeds (None: a few); each life of a machine may take `seconds`."""
    scenarios = [
        Scenario("platform", "every call of the platform, without a daemon",
                 [Life(PLATFORM)]),
        Scenario("platform-encryption", "LUKS2 with re-encryption jobs killed at any moment, Clevis with Tang and a TPM",
                 [Life(f"{TPM} && export KILLS={int(os.environ.get('KILLS', '2'))} && {PLATFORM} encryption {LUKS_CHECKS}")],
                 longer=True),
        Scenario("simulation", "the simulation compared with the kernel: the same commands, the same status lines",
                 [Life(f"{PLATFORM} simulation {os.environ.get('CHECKS', '')}")]),
        Scenario("main-job", "create, mount, write, snapshot, rename, add a disk, destroy; links; both clients; blkid",
                 [Life(_pytest("test_main_job.py", "test_links.py", "test_clients.py"))]),
        Scenario("udev", "links survive every event and any contents; names that udev changes",
                 [Life(_pytest("test_udev.py", "-k 'not killed and not stopped and not messages and not code_point'"))]),
        Scenario("udev-workers", "udev workers are killed, udev is stopped, events are lost",
                 [Life(_pytest("test_udev.py", "-k 'killed or stopped or messages'"))]),
        Scenario("names", "what udev does with every code point",
                 [Life(_pytest("test_udev.py", "-k code_point"))], seconds=1800),
        Scenario("service", "the daemon is stopped, killed and started with filesystems mounted; keys survive",
                 [Life(_pytest("test_service.py", "test_keys.py"))]),
        Scenario("units", "what systemd says of the units; no second daemon beside stratisd",
                 [Life(_pytest("test_units.py"))]),
        Scenario("min", "pools without a bus, by stratis-min; stratisd takes over while data is written",
                 [Life(_pytest("test_min.py"))]),
        Scenario("bus-restarted", "the bus, udevd, or both are restarted under load; every pool is watched again",
                 [Life(_pytest("test_bus_restarted.py"))]),
        Scenario("sizes", "sizes of fractions of a sector, and devices larger than their records",
                 [Life(_pytest("test_sizes.py"))]),
        Scenario("snapshots", "what snapshots take of a pool; the kernel and xfs_repair accept their identity",
                 [Life(_pytest("-s", "test_snapshots.py"))]),
        Scenario("thin-check", "a killed thin_check is no damage; a repair keeps the old metadata",
                 [Life(_pytest("test_thin_check.py"))]),
        Scenario("private-mounts", "a filesystem below a private mount, or in a container, grows and is not kept busy",
                 [Life(_pytest("test_private_mounts.py"))]),
        Scenario("slow-start", "a pool whose disks do not answer delays no other pool at start-up",
                 [Life(_pytest("test_slow_start.py"))]),
        Scenario("stuck-program", "a program that not even a signal ends holds up its own request only",
                 [Life(_pytest("test_stuck_program.py"))]),
        Scenario("broker", "the system bus is dbus-broker: policy, client, the end of the bus",
                 [Life(_pytest("test_broker.py"))]),
        Scenario("old-pool", "a pool of metadata version 1",
                 [Life(_pytest("test_old_pool.py"))]),
        Scenario("cache", "a cache is created, extended, kept and removed; a device grows",
                 [Life(_pytest("test_cache.py"))]),
        Scenario("identity", "an older clone; a disk back under another node; a stop of a pool with a pulled disk",
                 [Life(_pytest("test_identity.py"))]),
        Scenario("tools", "prediction, dump, check, names and doctor on real pools; a pool made as version 1",
                 [Life(_pytest("test_tools.py"))]),
        Scenario("refusals", "bad input gives a clear error and changes nothing",
                 [Life(_pytest("test_refusals.py"))]),
        Scenario("run", "`make run DISKS=...` on a machine that never had a stratisd",
                 [Life(_pytest("test_run.py"))]),
        Scenario("growth", "filesystems filled at full speed, the low-water mark, full pools",
                 [Life(_pytest("-s", "test_growth.py"))], disks=LARGE_DISKS),
        Scenario("space", "data and thin metadata space run out and return; snapshots of crashed filesystems",
                 [Life(_pytest("-s", "test_space.py"))]),
        Scenario("many", "many pools, many filesystems",
                 [Life(_pytest("-s", "test_many.py"))], disks=LARGE_DISKS,
                 seconds=10 * float(os.environ.get("FILESYSTEMS", "0"))),
        Scenario("reboot", "two orderly reboots",
                 [Life(_pytest("reboot.py::test_before")), Life(_pytest("reboot.py::test_after")),
                  Life(_pytest("reboot.py::test_after"))]),
        Scenario("encryption", "encrypted pools: bindings, all unlock methods, no trace of secrets",
                 [Life(_pytest("test_encryption.py", "test_secrets.py", "test_pins.py"))]),
        Scenario("old-encryption", "an encrypted pool of metadata version 1",
                 [Life(_pytest("test_old_pool_encrypted.py"))], disks=(*SMALL_DISKS * 2, "16M")),
        Scenario("online-encryption", "re-encryption jobs on data in use, with kills and stops",
                 [Life(_pytest("test_online_encryption.py"))], disks=SMALL_DISKS),
        Scenario("start-encryption", "encrypted pools start in parallel",
                 [Life(_pytest("-s", "test_start_encrypted.py"))], disks=LARGE_DISKS, longer=True),
        Scenario("reboot-encryption", "encrypted pools before and after a reboot",
                 [Life(_pytest("reboot_encrypted.py::test_before_reboot")),
                  Life(_pytest("reboot_encrypted.py::test_after_reboot"))], disks=(*DISKS, NOTES)),
        *clients(),
        # scripts/test-packages builds what they install.
        Scenario("packages", "Debian packages: a first session, a reboot, upgrades under load, removal with mounts",
                 [Life(_pytest("-s", "test_packages.py::TestFirst")), Life(_pytest("-s", "test_packages.py::TestAfterReboot"))],
                 longer=True, keep_root=True),
        *boots(),
        *encryption_cuts(seeds or [1]),
        *power_cuts(seeds or [1, 2, 3]),
        *crash_states((seeds or [1])[:1]),
    ]  # fmt: skip
    for scenario in scenarios:
        scenario.seconds = max(seconds, scenario.seconds)
    return scenarios
