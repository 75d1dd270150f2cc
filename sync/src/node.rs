//! The driver of one replica: a thread that owns it and its store, and what everybody else sees of it.
//!
//! Jobs queue up while a flush is under way; the thread then runs all of them and makes them durable in one commit, so
//! one flush serves many requests. Only after it are views published, replies given, entries pushed and orders sent
//! (`PROTOCOL.md`, E2): every one of those leaves through the one place below the flush.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use luc_engine::agent::SignedTip;
use luc_engine::branch::Branches;
use luc_engine::entry::{Entry, Frontier, Tip};
use luc_engine::id::{EntryId, Millis, ReplicaId, SiteName};
use luc_engine::replica::{Flushed, Identity, Received, Rejection, ReplaceError, Replica, Word, read_log};
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::store::{Reader, StoreError};
use luc_engine::tx::{Fence, Refusal, Tx};
use luc_engine::view::View;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::agents::Agents;
use crate::proto::Held;
use crate::waiting::Waiting;

/// Most jobs in the queue: further callers wait.
const QUEUE: usize = 4096;
/// Most jobs in one commit.
const BATCH: usize = 512;
/// Flushes that a subscriber may be behind before it misses some. They are kept in memory with their entries, read or
/// not; what the network misses is found by anti-entropy.
const BACKLOG: usize = 64;

/// What the replica's thread does: run a job, then, after the flush, its second half.
type Job = Box<dyn FnOnce(&mut Worker) -> After + Send>;
type After = Box<dyn FnOnce(Result<(), &StoreError>) + Send>;

/// One replica, running. Clones are the same one.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    me: ReplicaId,
    identity: Identity,
    site: SiteName,
    jobs: mpsc::Sender<Job>,
    view: ArcSwap<View>,
    quarantine: ArcSwap<BTreeMap<ReplicaId, Rejection>>,
    frontier: watch::Sender<Arc<Frontier>>,
    flushed: broadcast::Sender<Arc<Flushed>>,
    agents: Agents,
    counters: Counters,
    failure: watch::Sender<Option<String>>,
    fence: watch::Sender<Option<Fence>>,
    /// Who gave the state, while that is on trust.
    trust: watch::Sender<Option<ReplicaId>>,
    /// What was refused by it.
    refused: ArcSwap<Vec<(ReplicaId, Tip)>>,
    /// Whether this replica writes: see [`Node::begin`].
    begun: watch::Sender<bool>,
}

/// What was read of the log.
#[derive(Debug, Default)]
pub struct LogPart {
    /// Oldest first by their authors' clocks.
    pub entries: Vec<Arc<Entry>>,
    /// Whether there are more than fit.
    pub more: bool,
    /// The last entry that is in the log no more, of one whose entries were asked for from that one on, or from before.
    pub dropped: Option<EntryId>,
}

/// What the thread has done since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Commits.
    pub flushes: AtomicU64,
    /// Entries in them.
    pub entries: AtomicU64,
    /// Time spent in commits, microseconds.
    pub flush_micros: AtomicU64,
    /// Bytes of entries in the log, now.
    pub log_bytes: AtomicU64,
}

/// What the thread owns.
struct Worker {
    replica: Replica,
    /// Entries whose past is not held yet.
    waiting: Waiting,
    /// Whether it writes, and has looked at all that it owes.
    begun: bool,
    looked: bool,
}

impl Node {
    /// Starts the thread. Nothing is written before [`Node::begin`].
    ///
    /// # Errors
    /// [`StoreError`] if the first flush fails.
    pub fn start(replica: Replica) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel::<Job>(QUEUE);
        let me = replica.identity().replica();
        let view = Arc::new(replica.view().clone());
        let site = view.member(me).map(|state| state.member.site.clone()).ok_or(StoreError::Poisoned)?;
        let inner = Arc::new(Inner {
            me,
            identity: replica.identity().clone(),
            site,
            jobs,
            frontier: watch::Sender::new(Arc::new(view.frontier().clone())),
            view: ArcSwap::new(view),
            quarantine: ArcSwap::default(),
            flushed: broadcast::Sender::new(BACKLOG),
            agents: Agents::default(),
            counters: Counters::default(),
            failure: watch::Sender::new(None),
            fence: watch::Sender::new(replica.fence()),
            trust: watch::Sender::new(replica.on_trust()),
            refused: ArcSwap::default(),
            begun: watch::Sender::new(false),
        });
        let node = Self { inner: inner.clone() };
        let worker = Worker { replica, waiting: Waiting::default(), begun: false, looked: false };
        let weak = Arc::downgrade(&inner);
        let thread = std::thread::Builder::new().name("replica".into());
        let failed = |error: std::io::Error| StoreError::Failed { doing: "start", reason: error.to_string() };
        thread.spawn(move || worker.run(queue, &weak)).map_err(failed)?;
        Ok(node)
    }

    /// This replica.
    #[must_use]
    pub fn me(&self) -> ReplicaId {
        self.inner.me
    }

    /// Its site.
    #[must_use]
    pub fn site(&self) -> &SiteName {
        &self.inner.site
    }

    /// The durable state. A snapshot: it does not change under its reader.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.inner.view.load_full()
    }

    /// The agents attached here.
    #[must_use]
    pub fn agents(&self) -> &Agents {
        &self.inner.agents
    }

    /// What the thread has done.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// Authors whose entries are refused, and why.
    #[must_use]
    pub fn quarantine(&self) -> Arc<BTreeMap<ReplicaId, Rejection>> {
        self.inner.quarantine.load_full()
    }

    /// Why the store takes no more writes, if it does not. Reads go on.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.inner.failure.borrow().clone()
    }

    /// Why this replica writes no more, though its store would, if it does not.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        *self.inner.fence.borrow()
    }

    /// Who gave the state that is held here, as long as nobody else has shown the same (R14).
    #[must_use]
    pub fn on_trust(&self) -> Option<ReplicaId> {
        *self.inner.trust.borrow()
    }

    /// Waits until the state held here is this replica's own (R14). False if it is not, when so long has passed or it was refuted.
    pub async fn attested(&self, limit: Duration) -> bool {
        if matches!(self.fence(), Some(Fence::FalseState { .. })) {
            return false;
        }
        let mut trust = self.inner.trust.subscribe();
        let decided = tokio::time::timeout(limit, trust.wait_for(Option::is_none)).await;
        matches!(decided, Ok(Ok(_)))
    }

    /// What is held here, as it is told to others.
    #[must_use]
    pub fn held(&self) -> Held {
        // In this order: that a state is on trust is known before it is shown.
        let view = self.view();
        let on_trust = self.on_trust().is_some();
        let refused = if on_trust { self.inner.refused.load().to_vec() } else { Vec::new() };
        Held::of(&view, on_trust, refused)
    }

    /// A member has shown what it has of the state that is on trust here.
    pub async fn compared(&self, with: ReplicaId, word: Word) {
        let job = move |worker: &mut Worker| {
            let compared = worker.replica.compared(with, word);
            let done: After = Box::new(move |_| {
                if let Err(error) = compared {
                    tracing::error!(%error, "what others show of this replica's state could not be written down");
                }
            });
            done
        };
        // A thread that takes no more jobs decides nothing either.
        let _ = self.run(Box::new(job)).await;
    }

    /// Fences this replica: it writes nothing any more, until it joins anew.
    pub async fn put_up(&self, fence: Fence) {
        let job = move |worker: &mut Worker| {
            worker.replica.put_up(fence);
            let done: After = Box::new(|_| ());
            done
        };
        // A thread that takes no more jobs writes nothing either.
        let _ = self.run(Box::new(job)).await;
    }

    /// How far this replica's durable log goes, signed: for a witness to keep. None before its first entry.
    #[must_use]
    pub fn signed_tip(&self) -> Option<SignedTip> {
        let tip = self.view().frontier().0.get(&self.inner.me).copied()?;
        Some(SignedTip::sign(self.inner.identity.cloud, tip, &self.inner.identity.key))
    }

    /// What a witness was told by replicas, this one perhaps among them. If that is more than the store has, this replica is
    /// fenced when this returns.
    ///
    /// # Errors
    /// [`StoreError`] if the log cannot be read.
    pub async fn witnessed(&self, words: Vec<SignedTip>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = move |worker: &mut Worker| {
            let judged = words.iter().try_for_each(|word| worker.replica.witnessed(word));
            after(reply, judged, |error| Err(error.clone()))
        };
        self.run(Box::new(job)).await?;
        answer.await.unwrap_or(Err(StoreError::Poisoned))
    }

    /// Every flush from now on. A subscriber that is too far behind is told that it missed some.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Flushed>> {
        self.inner.flushed.subscribe()
    }

    /// From now on this replica writes: whatever waits to be written, and what it owes the others since its last end. Not
    /// before the others were met, or it was seen that they cannot be: one that lacks entries of its own, since its store is
    /// an old copy, learns of it by them (`PROTOCOL.md`, M4).
    pub async fn begin(&self) {
        let job = |worker: &mut Worker| -> After {
            worker.begun = true;
            Box::new(|_| ())
        };
        if self.run(Box::new(job)).await.is_ok() {
            self.inner.begun.send_replace(true);
        }
    }

    /// Whether this replica writes: see [`Node::begin`].
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.inner.begun.borrow()
    }

    /// Runs a transaction, once this replica writes; when this returns, it is durable and visible here.
    ///
    /// # Errors
    /// What `f` says, or a [`Refusal`]; nothing of it happened, except after [`Refusal::Store`], when it is unknown.
    pub async fn transact<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Refusal> + Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let _ = self.inner.begun.subscribe().wait_for(|begun| *begun).await;
        let (reply, answer) = oneshot::channel();
        let job = move |worker: &mut Worker| {
            let result = worker.replica.transact(now(), f).map(|(value, _)| value);
            after(reply, result, |error| Err(E::from(Refusal::Store(error.clone()))))
        };
        self.run(Box::new(job)).await.map_err(|error| E::from(Refusal::Store(error)))?;
        answer.await.unwrap_or_else(|_| Err(E::from(Refusal::Store(StoreError::Poisoned))))
    }

    /// Takes entries from elsewhere; when this returns, those that were applied are durable and visible here.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is said about the entries.
    pub async fn receive(&self, entries: Vec<Arc<[u8]>>) -> Result<Vec<Received>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = move |worker: &mut Worker| {
            let received = worker.receive(entries);
            after(reply, Ok(received), |error| Err(error.clone()))
        };
        self.run(Box::new(job)).await?;
        answer.await.unwrap_or(Err(StoreError::Poisoned))
    }

    /// A reader of what is durable.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = move |worker: &mut Worker| {
            let reader = worker.replica.reader();
            after(reply, reader, |error| Err(error.clone()))
        };
        self.run(Box::new(job)).await?;
        answer.await.unwrap_or(Err(StoreError::Poisoned))
    }

    /// Puts the snapshot that `giver` gave in place of the state, and replays on it what it lacks of the log; when this returns,
    /// that is durable and visible here, and on trust (R14).
    ///
    /// # Errors
    /// [`ReplaceError`]; the state is as before.
    pub async fn replace(&self, snapshot: Box<dyn Reader>, giver: ReplicaId) -> Result<(), ReplaceError> {
        let (reply, answer) = oneshot::channel();
        let job = move |worker: &mut Worker| {
            let replaced = worker.replica.replace(&*snapshot, giver);
            after(reply, replaced, |error| Err(error.clone().into()))
        };
        self.run(Box::new(job)).await?;
        answer.await.unwrap_or(Err(StoreError::Poisoned.into()))
    }

    /// Entries from these places on, about `limit` bytes in all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read_log(&self, from: Vec<EntryId>, limit: usize) -> Result<LogPart, StoreError> {
        let reader = self.reader().await?;
        let branches = self.view().branches().clone();
        tokio::task::spawn_blocking(move || read_entries(&*reader, &branches, &from, limit))
            .await
            .unwrap_or(Err(StoreError::Poisoned))
    }

    /// Waits until this replica holds all of `wanted`. What a retired replica wrote beyond its cut will never come, and
    /// counts as the cut (M6).
    ///
    /// # Errors
    /// What is still missing when `limit` has passed: author, and the number that was wanted.
    pub async fn wait_for(&self, wanted: &Frontier, limit: Duration) -> Result<(), Vec<EntryId>> {
        let mut frontier = self.inner.frontier.subscribe();
        let covers = |held: &Arc<Frontier>| awaited(&self.view(), held, wanted).next().is_none();
        let reached = tokio::time::timeout(limit, frontier.wait_for(covers)).await;
        if matches!(reached, Ok(Ok(_))) {
            return Ok(());
        }
        let held = self.inner.frontier.borrow().clone();
        Err(awaited(&self.view(), &held, wanted).collect())
    }

    async fn run(&self, job: Job) -> Result<(), StoreError> {
        self.inner.jobs.send(job).await.map_err(|_| StoreError::Poisoned)
    }
}

/// What of a client's frontier is not held yet: of whom is retired, no more is awaited than counts (`PROTOCOL.md`, M6).
pub fn awaited(view: &View, held: &Frontier, wanted: &Frontier) -> impl Iterator<Item = EntryId> {
    wanted.0.iter().filter_map(|(replica, tip)| {
        let cut = view.retired().cut(*replica).unwrap_or(u64::MAX);
        let lacks = held.number(*replica) < tip.number.min(cut);
        lacks.then_some(EntryId { author: *replica, number: tip.number })
    })
}

/// See [`Node::read_log`].
///
/// # Errors
/// [`StoreError`].
pub fn read_entries(
    reader: &dyn Reader,
    branches: &Branches,
    from: &[EntryId],
    limit: usize,
) -> Result<LogPart, StoreError> {
    let LogPart { mut entries, mut more, mut dropped } = LogPart::default();
    let share = (limit / from.len().max(1)).max(1);
    for start in from {
        let number = start.number.max(branches.first(start.author));
        let (mut next, mut size) = (EntryId { number, ..*start }, 0);
        while let Some(bytes) = read_log(reader, next, 1, 1)?.pop() {
            if size > 0 && size + bytes.len() > share {
                more = true;
                break;
            }
            let Ok(entry) = Entry::decode_shared(&bytes) else { break };
            if entry.header.number != next.number {
                dropped.get_or_insert(EntryId { number: entry.header.number.saturating_sub(1), ..next });
                break;
            }
            size += bytes.len();
            next.number += 1;
            entries.push(entry.in_log(start.author));
        }
    }
    entries.sort_by_key(|entry| (entry.header.time, entry.held_as()));
    Ok(LogPart { entries, more, dropped })
}

/// A reply that is given after the flush: nobody hears of what is not durable.
fn after<T: Send + 'static>(
    reply: oneshot::Sender<T>,
    value: T,
    failed: impl FnOnce(&StoreError) -> T + Send + 'static,
) -> After {
    Box::new(move |flushed| {
        let _ = reply.send(match flushed {
            Ok(()) => value,
            Err(error) => failed(error),
        });
    })
}

impl Worker {
    fn run(mut self, mut queue: mpsc::Receiver<Job>, node: &std::sync::Weak<Inner>) {
        let mut tended = Ok(false);
        while let Some(first) = queue.blocking_recv() {
            let mut replies = vec![first(&mut self)];
            while replies.len() < BATCH
                && let Ok(job) = queue.try_recv()
            {
                replies.push(job(&mut self));
            }
            let Some(inner) = node.upgrade() else { return };
            if let Err(error) = std::mem::replace(&mut tended, Ok(false)) {
                tracing::error!(%error, "what is owed to others could not be written");
            }
            if on(SiteMutant::AckBeforeFlush) {
                std::mem::take(&mut replies).into_iter().for_each(|reply| reply(Ok(())));
                std::thread::sleep(Duration::from_millis(300));
            }
            let started = std::time::Instant::now();
            let flushed = self.replica.flush();
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            match flushed {
                Ok(flushed) => {
                    // Before the view that is on trust can be shown, and, once it is not, after it is.
                    if self.replica.on_trust().is_some() {
                        inner.note_trust(&self.replica);
                    }
                    let flushed = inner.publish(&self.replica, flushed, micros);
                    inner.note_fence(self.replica.fence());
                    inner.note_trust(&self.replica);
                    tended = self.tend(&flushed);
                    inner.counters.log_bytes.store(self.replica.log_bytes(), Ordering::Relaxed);
                    replies.into_iter().for_each(|reply| reply(Ok(())));
                }
                Err(error) => {
                    tracing::error!(%error, "the store failed: no more writes until a restart");
                    inner.failure.send_replace(Some(error.to_string()));
                    replies.into_iter().for_each(|reply| reply(Err(&error)));
                    Self::refuse_all(queue);
                    return;
                }
            }
            // What was written must not wait for the next request.
            if matches!(tended, Ok(true)) {
                let _ = inner.jobs.try_send(Box::new(|_| Box::new(|_| ())));
            }
        }
    }

    /// What this replica owes the others: all of it at first, then what a flush has changed.
    fn tend(&mut self, flushed: &Flushed) -> Result<bool, Refusal> {
        if !self.begun {
            return Ok(false);
        }
        let all = !std::mem::replace(&mut self.looked, true);
        self.replica.tend(now(), (!all).then_some(flushed))
    }

    /// After a failed flush the state in memory is ahead of the disk: nothing of it may be used.
    fn refuse_all(mut queue: mpsc::Receiver<Job>) {
        queue.close();
        while queue.blocking_recv().is_some() {}
    }

    fn receive(&mut self, entries: Vec<Arc<[u8]>>) -> Vec<Received> {
        let mut results = Vec::with_capacity(entries.len());
        for bytes in entries {
            let (received, mut refused) = self.waiting.receive(&mut self.replica, bytes);
            if let Received::Refused(rejection) = &received {
                refused.push(rejection.clone());
            }
            for rejection in refused {
                // Said once, when it was put up; and nobody is to blame for what the dead wrote.
                if !matches!(rejection, Rejection::Fenced(_) | Rejection::Void { .. }) {
                    tracing::warn!(%rejection, "an entry was refused");
                }
            }
            results.push(received);
        }
        results
    }
}

impl Inner {
    /// Said once, in the log and to whoever asks.
    fn note_fence(&self, fence: Option<Fence>) {
        if self.fence.send_if_modified(|known| std::mem::replace(known, fence) != fence)
            && let Some(fence) = fence
        {
            tracing::error!(%fence, "no more writes");
        }
    }

    fn note_trust(&self, replica: &Replica) {
        let refused: Vec<_> = replica.refused().collect();
        if **self.refused.load() != refused {
            self.refused.store(Arc::new(refused));
        }
        let giver = replica.on_trust();
        let decided = self.trust.send_if_modified(|known| std::mem::replace(known, giver) != giver);
        if decided && giver.is_none() {
            tracing::info!("the others have shown the state that this replica was given");
        }
    }

    /// Everything that leaves the replica, after the flush.
    fn publish(&self, replica: &Replica, flushed: Flushed, micros: u64) -> Arc<Flushed> {
        let flushed = Arc::new(flushed);
        if self.quarantine.load().len() != replica.quarantine().len() {
            self.quarantine.store(Arc::new(replica.quarantine().clone()));
        }
        if flushed.entries.is_empty() && !flushed.members {
            return flushed;
        }
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        self.counters.flush_micros.fetch_add(micros, Ordering::Relaxed);
        let count = u64::try_from(flushed.entries.len()).unwrap_or(0);
        self.counters.entries.fetch_add(count, Ordering::Relaxed);
        let view = Arc::new(replica.view().clone());
        self.view.store(view.clone());
        self.frontier.send_replace(Arc::new(view.frontier().clone()));
        self.agents.changed(&view, &flushed, self.me);
        let _ = self.flushed.send(flushed.clone());
        flushed
    }
}

/// The wall clock, Unix milliseconds.
#[must_use]
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
