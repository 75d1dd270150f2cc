//! The suite as people use it: interrupted, killed, and pointed at a deployment that it did not start.
//!
//! Broken once each, and these tests failed: processes that are not tied to the suite; a suite that does not know endpoints as
//! people have them, and leaves its servers behind.
#![cfg(feature = "suite")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A run of the suite in a small cloud of its own, which goes on until it is ended.
struct Suite {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _out: tempfile::TempDir,
}

impl Suite {
    /// Starts one, and waits until its cloud is up.
    fn up(name: &str) -> Self {
        let out = tempfile::tempdir().unwrap();
        let mut command = jepsen();
        command.args(["run", "--name", name, "--sites", "2", "--doubled", "0", "--hosts", "0", "--nemesis", "none"]);
        command.args(["--workload", "register", "--rate", "2", "--time", "3600", "--out"]).arg(out.path());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let up = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("the cloud is up"));
        let suite = Self { process, lines, _out: out };
        assert!(up, "the cloud came up");
        suite
    }

    /// Sends it a signal, and gives what it ended with.
    fn end(&mut self, signal: &str) -> Option<i32> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        // It must not wait for somebody to read.
        self.lines.by_ref().map_while(Result::ok).for_each(drop);
        self.process.wait().unwrap().code()
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.end("-TERM");
        }
    }
}

fn jepsen() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jepsen"));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    command
}

/// What is there of a cloud: processes that name its directory, namespaces, mounts, files.
fn left(name: &str) -> Vec<String> {
    let root = format!("/run/luc-jepsen/{name}");
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&format!("{root}/")) {
            left.push(line);
        }
    }
    let namespaces = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let namespaces = namespaces.map(|entry| entry.file_name().to_string_lossy().into_owned());
    left.extend(namespaces.filter(|one| one.starts_with(&format!("wan-{name}."))));
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    left.extend(mounts.lines().filter(|line| line.contains(&format!("{root}/"))).map(str::to_owned));
    left.extend(Path::new(&root).exists().then_some(root));
    left
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1_200 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("waited in vain: {what}");
}

/// Namespaces are root's, and so are daemons of one's own.
fn is_possible() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    let tools = ["libvirtd", "virsh", "setpriv"];
    let there =
        |tool: &&str| Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap().status.success();
    let possible = root && Path::new("/dev/net/tun").exists() && tools.iter().all(there);
    if !possible {
        eprintln!("left out: it needs root, /dev/net/tun and {}", tools.join(", "));
        return false;
    }
    let luc = Path::new(env!("CARGO_BIN_EXE_jepsen")).with_file_name("luc");
    assert!(luc.exists(), "{} is missing: cargo build -p luc-api", luc.display());
    true
}

#[test]
fn nothing_is_left_after_ctrl_c_and_no_process_after_a_kill() {
    if !is_possible() {
        return;
    }
    let name = format!("c{}", std::process::id());
    let mut suite = Suite::up(&name);
    assert!(!left(&name).is_empty());
    assert_eq!(suite.end("-INT"), Some(3), "an interrupted run is none");
    assert_eq!(left(&name), Vec::<String>::new());

    let mut killed = Suite::up(&name);
    killed.end("-KILL");
    let is_process = |what: &String| !what.starts_with("luc-jepsen /run") && !what.starts_with("/run");
    eventually("processes and namespaces end with the suite", || !left(&name).iter().any(is_process));
    // Mounts and files go when the next one starts.
    let mut next = Suite::up(&name);
    next.end("-TERM");
    assert_eq!(left(&name), Vec::<String>::new());
}

#[test]
fn a_deployment_that_is_up_is_tried_with_its_owners_faults_and_left_as_it_was() {
    if !is_possible() {
        return;
    }
    let name = format!("d{}", std::process::id());
    let cloud = Suite::up(&name);
    let dir = tempfile::tempdir().unwrap();
    let (script, log) = (dir.path().join("fault"), dir.path().join("log"));
    std::fs::write(&script, format!("echo $1 >>{}\n", log.display())).unwrap();
    let mut command = Command::new("ip");
    command.args([
        "netns",
        "exec",
        &format!("wan-{name}.paris"),
        env!("CARGO_BIN_EXE_jepsen"),
        "run",
        "--workload",
        "set",
    ]);
    // As `OS_AUTH_URL` has it, and as it is; with its site's name, and without.
    command.args(["--endpoints", "http://10.77.0.1:8775/identity,lyon=http://10.77.0.2:8775", "--password", "jepsen"]);
    command.args([
        "--time",
        "25",
        "--every",
        "6s",
        "--seed",
        "7",
        "--fault-command",
        &format!("sh {}", script.display()),
    ]);
    let run = command.arg("--out").arg(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(0), "{said}{errors}");
    assert!(said.contains("taking away what runs have made there: 1 projects"), "{said}");
    assert!(!said.contains("could not be taken away"), "{said}");
    let calls = std::fs::read_to_string(&log).unwrap();
    let calls: Vec<&str> = calls.lines().collect();
    assert!(!calls.is_empty() && calls.chunks(2).all(|pair| pair == ["start", "stop"]), "{calls:?}");
    assert!(dir.path().join("report.html").exists());
    drop(cloud);
    assert_eq!(left(&name), Vec::<String>::new());
}
