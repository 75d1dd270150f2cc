//! `luc pools create`, `set`, `delete`: address pools, made and changed by whoever operates the replica of this machine.
//!
//! A pool is told by its name as people know it; names can be given twice in two halves of a split cloud, and then only
//! the id tells which is meant.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::config::Config;
use super::pools::{describe_one, list};
use super::status::{ask, client, tell, wait_for};
use super::{CreatePool, DeletePool, PoolsCommand, SetPool, StatusArgs};

const POOLS: &str = "/luc/v1/pools";

/// Does what was asked, and prints the pool as it is then.
pub(super) fn run(command: &PoolsCommand) -> Result<()> {
    match command {
        PoolsCommand::Create(args) => create(args),
        PoolsCommand::Set(args) => set(args),
        PoolsCommand::Delete(args) => delete(args),
    }
}

fn create(args: &CreatePool) -> Result<()> {
    let config = Config::load(&args.shown.configured.config)?;
    let CreatePool { name, cidrs, description, confirmed, .. } = args;
    let body = json!({"name": name, "cidrs": cidrs, "description": description, "confirmed": confirmed});
    print(&args.shown, &tell(&config, POOLS, &body)?)
}

fn set(args: &SetPool) -> Result<()> {
    if args.add.is_empty() && args.remove.is_empty() {
        bail!("nothing to change: --add or --remove says which addresses");
    }
    let config = Config::load(&args.shown.configured.config)?;
    let path = path(&config, &args.pool)?;
    let mut body = json!({});
    for (key, addresses) in [("add", &args.add), ("remove", &args.remove)] {
        if !addresses.is_empty() {
            body[key] = json!(addresses);
        }
    }
    print(&args.shown, &wait_for(client(&config)?.patch(&path, &body))?)
}

fn delete(args: &DeletePool) -> Result<()> {
    let config = Config::load(&args.shown.configured.config)?;
    let path = path(&config, &args.pool)?;
    wait_for(client(&config)?.delete(&path))?;
    if args.shown.json {
        println!("{}", serde_json::to_string_pretty(&json!({"deleted": path.rsplit('/').next()}))?);
    } else {
        println!("Deleted address pool {}.", args.pool);
    }
    Ok(())
}

fn print(args: &StatusArgs, answer: &Value) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answer["pool"])?);
    } else {
        let pool = &answer["pool"];
        println!("id {}", pool["id"].as_str().unwrap_or("?"));
        print!("{}", describe_one(pool));
    }
    Ok(())
}

/// Where the API has the pool that is meant.
fn path(config: &Config, wanted: &str) -> Result<String> {
    Ok(format!("{POOLS}/{}", find(&ask(config, POOLS)?, wanted)?))
}

/// By its id, or by a name that only one pool has.
fn find(pools: &Value, wanted: &str) -> Result<String> {
    let subjects = list(&pools["pools"]).map(|pool| &pool["subject"]).filter(|subject| !subject["name"].is_null());
    let mut ids: Vec<&str> = subjects
        .filter(|subject| subject["address_pool"] == wanted || subject["name"] == wanted)
        .filter_map(|subject| subject["address_pool"].as_str())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    match ids.as_slice() {
        [] => bail!("there is no address pool {wanted}: luc pools shows all"),
        [id] => Ok((*id).to_owned()),
        several => bail!("several address pools are called {wanted}: give the id, one of {}", several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pool_is_found_by_id_or_by_a_name_that_one_has() {
        let pools = json!({"pools": [
            {"subject": {"address_pool": "p1", "name": "public"}},
            {"subject": {"address_pool": "p2", "name": "twice"}},
            {"subject": {"address_pool": "p3", "name": "twice"}},
            {"subject": {"address_pool": "p4", "name": null}},
            {"subject": {"project": "p5", "name": "quota"}},
            {"subject": {"votes": "on retirements"}},
        ]});
        assert_eq!(find(&pools, "public").unwrap(), "p1");
        assert_eq!(find(&pools, "p3").unwrap(), "p3");
        assert!(find(&pools, "twice").unwrap_err().to_string().contains("p2, p3"));
        for wanted in ["p4", "p5", "quota", "nothing"] {
            assert!(find(&pools, wanted).unwrap_err().to_string().contains("there is no address pool"), "{wanted}");
        }
    }
}
