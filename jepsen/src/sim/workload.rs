//! The schedule of a run, drawn from its seed before it starts: what users and operators do and what breaks, each at its
//! time. A step names what it is about by random bits that are resolved when it happens, so any subset of a schedule
//! is a schedule, and a failing one can be shrunk.

use std::collections::BTreeSet;

use super::net::Micros;
use super::rng::Rng;

/// What users and operators ask of one site.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "random bits, resolved when the step happens")]
pub enum Op {
    /// A server: its quota claim, its host claim and its record in one entry. `size` in vCPU.
    Create { project: u64, host: u64, size: u64 },
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
    Project { size: u64 },
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
    /// Some hear a site no more; it is the next that is lost or retired.
    Isolate { node: u64, peers: u64 },
    /// The sites are parted in two.
    Part { bits: u64 },
    /// The sites are parted in two, but for one that reaches all.
    Bridge { bits: u64, bridge: u64 },
    /// All links are mended.
    Heal,
    /// A site's disk and links are slow.
    Slow { node: u64, factor: u64 },
    /// An agent dies, and starts again after so long; its domains live on.
    KillAgent { agent: u64, down: Micros },
    /// A further replica joins a site.
    Join { site: u64, sponsor: u64 },
    /// A clock is set wrong, by milliseconds ahead.
    Skew { node: u64, ahead: u64 },
}

/// Names of faults, as `--faults` takes them.
pub const FAULTS: &[&str] =
    &["crash", "fail", "lose", "retire", "cut", "slow", "agent", "join", "skew", "old-disk", "clone"];

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
    // One fault in so many operations; some runs are calm.
    let every = [25, 60, 200][usize::try_from(rng.below(3)).unwrap_or(0)];
    let kinds: Vec<&String> = faults.iter().collect();
    for n in 0..3 {
        let op = Op::Project { size: rng.between(20, 150) };
        steps.push(Step { at: 2_200_000 + n * 50_000, what: What::Op { node: rng.bits(), op } });
    }
    let mut at = 3_000_000;
    for _ in 0..ops {
        at += rng.below(2 * pace);
        steps.push(Step { at, what: What::Op { node: rng.bits(), op: op(&mut rng) } });
        if rng.below(every) == 0
            && let Some(kind) = super::rng::pick(&kinds, rng.bits())
        {
            let fault = fault(kind, &mut rng);
            if let Fault::OldDisk { node, .. } | Fault::CloneDisk { node, .. } = fault {
                let age = rng.between(100_000, 4_000_000);
                let copied = at.saturating_sub(age).max(3_000_000);
                steps.push(Step { at: copied, what: What::Fault(Fault::CopyDisk { node }) });
            }
            if let Fault::LoseDisk { node, .. } | Fault::Retire { node, .. } = fault {
                let before = at.saturating_sub(rng.between(20_000, 600_000)).max(3_000_000);
                let isolate = Fault::Isolate { node, peers: rng.bits() };
                steps.push(Step { at: before, what: What::Fault(isolate) });
                steps.push(Step { at: at + rng.between(10_000, 900_000), what: What::Fault(Fault::Heal) });
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

fn op(rng: &mut Rng) -> Op {
    match rng.below(100) {
        0..32 => Op::Create { project: rng.bits(), host: rng.bits(), size: rng.between(1, 4) },
        32..52 => Op::Delete { server: rng.bits() },
        52..64 => Op::Power { server: rng.bits(), power: rng.below(4) },
        64..74 => Op::Rename { server: rng.bits(), name: rng.below(20) },
        74..80 => Op::User { name: rng.below(8) },
        80..84 => Op::DeleteUser { name: rng.below(8) },
        84..85 => Op::Project { size: rng.between(10, 60) },
        85..88 => Op::Flavor { name: rng.below(6) },
        88..91 => Op::EditFlavor { flavor: rng.bits(), value: rng.bits() },
        91..92 => Op::DeleteFlavor { flavor: rng.bits() },
        92..93 if rng.below(4) == 0 => Op::DeleteProject { project: rng.bits() },
        93..96 => Op::Grow { pool: rng.bits(), size: rng.between(1, 5) },
        _ => Op::Burn { pool: rng.bits(), size: rng.between(1, 3) },
    }
}

fn fault(kind: &str, rng: &mut Rng) -> Fault {
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
        "join" => Fault::Join { site: rng.bits(), sponsor: rng.bits() },
        "skew" => Fault::Skew { node: rng.bits(), ahead: rng.below(300_000) },
        _ => Fault::Crash { node: rng.bits(), kept: rng.chance(500), down },
    }
}
