//! The report of a run: one HTML file that needs nothing else, to be read by a person.
//!
//! First what the run says, rule by rule; then what shows it, if a rule was broken; then what happened. A rule that the run
//! does not tell about looks different from one that held: by word, sign and line, not by colour alone. A hundred thousand
//! operations make no larger a page than some thousand: they are counted, and what must not be overlooked is still drawn.

mod chart;
mod html;
mod latency;
mod spacetime;
mod state;
mod timeline;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use html::{clock, escape, thousands};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::history::{Pair, Process};
use crate::run::Run;
use crate::workload::{Valid, Verdict};

const STYLE: &str = include_str!("style.css");
/// The report's file.
pub const REPORT: &str = "report.html";
/// The history's file in Jepsen's form.
pub const EDN: &str = "history.edn";

/// Writes the report and the history as EDN into a run's directory, and gives the report's path.
///
/// # Errors
/// What the system says.
pub fn write(dir: &Path, run: &Run) -> std::io::Result<PathBuf> {
    std::fs::write(dir.join(EDN), crate::edn::write(&run.history))?;
    let path = dir.join(REPORT);
    std::fs::write(&path, page(run))?;
    Ok(path)
}

/// The report.
#[must_use]
pub fn page(run: &Run) -> String {
    let mut pairs = run.history.pairs();
    pairs.retain(|pair| pair.invoke.process != Process::Nemesis);
    let mut out = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">",
    );
    let _ = write!(out, "<title>{} – jepsen, seed {}</title><style>{STYLE}</style>", escape(&overall(run).1), run.seed);
    head(&mut out, run, &pairs);
    verdicts(&mut out, run);
    counter_examples(&mut out, run, &pairs);
    out.push_str("<h2 id=timeline>Operations and faults</h2>");
    if pairs.is_empty() && run.faults.is_empty() {
        out.push_str("<p class=soft>Nothing was done.</p>");
    } else {
        timeline::draw(&mut out, run, &pairs);
    }
    faults(&mut out, run);
    if !pairs.is_empty() {
        out.push_str("<h2 id=latency>Latency</h2>");
        latency::latencies(&mut out, run, &pairs);
        out.push_str("<h2 id=rate>Rate</h2>");
        latency::rates(&mut out, run, &pairs);
    }
    out.push_str("<h2 id=lag>Lag</h2>");
    state::lag(&mut out, run);
    out.push_str("<h2 id=rights>Rights</h2>");
    state::rights(&mut out, run);
    out.push_str("<h2 id=healing>Agreement after each healing</h2>");
    state::healings(&mut out, run);
    run_data(&mut out, run);
    out.push_str("</html>\n");
    out
}

/// What the run says as a whole: how it looks, and a sentence.
fn overall(run: &Run) -> (&'static str, String) {
    let count = |valid: Valid| run.verdicts.iter().filter(|verdict| verdict.valid == valid).count();
    let (held, broken, unknown) = (count(Valid::True), count(Valid::False), count(Valid::Unknown));
    match (held, broken, unknown) {
        (_, 1.., _) => ("bad", format!("{broken} of {} rules broken", run.verdicts.len())),
        (0, ..) => ("unsure", "This run tells nothing".to_owned()),
        (_, 0, 0) => ("good", format!("All {held} rules held")),
        _ => ("unsure", format!("{held} rules held; of {unknown} the run does not tell")),
    }
}

fn head(out: &mut String, run: &Run, pairs: &[Pair<'_>]) {
    let (class, sentence) = overall(run);
    let sign = sign(class);
    let operations = thousands(u64::try_from(pairs.len()).unwrap_or(0));
    let (length, sites, faults) = (clock(run.duration), run.sites.len(), run.faults.len());
    let unknown = pairs
        .iter()
        .filter(|pair| !matches!(pair.kind(), crate::history::Kind::Ok | crate::history::Kind::Fail))
        .count();
    let unknown = thousands(u64::try_from(unknown).unwrap_or(0));
    let _ = write!(
        out,
        "<header><h1>Consistency of a cloud of {sites} sites</h1><p class=soft>{}, seed {}, {length} long</p>\
         <div class=\"banner {class}\"><strong>{sign} {}</strong><p>{operations} operations, of which {unknown} have no known \
         outcome; {faults} faults.</p></div><nav><a href=#rules>Rules</a>",
        escape(&started(run)),
        run.seed,
        escape(&sentence),
    );
    if run.verdicts.iter().any(|verdict| verdict.valid == Valid::False) {
        out.push_str("<a href=#counter>Counter-examples</a>");
    }
    for (id, text) in [
        ("timeline", "Timeline"),
        ("latency", "Latency"),
        ("rate", "Rate"),
        ("lag", "Lag"),
        ("rights", "Rights"),
        ("healing", "Healing"),
        ("run", "The run"),
    ] {
        if !pairs.is_empty() || !matches!(id, "latency" | "rate") {
            let _ = write!(out, "<a href=#{id}>{text}</a>");
        }
    }
    out.push_str("</nav></header>");
}

fn sign(class: &str) -> &'static str {
    match class {
        "good" => "✓",
        "bad" => "✗",
        _ => "?",
    }
}

fn look(valid: Valid) -> (&'static str, &'static str) {
    match valid {
        Valid::True => ("good", "held"),
        Valid::False => ("bad", "BROKEN"),
        Valid::Unknown => ("unsure", "does not tell"),
    }
}

/// The broken ones first, then those of which nothing is known.
fn sorted(run: &Run) -> Vec<&Verdict> {
    let mut verdicts: Vec<&Verdict> = run.verdicts.iter().collect();
    verdicts.sort_by_key(|verdict| match verdict.valid {
        Valid::False => 0,
        Valid::Unknown => 1,
        Valid::True => 2,
    });
    verdicts
}

fn verdicts(out: &mut String, run: &Run) {
    out.push_str("<h2 id=rules>What the run says of each rule</h2>");
    if run.verdicts.is_empty() {
        out.push_str("<p class=soft>Nobody has judged it.</p>");
        return;
    }
    out.push_str("<div class=wide><table class=verdicts>");
    for verdict in sorted(run) {
        let (class, word) = look(verdict.valid);
        let sign = sign(class);
        let _ = write!(
            out,
            "<tr><td><span class=\"badge {class}\">{sign} {word}</span><td><strong>{}</strong><br><span class=soft>{}</span>\
             <td>{}<div class=rule>{}</div>",
            escape(&verdict.checker),
            escape(&verdict.workload),
            escape(&verdict.summary),
            escape(&verdict.rule)
        );
        detail(out, &verdict.detail);
        out.push_str("</tr>");
    }
    out.push_str("</table></div>");
}

/// What a checker tells beside: as JSON, folded.
fn detail(out: &mut String, detail: &Value) {
    const MOST: usize = 20_000;
    let empty = detail.is_null() || detail.as_object().is_some_and(serde_json::Map::is_empty);
    if !empty {
        let text = serde_json::to_string_pretty(detail).unwrap_or_default();
        let _ =
            write!(out, "<details><summary>more</summary><pre>{}</pre></details>", escape(&html::short(&text, MOST)));
    }
}

fn counter_examples(out: &mut String, run: &Run, pairs: &[Pair<'_>]) {
    let broken: Vec<&Verdict> = run.verdicts.iter().filter(|verdict| verdict.valid == Valid::False).collect();
    if broken.is_empty() {
        return;
    }
    out.push_str("<h2 id=counter>Counter-examples</h2>");
    for verdict in broken {
        let _ = write!(out, "<h3>{} – {}</h3>", escape(&verdict.workload), escape(&verdict.checker));
        let _ = write!(out, "<p>{}</p>", escape(&verdict.summary));
        if verdict.anomaly.is_empty() {
            out.push_str(
                "<p class=soft>It shows in what the sites said of themselves, not in operations: see “more” above.</p>",
            );
        } else {
            spacetime::draw(out, run, pairs, &verdict.anomaly);
        }
    }
}

fn faults(out: &mut String, run: &Run) {
    const MOST: usize = 200;
    if run.faults.is_empty() {
        out.push_str("<p class=soft>There were no faults.</p>");
        return;
    }
    let _ = write!(
        out,
        "<details><summary>all {} faults</summary><div class=wide><table><tr><th>fault<th class=n>from<th class=n>until<th>sites<th>what was done</tr>",
        run.faults.len()
    );
    for fault in run.faults.iter().take(MOST) {
        let until = fault.until.map_or_else(|| "not healed".to_owned(), clock);
        let (name, sites, detail) = (escape(&fault.name), escape(&fault.sites.join(", ")), escape(&fault.detail));
        let lost = if fault.may_lose { " <em>(may lose what only this disk held)</em>" } else { "" };
        let _ = write!(
            out,
            "<tr><td>{name}<td class=n>{}<td class=n>{until}<td>{sites}<td>{detail}{lost}</tr>",
            clock(fault.from)
        );
    }
    out.push_str("</table></div></details>");
}

fn started(run: &Run) -> String {
    let seconds = i64::try_from(run.started / 1000).unwrap_or(0);
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok().filter(|_| run.started > 0);
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "at an unknown time".to_owned())
}

fn run_data(out: &mut String, run: &Run) {
    out.push_str("<h2 id=run>The run</h2><dl>");
    let _ = write!(out, "<dt>again<dd><code>{}</code>", escape(&run.command));
    let _ = write!(
        out,
        "<dt>seed<dd><code>{}</code><dt>began<dd>{}<dt>sites<dd>{}",
        run.seed,
        escape(&started(run)),
        escape(&run.sites.join(", "))
    );
    for (name, version) in &run.versions {
        let _ = write!(out, "<dt>{}<dd><code>{}</code>", escape(name), escape(version));
    }
    out.push_str("</dl><h3>Files</h3><ul>");
    let files = [
        (EDN, "the history, in Jepsen's own form"),
        ("history.jsonl", "the same as JSON lines"),
        ("run.json", "all else: verdicts, faults, samples"),
    ];
    for (file, what) in files {
        let _ = write!(out, "<li><a href=\"{file}\">{file}</a>: {what}");
    }
    for log in &run.logs {
        let log = escape(&log.display().to_string());
        let _ = write!(out, "<li><a href=\"{log}\">{log}</a>");
    }
    out.push_str("</ul>");
}
