//! Operations over time, by site and process. A few are drawn one by one; many are counted by parts of the time.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::chart::{Axis, LEFT, fault_title};
use super::html::{duration, escape, legend, short, thousands};
use crate::history::{Kind, Pair, Process};
use crate::run::Run;

/// Most operations that are drawn one by one.
const ONE_BY_ONE: usize = 2_500;
/// Most lanes; beyond that a site's processes share one.
const LANES: usize = 40;
/// Parts of the time, where operations are counted.
const PARTS: usize = 240;
const WIDTH: f64 = 1180.0;

/// A lane: a process at a site, or all of them.
type Lane<'a> = (&'a str, Option<u32>);

pub(super) fn draw(out: &mut String, run: &Run, pairs: &[Pair<'_>]) {
    let mut lanes = BTreeMap::<_, (Lane<'_>, Vec<&Pair<'_>>)>::new();
    for apart in [true, false] {
        lanes.clear();
        for pair in pairs {
            let Process::Client(process) = pair.invoke.process else { continue };
            let site = pair.invoke.site.as_deref().unwrap_or("–");
            let place = run.sites.iter().position(|one| one == site).unwrap_or(usize::MAX);
            let process = apart.then_some(process);
            lanes.entry((place, process)).or_insert_with(|| ((site, process), Vec::new())).1.push(pair);
        }
        if lanes.len() <= LANES {
            break;
        }
    }
    let one_by_one = pairs.len() <= ONE_BY_ONE;
    let axis = Axis::new(run, WIDTH);
    let mut body = String::new();
    let top = axis.faults(&mut body, &run.faults, 4.0) + 14.0;
    let height = if lanes.len() > 12 || lanes.keys().any(|(_, process)| process.is_some()) { 16.0 } else { 34.0 };
    let bottom = top + height * lanes.len() as f64;
    let mut y = top;
    let mut before = "";
    for ((site, process), pairs) in lanes.values() {
        if *site != before {
            let own = |pair: &&(Lane<'_>, Vec<&Pair<'_>>)| pair.0.0 == *site;
            let rows = lanes.values().filter(own).count() as f64;
            shade_site(&mut body, &axis, run, site, y, height * rows);
            let _ =
                write!(body, "<text class=strong x=\"4\" y=\"{:.1}\">{}</text>", y + 12.0, escape(&short(site, 10)));
            let _ = write!(body, "<path class=lane d=\"M0 {y:.1}H{WIDTH}\"/>");
        }
        before = site;
        if let Some(process) = process {
            let _ = write!(body, "<text x=\"{}\" y=\"{:.1}\" text-anchor=end>{process}</text>", LEFT - 6.0, y + 12.0);
        }
        if one_by_one {
            pairs.iter().for_each(|pair| bar(&mut body, &axis, pair, y, height));
        } else {
            parts(&mut body, &axis, pairs, y, height);
        }
        y += height;
    }
    let mut frame = String::new();
    axis.draw(&mut frame, top, bottom);
    let how = if one_by_one {
        "Each bar is one operation, from its invocation to its completion: point at it to read it.".to_owned()
    } else {
        format!(
            "{} operations, counted by parts of the time: the higher, the more; the highest of a row is its fullest.",
            thousands(u64::try_from(pairs.len()).unwrap_or(0))
        )
    };
    let numbers =
        if lanes.keys().any(|(_, process)| process.is_some()) { " Numbers at the left are processes." } else { "" };
    legend(
        out,
        &[
            ("ok", "done".into()),
            ("fail", "refused".into()),
            ("info", "unknown (no answer)".into()),
            ("fault", "fault".into()),
        ],
    );
    let _ = write!(
        out,
        "<figure><svg viewBox=\"0 0 {WIDTH} {:.0}\" role=img aria-label=\"Operations over time\">{frame}{body}</svg><figcaption>{how}{numbers} \
         A site's rows are shaded while a fault hits it.</figcaption></figure>",
        bottom + 24.0
    );
}

fn shade_site(svg: &mut String, axis: &Axis, run: &Run, site: &str, y: f64, height: f64) {
    for fault in &run.faults {
        let cut = fault.cut.iter().any(|(one, other)| one == site || other == site);
        if !cut && !fault.sites.is_empty() && !fault.sites.iter().any(|one| one == site) {
            continue;
        }
        let (from, until) = axis.span(fault);
        let title = escape(&fault_title(fault));
        let _ = write!(
            svg,
            "<rect class=fault x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{title}</title></rect>",
            until - from
        );
    }
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        Kind::Invoke | Kind::Info => "info",
    }
}

/// What an operation was, in a line.
pub(super) fn title(pair: &Pair<'_>) -> String {
    let invoke = pair.invoke;
    let took = pair.complete.map(|op| op.time.saturating_sub(invoke.time));
    let end = match pair.complete {
        Some(op) => match &op.error {
            Some(error) => format!("{:?}: {error}", op.kind).to_lowercase(),
            None => format!("{:?} {}", op.kind, op.value).to_lowercase(),
        },
        None => "never completed".into(),
    };
    let workload = invoke.workload.as_deref().unwrap_or_default();
    let took = took.map_or_else(String::new, |took| format!(" ({})", duration(took)));
    short(&format!("#{} {workload} {} {} → {end}{took}", invoke.index, invoke.f, invoke.value), 300)
}

fn bar(svg: &mut String, axis: &Axis, pair: &Pair<'_>, y: f64, height: f64) {
    let from = axis.x(pair.invoke.time);
    let until = axis.x(pair.complete.map_or(axis.end, |op| op.time));
    let _ = write!(
        svg,
        "<rect class={} x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
        class(pair.kind()),
        y + 3.0,
        (until - from).max(1.5),
        height - 5.0,
        escape(&title(pair))
    );
}

/// A row of stacked counts.
fn parts(svg: &mut String, axis: &Axis, pairs: &[&Pair<'_>], y: f64, height: f64) {
    let mut counts = vec![[0_u64; 3]; PARTS];
    for pair in pairs {
        let parts = u128::try_from(PARTS).unwrap_or(1);
        let at = usize::try_from(u128::from(pair.invoke.time) * parts / u128::from(axis.end)).unwrap_or(0);
        let kind = match pair.kind() {
            Kind::Ok => 0,
            Kind::Fail => 1,
            Kind::Invoke | Kind::Info => 2,
        };
        if let Some(count) = counts.get_mut(at.min(PARTS - 1)) {
            count[kind] += 1;
        }
    }
    let most = counts.iter().map(|count| count.iter().sum::<u64>()).max().unwrap_or(0).max(1) as f64;
    let (left, right) = (axis.x(0), axis.x(axis.end));
    let step = (right - left) / PARTS as f64;
    for (kind, class) in ["ok", "fail", "info"].iter().enumerate() {
        let mut path = String::new();
        for (at, count) in counts.iter().enumerate().filter(|(_, count)| count[kind] > 0) {
            let below: u64 = count[..kind].iter().sum();
            let full = height - 3.0;
            // One that was not answered among thousands must still be seen.
            let tall = (count[kind] as f64 / most * full).max(if kind == 2 { 2.0 } else { 0.5 });
            let base = (y + height - 1.0 - below as f64 / most * full).max(y + 1.0 + tall);
            let _ = write!(path, "M{:.1} {base:.1}v-{tall:.1}h{:.1}v{tall:.1}z", left + at as f64 * step, step * 0.92);
        }
        let _ = write!(svg, "<path class={class} d=\"{path}\"/>");
    }
}
