//! `jepsen`: the consistency suite's command.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use jepsen::sim::sometimes::{Sometimes, State};
use jepsen::sim::{self, Plan, workload};

#[derive(Parser)]
#[command(about = "LUC's consistency suite")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs seeds on the simulator; ends with the first that breaks a rule.
    Sim(SimArgs),
    /// Switches each seeded bug on and says which rule catches it.
    Mutants(MutantArgs),
    /// Tries a cloud of real processes with clients, faults and checkers.
    #[cfg(feature = "suite")]
    Run(Box<jepsen::runner::cli::RunArgs>),
    /// Judges a run that was written, once more.
    #[cfg(feature = "suite")]
    Check(jepsen::runner::cli::CheckArgs),
    #[cfg(feature = "suite")]
    Prove(jepsen::prove::ProveArgs),
    /// The network of a run.
    #[cfg(feature = "suite")]
    #[command(hide = true)]
    Switch { net: String, seed: u64, sites: Vec<String> },
}

#[derive(Args)]
struct World {
    /// Replicas at the start, one a site.
    #[arg(long, default_value_t = 8)]
    sites: usize,
    /// Operations of each seed.
    #[arg(long, default_value_t = 2_000)]
    ops: usize,
    /// Faults, separated by commas; `none` for none. All but `liar` unless told; a seeded bug has its own.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
}

#[derive(Args)]
struct SimArgs {
    /// The only seed, or the first.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds from there on.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Run further seeds for so many hours.
    #[arg(long)]
    hours: Option<f64>,
    #[command(flatten)]
    world: World,
    /// Seeds at once.
    #[arg(long, default_value_t = threads())]
    threads: usize,
    /// Write the trace of the one seed, though it breaks nothing.
    #[arg(long)]
    trace: bool,
    /// Runs spent on shrinking a failure.
    #[arg(long, default_value_t = 300)]
    shrink: usize,
    /// Do not demand that the seeds reach every hard state.
    #[arg(long)]
    any_states: bool,
}

#[derive(Args)]
struct MutantArgs {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seeds that a seeded bug may survive before it counts as not caught.
    #[arg(long, default_value_t = 60)]
    seeds: u64,
    /// Only these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Run all seeds, and say how many of them catch each.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    world: World,
    /// Seeds at once.
    #[arg(long, default_value_t = threads())]
    threads: usize,
}

/// So many seeds, of so many operations each, must have reached every hard state that their faults can bring about.
const DEMANDING: (u64, usize) = (100, 1_000);

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Sim(args) => simulate(&args),
        Command::Mutants(args) => mutants(&args),
        #[cfg(feature = "suite")]
        Command::Run(args) => jepsen::runner::cli::run(&args),
        #[cfg(feature = "suite")]
        Command::Check(args) => jepsen::runner::cli::check(&args),
        #[cfg(feature = "suite")]
        Command::Prove(args) => jepsen::prove::prove(&args),
        #[cfg(feature = "suite")]
        Command::Switch { net, seed, sites } => match jepsen::wan::up::up(&net, sites, jepsen::cluster::FIRST, seed) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.to_string()),
        },
    }
}

/// The plan that was asked for, with these faults if none were named.
fn plan(world: &World, usual: &[&str]) -> Result<Plan, String> {
    let usual: Vec<String> = usual.iter().map(|name| (*name).to_owned()).collect();
    let named = if world.faults.is_empty() { usual } else { world.faults.clone() };
    let faults: BTreeSet<String> = named.into_iter().filter(|name| name != "none").collect();
    match faults.iter().find(|name| !workload::FAULTS.contains(&name.as_str())) {
        Some(unknown) => Err(format!("no fault is called {unknown:?}; there are {}", workload::FAULTS.join(", "))),
        None => Ok(Plan { sites: world.sites, ops: world.ops, faults }),
    }
}

fn simulate(args: &SimArgs) -> ExitCode {
    let plan = match plan(&args.world, workload::HONEST) {
        Ok(plan) => plan,
        Err(error) => return failed(&error),
    };
    let started = Instant::now();
    let until = args.hours.map(|hours| Duration::from_secs_f64(hours * 3600.0));
    let next = AtomicU64::new(args.seed);
    let stop = AtomicBool::new(false);
    let all = Mutex::new((Sometimes::default(), 0_u64, None));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let more = until.map_or(seed - args.seed < args.seeds, |until| started.elapsed() < until);
            if !more {
                return;
            }
            let outcome = sim::seed(&plan, seed);
            if args.seeds == 1 && until.is_none() {
                let took = outcome.took / 1_000_000;
                println!(
                    "seed {seed}: trace {}, {} events, {} entries, {took} s",
                    outcome.hash, outcome.events, outcome.entries
                );
            }
            let Ok(mut all) = all.lock() else { return };
            all.0.add(&outcome.sometimes);
            all.1 += 1;
            if let Some(broken) = outcome.broken {
                stop.store(true, Ordering::Relaxed);
                all.2.get_or_insert((seed, broken));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(work);
        }
    });
    let Ok((sometimes, seeds, broken)) = all.into_inner() else { return ExitCode::FAILURE };
    let seconds = started.elapsed().as_secs_f64();
    println!("{seeds} seeds in {seconds:.1} s");
    if let Some((seed, broken)) = broken {
        println!("seed {seed}: rule {} is broken: {}", broken.rule, broken.how);
        return write_story(&plan, seed, broken.rule, args.shrink);
    }
    if args.trace {
        let steps = workload::schedule(args.seed, plan.ops, &plan.faults);
        let outcome = sim::run(&plan, args.seed, steps, true);
        outcome.lines.iter().for_each(|line| println!("{line}"));
    }
    for state in State::ALL {
        println!("{:>9} × {}", sometimes.count(*state), state.text());
    }
    let missing = if args.any_states || seeds < DEMANDING.0 || plan.ops < DEMANDING.1 {
        Vec::new()
    } else {
        sometimes.missing(&plan.faults)
    };
    match missing.first() {
        Some(state) => failed(&format!("never seen: {}", state.text())),
        None => ExitCode::SUCCESS,
    }
}

fn write_story(plan: &Plan, seed: u64, rule: sim::rules::Rule, budget: usize) -> ExitCode {
    let text = sim::story(plan, seed, rule, budget);
    let path = std::path::Path::new("target/sim");
    let file = path.join(format!("{seed}.txt"));
    match std::fs::create_dir_all(path).and_then(|()| std::fs::write(&file, &text)) {
        Ok(()) => {
            let head: Vec<&str> = text.lines().take_while(|line| *line != "what happens:").collect();
            println!("{}\nthe story is in {}", head.join("\n"), file.display());
        }
        Err(error) => println!("{text}\n{}: {error}", file.display()),
    }
    println!("again: cargo run -p jepsen -- sim --seed {seed} --sites {} --ops {}", plan.sites, plan.ops);
    ExitCode::FAILURE
}

/// Steps of a short story.
#[cfg(feature = "mutants")]
const SHORT: usize = 10;

#[cfg(not(feature = "mutants"))]
fn mutants(_: &MutantArgs) -> ExitCode {
    failed("this build has no seeded bugs: use `make mutants`")
}

#[cfg(feature = "mutants")]
fn mutants(args: &MutantArgs) -> ExitCode {
    use luc_engine::mutant::Mutant;
    use sim::mutants::{Hunt, NOT_PLAYED, faults, hunt, shrink};

    let among = |mutant: Mutant| {
        let own = faults(mutant);
        plan(&args.world, if own.is_empty() { workload::HONEST } else { own })
    };
    let seeds = || args.seed..args.seed.saturating_add(args.seeds);
    let how = Hunt { threads: args.threads, all: args.all };
    let due = |mutant: &&Mutant| match args.only.is_empty() {
        true => !NOT_PLAYED.contains(*mutant),
        false => args.only.contains(&format!("{mutant:?}")),
    };
    println!("{:<24} {:<8} {:<26} {:>6} {:>9}", "seeded bug", "breaks", "caught by", "seed", "seconds");
    let mut escaped = 0;
    for mutant in Mutant::ALL.iter().filter(due) {
        let plan = match among(*mutant) {
            Ok(plan) => plan,
            Err(error) => return failed(&error),
        };
        let caught = hunt(&plan, *mutant, seeds(), how);
        let (rule, seed) = caught.by.map_or_else(Default::default, |(rule, seed)| (rule.to_string(), seed.to_string()));
        escaped += u32::from(caught.by.is_none());
        let (name, breaks) = (format!("{mutant:?}"), mutant.rules());
        let times = if args.all { format!("  {} of {}", caught.times, args.seeds) } else { String::new() };
        println!("{name:<24} {breaks:<8} {rule:<26} {seed:>6} {:>9.1}{times}", caught.seconds);
    }
    if escaped > 0 {
        return failed(&format!("{escaped} seeded bugs were not caught"));
    }
    // A failure is told by what it needs: a server that is made and deleted, and what that takes.
    let example = Mutant::ReleaseWithoutWord;
    let Ok(plan) = among(example) else { return ExitCode::FAILURE };
    let Some(at) = hunt(&plan, example, seeds(), Hunt { all: false, ..how }).by else { return ExitCode::FAILURE };
    let steps = shrink(&plan, example, at, 400);
    println!("{example:?} at seed {} takes {steps} steps", at.1);
    if steps <= SHORT { ExitCode::SUCCESS } else { failed("its story is not short") }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("jepsen: {why}");
    ExitCode::FAILURE
}
