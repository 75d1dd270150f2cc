//! Seeded bugs, in test builds only (feature `mutants`): switched on for the whole process by the environment variable
//! `LUC_MUTANT`, which names one of the engine's or one of a site's. `jepsen prove` runs such sites.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use luc_engine::mutant::{self, Mutant};
use luc_engine::site_mutant::{self, SiteMutant, on};
use luc_engine::view::View;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::app::App;

/// Switches on what `LUC_MUTANT` names: as soon as the file that `LUC_MUTANT_WHEN` names is there, so that a cloud can be set
/// up first; at once without that.
///
/// # Errors
/// If there is none of that name.
pub(crate) fn from_environment() -> Result<(), String> {
    let Ok(name) = std::env::var("LUC_MUTANT") else { return Ok(()) };
    let of_site = SiteMutant::named(&name);
    let of_engine = Mutant::ALL.iter().find(|mutant| of_site.is_none() && format!("{mutant:?}") == name).copied();
    if of_site.is_none() && of_engine.is_none() {
        return Err(format!("LUC_MUTANT={name}: there is no such seeded bug"));
    }
    let switch = move || {
        // Who fills hosts beyond what they have must be let.
        let unchecked = (of_site == Some(SiteMutant::HostOverbooked)).then_some(Mutant::RightsUnchecked);
        of_engine.or(unchecked).into_iter().for_each(mutant::set_for_process);
        of_site.into_iter().for_each(site_mutant::set);
        eprintln!("luc: the seeded bug {name} is switched on: this is a test");
    };
    match std::env::var_os("LUC_MUTANT_WHEN").map(PathBuf::from).filter(|file| !file.exists()) {
        None => switch(),
        Some(file) => drop(std::thread::spawn(move || {
            while !file.exists() {
                std::thread::sleep(Duration::from_millis(50));
            }
            switch();
        })),
    }
    Ok(())
}

/// Metadata as they were some seconds ago, in place of those that are there.
pub(crate) fn as_it_was(server: Uuid, metadata: &mut BTreeMap<String, String>) {
    type Seen = HashMap<Uuid, Vec<(Instant, BTreeMap<String, String>)>>;
    static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(Mutex::default);
    if !on(SiteMutant::StaleWrite) {
        return;
    }
    let mut seen = SEEN.lock();
    let seen = seen.entry(server).or_default();
    seen.push((Instant::now(), metadata.clone()));
    if let Some((_, old)) = seen.iter().rev().find(|(at, _)| at.elapsed() > Duration::from_secs(5)) {
        metadata.clone_from(old);
    }
}

/// Whether what ended a token was so long ago that it is forgotten.
pub(crate) fn is_forgiven(audit: Uuid) -> bool {
    static ENDED: LazyLock<Mutex<HashMap<Uuid, Instant>>> = LazyLock::new(Mutex::default);
    let forgiven = |ended: &mut Instant| ended.elapsed() > Duration::from_secs(4);
    on(SiteMutant::TokenForgiven) && forgiven(ENDED.lock().entry(audit).or_insert_with(Instant::now))
}

/// A view that may be two seconds old.
pub(crate) fn stale(app: &App) -> Arc<View> {
    static KEPT: Mutex<Option<(Instant, Arc<View>)>> = Mutex::new(None);
    let mut kept = KEPT.lock();
    if let Some((_, view)) = kept.as_ref().filter(|(at, _)| at.elapsed() < Duration::from_secs(2)) {
        return view.clone();
    }
    let view = app.node().view();
    *kept = Some((Instant::now(), view.clone()));
    view
}

/// Waits for long if any of the others says nothing.
pub(crate) async fn ask_everybody(app: &App) {
    if !on(SiteMutant::AsksEverybody) {
        return;
    }
    let is_away = |heard: Option<Duration>| heard.is_none_or(|ago| ago > Duration::from_millis(1_500));
    if app.net().reach().iter().any(|reach| is_away(reach.heard)) {
        tokio::time::sleep(Duration::from_secs(12)).await;
    }
}
