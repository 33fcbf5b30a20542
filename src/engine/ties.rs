//! Decides which device counts when several carry one identity: a clone, a stale copy, a device
//! under a device-mapper device, or a device that has come back under another node.
//!
//! The rules, in this order:
//!
//! 1. The device below a live device-mapper table of the pool belongs to the pool.
//! 2. A device takes precedence over the devices below it: dm-linear, multipath, md, loop devices.
//!    The two are one device.
//! 3. Of devices whose signature blocks agree, the one with the newer metadata counts. The others
//!    are stale.
//! 4. Otherwise the devices clash, and the pool does not start.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use crate::{
    base::ids::{DevUuid, PoolUuid},
    engine::{
        dm_names::{self, Role},
        error::{Error, Result},
        metadata::{HeaderFlags, StaticHeader},
    },
    platform::{self, DeviceNumber, Platform, Timestamp, dm::Target},
};

/// What the kernel says about the devices of one pool.
#[derive(Debug, Clone, Default)]
pub struct Ties {
    /// Devices below live tables of the pool.
    used: BTreeSet<DeviceNumber>,
    /// All devices below each device, direct or indirect.
    lies_on: BTreeMap<DeviceNumber, BTreeSet<DeviceNumber>>,
    /// Devices whose nodes now lead elsewhere, or nowhere.
    gone: BTreeSet<DeviceNumber>,
}

/// The devices of a pool about which the kernel must be asked.
#[derive(Debug, Default)]
pub struct Doubt {
    /// Nodes and numbers of devices that share an identity.
    pub devices: Vec<(PathBuf, DeviceNumber)>,
    /// Identities among these that are known to lie on a LUKS device.
    pub contained: BTreeSet<DevUuid>,
    /// Devices of the running pool.
    pub members: Vec<DeviceNumber>,
}

impl Ties {
    /// Asks the kernel. What the kernel does not report counts as unknown.
    pub fn look(platform: &dyn Platform, pool: PoolUuid, doubt: &Doubt) -> Ties {
        let mut ties = Ties::default();
        let roles = [Role::OriginSub, Role::CacheMeta, Role::CacheSub].map(|role| role.name(pool));
        let opened = doubt.contained.iter().map(|device| dm_names::opened_device(*device));
        for name in roles.into_iter().chain(opened) {
            let table = platform.dm_find(&name).ok().flatten().map(|device| device.table).unwrap_or_default();
            ties.used.extend(table.iter().filter_map(|line| match line.target {
                Target::Linear { device, .. } | Target::Crypt { device, .. } => Some(device),
                _ => None,
            }));
        }
        for (path, number) in &doubt.devices {
            match platform.find_device(path) {
                Ok(found) if found.number != *number => drop(ties.gone.insert(*number)),
                Err(platform::Error::NoDevice { .. }) => drop(ties.gone.insert(*number)),
                _ => {}
            }
        }
        let asked = doubt.devices.iter().map(|(_, number)| *number).chain(doubt.members.iter().copied());
        for number in asked {
            match platform.lower_devices(number) {
                Ok(lower) => drop(ties.lies_on.insert(number, lower)),
                Err(error) => log::warn!("cannot tell what device {}:{} lies on: {error}", number.major, number.minor),
            }
        }
        ties
    }

    /// Whether the device was gone when the kernel was asked.
    pub fn is_gone(&self, device: DeviceNumber) -> bool {
        self.gone.contains(&device)
    }

    /// Whether both numbers stand for one device, because one lies on the other.
    pub fn are_one(&self, a: DeviceNumber, b: DeviceNumber) -> bool {
        a == b || self.holds(a, b) || self.holds(b, a)
    }

    fn holds(&self, holder: DeviceNumber, held: DeviceNumber) -> bool {
        self.lies_on.get(&holder).is_some_and(|lower| lower.contains(&held))
    }

    /// Chooses the copy that counts, by its index in the list.
    pub fn choose(&self, copies: &[Carrier]) -> Choice {
        let number = |at: usize| copies[at].number;
        if let Some(used) = (0..copies.len()).find(|at| self.used.contains(&number(*at))) {
            return Choice::Counts(used);
        }
        let is_held = |at: usize| (0..copies.len()).any(|other| other != at && self.holds(number(other), number(at)));
        let apart: Vec<usize> = (0..copies.len()).filter(|at| !is_held(*at)).collect();
        match apart[..] {
            [] => Choice::Counts(0),
            [one] => Choice::Counts(one),
            _ => newest(copies, &apart).map_or(Choice::Clash(apart), Choice::Counts),
        }
    }
}

/// The copy that is newer than all others, if their signature blocks agree.
fn newest(copies: &[Carrier], apart: &[usize]) -> Option<usize> {
    let known: Vec<(usize, StaticHeader, Option<Timestamp>)> =
        apart.iter().map(|at| copies[*at].area.map(|(header, stamp)| (*at, header, stamp))).collect::<Option<_>>()?;
    let (_, first, _) = known.first()?;
    // Marks come and go with requests and say nothing about the identity of the device.
    let bare = |header: &StaticHeader| StaticHeader { flags: HeaderFlags::NONE, ..*header };
    if known.iter().any(|(_, header, _)| bare(header) != bare(first)) {
        return None;
    }
    let (newest, _, stamp) = known.iter().max_by_key(|(.., stamp)| *stamp)?;
    let unique = known.iter().filter(|(.., other)| other == stamp).count() == 1;
    unique.then_some(*newest)
}

/// One of several devices with one identity.
#[derive(Debug, Clone, Copy)]
pub struct Carrier {
    /// Its number.
    pub number: DeviceNumber,
    /// Its signature block and the time of its metadata; `None`: the device is a LUKS device, which
    /// has no readable signature block.
    pub area: Option<(StaticHeader, Option<Timestamp>)>,
}

/// Result of a choice.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// The device with this index counts.
    Counts(usize),
    /// It is unclear which of these counts.
    Clash(Vec<usize>),
}

/// Whether the crypt device that has the name of a LUKS device lies on this LUKS device, and not on
/// a clone of it.
///
/// # Errors
/// When the kernel does not report it.
pub fn is_opened_on(platform: &dyn Platform, opened: DeviceNumber, luks_device: DeviceNumber) -> Result<bool> {
    Ok(platform.lower_devices(opened).map_err(Error::from)?.contains(&luks_device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::units::Sectors,
        engine::metadata::MetadataVersion,
        platform::{
            dm::{Line, Visibility},
            sim::Sim,
        },
    };

    fn number(minor: u32) -> DeviceNumber {
        DeviceNumber { major: 8, minor }
    }

    fn header(size: u64) -> StaticHeader {
        let (pool, device) = (PoolUuid::from_random([1; 16]), DevUuid::from_random([2; 16]));
        StaticHeader::new(pool, device, MetadataVersion::V2, Sectors(size), 7)
    }

    fn copy(minor: u32, size: u64, seconds: Option<u64>) -> Carrier {
        let stamp = seconds.map(|seconds| Timestamp { seconds, nanoseconds: 0 });
        Carrier { number: number(minor), area: Some((header(size), stamp)) }
    }

    fn closed(minor: u32) -> Carrier {
        Carrier { number: number(minor), area: None }
    }

    fn check(ties: &Ties, copies: &[Carrier], expected: Choice) {
        assert_eq!(ties.choose(copies), expected, "{copies:?}, {ties:?}");
    }

    #[test]
    fn the_newer_of_equal_devices_counts() {
        let ties = Ties::default();
        check(&ties, &[copy(0, 9, Some(1))], Choice::Counts(0));
        check(&ties, &[copy(0, 9, Some(1)), copy(1, 9, Some(2))], Choice::Counts(1));
        check(&ties, &[copy(0, 9, Some(3)), copy(1, 9, Some(2)), copy(2, 9, None)], Choice::Counts(0));
        // A mark that was set after the clone was made does not tell the two apart.
        let mut marked = copy(0, 9, Some(3));
        marked.area = marked.area.map(|(header, at)| (StaticHeader { flags: HeaderFlags::GROWN, ..header }, at));
        check(&ties, &[marked, copy(1, 9, Some(2))], Choice::Counts(0));
    }

    #[test]
    fn indistinguishable_devices_clash() {
        let ties = Ties::default();
        check(&ties, &[copy(0, 9, Some(1)), copy(1, 9, Some(1))], Choice::Clash(vec![0, 1]));
        check(&ties, &[copy(0, 9, None), copy(1, 9, None)], Choice::Clash(vec![0, 1]));
        check(&ties, &[copy(0, 9, Some(1)), copy(1, 8, Some(2))], Choice::Clash(vec![0, 1]));
        check(&ties, &[closed(0), closed(1)], Choice::Clash(vec![0, 1]));
        check(&ties, &[closed(0), copy(1, 9, Some(1))], Choice::Clash(vec![0, 1]));
        let copies = [copy(0, 9, Some(5)), copy(1, 9, Some(5)), copy(2, 9, Some(4))];
        check(&ties, &copies, Choice::Clash(vec![0, 1, 2]));
    }

    #[test]
    fn a_device_counts_before_what_it_lies_on() {
        let ties = Ties { lies_on: [(number(1), [number(0)].into())].into(), ..Ties::default() };
        check(&ties, &[copy(0, 9, Some(2)), copy(1, 9, Some(1))], Choice::Counts(1));
        check(&ties, &[closed(0), closed(1)], Choice::Counts(1));
        // The upper and the lower device are one, so the clone clashes with the upper one alone.
        let copies = [copy(0, 9, Some(1)), copy(1, 9, Some(1)), copy(2, 9, Some(1))];
        check(&ties, &copies, Choice::Clash(vec![1, 2]));
        for (a, b, one) in [(0, 1, true), (1, 0, true), (0, 0, true), (0, 2, false), (1, 2, false)] {
            assert_eq!(ties.are_one(number(a), number(b)), one, "{a} {b}");
        }
    }

    #[test]
    fn devices_under_tables_count_before_all() {
        let mut ties = Ties { used: [number(0)].into(), ..Ties::default() };
        ties.lies_on.insert(number(1), [number(0)].into());
        check(&ties, &[copy(1, 9, Some(2)), copy(0, 8, Some(1))], Choice::Counts(1));
        check(&ties, &[closed(2), closed(0)], Choice::Counts(1));
    }

    /// The crypt device of a LUKS device and that of its clone have one name.
    #[test]
    fn an_opened_device_is_known_by_its_base() {
        let sim = Sim::builder().build();
        let [a, b] = ["/dev/a", "/dev/b"].map(|path| sim.find_device(path.as_ref()).unwrap().number);
        let line = Line::linear(Sectors::ZERO, Sectors(2048), a, Sectors::ZERO);
        let opened = sim.dm_create("x", "x", &[line], Visibility::Private).unwrap();
        assert!(is_opened_on(&sim, opened, a).unwrap());
        assert!(!is_opened_on(&sim, opened, b).unwrap());
    }
}
