//! The protocol core: who is sent which entries when. Pure: no clock, randomness, socket or runtime.
//!
//! Entries are **pushed** as they become durable: own ones to every connected peer, others' only to peers that are not
//! connected to the author (they would get everything twice). An entry is pushed to a peer only if it follows the last
//! one that the peer has of that author, so what was skipped, dropped or lost is never half-filled; **anti-entropy**
//! fills it: peers tell each other their frontiers, and each sends what the other lacks, a bounded batch at a time,
//! the next when the receiver has answered. So catching up costs what is missing, never the state, and a slow peer is
//! slowed instead of growing anybody's memory. A log is its author's to send, as long as the receiver is connected to that and
//! gets on with it: else each of many peers would send all that is missing.
//!
//! In a second at most `AT_ONCE` peers are told, those first who were told longest ago, and only what is news to them: a
//! frontier that has not changed since is not said again. So a replica's cost does not grow with the cloud, and what one of
//! those peers has comes within a second or two, however large it is. What must not wait for its turn is said at once: to
//! each peer that connects, the last entry of its own that is held here (`PROTOCOL.md`, M4).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use luc_engine::entry::{Entry, Frontier, Tip};
use luc_engine::id::{EntryId, Millis, ReplicaId};
use luc_engine::replica::{Received, Word};
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::view::View;

use crate::wire::{Msg, Shown, Status};

/// How often a peer is told our frontier and our status, milliseconds, while there are few enough. Clocks are set back
/// too: what matters is how far a time is from now, or a clock set back by an hour would silence anti-entropy for one.
const HEARTBEAT: Millis = 1_000;
/// Peers that are told in so long, at most. Each may answer with what is missing here, so it is also how often that may come.
const AT_ONCE: usize = 16;
/// Those who forward an author's entries to a peer that it does not reach, at most.
const FORWARDERS: usize = 16;
/// After how long a batch that was never answered is given up, milliseconds.
const STALLED: Millis = 5_000;
/// For how long a peer must not have got on with a log before others than its author send it, milliseconds: a few times what a
/// batch takes over a wide-area link.
const STANDS: Millis = 250;
/// How often a peer says, once a heartbeat, that it has dropped an entry before its snapshot is taken: others may send it.
const PATIENCE: u32 = 3;
/// No author has written so many entries: who says so lies.
const MOST_ENTRIES: u64 = 1 << 48;
/// In place of a hash that is not at hand, or is not to count.
const UNKNOWN: u64 = 0;
/// Most bytes of entries in one pushed message.
const PUSH_BYTES: usize = 1 << 20;

/// Milliseconds until all of so many peers have been told, beyond the first second.
pub(crate) fn turn(peers: usize) -> Millis {
    let rounds = peers.saturating_sub(1) / AT_ONCE;
    HEARTBEAT * Millis::try_from(rounds).unwrap_or(Millis::MAX / HEARTBEAT)
}

/// What is durable here, and what the replica says of it.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Which entries.
    pub frontier: Frontier,
    /// What is shown of the state that they make.
    pub shown: Shown,
    /// Last entries of logs that nobody who has this state can hold, if it is on trust (R14): see [`Replica::refused`].
    ///
    /// [`Replica::refused`]: luc_engine::replica::Replica::refused
    pub refused: Vec<(ReplicaId, Tip)>,
}

impl Held {
    /// What is held where that is durable: a view, and what its replica has refused.
    #[must_use]
    pub fn of(view: &View, on_trust: bool, refused: Vec<(ReplicaId, Tip)>) -> Self {
        let shown = Shown { digest: view.digest(), on_trust };
        Self { frontier: view.frontier().clone(), shown, refused }
    }
}

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
        /// The entries.
        entries: Vec<Arc<Entry>>,
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
    /// Entries of a peer were dropped here, since too many had arrived.
    Overrun(ReplicaId),
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
        entries: Vec<Arc<[u8]>>,
        /// To be repeated.
        answer: bool,
    },
    /// A peer says that it holds an entry of this replica's, or another form of it, that is not held here: if it can show
    /// it, the store is an old copy (`PROTOCOL.md`, M4).
    OldStore(EntryId),
    /// A peer has dropped entries from its log that are not held here, and nobody has sent them meanwhile: take its
    /// snapshot in place of what is here, and replay on it what it lacks (`PROTOCOL.md`, M5).
    TakeSnapshot(ReplicaId),
    /// The state here is on trust, and a peer has shown what it has (R14).
    Compared(ReplicaId, Word),
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
    /// The logs of which it has asked for another form than it holds ([`without`]), when it said that.
    asked: BTreeSet<ReplicaId>,
    /// What it said that it holds a while ago, and when.
    stood: Option<(Frontier, Millis)>,
    /// Of which logs it will hold more than that, and up to where, when it has taken everything that was sent.
    ahead: BTreeMap<ReplicaId, u64>,
    /// Of which logs it was sent more than it has taken: what it said that it holds of them, and when.
    in_vain: BTreeMap<ReplicaId, (Option<Tip>, Millis)>,
    /// When the batch that it is catching up with was sent, if it is.
    catching_up: Option<Millis>,
    told: Millis,
    /// What it was told last, and has taken if the connection stands.
    said: Option<(Frontier, Option<Shown>)>,
    /// What it shows of the state at the frontier that it reported, if it does.
    shown: Option<Shown>,
    /// Whether it had the digest that was here when it had the frontier that was here, the last time that it did.
    pub same_state: Option<bool>,
    /// Up to which entry, not held here, it has dropped an author's from its log, and how often it has said so.
    dropped: Option<(EntryId, u32)>,
    /// Logs of which it was asked for another form of what is held here, from further back than it can show: up to which
    /// number it has dropped them. From there on the forms may differ.
    floors: BTreeMap<ReplicaId, u64>,
    /// It has said what it holds.
    known: bool,
    /// It has said of itself what [`Peer::status`] has.
    introduced: bool,
    /// It has said what it holds of this replica's entries.
    pub met: bool,
}

/// The core.
#[derive(Debug)]
pub struct Proto {
    me: ReplicaId,
    peers: BTreeMap<ReplicaId, Peer>,
    /// What was held here a heartbeat or two ago: a peer that lacks it has not just not received it yet.
    settled: Frontier,
    settling: (Millis, Frontier),
    /// Since when peers are counted that were told, and how many.
    telling: (Millis, usize),
    /// The connected peers, as they are told.
    connected: Option<Arc<[ReplicaId]>>,
    /// What is said of this replica itself.
    status: Option<Status>,
    /// By author, the peers that its entries are forwarded to, in order; what has been asked since a peer came, went, or said
    /// that it is connected to others. Else each entry of anybody would cost a look at whom each peer is connected to.
    forwarded: BTreeMap<ReplicaId, Vec<ReplicaId>>,
}

impl Proto {
    /// A core without peers.
    #[must_use]
    pub fn new(me: ReplicaId) -> Self {
        Self {
            me,
            peers: BTreeMap::new(),
            settled: Frontier::default(),
            settling: (0, Frontier::default()),
            telling: (0, 0),
            connected: None,
            status: None,
            forwarded: BTreeMap::new(),
        }
    }

    /// The connected peers.
    #[must_use]
    pub fn peers(&self) -> &BTreeMap<ReplicaId, Peer> {
        &self.peers
    }

    /// Deals with one input. `held` is what is durable here.
    pub fn handle(&mut self, input: Input, now: Millis, held: &Held) -> Vec<Output> {
        let mut out = Vec::new();
        let mine = &held.frontier;
        match input {
            Input::Connected(peer) => {
                self.connected = None;
                self.forwarded.clear();
                self.peers.insert(peer, Peer { heard: now, ..Peer::default() });
                out.push(Output::Send(peer, Msg::Yours(mine.0.get(&peer).copied())));
                if self.may_tell(now) {
                    self.say(peer, mine.clone(), Some(held.shown), true, &mut out);
                }
                self.tell_of(peer, now, &mut out);
            }
            Input::Disconnected(peer) => {
                self.connected = None;
                self.forwarded.clear();
                self.peers.remove(&peer);
            }
            Input::Message(peer, message) => self.message(peer, message, now, held, &mut out),
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
                if answer {
                    self.ask(peer, &again, held, &mut out);
                }
            }
            Input::Dropped(peer) => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.forget_sent();
                    state.said = None;
                }
            }
            // Else it would take what was sent again for refused, and be silent for a while.
            Input::Overrun(peer) => out.push(Output::Send(peer, Msg::Lost)),
            Input::Tick(status) => {
                if now.abs_diff(self.settling.0) >= HEARTBEAT {
                    let before = std::mem::replace(&mut self.settling, (now, mine.clone()));
                    self.settled = before.1;
                }
                self.status = Some(status.clone());
                self.tell(status, now, held, &mut out);
            }
        }
        out
    }

    /// Tells the others that a peer has come: what it brings they need not forward to each other.
    fn tell_of(&mut self, peer: ReplicaId, now: Millis, out: &mut Vec<Output>) {
        let Some(status) = self.status.clone() else { return };
        let status = Status { connected: self.connected(), ..status };
        let others: Vec<ReplicaId> = self.peers.keys().copied().filter(|other| *other != peer).collect();
        let told = others.into_iter().take_while(|_| self.may_tell(now));
        out.extend(told.map(|other| Output::Send(other, Msg::Heartbeat(status.clone()))));
    }

    /// Tells those peers whose turn it is.
    fn tell(&mut self, mut status: Status, now: Millis, held: &Held, out: &mut Vec<Output>) {
        if now.abs_diff(self.telling.0) < HEARTBEAT && self.telling.1 >= AT_ONCE {
            return;
        }
        let waits = |state: &Peer| now.abs_diff(state.told);
        let due = self.peers.iter().filter(|(_, state)| waits(state) >= HEARTBEAT);
        // Of those who have waited equally long, those that follow this replica: not everybody begins with the same.
        let mut due: Vec<_> = due.map(|(peer, state)| (Reverse(waits(state)), *peer < self.me, *peer)).collect();
        if due.is_empty() {
            return;
        }
        due.sort_unstable();
        status.connected = self.connected();
        for (_, _, peer) in due {
            if !self.may_tell(now) {
                return;
            }
            out.push(Output::Send(peer, Msg::Heartbeat(status.clone())));
            self.say(peer, held.frontier.clone(), Some(held.shown), false, out);
            if let Some(state) = self.peers.get_mut(&peer) {
                state.told = now;
            }
        }
    }

    fn connected(&mut self) -> Arc<[ReplicaId]> {
        self.connected.get_or_insert_with(|| self.peers.keys().copied().collect()).clone()
    }

    /// Whether one more peer may be told now; then it is counted.
    fn may_tell(&mut self, now: Millis) -> bool {
        if now.abs_diff(self.telling.0) >= HEARTBEAT {
            self.telling = (now, 0);
        }
        self.telling.1 += 1;
        self.telling.1 <= AT_ONCE
    }

    /// Says a frontier to a peer, and what is shown of its state; or that it is still what it was told.
    fn say(&mut self, peer: ReplicaId, held: Frontier, shown: Option<Shown>, answer: bool, out: &mut Vec<Output>) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        let said = Some((held.clone(), shown));
        if !answer && state.said == said {
            return out.push(Output::Send(peer, Msg::Unchanged));
        }
        state.said = said;
        out.push(Output::Send(peer, Msg::Frontier { held, shown, answer }));
    }

    /// Says what is held here, as if these entries and what follows them were not, as far as the peer can show them.
    fn ask(&mut self, peer: ReplicaId, again: &[EntryId], mine: &Held, out: &mut Vec<Output>) {
        let Some(state) = self.peers.get(&peer) else { return };
        let shown = |entry: &EntryId| {
            let floor = state.floors.get(&entry.author).copied().unwrap_or(0);
            EntryId { number: entry.number.max(floor + 1), ..*entry }
        };
        let again: Vec<EntryId> = again.iter().map(shown).collect();
        let shown = again.is_empty().then_some(mine.shown);
        self.say(peer, without(&mine.frontier, &again), shown, true, out);
    }

    fn message(&mut self, peer: ReplicaId, message: Msg, now: Millis, mine: &Held, out: &mut Vec<Output>) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.heard = now;
        match message {
            Msg::Heartbeat(status) => {
                if !state.introduced || state.status.connected != status.connected {
                    self.forwarded.clear();
                }
                (state.status, state.introduced) = (status, true);
            }
            // Of what is held here, it was asked for another form.
            Msg::Dropped(entry) if mine.frontier.number(entry.author) >= entry.number.max(1) => {
                state.dropped = None;
                let floor = state.floors.insert(entry.author, entry.number);
                if floor != Some(entry.number) {
                    let next = EntryId { number: entry.number + 1, ..entry };
                    self.ask(peer, &[next], mine, out);
                }
            }
            Msg::Dropped(entry) => {
                let times = match state.dropped {
                    Some((same, times)) if same.author == entry.author => times + 1,
                    _ => 1,
                };
                state.dropped = (times < PATIENCE).then_some((entry, times));
                if times >= PATIENCE {
                    out.push(Output::TakeSnapshot(peer));
                }
            }
            Msg::Lost => state.forget_sent(),
            Msg::Entries { entries, more } => out.push(Output::Receive { peer, entries, answer: more }),
            Msg::Yours(tip) => {
                state.met = true;
                if self.is_later(tip, &mine.frontier) {
                    out.extend(tip.map(|tip| Output::OldStore(EntryId { author: self.me, number: tip.number })));
                }
            }
            Msg::Unchanged => {
                let held = state.reported.clone();
                if state.known {
                    self.frontier(peer, held, false, now, mine, out);
                }
            }
            Msg::Frontier { mut held, shown, answer } => {
                state.shown = shown;
                state.asked = held.0.iter().filter(|(_, tip)| tip.hash == UNKNOWN).map(|(log, _)| *log).collect();
                held.0.retain(|_, tip| (1..MOST_ENTRIES).contains(&tip.number));
                self.frontier(peer, held, answer, now, mine, out);
            }
        }
    }

    /// Whether an entry of this replica's that somebody holds is not held here, or in another form.
    fn is_later(&self, theirs: Option<Tip>, mine: &Frontier) -> bool {
        let own = mine.0.get(&self.me);
        theirs.filter(|theirs| theirs.number < MOST_ENTRIES).is_some_and(|theirs| {
            own.is_none_or(|own| theirs.number > own.number || (theirs.number == own.number && theirs != *own))
        })
    }

    fn frontier(
        &mut self,
        peer: ReplicaId,
        held: Frontier,
        answer: bool,
        now: Millis,
        here: &Held,
        out: &mut Vec<Output>,
    ) {
        let mine = &here.frontier;
        let of_me = held.0.get(&self.me).copied();
        if let Some(theirs) = of_me.filter(|_| self.is_later(of_me, mine)) {
            out.push(Output::OldStore(EntryId { author: self.me, number: theirs.number }));
        }
        let mut authors = Authors { me: self.me, connected: self.connected(), before: None };
        let Some(state) = self.peers.get_mut(&peer) else { return };
        (state.reported, state.met) = (held, true);
        let word = state.compare(here);
        out.extend(word.filter(|_| here.shown.on_trust).map(|word| Output::Compared(peer, word)));
        authors.before = state.before(now);
        if answer || !state.known {
            state.known = true;
            state.notice_lost(now, |_, _| true);
            state.catching_up = None;
            state.read_missing(peer, now, mine, &authors, out);
        } else {
            let settled = &self.settled;
            state.notice_lost(now, |log, has| has < settled.number(log));
            state.read_missing(peer, now, settled, &authors, out);
            // Both hold an entry with this number, and not the same: each shows the other its own.
            let forked = differing(mine, &state.reported);
            if !forked.is_empty() {
                self.ask(peer, &forked, here, out);
            }
        }
    }

    fn push(&mut self, entries: &[Arc<Entry>], out: &mut Vec<Output>) {
        let me = self.me;
        let authors: BTreeSet<ReplicaId> = entries.iter().map(|entry| entry.held_as().author).collect();
        authors.iter().filter(|author| **author != me).for_each(|author| self.learn_forwarded(*author));
        let Self { peers, forwarded, .. } = self;
        let no_one = Vec::new();
        let to = |author: &ReplicaId| forwarded.get(author).unwrap_or(&no_one);
        // What is not this replica's goes to few, most often to nobody.
        let some: Option<BTreeSet<ReplicaId>> =
            (!authors.contains(&me)).then(|| authors.iter().flat_map(to).copied().collect());
        let mut push = |peer: ReplicaId, state: &mut Peer| {
            let mut batch = Vec::new();
            let mut size = 0;
            for entry in entries {
                let id = entry.held_as();
                let follows = id.author != peer && state.sent(id.author) + 1 == id.number;
                if follows && (id.author == me || to(&id.author).binary_search(&peer).is_ok()) {
                    state.ahead.insert(id.author, id.number);
                    size += entry.bytes().len();
                    batch.push(entry.shared_bytes());
                    if size >= PUSH_BYTES {
                        size = 0;
                        let entries = std::mem::take(&mut batch);
                        out.push(Output::Send(peer, Msg::Entries { entries, more: false }));
                    }
                }
            }
            if !batch.is_empty() {
                out.push(Output::Send(peer, Msg::Entries { entries: batch, more: false }));
            }
        };
        match some {
            None => peers.iter_mut().for_each(|(peer, state)| push(*peer, state)),
            Some(some) => {
                for peer in some {
                    if let Some(state) = peers.get_mut(&peer) {
                        push(peer, state);
                    }
                }
            }
        }
    }

    fn learn_forwarded(&mut self, author: ReplicaId) {
        let Self { me, peers, forwarded, .. } = self;
        forwarded.entry(author).or_insert_with(|| {
            peers.iter().filter(|(peer, state)| state.forwards(*me, **peer, author)).map(|(peer, _)| *peer).collect()
        });
    }

    fn log_read(
        &mut self,
        peer: ReplicaId,
        entries: Vec<Arc<Entry>>,
        more: bool,
        now: Millis,
        mine: &Frontier,
        out: &mut Vec<Output>,
    ) {
        let authors = Authors { me: self.me, connected: self.connected(), before: None };
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.ahead.extend(entries.iter().map(|entry| (entry.held_as().author, entry.header.number)));
        let empty = entries.is_empty();
        if !empty {
            let entries = entries.iter().map(|entry| entry.shared_bytes()).collect();
            out.push(Output::Send(peer, Msg::Entries { entries, more }));
        }
        state.catching_up = (more && !empty).then_some(now);
        if !more && !empty {
            // What became durable while the log was read.
            state.read_missing(peer, now, mine, &authors, out);
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
    let mut rest = held.clone();
    for entry in entries {
        if rest.holds(*entry) {
            rest.set(entry.author, Tip { number: entry.number.saturating_sub(1), hash: UNKNOWN });
        }
    }
    rest
}

/// The last entries of logs of which a peer holds another with that number.
fn differing(mine: &Frontier, theirs: &Frontier) -> Vec<EntryId> {
    let differs = |(log, tip, other): (&ReplicaId, &Tip, Option<&Tip>)| {
        let other = other?;
        let same = other.number != tip.number || other.hash == tip.hash || other.hash == UNKNOWN;
        (!same).then_some(EntryId { author: *log, number: tip.number })
    };
    if mine == theirs { Vec::new() } else { mine.0.beside(&theirs.0).filter_map(differs).collect() }
}

/// Whose logs a peer is left to have from their authors.
struct Authors {
    me: ReplicaId,
    /// Whom this replica is connected to.
    connected: Arc<[ReplicaId]>,
    /// What the peer held [`STANDS`] ago or longer; none if it is not that long that this was looked at.
    before: Option<Frontier>,
}

impl Authors {
    /// Whether a peer has a log from its author: it has said that they are connected, or nothing yet, and then whoever is
    /// connected here is likely to be so there. And it has got on with it since, or had no time to. Another form of a log it
    /// asks for once, of one who is to show that.
    fn send(&self, peer: &Peer, log: ReplicaId) -> bool {
        let connected = if peer.introduced { &peer.status.connected } else { &self.connected };
        let stands = |before: &Frontier| peer.reported.number(log) <= before.number(log);
        let is_due = peer.asked.contains(&log) || self.before.as_ref().is_some_and(stands);
        log != self.me && connected.binary_search(&log).is_ok() && !is_due
    }
}

impl Peer {
    /// What it shows of the state that is held here: only where both have the same entries, and unless it has an entry that breaks
    /// a rule here.
    fn compare(&mut self, here: &Held) -> Option<Word> {
        let shown = self.shown?;
        let same = (self.reported == here.frontier).then_some(shown.digest == here.shown.digest);
        self.same_state = same.or(self.same_state);
        if shown.on_trust {
            return Some(Word::OnTrust);
        }
        let breaks = here.refused.iter().any(|(log, tip)| self.reported.0.get(log) == Some(tip)).then_some(false);
        same.or(breaks).map(|same| if same { Word::Same } else { Word::Other })
    }

    /// What it held a while ago, if that is long enough.
    fn before(&mut self, now: Millis) -> Option<Frontier> {
        let since = self.stood.as_ref().map(|(_, at)| now.abs_diff(*at));
        if since.is_some_and(|since| since < STANDS) {
            return None;
        }
        self.stood.replace((self.reported.clone(), now)).map(|(before, _)| before)
    }

    /// What was sent to it is not with it: what it says next that it holds is what it has.
    fn forget_sent(&mut self) {
        self.ahead.clear();
        self.in_vain.clear();
        self.catching_up = None;
    }

    /// The last entry of a log that it will hold when it has taken everything that was sent.
    fn sent(&self, log: ReplicaId) -> u64 {
        self.ahead.get(&log).copied().unwrap_or_else(|| self.reported.number(log))
    }

    /// Whether `me` is to forward an author's entries to this peer: it has said whom it is connected to, the author is
    /// not among those, and `me` is one of the next in line.
    fn forwards(&self, me: ReplicaId, peer: ReplicaId, author: ReplicaId) -> bool {
        let connected = &self.status.connected;
        if !self.introduced || connected.contains(&author) {
            return false;
        }
        let after = connected.iter().filter(|other| **other > peer).chain(connected.iter().filter(|o| **o < peer));
        connected.len() <= FORWARDERS || after.take(FORWARDERS).any(|other| *other == me)
    }

    /// What the peer has from others need not be sent; what it lacks though it was sent long ago was lost, or dropped
    /// by it. But what was sent a second time, and has changed nothing, is not lost: it is not taken, since its author is being
    /// retired, say. That is sent again in a while, and not whenever the peer says so: it would say so as often as it is sent.
    fn notice_lost(&mut self, now: Millis, is_lost: impl Fn(ReplicaId, u64) -> bool) {
        let Self { ahead, in_vain, reported, .. } = self;
        in_vain.retain(|_, (_, since)| now.abs_diff(*since) < STALLED);
        ahead.retain(|log, sent| {
            let held = reported.0.get(log).copied();
            let has = reported.number(*log);
            if has >= *sent || !is_lost(*log, has) {
                return has < *sent;
            }
            let again = in_vain.get(log).is_none_or(|(before, _)| *before != held);
            if again {
                in_vain.insert(*log, (held, now));
            }
            !again
        });
    }

    fn read_missing(
        &mut self,
        peer: ReplicaId,
        now: Millis,
        mine: &Frontier,
        authors: &Authors,
        out: &mut Vec<Output>,
    ) {
        if self.catching_up.is_some_and(|since| now.abs_diff(since) < STALLED) || *mine == self.reported {
            return;
        }
        if on(SiteMutant::HolesKept) {
            return;
        }
        let lacks = |(log, tip, has): (&ReplicaId, &Tip, Option<&Tip>)| {
            let sent = self.ahead.get(log).copied();
            let next = sent.unwrap_or_else(|| has.map_or(0, |has| has.number)) + 1;
            let is_due = tip.number >= next && *log != peer && !authors.send(self, *log);
            is_due.then_some(EntryId { author: *log, number: next })
        };
        let from: Vec<EntryId> = mine.0.beside(&self.reported.0).filter_map(lacks).collect();
        if !from.is_empty() {
            self.catching_up = Some(now);
            out.push(Output::ReadLog { peer, from });
        }
    }
}
