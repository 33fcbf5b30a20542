//! Crypt devices: data is transformed sector by sector on its way to the LUKS device.
//!
//! Rules:
//! - A sector is combined with a stream of bytes that depends on the volume key, the sector's
//!   number and the encryption sector size. With another key, or at another place, it reads as
//!   garbage. Zeros and the stream itself map to themselves. So data that was never written reads
//!   as zeros with any key, and takes no memory; on a real LUKS device it reads as garbage. Each
//!   512-byte sector is independent, as each 16-byte block is in XTS, so a write that was torn
//!   between sectors remains readable.
//! - While a re-encryption job is unfinished, finished data has the new encoding and the rest the
//!   old one. In between lies the hot zone. The contents of its sectors at the start of the zone
//!   are known (marks): a sector that still has that content has the old encoding; any other
//!   sector, and zeros, have the new one. So I/O to the zone need not wait, and after a power cut
//!   both kinds of sectors can be told apart.
//! - The zone covers more than its data: ranges of zeros are in their final state from the start.
//! - Until the marks are known to be on the disk, a write to the hot zone uses the old encoding and
//!   ends the zone there; the rest is left to the next zone. Once the header that names the zone is
//!   written, the first write flushes that header before the write uses the new encoding.
//! - Discards are not passed down, as without `allow_discards`.
//!
//! This module knows nothing of headers, of passphrases, or of how a re-encryption job proceeds.

use std::ops::Range;

use nix::libc;

use super::{
    cipher::{Opened, Phase, SECTOR_LENGTH},
    dm_devices::{self, dm_node},
    incomplete::{Incomplete, IoResult, Patience},
    machine::MachineState,
    targets::uses,
};
use crate::{
    base::units::SECTOR,
    platform::{DeviceAction, DeviceNumber, dm::Visibility},
};

/// The whole sectors that cover a range.
fn whole(at: u64, length: usize) -> Range<u64> {
    at - at % SECTOR..(at + length as u64).next_multiple_of(SECTOR)
}

impl MachineState {
    pub(super) fn opened(&self, minor: u32) -> Option<&Opened> {
        self.dm.get_minor(minor)?.opened.as_ref()
    }

    pub(super) fn opened_mut(&mut self, minor: u32) -> Option<&mut Opened> {
        self.dm.device_mut(minor)?.opened.as_mut()
    }

    pub(super) fn read_crypt(&self, minor: u32, at: u64, out: &mut [u8], patience: Patience) -> IoResult {
        let opened = self.opened(minor).ok_or(Incomplete::Errno(libc::ENXIO))?;
        let range = whole(at, out.len());
        if range != (at..at + out.len() as u64) {
            let mut sectors = vec![0; (range.end - range.start) as usize];
            self.read_crypt(minor, range.start, &mut sectors, patience)?;
            let from = (at - range.start) as usize;
            out.copy_from_slice(&sectors[from..from + out.len()]);
            return Ok(());
        }
        self.read_at(opened.below, opened.offset + at, out, patience)?;
        for (sector, bytes) in (at / SECTOR..).zip(out.chunks_exact_mut(SECTOR_LENGTH)) {
            opened.decode(sector, bytes);
        }
        Ok(())
    }

    pub(super) fn write_crypt(&mut self, minor: u32, at: u64, bytes: &[u8], patience: Patience) -> IoResult {
        let range = whole(at, bytes.len());
        let mut sectors = vec![0; (range.end - range.start) as usize];
        if range != (at..at + bytes.len() as u64) {
            self.read_crypt(minor, range.start, &mut sectors, patience)?;
        }
        let from = (at - range.start) as usize;
        sectors[from..from + bytes.len()].copy_from_slice(bytes);
        self.touch_zone(minor, &range)?;
        let opened = self.opened(minor).ok_or(Incomplete::Errno(libc::ENXIO))?;
        for (sector, bytes) in (range.start / SECTOR..).zip(sectors.chunks_exact_mut(SECTOR_LENGTH)) {
            opened.encode(sector, bytes);
        }
        let (below, offset) = (opened.below, opened.offset);
        self.write_at(below, offset + range.start, &sectors, patience)
    }

    /// Applies the effect of a write on the hot zone.
    fn touch_zone(&mut self, minor: u32, range: &Range<u64>) -> IoResult {
        let Some(opened) = self.opened_mut(minor) else { return Ok(()) };
        let below = opened.below;
        let (done, unit) = (opened.done, u64::from(opened.sector_size));
        let Some(zone) = opened.zone.as_mut().filter(|zone| range.start < zone.end && range.end > done) else {
            return Ok(());
        };
        match zone.phase {
            Phase::Noted => zone.end = zone.end.min(range.start.max(done) / unit * unit),
            Phase::Named => {
                self.flush(below, Patience::Pass)?;
                self.heat_zone(minor);
            }
            Phase::Hot => {}
        }
        Ok(())
    }

    /// Marks the header that names the zone as durable.
    pub(super) fn heat_zone(&mut self, minor: u32) {
        if let Some(zone) = self.opened_mut(minor).and_then(|opened| opened.zone.as_mut()) {
            zone.phase = Phase::Hot;
        }
    }

    /// Activates a crypt device.
    pub(super) fn crypt_up(&mut self, name: &str, uuid: &str, opened: Opened) -> Result<(), i32> {
        let minor = self.dm_new(name, uuid)?;
        let below = opened.below;
        if let Err(errno) = self.check_below(minor, below) {
            // No process can have it open yet.
            let _ = self.dm_remove(name);
            return Err(errno);
        }
        self.dm.open(below);
        if let Some(device) = self.dm.device_mut(minor) {
            device.opened = Some(opened);
            device.visibility = Visibility::Public;
        }
        self.crypt_changed(minor);
        self.device_event(DeviceAction::Add, &dm_node(minor));
        Ok(())
    }

    /// Rebuilds the table of a crypt device.
    pub(super) fn crypt_changed(&mut self, minor: u32) {
        if let Some(device) = self.dm.device_mut(minor) {
            if let Some(opened) = &device.opened {
                device.table = opened.lines();
            }
        }
        self.events.dm_event();
    }

    /// The first part of a device's range that may hold something other than zeros. The part is at
    /// most 4 KiB long, unless a longer part holds no zeros at all.
    pub(super) fn next_stored(&self, number: DeviceNumber, range: Range<u64>) -> IoResult<Option<Range<u64>>> {
        if range.is_empty() {
            return Ok(None);
        }
        if let Some(disk) = self.disks.get(number) {
            return Ok(disk.next_stored(range));
        }
        self.next_stored_above(number, range)
    }

    /// The largest encryption sector size of the crypt devices in the stack below a device,
    /// including itself; 0 for none.
    pub(super) fn encryption_sector(&self, number: DeviceNumber) -> u32 {
        let Some(device) = self.dm.get(number) else { return 0 };
        let own = device.opened.as_ref().map_or(0, |opened| opened.sector_size);
        let below = uses(&device.table).into_iter().map(|below| self.encryption_sector(below));
        below.fold(own, u32::max)
    }

    /// Minor number of a crypt device by name.
    pub(super) fn opened_named(&self, name: &str) -> Option<u32> {
        self.dm.by_name(name).filter(|minor| self.opened(*minor).is_some())
    }

    /// Raises a change event: the contents of a device-mapper device may have changed.
    pub(super) fn changed_event(&mut self, minor: u32) {
        let visible =
            self.dm.get(dm_devices::number(minor)).is_some_and(|device| device.visibility == Visibility::Public);
        if visible {
            self.device_event(DeviceAction::Change, &dm_node(minor));
        }
    }
}
