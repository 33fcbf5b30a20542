//! Device-mapper: the calls of the kernel, one device each, in step with udev.
//!
//! Conventions are those of `docs/spec/engine/storage-stack.md` §2. Knows tables as values ([`crate::platform::dm`]) and
//! nothing of what the devices are for.
//!
//! Resume, remove and rename wait until udev has dealt with the change, so that the node is there, or gone, when they
//! return; but not for ever ([`change`]).

mod change;

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use devicemapper::{DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUdevFlags, DmUuid, errors};
use log::warn;
use nix::libc;

use self::change::{Change, Punctuality};
use super::{
    monitor::{Monitor, udev_runs},
    wait,
};
use crate::{
    base::units::Sectors,
    platform::{
        DeviceNumber, DmEvents, Error, Result,
        dm::{Device, Line, Listed, Visibility},
    },
};

/// Where device-mapper takes its calls.
const CONTROL: &str = "/dev/mapper/control";
/// First minor version of the calls (major 4) that can be polled for events.
const MINOR_VERSION_MIN: u32 = 37;
/// Longest name of a target that fits into a call.
const KIND_BYTES_MAX: usize = 15;
/// How often a removal looks whether a busy device has become free, and how long it waits between two looks.
const REMOVE_LOOKS: u32 = 5;
const REMOVE_PAUSE: Duration = Duration::from_millis(200);

/// A line as the library wants it: start and length in sectors, target, parameters.
type RawLine = (u64, u64, String, String);

/// The way to the kernel's device-mapper. Calls may be made from several threads at a time.
pub(super) struct Mapper {
    dm: DM,
    udev: Punctuality,
}

impl Mapper {
    /// Opens the control node and checks that the kernel is not too old.
    ///
    /// # Errors
    /// [`Error::Missing`] says what is not there.
    pub(super) fn open() -> Result<Mapper> {
        let dm = DM::new().map_err(|fault| {
            Error::Missing(format!(
                "device-mapper cannot be reached through {CONTROL} ({}); run as root on a kernel that has it",
                io_error(fault)
            ))
        })?;
        let (major, minor, patch) = dm.version().map_err(|fault| failed("tell its version through", CONTROL, fault))?;
        check_version(major, minor, patch)?;
        Ok(Mapper { dm, udev: Punctuality::default() })
    }

    pub(super) fn list(&self) -> Result<Vec<Listed>> {
        let devices = self.dm.list_devices().map_err(|fault| failed("list its devices through", CONTROL, fault))?;
        let listed = devices.into_iter().map(|(name, device, event)| Listed {
            name: name.to_string(),
            number: number(device),
            event,
        });
        Ok(listed.collect())
    }

    pub(super) fn event(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.info(name)?.map(|info| info.event_nr()))
    }

    pub(super) fn find(&self, name: &str) -> Result<Option<Device>> {
        let options = DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE | DmFlags::DM_NOFLUSH);
        match self.dm.table_status(&id("find", name)?, options) {
            Ok((info, lines)) => Ok(Some(Device {
                number: number(info.device()),
                uuid: info.uuid().map(ToString::to_string).unwrap_or_default(),
                suspended: info.flags().contains(DmFlags::DM_SUSPEND),
                table: lines
                    .iter()
                    .map(|(start, length, kind, parameters)| {
                        Line::parse(Sectors(*start), Sectors(*length), kind, parameters)
                    })
                    .collect(),
            })),
            Err(fault) if is_absent(&fault) => Ok(None),
            Err(fault) => Err(failed("find", name, fault)),
        }
    }

    pub(super) fn create(
        &self,
        name: &str,
        uuid: &str,
        table: &[Line],
        visibility: Visibility,
    ) -> Result<DeviceNumber> {
        let id = id("create", name)?;
        let dm_name = DmName::new(name).map_err(|fault| failed("create", name, fault))?;
        let dm_uuid = DmUuid::new(uuid).map_err(|fault| failed("create", name, fault))?;
        let lines = raw_lines("create", name, table)?;
        let info = self
            .dm
            .device_create(dm_name, Some(dm_uuid), DmOptions::default())
            .map_err(|fault| failed("create", name, fault))?;
        let started = self
            .dm
            .table_load(&id, &lines, DmOptions::default())
            .map_err(|fault| failed("load the table of", name, fault))
            .and_then(|_| self.resume(name, visibility));
        match started {
            Ok(()) => Ok(number(info.device())),
            Err(fault) => {
                if let Err(left) = self.remove(name) {
                    warn!("the device {name} that could not be started is left behind: {left}");
                }
                Err(fault)
            }
        }
    }

    pub(super) fn load(&self, name: &str, table: &[Line]) -> Result<()> {
        let lines = raw_lines("load the table of", name, table)?;
        self.dm
            .table_load(&id("load the table of", name)?, &lines, DmOptions::default())
            .map(drop)
            .map_err(|fault| failed("load the table of", name, fault))
    }

    pub(super) fn suspend(&self, name: &str, flush: bool) -> Result<()> {
        let how = if flush { DmFlags::empty() } else { DmFlags::DM_NOFLUSH | DmFlags::DM_SKIP_LOCKFS };
        let options = DmOptions::default().set_flags(DmFlags::DM_SUSPEND | how);
        self.dm.device_suspend(&id("suspend", name)?, options).map(drop).map_err(|fault| failed("suspend", name, fault))
    }

    /// The kernel looks at a new table's devices and sizes only here. When it refuses, it forgets that table and
    /// leaves the device suspended; the device then goes on with the table it had.
    pub(super) fn resume(&self, name: &str, visibility: Visibility) -> Result<()> {
        let resumed = self.resume_once(name, visibility);
        if resumed.is_err() && self.waits_with_old_table(name) {
            if let Err(stuck) = self.resume_once(name, visibility) {
                warn!("the device {name} is left suspended: {stuck}");
            }
        }
        resumed
    }

    fn waits_with_old_table(&self, name: &str) -> bool {
        let flags = self.info(name).ok().flatten().map_or(DmFlags::empty(), |info| info.flags());
        flags.contains(DmFlags::DM_SUSPEND | DmFlags::DM_ACTIVE_PRESENT)
            && !flags.contains(DmFlags::DM_INACTIVE_PRESENT)
    }

    fn resume_once(&self, name: &str, visibility: Visibility) -> Result<()> {
        let flags = match visibility {
            Visibility::Private => DmOptions::private().udev_flags(),
            Visibility::Public => DmUdevFlags::empty(),
        };
        self.change("resume", name, Change::Resume, flags)
    }

    pub(super) fn remove(&self, name: &str) -> Result<()> {
        for _ in 1..REMOVE_LOOKS {
            self.wait_until_free(name)?;
            match self.change("remove", name, Change::Remove, DmUdevFlags::empty()) {
                // Somebody has opened the device between the look and the call.
                Err(busy) if busy.is_busy() => wait::pause(REMOVE_PAUSE),
                other => return other,
            }
        }
        Err(Error::Busy { name: name.to_owned() })
    }

    pub(super) fn rename(&self, name: &str, new_name: &str) -> Result<()> {
        self.change("rename", name, Change::Rename(new_name), DmUdevFlags::empty())
    }

    fn change(&self, action: &'static str, name: &str, change: Change<'_>, flags: DmUdevFlags) -> Result<()> {
        self.udev.make(self.dm.file().as_fd(), name, change, flags).map_err(|source| Error::Dm {
            action,
            name: name.to_owned(),
            source,
        })
    }

    pub(super) fn message(&self, name: &str, message: &str) -> Result<()> {
        self.dm
            .target_msg(&id("send a message to", name)?, Some(0), message)
            .map(drop)
            .map_err(|fault| failed("send a message to", name, fault))
    }

    /// The status texts. Asked for without a flush: with it, each look at an idle thin pool would write its metadata
    /// out and wake the disks. The counts are those in memory, which are never behind for what has been allocated.
    pub(super) fn status(&self, name: &str) -> Result<Vec<String>> {
        let options = DmOptions::default().set_flags(DmFlags::DM_NOFLUSH);
        let (_, lines) = self
            .dm
            .table_status(&id("read the status of", name)?, options)
            .map_err(|fault| failed("read the status of", name, fault))?;
        Ok(lines.into_iter().map(|(_, _, _, status)| status).collect())
    }

    /// Whether somebody has a device open, as who has mounted it has. What cannot be told counts as open.
    pub(super) fn is_open(&self, number: DeviceNumber) -> bool {
        let name = fs::read_to_string(format!("/sys/dev/block/{number}/dm/name"));
        let Ok(name) = name else { return true };
        self.info(name.trim_end_matches('\n')).map_or(true, |info| info.is_some_and(|info| info.open_count() > 0))
    }

    fn info(&self, name: &str) -> Result<Option<DeviceInfo>> {
        match self.dm.device_info(&id("find", name)?) {
            Ok(info) => Ok(Some(info)),
            Err(fault) if is_absent(&fault) => Ok(None),
            Err(fault) => Err(failed("find", name, fault)),
        }
    }

    /// Waits until nobody has the device open, about a second at most.
    ///
    /// What keeps a device open for a moment is mostly udev itself, looking at it because somebody closed it; its
    /// message tells when it is done. Of others (a mount, another probing program) the kernel tells nobody when they
    /// let go; for them it is looked again from time to time.
    fn wait_until_free(&self, name: &str) -> Result<()> {
        let opens = || -> Result<(i32, DeviceNumber)> {
            // A device that is not there: the removal itself says so.
            Ok(self
                .info(name)?
                .map_or((0, DeviceNumber { major: 0, minor: 0 }), |info| (info.open_count(), number(info.device()))))
        };
        let (mut open, device) = opens()?;
        if open == 0 {
            return Ok(());
        }
        // Listening from before the next look, so that a message after it is not missed.
        let mut monitor = if udev_runs() { Monitor::open().ok() } else { None };
        for _ in 1..REMOVE_LOOKS {
            (open, _) = opens()?;
            if open == 0 {
                return Ok(());
            }
            match &mut monitor {
                Some(listening) => {
                    if let Err(fault) = wait_for_message(listening, device, Instant::now() + REMOVE_PAUSE) {
                        warn!("cannot listen to udev while {name} is busy: {fault}");
                        monitor = None;
                    }
                }
                None => wait::pause(REMOVE_PAUSE),
            }
        }
        (open, _) = opens()?;
        if open == 0 { Ok(()) } else { Err(Error::Busy { name: name.to_owned() }) }
    }
}

/// Makes the node of a device that somebody else has brought up, if udev has not.
pub(super) fn mend_node(name: &str) {
    if fs::exists(node(name)).unwrap_or(true) {
        return;
    }
    let info = id("find", name).and_then(|id| {
        let dm = DM::new().map_err(|fault| failed("find", name, fault))?;
        dm.device_info(&id).map_err(|fault| failed("find", name, fault))
    });
    match info {
        Ok(info) => change::mend_node(name, number(info.device())),
        Err(fault) => warn!("udev has not made the node of {name}: {fault}"),
    }
}

/// The node that udev makes for a device; it is there once the device has been resumed.
pub(super) fn node(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

fn check_version(major: u32, minor: u32, patch: u32) -> Result<()> {
    if major == 4 && minor >= MINOR_VERSION_MIN {
        return Ok(());
    }
    Err(Error::Missing(format!(
        "this kernel's device-mapper has version {major}.{minor}.{patch}, but 4.{MINOR_VERSION_MIN} is needed; \
         use Linux 4.14 or later"
    )))
}

/// Waits for a message about the device, and reads all there are. At the deadline that is no error either.
fn wait_for_message(monitor: &mut Monitor, device: DeviceNumber, deadline: Instant) -> io::Result<()> {
    while wait::readable(monitor.as_fd(), deadline)? {
        let mut ours = false;
        while let Some(message) = monitor.next()? {
            ours |= message.number == Some(device);
        }
        if ours {
            break;
        }
    }
    Ok(())
}

fn number(device: devicemapper::Device) -> DeviceNumber {
    DeviceNumber { major: device.major, minor: device.minor }
}

fn id<'a>(action: &'static str, name: &'a str) -> Result<DevId<'a>> {
    DmName::new(name).map(DevId::Name).map_err(|fault| failed(action, name, fault))
}

fn raw_lines(action: &'static str, name: &str, table: &[Line]) -> Result<Vec<RawLine>> {
    table
        .iter()
        .map(|line| {
            let kind = line.kind();
            if kind.len() > KIND_BYTES_MAX {
                let source = io::Error::new(io::ErrorKind::InvalidInput, format!("there is no target `{kind}`"));
                return Err(Error::Dm { action, name: name.to_owned(), source });
            }
            Ok((line.start.0, line.length.0, kind.to_owned(), line.target.to_string()))
        })
        .collect()
}

fn failed(action: &'static str, name: &str, fault: DmError) -> Error {
    Error::Dm { action, name: name.to_owned(), source: io_error(fault) }
}

fn io_error(fault: DmError) -> io::Error {
    match errno(&fault) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(fault.to_string()),
    }
}

/// The kernel's error number, if it was the kernel that refused.
fn errno(fault: &DmError) -> Option<i32> {
    match fault {
        DmError::Core(errors::Error::Ioctl(_, _, _, errno)) => Some(**errno as i32),
        _ => None,
    }
}

fn is_absent(fault: &DmError) -> bool {
    errno(fault) == Some(libc::ENXIO)
}

/// Tells when any device had an event, through a descriptor of its own.
struct Events(DM);

/// A new source of device-mapper events; those from now on are told.
pub(super) fn events() -> Result<Box<dyn DmEvents>> {
    match DM::new() {
        Ok(dm) => Ok(Box::new(Events(dm))),
        Err(fault) => Err(failed("be watched through", CONTROL, fault)),
    }
}

impl DmEvents for Events {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.file().as_fd()
    }

    fn arm(&mut self) -> Result<()> {
        self.0.arm_poll().map(drop).map_err(|fault| failed("be watched through", CONTROL, fault))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{check_version, node, raw_lines};
    use crate::{
        base::units::{DataBlocks, Sectors},
        platform::{
            DeviceNumber, Error,
            dm::{Line, Target},
        },
    };

    #[test]
    fn the_kernel_must_be_new_enough() {
        for (major, minor, good) in [(4, 37, true), (4, 50, true), (4, 36, false), (3, 99, false), (5, 0, false)] {
            assert_eq!(check_version(major, minor, 0).is_ok(), good, "{major}.{minor}");
        }
    }

    #[test]
    fn tables_are_written_as_the_kernel_reads_them() {
        let device = |minor| DeviceNumber { major: 253, minor };
        let pool = Target::ThinPool {
            metadata: device(1),
            data: device(2),
            block: Sectors(2048),
            low_water: DataBlocks(15360),
            features: vec!["no_discard_passdown".to_owned(), "skip_block_zeroing".to_owned()],
        };
        let table = [
            Line::linear(Sectors(0), Sectors(100), device(3), Sectors(8192)),
            Line { start: Sectors(100), length: Sectors(2048), target: pool },
        ];
        let text = "253:1 253:2 2048 15360 2 no_discard_passdown skip_block_zeroing";
        assert_eq!(
            raw_lines("create", "x", &table).unwrap(),
            [
                (0, 100, "linear".to_owned(), "253:3 8192".to_owned()),
                (100, 2048, "thin-pool".to_owned(), text.to_owned()),
            ]
        );
    }

    #[test]
    fn a_target_name_that_does_not_fit_is_refused() {
        let target = Target::Foreign { kind: "sixteen-letters-".to_owned(), parameters: String::new() };
        let table = [Line { start: Sectors(0), length: Sectors(8), target }];
        assert!(matches!(raw_lines("create", "x", &table), Err(Error::Dm { .. })));
    }

    #[test]
    fn nodes_are_where_udev_makes_them() {
        assert_eq!(node("stratis-1-x"), Path::new("/dev/mapper/stratis-1-x"));
    }
}
