//! Device-mapper: the kernel's calls on single devices, synchronized with udev.
//!
//! Conventions are those of `docs/spec/engine/storage-stack.md` §2. This module knows tables as
//! values ([`crate::platform::dm`]), but not what the devices are for.
//!
//! Resume and remove wait until udev has processed the change, so that the node exists, or is gone,
//! when they return. The wait is bounded ([`change`]).

mod change;

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use devicemapper::{DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUdevFlags, DmUuid, errors};
use log::warn;
use nix::libc;

use self::change::{DmChange, Punctuality};
use super::{
    mapper_nodes::{mend_link, node},
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

/// The control node of device-mapper.
const CONTROL: &str = "/dev/mapper/control";
/// First minor version of the interface (major 4) whose events can be polled.
const MINOR_VERSION_MIN: u32 = 37;
/// Longest target name that fits into a call.
const KIND_BYTES_MAX: usize = 15;
/// Number of attempts to remove a busy device, and the pause between two of them.
const REMOVE_LOOKS: u32 = 5;
const REMOVE_PAUSE: Duration = Duration::from_millis(200);

/// A table line as the library takes it: start and length in sectors, target, parameters.
type RawLine = (u64, u64, String, String);

/// The connection to the kernel's device-mapper. Several threads may make calls at a time.
pub(super) struct Mapper {
    dm: DM,
    udev: Punctuality,
}

impl Mapper {
    /// Opens the control node and checks that the kernel is not too old.
    ///
    /// # Errors
    /// [`Error::Missing`] says what is missing.
    pub(super) fn open() -> Result<Mapper> {
        let dm = DM::new().map_err(|fault| {
            Error::Missing(format!(
                "cannot use device-mapper through {CONTROL}: {}; run as root on a kernel that supports it",
                io_error(fault)
            ))
        })?;
        let (major, minor, patch) = dm.version().map_err(|fault| failed("read the version from", CONTROL, fault))?;
        check_version(major, minor, patch)?;
        Ok(Mapper { dm, udev: Punctuality::default() })
    }

    pub(super) fn list(&self) -> Result<Vec<Listed>> {
        let devices = self.dm.list_devices().map_err(|fault| failed("list devices through", CONTROL, fault))?;
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
                    warn!("cannot remove device {name} after its activation failed: {left}");
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
        let mode = if flush { DmFlags::empty() } else { DmFlags::DM_NOFLUSH | DmFlags::DM_SKIP_LOCKFS };
        let options = DmOptions::default().set_flags(DmFlags::DM_SUSPEND | mode);
        self.dm.device_suspend(&id("suspend", name)?, options).map(drop).map_err(|fault| failed("suspend", name, fault))
    }

    /// The kernel checks a new table's devices and sizes only at resume. If it refuses, it drops
    /// that table and leaves the device suspended; this call then resumes it with its former table.
    pub(super) fn resume(&self, name: &str, visibility: Visibility) -> Result<()> {
        let resumed = self.resume_once(name, visibility);
        if resumed.is_err() && self.is_suspended_with_old_table(name) {
            if let Err(fault) = self.resume_once(name, visibility) {
                warn!("cannot resume device {name} with its former table, so it stays suspended: {fault}");
            }
        }
        resumed
    }

    fn is_suspended_with_old_table(&self, name: &str) -> bool {
        let flags = self.info(name).ok().flatten().map_or(DmFlags::empty(), |info| info.flags());
        flags.contains(DmFlags::DM_SUSPEND | DmFlags::DM_ACTIVE_PRESENT)
            && !flags.contains(DmFlags::DM_INACTIVE_PRESENT)
    }

    fn resume_once(&self, name: &str, visibility: Visibility) -> Result<()> {
        let flags = match visibility {
            Visibility::Private => DmOptions::private().udev_flags(),
            Visibility::Public => DmUdevFlags::empty(),
        };
        self.change("resume", name, DmChange::Resume, flags)
    }

    pub(super) fn remove(&self, name: &str) -> Result<()> {
        for _ in 1..REMOVE_LOOKS {
            self.wait_until_free(name)?;
            match self.change("remove", name, DmChange::Remove, DmUdevFlags::empty()) {
                // Another process opened the device after the check.
                Err(busy) if busy.is_busy() => wait::pause(REMOVE_PAUSE),
                other => return other,
            }
        }
        Err(Error::Busy { name: name.to_owned() })
    }

    fn change(&self, action: &'static str, name: &str, change: DmChange, flags: DmUdevFlags) -> Result<()> {
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

    /// The status lines, read without a flush. A flush would commit the metadata of an idle thin
    /// pool on each read and wake the disks. The counts in memory are never behind the allocations.
    pub(super) fn status(&self, name: &str) -> Result<Vec<String>> {
        let options = DmOptions::default().set_flags(DmFlags::DM_NOFLUSH);
        let (_, lines) = self
            .dm
            .table_status(&id("read the status of", name)?, options)
            .map_err(|fault| failed("read the status of", name, fault))?;
        Ok(lines.into_iter().map(|(_, _, _, status)| status).collect())
    }

    /// Whether any process has the device open, or it is mounted. If this is unknown, returns
    /// `true`.
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

    /// Waits up to about a second until no process has the device open.
    ///
    /// A device is usually held for a moment by udev, which probes it after a process has closed
    /// it; udev's event then shows the end of the probe. The kernel announces no other close (a
    /// mount, another probing program), so those are polled.
    fn wait_until_free(&self, name: &str) -> Result<()> {
        let opens = || -> Result<(i32, DeviceNumber)> {
            // If the device is gone, let the removal report that.
            Ok(self
                .info(name)?
                .map_or((0, DeviceNumber { major: 0, minor: 0 }), |info| (info.open_count(), number(info.device()))))
        };
        let (mut open, device) = opens()?;
        if open == 0 {
            return Ok(());
        }
        // Listen before the next check, so that no later event is missed.
        let mut monitor = if udev_runs() { Monitor::open().ok() } else { None };
        for _ in 1..REMOVE_LOOKS {
            (open, _) = opens()?;
            if open == 0 {
                return Ok(());
            }
            match &mut monitor {
                Some(listening) => {
                    if let Err(fault) = wait_for_message(listening, device, Instant::now() + REMOVE_PAUSE) {
                        warn!("cannot listen to udev events while device {name} is busy: {fault}; polling instead");
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

/// Creates the node of a device that another component activated, if udev has not done so.
pub(super) fn mend_node(name: &str) {
    if fs::exists(node(name)).unwrap_or(true) {
        return;
    }
    let info = id("find", name).and_then(|id| {
        let dm = DM::new().map_err(|fault| failed("find", name, fault))?;
        dm.device_info(&id).map_err(|fault| failed("find", name, fault))
    });
    match info {
        Ok(info) => mend_link(name, number(info.device())),
        Err(fault) => warn!("cannot create the node of {name} in place of udev: {fault}"),
    }
}

fn check_version(major: u32, minor: u32, patch: u32) -> Result<()> {
    if major == 4 && minor >= MINOR_VERSION_MIN {
        return Ok(());
    }
    Err(Error::Missing(format!(
        "device-mapper of this kernel has version {major}.{minor}.{patch}, but the daemon needs 4.{MINOR_VERSION_MIN}; \
         use Linux 4.14 or later"
    )))
}

/// Waits for an event of the device and reads all pending ones. Reaching the deadline is no error.
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
                let source = io::Error::new(io::ErrorKind::InvalidInput, format!("the kernel has no target `{kind}`"));
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

/// The kernel's errno, if the kernel refused.
fn errno(fault: &DmError) -> Option<i32> {
    match fault {
        DmError::Core(errors::Error::Ioctl(_, _, _, errno)) => Some(**errno as i32),
        _ => None,
    }
}

fn is_absent(fault: &DmError) -> bool {
    errno(fault) == Some(libc::ENXIO)
}

/// Reports events of any device through its own descriptor.
struct MapperEvents(DM);

/// A new source of device-mapper events. It reports events from now on.
pub(super) fn events() -> Result<Box<dyn DmEvents>> {
    match DM::new() {
        Ok(dm) => Ok(Box::new(MapperEvents(dm))),
        Err(fault) => Err(failed("watch events through", CONTROL, fault)),
    }
}

impl DmEvents for MapperEvents {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.file().as_fd()
    }

    fn arm(&mut self) -> Result<()> {
        self.0.arm_poll().map(drop).map_err(|fault| failed("watch events through", CONTROL, fault))
    }
}

#[cfg(test)]
mod tests {
    use super::{check_version, raw_lines};
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
    fn too_long_target_names_are_refused() {
        let target = Target::Foreign { kind: "sixteen-letters-".to_owned(), parameters: String::new() };
        let table = [Line { start: Sectors(0), length: Sectors(8), target }];
        assert!(matches!(raw_lines("create", "x", &table), Err(Error::Dm { .. })));
    }
}
