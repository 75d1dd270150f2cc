//! Certificates that were revoked: a part of the workload `auth`, whose operations the nemesis does.

use serde_json::Value;

use super::auth::BOUND;
use super::stage::{Anomaly, Rule, Worth, indices, text};
use super::story::Story;
use super::{Seeded, Verdict};
use crate::history::History;
use crate::run::{Fault, faults};

const NAME: &str = "auth";

const CERTIFICATE: Rule = Rule {
    workload: NAME,
    checker: "certificate-works",
    rule: "A replica whose certificate was revoked neither gives anything to a site nor takes anything from it, after 15 seconds \
           without faults.",
};

/// What the checker says, from all that happened.
pub(super) fn check(all: &History) -> Verdict {
    let (faults, mut looked, mut anomalies) = (faults(all), 0, Vec::new());
    for pair in all.pairs().iter().filter(|pair| pair.invoke.f == "certificate") {
        let Some(done) = pair.complete else { continue };
        let (asked, revoked) = (pair.invoke.time, done.value["revoked"].as_u64().unwrap_or(u64::MAX));
        let at_work = |fault: &Fault| {
            fault.from < done.time && fault.until.is_none_or(|until| until > asked.saturating_sub(BOUND))
        };
        if revoked.saturating_add(BOUND) > asked || faults.iter().any(at_work) {
            continue;
        }
        looked += 1;
        for site in done.value["sites"].as_array().into_iter().flatten() {
            let of = |key: &str| site[key] == Value::Bool(true);
            let (site, replica) = (text(site, "site"), text(&done.value, "replica"));
            let ways = [
                ("takes", "takes what it writes"),
                ("gives", "gives it what is written"),
                ("token", "takes its tokens"),
                ("talks", "is connected to it"),
            ];
            let Some((_, does)) = ways.iter().find(|(key, _)| of(key)) else { continue };
            let what = format!("the certificate of replica {replica} is revoked, and {site} {does}");
            anomalies.push(Anomaly::new(what, indices(pair)));
        }
    }
    let done = format!("{looked} times a replica was looked at whose certificate was revoked");
    let worth = Worth { done, worthless: None }
        .needs(looked > 0, "no certificate was revoked, or not long before other faults");
    CERTIFICATE.verdict(&worth, anomalies)
}

/// Faults for the proof of the checker.
pub(super) fn seeded() -> Vec<Seeded> {
    let looked = |does: &str| Story::new(NAME).cut().wait(1).heal().wait(30).certificate("lyon", does);
    let seeded = |bug, does| Seeded::new(NAME, "certificate-works", bug, looked(""), looked(does));
    vec![
        seeded("a site takes what a revoked replica writes", "takes"),
        seeded("a site gives what it writes to a revoked replica", "gives"),
        seeded("a token that a revoked replica issued works", "token"),
        seeded("a site is connected to a revoked replica", "talks"),
    ]
}
