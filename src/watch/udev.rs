//! The thread `udev`: turns each event of a block device into a request.
//!
//! Must never know: what an event means for a pool.
//!
//! Events of one device are processed one after the other, since the later one is the current
//! state. Events of different devices are processed in parallel, since one of them may set up a
//! pool, which takes time.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use threads::{pulse::Pulse, stop::Stop, wake::Waker};

use super::{EndReport, Error, SubmitWatched, WatchRequest, Woken, wait};
use crate::{
    engine::ops,
    platform::{DeviceAction, DeviceEvent, DeviceEvents},
};

/// The watcher. [`DeviceWatch::run`] is its thread.
pub struct DeviceWatch {
    source: Box<dyn DeviceEvents>,
    waker: Waker,
    submit: SubmitWatched,
    /// Processed events. Unbounded, but holds at most one message for each device.
    ended: (Sender<PathBuf>, Receiver<PathBuf>),
    /// Replacements for lost events. Unbounded, but holds at most one list: only one scan runs at a
    /// time.
    found: (Sender<Vec<DeviceEvent>>, Receiver<Vec<DeviceEvent>>),
}

/// Events by device: an entry for each device with an event in process, and the events that wait
/// for it. Changes merge, so a queue grows only if a device is added and removed again and again
/// while one of its events is in process.
#[derive(Debug, Default)]
struct Queues {
    devices: BTreeMap<PathBuf, VecDeque<DeviceEvent>>,
}

impl Queues {
    /// Takes a new event; returns it if it can be processed now.
    fn event(&mut self, event: DeviceEvent) -> Option<DeviceEvent> {
        let Some(queue) = self.devices.get_mut(&event.path) else {
            self.devices.insert(event.path.clone(), VecDeque::new());
            return Some(event);
        };
        match queue.back_mut() {
            // The last of several changes covers them all.
            Some(last) if last.action == DeviceAction::Change && event.action == DeviceAction::Change => *last = event,
            _ => queue.push_back(event),
        }
        None
    }

    /// The event of this device has been processed; returns the next one.
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
    pub fn new(source: Box<dyn DeviceEvents>, waker: Waker, submit: SubmitWatched) -> DeviceWatch {
        DeviceWatch { source, waker, submit, ended: unbounded(), found: unbounded() }
    }

    /// Runs until the stop.
    ///
    /// # Errors
    /// Waiting for events failed, or the event source failed for good.
    pub fn run(mut self, stop: &Stop, pulse: &Pulse) -> Result<(), Error> {
        stop.on_stop(self.waker.clone());
        let mut queues = Queues::default();
        let (mut lost, mut looking) = (false, false);
        while wait(Some(self.source.fd()), &self.waker, stop, None)? != Woken::Stop {
            pulse.beat();
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
            // The scan is requested after the events were read, so its findings are newer than the
            // lost events.
            lost |= self.source.take_lost();
            if lost && !looking {
                (lost, looking) = (false, true);
                self.look_at_all();
            }
        }
        Ok(())
    }

    /// Scans all devices. The findings are processed like events, so that they keep their order.
    fn look_at_all(&self) {
        let mut ended = EndReport::of(Vec::new(), &self.found.0, &self.waker);
        let chain = ops::present_devices(move |events| {
            ended.key = Some(events);
            drop(ended);
        });
        log::info!("events of block devices were lost; scanning all devices");
        (self.submit)(WatchRequest { label: "scan of all devices after lost events".to_owned(), chain });
    }

    fn deal_with(&self, event: DeviceEvent) {
        let label = format!("{:?} of {}", event.action, event.path.display());
        let ended = EndReport::of(event.path.clone(), &self.ended.0, &self.waker);
        (self.submit)(WatchRequest { label, chain: ended.after(ops::device_event(event)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str, action: DeviceAction) -> DeviceEvent {
        DeviceEvent { action, path: path.into(), device: None, unlinked: None }
    }

    #[test]
    fn events_of_one_device_queue_and_changes_merge() {
        use DeviceAction::{Add, Change, Remove};
        let mut queues = Queues::default();
        let (a, b) = (PathBuf::from("a"), PathBuf::from("b"));
        assert_eq!(queues.event(event("a", Add)), Some(event("a", Add)));
        for action in [Change, Change, Remove, Add, Change, Change] {
            assert_eq!(queues.event(event("a", action)), None);
        }
        assert_eq!(queues.event(event("b", Remove)), Some(event("b", Remove)), "another device must not wait");
        for action in [Change, Remove, Add, Change] {
            assert_eq!(queues.ended(&a), Some(event("a", action)));
        }
        assert_eq!((queues.ended(&a), queues.ended(&b)), (None, None));
        assert!(queues.devices.is_empty(), "an entry of a device without events stays");
    }
}
