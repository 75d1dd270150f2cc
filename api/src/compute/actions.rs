//! `POST /servers/{id}/action`: each changes the wish; the host's agent brings it about.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use luc_engine::record::{Kind, Power, RecordId, Server};
use serde_json::{Value, json};
use uuid::Uuid;

use super::render::{lost, seen};
use super::servers::note_action;
use super::status::status;
use super::{find_server, live};
use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Microversion, Object, Reply, RequestId, empty, ok};
use crate::policy::Action;

pub(super) async fn action(
    State(app): State<App>,
    caller: Caller,
    Extension(request): Extension<RequestId>,
    Extension(version): Extension<Microversion>,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    let (name, given) = match body.0.iter().next() {
        Some((name, given)) if body.0.len() == 1 => (name.clone(), given.clone()),
        _ => return Err(Fault::bad("The body must name one action.")),
    };
    let action = if name == "os-getConsoleOutput" { Action::Read } else { Action::Write };
    let id = find_server(&app.view(), &caller, &id, action)?;
    let change: fn(&mut Server) = match name.as_str() {
        "os-getConsoleOutput" => return console(&app, id, &given).await,
        "lock" => return lock(&app, &caller, &request, id, &given, version).await,
        "evacuate" => return super::evacuate::evacuate(&app, &caller, &request, id, &given, version).await,
        "unlock" => return unlock(&app, &caller, &request, id).await,
        "os-start" => |server| set_power(server, Power::Running),
        "os-stop" => |server| set_power(server, Power::Stopped),
        "pause" => |server| set_power(server, Power::Paused),
        "unpause" | "resume" => |server| set_power(server, Power::Running),
        "suspend" => |server| set_power(server, Power::Suspended),
        "reboot" => match given["type"].as_str().map(str::to_ascii_uppercase).as_deref() {
            Some("SOFT") => |server| server.soft_reboots += 1,
            Some("HARD") => |server| {
                server.hard_reboots += 1;
                set_power(server, Power::Running);
            },
            _ => return Err(Fault::bad("\"type\" of a reboot must be SOFT or HARD.")),
        },
        "resize"
        | "confirmResize"
        | "revertResize"
        | "rebuild"
        | "createImage"
        | "shelve"
        | "unshelve"
        | "shelveOffload"
        | "rescue"
        | "unrescue"
        | "migrate"
        | "os-migrateLive"
        | "createBackup"
        | "addSecurityGroup"
        | "removeSecurityGroup"
        | "os-resetState"
        | "changePassword"
        | "forceDelete"
        | "restore"
        | "trigger_crash_dump"
        | "os-getVNCConsole"
        | "os-getSPICEConsole"
        | "os-getSerialConsole" => {
            return Err(Fault::not_implemented(format!("LUC does not have the action {name} yet.")));
        }
        _ => return Err(Fault::bad(format!("There is no such action: {name}"))),
    };
    let hard = name == "reboot" && given["type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("hard"));
    let (user, is_admin) = (caller.user, caller.is_admin);
    app.transact(move |tx| {
        let server = live(tx, id)?;
        if server.locked && !is_admin {
            return Err(Fault::conflict(format!("Instance {id} is locked")));
        }
        let held = tx.view().held(RecordId { kind: Kind::Server, id });
        let lost = tx.view().placement(id).zip(held).and_then(|(placement, held)| lost(tx.view(), &placement, held));
        if let Some((_, why)) = lost {
            return Err(Fault::conflict(format!("Instance {id} cannot run where it is. {why}")));
        }
        let now = status(server, held.and_then(|held| seen(tx.view(), id, held)), false);
        if !is_possible(&name, hard, now.vm_state, now.task_state) {
            let shown = name.trim_start_matches("os-");
            let state = match now.task_state {
                Some(task) if now.vm_state != "building" => format!("task_state {task}"),
                _ => format!("vm_state {}", now.vm_state),
            };
            return Err(Fault::conflict(format!("Cannot '{shown}' instance {id} while it is in {state}")));
        }
        let at = tx.now();
        tx.update::<Server, Fault>(id, |server| {
            change(server);
            server.updated_at = at;
            note_action(server, &request, name.trim_start_matches("os-"), user);
            Ok(())
        })
    })
    .await?;
    empty(StatusCode::ACCEPTED)
}

fn set_power(server: &mut Server, power: Power) {
    server.power = power;
    server.power_changes += 1;
}

/// In which states Nova takes an action. What is wished is not yet what is: a server on its way takes no other wish,
/// but to be stopped, or rebooted the hard way.
fn is_possible(action: &str, hard: bool, vm_state: &str, task: Option<&str>) -> bool {
    let from: &[&str] = match action {
        "os-start" => &["stopped"],
        "os-stop" => &["active", "error"],
        "pause" | "suspend" => &["active"],
        "unpause" => &["paused"],
        "resume" => &["suspended"],
        "reboot" if hard => &["active", "stopped", "paused", "suspended", "error"],
        "reboot" => &["active"],
        _ => &[],
    };
    let busy = task.is_some_and(|task| !(hard || action == "os-stop" && task.starts_with("reboot")));
    from.contains(&vm_state) && !busy
}

async fn console(app: &App, id: Uuid, given: &Value) -> Reply {
    let lines = match &given["length"] {
        Value::Null => None,
        Value::Number(number) if number.as_i64() == Some(-1) => None,
        Value::Number(number) => Some(number.as_u64().ok_or_else(|| Fault::bad("\"length\" must be at least -1."))?),
        Value::String(text) => Some(text.parse().map_err(|_| Fault::bad("\"length\" must be a number."))?),
        _ => return Err(Fault::bad("\"length\" must be a number.")),
    };
    let host = app.view().placement(id).map(|placement| placement.host);
    let host = host.ok_or_else(|| Fault::conflict(format!("Instance {id} has no host.")))?;
    let output = app.net().console(host, id, lines).await;
    let output = output.map_err(|reason| Fault::unavailable(format!("The console cannot be read now: {reason}.")))?;
    ok(&json!({"output": output}))
}

async fn lock(
    app: &App,
    caller: &Caller,
    request: &RequestId,
    id: Uuid,
    given: &Value,
    version: Microversion,
) -> Reply {
    let reason = match &given["locked_reason"] {
        Value::Null => None,
        Value::String(reason) if version.0 >= 73 && reason.chars().count() <= 255 => Some(reason.clone()),
        _ => return Err(Fault::bad("\"locked_reason\" is a string of at most 255 characters, since 2.73.")),
    };
    set_lock(app, caller, request, id, true, reason).await
}

async fn unlock(app: &App, caller: &Caller, request: &RequestId, id: Uuid) -> Reply {
    set_lock(app, caller, request, id, false, None).await
}

async fn set_lock(
    app: &App,
    caller: &Caller,
    request: &RequestId,
    id: Uuid,
    locked: bool,
    reason: Option<String>,
) -> Reply {
    let (request, user) = (request.clone(), caller.user);
    super::servers::edit(app, id, move |server| {
        server.locked = locked;
        server.locked_reason = reason;
        note_action(server, &request, if locked { "lock" } else { "unlock" }, user);
        Ok(())
    })
    .await?;
    empty(StatusCode::ACCEPTED)
}
