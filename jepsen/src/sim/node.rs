//! One replica with its driver: `sync/src/node.rs` and `sync/src/net.rs` without threads. Jobs queue while a flush is
//! under way; all of them are made durable in one commit; and only then does anything leave.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use luc_engine::agent::{FromAgent, HostFacts, SignedTip};
use luc_engine::entry::{Entry, Frontier, Member, MemberOp};
use luc_engine::id::{ClaimId, EntryId, HostId, PoolId, ReplicaId, SiteName};
use luc_engine::ledger::Amount;
use luc_engine::mutant::{self, Mutant};
use luc_engine::replica::{Flushed, Identity, Received, Rejection, Replica, Word};
use luc_engine::retire::{Request, Retiree};
use luc_engine::tx::{Fence, Refusal};
use luc_engine::view::View;
use luc_sync::agents::{self, Met};
use luc_sync::join::admit_replica;
use luc_sync::node::{LogPart, read_entries};
use luc_sync::proto::{Held, Input, Output, Proto, waits_for};
use luc_sync::rpc::{GRANT_LOG, grant, lacking};
use luc_sync::waiting::Waiting;

use super::agent::{NEAR, Talk};
use super::dead::Wish;
use super::disk::{Disk, Image};
use super::net::Micros;
use super::ops::{Asked, Done};
use super::rights::Rights;
use super::rules::{Broken, Rule, Tracker};
use super::snapshots::Given;
use super::sometimes::State;
use super::witness::Old;
use super::world::{Event, World};

/// Most jobs in one commit.
const BATCH: usize = 512;
/// Messages with entries that may wait for the node.
const ARRIVALS: usize = 64;
/// How long a replica that starts waits for what the others hold, as `api` has it.
const MEET: Micros = 1_500_000;
/// Bytes of log in one batch of anti-entropy. Smaller than the real one, so that catching up takes several.
const LOG_BATCH: usize = 64 << 10;

/// One replica's machine.
pub(super) struct Node {
    pub(super) identity: Identity,
    pub(super) replica: ReplicaId,
    pub(super) site: usize,
    pub(super) disk: Disk,
    pub(super) process: Option<Process>,
    /// Counts its starts and ends: what was meant for an earlier process is void.
    pub(super) life: u64,
    /// Its clock, milliseconds ahead of the truth.
    pub(super) ahead: u64,
    /// Everything takes so many times as long.
    pub(super) slow: u64,
    /// It has its snapshot.
    pub(super) joined: bool,
    pub(super) admitted: bool,
    pub(super) tries: u64,
    /// Its disk is lost.
    pub(super) gone: bool,
    /// An operator has stopped it for good.
    pub(super) stopped: bool,
    /// Where its disk lies.
    pub(super) place: u8,
    /// A copy of its disk, with what the oracle knew of it.
    pub(super) copy: Option<(Image, Tracker)>,
    /// The disk as it is, while a copy of it is started elsewhere.
    pub(super) original: Option<(Disk, Tracker)>,
    /// What the disk held before a driver committed before its time.
    pub(super) before: Option<Image>,
    /// It asks the liar for its snapshot; and has it.
    pub(super) asks_liar: bool,
    pub(super) deceived: bool,
    /// Its disk is an old one: it writes once those have been heard who can tell.
    pub(super) old: Option<Old>,
}

impl Node {
    pub(super) fn new(identity: Identity, site: usize, disk: Disk) -> Self {
        Self {
            replica: identity.replica(),
            identity,
            site,
            disk,
            process: None,
            life: 0,
            ahead: 0,
            slow: 1,
            joined: true,
            admitted: true,
            tries: 0,
            gone: false,
            stopped: false,
            place: 0,
            copy: None,
            original: None,
            before: None,
            asks_liar: false,
            deceived: false,
            old: None,
        }
    }

    /// It runs, and may write.
    pub(super) fn serves(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.met && process.replica.fence().is_none())
    }
}

/// What runs on it.
pub(super) struct Process {
    pub(super) replica: Replica,
    pub(super) proto: Proto,
    /// What is durable.
    pub(super) view: View,
    pub(super) jobs: VecDeque<Job>,
    /// The second halves of the jobs whose flush is under way.
    pub(super) flushing: Option<Vec<After>>,
    waiting: Waiting,
    receiving: usize,
    /// This replica has written since the last flush.
    pub(super) wrote: bool,
    /// All others have told what they hold, or were waited for: from now on it writes (`PROTOCOL.md`, M4).
    pub(super) met: bool,
    pub(super) attached: BTreeMap<HostId, (usize, u64)>,
    /// It has asked for a snapshot.
    pub(super) replacing: bool,
    /// Agents have said what they know of its log.
    witnessed: bool,
}

impl Process {
    /// An agent says what it was told of logs. If this one's is shorter, it writes no more.
    pub(super) fn witnessed(&mut self, words: &[SignedTip]) {
        self.witnessed = true;
        for word in words.iter().filter(|_| !mutant::on(Mutant::OldDiskAccepted)) {
            // What cannot be read now is met again when it is written to.
            let _ = self.replica.witnessed(word);
        }
    }
}

/// What the replica's thread does.
#[derive(Debug)]
pub(super) enum Job {
    Op(Asked),
    Receive {
        peer: ReplicaId,
        entries: Vec<Arc<[u8]>>,
        answer: bool,
    },
    ReadLog {
        peer: ReplicaId,
        from: Vec<EntryId>,
    },
    Grant {
        ask: u64,
        turn: u64,
        to: usize,
        pool: PoolId,
        amount: Amount,
        frontier: Frontier,
    },
    Take {
        ask: u64,
        turn: u64,
        entries: Vec<Arc<[u8]>>,
        granted: Amount,
    },
    Hello {
        agent: usize,
        session: u64,
        facts: Box<HostFacts>,
    },
    Heard {
        agent: usize,
        session: u64,
        message: FromAgent,
    },
    Admit {
        newcomer: usize,
    },
    Snapshot {
        newcomer: usize,
    },
    Retire {
        gone: usize,
        heir: usize,
    },
    PutUp(Fence),
    Compared(ReplicaId, Word),
    Witnessed(Vec<SignedTip>),
    Operate {
        agent: usize,
        wish: Wish,
    },
    /// A snapshot takes the place of the state. It waits until nothing is pending.
    Replace(Box<Given>),
    /// What was written besides must not wait.
    Wake,
}

/// What is done after the flush.
#[derive(Debug)]
pub(super) enum After {
    Nothing,
    Op(Asked, Done),
    Received { peer: ReplicaId, answer: bool, again: Vec<EntryId> },
    ReadLog { peer: ReplicaId, from: Vec<EntryId> },
    Granted { ask: u64, turn: u64, to: usize, granted: Amount, frontier: Frontier },
    Taken { ask: u64, turn: u64, granted: Amount },
    Hello { agent: usize, session: u64, met: Met, host: HostId },
    Held { agent: usize, session: u64, claim: ClaimId },
    Admitted { newcomer: usize },
    Snapshot { newcomer: usize },
}

/// A site's name.
pub(super) fn site_name(site: usize) -> SiteName {
    SiteName::try_from(format!("site-{site}")).unwrap_or_else(|_| unreachable_site())
}

fn unreachable_site() -> SiteName {
    // A fixed, valid label.
    SiteName::new("site").unwrap_or_else(|_| std::process::abort())
}

/// A member, as its sponsor admits it.
pub(super) fn member(identity: &Identity, site: usize) -> Member {
    Member {
        replica: identity.replica(),
        public_key: identity.public_key(),
        site: site_name(site),
        addresses: Vec::new(),
        identity_authority: true,
        sponsor: true,
        index: 0,
    }
}

impl World {
    /// Starts a node's process from its disk.
    pub(super) fn start(&mut self, at: usize) {
        let Some(node) = self.nodes.get_mut(at).filter(|node| !node.gone && node.process.is_none() && node.joined)
        else {
            return;
        };
        node.disk.reopen();
        node.life += 1;
        let life = node.life;
        let in_place = Replica::settle(&mut node.disk, &[node.place]);
        let opened = Replica::open(node.identity.clone(), Box::new(node.disk.clone()));
        let mut replica = match opened {
            Ok(replica) => replica,
            Err(error) => {
                let how = format!("node {at} does not start: {error}");
                return self.check(Err(Broken::new(Rule::AcknowledgedIsDurable, how)));
            }
        };
        if !matches!(in_place, Ok(true)) && !mutant::on(Mutant::PlaceIgnored) {
            replica.put_up(Fence::Copy);
        }
        if let Some(bytes) = self.log_bytes {
            replica.limit_log(bytes);
        }
        let view = replica.view().clone();
        let proto = Proto::new(node.replica);
        node.process = Some(Process {
            replica,
            proto,
            view: view.clone(),
            jobs: VecDeque::new(),
            flushing: None,
            waiting: Waiting::default(),
            receiving: 0,
            wrote: false,
            met: false,
            attached: BTreeMap::new(),
            replacing: false,
            witnessed: false,
        });
        self.trace.note(self.now, [3, at as u64, life], || format!("{at} starts"));
        let checked = self.rules.opened(at, &view);
        self.check(checked);
        let checked = self.rules.cut(at, &view).and_then(|()| self.rules.published(at, &view, &[]));
        self.check(checked);
        if self.process(at).is_some_and(|process| process.replica.fence().is_some()) {
            return self.fenced(at);
        }
        self.dial_members(at);
        self.begin_ticking(at, life);
        self.at(MEET, Event::Met { node: at, life });
        if self.nodes.get(at).is_some_and(|node| node.old.is_some()) {
            self.at(NEAR, Event::Witnesses { node: at, life });
        }
    }

    /// Whether all other members have told what they hold, since it started, and its state is on no trust.
    fn has_met(&self, at: usize) -> bool {
        let Some(node) = self.nodes.get(at) else { return false };
        let Some(process) = &node.process else { return false };
        if process.replica.on_trust().is_some() {
            return false;
        }
        let peers = process.proto.peers();
        let told = |id: &ReplicaId| peers.get(id).is_some_and(|peer| peer.met);
        // Who is stopped for good tells nothing, and its retirement waits for this one.
        let stopped = |id: &ReplicaId| {
            let peer = self.by_replica.get(id).and_then(|at| self.nodes.get(*at));
            peer.is_none_or(|peer| peer.gone || peer.stopped)
        };
        process.view.living().all(|(id, _)| *id == node.replica || told(id) || stopped(id))
    }

    /// The time to wait for the others is over, or one has told something: from now on it writes.
    pub(super) fn meet(&mut self, at: usize, over: bool) {
        let old = self.nodes.get(at).and_then(|node| node.old).filter(|_| !mutant::on(Mutant::OldDiskAccepted));
        let met = match old {
            // What it would write is judged as the liar's lies are, which is played there; here it waits until it is told.
            _ if self.is_deceived(at) => false,
            None => over || self.has_met(at),
            Some(old) => {
                let witnessed = self.process(at).is_some_and(|process| process.witnessed);
                (old.agent && witnessed) || (old.others && self.has_met(at))
            }
        };
        let clock = self.clock(at);
        let Some(process) = self.process(at).filter(|process| met && !process.met) else { return };
        process.met = true;
        if matches!(process.replica.tend(clock, None), Ok(true)) {
            process.wrote = true;
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.old = None;
        }
        self.job(at, Job::Wake);
    }

    /// A node's process ends. A commit that is under way is kept on the disk, or lost; nobody is told of it.
    pub(super) fn crash(&mut self, at: usize, kept: bool) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        let Some(mut process) = node.process.take() else { return };
        node.life += 1;
        let unflushed = process.flushing.is_some();
        let mut checks = Vec::new();
        if unflushed && mutant::on(Mutant::PushedBeforeFlush) && !kept {
            // This driver has committed before its time, to have what it pushes: the disk has not.
            if let Some(image) = &node.before {
                node.disk = Disk::from_image(image);
            }
        } else if unflushed && kept {
            match process.replica.flush() {
                Ok(flushed) => checks = flushed.entries,
                Err(error) => self.trace.note(self.now, [98, 0, 0], || error.to_string()),
            }
            self.sometimes.saw(State::CrashKept);
        }
        if unflushed && !kept {
            self.sometimes.saw(State::CrashLost);
        }
        if self.asks.values().any(|ask| ask.node == at) {
            self.sometimes.saw(State::GrantInFlightAtCrash);
        }
        self.asks.retain(|_, ask| ask.node != at);
        let text = if kept { "kept" } else { "lost" };
        self.trace
            .note(self.now, [4, at as u64, u64::from(kept)], || format!("{at} dies; a commit under way is {text}"));
        for entry in checks {
            let checked = self.rules.applied(at, &entry);
            self.check(checked);
        }
        for (peer, id) in self.net.die(at) {
            self.at(super::net::IDLE, Event::Silent { me: peer, peer: at, id, dead: true });
        }
        // Those too whose introduction was under way.
        for (agent, session) in self.attached_to(at) {
            self.detached(agent, session);
        }
    }

    /// Gives an input to a node's protocol core, and does what it says.
    pub(super) fn core(&mut self, at: usize, input: Input) {
        let clock = self.clock(at);
        let mut todo = vec![input];
        while let Some(input) = todo.pop() {
            let Some(process) = self.process(at) else { return };
            let Process { proto, view, replica, .. } = process;
            let held = Held::of(view, replica.on_trust().is_some(), replica.refused().collect());
            for output in proto.handle(input, clock, &held) {
                todo.extend(self.act(at, output));
            }
        }
    }

    fn act(&mut self, at: usize, output: Output) -> Option<Input> {
        match output {
            Output::Send(peer, message) => {
                let sent = self.node_of(at, peer).is_some_and(|to| self.send(at, to, message));
                (!sent).then_some(Input::Dropped(peer))
            }
            Output::Receive { peer, entries, answer } => {
                let room = self.process(at).is_some_and(|process| {
                    process.receiving += 1;
                    process.receiving <= ARRIVALS
                });
                if room {
                    self.job(at, Job::Receive { peer, entries, answer });
                } else if let Some(process) = self.process(at) {
                    process.receiving -= 1;
                }
                None
            }
            Output::ReadLog { peer, from } => {
                self.job(at, Job::ReadLog { peer, from });
                None
            }
            Output::TakeSnapshot(peer) => {
                let from = self.node_of(at, peer).filter(|from| !self.is_liar(*from));
                from.into_iter().for_each(|from| self.ask_for_state(at, from));
                None
            }
            Output::Compared(peer, word) => {
                self.job(at, Job::Compared(peer, word));
                None
            }
            Output::OldStore(_) if mutant::on(Mutant::OldDiskAccepted) => None,
            Output::OldStore(entry) => {
                self.job(at, Job::PutUp(Fence::OldStore(entry)));
                None
            }
        }
    }

    /// Runs the jobs that wait, unless a flush is under way, and begins to flush.
    pub(super) fn run_jobs(&mut self, at: usize) {
        let mut after = Vec::new();
        while after.len() < BATCH {
            let Some(process) = self.process(at).filter(|process| process.flushing.is_none()) else { return };
            let Some(job) = process.jobs.pop_front() else { break };
            if matches!(job, Job::Replace(_)) && (process.wrote || !after.is_empty()) {
                process.jobs.push_front(job);
                if after.is_empty() {
                    after.push(After::Nothing);
                }
                break;
            }
            after.push(self.run_job(at, job));
        }
        if after.is_empty() {
            return;
        }
        let Some((life, slow)) = self.nodes.get(at).map(|node| (node.life, node.slow)) else { return };
        if mutant::on(Mutant::PushedBeforeFlush) {
            self.push_early(at);
        }
        if let Some(process) = self.process(at) {
            process.flushing = Some(after);
        }
        let delay = self.rng.between(150, 1_500) * slow;
        self.at(delay, Event::Flushed { node: at, life });
    }

    /// The seeded bug: what is not on the disk yet is sent.
    fn push_early(&mut self, at: usize) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.before = Some(node.disk.image());
        let Some(process) = &mut node.process else { return };
        if let Ok(flushed) = process.replica.flush() {
            process.view = process.replica.view().clone();
            self.core(at, Input::Flushed(flushed.entries));
        }
    }

    fn run_job(&mut self, at: usize, job: Job) -> After {
        let clock = self.clock(at);
        match job {
            Job::Op(asked) => {
                let done = self.execute(at, &asked);
                After::Op(asked, done)
            }
            Job::Receive { peer, entries, answer } => {
                if let Some(process) = self.process(at) {
                    process.receiving = process.receiving.saturating_sub(1);
                }
                let (gap, again) = self.receive(at, entries);
                After::Received { peer, answer: answer || gap, again }
            }
            Job::ReadLog { peer, from } => After::ReadLog { peer, from },
            Job::Grant { ask, turn, to, pool, amount, frontier } => {
                let asker = self.nodes.get(to).map(|node| node.replica);
                let Some((process, asker)) = self.process(at).filter(|process| process.met).zip(asker) else {
                    return After::Nothing;
                };
                let granted = process.replica.transact::<_, Refusal>(clock, |tx| grant(tx, asker, pool, &amount));
                process.wrote |= granted.is_ok();
                let granted = granted.map(|(amount, _)| amount).unwrap_or_default();
                After::Granted { ask, turn, to, granted, frontier }
            }
            Job::Take { ask, turn, entries, granted } => {
                if !entries.is_empty() {
                    self.receive(at, entries);
                }
                After::Taken { ask, turn, granted }
            }
            Job::Hello { agent, session, facts } => {
                let host = facts.identity.host;
                let Some(process) = self.process(at) else { return After::Nothing };
                let met = process.replica.transact::<_, Refusal>(clock, |tx| agents::meet(tx, *facts));
                process.wrote = true;
                met.map_or(After::Nothing, |(met, _)| After::Hello { agent, session, met, host })
            }
            Job::Heard { agent, session, message } => self.heard(at, agent, session, message),
            Job::Admit { newcomer } => {
                let may = |process: &mut Process| process.met && process.replica.on_trust().is_none();
                let may = self.process(at).is_some_and(may);
                let Some((member, process)) = self.admit(newcomer).filter(|_| may).zip(self.process(at)) else {
                    return After::Nothing;
                };
                let admitted = process.replica.transact::<_, Refusal>(clock, |tx| admit_replica(tx, member));
                process.wrote = true;
                if admitted.is_ok() { After::Admitted { newcomer } } else { After::Nothing }
            }
            Job::Snapshot { newcomer } => After::Snapshot { newcomer },
            Job::Retire { gone, heir } => {
                let id = |node: usize| self.nodes.get(node).map(|node| node.replica);
                let Some((replica, heir)) = id(gone).zip(id(heir)) else { return After::Nothing };
                let Some(process) = self.process(at).filter(|process| process.met) else { return After::Nothing };
                let request = Request { set: vec![Retiree { replica, heir }], force: false };
                let _ = process.replica.transact::<_, Refusal>(clock, |tx| tx.membership(MemberOp::Retire(request)));
                process.wrote = true;
                After::Nothing
            }
            Job::PutUp(fence) => {
                if let Some(process) = self.process(at) {
                    process.replica.put_up(fence);
                }
                After::Nothing
            }
            Job::Compared(peer, word) => {
                let Some(process) = self.process(at).filter(|process| process.replica.on_trust().is_some()) else {
                    return After::Nothing;
                };
                // A disk that fails says so at the flush.
                let _ = process.replica.compared(peer, word);
                let is_over = process.replica.on_trust().is_none();
                if is_over && process.replica.fence().is_none() {
                    self.sometimes.saw(State::Attested);
                    self.trace.note(self.now, [25, at as u64, 0], || format!("the others have what {at} was given"));
                }
                After::Nothing
            }
            Job::Witnessed(words) => {
                if let Some(process) = self.process(at) {
                    process.witnessed(&words);
                }
                After::Nothing
            }
            Job::Operate { agent, wish } => {
                self.obey(at, agent, wish);
                After::Nothing
            }
            Job::Replace(given) => {
                self.replace_state(at, &given);
                After::Nothing
            }
            Job::Wake => After::Nothing,
        }
    }

    /// Takes entries. Says whether some wait for what is not held, and which logs must be sent again.
    fn receive(&mut self, at: usize, entries: Vec<Arc<[u8]>>) -> (bool, Vec<EntryId>) {
        let mut all = Vec::new();
        for bytes in entries {
            let Some(process) = self.process(at) else { break };
            let (received, mut refused) = process.waiting.receive(&mut process.replica, bytes);
            match &received {
                Received::Waiting(_) => self.sometimes.saw(State::Waited),
                Received::Refused(rejection) => refused.push(rejection.clone()),
                Received::Applied | Received::Known => {}
            }
            if let Received::Waiting(lack) = &received {
                let lack = *lack;
                self.trace.tell(self.now, || format!("{at} waits for {lack}"));
            }
            refused.iter().for_each(|rejection| self.refused(at, rejection));
            all.push(received);
        }
        let held = self.process(at).map(|process| process.replica.view().frontier().clone());
        waits_for(&all, &held.unwrap_or_default())
    }

    fn refused(&mut self, at: usize, rejection: &Rejection) {
        self.trace.tell(self.now, || format!("{at} refuses: {rejection}"));
        if self.is_about_liar(at, rejection) {
            return self.sometimes.saw(State::Lied);
        }
        match rejection {
            Rejection::Fenced(_) => {}
            Rejection::Void { .. } => self.sometimes.saw(State::VoidEntry),
            other => {
                let quarantine =
                    self.process(at).map(|process| process.replica.quarantine().clone()).unwrap_or_default();
                let first = if let Rejection::Quarantined(author) = other { quarantine.get(author) } else { None };
                let why = first.map_or_else(|| other.to_string(), |first| format!("{other}, since {first}"));
                let checked = self.rules.refused(at, None, &why);
                self.check(checked);
            }
        }
    }

    /// The end of a flush: everything that leaves the replica leaves here.
    pub(super) fn flushed(&mut self, at: usize, life: u64) {
        let clock = self.clock(at);
        let Some(process) =
            self.nodes.get_mut(at).filter(|node| node.life == life).and_then(|node| node.process.as_mut())
        else {
            return;
        };
        let after = process.flushing.take().unwrap_or_default();
        if mutant::on(Mutant::FlushSkipped) && process.wrote {
            after.into_iter().for_each(|after| self.after(at, after));
            return self.run_jobs(at);
        }
        let flushed = match process.replica.flush() {
            Ok(flushed) => flushed,
            Err(_) => return self.commit_failed(at),
        };
        process.wrote = false;
        let entries = flushed.entries.clone();
        if !entries.is_empty() || flushed.members || mutant::on(Mutant::PushedBeforeFlush) {
            process.view = process.replica.view().clone();
            self.publish(at, &flushed);
        }
        if let Some(process) = self.process(at).filter(|process| process.met)
            && matches!(process.replica.tend(clock, Some(&flushed)), Ok(true))
        {
            process.wrote = true;
            process.jobs.push_back(Job::Wake);
        }
        after.into_iter().for_each(|after| self.after(at, after));
        if !entries.is_empty() {
            self.core(at, Input::Flushed(entries));
        }
        if self.process(at).is_some_and(|process| process.replica.fence().is_some()) {
            return self.fenced(at);
        }
        self.run_jobs(at);
    }

    /// No more writes until a restart; the replies say so.
    fn commit_failed(&mut self, at: usize) {
        self.sometimes.saw(State::CommitFailed);
        self.crash(at, false);
        let down = self.rng.between(10_000, 2_000_000);
        self.at(down, Event::Start { node: at });
    }

    /// Folds what all have, unless something is not flushed. Says whether the node runs on.
    pub(super) fn fold(&mut self, at: usize) -> bool {
        let Some(process) = self.process(at).filter(|process| !process.wrote && process.flushing.is_none()) else {
            return true;
        };
        let folded = process.replica.fold().is_ok();
        if !folded {
            self.commit_failed(at);
        }
        folded
    }

    /// It has been told that it writes no more: its operator ends it, and sees that its site has another.
    fn fenced(&mut self, at: usize) {
        self.trace.note(self.now, [14, at as u64, 0], || format!("{at} is fenced"));
        let fence = self.process(at).and_then(|process| process.replica.fence());
        self.sometimes.saw(match fence {
            Some(Fence::Copy) => State::CopyFenced,
            Some(Fence::OldStore(_)) => State::OldDiskFenced,
            Some(Fence::FalseState { .. }) => State::Undeceived,
            Some(Fence::Retired { .. }) | None => State::Fenced,
        });
        if self.nodes.get(at).and_then(|node| node.old).is_some_and(|old| !old.others) {
            self.sometimes.saw(State::GivenAway);
        }
        if let Some(Fence::FalseState { giver }) = fence
            && !self.is_deceived(at)
        {
            let how = format!("{at} is told that what {giver} gave it is not what the others have, and it is");
            self.check(Err(Broken::new(Rule::Authority, how)));
        }
        self.crash(at, false);
        if self.is_liar(at) {
            // It has told its stories.
            return self.stop(at);
        }
        if fence == Some(Fence::Copy) {
            // The first goes on in its time.
            return;
        }
        if let Some(node) = self.nodes.get_mut(at)
            && !std::mem::replace(&mut node.stopped, true)
        {
            self.replace(at, 500_000);
        }
    }

    fn publish(&mut self, at: usize, flushed: &Flushed) {
        if let Some(view) = self.nodes.get(at).and_then(|node| Some(node.process.as_ref()?.view.clone())) {
            let checked = self.rules.cut(at, &view);
            self.check(checked);
        }
        for entry in &flushed.entries {
            let checked = self.rules.applied(at, entry);
            self.check(checked);
            let id = entry.held_as();
            if self.nodes.get(at).is_some_and(|node| node.original.is_some() && node.replica == id.author) {
                let how = format!("a copy of {at}'s disk writes entry {id}, and the first may live");
                self.check(Err(Broken::new(Rule::Authority, how)));
            }
            if self.trace.is_text() && self.nodes.get(at).is_some_and(|node| node.replica == id.author) {
                let (short, header) = (entry.tip().hash, &entry.header);
                self.trace.note(self.now, [5, at as u64, short], || super::story::entry(at, header));
            } else {
                let (author, short) = (self.by_replica.get(&id.author).copied().unwrap_or(0), entry.tip().hash);
                let number = id.number;
                self.trace.note(self.now, [5, at as u64, short], || format!("{at} has {author}:{number}"));
            }
        }
        let Some(process) = self.nodes.get(at).and_then(|node| node.process.as_ref()) else { return };
        let (view, attached) = (process.view.clone(), process.attached.clone());
        let before = self.net.is_parted();
        let retired = view.retired().replicas().count();
        let checked = self.rules.published(at, &view, &flushed.pools);
        self.check(checked);
        let digest = view.digest().head();
        self.trace.note(self.now, [6, at as u64, digest], || format!("{at} shows {digest:016x}"));
        if retired > 0 {
            self.sometimes.saw(State::Retired);
            if before {
                self.sometimes.saw(State::RetiredInCut);
            }
        }
        let inherits = |entry: &std::sync::Arc<Entry>| {
            entry.header.ledger.iter().any(|op| matches!(op, luc_engine::entry::LedgerOp::Inherit { .. }))
        };
        if flushed.entries.iter().any(inherits) {
            self.sometimes.saw(State::Inherited);
        }
        self.note_fork(&view, &flushed.pools);
        self.introduce_again(at, &flushed.pools);
        self.tell_tip(at);
        for (host, order) in agents::orders(&view, flushed, &|host| attached.contains_key(&host)) {
            if let Some((agent, session)) = attached.get(&host).copied() {
                let order = self.marked(at, agent, session, order);
                self.tell_agent(agent, session, Talk::Order(Box::new(order)));
            }
        }
        if flushed.members {
            self.dial_members(at);
        }
    }

    fn after(&mut self, at: usize, after: After) {
        match after {
            After::Nothing => {}
            After::Op(asked, done) => self.answered(at, asked, done),
            After::Received { peer, answer, again } => self.core(at, Input::Received { peer, answer, again }),
            After::ReadLog { peer, from } => {
                let LogPart { entries, more, dropped } = self.read(at, &from, LOG_BATCH).unwrap_or_default();
                if more {
                    self.sometimes.saw(State::CaughtUp);
                }
                self.core(at, Input::LogRead { peer, entries, more, dropped });
            }
            After::Granted { ask, turn, to, granted, frontier } => {
                let asker = self.nodes.get(to).map(|node| node.replica);
                let Some((process, asker)) = self.process(at).zip(asker) else { return };
                let from =
                    if granted.is_zero() { Vec::new() } else { lacking(process.view.frontier(), &frontier, asker) };
                let entries = self.read(at, &from, GRANT_LOG).unwrap_or_default().entries;
                let entries: Vec<Arc<[u8]>> = entries.iter().map(|entry| entry.shared_bytes()).collect();
                if entries.len() > 1 {
                    self.sometimes.saw(State::AnswerWithPast);
                }
                let delay = self.net.delay(at, to);
                self.at(delay, Event::Rights(Rights::Answer { ask, turn, from: at, granted, entries }));
            }
            After::Taken { ask, turn, granted } => self.taken(ask, turn, &granted),
            After::Hello { agent, session, met, host } => self.met(at, agent, session, met, host),
            After::Held { agent, session, claim } => self.tell_agent(agent, session, Talk::Held(claim)),
            After::Admitted { newcomer } => {
                if let Some(node) = self.nodes.get_mut(newcomer) {
                    node.admitted = true;
                }
                self.at(1_000, Event::Join { newcomer });
            }
            After::Snapshot { newcomer } => self.give_snapshot(at, newcomer),
        }
    }

    fn read(&mut self, at: usize, from: &[EntryId], limit: usize) -> Option<LogPart> {
        let replica = &self.process(at)?.replica;
        let reader = replica.reader().ok()?;
        read_entries(&*reader, replica.view().branches(), from, limit).ok()
    }
}
