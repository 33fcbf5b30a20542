//! One udev monitor for all requests that wait for links: a single socket, open only while there is
//! a subscriber.
//!
//! This module decides nothing: it passes udev's messages about a device on to the subscribers of
//! that device.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Weak},
};

use log::warn;
use parking_lot::Mutex;

use super::monitor::{LinkRequest, Message, Monitor};
use crate::platform::DeviceNumber;

/// Creates subscriptions to udev's messages.
#[derive(Default)]
pub(super) struct Listener {
    /// Dead while there is no subscriber: unread messages would fill the kernel's memory.
    shared: Mutex<Weak<SharedMonitor>>,
}

struct SharedMonitor {
    /// The monitor's socket, to poll while another thread uses the monitor.
    socket: OwnedFd,
    monitor: Mutex<Monitor>,
    heard: Mutex<Heard>,
}

/// News per subscriber.
#[derive(Default)]
struct Heard {
    subscribers: HashMap<u64, News>,
    by_device: HashMap<DeviceNumber, Vec<u64>>,
    count: u64,
    /// The socket has failed; no more news will come.
    broken: bool,
}

/// News for one subscriber since its last [`Subscription::take`].
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    any: bool,
    answered: Vec<LinkRequest>,
}

/// What a subscriber learns.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReceivedNews {
    /// No news about its devices.
    Nothing,
    /// A message about its devices has arrived, or messages were lost. udev has processed these
    /// requests.
    News(Vec<LinkRequest>),
    /// No news now, and none will ever come.
    Broken,
}

/// A subscription to messages about devices. Dropping it ends the subscription.
pub(super) struct Subscription {
    shared: Arc<SharedMonitor>,
    number: u64,
    devices: Vec<DeviceNumber>,
}

impl Listener {
    /// Subscribes to udev's messages about these devices from now on.
    ///
    /// # Errors
    /// If the kernel cannot provide a socket.
    pub(super) fn subscribe(&self, devices: Vec<DeviceNumber>) -> io::Result<Subscription> {
        let shared = {
            let mut known = self.shared.lock();
            match known.upgrade().filter(|shared| !shared.heard.lock().broken) {
                Some(shared) => shared,
                None => {
                    let monitor = Monitor::open()?;
                    let socket = monitor.as_fd().try_clone_to_owned()?;
                    let shared = SharedMonitor { socket, monitor: Mutex::new(monitor), heard: Mutex::default() };
                    let shared = Arc::new(shared);
                    *known = Arc::downgrade(&shared);
                    shared
                }
            }
        };
        let number = shared.heard.lock().subscribe(&devices);
        Ok(Subscription { shared, number, devices })
    }
}

impl Subscription {
    /// Becomes readable when there are messages to read. All subscriptions share it.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }

    /// Reads all pending messages of udev, for all subscribers.
    pub(super) fn hear(&self) {
        let mut monitor = self.shared.monitor.lock();
        loop {
            let message = monitor.next();
            let mut heard = self.shared.heard.lock();
            match message {
                Ok(Some(message)) => heard.take_in(message),
                Ok(None) => {
                    if monitor.take_lost() {
                        heard.wake_all();
                    }
                    return;
                }
                Err(fault) => {
                    warn!("cannot read udev events: {fault}");
                    heard.broken = true;
                    return;
                }
            }
        }
    }

    /// The news since the last call. Does not read from the socket.
    pub(super) fn take(&self) -> ReceivedNews {
        self.shared.heard.lock().take(self.number)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.heard.lock().unsubscribe(self.number, &self.devices);
    }
}

impl Heard {
    fn subscribe(&mut self, devices: &[DeviceNumber]) -> u64 {
        self.count += 1;
        self.subscribers.insert(self.count, News::default());
        for device in devices {
            self.by_device.entry(*device).or_default().push(self.count);
        }
        self.count
    }

    fn unsubscribe(&mut self, number: u64, devices: &[DeviceNumber]) {
        self.subscribers.remove(&number);
        for device in devices {
            if let Some(waiting) = self.by_device.get_mut(device) {
                waiting.retain(|waiting| *waiting != number);
                if waiting.is_empty() {
                    self.by_device.remove(device);
                }
            }
        }
    }

    fn take_in(&mut self, message: Message) {
        let waiting = message.number.and_then(|number| self.by_device.get(&number)).into_iter().flatten();
        for number in waiting {
            if let Some(news) = self.subscribers.get_mut(number) {
                news.any = true;
                news.answered.extend(message.request.clone());
            }
        }
    }

    /// Makes every subscriber check, because any of them may have lost a message.
    fn wake_all(&mut self) {
        self.subscribers.values_mut().for_each(|news| news.any = true);
    }

    fn take(&mut self, number: u64) -> ReceivedNews {
        if self.broken {
            return ReceivedNews::Broken;
        }
        let news = self.subscribers.get_mut(&number).map(std::mem::take).unwrap_or_default();
        if news.any { ReceivedNews::News(news.answered) } else { ReceivedNews::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn device(minor: u32) -> DeviceNumber {
        DeviceNumber { major: 253, minor }
    }

    fn message(number: DeviceNumber, uuid: Option<&str>) -> Message {
        let request =
            uuid.map(|uuid| LinkRequest { uuid: uuid.to_owned(), pool: "P".to_owned(), filesystem: "F".to_owned() });
        Message { action: None, node: None, number: Some(number), device: None, request, unlinked: None }
    }

    /// Found in review: each announcement used to open its own socket, and each waiter polled as
    /// many sockets as creations were waiting.
    #[test]
    fn subscribers_share_one_socket() {
        let listener = Listener::default();
        let all: Vec<Subscription> = (0..100).map(|minor| listener.subscribe(vec![device(minor)]).unwrap()).collect();
        let first = all[0].fd().as_raw_fd();
        assert!(all.iter().all(|one| one.fd().as_raw_fd() == first));
        let shared = Arc::downgrade(&all[0].shared);
        all[0].hear();
        assert_eq!(all[0].take(), ReceivedNews::Nothing);
        let one = all.into_iter().next_back();
        assert!(shared.upgrade().is_some(), "the socket closed although one still listens");
        drop(one);
        assert!(shared.upgrade().is_none(), "the socket stays open although nobody listens");
        assert_eq!(listener.subscribe(Vec::new()).unwrap().take(), ReceivedNews::Nothing);
    }

    #[test]
    fn each_is_told_of_its_own_devices() {
        let mut heard = Heard::default();
        let one = heard.subscribe(&[device(1), device(2)]);
        let other = heard.subscribe(&[device(2)]);
        heard.take_in(message(device(1), Some("a")));
        heard.take_in(message(device(3), Some("b")));
        assert_eq!(heard.take(other), ReceivedNews::Nothing);
        let ReceivedNews::News(requests) = heard.take(one) else { panic!("no news about its device") };
        assert_eq!(requests.iter().map(|request| request.uuid.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(heard.take(one), ReceivedNews::Nothing, "the news came twice");
        heard.take_in(message(device(2), None));
        assert_eq!([heard.take(one), heard.take(other)], [ReceivedNews::News(vec![]), ReceivedNews::News(vec![])]);
        heard.wake_all();
        assert_eq!(heard.take(one), ReceivedNews::News(vec![]), "no wake-up after lost messages");
        heard.unsubscribe(one, &[device(1), device(2)]);
        heard.take_in(message(device(2), None));
        assert_eq!(heard.take(other), ReceivedNews::News(vec![]));
        heard.unsubscribe(other, &[device(2)]);
        assert!(heard.by_device.is_empty() && heard.subscribers.is_empty());
    }

    #[test]
    fn a_broken_socket_ends_all_waits() {
        let mut heard = Heard::default();
        let one = heard.subscribe(&[device(1)]);
        heard.broken = true;
        assert_eq!(heard.take(one), ReceivedNews::Broken);
    }
}
