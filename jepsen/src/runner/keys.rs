//! A workload that needs next to nothing: key pairs are made everywhere and listed everywhere. What was acknowledged is there in
//! the end, everywhere; what was never made is not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use serde_json::{Value, json};

use crate::client::{Client, Trouble};
use crate::history::{History, Kind, Outcome};
use crate::run::excuses;
use crate::workload::{Cloud, Invocation, Session, Valid, Verdict, Workload};

/// A public key of nobody's.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f nobody";

/// Names on a page.
const PAGE: usize = 1_000;

/// The workload.
#[derive(Default)]
pub struct Keys {
    next: AtomicU64,
}

/// All names, page by page. What is made meanwhile may be on none of them.
fn all(session: &Session, path: &str) -> Result<Vec<String>, Trouble> {
    let mut names: Vec<String> = Vec::new();
    loop {
        let marker = names.last().map(|name| format!("&marker={name}")).unwrap_or_default();
        let answer = session.client.get(&format!("{path}?limit={PAGE}{marker}"))?;
        let page = answer["keypairs"].as_array().cloned().unwrap_or_default();
        names.extend(page.iter().filter_map(|key| key["keypair"]["name"].as_str().map(str::to_owned)));
        if page.len() < PAGE {
            return Ok(names);
        }
    }
}

impl Workload for Keys {
    fn name(&self) -> &'static str {
        "keys"
    }

    fn setup(&self, _: &Cloud, _: &[Client]) -> Result<()> {
        Ok(())
    }

    fn next(&self, session: &mut Session) -> Option<Invocation> {
        Some(if session.rng.chance(600) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            Invocation { f: "add", value: json!(format!("key-{number}")) }
        } else {
            Invocation { f: "read", value: Value::Null }
        })
    }

    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome {
        let path = "/compute/v2.1/os-keypairs";
        if invocation.f == "add" {
            let body = json!({"keypair": {"name": invocation.value, "public_key": KEY}});
            let made = session.client.post(path, &body);
            return made.map_or_else(Into::into, |_| Outcome::Ok(invocation.value.clone()));
        }
        all(session, path).map_or_else(Into::into, |names| Outcome::Ok(json!(names)))
    }

    fn finish(&self, _: &mut Session) -> Vec<Invocation> {
        vec![Invocation { f: "read", value: Value::Null }]
    }

    fn check(&self, history: &History, all: &History) -> Vec<Verdict> {
        let excuses = excuses(all);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut tried = BTreeSet::new();
        let mut acknowledged = Vec::new();
        for pair in history.pairs().into_iter().filter(|pair| pair.invoke.f == "add") {
            let name = text(&pair.invoke.value);
            tried.insert(name.clone());
            let Some(done) = pair.complete.filter(|op| op.kind == Kind::Ok) else { continue };
            let site = done.site.as_deref().unwrap_or_default();
            if !excuses.iter().any(|excuse| excuse.covers(site, done.time)) {
                acknowledged.push((name, done.index));
            }
        }
        let reads = history.0.iter().filter(|op| op.kind == Kind::Ok && op.f == "read");
        let last: std::collections::BTreeMap<_, _> = reads.map(|op| (op.process, op)).collect();
        let mut wrong = Vec::new();
        let mut anomaly = BTreeSet::new();
        for read in last.values() {
            let seen: BTreeSet<String> = read.value.as_array().into_iter().flatten().map(text).collect();
            for (name, index) in acknowledged.iter().filter(|(name, _)| !seen.contains(name)) {
                wrong.push(format!("{name} was lost"));
                anomaly.extend([*index, read.index]);
            }
            for name in seen.iter().filter(|name| name.starts_with("key-") && !tried.contains(*name)) {
                wrong.push(format!("{name} was never made"));
                anomaly.insert(read.index);
            }
        }
        let valid = if wrong.is_empty() { Valid::True } else { Valid::False };
        vec![Verdict {
            workload: "keys".into(),
            checker: "keys".into(),
            rule: "acknowledged-is-durable: what was acknowledged is there in the end, everywhere".into(),
            valid,
            summary: format!("{} acknowledged, {} wrong", acknowledged.len(), wrong.len()),
            detail: json!({"wrong": wrong}),
            anomaly: anomaly.into_iter().take(20).collect(),
        }]
    }
}
