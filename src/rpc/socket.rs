//! The listening socket. Only root can connect to it, and its file is removed when the daemon ends.
//!
//! Must never know: what is said over it.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt::socket_peercred,
    },
};

/// Only the owner, root, may connect.
const MODE: u32 = 0o600;
/// Other users may traverse the directory, because other programs have files in it.
const DIRECTORY_MODE: u32 = 0o755;
/// Connections that the kernel queues until they are accepted. Further clients block in connect(2).
const BACKLOG: i32 = 64;

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the socket {}; run the daemon as root", path.display())]
pub struct SocketError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The socket. Dropping it removes its file.
pub struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// A client that has connected.
pub enum ConnectingPeer {
    /// The client may send a request.
    Admitted(OwnedFd),
    /// The client runs as another user and gets no answer.
    Stranger(u32),
}

impl ListeningSocket {
    /// Makes the socket. A file that an earlier daemon left behind is replaced: the caller holds the
    /// lock of this daemon, so no other one serves it.
    ///
    /// # Errors
    /// A call failed.
    pub fn open(path: &Path) -> Result<ListeningSocket, SocketError> {
        let failed = |action| {
            let path = path.to_owned();
            move |source| SocketError { action, path, source }
        };
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(directory)
                .map_err(failed("make the directory of"))?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
            _ => {}
        }
        // The mode is set after bind(2) and before listen(2), so no other user can connect in
        // between.
        let make = || -> Result<OwnedFd, Errno> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            bind(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let socket = make().map_err(|errno| failed("bind")(errno.into()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed("set the mode of"))?;
        listen(&socket, BACKLOG).map_err(|errno| failed("listen on")(errno.into()))?;
        Ok(ListeningSocket { listener: socket.into(), path: path.to_owned() })
    }

    /// The descriptor that becomes readable when a client connects.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The next client, or `None` if no client waits.
    ///
    /// # Errors
    /// A call failed, for example because no descriptor is left.
    pub fn accept(&self) -> io::Result<Option<ConnectingPeer>> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        let user = socket_peercred(&stream)?.uid;
        let may = user.is_root() || user == rustix::process::geteuid();
        Ok(Some(if may { ConnectingPeer::Admitted(stream.into()) } else { ConnectingPeer::Stranger(user.as_raw()) }))
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        // The file may be gone already. No other program makes a file of this name while this
        // daemon runs.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_socket_is_for_root_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/socket");
        let socket = ListeningSocket::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _client = UnixStream::connect(&path).unwrap();
        // The test's own user is the daemon's.
        assert!(matches!(socket.accept().unwrap(), Some(ConnectingPeer::Admitted(_))));
        assert!(socket.accept().unwrap().is_none());
        // An earlier daemon was killed: its file is still there.
        std::mem::forget(socket);
        let socket = ListeningSocket::open(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }
}
