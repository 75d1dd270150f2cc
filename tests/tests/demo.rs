//! The main job: the demo's story with real virtual machines, as `make demo ONCE=1` plays it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

use luc_tests::{luc, root};

#[test]
fn the_story_is_played_with_real_machines_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let demo = dir.path().join("demo");
    let mut command = Command::new(luc());
    command.current_dir(root()).args(["demo", "--once", "--dir"]).arg(&demo);
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("console: LUC-DEMO alice runs at paris"), "{text}");
    assert!(!demo.exists(), "the demo left its directory behind");
    let running = Command::new("pgrep").arg("-f").arg(dir.path()).output().unwrap();
    assert!(running.stdout.is_empty(), "left running: {}", String::from_utf8_lossy(&running.stdout));
}
