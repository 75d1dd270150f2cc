//! Images uploaded at one site, downloaded and booted at others, with cuts in the middle; and addresses of one pool, taken
//! everywhere.
//!
//! Data are what was uploaded, byte for byte, wherever they are read, or there is no answer; what was acknowledged can be
//! had everywhere in the end; servers boot from it. No address is ever given to two.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::stage::{
    Anomaly, Excused, INSIST, Rule, Stage, Worth, ended, failed_with, indices, lock, one_of, result, site_of, text,
};
use super::story::Story;
use super::{Cloud, Invocation, Seeded, Session, Verdict, Workload};
use crate::client::{Answer, Client, Trouble};
use crate::history::{History, Kind, Outcome, Pair};
use crate::sim::rng::Rng;

const NAME: &str = "images";
/// How long data may travel from another site: over a narrow line, or a far one, as long as all else together.
const TRAVEL: Duration = Duration::from_secs(30);
/// Sizes of images, KiB.
const SIZES: (u64, u64) = (16, 768);
/// So many images, and servers, are there at a time.
const IMAGES: usize = 8;
const SERVERS: usize = 6;
/// Addresses of the pool: few, so that they run out.
const BLOCK: &str = "198.51.100.0/27";
/// How long a server may take to boot after everything was healed.
const BOOT: Duration = Duration::from_secs(300);

const INTACT: Rule = Rule {
    workload: NAME,
    checker: "checksum",
    rule: "An image's data are, wherever they are read, those that were uploaded.",
};
const FOUND: Rule = Rule {
    workload: NAME,
    checker: "image-lost",
    rule: "In the end an image that was acknowledged, and that nobody tried to delete, can be had at every site.",
};
const BOOTS: Rule =
    Rule { workload: NAME, checker: "boots", rule: "In the end every server runs that was to boot from one." };
const UNIQUE: Rule = Rule {
    workload: NAME,
    checker: "unique-addresses",
    rule: "No address is given out again before somebody has begun to return it.",
};

/// The workload.
#[derive(Default)]
pub(super) struct Images {
    stage: Stage,
    pool: OnceLock<String>,
    images: Mutex<Vec<String>>,
    servers: Mutex<Vec<String>>,
    claims: Mutex<Vec<String>>,
    /// Until when images are asked for again in the end: all of them together.
    insists: OnceLock<Instant>,
}

impl Workload for Images {
    fn name(&self) -> &'static str {
        NAME
    }

    fn setup(&self, cloud: &Cloud, clients: &[Client]) -> Result<()> {
        let quota = json!({"instances": 1_000, "cores": 1_000, "ram": 1 << 30});
        self.stage.prepare(cloud, clients, NAME, (1, 64), &quota)?;
        let name = &self.stage.ground()?.name;
        let made = clients.first().context("a cloud without sites")?;
        let made = made.post("/luc/v1/pools", &json!({"name": name, "cidrs": [BLOCK]}))?;
        let pool = text(&made["pool"]["subject"], "address_pool").to_owned();
        for client in clients {
            client.insist(INSIST, |client| client.get(&format!("/luc/v1/pools/{pool}")))?;
        }
        let _ = self.pool.set(pool);
        Ok(())
    }

    fn next(&self, session: &mut Session) -> Option<Invocation> {
        let bits = session.rng.bits();
        let (images, servers) = (lock(&self.images).clone(), lock(&self.servers).clone());
        let image = one_of(&images, bits);
        let on_image = |f: &'static str| image.map(|id| Invocation { f, value: json!({"image": id}) });
        match session.rng.below(100) {
            0..=14 if images.len() < IMAGES => {
                let size = session.rng.between(SIZES.0, SIZES.1) << 10;
                let number = self.stage.fresh();
                Some(Invocation { f: "upload", value: json!({"number": number, "size": size}) })
            }
            0..=49 => on_image("download"),
            50..=54 if images.len() >= IMAGES => on_image("delete"),
            50..=59 if servers.len() < SERVERS => {
                let (image, zone) = (image?, self.stage.any_site(session));
                let name = format!("boot-{}", self.stage.fresh());
                Some(Invocation { f: "boot", value: json!({"image": image, "name": name, "zone": zone}) })
            }
            50..=62 => one_of(&servers, bits).map(|id| Invocation { f: "halt", value: json!({"id": id}) }),
            63..=84 => Some(Invocation { f: "claim", value: json!({"count": session.rng.between(1, 3)}) }),
            _ => {
                let claims = lock(&self.claims).clone();
                one_of(&claims, bits).map(|claim| Invocation { f: "release", value: json!({"id": claim}) })
            }
        }
    }

    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome {
        self.run(session, invocation).map_or_else(Outcome::from, Outcome::Ok)
    }

    fn finish(&self, session: &mut Session) -> Vec<Invocation> {
        let images = lock(&self.images).clone();
        let each = images.into_iter().map(|id| Invocation { f: "final", value: json!({"image": id}) });
        let boots = (session.at == 0).then(|| Invocation { f: "booted", value: json!({}) });
        each.chain(boots).collect()
    }

    fn check(&self, history: &History, all: &History) -> Vec<Verdict> {
        let excused = Excused::of(all);
        let pairs = history.pairs();
        let any = |f: &str| pairs.iter().any(|pair| pair.invoke.f == f && pair.is_ok());
        // A pool that is used up, and data that are out of reach, are what is tried for.
        let wanted = |pair: &Pair<'_>| failed_with(pair, "taken") || pair.invoke.f == "download";
        let worth = Worth::of(history, 20, wanted);
        let intact = worth.clone().needs(any("download") || any("final"), "nothing was downloaded");
        let last = worth.clone().needs(pairs.iter().any(|pair| pair.invoke.f == "final"), "nobody read in the end");
        let boots = worth.clone().needs(any("booted"), "nobody looked what has booted");
        let unique = worth.needs(any("claim"), "no address was given out");
        vec![
            INTACT.verdict(&intact, changed(&pairs)),
            FOUND.verdict(&last, lost(&pairs, &excused)),
            BOOTS.verdict(&boots, unbooted(&pairs, &excused)),
            UNIQUE.verdict(&unique, given_twice(&pairs, &excused)),
        ]
    }
}

impl Images {
    fn run(&self, session: &Session, invocation: &Invocation) -> Result<Value, Trouble> {
        let (client, value) = (self.stage.client(session)?, &invocation.value);
        let pool = self.pool.get().map(String::as_str).unwrap_or_default();
        match invocation.f {
            "upload" => self.upload(&client, value),
            "download" => download(&client.patient(TRAVEL), text(value, "image")),
            "final" => {
                let until = self.insists.get_or_init(|| Instant::now() + INSIST);
                let left = until.saturating_duration_since(Instant::now());
                client.patient(INSIST).insist(left, |client| download(client, text(value, "image")))
            }
            "delete" => {
                let id = text(value, "image");
                lock(&self.images).retain(|other| other != id);
                client.call("DELETE", &format!("/image/v2/images/{id}"), None)?;
                Ok(value.clone())
            }
            "boot" => {
                let flavor = &self.stage.ground()?.name;
                let id =
                    client.create_server(text(value, "name"), text(value, "zone"), flavor, text(value, "image"))?;
                lock(&self.servers).push(id.clone());
                Ok(json!({"id": id}))
            }
            "halt" => {
                client.delete_server(text(value, "id"))?;
                lock(&self.servers).retain(|id| id != text(value, "id"));
                Ok(value.clone())
            }
            "booted" => booted(&client),
            "claim" => {
                let told = session.client.post(&format!("/luc/v1/pools/{pool}/claims"), value)?;
                let claim = text(&told["claim"], "id").to_owned();
                lock(&self.claims).push(claim.clone());
                Ok(json!({"id": claim, "pool": pool, "addresses": told["claim"]["addresses"]}))
            }
            _ => {
                let claim = text(value, "id");
                session.client.call("DELETE", &format!("/luc/v1/pools/{pool}/claims/{claim}"), None)?;
                lock(&self.claims).retain(|other| other != claim);
                Ok(value.clone())
            }
        }
    }

    fn upload(&self, client: &Client, value: &Value) -> Result<Value, Trouble> {
        let (number, size) = (value["number"].as_u64().unwrap_or(0), value["size"].as_u64().unwrap_or(0));
        let data = data(number, size);
        let id = client.create_image(&format!("{}-{number}", self.stage.ground()?.name))?;
        let sum = sum_of(&data);
        // If it is refused, an image without data stays, which is none.
        client.put_image(&id, &data)?;
        lock(&self.images).push(id.clone());
        Ok(json!({"image": id, "size": size, "sum": sum}))
    }
}

/// The data of an image: its number says which.
fn data(number: u64, size: u64) -> Vec<u8> {
    let mut rng = Rng::new(number, 77);
    let words = (0..size.div_ceil(32)).map(|_| rng.bytes());
    let mut data: Vec<u8> = words.flatten().collect();
    data.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    data
}

fn sum_of(data: &[u8]) -> String {
    blake3::hash(data).to_hex().chars().take(16).collect()
}

fn download(client: &Client, id: &str) -> Result<Value, Trouble> {
    let path = format!("/image/v2/images/{id}/file");
    // That the data are out of reach is an answer, and 503 is how Glance says it.
    let out_of_reach = |answer: &Answer| answer.status == 503;
    let answer = client.ask("GET", &path, out_of_reach)?;
    if answer.status != 200 {
        return Err(Trouble::Refused { status: answer.status, message: "the data cannot be had here now".into() });
    }
    Ok(json!({"image": id, "size": answer.body.len(), "sum": sum_of(&answer.body)}))
}

/// Servers as they are once all have booted, or after a while.
fn booted(client: &Client) -> Result<Value, Trouble> {
    let until = Instant::now() + BOOT;
    loop {
        let servers = client.insist(BOOT, Client::servers)?;
        let boots = |server: &Value| server["status"] != "ACTIVE" || !server["OS-EXT-STS:task_state"].is_null();
        if !servers.iter().any(boots) || Instant::now() >= until {
            let one = |server: &Value| {
                json!({
                    "id": server["id"], "status": server["status"], "task": server["OS-EXT-STS:task_state"],
                    "zone": server["OS-EXT-AZ:availability_zone"], "fault": server["fault"]["message"],
                })
            };
            return Ok(json!({"servers": servers.iter().map(one).collect::<Vec<_>>()}));
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn uploads<'a, 'b>(pairs: &'b [Pair<'a>]) -> BTreeMap<&'a str, &'b Pair<'a>> {
    let uploads = pairs.iter().filter(|pair| pair.invoke.f == "upload" && pair.is_ok());
    uploads.map(|pair| (text(result(pair), "image"), pair)).collect()
}

fn changed(pairs: &[Pair<'_>]) -> Vec<Anomaly> {
    let uploads = uploads(pairs);
    let reads = pairs.iter().filter(|pair| matches!(pair.invoke.f.as_str(), "download" | "final") && pair.is_ok());
    let mut anomalies = Vec::new();
    for read in reads {
        let (id, got) = (text(result(read), "image"), (&result(read)["sum"], &result(read)["size"]));
        let Some(upload) = uploads.get(id) else { continue };
        if got != (&result(upload)["sum"], &result(upload)["size"]) {
            let what = format!("{} gave other data for image {id} than {} was given", site_of(read), site_of(upload));
            anomalies.push(Anomaly::new(what, indices(upload).into_iter().chain([ended(read)])));
        }
    }
    anomalies
}

fn lost(pairs: &[Pair<'_>], excused: &Excused) -> Vec<Anomaly> {
    let uploads = uploads(pairs);
    let end = pairs.last().map_or(0, |pair| pair.invoke.time);
    let mut anomalies = Vec::new();
    for read in pairs.iter().filter(|pair| pair.invoke.f == "final" && !pair.is_ok()) {
        let id = text(&read.invoke.value, "image");
        let deleted = |pair: &Pair<'_>| pair.invoke.f == "delete" && text(&pair.invoke.value, "image") == id;
        let Some(upload) = uploads.get(id).filter(|_| !pairs.iter().any(deleted)) else { continue };
        // Data lie where they were uploaded until others ask for them.
        if !excused.loses(upload) && !excused.touched(site_of(upload), 0, end) {
            let what =
                format!("image {id} was uploaded at {}, and cannot be had at {}", site_of(upload), site_of(read));
            anomalies.push(Anomaly::new(what, indices(upload).into_iter().chain(indices(read))));
        }
    }
    anomalies
}

fn unbooted(pairs: &[Pair<'_>], excused: &Excused) -> Vec<Anomaly> {
    let end = pairs.last().map_or(0, |pair| pair.invoke.time);
    let uploads = uploads(pairs);
    let boots = pairs.iter().filter(|pair| pair.invoke.f == "boot" && pair.is_ok());
    let boots: HashMap<&str, &Pair<'_>> = boots.map(|pair| (text(result(pair), "id"), pair)).collect();
    let mut anomalies = Vec::new();
    for read in pairs.iter().filter(|pair| pair.invoke.f == "booted" && pair.is_ok()) {
        for server in result(read)["servers"].as_array().into_iter().flatten() {
            let (id, status) = (text(server, "id"), text(server, "status"));
            let Some(boot) = boots.get(id).filter(|_| status != "ACTIVE" && server["task"] != "deleting") else {
                continue;
            };
            let image = text(&boot.invoke.value, "image");
            let deleted = |pair: &Pair<'_>| pair.invoke.f == "delete" && text(&pair.invoke.value, "image") == image;
            let gone = pairs.iter().any(deleted)
                || excused.touched(text(server, "zone"), 0, end)
                || uploads.get(image).is_none_or(|upload| excused.touched(site_of(upload), 0, end));
            if !gone {
                let what =
                    format!("server {id} of {} is {status} in the end: {}", text(server, "zone"), server["fault"]);
                anomalies.push(Anomaly::new(what, indices(boot).into_iter().chain([ended(read)])));
            }
        }
    }
    anomalies
}

/// First and last addresses.
type Intervals = Vec<(u128, u128)>;

/// First and last address of a block, a range or a single one.
fn interval(text: &str) -> Option<(u128, u128)> {
    let number = |text: &str| {
        text.parse::<IpAddr>().ok().map(|address| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        })
    };
    if let Some((first, last)) = text.split_once('-') {
        return Some((number(first)?, number(last)?));
    }
    let Some((first, prefix)) = text.split_once('/') else { return Some((number(text)?, number(text)?)) };
    let width = if first.parse::<Ipv4Addr>().is_ok() { 32 } else { 128 };
    let host: u32 = u32::checked_sub(width, prefix.parse().ok()?)?;
    let first = number(first)?;
    Some((first, first.checked_add(1_u128.checked_shl(host)?.checked_sub(1)?)?))
}

fn given_twice(pairs: &[Pair<'_>], excused: &Excused) -> Vec<Anomaly> {
    let mut returned: HashMap<&str, u64> = HashMap::new();
    for pair in pairs.iter().filter(|pair| pair.invoke.f == "release" && pair.kind() != Kind::Fail) {
        let first = returned.entry(text(&pair.invoke.value, "id")).or_insert(u64::MAX);
        *first = (*first).min(pair.invoke.index);
    }
    // Each claim's addresses, from its acknowledgement to the beginning of its return.
    let mut held: Vec<(&Pair<'_>, Intervals, u64)> = Vec::new();
    let mut anomalies = Vec::new();
    let claims = pairs.iter().filter(|pair| pair.invoke.f == "claim" && pair.is_ok() && !excused.loses(pair));
    let mut claims: Vec<_> = claims.collect();
    claims.sort_by_key(|claim| ended(claim));
    for claim in claims {
        let addresses = result(claim)["addresses"].as_array().into_iter().flatten();
        let addresses: Intervals = addresses.filter_map(|text| interval(text.as_str()?)).collect();
        let until = returned.get(text(result(claim), "id")).copied().unwrap_or(u64::MAX);
        let shared = |other: &[(u128, u128)]| other.iter().any(|a| addresses.iter().any(|b| a.0 <= b.1 && b.0 <= a.1));
        let twice = held.iter().find(|(_, other, until)| *until > ended(claim) && shared(other));
        // One that was returned before it was acknowledged was never surely held.
        if let Some((other, _, _)) = twice.filter(|_| until > ended(claim)) {
            let what =
                format!("{} and {} have given out {}", site_of(other), site_of(claim), result(claim)["addresses"]);
            anomalies.push(Anomaly::new(what, indices(other).into_iter().chain(indices(claim))));
        }
        held.push((claim, addresses, until));
    }
    anomalies
}

/// Faults for the proof of the checkers.
pub(super) fn seeded() -> Vec<Seeded> {
    let up = |sum: &str| json!({"image": "i", "size": 9, "sum": sum});
    let image = json!({"image": "i"});
    let uploaded = Story::new(NAME).ok(0, "upload", json!({"number": 1, "size": 9}), up("aa"));
    let got = |story: Story, process, f: &str, sum: &str| story.ok(process, f, image.clone(), up(sum));
    let claim = |story: Story, process, id: &str, addresses: &[&str]| {
        story.ok(process, "claim", json!({"count": 1}), json!({"id": id, "pool": "p", "addresses": addresses}))
    };
    let boot = uploaded.clone().ok(1, "boot", json!({"image": "i", "name": "b", "zone": "lyon"}), json!({"id": "s"}));
    let booted = |status: &str| {
        let server = json!({"id": "s", "status": status, "task": null, "zone": "lyon", "fault": null});
        boot.clone().ok(0, "booted", json!({}), json!({"servers": [server]}))
    };
    let out = |story: Story| story.fail(1, "final", image.clone(), "503 out of reach");
    let taken = claim(uploaded.clone(), 0, "c", &["198.51.100.0/30", "198.51.100.9"]);
    let back = taken.clone().ok(1, "release", json!({"id": "c"}), json!({"id": "c"}));
    let seeded = |checker, bug, good, bad| Seeded::new(NAME, checker, bug, good, bad);
    vec![
        seeded(
            "checksum",
            "a byte is another at another site",
            got(uploaded.clone(), 1, "download", "aa"),
            got(uploaded.clone(), 1, "download", "ab"),
        ),
        seeded(
            "image-lost",
            "an acknowledged image cannot be had",
            out(uploaded.clone().wiped("paris")),
            out(got(uploaded.clone(), 2, "final", "aa")),
        ),
        seeded("boots", "a server never boots", booted("ACTIVE"), booted("BUILD")),
        seeded(
            "unique-addresses",
            "an address is given out twice",
            claim(back.clone(), 1, "d", &["198.51.100.2"]),
            claim(taken.clone(), 1, "d", &["198.51.100.2"]),
        ),
        seeded(
            "unique-addresses",
            "ranges overlap",
            claim(taken.clone(), 1, "d", &["198.51.100.10-198.51.100.12"]),
            claim(taken, 1, "d", &["198.51.100.8-198.51.100.12"]),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_ranges_and_addresses_are_read() {
        let base = u128::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)));
        assert_eq!(interval("10.0.0.0/24"), Some((base, base + 255)));
        assert_eq!(interval("10.0.0.7"), Some((base + 7, base + 7)));
        assert_eq!(interval("10.0.0.7-10.0.0.9"), Some((base + 7, base + 9)));
        assert_eq!(interval("2001:db8::/127").map(|(first, last)| last - first), Some(1));
        assert_eq!(interval("10.0.0.0/33"), None);
        assert_eq!(interval("nonsense"), None);
    }

    #[test]
    fn an_image_s_number_says_what_is_in_it() {
        assert_eq!(data(7, 100), data(7, 100));
        assert_ne!(data(7, 100), data(8, 100));
        assert_eq!(data(7, 100).len(), 100);
    }
}
