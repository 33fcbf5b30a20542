//! udev: device classes, device events, links under `/dev/stratis`.
//!
//! Rules:
//! - The class of a device is computed from its bytes at each query. While a test holds udev back,
//!   queries return the state of that moment: a later device is unknown, a device written since has
//!   its former class, and events wait for the release. Events may be lost on their way to the
//!   listeners; the database is still right. A block with the Stratis magic and a valid checksum in
//!   either place gives `Stratis`; then LUKS magic; then an XFS superblock or a partition table
//!   gives `Other`. Private device-mapper devices are not probed.
//! - A write call to a disk raises a change event at its end. Public device-mapper devices raise
//!   add, change and remove.
//! - An announcement makes the link if the device is public and its name matches the announced
//!   filesystem, as the shipped rule requires; the device's former link is removed. While a test
//!   holds links back, announcements wait; a test can also lose some. An announcement for a
//!   suspended device waits for its resume.
//!
//! This module knows nothing of pools.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    dm_devices::{self, DmDevice, dm_node},
    incomplete::{Incomplete, Patience},
    luks_device, luks_header,
    machine::MachineState,
    xfs,
};
use crate::platform::{
    Announcement, BlockDevice, Contents, DeviceAction, DeviceClass, DeviceEvent, DeviceNumber, dm::Visibility,
};

const STRATIS_MAGIC: [u8; 16] = *b"!Stra0tis\x86\xff\x02^\x41rh";
const STRATIS_PLACES: [u64; 2] = [512, 4608];
const STRATIS_BLOCK: usize = 512;

/// Signatures on a device.
#[derive(Debug, Default)]
struct Signatures {
    stratis: bool,
    luks: bool,
    xfs: bool,
    /// Number of partitions in a DOS table, if there is one.
    table: Option<u32>,
}

impl MachineState {
    fn signatures(&self, number: DeviceNumber) -> Result<Signatures, Incomplete> {
        let mut found = Signatures::default();
        for place in STRATIS_PLACES {
            let mut block = [0; STRATIS_BLOCK];
            // A bad sector does not hide the other copy.
            match self.read_at(number, place, &mut block, Patience::Wait) {
                Ok(()) => found.stratis |= is_signature_block(&block),
                Err(Incomplete::Errno(_)) => {}
                Err(wait) => return Err(wait),
            }
        }
        let mut first = [0; 512];
        match self.read_at(number, 0, &mut first, Patience::Wait) {
            Ok(()) => {}
            Err(Incomplete::Errno(_)) => return Ok(found),
            Err(wait) => return Err(wait),
        }
        found.luks = first.starts_with(&luks_header::MAGIC);
        found.xfs = xfs::Superblock::decode(&first).is_some();
        if first[510..512] == [0x55, 0xaa] {
            // Four entries of 16 bytes from byte 446; the type is at offset 4, 0 for none.
            found.table = Some((0..4).filter(|entry| first[446 + entry * 16 + 4] != 0).count() as u32);
        }
        // As in libblkid, a header without its first copy still counts.
        found.luks |= !found.xfs && found.table.is_none() && luks_device::has_second_copy(self, number);
        Ok(found)
    }

    pub(super) fn probe(&self, number: DeviceNumber) -> Result<Contents, Incomplete> {
        let found = self.signatures(number)?;
        let superblock = match found {
            Signatures { stratis: true, .. } => Some("stratis"),
            Signatures { luks: true, .. } => Some("crypto_LUKS"),
            Signatures { xfs: true, .. } => Some("xfs"),
            _ => None,
        };
        Ok(Contents { partitions: found.table.unwrap_or(0), superblock: superblock.map(str::to_owned) })
    }

    /// Freezes the database.
    pub(super) fn hold_database(&mut self) {
        let known = self.nodes().into_iter().filter_map(|(_, number)| Some((number, self.known_class(number)?)));
        let known = known.collect();
        self.udev.database.get_or_insert(known);
    }

    /// Makes the database current again.
    pub(super) fn release_database(&mut self) {
        self.udev.database = None;
        for (action, path) in std::mem::take(&mut self.udev.late) {
            self.device_event(action, &path);
        }
    }

    /// Nodes that udev handles.
    fn nodes(&self) -> Vec<(PathBuf, DeviceNumber)> {
        let disks = self.disks.nodes().filter(|(_, disk)| disk.present).map(|(path, disk)| (path.clone(), disk.number));
        let stacked = self.dm.public().into_iter().map(|minor| (dm_node(minor), dm_devices::number(minor)));
        disks.chain(stacked).collect()
    }

    /// The class of a device in the database; `None` if it is not initialized.
    fn known_class(&self, number: DeviceNumber) -> Option<DeviceClass> {
        match &self.udev.database {
            Some(database) => database.get(&number).cloned(),
            None => Some(self.class(number)),
        }
    }

    fn class(&self, number: DeviceNumber) -> DeviceClass {
        if self.disks.get(number).is_some_and(|disk| disk.shape.multipath) {
            return DeviceClass::MultipathMember;
        }
        if self.dm.get(number).is_some_and(|device| device.visibility == Visibility::Private || device.suspended) {
            return DeviceClass::Unowned;
        }
        match self.signatures(number).unwrap_or_default() {
            Signatures { stratis: true, .. } => DeviceClass::Stratis,
            Signatures { luks: true, .. } => DeviceClass::Luks,
            Signatures { xfs: true, .. } => DeviceClass::Other("xfs".to_owned()),
            Signatures { table: Some(_), .. } => DeviceClass::Other("partition table dos".to_owned()),
            _ => DeviceClass::Unowned,
        }
    }

    /// A device as the database describes it; `None` if it is not initialized.
    pub(super) fn block_device(&self, path: PathBuf, number: DeviceNumber) -> Option<BlockDevice> {
        let wwn = self.disks.get(number).and_then(|disk| disk.shape.wwn.clone());
        Some(BlockDevice { path, number, class: self.known_class(number)?, wwn })
    }

    /// Devices with a Stratis signature or a LUKS header: disks first, each group sorted.
    pub(super) fn block_devices(&self) -> Vec<BlockDevice> {
        let known = self.nodes().into_iter().filter_map(|(path, number)| self.block_device(path, number));
        known.filter(|found| matches!(found.class, DeviceClass::Stratis | DeviceClass::Luks)).collect()
    }

    /// Sends an event about a node to every listener.
    pub(super) fn device_event(&mut self, action: DeviceAction, path: &Path) {
        if self.udev.database.is_some() {
            self.udev.late.push((action, path.to_owned()));
            return;
        }
        let number = match path.to_str().and_then(|text| text.strip_prefix("/dev/dm-")) {
            Some(minor) => minor.parse().ok().map(dm_devices::number),
            None => self.disks.number_at(path),
        };
        if self.udev.events_to_lose > 0 {
            self.udev.events_to_lose -= 1;
            return;
        }
        if !self.events.has_device_listeners() {
            return;
        }
        let device = number.filter(|_| action != DeviceAction::Remove);
        let device = device.and_then(|number| self.block_device(path.to_owned(), number));
        let unlinked = number.filter(|number| action != DeviceAction::Remove && !self.udev.has_link(*number));
        let unlinked = unlinked.and_then(|number| self.dm.get(number)).map(|device| device.name.clone());
        self.events.device_event(&DeviceEvent { action, path: path.to_owned(), device, unlinked });
    }

    /// Queues announcements and processes those that it can. Returns their numbers.
    pub(super) fn announce(&mut self, filesystems: &[Announcement]) -> Range<u64> {
        let first = self.udev.announced;
        for announcement in filesystems {
            let number = self.udev.announced;
            self.udev.announced += 1;
            self.udev.unanswered.insert(number);
            if self.udev.to_lose > 0 {
                self.udev.to_lose -= 1;
            } else {
                self.udev.waiting.push_back((number, announcement.clone()));
            }
        }
        self.serve_udev();
        first..self.udev.announced
    }

    /// Processes announcements in order, as far as possible.
    pub(super) fn serve_udev(&mut self) {
        if self.udev.held {
            return;
        }
        for (number, announcement) in std::mem::take(&mut self.udev.waiting) {
            match self.serve(&announcement) {
                Ok(()) => {
                    self.udev.unanswered.remove(&number);
                }
                Err(_) => self.udev.waiting.push_back((number, announcement)),
            }
        }
    }

    /// Applies the rules to an announcement. An error means that the device cannot be probed yet.
    fn serve(&mut self, announcement: &Announcement) -> Result<(), Incomplete> {
        let is_meant = |device: &DmDevice| {
            device.visibility != Visibility::Private
                && device.name.ends_with(&format!("-thin-fs-{}", announcement.filesystem.simple()))
        };
        match self.dm.get(announcement.number) {
            Some(device) if device.suspended => Err(Incomplete::Suspended),
            Some(device) if is_meant(device) => {
                self.udev.make_link(announcement.link(), announcement.number);
                Ok(())
            }
            // The device holds another filesystem or none: the rule makes no link.
            _ => Ok(()),
        }
    }
}

fn is_signature_block(block: &[u8; STRATIS_BLOCK]) -> bool {
    let checksum = crc32c::crc32c(&block[4..]).to_le_bytes();
    block[4..20] == STRATIS_MAGIC && block[..4] == checksum
}
