//! How much of the machine the run gets: a thread that asks, every second, how long a little work takes, beside how long it
//! would take alone; and who else uses the processors meanwhile.
//!
//! A site that leaves a client without an answer on a machine that somebody else keeps busy has broken nothing. Whether the
//! machine explains it is not for the site, nor for who waits for it, to say: this thread asks neither. What the run's own
//! processes use is no excuse, so that a site that spins does not excuse itself.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::recorder::Recorder;
use super::sampler::{Seen, sleep};
use crate::run::Pace;

/// From one burst of work to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Processor time of one burst: more than a scheduler gives at once to who has slept, and half a percent of a core.
const WORK: Duration = Duration::from_millis(5);

/// What Linux counts processor time in for programs, a second: USER_HZ, part of its interface.
const TICKS: u64 = 100;

/// Works and looks until it is told to stop. Processes in these network namespaces are the run's own, and so are those that
/// it has started.
pub fn probe(namespaces: &[PathBuf], recorder: &Recorder, seen: &Seen, stop: &AtomicBool) {
    let namespaces: BTreeSet<u64> =
        namespaces.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|file| file.ino()).collect();
    let (mut used, mut looked) = (own(&namespaces), Instant::now());
    let mut idle_before = idle();
    while !stop.load(Ordering::Relaxed) {
        let (due, planned) = (recorder.now() + nanos(EVERY), Instant::now() + EVERY);
        sleep(EVERY, stop);
        let work = burst();
        let late = planned.elapsed();
        let (now, own_now, idle_now) = (Instant::now(), own(&namespaces), idle());
        let passed = now.duration_since(looked);
        let pace = Pace {
            from: due,
            until: due + nanos(late.max(work)),
            work: nanos(work),
            others: others(passed, spent(&used, &own_now), idle_now.saturating_sub(idle_before)),
        };
        if !stop.load(Ordering::Relaxed) {
            seen.add_pace(pace);
        }
        (used, looked, idle_before) = (own_now, now, idle_now);
    }
}

/// Works for a while, and gives the processor time that it took.
fn burst() -> Duration {
    let begun = thread_time();
    let mut value = 1_u64;
    loop {
        for _ in 0..10_000 {
            value = std::hint::black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        let work = thread_time().saturating_sub(begun);
        if work >= WORK {
            return work;
        }
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// What of all processors neither was idle nor worked for the run, permille. Time that the machine itself did not get (it is
/// a guest, and its host was busy) is in it.
fn others(passed: Duration, own: Duration, idle: Duration) -> u32 {
    let processors = u32::try_from(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)).unwrap_or(1);
    let all = (passed * processors).as_micros().max(1);
    let rest = all.saturating_sub((own + idle).as_micros());
    u32::try_from(rest * 1_000 / all).unwrap_or(1_000)
}

/// Processor time of the run's processes, by process and its beginning.
type Used = HashMap<(u32, u64), Duration>;

fn spent(before: &Used, now: &Used) -> Duration {
    now.iter().map(|(process, used)| used.saturating_sub(before.get(process).copied().unwrap_or_default())).sum()
}

fn own(namespaces: &BTreeSet<u64>) -> Used {
    let mut all: HashMap<u32, (u32, u64, Duration)> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may just have ended.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        all.extend(parse(&stat).map(|process| (pid, process)));
    }
    let me = std::process::id();
    let descends = |pid: u32| {
        let mut at = pid;
        // As deep as any tree of processes is.
        for _ in 0..64 {
            match all.get(&at) {
                _ if at == me => return true,
                Some((parent, ..)) if *parent > 1 => at = *parent,
                _ => return false,
            }
        }
        false
    };
    let lives_there = |pid: u32| {
        let file = std::fs::metadata(format!("/proc/{pid}/ns/net"));
        file.is_ok_and(|file| namespaces.contains(&file.ino()))
    };
    let ours = all.iter().filter(|(pid, _)| descends(**pid) || (!namespaces.is_empty() && lives_there(**pid)));
    ours.map(|(pid, (_, begun, used))| ((*pid, *begun), *used)).collect()
}

/// The parent, the beginning and the processor time of a process, from its `stat` (proc(5)): after the name, which may
/// contain anything, the state is the first field, the parent the second, and so on.
fn parse(stat: &str) -> Option<(u32, u64, Duration)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    Some((u32::try_from(number(1)?).ok()?, number(19)?, ticks(number(11)? + number(12)?)))
}

/// Time that all processors together had nothing to do since the machine started.
fn idle() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let numbers: Vec<u64> = all.filter_map(|field| field.parse().ok()).collect();
    // Idle, and waiting for disks.
    ticks(numbers.iter().skip(3).take(2).sum())
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count.saturating_mul(1_000 / TICKS))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "42 (a) b (c) S 7 42 42 0 -1 4194560 100 0 0 0 150 50 9 9 20 0 1 0 777 1000 10";
        let (parent, begun, used) = parse(stat).unwrap();
        assert_eq!((parent, begun, used), (7, 777, ticks(200)));
        assert_eq!(parse("42 (a"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn what_is_neither_idle_nor_the_runs_is_others() {
        let processors = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(others(second, Duration::ZERO, second * processors), 0, "idle");
        assert_eq!(others(second, second * processors, Duration::ZERO), 0, "the run's own");
        assert_eq!(others(second, Duration::ZERO, Duration::ZERO), 1_000, "not seen at all: the machine was stopped");
        assert_eq!(others(second, second * processors, second), 0, "clocks are not exact");
    }

    #[test]
    fn the_suite_finds_itself_and_what_it_has_started() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = own(&BTreeSet::new());
        let has = |pid: u32| own.keys().any(|(process, _)| *process == pid);
        let (me, it, first) = (has(std::process::id()), has(child.id()), has(1));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(me && it && !first);
    }

    #[test]
    fn a_burst_takes_its_time() {
        assert!(burst() >= WORK);
    }
}
