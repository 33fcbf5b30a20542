//! LUKS2 devices on a real kernel: opened, resized, encrypted, re-encrypted and decrypted under a
//! mounted file system.

pub(crate) mod killed;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use rustix::event::{Timespec, poll};
use stratisd::{
    base::units::{Bytes, Sectors},
    platform::{
        Error, Platform, Program, WriteStep,
        dm::{Line, Target, Visibility},
        keyring::Secret,
        linux::luks::Luks,
        luks::{
            Begin, Cost, DataEncryption, FormatPurpose, Header, HeaderChange, HeaderLayout, NewKeyslot, Progress,
            ReencryptionEnd, ReencryptionMode, Unlock,
        },
    },
};
use zeroize::Zeroizing;

use crate::{Check, LIMIT, Machine, POOL, clevis::unseen, command};

pub(crate) const CHECKS: &[Check] = &[
    ("a LUKS device is opened, resized and closed", life),
    ("a failed open leaves no device", refusals),
    ("volume keys are kept in the process keyring", volume_keys),
    ("eight LUKS devices are opened in parallel", side_by_side),
    ("data in use is encrypted, re-encrypted and decrypted", works),
    ("a re-encryption job is interrupted and resumed", interrupted),
    ("a killed re-encryption job is recovered", killed::killed),
    ("a re-encryption job ends with its daemon", killed::daemon_killed),
    ("a re-encryption job and its daemon are killed", killed::both_killed),
    ("a re-encryption job meets unreadable sectors", killed::not_read),
    ("a re-encryption job meets unwritable sectors", killed::not_written),
];

/// XFS needs at least 300 MiB.
const SIZE: u64 = 440 << 11;
const DATA: u64 = 34816;
const LAYOUT: HeaderLayout = HeaderLayout {
    metadata: Bytes(64 << 10),
    keyslots: Bytes(16352 << 10),
    data_offset: Sectors(DATA),
    sector_size: Some(4096),
};
/// Path of the platform's private mounts, as this process sees them.
const PLACE: &str = "/run/stratisd/ns_mounts";
const PASSPHRASES: [&str; 2] = ["hunter2", "correct horse"];
/// The number of kills of a job. `KILLS=number` sets another.
const KILLS: u32 = 6;

fn secret(text: &str) -> Secret {
    Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
}

fn unlock(passphrase: &Secret) -> Unlock<'_> {
    Unlock { passphrase, keyslot: None }
}

fn keyslot(number: u32, passphrase: &Secret) -> NewKeyslot<'_> {
    NewKeyslot { number, passphrase, cost: Cost::Random }
}

/// A LUKS device on a range of a disk, and its crypt device.
struct LuksDevice<'a> {
    machine: &'a Machine,
    base: String,
    device: PathBuf,
    name: String,
    passphrase: Secret,
    other: Secret,
}

impl<'a> LuksDevice<'a> {
    /// The range of the disk, without contents.
    fn new(machine: &'a Machine, role: &str, disk: usize, start: u64, length: u64) -> LuksDevice<'a> {
        let (base, _) = machine.linear(role, disk, start, length);
        let device = machine.linux.dm_node(&base);
        let name = machine.private(&format!("{role}-crypt"));
        let [passphrase, other] = PASSPHRASES.map(secret);
        // Contents from an earlier check must not look like a header.
        let zeros = vec![0; 1 << 20];
        let steps: Vec<_> = (0..17).map(|mib| WriteStep::At(mib << 20, &zeros)).collect();
        machine.linux.write(&device, &steps).unwrap();
        LuksDevice { machine, base, device, name, passphrase, other }
    }

    fn format(&self, purpose: FormatPurpose) -> Header {
        let keyslots = [keyslot(0, &self.passphrase), keyslot(1, &self.other)];
        // The sector size must not exceed that of the file system on it.
        let sector_size = if purpose == FormatPurpose::Encrypt { Some(512) } else { LAYOUT.sector_size };
        let layout = HeaderLayout { sector_size, ..LAYOUT };
        self.machine.linux.luks_format(&self.device, &layout, purpose, &keyslots, &BTreeMap::new()).unwrap()
    }

    fn open(&self) -> Secret {
        self.machine.linux.luks_open(&self.device, Some(&self.name), unlock(&self.passphrase)).unwrap()
    }

    fn header(&self) -> Header {
        self.machine.linux.luks_read(&self.device).unwrap().unwrap()
    }

    fn key(&self) -> Secret {
        self.machine.linux.luks_open(&self.device, None, unlock(&self.other)).unwrap()
    }

    fn node(&self) -> PathBuf {
        self.machine.linux.dm_node(&self.name)
    }

    fn work(&self, begin: Begin, watch: &(dyn Fn(Progress) -> bool + Sync)) -> Result<ReencryptionEnd, Error> {
        self.machine.linux.luks_reencrypt(&self.device, &self.name, unlock(&self.passphrase), begin, watch)
    }

    /// Adds the keyslots for a new volume key.
    fn prepare(&self) -> Begin {
        let keyslots = self.header().keyslots;
        let from = *keyslots.first().unwrap();
        let free: Vec<u32> = (0..32).filter(|number| !keyslots.contains(number)).take(2).collect();
        // Each passphrase gets a keyslot for the next key besides its present one. Opening a
        // keyslot shows whether it belongs to the passphrase.
        let opens = |slot: u32| {
            let unlock = Unlock { passphrase: &self.passphrase, keyslot: Some(slot) };
            self.machine.linux.luks_open(&self.device, None, unlock).is_ok()
        };
        let from = keyslots.iter().copied().find(|slot| opens(*slot)).unwrap_or(from);
        let changes = [
            HeaderChange::AddNextKeyslot(keyslot(free[0], &self.passphrase)),
            HeaderChange::AddNextKeyslot(keyslot(free[1], &self.other)),
        ];
        self.machine.linux.luks_change(&self.device, Some(unlock(&self.passphrase)), &changes).unwrap();
        Begin::Reencrypt { from, to: free[0] }
    }

    /// Devices of a re-encryption job that still exist.
    fn left(&self) -> Vec<String> {
        let listed = self.machine.linux.dm_list().unwrap().into_iter().map(|listed| listed.name);
        listed.filter(|name| name.starts_with(&self.name) && *name != self.name).collect()
    }

    /// Whether I/O to a part of the device waits for the end of a step.
    fn is_held_back(&self) -> bool {
        let name = format!("{}-hotzone-forward", self.name);
        self.machine.linux.dm_find(&name).unwrap().is_some_and(|found| found.suspended)
    }

    fn remove(self) {
        let linux = &self.machine.linux;
        if linux.dm_find(&self.name).unwrap().is_some() {
            linux.dm_remove(&self.name).unwrap();
        }
        linux.dm_remove(&self.base).unwrap();
    }
}

/// A file system with known file contents, on a device whose table can be replaced below it.
struct Files<'a> {
    machine: &'a Machine,
    device: String,
    at: &'static str,
}

const FILES: u64 = 10;
const FILE_BYTES: usize = 16 << 20;

impl<'a> Files<'a> {
    fn line(&self, below: &str, offset: u64) -> Line {
        let number = self.machine.linux.dm_find(below).unwrap().unwrap().number;
        Line::linear(Sectors(0), Sectors(SIZE - DATA), number, Sectors(offset))
    }

    fn new(machine: &'a Machine, below: &str, offset: u64) -> Files<'a> {
        let files = Files { machine, device: machine.private("files"), at: "files" };
        files.up(below, offset);
        machine.linux.run(Program::MkfsXfs, &["-f", "-q", &files.node()]).unwrap();
        files.mount();
        for number in 0..FILES {
            fs::write(files.path(&format!("file{number}")), content(number)).unwrap();
        }
        rustix::fs::sync();
        files
    }

    fn up(&self, below: &str, offset: u64) {
        let line = [self.line(below, offset)];
        self.machine.linux.dm_create(&self.device, &self.device, &line, Visibility::Private).unwrap();
    }

    /// Puts another device below the file system while the file system is in use.
    fn move_to(&self, below: &str, offset: u64) {
        let linux = &self.machine.linux;
        linux.dm_suspend(&self.device, true).unwrap();
        linux.dm_load(&self.device, &[self.line(below, offset)]).unwrap();
        linux.dm_resume(&self.device, Visibility::Private).unwrap();
    }

    fn node(&self) -> String {
        self.machine.linux.dm_node(&self.device).to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(PLACE).join(self.at).join(name)
    }

    fn mount(&self) {
        self.machine.linux.mount(Path::new(&self.node()), self.at, "").unwrap();
    }

    /// Reads all files from the disk.
    fn check(&self) {
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        for number in 0..FILES {
            assert!(fs::read(self.path(&format!("file{number}"))).unwrap() == content(number), "file{number}");
        }
    }

    fn down(&self) {
        self.machine.linux.unmount(self.at).unwrap();
        self.machine.linux.dm_remove(&self.device).unwrap();
    }
}

/// The contents of a file. No two blocks of it are equal, and none is equal to a block of another
/// file.
fn content(number: u64) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let noise = |word: u64| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).to_le_bytes();
    let block: Vec<u8> = (0..BLOCK as u64 / 8).flat_map(noise).collect();
    let mut bytes = block.repeat(FILE_BYTES / BLOCK);
    for (index, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
        block[..8].copy_from_slice(&noise(number << 32 | index as u64));
    }
    bytes
}

/// Writes, flushes and reads back files while `work` runs. Returns the result of `work` and the
/// number of files.
fn writing<T>(files: &Files<'_>, work: impl FnOnce() -> T) -> (T, u32) {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (done, count) = (AtomicBool::new(false), AtomicU32::new(0));
    let result = thread::scope(|scope| {
        // Ends the writer even when `work` panics.
        let _done = Done(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let round = count.fetch_add(1, Ordering::Relaxed);
                let path = files.path(&format!("written{}", round % 50));
                let bytes = round.to_le_bytes().repeat(50_000);
                let mut file = fs::File::create(&path).unwrap();
                file.write_all(&bytes).unwrap();
                file.sync_all().unwrap();
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                assert!(fs::read(&path).unwrap() == bytes, "round {round}");
            }
        });
        work()
    });
    (result, count.into_inner())
}

fn life(machine: &Machine) {
    let linux = &machine.linux;
    let luks_device = LuksDevice::new(machine, "base", 0, 2048, SIZE);
    let header = luks_device.format(FormatPurpose::New);
    assert_eq!(header.state, DataEncryption::Encrypted);
    let key = luks_device.open();
    let device = linux.dm_find(&luks_device.name).unwrap().unwrap();
    assert!(device.uuid.starts_with("CRYPT-LUKS2-") && device.uuid.ends_with(&luks_device.name), "{}", device.uuid);
    let below = linux.dm_find(&luks_device.base).unwrap().unwrap().number;
    let crypt = |length| Line {
        start: Sectors(0),
        length: Sectors(length),
        target: Target::Crypt {
            cipher: "aes-xts-plain64".to_owned(),
            iv_offset: Sectors(0),
            device: below,
            offset: Sectors(DATA),
        },
    };
    assert_eq!(device.table, [crypt(SIZE - DATA)]);
    // The kernel reports which key the table uses, but not the key itself.
    let table = command("dmsetup", &["table", "--showkeys", &luks_device.name]);
    assert!(table.contains(":64:logon:cryptsetup:") && table.contains("sector_size:4096"), "{table}");
    assert!(key.same(luks_device.key().bytes()));

    let node = luks_device.node();
    linux.write(&node, &[WriteStep::At(4096, b"in the clear"), WriteStep::Flush]).unwrap();
    let raw = linux.read(&luks_device.device, DATA * 512 + 4096, 4096).unwrap();
    assert!(raw.windows(12).all(|window| window != b"in the clear"));

    // Opening under a name in use is an error, and the device with that name stays.
    let again =
        linux.luks_open(&luks_device.device, Some(&luks_device.name), unlock(&luks_device.passphrase)).unwrap_err();
    println!("        ({again})");
    assert_eq!(linux.dm_find(&luks_device.name).unwrap().unwrap().table, [crypt(SIZE - DATA)]);

    let resize = |size: Option<u64>| {
        linux.luks_resize(&luks_device.device, &luks_device.name, &key, size.map(Sectors)).unwrap();
        linux.geometry(&node).unwrap().size.0
    };
    assert_eq!(resize(Some(100 << 11)), 100 << 11);
    assert_eq!(resize(None), SIZE - DATA);
    let larger = [Line::linear(Sectors(0), Sectors(SIZE + 8192), machine.disk(0).number, Sectors(2048))];
    linux.dm_load(&luks_device.base, &larger).unwrap();
    linux.dm_resume(&luks_device.base, Visibility::Private).unwrap();
    assert_eq!(resize(None), SIZE + 8192 - DATA);
    let wrong = linux.luks_resize(&luks_device.device, &luks_device.name, &secret(&"x".repeat(64)), None).unwrap_err();
    println!("        ({wrong})");
    assert_eq!(linux.geometry(&node).unwrap().size.0, SIZE + 8192 - DATA);

    linux.dm_remove(&luks_device.name).unwrap();
    assert!(!node.exists());
    assert!(luks_device.open().same(key.bytes()));
    assert!(linux.read(&node, 4096, 512).unwrap().starts_with(b"in the clear"));
    luks_device.remove();
}

fn refusals(machine: &Machine) {
    let linux = &machine.linux;
    let luks_device = LuksDevice::new(machine, "base", 0, 2048, SIZE);
    luks_device.format(FormatPurpose::New);
    let before = linux.dm_list().unwrap();
    let looked = unseen(luks_device.passphrase.bytes(), || drop(luks_device.key()));
    assert!(looked > 0);
    let wrong = secret("wrong");
    let error = linux.luks_open(&luks_device.device, Some(&luks_device.name), unlock(&wrong)).unwrap_err();
    assert!(matches!(error, Error::WrongKey { .. }), "{error}");
    // The device is in use by another one: a file system directly on it would be damaged.
    let number = linux.dm_find(&luks_device.base).unwrap().unwrap().number;
    let other = machine.private("other");
    let line = [Line::linear(Sectors(0), Sectors(SIZE), number, Sectors(0))];
    linux.dm_create(&other, &other, &line, Visibility::Private).unwrap();
    let error =
        linux.luks_open(&luks_device.device, Some(&luks_device.name), unlock(&luks_device.passphrase)).unwrap_err();
    assert!(error.is_busy(), "{error:?}");
    linux.dm_remove(&other).unwrap();
    assert_eq!(linux.dm_list().unwrap(), before);
    luks_device.open();
    luks_device.remove();
}

fn volume_keys(machine: &Machine) {
    let linux = &machine.linux;
    let name = format!("stratis-1-vk-{POOL}");
    assert!(linux.volume_key_read(&name).unwrap().is_none());
    for text in ["first", "second, longer"] {
        linux.volume_key_set(&name, &secret(text)).unwrap();
        assert!(linux.volume_key_read(&name).unwrap().unwrap().same(text.as_bytes()));
        // Threads that are started later see the key; other processes do not, nor does the
        // persistent keyring.
        thread::scope(|scope| {
            scope.spawn(|| assert!(linux.volume_key_read(&name).unwrap().unwrap().same(text.as_bytes())));
        });
        assert!(!linux.key_list().unwrap().contains(&name));
        let shown = fs::read_to_string("/proc/keys").unwrap();
        let line = shown.lines().find(|line| line.contains(&name)).unwrap();
        assert!(line.contains(" 003f0000 "), "{line}");
    }
    assert!(linux.volume_key_unset(&name).unwrap());
    assert!(!linux.volume_key_unset(&name).unwrap());
    assert!(linux.volume_key_read(&name).unwrap().is_none());
}

/// Uses the key derivation cost of passphrases that people remember.
fn side_by_side(machine: &Machine) {
    let linux = &machine.linux;
    const COUNT: u64 = 8;
    let length = 20 << 11;
    let make = |index: u64| LuksDevice::new(machine, &format!("base{index}"), 0, 2048 + index * length, length);
    let luks_devices: Vec<LuksDevice<'_>> = (0..COUNT).map(make).collect();
    let first = &luks_devices[0];
    let new = NewKeyslot { number: 0, passphrase: &first.passphrase, cost: Cost::Guessable };
    linux.luks_format(&first.device, &LAYOUT, FormatPurpose::New, &[new], &BTreeMap::new()).unwrap();
    // The library needs long to choose the cost, so all devices use copies of one header.
    for start in (0..DATA * 512).step_by(1 << 20) {
        let bytes = linux.read(&first.device, start, 1 << 20).unwrap();
        for luks_device in &luks_devices[1..] {
            linux.write(&luks_device.device, &[WriteStep::At(start, &bytes)]).unwrap();
        }
    }
    let begun = Instant::now();
    luks_devices[0].open();
    let one = begun.elapsed();
    linux.dm_remove(&luks_devices[0].name).unwrap();
    let begun = Instant::now();
    thread::scope(|scope| {
        for luks_device in &luks_devices {
            scope.spawn(|| luks_device.open());
        }
    });
    println!("        (one: {} ms, {COUNT}: {} ms)", one.as_millis(), begun.elapsed().as_millis());
    luks_devices.into_iter().for_each(LuksDevice::remove);
}

fn works(machine: &Machine) {
    let linux = &machine.linux;
    let luks_device = LuksDevice::new(machine, "base", 0, 2048, SIZE);
    let files = Files::new(machine, &luks_device.base, DATA);
    let clear =
        |luks_device: &LuksDevice<'_>| linux.read(&luks_device.device, DATA * 512, 512).unwrap().starts_with(b"XFSB");
    assert!(clear(&luks_device));

    let header = luks_device.format(FormatPurpose::Encrypt);
    assert_eq!(header.state, DataEncryption::Unfinished { mode: ReencryptionMode::Encrypt, done: Bytes(0) });
    luks_device.open();
    files.move_to(&luks_device.name, 0);
    files.check();
    let seen = Mutex::new(Vec::new());
    let note = |progress: Progress| {
        seen.lock().push(progress);
        true
    };
    let (ended, rounds) = writing(&files, || luks_device.work(Begin::Resume, &note).unwrap());
    let total = Sectors(SIZE - DATA).bytes();
    let all = std::mem::take(&mut *seen.lock());
    println!("        (encrypted: {} progress reports, {rounds} files written meanwhile)", all.len());
    assert_eq!(ended, ReencryptionEnd::Finished);
    assert!(all.windows(2).all(|pair| pair[0].done <= pair[1].done) && all.iter().all(|one| one.total == total));
    assert_eq!((all[0].done, all[all.len() - 1].done), (Bytes(0), total));
    assert_eq!(luks_device.header().state, DataEncryption::Encrypted);
    assert!(luks_device.left().is_empty() && !clear(&luks_device));
    files.check();
    let key = luks_device.key();

    let begin = luks_device.prepare();
    let (ended, rounds) = writing(&files, || luks_device.work(begin, &note).unwrap());
    println!("        (re-encrypted: {rounds} files written meanwhile)");
    assert_eq!(ended, ReencryptionEnd::Finished);
    let header = luks_device.header();
    assert_eq!((header.state, header.keyslots.len()), (DataEncryption::Encrypted, 2));
    assert!(!luks_device.key().same(key.bytes()));
    files.check();
    // Checks the contents of the disk, not only what the crypt device returns.
    files.down();
    linux.dm_remove(&luks_device.name).unwrap();
    luks_device.open();
    files.up(&luks_device.name, 0);
    files.mount();
    files.check();

    let (ended, rounds) = writing(&files, || luks_device.work(Begin::Decrypt, &note).unwrap());
    println!("        (decrypted: {rounds} files written meanwhile)");
    assert_eq!(ended, ReencryptionEnd::Finished);
    assert_eq!(luks_device.header().state, DataEncryption::Clear);
    files.check();
    assert!(clear(&luks_device));
    files.move_to(&luks_device.base, DATA);
    // The library has asked the kernel to remove the crypt device as soon as it is unused.
    assert_eq!(linux.dm_find(&luks_device.name).unwrap(), None);
    files.check();
    files.down();
    luks_device.remove();
}

/// Stops the job once some of the data is done.
fn some(progress: Progress) -> bool {
    progress.done == Bytes(0)
}

fn done(luks_device: &LuksDevice<'_>, work: ReencryptionMode) -> u128 {
    match luks_device.header().state {
        DataEncryption::Unfinished { mode: present, done } if present == work => done.0 >> 20,
        state => panic!("{state:?}"),
    }
}

fn interrupted(machine: &Machine) {
    let linux = &machine.linux;
    let luks_device = LuksDevice::new(machine, "base", 0, 2048, SIZE);
    let files = Files::new(machine, &luks_device.base, DATA);
    luks_device.format(FormatPurpose::Encrypt);
    luks_device.open();
    files.move_to(&luks_device.name, 0);
    let reopen = || {
        files.down();
        linux.dm_remove(&luks_device.name).unwrap();
        luks_device.open();
        files.up(&luks_device.name, 0);
        files.mount();
        files.check();
    };
    // An interruption before the job has done anything.
    assert_eq!(luks_device.work(Begin::Resume, &|_| false).unwrap(), ReencryptionEnd::Interrupted);
    assert_eq!(done(&luks_device, ReencryptionMode::Encrypt), 0);
    assert!(luks_device.left().is_empty());
    for (work, begin) in [
        (ReencryptionMode::Encrypt, None),
        (ReencryptionMode::Reencrypt, Some(())),
        (ReencryptionMode::Decrypt, Some(())),
    ] {
        let begin = match (work, begin) {
            (ReencryptionMode::Reencrypt, _) => luks_device.prepare(),
            (ReencryptionMode::Decrypt, _) => Begin::Decrypt,
            (ReencryptionMode::Encrypt, _) => Begin::Resume,
        };
        let (ended, _) = writing(&files, || luks_device.work(begin, &some).unwrap());
        assert_eq!(ended, ReencryptionEnd::Interrupted);
        let before = done(&luks_device, work);
        println!("        ({work:?}: stopped at {before} MiB)");
        assert!(before > 0 && luks_device.left().is_empty());
        files.check();
        // No other job can start, and the header refuses changes. Both parts of the data can be
        // read, also after a new open.
        assert!(
            luks_device
                .work(if work == ReencryptionMode::Decrypt { other_job() } else { Begin::Decrypt }, &|_| true)
                .is_err()
        );
        reopen();
        let key = luks_device.key();
        assert_eq!(key.bytes().len(), 64);
        // A signal stops the job as well.
        let (ended, _) = writing(&files, || {
            let told = AtomicBool::new(false);
            luks_device.work(Begin::Resume, &|progress| {
                if progress.done.0 >> 20 > before && !told.swap(true, Ordering::Relaxed) {
                    kill(killed::child().unwrap(), Signal::SIGTERM).unwrap();
                }
                true
            })
        });
        assert_eq!(ended.unwrap(), ReencryptionEnd::Interrupted);
        assert!(done(&luks_device, work) > before && luks_device.left().is_empty());
        let (ended, _) = writing(&files, || luks_device.work(Begin::Resume, &|_| true).unwrap());
        assert_eq!(ended, ReencryptionEnd::Finished);
        files.check();
        if work == ReencryptionMode::Decrypt {
            assert_eq!(luks_device.header().state, DataEncryption::Clear);
        } else {
            assert_eq!(luks_device.header().state, DataEncryption::Encrypted);
            // The key that `luks_open` returned in the middle of the job is the final one.
            assert!(luks_device.key().same(key.bytes()));
            reopen();
        }
    }
    files.down();
    luks_device.remove();
}

/// A job that cannot start while another is unfinished.
fn other_job() -> Begin {
    Begin::Reencrypt { from: 0, to: 1 }
}
