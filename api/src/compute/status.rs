//! What a server's state is called: one pure function of the wish, the observation and the claims.

use luc_engine::agent::{DomainState, Observation, Task};
use luc_engine::record::{Power, Record, Server};
use luc_engine::view::Held;

/// Nova's words for a server's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// `ACTIVE`, …
    pub status: &'static str,
    /// `active`, …
    pub vm_state: &'static str,
    /// What is being done; none when nothing is.
    pub task_state: Option<&'static str>,
    /// 0 none, 1 running, 3 paused, 4 shut down, 6 crashed, 7 suspended.
    pub power_state: u8,
}

/// The server in a held record.
#[must_use]
pub fn server_of(held: &Held) -> Option<&Server> {
    match &held.record {
        Some(Record::Server(server)) => Some(server),
        _ => None,
    }
}

/// What a server's state is called.
#[must_use]
pub fn status(server: &Server, seen: Option<&Observation>, deleting: bool) -> Status {
    let Some(seen) = seen.filter(|seen| seen.launched_at.is_some() || seen.state != DomainState::Missing) else {
        return building(seen, deleting);
    };
    let (vm_state, power_state) = match seen.state {
        DomainState::Running => ("active", 1),
        DomainState::Paused => ("paused", 3),
        DomainState::Shutoff | DomainState::Missing => ("stopped", 4),
        DomainState::Saved => ("suspended", 4),
        DomainState::Crashed => ("stopped", 6),
    };
    if deleting {
        return Status { status: named(vm_state), vm_state, task_state: Some("deleting"), power_state };
    }
    if seen.fault.as_ref().is_some_and(|fault| !fault.retrying) {
        return Status { status: "ERROR", vm_state: "error", task_state: None, power_state };
    }
    let hard = server.hard_reboots > seen.hard_reboots;
    let soft = server.soft_reboots > seen.soft_reboots;
    if hard || soft {
        let (status, task) = if hard { ("HARD_REBOOT", "rebooting_hard") } else { ("REBOOT", "rebooting") };
        return Status { status, vm_state, task_state: Some(task), power_state };
    }
    let task_state = match (server.power, vm_state) {
        (Power::Running, "active") | (Power::Stopped, "stopped") => None,
        (Power::Paused, "paused") | (Power::Suspended, "suspended") => None,
        // It powered itself off, and the agent is not about to start it: that is how it stays.
        (Power::Running, "stopped") if seen.task.is_none() && seen.power_changes >= server.power_changes => None,
        (Power::Running, "paused") => Some("unpausing"),
        (Power::Running, "suspended") => Some("resuming"),
        (Power::Running, _) => Some("powering-on"),
        (Power::Stopped, _) => Some("powering-off"),
        (Power::Paused, _) => Some("pausing"),
        (Power::Suspended, _) => Some("suspending"),
    };
    Status { status: named(vm_state), vm_state, task_state, power_state }
}

fn building(seen: Option<&Observation>, deleting: bool) -> Status {
    let task = match seen.and_then(|seen| seen.task) {
        _ if deleting => "deleting",
        Some(Task::FetchingImage) => "spawning",
        Some(_) => "spawning",
        None => "scheduling",
    };
    let fault = seen.and_then(|seen| seen.fault.as_ref()).is_some_and(|fault| !fault.retrying);
    if fault {
        let task_state = deleting.then_some("deleting");
        return Status { status: "ERROR", vm_state: "error", task_state, power_state: 0 };
    }
    Status { status: "BUILD", vm_state: "building", task_state: Some(task), power_state: 0 }
}

fn named(vm_state: &str) -> &'static str {
    match vm_state {
        "active" => "ACTIVE",
        "paused" => "PAUSED",
        "suspended" => "SUSPENDED",
        _ => "SHUTOFF",
    }
}
