//! The report of made-up runs: a good one, a bad one, an empty one and a huge one. The pages are left in the directory that
//! cargo gives to tests (`target/tmp/report`), to be looked at in a browser.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jepsen::check;
use jepsen::history::{Kind, Op, Process};
use jepsen::report;
use jepsen::run::{Domains, Fault, Run, Sample, Tip};
use jepsen::sim::rng::Rng;
use jepsen::workload::Valid;
use serde_json::{Value, json};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;

fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// A run with so many operations of so many processes at each of the sites, without an anomaly.
struct MadeUp {
    run: Run,
    rng: Rng,
    ops: Vec<Op>,
    made: Vec<(u64, String)>,
}

impl MadeUp {
    fn new(sites: &[&str], processes: u32, operations: u64, duration: u64) -> Self {
        let sites: Vec<String> = sites.iter().map(|site| (*site).to_owned()).collect();
        let versions = [("jepsen", "0.1.0"), ("luc", "0.1.0"), ("libvirt", "9.0.0"), ("kernel", "Linux 6.1 <&\"'>")];
        let run = Run {
            seed: 42,
            command: "jepsen run --sites 5 --nemesis partition,kill --every 15s --seed 42".into(),
            started: 1_700_000_000_000,
            duration,
            healed: duration - 20 * SECOND,
            converged: Some(700 * MILLI),
            versions: versions.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            sites,
            logs: vec!["logs/paris.log".into(), "logs/lyon.log".into()],
            ..Run::default()
        };
        let mut made_up = Self { run, rng: Rng::new(7, 0), ops: Vec::new(), made: Vec::new() };
        made_up.faults(duration);
        made_up.operations(processes, operations);
        made_up.samples();
        made_up
    }

    fn below(&mut self, n: u64) -> u64 {
        self.rng.below(n)
    }

    fn faults(&mut self, duration: u64) {
        let (mut at, mut turn) = (30 * SECOND, 0_usize);
        while at + 60 * SECOND < duration {
            let site = self.run.sites[turn % self.run.sites.len()].clone();
            let until = Some(at + (8 + self.below(10)) * SECOND);
            let others = self.run.sites.iter().filter(|other| **other != site);
            let cut = others.flat_map(|other| [(site.clone(), other.clone()), (other.clone(), site.clone())]).collect();
            let mut fault = Fault { from: at, until, sites: vec![site.clone()], ..Fault::default() };
            match turn % 3 {
                0 => {
                    (fault.name, fault.cut, fault.detail) = ("partition".into(), cut, format!("{site} from all others"))
                }
                1 => (fault.name, fault.detail) = ("kill".into(), "kill -9, and started again".into()),
                _ => (fault.name, fault.detail) = ("pause".into(), "SIGSTOP".into()),
            }
            self.run.faults.push(fault);
            at += (25 + self.below(15)) * SECOND;
            turn += 1;
        }
    }

    fn hit(&self, site: &str, at: u64) -> bool {
        let own = |fault: &&Fault| fault.cut.is_empty() && fault.sites.iter().any(|one| one == site);
        self.run.faults.iter().filter(own).any(|fault| fault.from <= at && at < fault.until.unwrap_or(u64::MAX))
    }

    fn operations(&mut self, processes: u32, operations: u64) {
        let sites = self.run.sites.clone();
        let all = processes * u32::try_from(sites.len()).unwrap();
        let step = (self.run.duration - 20 * SECOND) / (operations / u64::from(all)).max(1);
        for process in 0..all {
            let site = sites[usize::try_from(process).unwrap() % sites.len()].clone();
            let mut at = self.below(step);
            while at + 12 * SECOND < self.run.healed {
                at += self.one(process, &site, at).max(step / 2 + self.below(step));
            }
        }
        for process in 0..all {
            let site = sites[usize::try_from(process).unwrap() % sites.len()].clone();
            let ids: Vec<&String> = self.made.iter().map(|(_, id)| id).collect();
            let ids =
                if self.made.len() > 1_000 { json!("too many for a made-up history") } else { json!({"ids": ids}) };
            let at = self.run.healed + 5 * SECOND + u64::from(process);
            self.push(process, &site, "list", at, at + 12 * MILLI, Kind::Ok, Value::Null, ids, None);
        }
        self.ops.sort_by_key(|op| op.time);
        self.ops.iter_mut().enumerate().for_each(|(index, op)| op.index = u64::try_from(index).unwrap());
        self.run.history.0 = std::mem::take(&mut self.ops);
    }

    /// One operation; how long it took.
    fn one(&mut self, process: u32, site: &str, at: u64) -> u64 {
        let slow = 1 + self.below(20) * self.below(20) / 40;
        let took = (2 + self.below(8)) * slow * MILLI;
        if self.hit(site, at) {
            let took = 10 * SECOND;
            self.push(
                process,
                site,
                "create",
                at,
                at + took,
                Kind::Info,
                json!({"name": "x"}),
                Value::Null,
                Some("no answer: timed out"),
            );
            return took;
        }
        match self.below(10) {
            0..4 => {
                let id = format!("server-{}-{}", process, self.made.len());
                self.made.push((at + took, id.clone()));
                self.push(
                    process,
                    site,
                    "create",
                    at,
                    at + took,
                    Kind::Ok,
                    json!({"name": id}),
                    json!({"id": id}),
                    None,
                );
            }
            4..6 => self.push(
                process,
                site,
                "create",
                at,
                at + took,
                Kind::Fail,
                json!({"name": "y"}),
                Value::Null,
                Some("403 Quota exceeded <b>for</b> instances"),
            ),
            _ => self.push(
                process,
                site,
                "show",
                at,
                at + took / 2,
                Kind::Ok,
                json!({"id": "none"}),
                json!({"status": "ACTIVE"}),
                None,
            ),
        }
        took
    }

    #[allow(clippy::too_many_arguments)]
    fn push(
        &mut self,
        process: u32,
        site: &str,
        f: &str,
        from: u64,
        until: u64,
        kind: Kind,
        value: Value,
        result: Value,
        error: Option<&str>,
    ) {
        let workload = if f == "show" { "register" } else { "set" };
        let invoke = Op {
            index: 0,
            time: from,
            kind: Kind::Invoke,
            process: Process::Client(process),
            f: f.into(),
            value,
            site: Some(site.into()),
            workload: Some(workload.into()),
            error: None,
        };
        let complete = Op { time: until, kind, value: result, error: error.map(str::to_owned), ..invoke.clone() };
        self.ops.extend([invoke, complete]);
    }

    fn samples(&mut self) {
        let step = (self.run.duration / 400).max(SECOND);
        for n in 1..self.run.duration / step {
            let time = n * step;
            for (at, site) in self.run.sites.clone().iter().enumerate() {
                if self.hit(site, time) {
                    self.run.samples.push(Sample {
                        time,
                        answered: time + 5 * SECOND,
                        site: site.clone(),
                        ..Sample::default()
                    });
                    continue;
                }
                let cut = self
                    .run
                    .faults
                    .iter()
                    .find(|fault| fault.from <= time && time < fault.until.unwrap_or(0) && !fault.cut.is_empty());
                let number =
                    cut.map_or(time, |fault| if fault.sites.contains(site) { fault.from } else { time }) / SECOND;
                let tip = Tip { number, hash: format!("{number:x}") };
                let lag: BTreeMap<_, _> = cut
                    .iter()
                    .flat_map(|fault| &fault.sites)
                    .map(|one| (one.clone(), time / SECOND - number))
                    .collect();
                let lag = if lag.is_empty() { BTreeMap::from([("others".to_owned(), n % 3)]) } else { lag };
                let used = 20 + (n / 20) % 60;
                let sites = u64::try_from(self.run.sites.len()).unwrap();
                let free = 100 - used;
                let rights: Vec<Value> = (0..sites).map(|k| json!({"site": self.run.sites[usize::try_from(k).unwrap()], "free": {"Instances": free / sites + u64::from(k < free % sites)}})).collect();
                let pool = json!({"id": "p1", "subject": {"project": "1", "name": "dev"}, "minted": {"Instances": 100}, "capacity": {"Instances": 100},
                    "burnt": {}, "claimed": {"Instances": used}, "free": {"Instances": free}, "rights": rights, "conserved": true});
                let pools = if n % 5 == 0 { json!({"pools": [pool], "conserved": true}) } else { Value::Null };
                let frontier = BTreeMap::from([("a".to_owned(), tip)]);
                let answered = time + (3 + u64::try_from(at).unwrap()) * MILLI;
                let digest = Some(format!("digest-{number}"));
                self.run.samples.push(Sample {
                    time,
                    answered,
                    site: site.clone(),
                    base: String::new(),
                    digest,
                    frontier,
                    lag,
                    pools,
                });
            }
        }
        let said = Some(BTreeMap::from([("server-1".to_owned(), "ACTIVE".to_owned())]));
        let time = self.run.duration - SECOND;
        self.run.domains.push(Domains {
            time,
            site: "paris".into(),
            host: "paris-1".into(),
            running: vec!["server-1".into()],
            stopped: vec![],
            said,
        });
    }

    fn judged(mut self) -> Run {
        self.run.verdicts = check::all(&self.run);
        self.run
    }
}

fn verdict(run: &Run, name: &str) -> Valid {
    run.verdicts.iter().find(|verdict| verdict.checker == name).unwrap().valid
}

/// The page, and that no tag was left open by text from outside.
fn write(name: &str, run: &Run) -> String {
    let path = report::write(&dir(name), run).unwrap();
    let page = std::fs::read_to_string(path).unwrap();
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(!page.contains("NaN") && !page.contains("inf\""), "a number that is none");
    assert!(!page.contains("<b>for</b>"), "text from outside is text");
    page
}

#[test]
fn a_good_run() {
    let run = MadeUp::new(&["paris", "lyon", "rennes"], 3, 1_200, 300 * SECOND).judged();
    for verdict in &run.verdicts {
        assert_ne!(verdict.valid, Valid::False, "{}: {}", verdict.checker, verdict.summary);
    }
    assert_eq!(verdict(&run, "availability"), Valid::True);
    assert_eq!(verdict(&run, "lost-acknowledgement"), Valid::True);
    let page = write("good", &run);
    assert!(page.contains("rules held; of") && page.contains("does not tell"));
    assert!(page.contains("history.edn") && page.contains("logs/paris.log"));
    assert!(!page.contains("id=counter"));
}

#[test]
fn a_bad_run_shows_its_counter_example() {
    let mut made_up = MadeUp::new(&["paris", "lyon", "rennes", "nantes", "nice"], 3, 2_000, 300 * SECOND);
    let lost = made_up.made[made_up.made.len() / 2].1.clone();
    for op in &mut made_up.run.history.0 {
        if op.f == "list" && op.site.as_deref() == Some("lyon") && op.kind == Kind::Ok {
            op.value["ids"].as_array_mut().unwrap().retain(|id| *id != json!(lost));
        }
    }
    let last = made_up.run.samples.len() - 1;
    made_up.run.samples[last].frontier = made_up.run.samples[last - 1].frontier.clone();
    made_up.run.samples[last].digest = Some("another".into());
    let run = made_up.judged();
    assert_eq!(verdict(&run, "lost-acknowledgement"), Valid::False);
    assert_eq!(verdict(&run, "equal-digests"), Valid::False);
    let page = write("bad", &run);
    assert!(page.contains("id=counter") && page.contains("BROKEN") && page.contains("class=guilty"));
    assert!(page.contains(&lost));
}

#[test]
fn an_empty_run() {
    let mut run = Run::default();
    run.verdicts = check::all(&run);
    let page = write("empty", &run);
    assert!(page.contains("This run tells nothing") && page.contains("Nothing was done."));
}

#[test]
fn a_huge_run_makes_no_huge_page() {
    let sites = ["paris", "lyon", "rennes", "nantes", "nice", "lille", "brest", "metz"];
    let run = MadeUp::new(&sites, 20, 100_000, 7_200 * SECOND).judged();
    assert!(run.history.0.len() > 150_000, "{}", run.history.0.len());
    let page = write("huge", &run);
    assert!(page.len() < 3 << 20, "{} bytes", page.len());
}
