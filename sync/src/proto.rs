//! The protocol core: who is sent which entries when. Pure: no clock, randomness, socket or runtime.
//!
//! Entries are **pushed** as they become durable: own ones to every connected peer, others' only to peers that are not
//! connected to the author (they would get everything twice). An entry is pushed to a peer only if it follows the last
//! one that the peer has of that author, so what was skipped, dropped or lost is never half-filled; **anti-entropy**
//! fills it: peers tell each other their frontiers, and each sends what the other lacks, a bounded batch at a time,
//! the next when the receiver has answered. So catching up costs what is missing, never the state, and a slow peer is
//! slowed instead of growing anybody's memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use luc_engine::entry::{Entry, Frontier, Tip};
use luc_engine::id::{EntryId, Millis, ReplicaId};
use luc_engine::replica::Received;

use crate::wire::{Msg, Status};

/// How often a peer is told our frontier and our status, milliseconds. Clocks are set back too: what matters is how far a
/// time is from now, or a clock set back by an hour would silence anti-entropy for one.
const HEARTBEAT: Millis = 1_000;
/// After how long a batch that was never answered is given up, milliseconds.
const STALLED: Millis = 5_000;
/// How often a peer says, once a heartbeat, that it has dropped an entry before its snapshot is taken: others may send it.
const PATIENCE: u32 = 3;
/// No author has written so many entries: who says so lies.
const MOST_ENTRIES: u64 = 1 << 48;
/// In place of a hash that is not at hand.
const UNKNOWN: u64 = 0;
/// Most bytes of entries in one pushed message.
const PUSH_BYTES: usize = 1 << 20;

/// What happens to the core.
#[derive(Debug)]
pub enum Input {
    /// A connection to a peer stands.
    Connected(ReplicaId),
    /// It is gone.
    Disconnected(ReplicaId),
    /// The peer said something.
    Message(ReplicaId, Msg),
    /// Entries became durable here, in the order in which they were applied.
    Flushed(Vec<Arc<Entry>>),
    /// The log was read for a peer, as [`Output::ReadLog`] asked.
    LogRead {
        /// For whom.
        peer: ReplicaId,
        /// The entries, as they travel, with their places.
        entries: Vec<(EntryId, Tip, Vec<u8>)>,
        /// Whether there were more than fit.
        more: bool,
        /// The first place that was asked for and is in the log no more.
        dropped: Option<EntryId>,
    },
    /// Entries of a peer have been dealt with and what was taken is durable.
    Received {
        /// From whom.
        peer: ReplicaId,
        /// Whether it waits for our frontier.
        answer: bool,
        /// Of these logs other forms are needed than are held here, from these entries on: their author forked, and what
        /// came rests on another branch.
        again: Vec<EntryId>,
    },
    /// A message to a peer was dropped, since its queue was full.
    Dropped(ReplicaId),
    /// Time passed.
    Tick(Status),
}

/// What the driver shall do.
#[derive(Debug)]
pub enum Output {
    /// Send it, or say [`Input::Dropped`].
    Send(ReplicaId, Msg),
    /// Give these entries to the replica, then say [`Input::Received`].
    Receive {
        /// From whom they are.
        peer: ReplicaId,
        /// As they travel.
        entries: Vec<Vec<u8>>,
        /// To be repeated.
        answer: bool,
    },
    /// A peer says that it holds an entry of this replica's, or another form of it, that is not held here: if it can show
    /// it, the store is an old copy (`PROTOCOL.md`, M4).
    OldStore(EntryId),
    /// A peer has dropped entries from its log that are not held here, and nobody has sent them meanwhile: take its
    /// snapshot in place of what is here, and replay on it what it lacks (`PROTOCOL.md`, M5).
    TakeSnapshot(ReplicaId),
    /// Read a bounded batch of the log from these places on, then say [`Input::LogRead`].
    ReadLog {
        /// For whom.
        peer: ReplicaId,
        /// The first entry wanted of each author.
        from: Vec<EntryId>,
    },
}

/// What is known of a connected peer.
#[derive(Debug, Default)]
pub struct Peer {
    /// What it said that it holds.
    pub reported: Frontier,
    /// What it said of itself last.
    pub status: Status,
    /// When it was heard last, by our clock.
    pub heard: Millis,
    /// What it will hold when it has taken everything that was sent.
    sent: Frontier,
    /// When the batch that it is catching up with was sent, if it is.
    catching_up: Option<Millis>,
    told: Millis,
    /// The first entry that is not held here and that it has dropped from its log, and how often it has said so.
    dropped: Option<(EntryId, u32)>,
    /// It has said what it holds.
    known: bool,
}

/// The core.
#[derive(Debug)]
pub struct Proto {
    me: ReplicaId,
    peers: BTreeMap<ReplicaId, Peer>,
    /// What was held here a heartbeat or two ago: a peer that lacks it has not just not received it yet.
    settled: Frontier,
    settling: (Millis, Frontier),
}

impl Proto {
    /// A core without peers.
    #[must_use]
    pub fn new(me: ReplicaId) -> Self {
        Self { me, peers: BTreeMap::new(), settled: Frontier::default(), settling: (0, Frontier::default()) }
    }

    /// The connected peers.
    #[must_use]
    pub fn peers(&self) -> &BTreeMap<ReplicaId, Peer> {
        &self.peers
    }

    /// Deals with one input. `mine` is what is durable here.
    pub fn handle(&mut self, input: Input, now: Millis, mine: &Frontier) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Connected(peer) => {
                self.peers.insert(peer, Peer { heard: now, ..Peer::default() });
                out.push(Output::Send(peer, Msg::Frontier { held: mine.clone(), answer: true }));
            }
            Input::Disconnected(peer) => {
                self.peers.remove(&peer);
            }
            Input::Message(peer, message) => self.message(peer, message, now, mine, &mut out),
            Input::Flushed(entries) => self.push(&entries, &mut out),
            Input::LogRead { peer, dropped: Some(entry), .. } => {
                // What else was read rests on that, perhaps, and what it lacks it may get from somebody else.
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.catching_up = None;
                    out.push(Output::Send(peer, Msg::Dropped(entry)));
                }
            }
            Input::LogRead { peer, entries, more, .. } => self.log_read(peer, entries, more, now, mine, &mut out),
            Input::Received { peer, answer, again } => {
                if answer && self.peers.contains_key(&peer) {
                    out.push(Output::Send(peer, Msg::Frontier { held: without(mine, &again), answer: true }));
                }
            }
            Input::Dropped(peer) => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.sent = state.reported.clone();
                    state.catching_up = None;
                }
            }
            Input::Tick(mut status) => {
                if now.abs_diff(self.settling.0) >= HEARTBEAT {
                    let before = std::mem::replace(&mut self.settling, (now, mine.clone()));
                    self.settled = before.1;
                }
                status.connected = self.peers.keys().copied().collect();
                for (peer, state) in &mut self.peers {
                    if now.abs_diff(state.told) >= HEARTBEAT {
                        state.told = now;
                        out.push(Output::Send(*peer, Msg::Heartbeat(status.clone())));
                        out.push(Output::Send(*peer, Msg::Frontier { held: mine.clone(), answer: false }));
                    }
                }
            }
        }
        out
    }

    fn message(&mut self, peer: ReplicaId, message: Msg, now: Millis, mine: &Frontier, out: &mut Vec<Output>) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.heard = now;
        match message {
            Msg::Heartbeat(status) => state.status = status,
            Msg::Dropped(entry) => {
                let times = match state.dropped {
                    _ if mine.holds(entry) => 0,
                    Some((same, times)) if same == entry => times + 1,
                    _ => 1,
                };
                state.dropped = (times > 0 && times < PATIENCE).then_some((entry, times));
                if times >= PATIENCE {
                    out.push(Output::TakeSnapshot(peer));
                }
            }
            Msg::Entries { entries, more } => out.push(Output::Receive { peer, entries, answer: more }),
            Msg::Frontier { mut held, answer } => {
                held.0.retain(|_, tip| tip.number < MOST_ENTRIES);
                let of_me = (held.0.get(&self.me), mine.0.get(&self.me));
                if let (Some(theirs), own) = of_me
                    && own
                        .is_none_or(|own| theirs.number > own.number || (theirs.number == own.number && theirs != own))
                {
                    out.push(Output::OldStore(EntryId { author: self.me, number: theirs.number }));
                }
                state.reported = held;
                if answer || !state.known {
                    state.known = true;
                    state.sent = state.reported.clone();
                    state.catching_up = None;
                    state.read_missing(peer, now, mine, out);
                } else {
                    state.notice_lost(&self.settled);
                    state.read_missing(peer, now, &self.settled, out);
                    // Both hold an entry with this number, and not the same: each shows the other its own.
                    let forked = differing(mine, &state.reported);
                    if !forked.is_empty() {
                        out.push(Output::Send(peer, Msg::Frontier { held: without(mine, &forked), answer: true }));
                    }
                }
            }
        }
    }

    fn push(&mut self, entries: &[Arc<Entry>], out: &mut Vec<Output>) {
        for (peer, state) in &mut self.peers {
            let mut batch = Vec::new();
            let mut size = 0;
            for entry in entries {
                let id = entry.held_as();
                let direct = id.author == self.me || !state.status.connected.contains(&id.author);
                if direct && id.author != *peer && state.sent.number(id.author) + 1 == id.number {
                    state.sent.set(id.author, entry.tip());
                    size += entry.bytes().len();
                    batch.push(entry.bytes().to_vec());
                    if size >= PUSH_BYTES {
                        size = 0;
                        let entries = std::mem::take(&mut batch);
                        out.push(Output::Send(*peer, Msg::Entries { entries, more: false }));
                    }
                }
            }
            if !batch.is_empty() {
                out.push(Output::Send(*peer, Msg::Entries { entries: batch, more: false }));
            }
        }
    }

    fn log_read(
        &mut self,
        peer: ReplicaId,
        entries: Vec<(EntryId, Tip, Vec<u8>)>,
        more: bool,
        now: Millis,
        mine: &Frontier,
        out: &mut Vec<Output>,
    ) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        for (id, tip, _) in &entries {
            state.sent.set(id.author, *tip);
        }
        let empty = entries.is_empty();
        if !empty {
            let entries = entries.into_iter().map(|(_, _, bytes)| bytes).collect();
            out.push(Output::Send(peer, Msg::Entries { entries, more }));
        }
        state.catching_up = (more && !empty).then_some(now);
        if !more && !empty {
            // What became durable while the log was read.
            state.read_missing(peer, now, mine, out);
        }
    }
}

/// What came of entries that were received: whether some wait for others, and of which logs other forms are needed than are
/// held, from which entries on.
#[must_use]
pub fn waits_for(received: &[Received], held: &Frontier) -> (bool, Vec<EntryId>) {
    let waits = received.iter().filter_map(|one| if let Received::Waiting(lack) = one { Some(*lack) } else { None });
    let waits: Vec<EntryId> = waits.collect();
    let again = waits.iter().filter(|lack| held.holds(**lack)).copied().collect();
    (!waits.is_empty(), again)
}

/// A frontier as if these entries, and what follows them in their logs, were not held.
fn without(held: &Frontier, entries: &[EntryId]) -> Frontier {
    let mut held = held.clone();
    for entry in entries {
        if !held.holds(*entry) {
            continue;
        }
        match entry.number.saturating_sub(1) {
            0 => drop(held.0.remove(&entry.author)),
            number => held.set(entry.author, Tip { number, hash: UNKNOWN }),
        }
    }
    held
}

/// The last entries of logs of which a peer holds another with that number.
fn differing(mine: &Frontier, theirs: &Frontier) -> Vec<EntryId> {
    let differs = |(log, tip): (&ReplicaId, &Tip)| {
        let other = theirs.0.get(log)?;
        let same = other.number != tip.number || other.hash == tip.hash || other.hash == UNKNOWN;
        (!same).then_some(EntryId { author: *log, number: tip.number })
    };
    mine.0.iter().filter_map(differs).collect()
}

impl Peer {
    /// What the peer has from others need not be sent; what it lacks though it was sent long ago was lost, or dropped
    /// by it.
    fn notice_lost(&mut self, settled: &Frontier) {
        for (author, has) in &self.reported.0 {
            if self.sent.number(*author) < has.number {
                self.sent.set(*author, *has);
            }
        }
        for (author, tip) in &settled.0 {
            let has = self.reported.0.get(author).copied();
            if has.map_or(0, |has| has.number) < tip.number {
                match has {
                    Some(has) => self.sent.set(*author, has),
                    None => {
                        self.sent.0.remove(author);
                    }
                }
            }
        }
    }

    fn read_missing(&mut self, peer: ReplicaId, now: Millis, mine: &Frontier, out: &mut Vec<Output>) {
        if self.catching_up.is_some_and(|since| now.abs_diff(since) < STALLED) {
            return;
        }
        let lacks = |(author, tip): (&ReplicaId, &Tip)| {
            let next = self.sent.number(*author) + 1;
            (tip.number >= next && *author != peer).then_some(EntryId { author: *author, number: next })
        };
        let from: Vec<EntryId> = mine.0.iter().filter_map(lacks).collect();
        if !from.is_empty() {
            self.catching_up = Some(now);
            out.push(Output::ReadLog { peer, from });
        }
    }
}
