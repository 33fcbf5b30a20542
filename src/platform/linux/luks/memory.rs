//! Limits how many keys are derived in parallel by the memory available. This module knows nothing
//! of keys.
//!
//! A derivation takes the memory that was chosen when its keyslot was made, up to 1 GiB or half of
//! that machine's memory. Eight at once would bring in the OOM killer.

use std::fs;

use parking_lot::{Condvar, Mutex};

use crate::base::units::Bytes;

/// Assumed memory of a machine that does not report it.
const MACHINE: Bytes = Bytes(2 << 30);

/// Memory that derivations share.
pub(super) struct Memory {
    limit: Bytes,
    used: Mutex<Bytes>,
    freed: Condvar,
}

/// Memory granted until this is dropped.
pub(super) struct MemoryGrant<'a> {
    memory: &'a Memory,
    amount: Bytes,
}

impl Memory {
    /// Half of the machine's memory.
    pub(super) fn of_this_machine() -> Memory {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Memory::limited(Bytes(total(&text).unwrap_or(MACHINE).0 / 2))
    }

    fn limited(limit: Bytes) -> Memory {
        Memory { limit, used: Mutex::new(Bytes::ZERO), freed: Condvar::new() }
    }

    /// Waits until this much memory is free. Grants a request above the limit if it is the only
    /// one.
    pub(super) fn take(&self, amount: Bytes) -> MemoryGrant<'_> {
        let mut used = self.used.lock();
        self.freed.wait_while(&mut used, |used| *used > Bytes::ZERO && used.saturating_add(amount) > self.limit);
        *used = used.saturating_add(amount);
        MemoryGrant { memory: self, amount }
    }
}

impl Drop for MemoryGrant<'_> {
    fn drop(&mut self) {
        let mut used = self.memory.used.lock();
        *used = used.saturating_sub(self.amount);
        // Wake all: a small request may fit where a large one does not.
        self.memory.freed.notify_all();
    }
}

/// The machine's memory, from `/proc/meminfo`.
fn total(text: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u128 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib * 1024))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn memory_size_is_parsed() {
        assert_eq!(total("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(Bytes(2 << 20)));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(Memory::of_this_machine().limit > Bytes(64 << 20));
    }

    #[test]
    fn grants_stay_within_the_limit() {
        let memory = Memory::limited(Bytes(10));
        let (first, second) = (memory.take(Bytes(6)), memory.take(Bytes(4)));
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _third = memory.take(Bytes(5));
                tell.send(memory.used.lock().0).unwrap();
            });
            drop(second);
            drop(first);
            // Five bytes were free only once the six had been released.
            assert_eq!(told.recv().unwrap(), 5);
        });
        // A request above the limit is granted when it is alone.
        let large = memory.take(Bytes(100));
        assert_eq!(*memory.used.lock(), Bytes(100));
        drop(large);
        assert_eq!(*memory.used.lock(), Bytes::ZERO);
    }
}
