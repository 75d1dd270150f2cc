//! `make bench-memory`: what a replica keeps in memory and on disk, in bytes, and what of it grows with history.
//!
//! The first part ([`known`]) lets one replica know a large cloud, and counts what each member, project, server and claim
//! costs it. The second ([`churn`]) lets three replicas make and unmake things a hundred thousand times, with folding on,
//! and says by how many bytes each of them, once it is over, has made memory and disk grow.
//!
//! Memory is what the allocator was asked for and not given back, exactly; not what the process has of the machine.

#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::cast_precision_loss, reason = "figures for people, not state")]

mod churn;
mod known;

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;

/// The system's allocator, which counts.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above; `at` came from `System.alloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of memory in use.
fn in_use() -> usize {
    IN_USE.load(Ordering::Relaxed)
}

/// How much more one figure is than another.
fn more(now: usize, before: usize) -> f64 {
    now as f64 - before as f64
}

#[derive(Parser)]
#[command(about = "What a replica keeps in memory and on disk, and what of it grows with history")]
struct Cli {
    /// Only the first part: a large cloud.
    #[arg(long, conflicts_with = "churn")]
    known: bool,
    /// Only the second part: growth; or only of what has this in its name.
    #[arg(long, num_args = 0..=1, default_missing_value = "")]
    churn: Option<String>,
    /// Members of the large cloud.
    #[arg(long, default_value_t = 500)]
    members: u32,
    /// Its projects.
    #[arg(long, default_value_t = 1_000)]
    projects: u32,
    /// Servers that are made and deleted; of other things a tenth of that.
    #[arg(long, default_value_t = 100_000)]
    servers: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let known = if cli.churn.is_some() { Ok(()) } else { known::measure(cli.members, cli.projects) };
    let only = cli.churn.unwrap_or_default();
    let done = known.and_then(|()| if cli.known { Ok(()) } else { churn::measure(cli.servers, &only) });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memory: {error}");
            ExitCode::FAILURE
        }
    }
}
