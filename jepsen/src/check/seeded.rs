//! Faults put into a run by hand: what proves the checkers of the whole cloud. There is one good run, with which every
//! checker is content, and is so for a reason; each fault changes as little of it as it can.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::story::{SECOND, Story};
use crate::history::{Kind, Op};
use crate::run::{Domains, Fault, Run, Sample, Tip};

/// A fault put into a run.
#[derive(Clone, Copy, Debug)]
pub struct Seeded {
    /// The checker that must say that its rule was broken.
    pub checker: &'static str,
    /// What is wrong, in a few words.
    pub bug: &'static str,
    seed: fn(&mut Run),
}

impl Seeded {
    /// The good run with the fault in it.
    #[must_use]
    pub fn bad(&self) -> Run {
        let mut run = good();
        (self.seed)(&mut run);
        run
    }
}

const SITES: [&str; 3] = ["paris", "lyon", "rennes"];
/// The cut of paris from the others, seconds.
const CUT: (u64, u64) = (20, 40);
const SERVERS: usize = 60;

/// A good run: servers made everywhere, some while paris was cut off, one of them deleted; addresses; an end in which all agree.
#[must_use]
pub fn good() -> Run {
    let mut story = Story::new(&SITES);
    for n in 0..SERVERS {
        let (process, site) = (u32::try_from(n % 3).unwrap_or(0), SITES[n % 3]);
        story.ok(process, site, "create", json!({"name": format!("n{n}")}), json!({"id": format!("s{n}")}));
    }
    let all: Vec<String> = (0..SERVERS).map(|n| format!("s{n}")).collect();
    story.ok(0, "paris", "list", Value::Null, json!({"servers": all}));
    story.ok(0, "paris", "delete", json!({"id": "s0"}), Value::Null);
    let left = json!({"servers": all.get(1..), "deleting": []});
    story.ok(0, "paris", "list", Value::Null, left.clone());
    story.ok(0, "paris", "claim", json!({"count": 1}), json!({"claim": "c1", "addresses": ["192.0.2.1"]}));
    story.ok(1, "lyon", "claim", json!({"count": 2}), json!({"claim": "c2", "addresses": ["192.0.2.2/31"]}));
    let healed = story.now();
    for _ in 0..2 {
        for (process, site) in (0..).zip(SITES) {
            story.ok(process, site, "final", Value::Null, left.clone());
        }
    }
    let cut = SITES[1..].iter().flat_map(|other| [("paris", *other), (other, "paris")]);
    let cut = cut.map(|(one, other)| (one.to_owned(), other.to_owned())).collect();
    let (from, until) = (CUT.0 * SECOND, Some(CUT.1 * SECOND));
    let fault = Fault { name: "partition".into(), from, until, sites: vec!["paris".into()], cut, ..Fault::default() };
    let duration = story.now();
    let mut run = story.run;
    run.samples = (1..duration / SECOND / 5).flat_map(|n| SITES.map(|site| sample(n * 5, site))).collect();
    let hosts = [("paris", "p1", "s3"), ("lyon", "l1", "s1")];
    run.domains = hosts.map(|(site, host, server)| domains(duration, site, host, server)).into();
    Run { duration, healed, converged: Some(SECOND), faults: vec![fault], ..run }
}

fn sample(seconds: u64, site: &str) -> Sample {
    // Who is on the other side of the cut hears nothing of what is written.
    let number = if (CUT.0..CUT.1).contains(&seconds) && site != "paris" { CUT.0 / 5 } else { seconds / 5 };
    let frontier = BTreeMap::from([("a".to_owned(), Tip { number, hash: format!("{number:x}") })]);
    let of = |n: u64| json!({"Instances": n});
    let pool = json!({"id": "p", "subject": {"project": "1", "name": "dev"}, "minted": of(100), "burnt": of(10), "capacity": of(90),
        "claimed": of(60), "free": of(30), "rights": [], "conserved": true});
    let pools = json!({"pools": [pool], "conserved": true});
    let (time, digest) = (seconds * SECOND, Some(format!("digest of {number}")));
    Sample { time, answered: time + 1, site: site.into(), digest, frontier, pools, ..Sample::default() }
}

fn domains(time: u64, site: &str, host: &str, server: &str) -> Domains {
    let said = Some(BTreeMap::from([(server.to_owned(), "ACTIVE".to_owned())]));
    let (site, host, running) = (site.to_owned(), host.to_owned(), vec![server.to_owned()]);
    Domains { time, site, host, running, stopped: Vec::new(), said }
}

fn last(run: &mut Run) -> Option<&mut Sample> {
    run.samples.last_mut()
}

fn pool(run: &mut Run, change: impl Fn(&mut Value)) {
    if let Some(pool) = last(run).and_then(|sample| sample.pools.pointer_mut("/pools/0")) {
        change(pool);
    }
}

/// The completions of an operation, in order.
fn done<'a>(run: &'a mut Run, f: &str) -> Vec<&'a mut Op> {
    run.history.0.iter_mut().filter(|op| op.f == f && op.kind == Kind::Ok).collect()
}

/// Takes an id out of, or puts it into, one of several lists.
fn relist(run: &mut Run, f: &str, at: usize, change: impl Fn(&mut Vec<Value>)) {
    if let Some(list) = done(run, f).into_iter().nth(at).and_then(|op| op.value["servers"].as_array_mut()) {
        change(list);
    }
}

/// Operations at paris while it is cut off come to nothing.
fn silence(run: &mut Run, kind: Kind, error: &str) {
    let cut = (CUT.0 * SECOND)..(CUT.1 * SECOND);
    for op in run.history.0.iter_mut().filter(|op| op.kind == Kind::Ok && cut.contains(&op.time)).take(2) {
        (op.kind, op.error, op.value) = (kind, Some(error.to_owned()), Value::Null);
    }
}

/// At least one for every checker of the whole cloud.
pub const SEEDED: &[Seeded] = &[
    Seeded {
        checker: "no-double-booking",
        bug: "a claim more than there is",
        seed: |run| pool(run, |pool| (pool["claimed"], pool["free"]) = (json!({"Instances": 91}), json!({}))),
    },
    Seeded {
        checker: "conservation",
        bug: "a right vanishes",
        seed: |run| pool(run, |pool| pool["free"] = json!({"Instances": 29})),
    },
    Seeded {
        checker: "conservation",
        bug: "a right comes out of nothing",
        seed: |run| pool(run, |pool| pool["free"] = json!({"Instances": 31})),
    },
    Seeded {
        checker: "conservation",
        bug: "a mint is taken back",
        seed: |run| {
            pool(run, |pool| (pool["minted"], pool["free"]) = (json!({"Instances": 99}), json!({"Instances": 29})));
        },
    },
    Seeded {
        checker: "equal-digests",
        bug: "one site's state differs at equal frontiers",
        seed: |run| last(run).into_iter().for_each(|sample| sample.digest = Some("another".into())),
    },
    Seeded {
        checker: "no-going-back",
        bug: "entries are gone after a kill",
        seed: |run| {
            last(run).into_iter().flat_map(|sample| sample.frontier.values_mut()).for_each(|tip| tip.number -= 3)
        },
    },
    Seeded {
        checker: "no-going-back",
        bug: "an entry is replaced by another of its number",
        seed: |run| {
            let before = run.samples.len().saturating_sub(1 + SITES.len());
            let tips = run.samples.get(before).map(|sample| sample.frontier.clone()).unwrap_or_default();
            let other = |tip: Tip| Tip { hash: "of another".into(), ..tip };
            let frontier = tips.into_iter().map(|(replica, tip)| (replica, other(tip))).collect();
            last(run).into_iter().for_each(|sample| sample.frontier = BTreeMap::clone(&frontier));
        },
    },
    Seeded {
        checker: "convergence",
        bug: "a site never hears what was written while it was cut off",
        seed: |run| {
            for sample in run.samples.iter_mut().filter(|one| one.site == "lyon" && one.time > CUT.0 * SECOND) {
                (sample.frontier, sample.digest) = (self::sample(CUT.0, "lyon").frontier, Some("digest of 4".into()));
            }
        },
    },
    Seeded {
        checker: "convergence",
        bug: "the sites' digests differ in the end",
        seed: |run| {
            run.converged = None;
            last(run).into_iter().for_each(|sample| sample.digest = Some("another".into()));
        },
    },
    Seeded {
        checker: "availability",
        bug: "a site that is cut off does not answer",
        seed: |run| silence(run, Kind::Info, "no answer: timed out"),
    },
    Seeded {
        checker: "availability",
        bug: "a site that is cut off takes no connection",
        seed: |run| silence(run, Kind::Fail, "not connected: refused"),
    },
    Seeded {
        checker: "lost-acknowledgement",
        bug: "a server that was acknowledged is missing at one site",
        seed: |run| relist(run, "final", 4, |list| list.retain(|id| id != "s5")),
    },
    Seeded {
        checker: "lost-acknowledgement",
        bug: "a server that was acknowledged is missing everywhere",
        seed: |run| (0..6).for_each(|at| relist(run, "final", at, |list| list.retain(|id| id != "s5"))),
    },
    Seeded {
        checker: "duplicate",
        bug: "one id is given to two servers",
        seed: |run| done(run, "create").into_iter().skip(7).take(1).for_each(|op| op.value = json!({"id": "s6"})),
    },
    Seeded {
        checker: "duplicate",
        bug: "a list shows a server twice",
        seed: |run| relist(run, "final", 0, |list| list.push(json!("s9"))),
    },
    Seeded {
        checker: "resurrection",
        bug: "a server that was gone comes back",
        seed: |run| relist(run, "final", 0, |list| list.push(json!("s0"))),
    },
    Seeded {
        checker: "resurrection",
        bug: "a server that was deleted is there in the end",
        seed: |run| relist(run, "final", 5, |list| list.push(json!("s0"))),
    },
    Seeded {
        checker: "unique-addresses",
        bug: "two claims have one address",
        seed: |run| done(run, "claim").into_iter().take(1).for_each(|op| op.value["addresses"] = json!(["192.0.2.3"])),
    },
    Seeded {
        checker: "session-order",
        bug: "a site does not show what it acknowledged",
        seed: |run| relist(run, "list", 0, |list| list.retain(|id| id != "s57")),
    },
    Seeded {
        checker: "session-order",
        bug: "a site shows less than it showed before",
        seed: |run| relist(run, "list", 1, |list| list.retain(|id| id != "s1")),
    },
    Seeded {
        checker: "hypervisor",
        bug: "a domain runs on after its server was deleted",
        seed: |run| run.domains.iter_mut().take(1).for_each(|domains| domains.running.push("s0".into())),
    },
    Seeded {
        checker: "hypervisor",
        bug: "an ACTIVE server does not run",
        seed: |run| run.domains.iter_mut().take(1).for_each(|domains| domains.running.clear()),
    },
    Seeded {
        checker: "hypervisor",
        bug: "a server runs on two hosts",
        seed: |run| {
            let time = run.duration;
            let mut again = run.domains.clone();
            run.domains.push(domains(time + SECOND, "lyon", "l1", "s3"));
            again.iter_mut().for_each(|domains| domains.time = time + 2 * SECOND);
            run.domains.extend(again);
        },
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::check::{CHECKERS, all, judge};
    use crate::workload::Valid;

    #[test]
    fn with_the_good_run_every_checker_is_content() {
        for verdict in all(&good()) {
            assert_eq!(verdict.valid, Valid::True, "{}: {} {}", verdict.checker, verdict.summary, verdict.detail);
        }
    }

    #[test]
    fn every_seeded_fault_is_caught_by_its_checker() {
        for seeded in SEEDED {
            let checker = CHECKERS.iter().find(|checker| checker.name == seeded.checker);
            let verdict = checker.map(|checker| judge(checker, &seeded.bad()));
            let valid = verdict.as_ref().map(|verdict| verdict.valid);
            assert_eq!(valid, Some(Valid::False), "{}: {}: {verdict:?}", seeded.checker, seeded.bug);
        }
    }

    #[test]
    fn no_checker_is_without_a_fault_to_its_name() {
        let caught: BTreeSet<_> = SEEDED.iter().map(|seeded| seeded.checker).collect();
        for checker in CHECKERS {
            assert!(caught.contains(checker.name), "{}", checker.name);
        }
    }
}
