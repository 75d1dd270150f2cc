//! Servers as the elements of a set: made and deleted everywhere, and listed everywhere.
//!
//! What was acknowledged is there in the end, at every site, until somebody tries to delete it; what was deleted does not
//! come back; no id is given twice, and no request makes two.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Mutex;

use anyhow::Result;
use serde_json::{Value, json};

use super::stage::{
    Anomaly, Excused, INSIST, Rule, Stage, Worth, client_of, ended, indices, lock, one_of, result, site_of, text,
};
use super::story::Story;
use super::{Cloud, Invocation, Seeded, Session, Verdict, Workload};
use crate::client::{Client, Trouble};
use crate::history::{History, Kind, Outcome, Pair};

const NAME: &str = "set";
/// The final read. Words and values of this workload are those that the whole cloud's checkers know.
const LAST: &str = "read-final";
/// Above so many, more are deleted than made.
const MANY: usize = 60;

const LOST: Rule = Rule {
    workload: NAME,
    checker: "lost",
    rule: "What was acknowledged, and that nobody tried to delete, is there in the end.",
};
const STALE: Rule = Rule {
    workload: NAME,
    checker: "stale",
    rule: "In the end all sites list the same servers, and each site at once what it has acknowledged itself.",
};
const RESURRECTED: Rule =
    Rule { workload: NAME, checker: "resurrected", rule: "What was deleted does not come back, at any site." };
const DUPLICATED: Rule = Rule {
    workload: NAME,
    checker: "duplicated",
    rule: "No id is given twice, and no request makes two servers, or one that was refused.",
};

/// The workload.
#[derive(Default)]
pub(super) struct Set {
    stage: Stage,
    live: Mutex<Vec<(String, u32)>>,
}

impl Workload for Set {
    fn name(&self) -> &'static str {
        NAME
    }

    fn setup(&self, cloud: &Cloud, clients: &[Client]) -> Result<()> {
        let quota = json!({"instances": 100_000, "cores": 100_000, "ram": 1_u64 << 39});
        self.stage.prepare(cloud, clients, NAME, (1, 64), &quota)
    }

    fn next(&self, session: &mut Session) -> Option<Invocation> {
        let live = lock(&self.live).clone();
        let dice = session.rng.below(1000);
        if dice < 250 {
            return Some(Invocation { f: "read", value: json!({}) });
        }
        let deletes = if live.len() > MANY { 600 } else { 250 };
        if session.rng.chance(deletes) {
            let own: Vec<_> = live.iter().filter(|(_, by)| *by == session.process).cloned().collect();
            let from = if session.rng.chance(600) && !own.is_empty() { own } else { live };
            if let Some((id, _)) = one_of(&from, session.rng.bits()) {
                return Some(Invocation { f: "delete", value: json!({"id": id}) });
            }
        }
        Some(Invocation { f: "add", value: json!({"name": format!("set-{}", self.stage.fresh())}) })
    }

    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome {
        let done = match invocation.f {
            "add" => self.add(session, text(&invocation.value, "name")),
            "delete" => self.delete(session, text(&invocation.value, "id")),
            LAST => self.stage.client(session).and_then(|client| client.insist(INSIST, servers)),
            _ => self.stage.client(session).and_then(|client| servers(&client)),
        };
        done.map_or_else(Outcome::from, Outcome::Ok)
    }

    fn finish(&self, _: &mut Session) -> Vec<Invocation> {
        vec![Invocation { f: LAST, value: json!({}) }]
    }

    fn check(&self, history: &History, all: &History) -> Vec<Verdict> {
        let seen = Seen::of(history);
        let excused = Excused::of(all);
        let worth = Worth::of(history, 20, |_| false).needs(!seen.adds.is_empty(), "nothing was made");
        let ends = worth.clone().needs(!seen.finals.is_empty(), "nobody read in the end");
        vec![
            LOST.verdict(&ends, seen.lost(&excused)),
            STALE.verdict(&ends, seen.stale(&excused)),
            RESURRECTED.verdict(&ends, seen.resurrected(&excused)),
            DUPLICATED.verdict(&worth, seen.duplicated()),
        ]
    }
}

impl Set {
    fn add(&self, session: &Session, name: &str) -> Result<Value, Trouble> {
        let id = self.stage.create(session, name, "")?;
        lock(&self.live).push((id.clone(), session.process));
        Ok(json!({"id": id}))
    }

    fn delete(&self, session: &Session, id: &str) -> Result<Value, Trouble> {
        self.stage.client(session)?.delete_server(id)?;
        lock(&self.live).retain(|(other, _)| other != id);
        Ok(json!({"id": id}))
    }
}

/// Ids and names of the servers; those that are on their way out apart.
fn servers(client: &Client) -> Result<Value, Trouble> {
    let (mut there, mut leaving) = (Vec::new(), Vec::new());
    for server in client.servers()? {
        let deleting = server["OS-EXT-STS:task_state"] == "deleting";
        let list = if deleting { &mut leaving } else { &mut there };
        list.push(json!([server["id"], server["name"]]));
    }
    let ids: Vec<Value> = there.iter().map(|row: &Value| row[0].clone()).collect();
    Ok(json!({"ids": ids, "servers": there, "deleting": leaving}))
}

/// A history, looked up.
struct Seen<'a> {
    pairs: Vec<Pair<'a>>,
    /// Acknowledged, by id.
    adds: BTreeMap<&'a str, Pair<'a>>,
    /// Deletions that may have happened, by id.
    deletes: HashMap<&'a str, Vec<Pair<'a>>>,
    /// The final reads.
    finals: Vec<Pair<'a>>,
}

impl<'a> Seen<'a> {
    fn of(history: &'a History) -> Self {
        let pairs = history.pairs();
        let of = |f: &'static str| pairs.iter().filter(move |pair| pair.invoke.f == f).copied();
        let adds = of("add").filter(|pair| pair.is_ok()).map(|pair| (text(result(&pair), "id"), pair)).collect();
        let tried = of("delete").filter(|pair| pair.kind() != Kind::Fail);
        let deletes = super::stage::group(tried.map(|pair| (text(&pair.invoke.value, "id"), pair)));
        let finals = of(LAST).filter(Pair::is_ok).collect();
        Self { adds, deletes, finals, pairs }
    }

    fn lost(&self, excused: &Excused) -> Vec<Anomaly> {
        let promised = self.adds.iter().filter(|(id, add)| !self.deletes.contains_key(**id) && !excused.loses(add));
        let missing =
            promised.filter(|(id, _)| !self.finals.is_empty() && !self.finals.iter().any(|read| has(read, id)));
        missing
            .map(|(id, add)| {
                let read = self.finals.iter().filter_map(|read| read.complete).map(|op| op.index).next();
                Anomaly::new(
                    format!("server {id} was acknowledged and is nowhere"),
                    indices(add).into_iter().chain(read),
                )
            })
            .collect()
    }

    fn stale(&self, excused: &Excused) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        for pair in self.finals.windows(2) {
            let [one, two] = pair else { continue };
            let differs = listed(one).symmetric_difference(&listed(two)).next().copied();
            if let Some(id) = differs {
                let what = format!("{} and {} do not agree on server {id}", site_of(one), site_of(two));
                anomalies
                    .push(Anomaly::new(what, [one, two].iter().filter_map(|read| read.complete).map(|op| op.index)));
            }
        }
        // Each session reads what it was told: at one site, and within one life of its replica.
        for read in self.reads() {
            let mine = |(id, add): &(&&str, &Pair<'_>)| {
                add.invoke.process == read.invoke.process
                    && ended(add) < read.invoke.index
                    && !self.deletes.get(**id).is_some_and(|all| all.iter().any(|one| one.invoke.index < ended(read)))
                    && !excused.touched(site_of(read), add.invoke.time, read.complete.map_or(0, |op| op.time))
                    && !excused.loses(add)
            };
            let unseen = self.adds.iter().filter(mine).find(|(id, _)| !has(read, id));
            if let Some((id, add)) = unseen {
                let what = format!("{} does not list server {id}, which it has just acknowledged", site_of(read));
                anomalies.push(Anomaly::new(what, indices(add).into_iter().chain(read.complete.map(|op| op.index))));
            }
        }
        anomalies
    }

    fn reads(&self) -> impl Iterator<Item = &Pair<'a>> {
        self.pairs.iter().filter(|pair| matches!(pair.invoke.f.as_str(), "read" | LAST) && pair.is_ok())
    }

    fn resurrected(&self, excused: &Excused) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        for (id, deletes) in &self.deletes {
            let Some(done) = deletes.iter().find(|pair| pair.is_ok() && !excused.loses(pair)) else { continue };
            let back = self.finals.iter().find(|read| listed(read).contains(id)).and_then(|read| read.complete);
            if let Some(back) = back {
                let what = format!("server {id} was deleted, and is there in the end");
                anomalies.push(Anomaly::new(what, indices(done).into_iter().chain([back.index])));
            }
        }
        // At one site: there, gone, and there again.
        let mut gone: HashMap<(u32, u64), HashMap<&str, u64>> = HashMap::new();
        let mut there: HashMap<(u32, u64), BTreeSet<&str>> = HashMap::new();
        for read in self.reads() {
            let Some(done) = read.complete else { continue };
            let life = (client_of(read.invoke.process), excused.life(site_of(read), done.time));
            if excused.touched(site_of(read), read.invoke.time, done.time) {
                continue;
            }
            let (now, gone) = (everything(read), gone.entry(life).or_default());
            if let Some(id) = now.iter().find(|id| gone.contains_key(**id)) {
                let what = format!("server {id} was gone from {}, and has come back", site_of(read));
                anomalies.push(Anomaly::new(what, [gone.get(id).copied().unwrap_or_default(), done.index]));
            }
            let before = there.insert(life, now.clone()).unwrap_or_default();
            gone.extend(before.difference(&now).map(|id| (*id, done.index)));
        }
        anomalies
    }

    fn duplicated(&self) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        let mut given: HashMap<&str, &Pair<'_>> = HashMap::new();
        let adds = self.pairs.iter().filter(|pair| pair.invoke.f == "add");
        for add in adds.clone().filter(|pair| pair.is_ok()) {
            let id = text(result(add), "id");
            if let Some(other) = given.insert(id, add) {
                let both = indices(other).into_iter().chain(indices(add));
                anomalies.push(Anomaly::new(format!("the id {id} was given twice"), both));
            }
        }
        let tries: HashMap<&str, &Pair<'_>> = adds.map(|pair| (text(&pair.invoke.value, "name"), pair)).collect();
        for read in &self.finals {
            let (mut names, mut ids): (HashMap<&str, &str>, HashSet<&str>) = (HashMap::new(), HashSet::new());
            for (id, name) in rows(read, "servers").chain(rows(read, "deleting")) {
                let add = tries.get(name);
                let refused = add.is_none_or(|add| add.kind() == Kind::Fail);
                let why = if !ids.insert(id) {
                    format!("server {id} is listed twice")
                } else if names.insert(name, id).is_some() {
                    format!("one request made two servers {name}")
                } else if refused {
                    format!("server {name} was refused, or never asked for, and is there")
                } else {
                    continue;
                };
                let shown = add.map(|add| indices(add)).unwrap_or_default();
                anomalies.push(Anomaly::new(why, shown.into_iter().chain(read.complete.map(|op| op.index))));
            }
        }
        anomalies
    }
}

fn rows<'a>(read: &Pair<'a>, key: &str) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    let rows = result(read)[key].as_array().into_iter().flatten();
    rows.map(|row| (row[0].as_str().unwrap_or_default(), row[1].as_str().unwrap_or_default()))
}

/// What is there, and not on its way out.
fn listed<'a>(read: &Pair<'a>) -> BTreeSet<&'a str> {
    rows(read, "servers").map(|(id, _)| id).collect()
}

fn everything<'a>(read: &Pair<'a>) -> BTreeSet<&'a str> {
    rows(read, "servers").chain(rows(read, "deleting")).map(|(id, _)| id).collect()
}

fn has(read: &Pair<'_>, id: &str) -> bool {
    rows(read, "servers").chain(rows(read, "deleting")).any(|(other, _)| other == id)
}

/// Faults for the proof of the checkers.
pub(super) fn seeded() -> Vec<Seeded> {
    let add = |story: Story, process, name: &str, id: &str| {
        story.ok(process, "add", json!({"name": name}), json!({"id": id}))
    };
    let delete = |story: Story, process, id: &str| story.ok(process, "delete", json!({"id": id}), json!({"id": id}));
    let list = |rows: &[(&str, &str)]| json!({"servers": rows.iter().map(|(id, name)| json!([id, name])).collect::<Vec<_>>(), "deleting": []});
    let read = |story: Story, process, f: &str, rows: &[(&str, &str)]| story.ok(process, f, json!({}), list(rows));
    let ends = |story: Story, first: &[(&str, &str)], second: &[(&str, &str)]| {
        read(read(story, 0, LAST, first), 1, LAST, second)
    };
    let (a, b) = (("1", "a"), ("2", "b"));
    let two = add(add(Story::new(NAME), 0, "a", "1"), 1, "b", "2");
    let gone = delete(two.clone(), 2, "1");
    let unknown = two.clone().info(2, "delete", json!({"id": "1"}));
    let seeded = |checker, bug, good, bad| Seeded::new(NAME, checker, bug, good, bad);
    vec![
        seeded("lost", "an acknowledgement is lost", ends(unknown, &[b], &[b]), ends(two.clone(), &[b], &[b])),
        seeded(
            "lost",
            "a disk is lost, and with it what others had",
            ends(two.clone().wiped("paris"), &[b], &[b]),
            ends(two.clone().wiped("paris"), &[a], &[a]),
        ),
        seeded(
            "stale",
            "one site never hears of it",
            ends(two.clone(), &[a, b], &[a, b]),
            ends(two.clone(), &[a, b], &[b]),
        ),
        seeded(
            "stale",
            "a site does not list what it has just acknowledged",
            ends(read(two.clone(), 1, "read", &[b]), &[a, b], &[a, b]),
            ends(read(two.clone(), 1, "read", &[]), &[a, b], &[a, b]),
        ),
        seeded("resurrected", "a deleted server is back", ends(gone.clone(), &[b], &[b]), ends(gone, &[a, b], &[a, b])),
        seeded(
            "resurrected",
            "a site forgets a deletion",
            ends(read(read(two.clone(), 2, "read", &[a]), 2, "read", &[a, b]), &[a, b], &[a, b]),
            {
                let first = read(two.clone(), 2, "read", &[a, b]);
                ends(read(read(first, 2, "read", &[b]), 2, "read", &[a, b]), &[a, b], &[a, b])
            },
        ),
        seeded(
            "duplicated",
            "one id for two servers",
            ends(two.clone(), &[a, b], &[a, b]),
            ends(add(two.clone(), 2, "c", "1"), &[a, b], &[a, b]),
        ),
        seeded(
            "duplicated",
            "one request makes two servers",
            ends(two.clone(), &[a, b], &[a, b]),
            ends(two.clone(), &[a, b, ("3", "b")], &[a, b, ("3", "b")]),
        ),
        seeded(
            "duplicated",
            "what was refused is there",
            ends(two.clone().info(2, "add", json!({"name": "c"})), &[a, b, ("3", "c")], &[a, b, ("3", "c")]),
            ends(two.fail(2, "add", json!({"name": "c"}), "403 no"), &[a, b, ("3", "c")], &[a, b, ("3", "c")]),
        ),
    ]
}
