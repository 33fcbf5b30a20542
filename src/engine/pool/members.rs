//! The block devices of a pool, data and cache: where they are, what their signature blocks say and
//! which LUKS devices they lie on. This file does not know what the pool metadata uses them for.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map},
    path::PathBuf,
};

use crate::{
    base::{ids::DevUuid, units::Sectors},
    engine::{
        bda::{self, Bda},
        devices::{Candidate, Initialized},
        error::{Error, Result},
        luks_devices::device::LuksDevice,
        metadata::{HeaderFlags, StaticHeader},
    },
    platform::{BlockDevice, DeviceNumber, Geometry, Platform},
};

/// A block device of the pool.
#[derive(Debug, Clone)]
pub struct Member {
    /// The device.
    pub device: BlockDevice,
    /// The size that the kernel reports now, and the sector sizes.
    pub geometry: Geometry,
    /// The device's BDA.
    pub bda: Bda,
    /// The LUKS device below the member, in an encrypted version 1 pool. `device` is then the crypt
    /// device on it.
    pub luks_device: Option<LuksDevice>,
}

impl Member {
    /// Makes a member of a device that has just been initialized.
    pub fn of(candidate: Candidate, bda: Bda) -> Member {
        Member { device: candidate.device, geometry: candidate.geometry, bda, luks_device: candidate.luks_device }
    }

    /// The block device that users see: the LUKS device if there is one.
    pub fn outer(&self) -> &BlockDevice {
        self.luks_device.as_ref().map_or(&self.device, |luks_device| &luks_device.device)
    }

    fn is(&self, number: DeviceNumber) -> bool {
        [self.device.number, self.outer().number].contains(&number)
    }
}

/// The block devices of a pool by their identifiers.
#[derive(Debug, Clone, Default)]
pub struct Members(BTreeMap<DevUuid, Member>);

impl FromIterator<(DevUuid, Member)> for Members {
    fn from_iter<T: IntoIterator<Item = (DevUuid, Member)>>(members: T) -> Members {
        Members(members.into_iter().collect())
    }
}

impl Members {
    /// Finds a member.
    pub fn get(&self, device: DevUuid) -> Option<&Member> {
        self.0.get(&device)
    }

    /// Finds a member, to change it.
    pub fn get_mut(&mut self, device: DevUuid) -> Option<&mut Member> {
        self.0.get_mut(&device)
    }

    /// The members with their identifiers.
    pub fn iter(&self) -> btree_map::Iter<'_, DevUuid, Member> {
        self.0.iter()
    }

    /// The members with their identifiers, to change them.
    pub fn iter_mut(&mut self) -> btree_map::IterMut<'_, DevUuid, Member> {
        self.0.iter_mut()
    }

    /// The members.
    pub fn values(&self) -> btree_map::Values<'_, DevUuid, Member> {
        self.0.values()
    }

    /// The LUKS devices below members.
    pub fn luks_devices(&self) -> impl Iterator<Item = &LuksDevice> {
        self.0.values().filter_map(|member| member.luks_device.as_ref())
    }

    /// The LUKS devices below members, to change them.
    pub fn luks_devices_mut(&mut self) -> impl Iterator<Item = &mut LuksDevice> {
        self.0.values_mut().filter_map(|member| member.luks_device.as_mut())
    }

    /// The identifier of the member that has this device number or lies on the LUKS device with
    /// this number.
    pub fn with_number(&self, number: DeviceNumber) -> Option<DevUuid> {
        self.0.iter().find(|(_, member)| member.is(number)).map(|(uuid, _)| *uuid)
    }

    /// Members and the LUKS devices below them: device number, node, identifier.
    pub fn nodes(&self) -> impl Iterator<Item = (DeviceNumber, PathBuf, DevUuid)> {
        let outer = self.0.iter().filter(|(_, member)| member.luks_device.is_some());
        let outer = outer.map(|(uuid, member)| (member.outer(), *uuid));
        let all = self.0.iter().map(|(uuid, member)| (&member.device, *uuid)).chain(outer);
        all.map(|(device, uuid)| (device.number, device.path.clone(), uuid))
    }

    /// Signature blocks of the members.
    pub fn headers(&self) -> Vec<StaticHeader> {
        self.0.values().map(|member| *member.bda.header()).collect()
    }

    /// Makes newly initialized devices members.
    pub fn admit(&mut self, initialized: Vec<Initialized>) -> Vec<DevUuid> {
        let admit = |Initialized { candidate, bda }: Initialized| {
            let uuid = bda.header().device;
            self.0.insert(uuid, Member::of(candidate, bda));
            uuid
        };
        initialized.into_iter().map(admit).collect()
    }

    /// Drops members that [`Members::admit`] added.
    pub fn dismiss(&mut self, devices: &[DevUuid]) {
        self.0.retain(|uuid, _| !devices.contains(uuid));
    }

    /// Notes the size of a device as the kernel reports it now, and logs a change.
    pub(super) fn note_size(&mut self, device: DevUuid, size: Sectors) {
        let Some(member) = self.0.get_mut(&device).filter(|member| member.geometry.size != size) else { return };
        let (path, known) = (member.device.path.display(), member.bda.header().device_size);
        let (now, recorded) = (size.readable(), known.readable());
        match size.cmp(&known) {
            Ordering::Less => log::warn!("{path} has shrunk to {now} from {recorded}: data in it may be lost"),
            Ordering::Equal => log::info!("{path} has its recorded size of {recorded} again"),
            Ordering::Greater => log::info!("{path} now has {now}; grow it in the pool to use that"),
        }
        member.geometry.size = size;
    }

    /// Whether a member has grown and the pool metadata does not record that yet.
    pub fn has_grown(&self) -> bool {
        self.0.values().any(|member| member.bda.header().flags.contains(HeaderFlags::GROWN))
    }

    /// Repairs the signature blocks once the metadata shows how unfinished requests ended: rewrites
    /// damaged copies and clears the marks of those requests. A signature block that cannot be
    /// written does no harm next to such metadata; the next set-up tries again.
    pub fn confirm(&mut self, platform: &dyn Platform) {
        let marks = HeaderFlags::UNCOMMITTED.with(HeaderFlags::GROWN);
        let members = self.0.values_mut();
        let mut devices: Vec<_> = members.map(|member| (member.device.path.as_path(), &mut member.bda)).collect();
        // This writes only if there is something to repair.
        let cleared = bda::clear_flags(platform, &mut devices, marks);
        for ((path, _), cleared) in devices.into_iter().zip(cleared) {
            if let Err(error) = cleared {
                log::warn!("cannot write the header of {}: {}", path.display(), Error::from(error).sentence());
            }
        }
    }

    /// Closes the LUKS devices. Nothing may lie on them any more.
    ///
    /// # Errors
    /// When a LUKS device is in use.
    pub fn close_luks_devices(&self, platform: &dyn Platform) -> Result<()> {
        self.luks_devices().try_for_each(|luks_device| luks_device.close(platform))
    }
}
