//! `dbus-broker`, the system bus of Fedora and related distributions, as a private bus.
//!
//! A *controller* tells the broker where to listen and which messages to allow. On a system the
//! controller is `dbus-broker-launch`, which needs systemd. Here the test is the controller. It
//! speaks D-Bus with the broker over a private socket, and the broker exits when that socket is
//! closed.

use std::{
    fs::File,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Stdio},
};

use dbus::{Message, Path as ObjectPath, arg::Variant, channel::Channel};

use super::{LIMIT, Limits};
use crate::processes::command;

/// The default limit of `dbus-broker-launch` for each user.
const BYTES_MAX: u32 = 512 << 20;
const OTHER_LIMITS: [&str; 4] = ["--max-fds", "4096", "--max-matches", "131072"];
const INTERFACE: &str = "org.bus1.DBus.Broker";
const PATH: &str = "/org/bus1/DBus/Broker";
/// The user ID of a batch of rules that applies to all users.
const EVERYBODY: u32 = u32::MAX;
const PRIORITY: u64 = 1;

/// Allowed, priority, whether the name is a prefix, name.
type Own = (bool, u64, bool, &'static str);
/// Allowed, priority; name, path, interface, member; type; broadcasts; fewest and most descriptors.
type Transmit = (bool, u64, &'static str, &'static str, &'static str, &'static str, u32, u32, u64, u64);
/// Connecting, owning, sending, receiving.
type Batch = (bool, u64, Vec<Own>, Vec<Transmit>, Vec<Transmit>);
/// Batches of users and of groups, SELinux contexts, whether AppArmor is used, type of the bus.
type Policy = (Vec<(u32, Batch)>, Vec<(bool, u32, u32, Batch)>, Vec<(String, String)>, bool, &'static str);

/// Starts a broker that listens on a socket and allows all calls of all users. It exits when the
/// channel is dropped.
pub fn start(socket: &Path, directory: &Path, limits: Limits) -> (Child, Channel) {
    // libdbus can only connect to an address, so the controller listens on one and connects to it.
    // The two ends are its pair of sockets.
    let meeting = directory.join("controller");
    let listener = UnixListener::bind(&meeting).unwrap();
    let controller = Channel::open_private(&format!("unix:path={}", meeting.display())).unwrap();
    let (theirs, _): (UnixStream, _) = listener.accept().unwrap();
    let child = command("dbus-broker")
        .args(["--controller", "0", "--machine-id", &"0".repeat(32)])
        .args(["--max-bytes", &limits.held_bytes.unwrap_or(BYTES_MAX).to_string()])
        .args(OTHER_LIMITS)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::null())
        .spawn()
        .expect("dbus-broker is on the PATH; scripts/test-broker fetches it");

    // Descriptors can only be sent after the first reply, whatever the reply is.
    let hello = Message::new_method_call(INTERFACE, PATH, INTERFACE, "Hello").unwrap();
    let _ = controller.send_with_reply_and_block(hello, LIMIT);
    let everything: Transmit = (true, PRIORITY, "", "", "", "", 0, 0, 0, u64::MAX);
    let batch: Batch = (true, PRIORITY, vec![(true, PRIORITY, true, "")], vec![everything], vec![everything]);
    let policy: Policy = (vec![(EVERYBODY, batch)], Vec::new(), Vec::new(), false, "system");
    let listening = UnixListener::bind(socket).unwrap();
    // The broker accepts connections until none is waiting, so the socket must not block.
    listening.set_nonblocking(true).unwrap();
    let listening = File::from(OwnedFd::from(listening));
    let call = Message::new_method_call(INTERFACE, PATH, INTERFACE, "AddListener").unwrap().append3(
        ObjectPath::from("/org/bus1/DBus/Listener/0"),
        listening,
        Variant(policy),
    );
    controller.send_with_reply_and_block(call, LIMIT).expect("the broker accepts the socket");
    (child, controller)
}
