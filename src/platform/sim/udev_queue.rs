//! The work that udev has done and has still to do: links, announcements, events. The rules are in
//! `udev`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::{Path, PathBuf},
};

use crate::platform::{Announcement, DeviceAction, DeviceClass, DeviceNumber};

/// Links and pending announcements.
#[derive(Default)]
pub(super) struct Udev {
    links: BTreeMap<PathBuf, DeviceNumber>,
    by_device: HashMap<DeviceNumber, PathBuf>,
    pub(super) waiting: VecDeque<(u64, Announcement)>,
    pub(super) announced: u64,
    /// Numbers of the announcements that have not been processed, including lost ones.
    pub(super) unanswered: BTreeSet<u64>,
    /// Announcements are held back.
    pub(super) held: bool,
    /// Number of announcements still to lose.
    pub(super) to_lose: u32,
    /// Number of device events still to lose.
    pub(super) events_to_lose: u32,
    /// State of the database while it is held back; `None` if it is current. A missing device is
    /// not initialized.
    pub(super) database: Option<BTreeMap<DeviceNumber, DeviceClass>>,
    /// Events that are delivered when the database is current again.
    pub(super) late: Vec<(DeviceAction, PathBuf)>,
}

impl Udev {
    pub(super) fn link(&self, path: &Path) -> Option<DeviceNumber> {
        self.links.get(path).copied()
    }

    pub(super) fn links(&self) -> &BTreeMap<PathBuf, DeviceNumber> {
        &self.links
    }

    pub(super) fn has_link(&self, number: DeviceNumber) -> bool {
        self.by_device.contains_key(&number)
    }

    pub(super) fn remove_links(&mut self, number: DeviceNumber) {
        let Some(link) = self.by_device.remove(&number) else { return };
        if self.links.get(&link) == Some(&number) {
            self.links.remove(&link);
        }
    }

    /// Whether the announcement with this number may still have an effect.
    pub(super) fn may_come(&self, announcement: u64) -> bool {
        self.unanswered.contains(&announcement)
    }

    pub(super) fn make_link(&mut self, link: PathBuf, number: DeviceNumber) {
        self.remove_links(number);
        self.links.insert(link.clone(), number);
        self.by_device.insert(number, link);
    }

    pub(super) fn lose_power(&mut self) {
        // A new boot processes everything again.
        *self = Udev { held: self.held, ..Udev::default() };
    }
}
