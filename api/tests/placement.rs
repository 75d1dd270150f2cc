//! Where servers go, as Nova's users and operators say it: server groups, scheduler hints, aggregates, properties of
//! images.
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "each test file uses a part")]
mod support;

use axum::http::Method;
use serde_json::{Value, json};
use support::{Answer, Cloud};

const GROUPS: &str = "/compute/v2.1/os-server-groups";
const AGGREGATES: &str = "/compute/v2.1/os-aggregates";

/// A request at a microversion.
async fn at(cloud: &Cloud, version: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
    let version = format!("compute {version}");
    let headers = [("x-auth-token", cloud.token.as_str()), ("openstack-api-version", version.as_str())];
    cloud.send(method, path, &headers, body.as_ref()).await
}

async fn group(cloud: &Cloud, policy: &str) -> String {
    let answer = cloud.post(GROUPS, &json!({"server_group": {"name": "g", "policy": policy}})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["server_group"]["id"].as_str().unwrap().to_owned()
}

/// Creates a server with hints.
async fn create(cloud: &Cloud, image: &str, more: &Value, hints: &Value) -> Answer {
    let mut server = json!({"name": "web", "flavorRef": "42", "imageRef": image, "networks": "none"});
    server.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    cloud.post("/compute/v2.1/servers", &json!({"server": server, "os:scheduler_hints": hints})).await
}

fn id(answer: &Answer) -> String {
    answer.body["server"]["id"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

fn message(answer: &Answer) -> String {
    answer.body.to_string()
}

async fn until_gone(cloud: &Cloud, server: &str) {
    for _ in 0..500 {
        let settled = cloud.app.view().ledger().claims().all(|(_, claim)| claim.record.id.to_string() != server);
        if settled {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{server} never gave its rights back");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_groups_look_as_their_microversion_has_them() {
    let cloud = Cloud::start().await;
    let old = json!({"server_group": {"name": " g ", "policies": ["anti-affinity"]}});
    let first = at(&cloud, "2.1", Method::POST, GROUPS, Some(old)).await;
    let id = first.body["server_group"]["id"].as_str().unwrap().to_owned();
    let plain = json!({"id": id, "name": "g", "members": [], "policies": ["anti-affinity"], "metadata": {}});
    assert_eq!(first.body["server_group"], plain);
    let path = format!("{GROUPS}/{id}");
    let owned = at(&cloud, "2.13", Method::GET, &path, None).await.body["server_group"].take();
    assert_eq!(owned["project_id"], json!(cloud.project));
    assert!(owned["user_id"].is_string());
    let new = at(&cloud, "2.64", Method::GET, &path, None).await.body["server_group"].take();
    assert_eq!((&new["policy"], &new["rules"]), (&json!("anti-affinity"), &json!({})));
    assert!(new.get("policies").is_none() && new.get("metadata").is_none(), "{new}");
    let soft = json!({"server_group": {"name": "s", "policies": ["soft-affinity"]}});
    assert_eq!(at(&cloud, "2.14", Method::POST, GROUPS, Some(soft.clone())).await.status, 400);
    assert_eq!(at(&cloud, "2.15", Method::POST, GROUPS, Some(soft)).await.status, 200);
    let rules = json!({"name": "r", "policy": "anti-affinity", "rules": {"max_server_per_host": "3"}});
    let ruled = cloud.post(GROUPS, &json!({"server_group": rules})).await;
    assert_eq!(ruled.body["server_group"]["rules"], json!({"max_server_per_host": 3}), "{ruled:?}");
    let all = cloud.get(&format!("{GROUPS}?all_projects=true&limit=2&offset=1")).await;
    assert_eq!(all.body["server_groups"].as_array().map(Vec::len), Some(2), "{all:?}");
    assert_eq!(cloud.get(&format!("{GROUPS}?limit=x")).await.status, 400);
    let limits = cloud.get("/compute/v2.1/limits").await.body;
    assert_eq!(limits["limits"]["absolute"]["totalServerGroupsUsed"], 3);
    assert_eq!(cloud.request(Method::DELETE, &path, None).await.status, 204);
    assert_eq!(cloud.get(&path).await.status, 404);
    assert_eq!(cloud.request(Method::DELETE, &path, None).await.status, 404);
    assert_eq!(cloud.get(&format!("{GROUPS}/g")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_groups_are_limited_by_the_quota() {
    let cloud = Cloud::start().await;
    let quotas = format!("/compute/v2.1/os-quota-sets/{}", cloud.project);
    let set = async |quota: Value| cloud.request(Method::PUT, &quotas, Some(&json!({"quota_set": quota}))).await;
    let create = async || cloud.post(GROUPS, &json!({"server_group": {"name": "g", "policy": "soft-affinity"}})).await;
    assert_eq!(cloud.get(&quotas).await.body["quota_set"]["server_groups"], 10);
    assert_eq!(set(json!({"server_groups": 2})).await.body["quota_set"]["server_groups"], 2);
    let first = create().await.body["server_group"]["id"].as_str().unwrap().to_owned();
    assert_eq!(create().await.status, 200);
    let refused = create().await;
    let text = message(&refused);
    assert_eq!(refused.status, 403);
    assert!(text.contains("Quota exceeded, too many server groups") && text.contains("exhausted everywhere"), "{text}");
    let used = cloud.get(&format!("{quotas}/detail")).await.body["quota_set"]["server_groups"].clone();
    assert_eq!((&used["limit"], &used["in_use"]), (&json!(2), &json!(2)));
    // What is deleted is free again, at once: this replica has made it.
    assert_eq!(cloud.request(Method::DELETE, &format!("{GROUPS}/{first}"), None).await.status, 204);
    assert_eq!(create().await.status, 200);
    // A limit below what there is takes nothing away, and holds from then on.
    assert_eq!(set(json!({"server_groups": 0})).await.status, 200);
    assert_eq!(create().await.status, 403);
    assert_eq!(cloud.get(GROUPS).await.body["server_groups"].as_array().map(Vec::len), Some(2));
    assert_eq!(set(json!({"server_groups": -1})).await.status, 400);
    assert_eq!(set(json!({"injected_files": 5})).await.status, 400, "not limited, and so said");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_server_group_are_limited_where_they_are_created() {
    let cloud = Cloud::start().await;
    let quotas = format!("/compute/v2.1/os-quota-sets/{}", cloud.project);
    let limits = async || cloud.get("/compute/v2.1/limits").await.body["limits"]["absolute"].clone();
    assert_eq!(limits().await["maxServerGroupMembers"], 10);
    let set = json!({"quota_set": {"server_group_members": 2}});
    let set = cloud.request(Method::PUT, &quotas, Some(&set)).await;
    assert_eq!(set.body["quota_set"]["server_group_members"], 2, "{set:?}");
    assert_eq!(limits().await["maxServerGroupMembers"], 2);
    let soft = json!({"server_group": {"name": "g", "policy": "soft-anti-affinity"}});
    let group = cloud.post(GROUPS, &soft).await.body["server_group"]["id"].clone();
    let image = cloud.image().await;
    let create = async |count: u64| {
        let server = json!({"name": "s", "flavorRef": "42", "imageRef": image, "networks": "none", "min_count": count});
        cloud.post("/compute/v2.1/servers", &json!({"server": server, "os:scheduler_hints": {"group": group}})).await
    };
    let refused = create(3).await;
    assert_eq!(refused.status, 403);
    assert!(message(&refused).contains("Quota exceeded, too many servers in group"), "{refused:?}");
    let first = create(1).await.body["server"]["id"].as_str().unwrap().to_owned();
    assert_eq!(create(1).await.status, 202);
    assert_eq!(create(1).await.status, 403);
    // A server that is in no group is not one of them, and what is deleted makes room.
    let alone = json!({"server": {"name": "s", "flavorRef": "42", "imageRef": image, "networks": "none"}});
    assert_eq!(cloud.post("/compute/v2.1/servers", &alone).await.status, 202);
    assert_eq!(cloud.request(Method::DELETE, &format!("/compute/v2.1/servers/{first}"), None).await.status, 204);
    assert_eq!(create(1).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_pairs_are_limited_where_they_are_created() {
    let cloud = Cloud::start().await;
    let quotas = format!("/compute/v2.1/os-quota-sets/{}", cloud.project);
    assert_eq!(cloud.get(&quotas).await.body["quota_set"]["key_pairs"], 100);
    let set = async |n: u64| cloud.request(Method::PUT, &quotas, Some(&json!({"quota_set": {"key_pairs": n}}))).await;
    assert_eq!(set(2).await.body["quota_set"]["key_pairs"], 2);
    assert_eq!(cloud.get("/compute/v2.1/limits").await.body["limits"]["absolute"]["maxTotalKeypairs"], 2);
    let keys = "/compute/v2.1/os-keypairs";
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f x";
    let create = async |name: &str| cloud.post(keys, &json!({"keypair": {"name": name, "public_key": key}})).await;
    assert!(create("one").await.status.is_success() && create("two").await.status.is_success());
    let refused = create("three").await;
    assert_eq!(refused.status, 403);
    assert!(message(&refused).contains("Quota exceeded, too many key pairs."), "{refused:?}");
    let one = format!("{keys}/one");
    assert!(cloud.request(Method::DELETE, &one, None).await.status.is_success());
    assert!(create("three").await.status.is_success());
    // A lower limit takes nothing away.
    set(0).await;
    assert_eq!(cloud.get(keys).await.body["keypairs"].as_array().map(Vec::len), Some(2));
    assert_eq!(create("four").await.status, 403);
    assert_eq!(cloud.request(Method::DELETE, &quotas, None).await.status, 202);
    assert_eq!(cloud.get(&quotas).await.body["quota_set"]["key_pairs"], 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_limited_where_it_is_written() {
    let cloud = Cloud::start().await;
    let quotas = format!("/compute/v2.1/os-quota-sets/{}", cloud.project);
    let set = json!({"quota_set": {"metadata_items": 2}});
    let set = cloud.request(Method::PUT, &quotas, Some(&set)).await;
    assert_eq!(
        (&set.body["quota_set"]["metadata_items"], &set.body["quota_set"]["instances"]),
        (&json!(2), &json!(10))
    );
    assert_eq!(cloud.get("/compute/v2.1/limits").await.body["limits"]["absolute"]["maxServerMeta"], 2);
    let image = cloud.image().await;
    let server = |metadata: Value| json!({"server": {"name": "s", "flavorRef": "42", "imageRef": image, "networks": "none", "metadata": metadata}});
    let three = json!({"a": "1", "b": "2", "c": "3"});
    assert_eq!(cloud.post("/compute/v2.1/servers", &server(three.clone())).await.status, 403);
    let made = cloud.post("/compute/v2.1/servers", &server(json!({"a": "1", "b": "2"}))).await;
    let path = format!("/compute/v2.1/servers/{}/metadata", made.body["server"]["id"].as_str().unwrap());
    assert_eq!(cloud.request(Method::PUT, &path, Some(&json!({"metadata": three}))).await.status, 403);
    assert_eq!(cloud.request(Method::PUT, &format!("{path}/c"), Some(&json!({"meta": {"c": "3"}}))).await.status, 403);
    // One for another is fine; and a lower limit does not keep anybody from tidying up.
    let other = json!({"metadata": {"x": "1", "y": "2"}});
    assert_eq!(cloud.request(Method::PUT, &path, Some(&other)).await.status, 200);
    cloud.request(Method::PUT, &quotas, Some(&json!({"quota_set": {"metadata_items": 0}}))).await;
    assert_eq!(cloud.request(Method::DELETE, &format!("{path}/x"), None).await.status, 204);
    assert_eq!(cloud.request(Method::DELETE, &quotas, None).await.status, 202);
    assert_eq!(cloud.get(&quotas).await.body["quota_set"]["metadata_items"], 128);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_server_groups_are_refused() {
    let cloud = Cloud::start().await;
    for wrong in [
        json!({}),
        json!({"server_group": []}),
        json!({"server_group": {"policy": "affinity"}}),
        json!({"server_group": {"name": "", "policy": "affinity"}}),
        json!({"server_group": {"name": "g"}}),
        json!({"server_group": {"name": "g", "policy": "together"}}),
        json!({"server_group": {"name": "g", "policies": ["affinity"]}}),
        json!({"server_group": {"name": "g", "policy": "affinity", "more": 1}}),
        json!({"server_group": {"name": "g", "policy": "affinity", "rules": {"max_server_per_host": 2}}}),
        json!({"server_group": {"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 0}}}),
        json!({"server_group": {"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": "x"}}}),
        json!({"server_group": {"name": "g", "policy": "anti-affinity", "rules": {"other": 2}}}),
        json!({"server_group": {"name": "g", "policy": "anti-affinity", "rules": 2}}),
    ] {
        assert_eq!(cloud.post(GROUPS, &wrong).await.status, 400, "{wrong}");
    }
    for wrong in [
        json!({"server_group": {"name": "g", "policy": "affinity"}}),
        json!({"server_group": {"name": "g", "policies": []}}),
        json!({"server_group": {"name": "g", "policies": ["affinity", "anti-affinity"]}}),
        json!({"server_group": {"name": "g", "policies": [1]}}),
        json!({"server_group": {"name": "g", "policies": ["affinity"], "rules": {}}}),
    ] {
        assert_eq!(at(&cloud, "2.63", Method::POST, GROUPS, Some(wrong.clone())).await.status, 400, "{wrong}");
    }
    assert!(cloud.get(GROUPS).await.body["server_groups"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_hard_group_are_placed_so_or_not_at_all() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let (apart, together) = (group(&cloud, "anti-affinity").await, group(&cloud, "affinity").await);
    let hint = json!({"group": apart});
    let first = id(&create(&cloud, &image, &json!({}), &hint).await);
    cloud.until(&first, "ACTIVE").await;
    let second = create(&cloud, &image, &json!({}), &hint).await;
    assert_eq!(second.status, 409);
    assert!(message(&second).contains("1 are ruled out by the server group's policy"), "{second:?}");
    // All or none of one request.
    let many = create(&cloud, &image, &json!({"min_count": 2, "max_count": 2}), &json!({"group": together})).await;
    assert_eq!(many.status, 202, "{many:?}");
    let members = cloud.get(&format!("{GROUPS}/{together}")).await.body["server_group"]["members"].take();
    assert_eq!(members.as_array().map(Vec::len), Some(2));
    let shown = cloud.get(&format!("/compute/v2.1/servers/{first}")).await.body;
    assert_eq!(shown["server"]["server_groups"], json!([apart]));
    let older = at(&cloud, "2.70", Method::GET, &format!("/compute/v2.1/servers/{first}"), None).await.body;
    assert!(older["server"].get("server_groups").is_none());
    // Where the member is gone for good, there is room for another.
    assert_eq!(cloud.request(Method::DELETE, &format!("/compute/v2.1/servers/{first}"), None).await.status, 204);
    until_gone(&cloud, &first).await;
    let third = id(&create(&cloud, &image, &json!({}), &hint).await);
    let members = cloud.get(&format!("{GROUPS}/{apart}")).await.body["server_group"]["members"].take();
    assert_eq!(members, json!([third]));
    // A group that is gone asks nothing of its members, and has no new ones.
    assert_eq!(cloud.request(Method::DELETE, &format!("{GROUPS}/{apart}"), None).await.status, 204);
    let shown = cloud.get(&format!("/compute/v2.1/servers/{third}")).await.body;
    assert_eq!(shown["server"]["server_groups"], json!([]));
    let late = create(&cloud, &image, &json!({}), &hint).await;
    assert_eq!(late.status, 400);
    assert!(message(&late).contains("could not be found"), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_per_host_is_kept() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let wanted = json!({"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 2}});
    let made = cloud.post(GROUPS, &json!({"server_group": wanted})).await;
    let hint = json!({"group": made.body["server_group"]["id"]});
    let three = create(&cloud, &image, &json!({"min_count": 3}), &hint).await;
    assert_eq!(three.status, 409, "{three:?}");
    assert_eq!(create(&cloud, &image, &json!({"min_count": 1, "max_count": 3}), &hint).await.status, 202);
    let servers = cloud.get("/compute/v2.1/servers").await.body;
    assert_eq!(servers["servers"].as_array().map(Vec::len), Some(2), "as many as may: {servers}");
    let soft = group(&cloud, "soft-anti-affinity").await;
    let hint = json!({"group": [soft]});
    assert_eq!(create(&cloud, &image, &json!({"min_count": 3}), &hint).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_are_heeded_or_refused() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let first = id(&create(&cloud, &image, &json!({}), &Value::Null).await);
    for (hints, status) in [
        (json!({}), 202),
        (json!({"same_host": first}), 202),
        (json!({"same_host": [first]}), 202),
        (json!({"different_host": [first]}), 409),
        (json!({"same_host": ["00000000-0000-0000-0000-000000000001"]}), 409),
        (json!({"different_host": "00000000-0000-0000-0000-000000000001"}), 202),
        (json!({"same_host": [1]}), 400),
        (json!({"different_host": "web"}), 400),
        (json!({"group": "web"}), 400),
        (json!({"group": 1}), 400),
        (json!({"group": "00000000-0000-0000-0000-000000000001"}), 400),
        (json!({"query": "[\">=\", \"$free_ram_mb\", 1]"}), 400),
        (json!({"build_near_host_ip": "10.0.0.1"}), 400),
        (json!([]), 400),
    ] {
        let answer = create(&cloud, &image, &json!({}), &hints).await;
        assert_eq!(answer.status.as_u16(), status, "{hints}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregates_are_made_changed_and_deleted() {
    let cloud = Cloud::start().await;
    let made = cloud.post(AGGREGATES, &json!({"aggregate": {"name": "fast", "availability_zone": "paris"}})).await;
    assert_eq!(made.status, 200, "{made:?}");
    let made = &made.body["aggregate"];
    assert!(made.get("hosts").is_none() && made.get("metadata").is_none(), "{made}");
    assert!(made["id"].is_u64() && made["uuid"].is_string() && made["updated_at"].is_null(), "{made}");
    let path = format!("{AGGREGATES}/{}", made["id"]);
    let action = format!("{path}/action");
    let old = at(&cloud, "2.40", Method::GET, &path, None).await.body;
    assert!(old["aggregate"].get("uuid").is_none());
    assert_eq!(old["aggregate"]["metadata"], json!({"availability_zone": "paris"}));
    for (path, body, status) in [
        (AGGREGATES, json!({}), 400),
        (AGGREGATES, json!({"aggregate": {"name": ""}}), 400),
        (AGGREGATES, json!({"aggregate": {"name": "fast"}}), 409),
        (AGGREGATES, json!({"aggregate": {"name": "other", "availability_zone": "nowhere"}}), 400),
        (&action, json!({}), 400),
        (&action, json!({"add_host": {}}), 400),
        (&action, json!({"add_host": {"host": "nobody"}}), 404),
        (&action, json!({"remove_host": {"host": "paris-1"}}), 404),
        (&action, json!({"add_host": {"host": "paris-1"}}), 200),
        (&action, json!({"add_host": {"host": "paris-1"}}), 409),
        (&action, json!({"set_metadata": {"metadata": {"disk": "ssd", "old": "1"}}}), 200),
        (&action, json!({"set_metadata": {"metadata": {"old": null, "none": null}}}), 200),
        (&action, json!({"set_metadata": {"metadata": {"disk": 1}}}), 400),
        (&action, json!({"set_metadata": {"metadata": {"": "x"}}}), 400),
        (&action, json!({"set_metadata": {"metadata": {"availability_zone": "nowhere"}}}), 400),
        (&action, json!({"set_metadata": {}}), 400),
        (&action, json!({"set_metadata": {"metadata": {}}, "add_host": {"host": "paris-1"}}), 400),
        (&format!("{path}/images"), json!({"cache": []}), 501),
        (&format!("{AGGREGATES}/12/action"), json!({"add_host": {"host": "paris-1"}}), 404),
    ] {
        let answer = cloud.post(path, &body).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {body}: {answer:?}");
    }
    let shown = cloud.get(&path).await.body["aggregate"].take();
    assert_eq!(shown["hosts"], json!(["paris-1"]));
    assert_eq!(shown["metadata"], json!({"availability_zone": "paris", "disk": "ssd"}));
    assert!(shown["updated_at"].is_string());
    let delete = cloud.request(Method::DELETE, &path, None).await;
    assert_eq!(delete.status, 400, "it is not empty: {delete:?}");
    let put = async |body: Value| cloud.request(Method::PUT, &path, Some(&body)).await;
    assert_eq!(put(json!({"aggregate": {}})).await.status, 400);
    assert_eq!(put(json!({"aggregate": {"availability_zone": "nowhere"}})).await.status, 400);
    let renamed = put(json!({"aggregate": {"name": "faster", "availability_zone": null}})).await;
    assert_eq!(renamed.body["aggregate"]["name"], "faster", "{renamed:?}");
    assert_eq!(renamed.body["aggregate"]["availability_zone"], Value::Null);
    // The old name is free again, the new one is taken.
    assert_eq!(cloud.post(AGGREGATES, &json!({"aggregate": {"name": "fast"}})).await.status, 200);
    assert_eq!(put(json!({"aggregate": {"name": "fast"}})).await.status, 409);
    assert_eq!(cloud.post(&action, &json!({"remove_host": {"host": "paris-1"}})).await.status, 200);
    assert_eq!(cloud.request(Method::DELETE, &path, None).await.status, 200);
    assert_eq!(cloud.get(&path).await.status, 404);
    assert_eq!(cloud.get(&format!("{AGGREGATES}/fast")).await.status, 404);
    assert_eq!(cloud.get(AGGREGATES).await.body["aggregates"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn flavors_choose_aggregates_and_images_choose_hypervisors() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let flavor = json!({"name": "fast", "id": "fast", "vcpus": 1, "ram": 64, "disk": 1});
    assert_eq!(cloud.post("/compute/v2.1/flavors", &json!({"flavor": flavor})).await.status, 200);
    let specs = json!({"extra_specs": {"aggregate_instance_extra_specs:disk": "<or> nvme <or> ssd"}});
    assert_eq!(cloud.post("/compute/v2.1/flavors/fast/os-extra_specs", &specs).await.status, 200);
    let wanted = json!({"flavorRef": "fast"});
    let none = create(&cloud, &image, &wanted, &Value::Null).await;
    assert_eq!(none.status, 409);
    assert!(message(&none).contains("1 are in no aggregate that has what the flavor asks for"), "{none:?}");
    let made = cloud.post(AGGREGATES, &json!({"aggregate": {"name": "fast"}})).await;
    let action = format!("{AGGREGATES}/{}/action", made.body["aggregate"]["id"]);
    for body in [json!({"add_host": {"host": "paris-1"}}), json!({"set_metadata": {"metadata": {"disk": "hdd, ssd"}}})]
    {
        assert_eq!(cloud.post(&action, &body).await.status, 200);
    }
    assert_eq!(create(&cloud, &image, &wanted, &Value::Null).await.status, 202);
    for (property, status) in [("aarch64", 409), ("amd64", 202)] {
        let change = json!([{"op": "add", "path": "/hw_architecture", "value": property}]);
        let patched = cloud.request(Method::PATCH, &format!("/image/v2/images/{image}"), Some(&change)).await;
        assert_eq!(patched.status, 200, "{patched:?}");
        assert_eq!(create(&cloud, &image, &json!({}), &Value::Null).await.status.as_u16(), status, "{property}");
    }
}
