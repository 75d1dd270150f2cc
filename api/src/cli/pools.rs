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

/// How many blocks of a holder are shown.
const BLOCKS: usize = 8;

fn describe(pools: &Value) -> String {
    let mut out: String = list(&pools["pools"]).map(|pool| describe_one(pool) + "\n").collect();
    let all = if pools["conserved"] == true { "holds for every pool" } else { "is BROKEN" };
    let _ = writeln!(out, "minted = free + claimed + burnt {all}");
    out
}

/// The table of one pool.
pub(super) fn describe_one(pool: &Value) -> String {
    let mut out = String::new();
    let conserved = if pool["conserved"] == true { "adds up" } else { "DOES NOT ADD UP" };
    let confirmed = if pool["confirmed"] == true { ", grants are countersigned by the root" } else { "" };
    let _ = writeln!(out, "{}: {} claims, {conserved}{confirmed}", title(&pool["subject"]), pool["claims"]);
    if pool["overdraft"].as_object().is_some_and(|overdraft| !overdraft.is_empty()) {
        let owed = free(&pool["overdraft"]);
        let _ = writeln!(out, "  spent twice by a replica that forked, and not yet paid: {owed}");
    }
    dimensions(&mut out, pool);
    holders(&mut out, pool);
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
    if let Some(pool) = text("address_pool") {
        return named("address pool", pool);
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
    let minted = pool["minted"].as_object().into_iter().flatten().map(|(dimension, _)| dimension);
    for dimension in minted.filter(|dimension| *dimension != "addresses") {
        let cells = columns.map(|column| format!("{:>11}", number(&pool[column][dimension])));
        let last = if pending { format!("{:>13}", number(&pool["pending"][dimension])) } else { String::new() };
        let _ = writeln!(out, "  {:<14}{}{last}", label(dimension), cells.concat());
    }
}

fn holders(out: &mut String, pool: &Value) {
    let _ = writeln!(out, "  {:<38}{:<14}{:<10}{:<10}FREE", "HOLDER", "SITE", "REACHED", "AGE");
    // What is left of the votes of the retired is nobody's, and stays.
    let is_left = |right: &Value| pool["subject"]["votes"].is_string() && right["retired"] == true;
    let (left, rights): (Vec<_>, Vec<_>) = list(&pool["rights"]).partition(|right| is_left(right));
    for right in rights {
        let reached = match (&right["retired"], &right["retiring"], &right["reachable"]) {
            (Value::Bool(true), ..) => "retired",
            (_, Value::Bool(true), _) => "retiring",
            (.., Value::Bool(true)) => "yes",
            _ => "no",
        };
        let age = right["age_ms"].as_u64().map_or("never".into(), |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100));
        let text = |key: &str| right[key].as_str().unwrap_or("?");
        let (replica, site, mut free) = (text("replica"), text("site"), free(&right["free"]));
        if right["unconfirmed"].as_object().is_some_and(|waiting| !waiting.is_empty()) {
            let _ = write!(free, " (and not countersigned: {})", self::free(&right["unconfirmed"]));
        }
        let _ = writeln!(out, "  {replica:<38}{site:<14}{reached:<10}{age:<10}{free}");
    }
    if !left.is_empty() {
        let votes: u64 = left.iter().filter_map(|right| right["free"]["Votes"].as_u64()).sum();
        let _ = writeln!(out, "  {} retired, of whose votes {votes} are nobody's and count no more", left.len());
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
        "Addresses" => "addresses",
        "ServerGroups" => "server groups",
        other => other,
    }
}

/// A number, which comes as a text where JSON's are not exact.
fn number(value: &Value) -> String {
    value.as_str().map_or_else(|| value.as_u64().unwrap_or(0).to_string(), str::to_owned)
}

/// What a holder has free: numbers, and which addresses.
fn free(amount: &Value) -> String {
    let numbers = amount.as_object().into_iter().flatten().filter(|(dimension, _)| *dimension != "addresses");
    let numbers = numbers.map(|(dimension, n)| format!("{} {}", number(n), label(dimension)));
    let blocks: Vec<&str> = list(&amount["addresses"]).filter_map(Value::as_str).collect();
    let shown = blocks.iter().take(BLOCKS).copied().collect::<Vec<_>>().join(", ");
    let more = blocks.len().saturating_sub(BLOCKS);
    let blocks = match (blocks.len(), more) {
        (0, _) => None,
        (_, 0) => Some(shown),
        (_, more) => Some(format!("{shown} and {more} more blocks")),
    };
    let all: Vec<String> = numbers.chain(blocks).collect();
    if all.is_empty() { "nothing".into() } else { all.join(", ") }
}

/// The elements of a list; none of what is no list.
pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
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

    #[test]
    fn what_is_left_of_the_votes_of_the_retired_is_told_in_one_line() {
        let right = |replica: &str, retired: bool, votes: u64| {
            json!({"replica": replica, "site": "paris", "reachable": !retired, "age_ms": 0, "retiring": retired,
                "retired": retired, "free": {"Votes": votes}})
        };
        let rights = [right("r1", false, 90), right("r2", true, 7), right("r3", true, 3)];
        let mut pool =
            json!({"subject": {"votes": "on retirements"}, "claims": 0, "conserved": true, "rights": rights});
        let text = describe(&json!({"conserved": true, "pools": [pool]}));
        assert!(text.contains("r1") && !text.contains("r2"), "{text}");
        assert!(text.contains("2 retired, of whose votes 10 are nobody's"), "{text}");
        pool["subject"] = json!({"host": "h", "site": "paris"});
        let text = describe(&json!({"conserved": true, "pools": [pool]}));
        assert!(text.lines().any(|line| line.contains("r2") && line.contains("retired ")), "{text}");
    }

    #[test]
    fn of_addresses_it_is_told_which() {
        let of = |n: Value, blocks: Value| json!({"Addresses": n, "addresses": blocks});
        let pools = json!({"conserved": true, "pools": [{
            "subject": {"address_pool": "p1", "name": "public"}, "claims": 1, "conserved": true,
            "minted": of(json!("18446744073709551616"), json!(["2001:db8::/64"])), "burnt": {},
            "claimed": of(json!(1), json!(["2001:db8::"])), "capacity": {}, "free": {}, "pending": null,
            "rights": [{"replica": "r1", "site": "paris", "reachable": true, "age_ms": 0, "retiring": false,
                "free": of(json!(3), json!(["2001:db8::1", "2001:db8::2/127"]))}],
        }]});
        let mut pools = pools;
        let text = describe(&pools);
        assert!(text.starts_with("address pool public: 1 claims, adds up\n"), "{text}");
        assert!(text.lines().nth(2).unwrap_or_default().contains("addresses     18446744073709551616"), "{text}");
        assert!(text.contains("3 addresses, 2001:db8::1, 2001:db8::2/127"), "{text}");
        assert_eq!(text.matches("addresses").count(), 2, "{text}");
        pools["pools"][0]["confirmed"] = json!(true);
        pools["pools"][0]["rights"][0]["unconfirmed"] = of(json!(1), json!(["2001:db8::9"]));
        let text = describe(&pools);
        assert!(text.contains("adds up, grants are countersigned by the root"), "{text}");
        assert!(text.contains("(and not countersigned: 1 addresses, 2001:db8::9)"), "{text}");
    }
}
