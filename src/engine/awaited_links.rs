//! Filesystems that are being made, or whose links requests wait for. An event that finds no link
//! says nothing about these.

use std::{collections::BTreeMap, os::fd::BorrowedFd, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::{base::ids::FsUuid, platform::PendingLinks};

/// Filesystems that are being made or whose links requests wait for, with the number of those
/// requests. A leaf of the lock order.
#[derive(Default)]
pub struct AwaitedLinks(Mutex<BTreeMap<FsUuid, usize>>);

impl AwaitedLinks {
    /// Whether the link of this filesystem is awaited.
    pub fn contains(&self, filesystem: FsUuid) -> bool {
        self.0.lock().contains_key(&filesystem)
    }
}

/// Marks the links of some filesystems as awaited, until it is dropped.
pub struct AwaitedMark {
    all: Arc<AwaitedLinks>,
    filesystems: Vec<FsUuid>,
}

impl AwaitedMark {
    /// Marks filesystems that are being made, or whose links udev is about to be asked for.
    pub fn note(all: &Arc<AwaitedLinks>, filesystems: impl IntoIterator<Item = FsUuid>) -> AwaitedMark {
        let filesystems: Vec<FsUuid> = filesystems.into_iter().collect();
        let mut awaited = all.0.lock();
        filesystems.iter().for_each(|filesystem| *awaited.entry(*filesystem).or_default() += 1);
        drop(awaited);
        AwaitedMark { all: Arc::clone(all), filesystems }
    }

    /// Keeps the mark for as long as a request waits for these links.
    pub fn hold(self, links: Box<dyn PendingLinks>) -> Box<dyn PendingLinks> {
        Box::new(MarkedLinks { links, _awaited: self })
    }
}

impl Drop for AwaitedMark {
    fn drop(&mut self) {
        let mut awaited = self.all.0.lock();
        for filesystem in &self.filesystems {
            let left = awaited.get_mut(filesystem).map_or(0, |count| {
                *count -= 1;
                *count
            });
            if left == 0 {
                awaited.remove(filesystem);
            }
        }
    }
}

/// Links that a request waits for.
struct MarkedLinks {
    links: Box<dyn PendingLinks>,
    _awaited: AwaitedMark,
}

impl PendingLinks for MarkedLinks {
    fn wait(self: Box<Self>, limit: Duration) -> Vec<PathBuf> {
        let MarkedLinks { links, _awaited } = *self;
        links.wait(limit)
    }

    fn hear(&mut self) {
        self.links.hear();
    }

    fn advance(&mut self) -> bool {
        self.links.advance()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.links.fd()
    }

    fn missing(self: Box<Self>) -> Vec<PathBuf> {
        let MarkedLinks { links, _awaited } = *self;
        links.missing()
    }
}
