//! Creations from all sites up to a project's quota, which is changed meanwhile.
//!
//! One site alone changes the quota, one change after the other: two that do so apart may both mint, and LUC says so. What is in force is then at
//! most the highest of what it asked for since it last saw, at its own site, how many rights there are: those are all,
//! since only that site mints, and what was burnt never comes back. Not so what it saw while it ran on an old copy of its disk: what others had
//! heard of before holds, and there it lacks it. A quota whose change is unknown may come into force at any time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Result;
use serde_json::{Value, json};

use super::stage::{Anomaly, Excused, INSIST, Rule, Stage, Worth, failed_with, lock, one_of, result, site_of, text};
use super::story::Story;
use super::{Cloud, Invocation, Seeded, Session, Verdict, Workload};
use crate::client::{Client, Trouble};
use crate::history::{History, Kind, Outcome, Pair};

const NAME: &str = "quota";
/// What the quota begins with, and between what it moves.
const FIRST: u64 = 8;
const RANGE: (u64, u64) = (5, 11);

const EXCEEDED: Rule = Rule {
    workload: NAME,
    checker: "quota-exceeded",
    rule: "The acknowledged servers of a project never exceed the highest quota that may be in force.",
};
const USAGE: Rule = Rule {
    workload: NAME,
    checker: "usage",
    rule: "In the end all sites say that as many instances are in use as there are servers.",
};

/// The workload.
#[derive(Default)]
pub(super) struct Quota {
    stage: Stage,
    live: Mutex<Vec<(String, u32)>>,
    /// Counts turns at the site that changes the quota.
    turns: AtomicU64,
    /// Whether a change, or a look at what became of it, is under way.
    busy: AtomicBool,
}

impl Workload for Quota {
    fn name(&self) -> &'static str {
        NAME
    }

    fn setup(&self, cloud: &Cloud, clients: &[Client]) -> Result<()> {
        let quota = json!({"instances": FIRST, "cores": 1_000, "ram": 1 << 30});
        self.stage.prepare(cloud, clients, NAME, (1, 64), &quota)
    }

    fn next(&self, session: &mut Session) -> Option<Invocation> {
        if session.at == 0 && !self.busy.swap(true, Ordering::AcqRel) {
            match self.turns.fetch_add(1, Ordering::AcqRel) % 6 {
                0 | 2 | 5 => return Some(Invocation { f: "rights", value: json!({}) }),
                3 => {
                    let limit = session.rng.between(RANGE.0, RANGE.1);
                    return Some(Invocation { f: "limit", value: json!({"limit": limit}) });
                }
                _ => self.busy.store(false, Ordering::Release),
            }
        }
        let live = lock(&self.live).clone();
        let full = u64::try_from(live.len()).is_ok_and(|count| count >= FIRST);
        let dice = session.rng.below(1000);
        if dice < 80 {
            return Some(Invocation { f: "read", value: json!({}) });
        }
        if session.rng.chance(if full { 550 } else { 150 }) {
            let own: Vec<_> = live.iter().filter(|(_, by)| *by == session.process).cloned().collect();
            let from = if session.rng.chance(750) && !own.is_empty() { own } else { live };
            if let Some((id, _)) = one_of(&from, session.rng.bits()) {
                return Some(Invocation { f: "delete", value: json!({"id": id}) });
            }
        }
        Some(Invocation { f: "create", value: json!({"name": format!("quota-{}", self.stage.fresh())}) })
    }

    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome {
        let done = match invocation.f {
            "rights" => self.rights(session),
            "limit" => self.limit(session, &invocation.value["limit"]),
            "create" => self.create(session, text(&invocation.value, "name")),
            "delete" => self.delete(session, text(&invocation.value, "id")),
            "final" => self.usage(session),
            _ => self.stage.client(session).and_then(|client| servers(&client)),
        };
        if matches!(invocation.f, "rights" | "limit") {
            self.busy.store(false, Ordering::Release);
        }
        done.map_or_else(Outcome::from, Outcome::Ok)
    }

    fn finish(&self, _: &mut Session) -> Vec<Invocation> {
        vec![Invocation { f: "final", value: json!({}) }]
    }

    fn check(&self, history: &History, all: &History) -> Vec<Verdict> {
        let over = |pair: &Pair<'_>| failed_with(pair, "Quota exceeded");
        let contended = history.pairs().iter().any(over);
        let worth = Worth::of(history, 30, over).needs(contended, "the quota was never used up");
        let read = history.pairs().iter().any(|pair| pair.invoke.f == "final" && pair.is_ok());
        let usage = Worth::of(history, 0, over).needs(read, "nobody asked for the usage in the end");
        let excused = Excused::of(all);
        vec![EXCEEDED.verdict(&worth, exceeded(history, &excused)), USAGE.verdict(&usage, usages(history))]
    }
}

impl Quota {
    /// How many instances there are rights for, as this site knows.
    fn rights(&self, session: &Session) -> Result<Value, Trouble> {
        let project = &self.stage.ground()?.project;
        let pools = session.client.get("/luc/v1/pools")?;
        let mine = pools["pools"].as_array().into_iter().flatten();
        let mine = mine.filter(|pool| pool["subject"]["project"] == **project);
        let sum: u64 = mine.filter_map(|pool| pool["capacity"]["Instances"].as_u64()).sum();
        Ok(json!({"rights": sum}))
    }

    fn limit(&self, session: &Session, limit: &Value) -> Result<Value, Trouble> {
        let project = &self.stage.ground()?.project;
        session.client.set_quota(project, &json!({"instances": limit}))?;
        Ok(json!({"limit": limit}))
    }

    fn create(&self, session: &Session, name: &str) -> Result<Value, Trouble> {
        let id = self.stage.create(session, name, "")?;
        lock(&self.live).push((id.clone(), session.process));
        Ok(json!({"id": id}))
    }

    fn delete(&self, session: &Session, id: &str) -> Result<Value, Trouble> {
        let done = self.stage.client(session)?.delete_server(id);
        if !matches!(done, Err(Trouble::Refused { .. } | Trouble::Unsent(_))) {
            lock(&self.live).retain(|(other, _)| other != id);
        }
        done.map(|()| json!({"id": id}))
    }

    /// What is in use in the end, and what there is: together, so that nothing comes in between.
    fn usage(&self, session: &Session) -> Result<Value, Trouble> {
        let path = format!("/compute/v2.1/os-quota-sets/{}/detail", self.stage.ground()?.project);
        self.stage.client(session)?.insist(INSIST, |client| {
            let before = client.frontier()?;
            let used = client.get(&path)?["quota_set"]["instances"]["in_use"].clone();
            let seen = servers(client)?;
            // Deletions go on: what was asked for one after the other must be of one state, and what was deleted just before
            // the end is to be gone.
            if client.frontier()? != before || seen["deleting"] != 0 {
                return Err(Trouble::Unsent("it changed meanwhile".into()));
            }
            Ok(json!({"used": used, "servers": seen["servers"]}))
        })
    }
}

fn servers(client: &Client) -> Result<Value, Trouble> {
    let all = client.servers()?;
    let deleting = all.iter().filter(|server| server["OS-EXT-STS:task_state"] == "deleting").count();
    let (failed, live): (Vec<_>, Vec<_>) = all.into_iter().partition(|server| server["status"] == "ERROR");
    let ids = |servers: Vec<Value>| servers.iter().map(|server| server["id"].clone()).collect::<Vec<_>>();
    Ok(json!({"servers": ids(live), "failed": ids(failed), "deleting": deleting}))
}

/// From which index on which quota is the highest that may be in force, and what says so.
struct Limit {
    from: u64,
    most: u64,
    by: u64,
}

fn limits(history: &History, excused: &Excused) -> Vec<Limit> {
    // What may come into force: the quota, where it was asked for, and whether nobody knows what became of it.
    let mut open: Vec<(u64, u64, bool)> = Vec::new();
    let mut limits = Vec::new();
    for pair in history.pairs().iter().filter(|pair| matches!(pair.invoke.f.as_str(), "limit" | "rights")) {
        let at = pair.invoke.index;
        let from = if pair.invoke.f == "limit" {
            // A refusal may come after the wish was written down.
            open.push((pair.invoke.value["limit"].as_u64().unwrap_or(u64::MAX), at, pair.kind() == Kind::Info));
            at
        } else if let (Some(rights), Some(done)) = (result(pair)["rights"].as_u64(), pair.complete)
            && !excused.may_be_old(site_of(pair), done.time)
        {
            open.retain(|(_, _, unknown)| *unknown);
            open.push((rights, done.index, false));
            done.index
        } else {
            continue;
        };
        let highest = open.iter().max().copied().unwrap_or_default();
        limits.push(Limit { from, most: highest.0, by: highest.1 });
    }
    limits
}

fn exceeded(history: &History, excused: &Excused) -> Vec<Anomaly> {
    let limits = limits(history, excused);
    let at = |index: u64| limits.iter().rev().find(|limit| limit.from <= index).or(limits.first());
    let pairs = history.pairs();
    let mut ends: HashMap<&str, u64> = HashMap::new();
    for pair in pairs.iter().filter(|pair| pair.invoke.f == "delete" && pair.kind() != Kind::Fail) {
        let end = ends.entry(text(&pair.invoke.value, "id")).or_insert(u64::MAX);
        *end = (*end).min(pair.invoke.index);
    }
    let creates = pairs.iter().filter(|pair| pair.invoke.f == "create" && pair.is_ok() && !excused.loses(pair));
    let spans: Vec<(u64, u64)> = creates
        .filter_map(|pair| {
            let end = ends.get(text(result(pair), "id")).copied().unwrap_or(u64::MAX);
            Some((pair.complete?.index, end))
        })
        .collect();
    let mut anomalies = Vec::new();
    for (now, _) in &spans {
        let live: Vec<u64> = spans.iter().filter(|span| span.0 <= *now && *now < span.1).map(|span| span.0).collect();
        if let Some(limit) = at(*now).filter(|limit| live.len() as u64 > limit.most) {
            let what = format!("{} servers are acknowledged where the quota is at most {}", live.len(), limit.most);
            anomalies.push(Anomaly::new(what, live.into_iter().chain([limit.by])));
        }
    }
    // A view may be an old one: it is held to the highest limit that ever was.
    let mut highest = limits.first().map_or(u64::MAX, |limit| limit.most);
    let mut next = limits.iter().peekable();
    for op in history.0.iter().filter(|op| op.kind == Kind::Ok && op.value["servers"].is_array()) {
        while let Some(limit) = next.next_if(|limit| limit.from <= op.index) {
            highest = highest.max(limit.most);
        }
        let shown = op.value["servers"].as_array().map_or(0, Vec::len) as u64;
        if shown > highest {
            let what = format!("{shown} servers are shown where the quota was never above {highest}");
            anomalies.push(Anomaly::new(what, [op.index]));
        }
    }
    anomalies
}

fn usages(history: &History) -> Vec<Anomaly> {
    let pairs = history.pairs();
    let finals: Vec<_> = pairs.iter().filter(|pair| pair.invoke.f == "final" && pair.is_ok()).collect();
    let mut anomalies = Vec::new();
    for pair in &finals {
        let Some(done) = pair.complete else { continue };
        let (used, servers) =
            (done.value["used"].as_u64(), done.value["servers"].as_array().map_or(0, Vec::len) as u64);
        if used != Some(servers) {
            let what = format!("{} says that {used:?} instances are in use, and shows {servers}", site_of(pair));
            anomalies.push(Anomaly::new(what, [done.index]));
        }
    }
    anomalies
}

/// Faults for the proof of the checkers.
pub(super) fn seeded() -> Vec<Seeded> {
    let create = |story: Story, process, id: &str| story.ok(process, "create", json!({"name": id}), json!({"id": id}));
    let rights = |story: Story, rights: u64| story.ok(0, "rights", json!({}), json!({"rights": rights}));
    let limit = |story: Story, limit: u64| story.ok(0, "limit", json!({"limit": limit}), json!({"limit": limit}));
    let over = |story: Story| story.fail(2, "create", json!({"name": "z"}), "403 Quota exceeded for instances");
    let two = over(create(create(rights(Story::new(NAME), 2), 1, "a"), 2, "b"));
    let raised = create(limit(two.clone(), 3), 1, "c");
    let shrunk =
        |rights_left| rights(limit(two.clone().ok(1, "delete", json!({"id": "a"}), json!({})), 1), rights_left);
    let usage = |used: u64, ids: &[&str]| json!({"used": used, "servers": ids});
    let seeded = |checker, bug, good, bad| Seeded::new(NAME, checker, bug, good, bad);
    vec![
        seeded("quota-exceeded", "a third server where two are allowed", raised, create(two.clone(), 1, "c")),
        seeded(
            "quota-exceeded",
            "a right that was burnt is spent",
            create(shrunk(2), 1, "c"),
            create(shrunk(1), 1, "c"),
        ),
        seeded(
            "quota-exceeded",
            "a right that its own site says there is not, on no old disk",
            create(rights(limit(two.clone(), 3).rolled_back("paris"), 2), 1, "c"),
            create(rights(limit(two.clone(), 3), 2), 1, "c"),
        ),
        seeded(
            "quota-exceeded",
            "a site shows more servers than there were ever rights for",
            two.clone().ok(1, "read", json!({}), json!({"servers": ["a", "b"]})),
            two.clone().ok(1, "read", json!({}), json!({"servers": ["a", "b", "c"]})),
        ),
        seeded(
            "usage",
            "a server is gone and its claim stays",
            two.clone().ok(1, "final", json!({}), usage(2, &["a", "b"])),
            two.ok(1, "final", json!({}), usage(2, &["a"])),
        ),
    ]
}
