//! The `luc` command: founding, joining and running sites, and looking at a cloud.

mod address_pools;
mod client;
mod config;
mod demo;
mod found;
mod host;
mod place;
mod pools;
mod remote;
mod run;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use luc_engine::id::SiteName;

/// LUC: one cloud out of many sites, with no centre.
///
/// Found a cloud with `luc init` at the first site and run it with `luc serve`. At each further site, `luc join` with
/// a token from `luc token`, then `luc serve`. People use the cloud with the OpenStack client.
#[derive(Parser)]
#[command(name = "luc", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Found a new cloud, with this machine as its first replica. Prints the administrator's password once.
    Init(Init),
    /// Print a one-time token that admits one further replica, or one further host's agent. Run it where a replica
    /// that may admit others keeps its data.
    Token(TokenArgs),
    /// Join a cloud with a token: as a further replica, or, with a host's token, as its agent.
    Join(Join),
    /// Run a replica, and an agent for this machine unless the configuration says otherwise.
    Serve(Configured),
    /// Run the agent of a further host, which speaks to the replicas of its site.
    Agent(Configured),
    /// Show sites, replicas, hosts, who reaches whom, and whether all agree.
    Status(StatusArgs),
    /// Show every pool: what was minted, burnt and claimed, who holds the rest and can be reached, and whether it adds up. Or
    /// make, change and delete address pools.
    Pools(PoolsArgs),
    /// Revoke the certificate of a replica: nobody who knows it talks to it any more.
    Revoke(Revoke),
    /// Retire replicas that are gone for good, or say that one was moved.
    #[command(subcommand)]
    Replica(ReplicaCommand),
    /// Declare a host dead, or let its machine come back.
    #[command(subcommand)]
    Host(HostCommand),
    /// Run three sites on this machine and play a story with them; or, while it is up, cut and heal the network.
    Demo(demo::DemoArgs),
}

#[derive(Args)]
struct Configured {
    /// The configuration file.
    #[arg(long, default_value = "/etc/luc/luc.toml")]
    config: PathBuf,
}

#[derive(Args)]
struct Init {
    #[command(flatten)]
    configured: Configured,
    /// Name of the first site: an availability zone (a-z, 0-9 and '-').
    #[arg(long)]
    site: SiteName,
    /// Where other replicas reach this one, host:port; repeat for several, the best first. Required unless the
    /// configuration file exists and says so.
    #[arg(long)]
    advertise: Vec<String>,
    /// Read the administrator's password from this file instead of making one up.
    #[arg(long)]
    password_file: Option<PathBuf>,
}

#[derive(Args)]
struct TokenArgs {
    #[command(flatten)]
    configured: Configured,
    /// The site that the newcomer belongs to: a new one, or one that is there.
    #[arg(long)]
    site: SiteName,
    /// Admit the agent of a host instead of a replica.
    #[arg(long)]
    agent: bool,
    /// How long the token works, minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// The new replica may not write users, projects and roles: its site can still use the cloud, not govern it.
    #[arg(long)]
    without_identity: bool,
    /// The new replica may not admit others, and does not get the authority's key.
    #[arg(long)]
    without_sponsor: bool,
}

#[derive(Args)]
struct Join {
    #[command(flatten)]
    configured: Configured,
    /// The token, as `luc token` printed it.
    token: String,
    /// Take the place of a replica that was retired, or whose store is a copy: its files are put aside, and the host of
    /// this machine and the images it holds are kept.
    #[arg(long)]
    replace: bool,
    /// Where other replicas reach this one, host:port; repeat for several, the best first. Required for replicas unless
    /// the configuration file exists and says so.
    #[arg(long)]
    advertise: Vec<String>,
}

#[derive(Args)]
struct StatusArgs {
    #[command(flatten)]
    configured: Configured,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct PoolsArgs {
    #[command(flatten)]
    shown: StatusArgs,
    #[command(subcommand)]
    command: Option<PoolsCommand>,
}

#[derive(Subcommand)]
enum PoolsCommand {
    /// Make an address pool. This site's replica becomes its root: it holds all addresses until other sites ask for some,
    /// and only there can addresses be added later.
    Create(CreatePool),
    /// Add addresses to a pool, or take away such as nobody uses.
    Set(SetPool),
    /// Delete a pool none of whose addresses is taken.
    Delete(DeletePool),
}

#[derive(Args)]
struct CreatePool {
    #[command(flatten)]
    shown: StatusArgs,
    /// The pool's name, which no other pool has.
    name: String,
    /// What it has, of one family: blocks, ranges and single addresses, like 198.51.100.0/24, 198.51.100.10-198.51.100.20,
    /// 2001:db8::7.
    #[arg(required = true, value_name = "ADDRESSES")]
    cidrs: Vec<String>,
    /// What it is for.
    #[arg(long)]
    description: Option<String>,
    /// What one site hands another is used only once this replica has countersigned it, for ever: a site that lies can hand
    /// no address to two halves of a split cloud. While this replica is out of reach, other sites get no more.
    #[arg(long)]
    confirmed: bool,
}

#[derive(Args)]
struct SetPool {
    #[command(flatten)]
    shown: StatusArgs,
    /// The pool's name or id.
    pool: String,
    /// Addresses that it gets, new to it: where it was made, at the pool's root (or the root's heir). Repeat for several.
    #[arg(long, value_name = "ADDRESSES")]
    add: Vec<String>,
    /// Addresses that it loses, for ever: it never has them again. Nobody may use any. Repeat for several.
    #[arg(long, value_name = "ADDRESSES")]
    remove: Vec<String>,
}

#[derive(Args)]
struct DeletePool {
    #[command(flatten)]
    shown: StatusArgs,
    /// The pool's name or id.
    pool: String,
}

#[derive(Args)]
struct Revoke {
    #[command(flatten)]
    configured: Configured,
    /// The replica's id, as `luc status` shows it.
    replica: luc_engine::id::ReplicaId,
}

#[derive(clap::Subcommand)]
enum ReplicaCommand {
    /// Retire replicas whose processes are stopped and will never start again. Their rights and claims go to the heir, once
    /// all other members have agreed on the last entry of each that counts. What they alone knew is lost. One that
    /// comes back is told so, and joins anew as another replica.
    Retire(Retire),
    /// Say that the store of this machine's replica was moved here, not copied: where it lay before it is gone for good,
    /// and nothing was written there since. The replica must be stopped. If that is not true, the replica forks its own
    /// chain, and the others refuse it for ever.
    Moved(Configured),
}

#[derive(Args)]
struct Retire {
    #[command(flatten)]
    configured: Configured,
    /// The replicas' ids, as `luc status` shows them.
    #[arg(required = true)]
    replicas: Vec<luc_engine::id::ReplicaId>,
    /// Who gets their rights and claims: best another replica of the same site. This machine's replica if not given.
    #[arg(long)]
    heir: Option<luc_engine::id::ReplicaId>,
    /// Take effect without more than half of the votes, which members have in equal parts. If another part of the cloud does the same, the two
    /// never become one again, and what both promise is promised twice.
    #[arg(long)]
    force: bool,
}

#[derive(clap::Subcommand)]
enum HostCommand {
    /// Declare a host dead: its machine is off, and will never again run what it ran. Its servers go to ERROR; deleting them
    /// frees what they hold, and they can be evacuated. Retiring a replica does not do this, and this retires no replica.
    /// At a replica of the host's own site; at an identity authority once all of that site's replicas are retired.
    Dead(Dead),
    /// Let the machine of a dead host come back: its agent stops and removes what others may run by now, and then takes servers
    /// again. At a replica of its own site.
    Revive(Revive),
}

#[derive(Args)]
struct Dead {
    #[command(flatten)]
    configured: Configured,
    /// The host's name or id, as `luc status` shows it.
    host: String,
    /// The machine is off. Without this, only what would follow is said.
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
struct Revive {
    #[command(flatten)]
    configured: Configured,
    /// The host's name or id.
    host: String,
}

/// Runs the command of this process.
#[must_use]
pub fn main() -> ExitCode {
    #[cfg(feature = "mutants")]
    if let Err(error) = crate::mutants::from_environment() {
        eprintln!("luc: {error}");
        return ExitCode::FAILURE;
    }
    let done = match Cli::parse().command {
        Command::Init(args) => found::init(&args),
        Command::Token(args) => found::token(&args),
        Command::Join(args) => found::join(&args),
        Command::Serve(args) => run::serve(&args.config),
        Command::Agent(args) => remote::agent(&args.config),
        Command::Status(args) => status::status(&args),
        Command::Pools(PoolsArgs { shown, command: None }) => pools::pools(&shown),
        Command::Pools(PoolsArgs { command: Some(command), .. }) => address_pools::run(&command),
        Command::Revoke(args) => status::revoke(&args),
        Command::Replica(ReplicaCommand::Retire(args)) => status::retire(&args),
        Command::Replica(ReplicaCommand::Moved(args)) => place::moved(&args.config),
        Command::Host(HostCommand::Dead(args)) => host::dead(&args),
        Command::Host(HostCommand::Revive(args)) => host::revive(&args),
        Command::Demo(args) => demo::demo(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("luc: {error:#}");
            ExitCode::FAILURE
        }
    }
}
