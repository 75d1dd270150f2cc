//! What people are told about rights: pools that add up, and refusals that say where the rest is.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use luc_tests::{Client, Cloud, eventually};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

/// A project of its own with the default quota of 10 instances, and its user at a site.
fn member(cloud: &Cloud, at: usize, project: &str) -> Client {
    let admin = cloud.login(at).unwrap();
    let made = admin.post("/identity/v3/projects", &json!({"project": {"name": project}})).unwrap();
    let id = made["project"]["id"].as_str().unwrap().to_owned();
    let user = json!({"user": {"name": format!("{project}-user"), "password": "pw"}});
    let user = admin.post("/identity/v3/users", &user).unwrap()["user"]["id"].as_str().unwrap().to_owned();
    let roles = admin.get("/identity/v3/roles?name=member").unwrap();
    let role = roles["roles"][0]["id"].as_str().unwrap().to_owned();
    admin.call("PUT", &format!("/identity/v3/projects/{id}/users/{user}/roles/{role}"), None).unwrap();
    Client::login(&format!("http://{}", cloud.sites[at].api), &format!("{project}-user"), "pw", project).unwrap()
}

/// The pool of a project's quota, as a site sees it.
fn quota_pool(client: &Client, project: &str) -> Value {
    let pools = client.get("/luc/v1/pools").unwrap();
    assert_eq!(pools["conserved"], true);
    let is_it = |pool: &&Value| pool["subject"]["name"] == project && pool["subject"]["project"].is_string();
    pools["pools"].as_array().unwrap().iter().find(is_it).cloned().unwrap()
}

fn right_of<'a>(pool: &'a Value, site: &str) -> &'a Value {
    pool["rights"].as_array().unwrap().iter().find(|right| right["site"] == site).unwrap()
}

fn sees(client: &Client, site: &str, reachable: bool) {
    let seen = || {
        let sites = client.get("/luc/v1/sites")?;
        let found = sites["sites"].as_array().into_iter().flatten().find(|one| one["name"] == site).cloned();
        Ok(found.is_some_and(|found| found["reachable"] == reachable))
    };
    eventually(LONG, "the link's state to be seen", seen).unwrap();
}

#[test]
fn refusals_tell_what_is_exhausted_from_what_is_out_of_reach() {
    let cloud = Cloud::start(&["paris", "lyon"]).unwrap();
    let (paris, lyon) = (cloud.login(0).unwrap(), cloud.login(1).unwrap());
    let image = paris.upload("tiny", &[1; 4096]).unwrap();
    let dev = member(&cloud, 0, "dev");
    cloud.agree(&[paris.clone(), lyon.clone()], LONG).unwrap();
    assert_eq!(right_of(&quota_pool(&lyon, "dev"), "lyon")["age_ms"], 0);
    // Cut before anything is spent: rights would follow the demand.
    cloud.cut(1);
    for n in 0..5 {
        dev.create(&format!("s{n}"), "paris", &image).unwrap();
    }
    let pool = quota_pool(&paris, "dev");
    assert_eq!(pool["capacity"]["Instances"], 10);
    assert_eq!(
        (&pool["claims"], &pool["claimed"]["Instances"], &pool["free"]["Instances"]),
        (&json!(5), &json!(5), &json!(5))
    );
    assert_eq!(right_of(&pool, "lyon")["free"]["Instances"], 5, "{pool}");

    // Whether the cut has been noticed yet or not, it is said who did not answer.
    let refused = dev.create("early", "paris", &image).unwrap_err().to_string();
    assert!(refused.contains("403") && refused.contains("Quota exceeded for instances"), "{refused}");
    assert!(refused.contains("already used 5, ") && refused.contains("the rest is out of reach"), "{refused}");
    assert!(refused.contains("lyon (asked, did not answer)") || refused.contains("lyon (out of reach"), "{refused}");
    sees(&paris, "lyon", false);
    let refused = dev.create("late", "paris", &image).unwrap_err().to_string();
    assert!(refused.contains("lyon (out of reach, last heard") && refused.contains("5 instances"), "{refused}");
    assert!(!refused.contains("exhausted"), "{refused}");
    let pool = quota_pool(&paris, "dev");
    assert_eq!(
        (&right_of(&pool, "lyon")["reachable"], &right_of(&pool, "paris")["reachable"]),
        (&json!(false), &json!(true))
    );
    assert!(
        right_of(&pool, "lyon")["age_ms"].as_u64().unwrap() >= 1000,
        "what is known is as old as the last word: {pool}"
    );
    // A host's capacity, too: most of lyon's rights are at lyon.
    let flavor = json!({"flavor": {"name": "large", "ram": 200_000, "vcpus": 1, "disk": 1}});
    let flavor = paris.post("/compute/v2.1/flavors", &flavor).unwrap()["flavor"]["id"].as_str().unwrap().to_owned();
    let big = json!({"server": {"name": "big", "flavorRef": flavor, "imageRef": image, "networks": "none", "availability_zone": "lyon"}});
    let refused = paris.post("/compute/v2.1/servers", &big).unwrap_err().to_string();
    assert!(refused.contains("409") && refused.contains("No valid host was found"), "{refused}");
    assert!(refused.contains("the rest is out of reach: lyon (out of reach"), "{refused}");
    // What no host has, is not out of reach.
    let flavor = json!({"flavor": {"name": "huge", "ram": 900_000, "vcpus": 1, "disk": 1}});
    let flavor = paris.post("/compute/v2.1/flavors", &flavor).unwrap()["flavor"]["id"].as_str().unwrap().to_owned();
    let huge = json!({"server": {"name": "huge", "flavorRef": flavor, "imageRef": image, "networks": "none", "availability_zone": "lyon"}});
    let refused = paris.post("/compute/v2.1/servers", &huge).unwrap_err().to_string();
    assert!(refused.contains("1 have no room") && !refused.contains("out of reach"), "{refused}");

    cloud.wan.heal();
    sees(&paris, "lyon", true);
    paris.post("/compute/v2.1/servers", &big).unwrap();
    for n in 5..10 {
        dev.create(&format!("s{n}"), "paris", &image).unwrap();
    }
    let refused = dev.create("one-too-many", "paris", &image).unwrap_err().to_string();
    assert!(refused.contains("exhausted everywhere") && !refused.contains("out of reach"), "{refused}");
    let table = cloud.sites[0].luc(&["pools"]).unwrap();
    assert!(table.contains("quota of project dev: 10 claims, adds up"), "{table}");
    assert!(table.contains("host lyon-1 at lyon: 1 claims, adds up"), "{table}");
    let json: Value = serde_json::from_str(&cloud.sites[0].luc(&["pools", "--json"]).unwrap()).unwrap();
    assert_eq!(json["conserved"], true);
}

/// Sets a project's quota of instances, as administrator.
fn set_quota(admin: &Client, project: &str, instances: u64) {
    let path = format!("/compute/v2.1/os-quota-sets/{}", project_id(admin, project));
    let set = admin.call("PUT", &path, Some(&json!({"quota_set": {"instances": instances}}))).unwrap();
    assert_eq!(set["quota_set"]["instances"], instances, "{set}");
}

fn project_id(admin: &Client, project: &str) -> String {
    let found = admin.get(&format!("/identity/v3/projects?name={project}")).unwrap();
    found["projects"][0]["id"].as_str().unwrap().to_owned()
}

/// Limit and use of instances.
fn quota(admin: &Client, project: &str) -> (u64, u64) {
    let path = format!("/compute/v2.1/os-quota-sets/{}/detail", project_id(admin, project));
    let detail = admin.get(&path).unwrap();
    let of = |key: &str| detail["quota_set"]["instances"][key].as_u64().unwrap();
    (of("limit"), of("in_use"))
}

#[test]
fn a_quota_shrinks_as_far_as_rights_are_free_and_the_rest_is_pending_until_it_is() {
    let cloud = Cloud::start(&["paris", "lyon"]).unwrap();
    let (paris, lyon) = (cloud.login(0).unwrap(), cloud.login(1).unwrap());
    let both = [paris.clone(), lyon.clone()];
    let image = paris.upload("tiny", &[1; 4096]).unwrap();
    let (dev, _) = (member(&cloud, 0, "dev"), member(&cloud, 0, "grown"));
    cloud.agree(&both, LONG).unwrap();
    let dev_at_lyon = Client::login(&format!("http://{}", cloud.sites[1].api), "dev-user", "pw", "dev").unwrap();
    let mut servers: Vec<String> =
        (0..4).map(|n| dev_at_lyon.create(&format!("l{n}"), "lyon", &image).unwrap()).collect();
    servers.iter().for_each(|id| dev_at_lyon.becomes(id, "ACTIVE", LONG).unwrap());
    cloud.agree(&both, LONG).unwrap();
    cloud.cut(1);
    sees(&paris, "lyon", false);
    sees(&lyon, "paris", false);

    // Paris burns what it holds. Four of lyon's are in use, and what is free there is pending too. How much that is
    // depends on what lyon has asked for ahead of its need.
    set_quota(&paris, "dev", 3);
    assert_eq!(quota(&paris, "dev"), (3, 4));
    let pool = quota_pool(&paris, "dev");
    let of_lyon = 4 + pool["free"]["Instances"].as_u64().unwrap_or(0);
    assert!((5..10).contains(&of_lyon), "{pool}");
    assert_eq!(pool["capacity"]["Instances"], of_lyon, "{pool}");
    assert_eq!(pool["pending"]["Instances"], of_lyon - 3, "{pool}");
    assert!(cloud.sites[0].luc(&["pools"]).unwrap().contains("TO BE BURNT"));
    let refused = dev.create("p", "paris", &image).unwrap_err().to_string();
    assert!(refused.contains("already used 4, ") && refused.contains(" of 3, "), "{refused}");
    // Both sites raise another quota apart: that is one wish, not two.
    set_quota(&paris, "grown", 12);
    set_quota(&lyon, "grown", 12);

    cloud.wan.heal();
    sees(&paris, "lyon", true);
    cloud.agree(&both, LONG).unwrap();
    // Whoever raises a quota makes a pool of its own, if it has none: they count together.
    let burnt = |client: &Client, project: &str, capacity: u64, pending: u64| {
        let done = || {
            let pools = client.get("/luc/v1/pools")?;
            let of = pools["pools"].as_array().into_iter().flatten().filter(|pool| pool["subject"]["name"] == project);
            let sum = |key: &str| of.clone().filter_map(|pool| pool[key]["Instances"].as_u64()).sum::<u64>();
            Ok(pools["conserved"] == true && (sum("capacity"), sum("pending")) == (capacity, pending))
        };
        let waited = eventually(LONG, "the quota to be burnt", done);
        waited.unwrap_or_else(|error| panic!("{error}: {}", quota_pool(client, project)));
    };
    // The free one is asked for and burnt; what is in use stays.
    burnt(&paris, "dev", 4, 1);
    burnt(&lyon, "dev", 4, 1);
    for id in &servers {
        assert!(lyon.server(id).unwrap().is_some(), "a claim was revoked");
    }
    // A right that comes back is for burning, not for another server.
    let mut delete = |n: usize| {
        for id in servers.drain(..n) {
            dev_at_lyon.call("DELETE", &format!("/compute/v2.1/servers/{id}"), None).unwrap();
            eventually(LONG, "the server to go", || Ok(lyon.server(&id)?.is_none())).unwrap();
        }
    };
    delete(1);
    let refused = dev_at_lyon.create("l4", "lyon", &image).unwrap_err().to_string();
    assert!(refused.contains("already used 3, ") && refused.contains(" of 3, "), "{refused}");
    burnt(&paris, "dev", 3, 0);
    burnt(&lyon, "dev", 3, 0);
    delete(1);
    dev_at_lyon.create("l5", "lyon", &image).unwrap();
    set_quota(&lyon, "dev", 6);
    burnt(&lyon, "dev", 6, 0);
    burnt(&paris, "grown", 12, 0);
    burnt(&lyon, "grown", 12, 0);
    cloud.agree(&both, LONG).unwrap();
}
