//! Replicas that are gone for good, that come back, and that start from copies of their stores, as real processes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::time::Duration;

use luc_tests::{Agent, Client, Cloud, Site, eventually};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

fn replica_of(site: &Site, of: &str) -> Value {
    let status: Value = serde_json::from_str(&site.luc(&["status", "--json"]).unwrap()).unwrap();
    status["replicas"].as_array().unwrap().iter().find(|replica| replica["site"] == of).unwrap().clone()
}

/// Free rights of each pool, summed up over all holders, and whether everything adds up.
fn free(client: &Client) -> (u64, bool) {
    let pools = client.get("/luc/v1/pools").unwrap();
    let rights = pools["pools"].as_array().unwrap().iter().flat_map(|pool| pool["rights"].as_array().unwrap().clone());
    let sum = rights.map(|right| right["free"]["Instances"].as_u64().unwrap_or(0)).sum();
    (sum, pools["conserved"] == true)
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[test]
fn a_site_that_is_gone_is_retired_and_comes_back_as_another_replica() {
    let mut cloud = Cloud::start(&["paris", "lyon", "rennes"]).unwrap();
    let (paris, rennes) = (cloud.login(0).unwrap(), cloud.login(2).unwrap());
    let image = paris.upload("tiny", &[1; 4096]).unwrap();
    let clients = [paris.clone(), cloud.login(1).unwrap(), rennes.clone()];
    cloud.agree(&clients, LONG).unwrap();
    let kept = rennes.create("kept", "rennes", &image).unwrap();
    rennes.becomes(&kept, "ACTIVE", LONG).unwrap();
    cloud.agree(&clients, LONG).unwrap();
    let dead = replica_of(&cloud.sites[0], "rennes")["id"].as_str().unwrap().to_owned();
    let alive = cloud.sites[0].luc(&["replica", "retire", &dead]).unwrap_err().to_string();
    assert!(alive.contains("stop it first"), "{alive}");

    cloud.sites[2].kill();
    let lyon = replica_of(&cloud.sites[0], "lyon")["id"].as_str().unwrap().to_owned();
    eventually(LONG, "the silence to be seen", || Ok(replica_of(&cloud.sites[0], "rennes")["reachable"] == false))
        .unwrap();
    let (before, _) = free(&paris);
    let said = cloud.sites[0].luc(&["replica", "retire", &dead, "--heir", &lyon]).unwrap();
    assert!(said.contains(&dead), "{said}");
    for at in [0, 1] {
        eventually(LONG, "the retirement to take effect", || {
            Ok(replica_of(&cloud.sites[at], "rennes")["retirement"]["state"] == "retired")
        })
        .unwrap();
    }
    eventually(LONG, "the others to have all", || {
        let pools = paris.get("/luc/v1/pools")?;
        let rights = pools["pools"].as_array().into_iter().flatten().flat_map(|pool| pool["rights"].as_array());
        // Of its votes what the two others cannot have in equal parts stays.
        let is_some = |free: &Value| *free != serde_json::json!({}) && *free != serde_json::json!({"Votes": 1});
        let left = |right: &Value| right["replica"] == dead.as_str() && is_some(&right["free"]);
        Ok(!rights.flatten().any(left))
    })
    .unwrap();
    assert_eq!(free(&paris), (before, true), "rights moved, and none was made or lost");

    // It comes back, is told so, and answers reads only.
    cloud.sites[2].start().unwrap();
    eventually(LONG, "it to be told", || Ok(cloud.sites[2].log().contains("was retired"))).unwrap();
    let rennes = cloud.login(2).unwrap();
    let refused = rennes.create("late", "rennes", &image).unwrap_err().to_string();
    assert!(refused.contains("503") && refused.contains("was retired"), "{refused}");
    assert!(rennes.server(&kept).unwrap().is_some());
    cloud.sites[2].kill();

    // It joins anew: another replica of the same site, with the same host and what runs there.
    let token = cloud.sites[0].luc(&["token", "--site", "rennes"]).unwrap();
    let said = cloud.sites[2].luc(&["join", "--replace", token.trim()]).unwrap();
    assert!(said.contains(&dead), "{said}");
    cloud.sites[2].start().unwrap();
    let rennes = cloud.login(2).unwrap();
    let clients = [paris.clone(), cloud.login(1).unwrap(), rennes.clone()];
    cloud.agree(&clients, LONG).unwrap();
    eventually(LONG, "its host", || Ok(paris.server(&kept)?.is_some_and(|server| server["status"] == "ACTIVE")))
        .unwrap();
    paris.call("DELETE", &format!("/compute/v2.1/servers/{kept}"), None).unwrap();
    eventually(LONG, "the heir to release it", || Ok(free(&paris) == (before + 1, true))).unwrap();
    let new = rennes.create("new", "rennes", &image).unwrap();
    rennes.becomes(&new, "ACTIVE", LONG).unwrap();
}

#[test]
fn a_copy_of_a_store_writes_nothing() {
    let mut cloud = Cloud::start(&["paris"]).unwrap();
    cloud.sites[0].kill();
    let data = cloud.dir().join("paris/data");
    std::fs::rename(&data, cloud.dir().join("before")).unwrap();
    copy(&cloud.dir().join("before"), &data);
    cloud.sites[0].start().unwrap();
    eventually(LONG, "it to notice", || Ok(cloud.sites[0].log().contains("it is a copy"))).unwrap();
    let client = cloud.login(0).unwrap();
    let refused = client.upload("tiny", &[1; 16]).unwrap_err().to_string();
    assert!(refused.contains("503") && refused.contains("it is a copy"), "{refused}");
    assert!(cloud.sites[0].luc(&["replica", "moved"]).is_err(), "not while it runs");
    cloud.sites[0].kill();
    cloud.sites[0].luc(&["replica", "moved"]).unwrap();
    cloud.sites[0].start().unwrap();
    cloud.login(0).unwrap().upload("tiny", &[1; 16]).unwrap();
}

#[test]
fn a_disk_that_was_rolled_back_in_its_place_is_noticed_before_it_writes() {
    let mut cloud = Cloud::start(&["paris", "lyon"]).unwrap();
    let clients = [cloud.login(0).unwrap(), cloud.login(1).unwrap()];
    cloud.agree(&clients, LONG).unwrap();
    cloud.sites[1].kill();
    let store = cloud.dir().join("lyon/data/store.redb");
    let old = std::fs::read(&store).unwrap();
    cloud.sites[1].start().unwrap();
    cloud.login(1).unwrap().post("/identity/v3/users", &serde_json::json!({"user": {"name": "eve"}})).unwrap();
    cloud.agree(&clients, LONG).unwrap();
    cloud.sites[1].kill();
    // In place: the file stays the same one.
    std::fs::write(&store, &old).unwrap();
    cloud.sites[1].start().unwrap();
    eventually(LONG, "it to notice", || Ok(cloud.sites[1].log().contains("the store is an old copy"))).unwrap();
    let refused = cloud.login(1).unwrap().post("/identity/v3/users", &serde_json::json!({"user": {"name": "bob"}}));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("503") && refused.contains("old copy"), "{refused}");
    let eve = cloud.login(0).unwrap().get("/identity/v3/users?name=eve").unwrap();
    assert_eq!(eve["users"].as_array().unwrap().len(), 1, "the others have what it lost");
}

fn witness_of(site: &Site, of: &str) -> String {
    let status: Value = serde_json::from_str(&site.luc(&["status", "--json"]).unwrap()).unwrap();
    let sites = status["sites"].as_array().unwrap();
    sites.iter().find(|site| site["name"] == of).unwrap()["witness"].as_str().unwrap().to_owned()
}

/// No peer can be reached; only the agent on another machine knows what the disk has lost.
#[test]
fn a_further_host_is_a_witness_of_a_disk_that_was_rolled_back() {
    let mut cloud = Cloud::start(&["paris", "lyon"]).unwrap();
    let clients = [cloud.login(0).unwrap(), cloud.login(1).unwrap()];
    cloud.agree(&clients, LONG).unwrap();
    let _agent = Agent::join(&cloud, 1, "second").unwrap();
    eventually(LONG, "a witness", || Ok(witness_of(&cloud.sites[1], "lyon") == "agent")).unwrap();
    eventually(LONG, "the other site to hear of it", || Ok(witness_of(&cloud.sites[0], "lyon") == "agent")).unwrap();
    let second = || {
        let hosts = clients[1].get("/luc/v1/hosts")?;
        Ok(hosts["hosts"].as_array().is_some_and(|hosts| hosts.iter().any(|host| host["name"] == "second")))
    };
    eventually(LONG, "its record", second).unwrap();
    cloud.cut(1);
    cloud.sites[1].kill();
    // The whole disk of the replica's machine is rolled back, and the agent in the replica's process with it.
    let (data, before) = (cloud.dir().join("lyon/data"), cloud.dir().join("before"));
    copy(&data, &before);
    cloud.sites[1].start().unwrap();
    let client = cloud.login(1).unwrap();
    let image = client.upload("tiny", &[1; 16]).unwrap();
    let lost = client.create("lost", "lyon:second", &image).unwrap();
    // It was told what its order rests on, and keeps that. What orders nothing it is told, too, but nobody waits for that.
    client.becomes(&lost, "ACTIVE", LONG).unwrap();
    cloud.sites[1].kill();
    for part in ["store.redb", "agent/agent.redb"] {
        // In place: the files stay the same ones.
        std::fs::write(data.join(part), std::fs::read(before.join(part)).unwrap()).unwrap();
    }
    cloud.sites[1].start().unwrap();
    eventually(LONG, "it to notice", || Ok(cloud.sites[1].log().contains("the store is an old copy"))).unwrap();
    let refused = cloud.login(1).unwrap().upload("more", &[1; 16]).unwrap_err().to_string();
    assert!(refused.contains("503") && refused.contains("old copy"), "{refused}");
}

#[test]
fn a_site_of_one_machine_restarts_unattended_and_says_that_it_has_no_witness() {
    let mut cloud = Cloud::start(&["paris"]).unwrap();
    let client = cloud.login(0).unwrap();
    let image = client.upload("tiny", &[1; 16]).unwrap();
    let id = client.create("before", "paris", &image).unwrap();
    client.becomes(&id, "ACTIVE", LONG).unwrap();
    assert_eq!(witness_of(&cloud.sites[0], "paris"), "none", "the agent in its process is restored with it");
    cloud.sites[0].kill();
    cloud.sites[0].start().unwrap();
    let client = cloud.login(0).unwrap();
    let id = client.create("after", "paris", &image).unwrap();
    client.becomes(&id, "ACTIVE", LONG).unwrap();
    assert!(cloud.sites[0].log().contains("no witness"));
    // A further host that was there all along agrees, too.
    let agent = Agent::join(&cloud, 0, "second").unwrap();
    eventually(LONG, "a witness", || Ok(witness_of(&cloud.sites[0], "paris") == "agent")).unwrap();
    client.upload("more", &[1; 16]).unwrap();
    cloud.sites[0].kill();
    cloud.sites[0].start().unwrap();
    let client = cloud.login(0).unwrap();
    client.upload("still", &[1; 16]).unwrap();
    eventually(LONG, "the witness again", || Ok(witness_of(&cloud.sites[0], "paris") == "agent")).unwrap();
    client.upload("more", &[1; 16]).unwrap();
    // One that is away keeps nobody from writing.
    drop(agent);
    cloud.sites[0].kill();
    cloud.sites[0].start().unwrap();
    cloud.login(0).unwrap().upload("alone", &[1; 16]).unwrap();
}
