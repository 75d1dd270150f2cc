//! A site that was away for longer than logs are kept comes back with real processes: it takes a snapshot, and nothing that
//! anybody acknowledged is lost (`PROTOCOL.md`, E4, M5).
//!
//! Broken once, and this test failed: a replica that did not replay its own entries on the snapshot.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use luc_tests::{Client, Cloud, eventually};
use serde_json::json;

const LONG: Duration = Duration::from_secs(60);
const LIMIT: u64 = 64 << 10;

fn add(client: &Client, name: &str) {
    let project = json!({"project": {"name": name, "description": "x".repeat(2_000)}});
    client.post("/identity/v3/projects", &project).unwrap();
}

fn has(client: &Client, name: &str) -> bool {
    let found = client.get(&format!("/identity/v3/projects?name={name}")).unwrap();
    found["projects"].as_array().unwrap().len() == 1
}

fn log_bytes(client: &Client) -> u64 {
    let metrics = client.send("GET", "/metrics", &[], &[]).unwrap().text;
    metrics.lines().find_map(|line| line.strip_prefix("luc_log_bytes ")).unwrap().parse().unwrap()
}

#[test]
fn a_site_that_was_away_for_longer_than_logs_are_kept_takes_a_snapshot_and_loses_nothing() {
    let mut cloud =
        Cloud::start_with(&["paris", "lyon", "rennes"], &format!("[replica]\nlog_max_bytes = {LIMIT}\n")).unwrap();
    let clients: Vec<Client> = (0..3).map(|at| cloud.login(at).unwrap()).collect();
    cloud.agree(&clients, LONG).unwrap();

    // Away for a moment: it catches up by the log.
    cloud.cut(2);
    add(&clients[0], "soon");
    add(&clients[2], "meanwhile");
    cloud.wan.heal();
    cloud.agree(&clients, LONG).unwrap();
    assert!(has(&clients[2], "soon") && has(&clients[0], "meanwhile"));
    assert!(!cloud.sites[2].log().contains("a snapshot takes the place"));

    let ended = |cloud: &Cloud| cloud.sites[2].log().matches("connection ended").count();
    let before = ended(&cloud);
    cloud.cut(2);
    add(&clients[2], "away");
    // What was sent before a connection ends comes when the link is back: that is no long absence.
    eventually(LONG, "both connections to end", || Ok(ended(&cloud) >= before + 2)).unwrap();
    let mut wrote = 0;
    eventually(LONG, "the log to be dropped though one lacks it", || {
        wrote += 1;
        (0..2).for_each(|at| add(&clients[at], &format!("p{at}-{wrote}")));
        Ok(wrote > 60 && (0..2).all(|at| log_bytes(&clients[at]) < 2 * LIMIT))
    })
    .unwrap();
    add(&clients[2], "away-too");
    cloud.wan.heal();
    cloud.agree(&clients, LONG).unwrap();
    // The log is written a moment after the state shows.
    let told = || Ok(cloud.sites[2].log().contains("has taken the place of this replica's state"));
    eventually(LONG, "the snapshot to be told of", told).unwrap();
    for client in &clients {
        for name in ["soon", "meanwhile", "away", "away-too", "p0-1", "p1-1", &format!("p1-{wrote}")] {
            assert!(has(client, name), "{name}");
        }
    }

    // And from its disk.
    cloud.sites[2].kill();
    cloud.sites[2].start().unwrap();
    let rennes = cloud.login(2).unwrap();
    add(&rennes, "after");
    cloud.agree(&[clients[0].clone(), clients[1].clone(), rennes.clone()], LONG).unwrap();
    assert!(has(&clients[0], "after") && has(&rennes, "away"));
}
