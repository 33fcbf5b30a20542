//! The state of a thin pool: its data blocks, their mappings, and the last commit.
//!
//! The rules are those of the kernel's `dm-thin` (read for facts only, nothing is copied) with
//! these simplifications:
//! - The mappings are kept here instead of as B-trees on the metadata device. The device's first
//!   sector names them, so they are found exactly where that sector is found. A zeroed first block
//!   means a new pool.
//! - A block is shared while more than one device maps it. (The kernel compares times, and also
//!   copies blocks that were shared once.)
//! - Metadata use is a formula, [`Meta::used_metadata`]: it grows with the mappings, but is not the
//!   kernel's number. A tenth of the metadata blocks, 4096 at most, is reserved as in the kernel,
//!   and the status counts the reserve as used.
//! - The kernel commits once a second by itself. Here, at a power cut, the generator decides for
//!   each pool whether such a commit has just happened.
//!
//! Pure: knows nothing of devices, suspended tables or power. Persistent maps make commits free.

use std::{collections::BTreeMap, ops::Range};

use imbl::{OrdMap, OrdSet};
use nix::libc;

/// Key of a pool's mappings, stored in the first sector of the metadata device.
pub(super) type MappingsKey = [u8; 16];

/// Largest thin device number.
pub(super) const THIN_ID_MAX: u64 = (1 << 24) - 1;

/// Most 4 KiB blocks that the kernel uses of a metadata device.
pub(super) const METADATA_BLOCKS_MAX: u64 = 255 * ((1 << 14) - 64);

/// Size of a metadata block in bytes.
pub(super) const METADATA_BLOCK: u64 = 4096;

/// Upper limit of the metadata reserve in blocks.
const METADATA_RESERVE_MAX: u64 = 4096;

/// Number of mappings that a leaf of the metadata holds.
pub(super) const MAPPINGS_PER_LEAF: u64 = 126;

const MAGIC: u64 = 27_022_010;

/// The mappings of a pool at one moment.
#[derive(Clone)]
pub(super) struct Meta {
    pub(super) transaction: u64,
    /// Sectors per data block.
    pub(super) block: u64,
    pub(super) data_blocks: u64,
    pub(super) metadata_blocks: u64,
    pub(super) needs_check: bool,
    pub(super) held_root: bool,
    thins: OrdMap<u32, OrdMap<u64, u64>>,
    /// Number of devices that map a block; absent for one or none.
    shared: OrdMap<u64, u32>,
    used: u64,
    /// Metadata blocks that a test has used up, as mappings would.
    pub(super) taken: u64,
    /// No block from this one on was ever used.
    frontier: u64,
    /// Free blocks below the frontier.
    freed: OrdSet<u64>,
}

impl Meta {
    pub(super) fn new(block: u64, metadata_blocks: u64) -> Meta {
        Meta {
            transaction: 0,
            block,
            data_blocks: 0,
            metadata_blocks,
            needs_check: false,
            held_root: false,
            thins: OrdMap::new(),
            shared: OrdMap::new(),
            used: 0,
            taken: 0,
            frontier: 0,
            freed: OrdSet::new(),
        }
    }

    /// Free metadata blocks, not counting the reserve. With none left, the pool stops mapping at
    /// its next commit.
    pub(super) fn free_metadata(&self) -> u64 {
        let reserve = (self.metadata_blocks / 10).min(METADATA_RESERVE_MAX);
        self.metadata_blocks.saturating_sub(self.used_metadata()).saturating_sub(reserve)
    }

    /// Free metadata blocks, including the reserve.
    pub(super) fn unused_metadata(&self) -> u64 {
        self.metadata_blocks.saturating_sub(self.used_metadata())
    }

    /// Whether the whole metadata device can hold the mappings of this many more blocks.
    pub(super) fn has_metadata_for(&self, blocks: u64) -> bool {
        let more = (self.used + blocks).div_ceil(MAPPINGS_PER_LEAF) - self.used.div_ceil(MAPPINGS_PER_LEAF);
        self.used_metadata() + more <= self.metadata_blocks
    }

    /// Metadata blocks in use: the superblock, the two space maps (a bitmap block covers 16320
    /// blocks), the two root trees, one block per device, and one per 126 mapped blocks, which a
    /// leaf holds.
    pub(super) fn used_metadata(&self) -> u64 {
        let maps = self.metadata_blocks.div_ceil(16320) + self.data_blocks.div_ceil(16320);
        let devices = self.thins.len() as u64;
        7 + self.taken + maps + devices + devices.div_ceil(126) + self.used.div_ceil(MAPPINGS_PER_LEAF)
    }

    fn room_for_metadata(&self) -> bool {
        self.used_metadata() < self.metadata_blocks
    }

    pub(super) fn used_data(&self) -> u64 {
        self.used
    }

    pub(super) fn free_data(&self) -> u64 {
        self.data_blocks - self.used
    }

    pub(super) fn exists(&self, id: u32) -> bool {
        self.thins.contains_key(&id)
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        self.thins.keys().copied().collect()
    }

    /// All mappings of a device: block of the device, data block.
    #[cfg(test)]
    pub(super) fn mappings(&self, id: u32) -> Vec<(u64, u64)> {
        self.thins.get(&id).map(|map| map.iter().map(|(v, d)| (*v, *d)).collect()).unwrap_or_default()
    }

    pub(super) fn create(&mut self, id: u32) -> Result<(), i32> {
        if self.exists(id) {
            return Err(libc::EEXIST);
        }
        if !self.room_for_metadata() {
            return Err(libc::ENOSPC);
        }
        self.thins.insert(id, OrdMap::new());
        Ok(())
    }

    pub(super) fn snapshot(&mut self, id: u32, origin: u32) -> Result<(), i32> {
        if self.exists(id) {
            return Err(libc::EEXIST);
        }
        let map = self.thins.get(&origin).ok_or(libc::ENODATA)?.clone();
        if !self.room_for_metadata() {
            return Err(libc::ENOSPC);
        }
        for (_, data) in &map {
            *self.shared.entry(*data).or_insert(1) += 1;
        }
        self.thins.insert(id, map);
        Ok(())
    }

    pub(super) fn delete(&mut self, id: u32) -> Result<(), i32> {
        let map = self.thins.remove(&id).ok_or(libc::ENODATA)?;
        for (_, data) in &map {
            self.release(*data);
        }
        Ok(())
    }

    pub(super) fn lookup(&self, id: u32, block: u64) -> Option<u64> {
        self.thins.get(&id)?.get(&block).copied()
    }

    pub(super) fn is_shared(&self, data: u64) -> bool {
        self.shared.contains_key(&data)
    }

    /// Number of mapped sectors and the highest mapped sector of a device.
    pub(super) fn mapped(&self, id: u32) -> Option<(u64, Option<u64>)> {
        let map = self.thins.get(&id)?;
        Some((map.len() as u64 * self.block, map.get_max().map(|(block, _)| (block + 1) * self.block - 1)))
    }

    /// A free data block, which stays free until it is mapped. Blocks that the last commit still
    /// uses are not given out, so that a return to that commit finds its data. Formerly used blocks
    /// come first: new devices then find old data in them, and a long-lived machine does not keep
    /// everything that was ever written.
    fn free_block(&self, committed: &Meta) -> Option<u64> {
        let unused = |block: &u64| *block >= committed.frontier || committed.freed.contains(block);
        let again = self.freed.iter().copied().find(unused);
        again.or_else(|| (self.frontier < self.data_blocks).then_some(self.frontier))
    }

    /// Maps a block of a device to a free data block, replacing its former mapping.
    fn map(&mut self, id: u32, block: u64, data: u64) {
        if data == self.frontier {
            self.frontier += 1;
        } else {
            self.freed.remove(&data);
        }
        self.used += 1;
        let Some(map) = self.thins.get_mut(&id) else { return };
        if let Some(old) = map.insert(block, data) {
            self.release(old);
        }
    }

    /// Unmaps the blocks of a range. Returns whether there were any.
    fn unmap(&mut self, id: u32, blocks: Range<u64>) -> bool {
        let Some(map) = self.thins.get_mut(&id) else { return false };
        let mapped: Vec<(u64, u64)> = map.range(blocks).map(|(v, d)| (*v, *d)).collect();
        for (block, _) in &mapped {
            map.remove(block);
        }
        for (_, data) in &mapped {
            self.release(*data);
        }
        !mapped.is_empty()
    }

    fn release(&mut self, data: u64) {
        match self.shared.get(&data).copied() {
            Some(2) => {
                self.shared.remove(&data);
            }
            Some(users) => {
                self.shared.insert(data, users - 1);
            }
            None => {
                self.freed.insert(data);
                self.used -= 1;
            }
        }
    }

    /// Recounts used blocks and their users from the mappings. For checks in tests.
    #[cfg(test)]
    pub(super) fn recount(&self) -> bool {
        let mut users: BTreeMap<u64, u32> = BTreeMap::new();
        for map in self.thins.values() {
            for data in map.values() {
                *users.entry(*data).or_default() += 1;
            }
        }
        let shared_right = users.iter().all(|(data, n)| self.shared.get(data).copied().unwrap_or(1) == *n);
        let free_right = (0..self.frontier).all(|data| users.contains_key(&data) != self.freed.contains(&data));
        let no_more = self.shared.keys().all(|data| users.contains_key(data));
        users.len() as u64 == self.used && shared_right && free_right && no_more
    }
}

/// A pool's mappings: the last commit and the present state.
pub(super) struct Store {
    pub(super) current: Meta,
    committed: Meta,
    /// There is something to commit.
    pub(super) dirty: bool,
    /// `thin_check` finds it damaged, as after a fault of the metadata device.
    pub(super) damaged: bool,
}

impl Store {
    pub(super) fn new(meta: Meta) -> Store {
        Store { committed: meta.clone(), current: meta, dirty: false, damaged: false }
    }

    /// Commits the present state. The caller has made it durable.
    pub(super) fn commit(&mut self) {
        self.committed = self.current.clone();
        self.dirty = false;
    }

    /// Goes back to the last commit.
    pub(super) fn abort(&mut self) {
        self.current = self.committed.clone();
        self.dirty = false;
    }

    pub(super) fn free_block(&self) -> Option<u64> {
        self.current.free_block(&self.committed)
    }

    pub(super) fn map(&mut self, id: u32, block: u64, data: u64) {
        self.current.map(id, block, data);
        self.dirty = true;
    }

    pub(super) fn unmap(&mut self, id: u32, blocks: Range<u64>) {
        self.dirty |= self.current.unmap(id, blocks);
    }
}

/// The mappings of all pools that ever existed, by the key in their metadata device.
#[derive(Default)]
pub(super) struct Stores {
    stores: BTreeMap<MappingsKey, Store>,
}

impl Stores {
    pub(super) fn insert(&mut self, key: MappingsKey, store: Store) {
        self.stores.insert(key, store);
    }

    pub(super) fn get(&self, key: &MappingsKey) -> Option<&Store> {
        self.stores.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &MappingsKey) -> Option<&mut Store> {
        self.stores.get_mut(key)
    }

    /// Goes back to the last commit of each pool.
    pub(super) fn lose_power(&mut self) {
        self.stores.values_mut().for_each(Store::abort);
    }
}

/// The first sector of a metadata device.
pub(super) fn superblock(key: &MappingsKey, transaction: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[16..32].copy_from_slice(key);
    bytes[32..40].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[40..44].copy_from_slice(&2_u32.to_le_bytes());
    bytes[48..56].copy_from_slice(&transaction.to_le_bytes());
    bytes
}

/// The key in the first sector of a metadata device, if it is one.
pub(super) fn key_of(sector: &[u8]) -> Option<MappingsKey> {
    let magic = sector.get(32..40)?;
    if magic != MAGIC.to_le_bytes() {
        return None;
    }
    sector.get(16..32)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Meta, Store};

    #[derive(Debug, Clone)]
    enum Step {
        Create(u32),
        Snapshot(u32, u32),
        Delete(u32),
        Write(u32, u64),
        Discard(u32, u64, u64),
        Commit,
        Abort,
    }

    fn step() -> impl Strategy<Value = Step> {
        let id = 0..5_u32;
        prop_oneof![
            2 => id.clone().prop_map(Step::Create),
            1 => (id.clone(), id.clone()).prop_map(|(a, b)| Step::Snapshot(a, b)),
            1 => id.clone().prop_map(Step::Delete),
            6 => (id.clone(), 0..12_u64).prop_map(|(a, b)| Step::Write(a, b)),
            2 => (id, 0..12_u64, 0..12_u64).prop_map(|(a, b, n)| Step::Discard(a, b, n)),
            1 => Just(Step::Commit),
            1 => Just(Step::Abort),
        ]
    }

    proptest! {
        /// The counts agree with the mappings after any history, and no block in use by a commit is
        /// given out before the next commit.
        #[test]
        fn counts_agree(steps in prop::collection::vec(step(), 1..120)) {
            let mut store = Store::new(Meta { data_blocks: 6, ..Meta::new(2048, 1024) });
            for step in steps {
                match step {
                    Step::Create(id) => drop(store.current.create(id)),
                    Step::Snapshot(id, origin) => drop(store.current.snapshot(id, origin)),
                    Step::Delete(id) => drop(store.current.delete(id)),
                    Step::Write(id, block) if store.current.exists(id) => {
                        let held = store.current.lookup(id, block);
                        if held.is_none_or(|data| store.current.is_shared(data)) {
                            if let Some(free) = store.free_block() {
                                for thin in store.committed.ids() {
                                    prop_assert!(store.committed.mappings(thin).iter().all(|(_, d)| *d != free));
                                }
                                store.map(id, block, free);
                            }
                        }
                    }
                    Step::Write(..) => {}
                    Step::Discard(id, from, n) => store.unmap(id, from..from + n),
                    Step::Commit => store.commit(),
                    Step::Abort => store.abort(),
                }
                prop_assert!(store.current.recount());
                prop_assert!(store.current.used_data() <= 6);
            }
        }
    }
}
