//! The clients: threads of operations, one after the other, each at one site and of one workload.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::recorder::{Recorder, Whose};
use super::sampler::{self, Host, sleep};
use crate::client::{Client, enter};
use crate::cluster::hypervisor;
use crate::history::{Kind, Outcome, Process};
use crate::sim::rng::Rng;
use crate::workload::{Cloud, Invocation, Session, Workload};

/// How often a client that has nothing to do looks again.
const IDLE: Duration = Duration::from_millis(100);

/// Over how long clients begin.
const START: Duration = Duration::from_secs(8);

/// What all clients of a run share.
pub struct Crowd<'a> {
    /// The cloud.
    pub cloud: &'a Cloud,
    /// Its hosts' hypervisors, as far as the suite may ask them.
    pub hosts: &'a [Host],
    /// The history.
    pub recorder: &'a Recorder,
    /// Between two operations of one client, on average.
    pub pause: Duration,
    /// Told to stop.
    pub stop: &'a AtomicBool,
    /// How many clients there are: the next process of a client whose operation nobody knows the end of has so much more.
    pub count: u32,
    /// Which endpoint each process works at.
    pub at: &'a Mutex<Vec<(u32, usize)>>,
}

impl Crowd<'_> {
    /// A session at an endpoint.
    #[must_use]
    pub fn session(&self, process: u32, at: usize, clients: &[Client], seed: u64) -> Option<Session> {
        let client = clients.get(at)?.clone();
        self.at.lock().unwrap_or_else(PoisonError::into_inner).push((process, at));
        // Streams below 1,000 are the nemesis' and the network's.
        let rng = Rng::new(seed, 1_000 + u64::from(process));
        Some(Session { process, at, client, all: clients.to_vec(), rng })
    }

    /// Works until it is told to stop.
    pub fn work(&self, workload: &dyn Workload, session: &mut Session) {
        self.move_in(session);
        // Every first operation logs in, which is meant to be slow: not all at once.
        let first = u64::try_from(START.max(self.pause * 2).as_millis()).unwrap_or(u64::MAX);
        sleep(Duration::from_millis(session.rng.below(first)), self.stop);
        while !self.stop.load(Ordering::Relaxed) {
            match workload.next(session) {
                Some(invocation) => self.once(workload, session, &invocation),
                None => sleep(IDLE, self.stop),
            }
            // Between half and one and a half times the pause: clients do not march in step.
            let half = u64::try_from(self.pause.as_micros()).unwrap_or(u64::MAX) / 2;
            let pause = session.rng.between(half, half.saturating_mul(3));
            sleep(Duration::from_micros(pause), self.stop);
        }
    }

    /// The final reads.
    pub fn finish(&self, workload: &dyn Workload, session: &mut Session) {
        self.move_in(session);
        for invocation in workload.finish(session) {
            self.once(workload, session, &invocation);
        }
    }

    fn move_in(&self, session: &Session) {
        let endpoint = self.cloud.endpoints.get(session.at);
        // What cannot enter reaches nothing, and the history shows it.
        let _ = enter(endpoint.and_then(|endpoint| endpoint.namespace.as_deref()));
    }

    fn once(&self, workload: &dyn Workload, session: &mut Session, invocation: &Invocation) {
        let site = session.client.site.clone();
        let whose =
            Whose { process: Process::Client(session.process), site: Some(&site), workload: Some(workload.name()) };
        self.recorder.add(whose, Kind::Invoke, invocation.f, invocation.value.clone(), None);
        let outcome = match invocation.f {
            "domains" => self.domains(),
            _ => workload.invoke(session, invocation),
        };
        let (kind, value, error) = match outcome {
            Outcome::Ok(value) => (Kind::Ok, value, None),
            Outcome::Fail(why) => (Kind::Fail, invocation.value.clone(), Some(why)),
            Outcome::Info(why) => (Kind::Info, invocation.value.clone(), Some(why)),
        };
        self.recorder.add(whose, kind, invocation.f, value, error);
        if kind == Kind::Info {
            // It may happen at any time from now on: its process never does anything else (Jepsen's own rule).
            session.process += self.count;
            self.at.lock().unwrap_or_else(PoisonError::into_inner).push((session.process, session.at));
        }
    }
}

impl Crowd<'_> {
    /// What all hypervisors run, asked beside the APIs.
    fn domains(&self) -> Outcome {
        if self.hosts.is_empty() {
            return Outcome::Fail("the suite may not ask the hypervisors of this cloud".into());
        }
        let mut domains = Vec::new();
        for host in self.hosts {
            let time = self.recorder.now();
            match hypervisor::domains(&host.uri) {
                Ok(found) => domains.push(sampler::record(host, time, found)),
                Err(error) => return Outcome::Fail(format!("{}: {error:#}", host.name)),
            }
        }
        Outcome::Ok(json!({"domains": domains}))
    }
}

/// An operation of the nemesis.
pub fn nemesis(recorder: &Recorder, kind: Kind, f: &str, value: Value, error: Option<String>) {
    let whose = Whose { process: Process::Nemesis, site: None, workload: None };
    recorder.add(whose, kind, f, value, error);
}
