//! Composes and parses the names of device-mapper devices (`docs/spec/engine/storage-stack.md` §1).
//! The device-mapper UUID of each device is the same text as its name.

use crate::base::ids::{DevUuid, FsUuid, PoolUuid};

/// Version of the name format.
const FORMAT: &str = "stratis-1";

/// The role of a device-mapper device in a pool's stack, from the bottom up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The data devices, joined.
    OriginSub,
    /// The cache metadata.
    CacheMeta,
    /// The cache blocks.
    CacheSub,
    /// The cache over the joined data devices. In version 2 without a cache, a placeholder in its
    /// place.
    Cache,
    /// The crypt device of the pool (version 2).
    Crypt,
    /// The metadata volume: an XFS that holds the filesystem records.
    Mdv,
    /// The thin metadata.
    ThinMeta,
    /// The spare thin metadata, to which a repair writes.
    ThinMetaSpare,
    /// The thin data.
    ThinData,
    /// The thin pool.
    ThinPool,
}

impl Role {
    /// Every role, from the bottom of the stack up.
    pub const ALL: [Role; 10] = [
        Role::OriginSub,
        Role::CacheMeta,
        Role::CacheSub,
        Role::Cache,
        Role::Crypt,
        Role::Mdv,
        Role::ThinMeta,
        Role::ThinMetaSpare,
        Role::ThinData,
        Role::ThinPool,
    ];

    fn suffix(self) -> &'static str {
        match self {
            Role::OriginSub => "physical-originsub",
            Role::CacheMeta => "physical-metasub",
            Role::CacheSub => "physical-cachesub",
            Role::Cache => "physical-cache",
            Role::Crypt => "crypt",
            Role::Mdv => "flex-mdv",
            Role::ThinMeta => "flex-thinmeta",
            Role::ThinMetaSpare => "flex-thinmetaspare",
            Role::ThinData => "flex-thindata",
            Role::ThinPool => "thinpool-pool",
        }
    }

    /// Name of the pool's device in this role.
    pub fn name(self, pool: PoolUuid) -> String {
        format!("{FORMAT}-private-{}-{}", pool.simple(), self.suffix())
    }
}

/// Name of the crypt device on a device of an encrypted version 1 pool.
pub fn opened_device(device: DevUuid) -> String {
    format!("{FORMAT}-private-{}-crypt", device.simple())
}

/// Name of a filesystem's thin device.
pub fn filesystem(pool: PoolUuid, filesystem: FsUuid) -> String {
    format!("{FORMAT}-{}-thin-fs-{}", pool.simple(), filesystem.simple())
}

/// The pool that a device-mapper device belongs to, if its name has Stratis' format.
pub fn pool_of(name: &str) -> Option<PoolUuid> {
    let rest = name.strip_prefix(FORMAT)?.strip_prefix('-')?;
    let (rest, private) = match rest.strip_prefix("private-") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let (uuid, suffix) = rest.split_at_checked(32)?;
    let suffix = suffix.strip_prefix('-')?;
    let known = match private {
        true => Role::ALL.iter().any(|role| role.suffix() == suffix),
        false => suffix.strip_prefix("thin-fs-")?.parse::<FsUuid>().is_ok(),
    };
    if known { uuid.parse().ok() } else { None }
}

/// The pool and filesystem of a thin device, if the name is that of a filesystem's thin device.
pub fn filesystem_of(name: &str) -> Option<(PoolUuid, FsUuid)> {
    let (pool, filesystem) = name.strip_prefix(FORMAT)?.strip_prefix('-')?.split_once("-thin-fs-")?;
    Some((pool.parse().ok()?, filesystem.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let pool = PoolUuid::from_random([7; 16]);
        for role in Role::ALL {
            assert_eq!(pool_of(&role.name(pool)), Some(pool), "{role:?}");
        }
        let fs = FsUuid::from_random([9; 16]);
        let of_filesystem = filesystem(pool, fs);
        assert_eq!((pool_of(&of_filesystem), filesystem_of(&of_filesystem)), (Some(pool), Some((pool, fs))));
        assert_eq!(filesystem_of(&Role::Mdv.name(pool)), None);
        for foreign in ["", "vg-root", "stratis-1-private-zz-flex-mdv", "stratis-2-private", "stratis-1-ünü"] {
            assert_eq!(pool_of(foreign), None, "{foreign}");
        }
    }
}
