//! The socket of the early-boot daemon as the front end of the daemon: which of its parts runs on
//! which thread, and when.
//!
//! Must never know: what is said over the socket.

use std::{convert::Infallible, path::PathBuf};

use crate::{
    daemon::{
        Error,
        front_end::{FrontEnd, FrontEndError, Jobs, OnPublished, Threads, UpdateChannel},
        machine::{DaemonRole, RunPaths},
        thread_table::{FrontEndThreads, ThreadRow},
    },
    rpc::{RpcReply, Server, ViewWriter},
};

/// Serves the socket.
pub const RPC: &str = "rpc";
/// Publishes changes and hands answers on.
pub const VIEW_WRITER: &str = "view-writer";

/// The socket, before and after its threads run.
pub struct RpcFrontEnd {
    path: PathBuf,
    server: Server,
    /// Until it is started.
    writer: Option<ViewWriter>,
}

impl FrontEnd for RpcFrontEnd {
    type Reply = RpcReply;
    const ROLE: DaemonRole = DaemonRole::Early;
    const THREADS: FrontEndThreads = FrontEndThreads {
        takers: &[],
        // The server sends the last answers, so it ends after those who make them.
        answerers: &[
            ThreadRow { name: VIEW_WRITER, waits_on: "channel of updates", does: "publishes, hands answers to rpc" },
            ThreadRow {
                name: RPC,
                waits_on: "socket, connections, waker, keys not written yet",
                does: "reads requests, answers from the view, submits requests, sends answers",
            },
        ],
    };

    fn open(paths: &RunPaths) -> Result<RpcFrontEnd, FrontEndError> {
        let (server, writer) = Server::new()?;
        Ok(RpcFrontEnd { path: paths.socket(), server, writer: Some(writer) })
    }

    fn tell(then: OnPublished) -> RpcReply {
        RpcReply::tell(then)
    }

    fn publish(
        &mut self,
        threads: &mut Threads<'_>,
        channel: UpdateChannel<RpcReply>,
        _: &Jobs<RpcReply>,
    ) -> Result<(), Error> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        threads.spawn(VIEW_WRITER, channel.nudge(), move |_, pulse| {
            writer.run(&channel.updates, pulse);
            Ok::<_, Infallible>(())
        })
    }

    fn serve(self, threads: &mut Threads<'_>, jobs: Jobs<RpcReply>) -> Result<String, Error> {
        let RpcFrontEnd { path, mut server, .. } = self;
        server.open(&path).map_err(|error| Error::FrontEnd(error.into()))?;
        let waker = server.waker().clone();
        threads.spawn(RPC, move |_| waker.wake(), move |stop, pulse| server.run(&jobs, stop, pulse))?;
        Ok(path.display().to_string())
    }
}
