//! OpenStack Identity (Keystone v3): tokens, projects, users, roles, and the catalog.
//!
//! There is one domain, `default`, and there are three roles. Everything else is replicated records, so that login
//! works at a site that is cut off. Sites that the operator did not make identity authorities refuse changes here,
//! since no replica would take them (`PROTOCOL.md`, E7).

use axum::Extension;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post, put};
use luc_engine::id::Millis;
use luc_engine::record::{Assignment, Kind, NAMESPACE, Project, RecordId, Revocation, Site, User};
use luc_engine::replica::WHOLE_CLOUD;
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::tx::Tx;
use luc_engine::view::{RecordType, View};
use luc_sync::join::mint_quota_as;
use luc_sync::node::now;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use uuid::Uuid;

use crate::app::{App, ClientAddress};
use crate::auth::{Caller, Claims, issue, revocation_id, roles, verify};
use crate::discovery::base;
use crate::http::{Fault, Object, Reply, empty, json_reply, ok};
use crate::policy::{self, Action};

/// The three roles.
pub const ROLES: [&str; 3] = ["admin", "member", "reader"];

type Filters = Query<HashMap<String, String>>;

pub(crate) fn routes() -> Router<App> {
    let role = "/v3/projects/{project}/users/{user}/roles/{role}";
    Router::new()
        .route("/v3/auth/tokens", post(create_token).get(show_token).head(show_token).delete(revoke_token))
        .route("/v3/auth/catalog", get(auth_catalog))
        .route("/v3/auth/projects", get(auth_projects))
        .route("/v3/auth/domains", get(domains))
        .route("/v3/auth/system", get(system_scopes))
        .route("/v3/projects", get(list_projects).post(create_project))
        .route("/v3/projects/{id}", get(show_project).patch(update_project).delete(delete_project))
        .route("/v3/users", get(list_users).post(create_user))
        .route("/v3/users/{id}", get(show_user).patch(update_user).delete(delete_user))
        .route("/v3/users/{id}/password", post(change_password))
        .route("/v3/users/{id}/projects", get(user_projects))
        .route("/v3/roles", get(list_roles))
        .route("/v3/roles/{id}", get(show_role))
        .route("/v3/role_assignments", get(role_assignments))
        .route("/v3/projects/{project}/users/{user}/roles", get(user_roles))
        .route(role, put(grant_role).head(check_role).get(check_role).delete(revoke_role))
        .route("/v3/domains", get(domains))
        .route("/v3/domains/{id}", get(show_domain))
        .route("/v3/services", get(services))
        .route("/v3/services/{id}", get(show_service))
        .route("/v3/endpoints", get(endpoints))
        .route("/v3/endpoints/{id}", get(show_endpoint))
        .route("/v3/regions", get(regions))
        .route("/v3/regions/{id}", get(show_region))
        .route("/v3/groups", get(groups))
}

/// OpenStack writes these ids without hyphens.
fn hex(id: Uuid) -> String {
    id.simple().to_string()
}

fn parse(kind: &str, id: &str) -> Result<Uuid, Fault> {
    Uuid::parse_str(id).map_err(|_| Fault::not_found(format!("Could not find {kind}: {id}.")))
}

fn find<'a, T: RecordType>(view: &'a View, kind: &str, id: &str) -> Result<(Uuid, &'a T), Fault> {
    let uuid = parse(kind, id)?;
    let record = view.get::<T>(uuid).ok_or_else(|| Fault::not_found(format!("Could not find {kind}: {id}.")))?;
    Ok((uuid, record))
}

fn role_id(name: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("role/{name}").as_bytes())
}

fn role_named(id: &str) -> Result<&'static str, Fault> {
    let is = |name: &&&str| hex(role_id(name)) == id || **name == id;
    ROLES.iter().find(is).copied().ok_or_else(|| Fault::not_found(format!("Could not find role: {id}.")))
}

// ---- tokens

async fn create_token(
    State(app): State<App>,
    headers: HeaderMap,
    Extension(ClientAddress(from)): Extension<ClientAddress>,
    body: Object,
) -> Reply {
    let auth = body.inner("auth")?;
    let identity = Object(auth.0.get("identity").and_then(Value::as_object).cloned().unwrap_or_default());
    let methods = identity.0.get("methods").and_then(Value::as_array).cloned().unwrap_or_default();
    let method = match methods.as_slice() {
        [Value::String(method)] => method.clone(),
        _ => return Err(Fault::bad("\"methods\" must name one method: \"password\" or \"token\".")),
    };
    let (user, method_name, bound) = match method.as_str() {
        "password" => (by_password(&app, identity.inner("password")?, from.ip()).await?, "password", None),
        "token" => {
            let given = identity.inner("token")?;
            let token = given.text("id")?.ok_or_else(|| Fault::bad("\"token\" needs an \"id\"."))?;
            let caller = Caller::of(&app.view(), verify(&app, token)?)?;
            (caller.user, "token", Some(caller.claims))
        }
        other => {
            return Err(Fault::unauthorized(format!("Attempted to authenticate with an unsupported method: {other}.")));
        }
    };
    let view = app.view();
    let record = view.get::<User>(user).ok_or_else(|| Fault::unauthorized("The user is gone."))?;
    let project = scope(&view, user, record, auth.0.get("scope"))?;
    let lifetime = u64::try_from(app.settings().token_lifetime.as_millis()).unwrap_or(u64::MAX);
    let issued = now();
    // A token for a token never lives longer than the one it was asked with.
    let limit = bound.map_or(u64::MAX, |claims| claims.expires);
    let claims = Arc::new(Claims {
        issuer: app.node().me(),
        user,
        generation: record.generation,
        project,
        issued,
        expires: issued.saturating_add(lifetime).min(limit),
        audit: Uuid::new_v4(),
        method: method_name.into(),
    });
    let caller = Caller::of(&view, claims.clone())?;
    let catalog = auth.0.get("nocatalog").is_none();
    let body = render_token(&app, &headers, &view, &caller, catalog);
    let mut response = json_reply(StatusCode::CREATED, &body);
    if let Ok(token) = issue(&app, &claims).parse() {
        response.headers_mut().insert("x-subject-token", token);
    }
    Ok(response)
}

async fn by_password(app: &App, given: Object, from: std::net::IpAddr) -> Result<Uuid, Fault> {
    let given = given.inner("user")?;
    let password = given.text("password")?.ok_or_else(|| Fault::bad("\"user\" needs a \"password\"."))?.to_owned();
    let view = app.view();
    let id = match (given.text("id")?, given.text("name")?) {
        (Some(id), _) => Uuid::parse_str(id).ok(),
        (None, Some(name)) if is_default_domain(given.0.get("domain"))? => {
            own_first(app, &view, name).or_else(|| view.named(Kind::User, WHOLE_CLOUD, name))
        }
        (None, Some(_)) => None,
        (None, None) => return Err(Fault::bad("\"user\" needs an \"id\" or a \"name\".")),
    };
    let user = id.and_then(|id| view.get::<User>(id).filter(|user| user.enabled).map(|user| (id, user)));
    let user = user.map(|(id, user)| (id, user.password_hash.clone()));
    let named = given.text("id")?.or(given.text("name")?).unwrap_or_default();
    drop(view);
    app.check_password(named, user, from, password).await
}

/// The user of a name that was made here: nobody, but in test builds with that bug.
fn own_first(app: &App, view: &View, name: &str) -> Option<Uuid> {
    if !on(SiteMutant::OwnNameFirst) {
        return None;
    }
    let me = app.node().me();
    let is_own = |(id, user): &(Uuid, &User)| {
        let held = view.held(RecordId { kind: Kind::User, id: *id });
        user.name == name && held.is_some_and(|held| held.created.iter().any(|entry| entry.author == me))
    };
    view.all::<User>().find(is_own).map(|(id, _)| id)
}

fn is_default_domain(domain: Option<&Value>) -> Result<bool, Fault> {
    let Some(domain) = domain else { return Err(Fault::bad("A name needs a \"domain\".")) };
    Ok(domain["id"] == "default" || domain["name"] == "Default")
}

/// The project that is asked for. One that the user has no role in is as good as none: 401, as Keystone has it.
fn scope(view: &View, user: Uuid, record: &User, scope: Option<&Value>) -> Result<Option<Uuid>, Fault> {
    let refused = || Fault::unauthorized("The request you have made requires authentication.");
    let usable = |id: Uuid| {
        let enabled = view.get::<Project>(id).is_some_and(|project| project.enabled);
        enabled && !roles(view, user, id).is_empty()
    };
    match scope {
        None | Some(Value::Null) => Ok(record.default_project.filter(|id| usable(*id))),
        Some(Value::String(text)) if text == "unscoped" => Ok(None),
        Some(scope) if scope.get("project").is_some() => {
            let project = &scope["project"];
            let id = match (project["id"].as_str(), project["name"].as_str()) {
                (Some(id), _) => Uuid::parse_str(id).ok(),
                (None, Some(name)) if is_default_domain(project.get("domain"))? => {
                    view.named(Kind::Project, WHOLE_CLOUD, name)
                }
                _ => None,
            };
            Ok(Some(id.filter(|id| usable(*id)).ok_or_else(refused)?))
        }
        Some(scope) if scope.get("unscoped").is_some() => Ok(None),
        Some(_) => Err(Fault::unauthorized("LUC has project-scoped and unscoped tokens only.")),
    }
}

fn domain() -> Value {
    json!({"id": "default", "name": "Default"})
}

fn render_token(app: &App, headers: &HeaderMap, view: &View, caller: &Caller, catalog: bool) -> Value {
    let claims = &caller.claims;
    let name = view.get::<User>(caller.user).map(|user| user.name.clone()).unwrap_or_default();
    let mut token = json!({
        "methods": [claims.method],
        "user": {"id": hex(caller.user), "name": name, "domain": domain(), "password_expires_at": null},
        "audit_ids": [claims.audit_id()],
        "issued_at": micro_stamp(claims.issued),
        "expires_at": micro_stamp(claims.expires),
    });
    if let Some((id, project)) = caller.project.and_then(|id| Some((id, view.get::<Project>(id)?))) {
        token["project"] = json!({"id": hex(id), "name": project.name, "domain": domain()});
        token["is_domain"] = json!(false);
        token["roles"] = caller.roles.iter().map(|name| json!({"id": hex(role_id(name)), "name": name})).collect();
        if catalog {
            token["catalog"] = catalog_of(&base(app, headers));
        }
    }
    json!({"token": token})
}

/// Keystone's stamps have microseconds.
fn micro_stamp(at: Millis) -> String {
    let stamp = crate::compute::stamp(at);
    format!("{}.{:03}000Z", stamp.trim_end_matches('Z'), at % 1000)
}

/// Type, name and path of the services.
const SERVICES: [(&str, &str, &str); 3] =
    [("identity", "keystone", "/identity"), ("compute", "nova", "/compute/v2.1"), ("image", "glance", "/image")];
const REGION: &str = "luc";
const INTERFACES: [&str; 3] = ["public", "internal", "admin"];

fn service_id(kind: &str) -> String {
    hex(Uuid::new_v5(&NAMESPACE, format!("service/{kind}").as_bytes()))
}

fn endpoint(base: &str, kind: &str, path: &str, interface: &str) -> Value {
    let id = hex(Uuid::new_v5(&NAMESPACE, format!("endpoint/{kind}/{interface}").as_bytes()));
    json!({
        "id": id, "interface": interface, "url": format!("{base}{path}"), "region": REGION, "region_id": REGION,
    })
}

fn catalog_of(base: &str) -> Value {
    let service = |(kind, name, path): (&str, &str, &str)| {
        let endpoints: Vec<Value> = INTERFACES.iter().map(|interface| endpoint(base, kind, path, interface)).collect();
        json!({"id": service_id(kind), "type": kind, "name": name, "endpoints": endpoints})
    };
    SERVICES.into_iter().map(service).collect()
}

/// The token that a request is about; another's only for administrators.
fn subject(app: &App, caller: &Caller, headers: &HeaderMap) -> Result<Arc<Claims>, Fault> {
    let gone = || Fault::not_found("Could not find token.");
    let token = headers.get("x-subject-token").and_then(|token| token.to_str().ok());
    let token = token.ok_or_else(|| Fault::bad("X-Subject-Token is missing."))?;
    let claims = verify(app, token).map_err(|_| gone())?;
    if claims.user != caller.user {
        policy::check(caller, Action::Administer, None)?;
    }
    Ok(claims)
}

async fn show_token(State(app): State<App>, caller: Caller, headers: HeaderMap) -> Reply {
    let claims = subject(&app, &caller, &headers)?;
    let view = app.view();
    let subject = Caller::of(&view, claims).map_err(|_| Fault::not_found("Could not find token."))?;
    let mut response = json_reply(StatusCode::OK, &render_token(&app, &headers, &view, &subject, true));
    if let Some(token) = headers.get("x-subject-token") {
        response.headers_mut().insert("x-subject-token", token.clone());
    }
    Ok(response)
}

async fn revoke_token(State(app): State<App>, caller: Caller, headers: HeaderMap) -> Reply {
    let claims = subject(&app, &caller, &headers)?;
    Caller::of(&app.view(), claims.clone()).map_err(|_| Fault::not_found("Could not find token."))?;
    let revocation = Revocation { audit_id: claims.audit_id(), expires_at: claims.expires };
    let id = revocation_id(claims.audit);
    app.transact(move |tx| {
        if tx.view().get::<Revocation>(id).is_some() {
            Ok(())
        } else {
            Ok(tx.create(id, revocation, &[]).map(|_| ())?)
        }
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

async fn auth_catalog(State(app): State<App>, _: Caller, headers: HeaderMap) -> Reply {
    ok(&json!({"catalog": catalog_of(&base(&app, &headers)), "links": {"self": null}}))
}

// ---- projects

fn list(key: &str, items: Vec<Value>) -> Reply {
    ok(&json!({key: items, "links": {"self": null, "previous": null, "next": null}}))
}

fn matches(filters: &HashMap<String, String>, name: &str, enabled: bool) -> bool {
    let flag = |text: &str| !matches!(text.to_ascii_lowercase().as_str(), "false" | "0");
    filters.get("name").is_none_or(|wanted| wanted == name)
        && filters.get("domain_id").is_none_or(|wanted| wanted == "default")
        && filters.get("enabled").is_none_or(|wanted| flag(wanted) == enabled)
}

fn render_project(id: Uuid, project: &Project) -> Value {
    let mut value = json!({
        "id": hex(id), "name": project.name, "description": project.description, "enabled": project.enabled,
        "domain_id": "default", "parent_id": "default", "is_domain": false, "tags": [], "options": {}, "links": {"self": null},
    });
    if let Value::Object(map) = &mut value {
        for (key, text) in &project.extra {
            map.entry(key.clone()).or_insert_with(|| Value::String(text.clone()));
        }
    }
    value
}

async fn list_projects(State(app): State<App>, caller: Caller, Query(filters): Filters) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let matching = view.all::<Project>().filter(|(_, project)| matches(&filters, &project.name, project.enabled));
    list("projects", matching.map(|(id, project)| render_project(id, project)).collect())
}

async fn show_project(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let view = app.view();
    let found = find::<Project>(&view, "project", &id);
    if found.as_ref().map(|(id, _)| Some(*id)).ok() != Some(caller.project) {
        policy::check(&caller, Action::Administer, None)?;
    }
    let (id, project) = found?;
    ok(&json!({"project": render_project(id, project)}))
}

const PROJECT_FIELDS: [&str; 9] =
    ["name", "description", "enabled", "domain_id", "parent_id", "is_domain", "tags", "options", "id"];

/// A property of projects whose quota's grants have to be countersigned: set when the project is created, for ever.
const CONFIRMED: &str = "luc:confirmed";

fn extra(given: &Object, known: &[&str]) -> BTreeMap<String, String> {
    let other = given.0.iter().filter(|(key, _)| !known.contains(&key.as_str()));
    other.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn check_domain(given: &Object) -> Result<(), Fault> {
    match given.text("domain_id")? {
        None | Some("default") => Ok(()),
        Some(other) => Err(Fault::not_found(format!("Could not find domain: {other}."))),
    }
}

async fn create_project(State(app): State<App>, caller: Caller, body: Object) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let given = body.inner("project")?;
    check_domain(&given)?;
    if given.flag("is_domain")? == Some(true) {
        return Err(Fault::bad("LUC has one domain."));
    }
    let project = Project {
        name: given.required("name")?.to_owned(),
        description: given.text("description")?.unwrap_or_default().to_owned(),
        enabled: given.flag("enabled")?.unwrap_or(true),
        extra: extra(&given, &PROJECT_FIELDS),
        ..Project::default()
    };
    let confirmed = given.flag(CONFIRMED)?.unwrap_or(false);
    let (random, record) = (Uuid::new_v4(), project.clone());
    let quota = app.settings().default_quota.clone();
    let create = move |tx: &mut Tx<'_>| {
        let name = record.name.clone();
        let project = tx.create(tx.fresh(Kind::Project, random), record, &[])?;
        tx.bind(WHOLE_CLOUD, &name, project)?;
        mint_quota_as(tx, project.id, &quota, confirmed)?;
        Ok(project.id)
    };
    let id = app.transact(create).await?;
    Ok(json_reply(StatusCode::CREATED, &json!({"project": render_project(id, &project)})))
}

async fn update_project(State(app): State<App>, caller: Caller, Path(id): Path<String>, body: Object) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let id = find::<Project>(&app.view(), "project", &id)?.0;
    let given = body.inner("project")?;
    let (name, description) = (given.name("name")?.map(str::to_owned), given.text("description")?.map(str::to_owned));
    if given.0.contains_key(CONFIRMED) {
        return Err(Fault::bad(format!("{CONFIRMED:?} is set when a project is created, and never changes.")));
    }
    let (enabled, more) = (given.flag("enabled")?, extra(&given, &PROJECT_FIELDS));
    app.transact(move |tx| {
        let old = tx.get::<Project>(id)?.name.clone();
        if let Some(name) = &name {
            tx.rename(WHOLE_CLOUD, &old, name, RecordId { kind: Kind::Project, id })?;
        }
        tx.update::<Project, Fault>(id, |project| {
            project.name = name.unwrap_or(old);
            project.description = description.unwrap_or(std::mem::take(&mut project.description));
            project.enabled = enabled.unwrap_or(project.enabled);
            project.extra.extend(more);
            Ok(())
        })
    })
    .await?;
    let view = app.view();
    let project = view.get::<Project>(id).ok_or_else(|| Fault::not_found("The project is gone."))?;
    ok(&json!({"project": render_project(id, project)}))
}

async fn delete_project(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let id = find::<Project>(&app.view(), "project", &id)?.0;
    app.transact(move |tx| {
        let servers = tx.view().children(Kind::Server, id).count();
        if servers > 0 {
            return Err(Fault::conflict(format!("The project still has {servers} servers: delete them first.")));
        }
        let assigned: Vec<_> =
            tx.view().all::<Assignment>().filter(|(_, a)| a.project == id).map(|(id, _)| id).collect();
        for assignment in assigned {
            tx.delete(RecordId { kind: Kind::Assignment, id: assignment })?;
        }
        Ok(tx.delete(RecordId { kind: Kind::Project, id })?)
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

fn projects_of(view: &View, user: Uuid) -> Vec<Value> {
    let assigned = view.children(Kind::Assignment, user).filter_map(|id| view.get::<Assignment>(id));
    let ids: std::collections::BTreeSet<Uuid> = assigned.map(|assignment| assignment.project).collect();
    ids.into_iter().filter_map(|id| view.get::<Project>(id).map(|project| render_project(id, project))).collect()
}

async fn auth_projects(State(app): State<App>, caller: Caller) -> Reply {
    list("projects", projects_of(&app.view(), caller.user))
}

async fn user_projects(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let id = parse("user", &id)?;
    if id != caller.user {
        policy::check(&caller, Action::Administer, None)?;
    }
    list("projects", projects_of(&app.view(), id))
}

// ---- users

fn render_user(id: Uuid, user: &User) -> Value {
    json!({
        "id": hex(id), "name": user.name, "description": user.description, "email": user.email,
        "enabled": user.enabled, "domain_id": "default", "default_project_id": user.default_project.map(hex),
        "password_expires_at": null, "options": {}, "links": {"self": null},
    })
}

async fn list_users(State(app): State<App>, caller: Caller, Query(filters): Filters) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let matching = view.all::<User>().filter(|(_, user)| matches(&filters, &user.name, user.enabled));
    list("users", matching.map(|(id, user)| render_user(id, user)).collect())
}

async fn show_user(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let view = app.view();
    let found = find::<User>(&view, "user", &id);
    if found.as_ref().map(|(id, _)| *id).ok() != Some(caller.user) {
        policy::check(&caller, Action::Administer, None)?;
    }
    let (id, user) = found?;
    ok(&json!({"user": render_user(id, user)}))
}

fn default_project(given: &Object, view: &View) -> Result<Option<Uuid>, Fault> {
    let Some(id) = given.text("default_project_id")? else { return Ok(None) };
    Ok(Some(find::<Project>(view, "project", id)?.0))
}

async fn create_user(State(app): State<App>, caller: Caller, body: Object) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let given = body.inner("user")?;
    check_domain(&given)?;
    // A user without a password cannot log in by one.
    let password_hash = match given.text("password")? {
        Some(password) if !password.is_empty() => app.hash(password.to_owned()).await?,
        Some(_) => return Err(Fault::bad("\"password\" must not be empty.")),
        None => String::new(),
    };
    let user = User {
        name: given.required("name")?.to_owned(),
        description: given.text("description")?.unwrap_or_default().to_owned(),
        email: given.text("email")?.unwrap_or_default().to_owned(),
        enabled: given.flag("enabled")?.unwrap_or(true),
        password_hash,
        generation: 0,
        default_project: default_project(&given, &app.view())?,
    };
    let (random, record) = (Uuid::new_v4(), user.clone());
    let create = move |tx: &mut Tx<'_>| {
        let name = record.name.clone();
        let user = tx.create(tx.fresh(Kind::User, random), record, &[])?;
        tx.bind(WHOLE_CLOUD, &name, user)?;
        Ok(user.id)
    };
    let id = app.transact(create).await?;
    Ok(json_reply(StatusCode::CREATED, &json!({"user": render_user(id, &user)})))
}

async fn update_user(State(app): State<App>, caller: Caller, Path(id): Path<String>, body: Object) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let id = find::<User>(&app.view(), "user", &id)?.0;
    let given = body.inner("user")?;
    let hash = match given.text("password")? {
        Some(password) if !password.is_empty() => Some(app.hash(password.to_owned()).await?),
        Some(_) => return Err(Fault::bad("\"password\" must not be empty.")),
        None => None,
    };
    let (name, description) = (given.name("name")?.map(str::to_owned), given.text("description")?.map(str::to_owned));
    let (email, enabled) = (given.text("email")?.map(str::to_owned), given.flag("enabled")?);
    let project = default_project(&given, &app.view())?;
    app.transact(move |tx| {
        let old = tx.get::<User>(id)?.name.clone();
        if let Some(name) = &name {
            tx.rename(WHOLE_CLOUD, &old, name, RecordId { kind: Kind::User, id })?;
        }
        tx.update::<User, Fault>(id, |user| {
            user.name = name.unwrap_or(old);
            user.description = description.unwrap_or(std::mem::take(&mut user.description));
            user.email = email.unwrap_or(std::mem::take(&mut user.email));
            user.enabled = enabled.unwrap_or(user.enabled);
            user.default_project = project.or(user.default_project);
            if let Some(hash) = hash {
                user.password_hash = hash;
                user.generation += 1;
            }
            Ok(())
        })
    })
    .await?;
    let view = app.view();
    let user = view.get::<User>(id).ok_or_else(|| Fault::not_found("The user is gone."))?;
    ok(&json!({"user": render_user(id, user)}))
}

async fn delete_user(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let id = find::<User>(&app.view(), "user", &id)?.0;
    app.transact(move |tx| {
        let children = |kind| tx.view().children(kind, id).map(|id| RecordId { kind, id }).collect::<Vec<_>>();
        for child in [children(Kind::Assignment), children(Kind::Keypair)].concat() {
            tx.delete(child)?;
        }
        Ok(tx.delete(RecordId { kind: Kind::User, id })?)
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

/// A user's own change of password: needs the old one, and voids every token.
async fn change_password(
    State(app): State<App>,
    Extension(ClientAddress(from)): Extension<ClientAddress>,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    let id = parse("user", &id)?;
    let given = body.inner("user")?;
    let (Some(old), Some(new)) = (given.text("original_password")?, given.text("password")?) else {
        return Err(Fault::bad("\"user\" needs \"original_password\" and \"password\"."));
    };
    if new.is_empty() {
        return Err(Fault::bad("\"password\" must not be empty."));
    }
    let user = app.view().get::<User>(id).filter(|user| user.enabled).map(|user| (id, user.password_hash.clone()));
    let id = app.check_password(&hex(id), user, from.ip(), old.to_owned()).await?;
    let hash = app.hash(new.to_owned()).await?;
    app.transact(move |tx| {
        tx.update::<User, Fault>(id, |user| {
            user.password_hash = hash;
            user.generation += 1;
            Ok(())
        })
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

// ---- roles

fn render_role(name: &str) -> Value {
    json!({"id": hex(role_id(name)), "name": name, "domain_id": null, "description": null, "options": {}, "links": {"self": null}})
}

async fn list_roles(_: Caller, Query(filters): Filters) -> Reply {
    let wanted = |name: &&str| filters.get("name").is_none_or(|wanted| wanted == name);
    list("roles", ROLES.into_iter().filter(wanted).map(render_role).collect())
}

async fn show_role(_: Caller, Path(id): Path<String>) -> Reply {
    ok(&json!({"role": render_role(role_named(&id)?)}))
}

async fn user_roles(State(app): State<App>, caller: Caller, Path((project, user)): Path<(String, String)>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let (project, user) = (find::<Project>(&view, "project", &project)?.0, find::<User>(&view, "user", &user)?.0);
    list("roles", roles(&view, user, project).iter().map(|name| render_role(name)).collect())
}

type RolePath = Path<(String, String, String)>;

/// The assignments that a path names.
fn assigned(view: &View, (project, user, role): &(String, String, String)) -> Result<(Assignment, Vec<Uuid>), Fault> {
    let (project, user) = (find::<Project>(view, "project", project)?.0, find::<User>(view, "user", user)?.0);
    let wanted = Assignment { user, project, role: role_named(role)?.into() };
    let ids = view.children(Kind::Assignment, user).filter(|id| view.get::<Assignment>(*id) == Some(&wanted));
    let ids = ids.collect();
    Ok((wanted, ids))
}

async fn grant_role(State(app): State<App>, caller: Caller, Path(path): RolePath) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let random = Uuid::new_v4();
    app.transact(move |tx| match assigned(tx.view(), &path)? {
        (assignment, held) if held.is_empty() => {
            tx.create(tx.fresh(Kind::Assignment, random), assignment, &[])?;
            Ok(())
        }
        _ => Ok(()),
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

async fn check_role(State(app): State<App>, caller: Caller, Path(path): RolePath) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    held_or_not_found(&assigned(&app.view(), &path)?.1)?;
    empty(StatusCode::NO_CONTENT)
}

fn held_or_not_found(held: &[Uuid]) -> Result<(), Fault> {
    if held.is_empty() { Err(Fault::not_found("Could not find role assignment.")) } else { Ok(()) }
}

async fn revoke_role(State(app): State<App>, caller: Caller, Path(path): RolePath) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    app.transact(move |tx: &mut Tx<'_>| {
        let held = assigned(tx.view(), &path)?.1;
        held_or_not_found(&held)?;
        held.into_iter().try_for_each(|id| Ok(tx.delete(RecordId { kind: Kind::Assignment, id })?))
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

async fn role_assignments(State(app): State<App>, caller: Caller, Query(filters): Filters) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let names = filters.contains_key("include_names");
    let wanted = |key: &str, id: Uuid| filters.get(key).is_none_or(|text| Uuid::parse_str(text).ok() == Some(id));
    let mut seen = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for (_, assignment) in view.all::<Assignment>() {
        let (user, project) = (assignment.user, assignment.project);
        let matching = wanted("user.id", user) && wanted("scope.project.id", project);
        let matching = matching && wanted("role.id", role_id(&assignment.role)) && !filters.contains_key("group.id");
        let live = view.get::<User>(user).zip(view.get::<Project>(project));
        let Some((user_record, project_record)) = live.filter(|_| matching) else { continue };
        if !seen.insert((user, project, assignment.role.clone())) {
            continue;
        }
        let named = |id: Uuid, name: &str| match names {
            true => json!({"id": hex(id), "name": name, "domain": domain()}),
            false => json!({"id": hex(id)}),
        };
        let role_id = hex(role_id(&assignment.role));
        let role = if names { json!({"id": role_id, "name": assignment.role}) } else { json!({"id": role_id}) };
        found.push(json!({
            "role": role, "user": named(user, &user_record.name),
            "scope": {"project": named(project, &project_record.name)}, "links": {"assignment": null},
        }));
    }
    list("role_assignments", found)
}

// ---- what does not change

fn render_domain() -> Value {
    json!({"id": "default", "name": "Default", "description": "The only domain", "enabled": true, "tags": [], "options": {}, "links": {"self": null}})
}

async fn domains(_: Caller, Query(filters): Filters) -> Reply {
    let wanted = filters.get("name").is_none_or(|name| name == "Default");
    list("domains", if wanted { vec![render_domain()] } else { Vec::new() })
}

async fn show_domain(_: Caller, Path(id): Path<String>) -> Reply {
    match id.as_str() {
        "default" => ok(&json!({"domain": render_domain()})),
        _ => Err(Fault::not_found(format!("Could not find domain: {id}."))),
    }
}

fn render_service((kind, name, _): &(&str, &str, &str)) -> Value {
    json!({"id": service_id(kind), "type": kind, "name": name, "enabled": true, "description": "", "links": {"self": null}})
}

async fn services(_: Caller, Query(filters): Filters) -> Reply {
    let wanted = |(kind, name, _): &&(&str, &str, &str)| {
        filters.get("type").is_none_or(|wanted| wanted == kind)
            && filters.get("name").is_none_or(|wanted| wanted == name)
    };
    list("services", SERVICES.iter().filter(wanted).map(render_service).collect())
}

async fn show_service(_: Caller, Path(id): Path<String>) -> Reply {
    let found = SERVICES.iter().find(|(kind, _, _)| service_id(kind) == id);
    let found = found.ok_or_else(|| Fault::not_found(format!("Could not find service: {id}.")))?;
    ok(&json!({"service": render_service(found)}))
}

fn all_endpoints(base: &str) -> impl Iterator<Item = Value> {
    let each = |(kind, _, path)| INTERFACES.map(|interface| (kind, path, interface));
    SERVICES.into_iter().flat_map(each).map(move |(kind, path, interface)| {
        let mut endpoint = endpoint(base, kind, path, interface);
        endpoint["service_id"] = json!(service_id(kind));
        endpoint["enabled"] = json!(true);
        endpoint["links"] = json!({"self": null});
        endpoint
    })
}

async fn endpoints(State(app): State<App>, _: Caller, headers: HeaderMap, Query(filters): Filters) -> Reply {
    let is = |endpoint: &Value, key: &str| filters.get(key).is_none_or(|wanted| endpoint[key] == **wanted);
    let wanted = |endpoint: &Value| ["service_id", "interface", "region_id"].iter().all(|key| is(endpoint, key));
    list("endpoints", all_endpoints(&base(&app, &headers)).filter(wanted).collect())
}

async fn show_endpoint(State(app): State<App>, _: Caller, headers: HeaderMap, Path(id): Path<String>) -> Reply {
    let found = all_endpoints(&base(&app, &headers)).find(|endpoint| endpoint["id"] == *id);
    let found = found.ok_or_else(|| Fault::not_found(format!("Could not find endpoint: {id}.")))?;
    ok(&json!({"endpoint": found}))
}

/// Nobody has roles outside of projects.
async fn system_scopes(_: Caller) -> Reply {
    ok(&json!({"system": [], "links": {"self": null}}))
}

fn render_region(view: &View) -> Value {
    let sites: Vec<&str> = view.all::<Site>().map(|(_, site)| site.name.as_str()).collect();
    let description = format!("All sites: {}", sites.join(", "));
    json!({"id": REGION, "description": description, "parent_region_id": null, "links": {"self": null}})
}

async fn regions(State(app): State<App>, _: Caller) -> Reply {
    list("regions", vec![render_region(&app.view())])
}

async fn show_region(State(app): State<App>, _: Caller, Path(id): Path<String>) -> Reply {
    match id.as_str() {
        REGION => ok(&json!({"region": render_region(&app.view())})),
        _ => Err(Fault::not_found(format!("Could not find region: {id}."))),
    }
}

async fn groups(_: Caller) -> Reply {
    list("groups", Vec::new())
}
