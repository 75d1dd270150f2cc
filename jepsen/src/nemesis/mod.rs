//! Who makes the faults: one after the other or several at once, by a schedule that a person writes or that chance composes
//! from the seed. Each fault is in the history, as operations of the process `nemesis`; [`Nemesis::heal`] undoes all.
//!
//! The value of its operations is a [`Fault`] with a number, `id`. For each fault of a disk it says which case of
//! `PROTOCOL.md`, M4 it is, and which acknowledged writes it excuses: those that no survivor holds, found by asking them.

mod certificates;
mod deck;
mod disks;
mod links;
mod members;
mod processes;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::deck::Deck;
use crate::cluster::Cluster;
use crate::cluster::hypervisor::Hypervisor;
use crate::cluster::node::Node;
use crate::cluster::process::output;
use crate::history::Kind;
use crate::run::Fault;
use crate::runner::clients::nemesis as record;
use crate::runner::recorder::Recorder;
use crate::runner::sampler::Seen;
use crate::sim::rng::Rng;

/// The faults there are, as on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Name {
    /// Sites are cut off from each other: halves, one way, a bridge, one alone, flapping.
    Partition,
    /// Lines are slow, lossy, duplicating, reordering, narrow.
    Slow,
    /// Processes are killed (kill -9), and started again.
    Kill,
    /// Processes are stopped in time (SIGSTOP), and go on.
    Pause,
    /// All replicas are restarted, one after the other, with another binary if there is one (--other-luc).
    Roll,
    /// A replica's disk is lost; it is retired, and another joins in its place.
    Wipe,
    /// A replica's disk goes back to what it was some seconds ago.
    Rollback,
    /// A copy of a replica's disk is put in its place, or a second process is started from it.
    Clone,
    /// A disk is full.
    Full,
    /// Clocks are wrong, by seconds to days, or run too fast or slowly.
    Clock,
    /// A replica joins; later it leaves, and is retired.
    Members,
    /// A replica joins, and its certificate is revoked while a site is cut off.
    Revoke,
    /// A host's libvirt is killed, and comes back. With simulated machines they are gone then, as if the host had lost its power.
    Libvirt,
    /// A host has less memory to give; later it has as much as before.
    Resize,
}

impl Name {
    /// As on the command line.
    #[must_use]
    pub fn text(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Before the first fault.
const QUIET: Duration = Duration::from_secs(10);
/// How long retirements may take once all is healed.
const RETIRED: Duration = Duration::from_secs(300);

/// How long a site is cut off when a certificate is revoked, at least.
const CUT: Duration = Duration::from_secs(3);

/// Which faults, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Which; each comes before one comes again.
    pub names: Vec<Name>,
    /// From the beginning of one to that of the next, on average.
    pub every: Duration,
    /// How many at once, at most.
    pub overlap: usize,
}

/// What the nemesis has to do with.
pub struct Around<'a> {
    /// The cloud, if the suite has started it.
    pub cluster: Option<&'a mut Cluster>,
    /// Somebody's own command for faults.
    pub command: Option<&'a str>,
    /// The history.
    pub recorder: &'a Recorder,
    /// What endpoints have said.
    pub seen: &'a Seen,
    /// Which process works at which endpoint.
    pub processes: &'a Mutex<Vec<(u32, usize)>>,
}

/// Who makes the faults.
pub struct Nemesis<'a> {
    around: Around<'a>,
    rng: Rng,
    next: u64,
    open: Vec<Open>,
    deck: Deck,
    /// Replicas whose certificates were revoked, and that are still there.
    revoked: Vec<certificates::Revoked>,
}

/// A fault before it is made.
struct Planned {
    fault: Fault,
    act: Act,
}

/// What is done.
enum Act {
    /// The switch is told.
    Lines(Vec<String>),
    /// Nodes are killed.
    Kill(Vec<usize>),
    /// Nodes are stopped in time.
    Pause(Vec<usize>),
    /// All replicas are restarted, one after the other.
    Roll,
    /// A disk is lost.
    Wipe(usize),
    /// A disk is rolled back.
    Rollback(usize),
    /// A disk is copied.
    Copied(usize, disks::Copy),
    /// A disk is full.
    Fill(usize),
    /// Clocks are set, in libfaketime's words.
    Clock(Vec<usize>, String),
    /// A replica joins at a site.
    Newcomer(usize),
    /// A replica joins at a site, another is cut off, and the certificate is revoked at a third.
    Revoke { home: String, by: String, alone: String },
    /// Hypervisors are killed.
    Libvirt(Vec<usize>),
    /// A host's memory, in permille of what it had.
    Resize(usize, u64),
    /// Somebody's own command is called.
    Command,
}

/// How a fault is undone.
enum Undo {
    /// Lines are told once more what they are meant to be.
    Lines,
    /// Nodes are started.
    Start,
    /// Nodes go on.
    Resume,
    /// Nothing is left to undo.
    Over,
    /// Another replica joins where the disk of this one was lost.
    Wiped(String),
    /// Another replica joins where the disk of this one was rolled back.
    RolledBack(String),
    /// The operator says that the disk was moved.
    Moved,
    /// The second process from one disk ends.
    Cloned(usize),
    /// There is room again, and the replica is started anew.
    Filled,
    /// Clocks are right.
    Clock,
    /// A replica leaves.
    Newcomer,
    /// All hear of a revocation.
    Revoked,
    /// Hypervisors are started.
    Revive,
    /// A host has what it had.
    Resize,
    /// Somebody's own command is called.
    Command,
}

impl Undo {
    /// Whether it waits for others to be reached.
    fn needs_others(&self) -> bool {
        matches!(self, Self::Wiped(_) | Self::RolledBack(_) | Self::Newcomer)
    }
}

/// A fault that was made.
struct Open {
    id: u64,
    fault: Fault,
    /// Whom it hits: no other fault does meanwhile.
    nodes: Vec<usize>,
    undo: Undo,
    until: Instant,
}

impl<'a> Nemesis<'a> {
    /// One who has made no fault yet.
    #[must_use]
    pub fn new(around: Around<'a>, seed: u64) -> Self {
        let (open, revoked) = (Vec::new(), Vec::new());
        Self { around, rng: Rng::new(seed, 2), next: 0, open, deck: Deck::default(), revoked }
    }

    /// Plays the schedule for so long, or until it is interrupted. Tells now and then how far it is.
    ///
    /// # Errors
    /// A fault that could not be made or undone: then the run says little.
    pub fn play(&mut self, plan: &Schedule, time: Duration, interrupted: &AtomicBool, told: impl Fn()) -> Result<()> {
        let end = Instant::now() + time;
        let half = u64::try_from(plan.every.as_millis())? / 2;
        // Clients begin first.
        let mut next = Instant::now() + QUIET.min(time / 4);
        let mut tell = Instant::now() + Duration::from_secs(10);
        let faults = self.around.command.is_some() || !plan.names.is_empty();
        while Instant::now() < end && !interrupted.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            if Instant::now() >= tell {
                told();
                tell = Instant::now() + Duration::from_secs(10);
            }
            // Who joins over lines that are slow enough takes minutes, in which no other fault would end.
            let is_line = |open: &Open| !open.fault.cut.is_empty() || matches!(open.undo, Undo::Lines);
            let lines = self.open.iter().any(is_line);
            self.undo_where(|open| Instant::now() >= open.until && !(lines && open.undo.needs_others()))?;
            // Whether a certificate still works tells something only where no fault has been at work for a while.
            let revoking = self.open.iter().any(|open| matches!(open.undo, Undo::Revoked));
            let waits = !revoking && !self.revoked.is_empty();
            if waits && self.open.is_empty() {
                self.look_at_revoked(false)?;
            }
            // None begins that would be over before it has shown anything.
            let left = end.saturating_duration_since(Instant::now());
            if faults && !waits && Instant::now() >= next && left > plan.every / 2 && self.open.len() < plan.overlap {
                next = Instant::now() + Duration::from_millis(self.rng.between(half, half * 3));
                self.one(plan)?;
            }
        }
        Ok(())
    }

    /// Makes the next fault of the schedule.
    fn one(&mut self, plan: &Schedule) -> Result<()> {
        let hold = u64::try_from(plan.every.as_millis())?;
        // With several at once, they last longer than it takes until the next.
        let longest = hold * u64::try_from(plan.overlap)? * 3 / 4;
        let until = Instant::now() + Duration::from_millis(self.rng.between(hold / 3, longest.max(hold / 3)));
        if let Some(command) = self.around.command {
            let fault = Fault { name: "command".into(), detail: command.to_owned(), ..Fault::default() };
            return self.make(Planned { fault, act: Act::Command }, until);
        }
        match self.deck.draw(&plan.names, &mut self.rng) {
            Some(name) => self.named(name, until),
            None => Ok(()),
        }
    }

    /// Makes a fault, if there is room for it beside those that there are. It is undone when it is due, or by
    /// [`Nemesis::heal`].
    ///
    /// # Errors
    /// What kept it from being made.
    pub fn named(&mut self, name: Name, until: Instant) -> Result<()> {
        // Lines have one state, and so have clocks: one fault of a kind at a time.
        if self.open.iter().any(|open| open.fault.name == name.text()) {
            return Ok(());
        }
        // Who is admitted must reach others, and there is one cut at a time.
        if matches!(name, Name::Members | Name::Revoke | Name::Partition)
            && self.open.iter().any(|open| !open.fault.cut.is_empty())
        {
            return Ok(());
        }
        let planned = self.plan(name)?;
        let Some(Planned { fault, act }) = planned else { return Ok(()) };
        self.make(Planned { fault: Fault { name: name.text(), ..fault }, act }, until)
    }

    fn make(&mut self, planned: Planned, until: Instant) -> Result<()> {
        self.next += 1;
        let (id, Planned { mut fault, act }) = (self.next, planned);
        let seconds = self.around.recorder.now() / 1_000_000_000;
        crate::runner::say(&format!("{seconds:>5} s: {}: {}", fault.name, fault.detail));
        record(self.around.recorder, Kind::Invoke, "start", value(id, &fault), None);
        let made = self.act(&act, &mut fault);
        self.complete("start", id, &fault, made.as_ref().err());
        let (nodes, undo) = made.with_context(|| format!("the fault {:?} could not be made", fault.name))?;
        // Its beginning takes long: somebody joins.
        let until = if matches!(undo, Undo::Revoked) { until.max(Instant::now() + CUT) } else { until };
        self.open.push(Open { id, fault, nodes, undo, until });
        Ok(())
    }

    /// Does it. Says whom it hits, and how it is undone.
    fn act(&mut self, act: &Act, fault: &mut Fault) -> Result<(Vec<usize>, Undo)> {
        Ok(match act {
            Act::Lines(words) => {
                let cluster = self.cluster()?;
                words.iter().try_for_each(|words| cluster.net.say(words).map(drop))?;
                (Vec::new(), Undo::Lines)
            }
            Act::Kill(nodes) => {
                self.each(nodes, |node| {
                    node.kill();
                    Ok(())
                })?;
                (nodes.clone(), Undo::Start)
            }
            Act::Pause(nodes) => {
                self.each(nodes, Node::pause)?;
                (nodes.clone(), Undo::Resume)
            }
            Act::Roll => (Vec::new(), self.roll()?),
            Act::Wipe(at) => (vec![*at], self.wipe(*at, fault)?),
            Act::Rollback(at) => (vec![*at], self.roll_back(*at, fault)?),
            Act::Copied(at, how) => self.copied(*at, *how)?,
            Act::Fill(at) => (vec![*at], self.fill(*at)?),
            Act::Clock(nodes, by) => {
                self.each(nodes, |node| node.skew(by))?;
                (nodes.clone(), Undo::Clock)
            }
            Act::Newcomer(site) => {
                let (at, undo) = self.newcomer(*site)?;
                (vec![at], undo)
            }
            Act::Revoke { home, by, alone } => self.revoke(home, by, alone)?,
            Act::Libvirt(nodes) => {
                self.each(nodes, |node| node.hypervisor.as_mut().map_or(Ok(()), Hypervisor::kill))?;
                (nodes.clone(), Undo::Revive)
            }
            Act::Resize(at, permille) => (vec![*at], self.resize(*at, *permille)?),
            Act::Command => {
                self.command("start")?;
                (Vec::new(), Undo::Command)
            }
        })
    }

    /// Undoes everything, whatever happens on the way.
    ///
    /// # Errors
    /// The first thing that could not be undone; all others are.
    pub fn heal(&mut self) -> Result<()> {
        // Lines and processes first: members join and leave by agreement.
        let mut errors: Vec<anyhow::Error> = Vec::new();
        errors.extend(self.undo_where(|open| !open.undo.needs_others()).err());
        errors.extend(self.undo_where(|_| true).err());
        errors.extend(self.look_at_revoked(true).err());
        if let Some(cluster) = self.around.cluster.as_deref_mut() {
            errors.extend(cluster.net.say(&cluster.lines()).err());
            errors.extend(cluster.net.say("heal").err());
            for node in &mut cluster.nodes {
                let healed = [node.skew("+0"), node.disk.free(), node.resume(), node.start()];
                errors.extend(healed.into_iter().filter_map(Result::err));
            }
            errors.extend(cluster.nodes.iter_mut().filter_map(|node| node.ready().err()));
            errors.extend(cluster.retired(RETIRED).err());
        }
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    fn undo_where(&mut self, due: impl Fn(&Open) -> bool) -> Result<()> {
        let (mut first, mut at) = (None, 0);
        while let Some(open) = self.open.get(at) {
            if !due(open) {
                at += 1;
                continue;
            }
            let open = self.open.remove(at);
            // What its beginning excused is told there.
            let mut fault = Fault { excused: Vec::new(), ..open.fault };
            record(self.around.recorder, Kind::Invoke, "stop", value(open.id, &fault), None);
            self.note_healing();
            let undone = self.undo(&open.undo, &open.nodes, &mut fault);
            self.note_healing();
            self.note_quiet();
            self.complete("stop", open.id, &fault, undone.as_ref().err());
            let undone = undone.with_context(|| format!("the fault {:?} could not be undone", fault.name));
            first = first.or(undone.err());
        }
        first.map_or(Ok(()), Err)
    }

    /// If no fault is under way any more, how the cloud heals is looked at closely.
    fn note_healing(&self) {
        if self.open.is_empty() {
            self.around.seen.note_healing(self.around.recorder.now());
        }
    }

    fn undo(&mut self, undo: &Undo, nodes: &[usize], fault: &mut Fault) -> Result<()> {
        match undo {
            Undo::Lines => {
                let cluster = self.cluster()?;
                // A cut and a quality are set apart: each is undone without the other.
                let words = if fault.cut.is_empty() { cluster.lines() } else { "heal".to_owned() };
                cluster.net.say(&words).map(drop)
            }
            Undo::Start => self.start(nodes),
            Undo::Resume => self.each(nodes, Node::resume),
            Undo::Over => Ok(()),
            Undo::Wiped(replica) => nodes.iter().try_for_each(|at| self.after_wipe(*at, replica)),
            Undo::RolledBack(replica) => nodes.iter().try_for_each(|at| self.after_roll_back(*at, replica)),
            Undo::Moved => nodes.iter().try_for_each(|at| self.after_move(*at)),
            Undo::Cloned(other) => {
                self.cluster()?.leave(*other);
                Ok(())
            }
            Undo::Filled => {
                self.each(nodes, |node| {
                    node.disk.free()?;
                    // A store that has failed takes no more writes until it is opened anew.
                    node.kill();
                    Ok(())
                })?;
                self.start(nodes)
            }
            Undo::Clock => self.each(nodes, |node| node.skew("+0")),
            Undo::Newcomer => nodes.iter().try_for_each(|at| self.farewell(*at)),
            Undo::Revoked => self.cluster()?.net.say("heal").map(drop),
            Undo::Revive => self.each(nodes, |node| node.hypervisor.as_mut().map_or(Ok(()), Hypervisor::revive)),
            Undo::Resize => nodes.iter().try_for_each(|at| self.resize(*at, 1_000).map(drop)),
            Undo::Command => self.command("stop"),
        }
    }

    fn start(&mut self, nodes: &[usize]) -> Result<()> {
        self.each(nodes, Node::start)?;
        self.each(nodes, Node::ready)
    }

    fn each(&mut self, nodes: &[usize], act: impl Fn(&mut Node) -> Result<()>) -> Result<()> {
        let cluster = self.cluster()?;
        nodes.iter().try_for_each(|at| cluster.nodes.get_mut(*at).map_or(Ok(()), &act))
    }

    fn cluster(&mut self) -> Result<&mut Cluster> {
        self.around.cluster.as_deref_mut().context("faults are made only in a cloud that the suite has started")
    }

    fn command(&self, word: &str) -> Result<()> {
        let Some(command) = self.around.command else { bail!("there is no command for faults") };
        output(std::process::Command::new("sh").args(["-c", &format!("{command} {word}")])).map(drop)
    }

    fn complete(&self, f: &str, id: u64, fault: &Fault, error: Option<&anyhow::Error>) {
        record(self.around.recorder, Kind::Info, f, value(id, fault), error.map(|error| format!("{error:#}")));
    }
}

fn value(id: u64, fault: &Fault) -> Value {
    let mut value = serde_json::to_value(fault).unwrap_or_default();
    value["id"] = json!(id);
    value
}
