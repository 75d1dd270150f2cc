//! Server groups over sites that are real processes: hard policies hold while the cloud is split, and rights to place
//! members are asked for where they are made.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use luc_tests::{Client, Cloud, eventually};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

fn group(client: &Client, policy: &str) -> String {
    let body = json!({"server_group": {"name": policy, "policy": policy}});
    client.post("/compute/v2.1/os-server-groups", &body).unwrap()["server_group"]["id"].as_str().unwrap().to_owned()
}

fn create(client: &Client, image: &str, group: &str) -> Result<Value> {
    create_some(client, image, group, 1)
}

fn create_some(client: &Client, image: &str, group: &str, count: u64) -> Result<Value> {
    let server =
        json!({"name": "member", "flavorRef": "42", "imageRef": image, "networks": "none", "min_count": count});
    client.post("/compute/v2.1/servers", &json!({"server": server, "os:scheduler_hints": {"group": group}}))
}

/// Where the members of a group are, as one site sees it.
fn hosts(client: &Client, group: &str) -> BTreeMap<String, String> {
    let shown = client.get(&format!("/compute/v2.1/os-server-groups/{group}")).unwrap();
    let members: BTreeSet<&str> =
        shown["server_group"]["members"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let servers = client.get("/compute/v2.1/servers/detail").unwrap();
    let text = |server: &Value, key: &str| server[key].as_str().unwrap_or_default().to_owned();
    let all = servers["servers"].as_array().unwrap().iter();
    let all = all.map(|server| (text(server, "id"), text(server, "OS-EXT-SRV-ATTR:host")));
    all.filter(|(id, _)| members.contains(id.as_str())).collect()
}

#[test]
fn two_halves_of_a_split_cloud_keep_a_groups_policy() {
    let cloud = Cloud::start(&["paris", "lyon", "rennes"]).unwrap();
    let clients = [0, 1, 2].map(|at| cloud.login(at).unwrap());
    let [paris, lyon, rennes] = &clients;
    let image = paris.upload("tiny", &[0; 4096]).unwrap();
    let up = || {
        let hosts = paris.get("/luc/v1/hosts")?;
        let up = hosts["hosts"].as_array().into_iter().flatten().filter(|host| host["state"] == "up");
        Ok(up.count() == 3)
    };
    eventually(LONG, "all hosts to be up", up).unwrap();
    let (apart, together) = (group(paris, "anti-affinity"), group(paris, "affinity"));
    cloud.agree(&clients, LONG).unwrap();
    // Rights that only others can make are asked for, over the network.
    let whole = group(paris, "anti-affinity");
    create_some(paris, &image, &whole, 3).unwrap();
    let spread: BTreeSet<String> = hosts(paris, &whole).into_values().collect();
    assert_eq!(spread.len(), 3, "{spread:?}");
    cloud.agree(&clients, LONG).unwrap();

    cloud.cut(2);
    let away = |client: &Client, names: &[&str]| -> Result<bool> {
        let sites = client.get("/luc/v1/sites")?;
        let sites = sites["sites"].as_array().cloned().unwrap_or_default();
        let is_away = |name: &&str| sites.iter().any(|site| site["name"] == *name && site["reachable"] == false);
        Ok(names.iter().all(is_away))
    };
    let cut_off = || Ok(away(rennes, &["paris", "lyon"])? && away(paris, &["rennes"])? && away(lyon, &["rennes"])?);
    eventually(LONG, "the cut to be seen", cut_off).unwrap();
    create(rennes, &image, &apart).unwrap();
    let refused = create(rennes, &image, &apart).unwrap_err().to_string();
    assert!(refused.contains("409") && refused.contains("paris (out of reach"), "{refused}");
    create(lyon, &image, &apart).unwrap();
    create(lyon, &image, &apart).unwrap();
    let refused = create(lyon, &image, &apart).unwrap_err().to_string();
    assert!(refused.contains("rennes (out of reach"), "{refused}");
    // Of the group with affinity, paris holds the right; lyon gets it, rennes cannot.
    create(lyon, &image, &together).unwrap();
    create(paris, &image, &together).unwrap();
    let refused = create(rennes, &image, &together).unwrap_err().to_string();
    assert!(refused.contains("the right to place members of the server group is not here"), "{refused}");

    cloud.wan.heal();
    cloud.agree(&clients, LONG).unwrap();
    for client in &clients {
        let found = hosts(client, &apart);
        assert_eq!(found.len(), 3);
        assert_eq!(found.into_values().collect::<BTreeSet<_>>().len(), 3, "each on a host of its own");
        let found = hosts(client, &together);
        assert_eq!(found.len(), 2);
        assert_eq!(found.into_values().collect::<BTreeSet<_>>().len(), 1, "all on one host");
        assert_eq!(client.get("/luc/v1/pools").unwrap()["conserved"], true);
    }
    let refused = create(rennes, &image, &apart).unwrap_err().to_string();
    assert!(refused.contains("3 are ruled out by the server group's policy"), "{refused}");
    create(rennes, &image, &together).unwrap();
}
