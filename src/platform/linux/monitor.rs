//! udev's events about block devices, sent after its rules ran: the source of device events, and
//! the trigger for all waits for udev.
//!
//! This module turns each event into plain values and decides nothing about them.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use log::warn;
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::RcvBufForce},
};
use udev::{EventType, MonitorBuilder, MonitorSocket};

use super::database;
use crate::platform::{BlockDevice, DeviceAction, DeviceEvent, DeviceEvents, DeviceNumber, Error, Result};

/// udev's control socket; without it, no event will ever come.
const CONTROL: &str = "/run/udev/control";
/// Receive buffer for unread events. Memory is used only while events wait. The buffer is large
/// because a machine with thousands of disks sends that many events at once at boot, and events
/// that do not fit are lost.
const BUFFER_BYTES: usize = 128 << 20;

/// Directory of the daemon's links.
const LINKS: &str = "/dev/stratis/";

/// Whether udev runs on this machine.
pub(super) fn udev_runs() -> bool {
    Path::new(CONTROL).exists()
}

/// A message of udev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// The action; `None` if it concerns drivers only.
    pub(super) action: Option<DeviceAction>,
    /// The device node.
    pub(super) node: Option<PathBuf>,
    /// The device number.
    pub(super) number: Option<DeviceNumber>,
    /// The device as udev describes it now.
    pub(super) device: Option<BlockDevice>,
    /// The request that this message answers: UUID and both names, encoded as written.
    pub(super) request: Option<LinkRequest>,
    /// Name of an added device-mapper device without a link under [`LINKS`].
    pub(super) unlinked: Option<String>,
}

/// The arguments written to a device's `uevent` file to have its links made
/// (`docs/spec/engine/storage-stack.md` §9.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkRequest {
    /// UUID of the filesystem, hyphenated.
    pub(super) uuid: String,
    /// Name of the pool in base32.
    pub(super) pool: String,
    /// Name of the filesystem in base32.
    pub(super) filesystem: String,
}

/// Receives udev's messages from the moment it is opened.
pub(super) struct Monitor {
    socket: MonitorSocket,
    /// Messages have been lost since [`Monitor::take_lost`].
    lost: bool,
}

#[allow(unsafe_code)]
mod moved {
    // SAFETY: libudev objects are not tied to a thread; they only must not be used by two at a
    // time. The socket and the udev context that it refers to are made by `Monitor::open` for this
    // value alone. Devices that share the context live only inside `Monitor::next`, which copies
    // everything out of them. So all of it moves together, and `&mut self` keeps it to one thread
    // at a time.
    unsafe impl Send for crate::platform::linux::monitor::Monitor {}
}

impl Monitor {
    /// Starts to listen. Later messages can be read.
    ///
    /// # Errors
    /// If the kernel cannot provide a socket.
    pub(super) fn open() -> io::Result<Monitor> {
        let socket = MonitorBuilder::new()?.match_subsystem("block")?.listen()?;
        if let Err(errno) = setsockopt(&socket, RcvBufForce, &BUFFER_BYTES) {
            warn!("cannot enlarge the receive buffer for udev events, so some may be lost: {errno}");
        }
        Ok(Monitor { socket, lost: false })
    }

    /// Whether messages have been lost since the last call.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// The next message; `None` if there is none now.
    ///
    /// # Errors
    /// If the socket is broken for good.
    pub(super) fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(event) = self.socket.iter().next() {
                return Ok(Some(Message::read(&event)));
            }
            // The library returns nothing and leaves the reason in errno.
            let reason = io::Error::last_os_error();
            match reason.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(None),
                Some(libc::EINTR) => {}
                // Reading the error has cleared it; later messages are intact.
                Some(libc::ENOBUFS) => {
                    warn!("the receive buffer for udev events overflowed; some events are lost");
                    self.lost = true;
                }
                // The error concerns the message just read, which is dropped: one bad message must
                // not end the monitor.
                Some(libc::EINVAL | libc::EBADMSG | libc::ENODEV | libc::ENOENT) => {
                    warn!("the udev monitor dropped a malformed event: {reason}");
                    self.lost = true;
                }
                _ => return Err(reason),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Message {
    fn read(event: &udev::Event) -> Message {
        let property = |name: &str| event.property_value(name).map(|value| value.to_string_lossy().into_owned());
        let action = match event.event_type() {
            EventType::Add => Some(DeviceAction::Add),
            EventType::Change => Some(DeviceAction::Change),
            EventType::Remove => Some(DeviceAction::Remove),
            EventType::Bind | EventType::Unbind | EventType::Unknown => None,
        };
        let request = || {
            Some(LinkRequest {
                uuid: property("SYNTH_UUID")?,
                pool: property("SYNTH_ARG_STRATISPOOLNAME")?,
                filesystem: property("SYNTH_ARG_STRATISFSNAME")?,
            })
        };
        let has_link = || property("DEVLINKS").is_some_and(|links| links.contains(LINKS));
        let request = request();
        let unlinked = match (action, &request) {
            (Some(DeviceAction::Add | DeviceAction::Change), None) => property("DM_NAME").filter(|_| !has_link()),
            _ => None,
        };
        Message {
            action,
            node: event.devnode().map(Path::to_owned),
            number: event.devnum().map(database::number),
            device: if action == Some(DeviceAction::Remove) { None } else { database::record(event) },
            request,
            unlinked,
        }
    }

    /// The device event for the engine; `None` if it is of no interest.
    fn event(self) -> Option<DeviceEvent> {
        Some(DeviceEvent { action: self.action?, path: self.node?, device: self.device, unlinked: self.unlinked })
    }
}

/// The monitor as a source of device events.
struct UdevEvents(Monitor);

/// A new source of device events.
pub(super) fn device_events() -> Result<Box<dyn DeviceEvents>> {
    match Monitor::open() {
        Ok(monitor) => Ok(Box::new(UdevEvents(monitor))),
        Err(source) => Err(Error::Io { action: "listen to udev events through", path: CONTROL.into(), source }),
    }
}

impl DeviceEvents for UdevEvents {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn next(&mut self) -> Result<Option<DeviceEvent>> {
        loop {
            match self.0.next() {
                Ok(Some(message)) => {
                    if let Some(event) = message.event() {
                        return Ok(Some(event));
                    }
                }
                Ok(None) => return Ok(None),
                Err(source) => {
                    return Err(Error::Io { action: "read udev events from", path: CONTROL.into(), source });
                }
            }
        }
    }

    fn take_lost(&mut self) -> bool {
        self.0.take_lost()
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::Message;
    use crate::platform::{DeviceAction, DeviceEvent};

    #[test]
    fn an_event_has_an_action_and_a_node() {
        let message = Message {
            action: Some(DeviceAction::Remove),
            node: Some(PathBuf::from("/dev/sdb")),
            number: None,
            device: None,
            request: None,
            unlinked: None,
        };
        let path = Path::new("/dev/sdb").to_owned();
        let event = DeviceEvent { action: DeviceAction::Remove, path, device: None, unlinked: None };
        assert_eq!(message.clone().event(), Some(event));
        assert_eq!(Message { action: None, ..message.clone() }.event(), None);
        assert_eq!(Message { node: None, ..message }.event(), None);
    }
}
