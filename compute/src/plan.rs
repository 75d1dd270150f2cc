//! What to do next for one server: a pure function of its order, of what this agent has written down, and of what is
//! there.
//!
//! One step at a time: the caller carries a step out, looks again, and asks again. So no step depends on an earlier one
//! having been remembered, and an agent killed between any two continues. The rules:
//!
//! - Nothing starts without an order given since this agent began (`PROTOCOL.md`, S1), without room on this host (S3),
//!   under a claim on a pool that this host does not serve (S3), or under a claim that was refused (A3), or whose holder has
//!   not stood by it since this agent began (S1). Orders of a lower epoch than was ever seen are not obeyed.
//! - A wish is the pair of `power` and `power_changes`. It is brought about **once**; from then on the machine is its
//!   guest's: a guest that powers itself off stays off, as with Nova, until the pair changes. The exception, Nova's
//!   `resume_guests_state_on_host_boot`: what ended while nobody watched (this agent or libvirt was down, the host lost
//!   power) is started again. `ended` in the [`Memory`] tells the two apart.
//! - Stopping is asked for, asked for again (a guest that still boots hears nothing), and enforced after a timeout.
//!   Nothing is stopped because controllers are away: that a connection was lost is no input here.
//! - Whatever must never be undone by a crash is in the [`Memory`] that the plan returns: the caller makes it durable
//!   before it acts or speaks.
//! - A statement is given after the refusal is durable and domain and files are gone.

use std::sync::Arc;

use luc_engine::agent::{DomainState, Fault, Observation, Order, Task, Vouched, Wanted};
use luc_engine::id::{ClaimId, HostId, Millis};
use luc_engine::ledger::Amount;
use luc_engine::record::{Power, Server, ServerImage};
use luc_engine::site_mutant::{SiteMutant, on};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What the agent has written down of one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Highest placement epoch seen in an order, or in the domain's metadata.
    pub epoch: u64,
    /// The claim of the order obeyed last.
    pub claim: ClaimId,
    /// The room that it was given on the host; nothing if there was none.
    pub amount: Amount,
    /// Set once its removal was ordered: from then on it is never started for this claim, and its removal goes on
    /// whatever is heard or not heard.
    pub removing: Option<ClaimId>,
    /// The wish that was brought about, until a step towards another is taken.
    pub fulfilled: Option<(Power, u64)>,
    /// It was seen to end without being asked, under the fulfilled wish.
    pub ended: bool,
    /// Its guest was asked to shut down, and has neither done so nor begun anew since: it may end yet, however late, though
    /// that is no longer wanted.
    pub stopping: bool,
    /// Its disk was made: should it be missing, the data is lost, and no new disk is made in its place.
    pub built: bool,
    /// Base image that its disk is laid over, see [`base_name`].
    pub base: Option<String>,
    /// Soft reboots done or superseded.
    pub soft_reboots: u64,
    /// Hard reboots done or superseded.
    pub hard_reboots: u64,
    /// When it first ran.
    pub launched_at: Option<Millis>,
    /// What was told last; its counter is the highest ever used.
    pub observed: Option<Observation>,
}

/// What holds for every server of a host.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The host.
    pub host: HostId,
    /// The agent's incarnation (S4).
    pub incarnation: u64,
    /// Servers have disks; not so on libvirt's simulated hypervisor, whose actions also take no time worth telling of.
    pub disks: bool,
    /// How long a guest may take to shut down or reboot when asked, milliseconds.
    pub shutdown_timeout: u64,
    /// After how long it is asked again, milliseconds.
    pub shutdown_repeat: u64,
}

/// What libvirt says of a server's UUID.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Seen {
    /// Nothing yet, or no longer: libvirt is out of reach.
    #[default]
    Unknown,
    /// There is no such domain.
    Missing,
    /// A domain that is not of this cloud: never touched.
    Foreign,
    /// One of ours.
    Here(Domain),
}

/// A domain of this cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Never [`DomainState::Missing`].
    pub state: DomainState,
    /// The claim in its metadata.
    pub claim: ClaimId,
    /// The epoch in its metadata.
    pub epoch: u64,
    /// vCPU and MiB that it takes when it runs.
    pub size: (u64, u64),
}

/// Which of a server's files exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Files {
    /// Anything at all.
    pub any: bool,
    /// All its disks, whole.
    pub disks: bool,
    /// Its config-drive, whole.
    pub drive: bool,
}

/// Whether the image's data is at hand.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum ImageState {
    /// Not asked for yet in this run.
    #[default]
    Wanted,
    /// On its way.
    Fetching,
    /// Here.
    Ready,
}

/// What a server is driven towards: a failure or a request to the guest counts for as long as this is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Gone.
    Gone,
    /// As wished.
    Present {
        /// Under this claim.
        claim: ClaimId,
        /// Wanted power.
        power: Power,
        /// Its changes.
        power_changes: u64,
        /// Soft reboots asked for.
        soft_reboots: u64,
        /// Hard reboots asked for.
        hard_reboots: u64,
    },
}

/// A step that did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was for.
    pub goal: Goal,
    /// For the user.
    pub message: String,
    /// How often in a row.
    pub attempts: u32,
    /// When to try again; never, until the goal changes, if none.
    pub retry_at: Option<u64>,
}

/// What a guest was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What it was for.
    pub goal: Goal,
    /// When first.
    pub first: u64,
    /// When last.
    pub last: u64,
}

/// What this run of the agent has brought about, and is not yet in the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Done {
    /// A start for this wish.
    pub wish: Option<(Power, u64)>,
    /// Soft reboots, counted as in the record.
    pub soft_reboots: u64,
    /// Hard reboots.
    pub hard_reboots: u64,
}

/// All that the plan for a server depends on.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The server.
    pub server: Uuid,
    /// A clock that never goes back, milliseconds since this agent began.
    pub now: u64,
    /// The clock on the wall.
    pub wall: Millis,
    /// The host's rules.
    pub rules: &'a Rules,
    /// The order that stands: given since this agent began, and let in by [`intake`].
    pub order: Option<&'a Order>,
    /// What is written down.
    pub memory: Option<&'a Memory>,
    /// What libvirt says.
    pub domain: &'a Seen,
    /// It was seen alive on this connection to libvirt: should it have ended, the agent was watching.
    pub watched: bool,
    /// Its files.
    pub files: Files,
    /// Its image.
    pub image: &'a ImageState,
    /// The host has room for it.
    pub room: bool,
    /// It must not run here, whatever the order says: its claim is not on the pool that this host serves, or the host was
    /// declared dead.
    pub fenced: bool,
    /// What its guest was asked.
    pub asked: Option<&'a Asked>,
    /// What this run did.
    pub done: Done,
    /// What did not work last.
    pub failure: Option<&'a Failure>,
}

/// A step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Get the image's data and check it.
    FetchImage,
    /// Make its disks: the root disk over its image, ephemeral disk and swap.
    MakeDisks,
    /// Make its config-drive.
    MakeDrive,
    /// Define the domain.
    Define,
    /// Write claim and epoch of the order into the domain's metadata.
    Label,
    /// Start it.
    Start {
        /// Held from the first instruction.
        paused: bool,
        /// Throwing saved memory away.
        fresh: bool,
    },
    /// Start it from its saved memory; it is then held, or runs, as when it was saved.
    Restore,
    /// Ask the guest to shut down.
    Shutdown,
    /// Pull the plug.
    Destroy,
    /// Hold the vCPUs.
    Suspend,
    /// Let them go on.
    Resume,
    /// Save its memory to disk and stop.
    ManagedSave,
    /// Ask the guest to reboot.
    Reboot,
    /// Press the reset button.
    Reset,
    /// Undefine the domain, with its saved memory.
    Undefine,
    /// Remove its files.
    RemoveFiles,
}

/// The next step, and what must be durable before it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Plan {
    /// Write this down first.
    pub remember: Option<Memory>,
    /// Or: write down that this claim is refused, forget the rest, then state it.
    pub refuse: Option<ClaimId>,
    /// Then tell this; it is in the memory.
    pub tell: Option<Observation>,
    /// Then do this.
    pub action: Option<Action>,
    /// Ask again at this time at the latest.
    pub wake_at: Option<u64>,
    /// What this run did ([`Done`]) has gone into the memory.
    pub absorbed: bool,
}

/// What to do with an order that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// It stands from now on.
    Obey,
    /// Its claim was refused before: say so again.
    Restate,
    /// An older claim than the one obeyed is to go, and nothing here runs for it: refuse it.
    Refuse,
    /// Of a lower epoch than was seen: not obeyed.
    Ignore,
}

/// Judges an order. `refused`: its claim is known refused. `floor`: the highest epoch among refused claims of the
/// server.
#[must_use]
pub fn intake(order: &Order, memory: Option<&Memory>, refused: bool, floor: u64) -> Intake {
    let removing = memory.is_some_and(|memory| memory.removing == Some(order.claim));
    let seen = memory.map_or(floor, |memory| memory.epoch.max(floor));
    let other = memory.is_none_or(|memory| memory.claim != order.claim);
    if refused {
        Intake::Restate
    } else if order.epoch >= seen || removing {
        Intake::Obey
    } else if order.wanted == Wanted::Absent && other {
        Intake::Refuse
    } else {
        Intake::Ignore
    }
}

/// What a server takes of a host.
#[must_use]
pub fn amount(server: &Server) -> Amount {
    use luc_engine::ledger::Dimension::{DiskGib, MemoryMib, Vcpus};
    let flavor = &server.flavor;
    let swap = flavor.swap_mib.div_ceil(1024);
    let disk = flavor.disk_gib.saturating_add(flavor.ephemeral_gib).saturating_add(swap);
    [(Vcpus, flavor.vcpus), (MemoryMib, flavor.ram_mib), (DiskGib, disk)].into_iter().collect()
}

/// Names an image's data in the host's cache: the same bytes are another disk in another format.
#[must_use]
pub fn base_name(image: &ServerImage) -> String {
    format!("{}.{}", image.data.blob, image.disk_format)
}

/// What an order drives towards.
#[must_use]
pub fn goal(order: &Order) -> Goal {
    match &order.wanted {
        Wanted::Absent => Goal::Gone,
        Wanted::Present { server, .. } => Goal::Present {
            claim: order.claim,
            power: server.power,
            power_changes: server.power_changes,
            soft_reboots: server.soft_reboots,
            hard_reboots: server.hard_reboots,
        },
    }
}

/// The next step for a server.
#[must_use]
pub fn plan(s: &Situation<'_>) -> Plan {
    if *s.domain == Seen::Unknown {
        return Plan::default();
    }
    if let Some(memory) = s.memory
        && let Some(claim) = memory.removing
    {
        return remove(s, memory.clone(), claim);
    }
    match s.order.map(|order| (order, &order.wanted)) {
        Some((order, Wanted::Present { .. })) if s.fenced => fence(s, order),
        None if s.fenced => halt(s),
        None => Plan::default(),
        Some((order, Wanted::Absent)) => {
            let mut memory = s.memory.cloned().unwrap_or_else(|| fresh_memory(order, Amount::default(), None));
            memory.removing = Some(order.claim);
            memory.epoch = memory.epoch.max(order.epoch);
            remove(s, memory, order.claim)
        }
        Some((order, Wanted::Present { server, .. })) => present(s, order, server),
    }
}

/// Destroy, undefine, remove the files, refuse. The memory that says so is durable before the first of them.
fn remove(s: &Situation<'_>, memory: Memory, claim: ClaimId) -> Plan {
    let step = match s.domain {
        Seen::Here(_) if on(SiteMutant::DomainLeft) => None,
        Seen::Here(domain) if is_off(domain.state) => Some(Action::Undefine),
        Seen::Here(_) => Some(Action::Destroy),
        // Never touched, so never known to be gone: the operator has to look.
        Seen::Foreign => return finish(s, memory, Goal::Gone, Step::fault(FOREIGN, true)),
        Seen::Missing if s.files.any => Some(Action::RemoveFiles),
        Seen::Missing => None,
        Seen::Unknown => return Plan::default(),
    };
    match step {
        None => Plan { refuse: Some(claim), ..Plan::default() },
        Some(action) => finish(s, memory, Goal::Gone, Step::act(action, Task::Deleting)),
    }
}

const FENCED: &str = "its right to be on this host does not count: the host was declared dead, or serves another pool";

/// On a host that was declared dead, what runs is stopped though nothing is heard: another host may run it by now.
fn halt(s: &Situation<'_>) -> Plan {
    match s.domain {
        Seen::Here(domain) if !is_off(domain.state) => {
            let fresh = || blank_memory(domain.claim, domain.epoch);
            let memory = s.memory.cloned().unwrap_or_else(fresh);
            finish(s, memory, Goal::Gone, Step::act(Action::Destroy, Task::Powering))
        }
        _ => Plan::default(),
    }
}

/// What must not run here is stopped, and kept: only its user decides that its data can go. Where there is nothing, the claim
/// is refused for ever.
fn fence(s: &Situation<'_>, order: &Order) -> Plan {
    if *s.domain == Seen::Missing && s.memory.is_none() && !s.files.any {
        return Plan { refuse: Some(order.claim), ..Plan::default() };
    }
    let memory = s.memory.cloned().unwrap_or_else(|| fresh_memory(order, Amount::default(), None));
    let step = match s.domain {
        Seen::Here(domain) if !is_off(domain.state) => Step::act(Action::Destroy, Task::Powering),
        _ => Step::fault(FENCED, false),
    };
    finish(s, memory, goal(order), step)
}

const FOREIGN: &str = "a domain with this server's id, which is not of this cloud, is on the host";

/// A step with what to tell meanwhile.
struct Step {
    action: Option<Action>,
    task: Option<Task>,
    fault: Option<Fault>,
    wake_at: Option<u64>,
}

impl Step {
    const REST: Self = Self { action: None, task: None, fault: None, wake_at: None };

    fn act(action: Action, task: Task) -> Self {
        Self { action: Some(action), task: Some(task), ..Self::REST }
    }

    fn wait(task: Task, wake_at: Option<u64>) -> Self {
        Self { task: Some(task), wake_at, ..Self::REST }
    }

    fn fault(message: &str, retrying: bool) -> Self {
        Self { fault: Some(Fault { message: message.to_owned(), retrying }), ..Self::REST }
    }
}

fn fresh_memory(order: &Order, amount: Amount, server: Option<&Server>) -> Memory {
    Memory {
        amount,
        base: server.and_then(|server| server.image.as_ref()).map(base_name),
        // Reboots asked for before it came here were done elsewhere, or are done by its first start.
        soft_reboots: server.map_or(0, |server| server.soft_reboots),
        hard_reboots: server.map_or(0, |server| server.hard_reboots),
        ..blank_memory(order.claim, order.epoch)
    }
}

fn blank_memory(claim: ClaimId, epoch: u64) -> Memory {
    Memory {
        epoch,
        claim,
        amount: Amount::default(),
        removing: None,
        fulfilled: None,
        ended: false,
        stopping: false,
        built: false,
        base: None,
        soft_reboots: 0,
        hard_reboots: 0,
        launched_at: None,
        observed: None,
    }
}

fn present(s: &Situation<'_>, order: &Order, server: &Arc<Server>) -> Plan {
    let goal = goal(order);
    let known = s.memory.cloned();
    let mut memory = known.unwrap_or_else(|| fresh_memory(order, amount(server), Some(server)));
    memory.epoch = order.epoch;
    memory.claim = order.claim;
    // What was never given room keeps none over a restart, before those that were.
    memory.amount = if s.room { amount(server) } else { Amount::default() };
    if s.done.wish.is_some() {
        memory.fulfilled = s.done.wish;
        (memory.ended, memory.stopping) = (false, false);
    }
    // A guest that was reset was asked nothing.
    memory.stopping &= s.done.hard_reboots <= memory.hard_reboots;
    memory.soft_reboots = memory.soft_reboots.max(s.done.soft_reboots);
    memory.hard_reboots = memory.hard_reboots.max(s.done.hard_reboots);
    let step = match s.domain {
        Seen::Unknown => return Plan::default(),
        Seen::Foreign => Step::fault(FOREIGN, true),
        Seen::Missing => build(s, &memory, server),
        Seen::Here(domain) if (domain.claim, domain.epoch) != (order.claim, order.epoch) => {
            Step::act(Action::Label, Task::Spawning)
        }
        Seen::Here(domain) => {
            memory.built = true;
            if domain.state == DomainState::Running {
                memory.launched_at = memory.launched_at.or(Some(s.wall));
            }
            drive(s, &mut memory, server, domain.state, goal)
        }
    };
    let step = match order.vouched {
        _ if !needs_room(&step) => step,
        // Its holder answers soon, or is known not to.
        Vouched::Asked => return Plan::default(),
        Vouched::No => Step::fault(UNVOUCHED, true),
        Vouched::Yes if !s.room => Step::fault(NO_ROOM, true),
        Vouched::Yes => step,
    };
    Plan { absorbed: true, ..finish(s, memory, goal, step) }
}

const UNVOUCHED: &str = "the replica that placed this server cannot be asked whether it still belongs on this host; it starts when \
                         that can be reached, or was retired";
const NO_ROOM: &str = "the host has no room left for this server; it starts when others have gone";

/// Before anything is built, and before every start.
fn needs_room(step: &Step) -> bool {
    use Action::{Define, FetchImage, MakeDisks, MakeDrive, Restore, Start};
    matches!(step.action, Some(FetchImage | MakeDisks | MakeDrive | Define | Start { .. } | Restore))
}

/// Towards a defined domain.
fn build(s: &Situation<'_>, memory: &Memory, server: &Server) -> Step {
    if !s.rules.disks {
        return Step::act(Action::Define, Task::Spawning);
    }
    if !s.files.disks {
        if memory.built {
            return Step::fault("the disk of this server is no longer on its host", false);
        }
        return match s.image {
            ImageState::Wanted if server.image.is_some() => Step::act(Action::FetchImage, Task::FetchingImage),
            ImageState::Fetching => Step::wait(Task::FetchingImage, None),
            ImageState::Wanted | ImageState::Ready => Step::act(Action::MakeDisks, Task::Spawning),
        };
    }
    let action = if s.files.drive { Action::Define } else { Action::MakeDrive };
    Step::act(action, Task::Spawning)
}

fn is_off(state: DomainState) -> bool {
    matches!(state, DomainState::Shutoff | DomainState::Crashed | DomainState::Saved | DomainState::Missing)
}

/// Towards the wanted power.
fn drive(s: &Situation<'_>, memory: &mut Memory, server: &Server, state: DomainState, goal: Goal) -> Step {
    let wish = (server.power, server.power_changes);
    if server.power != Power::Running {
        // A reboot that was asked for is superseded by the wish not to run.
        memory.soft_reboots = memory.soft_reboots.max(server.soft_reboots);
        memory.hard_reboots = memory.hard_reboots.max(server.hard_reboots);
    }
    let given_up = s.asked.map_or(0, |asked| asked.first) + s.rules.shutdown_timeout;
    let stopped = server.power != Power::Running && is_off(state);
    memory.stopping &= !stopped;
    let due = memory.fulfilled != Some(wish);
    if memory.stopping && server.power == Power::Running && state == DomainState::Running && s.now < given_up {
        // It will end, and is to be started then: a stop that was followed by a start leaves it running. One that takes
        // longer than it was given is taken for running, and is started all the same should it end.
        return Step::wait(Task::Powering, Some(given_up));
    }
    let met = match server.power {
        Power::Running => state == DomainState::Running,
        Power::Stopped => matches!(state, DomainState::Shutoff | DomainState::Crashed),
        Power::Paused => state == DomainState::Paused,
        // What is off has no memory that could be saved.
        Power::Suspended => is_off(state),
    };
    if met {
        memory.fulfilled = Some(wish);
    }
    let step = match server.power {
        Power::Running => run(s, memory, server, state, goal, due),
        _ if met || !due => None,
        Power::Stopped => Some(stop(s, state, goal)),
        Power::Paused => Some(match state {
            DomainState::Running => Step::act(Action::Suspend, Task::Powering),
            DomainState::Saved => Step::act(Action::Restore, Task::Powering),
            _ => Step::act(Action::Start { paused: true, fresh: false }, Task::Powering),
        }),
        Power::Suspended => Some(Step::act(Action::ManagedSave, Task::Powering)),
    };
    let step = step.unwrap_or(Step::REST);
    memory.stopping |= step.action == Some(Action::Shutdown);
    if due && step.action.is_some() {
        // From here on the older wish no longer holds either: should it come back, it is brought about anew.
        memory.fulfilled = None;
    }
    step
}

fn stop(s: &Situation<'_>, state: DomainState, goal: Goal) -> Step {
    match state {
        DomainState::Running => ask(s, goal, Action::Shutdown, Action::Destroy, Task::Powering),
        // A held guest hears nothing, and saved memory may hold what is not on the disk yet.
        DomainState::Paused => Step::act(Action::Resume, Task::Powering),
        _ => Step::act(Action::Restore, Task::Powering),
    }
}

/// Asks the guest; asks again; in the end does without it.
fn ask(s: &Situation<'_>, goal: Goal, gentle: Action, hard: Action, task: Task) -> Step {
    let Some(asked) = s.asked.filter(|asked| asked.goal == goal) else { return Step::act(gentle, task) };
    let (end, again) = (asked.first + s.rules.shutdown_timeout, asked.last + s.rules.shutdown_repeat);
    if s.now >= end {
        Step::act(hard, task)
    } else if s.now >= again && gentle == Action::Shutdown {
        Step::act(gentle, task)
    } else {
        Step::wait(task, Some(if gentle == Action::Shutdown { end.min(again) } else { end }))
    }
}

fn run(
    s: &Situation<'_>,
    memory: &mut Memory,
    server: &Server,
    state: DomainState,
    goal: Goal,
    due: bool,
) -> Option<Step> {
    let hard = server.hard_reboots > memory.hard_reboots;
    let soft = server.soft_reboots > memory.soft_reboots;
    let task = if hard || soft { Task::Rebooting } else { Task::Powering };
    match state {
        DomainState::Running if hard => Some(Step::act(Action::Reset, task)),
        DomainState::Running if soft => Some(ask(s, goal, Action::Reboot, Action::Reset, task)),
        DomainState::Running => {
            memory.ended = false;
            None
        }
        DomainState::Paused if hard => Some(Step::act(Action::Reset, task)),
        DomainState::Paused => (due || soft).then(|| Step::act(Action::Resume, task)),
        DomainState::Shutoff | DomainState::Crashed | DomainState::Saved | DomainState::Missing => {
            let unwatched = !memory.ended && !s.watched;
            if due || hard || soft || unwatched || memory.stopping {
                let restore = state == DomainState::Saved && !hard;
                let start = Action::Start { paused: false, fresh: hard };
                return Some(Step::act(if restore { Action::Restore } else { start }, task));
            }
            memory.ended = true;
            None
        }
    }
}

/// Holds a step back that has failed for this goal, and puts what there is to tell into the memory.
fn finish(s: &Situation<'_>, mut memory: Memory, goal: Goal, mut step: Step) -> Plan {
    // While an image is fetched again, what the last attempt met is still what there is to tell.
    let trying = step.action.is_some() || step.task == Some(Task::FetchingImage);
    if trying && let Some(failure) = s.failure.filter(|failure| failure.goal == goal) {
        step.fault = Some(Fault { message: failure.message.clone(), retrying: failure.retry_at.is_some() });
        let held_back = failure.retry_at.is_none_or(|at| at > s.now);
        if step.action.is_some() && held_back {
            step.action = None;
            step.wake_at = failure.retry_at;
            step.task = step.task.filter(|_| failure.retry_at.is_some());
        }
    }
    let news = observation(s, &memory, &step);
    if let Some(news) = &news {
        memory.observed = Some(news.clone());
    }
    let remember = (s.memory != Some(&memory)).then_some(memory);
    Plan { remember, refuse: None, tell: news, action: step.action, wake_at: step.wake_at, absorbed: false }
}

/// What there is to tell, if it is new. Where actions take no time, what is under way is not worth telling.
fn observation(s: &Situation<'_>, memory: &Memory, step: &Step) -> Option<Observation> {
    let state = match s.domain {
        Seen::Here(domain) => domain.state,
        Seen::Missing | Seen::Foreign => DomainState::Missing,
        Seen::Unknown => return None,
    };
    let building = memory.launched_at.is_none() && matches!(step.task, Some(Task::Spawning | Task::Powering));
    let first = building && is_off(state);
    let (state, task) = if first { (DomainState::Missing, Some(Task::Spawning)) } else { (state, step.task) };
    if step.action.is_some() && !s.rules.disks && step.fault.is_none() {
        return None;
    }
    let observed = Observation {
        host: s.rules.host,
        server: s.server,
        claim: memory.claim,
        epoch: memory.epoch,
        incarnation: s.rules.incarnation,
        counter: memory.observed.as_ref().map_or(0, |last| last.counter),
        at: s.wall,
        state,
        task,
        soft_reboots: memory.soft_reboots,
        hard_reboots: memory.hard_reboots,
        power_changes: memory.fulfilled.map_or(0, |(_, changes)| changes),
        launched_at: memory.launched_at,
        fault: step.fault.clone(),
    };
    let same = memory.observed.as_ref().is_some_and(|last| Observation { at: observed.at, ..last.clone() } == observed);
    (!same).then(|| Observation { counter: observed.counter + 1, ..observed })
}

#[cfg(test)]
mod tests {
    use luc_engine::id::{EntryId, PoolId, ReplicaId};

    use super::*;

    fn order(number: u64, epoch: u64, wanted: Wanted) -> Order {
        let entry = EntryId { author: ReplicaId(Uuid::nil()), number };
        let pool = PoolId { entry, index: 9 };
        let (claim, vouched) = (ClaimId { entry, index: 0 }, Vouched::Yes);
        Order { server: Uuid::nil(), claim, pool, epoch, wanted, vouched }
    }

    fn present() -> Wanted {
        Wanted::Present { server: Arc::default(), project_name: String::new() }
    }

    #[test]
    fn orders_are_let_in_by_claim_and_epoch() {
        let known = fresh_memory(&order(2, 5, present()), Amount::default(), None);
        let mut removing = known.clone();
        removing.removing = Some(known.claim);
        let memories = [("nothing", None), ("obeyed", Some(&known)), ("removing", Some(&removing))];
        // What is known, its claim refused, epoch of an older refusal; claim, epoch, wish of the order; the verdict.
        let cases = [
            ("nothing", false, 0, 1, 0, present(), Intake::Obey),
            ("nothing", false, 0, 1, 0, Wanted::Absent, Intake::Obey),
            ("nothing", true, 0, 1, 9, present(), Intake::Restate),
            ("nothing", true, 0, 1, 0, Wanted::Absent, Intake::Restate),
            ("nothing", false, 3, 1, 2, present(), Intake::Ignore),
            ("nothing", false, 3, 1, 2, Wanted::Absent, Intake::Refuse),
            ("obeyed", false, 0, 2, 5, present(), Intake::Obey),
            ("obeyed", false, 0, 3, 6, present(), Intake::Obey),
            ("obeyed", false, 0, 1, 4, present(), Intake::Ignore),
            ("obeyed", false, 0, 1, 4, Wanted::Absent, Intake::Refuse),
            ("obeyed", false, 0, 2, 4, Wanted::Absent, Intake::Ignore),
            ("obeyed", false, 7, 2, 5, present(), Intake::Ignore),
            ("removing", false, 0, 2, 4, Wanted::Absent, Intake::Obey),
        ];
        for (known, refused, floor, claim, epoch, wanted, verdict) in cases {
            let memory = memories.iter().find(|(name, _)| *name == known).and_then(|(_, memory)| *memory);
            let order = order(claim, epoch, wanted);
            assert_eq!(intake(&order, memory, refused, floor), verdict, "{known} {refused} {floor} {order:?}");
        }
    }
}
