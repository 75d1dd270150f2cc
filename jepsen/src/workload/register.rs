//! Names and metadata of a few servers, changed by all sites at once: registers, every write of which has its own value.
//!
//! Whatever was concurrent, in the end all sites show the same of the values that were written, and none that was surely
//! replaced; and no session, at its site, sees a value go and come back.

use std::sync::OnceLock;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::registers::{self, Access, Found, INITIAL, Step, judge};
use super::stage::{Excused, INSIST, Rule, Stage, Worth, client_of, ended, one_of, result, site_of, text};
use super::story::Story;
use super::{Cloud, Invocation, Seeded, Session, Verdict, Workload};
use crate::client::{Client, Trouble};
use crate::history::{History, Outcome, Pair};

const NAME: &str = "register";
/// Servers in use at once, each with a name and these items of metadata.
const SERVERS: usize = 3;
const ITEMS: [&str; 2] = ["a", "b"];

const GARBAGE: Rule = registers::garbage(NAME);
const MONOTONE: Rule = Rule {
    workload: NAME,
    checker: "monotone",
    rule: "No session reads what it knows to be replaced: reads at a site are monotone, and see its own writes.",
};
const CONVERGED: Rule = registers::converged(NAME);
const LOST: Rule = registers::lost(NAME);

/// The workload.
#[derive(Default)]
pub(super) struct Register {
    stage: Stage,
    servers: Servers,
}

/// Servers that serve as registers, a few at a time. A record keeps the history of its changes, and each costs more for it; what is
/// looked for is writes that meet, not how long a history may grow.
#[derive(Default)]
pub(super) struct Servers(OnceLock<Vec<Vec<String>>>);

/// Changes of one server before others are used.
const CHANGES: u64 = 400;

impl Servers {
    /// Makes them, so many for use at once, and waits until all sites know them.
    pub(super) fn make(
        &self,
        stage: &Stage,
        cloud: &Cloud,
        clients: &[Client],
        workload: &str,
        (at_once, items): (usize, &[&str]),
    ) -> Result<()> {
        // Half of the operations write.
        let sets = cloud.operations / 2 / (CHANGES * u64::try_from(at_once)?);
        let count = at_once * usize::try_from(sets.max(1))?;
        let all = make_servers(stage, cloud, clients, workload, count, items)?;
        let _ = self.0.set(all.chunks(at_once).map(<[String]>::to_vec).collect());
        Ok(())
    }

    /// Those in use after so many writes.
    pub(super) fn in_use(&self, written: u64) -> Option<&[String]> {
        let sets = self.0.get()?;
        let changes = CHANGES * u64::try_from(sets.first()?.len()).ok()?;
        let at = usize::try_from(written / changes).ok()?;
        sets.get(at).or(sets.last()).map(Vec::as_slice)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        self.0.get().into_iter().flatten().flatten()
    }
}

fn make_servers(
    stage: &Stage,
    cloud: &Cloud,
    clients: &[Client],
    workload: &str,
    count: usize,
    items: &[&str],
) -> Result<Vec<String>> {
    let quota = json!({"instances": 1_000, "cores": 1_000, "ram": 1 << 30});
    stage.prepare(cloud, clients, workload, (1, 64), &quota)?;
    let ground = stage.ground()?;
    let first = clients.first().context("a cloud without sites")?.as_user("admin", &cloud.password, &ground.name);
    let mut servers = Vec::new();
    for number in 0..count {
        let zone = one_of(&ground.sites, u64::try_from(number)?).cloned().unwrap_or_default();
        let id = first.create_server(INITIAL, &zone, &ground.name, &ground.image)?;
        let metadata: Map<String, Value> = items.iter().map(|item| ((*item).to_owned(), json!(INITIAL))).collect();
        first.post(&format!("/compute/v2.1/servers/{id}/metadata"), &json!({"metadata": metadata}))?;
        servers.push(id);
    }
    let last = servers.last().cloned().unwrap_or_default();
    let known = format!("/compute/v2.1/servers/{last}/metadata");
    for client in clients {
        let known = |client: &Client| match client.get(&known)?["metadata"].as_object() {
            Some(metadata) if metadata.len() == items.len() => Ok(()),
            _ => Err(Trouble::Unsent("its metadata are not known yet".into())),
        };
        client.insist(INSIST, known)?;
    }
    Ok(servers)
}

impl Workload for Register {
    fn name(&self) -> &'static str {
        NAME
    }

    fn setup(&self, cloud: &Cloud, clients: &[Client]) -> Result<()> {
        self.servers.make(&self.stage, cloud, clients, NAME, (SERVERS, &ITEMS))
    }

    fn next(&self, session: &mut Session) -> Option<Invocation> {
        let server = one_of(self.servers.in_use(self.stage.given())?, session.rng.bits())?.clone();
        if session.rng.chance(500) {
            return Some(Invocation { f: "read", value: json!({"server": server}) });
        }
        let field = one_of(&["name", ITEMS[0], ITEMS[1]], session.rng.bits()).copied().unwrap_or("name");
        let value = format!("{}-{}", session.process, self.stage.fresh());
        let register = format!("{server}/{field}");
        Some(Invocation { f: "write", value: json!({"register": register, "value": value}) })
    }

    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome {
        let value = &invocation.value;
        let done = self.stage.client(session).and_then(|client| match invocation.f {
            "write" => write(&client, text(value, "register"), text(value, "value")),
            "final" => client.insist(INSIST, |client| self.read_all(client)),
            _ => read(&client, text(value, "server")),
        });
        done.map_or_else(Outcome::from, Outcome::Ok)
    }

    fn finish(&self, _: &mut Session) -> Vec<Invocation> {
        vec![Invocation { f: "final", value: json!({}) }]
    }

    fn check(&self, history: &History, all: &History) -> Vec<Verdict> {
        let excused = Excused::of(all);
        let pairs = history.pairs();
        let steps = steps(&pairs, &excused, |pair| {
            (site_of(pair), (client_of(pair.invoke.process), excused.life(site_of(pair), pair.invoke.time)))
        });
        let Found { garbage, mut stale, flips, diverged, lost } = judge(&steps);
        stale.extend(flips);
        let worth = worth(history, &steps);
        let ends = worth.clone().needs(steps.iter().any(|step| step.last), "nobody read in the end");
        vec![
            GARBAGE.verdict(&worth, garbage),
            MONOTONE.verdict(&worth, stale),
            CONVERGED.verdict(&ends, diverged),
            LOST.verdict(&ends, lost),
        ]
    }
}

impl Register {
    fn read_all(&self, client: &Client) -> Result<Value, Trouble> {
        let mut all = Map::new();
        for server in self.servers.all() {
            if let Value::Object(values) = read(client, server)?["read"].take() {
                all.extend(values);
            }
        }
        Ok(json!({"read": all}))
    }
}

/// Whether writes of several sessions met.
pub(super) fn worth(history: &History, steps: &[Step<'_>]) -> Worth {
    let writes = steps.iter().filter(|step| matches!(step.access, Access::Write(..)));
    let writers: std::collections::BTreeSet<u32> = writes.map(|step| step.session.0).collect();
    Worth::of(history, 20, |_| false).needs(writers.len() > 1, "one session alone wrote")
}

/// Writes one register: a server's name, or an item of its metadata.
fn write(client: &Client, register: &str, value: &str) -> Result<Value, Trouble> {
    let (server, field) = register.split_once('/').unwrap_or_default();
    if field == "name" {
        client.rename_server(server, value)?;
    } else {
        let body = json!({"metadata": {field: value}});
        client.post(&format!("/compute/v2.1/servers/{server}/metadata"), &body)?;
    }
    Ok(json!({"register": register, "value": value}))
}

/// Reads all registers of one server, as one answer shows them.
fn read(client: &Client, server: &str) -> Result<Value, Trouble> {
    let shown = client.get(&format!("/compute/v2.1/servers/{server}"))?;
    Ok(json!({"read": registers(server, &shown["server"])}))
}

/// The registers of a server that an answer shows.
pub(super) fn registers(server: &str, shown: &Value) -> Map<String, Value> {
    let metadata = shown["metadata"].as_object().into_iter().flatten();
    let items = metadata.map(|(item, value)| (format!("{server}/{item}"), value.clone()));
    std::iter::once((format!("{server}/name"), shown["name"].clone())).chain(items).collect()
}

/// Operations on registers, out of a history. `place` says which site was asked, in which session.
pub(super) fn steps<'a>(
    pairs: &[Pair<'a>],
    excused: &Excused,
    place: impl Fn(&Pair<'a>) -> (&'a str, (u32, u64)),
) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    for pair in pairs {
        let invoked: &'a Value = &pair.invoke.value;
        let (site, session) = place(pair);
        let access = if pair.invoke.f == "write" {
            Access::Write(text(invoked, "register"), text(invoked, "value"))
        } else {
            let read = result(pair)["read"].as_object().into_iter().flatten();
            Access::Read(
                read.map(|(register, value)| (register.as_str(), value.as_str().unwrap_or_default())).collect(),
            )
        };
        let time = pair.complete.map_or(pair.invoke.time, |op| op.time);
        // What a replica said while its disk was changed under it was said by neither of its lives.
        if matches!(access, Access::Read(_)) && excused.touched(site, pair.invoke.time, time) {
            continue;
        }
        steps.push(Step {
            access,
            session,
            site,
            invoke: pair.invoke.index,
            complete: ended(pair),
            kind: pair.kind(),
            excused: excused.loses_at(pair, site),
            last: pair.invoke.f == "final",
        });
    }
    steps
}

/// Faults for the proof of the checkers.
pub(super) fn seeded() -> Vec<Seeded> {
    let write = |story: Story, process, value: &str| {
        story.ok(process, "write", json!({"register": "s/name", "value": value}), json!({}))
    };
    let read = |story: Story, process, f: &str, value: &str| {
        story.ok(process, f, json!({"server": "s"}), json!({"read": {"s/name": value}}))
    };
    let ends = |story: Story, first: &str, second: &str| read(read(story, 0, "final", first), 1, "final", second);
    let begun = read(write(write(Story::new(NAME), 0, "x"), 1, "y"), 2, "read", "x");
    let after = write(read(begun.clone(), 2, "read", "y"), 2, "z");
    let seeded = |checker, bug, good, bad| Seeded::new(NAME, checker, bug, good, bad);
    vec![
        seeded(
            "garbage",
            "a value out of nowhere",
            ends(begun.clone(), "x", "x"),
            ends(read(begun.clone(), 2, "read", "q"), "x", "x"),
        ),
        seeded(
            "garbage",
            "what was refused is read",
            read(begun.clone().info(0, "write", json!({"register": "s/name", "value": "w"})), 2, "read", "w"),
            read(begun.clone().fail(0, "write", json!({"register": "s/name", "value": "w"}), "409"), 2, "read", "w"),
        ),
        seeded(
            "monotone",
            "a session does not see its own write",
            read(after.clone(), 2, "read", "z"),
            read(after.clone(), 2, "read", "y"),
        ),
        seeded(
            "monotone",
            "a value comes back",
            read(begun.clone(), 2, "read", "y"),
            read(read(begun.clone(), 2, "read", "y"), 2, "read", "x"),
        ),
        seeded("converged", "two sites keep two values", ends(begun.clone(), "y", "y"), ends(begun.clone(), "x", "y")),
        seeded("lost-update", "an acknowledged write is lost", ends(after.clone(), "z", "z"), ends(after, "y", "y")),
        seeded(
            "lost-update",
            "nothing of the writes is left",
            ends(
                write(Story::new(NAME), 0, "x").wiped("paris").info(
                    1,
                    "write",
                    json!({"register": "s/name", "value": "y"}),
                ),
                "0",
                "0",
            ),
            ends(begun, "0", "0"),
        ),
    ]
}
