//! Takes away what runs have made in a deployment that is not the suite's: servers that fill its hosts, above all.
//!
//! All of it is in projects of their own, `jepsen-WORKLOAD-NUMBER`, or is called so. What cannot be taken away stays, and is told:
//! it is no rule's business. Nothing else is touched.

use std::time::Duration;

use serde_json::Value;

use super::say;
use crate::client::{Client, Trouble};
use crate::workload::{self, Cloud};

/// How long servers may take to be gone.
const GONE: Duration = Duration::from_secs(60);

/// Takes away what this run and earlier ones have made, and tells what is left.
pub fn tidy(cloud: &Cloud, clients: &[Client]) {
    let projects =
        clients.iter().find_map(|client| Some((client, named(client, "/identity/v3/projects", "projects").ok()?)));
    let Some((client, projects)) = projects else { return };
    if projects.is_empty() {
        return;
    }
    say(&format!("taking away what runs have made there: {} projects …", projects.len()));
    let mut left = Vec::new();
    for (id, name) in &projects {
        left.extend(empty(cloud, client, id, name).err().map(|trouble| format!("servers of {name}: {trouble}")));
    }
    for (pool, name) in named(client, "/luc/v1/pools", "pools").unwrap_or_default() {
        left.extend(give_back(client, &pool).err().map(|trouble| format!("addresses of {name}: {trouble}")));
    }
    let mut delete = |path: &str, what: &str| {
        for (id, name) in named(client, path, what).unwrap_or_default() {
            let path = path.split('?').next().unwrap_or(path);
            let done = client.call("DELETE", &format!("{path}/{id}"), None);
            left.extend(done.err().map(|trouble| format!("{name} ({what}): {trouble}")));
        }
    };
    delete("/image/v2/images?limit=1000", "images");
    delete("/compute/v2.1/flavors", "flavors");
    delete("/luc/v1/pools", "pools");
    delete("/identity/v3/users", "users");
    delete("/identity/v3/projects", "projects");
    for what in left {
        say(&format!("  could not be taken away: {what}"));
    }
}

/// Deletes all servers of a project, and waits until they are gone.
fn empty(cloud: &Cloud, client: &Client, project: &str, name: &str) -> Result<(), Trouble> {
    let users = client.get("/identity/v3/users?name=admin")?;
    client.grant(project, users["users"][0]["id"].as_str().unwrap_or_default(), "admin")?;
    let inside = client.as_user("admin", &cloud.password, name);
    inside.insist(GONE, |inside| {
        let servers = inside.servers()?;
        for server in &servers {
            // One that is on its way out already is no trouble.
            let _ = inside.delete_server(server["id"].as_str().unwrap_or_default());
        }
        match servers.len() {
            0 => Ok(()),
            count => Err(Trouble::Refused { status: 409, message: format!("{count} servers are not gone yet") }),
        }
    })
}

/// Gives all addresses of a pool back, and waits until those who gave them out have them.
fn give_back(client: &Client, pool: &str) -> Result<(), Trouble> {
    client.insist(GONE, |client| {
        let shown = client.get(&format!("/luc/v1/pools/{pool}"))?;
        let taken: Vec<&str> =
            shown["pool"]["taken"].as_array().into_iter().flatten().filter_map(|claim| claim["id"].as_str()).collect();
        for claim in &taken {
            let _ = client.call("DELETE", &format!("/luc/v1/pools/{pool}/claims/{claim}"), None);
        }
        match shown["pool"]["claims"].as_u64().unwrap_or(0) {
            0 => Ok(()),
            count => Err(Trouble::Refused { status: 409, message: format!("{count} claims are not back yet") }),
        }
    })
}

/// What of a list is a run's, with its name.
fn named(client: &Client, path: &str, what: &str) -> Result<Vec<(String, String)>, Trouble> {
    let list = client.get(path)?;
    Ok(list[what].as_array().into_iter().flatten().filter_map(ours).collect())
}

/// The id and the name of a thing that a run has made.
fn ours(thing: &Value) -> Option<(String, String)> {
    // Address pools are named, and found, by what they are of.
    let thing = if thing["subject"].is_object() { &thing["subject"] } else { thing };
    let id = thing["id"].as_str().or_else(|| thing["address_pool"].as_str())?;
    let name = thing["name"].as_str().filter(|name| is_ours(name))?;
    Some((id.to_owned(), name.to_owned()))
}

fn is_ours(name: &str) -> bool {
    let Some((workload, rest)) = name.strip_prefix("jepsen-").and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    let number = rest.split('-').next().unwrap_or_default();
    let known = workload::all().iter().any(|one| one.name() == workload);
    known && number.len() == 8 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_runs_have_made_is_taken_away() {
        assert!(is_ours("jepsen-set-0a1b2c3d") && is_ours("jepsen-auth-0a1b2c3d-user-7"));
        for theirs in
            ["jepsen", "jepsen-set", "jepsen-set-mine", "jepsen-mine-0a1b2c3d", "set-0a1b2c3d", "jepsen-set-0a1b2c3"]
        {
            assert!(!is_ours(theirs), "{theirs}");
        }
    }

    #[test]
    fn things_are_found_by_their_own_ids() {
        let name = "jepsen-images-0a1b2c3d";
        let both = |id: &str| Some((id.to_owned(), name.to_owned()));
        assert_eq!(ours(&json!({"id": "p", "name": name})), both("p"));
        assert_eq!(ours(&json!({"id": "ledger", "subject": {"address_pool": "p", "name": name}})), both("p"));
        assert_eq!(ours(&json!({"id": "ledger", "subject": {"host": "h"}})), None);
        assert_eq!(ours(&json!({"id": "p", "name": "theirs"})), None);
    }
}
