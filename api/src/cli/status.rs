//! `luc status`, `luc revoke`, `luc replica retire`: what an operator asks the replica of this machine.
//!
//! Whoever can read the replica's key is its operator: the command signs a short token of its own with it, and needs
//! no password.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use luc_sync::ca::Credentials;
use serde_json::{Value, json};

use super::client::Client;
use super::config::Config;
use super::{Retire, Revoke, StatusArgs};

/// A client of the replica of this machine.
pub(super) fn client(config: &Config) -> Result<Client> {
    let credentials = Credentials::load(&config.data_dir)?;
    let mut address: SocketAddr = config.api.listen;
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let token = crate::auth::operator_token(&credentials.key);
    Ok(Client::new(&format!("http://{address}")).with_token(token))
}

pub(super) fn ask(config: &Config, path: &str) -> Result<Value> {
    wait_for(client(config)?.get(path))
}

pub(super) fn tell(config: &Config, path: &str, body: &Value) -> Result<Value> {
    wait_for(client(config)?.post(path, body))
}

/// The answer to what was asked.
pub(super) fn wait_for(answer: impl Future<Output = Result<Value>>) -> Result<Value> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(answer)
}

pub(super) fn status(args: &StatusArgs) -> Result<()> {
    let config = Config::load(&args.configured.config)?;
    let status = ask(&config, "/luc/v1/status")?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", describe(&status));
    }
    Ok(())
}

pub(super) fn revoke(args: &Revoke) -> Result<()> {
    let config = Config::load(&args.configured.config)?;
    tell(&config, &format!("/luc/v1/replicas/{}/revoke", args.replica), &json!({}))?;
    println!("Revoked the certificate of {}.", args.replica);
    Ok(())
}

pub(super) fn retire(args: &Retire) -> Result<()> {
    let config = Config::load(&args.configured.config)?;
    let body = json!({"replicas": args.replicas, "heir": args.heir, "force": args.force});
    let answer = tell(&config, "/luc/v1/replicas/retire", &body)?;
    for replica in answer["replicas"].as_array().into_iter().flatten() {
        let id = replica["id"].as_str().unwrap_or("?");
        println!("{id}: {}", retirement(&replica["retirement"]).unwrap_or_else(|| "not known".into()));
    }
    Ok(())
}

/// Where a retirement stands, in words; none if there is none.
fn retirement(value: &Value) -> Option<String> {
    match value["state"].as_str()? {
        "retired" => Some(format!(
            "retired: its entries up to {} count, its rights are those of {}",
            value["cut"],
            value["heir"].as_str().unwrap_or("nobody")
        )),
        _ => {
            let awaited: Vec<&str> =
                value["awaited"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            Some(format!("being retired: waits for the word of {}", awaited.join(", ")))
        }
    }
}

/// An object as `key value, key value`.
fn words(value: &Value) -> String {
    let one =
        |(key, value): (&String, &Value)| format!("{key} {}", value.as_str().map_or(value.to_string(), str::to_owned));
    let words: Vec<String> = value.as_object().into_iter().flatten().map(one).collect();
    if words.is_empty() { "nothing".into() } else { words.join(", ") }
}

fn describe(status: &Value) -> String {
    use std::fmt::Write;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let ago =
        |value: &Value| value.as_u64().map_or("-".to_owned(), |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100));
    let mut out = String::new();
    let _ = writeln!(
        out,
        "cloud {}  site {}  store {}",
        text(&status["cloud"]),
        text(&status["site"]),
        text(&status["store"])
    );
    let _ = writeln!(
        out,
        "{} servers, {} entries, digest {:.16}",
        status["servers"],
        status["entries"],
        text(&status["digest"])
    );
    if let Some(giver) = status["on_trust"].as_str() {
        let _ =
            writeln!(out, "its state was given by {giver}; more than half of the others have not shown the same yet");
    }
    let _ = writeln!(out, "\nSITE              REACHABLE  REPLICAS  WITNESS  API");
    for site in status["sites"].as_array().into_iter().flatten() {
        let witness = text(&site["witness"]);
        let reach = if site["reachable"] == true { "yes" } else { "no" };
        let _ = writeln!(
            out,
            "{:<17} {reach:<10} {:<9} {witness:<8} {}",
            text(&site["name"]),
            site["replicas"],
            text(&site["endpoint"])
        );
    }
    let _ = writeln!(
        out,
        "\nREPLICA                               SITE         REACHED  SINCE       RTT       LAG  BEHIND  DIGEST"
    );
    for replica in status["replicas"].as_array().into_iter().flatten() {
        let state = match (&replica["revoked"], &replica["local"], &replica["reachable"]) {
            (Value::Bool(true), _, _) => "revoked",
            (_, Value::Bool(true), _) => "here",
            (_, _, Value::Bool(true)) => "yes",
            _ => "no",
        };
        let rtt =
            replica["rtt_us"].as_u64().map_or("-".to_owned(), |us| format!("{}.{} ms", us / 1000, us % 1000 / 100));
        let _ = writeln!(
            out,
            "{:<37} {:<12} {state:<8} {:<11} {rtt:<9} {:<4} {:<7} {:.16}",
            text(&replica["id"]),
            text(&replica["site"]),
            ago(&replica["since_ms"]),
            replica["lag"].as_u64().unwrap_or(0),
            replica["behind"].as_u64().unwrap_or(0),
            text(&replica["digest"]),
        );
        if let Some(words) = retirement(&replica["retirement"]) {
            let _ = writeln!(out, "    {words}");
        }
        if let Some(reason) = replica["quarantine"].as_str() {
            let _ = writeln!(out, "    in quarantine: {reason}");
        }
        if replica["same_state"] == false {
            let _ = writeln!(
                out,
                "    it had another state than this replica, from the same entries: one of the two errs or lies"
            );
        }
        if let Some(skew) = replica["clock_skew_ms"].as_i64() {
            let _ = writeln!(out, "    its clock is off by {} s", skew / 1000);
        }
    }
    let _ = writeln!(out, "\nHOST              SITE         STATE    HEARD AGO  RUNNING  CLAIMED / CAPACITY");
    for host in status["hosts"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "{:<17} {:<12} {:<8} {:<10} {:<8} {} / {}",
            text(&host["name"]),
            text(&host["site"]),
            text(&host["state"]),
            ago(&host["heard_ms_ago"]),
            host["running"].as_u64().unwrap_or(0),
            words(&host["claimed"]),
            words(&host["capacity"]),
        );
        if let Some(dead) = host["dead"].as_object() {
            let back = if dead["revived"] == true { "; it may come back" } else { "" };
            let by = dead["by"].as_str().unwrap_or("the operator");
            let _ = writeln!(out, "    declared dead by {by} at site {}{back}", text(&dead["site"]));
        }
        for orphan in host["orphans"].as_array().into_iter().flatten() {
            let _ = writeln!(out, "    orphan (a domain of this cloud that nobody ordered): {}", text(orphan));
        }
        for transfer in host["transfers"].as_array().into_iter().flatten() {
            let _ = writeln!(
                out,
                "    fetching image {:.12}: {} of {} bytes",
                text(&transfer[0]),
                transfer[1],
                transfer[2]
            );
        }
    }
    for transfer in status["transfers"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "fetching image {:.12}: {} of {} bytes",
            text(&transfer["blob"]),
            transfer["done"],
            transfer["size"]
        );
    }
    out
}
