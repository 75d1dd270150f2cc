//! Address pools of a site on its own: what is taken and returned, and that bad input is told so and changes nothing.
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "each test file uses a part")]
mod support;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use support::Cloud;

const POOLS: &str = "/luc/v1/pools";

async fn make(cloud: &Cloud, name: &str, cidrs: Value) -> String {
    let made = cloud.request(Method::POST, POOLS, Some(&json!({"name": name, "cidrs": cidrs}))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    made.body["pool"]["id"].as_str().unwrap().to_owned()
}

async fn take(cloud: &Cloud, pool: &str, body: Value) -> (StatusCode, Value) {
    let answer = cloud.request(Method::POST, &format!("{POOLS}/{pool}/claims"), Some(&body)).await;
    (answer.status, answer.body)
}

async fn give_back(cloud: &Cloud, pool: &str, claim: &Value) -> StatusCode {
    let path = format!("{POOLS}/{pool}/claims/{}", claim["claim"]["id"].as_str().unwrap());
    cloud.request(Method::DELETE, &path, None).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_taken_once_and_come_back() {
    let cloud = Cloud::start().await;
    let pool = make(&cloud, "public", json!(["192.0.2.8/29", "192.0.2.4"])).await;
    let (status, one) = take(&cloud, &pool, json!({})).await;
    assert_eq!((status, &one["claim"]["addresses"]), (StatusCode::CREATED, &json!(["192.0.2.4"])));
    let (_, named) = take(&cloud, &pool, json!({"addresses": ["192.0.2.12/30"], "purpose": "gateways"})).await;
    assert_eq!((&named["claim"]["count"], &named["claim"]["purpose"]), (&json!(4), &json!("gateways")));
    let (status, refused) = take(&cloud, &pool, json!({"addresses": ["192.0.2.15"]})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let text = refused.to_string();
    assert!(
        text.contains("needs 192.0.2.15; of 192.0.2.15, 192.0.2.15 are in use") && text.contains("exhausted"),
        "{text}"
    );
    let (status, refused) = take(&cloud, &pool, json!({"count": 5})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let text = refused.to_string();
    assert!(
        text.contains("needs 5 addresses; of 9 addresses, 5 addresses are in use and 4 addresses are free here"),
        "{text}"
    );
    // What comes back is free again, once.
    assert_eq!(give_back(&cloud, &pool, &named).await, StatusCode::NO_CONTENT);
    assert_eq!(give_back(&cloud, &pool, &named).await, StatusCode::NOT_FOUND);
    let (status, _) = take(&cloud, &pool, json!({"count": 8})).await;
    assert_eq!(status, StatusCode::CREATED);
    let shown = cloud.get(&format!("{POOLS}/{pool}")).await.body["pool"].clone();
    assert_eq!(
        (&shown["claims"], &shown["claimed"]["Addresses"], &shown["conserved"]),
        (&json!(2), &json!(9), &json!(true))
    );
    assert_eq!(shown["taken"].as_array().unwrap().len(), 2);
    assert_eq!(shown["rights"][0]["free"], json!({}));
    let all = cloud.get(POOLS).await.body;
    assert_eq!(all["conserved"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_pools_are_shown_whole() {
    let cloud = Cloud::start().await;
    let six = make(&cloud, "six", json!(["2001:db8::/64"])).await;
    let four = make(&cloud, "four", json!(["10.0.0.0/8"])).await;
    let (_, one) = take(&cloud, &six, json!({"addresses": ["2001:db8::ff"]})).await;
    assert_eq!(one["claim"]["addresses"], json!(["2001:db8::ff"]));
    let shown = cloud.get(&format!("{POOLS}/{six}")).await.body["pool"].clone();
    assert_eq!(shown["capacity"], json!({"Addresses": "18446744073709551616", "addresses": ["2001:db8::/64"]}));
    assert_eq!(shown["free"]["Addresses"], "18446744073709551615");
    assert_eq!(
        shown["free"]["addresses"],
        json!(["2001:db8::-2001:db8::fe", "2001:db8::100-2001:db8::ffff:ffff:ffff:ffff"])
    );
    let shown = cloud.get(&format!("{POOLS}/{four}")).await.body["pool"].clone();
    assert_eq!(shown["capacity"], json!({"Addresses": 1 << 24, "addresses": ["10.0.0.0/8"]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_grows_and_shrinks_and_is_deleted() {
    let cloud = Cloud::start().await;
    let pool = make(&cloud, "p", json!(["10.0.0.0/30"])).await;
    let path = format!("{POOLS}/{pool}");
    let change = async |body: Value| {
        let answer = cloud.request(Method::PATCH, &path, Some(&body)).await;
        (answer.status, answer.body)
    };
    let (status, grown) = change(json!({"add": ["10.0.0.4/30"]})).await;
    assert_eq!((status, &grown["pool"]["capacity"]["addresses"]), (StatusCode::OK, &json!(["10.0.0.0/29"])));
    let (_, one) = take(&cloud, &pool, json!({})).await;
    let (status, refused) = change(json!({"remove": ["10.0.0.0/30"]})).await;
    assert_eq!(status, StatusCode::CONFLICT, "an address is in use: {refused}");
    let (status, less) = change(json!({"remove": ["10.0.0.4/30"]})).await;
    assert_eq!((status, &less["pool"]["capacity"]["Addresses"]), (StatusCode::OK, &json!(4)));
    for (body, expected) in [
        (json!({"add": ["10.0.0.4"]}), StatusCode::CONFLICT),
        (json!({"add": ["2001:db8::1"]}), StatusCode::BAD_REQUEST),
        (json!({"remove": ["10.0.0.9"]}), StatusCode::BAD_REQUEST),
        (json!({"add": "10.0.1.0/24"}), StatusCode::BAD_REQUEST),
        (json!({"grow": ["10.0.1.0/24"]}), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(change(body.clone()).await.0, expected, "{body}");
    }
    assert_eq!(cloud.request(Method::DELETE, &path, None).await.status, StatusCode::CONFLICT);
    assert_eq!(give_back(&cloud, &pool, &one).await, StatusCode::NO_CONTENT);
    assert_eq!(cloud.request(Method::DELETE, &path, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(cloud.request(Method::DELETE, &path, None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(take(&cloud, &pool, json!({})).await.0, StatusCode::NOT_FOUND);
    // The name is free again; and the old pool's addresses count for nothing.
    make(&cloud, "p", json!(["10.0.0.0/30"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_told_so() {
    let cloud = Cloud::start().await;
    let pool = make(&cloud, "p", json!(["10.0.0.0/30"])).await;
    let before = cloud.get(POOLS).await.body;
    for (body, expected) in [
        (json!({}), 400),
        (json!({"name": "q"}), 400),
        (json!({"cidrs": ["10.0.0.0/8"]}), 400),
        (json!({"name": "", "cidrs": ["10.0.0.0/8"]}), 400),
        (json!({"name": "q", "cidrs": ["10.0.0.0/8", "10.0.0.1"]}), 400),
        (json!({"name": "q", "cidrs": ["::/0"]}), 400),
        (json!({"name": "q", "cidrs": {"10.0.0.0/8": 1}}), 400),
        (json!({"name": "q", "cidrs": ["10.0.0.0/8"], "shared": true}), 400),
        (json!({"name": "p", "cidrs": ["10.0.0.0/8"]}), 409),
    ] {
        let answer = cloud.request(Method::POST, POOLS, Some(&body)).await;
        assert_eq!(answer.status.as_u16(), expected, "{body}: {}", answer.body);
    }
    for (body, expected) in [
        (json!({"count": 0}), 400),
        (json!({"count": "many"}), 400),
        (json!({"count": 1, "addresses": ["10.0.0.1"]}), 400),
        (json!({"addresses": ["10.0.0.4"]}), 400),
        (json!({"addresses": []}), 400),
        (json!({"count": 5}), 409),
    ] {
        let (status, answer) = take(&cloud, &pool, body.clone()).await;
        assert_eq!(status.as_u16(), expected, "{body}: {answer}");
    }
    for (method, path) in [
        (Method::GET, format!("{POOLS}/x")),
        (Method::POST, format!("{POOLS}/{}/claims", uuid::Uuid::nil())),
        (Method::DELETE, format!("{POOLS}/{pool}/claims/x")),
        (Method::DELETE, format!("{POOLS}/{pool}/claims/{pool}")),
    ] {
        let answer = cloud.request(method.clone(), &path, Some(&json!({}))).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
    }
    assert_eq!(cloud.get(POOLS).await.body, before, "what was refused changed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_can_be_made_so_that_grants_are_countersigned() {
    let cloud = Cloud::start().await;
    let body = json!({"name": "p", "cidrs": ["10.0.0.0/30"], "confirmed": true});
    let made = cloud.request(Method::POST, POOLS, Some(&body)).await.body;
    assert_eq!(made["pool"]["confirmed"], true);
    let project = async |body: Value| {
        let made = cloud.request(Method::POST, "/identity/v3/projects", Some(&json!({"project": body}))).await;
        (made.status, made.body)
    };
    let (_, dev) = project(json!({"name": "dev", "luc:confirmed": "true"})).await;
    let dev = dev["project"]["id"].as_str().unwrap().to_owned();
    project(json!({"name": "test"})).await;
    assert_eq!(project(json!({"name": "bad", "luc:confirmed": 7})).await.0, StatusCode::BAD_REQUEST);
    // A pool that is added is like the first; and whoever wants it otherwise is told that it cannot be.
    let quota = json!({"quota_set": {"instances": 30}});
    cloud.request(Method::PUT, &format!("/compute/v2.1/os-quota-sets/{dev}"), Some(&quota)).await;
    let patch = json!({"project": {"luc:confirmed": "false"}});
    let patched = cloud.request(Method::PATCH, &format!("/identity/v3/projects/{dev}"), Some(&patch)).await;
    assert_eq!(patched.status, StatusCode::BAD_REQUEST);
    let pools = cloud.get(POOLS).await.body;
    let confirmed = |name: &str| -> Vec<bool> {
        let of = pools["pools"].as_array().unwrap().iter().filter(|pool| pool["subject"]["name"] == name);
        of.map(|pool| pool["confirmed"].as_bool().unwrap()).collect()
    };
    assert_eq!((confirmed("dev"), confirmed("test"), confirmed("p")), (vec![true], vec![false], vec![true]));
}
