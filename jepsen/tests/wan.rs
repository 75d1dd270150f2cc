//! The WAN emulator: what its lines do to frames, by seed and time alone; and a real one, in namespaces of its own.
//!
//! Broken once each, and these tests failed: jitter that reorders; a cut that lets what is under way out; a rate that is
//! forgotten between two frames; one direction cut for both; namespaces of a killed switch that stay.
#![cfg(feature = "wan")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use jepsen::wan::command::{Refused, obey};
use jepsen::wan::line::{MILLI, Nanos, SECOND};
use jepsen::wan::switch::{Fate, Switch};
use proptest::prelude::*;

fn switch(seed: u64, orders: &[&str]) -> Switch {
    let mut switch = Switch::new(["paris", "lyon", "rennes"].map(str::to_owned).to_vec(), seed);
    for order in orders {
        obey(&mut switch, order, 0).unwrap();
    }
    switch
}

/// Puts `count` numbered frames on the line from paris to lyon, one every `gap`, and gives when each came out.
fn send(switch: &mut Switch, count: u32, gap: Nanos, size: usize) -> Vec<(Nanos, u32)> {
    let mut out = Vec::new();
    let drain = |switch: &mut Switch, until: Nanos, out: &mut Vec<(Nanos, u32)>| {
        while let Some(at) = switch.next().filter(|at| *at <= until) {
            if let Some(frame) = switch.take(at) {
                out.push((at, u32::from_be_bytes(frame.bytes[..4].try_into().unwrap())));
            }
        }
    };
    for number in 0..count {
        let now = Nanos::from(number) * gap;
        drain(switch, now, &mut out);
        let mut bytes = vec![0; size.max(4)];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        if let Fate::Now(copies) = switch.put(now, 0, 1, &bytes) {
            out.extend((0..copies).map(|_| (now, number)));
        }
    }
    drain(switch, Nanos::MAX, &mut out);
    out
}

#[test]
fn a_perfect_line_keeps_nothing_and_one_with_delay_keeps_each_frame_so_long() {
    let mut perfect = switch(1, &[]);
    assert_eq!(perfect.put(7, 0, 1, b"frame"), Fate::Now(1));
    assert_eq!(perfect.next(), None);
    let out = send(&mut switch(1, &["set paris lyon delay=25ms"]), 100, MILLI, 100);
    assert!(out.iter().all(|(at, number)| *at == Nanos::from(*number) * MILLI + 25 * MILLI));
    assert_eq!(out.len(), 100);
}

#[test]
fn a_line_of_limited_rate_is_busy_with_each_frame_and_loses_what_would_wait_too_long() {
    // 1,000 bytes take 8 ms at 1 Mbit/s; the queue of 100 ms has room for 13 of them.
    let mut slow = switch(1, &["set paris lyon rate=1mbit"]);
    let out = send(&mut slow, 50, 0, 1_000);
    let times: Vec<Nanos> = out.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, (1..=13).map(|n| n * 8 * MILLI).collect::<Vec<_>>());
    assert_eq!(slow.line(0, 1).unwrap().counts.full, 37);
}

#[test]
fn what_is_under_way_when_a_line_is_cut_is_lost_and_the_other_direction_goes_on() {
    let mut cut = switch(1, &["set * * delay=10ms"]);
    assert_eq!(cut.put(0, 0, 1, b"before"), Fate::Later);
    obey(&mut cut, "cut paris lyon oneway", MILLI).unwrap();
    assert_eq!(cut.put(2 * MILLI, 0, 1, b"meanwhile"), Fate::Lost);
    assert_eq!(cut.put(2 * MILLI, 1, 0, b"back"), Fate::Later);
    assert_eq!(cut.put(2 * MILLI, 0, 2, b"aside"), Fate::Later);
    let out: Vec<_> = std::iter::from_fn(|| cut.take(SECOND)).map(|frame| frame.bytes.to_vec()).collect();
    assert_eq!(out, [b"back".to_vec(), b"aside".to_vec()]);
    obey(&mut cut, "heal", SECOND).unwrap();
    assert_eq!(cut.put(SECOND, 0, 1, b"after"), Fate::Later);
    assert_eq!(cut.line(0, 1).unwrap().quality.delay, 10 * MILLI, "healing leaves the rest alone");
}

#[test]
fn cuts_of_groups_bridges_isolation_and_flapping() {
    let up = |switch: &Switch, now| -> BTreeSet<(usize, usize)> {
        let all = (0..3).flat_map(|a| (0..3).map(move |b| (a, b))).filter(|(a, b)| a != b);
        all.filter(|(a, b)| switch.line(*a, *b).unwrap().state.is_up(now)).collect()
    };
    // Paris and rennes cannot hear each other, lyon hears both: a bridge.
    assert_eq!(up(&switch(1, &["cut paris rennes"]), 0), BTreeSet::from([(0, 1), (1, 0), (1, 2), (2, 1)]));
    assert_eq!(up(&switch(1, &["cut paris,lyon rennes"]), 0), BTreeSet::from([(0, 1), (1, 0)]));
    assert_eq!(up(&switch(1, &["isolate lyon"]), 0), BTreeSet::from([(0, 2), (2, 0)]));
    assert_eq!(up(&switch(1, &["cut * *", "heal paris lyon oneway"]), 0), BTreeSet::from([(0, 1)]));
    let flapping = switch(1, &["flap paris lyon up=2s down=1s oneway"]);
    let line = flapping.line(0, 1).unwrap();
    let states: Vec<bool> = (0..7).map(|second| line.state.is_up(second * SECOND)).collect();
    assert_eq!(states, [false, true, true, false, true, true, false]);
}

#[test]
fn frames_go_where_their_address_is_and_to_all_where_that_is_not_known() {
    let mut switch = switch(1, &[]);
    let frame = |to: [u8; 6], from: [u8; 6]| [to, from].concat();
    let foreign = [2, 9, 9, 9, 9, 9];
    assert_eq!(switch.destinations(0, &frame(Switch::address(2), Switch::address(0))), [2]);
    assert_eq!(switch.destinations(0, &frame([0xff; 6], Switch::address(0))), [1, 2]);
    assert_eq!(switch.destinations(0, &frame(foreign, Switch::address(0))), [1, 2]);
    assert_eq!(switch.destinations(2, &frame([0xff; 6], foreign)), [0, 1]);
    assert_eq!(switch.destinations(0, &frame(foreign, Switch::address(0))), [2], "learnt");
    assert_eq!(switch.destinations(0, &frame(Switch::address(7), Switch::address(0))), [1, 2], "no such site");
    assert_eq!(switch.destinations(0, b"short"), Vec::<usize>::new());
}

#[test]
fn what_is_not_understood_changes_nothing() {
    let mut switch = switch(1, &["set paris lyon delay=1.5ms loss=0.25% rate=2.5mbit"]);
    let quality = switch.line(0, 1).unwrap().quality.clone();
    assert_eq!((quality.delay, quality.loss, quality.rate), (1_500_000, 2_500, Some(2_500_000)));
    for bad in [
        "",
        "set",
        "set paris",
        "set paris nice delay=1ms",
        "set paris lyon delay=1",
        "set paris lyon delay=-1ms",
        "set paris lyon loss=101%",
        "set paris lyon loss=0.1",
        "set paris lyon rate=0mbit",
        "set paris lyon delay",
        "set paris lyon delay=2ms colour=red",
        "set paris lyon delay=99999999999999999999s",
        "cut paris",
        "cut paris lyon 3",
        "flap paris lyon up=1s",
        "isolate",
        "isolate paris lyon",
        "heal paris",
        "show me",
        "dance",
    ] {
        assert!(obey(&mut switch, bad, 0).is_err(), "{bad}");
        assert_eq!(switch.line(0, 1).unwrap().quality, quality, "{bad}");
        assert!(switch.line(0, 1).unwrap().state.is_up(0), "{bad}");
    }
    assert_eq!(obey(&mut switch, "cut paris nice", 0), Err(Refused::Site("nice".into())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Without reordering, frames come out in the order in which they were put in, none before its time, whatever else is
    /// done to them; and the counts add up.
    #[test]
    fn in_order_never_early_and_counted(
        seed in any::<u64>(), delay in 0_u64..50, jitter in 0_u64..80, loss in 0_u64..60, duplicate in 0_u64..60,
        rate in prop::option::of(1_u64..1_000), gap in 0_u64..3,
    ) {
        let rate = rate.map_or("none".to_owned(), |rate| format!("{rate}mbit"));
        let set = format!("set paris lyon delay={delay}ms jitter={jitter}ms loss={loss}% duplicate={duplicate}% rate={rate}");
        let mut switch = switch(seed, &[&set]);
        let out = send(&mut switch, 300, gap * MILLI, 500);
        prop_assert!(out.windows(2).all(|pair| pair[0].1 <= pair[1].1), "in order");
        let earliest = |number: u32| Nanos::from(number) * gap * MILLI + delay.saturating_sub(jitter) * MILLI;
        prop_assert!(out.iter().all(|(at, number)| *at >= earliest(*number)));
        let counts = switch.line(0, 1).unwrap().counts;
        prop_assert_eq!(counts.passed, out.len() as u64);
        prop_assert_eq!(counts.passed + counts.lost + counts.full, 300 + counts.doubled);
        prop_assert_eq!(switch.next(), None);
    }

    /// What chance does follows from the seed.
    #[test]
    fn a_seed_repeats_itself(seed in any::<u64>()) {
        let orders = ["set paris lyon delay=10ms jitter=5ms loss=10% duplicate=10% reorder=10%"];
        let run = || send(&mut switch(seed, &orders), 200, MILLI, 100);
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn chance_is_what_it_is_said_to_be() {
    let mut switch = switch(5, &["set paris lyon delay=10ms loss=2% duplicate=1% reorder=3%"]);
    let out = send(&mut switch, 100_000, MILLI, 100);
    let counts = switch.line(0, 1).unwrap().counts;
    assert!((1_800..2_200).contains(&counts.lost), "{counts:?}");
    assert!((850..1_150).contains(&counts.doubled), "{counts:?}");
    assert!((2_700..3_200).contains(&counts.held_back), "{counts:?}");
    assert!(out.windows(2).any(|pair| pair[0].1 > pair[1].1), "some were overtaken");
}

/// A network that is ended when dropped, and then leaves nothing.
struct Wan {
    name: String,
    switch: Child,
}

impl Wan {
    fn up(name: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wan"));
        command.args(["--net", name, "up", "paris", "lyon", "rennes"]).stdout(Stdio::piped());
        let mut switch = command.spawn().unwrap();
        let lines = BufReader::new(switch.stdout.take().unwrap()).lines();
        let up = lines.map_while(Result::ok).any(|line| line == "up");
        let wan = Self { name: name.to_owned(), switch };
        assert!(up, "the network came up");
        wan
    }

    fn tell(&self, words: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wan"));
        let output = command.args(["--net", &self.name]).args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Sends datagrams from one site to an address, until an answer comes or so many were sent.
    fn hears(&self, from: &str, address: &str, tries: u32) -> bool {
        let program = format!(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(0.5)\n\
             for _ in range({tries}):\n    s.sendto(b'x', ('{address}', 4000))\n    try:\n        s.recv(9)\n        \
             print('heard')\n        break\n    except OSError:\n        pass"
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_wan"));
        command.args(["--net", &self.name, "exec", from, "--", "python3", "-c", &program]);
        String::from_utf8(command.output().unwrap().stdout).unwrap().contains("heard")
    }

    /// Answers datagrams at a site; ended with its network.
    fn echo(&self, at: &str) {
        let program = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 4000))\n\
                       print('up', flush=True)\nwhile True:\n    d, a = s.recvfrom(9)\n    s.sendto(d, a)";
        let mut command = Command::new(env!("CARGO_BIN_EXE_wan"));
        command.args(["--net", &self.name, "exec", at, "--", "python3", "-c", program]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "up");
        std::thread::spawn(move || child.wait());
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wan"));
        let _ = command.args(["--net", &self.name, "down"]).stderr(Stdio::null()).status();
        let _ = self.switch.kill();
        let _ = self.switch.wait();
        let mut command = Command::new(env!("CARGO_BIN_EXE_wan"));
        let _ = command.args(["--net", &self.name, "clean"]).status();
    }
}

fn namespaces(network: &str) -> usize {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    names.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("wan-{network}."))).count()
}

/// Namespaces are root's.
fn is_possible() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    let possible = root && std::path::Path::new("/dev/net/tun").exists();
    if !possible {
        eprintln!("left out: only root can make namespaces, and /dev/net/tun must be there");
    }
    possible
}

#[test]
fn programs_hear_each_other_through_it_and_not_through_a_cut() {
    if !is_possible() {
        return;
    }
    let name = format!("a{}", std::process::id());
    let wan = Wan::up(&name);
    wan.echo("lyon");
    assert!(wan.hears("paris", "10.77.0.2", 20));
    wan.tell("cut paris lyon oneway");
    assert!(!wan.hears("paris", "10.77.0.2", 2));
    assert!(wan.hears("rennes", "10.77.0.2", 20));
    wan.tell("heal");
    wan.tell("set * * delay=5ms jitter=1ms loss=30% duplicate=5% reorder=5% rate=10mbit");
    assert!(wan.hears("paris", "10.77.0.2", 60));
    let told: serde_json::Value = serde_json::from_str(&wan.tell("show --json")).unwrap();
    assert!(told["lines"][0]["cut"].as_u64().unwrap() >= 2, "{told}");
    assert_eq!(namespaces(&name), 3);
    drop(wan);
    assert_eq!(namespaces(&name), 0);
    assert!(!std::path::Path::new("/run/luc-wan").join(&name).exists());
}

#[test]
fn what_a_killed_switch_left_is_taken_away_by_the_next_and_a_living_one_is_left_alone() {
    if !is_possible() {
        return;
    }
    let name = format!("b{}", std::process::id());
    let mut first = Wan::up(&name);
    first.echo("lyon");
    let again = Command::new(env!("CARGO_BIN_EXE_wan")).args(["--net", &name, "up", "paris"]).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("is up already"));
    first.switch.kill().unwrap();
    first.switch.wait().unwrap();
    assert_eq!(namespaces(&name), 3, "nobody was left to take them away");
    let second = Wan::up(&name);
    assert!(!second.hears("paris", "10.77.0.2", 1), "what ran in lyon was ended");
    second.echo("lyon");
    assert!(second.hears("paris", "10.77.0.2", 20));
    drop((second, first));
    assert_eq!(namespaces(&name), 0);
}
