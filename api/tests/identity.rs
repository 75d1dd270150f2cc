//! Tokens stop working the moment their ground is gone, errors have their service's form, frontiers are waited for.
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "each test file uses a part")]
mod support;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::StreamExt;
use luc_api::app::{App, Settings};
use luc_engine::id::ReplicaId;
use serde_json::{Value, json};
use support::{Answer, Cloud, PASSWORD};

const TOKENS: &str = "/identity/v3/auth/tokens";

/// A user with the role `member` in the administrator's project: its id and a token.
async fn member(cloud: &Cloud, name: &str) -> (String, String) {
    let user = json!({"user": {"name": name, "password": "first"}});
    let user = cloud.post("/identity/v3/users", &user).await;
    assert_eq!(user.status, StatusCode::CREATED, "{user:?}");
    let id = user.body["user"]["id"].as_str().unwrap().to_owned();
    let role = format!("/identity/v3/projects/{}/users/{id}/roles/member", cloud.project);
    assert_eq!(cloud.request(Method::PUT, &role, None).await.status, StatusCode::NO_CONTENT);
    let token = cloud.log_in(name, "first", "admin").await.0;
    (id, token)
}

async fn works(cloud: &Cloud, token: &str) -> bool {
    let headers = [("x-auth-token", token)];
    let answer = cloud.send(Method::GET, "/compute/v2.1/servers", &headers, None).await;
    assert!(matches!(answer.status, StatusCode::OK | StatusCode::UNAUTHORIZED), "{answer:?}");
    answer.status == StatusCode::OK
}

fn by_name(name: &str, password: &str) -> Value {
    let user = json!({"name": name, "domain": {"id": "default"}, "password": password});
    json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}})
}

async fn log_in(cloud: &Cloud, body: &Value) -> Answer {
    cloud.send(Method::POST, TOKENS, &[], Some(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_stops_working_when_its_ground_is_gone() {
    let cloud = Cloud::start().await;
    let (user, _) = member(&cloud, "alice").await;
    let path = format!("/identity/v3/users/{user}");
    let role = format!("/identity/v3/projects/{}/users/{user}/roles/member", cloud.project);
    let change = async |method: Method, path: &str, body: Option<Value>| {
        let answer = cloud.request(method, path, body.as_ref()).await;
        assert!(answer.status.is_success(), "{answer:?}");
    };

    let token = cloud.log_in("alice", "first", "admin").await.0;
    assert!(works(&cloud, &token).await);
    change(Method::PATCH, &path, Some(json!({"user": {"enabled": false}}))).await;
    assert!(!works(&cloud, &token).await, "disabled");
    assert_eq!(log_in(&cloud, &by_name("alice", "first")).await.status, StatusCode::UNAUTHORIZED);
    change(Method::PATCH, &path, Some(json!({"user": {"enabled": true}}))).await;
    assert!(works(&cloud, &token).await);

    change(Method::DELETE, &role, None).await;
    assert!(!works(&cloud, &token).await, "no role any more");
    change(Method::PUT, &role, None).await;
    assert!(works(&cloud, &token).await);

    let passwords = json!({"user": {"original_password": "first", "password": "second"}});
    let changed = cloud.send(Method::POST, &format!("{path}/password"), &[], Some(&passwords)).await;
    assert_eq!(changed.status, StatusCode::NO_CONTENT, "{changed:?}");
    assert!(!works(&cloud, &token).await, "the password was changed");
    assert_eq!(log_in(&cloud, &by_name("alice", "first")).await.status, StatusCode::UNAUTHORIZED);

    let token = cloud.log_in("alice", "second", "admin").await.0;
    let headers = [("x-auth-token", token.as_str()), ("x-subject-token", token.as_str())];
    assert_eq!(cloud.send(Method::GET, TOKENS, &headers, None).await.status, StatusCode::OK);
    assert_eq!(cloud.send(Method::DELETE, TOKENS, &headers, None).await.status, StatusCode::NO_CONTENT);
    assert!(!works(&cloud, &token).await, "revoked");
    let headers = [("x-auth-token", cloud.token.as_str()), ("x-subject-token", token.as_str())];
    assert_eq!(cloud.send(Method::GET, TOKENS, &headers, None).await.status, StatusCode::NOT_FOUND);

    let token = cloud.log_in("alice", "second", "admin").await.0;
    change(Method::DELETE, &path, None).await;
    assert!(!works(&cloud, &token).await, "deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_project_accepts_no_token() {
    let cloud = Cloud::start().await;
    let project = cloud.post("/identity/v3/projects", &json!({"project": {"name": "dev"}})).await.body;
    let id = project["project"]["id"].as_str().unwrap();
    let users = cloud.get("/identity/v3/users?name=admin").await.body;
    let admin = users["users"][0]["id"].as_str().unwrap();
    let role = format!("/identity/v3/projects/{id}/users/{admin}/roles/reader");
    assert_eq!(cloud.request(Method::PUT, &role, None).await.status, StatusCode::NO_CONTENT);
    let token = cloud.log_in("admin", PASSWORD, "dev").await.0;
    assert!(works(&cloud, &token).await);
    let disabled = json!({"project": {"enabled": false}});
    let path = format!("/identity/v3/projects/{id}");
    assert_eq!(cloud.request(Method::PATCH, &path, Some(&disabled)).await.status, StatusCode::OK);
    assert!(!works(&cloud, &token).await);
    assert_eq!(cloud.post("/identity/v3/projects", &json!({"project": {"name": "dev"}})).await.status, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_kept_until_its_token_would_have_expired() {
    let cloud = Cloud::start().await;
    let token = cloud.log_in("admin", PASSWORD, "admin").await.0;
    let headers = [("x-auth-token", token.as_str()), ("x-subject-token", token.as_str())];
    assert_eq!(cloud.send(Method::DELETE, TOKENS, &headers, None).await.status, StatusCode::NO_CONTENT);
    let kept = || cloud.app.view().all::<luc_engine::record::Revocation>().count();
    luc_api::auth::forget_expired(&cloud.app, luc_sync::node::now() + 3_600_000).await.unwrap();
    assert_eq!(kept(), 1);
    assert!(!works(&cloud, &token).await);
    luc_api::auth::forget_expired(&cloud.app, luc_sync::node::now() + 2 * 3_600_000 + 60_000).await.unwrap();
    assert_eq!(kept(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_foreign_tokens_are_refused() {
    let (cloud, other) = (Cloud::start().await, Cloud::start().await);
    assert!(!works(&cloud, &other.token).await, "signed by another cloud");
    let mut changed = cloud.token.clone().into_bytes();
    for at in (5..changed.len()).step_by(7) {
        let before = changed[at];
        changed[at] = if before == b'A' { b'B' } else { b'A' };
        assert!(!works(&cloud, std::str::from_utf8(&changed).unwrap()).await, "byte {at}");
        changed[at] = before;
    }
    for token in ["", "luc1.", "luc1.AAAA", "gAAAAAB", &"A".repeat(5000)] {
        assert!(!works(&cloud, token).await, "{token:.20}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_logins_tell_nothing_of_which_users_exist() {
    let cloud = Cloud::start().await;
    member(&cloud, "alice").await;
    let nobody = json!({"user": {"name": "keyless"}});
    assert_eq!(cloud.post("/identity/v3/users", &nobody).await.status, StatusCode::CREATED);
    let mut seen = Vec::new();
    for name in ["alice", "mallory", "keyless"] {
        let mut answers = Vec::new();
        for _ in 0..8 {
            let answer = log_in(&cloud, &by_name(name, "wrong")).await;
            answers.push((answer.status, answer.body));
        }
        assert_eq!(answers[0].0, StatusCode::UNAUTHORIZED);
        assert_eq!(answers[6].0, StatusCode::TOO_MANY_REQUESTS, "{answers:?}");
        seen.push(answers);
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    assert_eq!(log_in(&cloud, &by_name("admin", PASSWORD)).await.status, StatusCode::CREATED, "others may log in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_token_lives_no_longer_and_can_change_its_project() {
    let cloud = Cloud::start().await;
    let shown = async |token: &str| {
        let headers = [("x-auth-token", token), ("x-subject-token", token)];
        cloud.send(Method::GET, TOKENS, &headers, None).await.body["token"].take()
    };
    let first = shown(&cloud.token).await;
    let wanted =
        json!({"auth": {"identity": {"methods": ["token"], "token": {"id": cloud.token}}, "scope": "unscoped"}});
    let answer = log_in(&cloud, &wanted).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    assert_eq!(answer.body["token"]["expires_at"], first["expires_at"]);
    assert_eq!(answer.body["token"].get("project"), None);
    assert_eq!(answer.body["token"].get("catalog"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_form_of_their_service_and_a_request_id() {
    let cloud = Cloud::start().await;
    let check = |answer: &Answer, key: &str, code: u16| {
        assert_eq!(answer.status.as_u16(), code, "{answer:?}");
        assert!(answer.headers["x-openstack-request-id"].to_str().unwrap().starts_with("req-"), "{answer:?}");
        assert!(answer.headers.contains_key("x-luc-frontier"));
        if key == "html" {
            assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/html"), "{answer:?}");
        } else {
            assert_eq!(answer.body[key]["code"], code, "{answer:?}");
        }
    };
    for (path, key) in [("/identity/v3", "error"), ("/compute/v2.1", "itemNotFound"), ("/image/v2", "html")] {
        check(&cloud.get(&format!("{path}/nowhere")).await, key, 404);
    }
    check(&cloud.get("/luc/v1/nowhere").await, "error", 404);
    check(&cloud.get("/compute/v2.1/servers/%ff%fe").await, "badRequest", 400);
    check(&cloud.get("/identity/v3/users/%ff").await, "error", 400);
    check(&cloud.get("/image/v2/images/%ff").await, "html", 400);
    check(&cloud.request(Method::DELETE, "/compute/v2.1/servers", None).await, "badMethod", 405);
    check(&cloud.request(Method::PATCH, "/identity/v3/roles", None).await, "error", 405);
    check(&cloud.request(Method::PUT, "/image/v2/images", None).await, "html", 405);
    check(&cloud.send(Method::GET, "/identity/v3/projects", &[], None).await, "error", 401);
    check(&cloud.send(Method::GET, "/compute/v2.1/servers", &[], None).await, "unauthorized", 401);
    check(&cloud.post("/compute/v2.1/servers", &json!([1, 2])).await, "badRequest", 400);
    check(&cloud.post("/identity/v3/users", &json!({"user": {"name": "x".repeat(2 << 20)}})).await, "error", 413);
    for version in ["2.97", "2.0", "3.1", "nonsense"] {
        let headers =
            [("x-auth-token", cloud.token.as_str()), ("openstack-api-version", &format!("compute {version}"))];
        let answer = cloud.send(Method::GET, "/compute/v2.1/servers", &headers, None).await;
        assert!(matches!(answer.status.as_u16(), 400 | 406), "{version}: {answer:?}");
    }
    for (path, key) in [("/network/v2.0/networks", "NeutronError"), ("/placement/", "errors"), ("/volume/v3/", "")] {
        let answer = cloud.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED, "{answer:?}");
        assert!(key.is_empty() || !answer.body[key].is_null(), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_never_carry_what_a_host_header_smuggles_in() {
    let cloud = Cloud::start().await;
    for host in ["evil\"/<script>", "a b", "user@host", "host/path"] {
        let answer = cloud.send(Method::GET, "/identity/v3", &[("host", host)], None).await;
        let href = answer.body["version"]["links"][0]["href"].as_str().unwrap().to_owned();
        assert_eq!(href, "http://localhost/identity/v3/", "{host}");
    }
    let answer = cloud.send(Method::GET, "/identity/v3", &[("host", "paris.example:8774")], None).await;
    assert_eq!(answer.body["version"]["links"][0]["href"], "http://paris.example:8774/identity/v3/");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frontier_that_was_given_is_held_and_a_malformed_one_is_refused() {
    let cloud = Cloud::start().await;
    let ask = async |frontier: &str| {
        let headers = [("x-auth-token", cloud.token.as_str()), ("x-luc-frontier", frontier)];
        cloud.send(Method::GET, "/identity/v3/projects", &headers, None).await
    };
    let given = cloud.get("/identity/v3/projects").await.headers["x-luc-frontier"].to_str().unwrap().to_owned();
    assert_eq!(ask(&given).await.status, StatusCode::OK);
    for malformed in ["", "!", "AAAA"] {
        let answer = ask(malformed).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{malformed}: {answer:?}");
        assert!(answer.body["error"]["message"].as_str().unwrap().contains("X-LUC-Frontier"));
    }
    // The first entry of a replica that this one has never heard of.
    let other =
        BASE64_URL_SAFE_NO_PAD.encode(rmp_serde::to_vec(&[(ReplicaId(uuid::Uuid::from_u128(7)), 1_u64)]).unwrap());
    let answer = ask(&other).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert!(answer.body["error"]["message"].as_str().unwrap().contains("entry "), "it names what is missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_lines_that_prometheus_reads() {
    let cloud = Cloud::start().await;
    let answer = cloud.send(Method::from_bytes(b"BREW").unwrap(), "/identity/v3/users", &[], None).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    let text = cloud.text("/metrics").await;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let bare = name.split('{').next().unwrap();
        assert!(bare.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
        let family = bare.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count");
        assert!(text.contains(&format!("# TYPE {family} ")), "{line} has no type");
    }
    assert!(text.contains(r#"luc_http_requests_total{service="identity",method="POST",status="201"} "#), "{text}");
    assert!(text.contains(r#"method="other",status="405"} 1"#), "{text}");
    assert!(text.contains("luc_servers_by_status"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_told_as_they_become_visible() {
    let cloud = Cloud::start().await;
    let request = Request::builder().uri("/luc/v1/events").header("x-auth-token", &cloud.token);
    let request = request.body(Body::empty()).unwrap();
    let response = tower_service::Service::call(&mut cloud.router().clone(), request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let project = cloud.post("/identity/v3/projects", &json!({"project": {"name": "dev"}})).await.body;
    let id = uuid::Uuid::parse_str(project["project"]["id"].as_str().unwrap()).unwrap().to_string();
    let mut stream = response.into_body().into_data_stream();
    let mut seen = String::new();
    while !seen.contains(&id) {
        seen.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(seen.contains("event: entry\n"), "{seen}");
}

/// Of a token that is over as soon as somebody looks.
const LIFETIME: std::time::Duration = std::time::Duration::from_millis(300);

#[tokio::test]
async fn a_token_stops_working_when_its_time_is_over() {
    let cloud = Cloud::start().await;
    let (long, _) = cloud.log_in("admin", PASSWORD, "admin").await;
    let settings = Settings { token_lifetime: LIFETIME, ..Settings::default() };
    let hasty = App::new(cloud.app.net().clone(), settings);
    let cloud = cloud.behind(hasty.router());
    let (over, _) = cloud.log_in("admin", PASSWORD, "admin").await;
    tokio::time::sleep(LIFETIME).await;
    assert!(works(&cloud, &long).await, "its time is its own");
    assert!(!works(&cloud, &over).await);
    let headers = [("x-auth-token", long.as_str()), ("x-subject-token", over.as_str())];
    let shown = cloud.send(Method::GET, TOKENS, &headers, None).await;
    assert_eq!(shown.status, StatusCode::NOT_FOUND, "{shown:?}");
}

#[tokio::test]
async fn a_handler_that_panics_answers_in_its_services_form_and_the_process_goes_on() {
    let cloud = Cloud::start().await;
    let boom = |path: &str| {
        let routes = Router::new().route(path, get(|| async { panic!("a bug, for the test") as &'static str }));
        cloud.app.wrap(routes)
    };
    let (compute, identity) = (boom("/compute/v2.1/boom"), boom("/identity/v3/boom"));
    let whole = cloud.router().clone();
    let cloud = cloud.behind(compute);
    let answer = cloud.get("/compute/v2.1/boom").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let id = answer.headers["x-openstack-request-id"].to_str().unwrap();
    let message = answer.body["computeFault"]["message"].as_str().unwrap();
    assert!(message.contains(id) && !message.contains("a bug"), "{message}");
    let cloud = cloud.behind(identity);
    let answer = cloud.get("/identity/v3/boom").await;
    assert_eq!(answer.body["error"]["code"], 500, "{answer:?}");
    let cloud = cloud.behind(whole);
    assert_eq!(cloud.get("/compute/v2.1/servers").await.status, StatusCode::OK);
}
