//! Who may do what, for every route there is: one table. A route without a row fails, and so does a row without a route,
//! and every row is tried by callers who are one role short of it.
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "each test file uses a part")]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use axum::http::{Method, StatusCode};
use serde_json::json;
use support::Cloud;

use self::Who::{Admin, Anyone, Member, Reader, Token};

/// The least that a caller must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    /// Nobody is asked for a token.
    Anyone,
    /// Whoever has one.
    Token,
    /// May look at the project that the thing belongs to.
    Reader,
    /// May change what the project has.
    Member,
    /// The administrator.
    Admin,
}

/// Paths, and who may use which method there.
const TABLE: &[(&str, &[(&str, Who)])] = &[
    ("/", &[("GET", Anyone)]),
    ("/healthz", &[("GET", Anyone)]),
    ("/metrics", &[("GET", Anyone)]),
    ("/identity", &[("GET", Anyone)]),
    ("/identity/", &[("GET", Anyone)]),
    ("/identity/v3", &[("GET", Anyone)]),
    ("/identity/v3/", &[("GET", Anyone)]),
    ("/identity/v3/auth/tokens", &[("GET", Token), ("POST", Anyone), ("DELETE", Token)]),
    ("/identity/v3/auth/catalog", &[("GET", Token)]),
    ("/identity/v3/auth/projects", &[("GET", Token)]),
    ("/identity/v3/auth/domains", &[("GET", Token)]),
    ("/identity/v3/auth/system", &[("GET", Token)]),
    ("/identity/v3/projects", &[("GET", Admin), ("POST", Admin)]),
    ("/identity/v3/projects/{id}", &[("GET", Reader), ("PATCH", Admin), ("DELETE", Admin)]),
    ("/identity/v3/users", &[("GET", Admin), ("POST", Admin)]),
    ("/identity/v3/users/{id}", &[("GET", Admin), ("PATCH", Admin), ("DELETE", Admin)]),
    // The old password is the proof, so that an expired one can be changed.
    ("/identity/v3/users/{id}/password", &[("POST", Anyone)]),
    ("/identity/v3/users/{id}/projects", &[("GET", Admin)]),
    ("/identity/v3/roles", &[("GET", Token)]),
    ("/identity/v3/roles/{id}", &[("GET", Token)]),
    ("/identity/v3/role_assignments", &[("GET", Admin)]),
    ("/identity/v3/projects/{project}/users/{user}/roles", &[("GET", Admin)]),
    ("/identity/v3/projects/{project}/users/{user}/roles/{role}", &[("GET", Admin), ("PUT", Admin), ("DELETE", Admin)]),
    ("/identity/v3/domains", &[("GET", Token)]),
    ("/identity/v3/domains/{id}", &[("GET", Token)]),
    ("/identity/v3/services", &[("GET", Token)]),
    ("/identity/v3/services/{id}", &[("GET", Token)]),
    ("/identity/v3/endpoints", &[("GET", Token)]),
    ("/identity/v3/endpoints/{id}", &[("GET", Token)]),
    ("/identity/v3/regions", &[("GET", Token)]),
    ("/identity/v3/regions/{id}", &[("GET", Token)]),
    ("/identity/v3/groups", &[("GET", Token)]),
    ("/compute", &[("GET", Anyone)]),
    ("/compute/", &[("GET", Anyone)]),
    ("/compute/v2", &[("GET", Anyone)]),
    ("/compute/v2.1", &[("GET", Anyone)]),
    ("/compute/v2.1/", &[("GET", Anyone)]),
    ("/compute/v2.1/servers", &[("GET", Reader), ("POST", Member)]),
    ("/compute/v2.1/servers/detail", &[("GET", Reader)]),
    ("/compute/v2.1/servers/{id}", &[("GET", Reader), ("PUT", Member), ("DELETE", Member)]),
    ("/compute/v2.1/servers/{id}/action", &[("POST", Member)]),
    ("/compute/v2.1/servers/{id}/metadata", &[("GET", Reader), ("PUT", Member), ("POST", Member)]),
    ("/compute/v2.1/servers/{id}/metadata/{key}", &[("GET", Reader), ("PUT", Member), ("DELETE", Member)]),
    ("/compute/v2.1/servers/{id}/tags", &[("GET", Reader), ("PUT", Member), ("DELETE", Member)]),
    ("/compute/v2.1/servers/{id}/tags/{tag}", &[("GET", Reader), ("PUT", Member), ("DELETE", Member)]),
    ("/compute/v2.1/servers/{id}/ips", &[("GET", Reader)]),
    ("/compute/v2.1/servers/{id}/os-instance-actions", &[("GET", Reader)]),
    ("/compute/v2.1/servers/{id}/os-instance-actions/{request}", &[("GET", Reader)]),
    // Not there yet: whoever has a token is told so, and nothing else.
    ("/compute/v2.1/servers/{id}/os-volume_attachments", &[("GET", Reader), ("POST", Token)]),
    ("/compute/v2.1/servers/{id}/os-interface", &[("GET", Reader), ("POST", Token)]),
    ("/compute/v2.1/servers/{id}/remote-consoles", &[("POST", Token)]),
    ("/compute/v2.1/servers/{id}/diagnostics", &[("GET", Admin)]),
    ("/compute/v2.1/servers/{id}/os-security-groups", &[("GET", Reader)]),
    ("/compute/v2.1/flavors", &[("GET", Token), ("POST", Admin)]),
    ("/compute/v2.1/flavors/detail", &[("GET", Token)]),
    ("/compute/v2.1/flavors/{id}", &[("GET", Token), ("PUT", Admin), ("DELETE", Admin)]),
    ("/compute/v2.1/flavors/{id}/os-flavor-access", &[("GET", Admin)]),
    ("/compute/v2.1/flavors/{id}/action", &[("POST", Admin)]),
    ("/compute/v2.1/flavors/{id}/os-extra_specs", &[("GET", Token), ("POST", Admin)]),
    ("/compute/v2.1/flavors/{id}/os-extra_specs/{key}", &[("GET", Token), ("PUT", Admin), ("DELETE", Admin)]),
    ("/compute/v2.1/images", &[("GET", Token)]),
    ("/compute/v2.1/images/detail", &[("GET", Token)]),
    ("/compute/v2.1/images/{id}", &[("GET", Reader), ("DELETE", Member)]),
    ("/compute/v2.1/images/{id}/metadata", &[("GET", Reader), ("PUT", Member), ("POST", Member)]),
    ("/compute/v2.1/images/{id}/metadata/{key}", &[("GET", Reader), ("PUT", Member), ("DELETE", Member)]),
    ("/compute/v2.1/os-keypairs", &[("GET", Token), ("POST", Token)]),
    ("/compute/v2.1/os-keypairs/{name}", &[("GET", Token), ("DELETE", Token)]),
    ("/compute/v2.1/os-availability-zone", &[("GET", Token)]),
    ("/compute/v2.1/os-availability-zone/detail", &[("GET", Admin)]),
    ("/compute/v2.1/os-hypervisors", &[("GET", Admin)]),
    ("/compute/v2.1/os-hypervisors/detail", &[("GET", Admin)]),
    ("/compute/v2.1/os-hypervisors/statistics", &[("GET", Admin)]),
    ("/compute/v2.1/os-hypervisors/{id}", &[("GET", Admin)]),
    ("/compute/v2.1/os-hypervisors/{id}/search", &[("GET", Admin)]),
    ("/compute/v2.1/os-hypervisors/{id}/servers", &[("GET", Admin)]),
    ("/compute/v2.1/os-hypervisors/{id}/uptime", &[("GET", Admin)]),
    ("/compute/v2.1/os-services", &[("GET", Admin)]),
    ("/compute/v2.1/os-services/{id}", &[("PUT", Admin)]),
    ("/compute/v2.1/os-quota-sets/{project}", &[("GET", Reader), ("PUT", Admin), ("DELETE", Admin)]),
    ("/compute/v2.1/os-quota-sets/{project}/detail", &[("GET", Reader)]),
    ("/compute/v2.1/os-quota-sets/{project}/defaults", &[("GET", Token)]),
    ("/compute/v2.1/os-quota-class-sets/{class}", &[("GET", Admin), ("PUT", Admin)]),
    ("/compute/v2.1/limits", &[("GET", Reader)]),
    ("/compute/v2.1/os-simple-tenant-usage", &[("GET", Admin)]),
    ("/compute/v2.1/os-simple-tenant-usage/{project}", &[("GET", Reader)]),
    ("/compute/v2.1/os-aggregates", &[("GET", Admin), ("POST", Admin)]),
    ("/compute/v2.1/os-aggregates/{id}", &[("GET", Admin), ("PUT", Admin), ("DELETE", Admin)]),
    ("/compute/v2.1/os-aggregates/{id}/action", &[("POST", Admin)]),
    ("/compute/v2.1/os-aggregates/{id}/images", &[("POST", Admin)]),
    ("/compute/v2.1/os-server-groups", &[("GET", Reader), ("POST", Member)]),
    ("/compute/v2.1/os-server-groups/{id}", &[("GET", Reader), ("DELETE", Member)]),
    ("/compute/v2.1/os-migrations", &[("GET", Admin)]),
    ("/compute/v2.1/os-networks", &[("GET", Token)]),
    ("/compute/v2.1/os-tenant-networks", &[("GET", Token)]),
    ("/compute/v2.1/os-security-groups", &[("GET", Token)]),
    ("/compute/v2.1/os-floating-ips", &[("GET", Token)]),
    ("/compute/v2.1/extensions", &[("GET", Token)]),
    ("/image", &[("GET", Anyone)]),
    ("/image/", &[("GET", Anyone)]),
    ("/image/versions", &[("GET", Anyone)]),
    ("/image/v2/images", &[("GET", Token), ("POST", Member)]),
    ("/image/v2/images/{id}", &[("GET", Reader), ("PATCH", Member), ("DELETE", Member)]),
    ("/image/v2/images/{id}/file", &[("GET", Reader), ("PUT", Member)]),
    ("/image/v2/images/{id}/tags/{tag}", &[("PUT", Member), ("DELETE", Member)]),
    ("/image/v2/images/{id}/members", &[("GET", Reader), ("POST", Member)]),
    ("/image/v2/images/{id}/members/{member}", &[("GET", Reader), ("PUT", Member), ("DELETE", Member)]),
    ("/image/v2/images/{id}/actions/{action}", &[("POST", Member)]),
    ("/image/v2/images/{id}/import", &[("POST", Member)]),
    ("/image/v2/images/{id}/stage", &[("PUT", Member)]),
    ("/image/v2/schemas/member", &[("GET", Token)]),
    ("/image/v2/schemas/members", &[("GET", Token)]),
    ("/image/v2/schemas/image", &[("GET", Token)]),
    ("/image/v2/schemas/images", &[("GET", Token)]),
    ("/image/v2/info/import", &[("GET", Token)]),
    ("/image/v2/info/stores", &[("GET", Token)]),
    ("/luc/v1/status", &[("GET", Admin)]),
    ("/luc/v1/sites", &[("GET", Admin)]),
    ("/luc/v1/replicas", &[("GET", Admin)]),
    ("/luc/v1/replicas/retire", &[("POST", Admin)]),
    ("/luc/v1/replicas/{id}/revoke", &[("POST", Admin)]),
    ("/luc/v1/hosts", &[("GET", Admin)]),
    ("/luc/v1/hosts/{id}/dead", &[("POST", Admin)]),
    ("/luc/v1/hosts/{id}/revive", &[("POST", Admin)]),
    ("/luc/v1/frontier", &[("GET", Token)]),
    ("/luc/v1/digest", &[("GET", Token)]),
    ("/luc/v1/pools", &[("GET", Admin), ("POST", Admin)]),
    ("/luc/v1/pools/{id}", &[("GET", Admin), ("PATCH", Admin), ("DELETE", Admin)]),
    ("/luc/v1/pools/{id}/claims", &[("POST", Admin)]),
    ("/luc/v1/pools/{id}/claims/{claim}", &[("DELETE", Admin)]),
    ("/luc/v1/transfers", &[("GET", Admin)]),
    ("/luc/v1/events", &[("GET", Admin)]),
];

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// Services that LUC has not answer every method alike.
fn is_absent_service(path: &str) -> bool {
    ["/network", "/volume", "/placement"].iter().any(|service| path.starts_with(service))
}

/// Paths of the router: what it prints of itself names them.
fn paths(cloud: &Cloud) -> BTreeSet<String> {
    let printed = format!("{:?}", cloud.router());
    printed.split('"').filter(|text| text.starts_with('/')).map(str::to_owned).collect()
}

/// A project with a member and a reader: their tokens, and the project.
struct Team {
    member: String,
    reader: String,
    project: String,
}

async fn team(cloud: &Cloud, name: &str) -> Team {
    let made = cloud.post("/identity/v3/projects", &json!({"project": {"name": name}})).await.body;
    let project = made["project"]["id"].as_str().unwrap().to_owned();
    let mut tokens = BTreeMap::new();
    for role in ["member", "reader"] {
        let user = format!("{name}-{role}");
        let made = json!({"user": {"name": user, "password": "pass-word"}});
        let made = cloud.post("/identity/v3/users", &made).await.body;
        let id = made["user"]["id"].as_str().unwrap().to_owned();
        let path = format!("/identity/v3/projects/{project}/users/{id}/roles/{role}");
        assert_eq!(cloud.request(Method::PUT, &path, None).await.status, StatusCode::NO_CONTENT);
        tokens.insert(role, cloud.log_in(&user, "pass-word", name).await.0);
    }
    let (member, reader) = (tokens["member"].clone(), tokens["reader"].clone());
    Team { member, reader, project }
}

/// Real things of the team's project, so that nobody is refused merely because nothing is there.
struct Things {
    server: String,
    group: String,
    image: String,
    project: String,
    user: String,
}

impl Things {
    async fn of(cloud: &Cloud, team: &Team) -> Self {
        let headers = [("x-auth-token", team.member.as_str()), ("openstack-api-version", "compute 2.90")];
        let image = json!({"name": "i", "disk_format": "raw", "container_format": "bare"});
        let image = cloud.send(Method::POST, "/image/v2/images", &headers, Some(&image)).await.body;
        let image = image["id"].as_str().unwrap().to_owned();
        let file = format!("/image/v2/images/{image}/file");
        assert_eq!(cloud.send(Method::PUT, &file, &headers, Some(&json!("data"))).await.status, 204);
        let server = json!({"server": {"name": "s", "flavorRef": "42", "imageRef": image, "networks": "none"}});
        let server = cloud.send(Method::POST, "/compute/v2.1/servers", &headers, Some(&server)).await;
        let server = server.body["server"]["id"].as_str().unwrap().to_owned();
        let group = json!({"server_group": {"name": "g", "policy": "affinity"}});
        let group = cloud.send(Method::POST, "/compute/v2.1/os-server-groups", &headers, Some(&group)).await;
        let group = group.body["server_group"]["id"].as_str().unwrap().to_owned();
        // A user who is none of the callers: one may look at oneself.
        let users = cloud.get("/identity/v3/users?name=admin").await.body;
        let user = users["users"][0]["id"].as_str().unwrap().to_owned();
        Self { server, group, image, project: team.project.clone(), user }
    }

    fn fill(&self, path: &str) -> String {
        let id = match path {
            _ if path.contains("/servers/{id}") => &self.server,
            _ if path.contains("/os-server-groups/{id}") => &self.group,
            _ if path.contains("/images/{id}") => &self.image,
            _ if path.contains("/projects/{id}") => &self.project,
            _ if path.contains("/users/{id}") => &self.user,
            _ if path.contains("/roles/{id}") => "reader",
            _ if path.contains("/flavors/{id}") => "42",
            _ => "x",
        };
        let path = path.replace("{id}", id).replace("{project}", &self.project).replace("{user}", &self.user);
        let path = path.replace("{role}", "reader");
        let part = |part: &str| if part.starts_with('{') { "x".to_owned() } else { part.to_owned() };
        path.split('/').map(part).collect::<Vec<_>>().join("/")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_has_a_row_and_every_row_a_route() {
    let cloud = Cloud::start().await;
    let table: BTreeMap<&str, BTreeSet<&str>> =
        TABLE.iter().map(|(path, rows)| (*path, rows.iter().map(|(method, _)| *method).collect())).collect();
    let found: BTreeSet<String> = paths(&cloud).into_iter().filter(|path| !path.contains("__private__")).collect();
    assert!(found.len() > 50, "the router no longer prints its paths: {found:?}");
    let mut wrong = Vec::new();
    for path in found.iter().filter(|path| !is_absent_service(path)) {
        // Nova's first path serves the same handlers.
        if let Some(rest) = path.strip_prefix("/compute/v2/") {
            assert!(found.contains(&format!("/compute/v2.1/{rest}")), "{path}");
            continue;
        }
        let filled: Vec<&str> = path.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect();
        let mut methods = BTreeSet::new();
        for method in METHODS {
            let answer = cloud.send(method.parse().unwrap(), &filled.join("/"), &[], Some(&json!({}))).await;
            if answer.status != StatusCode::METHOD_NOT_ALLOWED {
                methods.insert(method);
            }
        }
        if table.get(path.as_str()) != Some(&methods) {
            wrong.push(format!("{path}: the router has {methods:?}, the table {:?}", table.get(path.as_str())));
        }
    }
    wrong.extend(table.keys().filter(|path| !found.contains(**path)).map(|path| format!("{path} is no route")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_may_do_what_is_meant_for_a_greater_role_or_another_project() {
    let cloud = Cloud::start().await;
    let (team_a, team_b) = (team(&cloud, "a").await, team(&cloud, "b").await);
    let things = Things::of(&cloud, &team_a).await;
    let mut wrong = Vec::new();
    for (path, rows) in TABLE {
        // What the path names belongs to team a; lists show a caller its own things.
        let named = path.contains("/servers/{") || path.contains("/images/{") || path.contains("{project}");
        let named = named || path.contains("/projects/{") || path.contains("/os-server-groups/{");
        for (method, who) in *rows {
            let filled = things.fill(path);
            let body = if path.ends_with("/servers/{id}/action") { json!({"os-stop": null}) } else { json!({}) };
            let mut ask = async |who: &str, token: &str, allowed: &[u16]| {
                let headers = [("x-auth-token", token), ("openstack-api-version", "compute 2.90")];
                let headers = if token.is_empty() { &headers[1..] } else { &headers[..] };
                let answer = cloud.send(method.parse().unwrap(), &filled, headers, Some(&body)).await;
                if !allowed.contains(&answer.status.as_u16()) {
                    wrong.push(format!("{who}: {method} {filled}: {} {}", answer.status, answer.body));
                }
            };
            if *who > Anyone {
                ask("anonymous", "", &[401]).await;
                ask("forged token", "luc1.AAAA", &[401]).await;
            }
            if *who > Reader {
                ask("reader", &team_a.reader, &[403, 404]).await;
            }
            if *who > Member {
                ask("member", &team_a.member, &[403, 404]).await;
            }
            if *who > Token && (named || *who == Admin) {
                ask("another project's member", &team_b.member, &[403, 404]).await;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_is_not_refused() {
    let cloud = Cloud::start().await;
    let team = team(&cloud, "a").await;
    let things = Things::of(&cloud, &team).await;
    let mut wrong = Vec::new();
    for (path, rows) in TABLE.iter().filter(|(path, _)| *path != "/luc/v1/events") {
        for (method, who) in rows.iter().filter(|(method, _)| *method == "GET") {
            let token = match who {
                Anyone => "",
                Token | Reader => &team.reader,
                Member => &team.member,
                Admin => &cloud.token,
            };
            let headers =
                [("openstack-api-version", "compute 2.90"), ("x-auth-token", token), ("x-subject-token", token)];
            let headers = if token.is_empty() { &headers[..1] } else { &headers[..] };
            let answer = cloud.send(method.parse().unwrap(), &things.fill(path), headers, None).await;
            let refused = matches!(answer.status.as_u16(), 401 | 403 | 500 | 503);
            if refused || (answer.status.is_success() && !answer.headers.contains_key("x-luc-frontier")) {
                wrong.push(format!("{method} {path}: {} {}", answer.status, answer.body));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
