//! Contention for the last capacity of hosts, from all sites at once.
//!
//! A server holds its share of a host from the acknowledgement of its creation to the beginning of its deletion, whatever
//! happens in between. So at no time may the servers that are certain to be there exceed what their host, or their zone,
//! has. Those whose creation is unknown are counted by nobody, and those whose deletion is unknown no longer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use anyhow::Result;
use serde_json::{Value, json};

use super::stage::{Anomaly, Excused, INSIST, Own, Rule, Stage, Worth, failed_with, lock, one_of, result, text};
use super::story::Story;
use super::{Cloud, Invocation, Seeded, Session, Verdict, Workload};
use crate::client::{Client, Trouble};
use crate::history::{History, Kind, Outcome};

const NAME: &str = "claims";
/// Servers that fill a host: each takes 15 % of the smallest host's memory, and the rest is left to other workloads.
const SHARE: u64 = 15;

const BOOKED: Rule = Rule {
    workload: NAME,
    checker: "double-booking",
    rule: "At no time do the acknowledged servers of a host, or of a zone, exceed its capacity.",
};
const SEEN: Rule = Rule {
    workload: NAME,
    checker: "overbooked-view",
    rule: "No site ever shows more servers on a host than it has room for.",
};

/// The workload.
#[derive(Default)]
pub(super) struct Claims {
    stage: Stage,
    /// Memory of one server, MiB, and how many fit into all hosts.
    size: Mutex<(u64, usize)>,
    /// Servers that somebody knows of, and who made them.
    live: Mutex<Vec<(String, u32)>>,
    /// Whether the session has looked at the hosts.
    looked: Own<bool>,
}

impl Workload for Claims {
    fn name(&self) -> &'static str {
        NAME
    }

    fn setup(&self, cloud: &Cloud, clients: &[Client]) -> Result<()> {
        let hosts = clients.first().map(Client::hosts).transpose()?.unwrap_or_default();
        let memory = hosts.iter().filter_map(|host| host["capacity"]["MemoryMib"].as_u64());
        let size = (memory.clone().min().unwrap_or(0) * SHARE / 100).max(1);
        let fit = memory.map(|memory| memory / size).sum::<u64>();
        *lock(&self.size) = (size, usize::try_from(fit)?);
        let quota = json!({"instances": 100_000, "cores": 100_000, "ram": 1_u64 << 39});
        self.stage.prepare(cloud, clients, NAME, (1, size), &quota)
    }

    fn next(&self, session: &mut Session) -> Option<Invocation> {
        if !self.looked.with(session, |looked| std::mem::replace(looked, true)) {
            return Some(Invocation { f: "hosts", value: json!({}) });
        }
        let (size, fit) = *lock(&self.size);
        let live = lock(&self.live).clone();
        let deletes = if live.len() + 1 >= fit { 500 } else { 120 };
        let dice = session.rng.below(1000);
        if dice < 100 {
            return Some(Invocation { f: "read", value: json!({}) });
        }
        if session.rng.chance(deletes) {
            // What another site made may not be known here yet: rather one's own.
            let own: Vec<_> = live.iter().filter(|(_, by)| *by == session.process).cloned().collect();
            let from = if session.rng.chance(750) && !own.is_empty() { own } else { live };
            if let Some((id, _)) = one_of(&from, session.rng.bits()) {
                return Some(Invocation { f: "delete", value: json!({"id": id}) });
            }
        }
        let zone = if session.rng.chance(600) { session.client.site.clone() } else { self.stage.any_site(session) };
        let name = format!("claim-{}", self.stage.fresh());
        Some(Invocation { f: "create", value: json!({"name": name, "zone": zone, "memory": size}) })
    }

    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome {
        let done = match invocation.f {
            "hosts" => session.client.hosts().map(|hosts| capacities(&hosts)),
            "create" => self.create(session, &invocation.value),
            "delete" => self.delete(session, text(&invocation.value, "id")),
            "final" => self.stage.client(session).and_then(|client| client.insist(INSIST, servers)),
            _ => self.stage.client(session).and_then(|client| servers(&client)),
        };
        done.map_or_else(Outcome::from, Outcome::Ok)
    }

    fn finish(&self, _: &mut Session) -> Vec<Invocation> {
        vec![Invocation { f: "final", value: json!({}) }]
    }

    fn check(&self, history: &History, all: &History) -> Vec<Verdict> {
        let full = |pair: &crate::history::Pair<'_>| failed_with(pair, "No valid host");
        let contended = history.pairs().iter().any(full);
        let worth = Worth::of(history, 30, full).needs(contended, "no host was ever full");
        vec![
            BOOKED.verdict(&worth, double_booked(history, &Excused::of(all))),
            SEEN.verdict(&worth, overbooked_views(history)),
        ]
    }
}

impl Claims {
    fn create(&self, session: &Session, value: &Value) -> Result<Value, Trouble> {
        let id = self.stage.create(session, text(value, "name"), text(value, "zone"))?;
        lock(&self.live).push((id.clone(), session.process));
        Ok(json!({"id": id}))
    }

    fn delete(&self, session: &Session, id: &str) -> Result<Value, Trouble> {
        let done = self.stage.client(session)?.delete_server(id);
        // Whoever tried it has a reason to think that it goes.
        if !matches!(done, Err(Trouble::Refused { .. } | Trouble::Unsent(_))) {
            lock(&self.live).retain(|(other, _)| other != id);
        }
        done.map(|()| json!({"id": id}))
    }
}

/// What the living hosts have.
fn capacities(hosts: &[Value]) -> Value {
    let living = hosts.iter().filter(|host| host["dead"].is_null());
    let one =
        |host: &Value| json!({"host": host["name"], "site": host["site"], "memory": host["capacity"]["MemoryMib"]});
    json!({"hosts": living.map(one).collect::<Vec<_>>()})
}

/// The servers of the project and where they are.
fn servers(client: &Client) -> Result<Value, Trouble> {
    let one = |server: &Value| {
        json!({
            "id": server["id"], "host": server["OS-EXT-SRV-ATTR:host"], "zone": server["OS-EXT-AZ:availability_zone"],
            "memory": server["flavor"]["ram"], "status": server["status"],
        })
    };
    Ok(json!({"servers": client.servers()?.iter().map(one).collect::<Vec<_>>()}))
}

/// The most that each host, and each site, was ever said to have.
fn most(history: &History) -> BTreeMap<String, u64> {
    let mut most: BTreeMap<String, u64> = BTreeMap::new();
    for pair in history.pairs().iter().filter(|pair| pair.invoke.f == "hosts") {
        let mut sites: BTreeMap<String, u64> = BTreeMap::new();
        for host in result(pair)["hosts"].as_array().into_iter().flatten() {
            let memory = host["memory"].as_u64().unwrap_or(0);
            let place = most.entry(format!("host {}", text(host, "host"))).or_default();
            *place = (*place).max(memory);
            *sites.entry(format!("zone {}", text(host, "site"))).or_default() += memory;
        }
        for (site, memory) in sites {
            let place = most.entry(site).or_default();
            *place = (*place).max(memory);
        }
    }
    most
}

/// Where servers were ever seen: without evacuation, they stay there.
fn places(history: &History) -> HashMap<String, String> {
    let mut places = HashMap::new();
    for pair in history.pairs() {
        for server in result(&pair)["servers"].as_array().into_iter().flatten() {
            places.insert(text(server, "id").to_owned(), text(server, "host").to_owned());
        }
    }
    places
}

fn double_booked(history: &History, excused: &Excused) -> Vec<Anomaly> {
    let (most, places, pairs) = (most(history), places(history), history.pairs());
    // When each server is certain to begin, and certain to begin to end.
    let deletes = pairs.iter().filter(|pair| pair.invoke.f == "delete" && pair.kind() != Kind::Fail);
    let mut ends: HashMap<&str, u64> = HashMap::new();
    for pair in deletes {
        let end = ends.entry(text(&pair.invoke.value, "id")).or_insert(u64::MAX);
        *end = (*end).min(pair.invoke.index);
    }
    let mut spans: BTreeMap<String, Vec<(u64, u64, u64, u64)>> = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| pair.invoke.f == "create" && pair.is_ok() && !excused.loses(pair)) {
        let (id, Some(done)) = (text(result(pair), "id"), pair.complete) else { continue };
        let (zone, memory) = (text(&pair.invoke.value, "zone"), pair.invoke.value["memory"].as_u64().unwrap_or(0));
        let end = ends.get(id).copied().unwrap_or(u64::MAX);
        let span = (done.index, end, memory, done.time);
        spans.entry(format!("zone {zone}")).or_default().push(span);
        if let Some(host) = places.get(id).filter(|host| !host.is_empty()) {
            spans.entry(format!("host {host}")).or_default().push(span);
        }
    }
    let mut anomalies = Vec::new();
    for (place, spans) in &spans {
        let Some(capacity) = most.get(place) else { continue };
        let site = place.strip_prefix("zone ").unwrap_or_default();
        for (at, _, _, time) in spans {
            // A host whose disk was lost is another one afterwards: what the old one ran is nobody's promise.
            let there =
                |span: &&(u64, u64, u64, u64)| span.0 <= *at && *at < span.1 && !excused.touched(site, span.3, *time);
            let mut live: Vec<_> = spans.iter().filter(there).collect();
            live.sort_by_key(|span| std::cmp::Reverse(span.2));
            let sum: u64 = live.iter().map(|span| span.2).sum();
            if sum > *capacity {
                let mut taken = 0;
                let mut ops = Vec::new();
                for span in live.iter().take_while(|span| {
                    let enough = taken > *capacity;
                    taken += span.2;
                    !enough
                }) {
                    ops.push(span.0);
                }
                let what = format!("{place} has {capacity} MiB, and its acknowledged servers take {sum}");
                anomalies.push(Anomaly::new(what, ops));
            }
        }
    }
    anomalies
}

fn overbooked_views(history: &History) -> Vec<Anomaly> {
    let most = most(history);
    let mut anomalies = Vec::new();
    for pair in history.pairs() {
        let mut hosts: BTreeMap<String, u64> = BTreeMap::new();
        for server in result(&pair)["servers"].as_array().into_iter().flatten() {
            // What its host has refused, or has lost with its disk, holds nothing there.
            if server["status"] != "ERROR" {
                let memory = server["memory"].as_u64().unwrap_or(0);
                *hosts.entry(format!("host {}", text(server, "host"))).or_default() += memory;
            }
        }
        for (host, sum) in hosts {
            if let Some(capacity) = most.get(&host).filter(|capacity| sum > **capacity) {
                let what = format!("{host} has {capacity} MiB, and servers that take {sum} are shown on it");
                anomalies.push(Anomaly::new(what, pair.complete.map(|op| op.index)));
            }
        }
    }
    anomalies
}

/// Faults for the proof of the checkers.
pub(super) fn seeded() -> Vec<Seeded> {
    let create = |story: Story, process: u32, id: &str| {
        story.ok(process, "create", json!({"name": id, "zone": "paris", "memory": 40}), json!({"id": id}))
    };
    let refused = |story: Story| {
        let value = json!({"name": "z", "zone": "paris", "memory": 40});
        story.fail(2, "create", value, "409 No valid host was found")
    };
    let host = json!({"hosts": [{"host": "paris-1", "site": "paris", "memory": 100}]});
    let begun = Story::new(NAME).ok(0, "hosts", json!({}), host);
    let two = refused(create(create(begun.clone(), 0, "a"), 1, "b"));
    let listed = |ids: &[&str]| {
        let one = |id: &&str| json!({"id": id, "host": "paris-1", "zone": "paris", "memory": 40, "status": "ACTIVE"});
        json!({"servers": ids.iter().map(one).collect::<Vec<_>>()})
    };
    let deleted = two.clone().ok(0, "delete", json!({"id": "a"}), json!({"id": "a"}));
    let unknown = refused(create(two.clone().info(0, "delete", json!({"id": "a"})), 1, "c"));
    let lost = create(two.clone().wiped("paris"), 0, "c");
    let seeded = |bug, good, bad, checker| Seeded::new(NAME, checker, bug, good, bad);
    vec![
        seeded(
            "a third server on a host for two",
            create(deleted, 2, "c"),
            create(two.clone(), 2, "c"),
            "double-booking",
        ),
        seeded(
            "a deletion was refused, and its room given away",
            unknown,
            {
                let kept = two.clone().fail(0, "delete", json!({"id": "a"}), "409 Instance a is locked");
                create(kept, 1, "c")
            },
            "double-booking",
        ),
        seeded("a right is spent again after a restart", lost, create(two.clone(), 0, "c"), "double-booking"),
        seeded(
            "a site shows three servers on a host for two",
            two.clone().ok(2, "read", json!({}), listed(&["a", "b"])),
            two.ok(2, "read", json!({}), listed(&["a", "b", "c"])),
            "overbooked-view",
        ),
    ]
}
