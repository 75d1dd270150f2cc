//! The smallest counter-example, as a space-time diagram: who did what where, and in which order.
//!
//! Between two events that matter there may be microseconds or minutes, so the distances are of order, not of time; the times
//! are written below.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::html::{duration, escape, short};
use super::timeline::title;
use crate::history::{Kind, Pair, Process};
use crate::run::Run;

/// Most operations of one diagram.
const MOST: usize = 24;
const LANE: f64 = 56.0;
const LEFT: f64 = 120.0;

/// Draws the operations of an anomaly; nothing if the history has none of them.
pub(super) fn draw(out: &mut String, run: &Run, pairs: &[Pair<'_>], anomaly: &[u64]) {
    let wanted: BTreeSet<u64> = anomaly.iter().copied().collect();
    let is_one = |pair: &&Pair<'_>| {
        wanted.contains(&pair.invoke.index) || pair.complete.is_some_and(|op| wanted.contains(&op.index))
    };
    let guilty: Vec<&Pair<'_>> = pairs.iter().filter(is_one).take(MOST).collect();
    if guilty.is_empty() {
        return;
    }
    let ends = |pair: &Pair<'_>| {
        [Some(pair.invoke.time), pair.complete.map(|op| op.time)].into_iter().flatten().collect::<Vec<_>>()
    };
    let times: BTreeSet<u64> = guilty.iter().flat_map(|pair| ends(pair)).collect();
    let times: Vec<u64> = times.into_iter().collect();
    let width = (LEFT + 110.0 * (times.len() + 1) as f64).clamp(700.0, 2400.0);
    let step = (width - LEFT - 30.0) / times.len() as f64;
    let place = |time: u64| LEFT + 16.0 + step * place(&times, time);
    let mut lanes: BTreeMap<(String, Process), usize> = BTreeMap::new();
    for pair in &guilty {
        lanes.entry((pair.invoke.site.clone().unwrap_or_default(), pair.invoke.process)).or_insert(0);
    }
    lanes.values_mut().enumerate().for_each(|(at, lane)| *lane = at);
    let (top, bottom) = (24.0, 24.0 + LANE * lanes.len() as f64);
    let mut svg = String::new();
    faults(&mut svg, run, &times, place, (top, bottom));
    for ((site, process), lane) in &lanes {
        let y = top + LANE * (*lane as f64 + 0.5);
        let who = match process {
            Process::Client(number) => format!("process {number}"),
            Process::Nemesis => "nemesis".to_owned(),
        };
        let _ = write!(svg, "<path class=lane d=\"M{LEFT} {y:.1}H{width}\"/>");
        let _ = write!(
            svg,
            "<text class=strong x=\"4\" y=\"{:.1}\">{}</text><text x=\"4\" y=\"{:.1}\">{who}</text>",
            y - 2.0,
            escape(&short(site, 16)),
            y + 12.0
        );
    }
    for (number, pair) in guilty.iter().enumerate() {
        let lane =
            lanes.get(&(pair.invoke.site.clone().unwrap_or_default(), pair.invoke.process)).copied().unwrap_or(0);
        let y = top + LANE * (lane as f64 + 0.5);
        let from = place(pair.invoke.time);
        // What never completed may happen at any time.
        let until =
            pair.complete.filter(|op| op.kind != Kind::Info).map_or(width - 6.0, |op| place(op.time)).max(from + 14.0);
        let _ = write!(
            svg,
            "<rect class=guilty x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"20\" rx=\"4\"><title>{}</title></rect>",
            y - 10.0,
            until - from,
            escape(&title(pair))
        );
        let room = ((until - from).max(step) / 6.4).clamp(4.0, 40.0);
        let label = format!("{} {}", number + 1, pair.invoke.f);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let label = short(&label, room as usize);
        let _ = write!(svg, "<text class=ink x=\"{:.1}\" y=\"{:.1}\">{}</text>", from + 4.0, y + 4.0, escape(&label));
    }
    let mut last = f64::MIN;
    for time in &times {
        let x = place(*time);
        let _ = write!(svg, "<path class=axis stroke-dasharray=\"2 3\" d=\"M{x:.1} {top}V{bottom:.1}\"/>");
        if x - last > 66.0 {
            let _ =
                write!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=middle>{}</text>", bottom + 16.0, at(*time));
            last = x;
        }
    }
    let _ = write!(
        out,
        "<figure><svg viewBox=\"0 0 {width:.0} {:.0}\" style=\"max-width:{width:.0}px\" role=img aria-label=\"Counter-example\">{svg}</svg>\
         <figcaption>Distances show order, not time; times since the run began are below.</figcaption></figure><ol>",
        bottom + 24.0
    );
    guilty.iter().for_each(|pair| list(out, pair));
    out.push_str("</ol>");
    if wanted.len() > 2 * MOST {
        let _ = write!(out, "<p class=soft>The first {MOST} of its operations are shown.</p>");
    }
}

fn at(time: u64) -> String {
    format!("{:.3} s", time as f64 / 1e9)
}

/// Where a time lies among those that matter, in steps.
fn place(times: &[u64], time: u64) -> f64 {
    let next = times.partition_point(|one| *one < time);
    match (next.checked_sub(1).and_then(|at| times.get(at)), times.get(next)) {
        (_, Some(there)) if *there == time => next as f64,
        (Some(before), Some(after)) => next as f64 - 1.0 + (time - before) as f64 / (after - before).max(1) as f64,
        (None, _) => -0.12,
        (_, None) => next as f64 - 0.88,
    }
}

fn faults(svg: &mut String, run: &Run, times: &[u64], place: impl Fn(u64) -> f64, (top, bottom): (f64, f64)) {
    let (Some(first), Some(last)) = (times.first(), times.last()) else { return };
    let mut end = f64::MIN;
    let within =
        run.faults.iter().filter(|fault| fault.from <= *last && fault.until.is_none_or(|until| until >= *first));
    for fault in within.take(20) {
        let (from, until) = (place(fault.from), place(fault.until.unwrap_or(u64::MAX)));
        let height = bottom - top;
        let _ = write!(
            svg,
            "<rect class=fault x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{}</title></rect>",
            (until - from).max(3.0),
            escape(&super::chart::fault_title(fault))
        );
        if from > end {
            let label = short(&format!("{} {}", fault.name, fault.sites.join(" ")), 24);
            let _ = write!(svg, "<text x=\"{from:.1}\" y=\"{:.1}\">{}</text>", top - 8.0, escape(&label));
            end = from + label.chars().count() as f64 * 6.4;
        }
    }
}

fn list(out: &mut String, pair: &Pair<'_>) {
    let invoke = pair.invoke;
    let (workload, site) = (invoke.workload.as_deref().unwrap_or_default(), invoke.site.as_deref().unwrap_or("–"));
    let end = match pair.complete {
        None => "never completed".to_owned(),
        Some(op) => {
            let took = duration(op.time.saturating_sub(invoke.time));
            let what = op.error.clone().unwrap_or_else(|| op.value.to_string());
            let word = match op.kind {
                Kind::Ok => "done",
                Kind::Fail => "refused",
                Kind::Invoke | Kind::Info => "unknown",
            };
            format!("{word} after {took}: {}", short(&what, 400))
        }
    };
    let _ = write!(
        out,
        "<li><code>{} {}</code> at {} ({}), #{}: <code>{}</code> → {}",
        escape(workload),
        escape(&invoke.f),
        escape(site),
        at(invoke.time),
        invoke.index,
        escape(&short(&invoke.value.to_string(), 400)),
        escape(&end)
    );
}
