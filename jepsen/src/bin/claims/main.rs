//! `make bench-claims`: what a claim costs here, and how often one is refused though rights were free elsewhere.
//!
//! The first part ([`rate`]) drives one `Replica` on a store in memory: no disk, no network, one core. The second
//! ([`refusals`]) drives eight sites on virtual time, through a cut, beside the two designs that everybody thinks of
//! first: fixed equal shares, and one central counter. It writes the picture that `docs/reservations.md` shows.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures for people, not state")]

mod baseline;
mod escrow;
mod load;
mod plot;
mod rate;
mod refusals;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(about = "What a claim costs, and how often one is refused in vain")]
struct Cli {
    /// Seeds of each combination of the second part.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// Only the first part.
    #[arg(long, conflicts_with = "refusals")]
    rate: bool,
    /// Only the second part.
    #[arg(long)]
    refusals: bool,
    /// Where the picture goes.
    #[arg(long, default_value = "docs/false-refusals.svg")]
    svg: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let rate = if cli.refusals { Ok(()) } else { rate::measure() };
    let done = rate.and_then(|()| if cli.rate { Ok(()) } else { refusals::measure(cli.seeds, &cli.svg) });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("claims: {error}");
            ExitCode::FAILURE
        }
    }
}
