//! How fast and how often: latencies by site and by operation on a logarithmic scale, and rates.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::chart::{Axis, BINS, Scale, Series, bin, cell, colour, lines, middle};
use super::html::{escape, legend, thousands};
use crate::history::{Kind, Pair};
use crate::run::Run;

/// Most charts by operation; the table has all.
const CHARTS: usize = 8;

/// The n-th percent of sorted values.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    sorted.get((sorted.len().checked_sub(1)? * percent).div_ceil(100)).copied()
}

fn latency(pair: &Pair<'_>) -> Option<u64> {
    let done = pair.complete.filter(|op| matches!(op.kind, Kind::Ok | Kind::Fail))?;
    Some(done.time.saturating_sub(pair.invoke.time))
}

/// The median and the 99th percentile over time.
fn over_time<'a>(pairs: impl Iterator<Item = &'a Pair<'a>>, end: u64) -> Vec<Series> {
    let mut bins: Vec<Vec<u64>> = vec![Vec::new(); BINS];
    for pair in pairs {
        if let (Some(latency), Some(bin)) = (latency(pair), bins.get_mut(bin(pair.invoke.time, end))) {
            bin.push(latency);
        }
    }
    bins.iter_mut().for_each(|bin| bin.sort_unstable());
    let series = |class: &str, percent| {
        let point =
            |(at, bin): (usize, &Vec<u64>)| (middle(at, end), percentile(bin, percent).map(|latency| latency as f64));
        Series { class: class.into(), points: bins.iter().enumerate().map(point).collect() }
    };
    vec![series("s0", 50), series("s1", 99)]
}

fn name(pair: &Pair<'_>) -> String {
    match pair.invoke.workload.as_deref() {
        Some(workload) => format!("{workload} {}", pair.invoke.f),
        None => pair.invoke.f.clone(),
    }
}

pub(super) fn latencies(out: &mut String, run: &Run, pairs: &[Pair<'_>]) {
    let end = Axis::new(run, 1.0).end;
    legend(out, &[("s0 line", "median".into()), ("s1 line", "99th percentile".into()), ("fault", "fault".into())]);
    out.push_str("<p class=soft>Of operations that were done or refused. A gap is a time without any. The scale is logarithmic.</p><h3>By site</h3><div class=grid>");
    for site in &run.sites {
        let series = over_time(pairs.iter().filter(|pair| pair.invoke.site.as_ref() == Some(site)), end);
        let _ = write!(out, "<figure>{}</figure>", lines(run, 580.0, 190.0, Scale::Log, site, &series));
    }
    out.push_str("</div><h3>By operation</h3><div class=grid>");
    let mut by: BTreeMap<String, Vec<&Pair<'_>>> = BTreeMap::new();
    pairs.iter().for_each(|pair| by.entry(name(pair)).or_default().push(pair));
    let mut most: Vec<_> = by.iter().collect();
    most.sort_by_key(|(_, pairs)| std::cmp::Reverse(pairs.len()));
    for (name, pairs) in most.iter().take(CHARTS) {
        let series = over_time(pairs.iter().copied(), end);
        let _ = write!(out, "<figure>{}</figure>", lines(run, 580.0, 170.0, Scale::Log, name, &series));
    }
    out.push_str("</div>");
    table(out, &by);
}

fn table(out: &mut String, by: &BTreeMap<String, Vec<&Pair<'_>>>) {
    out.push_str(
        "<div class=wide><table><tr><th>operation<th class=n>all<th class=n>done<th class=n>refused<th class=n>unknown\
         <th class=n>median<th class=n>p99<th class=n>slowest</tr>",
    );
    for (name, pairs) in by {
        let count = |kind: Kind| pairs.iter().filter(|pair| pair.kind() == kind).count();
        let mut latencies: Vec<u64> = pairs.iter().filter_map(|pair| latency(pair)).collect();
        latencies.sort_unstable();
        let _ = write!(out, "<tr><td>{}", escape(name));
        for number in [pairs.len(), count(Kind::Ok), count(Kind::Fail), count(Kind::Info)] {
            let _ = write!(out, "<td class=n>{}", thousands(u64::try_from(number).unwrap_or(0)));
        }
        for percent in [50, 99, 100] {
            let _ = write!(out, "<td class=n>{}", cell(percentile(&latencies, percent)));
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div>");
}

pub(super) fn rates(out: &mut String, run: &Run, pairs: &[Pair<'_>]) {
    let end = Axis::new(run, 1.0).end;
    let count = |wanted: &dyn Fn(&Pair<'_>) -> bool| {
        let mut bins = vec![0_u64; BINS];
        for pair in pairs.iter().filter(|pair| wanted(pair)) {
            if let Some(count) = bins.get_mut(bin(pair.invoke.time, end)) {
                *count += 1;
            }
        }
        let width = end as f64 / BINS as f64 / 1e9;
        bins.iter().enumerate().map(|(at, count)| (middle(at, end), Some(*count as f64 / width))).collect()
    };
    let kinds = [("ok", Kind::Ok), ("fail", Kind::Fail), ("info", Kind::Info)];
    let series: Vec<Series> = kinds
        .iter()
        .map(|(class, kind)| Series { class: (*class).into(), points: count(&|pair| pair.kind() == *kind) })
        .collect();
    out.push_str("<h3>By outcome, a second</h3>");
    legend(
        out,
        &[
            ("ok line", "done".into()),
            ("fail line", "refused".into()),
            ("info line", "unknown".into()),
            ("fault", "fault".into()),
        ],
    );
    let _ = write!(out, "<figure>{}</figure>", lines(run, 1180.0, 200.0, Scale::Linear, "", &series));
    let sites: Vec<Series> = run
        .sites
        .iter()
        .enumerate()
        .map(|(n, site)| Series {
            class: colour(n).into(),
            points: count(&|pair| pair.is_ok() && pair.invoke.site.as_ref() == Some(site)),
        })
        .collect();
    out.push_str("<h3>Done, by site, a second</h3>");
    super::state::site_legend(out, run);
    let _ = write!(out, "<figure>{}</figure>", lines(run, 1180.0, 200.0, Scale::Linear, "", &sites));
}
