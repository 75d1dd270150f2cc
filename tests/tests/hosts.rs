//! Further hosts, and disks that fill up.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use std::time::Duration;

use luc_tests::{Agent, Cloud, eventually};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_further_host_joins_by_a_token_and_takes_servers() {
    let cloud = Cloud::start(&["paris"]).unwrap();
    let client = cloud.login(0).unwrap();
    let image = client.upload("tiny", &[3; 4096]).unwrap();
    let mut agent = Agent::join(&cloud, 0, "second").unwrap();
    let up = || {
        let hosts = client.get("/luc/v1/hosts")?;
        let hosts = hosts["hosts"].as_array().cloned().unwrap_or_default();
        Ok(hosts.iter().any(|host| host["name"] == "second" && host["state"] == "up"))
    };
    eventually(LONG, "the host to be up", up).unwrap();
    let id = client.create("there", "paris:second", &image).unwrap();
    client.becomes(&id, "ACTIVE", LONG).unwrap();
    let server = client.server(&id).unwrap().unwrap();
    assert_eq!(server["OS-EXT-SRV-ATTR:host"], "second");

    // Its agent dies: what is wished meanwhile comes about when it is back.
    agent.kill();
    client.call("DELETE", &format!("/compute/v2.1/servers/{id}"), None).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(client.server(&id).unwrap().is_some(), "nobody has said yet that it is gone");
    agent.start().unwrap();
    eventually(LONG, "the server to go", || Ok(client.server(&id)?.is_none())).unwrap();
}

/// A small file system of its own; unmounted when dropped.
struct Small(std::path::PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_told_clearly_and_nothing_is_lost() {
    let mut cloud = Cloud::start(&["paris"]).unwrap();
    let client = cloud.login(0).unwrap();
    let image = client.upload("tiny", &[3; 4096]).unwrap();
    let id = client.create("before", "paris", &image).unwrap();
    client.becomes(&id, "ACTIVE", LONG).unwrap();
    cloud.sites[0].kill();
    // The data moves to a file system of 24 MiB.
    let data = cloud.dir().join("paris/data");
    let moved = cloud.dir().join("paris/moved");
    std::fs::rename(&data, &moved).unwrap();
    std::fs::create_dir(&data).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(&data).status().unwrap();
    assert!(mounted.success(), "mounting a small file system needs root");
    let small = Small(data.clone());
    let copied = Command::new("cp").arg("-a").arg(moved.join(".")).arg(&data).status().unwrap();
    assert!(copied.success());
    cloud.sites[0].luc(&["replica", "moved"]).unwrap();
    cloud.sites[0].start().unwrap();
    let client = cloud.login(0).unwrap();
    let refused = client.upload("huge", &vec![1; 40 << 20]).unwrap_err().to_string();
    assert!(refused.contains("503") && refused.contains("No space left"), "{refused}");
    assert!(client.server(&id).unwrap().is_some() && client.names().unwrap() == ["before"]);
    // Fill what is left: the store fails, says so, and goes on reading.
    std::fs::write(data.join("filler"), vec![0; 64 << 20]).unwrap_err();
    let mut acknowledged = vec![id];
    let failed = (0..2_000).find_map(|n| match client.create(&format!("s{n}"), "paris", &image) {
        Ok(id) => {
            acknowledged.push(id);
            None
        }
        Err(error) => Some(error.to_string()),
    });
    let failed = failed.expect("a full disk refuses at some time");
    assert!(failed.contains("503"), "{failed}");
    assert!(cloud.sites[0].is_running());
    assert!(client.names().is_ok(), "reads go on");
    let health = client.send("GET", "/healthz", &[], &[]).unwrap();
    assert_eq!(health.status, 503);
    // With room again, and a restart, everything acknowledged is there.
    cloud.sites[0].kill();
    std::fs::remove_file(data.join("filler")).unwrap();
    cloud.sites[0].start().unwrap();
    let client = cloud.login(0).unwrap();
    for id in &acknowledged {
        assert!(client.server(id).unwrap().is_some(), "{id} was acknowledged and is lost");
    }
    cloud.sites[0].kill();
    drop(small);
}
