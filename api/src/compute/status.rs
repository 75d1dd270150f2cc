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

impl Status {
    /// The state of a server that can never run where it is.
    #[must_use]
    pub fn lost(self) -> Self {
        Self {
            status: "ERROR",
            vm_state: "error",
            task_state: self.task_state.filter(|task| *task == "deleting"),
            power_state: 0,
        }
    }

    /// The state of a server whose host cannot be seen: what was seen last is told as such, never as what is. A server
    /// that was never seen is being built, seen or not.
    #[must_use]
    pub fn out_of_reach(self) -> Self {
        if self.vm_state == "building" { self } else { Self { status: "UNKNOWN", power_state: 0, ..self } }
    }
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

#[cfg(test)]
mod tests {
    use luc_engine::agent::Fault;
    use luc_engine::id::{ClaimId, EntryId, HostId, ReplicaId};
    use uuid::Uuid;

    use super::*;

    fn seen(state: DomainState, launched: bool) -> Observation {
        let entry = EntryId { author: ReplicaId(Uuid::nil()), number: 1 };
        Observation {
            host: HostId(Uuid::nil()),
            server: Uuid::nil(),
            claim: ClaimId { entry, index: 0 },
            epoch: 0,
            incarnation: 1,
            counter: 1,
            at: 1,
            state,
            task: None,
            soft_reboots: 0,
            hard_reboots: 0,
            power_changes: 0,
            launched_at: launched.then_some(1),
            fault: None,
        }
    }

    fn words(server: &Server, seen: Option<&Observation>, deleting: bool) -> String {
        let Status { status, vm_state, task_state, power_state } = status(server, seen, deleting);
        format!("{status} {vm_state} {} {power_state}", task_state.unwrap_or("-"))
    }

    #[test]
    fn every_wish_and_observation_has_nova_s_words() {
        use DomainState::{Crashed, Missing, Paused, Running, Saved, Shutoff};
        let table = [
            (Power::Running, Running, "ACTIVE active - 1"),
            (Power::Running, Paused, "PAUSED paused unpausing 3"),
            (Power::Running, Saved, "SUSPENDED suspended resuming 4"),
            (Power::Running, Shutoff, "SHUTOFF stopped - 4"),
            (Power::Running, Crashed, "SHUTOFF stopped - 6"),
            (Power::Running, Missing, "SHUTOFF stopped - 4"),
            (Power::Stopped, Running, "ACTIVE active powering-off 1"),
            (Power::Stopped, Paused, "PAUSED paused powering-off 3"),
            (Power::Stopped, Saved, "SUSPENDED suspended powering-off 4"),
            (Power::Stopped, Shutoff, "SHUTOFF stopped - 4"),
            (Power::Stopped, Crashed, "SHUTOFF stopped - 6"),
            (Power::Paused, Running, "ACTIVE active pausing 1"),
            (Power::Paused, Paused, "PAUSED paused - 3"),
            (Power::Paused, Shutoff, "SHUTOFF stopped pausing 4"),
            (Power::Suspended, Running, "ACTIVE active suspending 1"),
            (Power::Suspended, Saved, "SUSPENDED suspended - 4"),
            (Power::Suspended, Shutoff, "SHUTOFF stopped suspending 4"),
        ];
        for (power, state, expected) in table {
            let server = Server { power, ..Server::default() };
            assert_eq!(words(&server, Some(&seen(state, true)), false), expected, "{power:?} {state:?}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_unknown() {
        let server = Server { power: Power::Stopped, ..Server::default() };
        let far = status(&server, Some(&seen(DomainState::Running, true)), false).out_of_reach();
        let expected =
            Status { status: "UNKNOWN", vm_state: "active", task_state: Some("powering-off"), power_state: 0 };
        assert_eq!(far, expected);
        assert_eq!(status(&server, None, false).out_of_reach().status, "BUILD");
    }

    #[test]
    fn a_server_builds_until_it_first_ran() {
        let server = Server::default();
        assert_eq!(words(&server, None, false), "BUILD building scheduling 0");
        let mut fetching = seen(DomainState::Missing, false);
        fetching.task = Some(Task::FetchingImage);
        assert_eq!(words(&server, Some(&fetching), false), "BUILD building spawning 0");
        fetching.fault = Some(Fault { message: "lyon is out of reach".into(), retrying: true });
        assert_eq!(words(&server, Some(&fetching), false), "BUILD building spawning 0", "it goes on trying");
        fetching.fault = Some(Fault { message: "no such data".into(), retrying: false });
        assert_eq!(words(&server, Some(&fetching), false), "ERROR error - 0");
        assert_eq!(words(&server, Some(&fetching), true), "ERROR error deleting 0");
        assert_eq!(words(&server, None, true), "BUILD building deleting 0");
        assert_eq!(words(&server, Some(&seen(DomainState::Running, true)), true), "ACTIVE active deleting 1");
    }

    #[test]
    fn reboots_show_until_the_agent_has_done_them() {
        let mut server = Server { soft_reboots: 1, ..Server::default() };
        let mut now = seen(DomainState::Running, true);
        assert_eq!(words(&server, Some(&now), false), "REBOOT active rebooting 1");
        now.soft_reboots = 1;
        assert_eq!(words(&server, Some(&now), false), "ACTIVE active - 1");
        server.hard_reboots = 2;
        assert_eq!(words(&server, Some(&now), false), "HARD_REBOOT active rebooting_hard 1");
    }

    #[test]
    fn a_start_is_under_way_until_the_agent_has_taken_it_up() {
        let server = Server { power_changes: 2, ..Server::default() };
        let mut now = seen(DomainState::Shutoff, true);
        now.power_changes = 1;
        assert_eq!(words(&server, Some(&now), false), "SHUTOFF stopped powering-on 4");
        now.power_changes = 2;
        assert_eq!(words(&server, Some(&now), false), "SHUTOFF stopped - 4", "it powered itself off");
    }
}
