//! `luc pools`: a table for each pool, its dimensions first, then the holders of its free rights.

use std::fmt::Write;

use anyhow::{Result, bail};
use serde_json::Value;

use super::StatusArgs;
use super::config::Config;
use super::status::ask;

/// Prints the pools; an error, after they were printed, if rights and claims do not add up.
pub(super) fn pools(args: &StatusArgs) -> Result<()> {
    let pools = ask(&Config::load(&args.configured.config)?, "/luc/v1/pools")?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&pools)?);
    } else {
        print!("{}", describe(&pools));
    }
    if pools["conserved"] == true { Ok(()) } else { bail!("minted is not free + claimed + burnt everywhere") }
}

fn describe(pools: &Value) -> String {
    let mut out = String::new();
    for pool in list(&pools["pools"]) {
        let conserved = if pool["conserved"] == true { "adds up" } else { "DOES NOT ADD UP" };
        let _ = writeln!(out, "{}: {} claims, {conserved}", title(&pool["subject"]), pool["claims"]);
        dimensions(&mut out, pool);
        holders(&mut out, pool);
        out.push('\n');
    }
    let all = if pools["conserved"] == true { "holds for every pool" } else { "is BROKEN" };
    let _ = writeln!(out, "minted = free + claimed + burnt {all}");
    out
}

/// What a pool is the capacity of.
fn title(subject: &Value) -> String {
    let text = |key: &str| subject[key].as_str();
    let named = |kind: &str, id: &str| text("name").map_or(format!("{kind} {id}"), |name| format!("{kind} {name}"));
    if let Some(group) = text("server_group") {
        let host = text("host_name").or(text("host")).map(|host| format!(" on host {host}")).unwrap_or_default();
        return format!("places in {}{host}", named("server group", group));
    }
    if let Some(host) = text("host") {
        return format!("{} at {}", named("host", host), text("site").unwrap_or("?"));
    }
    match text("project") {
        Some(project) => format!("quota of {}", named("project", project)),
        None => "votes on retirements".into(),
    }
}

fn dimensions(out: &mut String, pool: &Value) {
    let columns = ["minted", "burnt", "capacity", "claimed", "free"];
    let pending = pool["pending"].as_object().is_some_and(|pending| !pending.is_empty());
    let heads = ["MINTED", "BURNT", "CAPACITY", "CLAIMED", "FREE"].map(|head| format!("{head:>11}"));
    let last = if pending { "  TO BE BURNT" } else { "" };
    let _ = writeln!(out, "  {:<14}{}{last}", "", heads.concat());
    for dimension in pool["minted"].as_object().into_iter().flatten().map(|(dimension, _)| dimension) {
        let cells = columns.map(|column| format!("{:>11}", number(&pool[column][dimension])));
        let last = if pending { format!("{:>13}", number(&pool["pending"][dimension])) } else { String::new() };
        let _ = writeln!(out, "  {:<14}{}{last}", label(dimension), cells.concat());
    }
}

fn holders(out: &mut String, pool: &Value) {
    let _ = writeln!(out, "  {:<38}{:<14}{:<10}{:<10}FREE", "HOLDER", "SITE", "REACHED", "AGE");
    for right in list(&pool["rights"]) {
        let reached = match (&right["retiring"], &right["reachable"]) {
            (Value::Bool(true), _) => "retiring",
            (_, Value::Bool(true)) => "yes",
            _ => "no",
        };
        let age = right["age_ms"].as_u64().map_or("never".into(), |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100));
        let text = |key: &str| right[key].as_str().unwrap_or("?");
        let free = right["free"].as_object().into_iter().flatten();
        let free: Vec<String> = free.map(|(dimension, n)| format!("{n} {}", label(dimension))).collect();
        let free = if free.is_empty() { "nothing".into() } else { free.join(", ") };
        let _ = writeln!(out, "  {:<38}{:<14}{reached:<10}{age:<10}{free}", text("replica"), text("site"));
    }
}

/// A dimension's name for people.
fn label(dimension: &str) -> &str {
    match dimension {
        "Vcpus" => "vCPU",
        "MemoryMib" => "memory MiB",
        "DiskGib" => "disk GiB",
        "Instances" => "instances",
        "Votes" => "votes",
        other => other,
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pool_is_told_with_its_holders_and_what_is_pending() {
        let pools = json!({"conserved": false, "pools": [{
            "subject": {"project": "p1", "name": "dev"}, "claims": 2, "conserved": false,
            "minted": {"Instances": 10}, "burnt": {"Instances": 1}, "capacity": {"Instances": 9},
            "claimed": {"Instances": 2}, "free": {"Instances": 7}, "pending": {"Instances": 4},
            "rights": [
                {"replica": "r1", "site": "paris", "reachable": true, "age_ms": 0, "retiring": false, "free": {"Instances": 7}},
                {"replica": "r2", "site": "lyon", "reachable": false, "age_ms": 12_345, "retiring": false, "free": {}},
            ],
        }]});
        let text = describe(&pools);
        let words = |line: usize| text.lines().nth(line).unwrap_or_default().split_whitespace().collect::<Vec<_>>();
        assert_eq!(text.lines().next(), Some("quota of project dev: 2 claims, DOES NOT ADD UP"));
        assert_eq!(words(2), ["instances", "10", "1", "9", "2", "7", "4"]);
        assert_eq!(words(4), ["r1", "paris", "yes", "0.0", "s", "7", "instances"]);
        assert_eq!(words(5), ["r2", "lyon", "no", "12.3", "s", "nothing"]);
        assert!(text.ends_with("is BROKEN\n"), "{text}");
    }
}
