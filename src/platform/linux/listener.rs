//! Hears udev for all who wait for links: one socket, however many wait, and open only while somebody does.
//!
//! Decides nothing: it hands on what udev says of a device to those who wait for that device.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Weak},
};

use log::warn;
use parking_lot::Mutex;

use super::monitor::{Message, Monitor, Request};
use crate::platform::DeviceNumber;

/// Where to listen.
#[derive(Default)]
pub(super) struct Listener {
    /// Gone when nobody listens: messages that nobody reads would fill the memory of the kernel.
    shared: Mutex<Weak<Shared>>,
}

struct Shared {
    /// The socket of the monitor, to be polled while others have the monitor.
    socket: OwnedFd,
    monitor: Mutex<Monitor>,
    heard: Mutex<Heard>,
}

/// What has been heard for whom.
#[derive(Default)]
struct Heard {
    subscribers: HashMap<u64, News>,
    by_device: HashMap<DeviceNumber, Vec<u64>>,
    count: u64,
    /// Nothing will be heard any more.
    broken: bool,
}

/// What has been heard for one subscriber since it last asked.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    any: bool,
    answered: Vec<Request>,
}

/// What a subscriber gets to know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing about its devices.
    Nothing,
    /// Something about its devices, or something that nobody understood. These requests have been dealt with.
    News(Vec<Request>),
    /// Nothing, now or later.
    Broken,
}

/// Somebody who waits for news of devices. Dropping it ends that.
pub(super) struct Subscription {
    shared: Arc<Shared>,
    number: u64,
    devices: Vec<DeviceNumber>,
}

impl Listener {
    /// Begins to listen. What udev says of the devices from now on will be told.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub(super) fn subscribe(&self, devices: Vec<DeviceNumber>) -> io::Result<Subscription> {
        let shared = {
            let mut known = self.shared.lock();
            match known.upgrade().filter(|shared| !shared.heard.lock().broken) {
                Some(shared) => shared,
                None => {
                    let monitor = Monitor::open()?;
                    let socket = monitor.as_fd().try_clone_to_owned()?;
                    let shared = Shared { socket, monitor: Mutex::new(monitor), heard: Mutex::default() };
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
    /// Readable when there is something to hear. All subscriptions have the same one.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }

    /// Reads all that udev has said, for all subscribers.
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
                    warn!("cannot read what udev says: {fault}");
                    heard.broken = true;
                    return;
                }
            }
        }
    }

    /// What has been heard since this was last asked. Asks nobody else.
    pub(super) fn take(&self) -> Told {
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

    /// Has everybody look, since what was lost may have been for anybody.
    fn wake_all(&mut self) {
        self.subscribers.values_mut().for_each(|news| news.any = true);
    }

    fn take(&mut self, number: u64) -> Told {
        if self.broken {
            return Told::Broken;
        }
        let news = self.subscribers.get_mut(&number).map(std::mem::take).unwrap_or_default();
        if news.any { Told::News(news.answered) } else { Told::Nothing }
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
            uuid.map(|uuid| Request { uuid: uuid.to_owned(), pool: "P".to_owned(), filesystem: "F".to_owned() });
        Message { action: None, node: None, number: Some(number), device: None, request, unlinked: None }
    }

    /// Found in review: each announcement opened a socket of its own, and whoever waited polled as many as creations waited.
    #[test]
    fn all_listen_to_one_socket_while_anybody_does() {
        let listener = Listener::default();
        let all: Vec<Subscription> = (0..100).map(|minor| listener.subscribe(vec![device(minor)]).unwrap()).collect();
        let first = all[0].fd().as_raw_fd();
        assert!(all.iter().all(|one| one.fd().as_raw_fd() == first));
        let shared = Arc::downgrade(&all[0].shared);
        all[0].hear();
        assert_eq!(all[0].take(), Told::Nothing);
        let one = all.into_iter().next_back();
        assert!(shared.upgrade().is_some(), "one still listens");
        drop(one);
        assert!(shared.upgrade().is_none(), "nobody listens, so nothing is left open");
        assert_eq!(listener.subscribe(Vec::new()).unwrap().take(), Told::Nothing);
    }

    #[test]
    fn each_is_told_of_its_own_devices() {
        let mut heard = Heard::default();
        let one = heard.subscribe(&[device(1), device(2)]);
        let other = heard.subscribe(&[device(2)]);
        heard.take_in(message(device(1), Some("a")));
        heard.take_in(message(device(3), Some("b")));
        assert_eq!(heard.take(other), Told::Nothing);
        let Told::News(requests) = heard.take(one) else { panic!("it is about its device") };
        assert_eq!(requests.iter().map(|request| request.uuid.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(heard.take(one), Told::Nothing, "it has been told");
        heard.take_in(message(device(2), None));
        assert_eq!([heard.take(one), heard.take(other)], [Told::News(vec![]), Told::News(vec![])]);
        heard.wake_all();
        assert_eq!(heard.take(one), Told::News(vec![]), "what was lost may have been for it");
        heard.unsubscribe(one, &[device(1), device(2)]);
        heard.take_in(message(device(2), None));
        assert_eq!(heard.take(other), Told::News(vec![]));
        heard.unsubscribe(other, &[device(2)]);
        assert!(heard.by_device.is_empty() && heard.subscribers.is_empty());
    }

    #[test]
    fn a_broken_socket_ends_all_waits() {
        let mut heard = Heard::default();
        let one = heard.subscribe(&[device(1)]);
        heard.broken = true;
        assert_eq!(heard.take(one), Told::Broken);
    }
}
