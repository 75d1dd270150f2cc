//! Availability: which share of the operations each site answered, and how fast, before, during and after each fault.
//!
//! **Answered** is what was done and what was refused with a reason; **not answered** is silence, no connection, and a 5xx. A
//! request that carries a frontier asks to wait for other sites, so what is refused because that did not come counts as
//! neither. A site that a fault itself hits (killed, paused, its disk full or gone) owes nothing until it is over, and some
//! seconds after. Cuts and bad links between sites are no such faults: a site that is cut off must go on (rule
//! local-autonomy).
//!
//! A client that waited in vain while others kept the machine busy says nothing of the site ([`super::machine`]). Such
//! operations are **not judged**, and told apart; where they are more than one in fifty of a site's, the run does not tell.
//! Latencies are told, and not judged: machines that are shared say little about them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::facts::is_read;
use super::{Finding, clients, indices, machine};
use crate::history::{Kind, Pair};
use crate::run::{Fault, Run};

/// So many of 100,000 may be left without an answer.
const UNANSWERED: u64 = 100;
/// Fewer operations than this tell nothing.
const FEWEST: u64 = 50;
/// How long a site that was hit may take to be itself again, nanoseconds.
const GRACE: u64 = 5_000_000_000;
/// How long after a fault is "after", nanoseconds.
const AFTER: u64 = 10_000_000_000;

/// So many of a hundred may be not judged for the machine's sake.
const NOT_JUDGED: u64 = 2;

/// What one site made of some operations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    answered: u64,
    silent: u64,
    /// Of those that the machine explains.
    not_judged: u64,
    /// Of those that were done or refused, nanoseconds.
    latencies: Vec<u64>,
}

impl Tally {
    fn add(&mut self, answered: bool, latency: Option<u64>) {
        if answered {
            self.answered += 1
        } else {
            self.silent += 1
        }
        self.latencies.extend(latency.filter(|_| answered));
    }

    fn all(&self) -> u64 {
        self.answered + self.silent
    }

    /// Whether so much is not judged that the rest says nothing.
    fn is_blurred(&self) -> bool {
        self.not_judged * 100 > (self.all() + self.not_judged) * NOT_JUDGED
    }

    fn is_enough(&self) -> bool {
        self.silent.saturating_mul(100_000) <= self.all().saturating_mul(UNANSWERED)
    }

    fn share(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let percent = self.answered as f64 / self.all().max(1) as f64 * 100.0;
        (percent * 1000.0).floor() / 1000.0
    }

    fn json(&mut self) -> Value {
        self.latencies.sort_unstable();
        let at = |percent: usize| {
            let place = self.latencies.len().saturating_sub(1) * percent / 100;
            self.latencies.get(place).map(|latency| latency / 1000)
        };
        json!({"operations": self.all(), "answered": self.answered, "not judged": self.not_judged, "percent": self.share(), "p50_us": at(50), "p99_us": at(99)})
    }
}

/// Whether a fault is one between sites, which a site must live with.
pub(crate) fn is_of_the_network(fault: &Fault) -> bool {
    const LINKS: &[&str] = &[
        "partition",
        "isolate",
        "bridge",
        "one-way",
        "oneway",
        "flap",
        "link",
        "slow",
        "delay",
        "loss",
        "jitter",
        "wan",
        "network",
    ];
    !fault.cut.is_empty() || LINKS.iter().any(|word| fault.name.contains(word))
}

/// Whether a fault changes what a site knows of time only: it must live with that as well.
fn is_of_the_clock(fault: &Fault) -> bool {
    ["clock", "skew"].iter().any(|word| fault.name.contains(word))
}

fn hits(fault: &Fault, site: &str) -> bool {
    fault.sites.is_empty() || fault.sites.iter().any(|one| one == site)
}

/// Whether a site is itself hit at some time of an operation.
fn is_hit(run: &Run, site: &str, from: u64, until: u64) -> bool {
    let own = |fault: &&Fault| !is_of_the_network(fault) && !is_of_the_clock(fault) && hits(fault, site);
    let overlaps =
        |fault: &Fault| fault.from <= until && fault.until.is_none_or(|end| end.saturating_add(GRACE) >= from);
    run.faults.iter().filter(own).any(overlaps)
}

/// Whether an operation was answered; none if it says nothing.
fn answered(pair: &Pair<'_>) -> Option<bool> {
    let error = pair.complete.and_then(|op| op.error.as_deref()).unwrap_or_default();
    if error.contains("frontier") {
        return None;
    }
    match pair.kind() {
        Kind::Ok => Some(true),
        Kind::Fail => Some(!error.starts_with("not connected")),
        // What the run did not wait for may have been under way.
        _ => pair.complete.map(|_| false),
    }
}

/// Whether there was no answer in time: no word of the site's, and no refusal to connect.
fn waited_in_vain(pair: &Pair<'_>) -> bool {
    pair.complete.and_then(|op| op.error.as_deref()).is_some_and(|error| error.contains("timeout"))
}

fn phase(run: &Run, site: &str, at: u64) -> String {
    let mut faults = run.faults.iter().filter(|fault| hits(fault, site) || !fault.cut.is_empty());
    if let Some(fault) = faults.clone().find(|fault| fault.from <= at && fault.until.is_none_or(|until| at < until)) {
        return format!("during {}", fault.name);
    }
    let after = faults.find(|fault| fault.until.is_some_and(|until| until <= at && at < until.saturating_add(AFTER)));
    after.map_or_else(|| "calm".to_owned(), |fault| format!("after {}", fault.name))
}

/// Whether a site is cut off from others at a time.
fn is_cut(run: &Run, site: &str, from: u64, until: u64) -> bool {
    let cut = |fault: &Fault| fault.cut.iter().any(|(one, other)| one == site || other == site);
    run.faults.iter().any(|fault| cut(fault) && fault.from <= from && fault.until.is_none_or(|end| until <= end))
}

pub(super) fn availability(run: &Run) -> Finding {
    let mut judged: BTreeMap<(String, &str, &str), Tally> = BTreeMap::new();
    let mut all: BTreeMap<(String, &str, String), Tally> = BTreeMap::new();
    let mut anomaly = Vec::new();
    for pair in clients(&run.history) {
        // A session that wanders says which site it asked.
        let asked = pair.invoke.value["at"].as_str().map(str::to_owned).or_else(|| pair.invoke.site.clone());
        let (Some(site), Some(answered)) = (asked, answered(&pair)) else { continue };
        let (from, until) = (pair.invoke.time, pair.complete.map_or(u64::MAX, |op| op.time));
        let what = if is_read(&pair.invoke.f) { "reads" } else { "writes" };
        let latency = Some(until.saturating_sub(from));
        all.entry((site.clone(), what, phase(run, &site, from))).or_default().add(answered, latency);
        if is_hit(run, &site, from, until) {
            continue;
        }
        let when = if is_cut(run, &site, from, until) { "cut off" } else { "not cut off" };
        let tally = judged.entry((site, what, when)).or_default();
        if !answered && waited_in_vain(&pair) && machine::explains(run, from, until) {
            tally.not_judged += 1;
            continue;
        }
        if !answered && anomaly.len() < 10 {
            anomaly.extend(indices(&pair));
        }
        tally.add(answered, latency);
    }
    let total: u64 = judged.values().map(Tally::all).sum();
    if total < FEWEST {
        return Finding::unknown(format!("{total} operations at sites that were not hit themselves tell nothing."));
    }
    let failed = judged.iter().filter(|(_, tally)| !tally.is_enough()).max_by_key(|(_, tally)| tally.silent);
    let failed = failed.map(|((site, what, when), tally)| {
        let (share, silent, count) = (tally.share(), tally.silent, tally.all());
        format!("{site}, {when}, answered {share} % of its {what}: {silent} of {count} were not answered.")
    });
    let cut: u64 = judged.iter().filter(|((_, _, when), _)| *when == "cut off").map(|(_, tally)| tally.all()).sum();
    let blurred = judged.iter().find(|(_, tally)| tally.is_blurred()).map(|((site, what, _), tally)| {
        format!("Others kept this machine busy: {} of {site}'s {what} are not judged.", tally.not_judged)
    });
    let not_judged: u64 = judged.values().map(|tally| tally.not_judged).sum();
    let detail = json!({
        "judged": table(&mut judged), "by phase": table(&mut all), "ratios": ratios(&judged), "machine": machine::told(run),
    });
    match (failed, blurred) {
        (Some(summary), _) => Finding::broken(summary, detail, anomaly),
        (None, Some(summary)) => Finding { detail, ..Finding::unknown(summary) },
        (None, None) => {
            let busy = match not_judged {
                0 => String::new(),
                count => format!(" {count} are not judged, since others kept this machine busy."),
            };
            let summary = format!(
                "{total} operations at sites that were not hit themselves, {cut} of them while cut off: each site answered 99.9 % or more.{busy}"
            );
            Finding::held(summary, detail)
        }
    }
}

fn table<W: AsRef<str>>(tallies: &mut BTreeMap<(String, &str, W), Tally>) -> Value {
    let row = |((site, what, when), tally): (&(String, &str, W), &mut Tally)| {
        let mut row = tally.json();
        row["site"] = json!(site);
        row["what"] = json!(what);
        row["when"] = json!(when.as_ref());
        row
    };
    tallies.iter_mut().map(row).collect()
}

/// Each site's p99 while it was cut off, as a multiple of its usual one. Latencies are sorted by now.
fn ratios(judged: &BTreeMap<(String, &str, &str), Tally>) -> Value {
    let p99 = |tally: &Tally| tally.latencies.get(tally.latencies.len().saturating_sub(1) * 99 / 100).copied();
    let mut ratios = Vec::new();
    for ((site, what, when), tally) in judged.iter().filter(|((_, _, when), _)| *when == "cut off") {
        let usual = judged.get(&(site.clone(), what, "not cut off")).and_then(p99);
        if let (Some(cut), Some(usual)) = (p99(tally), usual.filter(|usual| *usual > 0)) {
            #[allow(clippy::cast_precision_loss)]
            let ratio = cut as f64 / usual as f64;
            ratios
                .push(json!({"site": site, "what": what, "when": when, "p99 ratio": (ratio * 100.0).round() / 100.0}));
        }
    }
    Value::Array(ratios)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{SECOND, Story};
    use crate::run::Pace;
    use crate::workload::Valid;

    fn story(silent: usize, kind: Kind, error: &str) -> Story {
        let mut story = Story::new(&["paris"]);
        for n in 0..100 {
            let (kind, result) = if n < silent { (kind, json!(error)) } else { (Kind::Ok, Value::Null) };
            story.op(0, "paris", "create", Value::Null, kind, result);
        }
        story
    }

    fn fault(name: &str, cut: bool) -> Fault {
        let cut = if cut { vec![("paris".into(), "lyon".into())] } else { Vec::new() };
        Fault {
            name: name.into(),
            from: 0,
            until: Some(200 * SECOND),
            sites: vec!["paris".into()],
            cut,
            ..Fault::default()
        }
    }

    #[test]
    fn silence_is_no_answer_and_a_refusal_is_one() {
        assert_eq!(availability(&story(0, Kind::Ok, "").run).valid, Valid::True);
        assert_eq!(availability(&story(9, Kind::Fail, "403 Quota exceeded").run).valid, Valid::True);
        assert_eq!(
            availability(&story(9, Kind::Fail, "503 has not caught up with the request's frontier").run).valid,
            Valid::True
        );
        assert_eq!(availability(&story(1, Kind::Info, "no answer: timeout").run).anomaly, [0, 1]);
        assert_eq!(availability(&story(1, Kind::Fail, "not connected: refused").run).valid, Valid::False);
    }

    #[test]
    fn a_site_that_is_cut_off_owes_answers_and_one_that_is_killed_does_not() {
        let mut cut = story(1, Kind::Info, "no answer");
        cut.run.faults.push(fault("partition", true));
        let finding = availability(&cut.run);
        assert_eq!(finding.valid, Valid::False);
        assert!(finding.summary.contains("paris, cut off"), "{}", finding.summary);
        let mut killed = story(1, Kind::Info, "no answer");
        killed.run.faults.push(Fault { until: Some(SECOND), ..fault("kill", false) });
        assert_eq!(availability(&killed.run).valid, Valid::True);
    }

    #[test]
    fn a_busy_machine_excuses_waiting_visibly_and_nothing_else() {
        let busy = |silent, error: &str, others| {
            let mut story = story(silent, Kind::Info, error);
            let pace =
                |second| Pace { from: second * SECOND, until: (second + 1) * SECOND, work: SECOND / 100, others };
            story.run.paces = (0..100).map(pace).collect();
            availability(&story.run)
        };
        let excused = busy(1, "no answer: timeout: global", 900);
        assert_eq!(excused.valid, Valid::True);
        assert!(excused.summary.contains("1 are not judged"), "{}", excused.summary);
        assert_eq!(busy(5, "no answer: timeout: global", 900).valid, Valid::Unknown, "too many");
        assert_eq!(busy(1, "no answer: timeout: global", 100).valid, Valid::False, "the run itself was busy");
        assert_eq!(busy(1, "no answer: 500 Internal", 900).valid, Valid::False, "that is the site's word");
    }

    #[test]
    fn latencies_are_told_by_phase() {
        let mut cut = story(0, Kind::Ok, "");
        cut.run.faults.push(Fault { until: Some(50 * SECOND), ..fault("partition", true) });
        let finding = availability(&cut.run);
        let phases: Vec<_> =
            finding.detail["by phase"].as_array().into_iter().flatten().map(|row| row["when"].clone()).collect();
        assert_eq!(phases, [json!("after partition"), json!("calm"), json!("during partition")]);
        assert_eq!(finding.detail["ratios"][0]["p99 ratio"], json!(1.0));
    }
}
