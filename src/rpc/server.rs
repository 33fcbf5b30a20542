//! The server: thread `rpc`, the only thread that uses the socket and its connections. It reads
//! requests without trusting them, answers those that the published view can answer, makes a job of
//! every other request, and sends the answers.
//!
//! - It polls all clients at once, so no client delays another. The time to send a request is
//!   limited by [`RECEIVE_LIMIT`](super::connection::RECEIVE_LIMIT), the time to read an answer by
//!   [`SEND_LIMIT`](super::connection::SEND_LIMIT).
//! - Connections, requests under way, bytes of a request and bytes of unread answers are bounded.
//!   Beyond the limits of connections and of unread answers, clients wait; the time limits
//!   guarantee that there will be room. Beyond the limit of requests under way, requests are
//!   refused.
//! - A panic while a request is handled fails that request only.
//!
//! During a stop the server accepts no more requests, and sends the answers of those under way.
//!
//! Must never know: what requests mean to the engine, and how jobs run.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    panic::AssertUnwindSafe,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, TryRecvError, unbounded};
use threads::{
    pulse::Pulse,
    stop::Stop,
    wake::{PollFd, PollFlags, Waker, poll},
};

use super::{
    connection::{ConnectionEvent, RawRequest, RpcConnection},
    protocol::{Descriptors, RpcRequest, RpcResult},
    requests::{self, WorkLeft},
    socket::{ConnectingPeer, ListeningSocket, SocketError},
    writer::{NumberedReply, PublishedView, ViewWriter},
};
use crate::{
    base::error_chain,
    service::{
        ClientJob, Failure, Submit,
        awaited_passphrases::AwaitedPassphrases,
        passphrase,
        report::{Composer, Report},
    },
};

/// The most connections. Further clients wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// The most requests under way. This leaves a quarter of the connections to clients whose time is
/// limited.
const PENDING_MAX: usize = 192;
/// Bytes of unread answers beyond which no request is read. One answer may exceed it.
const UNSENT_MAX: usize = 32 << 20;
/// How long to pause after an accept(2) that failed, for example for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long clients may take to read their answers when the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Answers about descriptors; clients know these texts (`docs/spec/tools/min.md` §4).
pub const NO_DESCRIPTOR: &str = "Method expected a file descriptor and did not receive one";
const UNEXPECTED_DESCRIPTOR: &str =
    "Method did not expect a file descriptor and received one anyway; file descriptor was closed";

/// A reply on its way through the daemon.
pub struct RpcReply(pub(super) RpcRecipient);

/// The receiver of a reply.
pub(super) enum RpcRecipient {
    /// The client of this connection.
    Client(u64, RpcResult),
    /// A function of the daemon, not a client.
    Inside(Box<dyn FnOnce() + Send>),
}

impl RpcReply {
    /// A reply for the daemon itself: calls `tell` when all changes so far are published.
    pub fn tell(tell: impl FnOnce() + Send + 'static) -> RpcReply {
        RpcReply(RpcRecipient::Inside(Box::new(tell)))
    }
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ServerError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot create a descriptor to wait for clients")]
    Wait(#[source] std::io::Error),
}

/// The server. [`Server::run`] is its thread.
pub struct Server {
    waker: Waker,
    published: PublishedView,
    replies: Receiver<NumberedReply>,
    /// `None` before it is opened, and during a stop.
    socket: Option<ListeningSocket>,
    /// The number of the next connection. Numbers are never reused.
    next: u64,
    connections: BTreeMap<u64, RpcConnection>,
    /// Requests under way.
    pending: usize,
    /// Requests whose clients have not written their passphrases yet.
    awaited: AwaitedPassphrases<ClientJob<RpcReply>>,
    accept_after: Option<Instant>,
}

impl Server {
    /// A server with its writer. It does not serve clients yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> Result<(Server, ViewWriter), ServerError> {
        let waker = Waker::new().map_err(ServerError::Wait)?;
        let published = PublishedView::default();
        let (sender, replies) = unbounded();
        let server = Server {
            waker: waker.clone(),
            published: published.clone(),
            replies,
            socket: None,
            next: 0,
            connections: BTreeMap::new(),
            pending: 0,
            awaited: AwaitedPassphrases::new().map_err(ServerError::Wait)?,
            accept_after: None,
        };
        Ok((server, ViewWriter { published, replies: sender, waker }))
    }

    /// Makes the server run its loop once.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Opens the socket. From now on clients can connect.
    ///
    /// # Errors
    /// A call failed.
    pub fn open(&mut self, path: &Path) -> Result<(), ServerError> {
        self.socket = Some(ListeningSocket::open(path)?);
        Ok(())
    }

    /// Serves clients until the stop switch is turned on, and then until all requests are answered.
    ///
    /// # Errors
    /// Waiting failed.
    pub fn run(mut self, jobs: &dyn Submit<RpcReply>, stop: &Stop, pulse: &Pulse) -> Result<(), ServerError> {
        stop.on_stop(self.waker.clone());
        let mut end = None;
        loop {
            // The waker is drained before the queue is read, so a later wake-up ends the next wait.
            self.waker.drain();
            pulse.beat();
            if stop.is_on() && self.socket.take().is_some() {
                self.refuse_all();
            }
            let over = self.take_replies();
            if stop.is_on() && over {
                let end = *end.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                if self.connections.is_empty() || Instant::now() >= end {
                    return Ok(());
                }
            }
            self.wait(jobs, end).map_err(ServerError::Wait)?;
        }
    }

    /// Refuses the requests that have not begun. Called when the daemon stops.
    fn refuse_all(&mut self) {
        for ClientJob { on_failure, .. } in self.awaited.take_all() {
            self.pending -= 1;
            if let Some(RpcReply(RpcRecipient::Client(number, reply))) = on_failure(Failure::Stopping) {
                self.reply(number, &reply);
            }
        }
        let receiving: Vec<u64> = self.connections.iter().filter(|(_, c)| c.is_receiving()).map(|(n, _)| *n).collect();
        for number in receiving {
            self.reply(number, &Err("stratisd-min is stopping; try again when stratisd runs".to_owned()));
        }
    }

    /// Sends the answers in the queue. Returns whether no more will follow.
    fn take_replies(&mut self) -> bool {
        loop {
            match self.replies.try_recv() {
                Ok((number, reply)) => {
                    self.pending -= 1;
                    self.reply(number, &reply);
                }
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn reply(&mut self, number: u64, reply: &RpcResult) {
        let text = serde_json::to_vec(reply).unwrap_or_else(|error| {
            log::error!("cannot write an answer as JSON: {error}; please report it");
            br#"{"Err":"stratisd-min cannot write its answer as JSON; please report it"}"#.to_vec()
        });
        self.send(number, text);
    }

    /// Sends an answer if its client is still connected.
    fn send(&mut self, number: u64, text: Vec<u8>) {
        if let Some(connection) = self.connections.get_mut(&number)
            && let ConnectionEvent::Over = connection.answer(text, Instant::now())
        {
            self.connections.remove(&number);
        }
    }

    /// Waits for an event and handles what has happened.
    fn wait(&mut self, jobs: &dyn Submit<RpcReply>, end: Option<Instant>) -> std::io::Result<()> {
        let now = Instant::now();
        let has_room = self.connections.values().map(RpcConnection::unsent).sum::<usize>() <= UNSENT_MAX;
        let listens =
            has_room && self.connections.len() < CONNECTIONS_MAX && self.accept_after.is_none_or(|after| after <= now);
        // The time limit of a client that waits for room starts when there is room.
        let waits = |connection: &RpcConnection| has_room || !connection.is_receiving();
        let numbers: Vec<u64> = self.connections.iter().filter(|(_, c)| waits(c)).map(|(number, _)| *number).collect();
        let accept_after = self.accept_after.filter(|after| *after > now);
        let limits = self.connections.values().filter(|c| waits(c)).filter_map(RpcConnection::until);
        let deadline = limits.chain(self.awaited.deadline()).chain(accept_after).chain(end).min();

        let listening = self.socket.as_ref().filter(|_| listens).map(ListeningSocket::fd);
        let fixed = [Some(self.waker.fd()), Some(self.awaited.fd()), listening].into_iter().flatten();
        let mut fds: Vec<_> = fixed.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let first = fds.len();
        let polled = numbers.iter().map(|number| &self.connections[number]);
        fds.extend(polled.map(|connection| PollFd::from_borrowed_fd(connection.fd(), connection.interest())));
        poll(&mut fds, deadline)?;
        let connects = listening.is_some() && !fds[2].revents().is_empty();
        let happened: Vec<(u64, PollFlags)> = numbers
            .iter()
            .zip(&fds[first..])
            .map(|(number, fd)| (*number, fd.revents()))
            .filter(|(_, events)| !events.is_empty())
            .collect();
        drop(fds);

        let now = Instant::now();
        for job in self.awaited.take_due(now) {
            jobs.submit(job);
        }
        for (number, events) in happened {
            let Some(connection) = self.connections.get_mut(&number) else { continue };
            match connection.advance(events) {
                ConnectionEvent::Nothing => {}
                ConnectionEvent::Over => drop(self.connections.remove(&number)),
                ConnectionEvent::Refused(why) => {
                    log::warn!("a client of the socket is refused: {why}");
                    self.reply(number, &Err(why.to_string()));
                }
                ConnectionEvent::Request(request) => self.request(number, request, jobs, now),
            }
        }
        let late =
            |connection: &RpcConnection| waits(connection) && connection.until().is_some_and(|until| until <= now);
        self.connections.retain(|_, connection| !late(connection));
        if connects {
            self.accept(now);
        }
        Ok(())
    }

    fn accept(&mut self, now: Instant) {
        let Some(socket) = &self.socket else { return };
        self.accept_after = None;
        while self.connections.len() < CONNECTIONS_MAX {
            match socket.accept() {
                Ok(Some(ConnectingPeer::Admitted(client))) => {
                    self.connections.insert(self.next, RpcConnection::new(client, now));
                    self.next += 1;
                }
                Ok(Some(ConnectingPeer::Stranger(user))) => {
                    log::warn!("the socket refused a client of user {user}; only root may use it")
                }
                Ok(None) => return,
                Err(error) => {
                    log::warn!("cannot accept a connection: {}", error_chain::sentence(&error));
                    self.accept_after = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn request(&mut self, number: u64, request: RawRequest, jobs: &dyn Submit<RpcReply>, now: Instant) {
        let RawRequest { text, mut descriptors } = request;
        let request = match RpcRequest::parse(&text) {
            Ok(request) => request,
            Err(error) => {
                let why = error_chain::sentence(&error);
                log::warn!("a client of the socket is refused: {why}");
                return self.reply(number, &Err(why));
            }
        };
        let name = request.name();
        log::debug!("connection {number} sent request {name}");
        let descriptor = descriptors.pop();
        match (request.descriptors(), &descriptor) {
            (Descriptors::One, None) => return self.reply(number, &Err(NO_DESCRIPTOR.to_owned())),
            (Descriptors::None, Some(_)) => return self.reply(number, &Err(UNEXPECTED_DESCRIPTOR.to_owned())),
            _ => {}
        }
        let view = self.published.load();
        let handled = std::panic::catch_unwind(AssertUnwindSafe(|| requests::handle(request, descriptor, &view)));
        let handled = handled.unwrap_or_else(|_| WorkLeft::Now(requests::failed(Failure::Panicked, name)));
        match handled {
            WorkLeft::Now(reply) => self.reply(number, &reply),
            WorkLeft::Report => {
                // The report is JSON already.
                let report = Composer::new(Report::EngineState).text(&view, &jobs.locks());
                self.send(number, format!("{{\"Ok\":{{\"Report\":{report}}}}}").into_bytes());
            }
            WorkLeft::Chain(_) | WorkLeft::After(..) if self.pending >= PENDING_MAX => {
                self.reply(number, &Err("too many requests are under way; try again later".to_owned()));
            }
            WorkLeft::Chain(chain) => {
                self.pending += 1;
                jobs.submit(job(number, name, chain));
            }
            WorkLeft::After(descriptor, chain) => {
                self.pending += 1;
                self.submit_when_ready(descriptor, job(number, name, chain), jobs, now);
            }
        }
    }

    fn submit_when_ready(
        &mut self,
        descriptor: Arc<OwnedFd>,
        job: ClientJob<RpcReply>,
        jobs: &dyn Submit<RpcReply>,
        now: Instant,
    ) {
        let waits = match passphrase::is_ready(descriptor.as_fd()) {
            true => Some(job),
            false => self.awaited.add(descriptor, now + passphrase::WAIT_MAX, job),
        };
        if let Some(job) = waits {
            jobs.submit(job);
        }
    }
}

fn job(number: u64, name: &'static str, chain: crate::engine::request::Step<RpcResult>) -> ClientJob<RpcReply> {
    let reply = move |reply| Some(RpcReply(RpcRecipient::Client(number, reply)));
    ClientJob {
        label: format!("rpc.{name}"),
        chain: chain.map(reply),
        on_failure: Box::new(move |failure| reply(requests::failed(failure, name))),
    }
}
