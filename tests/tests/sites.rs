//! Sites as real processes: kills, cuts, late sites, bad input. Servers are libvirt's simulated ones.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::time::Duration;

use luc_tests::{Client, Cloud, eventually, luc};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

fn is_conserved(client: &Client) -> bool {
    client.get("/luc/v1/pools").unwrap()["conserved"] == true
}

fn used(client: &Client) -> u64 {
    client.get("/compute/v2.1/limits").unwrap()["limits"]["absolute"]["totalInstancesUsed"].as_u64().unwrap()
}

#[test]
fn a_replica_killed_during_200_creates_loses_no_acknowledged_server() {
    let mut cloud = Cloud::start(&["paris"]).unwrap();
    let client = cloud.login(0).unwrap();
    let image = client.upload("tiny", &[0; 4096]).unwrap();
    let acknowledged = std::sync::Mutex::new(BTreeSet::new());
    for round in 0..4 {
        std::thread::scope(|scope| {
            for worker in 0..5 {
                let (client, image, acknowledged) = (client.clone(), &image, &acknowledged);
                scope.spawn(move || {
                    for n in 0..10 {
                        // A request that the kill cut off is unknown; one that was answered must be kept.
                        if let Ok(id) = client.create(&format!("s-{round}-{worker}-{n}"), "paris", image) {
                            acknowledged.lock().unwrap().insert(id);
                        }
                    }
                });
            }
            let before = acknowledged.lock().unwrap().len();
            let _ = eventually(Duration::from_secs(5), "some creates", || {
                Ok(acknowledged.lock().unwrap().len() > before + 10)
            });
            cloud.sites[0].kill();
        });
        cloud.sites[0].start().unwrap();
    }
    let client = cloud.login(0).unwrap();
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.len() > 40, "only {} creates were answered", acknowledged.len());
    for id in &acknowledged {
        assert!(client.server(id).unwrap().is_some(), "server {id} was acknowledged and is lost");
    }
    let all = client.names().unwrap().len();
    assert_eq!(used(&client), u64::try_from(all).unwrap(), "quota counts what is there");
    assert!(is_conserved(&client));
    eventually(LONG, "all servers to run again", || {
        let servers = client.get("/compute/v2.1/servers/detail?status=ACTIVE")?;
        Ok(servers["servers"].as_array().is_some_and(|servers| servers.len() == all))
    })
    .unwrap();
}

#[test]
fn a_cut_site_goes_on_and_all_agree_when_it_heals() {
    let cloud = Cloud::start(&["paris", "lyon", "rennes"]).unwrap();
    let clients: Vec<Client> = (0..3).map(|at| cloud.login(at).unwrap()).collect();
    let [paris, lyon, rennes] = clients.as_slice() else { panic!("three sites") };
    let image = paris.upload("tiny", &[7; 8192]).unwrap();
    let first = paris.create("first", "paris", &image).unwrap();
    paris.becomes(&first, "ACTIVE", LONG).unwrap();
    cloud.agree(&clients, LONG).unwrap();
    cloud.cut(2);
    let cut_off = || {
        let sites = paris.get("/luc/v1/sites").unwrap();
        let rennes = sites["sites"].as_array().unwrap().iter().find(|site| site["name"] == "rennes").cloned().unwrap();
        Ok(rennes["reachable"] == false)
    };
    eventually(LONG, "the cut to be seen", cut_off).unwrap();
    let alone = || {
        let sites = rennes.get("/luc/v1/sites")?;
        Ok(sites["sites"].as_array().into_iter().flatten().filter(|site| site["reachable"] == true).count() == 1)
    };
    eventually(LONG, "the cut to be seen by rennes", alone).unwrap();

    for n in 0..5 {
        paris.create(&format!("p{n}"), "paris", &image).unwrap();
        lyon.create(&format!("l{n}"), "lyon", &image).unwrap();
        let id = rennes.create(&format!("r{n}"), "rennes", &image).unwrap();
        rennes.becomes(&id, "ACTIVE", LONG).unwrap();
    }
    // Both sides rename one server, and one side deletes it.
    paris
        .call("PUT", &format!("/compute/v2.1/servers/{first}"), Some(&json!({"server": {"name": "by-paris"}})))
        .unwrap();
    rennes.call("DELETE", &format!("/compute/v2.1/servers/{first}"), None).unwrap();
    let dying = rennes.server(&first).unwrap().unwrap();
    assert_eq!(dying["OS-EXT-STS:task_state"], "deleting", "its domain runs where rennes cannot see");
    assert_eq!(dying["host_status"], "UNKNOWN", "what cannot be seen is not shown as a stale truth");
    // A user made on one side, and a login at the cut one with what it knew before.
    paris.post("/identity/v3/users", &json!({"user": {"name": "eve", "password": "x"}})).unwrap();
    assert!(cloud.login(2).is_ok());
    assert!(rennes.names().unwrap().len() == 6 && paris.names().unwrap().len() == 11);

    cloud.wan.heal();
    let took = cloud.agree(&clients, LONG).unwrap();
    assert!(took < Duration::from_secs(20), "{took:?}");
    eventually(LONG, "the deleted server to go", || Ok(lyon.server(&first)?.is_none())).unwrap();
    cloud.agree(&clients, LONG).unwrap();
    for client in &clients {
        assert_eq!(client.names().unwrap().len(), 15);
        assert!(is_conserved(client));
        eventually(LONG, "the quota to count 15", || Ok(used(client) == 15)).unwrap();
    }
}

#[test]
fn a_site_that_joins_late_has_everything_and_can_use_it() {
    let mut cloud = Cloud::start(&["paris", "lyon"]).unwrap();
    let paris = cloud.login(0).unwrap();
    cloud.agree(&[paris.clone(), cloud.login(1).unwrap()], LONG).unwrap();
    let image = paris.upload("tiny", &[1; 4096]).unwrap();
    for n in 0..30 {
        paris.create(&format!("s{n}"), if n % 2 == 0 { "paris" } else { "lyon" }, &image).unwrap();
    }
    cloud.cut(1);
    cloud.add("rennes").unwrap();
    let rennes = cloud.login(2).unwrap();
    // Whether that is what the cloud has, who gave it does not say: lyon does, when it is heard.
    let giver = paris.get("/luc/v1/status").unwrap()["replica"].clone();
    assert_eq!(rennes.get("/luc/v1/status").unwrap()["on_trust"], giver);
    let told = cloud.sites[2].luc(&["status"]).unwrap();
    assert!(told.contains(&format!("its state was given by {}", giver.as_str().unwrap())), "{told}");
    cloud.wan.heal();
    eventually(LONG, "lyon's word", || Ok(rennes.get("/luc/v1/status")?["on_trust"].is_null())).unwrap();
    let clients = [paris, cloud.login(1).unwrap(), rennes.clone()];
    cloud.agree(&clients, LONG).unwrap();
    assert_eq!(rennes.names().unwrap().len(), 30);
    let host = || Ok(rennes.get("/luc/v1/hosts")?["hosts"].as_array().is_some_and(|hosts| hosts.len() == 3));
    eventually(LONG, "its host", host).unwrap();
    let id = rennes.create("new", "rennes", &image).unwrap();
    rennes.becomes(&id, "ACTIVE", LONG).unwrap();
    let elsewhere = rennes.create("far", "lyon", &image).unwrap();
    rennes.becomes(&elsewhere, "ACTIVE", LONG).unwrap();
}

#[test]
fn a_frontier_makes_writes_of_one_site_readable_at_another() {
    let cloud = Cloud::start(&["paris", "lyon"]).unwrap();
    let (paris, lyon) = (cloud.login(0).unwrap(), cloud.login(1).unwrap());
    cloud.wan.set_delay(Duration::from_millis(50));
    for n in 0..5 {
        let body = json!({"user": {"name": format!("u{n}")}}).to_string();
        let created =
            paris.send("POST", "/identity/v3/users", &[("content-type", "application/json")], body.as_bytes());
        let created = created.unwrap();
        let frontier = created.header("x-luc-frontier").unwrap().to_owned();
        let path = format!("/identity/v3/users/{}", created.json()["user"]["id"].as_str().unwrap());
        let read = lyon.send("GET", &path, &[("x-luc-frontier", &frontier)], &[]).unwrap();
        assert_eq!(read.status, 200, "{}", read.text);
    }
    cloud.cut(0);
    let created = paris.post("/identity/v3/users", &json!({"user": {"name": "late"}}));
    created.unwrap();
    let frontier = paris.send("GET", "/luc/v1/digest", &[], &[]).unwrap().header("x-luc-frontier").unwrap().to_owned();
    let read = lyon.send("GET", "/luc/v1/digest", &[("x-luc-frontier", &frontier)], &[]).unwrap();
    assert_eq!(read.status, 503, "{}", read.text);
    assert!(read.text.contains("paris"), "it says what is missing: {}", read.text);
    let malformed = lyon.send("GET", "/luc/v1/digest", &[("x-luc-frontier", "%%%")], &[]).unwrap();
    assert_eq!(malformed.status, 400);
}

#[test]
fn rights_are_asked_for_where_they_lie_and_refusals_tell_the_truth() {
    let cloud = Cloud::start(&["paris", "lyon"]).unwrap();
    let (paris, lyon) = (cloud.login(0).unwrap(), cloud.login(1).unwrap());
    let image = paris.upload("tiny", &[1; 4096]).unwrap();
    let project = paris.post("/identity/v3/projects", &json!({"project": {"name": "small"}})).unwrap();
    let project = project["project"]["id"].as_str().unwrap().to_owned();
    let user = paris.post("/identity/v3/users", &json!({"user": {"name": "sam", "password": "pw"}})).unwrap();
    let user = user["user"]["id"].as_str().unwrap().to_owned();
    let roles = paris.get("/identity/v3/roles?name=member").unwrap();
    let role = roles["roles"][0]["id"].as_str().unwrap().to_owned();
    paris.call("PUT", &format!("/identity/v3/projects/{project}/users/{user}/roles/{role}"), None).unwrap();
    cloud.agree(&[paris, lyon.clone()], LONG).unwrap();
    let sam = Client::login(&format!("http://{}", cloud.sites[1].api), "sam", "pw", "small").unwrap();
    // The quota is 10, and lyon holds half: the other half is asked for.
    for n in 0..10 {
        sam.create(&format!("s{n}"), "lyon", &image).unwrap_or_else(|error| panic!("server {n}: {error}"));
    }
    let refused = sam.create("one-too-many", "lyon", &image).unwrap_err().to_string();
    assert!(refused.contains("403") && refused.contains("Quota exceeded for instances"), "{refused}");
    assert!(refused.contains("exhausted everywhere"), "{refused}");
    let none = lyon.post(
        "/compute/v2.1/servers",
        &json!({"server": {"name": "big", "flavorRef": big_flavor(&lyon), "imageRef": image, "networks": "none", "availability_zone": "lyon"}}),
    );
    let none = none.unwrap_err().to_string();
    assert!(none.contains("409") && none.contains("No valid host was found"), "{none}");
    assert!(is_conserved(&lyon));
}

fn big_flavor(client: &Client) -> String {
    let flavor = json!({"flavor": {"name": "huge", "ram": 1_000_000, "vcpus": 1, "disk": 1}});
    client.post("/compute/v2.1/flavors", &flavor).unwrap()["flavor"]["id"].as_str().unwrap().to_owned()
}

#[test]
fn bad_input_gets_a_clear_error_and_the_process_lives() {
    let mut cloud = Cloud::start(&["paris"]).unwrap();
    let client = cloud.login(0).unwrap();
    let json_type = [("content-type", "application/json")];
    let cases: [(&str, &str, &[u8], u16); 12] = [
        ("POST", "/identity/v3/auth/tokens", b"{", 400),
        ("POST", "/identity/v3/auth/tokens", b"[]", 400),
        ("POST", "/compute/v2.1/servers", b"{\"server\": 7}", 400),
        ("POST", "/compute/v2.1/servers", b"\xff\xfe", 400),
        (
            "POST",
            "/compute/v2.1/servers",
            b"{\"server\": {\"name\": \"x\", \"flavorRef\": null, \"imageRef\": 5}}",
            400,
        ),
        ("GET", "/compute/v2.1/servers/no-such-server", b"", 404),
        ("GET", "/compute/v2.1/servers?limit=-1", b"", 400),
        ("GET", "/compute/v2.1/servers?name=((((", b"", 400),
        ("PUT", "/compute/v2.1/servers", b"{}", 405),
        ("GET", "/image/v2/images/not-an-image/file", b"", 404),
        ("GET", "/network/v2.0/networks", b"", 501),
        ("GET", "/nowhere", b"", 404),
    ];
    for (method, path, body, status) in cases {
        let answer = client.send(method, path, &json_type, body).unwrap();
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        assert!(!answer.text.is_empty(), "{method} {path} has no text");
    }
    let unknown = json!({"server": {"name": "x", "flavorRef": "42", "imageRef": "70130b91-546a-4e91-88c6-4262bec079d9", "networks": "none"}});
    let refused = client.post("/compute/v2.1/servers", &unknown).unwrap_err().to_string();
    assert!(refused.contains("400") && refused.contains("Can not find requested image"), "{refused}");
    let huge = vec![b' '; 2 << 20];
    assert_eq!(client.send("POST", "/compute/v2.1/servers", &json_type, &huge).unwrap().status, 413);
    for token in ["", "luc1.", "luc1.AAAA", "nonsense", &client.token()[..client.token().len() - 3]] {
        let answer = client.with_token(token).send("GET", "/compute/v2.1/servers", &[], &[]).unwrap();
        assert_eq!(answer.status, 401, "{token:?}");
    }
    let version = [("openstack-api-version", "compute 2.999")];
    assert_eq!(client.send("GET", "/compute/v2.1/servers", &version, &[]).unwrap().status, 406);
    assert!(cloud.sites[0].is_running());
    assert!(client.get("/healthz").is_ok());
}

#[test]
fn tokens_work_once_and_a_foreign_certificate_never() {
    let cloud = Cloud::start(&["paris"]).unwrap();
    let other = Cloud::start(&["elsewhere"]).unwrap();
    let token = cloud.sites[0].luc(&["token", "--site", "lyon"]).unwrap();
    let lyon = cloud.prepare("lyon", "").unwrap();
    lyon.luc(&["join", token.trim()]).unwrap();
    let again = cloud.prepare("again", "").unwrap();
    let refused = again.luc(&["join", token.trim()]).unwrap_err().to_string();
    assert!(refused.contains("not valid"), "{refused}");
    let expired = cloud.sites[0].luc(&["token", "--site", "late", "--minutes", "0"]).unwrap();
    assert!(again.luc(&["join", expired.trim()]).unwrap_err().to_string().contains("not valid"));
    assert!(again.luc(&["join", "luc1-garbage"]).unwrap_err().to_string().contains("not a join token"));
    // A member of another cloud, with a good certificate of its own authority.
    let foreign = luc_sync::ca::Credentials::load(&other.dir().join("elsewhere/data")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut store = luc_engine::store::MemoryStore::default();
    let address = [cloud.sites[0].quic.to_string()];
    let taken = runtime.block_on(luc_sync::rpc::take_snapshot(&foreign, &address, &mut store));
    assert!(taken.is_err(), "a stranger was given the cloud's state");
    assert!(cloud.login(0).is_ok());
}

#[test]
fn a_revoked_replica_is_cut_off() {
    let mut cloud = Cloud::start(&["paris", "lyon"]).unwrap();
    let (paris, lyon) = (cloud.login(0).unwrap(), cloud.login(1).unwrap());
    cloud.agree(&[paris.clone(), lyon.clone()], LONG).unwrap();
    let status: Value = serde_json::from_str(&cloud.sites[0].luc(&["status", "--json"]).unwrap()).unwrap();
    let replicas = status["replicas"].as_array().unwrap();
    let id = replicas.iter().find(|replica| replica["site"] == "lyon").unwrap()["id"].as_str().unwrap().to_owned();
    cloud.sites[0].luc(&["revoke", &id]).unwrap();
    let refused = paris.with_token(lyon.token()).send("GET", "/luc/v1/digest", &[], &[]).unwrap();
    assert_eq!(refused.status, 401, "its tokens are void");
    paris.post("/identity/v3/users", &json!({"user": {"name": "secret"}})).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let users = lyon.get("/identity/v3/users?name=secret").unwrap();
    assert_eq!(users["users"], json!([]), "it still hears what happens");
    assert!(cloud.sites[1].is_running());
}

#[test]
fn the_configuration_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("luc.toml");
    std::fs::write(&path, "data_dir = \"/nowhere\"\nlistn = \"0.0.0.0:1\"\n").unwrap();
    let output = std::process::Command::new(luc()).args(["serve", "--config"]).arg(&path).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("luc.toml") && error.contains("listn"), "{error}");
}

#[test]
fn a_site_that_is_no_identity_authority_uses_the_cloud_and_does_not_govern_it() {
    let mut cloud = Cloud::start(&["paris"]).unwrap();
    let paris = cloud.login(0).unwrap();
    let token = cloud.sites[0].luc(&["token", "--site", "edge", "--without-identity"]).unwrap();
    let edge = cloud.prepare("edge", "").unwrap();
    edge.luc(&["join", token.trim()]).unwrap();
    cloud.sites.push(edge);
    cloud.sites[1].start().unwrap();
    let edge = cloud.login(1).unwrap();
    cloud.agree(&[paris.clone(), edge.clone()], LONG).unwrap();
    let before = paris.get("/identity/v3/users").unwrap();
    let refused = edge.post("/identity/v3/users", &json!({"user": {"name": "eve", "password": "x"}})).unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("403") && refused.contains("edge"), "it says which site may not: {refused}");
    let refused = edge.post("/identity/v3/projects", &json!({"project": {"name": "mine"}})).unwrap_err().to_string();
    assert!(refused.contains("403"), "{refused}");
    for client in [&paris, &edge] {
        assert_eq!(client.get("/identity/v3/users").unwrap()["users"], before["users"], "nothing has changed");
    }
    // Its tokens count there alone; servers it makes as any site does.
    assert_eq!(paris.with_token(edge.token()).send("GET", "/luc/v1/digest", &[], &[]).unwrap().status, 401);
    let image = edge.upload("tiny", &[1; 4096]).unwrap();
    let id = edge.create("here", "edge", &image).unwrap();
    edge.becomes(&id, "ACTIVE", LONG).unwrap();
}

#[test]
fn rights_come_before_they_are_needed() {
    let cloud = Cloud::start(&["paris", "lyon", "rennes"]).unwrap();
    let clients: Vec<Client> = (0..3).map(|at| cloud.login(at).unwrap()).collect();
    let lyon = &clients[1];
    let image = lyon.upload("tiny", &[1; 4096]).unwrap();
    let quota = json!({"quota_set": {"instances": 300, "cores": 300, "ram": 300_000}});
    let project = lyon.get("/identity/v3/auth/projects").unwrap()["projects"][0]["id"].as_str().unwrap().to_owned();
    lyon.call("PUT", &format!("/compute/v2.1/os-quota-sets/{project}"), Some(&quota)).unwrap();
    cloud.agree(&clients, LONG).unwrap();
    let asked = || {
        let metrics = lyon.send("GET", "/metrics", &[], &[]).unwrap().text;
        let of = |name: &str| {
            let line = metrics.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        (of("luc_rights_asked_ahead_total "), of("luc_rights_asked_short_total "))
    };
    cloud.wan.set_delay(Duration::from_millis(25));
    // Shrinking to 300 has burnt what was here.
    lyon.create("first", "lyon", &image).unwrap();
    let (_, short) = asked();
    // All of the load is at one of three sites: most of the quota, and nine tenths of it in the end, was the others'.
    for n in 0..200 {
        lyon.create(&format!("s{n}"), "lyon", &image).unwrap_or_else(|error| panic!("server {n}: {error}"));
        // A load, not a burst: at some hundreds a second a round trip of 50 ms would come too late.
        std::thread::sleep(Duration::from_millis(10));
    }
    let (ahead, short_since) = asked();
    assert!(ahead > 0, "nothing was asked for ahead");
    assert_eq!(short_since, short, "a create had to wait for rights");
    assert!(ahead < 20, "{ahead} requests for 200 servers");
    assert!(is_conserved(lyon));
}
