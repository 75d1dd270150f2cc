//! Members that are gone for good: how an operator retires them, and how far that has come (`PROTOCOL.md`, M2).

use axum::extract::State;
use luc_engine::entry::MemberOp;
use luc_engine::id::ReplicaId;
use luc_engine::retire::{Request, Retiree};
use luc_engine::view::View;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Object, Reply, ok};
use crate::policy::{self, Action};

/// The body of `POST /luc/v1/replicas/retire`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retire {
    /// Who is gone.
    replicas: Vec<ReplicaId>,
    /// Who gets their rights and claims; the replica that is asked if none.
    heir: Option<ReplicaId>,
    /// Without a majority of the members.
    #[serde(default)]
    force: bool,
}

/// Takes an operator's word that replicas are stopped for good. What follows is the survivors' agreement: the answer says
/// whose word is awaited.
pub(crate) async fn retire(State(app): State<App>, caller: Caller, body: Object) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let body: Retire = serde_json::from_value(serde_json::Value::Object(body.0))
        .map_err(|error| Fault::bad(format!("The body does not say whom to retire: {error}.")))?;
    let me = app.node().me();
    let heir = body.heir.unwrap_or(me);
    if body.replicas.contains(&me) {
        return Err(Fault::conflict("A replica cannot retire itself: ask one that lives on."));
    }
    if let Some(alive) = body.replicas.iter().find(|replica| app.net().is_reachable(**replica)) {
        return Err(Fault::conflict(format!("Replica {alive} answers: stop it first, for good.")));
    }
    let set = body.replicas.iter().map(|replica| Retiree { replica: *replica, heir }).collect();
    let request = Request { set, force: body.force };
    app.transact(move |tx| Ok(tx.membership(MemberOp::Retire(request))?)).await?;
    let view = app.view();
    let states: Vec<Value> = body
        .replicas
        .iter()
        .map(|replica| json!({"id": replica.to_string(), "retirement": retirement(&view, *replica)}))
        .collect();
    ok(&json!({"replicas": states}))
}

/// Where a member's retirement stands; null if nobody has asked for it.
pub(crate) fn retirement(view: &View, replica: ReplicaId) -> Value {
    if let Some(cut) = view.retired().cut(replica) {
        let heir = view.retired().heir(replica).map(|heir| heir.to_string());
        return json!({"state": "retired", "cut": cut, "heir": heir});
    }
    if !view.retirements().named(view.frontier()).contains(&replica) {
        return Value::Null;
    }
    let awaited: Vec<String> = view.awaited_seals().iter().map(ToString::to_string).collect();
    json!({"state": "retiring", "awaited": awaited})
}
