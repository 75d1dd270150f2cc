//! The schedule of a run, drawn from its seed before it starts: what users and operators do and what breaks, each at its
//! time. A step names what it is about by random bits that are resolved when it happens, so any subset of a schedule
//! is a schedule, and a failing one can be shrunk.

use std::collections::BTreeSet;

use super::addresses::SPACE;
use super::net::{IDLE, Micros};
use super::rng::Rng;

/// What users and operators ask of one site.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "random bits, resolved when the step happens")]
pub enum Op {
    /// A client looks a server up, wherever it happens to ask.
    Look { client: u64, server: u64 },
    /// A server: its quota claim, its host claim and its record in one entry, on a host of the site that is asked or on any.
    /// `size` in vCPU.
    Create { project: u64, host: u64, home: bool, size: u64 },
    /// A server is deleted.
    Delete { server: u64 },
    /// A server's wanted power.
    Power { server: u64, power: u64 },
    /// A server's name and metadata.
    Rename { server: u64, name: u64 },
    /// A user with a unique name.
    User { name: u64 },
    /// A user is deleted.
    DeleteUser { name: u64 },
    /// A project with its quota.
    Project { size: u64, confirmed: bool },
    /// A pool of addresses.
    Addresses { size: u64, confirmed: bool },
    /// Some addresses are taken.
    Take { pool: u64, n: u64 },
    /// What was taken is given back.
    GiveBack { address: u64 },
    /// A pool gets more addresses: some that it has, or had, maybe.
    GrowAddresses { pool: u64, from: u64, n: u64 },
    /// Addresses that are free are burnt.
    BurnAddresses { pool: u64, n: u64 },
    /// A flavor that is known by its name.
    Flavor { name: u64 },
    /// A flavor is changed.
    EditFlavor { flavor: u64, value: u64 },
    /// A flavor is deleted.
    DeleteFlavor { flavor: u64 },
    /// A project is deleted, whatever belongs to it.
    DeleteProject { project: u64 },
    /// A pool rooted here grows.
    Grow { pool: u64, size: u64 },
    /// Free rights held here are burnt.
    Burn { pool: u64, size: u64 },
}

/// What breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "random bits, resolved when the step happens; times in microseconds")]
pub enum Fault {
    /// The process dies. A commit that is under way is kept or lost. It starts again after so long.
    Crash { node: u64, kept: bool, down: Micros },
    /// A commit fails; the process ends, and starts again after so long.
    FailCommit { node: u64, down: Micros },
    /// The disk is lost with the process. Later a new replica joins in its place, and the old one is retired.
    LoseDisk { node: u64, down: Micros },
    /// The process is stopped for good with its disk; it is retired, and its site goes on with a new replica. Much
    /// later somebody starts it again.
    Retire { node: u64, again: Micros },
    /// A copy of a disk is made.
    CopyDisk { node: u64 },
    /// The process dies, and starts again from the copy of its disk.
    OldDisk { node: u64, down: Micros },
    /// The copy of the disk is started on another machine, out of the first one's sight; later the first goes on.
    CloneDisk { node: u64, down: Micros },
    /// One direction between two sites is cut.
    OneWay { from: u64, to: u64 },
    /// Some hear a site no more; it is the next that is lost or retired. Those that still hear it may share its lot.
    Isolate { node: u64, peers: u64, together: bool },
    /// The sites are parted in two.
    Part { bits: u64 },
    /// The sites are parted in two, but for one that reaches all.
    Bridge { bits: u64, bridge: u64 },
    /// All links are mended.
    Heal,
    /// None is mended for so long.
    Hold { length: Micros },
    /// A site's disk and links are slow.
    Slow { node: u64, factor: u64 },
    /// An agent dies, and starts again after so long; its domains live on.
    KillAgent { agent: u64, down: Micros },
    /// An agent's connection ends; it may find another replica of its site.
    Roam { agent: u64 },
    /// The replicas of a site that has several hear each other no more, and one of them some others neither. Those may be parted
    /// from the rest as well: then nobody tells the one what the other knows. It lasts so long, and no other begins meanwhile; a machine
    /// there fails, maybe.
    SplitSite { site: u64, peers: u64, apart: bool, length: Micros, fails: bool },
    /// An agent of the site that was split last looks for another replica there, or dies and starts again after so long.
    Wander { agent: u64, dies: bool, down: Micros },
    /// A client of one of the replicas of the site that was split last, or of the one that its agent is attached to, deletes a
    /// server that runs there, or switches it.
    AskThere { server: u64, node: Option<u64>, power: Option<u64> },
    /// A machine of the site that was split last fails, and is declared dead: it comes back to a replica that has not heard of it,
    /// maybe.
    FailThere { agent: u64 },
    /// A machine fails. It comes back after so long: by itself, or after it was declared dead and revived.
    KillHost { agent: u64, declared: bool, down: Micros },
    /// A member forks: those whose bit is set hear from now on what its twin writes.
    Fork { node: u64, sides: u64 },
    /// A member that has forked signs an entry that breaks a rule, and sends it to some.
    Lie { kind: u64, by: u64, to: u64 },
    /// A replica joins a site, and asks the member that has forked for its state.
    Deceive { site: u64 },
    /// Logs are dropped beyond so many bytes, though absent members lack them.
    ShortLogs { bytes: u64 },
    /// A further replica joins a site.
    Join { site: u64, sponsor: u64 },
    /// A clock is set wrong, by milliseconds ahead.
    Skew { node: u64, ahead: u64 },
}

/// Names of faults, as `--faults` takes them.
pub const FAULTS: &[&str] = &[
    "crash", "fail", "lose", "retire", "cut", "slow", "agent", "join", "skew", "old-disk", "clone", "roam", "host",
    "site", "logs", "liar",
];
/// Those of runs that name none: honest clouds. A liar is asked for by name.
pub const HONEST: &[&str] = &[
    "crash", "fail", "lose", "retire", "cut", "slow", "agent", "join", "skew", "old-disk", "clone", "roam", "host",
    "site", "logs",
];

/// Within so long an agent has found another replica and is asked something there.
const WANDERING: Micros = 1_200_000;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "random bits, resolved when the step happens")]
pub enum What {
    /// An operation at a site.
    Op { node: u64, op: Op },
    /// A fault.
    Fault(Fault),
}

/// A step with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Micros,
    /// What.
    pub what: What,
}

/// Draws a schedule.
#[must_use]
pub fn schedule(seed: u64, ops: usize, faults: &BTreeSet<String>) -> Vec<Step> {
    let mut rng = Rng::new(seed, 1);
    let mut steps = Vec::with_capacity(ops + ops / 40);
    // Some runs are busy, some are slow enough for everything to settle in between.
    let pace = [4_000, 12_000, 40_000][usize::try_from(rng.below(3)).unwrap_or(0)];
    // So many operations in a thousand look at what there is: always half of them at least.
    let looks = [500, 800, 900][usize::try_from(rng.below(3)).unwrap_or(0)];
    // One fault in so many operations; some runs are calm.
    let every = [25, 60, 200][usize::try_from(rng.below(3)).unwrap_or(0)];
    for n in 0..3 {
        let op = Op::Project { size: rng.between(20, 150), confirmed: n == 2 };
        steps.push(Step { at: 2_200_000 + n * 50_000, what: What::Op { node: rng.bits(), op } });
        let op = Op::Addresses { size: rng.between(12, 60), confirmed: n == 2 };
        steps.push(Step { at: 2_220_000 + n * 50_000, what: What::Op { node: rng.bits(), op } });
    }
    let lies = faults.contains("liar") && rng.chance(600);
    let length = pace * u64::try_from(ops).unwrap_or(0);
    if faults.contains("logs") && rng.chance(500) {
        steps.extend(of_short_logs(&mut rng, length));
    }
    let joins = u64::from(faults.contains("site"));
    for _ in 0..joins + if faults.contains("join") { rng.below(3) } else { 0 } {
        let join = Fault::Join { site: rng.bits(), sponsor: rng.bits() };
        steps.push(Step { at: 2_300_000, what: What::Fault(join) });
    }
    if lies {
        steps.extend(of_a_liar(&mut rng, length));
    }
    // What is drawn once, above, breaks nothing later.
    let kinds: Vec<&String> = faults.iter().filter(|name| !["logs", "liar"].contains(&name.as_str())).collect();
    let mut at = 3_000_000;
    for _ in 0..ops {
        at += rng.below(2 * pace);
        steps.push(Step { at, what: What::Op { node: rng.bits(), op: op(&mut rng, looks) } });
        if rng.below(every) == 0
            && let Some(kind) = super::rng::pick(&kinds, rng.bits())
        {
            let fault = fault(kind, faults, &mut rng);
            if let Fault::OldDisk { node, .. } | Fault::CloneDisk { node, .. } = fault {
                let age = rng.between(100_000, 4_000_000);
                let copied = at.saturating_sub(age).max(3_000_000);
                steps.push(Step { at: copied, what: What::Fault(Fault::CopyDisk { node }) });
            }
            match fault {
                Fault::LoseDisk { node, down } => steps.extend(around_a_loss(&mut rng, at, node, down, false)),
                Fault::Retire { node, .. } => steps.extend(around_a_loss(&mut rng, at, node, 500_000, true)),
                Fault::SplitSite { length, fails, .. } => {
                    steps.extend(in_a_split_site(&mut rng, at, length, fails));
                }
                _ => {}
            }
            let heals = matches!(fault, Fault::OneWay { .. } | Fault::Part { .. } | Fault::Bridge { .. });
            steps.push(Step { at, what: What::Fault(fault) });
            if heals {
                let after = rng.between(100_000, 9_000_000);
                steps.push(Step { at: at + after, what: What::Fault(Fault::Heal) });
            }
        }
    }
    steps.sort_by_key(|step| step.at);
    steps
}

/// Before a replica is lost or stopped it is cut off: from some, from nearly all, or with those that still hear it, who then have
/// alone what it wrote last. One that comes back may have that all alone. The links are mended soon, so that everybody has it when
/// the retirement is asked for (so long after the loss); or only when others have sealed; or soon, and others are cut off while the
/// survivors agree.
fn around_a_loss(rng: &mut Rng, at: Micros, node: u64, asked: Micros, returns: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut push = |at, fault| steps.push(Step { at, what: What::Fault(fault) });
    let together = rng.chance(750);
    let peers = match rng.below(5) {
        0 => rng.bits(),
        1 | 2 if returns => u64::MAX,
        _ => rng.bits() | rng.bits(),
    };
    let before = rng.between(20_000, if together { 1_500_000 } else { 600_000 });
    let before = at.saturating_sub(before).max(3_000_000);
    push(before, Fault::Isolate { node, peers, together });
    let soon = at + rng.between(10_000, 900_000);
    let agreed = at + asked + rng.between(10_000, 4_000_000);
    match rng.below(4) {
        0 => push(soon, Fault::Heal),
        n if n == 1 || (n == 2 && !returns) => {
            push(before, Fault::Hold { length: agreed - before });
            push(agreed, Fault::Heal);
        }
        _ => {
            push(soon, Fault::Heal);
            push(soon, Fault::Part { bits: rng.bits() & rng.bits() });
            push(soon, Fault::Hold { length: agreed.saturating_sub(soon) });
            push(agreed.max(soon), Fault::Heal);
        }
    }
    steps
}

/// The replicas of a site do not hear each other. One hears some others no more, or nobody; or two parts of the cloud have a
/// replica there each.
fn split(rng: &mut Rng, hosts: bool) -> Fault {
    let site = rng.bits();
    let (peers, apart) = match rng.below(6) {
        0 => (rng.bits() & rng.bits(), false),
        1 | 2 => (rng.bits(), true),
        _ => (u64::MAX, false),
    };
    // A machine that fails is declared dead, and comes back, while one replica of its site knows nothing of it.
    let fails = hosts && rng.chance(if peers == u64::MAX { 900 } else { 100 });
    let length = if fails { rng.between(6_000_000, 15_000_000) } else { rng.between(1_500_000, 9_000_000) };
    Fault::SplitSite { site, peers, apart, length, fails }
}

/// What happens while the replicas of one site do not hear each other: its agents go from one to another, with what they have
/// done and said meanwhile; and a machine of it fails, maybe.
fn in_a_split_site(rng: &mut Rng, at: Micros, length: Micros, fails: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut push = |at, fault| steps.push(Step { at, what: What::Fault(fault) });
    if fails {
        push(at + rng.below(200_000), Fault::FailThere { agent: rng.bits() });
    }
    let mut goes = at;
    loop {
        // It takes half a second to find another one; and what both have heard of says nothing of what each did alone.
        goes += rng.between(200_000, 2_500_000);
        if goes + WANDERING > at + length {
            break;
        }
        // Before it goes, and where it has come to: mostly of one and the same server, which it sees change both times.
        let (server, first) = (rng.bits(), rng.between(1, 3));
        let first = if rng.chance(500) { Some(first) } else { None };
        let then = first.unwrap_or(0) + rng.between(1, 3);
        let before = goes.saturating_sub(rng.between(50_000, 600_000)).max(at);
        for (at, power) in [(before, first), (goes + rng.between(550_000, WANDERING), Some(then % 4))] {
            let node = rng.chance(250).then(|| rng.bits());
            push(at, Fault::AskThere { server, node, power });
        }
        let (agent, dies, down) = (rng.bits(), rng.chance(500), rng.between(1_000, 500_000));
        push(goes, Fault::Wander { agent, dies, down });
    }
    push(at + length, Fault::Heal);
    steps
}

/// Logs are short, and the cloud is parted for so long that both halves would like to drop what the other lacks.
fn of_short_logs(rng: &mut Rng, length: Micros) -> Vec<Step> {
    let most = if rng.chance(500) { 25_000 } else { 100_000 };
    let bytes = rng.between(8_000, most);
    let mut steps = vec![Step { at: 2_000_000, what: What::Fault(Fault::ShortLogs { bytes }) }];
    let mut push = |at, fault| steps.push(Step { at, what: What::Fault(fault) });
    if rng.chance(750) {
        let at = 3_000_000 + rng.below(length / 2 + 1);
        push(at, Fault::Part { bits: rng.bits() });
        // As long as a connection outlives it, nobody asks for what was dropped.
        let least = IDLE + rng.below(IDLE);
        push(at + rng.between(length / 8, length / 2).max(least), Fault::Heal);
    }
    steps
}

/// A member lies from some time on: mostly while the cloud is parted, so that no half sees through its fork, or all by itself,
/// so that nothing but its lies can give it away. Each of these is heard by few: who has heard one believes nothing any more.
fn of_a_liar(rng: &mut Rng, length: Micros) -> Vec<Step> {
    let mut steps = Vec::new();
    let node = rng.bits();
    let sides = if rng.chance(500) { rng.bits() } else { 0 };
    let mut push = |at, fault| steps.push(Step { at, what: What::Fault(fault) });
    let first = 3_000_000 + rng.below(length / 2 + 1);
    // It waits until no retirement is under way.
    for n in 0..4 {
        let at = first + n * length / 8;
        if sides != 0 && rng.chance(800) {
            push(at, Fault::Part { bits: sides });
            push(at + rng.between(100_000, 9_000_000), Fault::Heal);
        }
        push(at + 1_000, Fault::Fork { node, sides });
    }
    let (kind, lies) = (rng.below(64), rng.between(8, 24));
    for n in 0..lies {
        let at = first + 10_000 + rng.below(length / 2 + 1);
        let to = rng.bits() & rng.bits() & rng.bits();
        push(at, Fault::Lie { kind: kind + n, by: rng.bits(), to });
    }
    if rng.chance(500) {
        push(first + 20_000 + rng.below(length / 2 + 1), Fault::Deceive { site: rng.bits() });
    }
    steps
}

fn op(rng: &mut Rng, looks: u64) -> Op {
    if rng.chance(looks) {
        return Op::Look { client: rng.bits(), server: rng.bits() };
    }
    if rng.chance(120) {
        return of_addresses(rng);
    }
    match rng.below(100) {
        0..32 => {
            // Locality is the point: most servers are wanted where they are asked for.
            Op::Create { project: rng.bits(), host: rng.bits(), home: rng.chance(600), size: rng.between(1, 4) }
        }
        32..52 => Op::Delete { server: rng.bits() },
        52..64 => Op::Power { server: rng.bits(), power: rng.below(4) },
        64..74 => Op::Rename { server: rng.bits(), name: rng.below(20) },
        74..80 => Op::User { name: rng.below(8) },
        80..84 => Op::DeleteUser { name: rng.below(8) },
        84..85 => Op::Project { size: rng.between(10, 60), confirmed: rng.chance(300) },
        85..88 => Op::Flavor { name: rng.below(6) },
        88..91 => Op::EditFlavor { flavor: rng.bits(), value: rng.bits() },
        91..92 => Op::DeleteFlavor { flavor: rng.bits() },
        92..93 => Op::DeleteProject { project: rng.bits() },
        93..96 => Op::Grow { pool: rng.bits(), size: rng.between(1, 5) },
        _ => Op::Burn { pool: rng.bits(), size: rng.between(1, 3) },
    }
}

fn of_addresses(rng: &mut Rng) -> Op {
    match rng.below(100) {
        0..50 => Op::Take { pool: rng.bits(), n: rng.between(1, 4) },
        50..80 => Op::GiveBack { address: rng.bits() },
        80..90 => Op::GrowAddresses { pool: rng.bits(), from: rng.below(SPACE), n: rng.between(1, 8) },
        90..98 => Op::BurnAddresses { pool: rng.bits(), n: rng.between(1, 3) },
        _ => Op::Addresses { size: rng.between(8, 40), confirmed: rng.chance(300) },
    }
}

fn fault(kind: &str, faults: &BTreeSet<String>, rng: &mut Rng) -> Fault {
    let down = rng.between(50_000, 6_000_000);
    match kind {
        "fail" => Fault::FailCommit { node: rng.bits(), down },
        "lose" => Fault::LoseDisk { node: rng.bits(), down },
        "retire" => {
            // Some come back while the others still agree.
            let latest = if rng.chance(500) { 1_500_000 } else { 20_000_000 };
            Fault::Retire { node: rng.bits(), again: rng.between(100_000, latest) }
        }
        "old-disk" => Fault::OldDisk { node: rng.bits(), down },
        "clone" => Fault::CloneDisk { node: rng.bits(), down },
        "cut" => match rng.below(3) {
            0 => Fault::OneWay { from: rng.bits(), to: rng.bits() },
            1 => Fault::Part { bits: rng.bits() },
            _ => Fault::Bridge { bits: rng.bits(), bridge: rng.bits() },
        },
        "slow" => Fault::Slow { node: rng.bits(), factor: rng.between(1, 20) },
        "agent" => Fault::KillAgent { agent: rng.bits(), down },
        "roam" => Fault::Roam { agent: rng.bits() },
        "site" => split(rng, faults.contains("host")),
        "host" => Fault::KillHost { agent: rng.bits(), declared: rng.chance(700), down },
        "join" => Fault::Join { site: rng.bits(), sponsor: rng.bits() },
        "skew" => Fault::Skew { node: rng.bits(), ahead: rng.below(300_000) },
        _ => Fault::Crash { node: rng.bits(), kept: rng.chance(500), down },
    }
}
