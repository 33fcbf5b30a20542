//! The bus as the front end of the daemon: which of its parts runs on which thread, and when.
//!
//! Must never know: what the bus says.

use std::convert::Infallible;

use stratis_core::daemon::{
    Error,
    front_end::{FrontEnd, FrontEndError, Jobs, OnPublished, Threads, UpdateChannel},
    machine::{DaemonRole, RunPaths},
    thread_table::{FrontEndThreads, ThreadRow},
};

use crate::bus::{self, Bus, Lister, Reader, Reply, Writer};

/// Reads calls from the bus.
pub const BUS_READER: &str = "bus-reader";
/// Sends large lists of objects.
pub const BUS_LISTER: &str = "bus-lister";
/// Publishes changes, signals and replies.
pub const TREE_WRITER: &str = "tree-writer";

/// The bus, before and after its threads run.
pub struct BusFrontEnd {
    reader: Reader,
    /// Until they are started.
    publishers: Option<(Lister, Writer)>,
}

impl FrontEnd for BusFrontEnd {
    type Reply = Reply;
    const ROLE: DaemonRole = DaemonRole::Full;
    const THREADS: FrontEndThreads = FrontEndThreads {
        takers: &[
            ThreadRow {
                name: BUS_READER,
                waits_on: "bus socket, waker, keys not written yet",
                does: "answers reads from the view, submits requests",
            },
            ThreadRow { name: BUS_LISTER, waits_on: "channel from the reader", does: "sends lists of all objects" },
        ],
        answerers: &[ThreadRow {
            name: TREE_WRITER,
            waits_on: "channel of updates",
            does: "publishes, signals, replies, in this order",
        }],
    };

    fn open(_: &RunPaths) -> Result<BusFrontEnd, FrontEndError> {
        let Bus { reader, lister, writer } = Bus::connect()?;
        Ok(BusFrontEnd { reader, publishers: Some((lister, writer)) })
    }

    fn tell(then: OnPublished) -> Reply {
        Reply::tell(then)
    }

    fn publish(
        &mut self,
        threads: &mut Threads<'_>,
        channel: UpdateChannel<Reply>,
        jobs: &Jobs<Reply>,
    ) -> Result<(), Error> {
        let Some((lister, writer)) = self.publishers.take() else { return Ok(()) };
        threads.spawn(TREE_WRITER, channel.nudge(), move |_, pulse| {
            writer.run(&channel.updates, pulse);
            Ok::<_, Infallible>(())
        })?;
        let (nudge, jobs) = (lister.nudge(), jobs.clone());
        threads.spawn(
            BUS_LISTER,
            move |_| nudge(),
            move |_, pulse| {
                lister.run(&jobs, pulse);
                Ok::<_, Infallible>(())
            },
        )
    }

    fn serve(self, threads: &mut Threads<'_>, jobs: Jobs<Reply>) -> Result<String, Error> {
        let BusFrontEnd { reader, .. } = self;
        reader.request_name().map_err(|error| Error::FrontEnd(error.into()))?;
        let waker = reader.waker().clone();
        threads.spawn(BUS_READER, move |_| waker.wake(), move |stop, pulse| reader.run(&jobs, stop, pulse))?;
        Ok(bus::NAME.to_owned())
    }
}
