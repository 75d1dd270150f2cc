//! Requests between members: rights, image data, consoles, snapshots, joining; each on a stream of its own.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use futures_util::future::join_all;
use luc_engine::agent::{FromAgent, ToAgent};
use luc_engine::entry::Frontier;
use luc_engine::hosts::stands_by;
use luc_engine::id::{ClaimId, EntryId, HostId, PoolId, ReplicaId, SiteName};
use luc_engine::ledger::Amount;
use luc_engine::schedule::{Unminted, hand_over};
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::tx::{Refusal, Shortage, Tx};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::agents::{self, CHANNEL};
use crate::blob::{BlobError, Blobs, Manifest, STALL};
use crate::ca::{Credentials, SERVER_NAME};
use crate::demand;
use crate::join::{Admission, JoinError, Newcomer, Token, admit, prove};
use crate::net::{FIRST_FRAME, Net, NetError, resolve};
use crate::node::now;
pub use crate::snapshot::take_snapshot;
use crate::transport::{client_endpoint, join_endpoint};
use crate::vouching::Vouch;
use crate::wire::{self, JoinAnswer, JoinRequest, Request, RightsAnswer, WireError};

/// The longest answer that is not data.
const ANSWER: usize = wire::MAX_FRAME;
/// How long a holder of rights may take for what it does between question and answer, beyond the round trips: a flush on a busy
/// disk.
const RIGHTS_SERVICE: Duration = Duration::from_millis(500);
/// How long a holder of rights is waited for at most, however far it is.
const RIGHTS_LIMIT: Duration = Duration::from_millis(1_500);
/// How long admitting a newcomer may take.
const JOIN_LIMIT: Duration = Duration::from_secs(15);
/// How long the holder of a claim may take to say whether it stands by it.
const VOUCH_LIMIT: Duration = Duration::from_secs(3);
/// How long a peer may leave an answer unread before it is given up.
const UNREAD: Duration = Duration::from_secs(30);
/// How long an agent waits until its replica has fetched an image, from afar perhaps.
const FETCH_LIMIT: Duration = Duration::from_secs(3_600);
/// Bytes of log that an answer with rights carries at most.
pub const GRANT_LOG: usize = 4 << 20;

/// What came of asking others for rights.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Whether anything was granted.
    pub came: bool,
    /// Who did not answer in time: the grant may still come.
    pub silent: BTreeSet<ReplicaId>,
    /// Who answered and had nothing to give.
    pub empty: BTreeSet<ReplicaId>,
}

impl Net {
    /// Asks others for the rights that are short: for each shortage the richest holder that can be reached, or so many at once
    /// as have all that is needed; then the next, as far as those had less than was known, until it is covered or the time is
    /// up. Of a confirmed pool its root before all others: what that grants needs no second word; what others grant is waited
    /// for until the root has countersigned it, if it can be reached. If anything came, the transaction is worth another try;
    /// otherwise who gave nothing is told.
    pub async fn request_rights(&self, shortages: &[Shortage], until: Instant) -> Asked {
        let mut asked = Asked::default();
        for shortage in shortages {
            let mut missing = shortage.wanted.saturating_sub(&shortage.free_here);
            asked.came |= !shortage.unconfirmed.is_empty() && self.countersigned(shortage, until).await;
            let mut holders = demand::holders(shortage, &missing);
            // Of a confirmed pool its root first; the rest keep their order.
            holders.sort_by_key(|(holder, pool)| self.root_of_confirmed(*pool) != Some(*holder));
            while !missing.is_zero() && Instant::now() < until {
                // Who is known to be away, or is silent, is not waited for once more.
                holders.retain(|(holder, _)| self.is_reachable(*holder) && !asked.silent.contains(holder));
                let shares = demand::shares(shortage, &missing, &holders);
                if shares.is_empty() {
                    break;
                }
                holders.retain(|one| !shares.iter().any(|(holder, pool, _)| *one == (*holder, *pool)));
                let answers = shares.into_iter().map(|(holder, pool, share)| async move {
                    let asked = self.ask_for_rights(holder, pool, share, false);
                    (holder, in_time(self.rights_wait(holder), until, asked).await)
                });
                for (holder, answer) in join_all(answers).await {
                    match answer {
                        Some(granted) if granted.is_zero() => drop(asked.empty.insert(holder)),
                        Some(granted) => {
                            asked.came = true;
                            missing = missing.saturating_sub(&granted);
                        }
                        None => drop(asked.silent.insert(holder)),
                    }
                }
            }
            if asked.came {
                self.countersigned(shortage, until).await;
            }
            if missing.is_zero() {
                break;
            }
        }
        asked
    }

    /// Who countersigns grants of a pool, if that has to be done.
    fn root_of_confirmed(&self, pool: PoolId) -> Option<ReplicaId> {
        let view = self.node().view();
        let root = pool.entry.author;
        view.ledger().pool(pool).filter(|pool| pool.confirmed).map(|_| view.retired().heir(root).unwrap_or(root))
    }

    /// How long a holder of rights is waited for, by the link to it.
    fn rights_wait(&self, holder: ReplicaId) -> Duration {
        wait(self.connection(holder).map(|connection| connection.rtt()))
    }

    /// Until when rights are asked for, by whoever begins now, before it is refused: as long as the farthest member that can be
    /// reached is waited for, twice, since who is silent may be the first that was asked.
    #[must_use]
    pub fn rights_deadline(&self) -> Instant {
        let peers = self.inner.peers.lock().clone();
        let near = peers.into_iter().filter(|(replica, _)| self.is_reachable(*replica));
        Instant::now() + patience(near.map(|(_, peer)| peer.connection.rtt()))
    }

    /// Waits a bounded time until what was granted to this replica of the pools that are short is countersigned, as long as for the
    /// farthest root of those pools; not for one that cannot be reached. Whether something was.
    async fn countersigned(&self, shortage: &Shortage, until: Instant) -> bool {
        let me = self.node().me();
        let mut flushes = self.node().subscribe();
        let waiting = || -> Vec<ReplicaId> {
            let view = self.node().view();
            let mine = view.ledger().waiting().filter(|granted| granted.to == me);
            let roots = mine.filter_map(|granted| {
                let of = view.ledger().pool(granted.pool)?;
                let same = shortage.subject.as_ref().is_some_and(|subject| *subject == of.subject);
                self.root_of_confirmed(granted.pool).filter(|root| same && self.is_reachable(*root))
            });
            roots.collect()
        };
        let before = waiting();
        let Some(limit) = before.iter().map(|root| self.rights_wait(*root)).max() else { return false };
        in_time(limit, until, async {
            while waiting().len() >= before.len() {
                flushes.recv().await.ok()?;
            }
            Some(())
        })
        .await
        .is_some()
    }

    /// Asks the roots of hosts' pools for the right to place a member of a server group there, one after the other
    /// until one hands it over or the time is up. Says whether one did; then the transaction is worth another try.
    pub async fn request_member_right(&self, wanted: &[Unminted], until: Instant) -> bool {
        for Unminted { group, host, root } in wanted {
            let frontier = self.node().view().frontier().clone();
            let request = Request::MemberRight { group: *group, host: *host, frontier };
            let answer = in_time(self.rights_wait(*root), until, self.ask(*root, request)).await;
            if answer.is_some_and(|granted| !granted.is_zero()) {
                return true;
            }
        }
        false
    }

    /// Asks for more of the pools that were spent from here, where they run low.
    pub(crate) fn ask_ahead(&self, pools: &BTreeSet<PoolId>) {
        let view = self.node().view();
        for id in pools {
            let Some(pool) = view.ledger().pool(*id) else { continue };
            let mut demand = self.inner.demand.lock();
            let wish = demand.ask(*id, pool, self.node().me(), now(), |replica| self.is_reachable(replica));
            drop(demand);
            if let Some((holder, amount)) = wish {
                let (net, id) = (self.clone(), *id);
                let asked = async move { net.ask_for_rights(holder, id, amount, true).await };
                // Nobody waits for this one.
                tokio::spawn(tokio::time::timeout(RIGHTS_LIMIT, asked));
            }
        }
    }

    async fn ask_for_rights(&self, holder: ReplicaId, pool: PoolId, amount: Amount, ahead: bool) -> Option<Amount> {
        let counted = if ahead { &self.inner.asked_ahead } else { &self.inner.asked_short };
        counted.fetch_add(1, Ordering::Relaxed);
        let frontier = self.node().view().frontier().clone();
        self.ask(holder, Request::Rights { pool, amount, ahead, frontier }).await
    }

    /// Asks for rights, and takes up the entries that come with them.
    async fn ask(&self, holder: ReplicaId, request: Request) -> Option<Amount> {
        let connection = self.connection(holder)?;
        let answer: RightsAnswer = call(&connection, &request).await.ok()?;
        if let Some(reason) = answer.refused {
            tracing::info!(%holder, reason, "rights were not granted");
        }
        if !answer.entries.is_empty() {
            self.node().receive(answer.entries).await.ok()?;
        }
        Some(answer.granted)
    }

    /// What another replica holds now; none if it cannot be asked.
    pub async fn frontier_of(&self, replica: ReplicaId, limit: Duration) -> Option<Frontier> {
        let connection = self.connection(replica).filter(|_| self.is_reachable(replica))?;
        let asked = tokio::time::timeout(limit, call::<Frontier>(&connection, &Request::Frontier)).await;
        asked.ok()?.ok()
    }

    /// The end of a server's console, from wherever its host is.
    ///
    /// # Errors
    /// A text for the user.
    pub async fn console(&self, host: HostId, server: Uuid, lines: Option<u64>) -> Result<String, String> {
        let site = self.node().view().site_of_host(host).ok_or("the host is not known")?;
        if site == *self.node().site() {
            let here = self.node().agents().console(host, server, lines).await;
            let others = self.reachable_in(&site);
            if here.is_ok() || others.iter().all(|id| *id == self.node().me()) {
                return here;
            }
        }
        for replica in self.reachable_in(&site) {
            let Some(connection) = self.connection(replica) else { continue };
            let request = Request::Console { host, server, lines };
            let asked = call::<Result<String, String>>(&connection, &request);
            if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(12), asked).await {
                return answer;
            }
        }
        Err(format!("site {site} cannot be reached"))
    }

    /// The file of a blob: held already, or fetched from whoever has it, the site that took the upload first. Of many
    /// who wait for one blob, one fetches for all.
    ///
    /// # Errors
    /// [`BlobError::OutOfReach`] names whom was asked; what was fetched so far is kept for the next try.
    pub async fn fetch_blob(&self, blob: &str, uploaded_at: &str) -> Result<PathBuf, BlobError> {
        self.blobs().fetched(blob, self.fetch_from_others(blob, uploaded_at)).await
    }

    async fn fetch_from_others(&self, blob: &str, uploaded_at: &str) -> Result<PathBuf, BlobError> {
        if on(SiteMutant::ImageUnfetched) {
            return Err(BlobError::OutOfReach("nobody was asked".into()));
        }
        let view = self.node().view();
        let mut sources: Vec<(bool, SiteName, ReplicaId)> = agents::others(&view, self.node().me())
            .into_iter()
            .filter_map(|id| view.member(id).map(|state| (state.member.site.clone(), id)))
            .map(|(site, id)| (site.as_str() != uploaded_at, site, id))
            .collect();
        sources.sort();
        drop(view);
        let mut tried = Vec::new();
        for (_, site, replica) in sources {
            let Some(connection) = self.connection(replica).filter(|_| self.is_reachable(replica)) else {
                tried.push(format!("{site} is out of reach"));
                continue;
            };
            match fetch_over(&connection, self.blobs(), blob, STALL).await {
                Ok(path) => return Ok(path),
                Err(error @ BlobError::Disk { .. }) => return Err(error),
                Err(error) => tried.push(format!("{site}: {error}")),
            }
        }
        Err(BlobError::OutOfReach(tried.join("; ")))
    }

    pub(crate) async fn serve_request(
        &self,
        peer: Option<ReplicaId>,
        request: Request,
        mut send: SendStream,
        _recv: RecvStream,
    ) {
        let served = match request {
            Request::Control | Request::Agent => Err(WireError::Closed),
            Request::Rights { pool, amount, ahead, frontier } => match peer {
                Some(peer) => {
                    let answer = self.grant(peer, pool, amount, ahead, frontier).await;
                    wire::write(&mut send, &answer).await
                }
                None => Err(WireError::Closed),
            },
            Request::MemberRight { group, host, frontier } => match peer {
                Some(peer) => {
                    let answer = self.grant_member_right(peer, group, host, frontier).await;
                    wire::write(&mut send, &answer).await
                }
                None => Err(WireError::Closed),
            },
            Request::Frontier => wire::write(&mut send, self.node().view().frontier()).await,
            Request::BlobManifest(blob) => {
                let held = self.blobs().manifest(&blob).await.map_err(|error| error.to_string());
                wire::write(&mut send, &held).await
            }
            Request::BlobChunks { blob, from } => self.send_chunks(&mut send, &blob, from).await,
            Request::Console { host, server, lines } => {
                let answer = self.node().agents().console(host, server, lines).await;
                wire::write(&mut send, &answer).await
            }
            Request::Vouch(claims) => match peer {
                Some(_) => wire::write(&mut send, &self.stood_by(claims)).await,
                None => Err(WireError::Closed),
            },
            Request::Entry(id) => match peer {
                Some(_) => {
                    let read = self.node().read_log(vec![id], 1).await.unwrap_or_default().entries;
                    let held = read.into_iter().find(|entry| entry.id() == id);
                    wire::write(&mut send, &held.map(|entry| serde_bytes::ByteBuf::from(entry.bytes()))).await
                }
                None => Err(WireError::Closed),
            },
            Request::Snapshot(place) => match peer {
                Some(peer) => self.send_snapshot(&mut send, peer, place).await,
                None => Err(WireError::Closed),
            },
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a request could not be served");
        }
        let _ = send.finish();
        // The stream must outlive what is still under way; but not for a peer that never reads it.
        let _ = tokio::time::timeout(UNREAD, send.stopped()).await;
    }

    /// Of these claims, those by which this replica stands. One that does not write has no say: it may be an old copy of one
    /// that has placed their servers elsewhere.
    fn stood_by(&self, claims: Vec<ClaimId>) -> Vec<ClaimId> {
        let node = self.node();
        if !node.has_begun() || node.fence().is_some() {
            return Vec::new();
        }
        let view = node.view();
        claims.into_iter().filter(|claim| stands_by(&view, node.me(), *claim)).collect()
    }

    /// Asks the holders of claims whether they stand by them, for the agents attached here.
    pub(crate) async fn run_vouching(self, mut questions: mpsc::Receiver<Vouch>) {
        while let Some(Vouch { holder, claims, reply }) = questions.recv().await {
            let Some(connection) = self.connection(holder) else { continue };
            tokio::spawn(async move {
                let request = Request::Vouch(claims);
                let asked = call::<Vec<ClaimId>>(&connection, &request);
                if let Ok(Ok(stood)) = tokio::time::timeout(VOUCH_LIMIT, asked).await {
                    let _ = reply.send(stood);
                }
            });
        }
    }

    /// Grants what is asked, or half of what is free if that is more: tiny transfers would come again and again.
    async fn grant(
        &self,
        to: ReplicaId,
        pool: PoolId,
        amount: Amount,
        ahead: bool,
        frontier: Frontier,
    ) -> RightsAnswer {
        let keep = self.inner.demand.lock().of(pool, now());
        let give = move |tx: &mut Tx<'_>| {
            if ahead { spare(tx, to, pool, &amount, &keep) } else { grant(tx, to, pool, &amount) }
        };
        let granted = self.node().transact::<_, Refusal, _>(give).await;
        self.answer(to, granted, frontier).await
    }

    async fn grant_member_right(&self, to: ReplicaId, group: Uuid, host: HostId, frontier: Frontier) -> RightsAnswer {
        // The group may be younger than the connection is fast. What is still missing then is told by the answer, for which the asker
        // waits: so half of that at most, and the rest is for the flush and the way back.
        let _ = self.node().wait_for(&frontier, self.rights_wait(to) / 2).await;
        let handed = self.node().transact::<_, Refusal, _>(move |tx| hand_over(tx, group, host, to)).await;
        self.answer(to, handed, frontier).await
    }

    /// What was granted, with the entries that the asker lacks to use it (A6).
    async fn answer(&self, to: ReplicaId, granted: Result<Amount, Refusal>, frontier: Frontier) -> RightsAnswer {
        match granted {
            Ok(granted) if granted.is_zero() => {
                RightsAnswer { granted, entries: Vec::new(), refused: Some("nothing is free here".into()) }
            }
            Ok(granted) => {
                let view = self.node().view();
                let from = lacking(view.frontier(), &frontier, to);
                let entries = self.node().read_log(from, GRANT_LOG).await.unwrap_or_default().entries;
                let entries = entries.iter().map(|entry| entry.shared_bytes()).collect();
                RightsAnswer { granted, entries, refused: None }
            }
            Err(error) => {
                RightsAnswer { granted: Amount::default(), entries: Vec::new(), refused: Some(error.to_string()) }
            }
        }
    }

    async fn send_chunks(&self, send: &mut SendStream, blob: &str, from: u64) -> Result<(), WireError> {
        match self.blobs().read(blob, from).await {
            Err(error) => wire::write(send, &Err::<(), _>(error.to_string())).await,
            Ok(mut file) => {
                wire::write(send, &Ok::<(), String>(())).await?;
                let mut piece = vec![0; 64 << 10];
                loop {
                    let read = tokio::io::AsyncReadExt::read(&mut file, &mut piece).await?;
                    if read == 0 {
                        return Ok(());
                    }
                    let sent = tokio::time::timeout(UNREAD, send.write_all(&piece[..read])).await;
                    sent.map_err(|_| WireError::Closed)?.map_err(std::io::Error::from)?;
                }
            }
        }
    }

    pub(crate) async fn serve_agent_stream(
        self,
        connection: Connection,
        (host, key): (HostId, [u8; 32]),
        mut send: SendStream,
        mut recv: RecvStream,
    ) {
        let request = tokio::time::timeout(FIRST_FRAME, wire::read::<Request>(&mut recv, 64 << 10)).await;
        match request {
            Ok(Ok(Request::Agent)) => {
                let served = self.serve_agent(&connection, (host, key), send, recv).await;
                tracing::info!(%host, error = ?served.err().map(|error| error.to_string()), "agent detached");
            }
            Ok(Ok(Request::BlobManifest(blob))) => {
                let fetched = async {
                    self.fetch_blob(&blob, "").await?;
                    self.blobs().manifest(&blob).await
                };
                // Who asks no more is not waited with: others who want the image go on with it.
                let fetched = tokio::select! {
                    fetched = fetched => fetched,
                    _ = send.stopped() => return,
                };
                let _ = wire::write(&mut send, &fetched.map_err(|error| error.to_string())).await;
                let _ = send.finish();
                let _ = tokio::time::timeout(UNREAD, send.stopped()).await;
            }
            Ok(Ok(request @ Request::BlobChunks { .. })) => self.serve_request(None, request, send, recv).await,
            _ => connection.close(VarInt::from_u32(4), b"frame"),
        }
    }

    async fn serve_agent(
        &self,
        connection: &Connection,
        (host, key): (HostId, [u8; 32]),
        mut send: SendStream,
        mut recv: RecvStream,
    ) -> Result<(), agents::AgentError> {
        let (to, mut outgoing) = mpsc::channel::<ToAgent>(CHANNEL);
        let (incoming, from) = mpsc::channel::<FromAgent>(CHANNEL);
        let write = async {
            while let Some(message) = outgoing.recv().await {
                if wire::write(&mut send, &message).await.is_err() {
                    break;
                }
            }
        };
        let read = async {
            loop {
                match wire::read::<FromAgent>(&mut recv, 4 << 20).await {
                    Ok(message) => {
                        if incoming.send(message).await.is_err() {
                            break;
                        }
                    }
                    Err(WireError::Closed | WireError::Io(_)) => break,
                    Err(_) => {
                        connection.close(VarInt::from_u32(4), b"frame");
                        break;
                    }
                }
            }
        };
        tokio::select! {
            served = agents::serve(self.node().clone(), from, to, Some((key, host))) => served,
            () = write => Err(agents::AgentError::Gone),
            () = read => Err(agents::AgentError::Gone),
        }
    }

    pub(crate) async fn serve_join(&self, connection: Connection) {
        let answer = async {
            let (mut send, mut recv) = connection.accept_bi().await.ok()?;
            let request: JoinRequest = wire::read(&mut recv, 64 << 10).await.ok()?;
            let inner = &self.inner;
            let exported = exported(&connection)?;
            let admitted =
                admit(&inner.node, &inner.credentials, inner.authority.as_ref(), &inner.tokens, request, &exported)
                    .await;
            if let Err(error) = &admitted {
                tracing::warn!(from = %connection.remote_address(), %error, "a newcomer was turned away");
            }
            let answer: Result<JoinAnswer, String> = admitted.map_err(|error| error.to_string());
            wire::write(&mut send, &answer).await.ok()?;
            let _ = send.finish();
            let _ = send.stopped().await;
            Some(())
        };
        let _ = tokio::time::timeout(JOIN_LIMIT, answer).await;
    }
}

/// Hands rights to another replica: what it asks for, or half of what is free if that is more. Of any addresses, whole
/// aligned blocks. Says how much, in the terms of what was asked for.
///
/// # Errors
/// [`Refusal::Invalid`] if it is no member.
pub fn grant(tx: &mut Tx<'_>, to: ReplicaId, pool: PoolId, amount: &Amount) -> Result<Amount, Refusal> {
    let me = tx.me();
    let free = tx.view().ledger().pool(pool).map(|pool| pool.free(me)).unwrap_or_default();
    hand(tx, to, pool, free.gift(amount)).map(|given| given.in_terms_of(amount))
}

/// Hands over what is asked for before it is needed, as far as it is not needed here. Says how much.
///
/// # Errors
/// [`Refusal`]; then nothing is handed over.
pub fn spare(tx: &mut Tx<'_>, to: ReplicaId, pool: PoolId, amount: &Amount, keep: &Amount) -> Result<Amount, Refusal> {
    let free = tx.view().ledger().pool(pool).map(|pool| pool.free(tx.me())).unwrap_or_default();
    hand(tx, to, pool, free.spare(amount, keep)).map(|given| given.in_terms_of(amount))
}

fn hand(tx: &mut Tx<'_>, to: ReplicaId, pool: PoolId, gift: Amount) -> Result<Amount, Refusal> {
    // What the pool is for may be gone, as far as is known here.
    let closed = tx.view().ledger().pool(pool).is_none_or(|pool| tx.view().is_closed(pool));
    if closed || gift.is_zero() {
        return Ok(Amount::default());
    }
    tx.grant(pool, to, gift.clone())?;
    Ok(gift)
}

/// The first entry of each author that `mine` holds and `theirs` lacks; but not `to`'s own.
#[must_use]
pub fn lacking(mine: &Frontier, theirs: &Frontier, to: ReplicaId) -> Vec<EntryId> {
    let lacks = mine.0.iter().filter(|(author, tip)| **author != to && theirs.number(**author) < tip.number);
    lacks.map(|(author, _)| EntryId { author: *author, number: theirs.number(*author) + 1 }).collect()
}

/// How long a holder of rights is waited for whose link has this round trip: two of them, one for the question and one for a packet
/// that is lost on the way, and what the holder does meanwhile. As long as anybody, if nothing is known of the link.
fn wait(rtt: Option<Duration>) -> Duration {
    let known = rtt.map(|rtt| rtt.saturating_mul(2).saturating_add(RIGHTS_SERVICE));
    known.map_or(RIGHTS_LIMIT, |known| known.min(RIGHTS_LIMIT))
}

/// How long rights are asked for in all where those who can be reached have these round trips: twice as long as for the farthest, and
/// for somebody next door where there is nobody.
fn patience(rtts: impl Iterator<Item = Duration>) -> Duration {
    wait(Some(rtts.max().unwrap_or_default())) * 2
}

/// What is answered within this limit, and before this time.
async fn in_time<T>(limit: Duration, until: Instant, answer: impl Future<Output = Option<T>>) -> Option<T> {
    let limit = limit.min(until.saturating_duration_since(Instant::now()));
    tokio::time::timeout(limit, answer).await.ok().flatten()
}

fn exported(connection: &Connection) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    connection.export_keying_material(&mut bytes, b"luc join", b"").ok()?;
    Some(bytes)
}

/// Sends a request and reads its one answer.
pub(crate) async fn call<T: serde::de::DeserializeOwned>(
    connection: &Connection,
    request: &Request,
) -> Result<T, WireError> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(std::io::Error::other)?;
    wire::write(&mut send, request).await?;
    let _ = send.finish();
    wire::read(&mut recv, ANSWER).await
}

/// Fetches a blob over a connection, whose other end has it within `patience`, from the chunk where an earlier fetch stopped.
async fn fetch_over(
    connection: &Connection,
    blobs: &Blobs,
    blob: &str,
    patience: Duration,
) -> Result<PathBuf, BlobError> {
    let broken = |error: String| BlobError::Broken(error);
    let request = Request::BlobManifest(blob.into());
    let manifest = tokio::time::timeout(patience, call::<Result<Manifest, String>>(connection, &request)).await;
    let manifest = manifest.map_err(|_| broken("no answer".into()))?;
    let manifest = manifest.map_err(|error| broken(error.to_string()))?.map_err(broken)?;
    let from = blobs.resume(blob, &manifest).await?;
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| broken(error.to_string()))?;
    let request = Request::BlobChunks { blob: blob.into(), from };
    wire::write(&mut send, &request).await.map_err(|error| broken(error.to_string()))?;
    let _ = send.finish();
    let granted = tokio::time::timeout(STALL, wire::read::<Result<(), String>>(&mut recv, 4096)).await;
    let granted = granted.map_err(|_| broken("no answer".into()))?;
    granted.map_err(|error| broken(error.to_string()))?.map_err(broken)?;
    blobs.take(blob, &manifest, from, &mut recv).await
}

/// Joins a cloud by a token. What comes back is not on disk yet.
///
/// # Errors
/// [`JoinError`].
pub async fn join(token: &Token, newcomer: Newcomer) -> Result<Admission, JoinError> {
    let failed = |error: NetError| JoinError::Sponsor(error.to_string());
    let endpoint = join_endpoint(token.pin).map_err(failed)?;
    let mut last = JoinError::Sponsor("the token names no address".into());
    for address in &token.addresses {
        let connection = match dial(&endpoint, address).await {
            Ok(connection) => connection,
            Err(error) => {
                last = failed(error);
                continue;
            }
        };
        let unheard = |error: String| JoinError::Sponsor(format!("the sponsor at {address} did not answer: {error}"));
        let exported = exported(&connection).ok_or_else(|| unheard("no keying material".into()))?;
        let request = JoinRequest {
            secret: token.secret.to_vec(),
            public_key: newcomer.key.verifying_key().to_bytes(),
            proof: prove(&newcomer.key, &exported),
            addresses: newcomer.addresses.clone(),
            host: newcomer.host,
        };
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| unheard(error.to_string()))?;
        wire::write(&mut send, &request).await.map_err(|error| unheard(error.to_string()))?;
        let _ = send.finish();
        let answer = tokio::time::timeout(JOIN_LIMIT, wire::read::<Result<JoinAnswer, String>>(&mut recv, 64 << 10));
        let answer = answer.await.map_err(|_| unheard(format!("nothing came for {} s", JOIN_LIMIT.as_secs())))?;
        let answer = answer.map_err(|error| unheard(error.to_string()))?;
        let answer = answer.map_err(JoinError::Sponsor)?;
        return Admission::of(answer, newcomer.key, &token.pin);
    }
    Err(last)
}

pub(crate) async fn dial(endpoint: &Endpoint, address: &str) -> Result<Connection, NetError> {
    let failed = |reason: String| NetError::Unreachable(address.into(), reason);
    let at = resolve(address).await.ok_or_else(|| failed("the name does not resolve".into()))?;
    let connecting = endpoint.connect(at, SERVER_NAME).map_err(|error| failed(error.to_string()))?;
    let connected = tokio::time::timeout(Duration::from_secs(5), connecting).await;
    connected.map_err(|_| failed("no answer within 5 s".into()))?.map_err(|error| failed(error.to_string()))
}

/// An agent's connection to a replica of its site.
pub struct AgentConnection {
    connection: Connection,
    _endpoint: Endpoint,
    /// What the replica says.
    pub from: mpsc::Receiver<ToAgent>,
    /// What the agent says.
    pub to: mpsc::Sender<FromAgent>,
}

/// Fetches blobs over an agent's connection.
#[derive(Clone)]
pub struct AgentFetch {
    connection: Connection,
}

impl AgentFetch {
    /// The file of a blob, fetched through the replica if it is not held.
    ///
    /// # Errors
    /// [`BlobError`]; what was fetched so far is kept.
    pub async fn fetch(&self, blobs: &Blobs, blob: &str) -> Result<PathBuf, BlobError> {
        blobs.fetched(blob, fetch_over(&self.connection, blobs, blob, FETCH_LIMIT)).await
    }
}

impl AgentConnection {
    /// Connects to the first replica that answers.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn connect(credentials: &Credentials, addresses: &[String]) -> Result<Self, NetError> {
        let endpoint = client_endpoint(credentials)?;
        let mut last = NetError::Unreachable("the site".into(), "no address is configured".into());
        for address in addresses {
            match dial(&endpoint, address).await {
                Err(error) => last = error,
                Ok(connection) => {
                    let failed = |error: String| NetError::Unreachable(address.clone(), error);
                    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| failed(error.to_string()))?;
                    wire::write(&mut send, &Request::Agent).await.map_err(|error| failed(error.to_string()))?;
                    let (to, mut outgoing) = mpsc::channel::<FromAgent>(CHANNEL);
                    let (incoming, from) = mpsc::channel::<ToAgent>(CHANNEL);
                    tokio::spawn(async move {
                        while let Some(message) = outgoing.recv().await {
                            if wire::write(&mut send, &message).await.is_err() {
                                break;
                            }
                        }
                    });
                    tokio::spawn(async move {
                        while let Ok(message) = wire::read::<ToAgent>(&mut recv, wire::MAX_FRAME).await {
                            if incoming.send(message).await.is_err() {
                                break;
                            }
                        }
                    });
                    return Ok(Self { connection, _endpoint: endpoint, from, to });
                }
            }
        }
        Err(last)
    }

    /// How it fetches blobs.
    #[must_use]
    pub fn fetcher(&self) -> AgentFetch {
        AgentFetch { connection: self.connection.clone() }
    }
}

/// A new Ed25519 key from 32 random bytes.
#[must_use]
pub fn new_key(random: [u8; 32]) -> SigningKey {
    SigningKey::from_bytes(&random)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_holder_is_waited_for_by_its_link_and_never_for_long() {
        assert_eq!(wait(Some(Duration::ZERO)), ms(500));
        assert_eq!(wait(Some(ms(50))), ms(600));
        assert_eq!(wait(Some(ms(500))), ms(1_500));
        assert_eq!(wait(Some(ms(501))), ms(1_500));
        assert_eq!(wait(Some(Duration::MAX)), ms(1_500));
        assert_eq!(wait(None), ms(1_500));
    }

    #[test]
    fn the_farthest_that_can_be_reached_says_how_long_rights_are_asked_for() {
        assert_eq!(patience(std::iter::empty()), ms(1_000));
        assert_eq!(patience([ms(10), ms(100), ms(1)].into_iter()), ms(1_400));
        assert_eq!(patience([ms(0), ms(2_000)].into_iter()), ms(3_000));
    }
}
