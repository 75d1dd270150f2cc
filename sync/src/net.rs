//! The driver: QUIC connections to the other replicas and to agents, and the core between them and the node.
//!
//! One endpoint serves members (mutual TLS, protocol `luc/1`) and newcomers (`luc-join/1`, no certificate yet, one
//! request). Of a pair of replicas the one with the lower id dials, so there is one connection a pair. While a peer
//! cannot be reached a fresh attempt starts every half second, since attempts that began before a cut healed wait for
//! ever longer retransmissions: a heal is noticed within a second however long the cut was.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use luc_engine::entry::{Entry, Frontier, LedgerOp, Tip};
use luc_engine::id::{EntryId, ReplicaId};
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::store::{MemoryStore, Store};
use luc_engine::tx::Fence;
use parking_lot::Mutex;
use quinn::{Connection, Endpoint, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};

use crate::blob::Blobs;
use crate::ca::{Authority, CertificateError, Credentials, PeerIdentity, Role, SERVER_NAME};
use crate::demand::Demand;
use crate::join::Tokens;
use crate::node::{LogPart, Node, now};
use crate::proto::{Input, Output, Proto, waits_for};
pub use crate::reach::Reach;
use crate::rpc::call;
use crate::snapshot::{Snapshots, take_snapshot};
use crate::transport::{JOIN, MEMBER, client_config, server_config};
use crate::wire::{self, Msg, Request, Status};

/// How often a new attempt to reach a peer starts, and how long one may take.
const DIAL_EVERY: Duration = Duration::from_millis(500);
const DIAL_LIMIT: Duration = Duration::from_secs(3);
/// How often one who is retired is tried: it is not expected to come back, and shall be told if it does.
const DIAL_RETIRED: Duration = Duration::from_secs(10);
/// How long one with a lower id is waited for, whose it is to dial. It does not if it has never heard of this replica, since whoever
/// admitted that is gone with all that it had written: then this one must come to be told.
const UNDIALED: Duration = Duration::from_secs(5);
/// Messages to one peer that may wait; more are dropped and made up for by anti-entropy.
const QUEUE: usize = 256;
/// Bytes of messages to one peer that may wait, likewise.
const QUEUE_BYTES: usize = 16 << 20;
/// Questions to holders of claims that wait to be asked.
const VOUCHING: usize = 64;
/// Messages of all peers that may wait for the core. It is quick; who says more meanwhile is slowed.
const INPUTS: usize = 64;
/// Messages with entries that may wait for the node, and their bytes.
const ARRIVALS: usize = 64;
const ARRIVAL_BYTES: usize = 64 << 20;
/// Connections that one member may have at once: a few attempts to connect overlap.
const CONNECTIONS: usize = 16;
/// Newcomers that are heard at once, and handshakes: nobody has shown yet who it is.
const JOINING: usize = 32;
const HANDSHAKES: usize = 1024;
/// How long the first frame of a stream may take.
pub(crate) const FIRST_FRAME: Duration = Duration::from_secs(10);
/// How long a peer may take to show an entry that it says it holds.
const PROOF_LIMIT: Duration = Duration::from_secs(2);
/// How long after a snapshot that was of no use another is taken.
const SNAPSHOT_AGAIN: Duration = Duration::from_secs(30);
/// Bytes of log in one batch of anti-entropy.
const LOG_BATCH: usize = 1 << 20;

/// Why the network could not be started, or a peer not be reached.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The address cannot be used.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// See [`CertificateError`].
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The TLS library refused the configuration.
    #[error("TLS: {0}")]
    Tls(String),
    /// Nobody answers there.
    #[error("{0} cannot be reached: {1}")]
    Unreachable(String, String),
}

/// Entries that came from a peer, and whether it waits for an answer.
type Arrival = (ReplicaId, Vec<Arc<[u8]>>, bool);
/// What is read of the log for a peer after what is being read, if anything.
type NextRead = Option<Vec<EntryId>>;

/// A connected replica.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    queue: mpsc::Sender<Msg>,
    /// Bytes in the queue.
    queued: Arc<AtomicUsize>,
    pub(crate) since: Instant,
}

/// The network of one replica. Clones are the same one.
#[derive(Clone)]
pub struct Net {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) node: Node,
    pub(crate) credentials: Credentials,
    pub(crate) authority: Option<Authority>,
    pub(crate) tokens: Tokens,
    pub(crate) blobs: Blobs,
    endpoint: Endpoint,
    pub(crate) peers: Mutex<BTreeMap<ReplicaId, Peer>>,
    pub(crate) reach: Mutex<BTreeMap<ReplicaId, Seen>>,
    pub(crate) stable: ArcSwap<Frontier>,
    pub(crate) demand: Mutex<Demand>,
    pub(crate) asked_ahead: AtomicU64,
    pub(crate) asked_short: AtomicU64,
    inputs: mpsc::Sender<Input>,
    arrivals: mpsc::Sender<Arrival>,
    /// Bytes that wait there.
    arriving: AtomicUsize,
    /// Peers for whom the log is being read: one read at a time for each.
    reading: Mutex<BTreeMap<ReplicaId, NextRead>>,
    /// An entry of this replica's that others say they hold is being asked for.
    pub(crate) proving: AtomicBool,
    /// A snapshot is being taken in place of the state.
    replacing: AtomicBool,
    /// Connections of each member, by its key.
    connections: Mutex<BTreeMap<[u8; 32], usize>>,
    handshakes: Arc<Semaphore>,
    joining: Arc<Semaphore>,
    pub(crate) snapshots: Snapshots,
}

/// What all of several hold.
fn lowest(mine: &Frontier, others: &[&Frontier]) -> Frontier {
    let of = |(id, tip): (&ReplicaId, &Tip)| {
        let tips = others.iter().map(|other| other.0.get(id).copied());
        let low = tips.chain([Some(*tip)]).collect::<Option<Vec<_>>>()?.into_iter().min_by_key(|tip| tip.number)?;
        Some((*id, low))
    };
    Frontier(mine.0.iter().filter_map(of).collect())
}

/// What was last known of a peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) heard: Option<Instant>,
    /// It has said what it holds of this replica's entries.
    pub(crate) met: bool,
    pub(crate) lost: Option<Instant>,
    /// See [`crate::proto::Peer::same_state`].
    pub(crate) same_state: Option<bool>,
    pub(crate) reported: Frontier,
    pub(crate) status: Status,
}

impl Net {
    /// Binds the endpoint and starts everything.
    ///
    /// # Errors
    /// [`NetError`] if the address cannot be used or the credentials are malformed.
    pub fn start(
        node: Node,
        credentials: Credentials,
        authority: Option<Authority>,
        tokens: Tokens,
        blobs: Blobs,
        bind: SocketAddr,
    ) -> Result<Self, NetError> {
        let mut endpoint = Endpoint::server(server_config(&credentials)?, bind)
            .map_err(|source| NetError::Bind { address: bind, source })?;
        endpoint.set_default_client_config(client_config(&credentials)?);
        let (inputs, queue) = mpsc::channel(INPUTS);
        let (arrivals, arrived) = mpsc::channel(ARRIVALS);
        let inner = Inner {
            node,
            credentials,
            authority,
            tokens,
            blobs,
            endpoint,
            peers: Mutex::default(),
            reach: Mutex::default(),
            stable: ArcSwap::default(),
            demand: Mutex::default(),
            asked_ahead: AtomicU64::default(),
            asked_short: AtomicU64::default(),
            inputs,
            arrivals,
            arriving: AtomicUsize::new(0),
            reading: Mutex::default(),
            proving: AtomicBool::new(false),
            replacing: AtomicBool::new(false),
            connections: Mutex::default(),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            joining: Arc::new(Semaphore::new(JOINING)),
            snapshots: Snapshots::default(),
        };
        let (vouch, questions) = mpsc::channel(VOUCHING);
        inner.node.agents().ask_with(vouch);
        let net = Self { inner: Arc::new(inner) };
        tokio::spawn(net.clone().run_vouching(questions));
        tokio::spawn(net.clone().run_core(queue));
        tokio::spawn(net.clone().take_arrivals(arrived));
        tokio::spawn(net.clone().accept());
        tokio::spawn(net.clone().dial_members());
        tokio::spawn(net.clone().begin());
        Ok(net)
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.inner.endpoint.local_addr()
    }

    /// This member's credentials.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// Image data held here.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    /// The connection to a peer, if there is one.
    pub(crate) fn connection(&self, replica: ReplicaId) -> Option<Connection> {
        self.inner.peers.lock().get(&replica).map(|peer| peer.connection.clone())
    }

    async fn run_core(self, mut inputs: mpsc::Receiver<Input>) {
        let node = &self.inner.node;
        let mut proto = Proto::new(node.me());
        let mut flushed = node.subscribe();
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            let input = tokio::select! {
                input = inputs.recv() => match input { Some(input) => input, None => return },
                flush = flushed.recv() => match flush {
                    Ok(flush) => {
                        if flush.members {
                            self.drop_revoked();
                        }
                        self.note_demand(&flush.entries);
                        Input::Flushed(flush.entries.clone())
                    }
                    // Entries that were missed are found by anti-entropy; a revocation may have been among them.
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                        self.drop_revoked();
                        continue;
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                },
                _ = tick.tick() => {
                    self.note_stable();
                    self.inner.snapshots.expire();
                    Input::Tick(self.status())
                }
            };
            let mut todo = vec![input];
            while let Some(input) = todo.pop() {
                let outputs = proto.handle(input, now(), &node.held());
                todo.extend(outputs.into_iter().filter_map(|output| self.act(output)));
            }
            self.note(&proto);
        }
    }

    /// Gives arrived entries to the node, everything that has queued up meanwhile in one commit.
    async fn take_arrivals(self, mut arrivals: mpsc::Receiver<Arrival>) {
        let mut batch = Vec::new();
        while arrivals.recv_many(&mut batch, ARRIVALS).await > 0 {
            let mut answers: BTreeMap<ReplicaId, bool> = BTreeMap::new();
            let mut entries = Vec::new();
            let mut bytes = 0;
            for (peer, more, answer) in batch.drain(..) {
                bytes += weight(&more);
                *answers.entry(peer).or_default() |= answer;
                entries.extend(more);
            }
            let received = self.inner.node.receive(entries).await;
            self.inner.arriving.fetch_sub(bytes, Ordering::Relaxed);
            // Something is missing before what came: say what is held, so that it is sent.
            let (gap, again) = waits_for(&received.unwrap_or_default(), self.inner.node.view().frontier());
            for (peer, answer) in answers {
                let again = again.clone();
                let _ = self.inner.inputs.send(Input::Received { peer, answer: answer || gap, again }).await;
            }
        }
    }

    fn status(&self) -> Status {
        let view = self.inner.node.view();
        let (hosts, witnesses) = (self.inner.node.agents().statuses(), self.inner.node.agents().witnesses());
        Status { at: now(), digest: view.digest().to_string(), connected: Arc::default(), hosts, witnesses }
    }

    fn note(&self, proto: &Proto) {
        let mut reach = self.inner.reach.lock();
        for (id, peer) in proto.peers() {
            let seen = reach.entry(*id).or_default();
            let silent = Duration::from_millis(now().saturating_sub(peer.heard));
            seen.heard = Instant::now().checked_sub(silent).or(seen.heard);
            seen.met |= peer.met;
            seen.same_state = peer.same_state.or(seen.same_state);
            if !peer.reported.0.is_empty() {
                seen.reported.clone_from(&peer.reported);
            }
            if peer.status.at > 0 {
                seen.status = peer.status.clone();
            }
        }
    }

    /// What was claimed here says what will be.
    fn note_demand(&self, entries: &[Arc<Entry>]) {
        let mut pools = std::collections::BTreeSet::new();
        for entry in entries.iter().filter(|entry| entry.header.author == self.inner.node.me()) {
            for op in &entry.header.ledger {
                if let LedgerOp::Claim { pool, amount, .. } = op {
                    self.inner.demand.lock().claimed(*pool, amount, now());
                    pools.insert(*pool);
                }
            }
        }
        if !pools.is_empty() {
            self.ask_ahead(&pools);
        }
    }

    /// How often rights were asked for before they were needed, and when they were short.
    #[must_use]
    pub fn rights_asked(&self) -> (u64, u64) {
        (self.inner.asked_ahead.load(Ordering::Relaxed), self.inner.asked_short.load(Ordering::Relaxed))
    }

    fn note_stable(&self) {
        let view = self.inner.node.view();
        let reach = self.inner.reach.lock();
        let others = crate::agents::others(&view, self.inner.node.me());
        let told = others.iter().map(|id| reach.get(id).map(|seen| &seen.reported));
        let stable = told.collect::<Option<Vec<_>>>().map(|told| lowest(view.frontier(), &told)).unwrap_or_default();
        self.inner.stable.store(Arc::new(stable));
    }

    fn act(&self, output: Output) -> Option<Input> {
        match output {
            Output::Send(peer, message) => (!self.send(peer, message)).then_some(Input::Dropped(peer)),
            // What does not fit is dropped, and the peer told: it sends that again when it hears what is held here.
            Output::Receive { peer, entries, answer } => {
                let bytes = weight(&entries);
                let before = self.inner.arriving.fetch_add(bytes, Ordering::Relaxed);
                let fits = before == 0 || before + bytes <= ARRIVAL_BYTES;
                let taken = fits && self.inner.arrivals.try_send((peer, entries, answer)).is_ok();
                if !taken {
                    self.inner.arriving.fetch_sub(bytes, Ordering::Relaxed);
                    tracing::debug!(%peer, bytes, "entries were dropped: more arrive than are dealt with");
                }
                (!taken).then_some(Input::Overrun(peer))
            }
            Output::OldStore(entry) => {
                if !self.inner.proving.swap(true, Ordering::AcqRel) {
                    tokio::spawn(self.clone().ask_for_proof(entry));
                }
                None
            }
            Output::TakeSnapshot(peer) => {
                if !self.inner.replacing.swap(true, Ordering::AcqRel) {
                    tokio::spawn(self.clone().replace_state(peer));
                }
                None
            }
            Output::Compared(peer, word) => {
                let node = self.inner.node.clone();
                tokio::spawn(async move { node.compared(peer, word).await });
                None
            }
            Output::ReadLog { peer, from } => {
                // A peer that asks faster than the log is read gets its newest wish next.
                let mut reading = self.inner.reading.lock();
                if let Some(next) = reading.get_mut(&peer) {
                    *next = Some(from);
                } else {
                    reading.insert(peer, None);
                    tokio::spawn(self.clone().read_for(peer, from));
                }
                None
            }
        }
    }

    /// Queues a message. False if it does not fit.
    fn send(&self, peer: ReplicaId, message: Msg) -> bool {
        let Some((queue, queued)) =
            self.inner.peers.lock().get(&peer).map(|peer| (peer.queue.clone(), peer.queued.clone()))
        else {
            return false;
        };
        let bytes = message.weight();
        let before = queued.fetch_add(bytes, Ordering::Relaxed);
        let sent = (before == 0 || before + bytes <= QUEUE_BYTES) && queue.try_send(message).is_ok();
        if !sent {
            queued.fetch_sub(bytes, Ordering::Relaxed);
        }
        sent
    }

    /// Reads the log for a peer until it wishes nothing more.
    async fn read_for(self, peer: ReplicaId, from: Vec<EntryId>) {
        let mut next = Some(from);
        while let Some(from) = next {
            let LogPart { entries, more, dropped } =
                self.inner.node.read_log(from, LOG_BATCH).await.unwrap_or_default();
            let _ = self.inner.inputs.send(Input::LogRead { peer, entries, more, dropped }).await;
            let mut reading = self.inner.reading.lock();
            next = reading.get_mut(&peer).and_then(Option::take);
            if next.is_none() {
                reading.remove(&peer);
            }
        }
    }

    /// What this replica lacks is in nobody's log any more: takes a peer's snapshot in place of its state. If that fails,
    /// the peer says again what it has dropped.
    async fn replace_state(self, peer: ReplicaId) {
        tracing::warn!(%peer, "away for longer than logs are kept: a snapshot takes the place of this replica's state");
        let taken = self.take_state(peer).await;
        match taken {
            Ok(()) => tracing::info!(%peer, "the snapshot has taken the place of this replica's state"),
            Err(error) => {
                tracing::error!(%peer, error, "the snapshot did not take the place of this replica's state");
                tokio::time::sleep(SNAPSHOT_AGAIN).await;
            }
        }
        self.inner.replacing.store(false, Ordering::Release);
    }

    async fn take_state(&self, peer: ReplicaId) -> Result<(), String> {
        let addresses = self.inner.node.view().member(peer).map(|state| state.member.addresses.clone());
        let mut store = MemoryStore::default();
        let taken = take_snapshot(&self.inner.credentials, &addresses.unwrap_or_default(), &mut store).await;
        let giver = taken.map_err(|error| error.to_string())?;
        let reader = store.reader().map_err(|error| error.to_string())?;
        self.inner.node.replace(reader, giver).await.map_err(|error| error.to_string())
    }

    /// Others say that they hold an entry of this replica's that it lacks. Saying so is easy; an entry that it has signed
    /// is a proof, and then it writes no more.
    async fn ask_for_proof(self, entry: EntryId) {
        let key = self.inner.credentials.key.verifying_key().to_bytes();
        let peers: Vec<Connection> = self.inner.peers.lock().values().map(|peer| peer.connection.clone()).collect();
        let request = Request::Entry(entry);
        let answers = peers.iter().map(|connection| {
            tokio::time::timeout(PROOF_LIMIT, call::<Option<serde_bytes::ByteBuf>>(connection, &request))
        });
        let mut answers: FuturesUnordered<_> = answers.collect();
        let mut is_proved = false;
        while let Some(answer) = answers.next().await {
            let shown = answer.ok().and_then(Result::ok).flatten().and_then(|bytes| Entry::decode(&bytes).ok());
            is_proved |= shown.is_some_and(|shown| {
                let cloud = shown.header.cloud == self.inner.credentials.cloud;
                cloud && shown.id() == entry && shown.verify(&key).is_ok() && !self.is_held(&shown)
            });
            if is_proved {
                self.inner.node.put_up(Fence::OldStore(entry)).await;
                break;
            }
        }
        if !is_proved {
            tracing::warn!(%entry, "others say that they hold an entry of this replica, and cannot show it");
        }
        self.inner.proving.store(false, Ordering::Release);
    }

    /// Whether an own entry is this one, or lies so far back that it cannot be the newest.
    fn is_held(&self, entry: &Entry) -> bool {
        let own = self.inner.node.view().frontier().0.get(&self.inner.node.me()).copied();
        own.is_some_and(|own| own == entry.tip() || own.number > entry.id().number)
    }

    /// Closes the connections of members whose certificates were revoked.
    fn drop_revoked(&self) {
        let view = self.inner.node.view();
        for (id, peer) in self.inner.peers.lock().iter() {
            if view.member(*id).is_some_and(|state| state.revoked) && !on(SiteMutant::CertificateKept) {
                peer.connection.close(VarInt::from_u32(1), b"revoked");
            }
        }
    }

    async fn accept(self) {
        while let Some(incoming) = self.inner.endpoint.accept().await {
            let Ok(handshake) = self.inner.handshakes.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let net = self.clone();
            tokio::spawn(async move {
                let connecting = incoming.accept().ok()?;
                let connection = tokio::time::timeout(Duration::from_secs(5), connecting).await.ok()?.ok()?;
                drop(handshake);
                match protocol(&connection).as_deref() {
                    Some(JOIN) => match net.inner.joining.try_acquire() {
                        Ok(_heard) => net.serve_join(connection).await,
                        Err(_) => connection.close(VarInt::from_u32(5), b"busy"),
                    },
                    Some(MEMBER) => net.serve_member(connection).await,
                    _ => connection.close(VarInt::from_u32(2), b"protocol"),
                }
                Some(())
            });
        }
    }

    async fn serve_member(&self, connection: Connection) {
        let identity = identity(&connection, &self.inner.credentials);
        let Some(_counted) = identity.as_ref().and_then(|identity| Counted::new(&self.inner, identity.key)) else {
            connection.close(VarInt::from_u32(3), b"certificate");
            return;
        };
        match identity {
            Some(PeerIdentity { role: Role::Replica { replica, .. }, .. }) => {
                self.serve_replica(replica, connection).await;
            }
            Some(PeerIdentity { role: Role::Agent { host, site }, key, .. }) if site == *self.inner.node.site() => {
                while let Ok((send, recv)) = connection.accept_bi().await {
                    tokio::spawn(self.clone().serve_agent_stream(connection.clone(), (host, key), send, recv));
                }
            }
            _ => connection.close(VarInt::from_u32(3), b"certificate"),
        }
    }

    fn is_revoked(&self, replica: ReplicaId) -> bool {
        let revoked = self.inner.node.view().member(replica).is_some_and(|state| state.revoked);
        revoked && !on(SiteMutant::CertificateKept)
    }

    /// The accepting side of a connection between replicas: the first stream is the control stream.
    async fn serve_replica(&self, peer: ReplicaId, connection: Connection) {
        loop {
            if self.is_revoked(peer) {
                connection.close(VarInt::from_u32(1), b"revoked");
                return;
            }
            let Ok((send, mut recv)) = connection.accept_bi().await else { return };
            let net = self.clone();
            let connection = connection.clone();
            tokio::spawn(async move {
                let request = tokio::time::timeout(FIRST_FRAME, wire::read::<Request>(&mut recv, 64 << 10)).await;
                match request {
                    // It may have been revoked since the stream was awaited.
                    Ok(Ok(_)) if net.is_revoked(peer) => connection.close(VarInt::from_u32(1), b"revoked"),
                    Ok(Ok(Request::Control)) => net.control(peer, connection, send, recv).await,
                    Ok(Ok(request)) => net.serve_request(Some(peer), request, send, recv).await,
                    _ => connection.close(VarInt::from_u32(4), b"frame"),
                }
            });
        }
    }

    /// Runs the control stream until it ends.
    async fn control(
        &self,
        peer: ReplicaId,
        connection: Connection,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let (queue, mut messages) = mpsc::channel::<Msg>(QUEUE);
        let queued = Arc::new(AtomicUsize::new(0));
        let new = Peer { connection: connection.clone(), queue, queued: queued.clone(), since: Instant::now() };
        let old = self.inner.peers.lock().insert(peer, new);
        if let Some(old) = old {
            old.connection.close(VarInt::from_u32(0), b"replaced");
        }
        // A revocation that came before the peer was entered above did not find it there.
        if self.is_revoked(peer) {
            connection.close(VarInt::from_u32(1), b"revoked");
        }
        tracing::info!(%peer, "connected");
        let _ = self.inner.inputs.send(Input::Connected(peer)).await;
        let write = async {
            while let Some(message) = messages.recv().await {
                if wire::write(&mut send, &message).await.is_err() {
                    break;
                }
                queued.fetch_sub(message.weight(), Ordering::Relaxed);
            }
        };
        let read = async {
            loop {
                match wire::read::<Msg>(&mut recv, wire::MAX_FRAME).await {
                    Ok(message) => {
                        let _ = self.inner.inputs.send(Input::Message(peer, message)).await;
                    }
                    Err(error) => return error,
                }
            }
        };
        tokio::select! {
            () = write => {}
            error = read => tracing::info!(%peer, %error, "connection ended"),
        }
        connection.close(VarInt::from_u32(0), b"ended");
        if self.forget(peer, &connection) {
            self.inner.reach.lock().entry(peer).or_default().lost = Some(Instant::now());
            let _ = self.inner.inputs.send(Input::Disconnected(peer)).await;
        }
    }

    /// Drops a connection that ended, unless a newer one has taken its place.
    fn forget(&self, peer: ReplicaId, connection: &Connection) -> bool {
        let mut peers = self.inner.peers.lock();
        let current = peers.get(&peer).is_some_and(|current| current.connection.stable_id() == connection.stable_id());
        current && peers.remove(&peer).is_some()
    }

    /// Keeps a dialer for every member: at once for those that are this replica's to dial, and for others should they not come.
    async fn dial_members(self) {
        let mut dialing = std::collections::BTreeSet::new();
        let mut flushed = self.inner.node.subscribe();
        loop {
            let view = self.inner.node.view();
            let me = self.inner.node.me();
            for (id, state) in view.members() {
                if me != *id && !state.revoked && dialing.insert(*id) {
                    tokio::spawn(self.clone().dial(*id));
                }
            }
            loop {
                match flushed.recv().await {
                    Ok(flush) if flush.members => break,
                    Ok(_) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => break,
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                }
            }
        }
    }

    async fn dial(self, peer: ReplicaId) {
        // A revocation is for ever.
        while !self.is_revoked(peer) {
            if !self.is_ours_to_dial(peer) {
                self.wait_for_dial(peer).await;
            }
            if let Some((connection, send, recv)) = self.connect(peer).await {
                // Both run to their ends: whoever is first ends the connection, and the control stream says so.
                let streams = self.serve_replica(peer, connection.clone());
                tokio::join!(self.control(peer, connection.clone(), send, recv), streams);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn is_ours_to_dial(&self, peer: ReplicaId) -> bool {
        self.inner.node.me() < peer
    }

    fn is_connected(&self, peer: ReplicaId) -> bool {
        self.inner.peers.lock().contains_key(&peer)
    }

    /// Until one whose it is to dial has not been connected for long.
    async fn wait_for_dial(&self, peer: ReplicaId) {
        let mut since = Instant::now();
        while since.elapsed() < UNDIALED {
            tokio::time::sleep(UNDIALED / 5).await;
            if self.is_connected(peer) {
                since = Instant::now();
            }
        }
    }

    /// Attempts overlap; the first that succeeds wins.
    async fn connect(&self, peer: ReplicaId) -> Option<(Connection, quinn::SendStream, quinn::RecvStream)> {
        let mut attempts = FuturesUnordered::new();
        let mut every = tokio::time::interval(DIAL_EVERY);
        let mut last: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = every.tick() => {
                    let others = !self.is_ours_to_dial(peer);
                    if self.is_revoked(peer) || (others && self.is_connected(peer)) {
                        return None;
                    }
                    let is_retired = self.inner.node.view().retired().contains(peer);
                    if (is_retired || others) && last.is_some_and(|last| last.elapsed() < DIAL_RETIRED) {
                        continue;
                    }
                    last = Some(Instant::now());
                    attempts.push(tokio::time::timeout(DIAL_LIMIT, self.attempt(peer)));
                }
                Some(Ok(Some(connected))) = attempts.next() => return Some(connected),
            }
        }
    }

    async fn attempt(&self, peer: ReplicaId) -> Option<(Connection, quinn::SendStream, quinn::RecvStream)> {
        let addresses = self.inner.node.view().member(peer)?.member.addresses.clone();
        for address in addresses {
            let Some(address) = resolve(&address).await else { continue };
            let Ok(connecting) = self.inner.endpoint.connect(address, SERVER_NAME) else { continue };
            let Ok(connection) = connecting.await else { continue };
            let theirs = identity(&connection, &self.inner.credentials);
            if !theirs.is_some_and(|id| matches!(id.role, Role::Replica { replica, .. } if replica == peer)) {
                connection.close(VarInt::from_u32(3), b"certificate");
                continue;
            }
            let (mut send, recv) = connection.open_bi().await.ok()?;
            wire::write(&mut send, &Request::Control).await.ok()?;
            return Some((connection, send, recv));
        }
        None
    }
}

/// Counts a member's connection while it lives.
struct Counted<'a> {
    inner: &'a Inner,
    key: [u8; 32],
}

impl<'a> Counted<'a> {
    /// None if the member has as many as it may.
    fn new(inner: &'a Inner, key: [u8; 32]) -> Option<Self> {
        let mut all = inner.connections.lock();
        let count = all.entry(key).or_default();
        (*count < CONNECTIONS).then(|| {
            *count += 1;
            Self { inner, key }
        })
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut all = self.inner.connections.lock();
        if let Some(count) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}

fn weight(entries: &[Arc<[u8]>]) -> usize {
    entries.iter().map(|entry| entry.len() + 64).sum()
}

/// Resolves `host:port`.
pub(crate) async fn resolve(address: &str) -> Option<SocketAddr> {
    tokio::net::lookup_host(address).await.ok()?.next()
}

fn protocol(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// Who the other end is, by its certificate, if it is of this cloud.
pub(crate) fn identity(connection: &Connection, credentials: &Credentials) -> Option<PeerIdentity> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    PeerIdentity::of(chain.first()?).ok().filter(|identity| identity.cloud == credentials.cloud)
}
