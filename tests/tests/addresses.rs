//! Addresses of one pool, taken at two sites that cannot hear each other.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::time::Duration;

use luc_tests::{Client, Cloud, eventually};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

fn take(client: &Client, pool: &str, body: Value) -> Result<Value, String> {
    let taken = client.post(&format!("/luc/v1/pools/{pool}/claims"), &body).map_err(|error| error.to_string())?;
    Ok(taken["claim"].clone())
}

fn shown(client: &Client, pool: &str) -> Value {
    client.get(&format!("/luc/v1/pools/{pool}")).unwrap()["pool"].clone()
}

fn blocks(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Waits until a site counts as out of reach: who asks sooner is told only that it did not answer.
fn sees_no_more(client: &Client, site: &str) {
    let seen = || {
        let sites = client.get("/luc/v1/sites")?;
        let found = sites["sites"].as_array().into_iter().flatten().find(|one| one["name"] == site).cloned();
        Ok(found.is_some_and(|found| found["reachable"] == false))
    };
    eventually(LONG, "the silence to be seen", seen).unwrap();
}

#[test]
fn each_half_of_a_split_cloud_gives_out_the_addresses_it_holds_and_no_others() {
    let cloud = Cloud::start(&["paris", "lyon"]).unwrap();
    let (paris, lyon) = (cloud.login(0).unwrap(), cloud.login(1).unwrap());
    let made = paris.post("/luc/v1/pools", &json!({"name": "public", "cidrs": ["198.51.100.0/28"]})).unwrap();
    let pool = made["pool"]["id"].as_str().unwrap().to_owned();
    cloud.agree(&[paris.clone(), lyon.clone()], LONG).unwrap();

    // The root keeps all; who needs one gets a whole block of half.
    let first = take(&lyon, &pool, json!({"purpose": "first"})).unwrap();
    let rights = shown(&lyon, &pool)["rights"].clone();
    let of = |rights: &Value, site: &str| {
        let right = rights.as_array().unwrap().iter().find(|right| right["site"] == site).cloned().unwrap();
        blocks(&right["free"]["addresses"])
    };
    assert_eq!(blocks(&first["addresses"]), ["198.51.100.8"]);
    assert_eq!(of(&rights, "paris"), ["198.51.100.0/29"]);
    cloud.agree(&[paris.clone(), lyon.clone()], LONG).unwrap();

    cloud.cut(1);
    let mut seen = BTreeSet::from([blocks(&first["addresses"])[0].clone()]);
    let mut taken = Vec::new();
    for (client, n) in [(&paris, 8), (&lyon, 7)] {
        for _ in 0..n {
            let claim = take(client, &pool, json!({})).unwrap();
            assert!(seen.insert(blocks(&claim["addresses"])[0].clone()), "given out twice: {claim}");
            taken.push(claim);
        }
    }
    // Paris has given out all of its own; what Lyon did since the cut, it cannot know.
    sees_no_more(&paris, "lyon");
    let refused = take(&paris, &pool, json!({})).unwrap_err();
    assert!(refused.contains("409") && refused.contains("out of reach") && refused.contains("lyon"), "{refused}");
    let refused = take(&paris, &pool, json!({"addresses": ["198.51.100.12"]})).unwrap_err();
    assert!(refused.contains("out of reach") && refused.contains("198.51.100.12"), "{refused}");
    // One that Paris gave out comes back to Paris; Lyon's is returned at Paris, and free once Lyon hears of it.
    let path = |claim: &Value| format!("/luc/v1/pools/{pool}/claims/{}", claim["id"].as_str().unwrap());
    let mine = paris.send("DELETE", &path(&taken[0]), &[], b"").unwrap();
    assert_eq!(mine.status, 204, "{}", mine.text);
    let theirs = paris.send("DELETE", &path(&first), &[], b"").unwrap();
    assert!(theirs.status == 202 && theirs.text.contains("lyon"), "{} {}", theirs.status, theirs.text);
    assert_eq!(take(&paris, &pool, json!({})).unwrap()["addresses"], taken[0]["addresses"]);

    cloud.wan.heal();
    cloud.agree(&[paris.clone(), lyon.clone()], LONG).unwrap();
    eventually(LONG, "the address to be free at lyon", || {
        Ok(of(&shown(&paris, &pool)["rights"], "lyon") == ["198.51.100.8"])
    })
    .unwrap();
    // And Paris gets it from there.
    assert_eq!(take(&paris, &pool, json!({})).unwrap()["addresses"], first["addresses"]);
    cloud.agree(&[paris.clone(), lyon.clone()], LONG).unwrap();
    let refused = take(&lyon, &pool, json!({})).unwrap_err();
    assert!(refused.contains("exhausted everywhere") && !refused.contains("out of reach"), "{refused}");
    let table = cloud.sites[0].luc(&["pools"]).unwrap();
    assert!(table.contains("address pool public: 16 claims, adds up"), "{table}");
}

#[test]
fn what_moves_in_a_confirmed_pool_waits_for_the_word_of_its_root() {
    let cloud = Cloud::start(&["paris", "lyon", "rennes"]).unwrap();
    let clients: Vec<Client> = (0..3).map(|at| cloud.login(at).unwrap()).collect();
    let [paris, lyon, rennes] = clients.as_slice() else { panic!("three sites") };
    let body = json!({"name": "public", "cidrs": ["198.51.100.0/28"], "confirmed": true});
    let made = paris.post("/luc/v1/pools", &body).unwrap();
    let pool = made["pool"]["id"].as_str().unwrap().to_owned();
    cloud.agree(&clients, LONG).unwrap();
    // What the root hands over is spent at once.
    take(lyon, &pool, json!({})).unwrap();
    cloud.agree(&clients, LONG).unwrap();
    cloud.cut(0);
    sees_no_more(rennes, "paris");
    // Lyon hands some on, and nobody who can be heard countersigns it.
    let refused = take(rennes, &pool, json!({})).unwrap_err();
    assert!(refused.contains("409") && refused.contains("wait to be countersigned by paris"), "{refused}");
    assert!(refused.contains("out of reach") && !refused.contains("exhausted"), "{refused}");
    take(lyon, &pool, json!({})).unwrap();
    cloud.wan.heal();
    eventually(LONG, "rennes to spend what lyon granted", || Ok(take(rennes, &pool, json!({})).is_ok())).unwrap();
    cloud.agree(&clients, LONG).unwrap();
    let shown = shown(paris, &pool);
    assert_eq!((&shown["claims"], &shown["conserved"], &shown["confirmed"]), (&json!(3), &json!(true), &json!(true)));
}

#[test]
fn an_operator_makes_changes_and_deletes_pools_from_the_command_line() {
    let cloud = Cloud::start(&["paris"]).unwrap();
    let site = &cloud.sites[0];
    let pool = |arguments: &[&str]| -> Value { serde_json::from_str(&site.luc(arguments).unwrap()).unwrap() };
    let refused = |arguments: &[&str]| site.luc(arguments).unwrap_err().to_string();

    let made = site.luc(&["pools", "create", "public", "198.51.100.0/30", "198.51.100.9", "--confirmed"]).unwrap();
    assert!(made.contains("address pool public: 0 claims, adds up, grants are countersigned"), "{made}");
    let again = refused(&["pools", "create", "public", "192.0.2.0/24"]);
    assert!(again.contains("409"), "{again}");
    let none = refused(&["pools", "create", "other", "192.0.2.0/33"]);
    assert!(none.contains("400"), "{none}");

    let grown = pool(&["pools", "set", "public", "--add", "192.0.2.0/31", "--add", "192.0.2.7", "--json"]);
    assert_eq!(
        blocks(&grown["capacity"]["addresses"]),
        ["192.0.2.0/31", "192.0.2.7", "198.51.100.0/30", "198.51.100.9"]
    );
    let id = grown["id"].as_str().unwrap().to_owned();
    let shrunk = pool(&["pools", "set", &id, "--remove", "198.51.100.0/30", "--json"]);
    assert_eq!(blocks(&shrunk["capacity"]["addresses"]), ["192.0.2.0/31", "192.0.2.7", "198.51.100.9"]);
    let back = refused(&["pools", "set", "public", "--add", "198.51.100.1"]);
    assert!(back.contains("409") && back.contains("does not come back"), "{back}");
    let nothing = refused(&["pools", "set", "public"]);
    assert!(nothing.contains("--add or --remove"), "{nothing}");

    let paris = cloud.login(0).unwrap();
    let claim = take(&paris, &id, json!({"addresses": ["192.0.2.7"]})).unwrap();
    let used = refused(&["pools", "set", "public", "--remove", "192.0.2.7"]);
    assert!(used.contains("409") && used.contains("192.0.2.7"), "{used}");
    let in_use = refused(&["pools", "delete", "public"]);
    assert!(in_use.contains("409") && in_use.contains("in use"), "{in_use}");
    paris.send("DELETE", &format!("/luc/v1/pools/{id}/claims/{}", claim["id"].as_str().unwrap()), &[], b"").unwrap();
    assert_eq!(pool(&["pools", "delete", "public", "--json"])["deleted"], json!(id));
    let gone = refused(&["pools", "delete", "public"]);
    assert!(gone.contains("there is no address pool public"), "{gone}");
}
