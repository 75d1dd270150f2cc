//! A few servers that all sites create, stop, start, rename and delete at once.
//!
//! However these race, in the end every server has one state, the same at all sites, that somebody wished for; what was
//! deleted is gone; and the hypervisors run what the sites say, each once, and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::stage::{Anomaly, Excused, Rule, Stage, Worth, failed_with, indices, lock, one_of, result, site_of, text};
use super::story::Story;
use super::{Cloud, Invocation, Seeded, Session, Verdict, Workload};
use crate::client::{Client, Trouble};
use crate::history::{History, Kind, Outcome, Pair};
use crate::run::Domains;

const NAME: &str = "lifecycle";
/// So many servers are there at a time.
const SERVERS: usize = 8;
/// How long servers may take to come to rest after everything was healed.
const REST: Duration = Duration::from_secs(300);

const AGREED: Rule =
    Rule { workload: NAME, checker: "one-state", rule: "In the end all sites show the same state of every server." };
const SETTLED: Rule = Rule {
    workload: NAME,
    checker: "settled",
    rule: "In the end nothing is on its way: what was deleted is gone, and what was wished for is so.",
};
const WISHED: Rule = Rule {
    workload: NAME,
    checker: "wished",
    rule: "A server is there unless somebody may have deleted it, and is as somebody wished.",
};
const RUNS: Rule = Rule {
    workload: NAME,
    checker: "runs-once",
    rule: "In the end hypervisors run what the sites say: nothing twice, nothing that was deleted.",
};

/// The workload.
#[derive(Default)]
pub(super) struct Lifecycle {
    stage: Stage,
    live: Mutex<Vec<String>>,
    /// Whether some session asks the hypervisors: one does.
    asks: AtomicBool,
}

impl Workload for Lifecycle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn setup(&self, cloud: &Cloud, clients: &[Client]) -> Result<()> {
        let quota = json!({"instances": 1_000, "cores": 1_000, "ram": 1 << 30});
        self.stage.prepare(cloud, clients, NAME, (1, 64), &quota)
    }

    fn next(&self, session: &mut Session) -> Option<Invocation> {
        let live = lock(&self.live).clone();
        let dice = session.rng.below(1000);
        if live.len() < SERVERS || dice < 80 {
            let value = json!({"name": format!("life-{}", self.stage.fresh()), "zone": self.stage.any_site(session)});
            return Some(Invocation { f: "create", value });
        }
        let id = one_of(&live, session.rng.bits())?.clone();
        Some(match dice {
            80..=159 => Invocation { f: "delete", value: json!({"id": id}) },
            160..=399 => Invocation { f: "stop", value: json!({"id": id}) },
            400..=639 => Invocation { f: "start", value: json!({"id": id}) },
            640..=799 => {
                Invocation { f: "rename", value: json!({"id": id, "name": format!("life-{}", self.stage.fresh())}) }
            }
            _ => Invocation { f: "read", value: json!({}) },
        })
    }

    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome {
        self.run(session, invocation).map_or_else(Outcome::from, Outcome::Ok)
    }

    fn finish(&self, _: &mut Session) -> Vec<Invocation> {
        let first = !self.asks.swap(true, Ordering::Relaxed);
        let domains = first.then(|| Invocation { f: "domains", value: json!({}) });
        std::iter::once(Invocation { f: "final", value: json!({}) }).chain(domains).collect()
    }

    fn check(&self, history: &History, all: &History) -> Vec<Verdict> {
        let seen = Seen::of(history);
        let excused = Excused::of(all);
        // A server that is stopped cannot be stopped: that is contention, not trouble.
        let raced = |pair: &Pair<'_>| failed_with(pair, "409") || failed_with(pair, "404");
        let made = !seen.creates.is_empty();
        let worth = Worth::of(history, 20, raced).needs(made, "nothing was made");
        let ends = worth.needs(!seen.finals.is_empty(), "nobody read in the end");
        let asked = ends.clone().needs(seen.domains.is_some(), "no hypervisor was asked");
        vec![
            AGREED.verdict(&ends, seen.disagreements()),
            SETTLED.verdict(&ends, seen.unsettled(&excused)),
            WISHED.verdict(&ends, seen.unwished(&excused)),
            RUNS.verdict(&asked, seen.strays(&excused)),
        ]
    }
}

impl Lifecycle {
    fn run(&self, session: &Session, invocation: &Invocation) -> Result<Value, Trouble> {
        let client = self.stage.client(session)?;
        let (value, id) = (&invocation.value, text(&invocation.value, "id"));
        match invocation.f {
            "create" => {
                let id = self.stage.create(session, text(value, "name"), text(value, "zone"))?;
                lock(&self.live).push(id.clone());
                return Ok(json!({"id": id}));
            }
            "delete" => {
                client.delete_server(id)?;
                lock(&self.live).retain(|other| other != id);
            }
            "stop" => client.act(id, "os-stop")?,
            "start" => client.act(id, "os-start")?,
            "rename" => client.rename_server(id, text(value, "name"))?,
            "domains" => return Err(Trouble::Unsent("nobody asks the hypervisors".into())),
            "final" => return at_rest(&client),
            _ => return servers(&client),
        }
        Ok(value.clone())
    }
}

/// What is shown of each server.
fn servers(client: &Client) -> Result<Value, Trouble> {
    let one = |server: &Value| {
        json!({
            "id": server["id"], "name": server["name"], "status": server["status"],
            "task": server["OS-EXT-STS:task_state"], "zone": server["OS-EXT-AZ:availability_zone"],
            "host": server["OS-EXT-SRV-ATTR:host"],
        })
    };
    Ok(json!({"servers": client.servers()?.iter().map(one).collect::<Vec<_>>()}))
}

/// The servers once they are at rest, or after a while as they are then.
fn at_rest(client: &Client) -> Result<Value, Trouble> {
    let until = Instant::now() + REST;
    loop {
        let seen = client.insist(REST, servers)?;
        let rests = seen["servers"].as_array().into_iter().flatten().all(is_at_rest);
        if rests || Instant::now() >= until {
            return Ok(seen);
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn is_at_rest(server: &Value) -> bool {
    server["task"].is_null() && matches!(text(server, "status"), "ACTIVE" | "SHUTOFF")
}

/// A history, looked up.
struct Seen<'a> {
    pairs: Vec<Pair<'a>>,
    creates: BTreeMap<&'a str, Pair<'a>>,
    finals: Vec<(&'a str, u64, BTreeMap<&'a str, &'a Value>)>,
    domains: Option<(u64, Vec<Domains>)>,
}

impl<'a> Seen<'a> {
    fn of(history: &'a History) -> Self {
        let pairs = history.pairs();
        let of = |f: &'static str| pairs.iter().filter(move |pair| pair.invoke.f == f && pair.is_ok()).copied();
        let creates = of("create").map(|pair| (text(result(&pair), "id"), pair)).collect();
        let rows = |pair: &Pair<'a>| {
            let rows = result(pair)["servers"].as_array().into_iter().flatten();
            rows.map(|row| (text(row, "id"), row)).collect::<BTreeMap<_, _>>()
        };
        let finals = of("final").map(|pair| (site_of(&pair), super::stage::ended(&pair), rows(&pair))).collect();
        let told = of("domains").last();
        let domains = told.and_then(|pair| {
            let list = serde_json::from_value(result(&pair)["domains"].clone()).ok()?;
            Some((super::stage::ended(&pair), list))
        });
        Self { creates, finals, domains, pairs }
    }

    /// Operations on a server that may have happened.
    fn tried(&self, f: &str, id: &str) -> Vec<Pair<'a>> {
        let of =
            |pair: &&Pair<'a>| pair.invoke.f == f && pair.kind() != Kind::Fail && text(&pair.invoke.value, "id") == id;
        self.pairs.iter().filter(of).copied().collect()
    }

    /// Whether a server's host was lost with its disk: what becomes of it is not said.
    fn is_lost(&self, id: &str, row: Option<&Value>, excused: &Excused) -> bool {
        let create = self.creates.get(id);
        let zone = row.map(|row| text(row, "zone")).or(create.map(|create| text(&create.invoke.value, "zone")));
        let end = self.pairs.last().map_or(0, |pair| pair.invoke.time);
        zone.is_some_and(|zone| excused.touched(zone, 0, end)) || create.is_some_and(|create| excused.loses(create))
    }

    fn disagreements(&self) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        let state = |row: &&Value| (text(row, "name").to_owned(), text(row, "status").to_owned());
        for pair in self.finals.windows(2) {
            let [(one, first_at, first), (two, second_at, second)] = pair else { continue };
            let ids: BTreeSet<&str> = first.keys().chain(second.keys()).copied().collect();
            for id in ids {
                let (a, b) = (first.get(id).map(state), second.get(id).map(state));
                if a != b {
                    let what = format!("of server {id} {one} shows {a:?} in the end, and {two} {b:?}");
                    anomalies.push(Anomaly::new(what, [*first_at, *second_at]));
                }
            }
        }
        anomalies
    }

    fn unsettled(&self, excused: &Excused) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        for (site, at, rows) in &self.finals {
            for (id, row) in rows.iter().filter(|(id, row)| !is_at_rest(row) && !self.is_lost(id, Some(row), excused)) {
                let what = format!("{site} still shows server {id} as {} {}", text(row, "status"), row["task"]);
                let by = self.creates.get(id).map(indices).unwrap_or_default();
                anomalies.push(Anomaly::new(what, by.into_iter().chain([*at])));
            }
        }
        anomalies
    }

    fn unwished(&self, excused: &Excused) -> Vec<Anomaly> {
        let mut anomalies = Vec::new();
        for (site, at, rows) in &self.finals {
            for (id, create) in &self.creates {
                let row = rows.get(id).copied();
                if self.is_lost(id, row, excused) {
                    continue;
                }
                let deletes = self.tried("delete", id);
                let deleted = deletes.iter().find(|pair| pair.is_ok() && !excused.loses(pair));
                let (what, by) = match (row, deleted) {
                    (None, _) if deletes.is_empty() => ("was acknowledged, and is gone".to_owned(), indices(create)),
                    (Some(row), Some(deleted)) if row["task"] != "deleting" => {
                        ("was deleted, and is there".to_owned(), indices(deleted))
                    }
                    (Some(row), None) => match self.unwished_state(id, row, excused) {
                        Some(found) => found,
                        None => continue,
                    },
                    _ => continue,
                };
                anomalies.push(Anomaly::new(format!("at {site}, server {id} {what}"), by.into_iter().chain([*at])));
            }
        }
        anomalies
    }

    /// A name or a state of power that nobody wished for. Where both were wished, either may have been the last.
    fn unwished_state(&self, id: &str, row: &Value, excused: &Excused) -> Option<(String, Vec<u64>)> {
        let create = self.creates.get(id)?;
        // A rename may be answered 404 when the server was deleted behind it: then it has happened.
        let renames =
            self.pairs.iter().filter(|pair| pair.invoke.f == "rename" && text(&pair.invoke.value, "id") == id);
        let name = text(row, "name");
        if !renames.chain([create]).any(|pair| text(&pair.invoke.value, "name") == name) {
            return Some((format!("is called {name:?}, which nobody wished"), indices(create)));
        }
        let (stops, starts) = (self.tried("stop", id), self.tried("start", id));
        let stopped = stops.iter().find(|pair| pair.is_ok() && !excused.loses(pair));
        match (text(row, "status"), stopped) {
            ("ACTIVE", Some(stop)) if starts.is_empty() => {
                Some(("was stopped by all who touched it, and runs".into(), indices(stop)))
            }
            ("SHUTOFF", None) if stops.is_empty() => {
                Some(("was stopped by nobody, and does not run".into(), indices(create)))
            }
            _ => None,
        }
    }

    fn strays(&self, excused: &Excused) -> Vec<Anomaly> {
        let Some((at, domains)) = &self.domains else { return Vec::new() };
        let mut running: HashMap<&str, Vec<&Domains>> = HashMap::new();
        for domains in domains {
            for id in &domains.running {
                running.entry(id).or_default().push(domains);
            }
        }
        let mut anomalies = Vec::new();
        let mut found = |id: &str, what: String, by: Option<u64>| {
            let create = self.creates.get(id).map(indices).unwrap_or_default();
            anomalies.push(Anomaly::new(format!("server {id} {what}"), create.into_iter().chain([*at]).chain(by)));
        };
        let known = self.finals.iter().flat_map(|(_, _, rows)| rows.keys()).chain(self.creates.keys());
        let known: BTreeSet<&str> = known.copied().collect();
        for id in known {
            let on = running.get(id).map(Vec::as_slice).unwrap_or_default();
            if let [one, two, ..] = on {
                found(
                    id,
                    format!("runs twice: on {} of {} and on {} of {}", one.host, one.site, two.host, two.site),
                    None,
                );
            }
            for (site, read, rows) in &self.finals {
                let row = rows.get(id).copied();
                let (status, lost) = (row.map(|row| text(row, "status")), self.is_lost(id, row, excused));
                match (status, on.first()) {
                    (None, Some(on)) => {
                        found(id, format!("is gone, and runs on {} of {}", on.host, on.site), Some(*read))
                    }
                    (Some("SHUTOFF"), Some(on)) => {
                        found(id, format!("is off, says {site}, and runs on {}", on.host), Some(*read));
                    }
                    (Some("ACTIVE"), None) if !lost => {
                        found(id, format!("runs, says {site}, and no host has it"), Some(*read))
                    }
                    _ => {}
                }
            }
        }
        anomalies
    }
}

/// Faults for the proof of the checkers.
pub(super) fn seeded() -> Vec<Seeded> {
    let made = |id: &str| Story::new(NAME).ok(0, "create", json!({"name": id, "zone": "paris"}), json!({"id": id}));
    let act = |story: Story, process, f: &str| story.ok(process, f, json!({"id": "a"}), json!({"id": "a"}));
    let shown = |name: &str, status: &str| json!({"servers": [{"id": "a", "name": name, "status": status, "task": null, "zone": "paris", "host": "paris-1"}]});
    let last = |story: Story, process, seen: Value| story.ok(process, "final", json!({}), seen);
    let ends = |story: Story, one: &Value, two: &Value| last(last(story, 0, one.clone()), 1, two.clone());
    let none = json!({"servers": []});
    let (active, off) = (shown("a", "ACTIVE"), shown("a", "SHUTOFF"));
    let domains = |story: Story, paris: &[&str], lyon: &[&str]| {
        let host = |site: &str, running: &[&str]| json!({"time": 0, "site": site, "host": format!("{site}-1"), "running": running, "stopped": []});
        let all = json!({"domains": [host("paris", paris), host("lyon", lyon)]});
        story.ok(0, "domains", json!({}), all)
    };
    let runs = ends(made("a"), &active, &active);
    let gone = ends(act(made("a"), 1, "delete"), &none, &none);
    let stopped = act(made("a"), 1, "stop");
    let seeded = |checker, bug, good, bad| Seeded::new(NAME, checker, bug, good, bad);
    let mut building = active.clone();
    building["servers"][0]["task"] = json!("powering-on");
    vec![
        seeded("one-state", "two sites end with two states", runs.clone(), ends(made("a"), &active, &off)),
        seeded(
            "one-state",
            "two sites end with two names",
            runs.clone(),
            ends(made("a"), &active, &shown("b", "ACTIVE")),
        ),
        seeded("settled", "a server never comes to rest", runs.clone(), ends(made("a"), &active, &building)),
        seeded(
            "wished",
            "a deleted server is there",
            gone.clone(),
            ends(act(made("a"), 1, "delete"), &active, &active),
        ),
        seeded("wished", "an acknowledged server is gone", gone.clone(), ends(made("a"), &none, &none)),
        seeded("wished", "a stop is lost", ends(stopped.clone(), &off, &off), ends(stopped.clone(), &active, &active)),
        seeded("wished", "a name that nobody gave", runs.clone(), ends(made("a"), &shown("q", "ACTIVE"), &active)),
        seeded(
            "runs-once",
            "a server runs twice",
            domains(runs.clone(), &["a"], &[]),
            domains(runs.clone(), &["a"], &["a"]),
        ),
        seeded("runs-once", "a deleted server still runs", domains(gone.clone(), &[], &[]), domains(gone, &["a"], &[])),
        seeded("runs-once", "a server does not run", domains(runs.clone(), &["a"], &[]), domains(runs, &[], &[])),
        seeded(
            "runs-once",
            "a stopped server runs",
            domains(ends(stopped.clone(), &off, &off), &[], &[]),
            domains(ends(stopped, &off, &off), &["a"], &[]),
        ),
    ]
}
