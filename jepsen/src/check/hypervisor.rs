//! What runs is what the API says: libvirt is asked beside the API, and neither is believed.
//!
//! While servers come and go the two differ for a moment, and a migration shows one domain twice. So what is judged is the
//! end, when nothing is under way any more; and a server that runs on two hosts at once, at any time.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Finding, seconds, some};
use crate::client::Client;
use crate::run::{Domains, Run};

/// What the API says of a host's servers now, by id: for [`Domains::said`].
#[must_use]
pub fn said(client: &Client, host: &str) -> Option<BTreeMap<String, String>> {
    let path = "/compute/v2.1/servers/detail?all_tenants=1";
    let answer = client.call("GET", path, None).ok()?;
    let servers = answer["servers"].as_array()?.iter();
    let there = servers.filter(|server| server["OS-EXT-SRV-ATTR:host"].as_str() == Some(host));
    let one = |server: &Value| Some((server["id"].as_str()?.to_owned(), server["status"].as_str()?.to_owned()));
    there.map(one).collect()
}

/// Two answers of hypervisors that are no further apart are of one moment, nanoseconds.
const MOMENT: u64 = 5_000_000_000;

pub(super) fn truth(run: &Run) -> Finding {
    if run.domains.is_empty() {
        return Finding::unknown("No hypervisor was asked.");
    }
    let mut cases = twice(run);
    let mut last: BTreeMap<&str, &Domains> = BTreeMap::new();
    for domains in run.domains.iter().filter(|domains| domains.time >= run.healed) {
        last.insert(&domains.host, domains);
    }
    let (mut compared, mut servers) = (0_u64, 0_usize);
    for domains in last.values() {
        let Some(said) = &domains.said else { continue };
        compared += 1;
        servers += said.len();
        cases.extend(differs(domains, said));
    }
    let asked = run.domains.len();
    let detail = json!({"asked": asked, "hosts compared": compared, "servers": servers, "cases": some(&cases)});
    match cases.first() {
        Some(case) => {
            let what = case["what"].as_str().unwrap_or_default();
            let summary = format!("{} servers are not what the API says; {} {what}.", cases.len(), case["server"]);
            Finding::broken(summary, detail, Vec::new())
        }
        None => {
            let summary = format!(
                "{asked} times a hypervisor was asked; in the end {servers} servers of {compared} hosts were what the API says."
            );
            Finding::held(summary, detail)
        }
    }
}

fn case(domains: &Domains, server: &str, what: String) -> Value {
    json!({"at": seconds(domains.time), "host": domains.host, "server": server, "what": what})
}

/// Servers that two hosts were seen to run, one before and after the other or within one moment.
fn twice(run: &Run) -> Vec<Value> {
    let mut cases = Vec::new();
    let mut last: BTreeMap<&str, Vec<&Domains>> = BTreeMap::new();
    for domains in &run.domains {
        for server in &domains.running {
            let seen = last.entry(server).or_default();
            let other = seen.iter().rev().find(|one| one.host != domains.host);
            let near = other.is_some_and(|one| domains.time.saturating_sub(one.time) < MOMENT);
            let still = |one: &&Domains| {
                run.domains
                    .iter()
                    .any(|later| later.host == one.host && later.time > domains.time && later.running.contains(server))
            };
            if let Some(other) = other.filter(|other| near && still(other)) {
                cases.push(case(domains, server, format!("runs there and on {}", other.host)));
            }
            seen.push(domains);
        }
    }
    cases
}

/// Where one host and the API differ.
fn differs<'a>(domains: &'a Domains, said: &'a BTreeMap<String, String>) -> impl Iterator<Item = Value> + 'a {
    let runs = |id: &String| domains.running.contains(id);
    let orphans = domains.running.iter().filter(|id| !said.contains_key(*id));
    let orphans = orphans.map(|id| case(domains, id, "runs, and the API knows no such server".into()));
    let wrong = said.iter().filter_map(move |(id, status)| match (status.as_str(), runs(id)) {
        ("ACTIVE" | "PAUSED", false) => Some(case(domains, id, format!("is {status}, and does not run"))),
        ("SHUTOFF" | "SUSPENDED" | "ERROR", true) => Some(case(domains, id, format!("is {status}, and runs"))),
        _ => None,
    });
    orphans.chain(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::SECOND;
    use crate::workload::Valid;

    fn domains(time: u64, host: &str, running: &[&str], said: &[(&str, &str)]) -> Domains {
        let said = said.iter().map(|(id, status)| ((*id).to_owned(), (*status).to_owned())).collect();
        let running = running.iter().map(|id| (*id).to_owned()).collect();
        Domains { time: time * SECOND, host: host.into(), running, said: Some(said), ..Domains::default() }
    }

    fn run(domains: Vec<Domains>) -> Run {
        Run { domains, ..Run::default() }
    }

    #[test]
    fn what_runs_is_what_the_api_says() {
        let valid = |running: &[&str], said: &[(&str, &str)]| truth(&run(vec![domains(9, "h1", running, said)])).valid;
        assert_eq!(valid(&["a"], &[("a", "ACTIVE"), ("b", "SHUTOFF")]), Valid::True);
        assert_eq!(valid(&["a"], &[]), Valid::False, "an orphan");
        assert_eq!(valid(&[], &[("a", "ACTIVE")]), Valid::False, "it does not run");
        assert_eq!(valid(&["a"], &[("a", "SHUTOFF")]), Valid::False, "it runs on");
        let early = vec![domains(1, "h1", &["a"], &[]), domains(9, "h1", &["a"], &[("a", "ACTIVE")])];
        assert_eq!(truth(&run(early)).valid, Valid::True, "only the end counts");
    }

    #[test]
    fn no_server_runs_on_two_hosts() {
        let both = |h1: &[&str]| {
            vec![
                domains(1, "h1", &["a"], &[]),
                domains(2, "h2", &["a"], &[("a", "ACTIVE")]),
                domains(3, "h1", h1, &[]),
                domains(9, "h1", &[], &[]),
            ]
        };
        assert_eq!(truth(&run(both(&["a"]))).valid, Valid::False);
        assert_eq!(truth(&run(both(&[]))).valid, Valid::True, "it has moved");
    }
}
