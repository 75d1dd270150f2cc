//! What the sites said of themselves: how far they were behind, who held which rights, and how long agreement took.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::Value;

use super::chart::{Scale, Series, colour, lines};
use super::html::{clock, duration, escape, legend, short};
use crate::run::Run;

/// Most pools that are drawn: those of which most was claimed.
const POOLS: usize = 6;
/// Most healings in the table.
const HEALINGS: usize = 60;

/// Which colour is which site.
pub(super) fn site_legend(out: &mut String, run: &Run) {
    let classes: Vec<String> = (0..run.sites.len()).map(|n| format!("{} line", colour(n))).collect();
    let items: Vec<(&str, String)> = classes.iter().map(String::as_str).zip(run.sites.iter().cloned()).collect();
    legend(out, &items);
}

pub(super) fn lag(out: &mut String, run: &Run) {
    if run.samples.iter().all(|sample| sample.lag.is_empty()) {
        out.push_str("<p class=soft>No site was asked.</p>");
        return;
    }
    site_legend(out, run);
    let series: Vec<Series> = run
        .sites
        .iter()
        .enumerate()
        .map(|(n, site)| {
            let own = run.samples.iter().filter(|sample| sample.site == *site);
            let point = |sample: &crate::run::Sample| {
                let worst = sample.lag.values().max().map(|lag| *lag as f64);
                (sample.time, worst.filter(|_| sample.digest.is_some()))
            };
            Series { class: colour(n).into(), points: thin(own.map(point).collect()) }
        })
        .collect();
    let _ = write!(
        out,
        "<figure>{}<figcaption>Entries that a site holds and the slowest of the others has not confirmed. A gap: the site did \
         not answer.</figcaption></figure>",
        lines(run, 1180.0, 220.0, Scale::Linear, "", &series)
    );
}

/// At most some hundred points, of each part of the time the worst.
fn thin(points: Vec<(u64, Option<f64>)>) -> Vec<(u64, Option<f64>)> {
    const MOST: usize = 400;
    let step = points.len().div_ceil(MOST).max(1);
    let worst = |part: &[(u64, Option<f64>)]| {
        part.iter().copied().max_by(|one, other| one.1.unwrap_or(-1.0).total_cmp(&other.1.unwrap_or(-1.0)))
    };
    points.chunks(step).filter_map(worst).collect()
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse().ok()))
}

/// A pool of which something was claimed: its dimension that came nearest to its end, and how near.
struct Busy<'a> {
    subject: String,
    dimension: &'a str,
    used: f64,
}

/// The pools that were used most.
fn busiest(run: &Run) -> Vec<(&str, Busy<'_>)> {
    let mut busy: BTreeMap<&str, Busy<'_>> = BTreeMap::new();
    for pool in run.samples.iter().flat_map(|sample| sample.pools["pools"].as_array().into_iter().flatten()) {
        let (Some(id), Some(claimed)) = (pool["id"].as_str(), pool["claimed"].as_object()) else { continue };
        for (dimension, value) in claimed {
            let (Some(value), Some(capacity)) = (number(value), number(&pool["capacity"][dimension])) else { continue };
            let used = value / capacity.max(1.0);
            if used > 0.0 && busy.get(id).is_none_or(|busy| busy.used < used) {
                busy.insert(id, Busy { subject: subject(&pool["subject"]), dimension, used });
            }
        }
    }
    let mut busy: Vec<_> = busy.into_iter().collect();
    busy.sort_by(|one, other| other.1.used.total_cmp(&one.1.used));
    busy.truncate(POOLS);
    busy
}

fn subject(value: &Value) -> String {
    let name = value["name"].as_str().or_else(|| value["host_name"].as_str());
    let kind =
        ["host", "project", "address_pool", "server_group", "votes"].into_iter().find(|kind| !value[*kind].is_null());
    format!("{} {}", kind.unwrap_or("pool").replace('_', " "), name.unwrap_or_default()).trim().to_owned()
}

pub(super) fn rights(out: &mut String, run: &Run) {
    let pools = busiest(run);
    if pools.is_empty() {
        out.push_str("<p class=soft>No site told of a pool of which something was claimed.</p>");
        return;
    }
    let classes: Vec<String> = (0..run.sites.len()).map(|n| format!("{} line", colour(n))).collect();
    let names = run.sites.iter().map(|site| format!("free at {site}"));
    let mut items: Vec<(&str, String)> = classes.iter().map(String::as_str).zip(names).collect();
    items.push(("ink dash", "claimed".into()));
    legend(out, &items);
    out.push_str("<p class=soft>The pools that came nearest to their end. What is free where, as that site said itself; what is claimed, as any site said.</p><div class=grid>");
    for (id, busy) in pools {
        let mut series: Vec<Series> = Vec::new();
        let of = |sample: &'_ crate::run::Sample| -> Option<Value> {
            sample.pools["pools"].as_array()?.iter().find(|pool| pool["id"] == id).cloned()
        };
        for (n, site) in run.sites.iter().enumerate() {
            let own = run.samples.iter().filter(|sample| sample.site == *site);
            let free = |sample: &crate::run::Sample| {
                let pool = of(sample)?;
                let rights = pool["rights"].as_array()?.iter().filter(|right| right["site"] == site.as_str());
                Some((
                    sample.time,
                    Some(rights.filter_map(|right| number(&right["free"][busy.dimension])).sum::<f64>()),
                ))
            };
            series.push(Series { class: colour(n).into(), points: thin(own.filter_map(free).collect()) });
        }
        let claimed = |sample: &crate::run::Sample| {
            Some((sample.time, Some(number(&of(sample)?["claimed"][busy.dimension]).unwrap_or(0.0))))
        };
        series
            .push(Series { class: "ink dash".into(), points: thin(run.samples.iter().filter_map(claimed).collect()) });
        let title = format!("{}: {}", short(&busy.subject, 40), busy.dimension);
        let _ = write!(out, "<figure>{}</figure>", lines(run, 580.0, 190.0, Scale::Linear, &title, &series));
    }
    out.push_str("</div>");
}

pub(super) fn healings(out: &mut String, run: &Run) {
    let healings = crate::check::healings(run);
    if healings.is_empty() {
        out.push_str("<p class=soft>No fault was healed.</p>");
        return;
    }
    out.push_str("<div class=wide><table><tr><th>no fault since<th>after");
    run.sites.iter().for_each(|site| {
        let _ = write!(out, "<th class=n>{}", escape(site));
    });
    out.push_str("</tr>");
    for (from, _, times) in healings.iter().take(HEALINGS) {
        let ended = run
            .faults
            .iter()
            .filter(|fault| fault.until.is_some_and(|until| until + 1_000_000_000 >= *from && until <= *from));
        let names: BTreeSet<&str> = ended.map(|fault| fault.name.as_str()).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let _ = write!(out, "<tr><td>{}<td>{}", clock(*from), escape(&names));
        for site in &run.sites {
            let took = times.get(site.as_str()).copied().flatten();
            let _ =
                write!(out, "<td class=n>{}", took.map_or_else(|| "not before the next fault".to_owned(), duration));
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div>");
    if healings.len() > HEALINGS {
        let _ = write!(out, "<p class=soft>The first {HEALINGS} of {}.</p>", healings.len());
    }
    out.push_str("<p class=soft>How long after that each site was first seen to hold all that any site had held then; sites are asked a few times a second.</p>");
}
