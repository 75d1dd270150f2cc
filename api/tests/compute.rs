//! Servers through the whole API: created, listed, changed, refused, deleted.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use support::Cloud;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_lives_through_all_its_actions() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let created = cloud.create(&image, json!({"metadata": {"a": "b"}, "accessIPv6": "::babe:dc0c:1602"})).await;
    assert_eq!(created.status, StatusCode::ACCEPTED, "{created:?}");
    let id = created.body["server"]["id"].as_str().unwrap().to_owned();
    let shown = cloud.until(&id, "ACTIVE").await;
    assert_eq!(shown["accessIPv6"], "::babe:dc0c:1602");
    assert_eq!(shown["metadata"], json!({"a": "b"}));
    assert_eq!(shown["OS-EXT-AZ:availability_zone"], "paris");
    let path = format!("/compute/v2.1/servers/{id}/action");
    let steps = [
        (json!({"pause": null}), "PAUSED"),
        (json!({"unpause": null}), "ACTIVE"),
        (json!({"suspend": null}), "SUSPENDED"),
        (json!({"resume": null}), "ACTIVE"),
        (json!({"os-stop": null}), "SHUTOFF"),
        (json!({"os-start": null}), "ACTIVE"),
        (json!({"reboot": {"type": "SOFT"}}), "ACTIVE"),
        (json!({"reboot": {"type": "HARD"}}), "ACTIVE"),
    ];
    for (action, status) in steps {
        let answer = cloud.post(&path, &action).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{action}: {answer:?}");
        cloud.until(&id, status).await;
    }
    let refused = cloud.post(&path, &json!({"os-start": null})).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    let text = format!("Cannot 'start' instance {id} while it is in vm_state active");
    assert_eq!(refused.body, json!({"conflictingRequest": {"code": 409, "message": text}}));
    let console = cloud.post(&path, &json!({"os-getConsoleOutput": {"length": 5}})).await;
    assert_eq!(console.body["output"], "hello\n");
    let unknown = cloud.post(&path, &json!({"resize": {"flavorRef": "1"}})).await;
    assert_eq!(unknown.status, StatusCode::NOT_IMPLEMENTED);
    delete(&cloud, &id).await;
    for _ in 0..500 {
        let limits = cloud.get("/compute/v2.1/limits").await;
        if limits.body["limits"]["absolute"]["totalInstancesUsed"] == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("what it held is never free again");
}

async fn delete(cloud: &Cloud, id: &str) {
    let path = format!("/compute/v2.1/servers/{id}");
    assert_eq!(cloud.request(Method::DELETE, &path, None).await.status, StatusCode::NO_CONTENT);
    for _ in 0..500 {
        if cloud.get(&path).await.status == StatusCode::NOT_FOUND {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{id} is never gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_is_found_by_the_id_of_its_request() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let created = cloud.create(&image, json!({})).await;
    let id = created.body["server"]["id"].as_str().unwrap();
    let request = created.headers["x-compute-request-id"].to_str().unwrap();
    let action = cloud.get(&format!("/compute/v2.1/servers/{id}/os-instance-actions/{request}")).await;
    assert_eq!(action.body["instanceAction"]["action"], "create", "{action:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_are_all_or_none() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let some = cloud.create(&image, json!({"min_count": 2, "max_count": 30, "return_reservation_id": true})).await;
    assert_eq!(some.status, StatusCode::ACCEPTED, "{some:?}");
    let list = cloud.get("/compute/v2.1/servers").await;
    assert_eq!(list.body["servers"].as_array().unwrap().len(), 10, "as many as the quota has");
    let more = cloud.create(&image, json!({})).await;
    assert_eq!(more.status, StatusCode::FORBIDDEN);
    let text = more.body["forbidden"]["message"].as_str().unwrap();
    assert!(text.starts_with("Quota exceeded for instances: Requested 1"), "{text}");
    let reservation = some.body["reservation_id"].as_str().unwrap();
    let list = cloud.get(&format!("/compute/v2.1/servers?reservation_id={reservation}")).await;
    assert_eq!(list.body["servers"].as_array().unwrap().len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_nowhere_is_refused_and_holds_nothing() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let quota = json!({"quota_set": {"cores": 1000, "ram": 10_000_000}});
    let path = format!("/compute/v2.1/os-quota-sets/{}", cloud.project);
    assert_eq!(cloud.request(Method::PUT, &path, Some(&quota)).await.status, StatusCode::OK);
    let flavor = json!({"flavor": {"name": "huge", "vcpus": 100, "ram": 1, "disk": 0, "id": "huge"}});
    assert_eq!(cloud.post("/compute/v2.1/flavors", &flavor).await.status, StatusCode::OK);
    let refused = cloud.create(&image, json!({"flavorRef": "huge"})).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
    let text = refused.body["conflictingRequest"]["message"].as_str().unwrap();
    assert!(text.starts_with("No valid host was found."), "{text}");
    let used = cloud.get(&format!("{path}/detail")).await;
    assert_eq!(used.body["quota_set"]["instances"]["in_use"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_wishes_are_refused_with_400() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let wrong = [
        json!({"flavorRef": 123_456}),
        json!({"flavorRef": null}),
        json!({"imageRef": "none"}),
        json!({"name": ""}),
        json!({"name": "x".repeat(256)}),
        json!({"key_name": "missing"}),
        json!({"availability_zone": "nowhere"}),
        json!({"availability_zone": "paris:nowhere"}),
        json!({"metadata": {"k": "v".repeat(256)}}),
        json!({"metadata": {"": "v"}}),
        json!({"user_data": "not base64!"}),
        json!({"user_data": "A".repeat(65_536)}),
        json!({"accessIPv4": "1.2.3"}),
        json!({"accessIPv6": "notanaddress"}),
        json!({"OS-DCF:diskConfig": "maybe"}),
        json!({"min_count": 0}),
        json!({"min_count": 3, "max_count": 2}),
        json!({"hostname": "-"}),
        json!({"tags": ["a/b"]}),
        json!({"networks": [{"uuid": "f00"}]}),
        json!({"networks": null, "block_device_mapping": [{"volume_id": "f00"}]}),
    ];
    for more in wrong {
        let answer = cloud.create(&image, more.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{more}: {answer:?}");
        assert_eq!(answer.body["badRequest"]["code"], 400, "in Nova's form");
    }
    for query in ["limit=-1", "limit=x", "changes-since=yesterday", "marker=f00", "name=(", "sort_key=secret"] {
        let answer = cloud.get(&format!("/compute/v2.1/servers?{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_filter_and_turn_pages() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    for name in ["alpha", "beta", "gamma"] {
        let created = cloud.create(&image, json!({"name": name, "tags": [name]})).await;
        cloud.until(created.body["server"]["id"].as_str().unwrap(), "ACTIVE").await;
    }
    let names = async |query: &str| -> Vec<String> {
        let list = cloud.get(&format!("/compute/v2.1/servers/detail?{query}")).await;
        let servers = list.body["servers"].as_array().unwrap_or_else(|| panic!("{query}: {list:?}")).clone();
        servers.iter().map(|server| server["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("sort_key=display_name&sort_dir=asc").await, ["alpha", "beta", "gamma"]);
    assert_eq!(names("name=%5Eal").await, ["alpha"]);
    assert_eq!(names("tags=beta").await, ["beta"]);
    assert_eq!(names("tags-any=beta,gamma&sort_key=display_name").await, ["gamma", "beta"]);
    assert_eq!(names("status=nonsense").await, Vec::<String>::new());
    assert_eq!(names("flavor=42&status=active&host=paris-1").await.len(), 3);
    assert_eq!(names("changes-since=2099-01-01T00:00:00Z").await, Vec::<String>::new());
    let (mut path, mut seen) = ("/compute/v2.1/servers?limit=1&sort_key=display_name&sort_dir=asc".to_owned(), vec![]);
    loop {
        let page = cloud.get(&path).await.body;
        seen.extend(page["servers"].as_array().unwrap().iter().map(|server| server["name"].clone()));
        let Some(next) = page["servers_links"][0]["href"].as_str() else { break };
        path = next.split_once("localhost").unwrap().1.to_owned();
    }
    assert_eq!(seen, ["alpha", "beta", "gamma"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_come_with_their_microversions() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let created = cloud.create(&image, json!({})).await;
    let path = format!("/compute/v2.1/servers/{}", created.body["server"]["id"].as_str().unwrap());
    let fields = [
        ("locked", 9),
        ("host_status", 16),
        ("description", 19),
        ("tags", 26),
        ("trusted_image_certificates", 63),
        ("server_groups", 71),
        ("locked_reason", 73),
        ("pinned_availability_zone", 96),
    ];
    for (field, since) in fields {
        for version in [since - 1, since] {
            let asked = format!("compute 2.{version}");
            let headers = [("x-auth-token", cloud.token.as_str()), ("openstack-api-version", asked.as_str())];
            let answer = cloud.send(Method::GET, &path, &headers, None).await;
            assert_eq!(answer.headers["openstack-api-version"], asked.as_str());
            assert_eq!(answer.body["server"].get(field).is_some(), version == since, "{field} at 2.{version}");
        }
    }
    let headers = [("x-auth-token", cloud.token.as_str()), ("x-openstack-nova-api-version", "2.97")];
    assert_eq!(cloud.send(Method::GET, &path, &headers, None).await.status, StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_flavor_is_for_those_given_access() {
    let cloud = Cloud::start().await;
    let flavor = json!({"flavor": {"name": "own", "id": "own", "vcpus": 1, "ram": 1, "disk": 0, "os-flavor-access:is_public": false}});
    assert_eq!(cloud.post("/compute/v2.1/flavors", &flavor).await.status, StatusCode::OK);
    let listed = async |query: &str| {
        let list = cloud.get(&format!("/compute/v2.1/flavors{query}")).await.body;
        list["flavors"].as_array().unwrap().iter().any(|flavor| flavor["id"] == "own")
    };
    assert!(!listed("").await);
    assert!(listed("?is_public=none").await);
    let change = |verb: &str| json!({verb: {"tenant": cloud.project}});
    let added = cloud.post("/compute/v2.1/flavors/own/action", &change("addTenantAccess")).await;
    assert_eq!(added.body["flavor_access"], json!([{"flavor_id": "own", "tenant_id": cloud.project}]));
    let again = cloud.post("/compute/v2.1/flavors/own/action", &change("addTenantAccess")).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    assert!(listed("").await);
    cloud.post("/compute/v2.1/flavors/own/action", &change("removeTenantAccess")).await;
    assert!(!listed("").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_pair_made_here_is_shown_once() {
    let cloud = Cloud::start().await;
    let headers = [("x-auth-token", cloud.token.as_str()), ("openstack-api-version", "compute 2.10")];
    let body = json!({"keypair": {"name": "k"}});
    let made = cloud.send(Method::POST, "/compute/v2.1/os-keypairs", &headers, Some(&body)).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let private = made.body["keypair"]["private_key"].as_str().unwrap();
    let key = ssh_key::PrivateKey::from_openssh(private).unwrap();
    assert_eq!(key.public_key().to_openssh().unwrap(), made.body["keypair"]["public_key"].as_str().unwrap());
    let shown = cloud.get("/compute/v2.1/os-keypairs/k").await;
    assert_eq!(shown.body["keypair"].get("private_key"), None);
    let newest = cloud.post("/compute/v2.1/os-keypairs", &json!({"keypair": {"name": "l"}})).await;
    assert_eq!(newest.status, StatusCode::BAD_REQUEST, "since 2.92 clients make them");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_patched_in_both_forms() {
    let cloud = Cloud::start().await;
    let id = cloud.image().await;
    let path = format!("/image/v2/images/{id}");
    let patch = json!([
        {"op": "add", "path": "/os_distro", "value": "debian"},
        {"replace": "/name", "value": "renamed"},
        {"op": "replace", "path": "/protected", "value": true},
    ]);
    let answer = cloud.request(Method::PATCH, &path, Some(&patch)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!((&answer.body["name"], &answer.body["os_distro"]), (&json!("renamed"), &json!("debian")));
    assert_eq!(cloud.request(Method::DELETE, &path, None).await.status, StatusCode::FORBIDDEN, "protected");
    let refused: [(Value, StatusCode); 5] = [
        (json!([{"op": "replace", "path": "/missing", "value": "x"}]), StatusCode::CONFLICT),
        (json!([{"op": "remove", "path": "/name"}]), StatusCode::FORBIDDEN),
        (json!([{"op": "replace", "path": "/status", "value": "x"}]), StatusCode::FORBIDDEN),
        (json!([{"op": "add", "path": "/os_glance_x", "value": "x"}]), StatusCode::FORBIDDEN),
        (json!([{"op": "replace", "path": "/disk_format", "value": "qcow2"}]), StatusCode::BAD_REQUEST),
    ];
    for (patch, status) in refused {
        assert_eq!(cloud.request(Method::PATCH, &path, Some(&patch)).await.status, status, "{patch}");
    }
    let old = [("x-auth-token", cloud.token.as_str()), ("openstack-api-version", "compute 2.35")];
    let proxied = cloud.send(Method::GET, &format!("/compute/v2.1/images/{id}"), &old, None).await;
    assert_eq!(proxied.body["image"]["status"], "ACTIVE", "{proxied:?}");
    assert_eq!(cloud.get(&format!("/compute/v2.1/images/{id}")).await.status, StatusCode::NOT_FOUND, "gone since 2.36");
}

#[tokio::test(flavor = "multi_thread")]
async fn image_data_comes_whole_or_in_parts() {
    let cloud = Cloud::start().await;
    let id = cloud.image().await;
    // The harness uploads the six bytes of a JSON text.
    let path = format!("/image/v2/images/{id}/file");
    let ask = async |range: &str| {
        let headers = [("x-auth-token", cloud.token.as_str()), ("range", range)];
        cloud.send(Method::GET, &path, &headers, None).await
    };
    let whole = cloud.get(&path).await;
    assert_eq!((whole.status, &whole.body), (StatusCode::OK, &json!("data")));
    for (range, expected) in [("bytes=1-4", "bytes 1-4/6"), ("bytes=2-", "bytes 2-5/6"), ("bytes=-3", "bytes 3-5/6")] {
        let part = ask(range).await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(part.headers["content-range"], expected);
    }
    assert_eq!(ask("bytes=6-").await.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(ask("bytes=0-1,3-4").await.status, StatusCode::OK, "several ranges are answered whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn image_data_go_with_the_last_that_needs_them() {
    let cloud = Cloud::start().await;
    let blobs = cloud.app.net().blobs();
    let image = cloud.image().await;
    let blob = {
        let view = cloud.app.view();
        let data = view.all::<luc_engine::record::Image>().find_map(|(_, image)| image.data.clone());
        data.unwrap().blob
    };
    // As if it had been fetched, and its image deleted at another site.
    let (other, turn) = blobs.put(&b"of an image that was deleted elsewhere"[..], 100, 1).await.unwrap();
    drop(turn);
    assert_eq!(luc_api::image::sweep(&cloud.app, luc_api::image::IDLE).await.unwrap(), 0, "it has just come");
    assert_eq!(luc_api::image::sweep(&cloud.app, Duration::ZERO).await.unwrap(), 1);
    assert!(blobs.path(&other.blob).is_none() && blobs.path(&blob).is_some());
    assert_eq!(cloud.request(Method::DELETE, &format!("/image/v2/images/{image}"), None).await.status, 204);
    assert!(blobs.path(&blob).is_none(), "where an image is deleted its data go at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_is_not_what_it_is_said_to_be_is_refused_and_the_image_stays_queued() {
    let cloud = Cloud::start().await;
    let wanted = json!({"name": "bad", "disk_format": "qcow2", "container_format": "bare"});
    let image = cloud.post("/image/v2/images", &wanted).await.body;
    let path = format!("/image/v2/images/{}", image["id"].as_str().unwrap());
    let upload = cloud.request(Method::PUT, &format!("{path}/file"), Some(&json!("no qcow2"))).await;
    assert_eq!(upload.status, StatusCode::BAD_REQUEST, "{upload:?}");
    assert_eq!(cloud.get(&path).await.body["status"], "queued");
    assert_eq!(cloud.get(&format!("{path}/file")).await.status, StatusCode::NO_CONTENT);
    let refused = cloud.create(image["id"].as_str().unwrap(), json!({})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "no server starts from it");
}

/// A project with a user of each role; their tokens.
async fn team(cloud: &Cloud, project: &str) -> (String, String) {
    let made = cloud.post("/identity/v3/projects", &json!({"project": {"name": project}})).await.body;
    let project_id = made["project"]["id"].as_str().unwrap().to_owned();
    let roles = cloud.get("/identity/v3/roles").await.body;
    let mut tokens = Vec::new();
    for role in ["member", "reader"] {
        let name = format!("{project}-{role}");
        let user = json!({"user": {"name": name, "password": "pass-word"}});
        let user = cloud.post("/identity/v3/users", &user).await.body;
        let user = user["user"]["id"].as_str().unwrap();
        let is_role = |one: &&Value| one["name"] == role;
        let role = roles["roles"].as_array().unwrap().iter().find(is_role).unwrap()["id"].as_str().unwrap();
        let path = format!("/identity/v3/projects/{project_id}/users/{user}/roles/{role}");
        assert_eq!(cloud.request(Method::PUT, &path, None).await.status, StatusCode::NO_CONTENT);
        tokens.push(cloud.log_in(&name, "pass-word", project).await.0);
    }
    let reader = tokens.pop().unwrap();
    (tokens.pop().unwrap(), reader)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_belong_to_projects_and_locks_bind_their_members() {
    let cloud = Cloud::start().await;
    let id = cloud.image().await;
    let open = json!([{"op": "replace", "path": "/visibility", "value": "public"}]);
    assert_eq!(cloud.request(Method::PATCH, &format!("/image/v2/images/{id}"), Some(&open)).await.status, 200);
    let (member, reader) = team(&cloud, "dev").await;
    let (stranger, _) = team(&cloud, "other").await;
    let ask = async |token: &str, method: Method, path: &str, body: Option<Value>| {
        let headers = [("x-auth-token", token), ("openstack-api-version", "compute 2.90")];
        cloud.send(method, &format!("/compute/v2.1{path}"), &headers, body.as_ref()).await
    };
    let wanted = json!({"server": {"name": "s", "flavorRef": "42", "imageRef": id, "networks": "none"}});
    let refused = ask(&reader, Method::POST, "/servers", Some(wanted.clone())).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "readers look");
    let created = ask(&member, Method::POST, "/servers", Some(wanted)).await;
    assert_eq!(created.status, StatusCode::ACCEPTED, "{created:?}");
    let server = created.body["server"]["id"].as_str().unwrap().to_owned();
    let path = format!("/servers/{server}");
    cloud.until(&server, "ACTIVE").await;
    assert_eq!(ask(&reader, Method::GET, &path, None).await.status, StatusCode::OK);
    assert_eq!(ask(&stranger, Method::GET, &path, None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(ask(&stranger, Method::DELETE, &path, None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(ask(&stranger, Method::GET, "/servers?all_tenants=1", None).await.status, StatusCode::FORBIDDEN);
    let shown = ask(&member, Method::GET, &path, None).await.body;
    assert_eq!(shown["server"].get("OS-EXT-SRV-ATTR:host"), None, "hosts are the operators'");
    let action = format!("{path}/action");
    let locked = ask(&cloud.token, Method::POST, &action, Some(json!({"lock": {"locked_reason": "audit"}}))).await;
    assert_eq!(locked.status, StatusCode::ACCEPTED);
    assert_eq!(ask(&member, Method::GET, &path, None).await.body["server"]["locked_reason"], "audit");
    let metadata = json!({"metadata": {"a": "b"}});
    for (method, path, body) in [
        (Method::POST, action.clone(), Some(json!({"os-stop": null}))),
        (Method::POST, format!("{path}/metadata"), Some(metadata)),
        (Method::DELETE, path.clone(), None),
    ] {
        assert_eq!(ask(&member, method, &path, body).await.status, StatusCode::CONFLICT, "{path}");
    }
    assert_eq!(ask(&member, Method::POST, &action, Some(json!({"unlock": null}))).await.status, StatusCode::ACCEPTED);
    assert_eq!(ask(&member, Method::DELETE, &path, None).await.status, StatusCode::NO_CONTENT);
}
