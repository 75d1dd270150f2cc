//! What must hold of registers whose every write has a value of its own: causal order, seen from outside.
//!
//! A write is after all that its session had written and read. Who reads a value has seen the write, and all before it. So
//! nobody who has seen a write may read what that write had replaced, and in the end nothing is left that was replaced by
//! an acknowledged write. Two writes that had not seen each other may end either way; but whichever is shown at one site,
//! a value that was replaced there does not come back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::stage::{Anomaly, Rule};
use crate::history::Kind;

/// The value of a register that nobody has written.
pub(super) const INITIAL: &str = "0";

pub(super) const fn garbage(workload: &'static str) -> Rule {
    Rule { workload, checker: "garbage", rule: "Only what was written, and not refused, is ever read." }
}

pub(super) const fn converged(workload: &'static str) -> Rule {
    Rule { workload, checker: "converged", rule: "In the end all sites read the same values." }
}

pub(super) const fn lost(workload: &'static str) -> Rule {
    let rule = "In the end nothing is read that an acknowledged write had replaced.";
    Rule { workload, checker: "lost-update", rule }
}

/// A session: reads in one are monotone.
pub(super) type SessionId = (u32, u64);

/// What an operation did to registers.
#[derive(Clone, Debug)]
pub(super) enum Access<'a> {
    /// Wrote this value.
    Write(&'a str, &'a str),
    /// Read these registers and values, all of one state.
    Read(Vec<(&'a str, &'a str)>),
}

/// An operation on registers.
#[derive(Clone, Debug)]
pub(super) struct Step<'a> {
    pub(super) access: Access<'a>,
    pub(super) session: SessionId,
    /// The site that was asked.
    pub(super) site: &'a str,
    pub(super) invoke: u64,
    /// When it ended; never, if the run ended first.
    pub(super) complete: u64,
    pub(super) kind: Kind,
    /// Whether what it wrote may be lost.
    pub(super) excused: bool,
    /// Whether it is a read after everything was healed.
    pub(super) last: bool,
}

/// The values that a register showed, one after the other, each where it was seen last; and those that were replaced.
type Shown<'a> = (Vec<(&'a str, u64)>, BTreeSet<&'a str>);

/// A set of writes, by number.
#[derive(Clone, Debug, Default)]
struct Writes(Vec<u64>);

impl Writes {
    fn insert(&mut self, write: usize) {
        let (word, bit) = (write / 64, write % 64);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << bit;
        }
    }

    fn has(&self, write: usize) -> bool {
        self.0.get(write / 64).is_some_and(|word| word >> (write % 64) & 1 == 1)
    }

    fn join(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(mine, other)| *mine |= other);
    }
}

/// Anomalies, by what they break.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Values that nobody wrote, or whose write was refused.
    pub(super) garbage: Vec<Anomaly>,
    /// Values read by who had seen what replaced them.
    pub(super) stale: Vec<Anomaly>,
    /// Values that came back within a session.
    pub(super) flips: Vec<Anomaly>,
    /// Final reads that differ.
    pub(super) diverged: Vec<Anomaly>,
    /// Acknowledged writes of which nothing is left, though what is left was before them.
    pub(super) lost: Vec<Anomaly>,
}

struct Judge<'a> {
    steps: &'a [Step<'a>],
    /// Each write, by register and value: its number.
    numbers: HashMap<(&'a str, &'a str), usize>,
    /// Each write's step.
    writes: Vec<&'a Step<'a>>,
    /// The writes of each register.
    registers: HashMap<&'a str, Vec<usize>>,
    /// What each write had seen.
    past: Vec<Writes>,
}

/// Judges all steps of a run.
pub(super) fn judge<'a>(steps: &'a [Step<'a>]) -> Found {
    let mut judge =
        Judge { steps, numbers: HashMap::new(), writes: Vec::new(), registers: HashMap::new(), past: Vec::new() };
    for step in steps {
        if let Access::Write(register, value) = step.access {
            let number = judge.writes.len();
            judge.numbers.insert((register, value), number);
            judge.registers.entry(register).or_default().push(number);
            judge.writes.push(step);
            judge.past.push(Writes::default());
        }
    }
    let mut found = Found { garbage: judge.garbage(), flips: judge.flips(), ..Found::default() };
    found.stale = judge.causal();
    found.diverged = judge.diverged();
    found.lost = judge.lost();
    found
}

impl<'a> Judge<'a> {
    fn reads(&self) -> impl Iterator<Item = (&'a Step<'a>, &'a [(&'a str, &'a str)])> + use<'a> {
        self.steps.iter().filter(|step| step.kind == Kind::Ok).filter_map(|step| match &step.access {
            Access::Read(values) => Some((step, values.as_slice())),
            Access::Write(..) => None,
        })
    }

    fn garbage(&self) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        for (read, values) in self.reads() {
            for (register, value) in values.iter().filter(|(_, value)| *value != INITIAL) {
                let write = self.numbers.get(&(*register, *value)).and_then(|number| self.writes.get(*number));
                let (why, by) = match write {
                    None => ("nobody wrote", None),
                    Some(write) if write.kind == Kind::Fail => ("was refused", Some(write.complete)),
                    Some(write) if write.invoke > read.complete => ("was not yet written", Some(write.invoke)),
                    Some(_) => continue,
                };
                let what = format!("{} read {value:?} of {register}, which {why}", read.site);
                anomalies.push(Anomaly::new(what, [read.complete].into_iter().chain(by)));
            }
        }
        anomalies
    }

    fn flips(&self) -> Vec<Anomaly> {
        let mut seen: HashMap<(SessionId, &str), Shown<'_>> = HashMap::new();
        let mut anomalies = Vec::new();
        for (read, values) in self.reads() {
            for (register, value) in values {
                let (shown, replaced) = seen.entry((read.session, register)).or_default();
                match shown.last() {
                    Some((last, _)) if last == value => {
                        if let Some(last) = shown.last_mut() {
                            last.1 = read.complete;
                        }
                        continue;
                    }
                    Some((last, _)) => {
                        replaced.insert(last);
                    }
                    None => {}
                }
                if replaced.contains(value) {
                    let before = shown.iter().rev().take_while(|(other, _)| other != value).last();
                    let first = shown.iter().rev().find(|(other, _)| other == value);
                    let ops = before.into_iter().chain(first).map(|(_, index)| *index).chain([read.complete]);
                    let what = format!("{} had replaced {value:?} of {register}, and shows it again", read.site);
                    anomalies.push(Anomaly::new(what, ops));
                }
                shown.push((value, read.complete));
            }
        }
        anomalies
    }

    /// Goes through the history, and keeps what each session has seen.
    fn causal(&mut self) -> Vec<Anomaly> {
        let mut events: Vec<(u64, bool, &'a Step<'a>)> = Vec::new();
        for step in self.steps {
            events.push((step.invoke, false, step));
            if step.kind == Kind::Ok {
                events.push((step.complete, true, step));
            }
        }
        events.sort_by_key(|(index, done, _)| (*index, *done));
        let mut sessions: HashMap<SessionId, Writes> = HashMap::new();
        let mut anomalies = Vec::new();
        for (_, done, step) in events {
            let seen = sessions.entry(step.session).or_default();
            match &step.access {
                Access::Write(register, value) => {
                    let Some(number) = self.numbers.get(&(*register, *value)).copied() else { continue };
                    if !done {
                        if let Some(past) = self.past.get_mut(number) {
                            past.clone_from(seen);
                        }
                    } else if !step.excused {
                        seen.insert(number);
                    }
                }
                Access::Read(values) if done => {
                    let written: Vec<usize> =
                        values.iter().filter_map(|pair| self.numbers.get(pair).copied()).collect();
                    for number in written {
                        self.past.get(number).into_iter().for_each(|past| seen.join(past));
                        seen.insert(number);
                    }
                    let seen = seen.clone();
                    let stale = values.iter().filter_map(|(register, value)| self.replaced(&seen, register, value));
                    anomalies.extend(stale.map(|(what, ops)| {
                        let what = format!("{} read {what}", step.site);
                        Anomaly::new(what, ops.into_iter().chain([step.complete]))
                    }));
                }
                Access::Read(_) => {}
            }
        }
        anomalies
    }

    /// A write among those that were seen that had replaced this value.
    fn replaced(&self, seen: &Writes, register: &str, value: &str) -> Option<(String, Vec<u64>)> {
        let old = self.numbers.get(&(register, value)).copied();
        if old.is_none() && value != INITIAL {
            return None;
        }
        let writes = self.registers.get(register)?.iter().copied();
        let by = writes.filter(|number| seen.has(*number) && Some(*number) != old);
        let by = by.filter(|number| old.is_none_or(|old| self.past.get(*number).is_some_and(|past| past.has(old))));
        let (number, by) =
            by.filter_map(|number| Some((number, *self.writes.get(number)?))).find(|(_, by)| !by.excused)?;
        let _ = number;
        let Access::Write(_, newer) = by.access else { return None };
        let old = old.and_then(|old| self.writes.get(old));
        let ops = old
            .map(|old| old.invoke)
            .into_iter()
            .chain([by.invoke])
            .chain((by.kind == Kind::Ok).then_some(by.complete));
        Some((format!("{value:?} of {register}, and has seen {newer:?}, which replaced it"), ops.collect()))
    }

    fn finals(&self) -> Vec<(&'a Step<'a>, BTreeMap<&'a str, &'a str>)> {
        let last = self.reads().filter(|(read, _)| read.last);
        last.map(|(read, values)| (read, values.iter().copied().collect())).collect()
    }

    fn diverged(&self) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        for pair in self.finals().windows(2) {
            let [(one, first), (two, second)] = pair else { continue };
            let registers: BTreeSet<&&str> = first.keys().chain(second.keys()).collect();
            if let Some(register) =
                registers.into_iter().find(|register| first.get(**register) != second.get(**register))
            {
                let (a, b) = (first.get(*register), second.get(*register));
                let what = format!("of {register} {} reads {a:?} in the end, and {} {b:?}", one.site, two.site);
                anomalies.push(Anomaly::new(what, [one.complete, two.complete]));
            }
        }
        anomalies
    }

    fn lost(&self) -> Vec<Anomaly> {
        let mut acknowledged = Writes::default();
        for (number, write) in self.writes.iter().enumerate() {
            if write.kind == Kind::Ok && !write.excused {
                acknowledged.insert(number);
            }
        }
        let mut anomalies = Vec::new();
        for (read, values) in self.finals() {
            for (register, value) in values {
                if let Some((what, ops)) = self.replaced(&acknowledged, register, value) {
                    let what = format!("what {} read in the end is {what}", read.site)
                        .replace(", and has seen ", ", but for ");
                    anomalies.push(Anomaly::new(what, ops.into_iter().chain([read.complete])));
                }
            }
        }
        anomalies
    }
}
