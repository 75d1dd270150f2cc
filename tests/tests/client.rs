//! The unmodified `openstack` client against a site.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

use luc_tests::{Cloud, PASSWORD, root};
use serde_json::Value;

struct Openstack {
    url: String,
    dir: tempfile::TempDir,
}

impl Openstack {
    fn run(&self, line: &str) -> Result<String, String> {
        let client = root().join("target/venv/bin/openstack");
        assert!(client.exists(), "the client is missing: `make test` installs it");
        let output = Command::new(client)
            .args(line.split_whitespace())
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("OS_AUTH_URL", &self.url)
            .envs([("OS_USERNAME", "admin"), ("OS_PASSWORD", PASSWORD), ("OS_PROJECT_NAME", "admin")])
            .envs([("OS_USER_DOMAIN_ID", "default"), ("OS_PROJECT_DOMAIN_ID", "default")])
            .env("OS_IDENTITY_API_VERSION", "3")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn ok(&self, line: &str) -> String {
        self.run(line).unwrap_or_else(|error| panic!("openstack {line}: {error}"))
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} -f json"))).unwrap()
    }
}

#[test]
fn the_openstack_client_does_its_work() {
    let cloud = Cloud::start(&["paris"]).unwrap();
    let url = format!("http://{}/identity", cloud.sites[0].api);
    let os = Openstack { url, dir: tempfile::tempdir().unwrap() };
    std::fs::write(os.dir.path().join("disk.raw"), vec![5; 100_000]).unwrap();
    std::fs::write(os.dir.path().join("data"), "#!/bin/sh\necho hello\n").unwrap();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJtYjR4kMk8Wf2Gk0zYp0hQ1qz9m4yqjU1u3l0v0q7aB test";
    std::fs::write(os.dir.path().join("key.pub"), key).unwrap();
    let qcow =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(os.dir.path().join("q")).arg("1G").status();
    assert!(qcow.unwrap().success());

    assert!(os.json("token issue")["id"].is_string());
    for list in ["catalog", "project", "user", "role", "flavor", "availability zone", "hypervisor", "compute service"] {
        assert!(!os.json(&format!("{list} list")).as_array().unwrap().is_empty(), "{list} list");
    }
    os.ok("image create --disk-format raw --container-format bare --file disk.raw tiny");
    os.ok("image create --disk-format qcow2 --container-format bare --file q other");
    assert_eq!(os.json("image list").as_array().unwrap().len(), 2);
    assert_eq!(os.json("image show tiny")["status"], "active");
    os.ok("image save --file back.raw tiny");
    assert!(std::fs::read(os.dir.path().join("back.raw")).unwrap() == vec![5; 100_000]);
    os.ok("flavor create --ram 64 --vcpus 1 --disk 1 mini");
    os.ok("keypair create --public-key key.pub mine");
    assert_eq!(os.json("keypair list")[0]["Name"], "mine");

    let line = "server create --flavor mini --image tiny --nic none --availability-zone paris --key-name mine";
    let server = os.json(&format!("{line} --property a=b --user-data data --wait one"));
    assert_eq!((&server["status"], &server["key_name"]), (&"ACTIVE".into(), &"mine".into()));
    os.ok("server create --flavor mini --image tiny --nic none --min 2 --max 3 --wait more");
    assert_eq!(os.json("server list").as_array().unwrap().len(), 4);
    os.ok("server set --name two --property c=d one");
    assert_eq!(os.json("server show two")["properties"], serde_json::json!({"a": "b", "c": "d"}));
    for (action, status) in [
        ("stop", "SHUTOFF"),
        ("start", "ACTIVE"),
        ("pause", "PAUSED"),
        ("unpause", "ACTIVE"),
        ("suspend", "SUSPENDED"),
        ("resume", "ACTIVE"),
        ("reboot --soft --wait", "ACTIVE"),
        ("reboot --hard --wait", "ACTIVE"),
    ] {
        os.ok(&format!("server {action} two"));
        let reached = (0..20).any(|_| os.json("server show two")["status"] == status);
        assert!(reached, "server {action}");
    }
    let console = os.run("console log show two").unwrap_err();
    assert!(console.contains("no console"), "{console}");
    assert!(os.ok("quota show").contains("instances"));
    os.ok("quota set --instances 1200 admin");
    assert!(os.ok("limits show --absolute").contains("1200"));
    assert!(os.ok("usage show").contains("CPU Hours"));
    os.ok("server delete --wait two more-1 more-2 more-3");
    assert!(os.json("server list").as_array().unwrap().is_empty());
    os.ok("keypair delete mine");
    os.ok("flavor delete mini");
    os.ok("image delete tiny other");
    for (line, reason) in [("network list", "network"), ("volume list", "volume")] {
        let error = os.run(line).unwrap_err();
        assert!(error.contains(reason) || error.contains("block-storage"), "{line}: {error}");
    }
}
