//! Session guarantees across sites: sessions that wander, and send back the frontier that they were shown.
//!
//! Each operation asks another site, with `X-LUC-Frontier` of the answer before. So what holds within one site must hold
//! for the whole session: it reads its own writes, reads are monotone, its writes are after what it had read and written,
//! and others see them so. A site that has not caught up says so, and nothing happened.

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::register::{Servers, registers, steps, worth};
use super::registers::{self, Found, judge};
use super::stage::{Excused, INSIST, Own, Rule, Stage, client_of, one_of, text};
use super::story::Story;
use super::{Cloud, Invocation, Seeded, Session, Verdict, Workload};
use crate::client::{Client, Trouble};
use crate::history::{History, Outcome, Pair};

const NAME: &str = "causal";
const SERVERS: usize = 2;
const ITEMS: [&str; 2] = ["x", "y"];
/// So often a session is told that a site has not caught up before it begins anew, having seen nothing.
const TRIES: u32 = 6;

const CAUSAL: Rule = Rule {
    workload: NAME,
    checker: "session",
    rule: "Whoever sends back what it has seen reads, at every site, nothing that it knows to be replaced.",
};
const GARBAGE: Rule = registers::garbage(NAME);
const CONVERGED: Rule = registers::converged(NAME);
const LOST: Rule = registers::lost(NAME);

/// What a session carries.
#[derive(Default)]
struct Carried {
    seen: Option<String>,
    /// Counts how often it began anew.
    session: u64,
    refused: u32,
}

/// The workload.
#[derive(Default)]
pub(super) struct Causal {
    stage: Stage,
    servers: Servers,
    carried: Own<Carried>,
}

impl Workload for Causal {
    fn name(&self) -> &'static str {
        NAME
    }

    fn setup(&self, cloud: &Cloud, clients: &[Client]) -> Result<()> {
        self.servers.make(&self.stage, cloud, clients, NAME, (SERVERS, &ITEMS))
    }

    fn next(&self, session: &mut Session) -> Option<Invocation> {
        let server = one_of(self.servers.in_use(self.stage.given())?, session.rng.bits())?.clone();
        let number = self.carried.with(session, |carried| carried.session);
        // The history names the site that is asked.
        session.client = one_of(&session.all, session.rng.bits())?.clone();
        let at = session.client.site.clone();
        if session.rng.chance(600) {
            let value = json!({"server": server, "at": at, "session": number});
            return Some(Invocation { f: "read", value });
        }
        let item = one_of(&ITEMS, session.rng.bits()).copied().unwrap_or("x");
        let (register, value) = (format!("{server}/{item}"), format!("{}-{}", session.process, self.stage.fresh()));
        let value = json!({"register": register, "value": value, "at": at, "session": number});
        Some(Invocation { f: "write", value })
    }

    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome {
        let done = match invocation.f {
            "final" => {
                let client = self.stage.client_at(session, session.at);
                client.and_then(|client| client.insist(INSIST, |client| self.last(client)))
            }
            f => self.wander(session, f, &invocation.value),
        };
        done.map_or_else(Outcome::from, Outcome::Ok)
    }

    fn finish(&self, session: &mut Session) -> Vec<Invocation> {
        let number = self.carried.with(session, |carried| carried.session);
        session.client = session.all.get(session.at).unwrap_or(&session.client).clone();
        vec![Invocation { f: "final", value: json!({"at": session.client.site, "session": number + 1}) }]
    }

    fn check(&self, history: &History, all: &History) -> Vec<Verdict> {
        let excused = Excused::of(all);
        let pairs = history.pairs();
        let at = |pair: &Pair<'_>| (client_of(pair.invoke.process), pair.invoke.value["session"].as_u64().unwrap_or(0));
        let steps = steps(&pairs, &excused, |pair| (text(&pair.invoke.value, "at"), at(pair)));
        let Found { garbage, mut stale, flips, diverged, lost } = judge(&steps);
        stale.extend(flips);
        let worth = worth(history, &steps);
        let ends = worth.clone().needs(steps.iter().any(|step| step.last), "nobody read in the end");
        vec![
            CAUSAL.verdict(&worth, stale),
            GARBAGE.verdict(&worth, garbage),
            CONVERGED.verdict(&ends, diverged),
            LOST.verdict(&ends, lost),
        ]
    }
}

impl Causal {
    fn wander(&self, session: &Session, f: &str, value: &Value) -> Result<Value, Trouble> {
        let base = &session.client.base;
        let at = session.all.iter().position(|client| client.base == *base).unwrap_or(session.at);
        let client = self.stage.client_at(session, at)?;
        let seen = self.carried.with(session, |carried| carried.seen.clone());
        let asked = if f == "write" {
            let (server, item) = text(value, "register").split_once('/').unwrap_or_default();
            let body = json!({"metadata": {item: value["value"]}});
            client.call_seen("POST", &format!("/compute/v2.1/servers/{server}/metadata"), Some(&body), seen.as_deref())
        } else {
            let path = format!("/compute/v2.1/servers/{}", text(value, "server"));
            client.call_seen("GET", &path, None, seen.as_deref())
        };
        self.carried.with(session, |carried| match &asked {
            Ok((_, frontier)) => (carried.seen, carried.refused) = (Some(frontier.clone()), 0),
            Err(trouble) if trouble.status() == 503 && carried.refused < TRIES => carried.refused += 1,
            // What it has seen is with a site that is away for long: it would do nothing else any more.
            Err(trouble) if trouble.status() == 503 => {
                *carried = Carried { session: carried.session + 1, ..Carried::default() };
            }
            Err(_) => {}
        });
        let mut told = value.clone();
        let (shown, _) = asked?;
        if f != "write" {
            told["read"] = items(text(value, "server"), &shown["server"]);
        }
        Ok(told)
    }

    fn last(&self, client: &Client) -> Result<Value, Trouble> {
        let mut all = Map::new();
        for server in self.servers.all() {
            let shown = client.get(&format!("/compute/v2.1/servers/{server}"))?;
            if let Value::Object(values) = items(server, &shown["server"]) {
                all.extend(values);
            }
        }
        Ok(json!({"read": all}))
    }
}

fn items(server: &str, shown: &Value) -> Value {
    let registers = registers(server, shown).into_iter().filter(|(register, _)| !register.ends_with("/name"));
    Value::Object(registers.collect())
}

/// Faults for the proof of the checkers.
pub(super) fn seeded() -> Vec<Seeded> {
    let write = |story: Story, process, at: &str, register: &str, value: &str| {
        story.ok(process, "write", json!({"register": register, "value": value, "at": at, "session": 0}), json!({}))
    };
    let read = |story: Story, process, at: &str, values: Value| {
        story.ok(process, "read", json!({"server": "s", "at": at, "session": 0}), json!({"read": values}))
    };
    let last = |story: Story, process, values: Value| {
        story.ok(process, "final", json!({"at": "paris", "session": 1}), json!({"read": values}))
    };
    let one = write(Story::new(NAME), 0, "paris", "s/x", "1");
    let followed = write(read(one.clone(), 1, "lyon", json!({"s/x": "1", "s/y": "0"})), 1, "rennes", "s/y", "2");
    let whole = json!({"s/x": "1", "s/y": "2"});
    let ends = |story: Story, first: &Value, second: &Value| last(last(story, 0, first.clone()), 1, second.clone());
    let seeded = |checker, bug, good, bad| Seeded::new(NAME, checker, bug, good, bad);
    vec![
        seeded(
            "session",
            "a session does not read its own write at another site",
            read(followed.clone(), 0, "rennes", json!({"s/x": "1", "s/y": "0"})),
            read(followed.clone(), 0, "rennes", json!({"s/x": "0", "s/y": "0"})),
        ),
        seeded(
            "session",
            "a write is seen before what it followed",
            read(followed.clone(), 2, "paris", whole.clone()),
            read(followed.clone(), 2, "paris", json!({"s/x": "0", "s/y": "2"})),
        ),
        seeded(
            "session",
            "reads go back in time at the next site",
            read(followed.clone(), 1, "paris", whole.clone()),
            read(followed.clone(), 1, "paris", json!({"s/x": "1", "s/y": "0"})),
        ),
        seeded(
            "garbage",
            "a value of another register",
            read(followed.clone(), 2, "paris", whole.clone()),
            read(followed.clone(), 2, "paris", json!({"s/x": "2", "s/y": "2"})),
        ),
        seeded(
            "converged",
            "two sites end apart",
            ends(followed.clone(), &whole, &whole),
            ends(followed.clone(), &whole, &json!({"s/x": "1", "s/y": "0"})),
        ),
        seeded(
            "lost-update",
            "an acknowledged write is gone in the end",
            ends(followed.clone(), &whole, &whole),
            ends(followed, &json!({"s/x": "1", "s/y": "0"}), &json!({"s/x": "1", "s/y": "0"})),
        ),
    ]
}
