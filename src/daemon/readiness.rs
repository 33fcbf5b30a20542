//! Reports the daemon's state to the service manager: one datagram to the socket in
//! `$NOTIFY_SOCKET`, as in sd_notify(3). Without that variable it reports nothing.
//!
//! Must never know: when the daemon is ready.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// The variable with the address.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// The daemon is ready.
pub const READY: &str = "READY=1";
/// All threads of the daemon make progress.
pub const WATCHDOG: &str = "WATCHDOG=1";
/// The daemon is stopping.
pub const STOPPING: &str = "STOPPING=1";

/// Sends a state. A failure is only logged, since the daemon works without it.
pub fn tell(state: &str) {
    if let Some(address) = env::var_os(VARIABLE)
        && let Err(error) = send(&address, state)
    {
        log::log!(level(state, &error), "cannot send {state} to the service manager: {error}");
    }
}

/// How serious it is that a state did not arrive. The manager of the initrd, and its socket, are gone
/// after the switch to the root file system, which the early-boot daemon outlives: nobody waits for
/// its end.
fn level(state: &str, error: &io::Error) -> log::Level {
    if state != READY && error.kind() == io::ErrorKind::NotFound { log::Level::Debug } else { log::Level::Warn }
}

/// An address that begins with `@` is in the abstract namespace; any other is a path.
fn send(address: &OsStr, state: &str) -> io::Result<()> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn arrives(receiver: &UnixDatagram, address: &OsStr) {
        send(address, READY).unwrap();
        let mut text = [0; 64];
        let length = receiver.recv(&mut text).unwrap();
        assert_eq!(&text[..length], READY.as_bytes());
    }

    #[test]
    fn paths_and_abstract_addresses_work() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        arrives(&UnixDatagram::bind(&path).unwrap(), path.as_os_str());
        // The path is unique on this machine, so this name is too.
        let name = format!("{}-abstract", path.display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        arrives(&UnixDatagram::bind_addr(&address).unwrap(), OsStr::new(&format!("@{name}")));
        assert!(send(OsStr::new("/nowhere/at/all"), READY).is_err());
    }

    /// The daemon of the initrd warned at each boot, when stratisd took over.
    #[test]
    fn a_manager_that_is_gone_misses_nothing() {
        let gone = send(OsStr::new("/nowhere/at/all"), STOPPING).unwrap_err();
        assert_eq!(level(STOPPING, &gone), log::Level::Debug);
        // systemd would wait in vain.
        assert_eq!(level(READY, &gone), log::Level::Warn);
        let refused = send(OsStr::new("/"), STOPPING).unwrap_err();
        assert_eq!(level(STOPPING, &refused), log::Level::Warn);
    }
}
