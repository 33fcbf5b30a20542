//! The thread `udev`: makes a request of each event of a block device.
//!
//! Must never know: what an event means for a pool.
//!
//! Events of one device are dealt with one after the other, in their order, since the later one tells what is true now; those
//! of different devices side by side, since one of them may set up a pool, which takes time.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use threads::{stop::Stop, wake::Waker};

use super::{Ended, Error, Submit, Task, Woken, wait};
use crate::{
    engine::ops,
    platform::{DeviceAction, DeviceEvent, DeviceEvents},
};

/// The watcher. [`DeviceWatch::run`] is its thread.
pub struct DeviceWatch {
    source: Box<dyn DeviceEvents>,
    waker: Waker,
    submit: Submit,
    /// Unbounded, but holds at most one message for each device: events that have been dealt with.
    ended: (Sender<PathBuf>, Receiver<PathBuf>),
    /// What stands for events that were lost. Unbounded, but holds one list at most: there is one look at a time.
    found: (Sender<Vec<DeviceEvent>>, Receiver<Vec<DeviceEvent>>),
}

/// Events by device: an entry for each device of which one is being dealt with, with those that wait for that. Changes
/// merge, so a queue grows only when a device comes and goes again and again while one event of it is dealt with.
#[derive(Debug, Default)]
struct Queues {
    devices: BTreeMap<PathBuf, VecDeque<DeviceEvent>>,
}

impl Queues {
    /// An event has come; gives it back if it is to be dealt with now.
    fn event(&mut self, event: DeviceEvent) -> Option<DeviceEvent> {
        let Some(queue) = self.devices.get_mut(&event.path) else {
            self.devices.insert(event.path.clone(), VecDeque::new());
            return Some(event);
        };
        match queue.back_mut() {
            // Of several changes the last tells all.
            Some(last) if last.action == DeviceAction::Change && event.action == DeviceAction::Change => *last = event,
            _ => queue.push_back(event),
        }
        None
    }

    /// The event of this device has been dealt with; gives the next.
    fn ended(&mut self, path: &PathBuf) -> Option<DeviceEvent> {
        let next = self.devices.get_mut(path)?.pop_front();
        if next.is_none() {
            self.devices.remove(path);
        }
        next
    }
}

impl DeviceWatch {
    /// A watcher of this source.
    pub fn new(source: Box<dyn DeviceEvents>, waker: Waker, submit: Submit) -> DeviceWatch {
        DeviceWatch { source, waker, submit, ended: unbounded(), found: unbounded() }
    }

    /// Works until the stop.
    ///
    /// # Errors
    /// When waiting is not possible or the source is broken for good.
    pub fn run(mut self, stop: &Stop) -> Result<(), Error> {
        stop.on_stop(self.waker.clone());
        let mut queues = Queues::default();
        let (mut lost, mut looking) = (false, false);
        while wait(Some(self.source.fd()), &self.waker, stop, None)? != Woken::Stop {
            for path in self.ended.1.try_iter() {
                if let Some(event) = queues.ended(&path) {
                    self.deal_with(event);
                }
            }
            for found in self.found.1.try_iter() {
                looking = false;
                for event in found {
                    if let Some(event) = queues.event(event) {
                        self.deal_with(event);
                    }
                }
            }
            while let Some(event) = self.source.next().map_err(Error::Source)? {
                if let Some(event) = queues.event(event) {
                    self.deal_with(event);
                }
            }
            // Asked for after reading, so that what is found is later than what was lost.
            lost |= self.source.take_lost();
            if lost && !looking {
                (lost, looking) = (false, true);
                self.look_at_all();
            }
        }
        Ok(())
    }

    /// Has all devices looked at; what is found goes the way of events, so that it keeps their order.
    fn look_at_all(&self) {
        let mut ended = Ended::of(Vec::new(), &self.found.0, &self.waker);
        let chain = ops::present_devices(move |events| {
            ended.key = Some(events);
            drop(ended);
        });
        log::info!("events of block devices were lost; looking at all devices");
        (self.submit)(Task { label: "a look at all devices after lost events".to_owned(), chain });
    }

    fn deal_with(&self, event: DeviceEvent) {
        let label = format!("{:?} of {}", event.action, event.path.display());
        let ended = Ended::of(event.path.clone(), &self.ended.0, &self.waker);
        (self.submit)(Task { label, chain: ended.after(ops::device_event(event)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str, action: DeviceAction) -> DeviceEvent {
        DeviceEvent { action, path: path.into(), device: None, unlinked: None }
    }

    #[test]
    fn events_of_one_device_wait_for_each_other_and_changes_merge() {
        use DeviceAction::{Add, Change, Remove};
        let mut queues = Queues::default();
        let (a, b) = (PathBuf::from("a"), PathBuf::from("b"));
        assert_eq!(queues.event(event("a", Add)), Some(event("a", Add)));
        for action in [Change, Change, Remove, Add, Change, Change] {
            assert_eq!(queues.event(event("a", action)), None);
        }
        assert_eq!(queues.event(event("b", Remove)), Some(event("b", Remove)), "another device does not wait");
        for action in [Change, Remove, Add, Change] {
            assert_eq!(queues.ended(&a), Some(event("a", action)));
        }
        assert_eq!((queues.ended(&a), queues.ended(&b)), (None, None));
        assert!(queues.devices.is_empty(), "nothing is kept of devices without events");
    }
}
