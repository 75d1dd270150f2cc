//! Address pools for operators (`/luc/v1/pools`): made, grown and shrunk, and their addresses taken and returned.
//!
//! Addresses are rights like any other: who holds some gives them out without asking, at every site and in every part of
//! a split cloud. What is taken hangs on a record of its own. Returning deletes that record, which any site can do; the
//! addresses are free again with whoever gave them out (`PROTOCOL.md`, A3), as soon as that has heard of it. So nobody can
//! free an address that another gave out, and none is given out twice.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use luc_engine::entry::Subject;
use luc_engine::id::{PoolId, ReplicaId};
use luc_engine::interval::{Interval, Intervals};
use luc_engine::ledger::{Amount, Dimension, MAX_INTERVALS};
use luc_engine::record::{Address, AddressPool, Kind, RecordId};
use luc_engine::replica::WHOLE_CLOUD;
use luc_engine::tx::{Tx, shortage};
use luc_engine::view::View;
use luc_sync::node::now;
use luc_sync::rpc::Asked;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Object, Reply, empty, json_reply};
use crate::policy::{self, Action};
use crate::pools::{count, list, one_pool};
use crate::rights::{Holders, Missing, give_back, with_rights};

/// Most addresses taken at once without naming them.
const MOST: u64 = 1 << 16;
/// Most claims of one answer.
const PAGE: usize = 1_000;

pub(crate) async fn create(State(app): State<App>, caller: Caller, body: Object) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    only(&body, &["name", "description", "cidrs", "confirmed"])?;
    let addresses = given(&body, "cidrs")?.ok_or_else(|| Fault::bad("\"cidrs\" is required."))?;
    let name = body.required("name")?.trim().to_owned();
    let description = body.text("description")?.unwrap_or_default().to_owned();
    let confirmed = body.flag("confirmed")?.unwrap_or(false);
    let random = Uuid::new_v4();
    let create = move |tx: &mut Tx<'_>| {
        let pool = AddressPool { name: name.clone(), description, created_at: now() };
        let record = tx.create(tx.fresh(Kind::AddressPool, random), pool, &[])?;
        tx.bind(WHOLE_CLOUD, &name, record)?;
        let subject = Subject::Addresses { of: record };
        if confirmed {
            tx.mint_confirmed(subject, addresses.into())?
        } else {
            tx.mint(subject, addresses.into())?
        };
        Ok(record.id)
    };
    let id = app.transact(create).await?;
    answer(&app, id, StatusCode::CREATED)
}

pub(crate) async fn show(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let (id, _) = find(&app.view(), &id)?;
    answer(&app, id, StatusCode::OK)
}

/// Adds addresses, at the pool's root, or burns such as nobody uses.
pub(crate) async fn change(State(app): State<App>, caller: Caller, Path(id): Path<String>, body: Object) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    only(&body, &["add", "remove"])?;
    let (id, pool) = find(&app.view(), &id)?;
    let (add, remove) = (given(&body, "add")?, given(&body, "remove")?);
    if let Some(add) = add {
        fit(&app.view(), pool, &add)?;
        root_is_here(&app, pool)?;
        app.transact(move |tx| Ok(tx.grow(pool, add.into())?)).await?;
    }
    if let Some(remove) = remove {
        let remove: Amount = remove.into();
        owned(&app.view(), pool, &remove)?;
        let short = remove.clone();
        let burn = move |tx: &mut Tx<'_>| {
            let free = tx.view().ledger().pool(pool).map(|pool| pool.free(tx.me())).unwrap_or_default();
            if free.covers(&remove) {
                Ok(tx.burn(pool, remove)?)
            } else {
                Err(Missing::Short(Box::new(shortage(tx.view(), tx.me(), &[pool], &short))))
            }
        };
        with_rights(&app, burn, |text| none("removed", &text)).await?;
    }
    answer(&app, id, StatusCode::OK)
}

/// Deletes a pool none of whose addresses is taken, as far as is known here. What is taken elsewhere stays taken.
pub(crate) async fn delete(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let (id, pool) = find(&app.view(), &id)?;
    app.transact(move |tx| {
        let claimed = tx.view().ledger().pool(pool).map(|pool| pool.claimed.clone()).unwrap_or_default();
        if !claimed.is_zero() {
            return Err(Fault::conflict(format!("Addresses of this pool are in use: {claimed}.")));
        }
        Ok(tx.delete(RecordId { kind: Kind::AddressPool, id })?)
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

/// Takes addresses: those that are named, or any.
pub(crate) async fn claim(State(app): State<App>, caller: Caller, Path(id): Path<String>, body: Object) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    only(&body, &["count", "addresses", "purpose"])?;
    let (id, pool) = find(&app.view(), &id)?;
    let wanted = wanted(&body)?;
    owned(&app.view(), pool, &wanted)?;
    let purpose = body.name("purpose")?.unwrap_or_default().to_owned();
    let random = Uuid::new_v4();
    let take = move |tx: &mut Tx<'_>| {
        let record = RecordId { kind: Kind::Address, id: tx.fresh(Kind::Address, random) };
        tx.claim(&[pool], &wanted, record, 0)?;
        let of = RecordId { kind: Kind::AddressPool, id };
        tx.create(record.id, Address { pool: id, purpose, created_at: now() }, &[of])?;
        Ok(record.id)
    };
    let id = with_rights(&app, take, |text| none("taken", &text)).await?;
    let view = app.view();
    let taken = taken(&view, id).ok_or_else(|| Fault::not_found(format!("Claim {id} is gone.")))?;
    Ok(json_reply(StatusCode::CREATED, &json!({"claim": taken})))
}

/// Returns addresses: 204 if they are free again, 202 if their holder has still to hear of it.
pub(crate) async fn release(
    State(app): State<App>,
    caller: Caller,
    Path((id, claim)): Path<(String, String)>,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let (id, _) = find(&app.view(), &id)?;
    let gone = || Fault::not_found(format!("This pool has no claim {claim}."));
    let record = RecordId { kind: Kind::Address, id: Uuid::parse_str(&claim).map_err(|_| gone())? };
    app.view().get::<Address>(record.id).filter(|address| address.pool == id).ok_or_else(gone)?;
    let holders = app.transact(move |tx| Ok(give_back(tx, record)?)).await?;
    if holders.is_empty() {
        return empty(StatusCode::NO_CONTENT);
    }
    let known = Holders::of(&app);
    let asked = Asked::default();
    let words: Vec<String> = holders.iter().map(|holder| known.words(*holder, &asked)).collect();
    let message =
        format!("The addresses are free again as soon as their holder has heard of it: {}.", words.join("; "));
    Ok(json_reply(StatusCode::ACCEPTED, &json!({"message": message})))
}

fn none(done: &str, text: &str) -> Fault {
    Fault::conflict(format!("No address was {done}: {text}"))
}

fn only(given: &Object, keys: &[&str]) -> Result<(), Fault> {
    match given.0.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(other) => Err(Fault::bad(format!("{other:?} is not known; {keys:?} are."))),
        None => Ok(()),
    }
}

/// A list of blocks, ranges and addresses of one family, none of them twice; none if it is not there.
fn given(body: &Object, key: &str) -> Result<Option<Intervals>, Fault> {
    let texts = match body.0.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(texts)) if !texts.is_empty() => texts,
        Some(_) => return Err(Fault::bad(format!("{key:?} must be a list of blocks like \"10.0.0.0/24\"."))),
    };
    if texts.len() > MAX_INTERVALS {
        return Err(Fault::bad(format!("{key:?} has more than {MAX_INTERVALS} blocks.")));
    }
    let mut parts = Vec::with_capacity(texts.len());
    for text in texts {
        let text = text.as_str().ok_or_else(|| Fault::bad(format!("{key:?} must be a list of strings.")))?;
        parts.push(text.parse::<Interval>().map_err(|error| Fault::bad(error.to_string()))?);
    }
    parts.sort_unstable();
    if let Some(pair) = parts.windows(2).find(|pair| pair[0].last() >= pair[1].first()) {
        return Err(Fault::bad(format!("{} and {} have an address in common.", pair[0], pair[1])));
    }
    let family = parts.first().and_then(Interval::is_ipv4);
    if family.is_none() || parts.iter().any(|part| part.is_ipv4() != family) {
        return Err(Fault::bad(format!("{key:?} must be all IPv4 or all IPv6.")));
    }
    Ok(Some(parts.into_iter().collect()))
}

/// What is asked for: `addresses`, or `count` of any, or one.
fn wanted(body: &Object) -> Result<Amount, Fault> {
    match (given(body, "addresses")?, body.number("count")?) {
        (Some(_), Some(_)) => Err(Fault::bad("Either \"count\" or \"addresses\" can be given, not both.")),
        (Some(named), None) => Ok(named.into()),
        (None, n) => {
            let n = n.unwrap_or(1);
            if n == 0 || n > MOST {
                return Err(Fault::bad(format!("\"count\" must be 1 to {MOST}.")));
            }
            Ok(std::iter::once((Dimension::Addresses, n)).collect())
        }
    }
}

/// Addresses that a pool never had are no addresses of it, whoever holds what.
fn owned(view: &View, pool: PoolId, wanted: &Amount) -> Result<(), Fault> {
    let minted = view.ledger().pool(pool).map(|pool| pool.minted.clone()).unwrap_or_default();
    let strange = wanted.addresses().difference(minted.addresses());
    if strange.is_empty() { Ok(()) } else { Err(Fault::bad(format!("{strange}: not of this pool."))) }
}

/// What is added is new, and of the family of what is there.
fn fit(view: &View, pool: PoolId, add: &Intervals) -> Result<(), Fault> {
    let minted = view.ledger().pool(pool).map(|pool| pool.minted.clone()).unwrap_or_default();
    let minted = minted.addresses();
    let known = minted.intersection(add);
    if !known.is_empty() {
        return Err(Fault::conflict(format!(
            "{known}: the pool has them, or had; what was removed does not come back."
        )));
    }
    let family = |set: &Intervals| set.iter().next().and_then(|one| one.is_ipv4());
    if family(minted) == family(add) {
        Ok(())
    } else {
        Err(Fault::bad("The pool's addresses are of the other family."))
    }
}

/// Only a pool's root can add to it (A1): were there two, they could add the same address.
fn root_is_here(app: &App, pool: PoolId) -> Result<(), Fault> {
    let root = pool.entry.author;
    if app.view().retired().acts_for(app.node().me(), root) {
        return Ok(());
    }
    let site = Holders::of(app).site(root);
    Err(Fault::conflict(format!(
        "Addresses are added where the pool was made: at replica {root} of {site}, or its heir."
    )))
}

fn find(view: &View, id: &str) -> Result<(Uuid, PoolId), Fault> {
    let gone = || Fault::not_found(format!("There is no address pool {id}."));
    let uuid = Uuid::parse_str(id).map_err(|_| gone())?;
    view.get::<AddressPool>(uuid).ok_or_else(gone)?;
    let pool = view.address_pool(RecordId { kind: Kind::AddressPool, id: uuid }).ok_or_else(gone)?;
    Ok((uuid, pool))
}

fn answer(app: &App, id: Uuid, status: StatusCode) -> Reply {
    let (_, pool) = find(&app.view(), &id.to_string())?;
    let mut value = one_pool(app, pool).ok_or_else(|| Fault::not_found(format!("There is no address pool {id}.")))?;
    let view = app.view();
    let record = view.get::<AddressPool>(id);
    value["name"] = json!(record.map(|pool| &pool.name));
    value["description"] = json!(record.map(|pool| &pool.description));
    let claims = view.children(Kind::Address, id).filter_map(|claim| taken(&view, claim)).take(PAGE);
    value["taken"] = claims.collect();
    Ok(json_reply(status, &json!({"pool": value})))
}

/// Addresses that were taken, by the record of that.
fn taken(view: &View, id: Uuid) -> Option<Value> {
    let address = view.get::<Address>(id)?;
    let record = RecordId { kind: Kind::Address, id };
    let claims = view.ledger().claims_of(record);
    let (holders, sum) = claims.fold((Vec::new(), Amount::default()), |(mut holders, sum), (claim, row)| {
        holders.push(claim.entry.author);
        (holders, sum.saturating_add(&row.amount))
    });
    let site = |holder: &ReplicaId| view.member(*holder).map(|state| state.member.site.to_string());
    Some(json!({
        "id": id.to_string(), "pool": address.pool.to_string(), "purpose": address.purpose,
        "created_at_ms": address.created_at, "count": count(sum.addresses()), "addresses": list(sum.addresses()),
        "holders": holders.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "sites": holders.iter().map(site).collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn body(value: Value) -> Object {
        match value {
            Value::Object(object) => Object(object),
            _ => Object(serde_json::Map::new()),
        }
    }

    #[test]
    fn what_is_not_a_list_of_addresses_is_said_to_be_none() {
        let bad = [
            json!([]),
            json!("10.0.0.0/8"),
            json!([7]),
            json!(["10.0.0.0/33"]),
            json!(["10.0.0.1/8"]),
            json!(["10.0.0.0/8", "10.1.0.0/16"]),
            json!(["10.0.0.0/8", "2001:db8::/64"]),
            json!(["::/0"]),
            json!(["10.0.0.9-10.0.0.1"]),
            Value::Array(vec![json!("10.0.0.1"); MAX_INTERVALS + 1]),
        ];
        for cidrs in bad {
            let refused = given(&body(json!({"cidrs": cidrs})), "cidrs").unwrap_err();
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{cidrs}");
        }
        let good =
            given(&body(json!({"cidrs": ["10.0.1.0/24", "10.0.0.0/24", "10.0.4.7"]})), "cidrs").unwrap().unwrap();
        assert_eq!(list(&good), json!(["10.0.0.0/23", "10.0.4.7"]));
    }

    #[test]
    fn how_many_or_which() {
        assert_eq!(wanted(&body(json!({}))).unwrap().get(Dimension::Addresses), 1);
        assert_eq!(wanted(&body(json!({"count": 9}))).unwrap().get(Dimension::Addresses), 9);
        assert_eq!(wanted(&body(json!({"addresses": ["10.0.0.9"]}))).unwrap().to_string(), "10.0.0.9");
        for bad in [
            json!({"count": 0}),
            json!({"count": -1}),
            json!({"count": MOST + 1}),
            json!({"count": 1, "addresses": ["10.0.0.9"]}),
        ] {
            assert!(wanted(&body(bad.clone())).is_err(), "{bad}");
        }
    }
}
