//! `luc host dead` and `luc host revive`.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::config::Config;
use super::status::{ask, tell};
use super::{Dead, Revive};

const WARNING: &str = "\
Its servers go to ERROR: deleting them frees what they hold at once, and they can be evacuated, which starts them anew on \
another host. If the machine still runs, or comes back without being seen by its site, they run TWICE, with all that follows \
for their data and addresses. Say so only of a machine that is off, and stays off until its site can tell its agent. This \
cannot be taken back: the machine comes back empty (luc host revive).";

pub(super) fn dead(args: &Dead) -> Result<()> {
    let config = Config::load(&args.configured.config)?;
    let host = find(&config, &args.host)?;
    if !args.yes {
        bail!("{} of site {} would be declared dead. {WARNING}\nSay --yes if that is so.", host["name"], host["site"]);
    }
    let answer = tell(&config, &path(&host, "dead"), &json!({}))?;
    let host = &answer["host"];
    println!(
        "Host {} is dead. {} claims of its servers wait for their deletion or evacuation.",
        host["name"], host["claims"]
    );
    Ok(())
}

pub(super) fn revive(args: &Revive) -> Result<()> {
    let config = Config::load(&args.configured.config)?;
    let host = find(&config, &args.host)?;
    tell(&config, &path(&host, "revive"), &json!({}))?;
    println!("Host {} may come back: start its agent.", host["name"]);
    Ok(())
}

fn path(host: &Value, act: &str) -> String {
    format!("/luc/v1/hosts/{}/{act}", host["id"].as_str().unwrap_or_default())
}

/// By its id, or by a name that only one host has.
fn find(config: &Config, wanted: &str) -> Result<Value> {
    let hosts = ask(config, "/luc/v1/hosts")?;
    let hosts = hosts["hosts"].as_array().context("the answer has no hosts")?;
    let mut found = hosts.iter().filter(|host| host["id"] == wanted || host["name"] == wanted);
    match (found.next(), found.next()) {
        (Some(host), None) => Ok(host.clone()),
        (Some(_), Some(_)) => bail!("several hosts are called {wanted}: give the id, as luc status --json shows it"),
        (None, _) => bail!("there is no host {wanted}"),
    }
}
