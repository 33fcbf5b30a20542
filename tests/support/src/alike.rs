//! Comparisons of the simulation with the kernel: the same commands must give the same status
//! lines. Each function runs on both. Counts of thin-pool metadata blocks, which the simulation
//! only estimates, are not compared.

use std::{
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use stratisd::{
    base::units::{DataBlocks, Sectors},
    engine::metadata::{LogEnd, SUPERBLOCK_BYTES_MAX, XfsIdentity},
    platform::{
        DeviceAction, DeviceClass, DeviceNumber, Platform, Program, Result, WriteStep,
        dm::{Line, Target, Visibility},
    },
};

use crate::examples::SIGNATURE_BLOCK;

/// Longest wait for something that must happen.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The pool UUID in the names of all devices made here. No such device is left at the end.
const POOL: &str = "0123456789abcdef0123456789abcdef";
const UUID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
const OTHER: &str = "11111111-2222-4333-8444-555555555555";
/// Start of the thin pool's data on the disk; its metadata comes before.
const DATA: u64 = 1 << 16;
const MIB: u64 = 1 << 20;

/// A machine with a disk of at least 3 GiB that may be overwritten, simulated or real.
pub trait Place: Sync {
    /// The machine.
    fn platform(&self) -> &dyn Platform;
    /// The disk.
    fn disk(&self) -> &Path;
    /// Mounts a filesystem as a user.
    fn mount(&self, node: &Path, at: &Path);
    /// Unmounts as a user.
    fn unmount(&self, at: &Path);
    /// Lets the kernel's `no_space_timeout` pass, while a write and a suspend wait for space.
    fn lose_patience(&self);
    /// Stops udev's event processing.
    fn hold_udev(&self);
    /// Resumes udev's event processing.
    fn release_udev(&self);
}

fn name(role: &str) -> String {
    format!("stratis-1-private-{POOL}-{role}")
}

/// A thin pool and its devices.
struct ThinPool<'a> {
    platform: &'a dyn Platform,
    disk: DeviceNumber,
    /// Sectors per data block.
    block: u64,
    name: String,
    number: DeviceNumber,
}

impl<'a> ThinPool<'a> {
    /// Creates the pool with this many metadata blocks (4 KiB) and data blocks.
    fn new(place: &'a dyn Place, metadata: u64, block: u64, blocks: u64) -> ThinPool<'a> {
        let platform = place.platform();
        let disk = platform.find_device(place.disk()).unwrap().number;
        platform.write(place.disk(), &[WriteStep::At(0, &[0; 4096]), WriteStep::Flush]).unwrap();
        let make = |role: &str, table: &[Line]| {
            platform.dm_create(&name(role), &name(role), table, Visibility::Private).unwrap()
        };
        let meta = make("flex-thinmeta", &linear(disk, 0, metadata * 8));
        let data = make("flex-thindata", &linear(disk, DATA, blocks * block));
        let number = make("thinpool-pool", &pool_table(meta, data, block, blocks));
        ThinPool { platform, disk, block, name: name("thinpool-pool"), number }
    }

    /// Used and total data blocks, mode, behaviour when out of space, and whether the pool needs a
    /// check.
    fn status(&self) -> String {
        let status = self.platform.dm_status(&self.name).unwrap().remove(0);
        println!("        {status}");
        let words: Vec<&str> = status.split_ascii_whitespace().collect();
        match words[..] {
            [_, _, data, _, mode, _, no_space, check, ..] => format!("{data} {mode} {no_space} {check}"),
            _ => status,
        }
    }

    /// Waits for device-mapper events until the status is as wanted.
    fn wait_for(&self, wanted: &str) {
        let mut events = self.platform.dm_events().unwrap();
        loop {
            events.arm().unwrap();
            let status = self.status();
            if status == wanted {
                return;
            }
            assert!(readable(events.fd()), "{status}, not {wanted}");
        }
    }

    /// Loads the pool's table again, with this many data blocks, and resumes the pool.
    fn renew(&self, blocks: u64) {
        let number = |role: &str| self.platform.dm_find(&name(role)).unwrap().unwrap().number;
        let table = pool_table(number("flex-thinmeta"), number("flex-thindata"), self.block, blocks);
        self.platform.dm_load(&self.name, &table).unwrap();
        self.platform.dm_resume(&self.name, Visibility::Private).unwrap();
    }

    fn resize(&self, role: &str, start: u64, length: u64) {
        self.platform.dm_load(&name(role), &linear(self.disk, start, length)).unwrap();
        self.platform.dm_resume(&name(role), Visibility::Private).unwrap();
    }

    fn message(&self, message: &str) -> Result<()> {
        self.platform.dm_message(&self.name, message)
    }

    /// Creates and activates a thin device.
    fn thin(&self, id: u32, sectors: u64) -> Thin<'a> {
        self.message(&format!("create_thin {id}")).unwrap();
        self.up(id, sectors)
    }

    fn up(&self, id: u32, sectors: u64) -> Thin<'a> {
        let name = format!("stratis-1-{POOL}-thin-fs-{id:032}");
        let target = Target::Thin { pool: self.number, id };
        let table = [Line { start: Sectors(0), length: Sectors(sectors), target }];
        let number = self.platform.dm_create(&name, &name, &table, Visibility::Public).unwrap();
        Thin { platform: self.platform, node: self.platform.dm_node(&name), number, name }
    }

    fn remove(self) {
        for role in ["thinpool-pool", "flex-thindata", "flex-thinmeta"] {
            self.platform.dm_remove(&name(role)).unwrap();
        }
    }
}

struct Thin<'a> {
    platform: &'a dyn Platform,
    node: PathBuf,
    number: DeviceNumber,
    name: String,
}

impl Thin<'_> {
    /// Writes durably. Returns the errno, 0 on success.
    fn write(&self, offset: u64, bytes: &[u8]) -> i32 {
        errno(&self.platform.write(&self.node, &[WriteStep::At(offset, bytes), WriteStep::Flush]))
    }

    fn mkfs(&self, uuid: &str) {
        self.mkfs_with(uuid, &[]);
    }

    fn mkfs_with(&self, uuid: &str, more: &[&str]) {
        let (node, uuid) = (self.node.to_str().unwrap(), format!("uuid={uuid}"));
        let arguments = [&["-f", "-q", node, "-m", &uuid, "-i", "nrext64=0"], more].concat();
        self.platform.run(Program::MkfsXfs, &arguments).unwrap();
    }

    /// The XFS on the device, as the engine understands it.
    fn identity(&self) -> XfsIdentity {
        XfsIdentity::read(&self.platform.read(&self.node, 0, SUPERBLOCK_BYTES_MAX).unwrap()).unwrap()
    }

    fn log_end(&self) -> LogEnd {
        self.identity().log_end(|offset, length| self.platform.read(&self.node, offset, length)).unwrap()
    }

    /// Data blocks that the device maps.
    fn mapped_mib(&self) -> u64 {
        let status = self.platform.dm_status(&self.name).unwrap().remove(0);
        status.split(' ').next().unwrap().parse::<u64>().unwrap() / 2048
    }

    /// UUID of the XFS on the device.
    fn uuid(&self) -> String {
        let superblock = self.platform.read(&self.node, 0, 512).unwrap();
        uuid::Uuid::from_slice(&superblock[32..48]).unwrap().to_string()
    }

    fn set_uuid(&self, uuid: &str) -> Result<String> {
        self.platform.run(Program::XfsDb, &["-x", "-c", &format!("uuid {uuid}"), self.node.to_str().unwrap()])
    }

    fn remove(self) {
        self.platform.dm_remove(&self.name).unwrap();
    }
}

fn linear(disk: DeviceNumber, start: u64, length: u64) -> Vec<Line> {
    vec![Line::linear(Sectors(0), Sectors(length), disk, Sectors(start))]
}

fn pool_table(metadata: DeviceNumber, data: DeviceNumber, block: u64, blocks: u64) -> Vec<Line> {
    let target = Target::ThinPool {
        metadata,
        data,
        block: Sectors(block),
        low_water: DataBlocks(0),
        features: vec!["no_discard_passdown".to_owned(), "skip_block_zeroing".to_owned()],
    };
    vec![Line { start: Sectors(0), length: Sectors(block * blocks), target }]
}

fn errno<T>(result: &Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.errno().unwrap_or_else(|| panic!("no errno: {error}")),
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(LIMIT).unwrap())).unwrap() > 0
}

/// A pool without metadata space is read-only, but not damaged. More metadata space makes it
/// writable again.
pub fn metadata_space(place: &dyn Place) {
    let pool = ThinPool::new(place, 64, 128, 1000);
    let thin = pool.thin(0, 1 << 20);
    assert_eq!(thin.write(0, b"mapped"), 0);
    assert_eq!(pool.status(), "1/1000 rw queue_if_no_space -");
    let refused = (1..).map(|id| pool.message(&format!("create_thin {id}"))).find(Result::is_err).unwrap();
    assert_eq!(errno(&refused), nix::libc::EOPNOTSUPP);
    assert_eq!(pool.status(), "1/1000 ro queue_if_no_space -");
    assert_eq!(thin.write(MIB, b"unmapped"), nix::libc::EIO);
    // Mapped blocks can be written, because nothing must be committed.
    assert_eq!(thin.write(0, b"written"), 0);
    assert_eq!(place.platform().read(&thin.node, 1, 3).unwrap(), *b"rit");
    // A resume with the same live table changes nothing. When the same table is loaded again, the
    // pool checks its metadata once more.
    place.platform().dm_suspend(&pool.name, false).unwrap();
    place.platform().dm_resume(&pool.name, Visibility::Private).unwrap();
    assert_eq!(errno(&pool.message("create_thin 1000")), nix::libc::EOPNOTSUPP);
    pool.renew(1000);
    assert_eq!(pool.status(), "1/1000 rw queue_if_no_space -");
    assert_eq!(errno(&pool.message("create_thin 1000")), 0);
    assert_eq!(pool.status(), "1/1000 ro queue_if_no_space -");
    // More metadata space.
    pool.resize("flex-thinmeta", 0, 128 * 8);
    pool.renew(1000);
    assert_eq!(pool.status(), "1/1000 rw queue_if_no_space -");
    assert_eq!(errno(&pool.message("create_thin 1001")), 0);
    assert_eq!(thin.write(MIB, b"unmapped"), 0);
    assert_eq!(pool.status(), "2/1000 rw queue_if_no_space -");
    thin.remove();
    pool.remove();
}

/// A deletion is refused without metadata space. It succeeds after the table has been loaded again.
pub fn metadata_deletion(place: &dyn Place) {
    let pool = ThinPool::new(place, 64, 128, 1000);
    let made = (0..).take_while(|id| pool.message(&format!("create_thin {id}")).is_ok()).count();
    assert_eq!(errno(&pool.message("delete 0")), nix::libc::EOPNOTSUPP);
    pool.renew(1000);
    for id in 0..made / 2 {
        assert_eq!(errno(&pool.message(&format!("delete {id}"))), 0, "{id} of {made}");
    }
    assert_eq!(pool.status(), "0/1000 rw queue_if_no_space -");
    assert_eq!(errno(&pool.message("create_thin 1000")), 0);
    pool.remove();
}

/// A transaction that maps many blocks at once runs out of metadata space halfway and is aborted.
pub fn metadata_overrun(place: &dyn Place) {
    let pool = ThinPool::new(place, 32, 128, 10_000);
    let thin = pool.thin(0, 10_000 * 128);
    assert_eq!(thin.write(0, &vec![1; 512 << 20]), nix::libc::EIO);
    let status = pool.status();
    // How much was committed before depends on timing.
    assert!(status.ends_with(" ro queue_if_no_space needs_check"), "{status}");
    pool.resize("flex-thinmeta", 0, 128 * 8);
    pool.renew(10_000);
    assert!(pool.status().ends_with(" ro queue_if_no_space needs_check"));
    thin.remove();
    for role in ["thinpool-pool", "flex-thindata"] {
        place.platform().dm_remove(&name(role)).unwrap();
    }
    let metadata = place.platform().dm_node(&name("flex-thinmeta"));
    place.platform().run(Program::ThinCheck, &["--auto-repair", metadata.to_str().unwrap()]).unwrap();
    place.platform().dm_remove(&name("flex-thinmeta")).unwrap();
}

/// A pool that is out of data space queues writes until its timeout. A suspend with flush of the
/// written device waits with them.
pub fn patience(place: &dyn Place) {
    let platform = place.platform();
    let pool = ThinPool::new(place, 1024, 2048, 4);
    let thin = pool.thin(0, 1 << 20);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| thin.write(0, &vec![7; 6 * MIB as usize]));
        pool.wait_for("4/4 out_of_data_space queue_if_no_space -");
        // A suspend of the pool itself does not wait.
        platform.dm_suspend(&pool.name, true).unwrap();
        platform.dm_resume(&pool.name, Visibility::Private).unwrap();
        let holder = scope.spawn(|| (errno(&platform.dm_suspend(&thin.name, true)), pool.status()));
        place.lose_patience();
        let (suspended, status) = holder.join().unwrap();
        // A flush of the page cache reports a failed write, unless the writer already got the
        // error.
        assert!([0, nix::libc::EIO].contains(&suspended), "{suspended}");
        assert_eq!(status, "4/4 out_of_data_space error_if_no_space -");
        // ENOSPC, which the page cache turns into EIO.
        assert_ne!(writer.join().unwrap(), 0);
    });
    platform.dm_resume(&thin.name, Visibility::Public).unwrap();
    pool.resize("flex-thindata", DATA, 8 * 2048);
    pool.renew(8);
    assert_eq!(pool.status(), "4/8 rw queue_if_no_space -");
    assert_eq!(thin.write(5 * MIB, b"again"), 0);
    thin.remove();
    pool.remove();
}

/// xfs_db does not write a UUID into an XFS whose log needs a replay, and still exits successfully.
pub fn dirty_log(place: &dyn Place) {
    let (platform, at) = (place.platform(), Path::new("/mnt/alike"));
    let pool = ThinPool::new(place, 1024, 2048, 1000);
    let origin = pool.thin(0, 1 << 21);
    origin.mkfs(UUID);
    assert_eq!(origin.uuid(), UUID);
    place.mount(&origin.node, at);
    platform.dm_suspend(&origin.name, true).unwrap();
    pool.message("create_snap 1 0").unwrap();
    platform.dm_resume(&origin.name, Visibility::Public).unwrap();
    let snapshot = pool.up(1, 1 << 21);
    let said = snapshot.set_uuid(OTHER).unwrap();
    println!("        {said:?}");
    assert!(said.contains("The filesystem has valuable metadata changes in a log which needs to"), "{said}");
    assert_eq!(snapshot.uuid(), UUID);
    platform.mount(&snapshot.node, "alike", "nouuid").unwrap();
    platform.unmount("alike").unwrap();
    let said = snapshot.set_uuid(OTHER).unwrap();
    println!("        {said:?}");
    assert_eq!((snapshot.uuid().as_str(), origin.uuid().as_str()), (OTHER, UUID));
    place.unmount(at);
    snapshot.remove();
    origin.remove();
    pool.remove();
}

/// The kernel mounts an XFS if the last record of its log has the UUID of the superblock, or none.
/// The engine finds that record after mkfs.xfs, an unmount, and xfs_db, and knows a log that needs a
/// replay.
pub fn own_log(place: &dyn Place) {
    let (platform, at) = (place.platform(), Path::new("/mnt/alike"));
    let pool = ThinPool::new(place, 1024, 2048, 1000);
    let thin = pool.thin(0, 1 << 21);
    thin.mkfs(UUID);
    let other = uuid::Uuid::parse_str(OTHER).unwrap();
    let unmounted = |after: &str| match thin.log_end() {
        LogEnd::Unmounted(record) => record,
        end => panic!("{after}: {end:?}"),
    };
    let compares_uuids = |after: &str| {
        let record = unmounted(after);
        let mount_with = |header: Vec<u8>| {
            assert_eq!(thin.write(record.at, &header), 0);
            platform.mount(&thin.node, "alike", "nouuid").and_then(|()| platform.unmount("alike"))
        };
        assert_eq!(errno(&mount_with(record.header_with(other).unwrap())), nix::libc::EUCLEAN, "{after}");
        mount_with(record.header_with(uuid::Uuid::nil()).unwrap()).unwrap();
        // The unmount has written another record.
        assert_ne!(unmounted(after).at, record.at, "{after}");
    };
    compares_uuids("after mkfs.xfs");
    place.mount(&thin.node, at);
    place.unmount(at);
    compares_uuids("after an unmount");
    thin.set_uuid(OTHER).unwrap();
    // The new log does not show any of the old records.
    thin.set_uuid(UUID).unwrap();
    assert!(!matches!(thin.log_end(), LogEnd::Dirty));
    place.mount(&thin.node, at);
    place.unmount(at);
    unmounted("after a mount behind xfs_db");
    place.mount(&thin.node, at);
    platform.dm_suspend(&thin.name, true).unwrap();
    pool.message("create_snap 1 0").unwrap();
    platform.dm_resume(&thin.name, Visibility::Public).unwrap();
    let snapshot = pool.up(1, 1 << 21);
    assert_eq!(snapshot.log_end(), LogEnd::Dirty);
    place.unmount(at);
    snapshot.remove();
    thin.remove();
    pool.remove();
}

/// The number of thin-pool blocks that a new XFS maps: its log, one block for each allocation
/// group, and the last block.
pub fn mkfs_blocks(place: &dyn Place) {
    let pool = ThinPool::new(place, 1024, 2048, 2500);
    // Size of the filesystem in GiB, number of blocks of 1 MiB, arguments.
    let small: &[&str] = &["-l", "size=67108864", "-d", "agcount=8"];
    let samples = [(1, 73, &[][..]), (16, 81, &[]), (256, 145, &[]), (1024, 545, &[]), (1024, 73, small)];
    for (id, (gib, expected, arguments)) in samples.into_iter().enumerate() {
        let thin = pool.thin(u32::try_from(id).unwrap(), gib << 21);
        thin.mkfs_with(UUID, arguments);
        let mapped = thin.mapped_mib();
        println!("        {gib} GiB {arguments:?}: {mapped} blocks");
        assert_eq!(mapped, expected, "{gib} GiB {arguments:?}");
        thin.remove();
    }
    pool.remove();
}

/// An XFS that could not write its log fails every call until it is mounted again, even when its
/// disk works again.
pub fn shutdown(place: &dyn Place) {
    let platform = place.platform();
    let disk = platform.find_device(place.disk()).unwrap().number;
    let (device, size) = (name("flex-mdv"), 1 << 20);
    platform.dm_create(&device, &device, &linear(disk, 0, size), Visibility::Private).unwrap();
    let node = platform.dm_node(&device);
    platform.run(Program::MkfsXfs, &["-f", "-q", node.to_str().unwrap()]).unwrap();
    platform.mount(&node, "alike", "").unwrap();
    let write = |text: &[u8]| errno(&platform.replace_file("alike/files/a", text));
    platform.list_files("alike/files").unwrap();
    assert_eq!(write(b"first"), 0);
    let swap = |table: &[Line]| {
        platform.dm_load(&device, table).unwrap();
        platform.dm_suspend(&device, false).unwrap();
        platform.dm_resume(&device, Visibility::Private).unwrap();
    };
    let target = Target::Foreign { kind: "error".to_owned(), parameters: String::new() };
    swap(&[Line { start: Sectors(0), length: Sectors(size), target }]);
    assert_eq!(write(b"second"), nix::libc::EIO);
    // A failed write of data does not shut it down; a failed write of the log does.
    assert_eq!(errno(&platform.remove_file("alike/files/a")), nix::libc::EIO);
    swap(&linear(disk, 0, size));
    assert_eq!(write(b"third"), nix::libc::EIO);
    assert_eq!(errno(&platform.list_files("alike/files")), nix::libc::EIO);
    platform.unmount("alike").unwrap();
    platform.mount(&node, "alike", "").unwrap();
    assert_eq!(platform.read_file("alike/files/a").unwrap(), b"first");
    assert_eq!(write(b"fourth"), 0);
    platform.unmount("alike").unwrap();
    platform.dm_remove(&device).unwrap();
    // Without a mount there are no files.
    assert_eq!(errno(&platform.list_files("alike/files")), nix::libc::ENOENT);
    assert_eq!(write(b"lost"), nix::libc::ENOENT);
}

/// A device that was just closed can be removed, though perhaps not at the first attempt.
pub fn lingering(place: &dyn Place) {
    let pool = ThinPool::new(place, 1024, 2048, 1000);
    pool.message("create_thin 0").unwrap();
    let at = Path::new("/mnt/alike");
    for round in 0..5 {
        let thin = pool.up(0, 1 << 21);
        if round == 0 {
            thin.mkfs(UUID);
        }
        place.mount(&thin.node, at);
        assert!(place.platform().mount_points(thin.number).unwrap().contains(&at.to_owned()));
        place.unmount(at);
        thin.set_uuid(UUID).unwrap();
        thin.remove();
    }
    pool.remove();
}

/// The udev database lags behind. A probe of the device shows the current contents.
pub fn late_udev(place: &dyn Place) {
    let (platform, disk) = (place.platform(), place.disk());
    let class = || platform.find_device(disk).unwrap().class;
    let superblock = || platform.contents(disk).unwrap().superblock;
    let mut events = platform.device_events().unwrap();
    let mut next = || loop {
        match events.next().unwrap() {
            Some(event) if event.path == disk && event.action == DeviceAction::Change => return event.device.unwrap(),
            Some(_) => {}
            None => assert!(readable(events.fd()), "no udev event arrived in time"),
        }
    };
    platform.write(disk, &[WriteStep::At(0, &[0; 8192]), WriteStep::Flush]).unwrap();
    while next().class != DeviceClass::Unowned {}
    place.hold_udev();
    let signature_block = [&SIGNATURE_BLOCK[..], &[0; 384]].concat();
    platform.write(disk, &[WriteStep::At(512, &signature_block), WriteStep::Flush]).unwrap();
    assert_eq!((class(), superblock().as_deref()), (DeviceClass::Unowned, Some("stratis")));
    place.release_udev();
    assert_eq!(next().class, DeviceClass::Stratis);
    assert_eq!(class(), DeviceClass::Stratis);
    platform.write(disk, &[WriteStep::At(0, &[0; 8192]), WriteStep::Flush]).unwrap();
    while next().class != DeviceClass::Unowned {}
    assert_eq!(superblock(), None);
}
