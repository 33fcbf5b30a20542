//! Event sources with a descriptor to wait for, as the engine's watchers need them.
//!
//! Rules: a source of device events holds at most [`EVENTS_MAX`] unread events. Unread change
//! events of one device are merged. Further events are lost, and the source reports that, as when a
//! netlink socket overflows. At a power cut every source becomes readable and reports it. A source
//! sees only events after its creation.
//!
//! The descriptors are eventfds, the only part of the simulation that the real kernel sees.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::{Condvar, Mutex, MutexGuard, WaitTimeoutResult};
use rustix::event::{EventfdFlags, eventfd};

use crate::platform::{DeviceAction, DeviceEvent, DeviceEvents, DmEvents, Error, Result};

const EVENTS_MAX: usize = 4096;

/// A descriptor that is readable while the flag is raised.
pub(super) struct Flag(OwnedFd);

impl Flag {
    pub(super) fn new() -> Result<Flag> {
        match eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC) {
            Ok(fd) => Ok(Flag(fd)),
            Err(errno) => Err(Error::Io { action: "create", path: "an event descriptor".into(), source: errno.into() }),
        }
    }

    fn raise(&self) {
        // This fails only if the counter is full, and then the flag is raised.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn lower(&self) {
        // This fails only if the flag is not raised.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

/// Notified of everything for which a thread or a descriptor may wait.
#[derive(Default)]
pub(super) struct ChangeNotifier {
    threads: Condvar,
    descriptors: Mutex<Vec<Weak<Flag>>>,
}

impl ChangeNotifier {
    pub(super) fn notify_all(&self) {
        self.threads.notify_all();
        self.descriptors.lock().retain(|flag| flag.upgrade().map(|flag| flag.raise()).is_some());
    }

    pub(super) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, until: Instant) -> WaitTimeoutResult {
        self.threads.wait_until(guard, until)
    }

    /// A flag that is raised after each change, as long as it is kept.
    pub(super) fn listen(&self) -> Result<Arc<Flag>> {
        let flag = Arc::new(Flag::new()?);
        self.descriptors.lock().push(Arc::downgrade(&flag));
        Ok(flag)
    }
}

struct DmShared {
    flag: Flag,
    dead: Mutex<bool>,
}

struct DeviceShared {
    flag: Flag,
    queue: Mutex<UnreadEvents>,
}

#[derive(Default)]
struct UnreadEvents {
    events: VecDeque<DeviceEvent>,
    /// Some events did not fit into the queue.
    lost: bool,
    dead: bool,
}

/// The event sources.
#[derive(Default)]
pub(super) struct EventSources {
    dm: Vec<Weak<DmShared>>,
    devices: Vec<Weak<DeviceShared>>,
}

impl EventSources {
    pub(super) fn listen_dm(&mut self) -> Result<Box<dyn DmEvents>> {
        let shared = Arc::new(DmShared { flag: Flag::new()?, dead: Mutex::new(false) });
        self.dm.retain(|weak| weak.strong_count() > 0);
        self.dm.push(Arc::downgrade(&shared));
        Ok(Box::new(DmSource(shared)))
    }

    pub(super) fn listen_devices(&mut self) -> Result<Box<dyn DeviceEvents>> {
        let shared = Arc::new(DeviceShared { flag: Flag::new()?, queue: Mutex::default() });
        self.devices.retain(|weak| weak.strong_count() > 0);
        self.devices.push(Arc::downgrade(&shared));
        Ok(Box::new(DeviceSource(shared)))
    }

    /// Whether any source would see a device event.
    pub(super) fn has_device_listeners(&self) -> bool {
        self.devices.iter().any(|weak| weak.strong_count() > 0)
    }

    pub(super) fn dm_event(&self) {
        self.dm.iter().filter_map(Weak::upgrade).for_each(|shared| shared.flag.raise());
    }

    pub(super) fn device_event(&self, event: &DeviceEvent) {
        for shared in self.devices.iter().filter_map(Weak::upgrade) {
            let mut queue = shared.queue.lock();
            let full = queue.events.len() >= EVENTS_MAX;
            match queue.events.iter_mut().rev().find(|held| held.path == event.path) {
                Some(held) if held.action == DeviceAction::Change && event.action == DeviceAction::Change => {
                    held.device.clone_from(&event.device);
                    held.unlinked.clone_from(&event.unlinked);
                }
                _ if full => {
                    log::warn!("the simulation lost a device event because a source is full: {event:?}");
                    queue.lost = true;
                }
                _ => {
                    queue.events.push_back(event.clone());
                    shared.flag.raise();
                }
            }
        }
    }

    /// Ends every source.
    pub(super) fn lose_power(&mut self) {
        for shared in self.dm.drain(..).filter_map(|weak| weak.upgrade()) {
            *shared.dead.lock() = true;
            shared.flag.raise();
        }
        for shared in self.devices.drain(..).filter_map(|weak| weak.upgrade()) {
            shared.queue.lock().dead = true;
            shared.flag.raise();
        }
    }
}

struct DmSource(Arc<DmShared>);

impl DmEvents for DmSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.flag.0.as_fd()
    }

    fn arm(&mut self) -> Result<()> {
        if *self.0.dead.lock() {
            return Err(Error::PowerCut);
        }
        self.0.flag.lower();
        Ok(())
    }
}

struct DeviceSource(Arc<DeviceShared>);

impl DeviceEvents for DeviceSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.flag.0.as_fd()
    }

    fn next(&mut self) -> Result<Option<DeviceEvent>> {
        let mut queue = self.0.queue.lock();
        if queue.dead {
            return Err(Error::PowerCut);
        }
        let event = queue.events.pop_front();
        if queue.events.is_empty() {
            // Lowered under the queue's lock, so that a concurrent event raises the flag again.
            self.0.flag.lower();
        }
        Ok(event)
    }

    fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.0.queue.lock().lost)
    }
}
